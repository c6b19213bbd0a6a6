/* test_norm_rope.c - RMSNorm, the head norm, the linear map, and rotary positions with their
 * tables. */
#include <hdf5.h>

#include "support.h"

/* ---- RMSNorm ------------------------------------------------------------------------------ */

/* Mean, mean + eps, root, product with the root, product with the weight: five roundings, of which
 * those before the root count half. */
#define NORM_TOLERANCE (4 * ROUNDING)

START_TEST(rmsnorm_divides_by_the_root_mean_square)
{
    const float x[2] = {3, 4}, w[2] = {2, -1};
    float y[2];
    ops()->rmsnorm(x, NULL, 0, 1, 2, y); /* sqrt((9 + 16) / 2) = sqrt(12.5) */
    ASSERT_NEAR(y[0], 3 / sqrt(12.5), NORM_TOLERANCE);
    ASSERT_NEAR(y[1], 4 / sqrt(12.5), NORM_TOLERANCE);
    ops()->rmsnorm(x, w, 0, 1, 2, y);
    ASSERT_NEAR(y[0], 6 / sqrt(12.5), NORM_TOLERANCE);
    ASSERT_NEAR(y[1], -4 / sqrt(12.5), NORM_TOLERANCE);
}
END_TEST

START_TEST(rmsnorm_adds_eps_to_the_mean_inside_the_root)
{
    const float x[4] = {1e-3f, -1e-3f, 1e-3f, 1e-3f}, zero[4] = {0};
    float y[4];
    ops()->rmsnorm(x, NULL, 3e-6f, 1, 4, y); /* 1e-3 / sqrt(1e-6 + 3e-6) = 0.5 */
    ASSERT_NEAR(y[0], 0.5, NORM_TOLERANCE);
    ASSERT_NEAR(y[1], -0.5, NORM_TOLERANCE);
    double outside = 1e-3 / (sqrt(1e-6) + 3e-6); /* twin */
    ASSERT_CAUGHT(fabs(outside - 0.5), NORM_TOLERANCE);
    ops()->rmsnorm(zero, NULL, 1e-6f, 1, 4, y);
    for (int k = 0; k < 4; k++)
        ck_assert(y[k] == 0);
}
END_TEST

START_TEST(rmsnorm_leaves_a_mean_square_of_one)
{
    static const int64_t dims[] = {1, 7, 8, 512, 1030};
    for (size_t i = 0; i < COUNT_OF(dims); i++) {
        float *x = noise_array(i, dims[i], 3), *y = zeros(dims[i]);
        ops()->rmsnorm(x, NULL, 0, 1, dims[i], y);
        double sum = 0, mean = 0, square = 0;
        for (int64_t k = 0; k < dims[i]; k++) {
            sum += (double)y[k] * (double)y[k];
            mean += (double)x[k] / (double)dims[i];
            square += (double)x[k] * (double)x[k];
        }
        ASSERT_NEAR(sum / (double)dims[i], 1, 2 * NORM_TOLERANCE); /* squared: twice the error */
        if (dims[i] >= 7) { /* twins: the length instead of the mean; the mean taken away */
            ASSERT_CAUGHT(fabs((double)x[0] / sqrt(square) - (double)y[0]), NORM_TOLERANCE);
            double variance = square / (double)dims[i] - mean * mean;
            ASSERT_CAUGHT(fabs(((double)x[0] - mean) / sqrt(variance) - (double)y[0]),
                          NORM_TOLERANCE);
        }
        free(x);
        free(y);
    }
}
END_TEST

START_TEST(rmsnorm_may_write_over_its_input_and_keeps_tokens_apart)
{
    enum { N = 3, DIM = 37 };
    float x[N * DIM], w[DIM], y[N * DIM], one[DIM];
    noise_fill(1, x, N * DIM, 2);
    noise_fill(2, w, DIM, 1);
    ops()->rmsnorm(x, w, 1e-6f, N, DIM, y);
    for (int i = 0; i < N; i++) {
        ops()->rmsnorm(x + i * DIM, w, 1e-6f, 1, DIM, one);
        ck_assert(same_bits(one, y + i * DIM, DIM));
    }
    ops()->rmsnorm(x, w, 1e-6f, N, DIM, x);
    ck_assert(same_bits(x, y, N * DIM));
    ops()->rmsnorm(y, w, 1e-6f, 0, DIM, x);
    ck_assert(same_bits(x, y, N * DIM)); /* no tokens, nothing written */
}
END_TEST

