/* test_results.c - the results model: counts, verdict, worst, first divergence, exit codes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness/harness.h"

static result *add(results *r, const char *name, int layer, dsv4_tap_id tap, verdict v,
                   double rel_l2)
{
    result *item = results_add(r, name, layer, tap);
    assert_non_null(item);
    assert_string_equal(item->case_name, name);
    assert_int_equal(item->n, 0);
    assert_null(item->note);
    item->verdict = v;
    item->rel_l2 = rel_l2;
    item->budget = 1e-3;
    return item;
}

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(verdict_name(VERDICT_PASS), "pass");
    assert_string_equal(verdict_name(VERDICT_MARGINAL), "marginal");
    assert_string_equal(verdict_name(VERDICT_FAIL), "fail");
    assert_string_equal(verdict_name(VERDICT_SKIPPED), "skipped");
}

static void test_nothing_compared(void **state)
{
    results r;
    (void)state;
    results_init(&r);
    results_finish(&r);
    assert_int_equal(results_exit_code(&r), 2);
    assert_null(r.worst);
    add(&r, "a", 0, DSV4_TAP_Q, VERDICT_SKIPPED, 0);
    results_finish(&r);
    assert_int_equal(results_exit_code(&r), 2);
    assert_null(r.worst);
    assert_null(r.first_divergence);
    assert_int_equal(r.verdict, VERDICT_SKIPPED);
    results_free(&r);
}

static void test_verdicts(void **state)
{
    results r;
    (void)state;
    results_init(&r);
    add(&r, "a", 0, DSV4_TAP_Q, VERDICT_PASS, 0);
    add(&r, "a", 0, DSV4_TAP_KV, VERDICT_SKIPPED, 0);
    results_finish(&r);
    assert_int_equal(r.verdict, VERDICT_PASS);
    assert_int_equal(results_exit_code(&r), 0);
    assert_string_equal(r.worst->case_name, "a");
    add(&r, "a", 0, DSV4_TAP_STREAMS, VERDICT_MARGINAL, 2e-3);
    results_finish(&r);
    assert_int_equal(r.verdict, VERDICT_MARGINAL);
    assert_int_equal(results_exit_code(&r), 0);
    add(&r, "a", 1, DSV4_TAP_Q, VERDICT_FAIL, 1);
    results_finish(&r);
    assert_int_equal(r.verdict, VERDICT_FAIL);
    assert_int_equal(results_exit_code(&r), 1);
    assert_int_equal(results_count(&r, VERDICT_PASS), 1);
    assert_int_equal(results_count(&r, VERDICT_MARGINAL), 1);
    assert_int_equal(results_count(&r, VERDICT_FAIL), 1);
    assert_int_equal(results_count(&r, VERDICT_SKIPPED), 1);
    results_free(&r);
    assert_null(r.items);
    assert_int_equal(r.count, 0);
}

/* worst counts budgets, not errors; a budget of 0 and not-a-number are beyond all others. */
static void test_worst(void **state)
{
    results r;
    (void)state;
    results_init(&r);
    add(&r, "a", 0, DSV4_TAP_Q, VERDICT_PASS, 5e-4);
    add(&r, "b", 0, DSV4_TAP_Q, VERDICT_PASS, 5e-3)->budget = 1;
    add(&r, "c", 0, DSV4_TAP_Q, VERDICT_SKIPPED, 7);
    results_finish(&r);
    assert_string_equal(r.worst->case_name, "a");
    add(&r, "d", 0, DSV4_TAP_Q, VERDICT_PASS, 0)->budget = 0;
    results_finish(&r);
    assert_string_equal(r.worst->case_name, "a");
    add(&r, "e", 0, DSV4_TAP_Q, VERDICT_FAIL, NAN);
    results_finish(&r);
    assert_string_equal(r.worst->case_name, "e");
    results_free(&r);

    results_init(&r);
    add(&r, "a", 0, DSV4_TAP_Q, VERDICT_FAIL, 5);
    add(&r, "b", 0, DSV4_TAP_Q, VERDICT_FAIL, 1e-4)->nonfinite = 1;
    results_finish(&r);
    assert_string_equal(r.worst->case_name, "b");
    results_free(&r);
}

