/* test_compare.c - the comparator against sums written down by hand and by a naive pass in long
 * double; selections against gaps worked out on paper. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness/harness.h"

static void close_to(double actual, double expected, double relative)
{
    if (!(fabs(actual - expected) <= relative * fabs(expected)))
        fail_msg("expected %.17g, found %.17g", expected, actual);
}

static compare_sums row(const float *e, const float *a, int64_t n, double *rel)
{
    compare_sums s;
    compare_reset(&s);
    double r = compare_row(&s, e, a, n, n, 0, 7);
    if (rel != NULL)
        *rel = r;
    return s;
}

/* ---- rows ---------------------------------------------------------------------------------- */

static void test_nothing(void **state)
{
    (void)state;
    compare_sums s;
    compare_reset(&s);
    assert_int_equal(s.n, 0);
    assert_int_equal(s.rows, 0);
    assert_int_equal(s.max_position, -1);
    assert_int_equal(s.max_index, -1);
    assert_int_equal(s.worst_position, -1);
    assert_true(compare_rel_l2(&s) == 0);
    assert_true(compare_cosine(&s) == 1);
    /* A row without elements is a row all the same. */
    assert_true(compare_row(&s, NULL, NULL, 0, 1, 0, 3) == 0);
    assert_int_equal(s.rows, 1);
    assert_int_equal(s.n, 0);
    assert_int_equal(s.max_position, -1);
    assert_int_equal(s.worst_position, 3);
}

static void test_equal_rows(void **state)
{
    (void)state;
    static const float x[4] = {1.5f, -2, 0, FLT_MAX};
    double rel;
    compare_sums s = row(x, x, 4, &rel);
    assert_true(rel == 0);
    assert_true(compare_rel_l2(&s) == 0);
    assert_true(s.max_abs == 0);
    assert_int_equal(s.nonfinite, 0);
    assert_int_equal(s.n, 4);
    close_to(compare_cosine(&s), 1, 1e-15);
}

static void test_known_values(void **state)
{
    (void)state;
    static const float e[4] = {1, 2, 2, 4}, a[4] = {1, 2, 5, 0}; /* |e| = 5, |d| = 5 */
    double rel;
    compare_sums s = row(e, a, 4, &rel);
    close_to(rel, 1, 1e-15);
    close_to(compare_rel_l2(&s), 1, 1e-15);
    close_to(compare_cosine(&s), (1 + 4 + 10) / (5 * sqrt(1 + 4 + 25)), 1e-15);
    assert_true(s.max_abs == 4);
    assert_int_equal(s.max_position, 7);
    assert_int_equal(s.max_index, 3);
    assert_true(s.max_expected == 4 && s.max_actual == 0);
    static const float x[2] = {3, 4}, opposite[2] = {-3, -4}, across[2] = {-4, 3};
    s = row(x, opposite, 2, &rel);
    close_to(rel, 2, 1e-15);
    close_to(compare_cosine(&s), -1, 1e-15);
    s = row(x, across, 2, &rel);
    close_to(rel, sqrt(2), 1e-15);
    assert_true(compare_cosine(&s) == 0);
}

/* Squares of single floats overflow float and underflow it; the sums must do neither. */
static void test_range(void **state)
{
    (void)state;
    static const float big[2] = {FLT_MAX, -FLT_MAX}, half[2] = {FLT_MAX / 2, -FLT_MAX / 2};
    static const float tiny[2] = {FLT_TRUE_MIN, 0}, two[2] = {2 * FLT_TRUE_MIN, 0};
    double rel;
    compare_sums s = row(big, half, 2, &rel);
    close_to(rel, 0.5, 1e-7);
    close_to(compare_cosine(&s), 1, 1e-12);
    s = row(tiny, two, 2, &rel);
    close_to(rel, 1, 1e-15);
    close_to(compare_cosine(&s), 1, 1e-12);
}

static void test_zero_rows(void **state)
{
    (void)state;
    static const float zero[2] = {0, -0.0f}, x[2] = {0, 1e-30f};
    double rel;
    compare_sums s = row(zero, zero, 2, &rel);
    assert_true(rel == 0);
    assert_true(compare_cosine(&s) == 1);
    s = row(zero, x, 2, &rel); /* x / 0 */
    assert_true(isinf(rel));
    assert_true(isinf(compare_rel_l2(&s)));
    assert_true(compare_cosine(&s) == 0);
    s = row(x, zero, 2, &rel);
    close_to(rel, 1, 1e-12);
    assert_true(compare_cosine(&s) == 0);
}

