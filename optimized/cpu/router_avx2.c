/* router_avx2.c - the choice of experts on AVX2 and FMA; the arithmetic is in router.h. */
#include "simd_avx2.h"

#include "router.h"

void router_avx2(const float *logits, const float *bias, const dsv4_tensor *tid2eid,
                 const int32_t *ids, int64_t n, int n_experts, int k, float scaling,
                 int32_t *experts, float *weights)
{
    router_body(logits, bias, tid2eid, ids, n, n_experts, k, scaling, experts, weights);
}
