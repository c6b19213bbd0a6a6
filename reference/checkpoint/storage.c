/* storage.c - mapped files and the table of stored tensors. */
#include "storage.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>

dsv4_status storage_new(const char *container, const char *path, dsv4_storage **out,
                        dsv4_error *err)
{
    dsv4_storage *st = dsv4_alloc(1, sizeof *st, "a model's storage", err);
    if (st == NULL)
        return DSV4_E_MACHINE;
    st->container = container;
    st->path = dsv4_alloc(strlen(path) + 1, 1, "a path", err);
    if (st->path == NULL) {
        free(st);
        return DSV4_E_MACHINE;
    }
    strcpy(st->path, path);
    *out = st;
    return DSV4_OK;
}

void storage_free(dsv4_storage *st)
{
    if (st == NULL)
        return;
    storage_free(st->second);
    if (st->free_extra != NULL)
        st->free_extra(st->extra);
    storage_unmap(st);
    free(st->files);
    free(st->tensors);
    free(st->path);
    free(st);
}

void storage_unmap(dsv4_storage *st)
{
    for (int i = 0; i < st->n_files; i++) {
        if (st->files[i].base != NULL)
            munmap((void *)(uintptr_t)st->files[i].base, st->files[i].size);
        free(st->files[i].path);
    }
    for (size_t i = 0; i < st->n_tensors; i++)
        free(st->tensors[i].name);
    st->n_files = 0;
    st->n_tensors = 0;
}

bool storage_multiply(int64_t a, int64_t b, int64_t *out)
{
    if (a < 0 || b < 0 || (a != 0 && b > INT64_MAX / a))
        return false;
    *out = a * b;
    return true;
}

static bool grow(void **array, size_t count, size_t *capacity, size_t size, const char *what,
                 dsv4_error *err)
{
    if (count < *capacity)
        return true;
    size_t more = *capacity > 0 ? 2 * *capacity : 16;
    void *bigger = dsv4_alloc(more, size, what, err);
    if (bigger == NULL)
        return false;
    if (count > 0)
        memcpy(bigger, *array, count * size);
    free(*array);
    *array = bigger;
    *capacity = more;
    return true;
}

dsv4_status storage_map(dsv4_storage *st, const char *path, int *index, dsv4_error *err)
{
    size_t capacity = (size_t)st->cap_files;
    void *files = st->files;
    if (!grow(&files, (size_t)st->n_files, &capacity, sizeof *st->files, "mapped files", err))
        return DSV4_E_MACHINE;
    st->files = files;
    st->cap_files = (int)capacity;

    mapped_file f = {0};
    struct stat info;
    dsv4_status status = DSV4_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
    if (fd < 0)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(fd, &info) != 0) {
        status = dsv4_fail(err, DSV4_E_MACHINE, "%s: cannot stat: %s", path, strerror(errno));
        goto done;
    }
    if (!S_ISREG(info.st_mode)) {
        status = dsv4_fail(err, DSV4_E_INPUT, "%s: expected a regular file", path);
        goto done;
    }
    if (info.st_size == 0) {
        status = dsv4_fail(err, DSV4_E_INPUT, "%s: the file is empty", path);
        goto done;
    }
    f.size = (uint64_t)info.st_size;
    f.path = dsv4_alloc(strlen(path) + 1, 1, "a path", err);
    if (f.path == NULL) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    strcpy(f.path, path);
    void *base = mmap(NULL, f.size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (base == MAP_FAILED) {
        status = dsv4_fail(err, DSV4_E_MACHINE, "%s: cannot map %llu bytes: %s", path,
                           (unsigned long long)f.size, strerror(errno));
        free(f.path);
        goto done;
    }
    f.base = base;
    *index = st->n_files;
    st->files[st->n_files++] = f;
done:
    close(fd);
    return status;
}

dsv4_status storage_add(dsv4_storage *st, const char *name, const stored_tensor *t, dsv4_error *err)
{
    void *tensors = st->tensors;
    if (!grow(&tensors, st->n_tensors, &st->cap_tensors, sizeof *t, "a tensor table", err))
        return DSV4_E_MACHINE;
    st->tensors = tensors;
    stored_tensor copy = *t;
    copy.name = dsv4_alloc(strlen(name) + 1, 1, "a tensor name", err);
    if (copy.name == NULL)
        return DSV4_E_MACHINE;
    strcpy(copy.name, name);
    st->tensors[st->n_tensors++] = copy;
    return DSV4_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const stored_tensor *)a)->name, ((const stored_tensor *)b)->name);
}

