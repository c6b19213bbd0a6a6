/* norm.cu - RMSNorm of rows, and of heads without a weight. */
#include "rows.cuh"

static __global__ void rmsnorm(const float *x, const float *w, float eps, int64_t dim, float *y,
                               bool bf16)
{
    begin();
    __shared__ float room[32];
    const float *in = x + (int64_t)blockIdx.x * dim;
    float *out = y + (int64_t)blockIdx.x * dim, sum = 0;
    for (int64_t k = threadIdx.x; k < dim; k += blockDim.x)
        sum = fmaf(in[k], in[k], sum);
    float scale = root_scale(block_sum(sum, room), dim, eps);
    for (int64_t k = threadIdx.x; k < dim; k += blockDim.x) {
        float unit = in[k] * scale;
        out[k] = maybe_bf16(w != NULL ? w[k] * unit : unit, bf16);
    }
}

extern "C" void cu_rmsnorm(cu_stream s, const float *x, const float *w, float eps, int64_t n,
                           int64_t dim, float *y, bool bf16)
{
    if (n > 0)
        LAUNCH("rmsnorm", n * dim, rmsnorm, (unsigned)n, norm_threads(dim), 0, s, x, w, eps, dim, y,
               bf16);
}

/* One warp a head. */
static __global__ void head_norm(float *q, float eps, int64_t n, int64_t dim, bool bf16)
{
    begin();
    int64_t head = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    float *v = q + head * dim, sum = 0;
    if (head >= n)
        return;
    for (int64_t k = lane; k < dim; k += 32)
        sum += maybe_bf16(v[k] * v[k], bf16);
    sum = warp_sum(sum);
    float scale = head_scale(sum, dim, eps, bf16);
    for (int64_t k = lane; k < dim; k += 32)
        v[k] = maybe_bf16(v[k] * scale, bf16);
}

extern "C" void cu_head_norm(cu_stream s, float *q, float eps, int64_t n, int64_t dim, bool bf16)
{
    if (n > 0)
        LAUNCH("head_norm", n * dim, head_norm, cu_blocks(n, 4), 128, 0, s, q, eps, n, dim, bf16);
}
