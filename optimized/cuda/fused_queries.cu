/* fused_queries.cu - queries in one launch: head_norm and rope of every head; rope, hadamard and
 * round_fp4 of the indexer's. The steps and their order are those operators': so are the bits. */
#include "queries.cuh"

enum { HEADS_A_BLOCK = 4, REHEARSED = 8 /* tokens, at most */ };

static __device__ __forceinline__ void query(const cu_queries_args &a, int64_t head, float *row,
                                             bool live)
{
    int lane = threadIdx.x % 32, d = a.dim;
    int64_t i = head / a.heads, at = i * (a.rope / 2);
    float *q = a.q + head * d;
    bool bf16 = a.numerics == DSV4_DEPLOYED;
    const float *cosine = a.cosine + at, *sine = a.sine + at;
    raw_query x = load_query(q, d, a.rope, cosine, sine, live);
    norm_query(&x, row, d, a.eps, bf16);
    turn_tail(row, d, a.rope, x.cosine, x.sine, cosine, sine, bf16, live);
#pragma unroll 4
    for (int k = lane; k < d && live; k += 32)
        q[k] = row[k];
}

static __device__ __forceinline__ void index_query(const cu_queries_args &a, int64_t head,
                                                   float *row, bool live)
{
    int lane = threadIdx.x % 32, d = a.index_dim;
    int64_t i = head / a.index_heads, angles = i * (a.rope / 2);
    float *q = a.index_q + head * d;
    bool bf16 = a.numerics == DSV4_DEPLOYED, turns = live && lane < a.rope / 2;
    const float *cosine = a.cosine + angles, *sine = a.sine + angles;
    float c = turns ? __ldcg(cosine + lane) : 1.0f, s = turns ? __ldcg(sine + lane) : 0.0f;
#pragma unroll 4
    for (int k = lane; k < d; k += 32)
        row[k] = live ? maybe_bf16(__ldcg(q + k), bf16) : 0.0f;
    __syncwarp();
    if (!MUTANT(62)) /* the indexer's queries not turned */
        turn_tail(row, d, a.rope, c, s, cosine, sine, bf16, live);
    if (a.numerics != DSV4_MATH) {
        float norm = (float)(1.0 / sqrt((double)d));
#pragma unroll 1
        for (int half = 1; half < d; half *= 2) {
            for (int k = lane; k < d / 2; k += 32) {
                int at = k / half * 2 * half + k % half;
                float low = row[at], high = row[at + half];
                row[at] = low + high;
                row[at + half] = low - high;
            }
            __syncwarp();
        }
#pragma unroll 1
        for (int k0 = 0; k0 < d; k0 += INDEX_BLOCK) { /* a block: a column of every lane */
            float v = k0 + lane < d ? maybe_bf16(row[k0 + lane] * norm, bf16) : 0.0f;
            float amax = warp_max(fabsf(v));
            if (k0 + lane < d)
                row[k0 + lane] = to_fp4(v, fp4_scale(amax));
        }
    }
#pragma unroll 4
    for (int k = lane; k < d && live; k += 32) /* its own columns */
        q[k] = row[k];
}

/* A warp a head: the queries of all tokens first, then the indexer's. */
static __global__ void __launch_bounds__(HEADS_A_BLOCK * 32)
    queries(const __grid_constant__ cu_queries_args a, cu_rounds rounds)
{
    __shared__ float memory[HEADS_A_BLOCK][QUERY_MOST];
    let_next_start();
    float *row = memory[threadIdx.x / 32];
    int64_t head = (int64_t)blockIdx.x * HEADS_A_BLOCK + threadIdx.x / 32;
    int64_t mine = a.n * a.heads;
#pragma unroll 1
    for (int round = rounds.first; round < rounds.end; round++) {
        bool live = round == 1;
        if (live)
            wait_for_previous();
        if (head < mine)
            query(a, head, row, live);
        else if (head < mine + a.n * a.index_heads)
            index_query(a, head - mine, row, live);
        __syncwarp();
    }
}

extern "C" bool cu_queries_take(int dim, int rope, int index_heads, int index_dim)
{
    bool power = index_heads == 0 || (index_dim & (index_dim - 1)) == 0;
    return dim <= QUERY_MOST && dim % 2 == 0 && rope % 2 == 0 && power &&
           (index_heads == 0 || (index_dim <= QUERY_MOST && index_dim >= 2));
}

extern "C" void cu_queries(cu_stream s, const cu_queries_args *a)
{
    int64_t heads = a->n * (a->heads + a->index_heads);
    if (heads > 0)
        LAUNCH("queries", heads * a->dim, queries, cu_blocks(heads, HEADS_A_BLOCK),
               HEADS_A_BLOCK * 32, 0, s, *a, rounds_of(a->n <= REHEARSED));
}
