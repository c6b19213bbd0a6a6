/* support_gguf.h - GGUF files of a tiny model, written byte by byte by code that shares nothing
 * with the reader, and with whatever fault a test asks for. */
#ifndef DSV4_TEST_SUPPORT_GGUF_H
#define DSV4_TEST_SUPPORT_GGUF_H

#include <check.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "reference/dsv4.h"

/* ---- a small writer ----------------------------------------------------------------------- */

enum { U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 };
enum { T_F32 = 0, T_F16 = 1, T_Q8_0 = 8, T_I32 = 26 };

typedef struct {
    uint8_t bytes[1 << 17];
    size_t n;
} buffer;

static inline void put(buffer *b, const void *data, size_t n)
{
    ck_assert_uint_le(b->n + n, sizeof b->bytes);
    memcpy(b->bytes + b->n, data, n);
    b->n += n;
}

static inline void put32(buffer *b, uint32_t v)
{
    put(b, &v, 4);
}

static inline void put64(buffer *b, uint64_t v)
{
    put(b, &v, 8);
}

static inline void put_text(buffer *b, const char *s)
{
    put64(b, strlen(s));
    put(b, s, strlen(s));
}

/* Shape of the test model. */
enum { D = 8, V = 6, H = 2, HD = 4, R = 2, QL = 4, G = 1, OL = 4, E = 2, F = 4, HC = 2 };

/* What a test changes in the file. */
typedef struct {
    uint32_t version; /* 0 = 3 */
    const char *skip; /* this key or tensor is left out */
    const char *key;  /* this key gets another value: type, then bytes */
    uint32_t key_type;
    const void *key_bytes;
    size_t key_size;
    const char *tensor; /* this tensor gets another... */
    uint32_t type;      /* ...type (if type_set) */
    bool type_set;
    uint32_t ndim;              /* ...number of axes */
    uint64_t dim;               /* ...first axis */
    uint64_t shift;             /* ...offset added */
    const char *rename;         /* ...name */
    uint64_t n_tensors, n_keys; /* added to the counts */
    uint32_t alignment;         /* 0 = 32, not written */
    int layers;                 /* 0 = 1 */
    int shard, shards;          /* shards > 0: split keys; tensor i goes to shard i % shards */
    int split_no, split_count;  /* added to the right values */
    bool nextn;                 /* MTP as block `layers` */
    bool mtp_only;              /* mtp.0.* alone */
    bool all_types;             /* keys of every value type */
} edit;

typedef struct {
    char name[80];
    uint32_t type, ndim;
    uint64_t dims[4];
    uint64_t offset;
} tensor;

typedef struct {
    const edit *e;
    buffer keys;
    uint64_t n_keys;
    tensor tensors[160];
    int n_tensors;
} file;

static inline bool key(file *f, const char *name, uint32_t type)
{
    const edit *e = f->e;
    if (e->skip != NULL && strcmp(e->skip, name) == 0)
        return false;
    f->n_keys++;
    put_text(&f->keys, name);
    if (e->key != NULL && strcmp(e->key, name) == 0) {
        put32(&f->keys, e->key_type);
        put(&f->keys, e->key_bytes, e->key_size);
        return false;
    }
    put32(&f->keys, type);
    return true;
}

static inline void key_u32(file *f, const char *name, uint32_t v)
{
    if (key(f, name, U32))
        put32(&f->keys, v);
}

static inline void key_f32(file *f, const char *name, float v)
{
    if (key(f, name, F32))
        put(&f->keys, &v, 4);
}

static inline void key_text(file *f, const char *name, const char *v)
{
    if (key(f, name, STR))
        put_text(&f->keys, v);
}

