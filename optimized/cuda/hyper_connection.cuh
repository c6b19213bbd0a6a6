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

/* ---- hyper_connection_cluster.cu: mixes, gates, collapse, norm in one launch -------------------
 */

typedef struct {
    const float *fn, *streams, *norm;
    int64_t n, dim;
    int rows, tokens; /* tokens: of sixteen blocks */
    float eps;
    bool gated, bf16;
    cu_gates gates;
    float *m, *x, *y; /* NULL: not asked for */
    cu_left left;     /* out NULL: nobody leaves */
} enter_args;

/* The usual shapes, where the device can. */
extern "C" bool cu_enters(const cu_tensor *fn, const cu_gates *gates);
/* What cu_enters takes; a->tokens is set here. */
extern "C" void cu_enter(cu_stream s, const enter_args *a);

#endif
