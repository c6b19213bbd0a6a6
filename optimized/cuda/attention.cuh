/* attention.cuh - what the kernels of attention share: which rows a token sees, the weights of a
 * tile of them, and how splits are joined. Private to attention*.cu. */
#ifndef DSV4_CUDA_ATTENTION_CUH
#define DSV4_CUDA_ATTENTION_CUH

#include <cfloat>

#include "parts.cuh"
#include "rows.cuh"

enum {
    TILE = 16, /* rows */
    THREADS = 256,
    WARPS = 8,
    STEPS = 4, /* of 16 columns: what a warp owns */
    OWN = 16 * STEPS,
    MOST_DIM = WARPS * OWN,
    NARROWEST = 32, /* heads up to here go the tight way everywhere: every device tries it */
    WAVE = 3,       /* tiles that one token's blocks take at a time, at most */
    /* Splits of a token's rows: a function of the session's capacity, never of the tokens that come
     * together. FEW_SPLITS: blocks that see each other's memory and join by themselves. */
    MOST_SPLITS = 16,
    FEW_SPLITS = 8
};

/* The rows a token sees, window first, then compressed, by number. */
typedef struct {
    int start, window, limit, total; /* start: the first one's place in the ring */
    const int32_t *list;
} row_range;

/* pos0: asked for by the caller, early. */
__device__ __forceinline__ row_range range_of(const cu_attention_args *a, int64_t pos0, int64_t i)
{
    row_range r;
    int64_t t = pos0 + i, first = t - a->window_size + 1 > 0 ? t - a->window_size + 1 : 0;
    r.start = (int)((uint32_t)(first - a->window_pos0) % (uint32_t)a->window_ring);
    r.window = (int)(t - first) + 1;
    r.limit = a->ratio > 0 ? (int)((uint32_t)(t + 1) / (uint32_t)a->ratio) : 0;
    if (MUTANT(18) && a->ratio > 0) /* sees the row that is not complete yet */
        r.limit = (int)((t + a->ratio) / a->ratio);
    r.list = a->ratio > 0 && a->topk != NULL ? a->topk + i * a->k : NULL;
    r.total = r.window + (a->ratio == 0 ? 0 : r.list != NULL ? a->k : r.limit);
    return r;
}

/* What the list says of row `number`, to be asked for long before it is needed. */
__device__ __forceinline__ int listed(const row_range *r, int number)
{
    return r->list != NULL && number >= r->window && number < r->total
               ? __ldcg(r->list + number - r->window)
               : number - r->window;
}

/* NULL = the list names no row here, or one that is not visible yet. */
__device__ __forceinline__ const float *row_number(const cu_attention_args *a, const row_range *r,
                                                   int number, int j)
{
    if (number >= r->total)
        return NULL;
    if (number < r->window) {
        int at = r->start + number, ring = (int)a->window_ring;
        if (MUTANT(19)) /* the ring one short */
            ring = ring > 1 ? ring - 1 : 1;
        return a->window + (int64_t)(at >= ring ? at - ring : at) * a->dim;
    }
    if (MUTANT(20)) /* 32-bit offset in bytes, as of a far row */
        return j >= 0 && j < r->limit ? a->rows + j * a->dim % 1000 : NULL;
    return j >= 0 && j < r->limit ? a->rows + (int64_t)j * a->dim : NULL;
}

/* Where a row's columns lie: their eights are dealt so that neither those who write four columns of
 * eight rows nor those who read eight of one column meet in a bank. */
__device__ __forceinline__ int place_of(int row, int column)
{
    return column ^ ((row & 3) << 1 | (row >> 2 & 1)) << 3;
}

/* A [16 columns][16 rows] fragment of values that lie [row][column] */
__device__ __forceinline__ void load_turned(uint32_t a[4], const uint16_t *from)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(from);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(at)
                 : "memory");
}

/* Eight by eight bf16 turned: rows g, columns 2 t become rows 2 t, column g. */
__device__ __forceinline__ uint32_t turned(uint32_t v)
{
    uint32_t out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(v));
    return out;
}

