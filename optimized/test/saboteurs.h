/* saboteurs.h - operators that are wrong in one way each: linear maps, norms, rotations,
 * hyper-connections, compressor, indexer, attention. The others are in test_saboteurs.c, which puts
 * them on trial. */
#ifndef DSV4_TEST_SABOTEURS_H
#define DSV4_TEST_SABOTEURS_H

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reference/formats/formats.h"
#include "reference/scalar.h"

/* ---- linear --------------------------------------------------------------------------------- */

static void row_of(const dsv4_tensor *w, int64_t r, float *out)
{
    dsv4_tensor_row(w, r, out);
}

/* y = W x with `cols` columns of each row, and a rounding after every addition. */
static void slow_linear(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                        int64_t ldy, int64_t cols, float (*rounded)(float))
{
    float *row = malloc((size_t)w->cols * sizeof *row);
    for (int64_t r = 0; row != NULL && r < w->rows; r++) {
        row_of(w, r, row);
        for (int64_t i = 0; i < n; i++) {
            double sum = 0;
            for (int64_t c = 0; c < cols; c++) {
                sum += (double)row[c] * (double)x[i * ldx + c];
                if (rounded != NULL)
                    sum = (double)rounded((float)sum);
            }
            y[i * ldy + r] = (float)sum;
        }
    }
    free(row);
}

static void linear_last_dropped(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                                float *y, int64_t ldy)
{
    slow_linear(w, x, ldx, n, y, ldy, w->cols - 1, NULL);
}

static void linear_tail_ignored(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                                float *y, int64_t ldy)
{
    slow_linear(w, x, ldx, n, y, ldy, w->cols / 8 * 8, NULL);
}

static float half(float x)
{
    return dsv4_f16_to_f32(dsv4_f32_to_f16(x));
}

static void linear_half_sums(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                             int64_t ldy)
{
    slow_linear(w, x, ldx, n, y, ldy, w->cols, half);
}

static void linear_bf16_sums(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                             int64_t ldy)
{
    slow_linear(w, x, ldx, n, y, ldy, w->cols, dsv4_bf16);
}

static volatile float sink;

static void linear_reads_past(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                              float *y, int64_t ldy)
{
    ref_linear(w, x, ldx, n, y, ldy);
    if (n > 0)
        sink = *(const volatile float *)(x + (n - 1) * ldx + w->cols);
}

static void linear_reads_before(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                                float *y, int64_t ldy)
{
    ref_linear(w, x, ldx, n, y, ldy);
    if (n > 0)
        sink = *((const volatile float *)x - 1);
}

static void linear_weights_past(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                                float *y, int64_t ldy)
{
    ref_linear(w, x, ldx, n, y, ldy);
    sink = (float)*(const volatile uint8_t *)(w->data + (size_t)(w->row0 + w->rows) * w->row_bytes);
}

static void linear_writes_past(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                               float *y, int64_t ldy)
{
    ref_linear(w, x, ldx, n, y, ldy);
    if (n > 1) /* into the gap between two rows, or the next row */
        y[w->rows] = 0;
}

static void linear_stale_row(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                             int64_t ldy)
{
    dsv4_tensor but_one = *w;
    but_one.rows--;
    ref_linear(&but_one, x, ldx, n, y, ldy);
}

static void linear_adds(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                        int64_t ldy)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < w->rows; r++) {
            float before = y[i * ldy + r];
            dsv4_tensor one = dsv4_tensor_rows(w, r, 1);
            ref_linear(&one, x + i * ldx, ldx, 1, y + i * ldy + r, 1);
            y[i * ldy + r] += before; /* the output was never cleared */
        }
}

static void linear_dense_only(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                              float *y, int64_t ldy)
{
    (void)ldx;
    ref_linear(w, x, w->cols, n, y, ldy);
}

static void linear_input_overwritten(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                                     float *y, int64_t ldy)
{
    ref_linear(w, x, ldx, n, y, ldy);
    if (n > 0)
        memset((void *)(uintptr_t)x, 0x5a, sizeof *x);
}

static void linear_from_row_0(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                              float *y, int64_t ldy)
{
    dsv4_tensor view = *w;
    view.row0 = 0;
    ref_linear(&view, x, ldx, n, y, ldy);
}

static void linear_traps(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                         int64_t ldy)
{
    ref_linear(w, x, ldx, n, y, ldy);
    if (w->type == DSV4_Q8_0)
        __builtin_trap();
}

