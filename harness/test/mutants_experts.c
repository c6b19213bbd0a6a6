/* mutants_experts.c - wrong routers, hash tables and experts. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mutants.h"

/* ---- router -------------------------------------------------------------------------------- */

typedef double (*score_fn)(double logit);

/* The router with another score, or with parts left out. */
typedef struct {
    score_fn score;
    bool bias_weighs, no_bias, no_sum, no_scaling;
    int first_experts; /* 0 = all may be chosen */
} router_change;

static double right_score(double x)
{
    return sqrt(fmax(x, 0.0) + log1p(exp(-fabs(x))));
}

static double softplus(double x)
{
    return fmax(x, 0.0) + log1p(exp(-fabs(x)));
}

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static double naive_softplus(double x)
{
    float e = expf((float)x), sum = 1.0f + e;
    return sqrt((double)logf(sum));
}

static double fast_score(double x)
{
    /* exp and log by short tables: relative error 1e-3 */
    return right_score(x) * (1 + 1e-3 * sin(40 * x));
}

static void route(const router_change *r, const float *logits, const float *bias,
                  const dsv4_tensor *table, const int32_t *ids, int64_t n, int n_experts, int k,
                  float scaling, int32_t *experts, float *weights)
{
    for (int64_t i = 0; i < n; i++) {
        double s[512], sum = 0;
        float value[512];
        for (int e = 0; e < n_experts; e++) {
            s[e] = r->score((double)logits[i * n_experts + e]);
            value[e] = (float)s[e] + (bias != NULL && !r->no_bias ? bias[e] : 0);
            if (r->bias_weighs && bias != NULL)
                s[e] += (double)bias[e];
        }
        int among = r->first_experts > 0 ? r->first_experts : n_experts;
        if (table != NULL)
            for (int c = 0; c < k; c++)
                experts[i * k + c] = (int32_t)dsv4_tensor_int(table, (int64_t)ids[i] * k + c);
        else
            ref_topk(value, among, k, experts + i * k);
        for (int c = 0; c < k; c++)
            sum += s[experts[i * k + c]];
        for (int c = 0; c < k; c++)
            weights[i * k + c] = (float)(s[experts[i * k + c]] / (r->no_sum ? 1 : sum) *
                                         (r->no_scaling ? 1 : (double)scaling));
    }
}

#define ROUTER(name, ...)                                                                          \
    static void router_##name(const float *logits, const float *bias, const dsv4_tensor *table,    \
                              const int32_t *ids, int64_t n, int n_experts, int k, float scaling,  \
                              int32_t *experts, float *weights)                                    \
    {                                                                                              \
        const router_change r = {__VA_ARGS__};                                                     \
        route(&r, logits, bias, table, ids, n, n_experts, k, scaling, experts, weights);           \
    }                                                                                              \
    static void plant_router_##name(plan *p)                                                       \
    {                                                                                              \
        p->ops.router = router_##name;                                                             \
    }
ROUTER(bias_weighs, .score = right_score, .bias_weighs = true)
ROUTER(no_bias, .score = right_score, .no_bias = true)
ROUTER(not_normalised, .score = right_score, .no_sum = true)
ROUTER(not_scaled, .score = right_score, .no_scaling = true)
ROUTER(sigmoid, .score = sigmoid)
ROUTER(softmax, .score = exp)
ROUTER(no_root, .score = softplus)
ROUTER(naive, .score = naive_softplus)
ROUTER(fast_math, .score = fast_score)
ROUTER(half, .score = right_score, .first_experts = 5)

/* The score row is padded to a power of two with zeros, and the padding competes. */
static void router_padding(const float *logits, const float *bias, const dsv4_tensor *table,
                           const int32_t *ids, int64_t n, int n_experts, int k, float scaling,
                           int32_t *experts, float *weights)
{
    float padded[512] = {0}, padded_bias[512] = {0};
    for (int64_t i = 0; i < n; i++) {
        const float *row = logits + i * n_experts;
        ref_router(row, bias, table, ids + i, 1, n_experts, k, scaling, experts + i * k,
                   weights + i * k);
        if (table != NULL)
            continue;
        memcpy(padded, row, (size_t)n_experts * sizeof *row);
        if (bias != NULL)
            memcpy(padded_bias, bias, (size_t)n_experts * sizeof *bias);
        ref_router(padded, padded_bias, NULL, ids + i, 1, 16, k, scaling, experts + i * k,
                   weights + i * k);
        for (int c = 0; c < k; c++) /* a GPU reads some expert there; here the last one */
            if (experts[i * k + c] >= n_experts)
                experts[i * k + c] = n_experts - 1;
    }
}

