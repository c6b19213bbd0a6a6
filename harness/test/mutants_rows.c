/* mutants_rows.c - wrong compressors and indexers. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mutants.h"

enum { WIDTH = 512, RATIO = 128 };

/* ---- pooling ------------------------------------------------------------------------------- */

static void pool_no_overlap(const float *prev_kv, const float *prev_z, const float *kv,
                            const float *z, int ratio, int lanes, int dim, float *c)
{
    (void)prev_kv;
    (void)prev_z;
    ref_compressor_pool(NULL, NULL, kv, z, ratio, lanes, dim, c);
}

/* The first columns serve this window, the last ones the next. */
static void pool_lanes_swapped(const float *prev_kv, const float *prev_z, const float *kv,
                               const float *z, int ratio, int lanes, int dim, float *c)
{
    if (lanes == 1) {
        ref_compressor_pool(prev_kv, prev_z, kv, z, ratio, lanes, dim, c);
        return;
    }
    const float *from[4] = {prev_kv, prev_z, kv, z};
    float turned[4][4 * WIDTH];
    for (int m = 0; m < 4; m++)
        for (int t = 0; t < ratio && from[m] != NULL; t++) {
            memcpy(turned[m] + t * 2 * dim, from[m] + t * 2 * dim + dim, (size_t)dim * 4);
            memcpy(turned[m] + t * 2 * dim + dim, from[m] + t * 2 * dim, (size_t)dim * 4);
        }
    ref_compressor_pool(prev_kv != NULL ? turned[0] : NULL, prev_z != NULL ? turned[1] : NULL,
                        turned[2], turned[3], ratio, lanes, dim, c);
}

/* The first row's missing window takes part with zeros. */
static void pool_zeros_before(const float *prev_kv, const float *prev_z, const float *kv,
                              const float *z, int ratio, int lanes, int dim, float *c)
{
    static const float zeros[4 * WIDTH];
    if (lanes == 2 && prev_kv == NULL)
        prev_kv = prev_z = zeros;
    ref_compressor_pool(prev_kv, prev_z, kv, z, ratio, lanes, dim, c);
}

static void pool_mean(const float *prev_kv, const float *prev_z, const float *kv, const float *z,
                      int ratio, int lanes, int dim, float *c)
{
    int width = lanes * dim, own = (lanes - 1) * dim;
    (void)prev_z;
    (void)z;
    for (int k = 0; k < dim; k++) {
        double sum = 0;
        for (int t = 0; t < ratio; t++) {
            sum += (double)kv[t * width + own + k];
            sum += prev_kv != NULL ? (double)prev_kv[t * width + k] : 0;
        }
        c[k] = (float)(sum / (prev_kv != NULL ? 2 * ratio : ratio));
    }
}

/* One weight per slot: the gate's mean over the channels. */
static void pool_per_slot(const float *prev_kv, const float *prev_z, const float *kv,
                          const float *z, int ratio, int lanes, int dim, float *c)
{
    int width = lanes * dim, own = (lanes - 1) * dim;
    float *flat = calloc((size_t)(2 * ratio * width), sizeof *flat), *flat_prev;
    if (flat == NULL)
        abort();
    flat_prev = flat + ratio * width;
    for (int t = 0; t < ratio; t++) {
        double a = 0, b = 0;
        for (int k = 0; k < dim; k++) {
            a += (double)z[t * width + own + k] / dim;
            b += prev_z != NULL ? (double)prev_z[t * width + k] / dim : 0;
        }
        for (int k = 0; k < dim; k++) {
            flat[t * width + own + k] = (float)a;
            flat_prev[t * width + k] = (float)b;
        }
    }
    ref_compressor_pool(prev_kv, prev_z != NULL ? flat_prev : NULL, kv, flat, ratio, lanes, dim, c);
    free(flat);
}

static void pool_last_slot_lost(const float *prev_kv, const float *prev_z, const float *kv,
                                const float *z, int ratio, int lanes, int dim, float *c)
{
    /* Without the last slot: its weight goes to nothing. */
    float *cut = calloc((size_t)(ratio * lanes * dim), sizeof *cut);
    if (cut == NULL)
        abort();
    memcpy(cut, z, (size_t)(ratio * lanes * dim) * sizeof *cut);
    for (int k = 0; k < lanes * dim; k++)
        cut[(ratio - 1) * lanes * dim + k] = -1e30f;
    ref_compressor_pool(prev_kv, prev_z, kv, cut, ratio, lanes, dim, c);
    free(cut);
}

