/* queries.cuh - a head's query, head_norm and rope, by one warp: shared by the kernel that does all
 * heads (fused_queries.cu) and by attention that turns its own (attention_few.cu). The steps and
 * their order are those operators': so are the bits. Private to the .cu files. */
#ifndef DSV4_CUDA_QUERIES_CUH
#define DSV4_CUDA_QUERIES_CUH

#include "rows.cuh"

enum { QUERY_EACH = 16 /* columns of a lane, at most */, QUERY_MOST = 32 * QUERY_EACH };

/* A lane's share of a head, and the angle of its first pair: asked for together. */
typedef struct {
    float v[QUERY_EACH], cosine, sine;
} raw_query;

__device__ __forceinline__ raw_query load_query(const float *q, int d, int r, const float *cosine,
                                                const float *sine, bool live)
{
    raw_query x;
    int lane = threadIdx.x % 32;
    bool turns = live && lane < r / 2;
#pragma unroll
    for (int c = 0; c < QUERY_EACH; c++)
        x.v[c] = live && c * 32 + lane < d ? __ldcg(q + c * 32 + lane) : 0.0f;
    x.cosine = turns ? __ldcg(cosine + lane) : 1.0f;
    x.sine = turns ? __ldcg(sine + lane) : 0.0f;
    return x;
}

/* The last r columns of a warp's row turned; c, s: the angle of the lane's first pair. */
__device__ __forceinline__ void turn_tail(float *row, int d, int r, float c, float s,
                                          const float *cosine, const float *sine, bool bf16,
                                          bool live)
{
    float *tail = row + d - r;
#pragma unroll 1
    for (int k = threadIdx.x % 32; k < r / 2; k += 32) {
        if (k >= 32) {
            c = live ? __ldcg(cosine + k) : 1.0f;
            s = live ? __ldcg(sine + k) : 0.0f;
        }
        float2 turned = rotate(tail[2 * k], tail[2 * k + 1], c, s, bf16);
        tail[2 * k] = turned.x;
        tail[2 * k + 1] = turned.y;
    }
    __syncwarp();
}

/* The head normalised, into a row of shared memory. */
__device__ __forceinline__ void norm_query(const raw_query *x, float *row, int d, float eps,
                                           bool bf16)
{
    int lane = threadIdx.x % 32;
    float sum = 0;
#pragma unroll
    for (int c = 0; c < QUERY_EACH; c++)
        if (c * 32 + lane < d)
            sum += maybe_bf16(x->v[c] * x->v[c], bf16);
    float scale = head_scale(warp_sum(sum), d, eps, bf16);
#pragma unroll
    for (int c = 0; c < QUERY_EACH; c++)
        if (c * 32 + lane < d)
            row[c * 32 + lane] = maybe_bf16(x->v[c] * scale, bf16);
    __syncwarp();
}

#endif
