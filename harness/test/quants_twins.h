/* quants_twins.h - wrong formats for the test of the format checker: decoders, encoders and dot
 * products with the mistakes that engines make, and the diagnosis that each must get. */
#ifndef DSV4_TEST_QUANTS_TWINS_H
#define DSV4_TEST_QUANTS_TWINS_H

#include <math.h>
#include <string.h>

#include "harness/quants.h"

enum { COLS = QUANTS_COLS, MAX_BYTES = 4096 };

/* ---- planting ------------------------------------------------------------------------------- */

static dsv4_format twin;  /* the wrong format */
static int twin_argument; /* what it is wrong in, e.g. a code-book entry */

static const dsv4_format *lookup(dsv4_type type)
{
    return type == twin.type && twin.name != NULL ? &twin : dsv4_format_of(type);
}

static const dsv4_format *right(void)
{
    return dsv4_format_of(twin.type);
}

/* The row's bytes, so that a twin can spoil them. */
static uint8_t *copy_row(const dsv4_row *row, int64_t n, uint8_t copy[MAX_BYTES])
{
    memcpy(copy, row->data, dsv4_format_row_bytes(right(), n));
    return copy;
}

static void decode_bytes(const dsv4_row *row, const void *data, int64_t n, float *out)
{
    dsv4_row other = *row;
    other.data = data;
    right()->decode(&other, n, out);
}

/* ---- wrong decoders ------------------------------------------------------------------------- */

static int code_at(const dsv4_row *row, int64_t n, int64_t i)
{
    quants_rows rows = {.n = 1,
                        .bytes = dsv4_format_row_bytes(right(), n),
                        .raw = (uint8_t *)(uintptr_t)row->data,
                        .group = 32};
    return quants_code(right(), &rows, 0, (int)i);
}

/* One entry of the code book is another number: in vector books its third element. */
static void wrong_entry(const dsv4_row *row, int64_t n, float *out)
{
    int lanes = twin.type == DSV4_IQ4_NL ? 1 : twin.type == DSV4_IQ3_S ? 4 : 8;
    right()->decode(row, n, out);
    for (int64_t i = 0; i < n; i++)
        if (code_at(row, n, i) == twin_argument && i % lanes == (lanes > 1 ? 2 : 0))
            out[i] = out[i] * 3 + 0x1p-60f;
}

static void swapped_nibbles(const dsv4_row *row, int64_t n, float *out)
{
    uint8_t copy[MAX_BYTES], *p = copy_row(row, n, copy);
    int block = twin.type == DSV4_FP4 ? 1 : twin.block_bytes;
    int first = twin.type == DSV4_Q4_0 ? 2 : twin.type == DSV4_MXFP4 ? 1 : 0;
    first = twin.type == DSV4_Q4_K ? 16 : first;
    for (size_t i = 0; i < dsv4_format_row_bytes(right(), n); i++)
        if ((int)i % block >= first)
            p[i] = (uint8_t)(p[i] << 4 | p[i] >> 4);
    decode_bytes(row, p, n, out);
}

/* Nibbles as neighbouring columns, the checkpoint's order. */
static void neighbours(const dsv4_row *row, int64_t n, float *out)
{
    float halves[COLS];
    right()->decode(row, n, halves);
    for (int64_t i = 0; i < n; i++)
        out[i] = halves[i - i % 32 + i % 32 / 2 + 16 * (i % 2)];
}

/* e8m0 as the number it is stored as. */
static void scale_as_number(const dsv4_row *row, int64_t n, float *out)
{
    const uint8_t *p = row->data;
    right()->decode(row, n, out);
    for (int64_t i = 0; i < n; i++) {
        unsigned e = twin.type == DSV4_MXFP4 ? p[i / 32 * 17] : row->scale[i / row->group];
        out[i] = (float)((double)out[i] / ldexp(1, (int)e - 127) * e);
    }
}

static void doubled(const dsv4_row *row, int64_t n, float *out)
{
    right()->decode(row, n, out);
    for (int64_t i = 0; i < n; i++)
        out[i] *= 2;
}

/* Minima in the block set to zero. */
static void missing_minimum(const dsv4_row *row, int64_t n, float *out)
{
    uint8_t copy[MAX_BYTES], *p = copy_row(row, n, copy);
    for (size_t i = 0; i < dsv4_format_row_bytes(right(), n); i += (size_t)twin.block_bytes)
        memset(p + i + 2, 0, 2); /* m of Q4_1, dmin of Q4_K */
    decode_bytes(row, p, n, out);
}

