/* mlx.c - MLX affine quantisation: 4 or 8 bits, value = scale * q + bias, a scale and a bias per
 * group of 32, 64 or 128 columns beside the codes.
 *
 * MLX packs codes into 32-bit words from the low bits up; on the little-endian machines it runs on
 * that is a byte a code, or two a byte with the even column low. */
#include <math.h>

#include "blocks.h"

static float load_scale(const uint8_t *p, int64_t i, dsv4_type type)
{
    float f;
    switch (type) {
    case DSV4_F16:
        return dsv4_load_f16(p + 2 * i);
    case DSV4_BF16:
        return dsv4_bf16_to_f32(dsv4_load16(p + 2 * i));
    default:
        memcpy(&f, p + 4 * i, sizeof f);
        return f;
    }
}

static void store_scale(void *p, int64_t i, dsv4_type type, float f)
{
    switch (type) {
    case DSV4_F16:
        dsv4_store_f16((uint8_t *)p + 2 * i, f);
        break;
    case DSV4_BF16:
        dsv4_store16((uint8_t *)p + 2 * i, dsv4_f32_to_bf16(f));
        break;
    default:
        memcpy((uint8_t *)p + 4 * i, &f, sizeof f);
        break;
    }
}

static unsigned code(const uint8_t *p, int64_t i, int bits)
{
    return bits == 8 ? p[i] : i & 1 ? p[i / 2] >> 4 : p[i / 2] & 15;
}

/* Columns [first, first + n). With 16-bit scales the product is exact, so the sum alone rounds. */
static void part(const dsv4_row *row, int64_t first, int64_t n, float *out, int bits)
{
    float scale = 0, bias = 0;
    for (int64_t i = first; i < first + n; i++) {
        if (i == first || i % row->group == 0) {
            scale = load_scale(row->scale, i / row->group, row->scale_type);
            bias = load_scale(row->bias, i / row->group, row->scale_type);
        }
        out[i - first] = scale * (float)code(row->data, i, bits) + bias;
    }
}

static double dot(const dsv4_row *row, int64_t n, const float *x, int bits)
{
    float values[DSV4_DOT_CHUNK];
    double sum = 0;
    for (int64_t i = 0; i < n; i += DSV4_DOT_CHUNK) {
        int64_t m = n - i < DSV4_DOT_CHUNK ? n - i : DSV4_DOT_CHUNK;
        part(row, i, m, values, bits);
        for (int64_t j = 0; j < m; j++)
            sum += (double)values[j] * (double)x[i + j];
    }
    return sum;
}

/* MLX's own quantiser, not a plain min/max one: the extreme of larger magnitude becomes the bias
 * and is met exactly, and the scale is bent so that zero is a whole number of steps away. Codes
 * are chosen with the unrounded scale and bias, as MLX's kernel does; only what is stored is
 * rounded to scale_type. */
static void encode_group(const float *x, int n, int bits, const dsv4_encoded *out, int64_t group,
                         uint8_t *codes)
{
    const float top = bits == 8 ? 255.0f : 15.0f;
    float lo = x[0], hi = x[0];
    for (int i = 1; i < n; i++) {
        lo = fminf(lo, x[i]);
        hi = fmaxf(hi, x[i]);
    }
    /* The floor keeps groups of one value from a zero scale. */
    float scale = fmaxf((hi - lo) / top, 1e-7f), edge, bias = 0;
    if (fabsf(lo) > fabsf(hi)) {
        edge = lo;
    } else {
        edge = hi;
        scale = -scale;
    }
    float steps = rintf(edge / scale);
    if (steps != 0) {
        scale = edge / steps;
        bias = edge;
    }
    store_scale(out->scale, group, out->scale_type, scale);
    store_scale(out->bias, group, out->scale_type, bias);
    for (int i = 0; i < n; i++) {
        float q = fminf(fmaxf(rintf((x[i] - bias) / scale), 0.0f), top);
        uint8_t c = (uint8_t)q;
        if (bits == 8)
            codes[i] = c;
        else
            codes[i / 2] = (uint8_t)(i & 1 ? codes[i / 2] | c << 4 : c);
    }
}

static bool encode(const float *x, int64_t rows, int64_t cols, const dsv4_encoded *out, int bits)
{
    int64_t groups = rows * (cols / out->group);
    for (int64_t g = 0; g < groups; g++)
        encode_group(x + g * out->group, out->group, bits, out, g,
                     (uint8_t *)out->data + g * out->group * bits / 8);
    return true;
}

static void mlx4_decode(const dsv4_row *row, int64_t n, float *out)
{
    part(row, 0, n, out, 4);
}

static void mlx8_decode(const dsv4_row *row, int64_t n, float *out)
{
    part(row, 0, n, out, 8);
}

static double mlx4_dot(const dsv4_row *row, int64_t n, const float *x)
{
    return dot(row, n, x, 4);
}

static double mlx8_dot(const dsv4_row *row, int64_t n, const float *x)
{
    return dot(row, n, x, 8);
}

static bool mlx4_encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                        const dsv4_encoded *out)
{
    (void)importance;
    return encode(x, rows, cols, out, 4);
}

static bool mlx8_encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                        const dsv4_encoded *out)
{
    (void)importance;
    return encode(x, rows, cols, out, 8);
}

const dsv4_format dsv4_format_MLX4 = {
    .type = DSV4_MLX4,
    .name = "MLX4",
    .ggml_type = -1,
    .block = 2,
    .block_bytes = 1,
    .act_type = DSV4_F32,
    .decode = mlx4_decode,
    .encode = mlx4_encode,
    .dot = mlx4_dot,
};

const dsv4_format dsv4_format_MLX8 = {
    .type = DSV4_MLX8,
    .name = "MLX8",
    .ggml_type = -1,
    .block = 1,
    .block_bytes = 1,
    .act_type = DSV4_F32,
    .decode = mlx8_decode,
    .encode = mlx8_encode,
    .dot = mlx8_dot,
};
