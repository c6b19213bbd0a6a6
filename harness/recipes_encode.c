/* recipes_encode.c - the bytes of a matrix in another type: copied where both sides store it alike,
 * else decoded and encoded, strip by strip. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "recipes.h"
#include "reference/checkpoint/gguf.h"

/* FP8 shares scales between 128 rows, so strips are whole multiples of that. */
enum { STRIP_ROWS = 128, STRIP_FLOATS = 1 << 20 };

typedef struct {
    const encoder *enc;
    const weight *w;
    int64_t e;
    const dsv4_tensor *view;
    encoding to;
    const byte_sink *sink;
    dsv4_error *err;
    int64_t strip;                   /* rows of a full strip */
    float *values, *check, *weights; /* [strip][cols], [cols], [cols] or NULL */
    uint8_t *parts[PART_COUNT];      /* of one strip */
    const float *importance;         /* [cols] or NULL */
    bool is_exact;                   /* so far */
} job;

static dsv4_status put(const job *j, int part, uint64_t offset, const void *data, uint64_t bytes)
{
    return bytes == 0 ? DSV4_OK
                      : j->sink->put(j->sink->ctx, part, offset, data, (size_t)bytes, j->err);
}

static dsv4_status refuse(const job *j, int64_t row, int64_t col, double value)
{
    char name[96];
    weight_name(j->w, j->e, name);
    return dsv4_fail(j->err, DSV4_E_INPUT,
                     "%s: tensor %s: element [%lld][%lld] is %g, expected a finite number",
                     j->enc->model, name, (long long)row, (long long)col, value);
}

/* Rows [first, first + n) as float32, every one a finite number. */
static dsv4_status decode(const job *j, int64_t first, int64_t n)
{
    int64_t cols = j->w->cols;
    for (int64_t r = 0; r < n; r++) {
        float *row = j->values + r * cols;
        dsv4_tensor_row(j->view, first + r, row);
        for (int64_t c = 0; c < cols; c++)
            if (!isfinite(row[c]))
                return refuse(j, first + r, c, (double)row[c]);
    }
    return DSV4_OK;
}

/* ---- copies ------------------------------------------------------------------------------- */

typedef enum { COPY_NONE, COPY_SAME, COPY_FP4_TO_MXFP4, COPY_MXFP4_TO_FP4 } copy_kind;

static copy_kind copy_of(const dsv4_tensor *v, const encoding *to)
{
    if (v->type == DSV4_FP4 && to->type == DSV4_MXFP4)
        return COPY_FP4_TO_MXFP4;
    if (v->type == DSV4_MXFP4 && to->type == DSV4_FP4)
        return COPY_MXFP4_TO_FP4;
    if (v->type != to->type)
        return COPY_NONE;
    if (v->type == DSV4_FP8 && v->row0 % STRIP_ROWS != 0)
        return COPY_NONE;
    if ((v->type == DSV4_MLX4 || v->type == DSV4_MLX8) &&
        (v->scale_cols != to->group || v->scale_type != to->scale_type))
        return COPY_NONE;
    return COPY_SAME;
}

/* Both put 32 columns under one e8m0 scale. FP4 has columns 2i and 2i+1 in byte i and its scales
 * elsewhere; MXFP4 has the scale in front and columns i and i+16 in byte i. */
static void fp4_to_mxfp4(const uint8_t *codes, const uint8_t *scales, int64_t blocks, uint8_t *out)
{
    for (int64_t b = 0; b < blocks; b++, codes += 16, out += 17) {
        out[0] = scales[b];
        for (int i = 0; i < 16; i++) {
            int shift = i % 2 * 4;
            out[1 + i] =
                (uint8_t)((codes[i / 2] >> shift & 15) | (codes[8 + i / 2] >> shift & 15) << 4);
        }
    }
}

static void mxfp4_to_fp4(const uint8_t *in, int64_t blocks, uint8_t *codes, uint8_t *scales)
{
    for (int64_t b = 0; b < blocks; b++, in += 17, codes += 16) {
        scales[b] = in[0];
        for (int i = 0; i < 8; i++) {
            const uint8_t *low = in + 1 + 2 * i;
            codes[i] = (uint8_t)((low[0] & 15) | (low[1] & 15) << 4);
            codes[8 + i] = (uint8_t)(low[0] >> 4 | (low[1] & 0xf0));
        }
    }
}

