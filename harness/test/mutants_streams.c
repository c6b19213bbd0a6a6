/* mutants_streams.c - wrong embedding, residual streams (mHC), norms, head and MTP layer. */
#include <math.h>
#include <string.h>

#include "mutants.h"

/* ---- embedding ----------------------------------------------------------------------------- */

static void embed_next_id(const dsv4_tensor *table, const int32_t *ids, int64_t n, float *x)
{
    track_embed(table, ids, n, x);
    for (int64_t i = 0; i < n; i++)
        dsv4_tensor_row(table, (ids[i] + 1) % table->rows, x + i * table->cols);
}

static void embed_scaled(const dsv4_tensor *table, const int32_t *ids, int64_t n, float *x)
{
    track_embed(table, ids, n, x);
    float scale = (float)sqrt((double)table->cols);
    for (int64_t i = 0; i < n * table->cols; i++)
        x[i] *= scale;
}

static void embed_last_id(const dsv4_tensor *table, const int32_t *ids, int64_t n, float *x)
{
    track_embed(table, ids, n, x);
    for (int64_t i = 1; i < n; i++)
        dsv4_tensor_row(table, ids[i - 1], x + i * table->cols);
}

static void plant_embed_next_id(plan *p)
{
    p->ops.embed = embed_next_id;
}

static void plant_embed_scaled(plan *p)
{
    p->ops.embed = embed_scaled;
}

static void plant_embed_last_id(plan *p)
{
    p->ops.embed = embed_last_id;
}

static void plant_embed_is_head(plan *p)
{
    p->model.embed = p->right->head;
}

/* ---- mHC: gates ---------------------------------------------------------------------------- */

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

static void transpose(float *comb, int64_t n, int hc)
{
    for (int64_t i = 0; i < n; i++, comb += hc * hc)
        for (int a = 0; a < hc; a++)
            for (int b = 0; b < a; b++) {
                float keep = comb[a * hc + b];
                comb[a * hc + b] = comb[b * hc + a];
                comb[b * hc + a] = keep;
            }
}

enum { MIXES = 64 };

/* hc_post with comb used the other way round; the tap of comb itself stays right. */
static void post_transposed(const float *block, const float *streams, const float *post,
                            const float *comb, int64_t n, int hc, int64_t dim, float *out)
{
    for (int64_t i = 0; i < n; i++) {
        float turned[MIXES];
        memcpy(turned, comb + i * hc * hc, (size_t)(hc * hc) * sizeof *turned);
        transpose(turned, 1, hc);
        ref_hc_post(block + i * dim, streams + i * hc * dim, post + i * hc, turned, 1, hc, dim,
                    out + i * hc * dim);
    }
}

static void gates_post_single(const float *m, const float *scale, const float *base, int64_t n,
                              int hc, int iters, float eps, float *pre, float *post, float *comb)
{
    ref_hc_gates(m, scale, base, n, hc, iters, eps, pre, post, comb);
    for (int64_t i = 0; i < n * hc; i++)
        post[i] = post[i] / 2 + eps;
}

/* Sinkhorn passes over C as they should be, from whatever start. */
static void passes(double *c, int hc, int first, int iters, double eps)
{
    for (int pass = first; pass < 2 * iters; pass++)
        for (int a = 0; a < hc; a++) {
            double sum = 0;
            int step = pass % 2 == 0 ? 1 : hc, at = pass % 2 == 0 ? a * hc : a;
            for (int b = 0; b < hc; b++)
                sum += c[at + b * step];
            for (int b = 0; b < hc; b++)
                c[at + b * step] /= sum + eps;
        }
}

typedef void (*comb_fn)(double *c, int hc, int iters, double eps);

