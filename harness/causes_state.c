/* causes_state.c - mistakes in what a session carries, tried on the reference's own session: the
 * same appends, saves and restores, with one part of the state kept or lost. A mistake there is a
 * change of the session's state, so this file looks into it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "causes_state.h"
#include "reference/session.h"

typedef struct {
    const state_schedule *w;
    dsv4_session *s, *before; /* the session now; a twin as it was before reset or restore */
    int64_t how_many;         /* of what is searched for, from 1 */
    int64_t at;               /* where the rest of the tokens begins */
} state_trial;

typedef struct {
    const char *name, *what; /* the fact like:NAME; what `how_many` counts, or NULL */
    bool restore;
    int64_t (*most)(const state_trial *t); /* NULL = one try */
    void (*disturb)(state_trial *t);
} state_mistake;

/* ---- a second request: what the reset has left --------------------------------------------------
 */

static void keep_overlap(state_trial *t)
{
    for (int l = 0; l < t->s->n_layers; l++) {
        layer_state *x = &t->s->layers[l];
        x->compressor.has_prev = x->compressor.lanes == 2;
        x->indexer.has_prev = x->indexer.lanes == 2;
    }
}

static int64_t most_window(const state_trial *t)
{
    int64_t most = t->w->model->config.sliding_window - 1;
    return most < t->w->n_other ? most : t->w->n_other;
}

static void keep_window(state_trial *t)
{
    for (int l = 0; l < t->s->n_layers; l++)
        t->s->layers[l].window_rows = t->how_many;
}

static int64_t most_slots(const state_trial *t)
{
    (void)t;
    return 3; /* of a window of 4 */
}

static void keep_tail(state_trial *t)
{
    for (int l = 0; l < t->s->n_layers; l++) {
        compressor_state *c = &t->s->layers[l].compressor;
        c->fill = c->ratio == 0 ? 0 : (int)t->how_many;
    }
}

/* Each as many slots as the other request has left in it. */
static void keep_own_tail(state_trial *t)
{
    for (int l = 0; l < t->s->n_layers; l++) {
        compressor_state *c = &t->s->layers[l].compressor, *i = &t->s->layers[l].indexer;
        c->fill = c->ratio == 0 ? 0 : (int)(t->w->n_other % c->ratio);
        i->fill = i->ratio == 0 ? 0 : (int)(t->w->n_other % i->ratio);
    }
}

static int64_t most_rows(const state_trial *t)
{
    return t->w->n_other / 4 < 64 ? t->w->n_other / 4 : 64;
}

static void keep_rows(state_trial *t)
{
    for (int l = 0; l < t->s->n_layers; l++)
        if (t->s->layers[l].compressor.ratio == 4)
            t->s->layers[l].compressor.n_rows = t->how_many;
}

static void keep_both_rows(state_trial *t)
{
    keep_rows(t);
    for (int l = 0; l < t->s->n_layers; l++)
        if (t->s->layers[l].indexer.ratio == 4)
            t->s->layers[l].indexer.n_rows = t->how_many;
}

static void keep_index_rows(state_trial *t)
{
    for (int l = 0; l < t->s->n_layers; l++)
        if (t->s->layers[l].indexer.ratio == 4)
            t->s->layers[l].indexer.n_rows = t->how_many;
}

/* ---- save and restore: what was not in it ------------------------------------------------------
 */

static int64_t most_tokens(const state_trial *t)
{
    (void)t;
    return 4;
}

static void some_early(state_trial *t)
{
    t->s->position -= t->how_many;
    t->at = t->s->position;
}

static void some_skipped(state_trial *t)
{
    t->at += t->how_many;
}

/* The loss may begin in a later layer. */
static int64_t most_layers(const state_trial *t)
{
    return t->s->n_layers;
}

static size_t window_bytes(const dsv4_session *s, const layer_state *l)
{
    return (size_t)(l->window_rows * s->model->config.head_dim) * sizeof(float);
}

static void window_empty(state_trial *t)
{
    for (int l = (int)t->how_many - 1; l < t->s->n_layers; l++)
        memset(t->s->layers[l].window, 0, window_bytes(t->s, &t->s->layers[l]));
}

static void window_stale(state_trial *t)
{
    for (int l = (int)t->how_many - 1; l < t->s->n_layers; l++)
        memcpy(t->s->layers[l].window, t->before->layers[l].window,
               window_bytes(t->s, &t->s->layers[l]));
}

/* One part of a compressor's state, as zeros or as it was before the restore. */
typedef enum { PART_TAIL, PART_OVERLAP, PART_ROWS } part;