static void copy_rows(const job *j, copy_kind kind, int64_t first, int64_t n, size_t row_bytes)
{
    const dsv4_tensor *v = j->view;
    int64_t blocks = v->cols / 32;
    for (int64_t r = 0; r < n; r++) {
        const uint8_t *from = v->data + (size_t)(v->row0 + first + r) * v->row_bytes;
        const uint8_t *scale =
            v->scale == NULL ? NULL : v->scale + (size_t)(v->row0 + first + r) * v->scale_row_bytes;
        if (kind == COPY_FP4_TO_MXFP4)
            fp4_to_mxfp4(from, scale, blocks, j->parts[PART_DATA] + (size_t)r * row_bytes);
        else if (kind == COPY_MXFP4_TO_FP4)
            mxfp4_to_fp4(from, blocks, j->parts[PART_DATA] + (size_t)r * row_bytes,
                         j->parts[PART_SCALE] + r * blocks);
        else
            memcpy(j->parts[PART_DATA] + (size_t)r * row_bytes, from, row_bytes);
    }
    if (kind != COPY_SAME || v->scale == NULL)
        return;
    int64_t top = (v->row0 + first) / v->scale_rows;
    int64_t rows = (n + v->scale_rows - 1) / v->scale_rows;
    size_t at = (size_t)top * v->scale_row_bytes, bytes = (size_t)rows * v->scale_row_bytes;
    memcpy(j->parts[PART_SCALE], v->scale + at, bytes);
    if (v->bias != NULL)
        memcpy(j->parts[PART_BIAS], v->bias + at, bytes);
}

/* ---- encoding ----------------------------------------------------------------------------- */

static bool same_values(const job *j, int64_t n)
{
    int64_t cols = j->w->cols;
    bool fp8 = j->to.type == DSV4_FP8, fp4 = j->to.type == DSV4_FP4;
    uint64_t bytes[PART_COUNT];
    encoding_bytes(&j->to, 1, cols, bytes);
    dsv4_tensor t = {
        .name = j->w->name,
        .type = j->to.type,
        .rows = n,
        .cols = cols,
        .data = j->parts[PART_DATA],
        .row_bytes = (size_t)bytes[PART_DATA],
        .scale = bytes[PART_SCALE] > 0 ? j->parts[PART_SCALE] : NULL,
        .bias = bytes[PART_BIAS] > 0 ? j->parts[PART_BIAS] : NULL,
        .scale_row_bytes = (size_t)bytes[PART_SCALE],
        .scale_rows = fp8 ? 128 : 1,
        .scale_cols = fp8               ? 128
                      : fp4             ? 32
                      : j->to.group > 0 ? j->to.group
                                        : 1,
        .scale_type = j->to.scale_type,
    };
    for (int64_t r = 0; r < n; r++) {
        dsv4_tensor_row(&t, r, j->check);
        for (int64_t c = 0; c < cols; c++)
            if (j->check[c] != j->values[r * cols + c]) /* zeros of either sign are equal */
                return false;
    }
    return true;
}

static dsv4_status encode_rows(job *j, int64_t first, int64_t n)
{
    const dsv4_format *f = dsv4_format_of(j->to.type);
    dsv4_encoded out = {
        .data = j->parts[PART_DATA],
        .scale = j->parts[PART_SCALE],
        .bias = j->parts[PART_BIAS],
        .group = j->to.group,
        .scale_type = j->to.scale_type,
    };
    if (f->encode == NULL || !f->encode(j->values, n, j->w->cols, j->importance, &out))
        return dsv4_fail(j->err, DSV4_E_INPUT,
                         "%s: tensor %s: %s is a format this program reads "
                         "but does not write",
                         j->enc->model, j->w->name, f->name);
    if (j->enc->notes != NULL && (j->to.type == DSV4_FP8 || j->to.type == DSV4_FP4)) {
        char name[96];
        weight_name(j->w, j->e, name);
        scale_notes_apply(j->enc->notes, name, j->to.type, j->values, first, n, j->w->cols,
                          j->parts[PART_DATA], j->parts[PART_SCALE]);
    }
    if (j->enc->exact && j->is_exact)
        j->is_exact = same_values(j, n);
    return DSV4_OK;
}

