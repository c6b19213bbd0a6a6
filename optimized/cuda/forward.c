/* forward.c - a block of tokens through the model, on the device: the order of operators and the
 * points of rounding are the reference session's (layer.c, attend.c, head.c, mtp.c). Everything
 * that depends on the position is read on the device, so that a decode step can be replayed.
 *
 * Where nobody listens to what lies between them, operators go together in one launch (fused_*.cu):
 * the same steps in the same order, so that listening changes no bit. A block of tokens is either a
 * piece of one conversation or one token each of several (batch.c); the latter differ in what
 * touches the state of a conversation, and nowhere else. */
#include <math.h>

#include "session.h"

enum { FP8_KV_BLOCK = 64, FP4_INDEX_BLOCK = 32 };

static bool deployed(const dsv4_cuda_session *s)
{
    return s->options.numerics == DSV4_DEPLOYED;
}

/* Activations are rounded to a few bits: a last bit that differs may become a step of them. */
static bool steps(const dsv4_cuda_session *s)
{
    return s->options.numerics != DSV4_MATH;
}

/* ---- products ------------------------------------------------------------------------------- */

/* Tokens that go together: of one conversation from position pos0 = *pos on; or, in a batch, one of
 * each member at pos[i]. */
typedef struct {
    const int32_t *ids; /* device [n] */
    const int64_t *pos; /* device */
    int64_t pos0, n;
} block;

/* Products of the same tokens are collected and launched together. */
typedef struct {
    cu_segment seg[CU_MOST_SEGMENTS];
    int count;
    int64_t n;
} group;

static void flush(dsv4_cuda_session *s, group *g, const char *what)
{
    cu_label(what);
    if (g->count > 0)
        cu_products(s->stream, g->seg, g->count, g->n, &s->room);
    cu_label(NULL);
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
    g->seg[g->count++] = (cu_segment){.w = *w,
                                      .x = x,
                                      .ldx = w->cols,
                                      .y = y,
                                      .ldy = w->rows,
                                      .bf16 = rounds,
                                      .x_bf16 = deployed(s),
                                      .one_order = steps(s)};
    g->n = n;
}

static void one_product(dsv4_cuda_session *s, const cu_tensor *w, const float *x, int64_t n,
                        float *y, bool keep, const char *what)
{
    group g = {.count = 0};
    product(s, &g, w, x, NULL, n, y, keep);
    flush(s, &g, what);
}

/* ---- attention ------------------------------------------------------------------------------ */

cu_compressor cu_compressor_of(const dsv4_cuda_session *s, const cu_compressor_weights *w,
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
                     const cu_compressor_state *state, bool index, int layer, const block *b)
{
    cu_compressor c = cu_compressor_of(s, w, state, index, layer);
    dsv4_tap_id id = index ? DSV4_TAP_INDEXER_KV : DSV4_TAP_COMPRESSED_KV;
    cu_compressor_store(s->stream, &c, index ? s->index_kv : s->kv, index ? s->index_z : s->z,
                        b->pos, b->n);
    cu_compressor_emit(s->stream, &c, b->pos, b->n);
    if (s->taps == NULL)
        return;
    int64_t first = b->pos0 / c.ratio, count = (b->pos0 + b->n) / c.ratio - first;
    float *rows = c.rows + first * c.dim;
    cu_tap_rounded(s, id, layer, first, count, index ? DSV4_ROUND_FP4 : DSV4_ROUND_FP8,
                   index ? FP4_INDEX_BLOCK : FP8_KV_BLOCK, s->before, c.dim, rows, c.dim,
                   index ? c.dim : c.dim - c.rope);
    cu_tap(s, id, layer, first, count, rows, c.dim, c.dim);
}

/* The low-rank query normalised, operator by operator; rounded where wq_b takes FP8. */
static void query_row(dsv4_cuda_session *s, const cu_layer *w, bool rounds, int layer,
                      const block *b)
{
    const dsv4_config *c = &s->d->model->config;
    int64_t rank = c->q_lora_rank;
    if (s->later.m != NULL) /* nobody takes them along */
        cu_hc_gates(s->stream, s->later.m, 1, &s->later.gates);
    cu_rmsnorm(s->stream, s->q_lora, w->q_norm, c->rms_norm_eps, b->n, rank, s->q_lora,
               deployed(s));
    cu_tap(s, DSV4_TAP_Q_LORA, layer, b->pos0, b->n, s->q_lora, rank, rank);
    if (rounds)
        cu_round_fp8(s->stream, s->q_lora, s->linear_in, b->n, rank, rank, rank, cu_fp8_block(rank),
                     NULL);
}

