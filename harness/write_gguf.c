/* write_gguf.c - a model as one GGUF file or several shards, streamed: the layout is known before
 * the first weight is made, and every weight goes straight to its place. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "recipes.h"
#include "reference/checkpoint/gguf.h"
#include "write_metadata.h"

enum { MAX_SHARDS = 65535 }; /* split.no is a u16 */

/* Where a weight goes. */
typedef struct {
    char name[128];
    int shard;
    uint64_t offset; /* in the shard's data; in the file once the headers are known */
    uint64_t bytes;  /* of all its matrices */
    uint64_t matrix; /* of one */
} slot;

typedef struct {
    model_output *o;
    slot *slots; /* [weights.count] */
    out_file **files;
    uint64_t *data; /* [shards] bytes of data, padded */
    int shards;
    dsv4_error *err;
} writer;

static uint64_t padded(uint64_t n)
{
    return (n + GGUF_DEFAULT_ALIGNMENT - 1) / GGUF_DEFAULT_ALIGNMENT * GGUF_DEFAULT_ALIGNMENT;
}

/* Names, sizes, shards, offsets. A shard takes tensors while it holds less than its share. */
static dsv4_status lay_out(writer *w)
{
    uint64_t total = 0, before = 0;
    const weight_list *l = &w->o->weights;
    for (size_t i = 0; i < l->count; i++) {
        const weight *item = &l->items[i];
        uint64_t bytes[PART_COUNT];
        gguf_place place;
        if (!gguf_place_of(item->name, -1, &place))
            return dsv4_fail(w->err, DSV4_E_INPUT, "tensor %s has no name in GGUF", item->name);
        snprintf(w->slots[i].name, sizeof w->slots[i].name, "%s", place.name);
        encoding_bytes(&w->o->encodings[i], item->rows, item->cols, bytes);
        w->slots[i].matrix = bytes[PART_DATA];
        w->slots[i].bytes = bytes[PART_DATA] * (uint64_t)(item->experts > 0 ? item->experts : 1);
        total += padded(w->slots[i].bytes);
    }
    for (size_t i = 0; i < l->count; i++) {
        uint64_t share = total / (uint64_t)w->shards + 1;
        int shard = (int)(before / share);
        w->slots[i].shard = shard < w->shards ? shard : w->shards - 1;
        shard = w->slots[i].shard;
        w->slots[i].offset = w->data[shard];
        w->data[shard] += padded(w->slots[i].bytes);
        before += padded(w->slots[i].bytes);
    }
    return DSV4_OK;
}

static void describe(byte_buffer *b, const weight *item, const encoding *e, const slot *s)
{
    int ndim = item->experts > 0 ? 3 : item->vector ? 1 : 2;
    const uint64_t dims[3] = {(uint64_t)item->cols, (uint64_t)item->rows, (uint64_t)item->experts};
    buffer_string(b, s->name);
    buffer_u32(b, (uint32_t)ndim);
    for (int i = 0; i < ndim; i++)
        buffer_u64(b, dims[i]);
    buffer_u32(b, (uint32_t)dsv4_format_of(e->type)->ggml_type);
    buffer_u64(b, s->offset);
}

/* Writes the header of a shard and turns its slots' offsets into offsets in the file. */
static dsv4_status open_shard(writer *w, int shard, const char *path)
{
    const weight_list *l = &w->o->weights;
    byte_buffer keys = {.err = w->err}, head = {.err = w->err};
    static const uint8_t zeros[GGUF_DEFAULT_ALIGNMENT];
    uint64_t tensors = 0;
    dsv4_status status;
    if (shard == 0)
        write_model_keys(&keys, w->o);
    if (w->shards > 1) {
        key_u16(&keys, "split.no", (uint16_t)shard);
        key_u16(&keys, "split.count", (uint16_t)w->shards);
        key_i32(&keys, "split.tensors.count", (int32_t)l->count);
    }
    for (size_t i = 0; i < l->count; i++)
        tensors += w->slots[i].shard == shard;
    buffer_append(&head, "GGUF", 4);
    buffer_u32(&head, GGUF_VERSION);
    buffer_u64(&head, tensors);
    buffer_u64(&head, keys.keys);
    buffer_append(&head, keys.data, keys.size);
    for (size_t i = 0; i < l->count; i++)
        if (w->slots[i].shard == shard)
            describe(&head, &l->items[i], &w->o->encodings[i], &w->slots[i]);
    if (head.size % GGUF_DEFAULT_ALIGNMENT != 0)
        buffer_append(&head, zeros, GGUF_DEFAULT_ALIGNMENT - head.size % GGUF_DEFAULT_ALIGNMENT);
    status = keys.status != DSV4_OK ? keys.status : head.status;
    if (status == DSV4_OK)
        status = out_file_new(path, head.size + w->data[shard], &w->files[shard], w->err);
    if (status == DSV4_OK)
        status = out_file_write(w->files[shard], 0, head.data, head.size, w->err);
    for (size_t i = 0; i < l->count && status == DSV4_OK; i++) {
        slot *s = &w->slots[i];
        if (s->shard != shard)
            continue;
        s->offset += head.size;
        status = out_file_write(w->files[shard], s->offset + s->bytes, zeros,
                                (size_t)(padded(s->bytes) - s->bytes), w->err);
    }
    w->o->written += head.size + w->data[shard];
    buffer_free(&keys);
    buffer_free(&head);
    return status;
}

