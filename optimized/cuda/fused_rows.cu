/* fused_rows.cu - what follows the products of a token's normalised input, in one launch: rmsnorm
 * (and round_fp8) of the query's low rank; rmsnorm, rope, round_fp8 and window_store of its KV row;
 * compressor_store and compressor_emit of both compressors; index_weights; gates that cu_hc_enter
 * left. The steps and their order are those operators': so are the bits. */
#include "compressor.cuh"
#include "hyper_connection.cuh"

enum { ROLE_QUERY, ROLE_KV, ROLE_COMPRESSOR, ROLE_INDEXER, ROLES };
/* Columns of a thread, at most: what is fetched before the products are there. */
enum { AHEAD = 8, KV_AHEAD = 2, COMPRESSOR_AHEAD = 4, REHEARSED = 8 /* tokens, at most */ };

static __device__ __forceinline__ void query_row(const cu_rows_args &a, cu_rounds rounds, int64_t i,
                                                 float *row, float *room)
{
    int t = threadIdx.x;
    int64_t dim = a.q_dim;
    float *x = a.q_lora + i * dim, weight[AHEAD], sum = 0;
    bool bf16 = a.numerics == DSV4_DEPLOYED;
#pragma unroll
    for (int c = 0; c < AHEAD; c++)
        weight[c] = t + c * ROW_THREADS < dim ? __ldg(a.q_norm + t + c * ROW_THREADS) : 0.0f;
#pragma unroll 1
    for (int round = rounds.first; round < rounds.end; round++) {
        bool live = round == 1;
        if (live)
            wait_for_previous();
        float v[AHEAD];
        sum = 0;
#pragma unroll
        for (int c = 0; c < AHEAD; c++)
            v[c] = live && t + c * ROW_THREADS < dim ? __ldcg(x + t + c * ROW_THREADS) : 0.0f;
#pragma unroll
        for (int c = 0; c < AHEAD; c++)
            if (t + c * ROW_THREADS < dim)
                sum = fmaf(v[c], v[c], sum);
        float scale = root_scale(block_sum(sum, room), dim, a.eps);
#pragma unroll
        for (int c = 0; c < AHEAD; c++) {
            int k = t + c * ROW_THREADS;
            float y = maybe_bf16(weight[c] * (v[c] * scale), bf16);
            if (k < dim)
                row[k] = y;
            if (live && k < dim)
                x[k] = y;
        }
        if (a.q8 == NULL)
            continue;
        __syncthreads();
        round_row(row, (int)dim, a.q8_block, false);
        __syncthreads();
        for (int k = t; k < dim && live; k += ROW_THREADS)
            a.q8[i * dim + k] = row[k];
    }
}

static __device__ __forceinline__ void kv_row(const cu_rows_args &a, cu_rounds rounds,
                                              const cu_row_state &s, int64_t i, int64_t position,
                                              float *row, float *room)
{
    const float *x = a.kv_row + i * a.dim;
    int t = threadIdx.x;
    bool bf16 = a.numerics == DSV4_DEPLOYED;
    float weight[KV_AHEAD], sum = 0;
#pragma unroll
    for (int c = 0; c < KV_AHEAD; c++)
        weight[c] = t + c * ROW_THREADS < a.dim ? __ldg(a.kv_norm + t + c * ROW_THREADS) : 0.0f;
    if (MUTANT(61)) /* one place late in the window */
        position++;
    float *to = s.window + position % s.window_ring * a.dim;
#pragma unroll 1
    for (int round = rounds.first; round < rounds.end; round++) {
        bool live = round == 1;
        if (live)
            wait_for_previous();
        sum = 0;
        for (int k = t; k < a.dim; k += ROW_THREADS) {
            row[k] = live ? __ldcg(x + k) : 0.0f;
            sum = fmaf(row[k], row[k], sum);
        }
        float scale = root_scale(block_sum(sum, room), a.dim, a.eps);
#pragma unroll
        for (int c = 0; c < KV_AHEAD; c++) {
            int k = t + c * ROW_THREADS;
            if (k < a.dim)
                row[k] = maybe_bf16(weight[c] * (row[k] * scale), bf16);
        }
        __syncthreads();
        float *tail = row + a.dim - a.rope;
        for (int k = t; k < a.rope / 2; k += ROW_THREADS) {
            float cosine = live ? __ldcg(a.cosine + i * (a.rope / 2) + k) : 1.0f;
            float sine = live ? __ldcg(a.sine + i * (a.rope / 2) + k) : 0.0f;
            float2 turned = rotate(tail[2 * k], tail[2 * k + 1], cosine, sine, bf16);
            tail[2 * k] = turned.x;
            tail[2 * k + 1] = turned.y;
        }
        if (a.numerics != DSV4_MATH) /* other columns than the turned ones */
            round_row(row, a.dim - a.rope, KV_BLOCK, false);
        __syncthreads();
        for (int k = t; k < a.dim && live; k += ROW_THREADS)
            to[k] = row[k];
        __syncthreads(); /* the row is read before the next round's is written */
    }
}

