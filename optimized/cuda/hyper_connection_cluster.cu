/* hyper_connection_cluster.cu - mHC's mixes, gates, collapse and the norm behind them, with the end
 * of the sublayer before, in one launch of blocks that see each other's memory. */
#include "hyper_connection.cuh"

/* Sixteen blocks that see each other's memory take a sixteenth of the columns each, of up to
 * sixteen tokens; the weights are fetched before the streams are there. Each sends its sums to all
 * the others; all then know the gates, collapse their columns, and need to hear only the sum of
 * squares for the norm. One warp more works out the gates of the expansion meanwhile: in block r
 * those of token r.
 *
 * The weights of a layer drive these instructions out of every cache between two launches, and to
 * fetch them takes longer than to run them: there are few on the way of one token, and what several
 * ask for is there once.
 *
 * What a block is sent is counted by a barrier of its own as it arrives (st.async): nobody waits
 * for what it sent, and nobody leaves before it has what the others send. That takes nvcc 12.1. */
enum {
    TOGETHER = 16, /* blocks */
    MANY = 16,     /* tokens of these blocks, at most */
    MIXES = 24,
    EACH = 28, /* sums of a token: mixes, squares, and what makes it whole pieces of 16 bytes */
    ENTER_WARPS = 8,
    ENTER_STEPS = 8, /* of 16 columns, a warp */
    ENTER_MOST = 4096,
    LEFT_EXPERTS = 8
};

#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
#define CAN_SEND 1
#else
#define CAN_SEND 0
#endif

/* Of up to TOKENS tokens. */
template <int TOKENS> struct enter_room {
    enum { SUMS = EACH * TOKENS };                /* [token][mix], the squares behind the mixes */
    float x[TOKENS][4 * (ENTER_MOST / TOGETHER)]; /* [token][4][this block's columns] */
    float part[ENTER_WARPS][SUMS], mine[SUMS];
    float from[TOGETHER][SUMS];     /* sums of each block */
    float powers[TOGETHER][TOKENS]; /* of the collapsed columns, likewise */
    float scale[TOKENS], norm_scale[TOKENS], pre[TOKENS][4], sums[ENTER_WARPS][TOKENS];
    float comb[TOKENS][16], post[TOKENS][4], kept[TOKENS][LEFT_EXPERTS];
    uint64_t sums_came, powers_came; /* barriers */
};

#if __CUDA_ARCH__ >= 900 && CAN_SEND
__device__ __forceinline__ unsigned rank_in_cluster()
{
    unsigned r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}

/* The barrier of all blocks: this one runs, and its barriers are set. Until all do, none may write
 * into another's memory. */
__device__ __forceinline__ void arrive_together()
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void wait_together()
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ unsigned shared_at(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

/* A barrier that is complete when so many bytes have come; by one thread. */
__device__ __forceinline__ void expect(uint64_t *barrier, int bytes)
{
    asm volatile("mbarrier.init.shared.b64 [%0], 1;\n\t"
                 "mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_at(barrier)),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void await(uint64_t *barrier)
{
    unsigned done = 0;
    while (done == 0)
        asm volatile("{\n\t.reg .pred p;\n\t"
                     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done)
                     : "r"(shared_at(barrier))
                     : "memory");
}

/* v into the same place of block `rank`'s memory, counted by its barrier. */
__device__ __forceinline__ void send(float *p, uint64_t *barrier, int rank, float v)
{
    unsigned there, told;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(there)
                 : "r"(shared_at(p)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(told)
                 : "r"(shared_at(barrier)), "r"(rank));
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
            there),
        "r"(__float_as_uint(v)), "r"(told)
        : "memory");
}

__device__ __forceinline__ void send_four(float *p, uint64_t *barrier, int rank, float4 v)
{
    unsigned there, told;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(there)
                 : "r"(shared_at(p)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(told)
                 : "r"(shared_at(barrier)), "r"(rank));
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
        "[%5];" ::"r"(there),
        "r"(__float_as_uint(v.x)), "r"(__float_as_uint(v.y)), "r"(__float_as_uint(v.z)),
        "r"(__float_as_uint(v.w)), "r"(told)
        : "memory");
}

