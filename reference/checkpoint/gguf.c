/* gguf.c - GGUF files, version 2 and 3, one or several shards, mapped. Nothing read from a file is
 * trusted: every count, length, dimension and offset is held against the file's size first. */
#include "gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../formats/formats.h"
#include "storage.h"

enum { MAX_NAME = 255, MAX_KEY = 65535, MAX_NESTING = 4, MAX_SHARDS = 99999 };

/* What the storage keeps of a GGUF file besides its tensors. */
typedef struct {
    gguf_keys keys;  /* of the first shard, in the file's order */
    int nextn_block; /* L of blk.L.nextn.*, -1 = none */
    int64_t experts; /* routed experts that stacked tensors must hold; 0 = not known */
} gguf_extra;

/* ---- values ------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    int bytes;
} value_types[GGUF_TYPE_COUNT] = {
    [GGUF_U8] = {"u8", 1},     [GGUF_I8] = {"i8", 1},     [GGUF_U16] = {"u16", 2},
    [GGUF_I16] = {"i16", 2},   [GGUF_U32] = {"u32", 4},   [GGUF_I32] = {"i32", 4},
    [GGUF_F32] = {"f32", 4},   [GGUF_BOOL] = {"bool", 1}, [GGUF_STRING] = {"str", 0},
    [GGUF_ARRAY] = {"arr", 0}, [GGUF_U64] = {"u64", 8},   [GGUF_I64] = {"i64", 8},
    [GGUF_F64] = {"f64", 8},
};

const char *gguf_type_name(int type)
{
    return type >= 0 && type < GGUF_TYPE_COUNT ? value_types[type].name : "unknown";
}

int gguf_type_bytes(int type)
{
    return type >= 0 && type < GGUF_TYPE_COUNT ? value_types[type].bytes : 0;
}

static uint64_t load(const uint8_t *p, int bytes)
{
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

const gguf_key *gguf_find(const gguf_keys *keys, const char *name)
{
    for (size_t i = 0; i < keys->count; i++)
        if (strcmp(keys->items[i].name, name) == 0)
            return &keys->items[i];
    return NULL;
}

bool gguf_integer(const dsv4_key_value *v, uint64_t i, int64_t *out)
{
    int bytes = gguf_type_bytes(v->item_type);
    if (i >= v->count)
        return false;
    const uint8_t *p = v->data + i * (uint64_t)bytes;
    switch (v->item_type) {
    case GGUF_U8:
    case GGUF_U16:
    case GGUF_U32:
    case GGUF_U64: {
        uint64_t u = load(p, bytes);
        *out = (int64_t)u;
        return u <= INT64_MAX;
    }
    case GGUF_I8:
        *out = (int8_t)load(p, 1);
        return true;
    case GGUF_I16:
        *out = (int16_t)load(p, 2);
        return true;
    case GGUF_I32:
        *out = (int32_t)load(p, 4);
        return true;
    case GGUF_I64:
        *out = (int64_t)load(p, 8);
        return true;
    default:
        return false;
    }
}

bool gguf_real(const dsv4_key_value *v, uint64_t i, double *out)
{
    if (i >= v->count)
        return false;
    if (v->item_type == GGUF_F32) {
        float f;
        memcpy(&f, v->data + 4 * i, sizeof f);
        *out = f;
        return true;
    }
    if (v->item_type == GGUF_F64) {
        memcpy(out, v->data + 8 * i, sizeof *out);
        return true;
    }
    return false;
}

/* ---- reading a file ----------------------------------------------------------------------- */

typedef struct {
    const mapped_file *file;
    uint64_t at;
    dsv4_error *err;
    char what[MAX_NAME + 32]; /* what is being read, for messages */
} cursor;

static uint64_t left(const cursor *c)
{
    return c->file->size - c->at;
}

/* The next n bytes, or NULL with a message. */
static const uint8_t *take(cursor *c, uint64_t n)
{
    if (n > left(c)) {
        dsv4_fail(c->err, DSV4_E_INPUT,
                  "%s: %s: %llu bytes at offset %llu run past the end of the file (%llu bytes; "
                  "truncated?)",
                  c->file->path, c->what, (unsigned long long)n, (unsigned long long)c->at,
                  (unsigned long long)c->file->size);
        return NULL;
    }
    const uint8_t *p = c->file->base + c->at;
    c->at += n;
    return p;
}

