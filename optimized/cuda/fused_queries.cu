/* fused_queries.cu - queries in one launch: head_norm and rope of every head; rope, hadamard and
 * round_fp4 of the indexer's. The steps and their order are those operators': so are the bits. */
#include "rows.cuh"

enum { LANES = 32, EACH = 16 /* columns of a lane, at most */, HEADS_A_BLOCK = 4 };

/* The last r columns turned; column 32 c + lane in v[c]. Pairs lie in neighbouring lanes. */
static __device__ __forceinline__ void turn_tail(float (&v)[EACH], int d, int r,
                                                 const float *cosine, const float *sine, bool bf16)
{
    int lane = threadIdx.x % LANES;
#pragma unroll
    for (int c = 0; c < EACH; c++) {
        if (c * LANES + LANES <= d - r || c * LANES >= d)
            continue;
        int k = c * LANES + lane, m = k - (d - r);
        float other = __shfl_xor_sync(0xffffffffu, v[c], 1);
        if (m < 0 || k >= d)
            continue;
        float cs = cosine[m / 2], sn = sine[m / 2];
        float2 turned = m % 2 == 0 ? rotate(v[c], other, cs, sn, bf16)
                                   : rotate(other, v[c], cs, sn, bf16);
        v[c] = m % 2 == 0 ? turned.x : turned.y;
    }
}

static __device__ __forceinline__ void query(const cu_queries_args &a, int64_t head)
{
    int lane = threadIdx.x % LANES, d = a.dim;
    int64_t i = head / a.heads;
    float *q = a.q + head * d, v[EACH], sum = 0, scale;
    bool bf16 = a.numerics == DSV4_DEPLOYED;
#pragma unroll
    for (int c = 0; c < EACH; c++)
        v[c] = c * LANES + lane < d ? q[c * LANES + lane] : 0.0f;
#pragma unroll
    for (int c = 0; c < EACH; c++)
        if (c * LANES + lane < d)
            sum += maybe_bf16(v[c] * v[c], bf16);
    sum = warp_sum(sum);
    scale = head_scale(sum, d, a.eps, bf16);
#pragma unroll
    for (int c = 0; c < EACH; c++)
        v[c] = maybe_bf16(v[c] * scale, bf16);
    turn_tail(v, d, a.rope, a.cosine + i * (a.rope / 2), a.sine + i * (a.rope / 2), bf16);
#pragma unroll
    for (int c = 0; c < EACH; c++)
        if (c * LANES + lane < d)
            q[c * LANES + lane] = v[c];
}

static __device__ __forceinline__ void index_query(const cu_queries_args &a, int64_t head)
{
    int lane = threadIdx.x % LANES, d = a.index_dim;
    int64_t i = head / a.index_heads;
    float *q = a.index_q + head * d, v[EACH];
    bool bf16 = a.numerics == DSV4_DEPLOYED;
#pragma unroll
    for (int c = 0; c < EACH; c++)
        v[c] = c * LANES + lane < d ? maybe_bf16(q[c * LANES + lane], bf16) : 0.0f;
    if (!MUTANT(62)) /* the indexer's queries not turned */
        turn_tail(v, d, a.rope, a.cosine + i * (a.rope / 2), a.sine + i * (a.rope / 2), bf16);
    if (a.numerics != DSV4_MATH) {
        float norm = (float)(1.0 / sqrt((double)d));
#pragma unroll
        for (int half = 1; half < LANES; half *= 2) {
            if (half >= d)
                break;
#pragma unroll
            for (int c = 0; c < EACH; c++) {
                if (c * LANES >= d)
                    break;
                float other = __shfl_xor_sync(0xffffffffu, v[c], half);
                v[c] = lane & half ? other - v[c] : v[c] + other;
            }
        }
#pragma unroll
        for (int half = 1; half < EACH; half *= 2) {
            if (half * LANES >= d)
                break;
#pragma unroll
            for (int c = 0; c < EACH; c++)
                if (!(c & half)) {
                    float low = v[c], high = v[c + half];
                    v[c] = low + high;
                    v[c + half] = low - high;
                }
        }
#pragma unroll
        for (int c = 0; c < EACH; c++) {
            if (c * LANES >= d)
                break;
            bool inside = c * LANES + lane < d;
            v[c] = inside ? maybe_bf16(v[c] * norm, bf16) : 0.0f;
            float amax = warp_max(fabsf(v[c])); /* a block of 32 columns: this c of every lane */
            if (inside)
                v[c] = to_fp4(v[c], fp4_scale(amax));
        }
    }
#pragma unroll
    for (int c = 0; c < EACH; c++)
        if (c * LANES + lane < d)
            q[c * LANES + lane] = v[c];
}

/* A warp a head: the queries of all tokens first, then the indexer's. */
static __global__ void __launch_bounds__(HEADS_A_BLOCK *LANES)
    queries(const __grid_constant__ cu_queries_args a)
{
    begin();
    int64_t head = (int64_t)blockIdx.x * HEADS_A_BLOCK + threadIdx.x / LANES;
    int64_t mine = a.n * a.heads;
    if (head < mine)
        query(a, head);
    else if (head < mine + a.n * a.index_heads)
        index_query(a, head - mine);
}

extern "C" bool cu_queries_take(int dim, int rope, int index_heads, int index_dim)
{
    bool power = index_heads == 0 || (index_dim & (index_dim - 1)) == 0;
    return dim <= LANES * EACH && dim % 2 == 0 && rope % 2 == 0 && power &&
           (index_heads == 0 || (index_dim <= LANES * EACH && index_dim >= 2));
}

extern "C" void cu_queries(cu_stream s, const cu_queries_args *a)
{
    int64_t heads = a->n * (a->heads + a->index_heads);
    if (heads > 0)
        LAUNCH("queries", heads * a->dim, queries, cu_blocks(heads, HEADS_A_BLOCK),
               HEADS_A_BLOCK * LANES, 0, s, *a);
}
