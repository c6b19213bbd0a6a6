/* elementwise_neon.c - add and index_weights on NEON; the arithmetic is in elementwise.h. */
#include "simd_neon.h"

#include "elementwise.h"

void add_neon(float *x, const float *y, int64_t n)
{
    add_body(x, y, n);
}

void index_weights_neon(float *w, int64_t n, int heads, int dim)
{
    index_weights_body(w, n, heads, dim);
}
