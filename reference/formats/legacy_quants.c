/* legacy_quants.c - the 32-column quants: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
 *
 * Layouts: f16 d, f16 m for the _1 types, 32 fifth bits for the Q5 types, then codes. Nibbles hold
 * column i low and column i + 16 high. Value: d * (q - 8 or 16), or d * q + m. */
#include <float.h>
#include <math.h>

#include "blocks.h"
#include "fit.h"

enum { BLOCK = 32, HALF = 16 };

/* ---- decode ------------------------------------------------------------------------------ */

static void one_scale(dsv4_unpacked *u, float d)
{
    u->d = d;
    u->has_min = false;
    u->sub = BLOCK;
    u->scale[0] = 1;
}

static void nibbles(const uint8_t *p, int offset, int8_t *q)
{
    for (int i = 0; i < HALF; i++) {
        q[i] = (int8_t)((p[i] & 15) - offset);
        q[i + HALF] = (int8_t)((p[i] >> 4) - offset);
    }
}

static void fifth_bits(const uint8_t *p, int8_t *q)
{
    uint32_t high = dsv4_load32(p);
    for (int i = 0; i < BLOCK; i++)
        q[i] = (int8_t)(q[i] + (int)(high >> i & 1) * 16);
}

static void q4_0_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    one_scale(u, dsv4_load_f16(block));
    nibbles(block + 2, 8, u->q);
}

static void q4_1_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    one_scale(u, dsv4_load_f16(block));
    nibbles(block + 4, 0, u->q);
    u->has_min = true; /* a sum, kept as the difference with the opposite: the same rounding */
    u->dmin = -dsv4_load_f16(block + 2);
    u->min[0] = 1;
}

static void q5_0_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    one_scale(u, dsv4_load_f16(block));
    nibbles(block + 6, 16, u->q);
    fifth_bits(block + 2, u->q);
}

static void q5_1_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    one_scale(u, dsv4_load_f16(block));
    nibbles(block + 8, 0, u->q);
    fifth_bits(block + 4, u->q);
    u->has_min = true;
    u->dmin = -dsv4_load_f16(block + 2);
    u->min[0] = 1;
}

static void q8_0_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    one_scale(u, dsv4_load_f16(block));
    memcpy(u->q, block + 2, BLOCK);
}

/* Q4_1 and Q5_1 are paired with Q8_0 blocks too: the activations' sum is taken from the codes,
 * where ggml's Q8_1 stores it rounded to f16. */
DSV4_BLOCK_FUNCTIONS(q4_0, BLOCK, 18, q8_0)
DSV4_BLOCK_FUNCTIONS(q4_1, BLOCK, 20, q8_0)
DSV4_BLOCK_FUNCTIONS(q5_0, BLOCK, 22, q8_0)
DSV4_BLOCK_FUNCTIONS(q5_1, BLOCK, 24, q8_0)
DSV4_BLOCK_FUNCTIONS(q8_0, BLOCK, DSV4_Q8_0_BYTES, q8_0)

/* ---- encode ------------------------------------------------------------------------------ */

static void pack_nibbles(const uint8_t *q, uint8_t *p)
{
    for (int i = 0; i < HALF; i++)
        p[i] = (uint8_t)((q[i] & 15) | (q[i + HALF] & 15) << 4);
}

static void pack_fifth_bits(const uint8_t *q, uint8_t *p)
{
    uint32_t high = 0;
    for (int i = 0; i < BLOCK; i++)
        high |= (uint32_t)(q[i] >> 4 & 1) << i;
    memcpy(p, &high, sizeof high);
}

static float inverse_of(float d)
{
    return d != 0 ? 1.0f / d : 0.0f; /* infinite for a subnormal d: the codes are then 0 or top */
}

/* Without importance: the extreme goes to -top exactly, the rest is rounded. */
static float symmetric_plain(const float *x, int top, uint8_t *q)
{
    float amax = 0, max = 0;
    for (int i = 0; i < BLOCK; i++) {
        if (amax < fabsf(x[i])) {
            amax = fabsf(x[i]);
            max = x[i];
        }
    }
    float d = max / (float)-top, inverse = inverse_of(d);
    for (int i = 0; i < BLOCK; i++) {
        int l = dsv4_fit_byte(x[i] * inverse + ((float)top + 0.5f));
        q[i] = (uint8_t)(l < 2 * top - 1 ? l : 2 * top - 1);
    }
    return d;
}

static float affine_plain(const float *x, int top, uint8_t *q, float *minimum)
{
    float lo = FLT_MAX, hi = -FLT_MAX;
    for (int i = 0; i < BLOCK; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
    }
    float d = (hi - lo) / (float)top, inverse = inverse_of(d);
    for (int i = 0; i < BLOCK; i++) {
        int l = dsv4_fit_byte((x[i] - lo) * inverse + 0.5f);
        q[i] = (uint8_t)(l < top ? l : top);
    }
    *minimum = lo;
    return d;
}

