/* attention_few.cu - the splits of one token and two: attention.cu's operations in its order, so
 * its bits, with less on the way. What a multiprocessor has of rows and q is asked for at once,
 * straight into registers, three tiles at a time. A row's first part stays there and is turned
 * (movmatrix), as values; the other parts, which bf16 rows do not have, go through shared memory.
 * The block meets twice for the three tiles: a warp a head puts its scores together and works out
 * its weights. */
#include <cmath>

#include "attention.cuh"
#include "queries.cuh"

enum {
    WAVE = 3,           /* tiles at a time */
    ROWS = WAVE * TILE, /* of theirs */
    KEPT = 1,           /* parts of a row that are turned in registers */
    /* Strides at which neither those who write meet in a bank nor those who read. */
    DOTS = ROWS + 4,
    WEIGHTS = TILE + 8,
    TURNED = MOST_DIM + 16
};
static_assert((int)MOST_DIM <= (int)QUERY_MOST, "a warp turns a head");

typedef struct {
    __align__(16) uint4 q[WARPS][STEPS][32]; /* first two parts, fragments in order of lane */
    uint2 q_third[WARPS][STEPS][32];
    uint16_t v[3 - KEPT][WARPS][WAVE][TILE][OWN]; /* the rows' last parts */
    float part[WARPS][8][DOTS];                   /* of the scores: [head][row] */
    uint16_t p[3][WAVE][8][WEIGHTS];              /* the weights' parts */
    float shrink[WAVE][8];                        /* of what was summed before a tile */
} few_room;

/* And of raw queries. */
typedef struct {
    few_room room;
    float q[8][TURNED]; /* the heads, normalised and turned */
} raw_room;

/* Which of a step's columns a lane has as values once they are turned, and the second one further
 * on: lane t brought four columns of a row, two of which were turned together. */
__device__ __forceinline__ int column_of(int g)
{
    return g / 2 * 4 + g % 2;
}

/* The parts of a step of rows as values: columns column_of(g) and + 2, rows 2 t .., 2 t + 8 .. */
template <int PARTS> __device__ __forceinline__ void turn_parts(uint32_t f[3][4])
{
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        uint32_t x = turned(f[p][2]);
        f[p][0] = turned(f[p][0]);
        f[p][2] = turned(f[p][1]);
        f[p][1] = x;
        f[p][3] = turned(f[p][3]);
    }
}

/* What a kernel is told: queries as they are multiplied; or raw ones, which every block turns, a
 * warp a head: while its rows are on their way, or, where rows wait for a list, before that. */
enum { READY, RAW, RAW_LISTED };

