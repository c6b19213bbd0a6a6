/* hyper_connection.cu - mHC: the mixes of the streams, their gates with Sinkhorn's normalisation,
 * collapse and expansion. */
#include "hyper_connection.cuh"

enum { SLICE = 256, MIX_WARPS = 8, AHEAD = 3 };

/* ---- gates ---------------------------------------------------------------------------------- */

/* One token's gates, by the first hc * hc threads of the block at least; `room` holds 256 floats.
 * Every thread of the block must come. */
__device__ void gates_of(const float *m, const cu_gates *g, int64_t i, float *room)
{
    int hc = g->hc, t = threadIdx.x, a = t / hc, b = t % hc;
    bool mine = t < hc * hc;
    float *v = room;
    if (hc == 4) {
        if (t < 32)
            four_gates(t < 24 ? m[mix_of_lane()] : 0.0f, gate_of_lane(*g, 24), *g, i);
        return;
    }
    if (t < hc) {
        g->pre[i * hc + t] = sigmoid(m[t] * g->scale[0] + g->base[t]) + g->eps;
        g->post[i * hc + t] = 2.0f * sigmoid(m[hc + t] * g->scale[1] + g->base[hc + t]);
    }
    float x = mine ? m[2 * hc + t] * g->scale[2] + g->base[2 * hc + t] : 0;
    if (mine)
        v[t] = x;
    __syncthreads();
    if (mine) {
        float max = v[a * hc], sum = 0;
        for (int k = 1; k < hc; k++)
            max = v[a * hc + k] > max ? v[a * hc + k] : max;
        for (int k = 0; k < hc; k++)
            sum += expf(v[a * hc + k] - max);
        x = __fdiv_rn(expf(x - max), sum) + g->eps;
    }
    for (int pass = 0; pass < g->iters; pass++) {
        for (int side = pass > 0 ? 0 : 1; side < 2; side++) { /* rows, then columns */
            __syncthreads();
            if (mine)
                v[t] = x;
            __syncthreads();
            if (mine) {
                float sum = 0;
                for (int k = 0; k < hc; k++)
                    sum += side == 0 ? v[a * hc + k] : v[k * hc + b];
                x = __fdiv_rn(x, sum + g->eps);
            }
        }
        if (MUTANT(8) && pass == 17) /* two passes of Sinkhorn short */
            break;
    }
    __syncthreads();
    if (mine)
        g->comb[i * hc * hc + t] = x;
}

static __global__ void hc_gates(const float *m, cu_gates g)
{
    begin();
    __shared__ float room[256];
    gates_of(m + (int64_t)blockIdx.x * (2 + g.hc) * g.hc, &g, blockIdx.x, room);
}

static unsigned gate_threads(int hc)
{
    return (unsigned)(hc * hc + 31) / 32 * 32;
}

extern "C" void cu_hc_gates(cu_stream s, const float *m, int64_t n, const cu_gates *g)
{
    if (n > 0)
        LAUNCH("hc_gates", n, hc_gates, (unsigned)n, gate_threads(g->hc), 0, s, m, *g);
}

static __global__ void hc_head_gates(const float *m, const float *scale, const float *base,
                                     int64_t n, int hc, float eps, float *pre)
{
    begin();
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at < n * hc)
        pre[at] = sigmoid(m[at] * scale[0] + base[at % hc]) + eps;
}

extern "C" void cu_hc_head_gates(cu_stream s, const float *m, const float *scale, const float *base,
                                 int64_t n, int hc, float eps, float *pre)
{
    if (n > 0)
        LAUNCH("hc_head_gates", n, hc_head_gates, cu_blocks(n * hc, 64), 64, 0, s, m, scale, base,
               n, hc, eps, pre);
}

/* ---- mixes ---------------------------------------------------------------------------------- */

/* A block takes SLICE columns of one token; the block that finishes last adds the slices up, in
 * their order, whichever block it is. */