__device__ __forceinline__ const float *from_lane(const float *p, int lane)
{
    unsigned long long at = (unsigned long long)(uintptr_t)p;
    return (const float *)(uintptr_t)__shfl_sync(0xffffffffu, at, lane);
}

/* Over the lanes that hold a head's rows. */
__device__ __forceinline__ float over_rows(float v)
{
    v += __shfl_xor_sync(0xffffffffu, v, 4);
    v += __shfl_xor_sync(0xffffffffu, v, 8);
    return v + __shfl_xor_sync(0xffffffffu, v, 16);
}

/* Weights of a tile's rows g (x, y) and g + 8 (z, w) for heads 2 t (x, z) and 2 t + 1 (y, w) of
 * eight, from the products s; HEADS 1: only one of them, in x and z. max_of, sum_of (of this lane's
 * rows) go on, factor: of what was summed before. */
template <int HEADS>
__device__ __forceinline__ float4 weights_from(float4 dots, unsigned seen, float scale,
                                               float max_of[2], float sum_of[2], float factor[2])
{
    int g = threadIdx.x % 32 / 4;
    float s[4] = {dots.x, dots.y, dots.z, dots.w}, weight[4] = {};
    bool in = (seen >> g & 1u) != 0, in8 = (seen >> (g + 8) & 1u) != 0;
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        float x = s[h] * scale, y = s[2 + h] * scale;
        float most = fmaxf(in ? x : -FLT_MAX, in8 ? y : -FLT_MAX);
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 4));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 8));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 16));
        most = fmaxf(most, max_of[h]);
        factor[h] = expf(max_of[h] - most);
        weight[h] = in ? expf(x - most) : 0.0f;
        weight[2 + h] = in8 ? expf(y - most) : 0.0f;
        if (MUTANT(21)) /* the running sum is not rescaled */
            factor[h] = 1.0f;
        sum_of[h] = fmaf(sum_of[h], factor[h], weight[h] + weight[2 + h]);
        max_of[h] = most;
    }
    return make_float4(weight[0], weight[1], weight[2], weight[3]);
}

/* The next split joins the ones before: maximum and sum of both, and the factors of their values.
 */
__device__ __forceinline__ void join_one(float *max, float *sum, float other_max, float other_sum,
                                         float *first, float *second)
{
    float most = fmaxf(*max, other_max);
    *first = expf(*max - most);
    *second = expf(other_max - most);
    *sum = fmaf(*sum, *first, other_sum * *second);
    *max = most;
}

/* The denominator with the sink, and the factor that the values still need. */
__device__ __forceinline__ void join_sink(float max, float sum, float sink, float *last,
                                          float *total)
{
    float most = fmaxf(max, fmaxf(sink, -FLT_MAX));
    *last = expf(max - most);
    *total = sum * *last;
    if (!MUTANT(22)) /* the sink forgotten */
        *total += expf(sink - most);
}

/* Factors of the splits of a head, s: this thread's, of MOST_SPLITS neighbouring lanes: as
 * join_one() and join_sink() do, one split after the other; splits without a row change nothing. */
typedef struct {
    float first[MOST_SPLITS][8], second[MOST_SPLITS][8], rescale[8], total[8];
} join_factors;

__device__ __forceinline__ void find_factors(join_factors *to, int s, int h, float max, float sum,
                                             float sink)
{
    float most = max;
#pragma unroll
    for (int d = 1; d < MOST_SPLITS; d *= 2) {
        float other = __shfl_up_sync(0xffffffffu, most, d, MOST_SPLITS);
        most = s >= d ? fmaxf(other, most) : most;
    }
    float before = __shfl_up_sync(0xffffffffu, most, 1, MOST_SPLITS);
    float x = expf((s > 0 ? before : -FLT_MAX) - most), y = expf(max - most), all = 0;
    to->first[s][h] = x;
    to->second[s][h] = y;
#pragma unroll
    for (int d = 0; d < MOST_SPLITS; d++)
        all = fmaf(all, __shfl_sync(0xffffffffu, x, d, MOST_SPLITS),
                   __shfl_sync(0xffffffffu, sum * y, d, MOST_SPLITS));
    if (s == MOST_SPLITS - 1)
        join_sink(most, all, sink, &to->rescale[h], &to->total[h]);
}

