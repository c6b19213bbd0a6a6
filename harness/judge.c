/* judge.c - the listener: every row an engine reports meets its golden row here. Discrete choices
 * (selections, roundings) that fall the other way inside the noise are booked as ties and flips,
 * and what depends on them is judged apart. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "judge_private.h"
#include "noise.h"

static bool fail(judge *j, dsv4_status status)
{
    if (j->status == DSV4_OK)
        j->status = status;
    return false;
}

static void *get(judge *j, int64_t count, size_t size, const char *what)
{
    void *p = dsv4_alloc((size_t)(count > 0 ? count : 1), size, what, &j->err);
    if (p == NULL)
        fail(j, DSV4_E_MACHINE);
    return p;
}

const budget *judge_budget(const judge *j, const char *tap, rows_class rows)
{
    return budgets_find_in(j->o.budgets, tap, j->o.numerics, j->weights, rows,
                           context_class(j->o.config, j->c->context));
}

int64_t judge_reach(const judge *j, dsv4_tap_id id, int layer, int64_t position)
{
    if (!dsv4_tap_is_row(id))
        return position;
    int ratio = id == DSV4_TAP_INDEXER_KV ? 4 : j->o.config->compress_ratios[layer];
    return (position + 1) * ratio - 1;
}

/* ---- golden rows --------------------------------------------------------------------------- */

static const char *shape_text(char *text, size_t size, int ndim, const int64_t *shape)
{
    if (ndim > 1)
        snprintf(text, size, "[%lld][%lld]", (long long)shape[0], (long long)shape[1]);
    else
        snprintf(text, size, "[%lld]", (long long)shape[0]);
    return text;
}

slot *judge_open(judge *j, dsv4_tap_id id, int layer)
{
    if (!j->ahead && !j->o.dump) {
        int64_t loaded = 0;
        dsv4_status ahead = judge_read_ahead(j, &loaded, &j->err);
        if (ahead != DSV4_OK)
            fail(j, ahead);
    }
    if (j->status != DSV4_OK || layer >= j->layers)
        return NULL;
    slot *s = judge_slot(j, layer, id);
    if (s->opened)
        return s->golden != NULL && (!s->skipped || judge_decides(j, id)) ? s : NULL;
    s->opened = true;
    s->skipped = !name_matches(j->o.taps, dsv4_tap_name(id));
    dsv4_status status = judge_look_up(j, s, id, layer);
    if (status != DSV4_OK) {
        fail(j, status);
        return NULL;
    }
    if (s->golden == NULL)
        return NULL;
    const vec_tap *t = s->golden;
    int64_t shape[2];
    char expected[48], found[48];
    int ndim = dsv4_tap_shape(id, j->o.config, shape);
    bool same = t->ndim == ndim && t->shape[0] == shape[0] && (ndim < 2 || t->shape[1] == shape[1]);
    if (shape[0] >= 0 && !same) {
        fail(j, dsv4_fail(&j->err, DSV4_E_INPUT,
                          "%s: %s: expected %s values per position (the model's shape), found %s",
                          vec_path(j->golden), t->path,
                          shape_text(expected, sizeof expected, ndim, shape),
                          shape_text(found, sizeof found, t->ndim, t->shape)));
        return NULL;
    }
    s->seen = get(j, t->n_rows, 1, "judged rows");
    s->is_after = get(j, t->n_rows, 1, "judged rows");
    s->row_dd = get(j, t->n_rows, sizeof(double), "judged rows");
    s->row_ee = get(j, t->n_rows, sizeof(double), "judged rows");
    s->tied = get(j, t->n_rows, 1, "judged rows");
    s->wrong_row = get(j, t->n_rows, 1, "judged rows");
    if (t->row_len > j->scratch) {
        free(j->expected);
        free(j->other);
        j->expected = get(j, t->row_len, sizeof(float), "a golden row");
        j->other = get(j, t->row_len, sizeof(float), "a golden row");
        j->scratch = j->expected != NULL && j->other != NULL ? t->row_len : 0;
    }
    s->jaccard = s->row_cosine = 1;
    return j->status == DSV4_OK && (!s->skipped || judge_decides(j, id)) ? s : NULL;
}