static void router_weights_turned(const float *logits, const float *bias, const dsv4_tensor *table,
                                  const int32_t *ids, int64_t n, int n_experts, int k,
                                  float scaling, int32_t *experts, float *weights)
{
    ref_router(logits, bias, table, ids, n, n_experts, k, scaling, experts, weights);
    for (int64_t i = 0; i < n; i++) {
        float first = weights[i * k];
        memmove(weights + i * k, weights + i * k + 1, (size_t)(k - 1) * sizeof *weights);
        weights[i * k + k - 1] = first;
    }
}

static void plant_router_padding(plan *p)
{
    p->ops.router = router_padding;
}

static void plant_router_turned(plan *p)
{
    p->ops.router = router_weights_turned;
}

static void plant_bias_absent(plan *p)
{
    for (int l = 0; l < p->model.config.num_hidden_layers; l++)
        p->layers[l].gate_bias.name = NULL;
}

static void plant_gate_of_next(plan *p)
{
    p->layers[2].gate = p->right->layers[3].gate;
}

static void linear_gate_coarse(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                               float *y, int64_t ldy)
{
    if (!now.ffn || w != &now_layer()->gate || w->cols > 4096) {
        ref_linear(w, x, ldx, n, y, ldy);
        return;
    }
    for (int64_t e = 0; e < w->rows; e++) { /* 4 bits a weight, one scale a row */
        float row[4096], top = 0;
        dsv4_tensor_row(w, e, row);
        for (int64_t k = 0; k < w->cols; k++)
            top = fmaxf(top, fabsf(row[k]));
        for (int64_t k = 0; k < w->cols; k++)
            row[k] = roundf(row[k] / top * 7) * top / 7;
        for (int64_t i = 0; i < n; i++)
            y[i * ldy + e] = (float)dsv4_dot(row, x + i * ldx, w->cols);
    }
}

static void plant_gate_coarse(plan *p)
{
    p->ops.linear = linear_gate_coarse;
}

/* ---- hash ---------------------------------------------------------------------------------- */

static void router_by_score(const float *logits, const float *bias, const dsv4_tensor *table,
                            const int32_t *ids, int64_t n, int n_experts, int k, float scaling,
                            int32_t *experts, float *weights)
{
    (void)table;
    ref_router(logits, bias, NULL, ids, n, n_experts, k, scaling, experts, weights);
}

static void router_by_position(const float *logits, const float *bias, const dsv4_tensor *table,
                               const int32_t *ids, int64_t n, int n_experts, int k, float scaling,
                               int32_t *experts, float *weights)
{
    (void)ids;
    for (int64_t i = 0; i < n; i++) {
        int32_t position = (int32_t)((now.pos0 + i) % now.p->model.config.vocab_size);
        ref_router(logits + i * n_experts, bias, table, &position, 1, n_experts, k, scaling,
                   experts + i * k, weights + i * k);
    }
}

/* 64-bit ids read with a stride of four bytes: every second one is 0. */
static void router_half_ids(const float *logits, const float *bias, const dsv4_tensor *table,
                            const int32_t *ids, int64_t n, int n_experts, int k, float scaling,
                            int32_t *experts, float *weights)
{
    for (int64_t i = 0; i < n; i++) {
        int32_t id = i % 2 == 0 ? ids[i / 2] : 0;
        ref_router(logits + i * n_experts, bias, table, &id, 1, n_experts, k, scaling,
                   experts + i * k, weights + i * k);
    }
}

static void router_neighbour_ids(const float *logits, const float *bias, const dsv4_tensor *table,
                                 const int32_t *ids, int64_t n, int n_experts, int k, float scaling,
                                 int32_t *experts, float *weights)
{
    for (int64_t i = 0; i < n; i++)
        ref_router(logits + i * n_experts, bias, table, &ids[i + 1 < n ? i + 1 : i], 1, n_experts,
                   k, scaling, experts + i * k, weights + i * k);
}

