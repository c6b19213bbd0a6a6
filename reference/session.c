/* session.c - the life of a session: buffers planned once, tokens appended in blocks, state saved
 * and restored. */
#include <stdlib.h>
#include <string.h>

#include "session.h"

enum { DEFAULT_CHUNK = 64 };

/* ---- buffers ----------------------------------------------------------------------------- */

/* One pass plans, one pass hands out: an arena is filled by walking the same list of buffers. */
typedef struct {
    uint8_t *base; /* NULL while planning */
    size_t used;
    bool overflow;
} arena;

static void *take(arena *a, int64_t count, size_t size)
{
    size_t at = a->used, n = (size_t)count;
    if (count < 0 || (n != 0 && size > (SIZE_MAX / 2) / n)) {
        a->overflow = true;
        return NULL;
    }
    size_t bytes = (n * size + 63) & ~(size_t)63;
    if (a->used > SIZE_MAX / 2 - bytes) {
        a->overflow = true;
        return NULL;
    }
    a->used += bytes;
    return a->base != NULL ? a->base + at : NULL;
}

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static const dsv4_layer *layer_of(const dsv4_session *s, int i)
{
    const dsv4_model *m = s->model;
    return i < m->config.num_hidden_layers ? &m->layers[i] : &m->mtp[0].layer;
}

static void plan_compressor(arena *a, compressor_state *c, int ratio, int dim, int64_t positions)
{
    c->ratio = ratio;
    c->lanes = ratio == 4 ? 2 : 1;
    c->dim = dim;
    c->cap_rows = positions / ratio;
    int64_t window = (int64_t)ratio * c->lanes * dim;
    c->rows = take(a, c->cap_rows * dim, sizeof(float));
    c->kv = take(a, window, sizeof(float));
    c->z = take(a, window, sizeof(float));
    if (c->lanes == 2) {
        c->prev_kv = take(a, window, sizeof(float));
        c->prev_z = take(a, window, sizeof(float));
    }
}

static void plan(dsv4_session *s, arena *a)
{
    const dsv4_config *c = &s->model->config;
    block_buffers *b = &s->b;
    int64_t n = s->options.chunk, D = c->hidden_size, hc = c->hc_mult, positions;
    int64_t H = c->num_attention_heads, d = c->head_dim, half = c->qk_rope_head_dim / 2;
    int64_t o = (int64_t)c->o_groups * c->o_lora_rank, F = c->moe_intermediate_size;
    int64_t index = (int64_t)c->index_n_heads * c->index_head_dim;
    int64_t lanes = 2 * max64(d, c->index_head_dim), ratio = 4;
    int64_t inner = F * max64(c->n_shared_experts, 1);
    positions = s->options.max_positions;
    for (int i = 0; i < s->n_layers; i++)
        ratio = max64(ratio, layer_of(s, i)->ratio);

    b->streams = take(a, n * hc * D, sizeof(float));
    b->mixed = take(a, n * hc * D, sizeof(float));
    b->mix = take(a, n * (2 + hc) * hc, sizeof(float));
    b->pre = take(a, n * hc, sizeof(float));
    b->post = take(a, n * hc, sizeof(float));
    b->comb = take(a, n * hc * hc, sizeof(float));
    b->x = take(a, n * D, sizeof(float));
    b->norm = take(a, n * D, sizeof(float));
    b->out = take(a, n * D, sizeof(float));
    b->shared = take(a, n * D, sizeof(float));
    b->linear_in =
        take(a, n * max64(max64(hc * D, o), max64(inner, c->q_lora_rank)), sizeof(float));
    b->q_lora = take(a, n * c->q_lora_rank, sizeof(float));
    b->q = take(a, n * H * d, sizeof(float));
    b->heads = take(a, max64(n * H * d, index), sizeof(float));
    b->o_lora = take(a, n * o, sizeof(float));
    b->kv = take(a, n * lanes, sizeof(float));
    b->z = take(a, n * lanes, sizeof(float));
    b->ape = take(a, ratio * lanes, sizeof(float));
    b->row = take(a, d, sizeof(float));
    b->index_q = take(a, n * index, sizeof(float));
    b->index_w = take(a, n * c->index_n_heads, sizeof(float));
    b->scores = take(a, positions / 4 + 1, sizeof(float));
    b->topk = take(a, n * c->index_topk, sizeof(int32_t));
    b->router_logits = take(a, n * c->n_routed_experts, sizeof(float));
    b->weights = take(a, n * c->num_experts_per_tok, sizeof(float));
    b->experts = take(a, n * c->num_experts_per_tok, sizeof(int32_t));
    b->gate = take(a, n * inner, sizeof(float));
    b->up = take(a, n * inner, sizeof(float));
    b->vector =
        take(a,
             max64(max64(D, max64(d, c->q_lora_rank)),
                   max64(max64(H, c->n_routed_experts), max64((2 + hc) * hc, c->index_head_dim))),
             sizeof(float));
    b->gate_scale = take(a, 3, sizeof(float));
    b->cos_plain = take(a, n * half, sizeof(float));
    b->sin_plain = take(a, n * half, sizeof(float));
    b->cos_compress = take(a, n * half, sizeof(float));
    b->sin_compress = take(a, n * half, sizeof(float));
    b->cos_row = take(a, half, sizeof(float));
    b->sin_row = take(a, half, sizeof(float));
    b->positions = take(a, n, sizeof(int64_t));
    b->logits = take(a, c->vocab_size, sizeof(float));

    s->pending_streams = take(a, hc * D, sizeof(float));
    s->inv_plain = take(a, half, sizeof(float));
    s->inv_compress = take(a, half, sizeof(float));
    for (int i = 0; i < s->n_layers; i++) {
        layer_state *l = &s->layers[i];
        int r = layer_of(s, i)->ratio;
        l->window = take(a, (c->sliding_window - 1 + n) * d, sizeof(float));
        if (r > 0)
            plan_compressor(a, &l->compressor, r, c->head_dim, positions);
        if (r == 4)
            plan_compressor(a, &l->indexer, r, c->index_head_dim, positions);
    }
}