/* One block's codes and factors; `top` is 8 or 16 for the symmetric types, 15 or 31 for the affine
 * ones. sigma2 is the mean square of the whole row. */
static float symmetric(const float *x, const float *importance, float sigma2, int top, uint8_t *q)
{
    float weight[BLOCK];
    if (!importance)
        return symmetric_plain(x, top, q);
    dsv4_fit_weights(BLOCK, x, importance, sigma2, weight);
    return dsv4_fit_signed(BLOCK, top, x, weight, q);
}

static float affine(const float *x, const float *importance, float sigma2, int top, uint8_t *q,
                    float *minimum)
{
    static const dsv4_fit_range range = {-0.9f, 0.05f, 36, false};
    float weight[BLOCK], min;
    if (!importance)
        return affine_plain(x, top, q, minimum);
    dsv4_fit_weights(BLOCK, x, importance, sigma2, weight);
    float d = dsv4_fit_affine(BLOCK, top, x, weight, &range, q, &min);
    *minimum = -min;
    return d;
}

/* `fifth`: the type has fifth bits; `has_min`: it has a minimum. */
static bool encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                   const dsv4_encoded *out, bool has_min, bool fifth)
{
    uint8_t *p = out->data;
    for (int64_t r = 0; r < rows; r++, x += cols) {
        float sigma2 = importance ? dsv4_fit_sum_squares(x, cols) / (float)cols : 0;
        for (int64_t c = 0; c < cols; c += BLOCK) {
            uint8_t q[BLOCK];
            const float *weights = importance ? importance + c : NULL;
            if (has_min) {
                float minimum;
                float d = affine(x + c, weights, sigma2, fifth ? 31 : 15, q, &minimum);
                dsv4_store_f16(p, d);
                dsv4_store_f16(p + 2, minimum);
                p += 4;
            } else {
                dsv4_store_f16(p, symmetric(x + c, weights, sigma2, fifth ? 16 : 8, q));
                p += 2;
            }
            if (fifth) {
                pack_fifth_bits(q, p);
                p += 4;
            }
            pack_nibbles(q, p);
            p += HALF;
        }
    }
    return true;
}

static bool q4_0_encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                        const dsv4_encoded *out)
{
    return encode(x, rows, cols, importance, out, false, false);
}

static bool q4_1_encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                        const dsv4_encoded *out)
{
    return encode(x, rows, cols, importance, out, true, false);
}

static bool q5_0_encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                        const dsv4_encoded *out)
{
    return encode(x, rows, cols, importance, out, false, true);
}

static bool q5_1_encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                        const dsv4_encoded *out)
{
    return encode(x, rows, cols, importance, out, true, true);
}

/* ---- Q8_0, for weights and activations --------------------------------------------------- */

void dsv4_quantize_q8_0(const float *x, int64_t n, void *out)
{
    uint8_t *p = out;
    for (int64_t i = 0; i < n; i += BLOCK, p += DSV4_Q8_0_BYTES) {
        float amax = 0;
        for (int j = 0; j < BLOCK; j++)
            amax = fmaxf(amax, fabsf(x[i + j]));
        float d = amax / 127.0f, inverse = inverse_of(d);
        dsv4_store_f16(p, d);
        for (int j = 0; j < BLOCK; j++) {
            /* Halves go away from zero; the unrounded d is what divides. */
            int8_t q = dsv4_fit_byte(roundf(x[i + j] * inverse));
            memcpy(p + 2 + j, &q, 1);
        }
    }
}

static bool q8_0_encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                        const dsv4_encoded *out)
{
    (void)importance; /* the maximum alone decides */
    dsv4_quantize_q8_0(x, rows * cols, out->data);
    return true;
}

#define LEGACY_FORMAT(T, LOWER, GGML, BYTES)                                                       \
    const dsv4_format dsv4_format_##T = {                                                          \
        .type = DSV4_##T,                                                                          \
        .name = #T,                                                                                \
        .ggml_type = GGML,                                                                         \
        .block = BLOCK,                                                                            \
        .block_bytes = BYTES,                                                                      \
        .act_type = DSV4_Q8_0,                                                                     \
        .decode = LOWER##_decode,                                                                  \
        .encode = LOWER##_encode,                                                                  \
        .dot = LOWER##_dot,                                                                        \
        .dot_act = LOWER##_dot_act,                                                                \
    }

LEGACY_FORMAT(Q4_0, q4_0, 2, 18);
LEGACY_FORMAT(Q4_1, q4_1, 3, 20);
LEGACY_FORMAT(Q5_0, q5_0, 6, 22);
LEGACY_FORMAT(Q5_1, q5_1, 7, 24);
LEGACY_FORMAT(Q8_0, q8_0, 8, DSV4_Q8_0_BYTES);
