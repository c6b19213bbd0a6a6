/* hyper_connection_cluster.cu - mHC's mixes, gates, collapse and the norm behind them, with the end
 * of the sublayer before, in one launch of blocks that see each other's memory. */
#include "hyper_connection.cuh"

/* Sixteen blocks that see each other's memory take a sixteenth of the columns each, of up to
 * sixteen tokens; the weights are fetched before the streams are there. Each sends its sums to all
 * the others; all then know the gates, collapse their columns, and need to hear only the sum of
 * squares for the norm. One warp more works out the gates of the expansion meanwhile: in block r
 * those of token r. */
enum {
    TOGETHER = 16, /* blocks */
    TOKENS = 16,   /* of these blocks, at most */
    MIXES = 24,
    ENTER_WARPS = 8,
    ENTER_STEPS = 8, /* of 16 columns, a warp */
    ENTER_MOST = 4096,
    LEFT_EXPERTS = 8
};

enum { SUMS = (MIXES + 1) * TOKENS }; /* [mix][token], then the squares */

typedef struct {
    float x[TOKENS][4][ENTER_MOST / TOGETHER];
    float part[ENTER_WARPS][SUMS];
    float from[TOGETHER][SUMS];     /* sums of each block */
    float powers[TOGETHER][TOKENS]; /* of the collapsed columns, likewise */
    float scale[TOKENS], pre[TOKENS][4], sums[ENTER_WARPS][TOKENS];
    float comb[TOKENS][16], post[TOKENS][4], kept[TOKENS][LEFT_EXPERTS];
} enter_room;

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ unsigned rank_in_cluster()
{
    unsigned r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}

__device__ __forceinline__ void arrive_together()
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void wait_together()
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* The first of these barriers, at which nothing is handed over yet: this block runs. Until all do,
 * none may write into another's memory. */
__device__ __forceinline__ void arrive_first()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

/* v into the same place of block `rank`'s memory. */
__device__ __forceinline__ void to_block(float *p, int rank, float v)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(p), there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(there), "f"(v) : "memory");
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

/* The end of the sublayer before (hc_post; of the experts' also expert_sum and add): this block's
 * columns of the streams, into its memory and out. The gates are still those of that sublayer. */
__device__ __forceinline__ void leave_columns(const enter_args &a, enter_room &room, int rank,
                                              int64_t token0, int count)
{
    const cu_left &l = a.left;
    int t = threadIdx.x, own = (int)a.dim / TOGETHER;
    for (int m = t; m < count * 16; m += ENTER_WARPS * 32)
        room.comb[m / 16][m % 16] = a.gates.comb[token0 * 16 + m];
    if (t < count * 4)
        room.post[t / 4][t % 4] = a.gates.post[token0 * 4 + t];
    if (l.block == NULL && t < count * LEFT_EXPERTS) {
        int i = t / LEFT_EXPERTS, mine = t % LEFT_EXPERTS, s = 0;
        const int32_t *experts = l.experts + (token0 + i) * l.k;
        while (mine < l.k && experts[s] != experts[mine]) /* its weight is at its first place */
            s++;
        room.kept[i][mine] = s == mine;
    }
    for (int i = 0; i < count; i++) {
        int64_t token = token0 + i, column = rank * own + t;
        float in = 0, side = 0, x[4], v[LEFT_EXPERTS];
        if (t < own) {
            const float *from = l.streams + token * 4 * a.dim + column;
#pragma unroll
            for (int b = 0; b < 4; b++)
                x[b] = __ldcg(from + b * a.dim);
            side = __ldcg((l.block != NULL ? l.block : l.shared) + token * a.dim + column);
#pragma unroll
            for (int s = 0; s < LEFT_EXPERTS; s++)
                v[s] = l.block == NULL && s < l.k ? __ldcg(l.y + (token * l.k + s) * a.dim + column)
                                                  : 0.0f;
        }
        if (i == 0)
            sync_workers();
        if (t >= own)
            continue;
        if (l.block == NULL) {
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
            l.out[(token * 4 + b) * a.dim + column] = sum;
        }
    }
    sync_workers();
}