/* Column weights for the encoders that need them. The published 2-bit files without an importance
 * matrix were made with each column's summed squares over the matrix's rows ("energy"). */
static dsv4_status choose_importance(job *j)
{
    const dsv4_format *f = dsv4_format_of(j->to.type);
    int64_t cols = j->w->cols;
    gguf_place place;
    if (f->block == 1 || j->to.type == DSV4_FP4 || j->to.group > 0)
        return DSV4_OK;
    if (j->enc->importance != NULL && gguf_place_of(j->w->name, -1, &place)) {
        dsv4_status status =
            imatrix_find(j->enc->importance, place.name, j->e,
                         j->w->experts > 0 ? j->w->experts : 1, cols, &j->importance, j->err);
        if (status != DSV4_OK || j->importance != NULL)
            return status;
    }
    if (!f->needs_importance)
        return DSV4_OK;
    j->weights = dsv4_alloc((size_t)cols, sizeof *j->weights, "column weights", j->err);
    if (j->weights == NULL)
        return DSV4_E_MACHINE;
    j->importance = j->weights;
    if (!j->enc->energy) {
        for (int64_t c = 0; c < cols; c++)
            j->weights[c] = 1.0f;
        return DSV4_OK;
    }
    for (int64_t r = 0; r < j->w->rows; r++) {
        dsv4_status status = decode(j, r, 1);
        if (status != DSV4_OK)
            return status;
        for (int64_t c = 0; c < cols; c++)
            j->weights[c] += j->values[c] * j->values[c];
    }
    return DSV4_OK;
}

static dsv4_status make_table(job *j)
{
    dsv4_status status = DSV4_OK;
    size_t width = j->to.type == DSV4_I64 ? 8 : 4;
    int64_t cols = j->w->cols;
    for (int64_t first = 0; first < j->w->rows && status == DSV4_OK; first += j->strip) {
        int64_t n = j->w->rows - first < j->strip ? j->w->rows - first : j->strip;
        for (int64_t i = 0; i < n * cols; i++) {
            int64_t wide = dsv4_tensor_int(j->view, first * cols + i); /* an expert: small */
            int32_t narrow = (int32_t)wide;
            if (width == 8)
                memcpy(j->parts[PART_DATA] + 8 * i, &wide, 8);
            else
                memcpy(j->parts[PART_DATA] + 4 * i, &narrow, 4);
        }
        status = put(j, PART_DATA, (uint64_t)(first * cols) * width, j->parts[PART_DATA],
                     (uint64_t)(n * cols) * width);
    }
    return status;
}

static dsv4_status make_strips(job *j)
{
    uint64_t row[PART_COUNT], before[PART_COUNT], now[PART_COUNT];
    copy_kind kind = copy_of(j->view, &j->to);
    dsv4_status status = DSV4_OK;
    encoding_bytes(&j->to, 1, j->w->cols, row);
    for (int64_t first = 0; first < j->w->rows && j->is_exact; first += j->strip) {
        int64_t n = j->w->rows - first < j->strip ? j->w->rows - first : j->strip;
        status = decode(j, first, n);
        if (status != DSV4_OK)
            return status;
        if (kind != COPY_NONE)
            copy_rows(j, kind, first, n, (size_t)row[PART_DATA]);
        else
            status = encode_rows(j, first, n);
        encoding_bytes(&j->to, first, j->w->cols, before);
        encoding_bytes(&j->to, n, j->w->cols, now);
        for (int p = 0; p < PART_COUNT && status == DSV4_OK && j->is_exact; p++)
            status = put(j, p, before[p], j->parts[p], now[p]);
        if (status != DSV4_OK)
            return status;
    }
    return DSV4_OK;
}

/* *exact: whether the values survived; a matrix that is not exact is left off in the middle when
 * enc->exact asks for it. */
