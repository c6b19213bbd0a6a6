/* harness.h - the room that decides: golden vectors in, engines run, rows compared, verdicts out.
 * Data flows one way: vectors -> engines -> judge -> results -> reports. */
#ifndef DSV4_HARNESS_H
#define DSV4_HARNESS_H

#include <stdio.h>

#include "reference/dsv4.h"
#include "reference/ops.h"

/* ==== vectors.c, vectors_write.c: HDF5 files of schema dsv4-vectors-1 ======================= */

typedef struct vec_file vec_file;
typedef struct vec_tap vec_tap;

typedef struct {
    const char *name;
    bool decode;              /* kind: prefill or decode */
    int64_t context;          /* tokens in all */
    int64_t prefill;          /* tokens before the first decode step (prefill cases: context) */
    const int32_t *tokens;    /* [context] */
    int64_t n_positions;      /* prefill cases: rows of the per-position taps; else 0 */
    const int64_t *positions; /* [n_positions] ascending */
} vec_case;

/* Opens and checks a file: schema, attributes, every case's kind, tokens, positions. Taps are
 * opened one by one and read in slices. A truncated or foreign file gives one line. */
dsv4_status vec_open(const char *path, vec_file **out, dsv4_error *err);
void vec_close(vec_file *f);
const char *vec_path(const vec_file *f);
/* Root attribute (schema, model, weights_sha256, config, producer, numerics, made); NULL = not
 * there. */
const char *vec_attribute(const vec_file *f, const char *name);
size_t vec_case_count(const vec_file *f);
const vec_case *vec_case_at(const vec_file *f, size_t i); /* in order of context, then name */
/* NULL = no such case. */
const vec_case *vec_case_find(const vec_file *f, const char *name);

/* A tap of a case, in one uniform view whatever the case's kind: `n_rows` rows, row i belonging to
 * position positions[i] (compressed_kv, indexer_kv: to row number i). In decode cases logits row i
 * is position prefill-1+i and streams are taken apart by layer. */
struct vec_tap {
    dsv4_tap_id id;
    int layer; /* -1 = outside the layers */
    bool is_int;
    int64_t n_rows;
    int64_t row_len; /* elements of a row */
    int ndim;        /* axes of one row: 1 or 2 */
    int64_t shape[2];
    const int64_t *positions; /* [n_rows] ascending */
    char path[256];           /* dataset, for messages */
};

/* *out = NULL (and DSV4_OK) when the file does not hold the tap. A dataset of the wrong rank,
 * type or first axis is DSV4_E_INPUT. */
dsv4_status vec_tap_open(const vec_file *f, const vec_case *c, dsv4_tap_id id, int layer,
                         vec_tap **out, dsv4_error *err);
void vec_tap_close(vec_tap *t);
/* Rows [first, first + count) into dst: float or int32 [count][row_len]. */
dsv4_status vec_tap_read(const vec_tap *t, int64_t first, int64_t count, void *dst,
                         dsv4_error *err);
/* Reads all rows at once and keeps them, where they are few enough to be kept. unload forgets them
 * until one is asked for. */
dsv4_status vec_tap_load(vec_tap *t, dsv4_error *err);
void vec_tap_unload(vec_tap *t);
/* Highest layer number + 1 among the case's taps. */
int vec_case_layers(const vec_file *f, const vec_case *c);
/* Names of datasets under the case that no tap name explains, one by one; for `inspect`. */
void vec_case_unknown(const vec_file *f, const vec_case *c,
                      void (*each)(void *ctx, const char *path), void *ctx);
/* /rope/{main,compress}: positions [P], cos and sin [P][r/2] (caller frees each). *n = 0 when the
 * file has none. */
dsv4_status vec_rope_read(const vec_file *f, bool compressed, int64_t *n, int64_t *half,
                          int64_t **positions, float **cos, float **sin, dsv4_error *err);
/* sha256 of the file, 64 hex digits. */
dsv4_status file_sha256(const char *path, char hex[65], dsv4_error *err);

/* Writer. Everything goes to `path`.tmp, renamed by vec_writer_commit: a dump is whole or absent.
 */
