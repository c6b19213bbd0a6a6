/* linear.cu - matrices in their storage format times float32 vectors, decoded on the fly: blocks
 * stream rows past the vectors of one or of four tokens in shared memory, on the tensor cores
 * (stream.cuh; stream_ints.cuh in whole numbers) or, for float32 and float16 weights, lane by lane
 * (dot.cuh); shapes that no unit fits go element by element. A token's sums are formed in the same
 * order whatever comes with it: cut a text as you like, the numbers are the same. Only what is
 * multiplied in whole numbers (takes_ints) has another order where tokens are many (gemm.cu). */
#if CUDART_VERSION >= 12050
#include <cuda.h>
#endif

#include "dot.cuh"

extern "C" const uint64_t *cu_iq2_book_device(void); /* device.c */
extern "C" const cu_iq2_tables *cu_iq2_tables_device(void);
extern "C" void cu_book(const char *what, int64_t size, const char *why);

extern "C" bool cu_type_native(int type)
{
    switch (type) {
    case DSV4_F32:
    case DSV4_F16:
    case DSV4_BF16:
    case DSV4_FP8:
    case DSV4_FP4:
    case DSV4_MXFP4:
    case DSV4_Q8_0:
    case DSV4_Q4_K:
    case DSV4_Q2_K:
    case DSV4_IQ2_XXS:
        return true;
    default:
        return false;
    }
}

/* Warps of a block: of one token, of one with a long vector, of several. */
enum { MANY = 16, FEW = 8 };

/* Bytes that a block may ask for at its launch, beside what it has without asking. */
static size_t most_shared()
{
    return cu_most_shared() - 1024;
}

/* Two blocks on a multiprocessor: what one may have, and what only one can have; the system takes
 * 1 KB of each. 0: blocks have less. */
static size_t large_shared()
{
    static int all = -1;
    if (all < 0 &&
        cudaDeviceGetAttribute(&all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, 0) != cudaSuccess)
        all = 0;
    size_t large = (size_t)all / 2 + 512;
    return large <= most_shared() ? large : 0;
}

static size_t half_shared()
{
    size_t large = large_shared(), reserve = 5 * 1024 + 512;
    return large > reserve ? large - reserve : 0;
}

static bool is_float(int type)
{
    return type == DSV4_F32 || type == DSV4_F16;
}

static size_t shared_bytes(const cu_tensor *w, int warps, gemv_plan plan, int tokens)
{
    gemv_room r;
    if (is_float(w->type))
        return (size_t)tokens * (size_t)AT(w->cols) * sizeof(float);
    return lay_out(w, warps, plan, tokens, unit_bytes(w->type, plan.ints, tokens), NULL, &r);
}

/* What needs least: few sums meet where many warps share a tile. */
static gemv_plan tightest(bool ints)
{
    return {8, SHALLOW, FEW_COPIES, ints, 0, false, false};
}

/* In whole numbers: formats that many tokens multiply in another order than few do in any case;
 * those with factors of blocks only where whole chunks are multiplied and the caller does not want
 * one order (cu_segment). A matter of the matrix and the caller, not of who comes along. */
static bool takes_ints(const cu_tensor *w, bool one_order)
{
    switch (w->type) {
    case DSV4_Q4_K:
    case DSV4_Q2_K:
    case DSV4_IQ2_XXS:
        return true;
    case DSV4_Q8_0:
    case DSV4_MXFP4:
    case DSV4_FP4:
        return !one_order && w->cols % CU_CHUNK == 0 && w->row_bytes % 4 == 0 &&
               (uintptr_t)w->data % 4 == 0 && w->scale_row_bytes % 4 == 0 &&
               shared_bytes(w, FEW, tightest(true), 1) <= most_shared();
    default:
        return false;
    }
}

