/* recipes_scales.c - notes on blocks whose scale cannot be told from their values. */
#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "recipes.h"
#include "reference/checkpoint/metadata.h"
#include "write_metadata.h"

enum { FP8_BLOCK = 128, FP4_BLOCK = 32 };

static dsv4_status add(scale_notes *n, const char *name, int64_t index, uint8_t code,
                       dsv4_error *err)
{
    if (n->count == n->capacity) {
        size_t more = n->capacity > 0 ? 2 * n->capacity : 64;
        scale_note *bigger = dsv4_alloc(more, sizeof *bigger, "notes on scales", err);
        if (bigger == NULL)
            return DSV4_E_MACHINE;
        if (n->count > 0)
            memcpy(bigger, n->items, n->count * sizeof *bigger);
        free(n->items);
        n->items = bigger;
        n->capacity = more;
    }
    scale_note *note = &n->items[n->count++];
    snprintf(note->name, sizeof note->name, "%s", name);
    note->index = index;
    note->code = code;
    return DSV4_OK;
}

void scale_notes_free(scale_notes *n)
{
    free(n->items);
    *n = (scale_notes){0};
}

static int by_place(const void *a, const void *b)
{
    const scale_note *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order != 0 ? order : (x->index > y->index) - (x->index < y->index);
}

/* ---- collecting --------------------------------------------------------------------------- */

/* One matrix: encodes what it decodes to and notes every block that gets another scale. */
static dsv4_status collect_matrix(const dsv4_tensor *v, const char *name, scale_notes *out,
                                  pthread_mutex_t *lock, dsv4_error *err)
{
    const dsv4_format *f = dsv4_format_of(v->type);
    int64_t cols = v->cols, groups = (int64_t)v->scale_row_bytes;
    dsv4_status status = DSV4_OK;
    float *x = dsv4_alloc((size_t)(FP8_BLOCK * cols), sizeof *x, "a strip", err);
    uint8_t *data = dsv4_alloc((size_t)(FP8_BLOCK * cols), 1, "a strip", err);
    uint8_t *scale = dsv4_alloc((size_t)(FP8_BLOCK * groups), 1, "scales", err);
    if (x == NULL || data == NULL || scale == NULL)
        status = DSV4_E_MACHINE;
    for (int64_t first = 0; first < v->rows && status == DSV4_OK; first += FP8_BLOCK) {
        int64_t n = v->rows - first < FP8_BLOCK ? v->rows - first : FP8_BLOCK;
        for (int64_t r = 0; r < n; r++)
            dsv4_tensor_row(v, first + r, x + r * cols);
        dsv4_encoded encoded = {.data = data, .scale = scale};
        f->encode(x, n, cols, NULL, &encoded);
        int64_t top = first / v->scale_rows, rows = (n + v->scale_rows - 1) / v->scale_rows;
        const uint8_t *stored =
            v->scale + (size_t)((v->row0 + first) / v->scale_rows) * v->scale_row_bytes;
        for (int64_t i = 0; i < rows * groups && status == DSV4_OK; i++)
            if (stored[i] != scale[i]) {
                pthread_mutex_lock(lock);
                status = add(out, name, top * groups + i, stored[i], err);
                pthread_mutex_unlock(lock);
            }
    }
    free(x);
    free(data);
    free(scale);
    return status;
}

typedef struct {
    const weight *w; /* the weight whose matrices are looked at */
    scale_notes *out;
    pthread_mutex_t lock;
} collector;

static dsv4_status collect_one(void *ctx, int64_t e, dsv4_error *err)
{
    collector *c = ctx;
    char name[96];
    const dsv4_tensor *v = &c->w->views[e];
    weight_name(c->w, e, name);
    if ((v->type == DSV4_FP8 || v->type == DSV4_FP4) && v->row0 % FP8_BLOCK == 0)
        return collect_matrix(v, name, c->out, &c->lock, err);
    return DSV4_OK;
}

dsv4_status scale_notes_collect(const weight_list *l, const encoding *encodings, int threads,
                                scale_notes *out, dsv4_error *err)
{
    collector c = {.out = out, .lock = PTHREAD_MUTEX_INITIALIZER};
    dsv4_status status = DSV4_OK;
    *out = (scale_notes){0};
    for (size_t i = 0; i < l->count && status == DSV4_OK; i++) {
        /* Only types that keep the values can lead back. */
        if (encodings[i].type != DSV4_F32 && encodings[i].type != DSV4_BF16)
            continue;
        c.w = &l->items[i];
        status = share_work(threads, c.w->experts > 0 ? c.w->experts : 1, collect_one, &c, err);
    }
    pthread_mutex_destroy(&c.lock);
    if (status == DSV4_OK && out->count > 1)
        qsort(out->items, out->count, sizeof *out->items, by_place);
    if (status != DSV4_OK)
        scale_notes_free(out);
    return status;
}