typedef struct vec_writer vec_writer;
typedef struct {
    const char *model, *weights_sha256, *config, *producer, *numerics;
} vec_writer_info;
dsv4_status vec_writer_new(const char *path, const vec_writer_info *info, vec_writer **out,
                           dsv4_error *err);
/* positions: rows of the per-position taps, ascending. */
dsv4_status vec_writer_case(vec_writer *w, const vec_case *c, dsv4_error *err);
/* One tap of the last case: n_rows rows of the axes shape[ndim]. For mtp/logits `positions` are
 * written beside it; other taps ignore it. */
dsv4_status vec_writer_tap(vec_writer *w, dsv4_tap_id id, int layer, int64_t n_rows, int ndim,
                           const int64_t *shape, const int64_t *positions, const void *data,
                           dsv4_error *err);
dsv4_status vec_writer_commit(vec_writer *w, dsv4_error *err); /* frees w, also on failure */
void vec_writer_abort(vec_writer *w);                          /* removes the temporary file */

/* ==== compare.c: one pass over two rows ====================================================== */

/* Running sums over the rows of one tap. All sums in double; relative L2 = sqrt(dd/ee). */
typedef struct {
    int64_t n; /* elements compared */
    int64_t rows;
    int64_t nonfinite;     /* elements where the masks of NaN, +Inf, -Inf differ */
    double dd, ee, aa, ea; /* sums of diff^2, expected^2, actual^2, expected*actual */
    double max_abs;
    int64_t max_position, max_index; /* where max_abs is; index inside the row */
    float max_expected, max_actual;
    double worst_row; /* largest relative L2 of a row */
    int64_t worst_position;
    double head_dd, tail_dd; /* diff^2 of the columns before and in the last `tail` columns */
} compare_sums;

void compare_reset(compare_sums *s);
/* tail: columns at the end of every `width` columns that are summed apart (RoPE dims); 0 = none.
 * Returns the row's relative L2 (0/0 = 0, x/0 = infinity; infinity if the masks differ). */
double compare_row(compare_sums *s, const float *expected, const float *actual, int64_t n,
                   int64_t width, int64_t tail, int64_t position);
void compare_merge(compare_sums *into, const compare_sums *from);
double compare_rel_l2(const compare_sums *s);
double compare_cosine(const compare_sums *s);

/* Two selections of k (-1 = none) out of scores[n] as sets. missing: in expected only. gap: the
 * largest golden score distance to the cut among the elements that differ (how far from a tie the
 * worst swap is); 0 when equal. */
typedef struct {
    int missing, extra;
    int duplicates; /* in actual */
    int invalid;    /* in actual: < -1 or >= n */
    double gap;
    double jaccard;
} compare_set;
compare_set compare_selection(const int32_t *expected, const int32_t *actual, int k,
                              const float *scores, int64_t n);

/* ==== budgets.c, budgets.tsv: every tolerance with its reason ================================ */

typedef enum { WEIGHTS_EXACT, WEIGHTS_OTHER } weights_class; /* same weights, or another format */
typedef enum { ROWS_CLEAN, ROWS_AFTER_FLIP } rows_class;

typedef struct {
    char *tap;         /* glob over tap names */
    char *numerics;    /* glob: math, qat, deployed */
    char *weights;     /* glob: exact, other */
    char *rows;        /* glob: clean, after; "clean@long" in one context class only (noise.h) */
    double pass, fail; /* relative L2: <= pass PASS, <= fail MARGINAL, else FAIL */
    char *reason;
} budget;

typedef struct {
    budget *lines;
    size_t count;
} budget_table;

/* file NULL = the table built into the program. */
dsv4_status budgets_load(const char *file, budget_table *out, dsv4_error *err);
void budgets_free(budget_table *t);
/* The last line that matches wins; NULL = no budget, which the caller must treat as an error. */
const budget *budgets_find(const budget_table *t, const char *tap, dsv4_numerics numerics,
                           weights_class weights, rows_class rows);
/* The same in a context class; without one, only lines for every class match. */
const budget *budgets_find_in(const budget_table *t, const char *tap, dsv4_numerics numerics,
                              const char *weights, rows_class rows, const char *context);