/* Bytes of this block's memory, which may not be written again before block `rank` has them; they
 * were written before a barrier, each thread's behind shown(). */
__device__ __forceinline__ void send_all(float *to, const float *from, uint64_t *barrier, int rank,
                                         int bytes)
{
    unsigned there, told;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(there)
                 : "r"(shared_at(to)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(told)
                 : "r"(shared_at(barrier)), "r"(rank));
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], "
                 "[%1], %2, [%3];" ::"r"(there),
                 "r"(shared_at(from)), "r"(bytes), "r"(told)
                 : "memory");
}

__device__ __forceinline__ void shown()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

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
template <int TOKENS>
__device__ __forceinline__ float4 four_sums(const enter_room<TOKENS> &room, int at)
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

/* The end of the sublayer before (hc_post; of the experts' also expert_sum and add): this block's
 * columns of the streams, into its memory and out. The gates are still those of that sublayer. */
template <int TOKENS>
__device__ __forceinline__ void leave_columns(const enter_args &a, enter_room<TOKENS> &room,
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
#pragma unroll 1
    for (int i = 0; i < count; i++) {
        int64_t token = token0 + i;
        int column = rank * own + t;
        float in = 0, side = 0, x[4], v[LEFT_EXPERTS];
        if (t < own) {
            const float *streams = l.streams + token * 4 * dim + column;
            const float *y = l.y + token * l.k * dim + column;
#pragma unroll
            for (int b = 0; b < 4; b++)
                x[b] = __ldcg(streams + b * dim);
            side = __ldcg((routed ? l.shared : l.block) + token * dim + column);
#pragma unroll
            for (int s = 0; s < LEFT_EXPERTS; s++)
                v[s] = routed && s < l.k ? __ldcg(y + s * dim) : 0.0f;
        }
        if (i == 0)
            sync_workers();
        if (t >= own)
            continue;
        float *out = l.out + token * 4 * dim + column;
        if (routed) {
#pragma unroll
            for (int s = 0; s < LEFT_EXPERTS; s++)
                if (s < l.k)
                    in += room.kept[i][s] != 0 ? v[s] : 0.0f;
            in = maybe_bf16(in + side, a.bf16);
        } else {
            in = side;
        }
#pragma unroll
        for (int b = 0; b < 4; b++) {
            float sum = room.post[i][b] * in;
#pragma unroll
            for (int m = 0; m < 4; m++) /* comb over its first index */
                sum = fmaf(room.comb[i][MUTANT(60) ? b * 4 + m : m * 4 + b], x[m], sum);
            sum = maybe_bf16(sum, a.bf16);
            room.x[i][b * own + t] = sum;
            out[b * dim] = sum;
        }
    }
    sync_workers();
}