static __global__ void hc_mix(cu_tensor fn, const float *streams, float eps, float *m,
                              float *scratch, uint32_t *tickets, cu_gates g, bool gated,
                              const uint64_t *iq2)
{
    begin();
    __shared__ float x[SLICE], room[256], sums[32];
    __shared__ uint32_t ticket;
    int64_t token = blockIdx.y, width = fn.cols, first = (int64_t)blockIdx.x * SLICE;
    int rows = (int)fn.rows, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t left = width - first;
    float v = threadIdx.x < left ? streams[token * width + first + threadIdx.x] : 0;
    float *mine = scratch + (token * gridDim.x + blockIdx.x) * (rows + 1), squares;
    if (fn.type == DSV4_F32 && left >= SLICE && rows <= AHEAD * MIX_WARPS) {
        /* The usual case: the weights are on their way before the streams have come. */
        float w[AHEAD][SLICE / 32];
#pragma unroll
        for (int r = 0; r < AHEAD; r++)
#pragma unroll
            for (int k = 0; k < SLICE / 32; k++) {
                int row = warp + r * MIX_WARPS;
                const float *from =
                    (const float *)(const void *)(fn.data + (size_t)row * fn.row_bytes);
                w[r][k] = row < rows ? __ldg(from + first + lane + 32 * k) : 0.0f;
            }
        x[threadIdx.x] = v;
        squares = block_sum(v * v, sums); /* its barriers publish x too */
#pragma unroll
        for (int r = 0; r < AHEAD; r++) {
            float sum = 0;
#pragma unroll
            for (int k = 0; k < SLICE / 32; k++)
                sum = fmaf(w[r][k], x[lane + 32 * k], sum);
            sum = warp_sum(sum);
            if (lane == 0 && warp + r * MIX_WARPS < rows)
                mine[warp + r * MIX_WARPS] = sum;
        }
    } else {
        x[threadIdx.x] = v;
        squares = block_sum(v * v, sums);
        for (int r = warp; r < rows; r += MIX_WARPS) {
            float sum = 0;
            for (int k = lane; k < SLICE; k += 32)
                sum = k < left ? fmaf(cu_value(&fn, r, first + k, iq2), x[k], sum) : sum;
            sum = warp_sum(sum);
            if (lane == 0)
                mine[r] = sum;
        }
    }
    if (threadIdx.x == 0)
        mine[rows] = squares;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        ticket = atomicAdd(&tickets[token], 1u);
    __syncthreads();
    if (ticket != gridDim.x - 1)
        return;
    __threadfence();
    const float *all = scratch + token * gridDim.x * (rows + 1);
    int slices = (int)gridDim.x - (MUTANT(9) && gridDim.x > 1 ? 1 : 0); /* the last slice lost */
    float *result = m + token * rows;
    float scale = 0;
    /* The squares first: every warp adds them the same way. */
    {
        float sum = 0;
#pragma unroll 4
        for (int k = lane; k < slices; k += 32)
            sum += __ldcg(&all[(int64_t)k * (rows + 1) + rows]);
        scale = root_scale(warp_sum(sum), width, eps);
    }
    for (int r = warp; r < rows; r += MIX_WARPS) {
        float sum = 0;
#pragma unroll 4
        for (int k = lane; k < slices; k += 32)
            sum += __ldcg(&all[(int64_t)k * (rows + 1) + r]);
        sum = warp_sum(sum);
        if (lane == 0)
            result[r] = sum * scale;
    }
    if (threadIdx.x == 0)
        tickets[token] = 0;
    if (gated) {
        __syncthreads();
        gates_of(result, &g, token, room);
    }
}

/* ---- mixes, gates, collapse, norm together --------------------------------------------------- */

extern "C" void cu_book(const char *what, int64_t size, const char *why); /* device.c */

extern "C" int64_t cu_hc_mix_scratch(int64_t rows, int64_t width, int64_t n)
{
    return n * ((width + SLICE - 1) / SLICE) * (rows + 1);
}

