/* test_formats_dot.c - dot products: against the products of the decoded values, and with int8
 * activation blocks against two builds of ggml (scalar x86-64 and zen4). */
#include <float.h>

#include "test_formats_vectors.h"

static const char *const activations[] = {"normal", "outliers", "ramp", "sparse"};
static const char *const weight_kinds[] = {"normal_none",   "normal_ones",   "outliers_none",
                                           "outliers_ones", "fp4_grid_none", "fp4_grid_ones",
                                           "bits"};

/* One group of the file: weights and activations of one type, row by row. */
typedef struct {
    size_t weights, acts; /* rows */
    const uint8_t *raw[8];
    const float *decoded[8];
    array exact, x64, zen4, act_raw;
} group;

/* Fills in the weight rows. The dot products of random MXFP4 bits leave out the rows whose scales
 * would overflow a float. */
static void weight_rows(const type_vectors *t, const char *kind, group *g)
{
    size_t want = (size_t)g->exact.dim[0];
    g->weights = 0;
    ck_assert(want <= 8);
    if (strcmp(kind, "bits") == 0) {
        for (size_t b = 0; b < 6 && g->weights < want; b++) {
            const float *values = (const float *)t->bits_decoded.data + b * COLS;
            float largest = 0;
            for (int i = 0; i < COLS; i++)
                largest = fmaxf(largest, fabsf(values[i]));
            if (largest > 1e30f)
                continue;
            g->raw[g->weights] = (const uint8_t *)t->bits_raw.data + b * t->bytes;
            g->decoded[g->weights++] = values;
        }
    } else {
        char name[NAME];
        snprintf(name, sizeof name, "%s", kind);
        *strrchr(name, '_') = '/';
        int c = name_find(&t->cases, name, strlen(name));
        for (size_t r = 0; c >= 0 && r < want; r++) {
            g->raw[r] = raw_row(t, (size_t)c, r);
            g->decoded[r] = decoded_row(t, (size_t)c, r);
            g->weights++;
        }
    }
}

static bool group_open(hid_t file, const type_vectors *t, const char *kind, const char *act,
                       group *g)
{
    char path[160], full[200];
    snprintf(path, sizeof path, "/types/%s/dot/%s", t->format->name, kind);
    if (!vectors_has(file, path))
        return false;
    snprintf(path, sizeof path, "/types/%s/dot/%s/%s", t->format->name, kind, act);
    if (!vectors_has(file, path))
        return false;
    snprintf(full, sizeof full, "%s/exact", path);
    g->exact = vectors_read(file, full, H5T_NATIVE_DOUBLE);
    snprintf(full, sizeof full, "%s/x64", path);
    g->x64 = vectors_read(file, full, H5T_NATIVE_DOUBLE);
    snprintf(full, sizeof full, "%s/zen4", path);
    g->zen4 = vectors_read(file, full, H5T_NATIVE_DOUBLE);
    snprintf(full, sizeof full, "%s/activation_raw", path);
    g->act_raw = vectors_read(file, full, H5T_NATIVE_UINT8);
    g->acts = (size_t)g->exact.dim[1];
    ck_assert_uint_eq(g->acts, g->act_raw.dim[0]);
    weight_rows(t, kind, g);
    /* Types that are only decoded may have lost the case to trimming, never the random bits. */
    return g->weights == g->exact.dim[0];
}

static void group_close(group *g)
{
    free(g->exact.data);
    free(g->x64.data);
    free(g->zen4.data);
    free(g->act_raw.data);
}

/* The size of what is added up: in formats with a minimum the value is a difference, both terms of
 * which are of the order of the group's largest value. */
static double magnitude(const float *w, const float *x)
{
    double sum = 0;
    for (int i = 0; i < COLS; i += 32) {
        double largest = 0, total = 0;
        for (int j = i; j < i + 32; j++) {
            largest = fmax(largest, fabs((double)w[j]));
            total += fabs((double)x[j]);
        }
        sum += largest * total;
    }
    return sum;
}

enum { SUMS = 36, Q8_1_BYTES = 36, ACT_BYTES = 584 };

/* Q8_1 is Q8_0 with the activations' sum (times d, in f16) between d and the codes. Ours needs no
 * stored sum: drops it, and returns in `correction` what its rounding makes of the result. */
