/* gemm.cuh - products of many tokens on the tensor cores: a block computes 128 rows of W for a tile
 * of tokens. W is decoded from its storage format into bf16 tiles in shared memory while the stage
 * before it is multiplied; x comes as bf16 parts (cu_gemm_split). The order of a sum is that of the
 * products of few tokens (mma.cuh): the results are the same bits.
 *
 *   a stage is 128 columns = 4 units of 32; a row of a stage 256 bytes = 16 pieces of 16 bytes, at
 *   places that keep the accesses of eight lanes in different banks (place())
 *   W [2][128 rows], decoded by everybody, a unit at a time; BF16 [stages][128 rows] by cp.async
 *   x [stages][parts][tokens] by cp.async
 *   factors [2][4 units][128 rows]: what a promotion block's sums are multiplied with
 *   heads [2 chunks][128 rows]: d, dmin and minima of formats that have them
 *   sums [2 chunks][3 parts][tokens]: of x, for the minima, by cp.async
 *
 * Private to gemm_*.cu. */
#ifndef DSV4_CUDA_GEMM_CUH
#define DSV4_CUDA_GEMM_CUH

#include "device.cuh"
#include "gemm.h"
#include "gemm_decode.cuh"

enum { THREADS = 512, ROWS = 128 /* of W, a block */, UNITS = 4, ROW_BYTES = 256 };

/* Where piece `piece` of row `row` of a tile lies. Readers are eight lanes of two rows and four
 * neighbouring pieces, writers eight lanes of four rows and every second piece. */
__device__ __forceinline__ uint32_t place(int row, int piece)
{
    return (uint32_t)(row * ROW_BYTES + (piece ^ (row & 1) << 2 ^ (row >> 1 & 1)) * 16);
}

__device__ __forceinline__ void copy_piece(uint32_t to, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void copies_done()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int PENDING> __device__ __forceinline__ void wait_for_copies()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ uint4 piece_at(uint32_t at)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(at)
                 : "memory");
    return v;
}

__device__ __forceinline__ uint32_t word_at(uint32_t at)
{
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}

/* How a block is laid out: PARTS parts of x, TOKENS tokens, STAGES of x on their way; WARPS_M warps
 * along the rows of W, the others along the tokens. Each has M m16 times N n8 tiles. */
template <int TYPE, int PARTS, int TOKENS> struct layout {
    typedef row_shape<TYPE> S;
    enum {
        WARPS_M = TOKENS >= 32 ? 4 : 8,
        WARPS_N = THREADS / 32 / WARPS_M,
        M = ROWS / WARPS_M / 16,
        N = TOKENS / WARPS_N / 8,
        STAGES = 3,
        DIRECT = TYPE == DSV4_BF16, /* copied as it is */
        W_STAGES = DIRECT ? STAGES : 2,
        W_BYTES = ROWS * ROW_BYTES,
        X_BYTES = PARTS * TOKENS * ROW_BYTES,
        X_AT = W_STAGES * W_BYTES,
        FACTORS_AT = X_AT + STAGES * X_BYTES,
        HEADS_AT = FACTORS_AT + (DIRECT ? 0 : 2 * UNITS * ROWS * 4),
        HEAD_ROW = S::DEFERRED ? 8 + 2 * S::MINIMA : 0,
        SUMS_AT = HEADS_AT + (2 * ROWS * HEAD_ROW + 15) / 16 * 16,
        SUMS_ROW = 2 * S::MINIMA,
        SUMS_BYTES = 3 * TOKENS * SUMS_ROW,
        LISTS_AT = SUMS_AT + 2 * SUMS_BYTES,
        TABLES_AT = LISTS_AT + 2 * TOKENS * 4,
        BYTES = TABLES_AT + (TYPE == DSV4_IQ2_XXS ? (int)sizeof(cu_iq2_words) : 0),
        AHEAD = TOKENS <= 32 && PARTS == 1 ? 4 : 2 /* units of W on their way */
    };
};

/* A block's work. */
typedef struct {
    cu_tensor w;
    int row0, tokens;  /* first row; tokens of the tile */
    const uint16_t *x; /* parts [PARTS][..][pitch] */
    int64_t pitch, part;
    const uint16_t *sums; /* [3][..][cols * MINIMA / 256] */
    int64_t sums_part;
    float *y;
    int64_t ldy;
    bool bf16;
    int first;           /* the tile's first token; */
    const int32_t *list; /* or NULL: token i is list[first + i], */
    int per_row;         /* its row of x that number over per_row */
    const cu_iq2_words *iq2;
} tile_job;

