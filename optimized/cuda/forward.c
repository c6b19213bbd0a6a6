/* forward.c - a block of tokens through the model, on the device: the order of operators and the
 * points of rounding are the reference session's (layer.c, attend.c, head.c, mtp.c). Everything
 * that depends on the position is read on the device, so that a decode step can be replayed. */
#include "session.h"

enum { FP8_KV_BLOCK = 64, FP4_INDEX_BLOCK = 32 };

static bool deployed(const dsv4_cuda_session *s)
{
    return s->options.numerics == DSV4_DEPLOYED;
}

/* ---- products ------------------------------------------------------------------------------- */

/* Products of the same tokens are collected and launched together. */
typedef struct {
    cu_segment seg[CU_MOST_SEGMENTS];
    int count;
    int64_t n;
} group;

static void flush(dsv4_cuda_session *s, group *g)
{
    if (g->count > 0)
        cu_products(s->stream, g->seg, g->count, g->n, &s->room);
    g->count = 0;
}

/* y = W x as the numerics want it; x8: x rounded to FP8 already, or NULL = round it here (then no
 * other product may be waiting for linear_in). keep: as session_linear's keep_float. */
static void product(dsv4_cuda_session *s, group *g, const cu_tensor *w, const float *x,
                    const float *x8, int64_t n, float *y, bool keep)
{
    bool rounds = deployed(s) && !keep;
    if (rounds && cu_quantised(w)) {
        if (x8 == NULL)
            cu_round_fp8(s->stream, x, s->linear_in, n, w->cols, w->cols, w->cols,
                         cu_fp8_block(w->cols), NULL);
        x = x8 != NULL ? x8 : s->linear_in;
    }
    g->seg[g->count++] = (cu_segment){*w, NULL, NULL, x, w->cols, y, w->rows, rounds, deployed(s)};
    g->n = n;
}

static void one_product(dsv4_cuda_session *s, const cu_tensor *w, const float *x, int64_t n,
                        float *y, bool keep)
{
    group g = {.count = 0};
    product(s, &g, w, x, NULL, n, y, keep);
    flush(s, &g);
}

/* b.norm rounded to FP8, if anybody takes it so. */
static const float *rounded_norm(dsv4_cuda_session *s, bool wanted, int64_t n)
{
    int64_t D = s->d->model->config.hidden_size;
    if (deployed(s) && wanted)
        cu_round_fp8(s->stream, s->norm, s->norm8, n, D, D, D, cu_fp8_block(D), NULL);
    return s->norm8;
}

/* ---- attention ------------------------------------------------------------------------------ */

static cu_compressor compressor_of(const dsv4_cuda_session *s, const cu_compressor_weights *w,
                                   const cu_compressor_state *c, bool index, int layer)
{
    const dsv4_config *cfg = &s->d->model->config;
    return (cu_compressor){.ratio = c->ratio,
                           .lanes = c->lanes,
                           .dim = c->dim,
                           .rope = cfg->qk_rope_head_dim,
                           .ring = 2 * c->ratio + s->options.chunk,
                           .kv = c->kv,
                           .z = c->z,
                           .rows = c->rows,
                           .ape = w->ape,
                           .norm = w->norm,
                           .inv_freq = s->inv_compress,
                           .eps = cfg->rms_norm_eps,
                           .numerics = (int)s->options.numerics,
                           .index = index,
                           .before = cu_hears_rounding(s, layer) ? s->before : NULL};
}

static void compress(dsv4_cuda_session *s, const cu_compressor_weights *w,
                     const cu_compressor_state *state, bool index, int layer, const int64_t *pos,
                     int64_t pos0, int64_t n)
{
    cu_compressor c = compressor_of(s, w, state, index, layer);
    dsv4_tap_id id = index ? DSV4_TAP_INDEXER_KV : DSV4_TAP_COMPRESSED_KV;
    cu_compressor_store(s->stream, &c, index ? s->index_kv : s->kv, index ? s->index_z : s->z, pos,
                        n);
    cu_compressor_emit(s->stream, &c, pos, n);
    if (s->taps == NULL)
        return;
    int64_t first = pos0 / c.ratio, count = (pos0 + n) / c.ratio - first;
    float *rows = c.rows + first * c.dim;
    cu_tap_rounded(s, id, layer, first, count, index ? DSV4_ROUND_FP4 : DSV4_ROUND_FP8,
                   index ? FP4_INDEX_BLOCK : FP8_KV_BLOCK, s->before, c.dim, rows, c.dim,
                   index ? c.dim : c.dim - c.rope);
    cu_tap(s, id, layer, first, count, rows, c.dim, c.dim);
}

