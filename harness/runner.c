/* runner.c - golden cases, shared out to threads, judged and put in order. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "bundle.h"
#include "causes.h"
#include "diagnose.h"
#include "noise.h"
#include "reports/reports.h"
#include "runner.h"

/* One run of the engine: cases whose tokens grow from each other, the last one the longest. */
typedef struct {
    size_t *cases;
    size_t n;
} job;

typedef struct {
    const vec_file *golden;
    const dsv4_config *config;
    const run_options *o;
    judge **judges; /* [cases] */
    job *jobs;
    size_t n_jobs, next;
    pthread_mutex_t lock;
    double engine;      /* seconds in the engine, its listeners included */
    dsv4_status status; /* the first failure */
    dsv4_error err;
} pool;

bool case_admitted(const vec_case *c, const char *glob)
{
    return name_matches(glob, c->name);
}

size_t count_cases(const vec_file *golden, const char *glob)
{
    size_t n = 0;
    for (size_t i = 0; i < vec_case_count(golden); i++)
        n += case_admitted(vec_case_at(golden, i), glob);
    return n;
}

static bool is_prefix(const vec_case *a, const vec_case *b)
{
    return !a->decode && !b->decode && a->context <= b->context &&
           memcmp(a->tokens, b->tokens, (size_t)a->context * sizeof *a->tokens) == 0;
}

/* Cases come in rising length: each one joins the first job whose longest case it continues. */
static dsv4_status plan_jobs(pool *p, dsv4_error *err)
{
    size_t n = vec_case_count(p->golden);
    p->jobs = dsv4_alloc(n, sizeof *p->jobs, "jobs", err);
    if (p->jobs == NULL)
        return DSV4_E_MACHINE;
    for (size_t i = 0; i < n; i++) {
        const vec_case *c = vec_case_at(p->golden, i);
        if (!case_admitted(c, p->o->case_glob))
            continue;
        job *home = NULL;
        for (size_t k = 0; p->o->share && k < p->n_jobs && home == NULL; k++) {
            job *b = &p->jobs[k];
            if (is_prefix(vec_case_at(p->golden, b->cases[b->n - 1]), c))
                home = b;
        }
        if (home == NULL) {
            home = &p->jobs[p->n_jobs++];
            home->cases = dsv4_alloc(n, sizeof *home->cases, "jobs", err);
            if (home->cases == NULL)
                return DSV4_E_MACHINE;
        }
        home->cases[home->n++] = i;
    }
    return DSV4_OK;
}

/* The longest job first: with few threads, that is what decides when the last one ends. */
static int by_length(const void *a, const void *b)
{
    size_t x = ((const job *)a)->cases[((const job *)a)->n - 1];
    size_t y = ((const job *)b)->cases[((const job *)b)->n - 1];
    return x < y ? 1 : x > y ? -1 : 0;
}

static dsv4_status new_judge(pool *p, size_t index, bool replay, dsv4_error *err)
{
    judge_options jo = {
        .numerics = p->o->numerics,
        .weights = p->o->weights,
        .weights_format = p->o->weights_format,
        .budgets = p->o->budgets,
        .config = p->config,
        .model = p->o->model,
        .taps = p->o->tap_glob,
        .replay = replay,
        .shadow = p->o->shadow,
        .local = p->o->local,
        .dump = engine_is_dump(p->o->e),
        .rounded = engine_rounds_activations(p->o->e),
        .command = p->o->command,
    };
    judge_free(p->judges[index]);
    return judge_new(p->golden, vec_case_at(p->golden, index), &jo, &p->judges[index], err);
}

/* A tie or flip can be replayed only where one case has the run to itself. */
static bool replays(const pool *p, const job *b)
{
    return b->n == 1 && !engine_is_dump(p->o->e) && p->o->replay;
}

/* Golden rows of the first jobs, as many as may stay in memory, before an engine runs: after it
 * nothing that reading needs is in the caches, and the same work takes twice as long. */