static inline void key_types(file *f)
{
    static const uint8_t eight[8] = {1};
    static const struct {
        const char *name;
        uint32_t type;
        size_t n;
    } plain[] = {{"x.u8", U8, 1},   {"x.i8", I8, 1},   {"x.u16", U16, 2},
                 {"x.i16", I16, 2}, {"x.i32", I32, 4}, {"x.u64", U64, 8},
                 {"x.i64", I64, 8}, {"x.f64", F64, 8}, {"x.bool", BOOL, 1}};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (key(f, plain[i].name, plain[i].type))
            put(&f->keys, eight, plain[i].n);
    if (key(f, "x.strings", ARR)) {
        put32(&f->keys, STR);
        put64(&f->keys, 2);
        put_text(&f->keys, "one\n");
        put_text(&f->keys, "");
    }
    if (key(f, "x.nested", ARR)) {
        put32(&f->keys, ARR);
        put64(&f->keys, 1);
        put32(&f->keys, U8);
        put64(&f->keys, 3);
        put(&f->keys, "abc", 3);
    }
    if (key(f, "x.empty", ARR)) {
        put32(&f->keys, F32);
        put64(&f->keys, 0);
    }
}

static inline void config_keys(file *f, int layers)
{
    int blocks = layers + (f->e->nextn ? 1 : 0);
    key_text(f, "general.architecture", "deepseek4");
    if (f->e->alignment != 0)
        key_u32(f, "general.alignment", f->e->alignment);
    key_u32(f, "deepseek4.vocab_size", V);
    key_u32(f, "deepseek4.context_length", 1000);
    key_u32(f, "deepseek4.embedding_length", D);
    key_u32(f, "deepseek4.block_count", (uint32_t)blocks);
    key_u32(f, "deepseek4.attention.head_count", H);
    key_u32(f, "deepseek4.attention.head_count_kv", 1);
    key_u32(f, "deepseek4.attention.key_length", HD);
    key_u32(f, "deepseek4.attention.value_length", HD);
    key_f32(f, "deepseek4.attention.layer_norm_rms_epsilon", 1e-6f);
    key_u32(f, "deepseek4.attention.q_lora_rank", QL);
    key_u32(f, "deepseek4.attention.output_lora_rank", OL);
    key_u32(f, "deepseek4.attention.output_group_count", G);
    key_u32(f, "deepseek4.attention.sliding_window", 8);
    if (key(f, "deepseek4.attention.compress_ratios", ARR)) {
        put32(&f->keys, U32);
        put64(&f->keys, (uint64_t)blocks + 1);
        for (int i = 0; i <= blocks; i++)
            put32(&f->keys, 0);
    }
    key_f32(f, "deepseek4.attention.compress_rope_freq_base", 160000);
    key_u32(f, "deepseek4.attention.indexer.head_count", 1);
    key_u32(f, "deepseek4.attention.indexer.key_length", 4);
    key_u32(f, "deepseek4.attention.indexer.top_k", 2);
    key_u32(f, "deepseek4.rope.dimension_count", R);
    key_f32(f, "deepseek4.rope.freq_base", 10000);
    key_text(f, "deepseek4.rope.scaling.type", "yarn");
    key_f32(f, "deepseek4.rope.scaling.factor", 16);
    key_u32(f, "deepseek4.rope.scaling.original_context_length", 65536);
    key_u32(f, "deepseek4.expert_count", E);
    key_u32(f, "deepseek4.expert_used_count", 1);
    key_u32(f, "deepseek4.expert_shared_count", 1);
    key_u32(f, "deepseek4.expert_feed_forward_length", F);
    key_f32(f, "deepseek4.expert_weights_scale", 1.5f);
    key_u32(f, "deepseek4.expert_gating_func", 4);
    key_u32(f, "deepseek4.hash_layer_count", 0);
    key_f32(f, "deepseek4.swiglu_clamp_exp", 10);
    key_u32(f, "deepseek4.hyper_connection.count", HC);
    key_u32(f, "deepseek4.hyper_connection.sinkhorn_iterations", 3);
    key_f32(f, "deepseek4.hyper_connection.epsilon", 1e-6f);
    key_u32(f, "deepseek4.nextn_predict_layers", 1);
    if (f->e->all_types)
        key_types(f);
}

