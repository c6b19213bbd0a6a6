/* cmd_kernels.c - every operator that an instruction set does its own way, against the scalar one:
 * hostile inputs, awkward shapes, guarded memory; or the clock. */
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels.h"
#include "reports/reports.h"
#include "runner.h"

static const char help[] =
    "usage: dsv4check kernels [options]\n"
    "\n"
    "Walks the operator table, turning on one CPU level at a time, and compares every operator "
    "that\n"
    "changed with the scalar one. A crash is that kernel's failure. Exit 0 passed, 1 failed, 2 "
    "bad\n"
    "usage or no case at all.\n"
    "\n"
    "  --filter GLOB   only these cases: 'linear/*', '*/nonfinite', 'dot/Q8_0/*'\n"
    "  --impl NAME     only this level: avx2, avx512, neon; or cuda: the kernels of the GPU,\n"
    "                  run twice, with bands around their buffers on the device\n"
    "  --seed N        replay the numbers of another run (default: from the clock; printed)\n"
    "  --repeat N      N runs with successive seeds\n"
    "  --timeout S     a case that takes longer than S seconds has failed (300)\n"
    "  --bench         time the large cases: median, half the distance of the quartiles, and how\n"
    "                  many times faster than the scalar operator\n"
    "  --json FILE  --junit FILE  --markdown FILE  --html FILE   reports of the check;\n"
    "                  with --bench, --json holds the times\n"
    "  --waivers FILE  failures that somebody answers for (README: Waivers)\n"
    "  --baseline FILE the JSON report of an earlier run: what got worse, better, new, gone\n"
    "  --quiet         failures and the last line only\n"
    "  --no-progress   no progress line (there is one on a terminal only)\n";

static dsv4_status count_of(const char *name, const char *text, int most, int *out, dsv4_error *err)
{
    char *end;
    long n = strtol(text, &end, 10);
    if (end == text || *end != '\0' || n < 1 || n > most)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: expected a number from 1 to %d, found '%s'", name,
                         most, text);
    *out = (int)n;
    return DSV4_OK;
}

static dsv4_status parse(int argc, char **argv, kernels_options *o, options *reports,
                         dsv4_error *err)
{
    static const struct option known[] = {
        {"filter", required_argument, NULL, 'f'},   {"impl", required_argument, NULL, 'i'},
        {"seed", required_argument, NULL, 's'},     {"repeat", required_argument, NULL, 'r'},
        {"timeout", required_argument, NULL, 't'},  {"bench", no_argument, NULL, 'b'},
        {"quiet", no_argument, NULL, 'q'},          {"json", required_argument, NULL, 'J'},
        {"junit", required_argument, NULL, 'U'},    {"html", required_argument, NULL, 'H'},
        {"markdown", required_argument, NULL, 'M'}, {"waivers", required_argument, NULL, 'W'},
        {"baseline", required_argument, NULL, 'B'}, {"no-progress", no_argument, NULL, 'p'},
        {"help", no_argument, NULL, 'h'},           {NULL, 0, NULL, 0}};
    dsv4_cpu_level level;
    char *end = NULL;
    int c;
    opterr = 0;
    optind = 1;
    while ((c = getopt_long(argc, argv, ":", known, NULL)) != -1) {
        if (c == 'f')
            o->filter = optarg;
        else if (c == 'b')
            o->bench = true;
        else if (c == 'q')
            o->quiet = true;
        else if (c == 'h')
            reports->help = true;
        else if (c == 'J')
            reports->json = optarg;
        else if (c == 'U')
            reports->junit = optarg;
        else if (c == 'H')
            reports->html = optarg;
        else if (c == 'M')
            reports->markdown = optarg;
        else if (c == 'p')
            reports->no_progress = true;
        else if (c == 'W')
            reports->waivers = optarg;
        else if (c == 'B')
            reports->baseline = optarg;
        else if (c == 'i') {
            o->impl = optarg;
            if (strcmp(optarg, "cuda") == 0)
                continue;
            if (!dsv4_cpu_level_parse(optarg, &level))
                return dsv4_fail(err, DSV4_E_INPUT,
                                 "--impl: expected avx2, avx512, neon or cuda, found '%s'", optarg);
            if (!dsv4_cpu_supported(level))
                return dsv4_fail(err, DSV4_E_INPUT,
                                 "--impl %s: this machine does not support it (the best here is "
                                 "%s)",
                                 optarg, dsv4_cpu_level_name(dsv4_cpu_best()));
        } else if (c == 's') {
            o->seed = strtoull(optarg, &end, 10);
            if (end == optarg || *end != '\0' || *optarg == '-')
                return dsv4_fail(err, DSV4_E_INPUT, "--seed: expected a number, found '%s'",
                                 optarg);
        } else if (c == 'r') {
            if (count_of("--repeat", optarg, 1000000, &o->repeat, err) != DSV4_OK)
                return DSV4_E_INPUT;
        } else if (c == 't') {
            if (count_of("--timeout", optarg, 86400, &o->timeout, err) != DSV4_OK)
                return DSV4_E_INPUT;
        } else if (c == ':')
            return dsv4_fail(err, DSV4_E_INPUT, "%s needs a value", argv[optind - 1]);
        else
            return dsv4_fail(err, DSV4_E_INPUT, "dsv4check %s does not know %s", argv[0],
                             argv[optind - 1]);
    }
    if (optind < argc)
        return dsv4_fail(err, DSV4_E_INPUT, "dsv4check %s does not know %s", argv[0], argv[optind]);
    return DSV4_OK;
}

