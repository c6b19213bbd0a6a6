/* hypotheses.c - the list of mistakes that can be tried, and the copy of the model they are tried
 * on. A mistake is one assignment; where a single tensor is at fault, the copy gets another. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hypotheses.h"

/* ---- the copy -------------------------------------------------------------------------------- */

void *trial_alloc(trial *t, size_t count, size_t size)
{
    void *p = t->n_owned < TRIAL_OWNED ? dsv4_alloc(count, size, "a trial", NULL) : NULL;
    if (p == NULL)
        t->failed = true;
    else
        t->owned[t->n_owned++] = p;
    return p;
}

void trial_free(trial *t)
{
    if (t == NULL)
        return;
    for (size_t i = 0; i < t->n_owned; i++)
        free(t->owned[i]);
    free(t);
}

/* In place of *w: its values as float32, which the caller changes. */
static float *own_values(trial *t, dsv4_tensor *w)
{
    float *values =
        w->name != NULL ? trial_alloc(t, (size_t)(w->rows * w->cols), sizeof *values) : NULL;
    if (values == NULL)
        return NULL;
    for (int64_t row = 0; row < w->rows; row++)
        dsv4_tensor_row(w, row, values + row * w->cols);
    *w = (dsv4_tensor){.name = w->name,
                       .type = DSV4_F32,
                       .rows = w->rows,
                       .cols = w->cols,
                       .data = (const uint8_t *)values,
                       .row_bytes = (size_t)w->cols * sizeof *values,
                       .scale_rows = 1};
    return values;
}

static dsv4_layer *failing(trial *t)
{
    return trial_layer(t);
}

dsv4_status trial_new(const dsv4_model *right, int layer, const hypothesis *h, int param,
                      trial **out, dsv4_error *err)
{
    trial *t = dsv4_alloc(1, sizeof *t, "a trial", err);
    *out = NULL;
    if (t == NULL)
        return DSV4_E_MACHINE;
    int all = right->config.num_hidden_layers;
    t->right = right;
    t->layer = layer;
    t->param = param;
    t->model = *right;
    t->layers = trial_alloc(t, (size_t)all, sizeof *t->layers);
    if (t->layers == NULL) {
        trial_free(t);
        return dsv4_fail(err, DSV4_E_MACHINE, "out of memory for a trial");
    }
    memcpy(t->layers, right->layers, (size_t)all * sizeof *t->layers);
    t->model.layers = t->layers;
    if (right->mtp != NULL) {
        t->mtp = right->mtp[0];
        t->model.mtp = &t->mtp;
    }
    if (layer >= 0) { /* nothing beyond is asked for */
        t->model.config.num_hidden_layers = layer + 1;
        t->model.mtp = NULL;
    }
    t->right_ops = engine_quick_ops(); /* a hundred trials */
    h->apply(t);
    wrong_ops_install(t);
    *out = t;
    return DSV4_OK;
}

/* ---- one assignment each --------------------------------------------------------------------- */

#define SET(name, field, value)                                                                    \
    static void name(trial *t)                                                                     \
    {                                                                                              \
        t->m.field = value;                                                                        \
    }
