/* attention.cu - one softmax over window rows and compressed rows with a sink; K and V are the
 * same row, shared by all heads. The rows of a token are split over blocks: each block runs an
 * online softmax over its tiles, a second kernel joins the parts in a fixed order. */
#include <cfloat>

#include "device.cuh"

enum { HEADS = 8, TILE = 16, THREADS = 256, WARPS = 8, SLOTS = 2, MOST_DIM = SLOTS * THREADS };
/* Parts a token's rows are cut into: a function of the session's capacity, never of the tokens that
 * come together, so that the sums are the same however a text is cut. */
enum { MOST_SPLITS = 20, AT_ONCE = 64 /* tokens a launch */ };

/* The rows a token sees, window first, then compressed, by number. */
typedef struct {
    int64_t t, first, window, limit, total;
} row_range;

__device__ __forceinline__ row_range range_of(const cu_attention_args *a, int64_t i)
{
    row_range r;
    r.t = *a->pos0 + i;
    r.first = r.t - a->window_size + 1 > 0 ? r.t - a->window_size + 1 : 0;
    r.window = r.t - r.first + 1;
    r.limit = a->ratio > 0 ? (r.t + 1) / a->ratio : 0;
    if (MUTANT(18) && a->ratio > 0) /* sees the row that is not complete yet */
        r.limit = (r.t + a->ratio) / a->ratio;
    r.total = r.window + (a->ratio == 0 ? 0 : a->topk != NULL ? a->k : r.limit);
    return r;
}

/* NULL = the list names no row here, or one that is not visible yet. */
__device__ __forceinline__ const float *row_number(const cu_attention_args *a, const row_range *r,
                                                   int64_t i, int64_t number)
{
    if (number >= r->total)
        return NULL;
    if (number < r->window) {
        int64_t at = r->first + number - a->window_pos0;
        if (MUTANT(19)) /* the ring one short */
            at %= a->window_ring > 1 ? a->window_ring - 1 : 1;
        return a->window + at % a->window_ring * a->dim;
    }
    int64_t j = number - r->window;
    if (a->topk != NULL)
        j = a->topk[i * a->k + j];
    if (MUTANT(20)) /* 32-bit offset in bytes, as of a far row */
        return j >= 0 && j < r->limit ? a->rows + (int32_t)(j * a->dim % 1000) : NULL;
    return j >= 0 && j < r->limit ? a->rows + j * a->dim : NULL;
}

