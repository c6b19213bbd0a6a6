/* attend.c - the attention block of a layer: queries, window rows, compressed rows, the indexer's
 * choice, attention, grouped output. Keeps the layer's state; all arithmetic is in operators. */
#include <string.h>

#include "session.h"

enum { FP8_KV_BLOCK = 64, FP4_INDEX_BLOCK = 32 };

/* Rounds row [dim] in place to FP8 over its first `n` columns, reporting before and after. */
static void round_kv_row(dsv4_session *s, dsv4_tap_id id, int layer, int64_t position, float *row,
                         int64_t n)
{
    if (s->options.numerics == DSV4_MATH)
        return;
    memcpy(s->b.row, row, (size_t)n * sizeof *row);
    s->ops->round_fp8(row, 1, n, n, FP8_KV_BLOCK);
    if (layer >= 0 && s->taps != NULL && s->taps->rounded != NULL)
        s->taps->rounded(s->taps->ctx, id, layer, position, DSV4_ROUND_FP8, FP8_KV_BLOCK, s->b.row,
                         row, (size_t)n);
}

/* Hadamard, then FP4, of rows [heads][dim] of one position. */
static void round_index_row(dsv4_session *s, dsv4_tap_id id, int layer, int64_t position,
                            float *row, int heads, int dim)
{
    if (s->options.numerics == DSV4_MATH)
        return;
    int64_t n = (int64_t)heads * dim;
    s->ops->hadamard(row, heads, dim);
    session_hand_on(s, row, n);
    memcpy(s->b.heads, row, (size_t)n * sizeof *row); /* free until attention */
    s->ops->round_fp4(row, heads, dim, FP4_INDEX_BLOCK);
    if (layer >= 0 && s->taps != NULL && s->taps->rounded != NULL)
        s->taps->rounded(s->taps->ctx, id, layer, position, DSV4_ROUND_FP4, FP4_INDEX_BLOCK,
                         s->b.heads, row, (size_t)n);
}

/* One full window -> one row, normalised, rotated at the window's first token, rounded. */
static void emit_row(dsv4_session *s, const dsv4_compressor_weights *w, compressor_state *c,
                     dsv4_tap_id id, int layer)
{
    const dsv4_config *cfg = &s->model->config;
    int r = cfg->qk_rope_head_dim;
    float *row = c->rows + c->n_rows * c->dim;
    int64_t position = c->n_rows * c->ratio;
    s->ops->compressor_pool(c->has_prev ? c->prev_kv : NULL, c->has_prev ? c->prev_z : NULL, c->kv,
                            c->z, c->ratio, c->lanes, c->dim, row);
    session_hand_on(s, row, c->dim);
    session_norm(s, &w->norm, row, 1, c->dim, row);
    s->ops->rope_angles(s->inv_compress, r / 2, &position, 1, s->b.cos_row, s->b.sin_row);
    s->ops->rope(row, 1, 1, c->dim, r, s->b.cos_row, s->b.sin_row, false);
    session_hand_on(s, row, c->dim);
    if (id == DSV4_TAP_COMPRESSED_KV)
        round_kv_row(s, id, layer, c->n_rows, row, c->dim - r);
    else
        round_index_row(s, id, layer, c->n_rows, row, 1, c->dim);
    session_tap(s, id, layer, c->n_rows, 1, row, c->dim);
    c->n_rows++;
    if (c->lanes == 2) { /* this window becomes the previous one */
        float *kv = c->prev_kv, *z = c->prev_z;
        c->prev_kv = c->kv;
        c->prev_z = c->z;
        c->kv = kv;
        c->z = z;
        c->has_prev = true;
    }
    c->fill = 0;
}