/* Can rows of the type be streamed from here? */
static bool streams(const cu_tensor *w)
{
    int64_t step = 32, align = 1;
    switch (w->type) {
    case DSV4_F32:
        step = 4, align = 16;
        break;
    case DSV4_F16:
        step = 8, align = 16;
        break;
    case DSV4_BF16:
        align = 16;
        break;
    case DSV4_FP8:
        align = 16;
        if (w->scale_cols != 128)
            return false;
        break;
    case DSV4_FP4:
        align = 16;
        if (w->scale_cols != 32 || w->scale_rows != 1)
            return false;
        break;
    case DSV4_MXFP4:
        break;
    case DSV4_Q8_0:
        align = 2;
        break;
    case DSV4_Q4_K:
        step = 256, align = 16;
        break;
    case DSV4_Q2_K:
        step = 256, align = 4;
        break;
    case DSV4_IQ2_XXS:
        step = 256, align = 2;
        break;
    default:
        return false;
    }
    return w->cols % step == 0 && w->cols >= step && (uintptr_t)w->data % (size_t)align == 0 &&
           w->row_bytes % (size_t)align == 0 &&
           shared_bytes(w, FEW, tightest(takes_ints(w, true)), 1) <= most_shared();
}

extern "C" bool cu_linear_streams(const cu_tensor *w)
{
    return streams(w);
}

typedef struct {
    cu_segment s;
    int blocks;
    gemv_plan plan; /* split: warps that share a tile: 1, 2, 4, 8, 16 */
} gemv_segment;

/* What every block reads comes first, and side by side: a launch's arguments are in no cache. */
typedef struct {
    int count, first_block[CU_MOST_SEGMENTS];
    bool late; /* as gemv_job's */
    int64_t n;
    const cu_iq2_tables *iq2; /* device */
    const uint8_t *origin;   /* where the map begins; of rows of so many bytes */
    size_t mapped;
    gemv_segment seg[CU_MOST_SEGMENTS];
    bulk_map map;
} gemv_args;
static_assert(sizeof(gemv_args) <= 4096, "what every driver takes");

/* What a block does; thread 0 writes it. */
static __shared__ gemv_job job;

/* A block's rows of one type. A function that is called: kernels share it, and each type has the
 * registers to itself (faster than one body that keeps its job in them). before: as stream_rows. */
template <int TYPE, int T, int WARPS>
static __device__ __noinline__ void gemv_rows_of(bool before, const cu_iq2_tables *iq2)
{
    extern __shared__ __align__(128) uint8_t shared[];
    if constexpr (TYPE == DSV4_F32 || TYPE == DSV4_F16) {
        __shared__ float part[WARPS][ROWS][T];
        float_rows<TYPE, T, WARPS>(job, (float *)(void *)shared, part, before);
    } else {
        gemv_room r;
        if constexpr (int_shape<TYPE>::INTS)
            if (!int_shape<TYPE>::BLOCKS || job.plan.ints) {
                lay_out(&job.w, WARPS, job.plan, T, int_unit<TYPE, T>::ROOM, shared, &r);
#if BULK
                if constexpr (cu_block_each(TYPE, T))
                    if (job.plan.bulk) {
                        stream_ints<TYPE, T, WARPS, bulk_streamer<WARPS>>(job, r, before, iq2);
                        return;
                    }
#endif
                stream_ints<TYPE, T, WARPS, int_streamer<TYPE, T, WARPS>>(job, r, before, iq2);
                return;
            }
        if constexpr (!int_shape<TYPE>::INTS || int_shape<TYPE>::BLOCKS) {
            lay_out(&job.w, WARPS, job.plan, T, unit_shape<TYPE>::ROOM, shared, &r);
            stream_rows<TYPE, T, WARPS>(job, r, before);
        }
    }
}

/* A block's rows, whatever their type. */
template <int T, int WARPS>
__device__ __forceinline__ void gemv_block(bool before, const cu_iq2_tables *iq2)
{
    __syncthreads(); /* for the job */
    switch (job.w.type) {
#define ROWS_OF(TYPE)                                                                              \
    case TYPE:                                                                                     \
        gemv_rows_of<TYPE, T, WARPS>(before, iq2);                                                 \
        break
        ROWS_OF(DSV4_F32);
        ROWS_OF(DSV4_F16);
        ROWS_OF(DSV4_BF16);
        ROWS_OF(DSV4_FP8);
        ROWS_OF(DSV4_FP4);
        ROWS_OF(DSV4_MXFP4);
        ROWS_OF(DSV4_Q8_0);
        ROWS_OF(DSV4_Q4_K);
        ROWS_OF(DSV4_Q2_K);
        ROWS_OF(DSV4_IQ2_XXS);
#undef ROWS_OF
    default:
        break;
    }
}