template <int TYPE, int PARTS, int TOKENS> struct tile {
    typedef layout<TYPE, PARTS, TOKENS> L;
    typedef row_shape<TYPE> S;
    enum { M = L::M, N = L::N };

    const tile_job &g;
    uint8_t *shared;
    uint32_t base;
    int32_t *x_rows, *y_rows;
    float *factors;
    int units, stages;
    /* decoding: a run of eight columns of one row a thread */
    int my_row, my_run;
    const uint8_t *data, *scale;
    run_of_eight<TYPE> code[L::AHEAD];
    /* multiplying */
    int m0, n0, t, q;
    float sum[PARTS][M][N][4], total[M][N][4];

    __device__ __forceinline__ tile(const tile_job &job, uint8_t *room) : g(job), shared(room)
    {
        base = (uint32_t)__cvta_generic_to_shared(shared);
        x_rows = (int32_t *)(void *)(shared + L::LISTS_AT);
        y_rows = x_rows + TOKENS;
        factors = (float *)(void *)(shared + L::FACTORS_AT);
        units = (int)(g.w.cols / 32);
        stages = (units + UNITS - 1) / UNITS;
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        t = lane % 4;
        q = lane / 4;
        m0 = warp / L::WARPS_N * M * 16;
        n0 = warp % L::WARPS_N * N * 8;
        my_row = threadIdx.x / 4;
        my_run = threadIdx.x % 4;
        int64_t row = g.row0 + my_row < g.w.rows ? g.row0 + my_row : g.w.rows - 1;
        data = g.w.data + (size_t)row * g.w.row_bytes;
        scale = g.w.scale == NULL ? NULL
                                  : g.w.scale + (size_t)((g.w.row0 + (int)row) / g.w.scale_rows) *
                                                    g.w.scale_row_bytes;
    }

    /* ---- what is copied: stage k of x (and of W, if it is not decoded); zeros beyond the edges */

    __device__ __forceinline__ void fetch(int k)
    {
        int at = k % L::STAGES, piece = threadIdx.x % 16;
        int64_t column = (int64_t)k * 128 + piece * 8;
        bool within = column < g.w.cols;
#pragma unroll
        for (int i = 0; i < (TOKENS * 16 + THREADS - 1) / THREADS; i++) {
            int row = threadIdx.x / 16 + i * (THREADS / 16);
            if (TOKENS * 16 < THREADS && row >= TOKENS)
                break;
            bool there = within && row < g.tokens;
            const uint16_t *from = g.x + (there ? x_rows[row] * g.pitch + column : 0);
            uint32_t to = base + L::X_AT + at * L::X_BYTES + place(row, piece);
#pragma unroll
            for (int p = 0; p < PARTS; p++)
                copy_piece(to + p * TOKENS * ROW_BYTES, from + p * g.part, there);
        }
        if (L::DIRECT)
#pragma unroll
            for (int i = 0; i < ROWS * 16 / THREADS; i++) {
                int row = threadIdx.x / 16 + i * (THREADS / 16);
                bool there = within && g.row0 + row < g.w.rows;
                const uint8_t *from =
                    g.w.data + (there ? (g.row0 + row) * g.w.row_bytes + column * 2 : 0);
                copy_piece(base + at * L::W_BYTES + place(row, piece), from, there);
            }
        if (S::MINIMA > 0 && k % 2 == 0) {
            enum { PIECES = S::MINIMA == 16 ? 2 : 1 };
            for (int i = threadIdx.x; i < 3 * TOKENS * PIECES; i += THREADS) {
                int part = i / (TOKENS * PIECES), row = i / PIECES % TOKENS;
                bool there = row < g.tokens;
                int64_t pitch = g.w.cols / 256 * S::MINIMA;
                const uint16_t *from =
                    g.sums + (there ? part * g.sums_part + x_rows[row] * pitch +
                                          k / 2 * S::MINIMA + i % PIECES * 8
                                    : 0);
                copy_piece(base + L::SUMS_AT + k / 2 % 2 * L::SUMS_BYTES + i * 16, from, there);
            }
        }
    }

    /* ---- what is decoded: every thread eight columns of a unit of its row */

    __device__ __forceinline__ void load(run_of_eight<TYPE> *c, int unit)
    {
        int u = unit < units ? unit : units - 1;
        c->load(data + u / 8 * S::CHUNK_BYTES, scale + u / 8 * (TYPE == DSV4_FP8 ? 2 : 8), u % 8,
                my_run);
    }

    /* Unit u (0..3) of a stage. */
    __device__ __forceinline__ void decode(const run_of_eight<TYPE> &c, int stage, int u)
    {
        uint32_t v[4];
        int block = stage % 2 * 4 + u;
        c.codes(block, my_run, v, g.iq2);
        *(uint4 *)(void *)(shared + stage % 2 * L::W_BYTES + place(my_row, 4 * u + my_run)) =
            make_uint4(v[0], v[1], v[2], v[3]);
        if (S::BLOCKS <= 4 && my_run == 0 && (S::BLOCKS == 1 || u == 0))
            factors[(stage % 2 * UNITS + u) * ROWS + my_row] =
                stage * UNITS + u < units ? c.factor(block) : 0; /* x is zero there */
    }

    /* The head of a chunk: d and dmin, then the minima in order. */
    __device__ __forceinline__ void decode_head(int chunk)
    {
        if (!S::DEFERRED || chunk * 8 >= units)
            return;
        const uint8_t *from = data + (size_t)chunk * S::CHUNK_BYTES;
        uint8_t *to = shared + L::HEADS_AT + (chunk % 2 * ROWS + my_row) * L::HEAD_ROW;
        if (my_run == 0)
            *(float2 *)(void *)to = chunk_factors<TYPE, S::DEFERRED, S::MINIMA>::of(from);
        if (S::MINIMA > 0) {
            uint32_t m[2];
            row_minima<TYPE>().load(from, my_run, m);
            *(uint32_t *)(void *)(to + 8 + 4 * my_run) = m[0];
            if (S::MINIMA == 16)
                *(uint32_t *)(void *)(to + 24 + 4 * my_run) = m[1];
        }
    }

    /* ---- what is multiplied */

    __device__ __forceinline__ void unit(float (&acc)[PARTS][M][N][4], int u, uint32_t w_at,
                                         uint32_t x_at)
    {
        uint4 a[M][2], b[PARTS][N];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                a[m][h] = piece_at(w_at + place(m0 + m * 16 + h * 8 + q, 4 * u + t));
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int n = 0; n < N; n++)
                b[p][n] =
                    piece_at(x_at + p * TOKENS * ROW_BYTES + place(n0 + n * 8 + q, 4 * u + t));
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int m = 0; m < M; m++)
                    cu_mma16(acc[p][m][n], a[m][0].x, a[m][1].x, a[m][0].y, a[m][1].y, b[p][n].x,
                             b[p][n].y);
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int m = 0; m < M; m++)
                    cu_mma16(acc[p][m][n], a[m][0].z, a[m][1].z, a[m][0].w, a[m][1].w, b[p][n].z,
                             b[p][n].w);
    }

    /* A promotion block's sums into the chunk's. */
    __device__ __forceinline__ void promote(float (&acc)[PARTS][M][N][4], const float *factor)
    {
#pragma unroll
        for (int m = 0; m < M; m++) {
            float low = L::DIRECT ? 1 : factor[m * 16], high = L::DIRECT ? 1 : factor[m * 16 + 8];
#pragma unroll
            for (int p = 0; p < PARTS; p++)
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        sum[p][m][n][i] =
                            fmaf(i < 2 ? low : high, acc[p][m][n][i], sum[p][m][n][i]);
                        acc[p][m][n][i] = 0;
                    }
        }
    }

    /* The chunk's end: parts together, d and the minima, into the total. */
    __device__ __forceinline__ void finish(int chunk)
    {
        const uint8_t *heads = shared + L::HEADS_AT + chunk % 2 * ROWS * L::HEAD_ROW;
        const uint32_t sums_at = base + L::SUMS_AT + chunk % 2 * L::SUMS_BYTES;
#pragma unroll
        for (int m = 0; m < M; m++) {
            const uint8_t *head = heads + (m0 + m * 16 + q) * L::HEAD_ROW;
            float2 low = {1, 0}, high = {1, 0};
            uint32_t a[4];
            if (S::DEFERRED) {
                low = *(const float2 *)(const void *)head;
                high = *(const float2 *)(const void *)(head + 8 * L::HEAD_ROW);
            }
            if (S::MINIMA > 0) {
                a[0] = cu_word(head + 8 + 4 * t);
                a[1] = cu_word(head + 8 * L::HEAD_ROW + 8 + 4 * t);
            }
            if (S::MINIMA == 16) {
                a[2] = cu_word(head + 24 + 4 * t);
                a[3] = cu_word(head + 8 * L::HEAD_ROW + 24 + 4 * t);
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
                float least[3][4] = {};
                if (S::MINIMA > 0)
#pragma unroll
                    for (int p = 0; p < 3; p++) {
                        uint32_t at = sums_at + (p * TOKENS + n0 + n * 8 + q) * L::SUMS_ROW + 4 * t;
                        if (S::MINIMA == 8)
                            cu_mma8(least[p], a[0], a[1], word_at(at));
                        else
                            cu_mma16(least[p], a[0], a[1], a[2], a[3], word_at(at),
                                     word_at(at + 16));
                    }
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float s = sum[0][m][n][i];
                    if (PARTS == 3)
                        s = (s + sum[PARTS / 3][m][n][i]) + sum[PARTS - 1][m][n][i];
                    float2 d = i < 2 ? low : high;
                    if (S::MINIMA > 0)
                        s = fmaf(d.x, s, -(d.y * ((least[0][i] + least[1][i]) + least[2][i])));
                    else if (S::DEFERRED)
                        s *= d.x;
                    total[m][n][i] += s;
#pragma unroll
                    for (int p = 0; p < PARTS; p++)
                        sum[p][m][n][i] = 0;
                }
            }
        }
    }

    __device__ __forceinline__ void stage(int k)
    {
        const uint32_t w_at = base + (L::DIRECT ? k % L::STAGES : k % 2) * L::W_BYTES;
        const uint32_t x_at = base + L::X_AT + k % L::STAGES * L::X_BYTES;
        const float *factor = factors + k % 2 * UNITS * ROWS + m0 + q;
        float acc[PARTS][M][N][4] = {};
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            unit(S::BLOCKS == 8 ? sum : acc, u, w_at, x_at);
            if (S::BLOCKS == 1)
                promote(acc, factor + u * ROWS);
            if (!L::DIRECT) { /* between the products: a unit of the next stage */
                decode(code[u % L::AHEAD], k + 1, u);
                load(&code[u % L::AHEAD], (k + 1) * UNITS + u + L::AHEAD);
            }
        }
        if (S::BLOCKS == 4)
            promote(acc, factor);
        if (S::DEFERRED && k % 2 == 1)
            decode_head((k + 1) / 2);
    }

    __device__ __forceinline__ void run()
    {
        if (threadIdx.x < TOKENS) {
            int i = (int)threadIdx.x < g.tokens ? (int)threadIdx.x : 0, p = g.first + i;
            p = g.list != NULL ? g.list[p] : p;
            y_rows[threadIdx.x] = p;
            x_rows[threadIdx.x] = g.list != NULL ? p / g.per_row : p;
        }
        if (!L::DIRECT) {
#pragma unroll
            for (int u = 0; u < L::AHEAD; u++)
                load(&code[u], u);
        }
        __syncthreads();
        for (int k = 0; k < L::STAGES - 1; k++) {
            if (k < stages)
                fetch(k);
            copies_done();
        }
        if (!L::DIRECT) {
#pragma unroll
            for (int u = 0; u < UNITS; u++) {
                decode(code[u % L::AHEAD], 0, u);
                load(&code[u % L::AHEAD], u + L::AHEAD);
            }
            decode_head(0);
        }
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    total[m][n][i] = 0;
#pragma unroll
                    for (int p = 0; p < PARTS; p++)
                        sum[p][m][n][i] = 0;
                }
        for (int k = 0; k < stages; k++) {
            wait_for_copies<L::STAGES - 2>();
            __syncthreads();
            if (k + L::STAGES - 1 < stages)
                fetch(k + L::STAGES - 1);
            copies_done();
            stage(k);
            if (k % 2 == 1 || k == stages - 1)
                finish(k / 2);
        }
        wait_for_copies<0>();
        store();
    }

    __device__ __forceinline__ void store()
    {
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                int token = n0 + n * 8 + 2 * t + j;
                if (token >= g.tokens)
                    continue;
                float *y = g.y + (int64_t)y_rows[token] * g.ldy;
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        int row = g.row0 + m0 + m * 16 + h * 8 + q;
                        if (row < g.w.rows)
                            y[row] = maybe_bf16(total[m][n][2 * h + j], g.bf16);
                    }
            }
    }
};