/* grid: splits, groups of 8 heads, tokens. rounds: of what raw queries have to wait for. */
template <int KIND>
static __global__ void __launch_bounds__(THREADS, 1)
    attention_few(const __grid_constant__ cu_attention_args a, float scale, bool bf16,
                  cu_rounds rounds)
{
    let_next_start();
    extern __shared__ __align__(16) uint8_t memory[];
    few_room *room = (few_room *)(void *)memory;
    raw_room *turned_room = (raw_room *)(void *)memory;
    int64_t i = blockIdx.z;
    int head0 = 8 * (int)blockIdx.y, dim = a.dim, split = (int)blockIdx.x;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int active = (dim + OWN - 1) / OWN, c0 = OWN * warp;    /* warps that have columns */
    const float *heads = a.q + (i * a.heads + head0) * dim; /* of this block */
    if (KIND == READY || !a.settled)
        wait_for_previous();

    /* Of ready queries, the list is asked for together with the position: as of a window that is
     * full. */
    int64_t pos0 = __ldcg((const long long *)a.pos0);
    int at = lane % TILE, said[2];
    float4 q[STEPS];
    row_range r = {0, a.window_size, 0, a.window_size, NULL};
    if (KIND == READY && a.ratio > 0 && a.topk != NULL) {
        r.list = a.topk + i * a.k;
        r.total += a.k;
    }
    int expected = r.total, tiles = (r.total + TILE - 1) / TILE;
    int each = (tiles + a.splits - 1) / a.splits, begin = split * each;
    if (KIND == READY) {
        said[0] = listed(&r, begin * TILE + lane);
        said[1] = listed(&r, begin * TILE + 32 + at);
#pragma unroll
        for (int k = 0; k < STEPS; k++)
            q[k] = load_there(heads + g * dim + c0 + 16 * k + 4 * t,
                              head0 + g < a.heads && c0 + 16 * k + 4 * t < dim);
    }
    r = range_of(&a, pos0, i);
    bool other =
        KIND != READY || r.list == NULL || r.total != expected || r.window != a.window_size;
    tiles = (r.total + TILE - 1) / TILE;
    each = (tiles + a.splits - 1) / a.splits;
    begin = split * each;
    int end = begin + each < tiles ? begin + each : tiles;

    const float *row[2]; /* of tiles 0 and 1, by lane, and of tile 2 */
    float4 rows[WAVE][STEPS][2];
    unsigned seen[2]; /* bits: rows of tiles 0 and 1, of tile 2 */
    auto ask = [&](int tile, int end) {
        if (other && tile < end) {
            said[0] = listed(&r, tile * TILE + lane);
            said[1] = listed(&r, (tile + 2) * TILE + at);
        }
        row[0] = tile + lane / TILE < end ? row_number(&a, &r, tile * TILE + lane, said[0]) : NULL;
        row[1] = tile + 2 < end ? row_number(&a, &r, (tile + 2) * TILE + at, said[1]) : NULL;
        seen[0] = __ballot_sync(0xffffffffu, row[0] != NULL);
        seen[1] = __ballot_sync(0xffffffffu, row[1] != NULL) & 0xffffu;
#pragma unroll
        for (int m = 0; m < WAVE; m++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const float *from = from_lane(row[m / 2], m % 2 * TILE + 8 * e + g);
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    int c = c0 + 16 * k + 4 * t;
                    rows[m][k][e] = load_there(from + c, from != NULL && c < dim);
                }
            }
        other = true; /* the next ones were not asked for ahead */
    };
    bool q_three, q_plain;
    auto keep_queries = [&] {
        uint32_t below = 0;
        float size = 0;
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            four_parts f = split_four(q[k]);
            size += size_of_four(q[k]);
            below |= bits_below(q[k]);
            room->q[warp][k][lane] = make_uint4(f.p[0][0], f.p[0][1], f.p[1][0], f.p[1][1]);
            room->q_third[warp][k][lane] = make_uint2(f.p[2][0], f.p[2][1]);
        }
        q_three = __any_sync(0xffffffffu, below != 0);
        q_plain = __any_sync(0xffffffffu, !has_parts(size));
    };
    auto turn_queries = [&](bool live) {
        const float *cosine = a.cosine + i * (a.rope / 2), *sine = a.sine + i * (a.rope / 2);
        float *to = turned_room->q[warp];
        live = live && head0 + warp < a.heads;
        raw_query x = load_query(heads + warp * dim, dim, a.rope, cosine, sine, live);
        norm_query(&x, to, dim, a.eps, bf16);
        if (!MUTANT(52)) /* not turned */
            turn_tail(to, dim, a.rope, x.cosine, x.sine, cosine, sine, bf16, live);
        if (!MUTANT(51)) /* heads taken before every warp has turned its own */
            __syncthreads();
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            int c = c0 + 16 * k + 4 * t;
            const float4 *from = (const float4 *)(const void *)&turned_room->q[g][c];
            q[k] = head0 + g < a.heads && c < dim ? *from : make_float4(0, 0, 0, 0);
        }
        keep_queries();
    };
    if (KIND == READY) {
        ask(begin, end);
        keep_queries();
    } else if (KIND == RAW) {
        ask(begin, end);
#pragma unroll 1
        for (int round = rounds.first; round < rounds.end; round++) {
            if (round == 1 && !MUTANT(53)) /* queries that are not there yet */
                wait_for_previous();
            turn_queries(round == 1);
            if (round != 1)
                __syncthreads(); /* the heads are used up */
        }
    } else
        turn_queries(true);

    float o[STEPS][1][4];
    float max_of, sum_of; /* of head `warp`; sum_of: of rows lane % 8 and + 8 */