template <int T>
__device__ __forceinline__ void job_of(const gemv_args &a, const gemv_segment *s, int first_block)
{
    gemv_job *g = &job;
    bool ahead = s->plan.ahead && !MUTANT(37); /* what was chosen is read too early */
    g->table = ahead ? s->s.table : NULL;
    g->index = s->s.index;
    g->map = &a.map;
    g->origin = a.origin;
    g->block = (int)blockIdx.x - first_block;
    g->blocks = s->blocks;
    g->plan = s->plan;
    /* Settled, the index may be older than this kernel in the nearest cache: from the next one. */
    if (ahead || s->s.table == NULL)
        g->w = s->s.w;
    if (!ahead)
        place_matrix(*g, s->s.table == NULL ? &g->w : &s->s.table[__ldcg(s->s.index)], s->s.w.type,
                     s->s.w.cols);
    g->bf16 = s->s.bf16;
    g->late = a.late;
    g->limit = s->s.limit;
    g->up = s->s.up;
    g->share = s->s.share;
    int64_t first = (int64_t)blockIdx.y * T;
    g->tokens = a.n - first < T ? (int)(a.n - first) : T;
    /* wrong stride: the vectors taken to be dense */
    int64_t ldx = MUTANT(12) ? s->s.w.cols : s->s.ldx;
#pragma unroll
    for (int t = 0; t < T; t++) {
        g->x[t] = s->s.x + (first + (t < g->tokens ? t : 0)) * ldx;
        g->y[t] = s->s.y + (first + t) * s->s.ldy;
    }
}

template <int T, int WARPS>
static __global__ void __launch_bounds__(WARPS * 32, WARPS == FEW ? 2 : 1)
    gemv(const __grid_constant__ gemv_args a)
{
    int segment = 0;
    for (int i = 1; i < a.count; i++) /* no read waits for another */
        segment += (int)blockIdx.x >= a.first_block[i];
    const gemv_segment *s = &a.seg[segment];
    bool before = s->s.table == NULL || s->s.settled;
    /* Once these indices are known, the next kernel's are settled. */
    if (!before && !s->plan.ahead)
        wait_for_previous();
    if (!s->plan.ahead && (!before || !a.late))
        let_next_start();
    if (threadIdx.x == 0)
        job_of<T>(a, s, a.first_block[segment]);
    gemv_block<T, WARPS>(before, a.iq2);
}

/* Shapes that no unit fits: a warp an element of y. */
static __global__ void gemv_elements(cu_segment s, const uint64_t *iq2)
{
    begin();
    const cu_tensor *t = s.table != NULL ? &s.table[*s.index] : &s.w;
    int64_t row = (int64_t)blockIdx.x * FEW + threadIdx.x / 32, token = blockIdx.y;
    if (row >= s.w.rows)
        return;
    float sum = 0;
    for (int64_t c = threadIdx.x % 32; c < s.w.cols; c += 32)
        sum = fmaf(cu_value(t, row, c, iq2), s.x[token * s.ldx + c], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0)
        s.y[token * s.ldy + row] = maybe_bf16(sum, s.bf16);
}

/* ---- shares --------------------------------------------------------------------------------- */

static int multiprocessors;

/* What a tile costs, in bytes: a chunk's, and the end of a tile. */
typedef struct {
    int64_t tiles;
    int chunks, bytes, end;
} gemv_cost;

static gemv_cost cost_of(const cu_tensor *w)
{
    int height = is_float(w->type) ? (int)ROWS : (int)TILE;
    gemv_cost c;
    c.tiles = (w->rows + height - 1) / height;
    c.chunks = (int)((w->cols + CU_CHUNK - 1) / CU_CHUNK);
    c.bytes = height * (int)(w->row_bytes * CU_CHUNK / (size_t)w->cols) + 512;
    c.end = 1024;
    return c;
}

/* Float rows are summed in an order that the split decides: by the matrix alone. */
static int float_split(const cu_tensor *w)
{
    int64_t pairs = (w->rows + ROWS - 1) / ROWS;
    return pairs >= 1024 ? 1 : pairs >= 256 ? 2 : pairs >= 128 ? 4 : 8;
}

