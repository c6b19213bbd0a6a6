/* test_session.c - the life of a session: any way of feeding the same tokens gives the same
 * numbers, state survives saving, bad input is refused before anything is computed, taps see and
 * may change what flows by. Two models: stress from the vectors, and a tiny one with every kind of
 * layer. */
#include <hdf5.h>

#include "support_session.h"

/* One-shot and piecewise runs do the same sums in the same order here; an optimised engine may not,
 * and is held to this. */
#define SESSION_TOLERANCE 1e-6

/* ---- prefill and decode ------------------------------------------------------------------- */

static void compare_pieces(const dsv4_model *m, dsv4_numerics numerics, const int *pieces, size_t n,
                           int chunk)
{
    int32_t tokens[LENGTH];
    make_tokens(m, tokens, LENGTH);
    record whole = run(m, numerics, LENGTH, LENGTH, tokens, LENGTH);
    for (size_t p = 0; p < n; p++) {
        record r = run(m, numerics, chunk, pieces[p], tokens, LENGTH);
        double d = furthest(&r, &whole, 0, LENGTH);
        ck_assert_msg(d <= SESSION_TOLERANCE, "pieces of %d, chunk %d: off by %g", pieces[p], chunk,
                      d);
        record_free(&r);
    }
    record_free(&whole);
}

static const int all_pieces[] = {1, 3, 4, 5, 63, 64, 65, 127, 128, 129};

START_TEST(prefill_in_pieces_is_prefill_at_once)
{
    static const int some[] = {1, 5, 129};
    dsv4_model *m = open_tiny();
    compare_pieces(m, DSV4_MATH, some, COUNT_OF(some), 1);
    compare_pieces(m, DSV4_MATH, some, COUNT_OF(some), 7);
    compare_pieces(m, DSV4_MATH, all_pieces, COUNT_OF(all_pieces), 64);
    dsv4_model_close(m);
}
END_TEST

START_TEST(pieces_do_not_matter_in_rounded_numerics)
{
    static const int some[] = {1, 128};
    dsv4_model *m = open_tiny();
    compare_pieces(m, DSV4_QAT, some, COUNT_OF(some), 64);
    compare_pieces(m, DSV4_DEPLOYED, some, COUNT_OF(some), 64);
    dsv4_model_close(m);
}
END_TEST

START_TEST(prefill_in_pieces_is_prefill_at_once_on_stress)
{
    static const int some[] = {1, 65};
    dsv4_model *m = open_stress();
    compare_pieces(m, DSV4_MATH, some, COUNT_OF(some), 64);
    dsv4_model_close(m);
}
END_TEST

/* Twin: an engine that forgets what left the sliding window. Another first token moves the last
 * logits through compressed rows alone, and by far more than the tolerance. */
START_TEST(the_first_token_still_matters_at_the_end)
{
    int32_t tokens[LENGTH];
    dsv4_model *m = open_tiny();
    make_tokens(m, tokens, LENGTH);
    record whole = run(m, DSV4_MATH, 64, LENGTH, tokens, LENGTH);
    tokens[0] = (tokens[0] + 1) % TINY_VOCAB;
    record twin = run(m, DSV4_MATH, 64, LENGTH, tokens, LENGTH);
    ASSERT_CAUGHT(furthest(&twin, &whole, LENGTH - 2, LENGTH), SESSION_TOLERANCE);
    record_free(&twin);
    record_free(&whole);
    dsv4_model_close(m);
}
END_TEST

START_TEST(the_three_numerics_differ)
{
    int32_t tokens[LENGTH];
    dsv4_model *m = open_tiny();
    make_tokens(m, tokens, LENGTH);
    record math = run(m, DSV4_MATH, 0, LENGTH, tokens, LENGTH);
    record qat = run(m, DSV4_QAT, 0, LENGTH, tokens, LENGTH);
    record deployed = run(m, DSV4_DEPLOYED, 0, LENGTH, tokens, LENGTH);
    ASSERT_CAUGHT(furthest(&qat, &math, 0, LENGTH), SESSION_TOLERANCE);
    ASSERT_CAUGHT(furthest(&deployed, &qat, 0, LENGTH), SESSION_TOLERANCE);
    ck_assert(furthest(&deployed, &math, 0, 1) < 0.5); /* rounded, not ruined */
    record_free(&math);
    record_free(&qat);
    record_free(&deployed);
    dsv4_model_close(m);
}
END_TEST

