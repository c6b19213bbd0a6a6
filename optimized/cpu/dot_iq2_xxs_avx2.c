/* dot_iq2_xxs_avx2.c - IQ2_XXS rows . Q8_K activations: levels from the book, 8 columns a look-up;
 * the activations take the signs. */
#include "dot_k_avx2.h"

enum { BYTES = 66, ROWS = 1 };

/* 32 activations with the signs of four stored sevens. */
static inline __m256i with_signs(__m256i q, uint32_t word)
{
    const __m256i repeat = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
                                            2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    uint32_t signs = (uint32_t)dot_even_signs(_pdep_u64(word & 0x0fffffffu, 0x7f7f7f7fu));
    __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32((int)signs), repeat);
    __m256i minus = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
    return _mm256_sub_epi8(_mm256_xor_si256(q, minus), minus);
}

static inline __attribute__((always_inline)) void rows_iq2(int rows, const uint8_t *w,
                                                           size_t stride, int64_t blocks,
                                                           const void *prepared, float *sum)
{
    const uint8_t *a = ((const stored_activations *)prepared)->act;
    const uint64_t *book = dsv4_cpu_grids.iq2_xxs;
    __m256 acc[ROWS];
    for (int r = 0; r < rows; r++)
        acc[r] = _mm256_setzero_ps();
    for (int64_t b = 0; b < blocks; b++, w += BYTES, a += QK_ACT_BYTES)
        for (int r = 0; r < rows; r++) {
            const uint8_t *p = w + (size_t)r * stride;
            __m256i total = _mm256_setzero_si256();
            for (int g = 0; g < 8; g++) {
                const uint8_t *at = p + 2 + 8 * g;
                uint32_t word = dot_load32(at + 4);
                __m256i level = _mm256_setr_epi64x((long long)book[at[0]], (long long)book[at[1]],
                                                   (long long)book[at[2]], (long long)book[at[3]]);
                __m256i s = _mm256_maddubs_epi16(level, with_signs(load_256(a + 4 + 32 * g), word));
                short scale = (short)(2 * (word >> 28) + 1);
                total = _mm256_add_epi32(total, _mm256_madd_epi16(s, _mm256_set1_epi16(scale)));
            }
            float d = _cvtsh_ss(dot_load16(p)) * 0.125f * dot_load_float(a);
            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), _mm256_set1_ps(d), acc[r]);
        }
    for (int r = 0; r < rows; r++)
        sum[r] = sum_256(acc[r]);
}

void dot_iq2_xxs_avx2(const dsv4_dot_rows *w, const void *act, float *y)
{
    stored_activations a;
    dot_walk(w, act, y, (dot_shape){256, BYTES, QK_ACT_BYTES, ROWS}, prepare_stored, rows_iq2, &a);
}