static void choose_rows(dsv4_cuda_session *s, const cu_layer *w, const cu_layer_state *state,
                        int layer, const int64_t *pos, int64_t pos0, int64_t n)
{
    const dsv4_config *c = &s->d->model->config;
    int heads = c->index_n_heads, dim = c->index_head_dim, k = c->index_topk;
    int64_t width = (int64_t)heads * dim, cap = state->indexer.cap_rows;
    cu_rope(s->stream, s->index_q, n, heads, dim, c->qk_rope_head_dim, s->cos_compress,
            s->sin_compress, false, deployed(s));
    if (s->options.numerics != DSV4_MATH) {
        bool heard = cu_hears_rounding(s, layer);
        cu_hadamard(s->stream, s->index_q, n * heads, dim, deployed(s));
        cu_round_fp4(s->stream, s->index_q, n * heads, dim, FP4_INDEX_BLOCK,
                     heard ? s->heads : NULL); /* free until attention */
        cu_tap_rounded(s, DSV4_TAP_INDEXER_Q, layer, pos0, n, DSV4_ROUND_FP4, FP4_INDEX_BLOCK,
                       s->heads, width, s->index_q, width, width);
    }
    cu_tap(s, DSV4_TAP_INDEXER_Q, layer, pos0, n, s->index_q, width, width);
    compress(s, &w->indexer, &state->indexer, true, layer, pos, pos0, n);

    cu_index_weights(s->stream, s->index_w, n, heads, dim, deployed(s));
    cu_indexer_scores(s->stream, s->index_q, state->indexer.rows, s->index_w, heads, dim, n,
                      s->taps != NULL ? (pos0 + n) / state->indexer.ratio : cap, pos,
                      state->indexer.ratio, deployed(s), s->scores, cap);
    for (int64_t i = 0; s->taps != NULL && i < n; i++)
        cu_tap(s, DSV4_TAP_INDEXER_SCORES, layer, pos0 + i, 1, s->scores + i * cap,
               (pos0 + i + 1) / state->indexer.ratio, cap);
    cu_topk(s->stream, s->scores, cap, n, cap, pos, state->indexer.ratio, k, s->topk);
    cu_tap(s, DSV4_TAP_INDEXER_TOPK, layer, pos0, n, s->topk, k, k);
}