/* Table layers weigh their experts alike. */
static void router_hash_uniform(const float *logits, const float *bias, const dsv4_tensor *table,
                                const int32_t *ids, int64_t n, int n_experts, int k, float scaling,
                                int32_t *experts, float *weights)
{
    ref_router(logits, bias, table, ids, n, n_experts, k, scaling, experts, weights);
    for (int64_t i = 0; table != NULL && i < n * k; i++)
        weights[i] = scaling / (float)k;
}

#define HASH(name)                                                                                 \
    static void plant_hash_##name(plan *p)                                                         \
    {                                                                                              \
        p->ops.router = router_##name;                                                             \
    }
HASH(by_score)
HASH(by_position)
HASH(half_ids)
HASH(neighbour_ids)
HASH(hash_uniform)

static void plant_hash_table_of_next(plan *p)
{
    p->layers[0].tid2eid = p->right->layers[1].tid2eid;
}

/* ---- experts ------------------------------------------------------------------------------- */

static bool experts_with_limit(const dsv4_experts_args *a, float limit, float *out)
{
    dsv4_layer l = *a->layer;
    dsv4_experts_args b = *a;
    l.swiglu_limit = limit;
    b.layer = &l;
    return ref_experts(&b, out);
}

static bool experts_not_clamped(const dsv4_experts_args *a, float *out)
{
    return experts_with_limit(a, 0, out);
}

/* One expert at a time: h [F] of the swiglu is made by `act`. */
typedef float (*act_fn)(float gate, float up, float limit);
typedef struct {
    act_fn act;
    int shift; /* expert e works with the weights of e + shift */
    bool weight_ignored, weight_twice;
} experts_change;

static bool mix_experts(const experts_change *c, const dsv4_experts_args *a, float *out)
{
    const dsv4_layer *l = a->layer;
    int64_t D = l->w1[0].cols, F = l->w1[0].rows, E = l->gate.rows;
    float *h = calloc((size_t)(2 * F + D), sizeof *h), *up = h + F, *y = up + F;
    for (int64_t i = 0; h != NULL && i < a->n; i++) {
        memset(out + i * D, 0, (size_t)D * sizeof *out);
        for (int s = 0; s < a->k; s++) {
            int64_t e = (a->experts[i * a->k + s] + c->shift) % E;
            float w = a->weights[i * a->k + s];
            w = c->weight_ignored ? 1.0f / (float)a->k : c->weight_twice ? w * w : w;
            ref_linear(&l->w1[e], a->x + i * D, D, 1, h, F);
            ref_linear(&l->w3[e], a->x + i * D, D, 1, up, F);
            for (int64_t f = 0; f < F; f++)
                h[f] = c->act(h[f], up[f], l->swiglu_limit) * w;
            ref_linear(&l->w2[e], h, F, 1, y, D);
            for (int64_t k = 0; k < D; k++)
                out[i * D + k] += y[k];
        }
    }
    free(h);
    return h != NULL;
}

static float clampf(float x, float low, float high)
{
    return x < low ? low : x > high ? high : x;
}

static float act_right(float g, float u, float L)
{
    ref_swiglu(&g, &u, L, 1, &g);
    return g;
}

static float act_gelu(float g, float u, float L)
{
    double x = (double)fminf(g, L);
    return (float)(0.5 * x * (1 + erf(x / sqrt(2.0)))) * clampf(u, -L, L);
}

static float act_up_above(float g, float u, float L)
{
    g = fminf(g, L);
    return g / (1 + expf(-g)) * fminf(u, L);
}

static float act_clamped_after(float g, float u, float L)
{
    return clampf(g / (1 + expf(-g)) * u, -L, L);
}

static float act_clamped_silu(float g, float u, float L)
{
    return fminf(g / (1 + expf(-g)), L) * clampf(u, -L, L);
}

static float act_oai(float g, float u, float L)
{
    g = fminf(g, L);
    return g / (1 + expf(-1.702f * g)) * (clampf(u, -L, L) + 1);
}

static float act_exchanged(float g, float u, float L)
{
    return act_right(u, g, L);
}

static float act_gate_both(float g, float u, float L)
{
    return act_right(fmaxf(g, -L), u, L);
}

