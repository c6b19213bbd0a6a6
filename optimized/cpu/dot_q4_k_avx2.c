/* dot_q4_k_avx2.c - Q4_K rows . Q8_K activations. */
#include "dot_k_avx2.h"

enum { BYTES = 144 };

static inline __attribute__((always_inline)) void
rows_q4(int rows, const uint8_t *w, size_t stride, int64_t blocks, const void *prepared, float *sum)
{
    const uint8_t *a = ((const stored_activations *)prepared)->act;
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256 acc[DOT_ROWS];
    __m128 minima[DOT_ROWS];
    for (int r = 0; r < rows; r++) {
        acc[r] = _mm256_setzero_ps();
        minima[r] = _mm_setzero_ps();
    }
    for (int64_t b = 0; b < blocks; b++, w += BYTES, a += QK_ACT_BYTES) {
        __m128i sums = sums_of_32(a);
        float da = dot_load_float(a);
        for (int r = 0; r < rows; r++) {
            const uint8_t *p = w + (size_t)r * stride;
            uint32_t word[4];
            uint8_t scale[16];
            dot_q4_k_scales(p, word);
            memcpy(scale, word, sizeof scale);
            __m256i total = _mm256_setzero_si256();
            for (int k = 0; k < 4; k++) {
                __m256i q = load_256(p + 16 + 32 * k);
                __m256i low =
                    _mm256_maddubs_epi16(_mm256_and_si256(q, nibble), load_256(a + 4 + 64 * k));
                __m256i high = _mm256_maddubs_epi16(
                    _mm256_and_si256(_mm256_srli_epi16(q, 4), nibble), load_256(a + 36 + 64 * k));
                low = _mm256_madd_epi16(low, _mm256_set1_epi16(scale[2 * k]));
                high = _mm256_madd_epi16(high, _mm256_set1_epi16(scale[2 * k + 1]));
                total = _mm256_add_epi32(total, _mm256_add_epi32(low, high));
            }
            __m128i min =
                _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(const void *)(word + 2)));
            __m128i taken = _mm_madd_epi16(min, sums);
            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total),
                                     _mm256_set1_ps(_cvtsh_ss(dot_load16(p)) * da), acc[r]);
            minima[r] = _mm_fmadd_ps(_mm_cvtepi32_ps(taken),
                                     _mm_set1_ps(_cvtsh_ss(dot_load16(p + 2)) * da), minima[r]);
        }
    }
    for (int r = 0; r < rows; r++)
        sum[r] = sum_256(acc[r]) - sum_128(minima[r]);
}

void dot_q4_k_avx2(const dsv4_dot_rows *w, const void *act, float *y)
{
    stored_activations a;
    dot_walk(w, act, y, (dot_shape){256, BYTES, QK_ACT_BYTES, DOT_ROWS}, prepare_stored, rows_q4,
             &a);
}
