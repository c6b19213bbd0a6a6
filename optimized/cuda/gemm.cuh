/* gemm.cuh - products of many tokens on the tensor cores: a block computes 128 rows of W for a tile
 * of tokens, a warp 16 of the rows for all of them. A lane decodes its share of the rows from their
 * storage format straight into the registers that mma takes them from; x comes as bf16 parts
 * (gemm.cu) through shared memory. The order of a sum is that of the products of few tokens
 * (mma.cuh): the results are the same bits.
 *
 * In shared memory:
 *   x [stages][parts][2][tokens]: rows of 64 columns, 128 bytes, by cp.async; a stage is 128
 * columns = 4 units of 32 sums [3 chunks][3 parts][tokens]: of x, for the minima, by cp.async
 *
 * Private to gemm_*.cu. */
#ifndef DSV4_CUDA_GEMM_CUH
#define DSV4_CUDA_GEMM_CUH

#include "device.cuh"
#include "gemm.h"
#include "gemm_decode.cuh"
#include "gemm_mma.cuh"

enum { THREADS = 256, ROWS = 128 /* of W, a block */, UNITS = 4 };

__device__ __forceinline__ void copy_piece(uint32_t to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void copies_done()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Also what wgmma reads, which is ordered apart from ordinary accesses. */
template <int PENDING> __device__ __forceinline__ void wait_for_copies()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#if GEMM_BY_WARPGROUPS
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ __forceinline__ uint32_t word_at(uint32_t at)
{
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
    return v;
}

/* Four 8 x 8 matrices of bf16: lane i gives the address of row i % 8 of matrix i / 8. */
__device__ __forceinline__ uint4 matrices_at(uint32_t at)
{
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(at)
                 : "memory");
    return v;
}

/* Of sums: stage 2c + 1, which ends with chunk c's, may begin by fetching those of chunk c + 2. */
#define BUFFERS (MUTANT(74) ? 2 : 3)