static void test_masks(void **state)
{
    (void)state;
    const float e[5] = {1, NAN, INFINITY, -INFINITY, 2};
    double rel;
    compare_sums s = row(e, e, 5, &rel); /* the same masks: the finite rest is compared */
    assert_true(rel == 0);
    assert_int_equal(s.nonfinite, 0);
    assert_true(compare_rel_l2(&s) == 0);
    close_to(compare_cosine(&s), 1, 1e-15);

    const float other[][5] = {{1, 0, INFINITY, -INFINITY, 2},
                              {1, NAN, -INFINITY, -INFINITY, 2},
                              {1, NAN, INFINITY, INFINITY, 2},
                              {1, NAN, NAN, -INFINITY, 2},
                              {1, NAN, INFINITY, -INFINITY, NAN}};
    static const int64_t at[] = {1, 2, 3, 2, 4};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        s = row(e, other[i], 5, &rel);
        assert_true(isinf(rel));
        assert_int_equal(s.nonfinite, 1);
        assert_true(isinf(compare_rel_l2(&s)));
        assert_true(isinf(s.max_abs));
        assert_int_equal(s.max_index, at[i]);
        assert_memory_equal(&s.max_expected, &e[at[i]], sizeof(float));
        assert_memory_equal(&s.max_actual, &other[i][at[i]], sizeof(float));
        assert_true(isinf(s.worst_row));
    }
    /* The first difference of masks is kept, whatever finite differences surround it. */
    const float golden[4] = {1, 1, 1, 1}, wrong[4] = {100, NAN, INFINITY, 1000};
    s = row(golden, wrong, 4, &rel);
    assert_int_equal(s.nonfinite, 2);
    assert_int_equal(s.max_index, 1);
}

static void test_tail(void **state)
{
    (void)state;
    /* Two heads of width 4, of which the last 2 columns turn. */
    static const float e[8] = {0}, a[8] = {1, 0, 2, 0, 0, 3, 0, 4};
    compare_sums s;
    compare_reset(&s);
    compare_row(&s, e, a, 8, 4, 2, 0);
    assert_true(s.head_dd == 1 + 9);
    assert_true(s.tail_dd == 4 + 16);
    compare_reset(&s);
    compare_row(&s, e, a, 8, 4, 0, 0);
    assert_true(s.head_dd == 30 && s.tail_dd == 0);
    compare_reset(&s);
    compare_row(&s, e, a, 8, 8, 8, 0); /* every column turns */
    assert_true(s.head_dd == 0 && s.tail_dd == 30);
}

static void test_worst_row(void **state)
{
    (void)state;
    static const float e[3][2] = {{1, 0}, {100, 0}, {0, 1}};
    static const float a[3][2] = {{1.1f, 0}, {101, 0}, {0, 1.5f}};
    compare_sums s;
    compare_reset(&s);
    for (int i = 0; i < 3; i++)
        compare_row(&s, e[i], a[i], 2, 2, 0, 10 + i);
    close_to(s.worst_row, 0.5, 1e-12);
    assert_int_equal(s.worst_position, 12); /* relative */
    assert_int_equal(s.max_position, 11);   /* absolute */
    assert_int_equal(s.max_index, 0);
    assert_true(s.max_expected == 100 && s.max_actual == 101);
    assert_int_equal(s.rows, 3);
    assert_int_equal(s.n, 6);
}

/* ---- random rows against a naive pass -------------------------------------------------------- */

static uint64_t seed;

static float uniform(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(seed >> 11) / 9007199254740992.0 * 2 - 1);
}

enum { ROWS = 37, WIDTH = 96, HEAD = 24, TAIL = 10 };

static void fill(float e[ROWS][WIDTH], float a[ROWS][WIDTH])
{
    for (int i = 0; i < ROWS; i++)
        for (int k = 0; k < WIDTH; k++) {
            e[i][k] = ldexpf(uniform(), i % 11 - 5);
            a[i][k] = e[i][k] * (1 + 1e-3f * uniform());
        }
}

