/* gguf_config.c - the metadata keys of architecture deepseek4 -> dsv4_config. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "gguf.h"
#include "storage.h"

#define PREFIX "deepseek4."
#define FIELD(KEY, KIND, NAME, LOW, HIGH, OPTIONAL)                                                \
    {                                                                                              \
        KEY, GGUF_FIELD_##KIND, offsetof(dsv4_config, NAME), LOW, HIGH, OPTIONAL                   \
    }

/* The limits are those of config.json. vocab_size is optional because the token list gives it;
 * nextn_predict_layers because writers drop it with the MTP layer. */
const gguf_field gguf_fields[] = {
    FIELD("vocab_size", INT64, vocab_size, 1, 0x1p31, true),
    FIELD("context_length", INT64, max_position_embeddings, 1, 0x1p31, false),
    FIELD("embedding_length", INT64, hidden_size, 1, 0x1p20, false),
    FIELD("block_count", INT, num_hidden_layers, 1, 0x1p16, false),
    FIELD("attention.head_count", INT, num_attention_heads, 1, 0x1p16, false),
    FIELD("attention.key_length", INT, head_dim, 1, 0x1p16, false),
    FIELD("attention.layer_norm_rms_epsilon", FLOAT, rms_norm_eps, 0, 1, false),
    FIELD("attention.q_lora_rank", INT, q_lora_rank, 1, 0x1p20, false),
    FIELD("attention.output_lora_rank", INT, o_lora_rank, 1, 0x1p20, false),
    FIELD("attention.output_group_count", INT, o_groups, 1, 0x1p16, false),
    FIELD("attention.sliding_window", INT, sliding_window, 1, 0x1p20, false),
    FIELD("attention.compress_rope_freq_base", DOUBLE, compress_rope_theta, 1, 1e30, false),
    FIELD("attention.indexer.head_count", INT, index_n_heads, 1, 0x1p16, false),
    FIELD("attention.indexer.key_length", INT, index_head_dim, 1, 0x1p16, false),
    FIELD("attention.indexer.top_k", INT, index_topk, 1, 0x1p20, false),
    FIELD("rope.dimension_count", INT, qk_rope_head_dim, 2, 0x1p16, false),
    FIELD("rope.freq_base", DOUBLE, rope_theta, 1, 1e30, false),
    FIELD("rope.scaling.factor", DOUBLE, yarn_factor, 1, 1e30, false),
    FIELD("rope.scaling.original_context_length", INT64, yarn_original_positions, 1, 0x1p40, false),
    FIELD("rope.scaling.yarn_beta_fast", DOUBLE, yarn_beta_fast, 1e-6, 1e30, true),
    FIELD("rope.scaling.yarn_beta_slow", DOUBLE, yarn_beta_slow, 1e-6, 1e30, true),
    FIELD("expert_count", INT, n_routed_experts, 1, 0x1p16, false),
    FIELD("expert_used_count", INT, num_experts_per_tok, 1, 0x1p16, false),
    FIELD("expert_shared_count", INT, n_shared_experts, 1, 1024, false),
    FIELD("expert_feed_forward_length", INT64, moe_intermediate_size, 1, 0x1p20, false),
    FIELD("expert_weights_scale", FLOAT, routed_scaling_factor, 0, 1e30, false),
    FIELD("hash_layer_count", INT, num_hash_layers, 0, 0x1p16, false),
    FIELD("hyper_connection.count", INT, hc_mult, 1, 16, false),
    FIELD("hyper_connection.sinkhorn_iterations", INT, hc_sinkhorn_iters, 1, 10000, false),
    FIELD("hyper_connection.epsilon", FLOAT, hc_eps, 0, 1, false),
    FIELD("nextn_predict_layers", INT, num_nextn_predict_layers, 0, 64, true),
};
const size_t gguf_field_count = sizeof gguf_fields / sizeof *gguf_fields;