dsv4_status dsv4_session_new(const dsv4_model *model, const dsv4_ops *ops,
                             const dsv4_session_options *options, dsv4_session **out,
                             dsv4_error *err)
{
    const dsv4_config *c = &model->config;
    *out = NULL;
    if (options->max_positions < 1)
        return dsv4_fail(err, DSV4_E_INPUT, "session: max_positions %lld, expected at least 1",
                         (long long)options->max_positions);
    if (options->max_positions > c->max_position_embeddings)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "session: %lld positions asked for, the model allows "
                         "max_position_embeddings = %lld",
                         (long long)options->max_positions, (long long)c->max_position_embeddings);
    if (options->mtp && model->mtp == NULL)
        return dsv4_fail(err, DSV4_E_INPUT, "session: the model holds no MTP layer");

    dsv4_session *s = dsv4_alloc(1, sizeof *s, "a session", err);
    if (s == NULL)
        return DSV4_E_MACHINE;
    s->model = model;
    s->ops = ops;
    s->options = *options;
    if (s->options.chunk <= 0)
        s->options.chunk = DEFAULT_CHUNK;
    if (s->options.chunk > options->max_positions)
        s->options.chunk = (int)options->max_positions;
    s->n_layers = c->num_hidden_layers + (options->mtp ? 1 : 0);
    s->layers = dsv4_alloc((size_t)s->n_layers, sizeof *s->layers, "layer states", err);
    if (s->layers == NULL)
        goto failed;

    arena a = {0};
    plan(s, &a);
    if (a.overflow) {
        dsv4_fail(err, DSV4_E_MACHINE, "session: %lld positions need more memory than addressable",
                  (long long)options->max_positions);
        goto failed;
    }
    a.base = dsv4_alloc(a.used, 1, "session buffers", err);
    if (a.base == NULL)
        goto failed;
    s->arena = a.base;
    a.used = 0;
    plan(s, &a);
    dsv4_rope_inv_freq(c, false, s->inv_plain);
    dsv4_rope_inv_freq(c, true, s->inv_compress);
    *out = s;
    return DSV4_OK;
failed:
    dsv4_session_free(s);
    return DSV4_E_MACHINE;
}

void dsv4_session_free(dsv4_session *s)
{
    if (s == NULL)
        return;
    free(s->arena);
    free(s->layers);
    free(s);
}

void dsv4_session_set_taps(dsv4_session *s, const dsv4_taps *taps)
{
    s->taps = taps;
}

int64_t dsv4_session_position(const dsv4_session *s)
{
    return s->position;
}

static void reset_compressor(compressor_state *c)
{
    c->n_rows = 0;
    c->fill = 0;
    c->has_prev = false;
}

