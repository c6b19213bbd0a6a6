/* k_quants.c - the 256-column K quants: Q2_K to Q6_K, and Q8_K, the activation block that goes with
 * them and with the i-quants. Encoders: k_quants_encode.c. */
#include "k_quants.h"

#include <math.h>

#include "blocks.h"
#include "fit.h"

/* ---- decode ------------------------------------------------------------------------------ */

/* Two bits a column: byte i of a half's 32 holds columns i, i + 32, i + 64 and i + 96. */
static void two_bits(const uint8_t *p, int8_t *q)
{
    for (int i = 0; i < DSV4_QK; i++)
        q[i] = (int8_t)(p[i / 128 * 32 + i % 32] >> 2 * (i % 128 / 32) & 3);
}

/* Four bits a column: byte i of a quarter's 32 holds columns i and i + 32. */
static void four_bits(const uint8_t *p, int8_t *q)
{
    for (int i = 0; i < DSV4_QK; i++)
        q[i] = (int8_t)(p[i / 64 * 32 + i % 32] >> 4 * (i % 64 / 32) & 15);
}

/* One bit a column: bit k of byte i belongs to column 32 k + i. */
static int one_bit(const uint8_t *p, int i)
{
    return p[i % 32] >> (i / 32) & 1;
}

void dsv4_six_bit_scales(const uint8_t *p, int j, uint8_t *scale, uint8_t *min)
{
    /* The last four of each have their low nibbles together and their top bits above the first
     * four's six. */
    if (j < 4) {
        *scale = p[j] & 63;
        *min = p[j + 4] & 63;
    } else {
        *scale = (uint8_t)((p[j + 4] & 15) | (p[j - 4] >> 6) << 4);
        *min = (uint8_t)((p[j + 4] >> 4) | (p[j] >> 6) << 4);
    }
}

int dsv4_q3_k_scale(const uint8_t *p, int j)
{
    int low = j < 8 ? p[j] & 15 : p[j - 8] >> 4;
    return (low | (p[8 + j % 4] >> 2 * (j / 4) & 3) << 4) - 32;
}

static void q2_k_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    u->d = dsv4_load_f16(block + Q2_K_D);
    u->dmin = dsv4_load_f16(block + Q2_K_D + 2);
    u->has_min = true;
    u->sub = 16;
    for (int j = 0; j < 16; j++) {
        u->scale[j] = block[j] & 15;
        u->min[j] = block[j] >> 4;
    }
    two_bits(block + Q2_K_QS, u->q);
}

static void q3_k_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    u->d = dsv4_load_f16(block + Q3_K_D);
    u->has_min = false;
    u->sub = 16;
    for (int j = 0; j < 16; j++)
        u->scale[j] = (int16_t)dsv4_q3_k_scale(block + Q3_K_SCALES, j);
    two_bits(block + Q3_K_QS, u->q);
    for (int i = 0; i < DSV4_QK; i++)
        u->q[i] = (int8_t)(u->q[i] + 4 * one_bit(block, i) - 4);
}

static void q4_k_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    u->d = dsv4_load_f16(block);
    u->dmin = dsv4_load_f16(block + 2);
    u->has_min = true;
    u->sub = 32;
    for (int j = 0; j < 8; j++) {
        uint8_t scale;
        dsv4_six_bit_scales(block + Q4_K_SCALES, j, &scale, &u->min[j]);
        u->scale[j] = scale;
    }
    four_bits(block + Q4_K_QS, u->q);
}

static void q5_k_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    q4_k_unpack(block, u); /* the same head; the fifth bits lie between it and the codes */
    four_bits(block + Q5_K_QS, u->q);
    for (int i = 0; i < DSV4_QK; i++)
        u->q[i] = (int8_t)(u->q[i] + 16 * one_bit(block + Q5_K_QH, i));
}

/* Four low bits in halves of 128 columns (byte i of 64: columns i and i + 64), two high bits as in
 * Q2_K. */
static void q6_k_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    int8_t scale[16];
    u->d = dsv4_load_f16(block + Q6_K_D);
    u->has_min = false;
    u->sub = 16;
    memcpy(scale, block + Q6_K_SCALES, sizeof scale);
    for (int j = 0; j < 16; j++)
        u->scale[j] = scale[j];
    two_bits(block + Q6_K_QH, u->q);
    for (int i = 0; i < DSV4_QK; i++) {
        int low = block[i / 128 * 64 + i % 64] >> 4 * (i % 128 / 64) & 15;
        u->q[i] = (int8_t)((low | u->q[i] << 4) - 32);
    }
}