static dsv4_status load_first(pool *p, dsv4_error *err)
{
    enum { MOST = 64 << 20 /* bytes of rows, and those of the last case */ };
    double started = now_seconds();
    int64_t loaded = 0;
    dsv4_status status = DSV4_OK;
    for (size_t k = 0; k < p->n_jobs && loaded < MOST; k++)
        for (size_t i = 0; i < p->jobs[k].n && loaded < MOST && status == DSV4_OK; i++) {
            size_t index = p->jobs[k].cases[i];
            status = new_judge(p, index, replays(p, &p->jobs[k]), err);
            if (status == DSV4_OK)
                status = judge_load(p->judges[index], &loaded, err);
        }
    p->engine += now_seconds() - started; /* as what is read later, between an engine's operators */
    return status;
}

/* The time of a run, added up. */
static dsv4_status timed_run(pool *p, const vec_case *const *cases, const dsv4_taps *const *taps,
                             size_t n, bool mtp, dsv4_error *err)
{
    double started = now_seconds();
    dsv4_status status = engine_run(p->o->e, cases, taps, n, mtp, p->o->chunk, err);
    pthread_mutex_lock(&p->lock);
    p->engine += now_seconds() - started;
    pthread_mutex_unlock(&p->lock);
    return status;
}

static dsv4_status run_job(pool *p, const job *b, dsv4_error *err)
{
    bool dump = engine_is_dump(p->o->e), alone = b->n == 1;
    bool mtp = !dump && p->o->model->mtp != NULL;
    const vec_case **cases = dsv4_alloc(b->n, sizeof *cases, "a job", err);
    const dsv4_taps **taps = dsv4_alloc(b->n, sizeof *taps, "a job", err);
    dsv4_status status = cases != NULL && taps != NULL ? DSV4_OK : DSV4_E_MACHINE;
    for (size_t i = 0; i < b->n && status == DSV4_OK; i++) {
        cases[i] = vec_case_at(p->golden, b->cases[i]);
        if (p->judges[b->cases[i]] == NULL)
            status = new_judge(p, b->cases[i], replays(p, b), err);
        if (status == DSV4_OK)
            taps[i] = judge_taps(p->judges[b->cases[i]]);
    }
    if (status == DSV4_OK)
        status = timed_run(p, cases, taps, b->n, mtp, err);
    for (size_t i = 0; !alone && p->o->replay && !p->o->shadow && i < b->n && status == DSV4_OK;
         i++) {
        size_t index = b->cases[i];
        if (judge_events(p->judges[index]) == 0)
            continue;
        status = new_judge(p, index, true, err);
        if (status == DSV4_OK) {
            taps[0] = judge_taps(p->judges[index]);
            status = timed_run(p, &cases[i], taps, 1, mtp, err);
        }
    }
    for (size_t i = 0; i < b->n; i++)
        judge_rest(p->judges[b->cases[i]]);
    free(cases);
    free(taps);
    return status;
}

static void *work(void *ctx)
{
    pool *p = ctx;
    for (;;) {
        pthread_mutex_lock(&p->lock);
        size_t mine = p->next;
        bool stop = mine >= p->n_jobs || p->status != DSV4_OK;
        p->next += !stop;
        pthread_mutex_unlock(&p->lock);
        if (stop)
            return NULL;
        dsv4_error err;
        dsv4_status status = run_job(p, &p->jobs[mine], &err);
        pthread_mutex_lock(&p->lock);
        if (status != DSV4_OK && p->status == DSV4_OK) {
            p->status = status;
            p->err = err;
        }
        for (size_t i = 0; i < p->jobs[mine].n && p->o->progress != NULL; i++)
            progress_step(p->o->progress, vec_case_at(p->golden, p->jobs[mine].cases[i])->name);
        pthread_mutex_unlock(&p->lock);
    }
}

static bool in_dump(const pool *p, const vec_case *c)
{
    return !engine_is_dump(p->o->e) || vec_case_find(engine_dump(p->o->e), c->name) != NULL;
}

/* The cases that share the run of case `index`, up to itself. */
static const job *job_of(const pool *p, size_t index, size_t *place)
{
    for (size_t i = 0; i < p->n_jobs; i++)
        for (size_t k = 0; k < p->jobs[i].n; k++)
            if (p->jobs[i].cases[k] == index) {
                *place = k;
                return &p->jobs[i];
            }
    return NULL;
}