static void *read_set(hid_t f, const char *path, hid_t type, int64_t *n)
{
    hid_t set = H5Dopen2(f, path, H5P_DEFAULT);
    ck_assert_msg(set >= 0, "no data set %s", path);
    hid_t space = H5Dget_space(set);
    *n = (int64_t)H5Sget_simple_extent_npoints(space);
    void *data = calloc((size_t)*n, H5Tget_size(type));
    ck_assert(data != NULL);
    ck_assert(H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    H5Sclose(space);
    H5Dclose(set);
    return data;
}

/* Two independent float32 implementations agree to 5e-7 on these models; six layers of headroom. */
START_TEST(stress_gives_the_golden_logits)
{
    static const char *const cases[] = {"ctx00027", "ctx00131"};
    hid_t f = H5Fopen(DSV4_VECTORS "/stress-hf-f32.h5", H5F_ACC_RDONLY, H5P_DEFAULT);
    ck_assert(f >= 0);
    dsv4_model *m = open_stress();
    for (size_t c = 0; c < COUNT_OF(cases); c++) {
        char path[64];
        int64_t n, rows, all;
        snprintf(path, sizeof path, "/cases/%s/tokens", cases[c]);
        int32_t *tokens = read_set(f, path, H5T_NATIVE_INT32, &n);
        snprintf(path, sizeof path, "/cases/%s/positions", cases[c]);
        int32_t *positions = read_set(f, path, H5T_NATIVE_INT32, &rows);
        snprintf(path, sizeof path, "/cases/%s/logits", cases[c]);
        float *golden = read_set(f, path, H5T_NATIVE_FLOAT, &all);
        ck_assert(n <= ROOM && rows > 0 && all == rows * m->config.vocab_size);
        record r = run(m, DSV4_MATH, 64, (int)n, tokens, (int)n);
        for (int64_t i = 0; i < rows; i++) {
            double d = distance(r.logits + positions[i] * r.vocab, golden + i * r.vocab, r.vocab);
            ck_assert_msg(d <= 3e-6, "%s: position %d is off by %g", cases[c], positions[i], d);
        }
        record_free(&r);
        free(tokens);
        free(positions);
        free(golden);
    }
    dsv4_model_close(m);
    H5Fclose(f);
}
END_TEST

/* ---- state -------------------------------------------------------------------------------- */

START_TEST(a_session_after_a_reset_is_a_new_one)
{
    int32_t tokens[LENGTH];
    dsv4_model *m = open_tiny();
    make_tokens(m, tokens, LENGTH);
    record a = record_new(m), b = record_new(m);
    dsv4_session *s = new_session(m, DSV4_QAT, 7);
    feed(s, tokens, 0, LENGTH, LENGTH, &a);
    dsv4_session_reset(s);
    ck_assert_int_eq(dsv4_session_position(s), 0);
    feed(s, tokens, 0, LENGTH, LENGTH, &b);
    ck_assert(same_record(&a, &b, LENGTH));
    dsv4_session_free(s);
    record_free(&a);
    record_free(&b);
    dsv4_model_close(m);
}
END_TEST

static void save(const dsv4_session *s, void **blob, size_t *bytes)
{
    dsv4_error err = {0};
    ck_assert_msg(dsv4_session_save(s, blob, bytes, &err) == DSV4_OK, "%s", err.text);
}

static const int split_at[] = {0, 1, 3, 4, 9, 127, 128, 131};

/* Before, inside and after windows of 4 and 128, and before and after the sliding window is full.
 */
START_TEST(a_restored_session_goes_on_as_if_nothing_had_happened)
{
    int32_t tokens[LENGTH];
    int split = split_at[_i];
    dsv4_model *m = open_tiny();
    make_tokens(m, tokens, LENGTH);
    record straight = run(m, DSV4_QAT, 16, LENGTH, tokens, LENGTH);
    record r = record_new(m), scratch = record_new(m);
    dsv4_session *s = new_session(m, DSV4_QAT, 16), *other = new_session(m, DSV4_QAT, 16);
    size_t rest = (size_t)((ROOM - split) * r.vocab) * sizeof(float), bytes;
    dsv4_error err = {0};
    void *blob;
    feed(s, tokens, 0, split, LENGTH, &r);
    save(s, &blob, &bytes);
    feed(s, tokens, split, LENGTH, 11, &r);
    ck_assert(same_record(&straight, &r, LENGTH)); /* saving disturbs nothing */

    memset(r.logits + split * r.vocab, 0, rest);
    ck_assert(dsv4_session_restore(s, blob, bytes, &err) == DSV4_OK); /* a rewind */
    ck_assert_int_eq(dsv4_session_position(s), split);
    feed(s, tokens, split, LENGTH, LENGTH, &r);
    ck_assert(same_record(&straight, &r, LENGTH));

    memset(r.logits + split * r.vocab, 0, rest);
    feed(other, tokens + 3, 0, 50, 50, &scratch); /* another session, amid something else */
    ck_assert(dsv4_session_restore(other, blob, bytes, &err) == DSV4_OK);
    feed(other, tokens, split, LENGTH, 3, &r);
    ck_assert(same_record(&straight, &r, LENGTH));

    tokens[split / 2] =
        (tokens[split / 2] + 1) % TINY_VOCAB; /* twin: the state of another beginning */
    dsv4_session_reset(other);
    feed(other, tokens, 0, LENGTH, LENGTH, &r);
    ck_assert(!same_bits(r.logits + (LENGTH - 1) * r.vocab,
                         straight.logits + (LENGTH - 1) * r.vocab, r.vocab));
    free(blob);
    dsv4_session_free(s);
    dsv4_session_free(other);
    record_free(&straight);
    record_free(&scratch);
    record_free(&r);
    dsv4_model_close(m);
}
END_TEST

/* A refused blob leaves a session as new, never half a state. */
static void expect_refused(dsv4_session *s, const void *blob, size_t bytes, const int32_t *tokens,
                           const record *right)
{
    dsv4_error err = {0};
    record r = {.vocab = right->vocab,
                .logits = zeros(ROOM * right->vocab),
                .mtp = zeros(ROOM * right->vocab)};
    ck_assert_int_eq(dsv4_session_restore(s, blob, bytes, &err), DSV4_E_INPUT);
    ck_assert_msg(has_line(err.text, "saved session"), "%s", err.text);
    ck_assert_int_eq(dsv4_session_position(s), 0);
    feed(s, tokens, 0, 10, 10, &r);
    ck_assert(same_record(&r, right, 10));
    record_free(&r);
}

START_TEST(a_truncated_or_lengthened_blob_is_refused)
{
    int32_t tokens[LENGTH];
    dsv4_model *m = open_tiny();
    make_tokens(m, tokens, LENGTH);
    record right = run(m, DSV4_MATH, 16, 10, tokens, 10), r = record_new(m);
    dsv4_session *s = new_session(m, DSV4_MATH, 16);
    void *blob;
    size_t bytes;
    feed(s, tokens, 0, 30, 30, &r);
    save(s, &blob, &bytes);
    uint8_t *longer = calloc(bytes + 8, 1);
    ck_assert_ptr_nonnull(longer);
    memcpy(longer, blob, bytes);
    const size_t lengths[] = {0, 1, 7, 8, 64, 88, 100, bytes / 2, bytes - 4, bytes - 1, bytes + 8};
    for (size_t i = 0; i < COUNT_OF(lengths); i++)
        expect_refused(s, longer, lengths[i], tokens, &right);
    free(longer);
    free(blob);
    dsv4_session_free(s);
    record_free(&right);
    record_free(&r);
    dsv4_model_close(m);
}
END_TEST

START_TEST(a_foreign_blob_is_refused)
{
    int32_t tokens[LENGTH];
    dsv4_model *m = open_tiny(), *stress = open_stress();
    make_tokens(m, tokens, LENGTH);
    record right = run(m, DSV4_MATH, 16, 10, tokens, 10), r = record_new(m);
    record stress_r = record_new(stress);
    dsv4_session *s = new_session(m, DSV4_MATH, 16);
    const dsv4_session_options without_mtp = {.max_positions = ROOM, .chunk = 16};
    const dsv4_session_options shorter = {.max_positions = ROOM - 1, .chunk = 16, .mtp = true};
    dsv4_session *others[] = {new_session(m, DSV4_QAT, 16), new_session(m, DSV4_MATH, 17), NULL,
                              NULL, new_session(stress, DSV4_MATH, 16)};
    ck_assert(dsv4_session_new(m, ops(), &without_mtp, &others[2], NULL) == DSV4_OK);
    ck_assert(dsv4_session_new(m, ops(), &shorter, &others[3], NULL) == DSV4_OK);
    for (size_t i = 0; i < COUNT_OF(others); i++) {
        void *blob;
        size_t bytes;
        feed(others[i], tokens, 0, 30, 30, i == 4 ? &stress_r : &r);
        save(others[i], &blob, &bytes);
        expect_refused(s, blob, bytes, tokens, &right);
        dsv4_session_reset(s);
        free(blob);
        dsv4_session_free(others[i]);
    }
    uint8_t garbage[4096];
    noise n = {9};
    for (size_t k = 0; k < sizeof garbage; k++)
        garbage[k] = (uint8_t)noise_bits(&n);
    expect_refused(s, garbage, sizeof garbage, tokens, &right);
    dsv4_session_free(s);
    record_free(&right);
    record_free(&r);
    record_free(&stress_r);
    dsv4_model_close(m);
    dsv4_model_close(stress);
}
END_TEST

/* The counts of a saved state stand among its first words and before each layer's rows. Whatever
 * word of the blob is damaged, restoring reads and writes no memory it should not (a sanitizer
 * would tell) and either refuses or gives a session that computes. */
START_TEST(a_blob_with_a_damaged_word_harms_nothing)
{
    int32_t tokens[LENGTH];
    dsv4_model *m = open_tiny();
    make_tokens(m, tokens, LENGTH);
    record right = run(m, DSV4_MATH, 16, 10, tokens, 10), r = record_new(m);
    dsv4_session *s = new_session(m, DSV4_MATH, 16);
    void *blob;
    size_t bytes;
    int refused = 0;
    feed(s, tokens, 0, 30, 30, &r);
    save(s, &blob, &bytes);
    uint8_t *copy = malloc(bytes);
    ck_assert_ptr_nonnull(copy);
    for (size_t at = 0; at + 8 <= bytes; at += at < 256 ? 8 : 4) {
        int64_t word;
        memcpy(copy, blob, bytes);
        memcpy(&word, copy + at, sizeof word);
        word = word > 0 && word < ROOM ? word - 1 : 1; /* plausible, but for what it says */
        memcpy(copy + at, &word, sizeof word);
        bool bad = dsv4_session_restore(s, copy, bytes, NULL) != DSV4_OK;
        refused += bad;
        ck_assert(at >= 8 * 11 || bad); /* shape, position and MTP state contradict the rest */
        if (at % 64 == 0 || bad)
            ck_assert(dsv4_session_append(s, tokens, 1, NULL, NULL) == DSV4_OK);
    }
    ck_assert_int_ge(refused, 11 + 4 * 2 + 3 * 3); /* header, windows, compressors */
    expect_refused(s, copy, 5, tokens, &right);
    free(copy);
    free(blob);
    dsv4_session_free(s);
    record_free(&right);
    record_free(&r);
    dsv4_model_close(m);
}
END_TEST

/* ---- bad input ---------------------------------------------------------------------------- */

static void expect_input_error(dsv4_session *s, const int32_t *tokens, int64_t n, const char *part)
{
    dsv4_error err = {0};
    int64_t position = dsv4_session_position(s);
    float logits[TINY_VOCAB] = {77};
    ck_assert_int_eq(dsv4_session_append(s, tokens, n, logits, &err), DSV4_E_INPUT);
    ck_assert_msg(has_line(err.text, part), "'%s' not in '%s'", part, err.text);
    ck_assert_int_eq(dsv4_session_position(s), position);
    ck_assert(logits[0] == 77);
}

START_TEST(bad_tokens_are_refused_before_anything_is_computed)
{
    int32_t tokens[ROOM + 1] = {0};
    dsv4_model *m = open_tiny();
    dsv4_session *s = new_session(m, DSV4_MATH, 4);
    record a = record_new(m), b = record_new(m);
    make_tokens(m, tokens, ROOM + 1);
    feed(s, tokens, 0, 6, 6, &a);
    const int32_t high[6] = {1, 2, 3, 4, 5, TINY_VOCAB}, low[2] = {0, -1};
    expect_input_error(s, high, 6, "token 11: id 17 is outside the vocabulary [0, 17)");
    expect_input_error(s, low, 2, "token 7: id -1 is outside the vocabulary");
    expect_input_error(s, tokens, 0, "0 tokens given");
    expect_input_error(s, tokens, -3, "-3 tokens given");
    expect_input_error(s, tokens, ROOM - 5, "155 tokens at position 6 do not fit 160 positions");
    expect_input_error(s, tokens, INT64_MAX, "do not fit 160 positions");
    feed(s, tokens, 6, ROOM, ROOM, &a); /* exactly full; nothing above left a trace */
    expect_input_error(s, tokens, 1, "1 tokens at position 160");
    dsv4_session_reset(s);
    feed(s, tokens, 0, ROOM, ROOM, &b);
    ck_assert(same_record(&a, &b, ROOM));
    dsv4_session_free(s);
    record_free(&a);
    record_free(&b);
    dsv4_model_close(m);
}
END_TEST

START_TEST(a_session_that_cannot_be_is_refused)
{
    tiny *t = tiny_new();
    for (int i = 0; i < t->n_tensors; i++)
        if (strncmp(t->tensors[i].name, "mtp.", 4) == 0)
            t->tensors[i].file = -1; /* the MTP layer is in no file */
    tiny_write(t);
    tiny_free(t);
    dsv4_model *m = open_model(folder);
    const struct {
        dsv4_session_options options;
        const char *part;
    } wrong[] = {
        {{.max_positions = 0}, "max_positions 0"},
        {{.max_positions = -5}, "max_positions -5"},
        {{.max_positions = 4097}, "max_position_embeddings = 4096"},
        {{.max_positions = 8, .mtp = true}, "holds no MTP layer"},
    };
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        dsv4_session *s = NULL;
        dsv4_error err = {0};
        ck_assert_int_eq(dsv4_session_new(m, ops(), &wrong[i].options, &s, &err), DSV4_E_INPUT);
        ck_assert_msg(has_line(err.text, wrong[i].part), "%s", err.text);
        ck_assert_ptr_null(s);
    }
    dsv4_model_close(m);
}
END_TEST

