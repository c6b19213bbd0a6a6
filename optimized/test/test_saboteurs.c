/* test_saboteurs.c - the checker is checked: operators that are wrong in one way each, as kernels
 * go wrong, must all be caught; the scalar operators themselves must not be. The score is printed.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "harness/kernels.h"
#include "reference/formats/formats.h"
#include "reference/scalar.h"
#include "reports/reports.h"
#include "saboteurs.h"

/* ---- router, SwiGLU, experts ---------------------------------------------------------------- */

static void router_ties_up(const float *logits, const float *bias, const dsv4_tensor *table,
                           const int32_t *ids, int64_t n, int E, int k, float scaling,
                           int32_t *experts, float *weights)
{
    float *reversed = malloc((size_t)(2 * E) * sizeof *reversed);
    for (int64_t i = 0; i < n; i++) {
        for (int e = 0; e < E; e++) {
            reversed[e] = logits[i * E + E - 1 - e];
            reversed[E + e] = bias != NULL ? bias[E - 1 - e] : 0;
        }
        if (table != NULL)
            ref_router(logits + i * E, bias, table, ids + i, 1, E, k, scaling, experts + i * k,
                       weights + i * k);
        else
            ref_router(reversed, bias != NULL ? reversed + E : NULL, NULL, ids + i, 1, E, k,
                       scaling, experts + i * k, weights + i * k);
        for (int s = 0; s < k && table == NULL; s++)
            experts[i * k + s] = E - 1 - experts[i * k + s];
    }
    free(reversed);
}

static void router_by_position(const float *logits, const float *bias, const dsv4_tensor *table,
                               const int32_t *ids, int64_t n, int E, int k, float scaling,
                               int32_t *experts, float *weights)
{
    int32_t *positions = malloc((size_t)n * sizeof *positions);
    (void)ids;
    for (int64_t i = 0; i < n; i++)
        positions[i] = (int32_t)i;
    ref_router(logits, bias, table, positions, n, E, k, scaling, experts, weights);
    free(positions);
}

static void router_bias_weighs(const float *logits, const float *bias, const dsv4_tensor *table,
                               const int32_t *ids, int64_t n, int E, int k, float scaling,
                               int32_t *experts, float *weights)
{
    ref_router(logits, bias, table, ids, n, E, k, scaling, experts, weights);
    for (int64_t i = 0; i < n * k && bias != NULL; i++)
        weights[i] += bias[experts[i]];
}

static void router_softplus_underflow(const float *logits, const float *bias,
                                      const dsv4_tensor *table, const int32_t *ids, int64_t n,
                                      int E, int k, float scaling, int32_t *experts, float *weights)
{
    ref_router(logits, bias, table, ids, n, E, k, scaling, experts, weights);
    for (int64_t i = 0; i < n; i++) {
        float sum = 0;
        for (int s = 0; s < k; s++) /* log(1 + e^x) overflows above 88 */
            sum += sqrtf(logf(1 + expf(logits[i * E + experts[i * k + s]])));
        for (int s = 0; s < k; s++)
            weights[i * k + s] =
                sqrtf(logf(1 + expf(logits[i * E + experts[i * k + s]]))) / sum * scaling;
    }
}

static void swiglu_clamps_gate_below(const float *gate, const float *up, float limit, int64_t n,
                                     float *h)
{
    for (int64_t i = 0; i < n; i++) {
        float g = limit > 0 && gate[i] < -limit ? -limit : gate[i];
        ref_swiglu(&g, up + i, limit, 1, h + i);
    }
}

static void swiglu_up_unclamped(const float *gate, const float *up, float limit, int64_t n,
                                float *h)
{
    for (int64_t i = 0; i < n; i++) {
        float u = up[i], one = 1.0f;
        ref_swiglu(gate + i, &one, limit, 1, h + i);
        h[i] *= u;
    }
}

static void swiglu_fast_exp(const float *gate, const float *up, float limit, int64_t n, float *h)
{
    ref_swiglu(gate, up, limit, n, h);
    for (int64_t i = 0; i < n; i++)
        h[i] *= 1.0f + 2e-6f;
}