static void lose(compressor_state *c, const compressor_state *stale, part what)
{
    size_t width = (size_t)c->lanes * (size_t)c->dim * sizeof(float);
    if (c->ratio == 0)
        return;
    if (what == PART_TAIL) {
        for (int k = 0; k < 2; k++) {
            float *to = k == 0 ? c->kv : c->z;
            if (stale != NULL)
                memcpy(to, k == 0 ? stale->kv : stale->z, (size_t)c->fill * width);
            else
                memset(to, 0, (size_t)c->fill * width);
        }
    } else if (what == PART_ROWS) {
        size_t bytes = (size_t)(c->n_rows * c->dim) * sizeof(float);
        if (stale != NULL && stale->n_rows >= c->n_rows)
            memcpy(c->rows, stale->rows, bytes);
        else
            memset(c->rows, 0, bytes);
    } else if (stale == NULL) {
        c->has_prev = false;
    } else if (c->lanes == 2) {
        c->has_prev = stale->has_prev;
        memcpy(c->prev_kv, stale->prev_kv, (size_t)c->ratio * width);
        memcpy(c->prev_z, stale->prev_z, (size_t)c->ratio * width);
    }
}

static void lose_all(state_trial *t, part what, bool stale, bool rows, bool index)
{
    for (int l = (int)t->how_many - 1; l < t->s->n_layers; l++) {
        layer_state *x = &t->s->layers[l], *y = &t->before->layers[l];
        if (rows)
            lose(&x->compressor, stale ? &y->compressor : NULL, what);
        if (index)
            lose(&x->indexer, stale ? &y->indexer : NULL, what);
    }
}

#define LOSES(name, what, stale, rows, index)                                                      \
    static void name(state_trial *t)                                                               \
    {                                                                                              \
        lose_all(t, what, stale, rows, index);                                                     \
    }
LOSES(tail_empty, PART_TAIL, false, true, false)
LOSES(tail_stale, PART_TAIL, true, true, false)
LOSES(tails_empty, PART_TAIL, false, true, true)
LOSES(tails_stale, PART_TAIL, true, true, true)
LOSES(overlap_empty, PART_OVERLAP, false, true, true)
LOSES(overlap_stale, PART_OVERLAP, true, true, true)
LOSES(overlap_rows, PART_OVERLAP, false, true, false)
LOSES(index_rows_empty, PART_ROWS, false, false, true)
LOSES(index_rows_stale, PART_ROWS, true, false, true)
LOSES(rows_empty, PART_ROWS, false, true, false)

/* Drafts are taken back from the position and the window alone. */
static void half_rolled_back(state_trial *t)
{
    for (int l = 0; l < t->s->n_layers; l++) {
        compressor_state *c[] = {&t->s->layers[l].compressor, &t->s->layers[l].indexer};
        const compressor_state *y[] = {&t->before->layers[l].compressor,
                                       &t->before->layers[l].indexer};
        for (int k = 0; k < 2; k++) {
            if (c[k]->ratio == 0)
                continue;
            lose(c[k], y[k], PART_OVERLAP);
            c[k]->n_rows = y[k]->n_rows;
            c[k]->fill = y[k]->fill;
            memcpy(c[k]->rows, y[k]->rows, (size_t)(y[k]->n_rows * y[k]->dim) * sizeof(float));
            lose(c[k], y[k], PART_TAIL);
        }
    }
}

static const char LAYER[] = "layers (counted from 1: it begins there)";

static const state_mistake mistakes[] = {
    {"state-overlap-kept", NULL, false, NULL, keep_overlap},
    {"state-window-kept", "rows of each window", false, most_window, keep_window},
    {"state-tail-kept", NULL, false, NULL, keep_own_tail},
    {"state-tail-kept", "slots of an unfinished window", false, most_slots, keep_tail},
    {"state-rows-kept", "compressed rows", false, most_rows, keep_rows},
    {"state-rows-kept", "compressed rows and rows of the indexer", false, most_rows,
     keep_both_rows},
    {"state-rows-kept", "rows of the indexer", false, most_rows, keep_index_rows},
    {"state-one-early", "tokens", true, most_tokens, some_early},
    {"state-one-skipped", "tokens", true, most_tokens, some_skipped},
    {"state-no-window", LAYER, true, most_layers, window_empty},
    {"state-old-window", LAYER, true, most_layers, window_stale},
    {"state-no-tail", LAYER, true, most_layers, tail_empty},
    {"state-no-tail", LAYER, true, most_layers, tails_empty},
    {"state-no-tail", LAYER, true, most_layers, tail_stale},
    {"state-no-tail", LAYER, true, most_layers, tails_stale},
    {"state-no-overlap", LAYER, true, most_layers, overlap_empty},
    {"state-no-overlap", LAYER, true, most_layers, overlap_rows},
    {"state-no-overlap", LAYER, true, most_layers, overlap_stale},
    {"state-no-index-rows", LAYER, true, most_layers, index_rows_empty},
    {"state-no-index-rows", LAYER, true, most_layers, index_rows_stale},
    {"state-no-rows", LAYER, true, most_layers, rows_empty},
    {"state-half-rolled-back", NULL, true, NULL, half_rolled_back},
};