static void gates_with(comb_fn fn, const float *m, const float *scale, const float *base, int64_t n,
                       int hc, int iters, float eps, float *pre, float *post, float *comb)
{
    ref_hc_gates(m, scale, base, n, hc, iters, eps, pre, post, comb);
    int width = (2 + hc) * hc;
    for (int64_t i = 0; i < n; i++) {
        double c[MIXES];
        for (int k = 0; k < hc * hc; k++)
            c[k] = (double)m[i * width + 2 * hc + k] * (double)scale[2] + (double)base[2 * hc + k];
        fn(c, hc, iters, (double)eps);
        for (int k = 0; k < hc * hc; k++)
            comb[i * hc * hc + k] = (float)c[k];
    }
}

static void softmax(double *c, int n, int step)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += c[i * step] = exp(c[i * step]);
    for (int i = 0; i < n; i++)
        c[i * step] /= sum;
}

static void comb_sigmoid(double *c, int hc, int iters, double eps)
{
    for (int k = 0; k < hc * hc; k++)
        c[k] = sigmoid(c[k]);
    passes(c, hc, 1, iters, eps);
}

static void comb_column_softmax(double *c, int hc, int iters, double eps)
{
    for (int b = 0; b < hc; b++)
        softmax(c + b, hc, hc);
    passes(c, hc, 2, iters, eps);
}

static void comb_few(double *c, int hc, int iters, double eps)
{
    (void)iters;
    for (int a = 0; a < hc; a++)
        softmax(c + a * hc, hc, 1);
    passes(c, hc, 1, 1, eps);
}

static void comb_no_sinkhorn(double *c, int hc, int iters, double eps)
{
    (void)iters;
    (void)eps;
    for (int a = 0; a < hc; a++)
        softmax(c + a * hc, hc, 1);
}

static void comb_never_divided(double *c, int hc, int iters, double eps)
{
    (void)iters;
    (void)eps;
    for (int k = 0; k < hc * hc; k++)
        c[k] = exp(c[k]);
}

static void comb_no_eps(double *c, int hc, int iters, double eps)
{
    (void)eps;
    for (int a = 0; a < hc; a++)
        softmax(c + a * hc, hc, 1);
    passes(c, hc, 1, iters, 0);
}

static void comb_logits_transposed(double *c, int hc, int iters, double eps)
{
    for (int a = 0; a < hc; a++)
        for (int b = 0; b < a; b++) {
            double keep = c[a * hc + b];
            c[a * hc + b] = c[b * hc + a];
            c[b * hc + a] = keep;
        }
    for (int a = 0; a < hc; a++)
        softmax(c + a * hc, hc, 1);
    passes(c, hc, 1, iters, eps);
}