START_TEST(rmsnorm_ignores_a_power_of_two_and_keeps_a_nan)
{
    float x[16], big[16], y[16], z[16];
    noise_fill(3, x, 16, 1);
    for (int k = 0; k < 16; k++)
        big[k] = x[k] * 1024;
    ops()->rmsnorm(x, NULL, 0, 1, 16, y);
    ops()->rmsnorm(big, NULL, 0, 1, 16, z);
    ck_assert(same_bits(y, z, 16));
    x[5] = NAN;
    ops()->rmsnorm(x, NULL, 0, 1, 16, y);
    for (int k = 0; k < 16; k++)
        ck_assert(isnan(y[k]));
}
END_TEST

START_TEST(head_norm_is_an_rmsnorm_without_weight)
{
    float q[3 * 24], y[3 * 24];
    noise_fill(4, q, 3 * 24, 2);
    ops()->rmsnorm(q, NULL, 1e-6f, 3, 24, y);
    ops()->head_norm(q, 1e-6f, 3, 24, false);
    ck_assert(same_bits(q, y, 3 * 24));
}
END_TEST

START_TEST(head_norm_in_bf16_rounds_the_root_and_the_product)
{
    /* 1/sqrt(12.5) = 0.28284 -> 145 * 2^-9; 3 * that = 217.5 * 2^-8, a tie -> 218 * 2^-8;
     * 4 * that = 145 * 2^-7. */
    float q[2] = {3, 4}, plain[2] = {3, 4};
    ops()->head_norm(q, 1e-6f, 1, 2, true);
    ck_assert(q[0] == 218 * 0x1p-8f);
    ck_assert(q[1] == 145 * 0x1p-7f);
    ops()->head_norm(plain, 1e-6f, 1, 2, false); /* twin: only the result is rounded */
    ops()->round_bf16(plain, 2);
    ck_assert(plain[0] != q[0]);
}
END_TEST

/* ---- linear, embed, add ------------------------------------------------------------------- */

static const int64_t columns[] = {1, 7, 511, 512, 513, 1030};
static const int64_t tokens[] = {1, 63, 64, 65};

START_TEST(linear_of_ones_counts_the_columns)
{
    for (size_t c = 0; c < COUNT_OF(columns); c++) {
        int64_t n = columns[c];
        float *w = zeros(n), y = 0;
        for (int64_t k = 0; k < n; k++)
            w[k] = 1;
        dsv4_tensor t = matrix(w, 1, n);
        ops()->linear(&t, w, n, 1, &y, 1);
        ck_assert(y == (float)n);
        free(w);
    }
}
END_TEST

/* Small integers: every sum is exact in any order, so the result is exactly the integer one. */
START_TEST(linear_is_exact_on_small_integers_for_every_shape)
{
    enum { ROWS = 3 };
    for (size_t c = 0; c < COUNT_OF(columns); c++)
        for (size_t t = 0; t < COUNT_OF(tokens); t++) {
            int64_t cols = columns[c], n = tokens[t];
            noise r = {c * 10 + t};
            float *w = zeros(ROWS * cols), *x = zeros(n * cols), *y = zeros(n * ROWS);
            for (int64_t k = 0; k < ROWS * cols; k++)
                w[k] = (float)(noise_below(&r, 17) - 8);
            for (int64_t k = 0; k < n * cols; k++)
                x[k] = (float)(noise_below(&r, 17) - 8);
            dsv4_tensor view = matrix(w, ROWS, cols);
            ops()->linear(&view, x, cols, n, y, ROWS);
            for (int64_t i = 0; i < n; i++)
                for (int64_t o = 0; o < ROWS; o++) {
                    int64_t sum = 0;
                    for (int64_t k = 0; k < cols; k++)
                        sum += (int64_t)w[o * cols + k] * (int64_t)x[i * cols + k];
                    ck_assert(y[i * ROWS + o] == (float)sum);
                }
            free(w);
            free(x);
            free(y);
        }
}
END_TEST

