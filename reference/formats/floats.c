/* floats.c - F32, F16, BF16 and the integer types: conversions, decode, encode, dot. */
#include "blocks.h"

static uint32_t bits_of(float f)
{
    uint32_t b;
    memcpy(&b, &f, sizeof b);
    return b;
}

static float of_bits(uint32_t b)
{
    float f;
    memcpy(&f, &b, sizeof f);
    return f;
}

/* ---- conversions ------------------------------------------------------------------------- */

float dsv4_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;

    if (exponent == 31) /* infinity and NaN keep their payload */
        return of_bits(sign | 0x7f800000u | (mantissa << 13));
    if (exponent)
        return of_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
    /* Subnormal halves are multiples of 2^-24, normal in float32. */
    float v = (float)mantissa * 0x1p-24f;
    return sign ? -v : v;
}

/* Shifts right by 1..31, rounding to nearest, ties to even. */
static uint32_t shift_even(uint32_t v, unsigned shift)
{
    uint32_t half = 1u << (shift - 1), rest = v & ((1u << shift) - 1), kept = v >> shift;
    return kept + (rest > half || (rest == half && (kept & 1)));
}

uint16_t dsv4_f32_to_f16(float f)
{
    uint32_t b = bits_of(f), sign = (b >> 16) & 0x8000u, a = b & 0x7fffffffu;

    if (a > 0x7f800000u) /* NaN: quiet, the top of its payload kept */
        return (uint16_t)(sign | 0x7e00u | ((a >> 13) & 0x1ffu));
    if (a >= 0x47800000u) /* 65536 and above; what rounds up to it is caught by the carry below */
        return (uint16_t)(sign | 0x7c00u);
    if (a >= 0x38800000u) /* 2^-14: normal. The carry of the rounding may raise the exponent. */
        return (uint16_t)(sign | (shift_even(a, 13) - (112u << 10)));
    if (a < 0x33000000u) /* below 2^-25 nothing is left; 2^-25 itself ties to zero below */
        return (uint16_t)sign;
    unsigned exponent = a >> 23; /* 102..112 */
    uint32_t mantissa = (a & 0x7fffffu) | 0x800000u;
    return (uint16_t)(sign | shift_even(mantissa, 126 - exponent));
}

float dsv4_bf16_to_f32(uint16_t h)
{
    return of_bits((uint32_t)h << 16);
}

