/* write_metadata.c - the keys of a GGUF file: those of the published DeepSeek-V4 files. */
#include "write_metadata.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "reference/checkpoint/gguf.h"

/* ---- bytes -------------------------------------------------------------------------------- */

void buffer_append(byte_buffer *b, const void *data, size_t n)
{
    if (b->status != DSV4_OK || n == 0)
        return;
    if (n > b->capacity - b->size) {
        size_t more = 2 * b->capacity + n + 4096;
        uint8_t *bigger = dsv4_alloc(more, 1, "a file's header", b->err);
        if (bigger == NULL) {
            b->status = DSV4_E_MACHINE;
            return;
        }
        if (b->size > 0)
            memcpy(bigger, b->data, b->size);
        free(b->data);
        b->data = bigger;
        b->capacity = more;
    }
    memcpy(b->data + b->size, data, n);
    b->size += n;
}

void buffer_u32(byte_buffer *b, uint32_t v)
{
    buffer_append(b, &v, sizeof v);
}

void buffer_u64(byte_buffer *b, uint64_t v)
{
    buffer_append(b, &v, sizeof v);
}

void buffer_string(byte_buffer *b, const char *s)
{
    buffer_u64(b, strlen(s));
    buffer_append(b, s, strlen(s));
}

void buffer_free(byte_buffer *b)
{
    free(b->data);
    b->data = NULL;
    b->size = b->capacity = 0;
}

static void key_head(byte_buffer *b, const char *key, gguf_type type)
{
    buffer_string(b, key);
    buffer_u32(b, (uint32_t)type);
    b->keys++;
}

void key_u16(byte_buffer *b, const char *key, uint16_t v)
{
    key_head(b, key, GGUF_U16);
    buffer_append(b, &v, sizeof v);
}

void key_u32(byte_buffer *b, const char *key, uint32_t v)
{
    key_head(b, key, GGUF_U32);
    buffer_u32(b, v);
}

void key_i32(byte_buffer *b, const char *key, int32_t v)
{
    key_head(b, key, GGUF_I32);
    buffer_append(b, &v, sizeof v);
}

static void key_f32(byte_buffer *b, const char *key, float v)
{
    key_head(b, key, GGUF_F32);
    buffer_append(b, &v, sizeof v);
}

static void key_bool(byte_buffer *b, const char *key, bool v)
{
    uint8_t byte = v;
    key_head(b, key, GGUF_BOOL);
    buffer_append(b, &byte, 1);
}

void key_string(byte_buffer *b, const char *key, const char *v)
{
    key_head(b, key, GGUF_STRING);
    buffer_string(b, v);
}

static void array_head(byte_buffer *b, const char *key, gguf_type item, uint64_t count)
{
    key_head(b, key, GGUF_ARRAY);
    buffer_u32(b, (uint32_t)item);
    buffer_u64(b, count);
}

/* ---- the architecture --------------------------------------------------------------------- */

static void write_field(byte_buffer *b, const gguf_field *f, const dsv4_config *c)
{
    char key[128];
    const unsigned char *from = (const unsigned char *)c + f->offset;
    int narrow;
    int64_t wide;
    float single;
    double real;
    snprintf(key, sizeof key, "deepseek4.%s", f->key);
    switch (f->kind) {
    case GGUF_FIELD_INT:
        memcpy(&narrow, from, sizeof narrow);
        key_u32(b, key, (uint32_t)narrow);
        break;
    case GGUF_FIELD_INT64:
        memcpy(&wide, from, sizeof wide);
        key_u32(b, key, (uint32_t)wide); /* config limits keep it below 2^32 */
        break;
    case GGUF_FIELD_FLOAT:
        memcpy(&single, from, sizeof single);
        key_f32(b, key, single);
        break;
    case GGUF_FIELD_DOUBLE:
        memcpy(&real, from, sizeof real);
        key_f32(b, key, (float)real);
        break;
    }
}

