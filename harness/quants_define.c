/* quants_define.c - formats by their definition: every code with every scale, and inputs whose
 * encoding the definition prescribes, midpoints above all. Values are computed in double with ldexp
 * and nearest codes by trying all of them, so nothing here leans on the conversions under test. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness/quants.h"

enum { COLS = QUANTS_COLS };

/* ---- values --------------------------------------------------------------------------------- */

/* A float of `mantissa` bits with exponents biased by `bias`; the exponent of all ones is what
 * follows the largest number, 2^(bias+1). */
static double float_value(unsigned code, int mantissa, int bias)
{
    int exponent = (int)(code >> mantissa);
    double fraction = ldexp((double)(code & ((1u << mantissa) - 1)), -mantissa);
    return exponent == 0 ? ldexp(fraction, 1 - bias) : ldexp(1 + fraction, exponent - bias);
}

/* The code of a number that the format holds exactly. */
static unsigned float_code(double v, int mantissa, int bias)
{
    int k;
    double m = frexp(fabs(v), &k);
    unsigned code =
        v == 0 ? 0 : (unsigned)(k - 1 + bias) << mantissa | (unsigned)ldexp(2 * m - 1, mantissa);
    return code | (v < 0 ? 1u << 15 : 0);
}

static double e8m0(unsigned code)
{
    return code == 255 ? NAN : ldexp(1, (int)code - 127);
}

static double e4m3(unsigned code)
{
    double v = (code & 127) == 127 ? NAN : float_value(code & 127, 3, 7);
    return code & 128 ? -v : v;
}

static double e2m1(unsigned code)
{
    double v = float_value(code & 7, 1, 1);
    return code & 8 ? -v : v;
}

/* Among codes [0, n) of ascending non-negative values, the nearest to v >= 0. */
typedef enum { TIE_EVEN, TIE_LOWER } tie_rule;
static unsigned nearest(double v, double (*value)(unsigned), unsigned n, tie_rule rule)
{
    unsigned best = 0;
    for (unsigned c = 1; c < n; c++) {
        double distance = fabs(value(c) - v), least = fabs(value(best) - v);
        if (distance < least || (distance == least && rule == TIE_EVEN && c % 2 == 0))
            best = c;
    }
    return best;
}

static uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 32);
}

/* Multiples of 2^-11 in (-1, 1): few enough bits that float arithmetic on them is exact. */
static double short_random(uint64_t *state)
{
    return (double)((int)(next_random(state) % 4095) - 2047) * 0x1p-11;
}

/* ---- room ----------------------------------------------------------------------------------- */

void quants_rows_free(quants_rows *r)
{
    free(r->raw);
    free(r->scale);
    free(r->bias);
    free(r->values);
    memset(r, 0, sizeof *r);
}

dsv4_row quants_row_at(const quants_rows *r, int64_t row)
{
    size_t beside = (size_t)row * r->scale_bytes;
    return (dsv4_row){r->raw + (size_t)row * r->bytes, r->scale ? r->scale + beside : NULL,
                      r->bias ? r->bias + beside : NULL, r->group, r->scale_type};
}

void quants_definition_free(quants_definition *d)
{
    for (size_t i = 0; i < d->n_sets; i++)
        quants_rows_free(&d->sets[i]);
    for (size_t i = 0; i < d->n_cases; i++) {
        quants_rows_free(&d->cases[i].want);
        free(d->cases[i].x);
    }
    free(d->sets);
    free(d->cases);
    memset(d, 0, sizeof *d);
}

static bool is_mlx(const dsv4_format *f)
{
    return f->type == DSV4_MLX4 || f->type == DSV4_MLX8;
}

