/* blocks.c - attention, indexer, top-k and mHC of Flash: one token, and many at a time. Calls are
 * recorded as a graph and replayed, as decoding does it: what the host needs to queue them does not
 * count, each launch and its gap to the next does. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "yardsticks.h"

enum {
    REPLAYS = 21,
    HEADS = 64,
    DIM = 512,
    WINDOW = 128,
    TOP = 512,
    INDEX_ROWS = 16384,
    MOST = 512
};

typedef struct {
    cu_attention_args a;
    const float *floats; /* noise, or noise rounded to bf16 */
    float *out, *scores, *scratch;
    int64_t *pos;
    int32_t *list;
    int64_t n;
    cu_tensor fn;
    cu_gates gates;
    float *x, *y;
} block;

static int by_size(const void *a, const void *b)
{
    float x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

double replayed(bench *x, void (*what)(bench *x, void *ctx, int i), void *ctx, int calls)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    float ms[REPLAYS];
    what(x, ctx, 0); /* what is set up on a first call cannot be recorded */
    if (!cu_ok(cudaStreamBeginCapture(x->s, cudaStreamCaptureModeThreadLocal), "a bench", calls))
        return 0;
    for (int i = 0; i < calls; i++)
        what(x, ctx, i);
    if (!cu_ok(cudaStreamEndCapture(x->s, &graph), "a bench", calls) ||
        !cu_ok(cudaGraphInstantiateWithFlags(&exec, graph, 0), "a bench", calls))
        return 0;
    for (int r = -2; r < REPLAYS; r++) {
        cudaEventRecord(x->a, x->s);
        cudaGraphLaunch(exec, x->s);
        cudaEventRecord(x->b, x->s);
        cu_ok(cudaEventSynchronize(x->b), "timing", calls);
        if (r >= 0)
            cudaEventElapsedTime(&ms[r], x->a, x->b);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    qsort(ms, REPLAYS, sizeof *ms, by_size);
    return (double)ms[REPLAYS / 2] * 1e-3 / calls;
}

/* Seconds of a launch that waits for another one's results: what a block costs at least, besides
 * its bytes and operations, where one follows the other. */
static double dependent;

static void report(bench *x, const char *name, double t, double bytes, double operations)
{
    double memory = bytes / x->read, arithmetic = operations / x->fma;
    double bound = memory > arithmetic ? memory : arithmetic;
    printf("%-50s %8.2f us  %7.2f MB: %6.2f us  %9.1f Mflop: %7.2f us  floor %7.2f us (%s)  "
           "%6.2fx  | with a launch %7.2f us  %5.2fx\n",
           name, 1e6 * t, bytes / 1e6, 1e6 * memory, operations / 1e6, 1e6 * arithmetic,
           1e6 * bound, memory > arithmetic ? "memory" : "float32", t / bound,
           1e6 * (bound + dependent), t / (bound + dependent));
}

/* ---- launches ------------------------------------------------------------------------------- */

static void one_empty(bench *x, void *ctx, int i)
{
    (void)ctx;
    (void)i;
    yard_empty(x->s);
}

static void one_meeting(bench *x, void *ctx, int i)
{
    (void)ctx;
    (void)i;
    yard_meet(x->s, x->out, x->tickets);
}

/* ---- attention ------------------------------------------------------------------------------ */

static void one_attention(bench *x, void *ctx, int i)
{
    block *b = ctx;
    cu_attention_args a = b->a;
    size_t step = (size_t)640 * DIM, rows = (size_t)(a.window_ring + a.most_rows) * DIM;
    size_t places = (x->float_count - rows) / step; /* rotated through more than the cache holds */
    a.window = b->floats + (size_t)i % (places < 64 ? places : 64) * step;
    a.rows = a.window + a.window_ring * DIM;
    cu_attention(x->s, &a, b->out, false);
}

/* n tokens, the last of which is at `end`; k: rows of its own for each, 0: all the compressed. */
static void attention(bench *x, block *b, const char *name, int64_t n, int64_t end, int ratio,
                      int k)
{
    int64_t pos = end - n, most = end / ratio, seen = 0, all = WINDOW + n - 1 + most;
    cu_to_device(x->s, b->pos, &pos, sizeof pos, "a bench");
    cu_wait(x->s, "a bench");
    b->a = (cu_attention_args){.n = n,
                               .pos0 = b->pos,
                               .heads = HEADS,
                               .dim = DIM,
                               .q = b->floats,
                               .window_pos0 = pos - WINDOW + 1,
                               .window_ring = WINDOW + n - 1,
                               .window_size = WINDOW,
                               .ratio = ratio,
                               .most_rows = most,
                               .topk = k > 0 ? b->list : NULL,
                               .k = k,
                               .sink = b->floats,
                               .scratch = b->scratch};
    b->a.splits = cu_attention_splits(WINDOW + (k > 0 ? k : most));
    for (int64_t i = 0; i < n; i++)
        seen += WINDOW + (k > 0 ? k : (pos + i + 1) / ratio);
    double t = replayed(x, one_attention, b, n == 1 ? 64 : 4);
    double rows = n == 1 ? (double)seen : (double)all;
    report(x, name, t, 4.0 * (rows * DIM + 2.0 * (double)n * HEADS * DIM),
           2.0 * 2 * (double)seen * HEADS * DIM);
}

/* ---- indexer -------------------------------------------------------------------------------- */

static void one_scores(bench *x, void *ctx, int i)
{
    block *b = ctx;
    cu_indexer_scores(x->s, b->floats, b->floats + (size_t)(1 + i % 16) * INDEX_ROWS * 128,
                      b->floats + 8192, 64, 128, b->n, INDEX_ROWS, NULL, 4, false, b->scores,
                      INDEX_ROWS, NULL);
}

static void one_topk(bench *x, void *ctx, int i)
{
    block *b = ctx;
    (void)i;
    cu_topk(x->s, b->scores, INDEX_ROWS, b->n, INDEX_ROWS, NULL, 4, TOP, b->list);
}

static void one_short_topk(bench *x, void *ctx, int i)
{
    block *b = ctx;
    (void)i;
    cu_topk(x->s, b->scores, INDEX_ROWS, 1, 3000, NULL, 4, TOP, b->list);
}

static void scores(bench *x, block *b, const char *name, int64_t n)
{
    double tokens = (double)n;
    b->n = n;
    report(x, name, replayed(x, one_scores, b, n == 1 ? 16 : 4),
           4.0 * (INDEX_ROWS * 128.0 + tokens * (INDEX_ROWS + 64 * 129)),
           2.0 * tokens * INDEX_ROWS * 64 * 128);
}

/* ---- mHC ------------------------------------------------------------------------------------ */

static void one_mix(bench *x, void *ctx, int i)
{
    block *b = ctx;
    cu_tensor fn = b->fn;
    fn.data += (size_t)(i % 64) * 24 * 16384 * 4;
    cu_hc_mix(x->s, &fn, x->floats, 1e-6f, b->n, x->out, x->out + 65536, x->tickets, &b->gates);
}

static void one_enter(bench *x, void *ctx, int i)
{
    block *b = ctx;
    cu_tensor fn = b->fn;
    fn.data += (size_t)(i % 64) * 24 * 16384 * 4;
    cu_hc_enter(x->s, &fn, x->floats, 1e-6f, b->n, x->out, x->out + 65536, x->tickets, &b->gates,
                x->floats, b->x, b->y, false, NULL, NULL);
}

/* As in a step, where another launch works out the gates that only the sublayer's end needs. */
static void one_entry(bench *x, void *ctx, int i)
{
    block *b = ctx;
    cu_tensor fn = b->fn;
    cu_later later = {0};
    fn.data += (size_t)(i % 64) * 24 * 16384 * 4;
    cu_hc_enter(x->s, &fn, x->floats, 1e-6f, b->n, x->out, x->out + 65536, x->tickets, &b->gates,
                x->floats, b->x, b->y, false, NULL, &later);
}

static void one_mhc(bench *x, void *ctx, int i)
{
    block *b = ctx;
    one_enter(x, ctx, i);
    cu_hc_post(x->s, b->x, x->floats, b->gates.post, b->gates.comb, b->n, 4, 4096, b->out, false);
}

static void mhc(bench *x, block *b, int64_t n)
{
    double tokens = (double)n, mix = 4.0 * (24 + tokens) * 16384, all;
    char name[64];
    b->n = n;
    snprintf(name, sizeof name, "mHC, %d: mixes, gates, 20 Sinkhorn passes", (int)n);
    report(x, name, replayed(x, one_mix, b, 64), mix + 4.0 * tokens * 48,
           2.0 * 25 * 16384 * tokens);
    all = mix + 4.0 * tokens * (16384 + 4096 + 4096 + 2 * 16384);
    float *y = b->y;
    b->y = NULL;
    snprintf(name, sizeof name, "mHC, %d: the same, collapse, expansion", (int)n);
    report(x, name, replayed(x, one_mhc, b, 64), all, 2.0 * (25 + 4 + 20) * 16384 * tokens);
    b->y = y;
    snprintf(name, sizeof name, "mHC, %d: the same, collapse, norm, expansion", (int)n);
    report(x, name, replayed(x, one_mhc, b, 64), all + 4.0 * tokens * 2 * 4096,
           2.0 * (25 + 4 + 20 + 1) * 16384 * tokens);
    if (n == 1)
        report(x, "mHC, 1: mixes, collapse, norm; gates left to others",
               replayed(x, one_entry, b, 64), mix + 4.0 * (16384 + 3 * 4096),
               2.0 * (25 + 4 + 1) * 16384);
}

/* ---- all of them ---------------------------------------------------------------------------- */

void measure_blocks(bench *x)
{
    block b = {.floats = x->floats};
    int32_t *list = malloc((size_t)MOST * TOP * sizeof *list);
    float *rounded = cu_new(x->float_count * 4, "a bench", NULL);
    b.pos = cu_new(sizeof *b.pos, "a bench", NULL);
    b.list = cu_new((size_t)MOST * TOP * sizeof *list, "a bench", NULL);
    b.out = cu_new((size_t)MOST * HEADS * DIM * 4, "a bench", NULL);
    b.scores = cu_new((size_t)64 * INDEX_ROWS * 4, "a bench", NULL);
    b.scratch = cu_new((size_t)cu_attention_scratch(MOST, HEADS, DIM, 64) * 4, "a bench", NULL);
    float *room = cu_new((size_t)64 * 8192 * 4, "a bench", NULL);
    float *gates = cu_new((size_t)64 * 64 * 4, "a bench", NULL);
    if (list == NULL || rounded == NULL || b.pos == NULL || b.list == NULL || b.out == NULL ||
        b.scores == NULL || b.scratch == NULL || room == NULL || gates == NULL) {
        printf("blocks: not measured, no memory\n");
        goto done;
    }
    for (int i = 0; i < MOST * TOP; i++) /* all different, out of order */
        list[i] = (i % TOP * 389 + i / TOP * 7) % TOP * 2;
    cu_to_device(x->s, b.list, list, (size_t)MOST * TOP * sizeof *list, "a bench");
    cu_on_device(x->s, rounded, x->floats, x->float_count * 4, "a bench");
    cu_round_bf16(x->s, rounded, (int64_t)x->float_count);
    cu_wait(x->s, "a bench");

    printf("\nblocks (Flash), replayed as a graph; each launch and its gap to the next counts\n");
    dependent = replayed(x, one_meeting, NULL, 64);
    printf("launch floor: a kernel that does nothing %.2f us; one whose last block reads what the "
           "others wrote %.2f us\n",
           1e6 * replayed(x, one_empty, NULL, 64), 1e6 * dependent);
    printf(
        "floor: the longer of bytes at the rate read and operations at the rate of float32; last "
        "columns: the floor and one such launch\n");
    attention(x, &b, "attention, 128 + 512 rows x 64 heads x 512", 1, 4096, 4, TOP);
    attention(x, &b, "attention, 128 + 32 rows: one launch", 1, 4096, 128, 0);
    attention(x, &b, "attention, 2 tokens", 2, 4096, 4, TOP);
    attention(x, &b, "attention, 4 tokens", 4, 4096, 4, TOP);
    attention(x, &b, "attention, 8 tokens", 8, 4096, 4, TOP);
    attention(x, &b, "attention, 64 tokens", 64, 4096, 4, TOP);
    attention(x, &b, "attention, 512 tokens", 512, 4096, 4, TOP);
    attention(x, &b, "attention, 512 tokens, 128 + up to 128 rows", 512, 16384, 128, 0);
    b.floats = rounded;
    attention(x, &b, "attention, values of bf16", 1, 4096, 4, TOP);
    attention(x, &b, "attention, values of bf16, 64 tokens", 64, 4096, 4, TOP);
    attention(x, &b, "attention, values of bf16, 512 tokens", 512, 4096, 4, TOP);
    scores(x, &b, "indexer scores, values of bf16", 1);
    scores(x, &b, "indexer scores, values of bf16, 64 tokens", 64);
    b.floats = x->floats;
    scores(x, &b, "indexer scores, 16384 rows x 64 heads x 128", 1);
    scores(x, &b, "indexer scores, 4 tokens", 4);
    scores(x, &b, "indexer scores, 64 tokens", 64);
    b.n = 1;
    report(x, "top 512 of 3000 scores", replayed(x, one_short_topk, &b, 16), 4.0 * (3000 + TOP), 0);
    for (b.n = 1; b.n <= 64; b.n *= 64)
        report(x, b.n == 1 ? "top 512 of 16384 scores" : "top 512 of 16384 scores, 64 tokens",
               replayed(x, one_topk, &b, 16), 4.0 * (double)b.n * (INDEX_ROWS + TOP), 0);
    b.fn = (cu_tensor){.type = DSV4_F32,
                       .rows = 24,
                       .cols = 16384,
                       .data = (const uint8_t *)x->floats,
                       .row_bytes = 16384 * 4,
                       .scale_rows = 1,
                       .scale_cols = 1};
    b.gates = (cu_gates){x->floats, x->floats, 4, 20, 1e-6f, gates, gates + 1024, gates + 2048};
    b.x = room;
    b.y = room + 64 * 4096;
    mhc(x, &b, 1);
    mhc(x, &b, 64);
    cu_wait(x->s, "a bench");
done:
    free(list);
    cu_delete(rounded);
    cu_delete(b.pos);
    cu_delete(b.list);
    cu_delete(b.out);
    cu_delete(b.scores);
    cu_delete(b.scratch);
    cu_delete(room);
    cu_delete(gates);
}
