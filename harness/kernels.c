/* kernels.c - runs the cases of an operator in a child process, so that a crash is that kernel's
 * failure and the run goes on; guarded buffers; the comparison; the lines. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "kernels_private.h"

#include <fnmatch.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "reference/formats/formats.h"

enum {
    BAND = 64,        /* bytes around a buffer that must keep their pattern */
    MOST_CRASHES = 4, /* of one kernel; then it is given up */
};
static const uint8_t band_pattern = 0xc3, poison = 0xff; /* 0xffffffff is a NaN, and -1 */

/* What a child leaves for its parent, whatever becomes of it. */
typedef struct {
    long index; /* of the case under way, -1 = none */
    int run;    /* of --repeat, from 0 */
    uint64_t seed;
    char name[KERNELS_NAME];
    bool unknown; /* no cases for this operator */
    kernels_item item;
} report;

/* ---- noise ---------------------------------------------------------------------------------- */

uint32_t noise_bits(kernel_run *k)
{
    k->noise = k->noise * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(k->noise >> 32);
}

int noise_below(kernel_run *k, int n)
{
    return (int)(noise_bits(k) % (uint32_t)n);
}

float noise_float(kernel_run *k)
{
    return (float)((int32_t)(noise_bits(k) >> 8) - (1 << 23)) * 0x1p-23f;
}

static uint64_t hash(const void *data, size_t bytes, uint64_t h)
{
    const uint8_t *p = data;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, sizeof word);
        h = (h ^ word) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    for (; bytes > 0; bytes--)
        h = (h ^ *p++) * 0x100000001b3u;
    return h | 1; /* 0 marks what is not an input */
}

const char *fill_name(fill f)
{
    static const char *const names[FILL_COUNT] = {"zero",    "negative-zero", "subnormal", "huge",
                                                  "outlier", "ties",          "nonfinite", "noise"};
    return names[f];
}

static float fill_value(kernel_run *k, fill f, int64_t i)
{
    static const float ties[] = {0.25f,  0.75f,       1.25f,       1.75f,         2.5f,    3.5f,
                                 5.0f,   6.0f,        1.0625f,     1.1875f,       1.3125f, 448.0f,
                                 432.0f, 1.00390625f, 1.01171875f, 0.0009765625f, 1.0f,    0.5f};
    switch (f) {
    case FILL_ZERO:
        return 0.0f;
    case FILL_NEGATIVE_ZERO:
        return -0.0f;
    case FILL_SUBNORMAL:
        return (float)(noise_below(k, 1 << 24) - (1 << 23)) * 0x1p-149f;
    case FILL_HUGE:
        return noise_float(k) * 1e15f;
    case FILL_OUTLIER:
        return noise_float(k) * (i % 64 == 37 ? 1000.0f : 1.0f);
    case FILL_TIES:
        return ties[noise_below(k, (int)(sizeof ties / sizeof *ties))] *
               (noise_bits(k) & 1024u ? -1.0f : 1.0f);
    case FILL_NONFINITE:
        switch (noise_below(k, 40)) {
        case 0:
            return NAN;
        case 1:
            return INFINITY;
        case 2:
            return -INFINITY;
        default:
            return noise_float(k);
        }
    default:
        return noise_float(k);
    }
}

/* ---- guarded memory ------------------------------------------------------------------------- */