#define GATES(name)                                                                                \
    static void gates_##name(const float *m, const float *scale, const float *base, int64_t n,     \
                             int hc, int iters, float eps, float *pre, float *post, float *comb)   \
    {                                                                                              \
        gates_with(comb_##name, m, scale, base, n, hc, iters, eps, pre, post, comb);               \
    }                                                                                              \
    static void plant_comb_##name(plan *p)                                                         \
    {                                                                                              \
        p->ops.hc_gates = gates_##name;                                                            \
    }
GATES(sigmoid)
GATES(column_softmax)
GATES(few)
GATES(no_sinkhorn)
GATES(never_divided)
GATES(no_eps)
GATES(logits_transposed)

static void gates_scales_swapped(const float *m, const float *scale, const float *base, int64_t n,
                                 int hc, int iters, float eps, float *pre, float *post, float *comb)
{
    const float swapped[3] = {scale[1], scale[0], scale[2]};
    ref_hc_gates(m, swapped, base, n, hc, iters, eps, pre, post, comb);
}

static void gates_no_base(const float *m, const float *scale, const float *base, int64_t n, int hc,
                          int iters, float eps, float *pre, float *post, float *comb)
{
    const float zero[MIXES] = {0};
    (void)base;
    ref_hc_gates(m, scale, zero, n, hc, iters, eps, pre, post, comb);
}

static void gates_pre_mean(const float *m, const float *scale, const float *base, int64_t n, int hc,
                           int iters, float eps, float *pre, float *post, float *comb)
{
    ref_hc_gates(m, scale, base, n, hc, iters, eps, pre, post, comb);
    for (int64_t i = 0; i < n * hc; i++)
        pre[i] = 1.0f / (float)hc;
}

static void gates_pre_no_eps(const float *m, const float *scale, const float *base, int64_t n,
                             int hc, int iters, float eps, float *pre, float *post, float *comb)
{
    ref_hc_gates(m, scale, base, n, hc, iters, eps, pre, post, comb);
    for (int64_t i = 0; i < n * hc; i++)
        pre[i] -= eps;
}

/* ---- mHC: mixes, collapse, post ------------------------------------------------------------ */

static void mix_not_normed(const dsv4_tensor *fn, const float *streams, float eps, int64_t n,
                           float *m)
{
    track_hc_mix(fn, streams, eps, n, m);
    ref_linear(fn, streams, fn->cols, n, m, fn->rows);
}

static void mix_normed_per_stream(const dsv4_tensor *fn, const float *streams, float eps, int64_t n,
                                  float *m)
{
    int hc = now.p->model.config.hc_mult;
    int64_t dim = fn->cols / hc;
    float v[4096];
    track_hc_mix(fn, streams, eps, n, m);
    for (int64_t i = 0; i < n && fn->cols <= 4096; i++) {
        ref_rmsnorm(streams + i * fn->cols, NULL, eps, hc, dim, v);
        ref_linear(fn, v, fn->cols, 1, m + i * fn->rows, fn->rows);
    }
}

static void mix_streams_interleaved(const dsv4_tensor *fn, const float *streams, float eps,
                                    int64_t n, float *m)
{
    int hc = now.p->model.config.hc_mult;
    int64_t dim = fn->cols / hc;
    float v[4096];
    track_hc_mix(fn, streams, eps, n, m);
    for (int64_t i = 0; i < n && fn->cols <= 4096; i++) {
        for (int j = 0; j < hc; j++)
            for (int64_t k = 0; k < dim; k++)
                v[k * hc + j] = streams[(i * hc + j) * dim + k];
        ref_hc_mix(fn, v, eps, 1, m + i * fn->rows);
    }
}

/* The embedding row is put into stream 0 alone. */
static void mix_one_stream(const dsv4_tensor *fn, const float *streams, float eps, int64_t n,
                           float *m)
{
    int hc = now.p->model.config.hc_mult;
    int64_t dim = fn->cols / hc;
    if (fn == &now.p->model.layers[0].hc_attn.fn)
        for (int64_t i = 0; i < n; i++)
            memset((float *)(uintptr_t)streams + (i * hc + 1) * dim, 0,
                   (size_t)((hc - 1) * dim) * sizeof *streams);
    track_hc_mix(fn, streams, eps, n, m);
}

static void post_not_gated(const float *block, const float *streams, const float *post,
                           const float *comb, int64_t n, int hc, int64_t dim, float *out)
{
    float ones[MIXES];
    (void)post;
    for (int j = 0; j < hc; j++)
        ones[j] = 1;
    for (int64_t i = 0; i < n; i++)
        ref_hc_post(block + i * dim, streams + i * hc * dim, ones, comb + i * hc * hc, 1, hc, dim,
                    out + i * hc * dim);
}

static void post_lost_at_the_end(const float *block, const float *streams, const float *post,
                                 const float *comb, int64_t n, int hc, int64_t dim, float *out)
{
    if (now.ffn && now.layer == now.p->model.config.num_hidden_layers - 1)
        memcpy(out, streams, (size_t)(n * hc * dim) * sizeof *out);
    else
        ref_hc_post(block, streams, post, comb, n, hc, dim, out);
}

static void post_from_one_stream(const float *block, const float *streams, const float *post,
                                 const float *comb, int64_t n, int hc, int64_t dim, float *out)
{
    (void)comb;
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < hc; j++)
            for (int64_t k = 0; k < dim; k++)
                out[(i * hc + j) * dim + k] =
                    streams[i * hc * dim + k] + post[i * hc + j] * block[i * dim + k];
}