/* ---- lack of memory ----------------------------------------------------------------------- */

/* Done when the n-th allocation is one that is never made: some successes in a row. (A single one
 * may come of a probe that does without.) */
enum { ENOUGH = 4 };

START_TEST(every_failed_allocation_is_reported_and_leaks_nothing)
{
    const dsv4_session_options options = {.max_positions = 8, .mtp = true};
    dsv4_model *m = open_tiny();
    dsv4_session *s = NULL;
    dsv4_error err = {0};
    void *blob;
    size_t bytes;
    dsv4_model_close(m);
    int failures = 0;
    for (long n = 1, successes = 0; successes < ENOUGH; n++) {
        dsv4_alloc_fail_at(n);
        dsv4_status status = dsv4_model_open(folder, &m, &err);
        dsv4_alloc_fail_at(0);
        successes = status == DSV4_OK ? successes + 1 : 0;
        if (status == DSV4_OK) {
            dsv4_model_close(m);
            continue;
        }
        failures++;
        ck_assert_int_eq(status, DSV4_E_MACHINE);
        ck_assert_msg(has_line(err.text, "out of memory"), "%s", err.text);
        ck_assert_ptr_null(m);
    }
    ck_assert_int_gt(failures, 100); /* a name a tensor, at least */
    m = open_model(folder);
    failures = 0;
    for (long n = 1, successes = 0; successes < ENOUGH; n++) {
        dsv4_alloc_fail_at(n);
        dsv4_status status = dsv4_session_new(m, ops(), &options, &s, &err);
        dsv4_alloc_fail_at(0);
        successes = status == DSV4_OK ? successes + 1 : 0;
        if (status == DSV4_OK) {
            dsv4_session_free(s);
            continue;
        }
        failures++;
        ck_assert_int_eq(status, DSV4_E_MACHINE);
        ck_assert_msg(has_line(err.text, "out of memory"), "%s", err.text);
        ck_assert_ptr_null(s);
    }
    ck_assert_int_gt(failures, 0);
    s = new_session(m, DSV4_MATH, 4);
    dsv4_alloc_fail_at(1);
    ck_assert_int_eq(dsv4_session_save(s, &blob, &bytes, &err), DSV4_E_MACHINE);
    dsv4_alloc_fail_at(0);
    ck_assert_ptr_null(blob);
    dsv4_session_free(s);
    dsv4_model_close(m);
}
END_TEST

