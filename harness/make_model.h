/* make_model.h - what convert, quantize and synth share: their options, and one model written from
 * another. */
#ifndef DSV4_MAKE_MODEL_H
#define DSV4_MAKE_MODEL_H

#include <getopt.h>

#include "recipes.h"

typedef struct {
    const char *command; /* argv[0] */
    const char *in, *out;
    const char *to, *recipe, *imatrix, *importance, *mtp, *mtp_out, *shape;
    int shards;  /* 0 = as usual */
    int threads; /* 0 = all of the machine's */
    int layers;  /* -1 = all of the shape */
    uint64_t seed;
    bool quiet, no_progress, help;
} make_options;

/* allowed: names of the options the command takes, NULL-terminated; n_files: 2 = IN OUT, 1 = OUT.
 * Every error is one line. */
dsv4_status make_options_parse(int argc, char **argv, const char *const *allowed, int n_files,
                               make_options *o, dsv4_error *err);

/* Chooses the encoding of a weight that stands in the source. */
typedef struct {
    void *ctx;
    dsv4_status (*choose)(void *ctx, const weight *w, encoding *out, dsv4_error *err);
} chooser;

/* Opens o->in (and o->mtp), writes o->out in container `to` and, for GGUF, the MTP layer to
 * o->mtp_out. file_type: general.file_type, -1 = as the source's. Prints one line a file. */
dsv4_status make_model(const make_options *o, container to, int file_type, int mtp_file_type,
                       const chooser *c, encoder *enc, dsv4_error *err);

/* One line about a written file: size, time, speed. */
void make_report(const make_options *o, const char *path, const model_output *out, double seconds);
/* Prints the error and gives the exit code. */
int make_exit(const make_options *o, dsv4_status status, const dsv4_error *err);
/* The last part of a path, without .gguf: a model's name. */
void make_name(const char *path, char out[128]);

#endif
