/* test_vectors.c - the reader of vector files: good files, golden files, failing allocations, two
 * threads. What is wrong with a file is for test_vectors_bad.c. */
#include "vectors_files.h"

#include <pthread.h>

/* ---- a good file ---------------------------------------------------------------------------- */

static vec_tap *open_tap(const vec_file *f, const char *name, dsv4_tap_id id, int layer)
{
    dsv4_error err = {{0}};
    vec_tap *t = NULL;
    const vec_case *c = vec_case_find(f, name);
    assert_non_null(c);
    assert_int_equal(vec_tap_open(f, c, id, layer, &t, &err), DSV4_OK);
    return t;
}

static void test_cases(void **state)
{
    dsv4_error err;
    vec_file *f;
    (void)state;
    assert_int_equal(vec_open(good, &f, &err), DSV4_OK);
    assert_string_equal(vec_path(f), good);
    assert_string_equal(vec_attribute(f, "schema"), "dsv4-vectors-1");
    assert_string_equal(vec_attribute(f, "producer"), "test");
    assert_null(vec_attribute(f, "model"));
    assert_int_equal(vec_case_count(f), 2);
    const vec_case *b = vec_case_at(f, 0), *a = vec_case_at(f, 1);
    assert_string_equal(b->name, "b"); /* the shorter context first */
    assert_string_equal(a->name, "a");
    assert_null(vec_case_at(f, 2));
    assert_null(vec_case_find(f, "c"));
    assert_true(a->decode && !b->decode);
    assert_int_equal(a->context, 6);
    assert_int_equal(a->prefill, 4);
    assert_int_equal(a->n_positions, 0);
    assert_int_equal(a->tokens[5], 9);
    assert_int_equal(b->prefill, 5);
    assert_int_equal(b->n_positions, 3);
    assert_int_equal(b->positions[2], 4);
    assert_int_equal(vec_case_layers(f, a), 3);
    assert_int_equal(vec_case_layers(f, b), 3);
    vec_close(f);
    vec_close(NULL);
}

static void test_prefill_taps(void **state)
{
    dsv4_error err;
    vec_file *f;
    float values[24];
    int32_t experts[6];
    (void)state;
    assert_int_equal(vec_open(good, &f, &err), DSV4_OK);
    vec_tap *t = open_tap(f, "b", DSV4_TAP_Q, 0);
    assert_string_equal(t->path, "/cases/b/layers/0/q");
    assert_int_equal(t->n_rows, 3);
    assert_int_equal(t->ndim, 2);
    assert_int_equal(t->shape[0], 2);
    assert_int_equal(t->shape[1], 4);
    assert_int_equal(t->row_len, 8);
    assert_int_equal(t->positions[1], 2);
    assert_int_equal(vec_tap_read(t, 1, 2, values, &err), DSV4_OK);
    assert_true(values[0] == 9 && values[15] == 24);
    assert_int_equal(vec_tap_read(t, 3, 0, values, &err), DSV4_OK);
    assert_int_equal(vec_tap_read(t, 2, 2, values, &err), DSV4_E_INPUT);
    assert_non_null(strstr(err.text, "/cases/b/layers/0/q: 2 rows from row 2 asked for"));
    assert_int_equal(vec_tap_read(t, -1, 1, values, &err), DSV4_E_INPUT);
    assert_int_equal(vec_tap_read(t, 1, INT64_MAX, values, &err), DSV4_E_INPUT);
    vec_tap_close(t);

    t = open_tap(f, "b", DSV4_TAP_ROUTER_EXPERTS, 0);
    assert_true(t->is_int);
    assert_int_equal(vec_tap_read(t, 0, 3, experts, &err), DSV4_OK);
    assert_int_equal(experts[3], 2);
    vec_tap_close(t);

    t = open_tap(f, "b", DSV4_TAP_COMPRESSED_KV, 2);
    assert_int_equal(t->n_rows, 2);
    assert_int_equal(t->positions[1], 1); /* the number of the row */
    vec_tap_close(t);

    t = open_tap(f, "b", DSV4_TAP_INDEXER_KV, 2);
    assert_int_equal(t->n_rows, 0);
    assert_int_equal(vec_tap_read(t, 0, 0, values, &err), DSV4_OK);
    vec_tap_close(t);

    t = open_tap(f, "b", DSV4_TAP_INDEXER_SCORES, 2);
    assert_int_equal(t->n_rows, 3);
    assert_int_equal(t->row_len, 0);
    assert_int_equal(vec_tap_read(t, 0, 3, values, &err), DSV4_OK);
    vec_tap_close(t);

    t = open_tap(f, "b", DSV4_TAP_MTP_LOGITS, -1);
    assert_int_equal(t->n_rows, 2);
    assert_int_equal(t->positions[1], 2);
    assert_string_equal(t->path, "/cases/b/mtp/logits");
    vec_tap_close(t);

    assert_null(open_tap(f, "b", DSV4_TAP_KV, 0));
    assert_null(open_tap(f, "b", DSV4_TAP_KV, 1));
    assert_null(open_tap(f, "b", DSV4_TAP_KV, -1));
    assert_null(open_tap(f, "b", DSV4_TAP_LOGITS, 0));
    assert_null(open_tap(f, "b", DSV4_TAP_FINAL_NORM, -1));
    assert_null(open_tap(f, "b", DSV4_TAP_STREAMS, 0));
    vec_tap_close(NULL);
    vec_close(f);
}