/* How a block is laid out: PARTS parts of x, TOKENS tokens, STAGES of x on their way. */
template <int TYPE, int PARTS, int TOKENS> struct layout {
    typedef row_shape<TYPE> S;
    enum {
        N = TOKENS / 8, /* n8 tiles */
        SUMS = 4 * N,   /* a lane's */
        STAGES = PARTS * TOKENS >= 128 ? 3 : 4,
        X_PART = 2 * TOKENS * 128,
        X_BYTES = PARTS * X_PART,
        SUMS_AT = STAGES * X_BYTES,
        SUMS_ROW = 2 * S::MINIMA,
        SUMS_BYTES = 3 * TOKENS * SUMS_ROW,
        LISTS_AT = SUMS_AT + 3 * SUMS_BYTES,
        ASIDE_AT = LISTS_AT + 2 * TOKENS * 4, /* where bytes of W go that are only brought nearer */
        TABLES_AT = ASIDE_AT + ROWS * 4,
        /* and room to begin at a multiple of 1024 */
        BYTES = 1024 + TABLES_AT + (TYPE == DSV4_IQ2_XXS ? (int)sizeof(cu_iq2_words) : 0),
        BLOCKS = PARTS * TOKENS <= 32 ? 2 : 1, /* of a multiprocessor */
        /* What measured best: whether W is brought near, and how many units are on their way. */
        NEAR = TYPE == DSV4_FP8 || TYPE == DSV4_FP4,
        AHEAD = NEAR || PARTS * TOKENS <= 64 ? 4 : 2
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
    enum { N = L::N, SUMS = L::SUMS };

    const tile_job &g;
    uint32_t base;
    int32_t *y_rows;
    uint32_t *x_from; /* elements from the start of a part */
    int units, stages, t, q;
    /* decoding: eight columns of each unit of rows q and q + 8 of the warp's */
    const uint8_t *data, *scale;
    uint32_t next_data, next_scale; /* bytes from a row to the other */
    run_of_eight<TYPE> code[L::AHEAD][2];
    uint32_t a[2][8]; /* two units of W as mma takes them: four words a step */
    float factor[2];
    /* sums: of a promotion block, of the chunk, of all */
    float acc[PARTS][SUMS], sum[PARTS][SUMS], total[SUMS];

    __device__ __forceinline__ tile(const tile_job &job, uint8_t *shared) : g(job)
    {
        base = (uint32_t)__cvta_generic_to_shared(shared);
        y_rows = (int32_t *)(void *)(shared + L::LISTS_AT);
        x_from = (uint32_t *)(void *)(y_rows + TOKENS);
        units = (int)(g.w.cols / 32);
        stages = (units + UNITS - 1) / UNITS;
        t = threadIdx.x % 4;
        q = threadIdx.x % 32 / 4;
        int last = (int)g.w.rows - 1, row = my_row(), other = row + 8;
        row = row < last ? row : last;
        other = other < last ? other : last;
        data = g.w.data + (size_t)row * g.w.row_bytes;
        next_data = (uint32_t)((size_t)(other - row) * g.w.row_bytes);
        scale = NULL;
        next_scale = 0;
        if (TYPE == DSV4_FP8 || TYPE == DSV4_FP4) {
            row = (g.w.row0 + row) / g.w.scale_rows;
            other = (g.w.row0 + other) / g.w.scale_rows;
            scale = g.w.scale + (size_t)row * g.w.scale_row_bytes;
            next_scale = (uint32_t)((size_t)(other - row) * g.w.scale_row_bytes);
        }
    }

    __device__ __forceinline__ int my_row() const
    {
        return g.row0 + threadIdx.x / 32 * 16 + q;
    }

    /* ---- what is copied: stage k of x, and the sums of a chunk with its first stage */

    __device__ __forceinline__ void fetch(int k)
    {
        const int piece = threadIdx.x % 16;
        uint32_t at = base + k % L::STAGES * L::X_BYTES + piece / 8 * TOKENS * 128;
        const uint16_t *from = g.x + k * 128 + piece * 8;
#pragma unroll
        for (int i = 0; i < TOKENS / 16; i++) {
            int token = threadIdx.x / 16 + i * 16;
            uint32_t to = at + token * 128 + (piece % 8 ^ token % 8) * 16;
#pragma unroll
            for (int p = 0; p < PARTS; p++)
                copy_piece(to + p * L::X_PART, from + p * g.part + x_from[token]);
        }
        enum { PIECES = S::MINIMA == 16 ? 2 : 1 };
        const int pieces = S::MINIMA > 0 && k % 2 == 0 ? 3 * TOKENS * PIECES : 0;
        for (int i = threadIdx.x; i < pieces; i += THREADS) {
            int part = i / (TOKENS * PIECES), token = i / PIECES % TOKENS;
            int64_t row = x_from[token] / (uint32_t)g.pitch;
            copy_piece(base + L::SUMS_AT + k / 2 % BUFFERS * L::SUMS_BYTES + i * 16,
                       g.sums + part * g.sums_part + row * (g.w.cols / 256 * S::MINIMA) +
                           k / 2 * S::MINIMA + i % PIECES * 8);
        }
    }

    /* A row's line for stage k into the cache next to the multiprocessor, so that load() finds it
     * there: what comes by cp.async holds no register while it is on its way. */
    __device__ __forceinline__ void bring(int k)
    {
        const int row = g.row0 + threadIdx.x;
        if (L::NEAR && threadIdx.x < ROWS && row < g.w.rows)
            asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(base + L::ASIDE_AT +
                                                                          threadIdx.x * 4),
                         "l"(g.w.data + row * g.w.row_bytes + k * (S::CHUNK_BYTES / 2))
                         : "memory");
    }

    /* ---- what is decoded */

    /* Planted: the scales of a row's first chunk for all. */
    __device__ __forceinline__ void load(int slot, int unit)
    {
        int u = unit < units ? unit : units - 1;
#pragma unroll
        for (int h = 0; h < 2; h++)
            code[slot][h].load(data + h * next_data + u / 8 * S::CHUNK_BYTES,
                               scale + h * next_scale +
                                   (MUTANT(73) ? 0 : u / 8 * (TYPE == DSV4_FP8 ? 2 : 8)),
                               u % 8, t);
    }

    /* Into `to`; x is zero in units beyond the last, where W may be anything finite. */
    __device__ __forceinline__ void decode(uint32_t (&to)[8], int slot, int unit)
    {
        uint32_t v[2][4];
#pragma unroll
        for (int h = 0; h < 2; h++)
            code[slot][h].codes(data + h * next_data + unit / 8 * S::CHUNK_BYTES, unit % 8, t, v[h],
                                g.iq2);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[2 * i] = v[0][i];
            to[2 * i + 1] = v[1][i];
        }
    }

    /* ---- what is multiplied */

    /* Unit u of a stage; first: its sums start at 0. */
    __device__ __forceinline__ void multiply(float (&d)[PARTS][SUMS], const uint32_t (&w)[8],
                                             uint32_t x_at, int u, bool first)
    {
#if GEMM_BY_WARPGROUPS
        products_begin();
#pragma unroll
        for (int s = 0; s < 2; s++)
#pragma unroll
            for (int p = 0; p < PARTS; p++)
                products<TOKENS>::add(
                    d[p], w[4 * s], w[4 * s + 1], w[4 * s + 2], w[4 * s + 3],
                    tokens_at(x_at + p * L::X_PART + u / 2 * TOKENS * 128 + u % 2 * 64 + s * 32),
                    s > 0 || !first);
        products_end();
#else
        const int lane = threadIdx.x % 32, row = lane % 8;
        const uint32_t at =
            x_at + u / 2 * TOKENS * 128 + row * 128 + ((u % 2 * 4 + lane / 8) ^ row) * 16;
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int n = 0; n < N; n++) {
                uint4 x = matrices_at(at + p * L::X_PART + n * 1024);
                float *c = d[p] + 4 * n;
                if (first)
                    c[0] = c[1] = c[2] = c[3] = 0;
                cu_mma16(c, w[0], w[1], w[2], w[3], x.x, x.y);
                cu_mma16(c, w[4], w[5], w[6], w[7], x.z, x.w);
            }
