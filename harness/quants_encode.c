/* quants_encode.c - encoders: the golden bytes, the bytes that a definition prescribes, error
 * bounds where it prescribes none. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness/quants_private.h"

enum { COLS = QUANTS_COLS, GUARD = 64, GUARD_BYTE = 0xa5 };

/* Encodes n rows into `out`, whose scales may be shared between rows (FP8), and decodes them. */
dsv4_status quants_encode_rows(const quants_context *k, const dsv4_format *f, const float *x,
                               int64_t n, const float *importance, quants_rows *out,
                               quants_encoding *how)
{
    size_t bytes = (size_t)n * out->bytes, beside = (size_t)n * out->scale_bytes;
    uint8_t *raw = dsv4_alloc(bytes + GUARD, 1, "encoded rows", k->err);
    uint8_t *scale = dsv4_alloc(beside + GUARD, 1, "encoded rows", k->err);
    uint8_t *bias = dsv4_alloc(beside + GUARD, 1, "encoded rows", k->err);
    dsv4_status status = raw && scale && bias ? DSV4_OK : DSV4_E_MACHINE;
    *how = REFUSED;
    if (status == DSV4_OK) {
        memset(raw + bytes, GUARD_BYTE, GUARD);
        dsv4_encoded e = {raw, scale, bias, out->group, out->scale_type};
        if (f->encode(x, n, COLS, importance, &e)) {
            *how = ENCODED;
            for (int i = 0; i < GUARD; i++)
                if (raw[bytes + (size_t)i] != GUARD_BYTE)
                    *how = OVERRUN;
            memcpy(out->raw, raw, bytes);
            /* FP8: the one row of scales belongs to every row. */
            for (int64_t r = 0; out->scale != NULL && r < n; r++)
                memcpy(out->scale + (size_t)r * out->scale_bytes,
                       scale + (f->type == DSV4_FP8 ? 0 : (size_t)r * out->scale_bytes),
                       out->scale_bytes);
            if (out->bias != NULL)
                memcpy(out->bias, bias, beside);
            for (int64_t r = 0; r < n; r++) {
                dsv4_row row = quants_row_at(out, r);
                f->decode(&row, COLS, out->values + r * COLS);
            }
        }
    }
    free(raw);
    free(scale);
    free(bias);
    return status;
}

static bool same_bytes(const quants_rows *a, const quants_rows *b)
{
    size_t n = (size_t)a->n;
    return memcmp(a->raw, b->raw, n * a->bytes) == 0 &&
           (a->scale == NULL || memcmp(a->scale, b->scale, n * a->scale_bytes) == 0) &&
           (a->bias == NULL || memcmp(a->bias, b->bias, n * a->scale_bytes) == 0);
}

static double weighted_error(const float *x, const float *values, const float *importance,
                             int64_t rows)
{
    double sum = 0;
    for (int64_t i = 0; i < rows * COLS; i++) {
        double d = (double)x[i] - (double)values[i];
        sum += (importance ? (double)importance[i % COLS] : 1) * d * d;
    }
    return sum;
}

/* Rows [first, first + n) of some rows; nothing beside the codes. */
static quants_rows slice(const quants_rows *r, int64_t first, int64_t n)
{
    quants_rows s = *r;
    s.n = n;
    s.raw += (size_t)first * r->bytes;
    s.values += first * COLS;
    return s;
}

/* Evidence of the differing cases, row under row. */
typedef struct {
    quants_rows want, got;
    float *x;
    int64_t *cases; /* the case of each block of rows */
    int64_t n;      /* cases */
    bool importance_ignored;
} differing;

static dsv4_status differing_new(const dsv4_format *f, int64_t cases, int64_t rows, differing *d,
                                 dsv4_error *err)
{
    memset(d, 0, sizeof *d);
    d->importance_ignored = true;
    dsv4_status status = quants_rows_new(f, cases * rows, 0, DSV4_F32, &d->want, err);
    if (status == DSV4_OK)
        status = quants_rows_new(f, cases * rows, 0, DSV4_F32, &d->got, err);
    d->x = dsv4_alloc((size_t)(cases * rows), COLS * sizeof *d->x, "evidence", err);
    d->cases = dsv4_alloc((size_t)cases, sizeof *d->cases, "evidence", err);
    return status == DSV4_OK && d->x && d->cases ? DSV4_OK : DSV4_E_MACHINE;
}