extern "C" const uint64_t *cu_iq2_book_device(void); /* device.c */

extern "C" void cu_hc_mix(cu_stream s, const cu_tensor *fn, const float *streams, float eps,
                          int64_t n, float *m, float *scratch, uint32_t *tickets,
                          const cu_gates *gates)
{
    dim3 grid(cu_blocks(fn->cols, SLICE), (unsigned)n);
    cu_gates none = {};
    if (cu_enters(fn, gates)) {
        enter_args a = {};
        a.fn = (const float *)(const void *)fn->data;
        a.streams = streams;
        a.n = n;
        a.dim = fn->cols / 4;
        a.rows = (int)fn->rows;
        a.eps = eps;
        a.gated = gates != NULL;
        a.gates = gates != NULL ? *gates : none;
        a.m = m;
        cu_enter(s, &a);
        return;
    }
    if (n > 0)
        LAUNCH("hc_mix", n * fn->cols, hc_mix, grid, SLICE, 0, s, *fn, streams, eps, m, scratch,
               tickets, gates != NULL ? *gates : none, gates != NULL, cu_iq2_book_device());
}

extern "C" void cu_hc_enter(cu_stream s, const cu_tensor *fn, const float *streams, float eps,
                            int64_t n, float *m, float *scratch, uint32_t *tickets,
                            const cu_gates *gates, const float *norm, float *x, float *y, bool bf16,
                            const cu_left *left, cu_later *later)
{
    bool head = gates->comb == NULL, leaves = n == 1 && y != NULL && (head || later != NULL);
    if (later != NULL)
        later->m = NULL;
    if (!cu_enters(fn, gates)) {
        int64_t dim = fn->cols / gates->hc;
        if (left != NULL)
            cu_book("hc_enter", fn->cols, "asked for what it does not take");
        cu_hc_mix(s, fn, streams, eps, n, m, scratch, tickets, head ? NULL : gates);
        if (head)
            cu_hc_head_gates(s, m, gates->scale, gates->base, n, gates->hc, gates->eps, gates->pre);
        cu_hc_collapse(s, streams, gates->pre, n, gates->hc, dim, x, bf16);
        if (y != NULL)
            cu_rmsnorm(s, x, norm, eps, n, dim, y, bf16);
        return;
    }
    enter_args a = {};
    a.fn = (const float *)(const void *)fn->data;
    a.streams = streams;
    a.norm = norm;
    a.n = n;
    a.dim = fn->cols / 4;
    a.rows = (int)fn->rows;
    a.eps = eps;
    a.gated = true;
    a.bf16 = bf16;
    a.gates = *gates;
    a.m = m;
    a.x = x;
    a.y = y;
    a.later = leaves;
    if (left != NULL)
        a.left = *left;
    if (leaves && !head)
        *later = (cu_later){m, *gates, false};
    cu_enter(s, &a);
}

/* ---- collapse, expansion -------------------------------------------------------------------- */

static __global__ void hc_collapse(const float *streams, const float *pre, int hc, int64_t dim,
                                   float *x, bool bf16)
{
    begin();
    int64_t i = blockIdx.y, k = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    float sum = 0;
    if (k >= dim)
        return;
    for (int j = 0; j < hc; j++)
        sum = fmaf(pre[i * hc + j], streams[(i * hc + j) * dim + k], sum);
    x[i * dim + k] = maybe_bf16(sum, bf16);
}

extern "C" void cu_hc_collapse(cu_stream s, const float *streams, const float *pre, int64_t n,
                               int hc, int64_t dim, float *x, bool bf16)
{
    dim3 grid(cu_blocks(dim, 128), (unsigned)n);
    if (n > 0)
        LAUNCH("hc_collapse", n * dim, hc_collapse, grid, 128, 0, s, streams, pre, hc, dim, x,
               bf16);
}

