/* recipes.c - the list of a model's weights, and the table that says in which type a recipe stores
 * each class of them. */
#include "recipes.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the weights -------------------------------------------------------------------------- */

typedef struct {
    weight_list *list;
    size_t capacity;
    const dsv4_config *config;
    char prefix[32];
    int layer;
    dsv4_error *err;
    dsv4_status status; /* the first failure stays */
} lister;

static weight *add(lister *l, weight_class kind, int64_t rows, int64_t cols,
                   const dsv4_tensor *view, const char *name)
{
    if (l->status != DSV4_OK)
        return NULL;
    if (l->list->count == l->capacity) {
        size_t more = l->capacity > 0 ? 2 * l->capacity : 64;
        weight *bigger = dsv4_alloc(more, sizeof *bigger, "a list of weights", l->err);
        if (bigger == NULL) {
            l->status = DSV4_E_MACHINE;
            return NULL;
        }
        if (l->list->count > 0)
            memcpy(bigger, l->list->items, l->list->count * sizeof *bigger);
        free(l->list->items);
        l->list->items = bigger;
        l->capacity = more;
    }
    weight *w = &l->list->items[l->list->count++];
    *w = (weight){.kind = kind, .layer = l->layer, .rows = rows, .cols = cols, .views = view};
    snprintf(w->name, sizeof w->name, "%s%s", l->prefix, name);
    return w;
}

static void add_vector(lister *l, weight_class kind, int64_t n, const dsv4_tensor *view,
                       const char *name)
{
    weight *w = add(l, kind, 1, n, view, name);
    if (w != NULL)
        w->vector = true;
}

static void add_experts(lister *l, weight_class kind, int64_t rows, int64_t cols,
                        const dsv4_tensor *views, const char *name)
{
    weight *w = add(l, kind, rows, cols, views, name);
    if (w != NULL)
        w->experts = l->config->n_routed_experts;
}

/* A view inside a structure that may not be there. */
#define OF(structure, field) ((structure) != NULL ? &(structure)->field : NULL)

static void list_hc(lister *l, const dsv4_hc_weights *w, const char *name, bool head)
{
    int64_t hc = l->config->hc_mult, mixes = head ? hc : (2 + hc) * hc;
    char part[32];
    snprintf(part, sizeof part, "%s_fn", name);
    add(l, W_HC_FN, mixes, hc * l->config->hidden_size, OF(w, fn), part);
    snprintf(part, sizeof part, "%s_base", name);
    add_vector(l, W_SMALL, mixes, OF(w, base), part);
    snprintf(part, sizeof part, "%s_scale", name);
    add_vector(l, W_SMALL, head ? 1 : 3, OF(w, scale), part);
}

static void list_compressor(lister *l, const dsv4_compressor_weights *w, const char *name,
                            int ratio, int64_t dim)
{
    int64_t width = (ratio == 4 ? 2 : 1) * dim;
    char part[64];
    snprintf(part, sizeof part, "%s.ape", name);
    add(l, W_APE, ratio, width, OF(w, ape), part);
    snprintf(part, sizeof part, "%s.wkv.weight", name);
    add(l, W_COMPRESSOR, width, l->config->hidden_size, OF(w, wkv), part);
    snprintf(part, sizeof part, "%s.wgate.weight", name);
    add(l, W_COMPRESSOR, width, l->config->hidden_size, OF(w, wgate), part);
    snprintf(part, sizeof part, "%s.norm.weight", name);
    add_vector(l, W_NORM, dim, OF(w, norm), part);
}

