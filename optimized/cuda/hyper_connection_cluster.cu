/* hyper_connection_cluster.cu - mHC's mixes, gates, collapse and the norm behind them, with the end
 * of the sublayer before, in one launch of blocks that see each other's memory. */
#include "cluster.cuh"
#include "hyper_connection.cuh"
#include "parts.cuh"

/* Sixteen blocks that see each other's memory take a sixteenth of the columns each, of up to
 * sixteen tokens; the weights are fetched before the streams are there. Each sends its sums for the
 * gates of the collapse and its squares to all the others, and all sums of token r to block r; all
 * then know those gates, collapse their columns, and need to hear only the sum of squares for the
 * norm. One warp more works out all gates meanwhile: in block r those of token r (which takes longer
 * than all the rest, and nobody needs them before the sublayer ends: LATER leaves them to another).
 *
 * The weights of a layer drive these instructions out of every cache between two launches, and to
 * fetch them takes longer than to run them: there are few on the way of one token, and what several
 * ask for is there once. */
enum {
    TOGETHER = 16, /* blocks */
    MANY = 16,     /* tokens of these blocks, at most */
    MIXES = 24,
    EACH = 28, /* sums of a token: mixes, squares, and what makes it whole pieces of 16 bytes */
    BRIEF = 8, /* what all must hear of it: the first four, squares, likewise */
    ENTER_WARPS = 8,
    ENTER_STEPS = 4, /* of 32 columns, a warp */
    ENTER_ROWS = 6,  /* a lane */
    FETCHED = 4,     /* tokens that are waited for together */
    ENTER_MOST = 4096,
    LEFT_EXPERTS = 8
};

/* Of one token, weights wait in shared memory: with all in registers, a block would not find room
 * beside one of the products before it, and start late. HELD: a lane's rows in registers; as many
 * as eight warps of 128 registers hold, which fit beside those products, as nine of 80 do. */
template <int TOKENS, bool LATER> struct enter_weights {
    enum { HELD = ENTER_ROWS };
};
template <bool LATER> struct enter_weights<1, LATER> {
    enum { HELD = LATER ? 4 : 0 };
    float fn[MIXES - 4 * HELD][4 * (ENTER_MOST / TOGETHER)]; /* [row][4][this block's columns] */
};

/* Of up to TOKENS tokens. */
template <int TOKENS, bool LATER> struct enter_room : enter_weights<TOKENS, LATER> {
    enum { SUMS = EACH * TOKENS };                /* [token][mix], the squares behind the mixes */
    float x[TOKENS][4 * (ENTER_MOST / TOGETHER)]; /* [token][4][this block's columns] */
    float part[ENTER_WARPS][SUMS], brief[TOKENS * BRIEF];
    float from[TOGETHER][EACH]; /* of each block: sums of token `rank`; of all tokens: */
    float briefs[TOGETHER][TOKENS * BRIEF];
    float powers[TOGETHER][TOKENS]; /* of the collapsed columns, likewise */
    float norm_scale[TOKENS], sums[ENTER_WARPS][TOKENS];
    __align__(16) float pre[TOKENS][4];
    float comb[TOKENS][16], post[TOKENS][4], kept[TOKENS][LEFT_EXPERTS];
    uint64_t sums_came, powers_came; /* barriers */
};

#if __CUDA_ARCH__ >= 900 && CAN_SEND
/* What all blocks sent, in their order, `step` floats apart. */
__device__ __forceinline__ float of_all(const float *p, int step)
{
    float v[TOGETHER], sum = 0;
#pragma unroll
    for (int r = 0; r < TOGETHER; r++)
        v[r] = p[r * step];
#pragma unroll
    for (int r = 0; r < TOGETHER; r++)
        if (!MUTANT(9) || r < TOGETHER - 1) /* the last slice lost */
            sum += v[r];
    return sum;
}

/* Four sums of all warps, from the `at`th on. */
template <int TOKENS, bool LATER>
__device__ __forceinline__ float4 four_sums(const enter_room<TOKENS, LATER> &room, int at)
{
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int k = 0; k < ENTER_WARPS; k++) {
        float4 v = *(const float4 *)(const void *)&room.part[k][at];
        sum.x += v.x;
        sum.y += v.y;
        sum.z += v.z;
        sum.w += v.w;
    }
    return sum;
}

