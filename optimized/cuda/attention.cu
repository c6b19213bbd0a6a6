/* attention.cu - one softmax over window rows and compressed rows with a sink; K and V are the
 * same row, shared by all heads.
 *
 * The rows of a token are cut into splits, a split into tiles of 16 rows with an online softmax,
 * and the splits are joined one after the other. Few tokens: a block takes one split of 8 or 32
 * heads and a second kernel joins; many: a block takes all splits and joins as it goes, with the
 * same operations in the same order, so that the sums are the same however a text is cut.
 *
 * A warp owns 64 of the columns, as K and as V: it fetches, splits (parts.cuh) and multiplies them.
 * The block meets once a tile, to add up the scores: every warp then works out all the weights,
 * which is shorter than to wait for one that does. */
#include <cmath>

#include "attention.cuh"

enum {
    NARROW = 1, /* tiles of 8 heads a block: one token */
    WIDE = 4,   /* more */
    WIDE_FROM = 3,
    AT_ONCE = 32, /* more tokens are joined as they go */
    P_STRIDE = TILE + 8,
    REHEARSED = 4 /* tokens, at most, whose join starts long before its inputs are there */
};

/* Heads of a block: 8 TILES; AHEAD: tiles of rows on their way; TIGHT: rows and their parts share
 * their place, and the next rows are asked for when these are used up. */
template <int TILES, int AHEAD, bool TIGHT> struct attention_room {
    uint4 q[WARPS][TILES][STEPS][32]; /* first two parts, fragments in order of lane */
    uint2 q_third[WARPS][TILES][STEPS][32];
    float4 raw[TIGHT ? 1 : AHEAD][TIGHT ? 1 : WARPS][STEPS][2][32]; /* rows as they come, each lane
                                                                     * its own */
    __align__(16) uint16_t v[WARPS][3][TILE][OWN];                  /* their parts */
    float4 part[2][WARPS][TILES][32]; /* of the scores: fragments, of a tile and the next */
    /* What is handed round: parts of the weights, [head][row], and factors of the heads: of what
     * was summed up to now, of a join (so far, this split), and at the end. */
    uint16_t p[3][TILES][8][P_STRIDE];
    float shrink[8 * TILES], first[8 * TILES], second[8 * TILES], last[8 * TILES], total[8 * TILES];
    __device__ __forceinline__ float4 (*rows(int stage, int warp))[2][32]
    {
        return TIGHT ? (float4(*)[2][32])(void *)&v[warp][0][0][0] : raw[stage][warp];
    }
};

/* What the warps have of the products of a tile's rows g (x, y) and g + 8 (z, w) with heads 2 t (x,
 * z) and 2 t + 1 (y, w) of heads 8 n .., added up; HEADS 1: only the one of number `only`, in x and
 * z. */
template <int HEADS, int TILES>
__device__ __forceinline__ float4 dots_of(const float4 part[WARPS][TILES][32], int n, int only,
                                          int active)
{
    int lane = threadIdx.x % 32;
    float4 v[WARPS];
    float s[4] = {};
#pragma unroll
    for (int w = 0; w < WARPS; w++)
        v[w] = w < active ? part[w][n][lane] : make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        if (HEADS == 2) {
            s[0] += v[w].x;
            s[1] += v[w].y;
            s[2] += v[w].z;
            s[3] += v[w].w;
        } else {
            s[0] += only ? v[w].y : v[w].x;
            s[2] += only ? v[w].w : v[w].z;
        }
    }
    return make_float4(s[0], s[1], s[2], s[3]);
}

