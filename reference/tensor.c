/* tensor.c - reading rows and integers out of tensor views. */
#include "dsv4.h"

#include <string.h>

#include "formats/formats.h"
#include "scalar.h"

void dsv4_tensor_span(const dsv4_tensor *t, int64_t row, int64_t column, int64_t n, float *out)
{
    const dsv4_format *f = dsv4_format_of(t->type);
    int64_t stored = t->row0 + row;
    dsv4_row r = {
        .data = t->data + (size_t)stored * t->row_bytes + dsv4_format_row_bytes(f, column),
        .group = t->scale_cols,
        .scale_type = t->scale_type,
    };
    if (t->scale != NULL) {
        /* FP8 and FP4 scales are one byte (e8m0); MLX scales are floats of scale_type. */
        bool mlx = t->type == DSV4_MLX4 || t->type == DSV4_MLX8;
        size_t width = mlx ? dsv4_format_row_bytes(dsv4_format_of(t->scale_type), 1) : 1;
        size_t at = (size_t)(stored / t->scale_rows) * t->scale_row_bytes +
                    (size_t)(column / t->scale_cols) * width;
        r.scale = t->scale + at;
        if (t->bias != NULL)
            r.bias = t->bias + at;
    }
    f->decode(&r, n, out);
}

void dsv4_tensor_row(const dsv4_tensor *t, int64_t row, float *out)
{
    dsv4_tensor_span(t, row, 0, t->cols, out);
}

int64_t dsv4_tensor_int(const dsv4_tensor *t, int64_t i)
{
    const uint8_t *base = t->data + (size_t)t->row0 * t->row_bytes;
    if (t->type == DSV4_I64) {
        int64_t v;
        memcpy(&v, base + (size_t)i * sizeof v, sizeof v);
        return v;
    }
    int32_t v;
    memcpy(&v, base + (size_t)i * sizeof v, sizeof v);
    return v;
}

dsv4_tensor dsv4_tensor_rows(const dsv4_tensor *t, int64_t first, int64_t rows)
{
    dsv4_tensor view = *t;
    view.row0 += first;
    view.rows = rows;
    return view;
}
