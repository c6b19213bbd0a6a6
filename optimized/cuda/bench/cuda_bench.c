/* cuda_bench.c - how fast the CUDA kernels are, against ceilings measured on the same card in the
 * same run: products of Flash's matrices in every format, attention, indexer, mHC, and, for the
 * models named on the command line, decode and prefill. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"
#include "failures.h"
#include "reference/formats/formats.h"
#include "steps.h"
#include "yardsticks.h"

enum { ROUNDS = 21 };

static int by_size(const void *a, const void *b)
{
    float x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

double seconds(bench *x, void (*what)(bench *x, void *ctx, int i), void *ctx, int calls)
{
    float ms[ROUNDS];
    int i = 0;
    for (int k = 0; k < calls; k++)
        what(x, ctx, i++);
    for (int r = 0; r < ROUNDS; r++) {
        cudaEventRecord(x->a, x->s);
        for (int k = 0; k < calls; k++)
            what(x, ctx, i++);
        cudaEventRecord(x->b, x->s);
        cu_ok(cudaEventSynchronize(x->b), "timing", calls);
        cudaEventElapsedTime(&ms[r], x->a, x->b);
    }
    qsort(ms, ROUNDS, sizeof *ms, by_size);
    return (double)ms[ROUNDS / 2] * 1e-3 / calls;
}

/* ---- ceilings ------------------------------------------------------------------------------- */

static void one_copy(bench *x, void *ctx, int i)
{
    size_t half = *(size_t *)ctx;
    yard_copy(x->s, x->pool + (i % 2 ? half : 0), x->pool + (i % 2 ? 0 : half), half);
}

static void one_read(bench *x, void *ctx, int i)
{
    size_t part = *(size_t *)ctx;
    yard_read(x->s, x->pool + (size_t)(i % 4) * part, part, x->out);
}

static void one_fma(bench *x, void *ctx, int i)
{
    (void)i;
    *(double *)ctx = yard_fma(x->s, x->out);
}

static void ceilings(bench *x)
{
    size_t half = x->pool_bytes / 2, part = x->pool_bytes / 4;
    double operations = 0;
    x->copy = 2.0 * (double)half / seconds(x, one_copy, &half, 4);
    x->read = (double)part / seconds(x, one_read, &part, 4);
    double t = seconds(x, one_fma, &operations, 8);
    x->fma = operations / t;
    printf("ceilings measured here: copy %.0f GB/s (read + written), read %.0f GB/s, float32 %.1f "
           "Tflop/s\n",
           x->copy / 1e9, x->read / 1e9, x->fma / 1e12);
    yard_noise(x->s, x->pool, x->pool_bytes, 1, false);
    measure_matrix(x);
}

/* ---- products ------------------------------------------------------------------------------- */

typedef struct {
    int64_t rows, cols;
    int together; /* matrices in one launch */
    const char *name;
} shape;

typedef struct {
    shape sh;
    cu_tensor w;
    size_t bytes; /* of one launch */
    int copies;
    bool ahead; /* none waits for another one's results: cu_segment */
} product;

static void one_product(bench *x, void *ctx, int i)
{
    const product *p = ctx;
    cu_segment g[CU_MOST_SEGMENTS];
    size_t each = p->bytes / (size_t)p->sh.together;
    for (int k = 0; k < p->sh.together; k++) {
        size_t at = (size_t)(i % p->copies) * p->bytes + (size_t)k * each;
        cu_tensor w = p->w;
        w.data = x->pool + at;
        if (w.scale_row_bytes > 0)
            w.scale = w.data + (size_t)w.rows * w.row_bytes;
        g[k] = (cu_segment){.w = w,
                            .x = x->floats,
                            .ldx = w.cols,
                            .y = x->out + k * w.rows,
                            .ldy = w.rows,
                            .ahead = p->ahead};
    }
    cu_linear_group(x->s, g, p->sh.together, 1);
}