/* The KV row into the window, operator by operator. */
static void kv_row(dsv4_cuda_session *s, const cu_layer *w, const cu_layer_state *state, int layer,
                   const float *cosine, const float *sine, const block *b)
{
    const dsv4_config *c = &s->d->model->config;
    int d = c->head_dim, r = c->qk_rope_head_dim;
    cu_rmsnorm(s->stream, s->kv_row, w->kv_norm, c->rms_norm_eps, b->n, d, s->kv_row, deployed(s));
    cu_rope(s->stream, s->kv_row, b->n, 1, d, r, cosine, sine, false, deployed(s));
    if (s->options.numerics != DSV4_MATH) {
        cu_round_fp8(s->stream, s->kv_row, s->kv_row, b->n, d, d, d - r, FP8_KV_BLOCK,
                     cu_hears_rounding(s, layer) ? s->before : NULL);
        cu_tap_rounded(s, DSV4_TAP_KV, layer, b->pos0, b->n, DSV4_ROUND_FP8, FP8_KV_BLOCK,
                       s->before, d - r, s->kv_row, d, d - r);
    }
    cu_tap(s, DSV4_TAP_KV, layer, b->pos0, b->n, s->kv_row, d, d);
    cu_window_store(s->stream, s->kv_row, b->pos, b->n, d, s->window_ring, state->window);
}

/* One token of each conversation: its compressed rows are made with its other rows. */
static bool compresses_with_rows(const dsv4_cuda_session *s, const block *b)
{
    return b->n == 1 || s->n_members > 0;
}

/* The launch behind these products finds the mixes of hc_enter there when it starts, or could. */
static void settle_launch(dsv4_cuda_session *s, group *g)
{
    s->later.settled = true;
    for (int i = 0; i < g->count; i++)
        s->later.settled = s->later.settled && cu_linear_streams(&g->seg[i].w);
    g->seg[0].late = s->later.m != NULL && s->later.settled;
}

/* All of that in one launch, unless somebody listens in between. false: nothing was done. */
static bool rows_together(dsv4_cuda_session *s, const cu_layer *w, int number, int ratio,
                          bool rounds, int layer, const float *cosine, const float *sine,
                          const block *b)
{
    const dsv4_config *c = &s->d->model->config;
    bool compresses = ratio > 0 && compresses_with_rows(s, b);
    if (!cu_rows_take(c->q_lora_rank, c->head_dim, c->index_head_dim) ||
        cu_hears_rounding(s, layer) || cu_hears(s, DSV4_TAP_Q_LORA, layer, b->pos0, b->n) ||
        cu_hears(s, DSV4_TAP_KV, layer, b->pos0, b->n))
        return false;
    if (compresses && (b->pos0 + 1) % ratio == 0 &&
        (cu_hears(s, DSV4_TAP_COMPRESSED_KV, layer, b->pos0 / ratio, 1) ||
         cu_hears(s, DSV4_TAP_INDEXER_KV, layer, b->pos0 / ratio, 1)))
        return false;
    cu_rows_args a = {
        .n = b->n,
        .numerics = (int)s->options.numerics,
        .eps = c->rms_norm_eps,
        .q_lora = s->q_lora,
        .q8 = rounds ? s->linear_in : NULL,
        .q_norm = w->q_norm,
        .q_dim = c->q_lora_rank,
        .q8_block = cu_fp8_block(c->q_lora_rank),
        .kv_row = s->kv_row,
        .kv_norm = w->kv_norm,
        .dim = c->head_dim,
        .rope = c->qk_rope_head_dim,
        .index_dim = c->index_head_dim,
        .cosine = cosine,
        .sine = sine,
        .compresses = compresses,
        .kv = s->kv,
        .z = s->z,
        .index_kv = s->index_kv,
        .index_z = s->index_z,
        .index_w = s->index_w,
        .index_heads = c->index_n_heads,
        .index_scale =
            (float)(1.0 / sqrt((double)c->index_head_dim) / sqrt((double)c->index_n_heads)),
        .later = s->later,
    };
    if (s->n_members > 0)
        a.table = s->row_states + (int64_t)number * s->n_members;
    else
        a.one = cu_row_state_of(s, w, number, ratio, b->pos);
    cu_rows(s->stream, &a, ratio);
    return true;
}

cu_row_state cu_row_state_of(const dsv4_cuda_session *s, const cu_layer *w, int number, int ratio,
                             const int64_t *pos)
{
    const cu_layer_state *l = &s->layers[number];
    cu_row_state r = {.pos = pos, .window = l->window, .window_ring = s->window_ring};
    if (ratio > 0)
        r.compressor = cu_compressor_of(s, &w->compressor, &l->compressor, false, -1);
    if (ratio == 4)
        r.indexer = cu_compressor_of(s, &w->indexer, &l->indexer, true, -1);
    return r;
}

