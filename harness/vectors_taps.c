/* vectors_taps.c - reader of HDF5 files of schema dsv4-vectors-1: taps and RoPE tables. A tap is
 * checked when it is opened (type, rank, first axis) and read in slices. */
#include "harness/vectors_direct.h"

#include <stdlib.h>
#include <string.h>

#define MAX_CACHE ((size_t)64 << 20) /* bytes of chunk cache of one tap */

/* A tap with its open dataset. `pub` comes first, as above. */
typedef struct {
    vec_tap pub;
    const vec_file *file;
    hid_t dataset;              /* -1 = read directly, */
    vec_stored stored;          /* from here */
    void *inside;               /* values out of its header; owned */
    int axes;                   /* of the dataset */
    hsize_t dims[VEC_MAX_AXES]; /* of the dataset */
    bool layered;               /* axis 1 counts layers (streams of decode cases) */
    int64_t *row_numbers;       /* 0 .. n_rows-1 for taps of rows; owned */
    void *rows;                 /* all of them, once one was asked for; owned */
} tap_entry;

/* ---- taps ----------------------------------------------------------------------------------- */

/* A chunk is decoded whole, however few rows of it are asked for, and the library's cache forgets a
 * large one at once: so a tap of moderate size is read once and kept. */
static bool is_kept(const vec_tap *tap)
{
    enum { VALUE = 4, KEPT_BYTES = 32 << 20 };
    return tap->row_len == 0 || tap->n_rows <= KEPT_BYTES / VALUE / tap->row_len;
}

/* Opens the dataset with a chunk cache that holds the chunks one row passes through, so that
 * reading row by row unpacks every chunk once. */
static hid_t open_cached(hid_t group, const char *name)
{
    hid_t access = -1, create = -1, type = -1, space = -1, dataset = H5Dopen2(group, name, 0);
    hsize_t dims[VEC_MAX_AXES], chunk[VEC_MAX_AXES];
    if (dataset < 0)
        return -1;
    create = H5Dget_create_plist(dataset);
    type = H5Dget_type(dataset);
    space = H5Dget_space(dataset);
    if (create < 0 || type < 0 || space < 0 || H5Pget_layout(create) != H5D_CHUNKED)
        goto done;
    int axes = H5Sget_simple_extent_ndims(space);
    if (axes < 1 || axes > VEC_MAX_AXES || H5Sget_simple_extent_dims(space, dims, NULL) < 0 ||
        H5Pget_chunk(create, axes, chunk) != axes)
        goto done;
    double bytes = (double)H5Tget_size(type), chunks = 1;
    for (int i = 0; i < axes; i++) {
        bytes *= (double)chunk[i];
        if (i > 0 && chunk[i] > 0)
            chunks *= (double)((dims[i] + chunk[i] - 1) / chunk[i]);
    }
    double want = bytes * chunks;
    size_t cache = want > (double)MAX_CACHE ? MAX_CACHE : (size_t)want;
    size_t slots = chunks > 5000 ? 50021 : chunks > 50 ? 5003 : 521;
    access = H5Pcreate(H5P_DATASET_ACCESS);
    if (access < 0 || H5Pset_chunk_cache(access, slots, cache, 0.75) < 0)
        goto done;
    H5Dclose(dataset);
    dataset = H5Dopen2(group, name, access);
done:
    if (access >= 0)
        H5Pclose(access);
    if (create >= 0)
        H5Pclose(create);
    if (type >= 0)
        H5Tclose(type);
    if (space >= 0)
        H5Sclose(space);
    return dataset;
}

/* How many rows the tap must have (-1 = a tap of rows: any) and to which positions they belong. */
static dsv4_status expected_rows(const vec_file *f, const vec_case_entry *c, tap_entry *t,
                                 int64_t *n, const int64_t **positions, dsv4_error *err)
{
    if (dsv4_tap_is_row(t->pub.id)) {
        *n = -1;
        *positions = NULL;
    } else if (t->pub.id == DSV4_TAP_MTP_LOGITS) {
        if (c->n_mtp < 0)
            return vec_bad(f, t->pub.path, err, "expected mtp/positions beside it, found none");
        *n = c->n_mtp;
        *positions = c->mtp;
    } else if (t->layered) {
        *n = c->n_streams;
        *positions = c->streams;
    } else if (c->pub.decode && t->pub.id == DSV4_TAP_LOGITS) {
        *n = c->n_logits;
        *positions = c->logits;
    } else {
        *n = c->pub.n_positions;
        *positions = c->pub.positions;
    }
    return DSV4_OK;
}

