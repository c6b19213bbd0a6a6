/* indexer.h - scores of compressed rows, and the best k of them. */
#ifndef DSV4_CPU_INDEXER_H
#define DSV4_CPU_INDEXER_H

#include <math.h>

#include "cpu.h"
#include "simd_math.h"

enum { INDEXER_HEADS = 4, INDEXER_ROWS = 2 };

/* Dot products of `heads` queries with `rows` rows; both are constants where it is called. */
static inline __attribute__((always_inline)) void
indexer_tile(int heads, int rows, const float *q, const float *k, int64_t dim,
             float dots[INDEXER_HEADS][INDEXER_ROWS])
{
    vf acc[INDEXER_HEADS][INDEXER_ROWS];
    for (int h = 0; h < heads; h++)
        for (int j = 0; j < rows; j++)
            acc[h][j] = vf_zero();
    int64_t i = 0;
    for (; i + VL <= dim; i += VL)
        for (int h = 0; h < heads; h++) {
            vf query = vf_load(q + h * dim + i);
            for (int j = 0; j < rows; j++)
                acc[h][j] = vf_fma(query, vf_load(k + j * dim + i), acc[h][j]);
        }
    if (i < dim)
        for (int h = 0; h < heads; h++) {
            vf query = vf_load_n(q + h * dim + i, dim - i);
            for (int j = 0; j < rows; j++)
                acc[h][j] = vf_fma(query, vf_load_n(k + j * dim + i, dim - i), acc[h][j]);
        }
    for (int h = 0; h < heads; h++)
        for (int j = 0; j < rows; j++)
            dots[h][j] = vf_sum(acc[h][j]);
}

static inline float indexer_term(float dot, float w, bool bf16)
{
    if (bf16)
        dot = dsv4_bf16(dot);
    float relu = dot > 0 || dot != dot ? dot : 0; /* NaN passes through */
    return bf16 ? dsv4_bf16(relu * w) : relu * w;
}

static inline void indexer_scores_body(const float *q, const float *rows, const float *w, int heads,
                                       int dim, int64_t n_rows, bool bf16, float *scores)
{
    for (int64_t j = 0, count; j < n_rows; j += count) {
        float sum[INDEXER_ROWS] = {0}, dots[INDEXER_HEADS][INDEXER_ROWS];
        count = n_rows - j >= INDEXER_ROWS ? INDEXER_ROWS : 1;
        for (int h = 0, some; h < heads; h += some) {
            const float *query = q + (int64_t)h * dim, *row = rows + j * dim;
            some = heads - h >= INDEXER_HEADS ? INDEXER_HEADS : 1;
            if (some == INDEXER_HEADS && count == INDEXER_ROWS)
                indexer_tile(INDEXER_HEADS, INDEXER_ROWS, query, row, dim, dots);
            else if (some == INDEXER_HEADS)
                indexer_tile(INDEXER_HEADS, 1, query, row, dim, dots);
            else if (count == INDEXER_ROWS)
                indexer_tile(1, INDEXER_ROWS, query, row, dim, dots);
            else
                indexer_tile(1, 1, query, row, dim, dots);
            for (int g = 0; g < some; g++)
                for (int64_t c = 0; c < count; c++)
                    sum[c] += indexer_term(dots[g][c], w[h + g], bf16);
        }
        for (int64_t c = 0; c < count; c++)
            scores[j + c] = bf16 ? dsv4_bf16(sum[c]) : sum[c];
    }
}

/* ---- top-k ---------------------------------------------------------------------------------- */

/* Does row a come before row b? Higher score first, NaN last, equal scores in row order. */
static inline bool topk_before(const float *scores, int32_t a, int32_t b)
{
    float x = scores[a], y = scores[b];
    if (x > y || y > x)
        return x > y;
    if ((x != x) != (y != y))
        return y != y;
    return a < b;
}

/* Restores the heap below `at`: each parent comes after its children, the root after all. */
static inline void topk_sink(const float *scores, int32_t *heap, int n, int at)
{
    int32_t row = heap[at];
    for (int child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && topk_before(scores, heap[child], heap[child + 1]))
            child++;
        if (!topk_before(scores, row, heap[child]))
            break;
        heap[at] = heap[child];
    }
    heap[at] = row;
}

/* The first row from j on that can beat the worst kept score, or n. A NaN kept is beaten by any
 * number, and no number is greater than it: then every row must be looked at. */
static inline int64_t topk_next(const float *scores, int64_t j, int64_t n, float worst)
{
    if (worst != worst)
        return j;
    for (; j + VL <= n; j += VL) {
        unsigned better = vm_bits(vf_less(vf_set(worst), vf_load(scores + j)));
        if (better != 0)
            return j + __builtin_ctz(better);
    }
    while (j < n && !(scores[j] > worst))
        j++;
    return j;
}

static inline void topk_body(const float *scores, int64_t n, int k, int32_t *out)
{
    int kept = n < k ? (int)n : k;
    for (int i = kept; i < k; i++)
        out[i] = -1;
    if (kept == 0)
        return;
    for (int i = 0; i < kept; i++)
        out[i] = i;
    for (int i = kept / 2 - 1; i >= 0; i--)
        topk_sink(scores, out, kept, i);
    for (int64_t j = kept; (j = topk_next(scores, j, n, scores[out[0]])) < n; j++)
        if (topk_before(scores, (int32_t)j, out[0])) {
            out[0] = (int32_t)j;
            topk_sink(scores, out, kept, 0);
        }
    for (int i = kept - 1; i > 0; i--) { /* the worst of what is left goes to the end */
        int32_t worst = out[0];
        out[0] = out[i];
        out[i] = worst;
        topk_sink(scores, out, i, 0);
    }
}

#endif
