/* i_quants_encode.c - encoders of IQ2_XXS and IQ1_S. The same search as ggml's: round every column
 * to a level, and where the eight levels are not in the book, take the best of the entries that lie
 * nearest. Both need an importance matrix. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "blocks.h"
#include "fit.h"
#include "iq_grids.h"

/* ---- neighbours in a code book ----------------------------------------------------------- */

/* A book, and for combinations outside it the entries at its nearest distances, nearest first.
 * The lists are made when first asked for and kept: `lists` [3^8], or NULL if there is no memory;
 * then they are made anew each time, with the same result. */
typedef struct {
    const uint16_t *grid;
    int size;
    int shells;                            /* how many different distances count as near */
    uint16_t **lists;                      /* [0] = length, then indices */
    uint8_t levels[DSV4_IQ1_S_GRID * 8];   /* [size][8] */
    uint16_t scratch[1 + DSV4_IQ1_S_GRID]; /* the list being made */
} code_book;

static void book_open(code_book *b, const uint16_t *grid, int size, int shells)
{
    b->grid = grid;
    b->size = size;
    b->shells = shells;
    b->lists = dsv4_alloc(DSV4_TERNARY_CODES, sizeof *b->lists, "code book neighbours", NULL);
    for (int i = 0; i < size; i++)
        dsv4_grid_ternary(grid[i], b->levels + 8 * i);
}

static void book_close(code_book *b)
{
    for (int i = 0; b->lists && i < DSV4_TERNARY_CODES; i++)
        free(b->lists[i]);
    free(b->lists);
}

static int combination(const uint8_t *levels)
{
    int code = 0;
    for (int i = 7; i >= 0; i--)
        code = 3 * code + levels[i];
    return code;
}

static int distance(const uint8_t *a, const uint8_t *b)
{
    int sum = 0;
    for (int i = 0; i < 8; i++)
        sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum;
}

/* The order - by distance, then by index - decides ties in the search. */
static const uint16_t *book_neighbours(code_book *b, const uint8_t *levels)
{
    enum { FARTHEST = 8 * 4 };
    int code = combination(levels), count = 0, shells = 0;
    if (b->lists && b->lists[code])
        return b->lists[code];
    for (int d = 0; d <= FARTHEST && shells < b->shells; d++) {
        int before = count;
        for (int i = 0; i < b->size; i++) {
            if (distance(levels, b->levels + 8 * i) == d)
                b->scratch[1 + count++] = (uint16_t)i;
        }
        shells += count > before;
    }
    b->scratch[0] = (uint16_t)count;
    if (b->lists) {
        size_t length = (size_t)count + 1;
        b->lists[code] = dsv4_alloc(length, sizeof *b->scratch, "code book neighbours", NULL);
        if (b->lists[code])
            memcpy(b->lists[code], b->scratch, length * sizeof *b->scratch);
    }
    return b->scratch;
}

/* The entry with the smallest sum of weight * (scale * value[level] - x)^2 among the neighbours of
 * `levels`. If no error compares (they overflow), the nearest one. */
static int book_best(code_book *b, const uint8_t *levels, const float *x, const float *weight,
                     float scale, const float *value)
{
    const uint16_t *list = book_neighbours(b, levels);
    float best = FLT_MAX;
    int found = list[1];
    for (int j = 1; j <= list[0]; j++) {
        const uint8_t *entry = b->levels + 8 * list[j];
        float error = 0;
        for (int i = 0; i < 8; i++) {
            float diff = scale * value[entry[i]] - x[i];
            error += weight[i] * diff * diff;
        }
        if (error < best) {
            best = error;
            found = list[j];
        }
    }
    return found;
}

/* ---- IQ2_XXS ----------------------------------------------------------------------------- */

enum { IQ2_GROUP = 32, IQ2_LEVELS = 3 };

/* Magnitudes, and signs with an even number of minus in each eight: an odd one out is the column
 * where the wrong sign costs least, whose magnitude turns negative. */
static void split_signs(const float *x, const float *weight, float *magnitude, uint8_t *signs)
{
    int negative = 0, cheapest = 0;
    float least = weight[0] * x[0] * x[0];
    *signs = 0;
    for (int i = 0; i < 8; i++) {
        magnitude[i] = x[i] >= 0 ? x[i] : -x[i];
        if (!(x[i] >= 0)) {
            negative++;
            *signs = (uint8_t)(*signs | 1 << i);
        }
        float cost = weight[i] * x[i] * x[i];
        if (cost < least) {
            least = cost;
            cheapest = i;
        }
    }
    if (negative % 2) {
        magnitude[cheapest] = -magnitude[cheapest];
        *signs = (uint8_t)(*signs ^ 1 << cheapest);
    }
    *signs &= 127; /* the eighth follows from the others */
}

