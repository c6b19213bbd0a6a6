/* quants_vectors.c - reader of HDF5 files of schema dsv4-quants-1, one weight format at a time.
 * Every shape is checked against the schema and against the others; every message is one line:
 * file, dataset, expected, found. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness/quants.h"
#include "harness/vectors_private.h"

#define SCHEMA "dsv4-quants-1"
#define MAX_ELEMENTS ((int64_t)1 << 26) /* of a dataset: 30 times the untrimmed file's largest */
#define MAX_VALUE 1e30f                 /* weight rows with larger values have no dot products */

typedef struct {
    char (*names)[QUANTS_NAME];
    int64_t count;
} name_table;

struct quants_file {
    vec_file base; /* path and handle, for the helpers that name them in messages */
    char *producer;
    name_table inputs, imatrix, acts;
    int64_t input_rows, act_rows;
    float *input_values, *imatrix_values, *act_values;
    vec_name_list types;
};

/* ---- datasets ------------------------------------------------------------------------------- */

/* Reads the whole dataset `path` as `memory` elements of `size` bytes. shape[axes]: what is
 * expected, -1 = any extent, which is filled in. */
static dsv4_status read_array(const quants_file *f, const char *path, H5T_class_t class,
                              hid_t memory, size_t size, int axes, int64_t *shape, void **out,
                              dsv4_error *err)
{
    hid_t dataset;
    vec_dataset_info info;
    char found[96], wanted[96];
    *out = NULL;
    dsv4_status status = vec_dataset_open(&f->base, f->base.id, path, path, &dataset, &info, err);
    if (status != DSV4_OK)
        return status;
    if (dataset < 0)
        return vec_bad(&f->base, path, err, "expected a dataset, found none");
    bool fits = info.axes == axes;
    for (int i = 0; fits && i < axes; i++)
        fits = shape[i] < 0 ? info.shape[i] > 0 : info.shape[i] == shape[i];
    if (info.type != class)
        status = vec_bad(&f->base, path, err, "expected %s, found %s", vec_type_name(class),
                         vec_type_name(info.type));
    else if (!fits)
        status = vec_bad(&f->base, path, err, "expected shape %s, found %s",
                         vec_shape_text(wanted, sizeof wanted, axes, shape),
                         vec_shape_text(found, sizeof found, info.axes, info.shape));
    else if (info.elements > MAX_ELEMENTS)
        status =
            vec_bad(&f->base, path, err, "absurdly large: %lld elements", (long long)info.elements);
    else if ((*out = dsv4_alloc((size_t)info.elements, size, path, err)) == NULL)
        status = DSV4_E_MACHINE;
    else if (H5Dread(dataset, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, *out) < 0) {
        status = vec_hdf5_failure(f->base.path, path, "cannot read it", DSV4_E_INPUT, err);
        free(*out);
        *out = NULL;
    }
    for (int i = 0; status == DSV4_OK && i < axes; i++)
        shape[i] = info.shape[i];
    H5Dclose(dataset);
    return status;
}

static dsv4_status read_floats(const quants_file *f, const char *path, int axes, int64_t *shape,
                               float **out, dsv4_error *err)
{
    void *data;
    dsv4_status status =
        read_array(f, path, H5T_FLOAT, H5T_NATIVE_FLOAT, sizeof(float), axes, shape, &data, err);
    *out = data;
    return status;
}

static dsv4_status read_doubles(const quants_file *f, const char *path, int axes, int64_t *shape,
                                double **out, dsv4_error *err)
{
    void *data;
    dsv4_status status =
        read_array(f, path, H5T_FLOAT, H5T_NATIVE_DOUBLE, sizeof(double), axes, shape, &data, err);
    *out = data;
    return status;
}

static dsv4_status read_bytes(const quants_file *f, const char *path, int axes, int64_t *shape,
                              uint8_t **out, dsv4_error *err)
{
    void *data;
    dsv4_status status =
        read_array(f, path, H5T_INTEGER, H5T_NATIVE_UINT8, 1, axes, shape, &data, err);
    *out = data;
    return status;
}

