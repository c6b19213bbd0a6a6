/* float8.c - the small floats: e4m3, e2m1 and e8m0, and the three formats made of them: FP8 with a
 * scale per 128 x 128 block, FP4 with a scale per 32 columns, and MXFP4 with the scale inside. */
#include <math.h>

#include "blocks.h"

/* ---- conversions ------------------------------------------------------------------------- */

float dsv4_e8m0_to_f32(uint8_t code)
{
    /* 0 is 2^-127, a float32 subnormal; 255 is NaN. */
    uint32_t bits = code == 255 ? 0x7fc00000u : code ? (uint32_t)code << 23 : 0x00400000u;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

float dsv4_e4m3_to_f32(uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80u) << 24, magnitude = code & 0x7fu, bits;
    float f;

    if (magnitude < 8) { /* subnormal: multiples of 2^-9 */
        f = (float)magnitude * 0x1p-9f;
        return sign ? -f : f;
    }
    if (magnitude == 0x7f)
        bits = sign | 0x7fc00000u;
    else
        bits = sign | ((magnitude << 20) + (120u << 23));
    memcpy(&f, &bits, sizeof f);
    return f;
}

uint8_t dsv4_f32_to_e4m3(float f)
{
    uint32_t b;
    memcpy(&b, &f, sizeof b);
    uint32_t sign = (b >> 24) & 0x80u, a = b & 0x7fffffffu;

    if (a > 0x7f800000u)
        return (uint8_t)(sign | 0x7fu);
    if (a >= 0x43e00000u) /* 448 and above saturate: there is no infinity */
        return (uint8_t)(sign | 0x7eu);
    if (a < 0x3c800000u) { /* below 2^-6: count steps of 2^-9; adding 2^14 rounds to them */
        float v;
        memcpy(&v, &a, sizeof v);
        v += 0x1p14f;
        memcpy(&a, &v, sizeof a);
        return (uint8_t)(sign | (a - 0x46800000u)); /* 8 is the first normal: the carry fits */
    }
    /* Round to 3 mantissa bits, nearest even, by carry arithmetic. Nothing below 448 reaches the
     * NaN code: 464 would, but saturates above. */
    a += 0x7ffffu + ((a >> 20) & 1u);
    return (uint8_t)(sign | ((a >> 20) - (120u << 3)));
}

float dsv4_e2m1_to_f32(uint8_t code)
{
    static const float values[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
    float f = values[code & 7];
    return code & 8 ? -f : f;
}

uint8_t dsv4_f32_to_e2m1(float f)
{
    float a = fabsf(f);
    uint8_t sign = signbit(f) ? 8 : 0, code;

    /* Midpoints go to the even code, so the comparisons alternate. A NaN fails all of them; the
     * format has none and saturates. */
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
    return (uint8_t)(sign | code);
}

/* ---- power-of-two scales ----------------------------------------------------------------- */

/* The e8m0 code of the smallest 2^k with amax <= top * 2^k; 127 (one) for an all-zero block. */
static uint8_t scale_code(float amax, float top)
{
    if (!(amax > 0))
        return 127;
    int k;
    double m = frexp((double)amax / (double)top, &k); /* in [0.5, 1) */
    /* The quotient in double decides amax <= top * 2^k rightly: top has at most three bits. */
    if (m == 0.5)
        k--;
    return (uint8_t)dsv4_clamp(k + 127, 0, 254);
}

/* FP8 and FP4 releases are made from unrounded weights, whose largest value lies anywhere in
 * (top/2, top] * 2^k and may round down to exactly top/2. From such a block's decoded values the
 * rule above would halve the scale. So if the maximum sits on the boundary and the larger scale
 * loses nothing, the larger scale is it: encoding what was decoded gives the stored bytes again,
 * but for the rare block that has two lossless encodings and was stored with the smaller scale. */
static bool on_boundary(float amax, float top, uint8_t code)
{
    return code < 254 && (double)amax == ldexp((double)top, code - 127);
}

/* ---- FP8 --------------------------------------------------------------------------------- */

enum { FP8_BLOCK = 128 };

/* Columns [first, first + n) of a row: what decode and dot have in common. */
typedef void (*part_fn)(const dsv4_row *row, int64_t first, int64_t n, int64_t group, float *out);

static void decode_parts(part_fn part, int64_t group, const dsv4_row *row, int64_t n, float *out)
{
    part(row, 0, n, row->group > 0 ? row->group : group, out);
}

static double dot_parts(part_fn part, int64_t group, const dsv4_row *row, int64_t n, const float *x)
{
    float values[DSV4_DOT_CHUNK];
    double sum = 0;
    for (int64_t i = 0; i < n; i += DSV4_DOT_CHUNK) {
        int64_t m = n - i < DSV4_DOT_CHUNK ? n - i : DSV4_DOT_CHUNK;
        part(row, i, m, row->group > 0 ? row->group : group, values);
        for (int64_t j = 0; j < m; j++)
            sum += (double)values[j] * (double)x[i + j];
    }
    return sum;
}

static void fp8_part(const dsv4_row *row, int64_t first, int64_t n, int64_t group, float *out)
{
    const uint8_t *p = row->data;
    float scale = 0;
    for (int64_t i = first; i < first + n; i++) {
        if (i == first || i % group == 0)
            scale = dsv4_e8m0_to_f32(row->scale[i / group]);
        out[i - first] = dsv4_e4m3_to_f32(p[i]) * scale;
    }
}

static void fp8_decode(const dsv4_row *row, int64_t n, float *out)
{
    decode_parts(fp8_part, FP8_BLOCK, row, n, out);
}

static double fp8_dot(const dsv4_row *row, int64_t n, const float *x)
{
    return dot_parts(fp8_part, FP8_BLOCK, row, n, x);
}

/* x / 2^k without a rounding of its own short of float32's subnormals, which e4m3 and e2m1 send to
 * zero anyway. */
static float unscale(float x, uint8_t code)
{
    return (float)ldexp((double)x, 127 - code);
}

/* One block; returns whether every value is represented exactly. */
static bool fp8_block(const float *x, int64_t rows, int64_t cols, int64_t stride, uint8_t code,
                      uint8_t *out)
{
    bool exact = true;
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols; c++) {
            float v = unscale(x[r * stride + c], code);
            uint8_t q = dsv4_f32_to_e4m3(v);
            exact = exact && dsv4_e4m3_to_f32(q) == v;
            out[r * stride + c] = q;
        }
    }
    return exact;
}