SET(window_one_more, window_more, 1)
SET(window_one_less, window_more, -1)
SET(window_unlimited, window_unlimited, true)
SET(window_to_end, window_to_block_end, true)
SET(window_next, window_next, true)
SET(window_not_itself, window_not_itself, true)
SET(window_from_block, window_from_block, true)
SET(rows_of_end, rows_of_block_end, true)
SET(rows_none_all, rows_none_all, true)
SET(rows_late, rows_late, 1)
SET(rows_skip, rows_skip, 1)
SET(rows_limited, rows_most, t->model.config.index_topk)
SET(rows_limited_1, rows_most, 1)
SET(topk_ignored, topk_ignored, true)
SET(topk_flattened, topk_flattened, true)
SET(sink_ignored, sinks, -1)
SET(sink_twice, sinks, 1)
SET(sink_first, sink_of_head_0, true)
SET(scale_unrotated, scale_unrotated, true)
SET(comb_sigmoid, comb_start, COMB_SIGMOID)
SET(comb_exp, comb_start, COMB_EXP)
SET(comb_column_first, comb_column_first, true)
SET(comb_no_eps, comb_no_eps, true)
SET(pre_no_eps, pre_no_eps, true)
SET(one_pass, sinkhorn_passes, 1)
SET(comb_transposed, comb_transposed, true)
SET(comb_identity, comb_identity, true)
SET(post_ungated, post_ungated, true)
SET(post_narrowed, post_narrowed, true)
SET(pre_mean, pre_mean, true)
SET(mix_interleaved, mix_interleaved, true)
SET(head_mean, head_mean, true)
SET(norm_one_plus, norm, NORM_ONE_PLUS)
SET(norm_sum, norm, NORM_SUM)
SET(norm_centred, norm, NORM_CENTRED)
SET(head_norm_skipped, head_norm_skipped, true)
SET(out_not_turned, out_turn, OUT_NOT)
SET(out_forward, out_turn, OUT_FORWARD)
SET(groups_reversed, groups, GROUPS_REVERSED)
SET(groups_interleaved, groups, GROUPS_INTERLEAVED)
SET(pool_alone, pool, POOL_ALONE)
SET(pool_zeros, pool, POOL_ZEROS_BEFORE)
SET(pool_mean, pool, POOL_MEAN)
SET(pool_lanes, pool, POOL_LANES)
SET(pool_last_lost, pool, POOL_LAST_LOST)
SET(score_no_relu, score, SCORE_NO_RELU)
SET(score_relu_outside, score, SCORE_RELU_OUTSIDE)
SET(score_unweighted, score, SCORE_UNWEIGHTED)
SET(score_axis, score, SCORE_AXIS)
SET(pick_smallest, pick, PICK_SMALLEST)
SET(pick_newest, pick, PICK_NEWEST)
SET(pick_first_tile, pick, PICK_FIRST_TILE)
SET(route_sigmoid, route, ROUTE_SIGMOID)
SET(route_softmax, route, ROUTE_SOFTMAX)
SET(route_softplus, route, ROUTE_SOFTPLUS)
SET(route_naive, route, ROUTE_NAIVE)
SET(route_no_bias, route_no_bias, true)
SET(route_bias_weighs, route_bias_weighs, true)
SET(route_not_normalised, route_not_normalised, true)
SET(route_first_group, route_first_group, true)
SET(route_padded, route_padded, true)
SET(route_equal, route_equal, true)
SET(route_turned, expert_slots_turned, true)
SET(hash_scores, hash, HASH_SCORES)
SET(hash_position, hash, HASH_POSITION)
SET(hash_neighbour, hash, HASH_NEIGHBOUR)
SET(hash_half, hash, HASH_HALF)
SET(expert_unweighted, expert_unweighted, true)
SET(expert_weighted_twice, expert_weighted_twice, true)
SET(expert_slot_lost, expert_slot_lost, true)
SET(expert_sorted, expert_sorted, true)
SET(clamp_after, clamp, CLAMP_AFTER)
SET(clamp_up_above, clamp, CLAMP_UP_ABOVE)
SET(act_relu, act, ACT_RELU)
SET(act_gelu, act, ACT_GELU)
SET(embed_next, embed, EMBED_NEXT)
SET(embed_last, embed, EMBED_LAST)
SET(fp8_not, fp8, FP8_NOT)
SET(fp8_float_scale, fp8, FP8_FLOAT_SCALE)
SET(fp8_down, fp8, FP8_DOWN)
SET(fp8_truncated, fp8, FP8_TRUNCATED)
SET(fp4_not, fp4, FP4_NOT)
SET(fp4_block_128, fp4, FP4_BLOCK_128)
SET(fp4_float_scale, fp4, FP4_FLOAT_SCALE)
SET(fp4_first_head, fp4, FP4_FIRST_HEAD)
SET(no_hadamard, hadamard, HADAMARD_NONE)
SET(hadamard_query, hadamard, HADAMARD_QUERY)
SET(hadamard_rows, hadamard, HADAMARD_ROWS)
SET(ring_overwritten, window_overwritten, true)
SET(topk_of_block, topk_of_block, true)
SET(softmax_columns, comb_axis, START_COLUMNS)
SET(softmax_columns_rows, comb_axis, START_COLUMNS_THEN_ROWS)
SET(post_of_first, post_of_first, true)
SET(embed_one_stream, embed_one_stream, true)
SET(head_first, head_first, true)
SET(groups_tokens, groups, GROUPS_TOKENS)
SET(pool_block_tail, pool, POOL_BLOCK_TAIL)
SET(pool_block_last, pool_block_last, true)
SET(pick_first_count, pick, PICK_FIRST_COUNT)
SET(pick_suffix, pick, PICK_SUFFIX)
SET(mtp_narrowed, mtp_narrowed, true)
SET(mtp_doubled, mtp_doubled, true)
SET(mtp_not_shifted, mtp_not_shifted, true)
SET(mtp_no_hnorm, mtp_no_hnorm, true)

