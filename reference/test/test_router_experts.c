/* test_router_experts.c - which experts a token goes to and with what weights; clamped SwiGLU; the
 * routed experts and the layout of the shared one. */
#include "support.h"

/* Scores and weights are computed in double and rounded once. */
#define TOLERANCE (2 * ROUNDING)

/* ---- router ------------------------------------------------------------------------------- */

static double score(double logit)
{
    return sqrt(logit > 30 ? logit : log1p(exp(logit))); /* exp(-30) is far below a rounding */
}

static void route(const float *logits, const float *bias, int n_experts, int k, float scaling,
                  int32_t *experts, float *weights)
{
    ops()->router(logits, bias, NULL, NULL, 1, n_experts, k, scaling, experts, weights);
}

START_TEST(scores_are_roots_of_softplus_at_any_logit)
{
    /* Beside an expert of logit 0, whose score is sqrt(ln 2). */
    static const float at[] = {-100, -17, -1, 0, 1, 20, 88, 1000};
    for (size_t i = 0; i < COUNT_OF(at); i++) {
        const float logits[2] = {at[i], 0};
        int32_t experts[2];
        float weights[2];
        route(logits, NULL, 2, 2, 1, experts, weights);
        int own = experts[0] == 0 ? 0 : 1;
        double s = score((double)at[i]), right = s / (s + score(0));
        ck_assert(fabs((double)weights[own] - right) <= TOLERANCE * right);
        ASSERT_NEAR(weights[0] + weights[1], 1, TOLERANCE);
    }
    /* Twin: log(1 + exp(x)) in float32 is 0 at -17 and infinite at 1000. */
    volatile float low = 1.0f + expf(-17.0f), high = 1.0f + expf(1000.0f);
    ck_assert(logf(low) == 0 && isinf(logf(high)));
}
END_TEST

START_TEST(a_logit_of_minus_1000_weighs_nothing)
{
    const float logits[3] = {-1000, 2, 1};
    int32_t experts[3];
    float weights[3];
    route(logits, NULL, 3, 3, 1, experts, weights);
    ck_assert_int_eq(experts[2], 0);
    ck_assert(weights[2] == 0);
}
END_TEST

START_TEST(weights_are_scores_over_their_sum_times_the_scaling)
{
    const float logits[4] = {1, 4, 2, 3}; /* the two best: 1 and 3 */
    int32_t experts[2];
    float weights[2];
    route(logits, NULL, 4, 2, 2.5f, experts, weights);
    ck_assert_int_eq(experts[0], 1);
    ck_assert_int_eq(experts[1], 3);
    double sum = score(4) + score(3), all = sum + score(1) + score(2);
    ASSERT_NEAR(weights[0], 2.5 * score(4) / sum, TOLERANCE);
    ASSERT_NEAR(weights[1], 2.5 * score(3) / sum, TOLERANCE);
    ASSERT_NEAR(weights[0] + weights[1], 2.5, 2 * TOLERANCE);
    double twins[] = {
        2.5 * score(4) / all,                                           /* over all experts */
        2.5 * score(4),                                                 /* not normalised */
        score(4) / sum,                                                 /* not scaled */
        2.5 * pow(score(4), 2) / (pow(score(4), 2) + pow(score(3), 2)), /* no root */
        2.5 / (1 + exp(-4)) / (1 / (1 + exp(-4)) + 1 / (1 + exp(-3))),  /* sigmoid */
        2.5 * exp(4) / (exp(4) + exp(3)),                               /* softmax */
    };
    for (size_t i = 0; i < COUNT_OF(twins); i++)
        ASSERT_CAUGHT(fabs(twins[i] - (double)weights[0]), TOLERANCE);
}
END_TEST

