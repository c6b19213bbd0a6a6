/* mutants_heldout.c - wrong models written after the diagnosis was tuned, to see how it does on
 * what it has not been tuned on: the same public bugs with another constant, in another layer, on
 * another half. Nothing was changed for them once they had been run. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mutants.h"
#include "mutants_attend.h"

/* ---- mHC ---------------------------------------------------------------------------------------
 */

/* comb transposed in the second half of layer 2 alone. */
static void post_half_transposed(const float *block, const float *streams, const float *post,
                                 const float *comb, int64_t n, int hc, int64_t dim, float *out)
{
    float turned[64];
    for (int64_t i = 0; i < n; i++) {
        const float *c = comb + i * hc * hc;
        for (int a = 0; a < hc * hc; a++)
            turned[a] = now.ffn && now.layer == 2 ? c[a % hc * hc + a / hc] : c[a];
        ref_hc_post(block + i * dim, streams + i * hc * dim, post + i * hc, turned, 1, hc, dim,
                    out + i * hc * dim);
    }
}

static void plant_half_transposed(plan *p)
{
    p->ops.hc_post = post_half_transposed;
}

static void gates_three_passes(const float *m, const float *scale, const float *base, int64_t n,
                               int hc, int iters, float eps, float *pre, float *post, float *comb)
{
    (void)iters;
    ref_hc_gates(m, scale, base, n, hc, 3, eps, pre, post, comb);
}

static void plant_three_passes(plan *p)
{
    p->ops.hc_gates = gates_three_passes;
}

/* The last stream is carried on for all. */
static void post_of_last(const float *block, const float *streams, const float *post,
                         const float *comb, int64_t n, int hc, int64_t dim, float *out)
{
    ref_hc_post(block, streams, post, comb, n, hc, dim, out);
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j + 1 < hc; j++)
            memcpy(out + (i * hc + j) * dim, out + (i * hc + hc - 1) * dim,
                   (size_t)dim * sizeof *out);
}

static void plant_of_last(plan *p)
{
    p->ops.hc_post = post_of_last;
}

/* ---- attention ---------------------------------------------------------------------------------
 */

static bool attention_five_sinks(const dsv4_attention_args *a, float *out)
{
    const attend_options o = {.scale = 1, .sinks = 5};
    return attend(a, see_right, &o, out);
}

static void plant_five_sinks(plan *p)
{
    p->ops.attention = attention_five_sinks;
}

/* In ratio-4 layers compressed rows are seen three tokens before they are complete. */
static int64_t see_early(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, n = see_window(a, t - a->window_size + 1, t, out);
    int64_t most = a->ratio > 0 ? (a->pos0 + a->n) / a->ratio : 0;
    int64_t limit = a->ratio > 0 ? (t + 4) / a->ratio : 0;
    dsv4_attention_args all = *a;
    if (a->ratio != 4)
        return see_right(a, i, out);
    all.topk = NULL;
    return n + see_rows(&all, i, 0, limit < most ? limit : most, out + n);
}

static bool attention_early(const dsv4_attention_args *a, float *out)
{
    return attend(a, see_early, NULL, out);
}

static void plant_early(plan *p)
{
    p->ops.attention = attention_early;
}

/* Each group takes the heads of the next. */
static void linear_groups_next(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n,
                               float *y, int64_t ldy)
{
    const dsv4_tensor *wo = &now_layer()->wo_a;
    int64_t G = now.p->model.config.o_groups, rank = now.p->model.config.o_lora_rank;
    if (now.attention && w->data == wo->data && w->cols == wo->cols) {
        int64_t g = (w->row0 - wo->row0) / rank;
        x += ((g + 1) % G - g) * w->cols;
    }
    ref_linear(w, x, ldx, n, y, ldy);
}

static void plant_groups_next(plan *p)
{
    p->ops.linear = linear_groups_next;
}

/* ---- rotation ----------------------------------------------------------------------------------
 */

static void plant_theta_80000(plan *p)
{
    p->model.config.compress_rope_theta = 80000;
}

/* The sines alone are rounded to bf16. */
static void angles_sin_bf16(const float *inv, int half, const int64_t *pos, int64_t n, float *cos,
                            float *sin)
{
    track_rope_angles(inv, half, pos, n, cos, sin);
    ref_round_bf16(sin, n * half);
}

static void plant_sin_bf16(plan *p)
{
    p->ops.rope_angles = angles_sin_bf16;
}

/* ---- compressor, indexer -----------------------------------------------------------------------
 */

static void pool_alone_in_3(const float *prev_kv, const float *prev_z, const float *kv,
                            const float *z, int ratio, int lanes, int dim, float *c)
{
    bool lost = now.layer == 3;
    ref_compressor_pool(lost ? NULL : prev_kv, lost ? NULL : prev_z, kv, z, ratio, lanes, dim, c);
}

static void plant_alone_in_3(plan *p)
{
    p->ops.compressor_pool = pool_alone_in_3;
}

static void topk_eight(const float *scores, int64_t n, int k, int32_t *out)
{
    ref_topk(scores, n < 8 ? n : 8, k, out);
}