typedef struct {
    out_file *file;
    uint64_t offset;
} target;

static dsv4_status put(void *ctx, int part, uint64_t offset, const void *data, size_t bytes,
                       dsv4_error *err)
{
    const target *t = ctx;
    (void)part; /* GGUF types have one part */
    return out_file_write(t->file, t->offset + offset, data, bytes, err);
}

static byte_sink sink_of(void *writer_, size_t i, int64_t e, void *room)
{
    const writer *w = writer_;
    target *t = room;
    *t = (target){w->files[w->slots[i].shard],
                  w->slots[i].offset + (uint64_t)e * w->slots[i].matrix};
    return (byte_sink){t, put};
}

/* "model.gguf" or "model-00001-of-00002.gguf" -> shard `i` of `n`; n = 1: the path itself. */
static bool shard_path(const char *path, int i, int n, char *out, size_t room)
{
    enum { TAIL = 20 };
    size_t stem = strlen(path);
    if (n == 1)
        return (size_t)snprintf(out, room, "%s", path) < room;
    if (stem > 5 && strcmp(path + stem - 5, ".gguf") == 0) {
        const char *tail = path + stem - TAIL;
        stem -= 5;
        if (stem + 5 > TAIL && tail[0] == '-' && strncmp(tail + 6, "-of-", 4) == 0 &&
            strspn(tail + 1, "0123456789") == 5 && strspn(tail + 10, "0123456789") == 5)
            stem -= TAIL - 5;
    }
    return (size_t)snprintf(out, room, "%.*s-%05d-of-%05d.gguf", (int)stem, path, i + 1, n) < room;
}

dsv4_status write_gguf(const char *path, model_output *o, dsv4_error *err)
{
    char name[4200];
    writer w = {.o = o, .shards = o->shards > 0 ? o->shards : 1, .err = err};
    dsv4_status status = DSV4_E_MACHINE;
    o->written = 0;
    if (w.shards > MAX_SHARDS || (size_t)w.shards > o->weights.count)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: %d shards for %zu tensors", path, w.shards,
                         o->weights.count);
    size_t shards = (size_t)w.shards;
    w.slots = dsv4_alloc(o->weights.count, sizeof *w.slots, "a file's layout", err);
    w.files = dsv4_alloc(shards, sizeof(out_file *), "output files", err);
    w.data = dsv4_alloc(shards, sizeof *w.data, "output files", err);
    if (w.slots != NULL && w.files != NULL && w.data != NULL)
        status = lay_out(&w);
    for (int i = 0; i < w.shards && status == DSV4_OK; i++) {
        if (shard_path(path, i, w.shards, name, sizeof name))
            status = open_shard(&w, i, name);
        else
            status = dsv4_fail(err, DSV4_E_INPUT, "%.200s...: the path is too long", path);
    }
    if (status == DSV4_OK)
        status = make_all(o, sink_of, &w, err);
    if (status == DSV4_OK)
        status = out_files_commit(w.files, shards, err);
    for (size_t i = 0; w.files != NULL && i < shards; i++)
        out_file_abort(w.files[i]);
    free(w.slots);
    free(w.files);
    free(w.data);
    return status;
}
