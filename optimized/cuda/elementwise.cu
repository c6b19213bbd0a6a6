/* elementwise.cu - embedding rows, additions, SwiGLU, the window's ring, the position. */
#include "rows.cuh"

extern "C" const uint64_t *cu_iq2_book_device(void); /* device.c */

static __global__ void embed(cu_tensor table, const int32_t *ids, int copies, bool bf16,
                             const uint64_t *iq2, float *x)
{
    begin();
    int64_t i = blockIdx.y, c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= table.cols)
        return;
    embed_column(table, ids[i], c, copies, bf16, iq2, x + i * copies * table.cols);
}

extern "C" void cu_embed(cu_stream s, const cu_tensor *table, const int32_t *ids, int64_t n,
                         int copies, bool bf16, float *x)
{
    dim3 grid(cu_blocks(table->cols, 128), (unsigned)n);
    if (n > 0)
        LAUNCH("embed", n * table->cols, embed, grid, 128, 0, s, *table, ids, copies, bf16,
               cu_iq2_book_device(), x);
}

static __global__ void add(float *x, const float *y, int64_t n, bool bf16)
{
    begin();
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        x[i] = maybe_bf16(x[i] + y[i], bf16);
}

extern "C" void cu_add(cu_stream s, float *x, const float *y, int64_t n, bool bf16)
{
    if (n > 0)
        LAUNCH("add", n, add, cu_blocks(n, 256), 256, 0, s, x, y, n, bf16);
}

static __global__ void add_streams(float *x, const float *y, int64_t n, int hc, int64_t dim,
                                   bool bf16)
{
    begin();
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < n * hc * dim)
        x[at] = maybe_bf16(x[at] + y[at / (hc * dim) * dim + at % dim], bf16);
}

extern "C" void cu_add_streams(cu_stream s, float *x, const float *y, int64_t n, int hc,
                               int64_t dim, bool bf16)
{
    int64_t work = n * hc * dim;
    if (work > 0)
        LAUNCH("add_streams", work, add_streams, cu_blocks(work, 256), 256, 0, s, x, y, n, hc, dim,
               bf16);
}

static __global__ void swiglu(const float *gate, const float *up, float limit, int64_t n,
                              int64_t width, const float *share, bool bf16, float *h)
{
    begin();
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n * width)
        return;
    float v = swiglu_of(gate[at], up[at], limit);
    if (share != NULL)
        v = share[at / width] * v;
    h[at] = maybe_bf16(v, bf16);
}

extern "C" void cu_swiglu(cu_stream s, const float *gate, const float *up, float limit, int64_t n,
                          int64_t width, const float *share, bool bf16, float *h)
{
    if (n * width > 0)
        LAUNCH("swiglu", n * width, swiglu, cu_blocks(n * width, 256), 256, 0, s, gate, up, limit,
               n, width, share, bf16, h);
}

static __global__ void window_store(const float *kv, const int64_t *pos0, int64_t n, int d,
                                    int64_t ring, float *window)
{
    begin();
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < n * d)
        window[(*pos0 + at / d) % ring * d + at % d] = kv[at];
}

extern "C" void cu_window_store(cu_stream s, const float *kv, const int64_t *pos0, int64_t n, int d,
                                int64_t ring, float *window)
{
    if (n > 0)
        LAUNCH("window_store", n * d, window_store, cu_blocks(n * d, 256), 256, 0, s, kv, pos0, n,
               d, ring, window);
}
