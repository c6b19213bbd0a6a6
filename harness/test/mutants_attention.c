/* mutants_attention.c - wrong attention: what a token sees, sinks, scale, norms of q and kv, the
 * grouped output; weights of another layer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mutants.h"
#include "mutants_attend.h"

/* ---- attention over somebody's choice of rows ---------------------------------------------- */

int64_t see_window(const dsv4_attention_args *a, int64_t first, int64_t last, const float **out)
{
    int64_t n = 0;
    first = first > a->window_pos0 ? first : a->window_pos0;
    for (int64_t p = first; p <= last; p++)
        out[n++] = a->window + (p - a->window_pos0) * a->dim;
    return n;
}

int64_t see_rows(const dsv4_attention_args *a, int64_t i, int64_t first, int64_t limit,
                 const float **out)
{
    int64_t n = 0;
    if (a->ratio == 0)
        return 0;
    if (a->topk == NULL) {
        for (int64_t j = first; j < limit; j++)
            out[n++] = a->rows + j * a->dim;
        return n;
    }
    for (int s = 0; s < a->k; s++) {
        int32_t j = a->topk[i * a->k + s];
        if (j >= first && j < limit)
            out[n++] = a->rows + (int64_t)j * a->dim;
    }
    return n;
}

bool attend(const dsv4_attention_args *a, see_fn see, const attend_options *o, float *out)
{
    const attend_options plain = {.scale = 1, .sinks = 1};
    o = o != NULL ? o : &plain;
    int64_t most = a->pos0 + 2 * a->n + (a->pos0 + a->n) / (a->ratio > 0 ? a->ratio : 1) + a->k;
    const float **rows = calloc((size_t)most, sizeof *rows);
    double *p = calloc((size_t)most, sizeof *p);
    double *sum = calloc((size_t)a->dim, sizeof *sum);
    bool ok = rows != NULL && p != NULL && sum != NULL;
    double scale = o->scale / sqrt((double)a->dim);
    for (int64_t i = 0; ok && i < a->n; i++) {
        int64_t n = see(a, i, rows);
        for (int h = 0; h < a->heads; h++) {
            const float *q = a->q + (i * a->heads + h) * a->dim;
            float *to = out + (i * a->heads + h) * a->dim;
            double sink = (double)a->sink[o->first_sink ? 0 : h];
            double max = n > 0 && o->sinks == 0 ? -INFINITY : sink, total;
            for (int64_t j = 0; j < n; j++) {
                p[j] = dsv4_dot(q, rows[j], a->dim) * scale;
                max = p[j] > max ? p[j] : max;
            }
            total = n > 0 ? o->sinks * exp(sink - max) : 1;
            memset(sum, 0, (size_t)a->dim * sizeof *sum);
            for (int64_t j = 0; j < n; j++) {
                total += p[j] = exp(p[j] - max);
                for (int k = 0; k < a->dim; k++)
                    sum[k] += p[j] * (double)rows[j][k];
            }
            for (int k = 0; k < a->dim; k++)
                to[k] = (float)(sum[k] / total);
        }
    }
    free(rows);
    free(p);
    free(sum);
    return ok;
}

int64_t see_right(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = see_window(a, t - a->window_size + 1, t, out);
    return n + see_rows(a, i, 0, a->ratio > 0 ? (t + 1) / a->ratio : 0, out + n);
}

/* ---- what a token sees --------------------------------------------------------------------- */

static int64_t limit_of(const dsv4_attention_args *a, int64_t t)
{
    return a->ratio > 0 ? (t + 1) / a->ratio : 0;
}

static int64_t see_one_more(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = see_window(a, t - a->window_size, t, out);
    return n + see_rows(a, i, 0, limit_of(a, t), out + n);
}

static int64_t see_one_less(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = see_window(a, t - a->window_size + 2, t, out);
    return n + see_rows(a, i, 0, limit_of(a, t), out + n);
}

