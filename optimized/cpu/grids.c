/* grids.c - the look-up tables that the kernels share, made from the formats' own code books. */
#include <math.h>

#include "cpu.h"
#include "reference/formats/formats.h"
#include "reference/formats/iq_grids.h"

dsv4_grids dsv4_cpu_grids;

/* The levels of an entry as eight bytes, the first column lowest. */
static uint64_t spread(uint16_t code, const uint8_t values[3])
{
    uint8_t level[8];
    uint64_t bytes = 0;
    dsv4_grid_ternary(code, level);
    for (int i = 0; i < 8; i++)
        bytes |= (uint64_t)values[level[i]] << 8 * i;
    return bytes;
}

static uint16_t pack(uint16_t code)
{
    uint8_t level[8];
    unsigned bits = 0;
    dsv4_grid_ternary(code, level);
    for (int i = 0; i < 8; i++)
        bits |= (unsigned)level[i] << 2 * i;
    return (uint16_t)bits;
}

void dsv4_cpu_grids_fill(void)
{
    static const uint8_t iq2[3] = {8, 25, 43}, iq1[3] = {0, 1, 2};
    dsv4_grids *g = &dsv4_cpu_grids;
    for (int i = 0; i < 256; i++) {
        g->iq2_xxs[i] = spread(dsv4_iq2_xxs_grid[i], iq2);
        g->iq2_xxs_packed[i] = pack(dsv4_iq2_xxs_grid[i]);
        g->mxfp4_scale[i] = (float)ldexp(1.0, i - 128);
        g->e8m0[i] = dsv4_e8m0_to_f32((uint8_t)i);
    }
    for (int i = 0; i < 2048; i++)
        g->iq1_s[i] = spread(dsv4_iq1_s_grid[i], iq1);
    for (unsigned i = 0; i < 128; i++) {
        unsigned parity = i ^ i >> 4;
        parity ^= parity >> 2;
        parity ^= parity >> 1;
        g->even_signs[i] = (uint8_t)(i | (parity & 1u) << 7);
    }
}
