/* test_formats_scalar.c - the scalar conversions, exhaustively, against an independent definition:
 * values by ldexp from the fields, in double; the nearest value by search, ties to the even code.
 */
#include "test_formats_vectors.h"

/* A small float: its codes without the sign, in rising order. */
typedef struct {
    const char *name;
    int exponent_bits, mantissa_bits, bias;
    uint32_t top;   /* the largest finite code */
    bool saturates; /* overflow goes to `top`, else to the code above it (infinity) */
    bool has_nan;
    float (*decode)(uint32_t code);
    uint32_t (*encode)(float f);
} small_float;

static double definition(const small_float *s, uint32_t code)
{
    uint32_t mantissa = code & ((1u << s->mantissa_bits) - 1);
    int exponent = (int)(code >> s->mantissa_bits) & ((1 << s->exponent_bits) - 1);
    if (exponent == 0)
        return ldexp((double)mantissa, 1 - s->bias - s->mantissa_bits);
    return ldexp((double)((1u << s->mantissa_bits) + mantissa),
                 exponent - s->bias - s->mantissa_bits);
}

static uint32_t sign_bit(const small_float *s)
{
    return 1u << (s->exponent_bits + s->mantissa_bits);
}

/* The code of the nearest value to |f|, by bisection over the defined values. */
static uint32_t nearest(const small_float *s, float f)
{
    double a = fabs((double)f);
    uint32_t lo = 0, hi = s->top;
    if (a >= definition(s, s->top)) {
        /* Above the top: the next value, were there one, decides between top and infinity. */
        double next = 2 * definition(s, s->top) - definition(s, s->top - 1);
        bool up = a >= (definition(s, s->top) + next) / 2;
        return s->top + (up && !s->saturates);
    }
    while (hi - lo > 1) {
        uint32_t mid = (lo + hi) / 2;
        if (definition(s, mid) <= a)
            lo = mid;
        else
            hi = mid;
    }
    double below = a - definition(s, lo), above = definition(s, hi) - a;
    return below < above || (below == above && lo % 2 == 0) ? lo : hi;
}

static int mismatch(const small_float *s, float f)
{
    int wrong = 0;
    for (int negative = 0; negative < 2; negative++) {
        float v = negative ? -f : f;
        wrong += s->encode(v) != (nearest(s, v) | (negative ? sign_bit(s) : 0));
    }
    return wrong;
}

/* Wrong results: at every value, at every midpoint, one float32 beside each - where alone the
 * answer can change - and at a lattice through all float32. */
static int wrong_encodings(const small_float *s)
{
    int wrong = 0;
    for (uint32_t code = 0; code <= s->top; code++) {
        double v = definition(s, code);
        double next = code < s->top ? definition(s, code + 1) : 2 * v - definition(s, code - 1);
        float points[2] = {(float)v, (float)((v + next) / 2)};
        for (int p = 0; p < 2; p++) {
            wrong += mismatch(s, points[p]);
            wrong += mismatch(s, nextafterf(points[p], INFINITY));
            if (points[p] > 0)
                wrong += mismatch(s, nextafterf(points[p], 0));
        }
    }
    for (uint32_t bits = 0; bits < 0x7f800000u; bits += 8171) {
        float f;
        memcpy(&f, &bits, sizeof f);
        wrong += mismatch(s, f);
    }
    if (s->encode(INFINITY) != s->top + !s->saturates)
        wrong++;
    return wrong;
}

static int wrong_decodings(const small_float *s)
{
    int wrong = 0;
    for (uint32_t code = 0; code <= s->top; code++) {
        double v = definition(s, code);
        float plus = s->decode(code), minus = s->decode(code | sign_bit(s));
        wrong += (double)plus != v || signbit(plus);
        wrong += (double)minus != -v || !signbit(minus);
    }
    return wrong;
}

static float decode_f16(uint32_t code)
{
    return dsv4_f16_to_f32((uint16_t)code);
}
static uint32_t encode_f16(float f)
{
    return dsv4_f32_to_f16(f);
}
static float decode_bf16(uint32_t code)
{
    return dsv4_bf16_to_f32((uint16_t)code);
}
static uint32_t encode_bf16(float f)
{
    return dsv4_f32_to_bf16(f);
}
static float decode_e4m3(uint32_t code)
{
    return dsv4_e4m3_to_f32((uint8_t)code);
}
static uint32_t encode_e4m3(float f)
{
    return dsv4_f32_to_e4m3(f);
}
static float decode_e2m1(uint32_t code)
{
    return dsv4_e2m1_to_f32((uint8_t)code);
}
static uint32_t encode_e2m1(float f)
{
    return dsv4_f32_to_e2m1(f);
}

static const small_float floats[] = {
    {"f16", 5, 10, 15, 0x7bff, false, true, decode_f16, encode_f16},
    {"bf16", 8, 7, 127, 0x7f7f, false, true, decode_bf16, encode_bf16},
    {"e4m3", 4, 3, 7, 0x7e, true, true, decode_e4m3, encode_e4m3},
    {"e2m1", 2, 1, 1, 7, true, false, decode_e2m1, encode_e2m1},
};
enum { FLOATS = sizeof floats / sizeof *floats };

START_TEST(test_decode)
{
    ck_assert_msg(wrong_decodings(&floats[_i]) == 0, "%s", floats[_i].name);
}
END_TEST

START_TEST(test_encode)
{
    ck_assert_msg(wrong_encodings(&floats[_i]) == 0, "%s", floats[_i].name);
}
END_TEST