/* The golden row of a position; -1 = not in the file. */
static int64_t find_row(const vec_tap *t, int64_t position)
{
    int64_t low = 0, high = t->n_rows - 1;
    while (low <= high) {
        int64_t mid = low + (high - low) / 2;
        if (t->positions[mid] == position)
            return mid;
        if (t->positions[mid] < position)
            low = mid + 1;
        else
            high = mid - 1;
    }
    return -1;
}

static bool read_row(judge *j, const vec_tap *t, int64_t row, void *out)
{
    double started = now_seconds();
    dsv4_status status = vec_tap_read(t, row, 1, out, &j->err);
    j->read += now_seconds() - started;
    j->read_bytes += t->row_len * (int64_t)sizeof(float);
    return status == DSV4_OK || fail(j, status);
}

/* ---- taint --------------------------------------------------------------------------------- */

static bool tie_at(const int64_t *list, size_t n, int64_t position)
{
    for (size_t i = n; i > 0; i--)
        if (list[i - 1] == position)
            return true;
    return false;
}

static void add_tie(judge *j, int64_t **list, size_t *n, size_t *cap, int64_t position)
{
    if (*n == *cap) {
        size_t more = *cap > 0 ? 2 * *cap : 8;
        int64_t *bigger = get(j, (int64_t)more, sizeof **list, "ties");
        if (bigger == NULL)
            return;
        if (*n > 0)
            memcpy(bigger, *list, *n * sizeof **list);
        free(*list);
        *list = bigger;
        *cap = more;
    }
    (*list)[(*n)++] = position;
}

static void lower(int64_t *value, int64_t position)
{
    if (position < *value)
        *value = position;
}

/* Everything the later layers do from this position on rests on the event. */
static void taint_later(judge *j, int layer, int64_t position)
{
    if (j->local != NULL) /* the later layers work on what the recorded run made of it */
        return;
    for (int l = layer + 1; l <= j->layers; l++)
        lower(&j->taint[l].whole, position);
}

/* Does a row depend on something that fell the other way? */
static bool is_after(const judge *j, dsv4_tap_id id, int layer, int64_t position)
{
    const layer_taint *t = &j->taint[layer < 0 ? j->layers : layer];
    int64_t reach = judge_reach(j, id, layer, position);
    if (j->local != NULL && local_doubts(j, id, layer, reach))
        return true;
    if (id == DSV4_TAP_MTP_LOGITS)
        reach += 1; /* it has seen the next token's id, not its streams; keep to the safe side */
    if (reach >= t->whole)
        return true;
    if (layer < 0)
        return false;
    if (id >= DSV4_TAP_INDEXER_SCORES && reach >= t->scores)
        return true;
    if (id >= DSV4_TAP_ATTN_HEADS &&
        (reach >= t->heads || tie_at(t->topk_ties, t->n_topk_ties, reach)))
        return true;
    return id >= DSV4_TAP_ROUTER_WEIGHTS && tie_at(t->router_ties, t->n_router_ties, reach);
}

/* ---- rounding ------------------------------------------------------------------------------ */

static void on_rounded(void *ctx, dsv4_tap_id id, int layer, int64_t position, dsv4_rounding kind,
                       int block, const float *before, const float *after, size_t n)
{
    judge *j = ctx;
    if (layer < 0 || layer >= j->layers || judge_reach(j, id, layer, position) >= j->c->context)
        return;
    if (dsv4_rounding_margin(kind, block, before, n) > j->round_noise) {
        judge_check_rounding(j, id, layer, position, kind, before, after, (int64_t)n);
        return;
    }
    slot *s = judge_open(j, id, layer);
    int64_t row = s != NULL ? find_row(s->golden, position) : -1;
    if (row >= 0) { /* golden holds the rounded row: the tap itself will tell */
        if (s->before == NULL) {
            s->before_width = (int64_t)n;
            s->before = get(j, s->golden->n_rows * s->before_width, sizeof(float), "roundings");
        }
        if (s->before != NULL && (int64_t)n == s->before_width) {
            memcpy(s->before + row * s->before_width, before, n * sizeof *before);
            s->tied[row] = 1;
            s->block = block;
            s->kind = kind;
        }
        return;
    }
    /* No golden row: it may have fallen either way; what rests on it is judged apart, if it
     * differs. */
    if (j->local != NULL) {
        local_rounded(j, id, layer, position);
        return;
    }
    layer_taint *t = &j->taint[layer];
    int64_t reach = judge_reach(j, id, layer, position);
    bool index = id == DSV4_TAP_INDEXER_Q || id == DSV4_TAP_INDEXER_KV;
    lower(index ? &t->scores : &t->heads, reach);
    taint_later(j, layer, reach);
}

