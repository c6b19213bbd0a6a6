/* test_vectors_direct.c - datasets read without the HDF5 library: the same bits as the library's,
 * whatever is not of the known kinds left to it, and damage told in one line. */
#include "harness/vectors_direct.h"
#include "vectors_files.h"

#include <libdeflate.h>
#include <pthread.h>

/* The library leaks what it had of a file when it meets damage there. */
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#else
#define __lsan_disable() ((void)0)
#define __lsan_enable() ((void)0)
#endif

/* ---- a file as the embedded ones are laid out ----------------------------------------------- */

enum { ROWS = 3, HEADS = 5, WIDTH = 40, COUNT = ROWS * HEADS * WIDTH };

typedef enum { COMPACT, CONTIGUOUS, CHUNK, SHUFFLED, DEFLATED, BOTH, LAYOUTS } layout;
typedef enum { TWO_CHUNKS = LAYOUTS, CHECKSUMMED, UNALLOCATED } other_layout;

/* Floats with every kind of bit pattern: NaN with payloads, infinities, subnormals. */
static void fill(uint32_t *values, size_t n)
{
    static const uint32_t odd[] = {0x7fc00001, 0xffc12345, 0x7f812345, 0x7f800000,
                                   0xff800000, 0x00000001, 0x80000000, 0};
    uint32_t seed = 7;
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525 + 1013904223;
        values[i] = i % 9 == 0 ? odd[i / 9 % 8] : 0x3f000000 + (seed >> 6);
    }
}

static hid_t storage(int how, int ndim, const hsize_t *dims)
{
    hsize_t chunk[4];
    hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    memcpy(chunk, dims, (size_t)ndim * sizeof *chunk);
    chunk[0] -= how == TWO_CHUNKS;
    if (how == COMPACT)
        H5Pset_layout(list, H5D_COMPACT);
    if (how >= CHUNK && how != UNALLOCATED)
        H5Pset_chunk(list, ndim, chunk);
    if (how == SHUFFLED || how == BOTH)
        H5Pset_shuffle(list);
    if (how == DEFLATED || how == BOTH || how == TWO_CHUNKS)
        H5Pset_deflate(list, 9);
    if (how == CHECKSUMMED)
        H5Pset_fletcher32(list);
    return list;
}

