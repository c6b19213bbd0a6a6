/* table.c - the operator table over host memory: arguments are copied to the device, the kernel
 * runs, results are copied back. This is how the checker of operators reaches every CUDA kernel.
 *
 * All of a call's buffers lie in one stretch of device memory with bands of a known pattern between
 * them. When calls are checked (dsv4_cuda_check_calls) the bands and the inputs must come back
 * unchanged, and the kernel runs twice, over outputs poisoned in two ways: both runs must give the
 * same bits. */
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "optimized/optimized.h"
#include "reference/formats/formats.h"

enum { MOST_SLOTS = 128, BAND = 256 };
static const uint8_t band_pattern = 0xc3, poisons[2] = {0xff, 0x7b};

typedef enum { IN, OUT, INOUT, SCRATCH, ZERO } use;

typedef struct {
    use use;
    void *host;
    size_t bytes, at; /* at: offset in the stretch */
} slot;

typedef struct {
    const char *op;
    int64_t size;
    slot slots[MOST_SLOTS];
    int n, round;
    size_t bytes;
    bool ok;
    uint8_t *device, *staged, *back, *first; /* stretch; its image before, after, of run one */
    cu_stream stream;
} frame;

static bool checking;

void dsv4_cuda_check_calls(bool on)
{
    checking = on;
}

/* ---- a call --------------------------------------------------------------------------------- */

static int need(frame *f, use how, const void *host, int64_t count, size_t size)
{
    slot *s = &f->slots[f->n];
    *s = (slot){how, (void *)(uintptr_t)host, (size_t)count * size, f->bytes + BAND};
    f->bytes = (s->at + s->bytes + BAND - 1) / BAND * BAND;
    return f->n++;
}

static int in_floats(frame *f, const float *x, int64_t n)
{
    return need(f, IN, x, n, sizeof *x);
}

static int out_floats(frame *f, float *x, int64_t n)
{
    return need(f, OUT, x, n, sizeof *x);
}

static int scratch_floats(frame *f, int64_t n)
{
    return need(f, SCRATCH, NULL, n, sizeof(float));
}

/* Device address of a slot; NULL for what was NULL on the host. */
static void *at(const frame *f, int number)
{
    const slot *s = &f->slots[number];
    bool absent = s->host == NULL && s->use != SCRATCH && s->use != ZERO;
    return absent ? NULL : f->device + s->at;
}

static void end(frame *f)
{
    cu_delete(f->device);
    cu_delete_stream(f->stream);
    free(f->staged);
    free(f->back);
    free(f->first);
    f->device = f->staged = f->back = f->first = NULL;
    f->stream = NULL;
}

/* Device memory and the image of what goes there; the caller may still fill slots of the image. */
static bool begin(frame *f)
{
    dsv4_error err = {""};
    f->bytes += BAND;
    f->ok = cu_open(&err) == DSV4_OK;
    if (f->ok) {
        f->staged = dsv4_alloc(f->bytes, 1, "a CUDA call", &err);
        f->back = dsv4_alloc(f->bytes, 1, "a CUDA call", &err);
        f->first = dsv4_alloc(f->bytes, 1, "a CUDA call", &err);
        f->device = cu_new(f->bytes, f->op, &err);
        f->stream = cu_new_stream(&err);
        f->ok = f->staged && f->back && f->first && f->device && f->stream;
    }
    if (!f->ok) {
        cu_book(f->op, f->size, err.text);
        end(f);
        return false;
    }
    memset(f->staged, band_pattern, f->bytes);
    for (int i = 0; i < f->n; i++) {
        slot *s = &f->slots[i];
        if ((s->use == IN || s->use == INOUT) && s->host != NULL)
            memcpy(f->staged + s->at, s->host, s->bytes);
        else
            memset(f->staged + s->at, s->use == ZERO ? 0 : poisons[0], s->bytes);
    }
    return true;
}

