/* dot_blocks_neon.c - rows of the block formats . rounded activations on AArch64 NEON: products of
 * signed bytes into 16 bits, pairs of them into 32. */
#include <arm_neon.h>

#include "dot.h"

enum { QK_ACT_BYTES = 292, Q8_0_BYTES = 34 };

/* acc + sums of four products. */
static inline int32x4_t dot_16(int32x4_t acc, int8x16_t a, int8x16_t b)
{
    acc = vpadalq_s16(acc, vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    return vpadalq_s16(acc, vmull_high_s8(a, b));
}

static inline int8x16_t load_q(const uint8_t *p)
{
    return vreinterpretq_s8_u8(vld1q_u8(p));
}

static inline float load_f16(const uint8_t *p)
{
    return dsv4_f16_to_f32(dot_load16(p));
}

static inline int load_sum(const uint8_t *act, int group)
{
    return (int16_t)dot_load16(act + 260 + 2 * group);
}

/* ---- 32 columns ----------------------------------------------------------------------------- */

static inline __attribute__((always_inline)) void rows_q8_0(int rows, const uint8_t *w,
                                                            size_t stride, int64_t blocks,
                                                            const void *prepared, float *sum)
{
    const uint8_t *a = ((const stored_activations *)prepared)->act;
    float32x4_t acc = vdupq_n_f32(0);
    (void)rows;
    (void)stride;
    for (int64_t b = 0; b < blocks; b++, w += Q8_0_BYTES, a += Q8_0_BYTES) {
        int32x4_t s = dot_16(vdupq_n_s32(0), load_q(w + 2), load_q(a + 2));
        s = dot_16(s, load_q(w + 18), load_q(a + 18));
        acc = vfmaq_n_f32(acc, vcvtq_f32_s32(s), load_f16(w) * load_f16(a));
    }
    *sum = vaddvq_f32(acc);
}

void dot_q8_0_neon(const dsv4_dot_rows *w, const void *act, float *y)
{
    stored_activations a;
    dot_walk(w, act, y, (dot_shape){32, Q8_0_BYTES, Q8_0_BYTES, 1}, prepare_stored, rows_q8_0, &a);
}

static inline __attribute__((always_inline)) void rows_mxfp4(int rows, const uint8_t *w,
                                                             size_t stride, int64_t blocks,
                                                             const void *prepared, float *sum)
{
    static const int8_t values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const uint8_t *a = ((const stored_activations *)prepared)->act;
    const int8x16_t table = vld1q_s8(values);
    float32x4_t acc = vdupq_n_f32(0);
    (void)rows;
    (void)stride;
    for (int64_t b = 0; b < blocks; b++, w += 17, a += Q8_0_BYTES) {
        uint8x16_t codes = vld1q_u8(w + 1);
        int8x16_t low = vqtbl1q_s8(table, vandq_u8(codes, vdupq_n_u8(15)));
        int8x16_t high = vqtbl1q_s8(table, vshrq_n_u8(codes, 4));
        int32x4_t s = dot_16(vdupq_n_s32(0), low, load_q(a + 2));
        s = dot_16(s, high, load_q(a + 18));
        acc = vfmaq_n_f32(acc, vcvtq_f32_s32(s), dsv4_cpu_grids.mxfp4_scale[*w] * load_f16(a));
    }
    *sum = vaddvq_f32(acc);
}

void dot_mxfp4_neon(const dsv4_dot_rows *w, const void *act, float *y)
{
    stored_activations a;
    dot_walk(w, act, y, (dot_shape){32, 17, Q8_0_BYTES, 1}, prepare_stored, rows_mxfp4, &a);
}

/* ---- K quants ------------------------------------------------------------------------------- */

static inline __attribute__((always_inline)) void rows_q4_k(int rows, const uint8_t *w,
                                                            size_t stride, int64_t blocks,
                                                            const void *prepared, float *sum)
{
    const uint8_t *a = ((const stored_activations *)prepared)->act;
    const uint8x16_t nibble = vdupq_n_u8(15);
    float32x4_t acc = vdupq_n_f32(0);
    float minima = 0;
    (void)rows;
    (void)stride;
    for (int64_t b = 0; b < blocks; b++, w += 144, a += QK_ACT_BYTES) {
        uint32_t word[4];
        uint8_t six[16];
        int32x4_t total = vdupq_n_s32(0);
        int taken = 0;
        dot_q4_k_scales(w, word);
        memcpy(six, word, sizeof six);
        for (int k = 0; k < 4; k++) {
            const uint8_t *q = a + 4 + 64 * k;
            uint8x16_t one = vld1q_u8(w + 16 + 32 * k), two = vld1q_u8(w + 32 + 32 * k);
            int32x4_t low = vdupq_n_s32(0), high = low;
            low = dot_16(low, vreinterpretq_s8_u8(vandq_u8(one, nibble)), load_q(q));
            low = dot_16(low, vreinterpretq_s8_u8(vandq_u8(two, nibble)), load_q(q + 16));
            high = dot_16(high, vreinterpretq_s8_u8(vshrq_n_u8(one, 4)), load_q(q + 32));
            high = dot_16(high, vreinterpretq_s8_u8(vshrq_n_u8(two, 4)), load_q(q + 48));
            total = vmlaq_n_s32(total, low, six[2 * k]);
            total = vmlaq_n_s32(total, high, six[2 * k + 1]);
        }
        for (int g = 0; g < 8; g++)
            taken += six[8 + g] * (load_sum(a, 2 * g) + load_sum(a, 2 * g + 1));
        float d = dot_load_float(a);
        acc = vfmaq_n_f32(acc, vcvtq_f32_s32(total), load_f16(w) * d);
        minima += load_f16(w + 2) * d * (float)taken;
    }
    *sum = vaddvq_f32(acc) - minima;
}

void dot_q4_k_neon(const dsv4_dot_rows *w, const void *act, float *y)
{
    stored_activations a;
    dot_walk(w, act, y, (dot_shape){256, 144, QK_ACT_BYTES, 1}, prepare_stored, rows_q4_k, &a);
}

static inline __attribute__((always_inline)) void rows_q2_k(int rows, const uint8_t *w,
                                                            size_t stride, int64_t blocks,
                                                            const void *prepared, float *sum)
{
    const uint8_t *a = ((const stored_activations *)prepared)->act;
    float32x4_t acc = vdupq_n_f32(0);
    float minima = 0;
    (void)rows;
    (void)stride;
    for (int64_t b = 0; b < blocks; b++, w += 84, a += QK_ACT_BYTES) {
        int32x4_t total = vdupq_n_s32(0);
        int taken = 0;
        for (int g = 0; g < 16; g++) { /* 16 columns: half a shift of half the bytes */
            uint8x16_t codes = vld1q_u8(w + 16 + g / 8 * 32 + g % 2 * 16);
            uint8x16_t two = vshlq_u8(codes, vdupq_n_s8((int8_t)(-2 * (g % 8 / 2))));
            int8x16_t q = vreinterpretq_s8_u8(vandq_u8(two, vdupq_n_u8(3)));
            int32x4_t s = dot_16(vdupq_n_s32(0), q, load_q(a + 4 + 16 * g));
            total = vmlaq_n_s32(total, s, w[g] & 15);
            taken += (w[g] >> 4) * load_sum(a, g);
        }
        float d = dot_load_float(a);
        acc = vfmaq_n_f32(acc, vcvtq_f32_s32(total), load_f16(w + 80) * d);
        minima += load_f16(w + 82) * d * (float)taken;
    }
    *sum = vaddvq_f32(acc) - minima;
}

void dot_q2_k_neon(const dsv4_dot_rows *w, const void *act, float *y)
{
    stored_activations a;
    dot_walk(w, act, y, (dot_shape){256, 84, QK_ACT_BYTES, 1}, prepare_stored, rows_q2_k, &a);
}

/* ---- i-quants ------------------------------------------------------------------------------- */

/* 16 levels from two entries of a book. */
static inline int8x16_t levels_16(uint64_t one, uint64_t two)
{
    return vcombine_s8(vcreate_s8(one), vcreate_s8(two));
}

static inline __attribute__((always_inline)) void rows_iq2_xxs(int rows, const uint8_t *w,
                                                               size_t stride, int64_t blocks,
                                                               const void *prepared, float *sum)
{
    const uint8_t *a = ((const stored_activations *)prepared)->act;
    const dsv4_grids *grids = &dsv4_cpu_grids;
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    float32x4_t acc = vdupq_n_f32(0);
    (void)rows;
    (void)stride;
    for (int64_t b = 0; b < blocks; b++, w += 66, a += QK_ACT_BYTES) {
        int32x4_t total = vdupq_n_s32(0);
        for (int g = 0; g < 8; g++) {
            const uint8_t *at = w + 2 + 8 * g;
            uint32_t word = dot_load32(at + 4);
            int32x4_t s = vdupq_n_s32(0);
            for (int k = 0; k < 4; k += 2) {
                int8x16_t q = levels_16(grids->iq2_xxs[at[k]], grids->iq2_xxs[at[k + 1]]);
                uint8x16_t signs =
                    vcombine_u8(vdup_n_u8(grids->even_signs[word >> 7 * k & 127]),
                                vdup_n_u8(grids->even_signs[word >> (7 * k + 7) & 127]));
                int8x16_t minus = vreinterpretq_s8_u8(vtstq_u8(signs, bit));
                q = vsubq_s8(veorq_s8(q, minus), minus);
                s = dot_16(s, q, load_q(a + 4 + 32 * g + 8 * k));
            }
            total = vmlaq_n_s32(total, s, (int32_t)(2 * (word >> 28) + 1));
        }
        float d = load_f16(w) * 0.125f * dot_load_float(a);
        acc = vfmaq_n_f32(acc, vcvtq_f32_s32(total), d);
    }
    *sum = vaddvq_f32(acc);
}

void dot_iq2_xxs_neon(const dsv4_dot_rows *w, const void *act, float *y)
{
    stored_activations a;
    dot_walk(w, act, y, (dot_shape){256, 66, QK_ACT_BYTES, 1}, prepare_stored, rows_iq2_xxs, &a);
}

static inline __attribute__((always_inline)) void rows_iq1_s(int rows, const uint8_t *w,
                                                             size_t stride, int64_t blocks,
                                                             const void *prepared, float *sum)
{
    const uint8_t *a = ((const stored_activations *)prepared)->act;
    const uint64_t *book = dsv4_cpu_grids.iq1_s;
    float32x4_t acc = vdupq_n_f32(0);
    (void)rows;
    (void)stride;
    for (int64_t b = 0; b < blocks; b++, w += 50, a += QK_ACT_BYTES) {
        int32x4_t total = vdupq_n_s32(0);
        for (int g = 0; g < 8; g++) {
            const uint8_t *at = w + 2 + 4 * g;
            unsigned word = dot_load16(w + 34 + 2 * g);
            /* 8 (level - 1) + 1, or - 1 where the top bit is set */
            int8x16_t offset = vdupq_n_s8(word & 0x8000 ? -9 : -7);
            int32x4_t s = vdupq_n_s32(0);
            for (int k = 0; k < 4; k += 2) {
                int8x16_t level = levels_16(book[at[k] | (word >> 3 * k & 7) << 8],
                                            book[at[k + 1] | (word >> (3 * k + 3) & 7) << 8]);
                int8x16_t q = vaddq_s8(vshlq_n_s8(level, 3), offset);
                s = dot_16(s, q, load_q(a + 4 + 32 * g + 8 * k));
            }
            total = vmlaq_n_s32(total, s, (int32_t)(2 * (word >> 12 & 7) + 1));
        }
        float d = load_f16(w) * 0.125f * dot_load_float(a);
        acc = vfmaq_n_f32(acc, vcvtq_f32_s32(total), d);
    }
    *sum = vaddvq_f32(acc);
}

void dot_iq1_s_neon(const dsv4_dot_rows *w, const void *act, float *y)
{
    stored_activations a;
    dot_walk(w, act, y, (dot_shape){256, 50, QK_ACT_BYTES, 1}, prepare_stored, rows_iq1_s, &a);
}
