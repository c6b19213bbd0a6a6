/* test_healthy.c - engines that are right, in other words than the reference: every CPU level, one
 * and two threads, and seeded engines that add in other orders in float32 and take their prompts in
 * other pieces. None may fail. Prints the count.
 *
 *   DSV4_HEALTHY=long   ten seeds and the longer cases (the target `healthy`) */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness/runner.h"
#include "optimized/optimized.h"
#include "reference/scalar.h"

static dsv4_error err;
static budget_table budgets;
static uint64_t state; /* of the seeded engine */
static size_t engines, comparisons, failures, marginal, locals;

static void must(dsv4_status status, const char *what)
{
    if (status == DSV4_OK)
        return;
    fprintf(stderr, "test_healthy: %s: %s\n", what, err.text);
    exit(3);
}

/* ---- an engine per seed -----------------------------------------------------------------------
 */

static int64_t divisor(int64_t a, int64_t b)
{
    return b == 0 ? a : divisor(b, a % b);
}

/* float32 sums, begun somewhere and in steps that visit every column once. */
static void seeded_linear(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                          int64_t ldy)
{
    int64_t cols = w->cols, step = (int64_t)(state % 7919) + 1,
            begin = (int64_t)(state >> 20) % cols;
    float *row = dsv4_alloc((size_t)cols, sizeof *row, "a row", NULL);
    if (row == NULL)
        exit(3);
    while (divisor(step, cols) != 1)
        step++;
    for (int64_t r = 0; r < w->rows; r++) {
        dsv4_tensor_row(w, r, row);
        for (int64_t i = 0; i < n; i++) {
            float lanes[4] = {0};
            int64_t at = begin;
            for (int64_t c = 0; c < cols; c++, at = (at + step) % cols)
                lanes[c & 3] += row[at] * x[i * ldx + at];
            y[i * ldy + r] = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
        }
    }
    free(row);
}

/* The mean of squares in float32, from the back or from the front. */
static void seeded_rmsnorm(const float *x, const float *w, float eps, int64_t n, int64_t dim,
                           float *y)
{
    for (int64_t i = 0; i < n; i++) {
        float lanes[8] = {0}, sum = 0;
        for (int64_t k = 0; k < dim; k++) {
            float v = x[i * dim + (state & 1 ? dim - 1 - k : k)];
            lanes[k & 7] += v * v;
        }
        for (int k = 0; k < 8; k++)
            sum += lanes[k];
        float scale = 1.0f / sqrtf(sum / (float)dim + eps);
        for (int64_t k = 0; k < dim; k++)
            y[i * dim + k] = x[i * dim + k] * scale * (w != NULL ? w[k] : 1.0f);
    }
}

/* Streams mixed in float32. */
static void seeded_hc_post(const float *block, const float *streams, const float *post,
                           const float *comb, int64_t n, int hc, int64_t dim, float *out)
{
    for (int64_t i = 0; i < n; i++)
        for (int b = 0; b < hc; b++)
            for (int64_t k = 0; k < dim; k++) {
                float sum = post[i * hc + b] * block[i * dim + k];
                for (int a = 0; a < hc; a++) {
                    int from = state & 2 ? hc - 1 - a : a;
                    sum += comb[(i * hc + from) * hc + b] * streams[(i * hc + from) * dim + k];
                }
                out[(i * hc + b) * dim + k] = sum;
            }
}

/* Roundings of values that float32 noise has moved by 4 millionths of their row's rms: whatever
 * lies that close to a midpoint falls the other way, a hundred times as often as in an engine. */
static float nudge;

static void nudge_rows(float *x, int64_t n, int64_t ld, int64_t dim)
{
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t k = 0; k < dim; k++)
            sum += (double)x[i * ld + k] * (double)x[i * ld + k];
        for (int64_t k = 0; k < dim; k++)
            x[i * ld + k] += nudge * (float)sqrt(sum / (double)dim);
    }
}

static void nudged_fp8(float *x, int64_t n, int64_t ld, int64_t dim, int block)
{
    nudge_rows(x, n, ld, dim);
    dsv4_ops_reference()->round_fp8(x, n, ld, dim, block);
}

