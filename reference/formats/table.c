/* table.c - the table of formats, and the loops that every block format shares. */
#include <string.h>

#include "blocks.h"

#define DSV4_ROW_OF(T) [DSV4_##T] = &dsv4_format_##T,
static const dsv4_format *const formats[DSV4_TYPE_COUNT] = {DSV4_FORMAT_LIST(DSV4_ROW_OF)};
#undef DSV4_ROW_OF

const dsv4_format *dsv4_format_of(dsv4_type type)
{
    /* Out of range is a caller's bug; NULL makes it a clean crash rather than a wild read. */
    return (unsigned)type < DSV4_TYPE_COUNT ? formats[type] : NULL;
}

const dsv4_format *dsv4_format_by_name(const char *name)
{
    for (int i = 0; name && i < DSV4_TYPE_COUNT; i++) {
        if (strcmp(formats[i]->name, name) == 0)
            return formats[i];
    }
    return NULL;
}

const dsv4_format *dsv4_format_by_ggml(int64_t ggml_type)
{
    if (ggml_type < 0)
        return NULL; /* -1 marks the types GGUF does not have */
    for (int i = 0; i < DSV4_TYPE_COUNT; i++) {
        if (formats[i]->ggml_type == ggml_type)
            return formats[i];
    }
    return NULL;
}

size_t dsv4_format_row_bytes(const dsv4_format *f, int64_t n)
{
    return (size_t)(n / f->block) * (size_t)f->block_bytes;
}

/* ---- loops over blocks ------------------------------------------------------------------- */

static void block_values(const dsv4_unpacked *u, int block, float *out)
{
    for (int g = 0; g * u->sub < block; g++) {
        float scale = u->d * (float)u->scale[g]; /* exact unless d is not finite */
        const int8_t *q = u->q + g * u->sub;
        float *o = out + g * u->sub;
        if (u->has_min) {
            float min = u->dmin * (float)u->min[g];
            for (int i = 0; i < u->sub; i++)
                o[i] = scale * (float)q[i] - min;
        } else {
            /* No subtraction of a zero here: it would lose NaN-free infinities (inf - 0 * inf). */
            for (int i = 0; i < u->sub; i++)
                o[i] = scale * (float)q[i];
        }
    }
}

void dsv4_blocks_decode(const dsv4_block_layout *l, const dsv4_row *row, int64_t n, float *out)
{
    const uint8_t *p = row->data;
    dsv4_unpacked u;
    for (int64_t i = 0; i < n; i += l->block, p += l->bytes) {
        l->unpack(p, &u);
        block_values(&u, l->block, out + i);
    }
}

double dsv4_blocks_dot(const dsv4_block_layout *l, const dsv4_row *row, int64_t n, const float *x)
{
    const uint8_t *p = row->data;
    dsv4_unpacked u;
    float values[DSV4_QK];
    double sum = 0;
    for (int64_t i = 0; i < n; i += l->block, p += l->bytes) {
        l->unpack(p, &u);
        block_values(&u, l->block, values);
        for (int j = 0; j < l->block; j++)
            sum += (double)values[j] * (double)x[i + j];
    }
    return sum;
}

/* Inside a block everything is integer and exact: |q| <= 128, |scale| <= 128, so 256 columns stay
 * below 2^30. Only the factors of the blocks round; their products are summed in double, so the
 * result is within one float32 rounding of the exact product of the rounded operands. */
static int32_t group_product(const int8_t *q, const int8_t *a, int n)
{
    int32_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += (int32_t)q[i] * (int32_t)a[i];
    return sum;
}

float dsv4_blocks_dot_q8_0(const dsv4_block_layout *l, const dsv4_row *row, int64_t n,
                           const void *act)
{
    const uint8_t *p = row->data, *a = act;
    dsv4_unpacked u;
    double sum = 0;
    for (int64_t i = 0; i < n; i += l->block, p += l->bytes, a += DSV4_Q8_0_BYTES) {
        int8_t aq[32];
        l->unpack(p, &u);
        memcpy(aq, a + 2, sizeof aq);
        double da = dsv4_load_f16(a);
        sum += (double)u.d * (double)u.scale[0] * da * (double)group_product(u.q, aq, 32);
        if (u.has_min) {
            int32_t total = 0;
            for (int j = 0; j < 32; j++)
                total += aq[j];
            sum -= (double)u.dmin * (double)u.min[0] * da * (double)total;
        }
    }
    return (float)sum;
}

float dsv4_blocks_dot_q8_k(const dsv4_block_layout *l, const dsv4_row *row, int64_t n,
                           const void *act)
{
    const uint8_t *p = row->data, *a = act;
    dsv4_unpacked u;
    double sum = 0;
    for (int64_t i = 0; i < n; i += l->block, p += l->bytes, a += DSV4_Q8_K_BYTES) {
        int8_t aq[DSV4_QK];
        int16_t sums[16];
        float da;
        l->unpack(p, &u);
        memcpy(&da, a, sizeof da);
        memcpy(aq, a + 4, sizeof aq);
        memcpy(sums, a + DSV4_Q8_K_SUMS, sizeof sums);
        int32_t product = 0, minima = 0;
        for (int g = 0; g * u.sub < DSV4_QK; g++) {
            product += (int32_t)u.scale[g] * group_product(u.q + g * u.sub, aq + g * u.sub, u.sub);
            /* The stored sums of 16 activations are what engines multiply the minima with. */
            for (int s = 0; u.has_min && s < u.sub / 16; s++)
                minima += (int32_t)u.min[g] * (int32_t)sums[g * (u.sub / 16) + s];
        }
        sum += (double)u.d * (double)da * (double)product;
        if (u.has_min)
            sum -= (double)u.dmin * (double)da * (double)minima;
    }
    return (float)sum;
}
