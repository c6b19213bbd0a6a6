/* session.c - the life of a conversation on the device: memory planned once, tokens appended in
 * blocks, decode steps replayed from a graph, state saved and restored. */
#include "session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A token is a block of a grid's second or third side (a pair's share of an expert likewise), which
 * end at 65535: longer blocks are cut, which changes no result. */
enum { DEFAULT_CHUNK = 64, MOST_CHUNK = 4096, ALIGN = 256 };

/* ---- memory --------------------------------------------------------------------------------- */

/* One walk measures, a second one hands out. */
typedef struct {
    uint8_t *base;
    size_t used;
    bool overflow;
} walk;

static void *take(walk *w, int64_t count, size_t size)
{
    size_t n = (size_t)count;
    if (count < 0 || n > (SIZE_MAX / 4) / size || w->used > SIZE_MAX / 2) {
        w->overflow = true;
        return NULL;
    }
    uint8_t *p = w->base != NULL ? w->base + w->used : NULL;
    w->used += (n * size + ALIGN - 1) / ALIGN * ALIGN;
    return p;
}

static float *take_floats(walk *w, int64_t count)
{
    return take(w, count, sizeof(float));
}

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

int cu_ratio_of(const dsv4_cuda_session *s, int i)
{
    const dsv4_model *m = s->d->model;
    return i < m->config.num_hidden_layers ? m->layers[i].ratio : m->mtp[0].layer.ratio;
}

static void plan_compressor(const dsv4_cuda_session *s, walk *w, cu_compressor_state *c, int ratio,
                            int dim)
{
    c->ratio = ratio;
    c->lanes = ratio == 4 ? 2 : 1;
    c->dim = dim;
    c->cap_rows = s->options.max_positions / ratio;
    int64_t ring = (2 * (int64_t)ratio + s->options.chunk) * c->lanes * dim;
    c->rows = take_floats(w, c->cap_rows * dim);
    c->kv = take_floats(w, ring);
    c->z = take_floats(w, ring);
}

/* What outlives a block comes first: save and restore copy it in one piece. */
static void plan_state(dsv4_cuda_session *s, walk *w)
{
    const dsv4_config *c = &s->d->model->config;
    s->state_at = w->used;
    s->pending = take_floats(w, c->hc_mult * c->hidden_size);
    for (int i = 0; i < s->n_layers; i++) {
        cu_layer_state *l = &s->layers[i];
        int ratio = cu_ratio_of(s, i);
        l->window = take_floats(w, s->window_ring * c->head_dim);
        if (ratio > 0)
            plan_compressor(s, w, &l->compressor, ratio, c->head_dim);
        if (ratio == 4)
            plan_compressor(s, w, &l->indexer, ratio, c->index_head_dim);
    }
    s->state_bytes = w->used - s->state_at;
}