static hid_t put(hid_t file, const char *path, hid_t stored, hid_t memory, int how, int ndim,
                 const hsize_t *dims, const void *data)
{
    hid_t list = storage(how, ndim, dims), space = H5Screate_simple(ndim, dims, NULL);
    hid_t dataset = H5Dcreate2(file, path, stored, space, H5P_DEFAULT, list, H5P_DEFAULT);
    assert_true(dataset >= 0);
    if (data != NULL)
        assert_true(H5Dwrite(dataset, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    H5Sclose(space);
    H5Pclose(list);
    return dataset;
}

static void put_group(hid_t file, const char *path, unsigned links)
{
    hid_t list = H5Pcreate(H5P_GROUP_CREATE);
    H5Pset_link_phase_change(list, links, 0);
    hid_t group = H5Gcreate2(file, path, H5P_DEFAULT, list, H5P_DEFAULT);
    assert_true(group >= 0);
    H5Gclose(group);
    H5Pclose(list);
}

/* A case of each kind. links = how many a group's header may hold. */
static hid_t start(const char *path, unsigned links)
{
    static const int32_t tokens[] = {3, 1, 4, 1, 5, 9}, positions[] = {0, 2, 4}, steps[] = {0, 1};
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(access, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, access);
    H5Pclose(access);
    assert_true(file >= 0);
    put_text(file, "/", "schema", "dsv4-vectors-1", true);
    static const char *const groups[] = {"cases",          "cases/a",          "cases/b",
                                         "cases/b/layers", "cases/b/layers/0", "cases/b/layers/2",
                                         "cases/b/mtp"};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        put_group(file, groups[i], links);
    put_text(file, "cases/a", "kind", "decode", true);
    put_integer(file, "cases/a", "context", 6, H5T_STD_I32LE);
    put_integer(file, "cases/a", "prefill", 4, H5T_STD_I32LE);
    put_text(file, "cases/b", "kind", "prefill", true);
    put_integer(file, "cases/b", "context", 5, H5T_STD_I32LE);
    hid_t i32 = H5T_STD_I32LE;
    H5Dclose(put(file, "cases/a/tokens", i32, i32, COMPACT, 1, (hsize_t[]){6}, tokens));
    H5Dclose(put(file, "cases/a/streams_steps", i32, i32, BOTH, 1, (hsize_t[]){2}, steps));
    H5Dclose(put(file, "cases/b/tokens", i32, i32, CONTIGUOUS, 1, (hsize_t[]){5}, tokens));
    H5Dclose(put(file, "cases/b/positions", i32, i32, DEFLATED, 1, (hsize_t[]){3}, positions));
    return file;
}

/* The whole file with one layout for the taps. */
static void write_file(const char *path, int how, unsigned links)
{
    uint32_t values[COUNT];
    int32_t experts[ROWS * 2];
    hid_t file = start(path, links), f32 = H5T_IEEE_F32LE, i32 = H5T_STD_I32LE;
    fill(values, COUNT);
    for (int i = 0; i < ROWS * 2; i++)
        experts[i] = i - 1;
    H5Dclose(
        put(file, "cases/b/layers/0/q", f32, f32, how, 3, (hsize_t[]){ROWS, HEADS, WIDTH}, values));
    H5Dclose(put(file, "cases/b/layers/0/router_experts", i32, i32, how, 2, (hsize_t[]){ROWS, 2},
                 experts));
    H5Dclose(
        put(file, "cases/b/layers/2/compressed_kv", f32, f32, how, 2, (hsize_t[]){2, 8}, values));
    H5Dclose(
        put(file, "cases/b/layers/2/indexer_kv", f32, f32, CONTIGUOUS, 2, (hsize_t[]){0, 4}, NULL));
    H5Dclose(put(file, "cases/b/logits", f32, f32, how, 2, (hsize_t[]){ROWS, 7}, values));
    H5Dclose(put(file, "cases/a/streams", f32, f32, how, 4, (hsize_t[]){2, 3, 2, 4}, values));
    H5Fclose(file);
}

/* ---- helpers -------------------------------------------------------------------------------- */

static const char *const places[] = {"layers/0/q", "layers/0/router_experts",
                                     "layers/2/compressed_kv", "layers/2/indexer_kv", "logits"};

/* What is said of the dataset at `path` of a case. */
static vec_answer answer_for(const vec_file *f, const char *name, const char *path)
{
    const vec_case_entry *c = (const vec_case_entry *)(const void *)vec_case_find(f, name);
    dsv4_error err = {{0}};
    vec_answer answer = VEC_ASK_LIBRARY;
    vec_stored stored;
    void *inside = NULL;
    if (c->direct)
        assert_int_equal(
            vec_direct_dataset(f->direct, c->address, path, &stored, &inside, &answer, &err),
            DSV4_OK);
    vec_rows_give(inside);
    return answer;
}

static vec_tap *tap(const vec_file *f, const char *name, dsv4_tap_id id, int layer)
{
    dsv4_error err = {{0}};
    vec_tap *t = NULL;
    if (vec_tap_open(f, vec_case_find(f, name), id, layer, &t, &err) != DSV4_OK)
        fail_msg("%s", err.text);
    return t;
}

/* All rows, whole, in pieces from the last row back, and once more kept, into sums of their bits.
 */
static void assert_rows(const vec_tap *t, const uint32_t *expected)
{
    dsv4_error err = {{0}};
    size_t n = (size_t)(t->n_rows * t->row_len);
    uint32_t *got = calloc(n + 1, sizeof *got);
    assert_int_equal(vec_tap_read(t, 0, t->n_rows, got, &err), DSV4_OK);
    assert_memory_equal(got, expected, n * sizeof *got);
    memset(got, 0, n * sizeof *got);
    for (int64_t i = t->n_rows - 1; i >= 0; i--)
        assert_int_equal(vec_tap_read(t, i, 1, got + i * t->row_len, &err), DSV4_OK);
    assert_memory_equal(got, expected, n * sizeof *got);
    free(got);
}

static void assert_file(const char *path)
{
    uint32_t values[COUNT];
    int32_t experts[ROWS * 2];
    dsv4_error err = {{0}};
    vec_file *f = NULL;
    if (vec_open(path, &f, &err) != DSV4_OK)
        fail_msg("%s", err.text);
    fill(values, COUNT);
    const vec_case *a = vec_case_find(f, "a"), *b = vec_case_find(f, "b");
    assert_int_equal(a->tokens[5], 9);
    assert_int_equal(b->positions[2], 4);
    assert_int_equal(vec_case_layers(f, b), 3);
    assert_int_equal(vec_case_layers(f, a), 3);
    vec_tap *t = tap(f, "b", DSV4_TAP_Q, 0);
    assert_int_equal(t->shape[0], HEADS);
    assert_string_equal(t->path, "/cases/b/layers/0/q");
    assert_rows(t, values);
    assert_int_equal(vec_tap_load(t, &err), DSV4_OK);
    assert_rows(t, values);
    vec_tap_unload(t);
    assert_rows(t, values);
    vec_tap_close(t);
    t = tap(f, "b", DSV4_TAP_ROUTER_EXPERTS, 0);
    for (int i = 0; i < ROWS * 2; i++)
        experts[i] = i - 1;
    assert_rows(t, (const uint32_t *)experts);
    vec_tap_close(t);
    t = tap(f, "b", DSV4_TAP_COMPRESSED_KV, 2);
    assert_int_equal(t->n_rows, 2);
    assert_rows(t, values);
    vec_tap_close(t);
    t = tap(f, "b", DSV4_TAP_INDEXER_KV, 2);
    assert_int_equal(t->n_rows, 0);
    vec_tap_close(t);
    for (int layer = 0; layer < 3; layer++) { /* streams [2][3][2][4], taken apart */
        uint32_t expected[16];
        for (int row = 0; row < 2; row++)
            memcpy(expected + 8 * row, values + 24 * row + 8 * layer, 8 * sizeof *values);
        t = tap(f, "a", DSV4_TAP_STREAMS, layer);
        assert_string_equal(t->path, "/cases/a/streams");
        assert_rows(t, expected);
        vec_tap_close(t);
    }
    assert_null(tap(f, "a", DSV4_TAP_STREAMS, 3));
    assert_null(tap(f, "b", DSV4_TAP_KV, 0));
    assert_null(tap(f, "b", DSV4_TAP_KV, 1)); /* no such group */
    assert_null(tap(f, "b", DSV4_TAP_KV, 99));
    assert_null(tap(f, "b", DSV4_TAP_MTP_LOGITS, -1));
    vec_close(f);
}

/* ---- what is read, and what is not ---------------------------------------------------------- */

static void test_layouts(void **state)
{
    (void)state;
    for (int how = 0; how < LAYOUTS; how++) {
        dsv4_error err = {{0}};
        vec_file *f;
        write_file(other, how, 64);
        assert_int_equal(vec_open(other, &f, &err), DSV4_OK);
        for (size_t i = 0; i < sizeof places / sizeof *places; i++)
            assert_int_equal(answer_for(f, "b", places[i]), VEC_HERE);
        assert_int_equal(answer_for(f, "a", "streams"), VEC_HERE);
        assert_int_equal(answer_for(f, "b", "layers/0/kv"), VEC_ABSENT);
        vec_close(f);
        assert_file(other);
    }
}

/* The library's own choice of what it has to read: the values are right either way. */
static void test_left_to_library(void **state)
{
    dsv4_error err = {{0}};
    vec_file *f;
    (void)state;
    static const int layouts[] = {TWO_CHUNKS, CHECKSUMMED};
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        write_file(other, layouts[i], 64);
        assert_int_equal(vec_open(other, &f, &err), DSV4_OK);
        assert_int_equal(answer_for(f, "b", "layers/0/q"), VEC_ASK_LIBRARY);
        assert_int_equal(answer_for(f, "b", "layers/2/indexer_kv"), VEC_HERE);
        vec_close(f);
        assert_file(other);
    }
    write_file(other, BOTH, 0); /* links in heaps */
    assert_int_equal(vec_open(other, &f, &err), DSV4_OK);
    assert_int_equal(answer_for(f, "b", "layers/0/q"), VEC_ASK_LIBRARY);
    vec_close(f);
    assert_file(other);
}

/* Types, fill values and links that only the library turns into rows. */
static void test_other_kinds(void **state)
{
    static const float values[] = {1, -2.5F, 3, 4, 5, 6};
    dsv4_error err = {{0}};
    vec_file *f;
    float got[6];
    hsize_t dims[] = {3, 2};
    (void)state;
    hid_t file = start(other, 64), f32 = H5T_IEEE_F32LE;
    H5Dclose(put(file, "cases/b/layers/0/kv", H5T_IEEE_F32BE, H5T_NATIVE_FLOAT, COMPACT, 2, dims,
                 values));
    H5Dclose(put(file, "cases/b/layers/0/q_lora", H5T_IEEE_F64LE, H5T_NATIVE_FLOAT, CONTIGUOUS, 2,
                 dims, values));
    H5Dclose(put(file, "cases/b/layers/0/attn_norm", f32, f32, UNALLOCATED, 2, dims, NULL));
    H5Dclose(put(file, "cases/b/layers/2/attn_out", f32, f32, BOTH, 2, dims, values));
    H5Lcreate_soft("/cases/b/layers/2/attn_out", file, "cases/b/layers/0/attn_out", H5P_DEFAULT,
                   H5P_DEFAULT);
    H5Fclose(file);
    assert_int_equal(vec_open(other, &f, &err), DSV4_OK);
    static const struct {
        const char *path;
        dsv4_tap_id id;
        bool zero;
    } taps[] = {{"layers/0/kv", DSV4_TAP_KV, false},
                {"layers/0/q_lora", DSV4_TAP_Q_LORA, false},
                {"layers/0/attn_norm", DSV4_TAP_ATTN_NORM, true},
                {"layers/0/attn_out", DSV4_TAP_ATTN_OUT, false}};
    for (size_t i = 0; i < sizeof taps / sizeof *taps; i++) {
        vec_tap *t = tap(f, "b", taps[i].id, 0);
        assert_int_equal(answer_for(f, "b", taps[i].path), VEC_ASK_LIBRARY);
        assert_int_equal(vec_tap_read(t, 0, 3, got, &err), DSV4_OK);
        for (int k = 0; k < 6; k++)
            assert_true(got[k] == (taps[i].zero ? 0 : values[k]));
        vec_tap_close(t);
    }
    vec_close(f);
}

/* Every tap of every golden file without the library, bit for bit what the library reads. */
static void test_golden(void **state)
{
    static const char *const files[] = {"nano-hf-f32.h5",
                                        "nano-official-qat-f32.h5",
                                        "nano-official-deployed-bf16.h5",
                                        "nano-q2-math.h5",
                                        "stress-hf-f32.h5",
                                        "stress-official-qat-f32.h5",
                                        "extreme-math.h5",
                                        "extreme-qat.h5"};
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[512];
        dsv4_error err = {{0}};
        vec_file *f;
        size_t taps = 0;
        snprintf(path, sizeof path, "%s/%s", DSV4_VECTORS, files[i]);
        if (vec_open(path, &f, &err) != DSV4_OK)
            fail_msg("%s", err.text);
        for (size_t k = 0; k < vec_case_count(f); k++) {
            const vec_case *c = vec_case_at(f, k);
            assert_true(((const vec_case_entry *)(const void *)c)->direct);
            for (int layer = -1; layer < vec_case_layers(f, c); layer++)
                for (int id = 0; id < DSV4_TAP_COUNT; id++) {
                    vec_tap *t = tap(f, c->name, (dsv4_tap_id)id, layer);
                    size_t n = t != NULL ? (size_t)(t->n_rows * t->row_len) : 0;
                    if (n > 0 && !(c->decode && id == DSV4_TAP_STREAMS)) {
                        uint32_t *mine = calloc(n, 4), *theirs = calloc(n, 4);
                        hid_t d = H5Dopen2(f->id, t->path, H5P_DEFAULT);
                        assert_int_equal(answer_for(f, c->name, t->path + 8 + strlen(c->name)),
                                         VEC_HERE);
                        assert_true(H5Dread(d, t->is_int ? H5T_NATIVE_INT32 : H5T_NATIVE_FLOAT,
                                            H5S_ALL, H5S_ALL, H5P_DEFAULT, theirs) >= 0);
                        assert_int_equal(vec_tap_read(t, 0, t->n_rows, mine, &err), DSV4_OK);
                        assert_memory_equal(mine, theirs, 4 * n);
                        H5Dclose(d);
                        free(mine);
                        free(theirs);
                        taps++;
                    }
                    vec_tap_close(t);
                }
        }
        assert_true(taps > 100);
        vec_close(f);
    }
}