/* One token into the rings, and the row that it completes. */
static __device__ __forceinline__ void compressed_row(const cu_compressor &c, cu_rounds rounds,
                                                      const float *kv, const float *z,
                                                      int64_t position, float *row, float *room)
{
    int t = threadIdx.x, width = c.lanes * c.dim;
    const float *from = c.ape + position % c.ratio * width;
    int64_t place = position % c.ring;
    float ape[COMPRESSOR_AHEAD];
#pragma unroll
    for (int i = 0; i < COMPRESSOR_AHEAD; i++)
        ape[i] = t + i * ROW_THREADS < width ? __ldg(from + t + i * ROW_THREADS) : 0.0f;
#pragma unroll 1
    for (int round = rounds.first; round < rounds.end; round++) {
        bool live = round == 1;
        if (live)
            wait_for_previous();
#pragma unroll
        for (int i = 0; i < COMPRESSOR_AHEAD; i++) {
            int k = t + i * ROW_THREADS;
            if (k < width && live)
                store_element(c, place, k, __ldcg(kv + k), __ldcg(z + k), ape[i]);
        }
        if ((position + 1) % c.ratio != 0 || (!live && c.ratio >= LONG_WINDOW))
            continue; /* a long window's rehearsal would be longer than what it spares */
        __syncthreads();
        emit_row(c, position / c.ratio, row, room, NULL, live); /* ends with a barrier */
    }
}

/* A block a token and role. Positions and the table are written before a step begins. */
static __global__ void __launch_bounds__(ROW_THREADS)
    rows(const __grid_constant__ cu_rows_args a, cu_rounds rounds)
{
    extern __shared__ float row[];
    __shared__ float room[32];
    int64_t i = blockIdx.y;
    let_next_start();
    if (a.later.m != NULL && blockIdx.x == gridDim.x - 1) {
        if (!MUTANT(80)) /* forgotten */
            later_gates(a.later);
        return;
    }
    if (blockIdx.x == ROLE_QUERY) {
        query_row(a, rounds, i, row, room);
        return;
    }
    const cu_row_state &s = a.table != NULL ? a.table[i] : a.one;
    int64_t position = *s.pos + (a.table != NULL ? 0 : i);
    if (blockIdx.x == ROLE_KV) {
        kv_row(a, rounds, s, i, position, row, room);
        return;
    }
    bool index = blockIdx.x == ROLE_INDEXER;
    const cu_compressor &c = index ? s.indexer : s.compressor;
    int64_t width = (int64_t)c.lanes * c.dim;
    if (a.compresses)
        compressed_row(c, rounds, (index ? a.index_kv : a.kv) + i * width,
                       (index ? a.index_z : a.z) + i * width, position, row, room);
    else
        wait_for_previous();
    if (!index)
        return;
    float *w = a.index_w + i * a.index_heads;
    for (int k = threadIdx.x; k < a.index_heads; k += ROW_THREADS)
        w[k] = maybe_bf16(w[k] * a.index_scale, a.numerics == DSV4_DEPLOYED);
}

extern "C" bool cu_rows_take(int64_t q_dim, int64_t dim, int64_t index_dim)
{
    return q_dim <= AHEAD * (int64_t)ROW_THREADS && dim <= KV_AHEAD * ROW_THREADS &&
           index_dim <= KV_AHEAD * ROW_THREADS;
}

extern "C" void cu_rows(cu_stream s, const cu_rows_args *a, int ratio)
{
    int64_t widest = a->q_dim > a->dim ? a->q_dim : a->dim;
    widest = ratio == 4 && a->index_dim > widest ? a->index_dim : widest;
    int roles = ratio == 4 ? ROLES : ratio > 0 && a->compresses ? ROLE_INDEXER : ROLE_COMPRESSOR;
    dim3 grid((unsigned)(roles + (a->later.m != NULL)), (unsigned)a->n);
    if (a->n > 0)
        LAUNCH("rows", a->n * (a->q_dim + a->dim), rows, grid, ROW_THREADS,
               (size_t)widest * sizeof(float), s, *a, rounds_of(a->n <= REHEARSED));
}