static bool experts_last_skipped(const dsv4_experts_args *a, float *out)
{
    dsv4_layer layer = *a->layer;
    dsv4_experts_args b = *a;
    layer.gate.rows--;
    b.layer = &layer;
    return ref_experts(&b, out);
}

static bool experts_unweighted(const dsv4_experts_args *a, float *out)
{
    dsv4_experts_args b = *a;
    float *ones = malloc((size_t)(a->n * a->k) * sizeof *ones);
    for (int64_t i = 0; i < a->n * a->k; i++)
        ones[i] = 1;
    b.weights = ones;
    bool ok = ref_experts(&b, out);
    free(ones);
    return ok;
}

/* ---- bit for bit ---------------------------------------------------------------------------- */

static void add_last_dropped(float *x, const float *y, int64_t n)
{
    ref_add(x, y, n - 1);
}

static void bf16_truncates(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t b;
        memcpy(&b, x + i, sizeof b);
        b &= 0xffff0000u;
        memcpy(x + i, &b, sizeof b);
    }
}

static void bf16_ties_away(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t b;
        if (x[i] != x[i])
            continue;
        memcpy(&b, x + i, sizeof b);
        b = (b + 0x8000u) & 0xffff0000u;
        memcpy(x + i, &b, sizeof b);
    }
}

static void bf16_nan_to_infinity(float *x, int64_t n)
{
    ref_round_bf16(x, n);
    for (int64_t i = 0; i < n; i++)
        if (x[i] != x[i])
            x[i] = INFINITY;
}

static void bf16_flushes_subnormals(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = fabsf(x[i]) < 0x1p-126f ? copysignf(0, x[i]) : dsv4_bf16(x[i]);
}

static void bf16_loses_zero_sign(float *x, int64_t n)
{
    ref_round_bf16(x, n);
    for (int64_t i = 0; i < n; i++)
        x[i] += 0.0f;
}

static void fp8_short_block_ignored(float *x, int64_t n, int64_t ld, int64_t dim, int block)
{
    ref_round_fp8(x, n, ld, dim / block * block, block);
}

static void fp8_ties_up(float *x, int64_t n, int64_t ld, int64_t dim, int block)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < dim; c++)
            x[i * ld + c] *= 1 + 0x1p-20f;
    ref_round_fp8(x, n, ld, dim, block);
}

static void fp8_dense_only(float *x, int64_t n, int64_t ld, int64_t dim, int block)
{
    (void)ld;
    ref_round_fp8(x, n, dim, dim, block);
}

static void fp4_ties_away(float *x, int64_t n, int64_t dim, int block)
{
    for (int64_t at = 0; at < n * dim; at++)
        x[at] *= fabsf(x[at]) == 0.25f || fabsf(x[at]) == 1.25f ? 1 + 0x1p-20f : 1.0f;
    ref_round_fp4(x, n, dim, block);
}

static void fp4_one_scale(float *x, int64_t n, int64_t dim, int block)
{
    (void)block;
    ref_round_fp4(x, n, dim, (int)dim);
}

static void hadamard_unscaled(float *x, int64_t n, int dim)
{
    float root = (float)sqrt((double)dim);
    ref_hadamard(x, n, dim);
    for (int64_t i = 0; i < n * dim; i++)
        x[i] *= root;
}

/* ---- dot products ------ */

/* Rows of columns [0, n) of the format's own products. */
static void scalar_rows(dsv4_type type, const dsv4_dot_rows *w, int64_t n, const void *act,
                        float *y)
{
    const dsv4_format *f = dsv4_format_of(type);
    for (int64_t r = 0; r < w->n_rows; r++) {
        dsv4_row row = {.data = w->data + (size_t)r * w->row_bytes,
                        .scale = w->scale != NULL
                                     ? w->scale + (size_t)(r / w->scale_rows) * w->scale_row_bytes
                                     : NULL};
        y[r] = f->act_type == DSV4_F32 ? (float)f->dot(&row, n, act) : f->dot_act(&row, n, act);
    }
}

static void dot_honest(const dsv4_dot_rows *w, const void *act, float *y)
{
    scalar_rows(DSV4_Q2_K, w, w->n, act, y);
}