/* The same by the text of the weights column: "exact", or "other:" and the format of the routed
 * experts ("other:IQ2_XXS"). */
const budget *budgets_find_text(const budget_table *t, const char *tap, dsv4_numerics numerics,
                                const char *weights, rows_class rows);

/* ==== results.c: the one results model ======================================================= */

/* In order of gravity. WAIVED: a failure that a line of --waivers excuses. */
typedef enum {
    VERDICT_PASS,
    VERDICT_MARGINAL,
    VERDICT_WAIVED,
    VERDICT_FAIL,
    VERDICT_SKIPPED,
    VERDICT_COUNT
} verdict;
const char *verdict_name(verdict v); /* "pass" ... */

/* A line of a waivers file. */
typedef struct {
    char *pattern; /* glob over result_id() */
    char *reason, *link, *owner;
    char expires[11];        /* YYYY-MM-DD: the last day it holds */
    int line;                /* of the file */
    bool expired, partial;   /* partial: the run left some of its cases or taps out */
    size_t matched, excused; /* items compared that the pattern admits; failures among them */
} waiver;

typedef struct baseline baseline; /* an earlier run's results: baseline.c */

typedef struct {
    char *case_name;
    int layer; /* -1 = none */
    dsv4_tap_id tap;
    char *name; /* what was compared, where that is no tap: "decode", "avx2"; else NULL */
    const waiver *waived_by; /* of VERDICT_WAIVED */
    const char *block;       /* static string */
    int64_t n, rows;
    double rel_l2, median_row, worst_row, max_abs, cosine;
    int64_t worst_position, max_position, max_index;
    double expected, actual; /* at max_abs */
    int64_t nonfinite;
    int64_t changed;     /* selections that other weights decided otherwise */
    int64_t ties, flips; /* selections or roundings that differ inside the noise */
    int64_t rows_after;  /* rows after a tie or flip, judged by their own budget */
    double rel_l2_after;
    double budget, budget_fail;
    const char *reason; /* why this budget; or why skipped */
    char *note;         /* what failed, one sentence; NULL */
    verdict verdict;
    char *replay;             /* command line that runs this case and tap alone */
    bool decode;              /* of a decode case */
    int64_t context, prefill; /* of the case */
    dsv4_numerics numerics;
    /* The two curves, NAN = not measured: the error of the engine running on by itself, and its
     * local error, every block and layer being given golden's values. rel_l2 is one of them. */
    double rel_l2_free, rel_l2_shadow;
    verdict verdict_shadow; /* of the local error; VERDICT_SKIPPED = not measured */
    double noise_floor;     /* measured for this tap, numerics and context class; NAN = unknown */
    const char *context_class; /* short, window or long: see budgets.tsv; static string */
} result;

/* A likely cause of the first divergence: a line of causes.tsv that matches what fails, what passes
 * and what the values themselves say. */
typedef struct {
    char *id, *sentence, *reference;
    char *evidence; /* what was measured that speaks for it; "" = nothing but the place */
} likely_cause;

/* Where the time went, in seconds of one thread each (threads add up). */
typedef struct {
    double load;        /* the model: opening, checking, hashing */
    double hash;        /* sha256 of the vector files */
    double engine;      /* the engine, without the listener's share */
    double compare;     /* comparing rows, without reading golden ones */
    double read;        /* golden rows: looking taps up, reading, decoding */
    int64_t read_bytes; /* decoded bytes of golden rows */
} results_timing;

typedef struct {
    char *file, *sha256, *producer;
} results_vectors;

