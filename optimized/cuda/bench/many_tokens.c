/* many_tokens.c - products of many tokens against the card's best matrix product: cuBLAS, where the
 * machine has it, multiplying two large bf16 matrices. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "reference/formats/formats.h"
#include "yardsticks.h"

/* ---- the yardstick -------------------------------------------------------------------------- */

/* The little of cuBLAS that is needed, by its documented binary interface: it is looked for at run
 * time and nothing but this bench ever calls it. */
typedef struct {
    void *library, *handle;
    int (*multiply)(void *handle, int ta, int tb, int m, int n, int k, const void *alpha,
                    const void *a, int type_a, int lda, const void *b, int type_b, int ldb,
                    const void *beta, void *c, int type_c, int ldc, int compute, int algorithm);
    void *a, *b, *c;
} blas;

enum { SIDE = 8192, TRANSPOSED = 1, PLAIN = 0, REAL_BF16 = 14, COMPUTE_32F = 68, DEFAULT = -1 };

static void one_square(bench *x, void *ctx, int i)
{
    const blas *p = ctx;
    const float one = 1, zero = 0;
    (void)i;
    int code =
        p->multiply(p->handle, TRANSPOSED, PLAIN, SIDE, SIDE, SIDE, &one, p->a, REAL_BF16, SIDE,
                    p->b, REAL_BF16, SIDE, &zero, p->c, REAL_BF16, SIDE, COMPUTE_32F, DEFAULT);
    if (code != 0)
        cu_book("cuBLAS", code, "the product failed");
    (void)x;
}

void measure_matrix(bench *x)
{
    static const char *const names[] = {"libcublas.so.13", "/usr/local/cuda/lib64/libcublas.so.13",
                                        "libcublas.so.12", "/usr/local/cuda/lib64/libcublas.so.12",
                                        "libcublas.so.11", "libcublas.so"};
    blas p = {NULL};
    size_t bytes = (size_t)SIDE * SIDE * 2;
    for (size_t i = 0; i < sizeof names / sizeof *names && p.library == NULL; i++)
        p.library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (p.library == NULL) {
        printf("matrix products: cuBLAS was not found (%s): shares are left out\n", dlerror());
        return;
    }
    int (*create)(void **) = NULL, (*set_stream)(void *, void *) = NULL, (*destroy)(void *) = NULL;
    *(void **)&create = dlsym(p.library, "cublasCreate_v2");
    *(void **)&set_stream = dlsym(p.library, "cublasSetStream_v2");
    *(void **)&destroy = dlsym(p.library, "cublasDestroy_v2");
    *(void **)&p.multiply = dlsym(p.library, "cublasGemmEx");
    bool ok = create != NULL && set_stream != NULL && destroy != NULL && p.multiply != NULL &&
              create(&p.handle) == 0;
    p.a = x->pool;
    p.b = x->pool + bytes;
    p.c = x->pool + 2 * bytes;
    if (ok && set_stream(p.handle, x->s) == 0) {
        yard_bf16(x->s, x->pool, (int64_t)SIDE * SIDE * 2, 3);
        double t = seconds(x, one_square, &p, 4);
        x->matrix = 2.0 * SIDE * SIDE * SIDE / t;
        printf("matrix products: cuBLAS, bf16 %d x %d x %d of noise: %.0f Tflop/s\n", SIDE, SIDE,
               SIDE, x->matrix / 1e12);
        yard_noise(x->s, x->pool, x->pool_bytes, 1, false);
    } else {
        printf("matrix products: cuBLAS does not start: shares are left out\n");
    }
    if (p.handle != NULL)
        destroy(p.handle);
    dlclose(p.library);
}

/* ---- dense matrices ------------------------------------------------------------------------- */

typedef struct {
    int64_t rows, cols;
    int together; /* matrices of a launch, each with an x of its own if `apart` */
    bool apart;
    const char *name;
} shape;

typedef struct {
    shape sh;
    cu_tensor w;
    size_t bytes; /* of a launch's weights */
    int copies;
    int64_t n;
    bool bf16;
    cu_room room;
    float *x, *y;
} many;