static double from_q8_1(const uint8_t *q8_1, const dsv4_format *f, const uint8_t *weights,
                        uint8_t *q8_0)
{
    double correction = 0;
    for (int b = 0; b < COLS / 32; b++) {
        const uint8_t *from = q8_1 + b * Q8_1_BYTES;
        uint8_t *to = q8_0 + b * 34;
        uint16_t d, s, m;
        int total = 0;
        memcpy(&d, from, 2);
        memcpy(&s, from + 2, 2);
        memcpy(&m, weights + b * f->block_bytes + 2, 2);
        memcpy(to, from, 2);
        memcpy(to + 2, from + 4, 32);
        for (int i = 0; i < 32; i++)
            total += (int8_t)to[2 + i];
        correction += (double)dsv4_f16_to_f32(m) *
                      ((double)dsv4_f16_to_f32(s) - (double)dsv4_f16_to_f32(d) * total);
    }
    return correction;
}

/* Calls `use` for every product of a group with our result (from weights and activations that
 * `break_it` may have spoilt) and the tolerance. Returns how many are outside it. */
typedef void (*spoil_fn)(uint8_t *weights, size_t weight_bytes, uint8_t *acts, size_t act_bytes);

static size_t outside(const type_vectors *t, const group *g, const float *x, spoil_fn spoil)
{
    const dsv4_format *f = t->format;
    const double *x64 = g->x64.data, *zen4 = g->zen4.data;
    size_t wrong = 0, act_bytes = (size_t)g->act_raw.dim[1];
    bool sums = f->type == DSV4_Q4_1 || f->type == DSV4_Q5_1;
    double between = 0;
    for (size_t i = 0; i < g->weights * g->acts; i++)
        between = fmax(between, fabs(x64[i] - zen4[i]));
    for (size_t w = 0; w < g->weights; w++) {
        for (size_t a = 0; a < g->acts; a++) {
            uint8_t weights[1100], act[ACT_BYTES];
            double correction = 0;
            memcpy(weights, g->raw[w], t->bytes);
            const uint8_t *stored = (const uint8_t *)g->act_raw.data + a * act_bytes;
            if (sums)
                correction = from_q8_1(stored, f, weights, act);
            else
                memcpy(act, stored, act_bytes);
            if (spoil)
                spoil(weights, t->bytes, act, sums ? 544 : act_bytes);
            double ours = (double)f->dot_act(&(dsv4_row){.data = weights}, COLS, act) + correction;
            /* Two builds of ggml differ by this much; sums of floats round like this. */
            double tolerance =
                2 * between + 2 * (double)FLT_EPSILON * magnitude(g->decoded[w], x + a * COLS);
            wrong += !(fabs(ours - x64[w * g->acts + a]) <= tolerance);
        }
    }
    return wrong;
}

/* Spoilt in the way wrong kernels are. */
static void one_scale_up(uint8_t *w, size_t n, uint8_t *a, size_t m)
{
    (void)w, (void)n, (void)m;
    a[1] ^= 1; /* f16 d of the first block, or the middle of the float's mantissa */
}
static void one_code_off(uint8_t *w, size_t n, uint8_t *a, size_t m)
{
    (void)w, (void)n, (void)m;
    a[20] = (uint8_t)(a[20] ^ 4);
}
static void swapped_nibbles(uint8_t *w, size_t n, uint8_t *a, size_t m)
{
    (void)a, (void)m;
    for (size_t i = n / 2; i < n; i++)
        w[i] = (uint8_t)(w[i] << 4 | w[i] >> 4);
}
static void no_sums(uint8_t *w, size_t n, uint8_t *a, size_t m)
{
    (void)w, (void)n;
    for (size_t i = 260; m == ACT_BYTES && i < 292; i++)
        a[i] = 0;
}
static void last_block_lost(uint8_t *w, size_t n, uint8_t *a, size_t m)
{
    (void)w, (void)n;
    memset(a + m / 2, 0, m / 2);
}

