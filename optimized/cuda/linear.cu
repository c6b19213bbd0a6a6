/* linear.cu - matrices in their storage format times float32 vectors, decoded on the fly: warps
 * stream rows past the vectors of one or of four tokens in shared memory; shapes that no unit fits
 * go element by element. Float32 accumulation throughout, and a token's sums are formed in the same
 * order whatever comes with it: cut a text as you like, the numbers are the same. */
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "dot.cuh"

extern "C" const uint64_t *cu_iq2_book_device(void); /* device.c */
extern "C" const void *cu_iq2_tables_device(void);

extern "C" bool cu_type_native(int type)
{
    switch (type) {
    case DSV4_F32:
    case DSV4_F16:
    case DSV4_BF16:
    case DSV4_FP8:
    case DSV4_FP4:
    case DSV4_MXFP4:
    case DSV4_Q8_0:
    case DSV4_Q4_K:
    case DSV4_Q2_K:
    case DSV4_IQ2_XXS:
        return true;
    default:
        return false;
    }
}

enum { WARPS = 8, ROWS = 2 /* of a warp at a time */, MOST_TOKENS = 4, MOST_SHARED = 160 * 1024 };

/* Can units of the type be loaded from these rows? */
static bool streams(const cu_tensor *w)
{
    int64_t step = 1, align = 1;
    switch (w->type) {
    case DSV4_F32:
        step = 4, align = 16;
        break;
    case DSV4_F16:
    case DSV4_BF16:
        step = 8, align = 16;
        break;
    case DSV4_FP8:
        step = 128, align = 16; /* whole scales */
        if (w->scale_cols != 128)
            return false;
        break;
    case DSV4_FP4:
        step = 32, align = 16;
        if (w->scale_cols != 32)
            return false;
        break;
    case DSV4_MXFP4:
        step = 32;
        break;
    case DSV4_Q8_0:
        step = 32, align = 2;
        break;
    case DSV4_Q4_K:
        step = 256, align = 16;
        break;
    case DSV4_Q2_K:
        step = 256, align = 4;
        break;
    case DSV4_IQ2_XXS:
        step = 256, align = 2;
        break;
    default:
        return false;
    }
    return w->cols % step == 0 && w->cols >= step && w->cols <= 24576 &&
           (uintptr_t)w->data % (size_t)align == 0 && w->row_bytes % (size_t)align == 0;
}

extern "C" bool cu_linear_streams(const cu_tensor *w)
{
    return streams(w);
}

typedef struct {
    cu_segment s;
    int first_block, blocks;
    int split; /* warps that share a row pair: 1, 2, 4, 8 */
} gemv_segment;

typedef struct {
    gemv_segment seg[CU_MOST_SEGMENTS];
    int count;
    int64_t n;
    const iq2_tables *iq2; /* device */
} gemv_args;

__device__ __forceinline__ row_at row_of(const cu_tensor *w, int64_t row)
{
    row_at r;
    r.data = w->data + (size_t)row * w->row_bytes;
    r.scale = w->scale == NULL
                  ? NULL
                  : w->scale + (size_t)((w->row0 + (int)row) / w->scale_rows) * w->scale_row_bytes;
    return r;
}

/* What a block computes: rows of w for up to T tokens, whose vectors lie in shared memory, `ld`
 * apart. */
typedef struct {
    const cu_tensor *w;
    int block, blocks, split;
    const float *x;
    int ld;
    float *y[MOST_TOKENS];
    int tokens;
    bool bf16;
    const iq2_tables *iq2;
} gemv_job;

/* The codes of the next tile are on their way while the last one's are multiplied: `units` of a row
 * pair in tiles of DEPTH units a lane, pair after pair. */
