/* write_file.c - output files under temporary names, renamed when everything is written, and the
 * loop over the matrices that fill them. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness.h"
#include "recipes.h"

struct out_file {
    int fd;
    bool renamed;
    char *path, *temporary;
};

static dsv4_status failed(const out_file *f, const char *what, int number, dsv4_error *err)
{
    return dsv4_fail(err, DSV4_E_MACHINE, "%s: cannot %s: %s", f->path, what, strerror(number));
}

static void free_file(out_file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    free(f->path);
    free(f->temporary);
    free(f);
}

dsv4_status out_file_new(const char *path, uint64_t bytes, out_file **out, dsv4_error *err)
{
    size_t n = strlen(path) + 32;
    struct stat info;
    /* A rename would put a file in the place of a device or a pipe. */
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode))
        return dsv4_fail(err, DSV4_E_INPUT, "%s: is there already and is no regular file", path);
    out_file *f = dsv4_alloc(1, sizeof *f, "an output file", err);
    if (f == NULL)
        return DSV4_E_MACHINE;
    f->fd = -1;
    f->path = dsv4_alloc(n, 1, "a path", err);
    f->temporary = dsv4_alloc(n, 1, "a path", err);
    if (f->path == NULL || f->temporary == NULL) {
        free_file(f);
        return DSV4_E_MACHINE;
    }
    snprintf(f->path, n, "%s", path);
    snprintf(f->temporary, n, "%s.tmp.%ld", path, (long)getpid());
    f->fd = open(f->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (f->fd < 0) {
        int number = errno;
        /* A directory that is not there or not ours is the caller's input; the rest is not. */
        dsv4_status status =
            number == ENOENT || number == ENOTDIR || number == EACCES || number == EISDIR
                ? DSV4_E_INPUT
                : DSV4_E_MACHINE;
        dsv4_fail(err, status, "%s: cannot create: %s", f->path, strerror(number));
        free_file(f);
        return status;
    }
    int number = bytes > 0 ? posix_fallocate(f->fd, 0, (off_t)bytes) : 0;
    if (number == ENOSPC || number == EFBIG || number == EDQUOT || number == EIO) {
        dsv4_fail(err, DSV4_E_MACHINE, "%s: cannot reserve %llu bytes: %s", f->path,
                  (unsigned long long)bytes, strerror(number));
        out_file_abort(f);
        return DSV4_E_MACHINE;
    }
    *out = f; /* other failures: the file system cannot reserve; writing will tell */
    return DSV4_OK;
}

dsv4_status out_file_write(out_file *f, uint64_t offset, const void *data, size_t bytes,
                           dsv4_error *err)
{
    const char *p = data;
    while (bytes > 0) {
        ssize_t n = pwrite(f->fd, p, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return failed(f, "write", n < 0 ? errno : ENOSPC, err);
        p += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return DSV4_OK;
}

void out_file_abort(out_file *f)
{
    if (f == NULL)
        return;
    unlink(f->renamed ? f->path : f->temporary);
    free_file(f);
}

dsv4_status out_files_commit(out_file **files, size_t n, dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    /* Late write errors (quota, network file systems) show at close. */
    for (size_t i = 0; i < n && status == DSV4_OK; i++) {
        if (files[i] == NULL)
            continue;
        int fd = files[i]->fd;
        files[i]->fd = -1;
        if (close(fd) != 0)
            status = failed(files[i], "close", errno, err);
    }
    for (size_t i = 0; i < n && status == DSV4_OK; i++) {
        if (files[i] == NULL)
            continue;
        if (rename(files[i]->temporary, files[i]->path) != 0)
            status = failed(files[i], "rename the temporary file", errno, err);
        else
            files[i]->renamed = true;
    }
    for (size_t i = 0; i < n; i++) {
        if (files[i] == NULL)
            continue;
        if (status == DSV4_OK)
            free_file(files[i]);
        else
            out_file_abort(files[i]);
        files[i] = NULL;
    }
    return status;
}

/* ---- filling ------------------------------------------------------------------------------ */

typedef struct {
    const model_output *o;
    byte_sink (*sink_of)(void *writer, size_t i, int64_t e, void *room);
    void *writer;
    int64_t *first;       /* [weights.count] number of a weight's first matrix among all */
    pthread_mutex_t lock; /* of the progress line */
    progress progress;
} filler;

static dsv4_status make_one(void *ctx, int64_t n, dsv4_error *err)
{
    filler *f = ctx;
    max_align_t room[4];
    size_t low = 0, high = f->o->weights.count;
    while (low + 1 < high) { /* the last weight that starts at or before n */
        size_t middle = low + (high - low) / 2;
        if (f->first[middle] <= n)
            low = middle;
        else
            high = middle;
    }
    const weight *w = &f->o->weights.items[low];
    int64_t e = n - f->first[low];
    if (e == 0) {
        pthread_mutex_lock(&f->lock);
        progress_step(&f->progress, w->name);
        pthread_mutex_unlock(&f->lock);
    }
    byte_sink sink = f->sink_of(f->writer, low, e, room);
    return f->o->maker.make(f->o->maker.ctx, w, e, &f->o->encodings[low], &sink, err);
}

dsv4_status make_all(const model_output *o,
                     byte_sink (*sink_of)(void *writer, size_t i, int64_t e, void *room),
                     void *writer, dsv4_error *err)
{
    filler f = {.o = o, .sink_of = sink_of, .writer = writer, .lock = PTHREAD_MUTEX_INITIALIZER};
    int64_t count = 0;
    f.first = dsv4_alloc(o->weights.count, sizeof *f.first, "a list of matrices", err);
    if (f.first == NULL)
        return DSV4_E_MACHINE;
    for (size_t i = 0; i < o->weights.count; i++) {
        f.first[i] = count;
        count += o->weights.items[i].experts > 0 ? o->weights.items[i].experts : 1;
    }
    progress_start(&f.progress, o->weights.count, o->progress);
    dsv4_status status = share_work(o->threads, count, make_one, &f, err);
    progress_end(&f.progress);
    pthread_mutex_destroy(&f.lock);
    free(f.first);
    return status;
}