static void post_plain_residual(const float *block, const float *streams, const float *post,
                                const float *comb, int64_t n, int hc, int64_t dim, float *out)
{
    (void)comb;
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < hc; j++)
            for (int64_t k = 0; k < dim; k++)
                out[(i * hc + j) * dim + k] =
                    streams[(i * hc + j) * dim + k] + post[i * hc + j] * block[i * dim + k];
}

static void plant_post_transposed(plan *p)
{
    p->ops.hc_post = post_transposed;
}

static void plant_post_single(plan *p)
{
    p->ops.hc_gates = gates_post_single;
}

static void plant_scales_swapped(plan *p)
{
    p->ops.hc_gates = gates_scales_swapped;
}

static void plant_no_base(plan *p)
{
    p->ops.hc_gates = gates_no_base;
}

static void plant_pre_mean(plan *p)
{
    p->ops.hc_gates = gates_pre_mean;
}

static void plant_pre_no_eps(plan *p)
{
    p->ops.hc_gates = gates_pre_no_eps;
}

static void plant_mix_not_normed(plan *p)
{
    p->ops.hc_mix = mix_not_normed;
}

static void plant_mix_per_stream(plan *p)
{
    p->ops.hc_mix = mix_normed_per_stream;
}

static void plant_mix_interleaved(plan *p)
{
    p->ops.hc_mix = mix_streams_interleaved;
}

static void plant_one_stream(plan *p)
{
    p->ops.hc_mix = mix_one_stream;
}

static void plant_post_not_gated(plan *p)
{
    p->ops.hc_post = post_not_gated;
}

static void plant_post_lost(plan *p)
{
    p->ops.hc_post = post_lost_at_the_end;
}

static void plant_post_from_one(plan *p)
{
    p->ops.hc_post = post_from_one_stream;
}

static void plant_post_plain(plan *p)
{
    p->ops.hc_post = post_plain_residual;
}

static void plant_hc_weights_shared(plan *p)
{
    for (int l = 0; l < p->model.config.num_hidden_layers; l++)
        p->layers[l].hc_ffn = p->layers[l].hc_attn;
}

/* ---- norms --------------------------------------------------------------------------------- */

static void norm_one_plus(const float *x, const float *w, float eps, int64_t n, int64_t dim,
                          float *y)
{
    if (w == NULL) {
        ref_rmsnorm(x, w, eps, n, dim, y);
        return;
    }
    float wider[1024];
    for (int64_t k = 0; k < dim && k < 1024; k++)
        wider[k] = 1 + w[k];
    ref_rmsnorm(x, wider, eps, n, dim, y);
}

static void norm_sum(const float *x, const float *w, float eps, int64_t n, int64_t dim, float *y)
{
    ref_rmsnorm(x, w, eps, n, dim, y);
    float scale = (float)(1 / sqrt((double)dim));
    for (int64_t i = 0; i < n * dim; i++)
        y[i] *= scale;
}

static void norm_layernorm(const float *x, const float *w, float eps, int64_t n, int64_t dim,
                           float *y)
{
    for (int64_t i = 0; i < n; i++) {
        double mean = 0;
        for (int64_t k = 0; k < dim; k++)
            mean += (double)x[i * dim + k] / (double)dim;
        for (int64_t k = 0; k < dim; k++)
            y[i * dim + k] = x[i * dim + k] - (float)mean;
    }
    ref_rmsnorm(y, w, eps, n, dim, y);
}

static void norm_twice_before_ffn(const float *x, const float *w, float eps, int64_t n, int64_t dim,
                                  float *y)
{
    ref_rmsnorm(x, w, eps, n, dim, y);
    if (now.ffn && !now.head)
        ref_rmsnorm(y, w, eps, n, dim, y);
}

