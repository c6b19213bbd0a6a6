/* fuzz_vectors.c - vector files of any structure. The HDF5 library itself does not survive
 * arbitrary damage to its own metadata, so the bytes drive a builder: each file is valid HDF5 with
 * arbitrary groups, types, ranks, extents, layouts, chunks, attributes and values, which is where
 * our reader's own checks have to hold. What it reads without the library gets the bytes as they
 * are: as the messages of an object's header, and as a chunk behind the filters. */
#include <hdf5.h>
#include <string.h>

#include "fuzz.h"
#include "harness/vectors_direct.h"

typedef struct {
    const uint8_t *p;
    size_t left;
} stream;

static unsigned next(stream *s, unsigned limit)
{
    if (s->left == 0)
        return 0;
    s->left--;
    return *s->p++ % limit;
}

static void put_attribute(hid_t at, const char *name, stream *s)
{
    static const char *const texts[] = {"dsv4-vectors-1", "prefill", "decode",        "",
                                        "math: x",        "{}",      "dsv4-vectors-2"};
    hid_t space = H5Screate(H5S_SCALAR);
    if (next(s, 3) == 0) {
        int v = (int)next(s, 256) - 16;
        hid_t a = H5Acreate2(at, name, H5T_NATIVE_INT, space, H5P_DEFAULT, H5P_DEFAULT);
        if (a >= 0)
            H5Awrite(a, H5T_NATIVE_INT, &v);
        H5Aclose(a);
    } else {
        const char *text = texts[next(s, 7)];
        hid_t type = H5Tcopy(H5T_C_S1);
        H5Tset_size(type, strlen(text) + 1);
        hid_t a = H5Acreate2(at, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
        if (a >= 0)
            H5Awrite(a, type, text);
        H5Aclose(a);
        H5Tclose(type);
    }
    H5Sclose(space);
}

static bool newest; /* the file is of the kind that our reader reads itself */

/* How a dataset of these extents is stored. *chunk = bytes of the stream that are its one chunk:
 * where the library reads it, a chunk that inflates to too little makes it read beyond its memory
 * (1.10.8), which is not what is tried here. */
static hid_t storage(stream *s, int rank, const hsize_t *dims, size_t n, size_t *chunk)
{
    hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    unsigned how = rank > 0 && n > 0 ? next(s, 6) : 0;
    *chunk = 0;
    if (how == 1)
        H5Pset_layout(list, H5D_COMPACT);
    if (how < 2)
        return list;
    H5Pset_chunk(list, rank, dims);
    if (how == 3 || how == 5)
        H5Pset_shuffle(list);
    if (how >= 4)
        H5Pset_deflate(list, 1);
    if (how >= 4 && newest && next(s, 2) == 0)
        *chunk = 1 + next(s, 40);
    return list;
}

static void put_dataset(hid_t at, const char *name, stream *s)
{
    hsize_t dims[5];
    int rank = (int)next(s, 5);
    size_t n = 1;
    for (int i = 0; i < rank; i++)
        n *= (size_t)(dims[i] = next(s, 6));
    bool integers = next(s, 2) == 0;
    int32_t *values = calloc(n + 1, sizeof *values);
    for (size_t i = 0; i < n; i++)
        values[i] = (int32_t)next(s, 256) - 2;
    hid_t space = H5Screate_simple(rank, dims, NULL);
    hid_t type = integers ? H5T_STD_I32LE : H5T_IEEE_F32LE;
    size_t chunk;
    hid_t list = storage(s, rank, dims, n, &chunk);
    hid_t d = H5Dcreate2(at, name, type, space, H5P_DEFAULT, list, H5P_DEFAULT);
    H5Pclose(list);
    if (d >= 0 && chunk > 0) {
        static const hsize_t first[5];
        uint8_t bytes[64] = {0x78, 0x9c};
        for (size_t i = 2; i < chunk; i++)
            bytes[i] = (uint8_t)next(s, 256);
        H5Dwrite_chunk(d, H5P_DEFAULT, 0, first, chunk, bytes);
    } else if (d >= 0)
        H5Dwrite(d, integers ? H5T_NATIVE_INT32 : H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT,
                 values);
    H5Dclose(d);
    H5Sclose(space);
    free(values);
}

static void build(const char *path, stream *s)
{
    static const char *const attributes[] = {"schema", "config", "numerics", "weights_sha256"};
    static const char *const case_attributes[] = {"kind", "context", "prefill"};
    static const char *const datasets[] = {"tokens",        "positions",    "logits",     "streams",
                                           "streams_steps", "logits_steps", "final_norm", "other"};
    static const char *const layer_taps[] = {
        "streams", "q", "compressed_kv", "indexer_scores", "indexer_topk", "router_experts", "kv"};
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), root = H5Pcreate(H5P_FILE_CREATE);
    hid_t group = H5Pcreate(H5P_GROUP_CREATE);
    newest = next(s, 4) != 0;
    if (newest) { /* headers of version 2, links in them */
        H5Pset_libver_bounds(access, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
        H5Pset_link_phase_change(root, 40, 0);
        H5Pset_link_phase_change(group, 40, 0);
    }
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, root, access);
    H5Pclose(access);
    H5Pclose(root);
    for (int i = 0; i < 4; i++)
        if (next(s, 8) != 0)
            put_attribute(file, attributes[i], s);
    hid_t cases = H5Gcreate2(file, "cases", H5P_DEFAULT, group, H5P_DEFAULT);
    for (unsigned k = 0, n = 1 + next(s, 3); k < n; k++) {
        char name[16];
        snprintf(name, sizeof name, "case%u", k);
        hid_t c = H5Gcreate2(cases, name, H5P_DEFAULT, group, H5P_DEFAULT);
        for (int i = 0; i < 3; i++)
            if (next(s, 6) != 0)
                put_attribute(c, case_attributes[i], s);
        for (int i = 0; i < 8; i++)
            if (next(s, 2) != 0)
                put_dataset(c, datasets[i], s);
        hid_t layers = H5Gcreate2(c, "layers", H5P_DEFAULT, group, H5P_DEFAULT);
        hid_t layer =
            H5Gcreate2(layers, next(s, 4) == 0 ? "x" : "0", H5P_DEFAULT, group, H5P_DEFAULT);
        for (int i = 0; i < 7; i++)
            if (next(s, 2) != 0)
                put_dataset(layer, layer_taps[i], s);
        H5Gclose(layer);
        H5Gclose(layers);
        H5Gclose(c);
    }
    H5Gclose(cases);
    H5Pclose(group);
    H5Fclose(file);
}