/* grid: splits or 1 (whole: all of them, out is written), heads, tokens */
template <int TILES, int AHEAD, bool TIGHT>
static __global__ void __launch_bounds__(THREADS, 1)
    attention(const __grid_constant__ cu_attention_args a, float scale, bool whole, float *out,
              bool bf16)
{
    begin();
    extern __shared__ __align__(16) uint8_t memory[];
    attention_room<TILES, AHEAD, TIGHT> *room =
        (attention_room<TILES, AHEAD, TIGHT> *)(void *)memory;
    int64_t i = a.first + blockIdx.z;
    int head0 = (int)blockIdx.y * 8 * TILES, dim = a.dim;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int active = (dim + OWN - 1) / OWN, c0 = OWN * warp; /* warps that have columns */
    bool quads = dim % 4 == 0;
    /* What is asked for before anything is waited for. */
    int64_t pos0 = __ldcg((const long long *)a.pos0);
    float4 q[TILES][STEPS];
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        int head = head0 + 8 * n + g, c = c0 + 4 * t;
        const float *from = a.q + (i * a.heads + head) * dim;
        if (quads) {
#pragma unroll
            for (int k = 0; k < STEPS; k++)
                q[n][k] = load_there(from + c + 16 * k, head < a.heads && c + 16 * k < dim);
        } else {
#pragma unroll
            for (int k = 0; k < STEPS; k++)
                q[n][k] = load_four(head < a.heads ? from : NULL, c + 16 * k, dim, false);
        }
    }
    row_range r = range_of(&a, pos0, i);
    int tiles = (r.total + TILE - 1) / TILE, each = (tiles + a.splits - 1) / a.splits;
    int begin = whole ? 0 : (int)blockIdx.x * each;
    int end = whole || begin + each > tiles ? tiles : begin + each;

    /* Rows of a tile on their way; `said`: what the list says of the lane's row. Which there are?
     */
    auto fetch = [&](int tile, int stage, int said) {
        const float *mine =
            lane < TILE && tile < end ? row_number(&a, &r, tile * TILE + lane, said) : NULL;
        unsigned long long at = (unsigned long long)(uintptr_t)mine;
        const float *row = (const float *)(uintptr_t)__shfl_sync(0xffffffffu, at, g);
        const float *row8 = (const float *)(uintptr_t)__shfl_sync(0xffffffffu, at, g + 8);
        bool in = row != NULL, in8 = row8 != NULL;
        float4(*to)[2][32] = room->rows(stage, warp);
        int c = c0 + 4 * t;
        if (tile < end && quads) {
            row = (in ? row : a.q) + (c0 < dim ? c : 0);
            row8 = (in8 ? row8 : a.q) + (c0 < dim ? c : 0);
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                bool inside = c + 16 * k < dim;
                fetch_four(&to[k][0][lane], inside ? row + 16 * k : a.q, in && inside);
                fetch_four(&to[k][1][lane], inside ? row8 + 16 * k : a.q, in8 && inside);
            }
        } else if (tile < end) {
#pragma unroll 1
            for (int k = 0; k < STEPS; k++) {
                to[k][0][lane] = load_four(row, c + 16 * k, dim, false);
                to[k][1][lane] = load_four(row8, c + 16 * k, dim, false);
            }
        }
        fetched();
        return __ballot_sync(0xffffffffu, mine != NULL);
    };
    int said[AHEAD + 1];
#pragma unroll
    for (int m = 0; m <= AHEAD; m++)
        said[m] = listed(&r, (begin + m) * TILE + lane % TILE);
    unsigned there[AHEAD];
