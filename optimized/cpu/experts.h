/* experts.h - the routed experts of a block of tokens, on this instruction set's linear, SwiGLU
 * and roundings. Each expert is visited once: its tokens are gathered, so that a weight row is
 * decoded once however many tokens share it. */
#ifndef DSV4_CPU_EXPERTS_H
#define DSV4_CPU_EXPERTS_H

#include <stdlib.h>
#include <string.h>

#include "linear.h"
#include "numerics.h"
#include "swiglu.h"

typedef struct {
    int64_t *token;           /* [n] the expert's tokens */
    float *share;             /* [n] their weights */
    float *x, *gate, *up, *y; /* [n][D], [n][F], [n][F], [n][D] */
} experts_work;

static inline bool experts_small_floats(const dsv4_tensor *w)
{
    return w->type == DSV4_FP8 || w->type == DSV4_FP4;
}

/* Tokens that chose expert e, with x gathered; returns how many. */
static inline int64_t experts_gather(const dsv4_experts_args *a, int64_t e, int64_t D,
                                     experts_work *w)
{
    int64_t m = 0;
    for (int64_t i = 0; i < a->n; i++) {
        bool chosen = false;
        float weight = 0; /* an expert listed twice gets both weights */
        for (int s = 0; s < a->k; s++)
            if (a->experts[i * a->k + s] == e) {
                chosen = true;
                weight += a->weights[i * a->k + s];
            }
        if (!chosen)
            continue;
        w->token[m] = i;
        w->share[m] = weight;
        memcpy(w->x + m * D, a->x + i * D, (size_t)D * sizeof *w->x);
        m++;
    }
    return m;
}

static inline void experts_one(const dsv4_experts_args *a, int64_t e, int64_t D, int64_t F,
                               experts_work *w, float *out)
{
    const dsv4_layer *layer = a->layer;
    bool deployed = a->numerics == DSV4_DEPLOYED;
    int64_t m = experts_gather(a, e, D, w);
    if (m == 0)
        return;
    if (deployed && experts_small_floats(&layer->w1[e]))
        round_fp8_body(w->x, m, D, D, D < 128 ? (int)D : 128);
    linear_body(&layer->w1[e], w->x, D, m, w->gate, F);
    linear_body(&layer->w3[e], w->x, D, m, w->up, F);
    if (deployed) {
        round_bf16_body(w->gate, m * F);
        round_bf16_body(w->up, m * F);
    }
    swiglu_body(w->gate, w->up, layer->swiglu_limit, m * F, w->gate);
    for (int64_t i = 0; i < m; i++)
        vf_multiply(w->gate + i * F, w->share[i], F);
    if (deployed) {
        round_bf16_body(w->gate, m * F);
        if (experts_small_floats(&layer->w2[e]))
            round_fp8_body(w->gate, m, F, F, F < 128 ? (int)F : 128);
    }
    linear_body(&layer->w2[e], w->gate, F, m, w->y, D);
    if (deployed)
        round_bf16_body(w->y, m * D);
    for (int64_t i = 0; i < m; i++) {
        float *sum = out + w->token[i] * D;
        const float *y = w->y + i * D;
        for (int64_t k = 0; k < D; k += VL) {
            int64_t len = D - k < VL ? D - k : VL;
            vf_store_n(sum + k, vf_add(vf_load_n(sum + k, len), vf_load_n(y + k, len)), len);
        }
    }
}

static inline bool experts_body(const dsv4_experts_args *a, float *out)
{
    int64_t D = a->layer->w1[0].cols, F = a->layer->w1[0].rows;
    size_t n = (size_t)a->n;
    experts_work w = {
        .token = calloc(n, sizeof *w.token),
        .share = calloc(n, sizeof *w.share),
        .x = calloc(n * (size_t)D, sizeof *w.x),
        .gate = calloc(n * (size_t)F, sizeof *w.gate),
        .up = calloc(n * (size_t)F, sizeof *w.up),
        .y = calloc(n * (size_t)D, sizeof *w.y),
    };
    bool ok = w.token && w.share && w.x && w.gate && w.up && w.y;
    if (ok)
        memset(out, 0, n * (size_t)D * sizeof *out);
    for (int64_t e = 0; ok && e < a->layer->gate.rows; e++)
        experts_one(a, e, D, F, &w, out);
    free(w.token);
    free(w.share);
    free(w.x);
    free(w.gate);
    free(w.up);
    free(w.y);
    return ok;
}

#endif