/* ---- damage --------------------------------------------------------------------------------- */

/* Writes a file whose tap q, [3][5][40], is this chunk. */
static void write_chunk(int how, uint32_t mask, const void *chunk, size_t n)
{
    hsize_t at[3] = {0};
    hid_t file = start(other, 64);
    hid_t d = put(file, "cases/b/layers/0/q", H5T_IEEE_F32LE, H5T_IEEE_F32LE, how, 3,
                  (hsize_t[]){ROWS, HEADS, WIDTH}, NULL);
    assert_true(H5Dwrite_chunk(d, H5P_DEFAULT, mask, at, n, chunk) >= 0);
    H5Dclose(d);
    H5Fclose(file);
}

static void assert_bad_chunk(const char *what)
{
    static uint32_t got[COUNT];
    dsv4_error err = {{0}};
    vec_file *f;
    assert_int_equal(vec_open(other, &f, &err), DSV4_OK);
    assert_int_equal(answer_for(f, "b", "layers/0/q"), VEC_HERE);
    vec_tap *t = tap(f, "b", DSV4_TAP_Q, 0);
    for (int rows = 1; rows <= ROWS; rows += ROWS - 1) {
        memset(&err, 0, sizeof err);
        assert_int_equal(vec_tap_read(t, 0, rows, got, &err), DSV4_E_INPUT);
        if (!strstr(err.text, what) || !strstr(err.text, "/cases/b/layers/0/q: cannot read rows") ||
            !strstr(err.text, other) || strchr(err.text, '\n'))
            fail_msg("expected one line with \"%s\", got \"%s\"", what, err.text);
    }
    assert_int_equal(vec_tap_load(t, &err), DSV4_E_INPUT);
    vec_tap_close(t);
    vec_close(f);
}