/* All NaN codes decode to NaN, all finite codes come back from their value, NaN encodes to NaN. */
START_TEST(test_round_trip)
{
    const small_float *s = &floats[_i];
    for (uint32_t code = 0; code < 2 * sign_bit(s); code++) {
        float f = s->decode(code);
        uint32_t magnitude = code & (sign_bit(s) - 1);
        bool infinite = !s->saturates && magnitude == s->top + 1;
        if (magnitude <= s->top || infinite) {
            ck_assert_uint_eq(s->encode(f), code);
        } else {
            ck_assert(isnan(f));
            ck_assert(isnan(s->decode(s->encode(f))));
        }
    }
    static const uint32_t nans[] = {0x7f800001u, 0xff800001u, 0x7fc00000u, 0x7fffffffu,
                                    0xffffffffu};
    for (size_t i = 0; s->has_nan && i < sizeof nans / sizeof *nans; i++) {
        float f;
        memcpy(&f, &nans[i], sizeof f);
        uint32_t code = s->encode(f);
        ck_assert(isnan(s->decode(code)));
        ck_assert_int_eq((code & sign_bit(s)) != 0, nans[i] >> 31);
    }
}
END_TEST

START_TEST(test_e8m0)
{
    for (int code = 0; code < 255; code++)
        ck_assert((double)dsv4_e8m0_to_f32((uint8_t)code) == ldexp(1, code - 127));
    ck_assert(isnan(dsv4_e8m0_to_f32(255)));
}
END_TEST

/* ---- wrong twins: the checks above must see each of them --------------------------------- */

/* Ties away from zero instead of to even. */
static uint32_t bf16_ties_up(float f)
{
    uint32_t b;
    memcpy(&b, &f, sizeof b);
    return (b + 0x8000u) >> 16;
}

/* Truncation. */
static uint32_t bf16_truncated(float f)
{
    uint32_t b;
    memcpy(&b, &f, sizeof b);
    return b >> 16;
}

/* Subnormals flushed to zero. */
static uint32_t f16_flushed(float f)
{
    uint32_t code = dsv4_f32_to_f16(f);
    return code & 0x7c00u ? code : code & 0x8000u;
}

static uint32_t f16_ties_up(float f)
{
    uint32_t code = dsv4_f32_to_f16(f);
    double v = fabs((double)f), next = fabs((double)dsv4_f16_to_f32((uint16_t)(code + 1)));
    double here = fabs((double)dsv4_f16_to_f32((uint16_t)code));
    return (code & 0x7fffu) < 0x7bffu && v - here == next - v ? code + 1 : code;
}

static uint32_t e4m3_overflows(float f)
{
    return fabsf(f) > 464 ? (signbit(f) ? 0xffu : 0x7fu) : dsv4_f32_to_e4m3(f);
}

static uint32_t e4m3_ties_up(float f)
{
    uint32_t code = dsv4_f32_to_e4m3(f), magnitude = code & 127u;
    double v = fabs((double)f), here = fabs((double)dsv4_e4m3_to_f32((uint8_t)magnitude));
    double next = (double)dsv4_e4m3_to_f32((uint8_t)(magnitude + 1));
    return magnitude < 0x7e && v - here == next - v ? code + 1 : code;
}

static uint32_t e2m1_ties_up(float f)
{
    float a = fabsf(f);
    uint32_t sign = signbit(f) ? 8 : 0;
    return sign | (a < 0.25f   ? 0u
                   : a < 0.75f ? 1u
                   : a < 1.25f ? 2u
                   : a < 1.75f ? 3u
                   : a < 2.5f  ? 4u
                   : a < 3.5f  ? 5u
                   : a < 5     ? 6u
                               : 7u);
}

/* IEEE e4m3 reading: the top exponent is not for numbers. */
static float e4m3_ieee(uint32_t code)
{
    return (code & 0x78u) == 0x78u ? INFINITY : dsv4_e4m3_to_f32((uint8_t)code);
}

START_TEST(test_twins)
{
    struct {
        int base;
        uint32_t (*encode)(float);
        float (*decode)(uint32_t);
    } twins[] = {
        {0, f16_flushed, NULL},    {0, f16_ties_up, NULL},  {1, bf16_ties_up, NULL},
        {1, bf16_truncated, NULL}, {2, e4m3_ties_up, NULL}, {2, e4m3_overflows, NULL},
        {3, e2m1_ties_up, NULL},   {2, NULL, e4m3_ieee},
    };
    for (size_t i = 0; i < sizeof twins / sizeof *twins; i++) {
        small_float s = floats[twins[i].base];
        if (twins[i].encode) {
            s.encode = twins[i].encode;
            ck_assert_msg(wrong_encodings(&s) > 0, "twin %zu of %s passed", i, s.name);
        } else {
            s.decode = twins[i].decode;
            ck_assert_msg(wrong_decodings(&s) > 0, "twin %zu of %s passed", i, s.name);
        }
    }
}
END_TEST

int main(void)
{
    TCase *cases[] = {tcase_create("scalar"), tcase_create("twins")};
    tcase_add_loop_test(cases[0], test_decode, 0, FLOATS);
    tcase_add_loop_test(cases[0], test_encode, 0, FLOATS);
    tcase_add_loop_test(cases[0], test_round_trip, 0, FLOATS);
    tcase_add_test(cases[0], test_e8m0);
    tcase_add_test(cases[1], test_twins);
    return run_suite("formats: scalar", cases, (int)(sizeof cases / sizeof *cases));
}