/* The image to the device; false = the call is over. Use: if (begin()) while (run()) launch; */
static bool run(frame *f)
{
    if (f->ok && f->round > 0) { /* the launch before is done: look at what it left */
        f->ok =
            cu_wait(f->stream, f->op) && cu_to_host(f->stream, f->back, f->device, f->bytes, f->op);
        size_t end_of_last = 0;
        for (int i = 0; f->ok && checking && i <= f->n; i++) {
            size_t until = i < f->n ? f->slots[i].at : f->bytes;
            for (size_t b = end_of_last; b < until && f->ok; b++)
                if (f->back[b] != band_pattern) {
                    cu_book(f->op, f->size, "wrote outside its buffers");
                    f->ok = false;
                }
            if (i == f->n)
                break;
            const slot *s = &f->slots[i];
            end_of_last = s->at + s->bytes;
            if (f->ok && s->use == IN &&
                memcmp(f->back + s->at, f->staged + s->at, s->bytes) != 0) {
                cu_book(f->op, f->size, "an input was overwritten on the device");
                f->ok = false;
            }
            bool result = s->use == OUT || s->use == INOUT;
            if (f->ok && f->round == 2 && result &&
                memcmp(f->back + s->at, f->first + s->at, s->bytes) != 0) {
                cu_book(f->op, f->size, "two runs differ, or part of the output was not written");
                f->ok = false;
            }
        }
    }
    int rounds = checking ? 2 : 1;
    if (!f->ok || f->round == rounds) {
        for (int i = 0; f->ok && i < f->n; i++) {
            const slot *s = &f->slots[i];
            if ((s->use == OUT || s->use == INOUT) && s->host != NULL)
                memcpy(s->host, f->back + s->at, s->bytes);
        }
        end(f);
        return false;
    }
    if (f->round == 1) {
        memcpy(f->first, f->back, f->bytes);
        for (int i = 0; i < f->n; i++)
            if (f->slots[i].use == OUT || f->slots[i].use == SCRATCH)
                memset(f->staged + f->slots[i].at, poisons[1], f->slots[i].bytes);
    }
    f->round++;
    f->ok = cu_to_device(f->stream, f->device, f->staged, f->bytes, f->op);
    return f->ok || run(f);
}

/* ---- weights -------------------------------------------------------------------------------- */

typedef struct {
    cu_tensor t; /* without addresses */
    int data, scale;
    float *floats; /* the rows decoded, if the kernels do not know the type */
} weights;

static weights in_weights(frame *f, const dsv4_tensor *w)
{
    weights r = {.t = {.type = (int)w->type,
                       .rows = w->rows,
                       .cols = w->cols,
                       .row_bytes = w->row_bytes,
                       .scale_rows = w->scale_rows > 0 ? w->scale_rows : 1,
                       .scale_cols = w->scale_cols > 0 ? w->scale_cols : 1},
                 .scale = -1};
    if (!cu_type_native((int)w->type)) {
        r.floats = dsv4_alloc((size_t)(w->rows * w->cols), sizeof *r.floats, "weights", NULL);
        for (int64_t row = 0; r.floats != NULL && row < w->rows; row++)
            dsv4_tensor_row(w, row, r.floats + row * w->cols);
        r.t.type = DSV4_F32;
        r.t.row_bytes = (size_t)w->cols * sizeof *r.floats;
        r.t.scale_rows = r.t.scale_cols = 1;
        r.data = in_floats(f, r.floats, w->rows * w->cols);
        return r;
    }
    r.data = need(f, IN, w->data + (size_t)w->row0 * w->row_bytes, w->rows, w->row_bytes);
    if (w->scale != NULL) {
        int64_t first = w->row0 / w->scale_rows;
        int64_t last = w->rows > 0 ? (w->row0 + w->rows - 1) / w->scale_rows : first;
        r.t.row0 = (int)(w->row0 - first * w->scale_rows);
        r.t.scale_row_bytes = w->scale_row_bytes;
        r.scale = need(f, IN, w->scale + (size_t)first * w->scale_row_bytes, last - first + 1,
                       w->scale_row_bytes);
    }
    return r;
}