#pragma unroll 1
    for (int round = KIND == RAW_LISTED ? rounds.first : 1; round < 2; round++) {
        bool live = KIND != RAW_LISTED || round == 1;
        int last = live ? end : begin + 1;
        if (KIND == RAW_LISTED) {
            if (live && !MUTANT(53)) /* a list that is not there yet */
                wait_for_previous();
            ask(begin, live ? end : begin);
        }
#pragma unroll
        for (int k = 0; k < STEPS; k++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                o[k][0][e] = 0;
        max_of = -FLT_MAX;
        sum_of = 0;
#pragma unroll 1
        for (int tile = begin; tile < last; tile += WAVE) {
            uint32_t f[WAVE][STEPS][KEPT][4], low = live || a.bf16_rows ? 0u : 1u;
            float size;
            unsigned plain = 0; /* bit m: tile m is */
            float dot[WAVE][1][4] = {};
#pragma unroll
            for (int m = 0; m < WAVE; m++) {
                size = 0;
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    size += size_of_four(rows[m][k][0]) + size_of_four(rows[m][k][1]);
                    low |= bits_below(rows[m][k][0]) | bits_below(rows[m][k][1]);
                }
                plain |= __any_sync(0xffffffffu, !has_parts(size)) ? 1u << m : 0u;
            }
            bool three = __any_sync(0xffffffffu, low != 0);
            auto multiply = [&](auto A, auto B) {
                constexpr bool AS = decltype(A)::value, BS = decltype(B)::value;
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    b_parts b;
                    b.two = room->q[warp][k][lane];
                    b.third = BS ? room->q_third[warp][k][lane] : make_uint2(0, 0);
#pragma unroll
                    for (int m = 0; m < WAVE; m++) {
                        uint32_t x[3][4];
                        split_rows<AS>(rows[m][k][0], rows[m][k][1], x);
                        mma_parts<1>(&dot[m][0], x, &b, AS, BS);
                        turn_parts<AS ? KEPT : 1>(x);
#pragma unroll
                        for (int p = 0; p < KEPT; p++)
#pragma unroll
                            for (int e = 0; e < 4; e++)
                                f[m][k][p][e] = x[AS ? p : 0][e];
#pragma unroll
                        for (int p = KEPT; AS && p < 3; p++) {
                            uint16_t *to = room->v[p - KEPT][warp][m][g];
                            uint16_t *low_half = to + place_of(g, 16 * k + 2 * t);
                            uint16_t *high_half = to + place_of(g, 16 * k + 8 + 2 * t);
                            *(uint32_t *)(void *)low_half = x[p][0];
                            *(uint32_t *)(void *)(low_half + 8 * OWN) = x[p][1];
                            *(uint32_t *)(void *)high_half = x[p][2];
                            *(uint32_t *)(void *)(high_half + 8 * OWN) = x[p][3];
                        }
                    }
                }
            };
            by_parts(three, q_three, multiply);
#pragma unroll
            for (int m = 0; m < WAVE; m++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    room->part[warp][2 * t + e % 2][m * TILE + e / 2 * 8 + g] = dot[m][0][e];
            if (plain != 0 || q_plain) { /* some have no parts: from where they came */
                int columns = dim - c0 < OWN ? dim - c0 : OWN;
#pragma unroll 1
                for (int u = 0; u < WAVE * 4; u++) {
                    int m = u / 4, e = u % 4, h = 2 * t + e % 2;
                    const float *y =
                        from_lane(m < 2 ? row[0] : row[1], m % 2 * TILE + e / 2 * 8 + g);
                    float sum = 0;
                    for (int c = c0; head0 + h < a.heads && y != NULL && c < c0 + columns; c++)
                        sum =
                            fmaf(KIND != READY ? turned_room->q[h][c] : __ldcg(heads + h * dim + c),
                                 __ldcg(y + c), sum);
                    if ((plain >> m & 1u) != 0 || q_plain)
                        room->part[warp][h][m * TILE + e / 2 * 8 + g] = sum;
                }
            }
            if (!MUTANT(42)) /* scores added up before every warp has its share */
                __syncthreads();
            {
                /* Of head `warp`: row `lane` (tiles 0, 1) and row 32 + lane % 16 (tile 2). */
                float x[2] = {}, v[WARPS][2], most[2], top[WAVE + 1] = {max_of}, factor[WAVE];
#pragma unroll
                for (int w = 0; w < WARPS; w++) {
                    v[w][0] = w < active ? room->part[w][warp][lane] : 0.0f;
                    v[w][1] = w < active ? room->part[w][warp][32 + at] : 0.0f;
                }
#pragma unroll
                for (int w = 0; w < WARPS; w++) {
                    x[0] += v[w][0];
                    x[1] += v[w][1];
                }
                bool in[2] = {(seen[0] >> lane & 1u) != 0, (seen[1] >> at & 1u) != 0};
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    x[e] *= scale;
                    most[e] = in[e] ? x[e] : -FLT_MAX;
#pragma unroll
                    for (int d = 1; d < TILE; d *= 2)
                        most[e] = fmaxf(most[e], __shfl_xor_sync(0xffffffffu, most[e], d));
                }
                top[1] = fmaxf(top[0], __shfl_sync(0xffffffffu, most[0], 0));
                top[2] = fmaxf(top[1], __shfl_sync(0xffffffffu, most[0], TILE));
                top[3] = fmaxf(top[2], most[1]);
#pragma unroll
                for (int m = 0; m < WAVE; m++) {
                    factor[m] = expf(top[m] - top[m + 1]);
                    if (MUTANT(21)) /* the running sum is not rescaled */
                        factor[m] = 1.0f;
                }
                float weight[2] = {in[0] ? expf(x[0] - (lane < TILE ? top[1] : top[2])) : 0.0f,
                                   in[1] ? expf(x[1] - top[3]) : 0.0f};
                if (MUTANT(45) && warp == 5)
                    __nanosleep(50000);
                float added[2];
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    added[e] = weight[e] + __shfl_xor_sync(0xffffffffu, weight[e], 8);
                    uint32_t p[3];
                    split_two(weight[e], 0.0f, &p[0], &p[1], &p[2]);
#pragma unroll
                    for (int n = 0; n < 3; n++)
                        if (e == 0 || lane < TILE)
                            room->p[n][e == 0 ? lane / TILE : 2][warp][at] = (uint16_t)p[n];
                }
                sum_of = fmaf(sum_of, factor[0], __shfl_sync(0xffffffffu, added[0], lane % 8));
                sum_of =
                    fmaf(sum_of, factor[1], __shfl_sync(0xffffffffu, added[0], TILE + lane % 8));
                sum_of = fmaf(sum_of, factor[2], added[1]);
                max_of = top[3];
                if (lane == 0)
#pragma unroll
                    for (int m = 0; m < WAVE; m++)
                        room->shrink[m][warp] = factor[m];
            }
            if (!MUTANT(45)) /* weights of other heads taken before they are there: a late warp */
                __syncthreads();
            b_parts b[WAVE]; /* the weights */
            float factor[WAVE][2];