static void attend(dsv4_cuda_session *s, const cu_layer *w, const cu_layer_state *state, int ratio,
                   int layer, const int64_t *pos, int64_t pos0, int64_t n)
{
    const dsv4_config *c = &s->d->model->config;
    int H = c->num_attention_heads, d = c->head_dim, r = c->qk_rope_head_dim;
    const float *cosine = ratio > 0 ? s->cos_compress : s->cos_plain;
    const float *sine = ratio > 0 ? s->sin_compress : s->sin_plain;
    float eps = c->rms_norm_eps;
    group g = {.count = 0};

    const float *norm8 = rounded_norm(
        s, cu_quantised(&w->wq_a) || cu_quantised(&w->wkv) || cu_quantised(&w->index_weights), n);
    product(s, &g, &w->wq_a, s->norm, norm8, n, s->q_lora, false);
    product(s, &g, &w->wkv, s->norm, norm8, n, s->kv_row, false);
    if (ratio > 0) { /* float32 in every mode */
        product(s, &g, &w->compressor.wkv, s->norm, NULL, n, s->kv, true);
        product(s, &g, &w->compressor.wgate, s->norm, NULL, n, s->z, true);
    }
    if (ratio == 4) {
        product(s, &g, &w->indexer.wkv, s->norm, NULL, n, s->index_kv, true);
        product(s, &g, &w->indexer.wgate, s->norm, NULL, n, s->index_z, true);
        product(s, &g, &w->index_weights, s->norm, norm8, n, s->index_w, false);
    }
    flush(s, &g);

    cu_rmsnorm(s->stream, s->q_lora, w->q_norm, eps, n, c->q_lora_rank, s->q_lora, deployed(s));
    cu_tap(s, DSV4_TAP_Q_LORA, layer, pos0, n, s->q_lora, c->q_lora_rank, c->q_lora_rank);
    if (deployed(s) && (cu_quantised(&w->wq_b) || cu_quantised(&w->index_wq_b)))
        cu_round_fp8(s->stream, s->q_lora, s->linear_in, n, c->q_lora_rank, c->q_lora_rank,
                     c->q_lora_rank, cu_fp8_block(c->q_lora_rank), NULL);
    product(s, &g, &w->wq_b, s->q_lora, s->linear_in, n, s->q, false);
    if (ratio == 4)
        product(s, &g, &w->index_wq_b, s->q_lora, s->linear_in, n, s->index_q, false);
    flush(s, &g);
    cu_head_norm(s->stream, s->q, eps, n * H, d, deployed(s));
    cu_rope(s->stream, s->q, n, H, d, r, cosine, sine, false, deployed(s));
    cu_tap(s, DSV4_TAP_Q, layer, pos0, n, s->q, (int64_t)H * d, (int64_t)H * d);

    cu_rmsnorm(s->stream, s->kv_row, w->kv_norm, eps, n, d, s->kv_row, deployed(s));
    cu_rope(s->stream, s->kv_row, n, 1, d, r, cosine, sine, false, deployed(s));
    if (s->options.numerics != DSV4_MATH) {
        cu_round_fp8(s->stream, s->kv_row, s->kv_row, n, d, d, d - r, FP8_KV_BLOCK,
                     cu_hears_rounding(s, layer) ? s->before : NULL);
        cu_tap_rounded(s, DSV4_TAP_KV, layer, pos0, n, DSV4_ROUND_FP8, FP8_KV_BLOCK, s->before,
                       d - r, s->kv_row, d, d - r);
    }
    cu_tap(s, DSV4_TAP_KV, layer, pos0, n, s->kv_row, d, d);
    cu_window_store(s->stream, s->kv_row, pos, n, d, s->window_ring, state->window);

    if (ratio > 0)
        compress(s, &w->compressor, &state->compressor, false, layer, pos, pos0, n);
    if (ratio == 4)
        choose_rows(s, w, state, layer, pos, pos0, n);

    int64_t most = ratio > 0 ? state->compressor.cap_rows : 0;
    cu_attention_args a = {.n = n,
                           .pos0 = pos,
                           .heads = H,
                           .dim = d,
                           .q = s->q,
                           .window = state->window,
                           .window_ring = s->window_ring,
                           .window_size = c->sliding_window,
                           .rows = state->compressor.rows,
                           .ratio = ratio,
                           .most_rows = most,
                           .topk = ratio == 4 ? s->topk : NULL,
                           .k = c->index_topk,
                           .sink = w->sink,
                           .scratch = s->attention_scratch};
    a.splits = cu_attention_splits(c->sliding_window + (ratio == 4 ? a.k : most));
    cu_attention(s->stream, &a, s->heads, deployed(s));
    cu_tap(s, DSV4_TAP_ATTN_HEADS, layer, pos0, n, s->heads, (int64_t)H * d, (int64_t)H * d);
    cu_rope(s->stream, s->heads, n, H, d, r, cosine, sine, true, deployed(s));

    /* Group i of consecutive heads has its own rows of wo_a; its input is never FP8. */
    int64_t in = (int64_t)H / c->o_groups * d, out = (int64_t)c->o_groups * c->o_lora_rank;
    for (int i = 0; i < c->o_groups; i++) {
        cu_tensor wo = w->wo_a;
        int64_t first = (int64_t)i * c->o_lora_rank;
        wo.rows = c->o_lora_rank;
        wo.data += (size_t)first * wo.row_bytes;
        wo.row0 += (int)first;
        if (g.count == CU_MOST_SEGMENTS)
            flush(s, &g);
        g.n = n;
        g.seg[g.count++] = (cu_segment){
            wo,  NULL,        NULL,       s->heads + i * in, (int64_t)H * d, s->o_lora + first,
            out, deployed(s), deployed(s)};
    }
    flush(s, &g);
    cu_tap(s, DSV4_TAP_O_LORA, layer, pos0, n, s->o_lora, out, out);
    one_product(s, &w->wo_b, s->o_lora, n, s->out, false);
    cu_tap(s, DSV4_TAP_ATTN_OUT, layer, pos0, n, s->out, c->hidden_size, c->hidden_size);
}