static void norm_large_eps(const float *x, const float *w, float eps, int64_t n, int64_t dim,
                           float *y)
{
    ref_rmsnorm(x, w, eps * 1000, n, dim, y);
}

static void plant_norm_one_plus(plan *p)
{
    p->ops.rmsnorm = norm_one_plus;
}

static void plant_norm_sum(plan *p)
{
    p->ops.rmsnorm = norm_sum;
}

static void plant_layernorm(plan *p)
{
    p->ops.rmsnorm = norm_layernorm;
}

static void plant_ffn_norm_twice(plan *p)
{
    p->ops.rmsnorm = norm_twice_before_ffn;
}

static void plant_norm_eps(plan *p)
{
    p->ops.rmsnorm = norm_large_eps;
}

static void plant_ffn_norm_is_attn(plan *p)
{
    for (int l = 0; l < p->model.config.num_hidden_layers; l++)
        p->layers[l].ffn_norm = p->layers[l].attn_norm;
}

/* ---- head ---------------------------------------------------------------------------------- */

static void head_gates_mean(const float *m, const float *scale, const float *base, int64_t n,
                            int hc, float eps, float *pre)
{
    (void)m, (void)scale, (void)base, (void)eps;
    for (int64_t i = 0; i < n * hc; i++)
        pre[i] = 1.0f / (float)hc;
}

static void head_gates_first(const float *m, const float *scale, const float *base, int64_t n,
                             int hc, float eps, float *pre)
{
    (void)m, (void)scale, (void)base, (void)eps;
    for (int64_t i = 0; i < n * hc; i++)
        pre[i] = i % hc == 0 ? 1 : 0;
}

static void head_gates_doubled(const float *m, const float *scale, const float *base, int64_t n,
                               int hc, float eps, float *pre)
{
    ref_hc_head_gates(m, scale, base, n, hc, eps, pre);
    for (int64_t i = 0; i < n * hc; i++)
        pre[i] *= 2;
}

static void norm_not_at_the_head(const float *x, const float *w, float eps, int64_t n, int64_t dim,
                                 float *y)
{
    if (now.head && !now.mtp)
        memmove(y, x, (size_t)(n * dim) * sizeof *y);
    else
        ref_rmsnorm(x, w, eps, n, dim, y);
}

static void linear_tail_lost(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                             int64_t ldy)
{
    ref_linear(w, x, ldx, n, y, ldy);
    if (same_tensor(w, &now.p->model.head))
        for (int64_t i = 0; i < n; i++)
            for (int64_t v = w->rows / 64 * 64; v < w->rows; v++)
                y[i * ldy + v] = 0;
}

static void linear_capped(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                          int64_t ldy)
{
    ref_linear(w, x, ldx, n, y, ldy);
    if (same_tensor(w, &now.p->model.head))
        for (int64_t i = 0; i < n; i++)
            for (int64_t v = 0; v < w->rows; v++)
                y[i * ldy + v] = 30 * tanhf(y[i * ldy + v] / 30);
}

static void plant_head_mean(plan *p)
{
    p->ops.hc_head_gates = head_gates_mean;
}

static void plant_head_first(plan *p)
{
    p->ops.hc_head_gates = head_gates_first;
}

static void plant_head_doubled(plan *p)
{
    p->ops.hc_head_gates = head_gates_doubled;
}

static void plant_no_final_norm(plan *p)
{
    p->ops.rmsnorm = norm_not_at_the_head;
}

static void plant_vocab_tail(plan *p)
{
    p->ops.linear = linear_tail_lost;
}

static void plant_logits_capped(plan *p)
{
    p->ops.linear = linear_capped;
}

static void plant_head_tied(plan *p)
{
    p->model.head = p->model.embed;
}

/* ---- MTP ----------------------------------------------------------------------------------- */

