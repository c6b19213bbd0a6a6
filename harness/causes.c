/* causes.c - from what fails, what passes and what the values say to a sentence: the table of known
 * mistakes, the facts about the first divergence, and the mistakes tried on the reference. */
#include <fnmatch.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "causes.h"
#include "hypotheses.h"

extern const char *const causes_builtin[];

enum { COLUMNS = 5, MOST_CAUSES = 3 };

/* ---- facts ----------------------------------------------------------------------------------- */

void facts_add(facts *f, const char *name, const char *fmt, ...)
{
    va_list args;
    if (f->n == MAX_FACTS || facts_find(f, name) != NULL)
        return;
    fact *x = &f->list[f->n++];
    snprintf(x->name, sizeof x->name, "%s", name);
    va_start(args, fmt);
    vsnprintf(x->text, sizeof x->text, fmt, args);
    va_end(args);
}

const fact *facts_find(const facts *f, const char *name)
{
    for (size_t i = 0; i < f->n; i++)
        if (fnmatch(name, f->list[i].name, 0) == 0)
            return &f->list[i];
    return NULL;
}

/* ---- the table ------------------------------------------------------------------------------- */

static char *copy_part(const char *from, size_t n)
{
    char *p = dsv4_alloc(n + 1, 1, "a line of causes", NULL);
    if (p != NULL)
        memcpy(p, from, n);
    return p;
}

static dsv4_status add_line(cause_table *t, int number, const char *text, dsv4_error *err)
{
    char *field[COLUMNS] = {NULL};
    int n = 0;
    dsv4_status status = DSV4_OK;
    for (const char *p = text; p != NULL && n < COLUMNS; n++) {
        const char *end = n + 1 < COLUMNS ? strchr(p, '\t') : NULL;
        field[n] = copy_part(p, end != NULL ? (size_t)(end - p) : strlen(p));
        if (field[n] == NULL)
            status = dsv4_fail(err, DSV4_E_MACHINE, "out of memory for causes.tsv");
        p = end != NULL ? end + 1 : NULL;
    }
    if (status == DSV4_OK &&
        (n < COLUMNS || field[4] == NULL || *field[4] == '\0' || strchr(field[4], '\t') != NULL))
        status = dsv4_fail(err, DSV4_E_INPUT,
                           "causes.tsv: line %d: expected %d tab-separated fields with a "
                           "reference last, found %d",
                           number, COLUMNS, n);
    cause_line *more =
        status == DSV4_OK ? dsv4_alloc(t->count + 1, sizeof *more, "causes", err) : NULL;
    if (more == NULL) {
        for (int i = 0; i < COLUMNS; i++)
            free(field[i]);
        return status != DSV4_OK ? status : DSV4_E_MACHINE;
    }
    if (t->count > 0)
        memcpy(more, t->lines, t->count * sizeof *more);
    free(t->lines);
    t->lines = more;
    t->lines[t->count++] = (cause_line){field[0], field[1], field[2], field[3], field[4]};
    return DSV4_OK;
}

dsv4_status causes_load(cause_table *out, dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    memset(out, 0, sizeof *out);
    for (int i = 0; causes_builtin[i] != NULL && status == DSV4_OK; i++)
        if (causes_builtin[i][0] != '#' && causes_builtin[i][0] != '\0')
            status = add_line(out, i + 1, causes_builtin[i], err);
    if (status != DSV4_OK)
        causes_free(out);
    return status;
}

void causes_free(cause_table *t)
{
    for (size_t i = 0; i < t->count; i++) {
        free(t->lines[i].id);
        free(t->lines[i].taps);
        free(t->lines[i].when);
        free(t->lines[i].sentence);
        free(t->lines[i].reference);
    }
    free(t->lines);
    memset(t, 0, sizeof *t);
}

/* What was measured of the values, as against what the results say anyway. */
static bool is_measured(const char *term)
{
    static const char *const kinds[] = {"like:", "turn:", "factor:", "perm:", "set:", "value:"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strncmp(term, kinds[i], strlen(kinds[i])) == 0)
            return true;
    return false;
}