/* ---- a layer -------------------------------------------------------------------------------- */

static void hc_enter(dsv4_cuda_session *s, const cu_hc *hc, const float *norm, int layer, bool ffn,
                     int64_t pos0, int64_t n)
{
    const dsv4_config *c = &s->d->model->config;
    int k = c->hc_mult;
    int64_t D = c->hidden_size;
    cu_gates g = {hc->scale, hc->base, k,       c->hc_sinkhorn_iters,
                  c->hc_eps, s->pre,   s->post, s->comb};
    cu_hc_mix(s->stream, &hc->fn, s->streams, c->rms_norm_eps, n, s->mix, s->mix_scratch,
              s->tickets, &g);
    cu_tap(s, ffn ? DSV4_TAP_HC_FFN_POST : DSV4_TAP_HC_ATTN_POST, layer, pos0, n, s->post, k, k);
    cu_tap(s, ffn ? DSV4_TAP_HC_FFN_COMB : DSV4_TAP_HC_ATTN_COMB, layer, pos0, n, s->comb,
           (int64_t)k * k, (int64_t)k * k);
    cu_hc_collapse(s->stream, s->streams, s->pre, n, k, D, s->x, deployed(s));
    cu_tap(s, ffn ? DSV4_TAP_HC_FFN_COLLAPSED : DSV4_TAP_HC_ATTN_COLLAPSED, layer, pos0, n, s->x, D,
           D);
    cu_rmsnorm(s->stream, s->x, norm, c->rms_norm_eps, n, D, s->norm, deployed(s));
    cu_tap(s, ffn ? DSV4_TAP_FFN_NORM : DSV4_TAP_ATTN_NORM, layer, pos0, n, s->norm, D, D);
}

static void hc_leave(dsv4_cuda_session *s, bool ffn, int layer, int64_t pos0, int64_t n)
{
    const dsv4_config *c = &s->d->model->config;
    int64_t width = c->hc_mult * c->hidden_size;
    cu_hc_post(s->stream, s->out, s->streams, s->post, s->comb, n, c->hc_mult, c->hidden_size,
               s->mixed, deployed(s));
    float *swap = s->streams;
    s->streams = s->mixed;
    s->mixed = swap;
    cu_tap(s, ffn ? DSV4_TAP_STREAMS : DSV4_TAP_STREAMS_MID, layer, pos0, n, s->streams, width,
           width);
}

