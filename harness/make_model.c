/* make_model.c - options of the commands that make weight files, and writing one model from
 * another. */
#include "make_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "reference/checkpoint/metadata.h"

/* ---- options ------------------------------------------------------------------------------ */

typedef enum { TEXT, COUNT, SEED, FLAG } option_kind;

static const struct {
    const char *name;
    option_kind kind;
    size_t at;
    int low;
} known[] = {
    {"to", TEXT, offsetof(make_options, to), 0},
    {"recipe", TEXT, offsetof(make_options, recipe), 0},
    {"imatrix", TEXT, offsetof(make_options, imatrix), 0},
    {"importance", TEXT, offsetof(make_options, importance), 0},
    {"mtp", TEXT, offsetof(make_options, mtp), 0},
    {"mtp-out", TEXT, offsetof(make_options, mtp_out), 0},
    {"shape", TEXT, offsetof(make_options, shape), 0},
    {"shards", COUNT, offsetof(make_options, shards), 1},
    {"threads", COUNT, offsetof(make_options, threads), 1},
    {"layers", COUNT, offsetof(make_options, layers), 1},
    {"seed", SEED, offsetof(make_options, seed), 0},
    {"quiet", FLAG, offsetof(make_options, quiet), 0},
    {"no-progress", FLAG, offsetof(make_options, no_progress), 0},
    {"help", FLAG, offsetof(make_options, help), 0},
};
enum { N_KNOWN = sizeof known / sizeof *known };

static bool takes(const char *const *allowed, const char *name)
{
    for (size_t i = 0; allowed[i] != NULL; i++)
        if (strcmp(allowed[i], name) == 0)
            return true;
    return strcmp(name, "quiet") == 0 || strcmp(name, "no-progress") == 0 ||
           strcmp(name, "help") == 0;
}

static dsv4_status set_option(make_options *o, int index, const char *text, dsv4_error *err)
{
    void *to = (char *)o + known[index].at;
    char *end;
    if (known[index].kind == FLAG) {
        *(bool *)to = true;
    } else if (known[index].kind == TEXT) {
        *(const char **)to = text;
    } else {
        long long v = strtoll(text, &end, 10);
        if (end == text || *end != '\0' || v < known[index].low ||
            (known[index].kind == COUNT && v > 1000000))
            return dsv4_fail(err, DSV4_E_INPUT, "--%s: expected a number from %d up, found '%s'",
                             known[index].name, known[index].low, text);
        if (known[index].kind == COUNT)
            *(int *)to = (int)v;
        else
            *(uint64_t *)to = (uint64_t)v;
    }
    return DSV4_OK;
}

dsv4_status make_options_parse(int argc, char **argv, const char *const *allowed, int n_files,
                               make_options *o, dsv4_error *err)
{
    struct option table[N_KNOWN + 1] = {{0}};
    int numbers[N_KNOWN], n = 0, c, index = 0;
    *o = (make_options){.command = argv[0], .layers = -1};
    for (int i = 0; i < N_KNOWN; i++) {
        if (!takes(allowed, known[i].name))
            continue;
        table[n] = (struct option){
            known[i].name, known[i].kind == FLAG ? no_argument : required_argument, NULL, 1};
        numbers[n++] = i;
    }
    optind = 0; /* start anew: several commands may run in one process */
    opterr = 0;
    while ((c = getopt_long(argc, argv, ":", table, &index)) != -1) {
        if (c != 1)
            return dsv4_fail(err, DSV4_E_INPUT, "%s: %s '%s' (--help lists the options)",
                             o->command, c == ':' ? "no value after" : "unknown option",
                             argv[optind - 1]);
        dsv4_status status = set_option(o, numbers[index], optarg, err);
        if (status != DSV4_OK)
            return status;
    }
    if (o->help)
        return DSV4_OK;
    if (argc - optind != n_files)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: expected %s, found %d file names (--help)",
                         o->command, n_files == 2 ? "IN and OUT" : "OUT", argc - optind);
    if (o->threads == 0)
        o->threads = threads_of_machine();
    o->out = argv[optind + n_files - 1];
    o->in = n_files == 2 ? argv[optind] : NULL;
    return DSV4_OK;
}

int make_exit(const make_options *o, dsv4_status status, const dsv4_error *err)
{
    (void)o;
    if (status != DSV4_OK)
        fprintf(stderr, "dsv4check: %s\n", err->text);
    return status;
}

void make_report(const make_options *o, const char *path, const model_output *out, double seconds)
{
    if (o->quiet)
        return;
    printf("%s: %zu weights, %.1f MB in %.2f s, %.0f MB/s\n", path, out->weights.count,
           (double)out->written / 1e6, seconds,
           seconds > 0 ? (double)out->written / 1e6 / seconds : 0.0);
}

void make_name(const char *path, char out[128])
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    size_t start = n;
    while (start > 0 && path[start - 1] != '/')
        start--;
    if (n - start > 5 && strncmp(path + n - 5, ".gguf", 5) == 0)
        n -= 5;
    snprintf(out, 128, "%.*s", (int)(n - start < 120 ? n - start : 120), path + start);
}

/* ---- one model from another --------------------------------------------------------------- */

