/* k_quants_encode.c - encoders of Q2_K to Q6_K. The same search as ggml's k-quant encoders, with
 * and without importance, so bytes agree.
 *
 * All follow one plan: fit a scale (and minimum) to every group of 16 or 32 columns; quantise those
 * to a few bits against one f16 factor a block; then round the columns again, with the scales that
 * are actually stored. */
#include <math.h>

#include "blocks.h"
#include "fit.h"
#include "k_quants.h"

typedef void (*encode_block_fn)(const float *x, const float *importance, uint8_t *block);

static bool encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                   const dsv4_encoded *out, int bytes, encode_block_fn block)
{
    uint8_t *p = out->data;
    for (int64_t r = 0; r < rows; r++, x += cols) {
        for (int64_t c = 0; c < cols; c += DSV4_QK, p += bytes)
            block(x + c, importance ? importance + c : NULL, p);
    }
    return true;
}

/* ---- shared steps ------------------------------------------------------------------------ */

/* The low two bits of 256 codes: byte i of a half's 32 takes columns i, i + 32, i + 64, i + 96. */
static void pack_two_bits(const uint8_t *q, uint8_t *p)
{
    memset(p, 0, 64);
    for (int i = 0; i < DSV4_QK; i++) {
        uint8_t *byte = p + i / 128 * 32 + i % 32;
        *byte = (uint8_t)(*byte | (q[i] & 3) << 2 * (i % 128 / 32));
    }
}

static void pack_four_bits(const uint8_t *q, uint8_t *p)
{
    for (int i = 0; i < DSV4_QK; i += 64) {
        for (int j = 0; j < 32; j++)
            p[i / 2 + j] = (uint8_t)((q[i + j] & 15) | (q[i + j + 32] & 15) << 4);
    }
}

/* Bit `bit` of every code: bit k of byte i takes column 32 k + i. */
static void pack_one_bit(const uint8_t *q, int bit, uint8_t *p)
{
    memset(p, 0, 32);
    for (int i = 0; i < DSV4_QK; i++)
        p[i % 32] = (uint8_t)(p[i % 32] | (q[i] >> bit & 1) << (i / 32));
}

/* Rounds a group again with its stored scale and minimum. A zero scale leaves the first codes. */
static void requantise(const float *x, int n, float scale, float min, int lo, int hi, uint8_t *q)
{
    if (scale == 0)
        return;
    for (int i = 0; i < n; i++)
        q[i] = (uint8_t)(dsv4_clamp(dsv4_fit_nearest((x[i] + min) / scale), lo, hi) - lo);
}

static float largest(const float *v, int n)
{
    float max = 0; /* scales and minima are not negative */
    for (int i = 0; i < n; i++)
        max = v[i] > max ? v[i] : max;
    return max;
}

/* ---- Q2_K -------------------------------------------------------------------------------- */

/* Without importance the scales are spread linearly up to the largest; returns the f16 factor. */
static float spread_scales(const float *scales, uint8_t *codes)
{
    float max = largest(scales, 16);
    memset(codes, 0, 16);
    if (!(max > 0))
        return 0;
    float inverse = 15.0f / max;
    for (int j = 0; j < 16; j++)
        codes[j] = (uint8_t)dsv4_fit_nearest(inverse * scales[j]);
    return max / 15.0f;
}

static void q2_k_block(const float *x, const float *importance, uint8_t *block)
{
    static const dsv4_fit_range plain = {-0.5f, 0.1f, 15, true};
    static const dsv4_fit_range weighted = {-0.9f, 0.05f, 36, false};
    uint8_t q[DSV4_QK], scale_codes[16], min_codes[16];
    float scales[16], mins[16], sums[16], weight[16];
    float sigma2 = importance ? dsv4_fit_sum_squares(x, DSV4_QK) / DSV4_QK : 0;

    for (int j = 0; j < 16; j++) {
        const float *g = x + 16 * j;
        if (importance) {
            dsv4_fit_weights(16, g, importance + 16 * j, sigma2, weight);
        } else {
            for (int i = 0; i < 16; i++)
                weight[i] = fabsf(g[i]);
        }
        sums[j] = dsv4_fit_sum(weight, 16);
        scales[j] = dsv4_fit_affine(16, 3, g, weight, importance ? &weighted : &plain, q + 16 * j,
                                    &mins[j]);
    }
    float d, dmin;
    if (importance) {
        d = dsv4_fit_unsigned(16, 15, scales, sums, scale_codes);
        dmin = dsv4_fit_unsigned(16, 15, mins, sums, min_codes);
    } else {
        d = spread_scales(scales, scale_codes);
        dmin = spread_scales(mins, min_codes);
    }
    dsv4_store_f16(block + Q2_K_D, d);
    dsv4_store_f16(block + Q2_K_D + 2, dmin);
    d = dsv4_load_f16(block + Q2_K_D);
    dmin = dsv4_load_f16(block + Q2_K_D + 2);
    for (int j = 0; j < 16; j++) {
        block[j] = (uint8_t)(scale_codes[j] | min_codes[j] << 4);
        requantise(x + 16 * j, 16, d * (float)(block[j] & 15), dmin * (float)(block[j] >> 4), 0, 3,
                   q + 16 * j);
    }
    pack_two_bits(q, block + Q2_K_QS);
}

