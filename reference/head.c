/* head.c - the end of the model: streams collapsed by the head's gates, the final norm, logits.
 * Only the tokens that somebody wants are taken to the vocabulary. */
#include <string.h>

#include "session.h"

void head_collapse(dsv4_session *s, const dsv4_hc_weights *hc, const float *streams)
{
    const dsv4_config *c = &s->model->config;
    block_buffers *b = &s->b;
    s->ops->hc_mix(&hc->fn, streams, c->rms_norm_eps, 1, b->mix);
    dsv4_tensor_row(&hc->scale, 0, b->gate_scale);
    s->ops->hc_head_gates(b->mix, b->gate_scale, session_vector(s, &hc->base), 1, c->hc_mult,
                          c->hc_eps, b->pre);
    s->ops->hc_collapse(streams, b->pre, 1, c->hc_mult, c->hidden_size, b->x);
    session_hand_on(s, b->x, c->hidden_size);
}

void head_forward(dsv4_session *s, int64_t pos0, int64_t n, float *last)
{
    const dsv4_config *c = &s->model->config;
    block_buffers *b = &s->b;
    int64_t D = c->hidden_size, width = c->hc_mult * D;
    for (int64_t i = 0; i < n; i++) {
        bool wanted = last != NULL && i == n - 1;
        for (dsv4_tap_id id = DSV4_TAP_HEAD_COLLAPSED; id <= DSV4_TAP_LOGITS; id++)
            wanted = wanted || session_wants(s, id, -1, pos0 + i);
        if (!wanted)
            continue;
        head_collapse(s, &s->model->hc_head, b->streams + i * width);
        session_tap(s, DSV4_TAP_HEAD_COLLAPSED, -1, pos0 + i, 1, b->x, D);
        session_norm(s, &s->model->norm, b->x, 1, D, b->norm);
        session_tap(s, DSV4_TAP_FINAL_NORM, -1, pos0 + i, 1, b->norm, D);
        session_linear(s, &s->model->head, b->norm, 1, b->logits, true);
        session_tap(s, DSV4_TAP_LOGITS, -1, pos0 + i, 1, b->logits, c->vocab_size);
        if (last != NULL && i == n - 1)
            memcpy(last, b->logits, (size_t)c->vocab_size * sizeof *last);
    }
}