static void products(bench *x)
{
    static const shape shapes[] = {{2048, 4096, 6, "gate, up: 6 x 2048 x 4096"},
                                   {4096, 2048, 6, "down: 6 x 4096 x 2048"},
                                   {32768, 1024, 1, "wq_b: 32768 x 1024"},
                                   {4096, 8192, 1, "wo_b: 4096 x 8192"},
                                   {129280, 4096, 1, "head: 129280 x 4096"}};
    static const dsv4_type types[] = {DSV4_Q8_0,  DSV4_FP8,  DSV4_Q4_K,    DSV4_FP4,
                                      DSV4_MXFP4, DSV4_Q2_K, DSV4_IQ2_XXS, DSV4_BF16};
    printf("\nproducts of one token, weights rotated through %.1f GB\n",
           (double)x->pool_bytes / 1e9);
    printf("launched one by one; as a graph, each waiting for the one before, as decoding does it; "
           "and as one in which matrix and vector are known beforehand\n");
    printf("%-26s %-8s", "matrices", "format");
    for (int i = 0; i < 3; i++)
        printf(" %8s %7s %8s", "us", "GB/s", "of read");
    printf("\n");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (size_t k = 0; k < sizeof types / sizeof *types; k++) {
            product p = {.sh = shapes[i]};
            const dsv4_format *f = dsv4_format_of(types[k]);
            p.w = (cu_tensor){.type = (int)types[k],
                              .rows = p.sh.rows,
                              .cols = p.sh.cols,
                              .row_bytes = dsv4_format_row_bytes(f, p.sh.cols),
                              .scale_rows = 1,
                              .scale_cols = 1};
            size_t data = (size_t)p.sh.rows * p.w.row_bytes;
            if (types[k] == DSV4_FP8 || types[k] == DSV4_FP4) {
                p.w.scale_cols = types[k] == DSV4_FP8 ? 128 : 32;
                p.w.scale_rows = types[k] == DSV4_FP8 ? 128 : 1;
                p.w.scale_row_bytes = (size_t)(p.sh.cols / p.w.scale_cols);
                data += (size_t)(p.sh.rows / p.w.scale_rows) * p.w.scale_row_bytes;
            }
            p.bytes = (data + 255) / 256 * 256 * (size_t)p.sh.together;
            p.copies = (int)(x->pool_bytes / p.bytes);
            double t = seconds(x, one_product, &p, p.copies < 24 ? p.copies : 24);
            double all = (double)(data * (size_t)p.sh.together);
            /* More than any cache holds lies between two readings of a matrix. */
            int calls = (int)(1e9 / all) + 4;
            calls = p.copies < calls ? p.copies : calls;
            double times[] = {t, replayed(x, one_product, &p, calls), 0};
            p.ahead = true;
            times[2] = replayed(x, one_product, &p, calls);
            printf("%-26s %-8s", p.sh.name, f->name);
            for (int n = 0; n < 3; n++)
                printf(" %8.2f %7.0f %7.1f%%", 1e6 * times[n], all / times[n] / 1e9,
                       100 * all / times[n] / x->read);
            printf("\n");
        }
}

/* ---- models --------------------------------------------------------------------------------- */

static double tensor_bytes(const dsv4_tensor *t)
{
    double scales = t->scale != NULL ? (double)((t->rows + t->scale_rows - 1) / t->scale_rows) *
                                           (double)t->scale_row_bytes
                                     : 0;
    return t->name == NULL ? 0 : (double)t->rows * (double)t->row_bytes + scales;
}

/* Bytes that decoding a token must read in layer l: every dense matrix and K experts. */
static double layer_bytes(const dsv4_model *m, const dsv4_layer *l)
{
    double K = m->config.num_experts_per_tok;
    const dsv4_tensor *dense[] = {&l->hc_attn.fn,
                                  &l->hc_ffn.fn,
                                  &l->wq_a,
                                  &l->wq_b,
                                  &l->wkv,
                                  &l->wo_a,
                                  &l->wo_b,
                                  &l->compressor.wkv,
                                  &l->compressor.wgate,
                                  &l->indexer.wq_b,
                                  &l->indexer.compressor.wkv,
                                  &l->indexer.compressor.wgate,
                                  &l->indexer.weights_proj,
                                  &l->gate,
                                  &l->shared_w1,
                                  &l->shared_w2,
                                  &l->shared_w3};
    double sum = K * (tensor_bytes(&l->w1[0]) + tensor_bytes(&l->w2[0]) + tensor_bytes(&l->w3[0]));
    for (size_t i = 0; i < sizeof dense / sizeof *dense; i++)
        sum += tensor_bytes(dense[i]);
    return sum;
}

typedef struct {
    cu_tensor head;
} head_bench;

static void one_head(bench *x, void *ctx, int i)
{
    const head_bench *h = ctx;
    (void)i;
    cu_linear(x->s, &h->head, x->floats, h->head.cols, 1, x->out, h->head.rows, false);
}