/* Elements of a rounded row that differ by one step, the unrounded value being at the midpoint
 * between the two: put the golden value in their place and count them. */
static void settle_flips(judge *j, slot *s, dsv4_tap_id id, int layer, int64_t position,
                         int64_t row, float *actual)
{
    const float *before = s->before + row * s->before_width;
    double power = 0, noise;
    for (int64_t i = 0; i < s->before_width; i++)
        power += (double)before[i] * (double)before[i];
    noise = j->round_noise * sqrt(power / (double)s->before_width);
    int64_t flips = 0;
    for (int64_t i = 0; i < s->before_width; i++) {
        double mid = ((double)actual[i] + (double)j->expected[i]) / 2;
        /* If they were two steps apart, the midpoint would be a code itself and the value beside it
         * would have been rounded to it. */
        if (actual[i] != j->expected[i] && fabs((double)before[i] - mid) <= noise) {
            actual[i] = j->expected[i];
            flips++;
        }
    }
    if (flips == 0)
        return;
    s->flips += flips;
    j->events += flips;
    if (j->o.replay || j->o.shadow)
        return; /* the row is golden again */
    int64_t reach = judge_reach(j, id, layer, position);
    bool index = id == DSV4_TAP_INDEXER_Q || id == DSV4_TAP_INDEXER_KV;
    lower(index ? &j->taint[layer].scores : &j->taint[layer].heads, reach);
    taint_later(j, layer, reach);
}

/* ---- selections ---------------------------------------------------------------------------- */

/* Logits [n] into what the router compares: sqrt(softplus) plus the selection bias. */
static void router_scores(judge *j, int layer, float *scores, int64_t n)
{
    float *bias = NULL;
    const dsv4_layer *l = j->o.model != NULL ? &j->o.model->layers[layer] : NULL;
    if (l != NULL && l->gate_bias.name != NULL && l->gate_bias.cols == n) {
        bias = get(j, n, sizeof *bias, "router bias");
        if (bias != NULL)
            dsv4_tensor_row(&l->gate_bias, 0, bias);
    }
    for (int64_t e = 0; e < n; e++) {
        double x = (double)scores[e];
        scores[e] =
            (float)(sqrt(fmax(x, 0) + log1p(exp(-fabs(x)))) + (bias != NULL ? (double)bias[e] : 0));
    }
    free(bias);
}

/* Scores that a selection was made from, for its margin: golden ones if the file has them, else
 * the engine's own. NULL = neither. */
static const float *selection_scores(judge *j, dsv4_tap_id id, int layer, int64_t position,
                                     int64_t *n, bool *engines)
{
    dsv4_tap_id from =
        id == DSV4_TAP_INDEXER_TOPK ? DSV4_TAP_INDEXER_SCORES : DSV4_TAP_ROUTER_LOGITS;
    slot *s = judge_slot(j, layer, from);
    if (!s->opened)
        judge_open(j, from, layer);
    if (j->status != DSV4_OK)
        return NULL;
    slot *own = judge_slot(j, layer, id);
    float *scores = NULL;
    int64_t row = s->golden != NULL ? find_row(s->golden, position) : -1;
    if (row >= 0) {
        scores = get(j, s->golden->row_len, sizeof *scores, "scores");
        if (scores == NULL || !read_row(j, s->golden, row, scores)) {
            free(scores);
            return NULL;
        }
        *n = s->golden->row_len;
    } else if (own->scores != NULL) {
        *engines = true;
        row = find_row(own->golden, position);
        scores = get(j, own->scores_width, sizeof *scores, "scores");
        if (scores == NULL)
            return NULL;
        memcpy(scores, own->scores + row * own->scores_width,
               (size_t)own->scores_width * sizeof *scores);
        *n = own->scores_width;
    }
    if (scores == NULL)
        return NULL;
    if (id == DSV4_TAP_INDEXER_TOPK) {
        int64_t visible = (position + 1) / 4;
        *n = visible < *n ? visible : *n;
    } else {
        router_scores(j, layer, scores, *n);
    }
    return scores;
}