/* The extra warp: post and comb of token `rank`. */
__device__ __forceinline__ void late_gates(const enter_args &a, const enter_room &room, int rank,
                                           int64_t token)
{
    int lane = threadIdx.x % 32, row = lane < 16 ? 8 + lane : 4 + lane % 4;
    const cu_gates &g = a.gates;
    float scale = root_scale(of_all(&room.from[0][MIXES * TOKENS + rank], SUMS), 4 * a.dim, a.eps);
    float v = of_all(&room.from[0][row * TOKENS + rank], SUMS) * scale;
    v = v * g.scale[lane < 16 ? 2 : 1] + g.base[row];
    if (lane >= 16 && lane < 20)
        g.post[token * 4 + lane - 16] = 2.0f * sigmoid(v);
    if (lane >= 16)
        return;
    float max = fmaxf(v, __shfl_xor_sync(0xffffu, v, 1));
    max = fmaxf(max, __shfl_xor_sync(0xffffu, max, 2));
    float e = expf(v - max), sum = e + __shfl_xor_sync(0xffffu, e, 1);
    sum += __shfl_xor_sync(0xffffu, sum, 2);
    e = __fdiv_rn(e, sum) + g.eps;
    g.comb[token * 16 + lane] = sinkhorn_four(e, g.iters, g.eps);
}
#endif

