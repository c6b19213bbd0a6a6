/* test_compressor_indexer.c - the pooling of a window into one row, the indexer's scores, and the
 * choice of the best rows. */
#include "support.h"

/* The operators compute in double and round once; the inputs below are exact unless said. */
#define TOLERANCE (2 * ROUNDING)

/* ---- the compressor ----------------------------------------------------------------------- */

START_TEST(pool_of_equal_weights_is_the_mean)
{
    enum { RATIO = 128, DIM = 3 };
    float kv[RATIO * DIM], z[RATIO * DIM], c[DIM];
    for (int t = 0; t < RATIO; t++)
        for (int k = 0; k < DIM; k++) {
            kv[t * DIM + k] = (float)(t * (k + 1));
            z[t * DIM + k] = (float)k - 5;
        }
    ops()->compressor_pool(NULL, NULL, kv, z, RATIO, 1, DIM, c);
    for (int k = 0; k < DIM; k++)
        ASSERT_NEAR(c[k], 63.5 * (k + 1), TOLERANCE);
}
END_TEST

START_TEST(pool_weighs_slots_by_a_softmax_per_channel)
{
    /* channel 0: weights 1/4, 3/4; channel 1: 3/4, 1/4. log(3) is rounded to float32. */
    const float l3 = (float)log(3), kv[4] = {8, 8, 16, 16}, z[4] = {0, l3, l3, 0};
    float c[2];
    ops()->compressor_pool(NULL, NULL, kv, z, 2, 1, 2, c);
    ASSERT_NEAR(c[0], 14, TOLERANCE);
    ASSERT_NEAR(c[1], 10, TOLERANCE);
    ASSERT_CAUGHT(fabs((double)c[0] - 12), TOLERANCE); /* twin: one weight for all channels */
}
END_TEST

START_TEST(pool_gives_the_row_whose_weight_dominates)
{
    enum { RATIO = 128, DIM = 4 };
    float kv[RATIO * DIM], z[RATIO * DIM], c[DIM];
    noise_fill(1, kv, RATIO * DIM, 1);
    noise_fill(2, z, RATIO * DIM, 1);
    for (int k = 0; k < DIM; k++)
        z[(17 + k) * DIM + k] = 200; /* each channel its own slot */
    ops()->compressor_pool(NULL, NULL, kv, z, RATIO, 1, DIM, c);
    for (int k = 0; k < DIM; k++)
        ck_assert(c[k] == kv[(17 + k) * DIM + k]);
}
END_TEST

enum { LANES = 2, OVERLAP = 4, WIDE = 3, WIDTH = LANES * WIDE };

typedef struct {
    float prev_kv[OVERLAP * WIDTH], prev_z[OVERLAP * WIDTH];
    float kv[OVERLAP * WIDTH], z[OVERLAP * WIDTH];
} windows;

static void windows_fill(windows *w, uint64_t seed)
{
    noise_fill(seed, w->prev_kv, OVERLAP * WIDTH, 1);
    noise_fill(seed + 1, w->prev_z, OVERLAP * WIDTH, 2);
    noise_fill(seed + 2, w->kv, OVERLAP * WIDTH, 1);
    noise_fill(seed + 3, w->z, OVERLAP * WIDTH, 2);
}

/* Written from the definition, with the halves to take as arguments: 0 = first, 1 = last. */
static void pool_by_definition(const windows *w, int prev_half, int own_half, float *c)
{
    for (int k = 0; k < WIDE; k++) {
        double sum = 0, weighted = 0;
        for (int t = 0; t < OVERLAP; t++) {
            int a = t * WIDTH + prev_half * WIDE + k, b = t * WIDTH + own_half * WIDE + k;
            double e = exp((double)w->prev_z[a]), f = exp((double)w->z[b]);
            sum += e + f;
            weighted += e * (double)w->prev_kv[a] + f * (double)w->kv[b];
        }
        c[k] = (float)(weighted / sum);
    }
}

START_TEST(two_lanes_take_the_first_half_of_the_previous_and_the_last_of_this_window)
{
    windows w;
    float c[WIDE], right[WIDE], twin[WIDE];
    windows_fill(&w, 10);
    ops()->compressor_pool(w.prev_kv, w.prev_z, w.kv, w.z, OVERLAP, LANES, WIDE, c);
    pool_by_definition(&w, 0, 1, right);
    ck_assert(largest_difference(c, right, WIDE) <= TOLERANCE);
    for (int wrong = 0; wrong < 4; wrong++) {
        if (wrong == 1)
            continue;
        pool_by_definition(&w, wrong / 2, wrong % 2, twin);
        ASSERT_CAUGHT(largest_difference(c, twin, WIDE), TOLERANCE);
    }
}
END_TEST

