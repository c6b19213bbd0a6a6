/* quants_diagnose.c - the likely cause of a difference. Hypotheses are tried in turn; the first
 * that explains every difference (and every agreement it speaks about) is named. */
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "harness/quants.h"

enum { COLS = QUANTS_COLS, MAX_SUB = 256 };

/* Equal bit for bit; NaNs are all alike. */
static bool same(float a, float b)
{
    return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

static bool all_finite(const float *v, int n)
{
    for (int i = 0; i < n; i++)
        if (!isfinite(v[i]))
            return false;
    return true;
}

static float largest(const float *v, int n)
{
    float m = 0;
    for (int i = 0; i < n; i++)
        m = fmaxf(m, fabsf(v[i]));
    return m;
}

static bool say(char *text, size_t size, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static bool say(char *text, size_t size, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, size, fmt, args);
    va_end(args);
    return true;
}

/* ---- order ---------------------------------------------------------------------------------- */

/* Where the value of column i was taken from, within `unit` columns. */
static const struct {
    const char *what;
    int unit, exclusive; /* i ^ exclusive; 0: by `to` */
    enum { XOR, AS_NEIGHBOURS, AS_HALVES, REVERSED } kind;
} orders[] = {
    {"neighbouring columns 2i and 2i+1 are exchanged (low and high nibble)", 2, 1, XOR},
    {"the halves of 32 columns are exchanged, i and i+16 (low and high nibble)", 32, 16, XOR},
    {"the halves of 64 columns are exchanged, i and i+32 (low and high nibble)", 64, 32, XOR},
    {"nibbles are laid out as neighbours (2i, 2i+1), expected as halves (i, i+16)", 32, 0,
     AS_NEIGHBOURS},
    {"nibbles are laid out as halves (i, i+16), expected as neighbours (2i, 2i+1)", 32, 0,
     AS_HALVES},
    {"pairs of columns are exchanged, i and i+2", 4, 2, XOR},
    {"fours of columns are exchanged, i and i+4", 8, 4, XOR},
    {"eights of columns are exchanged, i and i+8", 16, 8, XOR},
    {"the halves of 128 columns are exchanged, i and i+64", 128, 64, XOR},
    {"the halves of 256 columns are exchanged, i and i+128", 256, 128, XOR},
    {"columns are reversed inside 8", 8, 0, REVERSED},
    {"columns are reversed inside 32", 32, 0, REVERSED},
};
enum { ORDERS = sizeof orders / sizeof *orders };

static int taken_from(int order, int i)
{
    int unit = orders[order].unit, base = i - i % unit, k = i % unit;
    switch (orders[order].kind) {
    case XOR:
        return i ^ orders[order].exclusive;
    case AS_NEIGHBOURS:
        return base + k / 2 + unit / 2 * (k % 2);
    case AS_HALVES:
        return base + (k < unit / 2 ? 2 * k : 2 * k - unit + 1);
    default:
        return base + unit - 1 - k;
    }
}

/* Values moved as they are. */
static bool values_moved(const float *expected, const float *got, int64_t rows, int order)
{
    for (int64_t r = 0; r < rows; r++)
        for (int i = 0; i < COLS; i++)
            if (!same(got[r * COLS + i], expected[r * COLS + taken_from(order, i)]))
                return false;
    return true;
}

/* Codes of one row; false when the format has none. */
static bool row_codes(const dsv4_format *f, const quants_rows *rows, int64_t row, int *codes)
{
    for (int i = 0; i < COLS; i++)
        codes[i] = quants_code(f, rows, row, i);
    return quants_layout_of(f, rows).codes > 0;
}

/* Codes moved under scales that stayed: for linear formats whose columns i and p(i) do not share a
 * scale. At least one row must be decidable. */
static bool codes_moved(const quants_decode_evidence *e, int order)
{
    quants_layout l = quants_layout_of(e->format, e->rows);
    int codes[COLS];
    bool any = false;
    if (!l.linear)
        return false;
    for (int64_t r = 0; r < e->rows->n; r++) {
        const float *want = e->rows->values + r * COLS, *got = e->got + r * COLS;
        double scale, offset;
        row_codes(e->format, e->rows, r, codes);
        for (int s = 0; s < COLS; s += l.sub) {
            if (!quants_affine(want + s, codes + s, l.sub, &scale, &offset))
                continue;
            double limit = 0x1p-16 * ((double)largest(want, COLS) + (double)largest(got, COLS));
            for (int i = s; i < s + l.sub; i++) {
                double predicted = scale * codes[taken_from(order, i)] + offset;
                if (!(fabs(predicted - (double)got[i]) <= limit))
                    return false;
                any = any || codes[taken_from(order, i)] != codes[i];
            }
        }
    }
    return any;
}

static bool find_order(const quants_decode_evidence *e, char *text, size_t size)
{
    for (int k = 0; k < ORDERS; k++)
        if (values_moved(e->rows->values, e->got, e->rows->n, k) || codes_moved(e, k))
            return say(text, size, "element order: %s", orders[k].what);
    return false;
}

/* ---- one entry of a code book --------------------------------------------------------------- */

static bool find_entry(const quants_decode_evidence *e, char *text, size_t size)
{
    quants_layout l = quants_layout_of(e->format, e->rows);
    int code = -1, example = 0;
    int64_t differ = 0, have = 0, example_row = 0;
    unsigned lanes = 0;
    if (l.codes == 0)
        return false;
    for (int64_t r = 0; r < e->rows->n; r++)
        for (int i = 0; i < COLS; i++) {
            if (same(e->got[r * COLS + i], e->rows->values[r * COLS + i]))
                continue;
            int c = quants_code(e->format, e->rows, r, i);
            if (differ > 0 && c != code)
                return false;
            code = c;
            lanes |= 1u << i % l.lanes;
            if (differ++ == 0) {
                example_row = r;
                example = i;
            }
        }
    for (int64_t r = 0; r < e->rows->n; r++)
        for (int i = 0; i < COLS; i++)
            have += quants_code(e->format, e->rows, r, i) == code && (lanes >> i % l.lanes & 1);
    char which[64] = "";
    if (l.lanes > 1) {
        size_t used = (size_t)snprintf(which, sizeof which, ", element");
        for (int i = 0; i < l.lanes; i++)
            if (lanes >> i & 1)
                used += (size_t)snprintf(which + used, sizeof which - used, " %d", i);
    }
    return say(text, size,
               "one %s is wrong: %d%s; all %lld differing elements have it, of %lld that do "
               "(e.g. expected %.9g, got %.9g)",
               l.code_name, code, which, (long long)differ, (long long)have,
               (double)e->rows->values[example_row * COLS + example],
               (double)e->got[example_row * COLS + example]);
}

/* ---- signs and zeros ------------------------------------------------------------------------ */

static bool find_sign(const quants_decode_evidence *e, char *text, size_t size)
{
    int64_t n = e->rows->n * COLS;
    int64_t negative = 0, flipped = 0, zeros = 0, nonzero = 0;
    int sub = quants_layout_of(e->format, e->rows).sub;
    bool one_sign = true;
    for (int64_t i = 0; i < n; i++) {
        float w = e->rows->values[i], g = e->got[i];
        if (!same(fabsf(w), fabsf(g)))
            return false;
        if (isnan(w) || same(w, g))
            continue;
        if (w == 0)
            zeros++;
        else
            flipped++;
    }
    for (int64_t s = 0; s < n; s += sub) {
        bool plus = false, minus = false;
        for (int64_t i = s; i < s + sub; i++) {
            plus = plus || e->got[i] > 0;
            minus = minus || e->got[i] < 0;
            nonzero += e->rows->values[i] != 0;
            negative += e->rows->values[i] != 0 && !same(e->got[i], e->rows->values[i]);
        }
        one_sign = one_sign && !(plus && minus);
    }
    if (flipped == 0)
        return say(text, size, "the sign of zero is lost in %lld elements", (long long)zeros);
    if (one_sign)
        return say(text, size,
                   "sign bits are ignored: magnitudes agree, and every block has one sign");
    return say(text, size, "%s: magnitudes agree, %lld signs of %lld differ",
               negative == nonzero ? "all signs are inverted" : "signs are wrong",
               (long long)flipped, (long long)nonzero);
}

/* Zero where something small was expected. */
static bool find_flush(const quants_decode_evidence *e, char *text, size_t size)
{
    float top = 0;
    int64_t differ = 0;
    bool tiny_scale = true;
    for (int64_t r = 0; r < e->rows->n; r++)
        for (int i = 0; i < COLS; i++) {
            float w = e->rows->values[r * COLS + i], g = e->got[r * COLS + i];
            unsigned bits;
            if (same(w, g))
                continue;
            if (g != 0 || !isfinite(w))
                return false;
            quants_scale_kind k = quants_scale_at(e->format, e->rows, r, i, &bits);
            tiny_scale = tiny_scale && ((k == QUANTS_SCALE_F16 && (bits & 0x7c00) == 0) ||
                                        (k == QUANTS_SCALE_E8M0 && bits == 0));
            top = fmaxf(top, fabsf(w));
            differ++;
        }
    if (tiny_scale)
        return say(text, size, "subnormal scales are read as zero (%lld elements)",
                   (long long)differ);
    if (top < (e->format->type == DSV4_F16 ? 0x1p-14f : FLT_MIN))
        return say(text, size, "subnormal values are flushed to zero (%lld elements up to %.3g)",
                   (long long)differ, (double)top);
    return false;
}

/* ---- scale and offset ----------------------------------------------------------------------- */

/* got = ratio * expected over a sub-block, NaNs on both sides left out. 1 yes, 0 no, -1 undecidable
 * (zeros, infinities, near the ends of float32). */
static int constant_ratio(const float *want, const float *got, int n, double *ratio)
{
    double w = 0, g = 0;
    for (int i = 0; i < n; i++) {
        if (isnan(want[i]) && isnan(got[i]))
            continue;
        if (!isfinite(want[i]) || !isfinite(got[i]))
            return -1;
        if (fabs((double)want[i]) > fabs(w)) {
            w = (double)want[i];
            g = (double)got[i];
        }
    }
    if (fabs(w) < 1e-30 || fabs(w) > 1e30 || fabs(g) > 1e30 || (g != 0 && fabs(g) < 1e-30))
        return -1;
    *ratio = g / w;
    for (int i = 0; i < n; i++)
        if (!isnan(want[i]) &&
            !(fabs((double)got[i] - *ratio * (double)want[i]) <= 0x1p-20 * fabs(g)))
            return 0;
    return 1;
}

static double f16_value(unsigned bits)
{
    return (double)dsv4_f16_to_f32((uint16_t)bits);
}

/* What a scale pattern gives under a wrong reading, over what it stands for. NaN = no such. */
static double misread(int reading, quants_scale_kind kind, unsigned bits)
{
    if (kind == QUANTS_SCALE_E8M0) {
        double right = ldexp(1, (int)bits - 127);
        return reading == 0   ? bits / right
               : reading == 1 ? ((int)bits - 127) / right
               : reading == 2 ? bits / 127.0 / right
                              : NAN;
    }
    if (kind == QUANTS_SCALE_F16) {
        double right = f16_value(bits);
        return reading == 3   ? bits / right
               : reading == 4 ? (double)dsv4_bf16_to_f32((uint16_t)bits) / right
                              : NAN;
    }
    return NAN;
}

static const char *const readings[] = {
    "the e8m0 byte is used as a number, not as 2^(byte-127)",
    "the e8m0 byte minus 127 is used as a number, not as an exponent",
    "the e8m0 byte over 127 is used, not 2^(byte-127)",
    "the f16 scale's bits are used as an integer",
    "the f16 scale is read as bf16",
};
enum { READINGS = sizeof readings / sizeof *readings };

static bool find_scale(const quants_decode_evidence *e, char *text, size_t size)
{
    int sub = quants_layout_of(e->format, e->rows).sub;
    double low = INFINITY, high = -INFINITY, factor[READINGS];
    bool fits[READINGS], always = true;
    int64_t blocks = 0, wrong = 0;
    for (int k = 0; k < READINGS; k++) {
        fits[k] = true;
        factor[k] = NAN; /* a constant beside the misreading is allowed */
    }
    for (int64_t r = 0; r < e->rows->n; r++)
        for (int s = 0; s < COLS; s += sub) {
            double ratio;
            unsigned bits = 0;
            int is =
                constant_ratio(e->rows->values + r * COLS + s, e->got + r * COLS + s, sub, &ratio);
            if (is == 0)
                return false;
            if (is < 0)
                continue;
            blocks++;
            wrong += ratio != 1;
            always = always && ratio != 1;
            low = fmin(low, ratio);
            high = fmax(high, ratio);
            quants_scale_kind kind = quants_scale_at(e->format, e->rows, r, s, &bits);
            for (int k = 0; k < READINGS; k++) {
                double expected = misread(k, kind, bits);
                if (isnan(factor[k]) && expected != 0)
                    factor[k] = ratio / expected;
                fits[k] = fits[k] && !isnan(expected) &&
                          (expected == 0 ? ratio == 0
                                         : fabs(ratio / expected / factor[k] - 1) <= 0x1p-16);
            }
        }
    if (wrong == 0)
        return false;
    if (high - low <= 0x1p-16 * fabs(high))
        return say(text, size, "every value is %.6g times what it should be: a factor in the scale",
                   low);
    for (int k = 0; k < READINGS; k++)
        if (fits[k])
            return say(text, size, "scale read as a number: %s%s", readings[k],
                       fabs(log2(factor[k])) > 0.5 ? " (times a constant)" : "");
    return say(text, size,
               "%s scales: the ratio is constant inside each %d columns and goes from %.4g to "
               "%.4g in %lld of %lld of them",
               always ? "all" : "some", sub, low, high, (long long)wrong, (long long)blocks);
}

/* A constant difference per sub-block. */
static bool find_offset(const quants_decode_evidence *e, char *text, size_t size)
{
    quants_layout l = quants_layout_of(e->format, e->rows);
    int codes[COLS];
    int64_t missing = 0, inverted = 0, decided = 0, constant = 0;
    double example = 0;
    for (int64_t r = 0; r < e->rows->n; r++) {
        if (l.linear)
            row_codes(e->format, e->rows, r, codes);
        for (int s = 0; s < COLS; s += l.sub) {
            const float *want = e->rows->values + r * COLS + s, *got = e->got + r * COLS + s;
            double scale, offset, ours, our_offset;
            double limit = 0x1p-20 * ((double)largest(want, l.sub) + (double)largest(got, l.sub));
            double mean = 0;
            if (!all_finite(want, l.sub) || !all_finite(got, l.sub) || limit > 1e24)
                continue;
            for (int i = 0; i < l.sub; i++)
                mean += ((double)got[i] - (double)want[i]) / l.sub;
            for (int i = 0; i < l.sub; i++)
                if (!(fabs((double)got[i] - (double)want[i] - mean) <= limit))
                    return false;
            if (fabs(mean) <= limit)
                continue;
            constant++;
            example = mean;
            if (!l.linear || !quants_affine(want, codes + s, l.sub, &scale, &offset) ||
                !quants_affine(got, codes + s, l.sub, &ours, &our_offset) || fabs(offset) <= limit)
                continue;
            decided++;
            missing += fabs(our_offset) <= 16 * limit;
            inverted += fabs(our_offset + offset) <= 16 * limit;
        }
    }
    if (constant == 0)
        return false;
    const char *what = l.offset ? "minimum (offset)" : "constant offset of the codes";
    if (decided > 0 && missing == decided)
        return say(text, size, "the %s is missing: values are scale x code alone", what);
    if (decided > 0 && inverted == decided)
        return say(text, size, "the %s has the wrong sign", what);
    return say(text, size,
               "the %s is wrong: the difference is constant inside each %d columns "
               "(e.g. %.6g)",
               what, l.sub, example);
}

/* Scales of a neighbouring sub-block. */
static bool find_neighbour(const quants_decode_evidence *e, char *text, size_t size)
{
    quants_layout l = quants_layout_of(e->format, e->rows);
    int codes[COLS];
    bool fits[2] = {true, true};
    int64_t changed = 0;
    if (!l.linear || l.sub * 2 > e->format->block || e->format->block > MAX_SUB)
        return false;
    int per_block = e->format->block / l.sub;
    for (int64_t r = 0; r < e->rows->n; r++) {
        double want[COLS / 16], got[COLS / 16], offset;
        row_codes(e->format, e->rows, r, codes);
        for (int s = 0; s < COLS / l.sub; s++) {
            int at = s * l.sub;
            if (!quants_affine(e->rows->values + r * COLS + at, codes + at, l.sub, &want[s],
                               &offset))
                want[s] = NAN;
            if (!quants_affine(e->got + r * COLS + at, codes + at, l.sub, &got[s], &offset))
                got[s] = NAN;
        }
        for (int s = 0; s < COLS / l.sub; s++)
            for (int k = 0; k < 2; k++) {
                int block = s / per_block * per_block, i = s % per_block;
                int from = block + (i + (k == 0 ? 1 : per_block - 1)) % per_block;
                bool edge = k == 0 ? i == per_block - 1 : i == 0; /* may be anything there */
                if (edge || isnan(want[from]) || isnan(got[s]) || fabs(want[from]) < 1e-30)
                    continue;
                fits[k] = fits[k] && fabs(got[s] / want[from] - 1) <= 0x1p-10;
                changed += want[from] != want[s];
            }
    }
    if (changed == 0 || (!fits[0] && !fits[1]))
        return false;
    return say(text, size,
               "sub-block scale index off by one: each %d columns use the scale of the "
               "%s ones",
               l.sub, fits[0] ? "next" : "previous");
}

/* ---- decode --------------------------------------------------------------------------------- */

void quants_diagnose_decode(const quants_decode_evidence *e, quants_where_fn where, const void *ctx,
                            char *text, size_t size)
{
    char name[128];
    if (find_order(e, text, size) || find_entry(e, text, size) || find_sign(e, text, size) ||
        find_flush(e, text, size) || find_neighbour(e, text, size) || find_scale(e, text, size) ||
        find_offset(e, text, size))
        return;
    for (int64_t i = 0; i < e->rows->n * COLS; i++)
        if (!same(e->got[i], e->rows->values[i])) {
            where(ctx, i / COLS, name, sizeof name);
            say(text, size,
                "no simple cause; first difference at %s, column %d: expected %.9g, "
                "got %.9g",
                name, (int)(i % COLS), (double)e->rows->values[i], (double)e->got[i]);
            return;
        }
}

/* ---- encode --------------------------------------------------------------------------------- */

/* Wherever values differ, the input lies exactly midway between ours and the expected one. */
static bool find_ties(const quants_encode_evidence *e, char *text, size_t size)
{
    int64_t ties = 0, away = 0, up = 0;
    for (int64_t i = 0; i < e->expected->n * COLS; i++) {
        double x = (double)e->x[i], w = (double)e->expected->values[i];
        double g = (double)e->got->values[i];
        if (w == g)
            continue;
        if (isinf(w) || isinf(g)) /* midway between the largest number and infinity */
            continue;
        if (fabs(x - w) != fabs(x - g))
            return false;
        ties++;
        away += fabs(g) > fabs(w);
        up += g > w;
    }
    if (ties == 0)
        return false;
    const char *how = away == ties ? "away from zero"
                      : away == 0  ? "towards zero"
                      : up == ties ? "up"
                      : up == 0    ? "down"
                                   : "another way";
    return say(text, size,
               "ties are rounded %s, expected %s: all %lld differing elements lie midway between "
               "two codes",
               how, e->tie_rule ? e->tie_rule : "another way", (long long)ties);
}

/* Ours on the side of zero, the expected one beyond the input. */
static bool find_truncation(const quants_encode_evidence *e, char *text, size_t size)
{
    int64_t n = 0;
    for (int64_t i = 0; i < e->expected->n * COLS; i++) {
        double x = fabs((double)e->x[i]), w = fabs((double)e->expected->values[i]);
        double g = fabs((double)e->got->values[i]);
        if (w == g)
            continue;
        if (!(g <= x && x <= w))
            return false;
        n++;
    }
    return n > 0 && say(text, size,
                        "values are truncated towards zero, not rounded to nearest "
                        "(%lld elements)",
                        (long long)n);
}

/* Blocks whose stored scales differ. */
static bool find_block_scales(const quants_encode_evidence *e, char *text, size_t size)
{
    int64_t scales = 0, blocks = 0;
    double low = INFINITY, high = -INFINITY;
    const dsv4_format *f = e->format;
    int step = f->type == DSV4_FP8 || f->type == DSV4_FP4 ? e->expected->group : f->block;
    for (int64_t r = 0; r < e->expected->n; r++)
        for (int i = 0; i < COLS; i += step) {
            unsigned a, b;
            quants_scale_kind k = quants_scale_at(f, e->expected, r, i, &a);
            if (k == QUANTS_SCALE_NONE)
                return false;
            quants_scale_at(f, e->got, r, i, &b);
            bool differ = false;
            for (int j = i; j < i + step; j++)
                differ = differ ||
                         !same(e->expected->values[r * COLS + j], e->got->values[r * COLS + j]);
            blocks += differ;
            if (!differ || a == b)
                continue;
            double ratio =
                k == QUANTS_SCALE_E8M0 ? ldexp(1, (int)b - (int)a) : f16_value(b) / f16_value(a);
            scales++;
            low = fmin(low, ratio);
            high = fmax(high, ratio);
        }
    if (scales == 0 || scales < blocks)
        return false;
    return say(text, size,
               "another scale is chosen in all %lld differing blocks: %.4g to %.4g times the "
               "expected one",
               (long long)blocks, low, high);
}

void quants_diagnose_encode(const quants_encode_evidence *e, quants_where_fn where, const void *ctx,
                            char *text, size_t size)
{
    char name[128];
    const quants_rows *want = e->expected, *got = e->got;
    if (e->importance_ignored) {
        say(text, size, "importance is ignored: the bytes are those made without it");
        return;
    }
    for (int k = 0; k < ORDERS; k++)
        if (values_moved(want->values, got->values, want->n, k)) {
            say(text, size, "element order: %s", orders[k].what);
            return;
        }
    quants_decode_evidence values = {e->format, want, got->values};
    bool equal = true, magnitudes = true;
    for (int64_t i = 0; i < want->n * COLS; i++) {
        equal = equal && same(want->values[i], got->values[i]);
        magnitudes = magnitudes && same(fabsf(want->values[i]), fabsf(got->values[i]));
    }
    if (!equal && magnitudes && find_sign(&values, text, size))
        return;
    if (!equal && (find_ties(e, text, size) || find_truncation(e, text, size) ||
                   find_block_scales(e, text, size)))
        return;
    for (int64_t r = 0; r < want->n; r++)
        for (size_t b = 0; b < want->bytes + want->scale_bytes; b++) {
            bool beside = b >= want->bytes;
            size_t at = beside ? (size_t)r * want->scale_bytes + b - want->bytes
                               : (size_t)r * want->bytes + b;
            uint8_t w = beside ? want->scale[at] : want->raw[at];
            uint8_t g = beside ? got->scale[at] : got->raw[at];
            if (w == g)
                continue;
            where(ctx, r, name, sizeof name);
            say(text, size, "%s; first difference at %s, %s byte %zu: expected 0x%02x, got 0x%02x",
                equal ? "the values agree, only bytes differ" : "no simple cause", name,
                beside ? "scale" : "row", beside ? b - want->bytes : b, w, g);
            return;
        }
    say(text, size, "biases beside the codes differ");
}

/* ---- dot ------------------------------------------------------------------------------------ */

static double product(const float *w, const float *x, int first, int last)
{
    double sum = 0;
    for (int i = first; i < last; i++)
        sum += (double)w[i] * (double)x[i];
    return sum;
}

/* The part of the expected product that comes from minima; NaN when it cannot be told. */
static double minima_part(const dsv4_format *f, const quants_product *p)
{
    quants_layout l = quants_layout_of(f, p->rows);
    int codes[COLS];
    double sum = 0, scale, offset;
    if (!l.linear || !row_codes(f, p->rows, p->row, codes))
        return NAN;
    for (int s = 0; s < COLS; s += l.sub) {
        if (largest(p->w + s, l.sub) == 0)
            continue;
        if (!quants_affine(p->w + s, codes + s, l.sub, &scale, &offset))
            return NAN;
        for (int i = s; i < s + l.sub; i++)
            sum += offset * (double)p->x[i];
    }
    return sum;
}

typedef enum {
    DROPS_LAST,
    DROPS_FIRST,
    NO_MINIMA,
    SIGNS_IGNORED,
    ACT_SIGNS_IGNORED,
    OTHER_ORDER,
    OUR_DECODE,
    CANDIDATES
} candidate;

/* What a dot product with that mistake would give. */
static double mistaken(const dsv4_format *f, const quants_product *p, candidate c, int argument)
{
    double sum = 0;
    switch (c) {
    case DROPS_LAST:
        return p->expected - product(p->w, p->x, COLS - argument, COLS);
    case DROPS_FIRST:
        return p->expected - product(p->w, p->x, 0, argument);
    case NO_MINIMA:
        return p->expected - minima_part(f, p);
    case OUR_DECODE:
        return p->expected - product(p->w, p->x, 0, COLS) + product(p->ours, p->x, 0, COLS);
    default:
        break;
    }
    for (int i = 0; i < COLS; i++)
        sum += c == SIGNS_IGNORED       ? (double)fabsf(p->w[i]) * (double)p->x[i]
               : c == ACT_SIGNS_IGNORED ? (double)p->w[i] * (double)fabsf(p->x[i])
                                        : (double)p->w[taken_from(argument, i)] * (double)p->x[i];
    return sum;
}

/* Whether the mistake explains every product that it can speak about, and at least one that is
 * outside its tolerance. `slack` is in units of the product's magnitude. */
static bool explains(const dsv4_format *f, const quants_product *p, size_t n, candidate c,
                     int argument, double slack)
{
    bool any = false;
    for (size_t i = 0; i < n; i++) {
        double m = mistaken(f, &p[i], c, argument);
        bool outside = !(fabs(p[i].got - p[i].expected) <= p[i].tolerance);
        if (isnan(m) && (c == NO_MINIMA))
            continue;
        if (!(fabs(p[i].got - m) <= p[i].tolerance + slack * p[i].magnitude))
            return false;
        any = any || outside;
    }
    return any;
}

void quants_diagnose_dot(const dsv4_format *f, const quants_product *p, size_t n, char *text,
                         size_t size)
{
    static const int parts[] = {1, 2, 4, 8, 16, 32, 64, 128, 256};
    double low = INFINITY, high = -INFINITY, worst = 0, relative = 0;
    size_t at = 0;
    if (explains(f, p, n, OUR_DECODE, 0, 0)) {
        say(text, size, "these are the products of the values that decode gives: see decode");
        return;
    }
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++)
        for (candidate c = DROPS_LAST; c <= DROPS_FIRST; c++)
            if (explains(f, p, n, c, parts[k], 0)) {
                say(text, size, "the %s %d element%s dropped", c == DROPS_LAST ? "last" : "first",
                    parts[k], parts[k] == 1 ? " is" : "s are");
                return;
            }
    if (explains(f, p, n, NO_MINIMA, 0, 0x1p-15)) {
        say(text, size, "the minima (offsets times block sums of the activations) are ignored");
        return;
    }
    if (explains(f, p, n, SIGNS_IGNORED, 0, 0) || explains(f, p, n, ACT_SIGNS_IGNORED, 0, 0)) {
        say(text, size, "signs are ignored");
        return;
    }
    for (int k = 0; k < ORDERS; k++)
        if (explains(f, p, n, OTHER_ORDER, k, 0)) {
            say(text, size, "element order: %s", orders[k].what);
            return;
        }
    for (size_t i = 0; i < n; i++) {
        double excess = fabs(p[i].got - p[i].expected) / p[i].magnitude;
        relative = fmax(relative, isnan(excess) ? INFINITY : excess);
        if (fabs(p[i].expected) > 0x1p-10 * p[i].magnitude) {
            low = fmin(low, p[i].got / p[i].expected);
            high = fmax(high, p[i].got / p[i].expected);
        }
        if (!(excess <= worst)) {
            worst = excess;
            at = i;
        }
    }
    if (low <= high && high - low <= 0x1p-10 * fabs(high) && fabs(high - 1) > 0x1p-8)
        say(text, size, "every product is %.6g times what it should be: a factor in the scale",
            low);
    else if (relative <= 0x1p-17)
        say(text, size,
            "sums are not wide enough: errors of float32 size, up to %.3g of the "
            "magnitudes' sum",
            relative);
    else
        say(text, size, "no simple cause; worst product (%zu of %zu): expected %.9g, got %.9g",
            at + 1, n, p[at].expected, p[at].got);
}