/* So are those in whole numbers. */
static int int_split(const cu_tensor *w)
{
    int64_t tiles = (w->rows + TILE - 1) / TILE, chunks = (w->cols + CU_CHUNK - 1) / CU_CHUNK;
    int split = tiles >= 1024 ? 1 : tiles >= 512 ? 2 : tiles >= 128 ? 4 : 8;
    while (split > 1 && chunks / split < 4 && tiles >= 128) /* few turns of many chunks */
        split /= 2;
    if (w->type == DSV4_IQ2_XXS && split > 1 && split < 8)
        split *= 2;
    while (split > chunks)
        split /= 2;
    return split;
}

/* The only split that may be, or 0. */
static int fixed_split(const cu_tensor *w, bool ints)
{
    return is_float(w->type) ? float_split(w) : ints ? int_split(w) : 0;
}

/* Deep where that fits into half a multiprocessor (and `deep`): more, and the vectors would wait
 * behind the weights. half: beside another kernel's block. */
static gemv_plan plan_of(const cu_tensor *w, int warps, gemv_plan of, int tokens, bool deep,
                         bool half)
{
    static const struct {
        int depth, copies;
    } plans[] = {{DEEP, MOST_COPIES}, {SHALLOW, MOST_COPIES}, {SHALLOW, FEW_COPIES}};
    gemv_plan p = of;
    for (size_t i = 0; i < sizeof plans / sizeof *plans; i++) {
        p.depth = plans[i].depth;
        p.copies = plans[i].copies;
        bool large = !half && p.depth == SHALLOW;
        if ((deep || p.depth == SHALLOW) &&
            shared_bytes(w, warps, p, tokens) <= (large ? most_shared() : half_shared()))
            break;
    }
    return p;
}

/* The fewest blocks that finish w within `time`, and how; 0 = it takes longer. */
static int blocks_within(const cu_tensor *w, int warps, int tokens, int64_t time, gemv_plan *plan)
{
    gemv_cost c = cost_of(w);
    int best = 0, fixed = fixed_split(w, plan->ints);
    for (int s = 1; s <= warps; s *= 2) {
        gemv_plan least = tightest(plan->ints);
        least.split = s;
        if ((fixed != 0 && s != fixed) || shared_bytes(w, warps, least, tokens) > most_shared())
            continue;
        int64_t each = (int64_t)((c.chunks + s - 1) / s) * c.bytes + c.end, turns = time / each;
        if (turns == 0 || (s > 1 && s / 2 >= c.chunks && fixed == 0))
            continue;
        int64_t at_once = turns * (warps / s), blocks = (c.tiles + at_once - 1) / at_once;
        if (best == 0 || blocks < best) {
            best = (int)blocks;
            plan->split = s;
        }
    }
    return best;
}

/* Blocks for every segment, `most` together if that can be: the shortest time in which all are done
 * side by side. Segments of the same shape follow each other. */
static int share(gemv_segment *seg, int count, int warps, int tokens, int most)
{
    int64_t time = 0;
    for (int i = 0; i < count; i++) {
        gemv_cost c = cost_of(&seg[i].s.w);
        time += c.tiles * (c.chunks * c.bytes + c.end);
    }
    time = time / ((int64_t)most * warps) + 1;
    for (int tries = 0;; tries++) {
        int blocks = 0;
        for (int i = 0; i < count; i++) {
            const cu_tensor *w = &seg[i].s.w, *b = &seg[i > 0 ? i - 1 : 0].s.w;
            if (i > 0 && w->type == b->type && w->rows == b->rows && w->cols == b->cols &&
                seg[i].plan.ints == seg[i - 1].plan.ints) {
                seg[i].blocks = seg[i - 1].blocks;
                seg[i].plan = seg[i - 1].plan;
            } else
                seg[i].blocks = blocks_within(w, warps, tokens, time, &seg[i].plan);
            blocks += seg[i].blocks;
            if (seg[i].blocks == 0)
                blocks = 1 << 24;
        }
        if (blocks <= (tries < 100 ? most : 1 << 20))
            return blocks;
        time += time / 32 + 1;
    }
}

/* ---- the copy engine ------------------------------------------------------------------------ */

#ifdef DSV4_CUDA_MUTANTS /* a map that the driver must refuse */
#define REFUSES_MAP (dsv4_cuda_mutant == 38)
#else
#define REFUSES_MAP false
#endif