static void differing_free(differing *d)
{
    quants_rows_free(&d->want);
    quants_rows_free(&d->got);
    free(d->x);
    free(d->cases);
}

static void differing_add(differing *d, int64_t c, const float *x, const quants_rows *want,
                          const quants_rows *got)
{
    int64_t n = want->n;
    size_t at = (size_t)(d->n * n), values = (size_t)n * COLS * sizeof(float);
    memcpy(d->want.raw + at * want->bytes, want->raw, (size_t)n * want->bytes);
    memcpy(d->got.raw + at * want->bytes, got->raw, (size_t)n * want->bytes);
    memcpy(d->want.values + at * COLS, want->values, values);
    memcpy(d->got.values + at * COLS, got->values, values);
    memcpy(d->x + at * COLS, x, values);
    d->cases[d->n++] = c;
}

/* Whether our bytes are those that the encoder makes without importance (or with a constant one,
 * where it must have one). */
static dsv4_status ignores_importance(const quants_context *k, const dsv4_format *f, const float *x,
                                      const quants_rows *got, bool *ignored)
{
    quants_rows plain;
    quants_encoding how;
    float ones[COLS];
    for (int i = 0; i < COLS; i++)
        ones[i] = 1;
    dsv4_status status = quants_rows_new(f, got->n, 0, DSV4_F32, &plain, k->err);
    if (status != DSV4_OK)
        return status;
    status = quants_encode_rows(k, f, x, got->n, f->needs_importance ? ones : NULL, &plain, &how);
    *ignored = status == DSV4_OK && how == ENCODED && same_bytes(&plain, got);
    quants_rows_free(&plain);
    return status;
}

/* One golden case. */
static dsv4_status encode_case(const quants_context *k, const dsv4_format *f, const quants_type *t,
                               int64_t c, quants_rows *got, differing *d, quants_outcome *o)
{
    int64_t n;
    const float *importance;
    const budget *allowed, *excess;
    quants_encoding how;
    const float *x =
        quants_input_rows(k->file, quants_case_input(k->file, t->cases[c], &importance), &n);
    quants_rows want = slice(&t->rows, c * t->case_rows, t->case_rows);
    dsv4_status status = quants_encode_rows(k, f, x, t->case_rows, importance, got, &how);
    if (status != DSV4_OK)
        return status;
    o->compared++;
    if (how == ENCODED && same_bytes(got, &want)) {
        o->equal++;
        return DSV4_OK;
    }
    if (how != ENCODED) {
        if (o->cause[0] == '\0')
            snprintf(o->cause, sizeof o->cause, "the encoder %s in case %s",
                     how == REFUSED ? "refuses its input" : "writes past its rows", t->cases[c]);
        return DSV4_OK;
    }
    double ours = weighted_error(x, got->values, importance, t->case_rows);
    double golden = weighted_error(x, want.values, importance, t->case_rows);
    o->error_ours += isfinite(ours) ? ours : 0;
    o->error_golden += isfinite(golden) ? golden : 0;
    status = quants_budget(k, "encode", f->name, t->cases[c], &allowed);
    if (status == DSV4_OK)
        status = quants_budget(k, "encode_error", f->name, t->cases[c], &excess);
    if (status != DSV4_OK)
        return status;
    if (allowed->pass >= 1 && ours <= golden * (1 + excess->pass)) {
        o->waived++;
        o->waiver = allowed->reason;
        return DSV4_OK;
    }
    bool ignored = false;
    if (importance != NULL && d->importance_ignored)
        status = ignores_importance(k, f, x, got, &ignored);
    d->importance_ignored = d->importance_ignored && ignored;
    differing_add(d, c, x, &want, got);
    return status;
}