/* Levels of 32 magnitudes for a scale, moved into the book. The book is searched with the square
 * roots of the weights: that is how ggml does it. */
static void iq2_levels(code_book *b, const float *x, const float *root, float inverse, float scale,
                       uint8_t *levels)
{
    static const float value[IQ2_LEVELS] = {1, 3, 5};
    for (int k = 0; k < IQ2_GROUP; k += 8) {
        for (int i = k; i < k + 8; i++) {
            int l = dsv4_fit_nearest(0.5f * (inverse * x[i] - 1));
            levels[i] = (uint8_t)dsv4_clamp(l, 0, IQ2_LEVELS - 1);
        }
        if (dsv4_grid_find(b->grid, b->size, combination(levels + k)) < 0) {
            int found = book_best(b, levels + k, x + k, root + k, scale, value);
            memcpy(levels + k, b->levels + 8 * found, 8);
        }
    }
}

static void iq2_sums(const float *x, const float *weight, const uint8_t *levels, float *xq,
                     float *q2)
{
    *xq = *q2 = 0;
    for (int i = 0; i < IQ2_GROUP; i++) {
        float q = (float)(2 * levels[i] + 1);
        *xq += weight[i] * x[i] * q;
        *q2 += weight[i] * q * q;
    }
}

/* The group's scale; its levels and signs. */
static float iq2_xxs_group(code_book *b, const float *x, const float *importance, float sigma2,
                           uint8_t *levels, uint8_t *signs)
{
    float weight[IQ2_GROUP], root[IQ2_GROUP], magnitude[IQ2_GROUP], xq, q2;
    uint8_t trial[IQ2_GROUP];

    dsv4_fit_weights(IQ2_GROUP, x, importance, sigma2, weight);
    for (int i = 0; i < IQ2_GROUP; i++)
        root[i] = sqrtf(weight[i]);
    for (int k = 0; k < IQ2_GROUP / 8; k++)
        split_signs(x + 8 * k, weight + 8 * k, magnitude + 8 * k, &signs[k]);
    float max = magnitude[0];
    for (int i = 1; i < IQ2_GROUP; i++)
        max = max > magnitude[i] ? max : magnitude[i];
    memset(levels, 0, IQ2_GROUP);
    if (max < DSV4_FIT_TINY)
        return 0;

    /* A first scale from a plain fit with one level more; then 13 around it. */
    float scale = dsv4_fit_unsigned(IQ2_GROUP, IQ2_LEVELS + 1, magnitude, weight, trial);
    float reach = scale * IQ2_LEVELS, best = 0;
    if (!(reach > 0))
        return 0;
    for (int k = -6; k <= 6; k++) {
        float inverse = ((float)(2 * IQ2_LEVELS - 1) + (float)k * 0.1f) / reach;
        iq2_levels(b, magnitude, root, inverse, 1 / inverse, trial);
        iq2_sums(magnitude, weight, trial, &xq, &q2);
        if (q2 > 0 && xq * xq > best * q2) {
            scale = xq / q2;
            best = scale * xq;
            memcpy(levels, trial, sizeof trial);
        }
    }
    if (scale > 0) {
        iq2_levels(b, magnitude, root, 1 / scale, scale, levels);
        iq2_sums(magnitude, weight, levels, &xq, &q2);
        if (q2 > 0)
            scale = xq / q2;
    }
    if (scale < 0) { /* scales are stored without a sign: turn the columns instead */
        scale = -scale;
        for (int k = 0; k < IQ2_GROUP / 8; k++)
            signs[k] = (uint8_t)(~signs[k] & 127);
    }
    return scale;
}

