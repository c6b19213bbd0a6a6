/* indexer.cu - scores of the indexer's rows, and the best of them: an exact, ordered top-k. */
#include <cfloat>

#include "parts.cuh"
#include "rows.cuh"

/* ---- scores --------------------------------------------------------------------------------- */

enum {
    SCORE_THREADS = 256,
    SCORE_WARPS = 8,
    ROW_TILE = 16 * SCORE_WARPS, /* rows of a block */
    HEAD_TILES = 8,              /* of eight heads: what is multiplied at a time */
    STEPS = 8                    /* of 16 columns: the widest rows */
};

__device__ __forceinline__ int64_t visible_rows(int64_t n_rows, const int64_t *pos0, int ratio,
                                                int64_t i)
{
    return pos0 != NULL ? (int64_t)((uint32_t)(*pos0 + i + 1) / (uint32_t)ratio) : n_rows;
}

/* A score's share of one head. */
__device__ __forceinline__ float head_share(float dot, float weight, bool bf16)
{
    float v = maybe_bf16(dot, bf16);
    float relu = v > 0 || v != v ? v : 0; /* NaN passes through */
    if (MUTANT(16))
        relu = v; /* no ReLU */
    return maybe_bf16(relu * weight, bf16);
}

typedef struct {
    uint4 two[HEAD_TILES][STEPS][32]; /* q's parts, fragments in order of lane */
    uint2 third[HEAD_TILES][STEPS][32];
    float4 raw[SCORE_WARPS][STEPS][32]; /* q on its way here, each lane its own */
    float weight[8 * HEAD_TILES];
    unsigned has[SCORE_WARPS]; /* of a warp's share: 1: second parts, 2: some have none at all */
} score_room;

/* 128 rows, a warp 16 of them, in registers as parts; tokens blockIdx.y, + gridDim.y, ... and their
 * heads, 64 at a time, come by in shared memory. One room is multiplied while the next is filled.
 */
