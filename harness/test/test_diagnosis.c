/* test_diagnosis.c - what a diagnosis rests on: local errors in shadow mode, ties made on purpose,
 * a near-tie that a healthy engine flips, floors below budgets, causes of planted mistakes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "harness/causes_state.h"
#include "harness/hypotheses.h"
#include "harness/noise.h"
#include "harness/runner.h"
#include "optimized/optimized.h"
#include "reference/session.h"

static dsv4_error err;
static budget_table budgets;

#define OK(call) assert_int_equal((call), DSV4_OK)

typedef struct {
    vec_file *file;
    dsv4_model *model;
    dsv4_config config;
    dsv4_numerics numerics;
} setup;

static setup open_setup(const char *model, const char *file)
{
    setup s = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/%s", DSV4_VECTORS, model);
    OK(dsv4_model_open(path, &s.model, &err));
    snprintf(path, sizeof path, "%s/%s.h5", DSV4_VECTORS, file);
    OK(vec_open(path, &s.file, &err));
    OK(file_config(s.file, &s.config, &err));
    OK(file_numerics(s.file, &s.numerics, &err));
    return s;
}

static void close_setup(setup *s)
{
    vec_close(s->file);
    dsv4_config_free(&s->config);
    dsv4_model_close(s->model);
}

static void run(const setup *s, const dsv4_model *model, const dsv4_ops *ops, const char *cases,
                run_mode mode, results *r)
{
    engine *e = NULL;
    OK(engine_from_ops("test", model, ops, s->numerics, &e, &err));
    run_options o = {.e = e,
                     .model = model,
                     .numerics = s->numerics,
                     .weights = WEIGHTS_EXACT,
                     .budgets = &budgets,
                     .case_glob = cases,
                     .threads = 1,
                     .share = s->numerics == DSV4_MATH,
                     .replay = true};
    results_init(r);
    OK(run_cases_mode(s->file, &s->config, &o, mode, r, &err));
    results_finish(r);
    engine_close(e);
}

static int64_t ties(const results *r, dsv4_tap_id tap, int layer)
{
    int64_t n = 0;
    for (size_t i = 0; i < r->count; i++)
        if (r->items[i].tap == tap && r->items[i].layer == layer)
            n += r->items[i].ties;
    return n;
}

/* ---- exact ties -------------------------------------------------------------------------------
 */

static void topk_other_order(const float *scores, int64_t n, int k, int32_t *out)
{
    float *turned = calloc((size_t)n + 1, sizeof *turned);
    assert_non_null(turned);
    for (int64_t i = 0; i < n; i++)
        turned[i] = scores[n - 1 - i];
    dsv4_ops_reference()->topk(turned, n, k, out);
    for (int i = 0; i < k; i++)
        out[i] = out[i] < 0 ? -1 : (int32_t)(n - 1 - out[i]);
    free(turned);
}

static void router_other_order(const float *logits, const float *bias, const dsv4_tensor *table,
                               const int32_t *ids, int64_t n, int E, int k, float scaling,
                               int32_t *experts, float *weights)
{
    float *turned = calloc((size_t)(n * E), sizeof *turned), *b = calloc((size_t)E, sizeof *b);
    assert_true(turned != NULL && b != NULL);
    for (int64_t i = 0; i < n * E; i++)
        turned[i] = logits[i / E * E + E - 1 - i % E];
    for (int e = 0; e < E && bias != NULL; e++)
        b[e] = bias[E - 1 - e];
    dsv4_ops_reference()->router(table != NULL ? logits : turned, bias != NULL ? b : NULL, table,
                                 ids, n, E, k, scaling, experts, weights);
    for (int64_t i = 0; i < n * k && table == NULL; i++)
        experts[i] = E - 1 - experts[i];
    free(turned);
    free(b);
}