/* What makes the first divergence, if it is one of the results from `added` on. alone: the judge of
 * the last of them, or NULL. */
static dsv4_status find_causes(const pool *p, judge *alone, results *out, size_t added,
                               dsv4_error *err)
{
    results_finish(out);
    const result *first = out->first_divergence;
    if (first == NULL || first < out->items + added)
        return DSV4_OK;
    bool by_itself = alone != NULL && first == out->items + out->count - 1;
    size_t index = 0, place = 0, n = vec_case_count(p->golden);
    while (index < n && strcmp(vec_case_at(p->golden, index)->name, first->case_name) != 0)
        index++;
    const job *b = index < n ? job_of(p, index, &place) : NULL;
    if (b == NULL || (!by_itself && p->judges[index] == NULL))
        return DSV4_OK;
    const vec_case **chain = dsv4_alloc(place + 1, sizeof *chain, "cases", err);
    if (chain == NULL)
        return DSV4_E_MACHINE;
    for (size_t i = 0; i <= place; i++)
        chain[i] = vec_case_at(p->golden, by_itself ? index : b->cases[i]);
    cause_question q = {.j = by_itself ? alone : p->judges[index],
                        .o = p->o,
                        .first = first,
                        .chain = chain,
                        .n_chain = by_itself ? 1 : place + 1,
                        .chunk = by_itself ? (int)chain[0]->context : p->o->chunk,
                        .started = now_seconds()};
    dsv4_status status = causes_find(&q, out, err);
    free(chain);
    return status;
}

/* Context class and noise floor of every result from `added` on. */
static dsv4_status place_noise(const vec_file *golden, const dsv4_config *config,
                               const run_options *o, results *out, size_t added, dsv4_error *err)
{
    noise_table noise;
    dsv4_status status = noise_load(vec_path(golden), &noise, err);
    for (size_t i = added; i < out->count && status == DSV4_OK; i++) {
        result *r = &out->items[i];
        r->context_class = context_class(config, r->context);
        if (o->weights == WEIGHTS_EXACT)
            r->noise_floor = noise_floor(&noise, r->tap, r->numerics, r->context_class);
    }
    noise_free(&noise);
    return status;
}

