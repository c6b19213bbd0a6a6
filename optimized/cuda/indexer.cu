/* indexer.cu - scores of the indexer's rows, and the best of them: an exact, ordered top-k. */
#include "device.cuh"

/* ---- scores --------------------------------------------------------------------------------- */

enum { ROW_TILE = 64, HEAD_TILE = 64, DIM_TILE = 32, SCORE_THREADS = 256 };

__device__ __forceinline__ int64_t visible_rows(int64_t n_rows, const int64_t *pos0, int ratio,
                                                int64_t i)
{
    return pos0 != NULL ? (*pos0 + i + 1) / ratio : n_rows;
}

/* 64 rows of one token; the heads in tiles of 64, a thread 4 rows of 4 heads. */
static __global__ void indexer_scores(const float *q, const float *rows, const float *w, int heads,
                                      int dim, int64_t n_rows, const int64_t *pos0, int ratio,
                                      bool bf16, float *scores, int64_t ld)
{
    begin();
    __shared__ float qs[DIM_TILE][HEAD_TILE + 4], rs[DIM_TILE][ROW_TILE + 4];
    __shared__ float part[16][ROW_TILE + 1];
    int64_t i = blockIdx.y, visible = visible_rows(n_rows, pos0, ratio, i);
    int64_t row0 = (int64_t)blockIdx.x * ROW_TILE;
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16; /* rows 4 tx, heads 4 ty */
    if (row0 >= visible)
        return;
    q += i * heads * dim;
    float total[4] = {};
    for (int head0 = 0; head0 < heads; head0 += HEAD_TILE) {
        float dot[4][4] = {}; /* [head][row] */
        for (int c0 = 0; c0 < dim; c0 += DIM_TILE) {
            for (int t = threadIdx.x; t < DIM_TILE * HEAD_TILE; t += SCORE_THREADS) {
                int c = t % DIM_TILE, h = t / DIM_TILE;
                qs[c][h] = head0 + h < heads && c0 + c < dim
                               ? q[(int64_t)(head0 + h) * dim + c0 + c]
                               : 0.0f;
                rs[c][h] = row0 + h < visible && c0 + c < dim ? rows[(row0 + h) * dim + c0 + c]
                                                              : 0.0f;
            }
            __syncthreads();
            int columns = dim - c0 < DIM_TILE ? dim - c0 : DIM_TILE;
#pragma unroll 8
            for (int c = 0; c < columns; c++) {
                float4 a = *(const float4 *)(const void *)&qs[c][4 * ty];
                float4 b = *(const float4 *)(const void *)&rs[c][4 * tx];
                const float *x = &a.x, *y = &b.x;
#pragma unroll
                for (int h = 0; h < 4; h++)
#pragma unroll
                    for (int r = 0; r < 4; r++)
                        dot[h][r] = fmaf(x[h], y[r], dot[h][r]);
            }
            __syncthreads();
        }
        for (int h = 0; h < 4; h++) {
            int head = head0 + 4 * ty + h;
            if (head >= heads)
                break;
            float weight = w[i * heads + head];
            for (int r = 0; r < 4; r++) {
                float v = maybe_bf16(dot[h][r], bf16);
                float relu = v > 0 || v != v ? v : 0; /* NaN passes through */
                if (MUTANT(16))
                    relu = v; /* no ReLU */
                total[r] += maybe_bf16(relu * weight, bf16);
            }
        }
    }
    for (int r = 0; r < 4; r++)
        part[ty][4 * tx + r] = total[r];
    __syncthreads();
    if (threadIdx.x < ROW_TILE && row0 + threadIdx.x < visible) {
        float sum = 0;
        for (int t = 0; t < 16; t++)
            sum += part[t][threadIdx.x];
        scores[i * ld + row0 + threadIdx.x] = maybe_bf16(sum, bf16);
    }
}

extern "C" void cu_indexer_scores(cu_stream s, const float *q, const float *rows, const float *w,
                                  int heads, int dim, int64_t n, int64_t n_rows,
                                  const int64_t *pos0, int ratio, bool bf16, float *scores,
                                  int64_t ld)
{
    dim3 grid(cu_blocks(n_rows, ROW_TILE), (unsigned)n);
    if (n > 0 && n_rows > 0)
        LAUNCH("indexer_scores", n * n_rows * dim, indexer_scores, grid, SCORE_THREADS, 0, s, q,
               rows, w, heads, dim, n_rows, pos0, ratio, bf16, scores, ld);
}

static __global__ void index_weights(float *w, int64_t n, float scale, bool bf16)
{
    begin();
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        w[i] = maybe_bf16(w[i] * scale, bf16);
}

extern "C" void cu_index_weights(cu_stream s, float *w, int64_t n, int heads, int dim, bool bf16)
{
    float scale = (float)(1.0 / sqrt((double)dim) / sqrt((double)heads));
    if (n > 0)
        LAUNCH("index_weights", n * heads, index_weights, cu_blocks(n * heads, 64), 64, 0, s, w,
               n * heads, scale, bf16);
}

