/* test_mutants.c - plants wrong models, one at a time, and asks of each whether the judge sees it
 * and names the block and the layer. A table on stdout, a score, exit 1 below the limits.
 *
 *   test_mutants [name ...]        only these
 *   DSV4_MUTANTS_FEW=N             every N-th once more from a dump of streams and logits (8)
 *   DSV4_MUTANTS_SUBSET=N          every N-th mutant only (the default under sanitizers: 24) */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness/causes_state.h"
#include "mutants.h"

#if defined(__SANITIZE_ADDRESS__)
enum { DEFAULT_SUBSET = 24 };
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
enum { DEFAULT_SUBSET = 24 };
#else
enum { DEFAULT_SUBSET = 1 };
#endif
#else
enum { DEFAULT_SUBSET = 1 };
#endif

/* ---- golden files -------------------------------------------------------------------------- */

typedef enum { STRESS_MATH, STRESS_QAT, NANO_MATH, EXTREME_MATH, EXTREME_QAT, FILE_COUNT } file_id;

static const char *const file_names[FILE_COUNT] = {"stress-hf-f32.h5", "stress-official-qat-f32.h5",
                                                   "nano-hf-f32.h5", "extreme-math.h5",
                                                   "extreme-qat.h5"};
static const char *const model_names[FILE_COUNT] = {"stress", "stress", "nano", "extreme",
                                                    "extreme"};

typedef struct {
    dsv4_model *model; /* of STRESS_MATH for both stress files */
    vec_file *file;
    dsv4_config config;
    dsv4_numerics numerics;
} golden;

static golden files[FILE_COUNT];
static budget_table budgets;
static bool no_causes; /* of mutants without a catalogued report nobody asks for one */
static dsv4_error err;

/* A failure of the test itself, not of a mutant. */
static void must(dsv4_status status, const char *what)
{
    if (status == DSV4_OK)
        return;
    fprintf(stderr, "test_mutants: %s: %s\n", what, err.text);
    exit(3);
}

static bool shares_model(file_id id)
{
    return id == STRESS_QAT || id == EXTREME_QAT;
}

static golden *file_of(file_id id)
{
    golden *g = &files[id];
    char path[512];
    if (g->file != NULL)
        return g;
    snprintf(path, sizeof path, "%s/%s", DSV4_VECTORS, file_names[id]);
    must(vec_open(path, &g->file, &err), path);
    must(file_config(g->file, &g->config, &err), path);
    must(file_numerics(g->file, &g->numerics, &err), path);
    if (shares_model(id)) { /* with the file before it */
        g->model = file_of(id - 1)->model;
        return g;
    }
    snprintf(path, sizeof path, "%s/%s", DSV4_VECTORS, model_names[id]);
    must(dsv4_model_open(path, &g->model, &err), path);
    return g;
}

/* ---- runs ---------------------------------------------------------------------------------- */

/* What `layers` does with one file and one glob. */
typedef struct {
    file_id file;
    const char *cases;
    bool alone; /* no sharing of runs: a case's tokens come in as it says */
    int chunk;
} step;

/* Contexts of 1, 2, 5, 21 and 22 tokens, then one of 131; 5, 22 and 131 hold every tap. */
#define TINY                                                                                       \
    {                                                                                              \
        STRESS_MATH, "ctx000[02][125]", false, 0                                                   \
    }
#define SHORT                                                                                      \
    TINY,                                                                                          \
    {                                                                                              \
        STRESS_MATH, "ctx00131", false, 0                                                          \
    }
#define DECODES "decode00[01][01][08]+0[06][08]" /* 18+8 and 100+60 tokens */

