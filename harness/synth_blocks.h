/* synth_blocks.h - seeded random weights in any format that a recipe writes. */
#ifndef DSV4_SYNTH_BLOCKS_H
#define DSV4_SYNTH_BLOCKS_H

#include "recipes.h"

typedef struct {
    uint64_t seed;
    int64_t experts; /* entries of tid2eid are below it */
    /* Per type, found on first use: the scales that give decoded values of 0.02 rms and mean 0. */
    struct {
        bool known;
        uint16_t d, min; /* f16 (blocks), or in d: bf16 scale, and in min: bf16 bias (MLX) */
        uint8_t e8m0;    /* FP8, FP4, MXFP4 */
    } scales[DSV4_TYPE_COUNT];
    uint8_t *strip; /* bytes on their way to the file */
    uint8_t
        *numbers[DSV4_BF16 + 1][2]; /* encoded values around 0 and around 1, made on first use */
} synth;

dsv4_status synth_init(synth *s, uint64_t seed, int64_t experts, dsv4_error *err);
void synth_free(synth *s);
/* The same seed, weight and encoding give the same bytes, whatever else is made. */
weight_maker synth_maker(synth *s);

#endif
