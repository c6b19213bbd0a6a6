/* test_cli_bench.c - the commands that measure and check engines: kernels and bench, their options,
 * their reports, and that the bytes and products they count are those of the model's shapes. */
#include "cli.h"

#define NANO DSV4_VECTORS "/nano"

static double real_at(const json_t *root, const char *object, const char *key)
{
    const json_t *v = json_object_get(object ? json_object_get(root, object) : root, key);
    if (!json_is_number(v))
        fail_msg("%s: no number", key);
    return json_number_value(v);
}

/* Cases of all kernels of a report. */
static int64_t cases_of(const json_t *root)
{
    const json_t *item;
    int64_t all = 0;
    size_t i;
    json_array_foreach(json_object_get(root, "results"), i, item) all += number_at(item, NULL, "n");
    return all;
}

static void test_kernels(void **state)
{
    (void)state;
    int code = run("kernels", "--filter", "add/*", "--seed", "7", "--json", in("k.json"), "--junit",
                   in("k.xml"), NULL);
    if (code == 2 && strstr(run_err, "no level above scalar") != NULL)
        skip();
    check(code, 0, "PASS", "seed 7");
    json_t *root = results_of("k.json");
    assert_string_equal(text_at(root, NULL, "schema"), "dsv4check-results-1");
    assert_string_equal(text_at(root, NULL, "command"), "kernels");
    assert_int_equal(number_at(root, "provenance", "seed"), 7);
    assert_int_equal(number_at(root, "counts", "fail"), 0);
    int64_t once = cases_of(root);
    assert_true(once > 0);
    json_decref(root);
    assert_true(exists("k.xml"));
    check(run("kernels", "--filter", "add/*", "--seed", "7", "--repeat", "3", "--json",
              in("k.json"), "--quiet", NULL),
          0, "PASS", NULL);
    root = results_of("k.json");
    assert_int_equal(cases_of(root), 3 * once);
    json_decref(root);
    check(run("kernels", "--filter", "add/dim*", NULL), 2, "lets none through", NULL);
    check(run("kernels", "--json", NULL), 2, "--json needs a value", NULL);
    check(run("kernels", "--timeout", "0", NULL), 2,
          "--timeout: expected a number from 1 to 86400, found '0'", NULL);
    check(run("kernels", "--filter", "add/*", "--json", in("none/k.json"), NULL), 3, "none/k.json",
          NULL);
    check(run("list", "kernels", NULL), 0, "hc_head_gates", "dot products");
}

/* The weights that operators read, counted as they ran, against the sum from the shapes. */
static void check_counts(const json_t *root)
{
    const json_t *classes = json_object_get(root, "weight_bytes_per_token"), *point, *value;
    const char *name;
    double all = 0;
    size_t i;
    json_object_foreach((json_t *)(uintptr_t)classes, name, value)
    {
        if (strcmp(name, "vectors") != 0) /* read by the session */
            all += json_number_value(value);
    }
    json_array_foreach(json_object_get(root, "contexts"), i, point)
    {
        const json_t *decode = json_object_get(point, "decode");
        const json_t *op, *ops = json_object_get(decode, "operators");
        double share = 0, bytes = 0;
        assert_true(fabs(real_at(decode, NULL, "weight_bytes") - all) < 1e-9 * all);
        json_object_foreach((json_t *)(uintptr_t)ops, name, op)
        {
            share += real_at(op, NULL, "share");
            if (strcmp(name, "session") != 0)
                bytes += real_at(op, NULL, "weight_bytes");
        }
        assert_true(fabs(share - 1) < 1e-9);
        assert_true(fabs(bytes - all) < 1e-9 * all);
        assert_true(real_at(json_object_get(decode, "tokens_per_second"), NULL, "median") > 0);
        assert_true(real_at(decode, NULL, "share_of_reads") > 0);
        double gemvs = real_at(decode, NULL, "gemv_share");
        assert_true(gemvs > 0 && gemvs < 1);
    }
}

/* Rows of the state that a token reads, for nano: see the fields of its config. */
static double nano_rows(const dsv4_config *c, int64_t position)
{
    double bytes = 0;
    for (int l = 0; l < c->num_hidden_layers; l++) {
        int64_t ratio = c->compress_ratios[l], window = position + 1;
        int64_t rows = ratio > 0 ? (position + 1) / ratio : 0;
        if (window > c->sliding_window)
            window = c->sliding_window;
        if (ratio == 4) {
            bytes += 4.0 * (double)(rows * c->index_head_dim);
            rows = rows > c->index_topk ? c->index_topk : rows;
        }
        bytes += 4.0 * (double)((window + rows) * c->head_dim);
    }
    return bytes;
}

static void check_engine(const char *name)
{
    dsv4_model *m = NULL;
    dsv4_error err = {""};
    check(run("bench", "--model", NANO, "--engine", name, "--context", "40,9,40", "--decode", "2",
              "--repeat", "2", "--json", in("b.json"), NULL),
          0, "plain reads", "experts");
    json_t *root = results_of("b.json");
    assert_string_equal(text_at(root, NULL, "schema"), "dsv4check-bench-1");
    assert_string_equal(text_at(root, NULL, "engine"), name);
    assert_int_equal(number_at(root, NULL, "repeat"), 2);
    const json_t *contexts = json_object_get(root, "contexts");
    assert_int_equal(json_array_size(contexts), 2);
    assert_int_equal(number_at(json_array_get(contexts, 0), NULL, "context"), 9);
    assert_int_equal(number_at(json_array_get(contexts, 1), NULL, "context"), 40);
    check_counts(root);
    assert_int_equal(dsv4_model_open(NANO, &m, &err), DSV4_OK);
    double rows = real_at(json_object_get(json_array_get(contexts, 1), "decode"), NULL, "kv_bytes");
    assert_true(rows == nano_rows(&m->config, 41));
    dsv4_model_close(m);
    json_decref(root);
}

static void test_bench(void **state)
{
    (void)state;
    check_engine("ref");
    check_engine("cpu");
    if (!fast())
        check_engine("cpu:scalar");
}

static void test_bench_usage(void **state)
{
    (void)state;
    check(run("bench", "--model", STRESS, "--context", "8,,9", NULL), 2, "found '8,,9'", NULL);
    check(run("bench", "--model", STRESS, "--context", "8,", NULL), 2, "found '8,'", NULL);
    check(run("bench", "--model", STRESS, "--context", "", NULL), 2, "found ''", NULL);
    check(run("bench", "--model", STRESS, "--context", "0", NULL), 2, "found '0'", NULL);
    check(run("bench", "--model", STRESS, "--context", "8", "--prefill", "9", NULL), 2,
          "exclude each other", NULL);
    check(run("bench", "--model", STRESS, "--context", "1000000000", NULL), 2, "found 1000000000",
          NULL);
    check(run("bench", "--model", STRESS, "--repeat", "1000", NULL), 2, "at most 101", NULL);
    check(run("bench", "--model", STRESS, "--context", "8", "--decode", "1", "--repeat", "1",
              "--json", in("none/b.json"), NULL),
          3, "none/b.json", NULL);
    assert_false(exists("none/b.json"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels),
        cmocka_unit_test(test_bench),
        cmocka_unit_test(test_bench_usage),
    };
    return cmocka_run_group_tests(tests, cli_setup, cli_teardown);
}