static cu_tensor tensor_of(dsv4_type type, int64_t rows, int64_t cols, size_t *bytes)
{
    cu_tensor w = {.type = (int)type,
                   .rows = rows,
                   .cols = cols,
                   .row_bytes = dsv4_format_row_bytes(dsv4_format_of(type), cols),
                   .scale_rows = 1,
                   .scale_cols = 1};
    size_t data = (size_t)rows * w.row_bytes;
    if (type == DSV4_FP8 || type == DSV4_FP4) {
        w.scale_cols = type == DSV4_FP8 ? 128 : 32;
        w.scale_rows = type == DSV4_FP8 ? 128 : 1;
        w.scale_row_bytes = (size_t)(cols / w.scale_cols);
        data += (size_t)((rows + w.scale_rows - 1) / w.scale_rows) * w.scale_row_bytes;
    }
    *bytes = (data + 255) / 256 * 256;
    return w;
}

static cu_tensor placed(cu_tensor w, const uint8_t *at)
{
    w.data = at;
    if (w.scale_row_bytes > 0)
        w.scale = at + (size_t)w.rows * w.row_bytes;
    return w;
}

static void one_many(bench *x, void *ctx, int i)
{
    const many *p = ctx;
    cu_segment g[CU_MOST_SEGMENTS];
    size_t each = p->bytes / (size_t)p->sh.together;
    int64_t ldx = p->sh.apart ? p->sh.cols * p->sh.together : p->sh.cols;
    for (int k = 0; k < p->sh.together; k++)
        g[k] = (cu_segment){
            .w = placed(p->w, x->pool + (size_t)(i % p->copies) * p->bytes + (size_t)k * each),
            .x = p->x + (p->sh.apart ? k * p->sh.cols : 0),
            .ldx = ldx,
            .y = p->y + k * p->sh.rows,
            .ldy = p->sh.rows * p->sh.together,
            .bf16 = p->bf16,
            .x_bf16 = p->bf16};
    cu_products(x->s, g, p->sh.together, p->n, &p->room);
}

static void print_rate(const bench *x, double t, double operations)
{
    printf(" %8.1f %6.0f", 1e6 * t, operations / t / 1e12);
    if (x->matrix > 0)
        printf(" %5.1f%%", 100 * operations / t / x->matrix);
    else
        printf("      -");
}

static const dsv4_type formats[] = {DSV4_FP8, DSV4_BF16, DSV4_Q8_0,   DSV4_Q4_K,
                                    DSV4_FP4, DSV4_Q2_K, DSV4_IQ2_XXS};

static void dense(bench *x, many *p)
{
    static const shape shapes[] = {{1024, 4096, 1, false, "wq_a 1024 x 4096"},
                                   {32768, 1024, 1, false, "wq_b 32768 x 1024"},
                                   {512, 4096, 1, false, "wkv 512 x 4096"},
                                   {1024, 4096, 8, true, "wo_a 8 x 1024 x 4096"},
                                   {4096, 8192, 1, false, "wo_b 4096 x 8192"},
                                   {2048, 4096, 2, false, "w1, w3 2 x 2048 x 4096"},
                                   {4096, 2048, 1, false, "w2 4096 x 2048"}};
    printf("\nproducts of many tokens; operations are those of the product itself (a float32 x is "
           "three bf16 parts: three times the work)\n");
    printf("%-22s %-8s", "matrices", "format");
    for (int k = 0; k < 4; k++)
        printf(" %8s %6s %6s", k < 2 ? "us" : "us f32", "Tflop/s", "share");
    printf("\n%-31s  bf16 x: 512, 2048 tokens; float32 x: 512, 2048 tokens\n", "");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
            size_t bytes;
            p->sh = shapes[i];
            p->w = tensor_of(formats[f], p->sh.rows, p->sh.cols, &bytes);
            p->bytes = bytes * (size_t)p->sh.together;
            p->copies = (int)(x->pool_bytes / p->bytes);
            printf("%-22s %-8s", p->sh.name, dsv4_format_of(formats[f])->name);
            for (int k = 0; k < 4; k++) {
                p->n = k % 2 == 0 ? 512 : 2048;
                p->bf16 = k < 2;
                double operations =
                    2.0 * (double)p->n * (double)(p->sh.rows * p->sh.cols) * p->sh.together;
                print_rate(x, seconds(x, one_many, p, 2), operations);
            }
            printf("\n");
        }
}

/* ---- by expert ------------------------------------------------------------------------------ */

typedef struct {
    many m;
    cu_tensor *table; /* device */
    int experts, k;
    int32_t *chosen, *list, *n_groups;
    float *weights, *share;
    cu_expert_group *groups;
    int together;
} routed;