#define EXPERTS(name, ...)                                                                         \
    static bool experts_##name(const dsv4_experts_args *a, float *out)                             \
    {                                                                                              \
        const experts_change c = {__VA_ARGS__};                                                    \
        return mix_experts(&c, a, out);                                                            \
    }                                                                                              \
    static void plant_experts_##name(plan *p)                                                      \
    {                                                                                              \
        p->ops.experts = experts_##name;                                                           \
    }
EXPERTS(gelu, .act = act_gelu)
EXPERTS(up_above, .act = act_up_above)
EXPERTS(clamped_after, .act = act_clamped_after)
EXPERTS(clamped_silu, .act = act_clamped_silu)
EXPERTS(oai, .act = act_oai)
EXPERTS(exchanged, .act = act_exchanged)
EXPERTS(shifted, .act = act_right, .shift = 1)
EXPERTS(not_weighted, .act = act_right, .weight_ignored = true)
EXPERTS(weighted_twice, .act = act_right, .weight_twice = true)
EXPERTS(gate_both, .act = act_gate_both)

static bool experts_doubled(const dsv4_experts_args *a, float *out)
{
    bool ok = ref_experts(a, out);
    for (int64_t i = 0; ok && i < a->n * a->layer->w1[0].cols; i++)
        out[i] *= 2;
    return ok;
}

/* Slots of a token are gathered in rising order of their experts, their weights are not. */
static bool experts_misaligned(const dsv4_experts_args *a, float *out)
{
    dsv4_experts_args b = *a;
    int32_t *sorted = calloc((size_t)(a->n * a->k) + 1, sizeof *sorted);
    if (sorted == NULL)
        return false;
    for (int64_t i = 0; i < a->n; i++)
        for (int s = 0; s < a->k; s++) {
            int at = s;
            for (; at > 0 && sorted[i * a->k + at - 1] > a->experts[i * a->k + s]; at--)
                sorted[i * a->k + at] = sorted[i * a->k + at - 1];
            sorted[i * a->k + at] = a->experts[i * a->k + s];
        }
    b.experts = sorted;
    bool ok = ref_experts(&b, out);
    free(sorted);
    return ok;
}

/* The token that comes last in a block goes missing where its expert's tile is full. */
static bool experts_one_slot(const dsv4_experts_args *a, float *out)
{
    dsv4_experts_args b = *a;
    float *weights = calloc((size_t)(a->n * a->k) + 1, sizeof *weights);
    if (weights == NULL)
        return false;
    for (int64_t i = 0; i < a->n * a->k; i++)
        weights[i] = i % a->k == a->k - 1 ? 0 : a->weights[i];
    b.weights = weights;
    bool ok = ref_experts(&b, out);
    free(weights);
    return ok;
}

static void plant_routed_doubled(plan *p)
{
    p->ops.experts = experts_doubled;
}

static void plant_misaligned(plan *p)
{
    p->ops.experts = experts_misaligned;
}

static void plant_slot_lost(plan *p)
{
    p->ops.experts = experts_one_slot;
}

static void plant_routed_not_clamped(plan *p)
{
    p->ops.experts = experts_not_clamped;
}

static void plant_down_of_next(plan *p)
{
    for (int l = 0; l < p->model.config.num_hidden_layers; l++) {
        plan_own_experts(p, l);
        int E = p->model.config.n_routed_experts;
        for (int e = 0; e < E; e++)
            p->layers[l].w2[e] = p->right->layers[l].w2[(e + 1) % E];
    }
}

/* ---- shared expert ------------------------------------------------------------------------- */

static void swiglu_not_clamped(const float *gate, const float *up, float limit, int64_t n, float *h)
{
    (void)limit;
    ref_swiglu(gate, up, 0, n, h);
}

static void swiglu_seven(const float *gate, const float *up, float limit, int64_t n, float *h)
{
    (void)limit;
    ref_swiglu(gate, up, 7, n, h);
}

static void swiglu_relu(const float *gate, const float *up, float limit, int64_t n, float *h)
{
    for (int64_t i = 0; i < n; i++)
        h[i] = clampf(gate[i], 0, limit) * clampf(up[i], -limit, limit);
}

static void add_scaled(float *x, const float *y, int64_t n)
{
    float scale = now.ffn ? now.p->model.config.routed_scaling_factor : 1;
    for (int64_t i = 0; i < n; i++)
        x[i] += y[i] * scale;
}

