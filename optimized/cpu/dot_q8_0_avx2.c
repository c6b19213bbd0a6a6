/* dot_q8_0_avx2.c - Q8_0 rows . Q8_0 activations. */
#include "dot_k_avx2.h"

enum { BYTES = 34 };

static inline __attribute__((always_inline)) void
rows_q8(int rows, const uint8_t *w, size_t stride, int64_t blocks, const void *prepared, float *sum)
{
    const uint8_t *a = ((const stored_activations *)prepared)->act;
    __m256 acc[DOT_ROWS];
    for (int r = 0; r < rows; r++)
        acc[r] = _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks; b++, w += BYTES, a += Q8_0_ACT_BYTES) {
        __m256i q = load_256(a + 2);
        float d = _cvtsh_ss(dot_load16(a));
        for (int r = 0; r < rows; r++) {
            const uint8_t *p = w + (size_t)r * stride;
            __m256i s = signed_products(load_256(p + 2), q);
            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s),
                                     _mm256_set1_ps(_cvtsh_ss(dot_load16(p)) * d), acc[r]);
        }
    }
    for (int r = 0; r < rows; r++)
        sum[r] = sum_256(acc[r]);
}

void dot_q8_0_avx2(const dsv4_dot_rows *w, const void *act, float *y)
{
    stored_activations a;
    dot_walk(w, act, y, (dot_shape){32, BYTES, Q8_0_ACT_BYTES, DOT_ROWS}, prepare_stored, rows_q8,
             &a);
}