static void queries(dsv4_cuda_session *s, int layer, const float *cosine, const float *sine,
                    const block *b)
{
    const dsv4_config *c = &s->d->model->config;
    int H = c->num_attention_heads, d = c->head_dim;
    cu_head_norm(s->stream, s->q, c->rms_norm_eps, b->n * H, d, deployed(s));
    cu_rope(s->stream, s->q, b->n, H, d, c->qk_rope_head_dim, cosine, sine, false, deployed(s));
    cu_tap(s, DSV4_TAP_Q, layer, b->pos0, b->n, s->q, (int64_t)H * d, (int64_t)H * d);
}

static void index_queries(dsv4_cuda_session *s, int layer, const block *b)
{
    const dsv4_config *c = &s->d->model->config;
    int heads = c->index_n_heads, dim = c->index_head_dim;
    int64_t width = (int64_t)heads * dim;
    cu_rope(s->stream, s->index_q, b->n, heads, dim, c->qk_rope_head_dim, s->cos_compress,
            s->sin_compress, false, deployed(s));
    if (s->options.numerics != DSV4_MATH) {
        bool heard = cu_hears_rounding(s, layer);
        cu_hadamard(s->stream, s->index_q, b->n * heads, dim, deployed(s));
        cu_round_fp4(s->stream, s->index_q, b->n * heads, dim, FP4_INDEX_BLOCK,
                     heard ? s->heads : NULL); /* free until attention */
        cu_tap_rounded(s, DSV4_TAP_INDEXER_Q, layer, b->pos0, b->n, DSV4_ROUND_FP4, FP4_INDEX_BLOCK,
                       s->heads, width, s->index_q, width, width);
    }
    cu_tap(s, DSV4_TAP_INDEXER_Q, layer, b->pos0, b->n, s->index_q, width, width);
}

/* Will attention turn the queries itself? */
static bool raw_queries(const dsv4_cuda_session *s, int layer, const block *b)
{
    const dsv4_config *c = &s->d->model->config;
    return s->n_members == 0 && cu_attention_takes_raw(b->n, c->head_dim, c->qk_rope_head_dim) &&
           !cu_hears(s, DSV4_TAP_Q, layer, b->pos0, b->n);
}

/* Will the indexer turn its queries itself? That is all there is to them where nothing is rounded.
 */
static bool raw_index_queries(const dsv4_cuda_session *s, int number, int layer, const block *b)
{
    const dsv4_config *c = &s->d->model->config;
    return s->n_members == 0 && !steps(s) &&
           cu_indexer_takes_raw(b->n, s->layers[number].indexer.cap_rows, c->index_n_heads,
                                c->index_head_dim, c->qk_rope_head_dim) &&
           !cu_hears(s, DSV4_TAP_INDEXER_Q, layer, b->pos0, b->n);
}

/* raw: the indexer's alone. */
static bool queries_together(dsv4_cuda_session *s, int ratio, bool raw, int layer,
                             const float *cosine, const float *sine, const block *b)
{
    const dsv4_config *c = &s->d->model->config;
    int index_heads = ratio == 4 ? c->index_n_heads : 0;
    if (!cu_queries_take(c->head_dim, c->qk_rope_head_dim, index_heads, c->index_head_dim) ||
        cu_hears(s, DSV4_TAP_Q, layer, b->pos0, b->n) ||
        (ratio == 4 &&
         (cu_hears_rounding(s, layer) || cu_hears(s, DSV4_TAP_INDEXER_Q, layer, b->pos0, b->n))))
        return false;
    cu_queries_args a = {.n = b->n,
                         .numerics = (int)s->options.numerics,
                         .eps = c->rms_norm_eps,
                         .q = s->q,
                         .heads = raw ? 0 : c->num_attention_heads,
                         .dim = c->head_dim,
                         .rope = c->qk_rope_head_dim,
                         .cosine = cosine,
                         .sine = sine,
                         .index_q = s->index_q,
                         .index_heads = index_heads,
                         .index_dim = c->index_head_dim};
    cu_queries(s->stream, &a);
    return true;
}

/* A conversation's part of the block: n tokens from token `first` on; its state is `of`'s. */
typedef struct {
    const dsv4_cuda_session *of;
    cu_stream stream;
    int64_t first, n, pos0;
    const int64_t *pos;
} part;

static int64_t parts_of(const dsv4_cuda_session *s)
{
    return s->n_members > 0 ? s->n_members : 1;
}

static part part_of(const dsv4_cuda_session *s, const block *b, int64_t i)
{
    if (s->n_members > 0)
        return (part){s->members[i], cu_branch(s, (int)i), i, 1, b->pos0, b->pos + i};
    return (part){s, s->stream, 0, b->n, b->pos0, b->pos};
}