START_TEST(the_first_row_has_no_previous_window)
{
    windows w;
    float c[WIDE], d[WIDE];
    windows_fill(&w, 20);
    for (int k = 0; k < OVERLAP * WIDTH; k++)
        w.z[k] = 1;
    ops()->compressor_pool(NULL, NULL, w.kv, w.z, OVERLAP, LANES, WIDE, c);
    for (int k = 0; k < WIDE; k++) {
        double mean = 0, twin = 0;
        for (int t = 0; t < OVERLAP; t++) {
            mean += (double)w.kv[t * WIDTH + WIDE + k] / OVERLAP;
            twin += (double)w.kv[t * WIDTH + WIDE + k] / (2 * OVERLAP); /* zeros take a share */
        }
        ASSERT_NEAR(c[k], mean, TOLERANCE);
        ASSERT_CAUGHT(fabs(twin - mean), TOLERANCE);
    }
    for (int k = 0; k < OVERLAP * WIDTH; k++)
        w.prev_z[k] = -INFINITY; /* slots that weigh 0 are as good as none */
    ops()->compressor_pool(w.prev_kv, w.prev_z, w.kv, w.z, OVERLAP, LANES, WIDE, d);
    ck_assert(same_bits(c, d, WIDE));
}
END_TEST

START_TEST(a_slot_of_minus_infinity_has_no_share)
{
    const float kv[3] = {1, 1000, 3}, z[3] = {0, -INFINITY, 0};
    float c;
    ops()->compressor_pool(NULL, NULL, kv, z, 3, 1, 1, &c);
    ASSERT_NEAR(c, 2, TOLERANCE);
}
END_TEST

START_TEST(a_shift_of_all_weights_changes_nothing_and_overflows_nothing)
{
    enum { RATIO = 8, DIM = 2 };
    static const float shifts[] = {1024, -1024, 1e6f};
    float kv[RATIO * DIM], z[RATIO * DIM], moved[RATIO * DIM], c[DIM], d[DIM];
    noise r = {3};
    noise_fill(30, kv, RATIO * DIM, 1);
    for (int k = 0; k < RATIO * DIM; k++)
        z[k] = (float)noise_below(&r, 16) / 4; /* quarters: the shift is exact */
    ops()->compressor_pool(NULL, NULL, kv, z, RATIO, 1, DIM, c);
    for (size_t s = 0; s < COUNT_OF(shifts); s++) {
        for (int k = 0; k < RATIO * DIM; k++)
            moved[k] = z[k] + shifts[s];
        ops()->compressor_pool(NULL, NULL, kv, moved, RATIO, 1, DIM, d);
        ck_assert(same_bits(c, d, DIM));
    }
    for (int k = 0; k < RATIO * DIM; k++)
        moved[k] = k < RATIO ? 3e38f : -3e38f;
    ops()->compressor_pool(NULL, NULL, kv, moved, RATIO, 1, DIM, d);
    for (int k = 0; k < DIM; k++)
        ck_assert(isfinite(d[k]));
}
END_TEST

START_TEST(a_nan_weight_stays_in_its_channel)
{
    float kv[8], z[8] = {0}, c[2];
    noise_fill(31, kv, 8, 1);
    z[2] = NAN;
    ops()->compressor_pool(NULL, NULL, kv, z, 4, 1, 2, c);
    ck_assert(isnan(c[0]) && isfinite(c[1]));
}
END_TEST

/* ---- the indexer's scores ----------------------------------------------------------------- */

START_TEST(scores_gate_each_head_before_weighing_it)
{
    const float q[2] = {1, -1}, rows[2] = {1, -2}, w[2] = {3, 5}; /* 2 heads, dim 1 */
    float scores[2];
    ops()->indexer_scores(q, rows, w, 2, 1, 2, false, scores);
    ck_assert(scores[0] == 3);  /* 3 relu(1) + 5 relu(-1); twins: no gate -2, gate on the sum 0 */
    ck_assert(scores[1] == 10); /* 3 relu(-2) + 5 relu(2); twins: 4 and 4 */
}
END_TEST

START_TEST(negative_head_weights_make_negative_scores)
{
    const float q[2] = {2, 1}, rows[3] = {4, -4, 0}, w[2] = {-1, 0.5f};
    float scores[3];
    ops()->indexer_scores(q, rows, w, 2, 1, 3, false, scores);
    ck_assert(scores[0] == -6); /* -8 + 2: the gate is on q.row, not on the weighted term */
    ck_assert(scores[1] == 0 && scores[2] == 0);
}
END_TEST

