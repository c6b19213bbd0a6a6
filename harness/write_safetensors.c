/* write_safetensors.c - a model as a directory: config.json, safetensors (with an index when there
 * are several), the tokenizer's files. Two layouts: the release's, and MLX's with experts stacked
 * under mlx-lm's names. */
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "recipes.h"
#include "reference/checkpoint/mlx.h"
#include "write_metadata.h"

enum { MAX_SHARDS = 9999 };
static const uint64_t shard_bytes = 5000000000; /* as the release's shards */

/* One stored tensor. */
typedef struct {
    char name[128];
    const char *dtype;
    int ndim;
    int64_t shape[3];
    int shard;
    uint64_t offset; /* in the shard's data; in the file once the header is known */
    uint64_t bytes;
    uint64_t matrix; /* bytes of one stacked matrix */
} entry;

typedef struct {
    container to;
    model_output *o;
    entry *entries;
    size_t count;
    size_t *first; /* [weights.count] a weight's first entry */
    out_file **files;
    uint64_t *data; /* [shards] */
    int shards;
    char directory[4200]; /* temporary */
    dsv4_error *err;
} writer;

/* ---- layout ------------------------------------------------------------------------------- */

static const char *dtype_of(container to, dsv4_type t)
{
    switch (t) {
    case DSV4_F32:
        return "F32";
    case DSV4_F16:
        return "F16";
    case DSV4_BF16:
        return "BF16";
    case DSV4_I32:
        return "I32";
    case DSV4_I64:
        return "I64";
    case DSV4_FP8:
        return to == TO_RELEASE ? "F8_E4M3" : NULL;
    case DSV4_FP4:
        return to == TO_RELEASE ? "I8" : "U32";
    case DSV4_MLX4:
    case DSV4_MLX8:
        return to == TO_MLX ? "U32" : NULL;
    default:
        return NULL;
    }
}

/* The name of a part: weight "m.weight" has "m.scale" (release) or "m.scales", "m.biases" (MLX). */
static void part_name(container to, const char *name, int part, char out[128])
{
    static const char *const endings[2][PART_COUNT] = {
        {"weight", "scale", "bias"},
        {"weight", "scales", "biases"},
    };
    size_t n = strlen(name);
    if (part != PART_DATA && n > 7 && strcmp(name + n - 7, ".weight") == 0)
        snprintf(out, 128, "%.*s.%s", (int)(n - 7), name, endings[to == TO_MLX][part]);
    else
        snprintf(out, 128, "%s", name);
}

/* The entries of matrix e (stacked: of all of them) of a weight. */
static dsv4_status add_entries(writer *w, const weight *item, int64_t e, const encoding *enc)
{
    char name[128], official[96];
    uint64_t bytes[PART_COUNT];
    int64_t expert, stacked = w->to == TO_MLX ? item->experts : 0;
    int64_t n = stacked > 0 ? stacked : 1;
    bool packed = enc->type == DSV4_FP4 || enc->type == DSV4_MLX4 || enc->type == DSV4_MLX8;
    weight_name(item, e, official);
    if (w->to != TO_MLX)
        snprintf(name, sizeof name, "%s", official);
    else if (!mlx_name(official, name, sizeof name, &expert))
        return dsv4_fail(w->err, DSV4_E_INPUT, "tensor %s has no name in MLX", official);
    encoding_bytes(enc, item->rows, item->cols, bytes);
    for (int p = 0; p < PART_COUNT; p++) {
        if (bytes[p] == 0)
            continue;
        entry *t = &w->entries[w->count++];
        part_name(w->to, name, p, t->name);
        t->dtype = dtype_of(w->to, enc->type);
        if (t->dtype == NULL)
            return dsv4_fail(w->err, DSV4_E_INPUT, "tensor %s: %s has no place in %s", official,
                             dsv4_format_of(enc->type)->name,
                             w->to == TO_MLX ? "an MLX directory" : "a release");
        int64_t rows = item->rows, cols = item->cols;
        if (p == PART_DATA && packed)
            cols = (int64_t)(bytes[p] / (uint64_t)rows) / (w->to == TO_MLX ? 4 : 1);
        if (p != PART_DATA && (enc->type == DSV4_FP8 || enc->type == DSV4_FP4)) {
            t->dtype = w->to == TO_MLX ? "U8" : "F8_E8M0";
            rows = enc->type == DSV4_FP8 ? (rows + 127) / 128 : rows;
            cols = (int64_t)bytes[p] / rows;
        } else if (p != PART_DATA) {
            t->dtype = dtype_of(w->to, enc->scale_type);
            cols /= enc->group;
        }
        if (stacked > 0)
            t->shape[t->ndim++] = stacked;
        if (!item->vector)
            t->shape[t->ndim++] = rows;
        t->shape[t->ndim++] = cols;
        t->matrix = bytes[p];
        t->bytes = bytes[p] * (uint64_t)n;
    }
    return DSV4_OK;
}

