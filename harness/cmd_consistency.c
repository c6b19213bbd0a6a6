/* cmd_consistency.c - relations that need no golden data: however a text is cut into chunks, saved
 * and restored, or run again, its logits are the same. */
#include <stdlib.h>
#include <string.h>

#include "causes_state.h"

static const char help[] =
    "usage: dsv4check consistency --model M [--engine E] [--prefill N] [--tokens FILE] [options]\n"
    "\n"
    "Runs N tokens (300) in one piece, then: in chunks of 1 (decode), 3, 4, 5, 63 ... 129; cut "
    "once\n"
    "at every residue mod 4 and around the sliding window and the ratio-128 boundary; with the "
    "state\n"
    "saved and restored at such cuts; again from the start; as a second request. The logits of\n"
    "every position must be those of the one piece. Cuts that do not fit N are skipped. The same "
    "bits\n"
    "are asked of: a run that nobody listens to, one whose every tap is heard, one beside another\n"
    "session, and, of engines that decode several sequences together (cuda), each of those. "
    "Engines that\n"
    "use threads: also with 1, 2, 3, 4 and 7 of them, in one piece and in chunks; the same bits.\n"
    "\n"
    "  --engine E    ref (default), cpu, ... (dsv4check list engines)\n"
    "  --numerics N  math (default), qat, deployed\n"
    "  --threads N   of the engine (2)\n"
    "  --mtp FILE    the MTP layer, if it has a file of its own\n"
    "  --budgets FILE   other tolerances\n"
    "  --json FILE  --junit FILE  --markdown FILE  --html FILE   reports\n"
    "  --waivers FILE   failures that somebody answers for (README: Waivers)\n"
    "  --baseline FILE  the JSON report of an earlier run: what got worse, better, new, gone\n"
    "  --quiet  --no-progress\n";

static const char *const allowed[] = {
    "model",   "engine",   "numerics", "prefill", "mtp",   "budgets",     "html",    "markdown",
    "waivers", "baseline", "json",     "junit",   "quiet", "no-progress", "threads", NULL};

/* The logits of every position of a run, and of the MTP layer. */
typedef struct {
    float *main, *mtp; /* [n][V] */
    int64_t n, vocab, heard;
} logits_track;

static bool want_logits(void *ctx, dsv4_tap_id id, int layer, int64_t position)
{
    (void)ctx;
    (void)layer;
    (void)position;
    return id == DSV4_TAP_LOGITS || id == DSV4_TAP_MTP_LOGITS;
}

static void hear_logits(void *ctx, dsv4_tap_id id, int layer, int64_t position, void *data,
                        size_t n)
{
    logits_track *t = ctx;
    (void)layer;
    if (!want_logits(ctx, id, layer, position) || position >= t->n || (int64_t)n != t->vocab)
        return;
    memcpy((id == DSV4_TAP_LOGITS ? t->main : t->mtp) + position * t->vocab, data,
           n * sizeof(float));
    t->heard++;
}

typedef struct {
    const dsv4_model *model;
    engine *e;
    dsv4_numerics numerics;
    int32_t *tokens;
    int64_t n;
    logits_track one, other;
    const budget *limit, *same_bits, *company; /* of cuts; of thread counts; of who is there */
    int threads;
    results *r;
    progress *bar;
} bench;

/* How a run is cut: pieces of `step` tokens, or one cut at `at`; `chunk` is the session's block. */
typedef struct {
    int64_t step, at;
    int chunk;
    bool restore; /* save at the cut, run on, come back, run on again */
    bool second;  /* after another request on the same session */
    bool unheard; /* token by token, logits from the call; nobody listens */
    bool every;   /* every tap is heard */
    bool beside;  /* in turn with another session, which has another text */
} cut;

static bool want_all(void *ctx, dsv4_tap_id id, int layer, int64_t position)
{
    (void)ctx;
    (void)id;
    (void)layer;
    (void)position;
    return true;
}

static dsv4_status append_range(bench *x, engine_session *s, int64_t from, int64_t to, int64_t step,
                                dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    for (int64_t at = from; at < to && status == DSV4_OK; at += step)
        status =
            engine_session_append(s, x->tokens + at, to - at < step ? to - at : step, NULL, err);
    return status;
}