/* Strings of variable length into the table. */
static dsv4_status read_variable(const quants_file *f, const char *path, hid_t dataset,
                                 name_table *out, dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    hid_t space = H5Dget_space(dataset), memory = H5Dget_type(dataset);
    char **texts = dsv4_alloc((size_t)out->count, sizeof *texts, path, err);
    if (texts == NULL)
        status = DSV4_E_MACHINE;
    else if (H5Dread(dataset, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, texts) < 0)
        status = vec_hdf5_failure(f->base.path, path, "cannot read it", DSV4_E_INPUT, err);
    for (int64_t i = 0; status == DSV4_OK && i < out->count; i++) {
        size_t n = texts[i] ? strlen(texts[i]) : 0;
        if (n >= QUANTS_NAME)
            status = vec_bad(&f->base, path, err, "name %lld is too long", (long long)i);
        else if (n > 0)
            memcpy(out->names[i], texts[i], n);
    }
    if (texts != NULL && status == DSV4_OK)
        H5Dvlen_reclaim(memory, space, H5P_DEFAULT, texts);
    free(texts);
    H5Tclose(memory);
    H5Sclose(space);
    return status;
}

/* Reads the list of names `path`: strings of fixed or variable length. */
static dsv4_status read_names(const quants_file *f, const char *path, name_table *out,
                              dsv4_error *err)
{
    hid_t dataset, type = -1, memory = -1;
    vec_dataset_info info;
    char found[96];
    memset(out, 0, sizeof *out);
    dsv4_status status = vec_dataset_open(&f->base, f->base.id, path, path, &dataset, &info, err);
    if (status != DSV4_OK)
        return status;
    if (dataset < 0)
        return vec_bad(&f->base, path, err, "expected a dataset, found none");
    if (info.type != H5T_STRING || info.axes != 1 || info.elements == 0) {
        status = vec_bad(&f->base, path, err, "expected strings [*], found %s %s",
                         vec_type_name(info.type),
                         vec_shape_text(found, sizeof found, info.axes, info.shape));
        goto done;
    }
    type = H5Dget_type(dataset);
    htri_t variable = H5Tis_variable_str(type);
    memory = H5Tcopy(H5T_C_S1);
    if (type < 0 || variable < 0 || memory < 0 || H5Tset_size(memory, QUANTS_NAME) < 0 ||
        H5Tset_cset(memory, H5Tget_cset(type)) < 0) {
        status = vec_hdf5_failure(f->base.path, path, "cannot read its type", DSV4_E_INPUT, err);
        goto done;
    }
    if (info.elements > MAX_ELEMENTS / QUANTS_NAME || (!variable && H5Tget_size(type) >= 256)) {
        status = vec_bad(&f->base, path, err, "absurdly large: %lld names of %zu bytes",
                         (long long)info.elements, H5Tget_size(type));
        goto done;
    }
    out->count = info.elements;
    out->names = dsv4_alloc((size_t)out->count, sizeof *out->names, path, err);
    if (out->names == NULL)
        status = DSV4_E_MACHINE;
    else if (variable)
        status = read_variable(f, path, dataset, out, err);
    else if (H5Dread(dataset, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, out->names) < 0)
        status = vec_hdf5_failure(f->base.path, path, "cannot read it", DSV4_E_INPUT, err);
done:
    if (memory >= 0)
        H5Tclose(memory);
    if (type >= 0)
        H5Tclose(type);
    H5Dclose(dataset);
    if (status != DSV4_OK) {
        free(out->names);
        memset(out, 0, sizeof *out);
    }
    return status;
}

static int64_t find(const name_table *t, const char *name, size_t n)
{
    for (int64_t i = 0; i < t->count; i++)
        if (strlen(t->names[i]) == n && strncmp(t->names[i], name, n) == 0)
            return i;
    return -1;
}

/* ---- the file ------------------------------------------------------------------------------- */

static dsv4_status read_root(quants_file *f, dsv4_error *err)
{
    char *schema = NULL;
    dsv4_status status = vec_read_text(&f->base, f->base.id, "/", "schema", false, &schema, err);
    if (status == DSV4_OK && (schema == NULL || strcmp(schema, SCHEMA) != 0))
        status = dsv4_fail(
            err, DSV4_E_INPUT, "%s: /: attribute schema: expected \"%s\", found %s%s%s",
            f->base.path, SCHEMA, schema ? "\"" : "", schema ? schema : "none", schema ? "\"" : "");
    free(schema);
    if (status == DSV4_OK)
        status = vec_read_text(&f->base, f->base.id, "/", "producer", true, &f->producer, err);
    return status;
}

