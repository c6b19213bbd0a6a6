/* indexer_avx2.c - scores and top-k on AVX2 and FMA; the arithmetic is in indexer.h. */
#include "simd_avx2.h"

#include "indexer.h"

void indexer_scores_avx2(const float *q, const float *rows, const float *w, int heads, int dim,
                         int64_t n_rows, bool bf16, float *scores)
{
    indexer_scores_body(q, rows, w, heads, dim, n_rows, bf16, scores);
}

void topk_avx2(const float *scores, int64_t n, int k, int32_t *out)
{
    topk_body(scores, n, k, out);
}
