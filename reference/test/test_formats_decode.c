/* test_formats_decode.c - the table, and every decoder against ggml's values bit for bit. */
#include "test_formats_vectors.h"

START_TEST(test_table)
{
    for (int i = 0; i < DSV4_TYPE_COUNT; i++) {
        const dsv4_format *f = dsv4_format_of((dsv4_type)i);
        ck_assert_ptr_nonnull(f);
        ck_assert_int_eq((int)f->type, i);
        ck_assert_ptr_eq(dsv4_format_by_name(f->name), f);
        if (f->ggml_type >= 0)
            ck_assert_ptr_eq(dsv4_format_by_ggml(f->ggml_type), f);
        ck_assert(f->block > 0 && f->block_bytes > 0);
        ck_assert(f->decode && f->dot);
        ck_assert((f->dot_act != NULL) == (f->act_type != DSV4_F32));
        ck_assert_uint_eq(dsv4_format_row_bytes(f, 512),
                          (size_t)(512 / f->block) * (size_t)f->block_bytes);
    }
    static const char *const strangers[] = {"", "q4_k", "Q4_K ", "TQ1_0", "Q8_1"};
    for (size_t i = 0; i < sizeof strangers / sizeof *strangers; i++)
        ck_assert_ptr_null(dsv4_format_by_name(strangers[i]));
    ck_assert_ptr_null(dsv4_format_by_name(NULL));
    static const int64_t numbers[] = {-1, 4, 5, 9, 34, 40, 1000, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        ck_assert_ptr_null(dsv4_format_by_ggml(numbers[i]));
}
END_TEST

/* Every case and every random block, from an odd address: rows in files are not aligned. */
START_TEST(test_against_ggml)
{
    const dsv4_format *f = dsv4_format_of((dsv4_type)_i);
    if (!in_vectors(f))
        return;
    hid_t file = vectors_open();
    char path[64];
    snprintf(path, sizeof path, "/types/%s", f->name);
    ck_assert_int_eq(vectors_attribute(file, path, "type_id"), f->ggml_type);
    ck_assert_int_eq(vectors_attribute(file, path, "block"), f->block);
    ck_assert_int_eq(vectors_attribute(file, path, "block_bytes"), f->block_bytes);
    type_vectors t = vectors_type(file, f);
    ck_assert_uint_eq(t.bytes, dsv4_format_row_bytes(f, COLS));
    uint8_t *row = malloc(t.bytes + 1);
    float out[COLS];
    for (size_t c = 0; c < t.cases.count; c++) {
        for (size_t r = 0; r < t.rows; r++) {
            memcpy(row + 1, raw_row(&t, c, r), t.bytes);
            f->decode(&(dsv4_row){.data = row + 1}, COLS, out);
            ck_assert_msg(same_floats(out, decoded_row(&t, c, r), COLS), "%s %s row %zu", f->name,
                          name_at(&t.cases, c), r);
        }
    }
    for (size_t b = 0; b < (t.bits_raw.data ? t.bits_raw.dim[0] : 0); b++) {
        memcpy(row + 1, (uint8_t *)t.bits_raw.data + b * t.bytes, t.bytes);
        f->decode(&(dsv4_row){.data = row + 1}, COLS, out);
        ck_assert_msg(same_floats(out, (float *)t.bits_decoded.data + b * COLS, COLS),
                      "%s random bits %zu", f->name, b);
    }
    free(row);
    vectors_free(&t);
    H5Fclose(file);
}
END_TEST

/* Does the comparison notice? Counts the random rows on which a changed block decodes to other
 * values. */
static size_t rows_that_differ(const type_vectors *t, void (*change)(uint8_t *, size_t, size_t),
                               size_t argument)
{
    size_t differ = 0;
    uint8_t row[1100];
    float out[COLS];
    const dsv4_format *f = t->format;
    for (size_t b = 0; b < t->bits_raw.dim[0]; b++) {
        memcpy(row, (uint8_t *)t->bits_raw.data + b * t->bytes, t->bytes);
        change(row, t->bytes, argument);
        f->decode(&(dsv4_row){.data = row}, COLS, out);
        differ += !same_floats(out, (float *)t->bits_decoded.data + b * COLS, COLS);
    }
    return differ;
}

static void flip_bit(uint8_t *row, size_t bytes, size_t bit)
{
    (void)bytes;
    row[bit / 8] ^= (uint8_t)(1u << bit % 8);
}

static void swap_nibbles(uint8_t *row, size_t bytes, size_t argument)
{
    (void)argument;
    for (size_t i = 0; i < bytes; i++)
        row[i] = (uint8_t)(row[i] << 4 | row[i] >> 4);
}

/* Wrong twins of every decoder. A single wrong bit anywhere in a block - a scale off by one, a
 * sign, another entry of the code book, a fifth bit in the wrong place - must show in the values:
 * all the bits of every format are read and each has a meaning of its own. */
START_TEST(test_twins)
{
    const dsv4_format *f = dsv4_format_of((dsv4_type)_i);
    if (!in_vectors(f))
        return;
    hid_t file = vectors_open();
    type_vectors t = vectors_type(file, f);
    if (t.bits_raw.data) {
        ck_assert_uint_gt(rows_that_differ(&t, swap_nibbles, 0), 0);
        for (size_t bit = 0; bit < 8 * (size_t)f->block_bytes; bit++)
            ck_assert_msg(rows_that_differ(&t, flip_bit, bit) > 0,
                          "%s: bit %zu of byte %zu is idle", f->name, bit % 8, bit / 8);
    }
    vectors_free(&t);
    H5Fclose(file);
}
END_TEST

/* Whole bytes of every kind through every decoder, each row in memory of exactly its size: the
 * sanitizers see a step outside or a shift too far. */
START_TEST(test_hostile)
{
    const dsv4_format *f = dsv4_format_of((dsv4_type)_i);
    size_t bytes = dsv4_format_row_bytes(f, COLS);
    uint8_t *data = malloc(bytes);
    uint8_t *scale = malloc(COLS / 32 * 4), *bias = malloc(COLS / 32 * 4);
    size_t act_bytes = f->dot_act ? dsv4_format_row_bytes(dsv4_format_of(f->act_type), COLS) : 0;
    uint8_t *act = malloc(act_bytes + 1);
    float out[COLS];
    uint64_t seed = 17;
    dsv4_row row = {data, scale, bias, 32, DSV4_F32};

    for (int k = 0; k < 34; k++) {
        for (size_t i = 0; i < bytes; i++)
            data[i] = k == 0 ? 0 : k == 1 ? 0xff : (uint8_t)next_random(&seed);
        for (size_t i = 0; i < COLS / 32 * 4; i++) {
            scale[i] = k == 0 ? 0 : k == 1 ? 0xff : (uint8_t)next_random(&seed);
            bias[i] = k == 0 ? 0 : k == 1 ? 0xff : (uint8_t)next_random(&seed);
        }
        for (size_t i = 0; i < act_bytes; i++)
            act[i] = k == 0 ? 0 : k == 1 ? 0xff : (uint8_t)next_random(&seed);
        f->decode(&row, COLS, out);
        double sum = 0;
        for (int i = 0; i < COLS; i++)
            sum += (double)out[i] * (double)out[i];
        double dot = f->dot(&row, COLS, out);
        ck_assert(dot == sum || isnan(sum));
        if (f->dot_act)
            (void)f->dot_act(&row, COLS, act);
        if (k == 0)
            ck_assert(sum == 0);
    }
    free(data);
    free(scale);
    free(bias);
    free(act);
}
END_TEST

/* Formats that GGUF does not have, by their definition. */
START_TEST(test_scales_beside)
{
    float out[256];
    uint8_t fp8[256], scale8[2] = {127 + 3, 255}, fp4[64], scale4[4] = {127, 128, 126, 0};

    for (int i = 0; i < 256; i++)
        fp8[i] = (uint8_t)i;
    dsv4_format_of(DSV4_FP8)->decode(&(dsv4_row){fp8, scale8, NULL, 128, DSV4_F32}, 256, out);
    for (int i = 0; i < 128; i++)
        ck_assert(i == 127 ? isnan(out[i]) : out[i] == 8 * dsv4_e4m3_to_f32((uint8_t)i));
    ck_assert(isnan(out[128])); /* a NaN scale */

    for (int i = 0; i < 64; i++)
        fp4[i] = (uint8_t)(2 * i % 16 | (2 * i + 1) % 16 << 4); /* column c holds code c % 16 */
    dsv4_format_of(DSV4_FP4)->decode(&(dsv4_row){fp4, scale4, NULL, 32, DSV4_F32}, 128, out);
    for (int i = 0; i < 128; i++) {
        static const float levels[16] = {0,  0.5f,  1,  1.5f,  2,  3,  4,  6,
                                         -0, -0.5f, -1, -1.5f, -2, -3, -4, -6};
        static const float factors[4] = {1, 2, 0.5f, 0x1p-127f};
        ck_assert(out[i] == levels[i % 16] * factors[i / 32]);
        ck_assert_int_eq(signbit(out[i]) != 0, i % 16 >= 8);
    }

    uint8_t mlx[64];
    uint16_t scales[2] = {0x3c00, 0x4000}, biases[2] = {0xc000, 0x3800}; /* 1, 2; -2, 0.5 */
    memset(mlx, 0x1f, sizeof mlx);
    dsv4_row row = {mlx, (uint8_t *)scales, (uint8_t *)biases, 32, DSV4_F16};
    dsv4_format_of(DSV4_MLX4)->decode(&row, 64, out);
    ck_assert(out[0] == 13.0f && out[1] == -1.0f && out[32] == 30.5f && out[33] == 2.5f);
    dsv4_format_of(DSV4_MLX8)->decode(&row, 64, out);
    ck_assert(out[0] == 29.0f && out[63] == 62.5f);
    uint16_t bf_scales[2] = {0x3f80, 0x4000}, bf_biases[2] = {0xc000, 0x3f00};
    row = (dsv4_row){mlx, (uint8_t *)bf_scales, (uint8_t *)bf_biases, 32, DSV4_BF16};
    dsv4_format_of(DSV4_MLX8)->decode(&row, 64, out);
    ck_assert(out[0] == 29.0f && out[63] == 62.5f);
}
END_TEST

START_TEST(test_q8_k)
{
    uint8_t block[292];
    float out[256], d = -0.375f;
    memset(block, 0xee, sizeof block); /* the sums are not read */
    memcpy(block, &d, sizeof d);
    for (int i = 0; i < 256; i++)
        block[4 + i] = (uint8_t)i;
    dsv4_format_of(DSV4_Q8_K)->decode(&(dsv4_row){.data = block}, 256, out);
    for (int i = 0; i < 256; i++)
        ck_assert(out[i] == d * (float)(i < 128 ? i : i - 256));
}
END_TEST

/* The wrong twins of the formats without random blocks in the file: each bit of the codes, scales
 * and biases changes a value. Integers start from zero, where float32 shows their every bit. */
START_TEST(test_twins_beside)
{
    static const dsv4_type types[] = {DSV4_F32, DSV4_F16, DSV4_BF16, DSV4_I32,  DSV4_I64,
                                      DSV4_FP8, DSV4_FP4, DSV4_MLX4, DSV4_MLX8, DSV4_Q8_K};
    const dsv4_format *f = dsv4_format_of(types[_i]);
    enum { WIDTH = 256 };
    static uint8_t data[WIDTH * 8];
    uint8_t scale[WIDTH / 32 * 4], bias[WIDTH / 32 * 4];
    float right[WIDTH], wrong[WIDTH];
    uint64_t seed = 37;
    bool integer = f->type == DSV4_I32 || f->type == DSV4_I64;
    bool affine = f->type == DSV4_MLX4 || f->type == DSV4_MLX8;
    bool beside = affine || f->type == DSV4_FP8 || f->type == DSV4_FP4;
    int group = f->type == DSV4_FP8 ? 128 : 32;
    size_t bytes = f->type == DSV4_Q8_K ? 260 : dsv4_format_row_bytes(f, WIDTH);
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = integer ? 0 : (uint8_t)(1 + next_random(&seed) % 0x3b);
    for (size_t i = 0; i < sizeof scale; i++) {
        scale[i] = (uint8_t)(1 + next_random(&seed) % 0x3b);
        bias[i] = affine ? 0 : 1; /* zero: no bit of a bias drowns in the product */
    }
    dsv4_row row = {data, scale, bias, group, DSV4_F16};
    f->decode(&row, WIDTH, right);
    for (size_t bit = 0; bit < 8 * bytes; bit++) {
        flip_bit(data, bytes, bit);
        f->decode(&row, WIDTH, wrong);
        flip_bit(data, bytes, bit);
        ck_assert_msg(!same_floats(right, wrong, WIDTH), "%s: bit %zu is idle", f->name, bit);
    }
    size_t scale_bytes = beside ? (size_t)(WIDTH / group) * (affine ? 2 : 1) : 0;
    for (size_t bit = 0; bit < 8 * scale_bytes; bit++) {
        flip_bit(scale, scale_bytes, bit);
        f->decode(&row, WIDTH, wrong);
        flip_bit(scale, scale_bytes, bit);
        ck_assert_msg(!same_floats(right, wrong, WIDTH), "%s: bit %zu of the scales", f->name, bit);
    }
    if (beside) { /* nibbles swapped, groups of another width, scale and bias exchanged */
        row.group = group / 2;
        f->decode(&row, WIDTH, wrong);
        ck_assert(!same_floats(right, wrong, WIDTH));
        row = (dsv4_row){data, bias, scale, group, DSV4_F16};
        f->decode(&row, WIDTH, wrong);
        ck_assert(!same_floats(right, wrong, WIDTH));
        row = (dsv4_row){data, scale, bias, group, DSV4_F16};
        swap_nibbles(data, bytes, 0);
        f->decode(&row, WIDTH, wrong);
        ck_assert(!same_floats(right, wrong, WIDTH));
    }
}
END_TEST

START_TEST(test_plain_numbers)
{
    static const float f[3] = {1.5f, -0.0f, INFINITY};
    static const int32_t i32[3] = {-1, 7, INT32_MIN};
    static const int64_t i64[3] = {-1, 129279, INT64_MAX};
    float out[3];
    dsv4_format_of(DSV4_F32)->decode(&(dsv4_row){.data = f}, 3, out);
    ck_assert(same_floats(out, f, 3));
    dsv4_format_of(DSV4_I32)->decode(&(dsv4_row){.data = i32}, 3, out);
    ck_assert(out[0] == -1 && out[1] == 7 && out[2] == -0x1p31f);
    dsv4_format_of(DSV4_I64)->decode(&(dsv4_row){.data = i64}, 3, out);
    ck_assert(out[0] == -1 && out[1] == 129279 && out[2] == 0x1p63f);
}
END_TEST

int main(void)
{
    TCase *cases[] = {tcase_create("table"), tcase_create("ggml"), tcase_create("twins"),
                      tcase_create("hostile"), tcase_create("definitions")};
    tcase_add_test(cases[0], test_table);
    tcase_add_loop_test(cases[1], test_against_ggml, 0, DSV4_TYPE_COUNT);
    tcase_add_loop_test(cases[2], test_twins, 0, DSV4_TYPE_COUNT);
    tcase_add_loop_test(cases[3], test_hostile, 0, DSV4_TYPE_COUNT);
    tcase_add_test(cases[4], test_scales_beside);
    tcase_add_test(cases[4], test_plain_numbers);
    tcase_add_test(cases[4], test_q8_k);
    tcase_add_loop_test(cases[4], test_twins_beside, 0, 10);
    return run_suite("formats: decode", cases, (int)(sizeof cases / sizeof *cases));
}