START_TEST(scores_match_the_definition)
{
    enum { H = 5, DIM = 37, ROWS = 11 };
    float q[H * DIM], rows[ROWS * DIM], w[H], scores[ROWS], ungated[ROWS];
    noise_fill(40, q, H * DIM, 1);
    noise_fill(41, rows, ROWS * DIM, 1);
    noise_fill(42, w, H, 1);
    ops()->indexer_scores(q, rows, w, H, DIM, ROWS, false, scores);
    for (int j = 0; j < ROWS; j++) {
        double sum = 0, twin = 0;
        for (int h = 0; h < H; h++) {
            double dot = 0;
            for (int k = 0; k < DIM; k++)
                dot += (double)q[h * DIM + k] * (double)rows[j * DIM + k];
            sum += (double)w[h] * fmax(dot, 0);
            twin += (double)w[h] * dot;
        }
        ASSERT_NEAR(scores[j], sum, TOLERANCE);
        ungated[j] = (float)twin;
    }
    ASSERT_CAUGHT(distance(ungated, scores, ROWS), TOLERANCE);
}
END_TEST

START_TEST(scores_keep_a_nan_and_write_no_more_than_their_rows)
{
    const float q[2] = {1, 1}, rows[4] = {1, NAN, 1, 1}, w[1] = {1};
    float scores[3] = {0, 0, 77};
    ops()->indexer_scores(q, rows, w, 1, 2, 2, false, scores);
    ck_assert(isnan(scores[0]) && scores[1] == 2 && scores[2] == 77);
    ops()->indexer_scores(q, rows, w, 1, 2, 0, false, scores + 2);
    ck_assert(scores[2] == 77);
}
END_TEST

START_TEST(scores_in_bf16_round_product_term_and_sum)
{
    float score;
    const float one[1] = {1}, just_above[1] = {1 + 0x1p-9f};
    ops()->indexer_scores(just_above, one, one, 1, 1, 1, true, &score);
    ck_assert(score == 1); /* the product */
    ops()->indexer_scores(just_above, one, one, 1, 1, 1, false, &score);
    ck_assert(score == 1 + 0x1p-9f);      /* twin */
    const float third[1] = {1 + 0x1p-7f}; /* squared: 1 + 2^-6 + 2^-14 */
    ops()->indexer_scores(third, one, third, 1, 1, 1, true, &score);
    ck_assert(score == 1 + 0x1p-6f);                 /* the term */
    const float two[2] = {256, 1}, ones[2] = {1, 1}; /* 257: a tie between 256 and 258 */
    ops()->indexer_scores(two, one, ones, 2, 1, 1, true, &score);
    ck_assert(score == 256); /* the sum */
}
END_TEST

START_TEST(index_weights_are_scaled_by_the_roots_of_dim_and_heads)
{
    float w[4] = {1, 2, -4, 77};
    ops()->index_weights(w, 1, 3, 128);
    for (int k = 0; k < 3; k++) /* the scale and the product: two roundings */
        ASSERT_NEAR(w[k] / (k == 0 ? 1.0f : k == 1 ? 2.0f : -4.0f), 1 / sqrt(128.0 * 3), TOLERANCE);
    ck_assert(w[3] == 77);
    ASSERT_CAUGHT(fabs(1 / sqrt(128.0) - (double)w[0]), TOLERANCE); /* twin: dim alone */
}
END_TEST

/* ---- the choice --------------------------------------------------------------------------- */

static void expect_topk(const float *scores, int64_t n, int k, const int32_t *right)
{
    int32_t out[16];
    for (int i = 0; i < 16; i++)
        out[i] = 77;
    ops()->topk(scores, n, k, out);
    for (int i = 0; i < k; i++)
        ck_assert_msg(out[i] == right[i], "k = %d: place %d is row %d, expected %d", k, i, out[i],
                      right[i]);
    ck_assert(out[k] == 77);
}

START_TEST(topk_is_best_first)
{
    const float s[5] = {-1, 3, 2, -INFINITY, INFINITY};
    expect_topk(s, 5, 1, (const int32_t[]){4});
    expect_topk(s, 5, 3, (const int32_t[]){4, 1, 2});
    expect_topk(s, 5, 5, (const int32_t[]){4, 1, 2, 0, 3});
}
END_TEST

START_TEST(topk_breaks_ties_by_the_lowest_row)
{
    const float equal[5] = {2, 2, 2, 2, 2}, mixed[6] = {1, 5, 1, 5, 1, 5};
    expect_topk(equal, 5, 1, (const int32_t[]){0});
    expect_topk(equal, 5, 3, (const int32_t[]){0, 1, 2});
    expect_topk(equal, 5, 5, (const int32_t[]){0, 1, 2, 3, 4});
    expect_topk(mixed, 6, 2, (const int32_t[]){1, 3}); /* twin, highest first: 5, 3 */
    expect_topk(mixed, 6, 4, (const int32_t[]){1, 3, 5, 0});
}
END_TEST

