/* indexer.cu - scores of the indexer's rows. */
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
        if (MUTANT(58)) /* steps taken before all warps have split theirs: a late one */
            __syncwarp();
        else
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

/* By parts: whatever tokens come along, or none, all go the same way. */
static bool in_parts(int dim)
{
    return dim <= 16 * STEPS && cu_most_shared() >= 2 * sizeof(score_room);
}

static bool alone(int64_t n, int64_t n_rows, int heads, int dim)
{
    return n == 1 && n_rows <= 16 * ALONE_TILES * BLOCKS && heads <= 8 * SCORE_WARPS &&
           dim % 4 == 0 && in_parts(dim);
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
    if (!in_parts(dim)) {
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