static void iq2_xxs_block(code_book *b, const float *x, const float *importance, uint8_t *block)
{
    enum { GROUPS = DSV4_QK / IQ2_GROUP, BYTES = 66 };
    float scales[GROUPS], max = 0;
    float sigma2 = dsv4_fit_sum_squares(x, DSV4_QK) / DSV4_QK;

    memset(block, 0, BYTES);
    for (int g = 0; g < GROUPS; g++) {
        uint8_t levels[IQ2_GROUP], signs[4], *p = block + 2 + 8 * g;
        scales[g] =
            iq2_xxs_group(b, x + IQ2_GROUP * g, importance + IQ2_GROUP * g, sigma2, levels, signs);
        max = max > scales[g] ? max : scales[g];
        if (scales[g] == 0)
            continue; /* the group stays all zero bits */
        uint32_t word = 0;
        for (int k = 0; k < 4; k++) {
            int index = dsv4_grid_find(b->grid, b->size, combination(levels + 8 * k));
            p[k] = (uint8_t)index;
            word |= (uint32_t)signs[k] << 7 * k;
        }
        memcpy(p + 4, &word, sizeof word);
    }
    if (!(max > 0)) {
        memset(block, 0, BYTES);
        return;
    }
    /* Stored scales are d * (2 s + 1) / 2, d so that the largest is s = 15. */
    float d = max / 31, inverse = 1 / d;
    dsv4_store_f16(block, d);
    for (int g = 0; g < GROUPS; g++) {
        int s = dsv4_clamp(dsv4_fit_nearest(0.5f * (inverse * scales[g] - 1)), 0, 15);
        uint8_t *top = block + 2 + 8 * g + 7;
        *top = (uint8_t)(*top | s << 4);
    }
}

/* ---- IQ1_S ------------------------------------------------------------------------------- */

enum { IQ1_GROUP = 32 };

/* The values of the three levels, for either sign of the shift. */
static const float iq1_value[2][3] = {{-0.875f, 0.125f, 1.125f}, {-1.125f, -0.125f, 0.875f}};

typedef struct {
    float scale;
    bool minus; /* the shift is -1/8 */
    uint16_t index[4];
} iq1_group;

/* Weighted sums of the columns in rising order; [k] is over the first k. */
typedef struct {
    float x[IQ1_GROUP + 1], w[IQ1_GROUP + 1];
} prefix_sums;

static void split_fit(const prefix_sums *s, int i, int j, const float *v, float *xq, float *q2)
{
    *xq = (s->x[i] - s->x[0]) * v[0] + (s->x[j] - s->x[i]) * v[1] +
          (s->x[IQ1_GROUP] - s->x[j]) * v[2];
    *q2 = (s->w[i] - s->w[0]) * v[0] * v[0] + (s->w[j] - s->w[i]) * v[1] * v[1] +
          (s->w[IQ1_GROUP] - s->w[j]) * v[2] * v[2];
}

/* With three levels the best assignment cuts the sorted columns in two places: try them all. */
static bool best_split(const float *x, const float *weight, float *scale, bool *minus,
                       uint8_t *levels)
{
    int order[IQ1_GROUP], first = -1, second = -1;
    prefix_sums s = {.x = {0}};

    for (int j = 0; j < IQ1_GROUP; j++) { /* insertion keeps equal columns in their order */
        int k = j;
        for (; k > 0 && x[order[k - 1]] > x[j]; k--)
            order[k] = order[k - 1];
        order[k] = j;
    }
    for (int j = 0; j < IQ1_GROUP; j++) {
        s.x[j + 1] = s.x[j] + weight[order[j]] * x[order[j]];
        s.w[j + 1] = s.w[j] + weight[order[j]];
    }
    float best = -FLT_MAX;
    for (int i = 0; i <= IQ1_GROUP; i++) {
        for (int j = i; j <= IQ1_GROUP; j++) {
            for (int shift = 0; shift < 2; shift++) {
                float xq, q2;
                split_fit(&s, i, j, iq1_value[shift], &xq, &q2);
                if (q2 > 0 && xq * xq > best * q2) {
                    *scale = xq / q2;
                    best = *scale * xq;
                    first = i;
                    second = j;
                    *minus = shift;
                }
            }
        }
    }
    for (int j = 0; j < IQ1_GROUP; j++)
        levels[order[j]] = (uint8_t)((j >= first) + (j >= second));
    return first >= 0;
}