static void linear_hangs(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                         int64_t ldy)
{
    ref_linear(w, x, ldx, n, y, ldy);
    while (w->type == DSV4_Q8_0)
        pause();
}

static void linear_one_span(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                            int64_t ldy)
{
    slow_linear(w, x, ldx, n, y, ldy, w->cols < 4096 ? w->cols : 4096, NULL);
}

/* ---- norms, rope ---------------------------------------------------------------------------- */

static void rmsnorm_no_eps(const float *x, const float *w, float eps, int64_t n, int64_t dim,
                           float *y)
{
    (void)eps;
    ref_rmsnorm(x, w, 0, n, dim, y);
}

static void rmsnorm_no_weight(const float *x, const float *w, float eps, int64_t n, int64_t dim,
                              float *y)
{
    (void)w;
    ref_rmsnorm(x, NULL, eps, n, dim, y);
}

static void rmsnorm_fast_root(const float *x, const float *w, float eps, int64_t n, int64_t dim,
                              float *y)
{
    ref_rmsnorm(x, w, eps, n, dim, y);
    for (int64_t i = 0; i < n * dim; i++)
        y[i] *= 1.0f + 0x1p-12f; /* an approximate reciprocal root without its Newton step */
}

static void rmsnorm_first_row(const float *x, const float *w, float eps, int64_t n, int64_t dim,
                              float *y)
{
    for (int64_t i = 0; i < n; i++) {
        float scale = (float)(1.0 / sqrt(dsv4_dot(x, x, dim) / (double)dim + (double)eps));
        for (int64_t c = 0; c < dim; c++)
            y[i * dim + c] = x[i * dim + c] * scale * (w != NULL ? w[c] : 1.0f);
    }
}

static void head_norm_always_float(float *q, float eps, int64_t n, int64_t dim, bool bf16)
{
    (void)bf16;
    ref_head_norm(q, eps, n, dim, false);
    if (bf16)
        for (int64_t i = 0; i < n * dim; i++)
            q[i] *= 1.03f;
}

static void rope_halves(float *x, int64_t n, int heads, int d, int r, const float *c,
                        const float *s, bool inverse)
{
    for (int64_t i = 0; i < n * heads; i++)
        for (int k = 0; k < r / 2; k++) {
            float *a = x + i * d + d - r + k, *b = a + r / 2, u = *a, v = *b;
            float cosine = c[i / heads * (r / 2) + k], sine = s[i / heads * (r / 2) + k];
            sine = inverse ? -sine : sine;
            *a = u * cosine - v * sine;
            *b = u * sine + v * cosine;
        }
}

static void rope_never_inverse(float *x, int64_t n, int heads, int d, int r, const float *c,
                               const float *s, bool inverse)
{
    (void)inverse;
    ref_rope(x, n, heads, d, r, c, s, false);
}

static void rope_first_dims(float *x, int64_t n, int heads, int d, int r, const float *c,
                            const float *s, bool inverse)
{
    for (int64_t i = 0; i < n; i++)
        for (int h = 0; h < heads; h++)
            ref_rope(x + (i * heads + h) * d, 1, 1, r, r, c + i * r / 2, s + i * r / 2, inverse);
}

static void rope_first_token(float *x, int64_t n, int heads, int d, int r, const float *c,
                             const float *s, bool inverse)
{
    for (int64_t i = 0; i < n; i++)
        ref_rope(x + i * heads * d, 1, heads, d, r, c, s, inverse);
}

/* ---- hyper-connections ---------------------------------------------------------------------- */

static void hc_mix_no_norm(const dsv4_tensor *fn, const float *x, float eps, int64_t n, float *m)
{
    (void)eps;
    ref_linear(fn, x, fn->cols, n, m, fn->rows);
}

static void hc_gates_transposed(const float *m, const float *scale, const float *base, int64_t n,
                                int hc, int iters, float eps, float *pre, float *post, float *comb)
{
    ref_hc_gates(m, scale, base, n, hc, iters, eps, pre, post, comb);
    for (int64_t i = 0; i < n; i++)
        for (int a = 0; a < hc; a++)
            for (int b = 0; b < a; b++) {
                float *c = comb + i * hc * hc, t = c[a * hc + b];
                c[a * hc + b] = c[b * hc + a];
                c[b * hc + a] = t;
            }
}