/* Keeps a wrong row as both sides have it. */
static void keep_row(judge *j, slot *s, int64_t position, const void *expected, const void *actual,
                     int64_t n)
{
    enum { VALUE = 4 }; /* float or int32 */
    if (s->n_kept == KEPT_ROWS || (s->kept_width > 0 && n > s->kept_width))
        return;
    if (s->kept_width == 0) {
        s->kept_width = n;
        s->kept_expected = get(j, KEPT_ROWS * n, VALUE, "wrong rows");
        s->kept_actual = get(j, KEPT_ROWS * n, VALUE, "wrong rows");
    }
    if (s->kept_expected == NULL || s->kept_actual == NULL)
        return;
    size_t at = (size_t)(s->n_kept * s->kept_width) * VALUE;
    memcpy((char *)s->kept_expected + at, expected, (size_t)n * VALUE);
    memcpy((char *)s->kept_actual + at, actual, (size_t)n * VALUE);
    s->kept_position[s->n_kept++] = position;
}

static void judge_selection(judge *j, slot *s, dsv4_tap_id id, int layer, int64_t position,
                            int64_t row, int32_t *actual, int64_t n)
{
    int64_t width = s->golden->row_len;
    int32_t *expected = (int32_t *)(void *)j->expected;
    if (!read_row(j, s->golden, row, expected))
        return;
    /* Golden files may store fewer than k places when fewer rows exist; -1 fills the rest. */
    int64_t k = width > n ? width : n;
    int32_t *e = get(j, k, sizeof *e, "a selection"), *a = get(j, k, sizeof *a, "a selection");
    int64_t n_scores = 0, limit;
    const float *scores = NULL;
    bool engines = false;
    if (e == NULL || a == NULL)
        goto done;
    for (int64_t i = 0; i < k; i++) {
        e[i] = i < width ? expected[i] : -1;
        a[i] = i < n ? actual[i] : -1;
    }
    if (id == DSV4_TAP_ROUTER_EXPERTS) { /* router_weights are told apart by them */
        if (s->sets == NULL)
            s->sets = get(j, s->golden->n_rows * n, sizeof *s->sets, "selections");
        if (s->sets != NULL)
            memcpy(s->sets + row * n, actual, (size_t)n * sizeof *actual);
    }
    limit = id == DSV4_TAP_INDEXER_TOPK ? (position + 1) / 4 : j->o.config->n_routed_experts;
    compare_set r = compare_selection(e, a, (int)k, NULL, limit);
    s->jaccard = r.jaccard < s->jaccard ? r.jaccard : s->jaccard;
    if (r.missing == 0 && r.extra == 0 && r.invalid == 0 && r.duplicates == 0)
        goto done;

    bool hash = id == DSV4_TAP_ROUTER_EXPERTS && layer < j->o.config->num_hash_layers;
    double gap = INFINITY;
    if (!hash && r.invalid == 0 && r.duplicates == 0)
        scores = selection_scores(j, id, layer, position, &n_scores, &engines);
    if (scores != NULL && n_scores > 0) {
        double largest = 0;
        for (int64_t i = 0; i < n_scores; i++)
            largest = fmax(largest, fabs((double)scores[i]));
        /* By the engine's own scores its own choice is the best, whatever it is; what counts is how
         * far golden's choice lies from it. */
        r = compare_selection(engines ? a : e, engines ? e : a, (int)k, scores, n_scores);
        gap = r.invalid > 0 || !isfinite(largest) ? INFINITY : r.gap == 0 ? 0 : r.gap / largest;
    }
    if (j->o.weights == WEIGHTS_OTHER && r.invalid == 0 && r.duplicates == 0) {
        s->changed++; /* other weights choose otherwise: that is the format's doing */
        s->tied[row] = 1;
        goto done;
    }
    rows_class rows = is_after(j, id, layer, position) ? ROWS_AFTER_FLIP : ROWS_CLEAN;
    const budget *b = judge_budget(j, "@selection", rows);
    if (b == NULL || gap > b->fail) {
        s->wrong_sets++;
        s->wrong_row[row] = 1;
        keep_row(j, s, position, e, a, k);
        if (!(gap <= s->worst_gap) || s->wrong_sets == 1) {
            s->worst_gap = gap;
            s->wrong_position = position;
        }
        goto done;
    }
    s->ties++;
    j->events++;
    s->tied[row] = 1;
    layer_taint *t = &j->taint[layer];
    if ((j->o.replay || j->o.shadow) && n >= width) {
        for (int64_t i = 0; i < n; i++)
            actual[i] = i < k ? e[i] : -1;
    } else {
        if (id == DSV4_TAP_INDEXER_TOPK)
            add_tie(j, &t->topk_ties, &t->n_topk_ties, &t->cap_topk_ties, position);
        else
            add_tie(j, &t->router_ties, &t->n_router_ties, &t->cap_router_ties, position);
        taint_later(j, layer, position);
    }
done:
    free(e);
    free(a);
    free((void *)(uintptr_t)scores);
}