/* The fact near:X, where a line asks for like:X. */
static const fact *near_fact(const facts *f, const char *term)
{
    char name[64];
    if (strncmp(term, "like:", 5) != 0)
        return NULL;
    snprintf(name, sizeof name, "near:%.50s", term + 5);
    return facts_find(f, name);
}

static bool is_near(const facts *f, const char *term)
{
    return facts_find(f, term) == NULL && near_fact(f, term) != NULL;
}

/* A mistake that was tried and fits may have begun in a tap that nobody has compared. */
static bool shows_unseen(const char *taps, const facts *f)
{
    static const char unseen[] = "unseen:";
    for (size_t i = 0; i < f->n; i++)
        if (strncmp(f->list[i].name, unseen, sizeof unseen - 1) == 0 &&
            name_matches(taps, f->list[i].name + sizeof unseen - 1))
            return true;
    return false;
}

/* 0 = the line does not fit; else the larger the more it says. */
static int fit(const cause_line *c, dsv4_tap_id tap, const facts *f)
{
    char term[64];
    int score = 1;
    if (!name_matches(c->taps, dsv4_tap_name(tap)) &&
        !(strncmp(c->when, "like:", 5) == 0 && shows_unseen(c->taps, f)))
        return 0;
    for (const char *p = c->when; *p != '\0'; p += strspn(p, " ")) {
        size_t n = strcspn(p, " ");
        snprintf(term, sizeof term, "%.*s", (int)n, p);
        bool no = term[0] == '!';
        if (strcmp(term, "-") != 0) {
            bool near = !no && is_near(f, term);
            if (!near && (facts_find(f, term + no) != NULL) == no)
                return 0;
            score += near ? 50 : is_measured(term + no) && !no ? 100 : 1;
        }
        p += n;
    }
    return score;
}

size_t causes_match(const cause_table *t, dsv4_tap_id tap, const facts *f, const cause_line **out,
                    size_t most)
{
    int scores[MOST_CAUSES];
    size_t n = 0;
    most = most < MOST_CAUSES ? most : MOST_CAUSES;
    for (size_t i = 0; i < t->count; i++) {
        int score = fit(&t->lines[i], tap, f);
        if (score == 0)
            continue;
        size_t at = n < most ? n : most;
        while (at > 0 && scores[at - 1] < score)
            at--;
        if (at == most)
            continue;
        size_t last = n < most ? n++ : most - 1;
        for (size_t k = last; k > at; k--) {
            scores[k] = scores[k - 1];
            out[k] = out[k - 1];
        }
        scores[at] = score;
        out[at] = &t->lines[i];
    }
    while (n > 1 && scores[0] >= 100 && scores[n - 1] < 100) /* evidence silences mere fit */
        n--;
    return n;
}

/* ---- what the results say -------------------------------------------------------------------- */

static const char *kind_of(int ratio)
{
    return ratio == 0 ? "kind:window" : ratio == 4 ? "kind:csa" : "kind:hca";
}

/* Does an earlier layer whose kind is the same pass this tap? */
static bool earlier_passes(const judge *j, dsv4_tap_id id, int layer)
{
    const dsv4_config *c = j->o.config;
    for (int l = 0; l < layer; l++)
        if (c->compress_ratios[l] == c->compress_ratios[layer] &&
            (l < c->num_hash_layers) == (layer < c->num_hash_layers) &&
            judge_look(j, l, id) == TAP_RIGHT)
            return true;
    return false;
}

static double fail_limit(const judge *j, dsv4_tap_id id)
{
    const budget *b = judge_budget(j, dsv4_tap_name(id), ROWS_CLEAN);
    return b != NULL ? b->fail : 0;
}

/* From which row on is the tap wrong? */
static void place_facts(const judge *j, const slot *s, dsv4_tap_id id, facts *f)
{
    int64_t first_wrong = -1, last_right = -1;
    bool zero_right = false;
    if (s->golden == NULL || dsv4_tap_is_int(id))
        return;
    for (int64_t i = 0; i < s->golden->n_rows; i++) {
        if (!s->seen[i])
            continue;
        bool right = slot_row_rel(s, i) <= fail_limit(j, id);
        int64_t at = s->golden->positions[i];
        if (right && at == 0)
            zero_right = true;
        if (right && first_wrong < 0)
            last_right = at;
        if (!right && first_wrong < 0)
            first_wrong = at;
    }
    if (first_wrong < 0)
        return;
    facts_add(f,
              zero_right         ? "from:later"
              : first_wrong == 0 ? "from:start"
                                 : "from:unknown",
              "first wrong at %lld, right up to %lld", (long long)first_wrong,
              (long long)last_right);
    if (!dsv4_tap_is_row(id) && first_wrong >= j->o.config->sliding_window)
        facts_add(f, "from:window", "first wrong at position %lld, window %d",
                  (long long)first_wrong, j->o.config->sliding_window);
}