#pragma unroll
    for (int m = 0; m < AHEAD; m++)
        there[m] = fetch(begin + m, m, said[m]);
    int next = said[AHEAD];
    /* Every lane keeps what it will multiply. */
    uint32_t below = 0;
    float q_size = 0;
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            four_parts f = split_four(q[n][k]);
            q_size += size_of_four(q[n][k]);
            below |= bits_below(q[n][k]);
            room->q[warp][n][k][lane] = make_uint4(f.p[0][0], f.p[0][1], f.p[1][0], f.p[1][1]);
            room->q_third[warp][n][k][lane] = make_uint2(f.p[2][0], f.p[2][1]);
        }
    bool q_three = __any_sync(0xffffffffu, below != 0);
    bool q_plain = __any_sync(0xffffffffu, !has_parts(q_size));

    /* Fragments: columns 16 k + g (e < 2), + g + 8, heads 2 t, 2 t + 1; maxima and sums likewise.
     */
    float o[STEPS][TILES][4] = {}, joined[STEPS][TILES][4] = {};
    float max_of[1][2] = {{-FLT_MAX, -FLT_MAX}}, max_joined[1][2] = {{-FLT_MAX, -FLT_MAX}};
    float sum_of[1][2] = {}, sum_joined[1][2] = {}; /* sum_of: of this lane's rows */

    int stage = 0, left = each; /* tiles of this split */
    for (int tile = begin; tile < end; tile++) {
        unsigned seen = there[0]; /* rows of this tile */
        bool plain, three;
        wait_fetched<AHEAD - 1>();
        {
            float size = 0, dot[TILES][4] = {};
            uint32_t low = 0;
            const float4(*mine)[2][32] = room->rows(stage, warp);
            float4 held[STEPS][2]; /* by narrow blocks, which have the registers */
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                float4 x = mine[k][0][lane], y = mine[k][1][lane];
                size += size_of_four(x) + size_of_four(y);
                low |= bits_below(x) | bits_below(y);
                held[k][0] = x;
                held[k][1] = y;
            }
            three = __any_sync(0xffffffffu, low != 0);
            plain = __any_sync(0xffffffffu, !has_parts(size));
            __syncwarp(); /* the parts of the last tile are used up */
            if (TIGHT)
                plain = plain || q_plain; /* needs the rows as they are */
            auto multiply = [&](auto A, auto B) {
                constexpr bool AS = decltype(A)::value, BS = decltype(B)::value;
                constexpr int TWO = TILES < 2 ? TILES : 2; /* as many as there are registers for */
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    uint32_t f[3][4];
                    split_rows<AS>(TILES == 1 ? held[k][0] : mine[k][0][lane],
                                   TILES == 1 ? held[k][1] : mine[k][1][lane], f);
#pragma unroll
                    for (int p = 0; p < (AS ? 3 : 1); p++) {
                        uint16_t *to = &room->v[warp][p][g][place_of(g, 16 * k + 4 * t)];
                        *(uint2 *)(void *)to = make_uint2(f[p][0], f[p][2]);
                        *(uint2 *)(void *)(to + 8 * OWN) = make_uint2(f[p][1], f[p][3]);
                    }
#pragma unroll
                    for (int n = 0; n < TILES; n += TWO) {
                        b_parts b[TWO];
#pragma unroll
                        for (int m = 0; m < TWO; m++) {
                            b[m].two = room->q[warp][n + m][k][lane];
                            if (BS)
                                b[m].third = room->q_third[warp][n + m][k][lane];
                        }
                        mma_parts<TWO>(dot + n, f, b, AS, BS);
                    }
                }
            };
            if (!TIGHT || !plain)
                by_parts(three, q_three, multiply);
            __syncwarp();
            if (plain || q_plain) { /* raw values of other lanes, q from where it came */
                const float *raw = (const float *)&mine[0][0][0];
                int columns = dim - c0 < OWN ? dim - c0 : OWN;
#pragma unroll
                for (int n = 0; n < TILES; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        int head = head0 + 8 * n + 2 * t + e % 2;
                        const float *from = a.q + (i * a.heads + head) * dim + c0;
                        float sum = 0;
                        for (int c = 0; head < a.heads && c < columns; c++)
                            sum = fmaf(
                                __ldcg(from + c),
                                raw[(((c / 16 * 2 + e / 2) * 32 + g * 4 + c % 16 / 4) * 4) + c % 4],
                                sum);
                        dot[n][e] = sum;
                    }
                __syncwarp();
            }
#pragma unroll
            for (int n = 0; n < TILES; n++)
                room->part[tile % 2][warp][n][lane] =
                    make_float4(dot[n][0], dot[n][1], dot[n][2], dot[n][3]);
        }