dsv4_status quants_rows_new(const dsv4_format *f, int64_t n, int group, dsv4_type scale_type,
                            quants_rows *out, dsv4_error *err)
{
    memset(out, 0, sizeof *out);
    out->n = n;
    out->bytes = dsv4_format_row_bytes(f, COLS);
    out->group = group;
    out->scale_type = scale_type;
    if (group > 0)
        out->scale_bytes = (size_t)(COLS / group) * (!is_mlx(f)               ? 1
                                                     : scale_type == DSV4_F32 ? 4
                                                                              : 2);
    out->raw = dsv4_alloc((size_t)n, out->bytes, "rows of a format", err);
    out->values = dsv4_alloc((size_t)n, COLS * sizeof(float), "rows of a format", err);
    if (group > 0)
        out->scale = dsv4_alloc((size_t)n, out->scale_bytes, "rows of a format", err);
    if (is_mlx(f))
        out->bias = dsv4_alloc((size_t)n, out->scale_bytes, "rows of a format", err);
    bool ok = out->raw && out->values && (group == 0 || out->scale) && (!is_mlx(f) || out->bias);
    if (!ok)
        quants_rows_free(out);
    return ok ? DSV4_OK : DSV4_E_MACHINE;
}

/* Appends a zeroed set of rows; the definition has room for `capacity`. */
static quants_rows *add_set(const dsv4_format *f, quants_definition *d, int64_t n, int group,
                            dsv4_type scale_type, dsv4_error *err)
{
    enum { MAX_SETS = 16 };
    if (d->sets == NULL)
        d->sets = dsv4_alloc(MAX_SETS, sizeof *d->sets, "a definition", err);
    if (d->sets == NULL || d->n_sets == MAX_SETS ||
        quants_rows_new(f, n, group, scale_type, &d->sets[d->n_sets], err) != DSV4_OK)
        return NULL;
    return &d->sets[d->n_sets++];
}

static quants_case *add_case(const dsv4_format *f, quants_definition *d, const char *name,
                             int64_t n, int group, dsv4_type scale_type, dsv4_error *err)
{
    enum { MAX_CASES = 32 };
    if (d->cases == NULL)
        d->cases = dsv4_alloc(MAX_CASES, sizeof *d->cases, "a definition", err);
    if (d->cases == NULL || d->n_cases == MAX_CASES)
        return NULL;
    quants_case *c = &d->cases[d->n_cases];
    if (quants_rows_new(f, n, group, scale_type, &c->want, err) != DSV4_OK)
        return NULL;
    d->n_cases++;
    c->name = name;
    c->rows = n;
    c->x = dsv4_alloc((size_t)n, COLS * sizeof(float), "a definition", err);
    return c->x != NULL ? c : NULL;
}

static void put_nibble(uint8_t *p, int i, unsigned code)
{
    p[i / 2] = (uint8_t)(p[i / 2] | code << 4 * (i % 2));
}

/* ---- numbers of their own ------------------------------------------------------------------- */

typedef enum { CODES, TIES, ABOVE, BELOW } where; /* an input: a code, or near a midpoint */

/* Every finite code, and every midpoint of neighbours with the floats just above and below it. */
static dsv4_status define_float16(const dsv4_format *f, quants_definition *d, dsv4_error *err)
{
    int mantissa = f->type == DSV4_F16 ? 10 : 7, bias = f->type == DSV4_F16 ? 15 : 127;
    unsigned infinity = (unsigned)(2 * bias + 1) << mantissa;
    quants_rows *r = add_set(f, d, 65536 / COLS, 0, DSV4_F32, err);
    d->what = "all 65536 codes";
    d->tie_rule = "to even";
    if (r == NULL)
        return DSV4_E_MACHINE;
    for (unsigned c = 0; c < 65536; c++) {
        unsigned m = c & 0x7fff;
        double v = m < infinity ? float_value(m, mantissa, bias) : m == infinity ? INFINITY : NAN;
        uint16_t code = (uint16_t)c;
        memcpy(r->raw + 2 * c, &code, 2);
        r->values[c] = (float)(c & 0x8000 ? -v : v);
    }
    quants_case *k =
        add_case(f, d, "codes, midpoints and their neighbours", 4 * 65536 / COLS, 0, DSV4_F32, err);
    if (k == NULL)
        return DSV4_E_MACHINE;
    for (where w = CODES; w <= BELOW; w++)
        for (unsigned c = 0; c < 65536; c++) {
            unsigned m = c & 0x7fff, at = (unsigned)w * 65536 + c;
            if (m >= infinity) /* the rows' rest: zeros */
                continue;
            double v = float_value(m, mantissa, bias), up = float_value(m + 1, mantissa, bias);
            float x = (float)(w == CODES ? v : (v + up) / 2);
            unsigned code = w == CODES || w == BELOW ? m : w == ABOVE || m % 2 ? m + 1 : m;
            x = w == ABOVE ? nextafterf(x, INFINITY) : w == BELOW ? nextafterf(x, 0) : x;
            uint16_t stored = (uint16_t)(code | (c & 0x8000));
            memcpy(k->want.raw + 2 * at, &stored, 2);
            k->x[at] = c & 0x8000 ? -x : x;
        }
    return DSV4_OK;
}