static void nudged_fp4(float *x, int64_t n, int64_t dim, int block)
{
    nudge_rows(x, n, dim, dim);
    dsv4_ops_reference()->round_fp4(x, n, dim, block);
}

/* ---- runs ---------------------------------------------------------------------------------------
 */

typedef struct {
    const char *model, *file, *few, *all; /* cases */
} job;

static const job jobs[] = {
    {"stress", "stress-hf-f32", "ctx000*|decode00018*", "*"},
    {"stress", "stress-official-qat-f32", "ctx000[012]*", "ctx00[0-2]*|decode*"},
    {"extreme", "extreme-math", "*", "*"},
    {"extreme", "extreme-qat", "*", "*"},
    {"nano", "nano-hf-f32", "ctx00005", "ctx00[0-5]*|decode*"},
    {"nano", "nano-official-qat-f32", "ctx00005", "ctx000*|decode00001*"},
};

/* The largest local error of a recorded run, by numerics and by tap: layers, heads. */
static double local_worst[3][2];

/* The same engine as somebody else would hand it in: a file with streams and logits of every
 * position, and a model to hold it against, layer by layer. */
static void judge_record(const char *name, const dsv4_ops *ops, int chunk, const dsv4_model *m,
                         const vec_file *f, const run_options *given)
{
    run_options o = *given;
    engine *e = NULL;
    vec_writer *w = NULL;
    results r;
    char path[64], dump[80];
    vec_writer_info info = {.model = "healthy",
                            .weights_sha256 = vec_attribute(f, "weights_sha256"),
                            .config = vec_attribute(f, "config"),
                            .producer = "test_healthy",
                            .numerics = dsv4_numerics_name(o.numerics)};
    record_options ro = {.case_glob = o.case_glob,
                         .tap_glob = "streams|logits|mtp/logits",
                         .chunk = chunk,
                         .every_position = true};
    snprintf(path, sizeof path, "/tmp/dsv4-healthy-%ld.h5", (long)getpid());
    snprintf(dump, sizeof dump, "dump:%s", path);
    must(engine_from_ops(name, m, ops, o.numerics, &e, &err), name);
    must(vec_writer_new(path, &info, &w, &err), path);
    must(record_cases(e, m, f, &ro, w, &err), path);
    must(vec_writer_commit(w, &err), path);
    engine_close(e);
    must(engine_open(dump, NULL, &(engine_options){.numerics = o.numerics}, &e, &err), dump);
    unlink(path);
    o.e = e;
    o.share = false;
    dsv4_config config = {0};
    must(file_config(f, &config, &err), path);
    results_init(&r);
    must(run_cases_mode(f, &config, &o, MODE_FREE, &r, &err), path);
    results_finish(&r);
    for (size_t i = 0; i < r.count; i++) {
        const result *x = &r.items[i];
        double *worst = &local_worst[o.numerics][x->layer < 0];
        if (x->rel_l2_shadow > *worst)
            *worst = x->rel_l2_shadow;
        locals += isfinite(x->rel_l2_shadow);
    }
    comparisons += r.count;
    failures += results_count(&r, VERDICT_FAIL);
    marginal += results_count(&r, VERDICT_MARGINAL);
    if (r.first_divergence != NULL)
        printf("%s, chunk %d, recorded, %s: %s layer %d %s fails: %g, locally %g: %s\n", name,
               chunk, vec_path(f), r.first_divergence->case_name, r.first_divergence->layer,
               dsv4_tap_name(r.first_divergence->tap), r.first_divergence->rel_l2_free,
               r.first_divergence->rel_l2_shadow,
               r.first_divergence->note != NULL ? r.first_divergence->note : "");
    results_free(&r);
    engine_close(e);
    dsv4_config_free(&config);
}

