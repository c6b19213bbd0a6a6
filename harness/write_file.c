/* write_file.c - output files under temporary names, renamed when everything is written. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