static dsv4_status lay_out(writer *w)
{
    const weight_list *l = &w->o->weights;
    uint64_t total = 0, before = 0;
    for (size_t i = 0; i < l->count; i++) {
        int64_t n = w->to == TO_MLX || l->items[i].experts == 0 ? 1 : l->items[i].experts;
        w->first[i] = w->count;
        for (int64_t e = 0; e < n; e++) {
            dsv4_status status = add_entries(w, &l->items[i], e, &w->o->encodings[i]);
            if (status != DSV4_OK)
                return status;
        }
    }
    for (size_t i = 0; i < w->count; i++)
        total += w->entries[i].bytes;
    w->shards = w->o->shards > 1 ? w->o->shards : (int)(total / shard_bytes) + 1;
    if (w->shards > MAX_SHARDS || (size_t)w->shards > w->count)
        return dsv4_fail(w->err, DSV4_E_INPUT, "%d shards for %zu tensors", w->shards, w->count);
    w->files = dsv4_alloc((size_t)w->shards, sizeof(out_file *), "output files", w->err);
    w->data = dsv4_alloc((size_t)w->shards, sizeof *w->data, "output files", w->err);
    if (w->files == NULL || w->data == NULL)
        return DSV4_E_MACHINE;
    uint64_t share = total / (uint64_t)w->shards + 1;
    for (size_t i = 0; i < w->count; i++) {
        entry *t = &w->entries[i];
        t->shard = (int)(before / share);
        t->offset = w->data[t->shard];
        w->data[t->shard] += t->bytes;
        before += t->bytes;
    }
    w->o->written = total;
    return DSV4_OK;
}

/* ---- files -------------------------------------------------------------------------------- */

static void shard_name(const writer *w, int shard, char out[64])
{
    if (w->shards == 1)
        snprintf(out, 64, "model.safetensors");
    else
        snprintf(out, 64, "model-%05d-of-%05d.safetensors", shard + 1, w->shards);
}

