/* safetensors.c - the official release: config.json, one or more safetensors files, FP8 and FP4
 * codes with e8m0 scales in tensors of their own. */
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../formats/formats.h"
#include "storage.h"

enum { MAX_HEADER = 100 * 1000 * 1000, MAX_CONFIG = 64 * 1000 * 1000 };

typedef enum {
    ST_F32,
    ST_F16,
    ST_BF16,
    ST_I8,
    ST_U8,
    ST_I32,
    ST_U32,
    ST_I64,
    ST_FP8,
    ST_E8M0
} dtype;

static const struct {
    const char *name;
    int bytes;
} dtypes[] = {
    [ST_F32] = {"F32", 4},      [ST_F16] = {"F16", 2}, [ST_BF16] = {"BF16", 2},
    [ST_I8] = {"I8", 1},        [ST_U8] = {"U8", 1},   [ST_I32] = {"I32", 4},
    [ST_U32] = {"U32", 4},      [ST_I64] = {"I64", 8}, [ST_FP8] = {"F8_E4M3", 1},
    [ST_E8M0] = {"F8_E8M0", 1},
};

/* One entry of the header: dtype, shape, data_offsets, checked against the file's size. */
static dsv4_status add_entry(dsv4_storage *st, int file, const char *name, const json_t *entry,
                             uint64_t data_start, dsv4_error *err)
{
    const mapped_file *f = &st->files[file];
    const char *type = json_string_value(json_object_get(entry, "dtype"));
    const json_t *shape = json_object_get(entry, "shape");
    const json_t *offsets = json_object_get(entry, "data_offsets");
    if (type == NULL || !json_is_array(shape) || json_array_size(offsets) != 2)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: tensor %s: expected dtype, shape and data_offsets",
                         f->path, name);
    stored_tensor t = {.file = file, .dtype = -1};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (strcmp(type, dtypes[i].name) == 0)
            t.dtype = (int)i;
    snprintf(t.type, sizeof t.type, "%s", type);
    if (t.dtype < 0)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: tensor %s: unknown dtype %s", f->path, name, type);
    if (json_array_size(shape) > 4)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: tensor %s: %zu axes, expected at most 4", f->path,
                         name, json_array_size(shape));
    t.ndim = (int)json_array_size(shape);
    int64_t bytes = dtypes[t.dtype].bytes;
    for (int i = 0; i < t.ndim; i++) {
        const json_t *axis = json_array_get(shape, (size_t)i);
        t.shape[i] = json_is_integer(axis) ? json_integer_value(axis) : -1;
        if (!storage_multiply(bytes, t.shape[i], &bytes))
            return dsv4_fail(err, DSV4_E_INPUT, "%s: tensor %s: axis %d of the shape is absurd",
                             f->path, name, i);
    }
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    int64_t begin = json_is_integer(first) ? json_integer_value(first) : -1;
    int64_t end = json_is_integer(last) ? json_integer_value(last) : -1;
    uint64_t room = f->size - data_start;
    if (begin < 0 || end < begin || (uint64_t)end > room)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: tensor %s: data_offsets [%lld, %lld] lie outside the file's %llu "
                         "bytes of data (truncated?)",
                         f->path, name, (long long)begin, (long long)end, (unsigned long long)room);
    if (end - begin != bytes)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: tensor %s: %s of this shape takes %lld bytes, data_offsets give %lld",
                         f->path, name, type, (long long)bytes, (long long)(end - begin));
    t.bytes = (uint64_t)bytes;
    t.data = f->base + data_start + begin;
    return storage_add(st, name, &t, err);
}

static int by_place(const void *a, const void *b)
{
    const stored_tensor *s = *(const stored_tensor *const *)a,
                        *t = *(const stored_tensor *const *)b;
    return s->data < t->data ? -1 : s->data > t->data;
}

/* The format lets no two tensors of a file (those from `first` on) share a byte. */
static dsv4_status check_apart(const dsv4_storage *st, size_t first, dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    size_t n = 0;
    const stored_tensor **order =
        dsv4_alloc(st->n_tensors - first, sizeof *order, "tensors by place", err);
    if (order == NULL)
        return DSV4_E_MACHINE;
    for (size_t i = first; i < st->n_tensors; i++)
        if (st->tensors[i].bytes > 0)
            order[n++] = &st->tensors[i];
    if (n > 1)
        qsort(order, n, sizeof *order, by_place);
    for (size_t i = 1; i < n && status == DSV4_OK; i++)
        if ((uint64_t)(order[i]->data - order[i - 1]->data) < order[i - 1]->bytes)
            status = dsv4_fail(err, DSV4_E_INPUT,
                               "%s: tensor %s: data_offsets overlap those of tensor %s",
                               st->files[order[i]->file].path, order[i]->name, order[i - 1]->name);
    free(order);
    return status;
}