static void exact_ties_pass(void **state)
{
    (void)state;
    static const char *const files[] = {"extreme-math", "extreme-qat"};
    for (int i = 0; i < 2; i++) {
        setup s = open_setup("extreme", files[i]);
        dsv4_ops ops = *dsv4_ops_reference();
        results r;
        run(&s, s.model, &ops, NULL, MODE_FREE, &r);
        assert_int_equal(results_count(&r, VERDICT_FAIL), 0);
        assert_int_equal(ties(&r, DSV4_TAP_INDEXER_TOPK, 0), 0);
        results_free(&r);

        ops.topk = topk_other_order;
        ops.router = router_other_order;
        run(&s, s.model, &ops, NULL, MODE_FREE, &r);
        for (size_t k = 0; k < r.count; k++)
            if (r.items[k].verdict == VERDICT_FAIL)
                print_error(
                    "%s: %s layer %d %s: %g, after %g (%lld rows), ties %lld, %s\n", files[i],
                    r.items[k].case_name, r.items[k].layer, dsv4_tap_name(r.items[k].tap),
                    r.items[k].rel_l2, r.items[k].rel_l2_after, (long long)r.items[k].rows_after,
                    (long long)r.items[k].ties, r.items[k].note != NULL ? r.items[k].note : "");
        assert_int_equal(results_count(&r, VERDICT_FAIL), 0);
        assert_true(ties(&r, DSV4_TAP_INDEXER_TOPK, 0) > 0);
        assert_true(ties(&r, DSV4_TAP_ROUTER_EXPERTS, 1) > 0);
        /* Counted per layer and context length. */
        tie_count *list = NULL;
        size_t n = 0;
        int64_t at_28 = 0, all = 0;
        assert_true(results_ties(&r, &list, &n));
        for (size_t k = 0; k < n; k++) {
            bool topk = list[k].tap == DSV4_TAP_INDEXER_TOPK && list[k].layer == 0;
            at_28 += topk && list[k].context == 28 ? list[k].ties : 0;
            all += topk ? list[k].ties : 0;
        }
        assert_int_equal(all, ties(&r, DSV4_TAP_INDEXER_TOPK, 0));
        assert_true(at_28 > 0 && (at_28 < all || i == 1)); /* qat: in one context only */
        free(list);
        results_free(&r);
        close_setup(&s);
    }
}

/* ---- shadow -----------------------------------------------------------------------------------
 */

static void post_transposed(const float *block, const float *streams, const float *post,
                            const float *comb, int64_t n, int hc, int64_t dim, float *out)
{
    float turned[16 * 16];
    for (int64_t i = 0; i < n; i++) {
        for (int a = 0; a < hc; a++)
            for (int b = 0; b < hc; b++)
                turned[a * hc + b] = comb[(i * hc + b) * hc + a];
        dsv4_ops_reference()->hc_post(block + i * dim, streams + i * hc * dim, post + i * hc,
                                      turned, 1, hc, dim, out + i * hc * dim);
    }
}

/* One mistake: free, everything after it fails; with golden's input, only what makes it. */
static void shadow_is_local(void **state)
{
    (void)state;
    setup s = open_setup("extreme", "extreme-math");
    dsv4_ops ops = *dsv4_ops_reference();
    results r;
    size_t elsewhere = 0, streams = 0, lasting = 0;
    ops.hc_post = post_transposed;
    run(&s, s.model, &ops, "ctx00018", MODE_BOTH, &r);
    for (size_t i = 0; i < r.count; i++) {
        const result *x = &r.items[i];
        bool mixed = x->tap == DSV4_TAP_STREAMS || x->tap == DSV4_TAP_STREAMS_MID;
        if (dsv4_tap_is_int(x->tap))
            continue;
        assert_false(isnan(x->rel_l2_free) || isnan(x->rel_l2_shadow));
        elsewhere += !mixed && x->verdict_shadow == VERDICT_FAIL;
        streams += mixed && x->verdict_shadow == VERDICT_FAIL;
        lasting += !mixed && x->verdict == VERDICT_FAIL;
        if (!mixed)
            assert_true(x->rel_l2_shadow < 5e-6);
    }
    assert_int_equal(elsewhere, 0);
    assert_true(streams >= 4 && lasting > 40);
    /* The first cause is the right one, with a reference and a measurement. */
    assert_true(r.n_causes > 0);
    assert_string_equal(r.causes[0].id, "HC01");
    assert_true(strstr(r.causes[0].reference, "#2154") != NULL && r.causes[0].evidence[0] != '\0');
    results_free(&r);

    /* A healthy engine is as near with golden's input as without. */
    run(&s, s.model, dsv4_ops_reference(), NULL, MODE_SHADOW, &r);
    assert_int_equal(results_count(&r, VERDICT_FAIL), 0);
    for (size_t i = 0; i < r.count; i++)
        assert_true(isnan(r.items[i].rel_l2_free));
    results_free(&r);
    close_setup(&s);
}

/* ---- one near-tie among 4096 tokens -------------------------------------------------------------
 */

typedef struct {
    int64_t position;
    int k;
    double gap; /* smallest, in units of the largest score */
    float at_cut;
} near_tie;