static bool fp8_encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                       const dsv4_encoded *out)
{
    uint8_t *data = out->data, *scale = out->scale;
    int64_t scale_cols = (cols + FP8_BLOCK - 1) / FP8_BLOCK;
    (void)importance; /* the scale follows from the maximum alone */

    for (int64_t r = 0; r < rows; r += FP8_BLOCK) {
        for (int64_t c = 0; c < cols; c += FP8_BLOCK) {
            int64_t h = rows - r < FP8_BLOCK ? rows - r : FP8_BLOCK;
            int64_t w = cols - c < FP8_BLOCK ? cols - c : FP8_BLOCK;
            const float *from = x + r * cols + c;
            uint8_t *to = data + r * cols + c;
            float amax = 0;
            for (int64_t i = 0; i < h; i++) {
                for (int64_t j = 0; j < w; j++)
                    amax = fmaxf(amax, fabsf(from[i * cols + j]));
            }
            uint8_t code = scale_code(amax, 448.0f);
            if (on_boundary(amax, 448.0f, code) &&
                fp8_block(from, h, w, cols, (uint8_t)(code + 1), to))
                code++;
            else
                fp8_block(from, h, w, cols, code, to);
            scale[(r / FP8_BLOCK) * scale_cols + c / FP8_BLOCK] = code;
        }
    }
    return true;
}

const dsv4_format dsv4_format_FP8 = {
    .type = DSV4_FP8,
    .name = "FP8",
    .ggml_type = -1,
    .block = 1,
    .block_bytes = 1,
    .act_type = DSV4_F32,
    .decode = fp8_decode,
    .encode = fp8_encode,
    .dot = fp8_dot,
};

/* ---- FP4 --------------------------------------------------------------------------------- */

enum { FP4_BLOCK = 32 };

static void fp4_part(const dsv4_row *row, int64_t first, int64_t n, int64_t group, float *out)
{
    const uint8_t *p = row->data;
    float scale = 0;
    for (int64_t i = first; i < first + n; i++) {
        uint8_t code = i & 1 ? p[i / 2] >> 4 : p[i / 2] & 15; /* low nibble: the even column */
        if (i == first || i % group == 0)
            scale = dsv4_e8m0_to_f32(row->scale[i / group]);
        out[i - first] = dsv4_e2m1_to_f32(code) * scale;
    }
}

static void fp4_decode(const dsv4_row *row, int64_t n, float *out)
{
    decode_parts(fp4_part, FP4_BLOCK, row, n, out);
}

static double fp4_dot(const dsv4_row *row, int64_t n, const float *x)
{
    return dot_parts(fp4_part, FP4_BLOCK, row, n, x);
}

static bool fp4_block(const float *x, uint8_t code, uint8_t *out)
{
    bool exact = true;
    for (int i = 0; i < FP4_BLOCK; i++) {
        float v = unscale(x[i], code);
        uint8_t q = dsv4_f32_to_e2m1(v);
        exact = exact && dsv4_e2m1_to_f32(q) == v;
        out[i / 2] = (uint8_t)(i & 1 ? out[i / 2] | q << 4 : q);
    }
    return exact;
}