/* Checks type, rank and first axis, and fills in the public view. */
static dsv4_status tap_check(const vec_file *f, const vec_case_entry *c, tap_entry *t,
                             const vec_dataset_info *info, dsv4_error *err)
{
    static const dsv4_config no_config;
    vec_tap *p = &t->pub;
    int64_t row_shape[2] = {-1, -1}, want[VEC_MAX_AXES] = {-1, -1, -1, -1}, n_rows = 0;
    const int64_t *positions = NULL;
    char expected[96], found[96];
    H5T_class_t type = p->is_int ? H5T_INTEGER : H5T_FLOAT;
    dsv4_status status = expected_rows(f, c, t, &n_rows, &positions, err);
    if (status != DSV4_OK)
        return status;
    if (info->type != type)
        return vec_bad(f, p->path, err, "expected %s, found %s", vec_type_name(type),
                       vec_type_name(info->type));
    p->ndim = dsv4_tap_shape(p->id, &no_config, row_shape);
    int first = t->layered ? 2 : 1; /* axis at which a row begins */
    want[0] = n_rows;
    if (info->axes != p->ndim + first || (n_rows >= 0 && info->shape[0] != n_rows))
        return vec_bad(f, p->path, err, "expected shape %s, found %s",
                       vec_shape_text(expected, sizeof expected, p->ndim + first, want),
                       vec_shape_text(found, sizeof found, info->axes, info->shape));
    p->n_rows = info->shape[0];
    p->row_len = 1;
    p->shape[0] = p->shape[1] = 1;
    for (int i = 0; i < p->ndim; i++) {
        p->shape[i] = info->shape[first + i];
        p->row_len *= p->shape[i];
    }
    if (n_rows < 0) {
        if (p->n_rows > c->pub.context)
            return vec_bad(f, p->path, err, "expected at most %lld rows (context), found %lld",
                           (long long)c->pub.context, (long long)p->n_rows);
        t->row_numbers = dsv4_alloc((size_t)p->n_rows + 1, sizeof *t->row_numbers, p->path, err);
        if (!t->row_numbers)
            return DSV4_E_MACHINE;
        for (int64_t i = 0; i < p->n_rows; i++)
            t->row_numbers[i] = i;
        positions = t->row_numbers;
    }
    p->positions = positions;
    t->axes = info->axes;
    memcpy(t->dims, info->dims, sizeof t->dims);
    return DSV4_OK;
}

static char *append(char *at, const char *text)
{
    size_t n = strlen(text);
    memcpy(at, text, n + 1);
    return at + n;
}

/* The path of the tap's dataset, in the file. Without printf, which takes longer than finding it.
 */
static void name_tap(const vec_case_entry *c, tap_entry *t)
{
    char digits[12], *first = digits + sizeof digits - 1;
    char *at = append(append(append(t->pub.path, "/cases/"), c->name), "/");
    if (t->pub.layer >= 0 && !t->layered) {
        *first = '\0';
        for (int rest = t->pub.layer; first == digits + sizeof digits - 1 || rest > 0; rest /= 10)
            *--first = (char)('0' + rest % 10);
        at = append(append(append(at, "layers/"), first), "/");
    }
    append(at, dsv4_tap_name(t->pub.id));
}

/* Looks the tap up without the library. */
static dsv4_status find_directly(const vec_file *f, const vec_case_entry *c, dsv4_tap_id id,
                                 int layer, tap_entry *t, vec_answer *answer, dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    *answer = c->direct ? VEC_ABSENT : VEC_ASK_LIBRARY;
    if (c->direct && c->pub.decode && id == DSV4_TAP_STREAMS && c->n_streams >= 0) {
        status = vec_direct_dataset(f->direct, c->address, "streams", &t->stored, &t->inside,
                                    answer, err);
        t->layered = *answer == VEC_HERE;
    }
    if (status != DSV4_OK || *answer != VEC_ABSENT)
        return status;
    if (layer < 0)
        return vec_direct_dataset(f->direct, c->address, dsv4_tap_name(id), &t->stored, &t->inside,
                                  answer, err);
    if (layer < c->placed_layers && c->layer_address[layer] != VEC_NO_ADDRESS)
        return vec_direct_dataset(f->direct, c->layer_address[layer], dsv4_tap_name(id), &t->stored,
                                  &t->inside, answer, err);
    return DSV4_OK;
}