/* Can the tap exist in the layer at all? */
static bool exists(const dsv4_config *c, dsv4_tap_id id, int layer)
{
    if (id == DSV4_TAP_COMPRESSED_KV)
        return c->compress_ratios[layer] > 0;
    return (id != DSV4_TAP_INDEXER_Q && id != DSV4_TAP_INDEXER_KV &&
            id != DSV4_TAP_INDEXER_SCORES && id != DSV4_TAP_INDEXER_TOPK) ||
           c->compress_ratios[layer] == 4;
}

/* Taps before the failing one that nobody has compared: what is wrong may lie there. */
static void unseen_facts(const cause_question *q, facts *f)
{
    const result *r = q->first;
    bool head = r->layer < 0;
    for (int id = head ? DSV4_TAP_HEAD_COLLAPSED : 0; id < (int)r->tap; id++) {
        char name[FACT_NAME];
        bool inside = id < DSV4_TAP_HEAD_COLLAPSED;
        if (inside == head || judge_look(q->j, r->layer, (dsv4_tap_id)id) != TAP_UNKNOWN ||
            (inside && !exists(q->j->o.config, (dsv4_tap_id)id, r->layer)))
            continue;
        snprintf(name, sizeof name, "unseen:%.30s", dsv4_tap_name((dsv4_tap_id)id));
        facts_add(f, name, "%s", "");
    }
}

static void plain_facts(const cause_question *q, const slot *s, facts *f)
{
    const judge *j = q->j;
    const result *r = q->first;
    const dsv4_config *c = j->o.config;
    char name[FACT_NAME];
    snprintf(name, sizeof name, "block:%s", r->block);
    facts_add(f, name, "%s", "");
    snprintf(name, sizeof name, "numerics:%s", dsv4_numerics_name(r->numerics));
    facts_add(f, name, "%s", "");
    if (r->decode)
        facts_add(f, "decode", "%s", "");
    if (r->layer >= 0) {
        facts_add(f, kind_of(c->compress_ratios[r->layer]), "%s", "");
        facts_add(f, r->layer < c->num_hash_layers ? "kind:hash" : "kind:score", "%s", "");
        if (r->layer == 0)
            facts_add(f, "layer:first", "%s", "");
        if (r->layer + 1 == c->num_hidden_layers)
            facts_add(f, "layer:last", "%s", "");
        if (earlier_passes(j, r->tap, r->layer))
            facts_add(f, "layer:not-its-kind", "an earlier layer of the same kind is right");
        for (int id = 0; id < DSV4_TAP_HEAD_COLLAPSED; id++) {
            state_of_tap state = judge_look(j, r->layer, (dsv4_tap_id)id);
            if (state == TAP_UNKNOWN)
                continue;
            snprintf(name, sizeof name, "%s:%.24s", state == TAP_WRONG ? "wrong" : "right",
                     dsv4_tap_name((dsv4_tap_id)id));
            facts_add(f, name, "%s", "");
        }
    }
    const compare_sums *sums = &s->clean;
    double limit = fail_limit(j, r->tap);
    if (sums->tail_dd > 0 && sums->head_dd <= limit * limit * sums->ee)
        facts_add(f, "dims:rotated-only", "the other dims agree");
    if (s->misrounded > 0)
        facts_add(f, "value:misrounded", "%lld rows break the format's rule",
                  (long long)s->misrounded);
    if (s->formula_gap > 1e-5 && s->formula_gap < 2e-2) /* float32 leaves 1e-6 */
        facts_add(f, "value:nearly-formula",
                  "the weights follow from the engine's own logits and choice but for %.2g",
                  s->formula_gap);
    place_facts(j, s, r->tap, f);
    unseen_facts(q, f);
}

