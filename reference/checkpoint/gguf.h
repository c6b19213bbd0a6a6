/* gguf.h - GGUF as its reader and its writer both see it: value types, the keys of architecture
 * deepseek4, the names of tensors. */
#ifndef DSV4_GGUF_H
#define DSV4_GGUF_H

#include "metadata.h"

/* ---- format ------------------------------------------------------------------------------- */

enum { GGUF_DEFAULT_ALIGNMENT = 32, GGUF_VERSION = 3 };

typedef enum {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPE_COUNT,
} gguf_type;

/* "u32", "str"; bytes of one value, 0 for strings and arrays. */
const char *gguf_type_name(int type);
int gguf_type_bytes(int type);

typedef struct {
    char *name;
    dsv4_key_value value;
} gguf_key;

typedef struct {
    gguf_key *items;
    size_t count;
} gguf_keys;

const gguf_key *gguf_find(const gguf_keys *keys, const char *name); /* NULL = absent */
/* Item i of a number or an array of numbers. False when it is of another kind. Booleans are
 * neither. */
bool gguf_integer(const dsv4_key_value *v, uint64_t i, int64_t *out); /* u64 above 2^63-1: false */
bool gguf_real(const dsv4_key_value *v, uint64_t i, double *out);

/* ---- config (gguf_config.c) --------------------------------------------------------------- */

typedef enum { GGUF_FIELD_INT, GGUF_FIELD_INT64, GGUF_FIELD_FLOAT, GGUF_FIELD_DOUBLE } gguf_kind;

/* One key "deepseek4.<key>" <-> one field of dsv4_config. */
typedef struct {
    const char *key;
    gguf_kind kind;
    size_t offset; /* in dsv4_config */
    double low, high;
    bool optional; /* the default is in gguf_config.c */
} gguf_field;

extern const gguf_field gguf_fields[];
extern const size_t gguf_field_count;

/* Keys -> config. embed_rows: rows of token_embd, 0 = not stored; the last resort for vocab_size.
 * nextn_block: block number L of blk.L.nextn.*, -1 = none. Errors name the key. */
dsv4_status gguf_config(const gguf_keys *keys, const char *path, int64_t embed_rows,
                        int nextn_block, dsv4_config *out, dsv4_error *err);

/* ---- names (gguf_names.c) ----------------------------------------------------------------- */

typedef struct {
    char name[128];
    int64_t expert; /* slice of a stacked tensor [E][rows][cols]; -1 = the whole tensor */
    int half;       /* nextn.eh_proj: columns 0 = first half (e_proj), 1 = second; -1 = all */
} gguf_place;

/* Where the tensor of an official name lies. nextn_block: -1 = the MTP layer has names of its own
 * (mtp.0.*), else it is block L with blk.L.nextn.* and the root output_hc_*. False when GGUF has no
 * such tensor. */
bool gguf_place_of(const char *official, int nextn_block, gguf_place *out);

#endif