START_TEST(the_bias_selects_but_does_not_weigh)
{
    const float logits[4] = {1, 4, 2, 3}, bias[4] = {10, 0, -10, 0};
    int32_t experts[2];
    float weights[2];
    route(logits, bias, 4, 2, 1, experts, weights);
    ck_assert_int_eq(experts[0], 0); /* 1.15 + 10 */
    ck_assert_int_eq(experts[1], 1);
    double sum = score(1) + score(4);
    ASSERT_NEAR(weights[0], score(1) / sum, TOLERANCE);
    ASSERT_NEAR(weights[1], score(4) / sum, TOLERANCE);
    double twin = (score(1) + 10) / (sum + 10);
    ASSERT_CAUGHT(fabs(twin - (double)weights[0]), TOLERANCE);
    /* Added to the score, not to the logit: score(0) + 0.5 = 1.33 > score(1) = 1.15 */
    const float close[2] = {0, 1}, nudge[2] = {0.5f, 0};
    route(close, nudge, 2, 1, 1, experts, weights);
    ck_assert_int_eq(experts[0], 0);
    ck_assert(score(0.5) < score(1)); /* twin */
}
END_TEST

START_TEST(ties_go_to_the_lowest_expert)
{
    const float logits[5] = {1, 2, 1, 2, 2};
    const int32_t right[4] = {1, 3, 4, 0}; /* twin, highest first: 4, 3, 1, 2 */
    int32_t experts[4];
    float weights[4];
    route(logits, NULL, 5, 4, 1, experts, weights);
    for (int s = 0; s < 4; s++)
        ck_assert_int_eq(experts[s], right[s]);
}
END_TEST

START_TEST(all_experts_can_be_chosen_each_once)
{
    enum { E = 9 };
    float logits[E], weights[E], sum = 0;
    int32_t experts[E];
    unsigned seen = 0;
    noise_fill(1, logits, E, 3);
    route(logits, NULL, E, E, 1.5f, experts, weights);
    for (int s = 0; s < E; s++) {
        ck_assert(experts[s] >= 0 && experts[s] < E);
        seen |= 1u << experts[s];
        sum += weights[s];
        ck_assert(s == 0 || weights[s] <= weights[s - 1]);
    }
    ck_assert_uint_eq(seen, (1u << E) - 1);
    ASSERT_NEAR(sum, 1.5, E * ROUNDING);
}
END_TEST

START_TEST(hash_layers_choose_by_token_id_and_weigh_by_score)
{
    const int64_t wide[6] = {0, 1, 2, 0, 1, 2}; /* [3][2] */
    const int32_t narrow[6] = {0, 1, 2, 0, 1, 2}, ids[4] = {2, 0, 2, 1};
    const float bias[3] = {100, 0, 0};
    float logits[4 * 3], weights[4 * 2], again[4 * 2];
    int32_t experts[4 * 2], other[4 * 2];
    noise_fill(2, logits, 12, 2);
    dsv4_tensor table = {
        .name = "t",
        .type = DSV4_I64,
        .rows = 3,
        .cols = 2,
        .data = (const uint8_t *)wide,
        .row_bytes = 16,
    };
    ops()->router(logits, bias, &table, ids, 4, 3, 2, 1.5f, experts, weights);
    for (int i = 0; i < 4; i++) {
        double sum = 0;
        for (int s = 0; s < 2; s++) {
            ck_assert_int_eq(experts[2 * i + s], wide[2 * ids[i] + s]);
            sum += score((double)logits[3 * i + experts[2 * i + s]]);
        }
        for (int s = 0; s < 2; s++)
            ASSERT_NEAR(weights[2 * i + s],
                        1.5 * score((double)logits[3 * i + experts[2 * i + s]]) / sum, TOLERANCE);
    }
    ck_assert_int_ne(experts[0], wide[0]); /* twin: by position */
    table.type = DSV4_I32;
    table.data = (const uint8_t *)narrow;
    table.row_bytes = 8;
    ops()->router(logits, bias, &table, ids, 4, 3, 2, 1.5f, other, again);
    ck_assert(same_bits(experts, other, 8) && same_bits(weights, again, 8));
}
END_TEST

START_TEST(a_nan_logit_still_chooses_real_experts)
{
    const float logits[3] = {NAN, NAN, NAN};
    int32_t experts[2];
    float weights[2];
    route(logits, NULL, 3, 2, 1, experts, weights);
    ck_assert(experts[0] >= 0 && experts[0] < 3 && experts[1] >= 0 && experts[1] < 3);
    ck_assert(experts[0] != experts[1] && isnan(weights[0]));
}
END_TEST

/* ---- swiglu ------------------------------------------------------------------------------- */