static dsv4_status read_sources(quants_file *f, dsv4_error *err)
{
    int64_t shape[3] = {-1, -1, QUANTS_COLS};
    dsv4_status status = read_names(f, "inputs/names", &f->inputs, err);
    if (status != DSV4_OK)
        return status;
    shape[0] = f->inputs.count;
    status = read_floats(f, "inputs/rows", 3, shape, &f->input_values, err);
    f->input_rows = shape[1];
    if (status == DSV4_OK && f->input_rows > QUANTS_MAX_ROWS)
        status = vec_bad(&f->base, "inputs/rows", err, "expected at most %d rows, found %lld",
                         QUANTS_MAX_ROWS, (long long)f->input_rows);
    if (status == DSV4_OK && vec_object_exists(f->base.id, "imatrix") > 0) {
        status = read_names(f, "imatrix/names", &f->imatrix, err);
        int64_t want[3] = {f->inputs.count, f->imatrix.count, QUANTS_COLS};
        if (status == DSV4_OK)
            status = read_floats(f, "imatrix/rows", 3, want, &f->imatrix_values, err);
    }
    if (status == DSV4_OK && vec_object_exists(f->base.id, "acts") > 0) {
        status = read_names(f, "acts/names", &f->acts, err);
        int64_t want[3] = {f->acts.count, -1, QUANTS_COLS};
        if (status == DSV4_OK)
            status = read_floats(f, "acts/rows", 3, want, &f->act_values, err);
        f->act_rows = want[1];
    }
    return status;
}

static dsv4_status read_types(quants_file *f, dsv4_error *err)
{
    if (vec_object_exists(f->base.id, "types") <= 0)
        return vec_bad(&f->base, "types", err, "expected a group, found none");
    dsv4_status status = vec_list_names(&f->base, f->base.id, "types", "types", &f->types, err);
    for (size_t i = 0; status == DSV4_OK && i < f->types.count; i++)
        if (strlen(f->types.names[i]) >= QUANTS_NAME)
            status = vec_bad(&f->base, "types", err, "the name of a format is too long: %.80s...",
                             f->types.names[i]);
    if (status == DSV4_OK && f->types.count == 0)
        status = vec_bad(&f->base, "types", err, "expected weight formats, found none");
    return status;
}

dsv4_status quants_open(const char *path, quants_file **out, dsv4_error *err)
{
    *out = NULL;
    dsv4_status status = vec_check_path(path, err);
    if (status != DSV4_OK)
        return status;
    quants_file *f = dsv4_alloc(1, sizeof *f, "format vectors", err);
    if (f == NULL)
        return DSV4_E_MACHINE;
    f->base.id = -1;
    f->base.path = vec_strdup(path, err);
    status = f->base.path ? DSV4_OK : DSV4_E_MACHINE;
    vec_lock();
    if (status == DSV4_OK)
        status = vec_open_library(&f->base, SCHEMA, err);
    if (status == DSV4_OK)
        status = read_root(f, err);
    if (status == DSV4_OK)
        status = read_sources(f, err);
    if (status == DSV4_OK)
        status = read_types(f, err);
    vec_unlock();
    if (status != DSV4_OK)
        quants_close(f);
    else
        *out = f;
    return status;
}

void quants_close(quants_file *f)
{
    if (f == NULL)
        return;
    if (f->base.id >= 0) {
        vec_lock();
        H5Fclose(f->base.id);
        vec_unlock();
    }
    free(f->base.path);
    free(f->producer);
    free(f->inputs.names);
    free(f->imatrix.names);
    free(f->acts.names);
    free(f->input_values);
    free(f->imatrix_values);
    free(f->act_values);
    vec_names_free(&f->types);
    free(f);
}

const char *quants_producer(const quants_file *f)
{
    return f->producer ? f->producer : "";
}

size_t quants_type_count(const quants_file *f)
{
    return f->types.count;
}

const char *quants_type_name(const quants_file *f, size_t i)
{
    return f->types.names[i];
}

bool quants_has_type(const quants_file *f, const char *name)
{
    for (size_t i = 0; i < f->types.count; i++)
        if (strcmp(f->types.names[i], name) == 0)
            return true;
    return false;
}

size_t quants_input_count(const quants_file *f)
{
    return (size_t)f->inputs.count;
}