/* Whether attention's list is the only thing that is not settled behind it (there are scores). */
static bool choose_rows(dsv4_cuda_session *s, int number, int layer, bool raw, const part *p)
{
    const dsv4_config *c = &s->d->model->config;
    const cu_compressor_state *rows = &p->of->layers[number].indexer;
    int heads = c->index_n_heads, dim = c->index_head_dim, k = c->index_topk;
    int64_t cap = rows->cap_rows, ld = s->options.max_positions / 4 + 1;
    int64_t seen = s->taps != NULL ? (p->pos0 + p->n) / rows->ratio : cap;
    float *scores = s->scores + p->first * ld;
    int32_t *topk = s->topk + p->first * k;
    cu_turn turn = {s->cos_compress, s->sin_compress, c->qk_rope_head_dim};
    cu_indexer_scores(p->stream, s->index_q + p->first * heads * dim, rows->rows,
                      s->index_w + p->first * heads, heads, dim, p->n, seen, p->pos, rows->ratio,
                      deployed(s), scores, ld, raw ? &turn : NULL);
    for (int64_t i = 0; s->taps != NULL && i < p->n; i++)
        cu_tap(s, DSV4_TAP_INDEXER_SCORES, layer, p->pos0 + i, 1, scores + i * ld,
               (p->pos0 + i + 1) / rows->ratio, ld);
    cu_topk(p->stream, scores, ld, p->n, cap, p->pos, rows->ratio, k, topk);
    cu_tap(s, DSV4_TAP_INDEXER_TOPK, layer, p->pos0, p->n, topk, k, k);
    return seen > 0;
}

/* raw: the queries are normalised and turned, too (settled: as cu_attention_args has it); back: the
 * results are turned back, too. */
static void attend_part(dsv4_cuda_session *s, const cu_layer *w, int number, int ratio, bool raw,
                        bool settled, bool back, const part *p)
{
    const dsv4_config *c = &s->d->model->config;
    int64_t angles = p->first * (c->qk_rope_head_dim / 2);
    int H = c->num_attention_heads, d = c->head_dim;
    const cu_layer_state *state = &p->of->layers[number];
    int64_t most = ratio > 0 ? state->compressor.cap_rows : 0;
    cu_attention_args a = {.n = p->n,
                           .pos0 = p->pos,
                           .heads = H,
                           .dim = d,
                           .q = s->q + p->first * H * d,
                           .window = state->window,
                           .window_ring = p->of->window_ring,
                           .window_size = c->sliding_window,
                           .rows = state->compressor.rows,
                           .ratio = ratio,
                           .most_rows = most,
                           .topk = ratio == 4 ? s->topk + p->first * c->index_topk : NULL,
                           .k = c->index_topk,
                           .sink = w->sink,
                           .scratch = s->attention_scratch + p->first * s->attention_each,
                           .raw = raw,
                           .settled = settled,
                           .back = back,
                           .rope = c->qk_rope_head_dim,
                           .cosine = (ratio > 0 ? s->cos_compress : s->cos_plain) + angles,
                           .sine = (ratio > 0 ? s->sin_compress : s->sin_plain) + angles,
                           .eps = c->rms_norm_eps};
    a.splits = cu_attention_splits(c->sliding_window + (ratio == 4 ? a.k : most));
    cu_attention(p->stream, &a, s->heads + p->first * H * d, deployed(s));
}