/* Single bits, ends of the range, random patterns. */
static dsv4_status define_plain(const dsv4_format *f, quants_definition *d, dsv4_error *err)
{
    uint64_t seed = 41;
    quants_rows *r = add_set(f, d, 4, 0, DSV4_F32, err);
    d->what = "bit patterns";
    if (r == NULL)
        return DSV4_E_MACHINE;
    for (int i = 0; i < 4 * COLS; i++) {
        uint32_t bits = i < 32 ? 1u << i : i < 64 ? ~0u << (i - 32) : next_random(&seed);
        if (i >= 2 * COLS) /* rows without NaN: products can be compared */
            bits &= 0xbfffffff;
        int32_t small;
        memcpy(&small, &bits, 4);
        if (f->type == DSV4_I32) {
            memcpy(r->raw + 4 * i, &small, 4);
            r->values[i] = (float)(double)small;
        } else if (f->type == DSV4_I64) {
            /* A double holds 32 bits shifted by any amount exactly. */
            int shift = i % 32;
            int64_t large = (int64_t)small * ((int64_t)1 << shift);
            memcpy(r->raw + 8 * i, &large, 8);
            r->values[i] = (float)ldexp((double)small, shift);
        } else {
            double v = (bits >> 23 & 255) < 255 ? float_value(bits & 0x7fffffff, 23, 127)
                       : bits & 0x7fffff        ? NAN
                                                : INFINITY;
            memcpy(r->raw + 4 * i, &bits, 4);
            r->values[i] = (float)(bits >> 31 ? -v : v);
        }
    }
    if (f->type == DSV4_F32) {
        quants_case *k = add_case(f, d, "patterns", 4, 0, DSV4_F32, err);
        if (k == NULL)
            return DSV4_E_MACHINE;
        memcpy(k->want.raw, r->raw, (size_t)k->rows * r->bytes);
        memcpy(k->x, r->raw, (size_t)k->rows * r->bytes);
    }
    return DSV4_OK;
}

/* A float and 256 signed bytes a block. */
static dsv4_status define_q8_k(const dsv4_format *f, quants_definition *d, dsv4_error *err)
{
    static const float scales[8] = {1,       -0.375f, 0x1p-100f, 3.14159274f,
                                    -1e-20f, 1e20f,   0,         0x1.fffffep-3f};
    quants_rows *r = add_set(f, d, 4, 0, DSV4_F32, err);
    d->what = "all codes of 8 scales";
    if (r == NULL)
        return DSV4_E_MACHINE;
    for (int b = 0; b < 8; b++) {
        uint8_t *p = r->raw + b * f->block_bytes;
        memcpy(p, &scales[b], 4);
        for (int i = 0; i < f->block; i++) {
            p[4 + i] = (uint8_t)i;
            r->values[b * f->block + i] = (float)((double)scales[b] * (i < 128 ? i : i - 256));
        }
    }
    return DSV4_OK;
}

/* ---- power-of-two scales beside the codes ---------------------------------------------------- */

