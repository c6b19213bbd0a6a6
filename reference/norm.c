/* norm.c - RMSNorm, the dot product and the linear map: what every block is made of. */
#include <math.h>
#include <string.h>

#include "scalar.h"

double dsv4_dot(const float *a, const float *b, int64_t n)
{
    double lane[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int l = 0; l < 8; l++)
            lane[l] += (double)a[i + l] * (double)b[i + l];
    for (int l = 0; i < n; i++, l++)
        lane[l] += (double)a[i] * (double)b[i];
    return ((lane[0] + lane[4]) + (lane[1] + lane[5])) +
           ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}

/* Columns decoded at a time: a multiple of every format's block (256), of FP8's 128 and of every
 * MLX group, so that a span starts where a scale starts. */
enum { SPAN = 512, TOKENS = 64 };

void ref_linear(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y, int64_t ldy)
{
    for (int64_t first = 0; first < n; first += TOKENS) {
        int64_t tokens = n - first < TOKENS ? n - first : TOKENS;
        for (int64_t row = 0; row < w->rows; row++) {
            float weights[SPAN];
            double sum[TOKENS] = {0};
            for (int64_t col = 0; col < w->cols; col += SPAN) {
                int64_t cols = w->cols - col < SPAN ? w->cols - col : SPAN;
                dsv4_tensor_span(w, row, col, cols, weights);
                for (int64_t i = 0; i < tokens; i++)
                    sum[i] += dsv4_dot(weights, x + (first + i) * ldx + col, cols);
            }
            for (int64_t i = 0; i < tokens; i++)
                y[(first + i) * ldy + row] = (float)sum[i];
        }
    }
}

void ref_embed(const dsv4_tensor *table, const int32_t *ids, int64_t n, float *x)
{
    for (int64_t i = 0; i < n; i++)
        dsv4_tensor_row(table, ids[i], x + i * table->cols);
}

void ref_add(float *x, const float *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] += y[i];
}

/* RMSNorm(x)_k = w_k x_k / sqrt(mean(x^2) + eps) */
void ref_rmsnorm(const float *x, const float *w, float eps, int64_t n, int64_t dim, float *y)
{
    for (int64_t i = 0; i < n; i++) {
        const float *in = x + i * dim;
        float *out = y + i * dim;
        /* Float32 at the released code's rounding points: the mean, its root, x times it. */
        float mean = (float)(dsv4_dot(in, in, dim) / (double)dim);
        float scale = (float)(1.0 / sqrt((double)(mean + eps)));
        for (int64_t k = 0; k < dim; k++) {
            float unit = in[k] * scale;
            out[k] = w != NULL ? w[k] * unit : unit;
        }
    }
}

void ref_head_norm(float *q, float eps, int64_t n, int64_t dim, bool bf16)
{
    if (!bf16) {
        ref_rmsnorm(q, NULL, eps, n, dim, q);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        float *head = q + i * dim;
        double sum = 0;
        for (int64_t k = 0; k < dim; k++)
            sum += (double)dsv4_bf16(head[k] * head[k]);
        float mean = dsv4_bf16(dsv4_bf16((float)(sum / (double)dim)) + eps);
        float scale = dsv4_bf16((float)(1.0 / sqrt((double)mean)));
        for (int64_t k = 0; k < dim; k++)
            head[k] = dsv4_bf16(head[k] * scale);
    }
}