static void judge_engine(const char *name, const dsv4_ops *ops, int threads, int chunk, bool all)
{
    size_t had = failures;
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) {
        dsv4_model *m = NULL;
        vec_file *f = NULL;
        dsv4_config config = {0};
        engine *e = NULL;
        char path[512];
        results r;
        if (nudge != 0 && strstr(jobs[i].file, "qat") == NULL)
            continue;
        snprintf(path, sizeof path, "%s/%s", DSV4_VECTORS, jobs[i].model);
        must(dsv4_model_open(path, &m, &err), path);
        snprintf(path, sizeof path, "%s/%s.h5", DSV4_VECTORS, jobs[i].file);
        must(vec_open(path, &f, &err), path);
        must(file_config(f, &config, &err), path);
        run_options o = {.model = m,
                         .budgets = &budgets,
                         .case_glob = all ? jobs[i].all : jobs[i].few,
                         .threads = threads,
                         .chunk = chunk,
                         .replay = true};
        must(file_numerics(f, &o.numerics, &err), path);
        must(engine_from_ops(name, m, ops, o.numerics, &e, &err), name);
        o.e = e;
        o.share = o.numerics == DSV4_MATH;
        results_init(&r);
        must(run_cases(f, &config, &o, &r, &err), path);
        results_finish(&r);
        comparisons += r.count;
        failures += results_count(&r, VERDICT_FAIL);
        marginal += results_count(&r, VERDICT_MARGINAL);
        if (r.first_divergence != NULL)
            printf("%s, %d threads, chunk %d, %s: %s layer %d %s fails: %g\n", name, threads, chunk,
                   jobs[i].file, r.first_divergence->case_name, r.first_divergence->layer,
                   dsv4_tap_name(r.first_divergence->tap), r.first_divergence->rel_l2);
        results_free(&r);
        engine_close(e);
        /* The short list: what tells something that the others do not. */
        bool small = strcmp(jobs[i].model, "nano") != 0, seeded = strcmp(name, "seeded") == 0;
        bool best = strcmp(name, dsv4_cpu_level_name(dsv4_cpu_best())) == 0;
        if (all ? threads == 1
                : nudge != 0 || (threads == 1 && small && (best || (seeded && i < 2))))
            judge_record(name, ops, chunk, m, f, &o);
        vec_close(f);
        dsv4_config_free(&config);
        dsv4_model_close(m);
    }
    engines++;
    printf("%-12s threads %d, chunk %2d: %zu failures\n", name, threads, chunk, failures - had);
    fflush(stdout);
}

int main(void)
{
    const char *wanted = getenv("DSV4_HEALTHY");
    bool all = wanted != NULL && strcmp(wanted, "long") == 0;
    bool fast = getenv("DSV4_FAST_TESTS") != NULL;
    must(budgets_load(NULL, &budgets, &err), "budgets");
    for (int threads = 1; threads <= (fast ? 1 : 2); threads++) {
        judge_engine("ref", dsv4_ops_reference(), threads, 0, all);
        for (dsv4_cpu_level l = DSV4_CPU_AVX2; l < DSV4_CPU_LEVEL_COUNT; l++)
            if (dsv4_ops_cpu(l) != NULL)
                judge_engine(dsv4_cpu_level_name(l), dsv4_ops_cpu(l), threads, 0, all);
    }
    for (uint64_t seed = 1; seed <= (all ? 10u : fast ? 1u : 2u); seed++) {
        dsv4_ops ops = *dsv4_ops_reference();
        state = seed * 0x9e3779b97f4a7c15u;
        ops.linear = seeded_linear;
        ops.rmsnorm = seeded_rmsnorm;
        ops.hc_post = seeded_hc_post;
        judge_engine("seeded", &ops, 1 + (int)(seed & 1), 1 + (int)(state >> 40) % 64, all);
    }
    for (int sign = -1; sign <= 1; sign += 2) {
        dsv4_ops ops = engine_quick_ops();
        nudge = (float)sign * 4e-6f;
        ops.round_fp8 = nudged_fp8;
        ops.round_fp4 = nudged_fp4;
        judge_engine("nudged", &ops, 1, 0, all);
    }
    printf("healthy engines: %zu, comparisons %zu, failures %zu, marginal %zu\n", engines,
           comparisons, failures, marginal);
    printf("recorded runs, layer by layer: %zu comparisons, largest error of a layer %.2g (math), "
           "%.2g (qat), of a head %.2g, %.2g\n",
           locals, local_worst[DSV4_MATH][0], local_worst[DSV4_QAT][0], local_worst[DSV4_MATH][1],
           local_worst[DSV4_QAT][1]);
    budgets_free(&budgets);
    return failures == 0 && comparisons > 0 && locals > 0 ? 0 : 1;
}
