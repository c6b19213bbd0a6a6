/* attention_few.cu - the splits of one token and two: attention.cu's operations in its order, so
 * its bits, with less on the way. What a multiprocessor has of rows and q is asked for at once,
 * straight into registers, up to three tiles at a time. A row's first part stays there and is turned
 * (movmatrix), as values; the other parts, which bf16 rows do not have, go through shared memory.
 * The block meets twice for these tiles: a warp a head puts its scores together and works out its
 * weights. One token's splits, if they are eight, send each other what they have, and join. */
#include <cmath>

#include "attention.cuh"
#include "cluster.cuh"
#include "queries.cuh"

enum {
    /* Strides at which neither those who write meet in a bank nor those who read. */
    WEIGHTS = TILE + 8,
    TURNED = MOST_DIM + 16
};
static_assert((int)MOST_DIM <= (int)QUERY_MOST, "a warp turns a head");
static_assert((int)FEW_SPLITS == (int)WARPS,
              "a warp's columns are joined by the block of its number");

/* AT_ONCE: tiles at a time; KEPT: parts of a row that are turned in registers. */
template <int AT_ONCE> struct few_room {
    enum { KEPT = AT_ONCE == 1 ? 3 : 1, DOTS = AT_ONCE * TILE + 4, LEFT = KEPT < 3 ? 3 - KEPT : 1 };
    __align__(16) uint4 q[WARPS][STEPS][32]; /* first two parts, fragments in order of lane */
    uint2 q_third[WARPS][STEPS][32];
    uint16_t v[LEFT][WARPS][AT_ONCE][TILE][KEPT < 3 ? OWN : 1]; /* the rows' last parts */
    float part[WARPS][8][DOTS];                                 /* of the scores: [head][row] */
    uint16_t p[3][AT_ONCE][8][WEIGHTS];                         /* the weights' parts */
    float shrink[AT_ONCE][8]; /* of what was summed before a tile */
};

/* And of raw queries. */
template <int AT_ONCE> struct raw_room : few_room<AT_ONCE> {
    float turned[8][TURNED]; /* the heads, normalised and turned */
};

/* And of what all splits have of this block's columns. */
template <int AT_ONCE> struct joining_room : raw_room<AT_ONCE> {
    __align__(16) float4 values[FEW_SPLITS][STEPS][32]; /* fragments in order of lane */
    float sum[FEW_SPLITS][8], max[FEW_SPLITS][8];
    join_factors factors;
    uint64_t came; /* a barrier */
};

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

/* Over the eight lanes that hold a head's rows. */
__device__ __forceinline__ float over_eight(float v)
{
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    v += __shfl_xor_sync(0xffffffffu, v, 2);
    return v + __shfl_xor_sync(0xffffffffu, v, 4);
}

/* What a kernel is told: queries as they are multiplied; or raw ones, which every block turns, a
 * warp a head: while its rows are on their way, or, where rows wait for a list, before that. */
enum { READY, RAW, RAW_LISTED };

