/* support_checkpoint.h - a checkpoint of a few kilobytes in the layout of the official release,
 * made in a folder of its own: every kind of layer, every stored type. Tests change it before it is
 * written, or the files afterwards. */
#ifndef DSV4_TEST_SUPPORT_CHECKPOINT_H
#define DSV4_TEST_SUPPORT_CHECKPOINT_H

#include <dirent.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

#include "reference/formats/formats.h"
#include "support.h"

/* ---- the folder --------------------------------------------------------------------------- */

/* Made in main, before Check forks: a test that dies leaves nothing behind. */
static char folder[256];

static inline bool folder_make(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%.200s/dsv4-test-XXXXXX", tmp != NULL ? tmp : "/tmp");
    return mkdtemp(folder) != NULL;
}

static inline const char *in_folder(const char *name)
{
    static char path[sizeof folder + 80];
    snprintf(path, sizeof path, "%s/%.70s", folder, name);
    return path;
}

static inline void folder_empty(void)
{
    DIR *d = opendir(folder);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;)
        if (e->d_name[0] != '.')
            remove(in_folder(e->d_name));
    if (d != NULL)
        closedir(d);
}

static inline void folder_remove(void)
{
    folder_empty();
    rmdir(folder);
}

static inline void write_file(const char *name, const void *data, size_t bytes)
{
    FILE *f = fopen(in_folder(name), "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert(fwrite(data, 1, bytes, f) == bytes);
    ck_assert(fclose(f) == 0);
}

/* The whole file; the caller frees. */
static inline uint8_t *read_file(const char *name, size_t *bytes)
{
    struct stat info;
    FILE *f = fopen(in_folder(name), "rb");
    ck_assert(f != NULL && fstat(fileno(f), &info) == 0);
    *bytes = (size_t)info.st_size;
    uint8_t *data = malloc(*bytes + 1);
    ck_assert(data != NULL && fread(data, 1, *bytes, f) == *bytes);
    fclose(f);
    return data;
}

/* ---- the checkpoint ----------------------------------------------------------------------- */

enum { TINY_TENSORS = 300, TINY_KEYS = 40, TINY_FILES = 3 };

typedef struct {
    char name[64], dtype[16];
    int ndim, file; /* file -1: stored nowhere */
    int64_t shape[4];
    uint8_t *data;
    size_t bytes;
    const char *entry; /* header text in place of dtype, shape and offsets */
} tiny_tensor;

typedef struct {
    char key[40], value[200]; /* JSON text; empty = left out */
} tiny_key;

typedef struct {
    int n_keys, n_tensors;
    int files;         /* 1: model.safetensors; more: model-1.safetensors ... and an index */
    const char *index; /* text in place of the index */
    tiny_key keys[TINY_KEYS];
    tiny_tensor tensors[TINY_TENSORS];
    noise r;
} tiny;

enum {
    TINY_VOCAB = 17,
    TINY_D = 32,
    TINY_F = 32,
    TINY_LAYERS = 3,
    TINY_H = 4,
    TINY_HEAD = 32,
    TINY_ROPE = 16,
    TINY_Q = 16,
    TINY_GROUPS = 2,
    TINY_O = 8,
    TINY_E = 4,
    TINY_K = 2,
    TINY_WINDOW = 8,
    TINY_INDEX_H = 2,
    TINY_INDEX = 32,
    TINY_TOPK = 3,
    TINY_HC = 4,
};

static inline void tiny_set(tiny *t, const char *key, const char *value)
{
    int at = 0;
    while (at < t->n_keys && strcmp(t->keys[at].key, key) != 0)
        at++;
    ck_assert_int_lt(at, TINY_KEYS);
    if (at == t->n_keys)
        t->n_keys++;
    snprintf(t->keys[at].key, sizeof t->keys[at].key, "%s", key);
    snprintf(t->keys[at].value, sizeof t->keys[at].value, "%s", value);
}

static inline tiny_tensor *tiny_find(tiny *t, const char *name)
{
    for (int i = 0; i < t->n_tensors; i++)
        if (strcmp(t->tensors[i].name, name) == 0)
            return &t->tensors[i];
    ck_abort_msg("the tiny checkpoint has no tensor %s", name);
    return NULL;
}

/* Room for a tensor; rows 0 = a vector. */
static inline tiny_tensor *tiny_add(tiny *t, const char *name, const char *dtype, int width,
                                    int64_t rows, int64_t cols)
{
    ck_assert_int_lt(t->n_tensors, TINY_TENSORS);
    tiny_tensor *out = &t->tensors[t->n_tensors++];
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "%s", name);
    snprintf(out->dtype, sizeof out->dtype, "%s", dtype);
    out->ndim = rows > 0 ? 2 : 1;
    out->shape[0] = rows > 0 ? rows : cols;
    out->shape[1] = cols;
    out->bytes = (size_t)((rows > 0 ? rows : 1) * cols) * (size_t)width;
    out->data = calloc(out->bytes, 1);
    ck_assert_ptr_nonnull(out->data);
    return out;
}