static dsv4_status make_matrix(const encoder *enc, const weight *w, int64_t e, const encoding *to,
                               const byte_sink *sink, bool *exact, dsv4_error *err)
{
    job j = {.enc = enc, .w = w, .e = e, .view = &w->views[e], .to = *to, .sink = sink, .err = err};
    dsv4_status status = DSV4_OK;
    uint64_t bytes[PART_COUNT];
    j.is_exact = true;
    j.strip = STRIP_FLOATS / w->cols / STRIP_ROWS * STRIP_ROWS;
    if (j.strip < STRIP_ROWS)
        j.strip = STRIP_ROWS;
    if (j.strip > w->rows)
        j.strip = w->rows;
    encoding_bytes(to, j.strip, w->cols, bytes);
    j.values = dsv4_alloc((size_t)(j.strip * w->cols), sizeof *j.values, "a strip", err);
    j.check = dsv4_alloc((size_t)w->cols, sizeof *j.check, "a row", err);
    if (j.values == NULL || j.check == NULL)
        status = DSV4_E_MACHINE;
    for (int p = 0; p < PART_COUNT && status == DSV4_OK; p++) {
        if (bytes[p] == 0)
            continue;
        j.parts[p] = dsv4_alloc((size_t)bytes[p], 1, "an encoded strip", err);
        if (j.parts[p] == NULL)
            status = DSV4_E_MACHINE;
    }
    if (status == DSV4_OK && w->kind == W_TABLE) {
        status = make_table(&j);
    } else if (status == DSV4_OK) {
        status = choose_importance(&j);
        if (status == DSV4_OK)
            status = make_strips(&j);
    }
    *exact = j.is_exact;
    for (int p = 0; p < PART_COUNT; p++)
        free(j.parts[p]);
    free(j.values);
    free(j.check);
    free(j.weights);
    return status;
}

static dsv4_status make(void *ctx, const weight *w, int64_t e, const encoding *to,
                        const byte_sink *sink, dsv4_error *err)
{
    const encoder *enc = ctx;
    bool exact;
    dsv4_status status = make_matrix(enc, w, e, to, sink, &exact, err);
    if (status == DSV4_OK && !exact) {
        char name[96];
        weight_name(w, e, name);
        status = dsv4_fail(err, DSV4_E_INPUT, "%s: tensor %s: %s cannot hold its values exactly",
                           enc->model, name, dsv4_format_of(to->type)->name);
    }
    return status;
}

weight_maker encoder_maker(encoder *e)
{
    return (weight_maker){.ctx = e, .make = make};
}

static dsv4_status put_nowhere(void *ctx, int part, uint64_t offset, const void *data, size_t bytes,
                               dsv4_error *err)
{
    (void)ctx, (void)part, (void)offset, (void)data, (void)bytes, (void)err;
    return DSV4_OK;
}

typedef struct {
    const weight *w;
    const encoding *to;
    bool *exact; /* [matrices] */
} exactness;

/* A matrix that is not exact stops the others, as a failure does; the caller tells them apart. */
static dsv4_status try_one(void *ctx, int64_t e, dsv4_error *err)
{
    static const encoder enc = {.model = "model", .exact = true};
    static const byte_sink sink = {.put = put_nowhere};
    const exactness *x = ctx;
    x->exact[e] = true;
    if (copy_of(&x->w->views[e], x->to) != COPY_NONE)
        return DSV4_OK;
    dsv4_status status = make_matrix(&enc, x->w, e, x->to, &sink, &x->exact[e], err);
    return status == DSV4_OK && !x->exact[e] ? DSV4_E_INPUT : status;
}

dsv4_status weight_is_exact(const weight *w, const encoding *to, int threads, bool *exact,
                            dsv4_error *err)
{
    const dsv4_format *f = dsv4_format_of(to->type);
    int64_t n = w->experts > 0 ? w->experts : 1;
    *exact =
        w->cols % f->block == 0 && f->encode != NULL && (to->type != DSV4_FP4 || w->cols % 32 == 0);
    if (!*exact)
        return DSV4_OK;
    exactness x = {w, to, dsv4_alloc((size_t)n, sizeof(bool), "flags", err)};
    if (x.exact == NULL)
        return DSV4_E_MACHINE;
    for (int64_t e = 0; e < n; e++)
        x.exact[e] = true; /* those not begun say nothing */
    dsv4_status status = share_work(threads, n, try_one, &x, err);
    for (int64_t e = 0; e < n; e++)
        *exact = *exact && x.exact[e];
    free(x.exact);
    return *exact ? status : DSV4_OK;
}
