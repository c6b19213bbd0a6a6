/* decode.cuh - the value of a stored weight, bit for bit the reference's: for the device, and for
 * the host where a test compares the two. */
#ifndef DSV4_CUDA_DECODE_CUH
#define DSV4_CUDA_DECODE_CUH

#include <string.h>

#include "kernels.h"
#include "reference/dsv4.h"

#ifdef __CUDACC__
#define CU_BOTH static __host__ __device__ __forceinline__
#else
#define CU_BOTH static inline
#endif

CU_BOTH float cu_float_of(uint32_t bits)
{
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
#endif
}

CU_BOTH uint32_t cu_bits_of(float f)
{
#ifdef __CUDA_ARCH__
    return __float_as_uint(f);
#else
    uint32_t b;
    memcpy(&b, &f, sizeof b);
    return b;
#endif
}

CU_BOTH uint32_t cu_load16(const uint8_t *p) /* at an even address */
{
    return *(const uint16_t *)(const void *)p;
}

CU_BOTH float cu_f16(uint32_t h)
{
    uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;
    if (exponent == 31)
        return cu_float_of(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0)
        return cu_float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
    float v = (float)mantissa * 5.9604644775390625e-8f; /* 2^-24 */
    return sign ? -v : v;
}

CU_BOTH float cu_bf16(uint32_t h)
{
    return cu_float_of(h << 16);
}