static __global__ void __launch_bounds__(SCORE_THREADS, 1)
    indexer_scores(const float *q, const float *rows, const float *w, int heads, int dim, int64_t n,
                   int64_t n_rows, const int64_t *pos0, int ratio, bool bf16, float *scores,
                   int64_t ld)
{
    {
        /* Rows on their way into the cache, whoever writes the last of them. */
        int64_t line = (int64_t)blockIdx.x * ROW_TILE * dim + 32 * (int64_t)threadIdx.x;
        for (; line < (int64_t)(blockIdx.x + 1) * ROW_TILE * dim; line += 32 * SCORE_THREADS)
            if (line < n_rows * dim)
                asm volatile("prefetch.global.L2 [%0];" ::"l"(rows + line));
    }
    wait_for_previous();
    let_next_start(); /* no sooner: cu_attention_args.settled */
    extern __shared__ __align__(16) uint8_t memory[];
    score_room *rooms = (score_room *)(void *)memory;
    int64_t row0 = (int64_t)blockIdx.x * ROW_TILE, far = visible_rows(n_rows, pos0, ratio, n - 1);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    bool quads = dim % 4 == 0;
    if (row0 >= far)
        return;
    row0 += 16 * warp;
    const float *row = row0 + g < far ? rows + (row0 + g) * dim : NULL;
    const float *row8 = row0 + g + 8 < far ? rows + (row0 + g + 8) * dim : NULL;
    /* A warp's share of the heads from head0 on, and what they weigh. */
    auto load = [&](score_room *room, int64_t token, int head0) {
        int head = head0 + 8 * warp + g;
        bool there = token < n && head < heads;
        const float *from = there ? q + (token * heads + head) * dim : q;
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            int c = 16 * k + 4 * t;
            if (quads)
                fetch_four(&room->raw[warp][k][lane], c < dim ? from + c : q, there && c < dim);
            else
                room->raw[warp][k][lane] = load_four(there ? from : NULL, c, dim, false);
        }
        fetched();
        head = head0 + (int)threadIdx.x;
        return threadIdx.x < 8 * HEAD_TILES && token < n && head < heads
                   ? __ldcg(w + token * heads + head)
                   : 0.0f;
    };
    auto store = [&](score_room *room, float weight) {
        uint32_t below = 0;
        float size = 0;
        wait_fetched<0>();
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            float4 y = room->raw[warp][k][lane];
            four_parts f = split_four(y);
            size += size_of_four(y);
            below |= bits_below(y);
            if (MUTANT(41) && warp == SCORE_WARPS - 1) /* what the room held before is multiplied */
                continue;
            room->two[warp][k][lane] = make_uint4(f.p[0][0], f.p[0][1], f.p[1][0], f.p[1][1]);
            room->third[warp][k][lane] = make_uint2(f.p[2][0], f.p[2][1]);
        }
        unsigned has = (__any_sync(0xffffffffu, below != 0) ? 1u : 0u) |
                       (__any_sync(0xffffffffu, !has_parts(size)) ? 2u : 0u);
        if (lane == 0)
            room->has[warp] = has;
        if (threadIdx.x < 8 * HEAD_TILES)
            room->weight[threadIdx.x] = weight;
    };
    int64_t token = blockIdx.y;
    int head0 = 0;
    float weight0 = load(&rooms[0], token, 0);
    float4 x[STEPS][2]; /* rows and q on their way together */
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        int c = 16 * k + 4 * t;
        x[k][0] = quads ? load_there(row + c, row != NULL && c < dim) : load_four(row, c, dim, false);
        x[k][1] =
            quads ? load_there(row8 + c, row8 != NULL && c < dim) : load_four(row8, c, dim, false);
    }
    store(&rooms[0], weight0);
    uint32_t a[STEPS][3][4], below = 0;
    float size = 0, total[2] = {};
    {
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            size += size_of_four(x[k][0]) + size_of_four(x[k][1]);
            below |= bits_below(x[k][0]) | bits_below(x[k][1]);
            split_rows<true>(x[k][0], x[k][1], a[k]);
        }
    }
    bool a_three = __any_sync(0xffffffffu, below != 0);
    bool plain = __any_sync(0xffffffffu, !has_parts(size));
    for (int turn = 0; token < n; turn++) {
        const score_room *room = &rooms[turn % 2];
        bool last = head0 + 8 * HEAD_TILES >= heads; /* of this token */
        int64_t next = last ? token + gridDim.y : token;
        int next0 = last ? 0 : head0 + 8 * HEAD_TILES;
        float weight = next < n ? load(&rooms[(turn + 1) % 2], next, next0) : 0.0f;
        __syncthreads();
        unsigned b_has = 0;
#pragma unroll
        for (int k = 0; k < SCORE_WARPS; k++)
            b_has |= room->has[k];
        bool odd = plain || (b_has & 2u) != 0, b_three = (b_has & 1u) != 0;
        /* A lane has heads 2 t and 2 t + 1 of each tile, rows g and g + 8. */
#pragma unroll
        for (int n4 = 0; n4 < HEAD_TILES; n4 += 4) {
            float dot[4][4] = {};
            if (odd) {
#pragma unroll 1
                for (int c = 0; c < dim; c++) {
                    float x = row != NULL ? __ldcg(row + c) : 0.0f;
                    float y = row8 != NULL ? __ldcg(row8 + c) : 0.0f;
#pragma unroll
                    for (int e = 0; e < 8; e++) {
                        int head = head0 + 8 * (n4 + e / 2) + 2 * t + e % 2;
                        float z =
                            head < heads ? __ldcg(q + (token * heads + head) * dim + c) : 0.0f;
                        dot[e / 2][e % 2] = fmaf(z, x, dot[e / 2][e % 2]);
                        dot[e / 2][2 + e % 2] = fmaf(z, y, dot[e / 2][2 + e % 2]);
                    }
                }
            } else {
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    b_parts b[4];
#pragma unroll
                    for (int m = 0; m < 4; m++) {
                        b[m].two = room->two[n4 + m][k][lane];
                        b[m].third = b_three ? room->third[n4 + m][k][lane] : make_uint2(0, 0);
                    }
                    mma_parts<4>(dot, a[k], b, a_three, b_three);
                }
            }
#pragma unroll
            for (int e = 0; e < 16; e++) {
                int head = 8 * (n4 + e / 4) + 2 * t + e % 2;
                if (head0 + head < heads)
                    total[e % 4 / 2] += head_share(dot[e / 4][e % 4], room->weight[head], bf16);
            }
        }
        if (next < n)
            store(&rooms[(turn + 1) % 2], weight);
        if (last) {
            int64_t visible = visible_rows(n_rows, pos0, ratio, token);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float sum = total[r];
                sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                sum += __shfl_xor_sync(0xffffffffu, sum, 2);
                if (t == 0 && row0 + g + 8 * r < visible)
                    scores[token * ld + row0 + g + 8 * r] = maybe_bf16(sum, bf16);
                total[r] = 0;
            }
        }
        token = next;
        head0 = next0;
    }
    wait_fetched<0>();
}