START_TEST(linear_by_the_identity_copies_between_strides)
{
    enum { D = 5, N = 3, LDX = 7, LDY = 9 };
    float w[D * D] = {0}, x[N * LDX], y[N * LDY];
    for (int k = 0; k < D; k++)
        w[k * D + k] = 1;
    noise_fill(5, x, N * LDX, 1);
    for (int k = 0; k < N * LDY; k++)
        y[k] = 77;
    dsv4_tensor t = matrix(w, D, D);
    ops()->linear(&t, x, LDX, N, y, LDY);
    for (int i = 0; i < N; i++)
        for (int k = 0; k < LDY; k++)
            ck_assert(y[i * LDY + k] == (k < D ? x[i * LDX + k] : 77));
    y[0] = 77;
    ops()->linear(&t, x, LDX, 0, y, LDY);
    ck_assert(y[0] == 77);
}
END_TEST

START_TEST(linear_reads_rows_as_outputs)
{
    const float w[6] = {1, 2, 3, 4, 5, 6}, x[3] = {1, 10, 100}; /* [2][3] */
    float y[2];
    dsv4_tensor t = matrix(w, 2, 3);
    ops()->linear(&t, x, 3, 1, y, 2);
    ck_assert(y[0] == 321 && y[1] == 654);
    float twin[2] = {1 * 1 + 3 * 10 + 5 * 100, 2 * 1 + 4 * 10 + 6 * 100}; /* read as [3][2] */
    ASSERT_CAUGHT(distance(twin, y, 2), ROUNDING);
}
END_TEST

START_TEST(linear_works_on_a_view_of_some_rows)
{
    float w[6 * 4], x[4], all[6], some[2];
    noise_fill(6, w, 24, 1);
    noise_fill(7, x, 4, 1);
    dsv4_tensor t = matrix(w, 6, 4), view = dsv4_tensor_rows(&t, 3, 2);
    ops()->linear(&t, x, 4, 1, all, 6);
    ops()->linear(&view, x, 4, 1, some, 2);
    ck_assert(same_bits(some, all + 3, 2));
}
END_TEST

START_TEST(linear_sums_in_double)
{
    const float w[3] = {1, 1, 1}, x[3] = {1e8f, 1, -1e8f};
    float y;
    dsv4_tensor t = matrix(w, 1, 3);
    ops()->linear(&t, x, 3, 1, &y, 1);
    ck_assert(y == 1);
    volatile float twin = x[0]; /* a float32 sum from left to right loses the 1 */
    twin += x[1];
    twin += x[2];
    ck_assert(twin == 0);
}
END_TEST

START_TEST(linear_takes_fp8_scales_by_blocks_of_128_rows_and_columns)
{
    enum { ROWS = 129, COLS = 513, ACROSS = 5 };
    static uint8_t codes[ROWS * COLS], scales[2 * ACROSS];
    static float x[COLS], y[ROWS];
    memset(codes, 0x38, sizeof codes); /* 1.0 */
    for (int k = 0; k < 2 * ACROSS; k++)
        scales[k] = (uint8_t)(127 + k);
    for (int k = 0; k < COLS; k++)
        x[k] = 1;
    dsv4_tensor t = {
        .name = "test",
        .type = DSV4_FP8,
        .rows = ROWS,
        .cols = COLS,
        .data = codes,
        .row_bytes = COLS,
        .scale = scales,
        .scale_row_bytes = ACROSS,
        .scale_rows = 128,
        .scale_cols = 128,
    };
    ops()->linear(&t, x, COLS, 1, y, ROWS);
    ck_assert(y[0] == 128 * (1 + 2 + 4 + 8) + 16);
    ck_assert(y[127] == y[0]);
    ck_assert(y[128] == 32 * y[0]); /* the second row of scales */
}
END_TEST