uint16_t dsv4_f32_to_bf16(float f)
{
    uint32_t b = bits_of(f);

    if ((b & 0x7fffffffu) > 0x7f800000u) /* rounding could turn a NaN into infinity */
        return (uint16_t)((b >> 16) | 0x40u);
    /* Plain carry arithmetic: 0x7fff and the last kept bit; overflow gives infinity. */
    return (uint16_t)((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}

/* ---- the formats ------------------------------------------------------------------------- */

static void f32_decode(const dsv4_row *row, int64_t n, float *out)
{
    memcpy(out, row->data, (size_t)n * sizeof *out);
}

static void f16_decode(const dsv4_row *row, int64_t n, float *out)
{
    const uint8_t *p = row->data;
    for (int64_t i = 0; i < n; i++)
        out[i] = dsv4_load_f16(p + 2 * i);
}

static void bf16_decode(const dsv4_row *row, int64_t n, float *out)
{
    const uint8_t *p = row->data;
    for (int64_t i = 0; i < n; i++)
        out[i] = dsv4_bf16_to_f32(dsv4_load16(p + 2 * i));
}

/* Integers as float32: for reports only; dsv4_tensor_int reads them exactly. */
static void i32_decode(const dsv4_row *row, int64_t n, float *out)
{
    const uint8_t *p = row->data;
    for (int64_t i = 0; i < n; i++) {
        int32_t v;
        memcpy(&v, p + 4 * i, sizeof v);
        out[i] = (float)v;
    }
}

static void i64_decode(const dsv4_row *row, int64_t n, float *out)
{
    const uint8_t *p = row->data;
    for (int64_t i = 0; i < n; i++) {
        int64_t v;
        memcpy(&v, p + 8 * i, sizeof v);
        out[i] = (float)v;
    }
}

/* The products of the decoded values, a chunk at a time; `size` bytes a column. */
static double dot(void (*decode)(const dsv4_row *, int64_t, float *), size_t size,
                  const dsv4_row *row, int64_t n, const float *x)
{
    float values[DSV4_DOT_CHUNK];
    double sum = 0;
    dsv4_row part = *row;
    for (int64_t i = 0; i < n; i += DSV4_DOT_CHUNK) {
        int64_t m = n - i < DSV4_DOT_CHUNK ? n - i : DSV4_DOT_CHUNK;
        part.data = (const uint8_t *)row->data + (size_t)i * size;
        decode(&part, m, values);
        for (int64_t j = 0; j < m; j++)
            sum += (double)values[j] * (double)x[i + j];
    }
    return sum;
}

static double f32_dot(const dsv4_row *row, int64_t n, const float *x)
{
    return dot(f32_decode, 4, row, n, x);
}

static double f16_dot(const dsv4_row *row, int64_t n, const float *x)
{
    return dot(f16_decode, 2, row, n, x);
}

static double bf16_dot(const dsv4_row *row, int64_t n, const float *x)
{
    return dot(bf16_decode, 2, row, n, x);
}

static double i32_dot(const dsv4_row *row, int64_t n, const float *x)
{
    return dot(i32_decode, 4, row, n, x);
}

static double i64_dot(const dsv4_row *row, int64_t n, const float *x)
{
    return dot(i64_decode, 8, row, n, x);
}

static bool f32_encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                       const dsv4_encoded *out)
{
    (void)importance;
    memcpy(out->data, x, (size_t)rows * (size_t)cols * sizeof *x);
    return true;
}

static bool f16_encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                       const dsv4_encoded *out)
{
    (void)importance;
    for (int64_t i = 0; i < rows * cols; i++)
        dsv4_store16((uint8_t *)out->data + 2 * i, dsv4_f32_to_f16(x[i]));
    return true;
}

static bool bf16_encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                        const dsv4_encoded *out)
{
    (void)importance;
    for (int64_t i = 0; i < rows * cols; i++)
        dsv4_store16((uint8_t *)out->data + 2 * i, dsv4_f32_to_bf16(x[i]));
    return true;
}

const dsv4_format dsv4_format_F32 = {
    .type = DSV4_F32,
    .name = "F32",
    .ggml_type = 0,
    .block = 1,
    .block_bytes = 4,
    .act_type = DSV4_F32,
    .decode = f32_decode,
    .encode = f32_encode,
    .dot = f32_dot,
};

const dsv4_format dsv4_format_F16 = {
    .type = DSV4_F16,
    .name = "F16",
    .ggml_type = 1,
    .block = 1,
    .block_bytes = 2,
    .act_type = DSV4_F32,
    .decode = f16_decode,
    .encode = f16_encode,
    .dot = f16_dot,
};

const dsv4_format dsv4_format_BF16 = {
    .type = DSV4_BF16,
    .name = "BF16",
    .ggml_type = 30,
    .block = 1,
    .block_bytes = 2,
    .act_type = DSV4_F32,
    .decode = bf16_decode,
    .encode = bf16_encode,
    .dot = bf16_dot,
};

const dsv4_format dsv4_format_I32 = {
    .type = DSV4_I32,
    .name = "I32",
    .ggml_type = 26,
    .block = 1,
    .block_bytes = 4,
    .act_type = DSV4_F32,
    .decode = i32_decode,
    .dot = i32_dot,
};

const dsv4_format dsv4_format_I64 = {
    .type = DSV4_I64,
    .name = "I64",
    .ggml_type = 27,
    .block = 1,
    .block_bytes = 8,
    .act_type = DSV4_F32,
    .decode = i64_decode,
    .dot = i64_dot,
};
