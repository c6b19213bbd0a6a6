/* linear.h - y = W x on float32 activations. Weight rows are decoded a span of columns at a time,
 * once for up to TOKENS tokens; the products run in register tiles of LINEAR_ROWS x LINEAR_TOKENS
 * running sums of VL lanes. */
#ifndef DSV4_CPU_LINEAR_H
#define DSV4_CPU_LINEAR_H

#include <math.h>

#include "decode.h"

/* Columns decoded at a time: a multiple of every format's block and scale group. */
enum { LINEAR_SPAN = 512, LINEAR_BLOCK = 32 };

/* sum[r][t] += W[r] . x[t] over n columns; rows of W w_ld apart, sums LINEAR_BLOCK apart. `rows`
 * and `tokens` are constants where it is called: the sums live in registers. */
static inline __attribute__((always_inline)) void linear_tile(int rows, int tokens, const float *w,
                                                              int64_t w_ld, const float *x,
                                                              int64_t ldx, int64_t n, vf *sum)
{
    vf acc[LINEAR_ROWS][LINEAR_TOKENS];
    int64_t i = 0;
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tokens; t++)
            acc[r][t] = sum[r * LINEAR_BLOCK + t];
    for (; i + VL <= n; i += VL) {
        vf in[LINEAR_TOKENS];
        for (int t = 0; t < tokens; t++)
            in[t] = vf_load(x + t * ldx + i);
        for (int r = 0; r < rows; r++) {
            vf weight = vf_load(w + r * w_ld + i);
            for (int t = 0; t < tokens; t++)
                acc[r][t] = vf_fma(weight, in[t], acc[r][t]);
        }
    }
    if (i < n)
        for (int r = 0; r < rows; r++) {
            vf weight = vf_load_n(w + r * w_ld + i, n - i);
            for (int t = 0; t < tokens; t++)
                acc[r][t] = vf_fma(weight, vf_load_n(x + t * ldx + i, n - i), acc[r][t]);
        }
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < tokens; t++)
            sum[r * LINEAR_BLOCK + t] = acc[r][t];
}

/* All tokens of a block against `rows` (1 or LINEAR_ROWS) decoded rows. */
static inline void linear_span(int rows, int64_t tokens, const float *w, int64_t w_ld,
                               const float *x, int64_t ldx, int64_t n, vf *sum)
{
    int64_t t = 0;
    for (; t + LINEAR_TOKENS <= tokens; t += LINEAR_TOKENS)
        if (rows == LINEAR_ROWS)
            linear_tile(LINEAR_ROWS, LINEAR_TOKENS, w, w_ld, x + t * ldx, ldx, n, sum + t);
        else
            linear_tile(1, LINEAR_TOKENS, w, w_ld, x + t * ldx, ldx, n, sum + t);
    for (; t < tokens; t++)
        if (rows == LINEAR_ROWS)
            linear_tile(LINEAR_ROWS, 1, w, w_ld, x + t * ldx, ldx, n, sum + t);
        else
            linear_tile(1, 1, w, w_ld, x + t * ldx, ldx, n, sum + t);
}

static inline void linear_body(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                               float *y, int64_t ldy)
{
    float weights[LINEAR_ROWS * LINEAR_SPAN];
    vf sum[LINEAR_ROWS * LINEAR_BLOCK];
    for (int64_t first = 0; first < n; first += LINEAR_BLOCK) {
        int64_t tokens = n - first < LINEAR_BLOCK ? n - first : LINEAR_BLOCK;
        const float *in = x + first * ldx;
        for (int64_t row = 0, rows; row < w->rows; row += rows) {
            rows = w->rows - row >= LINEAR_ROWS ? LINEAR_ROWS : 1;
            for (int k = 0; k < LINEAR_ROWS * LINEAR_BLOCK; k++)
                sum[k] = vf_zero();
            for (int64_t col = 0; col < w->cols; col += LINEAR_SPAN) {
                int64_t cols = w->cols - col < LINEAR_SPAN ? w->cols - col : LINEAR_SPAN;
                for (int64_t r = 0; r < rows; r++)
                    decode_span(w, row + r, col, cols, weights + r * LINEAR_SPAN);
                linear_span((int)rows, tokens, weights, LINEAR_SPAN, in + col, ldx, cols, sum);
            }
            for (int64_t r = 0; r < rows; r++)
                for (int64_t t = 0; t < tokens; t++)
                    y[(first + t) * ldy + row + r] = vf_sum(sum[r * LINEAR_BLOCK + t]);
        }
    }
}

static inline void embed_body(const dsv4_tensor *table, const int32_t *ids, int64_t n, float *x)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t col = 0; col < table->cols; col += LINEAR_SPAN) {
            int64_t cols = table->cols - col < LINEAR_SPAN ? table->cols - col : LINEAR_SPAN;
            decode_span(table, ids[i], col, cols, x + i * table->cols + col);
        }
}

/* m = (fn v) / sqrt(mean(v^2) + eps) */
static inline void hc_mix_body(const dsv4_tensor *fn, const float *streams, float eps, int64_t n,
                               float *m)
{
    int64_t width = fn->cols;
    linear_body(fn, streams, width, n, m, fn->rows);
    for (int64_t i = 0; i < n; i++)
        vf_multiply(m + i * fn->rows, inverse_rms(streams + i * width, width, eps), fn->rows);
}

#endif
