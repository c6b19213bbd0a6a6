/* quants.c - every weight format against golden blocks and against its definition: decode, encode
 * (quants_encode.c), dot and dot_act (quants_dot.c), each measured, judged by its budget and, when
 * it fails, diagnosed; and what the format costs. */
#include <float.h>
#include <fnmatch.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness/quants_private.h"

enum { COLS = QUANTS_COLS };

const char *quants_check_name(quants_check c)
{
    static const char *const names[] = {"decode", "encode", "dot", "dot_act"};
    return names[c];
}

/* ---- budgets -------------------------------------------------------------------------------- */

/* The line for @quants/<what>/<format>[/<case>]; its absence is an error. */
dsv4_status quants_budget(const quants_context *k, const char *what, const char *format,
                          const char *case_name, const budget **out)
{
    char tap[256];
    snprintf(tap, sizeof tap, "@quants/%s/%s%s%s", what, format, case_name ? "/" : "",
             case_name ? case_name : "");
    *out = budgets_find(k->budgets, tap, DSV4_MATH, WEIGHTS_EXACT, ROWS_CLEAN);
    if (*out == NULL)
        return dsv4_fail(k->err, DSV4_E_INPUT, "the budget table has no line for %s", tap);
    return DSV4_OK;
}

/* Judges an outcome's `measured`. */
static dsv4_status judge_check(const quants_context *k, const char *format, quants_check c,
                               quants_outcome *o)
{
    if (o->compared == 0) {
        o->verdict = VERDICT_SKIPPED;
        if (o->reason == NULL)
            o->reason = "nothing to compare with";
        return DSV4_OK;
    }
    dsv4_status status = quants_budget(k, quants_check_name(c), format, NULL, &o->limit);
    if (status != DSV4_OK)
        return status;
    o->verdict = o->measured <= o->limit->pass   ? VERDICT_PASS
                 : o->measured <= o->limit->fail ? VERDICT_MARGINAL
                                                 : VERDICT_FAIL;
    o->reason = o->limit->reason;
    return DSV4_OK;
}

bool quants_unnamed(const quants_outcome *o)
{
    static const char nothing[] = "no simple cause";
    return strncmp(o->cause, nothing, o->cause[0] == '\0' ? 0 : sizeof nothing - 1) == 0;
}

/* ---- where a row is, for messages ------------------------------------------------------------ */

void quants_place(const void *ctx, int64_t row, char *text, size_t size)
{
    const quants_place_of *p = ctx;
    if (p->type == NULL) {
        snprintf(text, size, "definition (%s), row %lld", p->definition, (long long)row);
        return;
    }
    int64_t c = row / p->type->case_rows;
    if (p->cases == NULL && c >= p->type->n_cases)
        snprintf(text, size, "random bits, row %lld",
                 (long long)(row - p->type->n_cases * p->type->case_rows));
    else
        snprintf(text, size, "case %s, row %lld", p->type->cases[p->cases ? p->cases[c] : c],
                 (long long)(row % p->type->case_rows));
}

/* ---- decode --------------------------------------------------------------------------------- */

static bool same_floats(const float *a, const float *b)
{
    for (int i = 0; i < COLS; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i])))
            return false;
    return true;
}

static double largest_difference(const float *a, const float *b)
{
    double worst = 0;
    for (int i = 0; i < COLS; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (isnan(d) && !(isnan(a[i]) && isnan(b[i])) && a[i] != b[i])
            d = INFINITY;
        worst = d > worst ? d : worst;
    }
    return worst;
}

/* Which codes the rows use, ORed into seen[codes]. */
static void mark_codes(const dsv4_format *f, const quants_rows *rows, uint8_t *seen, int codes)
{
    for (int64_t r = 0; r < rows->n; r++)
        for (int i = 0; i < COLS; i++) {
            int c = quants_code(f, rows, r, i) & (codes - 1); /* signed codes count as bytes */
            seen[c] = 1;
        }
}

