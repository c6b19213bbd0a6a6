/* compositions_products.c - products that do more than multiply, or begin before their turn: gated
 * (swiglu of what is read) and ahead (matrix and vector known before the kernel before is done). */
#include "compositions.h"

#include <stdio.h>
#include <string.h>

enum { SWIGLU_LIMIT = 10 };

/* ---- matrices -------------------------------------------------------------------------------- */

typedef struct {
    int type;
    const char *name;
    int bytes;           /* of 256 columns */
    int step, factor[2]; /* float16 factors every `step` bytes: where, or -1 */
} format;

static const format formats[] = {
    {DSV4_F32, "F32", 1024, 0, {-1, -1}},  {DSV4_F16, "F16", 512, 0, {-1, -1}},
    {DSV4_BF16, "BF16", 512, 0, {-1, -1}}, {DSV4_FP8, "FP8", 256, 0, {-1, -1}},
    {DSV4_FP4, "FP4", 128, 0, {-1, -1}},   {DSV4_MXFP4, "MXFP4", 136, 17, {-1, -1}},
    {DSV4_Q8_0, "Q8_0", 272, 34, {0, -1}}, {DSV4_Q4_K, "Q4_K", 144, 144, {0, 2}},
    {DSV4_Q2_K, "Q2_K", 84, 84, {80, 82}}, {DSV4_IQ2_XXS, "IQ2_XXS", 66, 66, {0, -1}},
};

/* A matrix of finite values of ordinary size, and its scales beside it. */
typedef struct {
    const format *f;
    int64_t rows, cols;
    int w, scale;
} matrix;

static void matrix_codes(bed *b, const format *f, size_t bytes, uint8_t *p)
{
    for (size_t i = 0; i < bytes; i++)
        p[i] = (uint8_t)bed_bits(b);
    for (size_t i = 0; f->type == DSV4_F32 && i < bytes; i += 4) {
        const float v = (float)((int)(bed_bits(b) >> 8) - (1 << 23)) * 0x1p-23f;
        memcpy(p + i, &v, 4);
    }
    for (size_t i = 1; (f->type == DSV4_F16 || f->type == DSV4_BF16) && i < bytes; i += 2)
        p[i] = (uint8_t)((p[i] & 0x83u) | 0x3cu);
    for (size_t i = 0; f->type == DSV4_FP8 && i < bytes; i++)
        p[i] &= 0xfeu; /* no NaN */
    for (size_t at = 0; f->step > 0 && at < bytes; at += (size_t)f->step) {
        const uint16_t d = (uint16_t)(0x2000 + at / (size_t)f->step % 512), less = 0x1c00;
        if (f->type == DSV4_MXFP4)
            p[at] = (uint8_t)(120 + p[at] % 10);
        if (f->factor[0] >= 0)
            memcpy(p + at + f->factor[0], &d, 2);
        if (f->factor[1] >= 0)
            memcpy(p + at + f->factor[1], &less, 2);
    }
}

static size_t matrix_row(const matrix *m)
{
    return (size_t)(m->cols / 256) * (size_t)m->f->bytes;
}

static size_t scale_row(const matrix *m)
{
    return (size_t)(m->f->type == DSV4_FP4 ? m->cols / 32 : (m->cols + 127) / 128);
}

static void lay_matrix(bed *b, matrix *m)
{
    size_t bytes = (size_t)m->rows * matrix_row(m);
    uint8_t *p = bed_ints(b, "w", bytes, &m->w);
    if (p != NULL)
        matrix_codes(b, m->f, bytes, p);
    size_t scales =
        scale_row(m) * (size_t)(m->f->type == DSV4_FP4 ? m->rows : (m->rows + 127) / 128);
    uint8_t *scale = bed_ints(b, "scales", scales, &m->scale);
    for (size_t k = 0; scale != NULL && k < scales; k++)
        scale[k] = (uint8_t)(120 + bed_bits(b) % 10);
}

static cu_tensor matrix_at(const bed *b, const matrix *m, int side)
{
    cu_tensor w = {.type = m->f->type,
                   .rows = m->rows,
                   .cols = m->cols,
                   .data = bed_at(b, side, m->w),
                   .row_bytes = matrix_row(m)};
    if (m->f->type == DSV4_FP8 || m->f->type == DSV4_FP4) {
        w.scale = bed_at(b, side, m->scale);
        w.scale_rows = m->f->type == DSV4_FP8 ? 128 : 1;
        w.scale_cols = m->f->type == DSV4_FP8 ? 128 : 32;
        w.scale_row_bytes = scale_row(m);
    }
    return w;
}

/* ---- swiglu, done by the products that read it ----------------------------------------------- */

typedef struct {
    matrix m;
    int gate, up, share, room, y;
    bool apart; /* vectors that begin beside 16 bytes */
} gated_case;

