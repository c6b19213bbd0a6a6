/* test_judge_ties.c - the judge on choices and roundings: what is booked as a tie or a flip, what
 * is not, and what is no longer comparable after one. */
#include "judge_case.h"

/* ---- choices --------------------------------------------------------------------------------- */

/* Position 7 of layer 1: two rows that score alike, and what follows from the other one. */
static void tie_at_7(void)
{
    gold[1][DSV4_TAP_INDEXER_SCORES][2][1].f = 4 * (1 - 3e-6f);
}

static void choose_other(void)
{
    mine[1][DSV4_TAP_INDEXER_TOPK][2][0].i = 1;
}

static void test_tie_replayed(void **state)
{
    (void)state;
    tie_at_7();
    judge_options o = plain();
    o.replay = true;
    open_case(&o);
    choose_other();
    run();
    assert_others_pass(0);
    assert_int_equal(mine[1][DSV4_TAP_INDEXER_TOPK][2][0].i, 0); /* golden's choice in its place */
    const result *r = item(1, DSV4_TAP_INDEXER_TOPK);
    assert_int_equal(r->ties, 1);
    assert_true(r->cosine == 0); /* Jaccard */
    assert_int_equal(judge_events(judged), 1);
    assert_int_equal(item(1, DSV4_TAP_ATTN_HEADS)->rows_after, 0);
    close_case();
    /* Replayed, what follows is as good as any other row and judged as strictly. */
    open_case(&o);
    choose_other();
    mine[1][DSV4_TAP_ATTN_HEADS][2][0].f += 0.1f;
    run();
    assert_failed(1, DSV4_TAP_ATTN_HEADS, "attention", NULL);
    assert_others_pass(1);
}

static void test_tie_not_replayed(void **state)
{
    (void)state;
    tie_at_7();
    judge_options o = plain();
    open_case(&o);
    choose_other();
    mine[1][DSV4_TAP_ATTN_HEADS][2][0].f += 0.1f; /* rests on the choice */
    mine[2][DSV4_TAP_KV][2][0].f += 0.1f;
    mine[OUTSIDE][DSV4_TAP_LOGITS][2][0].f += 0.1f;
    run();
    assert_others_pass(0);
    assert_int_equal(mine[1][DSV4_TAP_INDEXER_TOPK][2][0].i, 1);
    assert_int_equal(item(1, DSV4_TAP_INDEXER_TOPK)->ties, 1);
    assert_int_equal(item(1, DSV4_TAP_ATTN_HEADS)->rows_after, 1);
    assert_true(item(1, DSV4_TAP_ATTN_HEADS)->rel_l2 == 0);
    assert_true(item(1, DSV4_TAP_ATTN_HEADS)->rel_l2_after > 1e-3);
    assert_int_equal(item(2, DSV4_TAP_KV)->rows_after, 1);
    assert_int_equal(item(-1, DSV4_TAP_LOGITS)->rows_after, 1);
    /* Rows that agree all the same are clean. */
    assert_int_equal(item(2, DSV4_TAP_STREAMS)->rows_after, 0);
    close_case();
    /* What does not rest on it, and what is off by more than a choice explains, fails. */
    open_case(&o);
    choose_other();
    mine[1][DSV4_TAP_ATTN_HEADS][1][0].f += 0.1f; /* an earlier position */
    mine[1][DSV4_TAP_KV][2][0].f += 0.1f;         /* before the choice */
    mine[2][DSV4_TAP_STREAMS][2][0].f = 1e3f;
    run();
    assert_failed(1, DSV4_TAP_ATTN_HEADS, "attention", NULL);
    assert_failed(1, DSV4_TAP_KV, "attention", NULL);
    assert_failed(2, DSV4_TAP_STREAMS, "mhc", "1 rows after a tie or flip are off by");
    assert_others_pass(3);
}

static void test_swap_beyond_margin(void **state)
{
    (void)state;
    gold[1][DSV4_TAP_INDEXER_SCORES][2][1].f = 4 * (1 - 3e-5f);
    judge_options o = plain();
    o.replay = true;
    open_case(&o);
    choose_other();
    mine[2][DSV4_TAP_KV][2][0].f += 0.1f;
    run();
    assert_failed(1, DSV4_TAP_INDEXER_TOPK, "indexer", "1 of 3 selections differ beyond a tie");
    assert_failed(2, DSV4_TAP_KV, "attention", NULL); /* no tie, no excuse */
    assert_others_pass(2);
    assert_int_equal(item(1, DSV4_TAP_INDEXER_TOPK)->ties, 0);
    assert_int_equal(item(1, DSV4_TAP_INDEXER_TOPK)->max_position, 7);
    assert_int_equal(mine[1][DSV4_TAP_INDEXER_TOPK][2][0].i, 1);
    assert_int_equal(judge_events(judged), 0);
}