typedef struct {
    const char *command; /* static string */
    char *argv;
    char *model, *engine, *numerics, *mode;
    const char *error; /* what is measured: "implementation" or "format"; static string */
    double seconds;
    results_vectors *vectors;
    size_t n_vectors;
    result *items;
    size_t count, capacity;
    size_t cases;   /* cases in which something was compared */
    char **missing; /* what the engine's side did not hold: "case/layers/3/q" */
    size_t n_missing;
    char **notes; /* other remarks for the reader */
    size_t n_notes;
    const result *first_divergence; /* set by results_finish, or NULL */
    const result *last_right; /* set by results_finish: last passing tap of the first divergence's
                                 case before it in data-flow order; NULL = none */
    size_t unseen;        /* taps between the two that nobody compared: the fault may lie there */
    likely_cause *causes; /* [n_causes] of the first divergence, the best one first */
    size_t n_causes;
    results_timing timing;
    const result *worst;
    verdict verdict; /* waived failures do not make a run fail */
    /* Where it comes from; texts are of the heap or NULL, 0 = not said. */
    char *model_sha256, *cpu, *date; /* date: of the start, ISO 8601, UTC */
    int threads;
    bool seeded;
    uint64_t seed;
    /* What --waivers and --baseline say: waivers.c, baseline.c. */
    char *waivers_file;
    waiver *waivers;
    size_t n_waivers;
    bool partial; /* --case, --taps: a waiver that matches nothing may belong to the rest */
    baseline *baseline;
    char **problems; /* what makes the run fail beside its comparisons: expired waivers */
    size_t n_problems;
} results;

void results_init(results *r);
void results_free(results *r);
/* Appends a zeroed result (case_name copied); NULL on a lack of memory. */
result *results_add(results *r, const char *case_name, int layer, dsv4_tap_id tap);
/* The same for what is not a tap; both names are copied. */
result *results_add_named(results *r, const char *case_name, const char *name);
const char *result_name(const result *item); /* of the tap, or its name */
/* "CASE/layers/3/q", "CASE/logits": what waivers match and reports show. Caller frees; NULL on a
 * lack of memory. */
