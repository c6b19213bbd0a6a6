/* recipes.h - making weight files: what a model's weights are, in which type each class of them is
 * stored, and the writers of the containers. */
#ifndef DSV4_RECIPES_H
#define DSV4_RECIPES_H

#include "reference/dsv4.h"
#include "reference/formats/formats.h"

/* ==== the weights of a model (recipes.c) ==================================================== */

/* Recipes choose by these. */
typedef enum {
    W_EMBED,
    W_HEAD,
    W_EXPERT_GATE_UP, /* w1, w3 */
    W_EXPERT_DOWN,    /* w2 */
    W_SHARED_GATE_UP,
    W_SHARED_DOWN,
    W_ATTENTION, /* wq_a, wq_b, wkv, wo_a, wo_b */
    W_MTP_PROJ,  /* e_proj, h_proj */
    W_INDEXER_Q,
    W_INDEXER_PROJ,
    W_COMPRESSOR, /* wkv, wgate; the indexer's too */
    W_APE,
    W_ROUTER,
    W_HC_FN,
    W_NORM,
    W_SMALL, /* sinks, router bias, HC base and scale */
    W_TABLE, /* tid2eid */
    W_CLASS_COUNT,
} weight_class;

typedef struct {
    char name[96]; /* official; of expert 0 when stacked */
    weight_class kind;
    bool vector;     /* one axis */
    int layer;       /* -1 = outside the layers; MTP layers follow the others */
    int64_t experts; /* matrices of one shape that GGUF stacks; 0 = a tensor of its own */
    int64_t rows, cols;
    const dsv4_tensor *views; /* [experts or 1]; NULL in a model that is only a shape */
} weight;

typedef struct {
    weight *items;
    size_t count;
} weight_list;

/* Every tensor that a model of this config has, in the order of the published files. m->layers may
 * be NULL (a shape alone). mtp_only: the MTP layer's alone; else `mtp` says whether it comes last.
 */
typedef enum { WEIGHTS_TRUNK, WEIGHTS_ALL, WEIGHTS_MTP } weight_part;
dsv4_status weights_list(const dsv4_model *m, weight_part part, weight_list *out, dsv4_error *err);
void weights_free(weight_list *l);
/* Official name of matrix `e` of a weight. */
void weight_name(const weight *w, int64_t e, char out[96]);

/* ==== encodings and recipes (recipes.c) ====================================================== */

typedef struct {
    dsv4_type type;
    int group;            /* MLX */
    dsv4_type scale_type; /* MLX */
} encoding;

/* Bytes of one matrix: codes, scales, biases beside them. */
enum { PART_DATA, PART_SCALE, PART_BIAS, PART_COUNT };
void encoding_bytes(const encoding *e, int64_t rows, int64_t cols, uint64_t bytes[PART_COUNT]);

typedef enum { TO_GGUF, TO_RELEASE, TO_MLX } container;

typedef struct {
    const char *name, *help;
    container to;
    int file_type; /* GGUF's general.file_type */
    int shards;
    dsv4_type types[W_CLASS_COUNT];
    const char *mtp; /* recipe of the MTP layer in a file of its own; NULL = this one */
} recipe;

const recipe *recipe_find(const char *name); /* NULL = unknown */
const recipe *recipe_at(size_t i);           /* NULL = past the end */
/* The encoding a recipe gives a weight; types whose blocks do not divide its rows fall back. */
encoding recipe_encoding(const recipe *r, const weight *w);

/* ==== threads (share_work.c) ================================================================ */

int threads_of_machine(void);
/* Calls one(ctx, i) for every i < count on up to `threads` threads, the caller's among them. After
 * a failure no new piece is begun; the failure with the lowest number is reported. */
dsv4_status share_work(int threads, int64_t count,
                       dsv4_status (*one)(void *ctx, int64_t i, dsv4_error *err), void *ctx,
                       dsv4_error *err);

/* ==== importance (recipes_imatrix.c) ======================================================== */

typedef struct imatrix imatrix;
/* Activation statistics in llama.cpp's binary .dat form, as the published files were made with. */
dsv4_status imatrix_open(const char *path, imatrix **out, dsv4_error *err);
void imatrix_free(imatrix *m);
size_t imatrix_entries(const imatrix *m);
/* [cols] importances of matrix e (of `experts` in all) of a GGUF tensor, NULL if there are none.
 * A wrong length is an error. */
dsv4_status imatrix_find(const imatrix *m, const char *gguf_name, int64_t e, int64_t experts,
                         int64_t cols, const float **out, dsv4_error *err);

/* ==== scales that values do not tell (recipes_scales.c) ====================================== */

