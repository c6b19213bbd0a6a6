/* fit.h - the searches for a group's scale that the encoders share (private to formats/). */
#ifndef DSV4_FORMATS_FIT_H
#define DSV4_FORMATS_FIT_H

#include <stdbool.h>
#include <stdint.h>

/* The largest group any format fits at once. */
enum { DSV4_FIT_MAX = 32 };

/* Groups whose largest magnitude is below this are encoded as zeros. */
#define DSV4_FIT_TINY 1e-15f

/* Rounds to the nearest integer, ties to even, by adding 1.5 * 2^23: exact up to 2^22. Beyond that,
 * and for NaN, the low bits of the sum come back: defined, meaningless, and the same as ggml's. */
int dsv4_fit_nearest(float v);

/* v as x86 converts a float to a byte: toward zero, the low eight bits of the 32-bit result, and 0
 * for what does not fit in 32 bits or is NaN. Plain casts would be undefined there. */
int8_t dsv4_fit_byte(float v);

/* x ~ scale * (q - top), q in [0, 2 top): weighted squares; w NULL = x^2. Tries 18 scales beside
 * the one that takes the extreme to -top. Returns the scale. */
float dsv4_fit_signed(int n, int top, const float *x, const float *w, uint8_t *q);

/* The same without a list of scales: from one start, code by code while the error falls. The
 * weights are x^2. */
float dsv4_fit_signed_descent(int n, int top, const float *x, uint8_t *q);

/* x ~ scale * q with x, q >= 0, q <= top: for scales of scales. */
float dsv4_fit_unsigned(int n, int top, const float *x, const float *w, uint8_t *q);

typedef struct {
    float first, step; /* the scales tried: (top + first + k step) / range, k = 0..steps */
    int steps;
    bool absolute; /* weigh |error| instead of its square */
} dsv4_fit_range;

/* x ~ scale * q - *min, q in [0, top], *min >= 0. Returns the scale. */
float dsv4_fit_affine(int n, int top, const float *x, const float *w, const dsv4_fit_range *range,
                      uint8_t *q, float *min);

/* weight[i] = importance[i] * sqrt(sigma2 + x[i]^2): an error at a large value counts more. */
void dsv4_fit_weights(int n, const float *x, const float *importance, float sigma2, float *weight);

/* The sums in float32 and in this order: the weights are built from them. */
float dsv4_fit_sum(const float *x, int n);
float dsv4_fit_sum_squares(const float *x, int64_t n);

#endif
