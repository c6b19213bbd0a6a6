/* vectors_files.h - vector files written by hand with the HDF5 library, for tests of the reader. */
#ifndef DSV4_TEST_VECTORS_FILES_H
#define DSV4_TEST_VECTORS_FILES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness/harness.h"

static char folder[] = "/tmp/dsv4-vectors-XXXXXX"; /* of this run */
static char good[64], other[64];                   /* a good file; one to be spoiled */

static inline void put_array(hid_t file, const char *path, hid_t stored, hid_t memory, int ndim,
                             const hsize_t *dims, const void *data)
{
    hid_t links = H5Pcreate(H5P_LINK_CREATE), space = H5Screate_simple(ndim, dims, NULL);
    H5Pset_create_intermediate_group(links, 1);
    hid_t dataset = H5Dcreate2(file, path, stored, space, links, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(dataset >= 0);
    if (data)
        assert_true(H5Dwrite(dataset, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    H5Dclose(dataset);
    H5Sclose(space);
    H5Pclose(links);
}

/* Integers of any list, stored as int32. */
static inline void put_ints(hid_t file, const char *path, size_t n, const int64_t *values)
{
    hsize_t dim = n;
    put_array(file, path, H5T_STD_I32LE, H5T_NATIVE_INT64, 1, &dim, values);
}

/* Floats 1, 2, 3 ... in the shape given. */
static inline void put_floats(hid_t file, const char *path, int ndim, const hsize_t *dims)
{
    size_t n = 1;
    for (int i = 0; i < ndim; i++)
        n *= dims[i];
    float *data = calloc(n + 1, sizeof *data);
    assert_non_null(data);
    for (size_t i = 0; i < n; i++)
        data[i] = (float)(i + 1);
    put_array(file, path, H5T_IEEE_F32LE, H5T_NATIVE_FLOAT, ndim, dims, n ? data : NULL);
    free(data);
}

static inline void put_integer(hid_t file, const char *path, const char *name, int64_t value,
                               hid_t stored)
{
    hid_t space = H5Screate(H5S_SCALAR), object = H5Oopen(file, path, H5P_DEFAULT);
    hid_t attr = H5Acreate2(object, name, stored, space, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(attr >= 0 && H5Awrite(attr, H5T_NATIVE_INT64, &value) >= 0);
    H5Aclose(attr);
    H5Oclose(object);
    H5Sclose(space);
}

/* fixed: a string of its own length, not terminated. */
static inline void put_text(hid_t file, const char *path, const char *name, const char *text,
                            bool fixed)
{
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    hid_t object = H5Oopen(file, path, H5P_DEFAULT);
    H5Tset_size(type, fixed ? strlen(text) : H5T_VARIABLE);
    H5Tset_strpad(type, fixed ? H5T_STR_NULLPAD : H5T_STR_NULLTERM);
    hid_t attr = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(attr >= 0 && H5Awrite(attr, type, fixed ? (const void *)text : &text) >= 0);
    H5Aclose(attr);
    H5Oclose(object);
    H5Sclose(space);
    H5Tclose(type);
}

static inline hid_t new_file(const char *path)
{
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(file >= 0);
    put_text(file, "/", "schema", "dsv4-vectors-1", true);
    put_text(file, "/", "producer", "test", false);
    put_integer(file, "/", "version", 3, H5T_STD_I32LE);
    return file;
}

/* Two cases: a prefill of 5 tokens with taps of every kind, a decode of 4 + 2 tokens. */
static inline void write_good(const char *path)
{
    static const int64_t tokens[] = {3, 1, 4, 1, 5, 9}, positions[] = {0, 2, 4}, steps[] = {0, 1};
    static const int64_t experts[] = {1, 2, 0, 2, 1, 0};
    hid_t file = new_file(path);
    put_ints(file, "/cases/a/tokens", 6, tokens);
    put_text(file, "/cases/a", "kind", "decode", true);
    put_integer(file, "/cases/a", "context", 6, H5T_STD_U8LE);
    put_integer(file, "/cases/a", "prefill", 4, H5T_STD_I32BE);
    put_floats(file, "/cases/a/logits", 2, (hsize_t[]){3, 7});
    put_floats(file, "/cases/a/streams", 4, (hsize_t[]){2, 3, 2, 4});
    put_ints(file, "/cases/a/streams_steps", 2, steps);
    put_ints(file, "/cases/b/tokens", 5, tokens);
    put_text(file, "/cases/b", "kind", "prefill", false);
    put_integer(file, "/cases/b", "context", 5, H5T_STD_I64LE);
    put_ints(file, "/cases/b/positions", 3, positions);
    put_floats(file, "/cases/b/layers/0/q", 3, (hsize_t[]){3, 2, 4});
    put_array(file, "/cases/b/layers/0/router_experts", H5T_STD_I32LE, H5T_NATIVE_INT64, 2,
              (hsize_t[]){3, 2}, experts);
    put_floats(file, "/cases/b/layers/2/compressed_kv", 2, (hsize_t[]){2, 4});
    put_floats(file, "/cases/b/layers/2/indexer_kv", 2, (hsize_t[]){0, 4});
    put_floats(file, "/cases/b/layers/2/indexer_scores", 2, (hsize_t[]){3, 0});
    put_floats(file, "/cases/b/logits", 2, (hsize_t[]){3, 7});
    put_floats(file, "/cases/b/mtp/logits", 2, (hsize_t[]){2, 7});
    put_ints(file, "/cases/b/mtp/positions", 2, positions);
    put_floats(file, "/cases/b/layers/0/colour", 1, (hsize_t[]){1});
    put_ints(file, "/rope/main/positions", 3, positions);
    put_floats(file, "/rope/main/cos", 2, (hsize_t[]){3, 2});
    put_floats(file, "/rope/main/sin", 2, (hsize_t[]){3, 2});
    H5Fclose(file);
}

static inline int setup(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(good, sizeof good, "%s/good.h5", folder);
    snprintf(other, sizeof other, "%s/other.h5", folder);
    write_good(good);
    return 0;
}

static inline int teardown(void **state)
{
    (void)state;
    unlink(good);
    unlink(other);
    return rmdir(folder);
}

#endif