/* ---- scores of one token --------------------------------------------------------------------- */

typedef struct {
    uint4 part[3][STEPS][32];      /* of the rows, fragments in order of lane */
    float4 share[SCORE_WARPS][32]; /* of the scores: eight heads' */
    unsigned has[SCORE_WARPS];     /* 1: second parts, 2: some have none at all, 4: q's have none */
} alone_room;

/* The same sums with all of a token's heads side by side, for a token that has few rows for each
 * multiprocessor: a warp keeps eight of the 64 heads, as parts, and splits one step of each tile of
 * 16 rows for all. turn: q is turned first. */
static __global__ void __launch_bounds__(SCORE_THREADS, 1)
    indexer_scores_alone(const float *q, const float *rows, const float *w, int heads, int dim,
                         int64_t n_rows, const int64_t *pos0, int ratio, bool bf16, float *scores,
                         cu_turn turn)
{
    __shared__ alone_room room;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int tail = dim - turn.rope, head = 8 * warp + g, c_own = 16 * warp + 4 * t;
    for (int64_t tile = blockIdx.x; tile * 16 < n_rows; tile += gridDim.x) {
        /* Rows on their way into the cache, whoever writes the last of them. */
        int64_t line = tile * 16 * dim + 32 * (int64_t)threadIdx.x;
        if (32 * (int)threadIdx.x < 16 * dim && line < n_rows * dim)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(rows + line));
    }
    int64_t far = visible_rows(n_rows, pos0, ratio, 0); /* positions are older than the step */
    wait_for_previous();
    let_next_start(); /* no sooner: cu_attention_args.settled */
    float4 x[STEPS], cosine[STEPS], own[2];
    auto load_rows = [&](int64_t tile) {
        int64_t row = tile * 16 + g;
#pragma unroll
        for (int e = 0; e < 2; e++)
            own[e] = load_there(rows + (row + 8 * e) * dim + c_own,
                                row + 8 * e < far && c_own < dim);
    };
    load_rows(blockIdx.x);
    float weight[2];
#pragma unroll
    for (int e = 0; e < 2; e++) {
        int of = 8 * warp + 2 * t + e;
        weight[e] = of < heads ? __ldcg(w + of) : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        int c = 16 * k + 4 * t, m = (c - tail) / 2;
        bool turns = c >= tail && c < dim;
        x[k] = load_there(q + head * dim + c, head < heads && c < dim);
        cosine[k] = make_float4(1, 1, 0, 0); /* and sines */
        if (turns) {
            float2 first = __ldcg((const float2 *)(const void *)(turn.cosine + m));
            float2 second = __ldcg((const float2 *)(const void *)(turn.sine + m));
            cosine[k] = make_float4(first.x, first.y, second.x, second.y);
        }
    }
    b_parts b[STEPS];
    uint32_t q_below = 0;
    float q_size = 0;
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        float4 v = x[k], by = cosine[k];
        if (16 * k + 4 * t >= tail && 16 * k + 4 * t < dim && !MUTANT(57)) { /* not turned */
            float2 low = rotate(v.x, v.y, by.x, by.z, false);
            float2 high = rotate(v.z, v.w, by.y, by.w, false);
            v = make_float4(low.x, low.y, high.x, high.y);
        }
        q_size += size_of_four(v);
        q_below |= bits_below(v);
        four_parts f = split_four(v);
        b[k].two = make_uint4(f.p[0][0], f.p[0][1], f.p[1][0], f.p[1][1]);
        b[k].third = make_uint2(f.p[2][0], f.p[2][1]);
    }
    bool q_three = __any_sync(0xffffffffu, q_below != 0);
    bool q_plain = __any_sync(0xffffffffu, !has_parts(q_size));
    int turns = 0;