static dsv4_status check_decode(const quants_context *k, const dsv4_format *f,
                                const quants_rows *rows, const quants_place_of *where,
                                quants_outcome *o)
{
    int64_t wrong = 0;
    float *got = dsv4_alloc((size_t)rows->n, COLS * sizeof *got, "decoded rows", k->err);
    if (got == NULL)
        return DSV4_E_MACHINE;
    for (int64_t r = 0; r < rows->n; r++) {
        dsv4_row row = quants_row_at(rows, r);
        const float *want = rows->values + r * COLS;
        f->decode(&row, COLS, got + r * COLS);
        bool equal = same_floats(want, got + r * COLS);
        wrong += !equal;
        if (!equal)
            o->worst = fmax(o->worst, largest_difference(want, got + r * COLS));
    }
    if (wrong > 0 && quants_unnamed(o))
        quants_diagnose_decode(&(quants_decode_evidence){f, rows, got}, quants_place, where,
                               o->cause, sizeof o->cause);
    o->compared += rows->n;
    o->equal += rows->n - wrong;
    o->measured = (double)(o->compared - o->equal) / (double)o->compared;
    free(got);
    return DSV4_OK;
}

/* Q8_K, the activation blocks of the K formats, is in the file only as such. */
static dsv4_status check_activation_blocks(const quants_context *k, const dsv4_format *f,
                                           quants_outcome *o)
{
    dsv4_status status = DSV4_OK;
    quants_type *t = NULL;
    quants_rows got;
    quants_encoding how;
    for (size_t i = 0; t == NULL && i < quants_type_count(k->file) && status == DSV4_OK; i++) {
        const dsv4_format *weights = dsv4_format_by_name(quants_type_name(k->file, i));
        if (weights == NULL || weights->act_type != f->type)
            continue;
        status = quants_type_read(k->file, quants_type_name(k->file, i), &t, k->err);
        if (status == DSV4_OK && t->n_dots == 0) {
            quants_type_free(t);
            t = NULL;
        }
    }
    for (size_t d = 0; status == DSV4_OK && t != NULL && d < t->n_dots; d++) {
        const quants_dot *g = &t->dots[d];
        if (strcmp(g->weights, t->dots[0].weights) != 0 ||
            g->act_bytes != dsv4_format_row_bytes(f, COLS))
            continue; /* the same activations again */
        status = quants_rows_new(f, g->n_acts, 0, DSV4_F32, &got, k->err);
        if (status != DSV4_OK)
            break;
        status = quants_encode_rows(k, f, g->x, g->n_acts, NULL, &got, &how);
        o->compared++;
        if (how == ENCODED && memcmp(got.raw, g->act_raw, (size_t)g->n_acts * g->act_bytes) == 0)
            o->equal++;
        else if (o->cause[0] == '\0')
            snprintf(o->cause, sizeof o->cause,
                     "no simple cause; activation blocks differ first for activations %s of %s",
                     g->acts, t->name);
        quants_rows_free(&got);
    }
    quants_type_free(t);
    return status;
}

/* ---- format error --------------------------------------------------------------------------- */

static double relative(const float *x, const float *values, int64_t rows)
{
    double dd = 0, ee = 0;
    for (int64_t i = 0; i < rows * COLS; i++) {
        double d = (double)values[i] - (double)x[i];
        dd += d * d;
        ee += (double)x[i] * (double)x[i];
    }
    return isnan(dd) ? INFINITY : dd > 0 ? sqrt(dd / ee) : 0;
}

/* The first case of a distribution, the one without importance if there is one. */
static int64_t plain_case(const quants_type *t, const char *input)
{
    int64_t found = -1;
    size_t n = strlen(input);
    for (int64_t c = 0; c < t->n_cases; c++)
        if (strncmp(t->cases[c], input, n) == 0 && t->cases[c][n] == '/' &&
            (found < 0 || strcmp(t->cases[c] + n, "/none") == 0))
            found = c;
    return found;
}