enum { STEPS = 4 };
static const step steps[RUN_COUNT][STEPS] = {
    [RUN_SHORT] = {SHORT},
    [RUN_LONG] = {SHORT, {STRESS_MATH, "ctx00260", false, 0}},
    [RUN_EDGES] = {{STRESS_MATH, "ctx000[02][124585]", false, 0}},
    [RUN_ONE_BLOCK] = {{STRESS_MATH, "ctx00[12][36][015]", true, 512}},
    [RUN_DECODE] = {SHORT, {STRESS_MATH, DECODES, false, 0}},
    [RUN_DECODE_ALONE] = {{STRESS_MATH, "ctx00[01][023][125]", true, 0},
                          {STRESS_MATH, DECODES, true, 0}},
    [RUN_QAT] = {SHORT, {STRESS_QAT, "ctx00[01][03][15]", true, 0}},
    [RUN_QAT_LONG] = {SHORT, {STRESS_QAT, "ctx00[12][36][01]", true, 0}},
    [RUN_QAT_ALONE] = {{STRESS_QAT, "ctx00[01][03][15]", true, 0}},
    [RUN_EXTREME] = {{EXTREME_MATH, "*", false, 0}},
    [RUN_EXTREME_QAT] = {{EXTREME_QAT, "*", true, 0}},
    [RUN_NANO] = {{NANO_MATH, "ctx000[01][56]", false, 0}},
};

static const dsv4_model *model_of(mutant_run kind)
{
    if (kind == RUN_EXTREME || kind == RUN_EXTREME_QAT)
        return file_of(EXTREME_MATH)->model;
    return file_of(kind == RUN_NANO ? NANO_MATH : STRESS_MATH)->model;
}

static void judge_step(const step *t, plan *p, results *out)
{
    golden *g = file_of(t->file);
    engine *e = NULL;
    must(engine_from_ops("mutant", &p->model, &p->ops, g->numerics, &e, &err), "engine");
    run_options run = {
        .e = e,
        .model = g->model,
        .numerics = g->numerics,
        .weights = WEIGHTS_EXACT,
        .budgets = &budgets,
        .case_glob = t->cases,
        .threads = 1,
        .chunk = t->chunk,
        .no_causes = no_causes,
        .share = !t->alone,
        .replay = true,
    };
    must(run_cases(g->file, &g->config, &run, out, &err), t->cases);
    engine_close(e);
}

/* One case on a session that has something behind it: another request, or a save and restore. */
enum { CUT = 66, OTHER = 50 }; /* CUT: two tokens into a ratio-4 window */

static void run_session(mutant_run kind, plan *p, const vec_case *c, const dsv4_taps *taps)
{
    golden *g = file_of(STRESS_MATH);
    const dsv4_session_options so = {.numerics = g->numerics, .max_positions = 2 * c->context};
    dsv4_session *s = NULL;
    int64_t at = 0;
    must(dsv4_session_new(&p->model, &p->ops, &so, &s, &err), "session");
    if (kind == RUN_SECOND) {
        must(dsv4_session_append(s, c->tokens + 40, OTHER, NULL, &err), "first request");
        dsv4_session_reset(s);
    } else {
        void *blob = NULL;
        size_t bytes = 0;
        dsv4_session_set_taps(s, taps);
        must(dsv4_session_append(s, c->tokens, CUT, NULL, &err), "first part");
        dsv4_session_set_taps(s, NULL);
        must(dsv4_session_save(s, &blob, &bytes, &err), "save");
        must(dsv4_session_append(s, c->tokens + 20, OTHER, NULL, &err), "drafts");
        must(dsv4_session_restore(s, blob, bytes, &err), "restore");
        free(blob);
        at = CUT;
    }
    if (p->disturb != NULL)
        at = p->disturb(s, c->tokens);
    dsv4_session_set_taps(s, taps);
    must(dsv4_session_append(s, c->tokens + at, c->context - at, NULL, &err), "golden case");
    dsv4_session_free(s);
}

