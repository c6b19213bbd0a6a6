/* mutants.c - what all mutants share: the copy that is changed, and the trackers that know where
 * the running model is. */
#include "mutants.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness/harness.h"

mutant_now now;

void *plan_alloc(plan *p, size_t count, size_t size)
{
    void *mem = calloc(count, size);
    if (mem == NULL || p->n_owned == MUTANT_OWNED) {
        fprintf(stderr, "mutants: out of memory\n");
        exit(3);
    }
    p->owned[p->n_owned++] = mem;
    return mem;
}

void plan_init(plan *p, const dsv4_model *right)
{
    memset(p, 0, sizeof *p);
    p->right = right;
    p->model = *right;
    for (int i = 0; i < right->config.num_hidden_layers; i++)
        p->layers[i] = right->layers[i];
    p->model.layers = p->layers;
    if (right->mtp != NULL) {
        p->mtp = right->mtp[0];
        p->model.mtp = &p->mtp;
    }
    p->ops = engine_quick_ops(); /* an engine that is right, and faster */
    p->ops.name = "mutant";
    p->ops.embed = track_embed;
    p->ops.rope_angles = track_rope_angles;
    p->ops.hc_mix = track_hc_mix;
    memset(&now, 0, sizeof now);
    now.p = p;
}

void plan_free(plan *p)
{
    for (size_t i = 0; i < p->n_owned; i++)
        free(p->owned[i]);
    memset(p, 0, sizeof *p);
}

void plan_own_experts(plan *p, int layer)
{
    size_t n = (size_t)p->model.config.n_routed_experts;
    dsv4_layer *l = &p->layers[layer];
    dsv4_tensor **lists[] = {&l->w1, &l->w2, &l->w3};
    for (int i = 0; i < 3; i++) {
        dsv4_tensor *copy = plan_alloc(p, n, sizeof *copy);
        memcpy(copy, *lists[i], n * sizeof *copy);
        *lists[i] = copy;
    }
}

float *plan_own_values(plan *p, dsv4_tensor *t)
{
    float *values = plan_alloc(p, (size_t)(t->rows * t->cols), sizeof *values);
    *t = (dsv4_tensor){
        .name = t->name,
        .type = DSV4_F32,
        .rows = t->rows,
        .cols = t->cols,
        .data = (const uint8_t *)values,
        .row_bytes = (size_t)t->cols * sizeof *values,
        .scale_rows = 1,
    };
    return values;
}

/* ---- trackers ------------------------------------------------------------------------------ */

/* A block begins with the angles of its positions, then its embedding rows: an embed without angles
 * before it is the MTP layer's. */
void track_rope_angles(const float *inv, int half, const int64_t *positions, int64_t n, float *cos,
                       float *sin)
{
    if (!now.attention) {
        now.n = n;
        now.pos0 = positions[0];
        if (n > 1 && !now.mtp_begins) /* the MTP layer lags one token behind */
            now.prompt = positions[0] + n;
        now.main_next = true;
    } else {
        now.row_angles = cos;
    }
    ref_rope_angles(inv, half, positions, n, cos, sin);
}

void track_embed(const dsv4_tensor *table, const int32_t *ids, int64_t n, float *x)
{
    now.mtp = now.mtp_begins = !now.main_next;
    now.main_next = false;
    now.head = now.ffn = now.attention = false;
    ref_embed(table, ids, n, x);
}

void track_hc_mix(const dsv4_tensor *fn, const float *streams, float eps, int64_t n, float *m)
{
    const dsv4_model *model = &now.p->model;
    int layers = model->config.num_hidden_layers;
    now.attention = now.ffn = now.main_next = now.mtp_begins = false;
    for (int l = 0; l <= layers; l++) {
        if (l == layers && model->mtp == NULL)
            break;
        const dsv4_layer *w = l < layers ? &model->layers[l] : &model->mtp[0].layer;
        if (fn == &w->hc_attn.fn || fn == &w->hc_ffn.fn) {
            now.layer = l;
            now.attention = fn == &w->hc_attn.fn;
            now.ffn = fn == &w->hc_ffn.fn;
        }
    }
    now.head = !now.attention && !now.ffn;
    ref_hc_mix(fn, streams, eps, n, m);
}