const char *quants_input_name(const quants_file *f, size_t i)
{
    return f->inputs.names[i];
}

const float *quants_input_rows(const quants_file *f, size_t i, int64_t *n)
{
    *n = f->input_rows;
    return f->input_values + i * (size_t)f->input_rows * QUANTS_COLS;
}

/* Splits "distribution/imatrix"; false when the file does not hold one of them. kind -1 = none. */
static bool parse_case(const quants_file *f, const char *name, int64_t *input, int64_t *kind)
{
    const char *slash = strchr(name, '/');
    if (slash == NULL)
        return false;
    *input = find(&f->inputs, name, (size_t)(slash - name));
    *kind = find(&f->imatrix, slash + 1, strlen(slash + 1));
    return *input >= 0 && (*kind >= 0 || strcmp(slash + 1, "none") == 0);
}

size_t quants_case_input(const quants_file *f, const char *case_name, const float **importance)
{
    int64_t input = 0, kind = -1;
    parse_case(f, case_name, &input, &kind);
    *importance =
        kind < 0 ? NULL : f->imatrix_values + (input * f->imatrix.count + kind) * QUANTS_COLS;
    return (size_t)input;
}

/* ---- one type ------------------------------------------------------------------------------- */

static dsv4_status read_attributes(const quants_file *f, const char *path, quants_type *t,
                                   dsv4_error *err)
{
    struct {
        const char *name;
        int64_t *value;
    } integers[] = {
        {"block", &t->block}, {"block_bytes", &t->block_bytes}, {"type_id", &t->type_id}};
    dsv4_status status = DSV4_OK;
    char *text = NULL;
    hid_t group = H5Gopen2(f->base.id, path, H5P_DEFAULT);
    if (group < 0)
        return vec_hdf5_failure(f->base.path, path, "expected a group, cannot open it",
                                DSV4_E_INPUT, err);
    for (size_t i = 0; i < 3 && status == DSV4_OK; i++) {
        bool there;
        status = vec_read_integer(&f->base, group, path, integers[i].name, integers[i].value,
                                  &there, err);
        if (status == DSV4_OK && !there)
            status = vec_bad(&f->base, path, err, "expected the attribute %s, found none",
                             integers[i].name);
    }
    if (status == DSV4_OK && (t->block < 1 || QUANTS_COLS % t->block != 0 || t->block_bytes < 1 ||
                              t->block_bytes > 4 * QUANTS_COLS))
        status = vec_bad(&f->base, path, err,
                         "expected a block that divides %d and its bytes, found %lld of %lld bytes",
                         QUANTS_COLS, (long long)t->block, (long long)t->block_bytes);
    if (status == DSV4_OK)
        status = vec_read_text(&f->base, group, path, "vec_dot_type", true, &text, err);
    if (text != NULL)
        snprintf(t->dot_type, sizeof t->dot_type, "%s", text);
    free(text);
    H5Gclose(group);
    return status;
}

static dsv4_status read_cases(const quants_file *f, const char *type, quants_type *t,
                              dsv4_error *err)
{
    char path[256];
    name_table names;
    int64_t input, kind;
    snprintf(path, sizeof path, "%s/cases", type);
    dsv4_status status = read_names(f, path, &names, err);
    if (status != DSV4_OK)
        return status;
    t->cases = names.names;
    t->n_cases = names.count;
    for (int64_t i = 0; i < t->n_cases; i++)
        if (!parse_case(f, t->cases[i], &input, &kind))
            return vec_bad(&f->base, path, err,
                           "expected DISTRIBUTION/IMATRIX with names that the file holds, found "
                           "'%.40s'",
                           t->cases[i]);
    return DSV4_OK;
}