#pragma unroll
        for (int m = 0; m + 1 < AHEAD; m++)
            there[m] = there[m + 1];
        if (!plain && !TIGHT)
            there[AHEAD - 1] = fetch(tile + AHEAD, stage, next);
        if (!MUTANT(42)) /* scores added up before every warp has its share */
            __syncthreads();
        bool last = --left == 0 || tile == end - 1; /* of its split */
        b_parts b[TILES];                           /* the weights */
        if (TILES == 1) {
            float factor[2];
            float4 weight = weights_from<2>(dots_of<2>(room->part[tile % 2], 0, 0, active), seen,
                                            scale, max_of[0], sum_of[0], factor);
            uint32_t x[3], y[3];
            split_two(weight.x, weight.y, &x[0], &x[1], &x[2]);
            split_two(weight.z, weight.w, &y[0], &y[1], &y[2]);
            b[0].two = make_uint4(turned(x[0]), turned(y[0]), turned(x[1]), turned(y[1]));
            b[0].third = make_uint2(turned(x[2]), turned(y[2]));
#pragma unroll
            for (int k = 0; k < STEPS; k++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    o[k][0][e] *= factor[e % 2];
        } else {
            /* Heads 2 t + warp % 2 of a tile of eight: rows g and g + 8. */
            float factor[2];
            int head = 8 * (warp / 2) + 2 * t + warp % 2;
            float4 weight =
                weights_from<1>(dots_of<1>(room->part[tile % 2], warp / 2, warp % 2, active), seen,
                                scale, max_of[0], sum_of[0], factor);
            uint32_t x[3];
            split_two(weight.x, weight.z, &x[0], &x[1], &x[2]);
#pragma unroll
            for (int p = 0; p < 3; p++) {
                room->p[p][warp / 2][head % 8][g] = (uint16_t)(x[p] & 0xffffu);
                room->p[p][warp / 2][head % 8][g + 8] = (uint16_t)(x[p] >> 16);
            }
            if (g == 0)
                room->shrink[head] = factor[0];
            if (whole && last) {
                float first, second, sum = over_rows(sum_of[0][0]);
                join_one(&max_joined[0][0], &sum_joined[0][0], max_of[0][0], sum, &first, &second);
                max_of[0][0] = -FLT_MAX;
                sum_of[0][0] = 0;
                if (g == 0) {
                    room->first[head] = first;
                    room->second[head] = second;
                }
            }
            __syncthreads();
#pragma unroll
            for (int n = 0; n < TILES; n++) {
                const uint32_t *p = (const uint32_t *)(const void *)&room->p[0][n][g][2 * t];
                b[n].two.x = p[0];
                b[n].two.y = p[4];
                p += TILES * 8 * P_STRIDE / 2;
                b[n].two.z = p[0];
                b[n].two.w = p[4];
                p += TILES * 8 * P_STRIDE / 2;
                b[n].third = make_uint2(p[0], p[4]);
                float2 f = *(const float2 *)(const void *)&room->shrink[8 * n + 2 * t];
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    o[k][n][0] *= f.x;
                    o[k][n][1] *= f.y;
                    o[k][n][2] *= f.x;
                    o[k][n][3] *= f.y;
                }
            }
        }
        /* Weights times values. */
        if (plain) {
            const float *raw = (const float *)&room->rows(stage, warp)[0][0][0];
#pragma unroll 1
            for (int row = 0; row < TILE; row++) {
                if ((seen >> row & 1u) == 0)
                    continue;
                float p[TILES][2]; /* of heads 2 t, 2 t + 1: lane 4 head + row % 8 / 2 has them */
#pragma unroll
                for (int n = 0; n < 2 * TILES; n++) {
                    const b_parts &w = b[n / 2];
                    int from = 4 * (2 * t + n % 2) + row % 8 / 2;
                    uint32_t x = __shfl_sync(0xffffffffu, row < 8 ? w.two.x : w.two.y, from);
                    uint32_t y = __shfl_sync(0xffffffffu, row < 8 ? w.two.z : w.two.w, from);
                    uint32_t z = __shfl_sync(0xffffffffu, row < 8 ? w.third.x : w.third.y, from);
                    p[n / 2][n % 2] = row % 2 == 0 ? (low_of(z) + low_of(y)) + low_of(x)
                                                   : (high_of(z) + high_of(y)) + high_of(x);
                }
                const float *v = raw + (row / 8 * 32 + row % 8 * 4 + g / 4) * 4 + g % 4;
#pragma unroll
                for (int k = 0; k < STEPS; k++)
#pragma unroll
                    for (int n = 0; n < TILES; n++)
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            if (c0 + 16 * k < dim)
                                o[k][n][e] = fmaf(p[n][e % 2], v[k * 256 + e / 2 * 8], o[k][n][e]);
            }
            __syncwarp();
            there[AHEAD - 1] = fetch(tile + AHEAD, stage, next);
        } else {
            by_parts(three, true, [&](auto A, auto) {
                constexpr bool AS = decltype(A)::value;
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    uint32_t f[3][4];
                    int row = lane % 8 + lane / 16 * 8;
                    const uint16_t *from =
                        &room->v[warp][0][row][place_of(row, 16 * k + lane / 8 % 2 * 8)];
#pragma unroll
                    for (int p = 0; p < (AS ? 3 : 1); p++)
                        load_turned(f[p], from + p * TILE * OWN);
                    mma_parts<TILES>(o[k], f, b, AS, true);
                }
            });
            if (TIGHT) {
                __syncwarp();
                there[AHEAD - 1] = fetch(tile + AHEAD, stage, next);
            }
        }
        next = listed(&r, (tile + AHEAD + 1) * TILE + lane % TILE);
        stage = stage + 1 < AHEAD ? stage + 1 : 0;
        if (last)
            left = each;
        if (whole && last) {
#pragma unroll
            for (int n = 0; n < TILES; n++) {
                float first[2], second[2];
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    if (TILES > 1) {
                        first[h] = room->first[8 * n + 2 * t + h];
                        second[h] = room->second[8 * n + 2 * t + h];
                        continue;
                    }
                    join_one(&max_joined[0][h], &sum_joined[0][h], max_of[0][h],
                             over_rows(sum_of[0][h]), &first[h], &second[h]);
                    max_of[0][h] = -FLT_MAX;
                    sum_of[0][h] = 0;
                }
#pragma unroll
                for (int k = 0; k < STEPS; k++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        joined[k][n][e] =
                            fmaf(o[k][n][e], second[e % 2], joined[k][n][e] * first[e % 2]);
                        o[k][n][e] = 0;
                    }
            }
        }
    }
    wait_fetched<0>();

    if (!whole) {
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            if (head0 + 8 * n >= a.heads)
                break;
            float *to = part_at(&a, blockIdx.z, (int)blockIdx.x, head0 / 8 + n);
            if (warp < active)
#pragma unroll
                for (int k = 0; k < STEPS; k++)
                    ((float4 *)(void *)to)[(warp * STEPS + k) * 32 + lane] =
                        make_float4(o[k][n][0], o[k][n][1], o[k][n][2], o[k][n][3]);
            float *ends = to + (int64_t)active * OWN * 8;
            if (TILES == 1 ? warp == 0 : warp / 2 == n)
#pragma unroll
                for (int h = 0; h < (TILES == 1 ? 2 : 1); h++) {
                    int head = 2 * t + (TILES == 1 ? h : warp % 2);
                    float sum = over_rows(sum_of[0][h]);
                    if (g == 0) {
                        ends[head] = sum;
                        ends[8 + head] = max_of[0][h];
                    }
                }
        }
        return;
    }
    if ((TILES > 1 || warp == 0) && g == 0)
        for (int h = 0; h < (TILES == 1 ? 2 : 1); h++) {
            int head = TILES == 1 ? 2 * t + h : 8 * (warp / 2) + 2 * t + warp % 2;
            if (head0 + head < a.heads)
                join_sink(max_joined[0][h], sum_joined[0][h], a.sink[head0 + head],
                          &room->last[head], &room->total[head]);
        }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        const float *rescale = &room->last[8 * n + 2 * t], *total = &room->total[8 * n + 2 * t];
