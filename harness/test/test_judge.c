/* test_judge.c - the judge on values and rows: what passes, what fails, whom it blames, what it
 * refuses to judge. */
#include "judge_case.h"

/* ---- values ---------------------------------------------------------------------------------- */

static void test_clean(void **state)
{
    (void)state;
    judge_options o = plain();
    o.command = "dsv4check layers --model m";
    open_case(&o);
    run();
    assert_others_pass(0);
    assert_int_equal(found.cases, 1);
    assert_int_equal(found.count, 3 * 9 + 2 * 3 + 1);
    assert_int_equal(found.n_missing, 0);
    assert_int_equal(judge_events(judged), 0);
    const result *r = item(1, DSV4_TAP_KV);
    assert_int_equal(r->rows, 3);
    assert_int_equal(r->n, 12);
    assert_true(r->rel_l2 == 0 && r->max_abs == 0 && r->median_row == 0);
    assert_string_equal(r->replay, "dsv4check layers --model m --case 'c' --taps 'kv'");
    assert_string_equal(item(0, DSV4_TAP_ROUTER_EXPERTS)->block, "hash");
    assert_string_equal(item(1, DSV4_TAP_ROUTER_EXPERTS)->block, "router");
}

static void test_changed_element(void **state)
{
    (void)state;
    judge_options o = plain();
    open_case(&o);
    mine[1][DSV4_TAP_STREAMS_MID][1][6].f += 0.25f;
    run();
    assert_failed(1, DSV4_TAP_STREAMS_MID, "mhc", NULL);
    assert_others_pass(1);
    const result *r = found.first_divergence;
    assert_ptr_equal(r, item(1, DSV4_TAP_STREAMS_MID));
    assert_int_equal(r->max_position, 5);
    assert_int_equal(r->max_index, 6);
    assert_int_equal(r->worst_position, 5);
    assert_true((float)r->expected == gold[1][DSV4_TAP_STREAMS_MID][1][6].f);
    assert_true((float)r->actual == mine[1][DSV4_TAP_STREAMS_MID][1][6].f);
    assert_true(fabs(r->max_abs - 0.25) < 1e-6);
    assert_true(r->median_row == 0);
}

/* Between the two limits of the budget. */
static void test_marginal(void **state)
{
    (void)state;
    judge_options o = plain();
    open_case(&o);
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < 8; i++)
            mine[2][DSV4_TAP_STREAMS][r][i].f *= 1 + 1e-5f;
    run();
    assert_int_equal(item(2, DSV4_TAP_STREAMS)->verdict, VERDICT_MARGINAL);
    assert_int_equal(found.verdict, VERDICT_MARGINAL);
    assert_int_equal(results_exit_code(&found), 0);
    assert_null(found.first_divergence);
}

static void test_nonfinite(void **state)
{
    (void)state;
    gold[0][DSV4_TAP_STREAMS][2][0].f = INFINITY; /* on both sides: no difference */
    judge_options o = plain();
    open_case(&o);
    mine[0][DSV4_TAP_KV][0][3].f = NAN;
    mine[1][DSV4_TAP_KV][0][3].f = -INFINITY;
    run();
    assert_failed(0, DSV4_TAP_KV, "attention", "1 elements are non-finite on one side only");
    assert_failed(1, DSV4_TAP_KV, "attention", "non-finite");
    assert_others_pass(2);
    assert_int_equal(item(0, DSV4_TAP_KV)->nonfinite, 1);
    assert_int_equal(item(0, DSV4_TAP_KV)->max_index, 3);
    assert_int_equal(item(0, DSV4_TAP_KV)->max_position, 3);
}

