/* hypotheses_weights.c - trials in which a layer's FP8 or FP4 weights are decoded otherwise than
 * their format says. */
#include <math.h>

#include "hypotheses.h"
#include "reference/formats/formats.h"

dsv4_layer *trial_layer(trial *t)
{
    return &t->layers[t->layer >= 0 ? t->layer : t->model.config.num_hidden_layers - 1];
}

typedef float (*decoder)(const dsv4_tensor *w, int64_t row, int64_t col);

static void decode(trial *t, dsv4_tensor *w, dsv4_type type, decoder how)
{
    dsv4_tensor stored = *w;
    if (w->name == NULL || w->type != type || w->scale == NULL)
        return;
    float *values = trial_alloc(t, (size_t)(w->rows * w->cols), sizeof *values);
    if (values == NULL)
        return;
    for (int64_t r = 0; r < w->rows; r++)
        for (int64_t c = 0; c < w->cols; c++)
            values[r * w->cols + c] = how(&stored, r, c);
    *w = (dsv4_tensor){.name = stored.name,
                       .type = DSV4_F32,
                       .rows = stored.rows,
                       .cols = stored.cols,
                       .data = (const uint8_t *)values,
                       .row_bytes = (size_t)stored.cols * sizeof *values,
                       .scale_rows = 1};
}

static void decode_fp8(trial *t, decoder how)
{
    dsv4_layer *l = trial_layer(t);
    dsv4_tensor *list[] = {&l->wq_a,      &l->wq_b,      &l->wkv,       &l->wo_a,        &l->wo_b,
                           &l->shared_w1, &l->shared_w2, &l->shared_w3, &l->indexer.wq_b};
    bool any = false;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        any = any || (list[i]->type == DSV4_FP8 && list[i]->scale != NULL);
        decode(t, list[i], DSV4_FP8, how);
    }
    t->failed = t->failed || !any;
}

/* The experts of the layer, as copies that may be changed. */
static dsv4_tensor *own(trial *t, const dsv4_tensor *w, decoder how)
{
    size_t n = (size_t)t->model.config.n_routed_experts;
    dsv4_tensor *copy = trial_alloc(t, n, sizeof *copy);
    for (size_t e = 0; copy != NULL && e < n; e++) {
        copy[e] = w[e];
        decode(t, &copy[e], DSV4_FP4, how);
    }
    return copy;
}

static void decode_fp4(trial *t, decoder how)
{
    dsv4_layer *l = trial_layer(t);
    if (l->w1[0].type != DSV4_FP4) {
        t->failed = true;
        return;
    }
    dsv4_tensor *w1 = own(t, l->w1, how), *w2 = own(t, l->w2, how), *w3 = own(t, l->w3, how);
    if (w1 == NULL || w2 == NULL || w3 == NULL)
        return;
    l->w1 = w1;
    l->w2 = w2;
    l->w3 = w3;
}

static uint8_t byte_at(const dsv4_tensor *w, int64_t row, int64_t col)
{
    return w->data[(size_t)(w->row0 + row) * w->row_bytes + (size_t)col];
}

static uint8_t scale_at(const dsv4_tensor *w, int64_t row, int64_t col)
{
    return w->scale[(size_t)((w->row0 + row) / w->scale_rows) * w->scale_row_bytes +
                    (size_t)(col / w->scale_cols)];
}

static float e4m3(const dsv4_tensor *w, int64_t row, int64_t col)
{
    return dsv4_e4m3_to_f32(byte_at(w, row, col));
}

static int nibble(const dsv4_tensor *w, int64_t row, int64_t col, bool exchanged)
{
    uint8_t two = byte_at(w, row, col / 2);
    return (col % 2 != 0) != exchanged ? two >> 4 : two & 15;
}

static float e2m1(const dsv4_tensor *w, int64_t row, int64_t col)
{
    return dsv4_e2m1_to_f32((uint8_t)nibble(w, row, col, false));
}

/* ---- FP8 ------------------------------------------------------------------------------------- */

static float number_8(const dsv4_tensor *w, int64_t row, int64_t col)
{
    return e4m3(w, row, col) * (float)scale_at(w, row, col);
}

static float first_8(const dsv4_tensor *w, int64_t row, int64_t col)
{
    return e4m3(w, row, col) * dsv4_e8m0_to_f32(scale_at(w, row, 0));
}

static float dialect_8(const dsv4_tensor *w, int64_t row, int64_t col)
{
    return e4m3(w, row, col) / 2 * dsv4_e8m0_to_f32(scale_at(w, row, col));
}

static float e5m2_8(const dsv4_tensor *w, int64_t row, int64_t col)
{
    uint8_t code = byte_at(w, row, col);
    float v = ldexpf((float)(4 + (code & 3)) / 4, ((code >> 2) & 31) - 15);
    return (code & 128 ? -v : v) * dsv4_e8m0_to_f32(scale_at(w, row, col));
}

void fp8_scale_number(trial *t)
{
    decode_fp8(t, number_8);
}

void fp8_first_scale(trial *t)
{
    decode_fp8(t, first_8);
}

void fp8_other_dialect(trial *t)
{
    decode_fp8(t, dialect_8);
}

void fp8_as_e5m2(trial *t)
{
    decode_fp8(t, e5m2_8);
}

/* ---- FP4 ------------------------------------------------------------------------------------- */

static float number_4(const dsv4_tensor *w, int64_t row, int64_t col)
{
    return e2m1(w, row, col) * (float)scale_at(w, row, col);
}

static float bias_4(const dsv4_tensor *w, int64_t row, int64_t col)
{
    return number_4(w, row, col) / 127; /* the byte of 1.0 */
}

static float groups_4(const dsv4_tensor *w, int64_t row, int64_t col)
{
    int64_t at = 2 * col < w->cols ? 2 * col : w->cols - 1;
    return e2m1(w, row, col) * dsv4_e8m0_to_f32(scale_at(w, row, at));
}

static float row_0_4(const dsv4_tensor *w, int64_t row, int64_t col)
{
    return e2m1(w, row, col) * dsv4_e8m0_to_f32(scale_at(w, 0, col));
}

static float nibbles_4(const dsv4_tensor *w, int64_t row, int64_t col)
{
    return dsv4_e2m1_to_f32((uint8_t)nibble(w, row, col, true)) *
           dsv4_e8m0_to_f32(scale_at(w, row, col));
}

static float integer_4(const dsv4_tensor *w, int64_t row, int64_t col)
{
    int code = nibble(w, row, col, false);
    return (float)(code > 7 ? code - 16 : code) * dsv4_e8m0_to_f32(scale_at(w, row, col));
}

void fp4_scale_number(trial *t)
{
    decode_fp4(t, bias_4);
}

void fp4_scale_plain(trial *t)
{
    decode_fp4(t, number_4);
}

void fp4_half_groups(trial *t)
{
    decode_fp4(t, groups_4);
}

void fp4_first_scales(trial *t)
{
    decode_fp4(t, row_0_4);
}

void fp4_nibbles(trial *t)
{
    decode_fp4(t, nibbles_4);
}

void fp4_as_integer(trial *t)
{
    decode_fp4(t, integer_4);
}