static void list_layer(lister *l, const dsv4_layer *w, int index)
{
    const dsv4_config *c = l->config;
    int64_t D = c->hidden_size, H = c->num_attention_heads, d = c->head_dim, G = c->o_groups;
    int64_t F = c->moe_intermediate_size, E = c->n_routed_experts, shared = F * c->n_shared_experts;
    int64_t heads = c->index_n_heads;
    int ratio = c->compress_ratios[index];
    list_hc(l, OF(w, hc_attn), "hc_attn", false);
    list_hc(l, OF(w, hc_ffn), "hc_ffn", false);
    add_vector(l, W_NORM, D, OF(w, attn_norm), "attn_norm.weight");
    add_vector(l, W_SMALL, H, OF(w, attn_sink), "attn.attn_sink");
    add(l, W_ATTENTION, c->q_lora_rank, D, OF(w, wq_a), "attn.wq_a.weight");
    add_vector(l, W_NORM, c->q_lora_rank, OF(w, q_norm), "attn.q_norm.weight");
    add(l, W_ATTENTION, H * d, c->q_lora_rank, OF(w, wq_b), "attn.wq_b.weight");
    add(l, W_ATTENTION, d, D, OF(w, wkv), "attn.wkv.weight");
    add_vector(l, W_NORM, d, OF(w, kv_norm), "attn.kv_norm.weight");
    add(l, W_ATTENTION, G * c->o_lora_rank, H / G * d, OF(w, wo_a), "attn.wo_a.weight");
    add(l, W_ATTENTION, D, G * c->o_lora_rank, OF(w, wo_b), "attn.wo_b.weight");
    if (ratio > 0)
        list_compressor(l, OF(w, compressor), "attn.compressor", ratio, d);
    if (ratio == 4) {
        add(l, W_INDEXER_Q, heads * c->index_head_dim, c->q_lora_rank, OF(w, indexer.wq_b),
            "attn.indexer.wq_b.weight");
        add(l, W_INDEXER_PROJ, heads, D, OF(w, indexer.weights_proj),
            "attn.indexer.weights_proj.weight");
        list_compressor(l, OF(w, indexer.compressor), "attn.indexer.compressor", 4,
                        c->index_head_dim);
    }
    add_vector(l, W_NORM, D, OF(w, ffn_norm), "ffn_norm.weight");
    add(l, W_ROUTER, E, D, OF(w, gate), "ffn.gate.weight");
    if (index < c->num_hash_layers)
        add(l, W_TABLE, c->vocab_size, c->num_experts_per_tok, OF(w, tid2eid), "ffn.gate.tid2eid");
    else
        add_vector(l, W_SMALL, E, OF(w, gate_bias), "ffn.gate.bias");
    add(l, W_SHARED_GATE_UP, shared, D, OF(w, shared_w1), "ffn.shared_experts.w1.weight");
    add(l, W_SHARED_DOWN, D, shared, OF(w, shared_w2), "ffn.shared_experts.w2.weight");
    add(l, W_SHARED_GATE_UP, shared, D, OF(w, shared_w3), "ffn.shared_experts.w3.weight");
    add_experts(l, W_EXPERT_GATE_UP, F, D, w != NULL ? w->w1 : NULL, "ffn.experts.0.w1.weight");
    add_experts(l, W_EXPERT_DOWN, D, F, w != NULL ? w->w2 : NULL, "ffn.experts.0.w2.weight");
    add_experts(l, W_EXPERT_GATE_UP, F, D, w != NULL ? w->w3 : NULL, "ffn.experts.0.w3.weight");
}

static void list_mtp(lister *l, const dsv4_mtp_layer *w, int index)
{
    int64_t D = l->config->hidden_size;
    snprintf(l->prefix, sizeof l->prefix, "mtp.%d.", index);
    l->layer = l->config->num_hidden_layers + index;
    list_hc(l, OF(w, hc_head), "hc_head", true);
    add(l, W_MTP_PROJ, D, D, OF(w, e_proj), "e_proj.weight");
    add(l, W_MTP_PROJ, D, D, OF(w, h_proj), "h_proj.weight");
    add_vector(l, W_NORM, D, OF(w, enorm), "enorm.weight");
    add_vector(l, W_NORM, D, OF(w, hnorm), "hnorm.weight");
    add_vector(l, W_NORM, D, OF(w, norm), "norm.weight");
    list_layer(l, OF(w, layer), l->layer);
}

