/* vectors_direct.c - datasets of a vector file read without the HDF5 library: blocks of the file,
 * the headers in them, values with their filters undone. See vectors_direct.h for what and why. */
#include "harness/vectors_direct.h"

#include <errno.h>
#include <libdeflate.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    VALUE = 4,
    BLOCK = 64 << 10,      /* bytes read at a time where less is asked for */
    BLOCKS = 8,            /* of them remembered */
    HEADERS = 32,          /* groups remembered: of each thread's case a few */
    MAX_HEADER = 1 << 20,  /* bytes of messages */
    MAX_BLOCKS = 64,       /* of a header */
    MAX_PACKED = 32 << 20, /* bytes of a dataset behind filters: read whole, kept while asked for */
};

typedef struct {
    uint8_t *bytes;
    size_t capacity;
} buffer;

struct vec_direct {
    pthread_mutex_t mutex; /* for all below */
    const char *file;      /* its path, for messages */
    int fd;                /* the library's own */
    uint64_t file_size, root;
    uint8_t *blocks; /* [BLOCKS][BLOCK] */
    uint64_t block_number[BLOCKS];
    unsigned next_block; /* is forgotten next */
    vec_header groups[HEADERS], object;
    uint64_t group_address[HEADERS]; /* beside each other: they are searched all the time */
    unsigned turn;                   /* which group is forgotten next */
    buffer packed, shuffled;         /* a dataset before and between its filters */
    buffer kept;                     /* the last dataset that was asked for in parts */
    uint64_t kept_address;           /* where it came from; VEC_NO_ADDRESS = nothing kept */
    struct libdeflate_decompressor *inflater;
};

/* ---- bytes ---------------------------------------------------------------------------------- */

static dsv4_status buffer_hold(buffer *b, size_t size, dsv4_error *err)
{
    if (size <= b->capacity)
        return DSV4_OK;
    size_t capacity = size + size / 2;
    free(b->bytes);
    b->capacity = 0;
    b->bytes = dsv4_alloc_unset(capacity, 1, "golden rows", err);
    if (b->bytes == NULL)
        return DSV4_E_MACHINE;
    b->capacity = capacity;
    return DSV4_OK;
}

/* Reads up to n bytes at `at`; *got < n only where the file ends. */
static dsv4_status read_at(const vec_direct *d, uint64_t at, void *dst, size_t n, size_t *got,
                           dsv4_error *err)
{
    *got = 0;
    while (*got < n) {
        ssize_t k = pread(d->fd, (char *)dst + *got, n - *got, (off_t)(at + *got));
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return dsv4_fail(err, DSV4_E_MACHINE, "%s: cannot read it: %s", d->file,
                             strerror(errno));
        if (k == 0)
            break;
        *got += (size_t)k;
    }
    return DSV4_OK;
}

/* The block of the file with this number, which begins before the file's end. */
static dsv4_status block_at(vec_direct *d, uint64_t number, const uint8_t **out, dsv4_error *err)
{
    for (unsigned i = 0; i < BLOCKS; i++)
        if (d->block_number[i] == number) {
            *out = d->blocks + (size_t)i * BLOCK;
            return DSV4_OK;
        }
    unsigned i = d->next_block;
    size_t got, left = d->file_size - number * BLOCK > BLOCK
                           ? BLOCK
                           : (size_t)(d->file_size - number * BLOCK);
    d->next_block = (i + 1) % BLOCKS;
    d->block_number[i] = VEC_NO_ADDRESS;
    dsv4_status status = read_at(d, number * BLOCK, d->blocks + (size_t)i * BLOCK, left, &got, err);
    if (status != DSV4_OK)
        return status;
    if (got < left)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: expected %llu bytes, the file became shorter",
                         d->file, (unsigned long long)d->file_size);
    d->block_number[i] = number;
    *out = d->blocks + (size_t)i * BLOCK;
    return DSV4_OK;
}

/* n bytes at `at`; *whole = false when the file has no such bytes. Headers stand beside each other
 * and beside small values, and threads work in several places: blocks of the file are remembered.
 */