static void hc_gates_post_eps(const float *m, const float *scale, const float *base, int64_t n,
                              int hc, int iters, float eps, float *pre, float *post, float *comb)
{
    ref_hc_gates(m, scale, base, n, hc, iters, eps, pre, post, comb);
    for (int64_t i = 0; i < n * hc; i++)
        post[i] += 2 * eps; /* pre has it, post has not */
}

static void hc_gates_few_rounds(const float *m, const float *scale, const float *base, int64_t n,
                                int hc, int iters, float eps, float *pre, float *post, float *comb)
{
    ref_hc_gates(m, scale, base, n, hc, iters / 4, eps, pre, post, comb);
}

static void hc_gates_overflow(const float *m, const float *scale, const float *base, int64_t n,
                              int hc, int iters, float eps, float *pre, float *post, float *comb)
{
    ref_hc_gates(m, scale, base, n, hc, iters, eps, pre, post, comb);
    for (int64_t i = 0; i < n * hc; i++) { /* e^x / (1 + e^x) on the wrong side */
        float x = m[i / hc * (2 + hc) * hc + i % hc] * scale[0] + base[i % hc];
        float e = expf(x);
        pre[i] = e / (1 + e) + eps;
    }
}

static void hc_collapse_last_dropped(const float *x, const float *pre, int64_t n, int hc,
                                     int64_t dim, float *out)
{
    ref_hc_collapse(x, pre, n, hc, dim, out);
    out[n * dim - 1] = 0;
}

static void hc_post_transposed(const float *block, const float *x, const float *post,
                               const float *comb, int64_t n, int hc, int64_t dim, float *out)
{
    for (int64_t i = 0; i < n; i++)
        for (int b = 0; b < hc; b++)
            for (int64_t c = 0; c < dim; c++) {
                float sum = post[i * hc + b] * block[i * dim + c];
                for (int a = 0; a < hc; a++)
                    sum += comb[(i * hc + b) * hc + a] * x[(i * hc + a) * dim + c];
                out[(i * hc + b) * dim + c] = sum;
            }
}

/* ---- compressor, indexer -------------------------------------------------------------------- */

static void pool_no_maximum(const float *pkv, const float *pz, const float *kv, const float *z,
                            int ratio, int lanes, int dim, float *c)
{
    for (int k = 0; k < dim; k++) {
        float sum = 0, weighted = 0;
        for (int t = 0; t < ratio; t++) {
            int own = t * lanes * dim + (lanes - 1) * dim + k, prev = t * lanes * dim + k;
            float e = expf(z[own]);
            sum += e;
            weighted += e * kv[own];
            if (pz != NULL) {
                e = expf(pz[prev]);
                sum += e;
                weighted += e * pkv[prev];
            }
        }
        c[k] = weighted / sum;
    }
}

static void pool_lanes_swapped(const float *pkv, const float *pz, const float *kv, const float *z,
                               int ratio, int lanes, int dim, float *c)
{
    ref_compressor_pool(pkv, pz, kv - (lanes - 1) * dim, z - (lanes - 1) * dim, ratio, lanes, dim,
                        c);
}

static void pool_no_previous(const float *pkv, const float *pz, const float *kv, const float *z,
                             int ratio, int lanes, int dim, float *c)
{
    (void)pkv;
    (void)pz;
    ref_compressor_pool(NULL, NULL, kv, z, ratio, lanes, dim, c);
}

static void scores_no_relu(const float *q, const float *rows, const float *w, int heads, int dim,
                           int64_t n, bool bf16, float *scores)
{
    (void)bf16;
    for (int64_t j = 0; j < n; j++) {
        double sum = 0;
        for (int h = 0; h < heads; h++)
            sum += (double)w[h] * dsv4_dot(q + h * dim, rows + j * dim, dim);
        scores[j] = (float)sum;
    }
}

static void scores_nan_lost(const float *q, const float *rows, const float *w, int heads, int dim,
                            int64_t n, bool bf16, float *scores)
{
    (void)bf16;
    for (int64_t j = 0; j < n; j++) {
        double sum = 0;
        for (int h = 0; h < heads; h++) /* fmax drops a NaN */
            sum += (double)w[h] * fmax(dsv4_dot(q + h * dim, rows + j * dim, dim), 0);
        scores[j] = (float)sum;
    }
}