/* grid: splits, groups of 8 heads, tokens. JOINS: eight splits, which see each other's memory. */
template <int KIND, int AT_ONCE, bool JOINS>
static __global__ void __launch_bounds__(THREADS, 1)
    attention_few(const __grid_constant__ cu_attention_args a, float *out, float scale, bool bf16)
{
    let_next_start();
    extern __shared__ __align__(16) uint8_t memory[];
    few_room<AT_ONCE> *room = (few_room<AT_ONCE> *)(void *)memory;
    raw_room<AT_ONCE> *turned_room = (raw_room<AT_ONCE> *)(void *)memory;
    enum { KEPT = few_room<AT_ONCE>::KEPT, HALVES = (AT_ONCE + 1) / 2 };
    int64_t i = blockIdx.z;
    int head0 = 8 * (int)blockIdx.y, dim = a.dim, split = (int)blockIdx.x;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int active = (dim + OWN - 1) / OWN, c0 = OWN * warp;    /* warps that have columns */
    const float *heads = a.q + (i * a.heads + head0) * dim; /* of this block */
#if __CUDA_ARCH__ >= 900 && CAN_SEND
    joining_room<AT_ONCE> *joins = (joining_room<AT_ONCE> *)(void *)memory;
    if (JOINS && threadIdx.x == 0) {
        int ends = sizeof joins->sum + sizeof joins->max;
        expect(&joins->came, split < active ? ends + (int)sizeof joins->values : ends);
        barriers_set();
    }
    if (JOINS)
        arrive_together();
#endif
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
    float4 rows[AT_ONCE][STEPS][2];
    unsigned seen[2]; /* bits: rows of tiles 0 and 1, of tile 2 */
    auto ask = [&](int tile, int end) {
        if (other && tile < end) {
            said[0] = listed(&r, tile * TILE + lane);
            said[1] = listed(&r, (tile + 2) * TILE + at);
        }
        row[0] = lane / TILE < AT_ONCE && tile + lane / TILE < end
                     ? row_number(&a, &r, tile * TILE + lane, said[0])
                     : NULL;
        row[1] = AT_ONCE > 2 && tile + 2 < end ? row_number(&a, &r, (tile + 2) * TILE + at, said[1])
                                               : NULL;
        seen[0] = __ballot_sync(0xffffffffu, row[0] != NULL);
        seen[1] = __ballot_sync(0xffffffffu, row[1] != NULL) & 0xffffu;
#pragma unroll
        for (int m = 0; m < AT_ONCE; m++)
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
    auto turn_queries = [&] {
        const float *cosine = a.cosine + i * (a.rope / 2), *sine = a.sine + i * (a.rope / 2);
        float *to = turned_room->turned[warp];
        bool live = head0 + warp < a.heads;
        raw_query x = load_query(heads + warp * dim, dim, a.rope, cosine, sine, live);
        norm_query(&x, to, dim, a.eps, bf16);
        if (!MUTANT(52)) /* not turned */
            turn_tail(to, dim, a.rope, x.cosine, x.sine, cosine, sine, bf16, live);
        if (!MUTANT(51)) /* heads taken before every warp has turned its own */
            __syncthreads();
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            int c = c0 + 16 * k + 4 * t;
            const float4 *from = (const float4 *)(const void *)&turned_room->turned[g][c];
            q[k] = head0 + g < a.heads && c < dim ? *from : make_float4(0, 0, 0, 0);
        }
        keep_queries();
    };
    if (KIND == READY) {
        ask(begin, end);
        keep_queries();
    } else if (KIND == RAW)
        ask(begin, end);
    else
        turn_queries();

    float o[STEPS][1][4];
    float max_of, sum_of; /* of head `warp`; sum_of: of rows lane % 8 and + 8 */
    if (KIND != READY && !MUTANT(53)) /* queries or a list that are not there yet */
        wait_for_previous();
    if (KIND == RAW)
        turn_queries();
    if (KIND == RAW_LISTED)
        ask(begin, end);
#pragma unroll
    for (int k = 0; k < STEPS; k++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            o[k][0][e] = 0;
    max_of = -FLT_MAX;
    sum_of = 0;
#pragma unroll 1
    for (int tile = begin; tile < end; tile += AT_ONCE) {
        uint32_t f[AT_ONCE][STEPS][KEPT][4], low = 0;
        float size;
        unsigned plain = 0; /* bit m: tile m is */
        float dot[AT_ONCE][1][4] = {};
#pragma unroll
        for (int m = 0; m < AT_ONCE; m++) {
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
                for (int m = 0; m < AT_ONCE; m++) {
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
        for (int m = 0; m < AT_ONCE; m++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                room->part[warp][2 * t + e % 2][m * TILE + e / 2 * 8 + g] = dot[m][0][e];
        if (plain != 0 || q_plain) { /* some have no parts: from where they came */
            int columns = dim - c0 < OWN ? dim - c0 : OWN;
#pragma unroll 1
            for (int u = 0; u < AT_ONCE * 4; u++) {
                int m = u / 4, e = u % 4, h = 2 * t + e % 2;
                const float *y =
                    from_lane(m < 2 ? row[0] : row[1], m % 2 * TILE + e / 2 * 8 + g);
                float sum = 0;
                for (int c = c0; head0 + h < a.heads && y != NULL && c < c0 + columns; c++)
                    sum = fmaf(KIND != READY ? turned_room->turned[h][c]
                                             : __ldcg(heads + h * dim + c),
                               __ldcg(y + c), sum);
                if ((plain >> m & 1u) != 0 || q_plain)
                    room->part[warp][h][m * TILE + e / 2 * 8 + g] = sum;
            }
        }
        if (!MUTANT(42)) /* scores added up before every warp has its share */
            __syncthreads();
        {
            /* Of head `warp`: row `lane` (tiles 0, 1) and row 32 + lane % 16 (tile 2). */
            float x[HALVES] = {}, v[WARPS][HALVES], most[HALVES];
            float top[AT_ONCE + 1] = {max_of}, factor[AT_ONCE], weight[HALVES], added[HALVES];
            int mine = AT_ONCE > 1 ? lane : at;
#pragma unroll
            for (int w = 0; w < WARPS; w++)
#pragma unroll
                for (int e = 0; e < HALVES; e++)
                    v[w][e] = w < active ? room->part[w][warp][e == 0 ? mine : 32 + at] : 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++)
#pragma unroll
                for (int e = 0; e < HALVES; e++)
                    x[e] += v[w][e];
            auto in = [&](int e) { return (seen[e] >> (e == 0 ? mine : at) & 1u) != 0; };
#pragma unroll
            for (int e = 0; e < HALVES; e++) {
                x[e] *= scale;
                most[e] = in(e) ? x[e] : -FLT_MAX;
#pragma unroll
                for (int d = 1; d < TILE; d *= 2)
                    most[e] = fmaxf(most[e], __shfl_xor_sync(0xffffffffu, most[e], d));
            }
#pragma unroll
            for (int m = 0; m < AT_ONCE; m++) {
                float other =
                    m < 2 ? __shfl_sync(0xffffffffu, most[0], m * TILE) : most[HALVES - 1];
                top[m + 1] = fmaxf(top[m], other);
                factor[m] = expf(top[m] - top[m + 1]);
                if (MUTANT(21)) /* the running sum is not rescaled */
                    factor[m] = 1.0f;
            }
#pragma unroll
            for (int e = 0; e < HALVES; e++) {
                float highest = e == 0 && (AT_ONCE < 2 || lane < TILE) ? top[1]
                                : e == 0                               ? top[2 % (AT_ONCE + 1)]
                                                                       : top[AT_ONCE];
                weight[e] = in(e) ? expf(x[e] - highest) : 0.0f;
            }
            if (MUTANT(45) && warp == 5)
                __nanosleep(50000);
#pragma unroll
            for (int e = 0; e < HALVES; e++) {
                added[e] = weight[e] + __shfl_xor_sync(0xffffffffu, weight[e], 8);
                uint32_t p[3];
                split_two(weight[e], 0.0f, &p[0], &p[1], &p[2]);
#pragma unroll
                for (int n = 0; n < 3; n++)
                    if ((e == 0 && AT_ONCE > 1) || lane < TILE)
                        room->p[n][e == 0 ? lane / TILE : 2 % AT_ONCE][warp][at] =
                            (uint16_t)p[n];
            }
#pragma unroll
            for (int m = 0; m < AT_ONCE; m++)
                sum_of = fmaf(sum_of, factor[m],
                              m < 2 ? __shfl_sync(0xffffffffu, added[0], m * TILE + lane % 8)
                                    : added[HALVES - 1]);
            max_of = top[AT_ONCE];
            if (lane == 0)
#pragma unroll
                for (int m = 0; m < AT_ONCE; m++)
                    room->shrink[m][warp] = factor[m];
        }
        if (!MUTANT(45)) /* weights of other heads taken before they are there: a late warp */
            __syncthreads();
        b_parts b[AT_ONCE]; /* the weights */
        float factor[AT_ONCE][2];
#pragma unroll
        for (int m = 0; m < AT_ONCE; m++) {
            const uint32_t *p = (const uint32_t *)(const void *)&room->p[0][m][g][2 * t];
            enum { PART = AT_ONCE * 8 * WEIGHTS / 2 };
            b[m].two = make_uint4(p[0], p[4], p[PART], p[PART + 4]);
            b[m].third = make_uint2(p[2 * PART], p[2 * PART + 4]);
            float2 f = *(const float2 *)(const void *)&room->shrink[m][2 * t];
            factor[m][0] = f.x;
            factor[m][1] = f.y;
        }
        auto values = [&](auto A, auto) {
            constexpr bool AS = decltype(A)::value;
#pragma unroll
            for (int m = 0; m < AT_ONCE; m++)
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
            for (int m = 0; m < AT_ONCE; m++) {
                const float *there = m < 2 ? row[0] : row[1];
                const b_parts w = m == 0 ? b[0] : m == 1 ? b[1 % AT_ONCE] : b[AT_ONCE - 1];
                float shrink[2];
#pragma unroll
                for (int e = 0; e < 2; e++)
                    shrink[e] = m == 0   ? factor[0][e]
                                : m == 1 ? factor[1 % AT_ONCE][e]
                                         : factor[AT_ONCE - 1][e];
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
        if (tile + AT_ONCE < end)
            ask(tile + AT_ONCE, end);
    }
#if __CUDA_ARCH__ >= 900 && CAN_SEND
    if (JOINS) { /* a warp's columns by the block of its number */
        int c = OWN * split + 16 * (warp % STEPS) + column_of(g);
        int s = lane % MOST_SPLITS, h = (int)threadIdx.x / MOST_SPLITS % 8;
        bool joining = warp < STEPS && split < active;
        float4 angles = angles_of<2>(&a, i, c, joining);
        float sink = head0 + h < a.heads ? __ldg(a.sink + head0 + h) : 0.0f;
        wait_together(); /* all blocks run */
#pragma unroll
        for (int k = 0; k < STEPS; k++)
            if (warp < active)
                send_four((float *)&joins->values[split][k][lane], &joins->came, warp,
                          make_float4(o[k][0][0], o[k][0][1], o[k][0][2], o[k][0][3]));
        sum_of = over_eight(sum_of);
        if (lane < FEW_SPLITS) {
            send(&joins->sum[split][warp], &joins->came, lane, sum_of);
            send(&joins->max[split][warp], &joins->came, lane, max_of);
        }
        if (!MUTANT(56)) /* joined before all splits have come */
            await(&joins->came);
        bool there = s < FEW_SPLITS;
        if (warp < STEPS)
            find_factors(&joins->factors, s, h,
                         there ? joins->max[s % FEW_SPLITS][h] : -FLT_MAX,
                         there ? joins->sum[s % FEW_SPLITS][h] : 0.0f, sink);
        __syncthreads();
        float4 v[FEW_SPLITS];
#pragma unroll
        for (int n = 0; n < FEW_SPLITS; n++)
            v[n] = joins->values[n][warp % STEPS][lane];
        if (joining)
            join_values<FEW_SPLITS, 2>(&a, &joins->factors, v, i, head0, c, angles, out, bf16,
                                       true);
        if (MUTANT(56))
            await(&joins->came);
    }
#endif

    if (JOINS)
        return;
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
    sum_of = over_eight(sum_of);
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
    return takes(n, dim, sizeof(raw_room<WAVE>)) && dim <= MOST_DIM && rope % 2 == 0 && rope <= dim;
}

template <int KIND, int AT_ONCE, bool JOINS>
static bool launch(cu_stream s, const cu_attention_args *a, float *out, bool bf16)
{
    static int fits = -1; /* clusters, if it joins */
    void (*kernel)(cu_attention_args, float *, float, bool) =
        attention_few<KIND, AT_ONCE, JOINS>;
    enum { TOGETHER = JOINS ? (int)FEW_SPLITS : 1 };
    size_t shared = JOINS           ? sizeof(joining_room<AT_ONCE>)
                    : KIND == READY ? sizeof(few_room<AT_ONCE>)
                                    : sizeof(raw_room<AT_ONCE>);
    if (cu_most_shared() < shared)
        return false;
    dim3 grid(JOINS ? (unsigned)FEW_SPLITS : (unsigned)a->splits, cu_blocks(a->heads, 8),
              (unsigned)a->n);
    if (fits < 0) {
        fits = JOINS ? clusters_that_fit((const void *)kernel, TOGETHER, THREADS, shared) : 0;
        if (!JOINS)
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    }
    if (JOINS && fits <= 0)
        return false;
    LAUNCH_CLUSTERS("attention", a->n * a->heads * a->dim, kernel, grid, THREADS, shared, s,
                    TOGETHER, *a, out, (float)(1.0 / sqrt((double)a->dim)), bf16);
    return true;
}

/* One token whose splits are a wave at most, and no more than blocks that see each other. */
static bool joins(cu_stream s, const cu_attention_args *a, float *out, bool bf16)
{
    int64_t tiles = (a->window_size + (a->ratio > 0 ? a->most_rows : 0) + TILE - 1) / TILE;
    int64_t each = (tiles + a->splits - 1) / a->splits;
    if (a->n > 1 || a->splits > FEW_SPLITS)
        return false;
    return each <= 1   ? launch<RAW, 1, true>(s, a, out, bf16)
           : each <= 2 ? launch<RAW, 2, true>(s, a, out, bf16)
                       : launch<RAW, WAVE, true>(s, a, out, bf16);
}

few_done cu_attention_few(cu_stream s, const cu_attention_args *a, float *out, bool bf16)
{
    if (!takes(a->n, a->dim, sizeof(few_room<WAVE>)))
        return NOTHING;
    bool lists = a->ratio > 0 && a->topk != NULL;
    if (a->raw && !lists && joins(s, a, out, bf16))
        return ALL;
    bool done = !a->raw ? launch<READY, WAVE, false>(s, a, NULL, bf16)
                : lists ? launch<RAW_LISTED, WAVE, false>(s, a, NULL, bf16)
                        : launch<RAW, WAVE, false>(s, a, NULL, bf16);
    return done ? PARTS : NOTHING;
}