typedef struct {
    const gguf_keys *keys;
    const char *path;
    dsv4_error *err;
    dsv4_status status; /* the first failure stays */
} reader;

static void wrong(reader *r, const char *key, const char *expected, const dsv4_key_value *v)
{
    if (r->status != DSV4_OK)
        return;
    if (v == NULL)
        r->status = dsv4_fail(r->err, DSV4_E_INPUT, "%s: key %s is missing, expected %s", r->path,
                              key, expected);
    else
        r->status = dsv4_fail(r->err, DSV4_E_INPUT, "%s: key %s: expected %s, found %s%s", r->path,
                              key, expected, v->type == GGUF_ARRAY ? "an array of " : "",
                              gguf_type_name(v->item_type));
}

static const dsv4_key_value *find(const reader *r, const char *key)
{
    char name[128];
    snprintf(name, sizeof name, PREFIX "%s", key);
    const gguf_key *k = gguf_find(r->keys, name);
    return k != NULL ? &k->value : NULL;
}

static void out_of_range(reader *r, const char *key, double low, double high, double value)
{
    if (r->status == DSV4_OK)
        r->status = dsv4_fail(r->err, DSV4_E_INPUT,
                              "%s: key " PREFIX "%s: expected a value from %.15g to %.15g, found "
                              "%.15g",
                              r->path, key, low, high, value);
}

static void read_field(reader *r, const gguf_field *f, dsv4_config *c)
{
    char name[128];
    unsigned char *to = (unsigned char *)c + f->offset;
    const dsv4_key_value *v = find(r, f->key);
    bool real = f->kind == GGUF_FIELD_FLOAT || f->kind == GGUF_FIELD_DOUBLE;
    snprintf(name, sizeof name, PREFIX "%s", f->key);
    if (v == NULL && f->optional)
        return;
    int64_t i = 0;
    double d = 0;
    if (v == NULL || v->type == GGUF_ARRAY ||
        (real ? !gguf_real(v, 0, &d) : !gguf_integer(v, 0, &i))) {
        wrong(r, name, real ? "a real number (f32)" : "an integer (u32)", v);
        return;
    }
    if (!real)
        d = (double)i;
    if (!(d >= f->low && d <= f->high)) {
        out_of_range(r, f->key, f->low, f->high, d);
        return;
    }
    int narrow = (int)i; /* the table's limits fit */
    float single = (float)d;
    switch (f->kind) {
    case GGUF_FIELD_INT:
        memcpy(to, &narrow, sizeof narrow);
        break;
    case GGUF_FIELD_INT64:
        memcpy(to, &i, sizeof i);
        break;
    case GGUF_FIELD_FLOAT:
        memcpy(to, &single, sizeof single);
        break;
    case GGUF_FIELD_DOUBLE:
        memcpy(to, &d, sizeof d);
        break;
    }
}

/* A key that can have one value only in this architecture. */
static void read_fixed(reader *r, const char *key, int64_t expected, const char *meaning)
{
    const dsv4_key_value *v = find(r, key);
    int64_t value = 0;
    if (v == NULL)
        return;
    if (v->type == GGUF_BOOL)
        value = v->data[0] != 0;
    else if (v->type == GGUF_ARRAY || !gguf_integer(v, 0, &value))
        value = INT64_MIN;
    if (value != expected && r->status == DSV4_OK)
        r->status = dsv4_fail(r->err, DSV4_E_INPUT, "%s: key " PREFIX "%s: expected %lld (%s)%s",
                              r->path, key, (long long)expected, meaning,
                              value == INT64_MIN ? ", found no integer" : ", found another value");
}