/* router_weights are aligned with each side's own router_experts: bring the golden ones into the
 * engine's order. False = the row cannot be compared (a tie chose other experts). */
static bool align_weights(judge *j, int layer, int64_t position, int64_t row, float *actual,
                          int64_t n)
{
    slot *x = judge_slot(j, layer, DSV4_TAP_ROUTER_EXPERTS);
    if (!x->opened)
        judge_open(j, DSV4_TAP_ROUTER_EXPERTS, layer);
    int64_t at = x->golden != NULL ? find_row(x->golden, position) : -1;
    if (at < 0 || x->sets == NULL || x->golden->row_len != n)
        return true; /* no ids on one side: compared as they stand */
    int32_t *ids = (int32_t *)(void *)j->other;
    float *sorted = get(j, n, sizeof *sorted, "router weights");
    if (sorted == NULL || !read_row(j, x->golden, at, ids)) {
        free(sorted);
        return false;
    }
    (void)row;
    if (x->tied[at]) {
        if (j->o.replay &&
            !j->o.shadow) /* golden experts are in place: golden weights belong to them */
            memcpy(actual, j->expected, (size_t)n * sizeof *actual);
        free(sorted);
        return false;
    }
    const int32_t *own = x->sets + at * n;
    for (int64_t i = 0; i < n; i++)
        for (int64_t g = 0; g < n; g++)
            if (ids[g] == own[i])
                sorted[i] = j->expected[g];
    memcpy(j->expected, sorted, (size_t)n * sizeof *sorted);
    free(sorted);
    return true;
}

/* ---- shadow -------------------------------------------------------------------------------- */

/* The engine's experts give way to golden's, and its weights with them: a row of one without the
 * other would pair weights with experts they do not belong to. */
static bool has_partner(judge *j, dsv4_tap_id id, int layer, int64_t position)
{
    dsv4_tap_id partner =
        id == DSV4_TAP_ROUTER_EXPERTS ? DSV4_TAP_ROUTER_WEIGHTS : DSV4_TAP_ROUTER_EXPERTS;
    if (id != DSV4_TAP_ROUTER_EXPERTS && id != DSV4_TAP_ROUTER_WEIGHTS)
        return true;
    slot *s = judge_slot(j, layer, partner);
    if (!s->opened)
        judge_open(j, partner, layer);
    return s->golden != NULL && find_row(s->golden, position) >= 0;
}

/* Golden row `row` in place of the engine's n values. */
static void put_golden(judge *j, const slot *s, dsv4_tap_id id, int layer, int64_t position,
                       int64_t row, void *data, int64_t n)
{
    int64_t width = s->golden->row_len;
    if (j->status != DSV4_OK || !has_partner(j, id, layer, position) ||
        !read_row(j, s->golden, row, j->expected))
        return;
    memcpy(data, j->expected, (size_t)(n < width ? n : width) * sizeof *j->expected);
    if (!dsv4_tap_is_int(id))
        return;
    for (int64_t i = width; i < n; i++) /* golden may store fewer places than k */
        ((int32_t *)data)[i] = -1;
}