/* The map of rows of row_bytes, `pairs` of them taken as one, from origin on. */
static bool map_rows(bulk_map *map, const uint8_t *origin, size_t row_bytes, unsigned pairs)
{
#if CUDART_VERSION >= 12050
    static decltype(&cuTensorMapEncodeTiled) encode;
    static bool asked;
    if (!asked) {
        cudaDriverEntryPointQueryResult found;
        asked = true;
        if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000,
                                             cudaEnableDefault, &found) != cudaSuccess) {
            (void)cudaGetLastError(); /* an older driver */
            encode = NULL;
        }
    }
    if (encode == NULL)
        return false;
    const uint64_t any = (uint64_t)1 << 31; /* rows, and steps to where they begin */
    const cuuint64_t sizes[] = {row_bytes * pairs / 2, any, any};
    const cuuint64_t strides[] = {row_bytes * pairs, BULK_STEP};
    const cuuint32_t box[] = {BULK_STRIDE / 2, BULK_ROWS / pairs, 1}, steps[] = {1, 1, 1};
    CUresult e = encode((CUtensorMap *)(void *)map, CU_TENSOR_MAP_DATA_TYPE_UINT16,
                        REFUSES_MAP ? 9 : 3, (void *)(uintptr_t)origin, sizes, strides, box, steps,
                        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (e != CUDA_SUCCESS)
        cu_book("linear: a map for the copy engine", (int64_t)row_bytes, "refused by the driver");
    return e == CUDA_SUCCESS;
#else
    (void)map, (void)origin, (void)row_bytes, (void)pairs;
    return false;
#endif
}

/* Can the copy engine bring a matrix's units? By the launch's only map, from far enough below the
 * matrix that the others it may turn out to be (cu_segment.table) are above. */
static int bulk_of(gemv_args *a, const cu_tensor *w)
{
    static thread_local struct {
        bulk_map map;
        const uint8_t *origin;
        size_t row_bytes;
    } last;
    unsigned pairs = w->row_bytes % PIECE == 0 ? 1 : 2;
    const uintptr_t reach = (uintptr_t)1 << 37;
    const uint8_t *origin = (const uint8_t *)(((uintptr_t)w->data & ~(reach - 1)) - reach);
    if (w->type != DSV4_IQ2_XXS || w->row_bytes * pairs % PIECE != 0 || w->rows % BULK_ROWS != 0 ||
        (uintptr_t)w->data % BULK_STEP != 0 || (uintptr_t)w->data < 2 * reach ||
        cu_built_for() < 900 ||
        (a->origin != NULL && (a->origin != origin || a->mapped != w->row_bytes)))
        return 0;
    if (origin != last.origin || w->row_bytes != last.row_bytes) {
        if (!map_rows(&last.map, origin, w->row_bytes, pairs))
            return 0;
        last.origin = origin;
        last.row_bytes = w->row_bytes;
    }
    a->map = last.map;
    a->origin = origin;
    a->mapped = w->row_bytes;
    return (int)pairs;
}

/* Blocks of FEW warps, two kernels at a time; where there is much to compute and long to go, more
 * warps are worth more than an early start. */
static bool pairs(const gemv_segment *g)
{
    const cu_tensor *w = &g->s.w;
    bool long_way = w->type == DSV4_IQ2_XXS && w->rows >= 65536;
    bool alone = w->type == DSV4_FP4; /* faster so in a step */
    return (g->plan.ints || is_float(w->type)) && !long_way && !alone &&
           shared_bytes(w, FEW, tightest(g->plan.ints), 1) <= half_shared();
}

static void raise_limits(void);

/* Kernels in pairs: one of each two that follow each other has more than half of the shared memory,
 * so that two blocks of one kernel don't share a multiprocessor: the larger one's cannot, the
 * other's come while the larger one's are everywhere. Where others may be on some multiprocessors
 * alone, the next pair begins with the larger. */
static thread_local bool large;

extern "C" void cu_linear_anew(void)
{
    large = false;
}