typedef enum { AS_F32, AS_BF16, AS_FP8, AS_FP4 } tiny_type;

/* middle + amplitude * noise; prefix.name, with .scale beside .weight for FP8 and FP4. */
static inline void tiny_floats(tiny *t, tiny_type as, int64_t rows, int64_t cols, float middle,
                               float amplitude, const char *prefix, const char *suffix)
{
    char name[64], scale[64];
    snprintf(name, sizeof name, "%.40s%.20s", prefix, suffix);
    int64_t n = (rows > 0 ? rows : 1) * cols;
    if (as == AS_F32 || as == AS_BF16) {
        tiny_tensor *out =
            tiny_add(t, name, as == AS_F32 ? "F32" : "BF16", as == AS_F32 ? 4 : 2, rows, cols);
        for (int64_t i = 0; i < n; i++) {
            float v = middle + amplitude * noise_float(&t->r);
            uint16_t half = dsv4_f32_to_bf16(v);
            if (as == AS_F32)
                memcpy(out->data + 4 * i, &v, 4);
            else
                memcpy(out->data + 2 * i, &half, 2);
        }
        return;
    }
    ck_assert(strcmp(suffix, ".weight") == 0);
    snprintf(scale, sizeof scale, "%.40s.scale", prefix);
    if (as == AS_FP8) {
        tiny_tensor *out = tiny_add(t, name, "F8_E4M3", 1, rows, cols);
        for (int64_t i = 0; i < n; i++)
            out->data[i] = dsv4_f32_to_e4m3(256 * amplitude * noise_float(&t->r));
        out = tiny_add(t, scale, "F8_E8M0", 1, (rows + 127) / 128, (cols + 127) / 128);
        memset(out->data, 127 - 8, out->bytes);
    } else {
        tiny_tensor *out = tiny_add(t, name, "I8", 1, rows, cols / 2);
        for (int64_t i = 0; i < n / 2; i++)
            out->data[i] = (uint8_t)noise_bits(&t->r);
        out = tiny_add(t, scale, "F8_E8M0", 1, rows, cols / 32);
        memset(out->data, 127 - 4, out->bytes);
    }
}

static inline void tiny_hc(tiny *t, const char *layer, const char *name, int64_t mixes,
                           int64_t scales)
{
    char prefix[64];
    snprintf(prefix, sizeof prefix, "%s%s", layer, name);
    tiny_floats(t, AS_F32, mixes, TINY_HC * TINY_D, 0, 0.2f, prefix, "_fn");
    tiny_floats(t, AS_F32, 0, mixes, 0, 1, prefix, "_base");
    tiny_floats(t, AS_F32, 0, scales, 0.7f, 0.2f, prefix, "_scale");
}