START_TEST(linear_takes_fp4_low_nibble_first_and_a_scale_per_32_columns)
{
    enum { COLS = 64 };
    uint8_t codes[COLS / 2] = {0}, scales[2] = {127, 130};
    float x[COLS] = {0}, y;
    codes[0] = 0x5 << 4 | 0x2; /* column 0: 1.0, column 1: 3.0 */
    codes[16] = 0xf << 4;      /* column 33: -6.0 * 8 */
    dsv4_tensor t = {
        .name = "test",
        .type = DSV4_FP4,
        .rows = 1,
        .cols = COLS,
        .data = codes,
        .row_bytes = COLS / 2,
        .scale = scales,
        .scale_row_bytes = 2,
        .scale_rows = 1,
        .scale_cols = 32,
    };
    x[0] = 1;
    x[1] = 100;
    x[33] = 10000;
    ops()->linear(&t, x, COLS, 1, &y, 1);
    ck_assert(y == 1 + 300 - 480000);
}
END_TEST

START_TEST(linear_keeps_a_nan)
{
    float w[2 * 9] = {0}, x[9] = {0}, y[2];
    w[3] = NAN;
    dsv4_tensor t = matrix(w, 2, 9);
    ops()->linear(&t, x, 9, 1, y, 2);
    ck_assert(isnan(y[0]) && y[1] == 0);
    x[8] = INFINITY;
    ops()->linear(&t, x, 9, 1, y, 2);
    ck_assert(isnan(y[1]));
}
END_TEST

START_TEST(embed_copies_rows_and_add_adds)
{
    float table[4 * 3], x[9], sum[3] = {1, 2, 3};
    const int32_t ids[3] = {2, 0, 2};
    noise_fill(8, table, 12, 1);
    dsv4_tensor t = matrix(table, 4, 3);
    ops()->embed(&t, ids, 3, x);
    for (int i = 0; i < 3; i++)
        ck_assert(same_bits(x + 3 * i, table + 3 * ids[i], 3));
    const float y[3] = {10, 20, 30};
    ops()->add(sum, y, 2);
    ck_assert(sum[0] == 11 && sum[1] == 22 && sum[2] == 3);
}
END_TEST

/* ---- the rotation ------------------------------------------------------------------------- */

/* cos and sin are rounded, and so is each of the two results: relative to a pair's length. */
#define TURN_TOLERANCE (3 * ROUNDING)

START_TEST(rope_at_position_0_is_the_identity)
{
    enum { D = 12, R = 8, HALF = R / 2 };
    const float inv[HALF] = {1, 0.1f, 0.01f, 0.001f};
    const int64_t at[1] = {0};
    float c[HALF], s[HALF], x[D], y[D];
    ops()->rope_angles(inv, HALF, at, 1, c, s);
    noise_fill(9, x, D, 1);
    memcpy(y, x, sizeof y);
    ops()->rope(y, 1, 1, D, R, c, s, false);
    ck_assert(same_bits(x, y, D));
}
END_TEST

START_TEST(rope_turns_interleaved_pairs_by_the_angle)
{
    enum { D = 6, R = 4 };
    const float inv[2] = {1.57079632679489662f, 0.5f}; /* pi/2 per position */
    const int64_t at[1] = {1};
    float c[2], s[2], x[D] = {7, 8, 1, 0, 2, 0};
    ops()->rope_angles(inv, 2, at, 1, c, s);
    ops()->rope(x, 1, 1, D, R, c, s, false);
    const float right[D] = {7, 8, 0, 1, (float)(2 * cos(0.5)), (float)(2 * sin(0.5))};
    ck_assert(largest_difference(x, right, D) <= 2 * TURN_TOLERANCE); /* pairs of length <= 2 */
    /* Twin, half-split: pairs (0, 2) and (1, 3) of the tail. */
    const float twin[D] = {7, 8, -2, 0, 1, 0};
    ASSERT_CAUGHT(largest_difference(twin, right, D), 2 * TURN_TOLERANCE);
    /* Twin: the first dims instead of the last. */
    const float first[D] = {-8, 7, 1, 0, 2, 0};
    ASSERT_CAUGHT(largest_difference(first, right, D), 2 * TURN_TOLERANCE);
}
END_TEST

