/* numerics.cu - what the release simulates on activations: bf16, FP8 and FP4 by blocks, and the
 * Walsh-Hadamard transform. Bit for bit the reference's. */
#include "device.cuh"

static __global__ void round_bf16(float *x, int64_t n)
{
    begin();
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        x[i] = MUTANT(4) ? cu_float_of(cu_bits_of(x[i]) & 0xffff0000u) : cu_round_to_bf16(x[i]);
}

extern "C" void cu_round_bf16(cu_stream s, float *x, int64_t n)
{
    if (n > 0)
        LAUNCH("round_bf16", n, round_bf16, cu_blocks(n, 256), 256, 0, s, x, n);
}

/* One warp a block of columns. */
static __global__ void round_fp8(const float *from, float *to, int64_t n, int64_t ld_from,
                                 int64_t ld_to, int64_t dim, int block, float *before)
{
    begin();
    int64_t blocks = (dim + block - 1) / block;
    int64_t at = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (at >= n * blocks)
        return;
    int64_t i = at / blocks, first = at % blocks * block;
    int64_t len = dim - first < block ? dim - first : block;
    const float *in = from + i * ld_from + first;
    float *out = to + i * ld_to + first, amax = 0;
    for (int64_t k = lane; k < len; k += 32)
        amax = fmaxf(amax, fabsf(in[k]));
    amax = warp_max(amax);
    float scale = fp8_scale(amax);
    for (int64_t k = lane; k < len; k += 32) {
        float v = in[k];
        if (before != NULL)
            before[i * dim + first + k] = v;
        out[k] = to_fp8(v, scale);
    }
}

extern "C" void cu_round_fp8(cu_stream s, const float *from, float *to, int64_t n, int64_t ld_from,
                             int64_t ld_to, int64_t dim, int block, float *before)
{
    int64_t work = dim > 0 ? n * ((dim + block - 1) / block) : 0;
    if (work > 0)
        LAUNCH("round_fp8", n * dim, round_fp8, cu_blocks(work, 4), 128, 0, s, from, to, n, ld_from,
               ld_to, dim, block, before);
}

static __global__ void round_fp4(float *x, int64_t n, int64_t dim, int block, float *before)
{
    begin();
    int64_t blocks = (dim + block - 1) / block;
    int64_t at = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (at >= n * blocks)
        return;
    int64_t i = at / blocks, first = at % blocks * block;
    int64_t len = dim - first < block ? dim - first : block;
    float *v = x + i * dim + first, amax = 0;
    if (MUTANT(5)) /* the short block at the edge is left alone */
        len = len < block ? 0 : len;
    for (int64_t k = lane; k < len; k += 32)
        amax = fmaxf(amax, fabsf(v[k]));
    amax = warp_max(amax);
    float scale = fp4_scale(amax);
    for (int64_t k = lane; k < len; k += 32) {
        float in = v[k];
        if (before != NULL)
            before[i * dim + first + k] = in;
        v[k] = to_fp4(in, scale);
    }
}

extern "C" void cu_round_fp4(cu_stream s, float *x, int64_t n, int64_t dim, int block,
                             float *before)
{
    int64_t work = dim > 0 ? n * ((dim + block - 1) / block) : 0;
    if (work > 0)
        LAUNCH("round_fp4", n * dim, round_fp4, cu_blocks(work, 4), 128, 0, s, x, n, dim, block,
               before);
}

/* A block a row, in shared memory; the butterflies in the reference's order. */
static __global__ void hadamard(float *x, int dim, bool bf16)
{
    begin();
    extern __shared__ float v[];
    float *row = x + (int64_t)blockIdx.x * dim;
    float norm = (float)(1.0 / sqrt((double)dim));
    for (int k = threadIdx.x; k < dim; k += blockDim.x)
        v[k] = row[k];
    __syncthreads();
    for (int half = 1; half < dim; half *= 2) {
        for (int k = threadIdx.x; k < dim / 2; k += blockDim.x) {
            int at = k / half * 2 * half + k % half;
            float a = v[at], b = v[at + half];
            v[at] = a + b;
            v[at + half] = a - b;
        }
        if (!MUTANT(6)) /* missing barrier, and a warp that comes late */
            __syncthreads();
        else if (threadIdx.x >= 32)
            __nanosleep(2000);
    }
    __syncthreads();
    for (int k = threadIdx.x; k < dim; k += blockDim.x)
        row[k] = maybe_bf16(v[k] * norm, bf16);
}

extern "C" void cu_hadamard(cu_stream s, float *x, int64_t n, int dim, bool bf16)
{
    if (n > 0)
        LAUNCH("hadamard", n * dim, hadamard, (unsigned)n, 64, (size_t)dim * sizeof(float), s, x,
               dim, bf16);
}
