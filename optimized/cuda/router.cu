/* router.cu - which experts a token goes to, and what the experts' block does with the answer:
 * pairs of token and place in order of expert, and the sum over the places. */
#include "hyper_connection.cuh"

/* In double, as the reference: equal float32 scores must be equal here too. */
__device__ __forceinline__ double score(float logit)
{
    double x = (double)logit;
    return sqrt(fmax(x, 0.0) + log1p(exp(-fabs(x))));
}

/* Larger is better, both zeros alike; 0: taken or NaN. */
__device__ __forceinline__ uint32_t choice_key(float v)
{
    if (v != v)
        return 0;
    uint32_t b = cu_bits_of(v == 0 ? 0.0f : v);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}

enum { TAKEN = 1, IS_NAN = 2, ROUTER_THREADS = 256 };

/* A block a token: all of it makes the scores, the first warp chooses. NaN wins only as the first
 * expert left: nothing is greater than it, and it is greater than nothing. */
static __global__ void __launch_bounds__(ROUTER_THREADS)
    router(const float *logits, const float *bias, const int32_t *tid2eid, const int32_t *ids,
           int n_experts, int k, float scaling, int32_t *experts, float *weights, float *share,
           cu_rounds rounds, const __grid_constant__ cu_later later)
{
    extern __shared__ double memory[];
    bool hashed = tid2eid != NULL;
    int scored = hashed ? k : n_experts;
    double *scores = memory;                        /* [scored]: of chosen[], or of all */
    int32_t *chosen = (int32_t *)(scores + scored); /* [k] */
    float *weight = (float *)(chosen + k);          /* [k] */
    uint32_t *key = (uint32_t *)(weight + k);       /* [n_experts] */
    uint8_t *state = (uint8_t *)(key + n_experts);  /* [n_experts] */
    int64_t i = blockIdx.x;
    int lane = threadIdx.x % 32, t = threadIdx.x;
    const float *logit = logits + i * n_experts;
    let_next_start();
    if (later.m != NULL && blockIdx.x == gridDim.x - 1) {
        if (!MUTANT(78)) /* forgotten */
            later_gates(later);
        return;
    }
    float more = !hashed && bias != NULL && t < n_experts ? __ldg(bias + t) : 0.0f;
    for (int s = t; s < k && hashed; s += ROUTER_THREADS) /* ids are there before a step begins */
        chosen[s] = __ldg(tid2eid + (int64_t)ids[i] * k + s);
#pragma unroll 1
    for (int round = rounds.first; round < rounds.end; round++) {
        bool live = round == 1;
        if (live && !MUTANT(66)) /* taken for a second rehearsal: not waited for */
            wait_for_previous();
        bool odd = false;
#pragma unroll 1
        for (int at = t; at < scored; at += ROUTER_THREADS) {
            float x = live ? __ldcg(logit + (hashed ? chosen[at] : at)) /* its own of chosen[] */
                           : (float)(at % 7 - 3);
            double d = score(x);
            scores[at] = d;
            if (hashed)
                continue;
            float v = (float)d + (at == t ? more : bias != NULL ? __ldg(bias + at) : 0.0f);
            key[at] = choice_key(v);
            state[at] = v != v ? IS_NAN : 0;
            odd = odd || v != v;
        }
        odd = __syncthreads_or(odd);
        if (t >= 32 && live)
            return;
        if (t < 32) {
            for (int s = 0; s < k && !hashed; s++) {
                uint32_t most = 0;
                int best = n_experts, first = n_experts;
#pragma unroll 8
                for (int e = lane; e < n_experts; e += 32)
                    if (key[e] > most) {
                        most = key[e];
                        best = e;
                    }
                uint32_t top = __reduce_max_sync(0xffffffffu, most);
                if (MUTANT(14)) /* ties to the higher */
                    best = (int)__reduce_max_sync(0xffffffffu, most == top && top > 0 ? best : 0);
                else
                    best = (int)__reduce_min_sync(
                        0xffffffffu, (unsigned)(most == top && top > 0 ? best : n_experts));
                if (odd || best == n_experts) {
                    for (int e = lane; e < n_experts; e += 32)
                        if (!(state[e] & TAKEN)) {
                            first = e;
                            break;
                        }
                    first = (int)__reduce_min_sync(0xffffffffu, (unsigned)first);
                    if (best == n_experts || state[first] & IS_NAN)
                        best = first;
                }
                __syncwarp();
                if (lane == 0) {
                    chosen[s] = best;
                    state[best] |= TAKEN;
                    key[best] = 0;
                }
                __syncwarp();
            }
            double sum = 0;
            for (int s = 0; s < k; s++)
                sum += scores[hashed ? s : chosen[s]];
            for (int s = lane; s < k; s += 32) {
                weight[s] = (float)(scores[hashed ? s : chosen[s]] / sum * (double)scaling);
                if (live) {
                    experts[i * k + s] = chosen[s];
                    weights[i * k + s] = weight[s];
                }
            }
            __syncwarp();
            for (int s = lane; s < k && share != NULL; s += 32) {
                float all = 0;
                bool later = false;
                for (int m = 0; m < k; m++)
                    if (chosen[m] == chosen[s]) {
                        later = later || m < s;
                        all += weight[m];
                    }
                if (live)
                    share[i * k + s] = later ? 0.0f : all;
            }
        }
        if (!live)
            __syncthreads(); /* the scores are read before the next round's are written */
    }
}

extern "C" void cu_router(cu_stream s, const float *logits, const float *bias,
                          const int32_t *tid2eid, const int32_t *ids, int64_t n, int n_experts,
                          int k, float scaling, int32_t *experts, float *weights, float *share,
                          const cu_later *later)
{
    const cu_later none = {}, &gates = later != NULL ? *later : none;
    static bool raised;
    size_t scored = (size_t)(tid2eid != NULL ? k : n_experts);
    if (!raised) { /* for thousands of experts */
        const int enough = 160 * 1024, most = (int)cu_most_shared();
        raised = cudaFuncSetAttribute(router, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      most < enough ? most : enough) == cudaSuccess;
    }
    if (n > 0)
        LAUNCH("router", n * n_experts, router, (unsigned)n + (gates.m != NULL), ROUTER_THREADS,
               scored * sizeof(double) + (size_t)k * (sizeof(int32_t) + sizeof(float)) +
                   (size_t)n_experts * 5,
               s, logits, bias, tid2eid, ids, n_experts, k, scaling, experts, weights, share,
               rounds_of(n <= 8), gates);
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
                                int64_t n, int k, int n_experts, int together, int32_t *list,
                                cu_expert_group *groups, int32_t *n_groups, float *share)
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

extern "C" void cu_expert_sum(cu_stream s, const float *y, const int32_t *experts, int64_t n, int k,
                              int64_t dim, float *out)
{
    dim3 grid(cu_blocks(dim, 128), (unsigned)n);
    if (n > 0)
        LAUNCH("expert_sum", n * dim, expert_sum, grid, 128, 0, s, y, experts, k, dim, out);
}