typedef struct {
    float c[4 * 8], s[4 * 8], x[4 * 3 * 24];
} turned;

enum { TOKENS = 4, HEADS = 3, DIM = 24, ROTARY = 16, HALF_ROTARY = ROTARY / 2 };

static void turn(turned *t, const int64_t *positions)
{
    float inv[HALF_ROTARY];
    for (int k = 0; k < HALF_ROTARY; k++)
        inv[k] = powf(10000, -(float)k / HALF_ROTARY);
    ops()->rope_angles(inv, HALF_ROTARY, positions, TOKENS, t->c, t->s);
    noise_fill(10, t->x, TOKENS * HEADS * DIM, 1);
    ops()->rope(t->x, TOKENS, HEADS, DIM, ROTARY, t->c, t->s, false);
}

START_TEST(rope_changes_only_the_last_r_dims_and_keeps_lengths)
{
    const int64_t positions[TOKENS] = {3, 100, 5000, 1000000};
    float x[TOKENS * HEADS * DIM];
    turned t;
    turn(&t, positions);
    noise_fill(10, x, TOKENS * HEADS * DIM, 1);
    for (int v = 0; v < TOKENS * HEADS; v++) {
        const float *a = x + v * DIM, *b = t.x + v * DIM;
        ck_assert(same_bits(a, b, DIM - ROTARY));
        for (int k = DIM - ROTARY; k < DIM; k += 2) {
            ck_assert(a[k] != b[k] && a[k + 1] != b[k + 1]);
            ASSERT_NEAR(hypot((double)b[k], (double)b[k + 1]),
                        hypot((double)a[k], (double)a[k + 1]), 2 * TURN_TOLERANCE);
        }
    }
}
END_TEST

START_TEST(rope_backwards_undoes_rope)
{
    const int64_t positions[TOKENS] = {1, 77, 4096, 999999};
    float x[TOKENS * HEADS * DIM];
    turned t, twice;
    turn(&t, positions);
    twice = t;
    noise_fill(10, x, TOKENS * HEADS * DIM, 1);
    ops()->rope(t.x, TOKENS, HEADS, DIM, ROTARY, t.c, t.s, true);
    ck_assert(distance(t.x, x, TOKENS * HEADS * DIM) <= 1e-6);         /* two turns */
    ops()->rope(twice.x, TOKENS, HEADS, DIM, ROTARY, t.c, t.s, false); /* twin: forwards again */
    ASSERT_CAUGHT(distance(twice.x, x, TOKENS * HEADS * DIM), 1e-6);
}
END_TEST

START_TEST(rope_gives_every_token_its_own_angle_and_all_heads_the_same)
{
    const int64_t positions[TOKENS] = {9, 2, 9, 4};
    float one[HEADS * DIM];
    turned t;
    turn(&t, positions);
    noise_fill(10, t.x, TOKENS * HEADS * DIM, 1);
    float x[TOKENS * HEADS * DIM];
    memcpy(x, t.x, sizeof x);
    ops()->rope(x, TOKENS, HEADS, DIM, ROTARY, t.c, t.s, false);
    for (int i = 0; i < TOKENS; i++) {
        memcpy(one, t.x + i * HEADS * DIM, sizeof one);
        for (int h = 0; h < HEADS; h++)
            ops()->rope(one + h * DIM, 1, 1, DIM, ROTARY, t.c + i * HALF_ROTARY,
                        t.s + i * HALF_ROTARY, false);
        ck_assert(same_bits(one, x + i * HEADS * DIM, HEADS * DIM));
    }
}
END_TEST