static double silu(double x)
{
    return x / (1 + exp(-x));
}

START_TEST(swiglu_clamps_the_gate_above_and_up_on_both_sides)
{
    const float gate[6] = {5, -5, 1, 1, 1, -0.5f}, up[6] = {1, 1, 5, -5, 1, 2};
    const double right[6] = {silu(2),      silu(-5),    silu(1) * 2,
                             silu(1) * -2, silu(1) * 1, silu(-0.5) * 2};
    float h[6];
    ops()->swiglu(gate, up, 2, 6, h);
    for (int k = 0; k < 6; k++)
        ASSERT_NEAR(h[k], right[k], TOLERANCE);
    ASSERT_CAUGHT(fabs(silu(-2) - (double)h[1]), TOLERANCE);         /* twin: the gate below too */
    ASSERT_CAUGHT(fabs(silu(1) * -5 - (double)h[3]), TOLERANCE);     /* twin: up above only */
    ASSERT_CAUGHT(fabs(fmin(silu(5), 2) - (double)h[0]), TOLERANCE); /* twin: after silu */
}
END_TEST

START_TEST(a_limit_of_0_clamps_nothing)
{
    const float gate[2] = {50, -3}, up[2] = {-60, 70};
    float h[2];
    ops()->swiglu(gate, up, 0, 2, h);
    ASSERT_NEAR(h[0], -3000, TOLERANCE);
    ASSERT_NEAR(h[1], silu(-3) * 70, TOLERANCE);
}
END_TEST

START_TEST(swiglu_may_write_over_either_input)
{
    float gate[20], up[20], h[20], over[20];
    noise_fill(3, gate, 20, 4);
    noise_fill(4, up, 20, 4);
    ops()->swiglu(gate, up, 3, 20, h);
    memcpy(over, gate, sizeof over);
    ops()->swiglu(over, up, 3, 20, over);
    ck_assert(same_bits(h, over, 20));
    memcpy(over, up, sizeof over);
    ops()->swiglu(gate, over, 3, 20, over);
    ck_assert(same_bits(h, over, 20));
}
END_TEST

START_TEST(swiglu_survives_the_far_ends)
{
    const float gate[4] = {-1000, 1000, NAN, 1}, up[4] = {1, 1, 1, NAN};
    float h[4];
    ops()->swiglu(gate, up, 0, 4, h);
    ck_assert(h[0] == 0 && h[1] == 1000 && isnan(h[2]) && isnan(h[3]));
    ops()->swiglu(gate, up, 10, 4, h);
    ck_assert(isnan(h[2]) && isnan(h[3]));
}
END_TEST

/* ---- experts ------------------------------------------------------------------------------ */

enum { D = 6, F = 5, E = 4, K = 2, N = 7 };

typedef struct {
    float w1[E * F * D], w2[E * D * F], w3[E * F * D], gate[E * D];
    dsv4_tensor views[3 * E];
    dsv4_layer layer;
    float x[N * D], weights[N * K];
    int32_t experts[N * K];
    dsv4_experts_args args;
} moe;

static void moe_fill(moe *m)
{
    noise_fill(5, m->w1, E * F * D, 1);
    noise_fill(6, m->w2, E * D * F, 1);
    noise_fill(7, m->w3, E * F * D, 1);
    noise_fill(8, m->x, N * D, 3);
    noise_fill(9, m->weights, N * K, 1);
    memset(&m->layer, 0, sizeof m->layer);
    for (int e = 0; e < E; e++) {
        m->views[e] = matrix(m->w1 + e * F * D, F, D);
        m->views[E + e] = matrix(m->w2 + e * D * F, D, F);
        m->views[2 * E + e] = matrix(m->w3 + e * F * D, F, D);
    }
    m->layer.gate = matrix(m->gate, E, D);
    m->layer.w1 = m->views;
    m->layer.w2 = m->views + E;
    m->layer.w3 = m->views + 2 * E;
    m->layer.swiglu_limit = 1.5f;
    for (int i = 0; i < N; i++) {
        m->experts[i * K] = i % E;
        m->experts[i * K + 1] = (i + 1 + i / E) % E;
    }
    m->args = (dsv4_experts_args){
        .n = N,
        .k = K,
        .layer = &m->layer,
        .x = m->x,
        .experts = m->experts,
        .weights = m->weights,
        .numerics = DSV4_MATH,
    };
}

