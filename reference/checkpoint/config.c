/* config.c - config.json -> dsv4_config. Every field that the model depends on is required; a
 * missing or wrong one is named, with what was expected. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "storage.h"

typedef struct {
    const char *file;
    const json_t *root;
    dsv4_error *err;
    dsv4_status status; /* the first failure stays */
} reader;

static const char *found(const json_t *v)
{
    static const char *const names[] = {"an object", "an array", "a string", "an integer",
                                        "a real",    "true",     "false",    "null"};
    return v == NULL ? "nothing" : names[json_typeof(v)];
}

static void wrong(reader *r, const char *key, const char *expected, const json_t *v)
{
    if (r->status == DSV4_OK)
        r->status = dsv4_fail(r->err, DSV4_E_INPUT, "%s: %s: expected %s, found %s", r->file, key,
                              expected, found(v));
}

/* Integers between low and high. */
static int64_t integer(reader *r, const json_t *in, const char *key, int64_t low, int64_t high)
{
    const json_t *v = json_object_get(in, key);
    if (!json_is_integer(v)) {
        wrong(r, key, "an integer", v);
        return low;
    }
    int64_t value = json_integer_value(v);
    if ((value < low || value > high) && r->status == DSV4_OK)
        r->status = dsv4_fail(r->err, DSV4_E_INPUT,
                              "%s: %s: expected a value from %lld to %lld, found %lld", r->file,
                              key, (long long)low, (long long)high, (long long)value);
    return value < low ? low : value > high ? high : value;
}

static int small(reader *r, const char *key, int low, int high)
{
    return (int)integer(r, r->root, key, low, high);
}

static double number(reader *r, const json_t *in, const char *key, double low)
{
    const json_t *v = json_object_get(in, key);
    if (!json_is_number(v)) {
        wrong(r, key, "a number", v);
        return low;
    }
    double value = json_number_value(v), high = 1e30; /* it has to fit a float */
    if (!(value >= low && value <= high) && r->status == DSV4_OK)
        r->status = dsv4_fail(r->err, DSV4_E_INPUT, "%s: %s: expected from %g to %g, found %g",
                              r->file, key, low, high, value);
    return value;
}

static int token_or_none(const json_t *root, const char *key)
{
    const json_t *v = json_object_get(root, key);
    return json_is_integer(v) ? (int)json_integer_value(v) : -1;
}

static void read_yarn(reader *r, dsv4_config *c)
{
    const json_t *scaling = json_object_get(r->root, "rope_scaling");
    c->yarn_factor = 1.0;
    c->yarn_beta_fast = 32.0;
    c->yarn_beta_slow = 1.0;
    c->yarn_original_positions = 65536;
    if (scaling == NULL || json_is_null(scaling))
        return;
    if (!json_is_object(scaling)) {
        wrong(r, "rope_scaling", "an object or null", scaling);
        return;
    }
    const json_t *type = json_object_get(scaling, "type");
    if (type == NULL)
        type = json_object_get(scaling, "rope_type");
    if (!json_is_string(type) || strcmp(json_string_value(type), "yarn") != 0) {
        wrong(r, "rope_scaling.type", "\"yarn\"", type);
        return;
    }
    c->yarn_factor = number(r, scaling, "factor", 1.0);
    c->yarn_beta_fast = number(r, scaling, "beta_fast", 1e-6);
    c->yarn_beta_slow = number(r, scaling, "beta_slow", 1e-6);
    c->yarn_original_positions =
        integer(r, scaling, "original_max_position_embeddings", 1, (int64_t)1 << 40);
}

/* compress_ratios has one entry a layer, then one per MTP layer. */
static void read_layers(reader *r, dsv4_config *c)
{
    int all = c->num_hidden_layers + c->num_nextn_predict_layers;
    const json_t *ratios = json_object_get(r->root, "compress_ratios");
    if (!json_is_array(ratios)) {
        wrong(r, "compress_ratios", "an array", ratios);
        return;
    }
    size_t n = json_array_size(ratios);
    if (n < (size_t)c->num_hidden_layers) {
        if (r->status == DSV4_OK)
            r->status =
                dsv4_fail(r->err, DSV4_E_INPUT,
                          "%s: compress_ratios: expected %d entries (one a layer), found %zu",
                          r->file, all, n);
        return;
    }
    c->compress_ratios = dsv4_alloc((size_t)all, sizeof(int), "compress_ratios", r->err);
    c->swiglu_limit = dsv4_alloc((size_t)all, sizeof(float), "swiglu_limit", r->err);
    if (c->compress_ratios == NULL || c->swiglu_limit == NULL) {
        r->status = DSV4_E_MACHINE;
        return;
    }
    float limit = (float)number(r, r->root, "swiglu_limit", 0.0);
    for (int i = 0; i < all; i++) {
        const json_t *v = json_array_get(ratios, (size_t)i);
        c->swiglu_limit[i] = limit;
        if (v == NULL)
            continue; /* an MTP layer the list leaves out: window only */
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > 65536)
            wrong(r, "compress_ratios", "integers from 0 to 65536", v);
        else
            c->compress_ratios[i] = (int)json_integer_value(v);
    }
}

