/* kernels_weights.c - matrices of every storage format for the cases of kernels: codes of all
 * values, factors and minima as hostile as the case asks for. */
#include <math.h>
#include <string.h>

#include "kernels_private.h"
#include "reference/formats/formats.h"

int type_step(dsv4_type type)
{
    const dsv4_format *f = dsv4_format_of(type);
    return type == DSV4_FP4 || type == DSV4_MLX4 || type == DSV4_MLX8 ? 32 : f->block;
}

/* Where a block keeps its f16 factors; -1 = none. */
static void f16_places(dsv4_type type, int at[2])
{
    at[0] = at[1] = -1;
    switch (type) {
    case DSV4_Q4_0:
    case DSV4_Q5_0:
    case DSV4_Q8_0:
    case DSV4_IQ1_S:
    case DSV4_IQ2_XXS:
    case DSV4_IQ2_XS:
    case DSV4_IQ2_S:
    case DSV4_IQ3_XXS:
    case DSV4_IQ3_S:
    case DSV4_IQ4_NL:
    case DSV4_IQ4_XS:
        at[0] = 0;
        break;
    case DSV4_Q4_1:
    case DSV4_Q5_1:
    case DSV4_Q4_K:
    case DSV4_Q5_K:
        at[0] = 0;
        at[1] = 2;
        break;
    case DSV4_Q2_K:
        at[0] = 80;
        at[1] = 82;
        break;
    case DSV4_Q3_K:
        at[0] = 108;
        break;
    case DSV4_Q6_K:
        at[0] = 208;
        break;
    default:
        break;
    }
}

/* A factor that leaves the values of a block around 1, or is hostile. */
static uint16_t random_factor(kernel_run *k, fill f)
{
    if (f == FILL_ZERO || f == FILL_NEGATIVE_ZERO)
        return f == FILL_ZERO ? 0 : 0x8000;
    if (f == FILL_SUBNORMAL)
        return (uint16_t)noise_below(k, 1024);
    if (f == FILL_HUGE)
        return dsv4_f32_to_f16(60000.0f);
    if (f == FILL_NONFINITE && noise_below(k, 8) == 0)
        return noise_bits(k) & 1u ? 0x7c00 : 0x7e00;
    return dsv4_f32_to_f16(noise_float(k) * 0.1f);
}

/* Scales and biases of MLX codes: groups of 32, 64 or 128 columns, whichever divides the row, and
 * one of the three types that a checkpoint may hold. */
static bool input_affine(kernel_run *k, fill f, int64_t stored, int64_t cols, dsv4_tensor *t)
{
    static const dsv4_type kinds[] = {DSV4_F16, DSV4_BF16, DSV4_F32};
    t->scale_cols = cols % 128 == 0 ? 128 : cols % 64 == 0 ? 64 : 32;
    t->scale_type = kinds[noise_below(k, 3)];
    size_t width = t->scale_type == DSV4_F32 ? 4 : 2;
    t->scale_row_bytes = (size_t)(cols / t->scale_cols) * width;
    for (int which = 0; which < 2; which++) {
        uint8_t *p = buffer_bytes(k, (size_t)stored * t->scale_row_bytes);
        if (p == NULL)
            return false;
        for (size_t at = 0; at < (size_t)stored * t->scale_row_bytes; at += width) {
            uint16_t half = random_factor(k, f);
            float value = dsv4_f16_to_f32(half);
            uint16_t bf16 = dsv4_f32_to_bf16(value);
            if (t->scale_type == DSV4_F32)
                memcpy(p + at, &value, 4);
            else
                memcpy(p + at, t->scale_type == DSV4_F16 ? &half : &bf16, 2);
        }
        input_done(k, p);
        *(which == 0 ? &t->scale : &t->bias) = p;
    }
    return true;
}

bool input_tensor(kernel_run *k, dsv4_type type, int64_t rows, int64_t cols, fill f, dsv4_tensor *t)
{
    const dsv4_format *format = dsv4_format_of(type);
    size_t row_bytes = dsv4_format_row_bytes(format, cols);
    int places[2];
    /* A view may start inside a stored matrix. */
    int64_t row0 = noise_below(k, 3), stored = rows + row0;
    uint8_t *data = buffer_bytes(k, (size_t)stored * row_bytes);
    *t = (dsv4_tensor){.name = "weights",
                       .type = type,
                       .rows = rows,
                       .cols = cols,
                       .data = data,
                       .row_bytes = row_bytes,
                       .row0 = row0,
                       .scale_rows = 1,
                       .scale_cols = 1};
    if (data == NULL)
        return false;
    for (size_t i = 0; i < (size_t)stored * row_bytes; i++)
        data[i] = (uint8_t)noise_bits(k);
    if (type == DSV4_F32 || type == DSV4_F16 || type == DSV4_BF16) {
        for (int64_t i = 0; i < stored * cols; i++) {
            float v = f == FILL_NONFINITE && noise_below(k, 500) == 0 ? INFINITY
                      : f == FILL_ZERO                                ? 0.0f
                                                                      : noise_float(k);
            uint16_t half = type == DSV4_F16 ? dsv4_f32_to_f16(v) : dsv4_f32_to_bf16(v);
            if (type == DSV4_F32)
                memcpy(data + 4 * i, &v, 4);
            else
                memcpy(data + 2 * i, &half, 2);
        }
    } else if (type == DSV4_FP8 || type == DSV4_FP4) {
        t->scale_rows = type == DSV4_FP8 ? 128 : 1;
        t->scale_cols = type == DSV4_FP8 ? 128 : 32;
        t->scale_row_bytes = (size_t)((cols + t->scale_cols - 1) / t->scale_cols);
        size_t n = (size_t)((stored + t->scale_rows - 1) / t->scale_rows) * t->scale_row_bytes;
        uint8_t *scale = buffer_bytes(k, n);
        if (scale == NULL)
            return false;
        for (size_t i = 0; i < n; i++)
            scale[i] =
                (uint8_t)(f == FILL_NONFINITE && noise_below(k, 16) == 0 ? 255
                                                                         : 118 + noise_below(k, 8));
        for (size_t i = 0; type == DSV4_FP8 && i < (size_t)stored * row_bytes; i++)
            if ((data[i] & 0x7f) == 0x7f && f != FILL_NONFINITE) /* the NaN code */
                data[i] = 0x7e;
        input_done(k, scale);
        t->scale = scale;
    } else if (type == DSV4_MLX4 || type == DSV4_MLX8) {
        if (!input_affine(k, f, stored, cols, t))
            return false;
    } else {
        f16_places(type, places);
        for (size_t at = 0; at < (size_t)stored * row_bytes; at += (size_t)format->block_bytes) {
            for (int i = 0; i < 2; i++)
                if (places[i] >= 0) {
                    uint16_t d = random_factor(k, f);
                    memcpy(data + at + places[i], &d, sizeof d);
                }
            if (type == DSV4_MXFP4)
                data[at] =
                    (uint8_t)(f == FILL_SUBNORMAL ? noise_below(k, 3) : 120 + noise_below(k, 8));
        }
    }
    input_done(k, data);
    return true;
}