/* A row that is not visible, or none at all, is no tie whatever the scores say. */
static void test_invalid_choice(void **state)
{
    (void)state;
    static const int32_t bad[] = {-1, 1, 2, -7};
    judge_options o = plain();
    o.replay = true;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        reset();
        gold[1][DSV4_TAP_INDEXER_SCORES][1][1].f = 4;
        open_case(&o);
        mine[1][DSV4_TAP_INDEXER_TOPK][1][0].i = bad[i]; /* position 5: only row 0 is visible */
        run();
        assert_failed(1, DSV4_TAP_INDEXER_TOPK, "indexer", "beyond a tie");
        assert_others_pass(1);
        if (i + 1 < sizeof bad / sizeof *bad)
            close_case();
    }
}

static void test_router_order(void **state)
{
    (void)state;
    judge_options o = plain();
    for (int with_glob = 0; with_glob < 2; with_glob++) {
        o.taps = with_glob ? "router_weights" : NULL;
        reset();
        open_case(&o);
        for (int l = 0; l < LAYERS; l++) {
            cell *e = mine[l][DSV4_TAP_ROUTER_EXPERTS][1], *w = mine[l][DSV4_TAP_ROUTER_WEIGHTS][1];
            cell first = w[0];
            e[0].i = 1;
            e[1].i = 0;
            w[0] = w[1];
            w[1] = first;
        }
        run();
        assert_others_pass(0);
        if (with_glob) {
            assert_int_equal(found.count, LAYERS);
        } else {
            assert_int_equal(item(1, DSV4_TAP_ROUTER_EXPERTS)->ties, 0);
            close_case();
        }
    }
    close_case();
    open_case(&o); /* the right experts with each other's weights */
    cell *w = mine[1][DSV4_TAP_ROUTER_WEIGHTS][1], first = w[0];
    w[0] = w[1];
    w[1] = first;
    run();
    assert_failed(1, DSV4_TAP_ROUTER_WEIGHTS, "router", NULL);
    assert_others_pass(1);
}

static void test_router_tie(void **state)
{
    (void)state;
    gold[1][DSV4_TAP_ROUTER_LOGITS][0][2].f = gold[1][DSV4_TAP_ROUTER_LOGITS][0][1].f;
    judge_options o = plain();
    for (int replay = 0; replay < 2; replay++) {
        o.replay = replay;
        open_case(&o);
        mine[1][DSV4_TAP_ROUTER_EXPERTS][0][1].i = 2;
        mine[1][DSV4_TAP_ROUTER_WEIGHTS][0][1].f += 0.2f;
        if (!replay)
            mine[1][DSV4_TAP_ROUTED_OUT][0][0].f += 0.2f;
        run();
        assert_others_pass(0);
        assert_int_equal(item(1, DSV4_TAP_ROUTER_EXPERTS)->ties, 1);
        if (replay) {
            assert_int_equal(mine[1][DSV4_TAP_ROUTER_EXPERTS][0][1].i, 1);
            assert_true(mine[1][DSV4_TAP_ROUTER_WEIGHTS][0][1].f ==
                        gold[1][DSV4_TAP_ROUTER_WEIGHTS][0][1].f);
        } else {
            assert_int_equal(item(1, DSV4_TAP_ROUTED_OUT)->rows_after, 1);
            close_case();
        }
    }
}

/* A hash layer looks its experts up: there is nothing to be near to. */
static void test_hash_layer(void **state)
{
    (void)state;
    gold[0][DSV4_TAP_ROUTER_LOGITS][0][2].f = gold[0][DSV4_TAP_ROUTER_LOGITS][0][1].f;
    judge_options o = plain();
    o.replay = true;
    open_case(&o);
    mine[0][DSV4_TAP_ROUTER_EXPERTS][0][1].i = 2;
    run();
    assert_failed(0, DSV4_TAP_ROUTER_EXPERTS, "hash", "beyond a tie");
    assert_int_equal(item(0, DSV4_TAP_ROUTER_EXPERTS)->ties, 0);
    assert_string_equal(found.first_divergence->block, "hash");
}

