/* quants_dot.c - dot products: with float activations against the exact ones, with rounded
 * activations against two builds of the library that made the vectors. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness/quants_private.h"

enum { COLS = QUANTS_COLS };

/* ---- dot ------------------------------------------------------------------------------------ */

/* The size of what is added up: where values are differences, both terms are of the order of the
 * group's largest value. */
static double magnitude(const float *w, const float *x)
{
    double sum = 0;
    for (int i = 0; i < COLS; i += 32) {
        double largest = 0, total = 0;
        for (int j = i; j < i + 32; j++) {
            largest = fmax(largest, fabs((double)w[j]));
            total += fabs((double)x[j]);
        }
        sum += largest * total;
    }
    return sum;
}

/* Products of a whole check, for the diagnosis. */
typedef struct {
    quants_product *p;
    size_t n, capacity;
    float *room; /* [rows][512] our decode and [..][512] activations, freed together */
} products;

static bool add_product(products *all, const quants_product *p, dsv4_error *err)
{
    if (all->n == all->capacity) {
        size_t capacity = all->capacity ? 2 * all->capacity : 256;
        quants_product *more = dsv4_alloc(capacity, sizeof *more, "dot products", err);
        if (more == NULL)
            return false;
        if (all->n > 0)
            memcpy(more, all->p, all->n * sizeof *more);
        free(all->p);
        all->p = more;
        all->capacity = capacity;
    }
    all->p[all->n++] = *p;
    return true;
}

/* Adds one product to an outcome. `worst` is the whole difference, `measured` what is left beyond
 * `free_of_charge`, both in units of the product's magnitude. */
static void count_product(quants_outcome *o, const quants_product *p, double free_of_charge,
                          double limit)
{
    double off = fabs(p->got - p->expected);
    if (isnan(off))
        off = isnan(p->got) && isnan(p->expected) ? 0 : INFINITY;
    double unit = p->magnitude > 0 ? p->magnitude : DBL_MIN;
    double beyond = fmax(off - free_of_charge, 0) / unit;
    o->compared++;
    o->equal += beyond <= limit;
    o->worst = fmax(o->worst, off / unit);
    o->measured = fmax(o->measured, beyond);
}

dsv4_status quants_our_values(const dsv4_format *f, const quants_rows *rows, float **out,
                              dsv4_error *err)
{
    *out = dsv4_alloc((size_t)rows->n, COLS * sizeof **out, "decoded rows", err);
    if (*out == NULL)
        return DSV4_E_MACHINE;
    for (int64_t r = 0; r < rows->n; r++) {
        dsv4_row row = quants_row_at(rows, r);
        f->decode(&row, COLS, *out + r * COLS);
    }
    return DSV4_OK;
}

/* Golden products with float activations. */
dsv4_status quants_check_dot(const quants_context *k, const dsv4_format *f, const quants_type *t,
                             const float *ours, quants_outcome *o)
{
    const budget *limit;
    products all = {0};
    dsv4_status status = quants_budget(k, "dot", f->name, NULL, &limit);
    for (size_t d = 0; d < t->n_dots && status == DSV4_OK; d++) {
        const quants_dot *g = &t->dots[d];
        for (int64_t w = 0; w < g->n_weights && status == DSV4_OK; w++)
            for (int64_t a = 0; a < g->n_acts && status == DSV4_OK; a++) {
                dsv4_row row = quants_row_at(&t->rows, g->rows[w]);
                quants_product p = {.w = t->rows.values + g->rows[w] * COLS,
                                    .ours = ours + g->rows[w] * COLS,
                                    .rows = &t->rows,
                                    .row = g->rows[w],
                                    .x = g->x + a * COLS,
                                    .expected = g->exact[w * g->n_acts + a]};
                p.got = f->dot(&row, COLS, p.x);
                p.magnitude = magnitude(p.w, p.x);
                p.tolerance = limit->pass * p.magnitude;
                count_product(o, &p, 0, limit->pass);
                if (!add_product(&all, &p, k->err))
                    status = DSV4_E_MACHINE;
            }
    }
    if (status == DSV4_OK && o->equal < o->compared)
        quants_diagnose_dot(f, all.p, all.n, o->cause, sizeof o->cause);
    free(all.p);
    return status;
}

/* Products of defined rows with a fixed ramp of activations. */
dsv4_status quants_check_defined_dot(const quants_context *k, const dsv4_format *f,
                                     const quants_rows *rows, quants_outcome *o)
{
    const budget *limit;
    float x[COLS], *ours = NULL;
    products all = {0};
    dsv4_status status = quants_budget(k, "dot", f->name, NULL, &limit);
    if (status == DSV4_OK)
        status = quants_our_values(f, rows, &ours, k->err);
    for (int i = 0; i < COLS; i++)
        x[i] = (float)((i * 37 + 11) % 129 - 64) / 64;
    for (int64_t r = 0; r < rows->n && status == DSV4_OK; r++) {
        dsv4_row row = quants_row_at(rows, r);
        quants_product p = {
            .w = rows->values + r * COLS, .ours = ours + r * COLS, .rows = rows, .row = r, .x = x};
        for (int i = 0; i < COLS; i++)
            p.expected += (double)p.w[i] * (double)x[i];
        if (!isfinite(p.expected)) /* rows with NaN or infinity: decode's business */
            continue;
        p.got = f->dot(&row, COLS, x);
        p.magnitude = magnitude(p.w, x);
        p.tolerance = limit->pass * p.magnitude;
        count_product(o, &p, 0, limit->pass);
        if (!add_product(&all, &p, k->err))
            status = DSV4_E_MACHINE;
    }
    if (status == DSV4_OK && o->equal < o->compared && o->cause[0] == '\0')
        quants_diagnose_dot(f, all.p, all.n, o->cause, sizeof o->cause);
    free(all.p);
    free(ours);
    return status;
}