static bool fp4_encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                       const dsv4_encoded *out)
{
    uint8_t *data = out->data, *scale = out->scale;
    (void)importance;

    for (int64_t b = 0; b < rows * (cols / FP4_BLOCK); b++) {
        const float *from = x + b * FP4_BLOCK;
        uint8_t *to = data + b * (FP4_BLOCK / 2);
        float amax = 0;
        for (int i = 0; i < FP4_BLOCK; i++)
            amax = fmaxf(amax, fabsf(from[i]));
        uint8_t code = scale_code(amax, 6.0f);
        if (on_boundary(amax, 6.0f, code) && fp4_block(from, (uint8_t)(code + 1), to))
            code++;
        else
            fp4_block(from, code, to);
        scale[b] = code;
    }
    return true;
}

const dsv4_format dsv4_format_FP4 = {
    .type = DSV4_FP4,
    .name = "FP4",
    .ggml_type = -1,
    .block = 2,
    .block_bytes = 1,
    .act_type = DSV4_F32,
    .decode = fp4_decode,
    .encode = fp4_encode,
    .dot = fp4_dot,
};

/* ---- MXFP4 ------------------------------------------------------------------------------- */

/* e8m0, then 16 bytes: column i in the low nibbles, column i + 16 in the high ones. */
enum { MXFP4_BLOCK = 32, MXFP4_BYTES = 17 };

/* The e2m1 values doubled, so that they are integers; the scale is halved to match. */
static const int8_t mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* 2^(code-128). Unlike e8m0 proper, 255 is no NaN here but 2^127: that is how ggml reads it. */
static float mxfp4_half_scale(uint8_t code)
{
    return (float)ldexp(1.0, code - 128);
}

static void mxfp4_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    u->d = mxfp4_half_scale(block[0]);
    u->has_min = false;
    u->sub = MXFP4_BLOCK;
    u->scale[0] = 1;
    for (int i = 0; i < MXFP4_BLOCK / 2; i++) {
        u->q[i] = mxfp4_values[block[1 + i] & 15];
        u->q[i + MXFP4_BLOCK / 2] = mxfp4_values[block[1 + i] >> 4];
    }
}

DSV4_BLOCK_FUNCTIONS(mxfp4, MXFP4_BLOCK, MXFP4_BYTES, q8_0)

/* The first code with the smallest error: ties go to the lower code, and a zero is never -0. Same
 * rule as ggml's, so the bytes agree. */
static uint8_t mxfp4_nearest(float x, float half_scale)
{
    int best = 0;
    float best_error = fabsf(0.0f * half_scale - x);
    for (int i = 1; i < 16; i++) {
        float error = fabsf((float)mxfp4_values[i] * half_scale - x);
        if (error < best_error) {
            best = i;
            best_error = error;
        }
    }
    return (uint8_t)best;
}

static bool mxfp4_encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                         const dsv4_encoded *out)
{
    uint8_t *p = out->data;
    (void)importance;

    for (int64_t i = 0; i < rows * cols; i += MXFP4_BLOCK, p += MXFP4_BYTES) {
        float amax = 0;
        for (int j = 0; j < MXFP4_BLOCK; j++)
            amax = fmaxf(amax, fabsf(x[i + j]));
        /* The maximum lands in [4, 8) steps: what is above 6 saturates. log2f, with its rounding
         * just below powers of two, as ggml has it. Maxima under 2^-125 get the smallest scale;
         * there ggml converts a negative float to a byte, which C leaves undefined. */
        int code = amax > 0 ? (int)floorf(log2f(amax)) - 2 + 127 : 0;
        p[0] = (uint8_t)dsv4_clamp(code, 0, 254);
        float half_scale = mxfp4_half_scale(p[0]);
        for (int j = 0; j < MXFP4_BLOCK / 2; j++) {
            uint8_t lo = mxfp4_nearest(x[i + j], half_scale);
            uint8_t hi = mxfp4_nearest(x[i + j + MXFP4_BLOCK / 2], half_scale);
            p[1 + j] = (uint8_t)(lo | hi << 4);
        }
    }
    return true;
}

const dsv4_format dsv4_format_MXFP4 = {
    .type = DSV4_MXFP4,
    .name = "MXFP4",
    .ggml_type = 39,
    .block = MXFP4_BLOCK,
    .block_bytes = MXFP4_BYTES,
    .act_type = DSV4_Q8_0,
    .decode = mxfp4_decode,
    .encode = mxfp4_encode,
    .dot = mxfp4_dot,
    .dot_act = mxfp4_dot_act,
};
