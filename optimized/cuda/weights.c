/* weights.c - a model's weights on the device, in their storage format, behind one allocation that
 * is measured against the free memory before anything is copied. */
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "optimized/optimized.h"
#include "reference/formats/formats.h"

enum { ALIGN = 256 };

/* One walk measures, a second one copies. */
typedef struct {
    uint8_t *base; /* device; NULL while measuring */
    size_t used;
    cu_stream stream;
    dsv4_error *err;
    dsv4_status status;
} walk;

static void *room(walk *w, size_t bytes)
{
    uint8_t *p = w->base != NULL ? w->base + w->used : NULL;
    w->used += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return p;
}

static void put(walk *w, void *to, const void *from, size_t bytes)
{
    if (w->status == DSV4_OK && w->base != NULL && bytes > 0 &&
        !(cu_to_device(w->stream, to, from, bytes, "copying weights") &&
          cu_wait(w->stream, "copying weights")))
        w->status = cu_take_error(w->err);
}

/* Rows decoded to float32: vectors, and types the kernels do not know. */
static float *floats(walk *w, const dsv4_tensor *t)
{
    size_t n = (size_t)(t->rows * t->cols);
    if (t->name == NULL)
        return NULL;
    float *to = room(w, n * sizeof(float));
    if (w->base == NULL || w->status != DSV4_OK)
        return to;
    float *row = dsv4_alloc(n, sizeof *row, "weights on their way to the device", w->err);
    if (row == NULL) {
        w->status = DSV4_E_MACHINE;
        return to;
    }
    for (int64_t i = 0; i < t->rows; i++)
        dsv4_tensor_row(t, i, row + i * t->cols);
    put(w, to, row, n * sizeof(float));
    free(row);
    return to;
}

static cu_tensor matrix(walk *w, const dsv4_tensor *t)
{
    cu_tensor d = {.type = (int)t->type,
                   .rows = t->rows,
                   .cols = t->cols,
                   .row_bytes = t->row_bytes,
                   .scale_rows = t->scale_rows > 0 ? t->scale_rows : 1,
                   .scale_cols = t->scale_cols > 0 ? t->scale_cols : 1};
    if (t->name == NULL)
        return (cu_tensor){0};
    if (!cu_type_native(d.type)) {
        d.type = DSV4_F32;
        d.row_bytes = (size_t)t->cols * sizeof(float);
        d.scale_rows = d.scale_cols = 1;
        d.data = (const uint8_t *)floats(w, t);
        return d;
    }
    size_t bytes = (size_t)t->rows * t->row_bytes;
    void *data = room(w, bytes);
    put(w, data, t->data + (size_t)t->row0 * t->row_bytes, bytes);
    d.data = data;
    if (t->scale != NULL) {
        int64_t first = t->row0 / t->scale_rows, last = (t->row0 + t->rows - 1) / t->scale_rows;
        bytes = (size_t)(last - first + 1) * t->scale_row_bytes;
        void *scale = room(w, bytes);
        put(w, scale, t->scale + (size_t)first * t->scale_row_bytes, bytes);
        d.scale = scale;
        d.scale_row_bytes = t->scale_row_bytes;
        d.row0 = (int)(t->row0 - first * t->scale_rows);
    }
    return d;
}

static cu_hc hyper(walk *w, const dsv4_hc_weights *h)
{
    /* In float32 whatever the file has: the mixes are made by a kernel of their own. */
    cu_hc d = {.fn = {.type = DSV4_F32,
                      .rows = h->fn.rows,
                      .cols = h->fn.cols,
                      .row_bytes = (size_t)h->fn.cols * sizeof(float),
                      .scale_rows = 1,
                      .scale_cols = 1}};
    d.fn.data = (const uint8_t *)floats(w, &h->fn);
    d.base = floats(w, &h->base);
    d.scale = floats(w, &h->scale);
    return d;
}

static cu_compressor_weights compressor(walk *w, const dsv4_compressor_weights *c)
{
    cu_compressor_weights d = {.wkv = matrix(w, &c->wkv), .wgate = matrix(w, &c->wgate)};
    d.ape = floats(w, &c->ape);
    d.norm = floats(w, &c->norm);
    return d;
}

/* Experts one by one, then the table of their addresses. */
static cu_tensor *experts(walk *w, const dsv4_tensor *t, int n, cu_tensor *shape)
{
    cu_tensor *all = dsv4_alloc((size_t)n, sizeof *all, "experts", w->err);
    if (all == NULL) {
        w->status = DSV4_E_MACHINE;
        return NULL;
    }
    for (int e = 0; e < n; e++)
        all[e] = matrix(w, &t[e]);
    *shape = all[0];
    cu_tensor *table = room(w, (size_t)n * sizeof *all);
    put(w, table, all, (size_t)n * sizeof *all);
    free(all);
    return table;
}