static void embed_not_shifted(const dsv4_tensor *table, const int32_t *ids, int64_t n, float *x)
{
    track_embed(table, ids, n, x);
    for (int64_t i = n - 1; now.mtp && i > 0; i--) /* the id of token i where i + 1 belongs */
        memcpy(x + i * table->cols, x + (i - 1) * table->cols, (size_t)table->cols * sizeof *x);
}

/* mtp_forward: h_proj sees the streams right after hnorm. */
static void norm_narrowed(const float *x, const float *w, float eps, int64_t n, int64_t dim,
                          float *y)
{
    ref_rmsnorm(x, w, eps, n, dim, y);
    int hc = now.p->model.config.hc_mult;
    if (now.mtp_begins && y == x)
        for (int64_t i = 0; i < n; i++)
            if (i % hc != 0)
                memcpy(y + i * dim, y + i / hc * hc * dim, (size_t)dim * sizeof *y);
}

static void angles_doubled(const float *inv, int half, const int64_t *positions, int64_t n,
                           float *cos, float *sin)
{
    track_rope_angles(inv, half, positions, n, cos, sin);
    if (!now.mtp_begins)
        return;
    for (int64_t i = 0; i < n; i++) {
        int64_t wrong = 2 * positions[i]; /* a shift of all would cancel in the window */
        ref_rope_angles(inv, half, &wrong, 1, cos + i * half, sin + i * half);
    }
}

static void norm_not_h(const float *x, const float *w, float eps, int64_t n, int64_t dim, float *y)
{
    if (now.mtp_begins && y == x)
        return;
    ref_rmsnorm(x, w, eps, n, dim, y);
}

static void plant_mtp_norms_swapped(plan *p)
{
    dsv4_tensor keep = p->mtp.enorm;
    p->mtp.enorm = p->mtp.hnorm;
    p->mtp.hnorm = keep;
}

static void plant_mtp_proj_swapped(plan *p)
{
    dsv4_tensor keep = p->mtp.e_proj;
    p->mtp.e_proj = p->mtp.h_proj;
    p->mtp.h_proj = keep;
}

static void plant_mtp_not_shifted(plan *p)
{
    p->ops.embed = embed_not_shifted;
}

static void plant_mtp_main_norm(plan *p)
{
    p->mtp.norm = p->model.norm;
}

static void plant_mtp_main_head(plan *p)
{
    p->mtp.hc_head = p->model.hc_head;
}

static void plant_mtp_narrowed(plan *p)
{
    p->ops.rmsnorm = norm_narrowed;
}

static void plant_mtp_positions(plan *p)
{
    p->ops.rope_angles = angles_doubled;
}

static void plant_mtp_no_hnorm(plan *p)
{
    p->ops.rmsnorm = norm_not_h;
}

static void plant_mtp_layer_weights(plan *p)
{
    p->mtp.layer.wo_b = p->layers[p->model.config.num_hidden_layers - 1].wo_b;
}

/* ---- table --------------------------------------------------------------------------------- */

