/* hyper_connection.cuh - what the operators of mHC and their composition share. Private to the .cu
 * files. */
#ifndef DSV4_CUDA_HYPER_CONNECTION_CUH
#define DSV4_CUDA_HYPER_CONNECTION_CUH

#include "device.cuh"

__device__ __forceinline__ float sigmoid(float x)
{
    float e = expf(-fabsf(x)); /* of a non-positive number: no overflow at either end */
    return __fdiv_rn(x >= 0 ? 1.0f : e, 1.0f + e) + (x != x ? x : 0.0f);
}

__device__ __forceinline__ float inverse(float x) /* to an ulp */
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Sinkhorn's passes on four streams: element 4 a + b in lane 4 a + b of sixteen lanes. One lane
 * does it all in its registers: a sum of four is waited for less than shuffles are. */
__device__ __forceinline__ float sinkhorn_four(float x, int iters, float eps)
{
    float v[4][4];
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 16; i++)
        v[i / 4][i % 4] = __shfl_sync(0xffffu, x, i);
#pragma unroll 1
    for (int pass = 0; pass < iters; pass++) {
        if (pass > 0)
#pragma unroll
            for (int a = 0; a < 4; a++) {
                float f = inverse(((v[a][0] + v[a][1]) + (v[a][2] + v[a][3])) + eps);
#pragma unroll
                for (int b = 0; b < 4; b++)
                    v[a][b] *= f;
            }
#pragma unroll
        for (int b = 0; b < 4; b++) {
            float f = inverse(((v[0][b] + v[1][b]) + (v[2][b] + v[3][b])) + eps);
#pragma unroll
            for (int a = 0; a < 4; a++)
                v[a][b] *= f;
        }
        if (MUTANT(8) && pass == 17) /* two passes of Sinkhorn short */
            break;
    }
#pragma unroll
    for (int i = 0; i < 16; i++)
        x = lane == i ? v[i / 4][i % 4] : x;
    return x;
}

/* A token's gates of four streams, by a warp: element 4 a + b of comb is lane 4 a + b's, the mixes
 * before it are those of the lanes from 16 on, and the rest have none. */
__device__ __forceinline__ int mix_of_lane()
{
    int lane = threadIdx.x % 32;
    return lane < 16 ? 8 + lane : lane < 24 ? lane - 16 : 24;
}

/* Its factor and base. */
__device__ __forceinline__ float2 gate_of_lane(const cu_gates &g, int rows)
{
    int row = mix_of_lane();
    if (row >= rows)
        return make_float2(0, 0);
    return make_float2(__ldg(g.scale + (row < 8 ? row / 4 : 2)), __ldg(g.base + row));
}

__device__ __forceinline__ void four_gates(float v, float2 gate, const cu_gates &g, int64_t token)
{
    int lane = threadIdx.x % 32, row = mix_of_lane();
    v = v * gate.x + gate.y;
    /* Softmax over a row of comb, and the others' sigmoid. */
    float max = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
    float e = expf(row < 8 ? -fabsf(v) : v - max), sum = e + __shfl_xor_sync(0xffffffffu, e, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    e = __fdiv_rn(row < 8 && v >= 0 ? 1.0f : e, row < 8 ? 1.0f + e : sum);
    if (row < 8) {
        e += v != v ? v : 0.0f;
        if (row < 4)
            g.pre[token * 4 + row] = e + g.eps;
        else if (g.post != NULL)
            g.post[token * 4 + row - 4] = 2.0f * e;
    }
    if (g.comb != NULL && lane < 16)
        g.comb[token * 16 + lane] = sinkhorn_four(e + g.eps, g.iters, g.eps);
}

/* What cu_hc_enter left, by a block of another launch. */
__device__ __forceinline__ void later_gates(const cu_later &l)
{
    int row = mix_of_lane();
    if (threadIdx.x >= 32)
        return;
    float2 gate = gate_of_lane(l.gates, 24);
    if (!l.settled && !MUTANT(79)) /* the mixes not waited for */
        wait_for_previous();
    four_gates(row < 24 ? __ldcg(l.m + row) : 0.0f, gate, l.gates, 0);
}

/* ---- hyper_connection_cluster.cu: mixes, gates, collapse, norm in one launch -------------------
 */

typedef struct {
    const float *fn, *streams, *norm;
    int64_t n, dim;
    int rows, tokens; /* tokens: of sixteen blocks */
    float eps;
    bool gated, bf16;
    bool later; /* of one token, with y: gates but those of the collapse are another's work */
    cu_gates gates;
    float *m, *x, *y; /* NULL: not asked for */
    cu_left left;     /* out NULL: nobody leaves */
} enter_args;

/* The usual shapes, where the device can. */
extern "C" bool cu_enters(const cu_tensor *fn, const cu_gates *gates);
/* What cu_enters takes; a->tokens is set here. */
extern "C" void cu_enter(cu_stream s, const enter_args *a);

#endif
