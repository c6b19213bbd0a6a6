/* grids.c - the code book of IQ2_XXS as the kernels want it, from the reference's. */
#include "reference/formats/iq_grids.h"

#include "tables.h"

static const uint8_t iq2_levels[3] = {8, 25, 43};

void cu_iq2_xxs_book(uint64_t book[256])
{
    for (int i = 0; i < DSV4_IQ2_XXS_GRID; i++) {
        uint8_t levels[8];
        dsv4_grid_ternary(dsv4_iq2_xxs_grid[i], levels);
        book[i] = 0;
        for (int k = 0; k < 8; k++)
            book[i] |= (uint64_t)iq2_levels[levels[k]] << 8 * k;
    }
}

void cu_iq2_xxs_words(uint32_t *words, int book_copies, int sign_copies)
{
    for (int i = 0; i < DSV4_IQ2_XXS_GRID; i++) {
        uint8_t levels[8];
        uint32_t word = 0;
        dsv4_grid_ternary(dsv4_iq2_xxs_grid[i], levels);
        for (int k = 0; k < 8; k++)
            word |= (uint32_t)levels[k] << 4 * k;
        for (int c = 0; c < book_copies; c++)
            words[i * book_copies + c] = word;
    }
    uint32_t *signs = words + 256 * book_copies;
    for (uint32_t i = 0; i < 128; i++) {
        uint32_t ones = 0, word = 0;
        for (int k = 0; k < 7; k++)
            ones += i >> k & 1u;
        uint32_t bits = i | (ones & 1u) << 7; /* their number is even */
        for (int k = 0; k < 8; k++)
            word |= (bits >> k & 1u) << (4 * k + 2);
        for (int c = 0; c < sign_copies; c++)
            signs[i * (uint32_t)sign_copies + (uint32_t)c] = word;
    }
}