/* ---- kernels -------------------------------------------------------------------------------- */

template <int TYPE, int PARTS, int TOKENS>
static __global__ void __launch_bounds__(THREADS, 1)
    gemm(const __grid_constant__ gemm_args a)
{
    typedef layout<TYPE, PARTS, TOKENS> L;
    extern __shared__ __align__(128) uint8_t shared[];
    begin();
    tile_job g;
    const gemm_segment *s = &a.seg[0];
    if (a.groups != NULL) {
        if ((int)blockIdx.y >= *a.n_groups)
            return;
        cu_expert_group e = a.groups[blockIdx.y];
        g.w = a.table[e.expert];
        g.row0 = (int)blockIdx.x * ROWS;
        g.first = e.first;
        g.tokens = e.count;
    } else {
        int segment = 0;
        while (segment + 1 < a.count && (int)blockIdx.x >= a.seg[segment + 1].first_block)
            segment++;
        s = &a.seg[segment];
        int block = (int)blockIdx.x - s->first_block;
        g.w = s->w;
        g.row0 = block / a.tiles * ROWS;
        g.first = block % a.tiles * TOKENS;
        g.tokens = a.n - g.first < TOKENS ? (int)a.n - g.first : TOKENS;
    }
    g.x = s->x;
    g.pitch = s->pitch;
    g.part = s->part;
    g.y = s->y;
    g.ldy = s->ldy;
    g.bf16 = s->bf16;
    g.list = a.list;
    g.per_row = a.per_row;
    g.sums = s->sums;
    g.sums_part = s->sums_part;
    g.iq2 = (const cu_iq2_words *)(const void *)(shared + L::TABLES_AT);
    if (TYPE == DSV4_IQ2_XXS) {
        const uint4 *from = (const uint4 *)a.iq2;
        uint4 *to = (uint4 *)(void *)(shared + L::TABLES_AT);
        for (int i = threadIdx.x; i < (int)(sizeof(cu_iq2_words) / sizeof(uint4)); i += THREADS)
            to[i] = __ldg(from + i);
    }
    tile<TYPE, PARTS, TOKENS>(g, shared).run();
}