void *buffer_bytes(kernel_run *k, size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t inside = (bytes + BAND + page - 1) / page * page;
    if (k->n_buffers == MAX_BUFFERS)
        return NULL;
    guarded *g = &k->buffers[k->n_buffers];
    uint8_t *map =
        mmap(NULL, inside + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    k->n_buffers++;
    *g = (guarded){.map = map, .map_bytes = inside + 2 * page, .bytes = bytes};
    memset(map + page, band_pattern, inside);
    mprotect(map, page, PROT_NONE);
    mprotect(map + page + inside, page, PROT_NONE);
    /* One element over the edge touches the forbidden page on one side, the band on the other. */
    g->data = k->at_start ? map + page : map + page + inside - bytes;
    return g->data;
}

static void *need(kernel_run *k, size_t bytes)
{
    void *p = buffer_bytes(k, bytes);
    if (p == NULL) {
        fprintf(stderr, "dsv4check kernels: out of memory or buffers in %s\n", k->name);
        _exit(DSV4_E_MACHINE);
    }
    return p;
}

void input_done(kernel_run *k, const void *data)
{
    for (int i = 0; i < k->n_buffers; i++)
        if (k->buffers[i].data == data)
            k->buffers[i].sum = hash(data, k->buffers[i].bytes, k->seed);
}

float *input_floats(kernel_run *k, int64_t n, fill f)
{
    float *x = need(k, (size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++)
        x[i] = fill_value(k, f, i);
    input_done(k, x);
    return x;
}

float *output_floats(kernel_run *k, int64_t n)
{
    float *x = need(k, (size_t)n * sizeof *x);
    memset(x, poison, (size_t)n * sizeof *x);
    return x;
}

int32_t *output_ints(kernel_run *k, int64_t n)
{
    int32_t *x = need(k, (size_t)n * sizeof *x);
    memset(x, 0x7b, (size_t)n * sizeof *x); /* no row or expert has this number */
    return x;
}

float *copy_floats(kernel_run *k, const float *from, int64_t n)
{
    float *x = need(k, (size_t)n * sizeof *x);
    memcpy(x, from, (size_t)n * sizeof *x);
    return x;
}

/* Bands intact, inputs unchanged; then the memory goes back. */
static void check_buffers(kernel_run *k)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < k->n_buffers; i++) {
        guarded *g = &k->buffers[i];
        for (uint8_t *p = g->map + page; p < g->map + g->map_bytes - page; p++) {
            if (p == g->data)
                p += g->bytes;
            if (p < g->map + g->map_bytes - page && *p != band_pattern) {
                case_fail(k, "wrote %ld bytes %s buffer %d",
                          p < g->data ? (long)(g->data - p)
                                      : (long)(p - g->data - (ptrdiff_t)g->bytes + 1),
                          p < g->data ? "before" : "past the end of", i);
                break;
            }
        }
        if (g->sum != 0 && hash(g->data, g->bytes, k->seed) != g->sum)
            case_fail(k, "input %d was overwritten", i);
        munmap(g->map, g->map_bytes);
    }
    k->n_buffers = 0;
}

/* ---- a case --------------------------------------------------------------------------------- */

static int timeout_of(const kernel_run *k)
{
    return k->options->timeout > 0 ? k->options->timeout : (int)KERNELS_TIMEOUT;
}

bool case_begin(kernel_run *k, bool timed, const char *fmt, ...)
{
    report *r = k->shared;
    va_list args;
    va_start(args, fmt);
    vsnprintf(k->name, sizeof k->name, fmt, args);
    va_end(args);
    if (k->options->bench && !timed)
        return false;
    if (k->options->filter != NULL && fnmatch(k->options->filter, k->name, 0) != 0)
        return false;
    if (k->index++ < k->resume)
        return false;
    alarm((unsigned)timeout_of(k)); /* a kernel that hangs is stopped */
    k->noise = hash(k->name, strlen(k->name), k->seed * 0x9e3779b97f4a7c15u + 1);
    k->at_start = noise_bits(k) & 1u;
    k->worst[0] = '\0';
    memset(k->ref_times, 0, sizeof k->ref_times);
    r->index = k->index;
    r->seed = k->seed;
    memcpy(r->name, k->name, sizeof r->name);
    return true;
}

void case_fail(kernel_run *k, const char *fmt, ...)
{
    va_list args;
    if (k->worst[0] != '\0')
        return;
    va_start(args, fmt);
    vsnprintf(k->worst, sizeof k->worst, fmt, args);
    va_end(args);
}

void kernels_replay(char *text, size_t size, const kernels_item *item, const char *name,
                    uint64_t seed)
{
    snprintf(text, size, "dsv4check kernels --impl %s --filter '%s' --seed %llu", item->level, name,
             (unsigned long long)seed);
}

