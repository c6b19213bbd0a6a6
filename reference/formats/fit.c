/* fit.c - the searches for a group's scale that the encoders share.
 *
 * These are the same searches as ggml's quantisers do, step for step and with float32 roundings in
 * the same places, so that a file encoded here has the bytes of one encoded there. That is why sums
 * are float, why products are grouped as they are, and why no tie is broken in a nicer way. */
#include "fit.h"

#include <math.h>
#include <string.h>

#include "blocks.h"

int dsv4_fit_nearest(float v)
{
    float shifted = v + 12582912.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return (int)(bits & 0x007fffffu) - 0x00400000;
}

int8_t dsv4_fit_byte(float v)
{
    if (!(v > -2147483648.0f && v < 2147483648.0f))
        return 0;
    uint8_t low = (uint8_t)((uint32_t)(int32_t)v & 255u);
    int8_t byte;
    memcpy(&byte, &low, 1);
    return byte;
}

float dsv4_fit_sum(const float *x, int n)
{
    float sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i];
    return sum;
}

float dsv4_fit_sum_squares(const float *x, int64_t n)
{
    float sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    return sum;
}

void dsv4_fit_weights(int n, const float *x, const float *importance, float sigma2, float *weight)
{
    for (int i = 0; i < n; i++)
        weight[i] = importance[i] * sqrtf(sigma2 + x[i] * x[i]);
}

/* The value of largest magnitude, the first one if several; 0 if all are below DSV4_FIT_TINY. */
static float extreme(int n, const float *x)
{
    float max = 0, amax = 0;
    for (int i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        if (a > amax) {
            amax = a;
            max = x[i];
        }
    }
    return amax < DSV4_FIT_TINY ? 0 : max;
}

/* ---- signed ------------------------------------------------------------------------------ */

static int signed_code(float v, int top)
{
    return dsv4_clamp(dsv4_fit_nearest(v), -top, top - 1);
}

/* The sums that give a scale's best fit: sum w x l and sum w l^2. */
typedef struct {
    float xl, l2;
} fit_sums;

static fit_sums signed_sums(int n, int top, const float *x, const float *w, float inverse)
{
    fit_sums s = {0, 0};
    for (int i = 0; i < n; i++) {
        float l = (float)signed_code(inverse * x[i], top);
        float weight = w ? w[i] : x[i] * x[i];
        s.xl += weight * x[i] * l;
        s.l2 += weight * l * l;
    }
    return s;
}

float dsv4_fit_signed(int n, int top, const float *x, const float *w, uint8_t *q)
{
    float max = extreme(n, x);
    if (max == 0) {
        memset(q, 0, (size_t)n);
        return 0;
    }
    /* The extreme goes to -top, where there is one level more than on the positive side. */
    float best_inverse = (float)-top / max;
    fit_sums s = signed_sums(n, top, x, w, best_inverse);
    float scale = s.l2 != 0 ? s.xl / s.l2 : 0;
    /* (sum w x l)^2 / sum w l^2 is what the fit takes off the error: larger is better. */
    float best = scale * s.xl;
    for (int k = -9; k <= 9; k++) {
        if (k == 0)
            continue;
        float inverse = -((float)top + 0.1f * (float)k) / max;
        s = signed_sums(n, top, x, w, inverse);
        if (s.l2 > 0 && s.xl * s.xl > best * s.l2) {
            best_inverse = inverse;
            scale = s.xl / s.l2;
            best = scale * s.xl;
        }
    }
    for (int i = 0; i < n; i++)
        q[i] = (uint8_t)(signed_code(best_inverse * x[i], top) + top);
    return scale;
}

float dsv4_fit_signed_descent(int n, int top, const float *x, uint8_t *q)
{
    float max = extreme(n, x);
    if (max == 0) {
        memset(q, 0, (size_t)n);
        return 0;
    }
    int code[DSV4_FIT_MAX];
    fit_sums s = {0, 0};
    float inverse = (float)-top / max;
    for (int i = 0; i < n; i++) {
        code[i] = signed_code(inverse * x[i], top);
        float l = (float)code[i], w = x[i] * x[i];
        s.xl += w * x[i] * l;
        s.l2 += w * l * l;
    }
    for (int round = 0, changed = 1; round < 5 && changed; round++) {
        changed = 0;
        for (int i = 0; i < n; i++) {
            float w = x[i] * x[i], l = (float)code[i];
            fit_sums t = {s.xl - w * x[i] * l, 0};
            if (!(t.xl > 0))
                continue;
            t.l2 = s.l2 - w * l * l;
            int other = signed_code(x[i] * t.l2 / t.xl, top);
            if (other == code[i])
                continue;
            l = (float)other;
            t.xl += w * x[i] * l;
            t.l2 += w * l * l;
            if (t.l2 > 0 && t.xl * t.xl * s.l2 > s.xl * s.xl * t.l2) {
                code[i] = other;
                s = t;
                changed = 1;
            }
        }
    }
    for (int i = 0; i < n; i++)
        q[i] = (uint8_t)(code[i] + top);
    return s.l2 > 0 ? s.xl / s.l2 : 0;
}

/* ---- unsigned ---------------------------------------------------------------------------- */