static dsv4_status fetch(vec_direct *d, uint64_t at, void *dst, size_t n, bool *whole,
                         dsv4_error *err)
{
    size_t got = 0;
    dsv4_status status = DSV4_OK;
    *whole = at <= d->file_size && n <= d->file_size - at;
    if (*whole && n > BLOCK) {
        status = read_at(d, at, dst, n, &got, err);
        *whole = got == n;
        return status;
    }
    while (*whole && got < n) {
        const uint8_t *block = NULL;
        size_t from = (size_t)((at + got) % BLOCK);
        size_t piece = n - got < BLOCK - from ? n - got : BLOCK - from;
        status = block_at(d, (at + got) / BLOCK, &block, err);
        if (status != DSV4_OK)
            return status;
        memcpy((char *)dst + got, block + from, piece);
        got += piece;
    }
    return DSV4_OK;
}

/* The same without a copy where they lie in one block; else through `room`. *out is good until
 * something else is read. */
static dsv4_status view(vec_direct *d, uint64_t at, size_t n, buffer *room, const uint8_t **out,
                        bool *whole, dsv4_error *err)
{
    *whole = at <= d->file_size && n <= d->file_size - at;
    if (!*whole)
        return DSV4_OK;
    if (n > 0 && at / BLOCK == (at + n - 1) / BLOCK) {
        dsv4_status status = block_at(d, at / BLOCK, out, err);
        if (status == DSV4_OK)
            *out += at % BLOCK;
        return status;
    }
    dsv4_status status = buffer_hold(room, n, err);
    *out = room->bytes;
    return status == DSV4_OK ? fetch(d, at, room->bytes, n, whole, err) : status;
}

/* ---- headers -------------------------------------------------------------------------------- */

/* Blocks of a header that are still to be read. */
typedef struct {
    uint64_t address[MAX_BLOCKS], size[MAX_BLOCKS];
    int count;
} blocks;

/* Reads the block number i, `size` bytes of which `before` precede its messages, behind the
 * messages that h holds; notes the blocks that follow. *known = false when it is damaged. */
static dsv4_status load_block(vec_direct *d, vec_header *h, blocks *b, int i, size_t before,
                              bool *known, dsv4_error *err)
{
    enum { CHECKSUM = 4 };
    uint64_t size = b->size[i];
    bool whole;
    *known = false;
    if (size < before + CHECKSUM || size > MAX_HEADER || h->size + size > MAX_HEADER)
        return DSV4_OK;
    if (h->size + size > h->capacity) {
        size_t capacity = 2 * (h->size + (size_t)size);
        uint8_t *grown = dsv4_alloc(capacity, 1, "an object's header", err);
        if (grown == NULL)
            return DSV4_E_MACHINE;
        if (h->size > 0)
            memcpy(grown, h->bytes, h->size);
        free(h->bytes);
        h->bytes = grown;
        h->capacity = capacity;
    }
    uint8_t *block = h->bytes + h->size;
    size_t end = (size_t)size - CHECKSUM;
    dsv4_status status = fetch(d, b->address[i], block, (size_t)size, &whole, err);
    if (status != DSV4_OK || !whole || vec_checksum(block, end) != vec_little(block + end, 4) ||
        (i > 0 && memcmp(block, "OCHK", 4) != 0))
        return status;
    const uint8_t *p = block + before, *stop = block + end;
    vec_message m;
    while (vec_next_message(&p, stop, h->message_head, &m)) {
        uint64_t address, more;
        if (!m.whole)
            return DSV4_OK;
        if (!vec_message_continues(&m, &address, &more))
            continue;
        if (b->count == MAX_BLOCKS)
            return DSV4_OK;
        b->address[b->count] = address;
        b->size[b->count++] = more;
    }
    size_t n = (size_t)(p - block) - before; /* a rest too short for a message is none */
    memmove(block, block + before, n);
    h->size += n;
    *known = true;
    return DSV4_OK;
}

/* Puts together what is said of the object at `address`. h->known tells whether it worked. */
static dsv4_status header_load(vec_direct *d, uint64_t address, vec_header *h, dsv4_error *err)
{
    enum { PREFIX = 34 }; /* the longest: signature, version, flags, times, limits, size */
    uint8_t prefix[PREFIX];
    vec_header_form form;
    blocks b;
    bool whole, known = true;
    h->known = h->group = false;
    h->size = 0;
    dsv4_status status = fetch(d, address, prefix, sizeof prefix, &whole, err);
    if (status != DSV4_OK || !whole || !vec_header_prefix(prefix, sizeof prefix, &form) ||
        form.size > MAX_HEADER)
        return status;
    h->message_head = form.message_head;
    b.count = 1;
    b.address[0] = address;
    b.size[0] = form.messages + form.size + 4;
    for (int i = 0; i < b.count && known; i++) {
        status = load_block(d, h, &b, i, i == 0 ? form.messages : 4, &known, err);
        if (status != DSV4_OK)
            return status;
    }
    h->known = known;
    return DSV4_OK;
}