static dsv4_status decode_unheard(bench *x, engine_session *s, logits_track *into, dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    for (int64_t i = 0; i < x->n && status == DSV4_OK; i++)
        status = engine_session_append(s, x->tokens + i, 1, into->main + i * into->vocab, err);
    return status;
}

/* Pieces of `step` tokens in turn with another session's, whose text runs backwards. */
static dsv4_status append_in_turn(bench *x, engine_session *s, engine_session *other, int64_t step,
                                  dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    for (int64_t at = 0; at < x->n && status == DSV4_OK; at += step) {
        int64_t n = x->n - at < step ? x->n - at : step;
        for (int64_t i = 0; i < n && status == DSV4_OK; i += 2)
            status = engine_session_append(other, x->tokens + x->n - 1 - at - i, 1, NULL, err);
        if (status == DSV4_OK)
            status = engine_session_append(s, x->tokens + at, n, NULL, err);
    }
    return status;
}

static dsv4_status run_cut(bench *x, const cut *c, logits_track *into, dsv4_error *err)
{
    dsv4_session_options so = {.numerics = x->numerics,
                               .max_positions = x->n,
                               .mtp = x->model->mtp != NULL,
                               .chunk = c->chunk};
    dsv4_taps taps = {.ctx = into, .want = c->every ? want_all : want_logits, .tap = hear_logits};
    engine_session *s = NULL, *other = NULL;
    void *saved = NULL;
    size_t bytes = 0;
    int64_t step = c->step > 0 ? c->step : x->n;
    dsv4_status status = engine_session_new(x->e, &so, &s, err);
    if (status != DSV4_OK)
        return status;
    if (c->second) { /* another text first; nothing of it may remain */
        int64_t first = x->n / 2 + 1;
        status = engine_session_append(s, x->tokens + x->n - first, first, NULL, err);
        engine_session_reset(s);
    }
    memset(into->main, 0, (size_t)(into->n * into->vocab) * sizeof(float));
    memset(into->mtp, 0, (size_t)(into->n * into->vocab) * sizeof(float));
    into->heard = 0;
    if (c->unheard)
        status = decode_unheard(x, s, into, err);
    engine_session_set_taps(s, &taps);
    if (status == DSV4_OK && c->beside)
        status = engine_session_new(x->e, &so, &other, err);
    if (status == DSV4_OK && c->beside)
        status = append_in_turn(x, s, other, step, err);
    if (status == DSV4_OK && c->at > 0)
        status = append_range(x, s, 0, c->at, x->n, err);
    if (status == DSV4_OK && c->restore)
        status = engine_session_save(s, &saved, &bytes, err);
    if (status == DSV4_OK && c->restore) {
        engine_session_set_taps(s, NULL);
        status = append_range(x, s, c->at, x->n, x->n, err);
        if (status == DSV4_OK)
            status = engine_session_restore(s, saved, bytes, err);
        engine_session_set_taps(s, &taps);
    }
    if (status == DSV4_OK && !c->unheard && !c->beside)
        status = append_range(x, s, c->at, x->n, step, err);
    engine_session_free(other);
    engine_session_free(s);
    free(saved);
    return status;
}

static result *judge_track(bench *x, const char *name, dsv4_tap_id id, const float *expected,
                           const float *actual, int64_t rows)
{
    compare_sums sums;
    compare_reset(&sums);
    double worst = 0;
    for (int64_t i = 0; i < rows; i++) {
        double rel = compare_row(&sums, expected + i * x->one.vocab, actual + i * x->one.vocab,
                                 x->one.vocab, 0, 0, i);
        worst = rel > worst ? rel : worst;
    }
    result *r = results_add(x->r, name, -1, id);
    if (r == NULL)
        return NULL;
    r->n = sums.n;
    r->rows = sums.rows;
    r->rel_l2 = worst; /* of the worst position: none may hide behind the others */
    r->worst_row = sums.worst_row;
    r->worst_position = sums.worst_position;
    r->max_abs = sums.max_abs;
    r->max_position = sums.max_position;
    r->max_index = sums.max_index;
    r->expected = (double)sums.max_expected;
    r->actual = (double)sums.max_actual;
    r->cosine = compare_cosine(&sums);
    r->nonfinite = sums.nonfinite;
    r->budget = x->limit->pass;
    r->budget_fail = x->limit->fail;
    r->reason = x->limit->reason;
    r->block = "state";
    r->verdict = sums.nonfinite > 0 || !(worst <= x->limit->fail) ? VERDICT_FAIL
                 : worst <= x->limit->pass                        ? VERDICT_PASS
                                                                  : VERDICT_MARGINAL;
    return r;
}

