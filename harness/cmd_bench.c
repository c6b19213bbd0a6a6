/* cmd_bench.c - how fast an engine is and what it needs: tokens per second by context, seconds and
 * bytes per operator, shares of what the machine can do, peak memory. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "reports/reports.h"
#include "runner.h"

static const char help[] =
    "usage: dsv4check bench --model M [--engine E] [--context LIST] [--decode N] [options]\n"
    "\n"
    "Prefills each context of the list (128,512), then decodes N tokens more one by one (16); "
    "prints\n"
    "tokens per second, where the time goes, the bytes a token reads, and which share that is of "
    "the\n"
    "plain reads and multiply-adds that the machine does in the same run with as many threads.\n"
    "\n"
    "  --context LIST   numbers of tokens, e.g. 128,512,2048,4096; those that the model does not\n"
    "                   admit are left out\n"
    "  --prefill N      the same as --context N\n"
    "  --decode N       tokens decoded after each context\n"
    "  --repeat N       runs (3): medians, with the smallest and the largest\n"
    "  --threads N      an engine may use (2)\n"
    "  --chunk N        tokens of a prefill block\n"
    "  --numerics N     math, qat, deployed\n"
    "  --mtp FILE       run this MTP layer too; without it none runs\n"
    "  --engine cuda    tokens per second alone; cuda-bench measures shares and operators\n"
    "  --sequences N    (cuda) also N conversations decoded together, a token of each a step\n"
    "  --json FILE      schema dsv4check-bench-1 (reports/BENCH.md)\n"
    "  --quiet, --no-progress\n";

static const char *const allowed[] = {"model",     "engine",   "context",     "prefill", "decode",
                                      "repeat",    "numerics", "mtp",         "threads", "chunk",
                                      "sequences", "json",     "no-progress", "quiet",   NULL};

/* A run under way. */
typedef struct {
    const dsv4_model *m;
    const options *o;
    bench_report *r;
    engine_session *s;
    struct dsv4_engine *cpu; /* behind s, or NULL */
    bench_limits limits;
    progress bar;
    int32_t *tokens; /* [longest context + decode] */
    float *logits;   /* [V] */
    double prefill_rates[BENCH_CONTEXTS][BENCH_REPEATS];
    double decode_rates[BENCH_CONTEXTS][BENCH_REPEATS];
} bench_run;

/* ---- contexts ------------------------------------------------------------------------------- */