/* ---- rows ---------------------------------------------------------------------------------- */

static void keep_scores(judge *j, dsv4_tap_id id, int layer, int64_t position, const float *data,
                        int64_t n)
{
    dsv4_tap_id target =
        id == DSV4_TAP_INDEXER_SCORES ? DSV4_TAP_INDEXER_TOPK : DSV4_TAP_ROUTER_EXPERTS;
    slot *s = judge_open(j, target, layer);
    int64_t row = s != NULL ? find_row(s->golden, position) : -1;
    if (row < 0)
        return;
    if (s->scores == NULL) {
        s->scores_width =
            id == DSV4_TAP_INDEXER_SCORES ? j->c->context / 4 + 1 : j->o.config->n_routed_experts;
        s->scores = get(j, s->golden->n_rows * s->scores_width, sizeof(float), "scores");
    }
    if (s->scores != NULL && n <= s->scores_width)
        memcpy(s->scores + row * s->scores_width, data, (size_t)n * sizeof *data);
}

/* Does the engine agree on the most likely token? If not, by how much did golden prefer its own? */
static void check_top1(slot *s, const float *expected, const float *actual, int64_t n)
{
    int64_t e = 0, a = 0;
    double power = 0;
    for (int64_t i = 0; i < n; i++) {
        e = expected[i] > expected[e] ? i : e;
        a = actual[i] > actual[a] ? i : a;
        power += (double)expected[i] * (double)expected[i];
    }
    if (e == a || !(power > 0))
        return;
    double lead = ((double)expected[e] - (double)expected[a]) / sqrt(power / (double)n);
    s->top1_lost++;
    s->top1_lead = lead > s->top1_lead ? lead : s->top1_lead;
}

static bool wants(void *ctx, dsv4_tap_id id, int layer, int64_t position)
{
    judge *j = ctx;
    if (layer >= j->layers ||
        judge_reach(j, id, layer, position) >= j->c->context) /* beyond this case's end */
        return false;
    if (id == DSV4_TAP_INDEXER_SCORES || id == DSV4_TAP_ROUTER_LOGITS ||
        (id == DSV4_TAP_INDEXER_TOPK && j->local != NULL))
        return true; /* needed for margins even where golden has none */
    slot *s = judge_open(j, id, layer);
    return s != NULL && (dsv4_tap_is_row(id) || find_row(s->golden, position) >= 0);
}

/* One row of numbers, compared. */
static void judge_values(judge *j, slot *s, dsv4_tap_id id, int layer, int64_t position,
                         int64_t row, float *actual, int64_t n)
{
    int64_t width = s->golden->row_len;
    if (!read_row(j, s->golden, row, j->expected))
        return;
    if (id == DSV4_TAP_INDEXER_SCORES) { /* scores of rows that are not visible mean nothing */
        int64_t visible = (position + 1) / 4;
        n = visible < width ? visible : width;
    }
    if (id == DSV4_TAP_ROUTER_WEIGHTS)
        judge_check_weights(j, layer, find_row(s->golden, position), actual, n);
    if (id == DSV4_TAP_ROUTER_WEIGHTS && !align_weights(j, layer, position, row, actual, n)) {
        s->is_after[row] = 1;
        return;
    }
    bool later = j->o.weights == WEIGHTS_EXACT && is_after(j, id, layer, position);
    if (s->before != NULL && s->tied[row])
        settle_flips(j, s, id, layer, position, row, actual);
    if (id == DSV4_TAP_LOGITS || id == DSV4_TAP_MTP_LOGITS)
        check_top1(s, j->expected, actual, n);
    bool rotated = id == DSV4_TAP_Q || id == DSV4_TAP_KV || id == DSV4_TAP_COMPRESSED_KV ||
                   id == DSV4_TAP_INDEXER_Q || id == DSV4_TAP_INDEXER_KV;
    int64_t head = s->golden->ndim > 1 ? s->golden->shape[1] : width;
    compare_sums one;
    compare_reset(&one);
    double rel = compare_row(&one, j->expected, actual, n, head,
                             rotated ? j->o.config->qk_rope_head_dim : 0, position);
    s->row_dd[row] = one.nonfinite > 0 ? INFINITY : one.dd;
    s->row_ee[row] = one.ee;
    s->row_cosine = fmin(s->row_cosine, compare_cosine(&one));
    /* A row that depends on a possible flip and yet agrees is as good as any other. */
    const budget *b = judge_budget(j, dsv4_tap_name(id), ROWS_CLEAN);
    if (later && b != NULL && rel <= b->pass)
        later = false;
    if (later && j->local != NULL && local_flips(j, layer, position)) {
        const budget *flip = judge_budget(j, "@flip", ROWS_AFTER_FLIP);
        later = flip == NULL || rel <= flip->fail; /* a flipped code moves a block by no more */
    }
    if (!later && b != NULL && !(rel <= b->fail))
        keep_row(j, s, position, j->expected, actual, n);
    s->is_after[row] = later;
    compare_merge(later ? &s->after : &s->clean, &one);
}