static cu_tensor weights_at(const frame *f, const weights *w)
{
    cu_tensor t = w->t;
    t.data = at(f, w->data);
    t.scale = w->scale >= 0 ? at(f, w->scale) : NULL;
    return t;
}

/* ---- operators ------------------------------------------------------------------------------ */

static void embed(const dsv4_tensor *table, const int32_t *ids, int64_t n, float *x)
{
    frame f = {.op = "embed", .size = n * table->cols};
    weights w = in_weights(&f, table);
    int i = need(&f, IN, ids, n, sizeof *ids), o = out_floats(&f, x, n * table->cols);
    if (begin(&f))
        while (run(&f)) {
            cu_tensor t = weights_at(&f, &w);
            cu_embed(f.stream, &t, at(&f, i), n, 1, false, at(&f, o));
        }
    free(w.floats);
}

static bool all_bf16(const float *x, int64_t ldx, int64_t n, int64_t cols)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < cols; c++) {
            uint32_t bits;
            memcpy(&bits, &x[i * ldx + c], sizeof bits);
            if ((bits & 0xffffu) != 0)
                return false;
        }
    return true;
}

static void linear(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                   int64_t ldy)
{
    if (n == 0)
        return;
    frame f = {.op = "linear", .size = n * w->rows * w->cols};
    weights m = in_weights(&f, w);
    int i = in_floats(&f, x, (n - 1) * ldx + w->cols);
    /* What lies between the rows of y must survive: it goes in too. Dense results are poisoned. */
    int o = need(&f, ldy == w->rows ? OUT : INOUT, y, (n - 1) * ldy + w->rows, sizeof *y);
    bool bf16 = all_bf16(x, ldx, n, w->cols);
    size_t bytes = (size_t)(n * (w->cols + 127)) * (bf16 ? 3 : 7) + 4096;
    int r = need(&f, SCRATCH, NULL, (int64_t)bytes, 1);
    if (begin(&f))
        while (run(&f)) {
            cu_segment g = {.w = weights_at(&f, &m),
                            .x = at(&f, i),
                            .ldx = ldx,
                            .y = at(&f, o),
                            .ldy = ldy,
                            .x_bf16 = bf16,
                            .one_order = bf16};
            cu_gemm_large_tiles(f.round == 2); /* the same bits from tiles of either size */
            cu_products(f.stream, &g, 1, n, &(cu_room){at(&f, r), bytes});
        }
    cu_gemm_large_tiles(false);
    free(m.floats);
}

static void rmsnorm(const float *x, const float *w, float eps, int64_t n, int64_t dim, float *y)
{
    frame f = {.op = "rmsnorm", .size = n * dim};
    bool in_place = x == y;
    int i = need(&f, in_place ? INOUT : IN, x, n * dim, sizeof *x), v = in_floats(&f, w, dim);
    int o = in_place ? i : out_floats(&f, y, n * dim);
    if (begin(&f))
        while (run(&f))
            cu_rmsnorm(f.stream, at(&f, i), at(&f, v), eps, n, dim, at(&f, o), false);
}

static void head_norm(float *q, float eps, int64_t n, int64_t dim, bool bf16)
{
    frame f = {.op = "head_norm", .size = n * dim};
    int i = need(&f, INOUT, q, n * dim, sizeof *q);
    if (begin(&f))
        while (run(&f))
            cu_head_norm(f.stream, at(&f, i), eps, n, dim, bf16);
}

static void rope_angles(const float *inv_freq, int half, const int64_t *positions, int64_t n,
                        float *cosine, float *sine)
{
    frame f = {.op = "rope_angles", .size = n * half};
    int v = in_floats(&f, inv_freq, half), p = need(&f, IN, positions, n, sizeof *positions);
    int c = out_floats(&f, cosine, n * half), s = out_floats(&f, sine, n * half);
    if (begin(&f))
        while (run(&f))
            cu_rope_angles(f.stream, at(&f, v), half, at(&f, p), NULL, n, at(&f, c), at(&f, s));
}

