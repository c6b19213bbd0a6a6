/* batch.c - one token of each of several conversations in one step: weights are read once for all
 * of them; attention and compression meet each conversation's own state. */
#include <stdlib.h>
#include <string.h>

#include "session.h"

struct dsv4_cuda_batch {
    dsv4_cuda_session *work; /* memory of the step */
    int count;
    dsv4_cuda_session *members[DSV4_CUDA_SEQUENCES];
};

_Static_assert((int)CU_STEP_TOKENS == (int)DSV4_CUDA_SEQUENCES, "a batch's tokens are arguments");

static dsv4_status check_members(dsv4_cuda_session *const *sessions, int count, dsv4_error *err)
{
    if (count < 1 || count > DSV4_CUDA_SEQUENCES)
        return dsv4_fail(err, DSV4_E_INPUT, "batch: expected 1 to %d sessions, found %d",
                         (int)DSV4_CUDA_SEQUENCES, count);
    const dsv4_config *c = &sessions[0]->d->model->config;
    if (!cu_rows_take(c->q_lora_rank, c->head_dim,
                      c->index_head_dim)) /* the one way to the states */
        return dsv4_fail(
            err, DSV4_E_INPUT,
            "batch: expected a query rank up to 2048 and rows up to 512 columns, found "
            "%lld, %lld and %lld",
            (long long)c->q_lora_rank, (long long)c->head_dim, (long long)c->index_head_dim);
    for (int i = 0; i < count; i++) {
        const dsv4_cuda_session *s = sessions[i];
        if (s->d != sessions[0]->d || s->options.numerics != sessions[0]->options.numerics)
            return dsv4_fail(
                err, DSV4_E_INPUT,
                "batch: expected sessions of one engine and numerics, found another in "
                "session %d",
                i);
        if (s->options.mtp)
            return dsv4_fail(err, DSV4_E_INPUT,
                             "batch: expected sessions without the MTP layer, found one in session "
                             "%d",
                             i);
        for (int k = 0; k < i; k++)
            if (sessions[k] == s)
                return dsv4_fail(err, DSV4_E_INPUT,
                                 "batch: expected different sessions, found %d and %d the same", k,
                                 i);
    }
    return DSV4_OK;
}

/* What the kernels need to find each member's state, layer by layer. */
static dsv4_status describe(dsv4_cuda_batch *b, dsv4_error *err)
{
    dsv4_cuda_session *w = b->work;
    size_t n = (size_t)w->n_layers * (size_t)b->count;
    cu_row_state *all = dsv4_alloc(n, sizeof *all, "a batch", err);
    if (all == NULL)
        return DSV4_E_MACHINE;
    for (int l = 0; l < w->n_layers; l++)
        for (int i = 0; i < b->count; i++)
            all[l * b->count + i] = cu_row_state_of(b->members[i], &w->d->layers[l], l,
                                                    cu_ratio_of(w, l), w->positions + i);
    (void)(cu_to_device(w->stream, w->row_states, all, n * sizeof *all, "a batch") &&
           cu_wait(w->stream, "a batch"));
    free(all);
    return cu_take_error(err);
}

dsv4_status dsv4_cuda_batch_new(dsv4_cuda_session *const *sessions, int count,
                                dsv4_cuda_batch **out, dsv4_error *err)
{
    *out = NULL;
    dsv4_status status = check_members(sessions, count, err);
    if (status != DSV4_OK)
        return status;
    dsv4_cuda_batch *b = dsv4_alloc(1, sizeof *b, "a batch", err);
    if (b == NULL)
        return DSV4_E_MACHINE;
    dsv4_session_options o = sessions[0]->options;
    b->count = count;
    for (int i = 0; i < count; i++) {
        b->members[i] = sessions[i];
        if (sessions[i]->options.max_positions > o.max_positions)
            o.max_positions = sessions[i]->options.max_positions;
    }
    status = cu_session_make(sessions[0]->d, &o, b->members, count, &b->work, err);
    if (status == DSV4_OK)
        status = describe(b, err);
    if (status == DSV4_OK)
        *out = b;
    else
        dsv4_cuda_batch_free(b);
    return status;
}

void dsv4_cuda_batch_free(dsv4_cuda_batch *b)
{
    if (b == NULL)
        return;
    dsv4_cuda_session_free(b->work);
    free(b);
}

static dsv4_status check_step(const dsv4_cuda_batch *b, const int32_t *tokens, dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    for (int i = 0; i < b->count && status == DSV4_OK; i++) {
        if (b->members[i]->taps != NULL)
            status = dsv4_fail(err, DSV4_E_INPUT, "batch: session %d has a listener", i);
        else
            status = cu_check_tokens(b->members[i], tokens + i, 1, err);
    }
    return status;
}

/* The step is the same work every time: recorded once, replayed. */
static bool replay(dsv4_cuda_session *w)
{
    if (w->no_graph) {
        cu_forward(w, w->n_members, true);
        return true;
    }
    if (w->graph == NULL) {
        if (!cu_graph_begin(w))
            return false;
        cu_forward(w, w->n_members, true);
        if (!cu_graph_end(w))
            return false;
    }
    return cu_graph_launch(w);
}

dsv4_status dsv4_cuda_batch_append(dsv4_cuda_batch *b, const int32_t *tokens, float *logits,
                                   dsv4_error *err)
{
    dsv4_cuda_session *w = b->work;
    size_t vocab = (size_t)w->d->model->config.vocab_size, n = (size_t)b->count;
    dsv4_status status = check_step(b, tokens, err);
    if (status != DSV4_OK)
        return status;
    cu_begin(w, tokens, b->count);
    bool ok = replay(w);
    size_t bytes = n * vocab * sizeof *logits;
    if (ok && logits != NULL)
        ok = cu_from_device(w->stream, w->logits_host, w->logits, bytes, "logits");
    (void)(cu_wait(w->stream, "a batch") && ok);
    status = cu_take_error(err);
    if (status == DSV4_OK && logits != NULL)
        memcpy(logits, w->logits_host, bytes);
    for (size_t i = 0; i < n && status == DSV4_OK; i++)
        b->members[i]->position++;
    return status;
}