char *result_id(const result *item);
bool results_add_vectors(results *r, const char *file, const char *sha256, const char *producer);
bool results_missing(results *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool results_note(results *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool results_problem(results *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Appends a likely cause; the strings are copied. */
bool results_cause(results *r, const char *id, const char *sentence, const char *reference,
                   const char *evidence);
/* Removes them all. */
void results_drop_causes(results *r);

/* Selections and roundings of one tap, layer and context length, summed over its cases. */
typedef struct {
    int layer;
    dsv4_tap_id tap;
    int64_t context, rows, ties, flips, changed;
} tie_count;
/* Every (layer, tap, context) with a selection, or with a flip, in data-flow order; caller frees. A
 * failure is a lack of memory. */
bool results_ties(const results *r, tie_count **out, size_t *n);
/* Does a come before b in data-flow order: by layer, those outside the layers last, then by tap? */
bool results_flows_before(const result *a, const result *b);
/* Verdict, counts, worst, first divergence: the first failing item in data-flow order (layer, then
 * tap, then the shorter context). Items outside layers come after all layers. */
void results_finish(results *r);
size_t results_count(const results *r, verdict v);
/* Share of its budget that an item used; infinite for what is not finite. */
double result_used(const result *item);
/* 0 pass, marginal or waived, 1 fail, 2 nothing compared. */
int results_exit_code(const results *r);

/* ==== waivers.c: failures that somebody answers for ========================================== */

/* Tab-separated lines: pattern, reason, link, owner, last day (YYYY-MM-DD); '#' begins a comment.
 * Malformed: DSV4_E_INPUT with file and line. A waiver is expired when its last day lies before
 * today: SOURCE_DATE_EPOCH if set, else the clock, UTC. */
dsv4_status waivers_load(const char *file, results *r, dsv4_error *err);
/* Failures become VERDICT_WAIVED; expired and unused waivers become problems. Before
 * results_finish. */
dsv4_status waivers_apply(results *r, dsv4_error *err);
void waivers_free(results *r);
/* "used", "expired", "unused", or "out of scope" (matched nothing in a partial run). */
const char *waiver_state(const waiver *w);

/* ==== baseline.c: what got worse since an earlier run ======================================== */

typedef enum { CHANGE_WORSE, CHANGE_BETTER, CHANGE_NEW, CHANGE_GONE } change_class;
const char *change_name(change_class k); /* "worse" ... */

typedef struct {
    change_class kind;
    char *id;                   /* result_id of either side */
    const result *now;          /* NULL: gone */
    double before_rel_l2;       /* NAN: new */
    const char *before_verdict; /* static string; "" for new */
    const char *why;            /* static string: "verdict", "noise floor", "factor" */
} baseline_change;

struct baseline {
    char *file, *version, *date; /* of the earlier run; version and date may be NULL */
    size_t same;                 /* items within noise */
    size_t counts[4];            /* changes by kind */
    baseline_change *items;      /* worse first, the largest growth first */
    size_t n;
    double factor, smallest; /* budgets.tsv, line @baseline: when no floor is known */
    const char *reason;      /* of that line */
    bool other_seed;         /* the inputs were other random numbers: only verdicts are compared */
    void *json;              /* while it is read */
};

/* Reads the JSON report of an earlier run (dsv4check-results-1) of the same command; another
 * command or schema is DSV4_E_INPUT. */
dsv4_status baseline_load(const char *file, const char *command, const budget_table *budgets,
                          results *r, dsv4_error *err);
/* Compares, after results_finish. Another model or other golden vectors: DSV4_E_INPUT. */
dsv4_status baseline_compare(results *r, dsv4_error *err);
void baseline_free(baseline *b);

/* ==== provenance.c =========================================================================== */

/* Seconds since 1970: SOURCE_DATE_EPOCH if set (reports that can be made again), else the clock. */
int64_t report_time(void);
/* Fills cpu, date, threads. */
bool results_provenance(results *r, int threads);
/* git describe of the checkout that was built, "" if it was none. */
extern const char dsv4_source[];

/* ==== judge.c: the listener that compares an engine's taps with golden rows =================== */

typedef struct judge judge;

typedef struct {
    dsv4_numerics numerics;
    weights_class weights;
    const budget_table *budgets;
    const dsv4_config *config;  /* of the golden file */
    const char *weights_format; /* of other weights: what the routed experts are stored in */
    const dsv4_model *model;    /* for the router's selection bias; NULL for dumps */
    const char *taps;           /* glob of taps to compare, NULL = all */
    bool replay;         /* put golden selections and rounded rows in place of ties and flips */
    bool shadow;         /* put the golden value in place of every tap once it is compared: errors
                            are local ones, of one block or layer each */
    bool local;          /* shadow with a recorded run in golden's place: each layer of the
                            reference works on the run's own streams of the layer before */
    bool dump;           /* the engine is a recorded run: missing rows are listed, not failed */
    bool rounded;        /* the engine multiplies with activations of 8 bits: weights class int8 */
    const char *command; /* start of the replay lines: dsv4check layers --model ... */
} judge_options;

/* Judges one case. The taps of an engine arrive through judge_taps(); judge_finish() appends one
 * result per tap to `out`. Input errors met on the way (a golden dataset of the wrong shape) are
 * reported by judge_finish. */
dsv4_status judge_new(const vec_file *golden, const vec_case *c, const judge_options *o,
                      judge **out, dsv4_error *err);
const dsv4_taps *judge_taps(judge *j);
dsv4_status judge_finish(judge *j, results *out, dsv4_error *err);
void judge_free(judge *j);
/* Ties and flips met so far: after one, cases that share a run can no longer be compared. */
int64_t judge_events(const judge *j);
/* Reads the case's golden rows into memory, unless that is done; adds their bytes to *loaded. */
dsv4_status judge_load(judge *j, int64_t *loaded, dsv4_error *err);
/* Forgets golden rows that are in memory; what asks for one again has it read again. */
void judge_rest(judge *j);

/* Block to blame for a failing tap: embed, mhc, norm, attention, rope, compressor, indexer, router,
 * hash, experts, head, mtp. */
const char *tap_block(dsv4_tap_id id);

/* ==== engines.c: who computes ================================================================ */

typedef struct engine engine;

typedef struct {
    dsv4_numerics numerics;
    int threads; /* an engine may use; 0 = 1. Results do not depend on it. */
} engine_options;

/* name: ref, cpu (the best level of this machine), cpu:LEVEL, either with :float behind it (no
 * 8-bit activations), dump:FILE.h5. model NULL is allowed for dumps. */
dsv4_status engine_open(const char *name, const dsv4_model *model, const engine_options *o,
                        engine **out, dsv4_error *err);
/* An engine made of somebody's operator table (a test's, an optimised one's); ops is kept by
 * reference. */
dsv4_status engine_from_ops(const char *name, const dsv4_model *model, const dsv4_ops *ops,
                            dsv4_numerics numerics, engine **out, dsv4_error *err);
/* The reference's table with this machine's products, experts and attention in it, which sum in
 * float32: for what only looks for causes and places. */
dsv4_ops engine_quick_ops(void);
void engine_close(engine *e);
const char *engine_name(const engine *e);
bool engine_is_dump(const engine *e);
/* Does it multiply some weights of the model with activations rounded to 8 bits? */
bool engine_rounds_activations(const engine *e);
/* Do conversations with it use the threads of engine_options? */
bool engine_uses_threads(const engine *e);
/* Threads of the conversations opened from now on. */
void engine_set_threads(engine *e, int threads);

/* One conversation with an engine that computes: the calls of dsv4_session (dsv4.h), whoever is
 * behind them. o->numerics must be the engine's. */
typedef struct engine_session engine_session;
dsv4_status engine_session_new(engine *e, const dsv4_session_options *o, engine_session **out,
                               dsv4_error *err);
void engine_session_free(engine_session *s);
/* The optimised CPU engine (optimized.h) behind a conversation, for its costs; NULL = another kind.
 */
struct dsv4_engine *engine_session_cpu(engine_session *s);
void engine_session_set_taps(engine_session *s, const dsv4_taps *taps);
dsv4_status engine_session_append(engine_session *s, const int32_t *tokens, int64_t n,
                                  float *logits, dsv4_error *err);
int64_t engine_session_position(const engine_session *s);
void engine_session_reset(engine_session *s);
dsv4_status engine_session_save(const engine_session *s, void **blob, size_t *bytes,
                                dsv4_error *err);
dsv4_status engine_session_restore(engine_session *s, const void *blob, size_t bytes,
                                   dsv4_error *err);

/* Several conversations in one step (cuda): one token of each; positions may differ. The sessions
 * must outlive it, have no MTP layer and, during a step, no listener. */
typedef struct engine_batch engine_batch;
bool engine_batches(const engine *e); /* can it? */
dsv4_status engine_batch_new(engine *e, engine_session *const *sessions, int n, engine_batch **out,
                             dsv4_error *err);
/* tokens [n]; logits NULL or [n][V]. */
dsv4_status engine_batch_append(engine_batch *b, const int32_t *tokens, float *logits,
                                dsv4_error *err);
void engine_batch_free(engine_batch *b);

/* Runs cases[0..n): each one's tokens are a prefix of the last one's (n = 1: no sharing), so that
 * one pass serves them all. taps[i] hears case i. mtp: run the
 * MTP layer too; chunk: tokens of a prefill block, 0 = the engine's own. */
dsv4_status engine_run(engine *e, const vec_case *const *cases, const dsv4_taps *const *taps,
                       size_t n, bool mtp, int chunk, dsv4_error *err);
/* Does it compute (and not only read a dump)? */
bool engine_computes(const engine *e);
/* The operator table it computes with; NULL for dumps and for engines that have none. Engine cpu
 * shares the operators of its level out to threads: its conversations call them by way of its own.
 */
const dsv4_ops *engine_ops(const engine *e);
/* The dump behind a dump engine. */
const vec_file *engine_dump(const engine *e);

/* ==== progress.c ============================================================================= */

typedef struct {
    bool on; /* stderr is a terminal and nobody asked for silence */
    size_t done, total;
    double started;
} progress;
void progress_start(progress *p, size_t total, bool wanted);
void progress_step(progress *p, const char *what);
/* The same line with another text, without a step: "linear, run 3 of 200". */
void progress_note(progress *p, const char *what);
/* Makes room for a line of output on the same terminal. */
void progress_clear(const progress *p);
void progress_end(progress *p);
double now_seconds(void);

/* ==== recorder.c: dumps ======================================================================= */

/* Appends a case's taps to a vector file as an engine computes them: what `record` does. positions
 * [n] ascending; glob NULL = every tap. */
typedef struct recorder recorder;
dsv4_status recorder_new(const dsv4_config *config, const vec_case *c, const int64_t *positions,
                         int64_t n, const char *glob, recorder **out, dsv4_error *err);
const dsv4_taps *recorder_taps(recorder *r);
dsv4_status recorder_write(recorder *r, vec_writer *w, dsv4_error *err);
void recorder_free(recorder *r);

/* "0,5,17-20" within [0, context), rising; NULL = all. Caller frees. */
dsv4_status parse_positions(const char *list, int64_t context, int64_t **out, int64_t *n,
                            dsv4_error *err);
/* Runs one case and writes what the engine computes at the case's positions. */
dsv4_status record_case(engine *e, const dsv4_model *m, const vec_case *c, const char *taps_glob,
                        int chunk, vec_writer *w, dsv4_error *err);
typedef struct {
    const char *case_glob, *tap_glob;
    const char *positions; /* list, NULL = the file's own */
    bool every_position;   /* all of them, whatever the file has */
    int chunk;
    progress *progress; /* or NULL */
} record_options;
/* Every case of a vector file that the glob admits. */
dsv4_status record_cases(engine *e, const dsv4_model *m, const vec_file *f, const record_options *o,
                         vec_writer *w, dsv4_error *err);

/* ==== options.c: what the commands share ===================================================== */

typedef struct {
    const char **items; /* [n] */
    size_t n;
} option_list;

typedef struct {
    const char *model, *mtp, *engine, *numerics, *mode, *budgets, *case_glob, *tap_glob;
    const char *json, *junit, *html, *markdown, *waivers, *baseline, *out, *tokens, *positions,
        *weights_from, *format, *context;
    const char **vectors; /* [n_vectors] */
    size_t n_vectors;
    const char *reference, *reference_store, *store, *profile; /* signoff */
    option_list candidates, texts;
    int64_t windows, window, stride, seed, keep; /* 0 = not given */
    int64_t detail, full_every;                  /* -1 = not given */
    bool ablate;
    const char **rest; /* [n_rest] operands */
    size_t n_rest;
    int threads;
    int64_t prefill, decode;
    int sequences; /* decoded together; 0 = not given */
    bool quiet, no_progress, same_weights, no_share, no_replay, check, tensors, keys, help;
    int chunk, repeat;
    const char *captured, *bundle, *model_dir, *sha256;
    bool any_count;
    /* capture */
    const char *url, *prompts, *key_env, *extra;
    int64_t top, max_tokens, retries, timeout; /* -1 = not given */
    double backoff, rate;                      /* -1 = not given */
    bool stream, chat, completions;
} options;

/* Parses argv against a list of long option names ("model", "vectors", ...). An unknown option, a
 * missing value or an operand that is not wanted is one line on stderr and DSV4_E_INPUT. */
dsv4_status options_parse(int argc, char **argv, const char *const *allowed, options *out,
                          dsv4_error *err);
void options_free(options *o);
/* Prints "dsv4check: message" and returns the exit code of the status. */
int report_failure(dsv4_status status, const dsv4_error *err);
/* Does a name match one of the globs between '|' ("streams|logits")? NULL matches everything. */
bool name_matches(const char *globs, const char *name);
/* A copy on the heap; NULL on a lack of memory. */
char *text_copy(const char *s);
/* The command line as one string, quoted where needed; caller frees. */
char *command_line(int argc, char **argv);

/* ==== commands: one file each, cmd_<name>.c ================================================== */

int cmd_layers(int argc, char **argv);
int cmd_diff(int argc, char **argv);
int cmd_record(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_list(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_noise(int argc, char **argv);
int cmd_quants(int argc, char **argv);
int cmd_consistency(int argc, char **argv);
int cmd_capture(int argc, char **argv);
int cmd_import(int argc, char **argv);
int cmd_verify(int argc, char **argv);

#endif