/* ---- mistakes tried ---------------------------------------------------------------------------
 */

/* Takes the values of one tap at the kept positions; and looks whether they are right where the
 * engine's are: a mistake that spoils them is not the engine's. */
typedef struct {
    const judge *j;
    const slot *s;
    dsv4_tap_id id;
    int layer;
    int64_t end;           /* tokens of the case */
    float *values, *right; /* [KEPT_ROWS][kept_width]; a golden row [row_len] */
    bool got[KEPT_ROWS];
    bool refuted;
} catcher;

static int caught_row(const catcher *c, dsv4_tap_id id, int layer, int64_t position)
{
    for (int i = 0; i < c->s->n_kept && id == c->id && layer == c->layer; i++)
        if (c->s->kept_position[i] == position)
            return i;
    return -1;
}

static bool same_set(const int32_t *a, const int32_t *b, int64_t n);

/* The golden row of a position where the engine is right; -1 = none. */
static int64_t right_row(const catcher *c, dsv4_tap_id id, int layer, int64_t position)
{
    const vec_tap *t = c->s->golden;
    if (id != c->id || layer != c->layer || t == NULL || c->right == NULL)
        return -1;
    for (int64_t i = 0; i < t->n_rows; i++)
        if (t->positions[i] == position)
            return c->s->seen[i] && !c->s->is_after[i] && !c->s->tied[i] &&
                           (dsv4_tap_is_int(id) ? !c->s->wrong_row[i]
                                                : slot_row_rel(c->s, i) <= fail_limit(c->j, id) / 4)
                       ? i
                       : -1;
    return -1;
}

static void check_right(catcher *c, int64_t row, const void *data, size_t n)
{
    const vec_tap *t = c->s->golden;
    size_t width = (size_t)t->row_len;
    if (vec_tap_read(t, row, 1, c->right, NULL) != DSV4_OK)
        return;
    if (dsv4_tap_is_int(c->id)) {
        if (n == width)
            c->refuted =
                c->refuted || !same_set(data, (const int32_t *)(void *)c->right, t->row_len);
        return;
    }
    double dd = 0, ee = 0, limit = fail_limit(c->j, c->id);
    if (c->id == DSV4_TAP_INDEXER_SCORES)
        return; /* rows that are not visible mean nothing */
    for (size_t k = 0; k < width && k < n; k++) {
        double d = (double)((const float *)data)[k] - (double)c->right[k];
        dd += d * d;
        ee += (double)c->right[k] * (double)c->right[k];
    }
    c->refuted = c->refuted || !(dd <= 16 * limit * limit * ee);
}

static bool catch_want(void *ctx, dsv4_tap_id id, int layer, int64_t position)
{
    return caught_row(ctx, id, layer, position) >= 0 || right_row(ctx, id, layer, position) >= 0;
}

static void catch_tap(void *ctx, dsv4_tap_id id, int layer, int64_t position, void *data, size_t n)
{
    catcher *c = ctx;
    int row = caught_row(c, id, layer, position);
    int64_t right = row < 0 ? right_row(c, id, layer, position) : -1;
    if (right >= 0)
        check_right(c, right, data, n);
    if (row < 0 || c->got[row])
        return;
    size_t width = (size_t)c->s->kept_width;
    memcpy(c->values + (size_t)row * width, data, (n < width ? n : width) * sizeof *c->values);
    c->got[row] = true;
}

static bool want_nothing(void *ctx, dsv4_tap_id id, int layer, int64_t position)
{
    (void)ctx, (void)id, (void)layer, (void)position;
    return false;
}

static bool same_set(const int32_t *a, const int32_t *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        int64_t in_a = 0, in_b = 0;
        for (int64_t k = 0; k < n; k++) {
            in_a += a[k] == a[i];
            in_b += b[k] == a[i];
        }
        if (in_a != in_b)
            return false;
    }
    return true;
}

/* How far the trial is from the engine, in shares of how far golden is; infinity where a row did
 * not come. *cosine: between what the mistake does to golden's values and what the engine has done
 * to them. */