/* ---- taps --------------------------------------------------------------------------------- */

typedef struct {
    const dsv4_config *config;
    int count[DSV4_TAP_COUNT][TINY_LAYERS + 1]; /* the last column: layer -1 */
    int64_t next[DSV4_TAP_COUNT][TINY_LAYERS + 1];
    int last_place; /* of the last call, in data-flow order */
    bool ordered;   /* tokens come one by one: the order of calls can be checked */
} tap_log;

static void log_tap(void *ctx, dsv4_tap_id id, int layer, int64_t position, void *data, size_t n)
{
    tap_log *log = ctx;
    int column = layer < 0 ? TINY_LAYERS : layer;
    int64_t shape[2], expected;
    ck_assert(id < DSV4_TAP_COUNT && layer >= -1 && layer < TINY_LAYERS && data != NULL);
    ck_assert((layer == -1) == (id >= DSV4_TAP_HEAD_COLLAPSED));
    ck_assert_int_eq(position, log->next[id][column]); /* ascending, none left out */
    log->next[id][column] = position + 1;
    log->count[id][column]++;
    dsv4_tap_shape(id, log->config, shape);
    expected = shape[0] * shape[1];
    if (id == DSV4_TAP_INDEXER_SCORES)
        expected = (position + 1) / 4;
    if (id == DSV4_TAP_INDEXER_TOPK)
        expected = TINY_TOPK;
    ck_assert_int_eq((int64_t)n, expected);
    bool finite = true;
    for (size_t k = 0; k < n && !dsv4_tap_is_int(id); k++)
        finite = finite && isfinite(((float *)data)[k]);
    ck_assert(finite);
    int place = column * DSV4_TAP_COUNT + (int)id;
    ck_assert(!log->ordered || place > log->last_place);
    log->last_place = place;
}