/* w2 (weight * swiglu(w1 x, w3 x)) of one expert, in double, added to y. */
static void add_expert(const moe *m, int e, const float *x, double weight, double *y)
{
    double L = (double)m->layer.swiglu_limit;
    for (int f = 0; f < F; f++) {
        double g = 0, u = 0;
        for (int k = 0; k < D; k++) {
            g += (double)m->w1[(e * F + f) * D + k] * (double)x[k];
            u += (double)m->w3[(e * F + f) * D + k] * (double)x[k];
        }
        double h = silu(fmin(g, L)) * fmin(fmax(u, -L), L) * weight;
        for (int k = 0; k < D; k++)
            y[k] += h * (double)m->w2[(e * D + k) * F + f];
    }
}

/* Rounded on the way: gate, up, SwiGLU, weight, w2's result and the sum. */
#define EXPERT_TOLERANCE (8 * ROUNDING)

START_TEST(one_expert_by_hand)
{
    float w1[1] = {2}, w2[1] = {5}, w3[1] = {3}, gate[1] = {0}, y;
    const float x[1] = {1}, weight[1] = {0.5f};
    const int32_t expert[1] = {0};
    dsv4_tensor v1 = matrix(w1, 1, 1), v2 = matrix(w2, 1, 1), v3 = matrix(w3, 1, 1);
    dsv4_layer layer = {.gate = matrix(gate, 1, 1), .w1 = &v1, .w2 = &v2, .w3 = &v3};
    dsv4_experts_args a = {
        .n = 1,
        .k = 1,
        .layer = &layer,
        .x = x,
        .experts = expert,
        .weights = weight,
    };
    ck_assert(ops()->experts(&a, &y));
    ASSERT_NEAR(y, 2 / (1 + exp(-2)) * 3 * 0.5 * 5, EXPERT_TOLERANCE);
    ASSERT_CAUGHT(fabs(3 / (1 + exp(-3)) * 2 * 0.5 * 5 - (double)y),
                  EXPERT_TOLERANCE); /* w1<->w3 */
}
END_TEST

START_TEST(experts_match_the_definition)
{
    moe m;
    float out[N * D];
    moe_fill(&m);
    ck_assert(ops()->experts(&m.args, out));
    for (int i = 0; i < N; i++) {
        double y[D] = {0};
        for (int s = 0; s < K; s++)
            add_expert(&m, m.experts[i * K + s], m.x + i * D, (double)m.weights[i * K + s], y);
        for (int k = 0; k < D; k++)
            ASSERT_NEAR(out[i * D + k], y[k], EXPERT_TOLERANCE);
    }
    float no_limit[N * D];
    m.layer.swiglu_limit = 0; /* twin */
    ck_assert(ops()->experts(&m.args, no_limit));
    ASSERT_CAUGHT(distance(no_limit, out, N * D), EXPERT_TOLERANCE);
}
END_TEST

START_TEST(an_expert_listed_twice_gets_both_weights)
{
    moe m;
    float out[D], once[D];
    moe_fill(&m);
    m.args.n = 1;
    m.experts[0] = m.experts[1] = 2;
    m.weights[0] = 0.25f;
    m.weights[1] = 0.5f;
    ck_assert(ops()->experts(&m.args, out));
    m.args.k = 1;
    m.weights[0] = 0.75f;
    ck_assert(ops()->experts(&m.args, once));
    ck_assert(same_bits(out, once, D));
    m.weights[0] = 0.5f; /* twin: the last entry wins */
    ck_assert(ops()->experts(&m.args, once));
    ASSERT_CAUGHT(distance(once, out, D), EXPERT_TOLERANCE);
}
END_TEST