void dsv4_session_reset(dsv4_session *s)
{
    s->position = s->mtp_position = 0;
    s->mtp_pending = false;
    for (int i = 0; i < s->n_layers; i++) {
        layer_state *l = &s->layers[i];
        l->window_pos0 = l->window_rows = 0;
        reset_compressor(&l->compressor);
        reset_compressor(&l->indexer);
    }
}

/* ---- tokens ------------------------------------------------------------------------------ */

static dsv4_status check_tokens(const dsv4_session *s, const int32_t *tokens, int64_t n,
                                dsv4_error *err)
{
    if (n < 1)
        return dsv4_fail(err, DSV4_E_INPUT, "session: %lld tokens given, expected at least 1",
                         (long long)n);
    if (n > s->options.max_positions - s->position)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "session: %lld tokens at position %lld do not fit %lld positions",
                         (long long)n, (long long)s->position, (long long)s->options.max_positions);
    for (int64_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= s->model->config.vocab_size)
            return dsv4_fail(
                err, DSV4_E_INPUT, "token %lld: id %d is outside the vocabulary [0, %lld)",
                (long long)(s->position + i), tokens[i], (long long)s->model->config.vocab_size);
    return DSV4_OK;
}

static dsv4_status append_block(dsv4_session *s, const int32_t *ids, int64_t n, float *logits,
                                dsv4_error *err)
{
    const dsv4_config *c = &s->model->config;
    block_buffers *b = &s->b;
    int64_t D = c->hidden_size, pos0 = s->position;
    int half = c->qk_rope_head_dim / 2;

    for (int64_t i = 0; i < n; i++)
        b->positions[i] = pos0 + i;
    s->ops->rope_angles(s->inv_plain, half, b->positions, n, b->cos_plain, b->sin_plain);
    s->ops->rope_angles(s->inv_compress, half, b->positions, n, b->cos_compress, b->sin_compress);

    s->ops->embed(&s->model->embed, ids, n, b->x);
    session_hand_on(s, b->x, n * D);
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < c->hc_mult; j++)
            memcpy(b->streams + (i * c->hc_mult + j) * D, b->x + i * D, (size_t)D * sizeof(float));

    for (int l = 0; l < c->num_hidden_layers; l++) {
        dsv4_status status =
            layer_forward(s, &s->model->layers[l], &s->layers[l], l, ids, pos0, n, err);
        if (status != DSV4_OK)
            return status;
    }
    head_forward(s, pos0, n, logits);
    if (s->options.mtp) {
        dsv4_status status = mtp_forward(s, ids, n, err);
        if (status != DSV4_OK)
            return status;
    }
    s->position += n;
    return DSV4_OK;
}

dsv4_status dsv4_session_append(dsv4_session *s, const int32_t *tokens, int64_t n, float *logits,
                                dsv4_error *err)
{
    dsv4_status status = check_tokens(s, tokens, n, err);
    for (int64_t at = 0; status == DSV4_OK && at < n; at += s->options.chunk) {
        int64_t block = n - at < s->options.chunk ? n - at : s->options.chunk;
        status = append_block(s, tokens + at, block, at + block == n ? logits : NULL, err);
    }
    return status;
}

/* ---- state ------------------------------------------------------------------------------- */

/* One walk over everything that must survive a rewind serves size, save and restore. */
typedef struct {
    enum { MEASURE, SAVE, RESTORE } mode;
    uint8_t *blob;
    size_t at, size;
    bool bad;
} walker;

static void visit(walker *w, void *data, size_t bytes)
{
    if (w->mode != MEASURE) {
        if (w->bad || bytes > w->size - w->at) {
            w->bad = true;
            return;
        }
        if (w->mode == SAVE)
            memcpy(w->blob + w->at, data, bytes);
        else
            memcpy(data, w->blob + w->at, bytes);
    }
    w->at += bytes;
}

static void visit_count(walker *w, int64_t *value, int64_t low, int64_t high)
{
    int64_t v = *value;
    visit(w, &v, sizeof v);
    if (w->mode != RESTORE)
        return;
    if (v < low || v > high)
        w->bad = true;
    else if (!w->bad)
        *value = v;
}

static void visit_compressor(walker *w, compressor_state *c)
{
    int64_t fill = c->fill, has_prev = c->has_prev;
    visit_count(w, &c->n_rows, 0, c->cap_rows);
    visit_count(w, &fill, 0, c->ratio - 1);
    visit_count(w, &has_prev, 0, c->lanes - 1);
    if (w->bad)
        return;
    c->fill = (int)fill;
    c->has_prev = has_prev != 0;
    size_t slots = (size_t)c->lanes * (size_t)c->dim * sizeof(float);
    visit(w, c->rows, (size_t)(c->n_rows * c->dim) * sizeof(float));
    visit(w, c->kv, (size_t)c->fill * slots);
    visit(w, c->z, (size_t)c->fill * slots);
    if (c->has_prev) {
        visit(w, c->prev_kv, (size_t)c->ratio * slots);
        visit(w, c->prev_z, (size_t)c->ratio * slots);
    }
}