static void mtp_main_norm(trial *t)
{
    t->mtp.norm = t->right->norm;
}

static void mtp_main_head(trial *t)
{
    t->mtp.hc_head = t->right->hc_head;
}

static void mtp_norms_exchanged(trial *t)
{
    dsv4_tensor keep = t->mtp.enorm;
    t->mtp.enorm = t->mtp.hnorm;
    t->mtp.hnorm = keep;
}

static void mtp_projections_exchanged(trial *t)
{
    dsv4_tensor keep = t->mtp.e_proj;
    t->mtp.e_proj = t->mtp.h_proj;
    t->mtp.h_proj = keep;
}

/* Everything of the layer, its attention, one matrix of it: read from the last main layer. */
static void mtp_main_layer(trial *t)
{
    int ratio = t->mtp.layer.ratio;
    const dsv4_layer *last = &t->right->layers[t->right->config.num_hidden_layers - 1];
    t->failed = t->failed || last->ratio != ratio;
    t->mtp.layer = *last;
}

#define MTP_MAIN(name, ...)                                                                        \
    static void mtp_main_##name(trial *t)                                                          \
    {                                                                                              \
        const dsv4_layer *last = &t->right->layers[t->right->config.num_hidden_layers - 1];        \
        dsv4_layer *l = &t->mtp.layer;                                                             \
        __VA_ARGS__;                                                                               \
    }
MTP_MAIN(attention, l->wq_a = last->wq_a, l->wq_b = last->wq_b, l->q_norm = last->q_norm,
         l->wkv = last->wkv, l->kv_norm = last->kv_norm, l->wo_a = last->wo_a, l->wo_b = last->wo_b,
         l->attn_sink = last->attn_sink)
MTP_MAIN(wq_a, l->wq_a = last->wq_a)
MTP_MAIN(wq_b, l->wq_b = last->wq_b)
MTP_MAIN(wkv, l->wkv = last->wkv)
MTP_MAIN(wo_a, l->wo_a = last->wo_a)
MTP_MAIN(wo_b, l->wo_b = last->wo_b)
MTP_MAIN(experts, l->w1 = last->w1, l->w2 = last->w2, l->w3 = last->w3)
MTP_MAIN(shared, l->shared_w1 = last->shared_w1, l->shared_w2 = last->shared_w2,
         l->shared_w3 = last->shared_w3)
MTP_MAIN(gates, l->hc_attn = last->hc_attn, l->hc_ffn = last->hc_ffn)

static void post_lost(trial *t)
{
    t->m.post_lost = 2 * t->model.config.num_hidden_layers;
    t->failed = t->failed || t->layer + 1 != t->right->config.num_hidden_layers;
}

static void ffn_norm_twice(trial *t)
{
    t->m.norm_twice = &failing(t)->ffn_norm;
}

static void q_norm_skipped(trial *t)
{
    t->m.norm_skipped = &failing(t)->q_norm;
}

static void kv_norm_skipped(trial *t)
{
    t->m.norm_skipped = &failing(t)->kv_norm;
}

static void final_norm_skipped(trial *t)
{
    t->m.norm_skipped = &t->right->norm;
}

static void row_norm_skipped(trial *t)
{
    t->m.norm_skipped = &failing(t)->compressor.norm;
}

static void experts_unclamped(trial *t)
{
    for (int l = 0; l < t->model.config.num_hidden_layers; l++)
        t->layers[l].swiglu_limit = 0;
}

static void experts_exchanged(trial *t)
{
    dsv4_layer *l = failing(t);
    dsv4_tensor *w = l->w1, shared = l->shared_w1;
    l->w1 = l->w3;
    l->w3 = w;
    l->shared_w1 = l->shared_w3;
    l->shared_w3 = shared;
}