#define POOLS(name)                                                                                \
    static void plant_pool_##name(plan *p)                                                         \
    {                                                                                              \
        p->ops.compressor_pool = pool_##name;                                                      \
    }
POOLS(no_overlap)
POOLS(lanes_swapped)
POOLS(zeros_before)
POOLS(mean)
POOLS(per_slot)
POOLS(last_slot_lost)

/* ---- inputs -------------------------------------------------------------------------------- */

/* In the attention block, add does nothing but put the position bias on the gate. */
static void add_no_ape(float *x, const float *y, int64_t n)
{
    if (!now.attention)
        ref_add(x, y, n);
}

static void plant_no_ape(plan *p)
{
    p->ops.add = add_no_ape;
}

static void plant_ape_of_last_layer(plan *p)
{
    p->layers[2].compressor.ape = p->right->layers[3].compressor.ape;
}

static void plant_kv_gate_swapped(plan *p)
{
    for (int l = 0; l < p->model.config.num_hidden_layers; l++) {
        dsv4_compressor_weights *w = &p->layers[l].compressor;
        dsv4_tensor keep = w->wkv;
        w->wkv = w->wgate;
        w->wgate = keep;
    }
}

static bool of_compressor(const dsv4_tensor *w)
{
    const dsv4_layer *l = now_layer();
    return now.attention && l->ratio > 0 &&
           (w == &l->compressor.wkv || w == &l->compressor.wgate ||
            w == &l->indexer.compressor.wkv || w == &l->indexer.compressor.wgate);
}

static float unnormed[64 * 1024];

static void collapse_kept(const float *streams, const float *pre, int64_t n, int hc, int64_t dim,
                          float *x)
{
    ref_hc_collapse(streams, pre, n, hc, dim, x);
    if (now.attention && n * dim <= (int64_t)(sizeof unnormed / sizeof *unnormed))
        memcpy(unnormed, x, (size_t)(n * dim) * sizeof *x);
}

static void linear_unnormed(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                            int64_t ldy)
{
    ref_linear(w, of_compressor(w) ? unnormed : x, ldx, n, y, ldy);
}

static void plant_unnormed(plan *p)
{
    p->ops.hc_collapse = collapse_kept;
    p->ops.linear = linear_unnormed;
}

/* The recurrent compressor is stepped once per block: the other tokens leave nothing. */
static void linear_last_only(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                             int64_t ldy)
{
    ref_linear(w, x, ldx, n, y, ldy);
    if (of_compressor(w))
        for (int64_t i = 0; i < n - 1; i++)
            memset(y + i * ldy, 0, (size_t)w->rows * sizeof *y);
}

static void plant_last_only(plan *p)
{
    p->ops.linear = linear_last_only;
}

/* rmsnorm of one row in place, right after its pooling. */
static bool pooled;

static void pool_then_norm(const float *prev_kv, const float *prev_z, const float *kv,
                           const float *z, int ratio, int lanes, int dim, float *c)
{
    ref_compressor_pool(prev_kv, prev_z, kv, z, ratio, lanes, dim, c);
    pooled = true;
}

static void norm_not_pooled(const float *x, const float *w, float eps, int64_t n, int64_t dim,
                            float *y)
{
    if (!pooled)
        ref_rmsnorm(x, w, eps, n, dim, y);
    pooled = false;
}

static void plant_row_not_normed(plan *p)
{
    pooled = false;
    p->ops.compressor_pool = pool_then_norm;
    p->ops.rmsnorm = norm_not_pooled;
}

static void plant_norm_of_kv(plan *p)
{
    for (int l = 0; l < p->model.config.num_hidden_layers; l++)
        if (p->layers[l].ratio > 0)
            p->layers[l].compressor.norm = p->layers[l].kv_norm;
}

/* ---- indexer: scores ----------------------------------------------------------------------- */

static void scores_no_relu(const float *q, const float *rows, const float *w, int heads, int dim,
                           int64_t n, bool bf16, float *scores)
{
    (void)bf16;
    for (int64_t j = 0; j < n; j++) {
        double sum = 0;
        for (int h = 0; h < heads; h++)
            sum += dsv4_dot(q + h * dim, rows + j * dim, dim) * (double)w[h];
        scores[j] = (float)sum;
    }
}

