/* test_reports.c - text, JSON and JUnit of one results model; broken text, numbers and streams. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "reports/reports.h"

static char folder[] = "/tmp/dsv4-reports-XXXXXX";

/* A copy for a field that results_free() frees. */
static char *copy(const char *s)
{
    char *out = malloc(strlen(s) + 1);
    assert_non_null(out);
    return strcpy(out, s);
}

static result *add(results *r, const char *name, int layer, dsv4_tap_id tap, const char *block,
                   verdict v, double rel_l2)
{
    result *item = results_add(r, name, layer, tap);
    assert_non_null(item);
    item->block = block;
    item->verdict = v;
    item->n = 96;
    item->rows = 6;
    item->rel_l2 = rel_l2;
    item->budget = 1e-5;
    item->budget_fail = 1e-4;
    item->cosine = 1;
    item->max_abs = rel_l2 * 2;
    item->reason = "4 x the noise of float32 sums";
    return item;
}

static void fill_header(results *r)
{
    results_init(r);
    r->command = "layers";
    r->argv = copy("dsv4check layers --model nano");
    r->model = copy("models/nano");
    r->engine = copy("ref");
    r->numerics = copy("math");
    r->mode = copy("free");
    r->seconds = 1.5;
    r->cases = 2;
    assert_true(results_add_vectors(r, "nano.h5", "00ff", "transformers 5"));
}

/* A run that passes. */
static void fill_passing(results *r)
{
    fill_header(r);
    add(r, "ctx00001", 0, DSV4_TAP_Q, "attention", VERDICT_PASS, 1e-7);
    add(r, "ctx00001", 1, DSV4_TAP_Q, "attention", VERDICT_PASS, 3e-7);
    add(r, "ctx00130", 1, DSV4_TAP_INDEXER_TOPK, "indexer", VERDICT_PASS, 0)->ties = 2;
    add(r, "ctx00130", -1, DSV4_TAP_LOGITS, "head", VERDICT_MARGINAL, 2e-5);
    add(r, "ctx00130", -1, DSV4_TAP_MTP_LOGITS, "mtp", VERDICT_SKIPPED, 0)->reason = "no MTP";
    results_finish(r);
}

/* A run that fails, with everything that can break a report. */
static void fill_failing(results *r)
{
    fill_header(r);
    r->engine[0] = '\xff'; /* not UTF-8 */
    add(r, "ctx00001", 0, DSV4_TAP_Q, "attention", VERDICT_PASS, 1e-7);
    result *item = add(r, "ctx<&\"'>\x01\x1b[31m", 2, DSV4_TAP_COMPRESSED_KV, "compressor",
                       VERDICT_FAIL, 0.25);
    item->max_position = 31;
    item->max_index = 17;
    item->expected = 0.5;
    item->actual = -0.125;
    item->nonfinite = 3;
    item->note = copy("only the last 64 columns differ ]]> & more");
    item->replay = copy("dsv4check layers --case 'ctx<&\"' --taps compressed_kv");
    item = add(r, "ctx00130", 3, DSV4_TAP_STREAMS, "mhc", VERDICT_FAIL, NAN);
    item->max_abs = INFINITY;
    item->expected = -INFINITY;
    item->actual = NAN;
    for (int i = 0; i < 25; i++)
        assert_true(results_missing(r, "ctx00130/layers/%d/o_lora", i));
    assert_true(results_note(r, "a note of many words that is longer than a line of one hundred "
                                "columns and so must be broken somewhere"));
    results_finish(r);
}

static char *written(bool (*writer)(FILE *, const results *), const results *r)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    assert_non_null(out);
    assert_true(writer(out, r));
    fclose(out);
    return text;
}

static bool text_long(FILE *out, const results *r)
{
    return report_text(out, r, false);
}

static bool text_quiet(FILE *out, const results *r)
{
    return report_text(out, r, true);
}

static void assert_has(const char *text, const char *what)
{
    if (!strstr(text, what))
        fail_msg("expected \"%s\" in:\n%s", what, text);
}

/* ---- text ----------------------------------------------------------------------------------- */