/* ---- reading ------------------------------------------------------------------------------ */

static dsv4_status parse_note(const char *text, size_t bytes, const char *from, scale_notes *out,
                              dsv4_error *err)
{
    char name[160];
    long long index;
    unsigned code;
    int end = 0;
    snprintf(name, sizeof name, "%.*s", (int)(bytes < 150 ? bytes : 150), text);
    char *colon = strchr(name, ':');
    if (colon == NULL || colon - name >= 96 ||
        sscanf(colon, ":%18lld:%3u%n", &index, &code, &end) != 2 || colon[end] != '\0' ||
        index < 0 || code > 255)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: %s: expected name:index:code, found %s", from,
                         SCALE_NOTES_KEY, name);
    *colon = '\0';
    return add(out, name, index, (uint8_t)code, err);
}

dsv4_status scale_notes_read(const dsv4_model *m, scale_notes *out, dsv4_error *err)
{
    enum { STRING = 8, ARRAY = 9 };
    dsv4_key_value v;
    char path[4200];
    dsv4_status status = DSV4_OK;
    const char *from = dsv4_model_path(m);
    *out = (scale_notes){0};
    if (dsv4_model_key(m, SCALE_NOTES_KEY, &v) && v.type == ARRAY && v.item_type == STRING) {
        const uint8_t *p = v.data;
        for (uint64_t i = 0; i < v.count && status == DSV4_OK; i++) {
            uint64_t n; /* lengths were checked when the file was read */
            memcpy(&n, p, 8);
            status = parse_note((const char *)p + 8, (size_t)n, from, out, err);
            p += 8 + n;
        }
    } else if (source_file(m, "config.json", path, sizeof path)) {
        json_t *root = json_load_file(path, 0, NULL);
        const json_t *list = json_object_get(root, SCALE_NOTES_KEY);
        for (size_t i = 0; i < json_array_size(list) && status == DSV4_OK; i++) {
            const char *text = json_string_value(json_array_get(list, i));
            status = parse_note(text != NULL ? text : "", text != NULL ? strlen(text) : 0, from,
                                out, err);
        }
        json_decref(root);
    }
    if (status == DSV4_OK && out->count > 1)
        qsort(out->items, out->count, sizeof *out->items, by_place);
    if (status != DSV4_OK)
        scale_notes_free(out);
    return status;
}

/* ---- applying ----------------------------------------------------------------------------- */

/* Encodes [rows][cols] of x (ld apart) with a scale of 2^(code-127); false if a value changes. */
static bool encode_block(const float *x, int64_t rows, int64_t cols, int64_t ld, uint8_t code,
                         bool fp8, uint8_t *codes)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            float v = (float)ldexp((double)x[r * ld + c], 127 - code);
            uint8_t q = fp8 ? dsv4_f32_to_e4m3(v) : dsv4_f32_to_e2m1(v);
            if ((fp8 ? dsv4_e4m3_to_f32(q) : dsv4_e2m1_to_f32(q)) != v)
                return false;
            codes[r * cols + c] = q;
        }
    return true;
}

static void apply(const scale_note *note, dsv4_type type, const float *x, int64_t first,
                  int64_t rows, int64_t cols, uint8_t *data, uint8_t *scale)
{
    uint8_t codes[FP8_BLOCK * FP8_BLOCK];
    bool fp8 = type == DSV4_FP8;
    int64_t high = fp8 ? FP8_BLOCK : 1, wide = fp8 ? FP8_BLOCK : FP4_BLOCK;
    int64_t groups = (cols + wide - 1) / wide;
    int64_t row = note->index / groups * high, col = note->index % groups * wide;
    if (row < first || row >= first + rows || note->code == 255)
        return;
    row -= first;
    int64_t h = rows - row < high ? rows - row : high, w = cols - col < wide ? cols - col : wide;
    if (!encode_block(x + row * cols + col, h, w, cols, note->code, fp8, codes))
        return;
    for (int64_t r = 0; r < h; r++)
        for (int64_t c = 0; c < w; c++) {
            int64_t at = (row + r) * cols + col + c;
            uint8_t q = codes[r * w + c];
            if (fp8)
                data[at] = q;
            else
                data[at / 2] = (uint8_t)(at % 2 == 0 ? (data[at / 2] & 0xf0) | q
                                                     : (data[at / 2] & 0x0f) | q << 4);
        }
    scale[row / high * groups + col / wide] = note->code;
}

void scale_notes_apply(const scale_notes *n, const char *name, dsv4_type type, const float *x,
                       int64_t first, int64_t rows, int64_t cols, uint8_t *data, uint8_t *scale)
{
    size_t low = 0, high = n->count;
    while (low < high) { /* the first note of that name */
        size_t middle = low + (high - low) / 2;
        if (strcmp(n->items[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < n->count && strcmp(n->items[low].name, name) == 0; low++)
        apply(&n->items[low], type, x, first, rows, cols, data, scale);
}
