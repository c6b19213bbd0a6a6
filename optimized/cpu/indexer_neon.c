/* indexer_neon.c - scores and top-k on NEON; the arithmetic is in indexer.h. */
#include "simd_neon.h"

#include "indexer.h"

void indexer_scores_neon(const float *q, const float *rows, const float *w, int heads, int dim,
                         int64_t n_rows, bool bf16, float *scores)
{
    indexer_scores_body(q, rows, w, heads, dim, n_rows, bf16, scores);
}

void topk_neon(const float *scores, int64_t n, int k, int32_t *out)
{
    topk_body(scores, n, k, out);
}