static bool take_number(cursor *c, int bytes, uint64_t *out)
{
    const uint8_t *p = take(c, (uint64_t)bytes);
    if (p == NULL)
        return false;
    *out = load(p, bytes);
    return true;
}

static bool bad(cursor *c, const char *problem, uint64_t value)
{
    dsv4_fail(c->err, DSV4_E_INPUT, "%s: %s: %s %llu", c->file->path, c->what, problem,
              (unsigned long long)value);
    return false;
}

/* A name of 1 to `limit` bytes into name (NUL-terminated copy). */
static bool take_name(cursor *c, uint64_t limit, const uint8_t **text, uint64_t *length)
{
    if (!take_number(c, 8, length))
        return false;
    if (*length == 0 || *length > limit)
        return bad(c, "a name of absurd length:", *length);
    *text = take(c, *length);
    if (*text == NULL)
        return false;
    if (memchr(*text, 0, *length) != NULL)
        return bad(c, "a name with a zero byte, length", *length);
    return true;
}

/* Steps over one value of a type; strings and nested arrays need walking. */
static bool skip_value(cursor *c, uint64_t type, uint64_t count, int depth)
{
    if (type >= GGUF_TYPE_COUNT)
        return bad(c, "unknown value type", type);
    int bytes = gguf_type_bytes((int)type);
    if (bytes > 0) {
        if (count > left(c) / (uint64_t)bytes)
            return bad(c, "an array longer than the file, items:", count);
        return take(c, count * (uint64_t)bytes) != NULL;
    }
    if (count > left(c) / 8)
        return bad(c, "an array longer than the file, items:", count);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t item, n;
        if (type == GGUF_STRING) {
            if (!take_number(c, 8, &n) || take(c, n) == NULL)
                return false;
        } else {
            if (depth >= MAX_NESTING)
                return bad(c, "arrays nested too deeply, depth", (uint64_t)depth);
            if (!take_number(c, 4, &item) || !take_number(c, 8, &n) ||
                !skip_value(c, item, n, depth + 1))
                return false;
        }
    }
    return true;
}

static bool take_value(cursor *c, dsv4_key_value *v)
{
    uint64_t type, item, count = 1;
    if (!take_number(c, 4, &type))
        return false;
    item = type;
    if (type == GGUF_ARRAY && (!take_number(c, 4, &item) || !take_number(c, 8, &count)))
        return false;
    uint64_t start = c->at;
    if (!skip_value(c, item, count, 1))
        return false;
    *v = (dsv4_key_value){
        .type = (int)type,
        .item_type = (int)item,
        .count = count,
        .data = c->file->base + start,
        .bytes = c->at - start,
    };
    return true;
}

static void free_keys(gguf_keys *keys)
{
    for (size_t i = 0; i < keys->count; i++)
        free(keys->items[i].name);
    free(keys->items);
    *keys = (gguf_keys){0};
}

