/* experts.c - the routed experts of a block of tokens: one token streams its experts' rows in
 * grouped launches, several are gathered by expert. */
#include "device.h"

bool cu_quantised(const cu_tensor *w)
{
    return w->type == DSV4_FP8 || w->type == DSV4_FP4;
}

int cu_fp8_block(int64_t cols)
{
    return cols < 128 ? (int)cols : 128;
}

/* y of every pair, by whichever kernels take `together` pairs of an expert. */
static void products(cu_stream s, const cu_experts_args *a, const cu_tensor *table,
                     const cu_tensor *shape, int together, int per_row, const float *x, float *y)
{
    int64_t pairs = a->n * a->k;
    if (together > CU_EXPERT_TOKENS)
        cu_gemm_experts(s, table, shape, a->n_experts, a->list, a->groups, a->n_groups, together,
                        pairs, per_row, x, a->deployed, y, a->deployed, &a->room);
    else
        cu_linear_experts(s, table, shape, a->n_experts, a->list, a->groups, a->n_groups, pairs,
                          per_row, x, y, a->deployed, a->one_order);
}

static int together_of(const cu_experts_args *a)
{
    const cu_tensor *shapes[] = {&a->w1, &a->w2, &a->w3};
    return cu_expert_tokens(shapes, 3, a->n * a->k, a->n_experts, a->deployed, &a->room);
}

/* One token's product with a matrix of its expert number i. */
static cu_segment of_expert(const cu_experts_args *a, const cu_tensor *shape,
                            const cu_tensor *table, int i, const float *x, float *y)
{
    return (cu_segment){.w = *shape,
                        .table = table,
                        .index = a->experts + i,
                        .x = x,
                        .ldx = shape->cols,
                        .y = y,
                        .ldy = shape->rows,
                        .bf16 = a->deployed,
                        .x_bf16 = a->deployed,
                        .one_order = a->one_order};
}

/* a.gate, a.up of every pair. */
static void gate_up(cu_stream s, const cu_experts_args *a, const float *x, int together)
{
    int64_t F = a->w1.rows;
    cu_segment g[CU_MOST_SEGMENTS];
    cu_label("products: experts' gate, up");
    if (a->n > 1) {
        products(s, a, a->t1, &a->w1, together, a->k, x, a->gate);
        products(s, a, a->t3, &a->w3, together, a->k, x, a->up);
    }
    for (int first = 0; a->n == 1 && first < a->k; first += CU_MOST_SEGMENTS / 2) {
        int count = 0;
        for (int i = first; i < a->k && i < first + CU_MOST_SEGMENTS / 2; i++) {
            g[count] = of_expert(a, &a->w1, a->t1, i, x, a->gate + i * F);
            g[count++].ahead = a->ahead;
            g[count] = of_expert(a, &a->w3, a->t3, i, x, a->up + i * F);
            g[count++].ahead = a->ahead;
        }
        cu_linear_group(s, g, count, 1);
    }
    cu_label(NULL);
}

/* a.y of every pair; shared: NULL or the shared expert's product, which goes along. gated: of one
 * token; swiglu is done as its results are read. */
static void down(cu_stream s, const cu_experts_args *a, const cu_segment *shared, bool gated,
                 int together)
{
    int64_t D = a->w1.cols, F = a->w1.rows;
    cu_segment g[CU_MOST_SEGMENTS];
    int count = 0;
    cu_label("products: experts' down");
    if (a->n > 1)
        products(s, a, a->t2, &a->w2, together, 1, a->gate, a->y);
    for (int i = 0; a->n == 1 && i < a->k; i++) {
        g[count] = of_expert(a, &a->w2, a->t2, i, a->gate + i * F, a->y + i * D);
        g[count].settled = shared != NULL;
        if (gated) {
            g[count].limit = a->limit;
            g[count].up = a->up + i * F;
            g[count].share = a->share + i;
        }
        count++;
        if (count == CU_MOST_SEGMENTS) {
            cu_linear_group(s, g, count, 1);
            count = 0;
        }
    }
    if (shared != NULL)
        g[count++] = *shared;
    if (count > 0)
        cu_products(s, g, count, a->n, &a->room);
    cu_label(NULL);
}

void cu_experts(cu_stream s, const cu_experts_args *a)
{
    int64_t D = a->w1.cols, F = a->w1.rows, pairs = a->n * a->k;
    const float *x = a->x;
    if (a->n == 0)
        return;
    if (a->deployed && cu_quantised(&a->w1)) {
        cu_round_fp8(s, x, a->x8, a->n, D, D, D, cu_fp8_block(D), NULL);
        x = a->x8;
    }
    int together = together_of(a);
    cu_expert_pairs(s, a->experts, a->weights, a->n, a->k, a->n_experts, together,
                    a->n == 1 ? NULL : a->list, a->groups, a->n_groups, a->share);
    gate_up(s, a, x, together);
    cu_swiglu(s, a->gate, a->up, a->limit, pairs, F, a->share, a->deployed, a->gate);
    if (a->deployed && cu_quantised(&a->w2))
        cu_round_fp8(s, a->gate, a->gate, pairs, F, F, F, cu_fp8_block(F), NULL);
    down(s, a, NULL, false, together);
    cu_expert_sum(s, a->y, a->experts, a->n, a->k, D, a->out);
}

static cu_swiglu_rows swiglu_rows(const cu_experts_args *a, const cu_tensor *w2, int64_t n,
                                  float *gate, const float *up, const float *share)
{
    int block = a->deployed && cu_quantised(w2) ? cu_fp8_block(w2->cols) : 0;
    return (cu_swiglu_rows){gate, up, share, gate, n, w2->cols, block};
}

/* Can the products of w2 do swiglu themselves? Between two of its own roundings it can't. */
static bool gates_below(const cu_experts_args *a, const cu_shared_expert *e)
{
    return a->n == 1 && !a->deployed && cu_linear_streams(&a->w1) && cu_linear_streams(&a->w2) &&
           cu_linear_streams(&a->w3) && cu_linear_streams(&e->w2);
}

void cu_experts_and_shared(cu_stream s, const cu_experts_args *a, const cu_shared_expert *e)
{
    int64_t D = a->w1.cols;
    cu_swiglu_rows routed = swiglu_rows(a, &a->w2, a->n * a->k, a->gate, a->up, a->share);
    cu_swiglu_rows shared = swiglu_rows(a, &e->w2, a->n, e->gate, e->up, NULL);
    cu_segment last = {.w = e->w2,
                       .x = e->gate,
                       .ldx = e->w2.cols,
                       .y = e->out,
                       .ldy = D,
                       .bf16 = a->deployed,
                       .x_bf16 = a->deployed,
                       .one_order = a->one_order};
    if (a->n == 0)
        return;
    int together = together_of(a);
    if (a->n > 1)
        cu_expert_pairs(s, a->experts, a->weights, a->n, a->k, a->n_experts, together, a->list,
                        a->groups, a->n_groups, a->share);
    gate_up(s, a, a->deployed && cu_quantised(&a->w1) ? e->x8 : a->x, together);
    bool gated = gates_below(a, e);
    if (gated) {
        last.limit = a->limit;
        last.up = e->up;
    } else
        cu_swiglu_both(s, &routed, &shared, a->limit, a->deployed);
    down(s, a, &last, gated, together);
}