static void rope(float *x, int64_t n, int heads, int d, int r, const float *cosine,
                 const float *sine, bool inverse)
{
    frame f = {.op = "rope", .size = n * heads * d};
    int i = need(&f, INOUT, x, n * heads * d, sizeof *x);
    int c = in_floats(&f, cosine, n * (r / 2)), s = in_floats(&f, sine, n * (r / 2));
    if (begin(&f))
        while (run(&f))
            cu_rope(f.stream, at(&f, i), n, heads, d, r, at(&f, c), at(&f, s), inverse, false);
}

static void hc_mix(const dsv4_tensor *fn, const float *streams, float eps, int64_t n, float *m)
{
    frame f = {.op = "hc_mix", .size = n * fn->cols};
    weights w = in_weights(&f, fn);
    int i = in_floats(&f, streams, n * fn->cols), o = out_floats(&f, m, n * fn->rows);
    int s = scratch_floats(&f, cu_hc_mix_scratch(fn->rows, fn->cols, n));
    int t = need(&f, ZERO, NULL, n, sizeof(uint32_t));
    if (begin(&f))
        while (run(&f)) {
            cu_tensor g = weights_at(&f, &w);
            cu_hc_mix(f.stream, &g, at(&f, i), eps, n, at(&f, o), at(&f, s), at(&f, t), NULL);
        }
    free(w.floats);
}

static void hc_gates(const float *m, const float *scale, const float *base, int64_t n, int hc,
                     int iters, float eps, float *pre, float *post, float *comb)
{
    frame f = {.op = "hc_gates", .size = n * hc};
    int width = (2 + hc) * hc, i = in_floats(&f, m, n * width), s = in_floats(&f, scale, 3);
    int b = in_floats(&f, base, width), p = out_floats(&f, pre, n * hc);
    int q = out_floats(&f, post, n * hc), c = out_floats(&f, comb, n * hc * hc);
    if (begin(&f))
        while (run(&f)) {
            cu_gates g = {at(&f, s), at(&f, b), hc, iters, eps, at(&f, p), at(&f, q), at(&f, c)};
            cu_hc_gates(f.stream, at(&f, i), n, &g);
        }
}

static void hc_head_gates(const float *m, const float *scale, const float *base, int64_t n, int hc,
                          float eps, float *pre)
{
    frame f = {.op = "hc_head_gates", .size = n * hc};
    int i = in_floats(&f, m, n * hc), s = in_floats(&f, scale, 1), b = in_floats(&f, base, hc);
    int p = out_floats(&f, pre, n * hc);
    if (begin(&f))
        while (run(&f))
            cu_hc_head_gates(f.stream, at(&f, i), at(&f, s), at(&f, b), n, hc, eps, at(&f, p));
}

static void hc_collapse(const float *streams, const float *pre, int64_t n, int hc, int64_t dim,
                        float *x)
{
    frame f = {.op = "hc_collapse", .size = n * dim};
    int i = in_floats(&f, streams, n * hc * dim), p = in_floats(&f, pre, n * hc);
    int o = out_floats(&f, x, n * dim);
    if (begin(&f))
        while (run(&f))
            cu_hc_collapse(f.stream, at(&f, i), at(&f, p), n, hc, dim, at(&f, o), false);
}

static void hc_post(const float *block, const float *streams, const float *post, const float *comb,
                    int64_t n, int hc, int64_t dim, float *out)
{
    frame f = {.op = "hc_post", .size = n * hc * dim};
    int b = in_floats(&f, block, n * dim), i = in_floats(&f, streams, n * hc * dim);
    int p = in_floats(&f, post, n * hc), c = in_floats(&f, comb, n * hc * hc);
    int o = out_floats(&f, out, n * hc * dim);
    if (begin(&f))
        while (run(&f))
            cu_hc_post(f.stream, at(&f, b), at(&f, i), at(&f, p), at(&f, c), n, hc, dim, at(&f, o),
                       false);
}