static void add_no_shared(float *x, const float *y, int64_t n)
{
    if (!now.ffn)
        ref_add(x, y, n);
}

static void plant_shared_not_clamped(plan *p)
{
    p->ops.swiglu = swiglu_not_clamped;
}

static void plant_shared_seven(plan *p)
{
    p->ops.swiglu = swiglu_seven;
}

static void plant_shared_relu(plan *p)
{
    p->ops.swiglu = swiglu_relu;
}

static void plant_shared_scaled(plan *p)
{
    p->ops.add = add_scaled;
}

static void plant_no_shared(plan *p)
{
    p->ops.add = add_no_shared;
}

static void plant_shared_exchanged(plan *p)
{
    for (int l = 0; l < p->model.config.num_hidden_layers; l++) {
        dsv4_tensor keep = p->layers[l].shared_w1;
        p->layers[l].shared_w1 = p->layers[l].shared_w3;
        p->layers[l].shared_w3 = keep;
    }
}

const mutant mutants_experts[] = {
    {"router-bias-absent", "atlas #186 (RT06)", "router", 2, RUN_SHORT, plant_bias_absent,
     "the selection bias is not loaded", NULL},
    {"router-bias-unused", "own", "router", 2, RUN_SHORT, plant_router_no_bias,
     "the selection bias is loaded and not used", NULL},
    {"router-bias-weighs", "own", "router", 2, RUN_SHORT, plant_router_bias_weighs,
     "the selection bias goes into the weights", NULL},
    {"router-not-normalised", "vllm-ascend c266865904 (HS07)", "router", 0, RUN_SHORT,
     plant_router_not_normalised, "weights are not divided by their sum", NULL},
    {"router-not-scaled", "own", "router", 0, RUN_SHORT, plant_router_not_scaled,
     "weights without routed_scaling_factor", NULL},
    {"router-sigmoid", "own (DeepSeek-V3's score)", "router", 0, RUN_SHORT, plant_router_sigmoid,
     "sigmoid scores", NULL},
    {"router-softmax", "own (DeepSeek-V2's score)", "router", 0, RUN_SHORT, plant_router_softmax,
     "softmax scores", NULL},
    {"router-no-root", "own", "router", 0, RUN_SHORT, plant_router_no_root,
     "softplus without its square root", NULL},
    {"router-fast-math", "ds4 #311 (RT07)", "router", 0, RUN_SHORT, plant_router_fast_math,
     "approximate exp and log in the scores", NULL},
    {"router-first-group", "own (DeepSeek-V3's groups)", "router", 2, RUN_SHORT, plant_router_half,
     "only the first group of experts is considered", NULL},
    {"router-padding-competes", "pypto-lib #285 (RT09)", "router", 2, RUN_EDGES,
     plant_router_padding, "padded expert columns take part in the choice", NULL},
    {"router-gate-4-bits", "atlas #186 (RT05)", "router", 0, RUN_SHORT, plant_gate_coarse,
     "the gate matrix is quantised to 4 bits", NULL},
    {"router-gate-of-next-layer", "pypto-lib #595 (LD04)", "router", 2, RUN_SHORT,
     plant_gate_of_next, "the gate matrix of the next layer", NULL},
    {"router-weights-turned", "DeepGEMM a5ef613 (ME10)", "router", 0, RUN_SHORT,
     plant_router_turned, "weights are stored one slot off their experts", NULL},

    {"hash-by-score", "atlas #186, pypto-lib #285 (HS01)", "hash", 0, RUN_SHORT,
     plant_hash_by_score, "hash layers choose by score", NULL},
    {"hash-by-position", "own", "hash", 0, RUN_SHORT, plant_hash_by_position,
     "the table is read by position, not by token id", NULL},
    {"hash-half-ids", "tokenspeed 4b8ab505 (HS03)", "hash", 0, RUN_SHORT, plant_hash_half_ids,
     "64-bit ids are read with a stride of 4 bytes", NULL},
    {"hash-neighbour-ids", "ATOM d93fcf31d (HS02)", "hash", 0, RUN_SHORT, plant_hash_neighbour_ids,
     "row i takes the table entry of token i + 1", NULL},
    {"hash-weights-alike", "vllm-ascend 209bd5bbaa (HS07)", "hash", 0, RUN_SHORT,
     plant_hash_hash_uniform, "experts of hash layers all weigh the same", NULL},
    {"hash-table-of-next-layer", "pypto-lib #595 (LD04)", "hash", 0, RUN_SHORT,
     plant_hash_table_of_next, "layer 0 reads the table of layer 1", NULL},

    {"experts-not-clamped", "vllm-ascend #14363, KTransformers bd6f4fc1 (ME02)", "experts", 0,
     RUN_SHORT, plant_routed_not_clamped, "routed experts are not clamped", NULL},
    {"experts-up-above-only", "own", "experts", 0, RUN_SHORT, plant_experts_up_above,
     "up is clamped above only", NULL},
    {"experts-clamped-after", "vllm-ascend #9600 (ME03)", "experts", 0, RUN_SHORT,
     plant_experts_clamped_after, "the product is clamped, not its factors", NULL},
    {"experts-gate-both-sides", "own", "experts", 0, RUN_SHORT, plant_experts_gate_both,
     "gate is clamped on both sides", NULL},
    {"experts-clamped-silu", "own", "experts", 1, RUN_SHORT, plant_experts_clamped_silu,
     "silu(gate) is clamped, not gate", NULL},
    {"experts-gpt-oss", "own (gpt-oss's swiglu)", "experts", 0, RUN_SHORT, plant_experts_oai,
     "gate * sigmoid(1.702 gate) * (up + 1)", NULL},
    {"experts-gelu", "own", "experts", 0, RUN_SHORT, plant_experts_gelu, "gelu in place of silu",
     NULL},
    {"experts-gate-up-exchanged", "ATOM 28035c192 (ME02)", "experts", 0, RUN_SHORT,
     plant_experts_exchanged, "gate and up exchanged", NULL},
    {"experts-shifted", "DeepGEMM 65871a5 (ME09)", "experts", 0, RUN_SHORT, plant_experts_shifted,
     "expert e works with the weights of e + 1", NULL},
    {"experts-down-of-next", "tokenspeed 742f0bef (ME06)", "experts", 0, RUN_SHORT,
     plant_down_of_next, "w2 is read one expert further", NULL},
    {"experts-not-weighted", "own", "experts", 0, RUN_SHORT, plant_experts_not_weighted,
     "all chosen experts weigh 1/K", NULL},
    {"experts-weighted-twice", "own", "experts", 0, RUN_SHORT, plant_experts_weighted_twice,
     "the weight multiplies before and after w2", NULL},
    {"experts-misaligned", "DeepGEMM a5ef613 (ME10)", "experts", 0, RUN_SHORT, plant_misaligned,
     "slots are sorted by expert, their weights are not", NULL},
    {"experts-slot-lost", "ds4 #384 (ME07)", "experts", 0, RUN_SHORT, plant_slot_lost,
     "the last of a token's experts gives nothing", NULL},
    {"experts-doubled", "vllm-ascend #9389 (ME04)", "experts", 0, RUN_SHORT, plant_routed_doubled,
     "the routed sum is reduced twice", NULL},
    {"shared-not-clamped", "ds4 5bc1e6d, transformers #46018, sglang #23776 (ME01)", "experts", 0,
     RUN_SHORT, plant_shared_not_clamped, "the shared expert is not clamped", NULL},
    {"shared-limit-7", "own (gpt-oss's limit)", "experts", 0, RUN_SHORT, plant_shared_seven,
     "the shared expert is clamped at 7", NULL},
    {"shared-relu", "own", "experts", 0, RUN_SHORT, plant_shared_relu,
     "relu in place of silu in the shared expert", NULL},
    {"shared-scaled", "own", "experts", 0, RUN_SHORT, plant_shared_scaled,
     "the shared expert is scaled as the routed ones are", NULL},
    {"shared-missing", "own", "experts", 0, RUN_SHORT, plant_no_shared,
     "the shared expert is not added", NULL},
    {"shared-gate-up-exchanged", "ATOM 28035c192 (ME02)", "experts", 0, RUN_SHORT,
     plant_shared_exchanged, "gate and up of the shared expert exchanged", NULL},
    {.name = NULL},
};

/* Planted by the table of equivalents. */
void plant_equivalent_naive_softplus(plan *p);

void plant_equivalent_naive_softplus(plan *p)
{
    plant_router_naive(p);
}