/* The levels and extensions of this machine, in one static line. */
static const char *machine_name(void)
{
    static char text[64];
    unsigned has = dsv4_cpu_extensions();
    snprintf(text, sizeof text, "%s%s%s%s%s%s", dsv4_cpu_level_name(dsv4_cpu_best()),
             has & DSV4_CPU_VNNI ? " vnni" : "", has & DSV4_CPU_VBMI ? " vbmi" : "",
             has & DSV4_CPU_GFNI ? " gfni" : "", has & DSV4_CPU_BF16 ? " bf16" : "",
             has & DSV4_CPU_DOTPROD ? " dotprod" : "");
    return text;
}

/* A kernel as a result: operator, level, and the largest difference in units of its tolerance. */
static bool add_kernel(results *r, const kernels_item *k)
{
    char line[512], note[KERNELS_NAME + 512];
    result *x = results_add_named(r, k->name, k->level);
    if (x == NULL)
        return false;
    x->block = "kernel";
    x->n = x->rows = k->cases;
    x->budget = x->budget_fail = 1;
    x->reason = "1 is the operator's own tolerance: a bound of its roundings, 0 where bits must be "
                "equal";
    /* A difference where none is allowed, or a crash, has no size. */
    x->rel_l2 = k->failures > 0 && !(k->worst > 1) ? INFINITY : k->worst;
    x->verdict = k->failures > 0 ? VERDICT_FAIL : VERDICT_PASS;
    r->cases++;
    if (k->failures > 0) {
        const kernels_failure *f = &k->failed[0]; /* the first is always kept */
        kernels_replay(line, sizeof line, k, f->name, f->seed);
        snprintf(note, sizeof note, "%ld of %ld cases failed; first %s: %s", k->failures, k->cases,
                 f->name, f->what);
        x->note = text_copy(note);
        x->replay = text_copy(line);
        return x->note != NULL && x->replay != NULL;
    }
    if (k->worst > 0)
        x->note = text_copy(k->worst_name);
    return k->worst <= 0 || x->note != NULL;
}

/* The reports; of times, where they were taken. */
static dsv4_status write_all(const results *r, const kernels_found *found, const options *o,
                             dsv4_error *err)
{
    options others = *o;
    dsv4_status status = DSV4_OK;
    others.html = NULL;
    if (found->bench && o->json != NULL) {
        status = write_whole_file(o->json, report_kernels_json, found, err);
        others.json = NULL;
    }
    if (status == DSV4_OK)
        status = write_reports(r, &others, err);
    if (status == DSV4_OK && o->html != NULL)
        status = kernels_page(o->html, found, r, err);
    return status;
}