/* Under the lock. *present = false when the file does not hold the tap. */
static dsv4_status tap_open_locked(const vec_file *f, const vec_case_entry *c, tap_entry *t,
                                   bool *present, dsv4_error *err)
{
    vec_dataset_info info;
    hid_t probe = -1;
    *present = false;
    if (c->pub.decode && t->pub.id == DSV4_TAP_STREAMS && c->n_streams >= 0) {
        t->layered = true;
        name_tap(c, t);
        int there = vec_object_exists(f->id, t->pub.path);
        if (there < 0)
            return vec_hdf5_failure(f->path, t->pub.path, "cannot be looked up", DSV4_E_INPUT, err);
        t->layered = there > 0;
    }
    if (!t->layered)
        name_tap(c, t);
    dsv4_status status = vec_dataset_open(f, f->id, t->pub.path, t->pub.path, &probe, &info, err);
    if (status != DSV4_OK || probe < 0)
        return status;
    t->dataset = probe; /* closed with the tap */
    if (t->layered && info.axes == 4 && t->pub.layer >= info.shape[1])
        return DSV4_OK;
    status = tap_check(f, c, t, &info, err);
    if (status != DSV4_OK)
        return status;
    if (t->layered || !is_kept(&t->pub)) {
        H5Dclose(probe);
        t->dataset = open_cached(f->id, t->pub.path);
    }
    if (t->dataset < 0)
        return vec_hdf5_failure(f->path, t->pub.path, "cannot open it", DSV4_E_INPUT, err);
    *present = true;
    return DSV4_OK;
}

dsv4_status vec_tap_open(const vec_file *f, const vec_case *c, dsv4_tap_id id, int layer,
                         vec_tap **out, dsv4_error *err)
{
    const vec_case_entry *entry = (const vec_case_entry *)(const void *)c;
    bool present = false;
    *out = NULL;
    /* A tap of the layers asked for outside them, or the reverse, is held by no file. */
    if ((layer >= 0) != (id < DSV4_TAP_HEAD_COLLAPSED) || id >= DSV4_TAP_COUNT)
        return DSV4_OK;
    vec_answer answer;
    tap_entry found = {.file = f, .dataset = -1}, *t;
    found.pub.id = id;
    found.pub.layer = layer;
    found.pub.is_int = dsv4_tap_is_int(id);
    dsv4_status status = find_directly(f, entry, id, layer, &found, &answer, err);
    if (status != DSV4_OK || answer == VEC_ABSENT)
        return status;
    t = vec_rows_take(sizeof *t, err); /* with its rows */
    if (!t) {
        vec_rows_give(found.inside);
        return DSV4_E_MACHINE;
    }
    *t = found;
    if (answer == VEC_HERE) {
        const vec_dataset_info *info = &t->stored.info;
        present = !t->layered || info->axes != 4 || layer < info->shape[1];
        name_tap(entry, t);
        status = present ? tap_check(f, entry, t, info, err) : DSV4_OK;
    } else {
        vec_lock();
        status = tap_open_locked(f, entry, t, &present, err);
        vec_unlock();
    }
    if (status != DSV4_OK || !present) {
        vec_tap_close(&t->pub);
        return status;
    }
    *out = &t->pub;
    return DSV4_OK;
}

void vec_tap_close(vec_tap *tap)
{
    tap_entry *t = (tap_entry *)(void *)tap;
    if (!t)
        return;
    if (t->dataset >= 0) {
        vec_lock();
        H5Dclose(t->dataset);
        vec_unlock();
    }
    free(t->row_numbers);
    vec_rows_give(t->inside);
    vec_rows_give(t->rows);
    vec_rows_give(t);
}

/* Without the library. */
static dsv4_status read_rows_directly(const tap_entry *t, int64_t first, int64_t count, void *dst,
                                      dsv4_error *err)
{
    const vec_tap *tap = &t->pub;
    vec_direct *d = t->file->direct;
    dsv4_status status = DSV4_OK;
    int64_t len = tap->row_len, layers = t->layered ? (int64_t)t->dims[1] : 1;
    if (layers == 1)
        return vec_direct_read(d, &t->stored, tap->path, first * len, count * len, dst, err);
    for (int64_t i = 0; i < count && status == DSV4_OK; i++)
        status =
            vec_direct_read(d, &t->stored, tap->path, ((first + i) * layers + tap->layer) * len,
                            len, (char *)dst + (size_t)(i * len) * 4, err);
    return status;
}