/* Feeds n tokens x [n][D] to a compressor; rows appear as their windows fill. */
static void compress(dsv4_session *s, const dsv4_compressor_weights *w, compressor_state *c,
                     dsv4_tap_id id, int layer, const float *x, int64_t pos0, int64_t n)
{
    block_buffers *b = &s->b;
    int64_t width = (int64_t)c->lanes * c->dim;
    session_linear(s, &w->wkv, x, n, b->kv, true); /* float32 in every mode */
    session_linear(s, &w->wgate, x, n, b->z, true);
    for (int slot = 0; slot < c->ratio; slot++)
        dsv4_tensor_row(&w->ape, slot, b->ape + slot * width);
    for (int64_t i = 0; i < n; i++) {
        int slot = (int)((pos0 + i) % c->ratio);
        memcpy(c->kv + slot * width, b->kv + i * width, (size_t)width * sizeof *c->kv);
        memcpy(c->z + slot * width, b->z + i * width, (size_t)width * sizeof *c->z);
        s->ops->add(c->z + slot * width, b->ape + slot * width, width);
        if (++c->fill == c->ratio)
            emit_row(s, w, c, id, layer);
    }
}

/* The indexer's choice of rows for n tokens, into b.topk [n][index_topk]. */
static void choose_rows(dsv4_session *s, const dsv4_layer *w, layer_state *state, int layer,
                        int64_t pos0, int64_t n)
{
    const dsv4_config *c = &s->model->config;
    block_buffers *b = &s->b;
    int heads = c->index_n_heads, dim = c->index_head_dim, k = c->index_topk;

    session_linear(s, &w->indexer.wq_b, b->q_lora, n, b->index_q, false);
    s->ops->rope(b->index_q, n, heads, dim, c->qk_rope_head_dim, b->cos_compress, b->sin_compress,
                 false);
    session_hand_on(s, b->index_q, n * heads * dim);
    for (int64_t i = 0; i < n; i++)
        round_index_row(s, DSV4_TAP_INDEXER_Q, layer, pos0 + i, b->index_q + i * heads * dim, heads,
                        dim);
    session_tap(s, DSV4_TAP_INDEXER_Q, layer, pos0, n, b->index_q, (int64_t)heads * dim);

    compress(s, &w->indexer.compressor, &state->indexer, DSV4_TAP_INDEXER_KV, layer, b->norm, pos0,
             n);

    session_linear(s, &w->indexer.weights_proj, b->norm, n, b->index_w, false);
    s->ops->index_weights(b->index_w, n, heads, dim);
    session_hand_on(s, b->index_w, n * heads);
    for (int64_t i = 0; i < n; i++) {
        int64_t visible = (pos0 + i + 1) / state->indexer.ratio;
        s->ops->indexer_scores(b->index_q + i * heads * dim, state->indexer.rows,
                               b->index_w + i * heads, heads, dim, visible, session_deployed(s),
                               b->scores);
        session_tap(s, DSV4_TAP_INDEXER_SCORES, layer, pos0 + i, 1, b->scores, visible);
        s->ops->topk(b->scores, visible, k, b->topk + i * k);
        session_tap(s, DSV4_TAP_INDEXER_TOPK, layer, pos0 + i, 1, b->topk + i * k, k);
    }
}

/* Makes room for n more window rows, keeping the W - 1 that later tokens still see. */
static float *window_room(dsv4_session *s, layer_state *state, int64_t n)
{
    const dsv4_config *c = &s->model->config;
    int64_t cap = c->sliding_window - 1 + s->options.chunk;
    if (state->window_rows + n > cap) {
        int64_t keep = c->sliding_window - 1;
        keep = keep < state->window_rows ? keep : state->window_rows;
        int64_t drop = state->window_rows - keep;
        memmove(state->window, state->window + drop * c->head_dim,
                (size_t)(keep * c->head_dim) * sizeof *state->window);
        state->window_rows = keep;
        state->window_pos0 += drop;
    }
    return state->window + state->window_rows * c->head_dim;
}

