/* compositions_attention.c - around attention: rows, queries, and attention whose results come out
 * turned back. */
#include "compositions.h"

#include <math.h>
#include <stdio.h>

/* ---- queries -------------------------------------------------------------------------------- */

typedef struct {
    cu_queries_args a;
    int q, index_q, cosine, sine;
} queries_case;

static cu_queries_args queries_at(const bed *b, const queries_case *c, int side)
{
    cu_queries_args a = c->a;
    a.numerics = (int)b->numerics;
    a.eps = 1e-6f;
    a.q = bed_at(b, side, c->q);
    a.index_q = bed_at(b, side, c->index_q);
    a.cosine = bed_at(b, side, c->cosine);
    a.sine = bed_at(b, side, c->sine);
    return a;
}

static void queries_together(bed *b, void *ctx, int side)
{
    cu_queries_args a = queries_at(b, ctx, side);
    cu_queries(b->stream, &a);
}

static void queries_one_by_one(bed *b, void *ctx, int side)
{
    cu_queries_args a = queries_at(b, ctx, side);
    bool bf16 = b->numerics == DSV4_DEPLOYED;
    cu_head_norm(b->stream, a.q, a.eps, a.n * a.heads, a.dim, bf16);
    cu_rope(b->stream, a.q, a.n, a.heads, a.dim, a.rope, a.cosine, a.sine, false, bf16);
    if (a.index_heads == 0)
        return;
    cu_rope(b->stream, a.index_q, a.n, a.index_heads, a.index_dim, a.rope, a.cosine, a.sine, false,
            bf16);
    if (b->numerics == DSV4_MATH)
        return;
    cu_hadamard(b->stream, a.index_q, a.n * a.index_heads, a.index_dim, bf16);
    cu_round_fp4(b->stream, a.index_q, a.n * a.index_heads, a.index_dim, INDEX_BLOCK, NULL);
}

