/* indexer_avx512.c - scores and top-k on AVX-512; the arithmetic is in indexer.h. */
#include "simd_avx512.h"

#include "indexer.h"

void indexer_scores_avx512(const float *q, const float *rows, const float *w, int heads, int dim,
                           int64_t n_rows, bool bf16, float *scores)
{
    indexer_scores_body(q, rows, w, heads, dim, n_rows, bf16, scores);
}

void topk_avx512(const float *scores, int64_t n, int k, int32_t *out)
{
    topk_body(scores, n, k, out);
}