static void read_scaling_type(reader *r, const dsv4_config *c)
{
    const dsv4_key_value *v = find(r, "rope.scaling.type");
    if (v == NULL || r->status != DSV4_OK)
        return;
    if (v->type != GGUF_STRING) {
        wrong(r, PREFIX "rope.scaling.type", "a string", v);
        return;
    }
    const char *text = (const char *)v->data + 8;
    int n = (int)(v->bytes - 8 < 40 ? v->bytes - 8 : 40);
    bool yarn = n == 4 && memcmp(text, "yarn", 4) == 0;
    if (!yarn && c->yarn_factor != 1.0)
        r->status = dsv4_fail(r->err, DSV4_E_INPUT,
                              "%s: key " PREFIX "rope.scaling.type: expected yarn, found %.*s",
                              r->path, n, text);
}

/* The lists with one entry a layer; what a list leaves out of the MTP layers is a ratio of 0 and
 * the last layer's clamp. */
static void read_layers(reader *r, dsv4_config *c)
{
    int layers = c->num_hidden_layers, all = layers + c->num_nextn_predict_layers;
    const dsv4_key_value *ratios = find(r, "attention.compress_ratios");
    if (ratios == NULL || ratios->type != GGUF_ARRAY) {
        wrong(r, PREFIX "attention.compress_ratios", "an array of integers", ratios);
        return;
    }
    const dsv4_key_value *clamp = find(r, "swiglu_clamp_exp");
    if (clamp == NULL) {
        wrong(r, PREFIX "swiglu_clamp_exp", "a real number or an array of them", clamp);
        return;
    }
    const struct {
        const char *key;
        const dsv4_key_value *v;
    } lists[] = {{"attention.compress_ratios", ratios}, {"swiglu_clamp_exp", clamp}};
    for (int i = 0; i < 2; i++)
        if (lists[i].v->type == GGUF_ARRAY && lists[i].v->count < (uint64_t)layers) {
            r->status =
                dsv4_fail(r->err, DSV4_E_INPUT,
                          "%s: key " PREFIX "%s: expected at least %d entries (one a "
                          "layer), found %llu",
                          r->path, lists[i].key, layers, (unsigned long long)lists[i].v->count);
            return;
        }
    c->compress_ratios = dsv4_alloc((size_t)all, sizeof(int), "compress_ratios", r->err);
    c->swiglu_limit = dsv4_alloc((size_t)all, sizeof(float), "swiglu_limit", r->err);
    if (c->compress_ratios == NULL || c->swiglu_limit == NULL) {
        r->status = DSV4_E_MACHINE;
        return;
    }
    const dsv4_key_value *shared = find(r, "swiglu_clamp_shexp");
    for (int i = 0; i < all && r->status == DSV4_OK; i++) {
        int64_t ratio = 0;
        double limit = 0, other;
        uint64_t n = (uint64_t)i;
        if (n < ratios->count && !gguf_integer(ratios, n, &ratio))
            wrong(r, PREFIX "attention.compress_ratios", "an array of integers", ratios);
        if (ratio < 0 || ratio > 65536)
            out_of_range(r, "attention.compress_ratios", 0, 65536, (double)ratio);
        c->compress_ratios[i] = (int)ratio;
        if (!gguf_real(clamp, n < clamp->count ? n : clamp->count - 1, &limit))
            wrong(r, PREFIX "swiglu_clamp_exp", "a real number or an array of them", clamp);
        else if (!(limit >= 0 && limit <= 1e30))
            out_of_range(r, "swiglu_clamp_exp", 0, 1e30, limit);
        c->swiglu_limit[i] = (float)limit;
        if (shared == NULL || shared->count == 0)
            continue;
        if (!gguf_real(shared, n < shared->count ? n : shared->count - 1, &other))
            wrong(r, PREFIX "swiglu_clamp_shexp", "a real number or an array of them", shared);
        else if (other != limit && r->status == DSV4_OK)
            r->status = dsv4_fail(r->err, DSV4_E_INPUT,
                                  "%s: key " PREFIX "swiglu_clamp_shexp: layer %d: expected %g as "
                                  "for the routed experts, found %g",
                                  r->path, i, limit, other);
    }
}