/* dims: fastest first, 0 = no such axis. */
static inline void add(file *f, const char *prefix, const char *name, uint64_t d0, uint64_t d1,
                       uint64_t d2)
{
    tensor *t = &f->tensors[f->n_tensors];
    snprintf(t->name, sizeof t->name, "%s%s", prefix, name);
    if (f->e->skip != NULL && strcmp(f->e->skip, t->name) == 0)
        return;
    t->type = T_F32;
    t->ndim = d2 != 0 ? 3 : d1 != 0 ? 2 : 1;
    t->dims[0] = d0;
    t->dims[1] = d1;
    t->dims[2] = d2;
    f->n_tensors++;
}

static inline void add_hc(file *f, const char *prefix, const char *name, int mixes)
{
    char part[64];
    snprintf(part, sizeof part, "%s_fn.weight", name);
    add(f, prefix, part, HC * D, (uint64_t)mixes, 0);
    snprintf(part, sizeof part, "%s_base.weight", name);
    add(f, prefix, part, (uint64_t)mixes, 0, 0);
    snprintf(part, sizeof part, "%s_scale.weight", name);
    add(f, prefix, part, mixes == HC ? 1 : 3, 0, 0);
}

static inline void add_block(file *f, const char *prefix)
{
    add_hc(f, prefix, "hc_attn", (2 + HC) * HC);
    add_hc(f, prefix, "hc_ffn", (2 + HC) * HC);
    add(f, prefix, "attn_norm.weight", D, 0, 0);
    add(f, prefix, "attn_sinks.weight", H, 0, 0);
    add(f, prefix, "attn_q_a.weight", D, QL, 0);
    add(f, prefix, "attn_q_a_norm.weight", QL, 0, 0);
    add(f, prefix, "attn_q_b.weight", QL, H * HD, 0);
    add(f, prefix, "attn_kv.weight", D, HD, 0);
    add(f, prefix, "attn_kv_a_norm.weight", HD, 0, 0);
    add(f, prefix, "attn_output_a.weight", H / G * HD, G * OL, 0);
    add(f, prefix, "attn_output_b.weight", G * OL, D, 0);
    add(f, prefix, "ffn_norm.weight", D, 0, 0);
    add(f, prefix, "ffn_gate_inp.weight", D, E, 0);
    add(f, prefix, "exp_probs_b.bias", E, 0, 0);
    add(f, prefix, "ffn_gate_shexp.weight", D, F, 0);
    add(f, prefix, "ffn_down_shexp.weight", F, D, 0);
    add(f, prefix, "ffn_up_shexp.weight", D, F, 0);
    add(f, prefix, "ffn_gate_exps.weight", D, F, E);
    add(f, prefix, "ffn_down_exps.weight", F, D, E);
    add(f, prefix, "ffn_up_exps.weight", D, F, E);
}

static inline void add_tensors(file *f, int layers)
{
    char prefix[32];
    if (f->e->mtp_only) {
        add_hc(f, "mtp.0.", "hc_head", HC);
        add(f, "mtp.0.", "e_proj.weight", D, D, 0);
        add(f, "mtp.0.", "h_proj.weight", D, D, 0);
        add(f, "mtp.0.", "enorm.weight", D, 0, 0);
        add(f, "mtp.0.", "hnorm.weight", D, 0, 0);
        add(f, "mtp.0.", "norm.weight", D, 0, 0);
        add_block(f, "mtp.0.");
        return;
    }
    add(f, "", "token_embd.weight", D, V, 0);
    add(f, "", "output_norm.weight", D, 0, 0);
    add(f, "", "output.weight", D, V, 0);
    add_hc(f, "output_", "hc", HC);
    for (int i = 0; i < layers + (f->e->nextn ? 1 : 0); i++) {
        snprintf(prefix, sizeof prefix, "blk.%d.", i);
        add_block(f, prefix);
    }
    if (f->e->nextn) {
        add(f, prefix, "nextn.eh_proj.weight", 2 * D, D, 0);
        add(f, prefix, "nextn.enorm.weight", D, 0, 0);
        add(f, prefix, "nextn.hnorm.weight", D, 0, 0);
        add(f, prefix, "nextn.shared_head_norm.weight", D, 0, 0);
    }
}

