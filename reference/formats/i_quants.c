/* i_quants.c - the i-quants: groups of columns taken from code books, their signs and scales apart.
 *
 * Unpacked, a column is book value times sign, and the block's d takes the fraction: ggml writes
 * d * (0.5 + s) * 0.25, which is (d / 8) * (2 s + 1) exactly, and so on. Not one of these products
 * needs more than float32's 24 bits, so decoding never rounds. */
#include "blocks.h"
#include "iq_grids.h"

static const int8_t iq2_values[3] = {8, 25, 43};
static const int8_t iq3_xxs_values[8] = {4, 12, 20, 28, 36, 44, 52, 62};

/* The 16 levels of IQ4_NL and IQ4_XS: denser towards zero. */
static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};

/* Eight signs stored in seven bits: their number is even, so the eighth follows. */
static uint8_t even_signs(uint32_t seven)
{
    uint32_t s = seven & 127u, parity = s ^ (s >> 4);
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return (uint8_t)(s | (parity & 1u) << 7);
}

static void iq2_group(const uint16_t *grid, unsigned index, uint8_t signs, int8_t *q)
{
    uint8_t levels[8];
    dsv4_grid_ternary(grid[index], levels);
    for (int i = 0; i < 8; i++) {
        int8_t v = iq2_values[levels[i]];
        q[i] = (int8_t)(signs >> i & 1 ? -v : v);
    }
}

static void iq3_xxs_group(unsigned index, unsigned signs, int8_t *q)
{
    for (int i = 0; i < 4; i++) {
        int8_t v = iq3_xxs_values[dsv4_iq3_xxs_grid[index] >> 3 * i & 7];
        q[i] = (int8_t)(signs >> i & 1 ? -v : v);
    }
}

static void iq3_s_group(unsigned index, unsigned signs, int8_t *q)
{
    for (int i = 0; i < 4; i++) {
        int v = 2 * (dsv4_iq3_s_grid[index] >> 3 * i & 7) + 1;
        q[i] = (int8_t)(signs >> i & 1 ? -v : v);
    }
}

/* ---- two bits ---------------------------------------------------------------------------- */

/* f16 d; for each 32 columns four book indices, then 4 x 7 sign bits and a 4-bit scale. */
static void iq2_xxs_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    u->d = dsv4_load_f16(block) * 0.125f;
    u->has_min = false;
    u->sub = 32;
    for (int g = 0; g < 8; g++) {
        const uint8_t *p = block + 2 + 8 * g;
        uint32_t word = dsv4_load32(p + 4);
        u->scale[g] = (int16_t)(2 * (word >> 28) + 1);
        for (int k = 0; k < 4; k++)
            iq2_group(dsv4_iq2_xxs_grid, p[k], even_signs(word >> 7 * k), u->q + 32 * g + 8 * k);
    }
}

/* f16 d; 32 words of 9 index and 7 sign bits; 8 bytes of two 4-bit scales (16 columns each). */
static void iq2_xs_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    u->d = dsv4_load_f16(block) * 0.125f;
    u->has_min = false;
    u->sub = 16;
    for (int g = 0; g < 32; g++) {
        uint16_t word = dsv4_load16(block + 2 + 2 * g);
        iq2_group(dsv4_iq2_xs_grid, word & 511u, even_signs(word >> 9), u->q + 8 * g);
    }
    for (int s = 0; s < 16; s++) {
        int scale = block[66 + s / 2] >> 4 * (s % 2) & 15;
        u->scale[s] = (int16_t)(2 * scale + 1);
    }
}

/* f16 d; 32 low index bytes; 32 sign bytes; 8 bytes of 2-bit high parts; 8 bytes of scales. */
static void iq2_s_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    const uint8_t *low = block + 2, *signs = low + 32, *high = signs + 32, *scales = high + 8;
    u->d = dsv4_load_f16(block) * 0.125f;
    u->has_min = false;
    u->sub = 16;
    for (int g = 0; g < 32; g++) {
        unsigned index = low[g] | (unsigned)(high[g / 4] >> 2 * (g % 4) & 3) << 8;
        iq2_group(dsv4_iq2_s_grid, index, signs[g], u->q + 8 * g);
    }
    for (int s = 0; s < 16; s++)
        u->scale[s] = (int16_t)(2 * (scales[s / 2] >> 4 * (s % 2) & 15) + 1);
}

/* ---- three bits -------------------------------------------------------------------------- */