/* No line but a command line is longer than 100 columns, nothing drives the terminal. */
static void assert_fits(const char *text)
{
    for (const char *line = text; *line;) {
        size_t n = strcspn(line, "\n"), columns = 0;
        for (size_t i = 0; i < n; i++) {
            assert_true((unsigned char)line[i] >= 0x20);
            columns += ((unsigned char)line[i] & 0xc0) != 0x80;
        }
        if (columns > 100 && strncmp(line, "replay:", 7) != 0)
            fail_msg("a line of %zu columns: %.*s", columns, (int)n, line);
        line += n + (line[n] == '\n');
    }
}

static void test_text_pass(void **state)
{
    results r;
    (void)state;
    fill_passing(&r);
    char *text = written(text_long, &r);
    assert_fits(text);
    assert_has(text, "dsv4check layers: model models/nano, engine ref, numerics math, mode free");
    assert_has(text, "vectors nano.h5, made by transformers 5");
    assert_has(text, "\nq                 attention");
    assert_has(text, "3.00e-07");
    assert_has(text, "ctx00001 layer 1");
    assert_has(text, "2 ties");
    assert_has(text, "MARGINAL: 4 comparisons in 2 cases, 1 marginal, 1 skipped, 1.5 s\n");
    assert_null(strstr(text, "divergence"));
    assert_true(strstr(text, "\nq  ") < strstr(text, "\nindexer_topk"));
    free(text);
    text = written(text_quiet, &r);
    assert_string_equal(text, "MARGINAL: 4 comparisons in 2 cases, 1 marginal, 1 skipped, 1.5 s\n");
    free(text);
    results_free(&r);
}

static void test_text_fail(void **state)
{
    results r;
    (void)state;
    fill_failing(&r);
    char *text = written(text_long, &r);
    assert_fits(text);
    assert_has(text, "FAIL: 3 comparisons in 2 cases, 2 failed, 1.5 s\n");
    assert_has(text,
               "first divergence: layer 2 compressed_kv, block compressor, case ctx<&\"'>??[31m,");
    assert_has(
        text,
        " row 31 index 17:\n  expected 0.5, got -0.125, relative L2 0.25 against budget 1e-05,");
    assert_has(text, "\n  only the last 64 columns differ");
    assert_has(text, "engine ?ef");
    assert_has(text, "replay: dsv4check layers --case 'ctx<&\"' --taps compressed_kv\n");
    assert_has(text, "missing on the engine's side: 25\n");
    assert_has(text, "ctx00130/layers/19/o_lora\n");
    assert_has(text, "and 5 more\n");
    assert_null(strstr(text, "layers/20/"));
    free(text);
    text = written(text_quiet, &r);
    assert_memory_equal(text, "FAIL: ", 6);
    assert_has(text, "first divergence: layer 2");
    assert_null(strstr(text, "missing"));
    free(text);
    results_free(&r);
}