/* What of the session was kept or lost: the reference's own session, with the same cut, says. */
static dsv4_status find_cause(bench *x, const cut *c, dsv4_error *err)
{
    enum { ROWS = 6 };
    int64_t first = x->n / 2 + 1, positions[ROWS], v = x->one.vocab;
    state_rows rows = {.tap = DSV4_TAP_LOGITS, .layer = -1, .width = v, .positions = positions};
    state_schedule w = {.model = x->model,
                        .numerics = x->numerics,
                        .tokens = x->tokens,
                        .n = x->n,
                        .other = c->second ? x->tokens + x->n - first : x->tokens + c->at,
                        .n_other = c->second ? first : x->n - c->at,
                        .cut = c->second ? 0 : c->at,
                        .chunk = c->chunk,
                        .mtp = x->model->mtp != NULL};
    float *expected = dsv4_alloc((size_t)(ROWS * v), sizeof *expected, "logits", err);
    float *actual = dsv4_alloc((size_t)(ROWS * v), sizeof *actual, "logits", err);
    dsv4_status status = expected != NULL && actual != NULL ? DSV4_OK : DSV4_E_MACHINE;
    for (int64_t i = c->at; i < x->n && rows.n_rows < ROWS && status == DSV4_OK; i++) {
        compare_sums sums;
        compare_reset(&sums);
        double rel = compare_row(&sums, x->one.main + i * v, x->other.main + i * v, v, 0, 0, i);
        if (rel <= x->limit->fail)
            continue;
        memcpy(expected + rows.n_rows * v, x->one.main + i * v, (size_t)v * sizeof *expected);
        memcpy(actual + rows.n_rows * v, x->other.main + i * v, (size_t)v * sizeof *actual);
        positions[rows.n_rows++] = i;
    }
    rows.expected = expected;
    rows.actual = actual;
    if (status == DSV4_OK)
        status = causes_find_state(&w, &rows, x->r, err);
    free(expected);
    free(actual);
    return status;
}

static dsv4_status check_cut(bench *x, const cut *c, const char *name, dsv4_error *err)
{
    if (c->at >= x->n || c->step >= x->n) {
        results_missing(x->r, "%s: needs more than %lld tokens", name, (long long)x->n);
        return DSV4_OK;
    }
    dsv4_status status = run_cut(x, c, &x->other, err);
    if (status != DSV4_OK)
        return status;
    bool mtp = x->model->mtp != NULL && !c->unheard;
    if (!c->unheard && x->other.heard != x->one.heard)
        return dsv4_fail(err, DSV4_E_MACHINE, "%s: %lld rows of logits, one piece gave %lld", name,
                         (long long)x->other.heard, (long long)x->one.heard);
    const result *main = judge_track(x, name, DSV4_TAP_LOGITS, x->one.main, x->other.main, x->n);
    bool wrong = main != NULL && main->verdict == VERDICT_FAIL;
    bool first = results_count(x->r, VERDICT_FAIL) == 1; /* causes are told of the first */
    if (main == NULL || (mtp && judge_track(x, name, DSV4_TAP_MTP_LOGITS, x->one.mtp, x->other.mtp,
                                            x->n - 1) == NULL))
        return dsv4_fail(err, DSV4_E_MACHINE, "out of memory for results");
    x->r->cases++;
    progress_step(x->bar, name);
    if (wrong && first && (c->restore || c->second))
        return find_cause(x, c, err);
    return DSV4_OK;
}