dsv4_tensor *trial_shifted(trial *t, dsv4_tensor *w, int by)
{
    int64_t n = t->model.config.n_routed_experts;
    dsv4_tensor *copy = trial_alloc(t, (size_t)n, sizeof *copy);
    for (int64_t e = 0; copy != NULL && e < n; e++)
        copy[e] = w[((e + by) % n + n) % n];
    return copy != NULL ? copy : w;
}

/* Expert e works with the matrices of e + 1. */
static void experts_shifted(trial *t)
{
    dsv4_layer *l = failing(t);
    l->w1 = trial_shifted(t, l->w1, 1);
    l->w2 = trial_shifted(t, l->w2, 1);
    l->w3 = trial_shifted(t, l->w3, 1);
}

static void down_shifted(trial *t)
{
    failing(t)->w2 = trial_shifted(t, failing(t)->w2, 1);
}

static void no_ape(trial *t)
{
    for (int l = 0; l < t->model.config.num_hidden_layers; l++) {
        dsv4_tensor *ape = &t->layers[l].compressor.ape;
        float *values = t->layers[l].ratio > 0 ? own_values(t, ape) : NULL;
        if (values != NULL)
            memset(values, 0, (size_t)(ape->rows * ape->cols) * sizeof *values);
    }
}

static void kv_gate_exchanged(trial *t)
{
    dsv4_compressor_weights *c = &failing(t)->compressor;
    dsv4_tensor kv = c->wkv;
    c->wkv = c->wgate;
    c->wgate = kv;
}

static void last_ape(trial *t)
{
    const dsv4_model *m = t->right;
    const dsv4_tensor *last = NULL;
    for (int l = 0; l < m->config.num_hidden_layers; l++)
        if (m->layers[l].ratio == failing(t)->ratio)
            last = &m->layers[l].compressor.ape;
    if (last != NULL)
        failing(t)->compressor.ape = *last;
}

static void index_weights_unscaled(float *w, int64_t n, int heads, int dim)
{
    (void)w, (void)n, (void)heads, (void)dim;
}

static void indexer_unscaled(trial *t)
{
    t->right_ops.index_weights = index_weights_unscaled;
}

static void embed_head(trial *t)
{
    t->model.embed = t->right->head;
}

static void head_tied(trial *t)
{
    t->model.head = t->right->embed;
}

/* ---- carried state: wrong only where one token is appended ------------------------------------
 */

#define DECODE(name, field, value)                                                                 \
    static void name(trial *t)                                                                     \
    {                                                                                              \
        t->m.decode_only = true;                                                                   \
        t->m.field = value;                                                                        \
    }
DECODE(decode_rows_hidden, rows_hidden, true)
DECODE(decode_not_itself, window_not_itself, true)
DECODE(decode_window_short, window_more, -1)
DECODE(decode_no_sink, sinks, -1)
DECODE(decode_rows_of_prompt, rows_of_prompt, true)
DECODE(decode_one_row, window_of_step, true)
DECODE(decode_window_frozen, window_frozen, true)
DECODE(decode_pool_alone, pool, POOL_DECODE_ALONE)
DECODE(decode_prompt_tail, pool, POOL_PROMPT_TAIL)
DECODE(decode_bias_phase, bias_phase, true)
DECODE(decode_unclamped, experts_unclamped, true)

#define FEWER(name, only_decode, by)                                                               \
    static void name(trial *t)                                                                     \
    {                                                                                              \
        t->m.decode_only = only_decode;                                                            \
        t->m.pick = PICK_FEWER;                                                                    \
        t->m.pick_fewer = by;                                                                      \
    }
FEWER(decode_one_fewer, true, 1)
FEWER(decode_two_fewer, true, 2)
FEWER(decode_half, true, t->model.config.index_topk / 2)
FEWER(one_fewer, false, 1)
FEWER(two_fewer, false, 2)
FEWER(pick_half, false, t->model.config.index_topk / 2)

/* ---- tensors: another layer's, or misread ------------------------------------------------------
 */