/* ---- dot with activation blocks -------------------------------------------------------------- */

enum { Q8_0_BYTES = 34, Q8_1_BYTES = 36, Q8_K_BYTES = 292, ACT_BYTES = COLS / 256 * Q8_K_BYTES };

static double load_f16(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return (double)dsv4_f16_to_f32(h);
}

/* Q8_1 is Q8_0 with the sum of the activations (times d, in f16) between d and the codes. Ours
 * needs no stored sum: drops it and returns what its rounding makes of the result. */
static double from_q8_1(const uint8_t *q8_1, const dsv4_format *f, const uint8_t *weights,
                        uint8_t *q8_0)
{
    double correction = 0;
    for (int b = 0; b < COLS / 32; b++) {
        const uint8_t *from = q8_1 + b * Q8_1_BYTES;
        uint8_t *to = q8_0 + b * Q8_0_BYTES;
        int total = 0;
        memcpy(to, from, 2);
        memcpy(to + 2, from + 4, 32);
        for (int i = 0; i < 32; i++)
            total += (int8_t)to[2 + i];
        correction += load_f16(weights + b * f->block_bytes + 2) *
                      (load_f16(from + 2) - load_f16(from) * total);
    }
    return correction;
}

/* Values of activation blocks. */
static void act_values(dsv4_type type, const uint8_t *act, float *x)
{
    for (int i = 0; i < COLS; i++) {
        if (type == DSV4_Q8_0) {
            const uint8_t *p = act + i / 32 * Q8_0_BYTES;
            x[i] = (float)(load_f16(p) * (int8_t)p[2 + i % 32]);
        } else {
            const uint8_t *p = act + i / 256 * Q8_K_BYTES;
            float d;
            memcpy(&d, p, sizeof d);
            x[i] = (float)((double)d * (int8_t)p[4 + i % 256]);
        }
    }
}

/* Golden products with rounded activations; act_error: their distance from the exact ones. */
dsv4_status quants_check_dot_act(const quants_context *k, const dsv4_format *f,
                                 const quants_type *t, const float *ours, quants_outcome *o,
                                 double *act_error)
{
    const budget *limit, *builds;
    products all = {0};
    double dd = 0, ee = 0;
    float *x = NULL;
    int64_t n = 0, at = 0;
    bool q8_1 = strcmp(t->dot_type, "Q8_1") == 0;
    size_t bytes = dsv4_format_row_bytes(dsv4_format_of(f->act_type), COLS);
    if (f->act_type != DSV4_Q8_0 && f->act_type != DSV4_Q8_K)
        return DSV4_OK;
    dsv4_status status = quants_budget(k, "dot_act", f->name, NULL, &limit);
    if (status == DSV4_OK)
        status = quants_budget(k, "builds", f->name, NULL, &builds);
    for (size_t d = 0; d < t->n_dots; d++)
        n += t->dots[d].n_acts;
    if (status == DSV4_OK && n > 0 &&
        (x = dsv4_alloc((size_t)n, COLS * sizeof *x, "activations", k->err)) == NULL)
        status = DSV4_E_MACHINE;
    for (size_t d = 0; d < t->n_dots && status == DSV4_OK; d++) {
        const quants_dot *g = &t->dots[d];
        double between = 0;
        size_t wanted = q8_1 ? (size_t)COLS / 32 * Q8_1_BYTES : bytes;
        if (g->act_bytes != wanted) {
            status = dsv4_fail(k->err, DSV4_E_INPUT,
                               "%s: types/%s/dot/%s/%s/activation_raw: expected rows of %zu bytes, "
                               "found %zu",
                               k->path, t->name, g->weights, g->acts, wanted, g->act_bytes);
            break;
        }
        for (int64_t i = 0; i < g->n_weights * g->n_acts; i++)
            between = fmax(between, fabs(g->x64[i] - g->zen4[i]));
        for (int64_t a = 0; a < g->n_acts; a++, at++)
            for (int64_t w = 0; w < g->n_weights && status == DSV4_OK; w++) {
                uint8_t act[ACT_BYTES];
                const uint8_t *stored = g->act_raw + (size_t)a * g->act_bytes;
                dsv4_row row = quants_row_at(&t->rows, g->rows[w]);
                double correction = 0, exact = g->exact[w * g->n_acts + a];
                if (q8_1)
                    correction = from_q8_1(stored, f, row.data, act);
                else
                    memcpy(act, stored, bytes);
                act_values(f->act_type, act, x + at * COLS);
                quants_product p = {.w = t->rows.values + g->rows[w] * COLS,
                                    .ours = ours + g->rows[w] * COLS,
                                    .rows = &t->rows,
                                    .row = g->rows[w],
                                    .x = x + at * COLS,
                                    .expected = g->x64[w * g->n_acts + a] - correction};
                p.got = (double)f->dot_act(&row, COLS, act);
                p.magnitude = magnitude(p.w, g->x + a * COLS);
                p.tolerance = builds->pass * between + limit->pass * p.magnitude;
                count_product(o, &p, builds->pass * between, limit->pass);
                if (isfinite(p.got) && isfinite(exact)) {
                    dd += (p.got - exact) * (p.got - exact);
                    ee += exact * exact;
                }
                if (!add_product(&all, &p, k->err))
                    status = DSV4_E_MACHINE;
            }
    }
    if (status == DSV4_OK && o->equal < o->compared)
        quants_diagnose_dot(f, all.p, all.n, o->cause, sizeof o->cause);
    if (o->compared > 0)
        *act_error = dd > 0 ? sqrt(dd / ee) : 0;
    free(all.p);
    free(x);
    return status;
}