/* One element, and one row, may hide in a tap whose whole is within a wide budget. */
static void test_hidden(void **state)
{
    (void)state;
    static char all[] = "*", at_element[] = "@element", at_row[] = "@row", why[] = "test";
    budget lines[] = {{all, all, all, all, 1, 1, why},
                      {at_element, all, all, all, 0.5, 0.5, why},
                      {at_row, all, all, all, 9, 9, why}};
    budget_table t = {lines, 3};
    judge_options o = plain();
    o.budgets = &t;
    open_case(&o);
    mine[1][DSV4_TAP_STREAMS][0][0].f += 1.0f;
    run();
    assert_failed(1, DSV4_TAP_STREAMS, "mhc", "one element is off by");
    assert_others_pass(1);
    close_case();
    lines[1].fail = 99;
    lines[2].fail = 0.5;
    open_case(&o);
    for (int i = 0; i < 8; i++)
        mine[1][DSV4_TAP_STREAMS][1][i].f *= 1.6f;
    run();
    assert_failed(1, DSV4_TAP_STREAMS, "mhc", "position 5 alone is off by 0.6");
    assert_others_pass(1);
}

static void test_blame(void **state)
{
    (void)state;
    judge_options o = plain();
    open_case(&o);
    mine[1][DSV4_TAP_KV][0][3].f += 0.5f;            /* a column that turns */
    mine[2][DSV4_TAP_KV][0][0].f += 0.5f;            /* one that does not */
    mine[1][DSV4_TAP_COMPRESSED_KV][1][2].f += 0.5f; /* row 1, turns */
    for (int i = 0; i < 4; i++) /* layer 0: a multiple of the embedding, whatever the gates */
        mine[0][DSV4_TAP_HC_ATTN_COLLAPSED][1][i].f *= 2;
    run();
    assert_failed(1, DSV4_TAP_KV, "rope", NULL);
    assert_failed(2, DSV4_TAP_KV, "attention", NULL);
    assert_failed(1, DSV4_TAP_COMPRESSED_KV, "rope", NULL);
    assert_int_equal(item(1, DSV4_TAP_COMPRESSED_KV)->max_position, 1);
    assert_others_pass(4);
    close_case();
    open_case(&o);
    mine[0][DSV4_TAP_HC_ATTN_COLLAPSED][1][2].f += 1;
    run();
    assert_failed(0, DSV4_TAP_HC_ATTN_COLLAPSED, "embed", NULL);
    close_case();
    open_case(&o);
    for (int r = 0; r < ROWS; r++) /* every row alike: the direction is right, the gate is not */
        for (int i = 0; i < 4; i++)
            mine[0][DSV4_TAP_HC_ATTN_COLLAPSED][r][i].f *= 2;
    run();
    assert_failed(0, DSV4_TAP_HC_ATTN_COLLAPSED, "mhc", NULL);
}

/* ---- rows ------------------------------------------------------------------------------------ */

static void test_missing_rows(void **state)
{
    (void)state;
    judge_options o = plain();
    for (int dump = 0; dump < 2; dump++) {
        o.dump = dump;
        reset();
        open_case(&o);
        silent[0][DSV4_TAP_KV][1] = true;
        silent[1][DSV4_TAP_COMPRESSED_KV][1] = true;
        for (int r = 0; r < ROWS; r++)
            silent[2][DSV4_TAP_STREAMS][r] = true;
        run();
        if (dump) {
            assert_others_pass(0);
            assert_int_equal(found.n_missing, 3);
            assert_string_equal(found.missing[0], "c/layers/0/kv: 1 of 3 rows");
            assert_string_equal(found.missing[1], "c/layers/1/compressed_kv: 1 of 2 rows");
            assert_string_equal(found.missing[2], "c/layers/2/streams");
        } else {
            assert_failed(0, DSV4_TAP_KV, "attention", "expected 3 rows, the engine gave 2");
            assert_failed(1, DSV4_TAP_COMPRESSED_KV, "compressor", "expected 2 rows");
            assert_failed(2, DSV4_TAP_STREAMS, "mhc", "the engine gave 0");
            assert_others_pass(3);
        }
        if (!dump)
            close_case();
    }
}

/* A compressed row that golden has no place for is one too many, in a dump as well. */
static void test_extra_rows(void **state)
{
    (void)state;
    golden_rows[1][DSV4_TAP_COMPRESSED_KV] = 1;
    judge_options o = plain();
    o.dump = true;
    open_case(&o);
    run();
    assert_failed(1, DSV4_TAP_COMPRESSED_KV, "compressor", "expected 1 rows, the engine gave 2");
    assert_others_pass(1);
    assert_int_equal(found.n_missing, 0);
}