static void attend(dsv4_cuda_session *s, const cu_layer *w, int number, int ratio, int layer,
                   const block *b)
{
    const dsv4_config *c = &s->d->model->config;
    int H = c->num_attention_heads, d = c->head_dim, r = c->qk_rope_head_dim;
    const float *cosine = ratio > 0 ? s->cos_compress : s->cos_plain;
    const float *sine = ratio > 0 ? s->sin_compress : s->sin_plain;
    int64_t n = b->n;
    group g = {.count = 0};

    product(s, &g, &w->wq_a, s->norm, s->norm8, n, s->q_lora, false);
    product(s, &g, &w->wkv, s->norm, s->norm8, n, s->kv_row, false);
    if (ratio > 0) { /* float32 in every mode */
        product(s, &g, &w->compressor.wkv, s->norm, NULL, n, s->kv, true);
        product(s, &g, &w->compressor.wgate, s->norm, NULL, n, s->z, true);
    }
    if (ratio == 4) {
        product(s, &g, &w->indexer.wkv, s->norm, NULL, n, s->index_kv, true);
        product(s, &g, &w->indexer.wgate, s->norm, NULL, n, s->index_z, true);
        product(s, &g, &w->index_weights, s->norm, s->norm8, n, s->index_w, false);
    }
    settle_launch(s, &g);
    flush(s, &g, "products: wq_a, wkv, compressors");

    bool rounds = deployed(s) && (cu_quantised(&w->wq_b) || cu_quantised(&w->index_wq_b));
    bool rows = rows_together(s, w, number, ratio, rounds, layer, cosine, sine, b);
    if (!rows)
        query_row(s, w, rounds, layer, b);
    bool raw = raw_queries(s, layer, b), settled = false;
    product(s, &g, &w->wq_b, s->q_lora, s->linear_in, n, s->q, false);
    if (raw && ratio != 4) { /* attention comes next: its rows are there, if these were made */
        settled = rows && (ratio == 0 || compresses_with_rows(s, b)) && cu_linear_streams(&w->wq_b);
        g.seg[0].late = settled;
    } else if (ratio == 4)
        product(s, &g, &w->index_wq_b, s->q_lora, s->linear_in, n, s->index_q, false);
    flush(s, &g, "products: wq_b, index queries");
    bool raw_index = ratio == 4 && raw && raw_index_queries(s, number, layer, b);
    bool turned = raw_index || queries_together(s, ratio, raw, layer, cosine, sine, b);
    if (!turned && !raw)
        queries(s, layer, cosine, sine, b);

    const cu_layer_state *state = s->n_members > 0 ? NULL : &s->layers[number];
    if (!rows)
        kv_row(s, w, state, layer, cosine, sine, b);
    if (ratio > 0 && !(rows && compresses_with_rows(s, b)))
        compress(s, &w->compressor, &state->compressor, false, layer, b);
    if (ratio == 4 && !turned)
        index_queries(s, layer, b);
    if (ratio == 4 && !(rows && compresses_with_rows(s, b)))
        compress(s, &w->indexer, &state->indexer, true, layer, b);
    if (ratio == 4 && !rows)
        cu_index_weights(s->stream, s->index_w, n, c->index_n_heads, c->index_head_dim,
                         deployed(s));

    bool back = cu_attention_turns(s->n_members > 0 ? 1 : n, d, r) &&
                !cu_hears(s, DSV4_TAP_ATTN_HEADS, layer, b->pos0, n);
    cu_fork(s);
    for (int64_t i = 0; i < parts_of(s); i++) {
        part p = part_of(s, b, i);
        if (ratio == 4)
            settled = choose_rows(s, number, layer, raw_index, &p);
        attend_part(s, w, number, ratio, raw, settled, back, &p);
    }
    cu_join(s);
    if (!back) {
        cu_tap(s, DSV4_TAP_ATTN_HEADS, layer, b->pos0, n, s->heads, (int64_t)H * d, (int64_t)H * d);
        cu_rope(s->stream, s->heads, n, H, d, r, cosine, sine, true, deployed(s));
    }

    /* Group i of consecutive heads has its own rows of wo_a; its input is never FP8. */
    int64_t in = (int64_t)H / c->o_groups * d, out = (int64_t)c->o_groups * c->o_lora_rank;
    for (int i = 0; i < c->o_groups; i++) {
        cu_tensor wo = w->wo_a;
        int64_t first = (int64_t)i * c->o_lora_rank;
        wo.rows = c->o_lora_rank;
        wo.data += (size_t)first * wo.row_bytes;
        wo.row0 += (int)first;
        if (g.count == CU_MOST_SEGMENTS)
            flush(s, &g, "products: wo_a");
        g.n = n;
        g.seg[g.count++] = (cu_segment){.w = wo,
                                        .x = s->heads + i * in,
                                        .ldx = (int64_t)H * d,
                                        .y = s->o_lora + first,
                                        .ldy = out,
                                        .bf16 = deployed(s),
                                        .x_bf16 = deployed(s),
                                        .one_order = steps(s)};
    }
    flush(s, &g, "products: wo_a");
    cu_keep_apart(false); /* cu_join's */
    cu_tap(s, DSV4_TAP_O_LORA, layer, b->pos0, n, s->o_lora, out, out);
    one_product(s, &w->wo_b, s->o_lora, n, s->out, false, "product: wo_b");
    cu_tap(s, DSV4_TAP_ATTN_OUT, layer, b->pos0, n, s->out, c->hidden_size, c->hidden_size);
}

/* ---- a layer -------------------------------------------------------------------------------- */

/* A sublayer to enter: its mixing and normalisation; rounds: it takes norm8, too. */
typedef struct {
    const cu_hc *hc;
    const float *norm;
    bool rounds, ffn;
    int layer;
} sublayer;

static sublayer attention_of(const dsv4_cuda_session *s, int number, int layer)
{
    const cu_layer *w = &s->d->layers[number];
    bool rounds =
        cu_quantised(&w->wq_a) || cu_quantised(&w->wkv) || cu_quantised(&w->index_weights);
    return (sublayer){&w->hc_attn, w->attn_norm, rounds && deployed(s), false, layer};
}

static sublayer experts_of(const dsv4_cuda_session *s, int number, int layer)
{
    const cu_layer *w = &s->d->layers[number];
    bool rounds =
        cu_quantised(&w->shared_w1) || cu_quantised(&w->shared_w3) || cu_quantised(&w->w1);
    return (sublayer){&w->hc_ffn, w->ffn_norm, rounds && deployed(s), true, layer};
}