bool dsv4_encode_q2_k(const float *x, int64_t rows, int64_t cols, const float *importance,
                      const dsv4_encoded *out)
{
    return encode(x, rows, cols, importance, out, Q2_K_BYTES, q2_k_block);
}

/* ---- Q3_K -------------------------------------------------------------------------------- */

/* code in [0, 64): four bits in a nibble, two above. */
static void store_q3_k_scale(uint8_t *p, int j, unsigned code)
{
    uint8_t *low = p + j % 8, *high = p + 8 + j % 4;
    *low = (uint8_t)(*low | (code & 15) << (j < 8 ? 0 : 4));
    *high = (uint8_t)(*high | (code >> 4) << 2 * (j / 4));
}

static void q3_k_block(const float *x, const float *importance, uint8_t *block)
{
    uint8_t q[DSV4_QK], codes[16];
    float scales[16], sums[16], weight[16], d = 0;
    float sigma2 = importance ? 2 * dsv4_fit_sum_squares(x, DSV4_QK) / DSV4_QK : 0;

    for (int j = 0; j < 16; j++) {
        const float *g = x + 16 * j;
        if (importance) {
            dsv4_fit_weights(16, g, importance + 16 * j, sigma2, weight);
            sums[j] = dsv4_fit_sum(weight, 16);
            scales[j] = dsv4_fit_signed(16, 4, g, weight, q + 16 * j);
        } else {
            scales[j] = dsv4_fit_signed_descent(16, 4, g, q + 16 * j);
        }
    }
    memset(block + Q3_K_SCALES, 0, 12);
    if (importance) {
        d = dsv4_fit_signed(16, 32, scales, sums, codes);
        for (int j = 0; j < 16; j++)
            store_q3_k_scale(block + Q3_K_SCALES, j, codes[j]);
    } else {
        float max = 0;
        for (int j = 0; j < 16; j++)
            max = fabsf(scales[j]) > fabsf(max) ? scales[j] : max;
        if (max != 0) {
            float inverse = -32.0f / max;
            for (int j = 0; j < 16; j++) {
                /* A byte before it is clamped, as in the original: matters for garbage only. */
                int l = (int8_t)(dsv4_fit_nearest(inverse * scales[j]) & 255);
                store_q3_k_scale(block + Q3_K_SCALES, j, (unsigned)(dsv4_clamp(l, -32, 31) + 32));
            }
            d = 1 / inverse;
        }
    }
    dsv4_store_f16(block + Q3_K_D, d);
    d = dsv4_load_f16(block + Q3_K_D);
    for (int j = 0; j < 16; j++) {
        float scale = d * (float)dsv4_q3_k_scale(block + Q3_K_SCALES, j);
        requantise(x + 16 * j, 16, scale, 0, -4, 3, q + 16 * j);
    }
    pack_one_bit(q, 2, block);
    pack_two_bits(q, block + Q3_K_QS);
}

bool dsv4_encode_q3_k(const float *x, int64_t rows, int64_t cols, const float *importance,
                      const dsv4_encoded *out)
{
    return encode(x, rows, cols, importance, out, Q3_K_BYTES, q3_k_block);
}

/* ---- Q4_K and Q5_K ----------------------------------------------------------------------- */

static void store_six_bit_scales(uint8_t *p, const uint8_t *scales, const uint8_t *mins)
{
    for (int j = 0; j < 4; j++) {
        p[j] = (uint8_t)((scales[j] & 63) | (scales[j + 4] >> 4) << 6);
        p[j + 4] = (uint8_t)((mins[j] & 63) | (mins[j + 4] >> 4) << 6);
        p[j + 8] = (uint8_t)((scales[j + 4] & 15) | (mins[j + 4] & 15) << 4);
    }
}

static float spread_six_bits(const float *values, uint8_t *codes)
{
    float max = largest(values, 8), inverse = max > 0 ? 63.0f / max : 0;
    for (int j = 0; j < 8; j++) {
        uint8_t l = (uint8_t)(dsv4_fit_nearest(inverse * values[j]) & 255);
        codes[j] = l < 63 ? l : 63;
    }
    return max / 63.0f;
}

