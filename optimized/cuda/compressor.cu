/* compressor.cu - compressed rows: the pooling alone (the operator), and the session's compressor,
 * whose windows lie in rings and whose rows appear as their windows fill. */
#include "compressor.cuh"

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
    store_element(c, position % c.ring, k, kv[at], z[at], c.ape[position % c.ratio * width + k]);
}

extern "C" void cu_compressor_store(cu_stream s, const cu_compressor *c, const float *kv,
                                    const float *z, const int64_t *pos0, int64_t n)
{
    int64_t work = n * c->lanes * c->dim;
    if (work > 0)
        LAUNCH("compressor_store", work, compressor_store, cu_blocks(work, 256), 256, 0, s, *c, kv,
               z, pos0, n);
}

/* A block a row. */
static __global__ void compressor_emit(cu_compressor c, const int64_t *pos0, int64_t n)
{
    begin();
    extern __shared__ float row[]; /* [dim] */
    __shared__ float room[32];
    int64_t j = *pos0 / c.ratio + blockIdx.x;
    if ((j + 1) * c.ratio > *pos0 + n)
        return;
    emit_row(c, j, row, room, c.before != NULL ? c.before + (int64_t)blockIdx.x * c.dim : NULL,
             true);
}

extern "C" void cu_compressor_emit(cu_stream s, const cu_compressor *c, const int64_t *pos0,
                                   int64_t n)
{
    if (n > 0)
        LAUNCH("compressor_emit", n * c->dim, compressor_emit, (unsigned)(n / c->ratio + 1),
               ROW_THREADS, (size_t)c->dim * sizeof(float), s, *c, pos0, n);
}