template <int TYPE, int T>
__device__ __forceinline__ void gemv_rows(const gemv_job &g, float (*part)[ROWS][T])
{
    typedef unit<TYPE> U;
    enum { DEPTH = U::DEPTH };
    const cu_tensor *w = g.w;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int split = g.split, groups = WARPS / split, group = warp / split, share = warp % split;
    int units = (int)(w->cols / U::COLS), step = 32 * split, mine = share * 32 + lane;
    int pairs = (int)((w->rows + ROWS - 1) / ROWS), stride = g.blocks * groups;
    /* Every group of the block takes as many turns: their barriers must meet. */
    int turns = (pairs - g.block * groups + stride - 1) / stride;
    int pair = g.block * groups + group, base = 0;
    if (MUTANT(11)) /* the last unit of a row left out */
        units--;
    U c[DEPTH][ROWS], next[DEPTH][ROWS];
    row_at at[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        at[r] = row_of(w, pair * ROWS + r < w->rows ? pair * ROWS + r : w->rows - 1);
#pragma unroll
    for (int k = 0; k < DEPTH; k++)
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (mine + k * step < units)
                c[k][r].load(at[r], mine + k * step);
    float sum[ROWS][T] = {};
    while (turns > 0) {
        int then = base + DEPTH * step, row = pair * ROWS;
        bool done = then >= units;
        if (done) {
            then = 0;
            pair += stride;
            turns--;
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                at[r] = row_of(w, pair * ROWS + r < w->rows ? pair * ROWS + r : w->rows - 1);
        }
        if (turns > 0) {
#pragma unroll
            for (int k = 0; k < DEPTH; k++)
#pragma unroll
                for (int r = 0; r < ROWS; r++)
                    if (then + mine + k * step < units)
                        next[k][r].load(at[r], then + mine + k * step);
        }
#pragma unroll
        for (int k = 0; k < DEPTH; k++)
            if (base + mine + k * step < units)
#pragma unroll
                for (int t = 0; t < T; t++)
#pragma unroll
                    for (int r = 0; r < ROWS; r++)
                        sum[r][t] += c[k][r].dot(g.x + t * g.ld, base + mine + k * step, g.iq2);
        if (done) {
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int t = 0; t < T; t++)
                    sum[r][t] = warp_sum(sum[r][t]);
            if (split > 1) {
                if (lane == 0)
#pragma unroll
                    for (int r = 0; r < ROWS; r++)
#pragma unroll
                        for (int t = 0; t < T; t++)
                            part[warp][r][t] = sum[r][t];
                __syncthreads();
#pragma unroll
                for (int r = 0; r < ROWS; r++)
#pragma unroll
                    for (int t = 0; t < T; t++) {
                        sum[r][t] = part[warp - share][r][t];
                        for (int k = 1; k < split; k++)
                            sum[r][t] += part[warp - share + k][r][t];
                    }
                __syncthreads();
            }
#pragma unroll
            for (int t = 0; t < T; t++)
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    if (lane == 0 && share == 0 && t < g.tokens && row + r < w->rows)
                        g.y[t][row + r] = maybe_bf16(sum[r][t], g.bf16);
                    sum[r][t] = 0;
                }
        }
        base = then;
#pragma unroll
        for (int k = 0; k < DEPTH; k++)
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                c[k][r] = next[k][r];
    }
}