/* ---- a trial ------------------------------------------------------------------------------------
 */

typedef struct {
    const state_rows *r;
    double dd, gg, both, made;
    int64_t got;
} state_ears;

static int64_t wanted_row(const state_rows *r, dsv4_tap_id id, int layer, int64_t position)
{
    for (int64_t i = 0; id == r->tap && layer == r->layer && i < r->n_rows; i++)
        if (r->positions[i] == position)
            return i;
    return -1;
}

static bool want_state(void *ctx, dsv4_tap_id id, int layer, int64_t position)
{
    return wanted_row(((const state_ears *)ctx)->r, id, layer, position) >= 0;
}

static void hear_state(void *ctx, dsv4_tap_id id, int layer, int64_t position, void *data, size_t n)
{
    state_ears *e = ctx;
    const state_rows *r = e->r;
    int64_t row = wanted_row(r, id, layer, position);
    if (row < 0)
        return;
    e->got++;
    for (int64_t k = 0; k < r->width && k < (int64_t)n; k++) {
        if (dsv4_tap_is_int(id)) {
            const int32_t *a = (const int32_t *)r->actual + row * r->width;
            bool in = false;
            for (int64_t i = 0; i < r->width; i++)
                in = in || a[i] == ((const int32_t *)data)[k];
            e->dd += !in;
            e->gg += 1;
            continue;
        }
        double a = (double)((const float *)r->actual)[row * r->width + k];
        double d = (double)((const float *)data)[k] - a;
        double g = (double)((const float *)r->expected)[row * r->width + k] - a;
        double m = d - g; /* what the mistake does to the right values */
        e->dd += d * d;
        e->gg += g * g;
        e->both -= m * g;
        e->made += m * m;
    }
}

/* A session up to the reset or the restore: as it is then, and what was saved. */
static dsv4_status lead_up(const state_schedule *w, const dsv4_model *model, const dsv4_ops *ops,
                           dsv4_session **out, void **saved, size_t *bytes, dsv4_error *err)
{
    int64_t longest = (w->n > w->cut + w->n_other ? w->n : w->cut + w->n_other) + 1;
    const dsv4_session_options so = {.numerics = w->numerics,
                                     .max_positions = longest,
                                     .mtp = w->mtp && model->mtp != NULL,
                                     .chunk = w->chunk};
    dsv4_status status = dsv4_session_new(model, ops, &so, out, err);
    if (status == DSV4_OK && w->cut > 0)
        status = dsv4_session_append(*out, w->tokens, w->cut, NULL, err);
    if (status == DSV4_OK && w->cut > 0 && saved != NULL)
        status = dsv4_session_save(*out, saved, bytes, err);
    return status == DSV4_OK ? dsv4_session_append(*out, w->other, w->n_other, NULL, err) : status;
}

typedef struct {
    const state_schedule *w;
    const state_rows *rows;
    dsv4_model model; /* cut off behind the layer in question */
    dsv4_ops ops;
    dsv4_session *before;
    int64_t end; /* no token behind the last row is needed */
} state_search;

static dsv4_status run_trial(const state_search *x, const state_mistake *m, int64_t how_many,
                             double *share, double *cosine, int64_t *most, dsv4_error *err)
{
    const state_schedule *w = x->w;
    state_trial t = {.w = w, .before = x->before, .how_many = how_many, .at = w->cut};
    state_ears ears = {.r = x->rows};
    const dsv4_taps taps = {.ctx = &ears, .want = want_state, .tap = hear_state};
    void *saved = NULL;
    size_t bytes = 0;
    dsv4_status status = lead_up(w, &x->model, &x->ops, &t.s, &saved, &bytes, err);
    *share = INFINITY;
    *most = 1;
    if (status == DSV4_OK && w->cut > 0)
        status = dsv4_session_restore(t.s, saved, bytes, err);
    else if (status == DSV4_OK)
        dsv4_session_reset(t.s);
    if (status == DSV4_OK) {
        m->disturb(&t);
        *most = m->most != NULL ? m->most(&t) : 1;
        dsv4_session_set_taps(t.s, &taps);
    }
    if (status == DSV4_OK && t.s->position < x->end) { /* its positions may not be the tokens' */
        int64_t n = x->end - t.s->position, left = w->n - t.at;
        status = dsv4_session_append(t.s, w->tokens + t.at, n < left ? n : left, NULL, err);
    }
    if (status == DSV4_OK && ears.got >= x->rows->n_rows && ears.gg > 0)
        *share = sqrt(ears.dd / ears.gg);
    *cosine = ears.made > 0 && ears.gg > 0 ? ears.both / sqrt(ears.made * ears.gg) : 0;
    free(saved);
    dsv4_session_free(t.s);
    return status;
}

