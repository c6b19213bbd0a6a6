/* test_formats_encode.c - the encoders: ggml's bytes where ggml has the format, the definition
 * where not; wrong twins of the rounding rules; blocks that divide by zero if one lets them. */
#include <float.h>

#include "test_formats_vectors.h"

enum { MAX_ROWS = 6, MAX_BYTES = 2048 };

typedef struct {
    array inputs, input_names, imatrix, imatrix_names;
    size_t rows;
} sources;

static sources sources_open(hid_t file)
{
    sources s = {
        .inputs = vectors_read(file, "/inputs/rows", H5T_NATIVE_FLOAT),
        .input_names = vectors_names(file, "/inputs/names"),
        .imatrix = vectors_read(file, "/imatrix/rows", H5T_NATIVE_FLOAT),
        .imatrix_names = vectors_names(file, "/imatrix/names"),
    };
    s.rows = (size_t)s.inputs.dim[1];
    ck_assert(s.rows <= MAX_ROWS);
    return s;
}

static void sources_free(sources *s)
{
    free(s->inputs.data);
    free(s->input_names.data);
    free(s->imatrix.data);
    free(s->imatrix_names.data);
}

/* What "distribution/imatrix" stands for: the matrix, and the importance or NULL for "none". */
static const float *case_input(const sources *s, const char *name, const float **importance)
{
    const char *slash = strchr(name, '/');
    ck_assert_ptr_nonnull(slash);
    int d = name_find(&s->input_names, name, (size_t)(slash - name));
    int k = name_find(&s->imatrix_names, slash + 1, strlen(slash + 1));
    ck_assert(d >= 0);
    ck_assert(k >= 0 || strcmp(slash + 1, "none") == 0);
    size_t kinds = (size_t)s->imatrix.dim[1];
    *importance =
        k < 0 ? NULL : (const float *)s->imatrix.data + ((size_t)d * kinds + (size_t)k) * COLS;
    return (const float *)s->inputs.data + (size_t)d * s->rows * COLS;
}

/* Importance-weighted squared error of decoded values. */
static double weighted_error(const float *x, const float *decoded, const float *importance,
                             size_t rows)
{
    double sum = 0;
    for (size_t i = 0; i < rows * COLS; i++) {
        double diff = (double)x[i] - (double)decoded[i];
        sum += (importance ? (double)importance[i % COLS] : 1) * diff * diff;
    }
    return sum;
}

static void decode_rows(const dsv4_format *f, const uint8_t *raw, size_t rows, float *out)
{
    for (size_t r = 0; r < rows; r++)
        f->decode(&(dsv4_row){.data = raw + r * dsv4_format_row_bytes(f, COLS)}, COLS,
                  out + r * COLS);
}

/* The one place where bytes differ on purpose: below 2^-125 ggml's MXFP4 scale is a negative float
 * converted to a byte, which C does not define (x86 wraps it). Ours is the smallest scale. */
static bool undefined_in_ggml(const dsv4_format *f, const char *name)
{
    return f->type == DSV4_MXFP4 && strncmp(name, "denormal/", 9) == 0;
}

