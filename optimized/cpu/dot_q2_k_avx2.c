/* dot_q2_k_avx2.c - Q2_K rows . Q8_K activations. */
#include "dot_k_avx2.h"

enum { BYTES = 84 };

/* Scales `at` and `at` + 1 of 16, each over one half of a register. */
static inline __m256i two_scales(__m256i scales, int at)
{
    __m128i one = _mm_set1_epi16((short)(0x0100 + 0x0202 * at));
    __m128i two = _mm_set1_epi16((short)(0x0302 + 0x0202 * at));
    return _mm256_shuffle_epi8(scales, _mm256_set_m128i(two, one));
}

static inline __attribute__((always_inline)) void
rows_q2(int rows, const uint8_t *w, size_t stride, int64_t blocks, const void *prepared, float *sum)
{
    const uint8_t *a = ((const stored_activations *)prepared)->act;
    const __m256i three = _mm256_set1_epi8(3);
    __m256 acc[DOT_ROWS], minima[DOT_ROWS];
    for (int r = 0; r < rows; r++)
        acc[r] = minima[r] = _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks; b++, w += BYTES, a += QK_ACT_BYTES) {
        __m256i sums = load_256(a + 260);
        float da = dot_load_float(a);
        for (int r = 0; r < rows; r++) {
            const uint8_t *p = w + (size_t)r * stride;
            __m128i both = load_128(p), nibble = _mm_set1_epi8(15);
            __m256i scale = _mm256_cvtepu8_epi16(_mm_and_si128(both, nibble));
            __m256i min = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(both, 4), nibble));
            __m256i total = _mm256_setzero_si256();
            for (int half = 0; half < 2; half++) {
                __m256i q = load_256(p + 16 + 32 * half);
                __m256i mine = half == 0 ? _mm256_permute2x128_si256(scale, scale, 0x00)
                                         : _mm256_permute2x128_si256(scale, scale, 0x11);
                for (int k = 0; k < 4; k++) {
                    __m256i code = _mm256_and_si256(_mm256_srli_epi16(q, 2 * k), three);
                    __m256i s = _mm256_maddubs_epi16(code, load_256(a + 4 + 128 * half + 32 * k));
                    total = _mm256_add_epi32(total, _mm256_madd_epi16(s, two_scales(mine, 2 * k)));
                }
            }
            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total),
                                     _mm256_set1_ps(_cvtsh_ss(dot_load16(p + 80)) * da), acc[r]);
            minima[r] =
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(min, sums)),
                                _mm256_set1_ps(_cvtsh_ss(dot_load16(p + 82)) * da), minima[r]);
        }
    }
    for (int r = 0; r < rows; r++)
        sum[r] = sum_256(_mm256_sub_ps(acc[r], minima[r]));
}

void dot_q2_k_avx2(const dsv4_dot_rows *w, const void *act, float *y)
{
    stored_activations a;
    dot_walk(w, act, y, (dot_shape){256, BYTES, QK_ACT_BYTES, DOT_ROWS}, prepare_stored, rows_q2,
             &a);
}