START_TEST(a_product_of_two_rotated_rows_depends_on_their_distance_alone)
{
    const int64_t positions[TOKENS] = {5, 3, 1005, 1003};
    turned t;
    turn(&t, positions);
    float q[DIM], k[DIM], near[2 * DIM], far[2 * DIM];
    noise_fill(11, q, DIM, 1);
    noise_fill(12, k, DIM, 1);
    for (int i = 0; i < 2; i++) {
        memcpy(near + i * DIM, i == 0 ? q : k, sizeof q);
        memcpy(far + i * DIM, i == 0 ? q : k, sizeof q);
    }
    ops()->rope(near, 2, 1, DIM, ROTARY, t.c, t.s, false);
    ops()->rope(far, 2, 1, DIM, ROTARY, t.c + 2 * HALF_ROTARY, t.s + 2 * HALF_ROTARY, false);
    double a = 0, b = 0;
    for (int d = 0; d < DIM; d++) {
        a += (double)near[d] * (double)near[DIM + d];
        b += (double)far[d] * (double)far[DIM + d];
    }
    /* The angle near 1000 is a float32: wrong by up to 2^-15 turns of DIM products below 1. */
    ASSERT_NEAR(a, b, DIM * 0x1p-15);
}
END_TEST

START_TEST(the_angle_is_the_float32_product_of_position_and_frequency)
{
    const float inv[2] = {0.7f, 0.12345678f};
    const int64_t at[2] = {1000000, 987654};
    float c[4], s[4];
    double furthest = 0;
    ops()->rope_angles(inv, 2, at, 2, c, s);
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 2; k++) {
            volatile float angle = (float)at[i] * inv[k];
            ASSERT_NEAR(c[2 * i + k], cos((double)angle), ROUNDING);
            ASSERT_NEAR(s[2 * i + k], sin((double)angle), ROUNDING);
            double exact = (double)at[i] * (double)inv[k]; /* twin: the angle in double */
            furthest = fmax(furthest, fabs(cos(exact) - (double)c[2 * i + k]));
        }
    ASSERT_CAUGHT(furthest, ROUNDING);
    ck_assert(furthest > 1e-3);
}
END_TEST

/* ---- the frequency tables ----------------------------------------------------------------- */

/* powf, the division, the mix: a float32 each. */
#define TABLE_TOLERANCE (4 * ROUNDING)

enum { TABLE = 32 };

static dsv4_config released(void)
{
    return (dsv4_config){
        .qk_rope_head_dim = 2 * TABLE,
        .rope_theta = 10000,
        .compress_rope_theta = 160000,
        .yarn_factor = 16,
        .yarn_beta_fast = 32,
        .yarn_beta_slow = 1,
        .yarn_original_positions = 65536,
    };
}

static double plain(double base, int k)
{
    return pow(base, -(double)k / TABLE);
}

/* What YaRN makes of frequency k with the ramp at `ramp`. */
static double mixed(const dsv4_config *c, int k, double ramp)
{
    double f = plain(c->compress_rope_theta, k);
    return f / c->yarn_factor * ramp + f * (1 - ramp);
}

static double error_of(float found, double expected)
{
    return fabs((double)found - expected) / expected;
}

START_TEST(the_plain_table_knows_no_yarn)
{
    dsv4_config c = released();
    float f[TABLE];
    dsv4_rope_inv_freq(&c, false, f);
    ck_assert(f[0] == 1);
    for (int k = 0; k < TABLE; k++)
        ck_assert(error_of(f[k], plain(10000, k)) <= TABLE_TOLERANCE);
}
END_TEST

START_TEST(a_factor_of_1_is_no_yarn)
{
    dsv4_config c = released();
    float f[TABLE];
    c.yarn_factor = 1;
    dsv4_rope_inv_freq(&c, true, f);
    for (int k = 0; k < TABLE; k++)
        ck_assert(error_of(f[k], plain(160000, k)) <= TABLE_TOLERANCE);
}
END_TEST