/* What the format costs on every distribution: of the golden encoding, or of ours if the file holds
 * none. */
static dsv4_status measure_costs(const quants_context *k, const dsv4_format *f,
                                 const quants_type *t, quants_format *item)
{
    dsv4_status status = DSV4_OK;
    bool mlx = f->type == DSV4_MLX4 || f->type == DSV4_MLX8;
    if (t == NULL && (f->encode == NULL || f->needs_importance))
        return DSV4_OK;
    item->costs = dsv4_alloc(quants_input_count(k->file), sizeof *item->costs, "costs", k->err);
    if (item->costs == NULL)
        return DSV4_E_MACHINE;
    for (size_t i = 0; i < quants_input_count(k->file) && status == DSV4_OK; i++) {
        const char *name = quants_input_name(k->file, i);
        quants_cost *cost = &item->costs[item->n_costs];
        int64_t n;
        const float *x = quants_input_rows(k->file, i, &n);
        if (t != NULL) {
            int64_t c = plain_case(t, name);
            if (c < 0)
                continue;
            cost->rel_l2 = relative(x, t->rows.values + c * t->case_rows * COLS, t->case_rows);
        } else {
            quants_rows rows;
            quants_encoding how;
            int group = mlx ? 64 : f->type == DSV4_FP8 ? 128 : f->type == DSV4_FP4 ? 32 : 0;
            status = quants_rows_new(f, n, group, DSV4_F16, &rows, k->err);
            if (status != DSV4_OK)
                break;
            status = quants_encode_rows(k, f, x, n, NULL, &rows, &how);
            cost->rel_l2 = how == REFUSED ? INFINITY : relative(x, rows.values, n);
            quants_rows_free(&rows);
        }
        snprintf(cost->name, sizeof cost->name, "%s", name);
        item->n_costs++;
    }
    for (size_t i = 0; i < item->n_costs; i++) {
        const quants_cost *c = &item->costs[i];
        if (strcmp(c->name, "weights") == 0)
            item->weights = c;
        if (isfinite(c->rel_l2) && (item->worst == NULL || c->rel_l2 > item->worst->rel_l2))
            item->worst = c;
    }
    return status;
}

/* ---- one format ----------------------------------------------------------------------------- */

/* The file's idea of the block must be the table's. */
static dsv4_status check_geometry(const dsv4_format *f, const quants_type *t, const char *path,
                                  dsv4_error *err)
{
    if (t->block == f->block && t->block_bytes == f->block_bytes && t->type_id == f->ggml_type)
        return DSV4_OK;
    return dsv4_fail(err, DSV4_E_INPUT,
                     "%s: types/%s: expected type %d with blocks of %d columns in %d bytes, found "
                     "type %lld, %lld columns in %lld bytes",
                     path, t->name, f->ggml_type, f->block, f->block_bytes, (long long)t->type_id,
                     (long long)t->block, (long long)t->block_bytes);
}

static dsv4_status check_golden(const quants_context *k, const dsv4_format *f, const quants_type *t,
                                const char *tie_rule, quants_format *item)
{
    quants_outcome *o = item->checks;
    quants_place_of where = {t, NULL, NULL};
    float *ours = NULL;
    item->golden = true;
    item->dots_left_out = t->dots_left_out;
    dsv4_status status = check_decode(k, f, &t->rows, &where, &o[QUANTS_DECODE]);
    if (status == DSV4_OK && f->encode != NULL)
        status = quants_check_encode(k, f, t, tie_rule, &o[QUANTS_ENCODE]);
    if (status == DSV4_OK)
        status = quants_our_values(f, &t->rows, &ours, k->err);
    if (status == DSV4_OK)
        status = quants_check_dot(k, f, t, ours, &o[QUANTS_DOT]);
    if (status == DSV4_OK && f->dot_act != NULL)
        status = quants_check_dot_act(k, f, t, ours, &o[QUANTS_DOT_ACT], &item->act_error);
    free(ours);
    return status;
}