dsv4_status run_cases(const vec_file *golden, const dsv4_config *config, const run_options *o,
                      results *out, dsv4_error *err)
{
    enum { MAX_THREADS = 64 };
    pool p = {.golden = golden, .config = config, .o = o};
    size_t n = vec_case_count(golden), added = out->count;
    double heard = out->timing.compare + out->timing.read;
    pthread_t threads[MAX_THREADS];
    judge *alone = NULL;
    int started = 0, wanted = o->threads < MAX_THREADS ? o->threads : MAX_THREADS;
    pthread_mutex_init(&p.lock, NULL);
    p.judges = dsv4_alloc(n, sizeof *p.judges, "judges", err);
    dsv4_status status = p.judges != NULL ? plan_jobs(&p, err) : DSV4_E_MACHINE;
    if (status != DSV4_OK)
        goto done;
    if (p.n_jobs > 1)
        qsort(p.jobs, p.n_jobs, sizeof *p.jobs, by_length);
    status = load_first(&p, err);
    if (status != DSV4_OK)
        goto done;
    /* Threads go to cases first, then to the engine: a case needs none of the others' results. */
    int jobs = p.n_jobs < (size_t)wanted ? (int)p.n_jobs : wanted;
    engine_set_threads(o->e, jobs > 0 ? wanted / jobs : 1);
    for (; started < wanted - 1 && (size_t)started + 1 < p.n_jobs; started++)
        if (pthread_create(&threads[started], NULL, work, &p) != 0)
            break;
    work(&p);
    for (int i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    status = p.status;
    if (status != DSV4_OK)
        *err = p.err;
    for (size_t i = 0; i < n && status == DSV4_OK; i++) {
        if (p.judges[i] == NULL)
            continue;
        if (in_dump(&p, vec_case_at(golden, i)))
            status = judge_finish(p.judges[i], out, err);
        else if (!results_missing(out, "%s", vec_case_at(golden, i)->name))
            status = dsv4_fail(err, DSV4_E_MACHINE, "out of memory for results");
    }
    out->timing.engine += p.engine - (out->timing.compare + out->timing.read - heard);
    if (status == DSV4_OK && !o->shadow)
        status = diagnose(golden, config, o, out, added, &alone, err);
    if (status == DSV4_OK)
        status = place_noise(golden, config, o, out, added, err);
    if (status == DSV4_OK && !o->no_causes)
        status = find_causes(&p, alone, out, added, err);
done:
    for (size_t i = 0; p.judges != NULL && i < n; i++)
        judge_free(p.judges[i]);
    judge_free(alone);
    for (size_t i = 0; p.jobs != NULL && i < n; i++)
        free(p.jobs[i].cases);
    free(p.judges);
    free(p.jobs);
    pthread_mutex_destroy(&p.lock);
    return status;
}

/* ---- files and models ---------------------------------------------------------------------- */

dsv4_status file_numerics(const vec_file *f, dsv4_numerics *out, dsv4_error *err)
{
    const char *text = vec_attribute(f, "numerics");
    char word[16] = "";
    if (text != NULL)
        sscanf(text, "%15[a-z]", word);
    if (dsv4_numerics_parse(word, out))
        return DSV4_OK;
    return dsv4_fail(err, DSV4_E_INPUT,
                     "%s: attribute numerics: expected math, qat or deployed first, found '%s'",
                     vec_path(f), text != NULL ? text : "nothing");
}

dsv4_status file_config(const vec_file *f, dsv4_config *out, dsv4_error *err)
{
    const char *text = vec_attribute(f, "config");
    char where[512];
    if (text == NULL)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: attribute config: expected the config.json text, found nothing",
                         vec_path(f));
    snprintf(where, sizeof where, "%s: attribute config", vec_path(f));
    return dsv4_config_parse(text, strlen(text), where, out, err);
}

static dsv4_status check_tensor(const dsv4_model *m, const dsv4_tensor *t, float *row,
                                dsv4_error *err)
{
    if (t->name == NULL || t->type == DSV4_I32 || t->type == DSV4_I64)
        return DSV4_OK;
    for (int64_t r = 0; r < t->rows; r++) {
        dsv4_tensor_row(t, r, row);
        for (int64_t c = 0; c < t->cols; c++)
            if (!isfinite(row[c]))
                return dsv4_fail(
                    err, DSV4_E_INPUT,
                    "%s: tensor %s: element [%lld][%lld] is %g, expected a finite number",
                    dsv4_model_path(m), t->name, (long long)r, (long long)c, (double)row[c]);
    }
    return DSV4_OK;
}

static dsv4_status check_layer(const dsv4_model *m, const dsv4_layer *l, float *row,
                               dsv4_error *err)
{
    const dsv4_tensor *list[] = {&l->hc_attn.fn,
                                 &l->hc_ffn.fn,
                                 &l->wq_a,
                                 &l->wq_b,
                                 &l->wkv,
                                 &l->wo_a,
                                 &l->wo_b,
                                 &l->compressor.wkv,
                                 &l->compressor.wgate,
                                 &l->indexer.wq_b,
                                 &l->indexer.weights_proj,
                                 &l->indexer.compressor.wkv,
                                 &l->indexer.compressor.wgate,
                                 &l->gate,
                                 &l->shared_w1,
                                 &l->shared_w2,
                                 &l->shared_w3};
    dsv4_status status = DSV4_OK;
    for (size_t i = 0; i < sizeof list / sizeof *list && status == DSV4_OK; i++)
        status = check_tensor(m, list[i], row, err);
    for (int64_t e = 0; e < 3 * (int64_t)m->config.n_routed_experts && status == DSV4_OK; e++)
        status = check_tensor(m, &l->w1[e], row, err); /* w1, w2, w3 lie one after another */
    return status;
}