/* A golden choice that no router could have made is not excused by a tie. */
static void test_impossible_golden(void **state)
{
    (void)state;
    gold[1][DSV4_TAP_ROUTER_EXPERTS][0][1].i = 77;
    judge_options o = plain();
    open_case(&o);
    mine[1][DSV4_TAP_ROUTER_EXPERTS][0][1].i = 1;
    run();
    assert_failed(1, DSV4_TAP_ROUTER_EXPERTS, "router", "beyond a tie");
}

/* Against an infinite score every distance is small: no margin can be told, so nothing is a tie. */
static void test_infinite_score(void **state)
{
    (void)state;
    gold[1][DSV4_TAP_ROUTER_LOGITS][0][0].f = INFINITY;
    judge_options o = plain();
    open_case(&o);
    mine[1][DSV4_TAP_ROUTER_EXPERTS][0][1].i = 2;
    run();
    assert_failed(1, DSV4_TAP_ROUTER_EXPERTS, "router", "beyond a tie");
    assert_int_equal(item(1, DSV4_TAP_ROUTER_EXPERTS)->ties, 0);
}

/* Ties count where the glob leaves the choices themselves out of the report. */
static void test_tie_with_glob(void **state)
{
    (void)state;
    tie_at_7();
    judge_options o = plain();
    o.taps = "attn_*";
    open_case(&o);
    choose_other();
    mine[1][DSV4_TAP_ATTN_HEADS][2][0].f += 0.1f;
    run();
    assert_others_pass(0);
    assert_int_equal(found.count, LAYERS);
    assert_int_equal(item(1, DSV4_TAP_ATTN_HEADS)->rows_after, 1);
    close_case();
    o.taps = "nothing";
    open_case(&o);
    run();
    assert_int_equal(found.count, 0);
    assert_int_equal(found.cases, 0);
    assert_int_equal(results_exit_code(&found), 2);
}

/* ---- roundings ------------------------------------------------------------------------------- */

/* 1.0625 lies between the FP8 codes 1 and 1.125 of a block whose largest value is 1.5. */
static const float before[2] = {1.0625f, 1.5f};

static void rounding_golden(void)
{
    gold[1][DSV4_TAP_KV][1][0].f = 1;
    gold[1][DSV4_TAP_KV][1][1].f = 1.5f;
}

static void tell_rounding(int64_t position, const float *values)
{
    const dsv4_taps *t = judge_taps(judged);
    assert_non_null(t->rounded);
    t->rounded(t->ctx, DSV4_TAP_KV, 1, position, DSV4_ROUND_FP8, 2, values, values, 2);
}

static void test_flip(void **state)
{
    (void)state;
    rounding_golden();
    judge_options o = plain();
    o.numerics = DSV4_QAT;
    for (int replay = 0; replay < 2; replay++) {
        o.replay = replay;
        open_case(&o);
        mine[1][DSV4_TAP_KV][1][0].f = 1.125f;
        tell_rounding(5, before);
        if (!replay)
            mine[1][DSV4_TAP_ATTN_HEADS][2][0].f += 0.02f; /* a later position sees the row */
        run();
        assert_others_pass(0);
        assert_int_equal(item(1, DSV4_TAP_KV)->flips, 1);
        assert_true(item(1, DSV4_TAP_KV)->rel_l2 == 0);
        assert_int_equal(judge_events(judged), 1);
        assert_int_equal(item(1, DSV4_TAP_ATTN_HEADS)->rows_after, !replay);
        assert_true(mine[1][DSV4_TAP_KV][1][0].f == 1.0f);
        if (!replay)
            close_case();
    }
}

