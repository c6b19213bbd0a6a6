/* vectors_headers.c - object headers of HDF5 files, version 2, as the HDF5 File Format
 * Specification 3.0 lays them down (IV.A), for the few kinds of group and dataset that
 * vectors_direct.c reads itself: everything here works on bytes in memory. What is of another kind,
 * or damaged, is told apart and left to the library. */
#include "harness/vectors_direct.h"

#include <string.h>

enum { NIL, SPACE, LINK_INFO, TYPE, FILL = 5, LINK, LAYOUT = 8, GROUP_INFO = 10, FILTERS };
enum { ATTRIBUTE = 12, CONTINUATION = 16, MODIFIED = 18, ATTRIBUTE_INFO = 21, REFERENCES };

/* ---- checksum ------------------------------------------------------------------------------- */

static uint32_t turned(uint32_t x, int bits)
{
    return x << bits | x >> (32 - bits);
}

/* Four bytes, little-endian; most of a header's checksum is fetching them. */
static uint32_t word(const uint8_t *p)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint32_t value;
    memcpy(&value, p, sizeof value);
    return value;
#else
    return (uint32_t)vec_little(p, 4);
#endif
}

/* Bob Jenkins' lookup3 (hashlittle, first value 0), which HDF5 puts behind every header. */
uint32_t vec_checksum(const uint8_t *bytes, size_t n)
{
    uint32_t a = 0xdeadbeef + (uint32_t)n, b = a, c = a;
    uint8_t last[12] = {0};
    if (n == 0)
        return c;
    for (; n > 12; n -= 12, bytes += 12) {
        a += word(bytes);
        b += word(bytes + 4);
        c += word(bytes + 8);
        a = (a - c) ^ turned(c, 4), c += b;
        b = (b - a) ^ turned(a, 6), a += c;
        c = (c - b) ^ turned(b, 8), b += a;
        a = (a - c) ^ turned(c, 16), c += b;
        b = (b - a) ^ turned(a, 19), a += c;
        c = (c - b) ^ turned(b, 4), b += a;
    }
    memcpy(last, bytes, n);
    a += word(last);
    b += word(last + 4);
    c += word(last + 8);
    c = (c ^ b) - turned(b, 14);
    a = (a ^ c) - turned(c, 11);
    b = (b ^ a) - turned(a, 25);
    c = (c ^ b) - turned(b, 16);
    a = (a ^ c) - turned(c, 4);
    b = (b ^ a) - turned(a, 14);
    return (c ^ b) - turned(b, 24);
}

/* ---- headers and their messages ------------------------------------------------------------- */

bool vec_header_prefix(const uint8_t *bytes, size_t n, vec_header_form *out)
{
    if (n < 6 || memcmp(bytes, "OHDR", 4) != 0 || bytes[4] != 2)
        return false;
    uint8_t flags = bytes[5];
    size_t at = 6, width = (size_t)1 << (flags & 3);
    if (flags & 0xc0)
        return false;
    at += flags & 0x20 ? 16 : 0; /* four times */
    at += flags & 0x10 ? 4 : 0;  /* when attributes leave the header */
    if (n < at + width)
        return false;
    out->messages = at + width;
    out->size = vec_little(bytes + at, width);
    out->message_head = flags & 0x04 ? 6 : 4;
    return true;
}

bool vec_next_message(const uint8_t **p, const uint8_t *end, size_t head, vec_message *out)
{
    if ((size_t)(end - *p) < head)
        return false;
    out->type = (*p)[0];
    out->size = (size_t)vec_little(*p + 1, 2);
    out->flags = (*p)[3];
    out->data = *p + head;
    out->whole = out->size <= (size_t)(end - out->data);
    *p = out->whole ? out->data + out->size : end;
    return true;
}

bool vec_message_continues(const vec_message *m, uint64_t *address, uint64_t *size)
{
    if (m->type != CONTINUATION || m->size < 16)
        return false;
    *address = vec_little(m->data, 8);
    *size = vec_little(m->data + 8, 8);
    return true;
}

/* ---- groups --------------------------------------------------------------------------------- */

bool vec_header_is_group(const vec_header *h)
{
    const uint8_t *p = h->bytes, *end = p + h->size;
    vec_message m;
    bool compact = false;
    while (vec_next_message(&p, end, h->message_head, &m)) {
        bool shared = (m.flags & 2) != 0;
        switch (m.type) {
        case NIL:
        case GROUP_INFO:
        case ATTRIBUTE:
        case CONTINUATION:
        case MODIFIED:
        case ATTRIBUTE_INFO:
        case REFERENCES:
            break;
        case LINK:
            if (shared || m.size < 4)
                return false;
            break;
        case LINK_INFO: { /* version, flags, highest creation index if any, address of a heap */
            size_t heap = 2;
            if (shared || compact || m.size < 2 || m.data[0] != 0)
                return false;
            heap += m.data[1] & 1 ? 8 : 0;
            if (m.size < heap + 8 || vec_little(m.data + heap, 8) != VEC_NO_ADDRESS)
                return false;
            compact = true;
            break;
        }
        default:
            return false;
        }
    }
    return compact;
}