static __global__ void __launch_bounds__(THREADS, 2)
    attention(const __grid_constant__ cu_attention_args a)
{
    begin();
    extern __shared__ __align__(16) float memory[];
    __shared__ const float *where[TILE];
    __shared__ float max_of[HEADS], sum_of[HEADS], shrink[HEADS];
    int64_t i = a.first + blockIdx.z;
    int head0 = (int)blockIdx.y * HEADS, split = (int)blockIdx.x, dim = a.dim;
    int padded = (dim + 3) / 4 * 4, ld = padded + 4;
    float *q = memory, *rows = q + HEADS * ld, *part = rows + TILE * ld; /* [WARPS][HEADS][TILE] */
    float *p = part; /* [TILE][HEADS], once the parts are added up */
    int t = threadIdx.x, lane = t % 32, warp = t / 32;
    row_range r = range_of(&a, i);
    int64_t tiles = (r.total + TILE - 1) / TILE, each = (tiles + a.splits - 1) / a.splits;
    int64_t begin = split * each, end = begin + each < tiles ? begin + each : tiles;
    float scale = (float)(1.0 / sqrt((double)dim));

    if (dim % 4 == 0) {
        /* Loads first, then stores: in one loop each would wait for the one before. */
        const float4 *from = (const float4 *)(const void *)(a.q + (i * a.heads + head0) * dim);
        int quads = dim / 4;
        for (int k0 = t; k0 < HEADS * quads; k0 += 4 * THREADS) {
            float4 v[4];
#pragma unroll
            for (int m = 0; m < 4; m++) {
                int k = k0 + m * THREADS;
                bool inside = k < HEADS * quads && head0 + k / quads < a.heads;
                v[m] = inside ? __ldcg(from + k) : make_float4(0, 0, 0, 0);
            }
#pragma unroll
            for (int m = 0; m < 4; m++) {
                int k = k0 + m * THREADS;
                if (k < HEADS * quads)
                    *(float4 *)(void *)&q[k / quads * ld + 4 * (k % quads)] = v[m];
            }
        }
    } else {
        for (int k = t; k < HEADS * ld; k += THREADS) {
            int h = k / ld, c = k % ld;
            q[k] = head0 + h < a.heads && c < dim ? a.q[(i * a.heads + head0 + h) * dim + c] : 0.0f;
        }
    }
    if (t < HEADS) {
        max_of[t] = -FLT_MAX;
        sum_of[t] = 0;
    }
    float o[SLOTS][HEADS] = {};
    for (int64_t tile = begin; tile < end; tile++) {
        __syncthreads();
        if (t < TILE)
            where[t] = row_number(&a, &r, i, tile * TILE + t);
        __syncthreads();
        if (dim % 4 == 0) {
            int quads = dim / 4;
            for (int k0 = t; k0 < TILE * quads; k0 += 8 * THREADS) {
                float4 v[8];
#pragma unroll
                for (int m = 0; m < 8; m++) {
                    int k = k0 + m * THREADS;
                    const float *from = k < TILE * quads ? where[k / quads] : NULL;
                    v[m] = from != NULL ? __ldcg((const float4 *)(const void *)from + k % quads)
                                        : make_float4(0, 0, 0, 0);
                }
#pragma unroll
                for (int m = 0; m < 8; m++) {
                    int k = k0 + m * THREADS;
                    if (k < TILE * quads)
                        *(float4 *)(void *)&rows[k / quads * ld + 4 * (k % quads)] = v[m];
                }
            }
        } else {
            for (int k = t; k < TILE * ld; k += THREADS) {
                int row = k / ld, c = k % ld;
                rows[k] = where[row] != NULL && c < dim ? where[row][c] : 0.0f;
            }
        }
        __syncthreads();
        /* Scores: a warp takes every eighth quad of columns, a lane 2 heads times 2 rows. */
        float dot[2][2] = {};
        int hg = lane / 8, rg = lane % 8;
#pragma unroll 4
        for (int c = 4 * warp; c < padded; c += 4 * WARPS) {
            float4 x[2], y[2];
#pragma unroll
            for (int k = 0; k < 2; k++) {
                x[k] = *(const float4 *)(const void *)&q[(hg + 4 * k) * ld + c];
                y[k] = *(const float4 *)(const void *)&rows[(rg + 8 * k) * ld + c];
            }
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    dot[h][k] = fmaf(x[h].x, y[k].x, dot[h][k]);
                    dot[h][k] = fmaf(x[h].y, y[k].y, dot[h][k]);
                    dot[h][k] = fmaf(x[h].z, y[k].z, dot[h][k]);
                    dot[h][k] = fmaf(x[h].w, y[k].w, dot[h][k]);
                }
        }
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int k = 0; k < 2; k++)
                part[(warp * HEADS + hg + 4 * h) * TILE + rg + 8 * k] = dot[h][k];
        __syncthreads();
        /* A warp a head; the upper half of its lanes repeats the lower. */
        int row = lane % TILE;
        float score = 0;
        for (int w = 0; w < WARPS; w++)
            score += part[(w * HEADS + warp) * TILE + row];
        score *= scale;
        bool there = where[row] != NULL;
        float before = max_of[warp], most = fmaxf(before, warp_max(there ? score : -FLT_MAX));
        float weight = there ? expf(score - most) : 0.0f, factor = expf(before - most);
        float sum = warp_sum(lane < TILE ? weight : 0.0f);
        if (MUTANT(21)) /* the running sum is not rescaled */
            factor = 1.0f;
        __syncwarp();
        if (lane == 0) {
            shrink[warp] = factor;
            sum_of[warp] = sum_of[warp] * factor + sum;
            max_of[warp] = most;
        }
        __syncthreads(); /* the parts are read: their room becomes p */
        if (lane < TILE)
            p[row * HEADS + warp] = weight;
        __syncthreads();
#pragma unroll
        for (int slot = 0; slot < SLOTS; slot++) {
            int c = t + slot * THREADS;
            if (c >= dim)
                break;
#pragma unroll
            for (int h = 0; h < HEADS; h++)
                o[slot][h] *= shrink[h];
#pragma unroll 4
            for (int k = 0; k < TILE; k++) {
                float v = rows[k * ld + c];
                const float4 *w = (const float4 *)(const void *)&p[k * HEADS];
#pragma unroll
                for (int h = 0; h < HEADS / 4; h++) {
                    float4 x = w[h];
                    o[slot][4 * h] = fmaf(x.x, v, o[slot][4 * h]);
                    o[slot][4 * h + 1] = fmaf(x.y, v, o[slot][4 * h + 1]);
                    o[slot][4 * h + 2] = fmaf(x.z, v, o[slot][4 * h + 2]);
                    o[slot][4 * h + 3] = fmaf(x.w, v, o[slot][4 * h + 3]);
                }
            }
        }
    }
    __syncthreads();
    /* Parts: per token, split and head dim values, then the sum and the maximum. */
    float *to =
        a.scratch + (((int64_t)blockIdx.z * a.splits + split) * a.heads + head0) * (dim + 2);