static size_t deflated(uint8_t *out, size_t room, const uint8_t *values, size_t n)
{
    struct libdeflate_compressor *c = libdeflate_alloc_compressor(9);
    size_t made = libdeflate_zlib_compress(c, values, n, out, room);
    libdeflate_free_compressor(c);
    assert_true(made > 0);
    return made;
}

static void test_bad_chunks(void **state)
{
    static uint8_t values[4 * COUNT + 400], packed[5 * COUNT + 400];
    (void)state;
    fill((uint32_t *)(void *)values, COUNT + 100);
    for (int how = DEFLATED; how <= BOTH; how++) {
        size_t n = deflated(packed, sizeof packed, values, 4 * COUNT);
        static const struct {
            size_t keep; /* of 16 parts */
        } cuts[] = {{0}, {1}, {8}, {15}};
        for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
            size_t cut = n * cuts[i].keep / 16;
            write_chunk(how, 0, packed, cut > 0 ? cut : 1);
            assert_bad_chunk("("); /* noticed at its end, or by what is made of nothing */
        }
        write_chunk(how, 0, packed, n - 1); /* part of the checksum is gone */
        assert_bad_chunk("(");
        packed[n - 1] ^= 1;
        write_chunk(how, 0, packed, n);
        assert_bad_chunk("no whole deflate stream");
        packed[n - 1] ^= 1;
        packed[n / 2] ^= 16; /* a wrong bit within */
        write_chunk(how, 0, packed, n);
        assert_bad_chunk("(");
        memset(packed, 0xa5, n);
        write_chunk(how, 0, packed, n);
        assert_bad_chunk("no whole deflate stream");
        n = deflated(packed, sizeof packed, values, 4 * COUNT - 4);
        write_chunk(how, 0, packed, n);
        assert_bad_chunk("expected 2400 bytes in its chunk, found 2396");
        n = deflated(packed, sizeof packed, values, 4 * COUNT + 4);
        write_chunk(how, 0, packed, n);
        assert_bad_chunk("expected 2400 bytes in its chunk, found more");
        n = deflated(packed, sizeof packed, values, 0);
        write_chunk(how, 0, packed, n);
        assert_bad_chunk("expected 2400 bytes in its chunk, found 0");
    }
}

