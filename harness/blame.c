/* blame.c - which block a wrong tap points to, beyond its name. Every rule is an inference from
 * what the other taps of the case say; none knows how an engine is built. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "judge_private.h"

/* ---- evidence, gathered while the rows arrive ----------------------------------------------- */

/* The format's rule applied to what the engine had before: does it give what it has after? Asked
 * only where no value is near a midpoint, so that there is one right answer. */
void judge_check_rounding(judge *j, dsv4_tap_id id, int layer, int64_t position, dsv4_rounding kind,
                          const float *before, const float *after, int64_t n)
{
    enum { FP8_KV_BLOCK = 64, FP4_INDEX_BLOCK = 32 };
    const dsv4_ops *rule = dsv4_ops_reference();
    if (kind == DSV4_ROUND_BF16)
        return;
    float *right = dsv4_alloc((size_t)n, sizeof *right, "a rounded row", &j->err);
    if (right == NULL) {
        j->status = DSV4_E_MACHINE;
        return;
    }
    memcpy(right, before, (size_t)n * sizeof *right);
    if (kind == DSV4_ROUND_FP8)
        rule->round_fp8(right, 1, n, n, FP8_KV_BLOCK);
    else
        rule->round_fp4(right, 1, n, FP4_INDEX_BLOCK);
    int64_t i = 0;
    while (i < n && right[i] == after[i])
        i++;
    slot *s = judge_slot(j, layer, id);
    if (i < n && s->misrounded++ == 0) {
        s->misrounded_at = position;
        s->kind = kind;
        s->rounded_n = n;
        s->unrounded = right; /* holds what was right; now the values before */
        memcpy(right, before, (size_t)n * sizeof *right);
        right = NULL;
        s->rounded = dsv4_alloc((size_t)n, sizeof *s->rounded, "a rounded row", &j->err);
        if (s->rounded == NULL)
            j->status = DSV4_E_MACHINE;
        else
            memcpy(s->rounded, after, (size_t)n * sizeof *s->rounded);
    }
    free(right);
}

/* Do the engine's router weights follow from its own logits and choice? */
void judge_check_weights(judge *j, int layer, int64_t row, const float *weights, int64_t n)
{
    const slot *x = judge_slot(j, layer, DSV4_TAP_ROUTER_EXPERTS);
    double sum = 0, worst = 0;
    if (x->sets == NULL || x->scores == NULL)
        return;
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < n; i++) {
            int32_t e = x->sets[row * n + i];
            if (e < 0 || e >= x->scores_width)
                return;
            double logit = (double)x->scores[row * x->scores_width + e];
            double score = sqrt(fmax(logit, 0) + log1p(exp(-fabs(logit))));
            if (pass == 0) {
                sum += score;
            } else {
                double right = score / sum * (double)j->o.config->routed_scaling_factor;
                worst = fmax(worst, fabs((double)weights[i] - right) / right);
            }
        }
    slot *w = judge_slot(j, layer, DSV4_TAP_ROUTER_WEIGHTS);
    w->off_formula += !(worst <= 1e-4);
    w->formula_gap = fmax(w->formula_gap, worst);
}

/* ---- inference ------------------------------------------------------------------------------- */

static bool rows_pass(const judge *j, const slot *s, dsv4_tap_id id, int64_t first, int64_t end)
{
    const budget *b = judge_budget(j, dsv4_tap_name(id), ROWS_CLEAN);
    for (int64_t i = first; i < end; i++)
        if (s->seen[i] && (b == NULL || !(slot_row_rel(s, i) <= b->fail)))
            return false;
    return true;
}

state_of_tap judge_look(const judge *j, int layer, dsv4_tap_id id)
{
    const slot *s = judge_slot(j, layer, id);
    if (s->golden == NULL || s->n_seen == 0)
        return TAP_UNKNOWN;
    if (dsv4_tap_is_int(id))
        return s->wrong_sets > 0 ? TAP_WRONG : TAP_RIGHT;
    return rows_pass(j, s, id, 0, s->golden->n_rows) ? TAP_RIGHT : TAP_WRONG;
}

/* Nothing turns at position 0: a fault of the rotations leaves it right and spoils the others. */
static bool only_position_0_is_right(const judge *j, const slot *s, dsv4_tap_id id)
{
    return s->golden->n_rows > 1 && s->golden->positions[0] == 0 && s->seen[0] && s->seen[1] &&
           rows_pass(j, s, id, 0, 1) && !rows_pass(j, s, id, 1, s->golden->n_rows);
}