static int by_key(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static dsv4_status refuse_twins(const gguf_keys *keys, const char *path, dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    if (keys->count < 2)
        return DSV4_OK;
    const char **names = dsv4_alloc(keys->count, sizeof *names, "key names", err);
    if (names == NULL)
        return DSV4_E_MACHINE;
    for (size_t i = 0; i < keys->count; i++)
        names[i] = keys->items[i].name;
    qsort(names, keys->count, sizeof *names, by_key);
    for (size_t i = 1; i < keys->count && status == DSV4_OK; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            status = dsv4_fail(err, DSV4_E_INPUT, "%s: key %s is stored twice", path, names[i]);
    free(names);
    return status;
}

/* Magic, version, counts and keys. c is left at the first tensor's description. */
static dsv4_status read_keys(cursor *c, gguf_keys *keys, uint64_t *n_tensors)
{
    enum { LEAST_KEY = 8 + 1 + 4 + 1, LEAST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8 };
    uint64_t version, n_keys;
    const char *path = c->file->path;
    snprintf(c->what, sizeof c->what, "header");
    const uint8_t *magic = take(c, 4);
    if (magic == NULL)
        return DSV4_E_INPUT;
    if (memcmp(magic, "GGUF", 4) != 0)
        return dsv4_fail(c->err, DSV4_E_INPUT,
                         "%s: expected the magic GGUF, found %02x %02x %02x %02x", path, magic[0],
                         magic[1], magic[2], magic[3]);
    if (!take_number(c, 4, &version))
        return DSV4_E_INPUT;
    if (version != 2 && version != 3)
        return dsv4_fail(c->err, DSV4_E_INPUT, "%s: expected GGUF version 2 or 3, found %llu%s",
                         path, (unsigned long long)version,
                         version == 3u << 24 || version == 2u << 24 ? " (a big-endian file)" : "");
    if (!take_number(c, 8, n_tensors) || !take_number(c, 8, &n_keys))
        return DSV4_E_INPUT;
    if (*n_tensors > left(c) / LEAST_TENSOR || n_keys > left(c) / LEAST_KEY)
        return dsv4_fail(c->err, DSV4_E_INPUT,
                         "%s: header: %llu tensors and %llu keys do not fit a file of %llu bytes",
                         path, (unsigned long long)*n_tensors, (unsigned long long)n_keys,
                         (unsigned long long)c->file->size);
    keys->items = dsv4_alloc((size_t)n_keys + 1, sizeof *keys->items, "GGUF keys", c->err);
    if (keys->items == NULL)
        return DSV4_E_MACHINE;
    for (uint64_t i = 0; i < n_keys; i++) {
        const uint8_t *text;
        uint64_t length;
        gguf_key *k = &keys->items[i];
        snprintf(c->what, sizeof c->what, "key %llu of %llu", (unsigned long long)i + 1,
                 (unsigned long long)n_keys);
        if (!take_name(c, MAX_KEY, &text, &length))
            return DSV4_E_INPUT;
        k->name = dsv4_alloc((size_t)length + 1, 1, "a key", c->err);
        if (k->name == NULL)
            return DSV4_E_MACHINE;
        memcpy(k->name, text, (size_t)length);
        keys->count++;
        snprintf(c->what, sizeof c->what, "key %.*s", MAX_NAME, k->name);
        if (!take_value(c, &k->value))
            return DSV4_E_INPUT;
    }
    return refuse_twins(keys, path, c->err);
}

static dsv4_status read_alignment(const cursor *c, const gguf_keys *keys, uint64_t *out)
{
    const gguf_key *k = gguf_find(keys, "general.alignment");
    int64_t value = GGUF_DEFAULT_ALIGNMENT;
    if (k != NULL && (k->value.type == GGUF_ARRAY || !gguf_integer(&k->value, 0, &value)))
        value = 0;
    if (value < 1 || value > 1 << 30 || (value & (value - 1)) != 0)
        return dsv4_fail(c->err, DSV4_E_INPUT,
                         "%s: key general.alignment: expected a power of two, found %lld",
                         c->file->path, (long long)value);
    *out = (uint64_t)value;
    return DSV4_OK;
}

/* One description: name, dimensions (fastest first), type, offset. `t` gets everything but data. */
static dsv4_status read_tensor(cursor *c, char name[MAX_NAME + 1], stored_tensor *t,
                               uint64_t *offset)
{
    const char *path = c->file->path;
    const uint8_t *text;
    uint64_t length, ndim, type, dim;
    if (!take_name(c, MAX_NAME, &text, &length))
        return DSV4_E_INPUT;
    memcpy(name, text, (size_t)length);
    name[length] = '\0';
    snprintf(c->what, sizeof c->what, "tensor %s", name);
    if (!take_number(c, 4, &ndim))
        return DSV4_E_INPUT;
    if (ndim < 1 || ndim > 4)
        return dsv4_fail(c->err, DSV4_E_INPUT, "%s: tensor %s: %llu axes, expected 1 to 4", path,
                         name, (unsigned long long)ndim);
    t->ndim = (int)ndim;
    int64_t rows = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        if (!take_number(c, 8, &dim))
            return DSV4_E_INPUT;
        t->shape[i] = dim > INT64_MAX ? -1 : (int64_t)dim;
        if (t->shape[i] < 1 || (i < t->ndim - 1 && !storage_multiply(rows, t->shape[i], &rows)))
            return dsv4_fail(c->err, DSV4_E_INPUT, "%s: tensor %s: axis of %llu elements is absurd",
                             path, name, (unsigned long long)dim);
    }
    if (!take_number(c, 4, &type) || !take_number(c, 8, offset))
        return DSV4_E_INPUT;
    const dsv4_format *f = dsv4_format_by_ggml((int64_t)type);
    if (f == NULL)
        return dsv4_fail(c->err, DSV4_E_INPUT, "%s: tensor %s: unknown type %llu", path, name,
                         (unsigned long long)type);
    t->dtype = (int)type;
    snprintf(t->type, sizeof t->type, "%s", f->name);
    int64_t cols = t->shape[t->ndim - 1], bytes;
    if (cols % f->block != 0)
        return dsv4_fail(c->err, DSV4_E_INPUT,
                         "%s: tensor %s: rows of %lld elements are no multiple of %s's block of %d",
                         path, name, (long long)cols, f->name, f->block);
    if (!storage_multiply(cols / f->block, f->block_bytes, &bytes) ||
        !storage_multiply(bytes, rows, &bytes))
        return dsv4_fail(c->err, DSV4_E_INPUT, "%s: tensor %s: its size overflows", path, name);
    t->bytes = (uint64_t)bytes;
    return DSV4_OK;
}

static dsv4_status read_tensors(dsv4_storage *st, int file, cursor *c, uint64_t n,
                                uint64_t alignment)
{
    const char *path = c->file->path;
    uint64_t first = c->at;
    char name[MAX_NAME + 1];
    /* The data starts after the last description, so there are two passes: the first to find the
     * end, the second to add. */
    for (int pass = 0; pass < 2; pass++) {
        uint64_t end = c->at, start = 0;
        if (pass == 1) {
            start = (end + alignment - 1) / alignment * alignment;
            c->at = first;
        }
        for (uint64_t i = 0; i < n; i++) {
            stored_tensor t = {.file = file};
            uint64_t offset = 0;
            snprintf(c->what, sizeof c->what, "tensor %llu of %llu", (unsigned long long)i + 1,
                     (unsigned long long)n);
            dsv4_status status = read_tensor(c, name, &t, &offset);
            if (status != DSV4_OK)
                return status;
            if (pass == 0)
                continue;
            if (offset % alignment != 0)
                return dsv4_fail(c->err, DSV4_E_INPUT,
                                 "%s: tensor %s: offset %llu is no multiple of the alignment %llu",
                                 path, name, (unsigned long long)offset,
                                 (unsigned long long)alignment);
            uint64_t room = start < c->file->size ? c->file->size - start : 0;
            if (offset > room || t.bytes > room - offset)
                return dsv4_fail(c->err, DSV4_E_INPUT,
                                 "%s: tensor %s: %llu bytes at offset %llu lie outside the file's "
                                 "%llu bytes of data (truncated?)",
                                 path, name, (unsigned long long)t.bytes,
                                 (unsigned long long)offset, (unsigned long long)room);
            t.data = c->file->base + start + offset;
            status = storage_add(st, name, &t, c->err);
            if (status != DSV4_OK)
                return status;
        }
    }
    return DSV4_OK;
}

/* ---- shards ------------------------------------------------------------------------------- */

/* split.no, split.count, split.tensors.count; a file without them is shard 0 of 1. */
typedef struct {
    int64_t no, count, tensors;
} split_info;

static dsv4_status read_split(const gguf_keys *keys, const char *path, split_info *out,
                              dsv4_error *err)
{
    const struct {
        const char *name;
        int64_t *to, otherwise, high;
    } fields[] = {
        {"split.no", &out->no, 0, MAX_SHARDS - 1},
        {"split.count", &out->count, 1, MAX_SHARDS},
        {"split.tensors.count", &out->tensors, -1, INT64_MAX},
    };
    for (size_t i = 0; i < 3; i++) {
        const gguf_key *k = gguf_find(keys, fields[i].name);
        *fields[i].to = fields[i].otherwise;
        if (k == NULL)
            continue;
        if (k->value.type == GGUF_ARRAY || !gguf_integer(&k->value, 0, fields[i].to) ||
            *fields[i].to < 0 || *fields[i].to > fields[i].high)
            return dsv4_fail(err, DSV4_E_INPUT, "%s: key %s: expected an integer from 0 to %lld",
                             path, fields[i].name, (long long)fields[i].high);
    }
    if (out->count < 1)
        out->count = 1; /* some splitters write 0 for "not split" */
    if (out->no >= out->count)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: key split.no: expected less than split.count %lld, found %lld", path,
                         (long long)out->count, (long long)out->no);
    return DSV4_OK;
}