#pragma unroll
        for (int k = 0; k < STEPS; k++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int head = head0 + 8 * n + 2 * t + e % 2, c = c0 + 16 * k + g + e / 2 * 8;
                if (head < a.heads && c < dim)
                    out[(i * a.heads + head) * dim + c] =
                        maybe_bf16(__fdiv_rn(joined[k][n][e] * rescale[e % 2], total[e % 2]), bf16);
            }
    }
}

/* grid: warps that have columns, groups of 8 heads, tokens. */
static __global__ void __launch_bounds__(STEPS * 32)
    attention_join(const __grid_constant__ cu_attention_args a, float *out, bool bf16,
                   cu_rounds rounds)
{
    let_next_start();
    __shared__ join_factors factors;
    int lane = threadIdx.x % 32, k = threadIdx.x / 32, dim = a.dim;
    int64_t i = a.first + blockIdx.z;
    const float *from = part_at(&a, blockIdx.z, 0, (int)blockIdx.y);
    int64_t step = part_floats(dim) * ((a.heads + 7) / 8), ends = part_floats(dim) - 16;
    int c = OWN * (int)blockIdx.x + 16 * k + lane / 4, head0 = 8 * (int)blockIdx.y;
    int s = lane % MOST_SPLITS, h = (int)threadIdx.x / MOST_SPLITS;
    float sink = head0 + h < a.heads ? __ldg(a.sink + head0 + h) : 0.0f;
#pragma unroll 1
    for (int round = rounds.first; round < rounds.end; round++) {
        bool live = round == 1, mine = live && s < a.splits;
        if (live && !MUTANT(43)) /* joins before the last split is there */
            wait_for_previous();
        float max = mine ? __ldcg(from + s * step + ends + 8 + h) : -FLT_MAX;
        float sum = mine ? __ldcg(from + s * step + ends + h) : 0.0f;
        float4 v[MOST_SPLITS], angles = angles_of<8>(&a, i, c, live);
#pragma unroll
        for (int n = 0; n < MOST_SPLITS; n++)
            v[n] = load_there(from + n * step + ((blockIdx.x * STEPS + k) * 32 + lane) * 4,
                              live && n < a.splits);
        find_factors(&factors, s, h, max, sum, sink);
        __syncthreads();
        join_values<MOST_SPLITS, 8>(&a, &factors, v, i, head0, c, angles, out, bf16, live);
        if (!live)
            __syncthreads(); /* the factors are used up */
    }
}