/* Angles of a lane's columns c and c + NEXT, if results are turned back. */
template <int NEXT>
__device__ __forceinline__ float4 angles_of(const cu_attention_args *a, int64_t i, int c, bool live)
{
    float4 v = make_float4(1, 1, 0, 0); /* cosines, sines */
    int m = c - (a->dim - a->rope), half = a->rope / 2;
    if (live && a->back && m >= 0 && c < a->dim) {
        v.x = __ldcg(a->cosine + i * half + m / 2);
        v.z = __ldcg(a->sine + i * half + m / 2);
    }
    m += NEXT;
    if (live && a->back && m >= 0 && c + NEXT < a->dim) {
        v.y = __ldcg(a->cosine + i * half + m / 2);
        v.w = __ldcg(a->sine + i * half + m / 2);
    }
    return v;
}

/* The splits' values v of a lane (columns c: x, y, and c + NEXT: z, w; heads 2 t: x, z, and 2 t + 1
 * of `head0` on), joined one after the other, divided, turned back, and written. */
template <int SPLITS, int NEXT>
__device__ __forceinline__ void join_values(const cu_attention_args *a, const join_factors *f,
                                            const float4 v[SPLITS], int64_t i, int head0, int c,
                                            float4 angles, float *out, bool bf16, bool live)
{
    int t = threadIdx.x % 4;
    float o[4] = {};
#pragma unroll
    for (int s = 0; s < MOST_SPLITS && s <= SPLITS; s++) { /* one that is not there: as many are */
        float4 there = s < SPLITS ? v[s] : make_float4(0, 0, 0, 0);
        float2 x = *(const float2 *)(const void *)&f->first[s][2 * t];
        float2 y = *(const float2 *)(const void *)&f->second[s][2 * t];
        o[0] = fmaf(there.x, y.x, o[0] * x.x);
        o[1] = fmaf(there.y, y.y, o[1] * x.y);
        o[2] = fmaf(there.z, y.x, o[2] * x.x);
        o[3] = fmaf(there.w, y.y, o[3] * x.y);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        int h = 2 * t + e % 2, head = head0 + h, column = c + e / 2 * NEXT;
        float v = maybe_bf16(__fdiv_rn(o[e] * f->rescale[h], f->total[h]), bf16);
        if (a->back) { /* turned back: the pair's other column is four lanes away */
            float other = __shfl_xor_sync(0xffffffffu, v, 4);
            int m = column - (a->dim - a->rope);
            if (m >= 0 && column < a->dim) {
                float cosine = e < 2 ? angles.x : angles.y;
                float sine = e < 2 ? -angles.z : -angles.w;
                if (MUTANT(65)) /* turned forward */
                    sine = -sine;
                float2 turned = m % 2 == 0 ? rotate(v, other, cosine, sine, bf16)
                                           : rotate(other, v, cosine, sine, bf16);
                v = m % 2 == 0 ? turned.x : turned.y;
            }
        }
        if (live && head < a->heads && column < a->dim)
            out[(i * a->heads + head) * a->dim + column] = v;
    }
}

/* Floats of a part: values of 8 heads as fragments of each warp that has columns, then sums and
 * maxima of the heads. */
__host__ __device__ __forceinline__ int64_t part_floats(int dim)
{
    return (int64_t)(dim + OWN - 1) / OWN * OWN * 8 + 16;
}

__device__ __forceinline__ float *part_at(const cu_attention_args *a, int64_t token, int split,
                                          int eight)
{
    return a->scratch +
           ((token * a->splits + split) * ((a->heads + 7) / 8) + eight) * part_floats(a->dim);
}

/* attention_few.cu: one token and few. NOTHING: not of this shape, or the device has too little
 * shared memory; PARTS: of the splits, to be joined; ALL: out. */
enum few_done { NOTHING, PARTS, ALL };
few_done cu_attention_few(cu_stream s, const cu_attention_args *a, float *out, bool bf16);

#endif