static int expected_calls(dsv4_tap_id id, int layer, int n)
{
    int ratio = layer == 1 ? 4 : layer == 2 ? 128 : 0;
    bool of_head = id >= DSV4_TAP_HEAD_COLLAPSED;
    if (of_head != (layer == TINY_LAYERS))
        return 0;
    switch (id) {
    case DSV4_TAP_COMPRESSED_KV:
        return ratio > 0 ? n / ratio : 0;
    case DSV4_TAP_INDEXER_KV:
        return ratio == 4 ? n / 4 : 0;
    case DSV4_TAP_INDEXER_Q:
    case DSV4_TAP_INDEXER_SCORES:
    case DSV4_TAP_INDEXER_TOPK:
        return ratio == 4 ? n : 0;
    case DSV4_TAP_MTP_LOGITS:
        return n - 1;
    default:
        return n;
    }
}

START_TEST(every_tap_reports_each_of_its_positions_once_in_order)
{
    static const int piece[] = {1, 10, LENGTH};
    int32_t tokens[LENGTH];
    dsv4_model *m = open_tiny();
    dsv4_session *s = new_session(m, DSV4_MATH, 7);
    tap_log log = {.config = &m->config, .ordered = piece[_i] == 1};
    const dsv4_taps taps = {.ctx = &log, .tap = log_tap};
    make_tokens(m, tokens, LENGTH);
    dsv4_session_set_taps(s, &taps);
    for (int at = 0; at < LENGTH; at += piece[_i]) {
        log.last_place = -1;
        ck_assert(dsv4_session_append(s, tokens + at, piece[_i], NULL, NULL) == DSV4_OK);
    }
    for (int id = 0; id < DSV4_TAP_COUNT; id++)
        for (int layer = 0; layer <= TINY_LAYERS; layer++)
            ck_assert_msg(log.count[id][layer] == expected_calls((dsv4_tap_id)id, layer, LENGTH),
                          "%s of layer %d: %d calls", dsv4_tap_name((dsv4_tap_id)id), layer,
                          log.count[id][layer]);
    dsv4_session_free(s);
    dsv4_model_close(m);
}
END_TEST