/* A chunk that skipped a filter is the library's. */
static void test_skipped_filter(void **state)
{
    static uint32_t values[COUNT], got[COUNT];
    dsv4_error err = {{0}};
    vec_file *f;
    (void)state;
    fill(values, COUNT);
    write_chunk(DEFLATED, 1, values, sizeof values);
    assert_int_equal(vec_open(other, &f, &err), DSV4_OK);
    assert_int_equal(answer_for(f, "b", "layers/0/q"), VEC_ASK_LIBRARY);
    vec_tap *t = tap(f, "b", DSV4_TAP_Q, 0);
    assert_int_equal(vec_tap_read(t, 0, ROWS, got, &err), DSV4_OK);
    assert_memory_equal(got, values, sizeof values);
    vec_tap_close(t);
    vec_close(f);
}

/* The file becomes shorter after it was opened. */
static void test_shortened(void **state)
{
    static uint32_t got[40000];
    (void)state;
    for (int how = CONTIGUOUS; how <= BOTH; how++) {
        dsv4_error err = {{0}};
        vec_file *f;
        hid_t file = start(other, 64);
        fill(got, 40000);
        H5Dclose(put(file, "cases/b/logits", H5T_IEEE_F32LE, H5T_IEEE_F32LE, how, 2,
                     (hsize_t[]){3, 13000}, got));
        H5Fclose(file);
        assert_int_equal(vec_open(other, &f, &err), DSV4_OK);
        vec_tap *t = tap(f, "b", DSV4_TAP_LOGITS, -1);
        assert_int_equal(answer_for(f, "b", "logits"), VEC_HERE);
        assert_int_equal(truncate(other, 70000), 0);
        dsv4_status status = vec_tap_read(t, 0, 3, got, &err);
        assert_int_equal(status, DSV4_E_INPUT);
        assert_non_null(strstr(err.text, other));
        assert_null(strchr(err.text, '\n'));
        vec_tap_close(t);
        vec_close(f);
    }
}