START_TEST(test_bytes_of_ggml)
{
    const dsv4_format *f = dsv4_format_of((dsv4_type)_i);
    if (!in_vectors(f) || !f->encode)
        return;
    hid_t file = vectors_open();
    sources s = sources_open(file);
    type_vectors t = vectors_type(file, f);
    static uint8_t raw[MAX_ROWS * MAX_BYTES];
    static float ours[MAX_ROWS * COLS];
    double ours_total = 0, theirs_total = 0;
    size_t equal = 0, excused = 0, importance_matters = 0, weighted_cases = 0;
    ck_assert_uint_eq(t.rows, s.rows);

    for (size_t c = 0; c < t.cases.count; c++) {
        const char *name = name_at(&t.cases, c);
        const float *importance, *x = case_input(&s, name, &importance);
        size_t bytes = t.rows * t.bytes;
        memset(raw, 0xa5, sizeof raw);
        ck_assert(f->encode(x, (int64_t)t.rows, COLS, importance, &(dsv4_encoded){.data = raw}));
        ck_assert_msg(raw[bytes] == 0xa5, "%s wrote past its rows", f->name);
        bool same = memcmp(raw, raw_row(&t, c, 0), bytes) == 0;
        decode_rows(f, raw, t.rows, ours);
        double error = weighted_error(x, ours, importance, t.rows);
        double theirs = weighted_error(x, decoded_row(&t, c, 0), importance, t.rows);
        if (undefined_in_ggml(f, name)) {
            ck_assert(error <= theirs);
            excused += !same;
        } else {
            ck_assert_msg(same, "%s %s: other bytes than ggml's, error %g against %g", f->name,
                          name, error, theirs);
        }
        equal += same;
        if (isfinite(error) && isfinite(theirs)) {
            ours_total += error;
            theirs_total += theirs;
        }
        /* A twin that ignores the importance. */
        if (importance && !f->needs_importance) {
            weighted_cases++;
            f->encode(x, (int64_t)t.rows, COLS, NULL, &(dsv4_encoded){.data = raw});
            importance_matters += memcmp(raw, raw_row(&t, c, 0), bytes) != 0;
        }
    }
    ck_assert_uint_eq(equal + excused, t.cases.count);
    ck_assert(ours_total <= theirs_total * 1.02);
    bool takes_importance = f->type != DSV4_F16 && f->type != DSV4_BF16 && f->type != DSV4_Q8_0 &&
                            f->type != DSV4_MXFP4 && !f->needs_importance;
    if (takes_importance && weighted_cases > 0)
        ck_assert_msg(importance_matters > 0, "%s: ignoring the importance passed", f->name);
    vectors_free(&t);
    sources_free(&s);
    H5Fclose(file);
}
END_TEST

START_TEST(test_needs_importance)
{
    static const float x[256] = {1};
    uint8_t raw[66];
    for (int i = 0; i < DSV4_TYPE_COUNT; i++) {
        const dsv4_format *f = dsv4_format_of((dsv4_type)i);
        if (f->needs_importance)
            ck_assert(!f->encode(x, 1, 256, NULL, &(dsv4_encoded){.data = raw}));
    }
    ck_assert(dsv4_format_of(DSV4_IQ2_XXS)->needs_importance);
    ck_assert(dsv4_format_of(DSV4_IQ1_S)->needs_importance);
}
END_TEST

/* The book's neighbour lists are a cache: without memory for it the bytes are the same. */
START_TEST(test_without_memory)
{
    static const dsv4_type types[] = {DSV4_IQ2_XXS, DSV4_IQ1_S};
    float x[512], w[512];
    uint64_t seed = 3;
    for (int i = 0; i < 512; i++) {
        x[i] = next_float(&seed);
        w[i] = 1 + next_float(&seed);
    }
    for (size_t t = 0; t < 2; t++) {
        const dsv4_format *f = dsv4_format_of(types[t]);
        uint8_t with[132] = {0}, without[132] = {0};
        ck_assert(f->encode(x, 1, 512, w, &(dsv4_encoded){.data = with}));
        for (long fail = 1; fail <= 4; fail++) {
            dsv4_alloc_fail_at(fail);
            ck_assert(f->encode(x, 1, 512, w, &(dsv4_encoded){.data = without}));
            dsv4_alloc_fail_at(0);
            ck_assert_mem_eq(with, without, sizeof with);
        }
    }
}
END_TEST

/* ---- wrong twins of the rounding rules --------------------------------------------------- */

/* Q8_0 with ties to even, and with the scale rounded to f16 before dividing. */
static void q8_0_twin(const float *x, uint8_t *p, bool even, bool stored_scale)
{
    for (int i = 0; i < COLS; i += 32, p += 34) {
        float amax = 0;
        for (int j = 0; j < 32; j++)
            amax = fmaxf(amax, fabsf(x[i + j]));
        float d = amax / 127;
        uint16_t h = dsv4_f32_to_f16(d);
        memcpy(p, &h, 2);
        if (stored_scale)
            d = dsv4_f16_to_f32(h);
        for (int j = 0; j < 32; j++) {
            float v = d > 0 ? x[i + j] * (1 / d) : 0;
            p[2 + j] = (uint8_t)(int8_t)fmaxf(-128, fminf(127, even ? rintf(v) : roundf(v)));
        }
    }
}

START_TEST(test_rounding_twins)
{
    float x[COLS];
    uint8_t right[544], twin[544];
    /* A maximum of 127 makes the scale one: halves are ties. */
    for (int i = 0; i < COLS; i++)
        x[i] = i % 32 == 0 ? 127 : (float)(i % 32) - 16.5f;
    dsv4_quantize_q8_0(x, COLS, right);
    q8_0_twin(x, twin, false, false);
    ck_assert_mem_eq(right, twin, sizeof right);
    q8_0_twin(x, twin, true, false);
    ck_assert_mem_ne(right, twin, sizeof right);
    uint64_t seed = 5;
    for (int i = 0; i < COLS; i++)
        x[i] = next_float(&seed);
    dsv4_quantize_q8_0(x, COLS, right);
    q8_0_twin(x, twin, false, true);
    ck_assert_mem_ne(right, twin, sizeof right);
}
END_TEST

