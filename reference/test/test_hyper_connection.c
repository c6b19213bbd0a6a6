/* test_hyper_connection.c - mHC: the mixes, their gates, the Sinkhorn normalisation of comb, and
 * the ways into and out of a block. */
#include "support.h"

/* The operators compute in double; what is left is the float32 of the inputs (logarithms below are
 * rounded to float32: at most 1.1 * 2^-24 of a softmax weight) and of the result. */
#define GATE_TOLERANCE (4 * ROUNDING)

enum { HC = 4, MIXES = (2 + HC) * HC };

/* The gates of one token whose mixes are all in `base`. */
static void gates_of(const float *base, int hc, int iters, float eps, float *pre, float *post,
                     float *comb)
{
    const float m[MIXES] = {0}, scale[3] = {1, 1, 1};
    ops()->hc_gates(m, scale, base, 1, hc, iters, eps, pre, post, comb);
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* ---- gates -------------------------------------------------------------------------------- */

START_TEST(gates_take_mix_times_scale_plus_base)
{
    float m[MIXES], base[MIXES], pre[HC], post[HC], comb[HC * HC], other[HC * HC];
    const float scale[3] = {0.5f, -2, 3}, eps = 0.25f;
    double twin = 0;
    noise_fill(1, m, MIXES, 2);
    noise_fill(2, base, MIXES, 1);
    ops()->hc_gates(m, scale, base, 1, HC, 20, eps, pre, post, comb);
    for (int j = 0; j < HC; j++) {
        double in = sigmoid(0.5 * (double)m[j] + (double)base[j]);
        double out = sigmoid(-2.0 * (double)m[HC + j] + (double)base[HC + j]);
        ASSERT_NEAR(pre[j], in + 0.25, GATE_TOLERANCE); /* with eps, without the factor 2 */
        ASSERT_NEAR(post[j], 2 * out, GATE_TOLERANCE);  /* with the factor 2, without eps */
        ASSERT_CAUGHT(fabs((double)post[j] - out), GATE_TOLERANCE);              /* no factor */
        ASSERT_CAUGHT(fabs((double)post[j] - (2 * out + 0.25)), GATE_TOLERANCE); /* eps here too */
        ASSERT_CAUGHT(fabs((double)pre[j] - in), GATE_TOLERANCE);                /* no eps */
        double crossed = sigmoid(-2.0 * (double)m[j] + (double)base[j]) + 0.25;
        twin = fmax(twin, fabs((double)pre[j] - crossed));
    }
    ASSERT_CAUGHT(twin, GATE_TOLERANCE); /* the second scale for the first gate */
    for (int k = 0; k < HC * HC; k++)    /* comb: the same logits given as a base */
        base[2 * HC + k] += 3 * m[2 * HC + k];
    gates_of(base, HC, 20, eps, pre, post, other);
    ck_assert(largest_difference(comb, other, HC * HC) <= 8 * GATE_TOLERANCE); /* logits up to 7 */
}
END_TEST

START_TEST(gates_saturate_at_eps_and_at_0_and_2)
{
    float base[MIXES], pre[HC], post[HC], comb[HC * HC];
    for (int sign = -1; sign <= 1; sign += 2) {
        for (int k = 0; k < MIXES; k++)
            base[k] = (float)sign * 1e4f;
        gates_of(base, HC, 20, 1e-6f, pre, post, comb);
        for (int j = 0; j < HC; j++) {
            ck_assert(pre[j] == (sign < 0 ? 1e-6f : (float)(1 + (double)1e-6f)));
            ck_assert(post[j] == (sign < 0 ? 0.0f : 2.0f));
        }
    }
}
END_TEST

START_TEST(gates_keep_tokens_apart)
{
    enum { N = 3 };
    float m[N * MIXES], base[MIXES], pre[N * HC], post[N * HC], comb[N * HC * HC];
    float pre1[HC], post1[HC], comb1[HC * HC];
    const float scale[3] = {1, 0.5f, 2};
    noise_fill(3, m, N * MIXES, 1);
    noise_fill(4, base, MIXES, 1);
    ops()->hc_gates(m, scale, base, N, HC, 20, 1e-6f, pre, post, comb);
    for (int i = 0; i < N; i++) {
        ops()->hc_gates(m + i * MIXES, scale, base, 1, HC, 20, 1e-6f, pre1, post1, comb1);
        ck_assert(same_bits(pre1, pre + i * HC, HC));
        ck_assert(same_bits(post1, post + i * HC, HC));
        ck_assert(same_bits(comb1, comb + i * HC * HC, HC * HC));
    }
    pre[0] = 77;
    ops()->hc_gates(m, scale, base, 0, HC, 20, 1e-6f, pre, post, comb);
    ck_assert(pre[0] == 77);
}
END_TEST

START_TEST(head_gates_are_a_sigmoid_plus_eps_with_one_scale)
{
    const float m[4] = {1, -1, 0, 3}, scale[1] = {2}, base[2] = {0.5f, -0.25f};
    float pre[4];
    ops()->hc_head_gates(m, scale, base, 2, 2, 0.125f, pre);
    for (int k = 0; k < 4; k++)
        ASSERT_NEAR(pre[k], sigmoid(2.0 * (double)m[k] + (double)base[k % 2]) + 0.125,
                    GATE_TOLERANCE);
}
END_TEST

/* ---- comb by hand ------------------------------------------------------------------------- */

enum { COMB2 = 4 }; /* where comb starts among the 8 mixes of hc = 2 */

START_TEST(comb_of_equal_logits_shows_every_eps)
{
    const float base[8] = {0};
    float pre[2], post[2], comb[4];
    /* softmax 1/2, + 1/4; column sum 3/2, + 1/4: (3/4) / (7/4) */
    gates_of(base, 2, 1, 0.25f, pre, post, comb);
    for (int k = 0; k < 4; k++)
        ASSERT_NEAR(comb[k], 3.0 / 7, GATE_TOLERANCE);
    /* row sum 6/7, + 1/4: 12/31; column sum 24/31, + 1/4: 48/127 */
    gates_of(base, 2, 2, 0.25f, pre, post, comb);
    for (int k = 0; k < 4; k++)
        ASSERT_NEAR(comb[k], 48.0 / 127, GATE_TOLERANCE);
    ASSERT_CAUGHT(fabs(48.0 / 127 - 0.5), GATE_TOLERANCE);       /* twin: no eps at all */
    ASSERT_CAUGHT(fabs(48.0 / 127 - 12.0 / 31), GATE_TOLERANCE); /* twin: a pass too few */
}
END_TEST

START_TEST(comb_is_a_softmax_along_rows_and_then_a_column_pass)
{
    float base[8] = {0}, pre[2], post[2], comb[4];
    base[COMB2] = (float)log(3); /* rows: 3/4 1/4; 1/2 1/2 */
    gates_of(base, 2, 1, 0, pre, post, comb);
    const float once[4] = {0.6f, 1.0f / 3, 0.4f, 2.0f / 3};
    ck_assert(largest_difference(comb, once, 4) <= GATE_TOLERANCE);
    const float transposed[4] = {0.6f, 0.4f, 1.0f / 3, 2.0f / 3}; /* twin */
    ASSERT_CAUGHT(largest_difference(comb, transposed, 4), GATE_TOLERANCE);
    const float no_column_pass[4] = {0.75f, 0.25f, 0.5f, 0.5f}; /* twin */
    ASSERT_CAUGHT(largest_difference(comb, no_column_pass, 4), GATE_TOLERANCE);
}
END_TEST

START_TEST(comb_of_two_iterations_normalises_rows_before_columns)
{
    float base[8] = {0}, pre[2], post[2], comb[4];
    base[COMB2] = (float)log(3);
    /* rows of the case above: 14/15 and 16/15 -> 9/14 5/14; 3/8 5/8; columns: 57/56 and 55/56 */
    gates_of(base, 2, 2, 0, pre, post, comb);
    const float twice[4] = {36.0f / 57, 20.0f / 55, 21.0f / 57, 35.0f / 55};
    ck_assert(largest_difference(comb, twice, 4) <= GATE_TOLERANCE);
    const float rows_last[4] = {9.0f / 14, 5.0f / 14, 3.0f / 8, 5.0f / 8}; /* twin */
    ASSERT_CAUGHT(largest_difference(comb, rows_last, 4), GATE_TOLERANCE);
}
END_TEST

/* ---- Sinkhorn ----------------------------------------------------------------------------- */

/* How far the worst column (row) sum of comb is from 1. */
static double column_error(const float *comb, int hc)
{
    double most = 0;
    for (int b = 0; b < hc; b++) {
        double sum = 0;
        for (int a = 0; a < hc; a++)
            sum += (double)comb[a * hc + b];
        most = fmax(most, fabs(sum - 1));
    }
    return most;
}

static double row_error(const float *comb, int hc)
{
    double most = 0;
    for (int a = 0; a < hc; a++) {
        double sum = 0;
        for (int b = 0; b < hc; b++)
            sum += (double)comb[a * hc + b];
        most = fmax(most, fabs(sum - 1));
    }
    return most;
}

START_TEST(columns_sum_to_1_less_eps_and_rows_come_close_after_20_iterations)
{
    const float eps = 1e-6f;
    float base[MIXES], pre[HC], post[HC], comb[HC * HC];
    for (uint64_t seed = 0; seed < 50; seed++) {
        noise_fill(seed, base, MIXES, 1);
        gates_of(base, HC, 20, eps, pre, post, comb);
        /* The last pass leaves sum / (sum + eps) = 1 - 1e-6; four roundings of entries below 1. */
        ck_assert(column_error(comb, HC) <= 1e-6 + 4 * ROUNDING);
        ck_assert(column_error(comb, HC) >= 1e-6 - 4 * ROUNDING);
        /* Rows converge geometrically; with logits within 1 they are there, but for the eps. */
        ck_assert(row_error(comb, HC) <= 2e-6);
        for (int k = 0; k < HC * HC; k++)
            ck_assert(comb[k] > 0 && comb[k] < 1);
        gates_of(base, HC, 1, eps, pre, post, comb);
        ASSERT_CAUGHT(row_error(comb, HC), 2e-6); /* twin: one iteration */
    }
}
END_TEST

START_TEST(comb_tends_to_a_doubly_stochastic_matrix)
{
    float base[MIXES], pre[HC], post[HC], comb[HC * HC];
    noise_fill(5, base, MIXES, 6);
    gates_of(base, HC, 2000, 0, pre, post, comb);
    ck_assert(column_error(comb, HC) <= 4 * ROUNDING); /* four rounded entries */
    ck_assert(row_error(comb, HC) <= 4 * ROUNDING);
    /* Sinkhorn scales rows and columns: cross ratios stay those of exp(logits). */
    const float *C = base + 2 * HC;
    for (int a = 1; a < HC; a++)
        for (int b = 1; b < HC; b++) {
            double ratio = log((double)comb[0] * (double)comb[a * HC + b] /
                               ((double)comb[b] * (double)comb[a * HC]));
            double logits = (double)C[0] + (double)C[a * HC + b] - (double)C[b] - (double)C[a * HC];
            ASSERT_NEAR(ratio, logits, 4 * ROUNDING);
        }
}
END_TEST

START_TEST(logits_of_a_permutation_give_that_permutation)
{
    static const int to[HC] = {2, 0, 3, 1};
    float base[MIXES] = {0}, pre[HC], post[HC], comb[HC * HC];
    for (int a = 0; a < HC; a++)
        base[2 * HC + a * HC + to[a]] = 100;
    gates_of(base, HC, 20, 1e-6f, pre, post, comb);
    double twin = 0;
    for (int a = 0; a < HC; a++)
        for (int b = 0; b < HC; b++) {
            ASSERT_NEAR(comb[a * HC + b], b == to[a], 1e-5); /* eps beside a 1, HC times */
            twin = fmax(twin, fabs((double)comb[b * HC + a] - (b == to[a])));
        }
    ASSERT_CAUGHT(twin, 1e-5); /* transposed */
}
END_TEST

START_TEST(huge_logits_give_numbers_between_0_and_1)
{
    float base[MIXES], pre[HC], post[HC], comb[HC * HC];
    for (uint64_t seed = 0; seed < 20; seed++) {
        noise r = {seed};
        for (int k = 0; k < MIXES; k++)
            base[k] = noise_below(&r, 2) ? 1e4f : -1e4f;
        gates_of(base, HC, 20, 1e-6f, pre, post, comb);
        for (int k = 0; k < HC * HC; k++)
            ck_assert(comb[k] >= 0 && comb[k] <= 1);
        ck_assert(column_error(comb, HC) <= 1e-5); /* a column of eps alone: 4 of 5 eps are left */
    }
    for (int a = 0; a < HC; a++) /* every row wants the same column */
        for (int b = 0; b < HC; b++)
            base[2 * HC + a * HC + b] = b == 1 ? 1e4f : -1e4f;
    gates_of(base, HC, 20, 1e-6f, pre, post, comb);
    for (int k = 0; k < HC * HC; k++)
        ASSERT_NEAR(comb[k], 0.25, 0.05); /* symmetric rows; eps is felt where all is eps */
}
END_TEST

/* ---- mixes, collapse, post ---------------------------------------------------------------- */

START_TEST(mixes_are_products_over_the_root_mean_square_of_all_streams)
{
    const float streams[4] = {3, 4, 0, 0}; /* mean square 25/4 */
    const float rows[8] = {1, 0, 0, 0, 0, 1, 1, 1};
    float m[2];
    dsv4_tensor fn = matrix(rows, 2, 4);
    ops()->hc_mix(&fn, streams, 0, 1, m);
    ASSERT_NEAR(m[0], 3 / 2.5, 4 * ROUNDING); /* product, mean, root, product */
    ASSERT_NEAR(m[1], 4 / 2.5, 4 * ROUNDING);
    ASSERT_CAUGHT(fabs(3 / sqrt(12.5) - 3 / 2.5), 4 * ROUNDING); /* twin: a norm per stream */
    ops()->hc_mix(&fn, streams, 93.75f, 1, m);                   /* mean + eps = 100 */
    ASSERT_NEAR(m[0], 0.3, 4 * ROUNDING);
}
END_TEST

START_TEST(mixes_keep_tokens_apart)
{
    enum { N = 3, WIDTH = HC * 9 };
    float streams[N * WIDTH], w[MIXES * WIDTH], m[N * MIXES], one[MIXES];
    noise_fill(6, streams, N * WIDTH, 2);
    noise_fill(7, w, MIXES * WIDTH, 1);
    dsv4_tensor fn = matrix(w, MIXES, WIDTH);
    ops()->hc_mix(&fn, streams, 1e-6f, N, m);
    for (int i = 0; i < N; i++) {
        ops()->hc_mix(&fn, streams + i * WIDTH, 1e-6f, 1, one);
        ck_assert(same_bits(one, m + i * MIXES, MIXES));
    }
}
END_TEST

START_TEST(collapse_is_a_sum_of_streams_weighted_by_pre)
{
    const float streams[2 * 2 * 3] = {1, 2, 3, 10, 20, 30, 1, 1, 1, 5, 5, 5};
    const float pre[4] = {2, 0.5f, -1, 1};
    const float right[6] = {7, 14, 21, 4, 4, 4};
    float x[6];
    ops()->hc_collapse(streams, pre, 2, 2, 3, x);
    ck_assert(same_bits(x, right, 6));
}
END_TEST

START_TEST(post_sums_comb_over_its_first_index)
{
    const float streams[2] = {1, 10}, comb[4] = {1, 2, 3, 4}, post[2] = {100, 200}, block[1] = {1};
    float out[2];
    ops()->hc_post(block, streams, post, comb, 1, 2, 1, out);
    const float right[2] = {100 + 1 * 1 + 3 * 10, 200 + 2 * 1 + 4 * 10};
    ck_assert(same_bits(out, right, 2));
    const float twin[2] = {100 + 1 * 1 + 2 * 10, 200 + 3 * 1 + 4 * 10}; /* over its second */
    ASSERT_CAUGHT(distance(twin, right, 2), ROUNDING);
}
END_TEST

START_TEST(a_doubly_stochastic_comb_keeps_the_sum_of_the_streams)
{
    enum { DIM = 17 };
    float base[MIXES], pre[HC], post[HC], comb[HC * HC], streams[HC * DIM], block[DIM];
    float out[HC * DIM];
    noise_fill(8, base, MIXES, 3);
    noise_fill(9, streams, HC * DIM, 1);
    noise_fill(10, block, DIM, 1);
    gates_of(base, HC, 2000, 0, pre, post, comb);
    memset(post, 0, sizeof post);
    ops()->hc_post(block, streams, post, comb, 1, HC, DIM, out);
    for (int k = 0; k < DIM; k++) {
        double before = 0, after = 0;
        for (int j = 0; j < HC; j++) {
            before += (double)streams[j * DIM + k];
            after += (double)out[j * DIM + k];
        }
        ASSERT_NEAR(after, before, 3 * HC * ROUNDING); /* rounded entries, rounded results */
    }
}
END_TEST

START_TEST(post_keeps_tokens_and_channels_apart)
{
    enum { N = 2, DIM = 5 };
    float streams[N * HC * DIM], block[N * DIM], post[N * HC], comb[N * HC * HC];
    float out[N * HC * DIM];
    noise_fill(11, streams, N * HC * DIM, 1);
    noise_fill(12, block, N * DIM, 1);
    noise_fill(13, post, N * HC, 1);
    noise_fill(14, comb, N * HC * HC, 1);
    ops()->hc_post(block, streams, post, comb, N, HC, DIM, out);
    for (int i = 0; i < N; i++)
        for (int b = 0; b < HC; b++)
            for (int k = 0; k < DIM; k++) {
                double sum = (double)post[i * HC + b] * (double)block[i * DIM + k];
                for (int a = 0; a < HC; a++)
                    sum += (double)comb[i * HC * HC + a * HC + b] *
                           (double)streams[(i * HC + a) * DIM + k];
                ASSERT_NEAR(out[(i * HC + b) * DIM + k], sum, ROUNDING);
            }
}
END_TEST

START_TEST(a_nan_stays_in_its_token)
{
    float m[2 * MIXES] = {0}, pre[2 * HC], post[2 * HC], comb[2 * HC * HC];
    const float base[MIXES] = {0}, scale[3] = {1, 1, 1};
    m[1] = m[HC] = m[2 * HC] = NAN;
    ops()->hc_gates(m, scale, base, 2, HC, 20, 1e-6f, pre, post, comb);
    ck_assert(isnan(pre[1]) && isnan(post[0]) && isnan(comb[0]));
    for (int k = 0; k < HC; k++)
        ck_assert(isfinite(pre[HC + k]) && isfinite(post[HC + k]));
    for (int k = 0; k < HC * HC; k++)
        ck_assert(isfinite(comb[HC * HC + k]));
}
END_TEST

int main(void)
{
    TCase *gates = tcase_create("gates"), *comb = tcase_create("comb");
    TCase *streams = tcase_create("streams");
    tcase_add_test(gates, gates_take_mix_times_scale_plus_base);
    tcase_add_test(gates, gates_saturate_at_eps_and_at_0_and_2);
    tcase_add_test(gates, gates_keep_tokens_apart);
    tcase_add_test(gates, head_gates_are_a_sigmoid_plus_eps_with_one_scale);
    tcase_add_test(gates, a_nan_stays_in_its_token);
    tcase_add_test(comb, comb_of_equal_logits_shows_every_eps);
    tcase_add_test(comb, comb_is_a_softmax_along_rows_and_then_a_column_pass);
    tcase_add_test(comb, comb_of_two_iterations_normalises_rows_before_columns);
    tcase_add_test(comb, columns_sum_to_1_less_eps_and_rows_come_close_after_20_iterations);
    tcase_add_test(comb, comb_tends_to_a_doubly_stochastic_matrix);
    tcase_add_test(comb, logits_of_a_permutation_give_that_permutation);
    tcase_add_test(comb, huge_logits_give_numbers_between_0_and_1);
    tcase_add_test(streams, mixes_are_products_over_the_root_mean_square_of_all_streams);
    tcase_add_test(streams, mixes_keep_tokens_apart);
    tcase_add_test(streams, collapse_is_a_sum_of_streams_weighted_by_pre);
    tcase_add_test(streams, post_sums_comb_over_its_first_index);
    tcase_add_test(streams, a_doubly_stochastic_comb_keeps_the_sum_of_the_streams);
    tcase_add_test(streams, post_keeps_tokens_and_channels_apart);
    TCase *cases[] = {gates, comb, streams};
    return run_cases("hyper connection", cases, COUNT_OF(cases));
}