/* The group at `address`, from memory or from the file. */
static dsv4_status group_at(vec_direct *d, uint64_t address, const vec_header **out,
                            dsv4_error *err)
{
    for (int i = 0; i < HEADERS; i++)
        if (d->group_address[i] == address) {
            *out = &d->groups[i];
            return DSV4_OK;
        }
    unsigned turn = d->turn;
    vec_header *h = &d->groups[turn];
    d->turn = (turn + 1) % HEADERS;
    d->group_address[turn] = VEC_NO_ADDRESS;
    dsv4_status status = header_load(d, address, h, err);
    if (status != DSV4_OK)
        return status;
    d->group_address[turn] = address;
    h->group = h->known && vec_header_is_group(h);
    *out = h;
    return DSV4_OK;
}

static dsv4_status find(vec_direct *d, uint64_t base, const char *path, uint64_t *address,
                        vec_answer *answer, dsv4_error *err)
{
    *address = base == VEC_NO_ADDRESS ? d->root : base;
    *answer = VEC_HERE;
    while (*path != '\0' && *answer == VEC_HERE) {
        const vec_header *group = NULL;
        size_t n = strcspn(path, "/");
        dsv4_status status = group_at(d, *address, &group, err);
        if (status != DSV4_OK)
            return status;
        *answer = group->group ? vec_header_link(group, path, n, address) : VEC_ASK_LIBRARY;
        path += path[n] == '/' ? n + 1 : n;
    }
    return DSV4_OK;
}

dsv4_status vec_direct_links(vec_direct *d, uint64_t address, vec_link_visit visit, void *ctx,
                             vec_answer *answer, dsv4_error *err)
{
    const vec_header *group = NULL;
    *answer = VEC_ASK_LIBRARY;
    if (d == NULL)
        return DSV4_OK;
    pthread_mutex_lock(&d->mutex);
    dsv4_status status = group_at(d, address, &group, err);
    if (status == DSV4_OK && group->group)
        *answer = vec_header_links(group, visit, ctx);
    pthread_mutex_unlock(&d->mutex);
    return status;
}

dsv4_status vec_direct_find(vec_direct *d, uint64_t base, const char *path, uint64_t *address,
                            vec_answer *answer, dsv4_error *err)
{
    *answer = VEC_ASK_LIBRARY;
    if (d == NULL)
        return DSV4_OK;
    pthread_mutex_lock(&d->mutex);
    dsv4_status status = find(d, base, path, address, answer, err);
    pthread_mutex_unlock(&d->mutex);
    return status;
}

/* ---- values --------------------------------------------------------------------------------- */

/* Values of four bytes, stored little-endian, in the order of this machine. */
static void to_native(void *values, size_t n)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    uint8_t *p = values;
    for (size_t i = 0; i < n; i++) {
        uint32_t word = (uint32_t)vec_little(p + VALUE * i, VALUE);
        memcpy(p + VALUE * i, &word, VALUE);
    }
#else
    (void)values;
    (void)n;
#endif
}

/* Undoes the shuffle filter: all first bytes, all second bytes ... into values. Native order comes
 * out. */
static void unshuffle(const uint8_t *restrict planes, size_t n, uint32_t *restrict out)
{
    const uint8_t *restrict a = planes, *restrict b = a + n, *restrict c = b + n,
                            *restrict e = c + n;
    for (size_t i = 0; i < n; i++)
        out[i] = (uint32_t)a[i] | (uint32_t)b[i] << 8 | (uint32_t)c[i] << 16 | (uint32_t)e[i] << 24;
}