static int64_t see_no_window_limit(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = see_window(a, 0, t, out);
    return n + see_rows(a, i, 0, limit_of(a, t), out + n);
}

static int64_t see_block(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i;
    int64_t n = see_window(a, t - a->window_size + 1, a->pos0 + a->n - 1, out);
    return n + see_rows(a, i, 0, limit_of(a, t), out + n);
}

static int64_t see_next_token(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, last = i + 1 < a->n ? t + 1 : t;
    int64_t n = see_window(a, t - a->window_size + 1, last, out);
    return n + see_rows(a, i, 0, limit_of(a, t), out + n);
}

static int64_t see_not_itself(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i;
    int64_t n = see_window(a, t - a->window_size + 1, t > 0 ? t - 1 : t, out);
    return n + see_rows(a, i, 0, limit_of(a, t), out + n);
}

static int64_t see_future_rows(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = see_window(a, t - a->window_size + 1, t, out);
    dsv4_attention_args all = *a;
    all.topk = NULL;
    return n + see_rows(&all, i, 0, limit_of(a, a->pos0 + a->n - 1), out + n);
}

static int64_t see_future_hca(const dsv4_attention_args *a, int64_t i, const float **out)
{
    return a->topk == NULL ? see_future_rows(a, i, out) : see_right(a, i, out);
}

static int64_t see_all_if_none(const dsv4_attention_args *a, int64_t i, const float **out)
{
    return limit_of(a, a->pos0 + i) == 0 ? see_future_rows(a, i, out) : see_right(a, i, out);
}

static int64_t see_every_row(const dsv4_attention_args *a, int64_t i, const float **out)
{
    dsv4_attention_args all = *a;
    all.topk = NULL;
    return see_right(&all, i, out);
}

static int64_t see_row_late(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = see_window(a, t - a->window_size + 1, t, out);
    return n + see_rows(a, i, 0, a->ratio > 0 ? t / a->ratio : 0, out + n);
}

static int64_t see_without_newest(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = see_window(a, t - a->window_size + 1, t, out);
    int64_t limit = limit_of(a, t);
    if (a->topk == NULL && limit > 1)
        limit = 1;
    return n + see_rows(a, i, 0, limit, out + n);
}

static int64_t see_without_first_hca(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = see_window(a, t - a->window_size + 1, t, out);
    return n + see_rows(a, i, a->topk == NULL ? 1 : 0, limit_of(a, t), out + n);
}

/* Every query sees what any query of the block picked. */
static int64_t see_everybodys_rows(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = see_window(a, t - a->window_size + 1, t, out);
    if (a->topk == NULL)
        return n + see_rows(a, i, 0, limit_of(a, t), out + n);
    for (int64_t j = 0; j < limit_of(a, a->pos0 + a->n - 1); j++)
        for (int64_t s = 0; s < a->n * a->k; s++)
            if (a->topk[s] == j) {
                out[n++] = a->rows + j * a->dim;
                break;
            }
    return n;
}

/* The window does not reach back into the block before. */
static int64_t see_block_window(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, first = t - a->window_size + 1;
    int64_t n = see_window(a, first > a->pos0 ? first : a->pos0, t, out);
    return n + see_rows(a, i, 0, limit_of(a, t), out + n);
}

/* A block's rows go into a ring of W slots before its tokens read it. */
static int64_t see_overwritten_ring(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = 0, W = a->window_size, end = a->pos0 + a->n - 1;
    for (int64_t p = t - W + 1 > 0 ? t - W + 1 : 0; p <= t; p++) {
        int64_t last = p + (end - p) / W * W; /* the newest token in p's slot */
        out[n++] = a->window + (last - a->window_pos0) * a->dim;
    }
    return n + see_rows(a, i, 0, limit_of(a, t), out + n);
}