static void compressor_pool(const float *prev_kv, const float *prev_z, const float *kv,
                            const float *z, int ratio, int lanes, int dim, float *c)
{
    int64_t n = (int64_t)ratio * lanes * dim;
    frame f = {.op = "compressor_pool", .size = n};
    int a = in_floats(&f, prev_kv, n), b = in_floats(&f, prev_z, n), k = in_floats(&f, kv, n);
    int s = in_floats(&f, z, n), o = out_floats(&f, c, dim);
    if (begin(&f))
        while (run(&f))
            cu_compressor_pool(f.stream, at(&f, a), at(&f, b), at(&f, k), at(&f, s), ratio, lanes,
                               dim, at(&f, o));
}

static void indexer_scores(const float *q, const float *rows, const float *w, int heads, int dim,
                           int64_t n_rows, bool bf16, float *scores)
{
    frame f = {.op = "indexer_scores", .size = n_rows * heads * dim};
    int i = in_floats(&f, q, (int64_t)heads * dim), r = in_floats(&f, rows, n_rows * dim);
    int v = in_floats(&f, w, heads), o = out_floats(&f, scores, n_rows);
    if (begin(&f))
        while (run(&f))
            cu_indexer_scores(f.stream, at(&f, i), at(&f, r), at(&f, v), heads, dim, 1, n_rows,
                              NULL, 1, bf16, at(&f, o), n_rows, NULL);
}

static void index_weights(float *w, int64_t n, int heads, int dim)
{
    frame f = {.op = "index_weights", .size = n * heads};
    int i = need(&f, INOUT, w, n * heads, sizeof *w);
    if (begin(&f))
        while (run(&f))
            cu_index_weights(f.stream, at(&f, i), n, heads, dim, false);
}

static void topk(const float *scores, int64_t n, int k, int32_t *out)
{
    frame f = {.op = "topk", .size = n};
    if (k > CU_MOST_TOPK) {
        cu_book(f.op, k, "more rows asked for than the kernel can sort");
        return;
    }
    int i = in_floats(&f, scores, n), o = need(&f, OUT, out, k, sizeof *out);
    if (begin(&f))
        while (run(&f))
            cu_topk(f.stream, at(&f, i), n, 1, n, NULL, 1, k, at(&f, o));
}

static bool attention(const dsv4_attention_args *a, float *out)
{
    int64_t total = a->n * a->heads * a->dim, end_of = a->pos0 + a->n;
    frame f = {.op = "attention", .size = total};
    int64_t rows = a->ratio > 0 ? end_of / a->ratio : 0;
    int64_t listed = a->topk != NULL ? a->k : rows;
    cu_attention_args g = {.n = a->n,
                           .heads = a->heads,
                           .dim = a->dim,
                           .window_pos0 = a->window_pos0,
                           .window_ring = end_of - a->window_pos0,
                           .window_size = a->window_size,
                           .ratio = a->ratio,
                           .most_rows = rows,
                           .k = a->k};
    g.splits = cu_attention_splits(a->window_size + listed);
    int p = need(&f, IN, &a->pos0, 1, sizeof a->pos0), q = in_floats(&f, a->q, total);
    int w = in_floats(&f, a->window, (end_of - a->window_pos0) * a->dim);
    int r = in_floats(&f, a->rows, rows * a->dim);
    int l = need(&f, IN, a->topk, a->n * a->k, sizeof *a->topk);
    int s = in_floats(&f, a->sink, a->heads), o = out_floats(&f, out, total);
    int t = scratch_floats(&f, cu_attention_scratch(a->n, a->heads, a->dim, g.splits));
    if (begin(&f))
        while (run(&f)) {
            g.pos0 = at(&f, p);
            g.q = at(&f, q);
            g.window = at(&f, w);
            g.rows = at(&f, r);
            g.topk = at(&f, l);
            g.sink = at(&f, s);
            g.scratch = at(&f, t);
            cu_attention(f.stream, &g, at(&f, o), false);
        }
    return f.ok;
}