static inline void tiny_compressor(tiny *t, const char *prefix, int ratio, int64_t dim)
{
    char name[64];
    int64_t width = (ratio == 4 ? 2 : 1) * dim;
    snprintf(name, sizeof name, "%.50s.wkv", prefix);
    tiny_floats(t, AS_BF16, width, TINY_D, 0, 0.3f, name, ".weight");
    snprintf(name, sizeof name, "%.50s.wgate", prefix);
    tiny_floats(t, AS_BF16, width, TINY_D, 0, 0.3f, name, ".weight");
    tiny_floats(t, AS_F32, ratio, width, 0, 0.5f, prefix, ".ape");
    snprintf(name, sizeof name, "%.50s.norm", prefix);
    tiny_floats(t, AS_BF16, 0, dim, 1, 0.3f, name, ".weight");
}

/* The tensors prefix + name of one layer. */
static inline void tiny_layer(tiny *t, const char *prefix, int ratio, bool hash)
{
    static const struct {
        const char *name;
        tiny_type as;
        int rows, cols;
    } matrices[] = {
        {"attn.wq_a", AS_FP8, TINY_Q, TINY_D},
        {"attn.wq_b", AS_FP8, TINY_H * TINY_HEAD, TINY_Q},
        {"attn.wkv", AS_FP8, TINY_HEAD, TINY_D},
        {"attn.wo_a", AS_FP8, TINY_GROUPS * TINY_O, TINY_H / TINY_GROUPS * TINY_HEAD},
        {"attn.wo_b", AS_FP8, TINY_D, TINY_GROUPS * TINY_O},
        {"ffn.gate", AS_BF16, TINY_E, TINY_D},
        {"ffn.shared_experts.w1", AS_FP8, TINY_F, TINY_D},
        {"ffn.shared_experts.w2", AS_FP8, TINY_D, TINY_F},
        {"ffn.shared_experts.w3", AS_FP8, TINY_F, TINY_D},
    };
    static const struct {
        const char *name;
        int cols;
    } norms[] = {{"attn_norm", TINY_D},
                 {"ffn_norm", TINY_D},
                 {"attn.q_norm", TINY_Q},
                 {"attn.kv_norm", TINY_HEAD}};
    char name[64];
    tiny_hc(t, prefix, "hc_attn", (2 + TINY_HC) * TINY_HC, 3);
    tiny_hc(t, prefix, "hc_ffn", (2 + TINY_HC) * TINY_HC, 3);
    for (size_t i = 0; i < COUNT_OF(matrices); i++) {
        snprintf(name, sizeof name, "%s%s", prefix, matrices[i].name);
        tiny_floats(t, matrices[i].as, matrices[i].rows, matrices[i].cols, 0, 0.4f, name,
                    ".weight");
    }
    for (size_t i = 0; i < COUNT_OF(norms); i++) {
        snprintf(name, sizeof name, "%s%s", prefix, norms[i].name);
        tiny_floats(t, AS_BF16, 0, norms[i].cols, 1, 0.3f, name, ".weight");
    }
    tiny_floats(t, AS_F32, 0, TINY_H, 0, 1, prefix, "attn.attn_sink");
    snprintf(name, sizeof name, "%sattn.compressor", prefix);
    if (ratio > 0)
        tiny_compressor(t, name, ratio, TINY_HEAD);
    if (ratio == 4) {
        snprintf(name, sizeof name, "%sattn.indexer.compressor", prefix);
        tiny_compressor(t, name, ratio, TINY_INDEX);
        snprintf(name, sizeof name, "%sattn.indexer.wq_b", prefix);
        tiny_floats(t, AS_FP8, TINY_INDEX_H * TINY_INDEX, TINY_Q, 0, 0.4f, name, ".weight");
        snprintf(name, sizeof name, "%sattn.indexer.weights_proj", prefix);
        tiny_floats(t, AS_BF16, TINY_INDEX_H, TINY_D, 0, 0.4f, name, ".weight");
    }
    if (hash) {
        snprintf(name, sizeof name, "%sffn.gate.tid2eid", prefix);
        tiny_tensor *table = tiny_add(t, name, "I64", 8, TINY_VOCAB, TINY_K);
        for (int id = 0; id < TINY_VOCAB; id++) {
            const int64_t pair[TINY_K] = {id % TINY_E, (id + 1 + id / TINY_E % 3) % TINY_E};
            memcpy(table->data + sizeof pair * (size_t)id, pair, sizeof pair);
        }
    } else {
        tiny_floats(t, AS_F32, 0, TINY_E, 0, 0.2f, prefix, "ffn.gate.bias");
    }
    for (int e = 0; e < TINY_E; e++)
        for (int w = 1; w <= 3; w++) {
            snprintf(name, sizeof name, "%sffn.experts.%d.w%d", prefix, e, w);
            tiny_floats(t, AS_FP4, w == 2 ? TINY_D : TINY_F, w == 2 ? TINY_F : TINY_D, 0, 1, name,
                        ".weight");
        }
}