__device__ __forceinline__ float squared(float sum, float4 v)
{
    sum = fmaf(v.x, v.x, sum);
    sum = fmaf(v.y, v.y, sum);
    sum = fmaf(v.z, v.z, sum);
    return fmaf(v.w, v.w, sum);
}

/* One copy of the code for all who ask. */
static __device__ __noinline__ float scale_of(float sum, int dim, float eps)
{
    return root_scale(sum, dim, eps);
}

/* A barrier of the first ENTER_WARPS warps. */
__device__ __forceinline__ void sync_workers()
{
    asm volatile("bar.sync 1, %0;" ::"n"(ENTER_WARPS * 32) : "memory");
}

/* leave_columns() of many tokens: a thread takes two columns, and the next token's are on their way
 * while it works on one's. */
template <int TOKENS, bool LATER>
__device__ __forceinline__ void leave_many(const enter_args &a, enter_room<TOKENS, LATER> &room,
                                           int rank, int64_t token0, int count)
{
    const cu_left &l = a.left;
    int dim = (int)a.dim, own = dim / TOGETHER, twos = own / 2;
    int at_once = ENTER_WARPS * 32 / twos, i = (int)threadIdx.x / twos;
    int c = (int)threadIdx.x % twos * 2, column = rank * own + c;
    bool routed = l.block == NULL;
    const float2 zero = make_float2(0, 0);
    float2 x[4], side, v[LEFT_EXPERTS];
    if (i >= at_once)
        i = count;
    auto two = [](const float *from) { return __ldcg((const float2 *)(const void *)from); };
    auto ask = [&]() {
        if (i >= count)
            return;
        int64_t token = token0 + i;
        const float *streams = l.streams + token * 4 * dim + column;
        const float *y = l.y + token * l.k * dim + column;
#pragma unroll
        for (int b = 0; b < 4; b++)
            x[b] = two(streams + b * dim);
        side = two((routed ? l.shared : l.block) + token * dim + column);
#pragma unroll
        for (int s = 0; s < LEFT_EXPERTS; s++)
            v[s] = routed && s < l.k ? two(y + s * dim) : zero;
    };
    ask();
    sync_workers();
#pragma unroll 1
    while (i < count) {
        if (MUTANT(55) && i + at_once < count) { /* the next token's columns in its place */
            i += at_once;
            ask();
            i -= at_once;
        }
        float *out = l.out + (token0 + i) * 4 * dim + column, *to = &room.x[i][c];
        float2 in = routed ? zero : side;
        if (routed) {
#pragma unroll
            for (int s = 0; s < LEFT_EXPERTS; s++) {
                bool kept = room.kept[i][s] != 0;
                if (s < l.k) {
                    in.x += kept ? v[s].x : 0.0f;
                    in.y += kept ? v[s].y : 0.0f;
                }
            }
            in = make_float2(maybe_bf16(in.x + side.x, a.bf16), maybe_bf16(in.y + side.y, a.bf16));
        }
        const float *comb = room.comb[i], *post = room.post[i];
        float2 sum[4];
#pragma unroll
        for (int b = 0; b < 4; b++) {
            sum[b] = make_float2(post[b] * in.x, post[b] * in.y);
#pragma unroll
            for (int m = 0; m < 4; m++) { /* comb over its first index */
                float f = comb[MUTANT(60) ? b * 4 + m : m * 4 + b];
                sum[b].x = fmaf(f, x[m].x, sum[b].x);
                sum[b].y = fmaf(f, x[m].y, sum[b].y);
            }
        }
        i += at_once;
        ask();
#pragma unroll
        for (int b = 0; b < 4; b++) {
            float2 z = make_float2(maybe_bf16(sum[b].x, a.bf16), maybe_bf16(sum[b].y, a.bf16));
            *(float2 *)(void *)(to + b * own) = z;
            *(float2 *)(void *)(out + b * dim) = z;
        }
    }
    sync_workers();
}

/* The end of the sublayer before (hc_post; of the experts' also expert_sum and add): this block's
 * columns of the streams, into its memory and out. The gates are still those of that sublayer. */