static dsv4_status define_fp8(const dsv4_format *f, quants_definition *d, dsv4_error *err)
{
    enum { GROUP = 128, CASES = 3 };
    static const int powers[CASES][4] = {{0, -20, 7, -100}, {-1, 3, 100, -110}, {5, -7, -60, 20}};
    uint64_t seed = 43;
    quants_rows *r = add_set(f, d, 256, GROUP, DSV4_F32, err);
    d->what = "all codes with all scales";
    d->tie_rule = "to even";
    if (r == NULL)
        return DSV4_E_MACHINE;
    for (unsigned row = 0; row < 256; row++)
        for (unsigned c = 0; c < COLS; c++) {
            unsigned scale = (row + c / GROUP) & 255;
            r->raw[row * COLS + c] = (uint8_t)c;
            r->scale[row * 4 + c / GROUP] = (uint8_t)scale;
            r->values[row * COLS + c] = (float)(e4m3(c & 255) * e8m0(scale));
        }
    /* Rows without NaN, which the others are full of: products can be compared. */
    quants_rows *finite = add_set(f, d, 4, GROUP, DSV4_F32, err);
    if (finite == NULL)
        return DSV4_E_MACHINE;
    for (unsigned c = 0; c < 4 * COLS; c++) {
        unsigned code = (c * 7 + c / COLS) & 255, scale = 100 + 7 * (c / GROUP) % 50;
        code = (code & 127) == 127 ? 1 : code;
        finite->raw[c] = (uint8_t)code;
        finite->scale[c / GROUP] = (uint8_t)scale;
        finite->values[c] = (float)(e4m3(code) * e8m0(scale));
    }
    for (int i = 0; i < CASES; i++) {
        quants_case *k = add_case(f, d, "ties and random", 4, GROUP, DSV4_F32, err);
        if (k == NULL)
            return DSV4_E_MACHINE;
        for (int c = 0; c < 4 * COLS; c++) {
            /* Rows 0 and 1: the 126 midpoints, of which the largest, 432, sets the scale. */
            unsigned m = (unsigned)(c % GROUP % 126);
            int row = c / COLS, power = powers[i][c % COLS / GROUP];
            double v = row < 2    ? (e4m3(m) + e4m3(m + 1)) / 2
                       : row == 2 ? fabs(short_random(&seed)) * 430
                                  : fabs(short_random(&seed)) * 0x1p-5;
            bool negative = row == 1 || (row > 1 && next_random(&seed) % 2);
            k->x[c] = (float)ldexp(negative ? -v : v, power);
            k->want.raw[c] = (uint8_t)(nearest(v, e4m3, 127, TIE_EVEN) | (negative ? 128u : 0));
            k->want.scale[4 * row + c % COLS / GROUP] = (uint8_t)(127 + power);
        }
    }
    return DSV4_OK;
}

/* Values for a block of 32 in units of its scale: the seven midpoints of e2m1 with both signs,
 * `top`, which sets the scale, and random ones below. */
static void e2m1_inputs(double top, uint64_t *seed, double *v)
{
    for (int i = 0; i < 32; i++)
        v[i] = short_random(seed) * 5.9;
    for (unsigned m = 0; m < 7; m++) {
        v[2 * m + 1] = (e2m1(m) + e2m1(m + 1)) / 2;
        v[2 * m + 16] = -v[2 * m + 1];
    }
    v[31] = top;
}

static dsv4_status define_fp4(const dsv4_format *f, quants_definition *d, dsv4_error *err)
{
    enum { GROUP = 32, GROUPS = COLS / GROUP };
    uint64_t seed = 47;
    quants_rows *r = add_set(f, d, 256 / GROUPS, GROUP, DSV4_F32, err);
    quants_case *k = add_case(f, d, "ties and random", 4, GROUP, DSV4_F32, err);
    d->what = "all codes with all scales";
    d->tie_rule = "to even";
    if (r == NULL || k == NULL)
        return DSV4_E_MACHINE;
    for (int i = 0; i < r->n * COLS; i++) {
        unsigned code = (unsigned)(i * 7 + i / COLS) & 15, scale = (unsigned)(i / GROUP);
        put_nibble(r->raw, i, code);
        r->scale[i / GROUP] = (uint8_t)scale;
        r->values[i] = (float)(e2m1(code) * e8m0(scale));
    }
    for (int b = 0; b < 4 * GROUPS; b++) {
        double v[GROUP];
        int power = b * 3 - 90;
        e2m1_inputs(5.5, &seed, v);
        k->want.scale[b] = (uint8_t)(127 + power);
        for (int i = 0; i < GROUP; i++) {
            float x = (float)ldexp(v[i], power);
            unsigned code = nearest(fabs(ldexp((double)x, -power)), e2m1, 8, TIE_EVEN);
            k->x[b * GROUP + i] = x;
            put_nibble(k->want.raw, b * GROUP + i, code | (signbit(x) ? 8u : 0));
        }
    }
    return DSV4_OK;
}

