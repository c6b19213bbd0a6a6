/* dot.cuh - rows of float32 and float16 weights, which no tensor core takes exactly: each lane
 * loads a unit of values straight into registers and multiplies it with the vector in shared
 * memory, float32 throughout.
 *
 * The vector lies in shared memory with four floats of padding after every 32 (AT): lanes that read
 * 4 or 8 columns apart then meet in no bank. Private to linear.cu. */
#ifndef DSV4_CUDA_DOT_CUH
#define DSV4_CUDA_DOT_CUH

#include "stream_bulk.cuh"

#define AT(column) ((column) + (column) / 32 * 4)

enum { ROWS = 2 /* of a warp at a time */ };

__device__ __forceinline__ float4 four(const float *x)
{
    return *(const float4 *)(const void *)x;
}

/* Sixteen bytes of weights. */
__device__ __forceinline__ uint4 weights_at(const uint8_t *row, int u)
{
    uint4 w;
    asm("ld.global.nc.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
        : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
        : "l"((const uint4 *)(const void *)row + u), "l"(passing()));
    return w;
}

template <int TYPE> struct unit;

template <> struct unit<DSV4_F32> {
    enum { COLS = 4, DEPTH = 4 };
    uint4 w;
    __device__ __forceinline__ void load(const uint8_t *row, int u)
    {
        w = weights_at(row, u);
    }
    __device__ __forceinline__ float dot(const float *x, int u) const
    {
        float4 a = four(x + AT(4 * u));
        float s = __uint_as_float(w.x) * a.x;
        s = fmaf(__uint_as_float(w.y), a.y, s);
        s = fmaf(__uint_as_float(w.z), a.z, s);
        return fmaf(__uint_as_float(w.w), a.w, s);
    }
};

__device__ __forceinline__ float low_half(uint32_t two)
{
    return __half2float(__ushort_as_half((unsigned short)(two & 0xffffu)));
}

__device__ __forceinline__ float high_half(uint32_t two)
{
    return __half2float(__ushort_as_half((unsigned short)(two >> 16)));
}

template <> struct unit<DSV4_F16> {
    enum { COLS = 8, DEPTH = 4 };
    uint4 w;
    __device__ __forceinline__ void load(const uint8_t *row, int u)
    {
        w = weights_at(row, u);
    }
    __device__ __forceinline__ float dot(const float *x, int u) const
    {
        float4 a = four(x + AT(8 * u)), b = four(x + AT(8 * u) + 4);
        float s = low_half(w.x) * a.x;
        s = fmaf(high_half(w.x), a.y, s);
        s = fmaf(low_half(w.y), a.z, s);
        s = fmaf(high_half(w.y), a.w, s);
        s = fmaf(low_half(w.z), b.x, s);
        s = fmaf(high_half(w.z), b.y, s);
        s = fmaf(low_half(w.w), b.z, s);
        return fmaf(high_half(w.w), b.w, s);
    }
};

__device__ __forceinline__ const uint8_t *data_of_row(const cu_tensor *w, int64_t row)
{
    return w->data + (size_t)row * w->row_bytes;
}

/* The vectors into shared memory. */
template <int T, int WARPS>
__device__ __forceinline__ void float_vectors(const gemv_job &g, float *x)
{
    enum { AHEAD = 4 };
    int cols = (int)g.w.cols, quads = cols / 4, ld = AT(cols);
#pragma unroll
    for (int t = 0; t < T; t++) {
        const float *in = g.x[t];
        bool aligned = ((uintptr_t)in | (uintptr_t)g.up) % 16 == 0;
        float *to = x + t * ld;
        for (int i = threadIdx.x; i < quads; i += AHEAD * WARPS * 32) {
            float4 v[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (i + k * WARPS * 32 < quads)
                    v[k] = four_from(in, i + k * WARPS * 32, aligned);
            if (T == 1 && g.up != NULL)
#pragma unroll
                for (int k = 0; k < AHEAD; k++)
                    if (i + k * WARPS * 32 < quads)
                        v[k] = gated(g, v[k], i + k * WARPS * 32, aligned);
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (i + k * WARPS * 32 < quads)
                    *(float4 *)(void *)&to[AT(4 * (i + k * WARPS * 32))] = v[k];
        }
    }
}

/* The codes of the next tile are on their way while the last one's are multiplied: `units` of a row
 * pair in tiles of DEPTH units a lane, pair after pair. The first ones come while the kernel
 * before still runs (before: as stream_rows); then the vectors go to x. */
template <int TYPE, int T, int WARPS>
__device__ __forceinline__ void float_rows(const gemv_job &g, float *x, float (*part)[ROWS][T],
                                           bool before)
{
    typedef unit<TYPE> U;
    enum { DEPTH = U::DEPTH };
    const cu_tensor *w = &g.w;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, ld = AT((int)g.w.cols);
    int split = g.plan.split, groups = WARPS / split, group = warp / split, share = warp % split;
    int units = (int)(w->cols / U::COLS), step = 32 * split, mine = share * 32 + lane;
    int pairs = (int)((w->rows + ROWS - 1) / ROWS), stride = g.blocks * groups;
    /* Every group of the block takes as many turns: their barriers must meet. */
    int turns = (pairs - g.block * groups + stride - 1) / stride;
    int pair = g.block * groups + group, base = 0;
    if (MUTANT(11)) /* the last unit of a row left out */
        units--;
    U c[DEPTH][ROWS], next[DEPTH][ROWS];
    const uint8_t *at[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        at[r] = data_of_row(w, pair * ROWS + r < w->rows ? pair * ROWS + r : w->rows - 1);
#pragma unroll
    for (int k = 0; k < DEPTH; k++)
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (mine + k * step < units)
                c[k][r].load(at[r], mine + k * step);
    if (before)
        wait_for_vectors(g);
    float_vectors<T, WARPS>(g, x);
    if (!MUTANT(13)) /* missing barrier: the vectors are read while they are written */
        __syncthreads();
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
                at[r] = data_of_row(w, pair * ROWS + r < w->rows ? pair * ROWS + r : w->rows - 1);
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
                        sum[r][t] += c[k][r].dot(x + t * ld, base + mine + k * step);
        if (done) {
            if (T == 1)
                wait_for_room(g);
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

#endif
