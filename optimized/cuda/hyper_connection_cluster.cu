/* hyper_connection_cluster.cu - mHC's mixes, gates, collapse and the norm behind them, with the end
 * of the sublayer before, in one launch of blocks that see each other's memory. */
#include "hyper_connection.cuh"

/* Sixteen blocks that see each other's memory take a sixteenth of the columns each, of up to
 * sixteen tokens; the weights are fetched before the streams are there. Each sends its sums to all
 * the others; all then know the gates, collapse their columns, and need to hear only the sum of
 * squares for the norm. One warp more works out the gates of the expansion meanwhile: in block r
 * those of token r.
 *
 * A launch of one token rehearses: while the kernel before it still runs, it goes through all its
 * steps with some weights in place of what that kernel will give, and writes nothing. The work is
 * short; fetching its instructions, which the weights of a layer have long driven out of every
 * cache, took four times as long.
 *
 * What a block is sent is counted by a barrier of its own as it arrives (st.async): nobody waits
 * for what it sent, and nobody leaves before it has what the others send. That takes nvcc 12.1. */
enum {
    TOGETHER = 16, /* blocks */
    MANY = 16,     /* tokens of these blocks, at most */
    MIXES = 24,
    ENTER_WARPS = 8,
    ENTER_STEPS = 8, /* of 16 columns, a warp */
    AT_ONCE = 4,     /* of these, where registers are short */
    ENTER_MOST = 4096,
    LEFT_EXPERTS = 8
};

#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
#define CAN_SEND 1
#else
#define CAN_SEND 0
#endif

/* Of up to TOKENS tokens. Sums: [mix][token], then the squares. */
template <int TOKENS> struct enter_room {
    enum { SUMS = (MIXES + 1) * TOKENS };
    float x[TOKENS][4][ENTER_MOST / TOGETHER];
    float part[ENTER_WARPS][SUMS];
    float from[TOGETHER][SUMS];     /* sums of each block */
    float powers[TOGETHER][TOKENS]; /* of the collapsed columns, likewise */
    float scale[TOKENS], norm_scale[TOKENS], pre[TOKENS][4], sums[ENTER_WARPS][TOKENS];
    float comb[TOKENS][16], post[TOKENS][4], kept[TOKENS][LEFT_EXPERTS];
    uint64_t sums_came[2], powers_came[2]; /* barriers: of the rehearsal, and of the rest */
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

/* A barrier of the first ENTER_WARPS warps. */
__device__ __forceinline__ void sync_workers()
{
    asm volatile("bar.sync 1, %0;" ::"n"(ENTER_WARPS * 32) : "memory");
}

/* What earlier kernels wrote; or, before they are done, something to rehearse on. */
typedef struct {
    const float *streams, *side, *y, *post, *comb;
    const int32_t *experts;
} enter_sources;

__device__ __forceinline__ enter_sources sources_of(const enter_args &a, bool live)
{
    const cu_left &l = a.left;
    bool left = l.out != NULL;
    enter_sources s;
    s.streams = !live ? a.fn : left ? l.streams : a.streams;
    s.side = !live ? a.fn : l.block != NULL ? l.block : l.shared;
    s.y = live ? l.y : a.fn;
    s.post = live ? a.gates.post : a.fn;
    s.comb = live ? a.gates.comb : a.fn;
    s.experts = live ? l.experts : (const int32_t *)(const void *)a.fn;
    return s;
}

/* The end of the sublayer before (hc_post; of the experts' also expert_sum and add): this block's
 * columns of the streams, into its memory and out. The gates are still those of that sublayer. */
template <int TOKENS>
__device__ __forceinline__ void leave_columns(const enter_args &a, const enter_sources &from,
                                              enter_room<TOKENS> &room, int rank, int64_t token0,
                                              int count, bool live)
{
    const cu_left &l = a.left;
    int t = threadIdx.x, own = (int)a.dim / TOGETHER;
    bool routed = l.block == NULL;
    for (int m = t; m < count * 16; m += ENTER_WARPS * 32)
        room.comb[m / 16][m % 16] = __ldcg(from.comb + token0 * 16 + m);
    if (t < count * 4)
        room.post[t / 4][t % 4] = __ldcg(from.post + token0 * 4 + t);
    if (routed && t < count * LEFT_EXPERTS) {
        int i = t / LEFT_EXPERTS, mine = t % LEFT_EXPERTS;
        const int32_t *experts = from.experts + (token0 + i) * l.k;
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
        int64_t token = token0 + i, column = rank * own + t;
        float in = 0, side = 0, x[4], v[LEFT_EXPERTS];
        if (t < own) {
#pragma unroll
            for (int b = 0; b < 4; b++)
                x[b] = __ldcg(from.streams + (token * 4 + b) * a.dim + column);
            side = __ldcg(from.side + token * a.dim + column);
#pragma unroll
            for (int s = 0; s < LEFT_EXPERTS; s++)
                v[s] =
                    routed && s < l.k ? __ldcg(from.y + (token * l.k + s) * a.dim + column) : 0.0f;
        }
        if (i == 0)
            sync_workers();
        if (t >= own)
            continue;
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
            room.x[i][b][t] = sum;
            if (live)
                l.out[(token * 4 + b) * a.dim + column] = sum;
        }
    }
    sync_workers();
}