static dsv4_status all_relations(bench *x, dsv4_error *err)
{
    static const int pieces[] = {1, 3, 4, 5, 63, 64, 65, 127, 128, 129};
    const dsv4_config *c = &x->model->config;
    int64_t w = c->sliding_window;
    int64_t cuts[] = {1,     2,   3,   4,   5,   6,   7,   8,   w - 1, w,
                      w + 1, 124, 125, 126, 127, 128, 129, 130, 131};
    int64_t saves[] = {1, 3, 6, w, 127, 128, 130};
    char name[64];
    cut whole = {.chunk = (int)x->n};
    dsv4_status status = run_cut(x, &whole, &x->one, err);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces && status == DSV4_OK; i++) {
        snprintf(name, sizeof name, pieces[i] == 1 ? "decode token by token" : "chunks of %d",
                 pieces[i]);
        status = check_cut(x, &(cut){.step = pieces[i], .chunk = pieces[i]}, name, err);
    }
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts && status == DSV4_OK; i++) {
        snprintf(name, sizeof name, "cut at %lld", (long long)cuts[i]);
        status = check_cut(x, &(cut){.at = cuts[i], .chunk = (int)x->n}, name, err);
    }
    for (size_t i = 0; i < sizeof saves / sizeof *saves && status == DSV4_OK; i++) {
        snprintf(name, sizeof name, "restored at %lld", (long long)saves[i]);
        status = check_cut(x, &(cut){.at = saves[i], .restore = true}, name, err);
    }
    if (status == DSV4_OK)
        status = check_cut(x, &(cut){.chunk = (int)x->n}, "run to run", err);
    if (status == DSV4_OK)
        status = check_cut(x, &(cut){.second = true}, "second request", err);
    return status;
}

/* Whose company a token has, and who listens, must not show in any bit: of a run that is cut the
 * same way, for what a cut changes is all_relations' matter. */
static dsv4_status company_relations(bench *x, dsv4_error *err)
{
    const cut whole = {.chunk = (int)x->n}, decode = {.step = 1}, sevens = {.step = 7};
    const budget *limit = x->limit;
    x->limit = x->company;
    dsv4_status status =
        check_cut(x, &(cut){.every = true, .chunk = (int)x->n}, "every tap heard", err);
    if (status == DSV4_OK)
        status = run_cut(x, &decode, &x->one, err);
    if (status == DSV4_OK)
        status = check_cut(x, &(cut){.unheard = true}, "nobody listens", err);
    if (status == DSV4_OK)
        status = check_cut(x, &(cut){.every = true, .step = 1}, "every tap heard, decode", err);
    if (status == DSV4_OK)
        status = run_cut(x, &sevens, &x->one, err);
    if (status == DSV4_OK)
        status = check_cut(x, &(cut){.beside = true, .step = 7}, "beside another session", err);
    if (status == DSV4_OK)
        status = run_cut(x, &whole, &x->one, err);
    x->limit = limit;
    return status;
}

/* Sequences of different texts and lengths, some on the verge of a window's or a ratio's end. */
enum { TOGETHER = 4, STEPS = 12 };

static void text_of(const bench *x, int sequence, int64_t at, int64_t n, int32_t *out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = x->tokens[(at + i) * (2 * sequence + 1) % x->n];
}

/* The logits of STEPS tokens of each sequence, [TOGETHER][STEPS][V]: together or one by one. */
static dsv4_status run_sequences(bench *x, bool together, float *logits, dsv4_error *err)
{
    static const int64_t before[TOGETHER] = {1, 70, 120, 7};
    int64_t vocab = x->one.vocab;
    dsv4_session_options so = {.numerics = x->numerics, .max_positions = 120 + STEPS, .chunk = 40};
    engine_session *s[TOGETHER] = {NULL};
    engine_batch *b = NULL;
    int32_t text[120 + STEPS], next[TOGETHER];
    float *row = dsv4_alloc((size_t)(TOGETHER * vocab), sizeof *row, "logits", err);
    dsv4_status status = row != NULL ? DSV4_OK : DSV4_E_MACHINE;
    for (int i = 0; i < TOGETHER && status == DSV4_OK; i++) {
        text_of(x, i, 0, before[i], text);
        so.max_positions = before[i] + STEPS; /* each its own */
        status = engine_session_new(x->e, &so, &s[i], err);
        if (status == DSV4_OK)
            status = engine_session_append(s[i], text, before[i], NULL, err);
    }
    if (status == DSV4_OK && together)
        status = engine_batch_new(x->e, s, TOGETHER, &b, err);
    for (int k = 0; k < STEPS && status == DSV4_OK; k++) {
        for (int i = 0; i < TOGETHER; i++)
            text_of(x, i, before[i] + k, 1, &next[i]);
        if (together)
            status = engine_batch_append(b, next, row, err);
        for (int i = 0; i < TOGETHER && status == DSV4_OK; i++) {
            if (!together)
                status = engine_session_append(s[i], &next[i], 1, row + i * vocab, err);
            memcpy(logits + (i * STEPS + k) * vocab, row + i * vocab,
                   (size_t)vocab * sizeof *logits);
        }
    }
    engine_batch_free(b);
    for (int i = 0; i < TOGETHER; i++)
        engine_session_free(s[i]);
    free(row);
    return status;
}