static int by_length(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* The list, rising, as far as the model goes. */
static dsv4_status parse_contexts(const options *o, const dsv4_model *m, bench_report *r,
                                  dsv4_error *err)
{
    char given[32] = "";
    int64_t list[BENCH_CONTEXTS], most = m->config.max_position_embeddings - r->decode;
    int n = 0;
    if (o->context != NULL && o->prefill > 0)
        return dsv4_fail(err, DSV4_E_INPUT, "bench: --context and --prefill exclude each other");
    if (o->prefill > 0)
        snprintf(given, sizeof given, "%lld", (long long)o->prefill);
    const char *text = o->context != NULL ? o->context : o->prefill > 0 ? given : "128,512";
    for (const char *at = text; *at != '\0' || at == text;) {
        char *end;
        long long v = strtoll(at, &end, 10);
        if (end == at || (*end != ',' && *end != '\0') || (*end == ',' && end[1] == '\0') ||
            v < 1 || v > 1 << 30)
            return dsv4_fail(err, DSV4_E_INPUT,
                             "--context: expected numbers from 1 up and commas, found '%s'", text);
        if (n == BENCH_CONTEXTS)
            return dsv4_fail(err, DSV4_E_INPUT,
                             "--context: expected at most %d numbers, found '%s'",
                             (int)BENCH_CONTEXTS, text);
        list[n++] = v;
        at = *end == ',' ? end + 1 : end;
    }
    qsort(list, (size_t)n, sizeof *list, by_length);
    for (int i = 0; i < n; i++) {
        if (list[i] > most && r->n_points > 0)
            fprintf(stderr, "dsv4check bench: context %lld is left out: the model ends at %lld\n",
                    (long long)list[i], (long long)m->config.max_position_embeddings);
        else if (list[i] <= most &&
                 (r->n_points == 0 || r->points[r->n_points - 1].context != list[i]))
            r->points[r->n_points++].context = list[i];
    }
    if (r->n_points == 0)
        return dsv4_fail(
            err, DSV4_E_INPUT,
            "--context: %s: expected at most %lld tokens (and %lld to decode), found %s", o->model,
            (long long)most, (long long)r->decode, text);
    return DSV4_OK;
}

/* ---- measuring ------------------------------------------------------------------------------ */

static const dsv4_engine_cost *costs(const bench_run *b)
{
    return b->cpu != NULL ? dsv4_engine_costs(b->cpu) : bench_timed_costs();
}

static void clear_costs(const bench_run *b)
{
    if (b->cpu != NULL)
        dsv4_engine_clear_costs(b->cpu);
    else
        bench_timed_clear();
}

/* Adds what was counted, as a part of `tokens` tokens of each of the runs. */
static void add_costs(const bench_run *b, double tokens, bench_cost *out)
{
    const dsv4_engine_cost *c = costs(b);
    double each = 1.0 / (tokens * b->r->repeat);
    for (int op = 0; op < dsv4_operator_count(); op++) {
        out[op].calls += (double)c[op].calls * each;
        out[op].seconds += c[op].seconds * each;
        out[op].bytes += c[op].bytes * each;
        out[op].macs += c[op].macs * each;
    }
}

/* Decodes after the tokens that are in, and takes them back. */
static dsv4_status decode_some(bench_run *b, bench_point *p, double *rate, dsv4_error *err)
{
    int64_t n = b->r->decode;
    void *blob = NULL;
    size_t bytes;
    dsv4_status status = engine_session_save(b->s, &blob, &bytes, err);
    clear_costs(b);
    double start = now_seconds();
    for (int64_t i = 0; i < n && status == DSV4_OK; i++)
        status = engine_session_append(b->s, b->tokens + p->context + i, 1, b->logits, err);
    double seconds = now_seconds() - start;
    if (status == DSV4_OK) {
        add_costs(b, (double)n, p->decode_ops);
        p->decode_seconds += seconds / (double)(n * b->r->repeat);
        *rate = (double)n / seconds;
        status = engine_session_restore(b->s, blob, bytes, err);
    }
    free(blob);
    return status;
}

/* Every context once: a longer one goes on where the shorter one ended. */
static dsv4_status one_run(bench_run *b, int run, dsv4_error *err)
{
    bench_report *r = b->r;
    dsv4_status status = DSV4_OK;
    double seconds = 0;
    int64_t at = 0;
    bench_cost prefilled[BENCH_OPERATORS] = {{0}}; /* sums of this run */
    engine_session_reset(b->s);
    for (int i = 0; i < r->n_points && status == DSV4_OK; i++) {
        bench_point *p = &r->points[i];
        clear_costs(b);
        double start = now_seconds();
        status = engine_session_append(b->s, b->tokens + at, p->context - at, b->logits, err);
        seconds += now_seconds() - start;
        at = p->context;
        add_costs(b, 1, prefilled);
        for (int op = 0; op < dsv4_operator_count(); op++) {
            double each = 1.0 / (double)p->context;
            p->prefill_ops[op].calls += prefilled[op].calls * each;
            p->prefill_ops[op].seconds += prefilled[op].seconds * each;
            p->prefill_ops[op].bytes += prefilled[op].bytes * each;
            p->prefill_ops[op].macs += prefilled[op].macs * each;
        }
        p->prefill_seconds += seconds / (double)(p->context * r->repeat);
        b->prefill_rates[i][run] = (double)p->context / seconds;
        if (status == DSV4_OK)
            status = decode_some(b, p, &b->decode_rates[i][run], err);
        if (status == DSV4_OK)
            status = bench_limits_measure(&b->limits, err);
        progress_step(&b->bar, "context measured");
    }
    return status;
}

/* The figures that follow from the measured ones. */
static void conclude(bench_run *b)
{
    bench_report *r = b->r;
    static const char *const gemvs[] = {"linear", "experts", "hc_mix"};
    r->reads = bench_stat_of(b->limits.reads, b->limits.n);
    r->peak = bench_stat_of(b->limits.peaks, b->limits.n);
    for (int i = 0; i < r->n_points; i++) {
        bench_point *p = &r->points[i];
        double attention = 0, in_gemvs = 0;
        int64_t middle = p->context + r->decode / 2;
        p->prefill = bench_stat_of(b->prefill_rates[i], r->repeat);
        p->decode = bench_stat_of(b->decode_rates[i], r->repeat);
        p->kv_bytes = bench_kv_bytes(b->m, middle);
        p->attention_macs = bench_attention_macs(b->m, middle);
        for (int64_t t = 0; t < p->context; t++)
            attention += bench_attention_macs(b->m, t);
        p->prefill_macs = attention / (double)p->context;
        for (int op = 0; op < dsv4_operator_count(); op++) {
            p->weight_bytes += p->decode_ops[op].bytes;
            p->weight_macs += p->decode_ops[op].macs;
            p->prefill_macs += p->prefill_ops[op].macs;
        }
        for (size_t k = 0; k < sizeof gemvs / sizeof *gemvs; k++)
            in_gemvs += p->decode_ops[dsv4_operator_find(gemvs[k])].seconds;
        p->gemv_share = in_gemvs / p->decode_seconds;
        p->of_reads = (p->weight_bytes + p->kv_bytes) * p->decode.median / r->reads.median;
        p->of_peak = 2 * (p->weight_macs + p->attention_macs) * p->decode.median / r->peak.median;
        p->prefill_of_peak = 2 * p->prefill_macs * p->prefill.median / r->peak.median;
    }
}

static bool add_bytes(void *ctx, const dsv4_stored_tensor *t)
{
    *(double *)ctx += (double)t->bytes;
    return true;
}

static dsv4_status measure(bench_run *b, engine *e, dsv4_numerics numerics, dsv4_error *err)
{
    bench_report *r = b->r;
    int64_t longest = r->points[r->n_points - 1].context + r->decode;
    dsv4_session_options so = {.numerics = numerics,
                               .max_positions = longest,
                               .mtp = b->o->mtp != NULL,
                               .chunk = b->o->chunk};
    uint32_t seed = 1;
    b->tokens = dsv4_alloc((size_t)longest, sizeof *b->tokens, "tokens", err);
    b->logits = dsv4_alloc((size_t)b->m->config.vocab_size, sizeof *b->logits, "logits", err);
    if (b->tokens == NULL || b->logits == NULL)
        return DSV4_E_MACHINE;
    for (int64_t i = 0; i < longest; i++) {
        seed = seed * 1664525u + 1013904223u;
        b->tokens[i] = (int32_t)((seed >> 8) % (uint32_t)b->m->config.vocab_size);
    }
    dsv4_status status = engine_session_new(e, &so, &b->s, err);
    if (status != DSV4_OK)
        return status;
    b->cpu = engine_session_cpu(b->s);
    if (b->cpu != NULL)
        dsv4_engine_set_clock(b->cpu, now_seconds);
    status = bench_limits_new(r->level, r->threads, &b->limits, err);
    r->read_buffer = b->limits.bytes;
    if (status == DSV4_OK)
        status = bench_limits_measure(&b->limits, err);
    progress_start(&b->bar, (size_t)(r->n_points * r->repeat), !b->o->quiet && !b->o->no_progress);
    for (int run = 0; run < r->repeat && status == DSV4_OK; run++)
        status = one_run(b, run, err);
    progress_end(&b->bar);
    if (status != DSV4_OK)
        return status;
    conclude(b);
    bench_class_bytes(b->m, r->class_bytes);
    dsv4_model_each_tensor(b->m, add_bytes, &r->stored_bytes);
    bench_memory(&r->peak_memory, &r->anonymous_memory);
    /* The ceilings' own buffer is none of the engine's. */
    r->peak_memory -= (double)r->read_buffer;
    r->anonymous_memory -= (double)r->read_buffer;
    return DSV4_OK;
}

/* ---- printing ------------------------------------------------------------------------------- */

static void print_rates(const bench_report *r)
{
    printf("%8s  %-32s %-32s %6s %9s %8s %8s\n", "context", "prefill tokens/s", "decode tokens/s",
           "GEMVs", "of reads", "of peak", "prefill");
    for (int i = 0; i < r->n_points; i++) {
        const bench_point *p = &r->points[i];
        char prefill[64], decode[64];
        snprintf(prefill, sizeof prefill, "%.2f (%.2f to %.2f)", p->prefill.median, p->prefill.low,
                 p->prefill.high);
        snprintf(decode, sizeof decode, "%.2f (%.2f to %.2f)", p->decode.median, p->decode.low,
                 p->decode.high);
        printf("%8lld  %-32s %-32s %5.1f%% %8.1f%% %7.2f%% %7.1f%%\n", (long long)p->context,
               prefill, decode, 100 * p->gemv_share, 100 * p->of_reads, 100 * p->of_peak,
               100 * p->prefill_of_peak);
    }
    printf(
        "GEMVs: share of a decoded token's time in linear, experts and hc_mix. of reads: bytes a\n"
        "decoded token must read, per second, against plain reads. of peak: its arithmetic, and a\n"
        "prefilled token's, against multiply-adds.\n");
}

static void print_operators(const bench_report *r)
{
    const bench_point *p = &r->points[r->n_points - 1];
    double rest = p->decode_seconds, prefill_rest = p->prefill_seconds;
    printf("\nper token at context %lld:\n  %-16s %21s %10s %8s %21s\n", (long long)p->context,
           "operator", "decode ms      share", "MB", "GB/s", "prefill ms      share");
    for (int op = 0; op < dsv4_operator_count(); op++) {
        const bench_cost *d = &p->decode_ops[op], *f = &p->prefill_ops[op];
        rest -= d->seconds;
        prefill_rest -= f->seconds;
        if (d->calls == 0 && f->calls == 0)
            continue;
        printf("  %-16s %10.3f %9.1f%% %10.2f %8.1f %10.3f %9.1f%%\n", dsv4_operator_name(op),
               1e3 * d->seconds, 100 * d->seconds / p->decode_seconds, 1e-6 * d->bytes,
               d->seconds > 0 ? 1e-9 * d->bytes / d->seconds : 0.0, 1e3 * f->seconds,
               100 * f->seconds / p->prefill_seconds);
    }
    printf("  %-16s %10.3f %9.1f%% %10s %8s %10.3f %9.1f%%\n", "session", 1e3 * rest,
           100 * rest / p->decode_seconds, "", "", 1e3 * prefill_rest,
           100 * prefill_rest / p->prefill_seconds);
}

static void print_bytes(const bench_report *r)
{
    const bench_point *p = &r->points[r->n_points - 1];
    double all = 0;
    printf("\nMB of weights a decoded token reads:");
    for (int c = 0; c < BENCH_CLASSES; c++) {
        printf("%s %s %.2f", c > 0 ? "," : "", bench_class_name((bench_class)c),
               1e-6 * r->class_bytes[c]);
        all += r->class_bytes[c];
    }
    printf("; together %.2f of %.2f stored\n", 1e-6 * all, 1e-6 * r->stored_bytes);
    printf("MB of KV and indexer rows at context %lld: %.3f\n", (long long)p->context,
           1e-6 * p->kv_bytes);
    printf("memory: peak %.1f MB with the weights that were touched, %.1f MB of it not mapped from "
           "files\n",
           1e-6 * r->peak_memory, 1e-6 * r->anonymous_memory);
}

static void print_report(const bench_report *r, bool quiet)
{
    printf(
        "bench: model %s, engine %s, %d thread%s, %s, numerics %s; %d run%s, %lld tokens decoded "
        "after each context\n",
        r->model, r->engine, r->threads, r->threads == 1 ? "" : "s", r->machine, r->numerics,
        r->repeat, r->repeat == 1 ? "" : "s", (long long)r->decode);
    printf("this machine, in the same run: plain reads %.1f GB/s (%.1f to %.1f, %zu MB), "
           "multiply-adds %.1f GFLOP/s (%.1f to %.1f)\n\n",
           1e-9 * r->reads.median, 1e-9 * r->reads.low, 1e-9 * r->reads.high, r->read_buffer >> 20,
           1e-9 * r->peak.median, 1e-9 * r->peak.low, 1e-9 * r->peak.high);
    print_rates(r);
    if (quiet)
        return;
    print_operators(r);
    print_bytes(r);
}

/* ---- the command ---------------------------------------------------------------------------- */

/* The level of an engine's name: cpu:avx2:float, cpu, ref. */
static dsv4_cpu_level level_of(const char *name)
{
    char word[16];
    dsv4_cpu_level level;
    if (strncmp(name, "cpu", 3) != 0)
        return DSV4_CPU_SCALAR;
    snprintf(word, sizeof word, "%.*s", name[3] == ':' ? (int)strcspn(name + 4, ":") : 0,
             name[3] == ':' ? name + 4 : "");
    return dsv4_cpu_level_parse(word, &level) ? level : dsv4_cpu_best();
}

static dsv4_status fill_report(const options *o, const char *engine_given, int argc, char **argv,
                               bench_report *r, dsv4_error *err)
{
    r->level = level_of(engine_given);
    r->machine = dsv4_cpu_level_name(r->level);
    r->repeat = o->repeat > 0 ? o->repeat : 3;
    r->decode = o->decode > 0 ? o->decode : 16;
    r->argv = command_line(argc, argv);
    r->model = text_copy(o->model);
    r->engine = text_copy(engine_given);
    if (r->repeat > BENCH_REPEATS)
        return dsv4_fail(err, DSV4_E_INPUT, "--repeat: expected at most %d, found %d",
                         (int)BENCH_REPEATS, r->repeat);
    return r->argv != NULL && r->model != NULL && r->engine != NULL
               ? DSV4_OK
               : dsv4_fail(err, DSV4_E_MACHINE, "out of memory");
}

/* N conversations of `prefill` tokens each, then a token of each a step. alone: tokens/s of one. */
static dsv4_status measure_together(engine *e, const dsv4_model *m, dsv4_session_options so, int n,
                                    int64_t prefill, int64_t decode, double alone, dsv4_error *err)
{
    size_t vocab = (size_t)m->config.vocab_size, length = (size_t)(prefill + decode);
    engine_session **s = dsv4_alloc((size_t)n, sizeof(engine_session *), "sessions", err);
    int32_t *text = dsv4_alloc(length, sizeof *text, "tokens", err);
    int32_t *next = dsv4_alloc((size_t)n, sizeof *next, "tokens", err);
    float *logits = dsv4_alloc((size_t)n * vocab, sizeof *logits, "logits", err);
    engine_batch *b = NULL;
    dsv4_status status = s && text && next && logits ? DSV4_OK : DSV4_E_MACHINE;
    for (int i = 0; i < n && status == DSV4_OK; i++) {
        for (size_t k = 0; k < length; k++)
            text[k] = (int32_t)((k * 7919 + 13 + (size_t)i * 101) % vocab);
        status = engine_session_new(e, &so, &s[i], err);
        if (status == DSV4_OK)
            status = engine_session_append(s[i], text, prefill, NULL, err);
    }
    if (status == DSV4_OK)
        status = engine_batch_new(e, s, n, &b, err);
    if (status == DSV4_OK) /* the first step is recorded */
        status = engine_batch_append(b, next, logits, err);
    double start = now_seconds();
    for (int64_t k = 1; k < decode && status == DSV4_OK; k++) {
        for (int i = 0; i < n; i++)
            next[i] = (int32_t)(((size_t)(prefill + k) * 7919 + 13 + (size_t)i * 101) % vocab);
        status = engine_batch_append(b, next, logits, err);
    }
    double each = (now_seconds() - start) / (double)(decode - 1);
    if (status == DSV4_OK)
        printf("together %6d sequences %8.3f ms a step %9.1f tokens/s, %.1f times one\n", n,
               1e3 * each, n / each, n / each / alone);
    engine_batch_free(b);
    for (int i = 0; s != NULL && i < n; i++)
        engine_session_free(s[i]);
    free(s);
    free(text);
    free(next);
    free(logits);
    return status;
}

/* An engine that has no table of operators: its sessions are timed as they are. */
static dsv4_status measure_sessions(const dsv4_model *m, engine *e, const options *o,
                                    dsv4_numerics numerics, dsv4_error *err)
{
    int64_t prefill = o->prefill > 0 ? o->prefill : 300, decode = o->decode > 0 ? o->decode : 32;
    dsv4_session_options so = {.numerics = numerics,
                               .max_positions = prefill + decode,
                               .mtp = o->mtp != NULL,
                               .chunk = o->chunk};
    engine_session *s = NULL;
    int32_t *tokens = dsv4_alloc((size_t)(prefill + decode), sizeof *tokens, "tokens", err);
    float *logits = dsv4_alloc((size_t)m->config.vocab_size, sizeof *logits, "logits", err);
    dsv4_status status = tokens != NULL && logits != NULL ? DSV4_OK : DSV4_E_MACHINE;
    if (status == DSV4_OK)
        status = engine_session_new(e, &so, &s, err);
    if (status != DSV4_OK)
        goto done;
    for (int64_t i = 0; i < prefill + decode; i++)
        tokens[i] = (int32_t)((uint64_t)(i * 7919 + 13) % (uint64_t)m->config.vocab_size);
    double start = now_seconds();
    status = engine_session_append(s, tokens, prefill, logits, err);
    double after_prefill = now_seconds();
    for (int64_t i = 0; i < decode && status == DSV4_OK; i++)
        status = engine_session_append(s, tokens + prefill + i, 1, logits, err);
    double end = now_seconds();
    if (status != DSV4_OK)
        goto done;
    printf("prefill  %6lld tokens  %8.3f s  %9.1f tokens/s\n", (long long)prefill,
           after_prefill - start, (double)prefill / (after_prefill - start));
    printf("decode   %6lld tokens  %8.3f s  %9.1f tokens/s\n", (long long)decode,
           end - after_prefill, (double)decode / (end - after_prefill));
    if (o->sequences > 0)
        status = measure_together(e, m, so, o->sequences, prefill, decode,
                                  (double)decode / (end - after_prefill), err);
done:
    engine_session_free(s);
    free(tokens);
    free(logits);
    return status;
}

int cmd_bench(int argc, char **argv)
{
    double started = now_seconds();
    dsv4_error err = {""};
    options o;
    dsv4_model *m = NULL;
    engine *opened = NULL, *timed = NULL, *e = NULL;
    bench_report *r = NULL;
    bench_run *b = NULL;
    dsv4_numerics numerics = DSV4_MATH;
    dsv4_status status = options_parse(argc, argv, allowed, &o, &err);
    if (status != DSV4_OK)
        return report_failure(status, &err);
    if (o.help) {
        fputs(help, stdout);
        goto done;
    }
    const char *name = o.engine != NULL ? o.engine : "ref";
    r = dsv4_alloc(1, sizeof *r, "the report", &err);
    b = dsv4_alloc(1, sizeof *b, "the measurements", &err);
    if (r == NULL || b == NULL)
        status = DSV4_E_MACHINE;
    else if (o.model == NULL || o.n_rest > 0)
        status = dsv4_fail(&err, DSV4_E_INPUT, "bench needs --model M (see --help)");
    else if (o.numerics != NULL && !dsv4_numerics_parse(o.numerics, &numerics))
        status = dsv4_fail(&err, DSV4_E_INPUT,
                           "--numerics: expected math, qat or deployed, found '%s'", o.numerics);
    if (status == DSV4_OK)
        status = fill_report(&o, name, argc, argv, r, &err);
    if (status == DSV4_OK)
        status = dsv4_model_open(o.model, &m, &err);
    if (status == DSV4_OK && o.mtp != NULL)
        status = dsv4_model_add_mtp(m, o.mtp, &err);
    if (status == DSV4_OK)
        status = parse_contexts(&o, m, r, &err);
    if (status == DSV4_OK)
        status = engine_open(name, m, &(engine_options){numerics, o.threads}, &opened, &err);
    if (status == DSV4_OK && !engine_computes(opened))
        status =
            dsv4_fail(&err, DSV4_E_INPUT, "bench needs an engine that computes, found '%s'", name);
    if (status != DSV4_OK)
        goto done;
    e = opened;
    if (o.sequences > 0 && !engine_batches(e)) {
        status =
            dsv4_fail(&err, DSV4_E_INPUT,
                      "--sequences: engine %s decodes one session at a time (several: cuda)", name);
        goto done;
    }
    if (o.sequences > 0 && (o.decode == 1 || o.mtp != NULL)) {
        status = dsv4_fail(&err, DSV4_E_INPUT,
                           "--sequences: expected at least 2 tokens to decode and no MTP layer");
        goto done;
    }
    if (!engine_uses_threads(e) && engine_ops(e) == NULL) { /* not this machine's memory */
        if (o.json != NULL)
            status =
                dsv4_fail(&err, DSV4_E_INPUT, "bench --engine %s: --json is for CPU engines", name);
        else
            status = measure_sessions(m, e, &o, numerics, &err);
        goto done;
    }
    r->threads = engine_uses_threads(e) ? o.threads : 1;
    r->numerics = dsv4_numerics_name(numerics);
    /* An engine that keeps no accounts of its own is run through a table that does. */
    if (!engine_uses_threads(e)) {
        status = engine_from_ops(name, m, bench_timed_table(engine_ops(e)), numerics, &timed, &err);
        e = timed;
    }
    b->m = m;
    b->o = &o;
    b->r = r;
    if (status == DSV4_OK)
        status = measure(b, e, numerics, &err);
    r->seconds = now_seconds() - started;
    if (status == DSV4_OK) {
        print_report(r, o.quiet);
        if (o.json != NULL)
            status = write_whole_file(o.json, report_bench_json, r, &err);
    }
done:
    if (b != NULL) {
        engine_session_free(b->s);
        bench_limits_free(&b->limits);
        free(b->tokens);
        free(b->logits);
        free(b);
    }
    if (r != NULL) {
        free(r->argv);
        free(r->model);
        free(r->engine);
        free(r);
    }
    engine_close(timed);
    engine_close(opened);
    dsv4_model_close(m);
    options_free(&o);
    return status == DSV4_OK ? 0 : report_failure(status, &err);
}