static void failure_line(const kernel_run *k, const char *name, const char *what)
{
    kernels_item *item = &((report *)k->shared)->item;
    char replay[KERNELS_NAME + 128];
    item->failures++;
    if (item->n_failures == KERNELS_MOST_FAILURES)
        return;
    kernels_failure *f = &item->failed[item->n_failures++];
    snprintf(f->name, sizeof f->name, "%s", name);
    snprintf(f->what, sizeof f->what, "%s", what);
    f->seed = k->seed;
    kernels_replay(replay, sizeof replay, item, name, k->seed);
    if (k->options->bar != NULL)
        progress_clear(k->options->bar);
    fprintf(k->options->out, "FAIL %s on %s: %s\n  %s\n", name, k->label, what, replay);
    fflush(k->options->out);
}

static void time_line(const kernel_run *k)
{
    kernels_item *item = &((report *)k->shared)->item;
    const double *w = k->ref_times, *g = k->impl_times;
    if (item->n_times < KERNELS_MOST_TIMES) {
        kernels_time *t = &item->times[item->n_times++];
        memcpy(t->name, k->name, sizeof t->name);
        memcpy(t->seconds, g, sizeof t->seconds);
        memcpy(t->scalar, w, sizeof t->scalar);
    }
    if (k->options->bar != NULL)
        progress_clear(k->options->bar);
    fprintf(k->options->out, "%-52s %-7s %10.3f us  +-%4.1f%%  scalar %10.3f us  %6.2fx\n", k->name,
            k->label, 1e6 * g[1], 50.0 * (g[2] - g[0]) / g[1], 1e6 * w[1], w[1] / g[1]);
    fflush(k->options->out);
}

void case_end(kernel_run *k)
{
    report *r = k->shared;
    dsv4_error err;
    check_buffers(k);
    if (dsv4_cuda_take_error(&err) != DSV4_OK)
        case_fail(k, "%s", err.text);
    r->item.cases++;
    if (k->worst[0] != '\0')
        failure_line(k, k->name, k->worst);
    else if (k->options->bench && k->ref_times[1] > 0)
        time_line(k);
    r->index = -1;
}

/* ---- comparison ----------------------------------------------------------------------------- */