/* ---- FP8 and FP4 ------------------------------------------------------------------------- */

static float power(int k)
{
    return (float)ldexp(1, k);
}

/* Random codes as a release would hold them: the maximum in (top/2, top], some value that only the
 * chosen scale can represent. Decoded and encoded again they are the same bytes. */
START_TEST(test_fp4_round_trip)
{
    enum { ROWS = 64, WIDTH = 256 };
    const dsv4_format *f = dsv4_format_of(DSV4_FP4);
    static uint8_t codes[ROWS * WIDTH / 2], scale[ROWS * WIDTH / 32];
    static uint8_t codes2[sizeof codes], scale2[sizeof scale];
    static float x[ROWS * WIDTH];
    uint64_t seed = 11;
    for (size_t i = 0; i < sizeof codes; i++)
        codes[i] = (uint8_t)next_random(&seed);
    for (size_t b = 0; b < sizeof scale; b++) {
        static const uint8_t tops[] = {5, 6, 7}; /* 3 is what just above 3 rounds to */
        scale[b] = (uint8_t)(20 + next_random(&seed) % 200);
        uint8_t top = tops[b % 3];
        for (int i = 0; i < 16; i++) {
            uint8_t *c = &codes[b * 16 + (size_t)i];
            uint8_t lo = (*c & 7) > top ? 5 : *c & 7, hi = (*c >> 4 & 7) > top ? 5 : *c >> 4 & 7;
            *c = (uint8_t)((*c & 0x88) | lo | hi << 4);
        }
        codes[b * 16] = (uint8_t)(top | 0x90); /* the maximum, and -0.5 */
    }
    for (int64_t r = 0; r < ROWS; r++)
        f->decode(&(dsv4_row){codes + r * WIDTH / 2, scale + r * WIDTH / 32, NULL, 32, DSV4_F32},
                  WIDTH, x + r * WIDTH);
    ck_assert(f->encode(x, ROWS, WIDTH, NULL, &(dsv4_encoded){.data = codes2, .scale = scale2}));
    ck_assert_mem_eq(scale, scale2, sizeof scale);
    ck_assert_mem_eq(codes, codes2, sizeof codes);
}
END_TEST

START_TEST(test_fp8_round_trip)
{
    enum { ROWS = 200, WIDTH = 300, BLOCKS = 2 * 3 };
    const dsv4_format *f = dsv4_format_of(DSV4_FP8);
    static uint8_t codes[ROWS * WIDTH], codes2[ROWS * WIDTH];
    uint8_t scale[BLOCKS] = {127, 1, 120, 140, 90, 110}, scale2[BLOCKS];
    static float x[ROWS * WIDTH];
    uint64_t seed = 13;
    for (size_t i = 0; i < sizeof codes; i++) {
        codes[i] = (uint8_t)next_random(&seed);
        if ((codes[i] & 0x7f) > 0x76) /* at most 224 */
            codes[i] &= 0xf0;
    }
    for (int b = 0; b < BLOCKS; b++) { /* maxima 224, 240 and 448; an odd subnormal in each */
        static const uint8_t tops[] = {0x76, 0x77, 0x7e};
        uint8_t *first = codes + b / 3 * 128 * WIDTH + b % 3 * 128;
        first[0] = tops[b % 3];
        first[1] = 0x81;
    }
    for (int64_t r = 0; r < ROWS; r++)
        f->decode(&(dsv4_row){codes + r * WIDTH, scale + r / 128 * 3, NULL, 128, DSV4_F32}, WIDTH,
                  x + r * WIDTH);
    ck_assert(f->encode(x, ROWS, WIDTH, NULL, &(dsv4_encoded){.data = codes2, .scale = scale2}));
    ck_assert_mem_eq(scale, scale2, sizeof scale);
    ck_assert_mem_eq(codes, codes2, sizeof codes);
}
END_TEST

/* Unrounded values: the scale is the smallest power of two that does not saturate, the codes are
 * the nearest. */