dsv4_status attention_forward(dsv4_session *s, const dsv4_layer *w, layer_state *state, int layer,
                              int64_t pos0, int64_t n, dsv4_error *err)
{
    const dsv4_config *c = &s->model->config;
    block_buffers *b = &s->b;
    int H = c->num_attention_heads, d = c->head_dim, r = c->qk_rope_head_dim;
    /* One table for everything in the layer: YaRN only where there is a compressor. */
    const float *cos = w->ratio > 0 ? b->cos_compress : b->cos_plain;
    const float *sin = w->ratio > 0 ? b->sin_compress : b->sin_plain;

    session_linear(s, &w->wq_a, b->norm, n, b->q_lora, false);
    session_norm(s, &w->q_norm, b->q_lora, n, c->q_lora_rank, b->q_lora);
    session_tap(s, DSV4_TAP_Q_LORA, layer, pos0, n, b->q_lora, c->q_lora_rank);
    session_linear(s, &w->wq_b, b->q_lora, n, b->q, false);
    s->ops->head_norm(b->q, c->rms_norm_eps, n * H, d, session_deployed(s));
    s->ops->rope(b->q, n, H, d, r, cos, sin, false);
    session_hand_on(s, b->q, n * H * d);
    session_tap(s, DSV4_TAP_Q, layer, pos0, n, b->q, (int64_t)H * d);

    float *kv = window_room(s, state, n);
    session_linear(s, &w->wkv, b->norm, n, kv, false);
    session_norm(s, &w->kv_norm, kv, n, d, kv);
    s->ops->rope(kv, n, 1, d, r, cos, sin, false);
    session_hand_on(s, kv, n * d);
    for (int64_t i = 0; i < n; i++)
        round_kv_row(s, DSV4_TAP_KV, layer, pos0 + i, kv + i * d, d - r);
    session_tap(s, DSV4_TAP_KV, layer, pos0, n, kv, d);
    state->window_rows += n;

    if (w->ratio > 0)
        compress(s, &w->compressor, &state->compressor, DSV4_TAP_COMPRESSED_KV, layer, b->norm,
                 pos0, n);
    if (w->ratio == 4)
        choose_rows(s, w, state, layer, pos0, n);

    dsv4_attention_args args = {
        .n = n,
        .pos0 = pos0,
        .heads = H,
        .dim = d,
        .q = b->q,
        .window = state->window,
        .window_pos0 = state->window_pos0,
        .window_size = c->sliding_window,
        .rows = state->compressor.rows,
        .ratio = w->ratio,
        .topk = w->ratio == 4 ? b->topk : NULL,
        .k = c->index_topk,
        .sink = session_vector(s, &w->attn_sink),
    };
    if (!s->ops->attention(&args, b->heads))
        return dsv4_fail(err, DSV4_E_MACHINE, "out of memory in the attention of %lld tokens",
                         (long long)n);
    session_hand_on(s, b->heads, n * H * d);
    session_tap(s, DSV4_TAP_ATTN_HEADS, layer, pos0, n, b->heads, (int64_t)H * d);
    s->ops->rope(b->heads, n, H, d, r, cos, sin, true);
    session_hand_on(s, b->heads, n * H * d);

    /* Group g of consecutive heads has its own matrix: rows g*o_lora .. of wo_a. Its input is
     * bf16 even where the weight is FP8. */
    int64_t group = (int64_t)H / c->o_groups * d, out = (int64_t)c->o_groups * c->o_lora_rank;
    for (int g = 0; g < c->o_groups; g++) {
        dsv4_tensor wo = dsv4_tensor_rows(&w->wo_a, (int64_t)g * c->o_lora_rank, c->o_lora_rank);
        s->ops->linear(&wo, b->heads + g * group, (int64_t)H * d, n, b->o_lora + g * c->o_lora_rank,
                       out);
    }
    session_hand_on(s, b->o_lora, n * out);
    session_tap(s, DSV4_TAP_O_LORA, layer, pos0, n, b->o_lora, out);
    session_linear(s, &w->wo_b, b->o_lora, n, b->out, false);
    session_tap(s, DSV4_TAP_ATTN_OUT, layer, pos0, n, b->out, c->hidden_size);
    return DSV4_OK;
}
