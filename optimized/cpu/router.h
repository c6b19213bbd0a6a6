/* router.h - the reference's scores to the bit (a choice must not depend on the engine), each
 * computed once, and the selection VL experts at a time. */
#ifndef DSV4_CPU_ROUTER_H
#define DSV4_CPU_ROUTER_H

#include <math.h>

#include "cpu.h"
#include "simd_math.h"

enum { ROUTER_EXPERTS = 1024 }; /* more, and the reference does it */

static inline double router_score(double logit)
{
    return sqrt(fmax(logit, 0.0) + log1p(exp(-fabs(logit))));
}

/* The lowest index of the largest of v[n]; no NaN among them. */
static inline int router_best(const float *v, int n)
{
    vf max = vf_set(-INFINITY);
    int i = 0;
    for (; i + VL <= n; i += VL)
        max = vf_max(max, vf_load(v + i));
    float top = vf_largest(max);
    for (; i < n; i++)
        top = v[i] > top ? v[i] : top;
    vf wanted = vf_set(top);
    for (i = 0; i + VL <= n; i += VL) {
        unsigned at = vm_bits(vf_at_most(wanted, vf_load(v + i)));
        if (at != 0)
            return i + __builtin_ctz(at);
    }
    while (i < n - 1 && v[i] != top)
        i++;
    return i;
}

/* One token; false = a value that is not finite: the order of such is the reference's business. */
static inline bool router_token(const float *logit, const float *bias, int n_experts, int k,
                                float scaling, int32_t *experts, float *weights)
{
    float value[ROUTER_EXPERTS];
    for (int e = 0; e < n_experts; e++) {
        value[e] = (float)router_score((double)logit[e]) + (bias != NULL ? bias[e] : 0.0f);
        if (!isfinite(value[e]))
            return false;
    }
    for (int s = 0; s < k; s++) {
        experts[s] = router_best(value, n_experts);
        value[experts[s]] = -INFINITY;
    }
    double sum = 0;
    for (int s = 0; s < k; s++)
        sum += router_score((double)logit[experts[s]]);
    for (int s = 0; s < k; s++)
        weights[s] = (float)(router_score((double)logit[experts[s]]) / sum * (double)scaling);
    return true;
}

static inline void router_body(const float *logits, const float *bias, const dsv4_tensor *tid2eid,
                               const int32_t *ids, int64_t n, int n_experts, int k, float scaling,
                               int32_t *experts, float *weights)
{
    for (int64_t i = 0; i < n; i++) {
        const float *logit = logits + i * n_experts;
        const int32_t *id = ids != NULL ? ids + i : NULL;
        if (tid2eid != NULL || n_experts > ROUTER_EXPERTS || k > n_experts ||
            !router_token(logit, bias, n_experts, k, scaling, experts + i * k, weights + i * k))
            ref_router(logit, bias, tid2eid, id, 1, n_experts, k, scaling, experts + i * k,
                       weights + i * k);
    }
}

#endif