static near_tie flip;
static const dsv4_ops *right_ops;

static void sorted_cut(const float *scores, int64_t n, int k, int32_t *best)
{
    right_ops->topk(scores, n, k + 1, best);
}

static void find_near_tie(void *ctx, dsv4_tap_id id, int layer, int64_t position, void *data,
                          size_t n)
{
    near_tie *t = ctx;
    int32_t best[64];
    const float *scores = data;
    if (id != DSV4_TAP_INDEXER_SCORES || layer != 1 || (int64_t)n <= t->k)
        return;
    sorted_cut(scores, (int64_t)n, t->k, best);
    double gap = (double)(scores[best[t->k - 1]] - scores[best[t->k]]);
    gap /= fabs((double)scores[best[0]]);
    if (gap > 0 && gap < t->gap)
        *t = (near_tie){position, t->k, gap, scores[best[t->k - 1]]};
}

static bool want_scores(void *ctx, dsv4_tap_id id, int layer, int64_t position)
{
    (void)ctx, (void)position;
    return id == DSV4_TAP_INDEXER_SCORES && layer == 1;
}

/* Takes the first row beyond the cut for the last one within, where `flip` says. */
static void topk_flipped(const float *scores, int64_t n, int k, int32_t *out)
{
    int32_t best[64];
    right_ops->topk(scores, n, k, out);
    if (n != (flip.position + 1) / 4 || n <= k)
        return;
    sorted_cut(scores, n, k, best);
    if (scores[best[k - 1]] == flip.at_cut)
        out[k - 1] = best[k];
}

static void near_tie_at_4096(void **state)
{
    (void)state;
    if (getenv("DSV4_FAST_TESTS") != NULL)
        skip(); /* minutes under the sanitizers, and no line of code that the others do not run */
    setup s = open_setup("nano", "nano-hf-f32");
    dsv4_cpu_level level = dsv4_cpu_best();
    dsv4_ops ops = *dsv4_ops_cpu(level);
    dsv4_model two = *s.model; /* layer 1 is the first with an indexer: no more is needed */
    char path[64];
    engine *e = NULL;
    vec_writer *w = NULL;
    results r;
    right_ops = dsv4_ops_cpu(level);
    two.config.num_hidden_layers = s.config.num_hidden_layers = 2;
    two.mtp = NULL;
    vec_case c = *vec_case_find(s.file, "ctx04096");
    const vec_case *list[] = {&c};
    near_tie found = {.k = s.config.index_topk, .gap = INFINITY};
    const dsv4_taps ears = {.ctx = &found, .want = want_scores, .tap = find_near_tie};
    const dsv4_taps *taps[] = {&ears};
    assert_true(found.k < 64);
    OK(engine_from_ops("right", &two, right_ops, DSV4_MATH, &e, &err));
    OK(engine_run(e, list, taps, 1, false, 0, &err));
    assert_true(found.gap < 1e-5);

    /* Golden rows at that position and at the end. */
    int64_t positions[] = {found.position, 4095};
    c.n_positions = found.position == 4095 ? 1 : 2;
    c.positions = positions;
    snprintf(path, sizeof path, "/tmp/dsv4-near-tie-%ld.h5", (long)getpid());
    vec_writer_info info = {.model = "nano",
                            .weights_sha256 = "",
                            .config = vec_attribute(s.file, "config"),
                            .producer = "test",
                            .numerics = "math"};
    OK(vec_writer_new(path, &info, &w, &err));
    OK(record_case(e, &two, &c, "indexer_*|attn_out|router_*|streams", 0, w, &err));
    OK(vec_writer_commit(w, &err));
    engine_close(e);
    vec_close(s.file);
    OK(vec_open(path, &s.file, &err));
    unlink(path);

    flip = found;
    ops.topk = topk_flipped;
    run(&s, &two, &ops, NULL, MODE_FREE, &r);
    assert_int_equal(results_count(&r, VERDICT_FAIL), 0);
    assert_int_equal(ties(&r, DSV4_TAP_INDEXER_TOPK, 1), 1);
    printf("near-tie at position %lld of 4096, layer 1, gap %.2g: flipped, passes with 1 tie\n",
           (long long)found.position, found.gap);
    results_free(&r);

    /* The same swap where the scores are far apart is a wrong top-k. */
    flip = (near_tie){.position = 4095, .k = found.k};
    vec_tap *t = NULL;
    OK(vec_tap_open(s.file, vec_case_at(s.file, 0), DSV4_TAP_INDEXER_SCORES, 1, &t, &err));
    float *scores = calloc((size_t)t->row_len, sizeof *scores);
    int32_t best[64];
    assert_non_null(scores);
    OK(vec_tap_read(t, t->n_rows - 1, 1, scores, &err));
    sorted_cut(scores, 1024, flip.k, best);
    flip.at_cut = scores[best[flip.k - 1]];
    run(&s, &two, &ops, NULL, MODE_FREE, &r);
    assert_int_equal(results_count(&r, VERDICT_FAIL) > 0, 1);
    assert_int_equal(r.first_divergence->tap, DSV4_TAP_INDEXER_TOPK);
    assert_int_equal(r.first_divergence->layer, 1);
    results_free(&r);
    free(scores);
    vec_tap_close(t);
    close_setup(&s);
}