static dsv4_status sequences_relation(bench *x, dsv4_error *err)
{
    static const char name[] = "several sequences together";
    const budget *limit = x->limit;
    size_t all = (size_t)(TOGETHER * STEPS * x->one.vocab);
    if (!engine_batches(x->e)) {
        results_missing(x->r, "%s: engine %s decodes one session at a time", name,
                        engine_name(x->e));
        return DSV4_OK;
    }
    float *alone = dsv4_alloc(all, sizeof *alone, "logits", err);
    float *together = dsv4_alloc(all, sizeof *together, "logits", err);
    dsv4_status status = alone != NULL && together != NULL ? DSV4_OK : DSV4_E_MACHINE;
    if (status == DSV4_OK)
        status = run_sequences(x, false, alone, err);
    if (status == DSV4_OK)
        status = run_sequences(x, true, together, err);
    x->limit = x->company;
    if (status == DSV4_OK &&
        judge_track(x, name, DSV4_TAP_LOGITS, alone, together, TOGETHER * STEPS) == NULL)
        status = dsv4_fail(err, DSV4_E_MACHINE, "out of memory for results");
    x->limit = limit;
    x->r->cases += status == DSV4_OK;
    progress_step(x->bar, name);
    free(alone);
    free(together);
    return status;
}

/* Which thread adds what up must not show in any bit. */
static dsv4_status thread_relations(bench *x, dsv4_error *err)
{
    static const int counts[] = {1, 2, 3, 4, 7};
    const budget *limit = x->limit;
    char name[64];
    dsv4_status status = DSV4_OK;
    x->limit = x->same_bits;
    for (size_t i = 0; i < sizeof counts / sizeof *counts && status == DSV4_OK; i++) {
        engine_set_threads(x->e, counts[i]);
        snprintf(name, sizeof name, "%d thread%s", counts[i], counts[i] == 1 ? "" : "s");
        status = check_cut(x, &(cut){.chunk = (int)x->n}, name, err);
        snprintf(name, sizeof name, "%d thread%s, chunks of 5", counts[i],
                 counts[i] == 1 ? "" : "s");
        if (status == DSV4_OK)
            status = check_cut(x, &(cut){.step = 5, .chunk = 5}, name, err);
    }
    engine_set_threads(x->e, x->threads);
    x->limit = limit;
    return status;
}