dsv4_status weights_list(const dsv4_model *m, weight_part part, weight_list *out, dsv4_error *err)
{
    const dsv4_config *c = &m->config;
    bool shape = m->layers == NULL;
    *out = (weight_list){0};
    lister l = {.list = out, .config = c, .layer = -1, .err = err};
    if (part != WEIGHTS_MTP) {
        add(&l, W_EMBED, c->vocab_size, c->hidden_size, shape ? NULL : &m->embed, "embed.weight");
        add_vector(&l, W_NORM, c->hidden_size, shape ? NULL : &m->norm, "norm.weight");
        add(&l, W_HEAD, c->vocab_size, c->hidden_size, shape ? NULL : &m->head, "head.weight");
        list_hc(&l, shape ? NULL : &m->hc_head, "hc_head", true);
        for (int i = 0; i < c->num_hidden_layers; i++) {
            snprintf(l.prefix, sizeof l.prefix, "layers.%d.", i);
            l.layer = i;
            list_layer(&l, shape ? NULL : &m->layers[i], i);
        }
    }
    if (part != WEIGHTS_TRUNK && (shape || m->mtp != NULL))
        for (int i = 0; i < c->num_nextn_predict_layers; i++)
            list_mtp(&l, shape ? NULL : &m->mtp[i], i);
    if (l.status != DSV4_OK)
        weights_free(out);
    return l.status;
}

void weights_free(weight_list *l)
{
    free(l->items);
    *l = (weight_list){0};
}

void weight_name(const weight *w, int64_t e, char out[96])
{
    const char *zero = w->experts > 0 ? strstr(w->name, ".experts.0.") : NULL;
    if (zero == NULL)
        snprintf(out, 96, "%s", w->name);
    else
        snprintf(out, 96, "%.*s.experts.%d.%.20s", (int)(zero - w->name), w->name, (int)e,
                 zero + strlen(".experts.0."));
}

/* ---- encodings ---------------------------------------------------------------------------- */

void encoding_bytes(const encoding *e, int64_t rows, int64_t cols, uint64_t bytes[PART_COUNT])
{
    const dsv4_format *f = dsv4_format_of(e->type);
    uint64_t r = (uint64_t)rows, scale;
    memset(bytes, 0, PART_COUNT * sizeof *bytes);
    bytes[PART_DATA] = r * dsv4_format_row_bytes(f, cols);
    switch (e->type) {
    case DSV4_FP8:
        bytes[PART_SCALE] = (r + 127) / 128 * (((uint64_t)cols + 127) / 128);
        break;
    case DSV4_FP4:
        bytes[PART_SCALE] = r * ((uint64_t)cols / 32);
        break;
    case DSV4_MLX4:
    case DSV4_MLX8:
        scale = r * dsv4_format_row_bytes(dsv4_format_of(e->scale_type), cols / e->group);
        bytes[PART_SCALE] = scale;
        bytes[PART_BIAS] = scale;
        break;
    default:
        break;
    }
}

/* ---- recipes ------------------------------------------------------------------------------ */

/* Columns in the order of weight_class; norms, sinks, biases and HC base and scale are float32 in
 * every GGUF file because its readers insist. */
#define TYPES(EMBED, HEAD, GATE_UP, DOWN, SHARED, SHARED_DOWN, ATTENTION, MTP, INDEXER, COMP, APE, \
              ROUTER, HC)                                                                          \
    {                                                                                              \
        DSV4_##EMBED, DSV4_##HEAD, DSV4_##GATE_UP, DSV4_##DOWN, DSV4_##SHARED, DSV4_##SHARED_DOWN, \
            DSV4_##ATTENTION, DSV4_##MTP, DSV4_##INDEXER, DSV4_##INDEXER, DSV4_##COMP, DSV4_##APE, \
            DSV4_##ROUTER, DSV4_##HC, DSV4_F32, DSV4_F32, DSV4_I32                                 \
    }

/* q2 and q4 are the published files (the MTP layer goes to a file of its own, with q4's types);
 * q8 is q4 with 8-bit experts. f16 is the published F16 classes everywhere; bf16 and f32 keep what
 * the release has in float32. iq1 is what llama.cpp's quantiser makes of file type IQ1_S, which
 * spares the router alone. mlx4 and mlx8: what mlx-lm quantises, with the release's types for the
 * rest; "release" is the official types themselves, for synthetic files. */