static void plant_topk_eight(plan *p)
{
    p->ops.topk = topk_eight;
}

static void topk_three_fewer(const float *scores, int64_t n, int k, int32_t *out)
{
    ref_topk(scores, n, k - 3, out);
    out[k - 1] = out[k - 2] = out[k - 3] = -1;
}

static void plant_three_fewer(plan *p)
{
    p->ops.topk = topk_three_fewer;
}

/* ---- experts, hash -----------------------------------------------------------------------------
 */

/* Row i takes the entry of token i - 1. */
static void router_last_id(const float *logits, const float *bias, const dsv4_tensor *table,
                           const int32_t *ids, int64_t n, int n_experts, int k, float scaling,
                           int32_t *experts, float *weights)
{
    for (int64_t i = 0; i < n; i++)
        ref_router(logits + i * n_experts, bias, table, ids + (i > 0 ? i - 1 : 0), 1, n_experts, k,
                   scaling, experts + i * k, weights + i * k);
}

static void plant_last_id(plan *p)
{
    p->ops.router = router_last_id;
}

static void swiglu_twice_the_limit(const float *gate, const float *up, float limit, int64_t n,
                                   float *h)
{
    ref_swiglu(gate, up, 2 * limit, n, h);
}

static void plant_twice_the_limit(plan *p)
{
    p->ops.swiglu = swiglu_twice_the_limit;
}

static bool experts_first_lost(const dsv4_experts_args *a, float *out)
{
    dsv4_experts_args b = *a;
    float *weights = calloc((size_t)(a->n * a->k) + 1, sizeof *weights);
    if (weights == NULL)
        return false;
    for (int64_t i = 0; i < a->n * a->k; i++)
        weights[i] = i % a->k == 0 ? 0 : a->weights[i];
    b.weights = weights;
    bool ok = ref_experts(&b, out);
    free(weights);
    return ok;
}

static void plant_first_lost(plan *p)
{
    p->ops.experts = experts_first_lost;
}

static void plant_down_two_further(plan *p)
{
    int E = p->model.config.n_routed_experts;
    plan_own_experts(p, 1);
    for (int e = 0; e < E; e++)
        p->layers[1].w2[e] = p->right->layers[1].w2[(e + 2) % E];
}

/* ---- rounding ----------------------------------------------------------------------------------
 */

/* Compressed rows alone get FP8 scales that are no powers of two. */
static void fp8_rows_float_scale(float *x, int64_t n, int64_t ld, int64_t dim, int block)
{
    bool row = now.row_angles != NULL && now.n > 1 && now.pos0 == 0 && now.layer == 2;
    ref_round_fp8(x, n, ld, dim, block);
    for (int64_t k = 0; row && k < dim; k++)
        x[k] *= 1.0f + 0.0625f * (float)(k % 2);
}

static void plant_rows_float_scale(plan *p)
{
    p->ops.round_fp8 = fp8_rows_float_scale;
}