static cu_gates gates_of(const dsv4_cuda_session *s, const cu_hc *hc)
{
    const dsv4_config *c = &s->d->model->config;
    return (cu_gates){hc->scale, hc->base, c->hc_mult, c->hc_sinkhorn_iters,
                      c->hc_eps, s->pre,   s->post,    s->comb};
}

/* Streams to norm. left: the end of the sublayer before goes along. */
static void hc_enter(dsv4_cuda_session *s, const sublayer *to, const cu_left *left, const block *b)
{
    const dsv4_config *c = &s->d->model->config;
    int k = c->hc_mult, layer = to->layer;
    int64_t D = c->hidden_size, n = b->n, pos0 = b->pos0;
    dsv4_tap_id post = to->ffn ? DSV4_TAP_HC_FFN_POST : DSV4_TAP_HC_ATTN_POST;
    dsv4_tap_id comb = to->ffn ? DSV4_TAP_HC_FFN_COMB : DSV4_TAP_HC_ATTN_COMB;
    bool heard = cu_hears(s, post, layer, pos0, n) || cu_hears(s, comb, layer, pos0, n);
    cu_gates g = gates_of(s, to->hc);
    s->later.m = NULL;
    cu_hc_enter(s->stream, &to->hc->fn, s->streams, c->rms_norm_eps, n, s->mix, s->mix_scratch,
                s->tickets, &g, to->norm, s->x, s->norm, deployed(s), left,
                heard ? NULL : &s->later);
    cu_tap(s, post, layer, pos0, n, s->post, k, k);
    cu_tap(s, comb, layer, pos0, n, s->comb, (int64_t)k * k, (int64_t)k * k);
    if (cu_tap(s, to->ffn ? DSV4_TAP_HC_FFN_COLLAPSED : DSV4_TAP_HC_ATTN_COLLAPSED, layer, pos0, n,
               s->x, D, D)) /* changed: normalised again */
        cu_rmsnorm(s->stream, s->x, to->norm, c->rms_norm_eps, n, D, s->norm, deployed(s));
    cu_tap(s, to->ffn ? DSV4_TAP_FFN_NORM : DSV4_TAP_ATTN_NORM, layer, pos0, n, s->norm, D, D);
    if (to->rounds)
        cu_round_fp8(s->stream, s->norm, s->norm8, n, D, D, D, cu_fp8_block(D), NULL);
}

static void swap_streams(dsv4_cuda_session *s)
{
    float *swap = s->streams;
    s->streams = s->mixed;
    s->mixed = swap;
}

/* From the end of a sublayer into the next (NULL: there is none). what: block, or the experts. */
static void hc_leave(dsv4_cuda_session *s, bool ffn, int layer, cu_left what, const sublayer *next,
                     const block *b)
{
    const dsv4_config *c = &s->d->model->config;
    int64_t D = c->hidden_size, width = c->hc_mult * D, n = b->n;
    dsv4_tap_id id = ffn ? DSV4_TAP_STREAMS : DSV4_TAP_STREAMS_MID;
    what.streams = s->streams;
    what.out = s->mixed;
    swap_streams(s);
    if (next != NULL && !cu_hears(s, id, layer, b->pos0, n)) {
        cu_gates g = gates_of(s, next->hc);
        if (cu_hc_passes(&next->hc->fn, &g, what.k)) {
            hc_enter(s, next, &what, b);
            return;
        }
    }
    if (what.block != NULL)
        cu_hc_post(s->stream, what.block, what.streams, s->post, s->comb, n, c->hc_mult, D,
                   what.out, deployed(s));
    else
        cu_leave(s->stream, what.y, what.experts, what.k, what.shared, what.streams, s->post,
                 s->comb, n, c->hc_mult, D, what.out, deployed(s));
    cu_tap(s, id, layer, b->pos0, n, s->streams, width, width);
    if (next != NULL)
        hc_enter(s, next, NULL, b);
}

/* Does nobody hear what lies between the router and the streams? Who hears the experts or their
 * weights may change them. */
static bool moe_unheard(const dsv4_cuda_session *s, int layer, const block *b)
{
    static const dsv4_tap_id ids[] = {DSV4_TAP_ROUTER_EXPERTS, DSV4_TAP_ROUTER_WEIGHTS,
                                      DSV4_TAP_ROUTED_OUT, DSV4_TAP_SHARED_OUT, DSV4_TAP_FFN_OUT};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        if (cu_hears(s, ids[i], layer, b->pos0, b->n))
            return false;
    return cu_leave_takes(s->d->model->config.num_experts_per_tok);
}