static void test_decode_taps(void **state)
{
    dsv4_error err;
    vec_file *f;
    float row[8];
    (void)state;
    assert_int_equal(vec_open(good, &f, &err), DSV4_OK);
    vec_tap *t = open_tap(f, "a", DSV4_TAP_LOGITS, -1);
    assert_int_equal(t->n_rows, 3);
    assert_int_equal(t->positions[0], 3); /* after the prefill */
    assert_int_equal(t->positions[2], 5);
    vec_tap_close(t);
    /* [2][3][2][4]: row 1 of layer 2 starts at element (1*3 + 2) * 8. */
    t = open_tap(f, "a", DSV4_TAP_STREAMS, 2);
    assert_int_equal(t->n_rows, 2);
    assert_int_equal(t->row_len, 8);
    assert_int_equal(t->ndim, 2);
    assert_int_equal(t->shape[0], 2);
    assert_int_equal(t->positions[0], 4);
    assert_int_equal(t->positions[1], 5);
    assert_int_equal(vec_tap_read(t, 1, 1, row, &err), DSV4_OK);
    assert_true(row[0] == 41 && row[7] == 48);
    vec_tap_close(t);
    assert_null(open_tap(f, "a", DSV4_TAP_STREAMS, 3));
    vec_close(f);
}

static void remember(void *ctx, const char *path)
{
    strncat(ctx, path, 100);
    strncat(ctx, ";", 2);
}

static void test_rope_and_unknown(void **state)
{
    dsv4_error err;
    vec_file *f;
    int64_t n, half, *positions;
    float *cosine, *sine;
    char unknown[256] = "";
    (void)state;
    assert_int_equal(vec_open(good, &f, &err), DSV4_OK);
    assert_int_equal(vec_rope_read(f, false, &n, &half, &positions, &cosine, &sine, &err), DSV4_OK);
    assert_int_equal(n, 3);
    assert_int_equal(half, 2);
    assert_int_equal(positions[2], 4);
    assert_true(cosine[5] == 6 && sine[0] == 1);
    free(positions);
    free(cosine);
    free(sine);
    assert_int_equal(vec_rope_read(f, true, &n, &half, &positions, &cosine, &sine, &err), DSV4_OK);
    assert_int_equal(n, 0);
    assert_null(positions);
    vec_case_unknown(f, vec_case_find(f, "b"), remember, unknown);
    assert_string_equal(unknown, "layers/0/colour;");
    unknown[0] = '\0';
    vec_case_unknown(f, vec_case_find(f, "a"), remember, unknown);
    assert_string_equal(unknown, "");
    vec_close(f);
}

