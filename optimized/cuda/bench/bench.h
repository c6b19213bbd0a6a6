/* bench.h - what the parts of cuda-bench share. */
#ifndef DSV4_CUDA_BENCH_H
#define DSV4_CUDA_BENCH_H

#include <cuda_runtime_api.h>

#include "../device.h"
#include "optimized/optimized.h"

typedef struct {
    cu_stream s;
    cudaEvent_t a, b;
    double copy, read, fma; /* bytes/s (copy: read and written), bytes/s, operations/s */
    double matrix;          /* operations/s of a large bf16 matrix product; 0 = not measured */
    uint8_t *pool;          /* noise to read weights from */
    size_t pool_bytes;
    float *floats, *out; /* noise as floats, room for results */
    size_t float_count;
    uint32_t *tickets;
} bench;

/* Median seconds of one of `calls` calls of what(ctx, i), i rising over all rounds. */
double seconds(bench *x, void (*what)(bench *x, void *ctx, int i), void *ctx, int calls);

/* The same of calls that are recorded as a graph and replayed together (blocks.c), as decoding does
 * it. */
double replayed(bench *x, void (*what)(bench *x, void *ctx, int i), void *ctx, int calls);

/* blocks.c: launches, attention, indexer, top-k, mHC. */
void measure_blocks(bench *x);
/* many_tokens.c: x->matrix; products of Flash's matrices with many tokens, dense and by expert. */
void measure_matrix(bench *x);
void products_of_many(bench *x);
/* The dense products, and the routed experts', of n tokens through the model's layers, and nothing
 * else: as forward.c groups them. */
void model_products(bench *x, const struct dsv4_cuda *d, int64_t n, dsv4_numerics numerics);

#endif
