/* mutants_heldout2.c - a second lot of wrong models, written after the first one had led to trials
 * with a range of numbers and in single layers. Nothing was changed for these once they had been
 * run. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mutants.h"
#include "mutants_attend.h"

static void gates_half_in_1(const float *m, const float *scale, const float *base, int64_t n,
                            int hc, int iters, float eps, float *pre, float *post, float *comb)
{
    ref_hc_gates(m, scale, base, n, hc, iters, eps, pre, post, comb);
    for (int64_t i = 0; now.layer == 1 && now.attention && i < n * hc; i++)
        post[i] /= 2;
}

static void plant_half_in_1(plan *p)
{
    p->ops.hc_gates = gates_half_in_1;
}

/* Every head takes the sink of the head opposite. */
static bool attention_sinks_reversed(const dsv4_attention_args *a, float *out)
{
    dsv4_attention_args b = *a;
    float sink[512];
    for (int h = 0; h < a->heads && h < 512; h++)
        sink[h] = a->sink[a->heads - 1 - h];
    b.sink = sink;
    return ref_attention(&b, out);
}

static void plant_sinks_reversed(plan *p)
{
    p->ops.attention = attention_sinks_reversed;
}

/* Every second head keeps its length. */
static void head_norm_even(float *q, float eps, int64_t n, int64_t dim, bool bf16)
{
    for (int64_t i = 0; i < n; i += 2)
        ref_head_norm(q + i * dim, eps, 1, dim, bf16);
}

static void plant_head_norm_even(plan *p)
{
    p->ops.head_norm = head_norm_even;
}

static void rope_halves_later(float *x, int64_t n, int heads, int d, int r, const float *cos,
                              const float *sin, bool inverse)
{
    int half = r / 2;
    if (now.layer == 0) {
        ref_rope(x, n, heads, d, r, cos, sin, inverse);
        return;
    }
    for (int64_t i = 0; i < n * heads; i++)
        for (int k = 0; k < half; k++) {
            float *t = x + i * d + d - r, c = cos[i / heads * half + k];
            float s = inverse ? -sin[i / heads * half + k] : sin[i / heads * half + k];
            float a = t[k], b = t[k + half];
            t[k] = a * c - b * s;
            t[k + half] = a * s + b * c;
        }
}

static void plant_halves_later(plan *p)
{
    p->ops.rope = rope_halves_later;
}

/* In layers with a compressor the output is not rotated back. */
static void rope_no_inverse_there(float *x, int64_t n, int heads, int d, int r, const float *cos,
                                  const float *sin, bool inverse)
{
    if (!inverse || now_layer()->ratio == 0)
        ref_rope(x, n, heads, d, r, cos, sin, inverse);
}

static void plant_no_inverse_there(plan *p)
{
    p->ops.rope = rope_no_inverse_there;
}

/* Compressed rows are rotated at half their position. */
static void angles_half_way(const float *inv, int half, const int64_t *pos, int64_t n, float *cos,
                            float *sin)
{
    int64_t p = pos[0] / 2;
    track_rope_angles(inv, half, angles_of_row() ? &p : pos, n, cos, sin);
}

static void plant_half_way(plan *p)
{
    p->ops.rope_angles = angles_half_way;
}

/* The position bias is left out in layer 2. */
static void add_no_bias_in_2(float *x, const float *y, int64_t n)
{
    if (!now.attention || now.layer != 2)
        ref_add(x, y, n);
}

static void plant_no_bias_in_2(plan *p)
{
    p->ops.add = add_no_bias_in_2;
}

/* The first head's scores are summed without max(0, .). */
static void scores_first_free(const float *q, const float *rows, const float *w, int heads, int dim,
                              int64_t n, bool bf16, float *scores)
{
    ref_indexer_scores(q, rows, w, heads, dim, n, bf16, scores);
    for (int64_t j = 0; j < n; j++) {
        double dot = dsv4_dot(q, rows + j * dim, dim);
        scores[j] += (float)(dot < 0 ? dot * (double)w[0] : 0);
    }
}

static void plant_first_free(plan *p)
{
    p->ops.indexer_scores = scores_first_free;
}

/* The selection bias counts twice. */
static void router_bias_twice(const float *logits, const float *bias, const dsv4_tensor *table,
                              const int32_t *ids, int64_t n, int n_experts, int k, float scaling,
                              int32_t *experts, float *weights)
{
    float twice[512];
    for (int e = 0; bias != NULL && e < n_experts && e < 512; e++)
        twice[e] = 2 * bias[e];
    ref_router(logits, bias != NULL ? twice : NULL, table, ids, n, n_experts, k, scaling, experts,
               weights);
}

static void plant_bias_twice(plan *p)
{
    p->ops.router = router_bias_twice;
}

static bool experts_tripled(const dsv4_experts_args *a, float *out)
{
    bool ok = ref_experts(a, out);
    for (int64_t i = 0; ok && i < a->n * a->layer->w1[0].cols; i++)
        out[i] *= 3;
    return ok;
}

static void plant_tripled(plan *p)
{
    p->ops.experts = experts_tripled;
}

