/* recorder.c - a listener that keeps what it hears, to be written as one case of a dump. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runner.h"

typedef struct {
    int64_t n, cap, width; /* rows, widest row */
    int64_t *positions;    /* [n] */
    uint8_t *data;         /* [n][width] of 4 bytes */
} track;

struct recorder {
    const dsv4_config *config;
    const vec_case *c;
    const int64_t *positions;
    int64_t n_positions;
    const char *glob;
    dsv4_taps taps;
    int layers;
    track *tracks; /* [layers + 1][DSV4_TAP_COUNT] */
    dsv4_status status;
    dsv4_error err;
};

static track *track_of(recorder *r, dsv4_tap_id id, int layer)
{
    int row = layer < 0 ? r->layers : layer;
    return &r->tracks[(size_t)row * DSV4_TAP_COUNT + (size_t)id];
}

static bool wants(void *ctx, dsv4_tap_id id, int layer, int64_t position)
{
    const recorder *r = ctx;
    if (layer >= r->layers || !name_matches(r->glob, dsv4_tap_name(id)))
        return false;
    if (dsv4_tap_is_row(id))
        return true;
    if (r->c->decode && id == DSV4_TAP_STREAMS && position < r->c->prefill)
        return false; /* of decode steps only */
    for (int64_t i = 0; i < r->n_positions; i++)
        if (r->positions[i] == position)
            return true;
    return false;
}

/* Context-dependent taps are stored in one width: rows that do not exist yet score -inf, places of
 * a selection that are not used are -1. */
static int64_t stored_width(const recorder *r, dsv4_tap_id id, int64_t n)
{
    return id == DSV4_TAP_INDEXER_SCORES ? r->c->context / 4 : n;
}

static bool grow(recorder *r, track *t)
{
    if (t->n < t->cap)
        return true;
    int64_t cap = t->cap > 0 ? 2 * t->cap : 8;
    uint8_t *data = dsv4_alloc((size_t)(cap * t->width), 4, "a recording", &r->err);
    int64_t *positions = dsv4_alloc((size_t)cap, sizeof *positions, "a recording", &r->err);
    if (data == NULL || positions == NULL) {
        free(data);
        free(positions);
        r->status = DSV4_E_MACHINE;
        return false;
    }
    if (t->n > 0) {
        memcpy(data, t->data, (size_t)(t->n * t->width) * 4);
        memcpy(positions, t->positions, (size_t)t->n * sizeof *positions);
    }
    free(t->data);
    free(t->positions);
    t->data = data;
    t->positions = positions;
    t->cap = cap;
    return true;
}

static void on_tap(void *ctx, dsv4_tap_id id, int layer, int64_t position, void *data, size_t count)
{
    recorder *r = ctx;
    if (r->status != DSV4_OK || !wants(ctx, id, layer, position))
        return;
    track *t = track_of(r, id, layer);
    int64_t n = (int64_t)count, width = stored_width(r, id, n);
    if (t->n == 0)
        t->width = width;
    for (int64_t i = t->n; i > 0 && t->positions[i - 1] >= position; i--)
        if (t->positions[i - 1] == position)
            return; /* the first report counts, as with the judge */
    if (!grow(r, t))
        return;
    uint8_t *row = t->data + (size_t)(t->n * t->width) * 4;
    memcpy(row, data, (size_t)(n < t->width ? n : t->width) * 4);
    for (int64_t i = n; i < t->width; i++)
        memcpy(row + (size_t)i * 4, &(float){-INFINITY}, 4);
    t->positions[t->n++] = position;
}

dsv4_status recorder_new(const dsv4_config *config, const vec_case *c, const int64_t *positions,
                         int64_t n, const char *glob, recorder **out, dsv4_error *err)
{
    *out = NULL;
    recorder *r = dsv4_alloc(1, sizeof *r, "a recorder", err);
    if (r == NULL)
        return DSV4_E_MACHINE;
    r->config = config;
    r->c = c;
    r->positions = positions;
    r->n_positions = n;
    r->glob = glob;
    r->layers = config->num_hidden_layers;
    r->taps = (dsv4_taps){.ctx = r, .want = wants, .tap = on_tap};
    r->tracks =
        dsv4_alloc((size_t)(r->layers + 1) * DSV4_TAP_COUNT, sizeof *r->tracks, "a recorder", err);
    if (r->tracks == NULL) {
        free(r);
        return DSV4_E_MACHINE;
    }
    *out = r;
    return DSV4_OK;
}

const dsv4_taps *recorder_taps(recorder *r)
{
    return &r->taps;
}

dsv4_status recorder_write(recorder *r, vec_writer *w, dsv4_error *err)
{
    if (r->status != DSV4_OK) {
        *err = r->err;
        return r->status;
    }
    for (int layer = 0; layer <= r->layers; layer++)
        for (int id = 0; id < DSV4_TAP_COUNT; id++) {
            const track *t = &r->tracks[(size_t)layer * DSV4_TAP_COUNT + (size_t)id];
            if (t->n == 0)
                continue;
            int64_t shape[2];
            int ndim = dsv4_tap_shape((dsv4_tap_id)id, r->config, shape);
            if (shape[0] < 0)
                shape[0] = t->width;
            dsv4_status status = vec_writer_tap(w, (dsv4_tap_id)id, layer < r->layers ? layer : -1,
                                                t->n, ndim, shape, t->positions, t->data, err);
            if (status != DSV4_OK)
                return status;
        }
    return DSV4_OK;
}