static void moe(dsv4_cuda_session *s, const cu_layer *w, float limit, int layer,
                const sublayer *next, const block *b)
{
    const dsv4_config *c = &s->d->model->config;
    int64_t D = c->hidden_size, inner = w->shared_w1.rows, n = b->n, pos0 = b->pos0;
    int E = c->n_routed_experts, K = c->num_experts_per_tok;
    bool unheard = moe_unheard(s, layer, b);
    group g = {.count = 0};
    product(s, &g, &w->gate, s->norm, NULL, n, s->router_logits, true); /* float32 in every mode */
    product(s, &g, &w->shared_w1, s->norm, s->norm8, n, s->shared_gate, false);
    product(s, &g, &w->shared_w3, s->norm, s->norm8, n, s->shared_up, false);
    settle_launch(s, &g);
    /* The experts' input is there before the router begins. */
    bool ahead = n == 1 && unheard && s->later.settled;
    g.seg[0].late = g.seg[0].late || ahead;
    flush(s, &g, "products: router, shared gate, up");
    cu_tap(s, DSV4_TAP_ROUTER_LOGITS, layer, pos0, n, s->router_logits, E, E);
    cu_router(s->stream, s->router_logits, w->gate_bias, w->tid2eid, b->ids, n, E, K,
              c->routed_scaling_factor, s->experts, s->weights, unheard ? s->share : NULL,
              &s->later);
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
                         .one_order = steps(s),
                         .ahead = ahead,
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
    if (unheard) {
        cu_shared_expert shared = {w->shared_w2, s->norm8, s->shared_gate, s->shared_up, s->shared};
        cu_experts_and_shared(s->stream, &a, &shared);
        cu_left left = {.y = s->y, .experts = s->experts, .shared = s->shared, .k = K};
        hc_leave(s, true, layer, left, next, b);
        return;
    }
    cu_experts(s->stream, &a);
    cu_tap(s, DSV4_TAP_ROUTED_OUT, layer, pos0, n, s->out, D, D);
    cu_swiglu(s->stream, s->shared_gate, s->shared_up, limit, n, inner, NULL, deployed(s),
              s->shared_gate);
    one_product(s, &w->shared_w2, s->shared_gate, n, s->shared, false, "product: shared down");
    cu_tap(s, DSV4_TAP_SHARED_OUT, layer, pos0, n, s->shared, D, D);
    cu_add(s->stream, s->out, s->shared, n * D, deployed(s));
    cu_tap(s, DSV4_TAP_FFN_OUT, layer, pos0, n, s->out, D, D);
    hc_leave(s, true, layer, (cu_left){.block = s->out}, next, b);
}

/* next: the layer that follows, or -1. The first one is entered by whoever starts. */
static void layer_forward(dsv4_cuda_session *s, int number, int layer, int next, const block *b)
{
    const dsv4_model *m = s->d->model;
    const cu_layer *w = &s->d->layers[number];
    const dsv4_layer *l =
        number < m->config.num_hidden_layers ? &m->layers[number] : &m->mtp[0].layer;
    sublayer experts = experts_of(s, number, layer), after = {NULL};
    if (next >= 0)
        after = attention_of(s, next, next);
    attend(s, w, number, l->ratio, layer, b);
    hc_leave(s, false, layer, (cu_left){.block = s->out}, &experts, b);
    moe(s, w, l->swiglu_limit, layer, next >= 0 ? &after : NULL, b);
}

/* ---- the ends ------------------------------------------------------------------------------- */

/* Streams of n tokens to b.norm, by a head's gates. tapped: the main head, which is listened to. */
static void head_norm(dsv4_cuda_session *s, const cu_hc *hc, const float *norm,
                      const float *streams, bool tapped, int64_t pos0, int64_t n)
{
    const dsv4_config *c = &s->d->model->config;
    int64_t D = c->hidden_size;
    cu_gates g = {hc->scale, hc->base, c->hc_mult, 0, c->hc_eps, s->pre, NULL, NULL};
    cu_hc_enter(s->stream, &hc->fn, streams, c->rms_norm_eps, n, s->mix, s->mix_scratch, s->tickets,
                &g, norm, s->x, s->norm, deployed(s), NULL, NULL);
    if (tapped && cu_tap(s, DSV4_TAP_HEAD_COLLAPSED, -1, pos0, n, s->x, D, D)) /* changed */
        cu_rmsnorm(s->stream, s->x, norm, c->rms_norm_eps, n, D, s->norm, deployed(s));
}

/* Logits of tokens first .. first + n - 1 of the block. */
static void head_of(dsv4_cuda_session *s, int64_t first, int64_t pos0, int64_t n)
{
    const dsv4_config *c = &s->d->model->config;
    int64_t D = c->hidden_size, V = c->vocab_size;
    head_norm(s, &s->d->hc_head, s->d->norm, s->streams + first * c->hc_mult * D, true, pos0, n);
    cu_tap(s, DSV4_TAP_FINAL_NORM, -1, pos0, n, s->norm, D, D);
    one_product(s, &s->d->head, s->norm, n, s->logits, true, "product: head");
    cu_tap(s, DSV4_TAP_LOGITS, -1, pos0, n, s->logits, V, V);
}