static void judge_session(mutant_run kind, plan *p, results *out)
{
    golden *g = file_of(STRESS_MATH);
    const vec_case *c = vec_case_find(g->file, "ctx00131");
    const judge_options jo = {
        .numerics = g->numerics,
        .weights = WEIGHTS_EXACT,
        .budgets = &budgets,
        .config = &g->config,
        .model = g->model,
    };
    judge *j = NULL;
    must(judge_new(g->file, c, &jo, &j, &err), "judge");
    run_session(kind, p, c, judge_taps(j));
    must(judge_finish(j, out, &err), "judge");
    for (size_t i = 0; i < out->count; i++)
        if (out->items[i].verdict == VERDICT_FAIL)
            out->items[i].block = "state"; /* the same case passes on a fresh session */
    results_finish(out);
    const result *first = out->first_divergence;
    if (first != NULL && !no_causes) {
        const slot *s = judge_slot(j, first->layer, first->tap);
        bool second = kind == RUN_SECOND;
        const state_schedule w = {.model = g->model,
                                  .numerics = g->numerics,
                                  .tokens = c->tokens,
                                  .n = c->context,
                                  .other = c->tokens + (second ? 40 : 20),
                                  .n_other = OTHER,
                                  .cut = second ? 0 : CUT};
        const state_rows rows = {.tap = first->tap,
                                 .layer = first->layer,
                                 .n_rows = s->n_kept,
                                 .width = s->kept_width,
                                 .positions = s->kept_position,
                                 .expected = s->kept_expected,
                                 .actual = s->kept_actual};
        must(causes_find_state(&w, &rows, out, &err), "causes");
    }
    judge_free(j);
}

/* ---- dumps that hold little
 * ---------------------------------------------------------------------- */

enum { FEW_EVERY = 8 }; /* every how many mutants, unless all are asked for */

static bool wants_few(const char *every, int n)
{
    int each = every != NULL ? atoi(every) : FEW_EVERY;
    return each > 0 && n % each == 0;
}

#define FEW "streams|logits|mtp/logits"

enum { MOST_POSITIONS = 512 };

/* Which positions does a session speak of at all? */
static void hear_position(void *ctx, dsv4_tap_id id, int layer, int64_t position, void *data,
                          size_t n)
{
    bool *heard = ctx;
    (void)data, (void)n;
    if (id == DSV4_TAP_STREAMS && layer == 0 && position < MOST_POSITIONS)
        heard[position] = true;
}

/* One step of a mutant's run as somebody else would hand it in: a file with the streams after each
 * layer and the logits of every position, nothing else. t NULL: a session's run. */
static void judge_few(const step *t, mutant_run kind, plan *p, results *out)
{
    golden *g = file_of(t != NULL ? t->file : STRESS_MATH);
    engine *e = NULL;
    vec_writer *w = NULL;
    char path[64], name[80];
    snprintf(path, sizeof path, "/tmp/dsv4-few-%ld.h5", (long)getpid());
    snprintf(name, sizeof name, "dump:%s", path);
    vec_writer_info info = {.model = "mutant",
                            .weights_sha256 = vec_attribute(g->file, "weights_sha256"),
                            .config = vec_attribute(g->file, "config"),
                            .producer = "test_mutants",
                            .numerics = dsv4_numerics_name(g->numerics)};
    must(vec_writer_new(path, &info, &w, &err), path);
    if (t != NULL) {
        record_options ro = {
            .case_glob = t->cases, .tap_glob = FEW, .chunk = t->chunk, .every_position = true};
        must(engine_from_ops("mutant", &p->model, &p->ops, g->numerics, &e, &err), "engine");
        must(record_cases(e, &p->model, g->file, &ro, w, &err), path);
        engine_close(e);
    } else {
        vec_case c = *vec_case_find(g->file, "ctx00131");
        int64_t *all = NULL;
        recorder *r = NULL;
        bool heard[MOST_POSITIONS] = {false};
        run_session(kind, p, &c, &(dsv4_taps){.ctx = heard, .tap = hear_position});
        must(parse_positions(NULL, c.context, &all, &c.n_positions, &err), "positions");
        c.n_positions = 0;
        for (int64_t i = 0; i < c.context; i++)
            if (heard[i])
                all[c.n_positions++] = i;
        c.positions = all;
        must(recorder_new(&g->config, &c, all, c.n_positions, FEW, &r, &err), "recorder");
        run_session(kind, p, &c, recorder_taps(r));
        must(vec_writer_case(w, &c, &err), path);
        must(recorder_write(r, w, &err), path);
        recorder_free(r);
        free(all);
    }
    must(vec_writer_commit(w, &err), path);
    must(engine_open(name, NULL, &(engine_options){.numerics = g->numerics}, &e, &err), name);
    unlink(path);
    run_options run = {
        .e = e,
        .model = g->model,
        .numerics = g->numerics,
        .weights = WEIGHTS_EXACT,
        .budgets = &budgets,
        .case_glob = t != NULL ? t->cases : "ctx00131",
        .threads = 1,
        .no_causes = true,
    };
    must(run_cases_mode(g->file, &g->config, &run, MODE_FREE, out, &err), name);
    engine_close(e);
}