template <int TOKENS, bool LATER>
__device__ __forceinline__ void leave_columns(const enter_args &a, enter_room<TOKENS, LATER> &room,
                                              int rank, int64_t token0, int count)
{
    const cu_left &l = a.left;
    int t = threadIdx.x, dim = (int)a.dim, own = dim / TOGETHER;
    bool routed = l.block == NULL;
    static_assert(MANY * 16 <= ENTER_WARPS * 32, "a thread an element of comb");
    if (t < count * 16)
        room.comb[t / 16][t % 16] = __ldcg(a.gates.comb + token0 * 16 + t);
    if (t < count * 4)
        room.post[t / 4][t % 4] = __ldcg(a.gates.post + token0 * 4 + t);
    if (routed && t < count * LEFT_EXPERTS) {
        int i = t / LEFT_EXPERTS, mine = t % LEFT_EXPERTS;
        const int32_t *experts = l.experts + (token0 + i) * l.k;
        int32_t e[LEFT_EXPERTS], one = mine < l.k ? __ldcg(experts + mine) : 0;
        bool first = true; /* its weight is at its first place */
#pragma unroll
        for (int s = 0; s < LEFT_EXPERTS; s++)
            e[s] = s < l.k ? __ldcg(experts + s) : 0;
#pragma unroll
        for (int s = 0; s < LEFT_EXPERTS; s++)
            first = first && (s >= mine || e[s] != one);
        room.kept[i][mine] = first;
    }
    if (TOKENS > 1) {
        leave_many(a, room, rank, token0, count);
        return;
    }
    int column = rank * own + t;
    float in = 0, side = 0, x[4], v[LEFT_EXPERTS];
    if (t < own) {
        const float *streams = l.streams + token0 * 4 * dim + column;
        const float *y = l.y + token0 * l.k * dim + column;
#pragma unroll
        for (int b = 0; b < 4; b++)
            x[b] = __ldcg(streams + b * dim);
        side = __ldcg((routed ? l.shared : l.block) + token0 * dim + column);
#pragma unroll
        for (int s = 0; s < LEFT_EXPERTS; s++)
            v[s] = routed && s < l.k ? __ldcg(y + s * dim) : 0.0f;
    }
    sync_workers();
    if (t < own) {
        float *out = l.out + token0 * 4 * dim + column;
        if (routed) {
#pragma unroll
            for (int s = 0; s < LEFT_EXPERTS; s++)
                if (s < l.k)
                    in += room.kept[0][s] != 0 ? v[s] : 0.0f;
            in = maybe_bf16(in + side, a.bf16);
        } else {
            in = side;
        }
#pragma unroll
        for (int b = 0; b < 4; b++) {
            float sum = room.post[0][b] * in;
#pragma unroll
            for (int m = 0; m < 4; m++) /* comb over its first index */
                sum = fmaf(room.comb[0][MUTANT(60) ? b * 4 + m : m * 4 + b], x[m], sum);
            sum = maybe_bf16(sum, a.bf16);
            room.x[0][b * own + t] = sum;
            out[b * dim] = sum;
        }
    }
    sync_workers();
}

/* The extra warp: all gates of token `rank`, and its mixes; lanes without one have the squares. */
template <int TOKENS, bool LATER>
__device__ __forceinline__ void
all_gates(const enter_args &a, const enter_room<TOKENS, LATER> &room, int64_t token, float2 gate)
{
    int row = mix_of_lane();
    float v = of_all(&room.from[0][row], EACH);
    v *= scale_of(__shfl_sync(0xffffffffu, v, MIXES), 4 * (int)a.dim, a.eps);
    if (a.m != NULL && row < a.rows)
        a.m[token * a.rows + row] = v;
    if (a.gated)
        four_gates(v, gate, a.gates, token);
}
#endif