static void scores_wrong_axis(const float *q, const float *rows, const float *w, int heads, int dim,
                              int64_t n, bool bf16, float *scores)
{
    (void)bf16;
    for (int64_t j = 0; j < n; j++) {
        double sum = 0;
        for (int h = 0; h < heads; h++)
            sum += fmax(dsv4_dot(q + h * dim, rows + j * dim, dim), 0) * (double)w[j % heads];
        scores[j] = (float)sum;
    }
}

static void scores_unweighted(const float *q, const float *rows, const float *w, int heads, int dim,
                              int64_t n, bool bf16, float *scores)
{
    float ones[256];
    (void)w;
    for (int h = 0; h < heads; h++)
        ones[h] = 1;
    ref_indexer_scores(q, rows, ones, heads, dim, n, bf16, scores);
}

static void scores_relu_outside(const float *q, const float *rows, const float *w, int heads,
                                int dim, int64_t n, bool bf16, float *scores)
{
    scores_no_relu(q, rows, w, heads, dim, n, bf16, scores);
    for (int64_t j = 0; j < n; j++)
        scores[j] = scores[j] > 0 ? scores[j] : 0;
}

static void weights_unscaled(float *w, int64_t n, int heads, int dim)
{
    (void)w, (void)n, (void)heads, (void)dim;
}

#define SCORES(name)                                                                               \
    static void plant_scores_##name(plan *p)                                                       \
    {                                                                                              \
        p->ops.indexer_scores = scores_##name;                                                     \
    }
SCORES(no_relu)
SCORES(wrong_axis)
SCORES(unweighted)
SCORES(relu_outside)

static void plant_unscaled(plan *p)
{
    p->ops.index_weights = weights_unscaled;
}

/* ---- indexer: choice ----------------------------------------------------------------------- */

/* What topk does not get: the query, the weights and all rows of the call of indexer_scores. */
static struct {
    const float *q, *rows, *w;
    int heads, dim;
    int64_t token; /* of the block */
} asked;

static void scores_asked(const float *q, const float *rows, const float *w, int heads, int dim,
                         int64_t n, bool bf16, float *scores)
{
    asked.q = q, asked.rows = rows, asked.w = w;
    asked.heads = heads, asked.dim = dim;
    asked.token++;
    ref_indexer_scores(q, rows, w, heads, dim, n, bf16, scores);
}

static void weights_asked(float *w, int64_t n, int heads, int dim)
{
    asked.token = -1;
    ref_index_weights(w, n, heads, dim);
}

/* The choice among the first `n` rows, whether they are visible or not. */
static void topk_among(int64_t n, int k, int32_t *out)
{
    float *scores = calloc((size_t)n + 1, sizeof *scores);
    if (scores == NULL)
        abort();
    ref_indexer_scores(asked.q, asked.rows, asked.w, asked.heads, asked.dim, n, false, scores);
    ref_topk(scores, n, k, out);
    free(scores);
}

static void topk_not_causal(const float *scores, int64_t n, int k, int32_t *out)
{
    (void)scores, (void)n;
    topk_among((now.pos0 + now.n) / 4, k, out);
}

static void topk_first_count(const float *scores, int64_t n, int k, int32_t *out)
{
    int64_t first = (now.pos0 + 1) / 4;
    ref_topk(scores, first < n ? first : n, k, out);
}

static void topk_row_late(const float *scores, int64_t n, int k, int32_t *out)
{
    int64_t t = now.pos0 + asked.token;
    ref_topk(scores, t / 4 < n ? t / 4 : n, k, out);
}

static void topk_fewer(const float *scores, int64_t n, int k, int32_t *out)
{
    ref_topk(scores, n, k - 2, out);
    out[k - 2] = out[k - 1] = -1;
}

static void topk_smallest(const float *scores, int64_t n, int k, int32_t *out)
{
    float *less = calloc((size_t)n + 1, sizeof *less);
    if (less == NULL)
        abort();
    for (int64_t j = 0; j < n; j++)
        less[j] = -scores[j];
    ref_topk(less, n, k, out);
    free(less);
}

