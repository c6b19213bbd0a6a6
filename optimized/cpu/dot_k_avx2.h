/* dot_k_avx2.h - what the block kernels share on AVX2: activations as they are stored, products of
 * signed bytes, closing sums. */
#ifndef DSV4_DOT_K_AVX2_H
#define DSV4_DOT_K_AVX2_H

#include <immintrin.h>

#include "dot.h"

enum { QK_ACT_BYTES = 292, Q8_0_ACT_BYTES = 34, DOT_ROWS = 1 };

static inline __m256i load_256(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

static inline __m128i load_128(const void *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}

/* Sums of four products of signed bytes, exact for a from -128 to 127 times b from -127 to 127: the
 * sign of a moves to b. */
static inline __m256i signed_products(__m256i a, __m256i b)
{
    __m256i pairs = _mm256_maddubs_epi16(_mm256_sign_epi8(a, a), _mm256_sign_epi8(b, a));
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

static inline float sum_128(__m128 s)
{
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static inline float sum_256(__m256 v)
{
    return sum_128(_mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
}

/* The sums of 32 codes from the stored sums of 16. */
static inline __m128i sums_of_32(const uint8_t *act)
{
    __m128i one = _mm_madd_epi16(load_128(act + 260), _mm_set1_epi16(1));
    __m128i two = _mm_madd_epi16(load_128(act + 276), _mm_set1_epi16(1));
    return _mm_packs_epi32(one, two);
}

#endif