static dsv4_status read_header(dsv4_storage *st, int file, dsv4_error *err)
{
    const mapped_file *f = &st->files[file];
    size_t first = st->n_tensors;
    uint64_t length = 0;
    if (f->size < 8)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: %llu bytes are no safetensors file", f->path,
                         (unsigned long long)f->size);
    for (int i = 7; i >= 0; i--)
        length = length << 8 | f->base[i];
    if (length > MAX_HEADER || length > f->size - 8)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: header of %llu bytes does not fit the file's %llu bytes (truncated, "
                         "or no safetensors file)",
                         f->path, (unsigned long long)length, (unsigned long long)f->size);
    json_error_t where;
    json_t *root =
        json_loadb((const char *)f->base + 8, (size_t)length, JSON_REJECT_DUPLICATES, &where);
    if (!json_is_object(root)) {
        json_decref(root);
        return dsv4_fail(err, DSV4_E_INPUT, "%s: header: %s", f->path,
                         root == NULL ? where.text : "expected an object");
    }
    dsv4_status status = DSV4_OK;
    const char *name;
    json_t *entry;
    json_object_foreach(root, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        status = add_entry(st, file, name, entry, 8 + length, err);
        if (status != DSV4_OK)
            break;
    }
    json_decref(root);
    return status == DSV4_OK ? check_apart(st, first, err) : status;
}

/* ---- views by official name --------------------------------------------------------------- */

static dsv4_status scale_shape(const dsv4_storage *st, const stored_tensor *s, const char *name,
                               int64_t rows, int64_t cols, dsv4_error *err)
{
    if (s->dtype != ST_E8M0)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: tensor %s: expected F8_E8M0, found %s",
                         st->files[s->file].path, name, s->type);
    if (s->ndim != 2 || s->shape[0] != rows || s->shape[1] != cols)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: tensor %s: expected shape [%lld, %lld], found [%lld, %lld] (%d axes)",
                         st->files[s->file].path, name, (long long)rows, (long long)cols,
                         (long long)s->shape[0], (long long)s->shape[1], s->ndim);
    return DSV4_OK;
}

static dsv4_status lookup(const dsv4_storage *st, const char *official, dsv4_tensor *out,
                          dsv4_error *err)
{
    memset(out, 0, sizeof *out);
    const stored_tensor *t = storage_find(st, official);
    if (t == NULL)
        return DSV4_OK;
    out->rows = t->ndim >= 2 ? t->shape[0] : 1;
    out->cols = t->ndim == 0 ? 1 : t->shape[t->ndim - 1];
    if (t->ndim > 2)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: tensor %s: %d axes, expected 1 or 2",
                         st->files[t->file].path, official, t->ndim);
    out->data = t->data;
    out->scale_rows = 1;
    out->scale_cols = 1;

    char scale_name[256] = "";
    const stored_tensor *scale = NULL;
    size_t stem = strlen(official);
    if (stem > 7 && strcmp(official + stem - 7, ".weight") == 0) {
        snprintf(scale_name, sizeof scale_name, "%.*s.scale", (int)(stem - 7), official);
        scale = storage_find(st, scale_name);
    }
    switch ((dtype)t->dtype) {
    case ST_F32:
        out->type = DSV4_F32;
        break;
    case ST_F16:
        out->type = DSV4_F16;
        break;
    case ST_BF16:
        out->type = DSV4_BF16;
        break;
    case ST_I32:
        out->type = DSV4_I32;
        break;
    case ST_I64:
        out->type = DSV4_I64;
        break;
    case ST_FP8:
    case ST_I8:
        if (scale == NULL)
            return dsv4_fail(err, DSV4_E_INPUT, "%s: tensor %s is %s but %s is missing",
                             st->files[t->file].path, official, t->type,
                             scale_name[0] ? scale_name : "its .scale");
        if (t->dtype == ST_I8)
            out->cols *= 2; /* two FP4 codes a byte */
        bool fp8 = t->dtype == ST_FP8;
        out->type = fp8 ? DSV4_FP8 : DSV4_FP4;
        out->scale_rows = fp8 ? 128 : 1;
        out->scale_cols = fp8 ? 128 : 32;
        int64_t groups = (out->cols + out->scale_cols - 1) / out->scale_cols;
        dsv4_status status =
            scale_shape(st, scale, scale_name, (out->rows + out->scale_rows - 1) / out->scale_rows,
                        groups, err);
        if (status != DSV4_OK)
            return status;
        out->scale = scale->data;
        out->scale_row_bytes = (size_t)groups;
        break;
    default:
        return dsv4_fail(err, DSV4_E_INPUT, "%s: tensor %s: dtype %s is not one a weight can have",
                         st->files[t->file].path, official, t->type);
    }
    out->row_bytes = dsv4_format_row_bytes(dsv4_format_of(out->type), out->cols);
    out->name = t->name;
    return DSV4_OK;
}

/* ---- files -------------------------------------------------------------------------------- */

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && strcmp(s + n - m, tail) == 0;
}

static bool is_file_named(const char *path, const char *name)
{
    const char *slash = strrchr(path, '/');
    return strcmp(slash != NULL ? slash + 1 : path, name) == 0;
}