static void topk_first_tile(const float *scores, int64_t n, int k, int32_t *out)
{
    ref_topk(scores, n < 16 ? n : 16, k, out);
}

static void topk_newest(const float *scores, int64_t n, int k, int32_t *out)
{
    (void)scores;
    for (int s = 0; s < k; s++)
        out[s] = s < n ? (int32_t)(n - 1 - s) : -1;
}

/* A later block scores only as many rows as it brings itself. */
static void topk_of_suffix(const float *scores, int64_t n, int k, int32_t *out)
{
    int64_t own = (now.n + 3) / 4;
    ref_topk(scores, now.pos0 > 0 && own < n ? own : n, k, out);
}

static void topk_bf16(const float *scores, int64_t n, int k, int32_t *out)
{
    float *rounded = calloc((size_t)n + 1, sizeof *rounded);
    if (rounded == NULL)
        abort();
    for (int64_t j = 0; j < n; j++) { /* radix buckets of four bits */
        int e;
        float m = frexpf(scores[j], &e);
        rounded[j] = ldexpf(floorf(m * 8) / 8, e);
    }
    ref_topk(rounded, n, k, out);
    free(rounded);
}

#define CHOICE(name)                                                                               \
    static void plant_topk_##name(plan *p)                                                         \
    {                                                                                              \
        p->ops.indexer_scores = scores_asked;                                                      \
        p->ops.index_weights = weights_asked;                                                      \
        p->ops.topk = topk_##name;                                                                 \
    }
CHOICE(not_causal)
CHOICE(first_count)
CHOICE(row_late)
CHOICE(fewer)
CHOICE(smallest)
CHOICE(first_tile)
CHOICE(newest)
CHOICE(of_suffix)
CHOICE(bf16)

/* ---- indexer: weights ---------------------------------------------------------------------- */

static void plant_index_q_swapped(plan *p)
{
    p->layers[2].indexer.wq_b = p->right->layers[3].indexer.wq_b;
}

static void plant_index_proj_swapped(plan *p)
{
    p->layers[2].indexer.weights_proj = p->right->layers[3].indexer.weights_proj;
}

static void plant_index_kv_swapped(plan *p)
{
    p->layers[2].indexer.compressor.wkv = p->right->layers[3].indexer.compressor.wkv;
}

static void linear_index_q_normed(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                                  float *y, int64_t ldy)
{
    const dsv4_config *c = &now.p->model.config;
    ref_linear(w, x, ldx, n, y, ldy);
    if (now.attention && w == &now_layer()->indexer.wq_b)
        ref_rmsnorm(y, NULL, c->rms_norm_eps, n * c->index_n_heads, c->index_head_dim, y);
}

static void plant_index_q_normed(plan *p)
{
    p->ops.linear = linear_index_q_normed;
}