/* Maps one file and adds its tensors. With keys NULL the file's keys are read and dropped (later
 * shards). Its place among the shards goes to *split; tensors are added only when expected == NULL
 * or agrees with it. */
static dsv4_status read_file(dsv4_storage *st, const char *path, gguf_keys *keep,
                             const split_info *expected, split_info *split, dsv4_error *err)
{
    int file;
    uint64_t n_tensors = 0, alignment = GGUF_DEFAULT_ALIGNMENT;
    gguf_keys keys = {0};
    dsv4_status status = storage_map(st, path, &file, err);
    if (status != DSV4_OK)
        return status;
    cursor c = {.file = &st->files[file], .err = err};
    status = read_keys(&c, &keys, &n_tensors);
    if (status == DSV4_OK)
        status = read_split(&keys, path, split, err);
    if (status == DSV4_OK && expected != NULL &&
        (split->no != expected->no || split->count != expected->count))
        status = dsv4_fail(err, DSV4_E_INPUT,
                           "%s: expected shard split.no %lld of split.count %lld, found %lld of "
                           "%lld",
                           path, (long long)expected->no, (long long)expected->count,
                           (long long)split->no, (long long)split->count);
    /* A shard met before its place is known is only looked at. */
    bool whole = expected != NULL || split->count == 1;
    if (status == DSV4_OK && whole)
        status = read_alignment(&c, &keys, &alignment);
    if (status == DSV4_OK && whole)
        status = read_tensors(st, file, &c, n_tensors, alignment);
    if (status == DSV4_OK && keep != NULL && whole) {
        *keep = keys;
        keys = (gguf_keys){0};
    }
    free_keys(&keys);
    return status;
}