static double distance(const catcher *c, double *cosine)
{
    const slot *s = c->s;
    double trial_dd = 0, golden_dd = 0, both = 0, made = 0;
    *cosine = 0;
    for (int row = 0; row < s->n_kept; row++) {
        int64_t at = row * s->kept_width;
        if (!c->got[row])
            return INFINITY;
        if (dsv4_tap_is_int(c->id)) {
            if (!same_set((const int32_t *)(const void *)(c->values + at),
                          (const int32_t *)s->kept_actual + at, s->kept_width))
                return INFINITY;
            continue;
        }
        const float *e = (const float *)s->kept_expected + at,
                    *a = (const float *)s->kept_actual + at;
        for (int64_t k = 0; k < s->kept_width; k++) {
            double d = (double)c->values[at + k] - (double)a[k], g = (double)e[k] - (double)a[k];
            double m = (double)c->values[at + k] - (double)e[k];
            trial_dd += d * d;
            golden_dd += g * g;
            both -= m * g;
            made += m * m;
        }
    }
    if (dsv4_tap_is_int(c->id))
        return 0;
    if (golden_dd > 0 && made > 0)
        *cosine = both / sqrt(golden_dd * made);
    return golden_dd > 0 ? sqrt(trial_dd / golden_dd) : INFINITY;
}

/* The case once more, with one mistake in the reference; *share and *cosine as in distance().
 * here: the mistake is made in the failing half of the failing layer and nowhere else. */
static dsv4_status try_one(const cause_question *q, const slot *s, const hypothesis *h, int param,
                           bool here, double *share, double *cosine, dsv4_error *err)
{
    enum { MOST_SHARED = 256 };
    const dsv4_taps *taps[MOST_SHARED];
    catcher c = {
        .j = q->j, .s = s, .id = q->first->tap, .layer = q->first->layer, .end = q->j->c->context};
    const dsv4_taps deaf = {.ctx = &c, .want = want_nothing, .tap = catch_tap};
    const dsv4_taps ears = {.ctx = &c, .want = catch_want, .tap = catch_tap};
    engine *e = NULL;
    trial *t = NULL;
    *share = INFINITY;
    *cosine = 0;
    if (q->n_chain > MOST_SHARED)
        return DSV4_OK;
    for (size_t i = 0; i < q->n_chain; i++)
        taps[i] = i + 1 == q->n_chain ? &ears : &deaf;
    c.values = dsv4_alloc((size_t)(KEPT_ROWS * s->kept_width), sizeof *c.values, "a trial", err);
    c.right = dsv4_alloc((size_t)s->golden->row_len, sizeof *c.right, "a trial", err);
    dsv4_status status = c.values != NULL && c.right != NULL ? DSV4_OK : DSV4_E_MACHINE;
    if (status == DSV4_OK)
        status = trial_new(q->o->model, c.layer, h, param, &t, err);
    if (status == DSV4_OK && here)
        trial_only_here(t, c.id <= DSV4_TAP_STREAMS_MID);
    if (status == DSV4_OK && !t->failed)
        status = engine_from_ops("trial", &t->model, &t->ops, q->o->numerics, &e, err);
    if (status == DSV4_OK && !t->failed)
        status = engine_run(e, q->chain, taps, q->n_chain, t->model.mtp != NULL, q->chunk, err);
    if (status == DSV4_OK && !t->failed)
        *share = c.refuted ? INFINITY : distance(&c, cosine);
    engine_close(e);
    trial_free(t);
    free(c.values);
    free(c.right);
    return status;
}

/* A mistake explains the engine if the reference with it is ten times nearer to the engine than
 * golden is; a hundred times nearer, and nothing else need be tried. */
enum { NEARER = 10, EXACT = 100, MOST_TRIED = 64, MOST_SECONDS = 120 };
static const double ALIKE = 0.8;

/* Can the mistake show first in the failing tap, or in one before it that nobody has compared? */
static bool may_show(const hypothesis *h, const cause_question *q, const facts *f)
{
    return name_matches(h->taps, dsv4_tap_name(q->first->tap)) || shows_unseen(h->taps, f);
}

typedef struct {
    const hypothesis *h;
    double share, cosine;
    int param;
    bool swept;
} tried;