extern "C" void cu_linear_group(cu_stream s, const cu_segment *segments, int count, int64_t n)
{
    gemv_args a = {};
    int64_t size = 0;
    raise_limits();
    for (int i = 0; i < count && n > 0; i++) {
        const cu_segment *g = &segments[i];
        if (g->w.rows == 0)
            continue;
        if (!streams(&g->w)) {
            dim3 grid(cu_blocks(g->w.rows, FEW), (unsigned)n);
            LAUNCH("linear", n * g->w.rows * g->w.cols, gemv_elements, grid, FEW * 32, 0, s, *g,
                   cu_iq2_book_device());
            continue;
        }
        a.seg[a.count].plan.ints = takes_ints(&g->w, g->one_order);
        a.seg[a.count++].s = *g;
        a.late = a.late || g->late;
        size += n * g->w.rows * g->w.cols;
    }
    if (a.count == 0)
        return;
    /* A block on every multiprocessor. */
    int blocks = 0, tokens = n == 1 ? 1 : MOST_TOKENS, warps = n == 1 ? MANY : FEW;
    bool all = n == 1, any = false;
    for (int i = 0; i < a.count; i++) {
        const cu_tensor *w = &a.seg[i].s.w;
        gemv_plan least = tightest(a.seg[i].plan.ints);
        all = all && pairs(&a.seg[i]);
        any = any || least.ints;
        if (shared_bytes(w, warps, least, tokens) > most_shared())
            warps = FEW;
        if (shared_bytes(w, warps, least, tokens) > most_shared())
            tokens = 1;
    }
    bool paired = all && any;
    if (paired)
        warps = FEW;
    bool deep = n == 1 && any && warps == FEW;
    int used = share(a.seg, a.count, warps, tokens, multiprocessors);
    for (int i = used; deep && i < multiprocessors; i++)
        a.seg[i % a.count].blocks++; /* one everywhere, none twice */
    size_t shared = 0;
    for (int i = 0; i < a.count; i++) {
        gemv_segment *g = &a.seg[i];
        a.first_block[i] = blocks;
        blocks += g->blocks;
        bool ahead = n == 1 && g->s.ahead, unknown = g->s.table != NULL && !g->s.settled;
        g->plan.ahead = ahead && unknown && g->plan.ints;
        g->plan.known = ahead && !unknown && !a.late;
        g->plan.bulk = n == 1 ? (uint8_t)bulk_of(&a, &g->s.w) : 0;
        g->plan = plan_of(&g->s.w, warps, g->plan, tokens, deep, paired);
        if (g->plan.bulk && shared_bytes(&g->s.w, warps, g->plan, tokens) >
                                (paired ? half_shared() : most_shared())) {
            g->plan.bulk = 0;
            g->plan = plan_of(&g->s.w, warps, g->plan, tokens, deep, paired);
        }
        size_t bytes = shared_bytes(&g->s.w, warps, g->plan, tokens);
        shared = bytes > shared ? bytes : shared;
    }
    a.n = n;
    a.iq2 = cu_iq2_tables_device();
    dim3 grid((unsigned)blocks, (unsigned)((n + tokens - 1) / tokens));
    large = paired && !large;
    if (large && shared < large_shared())
        shared = large_shared();
    if (warps == MANY)
        LAUNCH("linear", size, (gemv<1, MANY>), grid, MANY * 32, shared, s, a);
    else if (tokens == 1)
        LAUNCH("linear", size, (gemv<1, FEW>), grid, FEW * 32, shared, s, a);
    else
        LAUNCH("linear", size, (gemv<MOST_TOKENS, FEW>), grid, FEW * 32, shared, s, a);
}

extern "C" void cu_linear(cu_stream s, const cu_tensor *w, const float *x, int64_t ldx, int64_t n,
                          float *y, int64_t ldy, bool bf16)
{
    cu_segment one = {};
    one.w = *w;
    one.x = x;
    one.ldx = ldx;
    one.y = y;
    one.ldy = ldy;
    one.bf16 = bf16;
    cu_linear_group(s, &one, 1, n);
}

/* ---- experts -------------------------------------------------------------------------------- */

typedef struct {
    const cu_tensor *table;
    cu_tensor shape;
    const cu_expert_group *groups;
    const int32_t *n_groups, *list;
    int per_row, blocks;
    gemv_plan plan;
    const float *x;
    float *y;
    bool bf16;
    const cu_iq2_tables *iq2;
    const uint64_t *book;
} experts_args;