/* Codes used without the 8 taken off. */
static void missing_offset(const dsv4_row *row, int64_t n, float *out)
{
    const uint8_t *p = row->data;
    for (int64_t i = 0; i < n; i++) {
        uint16_t d;
        memcpy(&d, p + i / 32 * 18, 2);
        out[i] = dsv4_f16_to_f32(d) * (float)code_at(row, n, i);
    }
}

static void no_signs(const dsv4_row *row, int64_t n, float *out)
{
    right()->decode(row, n, out);
    for (int64_t i = 0; i < n; i++)
        out[i] = fabsf(out[i]);
}

/* The scales of Q6_K turned by one. */
static void turned_scales(const dsv4_row *row, int64_t n, float *out)
{
    uint8_t copy[MAX_BYTES], *p = copy_row(row, n, copy);
    for (int64_t b = 0; b < n / 256; b++) {
        uint8_t *s = p + b * 210 + 192, first = s[0];
        memmove(s, s + 1, 15);
        s[15] = first;
    }
    decode_bytes(row, p, n, out);
}

static void flushed(const dsv4_row *row, int64_t n, float *out)
{
    right()->decode(row, n, out);
    for (int64_t i = 0; i < n; i++)
        if (fabsf(out[i]) < 0x1p-14f)
            out[i] = copysignf(0, out[i]);
}

/* ---- wrong encoders ------------------------------------------------------------------------- */

/* Float bits to 16 by adding half and cutting: ties go away from zero. */
static bool half_up(const float *x, int64_t rows, int64_t cols, const float *importance,
                    const dsv4_encoded *out)
{
    right()->encode(x, rows, cols, importance, out);
    for (int64_t i = 0; i < rows * cols; i++) {
        uint16_t h, *p = (uint16_t *)out->data + i;
        memcpy(&h, p, 2);
        float down = twin.type == DSV4_F16 ? dsv4_f16_to_f32(h) : dsv4_bf16_to_f32(h);
        uint16_t next = (uint16_t)(h + 1);
        float up = twin.type == DSV4_F16 ? dsv4_f16_to_f32(next) : dsv4_bf16_to_f32(next);
        if (fabsf(down) < fabsf(x[i]) && isfinite(up) &&
            fabs((double)x[i]) - fabs((double)down) == fabs((double)up) - fabs((double)x[i]))
            memcpy(p, &next, 2);
    }
    return true;
}

static bool truncated(const float *x, int64_t rows, int64_t cols, const float *importance,
                      const dsv4_encoded *out)
{
    (void)importance;
    for (int64_t i = 0; i < rows * cols; i++)
        memcpy((uint8_t *)out->data + 2 * i, (const uint8_t *)&x[i] + 2, 2);
    return true;
}

/* Q8_0 with ties to even, the tempting rint. */
static bool q8_0_even(const float *x, int64_t rows, int64_t cols, const float *importance,
                      const dsv4_encoded *out)
{
    uint8_t *p = out->data;
    (void)importance;
    for (int64_t i = 0; i < rows * cols; i += 32, p += 34) {
        float amax = 0;
        for (int j = 0; j < 32; j++)
            amax = fmaxf(amax, fabsf(x[i + j]));
        float d = amax / 127, inverse = d > 0 ? 1 / d : 0;
        uint16_t h = dsv4_f32_to_f16(d);
        memcpy(p, &h, 2);
        for (int j = 0; j < 32; j++)
            p[2 + j] = (uint8_t)(int8_t)fmaxf(-128, fminf(127, rintf(x[i + j] * inverse)));
    }
    return true;
}

