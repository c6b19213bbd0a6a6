/* indexer.c - which compressed rows a token attends to: ReLU-gated scores of a small multi-head
 * query against the indexer's own compressed rows, and the best index_topk of them. */
#include <math.h>

#include "scalar.h"

static double bf16(double x)
{
    return (double)dsv4_bf16((float)x);
}

void ref_indexer_scores(const float *q, const float *rows, const float *w, int heads, int dim,
                        int64_t n_rows, bool round, float *scores)
{
    for (int64_t j = 0; j < n_rows; j++) {
        double sum = 0;
        for (int h = 0; h < heads; h++) {
            double dot = dsv4_dot(q + (int64_t)h * dim, rows + j * dim, dim);
            if (round)
                dot = bf16(dot);
            double relu = dot > 0 || dot != dot ? dot : 0; /* NaN passes through */
            double term = relu * (double)w[h];
            sum += round ? bf16(term) : term;
        }
        scores[j] = (float)(round ? bf16(sum) : sum);
    }
}

void ref_index_weights(float *w, int64_t n, int heads, int dim)
{
    float scale = (float)(1.0 / sqrt((double)dim) / sqrt((double)heads));
    for (int64_t i = 0; i < n * heads; i++)
        w[i] *= scale;
}

/* Is a better than b? NaN is worse than everything, and equal to itself. */
static bool better(float a, float b)
{
    if (a != a)
        return false;
    return b != b || a > b;
}

/* Insertion into a sorted list of k: a row moves up only past strictly worse ones, so equal scores
 * keep their order, the lowest row first. */
void ref_topk(const float *scores, int64_t n, int k, int32_t *out)
{
    int kept = 0;
    for (int64_t j = 0; j < n; j++) {
        if (kept == k && (k == 0 || !better(scores[j], scores[out[k - 1]])))
            continue;
        int at = kept < k ? kept++ : k - 1;
        for (; at > 0 && better(scores[j], scores[out[at - 1]]); at--)
            out[at] = out[at - 1];
        out[at] = (int32_t)j;
    }
    for (int i = kept; i < k; i++)
        out[i] = -1;
}