START_TEST(topk_takes_both_zeros_for_equal)
{
    const float s[4] = {-0.0f, 0.0f, -0.0f, 0.0f};
    expect_topk(s, 4, 4, (const int32_t[]){0, 1, 2, 3}); /* twin, by bits: 1, 3 first */
}
END_TEST

START_TEST(topk_puts_a_nan_last)
{
    const float s[5] = {NAN, -INFINITY, NAN, 1, NAN};
    expect_topk(s, 5, 2, (const int32_t[]){3, 1});
    expect_topk(s, 5, 5, (const int32_t[]){3, 1, 0, 2, 4});
}
END_TEST

START_TEST(topk_fills_up_with_minus_1)
{
    const float s[2] = {1, 2};
    expect_topk(s, 2, 4, (const int32_t[]){1, 0, -1, -1});
    expect_topk(s, 0, 3, (const int32_t[]){-1, -1, -1});
    expect_topk(s, 2, 0, NULL);
}
END_TEST

/* The place of row j by definition: the rows better than it, and the equal ones before it (after
 * it, for the twin). */
static int place_of(const float *s, int n, int j, bool highest_first)
{
    int place = 0;
    for (int i = 0; i < n; i++) {
        bool better = !isnan(s[i]) && (isnan(s[j]) || s[i] > s[j]);
        bool equal = isnan(s[i]) ? isnan(s[j]) : s[i] == s[j];
        place += better || (equal && (highest_first ? i > j : i < j));
    }
    return place;
}

START_TEST(topk_matches_a_ranking_by_counting)
{
    enum { MOST = 40 };
    int caught = 0;
    for (int round = 0; round < 300; round++) {
        noise r = {(uint64_t)round};
        int n = 1 + noise_below(&r, MOST), k = 1 + noise_below(&r, n), wrong = 0;
        float s[MOST];
        int32_t out[MOST];
        for (int j = 0; j < n; j++) /* few values: many ties */
            s[j] = noise_below(&r, 8) == 0 ? NAN : (float)(noise_below(&r, 7) - 3);
        ops()->topk(s, n, k, out);
        for (int j = 0; j < n; j++) {
            int place = place_of(s, n, j, false), other = place_of(s, n, j, true);
            ck_assert(place >= k || out[place] == j);
            wrong += other < k && out[other] != j;
        }
        caught += wrong > 0;
    }
    ck_assert_int_gt(caught, 200); /* the twin: ties by the highest row */
}
END_TEST

int main(void)
{
    TCase *pool = tcase_create("compressor"), *scores = tcase_create("indexer");
    TCase *choice = tcase_create("top k");
    tcase_add_test(pool, pool_of_equal_weights_is_the_mean);
    tcase_add_test(pool, pool_weighs_slots_by_a_softmax_per_channel);
    tcase_add_test(pool, pool_gives_the_row_whose_weight_dominates);
    tcase_add_test(pool, two_lanes_take_the_first_half_of_the_previous_and_the_last_of_this_window);
    tcase_add_test(pool, the_first_row_has_no_previous_window);
    tcase_add_test(pool, a_slot_of_minus_infinity_has_no_share);
    tcase_add_test(pool, a_shift_of_all_weights_changes_nothing_and_overflows_nothing);
    tcase_add_test(pool, a_nan_weight_stays_in_its_channel);
    tcase_add_test(scores, scores_gate_each_head_before_weighing_it);
    tcase_add_test(scores, negative_head_weights_make_negative_scores);
    tcase_add_test(scores, scores_match_the_definition);
    tcase_add_test(scores, scores_keep_a_nan_and_write_no_more_than_their_rows);
    tcase_add_test(scores, scores_in_bf16_round_product_term_and_sum);
    tcase_add_test(scores, index_weights_are_scaled_by_the_roots_of_dim_and_heads);
    tcase_add_test(choice, topk_is_best_first);
    tcase_add_test(choice, topk_breaks_ties_by_the_lowest_row);
    tcase_add_test(choice, topk_takes_both_zeros_for_equal);
    tcase_add_test(choice, topk_puts_a_nan_last);
    tcase_add_test(choice, topk_fills_up_with_minus_1);
    tcase_add_test(choice, topk_matches_a_ranking_by_counting);
    TCase *cases[] = {pool, scores, choice};
    return run_cases("compressor and indexer", cases, COUNT_OF(cases));
}