START_TEST(test_fp4_fp8_nearest)
{
    float x[128 * 2];
    uint8_t codes[128 * 2], scale[8];
    uint64_t seed = 19;
    for (int round = 0; round < 200; round++) {
        float amplitude = power((int)(next_random(&seed) % 200) - 100), amax4 = 0, amax8 = 0;
        for (int i = 0; i < 256; i++) {
            x[i] = next_float(&seed) * amplitude;
            amax8 = fmaxf(amax8, fabsf(x[i]));
        }
        dsv4_format_of(DSV4_FP8)->encode(x, 2, 128, NULL,
                                         &(dsv4_encoded){.data = codes, .scale = scale});
        float s = dsv4_e8m0_to_f32(scale[0]);
        ck_assert(amax8 <= 448 * s && amax8 > 224 * s);
        for (int i = 0; i < 256; i++)
            ck_assert_uint_eq(codes[i], dsv4_f32_to_e4m3(x[i] / s));
        dsv4_format_of(DSV4_FP4)->encode(x, 2, 128, NULL,
                                         &(dsv4_encoded){.data = codes, .scale = scale});
        for (int b = 0; b < 8; b++) {
            s = dsv4_e8m0_to_f32(scale[b]);
            amax4 = 0;
            for (int i = 32 * b; i < 32 * b + 32; i++) {
                amax4 = fmaxf(amax4, fabsf(x[i]));
                ck_assert_uint_eq(codes[i / 2] >> 4 * (i % 2) & 15, dsv4_f32_to_e2m1(x[i] / s));
            }
            ck_assert(amax4 <= 6 * s && amax4 > 3 * s);
        }
    }
}
END_TEST

/* ---- MLX --------------------------------------------------------------------------------- */

/* The plain min/max quantiser that loads but is not MLX's. */
static void minmax_twin(const float *x, int n, int top, float *scale, float *bias)
{
    float lo = x[0], hi = x[0];
    for (int i = 1; i < n; i++) {
        lo = fminf(lo, x[i]);
        hi = fmaxf(hi, x[i]);
    }
    *scale = (hi - lo) / (float)top;
    *bias = lo;
}

START_TEST(test_mlx)
{
    static const int groups[] = {32, 64, 128};
    uint64_t seed = 23;
    int twin_differs = 0;
    for (int round = 0; round < 60; round++) {
        int bits = round % 2 ? 8 : 4, group = groups[round % 3], top = bits == 8 ? 255 : 15;
        dsv4_type scale_type = round % 5 < 2 ? DSV4_F32 : round % 5 < 4 ? DSV4_F16 : DSV4_BF16;
        const dsv4_format *f = dsv4_format_of(bits == 8 ? DSV4_MLX8 : DSV4_MLX4);
        float x[256], out[256], scale[8], bias[8];
        uint8_t codes[256];
        for (int i = 0; i < 256; i++)
            x[i] = next_float(&seed) + (round % 4 == 3 ? 0.4f : 0);
        dsv4_encoded e = {codes, scale, bias, group, scale_type};
        ck_assert(f->encode(x, 1, 256, NULL, &e));
        dsv4_row row = {codes, (uint8_t *)scale, (uint8_t *)bias, group, scale_type};
        f->decode(&row, 256, out);
        for (int g = 0; g < 256 / group; g++) {
            float lo = 2, hi = -2, least = 2;
            for (int i = g * group; i < (g + 1) * group; i++) {
                lo = fminf(lo, x[i]);
                hi = fmaxf(hi, x[i]);
            }
            /* Half a step, and as much again because bending the scale to hit zero may cut the far
             * end by up to half a step; f16 and bf16 factors round by 2^-9 at most. */
            float bound =
                (hi - lo) / (float)top * 1.1f + (scale_type == DSV4_F32 ? 1e-6f : 0x1p-7f);
            for (int i = g * group; i < (g + 1) * group; i++)
                ck_assert(fabsf(out[i] - x[i]) <= bound);
            if (scale_type == DSV4_F32) {
                float s, b, edge = fabsf(lo) > fabsf(hi) ? lo : hi;
                ck_assert(bias[g] == edge); /* the larger extreme is met exactly */
                for (int q = 0; q <= top; q++)
                    least = fminf(least, fabsf(scale[g] * (float)q + bias[g]));
                ck_assert(least < 1e-6f || lo > 0 || hi < 0); /* and so is zero */
                minmax_twin(x + g * group, group, top, &s, &b);
                twin_differs += s != scale[g] || b != bias[g];
            }
        }
    }
    ck_assert_int_gt(twin_differs, 0);
}
END_TEST

