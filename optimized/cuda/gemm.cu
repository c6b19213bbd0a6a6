/* gemm.cu - products of many tokens: x is split into bf16 parts once, then the kernels of gemm_*.cu
 * multiply tiles of tokens on the tensor cores. What no tile fits goes to linear.cu. */
#include "gemm.h"

#include "device.cuh"
#include "mma.cuh"

extern "C" const cu_iq2_tables *cu_iq2_tables_device(void); /* device.c */

/* ---- x in parts ----------------------------------------------------------------------------- */

/* x in the parts of cu_split, and its sums for formats with minima: of 16 or 32 columns (`sums`; 0
 * = none), in three parts whatever x is. */
typedef struct {
    const float *x;
    int64_t ldx, cols, pitch; /* pitch: columns with the zeros that fill up 128 */
    int parts, sums;
    uint16_t *to;      /* [parts][n][pitch] */
    uint16_t *sums_to; /* [3][n][cols / sums] */
} split_job;

typedef struct {
    split_job job[CU_MOST_SEGMENTS];
    int64_t n;
} split_args;

/* Word i of all four lanes of a quad, for lane i of it. */
__device__ __forceinline__ uint4 turned(const uint32_t (&w)[4])
{
    int lane = threadIdx.x % 4;
    uint32_t to[4] = {};
#pragma unroll
    for (int k = 0; k < 4; k++) { /* from lane ^ k: its word `lane` */
        uint32_t give = 0;
#pragma unroll
        for (int i = 0; i < 4; i++)
            give = i == (lane ^ k) ? w[i] : give;
        give = __shfl_xor_sync(0xffffffffu, give, k);
#pragma unroll
        for (int i = 0; i < 4; i++)
            to[i] = i == (lane ^ k) ? give : to[i];
    }
    return make_uint4(to[0], to[1], to[2], to[3]);
}

/* Eight columns a thread; four threads in a row have the same 32, which they write in the order of
 * mma's slots: step by step, columns 8t + 4s + 0, 1 of t = 0..3, then 8t + 4s + 2, 3. */
static __global__ void __launch_bounds__(256) split(const __grid_constant__ split_args a)
{
    begin();
    const split_job *j = &a.job[blockIdx.y];
    int64_t eight = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    int64_t row = eight / (j->pitch / 8), column = eight % (j->pitch / 8) * 8;
    bool mine = row < a.n, there = mine && column < j->cols;
    const float *from = j->x + row * j->ldx + column;
    const float4 zero = {0, 0, 0, 0};
    float4 v[2] = {there ? *(const float4 *)(const void *)from : zero,
                   there ? *(const float4 *)(const void *)(from + 4) : zero};
    const float *x = &v[0].x;
    uint32_t words[3][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t low[CU_PARTS], high[CU_PARTS];
        cu_split(x[2 * i], low);
        cu_split(x[2 * i + 1], high);
        if (MUTANT(71)) /* the last part lost */
            low[2] = 0;
#pragma unroll
        for (int p = 0; p < 3; p++)
            words[p][i] = low[p] >> 16 | high[p];
    }
    /* Four lanes have 32 columns, a word of each for every 16 bytes: lane i writes words i. */
#pragma unroll
    for (int p = 0; p < 3; p++)
        if (p < j->parts) {
            uint4 w = turned(words[p]);
            if (mine)
                *(uint4 *)(void *)(j->to + (p * a.n + row) * j->pitch + column) = w;
        }
    if (j->sums == 0)
        return;
    float s = ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
    s += __shfl_xor_sync(0xffffffffu, s, 1);
    if (j->sums == 32)
        s += __shfl_xor_sync(0xffffffffu, s, 2);
    uint32_t part[CU_PARTS];
    cu_split(s, part);
    if (there && column % j->sums == 0)
#pragma unroll
        for (int p = 0; p < 3; p++)
            j->sums_to[(p * a.n + row) * (j->cols / j->sums) + column / j->sums] =
                (uint16_t)(part[p] >> 16);
}

/* ---- dense matrices ------------------------------------------------------------------------- */

enum { ENOUGH = 100 /* tiles: three quarters of the multiprocessors of an H100 */ };

