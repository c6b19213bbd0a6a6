/* dot_q4_k_avx512.c - Q4_K rows . Q8_K activations with VNNI. */
#include "dot_k_avx512.h"

enum { BYTES = 144 };

/* 64 code bytes hold columns 0-31 and 64-95 in their low nibbles, 32-63 and 96-127 in the high. */
static const int order[4][2] = {{0, 2}, {1, 3}, {4, 6}, {5, 7}};

static inline __attribute__((always_inline)) void prepare(const uint8_t *act, int64_t blocks,
                                                          void *out)
{
    prepare_runs(act, blocks, out, order);
}

static inline __attribute__((always_inline)) void
rows_q4(int rows, const uint8_t *w, size_t stride, int64_t blocks, const void *act, float *sum)
{
    const prepared_qk *a = act;
    const __m512i nibble = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
    const __m512i index01 = lane_indices(0, 1, 2, 3), index23 = lane_indices(4, 5, 6, 7);
    __m512 acc[QK_ROWS];
    __m128 minima[QK_ROWS];
    for (int r = 0; r < rows; r++) {
        acc[r] = _mm512_setzero_ps();
        minima[r] = _mm_setzero_ps();
    }
    for (int64_t b = 0; b < blocks; b++, w += BYTES, a++)
        for (int r = 0; r < rows; r++) {
            const uint8_t *p = w + (size_t)r * stride;
            uint32_t word[4];
            dot_q4_k_scales(p, word);
            __m128i six = _mm_loadu_si128((const __m128i *)(const void *)word);
            __m512i scale = _mm512_castsi256_si512(_mm256_cvtepu8_epi16(six));
            __m128i min = _mm_unpackhi_epi8(six, _mm_setzero_si128());
            __m512i one = _mm512_loadu_si512(p + 16), two = _mm512_loadu_si512(p + 80);
            __m512i s[4] = {
                _mm512_dpbusd_epi32(zero, _mm512_and_si512(one, nibble), a->q[0]),
                _mm512_dpbusd_epi32(zero, _mm512_and_si512(_mm512_srli_epi16(one, 4), nibble),
                                    a->q[1]),
                _mm512_dpbusd_epi32(zero, _mm512_and_si512(two, nibble), a->q[2]),
                _mm512_dpbusd_epi32(zero, _mm512_and_si512(_mm512_srli_epi16(two, 4), nibble),
                                    a->q[3])};
            __m512i total = scaled_sums(s, _mm512_permutexvar_epi16(index01, scale),
                                        _mm512_permutexvar_epi16(index23, scale));
            /* d and dmin, times the activations' d */
            __m128 d =
                _mm_mul_ps(_mm_cvtph_ps(_mm_cvtsi32_si128((int)dot_load32(p))), _mm_set1_ps(a->d));
            acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), _mm512_broadcastss_ps(d), acc[r]);
            __m128 m = _mm_cvtepi32_ps(_mm_madd_epi16(min, a->sums32));
            minima[r] = _mm_fmadd_ps(m, _mm_movehdup_ps(_mm_movelh_ps(d, d)), minima[r]);
        }
    for (int r = 0; r < rows; r++)
        sum[r] = _mm512_reduce_add_ps(acc[r]) - sum_128(minima[r]);
}

void dot_q4_k_avx512(const dsv4_dot_rows *w, const void *act, float *y)
{
    prepared_qk a[QK_BLOCKS];
    dot_walk(w, act, y, (dot_shape){256, BYTES, QK_ACT_BYTES, QK_ROWS}, prepare, rows_q4, a);
}