static void dot_odd_block_dropped(const dsv4_dot_rows *w, const void *act, float *y)
{
    scalar_rows(DSV4_Q8_0, w, w->n / 64 * 64, act, y); /* two blocks a register, no tail */
}

static void dot_long_rows_cut(const dsv4_dot_rows *w, const void *act, float *y)
{
    scalar_rows(DSV4_Q8_0, w, w->n < 8192 ? w->n : 8192, act, y);
}

static void dot_last_row_left(const dsv4_dot_rows *w, const void *act, float *y)
{
    dsv4_dot_rows fours = *w;
    fours.n_rows = w->n_rows / 4 * 4;
    scalar_rows(DSV4_Q8_0, &fours, w->n, act, y);
}

static void dot_minima_ignored(const dsv4_dot_rows *w, const void *act, float *y)
{
    uint8_t *row = malloc(w->row_bytes); /* with every minimum zero */
    for (int64_t r = 0; row != NULL && r < w->n_rows; r++) {
        memcpy(row, w->data + (size_t)r * w->row_bytes, w->row_bytes);
        for (int64_t b = 0; b < w->n / 256; b++)
            memset(row + b * 84 + 82, 0, 2);
        dsv4_dot_rows one = {.data = row, .row_bytes = w->row_bytes, .n_rows = 1, .n = w->n};
        scalar_rows(DSV4_Q2_K, &one, w->n, act, y + r);
    }
    free(row);
}

static void dot_block_past(const dsv4_dot_rows *w, const void *act, float *y)
{
    scalar_rows(DSV4_Q2_K, w, w->n, act, y);
    sink = (float)*(const volatile uint8_t *)(w->data + (size_t)w->n_rows * w->row_bytes);
}

/* The second half of the rows is the first one's. */
static void dot_far_rows_stale(const dsv4_dot_rows *w, const void *act, float *y)
{
    scalar_rows(DSV4_F16, w, w->n, act, y);
    for (int64_t r = w->n_rows / 2; w->n_rows >= 64 && r < 2 * (w->n_rows / 2); r++)
        y[r] = y[r - w->n_rows / 2];
}

/* The last of an odd number of rows is left. */
static void dot_odd_row_left(const dsv4_dot_rows *w, const void *act, float *y)
{
    dsv4_dot_rows even = *w;
    even.n_rows = w->n_rows >= 64 ? w->n_rows & ~(int64_t)1 : w->n_rows;
    scalar_rows(DSV4_F16, &even, w->n, act, y);
}

/* Activations rounded to halves though they are none. */
static void dot_always_halves(const dsv4_dot_rows *w, const void *act, float *y)
{
    float *x = malloc((size_t)w->n * sizeof *x);
    memcpy(x, act, (size_t)w->n * sizeof *x);
    for (int64_t i = 0; w->n_rows >= 64 && i < w->n; i++)
        x[i] = dsv4_f16_to_f32(dsv4_f32_to_f16(x[i]));
    scalar_rows(DSV4_F16, w, w->n, x, y);
    free(x);
}

static void dot_one_scale_row(const dsv4_dot_rows *w, const void *act, float *y)
{
    dsv4_dot_rows one = *w;
    one.scale_rows = 1 << 30; /* every row takes the first one's scales */
    scalar_rows(DSV4_FP8, &one, w->n, act, y);
}

static void dot_q8_0_honest(const dsv4_dot_rows *w, const void *act, float *y)
{
    scalar_rows(DSV4_Q8_0, w, w->n, act, y);
}

/* Tokens beyond whole fours are left as they were. */
static void dot_tokens_in_fours(const dsv4_dot_rows *w, const dsv4_dot_tokens *in, float *y,
                                int64_t ldy)
{
    for (int64_t t = 0; t < in->n / 4 * 4; t++)
        dot_q8_0_honest(w, (const uint8_t *)in->act + (size_t)t * in->stride, y + t * ldy);
}

/* The rows of y lie side by side, whatever ldy says. */
static void dot_tokens_dense(const dsv4_dot_rows *w, const dsv4_dot_tokens *in, float *y,
                             int64_t ldy)
{
    (void)ldy;
    for (int64_t t = 0; t < in->n; t++)
        dot_q8_0_honest(w, (const uint8_t *)in->act + (size_t)t * in->stride, y + t * w->n_rows);
}

