/* mtp.c - the multi-token-prediction layer: from the streams at position i and the id of token
 * i + 1 to logits for token i + 2. Its positions run from its own first call. */
#include <string.h>

#include "session.h"

dsv4_status mtp_forward(dsv4_session *s, const int32_t *ids, int64_t n, dsv4_error *err)
{
    const dsv4_config *c = &s->model->config;
    const dsv4_mtp_layer *w = &s->model->mtp[0];
    block_buffers *b = &s->b;
    int64_t D = c->hidden_size, width = c->hc_mult * D;

    /* Row i pairs token i's streams with the id of token i + 1. The last token of the block has to
     * wait for its successor; the first row may be the one that waited. */
    int64_t waited = s->mtp_pending ? 1 : 0, rows = n - 1 + waited;
    const int32_t *next = ids + 1 - waited;
    if (waited) {
        memmove(b->mixed + width, b->streams, (size_t)((n - 1) * width) * sizeof(float));
        memcpy(b->mixed, s->pending_streams, (size_t)width * sizeof(float));
    } else {
        memcpy(b->mixed, b->streams, (size_t)((n - 1) * width) * sizeof(float));
    }
    memcpy(s->pending_streams, b->streams + (n - 1) * width, (size_t)width * sizeof(float));
    s->mtp_pending = true;
    if (rows == 0)
        return DSV4_OK;

    s->ops->embed(&s->model->embed, next, rows, b->x);
    session_hand_on(s, b->x, rows * D);
    session_norm(s, &w->enorm, b->x, rows, D, b->norm);
    session_linear(s, &w->e_proj, b->norm, rows, b->out, false);
    session_norm(s, &w->hnorm, b->mixed, rows * c->hc_mult, D, b->mixed);
    session_linear(s, &w->h_proj, b->mixed, rows * c->hc_mult, b->streams, false);
    for (int64_t i = 0; i < rows; i++)
        for (int j = 0; j < c->hc_mult; j++)
            s->ops->add(b->streams + (i * c->hc_mult + j) * D, b->out + i * D, D);
    session_hand_on(s, b->streams, rows * width);

    int64_t pos0 = s->mtp_position;
    for (int64_t i = 0; i < rows; i++)
        b->positions[i] = pos0 + i;
    s->ops->rope_angles(s->inv_plain, c->qk_rope_head_dim / 2, b->positions, rows, b->cos_plain,
                        b->sin_plain);
    s->ops->rope_angles(s->inv_compress, c->qk_rope_head_dim / 2, b->positions, rows,
                        b->cos_compress, b->sin_compress);
    dsv4_status status =
        layer_forward(s, &w->layer, &s->layers[c->num_hidden_layers], -1, next, pos0, rows, err);
    if (status != DSV4_OK)
        return status;
    s->mtp_position += rows;

    for (int64_t i = 0; i < rows; i++) {
        if (!session_wants(s, DSV4_TAP_MTP_LOGITS, -1, pos0 + i))
            continue;
        head_collapse(s, &w->hc_head, b->streams + i * width);
        session_norm(s, &w->norm, b->x, 1, D, b->norm);
        session_linear(s, &s->model->head, b->norm, 1, b->logits, true);
        session_tap(s, DSV4_TAP_MTP_LOGITS, -1, pos0 + i, 1, b->logits, c->vocab_size);
    }
    return DSV4_OK;
}
