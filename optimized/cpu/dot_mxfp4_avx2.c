/* dot_mxfp4_avx2.c - MXFP4 rows . Q8_0 activations: the doubled values come from a table of 16. */
#include "dot_k_avx2.h"

enum { BYTES = 17 };

static inline __attribute__((always_inline)) void
rows_mx(int rows, const uint8_t *w, size_t stride, int64_t blocks, const void *prepared, float *sum)
{
    const uint8_t *a = ((const stored_activations *)prepared)->act;
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    __m256 acc[DOT_ROWS];
    for (int r = 0; r < rows; r++)
        acc[r] = _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks; b++, w += BYTES, a += Q8_0_ACT_BYTES) {
        __m256i q = load_256(a + 2);
        float d = _cvtsh_ss(dot_load16(a));
        for (int r = 0; r < rows; r++) {
            const uint8_t *p = w + (size_t)r * stride;
            __m128i codes = load_128(p + 1);
            __m256i both =
                _mm256_inserti128_si256(_mm256_castsi128_si256(codes), _mm_srli_epi16(codes, 4), 1);
            __m256i value =
                _mm256_shuffle_epi8(table, _mm256_and_si256(both, _mm256_set1_epi8(15)));
            __m256i s = signed_products(value, q);
            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s),
                                     _mm256_set1_ps(dsv4_cpu_grids.mxfp4_scale[*p] * d), acc[r]);
        }
    }
    for (int r = 0; r < rows; r++)
        sum[r] = sum_256(acc[r]);
}

void dot_mxfp4_avx2(const dsv4_dot_rows *w, const void *act, float *y)
{
    stored_activations a;
    dot_walk(w, act, y, (dot_shape){32, BYTES, Q8_0_ACT_BYTES, DOT_ROWS}, prepare_stored, rows_mx,
             &a);
}