static void iq1_s_group(code_book *b, const float *x, const float *importance, float sigma2,
                        iq1_group *out)
{
    const float tiny = 1e-12f;
    float weight[IQ1_GROUP], max = 0, scale = 0;
    uint8_t levels[IQ1_GROUP];
    bool minus = false, moved = false;

    *out = (iq1_group){.scale = 0};
    dsv4_fit_weights(IQ1_GROUP, x, importance, sigma2, weight);
    for (int i = 0; i < IQ1_GROUP; i++)
        max = max > fabsf(x[i]) ? max : fabsf(x[i]);
    if (max < tiny || !best_split(x, weight, &scale, &minus, levels))
        return;
    if (scale < 0) { /* mirror the levels and the shift */
        for (int i = 0; i < IQ1_GROUP; i++)
            levels[i] = (uint8_t)(2 - levels[i]);
        scale = -scale;
        minus = !minus;
    }
    for (int k = 0; k < 4; k++) {
        int index = dsv4_grid_find(b->grid, b->size, combination(levels + 8 * k));
        if (index < 0) {
            moved = true;
            index =
                book_best(b, levels + 8 * k, x + 8 * k, weight + 8 * k, scale, iq1_value[minus]);
        }
        out->index[k] = (uint16_t)index;
    }
    if (moved) { /* other levels, another best scale */
        float xq = 0, q2 = 0;
        for (int i = 0; i < IQ1_GROUP; i++) {
            float q = iq1_value[minus][b->levels[8 * out->index[i / 8] + i % 8]];
            xq += weight[i] * q * x[i];
            q2 += weight[i] * q * q;
        }
        if (xq > 0 && q2 > 0)
            scale = xq / q2;
    }
    out->scale = scale;
    out->minus = minus;
}

static void iq1_s_block(code_book *b, const float *x, const float *importance, uint8_t *block)
{
    enum { GROUPS = DSV4_QK / IQ1_GROUP, HIGH = 34, BYTES = 50 };
    iq1_group groups[GROUPS];
    float max = 0, sigma2 = 2 * dsv4_fit_sum_squares(x, DSV4_QK) / DSV4_QK;

    for (int g = 0; g < GROUPS; g++) {
        iq1_s_group(b, x + IQ1_GROUP * g, importance + IQ1_GROUP * g, sigma2, &groups[g]);
        max = max > groups[g].scale ? max : groups[g].scale;
    }
    memset(block, 0, BYTES);
    /* Stored scales are d * (2 s + 1). The eighth on top is ggml's, found by trial: the split's
     * scales come out too small once the levels are moved into the book. */
    float d = max / 15, inverse = max > 0 ? 1 / d : 0;
    dsv4_store_f16(block, max > 0 ? d * 1.125f : 0);
    for (int g = 0; g < GROUPS; g++) {
        unsigned word = 0;
        for (int k = 0; k < 4; k++) {
            block[2 + 4 * g + k] = (uint8_t)(groups[g].index[k] & 255);
            word |= (unsigned)(groups[g].index[k] >> 8) << 3 * k;
        }
        if (max > 0) {
            int s = dsv4_fit_nearest(0.5f * (inverse * groups[g].scale - 1));
            word |= (unsigned)dsv4_clamp(s, 0, 7) << 12 | (unsigned)groups[g].minus << 15;
        }
        dsv4_store16(block + HIGH + 2 * g, (uint16_t)word);
    }
}

/* ---- matrices ---------------------------------------------------------------------------- */

static bool encode(const float *x, int64_t rows, int64_t cols, const float *importance,
                   const dsv4_encoded *out, const uint16_t *grid, int size, int shells, int bytes,
                   void (*block)(code_book *, const float *, const float *, uint8_t *))
{
    code_book b;
    uint8_t *p = out->data;
    if (!importance)
        return false;
    book_open(&b, grid, size, shells);
    for (int64_t r = 0; r < rows; r++, x += cols) {
        for (int64_t c = 0; c < cols; c += DSV4_QK, p += bytes)
            block(&b, x + c, importance + c, p);
    }
    book_close(&b);
    return true;
}

bool dsv4_encode_iq2_xxs(const float *x, int64_t rows, int64_t cols, const float *importance,
                         const dsv4_encoded *out)
{
    return encode(x, rows, cols, importance, out, dsv4_iq2_xxs_grid, DSV4_IQ2_XXS_GRID, 2, 66,
                  iq2_xxs_block);
}

bool dsv4_encode_iq1_s(const float *x, int64_t rows, int64_t cols, const float *importance,
                       const dsv4_encoded *out)
{
    return encode(x, rows, cols, importance, out, dsv4_iq1_s_grid, DSV4_IQ1_S_GRID, 3, 50,
                  iq1_s_block);
}