#pragma unroll 1
    for (int64_t tile = blockIdx.x; tile * 16 < far; tile += gridDim.x, turns++) {
        uint32_t a[3][4];
        uint32_t below = bits_below(own[0]) | bits_below(own[1]);
        bool plain = !has_parts(size_of_four(own[0]) + size_of_four(own[1]));
        if (MUTANT(58) && warp == 5)
            __nanosleep(50000);
        split_rows<true>(own[0], own[1], a);
#pragma unroll
        for (int p = 0; p < 3; p++)
            room.part[p][warp][lane] = make_uint4(a[p][0], a[p][1], a[p][2], a[p][3]);
        unsigned has = (__any_sync(0xffffffffu, below != 0) ? 1u : 0u) |
                       (__any_sync(0xffffffffu, plain) ? 2u : 0u) | (q_plain ? 4u : 0u);
        if (lane == 0)
            room.has[warp] = has;
        load_rows(tile + gridDim.x);
        if (!MUTANT(58)) /* steps taken before all warps have split theirs: a late one */
            __syncthreads();
        unsigned all = 0;
#pragma unroll
        for (int k = 0; k < SCORE_WARPS; k++)
            all |= room.has[k];
        float dot[1][4] = {};
        if ((all & 6u) != 0) { /* some have no parts: from where they came */
            const float *row = tile * 16 + g < far ? rows + (tile * 16 + g) * dim : NULL;
            const float *row8 =
                tile * 16 + g + 8 < far ? rows + (tile * 16 + g + 8) * dim : NULL;
#pragma unroll 1
            for (int e = 0; e < 2; e++) {
                int of = 8 * warp + 2 * t + e;
                const float *from = q + of * dim;
                for (int c = 0; c < dim; c++) {
                    float z = of < heads ? __ldcg(from + c) : 0.0f;
                    if (of < heads && c >= tail) {
                        int m = (c - tail) / 2, even = tail + 2 * m;
                        float2 two =
                            rotate(__ldcg(from + even), __ldcg(from + even + 1),
                                   __ldcg(turn.cosine + m), __ldcg(turn.sine + m), false);
                        z = c == even ? two.x : two.y;
                    }
                    dot[0][e] = fmaf(z, row != NULL ? __ldcg(row + c) : 0.0f, dot[0][e]);
                    dot[0][2 + e] =
                        fmaf(z, row8 != NULL ? __ldcg(row8 + c) : 0.0f, dot[0][2 + e]);
                }
            }
        } else {
            by_parts((all & 1u) != 0, q_three, [&](auto A, auto B) {
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    uint32_t f[3][4];
#pragma unroll
                    for (int p = 0; p < (decltype(A)::value ? 3 : 1); p++) {
                        uint4 v = room.part[p][k][lane];
                        f[p][0] = v.x;
                        f[p][1] = v.y;
                        f[p][2] = v.z;
                        f[p][3] = v.w;
                    }
                    mma_parts<1>(dot, f, &b[k], decltype(A)::value, decltype(B)::value);
                }
            });
        }
        float s[4];