#define SEES(name)                                                                                 \
    static bool attention_##name(const dsv4_attention_args *a, float *out)                         \
    {                                                                                              \
        return attend(a, see_##name, NULL, out);                                                   \
    }                                                                                              \
    static void plant_##name(plan *p)                                                              \
    {                                                                                              \
        p->ops.attention = attention_##name;                                                       \
    }
SEES(one_more)
SEES(one_less)
SEES(no_window_limit)
SEES(block)
SEES(next_token)
SEES(not_itself)
SEES(future_rows)
SEES(future_hca)
SEES(all_if_none)
SEES(every_row)
SEES(row_late)
SEES(without_newest)
SEES(without_first_hca)
SEES(everybodys_rows)
SEES(block_window)
SEES(overwritten_ring)

/* ---- softmax ------------------------------------------------------------------------------- */

static bool with_options(const dsv4_attention_args *a, attend_options o, float *out)
{
    return attend(a, see_right, &o, out);
}

static bool attention_no_sink(const dsv4_attention_args *a, float *out)
{
    return with_options(a, (attend_options){.scale = 1, .sinks = 0}, out);
}

static bool attention_two_sinks(const dsv4_attention_args *a, float *out)
{
    return with_options(a, (attend_options){.scale = 1, .sinks = 2}, out);
}

static bool attention_first_sink(const dsv4_attention_args *a, float *out)
{
    return with_options(a, (attend_options){.scale = 1, .sinks = 1, .first_sink = true}, out);
}

static bool attention_unrotated_scale(const dsv4_attention_args *a, float *out)
{
    double d = a->dim, r = now.p->model.config.qk_rope_head_dim;
    return with_options(a, (attend_options){.scale = sqrt(d / (d - r)), .sinks = 1}, out);
}

static bool attention_mscale(const dsv4_attention_args *a, float *out)
{
    double m = 0.1 * log(now.p->model.config.yarn_factor) + 1;
    return with_options(a, (attend_options){.scale = a->ratio > 0 ? m * m : 1, .sinks = 1}, out);
}

/* The merge of partial results runs over a tile that does not exist and divides once more. */
static bool attention_merged_twice(const dsv4_attention_args *a, float *out)
{
    bool ok = ref_attention(a, out);
    for (int64_t i = 0; ok && i < a->n; i++)
        if (a->pos0 + i < 16)
            for (int64_t k = 0; k < (int64_t)a->heads * a->dim; k++)
                out[i * a->heads * a->dim + k] *= 2;
    return ok;
}

static void plant_no_sink(plan *p)
{
    p->ops.attention = attention_no_sink;
}

static void plant_two_sinks(plan *p)
{
    p->ops.attention = attention_two_sinks;
}

static void plant_first_sink(plan *p)
{
    p->ops.attention = attention_first_sink;
}

static void plant_unrotated_scale(plan *p)
{
    p->ops.attention = attention_unrotated_scale;
}

static void plant_mscale(plan *p)
{
    p->ops.attention = attention_mscale;
}

static void plant_merged_twice(plan *p)
{
    p->ops.attention = attention_merged_twice;
}

/* ---- norms of q and kv --------------------------------------------------------------------- */

static void head_norm_none(float *q, float eps, int64_t n, int64_t dim, bool bf16)
{
    (void)q, (void)eps, (void)n, (void)dim, (void)bf16;
}

static void head_norm_common(float *q, float eps, int64_t n, int64_t dim, bool bf16)
{
    (void)bf16;
    int heads = now.p->model.config.num_attention_heads;
    ref_rmsnorm(q, NULL, eps, n / heads, heads * dim, q);
}

static void head_norm_unrotated(float *q, float eps, int64_t n, int64_t dim, bool bf16)
{
    (void)bf16;
    int r = now.p->model.config.qk_rope_head_dim;
    for (int64_t i = 0; i < n; i++)
        ref_rmsnorm(q + i * dim, NULL, eps, 1, dim - r, q + i * dim);
}

static void norm_except(const dsv4_tensor *skip, const float *x, const float *w, float eps,
                        int64_t n, int64_t dim, float *y)
{
    /* In the attention block the norms come in place, q's before kv's. */
    if (now.attention && x == y && dim == skip->cols && n == now.n)
        return;
    ref_rmsnorm(x, w, eps, n, dim, y);
}

static void norm_not_q(const float *x, const float *w, float eps, int64_t n, int64_t dim, float *y)
{
    norm_except(&now.p->model.layers[0].q_norm, x, w, eps, n, dim, y);
}

static void norm_not_kv(const float *x, const float *w, float eps, int64_t n, int64_t dim, float *y)
{
    norm_except(&now.p->model.layers[0].kv_norm, x, w, eps, n, dim, y);
}

static void plant_no_head_norm(plan *p)
{
    p->ops.head_norm = head_norm_none;
}

static void plant_common_head_norm(plan *p)
{
    p->ops.head_norm = head_norm_common;
}

static void plant_unrotated_head_norm(plan *p)
{
    p->ops.head_norm = head_norm_unrotated;
}

static void plant_no_q_norm(plan *p)
{
    p->ops.rmsnorm = norm_not_q;
}

static void plant_no_kv_norm(plan *p)
{
    p->ops.rmsnorm = norm_not_kv;
}

/* ---- grouped output ------------------------------------------------------------------------ */

/* The group of a call of wo_a; -1 = another matrix. Group g begins at row g * o_lora_rank. */
static int64_t group_of(const dsv4_tensor *w)
{
    const dsv4_tensor *wo = &now_layer()->wo_a;
    if (!now.attention || w->data != wo->data || w->cols != wo->cols)
        return -1;
    return (w->row0 - wo->row0) / now.p->model.config.o_lora_rank;
}

static void linear_groups_reversed(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                                   float *y, int64_t ldy)
{
    int64_t g = group_of(w), groups = now.p->model.config.o_groups;
    if (g >= 0)
        x += (groups - 1 - 2 * g) * w->cols;
    ref_linear(w, x, ldx, n, y, ldy);
}

/* Group g gets heads g, g + G, g + 2G, ... */
static void linear_groups_interleaved(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                                      float *y, int64_t ldy)
{
    int64_t g = group_of(w), G = now.p->model.config.o_groups, d = now.p->model.config.head_dim;
    float in[4096];
    if (g < 0 || w->cols > 4096) {
        ref_linear(w, x, ldx, n, y, ldy);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        const float *heads = x + i * ldx - g * w->cols;
        for (int64_t h = 0; h < w->cols / d; h++)
            memcpy(in + h * d, heads + (h * G + g) * d, (size_t)d * sizeof *in);
        ref_linear(w, in, w->cols, 1, y + i * ldy, ldy);
    }
}

/* More than one token: the batched product takes group g of token t from place (t, g) of a
 * [G][n] layout. */
static void linear_groups_exchanged(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                                    float *y, int64_t ldy)
{
    int64_t g = group_of(w), G = now.p->model.config.o_groups;
    if (g < 0) {
        ref_linear(w, x, ldx, n, y, ldy);
        return;
    }
    const float *all = x - g * w->cols;
    for (int64_t i = 0; i < n; i++) {
        int64_t place = g * n + i;
        ref_linear(w, all + place / G * ldx + place % G * w->cols, ldx, 1, y + i * ldy, ldy);
    }
}

/* wo_b reads the groups' results the other way round. */
static void linear_wo_b_reversed(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                                 float *y, int64_t ldy)
{
    int64_t G = now.p->model.config.o_groups, o = now.p->model.config.o_lora_rank;
    float in[4096];
    if (!now.attention || !same_tensor(w, &now_layer()->wo_b) || w->cols > 4096) {
        ref_linear(w, x, ldx, n, y, ldy);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t g = 0; g < G; g++)
            memcpy(in + g * o, x + i * ldx + (G - 1 - g) * o, (size_t)o * sizeof *in);
        ref_linear(w, in, w->cols, 1, y + i * ldy, ldy);
    }
}