void recorder_free(recorder *r)
{
    if (r == NULL)
        return;
    for (int i = 0; i < (r->layers + 1) * DSV4_TAP_COUNT; i++) {
        free(r->tracks[i].data);
        free(r->tracks[i].positions);
    }
    free(r->tracks);
    free(r);
}

/* ---- whole cases ----------------------------------------------------------------------------- */

/* "0,5,17-20" within [0, context); NULL = all. Caller frees. */
dsv4_status parse_positions(const char *list, int64_t context, int64_t **out, int64_t *n,
                            dsv4_error *err)
{
    *n = 0;
    *out = dsv4_alloc((size_t)context, sizeof **out, "positions", err);
    if (*out == NULL)
        return DSV4_E_MACHINE;
    if (list == NULL) {
        for (int64_t i = 0; i < context; i++)
            (*out)[(*n)++] = i;
        return DSV4_OK;
    }
    int64_t last = -1;
    if (*list == '\0')
        return dsv4_fail(err, DSV4_E_INPUT, "--positions: expected numbers, found nothing");
    for (const char *p = list; *p != '\0';) {
        char *end;
        long long a = strtoll(p, &end, 10), b = a;
        bool good = end != p;
        if (good && *end == '-') {
            p = end + 1;
            b = strtoll(p, &end, 10);
            good = end != p;
        }
        if (!good || a <= last || b < a || b >= context || (*end != ',' && *end != '\0'))
            return dsv4_fail(err, DSV4_E_INPUT,
                             "--positions: expected rising numbers below %lld like 0,5,17-20, "
                             "found '%s'",
                             (long long)context, list);
        for (int64_t i = a; i <= b; i++)
            (*out)[(*n)++] = i;
        last = b;
        p = *end == ',' ? end + 1 : end;
    }
    return DSV4_OK;
}

dsv4_status record_case(engine *e, const dsv4_model *m, const vec_case *c, const char *taps_glob,
                        int chunk, vec_writer *w, dsv4_error *err)
{
    recorder *r = NULL;
    dsv4_status status =
        recorder_new(&m->config, c, c->positions, c->n_positions, taps_glob, &r, err);
    if (status != DSV4_OK)
        return status;
    const dsv4_taps *taps = recorder_taps(r);
    status = engine_run(e, &c, &taps, 1, m->mtp != NULL, chunk, err);
    if (status == DSV4_OK)
        status = vec_writer_case(w, c, err);
    if (status == DSV4_OK)
        status = recorder_write(r, w, err);
    recorder_free(r);
    return status;
}

/* Positions of a case of a vector file: its own, or the list's. A decode case is recorded from the
 * logits after its prefill on. */
static dsv4_status case_positions(const vec_case *c, const record_options *o, int64_t **out,
                                  int64_t *n, dsv4_error *err)
{
    const char *list = o->positions;
    if (c->n_positions > 0 && list == NULL && !o->every_position) {
        *n = c->n_positions;
        *out = dsv4_alloc((size_t)*n, sizeof **out, "positions", err);
        if (*out == NULL)
            return DSV4_E_MACHINE;
        memcpy(*out, c->positions, (size_t)*n * sizeof **out);
        return DSV4_OK;
    }
    dsv4_status status = parse_positions(list, c->context, out, n, err);
    int64_t first = c->decode ? c->prefill - 1 : 0, kept = 0;
    for (int64_t i = 0; status == DSV4_OK && i < *n; i++)
        if ((*out)[i] >= first)
            (*out)[kept++] = (*out)[i];
    *n = kept;
    return status;
}

dsv4_status record_cases(engine *e, const dsv4_model *m, const vec_file *f, const record_options *o,
                         vec_writer *w, dsv4_error *err)
{
    size_t done = 0;
    dsv4_status status = DSV4_OK;
    for (size_t i = 0; i < vec_case_count(f) && status == DSV4_OK; i++) {
        vec_case c = *vec_case_at(f, i);
        int64_t *positions = NULL;
        if (!case_admitted(&c, o->case_glob))
            continue;
        status = case_positions(vec_case_at(f, i), o, &positions, &c.n_positions, err);
        c.positions = positions;
        if (status == DSV4_OK)
            status = record_case(e, m, &c, o->tap_glob, o->chunk, w, err);
        free(positions);
        if (o->progress != NULL)
            progress_step(o->progress, c.name);
        done++;
    }
    if (status == DSV4_OK && done == 0)
        status = dsv4_fail(err, DSV4_E_INPUT, "%s: no case matches '%s'", vec_path(f),
                           o->case_glob != NULL ? o->case_glob : "*");
    return status;
}