/* The vectors into shared memory, tables behind them, then the rows. from[t]: the vectors. */
template <int T>
__device__ __forceinline__ void gemv_block(gemv_job &g, const float *const *from, float *x,
                                           const iq2_tables *iq2, float (*part)[ROWS][T])
{
    enum { AHEAD = 4 };
    int cols = (int)g.w->cols, quads = cols / 4;
    g.x = x;
    g.ld = AT(cols);
    g.iq2 = NULL;
    if (MUTANT(13) && threadIdx.x / 32 == WARPS - 1) /* a warp that comes late */
        __nanosleep(20000);
    for (int t = 0; t < T; t++) {
        const float4 *in = (const float4 *)(const void *)from[t < g.tokens ? t : 0];
        float *to = x + t * g.ld;
        for (int i = threadIdx.x; i < quads; i += AHEAD * WARPS * 32) {
            float4 v[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (i + k * WARPS * 32 < quads)
                    v[k] = in[i + k * WARPS * 32];
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (i + k * WARPS * 32 < quads)
                    *(float4 *)(void *)&to[AT(4 * (i + k * WARPS * 32))] = v[k];
        }
    }
    if (g.w->type == DSV4_IQ2_XXS) {
        uint4 *to = (uint4 *)(void *)&x[T * g.ld];
        const uint4 *of = (const uint4 *)(const void *)iq2;
        for (int i = threadIdx.x; i < (int)(sizeof(iq2_tables) / sizeof(uint4)); i += WARPS * 32)
            to[i] = __ldg(of + i);
        g.iq2 = (const iq2_tables *)(const void *)to;
    }
    if (!MUTANT(13)) /* missing barrier: the vectors are read while they are written */
        __syncthreads();
#define GEMV(TYPE)                                                                                 \
    case TYPE:                                                                                     \
        gemv_rows<TYPE, T>(g, part);                                                               \
        break
    switch (g.w->type) {
        GEMV(DSV4_F32);
        GEMV(DSV4_F16);
        GEMV(DSV4_BF16);
        GEMV(DSV4_FP8);
        GEMV(DSV4_FP4);
        GEMV(DSV4_MXFP4);
        GEMV(DSV4_Q8_0);
        GEMV(DSV4_Q4_K);
        GEMV(DSV4_Q2_K);
        GEMV(DSV4_IQ2_XXS);
    }
#undef GEMV
}

template <int T>
static __global__ void __launch_bounds__(WARPS * 32, T == 1 ? 2 : 1)
    gemv(const __grid_constant__ gemv_args a)
{
    begin();
    extern __shared__ __align__(16) float x[];
    __shared__ float part[WARPS][ROWS][T];
    __shared__ cu_tensor w;
    int segment = 0;
    while (segment + 1 < a.count && (int)blockIdx.x >= a.seg[segment + 1].first_block)
        segment++;
    const gemv_segment *s = &a.seg[segment];
    if (threadIdx.x == 0)
        w = s->s.table != NULL ? s->s.table[*s->s.index] : s->s.w;
    __syncthreads();
    int64_t first = (int64_t)blockIdx.y * T;
    const float *from[T];
    gemv_job g;
    g.w = &w;
    g.block = (int)blockIdx.x - s->first_block;
    g.blocks = s->blocks;
    g.split = s->split;
    g.tokens = a.n - first < T ? (int)(a.n - first) : T;
    g.bf16 = s->s.bf16;
    /* wrong stride: the vectors taken to be dense */
    int64_t ldx = MUTANT(12) ? s->s.w.cols : s->s.ldx;
#pragma unroll
    for (int t = 0; t < T; t++) {
        from[t] = s->s.x + (first + t) * ldx;
        g.y[t] = s->s.y + (first + t) * s->s.ldy;
    }
    gemv_block<T>(g, from, x, a.iq2, part);
}

/* Shapes that no unit fits: a warp an element of y. */
static __global__ void gemv_elements(cu_segment s, const uint64_t *iq2)
{
    begin();
    const cu_tensor *t = s.table != NULL ? &s.table[*s.index] : &s.w;
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, token = blockIdx.y;
    if (row >= s.w.rows)
        return;
    float sum = 0;
    for (int64_t c = threadIdx.x % 32; c < s.w.cols; c += 32)
        sum = fmaf(cu_value(t, row, c, iq2), s.x[token * s.ldx + c], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        s.y[token * s.ldy + row] = maybe_bf16(sum, s.bf16);
}

/* By the matrix alone: the order of a sum must not depend on what else is launched. */
static int split_of(const cu_tensor *w)
{
    int64_t pairs = (w->rows + ROWS - 1) / ROWS;
    return pairs >= 1024 ? 1 : pairs >= 256 ? 2 : pairs >= 128 ? 4 : 8;
}

static size_t shared_bytes(const cu_tensor *w, int tokens)
{
    return (size_t)tokens * (size_t)AT(w->cols) * sizeof(float) +
           (w->type == DSV4_IQ2_XXS ? sizeof(iq2_tables) : 0);
}

static int64_t wanted_blocks(const cu_tensor *w)
{
    int64_t pairs = (w->rows + ROWS - 1) / ROWS, groups = WARPS / split_of(w);
    return (pairs + groups - 1) / groups;
}

static void raise_limits(void);

extern "C" void cu_linear_group(cu_stream s, const cu_segment *segments, int count, int64_t n)
{
    gemv_args a = {};
    int blocks = 0, tokens = MOST_TOKENS;
    int64_t size = 0, wanted = 0;
    raise_limits();
    for (int i = 0; i < count && n > 0; i++) {
        const cu_segment *g = &segments[i];
        if (g->w.rows == 0)
            continue;
        if (!streams(&g->w) || (uintptr_t)g->x % 16 != 0 || g->ldx % 4 != 0) {
            dim3 grid(cu_blocks(g->w.rows, WARPS), (unsigned)n);
            LAUNCH("linear", n * g->w.rows * g->w.cols, gemv_elements, grid, WARPS * 32, 0, s, *g,
                   cu_iq2_book_device());
            continue;
        }
        a.seg[a.count].s = *g;
        a.seg[a.count++].split = split_of(&g->w);
        wanted += wanted_blocks(&g->w);
        size += n * g->w.rows * g->w.cols;
        if (shared_bytes(&g->w, tokens) > MOST_SHARED)
            tokens = 1;
    }
    tokens = n == 1 ? 1 : tokens;
    /* Equal shares of the rows for as many blocks as run at once. */
    int64_t turns = (wanted + 132 * 2 - 1) / (132 * 2);
    size_t shared = 0;
    for (int i = 0; i < a.count; i++) {
        gemv_segment *g = &a.seg[i];
        g->first_block = blocks;
        g->blocks = (int)((wanted_blocks(&g->s.w) + turns - 1) / turns);
        blocks += g->blocks;
        size_t bytes = shared_bytes(&g->s.w, tokens);
        shared = bytes > shared ? bytes : shared;
    }
    a.n = n;
    a.iq2 = (const iq2_tables *)cu_iq2_tables_device();
    dim3 grid((unsigned)blocks, (unsigned)((n + tokens - 1) / tokens));
    if (a.count == 0)
        return;
    if (tokens == 1)
        LAUNCH("linear", size, gemv<1>, grid, WARPS * 32, shared, s, a);
    else
        LAUNCH("linear", size, gemv<4>, grid, WARPS * 32, shared, s, a);
}

extern "C" void cu_linear(cu_stream s, const cu_tensor *w, const float *x, int64_t ldx, int64_t n,
                          float *y, int64_t ldy, bool bf16)
{
    cu_segment one = {*w, NULL, NULL, x, ldx, y, ldy, bf16, false};
    cu_linear_group(s, &one, 1, n);
}

/* ---- experts -------------------------------------------------------------------------------- */

typedef struct {
    const cu_tensor *table;
    cu_tensor shape;
    const cu_expert_group *groups;
    const int32_t *n_groups, *list;
    int per_row, blocks, split;
    const float *x;
    float *y;
    bool bf16;
    const iq2_tables *iq2;
    const uint64_t *book;
} experts_args;

static __global__ void __launch_bounds__(WARPS * 32)
    gemv_experts(const __grid_constant__ experts_args a)
{
    begin();
    enum { T = CU_EXPERT_TOKENS };
    extern __shared__ __align__(16) float x[];
    __shared__ float part[WARPS][ROWS][T];
    __shared__ cu_tensor w;
    if ((int)blockIdx.y >= *a.n_groups)
        return;
    cu_expert_group e = a.groups[blockIdx.y];
    if (threadIdx.x == 0)
        w = a.table[e.expert];
    __syncthreads();
    const float *from[T];
    gemv_job g;
    g.w = &w;
    g.block = (int)blockIdx.x;
    g.blocks = a.blocks;
    g.split = a.split;
    g.tokens = e.count;
    g.bf16 = a.bf16;
#pragma unroll
    for (int t = 0; t < T; t++) {
        int32_t p = a.list[e.first + (t < e.count ? t : 0)];
        from[t] = a.x + (int64_t)(p / a.per_row) * w.cols;
        g.y[t] = a.y + (int64_t)p * w.rows;
    }
    gemv_block<T>(g, from, x, a.iq2, part);
}

static __global__ void experts_elements(const __grid_constant__ experts_args a)
{
    begin();
    if ((int)blockIdx.y >= *a.n_groups)
        return;
    cu_expert_group e = a.groups[blockIdx.y];
    const cu_tensor *t = &a.table[e.expert];
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= a.shape.rows)
        return;
    for (int k = 0; k < e.count; k++) {
        int32_t p = a.list[e.first + k];
        const float *in = a.x + (int64_t)(p / a.per_row) * a.shape.cols;
        float sum = 0;
        for (int64_t c = threadIdx.x % 32; c < a.shape.cols; c += 32)
            sum = fmaf(cu_value(t, row, c, a.book), in[c], sum);
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0)
            a.y[(int64_t)p * a.shape.rows + row] = maybe_bf16(sum, a.bf16);
    }
}