static void plan(dsv4_cuda_session *s, walk *w)
{
    const dsv4_config *c = &s->d->model->config;
    int64_t n = s->options.chunk, D = c->hidden_size, hc = c->hc_mult, mixes = (2 + hc) * hc;
    int64_t H = c->num_attention_heads, d = c->head_dim, half = c->qk_rope_head_dim / 2;
    int64_t o = (int64_t)c->o_groups * c->o_lora_rank, F = c->moe_intermediate_size;
    int64_t index = (int64_t)c->index_n_heads * c->index_head_dim;
    int64_t lanes = 2 * max64(d, c->index_head_dim), positions = s->options.max_positions;
    int64_t pairs = n * c->num_experts_per_tok, inner = F * max64(c->n_shared_experts, 1);
    if (s->n_members == 0)
        plan_state(s, w);
    s->positions = take(w, s->n_members, sizeof *s->positions);
    s->ids = take(w, n + 1, sizeof *s->ids);
    s->row_states = take(w, (int64_t)s->n_layers * s->n_members, sizeof *s->row_states);
    s->step = take(w, 1, sizeof *s->step);
    s->inv_plain = take_floats(w, half);
    s->inv_compress = take_floats(w, half);
    s->streams = take_floats(w, n * hc * D);
    s->mixed = take_floats(w, n * hc * D);
    s->mix = take_floats(w, n * mixes);
    s->mix_scratch = take_floats(w, cu_hc_mix_scratch(mixes, hc * D, n));
    s->tickets = take(w, n, sizeof *s->tickets);
    s->pre = take_floats(w, n * hc);
    s->post = take_floats(w, n * hc);
    s->comb = take_floats(w, n * hc * hc);
    s->x = take_floats(w, n * D);
    s->norm = take_floats(w, n * D);
    s->norm8 = take_floats(w, n * D);
    s->out = take_floats(w, n * D);
    s->shared = take_floats(w, n * D);
    s->linear_in = take_floats(w, n * max64(max64(hc * D, o), max64(inner, c->q_lora_rank)));
    s->q_lora = take_floats(w, n * c->q_lora_rank);
    s->q = take_floats(w, n * H * d);
    s->heads = take_floats(w, n * max64(H * d, index));
    s->o_lora = take_floats(w, n * o);
    s->kv_row = take_floats(w, n * d);
    s->kv = take_floats(w, n * lanes);
    s->z = take_floats(w, n * lanes);
    s->index_kv = take_floats(w, n * lanes);
    s->index_z = take_floats(w, n * lanes);
    s->before = take_floats(w, (n + 2) * max64(d, c->index_head_dim));
    s->index_q = take_floats(w, n * index);
    s->index_w = take_floats(w, n * c->index_n_heads);
    s->scores = take_floats(w, n * (positions / 4 + 1));
    s->topk = take(w, n * c->index_topk, sizeof *s->topk);
    s->router_logits = take_floats(w, n * c->n_routed_experts);
    s->weights = take_floats(w, pairs);
    s->experts = take(w, pairs, sizeof *s->experts);
    s->list = take(w, pairs, sizeof *s->list);
    s->groups = take(w, pairs, sizeof *s->groups);
    s->n_groups = take(w, 1, sizeof *s->n_groups);
    s->share = take_floats(w, pairs);
    s->gate = take_floats(w, pairs * F);
    s->up = take_floats(w, pairs * F);
    s->y = take_floats(w, pairs * D);
    s->shared_gate = take_floats(w, n * inner);
    s->shared_up = take_floats(w, n * inner);
    int64_t each = 0, together = s->n_members > 0 ? 1 : n; /* tokens of an attention's launch */
    for (int i = 0; i < s->n_layers; i++) {
        int ratio = cu_ratio_of(s, i);
        int64_t rows = c->sliding_window + (ratio == 4  ? c->index_topk
                                            : ratio > 0 ? positions / ratio
                                                        : 0);
        each =
            max64(each, cu_attention_scratch(together, (int)H, (int)d, cu_attention_splits(rows)));
    }
    s->attention_each = (each + 3) / 4 * 4;
    s->attention_scratch = take_floats(w, s->attention_each * max64(s->n_members, 1));
    s->cos_plain = take_floats(w, n * half);
    s->sin_plain = take_floats(w, n * half);
    s->cos_compress = take_floats(w, n * half);
    s->sin_compress = take_floats(w, n * half);
    s->logits = take_floats(w, max64(s->n_members, 1) * c->vocab_size);
    /* x of one product in parts of 2 bytes, and a little for its sums: the widest is wo_a's. */
    int64_t widest = max64(max64(H * d, 2 * D), c->num_experts_per_tok * max64(D, F)) + 256;
    s->room.bytes = 0;
    if (n >= CU_GEMM_TOKENS)
        s->room.bytes =
            (size_t)(n * widest) * (s->options.numerics == DSV4_DEPLOYED ? 3 : 7) + 4096;
    s->room.memory = take(w, (int64_t)s->room.bytes, 1);
    s->tap_bytes = 4 * (size_t)max64(max64(H * d, index), max64(max64(hc * D, c->vocab_size),
                                                                max64(positions / 4 + 1, o)));
}

static dsv4_status fill(dsv4_cuda_session *s, dsv4_error *err)
{
    const dsv4_config *c = &s->d->model->config;
    size_t half = (size_t)c->qk_rope_head_dim / 2;
    float *inv = dsv4_alloc(half * 2, sizeof *inv, "rotary frequencies", err);
    if (inv == NULL)
        return DSV4_E_MACHINE;
    dsv4_rope_inv_freq(c, false, inv);
    dsv4_rope_inv_freq(c, true, inv + half);
    (void)(cu_to_device(s->stream, s->inv_plain, inv, half * sizeof *inv, "a new session") &&
           cu_to_device(s->stream, s->inv_compress, inv + half, half * sizeof *inv,
                        "a new session") &&
           cu_wait(s->stream, "a new session"));
    free(inv);
    return cu_take_error(err);
}

