/* dot_iq1_s_avx2.c - IQ1_S rows . Q8_K activations. The levels are taken as 0, 1, 2; what that
 * adds, and the shift of an eighth, is a multiple of the activations' sums. */
#include "dot_k_avx2.h"

enum { BYTES = 50, ROWS = 1 };

static inline __attribute__((always_inline)) void rows_iq1(int rows, const uint8_t *w,
                                                           size_t stride, int64_t blocks,
                                                           const void *prepared, float *sum)
{
    const uint8_t *a = ((const stored_activations *)prepared)->act;
    const uint64_t *book = dsv4_cpu_grids.iq1_s;
    __m256 acc[ROWS];
    __m128 rest[ROWS];
    for (int r = 0; r < rows; r++) {
        acc[r] = _mm256_setzero_ps();
        rest[r] = _mm_setzero_ps();
    }
    for (int64_t b = 0; b < blocks; b++, w += BYTES, a += QK_ACT_BYTES) {
        __m128i sums = sums_of_32(a);
        for (int r = 0; r < rows; r++) {
            const uint8_t *p = w + (size_t)r * stride;
            __m256i total = _mm256_setzero_si256();
            for (int g = 0; g < 8; g++) {
                const uint8_t *at = p + 2 + 4 * g;
                unsigned word = dot_load16(p + 34 + 2 * g);
                __m256i level = _mm256_setr_epi64x((long long)book[at[0] | (word << 8 & 0x700)],
                                                   (long long)book[at[1] | (word << 5 & 0x700)],
                                                   (long long)book[at[2] | (word << 2 & 0x700)],
                                                   (long long)book[at[3] | (word >> 1 & 0x700)]);
                __m256i s = _mm256_maddubs_epi16(level, load_256(a + 4 + 32 * g));
                short scale = (short)((word >> 11 & 14) | 1);
                total = _mm256_add_epi32(total, _mm256_madd_epi16(s, _mm256_set1_epi16(scale)));
            }
            __m128i word = load_128(p + 34);
            __m128i scale = _mm_and_si128(_mm_srli_epi16(word, 11), _mm_set1_epi16(14));
            scale = _mm_or_si128(scale, _mm_set1_epi16(1)); /* 2 s + 1 */
            /* 8 (level - 1) + 1, or - 1 where the top bit is set */
            __m128i minus = _mm_slli_epi16(_mm_srli_epi16(word, 15), 1);
            __m128i offset = _mm_sub_epi16(_mm_set1_epi16(-7), minus);
            __m128i extra = _mm_madd_epi16(_mm_mullo_epi16(scale, offset), sums);
            float d = _cvtsh_ss(dot_load16(p)) * dot_load_float(a);
            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_set1_ps(d), acc[r]);
            rest[r] = _mm_fmadd_ps(_mm_cvtepi32_ps(extra), _mm_set1_ps(d * 0.125f), rest[r]);
        }
    }
    for (int r = 0; r < rows; r++)
        sum[r] = sum_256(acc[r]) + sum_128(rest[r]);
}

void dot_iq1_s_avx2(const dsv4_dot_rows *w, const void *act, float *y)
{
    stored_activations a;
    dot_walk(w, act, y, (dot_shape){256, BYTES, QK_ACT_BYTES, ROWS}, prepare_stored, rows_iq1, &a);
}