static void check_relations(reader *r, const dsv4_config *c)
{
    const char *problem = NULL;
    if (c->qk_rope_head_dim % 2 != 0 || c->qk_rope_head_dim > c->head_dim)
        problem = "qk_rope_head_dim must be even and at most head_dim";
    else if (c->num_attention_heads % c->o_groups != 0)
        problem = "num_attention_heads must be a multiple of o_groups";
    else if (c->num_experts_per_tok > c->n_routed_experts)
        problem = "num_experts_per_tok must be at most n_routed_experts";
    else if ((c->index_head_dim & (c->index_head_dim - 1)) != 0)
        problem = "index_head_dim must be a power of two (Hadamard)";
    else if (c->qk_rope_head_dim > c->index_head_dim)
        problem = "qk_rope_head_dim must be at most index_head_dim";
    else if (c->num_hash_layers > c->num_hidden_layers)
        problem = "num_hash_layers must be at most num_hidden_layers";
    if (problem != NULL && r->status == DSV4_OK)
        r->status = dsv4_fail(r->err, DSV4_E_INPUT, "%s: %s", r->file, problem);
}

dsv4_status dsv4_config_parse(const char *text, size_t bytes, const char *file, dsv4_config *out,
                              dsv4_error *err)
{
    enum { DIM = 1 << 20, COUNT = 1 << 16 };
    json_error_t where;
    memset(out, 0, sizeof *out);
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &where);
    if (root == NULL)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: line %d: %s", file, where.line, where.text);
    reader r = {.file = file, .root = root, .err = err};
    dsv4_config *c = out;
    if (!json_is_object(root))
        wrong(&r, "the file", "an object", root);

    c->vocab_size = integer(&r, root, "vocab_size", 1, (int64_t)1 << 31);
    c->hidden_size = integer(&r, root, "hidden_size", 1, DIM);
    c->moe_intermediate_size = integer(&r, root, "moe_intermediate_size", 1, DIM);
    c->num_hidden_layers = small(&r, "num_hidden_layers", 1, COUNT);
    c->num_nextn_predict_layers = json_object_get(root, "num_nextn_predict_layers") != NULL
                                      ? small(&r, "num_nextn_predict_layers", 0, 64)
                                      : 0;
    c->num_attention_heads = small(&r, "num_attention_heads", 1, COUNT);
    c->head_dim = small(&r, "head_dim", 1, COUNT);
    c->qk_rope_head_dim = small(&r, "qk_rope_head_dim", 2, COUNT);
    c->q_lora_rank = small(&r, "q_lora_rank", 1, DIM);
    c->o_groups = small(&r, "o_groups", 1, COUNT);
    c->o_lora_rank = small(&r, "o_lora_rank", 1, DIM);
    c->n_routed_experts = small(&r, "n_routed_experts", 1, COUNT);
    c->num_experts_per_tok = small(&r, "num_experts_per_tok", 1, COUNT);
    c->n_shared_experts = small(&r, "n_shared_experts", 1, 1024);
    c->num_hash_layers = small(&r, "num_hash_layers", 0, COUNT);
    c->routed_scaling_factor = (float)number(&r, root, "routed_scaling_factor", 0.0);
    c->sliding_window = small(&r, "sliding_window", 1, DIM);
    c->index_n_heads = small(&r, "index_n_heads", 1, COUNT);
    c->index_head_dim = small(&r, "index_head_dim", 1, COUNT);
    c->index_topk = small(&r, "index_topk", 1, DIM);
    c->hc_mult = small(&r, "hc_mult", 1, 16);
    c->hc_sinkhorn_iters = small(&r, "hc_sinkhorn_iters", 1, 10000);
    c->hc_eps = (float)number(&r, root, "hc_eps", 0.0);
    c->rms_norm_eps = (float)number(&r, root, "rms_norm_eps", 0.0);
    c->rope_theta = number(&r, root, "rope_theta", 1.0001);
    c->compress_rope_theta = number(&r, root, "compress_rope_theta", 1.0001);
    c->max_position_embeddings = integer(&r, root, "max_position_embeddings", 1, (int64_t)1 << 31);
    c->bos_token_id = token_or_none(root, "bos_token_id");
    c->eos_token_id = token_or_none(root, "eos_token_id");
    const json_t *scoring = json_object_get(root, "scoring_func");
    if (scoring != NULL &&
        (!json_is_string(scoring) || strcmp(json_string_value(scoring), "sqrtsoftplus") != 0))
        wrong(&r, "scoring_func", "\"sqrtsoftplus\"", scoring);
    read_yarn(&r, c);
    if (r.status == DSV4_OK)
        read_layers(&r, c);
    if (r.status == DSV4_OK)
        check_relations(&r, c);
    json_decref(root);
    if (r.status != DSV4_OK)
        dsv4_config_free(out);
    return r.status;
}

