/* compositions.c - compositions (several operators in one launch) against those operators one by
 * one: the same bits are asked for, but where a case says why not. The operators themselves are
 * held to the scalar ones by the checker of operators; so a composition is, too.
 *
 * A case lays out its buffers twice, with the same bytes and bands of a known pattern between them.
 * The composition works on one side, the operators on the other, and then both sides must be equal,
 * bands and inputs included. */
#include "compositions.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BAND = 256, CAPACITY = 24 << 20 };
static const uint8_t band_pattern = 0xc3;
static const char *const fill_names[FILLS] = {"noise",   "zero", "subnormal", "huge",
                                              "outlier", "ties", "nonfinite"};

/* ---- buffers -------------------------------------------------------------------------------- */

uint32_t bed_bits(bed *b)
{
    b->noise = b->noise * 6364136223846793005u + 1442695040888963407u;
    uint64_t x = b->noise;
    x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(x >> 32);
}

static float uniform(bed *b)
{
    return (float)bed_bits(b) * 0x1p-31f - 1.0f;
}

static float value(bed *b, fill f, int64_t i)
{
    static const float ties[] = {0.25f, 0.75f, 1.25f, 2.5f, 5.0f, 1.0625f, 432.0f, 1.00390625f};
    float x = uniform(b);
    switch (f) {
    case ZERO:
        return i % 2 == 0 ? 0.0f : -0.0f;
    case SUBNORMAL:
        return x * 0x1p-127f;
    case HUGE_VALUES:
        return x * 1e15f;
    case OUTLIER:
        return i % 64 == 5 ? x * 1000 : x;
    case TIES:
        return copysignf(ties[bed_bits(b) % 8], x);
    case NONFINITE:
        return i % 97 == 3 ? NAN : i % 89 == 7 ? copysignf(INFINITY, x) : x;
    default:
        return x;
    }
}

static float to_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    if (isfinite(x))
        u += 0x7fffu + (u >> 16 & 1u);
    else if (isnan(x))
        u |= 0x400000u;
    u &= 0xffff0000u;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* Room of `bytes` on both sides, behind a band; NULL behind the last that fits. */
static uint8_t *lay(bed *b, const char *name, size_t bytes, int *number)
{
    size_t at = b->bytes + BAND, end = (at + bytes + BAND - 1) / BAND * BAND;
    *number = b->n;
    if (b->n == MOST_PIECES || end + BAND > b->capacity) {
        snprintf(b->wrong, sizeof b->wrong, "the case has no room for %s", name);
        *number = 0;
        return NULL;
    }
    memset(b->image[0] + b->bytes, band_pattern, end + BAND - b->bytes);
    b->pieces[b->n++] = (piece){name, at, bytes, false, false, 0};
    b->bytes = end;
    return b->image[0] + at;
}

static int floats(bed *b, const char *name, int64_t n, fill f)
{
    int number;
    float *x = (float *)(void *)lay(b, name, (size_t)n * sizeof *x, &number);
    for (int64_t i = 0; x != NULL && i < n; i++) {
        x[i] = value(b, f, i);
        if (b->numerics == DSV4_DEPLOYED)
            x[i] = to_bf16(x[i]);
    }
    return number;
}

int bed_input(bed *b, const char *name, int64_t n)
{
    return floats(b, name, n, b->fill);
}

/* Weights, angles and the like: never hostile. */
int bed_plain(bed *b, const char *name, int64_t n)
{
    return floats(b, name, n, NOISE);
}

int bed_result(bed *b, const char *name, int64_t n)
{
    int number;
    uint8_t *p = lay(b, name, (size_t)n * sizeof(float), &number);
    if (p != NULL)
        memset(p, 0xff, (size_t)n * sizeof(float));
    return number;
}

/* What only one side writes, or both as they please. */
int bed_scratch(bed *b, const char *name, int64_t n)
{
    int number = bed_result(b, name, n);
    b->pieces[number].aside = true;
    return number;
}

void *bed_ints(bed *b, const char *name, size_t bytes, int *number)
{
    uint8_t *p = lay(b, name, bytes, number);
    b->pieces[*number].ints = true;
    if (p != NULL)
        memset(p, 0, bytes);
    return p;
}

void *bed_at(const bed *b, int side, int number)
{
    return b->device[side] + b->pieces[number].at;
}

void *bed_image(const bed *b, int side, int number)
{
    return b->image[side] + b->pieces[number].at;
}

/* ---- a case --------------------------------------------------------------------------------- */

bool bed_wanted(bed *b, const char *text)
{
    snprintf(b->name, sizeof b->name, "%s,%s/%s", text, dsv4_numerics_name(b->numerics),
             fill_names[b->fill]);
    b->n = 0;
    b->bytes = 0;
    b->wrong[0] = '\0';
    b->noise = b->seed;
    for (const char *c = b->name; *c != '\0'; c++)
        b->noise = (b->noise ^ (uint8_t)*c) * 0x100000001b3u;
    return b->cases->begin(b->cases->ctx, b->name);
}