/* Of two reports of one row the first one counts; rows beyond the case's end are another case's. */
static void test_repeated(void **state)
{
    (void)state;
    judge_options o = plain();
    open_case(&o);
    feed();
    mine[0][DSV4_TAP_KV][0][0].f = 99;
    report(0, DSV4_TAP_KV, 0);
    const dsv4_taps *t = judge_taps(judged);
    assert_false(t->want(t->ctx, DSV4_TAP_KV, 0, 4)); /* golden does not hold it */
    assert_false(t->want(t->ctx, DSV4_TAP_KV, 0, CONTEXT));
    assert_false(t->want(t->ctx, DSV4_TAP_COMPRESSED_KV, 1, 2)); /* ends at token 11 */
    assert_false(t->want(t->ctx, DSV4_TAP_KV, LAYERS, 3));       /* the MTP layer */
    t->tap(t->ctx, DSV4_TAP_COMPRESSED_KV, 1, 2, mine[1][DSV4_TAP_KV][0], 4);
    dsv4_error err;
    assert_int_equal(finish(&err), DSV4_OK);
    assert_others_pass(0);
}

static void test_wrong_width(void **state)
{
    (void)state;
    static const struct {
        dsv4_tap_id id;
        int64_t width;
        const char *says;
    } bad[] = {
        {DSV4_TAP_KV, 3, "/cases/c/layers/1/kv: expected 4 values"},
        {DSV4_TAP_ROUTER_EXPERTS, 1, "router_experts: expected 2 values per position"},
        {DSV4_TAP_INDEXER_SCORES, 1, "indexer_scores: expected 2 visible rows at position 7"},
        {DSV4_TAP_INDEXER_SCORES, 0, "indexer_scores: expected 1 visible rows"}};
    judge_options o = plain();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dsv4_error err = {""};
        reset();
        open_case(&o);
        width_of[1][bad[i].id] = bad[i].width;
        feed();
        assert_int_equal(finish(&err), DSV4_E_INPUT);
        if (strstr(err.text, path) == NULL || strstr(err.text, bad[i].says) == NULL)
            fail_msg("expected '%s', found '%s'", bad[i].says, err.text);
        if (i + 1 < sizeof bad / sizeof *bad)
            close_case();
    }
}

/* Golden rows in another shape than the config's, even with the same number of elements. */
static void test_golden_shape(void **state)
{
    (void)state;
    static const vec_writer_info info = {"made up", "00", "{}", "test", "math"};
    const vec_case c = {"c", false, CONTEXT, CONTEXT, tokens, ROWS, positions};
    const int64_t shapes[][2] = {{4, 2}, {2, 3}};
    const float data[ROWS * 8] = {0};
    judge_options o = plain();
    for (int i = 0; i < 2; i++) {
        dsv4_error err = {""};
        vec_writer *w = NULL;
        assert_int_equal(vec_writer_new(path, &info, &w, &err), DSV4_OK);
        assert_int_equal(vec_writer_case(w, &c, &err), DSV4_OK);
        assert_int_equal(
            vec_writer_tap(w, DSV4_TAP_ATTN_HEADS, 0, ROWS, 2, shapes[i], NULL, data, &err),
            DSV4_OK);
        assert_int_equal(vec_writer_commit(w, &err), DSV4_OK);
        assert_int_equal(vec_open(path, &file, &err), DSV4_OK);
        assert_int_equal(judge_new(file, vec_case_at(file, 0), &o, &judged, &err), DSV4_OK);
        feed();
        assert_int_equal(finish(&err), DSV4_E_INPUT);
        assert_non_null(strstr(err.text, "/cases/c/layers/0/attn_heads: expected [2][4] values"));
        assert_non_null(strstr(err.text, i == 0 ? "found [4][2]" : "found [2][3]"));
        if (i == 0)
            close_case();
    }
}

/* ---- logits, budgets, cases, memory -----------------------------------------------------------
 */