/* ---- the machine ---------------------------------------------------------------------------- */

static dsv4_status read_everything(const char *path, dsv4_error *err)
{
    vec_file *f = NULL;
    vec_tap *t = NULL;
    float values[24];
    int64_t n, half, *positions;
    float *cosine, *sine;
    char hex[65];
    dsv4_status status = vec_open(path, &f, err);
    if (status != DSV4_OK)
        return status;
    for (size_t i = 0; i < vec_case_count(f) && status == DSV4_OK; i++)
        for (int id = 0; id < DSV4_TAP_COUNT && status == DSV4_OK; id++)
            for (int layer = -1; layer < 3 && status == DSV4_OK; layer++) {
                status = vec_tap_open(f, vec_case_at(f, i), (dsv4_tap_id)id, layer, &t, err);
                if (status == DSV4_OK && t)
                    status = vec_tap_read(t, 0, t->n_rows, values, err);
                vec_tap_close(t);
                t = NULL;
            }
    if (status == DSV4_OK)
        status = vec_rope_read(f, false, &n, &half, &positions, &cosine, &sine, err);
    if (status == DSV4_OK) {
        free(positions);
        free(cosine);
        free(sine);
        status = file_sha256(path, hex, err);
    }
    vec_close(f);
    return status;
}

static void test_no_memory(void **state)
{
    dsv4_status status = DSV4_E_MACHINE;
    long n = 0;
    (void)state;
    while (status != DSV4_OK && n < 10000) {
        dsv4_error err = {{0}};
        dsv4_alloc_fail_at(++n);
        status = read_everything(good, &err);
        dsv4_alloc_fail_at(0);
        if (status != DSV4_OK) {
            assert_int_equal(status, DSV4_E_MACHINE);
            assert_true(err.text[0] != '\0');
        }
    }
    assert_true(n > 50 && n < 10000);
}

static void *read_in_thread(void *ctx)
{
    dsv4_error err = {{0}};
    for (int i = 0; i < 20; i++)
        if (read_everything(good, &err) != DSV4_OK)
            *(bool *)ctx = true;
    return NULL;
}

static void test_two_threads(void **state)
{
    pthread_t threads[2];
    bool failed[2] = {false, false};
    (void)state;
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_in_thread, &failed[i]), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    assert_false(failed[0] || failed[1]);
}

/* ---- golden files, where they are ----------------------------------------------------------- */

static void test_golden(void **state)
{
    static const char *const files[] = {
        "nano-hf-f32.h5",  "nano-official-qat-f32.h5", "nano-official-deployed-bf16.h5",
        "nano-q2-math.h5", "stress-hf-f32.h5",         "stress-official-qat-f32.h5"};
    size_t found = 0;
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char path[512];
        dsv4_error err = {{0}};
        vec_file *f;
        size_t taps = 0;
        snprintf(path, sizeof path, "%s/%s", DSV4_VECTORS, files[i]);
        if (access(path, R_OK) != 0)
            continue;
        if (vec_open(path, &f, &err) != DSV4_OK)
            fail_msg("%s", err.text);
        assert_non_null(vec_attribute(f, "config"));
        for (size_t k = 0; k < vec_case_count(f); k++) {
            const vec_case *c = vec_case_at(f, k);
            for (int layer = -1; layer < vec_case_layers(f, c); layer++)
                for (int id = 0; id < DSV4_TAP_COUNT; id++) {
                    vec_tap *t;
                    if (vec_tap_open(f, c, (dsv4_tap_id)id, layer, &t, &err) != DSV4_OK)
                        fail_msg("%s", err.text);
                    taps += t != NULL;
                    vec_tap_close(t);
                }
        }
        assert_true(taps > 0);
        vec_close(f);
        found++;
    }
    if (!found)
        skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),       cmocka_unit_test(test_prefill_taps),
        cmocka_unit_test(test_decode_taps), cmocka_unit_test(test_rope_and_unknown),
        cmocka_unit_test(test_no_memory),   cmocka_unit_test(test_two_threads),
        cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