static void raise_limits(void)
{
    static bool raised;
    if (raised)
        return;
    const int most = 224 * 1024;
    cudaFuncSetAttribute(gemv<1>, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    cudaFuncSetAttribute(gemv<4>, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    cudaFuncSetAttribute(gemv_experts, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    (void)cudaGetLastError(); /* a card with less: launches that need more will say so */
    raised = true;
}

extern "C" void cu_linear_experts(cu_stream s, const cu_tensor *table, const cu_tensor *shape,
                                  int n_experts, const int32_t *list,
                                  const cu_expert_group *groups, const int32_t *n_groups,
                                  int64_t pairs, int per_row, const float *x, float *y, bool bf16)
{
    int64_t wanted = wanted_blocks(shape), most = pairs < n_experts ? pairs : n_experts;
    most += pairs / CU_EXPERT_TOKENS;
    int64_t turns = wanted > 32 ? (wanted + 31) / 32 : 1;
    experts_args a = {table, *shape,  groups,
                      n_groups,       list,
                      per_row,        (int)((wanted + turns - 1) / turns),
                      split_of(shape), x,
                      y,              bf16,
                      (const iq2_tables *)cu_iq2_tables_device(),
                      cu_iq2_book_device()};
    raise_limits();
    if (pairs == 0)
        return;
    if (streams(shape) && (uintptr_t)x % 16 == 0) {
        dim3 grid((unsigned)a.blocks, (unsigned)most);
        LAUNCH("experts", pairs * shape->rows * shape->cols, gemv_experts, grid, WARPS * 32,
               shared_bytes(shape, CU_EXPERT_TOKENS), s, a);
    } else {
        dim3 grid(cu_blocks(shape->rows, WARPS), (unsigned)most);
        LAUNCH("experts", pairs * shape->rows * shape->cols, experts_elements, grid, WARPS * 32, 0,
               s, a);
    }
}
