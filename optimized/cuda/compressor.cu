/* compressor.cu - compressed rows: the pooling alone (the operator), and the session's compressor,
 * whose windows lie in rings and whose rows appear as their windows fill. */
#include "device.cuh"

/* One channel of a window: softmax over the slots. prev: index of the previous window's slot 0, or
 * -1; ring: slots wrap around there. */
__device__ __forceinline__ float pool(const float *prev_kv, const float *prev_z, const float *kv,
                                      const float *z, int64_t prev, int64_t slot0, int64_t ring,
                                      int ratio, int lanes, int dim, int k)
{
    int64_t width = (int64_t)lanes * dim;
    int own = (lanes - 1) * dim + k;
    float max = -INFINITY, sum = 0, weighted = 0;
    for (int t = 0; t < ratio; t++) {
        if (prev >= 0)
            max = fmaxf(max, prev_z[(prev + t) % ring * width + k]);
        max = fmaxf(max, z[(slot0 + t) % ring * width + own]);
    }
    for (int t = 0; t < ratio; t++) {
        if (prev >= 0) {
            int64_t at = (prev + t) % ring * width + k;
            float e = expf(prev_z[at] - max);
            sum += e;
            weighted = fmaf(e, prev_kv[at], weighted);
        }
        int64_t at = (slot0 + t) % ring * width + own;
        float e = expf(z[at] - max);
        sum += e;
        weighted = fmaf(e, kv[at], weighted);
    }
    return __fdiv_rn(weighted, sum);
}

static __global__ void compressor_pool(const float *prev_kv, const float *prev_z, const float *kv,
                                       const float *z, int ratio, int lanes, int dim, float *c)
{
    begin();
    int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k < dim)
        c[k] = pool(prev_kv, prev_z, kv, z, prev_kv != NULL ? 0 : -1, 0, ratio, ratio, lanes, dim,
                    k);
}

extern "C" void cu_compressor_pool(cu_stream s, const float *prev_kv, const float *prev_z,
                                   const float *kv, const float *z, int ratio, int lanes, int dim,
                                   float *c)
{
    LAUNCH("compressor_pool", (int64_t)ratio * lanes * dim, compressor_pool, cu_blocks(dim, 64), 64,
           0, s, prev_kv, prev_z, kv, z, ratio, lanes, dim, c);
}

static __global__ void compressor_store(cu_compressor c, const float *kv, const float *z,
                                        const int64_t *pos0, int64_t n)
{
    begin();
    int64_t width = (int64_t)c.lanes * c.dim;
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n * width)
        return;
    int64_t position = *pos0 + at / width, k = at % width;
    int64_t to = position % c.ring * width + k;
    c.kv[to] = kv[at];
    c.z[to] = z[at] + c.ape[position % c.ratio * width + k];
}

extern "C" void cu_compressor_store(cu_stream s, const cu_compressor *c, const float *kv,
                                    const float *z, const int64_t *pos0, int64_t n)
{
    int64_t work = n * c->lanes * c->dim;
    if (work > 0)
        LAUNCH("compressor_store", work, compressor_store, cu_blocks(work, 256), 256, 0, s, *c, kv,
               z, pos0, n);
}

enum { KV_BLOCK = 64, INDEX_BLOCK = 32 };

/* A block a row: pooled, normalised, rotated at the window's first token, rounded. */
static __global__ void compressor_emit(cu_compressor c, const int64_t *pos0, int64_t n)
{
    begin();
    extern __shared__ float row[]; /* [dim] */
    __shared__ float room[32];
    int64_t j = *pos0 / c.ratio + blockIdx.x;
    int t = threadIdx.x, threads = blockDim.x;
    bool deployed = c.numerics == DSV4_DEPLOYED, rounds = c.numerics != DSV4_MATH;
    if ((j + 1) * c.ratio > *pos0 + n)
        return;
    int64_t prev = c.lanes == 2 && j > 0 ? (j - 1) * c.ratio : -1;
    if (MUTANT(15) && c.lanes == 2 && j > 0) /* the previous window is this one */
        prev = j * c.ratio;
    float sum = 0;
    for (int k = t; k < c.dim; k += threads) {
        float v = maybe_bf16(pool(c.kv, c.z, c.kv, c.z, prev, j * c.ratio, c.ring, c.ratio, c.lanes,
                                  c.dim, k),
                             deployed);
        row[k] = v;
        sum = fmaf(v, v, sum);
    }
    float scale = root_scale(block_sum(sum, room), c.dim, c.eps);
    for (int k = t; k < c.dim; k += threads)
        row[k] = maybe_bf16(c.norm[k] * (row[k] * scale), deployed);
    __syncthreads();
    float *tail = row + c.dim - c.rope;
    for (int k = t; k < c.rope / 2; k += threads) {
        float angle = (float)(j * c.ratio) * c.inv_freq[k];
        double cosine = (double)(float)cos((double)angle), sine = (double)(float)sin((double)angle);
        double a = (double)tail[2 * k], b = (double)tail[2 * k + 1];
        tail[2 * k] = maybe_bf16((float)(a * cosine - b * sine), deployed);
        tail[2 * k + 1] = maybe_bf16((float)(a * sine + b * cosine), deployed);
    }
    __syncthreads();
    if (rounds && c.index) {
        float norm = (float)(1.0 / sqrt((double)c.dim));
        for (int half = 1; half < c.dim; half *= 2) {
            for (int k = t; k < c.dim / 2; k += threads) {
                int at = k / half * 2 * half + k % half;
                float a = row[at], b = row[at + half];
                row[at] = a + b;
                row[at + half] = a - b;
            }
            __syncthreads();
        }
        for (int k = t; k < c.dim; k += threads)
            row[k] = maybe_bf16(row[k] * norm, deployed);
        __syncthreads();
    }
    /* FP8 on the columns that are not rotated, FP4 on all. */
    int columns = c.index ? c.dim : c.dim - c.rope, block = c.index ? INDEX_BLOCK : KV_BLOCK;
    float *out = c.rows + j * c.dim;
    if (c.before != NULL)
        for (int k = t; k < c.dim; k += threads)
            c.before[(int64_t)blockIdx.x * c.dim + k] = row[k];
    __syncthreads(); /* the copy is made before the rounding starts */
    for (int first = t / 32 * block; rounds && first < columns; first += threads / 32 * block) {
        int len = columns - first < block ? columns - first : block;
        float amax = 0;
        for (int k = t % 32; k < len; k += 32)
            amax = fmaxf(amax, fabsf(row[first + k]));
        amax = warp_max(amax);
        for (int k = t % 32; k < len; k += 32)
            row[first + k] = c.index ? to_fp4(row[first + k], fp4_scale(amax))
                                     : to_fp8(row[first + k], fp8_scale(amax));
    }
    __syncthreads();
    for (int k = t; k < c.dim; k += threads)
        out[k] = row[k];
}

extern "C" void cu_compressor_emit(cu_stream s, const cu_compressor *c, const int64_t *pos0,
                                   int64_t n)
{
    if (n > 0)
        LAUNCH("compressor_emit", n * c->dim, compressor_emit, (unsigned)(n / c->ratio + 1),
               c->dim > 128 ? 256 : 128, (size_t)c->dim * sizeof(float), s, *c, pos0, n);
}