START_TEST(test_against_ggml)
{
    const dsv4_format *f = dsv4_format_of((dsv4_type)_i);
    if (!in_vectors(f))
        return;
    hid_t file = vectors_open();
    type_vectors t = vectors_type(file, f);
    array acts = vectors_read(file, "/acts/rows", H5T_NATIVE_FLOAT);
    array act_names = vectors_names(file, "/acts/names");
    size_t groups = 0, caught[5] = {0};
    for (size_t k = 0; k < sizeof weight_kinds / sizeof *weight_kinds; k++) {
        for (size_t n = 0; n < sizeof activations / sizeof *activations; n++) {
            group g = {0};
            const char *act = activations[n];
            bool there = group_open(file, &t, weight_kinds[k], act, &g);
            if (there) {
                groups++;
                int index = name_find(&act_names, act, strlen(act));
                ck_assert(index >= 0);
                const float *x = (const float *)acts.data + (size_t)index * acts.dim[1] * COLS;
                const double *exact = g.exact.data;
                for (size_t w = 0; w < g.weights; w++) {
                    for (size_t a = 0; a < g.acts; a++) {
                        double dot = f->dot(&(dsv4_row){.data = g.raw[w]}, COLS, x + a * COLS);
                        double slack = 512 * DBL_EPSILON * magnitude(g.decoded[w], x + a * COLS);
                        ck_assert_msg(fabs(dot - exact[w * g.acts + a]) <= slack, "%s %s %s",
                                      f->name, weight_kinds[k], act);
                    }
                }
                if (f->dot_act) {
                    size_t wrong = outside(&t, &g, x, NULL);
                    ck_assert_msg(wrong == 0, "%s %s %s: %zu products off", f->name,
                                  weight_kinds[k], act, wrong);
                    static const spoil_fn spoils[5] = {one_scale_up, one_code_off, swapped_nibbles,
                                                       no_sums, last_block_lost};
                    for (int s = 0; s < 5; s++)
                        caught[s] += outside(&t, &g, x, spoils[s]) > 0;
                }
            }
            group_close(&g);
        }
    }
    ck_assert_msg(groups > 0, "%s has no dot products", f->name);
    if (f->dot_act) {
        bool minima = f->type == DSV4_Q2_K || f->type == DSV4_Q4_K || f->type == DSV4_Q5_K;
        for (int s = 0; s < 5; s++)
            ck_assert_msg(caught[s] > 0 || (s == 3 && !minima), "%s: wrong twin %d passed", f->name,
                          s);
    }
    free(acts.data);
    free(act_names.data);
    vectors_free(&t);
    H5Fclose(file);
}
END_TEST

/* Activation blocks equal ggml's. */
START_TEST(test_activations)
{
    hid_t file = vectors_open();
    array acts = vectors_read(file, "/acts/rows", H5T_NATIVE_FLOAT);
    array names = vectors_names(file, "/acts/names");
    static const struct {
        dsv4_type type;
        size_t bytes;
        void (*quantize)(const float *, int64_t, void *);
    } kinds[] = {{DSV4_Q8_0, 544, dsv4_quantize_q8_0},
                 {DSV4_Q4_K, 584, dsv4_quantize_q8_k},
                 {DSV4_Q4_1, 576, dsv4_quantize_q8_0}};
    for (size_t k = 0; k < 3; k++) {
        for (size_t n = 0; n < names.count; n++) {
            char path[128];
            snprintf(path, sizeof path, "/types/%s/dot/normal_none/%s/activation_raw",
                     dsv4_format_of(kinds[k].type)->name, name_at(&names, n));
            array raw = vectors_read(file, path, H5T_NATIVE_UINT8);
            ck_assert_uint_eq(raw.dim[1], kinds[k].bytes);
            for (size_t r = 0; r < acts.dim[1]; r++) {
                uint8_t ours[ACT_BYTES];
                const uint8_t *theirs = (const uint8_t *)raw.data + r * kinds[k].bytes;
                kinds[k].quantize((const float *)acts.data + (n * acts.dim[1] + r) * COLS, COLS,
                                  ours);
                if (kinds[k].bytes == 576) { /* Q8_1: the same but for the sum */
                    for (int b = 0; b < COLS / 32; b++) {
                        ck_assert_mem_eq(ours + 34 * b, theirs + Q8_1_BYTES * b, 2);
                        ck_assert_mem_eq(ours + 34 * b + 2, theirs + Q8_1_BYTES * b + 4, 32);
                    }
                } else {
                    ck_assert_mem_eq(ours, theirs, kinds[k].bytes);
                }
            }
            free(raw.data);
        }
    }
    free(acts.data);
    free(names.data);
    H5Fclose(file);
}
END_TEST