template <int TOKENS, bool LATER>
static __global__ void __launch_bounds__((ENTER_WARPS + !LATER) * 32, TOKENS == 1 ? 2 : 1)
    hc_enter(const __grid_constant__ enter_args a)
{
#if __CUDA_ARCH__ >= 900 && CAN_SEND
    let_next_start();
    using shared = enter_room<TOKENS, LATER>;
    enum { WORKERS = ENTER_WARPS * 32, SUMS = shared::SUMS, HELD = shared::HELD };
    extern __shared__ __align__(16) uint8_t memory[];
    shared &room = *(shared *)(void *)memory;
    int rank = (int)rank_in_cluster(), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int g = lane / 8, t = lane % 8, own = (int)a.dim / TOGETHER, fours = own / 4;
    int64_t token0 = LATER ? 0 : (int64_t)blockIdx.y * a.tokens;
    int tokens = LATER ? 1 : a.n - token0 < a.tokens ? (int)(a.n - token0) : a.tokens;
    bool normed = LATER || a.y != NULL, collapses = normed || a.x != NULL;
    if (threadIdx.x == 0) {
        int each = TOGETHER * (int)sizeof(float);
        expect(&room.sums_came, each * (tokens * BRIEF + (rank < tokens ? (int)EACH : 0)));
        if (normed)
            expect(&room.powers_came, each * tokens);
        barriers_set();
    }
    __syncthreads();
    arrive_together();
    if (!LATER && warp == ENTER_WARPS) {
        bool mine = a.gated && rank < tokens;
        float2 gate = mine ? gate_of_lane(a.gates, a.rows) : make_float2(0, 0);
        wait_together();
        wait_for_previous();
        await(&room.sums_came);
        if (!normed)
            arrive_together();
        if (rank < tokens)
            all_gates(a, room, token0 + rank, gate);
        if (!normed)
            wait_together();
        return;
    }
    /* Unit u of four columns: stream u / fours, columns 4 (u % fours) of this block's. */
    const float4 zero = make_float4(0, 0, 0, 0);
    float4 w[ENTER_STEPS][ENTER_ROWS]; /* rows g, g + 4, ... */
#pragma unroll
    for (int k = 0; k < ENTER_STEPS; k++) {
        int u = (warp * ENTER_STEPS + k) * 8 + t;
        const float *from = a.fn + u / fours * a.dim + rank * own + u % fours * 4;
#pragma unroll
        for (int m = 0; m < ENTER_ROWS; m++) {
            bool there = u < 4 * fours && g + 4 * m < a.rows;
            const float *row = from + (g + 4 * m) * 4 * a.dim;
            if constexpr (TOKENS == 1)
                if (m >= HELD) /* every lane fetches what it multiplies */
                    fetch_weights((float4 *)(void *)&room.fn[g + 4 * (m - HELD)][4 * u],
                                  there ? row : a.fn, there);
            if (m < HELD)
                w[k][m] = there ? __ldg((const float4 *)(const void *)row) : zero;
        }
    }
    if (TOKENS == 1)
        fetched();
    float weight =
        a.y != NULL && (int)threadIdx.x < own ? __ldg(a.norm + rank * own + threadIdx.x) : 0.0f;
    float factor = a.gated ? __ldg(a.gates.scale) : 0.0f; /* of the collapse's gates */
    float base = a.gated ? __ldg(a.gates.base + lane % 4) : 0.0f;
    auto open = [&](float v) { return sigmoid(v * factor + base) + a.gates.eps; };
    bool left = a.left.out != NULL;
    int stream = (int)threadIdx.x / fours, column = (int)threadIdx.x % fours * 4;
    wait_together();
    wait_for_previous();
    if (left)
        leave_columns(a, room, rank, token0, tokens);
    else if (TOKENS == 1) {
        if (stream < 4)
            *(float4 *)(void *)&room.x[0][4 * threadIdx.x] =
                __ldcg((const float4 *)(const void *)(a.streams + (token0 * 4 + stream) * a.dim +
                                                      rank * own + column));
        sync_workers();
    } else { /* every warp fetches what it multiplies */
#pragma unroll 1
        for (int i = 0; i < MANY; i++) {
            if (i < tokens && stream < 4)
                fetch_four((float4 *)(void *)&room.x[i][4 * threadIdx.x],
                           a.streams + ((token0 + i) * 4 + stream) * a.dim + rank * own + column,
                           !(MUTANT(54) && i + 1 == tokens)); /* the last token's left out */
            if (i % FETCHED == FETCHED - 1)
                fetched();
        }
    }
    /* Of a few tokens side by side, so that their steps do not wait for each other. */
    constexpr int BESIDE = TOKENS > 1 ? 2 : 1;
    auto mix = [&](int first) {
        float sum[BESIDE][8] = {}; /* rows, squares, nothing */
#pragma unroll
        for (int k = 0; k < ENTER_STEPS; k++) {
            int u = (warp * ENTER_STEPS + k) * 8 + t;
#pragma unroll
            for (int i = 0; i < BESIDE; i++) {
                float4 y = zero;
                if (u < 4 * fours)
                    y = *(const float4 *)(const void *)&room.x[first + i][4 * u];
#pragma unroll
                for (int m = 0; m < ENTER_ROWS; m++) {
                    float4 f;
                    if constexpr (TOKENS == 1)
                        if (m >= HELD)
                            f = *(const float4 *)(const void *)&room.fn[g + 4 * (m - HELD)][4 * u];
                    if (m < HELD)
                        f = w[k][m];
                    if (MUTANT(77) && LATER && m == HELD) /* the row before in its place */
                        f = w[k][HELD - 1];
                    sum[i][m] = fmaf(f.x, y.x, sum[i][m]);
                    sum[i][m] = fmaf(f.y, y.y, sum[i][m]);
                    sum[i][m] = fmaf(f.z, y.z, sum[i][m]);
                    sum[i][m] = fmaf(f.w, y.w, sum[i][m]);
                }
                sum[i][ENTER_ROWS] = squared(sum[i][ENTER_ROWS], y);
            }
        }
        /* Over t: lane t is left with sum[t]. */
#pragma unroll
        for (int d = 1; d < 8; d *= 2) {
            bool upper = (t & d) != 0;
#pragma unroll
            for (int i = 0; i < BESIDE; i++)
#pragma unroll
                for (int j = 0; j < 4 / d; j++) {
                    float keeps = upper ? sum[i][2 * j + 1] : sum[i][2 * j];
                    float gives = upper ? sum[i][2 * j] : sum[i][2 * j + 1];
                    sum[i][j] = keeps + __shfl_xor_sync(0xffffffffu, gives, d);
                }
        }
#pragma unroll
        for (int i = 0; i < BESIDE; i++)
            if ((t < ENTER_ROWS || lane == ENTER_ROWS) && first + i < tokens)
                room.part[warp][(first + i) * EACH + (t < ENTER_ROWS ? g + 4 * t : (int)MIXES)] =
                    sum[i][0];
    };
    if (TOKENS == 1) {
        wait_fetched<0>();
        mix(0);
    } else {
        static_assert(MANY == 4 * FETCHED && FETCHED % BESIDE == 0, "as many are on their way");
#pragma unroll 1
        for (int token = 0; token < tokens; token += BESIDE) {
            if (left) /* there already */
                ;
            else if (token == 0)
                wait_fetched<3>();
            else if (token == FETCHED)
                wait_fetched<2>();
            else if (token == 2 * FETCHED)
                wait_fetched<1>();
            else if (token == 3 * FETCHED)
                wait_fetched<0>();
            __syncwarp();
            mix(token);
        }
    }
    sync_workers();
    if (MUTANT(44) && rank == 5) /* others do not wait for a late block */
        __nanosleep(50000);
    if (TOKENS == 1) { /* a thread four sums and a block */
        int four = (int)threadIdx.x / TOGETHER * 4, to = threadIdx.x % TOGETHER;
        bool brief = four == 0 || four == MIXES;
        if (four < EACH && (brief || to == 0)) {
            float4 v = four_sums(room, four);
            if (brief)
                send_four(&room.briefs[rank][four / MIXES * 4], &room.sums_came, to, v);
            if (to == 0)
                send_four(&room.from[rank][four], &room.sums_came, 0, v);
        }
    } else {
        if (MUTANT(67) && warp == 0) /* sums are sent before they are there */
            __nanosleep(20000);
        for (int at = threadIdx.x * 4; at < tokens * EACH; at += WORKERS * 4) {
            float4 v = four_sums(room, at);
            int token = at / EACH, four = at % EACH;
            send_four(&room.from[rank][four], &room.sums_came, token, v);
            if (four == 0 || four == MIXES)
                *(float4 *)(void *)&room.brief[token * BRIEF + four / MIXES * 4] = v;
        }
        if (!MUTANT(67))
            sync_workers();
        for (int i = threadIdx.x; i < tokens * (BRIEF / 4) * TOGETHER; i += WORKERS) {
            int four = i / TOGETHER * 4;
            send_four(&room.briefs[rank][four], &room.sums_came, i % TOGETHER,
                      *(const float4 *)(const void *)&room.brief[four]);
        }
    }
    if (!MUTANT(44))
        await(&room.sums_came);
    if (!normed) /* what is sent last: nobody leaves before all have it */
        arrive_together();
    float4 all_pre = zero;
    if (collapses && TOKENS == 1) {    /* every warp for itself */
        bool all = LATER && rank == 0; /* the first block has all sums */
        int squares = all ? (int)MIXES : 4, row = lane < squares ? lane : squares;
        float pre = of_all(all ? &room.from[0][row] : &room.briefs[0][row], all ? EACH : BRIEF);
        pre *= scale_of(__shfl_sync(0xffffffffu, pre, squares), 4 * (int)a.dim, a.eps);
        if (all && (int)threadIdx.x < a.rows)
            a.m[threadIdx.x] = pre;
        pre = open(pre);
        if (all && threadIdx.x < 4)
            a.gates.pre[threadIdx.x] = pre;
        all_pre = make_float4(__shfl_sync(0xffffffffu, pre, 0), __shfl_sync(0xffffffffu, pre, 1),
                              __shfl_sync(0xffffffffu, pre, 2), __shfl_sync(0xffffffffu, pre, 3));
    } else if (collapses) {
        int token = (int)threadIdx.x / 4;
        const float *from = &room.briefs[0][token * BRIEF];
        if (token < tokens)
            room.pre[token][lane % 4] =
                open(of_all(from + lane % 4, TOKENS * BRIEF) *
                     scale_of(of_all(from + 4, TOKENS * BRIEF), 4 * (int)a.dim, a.eps));
        sync_workers();
    }
    /* Four tokens at a time, so that their steps do not wait for each other; those behind the last
     * are worked out too, and dropped. */
    constexpr int FOUR = TOKENS > 1 ? 4 : 1;
    bool mine = (int)threadIdx.x < own;
    int64_t at = token0 * a.dim + rank * own + threadIdx.x;
#pragma unroll 1
    for (int first = 0; collapses && first < tokens; first += FOUR) {
        float c[FOUR] = {}, power[FOUR];
#pragma unroll
        for (int j = 0; mine && j < FOUR; j++) {
            const float *x = &room.x[first + j][threadIdx.x];
            float4 f = TOKENS == 1 ? all_pre : *(const float4 *)(const void *)room.pre[first + j];
            c[j] = fmaf(f.x, x[0], 0.0f);
            c[j] = fmaf(f.y, x[own], c[j]);
            c[j] = fmaf(f.z, x[2 * own], c[j]);
            c[j] = fmaf(f.w, x[3 * own], c[j]);
        }
#pragma unroll
        for (int j = 0; j < FOUR; j++) {
            c[j] = maybe_bf16(c[j], a.bf16);
            bool there = mine && first + j < tokens;
            power[j] = there ? c[j] * c[j] : 0.0f;
            if (there)
                room.x[first + j][threadIdx.x] = c[j]; /* whose column it was */
            if (there && a.x != NULL)
                a.x[at + (first + j) * a.dim] = c[j];
        }
        /* warp_sum() of all: lanes are left with those of token lane / 16 + lane / 8 % 2 * 2. */
        int d = 16;
        if (FOUR == 4)
#pragma unroll
            for (int pairs = 2; pairs > 0; pairs /= 2, d /= 2) {
                bool upper = (lane & d) != 0;
#pragma unroll
                for (int j = 0; j < pairs; j++) {
                    float keeps = upper ? power[(2 * j + 1) % FOUR] : power[2 * j % FOUR];
                    float gives = upper ? power[2 * j % FOUR] : power[(2 * j + 1) % FOUR];
                    power[j % FOUR] = keeps + __shfl_xor_sync(0xffffffffu, gives, d);
                }
            }
        for (; d > 0; d /= 2)
            power[0] += __shfl_xor_sync(0xffffffffu, power[0], d);
        int i = first + (FOUR == 4 ? lane / 16 + lane / 8 % 2 * 2 : 0);
        if (lane % (FOUR == 4 ? 8 : 32) == 0 && i < tokens)
            room.sums[warp][i] = power[0];
    }
    if (normed) {
        sync_workers();
        if ((int)threadIdx.x < TOGETHER * TOKENS && (int)threadIdx.x % TOKENS < tokens) {
            int i = threadIdx.x % TOKENS;
            float power = 0;
#pragma unroll
            for (int k = 0; k < ENTER_WARPS; k++)
                power += room.sums[k][i];
            send(&room.powers[rank][i], &room.powers_came, threadIdx.x / TOKENS, power);
        }
        await(&room.powers_came); /* also: all have what this block sent before */
        if (TOKENS > 1) {
            if ((int)threadIdx.x < tokens)
                room.norm_scale[threadIdx.x] =
                    scale_of(of_all(&room.powers[0][threadIdx.x], TOKENS), (int)a.dim, a.eps);
            sync_workers();
        }
#pragma unroll 1
        for (int first = 0; first < tokens; first += FOUR) {
            float v[FOUR];
#pragma unroll
            for (int j = 0; j < FOUR; j++) {
                float last = TOKENS > 1
                                 ? room.norm_scale[first + j]
                                 : scale_of(of_all(&room.powers[0][0], 1), (int)a.dim, a.eps);
                v[j] = maybe_bf16(weight * (room.x[first + j][threadIdx.x] * last), a.bf16);
            }
#pragma unroll
            for (int j = 0; j < FOUR; j++)
                if (mine && first + j < tokens)
                    a.y[at + (first + j) * a.dim] = v[j];
        }
    } else {
        wait_together();
    }
    if (MUTANT(44))
        await(&room.sums_came);
#endif
}