void check_queries(bed *b)
{
    static const struct {
        int n, heads, dim, rope, index_heads, index_dim;
    } shapes[] = {{1, 64, 512, 64, 64, 128}, {3, 5, 64, 16, 3, 32},  {17, 4, 48, 16, 0, 0},
                  {2, 1, 2, 2, 1, 2},        {1, 3, 500, 32, 2, 64}, {5, 7, 34, 4, 2, 16}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        EACH_KIND(b)
        {
            char text[96];
            int n = shapes[i].n, heads = shapes[i].heads, dim = shapes[i].dim;
            int index_heads = shapes[i].index_heads, index_dim = shapes[i].index_dim;
            snprintf(text, sizeof text, "queries/heads=%d,dim=%d,rope=%d,index=%dx%d,n=%d", heads,
                     dim, shapes[i].rope, index_heads, index_dim, n);
            if (!cu_queries_take(dim, shapes[i].rope, index_heads, index_dim) ||
                !bed_wanted(b, text))
                continue;
            queries_case c = {.a = {.n = n,
                                    .heads = heads,
                                    .dim = dim,
                                    .rope = shapes[i].rope,
                                    .index_heads = index_heads,
                                    .index_dim = index_dim}};
            c.q = bed_input(b, "q", (int64_t)n * heads * dim);
            c.index_q = bed_input(b, "index_q", (int64_t)n * index_heads * index_dim);
            c.cosine = bed_plain(b, "cosine", n * shapes[i].rope / 2);
            c.sine = bed_plain(b, "sine", n * shapes[i].rope / 2);
            bed_run(b, queries_together, queries_one_by_one, NULL, &c);
        }
}

/* ---- rows ----------------------------------------------------------------------------------- */

typedef struct {
    int64_t n, q_dim;
    int dim, rope, index_dim, index_heads, ratio;
    bool many, compresses; /* many: a token of each of n states, instead of n tokens of one */
    int64_t ring, window_ring;
    int q_lora, q8, q_norm, kv_row, kv_norm, cosine, sine, inv_freq, pos, table, left;
    int kv, z, index_kv, index_z, index_w, ape, norm, index_ape, index_norm;
    /* of a state */
    int window, ring_kv, ring_z, out, index_ring_kv, index_ring_z, index_out;
} rows_case;

enum { CAP_ROWS = 9 };

static int lanes_of(const rows_case *c)
{
    return c->ratio == 4 ? 2 : 1;
}

static cu_compressor compressor_at(const bed *b, const rows_case *c, int side, bool index,
                                   int64_t state)
{
    int dim = index ? c->index_dim : c->dim;
    int64_t ring = state * c->ring * lanes_of(c) * dim;
    return (cu_compressor){
        .ratio = c->ratio,
        .lanes = lanes_of(c),
        .dim = dim,
        .rope = c->rope,
        .ring = c->ring,
        .kv = (float *)bed_at(b, side, index ? c->index_ring_kv : c->ring_kv) + ring,
        .z = (float *)bed_at(b, side, index ? c->index_ring_z : c->ring_z) + ring,
        .rows = (float *)bed_at(b, side, index ? c->index_out : c->out) + state * CAP_ROWS * dim,
        .ape = bed_at(b, side, index ? c->index_ape : c->ape),
        .norm = bed_at(b, side, index ? c->index_norm : c->norm),
        .inv_freq = bed_at(b, side, c->inv_freq),
        .eps = 1e-6f,
        .numerics = (int)b->numerics,
        .index = index};
}

static cu_row_state state_at(const bed *b, const rows_case *c, int side, int64_t state)
{
    cu_row_state s = {.pos = (const int64_t *)bed_at(b, side, c->pos) + state,
                      .window =
                          (float *)bed_at(b, side, c->window) + state * c->window_ring * c->dim,
                      .window_ring = c->window_ring};
    if (c->ratio > 0)
        s.compressor = compressor_at(b, c, side, false, state);
    if (c->ratio == 4)
        s.indexer = compressor_at(b, c, side, true, state);
    return s;
}

/* Gates that hc_enter left, of one token. */
static cu_later left_at(const bed *b, const rows_case *c, int side)
{
    float *p = bed_at(b, side, c->left);
    cu_gates g = {p + 24, p + 28, 4, 20, 1e-6f, p + 52, p + 56, p + 60};
    return (cu_later){c->n == 1 ? p : NULL, g, true};
}

static void rows_patch(bed *b, void *ctx, int side)
{
    const rows_case *c = ctx;
    cu_row_state *table = bed_image(b, side, c->table);
    for (int64_t i = 0; i < c->n; i++)
        table[i] = state_at(b, c, side, i);
}

static void rows_together(bed *b, void *ctx, int side)
{
    const rows_case *c = ctx;
    double heads = c->index_heads, dim = c->index_dim;
    cu_rows_args a = {.n = c->n,
                      .numerics = (int)b->numerics,
                      .eps = 1e-6f,
                      .q_lora = bed_at(b, side, c->q_lora),
                      .q8 = b->numerics == DSV4_DEPLOYED ? bed_at(b, side, c->q8) : NULL,
                      .q_norm = bed_at(b, side, c->q_norm),
                      .q_dim = c->q_dim,
                      .q8_block = cu_fp8_block(c->q_dim),
                      .kv_row = bed_at(b, side, c->kv_row),
                      .kv_norm = bed_at(b, side, c->kv_norm),
                      .dim = c->dim,
                      .rope = c->rope,
                      .index_dim = c->index_dim,
                      .cosine = bed_at(b, side, c->cosine),
                      .sine = bed_at(b, side, c->sine),
                      .compresses = c->compresses,
                      .kv = bed_at(b, side, c->kv),
                      .z = bed_at(b, side, c->z),
                      .index_kv = bed_at(b, side, c->index_kv),
                      .index_z = bed_at(b, side, c->index_z),
                      .index_w = bed_at(b, side, c->index_w),
                      .index_heads = c->index_heads,
                      .index_scale = (float)(1.0 / sqrt(dim) / sqrt(heads)),
                      .later = left_at(b, c, side)};
    if (c->many)
        a.table = bed_at(b, side, c->table);
    else
        a.one = state_at(b, c, side, 0);
    cu_rows(b->stream, &a, c->ratio);
}

static void rows_one_by_one(bed *b, void *ctx, int side)
{
    const rows_case *c = ctx;
    bool bf16 = b->numerics == DSV4_DEPLOYED;
    cu_later left = left_at(b, c, side);
    float *q = bed_at(b, side, c->q_lora), *row = bed_at(b, side, c->kv_row);
    if (left.m != NULL)
        cu_hc_gates(b->stream, left.m, 1, &left.gates);
    cu_rmsnorm(b->stream, q, bed_at(b, side, c->q_norm), 1e-6f, c->n, c->q_dim, q, bf16);
    if (bf16)
        cu_round_fp8(b->stream, q, bed_at(b, side, c->q8), c->n, c->q_dim, c->q_dim, c->q_dim,
                     cu_fp8_block(c->q_dim), NULL);
    cu_rmsnorm(b->stream, row, bed_at(b, side, c->kv_norm), 1e-6f, c->n, c->dim, row, bf16);
    cu_rope(b->stream, row, c->n, 1, c->dim, c->rope, bed_at(b, side, c->cosine),
            bed_at(b, side, c->sine), false, bf16);
    if (b->numerics != DSV4_MATH)
        cu_round_fp8(b->stream, row, row, c->n, c->dim, c->dim, c->dim - c->rope, KV_BLOCK, NULL);
    for (int64_t i = 0; i < (c->many ? c->n : 1); i++) {
        cu_row_state s = state_at(b, c, side, i);
        int64_t tokens = c->many ? 1 : c->n;
        cu_window_store(b->stream, row + i * c->dim, s.pos, tokens, c->dim, s.window_ring,
                        s.window);
        for (int index = 0; index < 2 && c->compresses; index++) {
            const cu_compressor *to = index ? &s.indexer : &s.compressor;
            int64_t at = i * lanes_of(c) * to->dim;
            if (index && c->ratio != 4)
                break;
            cu_compressor_store(
                b->stream, to, (float *)bed_at(b, side, index ? c->index_kv : c->kv) + at,
                (float *)bed_at(b, side, index ? c->index_z : c->z) + at, s.pos, tokens);
            cu_compressor_emit(b->stream, to, s.pos, tokens);
        }
    }
    if (c->ratio == 4)
        cu_index_weights(b->stream, bed_at(b, side, c->index_w), c->n, c->index_heads, c->index_dim,
                         bf16);
}

/* Positions in ratios: whether the token completes a row, and how often the rings have turned. */
static void rows_pieces(bed *b, rows_case *c, int64_t pos0)
{
    int64_t states = c->many ? c->n : 1, lanes = lanes_of(c);
    int ratio = c->ratio > 0 ? c->ratio : 1;
    int64_t *pos = bed_ints(b, "positions", (size_t)c->n * sizeof *pos, &c->pos);
    for (int64_t i = 0; pos != NULL && i < c->n; i++)
        pos[i] = pos0 + i;
    bed_ints(b, "states", (size_t)c->n * sizeof(cu_row_state), &c->table);
    b->pieces[c->table].aside = true;
    c->left = bed_plain(b, "gates left", 76);
    c->q_lora = bed_input(b, "q_lora", c->n * c->q_dim);
    c->q8 = bed_result(b, "q8", c->n * c->q_dim);
    c->q_norm = bed_plain(b, "q_norm", c->q_dim);
    c->kv_row = bed_input(b, "kv_row", c->n * c->dim);
    b->pieces[c->kv_row].aside = true; /* one by one it is worked on in place */
    c->kv_norm = bed_plain(b, "kv_norm", c->dim);
    c->cosine = bed_plain(b, "cosine", c->n * c->rope / 2);
    c->sine = bed_plain(b, "sine", c->n * c->rope / 2);
    c->inv_freq = bed_plain(b, "inv_freq", c->rope / 2);
    c->window = bed_plain(b, "window", states * c->window_ring * c->dim);
    c->index_w = bed_input(b, "index weights", c->n * c->index_heads);
    for (int index = 0; index < 2; index++) {
        int64_t dim = index ? c->index_dim : c->dim;
        int *const to[] = {
            index ? &c->index_kv : &c->kv,           index ? &c->index_z : &c->z,
            index ? &c->index_ape : &c->ape,         index ? &c->index_norm : &c->norm,
            index ? &c->index_ring_kv : &c->ring_kv, index ? &c->index_ring_z : &c->ring_z,
            index ? &c->index_out : &c->out};
        *to[0] = bed_input(b, index ? "indexer's kv" : "kv", c->n * lanes * dim);
        *to[1] = bed_input(b, index ? "indexer's z" : "z", c->n * lanes * dim);
        *to[2] = bed_plain(b, "ape", ratio * lanes * dim);
        *to[3] = bed_plain(b, "compressor's norm", dim);
        *to[4] =
            bed_plain(b, index ? "indexer's kv ring" : "kv ring", states * c->ring * lanes * dim);
        *to[5] =
            bed_plain(b, index ? "indexer's z ring" : "z ring", states * c->ring * lanes * dim);
        *to[6] =
            bed_plain(b, index ? "indexer's rows" : "compressed rows", states * CAP_ROWS * dim);
    }
}

void check_rows(bed *b)
{
    static const struct {
        int n, q_dim, dim, rope, index_dim, index_heads, ratio, pos0;
        bool many;
    } shapes[] = {
        {1, 1024, 512, 64, 128, 64, 4, 7, false}, {1, 1024, 512, 64, 128, 64, 128, 127, false},
        {1, 1024, 512, 64, 128, 64, 4, 6, false}, {1, 40, 48, 16, 32, 3, 0, 20, false},
        {3, 96, 80, 16, 32, 3, 4, 2, false},      {5, 130, 66, 2, 2, 1, 4, 9, true},
        {4, 96, 80, 16, 32, 3, 0, 30, true},      {3, 64, 34, 4, 4, 7, 128, 254, true},
        {17, 33, 20, 8, 8, 2, 4, 11, true}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        EACH_KIND(b)
        {
            char text[96];
            rows_case c = {.n = shapes[i].n,
                           .q_dim = shapes[i].q_dim,
                           .dim = shapes[i].dim,
                           .rope = shapes[i].rope,
                           .index_dim = shapes[i].index_dim,
                           .index_heads = shapes[i].index_heads,
                           .ratio = shapes[i].ratio,
                           .many = shapes[i].many,
                           .window_ring = 7 + shapes[i].n};
            c.compresses = c.ratio > 0 && (c.n == 1 || c.many);
            c.ring = 2 * c.ratio + 1;
            snprintf(text, sizeof text, "rows/q=%d,dim=%d,rope=%d,ratio=%d,pos=%d,n=%d%s",
                     (int)c.q_dim, c.dim, c.rope, c.ratio, shapes[i].pos0, (int)c.n,
                     c.many ? " states" : "");
            if (!cu_rows_take(c.q_dim, c.dim, c.index_dim) || !bed_wanted(b, text))
                continue;
            rows_pieces(b, &c, shapes[i].pos0);
            bed_run(b, rows_together, rows_one_by_one, rows_patch, &c);
        }
}

/* ---- scores: a token alone that turns its queries, and beside another ------------------------ */

typedef struct {
    int64_t n, n_rows;
    int heads, dim, rope;
    int q, rows, w, cosine, sine, pos, scores;
} scores_case;

static void scores_of(bed *b, const scores_case *c, int side, int64_t first, int64_t n, bool raw)
{
    int64_t angles = first * c->rope / 2;
    cu_turn turn = {(float *)bed_at(b, side, c->cosine) + angles,
                    (float *)bed_at(b, side, c->sine) + angles, c->rope};
    cu_indexer_scores(b->stream, (float *)bed_at(b, side, c->q) + first * c->heads * c->dim,
                      bed_at(b, side, c->rows), (float *)bed_at(b, side, c->w) + first * c->heads,
                      c->heads, c->dim, n, c->n_rows, (int64_t *)bed_at(b, side, c->pos) + first, 4,
                      b->numerics == DSV4_DEPLOYED,
                      (float *)bed_at(b, side, c->scores) + first * c->n_rows, c->n_rows,
                      raw ? &turn : NULL);
}

static void scores_alone(bed *b, void *ctx, int side)
{
    const scores_case *c = ctx;
    for (int64_t i = 0; i < c->n; i++)
        scores_of(b, c, side, i, 1, b->numerics == DSV4_MATH);
}

static void scores_side_by_side(bed *b, void *ctx, int side)
{
    const scores_case *c = ctx;
    if (b->numerics == DSV4_MATH)
        cu_rope(b->stream, bed_at(b, side, c->q), c->n, c->heads, c->dim, c->rope,
                bed_at(b, side, c->cosine), bed_at(b, side, c->sine), false, false);
    scores_of(b, c, side, 0, c->n, false);
}

void check_scores(bed *b)
{
    static const struct {
        int heads, dim, rope, pos0, rows;
    } shapes[] = {{64, 128, 64, 2050, 550}, {64, 128, 64, 9000, 2250}, {7, 36, 4, 3, 40},
                  {63, 64, 64, 70, 19},     {9, 20, 0, 199, 50},       {1, 4, 4, 35, 9}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        EACH_KIND(b)
        {
            char text[96];
            scores_case c = {.n = 2,
                             .n_rows = shapes[i].rows,
                             .heads = shapes[i].heads,
                             .dim = shapes[i].dim,
                             .rope = shapes[i].rope};
            snprintf(text, sizeof text, "scores_alone/heads=%d,dim=%d,rope=%d,pos=%d,rows=%d",
                     c.heads, c.dim, c.rope, shapes[i].pos0, shapes[i].rows);
            if (!cu_indexer_takes_raw(1, c.n_rows, c.heads, c.dim, c.rope) || !bed_wanted(b, text))
                continue;
            int64_t *pos = bed_ints(b, "positions", (size_t)c.n * sizeof *pos, &c.pos);
            for (int64_t t = 0; pos != NULL && t < c.n; t++)
                pos[t] = shapes[i].pos0 + t;
            c.q = bed_input(b, "q", c.n * c.heads * c.dim);
            b->pieces[c.q].aside = true; /* side by side it is worked on in place */
            c.rows = bed_input(b, "rows", c.n_rows * c.dim);
            c.w = bed_input(b, "weights", c.n * c.heads);
            c.cosine = bed_plain(b, "cosine", c.n * c.rope / 2);
            c.sine = bed_plain(b, "sine", c.n * c.rope / 2);
            c.scores = bed_result(b, "scores", c.n * c.n_rows);
            bed_run(b, scores_alone, scores_side_by_side, NULL, &c);
        }
}

/* ---- attention: its queries as the product gave them, its results turned back ---------------- */

typedef struct {
    cu_attention_args a;
    int q, window, rows, topk, sink, scratch, cosine, sine, pos, out;
} attention_case;

static cu_attention_args attention_at(const bed *b, const attention_case *c, int side)
{
    cu_attention_args a = c->a;
    a.pos0 = bed_at(b, side, c->pos);
    a.q = bed_at(b, side, c->q);
    a.window = bed_at(b, side, c->window);
    a.rows = bed_at(b, side, c->rows);
    a.topk = a.ratio == 4 ? bed_at(b, side, c->topk) : NULL;
    a.sink = bed_at(b, side, c->sink);
    a.scratch = bed_at(b, side, c->scratch);
    a.cosine = bed_at(b, side, c->cosine);
    a.sine = bed_at(b, side, c->sine);
    a.eps = 1e-6f;
    return a;
}

static void attention_together(bed *b, void *ctx, int side)
{
    const attention_case *c = ctx;
    cu_attention_args a = attention_at(b, c, side);
    cu_attention(b->stream, &a, bed_at(b, side, c->out), b->numerics == DSV4_DEPLOYED);
}

static void attention_one_by_one(bed *b, void *ctx, int side)
{
    const attention_case *c = ctx;
    cu_attention_args a = attention_at(b, c, side);
    float *q = bed_at(b, side, c->q), *out = bed_at(b, side, c->out);
    bool bf16 = b->numerics == DSV4_DEPLOYED;
    a.raw = a.back = false;
    if (c->a.raw) {
        cu_head_norm(b->stream, q, a.eps, a.n * a.heads, a.dim, bf16);
        cu_rope(b->stream, q, a.n, a.heads, a.dim, a.rope, a.cosine, a.sine, false, bf16);
    }
    cu_attention(b->stream, &a, out, bf16);
    if (c->a.back)
        cu_rope(b->stream, out, a.n, a.heads, a.dim, a.rope, a.cosine, a.sine, true, bf16);
}

typedef struct {
    int n, heads, dim, rope, window, ratio, k, pos0;
    bool back;
} attention_shape;

static void attention_runs(bed *b, const char *what, bool raw, bool settled,
                           const attention_shape *of)
{
    char text[112];
    int ratio = of->ratio, k = of->k;
    int64_t n = of->n, heads = of->heads, dim = of->dim;
    int64_t most = ratio > 0 ? (of->pos0 + n) / ratio : 0;
    attention_case c = {.a = {.n = n,
                              .heads = of->heads,
                              .dim = of->dim,
                              .window_size = of->window,
                              .window_ring = of->window - 1 + n,
                              .ratio = ratio,
                              .most_rows = most,
                              .k = k,
                              .raw = raw,
                              .settled = settled,
                              .back = of->back,
                              .rope = of->rope}};
    c.a.splits = cu_attention_splits(of->window + (ratio == 4 ? k : most));
    snprintf(text, sizeof text, "%s/heads=%d,dim=%d,rope=%d,window=%d,ratio=%d,pos=%d,n=%d%s%s",
             what, of->heads, of->dim, of->rope, of->window, ratio, of->pos0, of->n,
             raw && of->back ? " back" : "", settled ? " settled" : "");
    if ((of->back && !cu_attention_turns(n, of->dim, of->rope)) ||
        (raw && !cu_attention_takes_raw(n, of->dim, of->rope)) || !bed_wanted(b, text))
        return;
    int64_t *pos = bed_ints(b, "position", sizeof *pos, &c.pos);
    if (pos != NULL)
        *pos = of->pos0;
    c.q = bed_input(b, "q", n * heads * dim);
    b->pieces[c.q].aside = raw; /* one by one it is worked on in place */
    c.window = bed_input(b, "window", c.a.window_ring * dim);
    c.rows = bed_input(b, "rows", (most > 0 ? most : 1) * dim);
    int32_t *top = bed_ints(b, "topk", (size_t)(n * k) * sizeof *top, &c.topk);
    for (int64_t t = 0; top != NULL && t < n; t++) {
        int64_t seen = ratio > 0 ? (of->pos0 + t + 1) / ratio : 0;
        for (int64_t j = 0; j < k; j++) /* the last ones first, then no more */
            top[t * k + j] = j < seen ? (int32_t)(seen - 1 - j) : -1;
    }
    c.sink = bed_plain(b, "sink", heads);
    c.scratch = bed_scratch(b, "scratch", cu_attention_scratch(n, of->heads, of->dim, c.a.splits));
    c.cosine = bed_plain(b, "cosine", n * of->rope / 2);
    c.sine = bed_plain(b, "sine", n * of->rope / 2);
    c.out = bed_result(b, "out", n * heads * dim);
    bed_run(b, attention_together, attention_one_by_one, NULL, &c);
}

void check_attention(bed *b)
{
    static const attention_shape shapes[] = {
        {1, 64, 512, 64, 128, 4, 512, 4095, true}, {1, 5, 48, 16, 8, 0, 0, 3, true},
        {3, 9, 80, 16, 20, 4, 6, 77, true},        {1, 63, 20, 4, 8, 128, 0, 515, true},
        {2, 8, 256, 32, 20, 4, 16, 9, true},       {1, 3, 34, 2, 4, 4, 3, 0, true}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        EACH_KIND(b)
        {
            attention_runs(b, "attention_turned", false, false, &shapes[i]);
        }
}

/* Heads wider than a warp's row of angles; fewer than eight; some without a value that is not
 * finite beside others that have one; the first token; rows for three rounds of a block; and all
 * that once more by blocks that take for settled what is. */
void check_raw_attention(bed *b)
{
    static const attention_shape shapes[] = {
        {1, 64, 512, 64, 128, 4, 512, 4095, true}, {1, 64, 512, 64, 128, 128, 0, 4095, true},
        {1, 64, 512, 64, 128, 0, 0, 300, false},   {2, 9, 36, 4, 20, 4, 6, 77, true},
        {1, 5, 48, 16, 8, 0, 0, 3, true},          {2, 8, 256, 200, 20, 4, 16, 9, false},
        {1, 3, 500, 500, 4, 4, 3, 0, true},        {1, 9, 260, 32, 300, 0, 0, 1000, true},
        {1, 17, 512, 64, 128, 0, 0, 90, true},     {2, 17, 80, 0, 40, 128, 0, 515, false},
        {1, 1, 132, 32, 700, 2, 0, 2000, true}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        EACH_KIND(b)
        {
            attention_runs(b, "attention_raw", true, false, &shapes[i]);
            attention_runs(b, "attention_raw", true, true, &shapes[i]);
        }
}