/* f16 d; 64 indices; for each 32 columns 4 x 7 sign bits and a 4-bit scale. */
static void iq3_xxs_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    u->d = dsv4_load_f16(block) * 0.25f;
    u->has_min = false;
    u->sub = 32;
    for (int g = 0; g < 8; g++) {
        const uint8_t *index = block + 2 + 8 * g;
        uint32_t word = dsv4_load32(block + 66 + 4 * g);
        u->scale[g] = (int16_t)(2 * (word >> 28) + 1);
        for (int k = 0; k < 4; k++) {
            uint8_t signs = even_signs(word >> 7 * k);
            int8_t *q = u->q + 32 * g + 8 * k;
            iq3_xxs_group(index[2 * k], signs, q);
            iq3_xxs_group(index[2 * k + 1], (unsigned)signs >> 4, q + 4);
        }
    }
}

/* f16 d; 64 low index bytes; 8 bytes of ninth bits; 32 sign bytes; 4 bytes of two scales. */
static void iq3_s_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    const uint8_t *low = block + 2, *high = low + 64, *signs = high + 8, *scales = signs + 32;
    u->d = dsv4_load_f16(block);
    u->has_min = false;
    u->sub = 32;
    for (int g = 0; g < 64; g++) {
        unsigned index = low[g] | (unsigned)(high[g / 8] >> (g % 8) & 1) << 8;
        iq3_s_group(index, (unsigned)signs[g / 2] >> 4 * (g % 2), u->q + 4 * g);
    }
    for (int s = 0; s < 8; s++)
        u->scale[s] = (int16_t)(2 * (scales[s / 2] >> 4 * (s % 2) & 15) + 1);
}

/* ---- one bit ----------------------------------------------------------------------------- */

/* Levels -1, 0, 1, all shifted by +-1/8: in eighths 8 * level +- 1, the eighth moved into d. */
static void iq1_group(unsigned index, bool minus, int8_t *q)
{
    uint8_t levels[8];
    dsv4_grid_ternary(dsv4_iq1_s_grid[index], levels);
    for (int i = 0; i < 8; i++)
        q[i] = (int8_t)(8 * ((int)levels[i] - 1) + (minus ? -1 : 1));
}

/* f16 d; 32 low index bytes; for each 32 columns a word: 4 x 3 high index bits, a 3-bit scale and
 * the sign of the shift. */
static void iq1_s_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    u->d = dsv4_load_f16(block) * 0.125f;
    u->has_min = false;
    u->sub = 32;
    for (int g = 0; g < 8; g++) {
        uint16_t word = dsv4_load16(block + 34 + 2 * g);
        u->scale[g] = (int16_t)(2 * (word >> 12 & 7) + 1);
        for (int k = 0; k < 4; k++) {
            unsigned index = block[2 + 4 * g + k] | (unsigned)(word >> 3 * k & 7) << 8;
            iq1_group(index, word & 0x8000u, u->q + 32 * g + 8 * k);
        }
    }
}

/* 32 low index bytes; 16 bytes of two nibbles: 3 high index bits and the sign of the shift; four
 * words of 4 x 3-bit scales (16 columns each), whose top nibbles together are the f16 d. */
static void iq1_m_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    uint16_t word[4], d = 0;
    for (int i = 0; i < 4; i++) {
        word[i] = dsv4_load16(block + 48 + 2 * i);
        d = (uint16_t)(d | (unsigned)(word[i] >> 12) << 4 * i);
    }
    u->d = dsv4_f16_to_f32(d) * 0.125f;
    u->has_min = false;
    u->sub = 16;
    for (int s = 0; s < 16; s++)
        u->scale[s] = (int16_t)(2 * (word[s / 4] >> 3 * (s % 4) & 7) + 1);
    for (int g = 0; g < 32; g++) {
        unsigned nibble = block[32 + g / 2] >> 4 * (g % 2) & 15u;
        iq1_group(block[g] | (nibble & 7) << 8, nibble & 8, u->q + 8 * g);
    }
}

/* ---- four bits --------------------------------------------------------------------------- */

/* f16 d, 16 bytes: column i in the low nibbles, column i + 16 in the high ones. */
static void iq4_nl_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    u->d = dsv4_load_f16(block);
    u->has_min = false;
    u->sub = 32;
    u->scale[0] = 1;
    for (int i = 0; i < 16; i++) {
        u->q[i] = iq4_values[block[2 + i] & 15];
        u->q[i + 16] = iq4_values[block[2 + i] >> 4];
    }
}