/* The extra warp: post and comb of token `rank`. */
template <int TOKENS>
__device__ __forceinline__ void late_gates(const enter_args &a, const enter_room<TOKENS> &room,
                                           int rank, int64_t token, bool live)
{
    enum { SUMS = enter_room<TOKENS>::SUMS };
    int lane = threadIdx.x % 32, row = lane < 16 ? 8 + lane : 4 + lane % 4;
    const cu_gates &g = a.gates;
    float v = of_all(&room.from[0][row * TOKENS + rank], SUMS);
    float scale = root_scale(of_all(&room.from[0][MIXES * TOKENS + rank], SUMS), 4 * a.dim, a.eps);
    v = v * scale * g.scale[lane < 16 ? 2 : 1] + g.base[row];
    if (lane >= 16) {
        v = 2.0f * sigmoid(v);
        if (live && lane < 20)
            g.post[token * 4 + lane - 16] = v;
        return;
    }
    float max = fmaxf(v, __shfl_xor_sync(0xffffu, v, 1));
    max = fmaxf(max, __shfl_xor_sync(0xffffu, max, 2));
    float e = expf(v - max), sum = e + __shfl_xor_sync(0xffffu, e, 1);
    sum += __shfl_xor_sync(0xffffu, sum, 2);
    e = __fdiv_rn(e, sum) + g.eps;
    e = sinkhorn_four(e, g.iters, g.eps);
    if (live)
        g.comb[token * 16 + lane] = e;
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
        for (int round = 0; round < 2; round++) {
            int each = (round == 0 ? 1 : tokens) * TOGETHER * (int)sizeof(float);
            expect(&room.sums_came[round], each * (MIXES + 1));
            expect(&room.powers_came[round], each);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    arrive_together();
    if (warp == ENTER_WARPS) {
        wait_together();
#pragma unroll 1
        for (int round = a.rounds.first; round < a.rounds.end; round++) {
            bool live = round == 1;
            if (live)
                wait_for_previous();
            await(&room.sums_came[round]);
            if (a.gated && a.gates.comb != NULL && rank < tokens)
                late_gates(a, room, rank, token0 + rank, live);
            __syncwarp();
        }
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
    bool left = a.left.out != NULL;
    wait_together();
#pragma unroll 1
    for (int round = a.rounds.first; round < a.rounds.end; round++) {
        bool live = round == 1;
        int count = live ? tokens : 1;
        if (live)
            wait_for_previous();
        enter_sources source = sources_of(a, live);
        int64_t first = live ? token0 : 0;
        if (left)
            leave_columns(a, source, room, rank, first, count, live);
        /* Lane g brings the columns of tokens g and g + 8. */
        for (int i = g; i - g < count; i += 8) {
            float squares = 0;
#pragma unroll 1
            for (int k0 = 0; k0 < ENTER_STEPS; k0 += AT_ONCE) {
                float4 x[AT_ONCE];
#pragma unroll
                for (int k = 0; k < AT_ONCE; k++) {
                    int u = (warp * ENTER_STEPS + k0 + k) * 4 + t;
                    const float *from =
                        source.streams + ((first + i) * 4 + u / fours) * a.dim + rank * own;
                    if (u >= 4 * fours || i >= count)
                        x[k] = zero;
                    else if (left)
                        x[k] = *(const float4 *)(const void *)&room.x[i][u / fours][u % fours * 4];
                    else
                        x[k] = __ldcg((const float4 *)(const void *)(from + u % fours * 4));
                }
#pragma unroll
                for (int k = 0; k < AT_ONCE; k++) {
                    int u = (warp * ENTER_STEPS + k0 + k) * 4 + t;
                    if (u < 4 * fours && i < count && !left)
                        *(float4 *)(void *)&room.x[i][u / fours][u % fours * 4] = x[k];
                    squares = fmaf(x[k].x, x[k].x, squares);
                    squares = fmaf(x[k].y, x[k].y, squares);
                    squares = fmaf(x[k].z, x[k].z, squares);
                    squares = fmaf(x[k].w, x[k].w, squares);
                }
            }
            squares += __shfl_xor_sync(0xffffffffu, squares, 1);
            squares += __shfl_xor_sync(0xffffffffu, squares, 2);
            if (t == 0 && i < count)
                room.part[warp][MIXES * TOKENS + i] = squares;
        }
        __syncwarp();
#pragma unroll(TOKENS > 1 ? 2 : 1)
        for (int token = 0; token < count; token++) {
            float sum[3] = {};
#pragma unroll
            for (int k = 0; k < ENTER_STEPS; k++) {
                int u = (warp * ENTER_STEPS + k) * 4 + t;
                float4 y = zero;
                if (u < 4 * fours)
                    y = *(const float4 *)(const void *)&room.x[token][u / fours][u % fours * 4];
#pragma unroll
                for (int m = 0; m < 3; m++) {
                    sum[m] = fmaf(w[k][m].x, y.x, sum[m]);
                    sum[m] = fmaf(w[k][m].y, y.y, sum[m]);
                    sum[m] = fmaf(w[k][m].z, y.z, sum[m]);
                    sum[m] = fmaf(w[k][m].w, y.w, sum[m]);
                }
            }
#pragma unroll
            for (int m = 0; m < 3; m++) {
                sum[m] += __shfl_xor_sync(0xffffffffu, sum[m], 1);
                sum[m] += __shfl_xor_sync(0xffffffffu, sum[m], 2);
                if (t == 0)
                    room.part[warp][(g + 8 * m) * TOKENS + token] = sum[m];
            }
        }
        sync_workers();
        if (MUTANT(44) && rank == 5) /* others do not wait for a late block */
            __nanosleep(50000);
            /* A thread a sum and four of the blocks. */
#pragma unroll 1
        for (int at = threadIdx.x; at < 4 * SUMS; at += WORKERS) {
            int which = at / 4;
            if (which % TOKENS >= count)
                continue;
            float sum = 0;
#pragma unroll
            for (int k = 0; k < ENTER_WARPS; k++)
                sum += room.part[k][which];
#pragma unroll
            for (int r = 0; r < TOGETHER / 4; r++)
                send(&room.from[rank][which], &room.sums_came[round], at % 4 * (TOGETHER / 4) + r,
                     sum);
        }
        if (!MUTANT(44))
            await(&room.sums_came[round]);
        float scale = 0, pre = 0;
        if (TOKENS == 1) { /* every warp for itself */
            scale = root_scale(of_all(&room.from[0][MIXES], SUMS), 4 * a.dim, a.eps);
            if (a.gated) {
                pre = of_all(&room.from[0][lane % 4], SUMS) * scale;
                pre = sigmoid(pre * a.gates.scale[0] + a.gates.base[lane % 4]) + a.gates.eps;
                if (live && rank == 0 && threadIdx.x < 4)
                    a.gates.pre[first * 4 + threadIdx.x] = pre;
            }
        } else {
            if ((int)threadIdx.x < count)
                room.scale[threadIdx.x] = root_scale(
                    of_all(&room.from[0][MIXES * TOKENS + threadIdx.x], SUMS), 4 * a.dim, a.eps);
            sync_workers();
            for (int at = threadIdx.x; a.gated && at < 4 * TOKENS; at += WORKERS) {
                int row = at / TOKENS, token = at % TOKENS;
                if (token >= count)
                    continue;
                float v = of_all(&room.from[0][at], SUMS) * room.scale[token];
                v = sigmoid(v * a.gates.scale[0] + a.gates.base[row]) + a.gates.eps;
                room.pre[token][row] = v;
                if (rank == 0)
                    a.gates.pre[(token0 + token) * 4 + row] = v;
            }
            sync_workers();
        }
        if (a.x != NULL || !live) {
            int64_t at = first * a.dim + rank * own + threadIdx.x;
            bool mine = (int)threadIdx.x < own;
#pragma unroll(TOKENS > 1 ? 2 : 1)
            for (int i = 0; i < count; i++) {
                float c = 0;
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float gate = TOKENS == 1 ? __shfl_sync(0xffffffffu, pre, j) : room.pre[i][j];
                    c = mine ? fmaf(gate, room.x[i][j][threadIdx.x], c) : 0.0f;
                }
                c = maybe_bf16(c, a.bf16);
                room.x[i][0][threadIdx.x] = c; /* whose column it was */
                if (live && mine)
                    a.x[at + i * a.dim] = c;
                float power = warp_sum(c * c);
                if (lane == 0)
                    room.sums[warp][i] = power;
            }
            if (a.y != NULL || !live) {
                sync_workers();
                for (int u = threadIdx.x; u < TOGETHER * TOKENS; u += WORKERS) {
                    int i = u % TOKENS;
                    float power = 0;
                    if (i >= count)
                        continue;
#pragma unroll
                    for (int k = 0; k < ENTER_WARPS; k++)
                        power += room.sums[k][i];
                    send(&room.powers[rank][i], &room.powers_came[round], u / TOKENS, power);
                }
                await(&room.powers_came[round]);
                if (TOKENS > 1) {
                    if ((int)threadIdx.x < count)
                        room.norm_scale[threadIdx.x] =
                            root_scale(of_all(&room.powers[0][threadIdx.x], TOKENS), a.dim, a.eps);
                    sync_workers();
                }
#pragma unroll(TOKENS > 1 ? 2 : 1)
                for (int i = 0; i < count; i++) {
                    float last = TOKENS > 1
                                     ? room.norm_scale[i]
                                     : root_scale(of_all(&room.powers[0][0], 1), a.dim, a.eps);
                    if (live && mine)
                        a.y[at + i * a.dim] =
                            maybe_bf16(weight * (room.x[i][0][threadIdx.x] * last), a.bf16);
                }
            }
        }
        for (int at = threadIdx.x; rank == 0 && a.m != NULL && at < a.rows * TOKENS;
             at += WORKERS) {
            int token = at % TOKENS;
            float v = of_all(&room.from[0][at], SUMS) * (TOKENS > 1 ? room.scale[token] : scale);
            if (live && token < count)
                a.m[(first + token) * a.rows + at / TOKENS] = v;
        }
        if (MUTANT(44))
            await(&room.sums_came[round]);
        sync_workers(); /* the next round writes where this one read */
    }
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
            CAN_SEND && cu_built_for() >= 900 &&
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
    /* What stands in for the streams and the experts' results is inside. */
    a.rounds = rounds_of(a.tokens == 1 && a.rows >= 4 && a.left.k <= LEFT_EXPERTS);
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