/* FP8 codes of layer 2's output matrices come out twice as large. */
static void plant_codes_doubled(plan *p)
{
    dsv4_tensor *list[] = {&p->layers[2].wo_a, &p->layers[2].wo_b};
    for (int i = 0; i < 2; i++) {
        dsv4_tensor stored = *list[i];
        float *v = plan_own_values(p, list[i]);
        for (int64_t r = 0; r < stored.rows; r++) {
            dsv4_tensor_row(&stored, r, v + r * stored.cols);
            for (int64_t c = 0; c < stored.cols; c++)
                v[r * stored.cols + c] *= 2;
        }
    }
}

/* Decode steps lose the overlap in layer 3 alone. */
static void pool_alone_late(const float *prev_kv, const float *prev_z, const float *kv,
                            const float *z, int ratio, int lanes, int dim, float *c)
{
    bool lost = decoding() && now.layer == 3;
    ref_compressor_pool(lost ? NULL : prev_kv, lost ? NULL : prev_z, kv, z, ratio, lanes, dim, c);
}

static void plant_alone_late(plan *p)
{
    p->ops.compressor_pool = pool_alone_late;
}

/* Decode steps pick half as many rows. */
static void topk_half(const float *scores, int64_t n, int k, int32_t *out)
{
    ref_topk(scores, n, k, out);
    for (int s = k / 2 - 1; decoding() && s < k; s++)
        out[s] = -1;
}

static void plant_topk_half(plan *p)
{
    p->ops.topk = topk_half;
}

static int64_t leave_five_rows(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    for (int l = 0; l < s->n_layers; l++)
        if (s->layers[l].compressor.ratio == 4)
            s->layers[l].compressor.n_rows = s->layers[l].indexer.n_rows = 5;
    return 0;
}

/* The newer half of the indexer's rows is not in the saved session. */
static int64_t restore_half_index(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    for (int l = 0; l < s->n_layers; l++) {
        compressor_state *c = &s->layers[l].indexer;
        int64_t half = c->n_rows / 2;
        if (c->ratio > 0)
            memset(c->rows + half * c->dim, 0,
                   (size_t)((c->n_rows - half) * c->dim) * sizeof *c->rows);
    }
    return s->position;
}

static void plant_five_rows(plan *p)
{
    p->disturb = leave_five_rows;
}

static void plant_half_index(plan *p)
{
    p->disturb = restore_half_index;
}

const mutant mutants_heldout2[] = {
    {"again-post-half-in-1", "Automodel e42168e16 (HC02)", "mhc", 1, RUN_SHORT, plant_half_in_1,
     "in layer 1 attention's post gate lacks its factor 2", NULL},
    {"again-sinks-reversed", "sglang #35092 (AT20)", "attention", 0, RUN_SHORT,
     plant_sinks_reversed, "every head takes the sink of the head opposite", NULL},
    {"again-head-norm-even", "transformers #45643 (AT35)", "attention", 0, RUN_SHORT,
     plant_head_norm_even, "every second head of q is not divided by its rms", NULL},
    {"again-halves-later", "Automodel e42168e16 (RP03)", "rope", 1, RUN_SHORT, plant_halves_later,
     "from layer 1 on pairs (k, k + r/2) are rotated", NULL},
    {"again-no-inverse-there", "Primus 2255b56f (RP10)", "rope", 1, RUN_SHORT,
     plant_no_inverse_there, "in compressed layers the output is not rotated back", NULL},
    {"again-rows-half-way", "ds4 c9dd949 (RP01)", "rope", 2, RUN_SHORT, plant_half_way,
     "compressed rows are rotated at half their position", NULL},
    {"again-no-bias-in-2", "Primus f133beb3 (CP16)", "compressor", 2, RUN_SHORT, plant_no_bias_in_2,
     "in layer 2 the position bias is left out", NULL},
    {"again-first-head-free", "vLLM fork #250 (IX06)", "indexer", 2, RUN_SHORT, plant_first_free,
     "the first head's scores are summed without max(0, .)", NULL},
    {"again-bias-twice", "atlas #186 (RT06)", "router", 2, RUN_SHORT, plant_bias_twice,
     "the selection bias counts twice", NULL},
    {"again-tripled", "vllm-ascend #9389 (ME04)", "experts", 0, RUN_SHORT, plant_tripled,
     "the routed sum is reduced three times", NULL},
    {"again-codes-doubled", "vllm #45681 (QT02)", "quant|attention", 2, RUN_SHORT,
     plant_codes_doubled, "in layer 2 the codes of the output matrices come out twice as large",
     "no other product shares the mistake"},
    {"again-overlap-late", "omlx #2271 (CP04)", "state", 3, RUN_DECODE, plant_alone_late,
     "decode steps lose the overlap with the window before, in layer 3", NULL},
    {"again-half-the-rows", "ds4 49da384 (IX20)", "state", 2, RUN_DECODE_ALONE, plant_topk_half,
     "decode steps pick fewer than half of index_topk", NULL},
    {"again-five-rows", "mlx-lm #1192 (KV18)", "state", 2, RUN_SECOND, plant_five_rows,
     "five compressed rows of the request before come first, in the indexer too", NULL},
    {"again-half-index", "ik_llama.cpp #2146 (KV07)", "state", 2, RUN_RESTORE, plant_half_index,
     "the newer half of the indexer's rows is not in the saved session", NULL},
    {.name = NULL},
};
