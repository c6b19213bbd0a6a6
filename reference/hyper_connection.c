/* hyper_connection.c - mHC, manifold-constrained hyper-connections: hc residual streams are mixed
 * by a doubly stochastic matrix (Sinkhorn) and gated into and out of each block. */
#include <math.h>
#include <string.h>

#include "scalar.h"

static double sigmoid(double x)
{
    /* Both branches take exp of a non-positive number: no overflow at either end. */
    if (x >= 0)
        return 1.0 / (1.0 + exp(-x));
    double e = exp(x);
    return e / (1.0 + e);
}

/* m = (fn v) / sqrt(mean(v^2) + eps): the norm has no weight, so it can follow the product. */
void ref_hc_mix(const dsv4_tensor *fn, const float *streams, float eps, int64_t n, float *m)
{
    int64_t width = fn->cols; /* hc * D */
    ref_linear(fn, streams, width, n, m, fn->rows);
    for (int64_t i = 0; i < n; i++) {
        const float *v = streams + i * width;
        float mean = (float)(dsv4_dot(v, v, width) / (double)width);
        float scale = (float)(1.0 / sqrt((double)(mean + eps)));
        for (int64_t k = 0; k < fn->rows; k++)
            m[i * fn->rows + k] *= scale;
    }
}

/* comb[a][b]: softmax over b, + eps, one column pass; then iters - 1 times rows, columns. eps is
 * in every divisor. */
static void sinkhorn(double *comb, int hc, int iters, double eps)
{
    for (int a = 0; a < hc; a++) {
        double *row = comb + a * hc, max = row[0], sum = 0;
        for (int b = 1; b < hc; b++)
            max = row[b] > max ? row[b] : max;
        for (int b = 0; b < hc; b++)
            sum += row[b] = exp(row[b] - max);
        for (int b = 0; b < hc; b++)
            row[b] = row[b] / sum + eps;
    }
    for (int pass = 0; pass < iters; pass++) {
        for (int a = 0; a < hc && pass > 0; a++) {
            double sum = 0;
            for (int b = 0; b < hc; b++)
                sum += comb[a * hc + b];
            for (int b = 0; b < hc; b++)
                comb[a * hc + b] /= sum + eps;
        }
        for (int b = 0; b < hc; b++) {
            double sum = 0;
            for (int a = 0; a < hc; a++)
                sum += comb[a * hc + b];
            for (int a = 0; a < hc; a++)
                comb[a * hc + b] /= sum + eps;
        }
    }
}

enum { MAX_HC = 16 }; /* config.c refuses more */

void ref_hc_gates(const float *m, const float *scale, const float *base, int64_t n, int hc,
                  int sinkhorn_iters, float eps, float *pre, float *post, float *comb)
{
    int width = (2 + hc) * hc;
    for (int64_t i = 0; i < n; i++, m += width) {
        double c[MAX_HC * MAX_HC];
        for (int j = 0; j < hc; j++) {
            double in = (double)m[j] * (double)scale[0] + (double)base[j];
            double out = (double)m[hc + j] * (double)scale[1] + (double)base[hc + j];
            pre[i * hc + j] = (float)(sigmoid(in) + (double)eps);
            post[i * hc + j] = (float)(2.0 * sigmoid(out)); /* no eps here */
        }
        for (int k = 0; k < hc * hc; k++)
            c[k] = (double)m[2 * hc + k] * (double)scale[2] + (double)base[2 * hc + k];
        sinkhorn(c, hc, sinkhorn_iters, (double)eps);
        for (int k = 0; k < hc * hc; k++)
            comb[i * hc * hc + k] = (float)c[k];
    }
}

void ref_hc_head_gates(const float *m, const float *scale, const float *base, int64_t n, int hc,
                       float eps, float *pre)
{
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < hc; j++) {
            double in = (double)m[i * hc + j] * (double)scale[0] + (double)base[j];
            pre[i * hc + j] = (float)(sigmoid(in) + (double)eps);
        }
}

void ref_hc_collapse(const float *streams, const float *pre, int64_t n, int hc, int64_t dim,
                     float *x)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < dim; k++) {
            double sum = 0;
            for (int j = 0; j < hc; j++)
                sum += (double)pre[i * hc + j] * (double)streams[(i * hc + j) * dim + k];
            x[i * dim + k] = (float)sum;
        }
}

/* X'_b = post_b * block + sum_a comb[a][b] X_a */
void ref_hc_post(const float *block, const float *streams, const float *post, const float *comb,
                 int64_t n, int hc, int64_t dim, float *out)
{
    for (int64_t i = 0; i < n; i++)
        for (int b = 0; b < hc; b++)
            for (int64_t k = 0; k < dim; k++) {
                double sum = (double)post[i * hc + b] * (double)block[i * dim + k];
                for (int a = 0; a < hc; a++)
                    sum += (double)comb[(i * hc + a) * hc + b] *
                           (double)streams[(i * hc + a) * dim + k];
                out[(i * hc + b) * dim + k] = (float)sum;
            }
}