static void test_top1(void **state)
{
    (void)state;
    static char all[] = "*", element[] = "@element", row[] = "@row", why[] = "test";
    budget lines[] = {{all, all, all, all, 1, 1, why},
                      {element, all, all, all, 99, 99, why},
                      {row, all, all, all, 99, 99, why}};
    budget_table t = {lines, 3};
    judge_options o = plain();
    o.budgets = &t;
    cell *e = gold[OUTSIDE][DSV4_TAP_LOGITS][1];
    for (int i = 0; i < 6; i++)
        e[i].f = i == 0 ? 5 : 0;
    open_case(&o);
    mine[OUTSIDE][DSV4_TAP_LOGITS][1][0].f = 2.4f;
    mine[OUTSIDE][DSV4_TAP_LOGITS][1][1].f = 2.6f;
    run();
    assert_failed(-1, DSV4_TAP_LOGITS, "head", "top-1 differs at 1 positions");
    assert_others_pass(1);
    close_case();
    e[1].f = 4.9f; /* a lead that the budget lets a logit lose */
    open_case(&o);
    mine[OUTSIDE][DSV4_TAP_LOGITS][1][1].f = 5.1f;
    run();
    assert_others_pass(0);
}

static void test_no_budget(void **state)
{
    (void)state;
    static char all[] = "*", kv[] = "kv", element[] = "@element", row[] = "@row", why[] = "test";
    budget lines[] = {{kv, all, all, all, 1, 1, why},
                      {element, all, all, all, 99, 99, why},
                      {row, all, all, all, 99, 99, why}};
    budget_table t = {lines, 3};
    dsv4_error err = {""};
    judge_options o = plain();
    o.budgets = &t;
    open_case(&o);
    feed();
    assert_int_equal(finish(&err), DSV4_E_INPUT);
    assert_non_null(strstr(err.text, "no line for tap hc_attn_collapsed, numerics math"));
}

/* A decode case: logits from the last token of the prefill on, nothing of what came before. */
static void test_decode(void **state)
{
    (void)state;
    static const vec_writer_info info = {"made up", "00", "{}", "test", "math"};
    const vec_case c = {"d", true, CONTEXT, 6, tokens, 0, NULL};
    const int64_t shape[1] = {6}, at[3] = {5, 6, 7};
    float rows[3][6] = {{1, 2, 3, 4, 5, 6}, {6, 5, 4, 3, 2, 1}, {1, 3, 5, 2, 4, 6}}, copy[6];
    dsv4_error err = {""};
    vec_writer *w = NULL;
    judge_options o = plain();
    assert_int_equal(vec_writer_new(path, &info, &w, &err), DSV4_OK);
    assert_int_equal(vec_writer_case(w, &c, &err), DSV4_OK);
    assert_int_equal(vec_writer_tap(w, DSV4_TAP_LOGITS, -1, 3, 1, shape, at, rows, &err), DSV4_OK);
    assert_int_equal(vec_writer_commit(w, &err), DSV4_OK);
    assert_int_equal(vec_open(path, &file, &err), DSV4_OK);
    assert_int_equal(judge_new(file, vec_case_at(file, 0), &o, &judged, &err), DSV4_OK);
    const dsv4_taps *t = judge_taps(judged);
    for (int64_t p = 0; p < CONTEXT; p++) {
        assert_int_equal(t->want(t->ctx, DSV4_TAP_LOGITS, -1, p), p >= 5);
        memcpy(copy, rows[p < 5 ? 0 : p - 5], sizeof copy);
        copy[0] += p == 6 ? 1 : 0;
        t->tap(t->ctx, DSV4_TAP_LOGITS, -1, p, copy, 6);
    }
    assert_int_equal(finish(&err), DSV4_OK);
    assert_failed(-1, DSV4_TAP_LOGITS, "head", NULL);
    assert_int_equal(item(-1, DSV4_TAP_LOGITS)->max_position, 6);
    assert_int_equal(item(-1, DSV4_TAP_LOGITS)->rows, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_clean),        TEST(test_changed_element), TEST(test_marginal),
        TEST(test_nonfinite),    TEST(test_hidden),          TEST(test_blame),
        TEST(test_missing_rows), TEST(test_extra_rows),      TEST(test_repeated),
        TEST(test_wrong_width),  TEST(test_golden_shape),    TEST(test_top1),
        TEST(test_no_budget),    TEST(test_decode),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