#pragma unroll
            for (int m = 0; m < WAVE; m++) {
                const uint32_t *p = (const uint32_t *)(const void *)&room->p[0][m][g][2 * t];
                enum { PART = WAVE * 8 * WEIGHTS / 2 };
                b[m].two = make_uint4(p[0], p[4], p[PART], p[PART + 4]);
                b[m].third = make_uint2(p[2 * PART], p[2 * PART + 4]);
                float2 f = *(const float2 *)(const void *)&room->shrink[m][2 * t];
                factor[m][0] = f.x;
                factor[m][1] = f.y;
            }
            auto values = [&](auto A, auto) {
                constexpr bool AS = decltype(A)::value;
#pragma unroll
                for (int m = 0; m < WAVE; m++)
#pragma unroll
                    for (int k = 0; k < STEPS; k++) {
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            o[k][0][e] *= factor[m][e % 2];
                        uint32_t x[3][4];
                        int line = lane % 8 + lane / 16 * 8;
#pragma unroll
                        for (int p = 0; p < (AS ? 3 : 1); p++) {
                            if (p >= KEPT)
                                load_turned(x[p], room->v[p - KEPT][warp][m][line] +
                                                      place_of(line, 16 * k + lane / 8 % 2 * 8));
#pragma unroll
                            for (int e = 0; p < KEPT && e < 4; e++)
                                x[p][e] = f[m][k][p][e];
                        }
                        mma_parts<1>(o[k], x, &b[m], AS, true);
                    }
            };
            if (plain == 0)
                by_parts(three, true, values);
            else /* some have no parts: tile by tile, fetched again */