/* The tensor of layer w that makes a tap out of the taps before it; NULL = more than one. */
static dsv4_tensor *maker(dsv4_layer *w, const char *tap)
{
    static const struct {
        const char *tap;
        size_t at;
    } makers[] = {
        {"q_lora", offsetof(dsv4_layer, wq_a)},
        {"q", offsetof(dsv4_layer, wq_b)},
        {"kv", offsetof(dsv4_layer, wkv)},
        {"o_lora", offsetof(dsv4_layer, wo_a)},
        {"attn_out", offsetof(dsv4_layer, wo_b)},
        {"attn_heads", offsetof(dsv4_layer, attn_sink)},
        {"attn_norm", offsetof(dsv4_layer, attn_norm)},
        {"ffn_norm", offsetof(dsv4_layer, ffn_norm)},
        {"hc_attn_post", offsetof(dsv4_layer, hc_attn.fn)},
        {"hc_ffn_post", offsetof(dsv4_layer, hc_ffn.fn)},
        {"router_logits", offsetof(dsv4_layer, gate)},
        {"indexer_q", offsetof(dsv4_layer, indexer.wq_b)},
        {"indexer_scores", offsetof(dsv4_layer, indexer.weights_proj)},
        {"indexer_kv", offsetof(dsv4_layer, indexer.compressor.wkv)},
        {"compressed_kv", offsetof(dsv4_layer, compressor.wkv)},
        {"shared_out", offsetof(dsv4_layer, shared_w2)},
    };
    for (size_t i = 0; i < sizeof makers / sizeof *makers; i++)
        if (strcmp(makers[i].tap, tap) == 0)
            return (dsv4_tensor *)(void *)((char *)w + makers[i].at);
    return NULL;
}

/* The failing layer with one other layer's tensors; which one is said by the hypothesis. */
static void borrow(trial *t, int from)
{
    dsv4_layer *to = failing(t);
    int all = t->right->config.num_hidden_layers;
    t->failed = t->failed || from < 0 || from >= all || from == t->layer;
    if (t->failed)
        return;
    const dsv4_layer *other = &t->right->layers[from];
    /* Everything that does not depend on the kind of layer, and what does where they agree. */
    dsv4_layer mixed = *other;
    mixed.ratio = to->ratio;
    mixed.hash = to->hash;
    if (other->ratio != to->ratio) {
        mixed.compressor = to->compressor;
        mixed.indexer = to->indexer;
    }
    if (other->hash != to->hash) {
        mixed.tid2eid = to->tid2eid;
        mixed.gate_bias = to->gate_bias;
    }
    *to = mixed;
}
static void borrow_last(trial *t)
{
    borrow(t, t->layer - 1);
}
static void borrow_next(trial *t)
{
    borrow(t, t->layer + 1);
}

/* Of the tensor behind the failing tap alone. */
static void borrow_one(trial *t, int from, const char *tap)
{
    int all = t->right->config.num_hidden_layers;
    t->failed = t->failed || from < 0 || from >= all;
    if (t->failed)
        return;
    dsv4_layer other = t->right->layers[from];
    dsv4_tensor *to = maker(failing(t), tap), *w = maker(&other, tap);
    t->failed =
        to == NULL || w == NULL || w->name == NULL || w->rows != to->rows || w->cols != to->cols;
    if (!t->failed)
        *to = *w;
}
#define BORROW_ONE(name, tap, step)                                                                \
    static void name(trial *t)                                                                     \
    {                                                                                              \
        borrow_one(t, t->layer + step, tap);                                                       \
    }
BORROW_ONE(last_q_lora, "q_lora", -1)
BORROW_ONE(last_wo_b, "attn_out", -1)
BORROW_ONE(next_gate, "router_logits", 1)
BORROW_ONE(next_indexer_q, "indexer_q", 1)
BORROW_ONE(next_weights_proj, "indexer_scores", 1)
BORROW_ONE(next_indexer_kv, "indexer_kv", 1)

static void next_table(trial *t)
{
    int next = t->layer + 1;
    t->failed = t->failed || next >= t->right->config.num_hidden_layers ||
                t->right->layers[next].tid2eid.name == NULL;
    if (!t->failed)
        failing(t)->tid2eid = t->right->layers[next].tid2eid;
}

/* ---- the list ----------------------------------------------------------------------------------
 */

#define FP8_TAPS "q_lora|q|kv|o_lora|attn_out|shared_out|indexer_q"