/* Waivers, baseline and reports of a check; its exit code. */
static int report_check(results *r, const kernels_found *found, const options *o,
                        const kernels_totals *t, double start)
{
    dsv4_error err = {""};
    dsv4_status status = DSV4_OK;
    if (found->lost)
        status = dsv4_fail(&err, DSV4_E_MACHINE, "out of memory for results");
    for (size_t i = 0; i < found->count && status == DSV4_OK; i++)
        if (!add_kernel(r, &found->items[i]))
            status = dsv4_fail(&err, DSV4_E_MACHINE, "out of memory for results");
    if (status == DSV4_OK)
        status = settle_results(r, start, &err);
    if (status == DSV4_OK && !report_remarks(stdout, r))
        status = dsv4_fail(&err, DSV4_E_MACHINE, "cannot write the report to standard output");
    if (status == DSV4_OK)
        status = write_all(r, found, o, &err);
    if (status != DSV4_OK)
        return report_failure(status, &err);
    bool failed = results_exit_code(r) != 0;
    if (found->bench && t->failures == 0) /* times were printed, not verdicts */
        return failed ? 1 : 0;
    size_t waived = results_count(r, VERDICT_WAIVED);
    printf("%s: %d kernels, %ld cases, %ld failed (%d crashed), ", failed ? "FAIL" : "PASS",
           t->kernels, t->cases, t->failures, t->crashes);
    if (waived > 0)
        printf("%zu kernels waived, ", waived);
    printf("seed %llu, %.1f s\n", (unsigned long long)r->seed, r->seconds);
    return failed ? 1 : 0;
}

int cmd_kernels(int argc, char **argv)
{
    dsv4_error err = {""};
    options reports = {0};
    results r;
    progress bar = {0};
    budget_table budgets = {0};
    kernels_found found = {0};
    kernels_options o = {.seed = (uint64_t)time(NULL), .repeat = 1, .out = stdout, .bar = &bar};
    kernels_totals t = {0};
    double start = now_seconds();
    int code = 0;
    results_init(&r);
    dsv4_status status = parse(argc, argv, &o, &reports, &err);
    if (status != DSV4_OK)
        return report_failure(status, &err);
    if (reports.help) {
        fputs(help, stdout);
        return 0;
    }
    bool cuda = o.impl != NULL && strcmp(o.impl, "cuda") == 0;
    char device[256] = "";
    if (cuda)
        status = dsv4_cuda_probe(device, sizeof device, &err);
    if (status != DSV4_OK)
        return report_failure(status, &err);
    o.found = &found;
    reports.case_glob = o.filter != NULL ? o.filter : o.impl; /* a part of the kernels */
    reports.threads = 1;
    status = budgets_load(NULL, &budgets, &err);
    if (status == DSV4_OK)
        status = begin_run(&r, &reports, "kernels", &budgets, &err);
    if (status != DSV4_OK)
        goto done;
    r.argv = command_line(argc, argv);
    r.engine = text_copy(cuda ? "cuda" : dsv4_cpu_level_name(dsv4_cpu_best()));
    r.seeded = true;
    r.seed = o.seed;
    found = (kernels_found){.argv = r.argv,
                            .machine = machine_name(),
                            .seed = o.seed,
                            .repeat = o.repeat,
                            .bench = o.bench};
    printf("kernels: seed %llu, machine %s\n", (unsigned long long)o.seed, found.machine);
    if (cuda)
        printf("cuda: %s\n", device);
    progress_start(&bar, kernels_count(&o), !o.quiet && !reports.no_progress);
    kernels_check_all(&o, &t);
    progress_end(&bar);
    found.seconds = now_seconds() - start;
    if (t.cases == 0 && t.failures == 0 && !cuda && dsv4_cpu_best() == DSV4_CPU_SCALAR)
        status = dsv4_fail(&err, DSV4_E_INPUT,
                           "no case was run: this machine has no level above scalar");
    else if (t.cases == 0 && t.failures == 0)
        status = dsv4_fail(&err, DSV4_E_INPUT, "no case was run: --filter '%s' lets none through",
                           o.filter != NULL ? o.filter : "*");
    else
        code = report_check(&r, &found, &reports, &t, start);
done:
    if (status != DSV4_OK)
        code = report_failure(status, &err);
    found.argv = NULL; /* belongs to the results */
    kernels_found_free(&found);
    results_free(&r);
    budgets_free(&budgets);
    return code;
}