static void one_routed(bench *x, void *ctx, int i)
{
    const routed *r = ctx;
    const many *p = &r->m;
    int64_t pairs = p->n * r->k;
    (void)i;
    if (r->together > CU_EXPERT_TOKENS)
        cu_gemm_experts(x->s, r->table, &p->w, r->experts, r->list, r->groups, r->n_groups,
                        r->together, pairs, r->k, p->x, p->bf16, p->y, p->bf16, &p->room);
    else
        cu_linear_experts(x->s, r->table, &p->w, r->experts, r->list, r->groups, r->n_groups, pairs,
                          r->k, p->x, p->y, p->bf16, p->bf16);
}

static void by_expert(bench *x, many *p)
{
    enum { EXPERTS = 256, K = 6, MOST = 2048 * K };
    static cu_tensor table[EXPERTS];
    static int32_t chosen[MOST];
    static const int64_t tokens[] = {128, 512, 2048};
    routed r = {.m = *p, .experts = EXPERTS, .k = K};
    for (int i = 0; i < MOST; i++) { /* K different ones a token */
        uint32_t h = (uint32_t)(i / K) * 2654435761u;
        chosen[i] = (int32_t)((h >> 24) + (uint32_t)(i % K) * 41u) % EXPERTS;
    }
    r.table = cu_new(sizeof table, "a bench", NULL);
    r.chosen = cu_new(sizeof chosen, "a bench", NULL);
    r.list = cu_new(sizeof chosen, "a bench", NULL);
    r.n_groups = cu_new(4, "a bench", NULL);
    r.weights = cu_new(sizeof chosen, "a bench", NULL);
    r.share = cu_new(sizeof chosen, "a bench", NULL);
    r.groups = cu_new(MOST * sizeof *r.groups, "a bench", NULL);
    cu_to_device(x->s, r.chosen, chosen, sizeof chosen, "a bench");
    cu_clear(x->s, r.weights, sizeof chosen);
    printf("\n%d experts of 2048 x 4096, %d a token: one product of every pair, weights read once "
           "count\n",
           EXPERTS, K);
    printf("%-8s %7s %9s %8s %6s %6s %6s  %8s %6s %6s %6s\n", "format", "tokens", "together", "us",
           "Tflop/s", "share", "GB/s", "us f32", "Tflop/s", "share", "GB/s");
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        size_t bytes;
        r.m.w = tensor_of(formats[f], 2048, 4096, &bytes);
        if (bytes * EXPERTS > x->pool_bytes)
            continue;
        for (int e = 0; e < EXPERTS; e++)
            table[e] = placed(r.m.w, x->pool + (size_t)e * bytes);
        cu_to_device(x->s, r.table, table, sizeof table, "a bench");
        cu_wait(x->s, "a bench");
        for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
            const cu_tensor *shapes[] = {&r.m.w};
            r.m.n = tokens[i];
            for (int k = 0; k < 2; k++) {
                r.m.bf16 = k == 0;
                r.together = cu_expert_tokens(shapes, 1, r.m.n * K, EXPERTS, r.m.bf16, &r.m.room);
                cu_expert_pairs(x->s, r.chosen, r.weights, r.m.n, K, EXPERTS, r.together, r.list,
                                r.groups, r.n_groups, r.share);
                double t = seconds(x, one_routed, &r, 1);
                if (k == 0)
                    printf("%-8s %7lld %9d", dsv4_format_of(formats[f])->name, (long long)r.m.n,
                           r.together);
                print_rate(x, t, 2.0 * (double)r.m.n * K * 2048 * 4096);
                printf(" %6.0f ", (double)bytes * EXPERTS / t / 1e9);
            }
            printf("\n");
        }
    }
    cu_wait(x->s, "a bench");
    cu_delete(r.table);
    cu_delete(r.chosen);
    cu_delete(r.list);
    cu_delete(r.n_groups);
    cu_delete(r.weights);
    cu_delete(r.share);
    cu_delete(r.groups);
}

void products_of_many(bench *x)
{
    many p = {.n = 0};
    p.room.bytes = (size_t)2048 * 32768 * 7; /* wo_a's x */
    p.room.memory = cu_new(p.room.bytes, "a bench", NULL);
    p.x = cu_new((size_t)2048 * 32768 * 4, "a bench", NULL);
    p.y = cu_new((size_t)2048 * 32768 * 4, "a bench", NULL);
    if (p.room.memory != NULL && p.x != NULL && p.y != NULL) {
        yard_noise(x->s, p.x, (size_t)2048 * 32768 * 4, 5, true);
        dense(x, &p);
        by_expert(x, &p);
        cu_wait(x->s, "a bench");
    } else {
        printf("\nproducts of many tokens: no memory for them\n");
    }
    cu_delete(p.room.memory);
    cu_delete(p.x);
    cu_delete(p.y);
}