/* ---- floors and budgets
 * --------------------------------------------------------------------------- */

static void budgets_stand_on_floors(void **state)
{
    (void)state;
    static const char *const files[] = {
        "nano-hf-f32",   "nano-official-qat-f32",   "nano-official-deployed-bf16",
        "stress-hf-f32", "stress-official-qat-f32", "extreme-math",
        "extreme-qat"};
    size_t seen = 0;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        noise_table t;
        char path[512];
        snprintf(path, sizeof path, "%s/%s.h5", DSV4_VECTORS, files[i]);
        OK(noise_load(path, &t, &err));
        assert_true(t.n > 0);
        for (size_t k = 0; k < t.n; k++) {
            const noise_line *l = &t.lines[k];
            const budget *b = budgets_find_in(&budgets, dsv4_tap_name(l->tap), l->numerics, "exact",
                                              ROWS_CLEAN, l->context);
            assert_non_null(b);
            if (!(l->floor <= b->pass))
                print_error("%s: %s %s %s: floor %g above the budget %g\n", files[i],
                            dsv4_tap_name(l->tap), l->context, l->source, l->floor, b->pass);
            assert_true(l->floor <= b->pass);
            assert_true(strlen(b->reason) > 20);
            seen++;
        }
        noise_free(&t);
    }
    assert_true(seen > 500);
}

/* ---- a recorded run and a model ----------------------------------------------------------------
 */

enum { FAULTY = 2 };

/* A dump of streams and logits, of every position, of an engine whose layer 2 has the sinks of
 * layer 1; open, and gone from the disk. */
static engine *faulty_dump(const setup *s, const char *cases, dsv4_layer *layers)
{
    dsv4_model wrong = *s->model;
    char path[64], name[80];
    engine *e = NULL;
    vec_writer *w = NULL;
    for (int l = 0; l < s->config.num_hidden_layers; l++)
        layers[l] = s->model->layers[l];
    layers[FAULTY].attn_sink = layers[FAULTY - 1].attn_sink;
    wrong.layers = layers;
    snprintf(path, sizeof path, "/tmp/dsv4-faulty-%ld.h5", (long)getpid());
    snprintf(name, sizeof name, "dump:%s", path);
    vec_writer_info info = {.model = "stress",
                            .weights_sha256 = vec_attribute(s->file, "weights_sha256"),
                            .config = vec_attribute(s->file, "config"),
                            .producer = "test",
                            .numerics = dsv4_numerics_name(s->numerics)};
    record_options ro = {.case_glob = cases, .tap_glob = "streams|logits", .every_position = true};
    OK(engine_from_ops("wrong", &wrong, dsv4_ops_reference(), s->numerics, &e, &err));
    OK(vec_writer_new(path, &info, &w, &err));
    OK(record_cases(e, &wrong, s->file, &ro, w, &err));
    OK(vec_writer_commit(w, &err));
    engine_close(e);
    OK(engine_open(name, NULL, &(engine_options){.numerics = s->numerics}, &e, &err));
    unlink(path);
    return e;
}

