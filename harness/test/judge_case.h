/* judge_case.h - a small golden file made up here and an engine whose taps are tables, for tests of
 * the judge. */
#ifndef DSV4_TEST_JUDGE_CASE_H
#define DSV4_TEST_JUDGE_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness/harness.h"

/* Layer 0 chooses experts by hash, layers 1 and 2 have compressor and indexer. */
enum { LAYERS = 3, OUTSIDE = LAYERS, CONTEXT = 8, ROWS = 3, WIDTH = 8, EXPERTS = 5 };

typedef union {
    float f;
    int32_t i;
} cell;
typedef cell tables[LAYERS + 1][DSV4_TAP_COUNT][ROWS][WIDTH];

static const int32_t tokens[CONTEXT] = {1, 2, 3, 4, 5, 0, 1, 2};
static const int64_t positions[ROWS] = {3, 5, 7};
static int ratios[LAYERS] = {0, 4, 4};
static float limits[LAYERS];
static const dsv4_config config = {.vocab_size = 6,
                                   .hidden_size = 4,
                                   .num_hidden_layers = LAYERS,
                                   .num_attention_heads = 2,
                                   .head_dim = 4,
                                   .qk_rope_head_dim = 2,
                                   .q_lora_rank = 3,
                                   .o_groups = 1,
                                   .o_lora_rank = 3,
                                   .n_routed_experts = EXPERTS,
                                   .num_experts_per_tok = 2,
                                   .num_hash_layers = 1,
                                   .index_n_heads = 2,
                                   .index_head_dim = 4,
                                   .index_topk = 1,
                                   .hc_mult = 2,
                                   .compress_ratios = ratios,
                                   .swiglu_limit = limits};

static char folder[] = "/tmp/dsv4-judge-XXXXXX";
static char path[64];
static budget_table builtin;

/* ---- golden file and engine ------------------------------------------------------------------ */

static tables gold, mine;                               /* [layer][tap][row][element] */
static bool silent[LAYERS + 1][DSV4_TAP_COUNT][ROWS];   /* what the engine does not report */
static int64_t width_of[LAYERS + 1][DSV4_TAP_COUNT];    /* of the engine's rows */
static int64_t golden_rows[LAYERS + 1][DSV4_TAP_COUNT]; /* rows that golden holds */
static vec_file *file;
static judge *judged;
static results found;

static const dsv4_tap_id held[] = {DSV4_TAP_HC_ATTN_COLLAPSED,
                                   DSV4_TAP_KV,
                                   DSV4_TAP_COMPRESSED_KV,
                                   DSV4_TAP_INDEXER_SCORES,
                                   DSV4_TAP_INDEXER_TOPK,
                                   DSV4_TAP_ATTN_HEADS,
                                   DSV4_TAP_STREAMS_MID,
                                   DSV4_TAP_ROUTER_LOGITS,
                                   DSV4_TAP_ROUTER_EXPERTS,
                                   DSV4_TAP_ROUTER_WEIGHTS,
                                   DSV4_TAP_ROUTED_OUT,
                                   DSV4_TAP_STREAMS,
                                   DSV4_TAP_LOGITS};
enum { HELD = sizeof held / sizeof *held };

static inline bool in_layer(dsv4_tap_id id, int layer)
{
    if (id >= DSV4_TAP_HEAD_COLLAPSED)
        return layer == OUTSIDE;
    return layer < LAYERS &&
           (ratios[layer] > 0 || id < DSV4_TAP_COMPRESSED_KV || id > DSV4_TAP_INDEXER_TOPK);
}

static inline int64_t width(dsv4_tap_id id)
{
    int64_t shape[2];
    int ndim = dsv4_tap_shape(id, &config, shape);
    if (id == DSV4_TAP_INDEXER_TOPK)
        return 1;
    return id == DSV4_TAP_INDEXER_SCORES ? 2 : ndim > 1 ? shape[0] * shape[1] : shape[0];
}

static inline int64_t position_of(dsv4_tap_id id, int row)
{
    return dsv4_tap_is_row(id) ? row : positions[row];
}

/* Plain values, choices far from a tie, the engine equal to golden. */
static inline void reset(void)
{
    uint32_t seed = 7;
    for (int l = 0; l <= LAYERS; l++)
        for (int k = 0; k < HELD; k++) {
            dsv4_tap_id id = held[k];
            golden_rows[l][id] = dsv4_tap_is_row(id) ? 2 : ROWS;
            width_of[l][id] = width(id);
            for (int r = 0; r < ROWS; r++)
                for (int i = 0; i < WIDTH; i++) {
                    seed = seed * 1664525u + 1013904223u;
                    gold[l][id][r][i].f = 0.5f + (float)(seed >> 8) / (float)(1 << 24);
                }
        }
    for (int l = 0; l < LAYERS; l++)
        for (int r = 0; r < ROWS; r++) {
            for (int e = 0; e < EXPERTS; e++)
                gold[l][DSV4_TAP_ROUTER_LOGITS][r][e].f = (float)(EXPERTS - e);
            gold[l][DSV4_TAP_INDEXER_SCORES][r][0].f = 4;
            gold[l][DSV4_TAP_INDEXER_SCORES][r][1].f = 2;
            gold[l][DSV4_TAP_INDEXER_TOPK][r][0].i = 0;
            gold[l][DSV4_TAP_ROUTER_EXPERTS][r][0].i = 0;
            gold[l][DSV4_TAP_ROUTER_EXPERTS][r][1].i = 1;
        }
    for (int r = 0; r < ROWS; r++)
        gold[OUTSIDE][DSV4_TAP_LOGITS][r][2].f = 3;
    memset(silent, 0, sizeof silent);
}

