/* vectors_direct.h - datasets of a vector file read without the HDF5 library. The library takes 40
 * to 60 microseconds to look a dataset up, open it, read it and close it, whatever its size, and
 * inflates with zlib; a golden file holds some hundred datasets of a few kilobytes. What is read
 * here: groups whose links stand in their header, and datasets of float32 or int32 (little-endian)
 * that are compact, contiguous or one chunk, plain or shuffled and deflated. All else, and
 * everything that looks damaged, is left to the library, whose answer and message count. */
#ifndef DSV4_VECTORS_DIRECT_H
#define DSV4_VECTORS_DIRECT_H

#include "harness/vectors_private.h"

#define VEC_NO_ADDRESS UINT64_MAX

typedef enum {
    VEC_ASK_LIBRARY, /* of another kind, or damaged */
    VEC_ABSENT,
    VEC_HERE
} vec_answer;

/* ---- headers, vectors_headers.c: bytes in memory -------------------------------------------- */

/* n bytes, little-endian */
static inline uint64_t vec_little(const uint8_t *p, size_t n)
{
    uint64_t value = 0;
    for (size_t i = n; i > 0; i--)
        value = value << 8 | p[i - 1];
    return value;
}

uint32_t vec_checksum(const uint8_t *bytes, size_t n); /* of HDF5's metadata */

/* Where the messages of a header begin and end. */
typedef struct {
    size_t messages;     /* bytes before the first */
    uint64_t size;       /* of the messages; a checksum of 4 bytes follows */
    size_t message_head; /* bytes before the data of each */
} vec_header_form;

/* false = no header of version 2. */
bool vec_header_prefix(const uint8_t *bytes, size_t n, vec_header_form *out);

/* The messages of an object, all its blocks put together, checksums checked. */
typedef struct {
    bool known; /* else of another kind, or damaged */
    bool group; /* with every link in it */
    uint8_t *bytes;
    size_t size, capacity, message_head;
} vec_header;

typedef struct {
    unsigned type, flags;
    const uint8_t *data;
    size_t size;
    bool whole; /* else it reaches beyond the block */
} vec_message;

/* The message at *p; false = what is left is too short for one. */
bool vec_next_message(const uint8_t **p, const uint8_t *end, size_t head, vec_message *out);
/* Whether a message (whole) names a further block of the header. */
bool vec_message_continues(const vec_message *m, uint64_t *address, uint64_t *size);

/* Whether the messages are those of a group whose links are all among them. */
bool vec_header_is_group(const vec_header *h);
/* The address of what a group (is_group) calls by this name. */
vec_answer vec_header_link(const vec_header *h, const char *name, size_t length, uint64_t *address);

/* Every link of a group: a name of n bytes, not terminated. VEC_HERE = those were all;
 * VEC_ASK_LIBRARY = there is one of another kind. */
typedef void (*vec_link_visit)(void *ctx, const char *name, size_t n, uint64_t address);
vec_answer vec_header_links(const vec_header *h, vec_link_visit visit, void *ctx);

/* A dataset and where its values are. */
typedef struct vec_stored {
    vec_dataset_info info;
    uint64_t address, bytes; /* of the values, or of what the filters made of them */
    const uint8_t *inside;   /* values that stand in the header; points into it */
    uint64_t chunk[VEC_MAX_AXES + 1];
    int chunk_axes; /* 0 = no chunk */
    bool filtered, shuffled, deflated;
} vec_stored;

/* false = a dataset of another kind, or none. */
bool vec_header_dataset(const vec_header *h, vec_stored *out);

/* ---- files, vectors_direct.c ---------------------------------------------------------------- */

/* Under the library's lock: prepares reading an open file directly. *out = NULL when it cannot be
 * read so. */
dsv4_status vec_direct_new(const vec_file *f, vec_direct **out, dsv4_error *err);
void vec_direct_free(vec_direct *d);

/* What follows may be called by several threads and needs no lock; d = NULL: ask the library. */

/* The address of the object at `path` below the object at `base`; VEC_NO_ADDRESS = the file's
 * root, for base, and "not known" as an answer to VEC_ASK_LIBRARY. */
dsv4_status vec_direct_find(vec_direct *d, uint64_t base, const char *path, uint64_t *address,
                            vec_answer *answer, dsv4_error *err);

/* The links of the group at `address`, as vec_header_links. */
dsv4_status vec_direct_links(vec_direct *d, uint64_t address, vec_link_visit visit, void *ctx,
                             vec_answer *answer, dsv4_error *err);

/* The dataset at `path` below the group at `base`. Values in the header are copied to *inside
 * (given back by vec_rows_give), which out->inside is then. */
dsv4_status vec_direct_dataset(vec_direct *d, uint64_t base, const char *path, vec_stored *out,
                               void **inside, vec_answer *answer, dsv4_error *err);

/* `count` values from number `first` on, as float or int32. A dataset with filters is read whole
 * only. `path` is for messages. */
dsv4_status vec_direct_read(vec_direct *d, const vec_stored *from, const char *path, int64_t first,
                            int64_t count, void *dst, dsv4_error *err);

#endif
