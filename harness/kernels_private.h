/* kernels_private.h - a case under way, as the case functions of kernels_cases.c and kernels_dot.c
 * see it. Private to kernels*.c. */
#ifndef DSV4_KERNELS_PRIVATE_H
#define DSV4_KERNELS_PRIVATE_H

#include "kernels.h"

/* What the inputs look like; the hostile ones come first. */
typedef enum {
    FILL_ZERO,
    FILL_NEGATIVE_ZERO,
    FILL_SUBNORMAL,
    FILL_HUGE,      /* 1e15: squares still fit float32 */
    FILL_OUTLIER,   /* noise, one value of each 64 a thousand times larger */
    FILL_TIES,      /* midpoints of the bf16, FP8 and FP4 grids, many of them equal */
    FILL_NONFINITE, /* noise with NaN and both infinities */
    FILL_NOISE,
    FILL_COUNT,
} fill;

/* The largest relative error of one rounding to float32: tolerances are multiples of it. */
#define KERNEL_EPS 0x1p-24

enum { MAX_BUFFERS = 24 };

typedef struct {
    uint8_t *map; /* pages, with one that must not be touched at either end */
    size_t map_bytes;
    uint8_t *data; /* at the end of the pages, or at their start */
    size_t bytes;
    uint64_t sum; /* of an input's bytes before the call; 0 = not an input */
} guarded;

typedef struct kernel_run kernel_run;
struct kernel_run {
    const dsv4_ops *ref, *impl;
    const dsv4_dot_kernel *dot; /* instead of impl */
    int composition;            /* likewise: a CUDA composition's number + 1; 0 = none */
    const kernels_options *options;
    const char *label;
    uint64_t seed, noise;
    long index, resume;      /* number of the case; cases below `resume` were run before a crash */
    char name[KERNELS_NAME]; /* of the case */
    guarded buffers[MAX_BUFFERS];
    int n_buffers;
    bool at_start;                      /* buffers begin, rather than end, at a forbidden page */
    char worst[256];                    /* the first difference of this case; "" = none */
    void *shared;                       /* what the parent sees */
    double ref_times[3], impl_times[3]; /* quartiles of a call, seconds */
};

/* Opens the case if the filter admits it (and, in bench mode, only if it is one to time): the noise
 * is seeded by the case's name, so every implementation sees the same bytes. */
bool case_begin(kernel_run *k, bool timed, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Checks guard bands and inputs, books the result, frees the buffers. */
void case_end(kernel_run *k);
/* Books a difference; the first one of a case is reported. */
void case_fail(kernel_run *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

const char *fill_name(fill f);
uint32_t noise_bits(kernel_run *k);
int noise_below(kernel_run *k, int n);
float noise_float(kernel_run *k); /* in [-1, 1) */

/* Guarded memory. Inputs are filled and must be unchanged at the end; outputs are poisoned. */
void *buffer_bytes(kernel_run *k, size_t bytes);
float *input_floats(kernel_run *k, int64_t n, fill f);
void input_done(kernel_run *k, const void *data); /* checksum an input filled by hand */
float *output_floats(kernel_run *k, int64_t n);
int32_t *output_ints(kernel_run *k, int64_t n);
/* Two copies of n floats for operators that work in place: the second is returned. */
float *copy_floats(kernel_run *k, const float *from, int64_t n);

/* got against want: the masks of non-finite values must agree, and |got - want| <= tolerance *
 * magnitude[i] (NULL: |want[i]|). tolerance 0: the same bits, any NaN for any NaN. A tolerance
 * above 1/2 says that nothing is known of the value. */
void compare_floats(kernel_run *k, const char *what, const float *want, const float *got, int64_t n,
                    const double *magnitude, double tolerance);
void compare_ints(kernel_run *k, const char *what, const int32_t *want, const int32_t *got,
                  int64_t n);

/* Times two calls in turn; the expressions are run many times. */
double kernel_clock(void);
void kernel_quartiles(double *samples, int n, double out[3]);
#define CALL_BOTH(k, want_call, got_call)                                                          \
    do {                                                                                           \
        want_call;                                                                                 \
        got_call;                                                                                  \
        if ((k)->options->bench) {                                                                 \
            enum { ROUNDS = 15 };                                                                  \
            double w_[ROUNDS], g_[ROUNDS];                                                         \
            for (int round_ = 0; round_ < ROUNDS; round_++) {                                      \
                double start_ = kernel_clock(), middle_;                                           \
                long calls_ = 0;                                                                   \
                do {                                                                               \
                    want_call;                                                                     \
                    calls_++;                                                                      \
                } while ((middle_ = kernel_clock()) - start_ < 2e-3);                              \
                w_[round_] = (middle_ - start_) / (double)calls_;                                  \
                start_ = kernel_clock();                                                           \
                calls_ = 0;                                                                        \
                do {                                                                               \
                    got_call;                                                                      \
                    calls_++;                                                                      \
                } while ((middle_ = kernel_clock()) - start_ < 2e-3);                              \
                g_[round_] = (middle_ - start_) / (double)calls_;                                  \
            }                                                                                      \
            kernel_quartiles(w_, ROUNDS, (k)->ref_times);                                          \
            kernel_quartiles(g_, ROUNDS, (k)->impl_times);                                         \
        }                                                                                          \
    } while (0)

/* Stored weights [rows][cols] of a type with random codes. Returns false if the type is not one
 * the checker can make. */
bool input_tensor(kernel_run *k, dsv4_type type, int64_t rows, int64_t cols, fill f,
                  dsv4_tensor *out);
/* Smallest number of columns a row may have, and the step between admitted numbers. */
int type_step(dsv4_type type);

/* All cases of an operator; false = there are none for it. */
bool kernel_cases(kernel_run *k, int op);
void kernel_cases_dot(kernel_run *k);

#endif