/* f16 d; 16 bits of high and 4 bytes of low scale parts; 8 times the nibbles of IQ4_NL. */
static void iq4_xs_unpack(const uint8_t *block, dsv4_unpacked *u)
{
    uint16_t high = dsv4_load16(block + 2);
    u->d = dsv4_load_f16(block);
    u->has_min = false;
    u->sub = 32;
    for (int g = 0; g < 8; g++) {
        int low = block[4 + g / 2] >> 4 * (g % 2) & 15;
        u->scale[g] = (int16_t)((low | (high >> 2 * g & 3) << 4) - 32);
        for (int i = 0; i < 16; i++) {
            uint8_t byte = block[8 + 16 * g + i];
            u->q[32 * g + i] = iq4_values[byte & 15];
            u->q[32 * g + i + 16] = iq4_values[byte >> 4];
        }
    }
}

DSV4_BLOCK_FUNCTIONS(iq1_s, DSV4_QK, 50, q8_k)
DSV4_BLOCK_FUNCTIONS(iq1_m, DSV4_QK, 56, q8_k)
DSV4_BLOCK_FUNCTIONS(iq2_xxs, DSV4_QK, 66, q8_k)
DSV4_BLOCK_FUNCTIONS(iq2_xs, DSV4_QK, 74, q8_k)
DSV4_BLOCK_FUNCTIONS(iq2_s, DSV4_QK, 82, q8_k)
DSV4_BLOCK_FUNCTIONS(iq3_xxs, DSV4_QK, 98, q8_k)
DSV4_BLOCK_FUNCTIONS(iq3_s, DSV4_QK, 110, q8_k)
DSV4_BLOCK_FUNCTIONS(iq4_nl, 32, 18, q8_0)
DSV4_BLOCK_FUNCTIONS(iq4_xs, DSV4_QK, 136, q8_k)

const dsv4_format dsv4_format_IQ1_S = {
    .type = DSV4_IQ1_S,
    .name = "IQ1_S",
    .ggml_type = 19,
    .block = DSV4_QK,
    .block_bytes = 50,
    .act_type = DSV4_Q8_K,
    .needs_importance = true,
    .decode = iq1_s_decode,
    .encode = dsv4_encode_iq1_s,
    .dot = iq1_s_dot,
    .dot_act = iq1_s_dot_act,
};

const dsv4_format dsv4_format_IQ2_XXS = {
    .type = DSV4_IQ2_XXS,
    .name = "IQ2_XXS",
    .ggml_type = 16,
    .block = DSV4_QK,
    .block_bytes = 66,
    .act_type = DSV4_Q8_K,
    .needs_importance = true,
    .decode = iq2_xxs_decode,
    .encode = dsv4_encode_iq2_xxs,
    .dot = iq2_xxs_dot,
    .dot_act = iq2_xxs_dot_act,
};

/* The formats this project reads but does not write. */
#define READ_ONLY(T, LOWER, GGML, BLOCK, BYTES, ACT)                                               \
    const dsv4_format dsv4_format_##T = {                                                          \
        .type = DSV4_##T,                                                                          \
        .name = #T,                                                                                \
        .ggml_type = GGML,                                                                         \
        .block = BLOCK,                                                                            \
        .block_bytes = BYTES,                                                                      \
        .act_type = ACT,                                                                           \
        .decode = LOWER##_decode,                                                                  \
        .dot = LOWER##_dot,                                                                        \
        .dot_act = LOWER##_dot_act,                                                                \
    }

READ_ONLY(IQ1_M, iq1_m, 29, DSV4_QK, 56, DSV4_Q8_K);
READ_ONLY(IQ2_XS, iq2_xs, 17, DSV4_QK, 74, DSV4_Q8_K);
READ_ONLY(IQ2_S, iq2_s, 22, DSV4_QK, 82, DSV4_Q8_K);
READ_ONLY(IQ3_XXS, iq3_xxs, 18, DSV4_QK, 98, DSV4_Q8_K);
READ_ONLY(IQ3_S, iq3_s, 21, DSV4_QK, 110, DSV4_Q8_K);
READ_ONLY(IQ4_NL, iq4_nl, 20, 32, 18, DSV4_Q8_0);
READ_ONLY(IQ4_XS, iq4_xs, 23, DSV4_QK, 136, DSV4_Q8_K);