static bool differs(const bed *b, const piece *p, size_t i)
{
    uint32_t u[SIDES];
    for (int s = 0; s < SIDES; s++)
        memcpy(&u[s], b->back[s] + p->at + i, sizeof *u);
    bool nan = (u[0] & 0x7fffffffu) > 0x7f800000u && (u[1] & 0x7fffffffu) > 0x7f800000u;
    if (u[0] == u[1] || (nan && !p->ints))
        return false;
    float v[SIDES];
    memcpy(v, u, sizeof v);
    return !(p->relative > 0 && isfinite(v[0]) && isfinite(v[1]) &&
             fabsf(v[0] - v[1]) <= p->relative * fmaxf(fabsf(v[0]), fabsf(v[1])) + 0x1p-126f);
}

static void compare(bed *b)
{
    size_t from = 0;
    for (int i = 0; i <= b->n && b->wrong[0] == '\0'; i++) {
        size_t until = i < b->n ? b->pieces[i].at : b->bytes + BAND;
        for (int s = 0; s < SIDES; s++)
            for (size_t k = from; k < until && b->wrong[0] == '\0'; k++)
                if (b->back[s][k] != band_pattern)
                    snprintf(b->wrong, sizeof b->wrong, "%s: wrote %zu bytes behind %s",
                             s == 0 ? "together" : "one by one", k - from,
                             i > 0 ? b->pieces[i - 1].name : "nothing");
        if (i == b->n)
            break;
        const piece *p = &b->pieces[i];
        from = p->at + p->bytes;
        for (size_t k = 0; k < p->bytes && !p->aside && b->wrong[0] == '\0'; k += 4)
            if (differs(b, p, k)) {
                float v[SIDES];
                for (int s = 0; s < SIDES; s++)
                    memcpy(&v[s], b->back[s] + p->at + k, sizeof *v);
                snprintf(b->wrong, sizeof b->wrong, "%s[%zu]: one by one %.9g, together %.9g%s",
                         p->name, k / 4, (double)v[1], (double)v[0],
                         p->relative > 0 ? "" : ", bit for bit");
            }
    }
}

void bed_run(bed *b, bed_side *together, bed_side *one_by_one, bed_side *patch, void *ctx)
{
    dsv4_error err = {""};
    bool ok = b->wrong[0] == '\0';
    if (ok)
        memcpy(b->image[1], b->image[0], b->bytes + BAND);
    for (int s = 0; ok && s < SIDES; s++) {
        if (patch != NULL)
            patch(b, ctx, s);
        ok = cu_to_device(b->stream, b->device[s], b->image[s], b->bytes + BAND, b->name);
    }
    if (ok) {
        together(b, ctx, 0);
        one_by_one(b, ctx, 1);
        ok = cu_wait(b->stream, b->name);
    }
    for (int s = 0; ok && s < SIDES; s++)
        ok = cu_to_host(b->stream, b->back[s], b->device[s], b->bytes + BAND, b->name);
    if (ok)
        compare(b);
    else if (cu_take_error(&err) != DSV4_OK && b->wrong[0] == '\0')
        snprintf(b->wrong, sizeof b->wrong, "%.190s", err.text);
    b->cases->end(b->cases->ctx, b->wrong[0] != '\0' ? b->wrong : NULL);
}

/* ---- all of them ---------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*check)(bed *b);
} compositions[] = {{"rows", check_rows},
                    {"queries", check_queries},
                    {"scores_alone", check_scores},
                    {"attention_turned", check_attention},
                    {"attention_raw", check_raw_attention},
                    {"swiglu_both", check_swiglu},
                    {"gated", check_gated},
                    {"ahead", check_ahead},
                    {"leave", check_leave},
                    {"hc_enter", check_enter},
                    {"begin_step", check_begin}};

const char *dsv4_cuda_composition(int which)
{
    int count = (int)(sizeof compositions / sizeof *compositions);
    return which < count ? compositions[which].name : NULL;
}

dsv4_status dsv4_cuda_check_composition(int which, uint64_t seed,
                                        const dsv4_composition_cases *cases, dsv4_error *err)
{
    bed b = {.cases = cases, .seed = seed, .capacity = CAPACITY};
    dsv4_status status = cu_open(err);
    if (status != DSV4_OK)
        return status;
    status = DSV4_E_MACHINE;
    for (int s = 0; s < SIDES; s++) {
        b.image[s] = dsv4_alloc(CAPACITY, 1, "a composition", err);
        b.back[s] = b.image[s] != NULL ? dsv4_alloc(CAPACITY, 1, "a composition", err) : NULL;
        b.device[s] = b.back[s] != NULL ? cu_new(CAPACITY, "a composition", err) : NULL;
        if (b.device[s] == NULL)
            goto done;
    }
    b.stream = cu_new_stream(err);
    if (b.stream == NULL)
        goto done;
    compositions[which].check(&b);
    status = DSV4_OK;
done:
    cu_delete_stream(b.stream);
    for (int s = 0; s < SIDES; s++) {
        free(b.image[s]);
        free(b.back[s]);
        cu_delete(b.device[s]);
    }
    return status;
}