static uint32_t bits_of(float x)
{
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

void compare_floats(kernel_run *k, const char *what, const float *want, const float *got, int64_t n,
                    const double *magnitude, double tolerance)
{
    report *r = k->shared;
    for (int64_t i = 0; i < n; i++) {
        if (isfinite(want[i]) != isfinite(got[i])) {
            case_fail(k, "%s[%lld]: expected %g, found %g", what, (long long)i, (double)want[i],
                      (double)got[i]);
            return;
        }
        if (tolerance == 0) {
            if (bits_of(want[i]) != bits_of(got[i]) && !(want[i] != want[i] && got[i] != got[i])) {
                case_fail(k, "%s[%lld]: expected %.9g (%08x), found %.9g (%08x), bit for bit", what,
                          (long long)i, (double)want[i], bits_of(want[i]), (double)got[i],
                          bits_of(got[i]));
                return;
            }
            continue;
        }
        if (!isfinite(want[i]) || tolerance > 0.5)
            continue;
        double size = magnitude != NULL ? magnitude[i] : fabs((double)want[i]);
        if (!isfinite(size)) /* infinite terms that a finite value has outlived */
            continue;
        /* Below float32's normal range the steps are no longer relative. */
        double limit = tolerance * size + 0x1p-126;
        double d = fabs((double)got[i] - (double)want[i]);
        if (d / limit > r->item.worst) {
            r->item.worst = d / limit;
            memcpy(r->item.worst_name, k->name, sizeof r->item.worst_name);
        }
        if (!(d <= limit)) {
            case_fail(k, "%s[%lld]: expected %.9g, found %.9g: off by %.3g, tolerance %.3g", what,
                      (long long)i, (double)want[i], (double)got[i], d, limit);
            return;
        }
    }
}

void compare_ints(kernel_run *k, const char *what, const int32_t *want, const int32_t *got,
                  int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (want[i] != got[i]) {
            case_fail(k, "%s[%lld]: expected %d, found %d", what, (long long)i, want[i], got[i]);
            return;
        }
}

/* ---- time ----------------------------------------------------------------------------------- */

double kernel_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

void kernel_quartiles(double *samples, int n, double out[3])
{
    qsort(samples, (size_t)n, sizeof *samples, by_size);
    for (int q = 0; q < 3; q++)
        out[q] = samples[(q + 1) * (n - 1) / 4];
}

/* ---- the child and its parent --------------------------------------------------------------- */

static bool composition_begin(void *ctx, const char *name)
{
    return case_begin(ctx, false, "%s", name);
}

static void composition_end(void *ctx, const char *wrong)
{
    if (wrong != NULL)
        case_fail(ctx, "%s", wrong);
    case_end(ctx);
}

static void composition_cases(kernel_run *k)
{
    dsv4_composition_cases cases = {k, composition_begin, composition_end};
    dsv4_error err = {""};
    int which = k->composition - 1;
    if (dsv4_cuda_check_composition(which, k->seed, &cases, &err) != DSV4_OK)
        failure_line(k, dsv4_cuda_composition(which), err.text);
}

static void child(kernel_run *k, int op)
{
    report *r = k->shared;
    int repeat = k->options->repeat > 0 ? k->options->repeat : 1;
    /* The default action, whatever the caller or a sanitizer has installed. */
    static const int deadly[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGALRM};
    for (size_t i = 0; i < sizeof deadly / sizeof *deadly; i++)
        signal(deadly[i], SIG_DFL);
    for (int i = 0; i < repeat; i++) {
        k->seed = k->options->seed + (uint64_t)i;
        r->run = i;
        if (k->dot != NULL)
            kernel_cases_dot(k);
        else if (k->composition > 0)
            composition_cases(k);
        else if (!kernel_cases(k, op))
            r->unknown = true;
    }
    fflush(k->options->out);
    _exit(0);
}

/* Why a child ended other than by _exit(0). */
static void describe(const kernel_run *k, int status, char *text, size_t size)
{
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        snprintf(text, size, "did not return in %d s", timeout_of(k));
    else if (WIFSIGNALED(status))
        snprintf(text, size, "crashed: signal %d (%s)", WTERMSIG(status),
                 WTERMSIG(status) == SIGSEGV  ? "touched memory that is not its own"
                 : WTERMSIG(status) == SIGILL ? "an instruction this machine does not have"
                                              : "see signal(7)");
    else
        snprintf(text, size, "ended the process with status %d", WEXITSTATUS(status));
}

/* Waits for the child; on a terminal it says meanwhile how far a long one is. */
static bool wait_for(kernel_run *k, const char *name, pid_t pid, int *status)
{
    const report *r = k->shared;
    progress *bar = k->options->bar;
    if (bar == NULL || !bar->on)
        return waitpid(pid, status, 0) >= 0;
    for (pid_t done; (done = waitpid(pid, status, WNOHANG)) != pid;) {
        char text[64];
        if (done < 0)
            return false;
        snprintf(text, sizeof text, "%s %s, run %d of %d", k->label, name, r->run + 1,
                 k->options->repeat > 0 ? k->options->repeat : 1);
        progress_note(bar, text);
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
    return true;
}

/* The block of an operator, as the results name it. */
static const char *block_of(const char *name)
{
    static const struct {
        const char *start, *block;
    } blocks[] = {{"embed", "embed"},       {"rms", "norm"},         {"head_norm", "norm"},
                  {"rope", "rope"},         {"hc_", "mhc"},          {"compressor", "compressor"},
                  {"index", "indexer"},     {"topk", "indexer"},     {"attention", "attention"},
                  {"router", "router"},     {"swiglu", "experts"},   {"experts", "experts"},
                  {"add", "experts"},       {"hadamard", "indexer"}, {"rows", "attention"},
                  {"queries", "attention"}, {"leave", "mhc"}};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        if (strncmp(name, blocks[i].start, strlen(blocks[i].start)) == 0)
            return blocks[i].block;
    return "quant"; /* linear, dot_*, round_*: weights and roundings */
}

void kernels_found_free(kernels_found *f)
{
    free(f->items);
    free(f->argv);
    *f = (kernels_found){0};
}

/* Keeps what a kernel's cases gave; false on a lack of memory. */
static bool keep(kernels_found *f, const kernels_item *item)
{
    if (f->count == f->capacity) {
        size_t capacity = f->capacity ? 2 * f->capacity : 32;
        kernels_item *grown = dsv4_alloc(capacity, sizeof *grown, "results", NULL);
        if (grown == NULL)
            return false;
        if (f->count > 0)
            memcpy(grown, f->items, f->count * sizeof *grown);
        free(f->items);
        f->items = grown;
        f->capacity = capacity;
    }
    f->items[f->count++] = *item;
    return true;
}

/* Adds a finished kernel to the totals, the report and the lines. */
static bool book(const kernel_run *k, kernels_totals *totals)
{
    const kernels_item *item = &((const report *)k->shared)->item;
    bool ok = item->failures == 0;
    if (item->cases == 0 && ok)
        return true;
    totals->kernels++;
    totals->cases += item->cases;
    totals->failures += item->failures;
    totals->failed_kernels += !ok;
    totals->crashes += (int)item->crashes;
    if (k->options->found != NULL && !keep(k->options->found, item))
        k->options->found->lost = true;
    if (k->options->quiet || k->options->bench)
        return ok;
    if (k->options->bar != NULL)
        progress_clear(k->options->bar);
    fprintf(k->options->out,
            "%-4s %-22s %-7s %5ld cases, %ld failed, worst %.2f of its "
            "tolerance%s%s\n",
            ok ? "ok" : "FAIL", item->name, k->label, item->cases, item->failures, item->worst,
            item->worst > 0 ? " in " : "", item->worst > 0 ? item->worst_name : "");
    return ok;
}

/* Whether the filter may let a case of this kernel through: the case's name would begin with the
 * kernel's and a slash. Where it cannot, no process is started (nor, in it, a device's context). */
static bool may_pass(const char *filter, const char *kernel)
{
    size_t literal = strcspn(filter, "*?[\\"), length = strlen(kernel);
    if (literal <= length)
        return strncmp(filter, kernel, literal) == 0;
    return strncmp(filter, kernel, length) == 0 && filter[length] == '/';
}

static bool run(kernel_run *k, const char *name, int op, kernels_totals *totals)
{
    if (k->dot == NULL && k->options->filter != NULL && !may_pass(k->options->filter, name)) {
        if (k->options->bar != NULL)
            progress_step(k->options->bar, name);
        return true;
    }
    report *r = mmap(NULL, sizeof *r, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (r == MAP_FAILED) {
        fprintf(stderr, "dsv4check kernels: out of memory\n");
        totals->failures++;
        return false;
    }
    k->shared = r;
    r->item.name = name;
    r->item.level = k->label;
    r->item.block = block_of(name);
    for (bool again = true; again;) {
        char what[128];
        int status = 0;
        r->index = -1;
        again = false;
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0)
            child(k, op);
        if (pid < 0 || !wait_for(k, name, pid, &status)) {
            snprintf(what, sizeof what, "no process could be started");
            failure_line(k, name, what);
        } else if (status != 0) {
            describe(k, status, what, sizeof what);
            r->item.crashes++;
            r->item.cases++;
            k->seed = r->index >= 0 ? r->seed : k->options->seed;
            failure_line(k, r->index >= 0 ? r->name : name, what);
            again = r->index >= 0 && r->item.crashes < MOST_CRASHES;
            k->resume = r->index; /* the cases up to the one that crashed are done */
            k->index = 0;
        }
    }
    if (r->unknown)
        failure_line(k, name, "the checker has no cases for this operator");
    if (k->options->bar != NULL)
        progress_step(k->options->bar, name);
    bool ok = book(k, totals);
    munmap(r, sizeof *r);
    return ok;
}

bool kernels_check(const char *label, const dsv4_ops *ref, const dsv4_ops *impl, int op,
                   const kernels_options *o, kernels_totals *totals)
{
    kernel_run k = {.ref = ref, .impl = impl, .options = o, .label = label, .seed = o->seed};
    return run(&k, dsv4_operator_name(op), op, totals);
}

bool kernels_check_dot(const dsv4_dot_kernel *kernel, const kernels_options *o,
                       kernels_totals *totals)
{
    kernel_run k = {
        .dot = kernel, .options = o, .label = dsv4_cpu_level_name(kernel->level), .seed = o->seed};
    return run(&k, kernel->name, -1, totals);
}

/* One of dsv4_cuda_composition, against its operators. */
static bool check_composition(int which, const kernels_options *o, kernels_totals *totals)
{
    kernel_run k = {.options = o, .label = "cuda", .composition = which + 1, .seed = o->seed};
    return run(&k, dsv4_cuda_composition(which), -1, totals);
}

/* Walks what this machine runs: operators that a level changed, then dot products. */
static size_t walk(const kernels_options *o, kernels_totals *totals)
{
    const dsv4_ops *ref = dsv4_ops_reference(), *below = ref;
    size_t n = 0;
    if (o->impl != NULL && strcmp(o->impl, "cuda") == 0) {
        /* Every operator, and the driver is touched in the children only. */
        const dsv4_ops *cuda = dsv4_ops_cuda();
        dsv4_cuda_check_calls(!o->bench);
        for (int op = 0; cuda != NULL && op < dsv4_operator_count(); op++, n++)
            if (totals != NULL)
                kernels_check("cuda", ref, cuda, op, o, totals);
        for (int c = 0; !o->bench && dsv4_cuda_composition(c) != NULL; c++, n++)
            if (totals != NULL)
                check_composition(c, o, totals);
        return n;
    }
    for (int l = 0; l < DSV4_CPU_LEVEL_COUNT; l++) {
        const char *label = dsv4_cpu_level_name((dsv4_cpu_level)l);
        const dsv4_ops *table = dsv4_ops_cpu((dsv4_cpu_level)l);
        if (table == NULL)
            continue;
        bool wanted = o->impl == NULL || strcmp(o->impl, label) == 0;
        for (int op = 0; wanted && op < dsv4_operator_count(); op++)
            if (!dsv4_operator_same(table, below, op)) {
                n++;
                if (totals != NULL)
                    kernels_check(label, ref, table, op, o, totals);
            }
        below = table;
    }
    for (const dsv4_dot_kernel *d = dsv4_dot_kernels(); d->name != NULL; d++)
        if (dsv4_dot_supported(d) &&
            (o->impl == NULL || strcmp(o->impl, dsv4_cpu_level_name(d->level)) == 0)) {
            n++;
            if (totals != NULL)
                kernels_check_dot(d, o, totals);
        }
    return n;
}

void kernels_check_all(const kernels_options *o, kernels_totals *totals)
{
    walk(o, totals);
}

size_t kernels_count(const kernels_options *o)
{
    return walk(o, NULL);
}

void kernels_list(FILE *out)
{
    fprintf(out, "operators, and the levels that have one of their own (* = what this machine "
                 "runs):\n");
    const dsv4_ops *best = dsv4_ops_cpu(dsv4_cpu_best());
    for (int op = 0; op < dsv4_operator_count(); op++) {
        const dsv4_ops *below = dsv4_ops_reference();
        dsv4_cpu_level active = dsv4_operator_active(best, op);
        fprintf(out, "  %-16s scalar%s", dsv4_operator_name(op),
                active == DSV4_CPU_SCALAR ? "*" : "");
        for (int l = 0; l < DSV4_CPU_LEVEL_COUNT; l++) {
            const dsv4_ops *table = dsv4_ops_cpu((dsv4_cpu_level)l);
            if (table == NULL)
                continue;
            if (!dsv4_operator_same(table, below, op))
                fprintf(out, " %s%s", dsv4_cpu_level_name((dsv4_cpu_level)l),
                        (int)active == l ? "*" : "");
            below = table;
        }
        fputc('\n', out);
    }
    fprintf(out, "dot products of stored rows with rounded activations:\n");
    for (const dsv4_dot_kernel *d = dsv4_dot_kernels(); d->name != NULL; d++)
        fprintf(out, "  %-20s %-8s x %-5s %s\n", d->name, dsv4_format_of(d->type)->name,
                dsv4_format_of(d->act_type)->name,
                !dsv4_dot_supported(d)                         ? "not on this machine"
                : dsv4_dot_find(d->type, dsv4_cpu_best()) == d ? "*"
                                                               : "");
}