/* Every token gets the first one's activations. */
static void dot_tokens_first(const dsv4_dot_rows *w, const dsv4_dot_tokens *in, float *y,
                             int64_t ldy)
{
    for (int64_t t = 0; t < in->n; t++)
        dot_q8_0_honest(w, in->act, y + t * ldy);
}

#define T(F)                                                                                       \
    {                                                                                              \
        DSV4_Q8_0, DSV4_CPU_SCALAR, 0, DSV4_Q8_0, #F, dot_q8_0_honest, F                           \
    }
#define D(TYPE, ACT, F)                                                                            \
    {                                                                                              \
        DSV4_##TYPE, DSV4_CPU_SCALAR, 0, DSV4_##ACT, #F, F, NULL                                   \
    }
static const dsv4_dot_kernel dot_saboteurs[] = {
    D(Q8_0, Q8_0, dot_odd_block_dropped),
    D(Q8_0, Q8_0, dot_long_rows_cut),
    D(Q8_0, Q8_0, dot_last_row_left),
    D(Q2_K, Q8_K, dot_minima_ignored),
    D(Q2_K, Q8_K, dot_block_past),
    D(FP8, F32, dot_one_scale_row),
    D(F16, F32, dot_far_rows_stale),
    D(F16, F32, dot_odd_row_left),
    D(F16, F32, dot_always_halves),
    T(dot_tokens_in_fours),
    T(dot_tokens_dense),
    T(dot_tokens_first),
};
enum { DOT_SABOTEURS = sizeof dot_saboteurs / sizeof *dot_saboteurs };

/* ---- the trial ------------------------------------------------------------------------------ */

#define S(OP, F)                                                                                   \
    {                                                                                              \
#OP, #F,                                                                                   \
        {                                                                                          \
            .OP = F                                                                                \
        }                                                                                          \
    }
static const struct {
    const char *op, *name;
    dsv4_ops table; /* one pointer */
} saboteurs[] = {
    S(embed, embed_q4_0_nibbles_swapped),
    S(embed, embed_q5_0_four_bits),
    S(embed, embed_q5_1_last_bit_lost),
    S(embed, embed_minima_dropped),
    S(embed, embed_q3_k_mask_inverted),
    S(embed, embed_q6_k_unsigned_scales),
    S(embed, embed_iq4_nl_even_levels),
    S(embed, embed_iq4_xs_four_bit_scales),
    S(embed, embed_mlx_short_groups),
    S(embed, embed_mlx_scale_for_bias),
    S(linear, linear_last_dropped),
    S(linear, linear_tail_ignored),
    S(linear, linear_half_sums),
    S(linear, linear_bf16_sums),
    S(linear, linear_reads_past),
    S(linear, linear_reads_before),
    S(linear, linear_weights_past),
    S(linear, linear_writes_past),
    S(linear, linear_stale_row),
    S(linear, linear_adds),
    S(linear, linear_dense_only),
    S(linear, linear_input_overwritten),
    S(linear, linear_from_row_0),
    S(linear, linear_traps),
    S(linear, linear_one_span),
    S(rmsnorm, rmsnorm_no_eps),
    S(rmsnorm, rmsnorm_no_weight),
    S(rmsnorm, rmsnorm_fast_root),
    S(rmsnorm, rmsnorm_first_row),
    S(head_norm, head_norm_always_float),
    S(rope, rope_halves),
    S(rope, rope_never_inverse),
    S(rope, rope_first_dims),
    S(rope, rope_first_token),
    S(hc_mix, hc_mix_no_norm),
    S(hc_gates, hc_gates_transposed),
    S(hc_gates, hc_gates_post_eps),
    S(hc_gates, hc_gates_few_rounds),
    S(hc_gates, hc_gates_overflow),
    S(hc_collapse, hc_collapse_last_dropped),
    S(hc_post, hc_post_transposed),
    S(compressor_pool, pool_no_maximum),
    S(compressor_pool, pool_lanes_swapped),
    S(compressor_pool, pool_no_previous),
    S(indexer_scores, scores_no_relu),
    S(indexer_scores, scores_nan_lost),
    S(indexer_scores, scores_heads_swapped),
    S(topk, topk_ties_up),
    S(topk, topk_no_fill),
    S(topk, topk_unsorted),
    S(attention, attention_no_sink),
    S(attention, attention_window_short),
    S(attention, attention_future_row),
    S(attention, attention_heads_swapped),
    S(attention, attention_out_of_memory),
    S(router, router_ties_up),
    S(router, router_by_position),
    S(router, router_bias_weighs),
    S(router, router_softplus_underflow),
    S(swiglu, swiglu_clamps_gate_below),
    S(swiglu, swiglu_up_unclamped),
    S(swiglu, swiglu_fast_exp),
    S(experts, experts_last_skipped),
    S(experts, experts_unweighted),
    S(add, add_last_dropped),
    S(round_bf16, bf16_truncates),
    S(round_bf16, bf16_ties_away),
    S(round_bf16, bf16_nan_to_infinity),
    S(round_bf16, bf16_flushes_subnormals),
    S(round_bf16, bf16_loses_zero_sign),
    S(round_fp8, fp8_short_block_ignored),
    S(round_fp8, fp8_ties_up),
    S(round_fp8, fp8_dense_only),
    S(round_fp4, fp4_ties_away),
    S(round_fp4, fp4_one_scale),
    S(hadamard, hadamard_unscaled),
};
enum { SABOTEURS = sizeof saboteurs / sizeof *saboteurs };