static void test_text_nothing(void **state)
{
    results r;
    (void)state;
    results_init(&r);
    results_finish(&r);
    char *text = written(text_long, &r);
    assert_has(text, "NOTHING COMPARED: 0 comparisons in 0 cases");
    free(text);
    results_free(&r);
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static json_t *parsed(const results *r)
{
    json_error_t error;
    char *text = written(report_json, r);
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        fail_msg("line %d: %s", error.line, error.text);
    free(text);
    return root;
}

static const char *string_at(json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    assert_non_null(s);
    return s;
}

static int64_t integer_at(json_t *object, const char *key)
{
    assert_true(json_is_integer(json_object_get(object, key)));
    return json_integer_value(json_object_get(object, key));
}

static void assert_real(json_t *object, const char *key, double value)
{
    assert_true(json_is_real(json_object_get(object, key)));
    assert_true(fabs(json_real_value(json_object_get(object, key)) - value) <= 1e-8 * fabs(value));
}

static void test_json_pass(void **state)
{
    results r;
    (void)state;
    fill_passing(&r);
    json_t *root = parsed(&r), *counts = json_object_get(root, "counts");
    assert_string_equal(string_at(root, "schema"), "dsv4check-results-1");
    assert_string_equal(string_at(root, "version"), DSV4_VERSION);
    assert_string_equal(string_at(root, "command"), "layers");
    assert_string_equal(string_at(root, "argv"), "dsv4check layers --model nano");
    assert_string_equal(string_at(root, "verdict"), "marginal");
    assert_string_equal(string_at(root, "model"), "models/nano");
    assert_string_equal(string_at(root, "engine"), "ref");
    assert_string_equal(string_at(root, "numerics"), "math");
    assert_string_equal(string_at(root, "mode"), "free");
    assert_real(root, "seconds", 1.5);
    json_t *vectors = json_array_get(json_object_get(root, "vectors"), 0);
    assert_string_equal(string_at(vectors, "file"), "nano.h5");
    assert_string_equal(string_at(vectors, "sha256"), "00ff");
    assert_string_equal(string_at(vectors, "producer"), "transformers 5");
    assert_int_equal(integer_at(counts, "cases"), 2);
    assert_int_equal(integer_at(counts, "comparisons"), 4);
    assert_int_equal(integer_at(counts, "pass"), 3);
    assert_int_equal(integer_at(counts, "marginal"), 1);
    assert_int_equal(integer_at(counts, "fail"), 0);
    assert_int_equal(integer_at(counts, "skipped"), 1);
    assert_int_equal(integer_at(counts, "waived"), 0);
    assert_true(json_is_null(json_object_get(root, "first_divergence")));
    json_t *worst = json_object_get(root, "worst");
    assert_string_equal(string_at(worst, "case"), "ctx00130");
    assert_string_equal(string_at(worst, "tap"), "logits");
    assert_true(json_is_null(json_object_get(worst, "layer")));
    assert_real(worst, "rel_l2", 2e-5);
    assert_real(worst, "budget", 1e-5);
    json_t *list = json_object_get(root, "results");
    assert_int_equal(json_array_size(list), 5);
    json_t *item = json_array_get(list, 1);
    assert_string_equal(string_at(item, "case"), "ctx00001");
    assert_int_equal(integer_at(item, "layer"), 1);
    assert_string_equal(string_at(item, "tap"), "q");
    assert_string_equal(string_at(item, "block"), "attention");
    assert_int_equal(integer_at(item, "n"), 96);
    assert_int_equal(integer_at(item, "nonfinite"), 0);
    assert_real(item, "rel_l2", 3e-7);
    assert_real(item, "budget_fail", 1e-4);
    assert_string_equal(string_at(item, "verdict"), "pass");
    assert_true(json_is_null(json_object_get(item, "replay")));
    assert_int_equal(integer_at(json_array_get(list, 2), "ties"), 2);
    json_decref(root);
    results_free(&r);
}

static void test_json_fail(void **state)
{
    results r;
    (void)state;
    fill_failing(&r);
    json_t *root = parsed(&r), *first = json_object_get(root, "first_divergence");
    assert_string_equal(string_at(root, "verdict"), "fail");
    assert_string_equal(string_at(root, "engine"), "\xef\xbf\xbd"
                                                   "ef");
    assert_string_equal(string_at(first, "case"), "ctx<&\"'>\x01\x1b[31m");
    assert_int_equal(integer_at(first, "layer"), 2);
    assert_string_equal(string_at(first, "tap"), "compressed_kv");
    assert_string_equal(string_at(first, "block"), "compressor");
    assert_int_equal(integer_at(first, "position"), 31);
    assert_int_equal(integer_at(first, "index"), 17);
    assert_real(first, "expected", 0.5);
    assert_real(first, "actual", -0.125);
    assert_real(first, "rel_l2", 0.25);
    assert_real(first, "budget", 1e-5);
    assert_string_equal(string_at(first, "reason"), "4 x the noise of float32 sums");
    assert_non_null(strstr(string_at(first, "replay"), "--taps compressed_kv"));
    json_t *item = json_array_get(json_object_get(root, "results"), 2);
    assert_string_equal(string_at(item, "rel_l2"), "nan");
    assert_string_equal(string_at(item, "max_abs"), "inf");
    assert_string_equal(string_at(json_object_get(item, "max_at"), "expected"), "-inf");
    item = json_array_get(json_object_get(root, "results"), 1);
    assert_int_equal(integer_at(json_object_get(item, "max_at"), "position"), 31);
    assert_int_equal(integer_at(json_object_get(item, "max_at"), "index"), 17);
    assert_int_equal(json_array_size(json_object_get(root, "missing")), 25);
    assert_int_equal(json_array_size(json_object_get(root, "notes")), 1);
    json_decref(root);
    results_free(&r);
}

static void test_json_nothing(void **state)
{
    results r;
    (void)state;
    results_init(&r);
    results_finish(&r);
    json_t *root = parsed(&r);
    assert_true(json_is_null(json_object_get(root, "worst")));
    assert_true(json_is_null(json_object_get(root, "model")));
    assert_int_equal(integer_at(json_object_get(root, "counts"), "comparisons"), 0);
    json_decref(root);
    results_free(&r);
}

/* ---- JUnit ---------------------------------------------------------------------------------- */

/* Checks that elements nest and close, attributes are quoted, & starts an entity, and no character
 * is one that XML forbids. Counts the elements named `name`. */
static size_t check_xml(const char *text, const char *name)
{
    const char *open[16];
    size_t depth = 0, count = 0, roots = 0;
    for (const char *p = text; *p;) {
        unsigned char c = (unsigned char)*p;
        if (c < 0x20 && c != '\n' && c != '\t')
            fail_msg("control character %d", c);
        if (c == '&') {
            const char *end = strchr(p, ';');
            assert_true(end && end - p <= 6);
            p = end + 1;
        } else if (c != '<') {
            p++;
        } else if (p[1] == '?') {
            assert_ptr_equal(p, text);
            p = strstr(p, "?>") + 2;
        } else if (p[1] == '/') {
            size_t n = strcspn(p + 2, ">");
            assert_true(depth > 0);
            depth--;
            assert_memory_equal(open[depth], p + 2, n);
            p += n + 3;
        } else {
            size_t n = strcspn(p + 1, " />\n");
            const char *tag = p + 1;
            count += n == strlen(name) && memcmp(tag, name, n) == 0;
            for (p = tag + n; *p == ' ';) { /* name="value" */
                p = strchr(p, '"');
                assert_non_null(p);
                size_t length = strcspn(p + 1, "\"<");
                p += length + 2;
                assert_true(p[-1] == '"');
            }
            roots += depth == 0;
            if (*p == '/')
                p++;
            else
                open[depth++] = tag;
            assert_true(*p == '>' && depth < 16);
            p++;
        }
    }
    assert_int_equal(depth, 0);
    assert_int_equal(roots, 1);
    return count;
}

static void test_junit(void **state)
{
    results r;
    (void)state;
    fill_passing(&r);
    char *text = written(report_junit, &r);
    assert_int_equal(check_xml(text, "testsuite"), 2);
    assert_int_equal(check_xml(text, "testcase"), 5);
    assert_int_equal(check_xml(text, "failure"), 0);
    assert_int_equal(check_xml(text, "skipped"), 1);
    assert_has(text, "<testsuites name=\"dsv4check\" tests=\"5\" failures=\"0\" errors=\"0\" "
                     "skipped=\"1\" time=\"1.500\">");
    assert_has(text, "<testcase classname=\"ctx00001\" name=\"layers/1/q\" time=\"0\"/>");
    assert_has(text, "<testcase classname=\"ctx00130\" name=\"mtp/logits\" time=\"0\">");
    assert_has(text, "<skipped message=\"no MTP\"/>");
    free(text);
    results_free(&r);

    fill_failing(&r);
    text = written(report_junit, &r);
    assert_int_equal(check_xml(text, "failure"), 2);
    assert_int_equal(check_xml(text, "testsuite"), 3);
    assert_has(text, "ctx&lt;&amp;&quot;'&gt;\xef\xbf\xbd\xef\xbf\xbd[31m");
    assert_has(text, "message=\"relative L2 0.25 against budget 1e-05, 3 elements not finite");
    assert_has(text, "]]&gt; &amp; more");
    assert_has(text, "replay: dsv4check layers");
    assert_has(text, "relative L2 nan");
    free(text);
    results_free(&r);

    results_init(&r);
    results_finish(&r);
    text = written(report_junit, &r);
    assert_int_equal(check_xml(text, "testsuite"), 0);
    free(text);
}

/* The same through a parser of its own, where there is one. */
static void test_junit_xmllint(void **state)
{
    char path[80], command[160];
    results r;
    dsv4_error err;
    (void)state;
    if (system("xmllint --version >/dev/null 2>&1") != 0)
        skip();
    snprintf(path, sizeof path, "%s/junit.xml", folder);
    snprintf(command, sizeof command, "xmllint --noout '%s'", path);
    fill_failing(&r);
    assert_int_equal(report_to_file(path, report_junit, &r, &err), DSV4_OK);
    assert_int_equal(system(command), 0);
    unlink(path);
    results_free(&r);
}

/* ---- files ---------------------------------------------------------------------------------- */

static void test_full_disk(void **state)
{
    bool (*const writers[])(FILE *, const results *) = {text_long, text_quiet, report_json,
                                                        report_junit};
    results r;
    (void)state;
    if (access("/dev/full", W_OK) != 0)
        skip();
    fill_failing(&r);
    for (size_t i = 0; i < sizeof writers / sizeof writers[0]; i++) {
        FILE *full = fopen("/dev/full", "w");
        assert_non_null(full);
        assert_false(writers[i](full, &r));
        fclose(full);
    }
    results_free(&r);
}

static bool broken_writer(FILE *out, const results *r)
{
    (void)r;
    fputs("half", out);
    return false;
}

static void test_files(void **state)
{
    char path[80], temporary[90], inside[100];
    dsv4_error err = {{0}};
    results r;
    (void)state;
    snprintf(path, sizeof path, "%s/out.json", folder);
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    snprintf(inside, sizeof inside, "%s/absent/out.json", folder);
    fill_passing(&r);
    assert_int_equal(report_to_file(path, report_json, &r, &err), DSV4_OK);
    json_t *root = json_load_file(path, 0, NULL);
    assert_non_null(root);
    json_decref(root);
    assert_int_equal(access(temporary, F_OK), -1);

    /* A failing writer leaves the older report as it was. */
    assert_int_equal(report_to_file(path, broken_writer, &r, &err), DSV4_E_MACHINE);
    assert_non_null(strstr(err.text, path));
    assert_int_equal(access(temporary, F_OK), -1);
    root = json_load_file(path, 0, NULL);
    assert_non_null(root);
    json_decref(root);
    assert_int_equal(unlink(path), 0);

    /* A full disk: the temporary file is a link to the device. */
    if (access("/dev/full", W_OK) == 0) {
        assert_int_equal(symlink("/dev/full", temporary), 0);
        assert_int_equal(report_to_file(path, report_json, &r, &err), DSV4_E_MACHINE);
        assert_non_null(strstr(err.text, "No space left"));
        assert_int_equal(access(path, F_OK), -1);
    }
    assert_int_equal(report_to_file(inside, report_json, &r, &err), DSV4_E_MACHINE);
    assert_non_null(strstr(err.text, inside));
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(report_to_file(path, report_json, &r, &err), DSV4_E_MACHINE);
    assert_int_equal(access(temporary, F_OK), -1);
    assert_int_equal(rmdir(path), 0);
    results_free(&r);
}

static void test_no_memory(void **state)
{
    char path[80];
    results r;
    dsv4_status status = DSV4_E_MACHINE;
    long n = 0;
    (void)state;
    snprintf(path, sizeof path, "%s/out.json", folder);
    fill_failing(&r);
    while (status != DSV4_OK && n < 1000) {
        dsv4_error err;
        dsv4_alloc_fail_at(++n);
        status = report_to_file(path, report_json, &r, &err);
        dsv4_alloc_fail_at(0);
        assert_true(status == DSV4_OK || status == DSV4_E_MACHINE);
        assert_int_equal(access(path, F_OK), status == DSV4_OK ? 0 : -1);
    }
    assert_true(n > 10 && n < 1000);
    unlink(path);
    results_free(&r);
}

static int setup(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_pass),    cmocka_unit_test(test_text_fail),
        cmocka_unit_test(test_text_nothing), cmocka_unit_test(test_json_pass),
        cmocka_unit_test(test_json_fail),    cmocka_unit_test(test_json_nothing),
        cmocka_unit_test(test_junit),        cmocka_unit_test(test_junit_xmllint),
        cmocka_unit_test(test_full_disk),    cmocka_unit_test(test_files),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