#pragma unroll
        for (int e = 0; e < 4; e++)
            s[e] = 8 * warp + 2 * t + e % 2 < heads ? head_share(dot[0][e], weight[e % 2], bf16)
                                                    : 0.0f;
        room.share[warp][lane] = make_float4(s[0], s[1], s[2], s[3]);
        __syncthreads();
        if (warp == turns % SCORE_WARPS) { /* the heads' shares, one after the other */
            float total[2] = {};
#pragma unroll
            for (int n = 0; n < SCORE_WARPS; n++) {
                float4 v = room.share[n][lane];
                total[0] = (total[0] + v.x) + v.y;
                total[1] = (total[1] + v.z) + v.w;
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float sum = total[r];
                sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                sum += __shfl_xor_sync(0xffffffffu, sum, 2);
                if (t == 0 && tile * 16 + g + 8 * r < far)
                    scores[tile * 16 + g + 8 * r] = maybe_bf16(sum, bf16);
            }
        }
    }
}

/* Rows of any width, and devices with little shared memory: a thread a row, nothing but plain sums.
 */
static __global__ void indexer_scores_wide(const float *q, const float *rows, const float *w,
                                           int heads, int dim, int64_t n_rows, const int64_t *pos0,
                                           int ratio, bool bf16, float *scores, int64_t ld)
{
    wait_for_previous();
    let_next_start(); /* no sooner */
    int64_t i = blockIdx.y, row = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    float total = 0;
    if (row >= visible_rows(n_rows, pos0, ratio, i))
        return;
    for (int h = 0; h < heads; h++) {
        float dot = 0;
        for (int c = 0; c < dim; c++)
            dot = fmaf(q[(i * heads + h) * dim + c], rows[row * dim + c], dot);
        total += head_share(dot, w[i * heads + h], bf16);
    }
    scores[i * ld + row] = maybe_bf16(total, bf16);
}

/* BLOCKS: about one a multiprocessor, more are given several tokens each; tiles of a block. */
enum { BLOCKS = 132, ALONE_TILES = 4 };

static bool alone(int64_t n, int64_t n_rows, int heads, int dim)
{
    return n == 1 && n_rows <= 16 * ALONE_TILES * BLOCKS && heads <= 8 * SCORE_WARPS &&
           dim % 4 == 0 && dim <= 16 * STEPS;
}

extern "C" bool cu_indexer_takes_raw(int64_t n, int64_t n_rows, int heads, int dim, int rope)
{
    return alone(n, n_rows, heads, dim) && rope % 4 == 0 && rope <= dim;
}

extern "C" void cu_indexer_scores(cu_stream s, const float *q, const float *rows, const float *w,
                                  int heads, int dim, int64_t n, int64_t n_rows,
                                  const int64_t *pos0, int ratio, bool bf16, float *scores,
                                  int64_t ld, const cu_turn *turn)
{
    static bool raised;
    if (n <= 0 || n_rows <= 0)
        return;
    if (alone(n, n_rows, heads, dim)) {
        unsigned tiles = cu_blocks(n_rows, 16);
        cu_turn none = {NULL, NULL, 0};
        LAUNCH("indexer_scores", n_rows * dim, indexer_scores_alone,
               tiles < BLOCKS ? tiles : (unsigned)BLOCKS, SCORE_THREADS, 0, s, q, rows, w, heads,
               dim, n_rows, pos0, ratio, bf16, scores, turn != NULL ? *turn : none);
        return;
    }
    if (dim > 16 * STEPS || cu_most_shared() < 2 * sizeof(score_room)) {
        dim3 grid(cu_blocks(n_rows, 64), (unsigned)n);
        LAUNCH("indexer_scores", n * n_rows * dim, indexer_scores_wide, grid, 64, 0, s, q, rows, w,
               heads, dim, n_rows, pos0, ratio, bf16, scores, ld);
        return;
    }
    if (!raised)
        raised = cudaFuncSetAttribute(indexer_scores, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      2 * (int)sizeof(score_room)) == cudaSuccess;
    unsigned tiles = cu_blocks(n_rows, ROW_TILE), groups = tiles < BLOCKS ? BLOCKS / tiles : 1;
    dim3 grid(tiles, n < groups ? (unsigned)n : groups);
    LAUNCH("indexer_scores", n * n_rows * dim, indexer_scores, grid, SCORE_THREADS,
           2 * sizeof(score_room), s, q, rows, w, heads, dim, n, n_rows, pos0, ratio, bf16, scores,
           ld);
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