static void test_naive(void **state)
{
    (void)state;
    static float e[ROWS][WIDTH], a[ROWS][WIDTH];
    for (seed = 1; seed < 6; seed++) {
        uint64_t kept = seed;
        compare_sums s;
        compare_reset(&s);
        fill(e, a);
        long double dd = 0, ee = 0, aa = 0, ea = 0, tail = 0, worst = -1, largest = -1;
        int64_t worst_at = -1, max_row = -1, max_column = -1;
        for (int i = 0; i < ROWS; i++) {
            long double rd = 0, re = 0;
            for (int k = 0; k < WIDTH; k++) {
                long double x = e[i][k], y = a[i][k], d = y - x;
                rd += d * d;
                re += x * x;
                aa += y * y;
                ea += x * y;
                tail += k % HEAD >= HEAD - TAIL ? d * d : 0;
                if (fabsl(d) > largest) {
                    largest = fabsl(d);
                    max_row = i;
                    max_column = k;
                }
            }
            if (sqrtl(rd / re) > worst) {
                worst = sqrtl(rd / re);
                worst_at = i;
            }
            dd += rd;
            ee += re;
            double rel = compare_row(&s, e[i], a[i], WIDTH, HEAD, TAIL, i);
            close_to(rel, (double)sqrtl(rd / re), 1e-12);
        }
        close_to(compare_rel_l2(&s), (double)sqrtl(dd / ee), 1e-12);
        close_to(compare_cosine(&s), (double)(ea / sqrtl(aa) / sqrtl(ee)), 1e-12);
        close_to(s.tail_dd, (double)tail, 1e-12);
        close_to(s.head_dd, (double)(dd - tail), 1e-12);
        close_to(s.worst_row, (double)worst, 1e-12);
        close_to(s.max_abs, (double)largest, 1e-15);
        assert_int_equal(s.worst_position, worst_at);
        assert_int_equal(s.max_position, max_row);
        assert_int_equal(s.max_index, max_column);
        seed = kept;
    }
}

/* Two halves merged say what one pass says, whichever half comes first. */
static void test_merge(void **state)
{
    (void)state;
    static float e[ROWS][WIDTH], a[ROWS][WIDTH];
    seed = 99;
    fill(e, a);
    for (int spoil = 0; spoil < 3; spoil++) {
        if (spoil > 0)
            a[spoil == 1 ? 3 : 30][5] = NAN;
        compare_sums whole, half[2], merged, none;
        compare_reset(&whole);
        compare_reset(&half[0]);
        compare_reset(&half[1]);
        compare_reset(&none);
        for (int i = 0; i < ROWS; i++) {
            compare_row(&whole, e[i], a[i], WIDTH, HEAD, TAIL, i);
            compare_row(&half[i >= 20], e[i], a[i], WIDTH, HEAD, TAIL, i);
        }
        for (int first = 0; first < 2; first++) {
            merged = none;
            compare_merge(&merged, &half[first]);
            compare_merge(&merged, &none);
            compare_merge(&merged, &half[!first]);
            assert_int_equal(merged.n, whole.n);
            assert_int_equal(merged.rows, whole.rows);
            assert_int_equal(merged.nonfinite, whole.nonfinite);
            assert_int_equal(merged.nonfinite, spoil);
            close_to(merged.dd, whole.dd, 1e-14);
            close_to(merged.ee, whole.ee, 1e-14);
            close_to(merged.aa, whole.aa, 1e-14);
            close_to(merged.ea, whole.ea, 1e-14);
            close_to(merged.head_dd, whole.head_dd, 1e-14);
            close_to(merged.tail_dd, whole.tail_dd, 1e-14);
            assert_true(merged.max_abs == whole.max_abs);
            assert_true(merged.worst_row == whole.worst_row);
            if (spoil < 2) { /* two infinities are equal: the first one met stays */
                assert_int_equal(merged.max_position, whole.max_position);
                assert_int_equal(merged.max_index, whole.max_index);
                assert_true(merged.max_expected == whole.max_expected);
                assert_int_equal(merged.worst_position, whole.worst_position);
            }
        }
    }
}

/* ---- selections ---------------------------------------------------------------------------- */

static const float scores[6] = {5, 4, 3.5f, 3, 3, 1};

static void test_selection_equal(void **state)
{
    (void)state;
    static const int32_t e[4] = {0, 1, 2, -1}, a[4] = {2, -1, 0, 1};
    compare_set r = compare_selection(e, a, 4, scores, 6);
    assert_int_equal(r.missing, 0);
    assert_int_equal(r.extra, 0);
    assert_int_equal(r.duplicates, 0);
    assert_int_equal(r.invalid, 0);
    assert_true(r.gap == 0);
    assert_true(r.jaccard == 1);
    static const int32_t none[2] = {-1, -1};
    r = compare_selection(none, none, 2, scores, 6);
    assert_true(r.gap == 0 && r.jaccard == 1 && r.missing == 0 && r.extra == 0);
    r = compare_selection(NULL, NULL, 0, NULL, 0);
    assert_true(r.gap == 0 && r.jaccard == 1 && r.missing == 0 && r.extra == 0);
}

