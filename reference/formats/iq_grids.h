/* iq_grids.h - the code books of the i-quants (private to formats/). */
#ifndef DSV4_FORMATS_IQ_GRIDS_H
#define DSV4_FORMATS_IQ_GRIDS_H

#include <stdint.h>

enum {
    DSV4_IQ1_S_GRID = 2048,
    DSV4_IQ2_XXS_GRID = 256,
    DSV4_IQ2_XS_GRID = 512,
    DSV4_IQ2_S_GRID = 1024,
    DSV4_IQ3_XXS_GRID = 256,
    DSV4_IQ3_S_GRID = 512,
    DSV4_TERNARY_CODES = 6561, /* 3^8 */
};

/* Base 3: 8 columns of the levels 0, 1, 2. IQ1_M shares the book of IQ1_S. */
extern const uint16_t dsv4_iq1_s_grid[DSV4_IQ1_S_GRID];
extern const uint16_t dsv4_iq2_xxs_grid[DSV4_IQ2_XXS_GRID];
extern const uint16_t dsv4_iq2_xs_grid[DSV4_IQ2_XS_GRID];
extern const uint16_t dsv4_iq2_s_grid[DSV4_IQ2_S_GRID];
/* Base 8: 4 columns of the levels 0..7. */
extern const uint16_t dsv4_iq3_xxs_grid[DSV4_IQ3_XXS_GRID];
extern const uint16_t dsv4_iq3_s_grid[DSV4_IQ3_S_GRID];

/* The levels of a base-3 entry. */
void dsv4_grid_ternary(uint16_t code, uint8_t levels[8]);
/* The place of a combination in a book, -1 = not in it. */
int dsv4_grid_find(const uint16_t *grid, int size, int code);

#endif