dsv4_status storage_index(dsv4_storage *st, dsv4_error *err)
{
    if (st->n_tensors > 1)
        qsort(st->tensors, st->n_tensors, sizeof *st->tensors, by_name);
    for (size_t i = 1; i < st->n_tensors; i++)
        if (strcmp(st->tensors[i - 1].name, st->tensors[i].name) == 0)
            return dsv4_fail(err, DSV4_E_INPUT, "%s: tensor %s is stored twice (in %s too)",
                             st->files[st->tensors[i - 1].file].path, st->tensors[i].name,
                             st->files[st->tensors[i].file].path);
    return DSV4_OK;
}

const stored_tensor *storage_find(const dsv4_storage *st, const char *name)
{
    stored_tensor key = {.name = (char *)(uintptr_t)name};
    if (st->n_tensors == 0)
        return NULL;
    return bsearch(&key, st->tensors, st->n_tensors, sizeof key, by_name);
}

dsv4_status read_text_file(const char *path, size_t limit, char **text, size_t *bytes,
                           dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    char *buffer = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    FILE *f = fd >= 0 ? fdopen(fd, "rb") : NULL;
    if (f == NULL) {
        status = dsv4_fail(err, fd < 0 ? DSV4_E_INPUT : DSV4_E_MACHINE, "%s: cannot open: %s", path,
                           strerror(errno));
        if (fd >= 0)
            close(fd);
        return status;
    }
    struct stat info;
    if (fstat(fileno(f), &info) != 0 || !S_ISREG(info.st_mode)) {
        status = dsv4_fail(err, DSV4_E_INPUT, "%s: expected a regular file", path);
        goto done;
    }
    if ((uint64_t)info.st_size > limit) {
        status = dsv4_fail(err, DSV4_E_INPUT, "%s: %lld bytes, expected at most %zu", path,
                           (long long)info.st_size, limit);
        goto done;
    }
    size_t size = (size_t)info.st_size;
    buffer = dsv4_alloc(size + 1, 1, path, err);
    if (buffer == NULL) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    if (fread(buffer, 1, size, f) != size) {
        status = dsv4_fail(err, DSV4_E_MACHINE, "%s: cannot read %zu bytes", path, size);
        goto done;
    }
    *text = buffer;
    *bytes = size;
    buffer = NULL;
done:
    free(buffer);
    fclose(f);
    return status;
}

/* ---- what the rest of the project sees ---------------------------------------------------- */

static int by_path(const void *a, const void *b)
{
    return strcmp((*(const mapped_file *const *)a)->path, (*(const mapped_file *const *)b)->path);
}

dsv4_status dsv4_model_sha256(const dsv4_model *m, char hex[65], dsv4_error *err)
{
    const dsv4_storage *st = m->storage;
    dsv4_status status = DSV4_E_MACHINE;
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    const mapped_file **order = dsv4_alloc((size_t)st->n_files, sizeof *order, "file order", err);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    if (order == NULL || ctx == NULL)
        goto done;
    for (int i = 0; i < st->n_files; i++)
        order[i] = &st->files[i];
    qsort(order, (size_t)st->n_files, sizeof *order, by_path);
    if (EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) != 1)
        goto done;
    for (int i = 0; i < st->n_files; i++)
        if (EVP_DigestUpdate(ctx, order[i]->base, order[i]->size) != 1)
            goto done;
    if (EVP_DigestFinal_ex(ctx, digest, &length) != 1 || length != 32)
        goto done;
    for (unsigned i = 0; i < length; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    status = DSV4_OK;
done:
    if (status != DSV4_OK)
        dsv4_fail(err, status, "%s: cannot compute sha256", st->path);
    EVP_MD_CTX_free(ctx);
    free(order);
    return status;
}

const char *dsv4_model_path(const dsv4_model *m)
{
    return m->storage->path;
}

const char *dsv4_model_container(const dsv4_model *m)
{
    return m->storage->container;
}

void dsv4_model_each_tensor(const dsv4_model *m,
                            bool (*each)(void *ctx, const dsv4_stored_tensor *t), void *ctx)
{
    for (const dsv4_storage *st = m->storage; st != NULL; st = st->second)
        for (size_t i = 0; i < st->n_tensors; i++) {
            const stored_tensor *t = &st->tensors[i];
            dsv4_stored_tensor out = {
                .name = t->name,
                .type = t->type,
                .ndim = t->ndim,
                .bytes = t->bytes,
                .file = st->files[t->file].path,
            };
            memcpy(out.shape, t->shape, sizeof out.shape);
            if (!each(ctx, &out))
                return;
        }
}