static void moe(dsv4_cuda_session *s, const cu_layer *w, float limit, int layer, const int32_t *ids,
                int64_t pos0, int64_t n)
{
    const dsv4_config *c = &s->d->model->config;
    int64_t D = c->hidden_size, inner = w->shared_w1.rows;
    int E = c->n_routed_experts, K = c->num_experts_per_tok;
    group g = {.count = 0};
    const float *norm8 =
        rounded_norm(s, cu_quantised(&w->shared_w1) || cu_quantised(&w->shared_w3), n);
    product(s, &g, &w->gate, s->norm, NULL, n, s->router_logits, true); /* float32 in every mode */
    product(s, &g, &w->shared_w1, s->norm, norm8, n, s->shared_gate, false);
    product(s, &g, &w->shared_w3, s->norm, norm8, n, s->shared_up, false);
    flush(s, &g);
    cu_tap(s, DSV4_TAP_ROUTER_LOGITS, layer, pos0, n, s->router_logits, E, E);
    cu_router(s->stream, s->router_logits, w->gate_bias, w->tid2eid, ids, n, E, K,
              c->routed_scaling_factor, s->experts, s->weights);
    cu_tap(s, DSV4_TAP_ROUTER_EXPERTS, layer, pos0, n, s->experts, K, K);
    cu_tap(s, DSV4_TAP_ROUTER_WEIGHTS, layer, pos0, n, s->weights, K, K);
    cu_experts_args a = {.n = n,
                         .k = K,
                         .n_experts = E,
                         .w1 = w->w1,
                         .w2 = w->w2,
                         .w3 = w->w3,
                         .t1 = w->t1,
                         .t2 = w->t2,
                         .t3 = w->t3,
                         .x = s->norm,
                         .experts = s->experts,
                         .weights = s->weights,
                         .limit = limit,
                         .deployed = deployed(s),
                         .x8 = s->linear_in,
                         .gate = s->gate,
                         .up = s->up,
                         .y = s->y,
                         .share = s->share,
                         .list = s->list,
                         .groups = s->groups,
                         .n_groups = s->n_groups,
                         .out = s->out,
                         .room = s->room};
    cu_experts(s->stream, &a);
    cu_tap(s, DSV4_TAP_ROUTED_OUT, layer, pos0, n, s->out, D, D);
    cu_swiglu(s->stream, s->shared_gate, s->shared_up, limit, n, inner, NULL, deployed(s),
              s->shared_gate);
    one_product(s, &w->shared_w2, s->shared_gate, n, s->shared, false);
    cu_tap(s, DSV4_TAP_SHARED_OUT, layer, pos0, n, s->shared, D, D);
    cu_add(s->stream, s->out, s->shared, n * D, deployed(s));
    cu_tap(s, DSV4_TAP_FFN_OUT, layer, pos0, n, s->out, D, D);
}

static void layer_forward(dsv4_cuda_session *s, int number, int layer, const int32_t *ids,
                          const int64_t *pos, int64_t pos0, int64_t n)
{
    const dsv4_model *m = s->d->model;
    const cu_layer *w = &s->d->layers[number];
    const dsv4_layer *l =
        number < m->config.num_hidden_layers ? &m->layers[number] : &m->mtp[0].layer;
    hc_enter(s, &w->hc_attn, w->attn_norm, layer, false, pos0, n);
    attend(s, w, &s->layers[number], l->ratio, layer, pos, pos0, n);
    hc_leave(s, false, layer, pos0, n);
    hc_enter(s, &w->hc_ffn, w->ffn_norm, layer, true, pos0, n);
    moe(s, w, l->swiglu_limit, layer, ids, pos0, n);
    hc_leave(s, true, layer, pos0, n);
}

/* ---- the ends ------------------------------------------------------------------------------- */

/* Streams of one token to b.norm, by a head's gates. */
static void head_collapse(dsv4_cuda_session *s, const cu_hc *hc, const float *streams)
{
    const dsv4_config *c = &s->d->model->config;
    cu_hc_mix(s->stream, &hc->fn, streams, c->rms_norm_eps, 1, s->mix, s->mix_scratch, s->tickets,
              NULL);
    cu_hc_head_gates(s->stream, s->mix, hc->scale, hc->base, 1, c->hc_mult, c->hc_eps, s->pre);
    cu_hc_collapse(s->stream, streams, s->pre, 1, c->hc_mult, c->hidden_size, s->x, deployed(s));
}

static void head(dsv4_cuda_session *s, int64_t pos0, int64_t n, bool last)
{
    const dsv4_config *c = &s->d->model->config;
    int64_t D = c->hidden_size, V = c->vocab_size;
    for (int64_t i = 0; i < n; i++) {
        bool wanted = last && i == n - 1;
        for (dsv4_tap_id id = DSV4_TAP_HEAD_COLLAPSED; id <= DSV4_TAP_LOGITS; id++)
            wanted = wanted || cu_wants(s, id, -1, pos0 + i);
        if (!wanted)
            continue;
        head_collapse(s, &s->d->hc_head, s->streams + i * c->hc_mult * D);
        cu_tap(s, DSV4_TAP_HEAD_COLLAPSED, -1, pos0 + i, 1, s->x, D, D);
        cu_rmsnorm(s->stream, s->x, s->d->norm, c->rms_norm_eps, 1, D, s->norm, deployed(s));
        cu_tap(s, DSV4_TAP_FINAL_NORM, -1, pos0 + i, 1, s->norm, D, D);
        one_product(s, &s->d->head, s->norm, 1, s->logits, true);
        cu_tap(s, DSV4_TAP_LOGITS, -1, pos0 + i, 1, s->logits, V, V);
    }
}

