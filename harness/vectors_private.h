/* vectors_private.h - what the reader and the writer of vector files share. */
#ifndef DSV4_VECTORS_PRIVATE_H
#define DSV4_VECTORS_PRIVATE_H

#include <hdf5.h>

#include "harness/harness.h"

#define VEC_SCHEMA "dsv4-vectors-1"
#define VEC_MAX_AXES 4
#define VEC_MAX_NAME 128                    /* bytes of a case name */
#define VEC_MAX_LAYERS 100000               /* layer numbers are below it */
#define VEC_MAX_TOKENS ((int64_t)1 << 28)   /* of a case */
#define VEC_MAX_ELEMENTS ((int64_t)1 << 40) /* of a dataset */

typedef struct vec_direct vec_direct; /* vectors_direct.h */

/* A case with what only the reader knows. `pub` comes first: a vec_case handed out is cast back. */
typedef struct {
    vec_case pub;
    char *name;
    int32_t *tokens;
    int64_t *positions;
    int64_t n_logits, n_streams, n_mtp; /* -1 = not there */
    int64_t *logits;                    /* positions of the logits rows (decode cases) */
    int64_t *streams;                   /* positions of the streams rows (decode cases) */
    int64_t *mtp;                       /* positions of the mtp/logits rows */
    int layers;
    bool direct;      /* its group can be read without the library, */
    uint64_t address; /* and is here; */
    int placed_layers;
    uint64_t *layer_address; /* [placed_layers], UINT64_MAX = the file has no such group */
} vec_case_entry;

typedef struct {
    const char *name; /* static string */
    char *value;
} vec_attribute_entry;

struct vec_file {
    char *path;
    hid_t id;
    vec_direct *direct; /* NULL: all through the library */
    vec_attribute_entry *attributes;
    size_t n_attributes;
    vec_case_entry **cases;
    size_t n_cases;
};

/* ---- rows, vectors_rows.c ------------------------------------------------------------------- */

/* Memory for rows that are kept a while, not zeroed, for any thread; NULL with a message. */
void *vec_rows_take(size_t bytes, dsv4_error *err);
void vec_rows_give(void *piece); /* may be NULL */

/* ---- lock and messages ---------------------------------------------------------------------- */

/* The HDF5 library is not thread-safe: every stretch of calls to it sits between these two. The
 * lock also keeps the library from printing its own error stack. What follows needs the lock. */
void vec_lock(void);
void vec_unlock(void);

/* Reports a failed library call: one line "file: object: what (cause)". DSV4_E_MACHINE when the
 * operating system refused a read or write or memory ran out; else `status`. object may be NULL. */
dsv4_status vec_hdf5_failure(const char *file, const char *object, const char *what,
                             dsv4_status status, dsv4_error *err);

/* Bad input in an object of the file: "file: object: ..."; returns DSV4_E_INPUT. */
dsv4_status vec_bad(const vec_file *f, const char *object, dsv4_error *err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* A copy of s, freed with free(). */
char *vec_strdup(const char *s, dsv4_error *err);

/* Path of a tap below its case: "layers/3/q", "logits", "mtp/logits". */
void vec_tap_path(dsv4_tap_id id, int layer, char *path, size_t size);

/* "[6][8][192]"; a negative extent is printed as *. Returns `text`. */
const char *vec_shape_text(char *text, size_t size, int ndim, const int64_t *shape);

/* True when values ascend strictly inside [low, high); else *at is the first offender. */
bool vec_ascending(const int64_t *values, int64_t n, int64_t low, int64_t high, int64_t *at);

/* Refuses a path that is no readable, non-empty regular file. Needs no lock. */
dsv4_status vec_check_path(const char *path, dsv4_error *err);

/* Opens f->path for reading into f->id; `schema` is for the message. No file locks, so that
 * read-only and network folders work. */
dsv4_status vec_open_library(vec_file *f, const char *schema, dsv4_error *err);

/* ---- objects -------------------------------------------------------------------------------- */

/* What a dataset looks like, as far as this schema goes. */
typedef struct {
    H5T_class_t type;
    int axes;
    hsize_t dims[VEC_MAX_AXES];
    int64_t shape[VEC_MAX_AXES]; /* the same */
    int64_t elements;
} vec_dataset_info;

/* Whether `path` below `loc` exists, link by link: 1, 0, or -1 on a damaged file. */
int vec_object_exists(hid_t loc, const char *path);
const char *vec_type_name(H5T_class_t type); /* "integers", "floats" ... */

/* Opens the dataset `name` below `loc`; `path` is for messages. *out = -1 when it is absent. */
dsv4_status vec_dataset_open(const vec_file *f, hid_t loc, const char *name, const char *path,
                             hid_t *out, vec_dataset_info *info, dsv4_error *err);

/* Reads the integers of a dataset with one axis. *values = NULL and *n = -1 when it is absent;
 * `limit` bounds how many there may be. Freed with free(). */
dsv4_status vec_read_integers(const vec_file *f, hid_t loc, const char *name, const char *path,
                              int64_t limit, int64_t **values, int64_t *n, dsv4_error *err);

/* Text of the attribute `name` of `object` (at `path`, for messages): a string of fixed or
 * variable length. *out = NULL when it is absent or, if `lenient`, not a string. */
dsv4_status vec_read_text(const vec_file *f, hid_t object, const char *path, const char *name,
                          bool lenient, char **out, dsv4_error *err);

/* Integer attribute of any width. *there = false when it is absent. */
dsv4_status vec_read_integer(const vec_file *f, hid_t object, const char *path, const char *name,
                             int64_t *value, bool *there, dsv4_error *err);

/* ---- names ---------------------------------------------------------------------------------- */

typedef struct {
    char **names;
    size_t count, capacity;
    bool failed; /* memory ran out */
    dsv4_error *err;
} vec_name_list;

void vec_names_free(vec_name_list *list);
bool vec_names_add(vec_name_list *list, const char *name);
/* Links of the group `name` below `loc` (which exists). */
dsv4_status vec_list_names(const vec_file *f, hid_t loc, const char *name, const char *path,
                           vec_name_list *out, dsv4_error *err);
int vec_parse_layer(const char *name); /* layer number in canonical decimal, or -1 */

#endif