const mutant mutants_rows[] = {
    {"compressor-no-overlap", "transformers #45643 (CP03)", "compressor", 2, RUN_SHORT,
     plant_pool_no_overlap, "ratio-4 rows pool their own window alone", NULL},
    {"compressor-lanes-swapped", "own", "compressor", 2, RUN_SHORT, plant_pool_lanes_swapped,
     "the first columns serve this window, the last ones the next", NULL},
    {"compressor-zeros-before", "Automodel d8054a3a1 (CP15)", "compressor", 2, RUN_SHORT,
     plant_pool_zeros_before, "the window before the first takes part with zeros", NULL},
    {"compressor-mean", "own", "compressor", 1, RUN_SHORT, plant_pool_mean,
     "the mean of the slots instead of their softmax", NULL},
    {"compressor-one-weight-per-slot", "own", "compressor", 1, RUN_SHORT, plant_pool_per_slot,
     "one softmax weight per slot instead of one per channel", NULL},
    {"compressor-last-slot-lost", "own", "compressor", 1, RUN_SHORT, plant_pool_last_slot_lost,
     "the token that completes a window is not pooled", NULL},
    {"compressor-no-position-bias", "Primus f133beb3 (CP16)", "compressor", 1, RUN_SHORT,
     plant_no_ape, "ape is left out", NULL},
    {"compressor-bias-of-last-layer", "ds4 431943f (CP02)", "compressor", 2, RUN_SHORT,
     plant_ape_of_last_layer, "every layer uses the position bias of the last one", NULL},
    {"compressor-kv-gate-swapped", "own", "compressor", 1, RUN_SHORT, plant_kv_gate_swapped,
     "wkv and wgate exchanged", NULL},
    {"compressor-unnormed-input", "own", "compressor", 1, RUN_SHORT, plant_unnormed,
     "the compressor reads x before attn_norm", NULL},
    {"compressor-last-token-only", "lucebox 0b371f7e (CP12)", "compressor|state", 1, RUN_SHORT,
     plant_last_only, "the compressor is stepped once per block, not once per token",
     "the rows are wrong in any block; a carried state is what gets lost"},
    {"compressor-no-norm", "own", "compressor", 1, RUN_SHORT, plant_row_not_normed,
     "pooled rows are not normalised", NULL},
    {"compressor-norm-of-kv", "own", "compressor", 1, RUN_SHORT, plant_norm_of_kv,
     "pooled rows are normalised with kv_norm", NULL},

    {"indexer-no-relu", "vLLM fork #250, sglang #33271 (IX06)", "indexer", 2, RUN_SHORT,
     plant_scores_no_relu, "head scores are summed without max(0, .)", NULL},
    {"indexer-wrong-axis", "lucebox a8824a5d (IX08)", "indexer", 2, RUN_SHORT,
     plant_scores_wrong_axis, "weights are taken along the rows, not along the heads", NULL},
    {"indexer-heads-unweighted", "own", "indexer", 2, RUN_SHORT, plant_scores_unweighted,
     "all heads weigh 1", NULL},
    {"indexer-relu-outside", "own", "indexer", 2, RUN_SHORT, plant_scores_relu_outside,
     "max(0, .) of the sum instead of each head's score", NULL},
    {"indexer-not-scaled", "Primus f133beb3 (IX30)", "indexer", 2, RUN_SHORT, plant_unscaled,
     "weights without 1/sqrt(heads * dim)", NULL},
    {"indexer-not-causal", "transformers #45820 (IX09)", "indexer", 2, RUN_SHORT,
     plant_topk_not_causal, "rows that are not complete yet may be picked", NULL},
    {"indexer-one-count", "pypto-lib #715 (IX10)", "indexer", 2, RUN_SHORT, plant_topk_first_count,
     "all tokens of a block use the count of visible rows of the first one", NULL},
    {"indexer-row-late", "own", "indexer", 2, RUN_EDGES, plant_topk_row_late,
     "a row can be picked one token late", NULL},
    {"indexer-fewer-rows", "ds4 49da384 (IX20)", "indexer", 2, RUN_SHORT, plant_topk_fewer,
     "two rows fewer than index_topk", NULL},
    {"indexer-smallest", "own", "indexer", 2, RUN_SHORT, plant_topk_smallest,
     "the smallest scores are picked", NULL},
    {"indexer-first-tile", "pypto-lib #982 (IX33)", "indexer", 2, RUN_SHORT, plant_topk_first_tile,
     "only the first tile of scores is sorted", NULL},
    {"indexer-newest-rows", "own", "indexer", 2, RUN_SHORT, plant_topk_newest,
     "the newest rows are picked, whatever the scores", NULL},
    {"indexer-suffix-rows", "pypto-lib #592 (IX12)", "state", 2, RUN_SHORT, plant_topk_of_suffix,
     "a later block scores only as many rows as it brings itself", NULL},
    {"indexer-coarse-buckets", "sglang #37591 (IX26)", "indexer", 2, RUN_SHORT, plant_topk_bf16,
     "scores are ordered by their bucket alone", NULL},
    {"indexer-q-of-next-layer", "pypto-lib #595 (LD04)", "indexer", 2, RUN_SHORT,
     plant_index_q_swapped, "wq_b of the next indexer", NULL},
    {"indexer-weights-of-next-layer", "pypto-lib #595 (LD04)", "indexer", 2, RUN_SHORT,
     plant_index_proj_swapped, "weights_proj of the next indexer", NULL},
    {"indexer-kv-of-next-layer", "pypto-lib #595 (LD04)", "indexer", 2, RUN_SHORT,
     plant_index_kv_swapped, "the compressor's wkv of the next indexer", NULL},
    {"indexer-q-normed", "own", "indexer", 2, RUN_SHORT, plant_index_q_normed,
     "the indexer's queries are normalised per head as q is", NULL},
    {.name = NULL},
};