/* "DIR/NAME-00002-of-00003.gguf" -> length of "DIR/NAME"; 0 if the name has no such ending or its
 * number of shards is not `count`. */
static size_t shard_stem(const char *path, int64_t count)
{
    enum { TAIL = 20 }; /* -00002-of-00003.gguf */
    size_t n = strlen(path);
    char expected[64];
    if (n <= TAIL)
        return 0;
    const char *tail = path + n - TAIL;
    snprintf(expected, sizeof expected, "-of-%05d.gguf", (int)count);
    if (tail[0] != '-' || strspn(tail + 1, "0123456789") != 5 || strcmp(tail + 6, expected) != 0)
        return 0;
    return n - TAIL;
}

static dsv4_status read_shards(dsv4_storage *st, gguf_keys *keys, const split_info *given,
                               dsv4_error *err)
{
    char path[4096];
    struct stat info;
    split_info split, first = {0};
    size_t stem = shard_stem(st->path, given->count);
    if (stem == 0 || stem + 32 > sizeof path)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: key split.count: %lld shards, but the file's name does not end in "
                         "-NNNNN-of-%05lld.gguf: cannot find the others",
                         st->path, (long long)given->count, (long long)given->count);
    for (int64_t i = 0; i < given->count; i++) {
        split_info expected = {.no = i, .count = given->count};
        snprintf(path, sizeof path, "%.*s-%05d-of-%05d.gguf", (int)stem, st->path, (int)i + 1,
                 (int)given->count);
        if (stat(path, &info) != 0)
            return dsv4_fail(err, DSV4_E_INPUT, "%s: shard %lld of %lld is missing", path,
                             (long long)i + 1, (long long)given->count);
        dsv4_status status = read_file(st, path, i == 0 ? keys : NULL, &expected, &split, err);
        if (status != DSV4_OK)
            return status;
        if (i == 0)
            first = split;
        if (split.tensors != first.tensors)
            return dsv4_fail(err, DSV4_E_INPUT,
                             "%s: key split.tensors.count: expected %lld as in the first shard, "
                             "found %lld",
                             path, (long long)first.tensors, (long long)split.tensors);
    }
    if (first.tensors >= 0 && (uint64_t)first.tensors != st->n_tensors)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: key split.tensors.count: expected %lld tensors in all shards, found "
                         "%zu",
                         st->path, (long long)first.tensors, st->n_tensors);
    return DSV4_OK;
}

/* ---- views by official name --------------------------------------------------------------- */