static void test_no_flip(void **state)
{
    (void)state;
    static const float off[2] = {1.0626f, 1.5f}, other[2] = {1.2f, 1.0625f};
    static const struct {
        const float *before;
        float value;
        int index;
    } bad[] = {
        {before, 1.25f, 0},   /* two steps */
        {before, 0.9375f, 0}, /* one step, away from the midpoint */
        {off, 1.125f, 0},     /* one step, not near the midpoint */
        {other, 1.125f, 0},   /* another element is near one */
        {before, 1.125f, 2},  /* a column that is not rounded */
    };
    judge_options o = plain();
    o.numerics = DSV4_QAT;
    o.replay = true;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        reset();
        rounding_golden();
        open_case(&o);
        mine[1][DSV4_TAP_KV][1][bad[i].index].f = bad[i].value;
        tell_rounding(5, bad[i].before);
        run();
        if (item(1, DSV4_TAP_KV)->verdict != VERDICT_FAIL)
            fail_msg("number %zu passed", i);
        assert_int_equal(item(1, DSV4_TAP_KV)->flips, 0);
        assert_others_pass(1);
        close_case();
    }
    /* In math nothing is rounded, and no flip excuses anything. */
    o.numerics = DSV4_MATH;
    open_case(&o);
    assert_null(judge_taps(judged)->rounded);
    mine[1][DSV4_TAP_KV][1][0].f = 1.125f;
    run();
    assert_failed(1, DSV4_TAP_KV, "attention", NULL);
}

/* A row near a midpoint that golden does not hold may have gone either way. */
static void test_unseen_rounding(void **state)
{
    (void)state;
    judge_options o = plain();
    o.numerics = DSV4_QAT;
    open_case(&o);
    tell_rounding(4, before);
    mine[1][DSV4_TAP_ATTN_HEADS][2][0].f += 0.02f;
    mine[2][DSV4_TAP_KV][1][0].f += 0.02f;
    run();
    assert_others_pass(0);
    assert_int_equal(item(1, DSV4_TAP_ATTN_HEADS)->rows_after, 1);
    assert_int_equal(item(2, DSV4_TAP_KV)->rows_after, 1);
    close_case();
    open_case(&o);
    tell_rounding(4, before);
    mine[1][DSV4_TAP_ATTN_HEADS][0][0].f += 0.02f; /* position 3 does not see it */
    run();
    assert_failed(1, DSV4_TAP_ATTN_HEADS, "attention", NULL);
    assert_others_pass(1);
}

/* A dump tells no unrounded values: within the reach of one flip it is not condemned. */
static void test_blind(void **state)
{
    (void)state;
    judge_options o = plain();
    o.numerics = DSV4_QAT;
    o.dump = true;
    open_case(&o);
    mine[1][DSV4_TAP_ATTN_HEADS][2][0].f += 0.02f;
    mine[2][DSV4_TAP_KV][1][0].f += 2;
    run();
    const result *r = item(1, DSV4_TAP_ATTN_HEADS);
    assert_int_equal(r->verdict, VERDICT_MARGINAL);
    assert_non_null(strstr(r->note, "within the reach of one rounding flip"));
    assert_failed(2, DSV4_TAP_KV, "attention", NULL);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void test_memory(void **state)
{
    (void)state;
    dsv4_status status = DSV4_E_MACHINE;
    judge_options o = plain();
    long n = 0;
    tie_at_7();
    rounding_golden();
    o.numerics = DSV4_QAT;
    o.command = "dsv4check";
    open_case(&o);
    while (status != DSV4_OK) {
        dsv4_error err = {""};
        judge_free(judged);
        results_free(&found);
        judged = NULL;
        memcpy(mine, gold, sizeof mine);
        choose_other();
        mine[1][DSV4_TAP_KV][1][0].f = 1.125f;
        mine[2][DSV4_TAP_STREAMS][0][0].f += 1;
        dsv4_alloc_fail_at(++n);
        status = judge_new(file, vec_case_at(file, 0), &o, &judged, &err);
        if (status == DSV4_OK) {
            tell_rounding(5, before);
            feed();
            status = finish(&err);
        }
        dsv4_alloc_fail_at(0);
        if (status != DSV4_OK) {
            assert_int_equal(status, DSV4_E_MACHINE);
            assert_true(err.text[0] != '\0');
        }
    }
    assert_true(n > 300);
    assert_int_equal(item(1, DSV4_TAP_INDEXER_TOPK)->ties, 1);
    assert_int_equal(item(1, DSV4_TAP_KV)->flips, 1);
    assert_failed(2, DSV4_TAP_STREAMS, "mhc", NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_tie_replayed),
        TEST(test_tie_not_replayed),
        TEST(test_swap_beyond_margin),
        TEST(test_invalid_choice),
        TEST(test_router_order),
        TEST(test_router_tie),
        TEST(test_hash_layer),
        TEST(test_impossible_golden),
        TEST(test_infinite_score),
        TEST(test_tie_with_glob),
        TEST(test_flip),
        TEST(test_no_flip),
        TEST(test_unseen_rounding),
        TEST(test_blind),
        TEST(test_memory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
