/* elementwise_avx512.c - add and index_weights on AVX-512; the arithmetic is in elementwise.h. */
#include "simd_avx512.h"

#include "elementwise.h"

void add_avx512(float *x, const float *y, int64_t n)
{
    add_body(x, y, n);
}

void index_weights_avx512(float *w, int64_t n, int heads, int dim)
{
    index_weights_body(w, n, heads, dim);
}