/* Both in math and where roundings flip: the layer is named, and the one behind it is right. */
static void dump_and_model_name_the_layer(void **state)
{
    (void)state;
    static const char *const files[] = {"stress-hf-f32", "stress-official-qat-f32"};
    for (int i = 0; i < 2; i++) {
        setup s = open_setup("stress", files[i]);
        dsv4_layer layers[16];
        engine *e = faulty_dump(&s, "ctx000[02][15]", layers);
        run_options o = {.e = e,
                         .model = s.model,
                         .numerics = s.numerics,
                         .budgets = &budgets,
                         .case_glob = "ctx000[02][15]",
                         .no_causes = true,
                         .threads = 1};
        results r;
        size_t right = 0, wrong = 0;
        results_init(&r);
        OK(run_cases_mode(s.file, &s.config, &o, MODE_FREE, &r, &err));
        results_finish(&r);
        assert_non_null(r.first_divergence);
        assert_int_equal(r.first_divergence->layer, FAULTY);
        assert_int_equal(r.first_divergence->tap, DSV4_TAP_STREAMS);
        for (size_t k = 0; k < r.count; k++) {
            const result *x = &r.items[k];
            if (x->tap != DSV4_TAP_STREAMS)
                continue;
            assert_true(isfinite(x->rel_l2_shadow));
            if (x->layer == FAULTY)
                wrong += x->verdict_shadow == VERDICT_FAIL;
            else
                right += x->verdict_shadow == VERDICT_PASS;
        }
        assert_true(wrong > 0 && right >= 3 * wrong); /* layers 0, 1 and 3 */
        assert_true(r.n_notes > 0);
        results_free(&r);
        engine_close(e);
        close_setup(&s);
    }
}

/* With another model than the dump's there is nothing to hold it against. */
static void dump_of_other_weights_is_left_alone(void **state)
{
    (void)state;
    setup s = open_setup("stress", "stress-hf-f32");
    dsv4_layer layers[16];
    engine *e = faulty_dump(&s, "ctx00005", layers);
    run_options o = {.e = e,
                     .model = s.model,
                     .numerics = s.numerics,
                     .weights = WEIGHTS_OTHER,
                     .weights_format = "F32",
                     .budgets = &budgets,
                     .case_glob = "ctx00005",
                     .threads = 1};
    results r;
    results_init(&r);
    OK(run_cases_mode(s.file, &s.config, &o, MODE_FREE, &r, &err));
    for (size_t k = 0; k < r.count; k++)
        assert_true(isnan(r.items[k].rel_l2_shadow));
    results_free(&r);
    engine_close(e);
    close_setup(&s);
}

/* Every cause names a reference and facts that somebody can find; every hypothesis is used. */
static void causes_table(void **state)
{
    (void)state;
    cause_table t;
    OK(causes_load(&t, &err));
    assert_true(t.count > 100);
    for (const hypothesis *h = hypotheses; h->name != NULL; h++) {
        char term[64];
        bool used = false;
        snprintf(term, sizeof term, "like:%s", h->name);
        for (size_t i = 0; i < t.count && !used; i++)
            used = strstr(t.lines[i].when, term) != NULL;
        if (!used)
            print_error("no line of causes.tsv asks for %s\n", term);
        assert_true(used);
    }
    for (size_t i = 0; i < t.count; i++) {
        const char *at = strstr(t.lines[i].when, "like:");
        bool swept = false;
        for (const sweep *w = sweeps; at != NULL && w->h.name != NULL; w++)
            swept = swept || (strncmp(at + 5, w->h.name, strcspn(at + 5, " ")) == 0 &&
                              strlen(w->h.name) == strcspn(at + 5, " "));
        bool known = swept || at == NULL || at[5] == '*' ||
                     strncmp(at + 5, "post-single", 11) == 0 ||
                     strncmp(at + 5, "state-", 6) == 0; /* causes_state.c */
        for (const hypothesis *h = hypotheses; h->name != NULL && !known; h++)
            known = strncmp(at + 5, h->name, strcspn(at + 5, " ")) == 0 &&
                    strlen(h->name) == strcspn(at + 5, " ");
        if (!known)
            print_error("line %s: nobody finds '%s'\n", t.lines[i].id, t.lines[i].when);
        assert_true(known);
        assert_true(strlen(t.lines[i].sentence) > 10);
    }
    causes_free(&t);
}

/* Every `step`th allocation fails in turn: the run ends as a failure of the machine or, where
 * nothing needed it, well; and never otherwise. */
static void run_without_memory(const setup *s, const run_options *o, run_mode mode, long step)
{
    int failed = 0;
    for (long at = 1; at < 4000; at += step) {
        results r;
        results_init(&r);
        dsv4_alloc_fail_at(at);
        dsv4_status status = run_cases_mode(s->file, &s->config, o, mode, &r, &err);
        dsv4_alloc_fail_at(0);
        failed += status == DSV4_E_MACHINE;
        assert_true(status == DSV4_OK || status == DSV4_E_MACHINE);
        results_free(&r);
    }
    assert_true(failed > 5);
}