/* Inflates `n` bytes that must become exactly `size`. */
static dsv4_status inflate_into(vec_direct *d, const char *path, const uint8_t *bytes, size_t n,
                                void *dst, size_t size, dsv4_error *err)
{
    size_t made = 0;
    if (d->inflater == NULL && (d->inflater = libdeflate_alloc_decompressor()) == NULL)
        return dsv4_fail(err, DSV4_E_MACHINE, "%s: %s: out of memory inflating it", d->file, path);
    switch (libdeflate_zlib_decompress(d->inflater, bytes, n, dst, size, &made)) {
    case LIBDEFLATE_SUCCESS:
        if (made == size)
            return DSV4_OK;
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: %s: cannot read rows (expected %zu bytes in its chunk, found %zu)",
                         d->file, path, size, made);
    case LIBDEFLATE_INSUFFICIENT_SPACE:
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: %s: cannot read rows (expected %zu bytes in its chunk, found more)",
                         d->file, path, size);
    default:
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: %s: cannot read rows (its chunk is no whole deflate stream)", d->file,
                         path);
    }
}

static dsv4_status beyond_end(const vec_direct *d, const char *path, uint64_t at, size_t n,
                              dsv4_error *err)
{
    return dsv4_fail(
        err, DSV4_E_INPUT,
        "%s: %s: cannot read rows (expected %zu bytes from byte %llu on, the file ends "
        "at %llu)",
        d->file, path, n, (unsigned long long)at, (unsigned long long)d->file_size);
}

/* `n` stored bytes at `at`. */
static dsv4_status fetch_values(vec_direct *d, const char *path, uint64_t at, void *dst, size_t n,
                                dsv4_error *err)
{
    bool whole;
    dsv4_status status = fetch(d, at, dst, n, &whole, err);
    return status == DSV4_OK && !whole ? beyond_end(d, path, at, n, err) : status;
}

/* A whole dataset with filters. */
static dsv4_status unpack(vec_direct *d, const vec_stored *from, const char *path, void *dst,
                          dsv4_error *err)
{
    size_t n = (size_t)from->info.elements, size = n * VALUE;
    uint8_t *values = dst;
    dsv4_status status = DSV4_OK;
    if (from->shuffled) {
        status = buffer_hold(&d->shuffled, size, err);
        values = d->shuffled.bytes;
    }
    if (status == DSV4_OK && from->deflated) {
        const uint8_t *packed = NULL;
        size_t stored = (size_t)from->bytes;
        bool whole;
        status = view(d, from->address, stored, &d->packed, &packed, &whole, err);
        if (status == DSV4_OK && !whole)
            status = beyond_end(d, path, from->address, stored, err);
        if (status == DSV4_OK)
            status = inflate_into(d, path, packed, stored, values, size, err);
    } else if (status == DSV4_OK) {
        status = fetch_values(d, path, from->address, values, size, err);
    }
    if (status == DSV4_OK && from->shuffled)
        unshuffle(values, n, dst);
    else if (status == DSV4_OK)
        to_native(dst, n);
    return status;
}

static dsv4_status read_values(vec_direct *d, const vec_stored *from, const char *path,
                               int64_t first, int64_t count, void *dst, dsv4_error *err)
{
    size_t n = (size_t)count * VALUE, at = (size_t)first * VALUE;
    if (!from->filtered) {
        dsv4_status status = fetch_values(d, path, from->address + at, dst, n, err);
        if (status == DSV4_OK)
            to_native(dst, (size_t)count);
        return status;
    }
    if (count == from->info.elements)
        return unpack(d, from, path, dst, err);
    if (d->kept_address != from->address) {
        d->kept_address = VEC_NO_ADDRESS;
        dsv4_status status = buffer_hold(&d->kept, (size_t)from->info.elements * VALUE, err);
        if (status == DSV4_OK)
            status = unpack(d, from, path, d->kept.bytes, err);
        if (status != DSV4_OK)
            return status;
        d->kept_address = from->address;
    }
    memcpy(dst, d->kept.bytes + at, n);
    return DSV4_OK;
}

dsv4_status vec_direct_read(vec_direct *d, const vec_stored *from, const char *path, int64_t first,
                            int64_t count, void *dst, dsv4_error *err)
{
    if (count == 0)
        return DSV4_OK;
    if (from->inside != NULL) { /* in native order since it was found */
        memcpy(dst, from->inside + first * VALUE, (size_t)count * VALUE);
        return DSV4_OK;
    }
    pthread_mutex_lock(&d->mutex);
    dsv4_status status = read_values(d, from, path, first, count, dst, err);
    pthread_mutex_unlock(&d->mutex);
    return status;
}