/* ---- blocks of the peer library, where golden inputs may lack midpoints -----------------------
 */

static dsv4_status define_mxfp4(const dsv4_format *f, quants_definition *d, dsv4_error *err)
{
    enum { BLOCK = 32, BLOCKS = COLS / BLOCK };
    uint64_t seed = 53;
    quants_case *k = add_case(f, d, "ties and random", 4, 0, DSV4_F32, err);
    d->what = "midpoints";
    d->tie_rule = "to the lower code";
    if (k == NULL)
        return DSV4_E_MACHINE;
    for (int b = 0; b < 4 * BLOCKS; b++) {
        uint8_t *p = k->want.raw + b * f->block_bytes;
        double v[BLOCK];
        int power = b * 3 - 90;
        e2m1_inputs(7.5, &seed, v); /* in [4, 8): what is above 6 saturates */
        p[0] = (uint8_t)(127 + power);
        for (int i = 0; i < BLOCK; i++) {
            /* Multiples of 1/64: the differences that are compared are exact in float. */
            double x = rint(v[i] * 64) / 64;
            unsigned code = nearest(fabs(x), e2m1, 8, TIE_LOWER);
            k->x[b * BLOCK + i] = (float)ldexp(x, power);
            p[1 + i % 16] =
                (uint8_t)(p[1 + i % 16] | (code | (x < 0 && code ? 8u : 0)) << (i < 16 ? 0 : 4));
        }
    }
    return DSV4_OK;
}

static dsv4_status define_q8_0(const dsv4_format *f, quants_definition *d, dsv4_error *err)
{
    enum { BLOCK = 32, BLOCKS = COLS / BLOCK };
    uint64_t seed = 59;
    quants_case *k = add_case(f, d, "ties and random", 4, 0, DSV4_F32, err);
    d->what = "midpoints";
    d->tie_rule = "away from zero";
    if (k == NULL)
        return DSV4_E_MACHINE;
    for (int b = 0; b < 4 * BLOCKS; b++) {
        uint8_t *p = k->want.raw + b * f->block_bytes;
        int power = b % 16 - 10;
        uint16_t scale = (uint16_t)float_code(ldexp(1, power), 10, 15);
        memcpy(p, &scale, 2);
        for (int i = 0; i < BLOCK; i++) {
            double v = i == 5      ? 127 /* sets the scale: 2^power exactly */
                       : i % 2 > 0 ? (double)((b * BLOCK + i) % 253 / 2 * (i % 4 - 2)) + 0.5
                                   : rint(short_random(&seed) * 127 * 16) / 16;
            k->x[b * BLOCK + i] = (float)ldexp(v, power);
            p[2 + i] = (uint8_t)(int8_t)(v < 0 ? -floor(0.5 - v) : floor(v + 0.5));
        }
    }
    return DSV4_OK;
}

/* ---- MLX ------------------------------------------------------------------------------------ */

static void put_mlx(uint8_t *p, int64_t i, dsv4_type type, double v)
{
    float f = (float)v;
    uint16_t code = (uint16_t)(type == DSV4_F16 ? float_code(v, 10, 15) : float_code(v, 7, 127));
    if (type == DSV4_F32)
        memcpy(p + 4 * i, &f, 4);
    else
        memcpy(p + 2 * i, &code, 2);
}

static void put_mlx_code(const dsv4_format *f, uint8_t *raw, int i, unsigned code)
{
    if (f->type == DSV4_MLX8)
        raw[i] = (uint8_t)code;
    else
        put_nibble(raw, i, code);
}

/* Every code with random scales and biases that their type holds; the product is exact, so the
 * value rounds once. */