#pragma unroll
    for (int slot = 0; slot < SLOTS; slot++)
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            int c = t + slot * THREADS;
            if (c < dim && head0 + h < a.heads)
                to[(int64_t)h * (dim + 2) + c] = o[slot][h];
        }
    if (t < HEADS && head0 + t < a.heads) {
        to[(int64_t)t * (dim + 2) + dim] = sum_of[t];
        to[(int64_t)t * (dim + 2) + dim + 1] = max_of[t];
    }
}

/* A block 128 columns of a head of a token. */
static __global__ void attention_join(const __grid_constant__ cu_attention_args a, float *out,
                                      bool bf16)
{
    begin();
    __shared__ float factor[MOST_SPLITS], total;
    int h = blockIdx.x, dim = a.dim;
    int64_t i = a.first + blockIdx.y, step = (int64_t)a.heads * (dim + 2);
    const float *from = a.scratch + ((int64_t)blockIdx.y * a.splits * a.heads + h) * (dim + 2);
    if (threadIdx.x < 32) {
        int s = threadIdx.x;
        float sink = a.sink[h];
        float max = s < a.splits ? from[s * step + dim + 1] : -FLT_MAX;
        float part = s < a.splits ? from[s * step + dim] : 0.0f;
        float most = fmaxf(warp_max(max), fmaxf(sink, -FLT_MAX));
        float f = s < a.splits ? expf(max - most) : 0.0f;
        float sum = warp_sum(part * f);
        if (s < a.splits)
            factor[s] = f;
        if (s == 0)
            total = MUTANT(22) ? sum : sum + expf(sink - most); /* the sink forgotten */
    }
    __syncthreads();
    int c = blockIdx.z * blockDim.x + threadIdx.x;
    if (c >= dim)
        return;
    float v[MOST_SPLITS], o = 0;
#pragma unroll
    for (int s = 0; s < MOST_SPLITS; s++)
        v[s] = s < a.splits ? __ldcg(from + s * step + c) : 0.0f;
#pragma unroll
    for (int s = 0; s < MOST_SPLITS; s++)
        o = s < a.splits ? fmaf(v[s], factor[s], o) : o;
    out[(i * a.heads + h) * dim + c] = maybe_bf16(__fdiv_rn(o, total), bf16);
}

extern "C" int cu_attention_splits(int64_t rows)
{
    int64_t splits = (rows + TILE - 1) / TILE;
    return (int)(splits < 1 ? 1 : splits > MOST_SPLITS ? (int64_t)MOST_SPLITS : splits);
}

extern "C" int64_t cu_attention_scratch(int64_t n, int heads, int dim, int splits)
{
    return (n < AT_ONCE ? n : (int64_t)AT_ONCE) * splits * heads * (dim + 2);
}

extern "C" void cu_attention(cu_stream s, const cu_attention_args *args, float *out, bool bf16)
{
    static bool raised;
    cu_attention_args a = *args;
    int ld = (a.dim + 3) / 4 * 4 + 4;
    size_t shared = (size_t)(HEADS * ld + TILE * ld + WARPS * HEADS * TILE) * sizeof(float);
    if (!raised) {
        int most = MOST_DIM + 4;
        cudaFuncSetAttribute(attention, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)((size_t)(HEADS * most + TILE * most + WARPS * HEADS * TILE) *
                                   sizeof(float)));
        raised = true;
    }
    for (a.first = 0; a.first < a.n; a.first += AT_ONCE) {
        unsigned n = (unsigned)(a.n - a.first < AT_ONCE ? a.n - a.first : (int64_t)AT_ONCE);
        dim3 grid((unsigned)a.splits, (unsigned)((a.heads + HEADS - 1) / HEADS), n);
        dim3 join((unsigned)a.heads, n, cu_blocks(a.dim, 128));
        LAUNCH("attention", a.n * a.heads * a.dim, attention, grid, THREADS, shared, s, a);
        LAUNCH("attention_join", a.n * a.heads * a.dim, attention_join, join, 128, 0, s, a, out,
               bf16);
    }
}