static dsv4_status model(bench *x, const char *path, int prefill, dsv4_numerics numerics,
                         bool apart, dsv4_error *err)
{
    dsv4_model *m = NULL;
    dsv4_cuda *d = NULL;
    dsv4_cuda_session *s = NULL;
    int32_t *tokens = NULL;
    float *logits = NULL;
    enum { DECODE = 64 };
    dsv4_status status = dsv4_model_open(path, &m, err);
    if (status == DSV4_OK)
        status = dsv4_cuda_open(m, &d, err);
    /* One block, if there is memory for it. */
    dsv4_session_options o = {.numerics = numerics,
                              .max_positions = prefill + 2 * DECODE + 4,
                              .chunk = prefill < 2048 ? prefill : 2048};
    if (status == DSV4_OK)
        status = dsv4_cuda_session_new(d, &o, &s, err);
    while (status == DSV4_E_MACHINE && d != NULL && o.chunk > 64) {
        o.chunk /= 2;
        status = dsv4_cuda_session_new(d, &o, &s, err);
    }
    if (status != DSV4_OK)
        goto done;
    tokens = dsv4_alloc((size_t)o.max_positions, sizeof *tokens, "tokens", err);
    logits = dsv4_alloc((size_t)m->config.vocab_size, sizeof *logits, "logits", err);
    if (tokens == NULL || logits == NULL) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    for (int64_t i = 0; i < o.max_positions; i++)
        tokens[i] = (int32_t)((uint64_t)(i * 7919 + 13) % (uint64_t)m->config.vocab_size);
    float ms = 0;
    status = dsv4_cuda_session_append(s, tokens, prefill, NULL, err); /* loads the kernels */
    dsv4_cuda_session_reset(s);
    cudaEventRecord(x->a, NULL);
    if (status == DSV4_OK)
        status = dsv4_cuda_session_append(s, tokens, prefill, NULL, err);
    cudaEventRecord(x->b, NULL);
    cudaEventSynchronize(x->b);
    cudaEventElapsedTime(&ms, x->a, x->b);
    if (status != DSV4_OK)
        goto done;
    int layers = m->config.num_hidden_layers;
    double floor_bytes = tensor_bytes(&m->head), dense = 0;
    for (int l = 0; l < layers; l++)
        floor_bytes += layer_bytes(m, &m->layers[l]);
    dense = floor_bytes - tensor_bytes(&m->head);
    printf("\n%s, %s: %d layers, %.1f GB of weights on the device\n", path,
           dsv4_numerics_name(numerics), layers, (double)dsv4_cuda_weight_bytes(d) / 1e9);
    printf("prefill of %d tokens in blocks of %d: %.1f ms, %.0f tokens/s\n", prefill, o.chunk,
           (double)ms, prefill / (1e-3 * (double)ms));
    model_products(x, d, o.chunk, numerics);
    float steps[DECODE];
    for (int i = 0; i < 2 * DECODE && status == DSV4_OK; i++) {
        struct timespec from, to; /* the host's clock: events would cost time of their own */
        clock_gettime(CLOCK_MONOTONIC, &from);
        /* Every eighth step wants logits on the host: they are computed by every step. */
        status =
            dsv4_cuda_session_append(s, tokens + prefill + i, 1, i % 8 == 0 ? logits : NULL, err);
        clock_gettime(CLOCK_MONOTONIC, &to);
        if (i >= DECODE)
            steps[i - DECODE] = (float)(1e3 * (double)(to.tv_sec - from.tv_sec) +
                                        1e-6 * (double)(to.tv_nsec - from.tv_nsec));
    }
    if (status != DSV4_OK)
        goto done;
    qsort(steps, DECODE, sizeof *steps, by_size);
    double step = 1e-3 * (double)steps[DECODE / 2];
    head_bench h = {.head = dsv4_cuda_head(d)};
    double head = seconds(x, one_head, &h, 4), each = (step - head) / layers;
    printf("decode: %.1f us a token (median of %d, host's calls included), head %.1f us, a layer "
           "%.1f us\n",
           1e6 * step, DECODE, 1e6 * head, 1e6 * each);
    printf("  floor of a layer: %.1f MB read once at %.0f GB/s: %.1f us; measured is %.1f%% of the "
           "floor's rate; whole step %.1f%%\n",
           dense / layers / 1e6, x->read / 1e9, 1e6 * dense / layers / x->read,
           100 * dense / layers / x->read / each, 100 * floor_bytes / x->read / step);
    if (apart) {
        status = bench_steps(s, &step, err);
        each = (step - head) / layers;
        if (status == DSV4_OK)
            printf("step after step on the device, without the host's calls: a layer %.1f us, "
                   "%.1f%% of the floor's rate; whole step %.1f us, %.1f%%\n",
                   1e6 * each, 100 * dense / layers / x->read / each, 1e6 * step,
                   100 * floor_bytes / x->read / step);
    }
done:
    free(tokens);
    free(logits);
    dsv4_cuda_session_free(s);
    dsv4_cuda_close(d);
    dsv4_model_close(m);
    return status;
}

/* ---- the program ---------------------------------------------------------------------------- */

