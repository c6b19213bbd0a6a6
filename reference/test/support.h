/* support.h - what the tests of the operators and of the session share: noise, views, distances. */
#ifndef DSV4_TEST_SUPPORT_H
#define DSV4_TEST_SUPPORT_H

#include <check.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "reference/ops.h"

/* The largest relative error of one rounding to float32. Tolerances are multiples of it: as many
 * roundings as lie between the operator's inputs and its output. */
#define ROUNDING 0x1p-24

#define COUNT_OF(a) (sizeof(a) / sizeof *(a))

/* ---- noise: the same numbers on every machine --------------------------------------------- */

typedef struct {
    uint64_t state;
} noise;

static inline uint32_t noise_bits(noise *r)
{
    r->state = r->state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(r->state >> 32);
}

/* Uniform in [-1, 1), a multiple of 2^-23. */
static inline float noise_float(noise *r)
{
    return (float)((int32_t)(noise_bits(r) >> 8) - (1 << 23)) * 0x1p-23f;
}

static inline int noise_below(noise *r, int n)
{
    return (int)(noise_bits(r) % (uint32_t)n);
}

static inline void noise_fill(uint64_t seed, float *x, int64_t n, float scale)
{
    noise r = {seed * 0x9e3779b97f4a7c15u + 1};
    for (int64_t i = 0; i < n; i++)
        x[i] = noise_float(&r) * scale;
}

static inline float *noise_array(uint64_t seed, int64_t n, float scale)
{
    float *x = malloc((size_t)(n > 0 ? n : 1) * sizeof *x);
    ck_assert_ptr_nonnull(x);
    noise_fill(seed, x, n, scale);
    return x;
}

static inline float *zeros(int64_t n)
{
    float *x = calloc((size_t)(n > 0 ? n : 1), sizeof *x);
    ck_assert_ptr_nonnull(x);
    return x;
}

/* ---- distances ---------------------------------------------------------------------------- */

/* Relative L2 distance of a from b. A NaN anywhere makes it infinite. */
static inline double distance(const float *a, const float *b, int64_t n)
{
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)a[i] - (double)b[i];
        difference += d * d;
        norm += (double)b[i] * (double)b[i];
    }
    if (!isfinite(difference) || !isfinite(norm))
        return INFINITY;
    return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}

/* The largest |a - b|; a NaN anywhere makes it infinite. */
static inline double largest_difference(const float *a, const float *b, int64_t n)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most))
            most = isnan(d) ? INFINITY : d;
    }
    return most;
}

static inline bool same_bits(const void *a, const void *b, int64_t n)
{
    return memcmp(a, b, (size_t)n * 4) == 0;
}

/* |found - expected| <= tolerance * max(1, |expected|) */
#define ASSERT_NEAR(found, expected, tolerance)                                                    \
    do {                                                                                           \
        double found_ = (double)(found), expected_ = (double)(expected);                           \
        double allowed_ = (double)(tolerance)*fmax(1.0, fabs(expected_));                          \
        ck_assert_msg(fabs(found_ - expected_) <= allowed_,                                        \
                      "%s is %.9g, expected %.9g within %.3g", #found, found_, expected_,          \
                      allowed_);                                                                   \
    } while (0)

/* A wrong twin must lie far outside the tolerance that the right operator is held to. */
#define ASSERT_CAUGHT(distance_, tolerance)                                                        \
    ck_assert_msg((distance_) > 10 * (tolerance), "the wrong twin passes: %s = %.3g within %.3g",  \
                  #distance_, (double)(distance_), (double)(tolerance))

/* ---- views and operators ------------------------------------------------------------------ */

static inline dsv4_tensor matrix(const float *data, int64_t rows, int64_t cols)
{
    return (dsv4_tensor){
        .name = "test",
        .type = DSV4_F32,
        .rows = rows,
        .cols = cols,
        .data = (const uint8_t *)data,
        .row_bytes = (size_t)cols * sizeof *data,
        .scale_rows = 1,
        .scale_cols = 1,
    };
}

static inline const dsv4_ops *ops(void)
{
    return dsv4_ops_reference();
}

static inline bool has_line(const char *text, const char *part)
{
    return strstr(text, part) != NULL && strchr(text, '\n') == NULL;
}

/* ---- running ------------------------------------------------------------------------------ */

enum { SECONDS = 120 }; /* a limit a hung test meets, under a sanitizer on a busy machine too */

static inline int run_cases(const char *name, TCase *const *cases, size_t n)
{
    Suite *suite = suite_create(name);
    for (size_t i = 0; i < n; i++) {
        tcase_set_timeout(cases[i], SECONDS);
        suite_add_tcase(suite, cases[i]);
    }
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}

#endif