static inline void put_golden(void)
{
    static const vec_writer_info info = {"made up", "00", "{}", "test", "math"};
    const vec_case c = {"c", false, CONTEXT, CONTEXT, tokens, ROWS, positions};
    dsv4_error err = {""};
    vec_writer *w = NULL;
    assert_int_equal(vec_writer_new(path, &info, &w, &err), DSV4_OK);
    assert_int_equal(vec_writer_case(w, &c, &err), DSV4_OK);
    for (int l = 0; l <= LAYERS; l++)
        for (int k = 0; k < HELD; k++) {
            dsv4_tap_id id = held[k];
            int64_t shape[2], n = width(id);
            cell rows[ROWS * WIDTH];
            if (!in_layer(id, l) || golden_rows[l][id] == 0)
                continue;
            int ndim = dsv4_tap_shape(id, &config, shape);
            if (ndim == 1)
                shape[0] = n;
            for (int r = 0; r < golden_rows[l][id]; r++)
                memcpy(rows + r * n, gold[l][id][r], (size_t)n * sizeof(cell));
            assert_int_equal(vec_writer_tap(w, id, l < LAYERS ? l : -1, golden_rows[l][id], ndim,
                                            shape, NULL, rows, &err),
                             DSV4_OK);
        }
    assert_int_equal(vec_writer_commit(w, &err), DSV4_OK);
}

static inline judge_options plain(void)
{
    return (judge_options){.numerics = DSV4_MATH, .budgets = &builtin, .config = &config};
}

/* Writes golden, opens it; the engine's tables start as golden ones. */
static inline void open_case(const judge_options *o)
{
    dsv4_error err = {""};
    put_golden();
    memcpy(mine, gold, sizeof mine);
    if (vec_open(path, &file, &err) != DSV4_OK)
        fail_msg("%s", err.text);
    assert_int_equal(judge_new(file, vec_case_at(file, 0), o, &judged, &err), DSV4_OK);
    results_init(&found);
}

/* One report, made as a session makes it: asked first. The engine goes on with what it finds in
 * its table afterwards. */
static inline void report(int l, dsv4_tap_id id, int row)
{
    const dsv4_taps *t = judge_taps(judged);
    int layer = l < LAYERS ? l : -1;
    if (!silent[l][id][row] && t->want(t->ctx, id, layer, position_of(id, row)))
        t->tap(t->ctx, id, layer, position_of(id, row), mine[l][id][row], (size_t)width_of[l][id]);
}

static inline void feed(void)
{
    for (int l = 0; l <= LAYERS; l++)
        for (int k = 0; k < HELD; k++)
            for (int r = 0; r < (dsv4_tap_is_row(held[k]) ? 2 : ROWS); r++)
                if (in_layer(held[k], l))
                    report(l, held[k], r);
}

static inline dsv4_status finish(dsv4_error *err)
{
    dsv4_status status = judge_finish(judged, &found, err);
    results_finish(&found);
    return status;
}

static inline void run(void)
{
    dsv4_error err = {""};
    feed();
    if (finish(&err) != DSV4_OK)
        fail_msg("%s", err.text);
}

static inline void close_case(void)
{
    judge_free(judged);
    vec_close(file);
    results_free(&found);
    judged = NULL;
    file = NULL;
}

static inline const result *item(int layer, dsv4_tap_id id)
{
    for (size_t i = 0; i < found.count; i++)
        if (found.items[i].layer == layer && found.items[i].tap == id)
            return &found.items[i];
    fail_msg("no result for %s of layer %d", dsv4_tap_name(id), layer);
    return NULL;
}

static inline void assert_failed(int layer, dsv4_tap_id id, const char *block, const char *note)
{
    const result *r = item(layer, id);
    assert_int_equal(r->verdict, VERDICT_FAIL);
    assert_string_equal(r->block, block);
    if (note != NULL && (r->note == NULL || strstr(r->note, note) == NULL))
        fail_msg("expected a note with '%s', found '%s'", note, r->note ? r->note : "none");
}

/* Everything passed but what the caller has looked at already. */
static inline void assert_others_pass(size_t failed)
{
    assert_int_equal(results_count(&found, VERDICT_FAIL), failed);
    assert_int_equal(results_count(&found, VERDICT_MARGINAL), 0);
    assert_int_equal(results_exit_code(&found), failed > 0);
}

static inline int setup(void **state)
{
    dsv4_error err;
    (void)state;
    if (!mkdtemp(folder) || budgets_load(NULL, &builtin, &err) != DSV4_OK)
        return -1;
    snprintf(path, sizeof path, "%s/golden.h5", folder);
    return 0;
}

static inline int teardown(void **state)
{
    (void)state;
    budgets_free(&builtin);
    unlink(path);
    return rmdir(folder);
}

static inline int each_setup(void **state)
{
    (void)state;
    reset();
    return 0;
}

static inline int each_teardown(void **state)
{
    (void)state;
    close_case();
    return 0;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, each_setup, each_teardown)

#endif