static float unsigned_error(int n, int top, const float *x, const float *w, float inverse,
                            bool clamped)
{
    float scale = 1 / inverse, error = 0;
    for (int i = 0; i < n; i++) {
        int l = dsv4_fit_nearest(inverse * x[i]);
        /* The first scale is not clamped but stored in a byte, as in the original. */
        l = clamped ? (l < top ? l : top) : (uint8_t)l;
        float diff = x[i] - scale * (float)l;
        error += w[i] * diff * diff;
    }
    return error;
}

float dsv4_fit_unsigned(int n, int top, const float *x, const float *w, uint8_t *q)
{
    float max = 0;
    for (int i = 0; i < n; i++)
        max = max > x[i] ? max : x[i];
    if (max < DSV4_FIT_TINY) {
        memset(q, 0, (size_t)n);
        return 0;
    }
    float inverse = (float)top / max, best = unsigned_error(n, top, x, w, inverse, false);
    for (int k = -4; k <= 4; k++) {
        if (k == 0)
            continue;
        float other = (0.1f * (float)k + (float)top) / max;
        float error = unsigned_error(n, top, x, w, other, true);
        if (error < best) {
            best = error;
            inverse = other;
        }
    }
    fit_sums s = {0, 0};
    for (int i = 0; i < n; i++) {
        int l = dsv4_fit_nearest(inverse * x[i]);
        l = l < top ? l : top;
        q[i] = (uint8_t)l;
        s.xl += w[i] * x[i] * (float)l;
        s.l2 += w[i] * (float)l * (float)l;
    }
    for (int round = 0, changed = 1; round < 5 && changed; round++) {
        changed = 0;
        for (int i = 0; i < n; i++) {
            float l = (float)q[i];
            fit_sums t = {s.xl - w[i] * x[i] * l, s.l2 - w[i] * l * l};
            if (!(t.xl > 0 && t.l2 > 0))
                continue;
            int other = dsv4_fit_nearest(x[i] * t.l2 / t.xl);
            other = other < top ? other : top;
            if (other == q[i])
                continue;
            l = (float)other;
            t.xl += w[i] * x[i] * l;
            t.l2 += w[i] * l * l;
            if (t.xl * t.xl * s.l2 > s.xl * s.xl * t.l2) {
                q[i] = (uint8_t)other;
                s = t;
                changed = 1;
            }
        }
    }
    return s.l2 > 0 ? s.xl / s.l2 : 0;
}

/* ---- affine ------------------------------------------------------------------------------ */

/* nearest(v) clamped to [0, top], also for v that is infinite or NaN. */
static uint8_t affine_code(float v, int top)
{
    if (!(v > 0))
        return 0;
    return (uint8_t)(v < (float)top ? dsv4_fit_nearest(v) : top);
}

static float affine_error(int n, const float *x, const float *w, const uint8_t *q, float scale,
                          float min, bool absolute)
{
    float error = 0;
    for (int i = 0; i < n; i++) {
        float diff = scale * (float)q[i] + min - x[i];
        diff = absolute ? fabsf(diff) : diff * diff;
        error += w[i] * diff;
    }
    return error;
}

float dsv4_fit_affine(int n, int top, const float *x, const float *w, const dsv4_fit_range *range,
                      uint8_t *q, float *min)
{
    float lo = x[0], hi = x[0], sum_w = w[0], sum_x = sum_w * x[0];
    for (int i = 1; i < n; i++) {
        lo = x[i] < lo ? x[i] : lo;
        hi = x[i] > hi ? x[i] : hi;
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    if (lo > 0)
        lo = 0; /* the minimum is stored without a sign */
    if (hi <= lo) {
        memset(q, 0, (size_t)n);
        *min = -lo;
        return 0;
    }
    float inverse = (float)top / (hi - lo), scale = 1 / inverse;
    for (int i = 0; i < n; i++)
        q[i] = (uint8_t)dsv4_clamp(dsv4_fit_nearest(inverse * (x[i] - lo)), 0, top);
    float best = affine_error(n, x, w, q, scale, lo, range->absolute);

    for (int k = 0; k <= range->steps; k++) {
        uint8_t l[DSV4_FIT_MAX];
        float sum_l = 0, sum_l2 = 0, sum_xl = 0;
        /* Both ends of the range move as better fits are found: that is the original's search. */
        inverse = (range->first + range->step * (float)k + (float)top) / (hi - lo);
        for (int i = 0; i < n; i++) {
            l[i] = affine_code(inverse * (x[i] - lo), top);
            float f = (float)l[i];
            sum_l += w[i] * f;
            sum_l2 += w[i] * f * f;
            sum_xl += w[i] * f * x[i];
        }
        float determinant = sum_w * sum_l2 - sum_l * sum_l;
        if (!(determinant > 0))
            continue;
        float this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        float this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        if (this_min > 0) {
            this_min = 0;
            this_scale = sum_xl / sum_l2;
        }
        float error = affine_error(n, x, w, l, this_scale, this_min, range->absolute);
        if (error < best) {
            memcpy(q, l, (size_t)n);
            best = error;
            scale = this_scale;
            lo = this_min;
        }
    }
    *min = -lo;
    return scale;
}
