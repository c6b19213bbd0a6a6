/* compare.c - the one metric kernel: a single pass over two rows, and sets for selections. */
#include <math.h>
#include <string.h>

#include "harness.h"

void compare_reset(compare_sums *s)
{
    memset(s, 0, sizeof *s);
    s->max_position = s->max_index = s->worst_position = -1;
}

/* 0 finite, 1 NaN, 2 +Inf, 3 -Inf: the masks that must be equal. */
static int mask(float v)
{
    if (isnan(v))
        return 1;
    if (isinf(v))
        return v > 0 ? 2 : 3;
    return 0;
}

double compare_row(compare_sums *s, const float *expected, const float *actual, int64_t n,
                   int64_t width, int64_t tail, int64_t position)
{
    double dd = 0, ee = 0;
    int64_t differ = 0;
    for (int64_t i = 0; i < n; i++) {
        int me = mask(expected[i]), ma = mask(actual[i]);
        if (me != 0 || ma != 0) {
            /* Non-finite values are compared as masks, before any metric, and left out of it. */
            if (me != ma) {
                differ++;
                if (s->max_position < 0 || isfinite(s->max_abs)) {
                    s->max_abs = INFINITY;
                    s->max_position = position;
                    s->max_index = i;
                    s->max_expected = expected[i];
                    s->max_actual = actual[i];
                }
            }
            continue;
        }
        double e = (double)expected[i], a = (double)actual[i], d = a - e;
        dd += d * d;
        ee += e * e;
        s->aa += a * a;
        s->ea += e * a;
        if (tail > 0 && i % width >= width - tail)
            s->tail_dd += d * d;
        else
            s->head_dd += d * d;
        if (fabs(d) > s->max_abs || s->max_position < 0) {
            s->max_abs = fabs(d);
            s->max_position = position;
            s->max_index = i;
            s->max_expected = expected[i];
            s->max_actual = actual[i];
        }
    }
    s->n += n;
    s->rows++;
    s->nonfinite += differ;
    s->dd += dd;
    s->ee += ee;
    double row = differ > 0 ? INFINITY : dd == 0 ? 0 : ee == 0 ? INFINITY : sqrt(dd / ee);
    if (row > s->worst_row || s->worst_position < 0) {
        s->worst_row = row;
        s->worst_position = position;
    }
    return row;
}

void compare_merge(compare_sums *into, const compare_sums *from)
{
    if (from->rows == 0)
        return;
    into->n += from->n;
    into->rows += from->rows;
    into->nonfinite += from->nonfinite;
    into->dd += from->dd;
    into->ee += from->ee;
    into->aa += from->aa;
    into->ea += from->ea;
    into->head_dd += from->head_dd;
    into->tail_dd += from->tail_dd;
    if (from->max_position >= 0 && (into->max_position < 0 || from->max_abs > into->max_abs)) {
        into->max_abs = from->max_abs;
        into->max_position = from->max_position;
        into->max_index = from->max_index;
        into->max_expected = from->max_expected;
        into->max_actual = from->max_actual;
    }
    if (into->worst_position < 0 || from->worst_row > into->worst_row) {
        into->worst_row = from->worst_row;
        into->worst_position = from->worst_position;
    }
}

double compare_rel_l2(const compare_sums *s)
{
    if (s->nonfinite > 0)
        return INFINITY;
    return s->dd == 0 ? 0 : s->ee == 0 ? INFINITY : sqrt(s->dd / s->ee);
}

double compare_cosine(const compare_sums *s)
{
    if (s->aa == 0 || s->ee == 0)
        return s->aa == s->ee ? 1 : 0;
    return s->ea / sqrt(s->aa) / sqrt(s->ee);
}

static bool contains(const int32_t *list, int k, int32_t v)
{
    for (int i = 0; i < k; i++)
        if (list[i] == v)
            return true;
    return false;
}

compare_set compare_selection(const int32_t *expected, const int32_t *actual, int k,
                              const float *scores, int64_t n)
{
    compare_set r = {.jaccard = 1};
    int common = 0;
    double worst_taken = INFINITY, best_lost = -INFINITY;
    bool known = true; /* the score of every element that differs */
    for (int i = 0; i < k; i++) {
        int32_t a = actual[i];
        if (a != -1 && (a < 0 || a >= n))
            r.invalid++;
        else if (a != -1 && contains(actual, i, a))
            r.duplicates++;
        else if (a != -1 && !contains(expected, k, a)) {
            r.extra++;
            if (scores != NULL && (double)scores[a] < worst_taken)
                worst_taken = (double)scores[a];
            known = known && scores != NULL && !isnan(scores[a]);
        }
        int32_t e = expected[i];
        if (e == -1 || contains(expected, i, e))
            continue;
        if (contains(actual, k, e)) {
            common++;
            continue;
        }
        r.missing++;
        known = known && scores != NULL && e >= 0 && e < n && !isnan(scores[e]);
        if (known && (double)scores[e] > best_lost)
            best_lost = (double)scores[e];
    }
    int all = common + r.missing + r.extra;
    r.jaccard = all > 0 ? (double)common / all : 1;
    /* The worst swap: the best row that was lost against the worst one that was taken instead. */
    if (r.missing > 0 && r.extra > 0 && known)
        r.gap = best_lost > worst_taken ? best_lost - worst_taken : 0;
    else if (r.missing > 0 || r.extra > 0)
        r.gap = INFINITY; /* a row is lost without another one in its place: no swap, no tie */
    return r;
}