static kernels_options quiet_options(FILE *out)
{
    return (kernels_options){.seed = 20260822, .quiet = true, .out = out};
}

static void test_every_saboteur_is_caught(void **state)
{
    int caught = 0;
    FILE *out = tmpfile();
    (void)state;
    assert_non_null(out);
    kernels_options o = quiet_options(out);
    for (int i = 0; i < SABOTEURS; i++) {
        int op = dsv4_operator_find(saboteurs[i].op);
        assert_true(op >= 0);
        dsv4_ops table = *dsv4_ops_reference();
        dsv4_operator_copy(&table, &saboteurs[i].table, op);
        kernels_totals t = {0};
        bool passed = kernels_check("sabotaged", dsv4_ops_reference(), &table, op, &o, &t);
        if (!passed && t.failures > 0)
            caught++;
        else
            print_error("not caught: %s\n", saboteurs[i].name);
    }
    for (int i = 0; i < DOT_SABOTEURS; i++) {
        kernels_totals t = {0};
        if (!kernels_check_dot(&dot_saboteurs[i], &o, &t) && t.failures > 0)
            caught++;
        else
            print_error("not caught: %s\n", dot_saboteurs[i].name);
    }
    fclose(out);
    print_message("saboteurs caught: %d of %d\n", caught, SABOTEURS + DOT_SABOTEURS);
    assert_int_equal(caught, SABOTEURS + DOT_SABOTEURS);
}

/* The scalar operators against themselves: no false alarm, and no operator without cases. */
static void test_honest_operators_pass(void **state)
{
    kernels_options o = quiet_options(stderr);
    kernels_totals t = {0};
    (void)state;
    for (int op = 0; op < dsv4_operator_count(); op++)
        assert_true(
            kernels_check("scalar", dsv4_ops_reference(), dsv4_ops_reference(), op, &o, &t));
    const dsv4_dot_kernel honest = {DSV4_Q2_K,    DSV4_CPU_SCALAR, 0,   DSV4_Q8_K,
                                    "dot_honest", dot_honest,      NULL};
    assert_true(kernels_check_dot(&honest, &o, &t));
    assert_int_equal(t.kernels, dsv4_operator_count() + 1);
    assert_int_equal(t.failures, 0);
    assert_int_equal(t.crashes, 0);
}