static void run_few(mutant_run kind, void (*plant)(plan *), results *out)
{
    static plan p;
    results_init(out);
    plan_init(&p, model_of(kind));
    plant(&p);
    if (kind == RUN_SECOND || kind == RUN_RESTORE)
        judge_few(NULL, kind, &p, out);
    for (int i = 0; i < STEPS && steps[kind][i].cases != NULL; i++)
        judge_few(&steps[kind][i], kind, &p, out);
    results_finish(out);
    plan_free(&p);
}

static void run_mutant(mutant_run kind, void (*plant)(plan *), results *out)
{
    static plan p;
    results_init(out);
    plan_init(&p, model_of(kind));
    if (plant != NULL)
        plant(&p);
    if (kind == RUN_SECOND || kind == RUN_RESTORE)
        judge_session(kind, &p, out);
    else
        for (int i = 0; i < STEPS && steps[kind][i].cases != NULL; i++) {
            judge_step(&steps[kind][i], &p, out);
            results_finish(out);
            /* In layer 0 nothing lies further up: longer cases would not say more. */
            if (out->first_divergence != NULL && out->first_divergence->layer == 0)
                break;
        }
    results_finish(out);
    plan_free(&p);
}

/* ---- score --------------------------------------------------------------------------------- */

typedef struct {
    int planted, caught, right_block, right_layer;
    int equivalent, survived;
    int few, few_caught, few_layer, few_invisible; /* from dumps of streams and logits alone */
    int expected_causes, named, named_first; /* of mutants that come from a catalogued report */
    struct {
        int planted, named, first;
    } held[2]; /* of them: those of the two tables of mutants_heldout */
} score;

static bool is_one_of(const char *block, const char *list)
{
    size_t n = strlen(block);
    for (const char *at = list; at != NULL; at = strchr(at, '|')) {
        at += *at == '|';
        if (strncmp(at, block, n) == 0 && (at[n] == '\0' || at[n] == '|'))
            return true;
    }
    return false;
}

/* Is one of the catalogue's ids in the mutant's report, "(HC01)" or "(CP08), ... (CP19)", among
 * those of the cause, "AT14,AT36"? */
static bool is_cause(const likely_cause *c, const char *report)
{
    char id[16];
    for (const char *p = c->id; p != NULL; p = strchr(p, ',')) {
        p += *p == ',';
        snprintf(id, sizeof id, "%.*s", (int)strcspn(p, ","), p);
        const char *at = strstr(report, id);
        size_t n = strlen(id);
        if (n > 3 && at != NULL && at > report && (at[-1] == '(' || at[-1] == ' ') &&
            (at[n] == ')' || at[n] == ','))
            return true;
    }
    return false;
}

static bool has_cause(const char *report)
{
    const char *open = strchr(report, '(');
    return open != NULL && strlen(open) > 5 && open[1] >= 'A' && open[1] <= 'Z' && open[2] >= 'A' &&
           open[2] <= 'Z' && open[3] >= '0' && open[3] <= '9';
}

/* Is the mistake named, and how high up? 0 = not, else its place from 1. */
static int place_of_cause(const results *r, const char *report)
{
    for (size_t i = 0; i < r->n_causes; i++)
        if (is_cause(&r->causes[i], report))
            return (int)i + 1;
    return 0;
}