dsv4_status cu_session_make(dsv4_cuda *d, const dsv4_session_options *options,
                            dsv4_cuda_session *const *members, int n_members,
                            dsv4_cuda_session **out, dsv4_error *err)
{
    const dsv4_config *c = &d->model->config;
    const char *what = n_members > 0 ? "a batch" : "a session";
    *out = NULL;
    dsv4_cuda_session *s = dsv4_alloc(1, sizeof *s, what, err);
    if (s == NULL)
        return DSV4_E_MACHINE;
    s->d = d;
    s->options = *options;
    s->members = members;
    s->n_members = n_members;
    if (s->options.chunk <= 0)
        s->options.chunk = DEFAULT_CHUNK;
    if (s->options.chunk > MOST_CHUNK)
        s->options.chunk = MOST_CHUNK;
    if (n_members > 0)
        s->options.chunk = n_members;
    else if (s->options.chunk > options->max_positions)
        s->options.chunk = (int)options->max_positions;
    s->window_ring = c->sliding_window - 1 + s->options.chunk;
    s->n_layers = c->num_hidden_layers + (options->mtp ? 1 : 0);
#ifdef DSV4_CUDA_MUTANTS
    s->no_graph = true; /* planting copies to the device, which a recording does not allow */
#endif
    s->layers = dsv4_alloc((size_t)s->n_layers, sizeof *s->layers, "layer states", err);
    if (s->layers == NULL)
        goto failed;
    walk w = {0};
    plan(s, &w);
    if (w.overflow) {
        dsv4_fail(err, DSV4_E_MACHINE, "%s: %lld positions need more memory than addressable", what,
                  (long long)options->max_positions);
        goto failed;
    }
    char described[96];
    if (n_members > 0)
        snprintf(described, sizeof described, "a batch of %d sessions", n_members);
    else
        snprintf(described, sizeof described, "a session of %lld positions in blocks of %d",
                 (long long)options->max_positions, s->options.chunk);
    s->arena = cu_new(w.used, described, err);
    s->tap_host = dsv4_alloc(s->tap_bytes, 1, "taps", err);
    s->tap_copy = dsv4_alloc(s->tap_bytes, 1, "taps", err);
    if (s->arena == NULL || s->tap_host == NULL || s->tap_copy == NULL)
        goto failed;
    s->stream = cu_new_stream(err);
    size_t logits = (size_t)max64(n_members, 1) * (size_t)c->vocab_size * sizeof(float);
    s->logits_host = s->stream != NULL ? cu_pinned(logits, what, err) : NULL;
    if (s->logits_host == NULL || !cu_branches_new(s, err))
        goto failed;
    size_t bytes = w.used;
    w = (walk){.base = s->arena};
    plan(s, &w);
    cu_clear(s->stream, s->arena, bytes);
    if (fill(s, err) != DSV4_OK)
        goto failed;
    *out = s;
    return DSV4_OK;
failed:
    dsv4_cuda_session_free(s);
    return DSV4_E_MACHINE;
}

dsv4_status dsv4_cuda_session_new(dsv4_cuda *d, const dsv4_session_options *options,
                                  dsv4_cuda_session **out, dsv4_error *err)
{
    const dsv4_config *c = &d->model->config;
    *out = NULL;
    if (options->max_positions < 1 || options->max_positions > c->max_position_embeddings)
        return dsv4_fail(err, DSV4_E_INPUT, "session: expected 1 to %lld positions, found %lld",
                         (long long)c->max_position_embeddings, (long long)options->max_positions);
    if (options->mtp && d->model->mtp == NULL)
        return dsv4_fail(err, DSV4_E_INPUT, "session: the model has no MTP layer");
    return cu_session_make(d, options, NULL, 0, out, err);
}

void dsv4_cuda_session_free(dsv4_cuda_session *s)
{
    if (s == NULL)
        return;
    cu_graph_free(s->graph);
    cu_branches_free(s);
    cu_delete_stream(s->stream);
    cu_delete(s->arena);
    cu_unpin(s->logits_host);
    free(s->tap_host);
    free(s->tap_copy);
    free(s->layers);
    free(s);
}

void dsv4_cuda_session_set_taps(dsv4_cuda_session *s, const dsv4_taps *taps)
{
    s->taps = taps;
}

int64_t dsv4_cuda_session_position(const dsv4_cuda_session *s)
{
    return s->position;
}

/* Everything the state holds is read by position: none of it is seen again. */
void dsv4_cuda_session_reset(dsv4_cuda_session *s)
{
    s->position = 0;
}

/* ---- tokens --------------------------------------------------------------------------------- */

dsv4_status cu_check_tokens(const dsv4_cuda_session *s, const int32_t *tokens, int64_t n,
                            dsv4_error *err)
{
    int64_t vocab = s->d->model->config.vocab_size, most = s->options.max_positions;
    if (n < 1)
        return dsv4_fail(err, DSV4_E_INPUT, "session: %lld tokens given, expected at least 1",
                         (long long)n);
    if (n > most - s->position)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "session: %lld tokens at position %lld do not fit %lld positions",
                         (long long)n, (long long)s->position, (long long)most);
    for (int64_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= vocab)
            return dsv4_fail(err, DSV4_E_INPUT,
                             "token %lld: id %d is outside the vocabulary [0, %lld)",
                             (long long)(s->position + i), tokens[i], (long long)vocab);
    return DSV4_OK;
}

