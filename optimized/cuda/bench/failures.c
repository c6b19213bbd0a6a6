/* failures.c - a device without room, provoked: what is refused, in which words, and what it leaves
 * behind. */
#include "failures.h"

#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../device.h"
#include "optimized/optimized.h"

enum { MOST_BLOCKS = 64, SESSIONS = DSV4_CUDA_SEQUENCES };

/* All but `leave` bytes of what is free, in pieces. */
typedef struct {
    void *block[MOST_BLOCKS];
    int n;
} hog;

static void hog_take(hog *h, size_t leave)
{
    size_t piece = cu_free_bytes();
    while (h->n < MOST_BLOCKS && piece >= ((size_t)1 << 20)) {
        size_t available = cu_free_bytes();
        if (available <= leave)
            return;
        piece = piece < available - leave ? piece : available - leave;
        if (cudaMalloc(&h->block[h->n], piece) == cudaSuccess) {
            h->n++;
        } else {
            (void)cudaGetLastError();
            piece /= 2;
        }
    }
}

static void hog_free(hog *h)
{
    while (h->n > 0)
        cudaFree(h->block[--h->n]);
}

dsv4_status hold_memory(int64_t leave, dsv4_error *err)
{
    hog h = {.n = 0};
    dsv4_status status = cu_open(err);
    if (status != DSV4_OK)
        return status;
    hog_take(&h, (size_t)leave << 20);
    printf("holding all but %zu MB\n", cu_free_bytes() >> 20);
    fflush(stdout);
    while (getchar() != EOF)
        continue;
    hog_free(&h);
    return DSV4_OK;
}

/* ---- refusals ------------------------------------------------------------------------------- */

static int failed;

static void say(bool ok, const char *what, const char *text)
{
    printf("%s  %s%s%s\n", ok ? "ok  " : "FAIL", what, text[0] != '\0' ? ": " : "", text);
    failed += !ok;
}

/* Refused for want of memory, in one line that says how much of it, and nothing is gone? */
static void refused(const char *what, dsv4_status status, const dsv4_error *e, size_t before)
{
    size_t now = cu_free_bytes();
    bool said = strstr(e->text, "MB wanted") != NULL && strstr(e->text, "MB free") != NULL &&
                strchr(e->text, '\n') == NULL;
    say(status == DSV4_E_MACHINE && said && now == before, what, e->text);
}

static dsv4_status decode_some(dsv4_cuda *d, float *logits, size_t vocab, dsv4_error *err)
{
    dsv4_session_options o = {.max_positions = 16, .chunk = 4};
    dsv4_cuda_session *s = NULL;
    dsv4_status status = dsv4_cuda_session_new(d, &o, &s, err);
    for (int32_t t = 0; t < 12 && status == DSV4_OK; t++)
        status = dsv4_cuda_session_append(s, &(int32_t){t % (int32_t)vocab}, 1, logits, err);
    dsv4_cuda_session_free(s);
    return status;
}

dsv4_status provoke_failures(const char *path, int *count, dsv4_error *err)
{
    dsv4_model *m = NULL;
    dsv4_cuda *d = NULL, *other = NULL;
    dsv4_cuda_session *s[SESSIONS] = {NULL}, *none = NULL;
    dsv4_cuda_batch *b = NULL;
    dsv4_error e = {""};
    float *first = NULL, *again = NULL;
    hog h = {.n = 0};
    dsv4_session_options o = {.max_positions = 64};
    failed = 0;
    dsv4_status status = dsv4_model_open(path, &m, err);
    if (status == DSV4_OK)
        status = dsv4_cuda_open(m, &d, err);
    if (status != DSV4_OK)
        goto done;
    size_t vocab = (size_t)m->config.vocab_size;
    first = dsv4_alloc(vocab, sizeof *first, "logits", err);
    again = dsv4_alloc(vocab, sizeof *again, "logits", err);
    status = first != NULL && again != NULL ? decode_some(d, first, vocab, err) : DSV4_E_MACHINE;
    for (int i = 0; i < SESSIONS && status == DSV4_OK; i++)
        status = dsv4_cuda_session_new(d, &o, &s[i], err);
    if (status != DSV4_OK)
        goto done;

    hog_take(&h, 0);
    size_t before = cu_free_bytes();
    refused("no room for a second engine", dsv4_cuda_open(m, &other, &e), &e, before);
    dsv4_session_options longest = {.max_positions = m->config.max_position_embeddings};
    refused("no room for a session of the longest context",
            dsv4_cuda_session_new(d, &longest, &none, &e), &e, before);
    refused("no room for a batch", dsv4_cuda_batch_new(s, SESSIONS, &b, &e), &e, before);
    hog_free(&h);

    /* Twice: what the driver keeps once it has done something for the first time is no leak. */
    bool same = true;
    for (int round = 0; round < 2 && status == DSV4_OK; round++) {
        before = cu_free_bytes();
        status = dsv4_cuda_batch_new(s, SESSIONS, &b, err);
        dsv4_cuda_batch_free(b);
        b = NULL;
        if (status == DSV4_OK)
            status = decode_some(d, again, vocab, err);
        same = same && status == DSV4_OK && memcmp(first, again, vocab * sizeof *first) == 0;
    }
    say(status == DSV4_OK, "the batch, with room", status == DSV4_OK ? "" : err->text);
    say(same, "a small session computes what it did before", "");
    say(cu_free_bytes() == before, "nothing is left behind", "");
    longest.max_positions = m->config.max_position_embeddings + 1;
    say(dsv4_cuda_session_new(d, &longest, &none, &e) == DSV4_E_INPUT,
        "more positions than the model has", e.text);
    for (int i = 0; i < 65 && status == DSV4_OK; i++) {
        dsv4_status end = dsv4_cuda_session_append(s[0], &(int32_t){0}, 1, NULL, &e);
        if (i == 64)
            say(end == DSV4_E_INPUT && dsv4_cuda_session_position(s[0]) == 64,
                "a token behind the session's last position", e.text);
        else
            status = end;
    }
done:
    *count = failed;
    hog_free(&h);
    free(first);
    free(again);
    for (int i = 0; i < SESSIONS; i++)
        dsv4_cuda_session_free(s[i]);
    dsv4_cuda_close(d);
    dsv4_model_close(m);
    return status;
}
