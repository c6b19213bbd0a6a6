/* layer.c - one decoder layer: mHC in, a block, mHC out, twice. No arithmetic of its own: it calls
 * operators, rounds where the numerics say so, and reports taps. */
#include <string.h>

#include "session.h"

void session_hand_on(dsv4_session *s, float *x, int64_t n)
{
    if (session_deployed(s))
        s->ops->round_bf16(x, n);
}

void session_linear(dsv4_session *s, const dsv4_tensor *w, const float *x, int64_t n, float *y,
                    bool keep_float)
{
    if (session_deployed(s) && !keep_float && (w->type == DSV4_FP8 || w->type == DSV4_FP4)) {
        memcpy(s->b.linear_in, x, (size_t)(n * w->cols) * sizeof *x);
        s->ops->round_fp8(s->b.linear_in, n, w->cols, w->cols, w->cols < 128 ? (int)w->cols : 128);
        x = s->b.linear_in;
    }
    s->ops->linear(w, x, w->cols, n, y, w->rows);
    if (!keep_float)
        session_hand_on(s, y, n * w->rows);
}

const float *session_vector(dsv4_session *s, const dsv4_tensor *t)
{
    for (int64_t row = 0; row < t->rows; row++)
        dsv4_tensor_row(t, row, s->b.vector + row * t->cols);
    return s->b.vector;
}

void session_norm(dsv4_session *s, const dsv4_tensor *w, const float *x, int64_t n, int64_t dim,
                  float *y)
{
    s->ops->rmsnorm(x, session_vector(s, w), s->model->config.rms_norm_eps, n, dim, y);
    session_hand_on(s, y, n * dim);
}

bool session_wants(const dsv4_session *s, dsv4_tap_id id, int layer, int64_t position)
{
    const dsv4_taps *t = s->taps;
    return t != NULL && t->tap != NULL && (t->want == NULL || t->want(t->ctx, id, layer, position));
}

void session_tap(dsv4_session *s, dsv4_tap_id id, int layer, int64_t pos0, int64_t n, void *data,
                 int64_t width)
{
    if (layer < 0 && id < DSV4_TAP_HEAD_COLLAPSED)
        return; /* inside the MTP layer */
    for (int64_t i = 0; i < n; i++)
        if (session_wants(s, id, layer, pos0 + i))
            s->taps->tap(s->taps->ctx, id, layer, pos0 + i,
                         (uint8_t *)data + (size_t)(i * width) * 4, (size_t)width);
}

/* Gates of the streams and their collapse into x: the way into a block. */
static void hc_enter(dsv4_session *s, const dsv4_hc_weights *hc, int layer, bool ffn, int64_t pos0,
                     int64_t n)
{
    const dsv4_config *c = &s->model->config;
    int k = c->hc_mult;
    block_buffers *b = &s->b;
    s->ops->hc_mix(&hc->fn, b->streams, c->rms_norm_eps, n, b->mix);
    dsv4_tensor_row(&hc->scale, 0, b->gate_scale);
    s->ops->hc_gates(b->mix, b->gate_scale, session_vector(s, &hc->base), n, k,
                     c->hc_sinkhorn_iters, c->hc_eps, b->pre, b->post, b->comb);
    session_tap(s, ffn ? DSV4_TAP_HC_FFN_POST : DSV4_TAP_HC_ATTN_POST, layer, pos0, n, b->post, k);
    session_tap(s, ffn ? DSV4_TAP_HC_FFN_COMB : DSV4_TAP_HC_ATTN_COMB, layer, pos0, n, b->comb,
                (int64_t)k * k);
    s->ops->hc_collapse(b->streams, b->pre, n, k, c->hidden_size, b->x);
    session_hand_on(s, b->x, n * c->hidden_size);
    session_tap(s, ffn ? DSV4_TAP_HC_FFN_COLLAPSED : DSV4_TAP_HC_ATTN_COLLAPSED, layer, pos0, n,
                b->x, c->hidden_size);
}

