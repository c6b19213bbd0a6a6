/* quants_layout.c - where each format keeps its codes and scales. Written from the block layouts,
 * not from the decoders: a diagnosis must not believe what it examines. */
#include <math.h>
#include <string.h>

#include "harness/quants.h"

quants_layout quants_layout_of(const dsv4_format *f, const quants_rows *rows)
{
    static const char entry[] = "code-book entry", code[] = "code";
    switch (f->type) {
    case DSV4_Q4_0:
        return (quants_layout){32, 1, true, false, 16, code};
    case DSV4_Q4_1:
        return (quants_layout){32, 1, true, true, 16, code};
    case DSV4_Q5_0:
        return (quants_layout){32, 1, true, false, 32, code};
    case DSV4_Q5_1:
        return (quants_layout){32, 1, true, true, 32, code};
    case DSV4_Q8_0:
    case DSV4_Q8_K:
        return (quants_layout){f->block, 1, true, false, 256, code};
    case DSV4_Q2_K:
        return (quants_layout){16, 1, true, true, 4, code};
    case DSV4_Q3_K:
        return (quants_layout){16, 1, true, false, 8, code};
    case DSV4_Q4_K:
        return (quants_layout){32, 1, true, true, 16, code};
    case DSV4_Q5_K:
        return (quants_layout){32, 1, true, true, 32, code};
    case DSV4_Q6_K:
        return (quants_layout){16, 1, true, false, 64, code};
    case DSV4_IQ1_S:
        return (quants_layout){32, 8, false, false, 2048, entry};
    case DSV4_IQ1_M:
        return (quants_layout){16, 8, false, false, 2048, entry};
    case DSV4_IQ2_XXS:
        return (quants_layout){32, 8, false, false, 256, entry};
    case DSV4_IQ2_XS:
        return (quants_layout){16, 8, false, false, 512, entry};
    case DSV4_IQ2_S:
        return (quants_layout){16, 8, false, false, 1024, entry};
    case DSV4_IQ3_XXS:
        return (quants_layout){32, 4, false, false, 256, entry};
    case DSV4_IQ3_S:
        return (quants_layout){32, 4, false, false, 512, entry};
    case DSV4_IQ4_NL:
    case DSV4_IQ4_XS:
    case DSV4_MXFP4:
        return (quants_layout){32, 1, false, false, 16, entry};
    case DSV4_FP4:
        return (quants_layout){32, 1, false, false, 16, code};
    case DSV4_FP8:
        return (quants_layout){128, 1, false, false, 256, code};
    case DSV4_MLX4:
        return (quants_layout){rows->group, 1, true, true, 16, code};
    case DSV4_MLX8:
        return (quants_layout){rows->group, 1, true, true, 256, code};
    default:
        return (quants_layout){f->block, 1, false, false, 0, code};
    }
}

/* Column i of 32 in 16 bytes: the first 16 columns in the low nibbles. */
static int halves(const uint8_t *p, int i)
{
    return i < 16 ? p[i] & 15 : p[i - 16] >> 4;
}

static int k_code(dsv4_type type, const uint8_t *p, int i)
{
    int half = i / 128, quarter = i % 128 / 32, l = i % 32;
    int pair = i / 64, high = i % 64 / 32;
    switch (type) {
    case DSV4_Q2_K: /* scales[16], qs[64], d, dmin */
        return p[16 + 32 * half + l] >> 2 * quarter & 3;
    case DSV4_Q3_K: /* hmask[32], qs[64], scales[12], d */
        return (p[32 + 32 * half + l] >> 2 * quarter & 3) | (p[l] >> (4 * half + quarter) & 1) << 2;
    case DSV4_Q4_K: /* d, dmin, scales[12], qs[128] */
        return p[16 + 32 * pair + l] >> 4 * high & 15;
    case DSV4_Q5_K: /* d, dmin, scales[12], qh[32], qs[128] */
        return (p[48 + 32 * pair + l] >> 4 * high & 15) | (p[16 + l] >> (2 * pair + high) & 1) << 4;
    case DSV4_Q6_K: /* ql[128], qh[64], scales[16], d */
        return (p[64 * half + 32 * (quarter & 1) + l] >> 4 * (quarter >> 1) & 15) |
               (p[128 + 32 * half + l] >> 2 * quarter & 3) << 4;
    default: /* Q8_K: d, q[256] */
        return (int8_t)p[4 + i];
    }
}

