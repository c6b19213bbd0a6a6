/* rows.cuh - steps on a row that lies in shared memory, shared by the operators and by the kernels
 * that compose them: the same steps in the same order give the same bits. Private to the .cu files. */
#ifndef DSV4_CUDA_ROWS_CUH
#define DSV4_CUDA_ROWS_CUH

#include "device.cuh"

enum { ROW_THREADS = 256, KV_BLOCK = 64, INDEX_BLOCK = 32 };

/* Threads that normalise a row: how many decides the order of its sum of squares. */
static inline unsigned norm_threads(int64_t dim)
{
    return dim > 2048 ? 1024 : ROW_THREADS;
}

/* 1 / sqrt(mean + eps) of a head, at the released code's rounding points. */
__device__ __forceinline__ float head_scale(float sum, int64_t dim, float eps, bool bf16)
{
    if (!bf16)
        return root_scale(sum, dim, eps);
    float mean = cu_round_to_bf16(cu_round_to_bf16(__fdiv_rn(sum, (float)dim)) + eps);
    return cu_round_to_bf16((float)(1.0 / sqrt((double)mean)));
}

/* silu(min(gate, limit)) * clamp(up). What e^-g loses at the ends is far below the other factor: see
 * the case's tolerance. */
__device__ __forceinline__ float swiglu_of(float g, float u, float limit)
{
    if (limit > 0) {
        g = g > limit ? limit : g;
        u = u > limit ? limit : u < -limit ? -limit : u;
        if (MUTANT(7)) /* the gate clamped below too */
            g = g < -limit ? -limit : g;
    }
    return __fdiv_rn(g, 1.0f + expf(-g)) * u;
}

/* Columns 2k, 2k + 1 turned by an angle's cosine c and sine s. */
__device__ __forceinline__ float2 rotate(float a, float b, float c, float s, bool bf16)
{
    return make_float2(
        maybe_bf16((float)((double)a * (double)c - (double)b * (double)s), bf16),
        maybe_bf16((float)((double)a * (double)s + (double)b * (double)c), bf16));
}

/* Column c of a token's embedding, into every one of its copies. */
__device__ __forceinline__ void embed_column(const cu_tensor &table, int32_t id, int64_t c,
                                             int copies, bool bf16, const uint64_t *iq2, float *x)
{
    if (MUTANT(68)) /* a pointer to nowhere */
        x += 1ll << 44;
    float v = maybe_bf16(cu_value(&table, id, c, iq2), bf16);
    for (int j = 0; j < copies; j++)
        x[j * table.cols + c] = v;
}

/* Cosine and sine of a position's angle, which is rounded to float32 first. */
__device__ __forceinline__ void angle_of(int64_t position, float inv_freq, float *cosine,
                                         float *sine)
{
    float angle = (float)position * inv_freq;
    if (MUTANT(2)) /* the angle loses its float32 rounding */
        angle = __fmul_rz((float)position, inv_freq);
    double s, c;
    sincos((double)angle, &s, &c);
    *cosine = (float)c;
    *sine = (float)s;
}

/* Compressed rows that token i sees: those complete at *pos0 + i; or n_rows. */
__device__ __forceinline__ int64_t visible_rows(int64_t n_rows, const int64_t *pos0, int ratio,
                                                int64_t i)
{
    return pos0 != NULL ? (int64_t)((uint32_t)(*pos0 + i + 1) / (uint32_t)ratio) : n_rows;
}

/* FP8 (block 64) or FP4 (block 32, fp4) on the first `columns` columns: a warp a block. Needs a
 * barrier before and after. */
__device__ __forceinline__ void round_row(float *row, int columns, int block, bool fp4)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int first = warp * block; first < columns; first += warps * block) {
        int len = columns - first < block ? columns - first : block;
        float amax = 0;
        for (int k = lane; k < len; k += 32)
            amax = fmaxf(amax, fabsf(row[first + k]));
        amax = warp_max(amax);
        for (int k = lane; k < len; k += 32)
            row[first + k] = fp4 ? to_fp4(row[first + k], fp4_scale(amax))
                                 : to_fp8(row[first + k], fp8_scale(amax));
    }
}

#endif