/* corr(32) = 15.45 and corr(1) = 24.7: the ramp climbs from 15 to 25. */
START_TEST(the_released_yarn_ramp_climbs_from_15_to_25)
{
    dsv4_config c = released();
    float f[TABLE];
    dsv4_rope_inv_freq(&c, true, f);
    double twin = 0;
    for (int k = 0; k < TABLE; k++) {
        double ramp = fmin(fmax((k - 15) / 10.0, 0), 1);
        double unrounded = fmin(fmax((k - 15.45) / (24.7 - 15.45), 0), 1);
        ck_assert(error_of(f[k], mixed(&c, k, ramp)) <= TABLE_TOLERANCE);
        twin = fmax(twin, error_of(f[k], mixed(&c, k, unrounded))); /* no floor, no ceil */
        if (k > 0)
            ck_assert(f[k] < f[k - 1]); /* monotone */
    }
    ASSERT_CAUGHT(twin, TABLE_TOLERANCE);
    double other = error_of(f[20], plain(10000, 20)); /* twin: the plain layers' base */
    ASSERT_CAUGHT(other, TABLE_TOLERANCE);
}
END_TEST

START_TEST(the_ramp_starts_no_lower_than_0)
{
    dsv4_config c = released();
    float f[TABLE];
    c.yarn_original_positions = 100; /* corr(32) = -1.9 -> 0, corr(1) = 7.4 -> 8 */
    dsv4_rope_inv_freq(&c, true, f);
    for (int k = 0; k < TABLE; k++)
        ck_assert(error_of(f[k], mixed(&c, k, fmin(k / 8.0, 1))) <= TABLE_TOLERANCE);
    ASSERT_CAUGHT(error_of(f[4], mixed(&c, 4, 6 / 10.0)), TABLE_TOLERANCE); /* low = -2 */
}
END_TEST

START_TEST(the_ramp_ends_no_higher_than_r_minus_1)
{
    dsv4_config c = released();
    float f[TABLE];
    c.compress_rope_theta = 10;
    c.yarn_original_positions = 1097; /* corr(32) = 23.6 -> 23, corr(1) = 71.7 -> 63 */
    dsv4_rope_inv_freq(&c, true, f);
    for (int k = 0; k < TABLE; k++)
        ck_assert(error_of(f[k], mixed(&c, k, fmax((k - 23) / 40.0, 0))) <= TABLE_TOLERANCE);
    ASSERT_CAUGHT(error_of(f[31], mixed(&c, 31, 8 / 49.0)), TABLE_TOLERANCE); /* high = 72 */
}
END_TEST

START_TEST(a_ramp_without_width_divides_by_no_zero)
{
    dsv4_config c = released();
    float f[TABLE];
    c.yarn_original_positions = 5; /* corr(32) < 0 -> 0, corr(1) = -0.6 -> 0 */
    dsv4_rope_inv_freq(&c, true, f);
    for (int k = 0; k < TABLE; k++)
        ck_assert(error_of(f[k], mixed(&c, k, k > 0)) <= TABLE_TOLERANCE);
}
END_TEST

/* ---- the recorded tables ------------------------------------------------------------------ */

static hsize_t read_set(hid_t f, const char *path, hid_t type, void *out, hsize_t room)
{
    hid_t set = H5Dopen2(f, path, H5P_DEFAULT);
    ck_assert_msg(set >= 0, "no data set %s", path);
    hid_t space = H5Dget_space(set);
    hsize_t n = (hsize_t)H5Sget_simple_extent_npoints(space);
    ck_assert(n <= room);
    ck_assert(H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, out) >= 0);
    H5Sclose(space);
    H5Dclose(set);
    return n;
}

