/* topk.cu - the best of the indexer's scores: exact, ordered, the lower row where they are equal. */
#include <cfloat>

#include "rows.cuh"

enum {
    SELECT_THREADS = 1024,
    BINS = 256,
    HELD = 16,     /* keys a thread keeps */
    SPREAD = 2048, /* bins over the keys that may be among the best */
    CROWDED = 64   /* more in a bin are not ranked one against the other */
};

/* Larger is better; NaN below everything, both zeros alike. */
__device__ __forceinline__ uint32_t key_of(float score)
{
    if (score != score)
        return 0;
    uint32_t b = __float_as_uint(score == 0 ? 0.0f : score);
    return (b & 0x80000000u ? ~b : b | 0x80000000u);
}

__device__ __forceinline__ float value_of(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* Numbers of the threads before this one that said yes, and of all. */
__device__ __forceinline__ int rank_of(bool yes, int *room, int *all)
{
    unsigned who = __ballot_sync(0xffffffffu, yes);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, before = 0, sum = 0;
    if (lane == 0)
        room[warp] = __popc(who);
    __syncthreads();
    for (int i = 0; i < SELECT_THREADS / 32; i++) {
        before += i < warp ? room[i] : 0;
        sum += room[i];
    }
    __syncthreads();
    *all = sum;
    return before + __popc(who & ((1u << lane) - 1));
}

/* The place of the yes-sayers of a warp behind *taken, in no order. */
__device__ __forceinline__ int any_place(bool yes, int *taken)
{
    unsigned who = __ballot_sync(0xffffffffu, yes);
    int lane = threadIdx.x % 32, at = 0;
    if (who == 0)
        return 0;
    if (lane == __ffs((int)who) - 1)
        at = atomicAdd(taken, __popc(who));
    return __shfl_sync(0xffffffffu, at, __ffs((int)who) - 1) + __popc(who & ((1u << lane) - 1));
}

/* Books a key's digit; lanes with the same one share an addition. */
__device__ __forceinline__ void count_key(uint32_t key, bool counts, int shift, int *bins)
{
    uint32_t digit = key >> shift & 255u;
    unsigned who = __ballot_sync(0xffffffffu, counts);
    if (who == 0)
        return;
    /* Most lanes often agree with the first of them: one addition for those. */
    uint32_t first = __shfl_sync(0xffffffffu, digit, __ffs((int)who) - 1);
    unsigned same = __ballot_sync(0xffffffffu, counts && digit == first);
    if (counts && digit != first)
        atomicAdd(&bins[digit], 1);
    else if (threadIdx.x % 32 == __ffs((int)same) - 1)
        atomicAdd(&bins[first], __popc(same));
}

/* Row j into `best` if it is among them; the whole block comes with consecutive rows. */
__device__ __forceinline__ void gather(uint32_t key, int64_t j, int64_t n, bool all, bool every,
                                       uint32_t edge, int *equal_left, int *room, int *taken,
                                       uint64_t *best)
{
    bool in = j < n && (all || (every ? key >= edge : key > edge));
    if (!every) { /* only some of the equal ones: in order of row */
        int found, rank = rank_of(j < n && key == edge, room, &found);
        in = in || (j < n && key == edge && rank < *equal_left);
        *equal_left -= found < *equal_left ? found : *equal_left;
    }
    int at = any_place(in, taken);
    /* A row's number reversed: of equal keys the lowest row is the largest. */
    if (in)
        best[at] = (uint64_t)key << 32 | (0xffffffffu - (uint32_t)j);
}

typedef struct {
    int count[SPREAD], next[SPREAD]; /* next: the first free place of a bin's keys */
    int sums[32], bins[BINS], above[BINS / 32], room[32];
    uint32_t low[32], high[32];
    int taken, wanted, equals, edge, places, crowded;
    uint32_t prefix;
} select_room;

/* Four passes of eight bits find the k-th best key; the rows above it and as many of those equal to
 * it as there is room for, the lowest first, are gathered and sorted: whatever the scores are. */
__device__ __forceinline__ void topk_any(const float *scores, int64_t n, int kept, int sorted,
                                         select_room *r, uint64_t *best, int32_t *out)
{
    int t = threadIdx.x, lane = t % 32;
    for (int i = t; i < sorted; i += SELECT_THREADS)
        best[i] = 0;
    if (t == 0) {
        r->prefix = 0;
        r->wanted = r->equals = kept;
        r->taken = 0;
    }
    __syncthreads();
    for (int shift = 24; kept < n && shift >= 0; shift -= 8) {
        if (t < BINS)
            r->bins[t] = 0;
        __syncthreads();
        uint32_t high = shift == 24 ? 0 : 0xffffffffu << (shift + 8), seen = r->prefix;
        int left = r->wanted;
        for (int64_t j0 = 0; j0 < n; j0 += SELECT_THREADS) {
            uint32_t key = j0 + t < n ? key_of(__ldcg(&scores[j0 + t])) : 0;
            count_key(key, j0 + t < n && (key & high) == seen, shift, r->bins);
        }
        __syncthreads();
        /* Thread t has bin 255 - t: how many keys lie in the bins above it? */
        int mine = t < BINS ? r->bins[BINS - 1 - t] : 0, sum = mine;
        if (t < BINS) {
            for (int step = 1; step < 32; step *= 2) {
                int other = __shfl_up_sync(0xffffffffu, sum, step);
                sum += lane >= step ? other : 0;
            }
            if (lane == 31)
                r->above[t / 32] = sum;
        }
        __syncthreads();
        if (t < BINS) {
            for (int i = 0; i < t / 32; i++)
                sum += r->above[i];
            if (sum >= left && sum - mine < left) { /* exactly one thread */
                r->wanted = left - (sum - mine);
                r->prefix = seen | (uint32_t)(BINS - 1 - t) << shift;
                r->equals = mine;
            }
        }
        __syncthreads();
    }
    /* wanted: how many rows with the key `prefix` itself are among the best, of `equals`. */
    uint32_t edge = r->prefix;
    int equal_left = r->wanted;
    bool all = kept == n, every = all || r->equals == r->wanted;
    __syncthreads();
    for (int64_t j0 = 0; j0 < n; j0 += SELECT_THREADS)
        gather(j0 + t < n ? key_of(__ldcg(&scores[j0 + t])) : 0, j0 + t, n, all, every, edge,
               &equal_left, r->room, &r->taken, best);
    for (int size = 2; size <= sorted; size *= 2)
        for (int step = size / 2; step > 0; step /= 2) {
            __syncthreads();
            for (int i = t; i < sorted / 2; i += SELECT_THREADS) {
                int a = i / step * 2 * step + i % step, b = a + step;
                bool down = (a & size) == 0;
                uint64_t x = best[a], y = best[b];
                if ((x < y) == down) {
                    best[a] = y;
                    best[b] = x;
                }
            }
        }
    __syncthreads();
    for (int i = t; i < kept; i += SELECT_THREADS)
        out[i] = (int32_t)(0xffffffffu - (uint32_t)best[i]);
}

/* A block a token. Groups of threads each name the best key they hold: the worst of those is a
 * bound that more than k keys reach. The keys from there on are spread over bins, the bins' places
 * counted from the best down, and the keys put there, up to the bin that holds the k-th best:
 * within its bin a key is ranked against the others. Keys too many for the room or too close
 * together go the long way. */
static __global__ void __launch_bounds__(SELECT_THREADS, 1)
    topk(const float *all_scores, int64_t ld, int64_t n_rows, const int64_t *pos0, int ratio, int k,
         int sorted, int most, int32_t *all_out)
{
    let_next_start();
    extern __shared__ uint64_t best[]; /* [most], at least sorted: a power of two, at least k */
    __shared__ select_room r;
    int64_t token = blockIdx.x;
    int64_t n = visible_rows(n_rows, pos0, ratio, token); /* positions are older than the step */
    const float *scores = all_scores + token * ld;
    int32_t *out = all_out + token * k;
    int t = threadIdx.x, lane = t % 32, warp = t / 32;
    int kept = n < k ? (int)n : k;
    if (!MUTANT(17)) /* stale counts */
        for (int i = t; i < SPREAD; i += SELECT_THREADS)
            r.count[i] = 0;
    wait_for_previous();
    for (int i = kept + t; i < k; i += SELECT_THREADS)
        out[i] = -1;
    if (kept <= 0)
        return;
    /* The first HELD * SELECT_THREADS keys stay in registers: loaded together, read again. */
    uint32_t held[HELD], high = 0;
    float score[HELD];
    bool quads = ld % 4 == 0 && (uintptr_t)scores % 16 == 0;
    auto row_of = [=](int i) {
        return quads ? i / 4 * 4 * SELECT_THREADS + 4 * t + i % 4 : i * SELECT_THREADS + t;
    };
    /* No branch by row: the loads must not wait for each other. */
    if (quads) {
#pragma unroll
        for (int i = 0; i < HELD; i += 4) {
            int at = row_of(i);
            float4 v = __ldcg((const float4 *)(const void *)(scores + (at < n ? at : 0)));
            score[i] = v.x;
            score[i + 1] = v.y;
            score[i + 2] = v.z;
            score[i + 3] = v.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < HELD; i++)
            score[i] = __ldcg(scores + (row_of(i) < n ? row_of(i) : 0));
    }
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        held[i] = row_of(i) < n ? key_of(score[i]) : 0;
        high = held[i] > high ? held[i] : high;
    }
    for (int64_t j = HELD * SELECT_THREADS + t; j < n; j += SELECT_THREADS) {
        uint32_t key = key_of(__ldcg(&scores[j]));
        high = key > high ? key : high;
    }
    /* Threads that hold a key; those without say nothing. Fewer than k: the worst key of all. */
    int64_t holders = quads ? (n + 3) / 4 : n;
    uint32_t group = high;
    if (holders < kept || kept > SELECT_THREADS) {
        group = n > HELD * SELECT_THREADS ? 0 : 0xffffffffu;
#pragma unroll
        for (int i = 0; i < HELD; i++)
            group = row_of(i) < n && held[i] < group ? held[i] : group;
    } else if (t >= holders) {
        group = 0xffffffffu;
    }
    for (int step = 1; holders >= SELECT_THREADS && step < 32 &&
                       SELECT_THREADS / (2 * step) >= kept;
         step *= 2) {
        uint32_t other = __shfl_xor_sync(0xffffffffu, group, step);
        group = other > group ? other : group;
    }
    high = __reduce_max_sync(0xffffffffu, high);
    group = __reduce_min_sync(0xffffffffu, group);
    if (lane == 0) {
        r.high[warp] = high;
        r.low[warp] = group;
    }
    if (t == 0) {
        r.crowded = 0;
        r.places = most + 1; /* until somebody finds the edge */
    }
    __syncthreads();
    high = __reduce_max_sync(0xffffffffu, r.high[lane]);
    uint32_t low = __reduce_min_sync(0xffffffffu, r.low[lane]);
    /* Bins by key: by the logarithm, that is; on both sides of zero by value instead. Both ways a
     * larger key never falls into a lower bin. */
    int bits = 32 - __clz((int)(high - low)), shift = bits > 11 ? bits - 11 : 0;
    float bottom = value_of(low), top = value_of(high), width = top - bottom;
    float per_unit = __fdiv_rn((float)(SPREAD - 1), width);
    bool by_value = bottom < 0 && top > 0 && width <= FLT_MAX && per_unit <= FLT_MAX;
    auto bin_of = [=](uint32_t key) {
        int by_size = (int)((value_of(key) - bottom) * per_unit);
        return by_value ? by_size : (int)((key - low) >> shift);
    };
    unsigned in = 0; /* bit i: row_of(i) is one */
#pragma unroll
    for (int i = 0; i < HELD; i++)
        in |= row_of(i) < n && held[i] >= low ? 1u << i : 0u;
    if (by_value)
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if ((in >> i & 1u) != 0)
                atomicAdd(&r.count[bin_of(held[i])], 1);
        }
    else
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if ((in >> i & 1u) != 0)
                atomicAdd(&r.count[(held[i] - low) >> shift], 1);
        }
    for (int64_t j = HELD * SELECT_THREADS + t; j < n; j += SELECT_THREADS) {
        uint32_t key = key_of(__ldcg(&scores[j]));
        if (key >= low)
            atomicAdd(&r.count[bin_of(key)], 1);
    }
    __syncthreads();
    /* Thread t has the bins SPREAD - 1 - 2 t and the one below. */
    int bin = SPREAD - 1 - 2 * t, upper = r.count[bin], lower = r.count[bin - 1];
    int sum = upper + lower;
    for (int step = 1; step < 32; step *= 2) {
        int other = __shfl_up_sync(0xffffffffu, sum, step);
        sum += lane >= step ? other : 0;
    }
    if (lane == 31)
        r.sums[warp] = sum;
    __syncthreads();
    int before = sum - upper - lower +
                 (int)__reduce_add_sync(0xffffffffu, lane < warp ? (unsigned)r.sums[lane] : 0u);
    r.next[bin] = before;
    r.next[bin - 1] = before + upper;
    if ((before < kept && upper > CROWDED) || (before + upper < kept && lower > CROWDED))
        r.crowded = 1;
    if (before < kept && before + upper + lower >= kept) { /* exactly one thread */
        bool here = before + upper >= kept;
        r.edge = here ? bin : bin - 1;
        r.places = before + upper + (here ? 0 : lower);
    }
    __syncthreads();
    if (r.crowded != 0 || r.places > most) {
        topk_any(scores, n, kept, sorted, &r, best, out);
        return;
    }
    int edge = r.edge, places = r.places;
    auto put = [&](uint32_t key, int bin, uint32_t row) {
        best[atomicAdd(&r.next[bin], 1)] = (uint64_t)key << 32 | (0xffffffffu - row);
    };
    if (by_value)
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if ((in >> i & 1u) != 0 && bin_of(held[i]) >= edge)
                put(held[i], bin_of(held[i]), (uint32_t)row_of(i));
        }
    else
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            if ((in >> i & 1u) != 0 && held[i] - low >= (uint32_t)edge << shift)
                put(held[i], (int)((held[i] - low) >> shift), (uint32_t)row_of(i));
        }
    for (int64_t j = HELD * SELECT_THREADS + t; j < n; j += SELECT_THREADS) {
        uint32_t key = key_of(__ldcg(&scores[j]));
        int at = bin_of(key);
        if (key >= low && at >= edge)
            put(key, at, (uint32_t)j);
    }
    __syncthreads();
    for (int i = t; i < places; i += SELECT_THREADS) {
        uint64_t x = best[i];
        int at = bin_of((uint32_t)(x >> 32)), end = r.next[at];
        int rank = end - r.count[at];
        for (int j = rank, last = end; j < last; j++)
            rank += best[j] > x ? 1 : 0;
        /* A row's number is kept reversed: of equal keys the lowest row is the largest. */
        if (rank < k)
            out[rank] = (int32_t)(0xffffffffu - (uint32_t)x);
    }
}

extern "C" void cu_topk(cu_stream s, const float *scores, int64_t ld, int64_t n, int64_t n_rows,
                        const int64_t *pos0, int ratio, int k, int32_t *out)
{
    static bool raised;
    int sorted = 2;
    while (sorted < k)
        sorted *= 2;
    int most = sorted > 2048 ? sorted : 2048;
    if (!raised)
        raised = cudaFuncSetAttribute(topk, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      CU_MOST_TOPK * (int)sizeof(uint64_t)) == cudaSuccess;
    if (n > 0 && k > 0)
        LAUNCH("topk", n * n_rows, topk, (unsigned)n, SELECT_THREADS,
               (size_t)most * sizeof(uint64_t), s, scores, ld, n_rows, pos0, ratio, k, sorted, most,
               out);
}