/* The view of a stored tensor, or of one of its slices or column halves. */
static dsv4_status lookup(const dsv4_storage *st, const char *official, dsv4_tensor *out,
                          dsv4_error *err)
{
    const gguf_extra *extra = st->extra;
    gguf_place place;
    memset(out, 0, sizeof *out);
    if (!gguf_place_of(official, -1, &place))
        return DSV4_OK;
    const stored_tensor *t = storage_find(st, place.name);
    if (t == NULL && extra->nextn_block >= 0 && gguf_place_of(official, extra->nextn_block, &place))
        t = storage_find(st, place.name);
    if (t == NULL)
        return DSV4_OK;
    const char *path = st->files[t->file].path;
    const dsv4_format *f = dsv4_format_by_ggml(t->dtype);
    int64_t rows = 1;
    for (int i = 0; i < t->ndim - 1; i++)
        rows *= t->shape[i]; /* checked when the file was read */
    out->type = f->type;
    out->cols = t->shape[t->ndim - 1];
    out->rows = rows;
    out->row_bytes = dsv4_format_row_bytes(f, out->cols);
    out->data = t->data;
    out->scale_rows = 1;
    out->scale_cols = 1;
    if (place.expert >= 0) {
        int64_t stacked = t->ndim >= 3 ? t->shape[0] : 1;
        if (place.expert >= stacked || (extra->experts > 0 && stacked != extra->experts))
            return dsv4_fail(err, DSV4_E_INPUT, "%s: tensor %s: %lld experts, expected %lld", path,
                             t->name, (long long)stacked,
                             (long long)(extra->experts > 0 ? extra->experts : place.expert + 1));
        out->rows = rows / stacked;
        out->row0 = place.expert * out->rows;
    }
    if (place.half >= 0) {
        if (out->cols % (2 * f->block) != 0)
            return dsv4_fail(err, DSV4_E_INPUT,
                             "%s: tensor %s: its column halves (e_proj, h_proj) of %lld elements "
                             "end inside a block of %s",
                             path, t->name, (long long)out->cols / 2, f->name);
        out->cols /= 2;
        if (place.half == 1)
            out->data += dsv4_format_row_bytes(f, out->cols);
    }
    out->name = t->name;
    return DSV4_OK;
}

/* ---- keys --------------------------------------------------------------------------------- */

/* One item as text; returns the bytes it takes in the file. */
static uint64_t item_text(const dsv4_key_value *v, uint64_t i, const uint8_t *at, char *text,
                          size_t room)
{
    int64_t whole;
    double real;
    text[0] = '\0';
    if (v->item_type == GGUF_STRING) {
        uint64_t n = load(at, 8);
        snprintf(text, room, "%.*s", (int)(n < room ? n : room), (const char *)at + 8);
        for (char *p = text; *p != '\0'; p++)
            if ((unsigned char)*p < 32 || *p == 127)
                *p = '?';
        return 8 + n;
    }
    if (v->item_type == GGUF_BOOL)
        snprintf(text, room, "%s", at[0] != 0 ? "true" : "false");
    else if (v->item_type == GGUF_U64)
        snprintf(text, room, "%llu", (unsigned long long)load(at, 8));
    else if (gguf_integer(v, i, &whole))
        snprintf(text, room, "%lld", (long long)whole);
    else if (gguf_real(v, i, &real))
        snprintf(text, room, "%.9g", real);
    return (uint64_t)gguf_type_bytes(v->item_type);
}

/* The value as one line of at most 120 characters. */
static void value_text(const dsv4_key_value *v, char out[121])
{
    enum { ROOM = 120, RESERVED = 32 };
    if (v->type != GGUF_ARRAY) {
        item_text(v, 0, v->data, out, ROOM + 1);
        return;
    }
    size_t n = (size_t)snprintf(out, ROOM + 1, "[");
    const uint8_t *at = v->data;
    uint64_t i = 0;
    for (; i < v->count && v->item_type != GGUF_ARRAY; i++) {
        char item[ROOM + 1];
        at += item_text(v, i, at, item, sizeof item);
        if (n + strlen(item) + 2 > ROOM - RESERVED)
            break;
        n += (size_t)snprintf(out + n, ROOM + 1 - n, "%s%s", i > 0 ? ", " : "", item);
    }
    snprintf(out + n, ROOM + 1 - n, i < v->count ? "%s...] (%llu items)" : "%s]",
             i > 0 && i < v->count ? ", " : "", (unsigned long long)v->count);
}