/* Every golden case of a type. */
dsv4_status quants_check_encode(const quants_context *k, const dsv4_format *f, const quants_type *t,
                                const char *tie_rule, quants_outcome *o)
{
    differing d;
    quants_rows got = {0};
    dsv4_status status = differing_new(f, t->n_cases, t->case_rows, &d, k->err);
    if (status == DSV4_OK)
        status = quants_rows_new(f, t->case_rows, 0, DSV4_F32, &got, k->err);
    for (int64_t c = 0; c < t->n_cases && status == DSV4_OK; c++)
        status = encode_case(k, f, t, c, &got, &d, o);
    if (status == DSV4_OK && d.n > 0 && quants_unnamed(o)) {
        quants_place_of where = {t, d.cases, NULL};
        d.want.n = d.got.n = d.n * t->case_rows;
        quants_encode_evidence e = {f, d.x, &d.want, &d.got, d.importance_ignored, tie_rule};
        quants_diagnose_encode(&e, quants_place, &where, o->cause, sizeof o->cause);
    }
    quants_rows_free(&got);
    differing_free(&d);
    return status;
}

/* Largest error of an MLX case in steps of its group, after what rounding the scale and the bias
 * to their type explains. */
static double steps_off(const dsv4_format *f, const quants_case *c, const quants_rows *got)
{
    double worst = 0, top = f->type == DSV4_MLX8 ? 255 : 15;
    double u = got->scale_type == DSV4_F16    ? 0x1p-11
               : got->scale_type == DSV4_BF16 ? 0x1p-8
                                              : 0x1p-24;
    for (int64_t g = 0; g < c->rows * COLS; g += got->group) {
        double low = INFINITY, high = -INFINITY;
        for (int64_t i = g; i < g + got->group; i++) {
            low = fmin(low, (double)c->x[i]);
            high = fmax(high, (double)c->x[i]);
        }
        double rounding = u * (fmax(fabs(low), fabs(high)) + 2 * (high - low));
        for (int64_t i = g; i < g + got->group; i++) {
            double off = fabs((double)c->x[i] - (double)got->values[i]) - rounding;
            worst = fmax(worst, isnan(off) ? INFINITY : off / ((high - low) / top));
        }
    }
    return worst;
}

/* A case of the definition. */
dsv4_status quants_check_defined_encode(const quants_context *k, const dsv4_format *f,
                                        quants_case *c, const char *tie_rule, quants_outcome *o)
{
    quants_rows got;
    quants_encoding how;
    const budget *steps;
    quants_place_of where = {NULL, NULL, c->name};
    dsv4_status status =
        quants_rows_new(f, c->rows, c->want.group, c->want.scale_type, &got, k->err);
    if (status != DSV4_OK)
        return status;
    status = quants_encode_rows(k, f, c->x, c->rows, NULL, &got, &how);
    if (status != DSV4_OK)
        goto done;
    o->compared++;
    if (how != ENCODED) {
        snprintf(o->cause, sizeof o->cause, "the encoder %s in definition (%s)",
                 how == REFUSED ? "refuses its input" : "writes past its rows", c->name);
    } else if (c->want.raw == NULL) {
        status = quants_budget(k, "mlx_steps", f->name, NULL, &steps);
        double off = status == DSV4_OK ? steps_off(f, c, &got) : 0;
        if (status == DSV4_OK && off <= steps->pass)
            o->equal++;
        else if (status == DSV4_OK && o->cause[0] == '\0')
            snprintf(o->cause, sizeof o->cause,
                     "an input is missed by %.3g steps of its group (allowed: %g)", off,
                     steps->pass);
    } else if (same_bytes(&got, &c->want)) {
        o->equal++;
    } else if (quants_unnamed(o)) {
        for (int64_t r = 0; r < c->rows; r++) {
            dsv4_row row = quants_row_at(&c->want, r);
            f->decode(&row, COLS, c->want.values + r * COLS);
        }
        quants_encode_evidence e = {f, c->x, &c->want, &got, false, tie_rule};
        quants_diagnose_encode(&e, quants_place, &where, o->cause, sizeof o->cause);
    }
done:
    quants_rows_free(&got);
    return status;
}
