/* bind.c - from stored tensors to a model: every tensor that the config asks for, by its official
 * name, its shape and its type. Names and shapes are checked here and nowhere else. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage.h"

typedef struct {
    const dsv4_storage *st;
    char prefix[64]; /* "layers.3." or "mtp.0." */
    dsv4_error *err;
    dsv4_status status; /* the first failure stays */
} binder;

typedef enum { REQUIRED, OPTIONAL } need;

static bool is_float_type(dsv4_type t)
{
    return t != DSV4_I32 && t != DSV4_I64 && t != DSV4_Q8_K;
}

/* Small float vectors and tables steer the whole model; they are looked at once, here. */
static void check_finite(binder *b, const dsv4_tensor *t)
{
    enum { MOST = 1 << 20 };
    if (t->rows * t->cols > MOST)
        return;
    float *row = dsv4_alloc((size_t)t->cols, sizeof *row, "a row", b->err);
    if (row == NULL) {
        b->status = DSV4_E_MACHINE;
        return;
    }
    for (int64_t r = 0; r < t->rows && b->status == DSV4_OK; r++) {
        dsv4_tensor_row(t, r, row);
        for (int64_t c = 0; c < t->cols; c++)
            if (!isfinite(row[c])) {
                b->status =
                    dsv4_fail(b->err, DSV4_E_INPUT,
                              "%s: tensor %s: element [%lld][%lld] is %g, expected a finite "
                              "number",
                              b->st->path, t->name, (long long)r, (long long)c, (double)row[c]);
                break;
            }
    }
    free(row);
}

/* The tensor prefix + name as [rows][cols]; rows 1 = a vector. */
static void get(binder *b, dsv4_tensor *out, need n, int64_t rows, int64_t cols, const char *fmt,
                ...) __attribute__((format(printf, 6, 7)));

static void get(binder *b, dsv4_tensor *out, need n, int64_t rows, int64_t cols, const char *fmt,
                ...)
{
    char name[256];
    int at = snprintf(name, sizeof name, "%s", b->prefix);
    va_list args;
    va_start(args, fmt);
    vsnprintf(name + at, sizeof name - (size_t)at, fmt, args);
    va_end(args);
    if (b->status != DSV4_OK)
        return;
    b->status = b->st->lookup(b->st, name, out, b->err);
    if (b->status != DSV4_OK)
        return;
    if (out->name == NULL) {
        if (n == REQUIRED)
            b->status =
                dsv4_fail(b->err, DSV4_E_INPUT, "%s: tensor %s is missing, expected [%lld, %lld]",
                          b->st->path, name, (long long)rows, (long long)cols);
        return;
    }
    if (out->rows != rows || out->cols != cols) {
        b->status = dsv4_fail(b->err, DSV4_E_INPUT,
                              "%s: tensor %s: expected shape [%lld, %lld], found [%lld, %lld]",
                              b->st->path, name, (long long)rows, (long long)cols,
                              (long long)out->rows, (long long)out->cols);
        return;
    }
    if (!is_float_type(out->type)) {
        b->status = dsv4_fail(b->err, DSV4_E_INPUT,
                              "%s: tensor %s: expected floating-point weights, found integers",
                              b->st->path, name);
        return;
    }
    if (rows == 1)
        check_finite(b, out);
}

/* tid2eid [V][K]: integers, every one an expert. */
static void get_table(binder *b, dsv4_tensor *out, int64_t rows, int64_t cols, int64_t limit)
{
    char name[128];
    snprintf(name, sizeof name, "%sffn.gate.tid2eid", b->prefix);
    if (b->status != DSV4_OK)
        return;
    b->status = b->st->lookup(b->st, name, out, b->err);
    if (b->status != DSV4_OK)
        return;
    if (out->name == NULL || out->rows != rows || out->cols != cols) {
        b->status =
            dsv4_fail(b->err, DSV4_E_INPUT,
                      "%s: tensor %s: expected shape [%lld, %lld], found [%lld, %lld]%s",
                      b->st->path, name, (long long)rows, (long long)cols, (long long)out->rows,
                      (long long)out->cols, out->name == NULL ? " (missing)" : "");
        return;
    }
    if (out->type != DSV4_I32 && out->type != DSV4_I64) {
        b->status = dsv4_fail(b->err, DSV4_E_INPUT,
                              "%s: tensor %s: expected integers (I32 or I64), found floating point",
                              b->st->path, name);
        return;
    }
    for (int64_t i = 0; i < rows * cols; i++) {
        int64_t e = dsv4_tensor_int(out, i);
        if (e < 0 || e >= limit) {
            b->status = dsv4_fail(b->err, DSV4_E_INPUT,
                                  "%s: tensor %s: entry [%lld][%lld] is expert %lld, expected 0 to "
                                  "%lld",
                                  b->st->path, name, (long long)(i / cols), (long long)(i % cols),
                                  (long long)e, (long long)limit - 1);
            return;
        }
    }
}