/* How many times the device has room for sixteen blocks that see each other. */
template <int TOKENS, bool LATER> static int clusters_of()
{
    static int answer = -1;
    if (answer < 0)
        answer = clusters_that_fit((const void *)hc_enter<TOKENS, LATER>, TOGETHER,
                                   (ENTER_WARPS + !LATER) * 32, sizeof(enter_room<TOKENS, LATER>));
    return answer;
}

static int clusters()
{
    int many = clusters_of<MANY, false>(), one = clusters_of<1, false>();
    int few = clusters_of<1, true>() < one ? clusters_of<1, true>() : one;
    return many < few ? many : few;
}

extern "C" bool cu_enters(const cu_tensor *fn, const cu_gates *gates)
{
    return fn->type == DSV4_F32 && fn->rows <= MIXES && fn->cols % (4 * 4 * TOGETHER) == 0 &&
           fn->cols <= 4 * ENTER_MOST && fn->row_bytes == (size_t)fn->cols * 4 &&
           (uintptr_t)fn->data % 16 == 0 && (gates == NULL || gates->hc == 4) && clusters() > 0;
}

extern "C" void cu_enter(cu_stream s, const enter_args *args)
{
    enter_args a = *args;
    int64_t each = (a.n + clusters() - 1) / clusters(); /* all of them at once, if they fit */
    a.tokens = (int)(each < MANY ? each : (int64_t)MANY);
    if (a.n <= 0)
        return;
    dim3 grid(TOGETHER, cu_blocks(a.n, a.tokens));
    if (a.later)
        LAUNCH_CLUSTERS("hc_enter", a.dim, (hc_enter<1, true>), grid, ENTER_WARPS * 32,
                        sizeof(enter_room<1, true>), s, TOGETHER, a);
    else if (a.tokens == 1)
        LAUNCH_CLUSTERS("hc_enter", a.n * a.dim, (hc_enter<1, false>), grid, (ENTER_WARPS + 1) * 32,
                        sizeof(enter_room<1, false>), s, TOGETHER, a);
    else
        LAUNCH_CLUSTERS("hc_enter", a.n * a.dim, (hc_enter<MANY, false>), grid,
                        (ENTER_WARPS + 1) * 32, sizeof(enter_room<MANY, false>), s, TOGETHER, a);
}

extern "C" bool cu_hc_passes(const cu_tensor *fn, const cu_gates *gates, int k)
{
    return cu_enters(fn, gates) && k <= LEFT_EXPERTS;
}
