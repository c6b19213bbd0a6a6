/* cmd_layers.c - the main job: a model, an engine, golden files; every tap of every layer and the
 * logits compared, a verdict, and where it first goes wrong. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reference/formats/formats.h"
#include "runner.h"

static const char help[] =
    "usage: dsv4check layers --model M --vectors F.h5 [--vectors G.h5 ...] [options]\n"
    "\n"
    "Runs the model with an engine over the golden cases and compares every tap the files hold,\n"
    "layer by layer, and the logits. Exit 0 passed, 1 failed, 2 bad input, 3 the machine failed.\n"
    "\n"
    "  --engine E       ref (default), cpu (the fastest of this machine), cpu:LEVEL (scalar, "
    "avx2,\n"
    "                   avx512, neon), cpu:float or cpu:LEVEL:float (activations stay float32 "
    "where cpu\n"
    "                   rounds them to 8 bits: dsv4check list engines), or dump:FILE.h5, "
    "somebody's\n"
    "                   recorded run. It needs no --model; with one, and with the streams of "
    "every\n"
    "                   position in the dump, each layer is also held against the reference on "
    "the\n"
    "                   dump's own streams of the layer before\n"
    "  --numerics N     math, qat, deployed, or auto (default: what the file was made with)\n"
    "  --mode M         free (default): the engine runs on with its own values; shadow: golden's "
    "values\n"
    "                   take the place of every tap once it is compared, so that errors are local; "
    "both\n"
    "  --case GLOB      only these cases          --taps GLOB   only these taps\n"
    "  --mtp FILE       the MTP layer, if it has a file of its own\n"
    "  --weights-from W compare with the reference run on W's decoded weights (a model in any\n"
    "                   format), at the golden cases: implementation error, free of format error\n"
    "  --same-weights   the model's weights are the file's, whatever the hashes say\n"
    "  --no-share       run every case from its first token, not on a longer case's run\n"
    "  --no-replay      after a tie or a rounding flip go on with the engine's own choice\n"
    "  --chunk N        tokens of a prefill block\n"
    "  --threads N      (2) for cases run in parallel, or, where there are fewer cases (or runs\n"
    "                   that they share), for the engine: cpu; results do not depend on it\n"
    "  --budgets FILE   other tolerances than the built-in table (dsv4check list budgets)\n"
    "  --json FILE  --junit FILE  --markdown FILE  --html FILE   reports\n"
    "  --bundle FILE.tar   statement, reports and hashes in one file (dsv4check verify)\n"
    "  --waivers FILE   failures that somebody answers for (README: Waivers)\n"
    "  --baseline FILE  the JSON report of an earlier run: what got worse, better, new, gone\n"
    "  --quiet  --no-progress\n";

static const char *const allowed[] = {
    "model",        "vectors",   "engine",       "numerics", "mode",        "case",     "taps",
    "mtp",          "bundle",    "json",         "junit",    "html",        "markdown", "waivers",
    "baseline",     "threads",   "quiet",        "chunk",    "no-progress", "no-share", "budgets",
    "same-weights", "no-replay", "weights-from", NULL};

/* The start of replay lines: this command without its case and tap filters and reports. */
static char *replay_command(const options *o, const char *file, const char *name)
{
    size_t size = strlen(file) + strlen(name) + 160;
    if (o->model != NULL)
        size += strlen(o->model);
    if (o->mtp != NULL)
        size += strlen(o->mtp);
    if (o->weights_from != NULL)
        size += strlen(o->weights_from);
    char *line = dsv4_alloc(size, 1, "a replay line", NULL);
    if (line == NULL)
        return NULL;
    char *p = line + sprintf(line, "dsv4check layers");
    if (o->model != NULL)
        p += sprintf(p, " --model %s", o->model);
    if (o->mtp != NULL)
        p += sprintf(p, " --mtp %s", o->mtp);
    p += sprintf(p, " --vectors %s --engine %s", file, name);
    if (o->numerics != NULL && strlen(o->numerics) < 16)
        p += sprintf(p, " --numerics %s", o->numerics);
    if (o->mode != NULL && strlen(o->mode) < 16)
        p += sprintf(p, " --mode %s", o->mode);
    if (o->weights_from != NULL)
        p += sprintf(p, " --weights-from %s", o->weights_from);
    if (o->same_weights)
        p += sprintf(p, " --same-weights");
    return line;
}