/* ---- hostile input ----------------------------------------------------------------------- */

static void hostile_block(int kind, float *x, int n, uint64_t *seed)
{
    for (int i = 0; i < n; i++) {
        float r = next_float(seed);
        switch (kind) {
        case 0:
            x[i] = 0;
            break;
        case 1:
            x[i] = -0.0f;
            break;
        case 2:
            x[i] = 1;
            break;
        case 3:
            x[i] = -1;
            break;
        case 4:
            x[i] = FLT_TRUE_MIN * (float)(int)(4 * r);
            break;
        case 5:
            x[i] = FLT_MIN * r;
            break;
        case 6:
            x[i] = FLT_MAX;
            break;
        case 7:
            x[i] = i % 2 ? FLT_MAX : -FLT_MAX;
            break;
        case 8:
            x[i] = i == n / 2 ? FLT_MAX : 0;
            break;
        case 9:
            x[i] = i == n / 2 ? FLT_TRUE_MIN : 0;
            break;
        case 10:
            x[i] = r * 1e30f;
            break;
        case 11:
            x[i] = r * 1e-20f;
            break;
        case 12:
            x[i] = i % 2 ? 1 : 1 + FLT_EPSILON;
            break;
        case 13:
            x[i] = i / 256 % 2 ? r : 0;
            break;
        default:
            x[i] = i % 32 == 0 ? r * 1e6f : r * 1e-6f;
            break;
        }
    }
}
enum { HOSTILE_KINDS = 15 };

/* Nothing may crash, divide by an integer zero or leave bytes unwritten; what is zero decodes to
 * zero. Importance of zero and of huge values too. */
START_TEST(test_hostile)
{
    const dsv4_format *f = dsv4_format_of((dsv4_type)_i);
    if (!f->encode)
        return;
    size_t bytes = 2 * dsv4_format_row_bytes(f, COLS);
    uint8_t *a = malloc(bytes), *b = malloc(bytes);
    float x[2 * COLS], w[COLS], out[COLS];
    float scale[2 * COLS / 32], bias[2 * COLS / 32];
    uint64_t seed = 29;
    for (int kind = 0; kind < HOSTILE_KINDS; kind++) {
        for (int weights = f->needs_importance; weights < 4; weights++) {
            hostile_block(kind, x, 2 * COLS, &seed);
            for (int i = 0; i < COLS; i++)
                w[i] = weights == 1 ? 1 : weights == 2 ? 0 : i % 3 ? 3e38f : 0;
            memset(a, 0x55, bytes);
            memset(b, 0xaa, bytes);
            memset(scale, 0, sizeof scale);
            dsv4_encoded e = {a, scale, bias, 32, DSV4_F32};
            ck_assert(f->encode(x, 2, COLS, weights ? w : NULL, &e));
            e.data = b;
            ck_assert(f->encode(x, 2, COLS, weights ? w : NULL, &e));
            ck_assert_msg(memcmp(a, b, bytes) == 0, "%s leaves bytes unwritten", f->name);
            f->decode(&(dsv4_row){a, (uint8_t *)scale, (uint8_t *)bias,
                                  f->type == DSV4_FP8 ? 128 : 32, DSV4_F32},
                      COLS, out);
            for (int i = 0; kind < 2 && i < COLS; i++)
                ck_assert(out[i] == 0);
        }
    }
    free(a);
    free(b);
}
END_TEST

int main(void)
{
    TCase *cases[] = {tcase_create("ggml"), tcase_create("twins"), tcase_create("fp8 and fp4"),
                      tcase_create("mlx"), tcase_create("hostile")};
    tcase_add_loop_test(cases[0], test_bytes_of_ggml, 0, DSV4_TYPE_COUNT);
    tcase_add_test(cases[0], test_needs_importance);
    tcase_add_test(cases[0], test_without_memory);
    tcase_add_test(cases[1], test_rounding_twins);
    tcase_add_test(cases[2], test_fp4_round_trip);
    tcase_add_test(cases[2], test_fp8_round_trip);
    tcase_add_test(cases[2], test_fp4_fp8_nearest);
    tcase_add_test(cases[3], test_mlx);
    tcase_add_loop_test(cases[4], test_hostile, 0, DSV4_TYPE_COUNT);
    return run_suite("formats: encode", cases, (int)(sizeof cases / sizeof *cases));
}