template <int TYPE, int PARTS, int TOKENS>
static void gemm_launch(cu_stream s, unsigned blocks, unsigned groups, int64_t size,
                        const gemm_args *a)
{
    enum { BYTES = layout<TYPE, PARTS, TOKENS>::BYTES };
    static bool raised;
    if (!raised)
        cudaFuncSetAttribute(gemm<TYPE, PARTS, TOKENS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             BYTES);
    raised = true;
    LAUNCH("gemm", size, (gemm<TYPE, PARTS, TOKENS>), dim3(blocks, groups), THREADS, BYTES, s, *a);
}

template <int TYPE>
static void gemm_of(cu_stream s, int parts, int tokens, unsigned blocks, unsigned groups,
                    int64_t size, const gemm_args *a)
{
    if (parts == 1 && tokens == 96)
        gemm_launch<TYPE, 1, 96>(s, blocks, groups, size, a);
    else if (parts == 1 && tokens == 64)
        gemm_launch<TYPE, 1, 64>(s, blocks, groups, size, a);
    else if (parts == 1 && tokens == 32)
        gemm_launch<TYPE, 1, 32>(s, blocks, groups, size, a);
    else if (parts == 1)
        gemm_launch<TYPE, 1, 16>(s, blocks, groups, size, a);
    else if (tokens == 32)
        gemm_launch<TYPE, 3, 32>(s, blocks, groups, size, a);
    else
        gemm_launch<TYPE, 3, 16>(s, blocks, groups, size, a);
}

#endif
