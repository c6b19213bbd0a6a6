/* recipes_imatrix.c - importance matrices: mean squared activations per input column, in the binary
 * form that llama.cpp and ds4 write as .dat.
 *
 * int32 entries; each: int32 length, name, int32 calls, int32 values, float32 sums. Stacked experts
 * have their columns one after the other. What follows the entries (the data set's name) is of no
 * use here. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "recipes.h"

typedef struct {
    char *name;
    float *values;
    int64_t count;
} entry;

struct imatrix {
    char *path;
    entry *entries;
    size_t count;
};

enum { MAX_ENTRIES = 1 << 20, MAX_ENTRY_NAME = 512, MAX_VALUES = 1 << 28 };

static bool take_int(FILE *f, int32_t *out)
{
    return fread(out, sizeof *out, 1, f) == 1;
}

static dsv4_status read_entry(FILE *f, const char *path, uint64_t size, size_t index, entry *e,
                              dsv4_error *err)
{
    int32_t length, calls, n;
    if (!take_int(f, &length) || length < 1 || length > MAX_ENTRY_NAME)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: entry %zu: no name (truncated, or no imatrix)",
                         path, index);
    e->name = dsv4_alloc((size_t)length + 1, 1, "an entry's name", err);
    if (e->name == NULL)
        return DSV4_E_MACHINE;
    if (fread(e->name, 1, (size_t)length, f) != (size_t)length || !take_int(f, &calls) ||
        !take_int(f, &n) || n < 1 || n > MAX_VALUES || (uint64_t)n * 4 > size)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: entry %s: truncated or of absurd length", path,
                         e->name);
    e->values = dsv4_alloc((size_t)n, sizeof *e->values, "importances", err);
    if (e->values == NULL)
        return DSV4_E_MACHINE;
    e->count = n;
    if (fread(e->values, sizeof *e->values, (size_t)n, f) != (size_t)n)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: entry %s: expected %d values, the file ends", path,
                         e->name, (int)n);
    for (int32_t i = 0; i < n; i++) {
        if (!isfinite(e->values[i]) || e->values[i] < 0)
            return dsv4_fail(err, DSV4_E_INPUT,
                             "%s: entry %s: value %d is %g, expected a number from 0 up", path,
                             e->name, (int)i, (double)e->values[i]);
        if (calls > 0)
            e->values[i] /= (float)calls;
    }
    return DSV4_OK;
}

dsv4_status imatrix_open(const char *path, imatrix **out, dsv4_error *err)
{
    int32_t n = 0;
    struct stat info;
    dsv4_status status = DSV4_OK;
    FILE *f = fopen(path, "rb");
    if (f == NULL || fstat(fileno(f), &info) != 0 || !S_ISREG(info.st_mode)) {
        if (f != NULL)
            fclose(f);
        return dsv4_fail(err, DSV4_E_INPUT, "%s: cannot open an importance matrix", path);
    }
    imatrix *m = dsv4_alloc(1, sizeof *m, "an importance matrix", err);
    if (m == NULL) {
        fclose(f);
        return DSV4_E_MACHINE;
    }
    m->path = dsv4_alloc(strlen(path) + 1, 1, "a path", err);
    if (m->path == NULL) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    strcpy(m->path, path);
    if (!take_int(f, &n) || n < 1 || n > MAX_ENTRIES) {
        status = dsv4_fail(err, DSV4_E_INPUT,
                           "%s: expected llama.cpp's binary .dat, found %d entries", path, (int)n);
        goto done;
    }
    m->entries = dsv4_alloc((size_t)n, sizeof *m->entries, "importance entries", err);
    if (m->entries == NULL) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    for (; m->count < (size_t)n && status == DSV4_OK; m->count++)
        status = read_entry(f, path, (uint64_t)info.st_size, m->count, &m->entries[m->count], err);
done:
    fclose(f);
    if (status == DSV4_OK)
        *out = m;
    else
        imatrix_free(m);
    return status;
}

void imatrix_free(imatrix *m)
{
    if (m == NULL)
        return;
    for (size_t i = 0; i < m->count; i++) {
        free(m->entries[i].name);
        free(m->entries[i].values);
    }
    free(m->entries);
    free(m->path);
    free(m);
}

size_t imatrix_entries(const imatrix *m)
{
    return m->count;
}

dsv4_status imatrix_find(const imatrix *m, const char *gguf_name, int64_t e, int64_t experts,
                         int64_t cols, const float **out, dsv4_error *err)
{
    *out = NULL;
    for (size_t i = 0; i < m->count; i++) {
        const entry *n = &m->entries[i];
        if (strcmp(n->name, gguf_name) != 0)
            continue;
        /* One set of columns for all experts, or one each. */
        if (n->count != cols && n->count != experts * cols)
            return dsv4_fail(err, DSV4_E_INPUT,
                             "%s: entry %s: expected %lld or %lld values, found "
                             "%lld",
                             m->path, gguf_name, (long long)cols, (long long)(experts * cols),
                             (long long)n->count);
        const float *values = n->values + (n->count == cols ? 0 : e * cols);
        /* An expert that no token chose says nothing about its columns. */
        for (int64_t c = 0; c < cols; c++)
            if (values[c] > 0) {
                *out = values;
                break;
            }
        return DSV4_OK;
    }
    return DSV4_OK;
}