/* What streams and logits do not show, and the proof. */
static const struct {
    const char *name, *why;
} invisible[] = {
    {"head-gates-doubled", "the final norm takes a common factor of its input away"},
    {"indexer-not-scaled", "a positive factor keeps the order of the scores, and the choice is all "
                           "that is used"},
    {"rope-one-late", "every query and every row is turned by the same angle more, and the output "
                      "is turned back by it"},
};

/* They compute wrongly in every layer. Golden's positions, or its budgets, show it in a later one;
 * a dump of every position shows it in the first. */
static const char *const from_layer_0[] = {"experts-clamped-silu", "restore-no-window",
                                           "prefix-foreign-window"};

static int layer_in_few(const mutant *m)
{
    for (size_t i = 0; i < sizeof from_layer_0 / sizeof *from_layer_0; i++)
        if (strcmp(m->name, from_layer_0[i]) == 0)
            return 0;
    return m->layer;
}

static const char *why_invisible(const char *name)
{
    for (size_t i = 0; i < sizeof invisible / sizeof *invisible; i++)
        if (strcmp(name, invisible[i].name) == 0)
            return invisible[i].why;
    return NULL;
}

/* All of them count; what cannot show, too. */
static void try_few(const mutant *m, score *total)
{
    results r;
    const char *why = why_invisible(m->name);
    int layer = layer_in_few(m);
    run_few(m->run, m->plant, &r);
    const result *first = r.first_divergence;
    total->few++;
    total->few_invisible += why != NULL;
    total->few_caught += first != NULL;
    total->few_layer += first != NULL && first->layer == layer;
    if (first == NULL || first->layer != layer)
        printf("%-30s from streams and logits: layer %d, expected %d%s%s%s\n", m->name,
               first != NULL ? first->layer : -2, layer, first == NULL ? " (not caught)" : "",
               why != NULL ? "; not in them: " : "", why != NULL ? why : "");
    results_free(&r);
}

static void try_mutant(const mutant *m, const mutant *table, score *total)
{
    bool equivalent = table == mutants_equivalent;
    results r;
    no_causes = equivalent || !has_cause(m->ids);
    run_mutant(m->run, m->plant, &r);
    const result *first = r.first_divergence;
    char place[128] = "-";
    if (first != NULL)
        snprintf(place, sizeof place, "%s/%d/%s", first->case_name, first->layer,
                 dsv4_tap_name(first->tap));
    const char *named = first != NULL ? first->block : "-";
    const char *outcome = "ok";
    int cause = place_of_cause(&r, m->ids);
    if (!equivalent && has_cause(m->ids)) {
        total->expected_causes++;
        total->named += cause > 0;
        total->named_first += cause == 1;
        for (int i = 0; i < 2; i++)
            if (table == (i == 0 ? mutants_heldout : mutants_heldout2)) {
                total->held[i].planted++;
                total->held[i].named += cause > 0;
                total->held[i].first += cause == 1;
            }
    }
    if (equivalent) {
        total->equivalent++;
        total->survived += first == NULL;
        outcome = first == NULL ? "ok" : "NOT EQUIVALENT";
    } else {
        bool block = first != NULL && is_one_of(named, m->blocks);
        bool layer = first != NULL && first->layer == m->layer;
        total->planted++;
        total->caught += first != NULL;
        total->right_block += block;
        total->right_layer += layer;
        outcome = first == NULL ? "SURVIVED" : !block ? "BLOCK" : !layer ? "LAYER" : "ok";
    }
    printf("%-30s %-34s %-10s %3d  %-16s %3d  %-6s %s\n", m->name, place, named,
           first != NULL ? first->layer : 0, equivalent ? "(survives)" : m->blocks, m->layer,
           outcome,
           r.n_causes == 0                    ? "-"
           : cause == 1 || !has_cause(m->ids) ? r.causes[0].id
           : cause > 1                        ? "(named, not first)"
                                              : r.causes[0].id);
    if (strcmp(outcome, "ok") != 0)
        printf("    %s; from %s%s%s\n", m->wrong, m->ids, m->why != NULL ? "; " : "",
               m->why != NULL ? m->why : "");
    fflush(stdout);
    results_free(&r);
}