static const recipe recipes[] = {
    {"q2", "IQ2_XXS gate and up, Q2_K down, Q8_0 attention", TO_GGUF, 19, 1,
     TYPES(F16, Q8_0, IQ2_XXS, Q2_K, Q8_0, Q8_0, Q8_0, Q8_0, F16, F16, F16, F16, F16), "q4"},
    {"q4", "Q4_K experts, Q8_0 attention", TO_GGUF, 15, 1,
     TYPES(F16, Q8_0, Q4_K, Q4_K, Q8_0, Q8_0, Q8_0, Q8_0, F16, F16, F16, F16, F16), NULL},
    {"q8", "Q8_0 experts and attention", TO_GGUF, 7, 1,
     TYPES(F16, Q8_0, Q8_0, Q8_0, Q8_0, Q8_0, Q8_0, Q8_0, F16, F16, F16, F16, F16), NULL},
    {"f16", "F16 matrices", TO_GGUF, 1, 1,
     TYPES(F16, F16, F16, F16, F16, F16, F16, F16, F16, F16, F16, F16, F16), NULL},
    {"bf16", "BF16 matrices", TO_GGUF, 32, 1,
     TYPES(BF16, BF16, BF16, BF16, BF16, BF16, BF16, BF16, BF16, BF16, F32, BF16, F32), NULL},
    {"f32", "F32", TO_GGUF, 0, 1,
     TYPES(F32, F32, F32, F32, F32, F32, F32, F32, F32, F32, F32, F32, F32), NULL},
    {"iq1", "IQ1_S matrices, in two shards", TO_GGUF, 24, 2,
     TYPES(Q2_K, Q5_K, IQ1_S, IQ1_S, IQ1_S, IQ1_S, IQ1_S, IQ1_S, IQ1_S, IQ1_S, IQ1_S, F32, IQ1_S),
     "q4"},
    {"mlx4", "MLX affine, 4 bits, groups of 32", TO_MLX, 0, 1,
     TYPES(MLX4, MLX4, MLX4, MLX4, MLX4, MLX4, MLX4, MLX4, MLX4, MLX4, F32, BF16, F32), NULL},
    {"mlx8", "MLX affine, 8 bits, groups of 32", TO_MLX, 0, 1,
     TYPES(MLX8, MLX8, MLX8, MLX8, MLX8, MLX8, MLX8, MLX8, MLX8, MLX8, F32, BF16, F32), NULL},
    {"release", "the official types: FP4 experts, FP8 attention", TO_RELEASE, 0, 1,
     TYPES(BF16, BF16, FP4, FP4, FP8, FP8, FP8, FP8, FP8, BF16, F32, BF16, F32), NULL},
};

const recipe *recipe_at(size_t i)
{
    return i < sizeof recipes / sizeof *recipes ? &recipes[i] : NULL;
}

const recipe *recipe_find(const char *name)
{
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++)
        if (strcmp(recipes[i].name, name) == 0)
            return &recipes[i];
    return NULL;
}

/* What llama.cpp's quantiser falls back to when a row is no whole number of 256-blocks, with Q4_0
 * in the place of IQ4_NL (18 bytes per 32 both), which this project only reads. */
static dsv4_type smaller_block(dsv4_type t)
{
    switch (t) {
    case DSV4_Q4_K:
        return DSV4_Q5_0;
    case DSV4_Q5_K:
        return DSV4_Q5_1;
    case DSV4_Q6_K:
        return DSV4_Q8_0;
    default:
        return DSV4_Q4_0;
    }
}

encoding recipe_encoding(const recipe *r, const weight *w)
{
    if (r->mtp != NULL && strncmp(w->name, "mtp.", 4) == 0)
        r = recipe_find(r->mtp);
    encoding e = {.type = r->types[w->kind]};
    if (r->to == TO_RELEASE) {
        if (w->kind == W_NORM)
            e.type = DSV4_BF16;
        else if (w->kind == W_INDEXER_PROJ)
            e.type = DSV4_BF16;
        else if (w->kind == W_TABLE)
            e.type = DSV4_I64;
        else if (e.type == DSV4_FP4 && w->cols % 32 != 0)
            e.type = DSV4_BF16;
        return e;
    }
    if (r->to == TO_MLX) {
        if (e.type == DSV4_MLX4 || e.type == DSV4_MLX8) {
            e.group = 32;
            e.scale_type = DSV4_BF16;
            if (w->cols % e.group != 0)
                e = (encoding){.type = DSV4_BF16};
        } else if (w->kind == W_NORM) {
            e.type = DSV4_BF16;
        }
        return e;
    }
    if (dsv4_format_of(e.type)->block == 256 && w->cols % 256 != 0)
        e.type = smaller_block(e.type);
    if (dsv4_format_of(e.type)->block == 32 && w->cols % 32 != 0)
        e.type = DSV4_F16;
    return e;
}
