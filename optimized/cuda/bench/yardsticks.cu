/* yardsticks.cu - what the benches are measured against: plain copies and reads of device memory,
 * and noise to fill buffers with. */
#include "yardsticks.h"

#include "../device.cuh"

static __global__ void copy(const uint4 *from, uint4 *to, int64_t n)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 a = from[i], b = from[i + step], c = from[i + 2 * step], d = from[i + 3 * step];
        to[i] = a;
        to[i + step] = b;
        to[i + 2 * step] = c;
        to[i + 3 * step] = d;
    }
    for (; i < n; i += step)
        to[i] = from[i];
}

extern "C" void yard_copy(cu_stream s, const void *from, void *to, size_t bytes)
{
    copy<<<132 * 16, 256, 0, s>>>((const uint4 *)from, (uint4 *)to, (int64_t)(bytes / 16));
}

static __global__ void read(const uint4 *from, int64_t n, uint32_t *sink)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t sum = 0;
    for (; i + 7 * step < n; i += 8 * step) {
        uint4 v[8];
#pragma unroll
        for (int k = 0; k < 8; k++)
            v[k] = __ldg(from + i + k * step);
#pragma unroll
        for (int k = 0; k < 8; k++)
            sum ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
    }
    for (; i < n; i += step)
        sum ^= from[i].x ^ from[i].y ^ from[i].z ^ from[i].w;
    if (sum == 0x12345678u) /* keeps the loads */
        *sink = sum;
}

extern "C" void yard_read(cu_stream s, const void *from, size_t bytes, void *sink)
{
    read<<<132 * 8, 256, 0, s>>>((const uint4 *)from, (int64_t)(bytes / 16), (uint32_t *)sink);
}

static __global__ void noise(uint32_t *to, int64_t n, uint32_t seed, bool floats)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        uint32_t h = (uint32_t)i * 2654435761u + seed * 40503u + (uint32_t)(i >> 32);
        h ^= h >> 16;
        h *= 0x85ebca6bu;
        h ^= h >> 13;
        h *= 0xc2b2ae35u;
        h ^= h >> 16;
        to[i] = floats ? __float_as_uint((float)(int32_t)h * 0x1p-31f) : h;
    }
}

extern "C" void yard_noise(cu_stream s, void *to, size_t bytes, uint32_t seed, bool floats)
{
    noise<<<132 * 8, 256, 0, s>>>((uint32_t *)to, (int64_t)(bytes / 4), seed, floats);
}

static __global__ void bf16_noise(uint16_t *to, int64_t n, uint32_t seed)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        uint32_t h = ((uint32_t)i + seed * 40503u) * 2654435761u;
        h ^= h >> 15;
        h *= 0x85ebca6bu;
        h ^= h >> 13;
        to[i] = (uint16_t)(__float_as_uint((float)(int32_t)h * 0x1p-31f) >> 16);
    }
}

extern "C" void yard_bf16(cu_stream s, void *to, int64_t n, uint32_t seed)
{
    bf16_noise<<<132 * 8, 256, 0, s>>>((uint16_t *)to, n, seed);
}

/* One multiplication and addition a step and lane, eight chains: the rate of float32. */
static __global__ void fma_rate(float *sink, int steps)
{
    float v[8];
    for (int k = 0; k < 8; k++)
        v[k] = (float)(threadIdx.x + k);
    for (int i = 0; i < steps; i++)
#pragma unroll
        for (int k = 0; k < 8; k++)
            v[k] = fmaf(v[k], 1.0000001f, 0.5f);
    float sum = 0;
    for (int k = 0; k < 8; k++)
        sum += v[k];
    if (sum == 12345.678f)
        *sink = sum;
}

extern "C" double yard_fma(cu_stream s, void *sink)
{
    enum { BLOCKS = 132 * 8, THREADS = 256, STEPS = 4096 };
    fma_rate<<<BLOCKS, THREADS, 0, s>>>((float *)sink, STEPS);
    return 2.0 * 8 * STEPS * BLOCKS * THREADS;
}

static __global__ void empty(int)
{
    begin();
}

extern "C" void yard_empty(cu_stream s)
{
    LAUNCH("a yardstick", 0, empty, 132, 128, 0, s, 0);
}

static __global__ void meet(float *room, uint32_t *ticket)
{
    begin();
    __shared__ uint32_t mine;
    if (threadIdx.x == 0) {
        room[blockIdx.x] = (float)blockIdx.x;
        __threadfence();
        mine = atomicAdd(ticket, 1u);
    }
    __syncthreads();
    if (mine != gridDim.x - 1)
        return;
    __threadfence();
    float sum = warp_sum(threadIdx.x < gridDim.x ? __ldcg(&room[threadIdx.x]) : 0.0f);
    if (threadIdx.x == 0) {
        room[gridDim.x] = sum;
        *ticket = 0;
    }
}

extern "C" void yard_meet(cu_stream s, float *room, uint32_t *ticket)
{
    LAUNCH("a yardstick", 0, meet, 132, 128, 0, s, room, ticket);
}
