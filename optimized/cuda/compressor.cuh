/* compressor.cuh - a session's compressor on the device: a token's inputs into the rings, and the
 * row that a full window becomes. Private to the .cu files. */
#ifndef DSV4_CUDA_COMPRESSOR_CUH
#define DSV4_CUDA_COMPRESSOR_CUH

#include "rows.cuh"

enum { LONG_WINDOW = 16 };

/* The same of a window that is long and alone: what it reads is asked for many slots at a time. z and
 * kv point to the channel of slot 0 of the ring. */
static __device__ __noinline__ float pool_long(const float *kv, const float *z, int here, int ring,
                                           int ratio, int width)
{
    enum { AT_ONCE = 8 };
    float max = -INFINITY, sum = 0, weighted = 0;
#pragma unroll 1
    for (int pass = 0; pass < 2; pass++) /* the largest first */
#pragma unroll 1
        for (int t0 = 0; t0 < ratio; t0 += AT_ONCE) {
            float zs[AT_ONCE], values[AT_ONCE];
#pragma unroll
            for (int u = 0; u < AT_ONCE; u++) {
                int slot = here + t0 + u, at = (slot < ring ? slot : slot - ring) * width;
                zs[u] = t0 + u < ratio ? z[at] : 0.0f;
                values[u] = pass > 0 && t0 + u < ratio ? kv[at] : 0.0f;
            }
#pragma unroll
            for (int u = 0; u < AT_ONCE; u++) {
                if (t0 + u >= ratio || (MUTANT(36) && t0 + u + 1 == ratio)) /* the last one lost */
                    break;
                if (pass == 0) {
                    max = fmaxf(max, zs[u]);
                    continue;
                }
                float e = expf(zs[u] - max);
                sum += e;
                weighted = fmaf(e, values[u], weighted);
            }
        }
    return __fdiv_rn(weighted, sum);
}

/* One channel of a window: softmax over the slots. prev: index of the previous window's slot 0, or
 * -1; ring: slots wrap around there. */
__device__ __forceinline__ float pool(const float *prev_kv, const float *prev_z, const float *kv,
                                      const float *z, int64_t prev, int64_t slot0, int64_t ring,
                                      int ratio, int lanes, int dim, int k)
{
    int64_t width = (int64_t)lanes * dim;
    int own = (lanes - 1) * dim + k;
    int64_t first = prev >= 0 ? prev % ring : 0, here = slot0 % ring; /* a window is no longer than it */
    if (prev < 0 && ratio >= LONG_WINDOW)
        return pool_long(kv + own, z + own, (int)here, (int)ring, ratio, (int)width);
    float max = -INFINITY, sum = 0, weighted = 0;
#pragma unroll 8
    for (int t = 0; t < ratio; t++) {
        if (prev >= 0)
            max = fmaxf(max, prev_z[(first + t < ring ? first + t : first + t - ring) * width + k]);
        max = fmaxf(max, z[(here + t < ring ? here + t : here + t - ring) * width + own]);
    }
#pragma unroll 4
    for (int t = 0; t < ratio; t++) {
        if (prev >= 0) {
            int64_t at = (first + t < ring ? first + t : first + t - ring) * width + k;
            float e = expf(prev_z[at] - max);
            sum += e;
            weighted = fmaf(e, prev_kv[at], weighted);
        }
        int64_t at = (here + t < ring ? here + t : here + t - ring) * width + own;
        float e = expf(z[at] - max);
        sum += e;
        weighted = fmaf(e, kv[at], weighted);
    }
    return __fdiv_rn(weighted, sum);
}

/* Element k of a token into the rings, at its place there; ape: that of its place in the window. */
__device__ __forceinline__ void store_element(const cu_compressor &c, int64_t place, int64_t k,
                                              float kv, float z, float ape)
{
    int64_t to = place * ((int64_t)c.lanes * c.dim) + k;
    c.kv[to] = kv;
    c.z[to] = z + ape;
}

/* Row j, by a whole block, in shared memory [dim]: pooled, normalised, rotated at the window's first
 * token, rounded. before: where a copy goes before the last rounding, or NULL. live: the
 * row is kept; else this is a rehearsal. */
__device__ __forceinline__ void emit_row(const cu_compressor &c, int64_t j, float *row, float *room,
                                         float *before, bool live)
{
    int t = threadIdx.x, threads = blockDim.x;
    bool deployed = c.numerics == DSV4_DEPLOYED, rounds = c.numerics != DSV4_MATH;
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
        float2 turned = rotate(tail[2 * k], tail[2 * k + 1], (float)cos((double)angle),
                               (float)sin((double)angle), deployed);
        tail[2 * k] = turned.x;
        tail[2 * k + 1] = turned.y;
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
    if (before != NULL)
        for (int k = t; k < c.dim; k += threads)
            before[k] = row[k];
    __syncthreads(); /* the copy is made before the rounding starts */
    /* FP8 on the columns that are not rotated, FP4 on all. */
    if (rounds)
        round_row(row, c.index ? c.dim : c.dim - c.rope, c.index ? INDEX_BLOCK : KV_BLOCK, c.index);
    __syncthreads();
    for (int k = t; k < c.dim && live; k += threads)
        c.rows[j * c.dim + k] = row[k];
    __syncthreads();
}

#endif