#endif
    }

    template <int PENDING> __device__ __forceinline__ void wait(float (&d)[PARTS][SUMS])
    {
#if GEMM_BY_WARPGROUPS
        wait_for_products<PENDING>();
        if (PENDING == 0)
#pragma unroll
            for (int p = 0; p < PARTS; p++)
                settle(d[p]);
#endif
    }

    /* A promotion block's sums into the chunk's. */
    __device__ __forceinline__ void promote(float low, float high)
    {
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int i = 0; i < SUMS; i++)
                sum[p][i] = fmaf(i % 4 < 2 ? low : high, acc[p][i], sum[p][i]);
    }

    /* The chunk's end: parts together, d and the minima, into the total. */
    __device__ __forceinline__ void finish(int chunk)
    {
        const uint8_t *at = data + (size_t)chunk * S::CHUNK_BYTES;
        const uint32_t sums_at = base + L::SUMS_AT + chunk % BUFFERS * L::SUMS_BYTES;
        float2 low = chunk_factors<TYPE, S::DEFERRED, S::MINIMA>::of(at);
        float2 high = chunk_factors<TYPE, S::DEFERRED, S::MINIMA>::of(at + next_data);
        uint32_t m[2][2];
        row_minima<TYPE>().load(at, t, m[0]);
        row_minima<TYPE>().load(at + next_data, t, m[1]);
#pragma unroll
        for (int n = 0; n < N; n++) {
            float least[3][4] = {};
            if (S::MINIMA > 0)
#pragma unroll
                for (int p = 0; p < 3; p++) {
                    uint32_t from = sums_at + (p * TOKENS + n * 8 + q) * L::SUMS_ROW + 4 * t;
                    if (S::MINIMA == 8)
                        cu_mma8_first(least[p], m[0][0], m[1][0], word_at(from));
                    else
                        cu_mma16_first(least[p], m[0][0], m[1][0], m[0][1], m[1][1], word_at(from),
                                       word_at(from + 16));
                }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float s = sum[0][4 * n + i];
                if (PARTS == 3)
                    s = (s + sum[PARTS / 3][4 * n + i]) + sum[PARTS - 1][4 * n + i];
                float2 d = i < 2 ? low : high;
                if (S::MINIMA > 0)
                    s = fmaf(d.x, s, -(d.y * ((least[0][i] + least[1][i]) + least[2][i])));
                else if (S::DEFERRED)
                    s *= d.x;
                total[4 * n + i] += s;
#pragma unroll
                for (int p = 0; p < PARTS; p++)
                    sum[p][4 * n + i] = 0;
            }
        }
    }

    __device__ __forceinline__ void stage(int k)
    {
        const uint32_t x_at = base + k % L::STAGES * L::X_BYTES;
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            const int unit = k * UNITS + u;
            multiply(S::BLOCKS == 8 ? sum : acc, a[u % 2], x_at, u,
                     S::BLOCKS == 1 || (S::BLOCKS == 4 && u == 0));
            float low = 0, high = 0;
            if (S::BLOCKS == 1 || (S::BLOCKS == 4 && u == 0)) {
                low = code[u % L::AHEAD][0].factor(unit % 8);
                high = code[u % L::AHEAD][1].factor(unit % 8);
                low = unit < units ? low : 0; /* x is zero there: see decode() */
                high = unit < units ? high : 0;
            }
            if (S::BLOCKS == 4 && u == 0) {
                factor[0] = low;
                factor[1] = high;
            }
            load(u % L::AHEAD, unit + L::AHEAD);
            if (S::BLOCKS > 1)
                wait<1>(acc); /* the unit before has left its registers */
            decode(a[(u + 1) % 2], (u + 1) % L::AHEAD, unit + 1);
            if (S::BLOCKS == 1) {
                wait<0>(acc);
                promote(low, high);
            }
        }
        if (S::BLOCKS == 4) {
            wait<0>(acc);
            promote(factor[0], factor[1]);
        }
        if (S::BLOCKS == 8)
            wait<0>(sum);
    }

    __device__ __forceinline__ void run()
    {
#pragma unroll
        for (int i = 0; i < L::AHEAD; i++)
            load(i, i);
        if (threadIdx.x < TOKENS) {
            int i = g.first + ((int)threadIdx.x < g.tokens ? (int)threadIdx.x : 0);
            i = g.list != NULL ? g.list[i] : i;
            y_rows[threadIdx.x] = i;
            x_from[threadIdx.x] = (uint32_t)(i / g.per_row * g.pitch);
        }
        __syncthreads();
        for (int k = 0; k < L::STAGES - 1; k++) {
            if (k < stages)
                fetch(k);
            copies_done();
        }
        decode(a[0], 0, 0);
#pragma unroll
        for (int i = 0; i < SUMS; i++) {
            total[i] = 0;
#pragma unroll
            for (int p = 0; p < PARTS; p++)
                acc[p][i] = sum[p][i] = 0;
        }
        for (int k = 0; k < stages; k++) {
            if (!MUTANT(72)) { /* missing wait: a stage is multiplied before it has come */
                wait_for_copies<L::STAGES - 2>();
                __syncthreads();
            }
            if (k + L::STAGES - 1 < stages)
                fetch(k + L::STAGES - 1);
            if (k + 2 < stages)
                bring(k + 2);
            copies_done();
            stage(k);
            /* a last chunk of half the length lost */
            if (k % 2 == 1 || (k == stages - 1 && !MUTANT(70)))
                finish(k / 2);
        }
        wait_for_copies<0>();
        store();
    }

    __device__ __forceinline__ void store()
    {
        const int row = my_row();
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                int token = n * 8 + 2 * t + j;
                if (token >= g.tokens - (MUTANT(75) ? 1 : 0)) /* tile edge: its last token lost */
                    continue;
                float *y = g.y + (int64_t)y_rows[token] * g.ldy;
#pragma unroll
                for (int h = 0; h < 2; h++)
                    if (row + 8 * h < g.w.rows)
                        y[row + 8 * h] = maybe_bf16(total[4 * n + 2 * h + j], g.bf16);
            }
    }
};

