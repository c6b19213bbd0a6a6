/* runner.h - what layers and diff share: a set of golden files judged against one engine. */
#ifndef DSV4_RUNNER_H
#define DSV4_RUNNER_H

#include "harness.h"

typedef struct {
    engine *e;
    const dsv4_model *model; /* NULL for dumps */
    dsv4_numerics numerics;
    weights_class weights;
    const char *weights_format; /* of other weights */
    const budget_table *budgets;
    const char *case_glob, *tap_glob;
    const char *command; /* start of the replay lines */
    int threads, chunk;
    bool share;     /* cases whose tokens are a prefix of a longer case's ride on its run */
    bool replay;    /* golden selections and rounded rows in place of ties and flips */
    bool no_causes; /* do not look for likely causes */
    bool shadow;    /* golden values in place of everything compared: local errors */
    bool local;     /* shadow, the golden file being a recorded run (judge_options) */
    progress *progress;
} run_options;

/* Judges every case of a golden file that the glob admits; results in case order. */
dsv4_status run_cases(const vec_file *golden, const dsv4_config *config, const run_options *o,
                      results *out, dsv4_error *err);

/* What --mode asks for. */
typedef enum { MODE_FREE, MODE_SHADOW, MODE_BOTH } run_mode;
bool run_mode_parse(const char *text, run_mode *out);
const char *run_mode_name(run_mode m);

/* shadow.c: run_cases in one of the modes. MODE_BOTH runs twice; results are the free run's, each
 * with its local error beside it, and fail if either does. */
dsv4_status run_cases_mode(const vec_file *golden, const dsv4_config *config, const run_options *o,
                           run_mode mode, results *out, dsv4_error *err);

/* Does the glob admit the case? Cases of the file that it admits. */
bool case_admitted(const vec_case *c, const char *glob);
size_t count_cases(const vec_file *golden, const char *glob);

/* The numerics a file was made with, from its attribute ("math: ..."). */
dsv4_status file_numerics(const vec_file *f, dsv4_numerics *out, dsv4_error *err);

/* The config of a file, from its attribute. */
dsv4_status file_config(const vec_file *f, dsv4_config *out, dsv4_error *err);

/* Every weight of the model must be a finite number; names the first tensor that is not. */
dsv4_status check_weights(const dsv4_model *m, dsv4_error *err);

/* affine.c: the groups of an MLX model must hold zero; one result per layer, case "weights". A
 * model without affine weights adds none. */
dsv4_status check_affine(const dsv4_model *m, const budget_table *budgets, results *out,
                         dsv4_error *err);

/* What every command with a results model does first, before the long part: says which command it
 * is (a static string) and where it comes from, reads --waivers and --baseline. */
dsv4_status begin_run(results *r, const options *o, const char *command,
                      const budget_table *budgets, dsv4_error *err);

/* The parts of finish_run, for commands with a text of their own. */
dsv4_status settle_results(results *r, double started, dsv4_error *err);
dsv4_status write_reports(const results *r, const options *o, dsv4_error *err);

/* And last: waivers, baseline, verdict; text on the terminal, the reports that were asked for.
 * Returns the exit code. */
int finish_run(results *r, const options *o, double started);

#endif
