/* compositions_mhc.c - what lies between sublayers and between the experts' products: swiglu_both,
 * leave, hc_enter with the end of the sublayer before. */
#include "compositions.h"

#include <stdio.h>
#include <string.h>

/* ---- swiglu_both ---------------------------------------------------------------------------- */

typedef struct {
    int64_t n[2], width[2];
    int block[2], gate[2], up[2], share;
} swiglu_case;

enum { SWIGLU_LIMIT = 10 };

static void swiglu_together(bed *b, void *ctx, int side)
{
    const swiglu_case *c = ctx;
    cu_swiglu_rows r[2];
    for (int i = 0; i < 2; i++) {
        float *gate = bed_at(b, side, c->gate[i]);
        r[i] = (cu_swiglu_rows){gate,
                                bed_at(b, side, c->up[i]),
                                i == 0 ? (const float *)bed_at(b, side, c->share) : NULL,
                                gate,
                                c->n[i],
                                c->width[i],
                                c->block[i]};
    }
    cu_swiglu_both(b->stream, &r[0], &r[1], SWIGLU_LIMIT, b->numerics == DSV4_DEPLOYED);
}

static void swiglu_one_by_one(bed *b, void *ctx, int side)
{
    const swiglu_case *c = ctx;
    for (int i = 0; i < 2; i++) {
        float *gate = bed_at(b, side, c->gate[i]);
        cu_swiglu(b->stream, gate, bed_at(b, side, c->up[i]), SWIGLU_LIMIT, c->n[i], c->width[i],
                  i == 0 ? bed_at(b, side, c->share) : NULL, b->numerics == DSV4_DEPLOYED, gate);
        if (c->block[i] > 0)
            cu_round_fp8(b->stream, gate, gate, c->n[i], c->width[i], c->width[i], c->width[i],
                         c->block[i], NULL);
    }
}