extern "C" bool cu_attention_turns(int64_t n, int dim, int rope)
{
    return n <= AT_ONCE && dim % 2 == 0 && rope % 2 == 0 && rope <= dim;
}

extern "C" int cu_attention_splits(int64_t rows)
{
    int64_t tiles = rows < 1 ? 1 : (rows + TILE - 1) / TILE;
    if (tiles <= WAVE * FEW_SPLITS)
        return (int)(tiles < FEW_SPLITS ? tiles : (int64_t)FEW_SPLITS);
    int64_t each = (tiles + MOST_SPLITS - 1) / MOST_SPLITS;
    return (int)((tiles + each - 1) / each);
}

extern "C" int64_t cu_attention_scratch(int64_t n, int heads, int dim, int splits)
{
    return (n < AT_ONCE ? n : (int64_t)AT_ONCE) * splits * ((heads + 7) / 8) * part_floats(dim);
}

template <int TILES, int AHEAD, bool TIGHT>
static void launch(cu_stream s, const cu_attention_args *a, bool whole, float *out, bool bf16)
{
    static bool raised;
    size_t shared = sizeof(attention_room<TILES, AHEAD, TIGHT>);
    void (*kernel)(cu_attention_args, float, bool, float *, bool) = attention<TILES, AHEAD, TIGHT>;
    if (!raised)
        raised = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)shared) == cudaSuccess;
    dim3 grid(whole ? 1u : (unsigned)a->splits, cu_blocks(a->heads, 8 * TILES), (unsigned)a->n);
    LAUNCH("attention", a->n * a->heads * a->dim, kernel, grid, THREADS, shared, s, *a,
           (float)(1.0 / sqrt((double)a->dim)), whole, out, bf16);
}

extern "C" void cu_attention(cu_stream s, const cu_attention_args *args, float *out, bool bf16)
{
    cu_attention_args a = *args;
    bool whole = a.n > AT_ONCE, wide = a.n >= WIDE_FROM && a.heads > 8 * NARROW;
    if (a.n <= 0)
        return;
    a.first = 0;
    few_done done = whole ? NOTHING : cu_attention_few(s, &a, out, bf16);
    if (done != NOTHING)
        ; /* by blocks for few */
    else if (a.dim <= NARROWEST || cu_most_shared() < sizeof(attention_room<WIDE, 1, false>))
        launch<NARROW, 1, true>(s, &a, whole, out, bf16);
    else if (wide)
        launch<WIDE, 1, false>(s, &a, whole, out, bf16);
    else
        launch<NARROW, 3, false>(s, &a, whole, out, bf16);
    if (whole)
        return;
    cu_linear_anew();
    if (done == ALL)
        return;
    dim3 join(cu_blocks(a.dim, OWN), cu_blocks(a.heads, 8), (unsigned)a.n);
    LAUNCH("attention_join", a.n * a.heads * a.dim, attention_join, join, STEPS * 32, 0, s, a, out,
           bf16, rounds_of(a.n <= REHEARSED));
}