static dsv4_status check_definition(const quants_context *k, const dsv4_format *f,
                                    quants_definition *d, quants_format *item)
{
    dsv4_status status = DSV4_OK;
    quants_outcome *o = item->checks;
    quants_place_of where = {NULL, NULL, d->what};
    item->defined = d->n_sets > 0 || d->n_cases > 0;
    item->definition = d->what;
    for (size_t i = 0; i < d->n_sets && status == DSV4_OK; i++) {
        status = check_decode(k, f, &d->sets[i], &where, &o[QUANTS_DECODE]);
        if (status == DSV4_OK)
            status = quants_check_defined_dot(k, f, &d->sets[i], &o[QUANTS_DOT]);
    }
    return status;
}

/* How much of a code book the compared rows use. */
static dsv4_status count_codes(const quants_context *k, const dsv4_format *f, const quants_type *t,
                               const quants_definition *d, quants_format *item)
{
    const quants_rows *some = t != NULL ? &t->rows : d->n_sets > 0 ? &d->sets[0] : NULL;
    if (some == NULL)
        return DSV4_OK;
    quants_layout l = quants_layout_of(f, some);
    item->codes = l.codes;
    if (l.codes == 0)
        return DSV4_OK;
    uint8_t *seen = dsv4_alloc((size_t)l.codes, 1, "codes", k->err);
    if (seen == NULL)
        return DSV4_E_MACHINE;
    if (t != NULL)
        mark_codes(f, &t->rows, seen, l.codes);
    for (size_t i = 0; i < d->n_sets; i++)
        mark_codes(f, &d->sets[i], seen, l.codes);
    for (int i = 0; i < l.codes; i++)
        item->codes_seen += seen[i];
    free(seen);
    return DSV4_OK;
}

static dsv4_status check_format(const quants_context *k, const dsv4_format *f, quants_format *item)
{
    quants_definition d = {0};
    quants_type *t = NULL;
    quants_outcome *o = item->checks;
    item->format = f;
    item->act_error = NAN;
    snprintf(item->name, sizeof item->name, "%s", f->name);
    dsv4_status status = quants_define(f, &d, k->err);
    /* Defined cases come first: they are made so that what is wrong with them has a name. */
    for (size_t i = 0; i < d.n_cases && status == DSV4_OK && f->encode != NULL; i++)
        status = quants_check_defined_encode(k, f, &d.cases[i], d.tie_rule, &o[QUANTS_ENCODE]);
    if (status == DSV4_OK && quants_has_type(k->file, f->name)) {
        status = quants_type_read(k->file, f->name, &t, k->err);
        if (status == DSV4_OK)
            status = check_geometry(f, t, k->path, k->err);
        if (status == DSV4_OK)
            status = check_golden(k, f, t, d.tie_rule, item);
    }
    if (status == DSV4_OK)
        status = check_definition(k, f, &d, item);
    if (status == DSV4_OK && f->type == DSV4_Q8_K && f->encode != NULL)
        status = check_activation_blocks(k, f, &o[QUANTS_ENCODE]);
    if (status == DSV4_OK)
        status = measure_costs(k, f, t, item);
    if (status == DSV4_OK)
        status = count_codes(k, f, t, &d, item);
    quants_outcome *e = &o[QUANTS_ENCODE];
    if (e->compared > 0)
        e->measured = (double)(e->compared - e->equal - e->waived) / (double)e->compared;
    if (f->encode == NULL)
        e->reason = "this project does not write the format";
    if (f->dot_act == NULL)
        o[QUANTS_DOT_ACT].reason = "the format has no product with activation blocks";
    item->verdict = VERDICT_SKIPPED;
    for (quants_check c = QUANTS_DECODE; c < QUANTS_CHECKS && status == DSV4_OK; c++) {
        status = judge_check(k, f->name, c, &o[c]);
        if (status == DSV4_OK && o[c].verdict != VERDICT_SKIPPED &&
            (item->verdict == VERDICT_SKIPPED || o[c].verdict > item->verdict))
            item->verdict = o[c].verdict;
    }
    if (item->verdict == VERDICT_SKIPPED)
        item->reason = "no golden blocks in the file and no definition to check against";
    quants_type_free(t);
    quants_definition_free(&d);
    return status;
}