typedef struct {
    dsv4_tap_id id;
    int layer, calls;
    int64_t position; /* -1 = all */
    bool change;
} one_tap;

static bool want_one(void *ctx, dsv4_tap_id id, int layer, int64_t position)
{
    const one_tap *one = ctx;
    return id == one->id && layer == one->layer && (one->position < 0 || one->position == position);
}

static void change_one(void *ctx, dsv4_tap_id id, int layer, int64_t position, void *data, size_t n)
{
    one_tap *one = ctx;
    ck_assert(want_one(ctx, id, layer, position)); /* what nobody wants is not told */
    one->calls++;
    for (size_t k = 0; one->change && k < n; k++) {
        if (id == DSV4_TAP_ROUTER_EXPERTS)
            ((int32_t *)data)[k] = (((int32_t *)data)[k] + 1) % TINY_E;
        else if (id == DSV4_TAP_INDEXER_TOPK)
            ((int32_t *)data)[k] = -1;
        else
            ((float *)data)[k] = 0.125f - ((float *)data)[k] * (k % 2 ? 1.5f : 0.5f);
    }
}

START_TEST(only_what_is_wanted_is_told_and_listening_changes_nothing)
{
    enum { SHORT = 21 };
    int32_t tokens[SHORT];
    float silent[TINY_VOCAB], heard[TINY_VOCAB];
    dsv4_model *m = open_tiny();
    dsv4_session *s = new_session(m, DSV4_MATH, 8);
    one_tap one = {.id = DSV4_TAP_ATTN_OUT, .layer = 1, .position = 13};
    const dsv4_taps taps = {.ctx = &one, .want = want_one, .tap = change_one};
    make_tokens(m, tokens, SHORT);
    ck_assert(dsv4_session_append(s, tokens, SHORT, silent, NULL) == DSV4_OK);
    dsv4_session_reset(s);
    dsv4_session_set_taps(s, &taps);
    ck_assert(dsv4_session_append(s, tokens, SHORT, heard, NULL) == DSV4_OK);
    ck_assert_int_eq(one.calls, 1);
    ck_assert(same_bits(silent, heard, TINY_VOCAB));
    one.position = SHORT; /* a position that never comes */
    dsv4_session_reset(s);
    ck_assert(dsv4_session_append(s, tokens, SHORT, NULL, NULL) == DSV4_OK);
    ck_assert_int_eq(one.calls, 1);
    dsv4_session_free(s);
    dsv4_model_close(m);
}
END_TEST