/* Keys that no field stands for, right after the one named. */
static void write_neighbours(byte_buffer *b, const char *after, const dsv4_config *c)
{
    int layers = c->num_hidden_layers, all = layers + c->num_nextn_predict_layers;
    if (strcmp(after, "attention.head_count") == 0) {
        key_u32(b, "deepseek4.attention.head_count_kv", 1);
    } else if (strcmp(after, "attention.key_length") == 0) {
        key_u32(b, "deepseek4.attention.value_length", (uint32_t)c->head_dim);
    } else if (strcmp(after, "attention.sliding_window") == 0) {
        array_head(b, "deepseek4.attention.compress_ratios", GGUF_U32, (uint64_t)all);
        for (int i = 0; i < all; i++)
            buffer_u32(b, (uint32_t)c->compress_ratios[i]);
    } else if (strcmp(after, "rope.freq_base") == 0) {
        key_string(b, "deepseek4.rope.scaling.type", c->yarn_factor != 1.0 ? "yarn" : "none");
    } else if (strcmp(after, "expert_weights_scale") == 0) {
        key_bool(b, "deepseek4.expert_weights_norm", true);
        key_u32(b, "deepseek4.expert_gating_func", 4); /* sqrtsoftplus */
    } else if (strcmp(after, "hash_layer_count") == 0) {
        array_head(b, "deepseek4.swiglu_clamp_exp", GGUF_F32, (uint64_t)layers);
        buffer_append(b, c->swiglu_limit, (size_t)layers * sizeof(float));
    }
}

/* ---- the tokenizer ------------------------------------------------------------------------ */

