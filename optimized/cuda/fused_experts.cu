/* fused_experts.cu - between and behind the products of the experts: swiglu (and round_fp8) of the
 * routed and of the shared expert in one launch; expert_sum, add and hc_post in another. The steps
 * and their order are those operators': so are the bits. */
#include "rows.cuh"

enum { UNIT = 128 /* columns of a block, without FP8 blocks */, MOST_EXPERTS = 64, AT_ONCE = 8 };

static __device__ __forceinline__ int64_t units_of(const cu_swiglu_rows &r)
{
    int unit = r.block > 0 ? r.block : UNIT;
    return r.n * ((r.width + unit - 1) / unit);
}

/* A block a stretch of up to 128 columns, a thread a column: a step of one token has to fetch these
 * instructions before it can run them, and they are few. */
static __global__ void __launch_bounds__(UNIT)
    swiglu_both(const __grid_constant__ cu_swiglu_rows first,
                const __grid_constant__ cu_swiglu_rows second, float limit, bool bf16)
{
    wait_for_previous(); /* and then only may the next one start: cu_segment.settled */
    let_next_start();
    __shared__ float most[UNIT / 32];
    int64_t at = blockIdx.x;
    bool other = at >= units_of(first);
    const cu_swiglu_rows &r = other ? second : first;
    at -= other ? units_of(first) : 0;
    int unit = r.block > 0 ? r.block : UNIT, k = threadIdx.x;
    int64_t each = (r.width + unit - 1) / unit, row = at / each, k0 = at % each * unit;
    int64_t to = row * r.width + k0 + k;
    bool mine = k < unit && k0 + k < r.width;
    float h = 0;
    if (mine) {
        h = swiglu_of(__ldcg(r.gate + to), __ldcg(r.up + to), limit);
        if (r.share != NULL && !MUTANT(63)) /* the weights of the experts left out */
            h = __ldcg(r.share + row) * h;
        h = maybe_bf16(h, bf16);
    }
    if (r.block > 0) { /* the same for the whole block */
        float amax = warp_max(fabsf(h));
        if (k % 32 == 0)
            most[k / 32] = amax;
        __syncthreads();
        for (int w = 0; w < UNIT / 32; w++)
            amax = fmaxf(amax, most[w]);
        h = to_fp8(h, fp8_scale(amax));
    }
    if (mine)
        r.out[to] = h;
}

extern "C" void cu_swiglu_both(cu_stream s, const cu_swiglu_rows *first,
                               const cu_swiglu_rows *second, float limit, bool bf16)
{
    int64_t units = 0;
    for (int i = 0; i < 2; i++) {
        const cu_swiglu_rows *r = i == 0 ? first : second;
        int unit = r->block > 0 ? r->block : UNIT;
        units += r->n * ((r->width + unit - 1) / unit);
    }
    if (units > 0)
        LAUNCH("swiglu_both", units * UNIT, swiglu_both, (unsigned)units, UNIT, 0, s, *first,
               *second, limit, bf16);
}

/* A thread a column of a token: the experts' sum, the shared expert, the streams. */
template <int HC>
static __global__ void __launch_bounds__(128)
    leave(const float *y, const int32_t *experts, int k, const float *shared, const float *streams,
          const float *post, const float *comb, int hc_given, int64_t dim, float *out, bool bf16)
{
    enum { MOST = HC > 0 ? HC : CU_MOST_HC };
    __shared__ float c[MOST * MOST], p[MOST], kept[MOST_EXPERTS];
    begin();
    int hc = HC > 0 ? HC : hc_given, t = threadIdx.x;
    int64_t i = blockIdx.y, column = (int64_t)blockIdx.x * blockDim.x + t;
    for (int m = t; m < hc * hc; m += blockDim.x)
        c[m] = comb[i * hc * hc + m];
    if (t < hc)
        p[t] = post[i * hc + t];
    if (t < k) { /* an expert listed twice has its whole weight at its first place */
        int s = 0;
        while (experts[i * k + s] != experts[i * k + t])
            s++;
        kept[t] = s == t;
    }
    bool inside = column < dim;
    float in = 0, side = inside ? shared[i * dim + column] : 0.0f, x[MOST], v[AT_ONCE];
#pragma unroll
    for (int a = 0; a < MOST; a++)
        x[a] = inside && a < hc ? streams[(i * hc + a) * dim + column] : 0.0f;
#pragma unroll
    for (int s = 0; s < AT_ONCE; s++)
        v[s] = inside && s < k ? y[(i * k + s) * dim + column] : 0.0f;
    __syncthreads();
    if (!inside)
        return;
#pragma unroll
    for (int s = 0; s < AT_ONCE; s++)
        if (s < k)
            in += kept[s] != 0 ? v[s] : 0.0f;
    for (int s = AT_ONCE; s < k; s++)
        in += kept[s] != 0 ? y[(i * k + s) * dim + column] : 0.0f;
    in = maybe_bf16(in + side, bf16);
#pragma unroll
    for (int b = 0; b < MOST; b++) {
        if (b >= hc)
            break;
        float sum = p[b] * in;
#pragma unroll
        for (int a = 0; a < MOST; a++) /* comb over its first index */
            if (a < hc)
                sum = fmaf(c[MUTANT(64) ? b * hc + a : a * hc + b], x[a], sum);
        out[(i * hc + b) * dim + column] = maybe_bf16(sum, bf16);
    }
}

extern "C" bool cu_leave_takes(int k)
{
    return k <= MOST_EXPERTS;
}

extern "C" void cu_leave(cu_stream s, const float *y, const int32_t *experts, int k,
                         const float *shared, const float *streams, const float *post,
                         const float *comb, int64_t n, int hc, int64_t dim, float *out, bool bf16)
{
    dim3 grid(cu_blocks(dim, 128), (unsigned)n);
    if (n == 0)
        return;
    if (hc == 4)
        LAUNCH("leave", n * hc * dim, leave<4>, grid, 128, 0, s, y, experts, k, shared, streams,
               post, comb, hc, dim, out, bf16);
    else
        LAUNCH("leave", n * hc * dim, leave<0>, grid, 128, 0, s, y, experts, k, shared, streams,
               post, comb, hc, dim, out, bf16);
}