/* ---- kernels -------------------------------------------------------------------------------- */

template <int TYPE, int PARTS, int TOKENS>
static __global__ void __launch_bounds__(THREADS, (layout<TYPE, PARTS, TOKENS>::BLOCKS))
    gemm(const __grid_constant__ gemm_args a)
{
    typedef layout<TYPE, PARTS, TOKENS> L;
    extern __shared__ __align__(128) uint8_t memory[];
    uint8_t *shared = memory + (-(uint32_t)__cvta_generic_to_shared(memory) & 1023u);
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
static int gemm_launch(cu_stream s, unsigned blocks, unsigned groups, int64_t size,
                       const gemm_args *a)
{
    enum { BYTES = layout<TYPE, PARTS, TOKENS>::BYTES };
    static bool raised;
    if (a == NULL)
        return BYTES;
    if (!raised)
        cudaFuncSetAttribute(gemm<TYPE, PARTS, TOKENS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             BYTES);
    raised = true;
    LAUNCH("gemm", size, (gemm<TYPE, PARTS, TOKENS>), dim3(blocks, groups), THREADS, BYTES, s, *a);
    return BYTES;
}

template <int TYPE>
static int gemm_of(cu_stream s, int parts, int tokens, unsigned blocks, unsigned groups,
                   int64_t size, const gemm_args *a)
{
    if (parts == 1 && tokens == 128)
        return gemm_launch<TYPE, 1, 128>(s, blocks, groups, size, a);
    if (parts == 1 && tokens == 64)
        return gemm_launch<TYPE, 1, 64>(s, blocks, groups, size, a);
    if (parts == 1 && tokens == 32)
        return gemm_launch<TYPE, 1, 32>(s, blocks, groups, size, a);
    if (parts == 1)
        return gemm_launch<TYPE, 1, 16>(s, blocks, groups, size, a);
    if (tokens == 48)
        return gemm_launch<TYPE, 3, 48>(s, blocks, groups, size, a);
    if (tokens == 32)
        return gemm_launch<TYPE, 3, 32>(s, blocks, groups, size, a);
    return gemm_launch<TYPE, 3, 16>(s, blocks, groups, size, a);
}

#endif