static void router(const float *logits, const float *bias, const dsv4_tensor *tid2eid,
                   const int32_t *ids, int64_t n, int n_experts, int k, float scaling,
                   int32_t *experts, float *weights_out)
{
    frame f = {.op = "router", .size = n * n_experts};
    int32_t *table = NULL;
    if (tid2eid != NULL) {
        table = dsv4_alloc((size_t)(tid2eid->rows * k), sizeof *table, "tid2eid", NULL);
        for (int64_t i = 0; table != NULL && i < tid2eid->rows * k; i++)
            table[i] = (int32_t)dsv4_tensor_int(tid2eid, i);
    }
    int l = in_floats(&f, logits, n * n_experts), b = in_floats(&f, bias, n_experts);
    int t = need(&f, IN, table, tid2eid != NULL ? tid2eid->rows * k : 0, sizeof *table);
    int i = need(&f, IN, ids, n, sizeof *ids), e = need(&f, OUT, experts, n * k, sizeof *experts);
    int w = out_floats(&f, weights_out, n * k);
    if (begin(&f))
        while (run(&f))
            cu_router(f.stream, at(&f, l), at(&f, b), at(&f, t), at(&f, i), n, n_experts, k,
                      scaling, at(&f, e), at(&f, w), NULL, NULL);
    free(table);
}

static void swiglu(const float *gate, const float *up, float limit, int64_t n, float *h)
{
    frame f = {.op = "swiglu", .size = n};
    int g = need(&f, h == gate ? INOUT : IN, gate, n, sizeof *gate);
    int u = need(&f, h == up ? INOUT : IN, up, n, sizeof *up);
    int o = h == gate ? g : h == up ? u : out_floats(&f, h, n);
    if (begin(&f))
        while (run(&f))
            cu_swiglu(f.stream, at(&f, g), at(&f, u), limit, 1, n, NULL, false, at(&f, o));
}

static bool experts(const dsv4_experts_args *a, float *out)
{
    const dsv4_layer *l = a->layer;
    int64_t D = l->w1[0].cols, F = l->w1[0].rows, n = a->n, pairs = n * a->k;
    int E = (int)l->gate.rows;
    frame f = {.op = "experts", .size = n * D};
    cu_experts_args g = {.n = n,
                         .k = a->k,
                         .n_experts = E,
                         .limit = l->swiglu_limit,
                         .deployed = a->numerics == DSV4_DEPLOYED,
                         .one_order = a->numerics != DSV4_MATH};
    weights *w = dsv4_alloc((size_t)E * 3, sizeof *w, "experts", NULL);
    cu_tensor *tables = dsv4_alloc((size_t)E * 3, sizeof *tables, "experts", NULL);
    bool ok = w != NULL && tables != NULL;
    for (int e = 0; ok && e < E; e++) {
        ok = f.n + 6 <= MOST_SLOTS - 15;
        if (!ok)
            break;
        w[e] = in_weights(&f, &l->w1[e]);
        w[E + e] = in_weights(&f, &l->w2[e]);
        w[2 * E + e] = in_weights(&f, &l->w3[e]);
    }
    if (!ok) {
        cu_book(f.op, E, "more experts than this table takes");
        goto done;
    }
    int x = in_floats(&f, a->x, n * D), c = need(&f, IN, a->experts, pairs, sizeof *a->experts);
    int v = in_floats(&f, a->weights, pairs), o = out_floats(&f, out, n * D);
    int t = need(&f, IN, tables, E * 3, sizeof *tables), x8 = scratch_floats(&f, n * D);
    int gate = scratch_floats(&f, pairs * F), up = scratch_floats(&f, pairs * F);
    int y = scratch_floats(&f, pairs * D), share = scratch_floats(&f, pairs);
    int list = need(&f, SCRATCH, NULL, pairs, sizeof(int32_t));
    int groups = need(&f, SCRATCH, NULL, pairs, sizeof(cu_expert_group));
    int n_groups = need(&f, SCRATCH, NULL, 1, sizeof(int32_t));
    size_t room = (size_t)(pairs * ((D > F ? D : F) + 127)) * 7 + 4096;
    int r = need(&f, SCRATCH, NULL, (int64_t)room, 1);
    if (begin(&f)) {
        for (int i = 0; i < 3 * E; i++) /* addresses are known now */
            tables[i] = weights_at(&f, &w[i]);
        memcpy(f.staged + f.slots[t].at, tables, (size_t)E * 3 * sizeof *tables);
        while (run(&f)) {
            g.w1 = tables[0];
            g.w2 = tables[E];
            g.w3 = tables[2 * E];
            g.t1 = at(&f, t);
            g.t2 = g.t1 + E;
            g.t3 = g.t1 + 2 * E;
            g.x = at(&f, x);
            g.experts = at(&f, c);
            g.weights = at(&f, v);
            g.x8 = at(&f, x8);
            g.gate = at(&f, gate);
            g.up = at(&f, up);
            g.y = at(&f, y);
            g.share = at(&f, share);
            g.list = at(&f, list);
            g.groups = at(&f, groups);
            g.n_groups = at(&f, n_groups);
            g.out = at(&f, o);
            g.room = (cu_room){at(&f, r), room};
            cu_experts(f.stream, &g);
        }
    }
    ok = f.ok;
done:
    for (int i = 0; w != NULL && i < 3 * E; i++)
        free(w[i].floats);
    free(w);
    free(tables);
    return ok;
}