/* One link message: its name and, of a hard link, the address it leads to. */
static bool link_parse(const vec_message *m, const uint8_t **name, size_t *length,
                       uint64_t *address)
{
    const uint8_t *p = m->data, *end = p + m->size;
    uint8_t flags = p[1];
    size_t width = (size_t)1 << (flags & 3), head = 2 + width;
    head += (flags & 4 ? 8u : 0u) + (flags & 8 ? 1u : 0u) + (flags & 16 ? 1u : 0u);
    if (p[0] != 1 || m->size < head)
        return false;
    uint64_t n = vec_little(p + head - width, width);
    if (n > (uint64_t)(m->size - head))
        return false;
    *name = p + head;
    *length = (size_t)n;
    bool hard = !(flags & 8) || p[2] == 0;
    *address = hard && (size_t)(end - *name) - *length >= 8 ? vec_little(*name + *length, 8)
                                                            : VEC_NO_ADDRESS;
    return true;
}

vec_answer vec_header_link(const vec_header *h, const char *name, size_t length, uint64_t *address)
{
    const uint8_t *p = h->bytes, *end = p + h->size;
    vec_message m;
    while (vec_next_message(&p, end, h->message_head, &m)) {
        const uint8_t *found;
        size_t n;
        if (m.type != LINK)
            continue;
        if (!link_parse(&m, &found, &n, address))
            return VEC_ASK_LIBRARY;
        if (n == length && memcmp(found, name, n) == 0)
            return *address == VEC_NO_ADDRESS ? VEC_ASK_LIBRARY : VEC_HERE;
    }
    return VEC_ABSENT;
}

vec_answer vec_header_links(const vec_header *h, vec_link_visit visit, void *ctx)
{
    const uint8_t *p = h->bytes, *end = p + h->size;
    vec_message m;
    while (vec_next_message(&p, end, h->message_head, &m)) {
        const uint8_t *name;
        size_t n;
        uint64_t address;
        if (m.type != LINK)
            continue;
        if (!link_parse(&m, &name, &n, &address) || address == VEC_NO_ADDRESS)
            return VEC_ASK_LIBRARY;
        visit(ctx, (const char *)name, n, address);
    }
    return VEC_HERE;
}

/* ---- datasets ------------------------------------------------------------------------------- */

static bool space_parse(const vec_message *m, vec_stored *out)
{
    const uint8_t *p = m->data;
    if (m->size < 4)
        return false;
    size_t head = p[0] == 1 ? 8 : 4, axes = p[1];
    bool simple = p[0] == 1 || (p[0] == 2 && p[3] == 1);
    if (!simple || axes < 1 || axes > VEC_MAX_AXES || m->size < head + 8 * axes)
        return false;
    out->info.axes = (int)axes;
    for (size_t i = 0; i < axes; i++)
        out->info.dims[i] = vec_little(p + head + 8 * i, 8);
    return true;
}

/* Little-endian float32 or int32, and nothing like it. The high half of the first byte is the
 * version of the message, which says nothing about plain numbers. */
static bool type_parse(const vec_message *m, vec_stored *out)
{
    static const uint8_t float32[] = {1,    0x20, 31, 0, 4, 0,  0,   0, 0, 0,
                                      0x20, 0,    23, 8, 0, 23, 127, 0, 0, 0};
    static const uint8_t int32[] = {0, 8, 0, 0, 4, 0, 0, 0, 0, 0, 0x20, 0};
    if (m->size < sizeof int32 || m->data[0] >> 4 < 1 || m->data[0] >> 4 > 4)
        return false;
    bool integer = (m->data[0] & 15) == 0;
    out->info.type = integer ? H5T_INTEGER : H5T_FLOAT;
    if (integer)
        return memcmp(m->data + 1, int32 + 1, sizeof int32 - 1) == 0;
    return m->size >= sizeof float32 && (m->data[0] & 15) == 1 &&
           memcmp(m->data + 1, float32 + 1, sizeof float32 - 1) == 0;
}