static __global__ void __launch_bounds__(FEW * 32, 1)
    gemv_experts(const __grid_constant__ experts_args a)
{
    begin();
    enum { T = CU_EXPERT_TOKENS };
    if ((int)blockIdx.y >= *a.n_groups)
        return;
    if (threadIdx.x == 0) {
        cu_expert_group e = a.groups[blockIdx.y];
        job.w = a.table[e.expert];
        job.w.type = a.shape.type;
        job.w.cols = a.shape.cols;
        job.block = (int)blockIdx.x;
        job.blocks = a.blocks;
        job.plan = a.plan;
        job.tokens = e.count;
        job.bf16 = a.bf16;
        job.up = NULL;
#pragma unroll
        for (int t = 0; t < T; t++) {
            int32_t p = a.list[e.first + (t < e.count ? t : 0)];
            job.x[t] = a.x + (int64_t)(p / a.per_row) * a.shape.cols;
            job.y[t] = a.y + (int64_t)p * a.shape.rows;
        }
    }
    gemv_block<T, FEW>(false, a.iq2);
}

static __global__ void experts_elements(const __grid_constant__ experts_args a)
{
    begin();
    if ((int)blockIdx.y >= *a.n_groups)
        return;
    cu_expert_group e = a.groups[blockIdx.y];
    const cu_tensor *t = &a.table[e.expert];
    int64_t row = (int64_t)blockIdx.x * FEW + threadIdx.x / 32;
    if (row >= a.shape.rows)
        return;
    for (int k = 0; k < e.count; k++) {
        int32_t p = a.list[e.first + k];
        const float *in = a.x + (int64_t)(p / a.per_row) * a.shape.cols;
        float sum = 0;
        for (int64_t c = threadIdx.x % 32; c < a.shape.cols; c += 32)
            sum = fmaf(cu_value(t, row, c, a.book), in[c], sum);
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0)
            a.y[(int64_t)p * a.shape.rows + row] = maybe_bf16(sum, a.bf16);
    }
}

static void raise_limits(void)
{
    static bool raised;
    if (raised)
        return;
    const int most = (int)most_shared();
    const cudaFuncAttribute which = cudaFuncAttributeMaxDynamicSharedMemorySize;
    cudaFuncSetAttribute(gemv<1, MANY>, which, most);
    cudaFuncSetAttribute(gemv<1, FEW>, which, most);
    cudaFuncSetAttribute(gemv<MOST_TOKENS, FEW>, which, most);
    cudaFuncSetAttribute(gemv_experts, which, most);
    cudaFuncSetAttribute(gemv<1, FEW>, cudaFuncAttributePreferredSharedMemoryCarveout, 100);
    if (cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0) != cudaSuccess)
        multiprocessors = 1;
    raised = true;
}

extern "C" void cu_linear_experts(cu_stream s, const cu_tensor *table, const cu_tensor *shape,
                                  int n_experts, const int32_t *list, const cu_expert_group *groups,
                                  const int32_t *n_groups, int64_t pairs, int per_row,
                                  const float *x, float *y, bool bf16, bool one_order)
{
    int64_t most = pairs < n_experts ? pairs : n_experts;
    most += pairs / CU_EXPERT_TOKENS;
    raise_limits();
    if (pairs == 0)
        return;
    gemv_segment one = {};
    one.s.w = *shape;
    one.plan.ints = takes_ints(shape, one_order);
    int each = (int)((2 * multiprocessors + most - 1) / most);
    bool fits = streams(shape);
    if (fits)
        share(&one, 1, FEW, CU_EXPERT_TOKENS, each < 4 ? 4 : each);
    one.plan = plan_of(shape, FEW, one.plan, CU_EXPERT_TOKENS, false, false);
    size_t shared = fits ? shared_bytes(shape, FEW, one.plan, CU_EXPERT_TOKENS) : 0;
    experts_args a = {table,
                      *shape,
                      groups,
                      n_groups,
                      list,
                      per_row,
                      one.blocks,
                      one.plan,
                      x,
                      y,
                      bf16,
                      cu_iq2_tables_device(),
                      cu_iq2_book_device()};
    if (fits && shared <= most_shared()) {
        dim3 grid((unsigned)a.blocks, (unsigned)most);
        LAUNCH("experts", pairs * shape->rows * shape->cols, gemv_experts, grid, FEW * 32, shared,
               s, a);
    } else {
        dim3 grid(cu_blocks(shape->rows, FEW), (unsigned)most);
        LAUNCH("experts", pairs * shape->rows * shape->cols, experts_elements, grid, FEW * 32, 0, s,
               a);
    }
}