/* Everything in the file into `sum`; the values' bits, in order. */
static dsv4_status read_all(const char *path, uint32_t *out, size_t room, size_t *used,
                            dsv4_error *err)
{
    vec_file *f = NULL;
    *used = 0;
    dsv4_status status = vec_open(path, &f, err);
    for (size_t i = 0; status == DSV4_OK && i < vec_case_count(f); i++) {
        const vec_case *c = vec_case_at(f, i);
        for (int64_t k = 0; k < c->context && *used < room; k++)
            out[(*used)++] = (uint32_t)c->tokens[k];
        for (int id = 0; id < DSV4_TAP_COUNT && status == DSV4_OK; id++)
            for (int layer = -1; layer < 3 && status == DSV4_OK; layer++) {
                vec_tap *t = NULL;
                status = vec_tap_open(f, c, (dsv4_tap_id)id, layer, &t, err);
                size_t n = status == DSV4_OK && t ? (size_t)(t->n_rows * t->row_len) : 0;
                if (n > room - *used)
                    n = 0;
                if (n > 0 && (status = vec_tap_read(t, 0, t->n_rows, out + *used, err)) == DSV4_OK)
                    *used += n;
                vec_tap_close(t);
            }
    }
    vec_close(f);
    return status;
}

/* A wrong bit anywhere: the same values (it was in a gap or a note) or one line, never others. */
static void test_wrong_bits(void **state)
{
    static uint8_t bytes[1 << 16];
    static uint32_t right[2 * COUNT], got[2 * COUNT];
    size_t n_right, n_got, refused = 0, same = 0;
    dsv4_error err = {{0}};
    (void)state;
    static const int layouts[] = {COMPACT, BOTH};
    H5garbage_collect(); /* what it leaks must not be memory that others took */
    H5set_free_list_limits(0, 0, 0, 0, 0, 0);
    size_t step = getenv("DSV4_FAST_TESTS") != NULL ? 41 : 9;
    for (size_t l = 0; l < sizeof layouts / sizeof *layouts; l++) {
        write_file(other, layouts[l], 64);
        FILE *file = fopen(other, "rb");
        size_t n = fread(bytes, 1, sizeof bytes, file);
        fclose(file);
        assert_true(n > 3000 && n < sizeof bytes);
        assert_int_equal(read_all(other, right, 2 * COUNT, &n_right, &err), DSV4_OK);
        /* Tokens of case b are contiguous, plain bytes without a checksum: theirs is no damage. */
        uint8_t plain[] = {3, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0};
        size_t skip = 0;
        for (size_t i = 0; i + sizeof plain < n; i++)
            if (memcmp(bytes + i, plain, sizeof plain) == 0 && bytes[i + sizeof plain] != 9)
                skip = i;
        assert_true(skip > 0);
        for (size_t at = 48; at < n; at += step) {
            if (at >= skip && at < skip + sizeof plain)
                continue;
            uint8_t bit = (uint8_t)(1 << at % 8);
            file = fopen(other, "r+b");
            fseek(file, (long)at, SEEK_SET);
            fputc(bytes[at] ^ bit, file);
            fclose(file);
            memset(&err, 0, sizeof err);
            __lsan_disable();
            dsv4_status status = read_all(other, got, 2 * COUNT, &n_got, &err);
            __lsan_enable();
            if (status == DSV4_OK) {
                assert_int_equal(n_got, n_right);
                if (memcmp(got, right, 4 * n_right) != 0)
                    fail_msg("byte %zu of layout %zu: other values", at, l);
                same++;
            } else {
                assert_int_equal(status, DSV4_E_INPUT);
                assert_true(err.text[0] != '\0' && strchr(err.text, '\n') == NULL);
                refused++;
            }
            file = fopen(other, "r+b");
            fseek(file, (long)at, SEEK_SET);
            fputc(bytes[at], file);
            fclose(file);
        }
    }
    print_message("%zu wrong bits refused, %zu without effect\n", refused, same);
    assert_true(refused > 100);
}