/* The extra warp: comb of token `rank`, whose element 4 a + b is lane 4 a + b's. */
template <int TOKENS>
__device__ __forceinline__ float late_gates(const enter_args &a, const enter_room<TOKENS> &room,
                                            int rank, float factor, float base)
{
    enum { SUMS = enter_room<TOKENS>::SUMS };
    /* Lanes 16 and more: the squares. */
    int lane = threadIdx.x % 32;
    float v = of_all(&room.from[0][rank * EACH + (lane < 16 ? 8 + lane : (int)MIXES)], SUMS);
    v = v * scale_of(__shfl_sync(0xffffffffu, v, 16), 4 * (int)a.dim, a.eps) * factor + base;
    float max = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
    float e = expf(v - max), sum = e + __shfl_xor_sync(0xffffffffu, e, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    e = __fdiv_rn(e, sum) + a.gates.eps;
    return lane < 16 ? sinkhorn_four(e, a.gates.iters, a.gates.eps) : 0.0f;
}
#endif

template <int TOKENS>
static __global__ void __launch_bounds__((ENTER_WARPS + 1) * 32, 1)
    hc_enter(const __grid_constant__ enter_args a)
{
#if __CUDA_ARCH__ >= 900 && CAN_SEND
    let_next_start();
    enum { WORKERS = ENTER_WARPS * 32, SUMS = enter_room<TOKENS>::SUMS };
    extern __shared__ __align__(16) uint8_t memory[];
    enter_room<TOKENS> &room = *(enter_room<TOKENS> *)(void *)memory;
    int rank = (int)rank_in_cluster(), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int g = lane / 4, t = lane % 4, own = (int)a.dim / TOGETHER, fours = own / 4;
    int64_t token0 = (int64_t)blockIdx.y * a.tokens;
    int tokens = a.n - token0 < a.tokens ? (int)(a.n - token0) : a.tokens;
    if (threadIdx.x == 0) {
        int each = tokens * TOGETHER * (int)sizeof(float);
        expect(&room.sums_came, each * EACH);
        expect(&room.powers_came, each);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    arrive_together();
    if (warp == ENTER_WARPS) {
        bool mine = a.gated && a.gates.comb != NULL && rank < tokens;
        float factor = mine ? __ldg(a.gates.scale + 2) : 0.0f;
        float base = mine ? __ldg(a.gates.base + 8 + lane % 16) : 0.0f;
        wait_together();
        wait_for_previous();
        await(&room.sums_came);
        if (!mine)
            return;
        float comb = late_gates(a, room, rank, factor, base);
        if (lane < 16)
            a.gates.comb[(token0 + rank) * 16 + lane] = comb;
        return;
    }
    /* Unit u of four columns: stream u / fours, columns 4 (u % fours) of this block's. */
    const float4 zero = make_float4(0, 0, 0, 0);
    float4 w[ENTER_STEPS][3]; /* rows g, g + 8, g + 16 */
#pragma unroll
    for (int k = 0; k < ENTER_STEPS; k++) {
        int u = (warp * ENTER_STEPS + k) * 4 + t;
        const float *from = a.fn + u / fours * a.dim + rank * own + u % fours * 4;
#pragma unroll
        for (int m = 0; m < 3; m++)
            w[k][m] = u < 4 * fours && g + 8 * m < a.rows
                          ? __ldg((const float4 *)(const void *)(from + (g + 8 * m) * 4 * a.dim))
                          : zero;
    }
    float weight =
        a.y != NULL && (int)threadIdx.x < own ? __ldg(a.norm + rank * own + threadIdx.x) : 0.0f;
    /* Rows 0 .. 3 of the mixes are pre, the next four post. */
    bool both = a.gated && a.gates.post != NULL;
    int gate = both ? lane % 8 : lane % 4;
    float factor = a.gated ? __ldg(a.gates.scale + gate / 4) : 0.0f;
    float base = a.gated ? __ldg(a.gates.base + gate) : 0.0f;
    auto open = [&](float v) {
        v = sigmoid(v * factor + base);
        return gate < 4 ? v + a.gates.eps : 2.0f * v;
    };
    bool left = a.left.out != NULL;
    int stream = (int)threadIdx.x / fours, column = (int)threadIdx.x % fours * 4;
    wait_together();
    wait_for_previous();
    if (left)
        leave_columns(a, room, rank, token0, tokens);
    else {
#pragma unroll 4
        for (int i = 0; i < tokens; i++)
            if (stream < 4)
                *(float4 *)(void *)&room.x[i][4 * threadIdx.x] = __ldcg(
                    (const float4 *)(const void *)(a.streams + ((token0 + i) * 4 + stream) * a.dim +
                                                   rank * own + column));
        sync_workers();
    }
    /* Squares: of many tokens lane g's are those of tokens g and g + 8, of one it is with the
     * mixes. */
    for (int i = g; TOKENS > 1 && i - g < tokens; i += 8) {
        float squares = 0;
#pragma unroll
        for (int k = 0; k < ENTER_STEPS; k++) {
            int u = (warp * ENTER_STEPS + k) * 4 + t;
            float4 y = zero;
            if (u < 4 * fours && i < tokens)
                y = *(const float4 *)(const void *)&room.x[i][4 * u];
            squares = squared(squares, y);
        }
        squares += __shfl_xor_sync(0xffffffffu, squares, 1);
        squares += __shfl_xor_sync(0xffffffffu, squares, 2);
        if (t == 0 && i < tokens)
            room.part[warp][i * EACH + MIXES] = squares;
    }
#pragma unroll(TOKENS > 1 ? 2 : 1)
    for (int token = 0; token < tokens; token++) {
        float sum[3] = {}, squares = 0;
#pragma unroll
        for (int k = 0; k < ENTER_STEPS; k++) {
            int u = (warp * ENTER_STEPS + k) * 4 + t;
            float4 y = zero;
            if (u < 4 * fours)
                y = *(const float4 *)(const void *)&room.x[token][4 * u];
#pragma unroll
            for (int m = 0; m < 3; m++) {
                sum[m] = fmaf(w[k][m].x, y.x, sum[m]);
                sum[m] = fmaf(w[k][m].y, y.y, sum[m]);
                sum[m] = fmaf(w[k][m].z, y.z, sum[m]);
                sum[m] = fmaf(w[k][m].w, y.w, sum[m]);
            }
            if (TOKENS == 1)
                squares = squared(squares, y);
        }
#pragma unroll
        for (int m = 0; m < 3; m++) {
            sum[m] += __shfl_xor_sync(0xffffffffu, sum[m], 1);
            sum[m] += __shfl_xor_sync(0xffffffffu, sum[m], 2);
            if (t == 0)
                room.part[warp][token * EACH + g + 8 * m] = sum[m];
        }
        if (TOKENS == 1) {
            squares += __shfl_xor_sync(0xffffffffu, squares, 1);
            squares += __shfl_xor_sync(0xffffffffu, squares, 2);
            if (lane == 0)
                room.part[warp][MIXES] = squares;
        }
    }
    sync_workers();
    if (MUTANT(44) && rank == 5) /* others do not wait for a late block */
        __nanosleep(50000);
    if (TOKENS == 1) { /* a thread four sums and a block */
        int four = (int)threadIdx.x / TOGETHER * 4;
        if (four < EACH)
            send_four(&room.from[rank][four], &room.sums_came, threadIdx.x % TOGETHER,
                      four_sums(room, four));
    } else {
        if (MUTANT(67) && warp == 0) /* sums are sent before they are there */
            __nanosleep(20000);
        for (int at = threadIdx.x * 4; at < tokens * EACH; at += WORKERS * 4)
            *(float4 *)(void *)&room.mine[at] = four_sums(room, at);
        shown();
        if (!MUTANT(67))
            sync_workers();
        if (warp == ENTER_WARPS - 1 && lane < TOGETHER) /* of the warps that had least to add */
            send_all(room.from[rank], room.mine, &room.sums_came, lane,
                     tokens * EACH * (int)sizeof(float));
    }
    if (!MUTANT(44))
        await(&room.sums_came);
    float scale = 0, pre = 0;
    if (TOKENS == 1) { /* every warp for itself */
        pre = of_all(&room.from[0][lane < 8 ? gate : (int)MIXES], SUMS);
        scale = scale_of(__shfl_sync(0xffffffffu, pre, 8), 4 * (int)a.dim, a.eps);
        if (a.gated) {
            pre = open(pre * scale);
            if (rank == 0 && threadIdx.x < 4)
                a.gates.pre[token0 * 4 + threadIdx.x] = pre;
            else if (rank == 0 && both && threadIdx.x < 8)
                a.gates.post[token0 * 4 + threadIdx.x - 4] = pre;
        }
    } else {
        if ((int)threadIdx.x < tokens)
            room.scale[threadIdx.x] = scale_of(
                of_all(&room.from[0][threadIdx.x * EACH + MIXES], SUMS), 4 * (int)a.dim, a.eps);
        sync_workers();
        for (int token = threadIdx.x / 8; a.gated && token < tokens; token += WORKERS / 8) {
            float v = open(of_all(&room.from[0][token * EACH + gate], SUMS) * room.scale[token]);
            if (lane % 8 < 4)
                room.pre[token][gate] = v;
            if (rank == 0 && lane % 8 < 4)
                a.gates.pre[(token0 + token) * 4 + gate] = v;
            else if (rank == 0 && both)
                a.gates.post[(token0 + token) * 4 + gate - 4] = v;
        }
        sync_workers();
    }
    bool collapses = a.x != NULL, mine = (int)threadIdx.x < own;
    int64_t at = token0 * a.dim + rank * own + threadIdx.x;
#pragma unroll(TOKENS > 1 ? 2 : 1)
    for (int i = 0; i < tokens; i++) {
        float c = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float f = TOKENS == 1 ? __shfl_sync(0xffffffffu, pre, j) : room.pre[i][j];
            c = mine ? fmaf(f, room.x[i][j * own + threadIdx.x], c) : 0.0f;
        }
        c = maybe_bf16(c, a.bf16);
        if (mine)
            room.x[i][threadIdx.x] = c; /* whose column it was */
        if (mine && collapses)
            a.x[at + i * a.dim] = c;
        float power = warp_sum(c * c);
        if (lane == 0)
            room.sums[warp][i] = power;
    }
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
#pragma unroll(TOKENS > 1 ? 2 : 1)
    for (int i = 0; i < tokens; i++) {
        float last = TOKENS > 1 ? room.norm_scale[i]
                                : scale_of(of_all(&room.powers[0][0], 1), (int)a.dim, a.eps);
        if (mine && a.y != NULL)
            a.y[at + i * a.dim] = maybe_bf16(weight * (room.x[i][threadIdx.x] * last), a.bf16);
    }
    for (int m = threadIdx.x; rank == 0 && a.m != NULL && m < MIXES * tokens; m += WORKERS) {
        int token = m / MIXES, row = m % MIXES;
        float v = of_all(&room.from[0][token * EACH + row], SUMS) *
                  (TOKENS > 1 ? room.scale[token] : scale);
        if (row < a.rows)
            a.m[(token0 + token) * a.rows + row] = v;
    }
    if (MUTANT(44))
        await(&room.sums_came);
#endif
}

/* How many times the device has room for sixteen blocks that see each other. */
template <int TOKENS> static int clusters_of()
{
    static int answer = -1;
    if (answer < 0) {
        cudaLaunchAttribute how = {};
        how.id = cudaLaunchAttributeClusterDimension;
        how.val.clusterDim.x = TOGETHER;
        how.val.clusterDim.y = how.val.clusterDim.z = 1;
        cudaLaunchConfig_t launch = {};
        launch.gridDim = TOGETHER;
        launch.blockDim = (ENTER_WARPS + 1) * 32;
        launch.dynamicSmemBytes = sizeof(enter_room<TOKENS>);
        launch.attrs = &how;
        launch.numAttrs = 1;
        int most = 0;
        bool can =
            CAN_SEND && cu_built_for() >= 900 && sizeof(enter_room<TOKENS>) <= cu_most_shared() &&
            cudaFuncSetAttribute(hc_enter<TOKENS>, cudaFuncAttributeNonPortableClusterSizeAllowed,
                                 1) == cudaSuccess &&
            cudaFuncSetAttribute(hc_enter<TOKENS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (int)sizeof(enter_room<TOKENS>)) == cudaSuccess &&
            cudaOccupancyMaxActiveClusters(&most, hc_enter<TOKENS>, &launch) == cudaSuccess;
        answer = can ? most : 0;
        if (!can)
            cudaGetLastError(); /* a device without them is no error */
    }
    return answer;
}

static int clusters()
{
    int many = clusters_of<MANY>(), one = clusters_of<1>();
    return many < one ? many : one;
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
    if (a.tokens == 1)
        LAUNCH_CLUSTERS("hc_enter", a.n * a.dim, hc_enter<1>, grid, (ENTER_WARPS + 1) * 32,
                        sizeof(enter_room<1>), s, TOGETHER, a);
    else
        LAUNCH_CLUSTERS("hc_enter", a.n * a.dim, hc_enter<MANY>, grid, (ENTER_WARPS + 1) * 32,
                        sizeof(enter_room<MANY>), s, TOGETHER, a);
}

extern "C" bool cu_hc_passes(const cu_tensor *fn, const cu_gates *gates, int k)
{
    return cu_enters(fn, gates) && k <= LEFT_EXPERTS;
}