/* Every tap but the very last stands in the way of the numbers: overwriting it moves the logits. */
START_TEST(what_a_tap_writes_is_what_follows)
{
    enum { SHORT = 41 }; /* 10 rows, 3 of them chosen */
    int32_t tokens[SHORT];
    float plain[TINY_VOCAB], changed[TINY_VOCAB];
    dsv4_model *m = open_tiny();
    dsv4_session *s = new_session(m, DSV4_MATH, 64);
    make_tokens(m, tokens, SHORT);
    ck_assert(dsv4_session_append(s, tokens, SHORT, plain, NULL) == DSV4_OK);
    for (int i = 0; i < DSV4_TAP_MTP_LOGITS; i++) {
        dsv4_tap_id id = (dsv4_tap_id)i;
        one_tap one = {.id = id,
                       .layer = id >= DSV4_TAP_HEAD_COLLAPSED ? -1 : 1,
                       .position = -1,
                       .change = true};
        const dsv4_taps taps = {.ctx = &one, .want = want_one, .tap = change_one};
        dsv4_session_reset(s);
        dsv4_session_set_taps(s, &taps);
        ck_assert(dsv4_session_append(s, tokens, SHORT, changed, NULL) == DSV4_OK);
        ck_assert_int_gt(one.calls, 0);
        double moved = distance(changed, plain, TINY_VOCAB);
        ck_assert_msg(moved > 1e-4, "%s: overwritten, the logits move by %g", dsv4_tap_name(id),
                      moved);
    }
    dsv4_session_free(s);
    dsv4_model_close(m);
}
END_TEST

typedef struct {
    int count[DSV4_TAP_COUNT];
} rounding_log;

static void log_rounding(void *ctx, dsv4_tap_id id, int layer, int64_t position, dsv4_rounding kind,
                         int block, const float *before, const float *after, size_t n)
{
    rounding_log *log = ctx;
    float again[TINY_INDEX_H * TINY_INDEX];
    (void)layer;
    (void)position;
    ck_assert(n <= COUNT_OF(again));
    memcpy(again, before, n * sizeof *again);
    bool fp8 = id == DSV4_TAP_KV || id == DSV4_TAP_COMPRESSED_KV;
    ck_assert_int_eq(kind, fp8 ? DSV4_ROUND_FP8 : DSV4_ROUND_FP4);
    ck_assert_int_eq(block, fp8 ? 64 : 32);
    if (fp8) {
        ck_assert_int_eq((int)n, TINY_HEAD - TINY_ROPE); /* the rotated dims stay as they are */
        ops()->round_fp8(again, 1, (int64_t)n, (int64_t)n, block);
    } else {
        ops()->round_fp4(again, 1, (int64_t)n, block);
    }
    ck_assert(same_bits(again, after, (int64_t)n));
    log->count[id]++;
}