/* ---- headers -------------------------------------------------------------------------------- */

static void test_checksum(void **state)
{
    static const char text[] = "Four score and seven years ago"; /* Bob Jenkins' own example */
    (void)state;
    assert_int_equal(vec_checksum((const uint8_t *)text, strlen(text)), 0x17770551);
    assert_int_equal(vec_checksum((const uint8_t *)"", 0), 0xdeadbeef);
}

/* Shapes that do not fit the case, told as the library's reader tells them. */
static void test_wrong_shapes(void **state)
{
    static const float values[24];
    static const struct {
        int ndim;
        hsize_t dims[4];
        hid_t *type;
        const char *message;
    } shapes[] = {
        {2, {3, 8}, &H5T_IEEE_F32LE_g, "q: expected shape [3][*][*], found [3][8]"},
        {3, {4, 2, 3}, &H5T_IEEE_F32LE_g, "q: expected shape [3][*][*], found [4][2][3]"},
        {3, {3, 2, 4}, &H5T_STD_I32LE_g, "q: expected floats, found integers"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        dsv4_error err = {{0}};
        vec_file *f;
        vec_tap *t;
        hid_t file = start(other, 64);
        H5Dclose(put(file, "cases/b/layers/0/q", *shapes[i].type, H5T_NATIVE_FLOAT, BOTH,
                     shapes[i].ndim, shapes[i].dims, values));
        H5Fclose(file);
        assert_int_equal(vec_open(other, &f, &err), DSV4_OK);
        assert_int_equal(answer_for(f, "b", "layers/0/q"), VEC_HERE);
        assert_int_equal(vec_tap_open(f, vec_case_find(f, "b"), DSV4_TAP_Q, 0, &t, &err),
                         DSV4_E_INPUT);
        assert_null(t);
        if (!strstr(err.text, shapes[i].message) || !strstr(err.text, other))
            fail_msg("expected \"%s\", got \"%s\"", shapes[i].message, err.text);
        vec_close(f);
    }
}

/* ---- the machine ---------------------------------------------------------------------------- */

static void test_no_memory(void **state)
{
    static uint32_t right[2 * COUNT], got[2 * COUNT];
    (void)state;
    for (int how = COMPACT; how <= BOTH; how += BOTH - COMPACT) {
        dsv4_status status = DSV4_E_MACHINE;
        dsv4_error err = {{0}};
        size_t n_right, n_got;
        long n = 0;
        write_file(other, how, 64);
        assert_int_equal(read_all(other, right, 2 * COUNT, &n_right, &err), DSV4_OK);
        while (status != DSV4_OK) {
            memset(&err, 0, sizeof err);
            dsv4_alloc_fail_at(++n);
            status = read_all(other, got, 2 * COUNT, &n_got, &err);
            dsv4_alloc_fail_at(0);
            if (status != DSV4_OK) {
                assert_int_equal(status, DSV4_E_MACHINE);
                assert_true(err.text[0] != '\0');
            }
        }
        assert_true(n > 40);
        assert_int_equal(n_got, n_right);
        assert_memory_equal(got, right, 4 * n_right);
    }
}

/* Two threads in one file, each at other taps. */
typedef struct {
    const vec_file *f;
    dsv4_tap_id id;
    int layer;
    bool wrong;
} reader;

static void *read_often(void *ctx)
{
    reader *r = ctx;
    uint32_t values[COUNT], got[COUNT];
    dsv4_error err = {{0}};
    fill(values, COUNT);
    for (int i = 0; i < 200; i++) {
        vec_tap *t = NULL;
        if (vec_tap_open(r->f, vec_case_find(r->f, "b"), r->id, r->layer, &t, &err) != DSV4_OK ||
            t == NULL || vec_tap_read(t, 0, t->n_rows, got, &err) != DSV4_OK ||
            memcmp(got, values, (size_t)(t->n_rows * t->row_len) * 4) != 0)
            r->wrong = true;
        vec_tap_close(t);
    }
    return NULL;
}

static void test_threads(void **state)
{
    dsv4_error err = {{0}};
    vec_file *f;
    pthread_t threads[2];
    (void)state;
    write_file(other, BOTH, 64);
    assert_int_equal(vec_open(other, &f, &err), DSV4_OK);
    reader readers[2] = {{f, DSV4_TAP_Q, 0, false}, {f, DSV4_TAP_COMPRESSED_KV, 2, false}};
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_often, &readers[i]), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    assert_false(readers[0].wrong || readers[1].wrong);
    vec_close(f);
}

