/* attention_neon.c - windowed and compressed attention with a sink on NEON; the arithmetic is in
 * attention.h. */
#include "simd_neon.h"

#include "attention.h"

bool attention_neon(const dsv4_attention_args *a, float *out)
{
    return attention_body(a, out);
}
