/* storage.h - what is behind a model's views: mapped files and the table of stored tensors.
 * Private to checkpoint/. A container (safetensors, GGUF, MLX) fills the table and answers for the
 * official names; bind.c alone knows which tensors a model needs and of what shape. */
#ifndef DSV4_STORAGE_H
#define DSV4_STORAGE_H

#include "../dsv4.h"

typedef struct {
    char *path;
    const uint8_t *base; /* mapped, read-only */
    uint64_t size;
} mapped_file;

typedef struct {
    char *name;
    char type[16]; /* as the container names it: "F8_E4M3", "Q4_K" */
    int dtype;     /* the container's own number for the type */
    int ndim;
    int64_t shape[4]; /* slowest first */
    const uint8_t *data;
    uint64_t bytes;
    int file;
} stored_tensor;

struct dsv4_storage {
    const char *container;
    char *path; /* as the user gave it */
    mapped_file *files;
    int n_files, cap_files;
    stored_tensor *tensors; /* sorted by name after storage_index */
    size_t n_tensors, cap_tensors;
    /* The view of a tensor by its official name (layers.0.attn.wq_a.weight). A vector has rows 1.
     * Returns DSV4_OK with out->name NULL when it is not stored. */
    dsv4_status (*lookup)(const dsv4_storage *st, const char *official, dsv4_tensor *out,
                          dsv4_error *err);
    void *extra; /* the container's own; freed by free_extra */
    void (*free_extra)(void *);
    dsv4_storage *second; /* the MTP file's storage, or NULL */
};

dsv4_status storage_new(const char *container, const char *path, dsv4_storage **out,
                        dsv4_error *err);
void storage_free(dsv4_storage *st);
/* Maps a whole file read-only. *index is its number. */
dsv4_status storage_map(dsv4_storage *st, const char *path, int *index, dsv4_error *err);
/* Unmaps every file and forgets every tensor. */
void storage_unmap(dsv4_storage *st);
/* Appends a tensor; name is copied. */
dsv4_status storage_add(dsv4_storage *st, const char *name, const stored_tensor *t,
                        dsv4_error *err);
/* Sorts the table; two tensors of one name are an error. */
dsv4_status storage_index(dsv4_storage *st, dsv4_error *err);
const stored_tensor *storage_find(const dsv4_storage *st, const char *name); /* NULL = absent */
/* a * b, false on overflow or a negative factor. */
bool storage_multiply(int64_t a, int64_t b, int64_t *out);

/* safetensors.c: header of one file into the table. */
dsv4_status safetensors_open(const char *path, dsv4_storage **out, dsv4_config *config,
                             dsv4_error *err);

/* gguf.c: a GGUF file, or all shards of a split one given any of them. config NULL = not wanted
 * (a file with the MTP layer alone). */
dsv4_status gguf_open(const char *path, dsv4_storage **out, dsv4_config *config, dsv4_error *err);

/* mlx.c: config.json with "quantization" and safetensors of packed modules. */
dsv4_status mlx_open(const char *path, dsv4_storage **out, dsv4_config *config, dsv4_error *err);
/* Whether the config.json that belongs to `path` (a directory or a file beside it) is MLX's. */
bool mlx_recognise(const char *path);

/* bind.c: every tensor the config asks for, shape and type checked. */
dsv4_status bind_model(dsv4_model *m, dsv4_error *err);
dsv4_status bind_mtp(dsv4_model *m, const dsv4_storage *from, dsv4_error *err);

/* Reads a whole small file (a config) into a NUL-terminated buffer; caller frees. */
dsv4_status read_text_file(const char *path, size_t limit, char **text, size_t *bytes,
                           dsv4_error *err);

#endif