static void scores_heads_swapped(const float *q, const float *rows, const float *w, int heads,
                                 int dim, int64_t n, bool bf16, float *scores)
{
    float *other = malloc((size_t)heads * sizeof *other);
    for (int h = 0; h < heads; h++)
        other[h] = w[h ^ 1 && (h ^ 1) < heads ? h ^ 1 : h];
    ref_indexer_scores(q, rows, other, heads, dim, n, bf16, scores);
    free(other);
}

static void topk_ties_up(const float *scores, int64_t n, int k, int32_t *out)
{
    ref_topk(scores, n, k, out);
    for (int i = 0; i + 1 < k && out[i + 1] >= 0; i++)
        if (scores[out[i]] == scores[out[i + 1]]) {
            int32_t t = out[i];
            out[i] = out[i + 1];
            out[i + 1] = t;
        }
}

static void topk_no_fill(const float *scores, int64_t n, int k, int32_t *out)
{
    ref_topk(scores, n, n < k ? (int)n : k, out);
}

static void topk_unsorted(const float *scores, int64_t n, int k, int32_t *out)
{
    ref_topk(scores, n, k, out);
    if (n > 2 && k > 2) {
        int32_t t = out[0];
        out[0] = out[1];
        out[1] = t;
    }
}

/* ---- attention ------------------------------------------------------------------------------ */

static bool attention_no_sink(const dsv4_attention_args *a, float *out)
{
    dsv4_attention_args b = *a;
    float *none = malloc((size_t)a->heads * sizeof *none);
    for (int h = 0; h < a->heads; h++)
        none[h] = -1e30f;
    b.sink = none;
    bool ok = ref_attention(&b, out);
    free(none);
    return ok;
}

static bool attention_window_short(const dsv4_attention_args *a, float *out)
{
    dsv4_attention_args b = *a;
    if (b.window_size > 1)
        b.window_size--;
    return ref_attention(&b, out);
}

static bool attention_future_row(const dsv4_attention_args *a, float *out)
{
    dsv4_attention_args b = *a;
    if (a->ratio > 0 && a->topk == NULL)
        for (int64_t i = 0; i < a->n; i++) { /* rounds the number of rows up */
            b = *a;
            b.n = 1;
            b.pos0 = a->pos0 + i;
            b.q = a->q + i * a->heads * a->dim;
            b.ratio = a->ratio - 1;
            int64_t rows = (a->pos0 + a->n) / a->ratio;
            if ((b.pos0 + 1) / b.ratio > rows)
                b.ratio = a->ratio;
            if (!ref_attention(&b, out + i * a->heads * a->dim))
                return false;
        }
    else
        return ref_attention(&b, out);
    return true;
}

static bool attention_heads_swapped(const dsv4_attention_args *a, float *out)
{
    bool ok = ref_attention(a, out);
    for (int64_t i = 0; i < a->n * a->heads * a->dim; i++) {
        int64_t h = i / a->dim % a->heads;
        if (h % 2 == 0 && h + 1 < a->heads) {
            float t = out[i];
            out[i] = out[i + a->dim];
            out[i + a->dim] = t;
        }
    }
    return ok;
}

static bool attention_out_of_memory(const dsv4_attention_args *a, float *out)
{
    return ref_attention(a, out) && a->dim < 100;
}

/* ---- embed: how weights are decoded --------------------------------------------------------- */

/* The right operator on a copy of the table that `change` has been at. */
static void embed_changed(const dsv4_tensor *t, const int32_t *ids, int64_t n, float *x,
                          void (*change)(dsv4_tensor *t, uint8_t *data, size_t bytes))
{
    int64_t rows = t->row0 + t->rows;
    size_t bytes = (size_t)rows * t->row_bytes;
    uint8_t *data = malloc(bytes);
    dsv4_tensor copy = *t;
    memcpy(data, t->data, bytes);
    copy.data = data;
    change(&copy, data, bytes);
    ref_embed(&copy, ids, n, x);
    free(data);
}

static void zero_bytes(uint8_t *data, size_t bytes, size_t block, size_t at, size_t n)
{
    for (size_t b = 0; b < bytes; b += block)
        memset(data + b + at, 0, n);
}

static void no_fifth_bits(dsv4_tensor *t, uint8_t *data, size_t bytes)
{
    if (t->type == DSV4_Q5_0)
        zero_bytes(data, bytes, 22, 2, 4);
}
static void embed_q5_0_four_bits(const dsv4_tensor *t, const int32_t *ids, int64_t n, float *x)
{
    embed_changed(t, ids, n, x, no_fifth_bits);
}