/* Pieces of all sizes, given back in another order than they were taken in, keep what is in them;
 * one that cannot be had is a message. */
static void test_rows_memory(void **state)
{
    enum { PIECES = 60, ROUNDS = 200, MOST = 700000 };
    dsv4_error err = {{0}};
    uint8_t *piece[PIECES] = {NULL};
    size_t size[PIECES] = {0};
    uint32_t noise = 1;
    (void)state;
    for (int i = 0; i < ROUNDS * PIECES / 10; i++) {
        noise = noise * 1664525u + 1013904223u;
        size_t k = noise >> 16;
        k %= PIECES;
        for (size_t b = 0; b < size[k]; b += size[k] / 7 + 1)
            assert_int_equal(piece[k][b], (uint8_t)(k + b));
        vec_rows_give(piece[k]);
        size[k] = i % 50 == 0 ? MOST : (noise >> 8) % (i % 7 == 0 ? 100000 : 3000);
        piece[k] = vec_rows_take(size[k], &err);
        assert_non_null(piece[k]);
        assert_int_equal((uintptr_t)piece[k] % sizeof(double), 0);
        for (size_t b = 0; b < size[k]; b++)
            piece[k][b] = (uint8_t)(k + b);
    }
    for (int k = 0; k < PIECES; k++)
        vec_rows_give(piece[k]);
    vec_rows_give(NULL);
    dsv4_alloc_fail_at(1);
    assert_null(vec_rows_take(MOST, &err));
    dsv4_alloc_fail_at(0);
    assert_non_null(strstr(err.text, "out of memory"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts),     cmocka_unit_test(test_left_to_library),
        cmocka_unit_test(test_other_kinds), cmocka_unit_test(test_golden),
        cmocka_unit_test(test_bad_chunks),  cmocka_unit_test(test_skipped_filter),
        cmocka_unit_test(test_shortened),   cmocka_unit_test(test_wrong_bits),
        cmocka_unit_test(test_checksum),    cmocka_unit_test(test_wrong_shapes),
        cmocka_unit_test(test_no_memory),   cmocka_unit_test(test_threads),
        cmocka_unit_test(test_rows_memory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