static dsv4_status dataset(vec_direct *d, uint64_t base, const char *path, vec_stored *out,
                           void **inside, vec_answer *answer, dsv4_error *err)
{
    uint64_t address;
    dsv4_status status = find(d, base, path, &address, answer, err);
    if (status != DSV4_OK || *answer != VEC_HERE)
        return status;
    status = header_load(d, address, &d->object, err);
    if (status != DSV4_OK)
        return status;
    *answer = VEC_ASK_LIBRARY;
    if (!d->object.known || !vec_header_dataset(&d->object, out) ||
        (out->filtered && (out->info.elements > MAX_PACKED / VALUE || out->bytes > MAX_PACKED)))
        return DSV4_OK;
    if (out->inside != NULL) {
        size_t n = (size_t)out->info.elements;
        *inside = vec_rows_take(n * VALUE, err);
        if (*inside == NULL)
            return DSV4_E_MACHINE;
        memcpy(*inside, out->inside, n * VALUE);
        to_native(*inside, n);
        out->inside = *inside;
    }
    *answer = VEC_HERE;
    return DSV4_OK;
}

dsv4_status vec_direct_dataset(vec_direct *d, uint64_t base, const char *path, vec_stored *out,
                               void **inside, vec_answer *answer, dsv4_error *err)
{
    *inside = NULL;
    *answer = VEC_ASK_LIBRARY;
    if (d == NULL)
        return DSV4_OK;
    pthread_mutex_lock(&d->mutex);
    dsv4_status status = dataset(d, base, path, out, inside, answer, err);
    pthread_mutex_unlock(&d->mutex);
    return status;
}

/* ---- files ---------------------------------------------------------------------------------- */

/* The descriptor under the library's file, or -1; *root = the address of the root group. Addresses
 * of eight bytes that count from the file's first one, or nothing. */
static int library_descriptor(hid_t file, uint64_t *root)
{
#if H5_VERSION_GE(1, 12, 0)
    H5O_info1_t info;
#else
    H5O_info_t info;
#endif
    int descriptor = -1, *handle = NULL;
    size_t address_size = 0, length_size = 0;
    hsize_t before = 1;
    hid_t create = H5Fget_create_plist(file), access = H5Fget_access_plist(file);
    if (create >= 0 && access >= 0 && H5Pget_driver(access) == H5FD_SEC2 &&
        H5Pget_sizes(create, &address_size, &length_size) >= 0 && address_size == 8 &&
        length_size == 8 && H5Pget_userblock(create, &before) >= 0 && before == 0 &&
        H5Oget_info2(file, &info, H5O_INFO_BASIC) >= 0 &&
        H5Fget_vfd_handle(file, access, (void **)&handle) >= 0 && handle != NULL) {
        descriptor = *handle;
        *root = info.addr;
    }
    if (access >= 0)
        H5Pclose(access);
    if (create >= 0)
        H5Pclose(create);
    H5Eclear2(H5E_DEFAULT);
    return descriptor;
}

dsv4_status vec_direct_new(const vec_file *f, vec_direct **out, dsv4_error *err)
{
    struct stat info;
    uint64_t root = 0;
    *out = NULL;
    int fd = library_descriptor(f->id, &root);
    if (fd < 0 || fstat(fd, &info) != 0)
        return DSV4_OK;
    vec_direct *d = dsv4_alloc(1, sizeof *d, "vector file", err);
    uint8_t *room = d != NULL ? vec_rows_take((size_t)BLOCKS * BLOCK, err) : NULL;
    if (room == NULL) {
        free(d);
        return DSV4_E_MACHINE;
    }
    pthread_mutex_init(&d->mutex, NULL);
    d->file = f->path;
    d->fd = fd;
    d->file_size = (uint64_t)info.st_size;
    d->root = root;
    d->blocks = room;
    for (int i = 0; i < BLOCKS; i++)
        d->block_number[i] = VEC_NO_ADDRESS;
    d->kept_address = VEC_NO_ADDRESS;
    for (int i = 0; i < HEADERS; i++)
        d->group_address[i] = VEC_NO_ADDRESS;
    *out = d;
    return DSV4_OK;
}

void vec_direct_free(vec_direct *d)
{
    if (d == NULL)
        return;
    for (int i = 0; i < HEADERS; i++)
        free(d->groups[i].bytes);
    free(d->object.bytes);
    free(d->packed.bytes);
    free(d->shuffled.bytes);
    free(d->kept.bytes);
    vec_rows_give(d->blocks);
    if (d->inflater != NULL)
        libdeflate_free_decompressor(d->inflater);
    pthread_mutex_destroy(&d->mutex);
    free(d);
}