static void check_relations(reader *r, const dsv4_config *c)
{
    const char *problem = NULL;
    if (c->qk_rope_head_dim % 2 != 0 || c->qk_rope_head_dim > c->head_dim)
        problem = "rope.dimension_count must be even and at most attention.key_length";
    else if (c->num_attention_heads % c->o_groups != 0)
        problem = "attention.head_count must be a multiple of attention.output_group_count";
    else if (c->num_experts_per_tok > c->n_routed_experts)
        problem = "expert_used_count must be at most expert_count";
    else if ((c->index_head_dim & (c->index_head_dim - 1)) != 0)
        problem = "attention.indexer.key_length must be a power of two (Hadamard)";
    else if (c->qk_rope_head_dim > c->index_head_dim)
        problem = "rope.dimension_count must be at most attention.indexer.key_length";
    else if (c->num_hash_layers > c->num_hidden_layers)
        problem = "hash_layer_count must be at most block_count";
    if (problem != NULL && r->status == DSV4_OK)
        r->status = dsv4_fail(r->err, DSV4_E_INPUT, "%s: key " PREFIX "%s", r->path, problem);
}

static int token_or_none(const gguf_keys *keys, const char *name)
{
    const gguf_key *k = gguf_find(keys, name);
    int64_t id;
    return k != NULL && k->value.type != GGUF_ARRAY && gguf_integer(&k->value, 0, &id) && id >= 0 &&
                   id <= INT_MAX
               ? (int)id
               : -1;
}

dsv4_status gguf_config(const gguf_keys *keys, const char *path, int64_t embed_rows,
                        int nextn_block, dsv4_config *out, dsv4_error *err)
{
    reader r = {.keys = keys, .path = path, .err = err};
    memset(out, 0, sizeof *out);
    out->yarn_beta_fast = 32.0;
    out->yarn_beta_slow = 1.0;
    for (size_t i = 0; i < gguf_field_count; i++)
        read_field(&r, &gguf_fields[i], out);
    if (out->vocab_size == 0 && r.status == DSV4_OK) {
        const gguf_key *tokens = gguf_find(keys, "tokenizer.ggml.tokens");
        if (tokens != NULL && tokens->value.type == GGUF_ARRAY && tokens->value.count < 1u << 31)
            out->vocab_size = (int64_t)tokens->value.count;
        if (out->vocab_size == 0)
            out->vocab_size = embed_rows;
        if (out->vocab_size == 0)
            wrong(&r, PREFIX "vocab_size", "it, or tokenizer.ggml.tokens", NULL);
    }
    read_fixed(&r, "attention.head_count_kv", 1, "one KV head");
    read_fixed(&r, "attention.value_length", out->head_dim, "attention.key_length");
    read_fixed(&r, "expert_gating_func", 4, "sqrtsoftplus");
    read_fixed(&r, "expert_weights_norm", 1, "true");
    const dsv4_key_value *groups = find(&r, "expert_group_count");
    int64_t n_groups = 0;
    if (groups != NULL && (!gguf_integer(groups, 0, &n_groups) || n_groups > 1))
        read_fixed(&r, "expert_group_count", 0, "no expert groups");
    read_scaling_type(&r, out);
    /* A block count that includes the MTP layer. */
    if (r.status == DSV4_OK && nextn_block >= 0 && out->num_nextn_predict_layers > 0 &&
        out->num_hidden_layers - out->num_nextn_predict_layers == nextn_block && nextn_block > 0)
        out->num_hidden_layers = nextn_block;
    if (r.status == DSV4_OK)
        read_layers(&r, out);
    if (r.status == DSV4_OK)
        check_relations(&r, out);
    out->bos_token_id = token_or_none(keys, "tokenizer.ggml.bos_token_id");
    out->eos_token_id = token_or_none(keys, "tokenizer.ggml.eos_token_id");
    if (r.status != DSV4_OK)
        dsv4_config_free(out);
    return r.status;
}