/* A chunk that is the whole dataset, found without an index. */
static bool chunk_parse(const vec_message *m, vec_stored *out)
{
    enum { FILTERED = 2, SINGLE = 1 };
    if (m->size < 5 || m->data[0] != 4)
        return false;
    uint8_t flags = m->data[2];
    size_t axes = m->data[3], width = m->data[4], at = 5 + axes * width;
    if (axes < 2 || axes > VEC_MAX_AXES + 1 || width < 1 || width > 8 || (flags & ~FILTERED) ||
        m->size < at + 1 || m->data[at] != SINGLE)
        return false;
    at++;
    for (size_t i = 0; i < axes; i++)
        out->chunk[i] = vec_little(m->data + 5 + i * width, width);
    out->chunk_axes = (int)axes;
    out->filtered = (flags & FILTERED) != 0;
    if (out->filtered) {
        if (m->size < at + 12 || vec_little(m->data + at + 8, 4) != 0) /* no filter was skipped */
            return false;
        out->bytes = vec_little(m->data + at, 8);
        at += 12;
    }
    if (m->size < at + 8)
        return false;
    out->address = vec_little(m->data + at, 8);
    return true;
}

static bool layout_parse(const vec_message *m, vec_stored *out)
{
    enum { COMPACT, CONTIGUOUS, CHUNKED };
    if (m->size < 4 || (m->data[0] != 3 && m->data[0] != 4))
        return false;
    switch (m->data[1]) {
    case COMPACT:
        out->bytes = vec_little(m->data + 2, 2);
        out->inside = m->data + 4;
        return out->bytes <= m->size - 4;
    case CONTIGUOUS:
        if (m->size < 18)
            return false;
        out->address = vec_little(m->data + 2, 8);
        out->bytes = vec_little(m->data + 10, 8);
        return true;
    case CHUNKED:
        return chunk_parse(m, out);
    default:
        return false;
    }
}

/* Shuffle, deflate, or one after the other. */
static bool filters_parse(const vec_message *m, vec_stored *out)
{
    enum { DEFLATE = 1, SHUFFLE = 2 };
    const uint8_t *p = m->data, *end = p + m->size;
    if (m->size < 2 || p[0] != 2)
        return false;
    int count = p[1];
    p += 2;
    for (int i = 0; i < count; i++) {
        if (end - p < 6)
            return false;
        unsigned id = (unsigned)vec_little(p, 2), values = (unsigned)vec_little(p + 4, 2);
        p += 6;
        if (values != 1 || end - p < 4 || out->deflated)
            return false;
        if (id == SHUFFLE && !out->shuffled && vec_little(p, 4) == 4)
            out->shuffled = true;
        else if (id == DEFLATE)
            out->deflated = true;
        else
            return false;
        p += 4;
    }
    return true;
}

/* Whether what the messages say fits together. */
static bool stored_whole(vec_stored *out, bool filters)
{
    uint64_t elements = 1;
    bool empty = false;
    for (int i = 0; i < out->info.axes; i++) {
        uint64_t n = out->info.dims[i];
        out->info.shape[i] = (int64_t)n;
        empty = empty || n == 0;
        if (n > (uint64_t)VEC_MAX_ELEMENTS / elements)
            return false;
        elements *= n > 0 ? n : 1;
    }
    out->info.elements = empty ? 0 : (int64_t)elements;
    if (empty) /* nothing is stored, wherever that may be */
        return !filters && out->chunk_axes == 0;
    if (out->chunk_axes == 0) /* values as they are */
        return !filters && out->bytes == 4 * elements &&
               (out->inside != NULL || out->address != VEC_NO_ADDRESS);
    if (out->chunk_axes != out->info.axes + 1 || out->chunk[out->info.axes] != 4 ||
        out->address == VEC_NO_ADDRESS || out->filtered != filters)
        return false;
    for (int i = 0; i < out->info.axes; i++)
        if (out->chunk[i] != out->info.dims[i])
            return false;
    if (!out->filtered)
        out->bytes = 4 * elements;
    return out->deflated || out->bytes == 4 * elements;
}

bool vec_header_dataset(const vec_header *h, vec_stored *out)
{
    const uint8_t *p = h->bytes, *end = p + h->size;
    vec_message m;
    unsigned seen = 0;
    memset(out, 0, sizeof *out);
    while (vec_next_message(&p, end, h->message_head, &m)) {
        bool parsed = true, shared = (m.flags & 2) != 0;
        unsigned bit = m.type < 32 ? 1u << m.type : 0;
        switch (m.type) {
        case NIL:
        case FILL: /* every value is stored */
        case ATTRIBUTE:
        case CONTINUATION:
        case MODIFIED:
        case ATTRIBUTE_INFO:
        case REFERENCES:
            continue;
        case SPACE:
            parsed = space_parse(&m, out);
            break;
        case TYPE:
            parsed = type_parse(&m, out);
            break;
        case LAYOUT:
            parsed = layout_parse(&m, out);
            break;
        case FILTERS:
            parsed = filters_parse(&m, out);
            break;
        default: /* values in other files, types of old versions ... */
            return false;
        }
        if (!parsed || shared || (seen & bit))
            return false;
        seen |= bit;
    }
    unsigned all = 1u << SPACE | 1u << TYPE | 1u << LAYOUT;
    return (seen & all) == all && stored_whole(out, (seen & 1u << FILTERS) != 0);
}