const hypothesis hypotheses[] = {
    {"comb-sigmoid", "hc_*_comb", false, comb_sigmoid},
    {"comb-exp", "hc_*_comb", false, comb_exp},
    {"one-pass", "hc_*_comb", false, one_pass},
    {"column-first", "hc_*_comb", false, comb_column_first},
    {"column-first", "hc_*_comb", false, softmax_columns},
    {"column-first", "hc_*_comb", false, softmax_columns_rows},
    {"no-comb-eps", "hc_*_comb", false, comb_no_eps},
    {"no-pre-eps", "hc_*_collapsed", false, pre_no_eps},
    {"mix-interleaved", "hc_*_post|hc_*_comb", false, mix_interleaved},
    {"pre-mean", "hc_*_collapsed", false, pre_mean},
    {"comb-transposed", "streams_mid|streams", false, comb_transposed},
    {"comb-identity", "streams_mid|streams", false, comb_identity},
    {"post-ungated", "streams_mid|streams", false, post_ungated},
    {"post-narrowed", "streams_mid|streams", false, post_narrowed},
    {"post-narrowed", "streams_mid|streams", false, post_of_first},
    {"post-lost", "streams", false, post_lost},
    {"embed-one-stream", "hc_attn_*|streams_mid", false, embed_one_stream},
    {"norm-one-plus", "*norm|q_lora", false, norm_one_plus},
    {"norm-sum", "*norm|q_lora", false, norm_sum},
    {"norm-centred", "*norm|q_lora", false, norm_centred},
    {"ffn-norm-twice", "ffn_norm", false, ffn_norm_twice},
    {"no-q-norm", "q_lora", false, q_norm_skipped},
    {"no-kv-norm", "kv", false, kv_norm_skipped},
    {"no-head-norm", "q", false, head_norm_skipped},
    {"embed-next", "hc_attn_*|streams_mid", false, embed_next},
    {"embed-last", "hc_attn_*|streams_mid", false, embed_last},
    {"embed-head", "hc_attn_*|streams_mid", false, embed_head},
    {"window-one-more", "attn_heads", false, window_one_more},
    {"window-one-less", "attn_heads", false, window_one_less},
    {"window-unlimited", "attn_heads", false, window_unlimited},
    {"window-not-causal", "attn_heads", false, window_to_end},
    {"window-next", "attn_heads", false, window_next},
    {"window-not-itself", "attn_heads", false, window_not_itself},
    {"window-from-block", "attn_heads", false, window_from_block},
    {"rows-of-block-end", "attn_heads", false, rows_of_end},
    {"rows-none-all", "attn_heads", false, rows_none_all},
    {"rows-late", "attn_heads", false, rows_late},
    {"rows-skip", "attn_heads", false, rows_skip},
    {"rows-limited", "attn_heads", false, rows_limited},
    {"rows-limited", "attn_heads", false, rows_limited_1},
    {"topk-ignored", "attn_heads", false, topk_ignored},
    {"topk-flattened", "attn_heads", false, topk_flattened},
    {"topk-flattened", "attn_heads", false, topk_of_block},
    {"ring-overwritten", "attn_heads", false, ring_overwritten},
    {"sink-ignored", "attn_heads", false, sink_ignored},
    {"sink-twice", "attn_heads", false, sink_twice},
    {"sink-first", "attn_heads", false, sink_first},
    {"scale-unrotated", "attn_heads", false, scale_unrotated},
    {"out-not-turned", "o_lora", false, out_not_turned},
    {"out-forward", "o_lora", false, out_forward},
    {"groups-reversed", "o_lora", false, groups_reversed},
    {"groups-interleaved", "o_lora", false, groups_interleaved},
    {"groups-tokens", "o_lora", false, groups_tokens},
    {"pool-alone", "compressed_kv|indexer_kv", false, pool_alone},
    {"pool-zeros", "compressed_kv|indexer_kv", false, pool_zeros},
    {"pool-mean", "compressed_kv|indexer_kv", false, pool_mean},
    {"pool-lanes", "compressed_kv|indexer_kv", false, pool_lanes},
    {"pool-block-tail", "compressed_kv|indexer_kv", false, pool_block_tail},
    {"pool-block-last", "compressed_kv|indexer_kv", false, pool_block_last},
    {"pool-last-lost", "compressed_kv|indexer_kv", false, pool_last_lost},
    {"no-ape", "compressed_kv", false, no_ape},
    {"last-ape", "compressed_kv", false, last_ape},
    {"kv-gate-exchanged", "compressed_kv", false, kv_gate_exchanged},
    {"no-row-norm", "compressed_kv", false, row_norm_skipped},
    {"score-no-relu", "indexer_scores", false, score_no_relu},
    {"score-relu-outside", "indexer_scores", false, score_relu_outside},
    {"score-unweighted", "indexer_scores", false, score_unweighted},
    {"score-axis", "indexer_scores", false, score_axis},
    {"score-unscaled", "indexer_scores", false, indexer_unscaled},
    {"pick-smallest", "indexer_topk", false, pick_smallest},
    {"pick-newest", "indexer_topk", false, pick_newest},
    {"pick-first-count", "indexer_topk", false, pick_first_count},
    {"pick-suffix", "indexer_topk", false, pick_suffix},
    {"pick-fewer", "indexer_topk", false, one_fewer},
    {"pick-fewer", "indexer_topk", false, two_fewer},
    {"pick-fewer", "indexer_topk", false, pick_half},
    {"pick-first-tile", "indexer_topk", false, pick_first_tile},
    {"route-sigmoid", "router_*", false, route_sigmoid},
    {"route-softmax", "router_*", false, route_softmax},
    {"route-softplus", "router_*", false, route_softplus},
    {"route-naive", "router_*", false, route_naive},
    {"route-no-bias", "router_*", false, route_no_bias},
    {"route-bias-weighs", "router_*", false, route_bias_weighs},
    {"route-not-normalised", "router_*", false, route_not_normalised},
    {"route-first-group", "router_*", false, route_first_group},
    {"route-padded", "router_*", false, route_padded},
    {"route-equal", "router_*", false, route_equal},
    {"route-turned", "router_*", false, route_turned},
    {"hash-scores", "router_*", false, hash_scores},
    {"hash-position", "router_*", false, hash_position},
    {"hash-neighbour", "router_*", false, hash_neighbour},
    {"hash-half", "router_*", false, hash_half},
    {"next-table", "router_*", false, next_table},
    {"unclamped", "routed_out|shared_out", false, experts_unclamped},
    {"clamp-after", "routed_out|shared_out", false, clamp_after},
    {"clamp-up-above", "routed_out|shared_out", false, clamp_up_above},
    {"gate-up-exchanged", "routed_out|shared_out", false, experts_exchanged},
    {"relu", "routed_out|shared_out", false, act_relu},
    {"gelu", "routed_out|shared_out", false, act_gelu},
    {"experts-shifted", "routed_out", false, experts_shifted},
    {"down-shifted", "routed_out", false, down_shifted},
    {"experts-unweighted", "routed_out", false, expert_unweighted},
    {"experts-weighted-twice", "routed_out", false, expert_weighted_twice},
    {"expert-slot-lost", "routed_out", false, expert_slot_lost},
    {"experts-misaligned", "routed_out", false, expert_sorted},
    {"fp8-not", "kv|compressed_kv", false, fp8_not},
    {"fp8-float-scale", "kv|compressed_kv", false, fp8_float_scale},
    {"fp8-scale-down", "kv|compressed_kv", false, fp8_down},
    {"fp8-truncated", "kv|compressed_kv", false, fp8_truncated},
    {"fp4-not", "indexer_q|indexer_kv", false, fp4_not},
    {"fp4-block-128", "indexer_q|indexer_kv", false, fp4_block_128},
    {"fp4-float-scale", "indexer_q|indexer_kv", false, fp4_float_scale},
    {"fp4-first-head", "indexer_q|indexer_kv", false, fp4_first_head},
    {"no-hadamard", "indexer_q|indexer_kv", false, no_hadamard},
    {"hadamard-one-side", "indexer_q|indexer_kv", false, hadamard_query},
    {"hadamard-one-side", "indexer_q|indexer_kv", false, hadamard_rows},
    {"layer-before", "hc_*|*norm|q_lora|kv", false, borrow_last},
    {"layer-after", "hc_*|*norm|q_lora|kv", false, borrow_next},
    {"layer-before", "q_lora", false, last_q_lora},
    {"layer-before", "attn_out", false, last_wo_b},
    {"layer-after", "router_logits", false, next_gate},
    {"layer-after", "indexer_q", false, next_indexer_q},
    {"layer-after", "indexer_scores", false, next_weights_proj},
    {"layer-after", "indexer_kv", false, next_indexer_kv},
    {"scale-as-number", FP8_TAPS, false, fp8_scale_number},
    {"first-scale", FP8_TAPS, false, fp8_first_scale},
    {"fp8-dialect", FP8_TAPS, false, fp8_other_dialect},
    {"fp8-e5m2", FP8_TAPS, false, fp8_as_e5m2},
    {"fp4-scale-number", "routed_out", false, fp4_scale_number},
    {"fp4-scale-number", "routed_out", false, fp4_scale_plain},
    {"fp4-groups", "routed_out", false, fp4_half_groups},
    {"fp4-first-scales", "routed_out", false, fp4_first_scales},
    {"fp4-nibbles", "routed_out", false, fp4_nibbles},
    {"fp4-integer", "routed_out", false, fp4_as_integer},
    {"head-first", "head_collapsed", false, head_first},
    {"head-mean", "head_collapsed", false, head_mean},
    {"head-tied", "logits", false, head_tied},
    {"no-final-norm", "final_norm", false, final_norm_skipped},
    {"decode-rows-hidden", "attn_heads|streams|logits", true, decode_rows_hidden},
    {"decode-not-itself", "attn_heads|streams|logits", true, decode_not_itself},
    {"decode-window-short", "attn_heads|streams|logits", true, decode_window_short},
    {"decode-no-sink", "attn_heads|streams|logits", true, decode_no_sink},
    {"decode-rows-of-prompt", "attn_heads|streams|logits", true, decode_rows_of_prompt},
    {"decode-one-row", "attn_heads|streams|logits", true, decode_one_row},
    {"decode-window-frozen", "attn_heads|streams|logits", true, decode_window_frozen},
    {"decode-overlap-lost", "compressed_kv|indexer_kv|streams|logits", true, decode_pool_alone},
    {"decode-prompt-tail", "compressed_kv|indexer_kv|streams|logits", true, decode_prompt_tail},
    {"decode-bias-phase", "compressed_kv|indexer_kv|streams|logits", true, decode_bias_phase},
    {"decode-unclamped", "routed_out|streams|logits", true, decode_unclamped},
    {"decode-pick-fewer", "indexer_topk|streams|logits", true, decode_one_fewer},
    {"decode-pick-fewer", "indexer_topk|streams|logits", true, decode_two_fewer},
    {"decode-pick-fewer", "indexer_topk|streams|logits", true, decode_half},
    {"mtp-not-shifted", "mtp/logits", false, mtp_not_shifted},
    {"mtp-doubled", "mtp/logits", false, mtp_doubled},
    {"mtp-main-norm", "mtp/logits", false, mtp_main_norm},
    {"mtp-main-head", "mtp/logits", false, mtp_main_head},
    {"mtp-narrowed", "mtp/logits", false, mtp_narrowed},
    {"mtp-no-hnorm", "mtp/logits", false, mtp_no_hnorm},
    {"mtp-norms-exchanged", "mtp/logits", false, mtp_norms_exchanged},
    {"mtp-projections-exchanged", "mtp/logits", false, mtp_projections_exchanged},
    {"mtp-main-weights", "mtp/logits", false, mtp_main_layer},
    {"mtp-main-weights", "mtp/logits", false, mtp_main_attention},
    {"mtp-main-weights", "mtp/logits", false, mtp_main_wq_a},
    {"mtp-main-weights", "mtp/logits", false, mtp_main_wq_b},
    {"mtp-main-weights", "mtp/logits", false, mtp_main_wkv},
    {"mtp-main-weights", "mtp/logits", false, mtp_main_wo_a},
    {"mtp-main-weights", "mtp/logits", false, mtp_main_wo_b},
    {"mtp-main-weights", "mtp/logits", false, mtp_main_experts},
    {"mtp-main-weights", "mtp/logits", false, mtp_main_shared},
    {"mtp-main-weights", "mtp/logits", false, mtp_main_gates},
    {NULL, NULL, false, NULL},
};