/* What a run found is kept for the reports: each failing case with the command that replays it. */
static void test_reports(void **state)
{
    kernels_found found = {.machine = "scalar", .seed = 20260822, .repeat = 1};
    kernels_totals t = {0};
    kernels_options o = quiet_options(tmpfile());
    json_error_t where;
    (void)state;
    assert_non_null(o.out);
    o.found = &found;
    dsv4_ops table = *dsv4_ops_reference();
    table.add = add_last_dropped;
    int op = dsv4_operator_find("add");
    assert_false(kernels_check("avx2", dsv4_ops_reference(), &table, op, &o, &t));
    assert_true(kernels_check("neon", dsv4_ops_reference(), dsv4_ops_reference(), op, &o, &t));
    assert_int_equal(found.count, 2);
    FILE *json = tmpfile();
    assert_true(report_kernels_json(json, &found));
    rewind(json);
    json_t *root = json_loadf(json, JSON_REJECT_DUPLICATES, &where);
    assert_non_null(root);
    assert_string_equal(json_string_value(json_object_get(root, "schema")), "dsv4check-results-1");
    assert_string_equal(json_string_value(json_object_get(root, "verdict")), "fail");
    const json_t *kernels = json_object_get(root, "kernels");
    assert_int_equal(json_array_size(kernels), 2);
    const json_t *bad = json_array_get(kernels, 0), *good = json_array_get(kernels, 1);
    assert_string_equal(json_string_value(json_object_get(bad, "verdict")), "fail");
    assert_string_equal(json_string_value(json_object_get(good, "verdict")), "pass");
    assert_int_equal(json_integer_value(json_object_get(bad, "failed")), t.failures);
    const json_t *lines = json_object_get(root, "results");
    /* The listed failures of the one, a line for the other. */
    assert_int_equal(json_array_size(lines), KERNELS_MOST_FAILURES + 1);
    const json_t *first = json_array_get(lines, 0);
    char replay[256];
    snprintf(replay, sizeof replay, "dsv4check kernels --impl avx2 --filter '%s' --seed 20260822",
             json_string_value(json_object_get(first, "case")));
    assert_string_equal(json_string_value(json_object_get(first, "replay")), replay);
    assert_string_equal(json_string_value(json_object_get(first, "verdict")), "fail");
    json_decref(root);
    fclose(json);
    fclose(o.out);
    kernels_found_free(&found);
}

/* A lack of memory for the report is not a failure of the kernel; the report knows. */
static void test_report_memory(void **state)
{
    kernels_found found = {.machine = "scalar", .repeat = 1};
    kernels_totals t = {0};
    kernels_options o = quiet_options(tmpfile());
    (void)state;
    assert_non_null(o.out);
    o.found = &found;
    dsv4_alloc_fail_at(1);
    bool ok = kernels_check("avx2", dsv4_ops_reference(), dsv4_ops_reference(),
                            dsv4_operator_find("hadamard"), &o, &t);
    dsv4_alloc_fail_at(0);
    assert_true(ok && t.failures == 0);
    assert_true(found.lost);
    fclose(o.out);
    kernels_found_free(&found);
}

/* Checks a wrong `linear`, which fails; the lines into text. */
static kernels_totals totals_of(dsv4_ops table, const char *filter, int timeout, char *text,
                                size_t size)
{
    FILE *out = tmpfile();
    kernels_totals t = {0};
    assert_non_null(out);
    kernels_options o = quiet_options(out);
    o.filter = filter;
    o.timeout = timeout;
    assert_false(kernels_check("sabotaged", dsv4_ops_reference(), &table,
                               dsv4_operator_find("linear"), &o, &t));
    rewind(out);
    text[fread(text, 1, size - 1, out)] = '\0';
    fclose(out);
    return t;
}

/* A crash is booked with its case's name, the other cases still run, and the line replays it; so is
 * a kernel that does not return, once its time is over. */
static void test_crash_is_one_failure(void **state)
{
    char text[4096];
    dsv4_ops table = *dsv4_ops_reference();
    (void)state;
    table.linear = linear_traps;
    kernels_totals t = totals_of(table, "linear/Q8_0/rows=5,cols=96,n=1/*", 0, text, sizeof text);
    assert_int_equal(t.crashes, 4); /* then the kernel is given up */
    assert_non_null(strstr(text, "crashed"));
    assert_non_null(strstr(text, "dsv4check kernels --impl sabotaged --filter "
                                 "'linear/Q8_0/rows=5,cols=96,n=1/zero' --seed 20260822"));
    table.linear = linear_hangs;
    t = totals_of(table, "linear/Q8_0/rows=5,cols=96,n=1/zero", 1, text, sizeof text);
    assert_int_equal(t.crashes, 1);
    assert_int_equal(t.failures, 1);
    assert_non_null(strstr(text, "FAIL linear/Q8_0/rows=5,cols=96,n=1/zero on sabotaged: did not "
                                 "return in 1 s"));
}