static void bind_hc(binder *b, dsv4_hc_weights *w, const char *name, const dsv4_config *c,
                    bool head)
{
    int64_t hc = c->hc_mult, m = head ? hc : (2 + hc) * hc;
    get(b, &w->fn, REQUIRED, m, hc * c->hidden_size, "%s_fn", name);
    get(b, &w->base, REQUIRED, 1, m, "%s_base", name);
    get(b, &w->scale, REQUIRED, 1, head ? 1 : 3, "%s_scale", name);
}

static void bind_compressor(binder *b, dsv4_compressor_weights *w, const char *name, int ratio,
                            int64_t dim, int64_t D)
{
    int64_t width = (ratio == 4 ? 2 : 1) * dim;
    get(b, &w->wkv, REQUIRED, width, D, "%s.wkv.weight", name);
    get(b, &w->wgate, REQUIRED, width, D, "%s.wgate.weight", name);
    get(b, &w->ape, REQUIRED, ratio, width, "%s.ape", name);
    get(b, &w->norm, REQUIRED, 1, dim, "%s.norm.weight", name);
    if (b->status == DSV4_OK)
        check_finite(b, &w->ape);
}

static void bind_layer(binder *b, const dsv4_config *c, dsv4_layer *l, int index)
{
    int64_t D = c->hidden_size, H = c->num_attention_heads, d = c->head_dim;
    int64_t F = c->moe_intermediate_size, E = c->n_routed_experts, K = c->num_experts_per_tok;
    int64_t G = c->o_groups, shared = F * c->n_shared_experts;
    l->ratio = c->compress_ratios[index];
    l->hash = index < c->num_hash_layers;
    l->swiglu_limit = c->swiglu_limit[index];

    bind_hc(b, &l->hc_attn, "hc_attn", c, false);
    bind_hc(b, &l->hc_ffn, "hc_ffn", c, false);
    get(b, &l->attn_norm, REQUIRED, 1, D, "attn_norm.weight");
    get(b, &l->ffn_norm, REQUIRED, 1, D, "ffn_norm.weight");
    get(b, &l->wq_a, REQUIRED, c->q_lora_rank, D, "attn.wq_a.weight");
    get(b, &l->q_norm, REQUIRED, 1, c->q_lora_rank, "attn.q_norm.weight");
    get(b, &l->wq_b, REQUIRED, H * d, c->q_lora_rank, "attn.wq_b.weight");
    get(b, &l->wkv, REQUIRED, d, D, "attn.wkv.weight");
    get(b, &l->kv_norm, REQUIRED, 1, d, "attn.kv_norm.weight");
    get(b, &l->wo_a, REQUIRED, G * c->o_lora_rank, H / G * d, "attn.wo_a.weight");
    get(b, &l->wo_b, REQUIRED, D, G * c->o_lora_rank, "attn.wo_b.weight");
    get(b, &l->attn_sink, REQUIRED, 1, H, "attn.attn_sink");
    if (l->ratio > 0)
        bind_compressor(b, &l->compressor, "attn.compressor", l->ratio, d, D);
    if (l->ratio == 4) {
        int64_t index_dim = c->index_head_dim, heads = c->index_n_heads;
        get(b, &l->indexer.wq_b, REQUIRED, heads * index_dim, c->q_lora_rank,
            "attn.indexer.wq_b.weight");
        get(b, &l->indexer.weights_proj, REQUIRED, heads, D, "attn.indexer.weights_proj.weight");
        bind_compressor(b, &l->indexer.compressor, "attn.indexer.compressor", 4, index_dim, D);
    }
    get(b, &l->gate, REQUIRED, E, D, "ffn.gate.weight");
    if (l->hash)
        get_table(b, &l->tid2eid, c->vocab_size, K, E);
    else
        get(b, &l->gate_bias, REQUIRED, 1, E, "ffn.gate.bias");

    l->w1 = dsv4_alloc((size_t)E * 3, sizeof *l->w1, "expert views", b->err);
    if (l->w1 == NULL) {
        b->status = DSV4_E_MACHINE;
        return;
    }
    l->w2 = l->w1 + E;
    l->w3 = l->w2 + E;
    for (int64_t e = 0; e < E && b->status == DSV4_OK; e++) {
        get(b, &l->w1[e], REQUIRED, F, D, "ffn.experts.%lld.w1.weight", (long long)e);
        get(b, &l->w2[e], REQUIRED, D, F, "ffn.experts.%lld.w2.weight", (long long)e);
        get(b, &l->w3[e], REQUIRED, F, D, "ffn.experts.%lld.w3.weight", (long long)e);
    }
    get(b, &l->shared_w1, REQUIRED, shared, D, "ffn.shared_experts.w1.weight");
    get(b, &l->shared_w2, REQUIRED, D, shared, "ffn.shared_experts.w2.weight");
    get(b, &l->shared_w3, REQUIRED, shared, D, "ffn.shared_experts.w3.weight");
}

