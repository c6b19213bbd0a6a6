/* hyper_connection_avx2.c - mHC: gates, Sinkhorn, collapse, mixing on AVX2 and FMA; the arithmetic
 * is in hyper_connection.h. */
#include "simd_avx2.h"

#include "hyper_connection.h"

void hc_gates_avx2(const float *m, const float *scale, const float *base, int64_t n, int hc,
                   int sinkhorn_iters, float eps, float *pre, float *post, float *comb)
{
    hc_gates_body(m, scale, base, n, hc, sinkhorn_iters, eps, pre, post, comb);
}

void hc_collapse_avx2(const float *streams, const float *pre, int64_t n, int hc, int64_t dim,
                      float *x)
{
    hc_collapse_body(streams, pre, n, hc, dim, x);
}

void hc_post_avx2(const float *block, const float *streams, const float *post, const float *comb,
                  int64_t n, int hc, int64_t dim, float *out)
{
    hc_post_body(block, streams, post, comb, n, hc, dim, out);
}