static void visit_session(walker *w, dsv4_session *s)
{
    const dsv4_config *c = &s->model->config;
    /* What the state belongs to; a restore into anything else is refused. */
    int64_t shape[] = {0x3276737364,
                       c->hidden_size,
                       c->head_dim,
                       c->num_hidden_layers,
                       s->n_layers,
                       s->options.numerics,
                       s->options.max_positions,
                       s->options.chunk};
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++)
        visit_count(w, &shape[i], shape[i], shape[i]);
    int64_t pending = s->mtp_pending;
    visit_count(w, &s->position, 0, s->options.max_positions);
    visit_count(w, &s->mtp_position, 0, s->options.max_positions);
    visit_count(w, &pending, 0, 1);
    if (w->bad)
        return;
    s->mtp_pending = pending != 0;
    visit(w, s->pending_streams, (size_t)(c->hc_mult * c->hidden_size) * sizeof(float));
    for (int i = 0; i < s->n_layers && !w->bad; i++) {
        layer_state *l = &s->layers[i];
        visit_count(w, &l->window_pos0, 0, s->options.max_positions);
        visit_count(w, &l->window_rows, 0, c->sliding_window - 1 + s->options.chunk);
        if (w->bad)
            return;
        visit(w, l->window, (size_t)(l->window_rows * c->head_dim) * sizeof(float));
        if (l->compressor.ratio > 0)
            visit_compressor(w, &l->compressor);
        if (l->indexer.ratio > 0 && !w->bad)
            visit_compressor(w, &l->indexer);
    }
}

dsv4_status dsv4_session_save(const dsv4_session *s, void **blob, size_t *bytes, dsv4_error *err)
{
    /* MEASURE and SAVE only read through the pointer. */
    dsv4_session *state = (dsv4_session *)(uintptr_t)s;
    walker w = {.mode = MEASURE};
    visit_session(&w, state);
    *bytes = w.at;
    *blob = dsv4_alloc(w.at, 1, "a saved session", err);
    if (*blob == NULL)
        return DSV4_E_MACHINE;
    w = (walker){.mode = SAVE, .blob = *blob, .size = *bytes};
    visit_session(&w, state);
    return DSV4_OK;
}

static bool compressor_is_at(const compressor_state *c, int64_t tokens)
{
    return c->ratio == 0 || (c->n_rows == tokens / c->ratio && c->fill == tokens % c->ratio &&
                             c->has_prev == (c->lanes == 2 && c->n_rows > 0));
}

/* Each count of a damaged blob may lie within its range and still contradict the others: a window
 * that does not reach back far enough would be read outside its rows. */
static bool counts_agree(const dsv4_session *s)
{
    const dsv4_config *c = &s->model->config;
    int64_t behind = s->options.mtp && s->position > 0 ? 1 : 0; /* the last token waits */
    if (s->mtp_pending != (behind > 0) ||
        s->mtp_position != (s->options.mtp ? s->position - behind : 0))
        return false;
    for (int i = 0; i < s->n_layers; i++) {
        const layer_state *l = &s->layers[i];
        int64_t tokens = i < c->num_hidden_layers ? s->position : s->mtp_position;
        int64_t needed = tokens < c->sliding_window - 1 ? tokens : c->sliding_window - 1;
        if (l->window_rows < needed || l->window_pos0 + l->window_rows != tokens ||
            !compressor_is_at(&l->compressor, tokens) || !compressor_is_at(&l->indexer, tokens))
            return false;
    }
    return true;
}

dsv4_status dsv4_session_restore(dsv4_session *s, const void *blob, size_t bytes, dsv4_error *err)
{
    walker w = {.mode = RESTORE, .blob = (uint8_t *)(uintptr_t)blob, .size = bytes};
    visit_session(&w, s);
    if (!w.bad && w.at == bytes && counts_agree(s))
        return DSV4_OK;
    dsv4_session_reset(s); /* never half a state */
    return dsv4_fail(err, DSV4_E_INPUT,
                     "saved session: %zu bytes do not fit this model and these options", bytes);
}