static void angles(dsv4_cuda_session *s, const int64_t *pos, int64_t n)
{
    int half = s->d->model->config.qk_rope_head_dim / 2;
    cu_rope_angles(s->stream, s->inv_plain, half, NULL, pos, n, s->cos_plain, s->sin_plain);
    cu_rope_angles(s->stream, s->inv_compress, half, NULL, pos, n, s->cos_compress,
                   s->sin_compress);
}

static void mtp_forward(dsv4_cuda_session *s, const int32_t *ids, int64_t n)
{
    const dsv4_config *c = &s->d->model->config;
    const dsv4_cuda *d = s->d;
    int64_t D = c->hidden_size, width = c->hc_mult * D;
    size_t row = (size_t)width * sizeof(float);
    int64_t waited = s->position > 0 ? 1 : 0, rows = n - 1 + waited;
    const int32_t *next = ids + 1 - waited;
    if (waited)
        cu_on_device(s->stream, s->mixed, s->pending, row, "the token that waited");
    if (n > 1)
        cu_on_device(s->stream, s->mixed + waited * width, s->streams, (size_t)(n - 1) * row,
                     "streams of the MTP layer");
    cu_on_device(s->stream, s->pending, s->streams + (n - 1) * width, row, "the token that waits");
    if (rows == 0)
        return;
    cu_embed(s->stream, &d->embed, next, rows, 1, deployed(s), s->x);
    cu_rmsnorm(s->stream, s->x, d->enorm, c->rms_norm_eps, rows, D, s->norm, deployed(s));
    one_product(s, &d->e_proj, s->norm, rows, s->out, false);
    cu_rmsnorm(s->stream, s->mixed, d->hnorm, c->rms_norm_eps, rows * c->hc_mult, D, s->mixed,
               deployed(s));
    one_product(s, &d->h_proj, s->mixed, rows * c->hc_mult, s->streams, false);
    cu_add_streams(s->stream, s->streams, s->out, rows, c->hc_mult, D, deployed(s));

    int64_t pos0 = s->position - waited;
    angles(s, &s->step->mtp_pos, rows);
    layer_forward(s, c->num_hidden_layers, -1, next, &s->step->mtp_pos, pos0, rows);
    for (int64_t i = 0; i < rows; i++) {
        if (!cu_wants(s, DSV4_TAP_MTP_LOGITS, -1, pos0 + i))
            continue;
        head_collapse(s, &d->mtp_head, s->streams + i * width);
        cu_rmsnorm(s->stream, s->x, d->mtp_norm, c->rms_norm_eps, 1, D, s->norm, deployed(s));
        one_product(s, &d->head, s->norm, 1, s->logits, true);
        cu_tap(s, DSV4_TAP_MTP_LOGITS, -1, pos0 + i, 1, s->logits, c->vocab_size, c->vocab_size);
    }
}

void cu_forward(dsv4_cuda_session *s, int64_t n, bool logits)
{
    const dsv4_config *c = &s->d->model->config;
    const int32_t *ids = n == 1 ? &s->step->token : s->ids;
    const int64_t *pos = &s->step->pos;
    angles(s, pos, n);
    cu_embed(s->stream, &s->d->embed, ids, n, c->hc_mult, deployed(s), s->streams);
    for (int l = 0; l < c->num_hidden_layers; l++)
        layer_forward(s, l, l, ids, pos, s->position, n);
    head(s, s->position, n, logits);
    if (s->options.mtp)
        mtp_forward(s, ids, n);
}