static void head(dsv4_cuda_session *s, int64_t pos0, int64_t n, bool last)
{
    for (int64_t i = 0; i < n; i++) {
        bool wanted = last && i == n - 1;
        for (dsv4_tap_id id = DSV4_TAP_HEAD_COLLAPSED; id <= DSV4_TAP_LOGITS; id++)
            wanted = wanted || cu_wants(s, id, -1, pos0 + i);
        if (wanted)
            head_of(s, i, pos0 + i, 1);
    }
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
    one_product(s, &d->e_proj, s->norm, rows, s->out, false, "product: e_proj");
    cu_rmsnorm(s->stream, s->mixed, d->hnorm, c->rms_norm_eps, rows * c->hc_mult, D, s->mixed,
               deployed(s));
    one_product(s, &d->h_proj, s->mixed, rows * c->hc_mult, s->streams, false, "product: h_proj");
    cu_add_streams(s->stream, s->streams, s->out, rows, c->hc_mult, D, deployed(s));

    int64_t pos0 = s->position - waited;
    block b = {next, &s->step->mtp_pos, pos0, rows};
    int half = c->qk_rope_head_dim / 2;
    cu_rope_angles(s->stream, s->inv_plain, half, NULL, b.pos, rows, s->cos_plain, s->sin_plain);
    cu_rope_angles(s->stream, s->inv_compress, half, NULL, b.pos, rows, s->cos_compress,
                   s->sin_compress);
    sublayer first = attention_of(s, c->num_hidden_layers, -1);
    hc_enter(s, &first, NULL, &b);
    layer_forward(s, c->num_hidden_layers, -1, -1, &b);
    for (int64_t i = 0; i < rows; i++) {
        if (!cu_wants(s, DSV4_TAP_MTP_LOGITS, -1, pos0 + i))
            continue;
        head_norm(s, &d->mtp_head, d->mtp_norm, s->streams + i * width, false, pos0 + i, 1);
        one_product(s, &d->head, s->norm, 1, s->logits, true, "product: head");
        cu_tap(s, DSV4_TAP_MTP_LOGITS, -1, pos0 + i, 1, s->logits, c->vocab_size, c->vocab_size);
    }
}

/* What goes through the model together: of a batch its members' tokens. */
static block block_of(const dsv4_cuda_session *s, int64_t n)
{
    if (s->n_members > 0)
        return (block){s->ids, s->positions, 0, n};
    return (block){n == 1 ? &s->step->token : s->ids, &s->step->pos, s->position, n};
}

void cu_begin(dsv4_cuda_session *s, const int32_t *tokens, int64_t n)
{
    const dsv4_config *c = &s->d->model->config;
    bool several = s->n_members > 0;
    cu_step_args a = {.n = n,
                      .positions_to = several ? s->positions : &s->step->pos,
                      .n_positions = several ? s->n_members : 2,
                      .apart = several,
                      .ids = several || n == 1 ? NULL : s->ids,
                      .ids_to = several ? s->ids : &s->step->token,
                      .table = s->d->embed,
                      .copies = c->hc_mult,
                      .half = c->qk_rope_head_dim / 2,
                      .bf16 = deployed(s),
                      .x = s->streams,
                      .inv_freq = {s->inv_plain, s->inv_compress},
                      .cosine = {s->cos_plain, s->cos_compress},
                      .sine = {s->sin_plain, s->sin_compress}};
    a.position[0] = s->position;
    a.position[1] = s->position > 0 ? s->position - 1 : 0;
    a.token[0] = tokens[0];
    for (int i = 0; i < s->n_members; i++) {
        a.position[i] = s->members[i]->position;
        a.token[i] = tokens[i];
    }
    cu_begin_step(s->stream, &a);
}

void cu_forward(dsv4_cuda_session *s, int64_t n, bool logits)
{
    block b = block_of(s, n);
    int layers = s->d->model->config.num_hidden_layers;
    sublayer first = attention_of(s, 0, 0);
    cu_keep_apart(true); /* cu_begin's launch: kernels ask for positions before they wait */
    hc_enter(s, &first, NULL, &b);
    cu_keep_apart(false);
    for (int l = 0; l < layers; l++)
        layer_forward(s, l, l, l + 1 < layers ? l + 1 : -1, &b);
    if (s->n_members > 0) {
        head_of(s, 0, 0, n);
        return;
    }
    head(s, s->position, n, logits);
    if (s->options.mtp)
        mtp_forward(s, b.ids, n);
}