/* Do the weights belong to the golden file? A safetensors model must match its hash. */
static dsv4_status compare_weights(const options *o, const dsv4_model *m, const vec_file *golden,
                                   const char *sha, weights_class *weights, results *r,
                                   dsv4_error *err)
{
    const char *expected = vec_attribute(golden, "weights_sha256");
    *weights = WEIGHTS_EXACT;
    if (o->same_weights || o->weights_from != NULL ||
        (expected != NULL && strcmp(expected, sha) == 0))
        return DSV4_OK;
    if (strcmp(dsv4_model_container(m), "safetensors") == 0)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: weights_sha256: expected the model's %s, found %s (--same-weights if "
                         "they are the same weights all the same)",
                         vec_path(golden), sha, expected != NULL ? expected : "nothing");
    *weights = WEIGHTS_OTHER;
    if (!results_note(r,
                      "other weights: %s does not match %s's weights_sha256; what is reported is "
                      "format error, not the engine's",
                      dsv4_model_path(m), vec_path(golden)))
        return dsv4_fail(err, DSV4_E_MACHINE, "out of memory for results");
    return DSV4_OK;
}

/* A model and a file are of one shape if each tap has the same shape in both. */
static dsv4_status same_shape(const dsv4_config *m, const dsv4_config *f, const char *file,
                              dsv4_error *err)
{
    if (m->num_hidden_layers != f->num_hidden_layers)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: config: expected the model's %d layers, found %d",
                         file, m->num_hidden_layers, f->num_hidden_layers);
    for (int id = 0; id < DSV4_TAP_COUNT; id++) {
        int64_t a[2], b[2];
        dsv4_tap_shape((dsv4_tap_id)id, m, a);
        dsv4_tap_shape((dsv4_tap_id)id, f, b);
        if (a[0] != b[0] || a[1] != b[1])
            return dsv4_fail(err, DSV4_E_INPUT,
                             "%s: config: tap %s: expected the model's [%lld][%lld], found "
                             "[%lld][%lld]",
                             file, dsv4_tap_name((dsv4_tap_id)id), (long long)a[0], (long long)a[1],
                             (long long)b[0], (long long)b[1]);
    }
    return DSV4_OK;
}

/* Golden rows of our own: the reference on the weights of --weights-from, at the cases and
 * positions of a golden file, written to a temporary file (removed when closed). */
static dsv4_status reference_rows(const options *o, const dsv4_model *weights,
                                  dsv4_numerics numerics, const vec_file *golden, progress *bar,
                                  vec_file **out, dsv4_error *err)
{
    const char *folder = getenv("TMPDIR");
    char path[1024];
    char *config = NULL;
    engine *ref = NULL;
    vec_writer *w = NULL;
    int n = snprintf(path, sizeof path, "%s/dsv4check-%ld-reference.h5",
                     folder != NULL ? folder : "/tmp", (long)getpid());
    if (n < 0 || (size_t)n >= sizeof path)
        return dsv4_fail(err, DSV4_E_INPUT, "TMPDIR: the path is too long");
    dsv4_status status = dsv4_config_write(&weights->config, &config, err);
    if (status == DSV4_OK)
        status = engine_open("ref", weights, &(engine_options){.numerics = numerics}, &ref, err);
    vec_writer_info info = {.model = o->weights_from,
                            .weights_sha256 = "",
                            .config = config,
                            .producer = "dsv4check reference on the same decoded weights",
                            .numerics = dsv4_numerics_name(numerics)};
    record_options ro = {.case_glob = o->case_glob, .tap_glob = o->tap_glob, .progress = bar};
    if (status == DSV4_OK)
        status = vec_writer_new(path, &info, &w, err);
    if (status == DSV4_OK)
        status = record_cases(ref, weights, golden, &ro, w, err);
    if (status == DSV4_OK)
        status = vec_writer_commit(w, err);
    else if (w != NULL)
        vec_writer_abort(w);
    if (status == DSV4_OK)
        status = vec_open(path, out, err);
    unlink(path); /* the open file stays readable, and goes when it is closed */
    engine_close(ref);
    free(config);
    return status;
}

typedef struct {
    const options *o;
    dsv4_model *weights; /* of --weights-from, or NULL */
    dsv4_model *model;
    char sha[65];
    run_mode mode;
    budget_table budgets;
    progress progress;
    const char *engine_name;
} context;

