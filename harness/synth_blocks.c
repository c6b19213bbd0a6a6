/* synth_blocks.c - random blocks: random codes, and scales chosen once per format so that what they
 * decode to has the size of real weights. Nothing is encoded, so it runs at the disk's speed. */
#include "synth_blocks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { STRIP = 4 << 20, TABLE = 4096, SAMPLE = 64, SAMPLE_BYTES = SAMPLE * 512 };
static const double target_rms = 0.02;

/* ---- random bytes ------------------------------------------------------------------------- */

static uint64_t mix(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u; /* splitmix64: seeds and short needs */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

typedef struct {
    uint64_t s[4];
} stream;

static uint64_t rotate(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

/* xoshiro256+: a handful of operations for eight bytes. */
static uint64_t next(stream *r)
{
    uint64_t out = r->s[0] + r->s[3], t = r->s[1] << 17;
    r->s[2] ^= r->s[0];
    r->s[3] ^= r->s[1];
    r->s[1] ^= r->s[2];
    r->s[0] ^= r->s[3];
    r->s[2] ^= t;
    r->s[3] = rotate(r->s[3], 45);
    return out;
}

static stream stream_of(uint64_t seed, const char *name, int64_t e)
{
    stream r;
    uint64_t state = seed;
    for (; *name != '\0'; name++)
        state = (state ^ (unsigned char)*name) * 0x100000001b3u;
    state ^= (uint64_t)e * 0xd6e8feb86659fd93u;
    for (int i = 0; i < 4; i++)
        r.s[i] = mix(&state);
    return r;
}

static void fill(stream *r, uint8_t *out, size_t bytes)
{
    size_t i = 0;
    for (; i + 8 <= bytes; i += 8) {
        uint64_t v = next(r);
        memcpy(out + i, &v, 8);
    }
    if (i < bytes) {
        uint64_t v = next(r);
        memcpy(out + i, &v, bytes - i);
    }
}

/* ---- blocks with f16 scales --------------------------------------------------------------- */

/* Where a block keeps its factor and its minimum's factor; -1 = it has none. */
static const struct {
    dsv4_type type;
    int d, min;
} layouts[] = {
    {DSV4_Q4_0, 0, -1}, {DSV4_Q4_1, 0, 2},    {DSV4_Q5_0, 0, -1},   {DSV4_Q5_1, 0, 2},
    {DSV4_Q8_0, 0, -1}, {DSV4_Q2_K, 80, 82},  {DSV4_Q3_K, 108, -1}, {DSV4_Q4_K, 0, 2},
    {DSV4_Q5_K, 0, 2},  {DSV4_Q6_K, 208, -1}, {DSV4_IQ1_S, 0, -1},  {DSV4_IQ2_XXS, 0, -1},
};

static int layout_of(dsv4_type type)
{
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
        if (layouts[i].type == type)
            return (int)i;
    return -1;
}

static void set_scales(uint8_t *blocks, size_t n, int block_bytes, int layout, uint16_t d,
                       uint16_t min)
{
    for (size_t i = 0; i < n; i++, blocks += block_bytes) {
        memcpy(blocks + layouts[layout].d, &d, 2);
        if (layouts[layout].min >= 0)
            memcpy(blocks + layouts[layout].min, &min, 2);
    }
}

/* Mean and rms of sample blocks with the given factors. */
static void measure(const dsv4_format *f, uint8_t *sample, int layout, float d, float min,
                    double *mean, double *rms)
{
    float values[256];
    double sum = 0, squares = 0;
    set_scales(sample, SAMPLE, f->block_bytes, layout, dsv4_f32_to_f16(d), dsv4_f32_to_f16(min));
    for (int b = 0; b < SAMPLE; b++) {
        dsv4_row row = {.data = sample + b * f->block_bytes};
        f->decode(&row, f->block, values);
        for (int i = 0; i < f->block; i++) {
            sum += (double)values[i];
            squares += (double)values[i] * (double)values[i];
        }
    }
    *mean = sum / (SAMPLE * f->block);
    *rms = sqrt(squares / (SAMPLE * f->block));
}

static void calibrate_blocks(synth *s, const dsv4_format *f, int layout)
{
    uint8_t sample[SAMPLE_BYTES];
    stream r = stream_of(1, f->name, 0);
    double codes, minimum, rms, ratio = 0;
    fill(&r, sample, (size_t)f->block_bytes * SAMPLE);
    if (layouts[layout].min >= 0) {
        measure(f, sample, layout, 1, 0, &codes, &rms);
        measure(f, sample, layout, 0, 1, &minimum, &rms);
        ratio = minimum != 0 ? -codes / minimum : 0;
    }
    measure(f, sample, layout, 1, (float)ratio, &codes, &rms);
    s->scales[f->type].d = dsv4_f32_to_f16((float)(target_rms / rms));
    s->scales[f->type].min = dsv4_f32_to_f16((float)(target_rms / rms * ratio));
}

/* ---- calibration -------------------------------------------------------------------------- */

static uint8_t power_of_two(double scale)
{
    return (uint8_t)(127 + lrint(log2(scale)));
}

/* NaN (0x7f, 0xff) is the one code FP8 cannot use. */
static uint8_t fp8_code(uint8_t byte)
{
    return (byte & 0x7f) == 0x7f ? (uint8_t)(byte ^ 0x40) : byte;
}

static void calibrate(synth *s, dsv4_type type)
{
    const dsv4_format *f = dsv4_format_of(type);
    int layout = layout_of(type), codes = type == DSV4_MLX8 ? 256 : 16;
    double squares = 0;
    s->scales[type].known = true;
    if (layout >= 0) {
        calibrate_blocks(s, f, layout);
    } else if (type == DSV4_FP8) {
        for (int i = 0; i < 256; i++)
            squares += pow((double)dsv4_e4m3_to_f32(fp8_code((uint8_t)i)), 2) / 256;
        s->scales[type].e8m0 = power_of_two(target_rms / sqrt(squares));
    } else if (type == DSV4_FP4 || type == DSV4_MXFP4) {
        for (int i = 0; i < 16; i++)
            squares += pow((double)dsv4_e2m1_to_f32((uint8_t)i), 2) / 16;
        s->scales[type].e8m0 = power_of_two(target_rms / sqrt(squares));
    } else if (type == DSV4_MLX4 || type == DSV4_MLX8) {
        double scale = target_rms / sqrt((codes * codes - 1) / 12.0); /* uniform codes */
        s->scales[type].d = dsv4_f32_to_bf16((float)scale);
        s->scales[type].min = dsv4_f32_to_bf16((float)(-scale * (codes - 1) / 2));
    }
}

/* ---- making ------------------------------------------------------------------------------- */

/* TABLE encoded values, uniform around `centre`. */
static const uint8_t *number_table(synth *s, dsv4_type type, int centre, dsv4_error *err)
{
    uint8_t **table = &s->numbers[type][centre];
    if (*table != NULL)
        return *table;
    float values[TABLE];
    stream fixed = stream_of(2, "numbers", 0);
    for (int i = 0; i < TABLE; i++) {
        double unit = (double)(next(&fixed) >> 11) * 0x1p-52 - 1.0;
        values[i] = (float)centre + (float)(unit * target_rms * 1.7320508);
    }
    *table = dsv4_alloc(TABLE, sizeof(float), "a table of numbers", err);
    if (*table != NULL)
        dsv4_format_of(type)->encode(values, 1, TABLE, NULL, &(dsv4_encoded){.data = *table});
    return *table;
}

/* Rows of plain numbers, drawn from a table: 12 random bits each. */
static void numbers(stream *r, const uint8_t *table, size_t width, uint8_t *out, size_t bytes)
{
    size_t n = bytes / width, i = 0;
    while (i < n) {
        uint64_t v = next(r);
        for (int k = 0; k < 5 && i < n; k++, i++, v >>= 12) {
            size_t at = v & (TABLE - 1);
            if (width == 2)
                memcpy(out + 2 * i, table + 2 * at, 2);
            else
                memcpy(out + 4 * i, table + 4 * at, 4);
        }
    }
}

/* K different experts a token. */
static void table_rows(const synth *s, stream *r, const weight *w, const encoding *to, uint8_t *out,
                       size_t bytes)
{
    size_t width = to->type == DSV4_I64 ? 8 : 4, row = width * (size_t)w->cols;
    for (size_t at = 0; at < bytes; at += row) {
        uint64_t first = next(r) % (uint64_t)s->experts;
        for (int64_t k = 0; k < w->cols; k++) {
            int64_t expert = (int64_t)((first + (uint64_t)k) % (uint64_t)s->experts);
            memcpy(out + at + width * (size_t)k, &expert, width); /* little-endian */
        }
    }
}

static void blocks(const synth *s, stream *r, const encoding *to, uint8_t *out, size_t bytes)
{
    const dsv4_format *f = dsv4_format_of(to->type);
    int layout = layout_of(to->type);
    size_t n = bytes / (size_t)f->block_bytes;
    fill(r, out, bytes);
    if (layout >= 0)
        set_scales(out, n, f->block_bytes, layout, s->scales[to->type].d, s->scales[to->type].min);
    else if (to->type == DSV4_MXFP4)
        for (size_t i = 0; i < n; i++)
            out[i * (size_t)f->block_bytes] = s->scales[to->type].e8m0;
    else if (to->type == DSV4_FP8)
        for (size_t i = 0; i < bytes; i++)
            out[i] = fp8_code(out[i]);
}

static void side(const synth *s, const encoding *to, int part, uint8_t *out, size_t bytes)
{
    uint16_t v = part == PART_SCALE ? s->scales[to->type].d : s->scales[to->type].min;
    if (to->type == DSV4_FP8 || to->type == DSV4_FP4) {
        memset(out, s->scales[to->type].e8m0, bytes);
        return;
    }
    for (size_t i = 0; i + 2 <= bytes; i += 2) /* recipes have bf16 scales */
        memcpy(out + i, &v, 2);
}

static dsv4_status make(void *ctx, const weight *w, int64_t e, const encoding *to,
                        const byte_sink *sink, dsv4_error *err)
{
    synth *s = ctx;
    stream r = stream_of(s->seed, w->name, e);
    uint64_t bytes[PART_COUNT], row[PART_COUNT];
    encoding_bytes(to, w->rows, w->cols, bytes);
    encoding_bytes(to, 1, w->cols, row);
    if (!s->scales[to->type].known)
        calibrate(s, to->type);
    const uint8_t *plain = NULL;
    if (to->type == DSV4_F32 || to->type == DSV4_F16 || to->type == DSV4_BF16) {
        plain = number_table(s, to->type, w->kind == W_NORM, err);
        if (plain == NULL)
            return DSV4_E_MACHINE;
    }
    for (int p = 0; p < PART_COUNT; p++) {
        /* Whole rows as long as one fits, so that no block is cut. */
        uint64_t step = row[p] > 0 && row[p] < STRIP ? STRIP / row[p] * row[p] : STRIP;
        for (uint64_t at = 0; at < bytes[p]; at += step) {
            size_t n = (size_t)(bytes[p] - at < step ? bytes[p] - at : step);
            if (p != PART_DATA)
                side(s, to, p, s->strip, n);
            else if (w->kind == W_TABLE)
                table_rows(s, &r, w, to, s->strip, n);
            else if (plain != NULL)
                numbers(&r, plain, to->type == DSV4_F32 ? 4 : 2, s->strip, n);
            else
                blocks(s, &r, to, s->strip, n);
            dsv4_status status = sink->put(sink->ctx, p, at, s->strip, n, err);
            if (status != DSV4_OK)
                return status;
        }
    }
    return DSV4_OK;
}

dsv4_status synth_init(synth *s, uint64_t seed, int64_t experts, dsv4_error *err)
{
    *s = (synth){.seed = seed, .experts = experts};
    s->strip = dsv4_alloc(STRIP, 1, "a strip", err);
    return s->strip != NULL ? DSV4_OK : DSV4_E_MACHINE;
}

void synth_free(synth *s)
{
    for (int t = 0; t <= DSV4_BF16; t++)
        for (int centre = 0; centre < 2; centre++)
            free(s->numbers[t][centre]);
    free(s->strip);
    s->strip = NULL;
}

weight_maker synth_maker(synth *s)
{
    return (weight_maker){.ctx = s, .make = make};
}
