/* k_quants.h - the layouts of the K quants (private to formats/): offsets into a block. */
#ifndef DSV4_FORMATS_K_QUANTS_H
#define DSV4_FORMATS_K_QUANTS_H

#include <stdint.h>

enum {
    /* 16 bytes of 4-bit scales and minima, codes, f16 d, f16 dmin */
    Q2_K_QS = 16,
    Q2_K_D = 80,
    Q2_K_BYTES = 84,
    /* third bits, low two bits, 12 bytes of 6-bit scales, f16 d */
    Q3_K_QS = 32,
    Q3_K_SCALES = 96,
    Q3_K_D = 108,
    Q3_K_BYTES = 110,
    /* f16 d, f16 dmin, 12 bytes of 6-bit scales and minima, codes */
    Q4_K_SCALES = 4,
    Q4_K_QS = 16,
    Q4_K_BYTES = 144,
    /* as Q4_K, with the fifth bits before the codes */
    Q5_K_QH = 16,
    Q5_K_QS = 48,
    Q5_K_BYTES = 176,
    /* low four bits, high two bits, int8 scales, f16 d */
    Q6_K_QH = 128,
    Q6_K_SCALES = 192,
    Q6_K_D = 208,
    Q6_K_BYTES = 210,
};

/* Scale and minimum j of 8 from the 12 packed bytes of Q4_K and Q5_K. */
void dsv4_six_bit_scales(const uint8_t *p, int j, uint8_t *scale, uint8_t *min);
/* Scale j of 16, in [-32, 31], from the 12 packed bytes of Q3_K. */
int dsv4_q3_k_scale(const uint8_t *p, int j);

#endif