static void fp4_scale_of_4(float *x, int64_t n, int64_t dim, int block)
{
    static const float value[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    for (int64_t at = 0; at < n * dim; at += block) {
        float amax = 0;
        for (int k = 0; k < block; k++)
            amax = fmaxf(amax, fabsf(x[at + k]));
        float scale = amax / 4;
        for (int k = 0; k < block && scale > 0; k++) {
            float v = fabsf(x[at + k]) / scale;
            int c = 0;
            while (c < 7 && v > (value[c] + value[c + 1]) / 2)
                c++;
            x[at + k] = copysignf(value[c] * scale, x[at + k]);
        }
    }
}

static void plant_fp4_scale_of_4(plan *p)
{
    p->ops.round_fp4 = fp4_scale_of_4;
}

/* ---- MTP, decode, state ------------------------------------------------------------------------
 */

static void plant_mtp_shared_of_main(plan *p)
{
    const dsv4_layer *last = &p->right->layers[p->model.config.num_hidden_layers - 1];
    p->mtp.layer.shared_w1 = last->shared_w1;
    p->mtp.layer.shared_w2 = last->shared_w2;
    p->mtp.layer.shared_w3 = last->shared_w3;
}

/* Of the prompt the last three window rows are there. */
static int64_t see_three_of_prompt(const dsv4_attention_args *a, int64_t i, const float **out)
{
    int64_t t = a->pos0 + i, first = t - a->window_size + 1;
    int64_t n = see_window(a, first > now.prompt - 3 ? first : now.prompt - 3, t, out);
    return n + see_rows(a, i, 0, a->ratio > 0 ? (t + 1) / a->ratio : 0, out + n);
}

static bool attention_three_of_prompt(const dsv4_attention_args *a, float *out)
{
    return attend(a, decoding() ? see_three_of_prompt : see_right, NULL, out);
}

static void plant_three_of_prompt(plan *p)
{
    p->ops.attention = attention_three_of_prompt;
}

/* The window of the request before, as many rows as a block of 16 leaves. */
static int64_t leave_sixteen(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    for (int l = 0; l < s->n_layers; l++)
        s->layers[l].window_rows = 16;
    return 0;
}

/* In layers from 2 on the window is not in the saved session. */
static int64_t restore_half_windows(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    for (int l = 2; l < s->n_layers; l++)
        memset(s->layers[l].window, 0,
               (size_t)(s->layers[l].window_rows * s->model->config.head_dim) * sizeof(float));
    return s->position;
}

static int64_t restore_two_early(dsv4_session *s, const int32_t *tokens)
{
    (void)tokens;
    s->position -= 2;
    return s->position;
}

static void plant_leave_sixteen(plan *p)
{
    p->disturb = leave_sixteen;
}

static void plant_half_windows(plan *p)
{
    p->disturb = restore_half_windows;
}

static void plant_two_early(plan *p)
{
    p->disturb = restore_two_early;
}

const mutant mutants_heldout[] = {
    {"held-comb-transposed-once", "Automodel #2154 (HC01)", "mhc", 2, RUN_SHORT,
     plant_half_transposed, "comb is transposed in the second half of layer 2", NULL},
    {"held-three-passes", "maxtext #4337 (HC04)", "mhc", 0, RUN_SHORT, plant_three_passes,
     "three Sinkhorn passes, whatever the config says", NULL},
    {"held-last-stream", "lucebox ac3ae205 (HC10)", "mhc", 0, RUN_SHORT, plant_of_last,
     "the last stream is carried on for all", NULL},
    {"held-five-sinks", "ik_llama.cpp #2087 (AT11)", "attention", 0, RUN_SHORT, plant_five_sinks,
     "the sink is added once per split of five", NULL},
    {"held-rows-early", "mlx-lm #1189 (AT36), Automodel e42168e16 (AT14)", "attention", 2,
     RUN_SHORT, plant_early, "ratio-4 rows are seen three tokens early, whatever was picked", NULL},
    {"held-groups-next", "exo #1996 (AT29)", "attention", 0, RUN_SHORT, plant_groups_next,
     "a group takes the heads of the next", NULL},
    {"held-theta-80000", "Primus 70a0fc06 (RP08)", "rope", 1, RUN_SHORT, plant_theta_80000,
     "compressed base 80000", NULL},
    {"held-sines-bf16", "vllm-ascend #9739 (RP14)", "rope", 0, RUN_SHORT, plant_sin_bf16,
     "the sines are rounded to bf16", NULL},
    {"held-overlap-in-3", "transformers #45643 (CP03)", "compressor", 3, RUN_SHORT,
     plant_alone_in_3, "in layer 3 ratio-4 rows pool their own window alone", NULL},
    {"held-tile-of-eight", "pypto-lib #982 (IX33)", "indexer", 2, RUN_SHORT, plant_topk_eight,
     "only the first eight scores are sorted", NULL},
    {"held-three-fewer", "ds4 49da384 (IX20)", "indexer", 2, RUN_SHORT, plant_three_fewer,
     "three rows fewer than index_topk", NULL},
    {"held-hash-last-id", "ATOM d93fcf31d (HS02)", "hash", 0, RUN_SHORT, plant_last_id,
     "row i takes the table entry of token i - 1", NULL},
    {"held-limit-doubled", "ds4 5bc1e6d, transformers #46018 (ME01)", "experts", 0, RUN_SHORT,
     plant_twice_the_limit, "the shared expert is clamped at twice the limit", NULL},
    {"held-first-slot-lost", "ds4 #384 (ME07)", "experts", 0, RUN_SHORT, plant_first_lost,
     "the first of a token's experts gives nothing", NULL},
    {"held-down-two-further", "tokenspeed 742f0bef (ME06)", "experts", 1, RUN_SHORT,
     plant_down_two_further, "in layer 1 w2 is read two experts further", NULL},
    {"held-fp8-rows", "DeepGEMM a97e235 (ME12)", "quant", 2, RUN_QAT, plant_rows_float_scale,
     "FP8 rows of layer 2 with scales between the powers of two", NULL},
    {"held-fp4-scale-of-4", "ATOM 57a3f9253 (QT04)", "quant", 2, RUN_QAT, plant_fp4_scale_of_4,
     "FP4 scales amax / 4, no powers of two", NULL},
    {"held-mtp-shared-expert", "ik_llama.cpp #2254 (MT05, MT19)", "mtp", -1, RUN_NANO,
     plant_mtp_shared_of_main, "the shared expert is read from the last main layer", NULL},
    {"held-three-prompt-rows", "lucebox 40b6cd16 (AT32)", "state", 0, RUN_DECODE_ALONE,
     plant_three_of_prompt, "of the prompt the last three window rows are stored", NULL},
    {"held-second-sixteen", "mlx-lm #1189 (KV19)", "state", 0, RUN_SECOND, plant_leave_sixteen,
     "sixteen window rows of the request before are kept", NULL},
    {"held-restore-half", "llama.cpp #26063 (KV01)", "state", 2, RUN_RESTORE, plant_half_windows,
     "from layer 2 on window rows are not in the saved session", NULL},
    {"held-restore-two-early", "ik_llama.cpp cc100a1b8 (KV05)", "state", 0, RUN_RESTORE,
     plant_two_early, "the last two saved tokens are processed again", NULL},
    {.name = NULL},
};