/* ---- the run -------------------------------------------------------------------------------- */

static char *copy_text(const char *s, dsv4_error *err)
{
    char *copy = dsv4_alloc(strlen(s) + 1, 1, "results", err);
    if (copy != NULL)
        strcpy(copy, s);
    return copy;
}

static bool wanted(const char *glob, const char *name)
{
    return glob == NULL || fnmatch(glob, name, 0) == 0;
}

/* Formats of the file that the table does not know are listed, not forgotten. */
static void add_strangers(const quants_file *file, const char *glob, quants_report *out)
{
    for (size_t i = 0; i < quants_type_count(file); i++) {
        const char *name = quants_type_name(file, i);
        if (dsv4_format_by_name(name) != NULL || !wanted(glob, name))
            continue;
        quants_format *item = &out->items[out->count++];
        snprintf(item->name, sizeof item->name, "%s", name);
        item->act_error = NAN;
        item->verdict = VERDICT_SKIPPED;
        item->reason = "in the file, not in the table of formats";
        for (int c = 0; c < QUANTS_CHECKS; c++) {
            item->checks[c].verdict = VERDICT_SKIPPED;
            item->checks[c].reason = item->reason;
        }
    }
}

static void sum_up(quants_report *r)
{
    r->verdict = VERDICT_SKIPPED;
    for (size_t i = 0; i < r->count; i++)
        for (int c = 0; c < QUANTS_CHECKS; c++) {
            const quants_outcome *o = &r->items[i].checks[c];
            r->counts[o->verdict]++;
            r->waived += (size_t)o->waived;
            if (o->verdict == VERDICT_SKIPPED)
                continue;
            r->comparisons++;
            r->cases += o->compared;
            if (r->verdict == VERDICT_SKIPPED || o->verdict > r->verdict)
                r->verdict = o->verdict;
        }
}

dsv4_status quants_run(const char *path, const char *glob, quants_lookup format_of,
                       const budget_table *budgets, quants_report *out, dsv4_error *err)
{
    quants_file *file = NULL;
    memset(out, 0, sizeof *out);
    dsv4_status status = quants_open(path, &file, err);
    if (status != DSV4_OK)
        return status;
    quants_context k = {path, file, budgets, err};
    out->path = copy_text(path, err);
    out->producer = copy_text(quants_producer(file), err);
    out->items =
        dsv4_alloc(DSV4_TYPE_COUNT + quants_type_count(file), sizeof *out->items, "results", err);
    if (out->path == NULL || out->producer == NULL || out->items == NULL)
        status = DSV4_E_MACHINE;
    for (int t = 0; t < DSV4_TYPE_COUNT && status == DSV4_OK; t++) {
        const dsv4_format *f = format_of((dsv4_type)t);
        if (wanted(glob, f->name))
            status = check_format(&k, f, &out->items[out->count++]);
    }
    if (status == DSV4_OK)
        add_strangers(file, glob, out);
    if (status == DSV4_OK && out->count == 0)
        status = dsv4_fail(err, DSV4_E_INPUT,
                           "--format: no format matches '%s' (dsv4check list formats)", glob);
    quants_close(file);
    if (status != DSV4_OK)
        quants_report_free(out);
    else
        sum_up(out);
    return status;
}

void quants_report_free(quants_report *r)
{
    for (size_t i = 0; i < r->count; i++)
        free(r->items[i].costs);
    free(r->items);
    free(r->argv);
    free(r->path);
    free(r->producer);
    memset(r, 0, sizeof *r);
}

int quants_exit_code(const quants_report *r)
{
    return r->comparisons == 0 ? DSV4_E_INPUT : r->verdict == VERDICT_FAIL ? 1 : 0;
}