static int i_code(dsv4_type type, const uint8_t *p, int i)
{
    int g = i / 8, quad = i / 4;
    switch (type) {
    case DSV4_IQ1_S: /* d, qs[32], qh[8] of 16 bits */
        return p[2 + g] | ((p[34 + 2 * (g / 4)] | p[35 + 2 * (g / 4)] << 8) >> 3 * (g % 4) & 7)
                              << 8;
    case DSV4_IQ1_M: /* qs[32], qh[16], scales[8] */
        return p[g] | (p[32 + g / 2] >> 4 * (g % 2) & 7) << 8;
    case DSV4_IQ2_XXS: /* d, then 4 indices and 4 bytes of signs and scale per 32 columns */
        return p[2 + 8 * (g / 4) + g % 4];
    case DSV4_IQ2_XS: /* d, qs[32] of 16 bits, scales[8] */
        return (p[2 + 2 * g] | p[3 + 2 * g] << 8) & 511;
    case DSV4_IQ2_S: /* d, qs[32], signs[32], qh[8], scales[8] */
        return p[2 + g] | (p[66 + g / 4] >> 2 * (g % 4) & 3) << 8;
    case DSV4_IQ3_XXS: /* d, qs[64], signs and scales */
        return p[2 + quad];
    default: /* IQ3_S: d, qs[64], qh[8], signs[32], scales[4] */
        return p[2 + quad] | (p[66 + quad / 8] >> quad % 8 & 1) << 8;
    }
}

int quants_code(const dsv4_format *f, const quants_rows *rows, int64_t row, int column)
{
    const uint8_t *p = rows->raw + (size_t)row * rows->bytes;
    int i = column % f->block;
    p += column / f->block * f->block_bytes;
    switch (f->type) {
    case DSV4_FP8:
    case DSV4_MLX8:
        return p[0];
    case DSV4_FP4:
    case DSV4_MLX4:
        return p[0] >> 4 * i & 15;
    case DSV4_Q4_0:
    case DSV4_IQ4_NL:
        return halves(p + 2, i);
    case DSV4_MXFP4:
        return halves(p + 1, i);
    case DSV4_Q4_1:
        return halves(p + 4, i);
    case DSV4_Q5_0:
        return halves(p + 6, i) | (p[2 + i / 8] >> i % 8 & 1) << 4;
    case DSV4_Q5_1:
        return halves(p + 8, i) | (p[4 + i / 8] >> i % 8 & 1) << 4;
    case DSV4_Q8_0:
        return (int8_t)p[2 + i];
    case DSV4_IQ4_XS: /* d, scales_h, scales_l[4], qs[128] */
        return halves(p + 8 + 16 * (i / 32), i % 32);
    case DSV4_Q2_K:
    case DSV4_Q3_K:
    case DSV4_Q4_K:
    case DSV4_Q5_K:
    case DSV4_Q6_K:
    case DSV4_Q8_K:
        return k_code(f->type, p, i);
    case DSV4_IQ1_S:
    case DSV4_IQ1_M:
    case DSV4_IQ2_XXS:
    case DSV4_IQ2_XS:
    case DSV4_IQ2_S:
    case DSV4_IQ3_XXS:
    case DSV4_IQ3_S:
        return i_code(f->type, p, i);
    default:
        return -1;
    }
}

quants_scale_kind quants_scale_at(const dsv4_format *f, const quants_rows *rows, int64_t row,
                                  int column, unsigned *bits)
{
    const uint8_t *p = rows->raw + (size_t)row * rows->bytes;
    p += column / f->block * f->block_bytes;
    switch (f->type) {
    case DSV4_FP8:
    case DSV4_FP4:
        *bits = rows->scale[(size_t)row * rows->scale_bytes + (size_t)(column / rows->group)];
        return QUANTS_SCALE_E8M0;
    case DSV4_MXFP4:
        *bits = p[0];
        return QUANTS_SCALE_E8M0;
    case DSV4_Q2_K: /* before the minimum's */
        p += f->block_bytes - 4;
        break;
    case DSV4_Q3_K:
    case DSV4_Q6_K:
        p += f->block_bytes - 2;
        break;
    case DSV4_Q4_0:
    case DSV4_Q4_1:
    case DSV4_Q5_0:
    case DSV4_Q5_1:
    case DSV4_Q8_0:
    case DSV4_Q4_K:
    case DSV4_Q5_K:
    case DSV4_IQ1_S:
    case DSV4_IQ2_XXS:
    case DSV4_IQ2_XS:
    case DSV4_IQ2_S:
    case DSV4_IQ3_XXS:
    case DSV4_IQ3_S:
    case DSV4_IQ4_NL:
    case DSV4_IQ4_XS:
        break;
    default: /* IQ1_M scatters its scale, the others have none or a float */
        return QUANTS_SCALE_NONE;
    }
    *bits = (unsigned)p[0] | (unsigned)p[1] << 8;
    return QUANTS_SCALE_F16;
}

bool quants_affine(const float *values, const int *codes, int n, double *scale, double *offset)
{
    int low = 0, high = 0;
    double largest = 0;
    for (int i = 0; i < n; i++) {
        if (!isfinite(values[i]))
            return false;
        if (codes[i] < codes[low])
            low = i;
        if (codes[i] > codes[high])
            high = i;
        largest = fmax(largest, fabs((double)values[i]));
    }
    if (codes[low] == codes[high])
        return false;
    *scale = ((double)values[high] - (double)values[low]) / (codes[high] - codes[low]);
    *offset = (double)values[low] - *scale * codes[low];
    /* Values are rounded to float32 once or twice; a code more is at least 1/256 of the range. */
    for (int i = 0; i < n; i++)
        if (fabs(*scale * codes[i] + *offset - (double)values[i]) > 0x1p-18 * largest)
            return false;
    return true;
}