/* Whatever the order of arrival: layer, then tap, then the case that came first. */
static void test_first_divergence(void **state)
{
    results r;
    (void)state;
    results_init(&r);
    add(&r, "short", -1, DSV4_TAP_MTP_LOGITS, VERDICT_FAIL, 9);
    results_finish(&r);
    assert_int_equal(r.first_divergence->tap, DSV4_TAP_MTP_LOGITS);
    add(&r, "short", -1, DSV4_TAP_LOGITS, VERDICT_FAIL, 9);
    results_finish(&r);
    assert_int_equal(r.first_divergence->tap, DSV4_TAP_LOGITS);
    add(&r, "short", 40, DSV4_TAP_STREAMS, VERDICT_FAIL, 9);
    results_finish(&r);
    assert_int_equal(r.first_divergence->layer, 40);
    add(&r, "short", 2, DSV4_TAP_STREAMS, VERDICT_FAIL, 9);
    add(&r, "long", 2, DSV4_TAP_COMPRESSED_KV, VERDICT_FAIL, 9);
    add(&r, "longer", 2, DSV4_TAP_COMPRESSED_KV, VERDICT_FAIL, 9);
    add(&r, "longer", 2, DSV4_TAP_Q, VERDICT_MARGINAL, 9);
    add(&r, "longer", 1, DSV4_TAP_Q, VERDICT_SKIPPED, 9);
    results_finish(&r);
    assert_string_equal(r.first_divergence->case_name, "long");
    assert_int_equal(r.first_divergence->tap, DSV4_TAP_COMPRESSED_KV);
    results_free(&r);
}

static bool add_everything(results *r)
{
    for (int i = 0; i < 70; i++)
        if (!results_add(r, "case", i, DSV4_TAP_Q))
            return false;
    for (int i = 0; i < 5; i++)
        if (!results_missing(r, "case/layers/%d/%s", i, "q") || !results_note(r, "note %d", i) ||
            !results_add_vectors(r, "f.h5", "00", NULL))
            return false;
    return true;
}

static void test_lists(void **state)
{
    results r;
    (void)state;
    results_init(&r);
    assert_true(add_everything(&r));
    assert_int_equal(r.count, 70);
    assert_int_equal(r.items[69].layer, 69);
    assert_int_equal(r.n_missing, 5);
    assert_string_equal(r.missing[0], "case/layers/0/q");
    assert_string_equal(r.missing[4], "case/layers/4/q");
    assert_int_equal(r.n_notes, 5);
    assert_string_equal(r.notes[3], "note 3");
    assert_int_equal(r.n_vectors, 5);
    assert_string_equal(r.vectors[4].file, "f.h5");
    assert_string_equal(r.vectors[4].producer, "");
    results_free(&r);
}

static void test_no_memory(void **state)
{
    bool done = false;
    long n = 0;
    (void)state;
    while (!done && n < 1000) {
        results r;
        results_init(&r);
        dsv4_alloc_fail_at(++n);
        done = add_everything(&r);
        dsv4_alloc_fail_at(0);
        results_finish(&r);
        results_free(&r);
    }
    assert_true(n > 80 && n < 1000);
}

static void test_progress(void **state)
{
    progress p;
    (void)state;
    double start = now_seconds();
    progress_start(&p, 2, false);
    assert_false(p.on);
    progress_step(&p, "one");
    progress_step(&p, NULL);
    assert_int_equal(p.done, 2);
    progress_end(&p);
    assert_true(now_seconds() >= start);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_nothing_compared),
        cmocka_unit_test(test_verdicts),
        cmocka_unit_test(test_worst),
        cmocka_unit_test(test_first_divergence),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_progress),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