static const gguf_keys *model_keys(const dsv4_model *m)
{
    return strcmp(m->storage->container, "gguf") == 0 ? &((gguf_extra *)m->storage->extra)->keys
                                                      : NULL;
}

void dsv4_model_each_key(const dsv4_model *m,
                         bool (*each)(void *ctx, const char *key, const char *type,
                                      const char *value),
                         void *ctx)
{
    const gguf_keys *keys = model_keys(m);
    for (size_t i = 0; keys != NULL && i < keys->count; i++) {
        const gguf_key *k = &keys->items[i];
        char type[32], text[121];
        if (k->value.type == GGUF_ARRAY)
            snprintf(type, sizeof type, "arr[%s]", gguf_type_name(k->value.item_type));
        else
            snprintf(type, sizeof type, "%s", gguf_type_name(k->value.type));
        value_text(&k->value, text);
        if (!each(ctx, k->name, type, text))
            return;
    }
}

bool dsv4_model_key(const dsv4_model *m, const char *key, dsv4_key_value *out)
{
    const gguf_keys *keys = model_keys(m);
    const gguf_key *k = keys != NULL ? gguf_find(keys, key) : NULL;
    if (k != NULL)
        *out = k->value;
    return k != NULL;
}

/* ---- opening ------------------------------------------------------------------------------ */

static void free_extra(void *p)
{
    gguf_extra *extra = p;
    free_keys(&extra->keys);
    free(extra);
}

/* L of blk.L.nextn.eh_proj.weight; -1 = no such tensor. */
static int find_nextn(const dsv4_storage *st)
{
    for (size_t i = 0; i < st->n_tensors; i++) {
        const char *name = st->tensors[i].name;
        int block = -1, end = 0;
        if (sscanf(name, "blk.%6d.nextn.eh_proj.weight%n", &block, &end) == 1 && end > 0 &&
            name[end] == '\0' && block >= 0)
            return block;
    }
    return -1;
}

static dsv4_status check_architecture(const gguf_keys *keys, const char *path, dsv4_error *err)
{
    const gguf_key *k = gguf_find(keys, "general.architecture");
    if (k == NULL || k->value.type != GGUF_STRING)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: key general.architecture is %s, expected deepseek4", path,
                         k == NULL ? "missing" : "no string");
    uint64_t n = k->value.bytes - 8;
    const char *text = (const char *)k->value.data + 8;
    if (n != 9 || memcmp(text, "deepseek4", 9) != 0)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: key general.architecture: expected deepseek4, found %.*s", path,
                         (int)(n < 60 ? n : 60), text);
    return DSV4_OK;
}

dsv4_status gguf_open(const char *path, dsv4_storage **out, dsv4_config *config, dsv4_error *err)
{
    dsv4_storage *st = NULL;
    split_info split;
    dsv4_status status = storage_new("gguf", path, &st, err);
    if (status != DSV4_OK)
        return status;
    gguf_extra *extra = dsv4_alloc(1, sizeof *extra, "GGUF keys", err);
    if (extra == NULL) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    st->extra = extra;
    st->free_extra = free_extra;
    st->lookup = lookup;
    status = read_file(st, path, &extra->keys, NULL, &split, err);
    if (status == DSV4_OK && split.count > 1) {
        storage_unmap(st); /* any shard may have been given: start again with the first */
        status = read_shards(st, &extra->keys, &split, err);
    }
    if (status == DSV4_OK)
        status = storage_index(st, err);
    if (status == DSV4_OK)
        status = check_architecture(&extra->keys, path, err);
    if (status != DSV4_OK)
        goto done;
    extra->nextn_block = find_nextn(st);
    if (config != NULL) {
        const stored_tensor *embed = storage_find(st, "token_embd.weight");
        int64_t rows = embed != NULL && embed->ndim == 2 ? embed->shape[0] : 0;
        status = gguf_config(&extra->keys, path, rows, extra->nextn_block, config, err);
        if (status == DSV4_OK)
            extra->experts = config->n_routed_experts;
    }
done:
    if (status == DSV4_OK)
        *out = st;
    else
        storage_free(st);
    return status;
}