static const char help[] =
    "usage: cuda-bench [--prefill N] [--numerics N] [--steps] [--models-only] "
    "[--only products|blocks|many] [MODEL ...]\n"
    "       cuda-bench --failures MODEL | --hold MB\n"
    "\n"
    "Measures device memory and float32 arithmetic, then the kernels against them; for each "
    "model,\n"
    "decode and prefill (2048 tokens).\n"
    "\n"
    "  --steps        also what a decode step is made of, operator by operator\n"
    "  --models-only  no kernels but the ceilings\n"
    "  --only         of the kernels the products of one token, what is no product, or the "
    "products of\n"
    "                 many tokens\n"
    "  --failures     asks for more memory than there is, and for more positions: refused in a "
    "line,\n"
    "                 nothing left behind\n"
    "  --hold         takes all device memory but MB until the standard input ends: for tests\n"
    "\n"
    "Exit 0 measured, 1 a check of --failures failed, 2 bad usage or no device, 3 the machine "
    "failed.\n";

/* --failures and --hold. Returns the exit code; -1 = neither was asked for. */
static int provoke(int argc, char **argv)
{
    dsv4_error err = {""};
    dsv4_status status = DSV4_OK;
    int failed = 0;
    char *end = NULL;
    if (argc != 3 || (strcmp(argv[1], "--failures") != 0 && strcmp(argv[1], "--hold") != 0))
        return -1;
    if (strcmp(argv[1], "--failures") == 0) {
        status = provoke_failures(argv[2], &failed, &err);
    } else {
        long long leave = strtoll(argv[2], &end, 10);
        if (*end != '\0' || leave < 0 || leave > 1 << 30)
            status =
                dsv4_fail(&err, DSV4_E_INPUT, "--hold: expected megabytes, found '%s'", argv[2]);
        else
            status = hold_memory(leave, &err);
    }
    if (status != DSV4_OK)
        fprintf(stderr, "cuda-bench: %s\n", err.text);
    return status != DSV4_OK ? (int)status : failed > 0;
}

static const struct {
    const char *name;
    void (*measure)(bench *x);
} parts[] = {{"products", products}, {"blocks", measure_blocks}, {"many", products_of_many}};

static bool is_part(const char *name)
{
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strcmp(name, parts[i].name) == 0)
            return true;
    return false;
}

int main(int argc, char **argv)
{
    const char *only = NULL;
    bench x = {.pool_bytes = (size_t)4 << 30, .float_count = (size_t)40 << 20};
    dsv4_error err = {""};
    char device[256];
    int prefill = 2048, first = 1;
    dsv4_numerics numerics = DSV4_MATH;
    bool apart = false, kernels = true;
    int provoked = provoke(argc, argv);
    if (provoked >= 0)
        return provoked;
    for (; first < argc && argv[first][0] == '-'; first++) {
        if (strcmp(argv[first], "--help") == 0) {
            fputs(help, stdout);
            return 0;
        }
        if (strcmp(argv[first], "--steps") == 0) {
            apart = true;
            continue;
        }
        if (strcmp(argv[first], "--models-only") == 0) {
            kernels = false;
            continue;
        }
        bool known = first + 1 < argc;
        if (known && strcmp(argv[first], "--prefill") == 0)
            prefill = atoi(argv[first + 1]);
        else if (known && strcmp(argv[first], "--only") == 0 && is_part(argv[first + 1]))
            only = argv[first + 1];
        else if (!known || strcmp(argv[first], "--numerics") != 0 ||
                 !dsv4_numerics_parse(argv[first + 1], &numerics))
            prefill = 0;
        if (prefill < 1) {
            fputs(help, stderr);
            return DSV4_E_INPUT;
        }
        first++;
    }
    dsv4_status status = dsv4_cuda_probe(device, sizeof device, &err);
    if (status == DSV4_OK)
        status = cu_open(&err);
    if (status != DSV4_OK)
        goto done;
    printf("cuda-bench: %s\n", device);
    x.s = cu_new_stream(&err);
    x.pool = cu_new(x.pool_bytes, "a bench", &err);
    x.floats = cu_new(x.float_count * 4, "a bench", &err);
    x.out = cu_new((size_t)64 << 20, "a bench", &err);
    x.tickets = cu_new(4096, "a bench", &err);
    if (x.s == NULL || !x.pool || !x.floats || !x.out || !x.tickets) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    cudaEventCreate(&x.a);
    cudaEventCreate(&x.b);
    yard_noise(x.s, x.pool, x.pool_bytes, 1, false);
    yard_noise(x.s, x.floats, x.float_count * 4, 2, true);
    cu_clear(x.s, x.tickets, 4096);
    ceilings(&x);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (only != NULL ? strcmp(only, parts[i].name) == 0 : kernels)
            parts[i].measure(&x);
    status = cu_take_error(&err);
    cu_delete(x.pool); /* models need the room */
    x.pool = NULL;
    for (int i = first; i < argc && status == DSV4_OK; i++)
        status = model(&x, argv[i], prefill, numerics, apart, &err);
done:
    if (status != DSV4_OK)
        fprintf(stderr, "cuda-bench: %s\n", err.text);
    return (int)status;
}