/* Rows of the cases, then rows of the random bits, in one array. */
static dsv4_status read_rows(const quants_file *f, const char *type, quants_type *t,
                             dsv4_error *err)
{
    char path[256];
    uint8_t *raw = NULL, *bits = NULL;
    float *values = NULL, *bit_values = NULL;
    int64_t bytes = QUANTS_COLS / t->block * t->block_bytes;
    int64_t shape[3] = {t->n_cases, -1, bytes}, flat[2] = {-1, bytes};
    snprintf(path, sizeof path, "%s/raw", type);
    dsv4_status status = read_bytes(f, path, 3, shape, &raw, err);
    if (status == DSV4_OK && shape[1] > f->input_rows)
        status =
            vec_bad(&f->base, path, err, "expected at most the %lld rows of the inputs, found %lld",
                    (long long)f->input_rows, (long long)shape[1]);
    t->case_rows = shape[1];
    if (status == DSV4_OK) {
        snprintf(path, sizeof path, "%s/decoded", type);
        shape[2] = QUANTS_COLS;
        status = read_floats(f, path, 3, shape, &values, err);
    }
    snprintf(path, sizeof path, "%s/bits", type);
    if (status == DSV4_OK && vec_object_exists(f->base.id, path) > 0) {
        snprintf(path, sizeof path, "%s/bits/raw", type);
        status = read_bytes(f, path, 2, flat, &bits, err);
        if (status == DSV4_OK) {
            t->n_bits = flat[0];
            flat[1] = QUANTS_COLS;
            snprintf(path, sizeof path, "%s/bits/decoded", type);
            status = read_floats(f, path, 2, flat, &bit_values, err);
        }
    }
    if (status == DSV4_OK) {
        quants_rows *r = &t->rows;
        size_t n = (size_t)(t->n_cases * t->case_rows), b = (size_t)t->n_bits;
        r->bytes = (size_t)bytes;
        r->n = (int64_t)(n + b);
        r->raw = dsv4_alloc(n + b, r->bytes, "encoded rows", err);
        r->values = dsv4_alloc(n + b, QUANTS_COLS * sizeof(float), "decoded rows", err);
        if (r->raw == NULL || r->values == NULL) {
            status = DSV4_E_MACHINE;
        } else {
            memcpy(r->raw, raw, n * r->bytes);
            memcpy(r->values, values, n * QUANTS_COLS * sizeof(float));
            if (b > 0) {
                memcpy(r->raw + n * r->bytes, bits, b * r->bytes);
                memcpy(r->values + n * QUANTS_COLS, bit_values, b * QUANTS_COLS * sizeof(float));
            }
        }
    }
    free(raw);
    free(values);
    free(bits);
    free(bit_values);
    return status;
}

/* Which rows the products of a group belong to: those of the case whose name has '_' for '/', or
 * random bits, of which rows are left out that would overflow a float. Returns how many; `rows` has
 * room for `want`. */
static int64_t weight_rows(const quants_type *t, const char *weights, int64_t want, int64_t *rows)
{
    int64_t n = 0, first_bit = t->n_cases * t->case_rows;
    if (strcmp(weights, "bits") == 0) {
        for (int64_t b = 0; b < t->n_bits && n < want; b++) {
            const float *values = t->rows.values + (first_bit + b) * QUANTS_COLS;
            float largest = 0;
            for (int i = 0; i < QUANTS_COLS; i++)
                largest = fmaxf(largest, fabsf(values[i]));
            if (largest <= MAX_VALUE)
                rows[n++] = first_bit + b;
        }
        return n;
    }
    for (int64_t c = 0; c < t->n_cases; c++) {
        char name[QUANTS_NAME];
        snprintf(name, sizeof name, "%s", t->cases[c]);
        *strchr(name, '/') = '_';
        if (strcmp(name, weights) == 0)
            for (; n < want && n < t->case_rows; n++)
                rows[n] = c * t->case_rows + n;
    }
    return n;
}