static bool tiles_fit(int type)
{
    switch (type) {
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

extern "C" bool cu_gemm_takes(const cu_segment *g, int64_t n)
{
    return n >= CU_GEMM_TOKENS && g->table == NULL && g->w.rows > 0 && tiles_fit(g->w.type) &&
           g->w.cols % 32 == 0 && cu_linear_streams(&g->w) && (uintptr_t)g->x % 16 == 0 &&
           g->ldx % 4 == 0;
}

/* Columns of a sum of x that the type's minima are multiplied with. */
static int sums_of(int type)
{
    return type == DSV4_Q4_K ? 32 : type == DSV4_Q2_K ? 16 : 0;
}

static size_t up_to_256(int64_t bytes)
{
    return ((size_t)bytes + 255) / 256 * 256;
}

static int64_t pitch_of(int64_t cols)
{
    return (cols + 127) / 128 * 128;
}

static size_t split_bytes(int64_t n, int64_t cols, int parts, int sums)
{
    return up_to_256(n * pitch_of(cols) * 2 * parts) +
           (sums > 0 ? up_to_256(n * (cols / sums) * 6) : 0);
}

static split_job split_into(uint8_t *memory, const float *x, int64_t ldx, int64_t n, int64_t cols,
                            int parts, int sums)
{
    split_job j = {x, ldx, cols, pitch_of(cols), parts, sums, (uint16_t *)(void *)memory, NULL};
    if (sums > 0)
        j.sums_to = (uint16_t *)(void *)(memory + up_to_256(n * j.pitch * 2 * parts));
    return j;
}

static gemm_segment segment_of(const cu_tensor *w, const split_job *j, int64_t n, float *y,
                               int64_t ldy, bool bf16, int64_t first_block)
{
    gemm_segment s = {};
    s.w = *w;
    s.x = j->to;
    s.pitch = j->pitch;
    s.part = n * j->pitch;
    s.sums = j->sums_to;
    s.sums_part = j->sums > 0 ? n * (j->cols / j->sums) : 0;
    s.y = y;
    s.ldy = ldy;
    s.bf16 = bf16;
    s.first_block = (int)first_block;
    return s;
}

static int launch(cu_stream s, int type, int parts, int tokens, unsigned blocks, unsigned groups,
                  int64_t size, const gemm_args *a)
{
    switch (type) {
    case DSV4_F16:
    case DSV4_BF16:
    case DSV4_FP8:
    case DSV4_FP4:
    case DSV4_MXFP4:
        return cu_gemm_floats(s, type, parts, tokens, blocks, groups, size, a);
    default:
        return cu_gemm_blocks(s, type, parts, tokens, blocks, groups, size, a);
    }
}

/* Has a block of this device room for the tile? All have for 16 tokens. */
static bool has_room(int type, int parts, int tokens)
{
    return (size_t)launch(NULL, type, parts, tokens, 0, 0, 0, NULL) <= cu_most_shared();
}

static int enough = ENOUGH;

extern "C" void cu_gemm_large_tiles(bool on)
{
    enough = on ? 1 : ENOUGH;
}

/* Tokens of a tile: many, if there are enough tiles for most multiprocessors. */
static int tokens_of(int type, int parts, int64_t rows, int64_t n)
{
    static const int sizes[2][3] = {{128, 64, 32}, {48, 32, 16}};
    const int *s = sizes[parts == 1 ? 0 : 1];
    for (int i = 0; i < 2; i++)
        if (n > s[i + 1] && rows * ((n + s[i] - 1) / s[i]) >= enough && has_room(type, parts, s[i]))
            return s[i];
    return n > 16 && has_room(type, parts, 32) ? 32 : 16;
}

/* Segments of one type, their x split. */
static void multiply(cu_stream s, const cu_segment *segments, const split_job *const *splits,
                     int count, int64_t n)
{
    bool done[CU_MOST_SEGMENTS] = {};
    for (int i = 0; i < count; i++) {
        if (done[i])
            continue;
        int type = segments[i].w.type, parts = splits[i]->parts;
        int64_t rows = 0, size = 0;
        for (int k = i; k < count; k++)
            if (segments[k].w.type == type && splits[k]->parts == parts)
                rows += (segments[k].w.rows + GEMM_ROWS - 1) / GEMM_ROWS;
        int tokens = tokens_of(type, parts, rows, n);
        gemm_args a = {};
        a.n = n;
        a.tiles = (int)((n + tokens - 1) / tokens);
        a.iq2 = cu_iq2_tables_device()->many;
        a.per_row = 1;
        int64_t blocks = 0;
        for (int k = i; k < count; k++) {
            const cu_segment *g = &segments[k];
            if (g->w.type != type || splits[k]->parts != parts)
                continue;
            done[k] = true;
            a.seg[a.count++] = segment_of(&g->w, splits[k], n, g->y, g->ldy, g->bf16, blocks);
            blocks += (g->w.rows + GEMM_ROWS - 1) / GEMM_ROWS * a.tiles;
            size += n * g->w.rows * g->w.cols;
        }
        launch(s, type, parts, tokens, (unsigned)blocks, 1, size, &a);
    }
}

static void split_all(cu_stream s, const split_args *a, int count)
{
    int64_t most = 0;
    for (int i = 0; i < count; i++)
        most = a->job[i].pitch > most ? a->job[i].pitch : most;
    dim3 grid(cu_blocks(a->n * (most / 8), 256), (unsigned)count);
    LAUNCH("split", a->n * most, split, grid, 256, 0, s, *a);
}

extern "C" void cu_products(cu_stream s, const cu_segment *segments, int count, int64_t n,
                            const cu_room *room)
{
    cu_segment rest[CU_MOST_SEGMENTS], taken[CU_MOST_SEGMENTS];
    const split_job *splits[CU_MOST_SEGMENTS];
    int others = 0;
    for (int first = 0; first < count;) {
        split_args a = {};
        a.n = n;
        size_t used = 0;
        int jobs = 0, n_taken = 0, i = first;
        for (; i < count; i++) {
            const cu_segment *g = &segments[i];
            int parts = g->x_bf16 ? 1 : 3, sums = sums_of(g->w.type), k = 0;
            size_t bytes = split_bytes(n, g->w.cols, parts, sums);
            if (room == NULL || !cu_gemm_takes(g, n) || bytes > room->bytes) {
                rest[others++] = *g;
                continue;
            }
            while (k < jobs &&
                   (a.job[k].x != g->x || a.job[k].ldx != g->ldx || a.job[k].cols != g->w.cols ||
                    a.job[k].parts != parts || a.job[k].sums != sums))
                k++;
            if (k == jobs) {
                if (used + bytes > room->bytes)
                    break; /* what is split so far first: its room is used again */
                a.job[jobs++] = split_into((uint8_t *)room->memory + used, g->x, g->ldx, n,
                                           g->w.cols, parts, sums);
                used += bytes;
            }
            splits[n_taken] = &a.job[k];
            taken[n_taken++] = *g;
        }
        first = i;
        if (n_taken > 0) {
            split_all(s, &a, jobs);
            multiply(s, taken, splits, n_taken, n);
        }
    }
    if (others > 0)
        cu_linear_group(s, rest, others, n);
}

/* ---- experts -------------------------------------------------------------------------------- */

extern "C" int cu_expert_tokens(const cu_tensor *const *shapes, int count, int64_t pairs,
                                int n_experts, bool x_bf16, const cu_room *room)
{
    int parts = x_bf16 ? 1 : 3;
    int64_t each = pairs / (n_experts > 0 ? n_experts : 1);
    for (int i = 0; i < count; i++)
        if (room == NULL || !tiles_fit(shapes[i]->type) || !cu_linear_streams(shapes[i]) ||
            shapes[i]->cols % 32 != 0 ||
            split_bytes(pairs, shapes[i]->cols, parts, sums_of(shapes[i]->type)) > room->bytes)
            return CU_EXPERT_TOKENS;
    int tokens = each >= 32 && parts == 1 ? 64
                 : each >= 12             ? 32
                 : each >= 2              ? 16
                                          : CU_EXPERT_TOKENS;
    for (int i = 0; i < count; i++)
        while (tokens > 16 && !has_room(shapes[i]->type, parts, tokens))
            tokens /= 2;
    return tokens;
}

extern "C" void cu_gemm_experts(cu_stream s, const cu_tensor *table, const cu_tensor *shape,
                                int n_experts, const int32_t *list, const cu_expert_group *groups,
                                const int32_t *n_groups, int together, int64_t pairs, int per_row,
                                const float *x, bool x_bf16, float *y, bool bf16,
                                const cu_room *room)
{
    int64_t rows = pairs / per_row, most = pairs < n_experts ? pairs : n_experts;
    int parts = x_bf16 ? 1 : 3;
    split_args j = {};
    j.n = rows;
    gemm_args a = {};
    j.job[0] = split_into((uint8_t *)room->memory, x, shape->cols, rows, shape->cols, parts,
                          sums_of(shape->type));
    split_all(s, &j, 1);
    a.seg[0] = segment_of(shape, &j.job[0], rows, y, shape->rows, bf16, 0);
    a.iq2 = cu_iq2_tables_device()->many;
    a.table = table;
    a.groups = groups;
    a.n_groups = n_groups;
    a.list = list;
    a.per_row = per_row;
    launch(s, shape->type, parts, together, cu_blocks(shape->rows, GEMM_ROWS),
           (unsigned)(most + pairs / together), pairs * shape->rows * shape->cols, &a);
}
