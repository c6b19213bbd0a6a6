/* router.cu - which experts a token goes to, and what the experts' block does with the answer:
 * pairs of token and place in order of expert, and the sum over the places. */
#include "device.cuh"

/* In double, as the reference: equal float32 scores must be equal here too. */
__device__ __forceinline__ double score(float logit)
{
    double x = (double)logit;
    return sqrt(fmax(x, 0.0) + log1p(exp(-fabs(x))));
}

/* One warp a token; values of the choice in shared memory. NaN wins only as the first expert left:
 * nothing is greater than it, and it is greater than nothing. */
static __global__ void router(const float *logits, const float *bias, const int32_t *tid2eid,
                              const int32_t *ids, int n_experts, int k, float scaling,
                              int32_t *experts, float *weights)
{
    begin();
    extern __shared__ float value[]; /* [n_experts], then taken [n_experts] as bytes */
    uint8_t *taken = (uint8_t *)(value + n_experts);
    int64_t i = blockIdx.x;
    int lane = threadIdx.x;
    const float *logit = logits + i * n_experts;
    int32_t *chosen = experts + i * k;
    for (int e = lane; e < n_experts && tid2eid == NULL; e += 32) {
        value[e] = (float)score(logit[e]) + (bias != NULL ? bias[e] : 0.0f);
        taken[e] = 0;
    }
    __syncwarp();
    for (int s = 0; s < k; s++) {
        int best = n_experts;
        if (tid2eid != NULL) {
            best = tid2eid[(int64_t)ids[i] * k + s];
        } else {
            int first = n_experts;
            float most = 0;
            for (int e = lane; e < n_experts; e += 32) {
                if (taken[e])
                    continue;
                first = e < first ? e : first;
                if (value[e] == value[e] && (best == n_experts || value[e] > most)) {
                    best = e;
                    most = value[e];
                }
            }
            for (int step = 16; step > 0; step /= 2) {
                int other = __shfl_xor_sync(0xffffffffu, best, step);
                int left = __shfl_xor_sync(0xffffffffu, first, step);
                float more = __shfl_xor_sync(0xffffffffu, most, step);
                first = left < first ? left : first;
                bool tie = MUTANT(14) ? other > best : other < best; /* ties to the higher */
                if (other < n_experts &&
                    (best == n_experts || more > most || (more == most && tie))) {
                    best = other;
                    most = more;
                }
            }
            if (best == n_experts || value[first] != value[first])
                best = first;
            if (lane == 0)
                taken[best] = 1;
        }
        if (lane == 0)
            chosen[s] = best;
        __syncwarp();
    }
    if (lane == 0) {
        double sum = 0;
        for (int s = 0; s < k; s++)
            sum += score(logit[chosen[s]]);
        for (int s = 0; s < k; s++)
            weights[i * k + s] = (float)(score(logit[chosen[s]]) / sum * (double)scaling);
    }
}

extern "C" void cu_router(cu_stream s, const float *logits, const float *bias,
                          const int32_t *tid2eid, const int32_t *ids, int64_t n, int n_experts,
                          int k, float scaling, int32_t *experts, float *weights)
{
    if (n > 0)
        LAUNCH("router", n * n_experts, router, (unsigned)n, 32, (size_t)n_experts * 5, s, logits,
               bias, tid2eid, ids, n_experts, k, scaling, experts, weights);
}

/* The place that holds all of expert e's weight for its token: the first that names it. */
__device__ __forceinline__ int first_place(const int32_t *experts, int k, int32_t e)
{
    int s = 0;
    while (s < k && experts[s] != e)
        s++;
    return s;
}

/* A thread an expert counts and lists its pairs, in order of token. */
static __global__ void expert_pairs(const int32_t *experts, const float *weights, int64_t n, int k,
                                    int n_experts, int together, int32_t *list,
                                    cu_expert_group *groups, int32_t *n_groups, float *share)
{
    begin();
    extern __shared__ int32_t count[]; /* [n_experts + 1] */
    for (int64_t p = threadIdx.x; p < n * k; p += blockDim.x) {
        const int32_t *places = experts + p / k * k;
        float sum = 0;
        if (first_place(places, k, experts[p]) == (int)(p % k))
            for (int s = 0; s < k; s++)
                if (places[s] == experts[p])
                    sum += weights[p / k * k + s];
        share[p] = sum;
    }
    if (list == NULL)
        return;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int e = warp; e < n_experts; e += warps) {
        int found = 0;
        for (int64_t i = lane; i < n; i += 32)
            found += first_place(experts + i * k, k, e) < k;
        for (int step = 16; step > 0; step /= 2)
            found += __shfl_xor_sync(0xffffffffu, found, step);
        if (lane == 0)
            count[e + 1] = found;
    }
    if (threadIdx.x == 0)
        count[0] = 0;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int e = 0; e < n_experts; e++)
            count[e + 1] += count[e];
    __syncthreads();
    if (threadIdx.x == 0) { /* few enough for one thread: an expert that is named has a group */
        int at = 0;
        for (int e = 0; e < n_experts; e++)
            for (int p = count[e]; p < count[e + 1]; p += together) {
                int left = count[e + 1] - p;
                groups[at].expert = e;
                groups[at].first = p;
                groups[at++].count = left < together ? left : together;
            }
        *n_groups = at;
    }
    for (int e = warp; e < n_experts; e += warps) {
        int at = count[e];
        for (int64_t i0 = 0; i0 < n; i0 += 32) {
            int64_t i = i0 + lane;
            int place = i < n ? first_place(experts + i * k, k, e) : k;
            unsigned who = __ballot_sync(0xffffffffu, place < k);
            if (place < k)
                list[at + __popc(who & ((1u << lane) - 1))] = (int32_t)(i * k + place);
            at += __popc(who);
        }
    }
}

extern "C" void cu_expert_pairs(cu_stream s, const int32_t *experts, const float *weights,
                                int64_t n, int k, int n_experts, int together,
                                int32_t *list, cu_expert_group *groups, int32_t *n_groups,
                                float *share)
{
    if (n > 0)
        LAUNCH("expert_pairs", n * k, expert_pairs, 1, list == NULL ? 32 : 1024,
               (size_t)(n_experts + 1) * sizeof(int32_t), s, experts, weights, n, k, n_experts,
               together, list, groups, n_groups, share);
}

static __global__ void expert_sum(const float *y, const int32_t *experts, int k, int64_t dim,
                                  float *out)
{
    begin();
    int64_t i = blockIdx.y, c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= dim)
        return;
    float sum = 0;
    for (int s = 0; s < k; s++)
        if (first_place(experts + i * k, k, experts[i * k + s]) == s)
            sum += y[(i * k + s) * dim + c];
    out[i * dim + c] = sum;
}

extern "C" void cu_expert_sum(cu_stream s, const float *y, const int32_t *experts, int64_t n,
                              int k, int64_t dim, float *out)
{
    dim3 grid(cu_blocks(dim, 128), (unsigned)n);
    if (n > 0)
        LAUNCH("expert_sum", n * dim, expert_sum, grid, 128, 0, s, y, experts, k, dim, out);
}