dsv4_status check_weights(const dsv4_model *m, dsv4_error *err)
{
    const dsv4_config *c = &m->config;
    int64_t widest = c->hc_mult * c->hidden_size, o = (int64_t)c->o_groups * c->o_lora_rank;
    int64_t heads = (int64_t)c->num_attention_heads * c->head_dim;
    int64_t inner = c->moe_intermediate_size * c->n_shared_experts;
    widest = widest > o ? widest : o;
    widest = widest > heads ? widest : heads;
    widest = widest > inner ? widest : inner;
    widest = widest > c->q_lora_rank ? widest : c->q_lora_rank;
    float *row = dsv4_alloc((size_t)widest, sizeof *row, "a weight row", err);
    if (row == NULL)
        return DSV4_E_MACHINE;
    dsv4_status status = check_tensor(m, &m->embed, row, err);
    if (status == DSV4_OK)
        status = check_tensor(m, &m->head, row, err);
    if (status == DSV4_OK)
        status = check_tensor(m, &m->hc_head.fn, row, err);
    for (int i = 0; i < c->num_hidden_layers && status == DSV4_OK; i++)
        status = check_layer(m, &m->layers[i], row, err);
    for (int i = 0; m->mtp != NULL && i < c->num_nextn_predict_layers && status == DSV4_OK; i++) {
        status = check_tensor(m, &m->mtp[i].e_proj, row, err);
        if (status == DSV4_OK)
            status = check_tensor(m, &m->mtp[i].h_proj, row, err);
        if (status == DSV4_OK)
            status = check_layer(m, &m->mtp[i].layer, row, err);
    }
    free(row);
    return status;
}

dsv4_status begin_run(results *r, const options *o, const char *command,
                      const budget_table *budgets, dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    r->command = command;
    r->partial = o->case_glob != NULL || o->tap_glob != NULL || o->format != NULL;
    if (!results_provenance(r, o->threads))
        return dsv4_fail(err, DSV4_E_MACHINE, "out of memory for results");
    if (o->html != NULL && !page_available())
        status = page_to_file(o->html, NULL, err);
    if (status == DSV4_OK && o->waivers != NULL)
        status = waivers_load(o->waivers, r, err);
    if (status == DSV4_OK && o->baseline != NULL)
        status = baseline_load(o->baseline, command, budgets, r, err);
    return status;
}

dsv4_status settle_results(results *r, double started, dsv4_error *err)
{
    r->seconds = now_seconds() - started;
    results_finish(r);
    const result *blamed = r->first_divergence;
    dsv4_status status = waivers_apply(r, err);
    results_finish(r);
    if (r->first_divergence != blamed)
        results_drop_causes(r); /* they explain what is waived */
    if (status == DSV4_OK)
        status = baseline_compare(r, err);
    return status;
}

dsv4_status write_reports(const results *r, const options *o, dsv4_error *err)
{
    const struct {
        const char *path;
        bool (*writer)(FILE *, const results *);
    } reports[] = {{o->json, report_json},
                   {o->junit, report_junit},
                   {o->markdown, report_markdown},
                   {o->html, report_html}};
    dsv4_status status = DSV4_OK;
    for (size_t i = 0; i < sizeof reports / sizeof *reports && status == DSV4_OK; i++)
        if (reports[i].path != NULL)
            status = report_to_file(reports[i].path, reports[i].writer, r, err);
    if (status == DSV4_OK && o->bundle != NULL)
        status = bundle_results(r, o, err);
    return status;
}

int finish_run(results *r, const options *o, double started)
{
    dsv4_error err;
    dsv4_status status = settle_results(r, started, &err);
    if (status != DSV4_OK)
        return report_failure(status, &err);
    if (!report_text(stdout, r, o->quiet) || fflush(stdout) != 0) {
        fprintf(stderr, "dsv4check: cannot write the report to standard output\n");
        return DSV4_E_MACHINE;
    }
    status = write_reports(r, o, &err);
    if (status != DSV4_OK)
        return report_failure(status, &err);
    int code = results_exit_code(r);
    if (code == DSV4_E_INPUT)
        fprintf(stderr, "dsv4check: nothing was compared: no case, tap or position in common\n");
    return code;
}