/* f32 d, codes, sums (which decoding does not need). */
static void q8_k_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    memcpy(&u->d, block, sizeof u->d);
    u->has_min = false;
    u->sub = 32;
    for (int j = 0; j < 8; j++)
        u->scale[j] = 1;
    memcpy(u->q, block + 4, DSV4_QK);
}

DSV4_BLOCK_FUNCTIONS(q2_k, DSV4_QK, Q2_K_BYTES, q8_k)
DSV4_BLOCK_FUNCTIONS(q3_k, DSV4_QK, Q3_K_BYTES, q8_k)
DSV4_BLOCK_FUNCTIONS(q4_k, DSV4_QK, Q4_K_BYTES, q8_k)
DSV4_BLOCK_FUNCTIONS(q5_k, DSV4_QK, Q5_K_BYTES, q8_k)
DSV4_BLOCK_FUNCTIONS(q6_k, DSV4_QK, Q6_K_BYTES, q8_k)
DSV4_BLOCK_FUNCTIONS(q8_k, DSV4_QK, DSV4_Q8_K_BYTES, q8_k)

/* ---- activations ------------------------------------------------------------------------- */

void dsv4_quantize_q8_k(const float *x, int64_t n, void *out)
{
    uint8_t *p = out;
    for (int64_t i = 0; i < n; i += DSV4_QK, p += DSV4_Q8_K_BYTES) {
        float amax = 0, max = 0;
        for (int j = 0; j < DSV4_QK; j++) {
            float a = fabsf(x[i + j]);
            if (a > amax) {
                amax = a;
                max = x[i + j];
            }
        }
        if (amax == 0) {
            /* The sums too: a dot product with minima multiplies them, whatever d is. */
            memset(p, 0, DSV4_Q8_K_BYTES);
            continue;
        }
        /* The extreme becomes -127, so d has the opposite sign. Ties go to even. */
        float inverse = -127.0f / max, d = 1 / inverse;
        memcpy(p, &d, sizeof d);
        int16_t sums[16] = {0};
        for (int j = 0; j < DSV4_QK; j++) {
            int l = dsv4_fit_nearest(inverse * x[i + j]);
            int8_t q = (int8_t)dsv4_clamp(l, -128, 127);
            memcpy(p + 4 + j, &q, 1);
            sums[j / 16] = (int16_t)(sums[j / 16] + q);
        }
        memcpy(p + DSV4_Q8_K_SUMS, sums, sizeof sums);
    }
}

static bool q8_k_encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                        const dsv4_encoded *out)
{
    (void)importance;
    dsv4_quantize_q8_k(x, rows * cols, out->data);
    return true;
}

#define K_FORMAT(T, LOWER, GGML, BYTES, ENCODE)                                                    \
    const dsv4_format dsv4_format_##T = {                                                          \
        .type = DSV4_##T,                                                                          \
        .name = #T,                                                                                \
        .ggml_type = GGML,                                                                         \
        .block = DSV4_QK,                                                                          \
        .block_bytes = BYTES,                                                                      \
        .act_type = DSV4_Q8_K,                                                                     \
        .decode = LOWER##_decode,                                                                  \
        .encode = ENCODE,                                                                          \
        .dot = LOWER##_dot,                                                                        \
        .dot_act = LOWER##_dot_act,                                                                \
    }

K_FORMAT(Q2_K, q2_k, 10, Q2_K_BYTES, dsv4_encode_q2_k);
K_FORMAT(Q3_K, q3_k, 11, Q3_K_BYTES, dsv4_encode_q3_k);
K_FORMAT(Q4_K, q4_k, 12, Q4_K_BYTES, dsv4_encode_q4_k);
K_FORMAT(Q5_K, q5_k, 13, Q5_K_BYTES, dsv4_encode_q5_k);
K_FORMAT(Q6_K, q6_k, 14, Q6_K_BYTES, dsv4_encode_q6_k);
K_FORMAT(Q8_K, q8_k, 15, DSV4_Q8_K_BYTES, q8_k_encode);
