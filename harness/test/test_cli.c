/* test_cli.c - the program as scripts see it: exit codes, one line on stderr, JSON and JUnit, for
 * good golden files and for every way in which one can be bad. */
#include "cli.h"

#define RUN_CASE(vectors) "layers", "--model", STRESS, "--vectors", vectors, "--case", CASE
#define TAP(name) "/cases/" CASE "/" name

/* A fresh copy of the golden file to spoil. */
static const char *copy_golden(void)
{
    copy_file(GOLDEN, "g.h5", SIZE_MAX);
    return in("g.h5");
}

/* ---- a good file ----------------------------------------------------------------------------- */

static void check_result(const json_t *r)
{
    static const char *const keys[] = {"case",   "layer",   "tap",     "block",  "n",
                                       "rel_l2", "max_abs", "max_at",  "cosine", "nonfinite",
                                       "budget", "reason",  "verdict", "replay"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (json_object_get(r, keys[i]) == NULL)
            fail_msg("a result without %s", keys[i]);
    assert_string_equal(text_at(r, NULL, "case"), CASE);
    assert_string_equal(text_at(r, NULL, "verdict"), "pass");
    const json_t *layer = json_object_get(r, "layer");
    dsv4_tap_id id;
    assert_true(dsv4_tap_parse(text_at(r, NULL, "tap"), &id));
    assert_int_equal(json_is_null(layer), id >= DSV4_TAP_HEAD_COLLAPSED);
    assert_true(strlen(text_at(r, NULL, "reason")) > 0);
    assert_non_null(strstr(text_at(r, NULL, "replay"), "--case '" CASE "'"));
}

static void test_pass(void **state)
{
    (void)state;
    check(run(RUN_CASE(GOLDEN), "--json", in("r.json"), "--junit", in("r.xml"), NULL), 0, "PASS",
          "in 1 case");
    json_t *root = results_of("r.json");
    assert_string_equal(text_at(root, NULL, "schema"), "dsv4check-results-1");
    assert_string_equal(text_at(root, NULL, "version"), DSV4_VERSION);
    assert_string_equal(text_at(root, NULL, "command"), "layers");
    assert_non_null(strstr(text_at(root, NULL, "argv"), "--case " CASE));
    assert_string_equal(text_at(root, NULL, "verdict"), "pass");
    assert_string_equal(text_at(root, NULL, "model"), STRESS);
    assert_string_equal(text_at(root, NULL, "engine"), "ref");
    assert_string_equal(text_at(root, NULL, "numerics"), "math");
    assert_string_equal(text_at(root, NULL, "mode"), "free");
    assert_true(json_real_value(json_object_get(root, "seconds")) > 0);
    const json_t *vectors = json_array_get(json_object_get(root, "vectors"), 0);
    assert_string_equal(text_at(vectors, NULL, "file"), GOLDEN);
    assert_int_equal(strlen(text_at(vectors, NULL, "sha256")), 64);
    assert_non_null(strstr(text_at(vectors, NULL, "producer"), "transformers"));
    const json_t *list = json_object_get(root, "results");
    size_t n = json_array_size(list);
    assert_true(n > 90);
    assert_int_equal(number_at(root, "counts", "cases"), 1);
    assert_int_equal(number_at(root, "counts", "comparisons"), n);
    assert_int_equal(number_at(root, "counts", "pass"), n);
    assert_int_equal(number_at(root, "counts", "marginal"), 0);
    assert_int_equal(number_at(root, "counts", "fail"), 0);
    assert_int_equal(number_at(root, "counts", "skipped"), 0);
    assert_int_equal(number_at(root, "counts", "waived"), 0);
    assert_true(json_is_null(json_object_get(root, "first_divergence")));
    assert_string_equal(text_at(root, "worst", "case"), CASE);
    for (size_t i = 0; i < n; i++)
        check_result(json_array_get(list, i));
    json_decref(root);
}

/* Tags nest, attributes are quoted, '&' begins an entity: enough for what a writer can get wrong.
 */
static void assert_well_formed(const char *xml, size_t *elements)
{
    char open[16][32];
    int depth = 0;
    *elements = 0;
    for (const char *p = xml; *p != '\0';) {
        if (*p == '&') {
            assert_true(strchr(p, ';') != NULL && strchr(p, ';') - p < 8);
        } else if (strncmp(p, "<?", 2) == 0) {
            p = strstr(p, "?>");
            assert_non_null(p);
        } else if (*p == '<') {
            bool closes = p[1] == '/';
            size_t length = strcspn(p + 1 + closes, " />\n\t");
            assert_true(length > 0 && length < 32);
            if (closes) {
                depth--;
                assert_true(depth >= 0 && strncmp(open[depth], p + 2, length) == 0);
            } else {
                assert_true(depth < 16);
                memcpy(open[depth], p + 1, length);
                open[depth++][length] = '\0';
                ++*elements;
            }
            bool quoted = false;
            for (; *p != '\0' && (quoted || *p != '>'); p++) {
                quoted ^= *p == '"';
                assert_false(quoted && *p == '<');
            }
            assert_true(*p == '>' && !quoted);
            if (!closes && p[-1] == '/')
                depth--;
        }
        p += *p != '\0';
    }
    assert_int_equal(depth, 0);
}

static void test_junit(void **state)
{
    size_t bytes, passing, failing;
    (void)state;
    const char *g = copy_golden();
    h5_change("g.h5", TAP("layers/2/q"), 3, 100);
    check(run(RUN_CASE(GOLDEN), "--taps", "q", "--junit", in("pass.xml"), NULL), 0, NULL, NULL);
    check(run(RUN_CASE(g), "--taps", "q", "--junit", in("fail.xml"), NULL), 1, NULL, NULL);
    char *xml = read_file(in("pass.xml"), &bytes);
    assert_well_formed(xml, &passing);
    assert_null(strstr(xml, "<failure"));
    assert_non_null(strstr(xml, "<testsuite"));
    free(xml);
    xml = read_file(in("fail.xml"), &bytes);
    assert_well_formed(xml, &failing);
    assert_non_null(strstr(xml, "<failure"));
    assert_non_null(strstr(xml, "failures=\"1\""));
    free(xml);
}

/* ---- golden values that are wrong ------------------------------------------------------------ */

static void test_changed_value(void **state)
{
    (void)state;
    const char *g = copy_golden();
    float old = h5_change("g.h5", TAP("layers/1/attn_out"), 160 + 7, 9);
    check(run(RUN_CASE(g), "--json", in("r.json"), NULL), 1,
          "first divergence: layer 1 attn_out, block attention", "FAIL");
    json_t *root = results_of("r.json");
    dsv4_error err = {""};
    vec_file *f = NULL;
    assert_int_equal(vec_open(GOLDEN, &f, &err), DSV4_OK);
    assert_string_equal(text_at(root, NULL, "verdict"), "fail");
    assert_int_equal(number_at(root, "counts", "fail"), 1);
    const json_t *d = json_object_get(root, "first_divergence");
    assert_string_equal(text_at(d, NULL, "case"), CASE);
    assert_int_equal(number_at(d, NULL, "layer"), 1);
    assert_string_equal(text_at(d, NULL, "tap"), "attn_out");
    assert_string_equal(text_at(d, NULL, "block"), "attention");
    assert_int_equal(number_at(d, NULL, "position"), vec_case_find(f, CASE)->positions[1]);
    assert_int_equal(number_at(d, NULL, "index"), 7);
    assert_true(json_real_value(json_object_get(d, "expected")) == 9);
    assert_true(fabs(json_real_value(json_object_get(d, "actual")) - (double)old) < 1e-4);
    assert_true(json_real_value(json_object_get(d, "rel_l2")) >
                json_real_value(json_object_get(d, "budget")));
    assert_non_null(strstr(text_at(d, NULL, "replay"), "--taps 'attn_out'"));
    vec_close(f);
    json_decref(root);
    /* The replay line's filter finds the same. */
    check(run(RUN_CASE(g), "--taps", "attn_out", NULL), 1, "layer 1 attn_out", "1 failed");
}

static void test_first_of_several(void **state)
{
    (void)state;
    const char *g = copy_golden();
    h5_change("g.h5", TAP("logits"), 0, 1e6f);
    h5_change("g.h5", TAP("layers/3/hc_attn_post"), 0, 1e6f);
    h5_change("g.h5", TAP("layers/2/streams"), 0, 50);
    check(run(RUN_CASE(g), NULL), 1, "first divergence: layer 2 streams, block mhc", "3 failed");
}

static void test_nan(void **state)
{
    (void)state;
    const char *g = copy_golden();
    h5_change("g.h5", TAP("logits"), 11, NAN);
    check(run(RUN_CASE(g), "--json", in("r.json"), NULL), 1, "logits", "FAIL");
    json_t *root = results_of("r.json");
    assert_int_equal(number_at(root, "counts", "fail"), 1);
    assert_string_equal(text_at(root, "first_divergence", "tap"), "logits");
    assert_int_equal(number_at(root, "first_divergence", "index"), 11);
    assert_string_equal(text_at(root, "first_divergence", "expected"), "nan");
    assert_string_equal(text_at(root, "first_divergence", "rel_l2"), "inf");
    json_decref(root);
}

/* A choice that golden did not make: experts are looked up in layer 0, scored in layer 3. */
static void test_changed_choice(void **state)
{
    (void)state;
    const char *g = copy_golden();
    for (int layer = 0; layer <= 3; layer += 3) {
        char name[64];
        snprintf(name, sizeof name, TAP("layers/%d/router_experts"), layer);
        h5_change("g.h5", name, 0, 99);
    }
    check(run(RUN_CASE(g), "--taps", "router_experts", NULL), 1,
          "first divergence: layer 0 router_experts, block hash", "2 failed");
}

/* ---- golden files that are bad ----------------------------------------------------------------
 */

static void test_wrong_shape(void **state)
{
    (void)state;
    static const struct {
        const char *dataset;
        int ndim;
        hsize_t dims[3];
        bool integers;
        const char *says;
    } bad[] = {
        {TAP("layers/1/kv"), 2, {3, 191}, false, "expected [192] values per position"},
        {TAP("layers/1/attn_heads"), 3, {3, 192, 6}, false, "found [192][6]"},
        {TAP("layers/1/kv"), 2, {2, 192}, false, "found [2][192]"},
        {TAP("layers/1/kv"), 1, {576}, false, "found [576]"},
        {TAP("layers/1/kv"), 2, {3, 192}, true, "expected floats, found integers"},
        {TAP("layers/2/router_experts"), 2, {3, 2}, false, "expected integers, found floats"},
        {TAP("layers/2/router_experts"), 2, {3, 3}, true, "expected [2] values"},
        {TAP("logits"), 2, {3, 249}, false, "expected [250] values"},
        {TAP("tokens"), 1, {4}, true, "tokens"},
    };
    for (size_t i = 0; i < (fast() ? 3 : sizeof bad / sizeof *bad); i++) {
        const char *g = copy_golden();
        h5_reshape("g.h5", bad[i].dataset, bad[i].integers ? H5T_STD_I32LE : H5T_IEEE_F32LE,
                   bad[i].ndim, bad[i].dims);
        int code = run(RUN_CASE(g), NULL);
        check(code, 2, "g.h5: ", bad[i].dataset);
        check(code, 2, bad[i].says, NULL);
    }
}

static void test_missing_tap(void **state)
{
    (void)state;
    check(run(RUN_CASE(GOLDEN), "--json", in("all.json"), NULL), 0, NULL, NULL);
    const char *g = copy_golden();
    h5_delete("g.h5", TAP("layers/2/q"));
    check(run(RUN_CASE(g), "--json", in("less.json"), NULL), 0, "PASS", NULL);
    json_t *all = results_of("all.json"), *less = results_of("less.json");
    assert_int_equal(number_at(less, "counts", "comparisons"),
                     number_at(all, "counts", "comparisons") - 1);
    json_decref(all);
    json_decref(less);
    h5_delete("g.h5", TAP("layers"));
    h5_delete("g.h5", TAP("logits"));
    h5_delete("g.h5", TAP("final_norm"));
    h5_delete("g.h5", TAP("head_collapsed"));
    check(run(RUN_CASE(g), "--json", in("none.json"), NULL), 2, "nothing was compared", NULL);
    json_t *none = results_of("none.json");
    assert_int_equal(number_at(none, "counts", "comparisons"), 0);
    json_decref(none);
}

static void test_weights_hash(void **state)
{
    (void)state;
    const char *g = copy_golden();
    h5_attribute("g.h5", "weights_sha256",
                 "0000000000000000000000000000000000000000000000000000000000000000");
    check(run(RUN_CASE(g), NULL), 2, "g.h5: weights_sha256: expected", "found 0000");
    check(run(RUN_CASE(g), "--same-weights", NULL), 0, "PASS", NULL);
    h5_attribute("g.h5", "weights_sha256", NULL);
    check(run(RUN_CASE(g), NULL), 2, "weights_sha256", "found nothing");
}

static void test_attributes(void **state)
{
    (void)state;
    const char *g = copy_golden();
    h5_attribute("g.h5", "numerics", "guessed");
    check(run(RUN_CASE(g), NULL), 2, "attribute numerics", "found 'guessed'");
    check(run(RUN_CASE(g), "--numerics", "math", NULL), 0, NULL, NULL);
    h5_attribute("g.h5", "config", "{\"vocab_size\": 3}");
    check(run(RUN_CASE(g), NULL), 2, "g.h5: attribute config: hidden_size", "found nothing");
    h5_attribute("g.h5", "config", "{");
    check(run(RUN_CASE(g), NULL), 2, "g.h5: attribute config: line 1", NULL);
    h5_attribute("g.h5", "config", NULL);
    check(run(RUN_CASE(g), NULL), 2, "attribute config", "found nothing");
    h5_attribute("g.h5", "schema", "dsv4-vectors-9");
    check(run(RUN_CASE(g), NULL), 2, "g.h5", "dsv4-vectors-9");
}

static void test_other_model(void **state)
{
    (void)state;
    check(run("layers", "--model", STRESS, "--vectors", DSV4_VECTORS "/nano-hf-f32.h5", NULL), 2,
          "nano-hf-f32.h5: config", "expected the model's");
}

static void test_token_range(void **state)
{
    (void)state;
    const char *g = copy_golden();
    h5_change("g.h5", TAP("tokens"), 2, 250);
    check(run(RUN_CASE(g), NULL), 2, "token 2: id 250", "[0, 250)");
    h5_change("g.h5", TAP("tokens"), 2, -1);
    check(run(RUN_CASE(g), NULL), 2, "g.h5: /cases/" CASE "/tokens", "-1");
}

static void test_no_vector_file(void **state)
{
    (void)state;
    size_t bytes;
    char *data = read_file(GOLDEN, &bytes);
    const size_t cut[] = {0, 7, 100, bytes / 2, bytes - 1};
    for (size_t i = 0; i < sizeof cut / sizeof *cut; i++) {
        write_file("cut.h5", data, cut[i]);
        check(run(RUN_CASE(in("cut.h5")), NULL), 2, "cut.h5: ", NULL);
    }
    free(data);
    check(run(RUN_CASE(in("none.h5")), NULL), 2, "none.h5: ", "No such file");
    check(run(RUN_CASE(STRESS "/config.json"), NULL), 2, "config.json: ", NULL);
    check(run(RUN_CASE(folder), NULL), 2, folder, NULL);
}

/* ---- the command line ------------------------------------------------------------------------ */

static void test_filters(void **state)
{
    (void)state;
    check(run("layers", "--model", STRESS, "--vectors", GOLDEN, "--case", "ctx9*", NULL), 2,
          "nothing was compared", NULL);
    check(run(RUN_CASE(GOLDEN), "--taps", "colour*", NULL), 2, "nothing was compared", NULL);
    check(run("diff", GOLDEN, GOLDEN, "--case", "ctx9*", NULL), 2, "nothing was compared", NULL);
    check(run("diff", GOLDEN, GOLDEN, "--taps", "colour*", NULL), 2, "nothing was compared", NULL);
    check(run(RUN_CASE(GOLDEN), "--taps", "hc_*", "--quiet", NULL), 0, "PASS: 24 comparisons",
          NULL);
    check(run(RUN_CASE(GOLDEN), "--taps", "router_weights", "--quiet", NULL), 0,
          "PASS: 4 comparisons", NULL);
}

static void test_usage(void **state)
{
    (void)state;
    check(run("bogus", NULL), 2, "unknown command 'bogus'", NULL);
    check(run("layers", NULL), 2, "layers needs --vectors", NULL);
    check(run("layers", "--vectors", GOLDEN, NULL), 2, "layers needs --model", NULL);
    check(run("layers", "--bogus", NULL), 2, "layers does not know --bogus", NULL);
    check(run("layers", "-xy", NULL), 2, "layers does not know -x", NULL);
    check(run("layers", "--quiet=1", NULL), 2, "layers does not know --quiet=1", NULL);
    check(run("layers", "--out", "x", NULL), 2, "layers does not know", NULL);
    check(run("layers", "--vectors", NULL), 2, "--vectors needs a value", NULL);
    check(run(RUN_CASE(GOLDEN), "more", NULL), 2, "layers takes no operand, found 'more'", NULL);
    check(run(RUN_CASE(GOLDEN), "--threads", "0", NULL), 2, "--threads", "found '0'");
    check(run(RUN_CASE(GOLDEN), "--chunk", "1x", NULL), 2, "--chunk", "found '1x'");
    check(run(RUN_CASE(GOLDEN), "--numerics", "exact", NULL), 2, "--numerics", "found 'exact'");
    check(run(RUN_CASE(GOLDEN), "--mode", "odd", NULL), 2, "--mode", "found 'odd'");
    check(run(RUN_CASE(GOLDEN), "--engine", "abacus", NULL), 2, "--engine", "found 'abacus'");
    check(run(RUN_CASE(GOLDEN), "--budgets", in("none.tsv"), NULL), 2, "none.tsv", "cannot open");
    write_file("bad.tsv", "*\t*\t*\t*\t2\t1\twhy\n", 14);
    check(run(RUN_CASE(GOLDEN), "--budgets", in("bad.tsv"), NULL), 2, "bad.tsv: line 1", NULL);
    write_file("thin.tsv", "kv\t*\t*\t*\t1\t2\twhy\n", 17);
    check(run(RUN_CASE(GOLDEN), "--budgets", in("thin.tsv"), NULL), 2, "no line for tap", NULL);
    check(run("diff", GOLDEN, NULL), 2, "diff needs two files, found 1", NULL);
    check(run("diff", GOLDEN, in("none.h5"), NULL), 2, "none.h5", NULL);
}

/* Every command that the program lists explains itself. */
static void test_help(void **state)
{
    (void)state;
    check(run("--version", NULL), 0, "dsv4check " DSV4_VERSION, NULL);
    check(run("--help", NULL), 0, "usage: dsv4check COMMAND", "exit codes: 0 passed");
    char list[sizeof run_out], name[32], usage[64];
    int commands = 0;
    strcpy(list, run_out);
    for (char *line = strchr(list, '\n'); line != NULL; line = strchr(line + 1, '\n'))
        if (sscanf(line, "\n  %31[a-z]", name) == 1 && strncmp(line, "\n  ", 3) == 0) {
            snprintf(usage, sizeof usage, "usage: dsv4check %s", name);
            check(run(name, "--help", NULL), 0, usage, NULL);
            assert_ptr_equal(strstr(run_out, usage), run_out);
            commands++;
        }
    assert_true(commands >= 6);
    assert_int_equal(run(NULL), 2); /* no command: the whole usage, on stderr */
    assert_non_null(strstr(run_err, "usage: dsv4check COMMAND"));
}

/* ---- the machine fails ------------------------------------------------------------------------
 */

static void test_unwritable_report(void **state)
{
    (void)state;
    check(run(RUN_CASE(GOLDEN), "--taps", "kv", "--json", in("no/such/r.json"), NULL), 3,
          "no/such/r.json", "No such file");
    check(run(RUN_CASE(GOLDEN), "--taps", "kv", "--junit", in("no/such/r.xml"), NULL), 3,
          "no/such/r.xml", NULL);
    /* Standard output may be full as well; the message on stderr must fit. */
    run_limit = 100;
    int code = run(RUN_CASE(GOLDEN), "--taps", "kv", NULL);
    check(code, 3, "standard output", NULL);
    code = run("list", "taps", NULL);
    check(code, 3, "standard output", NULL);
    run_limit = RLIM_INFINITY;
}

static void test_full_disk(void **state)
{
    (void)state;
    run_limit = 8192;
    int code = run(RUN_CASE(GOLDEN), "--quiet", "--json", in("full.json"), NULL);
    run_limit = RLIM_INFINITY;
    check(code, 3, "full.json: cannot write the report", "File too large");
    assert_false(exists("full.json"));
    assert_false(exists("full.json.tmp"));
    /* What was there before stays. */
    write_file("full.json", "old", 3);
    run_limit = 8192;
    code = run(RUN_CASE(GOLDEN), "--quiet", "--json", in("full.json"), NULL);
    run_limit = RLIM_INFINITY;
    check(code, 3, NULL, NULL);
    size_t bytes;
    char *old = read_file(in("full.json"), &bytes);
    assert_string_equal(old, "old");
    free(old);
}

/* A link (or a device, as /dev/null) is written through, not replaced. */
static void test_report_link(void **state)
{
    (void)state;
    struct stat s;
    assert_int_equal(symlink("target.json", in("link.json")), 0);
    check(run(RUN_CASE(GOLDEN), "--taps", "kv", "--json", in("link.json"), NULL), 0, NULL, NULL);
    assert_int_equal(lstat(in("link.json"), &s), 0);
    assert_true(S_ISLNK(s.st_mode));
    json_decref(results_of("target.json"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pass),
        cmocka_unit_test(test_junit),
        cmocka_unit_test(test_changed_value),
        cmocka_unit_test(test_first_of_several),
        cmocka_unit_test(test_nan),
        cmocka_unit_test(test_changed_choice),
        cmocka_unit_test(test_wrong_shape),
        cmocka_unit_test(test_missing_tap),
        cmocka_unit_test(test_weights_hash),
        cmocka_unit_test(test_attributes),
        cmocka_unit_test(test_other_model),
        cmocka_unit_test(test_token_range),
        cmocka_unit_test(test_no_vector_file),
        cmocka_unit_test(test_filters),
        cmocka_unit_test(test_usage),
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_unwritable_report),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_report_link),
    };
    return cmocka_run_group_tests(tests, cli_setup, cli_teardown);
}