/* A decode step that nobody listens to is the same work every time: recorded once, replayed. */
static bool replay(dsv4_cuda_session *s)
{
    if (s->graph == NULL) {
        if (!cu_graph_begin(s))
            return false;
        cu_forward(s, 1, true);
        if (!cu_graph_end(s))
            return false;
    }
    return cu_graph_launch(s);
}

static dsv4_status append_block(dsv4_cuda_session *s, const int32_t *ids, int64_t n, float *logits,
                                dsv4_error *err)
{
    size_t vocab = (size_t)s->d->model->config.vocab_size;
    bool ok = n == 1 || cu_to_device(s->stream, s->ids, ids, (size_t)n * sizeof *ids, "tokens");
    if (ok)
        cu_begin(s, ids, n);
    if (ok && n == 1 && s->taps == NULL && s->position > 0 && !s->no_graph)
        ok = replay(s);
    else if (ok)
        cu_forward(s, n, logits != NULL);
    if (ok && logits != NULL)
        ok = cu_from_device(s->stream, s->logits_host, s->logits, vocab * sizeof *logits, "logits");
    (void)(cu_wait(s->stream, "a block of tokens") && ok);
    dsv4_status status = cu_take_error(err);
    if (status == DSV4_OK && logits != NULL)
        memcpy(logits, s->logits_host, vocab * sizeof *logits);
    if (status == DSV4_OK)
        s->position += n;
    return status;
}

dsv4_status dsv4_cuda_session_append(dsv4_cuda_session *s, const int32_t *tokens, int64_t n,
                                     float *logits, dsv4_error *err)
{
    dsv4_status status = cu_check_tokens(s, tokens, n, err);
    for (int64_t at = 0; status == DSV4_OK && at < n; at += s->options.chunk) {
        int64_t block = n - at < s->options.chunk ? n - at : s->options.chunk;
        status = append_block(s, tokens + at, block, at + block == n ? logits : NULL, err);
    }
    return status;
}

/* ---- state ---------------------------------------------------------------------------------- */

/* What a blob belongs to; a restore into anything else is refused. */
enum { SHAPE = 9 };

static void shape_of(const dsv4_cuda_session *s, int64_t shape[SHAPE])
{
    const dsv4_config *c = &s->d->model->config;
    const int64_t now[SHAPE] = {0x31616475633476, /* "v4cuda1" */
                                c->hidden_size,       c->head_dim,
                                c->num_hidden_layers, s->n_layers,
                                s->options.numerics,  s->options.max_positions,
                                s->options.chunk,     (int64_t)s->state_bytes};
    memcpy(shape, now, sizeof now);
}

dsv4_status dsv4_cuda_session_save(const dsv4_cuda_session *s, void **blob, size_t *bytes,
                                   dsv4_error *err)
{
    int64_t head[SHAPE + 1];
    shape_of(s, head);
    head[SHAPE] = s->position;
    *bytes = sizeof head + s->state_bytes;
    *blob = dsv4_alloc(*bytes, 1, "a saved session", err);
    if (*blob == NULL)
        return DSV4_E_MACHINE;
    memcpy(*blob, head, sizeof head);
    cu_to_host(s->stream, (uint8_t *)*blob + sizeof head, s->arena + s->state_at, s->state_bytes,
               "saving a session");
    dsv4_status status = cu_take_error(err);
    if (status != DSV4_OK) {
        free(*blob);
        *blob = NULL;
    }
    return status;
}

dsv4_status dsv4_cuda_session_restore(dsv4_cuda_session *s, const void *blob, size_t bytes,
                                      dsv4_error *err)
{
    int64_t head[SHAPE + 1], ours[SHAPE];
    shape_of(s, ours);
    if (bytes == sizeof head + s->state_bytes)
        memcpy(head, blob, sizeof head);
    if (bytes != sizeof head + s->state_bytes || memcmp(head, ours, sizeof ours) != 0 ||
        head[SHAPE] < 0 || head[SHAPE] > s->options.max_positions) {
        dsv4_cuda_session_reset(s); /* never half a state */
        return dsv4_fail(err, DSV4_E_INPUT,
                         "saved session: %zu bytes do not fit this model and these options", bytes);
    }
    (void)(cu_to_device(s->stream, s->arena + s->state_at, (const uint8_t *)blob + sizeof head,
                        s->state_bytes, "restoring a session") &&
           cu_wait(s->stream, "restoring a session"));
    dsv4_status status = cu_take_error(err);
    s->position = status == DSV4_OK ? head[SHAPE] : 0;
    return status;
}