static dsv4_status read_rows(const vec_tap *tap, int64_t first, int64_t count, void *dst,
                             dsv4_error *err)
{
    const tap_entry *t = (const tap_entry *)(const void *)tap;
    dsv4_status status = DSV4_OK;
    if (t->dataset < 0)
        return read_rows_directly(t, first, count, dst, err);
    hsize_t start[VEC_MAX_AXES] = {0}, extent[VEC_MAX_AXES],
            total = (hsize_t)(count * tap->row_len);
    hid_t memory = -1;
    memcpy(extent, t->dims, sizeof extent);
    start[0] = (hsize_t)first;
    extent[0] = (hsize_t)count;
    if (t->layered) {
        start[1] = (hsize_t)tap->layer;
        extent[1] = 1;
    }
    hid_t type = tap->is_int ? H5T_NATIVE_INT32 : H5T_NATIVE_FLOAT, space = -1;
    herr_t read = -1;
    vec_lock();
    if (!t->layered && count == tap->n_rows) /* whole: the library's shortest way */
        read = H5Dread(t->dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, dst);
    else if ((space = H5Dget_space(t->dataset)) >= 0 &&
             (memory = H5Screate_simple(1, &total, NULL)) >= 0 &&
             H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, extent, NULL) >= 0)
        read = H5Dread(t->dataset, type, memory, space, H5P_DEFAULT, dst);
    if (read < 0)
        status = vec_hdf5_failure(t->file->path, tap->path, "cannot read rows", DSV4_E_INPUT, err);
    if (memory >= 0)
        H5Sclose(memory);
    if (space >= 0)
        H5Sclose(space);
    vec_unlock();
    return status;
}

/* Values that came with the dataset's header are in memory since it was opened. */
static bool in_header(const tap_entry *t)
{
    return t->dataset < 0 && t->stored.inside != NULL;
}

/* Reads all rows into t->rows. */
static dsv4_status keep_rows(tap_entry *t, dsv4_error *err)
{
    enum { VALUE = 4 };
    const vec_tap *tap = &t->pub;
    if (t->rows != NULL)
        return DSV4_OK;
    t->rows = vec_rows_take((size_t)(tap->n_rows * tap->row_len) * VALUE, err);
    if (t->rows == NULL)
        return DSV4_E_MACHINE;
    dsv4_status status = read_rows(tap, 0, tap->n_rows, t->rows, err);
    if (status != DSV4_OK)
        vec_tap_unload(&t->pub);
    return status;
}

dsv4_status vec_tap_load(vec_tap *tap, dsv4_error *err)
{
    tap_entry *t = (tap_entry *)(void *)tap;
    if (!is_kept(tap) || in_header(t) || tap->n_rows == 0 || tap->row_len == 0)
        return DSV4_OK;
    return keep_rows(t, err);
}

void vec_tap_unload(vec_tap *tap)
{
    tap_entry *t = (tap_entry *)(void *)tap;
    if (t == NULL)
        return;
    vec_rows_give(t->rows);
    t->rows = NULL;
}

dsv4_status vec_tap_read(const vec_tap *tap, int64_t first, int64_t count, void *dst,
                         dsv4_error *err)
{
    enum { VALUE = 4 };
    tap_entry *t = (tap_entry *)(uintptr_t)(const void *)tap;
    if (first < 0 || count < 0 || first > tap->n_rows || count > tap->n_rows - first)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: %s: %lld rows from row %lld asked for, there are %lld", t->file->path,
                         tap->path, (long long)count, (long long)first, (long long)tap->n_rows);
    if (count == 0 || tap->row_len == 0)
        return DSV4_OK;
    if (t->rows == NULL && (count == tap->n_rows || !is_kept(tap) || in_header(t)))
        return read_rows(tap, first, count, dst, err);
    dsv4_status status = keep_rows(t, err);
    if (status != DSV4_OK)
        return status;
    memcpy(dst, (const char *)t->rows + (size_t)(first * tap->row_len) * VALUE,
           (size_t)(count * tap->row_len) * VALUE);
    return DSV4_OK;
}

/* ---- what no tap name explains -------------------------------------------------------------- */

/* Whether the schema knows the dataset at `path` below a case. */
static bool path_known(const char *path, bool decode)
{
    static const char *const others[] = {"tokens", "positions", "mtp/positions"};
    static const char *const of_decode[] = {"streams", "streams_steps", "logits_steps"};
    dsv4_tap_id id;
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        if (strcmp(path, others[i]) == 0)
            return true;
    for (size_t i = 0; decode && i < sizeof of_decode / sizeof of_decode[0]; i++)
        if (strcmp(path, of_decode[i]) == 0)
            return true;
    if (strncmp(path, "layers/", 7) != 0)
        return dsv4_tap_parse(path, &id) && id >= DSV4_TAP_HEAD_COLLAPSED;
    char layer[16];
    const char *slash = strchr(path + 7, '/');
    if (!slash || (size_t)(slash - path - 7) >= sizeof layer)
        return false;
    memcpy(layer, path + 7, (size_t)(slash - path - 7));
    layer[slash - path - 7] = '\0';
    return vec_parse_layer(layer) >= 0 && dsv4_tap_parse(slash + 1, &id) &&
           id < DSV4_TAP_HEAD_COLLAPSED;
}