/* Element i of a tensor, from its name: what the reader must find. */
static inline float value_of(const char *name, uint64_t i)
{
    uint32_t h = 2166136261u;
    for (; *name != '\0'; name++)
        h = (h ^ (uint8_t)*name) * 16777619u;
    h = (h ^ (uint32_t)i) * 16777619u;
    h ^= h >> 15;
    return (float)(int32_t)(h % 2001) / 1000.0f - 1.0f;
}

static inline uint64_t elements(const tensor *t)
{
    uint64_t n = 1;
    for (uint32_t i = 0; i < t->ndim; i++)
        n *= t->dims[i];
    return n;
}

/* The file as bytes. */
static inline void build(const edit *e, buffer *out)
{
    static file f;
    memset(&f, 0, sizeof f);
    f.e = e;
    int layers = e->layers > 0 ? e->layers : 1;
    uint64_t at = 0, alignment = e->alignment != 0 ? e->alignment : 32, mine = 0;
    if (e->shard == 0)
        config_keys(&f, layers);
    add_tensors(&f, layers);
    if (e->shards > 0) {
        uint16_t no = (uint16_t)(e->shard + e->split_no),
                 count = (uint16_t)(e->shards + e->split_count);
        int32_t all = f.n_tensors;
        if (key(&f, "split.no", U16))
            put(&f.keys, &no, 2);
        if (key(&f, "split.count", U16))
            put(&f.keys, &count, 2);
        if (key(&f, "split.tensors.count", I32))
            put(&f.keys, &all, 4);
    }
    int shards = e->shards > 0 ? e->shards : 1;
    for (int i = 0; i < f.n_tensors; i++) {
        if (i % shards != e->shard)
            continue;
        f.tensors[i].offset = at;
        at += (elements(&f.tensors[i]) * 4 + alignment - 1) / alignment * alignment;
        mine++;
    }
    out->n = 0;
    put(out, "GGUF", 4);
    put32(out, e->version != 0 ? e->version : 3);
    put64(out, mine + e->n_tensors);
    put64(out, f.n_keys + e->n_keys);
    put(out, f.keys.bytes, f.keys.n);
    for (int i = 0; i < f.n_tensors; i++) {
        tensor t = f.tensors[i];
        if (i % shards != e->shard)
            continue;
        bool hit = e->tensor != NULL && strcmp(e->tensor, t.name) == 0;
        put_text(out, hit && e->rename != NULL ? e->rename : t.name);
        put32(out, hit && e->ndim != 0 ? e->ndim : t.ndim);
        for (uint32_t d = 0; d < (hit && e->ndim != 0 ? e->ndim : t.ndim); d++)
            put64(out, d >= t.ndim ? 1 : hit && d == 0 && e->dim != 0 ? e->dim : t.dims[d]);
        put32(out, hit && e->type_set ? e->type : t.type);
        put64(out, t.offset + (hit ? e->shift : 0));
    }
    size_t start = (out->n + alignment - 1) / alignment * alignment;
    for (int i = 0; i < f.n_tensors; i++) {
        const tensor *t = &f.tensors[i];
        if (i % shards != e->shard)
            continue;
        ck_assert_uint_le(start + t->offset, sizeof out->bytes);
        memset(out->bytes + out->n, 0, start + t->offset - out->n);
        out->n = start + t->offset;
        for (uint64_t k = 0; k < elements(t); k++) {
            float v = value_of(t->name, k);
            put(out, &v, 4);
        }
    }
}

#endif
