/* test_formats_vectors.h - reads the format vectors (schema dsv4-quants-1) for the format tests. */
#ifndef DSV4_TEST_FORMATS_VECTORS_H
#define DSV4_TEST_FORMATS_VECTORS_H

#include <check.h>
#include <hdf5.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "reference/formats/formats.h"

enum { COLS = 512 };

typedef struct {
    hsize_t dim[3];
    size_t count;
    void *data;
} array;

/* DSV4_QUANTS names another file, e.g. the untrimmed one. */
static inline hid_t vectors_open(void)
{
    const char *path = getenv("DSV4_QUANTS");
    hid_t f = H5Fopen(path ? path : DSV4_VECTORS "/ggml-quants.h5", H5F_ACC_RDONLY, H5P_DEFAULT);
    ck_assert_msg(f >= 0, "cannot open the format vectors");
    return f;
}

static inline array vectors_read(hid_t f, const char *path, hid_t type)
{
    array a = {{1, 1, 1}, 1, NULL};
    hid_t set = H5Dopen2(f, path, H5P_DEFAULT);
    ck_assert_msg(set >= 0, "no data set %s", path);
    hid_t space = H5Dget_space(set);
    int rank = H5Sget_simple_extent_ndims(space);
    ck_assert(rank >= 1 && rank <= 3);
    H5Sget_simple_extent_dims(space, a.dim, NULL);
    for (int i = 0; i < rank; i++)
        a.count *= (size_t)a.dim[i];
    a.data = malloc(a.count * H5Tget_size(type));
    ck_assert_ptr_nonnull(a.data);
    ck_assert(H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, a.data) >= 0);
    H5Sclose(space);
    H5Dclose(set);
    return a;
}

enum { NAME = 48 };

/* Fixed-length names as char[count][NAME]. */
static inline array vectors_names(hid_t f, const char *path)
{
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, NAME);
    H5Tset_strpad(type, H5T_STR_NULLTERM);
    array a = vectors_read(f, path, type);
    H5Tclose(type);
    return a;
}

static inline const char *name_at(const array *names, size_t i)
{
    return (const char *)names->data + i * NAME;
}

/* The place of the first `n` characters of `name`, -1 = not there. */
static inline int name_find(const array *names, const char *name, size_t n)
{
    for (size_t i = 0; i < names->count; i++) {
        if (strlen(name_at(names, i)) == n && strncmp(name_at(names, i), name, n) == 0)
            return (int)i;
    }
    return -1;
}

static inline long vectors_attribute(hid_t f, const char *path, const char *name)
{
    long v = -1;
    hid_t a = H5Aopen_by_name(f, path, name, H5P_DEFAULT, H5P_DEFAULT);
    ck_assert_msg(a >= 0, "no attribute %s of %s", name, path);
    ck_assert(H5Aread(a, H5T_NATIVE_LONG, &v) >= 0);
    H5Aclose(a);
    return v;
}

static inline bool vectors_has(hid_t f, const char *path)
{
    return H5Lexists(f, path, H5P_DEFAULT) > 0;
}

/* What /types/<T> holds. */
typedef struct {
    const dsv4_format *format;
    array cases, raw, decoded;    /* names; [cases][rows][bytes]; [cases][rows][COLS] */
    array bits_raw, bits_decoded; /* [n][bytes], [n][COLS]; data NULL if there are none */
    size_t rows, bytes;
} type_vectors;

static inline type_vectors vectors_type(hid_t f, const dsv4_format *format)
{
    char path[128];
    type_vectors t = {.format = format};
    snprintf(path, sizeof path, "/types/%s/cases", format->name);
    t.cases = vectors_names(f, path);
    snprintf(path, sizeof path, "/types/%s/raw", format->name);
    t.raw = vectors_read(f, path, H5T_NATIVE_UINT8);
    snprintf(path, sizeof path, "/types/%s/decoded", format->name);
    t.decoded = vectors_read(f, path, H5T_NATIVE_FLOAT);
    t.rows = (size_t)t.raw.dim[1];
    t.bytes = (size_t)t.raw.dim[2];
    snprintf(path, sizeof path, "/types/%s/bits", format->name);
    if (vectors_has(f, path)) {
        snprintf(path, sizeof path, "/types/%s/bits/raw", format->name);
        t.bits_raw = vectors_read(f, path, H5T_NATIVE_UINT8);
        snprintf(path, sizeof path, "/types/%s/bits/decoded", format->name);
        t.bits_decoded = vectors_read(f, path, H5T_NATIVE_FLOAT);
    }
    return t;
}

static inline void vectors_free(type_vectors *t)
{
    free(t->cases.data);
    free(t->raw.data);
    free(t->decoded.data);
    free(t->bits_raw.data);
    free(t->bits_decoded.data);
}

static inline const uint8_t *raw_row(const type_vectors *t, size_t c, size_t row)
{
    return (const uint8_t *)t->raw.data + (c * t->rows + row) * t->bytes;
}

static inline const float *decoded_row(const type_vectors *t, size_t c, size_t row)
{
    return (const float *)t->decoded.data + (c * t->rows + row) * COLS;
}

/* Equal bit for bit; NaNs are all alike. */
static inline bool same_floats(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i])))
            return false;
    }
    return true;
}

/* The types that the vectors hold: all that GGUF has but the plain numbers and Q8_K. */
static inline bool in_vectors(const dsv4_format *f)
{
    return f->ggml_type >= 0 && f->type != DSV4_F32 && f->type != DSV4_I32 && f->type != DSV4_I64 &&
           f->type != DSV4_Q8_K;
}

/* A small generator: the tests must not depend on the C library's. */
static inline uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 32);
}

/* Uniform in [-1, 1). */
static inline float next_float(uint64_t *state)
{
    return (float)(next_random(state) >> 8) * 0x1p-23f - 1.0f;
}

static inline int run_suite(const char *name, TCase **cases, int count)
{
    Suite *s = suite_create(name);
    for (int i = 0; i < count; i++) {
        tcase_set_timeout(cases[i], 120);
        suite_add_tcase(s, cases[i]);
    }
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

#endif