/* The mistakes that give the engine's values; if none does, those that move golden's values the way
 * the engine's are moved: the same mistake, perhaps, with another constant. */
static void tell_fits(const cause_question *q, const slot *s, const tried *fits, size_t n, facts *f)
{
    size_t exact = 0, near = 0;
    double best = 0;
    for (size_t i = 0; i < n; i++) {
        exact += fits[i].share * EXACT <= 1;
        near += fits[i].share * NEARER <= 1;
        best = fmax(best, fits[i].cosine);
    }
    for (size_t i = 0; i < n; i++) {
        char name[FACT_NAME];
        double share = fits[i].share;
        bool alike = near == 0 && fits[i].cosine >= ALIKE && fits[i].cosine >= best - 0.05;
        if (alike) {
            snprintf(name, sizeof name, "near:%.30s", fits[i].h->name);
            facts_add(f, name,
                      "the reference with this mistake moves golden's values the way the engine's "
                      "are moved (cosine %.3f), but not as far: another constant, or something "
                      "related",
                      fits[i].cosine);
            continue;
        }
        if (!(share * NEARER <= 1) || (exact > 0 && share * EXACT > 1))
            continue;
        char number[48] = "";
        if (fits[i].swept)
            snprintf(number, sizeof number, ", the number in it being %d,", fits[i].param);
        snprintf(name, sizeof name, "like:%.30s", fits[i].h->name);
        if (dsv4_tap_is_int(q->first->tap))
            facts_add(f, name,
                      "the reference with this mistake%s makes the engine's choice at %d positions",
                      number, s->n_kept);
        else
            facts_add(f, name,
                      "the reference with this mistake%s comes within %.2g of the engine's values, "
                      "where golden's distance is 1",
                      number, share);
    }
}

/* On a large model a trial takes its time: the search for a cause ends at some point. */
static bool out_of_time(const cause_question *q)
{
    return now_seconds() - q->started > MOST_SECONDS;
}

static dsv4_status try_these(const cause_question *q, const slot *s, bool decode, bool here,
                             tried *fits, size_t *n, facts *f, dsv4_error *err)
{
    size_t exact = 0;
    dsv4_status status = DSV4_OK;
    for (const hypothesis *h = hypotheses; h->name != NULL && status == DSV4_OK; h++) {
        tried x = {.h = h};
        if (h->decode != decode || !may_show(h, q, f) || out_of_time(q))
            continue;
        status = try_one(q, s, h, 0, here, &x.share, &x.cosine, err);
        if (status != DSV4_OK || *n == MOST_TRIED ||
            !(x.share * NEARER <= 1 || (x.cosine >= ALIKE && isfinite(x.share))))
            continue;
        fits[(*n)++] = x;
        exact += x.share * EXACT <= 1;
        if (exact == MOST_CAUSES && !dsv4_tap_is_int(q->first->tap))
            break;
    }
    return status;
}

static dsv4_status sweep_these(const cause_question *q, const slot *s, bool decode, bool here,
                               tried *fits, size_t *n, facts *f, dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    for (const sweep *w = sweeps; w->h.name != NULL; w++) {
        tried best = {.h = &w->h, .share = INFINITY, .swept = true};
        if (w->h.decode != decode || !may_show(&w->h, q, f))
            continue;
        for (int p = w->least; p <= w->most && status == DSV4_OK; p++) {
            tried x = {.h = &w->h, .param = p, .swept = true};
            if (p == 0 || out_of_time(q))
                continue;
            status = try_one(q, s, &w->h, p, here, &x.share, &x.cosine, err);
            if (x.share < best.share)
                best = x;
            if (x.share * EXACT <= 1)
                break;
        }
        if (*n < MOST_TRIED && best.share * NEARER <= 1)
            fits[(*n)++] = best;
    }
    return status;
}

static bool any_fits(const tried *fits, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (fits[i].share * NEARER <= 1)
            return true;
    return false;
}

/* Prefills meet decode steps as well: a single token that is appended to a shared run. And what is
 * wrong may be one layer's alone: everything before the first divergence is right. */