/* general.file_type of a conversion: the source's own, else after its experts' type. */
static int file_type_of(const dsv4_model *m, const weight_list *l, const encoding *encodings)
{
    dsv4_key_value v;
    uint32_t type;
    if (dsv4_model_key(m, "general.file_type", &v) && v.bytes == sizeof type) {
        memcpy(&type, v.data, sizeof type);
        return (int)type;
    }
    for (size_t i = 0; i < l->count; i++)
        if (l->items[i].kind == W_EXPERT_GATE_UP)
            switch (encodings[i].type) {
            case DSV4_MXFP4:
                return 38;
            case DSV4_BF16:
                return 32;
            case DSV4_F16:
                return 1;
            default:
                return 0;
            }
    return 0;
}

/* The notes that go with the output: of everything, so that the trunk's file speaks for the MTP
 * layer's too. */
static dsv4_status collect_notes(const dsv4_model *m, const chooser *c, int threads,
                                 scale_notes *out, dsv4_error *err)
{
    weight_list all;
    dsv4_status status = weights_list(m, WEIGHTS_ALL, &all, err);
    if (status != DSV4_OK)
        return status;
    encoding *encodings = dsv4_alloc(all.count, sizeof *encodings, "encodings", err);
    if (encodings == NULL)
        status = DSV4_E_MACHINE;
    for (size_t i = 0; i < all.count && status == DSV4_OK; i++)
        status = c->choose(c->ctx, &all.items[i], &encodings[i], err);
    if (status == DSV4_OK)
        status = scale_notes_collect(&all, encodings, threads, out, err);
    free(encodings);
    weights_free(&all);
    return status;
}

static dsv4_status write_part(const make_options *o, const dsv4_model *m, weight_part part,
                              const char *path, container to, int file_type, const chooser *c,
                              encoder *enc, dsv4_error *err)
{
    char name[128];
    scale_notes notes = {0};
    double started = now_seconds();
    model_output out = {
        .config = &m->config,
        .name = name,
        .source = m,
        .maker = encoder_maker(enc),
        .file_type = file_type,
        .shards = part == WEIGHTS_MTP ? 1 : o->shards,
        .threads = o->threads,
        .imatrix_path = o->imatrix,
        .imatrix_entries = enc->importance != NULL ? imatrix_entries(enc->importance) : 0,
        .progress = !o->quiet && !o->no_progress,
    };
    encoding *encodings = NULL;
    make_name(dsv4_model_path(m), name);
    dsv4_status status = weights_list(m, part, &out.weights, err);
    if (status != DSV4_OK)
        return status;
    if (to != TO_RELEASE && part != WEIGHTS_MTP)
        status = collect_notes(m, c, o->threads, &notes, err);
    out.notes = notes.count > 0 ? &notes : enc->notes; /* from file to file they stay */
    if (status == DSV4_OK) {
        encodings = dsv4_alloc(out.weights.count, sizeof *encodings, "encodings", err);
        if (encodings == NULL)
            status = DSV4_E_MACHINE;
    }
    for (size_t i = 0; i < out.weights.count && status == DSV4_OK; i++)
        status = c->choose(c->ctx, &out.weights.items[i], &encodings[i], err);
    out.encodings = encodings;
    if (status == DSV4_OK && file_type < 0)
        out.file_type = file_type_of(m, &out.weights, encodings);
    if (status == DSV4_OK)
        status = to == TO_GGUF ? write_gguf(path, &out, err) : write_directory(path, to, &out, err);
    if (status == DSV4_OK)
        make_report(o, path, &out, now_seconds() - started);
    free(encodings);
    scale_notes_free(&notes);
    weights_free(&out.weights);
    return status;
}

dsv4_status make_model(const make_options *o, container to, int file_type, int mtp_file_type,
                       const chooser *c, encoder *enc, dsv4_error *err)
{
    dsv4_model *m = NULL;
    scale_notes notes = {0};
    dsv4_status status = DSV4_OK;
    if (o->mtp_out != NULL && to != TO_GGUF)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "--mtp-out: only a GGUF output leaves the MTP layer to a file of its own");
    if (o->mtp_out != NULL && strcmp(o->mtp_out, o->out) == 0)
        return dsv4_fail(err, DSV4_E_INPUT, "--mtp-out: expected another file than OUT");
    status = dsv4_model_open(o->in, &m, err);
    if (status == DSV4_OK && o->mtp != NULL)
        status = dsv4_model_add_mtp(m, o->mtp, err);
    if (status == DSV4_OK && o->mtp_out != NULL && m->mtp == NULL)
        status = dsv4_fail(err, DSV4_E_INPUT, "--mtp-out: %s holds no MTP layer", o->in);
    if (status == DSV4_OK)
        status = scale_notes_read(m, &notes, err);
    if (status == DSV4_OK) {
        enc->model = o->in;
        enc->notes = &notes;
        status = write_part(o, m, to == TO_GGUF ? WEIGHTS_TRUNK : WEIGHTS_ALL, o->out, to,
                            file_type, c, enc, err);
    }
    if (status == DSV4_OK && o->mtp_out != NULL)
        status = write_part(o, m, WEIGHTS_MTP, o->mtp_out, to, mtp_file_type, c, enc, err);
    if (status == DSV4_OK && to == TO_GGUF && m->mtp != NULL && o->mtp_out == NULL && !o->quiet)
        printf("%s: without the MTP layer (--mtp-out FILE writes it)\n", o->out);
    scale_notes_free(&notes);
    dsv4_model_close(m);
    return status;
}