static __global__ void hc_post(const float *block, const float *streams, const float *post,
                               const float *comb, int hc, int64_t dim, float *out, bool bf16)
{
    begin();
    __shared__ float c[CU_MOST_HC * CU_MOST_HC], p[CU_MOST_HC];
    int64_t i = blockIdx.y, k = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (int t = threadIdx.x; t < hc * hc; t += blockDim.x)
        c[t] = comb[i * hc * hc + t];
    if (threadIdx.x < hc)
        p[threadIdx.x] = post[i * hc + threadIdx.x];
    __syncthreads();
    if (k >= dim)
        return;
    float in = block[i * dim + k];
    for (int b = 0; b < hc; b++) {
        float sum = p[b] * in;
        for (int a = 0; a < hc; a++) /* comb over its first index */
            sum =
                fmaf(c[MUTANT(10) ? b * hc + a : a * hc + b], streams[(i * hc + a) * dim + k], sum);
        out[(i * hc + b) * dim + k] = maybe_bf16(sum, bf16);
    }
}

/* The same for four streams, four columns a thread; the gates are not held by each, so that blocks
 * fit beside those of other kernels. */
static __global__ void __launch_bounds__(128, 12)
    hc_post_four(const float *block, const float *streams, const float *post, const float *comb,
                 int64_t dim, float *out, bool bf16)
{
    begin();
    __shared__ __align__(16) float gates[20]; /* comb, post */
    int64_t i = blockIdx.y, k = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x);
    bool mine = k < dim;
    float4 in = {}, x[4] = {};
    if (mine) {
        in = __ldcg((const float4 *)(const void *)(block + i * dim + k));
#pragma unroll
        for (int a = 0; a < 4; a++)
            x[a] = __ldcg((const float4 *)(const void *)(streams + (i * 4 + a) * dim + k));
    }
    if (threadIdx.x < 20)
        gates[threadIdx.x] = __ldcg(threadIdx.x < 16 ? comb + i * 16 + threadIdx.x
                                                     : post + i * 4 + threadIdx.x - 16);
    __syncthreads();
    if (!mine)
        return;
    out += i * 4 * dim + k;
#pragma unroll
    for (int b = 0; b < 4; b++) {
        float p = gates[16 + b];
        float4 sum = make_float4(p * in.x, p * in.y, p * in.z, p * in.w);
#pragma unroll
        for (int a = 0; a < 4; a++) { /* comb over its first index */
            float f = gates[MUTANT(10) ? b * 4 + a : a * 4 + b];
            sum.x = fmaf(f, x[a].x, sum.x);
            sum.y = fmaf(f, x[a].y, sum.y);
            sum.z = fmaf(f, x[a].z, sum.z);
            sum.w = fmaf(f, x[a].w, sum.w);
        }
        sum = make_float4(maybe_bf16(sum.x, bf16), maybe_bf16(sum.y, bf16), maybe_bf16(sum.z, bf16),
                          maybe_bf16(sum.w, bf16));
        *(float4 *)(void *)(out + b * dim) = sum;
    }
}

extern "C" void cu_hc_post(cu_stream s, const float *block, const float *streams, const float *post,
                           const float *comb, int64_t n, int hc, int64_t dim, float *out, bool bf16)
{
    unsigned threads = n < 8 ? 32 : 128; /* few tokens: more blocks */
    dim3 grid(cu_blocks(dim, 128), (unsigned)n), four(cu_blocks(dim, 4 * threads), (unsigned)n);
    uintptr_t all =
        (uintptr_t)block | (uintptr_t)streams | (uintptr_t)post | (uintptr_t)comb | (uintptr_t)out;
    if (n > 0 && hc == 4 && dim % 4 == 0 && all % 16 == 0)
        LAUNCH("hc_post", n * hc * dim, hc_post_four, four, threads, 0, s, block, streams, post,
               comb, dim, out, bf16);
    else if (n > 0)
        LAUNCH("hc_post", n * hc * dim, hc_post, grid, 128, 0, s, block, streams, post, comb, hc,
               dim, out, bf16);
}