/* Two roundings of numbers up to 1: cos and sin of the same float32 angle. */
START_TEST(the_tables_are_those_of_the_golden_file)
{
    enum { MOST = 64 };
    static const char *const groups[] = {"main", "compress"};
    hid_t f = H5Fopen(DSV4_VECTORS "/nano-hf-f32.h5", H5F_ACC_RDONLY, H5P_DEFAULT);
    ck_assert(f >= 0);
    dsv4_config config = released(); /* nano has the released positions */
    for (int g = 0; g < 2; g++) {
        static float c[MOST * TABLE], s[MOST * TABLE], gc[MOST * TABLE], gs[MOST * TABLE];
        int64_t positions[MOST];
        float inv[TABLE];
        char path[64];
        snprintf(path, sizeof path, "/rope/%s/positions", groups[g]);
        int64_t n = (int64_t)read_set(f, path, H5T_NATIVE_INT64, positions, MOST);
        snprintf(path, sizeof path, "/rope/%s/cos", groups[g]);
        ck_assert_int_eq(read_set(f, path, H5T_NATIVE_FLOAT, gc, MOST * TABLE), n * TABLE);
        snprintf(path, sizeof path, "/rope/%s/sin", groups[g]);
        read_set(f, path, H5T_NATIVE_FLOAT, gs, MOST * TABLE);
        ck_assert_int_gt(n, 1);
        ck_assert_int_gt(positions[n - 1], 100000);

        dsv4_rope_inv_freq(&config, g == 1, inv);
        ops()->rope_angles(inv, TABLE, positions, n, c, s);
        ck_assert(largest_difference(c, gc, n * TABLE) <= 1.2e-7);
        ck_assert(largest_difference(s, gs, n * TABLE) <= 1.2e-7);
        dsv4_rope_inv_freq(&config, g == 0, inv); /* twin: the other layers' table */
        ops()->rope_angles(inv, TABLE, positions, n, c, s);
        ASSERT_CAUGHT(largest_difference(c, gc, n * TABLE), 1.2e-7);
    }
    H5Fclose(f);
}
END_TEST

int main(void)
{
    TCase *norm = tcase_create("norm"), *linear = tcase_create("linear");
    TCase *rope = tcase_create("rope"), *table = tcase_create("rope table");
    tcase_add_test(norm, rmsnorm_divides_by_the_root_mean_square);
    tcase_add_test(norm, rmsnorm_adds_eps_to_the_mean_inside_the_root);
    tcase_add_test(norm, rmsnorm_leaves_a_mean_square_of_one);
    tcase_add_test(norm, rmsnorm_may_write_over_its_input_and_keeps_tokens_apart);
    tcase_add_test(norm, rmsnorm_ignores_a_power_of_two_and_keeps_a_nan);
    tcase_add_test(norm, head_norm_is_an_rmsnorm_without_weight);
    tcase_add_test(norm, head_norm_in_bf16_rounds_the_root_and_the_product);
    tcase_add_test(linear, linear_of_ones_counts_the_columns);
    tcase_add_test(linear, linear_is_exact_on_small_integers_for_every_shape);
    tcase_add_test(linear, linear_by_the_identity_copies_between_strides);
    tcase_add_test(linear, linear_reads_rows_as_outputs);
    tcase_add_test(linear, linear_works_on_a_view_of_some_rows);
    tcase_add_test(linear, linear_sums_in_double);
    tcase_add_test(linear, linear_takes_fp8_scales_by_blocks_of_128_rows_and_columns);
    tcase_add_test(linear, linear_takes_fp4_low_nibble_first_and_a_scale_per_32_columns);
    tcase_add_test(linear, linear_keeps_a_nan);
    tcase_add_test(linear, embed_copies_rows_and_add_adds);
    tcase_add_test(rope, rope_at_position_0_is_the_identity);
    tcase_add_test(rope, rope_turns_interleaved_pairs_by_the_angle);
    tcase_add_test(rope, rope_changes_only_the_last_r_dims_and_keeps_lengths);
    tcase_add_test(rope, rope_backwards_undoes_rope);
    tcase_add_test(rope, rope_gives_every_token_its_own_angle_and_all_heads_the_same);
    tcase_add_test(rope, a_product_of_two_rotated_rows_depends_on_their_distance_alone);
    tcase_add_test(rope, the_angle_is_the_float32_product_of_position_and_frequency);
    tcase_add_test(table, the_plain_table_knows_no_yarn);
    tcase_add_test(table, a_factor_of_1_is_no_yarn);
    tcase_add_test(table, the_released_yarn_ramp_climbs_from_15_to_25);
    tcase_add_test(table, the_ramp_starts_no_lower_than_0);
    tcase_add_test(table, the_ramp_ends_no_higher_than_r_minus_1);
    tcase_add_test(table, a_ramp_without_width_divides_by_no_zero);
    tcase_add_test(table, the_tables_are_those_of_the_golden_file);
    TCase *cases[] = {norm, linear, rope, table};
    return run_cases("norm and rope", cases, COUNT_OF(cases));
}