/* A filter is asked with the name of a case, and none is left out because of a kernel's name. */
static void test_filters(void **state)
{
    static const struct {
        const char *filter;
        bool some;
    } filters[] = {{"hadamard/*", true},         {"had*", true},        {"*/noise", true},
                   {"[h]adamard/*/noise", true}, {"?adamard*", true},   {"hadamard*noise", true},
                   {"hadamard", false},          {"hadamar/*", false},  {"hadamards/*", false},
                   {"hc_post/*", false},         {"hadamard/x", false}, {"", false}};
    dsv4_ops table = *dsv4_ops_reference();
    table.hadamard = hadamard_unscaled;
    (void)state;
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++) {
        FILE *out = tmpfile();
        assert_non_null(out);
        kernels_options o = quiet_options(out);
        kernels_totals t = {0};
        o.filter = filters[i].filter;
        bool ok = kernels_check("sabotaged", dsv4_ops_reference(), &table,
                                dsv4_operator_find("hadamard"), &o, &t);
        assert_int_equal(ok, !filters[i].some);
        assert_int_equal(t.cases > 0, filters[i].some);
        fclose(out);
    }
}

/* The same seed gives the same failures; another filter does not change a case's numbers. */
static void test_replay(void **state)
{
    char all[8192] = "", one[8192] = "";
    const char *filters[2] = {"swiglu/*", "swiglu/n=7,limit/huge"};
    char *texts[2] = {all, one};
    (void)state;
    for (int i = 0; i < 2; i++) {
        FILE *out = tmpfile();
        assert_non_null(out);
        kernels_options o = quiet_options(out);
        o.filter = filters[i];
        dsv4_ops table = *dsv4_ops_reference();
        table.swiglu = swiglu_up_unclamped;
        kernels_totals t = {0};
        assert_false(kernels_check("sabotaged", dsv4_ops_reference(), &table,
                                   dsv4_operator_find("swiglu"), &o, &t));
        rewind(out);
        texts[i][fread(texts[i], 1, sizeof all - 1, out)] = '\0';
        fclose(out);
    }
    /* The line of the one case stands among the lines of all. */
    assert_non_null(strstr(one, "swiglu/n=7,limit/huge"));
    char *end = strchr(one, '\n');
    assert_non_null(end);
    *end = '\0';
    if (strstr(all, "swiglu/n=7,limit/huge") != NULL)
        assert_non_null(strstr(all, one));
}

/* What runs under a level's name is that level's: never a silent fall back to the scalar. */
static void test_active_implementation(void **state)
{
    (void)state;
    for (int l = DSV4_CPU_SCALAR + 1; l < DSV4_CPU_LEVEL_COUNT; l++) {
        const dsv4_ops *table = dsv4_ops_cpu((dsv4_cpu_level)l);
        if (table == NULL)
            continue;
        assert_int_equal(dsv4_operator_active(table, dsv4_operator_find("linear")), l);
        assert_int_equal(dsv4_operator_active(table, dsv4_operator_find("attention")), l);
        assert_int_equal(dsv4_operator_active(dsv4_ops_reference(), dsv4_operator_find("linear")),
                         DSV4_CPU_SCALAR);
    }
    assert_non_null(dsv4_ops_cpu(dsv4_cpu_best()));
    assert_string_equal(dsv4_operator_name(dsv4_operator_find("topk")), "topk");
    assert_int_equal(dsv4_operator_find("nothing"), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_honest_operators_pass),
        cmocka_unit_test(test_every_saboteur_is_caught),
        cmocka_unit_test(test_reports),
        cmocka_unit_test(test_report_memory),
        cmocka_unit_test(test_crash_is_one_failure),
        cmocka_unit_test(test_filters),
        cmocka_unit_test(test_replay),
        cmocka_unit_test(test_active_implementation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
