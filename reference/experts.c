/* experts.c - clamped SwiGLU experts. A block of tokens visits each expert once: its tokens are
 * gathered, so that a weight row is decoded once however many tokens share it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "scalar.h"

/* silu(min(gate, L)) * clamp(up, -L, L): the gate is clamped above only. */
void ref_swiglu(const float *gate, const float *up, float limit, int64_t n, float *h)
{
    for (int64_t i = 0; i < n; i++) {
        double g = (double)gate[i], u = (double)up[i], L = (double)limit;
        if (L > 0) {
            g = g > L ? L : g;
            u = u > L ? L : u < -L ? -L : u;
        }
        h[i] = (float)(g / (1.0 + exp(-g)) * u);
    }
}

static bool quantised(const dsv4_tensor *w)
{
    return w->type == DSV4_FP8 || w->type == DSV4_FP4;
}

bool ref_experts(const dsv4_experts_args *a, float *out)
{
    const dsv4_layer *layer = a->layer;
    int64_t D = layer->w1[0].cols, F = layer->w1[0].rows, n = a->n;
    bool deployed = a->numerics == DSV4_DEPLOYED;
    int64_t n_experts = layer->gate.rows;
    int64_t *token = dsv4_alloc((size_t)n, sizeof *token, "experts", NULL);
    float *share = dsv4_alloc((size_t)n, sizeof *share, "experts", NULL);
    float *x = dsv4_alloc((size_t)(n * D), sizeof *x, "experts", NULL);
    float *gate = dsv4_alloc((size_t)(n * F), sizeof *gate, "experts", NULL);
    float *up = dsv4_alloc((size_t)(n * F), sizeof *up, "experts", NULL);
    float *y = dsv4_alloc((size_t)(n * D), sizeof *y, "experts", NULL);
    double *sum = dsv4_alloc((size_t)(n * D), sizeof *sum, "experts", NULL);
    bool ok = token && share && x && gate && up && y && sum;

    for (int64_t e = 0; ok && e < n_experts; e++) {
        int64_t m = 0; /* tokens that chose expert e */
        for (int64_t i = 0; i < n; i++) {
            bool chosen = false;
            float weight = 0; /* an expert listed twice gets both weights */
            for (int s = 0; s < a->k; s++)
                if (a->experts[i * a->k + s] == e) {
                    chosen = true;
                    weight += a->weights[i * a->k + s];
                }
            if (!chosen)
                continue;
            token[m] = i;
            share[m] = weight;
            memcpy(x + m * D, a->x + i * D, (size_t)D * sizeof *x);
            m++;
        }
        if (m == 0)
            continue;
        if (deployed && quantised(&layer->w1[e]))
            ref_round_fp8(x, m, D, D, D < 128 ? (int)D : 128);
        ref_linear(&layer->w1[e], x, D, m, gate, F);
        ref_linear(&layer->w3[e], x, D, m, up, F);
        if (deployed) {
            ref_round_bf16(gate, m * F);
            ref_round_bf16(up, m * F);
        }
        ref_swiglu(gate, up, layer->swiglu_limit, m * F, gate);
        for (int64_t i = 0; i < m; i++)
            for (int64_t f = 0; f < F; f++)
                gate[i * F + f] *= share[i];
        if (deployed) {
            ref_round_bf16(gate, m * F);
            if (quantised(&layer->w2[e]))
                ref_round_fp8(gate, m, F, F, F < 128 ? (int)F : 128);
        }
        ref_linear(&layer->w2[e], gate, F, m, y, D);
        if (deployed)
            ref_round_bf16(y, m * D);
        for (int64_t i = 0; i < m; i++)
            for (int64_t k = 0; k < D; k++)
                sum[token[i] * D + k] += (double)y[i * D + k];
    }
    for (int64_t i = 0; ok && i < n * D; i++)
        out[i] = (float)sum[i];
    free(token);
    free(share);
    free(x);
    free(gate);
    free(up);
    free(y);
    free(sum);
    return ok;
}