static bool asked_for(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return true;
    return argc < 2;
}

/* The trackers and the checks themselves must not be what fails. */
static int try_healthy(bool all)
{
    static const char *const names[RUN_COUNT] = {
        "short",   "long",        "edges",    "one block",       "decode",
        "decode",  "qat",         "long qat", "qat alone",       "nano and mtp",
        "extreme", "extreme qat", "second",   "save and restore"};
    int failures = 0;
    for (int kind = 0; kind < RUN_COUNT; kind++) {
        results r;
        if (!all && kind != RUN_SHORT && kind != RUN_SECOND && kind != RUN_RESTORE)
            continue;
        run_mutant((mutant_run)kind, NULL, &r);
        size_t n = results_count(&r, VERDICT_FAIL);
        printf("healthy, %-16s %4zu comparisons, %zu failures\n", names[kind], r.count, n);
        failures += n > 0 || r.count == 0;
        results_free(&r);
    }
    return failures;
}

int main(int argc, char **argv)
{
    static const mutant *const tables[] = {mutants_streams,  mutants_attention, mutants_rope,
                                           mutants_rows,     mutants_experts,   mutants_quant,
                                           mutants_state,    mutants_extreme,   mutants_heldout,
                                           mutants_heldout2, mutants_equivalent};
    enum { TABLES = sizeof tables / sizeof *tables };
    const char *wanted = getenv("DSV4_MUTANTS_SUBSET"), *few = getenv("DSV4_MUTANTS_FEW");
    int every = wanted != NULL ? atoi(wanted) : DEFAULT_SUBSET, n = 0;
    double started = now_seconds();
    score s = {0};

    every = every < 1 || argc > 1 ? 1 : every;
    must(budgets_load(NULL, &budgets, &err), "budgets");
    int sick = argc > 1 ? 0 : try_healthy(every == 1);
    printf("%-30s %-34s %-10s %3s  %-16s %3s\n", "mutant", "first divergence", "block", "l",
           "expected", "l");
    for (int t = 0; t < TABLES; t++)
        for (const mutant *m = tables[t]; m->name != NULL; m++)
            if (asked_for(m->name, argc, argv) && n++ % every == 0) {
                try_mutant(m, tables[t], &s);
                if (tables[t] != mutants_equivalent && wants_few(few, n))
                    try_few(m, &s);
            }

    printf("planted %d, caught %d, right block %d, right layer %d, equivalents %d (survived %d), "
           "%.1f s\n",
           s.planted, s.caught, s.right_block, s.right_layer, s.equivalent, s.survived,
           now_seconds() - started);
    printf(
        "likely causes: of %d wrong models from catalogued reports the cause is named first in %d, "
        "among the three in %d\n",
        s.expected_causes, s.named_first, s.named);
    for (int i = 0; i < 2; i++)
        printf("of them written later, lot %d: %d, named first %d, among the three %d\n", i + 1,
               s.held[i].planted, s.held[i].first, s.held[i].named);
    printf("from dumps of streams and logits: planted %d (%d of them not to be seen there), caught "
           "%d, right layer %d\n",
           s.few, s.few_invisible, s.few_caught, s.few_layer);
    bool whole = argc < 2 && every == 1;
    bool good = 100 * s.few_layer >= 90 * (s.few - s.few_invisible) &&
                (!whole || 100 * s.named >= 90 * s.expected_causes) && sick == 0 &&
                s.caught == s.planted && s.survived == s.equivalent &&
                100 * s.right_block >= 95 * s.planted && 100 * s.right_layer >= 95 * s.planted &&
                s.planted + s.equivalent > 0;
    for (int i = 0; i < FILE_COUNT; i++) {
        if (files[i].file == NULL)
            continue;
        vec_close(files[i].file);
        dsv4_config_free(&files[i].config);
        if (!shares_model((file_id)i))
            dsv4_model_close(files[i].model);
    }
    budgets_free(&budgets);
    return good ? 0 : 1;
}