static dsv4_status open_shard(writer *w, int shard)
{
    byte_buffer head = {.err = w->err};
    char line[512], name[64], path[4400];
    uint64_t length;
    buffer_u64(&head, 0);
    buffer_append(&head, "{\"__metadata__\":{\"format\":\"pt\"}", 31);
    for (size_t i = 0; i < w->count; i++) {
        const entry *t = &w->entries[i];
        if (t->shard != shard)
            continue;
        /* Names are ours: letters, digits, dots and underscores need no escaping. */
        int n =
            snprintf(line, sizeof line, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", t->name, t->dtype);
        for (int a = 0; a < t->ndim; a++)
            n += snprintf(line + n, sizeof line - (size_t)n, "%s%lld", a > 0 ? "," : "",
                          (long long)t->shape[a]);
        n += snprintf(line + n, sizeof line - (size_t)n, "],\"data_offsets\":[%llu,%llu]}",
                      (unsigned long long)t->offset, (unsigned long long)(t->offset + t->bytes));
        buffer_append(&head, line, (size_t)n);
    }
    buffer_append(&head, "}", 1);
    while (head.status == DSV4_OK && head.size % 8 != 0)
        buffer_append(&head, " ", 1);
    dsv4_status status = head.status;
    if (status == DSV4_OK) {
        length = head.size - 8;
        memcpy(head.data, &length, 8);
        shard_name(w, shard, name);
        snprintf(path, sizeof path, "%s/%s", w->directory, name);
        status = out_file_new(path, head.size + w->data[shard], &w->files[shard], w->err);
    }
    if (status == DSV4_OK)
        status = out_file_write(w->files[shard], 0, head.data, head.size, w->err);
    for (size_t i = 0; i < w->count; i++)
        if (w->entries[i].shard == shard)
            w->entries[i].offset += head.size;
    w->o->written += head.size;
    buffer_free(&head);
    return status;
}

typedef struct {
    const writer *w;
    const entry *entries; /* of the weight's parts, in the order of parts that exist */
    int64_t slice;        /* index of the matrix in a stacked tensor */
    int at[PART_COUNT];   /* part -> entry */
} target;

static dsv4_status put(void *ctx, int part, uint64_t offset, const void *data, size_t bytes,
                       dsv4_error *err)
{
    const target *t = ctx;
    const entry *e = &t->entries[t->at[part]];
    return out_file_write(t->w->files[e->shard],
                          e->offset + (uint64_t)t->slice * e->matrix + offset, data, bytes, err);
}

/* A release has the parts of every matrix one after the other, MLX has one stack a part. */
static byte_sink sink_of(void *writer_, size_t i, int64_t e, void *room)
{
    const writer *w = writer_;
    const weight *item = &w->o->weights.items[i];
    target *t = room;
    uint64_t bytes[PART_COUNT];
    int parts = 0;
    *t = (target){.w = w};
    encoding_bytes(&w->o->encodings[i], item->rows, item->cols, bytes);
    for (int part = 0; part < PART_COUNT; part++)
        if (bytes[part] > 0)
            t->at[part] = parts++;
    t->entries = &w->entries[w->first[i]] + (w->to == TO_MLX ? 0 : e * parts);
    t->slice = w->to == TO_MLX ? e : 0;
    return (byte_sink){t, put};
}

static dsv4_status write_text(const writer *w, const char *name, const char *text, size_t bytes)
{
    char path[4400];
    out_file *f = NULL;
    snprintf(path, sizeof path, "%s/%s", w->directory, name);
    dsv4_status status = out_file_new(path, 0, &f, w->err);
    if (status != DSV4_OK)
        return status;
    status = out_file_write(f, 0, text, bytes, w->err);
    if (status != DSV4_OK) {
        out_file_abort(f);
        return status;
    }
    return out_files_commit(&f, 1, w->err);
}

static dsv4_status write_json(const writer *w, const char *name, json_t *root)
{
    char *text = root != NULL ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    if (text == NULL)
        return dsv4_fail(w->err, DSV4_E_MACHINE, "out of memory for %s", name);
    dsv4_status status = write_text(w, name, text, strlen(text));
    free(text);
    return status;
}

static dsv4_status write_index(const writer *w)
{
    json_t *map = json_object();
    char name[64];
    for (size_t i = 0; i < w->count; i++) {
        shard_name(w, w->entries[i].shard, name);
        json_object_set_new(map, w->entries[i].name, json_string(name));
    }
    uint64_t total = 0;
    for (int i = 0; i < w->shards; i++)
        total += w->data[i];
    return write_json(w, "model.safetensors.index.json",
                      json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total,
                                "weight_map", map));
}

/* ---- config.json -------------------------------------------------------------------------- */

/* The source's config.json, or one made from the config. */
static json_t *base_config(const writer *w)
{
    char path[4200], *text = NULL;
    json_t *root = NULL;
    if (source_file(w->o->source, "config.json", path, sizeof path))
        return json_load_file(path, 0, NULL);
    if (dsv4_config_write(w->o->config, &text, w->err) == DSV4_OK)
        root = json_loads(text, 0, NULL);
    free(text);
    return root;
}

