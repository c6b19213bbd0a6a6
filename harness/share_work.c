/* share_work.c - independent pieces of work on a few threads. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "recipes.h"

typedef struct {
    pthread_mutex_t lock;
    int64_t next, count;
    dsv4_status (*one)(void *ctx, int64_t i, dsv4_error *err);
    void *ctx;
    dsv4_status status; /* of the failed piece with the lowest number */
    int64_t failed;
    dsv4_error error;
} pool;

static void *work(void *p)
{
    pool *w = p;
    dsv4_error err;
    pthread_mutex_lock(&w->lock);
    while (w->next < w->count && w->status == DSV4_OK) {
        int64_t i = w->next++;
        pthread_mutex_unlock(&w->lock);
        err.text[0] = '\0';
        dsv4_status status = w->one(w->ctx, i, &err);
        pthread_mutex_lock(&w->lock);
        if (status != DSV4_OK && (w->status == DSV4_OK || i < w->failed)) {
            w->status = status;
            w->failed = i;
            w->error = err;
        }
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

int threads_of_machine(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 256 ? 256 : (int)n;
}

dsv4_status share_work(int threads, int64_t count,
                       dsv4_status (*one)(void *ctx, int64_t i, dsv4_error *err), void *ctx,
                       dsv4_error *err)
{
    pool w = {.lock = PTHREAD_MUTEX_INITIALIZER, .count = count, .one = one, .ctx = ctx};
    int helpers = (int64_t)threads < count ? threads - 1 : (int)count - 1, started = 0;
    pthread_t *ids = helpers > 0 ? dsv4_alloc((size_t)helpers, sizeof *ids, "threads", NULL) : NULL;
    /* Fewer threads than wanted only take longer. */
    while (ids != NULL && started < helpers && pthread_create(&ids[started], NULL, work, &w) == 0)
        started++;
    work(&w);
    for (int i = 0; i < started; i++)
        pthread_join(ids[i], NULL);
    free(ids);
    pthread_mutex_destroy(&w.lock);
    if (w.status != DSV4_OK && err != NULL)
        *err = w.error;
    return w.status;
}