/* Everything but the packing of the codes: fills the first 16 bytes of the block and q. */
static void q45_k_codes(const float *x, const float *importance, int top,
                        const dsv4_fit_range *plain, uint8_t *block, uint8_t *q)
{
    static const dsv4_fit_range weighted = {-0.9f, 0.05f, 36, false};
    uint8_t scale_codes[8], min_codes[8];
    float scales[8], mins[8], sums[8], weight[32], d, dmin;
    float sigma2 = importance ? 2 * dsv4_fit_sum_squares(x, DSV4_QK) / DSV4_QK : 0;

    for (int j = 0; j < 8; j++) {
        const float *g = x + 32 * j;
        if (importance) {
            dsv4_fit_weights(32, g, importance + 32 * j, sigma2, weight);
        } else {
            float rms = sqrtf(dsv4_fit_sum_squares(g, 32) / 32);
            for (int i = 0; i < 32; i++)
                weight[i] = rms + fabsf(g[i]);
        }
        sums[j] = dsv4_fit_sum(weight, 32);
        scales[j] = dsv4_fit_affine(32, top, g, weight, importance ? &weighted : plain, q + 32 * j,
                                    &mins[j]);
    }
    if (importance) {
        d = dsv4_fit_unsigned(8, 63, scales, sums, scale_codes);
        dmin = dsv4_fit_unsigned(8, 63, mins, sums, min_codes);
    } else {
        d = spread_six_bits(scales, scale_codes);
        dmin = spread_six_bits(mins, min_codes);
    }
    store_six_bit_scales(block + Q4_K_SCALES, scale_codes, min_codes);
    dsv4_store_f16(block, d);
    dsv4_store_f16(block + 2, dmin);
    d = dsv4_load_f16(block);
    dmin = dsv4_load_f16(block + 2);
    for (int j = 0; j < 8; j++) {
        uint8_t scale, min;
        dsv4_six_bit_scales(block + Q4_K_SCALES, j, &scale, &min);
        requantise(x + 32 * j, 32, d * (float)scale, dmin * (float)min, 0, top, q + 32 * j);
    }
}

static void q4_k_block(const float *x, const float *importance, uint8_t *block)
{
    static const dsv4_fit_range plain = {-1.0f, 0.1f, 20, false};
    uint8_t q[DSV4_QK];
    q45_k_codes(x, importance, 15, &plain, block, q);
    pack_four_bits(q, block + Q4_K_QS);
}

static void q5_k_block(const float *x, const float *importance, uint8_t *block)
{
    static const dsv4_fit_range plain = {-0.5f, 0.1f, 15, false};
    uint8_t q[DSV4_QK];
    q45_k_codes(x, importance, 31, &plain, block, q);
    pack_one_bit(q, 4, block + Q5_K_QH);
    pack_four_bits(q, block + Q5_K_QS);
}

bool dsv4_encode_q4_k(const float *x, int64_t rows, int64_t cols, const float *importance,
                      const dsv4_encoded *out)
{
    return encode(x, rows, cols, importance, out, Q4_K_BYTES, q4_k_block);
}

bool dsv4_encode_q5_k(const float *x, int64_t rows, int64_t cols, const float *importance,
                      const dsv4_encoded *out)
{
    return encode(x, rows, cols, importance, out, Q5_K_BYTES, q5_k_block);
}

/* ---- Q6_K -------------------------------------------------------------------------------- */

static void q6_k_block(const float *x, const float *importance, uint8_t *block)
{
    uint8_t q[DSV4_QK];
    float scales[16], max = 0;

    for (int j = 0; j < 16; j++) {
        const float *weight = importance ? importance + 16 * j : NULL;
        scales[j] = dsv4_fit_signed(16, 32, x + 16 * j, weight, q + 16 * j);
        max = fabsf(scales[j]) > fabsf(max) ? scales[j] : max;
    }
    if (fabsf(max) < DSV4_FIT_TINY) {
        memset(block, 0, Q6_K_BYTES);
        return;
    }
    /* The largest scale becomes -128, so d has its sign reversed. */
    float inverse = -128.0f / max;
    dsv4_store_f16(block + Q6_K_D, 1 / inverse);
    float d = dsv4_load_f16(block + Q6_K_D);
    for (int j = 0; j < 16; j++) {
        int l = dsv4_fit_nearest(inverse * scales[j]);
        int8_t code = (int8_t)((l < 127 ? l : 127) & 255);
        memcpy(block + Q6_K_SCALES + j, &code, 1);
        requantise(x + 16 * j, 16, d * (float)code, 0, -32, 31, q + 16 * j);
    }
    for (int i = 0; i < DSV4_QK; i += 128) {
        for (int j = 0; j < 64; j++)
            block[i / 2 + j] = (uint8_t)((q[i + j] & 15) | (q[i + j + 64] & 15) << 4);
    }
    for (int i = 0; i < DSV4_QK; i++)
        q[i] >>= 4;
    pack_two_bits(q, block + Q6_K_QH);
}

bool dsv4_encode_q6_k(const float *x, int64_t rows, int64_t cols, const float *importance,
                      const dsv4_encoded *out)
{
    return encode(x, rows, cols, importance, out, Q6_K_BYTES, q6_k_block);
}