START_TEST(qat_reports_each_rounded_row_and_math_reports_none)
{
    enum { SHORT = 21 };
    int32_t tokens[SHORT];
    dsv4_model *m = open_tiny();
    make_tokens(m, tokens, SHORT);
    for (int math = 0; math < 2; math++) {
        rounding_log log = {{0}};
        const dsv4_taps taps = {.ctx = &log, .rounded = log_rounding};
        dsv4_session *s = new_session(m, math ? DSV4_MATH : DSV4_QAT, 8);
        dsv4_session_set_taps(s, &taps);
        ck_assert(dsv4_session_append(s, tokens, SHORT, NULL, NULL) == DSV4_OK);
        int once = !math;
        ck_assert_int_eq(log.count[DSV4_TAP_KV], once * TINY_LAYERS * SHORT);
        ck_assert_int_eq(log.count[DSV4_TAP_COMPRESSED_KV], once * (SHORT / 4));
        ck_assert_int_eq(log.count[DSV4_TAP_INDEXER_KV], once * (SHORT / 4));
        ck_assert_int_eq(log.count[DSV4_TAP_INDEXER_Q], once * SHORT);
        dsv4_session_free(s);
    }
    dsv4_model_close(m);
}
END_TEST

START_TEST(names_of_taps_and_numerics_parse_back)
{
    dsv4_tap_id id;
    dsv4_numerics numerics;
    for (int i = 0; i < DSV4_TAP_COUNT; i++) {
        ck_assert(dsv4_tap_parse(dsv4_tap_name((dsv4_tap_id)i), &id));
        ck_assert_int_eq(id, i);
    }
    for (int i = DSV4_MATH; i <= DSV4_DEPLOYED; i++) {
        ck_assert(dsv4_numerics_parse(dsv4_numerics_name((dsv4_numerics)i), &numerics));
        ck_assert_int_eq(numerics, i);
    }
    ck_assert(!dsv4_tap_parse("streams ", &id) && !dsv4_tap_parse("", &id));
    ck_assert(!dsv4_numerics_parse("MATH", &numerics));
    ck_assert_str_eq(dsv4_tap_name((dsv4_tap_id)DSV4_TAP_COUNT), "?");
}
END_TEST

int main(void)
{
    TCase *tokens = tcase_create("tokens"), *state = tcase_create("state");
    TCase *refused = tcase_create("refused"), *taps = tcase_create("taps");
    tcase_add_test(tokens, prefill_in_pieces_is_prefill_at_once);
    tcase_add_test(tokens, pieces_do_not_matter_in_rounded_numerics);
    tcase_add_test(tokens, prefill_in_pieces_is_prefill_at_once_on_stress);
    tcase_add_test(tokens, the_first_token_still_matters_at_the_end);
    tcase_add_test(tokens, the_three_numerics_differ);
    tcase_add_test(tokens, stress_gives_the_golden_logits);
    tcase_add_test(state, a_session_after_a_reset_is_a_new_one);
    tcase_add_loop_test(state, a_restored_session_goes_on_as_if_nothing_had_happened, 0,
                        (int)COUNT_OF(split_at));
    tcase_add_test(state, a_truncated_or_lengthened_blob_is_refused);
    tcase_add_test(state, a_foreign_blob_is_refused);
    tcase_add_test(state, a_blob_with_a_damaged_word_harms_nothing);
    tcase_add_test(refused, bad_tokens_are_refused_before_anything_is_computed);
    tcase_add_test(refused, a_session_that_cannot_be_is_refused);
    tcase_add_test(refused, every_failed_allocation_is_reported_and_leaks_nothing);
    tcase_add_loop_test(taps, every_tap_reports_each_of_its_positions_once_in_order, 0, 3);
    tcase_add_test(taps, only_what_is_wanted_is_told_and_listening_changes_nothing);
    tcase_add_test(taps, what_a_tap_writes_is_what_follows);
    tcase_add_test(taps, qat_reports_each_rounded_row_and_math_reports_none);
    tcase_add_test(taps, names_of_taps_and_numerics_parse_back);
    TCase *cases[] = {tokens, state, refused, taps};
    if (!folder_make())
        return EXIT_FAILURE;
    int status = run_cases("session", cases, COUNT_OF(cases));
    folder_remove();
    return status;
}