int cmd_consistency(int argc, char **argv)
{
    double started = now_seconds();
    dsv4_error err = {""};
    options o;
    results r;
    budget_table budgets = {0};
    dsv4_model *m = NULL;
    engine *e = NULL;
    progress bar;
    bench x = {.r = &r, .bar = &bar, .numerics = DSV4_MATH};
    int code = 0;
    dsv4_status status = options_parse(argc, argv, allowed, &o, &err);
    if (status != DSV4_OK)
        return report_failure(status, &err);
    results_init(&r);
    if (o.help) {
        fputs(help, stdout);
        goto done;
    }
    const char *name = o.engine != NULL ? o.engine : "ref";
    if (o.model == NULL || o.n_rest > 0)
        status = dsv4_fail(&err, DSV4_E_INPUT, "consistency needs --model M (see --help)");
    else if (o.numerics != NULL && !dsv4_numerics_parse(o.numerics, &x.numerics))
        status = dsv4_fail(&err, DSV4_E_INPUT,
                           "--numerics: expected math, qat or deployed, found '%s'", o.numerics);
    if (status == DSV4_OK)
        status = budgets_load(o.budgets, &budgets, &err);
    if (status == DSV4_OK)
        status = begin_run(&r, &o, "consistency", &budgets, &err);
    if (status == DSV4_OK && (x.limit = budgets_find(&budgets, "@consistency", x.numerics,
                                                     WEIGHTS_EXACT, ROWS_CLEAN)) == NULL)
        status = dsv4_fail(&err, DSV4_E_INPUT, "budgets: no line @consistency for numerics %s",
                           dsv4_numerics_name(x.numerics));
    if (status == DSV4_OK && (x.same_bits = budgets_find(&budgets, "@threads", x.numerics,
                                                         WEIGHTS_EXACT, ROWS_CLEAN)) == NULL)
        status = dsv4_fail(&err, DSV4_E_INPUT, "budgets: no line @threads for numerics %s",
                           dsv4_numerics_name(x.numerics));
    if (status == DSV4_OK && (x.company = budgets_find(&budgets, "@company", x.numerics,
                                                       WEIGHTS_EXACT, ROWS_CLEAN)) == NULL)
        status = dsv4_fail(&err, DSV4_E_INPUT, "budgets: no line @company for numerics %s",
                           dsv4_numerics_name(x.numerics));
    if (status == DSV4_OK)
        status = dsv4_model_open(o.model, &m, &err);
    if (status == DSV4_OK && o.mtp != NULL)
        status = dsv4_model_add_mtp(m, o.mtp, &err);
    if (status == DSV4_OK)
        status = engine_open(name, m, &(engine_options){x.numerics, o.threads}, &e, &err);
    if (status == DSV4_OK && !engine_computes(e))
        status = dsv4_fail(&err, DSV4_E_INPUT,
                           "consistency needs an engine that computes, found "
                           "'%s'",
                           name);
    if (status != DSV4_OK)
        goto done;
    x.model = m;
    x.e = e;
    x.threads = o.threads;
    x.n = o.prefill > 0 ? o.prefill : 300;
    x.one = x.other = (logits_track){.n = x.n, .vocab = m->config.vocab_size};
    size_t all = (size_t)(x.n * m->config.vocab_size);
    x.tokens = dsv4_alloc((size_t)x.n, sizeof *x.tokens, "tokens", &err);
    x.one.main = dsv4_alloc(all, sizeof(float), "logits", &err);
    x.one.mtp = dsv4_alloc(all, sizeof(float), "logits", &err);
    x.other.main = dsv4_alloc(all, sizeof(float), "logits", &err);
    x.other.mtp = dsv4_alloc(all, sizeof(float), "logits", &err);
    r.argv = command_line(argc, argv);
    r.model = text_copy(o.model);
    r.engine = text_copy(name);
    r.numerics = text_copy(dsv4_numerics_name(x.numerics));
    if (x.tokens == NULL || x.one.main == NULL || x.one.mtp == NULL || x.other.main == NULL ||
        x.other.mtp == NULL) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    char sha[65];
    if ((status = dsv4_model_sha256(m, sha, &err)) != DSV4_OK)
        goto done;
    r.model_sha256 = text_copy(sha);
    uint32_t seed = 1;
    r.seeded = true;
    r.seed = seed;
    for (int64_t i = 0; i < x.n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x.tokens[i] = (int32_t)((seed >> 8) % (uint32_t)m->config.vocab_size);
    }
    progress_start(&bar,
                   engine_uses_threads(e) ? 53
                   : engine_batches(e)    ? 44
                                          : 43,
                   !o.quiet && !o.no_progress);
    status = all_relations(&x, &err);
    if (status == DSV4_OK)
        status = company_relations(&x, &err);
    if (status == DSV4_OK)
        status = sequences_relation(&x, &err);
    if (status == DSV4_OK && engine_uses_threads(e))
        status = thread_relations(&x, &err);
    progress_end(&bar);
    if (status == DSV4_OK)
        code = finish_run(&r, &o, started);
done:
    if (status != DSV4_OK)
        code = report_failure(status, &err);
    free(x.tokens);
    free(x.one.main);
    free(x.one.mtp);
    free(x.other.main);
    free(x.other.mtp);
    results_free(&r);
    budgets_free(&budgets);
    engine_close(e);
    dsv4_model_close(m);
    options_free(&o);
    return code;
}
