/* support_session.h - models and sessions for the tests, and a record of the logits of a run. */
#ifndef DSV4_TEST_SUPPORT_SESSION_H
#define DSV4_TEST_SUPPORT_SESSION_H

#include "support_checkpoint.h"

enum { LENGTH = 140, ROOM = 160 }; /* past the first row of the ratio-128 layers */

static inline dsv4_model *open_model(const char *path)
{
    dsv4_model *m = NULL;
    dsv4_error err = {0};
    ck_assert_msg(dsv4_model_open(path, &m, &err) == DSV4_OK, "%s", err.text);
    return m;
}

static inline dsv4_model *open_tiny(void)
{
    tiny *t = tiny_new();
    tiny_write(t);
    tiny_free(t);
    return open_model(folder);
}

static inline dsv4_model *open_stress(void)
{
    return open_model(DSV4_VECTORS "/stress");
}

static inline dsv4_session *new_session(const dsv4_model *m, dsv4_numerics numerics, int chunk)
{
    const dsv4_session_options options = {
        .numerics = numerics,
        .max_positions = ROOM,
        .mtp = true,
        .chunk = chunk,
    };
    dsv4_session *s = NULL;
    dsv4_error err = {0};
    ck_assert_msg(dsv4_session_new(m, ops(), &options, &s, &err) == DSV4_OK, "%s", err.text);
    return s;
}

static inline void make_tokens(const dsv4_model *m, int32_t *tokens, int n)
{
    noise r = {7};
    for (int i = 0; i < n; i++)
        tokens[i] = noise_below(&r, (int)m->config.vocab_size);
}

/* ---- recording logits --------------------------------------------------------------------- */

typedef struct {
    int64_t vocab, n, mtp_n; /* rows seen */
    float *logits, *mtp;     /* [ROOM][V] */
} record;

static inline bool want_logits(void *ctx, dsv4_tap_id id, int layer, int64_t position)
{
    (void)ctx;
    (void)position;
    return layer == -1 && (id == DSV4_TAP_LOGITS || id == DSV4_TAP_MTP_LOGITS);
}

static inline void keep_logits(void *ctx, dsv4_tap_id id, int layer, int64_t position, void *data,
                               size_t n)
{
    record *r = ctx;
    bool mtp = id == DSV4_TAP_MTP_LOGITS;
    (void)layer;
    ck_assert(n == (size_t)r->vocab && position < ROOM);
    memcpy((mtp ? r->mtp : r->logits) + position * r->vocab, data, n * sizeof(float));
    if (mtp)
        r->mtp_n++;
    else
        r->n++;
}

static inline record record_new(const dsv4_model *m)
{
    int64_t V = m->config.vocab_size;
    return (record){.vocab = V, .logits = zeros(ROOM * V), .mtp = zeros(ROOM * V)};
}

static inline void record_free(record *r)
{
    free(r->logits);
    free(r->mtp);
}

/* Appends tokens [from, to) in pieces, recording every position's logits. */
static inline void feed(dsv4_session *s, const int32_t *tokens, int from, int to, int piece,
                        record *r)
{
    const dsv4_taps taps = {.ctx = r, .want = want_logits, .tap = keep_logits};
    float *last = zeros(r->vocab);
    dsv4_error err = {0};
    dsv4_session_set_taps(s, &taps);
    for (int at = from; at < to; at += piece) {
        int n = to - at < piece ? to - at : piece;
        ck_assert_msg(dsv4_session_append(s, tokens + at, n, last, &err) == DSV4_OK, "%s",
                      err.text);
        ck_assert_int_eq(dsv4_session_position(s), at + n);
        ck_assert(same_bits(last, r->logits + (at + n - 1) * r->vocab, r->vocab));
    }
    dsv4_session_set_taps(s, NULL);
    free(last);
}

static inline double furthest(const record *a, const record *b, int64_t from, int64_t to)
{
    double most = 0;
    for (int64_t i = from; i < to; i++)
        most = fmax(most, distance(a->logits + i * a->vocab, b->logits + i * b->vocab, a->vocab));
    for (int64_t i = from; i < to - 1; i++)
        most = fmax(most, distance(a->mtp + i * a->vocab, b->mtp + i * b->vocab, a->vocab));
    return most;
}

static inline bool same_record(const record *a, const record *b, int64_t n)
{
    return same_bits(a->logits, b->logits, n * a->vocab) &&
           same_bits(a->mtp, b->mtp, (n - 1) * a->vocab);
}

/* A whole run by a new session. */
static inline record run(const dsv4_model *m, dsv4_numerics numerics, int chunk, int piece,
                         const int32_t *tokens, int n)
{
    record r = record_new(m);
    dsv4_session *s = new_session(m, numerics, chunk);
    feed(s, tokens, 0, n, piece, &r);
    ck_assert_int_eq(r.n, n);
    ck_assert_int_eq(r.mtp_n, n - 1); /* the last token waits for its successor */
    dsv4_session_free(s);
    return r;
}

#endif