static dsv4_status one_file(context *x, vec_file *given, results *r, dsv4_error *err)
{
    const options *o = x->o;
    vec_file *golden = given, *own = NULL;
    dsv4_config config = {0};
    engine *e = NULL;
    char *command = NULL;
    char digest[65];
    run_options run = {
        .model = x->model,
        .budgets = &x->budgets,
        .case_glob = o->case_glob,
        .tap_glob = o->tap_glob,
        .threads = o->threads,
        .chunk = o->chunk,
        .replay = !o->no_replay,
        .progress = &x->progress,
    };
    dsv4_status status = file_config(golden, &config, err);
    if (status == DSV4_OK && x->model != NULL)
        status = same_shape(&x->model->config, &config, vec_path(golden), err);
    if (status != DSV4_OK)
        goto done;
    if (o->numerics == NULL || strcmp(o->numerics, "auto") == 0)
        status = file_numerics(golden, &run.numerics, err);
    else if (!dsv4_numerics_parse(o->numerics, &run.numerics))
        status =
            dsv4_fail(err, DSV4_E_INPUT,
                      "--numerics: expected math, qat, deployed or auto, found '%s'", o->numerics);
    if (status == DSV4_OK && x->model != NULL)
        status = compare_weights(o, x->model, golden, x->sha, &run.weights, r, err);
    if (status == DSV4_OK && x->weights != NULL) {
        status = reference_rows(o, x->weights, run.numerics, given, &x->progress, &own, err);
        if (status == DSV4_OK)
            golden = own;
    }
    if (status == DSV4_OK && (r->error == NULL || run.weights == WEIGHTS_OTHER))
        r->error = run.weights == WEIGHTS_OTHER ? "format" : "implementation";
    if (status == DSV4_OK)
        status = engine_open(x->engine_name, x->model, &(engine_options){.numerics = run.numerics},
                             &e, err);
    double hashing = now_seconds();
    if (status == DSV4_OK)
        status = file_sha256(vec_path(given), digest, err);
    r->timing.hash += now_seconds() - hashing;
    if (status != DSV4_OK)
        goto done;
    run.e = e;
    if (engine_is_dump(e) && !o->same_weights && o->weights_from == NULL) {
        const char *a = vec_attribute(golden, "weights_sha256");
        const char *b = vec_attribute(engine_dump(e), "weights_sha256");
        if (a != NULL && b != NULL && *a != '\0' && *b != '\0' && strcmp(a, b) != 0) {
            run.weights = WEIGHTS_OTHER;
            r->error = "format";
            if (!results_note(r,
                              "other weights: the dump's weights_sha256 is %.12s..., golden's "
                              "%.12s...; what is reported is format error, not the engine's",
                              b, a))
                status = dsv4_fail(err, DSV4_E_MACHINE, "out of memory for results");
        }
    }
    if (engine_is_dump(e) && status == DSV4_OK) {
        dsv4_numerics recorded;
        dsv4_error ignored;
        if (file_numerics(engine_dump(e), &recorded, &ignored) == DSV4_OK &&
            recorded != run.numerics &&
            !results_note(r, "the dump was recorded in %s numerics and is judged as %s",
                          dsv4_numerics_name(recorded), dsv4_numerics_name(run.numerics)))
            status = dsv4_fail(err, DSV4_E_MACHINE, "out of memory for results");
    }
    if (status != DSV4_OK)
        goto done;
    if (run.weights == WEIGHTS_OTHER && x->model != NULL) {
        /* Golden's choices in place of the model's would hide what the format does to them. */
        run.replay = false;
        run.weights_format =
            dsv4_format_of(x->model->layers[x->model->config.num_hidden_layers - 1].w1[0].type)
                ->name;
    }
    /* Where roundings can flip, every case has its run to itself, so that flips can be replayed. */
    run.share = !o->no_share && run.numerics == DSV4_MATH && !engine_is_dump(e);
    command = replay_command(o, vec_path(given), x->engine_name);
    run.command = command;
    if (r->numerics == NULL) {
        r->numerics = dsv4_alloc(16, 1, "results", err);
        if (r->numerics != NULL)
            strcpy(r->numerics, dsv4_numerics_name(run.numerics));
    }
    if (command == NULL || r->numerics == NULL ||
        !results_add_vectors(r, vec_path(given), digest, vec_attribute(golden, "producer")))
        status = dsv4_fail(err, DSV4_E_MACHINE, "out of memory for results");
    else
        status = run_cases_mode(golden, &config, &run, x->mode, r, err);
done:
    vec_close(own);
    free(command);
    engine_close(e);
    dsv4_config_free(&config);
    return status;
}