/* ---- a model -------------------------------------------------------------------------------- */

typedef struct {
    const struct dsv4_cuda *d;
    int64_t n;
    bool bf16;
    cu_room room;
    float *x, *y;
} through;

static int add(cu_segment *g, int count, const through *p, const cu_tensor *w, int64_t from)
{
    g[count] = (cu_segment){.w = *w,
                            .x = p->x + from,
                            .ldx = w->cols,
                            .y = p->y,
                            .ldy = w->rows,
                            .bf16 = p->bf16,
                            .x_bf16 = p->bf16};
    return count + 1;
}

/* Results of a launch fall upon each other: only the time is wanted. */
static void one_through(bench *x, void *ctx, int i)
{
    const through *p = ctx;
    const dsv4_config *c = &p->d->model->config;
    int64_t in = (int64_t)c->num_attention_heads / c->o_groups * c->head_dim;
    cu_segment g[CU_MOST_SEGMENTS];
    (void)i;
    for (int l = 0; l < c->num_hidden_layers; l++) {
        const cu_layer *w = &p->d->layers[l];
        int count = add(g, add(g, 0, p, &w->wq_a, 0), p, &w->wkv, 0);
        cu_products(x->s, g, count, p->n, &p->room);
        cu_products(x->s, g, add(g, 0, p, &w->wq_b, 0), p->n, &p->room);
        count = 0;
        for (int k = 0; k < c->o_groups && count < CU_MOST_SEGMENTS; k++) {
            cu_tensor wo = w->wo_a;
            wo.rows = c->o_lora_rank;
            wo.data += (size_t)(k * wo.rows) * wo.row_bytes;
            wo.row0 += (int)(k * wo.rows);
            count = add(g, count, p, &wo, k * in);
            g[count - 1].ldx = in * c->o_groups;
        }
        cu_products(x->s, g, count, p->n, &p->room);
        cu_products(x->s, g, add(g, 0, p, &w->wo_b, 0), p->n, &p->room);
        count = add(g, add(g, 0, p, &w->shared_w1, 0), p, &w->shared_w3, 0);
        cu_products(x->s, g, count, p->n, &p->room);
        cu_products(x->s, g, add(g, 0, p, &w->shared_w2, 0), p->n, &p->room);
    }
}

void model_products(bench *x, const struct dsv4_cuda *d, int64_t n, dsv4_numerics numerics)
{
    const dsv4_config *c = &d->model->config;
    int64_t heads = (int64_t)c->num_attention_heads * c->head_dim, widest = heads;
    through p = {.d = d, .n = n, .bf16 = numerics == DSV4_DEPLOYED};
    double operations = 0;
    for (int l = 0; l < c->num_hidden_layers; l++) {
        const cu_layer *w = &d->layers[l];
        const cu_tensor *all[] = {&w->wq_a, &w->wq_b,      &w->wkv,       &w->wo_a,
                                  &w->wo_b, &w->shared_w1, &w->shared_w3, &w->shared_w2};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            operations += 2.0 * (double)n * (double)(all[i]->rows * all[i]->cols);
    }
    p.room.bytes = (size_t)(n * widest) * 7 + 4096;
    p.room.memory = cu_new(p.room.bytes, "a bench", NULL);
    p.x = cu_new((size_t)(n * widest) * 4, "a bench", NULL);
    p.y = cu_new((size_t)(n * widest) * 4, "a bench", NULL);
    if (p.room.memory != NULL && p.x != NULL && p.y != NULL) {
        yard_noise(x->s, p.x, (size_t)(n * widest) * 4, 5, true);
        double t = seconds(x, one_through, &p, 1);
        printf("  dense products of these tokens alone (attention's and the shared expert's): %.2f "
               "Tflop in %.2f ms, %.0f Tflop/s",
               operations / 1e12, 1e3 * t, operations / t / 1e12);
        if (x->matrix > 0)
            printf(", %.1f%% of the large product", 100 * operations / t / x->matrix);
        printf("\n");
    }
    cu_delete(p.room.memory);
    cu_delete(p.x);
    cu_delete(p.y);
}