/* MXFP4 whose ties go to the larger magnitude. */
static bool mxfp4_up(const float *x, int64_t rows, int64_t cols, const float *importance,
                     const dsv4_encoded *out)
{
    static const double values[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    uint8_t *p = out->data;
    right()->encode(x, rows, cols, importance, out);
    for (int64_t i = 0; i < rows * cols; i++) {
        uint8_t *block = p + i / 32 * 17, *byte = block + 1 + i % 16;
        int shift = i % 32 < 16 ? 0 : 4, code = *byte >> shift & 7;
        double v = fabs(ldexp((double)x[i], 127 - block[0]));
        if (code < 7 && v - values[code] == values[code + 1] - v && x[i] != 0) {
            int sign = x[i] < 0 ? 8 : 0;
            *byte = (uint8_t)((*byte & ~(15 << shift)) | (code + 1 + sign) << shift);
        }
    }
    return true;
}

static bool no_importance(const float *x, int64_t rows, int64_t cols, const float *importance,
                          const dsv4_encoded *out)
{
    (void)importance;
    return right()->encode(x, rows, cols, NULL, out);
}

static bool writes_on(const float *x, int64_t rows, int64_t cols, const float *importance,
                      const dsv4_encoded *out)
{
    bool ok = right()->encode(x, rows, cols, importance, out);
    ((uint8_t *)out->data)[(size_t)rows * dsv4_format_row_bytes(right(), cols)] = 0;
    return ok;
}

static bool refuses(const float *x, int64_t rows, int64_t cols, const float *importance,
                    const dsv4_encoded *out)
{
    return x == NULL && rows == cols && importance == NULL && out == NULL;
}

/* Swaps the nibbles that it stores. */
static bool stores_swapped(const float *x, int64_t rows, int64_t cols, const float *importance,
                           const dsv4_encoded *out)
{
    uint8_t *p = out->data;
    right()->encode(x, rows, cols, importance, out);
    for (int64_t i = 0; i < rows * cols / 2; i++)
        p[i] = (uint8_t)(p[i] << 4 | p[i] >> 4);
    return true;
}

/* ---- wrong products ------------------------------------------------------------------------- */

static double drops_last(const dsv4_row *row, int64_t n, const float *x)
{
    float values[COLS];
    right()->decode(row, n, values);
    return right()->dot(row, n, x) - (double)values[n - 1] * (double)x[n - 1];
}

static double in_float(const dsv4_row *row, int64_t n, const float *x)
{
    float values[COLS], sum = 0;
    right()->decode(row, n, values);
    for (int64_t i = 0; i < n; i++)
        sum += values[i] * x[i];
    return (double)sum;
}

static double doubled_dot(const dsv4_row *row, int64_t n, const float *x)
{
    return 2 * right()->dot(row, n, x);
}

static float no_sums(const dsv4_row *row, int64_t n, const void *act)
{
    dsv4_row other = *row;
    uint8_t copy[MAX_BYTES], *p = copy_row(row, n, copy);
    for (size_t i = 0; i < dsv4_format_row_bytes(right(), n); i += (size_t)twin.block_bytes)
        memset(p + i + 2, 0, 2); /* m of Q4_1, dmin of Q4_K and Q5_K */
    other.data = p;
    return right()->dot_act(&other, n, act);
}

static float last_act_lost(const dsv4_row *row, int64_t n, const void *act)
{
    uint8_t copy[2 * 292];
    bool q8_0 = twin.act_type == DSV4_Q8_0;
    memcpy(copy, act, q8_0 ? 16 * 34 : 2 * 292);
    copy[q8_0 ? 16 * 34 - 1 : 292 + 4 + 255] = 0;
    return right()->dot_act(row, n, copy);
}

static float last_block_lost(const dsv4_row *row, int64_t n, const void *act)
{
    uint8_t copy[2 * 292];
    memcpy(copy, act, 2 * 292);
    memset(copy + 292, 0, 292);
    return right()->dot_act(row, n, copy);
}

/* ---- the twins ------------------------------------------------------------------------------ */

typedef struct {
    const char *what;
    dsv4_type type;
    quants_check check;
    const char *cause; /* must be in the diagnosis */
    void (*decode)(const dsv4_row *row, int64_t n, float *out);
    bool (*encode)(const float *x, int64_t rows, int64_t cols, const float *importance,
                   const dsv4_encoded *out);
    double (*dot)(const dsv4_row *row, int64_t n, const float *x);
    float (*dot_act)(const dsv4_row *row, int64_t n, const void *act);
    int argument;
} wrong_twin;

#define DECODE(WHAT, T, F, CAUSE)                                                                  \
    {                                                                                              \
        .what = WHAT, .type = DSV4_##T, .check = QUANTS_DECODE, .cause = CAUSE, .decode = F        \
    }
#define ENTRY(T, N, CAUSE)                                                                         \
    {                                                                                              \
        .what = "a flipped code-book entry", .type = DSV4_##T, .check = QUANTS_DECODE,             \
        .cause = CAUSE, .decode = wrong_entry, .argument = N                                       \
    }
#define ENCODE(WHAT, T, F, CAUSE)                                                                  \
    {                                                                                              \
        .what = WHAT, .type = DSV4_##T, .check = QUANTS_ENCODE, .cause = CAUSE, .encode = F        \
    }
#define DOT(WHAT, T, F, CAUSE)                                                                     \
    {                                                                                              \
        .what = WHAT, .type = DSV4_##T, .check = QUANTS_DOT, .cause = CAUSE, .dot = F              \
    }
#define DOT_ACT(WHAT, T, F, CAUSE)                                                                 \
    {                                                                                              \
        .what = WHAT, .type = DSV4_##T, .check = QUANTS_DOT_ACT, .cause = CAUSE, .dot_act = F      \
    }

static const wrong_twin twins[] = {
    ENTRY(IQ2_XXS, 17, "one code-book entry is wrong: 17, element 2;"),
    ENTRY(IQ1_S, -1, "one code-book entry is wrong: "),
    ENTRY(IQ3_S, 100, "one code-book entry is wrong: 100, element 2;"),
    ENTRY(IQ4_NL, 5, "one code-book entry is wrong: 5;"),
    DECODE("swapped nibbles", Q4_0, swapped_nibbles, "i and i+16 (low and high nibble)"),
    DECODE("swapped nibbles", MXFP4, swapped_nibbles, "i and i+16 (low and high nibble)"),
    DECODE("swapped nibbles", FP4, swapped_nibbles, "2i and 2i+1 are exchanged"),
    DECODE("swapped nibbles", MLX4, swapped_nibbles, "2i and 2i+1 are exchanged"),
    DECODE("swapped nibbles", Q4_K, swapped_nibbles, "i and i+32 (low and high nibble)"),
    DECODE("nibbles as neighbours", MXFP4, neighbours, "laid out as neighbours (2i, 2i+1)"),
    DECODE("nibbles as neighbours", Q4_0, neighbours, "laid out as neighbours (2i, 2i+1)"),
    DECODE("scale as a number", MXFP4, scale_as_number, "the e8m0 byte is used as a number"),
    DECODE("scale as a number", FP8, scale_as_number, "the e8m0 byte is used as a number"),
    DECODE("scale as a number", FP4, scale_as_number, "the e8m0 byte is used as a number"),
    DECODE("factor 2", Q5_0, doubled, "every value is 2 times what it should be"),
    DECODE("factor 2", MXFP4, doubled, "every value is 2 times what it should be"),
    DECODE("missing minimum", Q4_1, missing_minimum, "the minimum (offset) is missing"),
    DECODE("missing minimum", Q4_K, missing_minimum, "the minimum (offset) is missing"),
    DECODE("missing minimum", Q5_K, missing_minimum, "the minimum (offset) is missing"),
    DECODE("missing offset", Q4_0, missing_offset, "the constant offset of the codes is missing"),
    DECODE("signs ignored", IQ2_XXS, no_signs, "sign bits are ignored"),
    DECODE("signs ignored", IQ3_S, no_signs, "sign bits are ignored"),
    DECODE("signs ignored", FP4, no_signs, "sign bits are ignored"),
    DECODE("signs ignored", BF16, no_signs, "sign"),
    DECODE("scales off by one", Q6_K, turned_scales,
           "index off by one: each 16 columns use the "
           "scale of the next"),
    DECODE("subnormals flushed", F16, flushed, "subnormal values are flushed to zero"),
    ENCODE("ties up", F16, half_up, "ties are rounded away from zero, expected to even"),
    ENCODE("ties up", BF16, half_up, "ties are rounded away from zero, expected to even"),
    ENCODE("truncation", BF16, truncated, "truncated towards zero"),
    ENCODE("ties to even", Q8_0, q8_0_even, "ties are rounded towards zero, expected away"),
    ENCODE("ties up", MXFP4, mxfp4_up, "ties are rounded away from zero, expected to the lower"),
    ENCODE("importance ignored", Q4_K, no_importance, "importance is ignored"),
    ENCODE("importance ignored", Q4_0, no_importance, "importance is ignored"),
    ENCODE("swapped nibbles", FP4, stores_swapped, "2i and 2i+1 are exchanged"),
    ENCODE("overrun", Q4_1, writes_on, "writes past its rows"),
    ENCODE("refusal", Q6_K, refuses, "refuses its input"),
    DOT("last element dropped", Q4_K, drops_last, "the last 1 element is dropped"),
    DOT("last element dropped", FP4, drops_last, "the last 1 element is dropped"),
    DOT("sums in float", Q6_K, in_float, "sums are not wide enough"),
    DOT("factor 2", IQ2_XXS, doubled_dot, "every product is 2 times"),
    DOT_ACT("block sums ignored", Q4_K, no_sums, "the minima"),
    DOT_ACT("block sums ignored", Q5_K, no_sums, "the minima"),
    DOT_ACT("block sums ignored", Q4_1, no_sums, "the minima"),
    DOT_ACT("last activation lost", Q4_0, last_act_lost, "the last 1 element is dropped"),
    DOT_ACT("last activation lost", IQ3_S, last_act_lost, "the last 1 element is dropped"),
    DOT_ACT("last block lost", Q6_K, last_block_lost, "the last 256 elements are dropped"),
};
enum { TWINS = sizeof twins / sizeof *twins };

#endif