void dsv4_config_free(dsv4_config *c)
{
    free(c->compress_ratios);
    free(c->swiglu_limit);
    c->compress_ratios = NULL;
    c->swiglu_limit = NULL;
}

dsv4_status dsv4_config_write(const dsv4_config *c, char **out, dsv4_error *err)
{
    int all = c->num_hidden_layers + c->num_nextn_predict_layers;
    json_t *ratios = json_array();
    for (int i = 0; i < all; i++)
        json_array_append_new(ratios, json_integer(c->compress_ratios[i]));
    json_t *root = json_pack(
        "{s:[s], s:s, s:I, s:I, s:I, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, "
        "s:i, s:s, s:f, s:f, s:o, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:I}",
        "architectures", "DeepseekV4ForCausalLM", "model_type", "deepseek_v4", "vocab_size",
        (json_int_t)c->vocab_size, "hidden_size", (json_int_t)c->hidden_size,
        "moe_intermediate_size", (json_int_t)c->moe_intermediate_size, "num_hidden_layers",
        c->num_hidden_layers, "num_nextn_predict_layers", c->num_nextn_predict_layers,
        "num_attention_heads", c->num_attention_heads, "num_key_value_heads", 1, "head_dim",
        c->head_dim, "qk_rope_head_dim", c->qk_rope_head_dim, "q_lora_rank", c->q_lora_rank,
        "o_groups", c->o_groups, "o_lora_rank", c->o_lora_rank, "n_routed_experts",
        c->n_routed_experts, "num_experts_per_tok", c->num_experts_per_tok, "n_shared_experts",
        c->n_shared_experts, "num_hash_layers", c->num_hash_layers, "scoring_func", "sqrtsoftplus",
        "routed_scaling_factor", (double)c->routed_scaling_factor, "swiglu_limit",
        (double)c->swiglu_limit[0], "compress_ratios", ratios, "sliding_window", c->sliding_window,
        "index_n_heads", c->index_n_heads, "index_head_dim", c->index_head_dim, "index_topk",
        c->index_topk, "hc_mult", c->hc_mult, "hc_sinkhorn_iters", c->hc_sinkhorn_iters, "hc_eps",
        (double)c->hc_eps, "rms_norm_eps", (double)c->rms_norm_eps, "rope_theta", c->rope_theta,
        "compress_rope_theta", c->compress_rope_theta, "max_position_embeddings",
        (json_int_t)c->max_position_embeddings);
    if (root != NULL && c->yarn_factor != 1.0)
        json_object_set_new(root, "rope_scaling",
                            json_pack("{s:s, s:f, s:f, s:f, s:I}", "type", "yarn", "factor",
                                      c->yarn_factor, "beta_fast", c->yarn_beta_fast, "beta_slow",
                                      c->yarn_beta_slow, "original_max_position_embeddings",
                                      (json_int_t)c->yarn_original_positions));
    if (root != NULL && c->bos_token_id >= 0)
        json_object_set_new(root, "bos_token_id", json_integer(c->bos_token_id));
    if (root != NULL && c->eos_token_id >= 0)
        json_object_set_new(root, "eos_token_id", json_integer(c->eos_token_id));
    *out = root != NULL ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    if (*out == NULL)
        return dsv4_fail(err, DSV4_E_MACHINE, "out of memory for a config");
    return DSV4_OK;
}
