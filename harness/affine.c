/* affine.c - the one property that tells a good MLX affine quantiser from a bad one by its output.
 * MLX rounds every group so that zero is a code: bias is a whole multiple of scale. A plain
 * min/max quantiser has the same step and a small error of its own, but no zero: what should
 * vanish does not, and the error adds up with depth instead of averaging out. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "reference/formats/formats.h"
#include "runner.h"

/* bias/scale of rounded floats: the quotient n has an error of up to n half-steps of each. */
static double half_step(dsv4_type scale_type)
{
    return scale_type == DSV4_BF16 ? 0x1p-8 : scale_type == DSV4_F16 ? 0x1p-11 : 0x1p-23;
}

typedef struct {
    int64_t groups;   /* of all the layer's tensors */
    double worst;     /* share of groups without a zero in the worst of them */
    const char *name; /* first tensor of the layer that is bad, and the tap it feeds */
    dsv4_tap_id tap;
} tally;

static dsv4_status count_groups(const dsv4_tensor *t, dsv4_tap_id tap, double limit, tally *sum,
                                dsv4_error *err)
{
    if (t->name == NULL || (t->type != DSV4_MLX4 && t->type != DSV4_MLX8) || t->bias == NULL)
        return DSV4_OK;
    const dsv4_format *f = dsv4_format_of(t->scale_type);
    int64_t per_row = t->cols / t->scale_cols, bad = 0, n = 0;
    float *scale = dsv4_alloc((size_t)per_row, sizeof *scale, "scales", err);
    float *bias = dsv4_alloc((size_t)per_row, sizeof *bias, "biases", err);
    if (scale == NULL || bias == NULL) {
        free(scale);
        free(bias);
        return DSV4_E_MACHINE;
    }
    for (int64_t row = 0; row < t->rows; row++) {
        size_t at = (size_t)(t->row0 + row) * t->scale_row_bytes;
        f->decode(&(dsv4_row){.data = t->scale + at}, per_row, scale);
        f->decode(&(dsv4_row){.data = t->bias + at}, per_row, bias);
        for (int64_t g = 0; g < per_row; g++) {
            double codes = (double)bias[g] / (double)scale[g];
            double noise = 2 * half_step(t->scale_type) * fabs(codes);
            if (!isfinite(codes) || noise > 0.125)
                continue; /* rounding hides the answer */
            n++;
            bad += fabs(codes - round(codes)) > noise + 1e-6;
        }
    }
    free(scale);
    free(bias);
    sum->groups += n;
    sum->worst =
        n > 0 && (double)bad / (double)n > sum->worst ? (double)bad / (double)n : sum->worst;
    if (sum->name == NULL && (double)bad > limit * (double)n) {
        sum->name = t->name;
        sum->tap = tap;
    }
    return DSV4_OK;
}

dsv4_status check_affine(const dsv4_model *m, const budget_table *budgets, results *out,
                         dsv4_error *err)
{
    const dsv4_config *c = &m->config;
    if (strcmp(dsv4_model_container(m), "mlx") != 0)
        return DSV4_OK;
    const budget *limit = budgets_find(budgets, "@affine", DSV4_MATH, WEIGHTS_EXACT, ROWS_CLEAN);
    if (limit == NULL)
        return dsv4_fail(err, DSV4_E_INPUT, "budgets: no line @affine");
    for (int i = 0; i < c->num_hidden_layers; i++) {
        const dsv4_layer *l = &m->layers[i];
        const struct {
            const dsv4_tensor *t;
            dsv4_tap_id tap;
        } list[] = {{&l->wq_a, DSV4_TAP_Q_LORA},
                    {&l->wq_b, DSV4_TAP_Q},
                    {&l->wkv, DSV4_TAP_KV},
                    {&l->compressor.wkv, DSV4_TAP_COMPRESSED_KV},
                    {&l->indexer.wq_b, DSV4_TAP_INDEXER_Q},
                    {&l->wo_a, DSV4_TAP_O_LORA},
                    {&l->wo_b, DSV4_TAP_ATTN_OUT},
                    {&l->shared_w1, DSV4_TAP_SHARED_OUT},
                    {&l->shared_w2, DSV4_TAP_SHARED_OUT},
                    {&l->shared_w3, DSV4_TAP_SHARED_OUT}};
        tally sum = {.tap = DSV4_TAP_ROUTED_OUT};
        dsv4_status status = DSV4_OK;
        for (size_t k = 0; k < sizeof list / sizeof *list && status == DSV4_OK; k++)
            status = count_groups(list[k].t, list[k].tap, limit->fail, &sum, err);
        for (int64_t e = 0; e < 3 * (int64_t)c->n_routed_experts && status == DSV4_OK; e++)
            status = count_groups(&l->w1[e], DSV4_TAP_ROUTED_OUT, limit->fail, &sum,
                                  err); /* w1, w2, w3 */
        if (status != DSV4_OK)
            return status;
        if (sum.groups == 0)
            continue;
        double share = sum.worst;
        result *r = results_add(out, "weights", i, sum.tap);
        char text[512];
        if (r == NULL)
            return dsv4_fail(err, DSV4_E_MACHINE, "out of memory for results");
        r->block = "quant";
        r->n = sum.groups;
        r->rel_l2 = share;
        r->cosine = 1;
        r->max_position = r->max_index = r->worst_position = -1;
        r->budget = limit->pass;
        r->budget_fail = limit->fail;
        r->reason = limit->reason;
        r->verdict = share <= r->budget        ? VERDICT_PASS
                     : share <= r->budget_fail ? VERDICT_MARGINAL
                                               : VERDICT_FAIL;
        if (r->verdict != VERDICT_FAIL)
            continue;
        snprintf(text, sizeof text,
                 "up to %.0f%% of a tensor's groups hold no zero, first in %s: a plain min/max "
                 "quantiser, "
                 "whose error grows with depth",
                 100 * share, sum.name != NULL ? sum.name : "its experts");
        r->note = text_copy(text);
        if (r->note == NULL)
            return dsv4_fail(err, DSV4_E_MACHINE, "out of memory for results");
    }
    return DSV4_OK;
}