/* A block of FP8 or FP4 sometimes has two scales that hold its values exactly; a release's choice
 * is lost in BF16 or F32. Such blocks are few: they travel as notes "name:index:code" (index in the
 * scale tensor, e8m0 code) in GGUF's metadata or MLX's config.json, so that the way back gives the
 * release's bytes. */
#define SCALE_NOTES_KEY "dsv4check.release.scales"

typedef struct {
    char name[96];
    int64_t index;
    uint8_t code;
} scale_note;

typedef struct {
    scale_note *items; /* by name, then index */
    size_t count, capacity;
} scale_notes;

/* Notes of all FP8 and FP4 weights that the encodings do not keep as they are. */
dsv4_status scale_notes_collect(const weight_list *l, const encoding *encodings, int threads,
                                scale_notes *out, dsv4_error *err);
/* The notes that a model carries; none is no error. */
dsv4_status scale_notes_read(const dsv4_model *m, scale_notes *out, dsv4_error *err);
void scale_notes_free(scale_notes *n);
/* Corrects encoded rows [first, first + rows) of matrix `name`: where a note's scale holds the
 * values, it is taken. x: [rows][cols] */
void scale_notes_apply(const scale_notes *n, const char *name, dsv4_type type, const float *x,
                       int64_t first, int64_t rows, int64_t cols, uint8_t *data, uint8_t *scale);

/* ==== making the bytes of a matrix (recipes_encode.c, cmd_synth.c) =========================== */

/* Where the bytes go: part, offset from the start of the matrix, bytes. */
typedef struct {
    void *ctx;
    dsv4_status (*put)(void *ctx, int part, uint64_t offset, const void *data, size_t bytes,
                       dsv4_error *err);
} byte_sink;

typedef struct {
    void *ctx;
    /* Matrix e of w in the encoding, part by part, in any order; called from several threads at
     * once if the output's `threads` says so. */
    dsv4_status (*make)(void *ctx, const weight *w, int64_t e, const encoding *to,
                        const byte_sink *sink, dsv4_error *err);
} weight_maker;

/* The maker of convert and quantize: decodes a weight's view and encodes it, or copies the bytes
 * where both sides store them alike. A weight that is not finite is refused by name. */
typedef struct {
    const char *model;         /* path, for messages */
    const imatrix *importance; /* or NULL */
    bool energy;               /* without importance: the columns' summed squares, not ones */
    bool exact;                /* refuse an encoding that changes a value */
    const scale_notes *notes;  /* or NULL */
} encoder;
weight_maker encoder_maker(encoder *e);
/* Whether every matrix of the weight keeps its values in the encoding. */
dsv4_status weight_is_exact(const weight *w, const encoding *to, int threads, bool *exact,
                            dsv4_error *err);

/* ==== writers ================================================================================ */

/* An output file or directory is whole or absent: everything goes to temporary names, renamed at
 * the end (write_file.c). */
typedef struct out_file out_file;
/* bytes: final size, reserved at once so that a full disk is met before the work. */
dsv4_status out_file_new(const char *path, uint64_t bytes, out_file **out, dsv4_error *err);
dsv4_status out_file_write(out_file *f, uint64_t offset, const void *data, size_t bytes,
                           dsv4_error *err);
/* Renames all or none; frees the files either way. NULL entries are skipped. */
dsv4_status out_files_commit(out_file **files, size_t n, dsv4_error *err);
void out_file_abort(out_file *f); /* removes the temporary file; NULL is fine */

typedef struct {
    const dsv4_config *config;
    const char *name;         /* general.name */
    const dsv4_model *source; /* its tokenizer and keys are taken over; NULL = none */
    weight_list weights;
    const encoding *encodings; /* [weights.count] */
    weight_maker maker;
    int file_type, shards;
    int threads;              /* 0 = 1 */
    const scale_notes *notes; /* to be written with the file, or NULL */
    const char *imatrix_path;
    size_t imatrix_entries;
    bool progress;
    uint64_t written; /* out: bytes */
} model_output;

/* Makes every matrix of the output: sink_of gives the place of matrix e of weight i, in `room`
 * (64 bytes that live as long as the sink is used). */
dsv4_status make_all(const model_output *o,
                     byte_sink (*sink_of)(void *writer, size_t i, int64_t e, void *room),
                     void *writer, dsv4_error *err);

/* A GGUF file, or `shards` of them named PATH-00001-of-0000N.gguf. */
dsv4_status write_gguf(const char *path, model_output *o, dsv4_error *err);
/* A directory with config.json and safetensors: the release's layout, or MLX's. */
dsv4_status write_directory(const char *path, container to, model_output *o, dsv4_error *err);

/* ==== commands =============================================================================== */

int cmd_convert(int argc, char **argv);
int cmd_quantize(int argc, char **argv);
int cmd_synth(int argc, char **argv);

#endif
