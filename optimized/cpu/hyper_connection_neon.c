/* hyper_connection_neon.c - mHC: gates, Sinkhorn, collapse, mixing on NEON; the arithmetic is in
 * hyper_connection.h. */
#include "simd_neon.h"

#include "hyper_connection.h"

void hc_gates_neon(const float *m, const float *scale, const float *base, int64_t n, int hc,
                   int sinkhorn_iters, float eps, float *pre, float *post, float *comb)
{
    hc_gates_body(m, scale, base, n, hc, sinkhorn_iters, eps, pre, post, comb);
}

void hc_collapse_neon(const float *streams, const float *pre, int64_t n, int hc, int64_t dim,
                      float *x)
{
    hc_collapse_body(streams, pre, n, hc, dim, x);
}

void hc_post_neon(const float *block, const float *streams, const float *post, const float *comb,
                  int64_t n, int hc, int64_t dim, float *out)
{
    hc_post_body(block, streams, post, comb, n, hc, dim, out);
}