/* Each mistake with each of its numbers, until one gives the engine's values. */
static dsv4_status try_states(const state_search *x, facts *f, dsv4_error *err)
{
    enum { NEARER = 10, EXACT = 100 };
    const state_mistake *nearest = NULL;
    double best = 0.8;
    bool found = false;
    dsv4_status status = DSV4_OK;
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes && status == DSV4_OK && !found; i++) {
        const state_mistake *m = &mistakes[i];
        int64_t most = 1;
        char name[FACT_NAME];
        if (m->restore != (x->w->cut > 0))
            continue;
        snprintf(name, sizeof name, "like:%s", m->name);
        for (int64_t k = 1; k <= most && status == DSV4_OK; k++) {
            double share, cosine;
            status = run_trial(x, m, k, &share, &cosine, &most, err);
            if (status == DSV4_OK && isfinite(share) && cosine >= best) {
                best = cosine;
                nearest = m;
            }
            if (status != DSV4_OK || !(share * NEARER <= 1))
                continue;
            if (m->what != NULL && !(m->what == LAYER && k == 1))
                facts_add(f, name,
                          "with %lld %s, the reference's session comes within %.2g of the engine's "
                          "values, where the right ones' distance is 1",
                          (long long)k, m->what, share);
            else
                facts_add(f, name,
                          "the reference's session with this mistake comes within %.2g of the "
                          "engine's values, where the right ones' distance is 1",
                          share);
            found = share * EXACT <= 1;
            break;
        }
    }
    if (status == DSV4_OK && nearest != NULL && facts_find(f, "like:*") == NULL) {
        char name[FACT_NAME];
        snprintf(name, sizeof name, "near:%s", nearest->name);
        facts_add(f, name,
                  "the reference's session with this mistake moves the values the way the engine's "
                  "are moved (cosine %.3f), but not as far",
                  best);
    }
    return status;
}

static dsv4_status search_states(const state_schedule *w, const state_rows *rows, facts *f,
                                 dsv4_error *err)
{
    enum { LONGEST = 600 };
    state_search x = {.w = w, .rows = rows, .model = *w->model, .ops = engine_quick_ops()};
    if (w->n > LONGEST || rows->n_rows == 0)
        return DSV4_OK;
    if (rows->layer >= 0) {
        x.model.config.num_hidden_layers = rows->layer + 1;
        if (!w->mtp)
            x.model.mtp = NULL;
    }
    for (int64_t i = 0; i < rows->n_rows; i++) {
        int64_t last = rows->positions[i];
        if (dsv4_tap_is_row(rows->tap) && rows->layer >= 0)
            last = (last + 1) * (rows->tap == DSV4_TAP_INDEXER_KV
                                     ? 4
                                     : w->model->config.compress_ratios[rows->layer]) -
                   1;
        x.end = last >= x.end ? last + 1 : x.end;
    }
    x.end = x.end < w->n ? x.end : w->n;
    dsv4_status status = DSV4_OK;
    if (w->cut > 0) /* a restore brings some back and leaves the rest as it is */
        status = lead_up(w, &x.model, &x.ops, &x.before, NULL, NULL, err);
    if (status == DSV4_OK)
        status = try_states(&x, f, err);
    dsv4_session_free(x.before);
    return status;
}

dsv4_status causes_find_state(const state_schedule *w, const state_rows *rows, results *out,
                              dsv4_error *err)
{
    facts *f = dsv4_alloc(1, sizeof *f, "facts", err);
    results_drop_causes(out);
    if (f == NULL)
        return DSV4_E_MACHINE;
    facts_add(f, w->cut > 0 ? "state:restored" : "state:second", "%s", "");
    dsv4_status status = search_states(w, rows, f, err);
    if (status == DSV4_OK)
        status = causes_tell(rows->tap, f, out, err);
    free(f);
    return status;
}
