/* elementwise_avx2.c - add and index_weights on AVX2 and FMA; the arithmetic is in elementwise.h.
 */
#include "simd_avx2.h"

#include "elementwise.h"

void add_avx2(float *x, const float *y, int64_t n)
{
    add_body(x, y, n);
}

void index_weights_avx2(float *w, int64_t n, int heads, int dim)
{
    index_weights_body(w, n, heads, dim);
}