/* MLX: general parameters, and entries of their own for modules that differ from them. */
static json_t *mlx_quantization(const writer *w)
{
    json_t *q = json_object();
    int bits = 4;
    for (size_t i = 0; i < w->o->weights.count; i++)
        if (w->o->encodings[i].type == DSV4_MLX8)
            bits = 8;
    json_object_set_new(q, "group_size", json_integer(32));
    json_object_set_new(q, "bits", json_integer(bits));
    json_object_set_new(q, "mode", json_string("affine"));
    for (size_t i = 0; i < w->o->weights.count; i++) {
        const encoding *e = &w->o->encodings[i];
        bool fp4 = e->type == DSV4_FP4;
        int own = e->type == DSV4_MLX8 ? 8 : 4, group = fp4 ? 32 : e->group;
        if (!fp4 && e->group == 0)
            continue;
        if (!fp4 && own == bits && group == 32)
            continue;
        const char *name = w->entries[w->first[i]].name;
        char module[128];
        snprintf(module, sizeof module, "%.*s", (int)(strlen(name) - strlen(".weight")), name);
        json_object_set_new(q, module,
                            json_pack("{s:i, s:i, s:s}", "group_size", group, "bits", own, "mode",
                                      fp4 ? "mxfp4" : "affine"));
    }
    return q;
}

static void write_notes(const writer *w, json_t *root)
{
    if (w->o->notes == NULL || w->o->notes->count == 0)
        return;
    json_t *list = json_array();
    for (size_t i = 0; i < w->o->notes->count; i++) {
        const scale_note *n = &w->o->notes->items[i];
        json_array_append_new(
            list, json_sprintf("%s:%lld:%u", n->name, (long long)n->index, (unsigned)n->code));
    }
    json_object_set_new(root, SCALE_NOTES_KEY, list);
}

static dsv4_status write_config(const writer *w)
{
    bool fp8 = false, fp4 = false;
    json_t *root = base_config(w);
    if (!json_is_object(root)) {
        json_decref(root);
        return dsv4_fail(w->err, DSV4_E_MACHINE, "%s: cannot make a config.json", w->directory);
    }
    for (size_t i = 0; i < w->o->weights.count; i++) {
        fp8 = fp8 || w->o->encodings[i].type == DSV4_FP8;
        fp4 = fp4 || w->o->encodings[i].type == DSV4_FP4;
    }
    json_object_del(root, "quantization");
    json_object_del(root, SCALE_NOTES_KEY);
    if (w->to == TO_MLX) {
        write_notes(w, root);
        json_t *q = mlx_quantization(w);
        json_object_set(root, "quantization", q);
        json_object_set_new(root, "quantization_config", q);
    } else {
        json_object_set_new(root, "expert_dtype", fp4 ? json_string("fp4") : json_null());
        const json_t *method =
            json_object_get(json_object_get(root, "quantization_config"), "quant_method");
        if (!fp8)
            json_object_del(root, "quantization_config");
        else if (method == NULL)
            json_object_set_new(root, "quantization_config",
                                json_pack("{s:s, s:s, s:s, s:[i,i], s:s}", "quant_method", "fp8",
                                          "fmt", "e4m3", "scale_fmt", "ue8m0", "weight_block_size",
                                          128, 128, "activation_scheme", "dynamic"));
    }
    return write_json(w, "config.json", root);
}

static dsv4_status copy_beside(const writer *w, const char *name)
{
    enum { LIMIT = 256 * 1000 * 1000 };
    char path[4200], *text = NULL;
    if (!source_file(w->o->source, name, path, sizeof path))
        return DSV4_OK;
    FILE *f = fopen(path, "rb");
    struct stat info;
    dsv4_status status = DSV4_OK;
    if (f == NULL || fstat(fileno(f), &info) != 0 || info.st_size > LIMIT)
        status = dsv4_fail(w->err, DSV4_E_INPUT, "%s: cannot read", path);
    if (status == DSV4_OK) {
        size_t n = (size_t)info.st_size;
        text = dsv4_alloc(n + 1, 1, path, w->err);
        if (text == NULL)
            status = DSV4_E_MACHINE;
        else if (fread(text, 1, n, f) != n)
            status = dsv4_fail(w->err, DSV4_E_MACHINE, "%s: cannot read %zu bytes", path, n);
        else
            status = write_text(w, name, text, n);
    }
    free(text);
    if (f != NULL)
        fclose(f);
    return status;
}