static void no_memory(void **state)
{
    (void)state;
    setup s = open_setup("extreme", "extreme-math");
    dsv4_ops ops = *dsv4_ops_reference();
    ops.hc_post = post_transposed;
    engine *e = NULL;
    OK(engine_from_ops("test", s.model, &ops, s.numerics, &e, &err));
    run_options o = {.e = e,
                     .model = s.model,
                     .numerics = s.numerics,
                     .budgets = &budgets,
                     .case_glob = "ctx00013",
                     .threads = 1,
                     .replay = true};
    run_without_memory(&s, &o, MODE_BOTH, 97);
    engine_close(e);
    close_setup(&s);
}

static void no_memory_for_a_dump(void **state)
{
    (void)state;
    setup s = open_setup("stress", "stress-hf-f32");
    dsv4_layer layers[16];
    engine *e = faulty_dump(&s, "ctx00005", layers);
    run_options o = {.e = e,
                     .model = s.model,
                     .numerics = s.numerics,
                     .budgets = &budgets,
                     .case_glob = "ctx00005",
                     .no_causes = true,
                     .threads = 1};
    run_without_memory(&s, &o, MODE_FREE, 131);
    engine_close(e);
    close_setup(&s);
}

/* A restore after which the last saved token is processed again. */
static void state_causes_are_named(void **state)
{
    (void)state;
    setup s = open_setup("stress", "stress-hf-f32");
    const vec_case *c = vec_case_find(s.file, "ctx00131");
    enum { N = 40 };
    int64_t at = N - 1, v = s.config.vocab_size;
    float *right = calloc((size_t)v, sizeof *right), *wrong = calloc((size_t)v, sizeof *wrong);
    assert_true(right != NULL && wrong != NULL);
    for (int i = 0; i < 2; i++) {
        dsv4_session *x = NULL;
        const dsv4_session_options so = {.numerics = s.numerics, .max_positions = 64};
        OK(dsv4_session_new(s.model, dsv4_ops_reference(), &so, &x, &err));
        if (i == 0) { /* one token twice: the mistake that is looked for */
            OK(dsv4_session_append(x, c->tokens, 20, NULL, &err));
            x->position--;
            OK(dsv4_session_append(x, c->tokens + 19, N - 19, wrong, &err));
        } else {
            OK(dsv4_session_append(x, c->tokens, N, right, &err));
        }
        dsv4_session_free(x);
    }
    state_schedule w = {.model = s.model,
                        .numerics = s.numerics,
                        .tokens = c->tokens,
                        .n = N,
                        .other = c->tokens + 50,
                        .n_other = 5,
                        .cut = 20};
    state_rows rows = {.tap = DSV4_TAP_LOGITS,
                       .layer = -1,
                       .n_rows = 1,
                       .width = v,
                       .positions = &at,
                       .expected = right,
                       .actual = wrong};
    results r;
    results_init(&r);
    OK(causes_find_state(&w, &rows, &r, &err));
    assert_true(r.n_causes > 0);
    assert_string_equal(r.causes[0].id, "KV05");
    results_free(&r);
    int failed = 0;
    for (long k = 1; k < 200; k *= 4) {
        results_init(&r);
        dsv4_alloc_fail_at(k);
        dsv4_status status = causes_find_state(&w, &rows, &r, &err);
        dsv4_alloc_fail_at(0);
        failed += status == DSV4_E_MACHINE;
        assert_true(status == DSV4_OK || status == DSV4_E_MACHINE);
        results_free(&r);
    }
    assert_true(failed > 1);
    free(right);
    free(wrong);
    close_setup(&s);
}

static int load_budgets(void **state)
{
    (void)state;
    return budgets_load(NULL, &budgets, &err);
}

static int free_budgets(void **state)
{
    (void)state;
    budgets_free(&budgets);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exact_ties_pass),
        cmocka_unit_test(shadow_is_local),
        cmocka_unit_test(near_tie_at_4096),
        cmocka_unit_test(causes_table),
        cmocka_unit_test(budgets_stand_on_floors),
        cmocka_unit_test(no_memory),
        cmocka_unit_test(dump_and_model_name_the_layer),
        cmocka_unit_test(dump_of_other_weights_is_left_alone),
        cmocka_unit_test(no_memory_for_a_dump),
        cmocka_unit_test(state_causes_are_named),
    };
    return cmocka_run_group_tests(tests, load_budgets, free_budgets);
}