static __global__ void __launch_bounds__((ENTER_WARPS + 1) * 32, 1)
    hc_enter(const __grid_constant__ enter_args a)
{
#if __CUDA_ARCH__ >= 900
    arrive_first();
    let_next_start();
    extern __shared__ __align__(16) uint8_t memory[];
    enter_room &room = *(enter_room *)(void *)memory;
    int rank = (int)rank_in_cluster(), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int g = lane / 4, t = lane % 4, own = (int)a.dim / TOGETHER, fours = own / 4;
    int64_t token0 = (int64_t)blockIdx.y * a.tokens;
    int count = a.n - token0 < a.tokens ? (int)(a.n - token0) : a.tokens;
    if (warp == ENTER_WARPS) {
        wait_for_previous();
        wait_together(); /* arrive_first's */
        arrive_together();
        wait_together();
        bool mine = a.gated && rank < count;
        if (a.y != NULL)
            arrive_together();
        if (mine)
            late_gates(a, room, rank, token0 + rank);
        __syncwarp();
        if (a.y != NULL)
            wait_together();
        arrive_together();
        wait_together();
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
    wait_for_previous();
    bool left = a.left.out != NULL;
    if (left)
        leave_columns(a, room, rank, token0, count);
    /* Lane g brings the columns of tokens g and g + 8. */
    for (int i = g; i - g < count; i += 8) {
        float4 x[ENTER_STEPS];
        float squares = 0;
#pragma unroll
        for (int k = 0; k < ENTER_STEPS; k++) {
            int u = (warp * ENTER_STEPS + k) * 4 + t;
            const float *from =
                a.streams + ((token0 + i) * 4 + u / fours) * a.dim + rank * own + u % fours * 4;
            if (u >= 4 * fours || i >= count)
                x[k] = zero;
            else if (left)
                x[k] = *(const float4 *)(const void *)&room.x[i][u / fours][u % fours * 4];
            else
                x[k] = __ldcg((const float4 *)(const void *)from);
        }
#pragma unroll
        for (int k = 0; k < ENTER_STEPS; k++) {
            int u = (warp * ENTER_STEPS + k) * 4 + t;
            if (u < 4 * fours && i < count)
                *(float4 *)(void *)&room.x[i][u / fours][u % fours * 4] = x[k];
            squares = fmaf(x[k].x, x[k].x, squares);
            squares = fmaf(x[k].y, x[k].y, squares);
            squares = fmaf(x[k].z, x[k].z, squares);
            squares = fmaf(x[k].w, x[k].w, squares);
        }
        squares += __shfl_xor_sync(0xffffffffu, squares, 1);
        squares += __shfl_xor_sync(0xffffffffu, squares, 2);
        if (t == 0)
            room.part[warp][MIXES * TOKENS + i] = squares;
    }
    __syncwarp();
#pragma unroll 2
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
    wait_together(); /* arrive_first's, long ago: all blocks run, and may be sent to */
    enum { WORKERS = ENTER_WARPS * 32 };
    if (MUTANT(44) && rank == 5) /* others do not wait for a late block */
        __nanosleep(50000);
    for (int at = threadIdx.x; at < SUMS; at += WORKERS) {
        if (at % TOKENS >= count)
            continue;
        float sum = 0;
#pragma unroll
        for (int k = 0; k < ENTER_WARPS; k++)
            sum += room.part[k][at];
#pragma unroll
        for (int r = 0; r < TOGETHER; r++)
            to_block(&room.from[rank][at], r, sum);
    }
    __syncwarp();
    arrive_together();
    if (!MUTANT(44))
        wait_together();
    if ((int)threadIdx.x < count)
        room.scale[threadIdx.x] =
            root_scale(of_all(&room.from[0][MIXES * TOKENS + threadIdx.x], SUMS), 4 * a.dim, a.eps);
    sync_workers();
    for (int at = threadIdx.x; at < a.rows * TOKENS; at += WORKERS) {
        int row = at / TOKENS, token = at % TOKENS;
        bool first = rank == 0 && a.m != NULL, gate = a.gated && row < 4;
        if (token >= count || (!first && !gate))
            continue;
        float v = of_all(&room.from[0][at], SUMS) * room.scale[token];
        if (first)
            a.m[(token0 + token) * a.rows + row] = v;
        if (gate) {
            v = sigmoid(v * a.gates.scale[0] + a.gates.base[row]) + a.gates.eps;
            room.pre[token][row] = v;
            if (rank == 0)
                a.gates.pre[(token0 + token) * 4 + row] = v;
        }
    }
    if (MUTANT(44))
        wait_together();
    if (a.x == NULL) {
        __syncwarp();
        arrive_together();
        wait_together(); /* nobody leaves while another may still send here */
        return;
    }
    sync_workers();
    float c[TOKENS];
    int64_t at = token0 * a.dim + rank * own + threadIdx.x;
#pragma unroll
    for (int i = 0; i < TOKENS; i++) {
        c[i] = 0;
        if (i >= count)
            break;
        if ((int)threadIdx.x < own) {
#pragma unroll
            for (int j = 0; j < 4; j++)
                c[i] = fmaf(room.pre[i][j], room.x[i][j][threadIdx.x], c[i]);
            c[i] = maybe_bf16(c[i], a.bf16);
            a.x[at + i * a.dim] = c[i];
        }
        float power = warp_sum(c[i] * c[i]);
        if (lane == 0)
            room.sums[warp][i] = power;
    }
    if (a.y != NULL) {
        float weight = (int)threadIdx.x < own ? __ldg(a.norm + rank * own + threadIdx.x) : 0.0f;
        sync_workers();
        for (int u = threadIdx.x; u < TOGETHER * TOKENS; u += WORKERS) {
            int i = u % TOKENS;
            float power = 0;
            for (int k = 0; k < ENTER_WARPS; k++)
                power += i < count ? room.sums[k][i] : 0.0f;
            to_block(&room.powers[rank][i], u / TOKENS, power);
        }
        __syncwarp();
        arrive_together();
        wait_together();
        if ((int)threadIdx.x < count)
            room.scale[threadIdx.x] =
                root_scale(of_all(&room.powers[0][threadIdx.x], TOKENS), a.dim, a.eps);
        sync_workers();
#pragma unroll
        for (int i = 0; i < TOKENS; i++)
            if (i < count && (int)threadIdx.x < own)
                a.y[at + i * a.dim] = maybe_bf16(weight * (c[i] * room.scale[i]), a.bf16);
    }
    __syncwarp();
    arrive_together();
    wait_together(); /* nobody leaves while another may still send here */
#endif
}

/* How many times the device has room for sixteen blocks that see each other. */
static int clusters()
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
        launch.dynamicSmemBytes = sizeof(enter_room);
        launch.attrs = &how;
        launch.numAttrs = 1;
        int most = 0;
        bool can = cu_built_for() >= 900 && sizeof(enter_room) <= cu_most_shared() &&
                   cudaFuncSetAttribute(hc_enter, cudaFuncAttributeNonPortableClusterSizeAllowed,
                                        1) == cudaSuccess &&
                   cudaFuncSetAttribute(hc_enter, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        (int)sizeof(enter_room)) == cudaSuccess &&
                   cudaOccupancyMaxActiveClusters(&most, hc_enter, &launch) == cudaSuccess;
        answer = can ? most : 0;
        if (!can)
            cudaGetLastError(); /* a device without them is no error */
    }
    return answer;
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
    a.tokens = (int)(each < TOKENS ? each : (int64_t)TOKENS);
    if (a.n <= 0)
        return;
    dim3 grid(TOGETHER, cu_blocks(a.n, a.tokens));
    LAUNCH_CLUSTERS("hc_enter", a.n * a.dim, hc_enter, grid, (ENTER_WARPS + 1) * 32,
                    sizeof(enter_room), s, TOGETHER, a);
}

extern "C" bool cu_hc_passes(const cu_tensor *fn, const cu_gates *gates, int k)
{
    return cu_enters(fn, gates) && k <= LEFT_EXPERTS;
}