void check_swiglu(bed *b)
{
    static const int shapes[][3] = {{6, 2048, 1}, {3, 96, 2}, {1, 1, 1}, {17, 130, 3}, {8, 160, 5}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        EACH_KIND(b)
        {
            char text[96];
            int64_t n = shapes[i][0], width = shapes[i][1], tokens = shapes[i][2];
            snprintf(text, sizeof text, "swiglu_both/width=%d,n=%d,shared=%d", (int)width, (int)n,
                     (int)tokens);
            if (!bed_wanted(b, text))
                continue;
            int block = b->numerics == DSV4_DEPLOYED ? cu_fp8_block(width) : 0;
            swiglu_case c = {
                {n, tokens}, {width, width}, {block, i % 2 == 0 ? block : 0}, {0}, {0}, 0};
            for (int k = 0; k < 2; k++) {
                c.gate[k] = bed_input(b, "gate", c.n[k] * width);
                c.up[k] = bed_input(b, "up", c.n[k] * width);
            }
            c.share = bed_plain(b, "share", n);
            bed_run(b, swiglu_together, swiglu_one_by_one, NULL, &c);
        }
}

/* ---- mHC: leave, and enter with what was left ------------------------------------------------ */

typedef struct {
    int64_t n, dim;
    int hc, k; /* k == 0: not the experts' end, but attention's */
    bool norms;
    int y, experts, shared, block, sum, streams, out, comb, post, pre;
    int fn, base, scale, norm, m, mix, tickets, x, normed;
    int logits, chosen, weights; /* of a router that takes along the gates that are left */
} mhc_case;

enum { ROUTED = 8 };

static void leave_together(bed *b, void *ctx, int side)
{
    const mhc_case *c = ctx;
    cu_leave(b->stream, bed_at(b, side, c->y), bed_at(b, side, c->experts), c->k,
             bed_at(b, side, c->shared), bed_at(b, side, c->streams), bed_at(b, side, c->post),
             bed_at(b, side, c->comb), c->n, c->hc, c->dim, bed_at(b, side, c->out),
             b->numerics == DSV4_DEPLOYED);
}

static void leave_one_by_one(bed *b, void *ctx, int side)
{
    const mhc_case *c = ctx;
    bool bf16 = b->numerics == DSV4_DEPLOYED;
    float *in = bed_at(b, side, c->k > 0 ? c->sum : c->block);
    if (c->k > 0) {
        cu_expert_sum(b->stream, bed_at(b, side, c->y), bed_at(b, side, c->experts), c->n, c->k,
                      c->dim, in);
        cu_add(b->stream, in, bed_at(b, side, c->shared), c->n * c->dim, bf16);
    }
    cu_hc_post(b->stream, in, bed_at(b, side, c->streams), bed_at(b, side, c->post),
               bed_at(b, side, c->comb), c->n, c->hc, c->dim, bed_at(b, side, c->out), bf16);
}

/* The end of a sublayer: an expert may be listed twice. */
static void left_pieces(bed *b, mhc_case *c)
{
    int64_t all = c->n * c->dim;
    c->y = bed_input(b, "y", all * (c->k > 0 ? c->k : 1));
    c->shared = bed_input(b, "shared", all);
    c->block = bed_input(b, "block", all);
    c->sum = bed_scratch(b, "sum", all);
    int32_t *e = bed_ints(b, "experts", (size_t)(c->n * c->k) * sizeof *e, &c->experts);
    for (int64_t i = 0; e != NULL && i < c->n * c->k; i++)
        e[i] = (int32_t)(bed_bits(b) % (unsigned)(c->k + 2));
    c->streams = bed_input(b, "streams", all * c->hc);
    c->out = bed_result(b, "out", all * c->hc);
    c->post = bed_plain(b, "post", c->n * c->hc);
    c->comb = bed_plain(b, "comb", c->n * c->hc * c->hc);
}

void check_leave(bed *b)
{
    static const int shapes[][4] = {
        {1, 4, 4096, 6}, {5, 4, 130, 8}, {2, 3, 65, 1}, {1, 16, 40, 11}, {17, 4, 1, 2}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        EACH_KIND(b)
        {
            char text[96];
            mhc_case c = {
                .n = shapes[i][0], .hc = shapes[i][1], .dim = shapes[i][2], .k = shapes[i][3]};
            snprintf(text, sizeof text, "leave/hc=%d,dim=%d,k=%d,n=%d", c.hc, (int)c.dim, c.k,
                     (int)c.n);
            if (!cu_leave_takes(c.k) || !bed_wanted(b, text))
                continue;
            left_pieces(b, &c);
            bed_run(b, leave_together, leave_one_by_one, NULL, &c);
        }
}

static cu_tensor fn_at(const bed *b, const mhc_case *c, int side)
{
    int64_t width = c->hc * c->dim;
    return (cu_tensor){.type = DSV4_F32,
                       .data = bed_at(b, side, c->fn),
                       .rows = (2 + c->hc) * c->hc,
                       .cols = width,
                       .row_bytes = (size_t)width * sizeof(float),
                       .scale_rows = 1,
                       .scale_cols = 1};
}

static cu_gates gates_at(const bed *b, const mhc_case *c, int side)
{
    enum { PASSES = 20 };
    return (cu_gates){bed_at(b, side, c->scale),
                      bed_at(b, side, c->base),
                      c->hc,
                      PASSES,
                      1e-6f,
                      bed_at(b, side, c->pre),
                      bed_at(b, side, c->post),
                      bed_at(b, side, c->comb)};
}

static void enter_together(bed *b, void *ctx, int side)
{
    const mhc_case *c = ctx;
    cu_tensor fn = fn_at(b, c, side);
    cu_gates g = gates_at(b, c, side);
    cu_left left = {.block = c->k > 0 ? NULL : bed_at(b, side, c->block),
                    .y = bed_at(b, side, c->y),
                    .experts = bed_at(b, side, c->experts),
                    .shared = bed_at(b, side, c->shared),
                    .k = c->k,
                    .streams = bed_at(b, side, c->streams),
                    .out = bed_at(b, side, c->out)};
    cu_later later;
    cu_hc_enter(b->stream, &fn, left.out, 1e-6f, c->n, bed_at(b, side, c->m),
                bed_at(b, side, c->mix), bed_at(b, side, c->tickets), &g, bed_at(b, side, c->norm),
                bed_at(b, side, c->x), c->norms ? bed_at(b, side, c->normed) : NULL,
                b->numerics == DSV4_DEPLOYED, &left, &later);
    if (later.m != NULL && c->k > 0)
        cu_router(b->stream, bed_at(b, side, c->logits), NULL, NULL, NULL, 1, ROUTED, 2, 1.0f,
                  bed_at(b, side, c->chosen), bed_at(b, side, c->weights), NULL, &later);
    else if (later.m != NULL)
        cu_hc_gates(b->stream, later.m, 1, &later.gates);
}

static void enter_one_by_one(bed *b, void *ctx, int side)
{
    const mhc_case *c = ctx;
    cu_tensor fn = fn_at(b, c, side);
    cu_gates g = gates_at(b, c, side);
    float *out = bed_at(b, side, c->out), *x = bed_at(b, side, c->x);
    bool bf16 = b->numerics == DSV4_DEPLOYED;
    leave_one_by_one(b, ctx, side);
    cu_hc_mix(b->stream, &fn, out, 1e-6f, c->n, bed_at(b, side, c->m), bed_at(b, side, c->mix),
              bed_at(b, side, c->tickets), &g);
    cu_hc_collapse(b->stream, out, g.pre, c->n, c->hc, c->dim, x, bf16);
    if (c->norms)
        cu_rmsnorm(b->stream, x, bed_at(b, side, c->norm), 1e-6f, c->n, c->dim,
                   bed_at(b, side, c->normed), bf16);
}

void check_enter(bed *b)
{
    /* n, dim, experts (0: attention's end), with the norm behind it */
    static const int shapes[][4] = {
        {1, 4096, 6, 1}, {1, 4096, 0, 1}, {3, 256, 6, 1}, {1, 64, 8, 0},    {2, 192, 1, 1},
        {17, 128, 0, 1}, {33, 64, 2, 1},  {9, 128, 0, 0}, {17, 4096, 2, 1}, {1, 64, 3, 1}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        EACH_KIND(b)
        {
            char text[96];
            mhc_case c = {.n = shapes[i][0],
                          .hc = 4,
                          .dim = shapes[i][1],
                          .k = shapes[i][2],
                          .norms = shapes[i][3] != 0};
            int64_t rows = (2 + c.hc) * c.hc, width = c.hc * c.dim;
            cu_tensor fn = fn_at(b, &c, 0);
            cu_gates g = {.hc = c.hc};
            snprintf(text, sizeof text, "hc_enter/dim=%d,k=%d,n=%d%s", (int)c.dim, c.k, (int)c.n,
                     c.norms ? ",norm" : "");
            fn.data = b->device[0]; /* aligned as the weights are */
            if (!cu_hc_passes(&fn, &g, c.k) || !bed_wanted(b, text))
                continue;
            left_pieces(b, &c);
            c.fn = bed_plain(b, "fn", rows * width);
            c.base = bed_plain(b, "base", rows);
            c.scale = bed_plain(b, "scale", 3);
            c.norm = bed_plain(b, "norm", c.dim);
            c.pre = bed_result(b, "pre", c.n * c.hc);
            c.m = bed_result(b, "m", c.n * rows);
            c.mix = bed_scratch(b, "scratch", cu_hc_mix_scratch(rows, width, c.n));
            bed_ints(b, "tickets", (size_t)c.n * sizeof(uint32_t), &c.tickets);
            c.x = bed_result(b, "x", c.n * c.dim);
            c.logits = bed_plain(b, "logits", ROUTED);
            c.chosen = bed_scratch(b, "chosen", ROUTED);
            c.weights = bed_scratch(b, "weights", ROUTED);
            c.normed = bed_result(b, "y", c.n * c.dim);
            /* The blocks of the cluster add up their squares in an order of their own: a few
             * roundings of one factor, and a rounding to bf16 that they turn. */
            b->pieces[c.normed].relative = b->numerics == DSV4_DEPLOYED ? 0x1p-7f : 0x1p-20f;
            bed_run(b, enter_together, enter_one_by_one, NULL, &c);
        }
}

/* ---- how a step begins ---------------------------------------------------------------------- */

enum { VOCABULARY = 19, COPIES = 4 };

typedef struct {
    int64_t n, dim, half, words;
    bool apart, device; /* positions one by one; tokens on the device */
    int table, positions, ids, positions_to, ids_to, x, freq[2], cosine[2], sine[2];
} begin_case;

static cu_step_args step_at(const bed *b, const begin_case *c, int side)
{
    cu_step_args a = {.n = c->n,
                      .positions_to = bed_at(b, side, c->positions_to),
                      .n_positions = (int)c->words,
                      .apart = c->apart,
                      .ids = c->device ? bed_at(b, side, c->ids) : NULL,
                      .ids_to = bed_at(b, side, c->ids_to),
                      .table = {.type = DSV4_F32,
                                .data = bed_at(b, side, c->table),
                                .rows = VOCABULARY,
                                .cols = c->dim,
                                .row_bytes = (size_t)c->dim * sizeof(float),
                                .scale_rows = 1,
                                .scale_cols = 1},
                      .copies = COPIES,
                      .half = (int)c->half,
                      .bf16 = b->numerics == DSV4_DEPLOYED,
                      .x = bed_at(b, side, c->x)};
    const int32_t *e = bed_image(b, side, c->ids);
    for (int64_t i = 0; i < c->n && !c->device; i++)
        a.token[i] = e[i];
    memcpy(a.position, bed_image(b, side, c->positions), (size_t)c->words * sizeof *a.position);
    for (int i = 0; i < 2; i++) {
        a.inv_freq[i] = bed_at(b, side, c->freq[i]);
        a.cosine[i] = bed_at(b, side, c->cosine[i]);
        a.sine[i] = bed_at(b, side, c->sine[i]);
    }
    return a;
}

static void begin_together(bed *b, void *ctx, int side)
{
    cu_step_args a = step_at(b, ctx, side);
    cu_begin_step(b->stream, &a);
}

static void begin_one_by_one(bed *b, void *ctx, int side)
{
    const begin_case *c = ctx;
    cu_step_args a = step_at(b, c, side);
    const int64_t *positions = bed_at(b, side, c->positions);
    const int32_t *ids = bed_at(b, side, c->ids);
    cu_on_device(b->stream, a.positions_to, positions, (size_t)c->words * sizeof *positions,
                 b->name);
    if (!c->device)
        cu_on_device(b->stream, a.ids_to, ids, (size_t)c->n * sizeof *ids, b->name);
    cu_embed(b->stream, &a.table, ids, c->n, a.copies, a.bf16, a.x);
    for (int i = 0; i < 2; i++)
        cu_rope_angles(b->stream, a.inv_freq[i], a.half, positions, c->apart ? NULL : positions,
                       c->n, a.cosine[i], a.sine[i]);
}

void check_begin(bed *b)
{
    /* n, dim, half, positions one by one, tokens on the device */
    static const int shapes[][5] = {
        {1, 4096, 32, 0, 0}, {1, 129, 1, 0, 0}, {7, 64, 80, 0, 1}, {3, 1, 32, 1, 0}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        EACH_KIND(b)
        {
            const int *s = shapes[i];
            begin_case c = {.n = s[0], .dim = s[1], .half = s[2], .apart = s[3], .device = s[4]};
            char text[96];
            snprintf(text, sizeof text, "begin_step/dim=%d,half=%d,n=%d", s[1], s[2], s[0]);
            if (!bed_wanted(b, text))
                continue;
            c.words = c.apart ? c.n : 2;
            c.table = bed_input(b, "table", VOCABULARY * c.dim);
            int64_t *p = bed_ints(b, "positions", (size_t)c.words * sizeof *p, &c.positions);
            for (int64_t k = 0; p != NULL && k < c.words; k++)
                p[k] = bed_bits(b) % 1048576;
            int32_t *e = bed_ints(b, "ids", (size_t)c.n * sizeof *e, &c.ids);
            for (int64_t k = 0; e != NULL && k < c.n; k++)
                e[k] = (int32_t)(bed_bits(b) % VOCABULARY);
            bed_ints(b, "step's positions", (size_t)c.words * sizeof *p, &c.positions_to);
            bed_ints(b, "step's tokens", (size_t)c.n * sizeof *e, &c.ids_to);
            c.x = bed_result(b, "x", c.n * COPIES * c.dim);
            for (int k = 0; k < 2; k++) {
                c.freq[k] = bed_plain(b, "inv_freq", c.half);
                c.cosine[k] = bed_result(b, "cosine", c.n * c.half);
                c.sine[k] = bed_result(b, "sine", c.n * c.half);
            }
            bed_run(b, begin_together, begin_one_by_one, NULL, &c);
        }
}