static void test_selection_swaps(void **state)
{
    (void)state;
    static const int32_t e[3] = {0, 1, 2};
    static const int32_t near[3] = {0, 3, 1}, far[3] = {5, 2, 1}, both[3] = {3, 5, 1};
    compare_set r = compare_selection(e, near, 3, scores, 6); /* 2 lost, 3 taken: 3.5 - 3 */
    assert_int_equal(r.missing, 1);
    assert_int_equal(r.extra, 1);
    close_to(r.gap, 0.5, 1e-15);
    close_to(r.jaccard, 2.0 / 4, 1e-15);
    r = compare_selection(e, far, 3, scores, 6); /* 0 lost, 5 taken: 5 - 1 */
    close_to(r.gap, 4, 1e-15);
    r = compare_selection(e, both, 3, scores, 6); /* 0 and 2 lost, 3 and 5 taken: 5 - 1 */
    assert_int_equal(r.missing, 2);
    assert_int_equal(r.extra, 2);
    close_to(r.gap, 4, 1e-15);
    close_to(r.jaccard, 1.0 / 5, 1e-15);
    /* Equal scores: either may be taken. */
    static const int32_t tie_e[2] = {0, 3}, tie_a[2] = {4, 0};
    r = compare_selection(tie_e, tie_a, 2, scores, 6);
    assert_int_equal(r.missing, 1);
    assert_true(r.gap == 0);
    /* The engine's is the better one by golden's own scores: no distance to bridge. */
    static const int32_t poor[2] = {0, 5}, better[2] = {0, 1};
    r = compare_selection(poor, better, 2, scores, 6);
    assert_true(r.gap == 0);
}

/* What is no swap is no tie. */
static void test_selection_broken(void **state)
{
    (void)state;
    static const int32_t e[3] = {0, 1, 2}, lost[3] = {0, 1, -1}, twice[3] = {0, 1, 1};
    static const int32_t invalid[3] = {0, 1, 6}, negative[3] = {0, -2, 1};
    static const int32_t short_e[3] = {0, 1, -1};
    compare_set r = compare_selection(e, lost, 3, scores, 6);
    assert_int_equal(r.missing, 1);
    assert_int_equal(r.extra, 0);
    assert_true(isinf(r.gap));
    r = compare_selection(short_e, e, 3, scores, 6); /* one too many */
    assert_int_equal(r.extra, 1);
    assert_true(isinf(r.gap));
    r = compare_selection(e, twice, 3, scores, 6);
    assert_int_equal(r.duplicates, 1);
    assert_int_equal(r.missing, 1);
    assert_true(isinf(r.gap));
    r = compare_selection(e, invalid, 3, scores, 6);
    assert_int_equal(r.invalid, 1);
    assert_int_equal(r.extra, 0);
    assert_true(isinf(r.gap));
    r = compare_selection(e, negative, 3, scores, 6);
    assert_int_equal(r.invalid, 1);
    r = compare_selection(e, (const int32_t[]){0, 1, 5}, 3, NULL, 6); /* nothing to judge it by */
    assert_true(isinf(r.gap));
    /* A golden index out of range was never a choice. */
    r = compare_selection(invalid, e, 3, scores, 6);
    assert_int_equal(r.missing, 1);
    assert_int_equal(r.extra, 1);
    assert_true(isinf(r.gap));
}

static void test_selection_scores(void **state)
{
    (void)state;
    static const int32_t e[2] = {0, 1}, a[2] = {0, 2};
    const float nan_lost[3] = {5, NAN, 3}, nan_taken[3] = {5, 3, NAN};
    const float infinite[3] = {5, INFINITY, 3}, minus[3] = {5, 3, -INFINITY};
    const float equal[3] = {5, -INFINITY, -INFINITY};
    assert_true(isinf(compare_selection(e, a, 2, nan_lost, 3).gap));
    assert_true(isinf(compare_selection(e, a, 2, nan_taken, 3).gap));
    assert_true(isinf(compare_selection(e, a, 2, infinite, 3).gap));
    assert_true(isinf(compare_selection(e, a, 2, minus, 3).gap));
    assert_true(compare_selection(e, a, 2, equal, 3).gap == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing),
        cmocka_unit_test(test_equal_rows),
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_range),
        cmocka_unit_test(test_zero_rows),
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_tail),
        cmocka_unit_test(test_worst_row),
        cmocka_unit_test(test_naive),
        cmocka_unit_test(test_merge),
        cmocka_unit_test(test_selection_equal),
        cmocka_unit_test(test_selection_swaps),
        cmocka_unit_test(test_selection_broken),
        cmocka_unit_test(test_selection_scores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
