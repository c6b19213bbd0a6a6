/* test_vectors_bad.c - every way in which a vector file can be wrong: the status, and one line that
 * names file and dataset, what was expected and what was found. */
#include "vectors_files.h"

/* ---- bad files ------------------------------------------------------------------------------ */

/* Replaces a list of integers. */
static void replace_ints(hid_t file, const char *path, size_t n, const int64_t *values)
{
    H5Ldelete(file, path, H5P_DEFAULT);
    put_ints(file, path, n, values);
}

static void replace_text(hid_t file, const char *path, const char *name, const char *text)
{
    H5Adelete_by_name(file, path, name, H5P_DEFAULT);
    if (text)
        put_text(file, path, name, text, false);
}

static void replace_integer(hid_t file, const char *path, const char *name, int64_t value)
{
    H5Adelete_by_name(file, path, name, H5P_DEFAULT);
    put_integer(file, path, name, value, H5T_STD_I64LE);
}

static void change_schema(hid_t f)
{
    replace_text(f, "/", "schema", "dsv4-vectors-2");
}
static void drop_schema(hid_t f)
{
    replace_text(f, "/", "schema", NULL);
}
static void number_schema(hid_t f)
{
    replace_integer(f, "/", "schema", 1);
}
static void drop_cases(hid_t f)
{
    H5Ldelete(f, "/cases", H5P_DEFAULT);
}
static void empty_cases(hid_t f)
{
    H5Ldelete(f, "/cases/a", H5P_DEFAULT);
    H5Ldelete(f, "/cases/b", H5P_DEFAULT);
}
static void dataset_case(hid_t f)
{
    put_floats(f, "/cases/c", 1, (hsize_t[]){1});
}
static void long_name(hid_t f)
{
    char name[200] = "/cases/";
    memset(name + 7, 'x', 150);
    put_floats(f, name, 1, (hsize_t[]){1});
}
static void drop_kind(hid_t f)
{
    replace_text(f, "/cases/b", "kind", NULL);
}
static void change_kind(hid_t f)
{
    replace_text(f, "/cases/b", "kind", "prefil");
}
static void drop_context(hid_t f)
{
    H5Adelete_by_name(f, "/cases/b", "context", H5P_DEFAULT);
}
static void text_context(hid_t f)
{
    replace_text(f, "/cases/b", "context", "5");
}
static void change_context(hid_t f)
{
    replace_integer(f, "/cases/b", "context", 6);
}
static void change_prefill(hid_t f)
{
    replace_integer(f, "/cases/a", "prefill", 7);
}
static void drop_prefill(hid_t f)
{
    H5Adelete_by_name(f, "/cases/a", "prefill", H5P_DEFAULT);
}
static void drop_tokens(hid_t f)
{
    H5Ldelete(f, "/cases/b/tokens", H5P_DEFAULT);
}
static void negative_token(hid_t f)
{
    replace_ints(f, "/cases/b/tokens", 5, (int64_t[]){1, 2, -1, 3, 4});
}
static void float_tokens(hid_t f)
{
    H5Ldelete(f, "/cases/b/tokens", H5P_DEFAULT);
    put_floats(f, "/cases/b/tokens", 1, (hsize_t[]){5});
}
static void flat_tokens(hid_t f)
{
    H5Ldelete(f, "/cases/b/tokens", H5P_DEFAULT);
    put_array(f, "/cases/b/tokens", H5T_STD_I32LE, H5T_NATIVE_INT64, 2, (hsize_t[]){5, 1}, NULL);
}
static void group_tokens(hid_t f)
{
    H5Ldelete(f, "/cases/b/tokens", H5P_DEFAULT);
    H5Gclose(H5Gcreate2(f, "/cases/b/tokens", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
}
static void huge_tokens(hid_t f)
{
    hsize_t dim = (hsize_t)1 << 39, chunk = 1024;
    hid_t space = H5Screate_simple(1, &dim, NULL), list = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(list, 1, &chunk);
    H5Ldelete(f, "/cases/b/tokens", H5P_DEFAULT);
    H5Dclose(H5Dcreate2(f, "/cases/b/tokens", H5T_STD_I8LE, space, H5P_DEFAULT, list, H5P_DEFAULT));
    H5Pclose(list);
    H5Sclose(space);
}
static void drop_positions(hid_t f)
{
    H5Ldelete(f, "/cases/b/positions", H5P_DEFAULT);
}
static void twice_positions(hid_t f)
{
    replace_ints(f, "/cases/b/positions", 3, (int64_t[]){0, 2, 2});
}
static void far_positions(hid_t f)
{
    replace_ints(f, "/cases/b/positions", 3, (int64_t[]){0, 2, 5});
}
static void negative_positions(hid_t f)
{
    replace_ints(f, "/cases/b/positions", 3, (int64_t[]){-1, 2, 4});
}
static void many_positions(hid_t f)
{
    replace_ints(f, "/cases/b/positions", 6, (int64_t[]){0, 1, 2, 3, 4, 5});
}
static void drop_steps(hid_t f)
{
    H5Ldelete(f, "/cases/a/streams_steps", H5P_DEFAULT);
}
static void far_steps(hid_t f)
{
    replace_ints(f, "/cases/a/streams_steps", 2, (int64_t[]){1, 2});
}
static void far_logits_steps(hid_t f)
{
    put_ints(f, "/cases/a/logits_steps", 2, (int64_t[]){1, 3});
}
static void far_mtp(hid_t f)
{
    replace_ints(f, "/cases/b/mtp/positions", 2, (int64_t[]){1, 5});
}
static void dataset_layers(hid_t f)
{
    H5Ldelete(f, "/cases/b/layers", H5P_DEFAULT);
    put_floats(f, "/cases/b/layers", 1, (hsize_t[]){1});
}

/* Writes a copy of the good file, changes it. */
static void make_bad(void (*change)(hid_t))
{
    write_good(other);
    hid_t file = H5Fopen(other, H5F_ACC_RDWR, H5P_DEFAULT);
    assert_true(file >= 0);
    change(file);
    H5Fclose(file);
}

static void assert_one_line(const dsv4_error *err, const char *what)
{
    if (!strstr(err->text, what) || strchr(err->text, '\n') || !strstr(err->text, folder))
        fail_msg("expected one line with \"%s\", got \"%s\"", what, err->text);
}

static void test_bad_files(void **state)
{
    static const struct {
        void (*change)(hid_t);
        const char *message;
    } cases[] = {
        {change_schema,
         "/: attribute schema: expected \"dsv4-vectors-1\", found \"dsv4-vectors-2\""},
        {drop_schema, "/: attribute schema: expected \"dsv4-vectors-1\", found none"},
        {number_schema, "/: attribute schema: expected one string"},
        {drop_cases, "/cases: expected at least one case, found none"},
        {empty_cases, "/cases: expected at least one case, found none"},
        {dataset_case, "/cases/c: expected a group"},
        {long_name, "expected a name of at most 128 bytes, found 150"},
        {drop_kind, "/cases/b: attribute kind: expected prefill or decode, found none"},
        {change_kind, "/cases/b: attribute kind: expected prefill or decode, found prefil"},
        {drop_context, "/cases/b: attribute context: expected the number of tokens, found none"},
        {text_context, "/cases/b: attribute context: expected one integer"},
        {change_context, "/cases/b/tokens: expected shape [6] (attribute context), found [5]"},
        {change_prefill, "/cases/a: attribute prefill: expected 1 to 6 (context), found 7"},
        {drop_prefill, "/cases/a: attribute prefill: expected a number of tokens, found none"},
        {drop_tokens, "/cases/b/tokens: expected a dataset of tokens, found none"},
        {negative_token, "/cases/b/tokens: expected token ids from 0 to 2147483647, found -1 at"},
        {float_tokens, "/cases/b/tokens: expected integers, found floats"},
        {flat_tokens, "/cases/b/tokens: expected shape [*], found [5][1]"},
        {group_tokens, "/cases/b/tokens: expected a dataset"},
        {huge_tokens, "/cases/b/tokens: expected at most 268435456 values, found 549755813888"},
        {drop_positions, "/cases/b/positions: expected a dataset, found none"},
        {twice_positions, "/cases/b/positions: expected ascending values, found 2 after 2"},
        {far_positions, "/cases/b/positions: expected values from 0 to 4, found 5 at index 2"},
        {negative_positions, "/cases/b/positions: expected values from 0 to 4, found -1"},
        {many_positions, "/cases/b/positions: expected at most 5 values, found 6"},
        {drop_steps, "/cases/a/streams: expected /cases/a/streams_steps beside it, found none"},
        {far_steps, "/cases/a/streams_steps: expected values from 0 to 1, found 2"},
        {far_logits_steps, "/cases/a/logits_steps: expected values from 0 to 2, found 3"},
        {far_mtp, "/cases/b/mtp/positions: expected values from 0 to 4, found 5"},
        {dataset_layers, "/cases/b/layers: expected a group"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        dsv4_error err = {{0}};
        vec_file *f;
        make_bad(cases[i].change);
        assert_int_equal(vec_open(other, &f, &err), DSV4_E_INPUT);
        assert_null(f);
        assert_one_line(&err, cases[i].message);
    }
}

static void rank_q(hid_t f)
{
    H5Ldelete(f, "/cases/b/layers/0/q", H5P_DEFAULT);
    put_floats(f, "/cases/b/layers/0/q", 2, (hsize_t[]){3, 8});
}
static void rows_q(hid_t f)
{
    H5Ldelete(f, "/cases/b/layers/0/q", H5P_DEFAULT);
    put_floats(f, "/cases/b/layers/0/q", 3, (hsize_t[]){4, 2, 4});
}
static void int_q(hid_t f)
{
    H5Ldelete(f, "/cases/b/layers/0/q", H5P_DEFAULT);
    put_array(f, "/cases/b/layers/0/q", H5T_STD_I32LE, H5T_NATIVE_INT64, 3, (hsize_t[]){3, 2, 4},
              NULL);
}
static void group_q(hid_t f)
{
    H5Ldelete(f, "/cases/b/layers/0/q", H5P_DEFAULT);
    H5Gclose(H5Gcreate2(f, "/cases/b/layers/0/q", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
}
static void dangling_q(hid_t f)
{
    H5Ldelete(f, "/cases/b/layers/0/q", H5P_DEFAULT);
    H5Lcreate_soft("/nowhere", f, "/cases/b/layers/0/q", H5P_DEFAULT, H5P_DEFAULT);
}
static void null_q(hid_t f)
{
    hid_t space = H5Screate(H5S_NULL);
    H5Ldelete(f, "/cases/b/layers/0/q", H5P_DEFAULT);
    H5Dclose(H5Dcreate2(f, "/cases/b/layers/0/q", H5T_IEEE_F32LE, space, H5P_DEFAULT, H5P_DEFAULT,
                        H5P_DEFAULT));
    H5Sclose(space);
}
static void float_experts(hid_t f)
{
    H5Ldelete(f, "/cases/b/layers/0/router_experts", H5P_DEFAULT);
    put_floats(f, "/cases/b/layers/0/router_experts", 2, (hsize_t[]){3, 2});
}
static void rows_kv(hid_t f)
{
    H5Ldelete(f, "/cases/b/layers/2/compressed_kv", H5P_DEFAULT);
    put_floats(f, "/cases/b/layers/2/compressed_kv", 2, (hsize_t[]){6, 4});
}
static void rows_logits(hid_t f)
{
    H5Ldelete(f, "/cases/a/logits", H5P_DEFAULT);
    put_floats(f, "/cases/a/logits", 2, (hsize_t[]){2, 7});
}
static void rank_streams(hid_t f)
{
    H5Ldelete(f, "/cases/a/streams", H5P_DEFAULT);
    put_floats(f, "/cases/a/streams", 3, (hsize_t[]){2, 3, 8});
}
static void drop_mtp(hid_t f)
{
    H5Ldelete(f, "/cases/b/mtp/positions", H5P_DEFAULT);
}

static void test_bad_taps(void **state)
{
    static const struct {
        void (*change)(hid_t);
        const char *name;
        dsv4_tap_id id;
        int layer;
        const char *message;
    } cases[] = {
        {rank_q, "b", DSV4_TAP_Q, 0, "b/layers/0/q: expected shape [3][*][*], found [3][8]"},
        {rows_q, "b", DSV4_TAP_Q, 0, "b/layers/0/q: expected shape [3][*][*], found [4][2][4]"},
        {int_q, "b", DSV4_TAP_Q, 0, "b/layers/0/q: expected floats, found integers"},
        {group_q, "b", DSV4_TAP_Q, 0, "b/layers/0/q: expected a dataset"},
        {dangling_q, "b", DSV4_TAP_Q, 0, "b/layers/0/q: expected a dataset"},
        {null_q, "b", DSV4_TAP_Q, 0, "b/layers/0/q: expected an array, found nothing stored"},
        {float_experts, "b", DSV4_TAP_ROUTER_EXPERTS, 0, "expected integers, found floats"},
        {rows_kv, "b", DSV4_TAP_COMPRESSED_KV, 2, "expected at most 5 rows (context), found 6"},
        {rows_logits, "a", DSV4_TAP_LOGITS, -1, "a/logits: expected shape [3][*], found [2][7]"},
        {rank_streams, "a", DSV4_TAP_STREAMS, 1, "expected shape [2][*][*][*], found [2][3][8]"},
        {drop_mtp, "b", DSV4_TAP_MTP_LOGITS, -1, "expected mtp/positions beside it, found none"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        dsv4_error err = {{0}};
        vec_file *f;
        vec_tap *t;
        make_bad(cases[i].change);
        assert_int_equal(vec_open(other, &f, &err), DSV4_OK);
        assert_int_equal(
            vec_tap_open(f, vec_case_find(f, cases[i].name), cases[i].id, cases[i].layer, &t, &err),
            DSV4_E_INPUT);
        assert_null(t);
        assert_one_line(&err, cases[i].message);
        vec_close(f);
    }
}

static void narrow_sin(hid_t f)
{
    H5Ldelete(f, "/rope/main/sin", H5P_DEFAULT);
    put_floats(f, "/rope/main/sin", 2, (hsize_t[]){3, 1});
}
static void drop_cos(hid_t f)
{
    H5Ldelete(f, "/rope/main/cos", H5P_DEFAULT);
}
static void back_rope(hid_t f)
{
    replace_ints(f, "/rope/main/positions", 3, (int64_t[]){0, 3, 2});
}

static void test_bad_rope(void **state)
{
    static const struct {
        void (*change)(hid_t);
        const char *message;
    } cases[] = {
        {narrow_sin, "/rope/main/sin: expected shape [3][2], found [3][1]"},
        {drop_cos, "/rope/main/cos: expected a dataset, found none"},
        {back_rope, "/rope/main/positions: expected ascending positions, found 2 at index 2"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        dsv4_error err = {{0}};
        vec_file *f;
        int64_t n, half, *positions;
        float *cosine, *sine;
        make_bad(cases[i].change);
        assert_int_equal(vec_open(other, &f, &err), DSV4_OK);
        assert_int_equal(vec_rope_read(f, false, &n, &half, &positions, &cosine, &sine, &err),
                         DSV4_E_INPUT);
        assert_null(positions);
        assert_null(cosine);
        assert_one_line(&err, cases[i].message);
        vec_close(f);
    }
}

static void test_no_vector_files(void **state)
{
    dsv4_error err = {{0}};
    vec_file *f;
    char path[80], hex[65];
    (void)state;
    snprintf(path, sizeof path, "%s/absent.h5", folder);
    assert_int_equal(vec_open(path, &f, &err), DSV4_E_INPUT);
    assert_one_line(&err, "absent.h5: expected a vector file, cannot open it");
    assert_int_equal(file_sha256(path, hex, &err), DSV4_E_INPUT);
    assert_one_line(&err, "absent.h5: cannot open it");
    assert_int_equal(vec_open(folder, &f, &err), DSV4_E_INPUT);
    assert_one_line(&err, "found a directory");
    assert_int_equal(file_sha256(folder, hex, &err), DSV4_E_INPUT);
    assert_one_line(&err, "found a directory");

    FILE *file = fopen(other, "wb");
    fclose(file);
    assert_int_equal(vec_open(other, &f, &err), DSV4_E_INPUT);
    assert_one_line(&err, "found an empty file");
    assert_int_equal(file_sha256(other, hex, &err), DSV4_OK);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    file = fopen(other, "wb");
    fputs("abc", file);
    fclose(file);
    assert_int_equal(vec_open(other, &f, &err), DSV4_E_INPUT);
    assert_one_line(&err, "found no HDF5 signature");
    assert_int_equal(file_sha256(other, hex, &err), DSV4_OK);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

/* A file cut anywhere is refused with one line; never read as if it were whole. */
static void test_truncated(void **state)
{
    static char bytes[1 << 20];
    (void)state;
    FILE *file = fopen(good, "rb");
    size_t n = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    assert_true(n > 4096 && n < sizeof bytes);
    for (size_t cut = 1; cut < n; cut += cut < 200 ? 7 : n / 37) {
        dsv4_error err = {{0}};
        vec_file *f;
        file = fopen(other, "wb");
        assert_int_equal(fwrite(bytes, 1, cut, file), cut);
        fclose(file);
        assert_int_equal(vec_open(other, &f, &err), DSV4_E_INPUT);
        assert_one_line(&err, cut < 8 ? "no HDF5 signature" : "truncated or damaged HDF5 file");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_files), cmocka_unit_test(test_bad_taps),
        cmocka_unit_test(test_bad_rope),  cmocka_unit_test(test_no_vector_files),
        cmocka_unit_test(test_truncated),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