static bool is_rope(const judge *j, const slot *s, dsv4_tap_id id, int layer)
{
    const compare_sums *c = &s->clean;
    const budget *b = judge_budget(j, dsv4_tap_name(id), ROWS_CLEAN);
    switch (id) {
    case DSV4_TAP_Q:
    case DSV4_TAP_KV:
    case DSV4_TAP_COMPRESSED_KV:
    case DSV4_TAP_INDEXER_Q:
    case DSV4_TAP_INDEXER_KV:
        /* The columns that are not rotated are right by themselves, the rotated ones are not. */
        if (b != NULL && c->tail_dd > b->pass * b->pass * c->ee &&
            c->head_dd <= b->pass * b->pass * c->ee)
            return true;
        /* Other columns are wrong too, but the values have only been turned: the sum of squares is
         * kept, and position 0, where nothing turns, is right. */
        return !dsv4_tap_is_row(id) && only_position_0_is_right(j, s, id) &&
               fabs(c->aa - c->ee) <= 1e-5 * c->ee;
    case DSV4_TAP_O_LORA:
        /* Only the inverse rotation lies between attn_heads and wo_a. */
        return judge_look(j, layer, DSV4_TAP_ATTN_HEADS) == TAP_RIGHT &&
               only_position_0_is_right(j, s, id);
    default:
        return false;
    }
}

/* In layer 0 all streams are the embedding row, so collapsed is a multiple of it, whatever the
 * gates. Another direction is another row. The same direction at another length: if it were the
 * gates, it would end there (the norm takes a factor away, and the streams are mixed by comb
 * alone); if the streams come out wrong though attn_out and comb are right, they went in wrong. */
static bool is_embed(const judge *j, dsv4_tap_id id, int layer)
{
    const slot *x = judge_slot(j, 0, DSV4_TAP_HC_ATTN_COLLAPSED);
    if (layer != 0 || id > DSV4_TAP_HC_ATTN_COLLAPSED || x->golden == NULL || x->clean.rows == 0)
        return false;
    if (x->row_cosine < 1 - 1e-9)
        return true;
    return id == DSV4_TAP_HC_ATTN_COLLAPSED &&
           judge_look(j, 0, DSV4_TAP_HC_ATTN_POST) == TAP_RIGHT &&
           judge_look(j, 0, DSV4_TAP_HC_ATTN_COMB) == TAP_RIGHT &&
           judge_look(j, 0, DSV4_TAP_ATTN_OUT) == TAP_RIGHT &&
           judge_look(j, 0, DSV4_TAP_STREAMS_MID) == TAP_WRONG;
}

/* Experts that are wrong in a hash layer come from the table. Weights are made by one formula for
 * both kinds of layer: if score layers break it too, given their own logits, it is the router. */
static bool is_hash(const judge *j, dsv4_tap_id id, int layer)
{
    if (layer < 0 || layer >= j->o.config->num_hash_layers)
        return false;
    if (id == DSV4_TAP_ROUTER_EXPERTS)
        return true;
    for (int l = j->o.config->num_hash_layers; id == DSV4_TAP_ROUTER_WEIGHTS && l < j->layers; l++)
        if (judge_slot(j, l, DSV4_TAP_ROUTER_WEIGHTS)->off_formula > 0)
            return false;
    return id == DSV4_TAP_ROUTER_WEIGHTS;
}

static bool is_coded(dsv4_type type)
{
    return type != DSV4_F32 && type != DSV4_F16 && type != DSV4_BF16;
}

static bool is_quant(const judge *j, dsv4_tap_id id, int layer)
{
    /* The engine's own values before and after a rounding break the format's rule, here or on the
     * way to here. */
    for (int l = 0; l <= layer; l++)
        for (int t = 0; t < DSV4_TAP_COUNT && (l < layer || t <= (int)id); t++)
            if (judge_slot(j, l, (dsv4_tap_id)t)->misrounded > 0)
                return true;
    /* Two independent products of the same right input are wrong at once; what they share is the
     * format of their weights. */
    if (id != DSV4_TAP_Q_LORA || j->o.model == NULL || layer < 0)
        return false;
    const dsv4_layer *w = &j->o.model->layers[layer];
    return is_coded(w->wq_a.type) && w->wq_a.type == w->wkv.type &&
           judge_look(j, layer, DSV4_TAP_ATTN_NORM) == TAP_RIGHT &&
           judge_look(j, layer, DSV4_TAP_KV) == TAP_WRONG;
}

const char *judge_blame(const judge *j, const slot *s, dsv4_tap_id id, int layer)
{
    if (is_quant(j, id, layer))
        return "quant";
    if (is_embed(j, id, layer))
        return "embed";
    if (is_hash(j, id, layer))
        return "hash";
    if (is_rope(j, s, id, layer))
        return "rope";
    return tap_block(id);
}