/* A block of zeros after another one: nothing of the old block may stay, the sums above all. */
START_TEST(test_zero_activations)
{
    float x[512] = {0};
    uint8_t q8_k[584], zeros[292] = {0};
    memset(q8_k, 0x77, sizeof q8_k);
    x[3] = -5;
    dsv4_quantize_q8_k(x, 512, q8_k);
    ck_assert_mem_eq(q8_k + 292, zeros, 292);
    ck_assert_int_eq((int8_t)q8_k[4 + 3], -127);
    int16_t sum;
    memcpy(&sum, q8_k + 260, sizeof sum);
    ck_assert_int_eq(sum, -127);
    x[3] = -0.0f;
    memset(q8_k, 0x77, sizeof q8_k);
    dsv4_quantize_q8_k(x, 512, q8_k);
    ck_assert_mem_eq(q8_k, zeros, 292);
    uint8_t q8_0[544], none[544] = {0};
    memset(q8_0, 0x77, sizeof q8_0);
    dsv4_quantize_q8_0(x, 512, q8_0);
    ck_assert_mem_eq(q8_0, none, sizeof none);
    /* Subnormals: an inverse that overflows must not become a code. */
    for (int i = 0; i < 512; i++)
        x[i] = i % 2 ? FLT_TRUE_MIN : -FLT_TRUE_MIN;
    dsv4_quantize_q8_0(x, 512, q8_0);
    dsv4_quantize_q8_k(x, 512, q8_k);
}
END_TEST

/* The formats without vectors: the products of the decoded values in order, whatever the length. */
START_TEST(test_plain_dot)
{
    static const dsv4_type types[] = {DSV4_F32, DSV4_F16, DSV4_BF16, DSV4_I32, DSV4_I64,
                                      DSV4_FP8, DSV4_FP4, DSV4_MLX4, DSV4_MLX8};
    enum { WIDTH = 640 };
    uint64_t seed = 31;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        const dsv4_format *f = dsv4_format_of(types[t]);
        uint8_t data[WIDTH * 8], scale[WIDTH], bias[WIDTH];
        float x[WIDTH], values[WIDTH];
        for (size_t i = 0; i < sizeof data; i++)
            data[i] = (uint8_t)(next_random(&seed) % 0x3c); /* finite in every type */
        for (int i = 0; i < WIDTH; i++) {
            x[i] = next_float(&seed);
            /* e8m0 near one; for MLX half of a finite f16 */
            scale[i] = (uint8_t)(f->type == DSV4_FP8 || f->type == DSV4_FP4
                                     ? 100 + i % 50
                                     : (int)(next_random(&seed) % 0x3c));
            bias[i] = (uint8_t)(next_random(&seed) % 0x3c);
        }
        dsv4_row row = {data, scale, bias, types[t] == DSV4_FP8 ? 128 : 32, DSV4_F16};
        for (int64_t n = 2; n <= WIDTH; n += 106) {
            f->decode(&row, n, values);
            double sum = 0, twin = 0;
            int64_t largest = 0;
            for (int64_t i = 0; i < n; i++) {
                sum += (double)values[i] * (double)x[i];
                if (fabs((double)values[i] * (double)x[i]) >
                    fabs((double)values[largest] * (double)x[largest]))
                    largest = i;
            }
            for (int64_t i = 0; i < n; i++) /* the twin loses one column */
                twin += i == largest ? 0 : (double)values[i] * (double)x[i];
            double dot = f->dot(&row, n, x);
            ck_assert_msg(dot == sum && dot != twin, "%s, %d columns", f->name, (int)n);
        }
    }
}
END_TEST

int main(void)
{
    TCase *cases[] = {tcase_create("ggml"), tcase_create("activations"), tcase_create("plain")};
    tcase_add_loop_test(cases[0], test_against_ggml, 0, DSV4_TYPE_COUNT);
    tcase_add_test(cases[1], test_activations);
    tcase_add_test(cases[1], test_zero_activations);
    tcase_add_test(cases[2], test_plain_dot);
    return run_suite("formats: dot", cases, (int)(sizeof cases / sizeof *cases));
}