static dsv4_status try_all(const cause_question *q, const slot *s, facts *f, dsv4_error *err)
{
    enum { LONGEST = 600 };
    tried fits[MOST_TRIED];
    size_t n = 0;
    if (q->o->model == NULL || s->n_kept == 0 || s->golden == NULL || q->j->c->context > LONGEST ||
        q->o->weights != WEIGHTS_EXACT)
        return DSV4_OK;
    bool decode = q->first->decode;
    dsv4_status status = try_these(q, s, decode, false, fits, &n, f, err);
    if (status == DSV4_OK && !decode && !any_fits(fits, n))
        status = try_these(q, s, true, false, fits, &n, f, err);
    if (status == DSV4_OK && q->first->layer >= 0 && !any_fits(fits, n))
        status = try_these(q, s, decode, true, fits, &n, f, err);
    if (status == DSV4_OK && q->first->layer >= 0 && !any_fits(fits, n))
        status = sweep_these(q, s, decode, false, fits, &n, f, err);
    if (status == DSV4_OK && q->first->layer >= 0 && !any_fits(fits, n))
        status = sweep_these(q, s, decode, true, fits, &n, f, err);
    if (status == DSV4_OK)
        tell_fits(q, s, fits, n, f);
    return status;
}

/* ---- all together ------------------------------------------------------------------------------
 */

/* The measurements behind the terms of a line. */
static void gather(const cause_line *c, const facts *f, char *text, size_t size)
{
    size_t at = 0;
    text[0] = '\0';
    for (const char *p = c->when; *p != '\0'; p += strspn(p, " ")) {
        char term[64];
        size_t n = strcspn(p, " ");
        snprintf(term, sizeof term, "%.*s", (int)n, p);
        const fact *x = term[0] != '!' ? facts_find(f, term) : NULL;
        if (x == NULL && term[0] != '!')
            x = near_fact(f, term);
        if (x != NULL && x->text[0] != '\0' && at + 2 < size)
            at += (size_t)snprintf(text + at, size - at, "%s%s", at > 0 ? "; " : "", x->text);
        at = at < size ? at : size - 1;
        p += n;
    }
}

dsv4_status causes_tell(dsv4_tap_id tap, const facts *f, results *out, dsv4_error *err)
{
    const cause_line *best[MOST_CAUSES];
    cause_table table;
    if (getenv("DSV4_SHOW_FACTS") != NULL)
        for (size_t i = 0; i < f->n; i++)
            fprintf(stderr, "fact %s: %s\n", f->list[i].name, f->list[i].text);
    dsv4_status status = causes_load(&table, err);
    if (status != DSV4_OK)
        return status;
    size_t n = causes_match(&table, tap, f, best, MOST_CAUSES);
    for (size_t i = 0; i < n && status == DSV4_OK; i++) {
        char text[1024];
        gather(best[i], f, text, sizeof text);
        if (!results_cause(out, best[i]->id, best[i]->sentence, best[i]->reference, text))
            status = dsv4_fail(err, DSV4_E_MACHINE, "out of memory for results");
    }
    causes_free(&table);
    return status;
}

dsv4_status causes_find(const cause_question *q, results *out, dsv4_error *err)
{
    const slot *s = judge_slot(q->j, q->first->layer, q->first->tap);
    dsv4_status status = DSV4_OK;
    facts *f = dsv4_alloc(1, sizeof *f, "facts", err);
    results_drop_causes(out);
    if (f == NULL)
        return DSV4_E_MACHINE;
    plain_facts(q, s, f);
    detect_values(q->j, s, q->first->tap, q->first->layer, f);
    detect_turns(q->j, s, q->first->tap, q->first->layer, f);
    detect_rounding(q->j, s, q->first->tap, f);
    if (facts_find(f, "turn:*") == NULL && facts_find(f, "like:*") == NULL)
        status = try_all(q, s, f, err);
    if (status == DSV4_OK && out_of_time(q) &&
        !results_note(out,
                      "the search for a likely cause has ended after %d s; not every known "
                      "mistake was tried",
                      (int)MOST_SECONDS))
        status = dsv4_fail(err, DSV4_E_MACHINE, "out of memory for results");
    if (status == DSV4_OK)
        status = causes_tell(q->first->tap, f, out, err);
    free(f);
    return status;
}