static void add(float *x, const float *y, int64_t n)
{
    frame f = {.op = "add", .size = n};
    int i = need(&f, INOUT, x, n, sizeof *x), j = in_floats(&f, y, n);
    if (begin(&f))
        while (run(&f))
            cu_add(f.stream, at(&f, i), at(&f, j), n, false);
}

static void round_bf16(float *x, int64_t n)
{
    frame f = {.op = "round_bf16", .size = n};
    int i = need(&f, INOUT, x, n, sizeof *x);
    if (begin(&f))
        while (run(&f))
            cu_round_bf16(f.stream, at(&f, i), n);
}

static void round_fp8(float *x, int64_t n, int64_t ld, int64_t dim, int block)
{
    frame f = {.op = "round_fp8", .size = n * dim};
    int i = need(&f, INOUT, x, n > 0 ? (n - 1) * ld + dim : 0, sizeof *x);
    if (begin(&f))
        while (run(&f))
            cu_round_fp8(f.stream, at(&f, i), at(&f, i), n, ld, ld, dim, block, NULL);
}

static void round_fp4(float *x, int64_t n, int64_t dim, int block)
{
    frame f = {.op = "round_fp4", .size = n * dim};
    int i = need(&f, INOUT, x, n * dim, sizeof *x);
    if (begin(&f))
        while (run(&f))
            cu_round_fp4(f.stream, at(&f, i), n, dim, block, NULL);
}

static void hadamard(float *x, int64_t n, int dim)
{
    frame f = {.op = "hadamard", .size = n * dim};
    int i = need(&f, INOUT, x, n * dim, sizeof *x);
    if (begin(&f))
        while (run(&f))
            cu_hadamard(f.stream, at(&f, i), n, dim, false);
}

static const dsv4_ops table = {
    .name = "cuda",
    .embed = embed,
    .linear = linear,
    .rmsnorm = rmsnorm,
    .head_norm = head_norm,
    .rope_angles = rope_angles,
    .rope = rope,
    .hc_mix = hc_mix,
    .hc_gates = hc_gates,
    .hc_head_gates = hc_head_gates,
    .hc_collapse = hc_collapse,
    .hc_post = hc_post,
    .compressor_pool = compressor_pool,
    .indexer_scores = indexer_scores,
    .index_weights = index_weights,
    .topk = topk,
    .attention = attention,
    .router = router,
    .swiglu = swiglu,
    .experts = experts,
    .add = add,
    .round_bf16 = round_bf16,
    .round_fp8 = round_fp8,
    .round_fp4 = round_fp4,
    .hadamard = hadamard,
};

const dsv4_ops *dsv4_ops_cuda(void)
{
    return &table;
}

dsv4_status dsv4_cuda_take_error(dsv4_error *err)
{
    return cu_take_error(err);
}