static void gated_product(bed *b, const gated_case *c, int side, bool together)
{
    float *gate = (float *)bed_at(b, side, c->gate) + c->apart;
    float *up = (float *)bed_at(b, side, c->up) + c->apart, *share = bed_at(b, side, c->share);
    float *h = bed_at(b, side, c->room);
    int64_t cols = c->m.cols;
    cu_segment g = {
        .w = matrix_at(b, &c->m, side), .ldx = cols, .y = bed_at(b, side, c->y), .ldy = c->m.rows};
    if (together) {
        g.x = gate;
        g.up = up;
        g.limit = SWIGLU_LIMIT;
        g.share = share;
    } else {
        cu_swiglu(b->stream, gate, up, SWIGLU_LIMIT, 1, cols, share, false, h);
        g.x = h;
    }
    cu_linear_group(b->stream, &g, 1, 1);
}

static void gated_together(bed *b, void *ctx, int side)
{
    gated_product(b, ctx, side, true);
}

static void gated_one_by_one(bed *b, void *ctx, int side)
{
    gated_product(b, ctx, side, false);
}

void check_gated(bed *b)
{
    static const int64_t shapes[][2] = {{33, 2048}, {16, 256}, {7, 768}};
    b->numerics = DSV4_MATH;
    for (size_t t = 0; t < sizeof formats / sizeof *formats; t++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (b->fill = NOISE; b->fill < FILLS; b->fill++) {
                char text[96];
                gated_case c = {.m = {&formats[t], shapes[i][0], shapes[i][1], 0, 0},
                                .apart = i == 2};
                snprintf(text, sizeof text, "gated/%s/rows=%d,cols=%d", c.m.f->name, (int)c.m.rows,
                         (int)c.m.cols);
                if (!bed_wanted(b, text))
                    continue;
                lay_matrix(b, &c.m);
                c.gate = bed_input(b, "gate", c.m.cols + 4);
                c.up = bed_input(b, "up", c.m.cols + 4);
                c.share = bed_plain(b, "share", 4);
                c.room = bed_scratch(b, "h", c.m.cols);
                c.y = bed_result(b, "y", c.m.rows);
                bed_run(b, gated_together, gated_one_by_one, NULL, &c);
            }
}

/* ---- ahead ----------------------------------------------------------------------------------- */

/* What the kernel before writes and takes long for: a few of the same results, of rows that no unit
 * fits. */
enum { SLOW_ROWS = 4, SLOW_COLS = 40001 };

typedef struct {
    matrix m;
    int slow, long_x, x, y;
} ahead_case;

static void ahead_product(bed *b, const ahead_case *c, int side, bool ahead)
{
    float *y = bed_at(b, side, c->y);
    cu_segment slow = {.w = {.type = DSV4_F32,
                             .rows = SLOW_ROWS,
                             .cols = SLOW_COLS,
                             .data = bed_at(b, side, c->slow),
                             .row_bytes = SLOW_COLS * sizeof(float)},
                       .x = bed_at(b, side, c->long_x),
                       .ldx = SLOW_COLS,
                       .y = y,
                       .ldy = SLOW_ROWS};
    cu_segment g = {.w = matrix_at(b, &c->m, side),
                    .x = bed_at(b, side, c->x),
                    .ldx = c->m.cols,
                    .y = y,
                    .ldy = c->m.rows,
                    .ahead = ahead};
    cu_linear_group(b->stream, &slow, 1, 1);
    cu_linear_group(b->stream, &g, 1, 1);
}

static void ahead_together(bed *b, void *ctx, int side)
{
    ahead_product(b, ctx, side, true);
}

static void ahead_one_by_one(bed *b, void *ctx, int side)
{
    ahead_product(b, ctx, side, false);
}

/* Results that both kernels write must be the later one's. */
void check_ahead(bed *b)
{
    /* split in every way, alone in a tile, and in units of 32 rows */
    static const int64_t shapes[][2] = {{33, 2048}, {5, 256}, {64, 1024}, {2080, 512}};
    b->numerics = DSV4_MATH;
    for (size_t t = 0; t < sizeof formats / sizeof *formats; t++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
            for (b->fill = NOISE; b->fill < FILLS; b->fill++) {
                char text[96];
                ahead_case c = {.m = {&formats[t], shapes[i][0], shapes[i][1], 0, 0}};
                snprintf(text, sizeof text, "ahead/%s/rows=%d,cols=%d", c.m.f->name, (int)c.m.rows,
                         (int)c.m.cols);
                if (!bed_wanted(b, text))
                    continue;
                lay_matrix(b, &c.m);
                c.slow = bed_plain(b, "a matrix that takes long", SLOW_ROWS * SLOW_COLS);
                c.long_x = bed_plain(b, "its vector", SLOW_COLS);
                c.x = bed_input(b, "x", c.m.cols);
                c.y = bed_result(b, "y", c.m.rows);
                bed_run(b, ahead_together, ahead_one_by_one, NULL, &c);
            }
}