/* The block's result back into the streams: the way out. */
static void hc_leave(dsv4_session *s, int64_t n)
{
    const dsv4_config *c = &s->model->config;
    block_buffers *b = &s->b;
    s->ops->hc_post(b->out, b->streams, b->post, b->comb, n, c->hc_mult, c->hidden_size, b->mixed);
    session_hand_on(s, b->mixed, n * c->hc_mult * c->hidden_size);
    float *swap = b->streams;
    b->streams = b->mixed;
    b->mixed = swap;
}

/* x = b.norm -> b.out: routed experts plus the shared one. */
static dsv4_status moe_forward(dsv4_session *s, const dsv4_layer *w, int layer, const int32_t *ids,
                               int64_t pos0, int64_t n, dsv4_error *err)
{
    const dsv4_config *c = &s->model->config;
    block_buffers *b = &s->b;
    int64_t D = c->hidden_size;
    int E = c->n_routed_experts, K = c->num_experts_per_tok;

    session_linear(s, &w->gate, b->norm, n, b->router_logits, true); /* float32 in every mode */
    session_tap(s, DSV4_TAP_ROUTER_LOGITS, layer, pos0, n, b->router_logits, E);
    const float *bias = w->gate_bias.name != NULL ? session_vector(s, &w->gate_bias) : NULL;
    s->ops->router(b->router_logits, bias, w->hash ? &w->tid2eid : NULL, ids, n, E, K,
                   c->routed_scaling_factor, b->experts, b->weights);
    session_tap(s, DSV4_TAP_ROUTER_EXPERTS, layer, pos0, n, b->experts, K);
    session_tap(s, DSV4_TAP_ROUTER_WEIGHTS, layer, pos0, n, b->weights, K);

    dsv4_experts_args args = {
        .n = n,
        .k = K,
        .layer = w,
        .x = b->norm,
        .experts = b->experts,
        .weights = b->weights,
        .numerics = s->options.numerics,
    };
    if (!s->ops->experts(&args, b->out))
        return dsv4_fail(err, DSV4_E_MACHINE, "out of memory in the experts of %lld tokens",
                         (long long)n);
    session_tap(s, DSV4_TAP_ROUTED_OUT, layer, pos0, n, b->out, D);

    int64_t inner = w->shared_w1.rows;
    session_linear(s, &w->shared_w1, b->norm, n, b->gate, false);
    session_linear(s, &w->shared_w3, b->norm, n, b->up, false);
    s->ops->swiglu(b->gate, b->up, w->swiglu_limit, n * inner, b->gate);
    session_hand_on(s, b->gate, n * inner);
    session_linear(s, &w->shared_w2, b->gate, n, b->shared, false);
    session_tap(s, DSV4_TAP_SHARED_OUT, layer, pos0, n, b->shared, D);

    s->ops->add(b->out, b->shared, n * D);
    session_hand_on(s, b->out, n * D);
    session_tap(s, DSV4_TAP_FFN_OUT, layer, pos0, n, b->out, D);
    return DSV4_OK;
}

dsv4_status layer_forward(dsv4_session *s, const dsv4_layer *w, layer_state *state, int layer,
                          const int32_t *ids, int64_t pos0, int64_t n, dsv4_error *err)
{
    const dsv4_config *c = &s->model->config;
    int64_t D = c->hidden_size;
    block_buffers *b = &s->b;

    hc_enter(s, &w->hc_attn, layer, false, pos0, n);
    session_norm(s, &w->attn_norm, b->x, n, D, b->norm);
    session_tap(s, DSV4_TAP_ATTN_NORM, layer, pos0, n, b->norm, D);
    dsv4_status status = attention_forward(s, w, state, layer, pos0, n, err);
    if (status != DSV4_OK)
        return status;
    hc_leave(s, n);
    session_tap(s, DSV4_TAP_STREAMS_MID, layer, pos0, n, b->streams, c->hc_mult * D);

    hc_enter(s, &w->hc_ffn, layer, true, pos0, n);
    session_norm(s, &w->ffn_norm, b->x, n, D, b->norm);
    session_tap(s, DSV4_TAP_FFN_NORM, layer, pos0, n, b->norm, D);
    status = moe_forward(s, w, layer, ids, pos0, n, err);
    if (status != DSV4_OK)
        return status;
    hc_leave(s, n);
    session_tap(s, DSV4_TAP_STREAMS, layer, pos0, n, b->streams, c->hc_mult * D);
    return DSV4_OK;
}