#pragma unroll 1
                for (int m = 0; m < WAVE; m++) {
                    const float *there = m < 2 ? row[0] : row[1];
                    const b_parts w = m == 0 ? b[0] : m == 1 ? b[1] : b[2];
                    float shrink[2];
#pragma unroll
                    for (int e = 0; e < 2; e++)
                        shrink[e] = m == 0 ? factor[0][e] : m == 1 ? factor[1][e] : factor[2][e];
#pragma unroll
                    for (int k = 0; k < STEPS; k++)
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            o[k][0][e] *= shrink[e % 2];
                    if ((plain >> m & 1u) == 0) {
                        const float *from = from_lane(there, m % 2 * TILE + g);
                        const float *from8 = from_lane(there, m % 2 * TILE + 8 + g);
#pragma unroll
                        for (int k = 0; k < STEPS; k++) {
                            int c = c0 + 16 * k + 4 * t;
                            uint32_t x[3][4];
                            split_rows<true>(load_there(from + c, from != NULL && c < dim),
                                             load_there(from8 + c, from8 != NULL && c < dim), x);
                            turn_parts<3>(x);
                            mma_parts<1>(o[k], x, &w, true, true);
                        }
                        continue;
                    }
                    for (int n = 0; n < TILE; n++) {
                        const float *y = from_lane(there, m % 2 * TILE + n);
                        if (y == NULL)
                            continue;
                        float weight[2]; /* of heads 2 t, 2 t + 1 */
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            int from = 4 * (2 * t + e) + n % 8 / 2;
                            uint32_t x0 = __shfl_sync(0xffffffffu, n < 8 ? w.two.x : w.two.y, from);
                            uint32_t x1 = __shfl_sync(0xffffffffu, n < 8 ? w.two.z : w.two.w, from);
                            uint32_t x2 =
                                __shfl_sync(0xffffffffu, n < 8 ? w.third.x : w.third.y, from);
                            weight[e] = n % 2 == 0 ? (low_of(x2) + low_of(x1)) + low_of(x0)
                                                   : (high_of(x2) + high_of(x1)) + high_of(x0);
                        }
#pragma unroll
                        for (int k = 0; k < STEPS; k++)
#pragma unroll
                            for (int e = 0; e < 4; e++) {
                                int c = c0 + 16 * k + column_of(g) + e / 2 * 2;
                                if (c0 + 16 * k < dim)
                                    o[k][0][e] = fmaf(weight[e % 2], c < dim ? __ldcg(y + c) : 0.0f,
                                                      o[k][0][e]);
                            }
                    }
                }
            __syncwarp(); /* the last parts are used up */
            if (tile + WAVE < last)
                ask(tile + WAVE, end);
        }
    }

    float *to = part_at(&a, i, split, head0 / 8), *ends = to + (int64_t)active * OWN * 8;
    if (warp < active)
#pragma unroll
        for (int k = 0; k < STEPS; k++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int c = column_of(g) + 2 * e, place = (warp * STEPS + k) * 32 + c % 8 * 4 + t;
                ((float2 *)(void *)to)[2 * place + c / 8] =
                    make_float2(o[k][0][2 * e], o[k][0][2 * e + 1]);
            }
    sum_of += __shfl_xor_sync(0xffffffffu, sum_of, 1);
    sum_of += __shfl_xor_sync(0xffffffffu, sum_of, 2);
    sum_of += __shfl_xor_sync(0xffffffffu, sum_of, 4);
    if (lane == 0) {
        ends[warp] = sum_of;
        ends[8 + warp] = max_of;
    }
}

enum { FEW = 2 }; /* tokens */

static bool takes(int64_t n, int dim, size_t shared)
{
    return n <= FEW && dim % 4 == 0 && dim > NARROWEST && cu_most_shared() >= shared;
}

extern "C" bool cu_attention_takes_raw(int64_t n, int dim, int rope)
{
    return takes(n, dim, sizeof(raw_room)) && dim <= MOST_DIM && rope % 2 == 0 && rope <= dim;
}

template <int KIND>
static void launch(cu_stream s, const cu_attention_args *a, size_t shared, bool bf16)
{
    static bool raised;
    void (*kernel)(cu_attention_args, float, bool, cu_rounds) = attention_few<KIND>;
    if (!raised)
        raised = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)shared) == cudaSuccess;
    dim3 grid((unsigned)a->splits, cu_blocks(a->heads, 8), (unsigned)a->n);
    LAUNCH("attention", a->n * a->heads * a->dim, kernel, grid, THREADS, shared, s, *a,
           (float)(1.0 / sqrt((double)a->dim)), bf16, rounds_of(a->settled));
}

bool cu_attention_few(cu_stream s, const cu_attention_args *a, bool bf16)
{
    if (!takes(a->n, a->dim, sizeof(few_room)))
        return false;
    if (!a->raw)
        launch<READY>(s, a, sizeof(few_room), bf16);
    else if (a->ratio > 0 && a->topk != NULL)
        launch<RAW_LISTED>(s, a, sizeof(raw_room), bf16);
    else
        launch<RAW>(s, a, sizeof(raw_room), bf16);
    return true;
}