bool source_file(const dsv4_model *source, const char *name, char *path, size_t room)
{
    struct stat info;
    if (source == NULL || strcmp(dsv4_model_container(source), "gguf") == 0)
        return false;
    const char *from = dsv4_model_path(source);
    const char *slash = strrchr(from, '/');
    size_t n;
    if (stat(from, &info) != 0)
        return false;
    if (S_ISDIR(info.st_mode))
        n = (size_t)snprintf(path, room, "%s/%s", from, name);
    else
        n = (size_t)snprintf(path, room, "%.*s%s", slash != NULL ? (int)(slash - from) + 1 : 0,
                             from, name);
    return n < room && stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

/* A GGUF file's own keys, byte for byte. */
static bool copy_gguf_tokenizer(byte_buffer *b, const dsv4_model *source);

typedef struct {
    byte_buffer *b;
    const dsv4_model *source;
    bool any;
} copier;

static bool copy_key(void *ctx, const char *key, const char *type, const char *value)
{
    copier *c = ctx;
    dsv4_key_value v;
    (void)type, (void)value;
    if (strncmp(key, "tokenizer.", 10) != 0 || !dsv4_model_key(c->source, key, &v))
        return true;
    c->any = true;
    key_head(c->b, key, (gguf_type)v.type);
    if (v.type == GGUF_ARRAY) {
        buffer_u32(c->b, (uint32_t)v.item_type);
        buffer_u64(c->b, v.count);
    }
    buffer_append(c->b, v.data, (size_t)v.bytes);
    return true;
}

static bool copy_gguf_tokenizer(byte_buffer *b, const dsv4_model *source)
{
    copier c = {.b = b, .source = source};
    dsv4_model_each_key(source, copy_key, &c);
    return c.any;
}

typedef struct {
    const char *text;
    int32_t type;
} token;

enum { TOKEN_NORMAL = 1, TOKEN_CONTROL = 3, TOKEN_USER = 4, TOKEN_UNUSED = 5 };

static void wrong_tokenizer(byte_buffer *b, const char *path, const char *problem)
{
    if (b->status == DSV4_OK)
        b->status = dsv4_fail(b->err, DSV4_E_INPUT, "%s: %s", path, problem);
}

static void set_token(byte_buffer *b, const char *path, token *tokens, int64_t n, json_int_t id,
                      const char *text, int32_t type)
{
    if (id < 0 || id >= n || text == NULL)
        wrong_tokenizer(b, path, "a token without text or with an id outside the vocabulary");
    else
        tokens[id] = (token){text, type};
}

static void write_merges(byte_buffer *b, const char *path, const json_t *merges)
{
    array_head(b, "tokenizer.ggml.merges", GGUF_STRING, json_array_size(merges));
    for (size_t i = 0; i < json_array_size(merges) && b->status == DSV4_OK; i++) {
        const json_t *m = json_array_get(merges, i);
        const char *whole = json_string_value(m);
        const char *left = json_string_value(json_array_get(m, 0));
        const char *right = json_string_value(json_array_get(m, 1));
        if (whole != NULL) {
            buffer_string(b, whole);
        } else if (left != NULL && right != NULL) {
            buffer_u64(b, strlen(left) + 1 + strlen(right));
            buffer_append(b, left, strlen(left));
            buffer_append(b, " ", 1);
            buffer_append(b, right, strlen(right));
        } else {
            wrong_tokenizer(b, path, "model.merges: expected pairs of strings");
        }
    }
}

/* tokenizer.json -> tokens, types, merges; ids that nobody uses become [PADn]. */
static void write_tokenizer_json(byte_buffer *b, const char *path, const dsv4_config *c)
{
    json_error_t where;
    char pad[32];
    int64_t n = c->vocab_size;
    json_t *root = json_load_file(path, 0, &where), *entry;
    const json_t *vocab = json_object_get(json_object_get(root, "model"), "vocab");
    const json_t *merges = json_object_get(json_object_get(root, "model"), "merges");
    token *tokens = dsv4_alloc((size_t)n, sizeof *tokens, "a vocabulary", b->err);
    const char *text;
    size_t i;
    if (tokens == NULL) {
        b->status = DSV4_E_MACHINE;
        goto done;
    }
    if (!json_is_object(vocab) || !json_is_array(merges)) {
        wrong_tokenizer(b, path, "expected model.vocab and model.merges (BPE)");
        goto done;
    }
    json_object_foreach((json_t *)(uintptr_t)vocab, text, entry)
        set_token(b, path, tokens, n, json_is_integer(entry) ? json_integer_value(entry) : -1, text,
                  TOKEN_NORMAL);
    json_array_foreach(json_object_get(root, "added_tokens"), i, entry)
        set_token(b, path, tokens, n,
                  json_is_integer(json_object_get(entry, "id"))
                      ? json_integer_value(json_object_get(entry, "id"))
                      : -1,
                  json_string_value(json_object_get(entry, "content")),
                  json_is_true(json_object_get(entry, "special")) ? TOKEN_CONTROL : TOKEN_USER);
    key_string(b, "tokenizer.ggml.model", "gpt2");
    key_string(b, "tokenizer.ggml.pre", "joyai-llm");
    array_head(b, "tokenizer.ggml.tokens", GGUF_STRING, (uint64_t)n);
    for (int64_t t = 0; t < n; t++) {
        snprintf(pad, sizeof pad, "[PAD%lld]", (long long)t);
        buffer_string(b, tokens[t].text != NULL ? tokens[t].text : pad);
    }
    array_head(b, "tokenizer.ggml.token_type", GGUF_I32, (uint64_t)n);
    for (int64_t t = 0; t < n; t++)
        buffer_u32(b, (uint32_t)(tokens[t].text != NULL ? tokens[t].type : TOKEN_UNUSED));
    write_merges(b, path, merges);
    if (c->bos_token_id >= 0)
        key_u32(b, "tokenizer.ggml.bos_token_id", (uint32_t)c->bos_token_id);
    if (c->eos_token_id >= 0)
        key_u32(b, "tokenizer.ggml.eos_token_id", (uint32_t)c->eos_token_id);
done:
    free(tokens);
    json_decref(root);
}

static void write_tokenizer(byte_buffer *b, const model_output *o)
{
    char path[4200];
    if (o->source != NULL && copy_gguf_tokenizer(b, o->source))
        return;
    if (source_file(o->source, "tokenizer.json", path, sizeof path))
        write_tokenizer_json(b, path, o->config);
    else
        key_string(b, "tokenizer.ggml.model", "no_vocab");
}

void write_model_keys(byte_buffer *b, const model_output *o)
{
    key_string(b, "general.architecture", "deepseek4");
    key_string(b, "general.type", "model");
    key_string(b, "general.name", o->name);
    key_u32(b, "general.quantization_version", 2);
    key_u32(b, "general.file_type", (uint32_t)o->file_type);
    for (size_t i = 0; i < gguf_field_count; i++) {
        write_field(b, &gguf_fields[i], o->config);
        write_neighbours(b, gguf_fields[i].key, o->config);
    }
    write_tokenizer(b, o);
    if (o->notes != NULL && o->notes->count > 0) {
        array_head(b, SCALE_NOTES_KEY, GGUF_STRING, o->notes->count);
        for (size_t i = 0; i < o->notes->count; i++) {
            char text[160];
            const scale_note *n = &o->notes->items[i];
            snprintf(text, sizeof text, "%s:%lld:%u", n->name, (long long)n->index,
                     (unsigned)n->code);
            buffer_string(b, text);
        }
    }
    if (o->imatrix_path != NULL) {
        key_string(b, "quantize.imatrix.file", o->imatrix_path);
        key_u32(b, "quantize.imatrix.entries_count", (uint32_t)o->imatrix_entries);
    }
}