START_TEST(neither_the_order_of_tokens_nor_of_choices_matters)
{
    moe m, turned;
    float out[N * D], back[N * D], one[D];
    moe_fill(&m);
    moe_fill(&turned);
    for (int i = 0; i < N; i++) {
        int from = N - 1 - i;
        memcpy(turned.x + i * D, m.x + from * D, D * sizeof(float));
        for (int s = 0; s < K; s++) {
            turned.experts[i * K + s] = m.experts[from * K + K - 1 - s];
            turned.weights[i * K + s] = m.weights[from * K + K - 1 - s];
        }
    }
    ck_assert(ops()->experts(&m.args, out));
    ck_assert(ops()->experts(&turned.args, back));
    for (int i = 0; i < N; i++) {
        ck_assert(same_bits(out + i * D, back + (N - 1 - i) * D, D));
        dsv4_experts_args a = m.args; /* and one token alone gives the same */
        a.n = 1;
        a.x += i * D;
        a.experts += i * K;
        a.weights += i * K;
        ck_assert(ops()->experts(&a, one));
        ck_assert(same_bits(out + i * D, one, D));
    }
    m.args.n = 0;
    out[0] = 77;
    ck_assert(ops()->experts(&m.args, out));
    ck_assert(out[0] == 77);
}
END_TEST

/* The shared expert of n_shared_experts * F inner units is as many experts of F beside each other:
 * rows of w1 and w3 stacked, columns of w2 side by side. */
START_TEST(a_shared_expert_twice_as_wide_is_two_experts_of_weight_1)
{
    moe m;
    float gate[2 * F], up[2 * F], wide_w2[D * 2 * F], y[D], pair[D];
    const int32_t both[K] = {0, 1};
    const float ones[K] = {1, 1};
    moe_fill(&m);
    for (int k = 0; k < D; k++)
        for (int f = 0; f < 2 * F; f++)
            wide_w2[k * 2 * F + f] = m.w2[(f / F * D + k) * F + f % F];
    dsv4_tensor w1 = matrix(m.w1, 2 * F, D), w3 = matrix(m.w3, 2 * F, D);
    dsv4_tensor w2 = matrix(wide_w2, D, 2 * F);
    ops()->linear(&w1, m.x, D, 1, gate, 2 * F);
    ops()->linear(&w3, m.x, D, 1, up, 2 * F);
    ops()->swiglu(gate, up, m.layer.swiglu_limit, 2 * F, gate);
    ops()->linear(&w2, gate, 2 * F, 1, y, D);
    m.args.n = 1;
    m.args.experts = both;
    m.args.weights = ones;
    ck_assert(ops()->experts(&m.args, pair));
    for (int k = 0; k < D; k++)
        ASSERT_NEAR(y[k], pair[k], EXPERT_TOLERANCE);
}
END_TEST

START_TEST(deployed_experts_round_gate_up_weighted_product_and_result_to_bf16)
{
    moe m;
    float out[N * D], gate[F], up[F], y[D], math[N * D];
    moe_fill(&m);
    m.args.k = 1;
    m.args.numerics = DSV4_DEPLOYED;
    ck_assert(ops()->experts(&m.args, out));
    for (int i = 0; i < N; i++) {
        int e = m.experts[i];
        ops()->linear(&m.layer.w1[e], m.x + i * D, D, 1, gate, F);
        ops()->linear(&m.layer.w3[e], m.x + i * D, D, 1, up, F);
        ops()->round_bf16(gate, F);
        ops()->round_bf16(up, F);
        ops()->swiglu(gate, up, m.layer.swiglu_limit, F, gate);
        for (int f = 0; f < F; f++)
            gate[f] *= m.weights[i];
        ops()->round_bf16(gate, F);
        ops()->linear(&m.layer.w2[e], gate, F, 1, y, D);
        ops()->round_bf16(y, D);
        ck_assert(same_bits(out + i * D, y, D));
    }
    m.args.numerics = DSV4_MATH; /* twin: only the result rounded */
    ck_assert(ops()->experts(&m.args, math));
    ops()->round_bf16(math, N * D);
    ck_assert(!same_bits(out, math, N * D));
}
END_TEST