/* What a recorded run does not tell: the reference's own scores and choices. */
static void hear_choice(judge *j, dsv4_tap_id id, int layer, int64_t position, const void *data,
                        int64_t n)
{
    if (id == DSV4_TAP_INDEXER_SCORES) {
        local_scores(j, id, layer, position, data, n);
    } else if (id == DSV4_TAP_INDEXER_TOPK) {
        local_picked(j, layer, position, data, n);
    } else if (id == DSV4_TAP_ROUTER_LOGITS && layer >= 0) {
        float *scores = get(j, n, sizeof *scores, "scores");
        if (scores == NULL)
            return;
        memcpy(scores, data, (size_t)n * sizeof *scores);
        router_scores(j, layer, scores, n);
        local_scores(j, id, layer, position, scores, n);
        free(scores);
    }
}

static void judge_row(judge *j, dsv4_tap_id id, int layer, int64_t position, void *data, int64_t n)
{
    if (id == DSV4_TAP_INDEXER_SCORES || id == DSV4_TAP_ROUTER_LOGITS)
        keep_scores(j, id, layer, position, data, n);
    if (j->local != NULL)
        hear_choice(j, id, layer, position, data, n);
    slot *s = judge_open(j, id, layer);
    if (s == NULL)
        return;
    int64_t row = find_row(s->golden, position);
    if (row < 0) {
        s->n_extra += dsv4_tap_is_row(id) ? 1 : 0;
        return;
    }
    if (s->seen[row])
        return; /* the first report counts */
    int64_t width = s->golden->row_len;
    if (id != DSV4_TAP_INDEXER_TOPK && id != DSV4_TAP_INDEXER_SCORES && n != width) {
        fail(j, dsv4_fail(&j->err, DSV4_E_INPUT,
                          "%s: %s: expected %lld values per position, the engine gives %lld",
                          vec_path(j->golden), s->golden->path, (long long)width, (long long)n));
        return;
    }
    int64_t visible = (position + 1) / 4; /* scores of rows that are not visible mean nothing */
    visible = visible < width ? visible : width;
    if (id == DSV4_TAP_INDEXER_SCORES && n < visible) {
        fail(j, dsv4_fail(&j->err, DSV4_E_INPUT,
                          "%s: %s: expected %lld visible rows at position %lld, the engine gives "
                          "%lld",
                          vec_path(j->golden), s->golden->path, (long long)visible,
                          (long long)position, (long long)n));
        return;
    }
    s->seen[row] = 1;
    s->n_seen++;
    if (dsv4_tap_is_int(id))
        judge_selection(j, s, id, layer, position, row, data, n);
    else
        judge_values(j, s, id, layer, position, row, data, n);
    if (j->o.shadow)
        put_golden(j, s, id, layer, position, row, data,
                   id == DSV4_TAP_INDEXER_SCORES ? visible : n);
}

static void on_tap(void *ctx, dsv4_tap_id id, int layer, int64_t position, void *data, size_t count)
{
    judge *j = ctx;
    if (!wants(ctx, id, layer, position) || j->status != DSV4_OK)
        return;
    double started = now_seconds();
    j->listening = true;
    judge_row(j, id, layer, position, data, (int64_t)count);
    j->listening = false;
    j->heard += now_seconds() - started;
}