/* One dot/WEIGHTS/ACTS group, appended to t->dots unless its weights were trimmed away. */
static dsv4_status read_dot(const quants_file *f, const char *group, const char *weights,
                            const char *acts, quants_type *t, dsv4_error *err)
{
    char path[512];
    quants_dot d = {0};
    int64_t *rows = NULL, shape[2] = {-1, -1}, act = find(&f->acts, acts, strlen(acts));
    if (strlen(weights) >= QUANTS_NAME || act < 0)
        return vec_bad(&f->base, group, err,
                       "expected WEIGHTS/ACTS with activations that acts/names holds");
    snprintf(d.weights, sizeof d.weights, "%s", weights);
    snprintf(d.acts, sizeof d.acts, "%s", acts);
    d.x = f->act_values + act * f->act_rows * QUANTS_COLS;
    snprintf(path, sizeof path, "%s/exact", group);
    dsv4_status status = read_doubles(f, path, 2, shape, &d.exact, err);
    if (status == DSV4_OK && shape[1] > f->act_rows)
        status = vec_bad(&f->base, path, err, "expected at most %lld activations, found %lld",
                         (long long)f->act_rows, (long long)shape[1]);
    d.n_weights = shape[0];
    d.n_acts = shape[1];
    if (status == DSV4_OK) {
        snprintf(path, sizeof path, "%s/x64", group);
        status = read_doubles(f, path, 2, shape, &d.x64, err);
    }
    if (status == DSV4_OK) {
        snprintf(path, sizeof path, "%s/zen4", group);
        status = read_doubles(f, path, 2, shape, &d.zen4, err);
    }
    if (status == DSV4_OK) {
        int64_t raw[2] = {d.n_acts, -1};
        snprintf(path, sizeof path, "%s/activation_raw", group);
        status = read_bytes(f, path, 2, raw, &d.act_raw, err);
        d.act_bytes = (size_t)raw[1];
    }
    if (status == DSV4_OK &&
        (rows = dsv4_alloc((size_t)d.n_weights, sizeof *rows, path, err)) == NULL)
        status = DSV4_E_MACHINE;
    d.rows = rows;
    bool whole = status == DSV4_OK && weight_rows(t, weights, d.n_weights, rows) == d.n_weights;
    if (whole) {
        quants_dot *more = dsv4_alloc(t->n_dots + 1, sizeof *more, "dot products", err);
        if (more == NULL) {
            status = DSV4_E_MACHINE;
        } else {
            if (t->n_dots > 0)
                memcpy(more, t->dots, t->n_dots * sizeof *more);
            free(t->dots);
            t->dots = more;
            t->dots[t->n_dots++] = d;
            return DSV4_OK;
        }
    }
    if (status == DSV4_OK)
        t->dots_left_out++;
    free(rows);
    free(d.exact);
    free(d.x64);
    free(d.zen4);
    free(d.act_raw);
    return status;
}

static dsv4_status read_dots(const quants_file *f, const char *type, quants_type *t,
                             dsv4_error *err)
{
    char path[128], group[256], full[384];
    vec_name_list weights = {0};
    snprintf(path, sizeof path, "%s/dot", type);
    if (vec_object_exists(f->base.id, path) <= 0)
        return DSV4_OK;
    dsv4_status status = vec_list_names(&f->base, f->base.id, path, path, &weights, err);
    for (size_t i = 0; status == DSV4_OK && i < weights.count; i++) {
        vec_name_list acts = {0};
        snprintf(group, sizeof group, "%s/%.64s", path, weights.names[i]);
        status = vec_list_names(&f->base, f->base.id, group, group, &acts, err);
        for (size_t k = 0; status == DSV4_OK && k < acts.count; k++) {
            snprintf(full, sizeof full, "%s/%.64s", group, acts.names[k]);
            status = read_dot(f, full, weights.names[i], acts.names[k], t, err);
        }
        vec_names_free(&acts);
    }
    vec_names_free(&weights);
    return status;
}

dsv4_status quants_type_read(const quants_file *f, const char *name, quants_type **out,
                             dsv4_error *err)
{
    char path[96];
    *out = NULL;
    quants_type *t = dsv4_alloc(1, sizeof *t, "a weight format", err);
    if (t == NULL)
        return DSV4_E_MACHINE;
    snprintf(t->name, sizeof t->name, "%s", name);
    snprintf(path, sizeof path, "types/%s", t->name);
    vec_lock();
    dsv4_status status = read_attributes(f, path, t, err);
    if (status == DSV4_OK)
        status = read_cases(f, path, t, err);
    if (status == DSV4_OK)
        status = read_rows(f, path, t, err);
    if (status == DSV4_OK)
        status = read_dots(f, path, t, err);
    vec_unlock();
    if (status != DSV4_OK)
        quants_type_free(t);
    else
        *out = t;
    return status;
}

void quants_type_free(quants_type *t)
{
    if (t == NULL)
        return;
    for (size_t i = 0; i < t->n_dots; i++) {
        free(t->dots[i].rows);
        free(t->dots[i].act_raw);
        free(t->dots[i].exact);
        free(t->dots[i].x64);
        free(t->dots[i].zen4);
    }
    free(t->dots);
    free(t->cases);
    quants_rows_free(&t->rows);
    free(t);
}