/* The keys that every config must have, and optional ones after them. */
static const struct {
    const char *key, *value;
    bool required;
} tiny_config[] = {
    {"vocab_size", "17", true},
    {"hidden_size", "32", true},
    {"moe_intermediate_size", "32", true},
    {"num_hidden_layers", "3", true},
    {"num_attention_heads", "4", true},
    {"head_dim", "32", true},
    {"qk_rope_head_dim", "16", true},
    {"q_lora_rank", "16", true},
    {"o_groups", "2", true},
    {"o_lora_rank", "8", true},
    {"n_routed_experts", "4", true},
    {"num_experts_per_tok", "2", true},
    {"n_shared_experts", "1", true},
    {"num_hash_layers", "1", true},
    {"routed_scaling_factor", "1.5", true},
    {"swiglu_limit", "10.0", true},
    {"compress_ratios", "[0, 4, 128, 0]", true},
    {"sliding_window", "8", true},
    {"index_n_heads", "2", true},
    {"index_head_dim", "32", true},
    {"index_topk", "3", true},
    {"hc_mult", "4", true},
    {"hc_sinkhorn_iters", "20", true},
    {"hc_eps", "1e-6", true},
    {"rms_norm_eps", "1e-6", true},
    {"rope_theta", "10000", true},
    {"compress_rope_theta", "160000", true},
    {"max_position_embeddings", "4096", true},
    {"num_nextn_predict_layers", "1", false},
    {"scoring_func", "\"sqrtsoftplus\"", false},
    {"rope_scaling",
     "{\"type\": \"yarn\", \"factor\": 16, \"beta_fast\": 32, \"beta_slow\": 1, "
     "\"original_max_position_embeddings\": 65536}",
     false},
    {"bos_token_id", "0", false},
};

static inline tiny *tiny_new(void)
{
    static const char *const projections[] = {"mtp.0.e_proj", "mtp.0.h_proj"};
    static const char *const norms[] = {"norm", "mtp.0.enorm", "mtp.0.hnorm", "mtp.0.norm"};
    tiny *t = calloc(1, sizeof *t);
    ck_assert_ptr_nonnull(t);
    t->files = 1;
    t->r.state = 20;
    for (size_t i = 0; i < COUNT_OF(tiny_config); i++)
        tiny_set(t, tiny_config[i].key, tiny_config[i].value);
    tiny_floats(t, AS_BF16, TINY_VOCAB, TINY_D, 0, 1, "embed", ".weight");
    tiny_floats(t, AS_BF16, TINY_VOCAB, TINY_D, 0, 1, "head", ".weight");
    for (size_t i = 0; i < COUNT_OF(norms); i++)
        tiny_floats(t, AS_BF16, 0, TINY_D, 1, 0.3f, norms[i], ".weight");
    for (size_t i = 0; i < COUNT_OF(projections); i++)
        tiny_floats(t, AS_FP8, TINY_D, TINY_D, 0, 0.4f, projections[i], ".weight");
    tiny_hc(t, "", "hc_head", TINY_HC, 1);
    tiny_hc(t, "mtp.0.", "hc_head", TINY_HC, 1);
    tiny_layer(t, "layers.0.", 0, true);
    tiny_layer(t, "layers.1.", 4, false);
    tiny_layer(t, "layers.2.", 128, false);
    tiny_layer(t, "mtp.0.", 0, false);
    return t;
}