/* ---- top-k ---------------------------------------------------------------------------------- */

enum { SELECT_THREADS = 1024, BINS = 256, HELD = 16 /* keys a thread keeps */ };

/* Larger is better; NaN below everything, both zeros alike. */
__device__ __forceinline__ uint32_t key_of(float score)
{
    if (score != score)
        return 0;
    uint32_t b = __float_as_uint(score == 0 ? 0.0f : score);
    return (b & 0x80000000u ? ~b : b | 0x80000000u);
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

/* A block a token. Four passes of eight bits find the k-th best key; the rows above it and as many
 * of those equal to it as there is room for, the lowest first, are gathered and sorted. */
static __global__ void __launch_bounds__(SELECT_THREADS)
    topk(const float *all_scores, int64_t ld, int64_t n_rows, const int64_t *pos0, int ratio, int k,
         int sorted, int32_t *all_out)
{
    begin();
    extern __shared__ uint64_t best[]; /* [sorted], a power of two, at least k */
    __shared__ int bins[BINS], above[BINS / 32], room[32], taken, wanted, equals;
    __shared__ uint32_t prefix;
    int64_t token = blockIdx.x, n = visible_rows(n_rows, pos0, ratio, token);
    const float *scores = all_scores + token * ld;
    int32_t *out = all_out + token * k;
    int t = threadIdx.x, lane = t % 32;
    int kept = n < k ? (int)n : k;
    for (int i = t; i < sorted; i += SELECT_THREADS)
        if (!MUTANT(17)) /* stale slots */
            best[i] = 0;
    if (t == 0) {
        prefix = 0;
        wanted = equals = kept;
        taken = 0;
    }
    __syncthreads();
    /* The first HELD * SELECT_THREADS keys stay in registers: loaded together, read five times. */
    uint32_t held[HELD];
#pragma unroll
    for (int i = 0; i < HELD; i++)
        held[i] = i * SELECT_THREADS + t < n ? key_of(scores[i * SELECT_THREADS + t]) : 0;
    for (int shift = 24; kept > 0 && kept < n && shift >= 0; shift -= 8) {
        if (t < BINS)
            bins[t] = 0;
        __syncthreads();
        uint32_t high = shift == 24 ? 0 : 0xffffffffu << (shift + 8), seen = prefix;
        int left = wanted;
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (i * SELECT_THREADS < n)
                count_key(held[i], i * SELECT_THREADS + t < n && (held[i] & high) == seen, shift,
                          bins);
        for (int64_t j0 = HELD * SELECT_THREADS; j0 < n; j0 += SELECT_THREADS) {
            uint32_t key = j0 + t < n ? key_of(scores[j0 + t]) : 0;
            count_key(key, j0 + t < n && (key & high) == seen, shift, bins);
        }
        __syncthreads();
        /* Thread t has bin 255 - t: how many keys lie in the bins above it? */
        int mine = t < BINS ? bins[BINS - 1 - t] : 0, sum = mine;
        if (t < BINS) {
            for (int step = 1; step < 32; step *= 2) {
                int other = __shfl_up_sync(0xffffffffu, sum, step);
                sum += lane >= step ? other : 0;
            }
            if (lane == 31)
                above[t / 32] = sum;
        }
        __syncthreads();
        if (t < BINS) {
            for (int i = 0; i < t / 32; i++)
                sum += above[i];
            if (sum >= left && sum - mine < left) { /* exactly one thread */
                wanted = left - (sum - mine);
                prefix = seen | (uint32_t)(BINS - 1 - t) << shift;
                equals = mine;
            }
        }
        __syncthreads();
    }
    /* wanted: how many rows with the key `prefix` itself are among the best, of `equals`. */
    uint32_t edge = prefix;
    int equal_left = wanted;
    bool all = kept == n, every = all || equals == wanted;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < HELD; i++)
        if (i * SELECT_THREADS < n && kept > 0)
            gather(held[i], i * SELECT_THREADS + t, n, all, every, edge, &equal_left, room, &taken,
                   best);
    for (int64_t j0 = HELD * SELECT_THREADS; j0 < n && kept > 0; j0 += SELECT_THREADS)
        gather(j0 + t < n ? key_of(scores[j0 + t]) : 0, j0 + t, n, all, every, edge, &equal_left,
               room, &taken, best);
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
    for (int i = t; i < k; i += SELECT_THREADS)
        out[i] = i < kept ? (int32_t)(0xffffffffu - (uint32_t)best[i]) : -1;
}

extern "C" void cu_topk(cu_stream s, const float *scores, int64_t ld, int64_t n, int64_t n_rows,
                        const int64_t *pos0, int ratio, int k, int32_t *out)
{
    int sorted = 2;
    while (sorted < k)
        sorted *= 2;
    if (n > 0 && k > 0)
        LAUNCH("topk", n * n_rows, topk, (unsigned)n, SELECT_THREADS,
               (size_t)sorted * sizeof(uint64_t), s, scores, ld, n_rows, pos0, ratio, k, sorted,
               out);
}