static void see_link(void *ctx, const char *name, size_t n, uint64_t address)
{
    uint64_t *sum = ctx;
    *sum += address;
    for (size_t i = 0; i < n; i++)
        *sum += (unsigned char)name[i];
}

/* The bytes as messages of a header, as far as they are whole. */
static void parse(const uint8_t *data, size_t size)
{
    vec_header_form form;
    vec_header_prefix(data, size, &form);
    for (size_t head = 4; head <= 6; head += 2) {
        const uint8_t *p = data, *end = data + size;
        vec_message m;
        uint64_t a = 0, b = 0;
        size_t whole = 0;
        while (vec_next_message(&p, end, head, &m) && m.whole) {
            whole = (size_t)(p - data);
            vec_message_continues(&m, &a, &b);
        }
        /* A copy of the exact size: what reads beyond it is found. */
        vec_header h = {.known = true, .size = whole, .message_head = head};
        h.bytes = malloc(whole + 1);
        memcpy(h.bytes, data, whole);
        h.bytes = realloc(h.bytes, whole > 0 ? whole : 1);
        vec_stored stored;
        if (vec_header_dataset(&h, &stored) && stored.inside != NULL)
            for (uint64_t i = 0; i < stored.bytes; i++)
                a += stored.inside[i];
        if (vec_header_is_group(&h)) {
            vec_header_link(&h, "q", 1, &b);
            vec_header_links(&h, see_link, &a);
        }
        free(h.bytes);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    parse(data, size);
    static bool quiet;
    char path[256];
    stream s = {data, size};
    dsv4_error err = {""};
    vec_file *f = NULL;
    if (!quiet) {
        H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
        quiet = true;
    }
    snprintf(path, sizeof path, "%s/vectors.h5", fuzz_folder());
    build(path, &s);
    if (vec_open(path, &f, &err) != DSV4_OK) {
        if (err.text[0] == '\0' || strchr(err.text, '\n') != NULL)
            abort();
        return 0;
    }
    for (size_t i = 0; i < vec_case_count(f); i++) {
        const vec_case *c = vec_case_at(f, i);
        int layers = vec_case_layers(f, c);
        for (int l = -1; l < layers; l++)
            for (int id = 0; id < DSV4_TAP_COUNT; id++) {
                vec_tap *t = NULL;
                if (vec_tap_open(f, c, (dsv4_tap_id)id, l, &t, &err) != DSV4_OK || t == NULL)
                    continue;
                float *row = malloc((size_t)t->row_len * sizeof *row + 1);
                for (int64_t k = 0; k < t->n_rows; k++)
                    if (vec_tap_read(t, k, 1, row, &err) != DSV4_OK)
                        break;
                free(row);
                vec_tap_close(t);
            }
    }
    vec_close(f);
    return 0;
}