/* ---- the directory ------------------------------------------------------------------------ */

/* An output directory must not be there yet, or be empty. */
static dsv4_status check_target(const char *path, dsv4_error *err)
{
    struct stat info;
    if (lstat(path, &info) != 0)
        return DSV4_OK;
    DIR *d = S_ISDIR(info.st_mode) ? opendir(path) : NULL;
    bool empty = d != NULL;
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            empty = false;
    if (d != NULL)
        closedir(d);
    return empty ? DSV4_OK
                 : dsv4_fail(err, DSV4_E_INPUT,
                             "%s: is there already, expected a new or empty directory", path);
}

static void remove_directory(const char *path)
{
    char file[4600];
    DIR *d = opendir(path);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
            (size_t)snprintf(file, sizeof file, "%s/%s", path, e->d_name) < sizeof file)
            unlink(file);
    if (d != NULL)
        closedir(d);
    rmdir(path);
}

static dsv4_status write_files(writer *w)
{
    static const char *const beside[] = {"tokenizer.json", "tokenizer_config.json",
                                         "generation_config.json"};
    dsv4_status status = lay_out(w);
    for (int i = 0; i < w->shards && status == DSV4_OK; i++)
        status = open_shard(w, i);
    if (status == DSV4_OK)
        status = write_config(w);
    for (size_t i = 0; i < sizeof beside / sizeof *beside && status == DSV4_OK; i++)
        status = copy_beside(w, beside[i]);
    if (status == DSV4_OK && w->shards > 1)
        status = write_index(w);
    if (status == DSV4_OK)
        status = make_all(w->o, sink_of, w, w->err);
    if (status == DSV4_OK)
        status = out_files_commit(w->files, (size_t)w->shards, w->err);
    return status;
}

dsv4_status write_directory(const char *path, container to, model_output *o, dsv4_error *err)
{
    writer w = {.to = to, .o = o, .err = err};
    size_t length = strlen(path), most = 0;
    while (length > 1 && path[length - 1] == '/')
        length--;
    o->written = 0;
    if (length > 4096 || length == 0)
        return dsv4_fail(err, DSV4_E_INPUT, "'%.200s': no name for a directory", path);
    dsv4_status status = check_target(path, err);
    if (status != DSV4_OK)
        return status;
    snprintf(w.directory, sizeof w.directory, "%.*s.tmp.%ld", (int)length, path, (long)getpid());
    if (mkdir(w.directory, 0777) != 0) {
        int number = errno;
        bool input = number == ENOENT || number == ENOTDIR || number == EACCES;
        return dsv4_fail(err, input ? DSV4_E_INPUT : DSV4_E_MACHINE, "%s: cannot create: %s",
                         w.directory, strerror(number));
    }
    for (size_t i = 0; i < o->weights.count; i++)
        most += PART_COUNT * (size_t)(o->weights.items[i].experts + 1);
    w.entries = dsv4_alloc(most, sizeof *w.entries, "a file's layout", err);
    w.first = dsv4_alloc(o->weights.count, sizeof *w.first, "a file's layout", err);
    status = w.entries != NULL && w.first != NULL ? write_files(&w) : DSV4_E_MACHINE;
    for (int i = 0; w.files != NULL && i < w.shards; i++)
        out_file_abort(w.files[i]);
    if (status == DSV4_OK) {
        char target_path[4200];
        snprintf(target_path, sizeof target_path, "%.*s", (int)length, path);
        if (rename(w.directory, target_path) != 0)
            status = dsv4_fail(err, DSV4_E_MACHINE, "%s: cannot rename the temporary directory: %s",
                               target_path, strerror(errno));
    }
    if (status != DSV4_OK)
        remove_directory(w.directory);
    free(w.entries);
    free(w.first);
    free(w.files);
    free(w.data);
    return status;
}