static dsv4_status add_file(dsv4_storage *st, const char *dir, const char *name, dsv4_error *err)
{
    char path[4096];
    if (name[0] == '\0' || strchr(name, '/') != NULL ||
        (size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: '%s' is no file name beside the index", dir, name);
    int file;
    dsv4_status status = storage_map(st, path, &file, err);
    return status == DSV4_OK ? read_header(st, file, err) : status;
}

/* The files an index names, each once. Every tensor the index lists must turn up in its file. */
static dsv4_status add_indexed(dsv4_storage *st, const char *dir, const char *index,
                               dsv4_error *err)
{
    char *text = NULL;
    size_t bytes = 0;
    json_error_t where;
    dsv4_status status = read_text_file(index, MAX_CONFIG, &text, &bytes, err);
    if (status != DSV4_OK)
        return status;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &where);
    json_t *seen = json_object();
    const json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map)) {
        status = dsv4_fail(err, DSV4_E_INPUT, "%s: %s", index,
                           root == NULL ? where.text : "expected an object weight_map");
        goto done;
    }
    const char *tensor;
    json_t *file;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, file)
    {
        const char *name = json_string_value(file);
        if (name == NULL) {
            status = dsv4_fail(err, DSV4_E_INPUT, "%s: weight_map.%s: expected a file name", index,
                               tensor);
            goto done;
        }
        if (json_object_get(seen, name) != NULL)
            continue;
        json_object_set_new(seen, name, json_true());
        status = add_file(st, dir, name, err);
        if (status != DSV4_OK)
            goto done;
    }
    status = storage_index(st, err);
    if (status != DSV4_OK)
        goto done;
    json_object_foreach((json_t *)(uintptr_t)map, tensor, file)
    {
        const stored_tensor *t = storage_find(st, tensor);
        if (t == NULL || !is_file_named(st->files[t->file].path, json_string_value(file))) {
            status = dsv4_fail(err, DSV4_E_INPUT, "%s: tensor %s is not in %s", index, tensor,
                               json_string_value(file));
            goto done;
        }
    }
done:
    json_decref(root);
    json_decref(seen);
    free(text);
    return status;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static dsv4_status add_directory(dsv4_storage *st, const char *dir, dsv4_error *err)
{
    enum { MAX_FILES = 4096 };
    dsv4_status status = DSV4_OK;
    size_t n = 0;
    DIR *d = opendir(dir);
    if (d == NULL)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: cannot open: %s", dir, strerror(errno));
    char **names = dsv4_alloc(MAX_FILES, sizeof *names, "file names", err);
    if (names == NULL)
        status = DSV4_E_MACHINE;
    for (struct dirent *e; status == DSV4_OK && n < MAX_FILES && (e = readdir(d)) != NULL;) {
        if (!ends_with(e->d_name, ".safetensors"))
            continue;
        names[n] = dsv4_alloc(strlen(e->d_name) + 1, 1, "a file name", err);
        if (names[n] == NULL)
            status = DSV4_E_MACHINE;
        else
            strcpy(names[n++], e->d_name);
    }
    closedir(d);
    if (status == DSV4_OK && n == 0)
        status = dsv4_fail(err, DSV4_E_INPUT, "%s: no *.safetensors file", dir);
    if (n > 1)
        qsort(names, n, sizeof *names, by_text);
    for (size_t i = 0; i < n; i++) {
        if (status == DSV4_OK)
            status = add_file(st, dir, names[i], err);
        free(names[i]);
    }
    free(names);
    return status == DSV4_OK ? storage_index(st, err) : status;
}

dsv4_status safetensors_open(const char *path, dsv4_storage **out, dsv4_config *config,
                             dsv4_error *err)
{
    char dir[4096], file[4200];
    char *text = NULL;
    size_t bytes = 0;
    struct stat info;
    bool single = stat(path, &info) == 0 && S_ISREG(info.st_mode);
    if ((size_t)snprintf(dir, sizeof dir, "%s", path) >= sizeof dir)
        return dsv4_fail(err, DSV4_E_INPUT, "%.200s...: the path is too long", path);
    if (single) {
        char *slash = strrchr(dir, '/');
        if (slash != NULL)
            *slash = '\0';
        else
            strcpy(dir, ".");
    }
    dsv4_storage *st = NULL;
    dsv4_status status = storage_new("safetensors", path, &st, err);
    if (status != DSV4_OK)
        return status;
    st->lookup = lookup;

    snprintf(file, sizeof file, "%s/config.json", dir);
    status = read_text_file(file, MAX_CONFIG, &text, &bytes, err);
    if (status == DSV4_OK)
        status = dsv4_config_parse(text, bytes, file, config, err);
    free(text);
    if (status != DSV4_OK)
        goto failed;

    snprintf(file, sizeof file, "%s/model.safetensors.index.json", dir);
    if (single) {
        const char *slash = strrchr(path, '/');
        status = add_file(st, dir, slash != NULL ? slash + 1 : path, err);
        if (status == DSV4_OK)
            status = storage_index(st, err);
    } else if (stat(file, &info) == 0) {
        status = add_indexed(st, dir, file, err);
    } else {
        status = add_directory(st, dir, err);
    }
    if (status == DSV4_OK) {
        *out = st;
        return DSV4_OK;
    }
    dsv4_config_free(config);
failed:
    storage_free(st);
    return status;
}