const mutant mutants_streams[] = {
    {"embed-next-id", "own", "embed", 0, RUN_SHORT, plant_embed_next_id,
     "the embedding row of id + 1", NULL},
    {"embed-scaled", "own (Gemma's scale)", "embed", 0, RUN_SHORT, plant_embed_scaled,
     "embedding rows times sqrt(D)", NULL},
    {"embed-last-id", "own", "embed", 0, RUN_SHORT, plant_embed_last_id,
     "every token of a block after the first takes the embedding row of the token before it", NULL},
    {"embed-is-head", "own", "embed", 0, RUN_SHORT, plant_embed_is_head,
     "embedding rows are read from the output matrix", NULL},
    {"embed-one-stream", "lucebox c741ccdc (HC09)", "mhc|embed", 0, RUN_SHORT, plant_one_stream,
     "the embedding row is put into stream 0 alone, the other streams start as zeros",
     "the copy into the streams lies between the embedding and mHC; the gates show it first"},

    {"hc-comb-transposed", "Automodel #2154 (HC01)", "mhc", 0, RUN_SHORT, plant_post_transposed,
     "comb is summed over its second index", NULL},
    {"hc-post-single", "Automodel e42168e16 (HC02)", "mhc", 0, RUN_SHORT, plant_post_single,
     "post = sigmoid + eps, without the factor 2", NULL},
    {"hc-comb-sigmoid", "Automodel e42168e16 (HC03)", "mhc", 0, RUN_SHORT, plant_comb_sigmoid,
     "Sinkhorn starts from sigmoids, not from a row softmax", NULL},
    {"hc-one-pass", "maxtext #4337 (HC04)", "mhc", 0, RUN_SHORT, plant_comb_few,
     "one Sinkhorn pass, whatever the config says", NULL},
    {"hc-column-first", "maxtext #4337 (HC04)", "mhc", 0, RUN_SHORT, plant_comb_column_softmax,
     "the softmax runs over columns and rows are normalised first", NULL},
    {"hc-no-sinkhorn", "own", "mhc", 0, RUN_SHORT, plant_comb_no_sinkhorn,
     "comb is the row softmax alone", NULL},
    {"hc-comb-explodes", "mlx-lm #1189 (HC05)", "mhc", 0, RUN_SHORT, plant_comb_never_divided,
     "comb is exp of its logits, never divided", NULL},
    {"hc-comb-logits-transposed", "own", "mhc", 0, RUN_SHORT, plant_comb_logits_transposed,
     "the comb logits are read column by column", NULL},
    {"hc-wrong-mixes", "vllm #45698 (HC06)", "mhc", 0, RUN_SHORT, plant_mix_interleaved,
     "the mixing product reads the streams interleaved, [D][hc]", NULL},
    {"hc-mix-not-normed", "own", "mhc", 0, RUN_SHORT, plant_mix_not_normed,
     "the mixes are not divided by the streams' rms", NULL},
    {"hc-mix-normed-per-stream", "own", "mhc", 0, RUN_SHORT, plant_mix_per_stream,
     "each stream is divided by its own rms instead of the common one", NULL},
    {"hc-scales-swapped", "own", "mhc", 0, RUN_SHORT, plant_scales_swapped,
     "the scales of the pre and post gates are exchanged", NULL},
    {"hc-no-base", "own", "mhc", 0, RUN_SHORT, plant_no_base, "the gates' base is left out", NULL},
    {"hc-pre-skipped", "lucebox 42f1e105 (HC09)", "mhc", 0, RUN_SHORT, plant_pre_mean,
     "the block's input is the mean of the streams, without the pre gates", NULL},
    {"hc-post-not-gated", "own", "mhc", 0, RUN_SHORT, plant_post_not_gated,
     "the block's result is added to every stream without the post gate", NULL},
    {"hc-post-lost-at-end", "vllm #42320 (HC08)", "mhc", 3, RUN_SHORT, plant_post_lost,
     "the last layer's pending hc_post is never applied", NULL},
    {"hc-streams-narrowed", "lucebox ac3ae205 (HC10)", "mhc", 0, RUN_SHORT, plant_post_from_one,
     "only stream 0 is carried on, into all of them", NULL},
    {"hc-plain-residual", "own", "mhc", 0, RUN_SHORT, plant_post_plain,
     "each stream keeps itself: comb is taken for the identity", NULL},
    {"hc-ffn-has-attn-weights", "own", "mhc", 0, RUN_SHORT, plant_hc_weights_shared,
     "the second half of a layer uses the mHC weights of the first", NULL},

    {"norm-one-plus-weight", "atlas #315 (AT18)", "norm", 0, RUN_SHORT, plant_norm_one_plus,
     "norms multiply by 1 + w", NULL},
    {"norm-sum-not-mean", "own", "norm", 0, RUN_SHORT, plant_norm_sum,
     "norms divide by the root of the sum of squares", NULL},
    {"norm-subtracts-mean", "own", "norm", 0, RUN_SHORT, plant_layernorm,
     "LayerNorm in place of RMSNorm", NULL},
    {"norm-eps-1e-3", "own", "norm", 0, RUN_SHORT, plant_norm_eps, "norm eps 1e-3 for 1e-6", NULL},
    {"ffn-norm-twice", "vllm #42810 (AT21)", "norm", 0, RUN_SHORT, plant_ffn_norm_twice,
     "ffn_norm is applied by the fused mHC step and again by the module", NULL},
    {"ffn-norm-has-attn-weight", "own", "norm", 0, RUN_SHORT, plant_ffn_norm_is_attn,
     "ffn_norm uses the weight of attn_norm", NULL},

    {"head-mean", "own", "head", -1, RUN_SHORT, plant_head_mean,
     "the head averages the streams, without its gates", NULL},
    {"head-first-stream", "vllm-ascend #131 (MT12)", "head", -1, RUN_SHORT, plant_head_first,
     "the head reads stream 0 alone", NULL},
    {"head-gates-doubled", "own", "head", -1, RUN_SHORT, plant_head_doubled,
     "the head's gates have post's factor 2", NULL},
    {"head-no-norm", "ATOM #1764 (MT07)", "head", -1, RUN_SHORT, plant_no_final_norm,
     "the final norm is left out", NULL},
    {"head-vocabulary-tail", "pypto-lib #567 (HD02)", "head", -1, RUN_SHORT, plant_vocab_tail,
     "logits beyond the last whole tile of 64 are 0", NULL},
    {"head-soft-capped", "own (Gemma's cap)", "head", -1, RUN_SHORT, plant_logits_capped,
     "logits are capped by 30 tanh(x / 30)", NULL},
    {"head-tied", "own", "head", -1, RUN_SHORT, plant_head_tied, "logits from the embedding matrix",
     NULL},

    {"mtp-norms-swapped", "own", "mtp", -1, RUN_NANO, plant_mtp_norms_swapped,
     "enorm and hnorm exchanged", NULL},
    {"mtp-projections-swapped", "own", "mtp", -1, RUN_NANO, plant_mtp_proj_swapped,
     "e_proj and h_proj exchanged", NULL},
    {"mtp-not-shifted", "ik_llama.cpp #2296 (MT10)", "mtp", -1, RUN_NANO, plant_mtp_not_shifted,
     "token i's own id, not its successor's, is fed with the streams of token i", NULL},
    {"mtp-main-norm", "ATOM 582a60462 (MT07)", "mtp", -1, RUN_NANO, plant_mtp_main_norm,
     "the model's final norm in place of the layer's own", NULL},
    {"mtp-main-head-gates", "vllm #42930 (HC08)", "mtp", -1, RUN_NANO, plant_mtp_main_head,
     "the model's head gates in place of the layer's own", NULL},
    {"mtp-one-stream", "vllm-ascend #131 (MT12)", "mtp", -1, RUN_NANO, plant_mtp_narrowed,
     "the hidden state is narrowed to stream 0", NULL},
    {"mtp-positions-doubled", "vllm-ascend c4e231771a (RP19)", "mtp", -1, RUN_NANO,
     plant_mtp_positions, "the layer's positions are summed over two ranks", NULL},
    {"mtp-no-hnorm", "own", "mtp", -1, RUN_NANO, plant_mtp_no_hnorm, "hnorm is left out", NULL},
    {"mtp-weights-of-main", "ik_llama.cpp #2254 (MT05, MT19)", "mtp", -1, RUN_NANO,
     plant_mtp_layer_weights, "wo_b is read from the last main layer", NULL},
    {.name = NULL},
};

/* Planted by the table of equivalents. */
void plant_equivalent_pre_eps(plan *p);
void plant_equivalent_comb_eps(plan *p);

void plant_equivalent_pre_eps(plan *p)
{
    plant_pre_no_eps(p);
}

void plant_equivalent_comb_eps(plan *p)
{
    plant_comb_no_eps(p);
}
