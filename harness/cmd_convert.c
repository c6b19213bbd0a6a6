/* cmd_convert.c - dsv4check convert IN OUT: another container, the same values. */
#include <stdio.h>
#include <string.h>

#include "make_model.h"

static const char help[] =
    "usage: dsv4check convert IN OUT [options]\n\n"
    "Writes the model IN (GGUF, release directory, MLX directory) in another container without\n"
    "changing a value. FP4 experts become MXFP4 in GGUF; FP8 becomes BF16, which holds it "
    "exactly;\n"
    "on the way back FP4 and FP8 are found again wherever they hold the values.\n\n"
    "  --to gguf|release|mlx  container; by default GGUF if OUT ends in .gguf, else a release\n"
    "  --mtp FILE             MTP layer of IN held in a second file\n"
    "  --mtp-out FILE         write the MTP layer to a GGUF file of its own\n"
    "  --shards N             number of files OUT is split into\n"
    "  --threads N            default: all\n"
    "  --quiet, --no-progress\n";

static bool is_vector_class(const weight *w)
{
    return w->kind == W_NORM || w->kind == W_SMALL;
}

/* GGUF: every type GGUF has stays; the release's and MLX's go where they fit exactly. */
static encoding gguf_encoding(const weight *w)
{
    encoding e = {.type = w->views[0].type};
    if (w->kind == W_TABLE)
        e.type = DSV4_I32;
    else if (is_vector_class(w))
        e.type = DSV4_F32;
    else if (e.type == DSV4_FP4)
        e.type = DSV4_MXFP4;
    else if (e.type == DSV4_FP8)
        e.type = DSV4_BF16; /* 4 significant bits; the exponents are float32's */
    else if (e.type == DSV4_MLX4 || e.type == DSV4_MLX8)
        e.type = DSV4_F32;
    return e;
}

static bool uniform(const weight *w)
{
    for (int64_t e = 1; e < w->experts; e++)
        if (w->views[e].type != w->views[0].type)
            return false;
    return true;
}

/* The first candidate that holds every value; F32 always does. */
static dsv4_status first_exact(const weight *w, const dsv4_type *candidates, int n, int threads,
                               encoding *out, dsv4_error *err)
{
    for (int i = 0; i < n; i++) {
        bool exact;
        *out = (encoding){.type = candidates[i]};
        dsv4_status status = weight_is_exact(w, out, threads, &exact, err);
        if (status != DSV4_OK || exact)
            return status;
    }
    *out = (encoding){.type = DSV4_F32};
    return DSV4_OK;
}

typedef struct {
    container to;
    int threads;
} wish;

static dsv4_status choose(void *ctx, const weight *w, encoding *out, dsv4_error *err)
{
    container to = ((const wish *)ctx)->to;
    int threads = ((const wish *)ctx)->threads;
    dsv4_type now = w->views[0].type;
    bool same = uniform(w);
    if (to == TO_GGUF) {
        *out = gguf_encoding(w);
        if (!same) {
            const dsv4_type any[] = {DSV4_MXFP4, DSV4_BF16};
            return first_exact(w, any, 2, threads, out, err);
        }
        return DSV4_OK;
    }
    if (w->kind == W_TABLE) {
        out->type = to == TO_MLX ? DSV4_I32 : DSV4_I64;
        return DSV4_OK;
    }
    if (to == TO_MLX) {
        *out = (encoding){.type = now};
        if (same && (now == DSV4_MLX4 || now == DSV4_MLX8)) {
            out->group = w->views[0].scale_cols;
            out->scale_type = w->views[0].scale_type;
            return DSV4_OK;
        }
        const dsv4_type any[] = {DSV4_FP4, DSV4_BF16, DSV4_F16};
        bool codes = now == DSV4_FP4 || now == DSV4_MXFP4; /* mode mxfp4 */
        return first_exact(w, codes ? any : any + 1, codes ? 3 : 2, threads, out, err);
    }
    /* The release's type of the class, then what holds more. */
    const recipe *release = recipe_find("release");
    const dsv4_type candidates[] = {recipe_encoding(release, w).type, DSV4_BF16, DSV4_F16};
    return first_exact(w, candidates, 3, threads, out, err);
}

int cmd_convert(int argc, char **argv)
{
    static const char *const allowed[] = {"to", "mtp", "mtp-out", "shards", "threads", NULL};
    make_options o;
    dsv4_error err;
    container to = TO_RELEASE;
    encoder enc = {.exact = true};
    dsv4_status status = make_options_parse(argc, argv, allowed, 2, &o, &err);
    if (status == DSV4_OK && o.help) {
        fputs(help, stdout);
        return 0;
    }
    if (status == DSV4_OK) {
        size_t n = strlen(o.out);
        if (o.to == NULL)
            to = n > 5 && strcmp(o.out + n - 5, ".gguf") == 0 ? TO_GGUF : TO_RELEASE;
        else if (strcmp(o.to, "gguf") == 0)
            to = TO_GGUF;
        else if (strcmp(o.to, "mlx") == 0)
            to = TO_MLX;
        else if (strcmp(o.to, "release") != 0)
            status = dsv4_fail(&err, DSV4_E_INPUT,
                               "--to: expected gguf, release or mlx, found '%s'", o.to);
    }
    if (status == DSV4_OK) {
        wish w = {to, o.threads};
        chooser c = {&w, choose};
        status = make_model(&o, to, -1, -1, &c, &enc, &err);
    }
    return make_exit(&o, status, &err);
}