static inline void tiny_free(tiny *t)
{
    for (int i = 0; i < t->n_tensors; i++)
        free(t->tensors[i].data);
    free(t);
}

/* ---- writing ------------------------------------------------------------------------------ */

typedef struct {
    char *text;
    size_t length, room;
} text_buffer;

static inline void text_add(text_buffer *b, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static inline void text_add(text_buffer *b, const char *fmt, ...)
{
    if (b->room - b->length < 1024) {
        b->room = 2 * b->room + 4096;
        b->text = realloc(b->text, b->room);
        ck_assert_ptr_nonnull(b->text);
    }
    va_list args;
    va_start(args, fmt);
    b->length += (size_t)vsnprintf(b->text + b->length, b->room - b->length, fmt, args);
    va_end(args);
    ck_assert(b->length < b->room);
}

static inline const char *tiny_file(const tiny *t, int file)
{
    static char name[32];
    if (t->files == 1)
        return "model.safetensors";
    snprintf(name, sizeof name, "model-%d.safetensors", file + 1);
    return name;
}

static inline void tiny_write_weights(const tiny *t, int file)
{
    text_buffer header = {0}, data = {0};
    int64_t at = 0;
    text_add(&header, "{\"__metadata__\": {\"format\": \"pt\"}");
    for (int i = 0; i < t->n_tensors; i++) {
        const tiny_tensor *x = &t->tensors[i];
        if (x->file != file)
            continue;
        int64_t end = at + (int64_t)x->bytes;
        text_add(&header, ", \"%s\": ", x->name);
        if (x->entry != NULL) {
            text_add(&header, "%s", x->entry);
        } else {
            text_add(&header, "{\"dtype\": \"%s\", \"shape\": [", x->dtype);
            for (int k = 0; k < x->ndim; k++)
                text_add(&header, "%s%lld", k > 0 ? ", " : "", (long long)x->shape[k]);
            text_add(&header, "], \"data_offsets\": [%lld, %lld]}", (long long)at, (long long)end);
        }
        data.text = realloc(data.text, (size_t)end);
        ck_assert_ptr_nonnull(data.text);
        memcpy(data.text + at, x->data, x->bytes);
        at = end;
    }
    text_add(&header, "}");
    uint8_t length[8];
    for (int i = 0; i < 8; i++)
        length[i] = (uint8_t)((uint64_t)header.length >> 8 * i);
    FILE *f = fopen(in_folder(tiny_file(t, file)), "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert(fwrite(length, 1, 8, f) == 8);
    ck_assert(fwrite(header.text, 1, header.length, f) == header.length);
    ck_assert(at == 0 || fwrite(data.text, 1, (size_t)at, f) == (size_t)at);
    ck_assert(fclose(f) == 0);
    free(header.text);
    free(data.text);
}

static inline void tiny_write_index(const tiny *t)
{
    text_buffer index = {0};
    text_add(&index, "{\"weight_map\": {");
    const char *comma = "";
    for (int i = 0; i < t->n_tensors; i++)
        if (t->tensors[i].file >= 0) {
            text_add(&index, "%s\"%s\": \"%s\"", comma, t->tensors[i].name,
                     tiny_file(t, t->tensors[i].file));
            comma = ", ";
        }
    text_add(&index, "}}");
    if (t->index != NULL)
        write_file("model.safetensors.index.json", t->index, strlen(t->index));
    else
        write_file("model.safetensors.index.json", index.text, index.length);
    free(index.text);
}

static inline void tiny_write(const tiny *t)
{
    text_buffer config = {0};
    folder_empty();
    const char *comma = "{";
    for (int i = 0; i < t->n_keys; i++)
        if (t->keys[i].value[0] != '\0') {
            text_add(&config, "%s\n  \"%s\": %s", comma, t->keys[i].key, t->keys[i].value);
            comma = ",";
        }
    text_add(&config, "\n}\n");
    write_file("config.json", config.text, config.length);
    free(config.text);
    for (int file = 0; file < t->files; file++)
        tiny_write_weights(t, file);
    if (t->files > 1 || t->index != NULL)
        tiny_write_index(t);
}

#endif