static dsv4_status check_usage(const options *o, bool dump, dsv4_error *err)
{
    if (o->n_rest > 0)
        return dsv4_fail(err, DSV4_E_INPUT, "layers takes no operand, found '%s'", o->rest[0]);
    if (o->n_vectors == 0)
        return dsv4_fail(err, DSV4_E_INPUT, "layers needs --vectors F.h5 (see --help)");
    if (o->model == NULL && !dump)
        return dsv4_fail(err, DSV4_E_INPUT, "layers needs --model M (see --help)");
    run_mode mode;
    if (o->mode != NULL && !run_mode_parse(o->mode, &mode))
        return dsv4_fail(err, DSV4_E_INPUT, "--mode: expected free, shadow or both, found '%s'",
                         o->mode);
    if (o->mode != NULL && mode != MODE_FREE && dump)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "--mode %s: a recorded run cannot be given golden's values; a dump can "
                         "only be compared free",
                         o->mode);
    return DSV4_OK;
}

int cmd_layers(int argc, char **argv)
{
    double started = now_seconds();
    dsv4_error err = {""};
    options o;
    results r;
    context x = {.o = &o};
    vec_file **files = NULL;
    int code = 0;
    dsv4_status status = options_parse(argc, argv, allowed, &o, &err);
    if (status != DSV4_OK)
        return report_failure(status, &err);
    results_init(&r);
    if (o.help) {
        fputs(help, stdout);
        goto done;
    }
    x.engine_name = o.engine != NULL ? o.engine : "ref";
    bool dump = strncmp(x.engine_name, "dump:", 5) == 0;
    status = check_usage(&o, dump, &err);
    if (status == DSV4_OK)
        status = budgets_load(o.budgets, &x.budgets, &err);
    if (status == DSV4_OK)
        status = begin_run(&r, &o, "layers", &x.budgets, &err);
    files = status == DSV4_OK ? dsv4_alloc(o.n_vectors, sizeof *files, "files", &err) : NULL;
    if (status == DSV4_OK && files == NULL)
        status = DSV4_E_MACHINE;
    size_t cases = 0;
    for (size_t i = 0; i < o.n_vectors && status == DSV4_OK; i++) {
        status = vec_open(o.vectors[i], &files[i], &err);
        if (status == DSV4_OK)
            cases += count_cases(files[i], o.case_glob);
    }
    double loading = now_seconds();
    if (status == DSV4_OK && o.model != NULL)
        status = dsv4_model_open(o.model, &x.model, &err);
    if (status == DSV4_OK && o.mtp != NULL && x.model != NULL)
        status = dsv4_model_add_mtp(x.model, o.mtp, &err);
    if (status == DSV4_OK && x.model != NULL)
        status = check_weights(x.model, &err);
    if (status == DSV4_OK && x.model != NULL)
        status = dsv4_model_sha256(x.model, x.sha, &err);
    if (status == DSV4_OK && o.weights_from != NULL)
        status = dsv4_model_open(o.weights_from, &x.weights, &err);
    if (status == DSV4_OK && o.weights_from != NULL && o.mtp != NULL)
        status = dsv4_model_add_mtp(x.weights, o.mtp, &err);
    if (status == DSV4_OK && x.weights != NULL)
        status = check_weights(x.weights, &err);

    r.timing.load = now_seconds() - loading;
    if (status == DSV4_OK && x.model != NULL)
        r.model_sha256 = text_copy(x.sha);
    r.argv = command_line(argc, argv);
    r.model = text_copy(o.model != NULL ? o.model : "");
    r.engine = text_copy(x.engine_name);
    if (o.mode != NULL)
        run_mode_parse(o.mode, &x.mode);
    r.mode = text_copy(run_mode_name(x.mode));
    /* With --weights-from each is run by the reference first. */
    cases *= (size_t)(1 + (o.weights_from != NULL) + (x.mode == MODE_BOTH || (dump && x.model)));
    progress_start(&x.progress, cases, !o.quiet && !o.no_progress);
    if (status == DSV4_OK && x.model != NULL)
        status = check_affine(x.model, &x.budgets, &r, &err);
    for (size_t i = 0; i < o.n_vectors && status == DSV4_OK; i++)
        status = one_file(&x, files[i], &r, &err);
    progress_end(&x.progress);
    if (status == DSV4_OK)
        code = finish_run(&r, &o, started);
done:
    if (status != DSV4_OK)
        code = report_failure(status, &err);
    for (size_t i = 0; files != NULL && i < o.n_vectors; i++)
        vec_close(files[i]);
    free(files);
    results_free(&r);
    budgets_free(&x.budgets);
    dsv4_model_close(x.model);
    dsv4_model_close(x.weights);
    options_free(&o);
    return code;
}
