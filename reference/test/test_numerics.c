/* test_numerics.c - activation rounding: bf16, FP8 and FP4 in blocks, and the Hadamard transform.
 */
#include "support.h"

static float from_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static uint32_t bits_of(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* ---- bf16 --------------------------------------------------------------------------------- */

/* Lower halves: nothing, just above, below a tie, the tie, above it, just below the next value. */
static const uint32_t halves[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};

START_TEST(bf16_rounds_to_the_nearest_ties_to_even_for_every_upper_half)
{
    float x[COUNT_OF(halves)];
    for (uint32_t upper = 0; upper < 0x10000; upper++) {
        if ((upper & 0x7f80) == 0x7f80)
            continue; /* no number */
        for (size_t k = 0; k < COUNT_OF(halves); k++)
            x[k] = from_bits(upper << 16 | halves[k]);
        ops()->round_bf16(x, COUNT_OF(halves));
        for (size_t k = 0; k < COUNT_OF(halves); k++) {
            bool up = halves[k] > 0x8000 || (halves[k] == 0x8000 && upper % 2 == 1);
            ck_assert_uint_eq(bits_of(x[k]), (upper + up) << 16);
        }
    }
}
END_TEST

START_TEST(bf16_keeps_infinities_and_nans)
{
    float x[4] = {INFINITY, -INFINITY, NAN, from_bits(0x7f800001u)};
    ops()->round_bf16(x, 4);
    ck_assert(x[0] == INFINITY && x[1] == -INFINITY && isnan(x[2]) && isnan(x[3]));
    float y[2] = {from_bits(0x3f808000u), 77}; /* 1 + 2^-8: a tie that goes down */
    ops()->round_bf16(y, 1);
    ck_assert(y[0] == 1 && y[1] == 77);
    ck_assert_uint_ne((0x3f808000u + 0x8000u) >> 16, 0x3f80u); /* twin: ties away from 0 */
}
END_TEST

/* ---- FP8 ---------------------------------------------------------------------------------- */

/* The 127 finite magnitudes of e4m3: multiples of 2^-9 below 2^-6, then 8 per power of two. */
static double e4m3(int code)
{
    return code < 8 ? ldexp(code, -9) : ldexp(8 + code % 8, code / 8 - 10);
}

/* By definition: the nearest multiple of scale * e4m3, the even code at a tie. */
static double fp8_by_definition(double x, double scale)
{
    int best = 0;
    for (int code = 1; code < 127; code++) {
        double d = fabs(e4m3(code) * scale - fabs(x)), least = fabs(e4m3(best) * scale - fabs(x));
        if (d < least || (d == least && code % 2 == 0))
            best = code;
    }
    return copysign(e4m3(best) * scale, x);
}

static double scale_by_definition(double amax, double floor_at, double top)
{
    return exp2(ceil(log2(fmax(amax, floor_at) / top) - 1e-12)); /* not on a power of two: exact */
}

START_TEST(fp8_leaves_a_block_of_e4m3_values_alone)
{
    float x[254], y[254];
    for (int shift = -20; shift <= 20; shift += 10) {
        for (int code = 0; code < 127; code++) {
            x[2 * code] = (float)ldexp(e4m3(code), shift + 12);
            x[2 * code + 1] = -x[2 * code];
        }
        memcpy(y, x, sizeof y);
        ops()->round_fp8(y, 1, 254, 254, 254);
        ck_assert(same_bits(x, y, 254));
    }
}
END_TEST

START_TEST(fp8_rounds_to_the_nearest_ties_to_even)
{
    /* amax 448: scale 1. Between 16 and 32 the step is 2. */
    const float x[8] = {448, 17, 19, 16.99f, 17.01f, -17, 0x1p-10f, 3 * 0x1p-10f};
    const float right[8] = {448, 16, 20, 16, 18, -16, 0, 2 * 0x1p-9f};
    float y[8];
    memcpy(y, x, sizeof y);
    ops()->round_fp8(y, 1, 8, 8, 8);
    ck_assert(same_bits(y, right, 8));
    ck_assert(roundf(17.0f / 2) * 2 != y[1]); /* twin: ties away from 0 */
    ck_assert(truncf(19.0f / 2) * 2 != y[2]); /* twin: towards 0 */
}
END_TEST

START_TEST(fp8_scales_are_the_next_power_of_two)
{
    float at[2] = {448, 3}, above[2] = {448.5f, 34}, twin[2] = {448.5f, 34};
    ops()->round_fp8(at, 1, 2, 2, 2);
    ck_assert(at[0] == 448 && at[1] == 3);
    ops()->round_fp8(above, 1, 2, 2, 2); /* scale 2: 224.25 -> 224, 17 -> 16 */
    ck_assert(above[0] == 448 && above[1] == 32);
    /* Twin: a scale that is no power of two, amax / 448. */
    float s = twin[0] / 448;
    ck_assert((float)fp8_by_definition((double)(twin[1] / s), 1) * s != above[1]);
}
END_TEST

START_TEST(fp8_matches_the_definition_on_noise)
{
    enum { N = 64 };
    for (int round = 0; round < 60; round++) {
        float x[N], y[N];
        double amax = 0;
        noise_fill((uint64_t)round, x, N, ldexpf(1, round - 20));
        for (int k = 0; k < N; k++) {
            x[k] *= ldexpf(1, -(k % 12)); /* down into the subnormals */
            amax = fmax(amax, fabs((double)x[k]));
        }
        double scale = scale_by_definition(amax, (double)1e-4f, 448);
        memcpy(y, x, sizeof y);
        ops()->round_fp8(y, 1, N, N, N);
        for (int k = 0; k < N; k++)
            ck_assert(y[k] == (float)fp8_by_definition((double)x[k], scale));
        memcpy(x, y, sizeof x);
        ops()->round_fp8(x, 1, N, N, N);
        ck_assert(same_bits(x, y, N)); /* rounding twice is rounding once */
    }
}
END_TEST

/* max(amax, 1e-4) / 448 = 2.23e-7 -> 2^-22: the scale of every block up to 448 * 2^-22. */
START_TEST(fp8_scales_of_tiny_blocks_stop_at_1e_minus_4)
{
    float x[3] = {1e-6f, -2e-9f, 0}; /* 4.19 and 4.29 * 2^-9 times 2^-22 */
    ops()->round_fp8(x, 1, 3, 3, 3);
    ck_assert(x[0] == 4 * 0x1p-22f && x[1] == -4 * 0x1p-31f && x[2] == 0);
    double free_scale = scale_by_definition(1e-6, 0, 448); /* twin: no lower end */
    ck_assert((float)fp8_by_definition((double)-2e-9f, free_scale) != x[1]);
    float zeros_[2] = {0, -0.0f};
    ops()->round_fp8(zeros_, 1, 2, 2, 2);
    ck_assert(zeros_[0] == 0 && zeros_[1] == 0 && signbit(zeros_[1]));
}
END_TEST

START_TEST(fp8_blocks_share_nothing_and_the_last_may_be_short)
{
    enum { DIM = 70, LD = 75, BLOCK = 64, ROWS = 3 };
    float x[ROWS * LD], y[ROWS * LD], part[BLOCK];
    noise_fill(1, x, ROWS * LD, 1);
    for (int i = 0; i < ROWS; i++)
        for (int k = BLOCK; k < LD; k++)
            x[i * LD + k] *= 1000;
    memcpy(y, x, sizeof y);
    ops()->round_fp8(y, ROWS, LD, DIM, BLOCK);
    for (int i = 0; i < ROWS; i++) {
        memcpy(part, x + i * LD, sizeof part);
        ops()->round_fp8(part, 1, BLOCK, BLOCK, BLOCK);
        ck_assert(same_bits(part, y + i * LD, BLOCK));
        memcpy(part, x + i * LD + BLOCK, (DIM - BLOCK) * sizeof *part);
        ops()->round_fp8(part, 1, DIM - BLOCK, DIM - BLOCK, DIM - BLOCK);
        ck_assert(same_bits(part, y + i * LD + BLOCK, DIM - BLOCK));
        ck_assert(same_bits(x + i * LD + DIM, y + i * LD + DIM, LD - DIM)); /* the stride's gap */
    }
    float whole[DIM];
    memcpy(whole, x, sizeof whole);
    ops()->round_fp8(whole, 1, DIM, DIM, DIM); /* twin: one scale for the whole row */
    ck_assert(!same_bits(whole, y, BLOCK));
}
END_TEST

START_TEST(fp8_of_no_number_is_no_number)
{
    float x[3] = {1, NAN, 2}, y[2] = {1, INFINITY}, z[2] = {-INFINITY, 1};
    ops()->round_fp8(x, 1, 3, 3, 3);
    ck_assert(x[0] == 1 && isnan(x[1]) && x[2] == 2);
    ops()->round_fp8(y, 1, 2, 2, 2);
    ops()->round_fp8(z, 1, 2, 2, 2);
    ck_assert(!isfinite(y[1]) && !isfinite(z[0]));
}
END_TEST

/* ---- FP4 ---------------------------------------------------------------------------------- */

START_TEST(fp4_rounds_to_the_nearest_ties_to_the_even_code)
{
    /* 6 makes the scale 1. Codes 0..7 are 0 .5 1 1.5 2 3 4 6. */
    const float x[16] = {6,      0.25f,  0.75f, 1.25f, 1.75f, 2.5f, 3.5f,  5,
                         -0.25f, -0.75f, -5,    0.26f, 0.74f, 3.4f, 5.01f, -1.3f};
    const float right[16] = {6, 0, 1, 1, 2, 2, 4, 4, -0.0f, -1, -4, 0.5f, 0.5f, 3, 6, -1.5f};
    float y[16];
    memcpy(y, x, sizeof y);
    ops()->round_fp4(y, 1, 16, 16);
    ck_assert(same_bits(y, right, 16));
    const float away[16] = {6,     0.5f, 1,  1.5f, 2,    3, 4, 6, /* twin: ties away from 0 */
                            -0.5f, -1,   -6, 0.5f, 0.5f, 3, 6, -1.5f};
    ck_assert(distance(away, right, 16) > 0.1);
}
END_TEST

START_TEST(fp4_scales_are_the_next_power_of_two)
{
    float x[3] = {7, 1, 2.5f}; /* scale 2: 3.5 -> 4, 0.5, 1.25 -> 1 */
    ops()->round_fp4(x, 1, 3, 3);
    ck_assert(x[0] == 8 && x[1] == 1 && x[2] == 2); /* twin, rounded down, scale 1: 6, 1, 2 */
    float half[2] = {3, 0.25f};                     /* scale 1/2 */
    ops()->round_fp4(half, 1, 2, 2);
    ck_assert(half[0] == 3 && half[1] == 0.25f);
}
END_TEST

START_TEST(fp4_blocks_share_nothing)
{
    float x[64], y[64], part[32];
    noise_fill(2, x, 64, 1);
    for (int k = 32; k < 64; k++)
        x[k] *= 100;
    memcpy(y, x, sizeof y);
    ops()->round_fp4(y, 1, 64, 32);
    for (int b = 0; b < 2; b++) {
        memcpy(part, x + 32 * b, sizeof part);
        ops()->round_fp4(part, 1, 32, 32);
        ck_assert(same_bits(part, y + 32 * b, 32));
    }
    float rows[64];
    memcpy(rows, x, sizeof rows);
    ops()->round_fp4(rows, 2, 32, 32); /* two rows of one block each: the same blocks */
    ck_assert(same_bits(rows, y, 64));
    ops()->round_fp4(x, 1, 64, 64); /* twin: one scale */
    ck_assert(!same_bits(x, y, 64));
}
END_TEST

START_TEST(fp4_of_zeros_and_of_the_smallest_block)
{
    float x[2] = {0, -0.0f}, y[2] = {6 * 0x1p-126f, 0x1p-127f};
    ops()->round_fp4(x, 1, 2, 2);
    ck_assert(x[0] == 0 && x[1] == 0);
    ops()->round_fp4(y, 1, 2, 2); /* scale 2^-126 */
    ck_assert(y[0] == 6 * 0x1p-126f && y[1] == 0x1p-127f);
}
END_TEST

START_TEST(fp4_of_no_number_is_no_number)
{
    float x[3] = {1, NAN, 3}, y[2] = {1, -INFINITY};
    ops()->round_fp4(x, 1, 3, 3);
    ck_assert(x[0] == 1 && isnan(x[1]) && x[2] == 3);
    ops()->round_fp4(y, 1, 2, 2);
    ck_assert(!isfinite(y[1]));
}
END_TEST

/* ---- Hadamard ----------------------------------------------------------------------------- */

enum { DIM = 128 };

/* Seven additions per element, each of a relative error of 2^-24, and the norm. */
#define HADAMARD_TOLERANCE (8 * ROUNDING)

START_TEST(hadamard_is_the_matrix_of_parities_over_the_root_of_dim)
{
    float x[DIM], right[DIM], natural[DIM];
    noise_fill(3, x, DIM, 1);
    for (int i = 0; i < DIM; i++) {
        double sum = 0, twin = 0;
        for (int j = 0; j < DIM; j++) {
            int parity = 0, sequency = 0;
            for (int b = 0; b < 7; b++) {
                parity ^= (i >> b & 1) & (j >> b & 1);
                sequency ^= (i >> b & 1) & (j >> (6 - b) & 1); /* bits of one index reversed */
            }
            sum += parity ? -(double)x[j] : (double)x[j];
            twin += sequency ? -(double)x[j] : (double)x[j];
        }
        right[i] = (float)(sum / sqrt(DIM));
        natural[i] = (float)(twin / sqrt(DIM));
    }
    ops()->hadamard(x, 1, DIM);
    ck_assert(distance(x, right, DIM) <= HADAMARD_TOLERANCE);
    ASSERT_CAUGHT(distance(natural, right, DIM), HADAMARD_TOLERANCE);
}
END_TEST

START_TEST(hadamard_of_a_unit_vector_is_a_row_of_signs)
{
    for (int j = 0; j < DIM; j++) {
        float x[DIM] = {0};
        x[j] = 1;
        ops()->hadamard(x, 1, DIM);
        for (int i = 0; i < DIM; i++) {
            bool odd = false;
            for (int both = i & j; both != 0; both &= both - 1)
                odd = !odd;
            ASSERT_NEAR(x[i], (odd ? -1 : 1) / sqrt(128), ROUNDING);
        }
    }
}
END_TEST

START_TEST(hadamard_twice_is_the_identity)
{
    static const int dims[] = {1, 2, 32, 64, 128, 512};
    for (size_t d = 0; d < COUNT_OF(dims); d++) {
        int n = 3 * dims[d];
        float *x = noise_array(d, n, 1), *y = noise_array(d, n, 1);
        double before = 0, after = 0;
        ops()->hadamard(y, 3, dims[d]);
        for (int k = 0; k < n; k++) {
            before += (double)x[k] * (double)x[k];
            after += (double)y[k] * (double)y[k];
        }
        ASSERT_NEAR(after / before, 1, 1e-6); /* lengths stay; twin: not normalised */
        ops()->hadamard(y, 3, dims[d]);
        ck_assert(distance(y, x, n) <= 1e-6);
        free(x);
        free(y);
    }
}
END_TEST

START_TEST(hadamard_spreads_a_nan)
{
    float x[4] = {0, NAN, 0, 0};
    ops()->hadamard(x, 1, 4);
    for (int k = 0; k < 4; k++)
        ck_assert(isnan(x[k]));
}
END_TEST

int main(void)
{
    TCase *bf16 = tcase_create("bf16"), *fp8 = tcase_create("fp8");
    TCase *fp4 = tcase_create("fp4"), *hadamard = tcase_create("hadamard");
    tcase_add_test(bf16, bf16_rounds_to_the_nearest_ties_to_even_for_every_upper_half);
    tcase_add_test(bf16, bf16_keeps_infinities_and_nans);
    tcase_add_test(fp8, fp8_leaves_a_block_of_e4m3_values_alone);
    tcase_add_test(fp8, fp8_rounds_to_the_nearest_ties_to_even);
    tcase_add_test(fp8, fp8_scales_are_the_next_power_of_two);
    tcase_add_test(fp8, fp8_matches_the_definition_on_noise);
    tcase_add_test(fp8, fp8_scales_of_tiny_blocks_stop_at_1e_minus_4);
    tcase_add_test(fp8, fp8_blocks_share_nothing_and_the_last_may_be_short);
    tcase_add_test(fp8, fp8_of_no_number_is_no_number);
    tcase_add_test(fp4, fp4_rounds_to_the_nearest_ties_to_the_even_code);
    tcase_add_test(fp4, fp4_scales_are_the_next_power_of_two);
    tcase_add_test(fp4, fp4_blocks_share_nothing);
    tcase_add_test(fp4, fp4_of_zeros_and_of_the_smallest_block);
    tcase_add_test(fp4, fp4_of_no_number_is_no_number);
    tcase_add_test(hadamard, hadamard_is_the_matrix_of_parities_over_the_root_of_dim);
    tcase_add_test(hadamard, hadamard_of_a_unit_vector_is_a_row_of_signs);
    tcase_add_test(hadamard, hadamard_twice_is_the_identity);
    tcase_add_test(hadamard, hadamard_spreads_a_nan);
    TCase *cases[] = {bf16, fp8, fp4, hadamard};
    return run_cases("numerics", cases, COUNT_OF(cases));
}