/* ---- life ---------------------------------------------------------------------------------- */

/* Are the streams of every position of every layer there? */
static bool holds_streams(const vec_file *f, const vec_case *c, int layers, bool *out,
                          dsv4_error *err)
{
    *out = true;
    for (int l = 0; l < layers && *out; l++) {
        vec_tap *t = NULL;
        if (vec_tap_open(f, c, DSV4_TAP_STREAMS, l, &t, err) != DSV4_OK)
            return false;
        *out = t != NULL && t->n_rows >= c->context;
        vec_tap_close(t);
    }
    return true;
}

dsv4_status judge_new(const vec_file *golden, const vec_case *c, const judge_options *o,
                      judge **out, dsv4_error *err)
{
    judge *j = dsv4_alloc(1, sizeof *j, "a judge", err);
    *out = NULL;
    if (j == NULL)
        return DSV4_E_MACHINE;
    j->golden = golden;
    j->c = c;
    j->o = *o;
    j->layers = o->config->num_hidden_layers;
    j->taps = (dsv4_taps){.ctx = j, .want = wants, .tap = on_tap};
    j->blind = o->dump && o->numerics != DSV4_MATH;
    if (o->weights == WEIGHTS_EXACT)
        snprintf(j->weights, sizeof j->weights, "%s",
                 o->local      ? "exact:local"
                 : !o->rounded ? "exact"
                 : o->shadow   ? "int8:shadow"
                               : "int8");
    else
        snprintf(j->weights, sizeof j->weights, "other:%s",
                 o->weights_format != NULL ? o->weights_format : "?");
    bool complete = false;
    if (o->local && !holds_streams(golden, c, j->layers, &complete, err)) {
        judge_free(j);
        return DSV4_E_INPUT;
    }
    if (complete && !local_new(j)) {
        judge_free(j);
        return dsv4_fail(err, DSV4_E_MACHINE, "out of memory for a judge");
    }
    const budget *round = judge_budget(j, "@rounding", ROWS_CLEAN);
    if (round != NULL) {
        j->round_noise = round->pass;
        j->taps.rounded = on_rounded;
    }
    j->slots =
        dsv4_alloc((size_t)(j->layers + 1) * DSV4_TAP_COUNT, sizeof *j->slots, "a judge", err);
    j->taint = dsv4_alloc((size_t)(j->layers + 1), sizeof *j->taint, "a judge", err);
    if (j->slots == NULL || j->taint == NULL) {
        judge_free(j);
        return DSV4_E_MACHINE;
    }
    for (int l = 0; l <= j->layers; l++)
        j->taint[l].whole = j->taint[l].scores = j->taint[l].heads = INT64_MAX;
    for (int i = 0; i < (j->layers + 1) * DSV4_TAP_COUNT; i++) {
        compare_reset(&j->slots[i].clean);
        compare_reset(&j->slots[i].after);
    }
    *out = j;
    return DSV4_OK;
}

const dsv4_taps *judge_taps(judge *j)
{
    return &j->taps;
}

int64_t judge_events(const judge *j)
{
    return j->events;
}

void judge_free(judge *j)
{
    if (j == NULL)
        return;
    for (int i = 0; j->slots != NULL && i < (j->layers + 1) * DSV4_TAP_COUNT; i++) {
        slot *s = &j->slots[i];
        vec_tap_close(s->golden);
        free(s->seen);
        free(s->is_after);
        free(s->row_dd);
        free(s->row_ee);
        free(s->tied);
        free(s->wrong_row);
        free(s->sets);
        free(s->scores);
        free(s->before);
        free(s->kept_expected);
        free(s->kept_actual);
        free(s->unrounded);
        free(s->rounded);
    }
    for (int l = 0; j->taint != NULL && l <= j->layers; l++) {
        free(j->taint[l].topk_ties);
        free(j->taint[l].router_ties);
    }
    local_free(j);
    free(j->slots);
    free(j->taint);
    free(j->expected);
    free(j->other);
    free(j);
}
