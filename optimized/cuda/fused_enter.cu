/* fused_enter.cu - a sublayer's entry in one launch: hc_collapse, rmsnorm and, where FP8 products
 * follow, round_fp8. The steps and their order are those operators': so are the bits. */
#include "rows.cuh"

enum { COLUMNS = 8 /* of a thread, at most */ };

/* A block a token. HC: streams, 0 = as many as hc says. */
template <int HC>
static __global__ void __launch_bounds__(1024)
    enter(const float *streams, const float *pre, const float *w, float eps, int hc_given,
          int64_t dim, int block8, bool bf16, float *y, float *y8)
{
    extern __shared__ float row[]; /* [dim] if y8 is wanted */
    __shared__ float room[32];
    int hc = HC > 0 ? HC : hc_given, threads = (int)blockDim.x;
    int64_t i = blockIdx.x;
    float weight[COLUMNS], x[COLUMNS], sum = 0;
    let_next_start();
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        int64_t k = threadIdx.x + (int64_t)c * threads;
        weight[c] = k < dim ? __ldg(w + k) : 0.0f;
    }
    wait_for_previous();
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        int64_t k = threadIdx.x + (int64_t)c * threads;
        float v = 0;
        for (int j = 0; j < hc && k < dim; j++)
            v = fmaf(pre[i * hc + j], streams[(i * hc + j) * dim + k], v);
        x[c] = maybe_bf16(v, bf16);
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        int64_t k = threadIdx.x + (int64_t)c * threads;
        if (k < dim - (MUTANT(60) ? 1 : 0)) /* the last column's square left out */
            sum = fmaf(x[c], x[c], sum);
    }
    float scale = root_scale(block_sum(sum, room), dim, eps);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        int64_t k = threadIdx.x + (int64_t)c * threads;
        if (k >= dim)
            continue;
        float v = maybe_bf16(weight[c] * (x[c] * scale), bf16);
        y[i * dim + k] = v;
        if (y8 != NULL)
            row[k] = v;
    }
    if (y8 == NULL)
        return;
    __syncthreads();
    round_row(row, (int)dim, block8, false);
    __syncthreads();
    for (int64_t k = threadIdx.x; k < dim; k += threads)
        y8[i * dim + k] = row[k];
}

extern "C" bool cu_enter_takes(int64_t dim)
{
    return dim <= COLUMNS * (int64_t)norm_threads(dim);
}

extern "C" void cu_enter(cu_stream s, const float *streams, const float *pre, const float *w,
                         float eps, int64_t n, int hc, int64_t dim, bool bf16, float *y, float *y8,
                         int block8)
{
    size_t shared = y8 != NULL ? (size_t)dim * sizeof(float) : 0;
    if (n == 0)
        return;
    if (hc == 4)
        LAUNCH("enter", n * dim, enter<4>, (unsigned)n, norm_threads(dim), shared, s, streams, pre,
               w, eps, hc, dim, block8, bf16, y, y8);
    else
        LAUNCH("enter", n * dim, enter<0>, (unsigned)n, norm_threads(dim), shared, s, streams, pre,
               w, eps, hc, dim, block8, bf16, y, y8);
}