static dsv4_status mlx_rows(const dsv4_format *f, quants_definition *d, int group,
                            dsv4_type scale_type, uint64_t *seed, dsv4_error *err)
{
    quants_rows *r = add_set(f, d, 2, group, scale_type, err);
    unsigned codes = f->type == DSV4_MLX8 ? 256 : 16;
    int bits = scale_type == DSV4_BF16 ? 8 : 11;
    double s = 0, b = 0;
    if (r == NULL)
        return DSV4_E_MACHINE;
    for (int i = 0; i < 2 * COLS; i++) {
        if (i % group == 0) {
            s = (double)(1 + next_random(seed) % ((1u << bits) - 1)) * 0x1p-16;
            b = (double)(1 + next_random(seed) % ((1u << bits) - 1)) * 0x1p-6;
            s = next_random(seed) % 2 ? -s : s;
            b = next_random(seed) % 2 ? -b : b;
            put_mlx(r->scale, i / group, scale_type, s);
            put_mlx(r->bias, i / group, scale_type, b);
        }
        unsigned code = (unsigned)(i * 7 + i / COLS) % codes;
        put_mlx_code(f, r->raw, i, code);
        r->values[i] = (float)(s * code + b);
    }
    return DSV4_OK;
}

/* Groups whose scale comes out as 1 or -1 and whose bias as the extreme of larger magnitude, with
 * values midway between codes; and random ones, of which only the error is bounded. */
static dsv4_status mlx_cases(const dsv4_format *f, quants_definition *d, int group,
                             dsv4_type scale_type, uint64_t *seed, dsv4_error *err)
{
    int top = f->type == DSV4_MLX8 ? 255 : 15;
    quants_case *k = add_case(f, d, "ties", 2, group, scale_type, err);
    quants_case *random = k ? add_case(f, d, "random", 4, group, scale_type, err) : NULL;
    if (k == NULL || random == NULL)
        return DSV4_E_MACHINE;
    for (int i = 0; i < 2 * COLS; i++) {
        bool negative = i / group % 2;
        int lane = i % group, q = (lane * 5 + i / group) % top;
        double steps = lane == 0 ? 0 : lane == 1 ? top : lane % 2 ? q : q + 0.5;
        k->x[i] = (float)(negative ? steps - top : top - steps);
        put_mlx_code(f, k->want.raw, i, (unsigned)rint(steps)); /* ties to even */
        if (lane == 0) {
            put_mlx(k->want.scale, i / group, scale_type, negative ? 1 : -1);
            put_mlx(k->want.bias, i / group, scale_type, negative ? -top : top);
        }
    }
    for (int i = 0; i < 4 * COLS; i++)
        random->x[i] = (float)(short_random(seed) + (i / COLS == 3 ? 0.4 : 0));
    free(random->want.raw);
    random->want.raw = NULL;
    return DSV4_OK;
}

static dsv4_status define_mlx(const dsv4_format *f, quants_definition *d, dsv4_error *err)
{
    static const dsv4_type types[] = {DSV4_F16, DSV4_BF16, DSV4_F32};
    uint64_t seed = 61;
    dsv4_status status = DSV4_OK;
    d->what = "all codes, F16, BF16 and F32 scales, groups of 32, 64, 128";
    d->tie_rule = "to even";
    for (int group = 32; group <= 128; group *= 2)
        for (int t = 0; t < 3 && status == DSV4_OK; t++) {
            status = mlx_rows(f, d, group, types[t], &seed, err);
            if (status == DSV4_OK)
                status = mlx_cases(f, d, group, types[t], &seed, err);
        }
    return status;
}

dsv4_status quants_define(const dsv4_format *f, quants_definition *out, dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    memset(out, 0, sizeof *out);
    switch (f->type) {
    case DSV4_F16:
    case DSV4_BF16:
        status = define_float16(f, out, err);
        break;
    case DSV4_F32:
    case DSV4_I32:
    case DSV4_I64:
        status = define_plain(f, out, err);
        break;
    case DSV4_Q8_K:
        status = define_q8_k(f, out, err);
        break;
    case DSV4_FP8:
        status = define_fp8(f, out, err);
        break;
    case DSV4_FP4:
        status = define_fp4(f, out, err);
        break;
    case DSV4_MXFP4:
        status = define_mxfp4(f, out, err);
        break;
    case DSV4_Q8_0:
        status = define_q8_0(f, out, err);
        break;
    case DSV4_MLX4:
    case DSV4_MLX8:
        status = define_mlx(f, out, err);
        break;
    default:
        break;
    }
    if (status != DSV4_OK)
        quants_definition_free(out);
    return status;
}