CU_BOTH uint32_t cu_to_bf16(float f)
{
    uint32_t b = cu_bits_of(f);
    if ((b & 0x7fffffffu) > 0x7f800000u)
        return (b >> 16) | 0x40u;
    return (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
}

CU_BOTH float cu_round_to_bf16(float f)
{
    return cu_bf16(cu_to_bf16(f));
}

CU_BOTH float cu_e8m0(uint32_t code)
{
    return cu_float_of(code == 255 ? 0x7fc00000u : code ? code << 23 : 0x00400000u);
}

CU_BOTH float cu_e4m3(uint32_t code)
{
    uint32_t sign = (code & 0x80u) << 24, magnitude = code & 0x7fu;
    if (magnitude < 8) {
        float f = (float)magnitude * 0.001953125f; /* 2^-9 */
        return sign ? -f : f;
    }
    if (magnitude == 0x7f)
        return cu_float_of(sign | 0x7fc00000u);
    return cu_float_of(sign | ((magnitude << 20) + (120u << 23)));
}

CU_BOTH uint32_t cu_to_e4m3(float f)
{
    uint32_t b = cu_bits_of(f), sign = (b >> 24) & 0x80u, a = b & 0x7fffffffu;
    if (a > 0x7f800000u)
        return sign | 0x7fu;
    if (a >= 0x43e00000u)
        return sign | 0x7eu;
    if (a < 0x3c800000u) /* adding 2^14 rounds to steps of 2^-9 */
        return sign | (cu_bits_of(cu_float_of(a) + 16384.0f) - 0x46800000u);
    a += 0x7ffffu + ((a >> 20) & 1u);
    return sign | ((a >> 20) - (120u << 3));
}

/* Values doubled are small integers: 0 1 2 3 4 6 8 12, a nibble each. */
CU_BOTH float cu_e2m1(uint32_t code)
{
    float f = 0.5f * (float)((0xc8643210u >> 4 * (code & 7u)) & 15u);
    return code & 8u ? -f : f;
}

CU_BOTH uint32_t cu_to_e2m1(float f)
{
    uint32_t b = cu_bits_of(f), sign = (b >> 28) & 8u, code;
    float a = cu_float_of(b & 0x7fffffffu);
    if (a <= 0.25f)
        code = 0;
    else if (a < 0.75f)
        code = 1;
    else if (a <= 1.25f)
        code = 2;
    else if (a < 1.75f)
        code = 3;
    else if (a <= 2.5f)
        code = 4;
    else if (a < 3.5f)
        code = 5;
    else if (a <= 5.0f)
        code = 6;
    else
        code = 7;
    return sign | code;
}

/* 2^ceil(log2(v)), v positive and normal; what is not finite stays. */
CU_BOTH float cu_next_power(float v)
{
    uint32_t b = cu_bits_of(v);
    if ((b & 0x7f800000u) == 0x7f800000u)
        return v;
    uint32_t up = b & 0x007fffffu ? 0x00800000u : 0;
    return cu_float_of((b & 0x7f800000u) + up);
}

/* Scale and minimum j of a Q4_K block. */
CU_BOTH void cu_six_bits(const uint8_t *p, int j, uint32_t *scale, uint32_t *min)
{
    if (j < 4) {
        *scale = p[j] & 63u;
        *min = p[j + 4] & 63u;
    } else {
        *scale = (p[j + 4] & 15u) | (uint32_t)(p[j - 4] >> 6) << 4;
        *min = (uint32_t)(p[j + 4] >> 4) | (uint32_t)(p[j] >> 6) << 4;
    }
}

/* Element (row, col) of a view. iq2: the book of IQ2_XXS. Multiplications and subtractions round
 * one by one: these files are built without contraction. */
CU_BOTH float cu_value(const cu_tensor *t, int64_t row, int64_t col, const uint64_t *iq2)
{
    const uint8_t *p = t->data + (size_t)row * t->row_bytes;
    switch (t->type) {
    case DSV4_F32:
        return *(const float *)(const void *)(p + 4 * col);
    case DSV4_F16:
        return cu_f16(cu_load16(p + 2 * col));
    case DSV4_BF16:
        return cu_bf16(cu_load16(p + 2 * col));
    case DSV4_FP8: {
        const uint8_t *s =
            t->scale + (size_t)((t->row0 + row) / t->scale_rows) * t->scale_row_bytes;
        return cu_e4m3(p[col]) * cu_e8m0(s[col / t->scale_cols]);
    }
    case DSV4_FP4: {
        const uint8_t *s =
            t->scale + (size_t)((t->row0 + row) / t->scale_rows) * t->scale_row_bytes;
        return cu_e2m1(p[col / 2] >> 4 * (col & 1) & 15u) * cu_e8m0(s[col / t->scale_cols]);
    }
    case DSV4_MXFP4: {
        const uint8_t *b = p + col / 32 * 17;
        int i = (int)(col % 32);
        uint32_t code = b[1 + i % 16] >> 4 * (i / 16) & 15u, c = b[0];
        /* 2^(c - 128), subnormal at the low end; a zero has no sign here */
        float half = cu_float_of(c >= 2 ? (c - 1) << 23 : c == 1 ? 0x00400000u : 0x00200000u);
        float v = (float)((0xc8643210u >> 4 * (code & 7u)) & 15u);
        return half * (code & 8u && v > 0 ? -v : v);
    }
    case DSV4_Q8_0: {
        const uint8_t *b = p + col / 32 * 34;
        return cu_f16(cu_load16(b)) * (float)(int8_t)b[2 + col % 32];
    }
    case DSV4_Q4_K: {
        const uint8_t *b = p + col / 256 * 144;
        int i = (int)(col % 256);
        uint32_t scale, min, q = b[16 + i / 64 * 32 + i % 32] >> 4 * (i % 64 / 32) & 15u;
        cu_six_bits(b + 4, i / 32, &scale, &min);
        float d = cu_f16(cu_load16(b)) * (float)scale, m = cu_f16(cu_load16(b + 2)) * (float)min;
        return d * (float)q - m;
    }
    case DSV4_Q2_K: {
        const uint8_t *b = p + col / 256 * 84;
        int i = (int)(col % 256);
        uint32_t q = b[16 + i / 128 * 32 + i % 32] >> 2 * (i % 128 / 32) & 3u, s = b[i / 16];
        float d = cu_f16(cu_load16(b + 80)) * (float)(s & 15u);
        float m = cu_f16(cu_load16(b + 82)) * (float)(s >> 4);
        return d * (float)q - m;
    }
    case DSV4_IQ2_XXS: {
        const uint8_t *b = p + col / 256 * 66, *g;
        int i = (int)(col % 256);
        g = b + 2 + i / 32 * 8;
        uint32_t word = cu_load16(g + 4) | cu_load16(g + 6) << 16;
        uint32_t seven = word >> 7 * (i % 32 / 8) & 127u, parity = seven ^ (seven >> 4);
        parity ^= parity >> 2;
        parity ^= parity >> 1;
        uint32_t signs = seven | (parity & 1u) << 7;
        float v = (float)(uint32_t)(iq2[g[i % 32 / 8]] >> 8 * (i % 8) & 255u);
        float d = cu_f16(cu_load16(b)) * 0.125f * (float)(2 * (word >> 28) + 1);
        return d * (signs >> (i % 8) & 1u ? -v : v);
    }
    default:
        return cu_float_of(0x7fc00000u);
    }
}

#endif