dsv4_status bind_mtp(dsv4_model *m, const dsv4_storage *from, dsv4_error *err)
{
    const dsv4_config *c = &m->config;
    int64_t D = c->hidden_size;
    binder b = {.st = from, .err = err};
    m->mtp = dsv4_alloc((size_t)c->num_nextn_predict_layers, sizeof *m->mtp, "MTP layers", err);
    if (m->mtp == NULL)
        return DSV4_E_MACHINE;
    for (int i = 0; i < c->num_nextn_predict_layers; i++) {
        dsv4_mtp_layer *w = &m->mtp[i];
        snprintf(b.prefix, sizeof b.prefix, "mtp.%d.", i);
        get(&b, &w->e_proj, REQUIRED, D, D, "e_proj.weight");
        get(&b, &w->h_proj, REQUIRED, D, D, "h_proj.weight");
        get(&b, &w->enorm, REQUIRED, 1, D, "enorm.weight");
        get(&b, &w->hnorm, REQUIRED, 1, D, "hnorm.weight");
        get(&b, &w->norm, REQUIRED, 1, D, "norm.weight");
        bind_hc(&b, &w->hc_head, "hc_head", c, true);
        bind_layer(&b, c, &w->layer, c->num_hidden_layers + i);
    }
    return b.status;
}

dsv4_status bind_model(dsv4_model *m, dsv4_error *err)
{
    const dsv4_config *c = &m->config;
    binder b = {.st = m->storage, .err = err};
    get(&b, &m->embed, REQUIRED, c->vocab_size, c->hidden_size, "embed.weight");
    get(&b, &m->head, REQUIRED, c->vocab_size, c->hidden_size, "head.weight");
    get(&b, &m->norm, REQUIRED, 1, c->hidden_size, "norm.weight");
    bind_hc(&b, &m->hc_head, "hc_head", c, true);
    m->layers = dsv4_alloc((size_t)c->num_hidden_layers, sizeof *m->layers, "layers", err);
    if (m->layers == NULL)
        return DSV4_E_MACHINE;
    for (int i = 0; i < c->num_hidden_layers && b.status == DSV4_OK; i++) {
        snprintf(b.prefix, sizeof b.prefix, "layers.%d.", i);
        bind_layer(&b, c, &m->layers[i], i);
    }
    if (b.status != DSV4_OK || c->num_nextn_predict_layers == 0)
        return b.status;
    /* A file may leave its MTP layer to a second one. */
    dsv4_tensor probe;
    b.status = m->storage->lookup(m->storage, "mtp.0.norm.weight", &probe, err);
    if (b.status != DSV4_OK || probe.name == NULL)
        return b.status;
    return bind_mtp(m, m->storage, err);
}