static void last_fifth_bit_lost(dsv4_tensor *t, uint8_t *data, size_t bytes)
{
    for (size_t b = 0; t->type == DSV4_Q5_1 && b < bytes; b += 24)
        data[b + 7] &= 0x7f;
}
static void embed_q5_1_last_bit_lost(const dsv4_tensor *t, const int32_t *ids, int64_t n, float *x)
{
    embed_changed(t, ids, n, x, last_fifth_bit_lost);
}

static void nibbles_swapped(dsv4_tensor *t, uint8_t *data, size_t bytes)
{
    for (size_t b = 0; t->type == DSV4_Q4_0 && b < bytes; b += 18)
        for (size_t i = 2; i < 18; i++)
            data[b + i] = (uint8_t)(data[b + i] << 4 | data[b + i] >> 4);
}
static void embed_q4_0_nibbles_swapped(const dsv4_tensor *t, const int32_t *ids, int64_t n,
                                       float *x)
{
    embed_changed(t, ids, n, x, nibbles_swapped);
}

static void minima_dropped(dsv4_tensor *t, uint8_t *data, size_t bytes)
{
    if (t->type == DSV4_Q4_1)
        zero_bytes(data, bytes, 20, 2, 2);
    if (t->type == DSV4_Q5_K)
        zero_bytes(data, bytes, 176, 2, 2);
}
static void embed_minima_dropped(const dsv4_tensor *t, const int32_t *ids, int64_t n, float *x)
{
    embed_changed(t, ids, n, x, minima_dropped);
}

static void third_bits_inverted(dsv4_tensor *t, uint8_t *data, size_t bytes)
{
    for (size_t b = 0; t->type == DSV4_Q3_K && b < bytes; b += 110)
        for (size_t i = 0; i < 32; i++)
            data[b + i] = (uint8_t)~data[b + i];
}
static void embed_q3_k_mask_inverted(const dsv4_tensor *t, const int32_t *ids, int64_t n, float *x)
{
    embed_changed(t, ids, n, x, third_bits_inverted);
}

/* Scales read without their sign. */
static void scale_signs_lost(dsv4_tensor *t, uint8_t *data, size_t bytes)
{
    for (size_t b = 0; t->type == DSV4_Q6_K && b < bytes; b += 210)
        for (size_t i = 192; i < 208; i++)
            data[b + i] &= 0x7f;
}
static void embed_q6_k_unsigned_scales(const dsv4_tensor *t, const int32_t *ids, int64_t n,
                                       float *x)
{
    embed_changed(t, ids, n, x, scale_signs_lost);
}

/* Even steps between the levels: IQ4_NL has the layout of Q4_0. */
static void embed_iq4_nl_even_levels(const dsv4_tensor *t, const int32_t *ids, int64_t n, float *x)
{
    dsv4_tensor copy = *t;
    if (t->type == DSV4_IQ4_NL)
        copy.type = DSV4_Q4_0;
    ref_embed(&copy, ids, n, x);
}

/* The two high bits of every scale taken as zero. */
static void scale_tops_lost(dsv4_tensor *t, uint8_t *data, size_t bytes)
{
    if (t->type == DSV4_IQ4_XS)
        zero_bytes(data, bytes, 136, 2, 2);
}
static void embed_iq4_xs_four_bit_scales(const dsv4_tensor *t, const int32_t *ids, int64_t n,
                                         float *x)
{
    embed_changed(t, ids, n, x, scale_tops_lost);
}

/* Groups of 32 columns, whatever the checkpoint says. */
static void embed_mlx_short_groups(const dsv4_tensor *t, const int32_t *ids, int64_t n, float *x)
{
    dsv4_tensor copy = *t;
    if (t->type == DSV4_MLX4 && t->scale_cols == 64)
        copy.scale_cols = 32;
    if (copy.scale_cols == t->scale_cols || t->rows < 2) {
        ref_embed(t, ids, n, x);
        return;
    }
    for (int64_t i = 0; i < n; i++) { /* the last row's groups would lie outside */
        int32_t id = ids[i] == t->rows - 1 ? 0 : ids[i];
        ref_embed(&copy, &id, 1, x + i * t->cols);
    }
}

static void embed_mlx_scale_for_bias(const dsv4_tensor *t, const int32_t *ids, int64_t n, float *x)
{
    dsv4_tensor copy = *t;
    copy.bias = t->type == DSV4_MLX8 ? t->scale : t->bias;
    ref_embed(&copy, ids, n, x);
}

#endif
