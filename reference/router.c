/* router.c - which experts a token goes to, and with what weights: sqrt(softplus) scores, top-K
 * with a selection bias, or the table tid2eid by token id in the hash layers. */
#include <math.h>

#include "scalar.h"

/* softplus(x) = max(x, 0) + log1p(exp(-|x|)): neither underflows to 0 at x = -17 nor overflows. */
static double score(double logit)
{
    return sqrt(fmax(logit, 0.0) + log1p(exp(-fabs(logit))));
}

void ref_router(const float *logits, const float *bias, const dsv4_tensor *tid2eid,
                const int32_t *ids, int64_t n, int n_experts, int k, float scaling,
                int32_t *experts, float *weights)
{
    for (int64_t i = 0; i < n; i++) {
        const float *logit = logits + i * n_experts;
        int32_t *chosen = experts + i * k;
        for (int s = 0; s < k; s++) {
            if (tid2eid != NULL) { /* by token id, never by position */
                chosen[s] = (int32_t)dsv4_tensor_int(tid2eid, (int64_t)ids[i] * k + s);
                continue;
            }
            int best = -1;
            float best_value = 0;
            for (int e = 0; e < n_experts; e++) {
                bool taken = false;
                for (int prev = 0; prev < s; prev++)
                    taken = taken || chosen[prev] == e;
                /* The bias chooses; it does not weigh. Float32, as released: ties are ties there.
                 */
                float value = (float)score((double)logit[e]) + (bias != NULL ? bias[e] : 0.0f);
                if (!taken && (best < 0 || value > best_value)) {
                    best = e;
                    best_value = value;
                }
            }
            chosen[s] = best;
        }
        double sum = 0;
        for (int s = 0; s < k; s++)
            sum += score((double)logit[chosen[s]]);
        for (int s = 0; s < k; s++)
            weights[i * k + s] = (float)(score((double)logit[chosen[s]]) / sum * (double)scaling);
    }
}