typedef struct {
    vec_name_list list;
    bool decode;
} unknown_search;

static herr_t visit_link(hid_t group, const char *name, const H5L_info_t *info, void *ctx)
{
    unknown_search *search = ctx;
    (void)info;
    if (path_known(name, search->decode))
        return 0;
    hid_t object = H5Oopen(group, name, H5P_DEFAULT);
    bool dataset = object >= 0 && H5Iget_type(object) == H5I_DATASET;
    if (object >= 0)
        H5Oclose(object);
    return !dataset || vec_names_add(&search->list, name) ? 0 : -1;
}

void vec_case_unknown(const vec_file *f, const vec_case *c,
                      void (*each)(void *ctx, const char *path), void *ctx)
{
    unknown_search search = {.decode = c->decode};
    char path[256];
    snprintf(path, sizeof path, "/cases/%s", c->name);
    vec_lock();
    H5Lvisit_by_name(f->id, path, H5_INDEX_NAME, H5_ITER_INC, visit_link, &search, H5P_DEFAULT);
    H5Eclear2(H5E_DEFAULT);
    vec_unlock();
    /* Outside the lock: the caller may read from the file meanwhile. */
    for (size_t i = 0; i < search.list.count; i++)
        each(ctx, search.list.names[i]);
    vec_names_free(&search.list);
}

/* ---- RoPE tables ---------------------------------------------------------------------------- */

/* One of the two tables, [n][*half]; *half < 0 = not known yet. */
static dsv4_status read_table(const vec_file *f, const char *path, int64_t n, int64_t *half,
                              float **out, dsv4_error *err)
{
    hid_t dataset;
    vec_dataset_info info;
    char expected[96], found[96];
    dsv4_status status = vec_dataset_open(f, f->id, path, path, &dataset, &info, err);
    if (status != DSV4_OK)
        return status;
    if (dataset < 0)
        return vec_bad(f, path, err, "expected a dataset, found none");
    int64_t want[2] = {n, *half};
    if (info.type != H5T_FLOAT)
        status = vec_bad(f, path, err, "expected floats, found %s", vec_type_name(info.type));
    else if (info.axes != 2 || info.shape[0] != n || (*half >= 0 && info.shape[1] != *half))
        status = vec_bad(f, path, err, "expected shape %s, found %s",
                         vec_shape_text(expected, sizeof expected, 2, want),
                         vec_shape_text(found, sizeof found, info.axes, info.shape));
    if (status != DSV4_OK)
        goto done;
    *half = info.shape[1];
    *out = dsv4_alloc((size_t)info.elements + 1, sizeof **out, path, err);
    if (!*out)
        status = DSV4_E_MACHINE;
    else if (info.elements > 0 &&
             H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, *out) < 0)
        status = vec_hdf5_failure(f->path, path, "cannot read it", DSV4_E_INPUT, err);
done:
    H5Dclose(dataset);
    return status;
}

dsv4_status vec_rope_read(const vec_file *f, bool compressed, int64_t *n, int64_t *half,
                          int64_t **positions, float **cos, float **sin, dsv4_error *err)
{
    const char *base = compressed ? "/rope/compress" : "/rope/main";
    char path[64];
    int64_t count = -1, at;
    *n = 0;
    *half = 0;
    *positions = NULL;
    *cos = *sin = NULL;
    vec_lock();
    snprintf(path, sizeof path, "%s/positions", base);
    dsv4_status status =
        vec_read_integers(f, f->id, path, path, VEC_MAX_TOKENS, positions, &count, err);
    if (status != DSV4_OK || count < 0)
        goto done;
    if (!vec_ascending(*positions, count, 0, INT64_MAX, &at)) {
        status = vec_bad(f, path, err, "expected ascending positions, found %lld at index %lld",
                         (long long)(*positions)[at], (long long)at);
        goto done;
    }
    int64_t width = -1;
    snprintf(path, sizeof path, "%s/cos", base);
    status = read_table(f, path, count, &width, cos, err);
    if (status != DSV4_OK)
        goto done;
    snprintf(path, sizeof path, "%s/sin", base);
    status = read_table(f, path, count, &width, sin, err);
    if (status != DSV4_OK)
        goto done;
    *n = count;
    *half = width;
done:
    vec_unlock();
    if (status != DSV4_OK) {
        free(*positions);
        free(*cos);
        free(*sin);
        *positions = NULL;
        *cos = *sin = NULL;
    }
    return status;
}