START_TEST(deployed_experts_of_fp4_weights_take_fp8_inputs)
{
    enum { WIDE = 160, INNER = 32 }; /* two activation blocks, the second one short */
    static uint8_t codes[3][WIDE * INNER / 2], scales[3][WIDE];
    static float x[WIDE], rounded[WIDE], out[WIDE], y[WIDE], gate[INNER], up[INNER];
    noise r = {10};
    for (int w = 0; w < 3; w++) {
        for (int k = 0; k < WIDE * INNER / 2; k++)
            codes[w][k] = (uint8_t)noise_bits(&r);
        memset(scales[w], 125, WIDE);
    }
    dsv4_tensor v[3];
    for (int w = 0; w < 3; w++) {
        int rows = w == 1 ? WIDE : INNER, cols = w == 1 ? INNER : WIDE;
        v[w] = (dsv4_tensor){
            .name = "test",
            .type = DSV4_FP4,
            .rows = rows,
            .cols = cols,
            .data = codes[w],
            .row_bytes = (size_t)cols / 2,
            .scale = scales[w],
            .scale_row_bytes = (size_t)cols / 32,
            .scale_rows = 1,
            .scale_cols = 32,
        };
    }
    const int32_t expert[1] = {0};
    const float weight[1] = {0.7f};
    dsv4_layer layer = {.gate = matrix(x, 1, WIDE), .w1 = &v[0], .w2 = &v[1], .w3 = &v[2]};
    noise_fill(11, x, WIDE, 1);
    dsv4_experts_args a = {
        .n = 1,
        .k = 1,
        .layer = &layer,
        .x = x,
        .experts = expert,
        .weights = weight,
        .numerics = DSV4_DEPLOYED,
    };
    ck_assert(ops()->experts(&a, out));
    memcpy(rounded, x, sizeof x);
    ops()->round_fp8(rounded, 1, WIDE, WIDE, 128);
    ops()->linear(&v[0], rounded, WIDE, 1, gate, INNER);
    ops()->linear(&v[2], rounded, WIDE, 1, up, INNER);
    ops()->round_bf16(gate, INNER);
    ops()->round_bf16(up, INNER);
    ops()->swiglu(gate, up, 0, INNER, gate);
    for (int f = 0; f < INNER; f++)
        gate[f] *= weight[0];
    ops()->round_bf16(gate, INNER);
    ops()->round_fp8(gate, 1, INNER, INNER, INNER);
    ops()->linear(&v[1], gate, INNER, 1, y, WIDE);
    ops()->round_bf16(y, WIDE);
    ck_assert(same_bits(out, y, WIDE));
}
END_TEST

int main(void)
{
    TCase *router = tcase_create("router"), *swiglu = tcase_create("swiglu");
    TCase *experts = tcase_create("experts");
    tcase_add_test(router, scores_are_roots_of_softplus_at_any_logit);
    tcase_add_test(router, a_logit_of_minus_1000_weighs_nothing);
    tcase_add_test(router, weights_are_scores_over_their_sum_times_the_scaling);
    tcase_add_test(router, the_bias_selects_but_does_not_weigh);
    tcase_add_test(router, ties_go_to_the_lowest_expert);
    tcase_add_test(router, all_experts_can_be_chosen_each_once);
    tcase_add_test(router, hash_layers_choose_by_token_id_and_weigh_by_score);
    tcase_add_test(router, a_nan_logit_still_chooses_real_experts);
    tcase_add_test(swiglu, swiglu_clamps_the_gate_above_and_up_on_both_sides);
    tcase_add_test(swiglu, a_limit_of_0_clamps_nothing);
    tcase_add_test(swiglu, swiglu_may_write_over_either_input);
    tcase_add_test(swiglu, swiglu_survives_the_far_ends);
    tcase_add_test(experts, one_expert_by_hand);
    tcase_add_test(experts, experts_match_the_definition);
    tcase_add_test(experts, an_expert_listed_twice_gets_both_weights);
    tcase_add_test(experts, neither_the_order_of_tokens_nor_of_choices_matters);
    tcase_add_test(experts, a_shared_expert_twice_as_wide_is_two_experts_of_weight_1);
    tcase_add_test(experts, deployed_experts_round_gate_up_weighted_product_and_result_to_bf16);
    tcase_add_test(experts, deployed_experts_of_fp4_weights_take_fp8_inputs);
    TCase *cases[] = {router, swiglu, experts};
    return run_cases("router and experts", cases, COUNT_OF(cases));
}