static void plant_groups_reversed(plan *p)
{
    p->ops.linear = linear_groups_reversed;
}

static void plant_groups_interleaved(plan *p)
{
    p->ops.linear = linear_groups_interleaved;
}

static void plant_groups_exchanged(plan *p)
{
    p->ops.linear = linear_groups_exchanged;
}

static void plant_wo_b_reversed(plan *p)
{
    p->ops.linear = linear_wo_b_reversed;
}

/* ---- weights of another layer -------------------------------------------------------------- */

static void plant_last_layer_attention(plan *p)
{
    dsv4_layer *a = &p->layers[3];
    const dsv4_layer *b = &p->right->layers[2];
    a->wq_a = b->wq_a, a->wq_b = b->wq_b, a->q_norm = b->q_norm;
    a->wkv = b->wkv, a->kv_norm = b->kv_norm;
    a->wo_a = b->wo_a, a->wo_b = b->wo_b, a->attn_sink = b->attn_sink;
}

static void plant_last_layer(plan *p)
{
    p->layers[3] = p->right->layers[2];
}

static void plant_last_layer_skipped(plan *p)
{
    p->layers[3].wo_b = p->right->layers[2].wo_b;
}

const mutant mutants_attention[] = {
    {"window-one-more", "own", "attention", 0, RUN_SHORT, plant_one_more,
     "a token sees W + 1 window rows", NULL},
    {"window-one-less", "own", "attention", 0, RUN_SHORT, plant_one_less,
     "a token sees W - 1 window rows", NULL},
    {"window-unlimited", "own", "attention", 0, RUN_SHORT, plant_no_window_limit,
     "a token sees every window row that is kept", NULL},
    {"window-not-causal", "own", "attention", 0, RUN_SHORT, plant_block,
     "a token sees all rows of its block, later ones too", NULL},
    {"window-next-token", "own", "attention", 0, RUN_SHORT, plant_next_token,
     "the causal limit is one token late", NULL},
    {"window-not-itself", "pypto-lib #476 (AT41)", "attention", 0, RUN_SHORT, plant_not_itself,
     "a token does not see its own row", NULL},
    {"window-ends-at-block", "mlx-vlm 4043cefc (AT34)", "state", 0, RUN_SHORT, plant_block_window,
     "the window does not reach back into the block before", NULL},
    {"ring-overwritten", "lucebox f4727d31 (AT31)", "attention|state", 0, RUN_SHORT,
     plant_overwritten_ring, "a block writes its rows into the ring before its tokens read it",
     "reported as attention; the ring is state as well"},
    {"rows-not-masked", "mlx-lm #1189 (AT36), Automodel e42168e16 (AT14)", "attention", 1,
     RUN_SHORT, plant_future_rows, "every query sees all compressed rows of the block", NULL},
    {"hca-rows-not-capped", "ATOM 27dc93bd2 (AT23)", "attention", 1, RUN_ONE_BLOCK,
     plant_future_hca, "in ratio-128 layers all tokens of a block see the rows of its end", NULL},
    {"rows-all-if-none", "maxtext #4337 (AT37)", "attention", 1, RUN_SHORT, plant_all_if_none,
     "a token before the first row has no mask and sees every row of the block", NULL},
    {"rows-one-late", "own", "attention", 2, RUN_EDGES, plant_row_late,
     "a row becomes visible one token late", NULL},
    {"topk-not-used", "ds4 320b779 (IX21)", "attention", 2, RUN_SHORT, plant_every_row,
     "attention ignores the indexer's choice and sees all rows", NULL},
    {"topk-flattened", "transformers #45892 (AT12)", "attention", 2, RUN_SHORT,
     plant_everybodys_rows, "each query sees the rows that any query of the block picked", NULL},
    {"hca-rows-limited", "pypto-lib #874 (AT40)", "attention", 1, RUN_LONG, plant_without_newest,
     "the number of ratio-128 rows has a limit (here 1), the newest are dropped", NULL},
    {"hca-first-row-lost", "ATOM 018495474 (AT25)", "attention", 1, RUN_SHORT,
     plant_without_first_hca, "the slice of ratio-128 rows begins one row late", NULL},
    {"sink-ignored", "ik_llama.cpp #2087 (AT11)", "attention", 0, RUN_SHORT, plant_no_sink,
     "the sink is not in the denominator", NULL},
    {"sink-twice", "ik_llama.cpp #2087 (AT11)", "attention", 0, RUN_SHORT, plant_two_sinks,
     "the sink is added once per split of the rows", NULL},
    {"sink-of-head-0", "sglang #35092 (AT20)", "attention", 0, RUN_SHORT, plant_first_sink,
     "every head has the sink of head 0", NULL},
    {"scale-of-unrotated", "own", "attention", 0, RUN_SHORT, plant_unrotated_scale,
     "scores are scaled by 1/sqrt(d - r)", NULL},
    {"scale-yarn-magnitude", "own (DeepSeek-V3's mscale)", "attention", 1, RUN_SHORT, plant_mscale,
     "YaRN's magnitude factor squared on the scores of compressed layers", NULL},
    {"merge-runs-twice", "pypto-lib #448 (AT38)", "attention", 0, RUN_SHORT, plant_merged_twice,
     "with one tile of rows the merge runs over a tile that does not exist", NULL},
    {"q-no-head-norm", "transformers #45643 (AT35)", "attention", 0, RUN_SHORT, plant_no_head_norm,
     "q is not divided by its rms per head", NULL},
    {"q-common-norm", "own", "attention", 0, RUN_SHORT, plant_common_head_norm,
     "one rms for all heads of a token", NULL},
    {"q-norm-unrotated-dims", "own", "attention", 0, RUN_SHORT, plant_unrotated_head_norm,
     "the head norm covers the unrotated dims alone", NULL},
    {"q-no-lora-norm", "own", "attention", 0, RUN_SHORT, plant_no_q_norm, "q_norm is left out",
     NULL},
    {"kv-no-norm", "own", "attention", 0, RUN_SHORT, plant_no_kv_norm, "kv_norm is left out", NULL},
    {"groups-reversed", "exo #1996 (AT29)", "attention", 0, RUN_SHORT, plant_groups_reversed,
     "the first group of heads meets the last wo_a", NULL},
    {"groups-interleaved", "exo #1996 (AT29)", "attention", 0, RUN_SHORT, plant_groups_interleaved,
     "a group takes every G-th head instead of consecutive ones", NULL},
    {"groups-batch-exchanged", "lucebox a89047f0 (AT30)", "attention", 0, RUN_SHORT,
     plant_groups_exchanged, "for several tokens the group and token axes are exchanged", NULL},
    {"wo-b-groups-reversed", "own", "attention", 0, RUN_SHORT, plant_wo_b_reversed,
     "wo_b reads the groups' results in reverse", NULL},
    {"last-layer-attention", "pypto-lib #595 (LD04)", "attention", 3, RUN_SHORT,
     plant_last_layer_attention, "the last layer has the attention weights of the one before",
     NULL},
    {"last-layer-all-weights", "pypto-lib #595 (LD04)", "mhc", 3, RUN_SHORT, plant_last_layer,
     "the last layer has every weight of the one before; its mHC gates come first", NULL},
    {"last-layer-wo-b", "pypto-lib #595 (LD04)", "attention", 3, RUN_SHORT,
     plant_last_layer_skipped, "the last layer has the wo_b of the one before", NULL},
    {.name = NULL},
};
