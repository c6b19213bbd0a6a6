/* vectors_rows.c - memory for golden rows. A case's rows are many small pieces that come and go
 * together, and a page that is touched for the first time costs as much as decoding into it: so
 * they share chunks, whose pages are asked for at once. */
#define _DEFAULT_SOURCE /* madvise */
#include "harness/vectors_private.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    CHUNK = 512 << 10,
    ALIGNED = 64,
    LARGE = CHUNK / 4 /* bytes of a piece with its own chunk */
};

/* Stands at the start of a chunk, a multiple of CHUNK: so that a piece leads to it. */
typedef struct {
    void *memory; /* what to free */
    size_t used;  /* bytes, this head included */
    size_t live;  /* pieces */
} chunk;

#if defined(__SANITIZE_ADDRESS__)
#define TOGETHER false /* each its own, for AddressSanitizer to watch its ends */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TOGETHER false
#endif
#endif
#ifndef TOGETHER
#define TOGETHER true
#endif

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static chunk *current; /* pieces are taken from here; NULL = from a new one */

static chunk *new_chunk(size_t bytes, dsv4_error *err)
{
    void *memory = dsv4_alloc_unset(bytes + CHUNK, 1, "golden rows", err);
    if (memory == NULL)
        return NULL;
    uintptr_t start = ((uintptr_t)memory + CHUNK - 1) / CHUNK * CHUNK;
    chunk *c = (chunk *)start;
#ifdef MADV_POPULATE_WRITE
    (void)madvise(c, bytes, MADV_POPULATE_WRITE); /* a wish: without it all works as well */
#endif
    *c = (chunk){.memory = memory, .used = ALIGNED};
    return c;
}

void *vec_rows_take(size_t bytes, dsv4_error *err)
{
    void *piece = NULL;
    if (!TOGETHER)
        return dsv4_alloc_unset(bytes, 1, "golden rows", err);
    if (dsv4_alloc_fails() || bytes > SIZE_MAX - 2 * (size_t)CHUNK) {
        dsv4_fail(err, DSV4_E_MACHINE, "out of memory: %zu bytes for golden rows", bytes);
        return NULL;
    }
    bytes = (bytes + ALIGNED - 1) / ALIGNED * ALIGNED;
    pthread_mutex_lock(&mutex);
    bool alone = bytes >= LARGE;
    chunk *c = alone ? NULL : current;
    if (c == NULL || c->used + bytes > CHUNK) {
        c = new_chunk(alone ? ALIGNED + bytes : (size_t)CHUNK, err);
        if (!alone && c != NULL)
            current = c; /* the one before goes when its last piece does */
    }
    if (c != NULL) {
        piece = (uint8_t *)c + c->used;
        c->used += bytes;
        c->live++;
    }
    pthread_mutex_unlock(&mutex);
    return piece;
}

void vec_rows_give(void *piece)
{
    if (!TOGETHER)
        free(piece);
    if (!TOGETHER || piece == NULL)
        return;
    pthread_mutex_lock(&mutex);
    chunk *c = (chunk *)((uintptr_t)piece / CHUNK * CHUNK);
    c->live--;
    if (c->live == 0 && c == current)
        c->used = ALIGNED; /* its pages are touched: they are used again */
    else if (c->live == 0)
        free(c->memory);
    pthread_mutex_unlock(&mutex);
}