static void layer(walk *w, const dsv4_model *m, const dsv4_layer *l, cu_layer *d)
{
    int E = m->config.n_routed_experts;
    d->hc_attn = hyper(w, &l->hc_attn);
    d->hc_ffn = hyper(w, &l->hc_ffn);
    d->attn_norm = floats(w, &l->attn_norm);
    d->ffn_norm = floats(w, &l->ffn_norm);
    d->q_norm = floats(w, &l->q_norm);
    d->kv_norm = floats(w, &l->kv_norm);
    d->sink = floats(w, &l->attn_sink);
    d->gate_bias = floats(w, &l->gate_bias);
    d->wq_a = matrix(w, &l->wq_a);
    d->wq_b = matrix(w, &l->wq_b);
    d->wkv = matrix(w, &l->wkv);
    d->wo_a = matrix(w, &l->wo_a);
    d->wo_b = matrix(w, &l->wo_b);
    if (l->ratio > 0)
        d->compressor = compressor(w, &l->compressor);
    if (l->ratio == 4) {
        d->indexer = compressor(w, &l->indexer.compressor);
        d->index_wq_b = matrix(w, &l->indexer.wq_b);
        d->index_weights = matrix(w, &l->indexer.weights_proj);
    }
    d->gate = matrix(w, &l->gate);
    d->shared_w1 = matrix(w, &l->shared_w1);
    d->shared_w2 = matrix(w, &l->shared_w2);
    d->shared_w3 = matrix(w, &l->shared_w3);
    d->t1 = experts(w, l->w1, E, &d->w1);
    d->t2 = experts(w, l->w2, E, &d->w2);
    d->t3 = experts(w, l->w3, E, &d->w3);
    if (l->hash) {
        int64_t n = l->tid2eid.rows * l->tid2eid.cols;
        int32_t *ids = dsv4_alloc((size_t)n, sizeof *ids, "tid2eid", w->err);
        d->tid2eid = room(w, (size_t)n * sizeof *ids);
        if (ids == NULL)
            w->status = DSV4_E_MACHINE;
        for (int64_t i = 0; ids != NULL && w->base != NULL && i < n; i++)
            ids[i] = (int32_t)dsv4_tensor_int(&l->tid2eid, i);
        if (ids != NULL)
            put(w, d->tid2eid, ids, (size_t)n * sizeof *ids);
        free(ids);
    }
}

static void walk_model(walk *w, dsv4_cuda *d)
{
    const dsv4_model *m = d->model;
    int layers = m->config.num_hidden_layers;
    d->embed = matrix(w, &m->embed);
    d->head = matrix(w, &m->head);
    d->norm = floats(w, &m->norm);
    d->hc_head = hyper(w, &m->hc_head);
    for (int i = 0; i < layers && w->status == DSV4_OK; i++)
        layer(w, m, &m->layers[i], &d->layers[i]);
    if (m->mtp != NULL && w->status == DSV4_OK) {
        const dsv4_mtp_layer *t = &m->mtp[0];
        d->e_proj = matrix(w, &t->e_proj);
        d->h_proj = matrix(w, &t->h_proj);
        d->enorm = floats(w, &t->enorm);
        d->hnorm = floats(w, &t->hnorm);
        d->mtp_norm = floats(w, &t->norm);
        d->mtp_head = hyper(w, &t->hc_head);
        layer(w, m, &t->layer, &d->layers[layers]);
    }
}

/* What the kernels were not made for is refused before anything is copied. */
static dsv4_status check_shape(const dsv4_config *c, dsv4_error *err)
{
    if (c->head_dim > 512 || c->index_head_dim > 512)
        return dsv4_fail(err, DSV4_E_INPUT, "cuda: expected head_dim up to 512, found %d",
                         c->head_dim);
    if (c->index_topk > CU_MOST_TOPK)
        return dsv4_fail(err, DSV4_E_INPUT, "cuda: expected index_topk up to %d, found %d",
                         (int)CU_MOST_TOPK, c->index_topk);
    if (c->hc_mult > CU_MOST_HC)
        return dsv4_fail(err, DSV4_E_INPUT, "cuda: expected hc_mult up to %d, found %d",
                         (int)CU_MOST_HC, c->hc_mult);
    if (c->n_routed_experts > 8192)
        return dsv4_fail(err, DSV4_E_INPUT, "cuda: expected up to 8192 experts, found %d",
                         c->n_routed_experts);
    return DSV4_OK;
}

dsv4_status dsv4_cuda_open(const dsv4_model *m, dsv4_cuda **out, dsv4_error *err)
{
    dsv4_cuda *d = NULL;
    walk w = {.err = err};
    *out = NULL;
    dsv4_status status = check_shape(&m->config, err);
    if (status == DSV4_OK)
        status = cu_open(err);
    if (status != DSV4_OK)
        return status;
    d = dsv4_alloc(1, sizeof *d, "the CUDA engine", err);
    if (d == NULL)
        return DSV4_E_MACHINE;
    d->model = m;
    d->layers = dsv4_alloc((size_t)m->config.num_hidden_layers + 1, sizeof *d->layers,
                           "the CUDA engine", err);
    if (d->layers == NULL)
        goto failed;
    walk_model(&w, d);
    d->bytes = w.used;
    if (w.status != DSV4_OK)
        goto failed;
    d->memory = cu_new(d->bytes, "the weights", err);
    w = (walk){.base = d->memory, .err = err, .stream = d->memory ? cu_new_stream(err) : NULL};
    if (w.stream == NULL)
        goto failed;
    /* Rows are copied in aligned pieces: what lies between matrices is read, and never used. */
    if (!cu_clear(w.stream, d->memory, d->bytes))
        w.status = cu_take_error(err);
    walk_model(&w, d);
    cu_delete_stream(w.stream);
    if (w.status != DSV4_OK)
        goto failed;
    *out = d;
    return DSV4_OK;
failed:
    dsv4_cuda_close(d);
    return DSV4_E_MACHINE;
}

void dsv4_cuda_close(dsv4_cuda *d)
{
    if (d == NULL)
        return;
    cu_delete(d->memory);
    free(d->layers);
    free(d);
}

size_t dsv4_cuda_weight_bytes(const dsv4_cuda *d)
{
    return d->bytes;
}

cu_tensor dsv4_cuda_head(const dsv4_cuda *d)
{
    return d->head;
}
