/* vectors_hdf5.c - what the reader and the writer of vector files need of HDF5: one lock, one-line
 * messages, datasets with checked shapes, attributes, names. */
#include "harness/vectors_private.h"

#include <ctype.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ATTRIBUTE ((size_t)16 << 20) /* bytes of a string attribute */

/* ---- lock and messages ---------------------------------------------------------------------- */

static pthread_mutex_t library_mutex = PTHREAD_MUTEX_INITIALIZER;

/* The library must not tidy up at exit: a file that could not be written (a full disk) stays open
 * in it, and closing that again crashes. Everything that matters is closed by hand. */
static void library_start(void)
{
    H5dont_atexit();
}

void vec_lock(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, library_start);
    pthread_mutex_lock(&library_mutex);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

void vec_unlock(void)
{
    pthread_mutex_unlock(&library_mutex);
}

typedef struct {
    bool machine;
    char cause[256]; /* the innermost message */
} failure;

/* Visits the library's error stack from the innermost record outwards. */
static herr_t visit_error(unsigned n, const H5E_error2_t *e, void *ctx)
{
    failure *out = ctx;
    const char *text = e->desc ? e->desc : "";
    (void)n;
    /* Of a message about a system call, which is long, only what the system said. */
    const char *quoted = strstr(text, "error message = '");
    if (!out->cause[0] && quoted) {
        quoted += strlen("error message = '");
        snprintf(out->cause, sizeof out->cause, "%.*s", (int)strcspn(quoted, "'"), quoted);
    } else if (!out->cause[0] && text[0]) {
        snprintf(out->cause, sizeof out->cause, "HDF5: %s", text);
    }
    /* The library quotes errno only where the operating system refused. */
    if ((e->maj_num == H5E_IO || e->maj_num == H5E_FILE || e->maj_num == H5E_VFL) &&
        (e->min_num == H5E_READERROR || e->min_num == H5E_WRITEERROR ||
         e->min_num == H5E_SEEKERROR || e->min_num == H5E_CANTCREATE) &&
        strstr(text, "errno"))
        out->machine = true;
    if (e->maj_num == H5E_RESOURCE && strstr(text, "memory allocation failed"))
        out->machine = true;
    return 0;
}

dsv4_status vec_hdf5_failure(const char *file, const char *object, const char *what,
                             dsv4_status status, dsv4_error *err)
{
    failure found = {0};
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, visit_error, &found);
    H5Eclear2(H5E_DEFAULT);
    if (found.machine)
        status = DSV4_E_MACHINE;
    return dsv4_fail(err, status, "%s: %s%s%s%s%s%s", file, object ? object : "",
                     object ? ": " : "", what, found.cause[0] ? " (" : "", found.cause,
                     found.cause[0] ? ")" : "");
}

dsv4_status vec_bad(const vec_file *f, const char *object, dsv4_error *err, const char *fmt, ...)
{
    char text[768];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return dsv4_fail(err, DSV4_E_INPUT, "%s: %s: %s", f->path, object, text);
}

char *vec_strdup(const char *s, dsv4_error *err)
{
    size_t n = strlen(s) + 1;
    char *copy = dsv4_alloc(n, 1, "text", err);
    if (copy)
        memcpy(copy, s, n);
    return copy;
}

void vec_tap_path(dsv4_tap_id id, int layer, char *path, size_t size)
{
    if (layer >= 0)
        snprintf(path, size, "layers/%d/%s", layer, dsv4_tap_name(id));
    else
        snprintf(path, size, "%s", dsv4_tap_name(id));
}

const char *vec_shape_text(char *text, size_t size, int ndim, const int64_t *shape)
{
    size_t used = 0;
    snprintf(text, size, "%s", ndim ? "" : "one value");
    for (int i = 0; i < ndim && used < size; i++) {
        int n = shape[i] < 0 ? snprintf(text + used, size - used, "[*]")
                             : snprintf(text + used, size - used, "[%lld]", (long long)shape[i]);
        used += n > 0 ? (size_t)n : 0;
    }
    return text;
}

bool vec_ascending(const int64_t *values, int64_t n, int64_t low, int64_t high, int64_t *at)
{
    for (int64_t i = 0; i < n; i++)
        if (values[i] < low || values[i] >= high || (i > 0 && values[i] <= values[i - 1])) {
            *at = i;
            return false;
        }
    return true;
}

/* ---- objects -------------------------------------------------------------------------------- */

/* Whether `path` below `loc` exists, link by link: 1, 0, or -1 on a damaged file. */
int vec_object_exists(hid_t loc, const char *path)
{
    char part[512];
    size_t n = strlen(path);
    if (n >= sizeof part)
        return 0;
    for (size_t i = path[0] == '/' ? 1 : 0; i <= n; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        memcpy(part, path, i);
        part[i] = '\0';
        htri_t there = H5Lexists(loc, part, H5P_DEFAULT);
        if (there <= 0)
            return there < 0 ? -1 : 0;
    }
    return 1;
}

const char *vec_type_name(H5T_class_t type)
{
    switch (type) {
    case H5T_INTEGER:
        return "integers";
    case H5T_FLOAT:
        return "floats";
    case H5T_STRING:
        return "strings";
    default:
        return "another type";
    }
}

/* Type class, axes and size of an open dataset; refuses what no vector file can hold. */
dsv4_status vec_dataset_describe(const vec_file *f, const char *path, hid_t dataset,
                                 vec_dataset_info *info, dsv4_error *err)
{
    dsv4_status status = DSV4_E_INPUT;
    hid_t type = H5Dget_type(dataset), space = H5Dget_space(dataset);
    memset(info, 0, sizeof *info);
    if (type < 0 || space < 0) {
        status = vec_hdf5_failure(f->path, path, "cannot read its type or shape", status, err);
        goto done;
    }
    info->type = H5Tget_class(type);
    if (H5Sget_simple_extent_type(space) == H5S_NULL) {
        status = vec_bad(f, path, err, "expected an array, found nothing stored");
        goto done;
    }
    info->axes = H5Sget_simple_extent_ndims(space);
    if (info->axes < 0 || info->axes > VEC_MAX_AXES) {
        status =
            vec_bad(f, path, err, "expected at most %d axes, found %d", VEC_MAX_AXES, info->axes);
        goto done;
    }
    if (info->axes > 0 && H5Sget_simple_extent_dims(space, info->dims, NULL) < 0) {
        status = vec_hdf5_failure(f->path, path, "cannot read its shape", status, err);
        goto done;
    }
    /* Two products: of the extents, and of those that are not 0, which bounds a row of an empty
     * dataset as well. */
    int64_t product = 1;
    bool empty = false;
    for (int i = 0; i < info->axes; i++) {
        if (info->dims[i] > (hsize_t)VEC_MAX_ELEMENTS) {
            status = vec_bad(f, path, err, "axis %d is absurdly long: %llu", i,
                             (unsigned long long)info->dims[i]);
            goto done;
        }
        info->shape[i] = (int64_t)info->dims[i];
        if (info->shape[i] == 0) {
            empty = true;
            continue;
        }
        if (product > VEC_MAX_ELEMENTS / info->shape[i]) {
            status = vec_bad(f, path, err, "absurdly large: more than 2^40 elements");
            goto done;
        }
        product *= info->shape[i];
    }
    info->elements = empty ? 0 : product;
    status = DSV4_OK;
done:
    if (type >= 0)
        H5Tclose(type);
    if (space >= 0)
        H5Sclose(space);
    return status;
}

/* Opens the dataset `name` below `loc`; `path` is for messages. *out = -1 when it is absent. */
dsv4_status vec_dataset_open(const vec_file *f, hid_t loc, const char *name, const char *path,
                             hid_t *out, vec_dataset_info *info, dsv4_error *err)
{
    *out = -1;
    int there = vec_object_exists(loc, name);
    if (there == 0)
        return DSV4_OK;
    if (there < 0)
        return vec_hdf5_failure(f->path, path, "cannot be looked up", DSV4_E_INPUT, err);
    hid_t dataset = H5Dopen2(loc, name, H5P_DEFAULT);
    if (dataset < 0)
        return vec_hdf5_failure(f->path, path, "expected a dataset, cannot open it", DSV4_E_INPUT,
                                err);
    dsv4_status status = vec_dataset_describe(f, path, dataset, info, err);
    if (status != DSV4_OK) {
        H5Dclose(dataset);
        return status;
    }
    *out = dataset;
    return DSV4_OK;
}

/* Reads the integers of a dataset with one axis. *values = NULL and *n = -1 when it is absent;
 * what `limit` bounds is how many there may be. Freed with free(). */
dsv4_status vec_read_integers(const vec_file *f, hid_t loc, const char *name, const char *path,
                              int64_t limit, int64_t **values, int64_t *n, dsv4_error *err)
{
    hid_t dataset;
    vec_dataset_info info;
    char shape[96];
    *values = NULL;
    *n = -1;
    dsv4_status status = vec_dataset_open(f, loc, name, path, &dataset, &info, err);
    if (status != DSV4_OK || dataset < 0)
        return status;
    if (info.type != H5T_INTEGER) {
        status = vec_bad(f, path, err, "expected integers, found %s", vec_type_name(info.type));
        goto done;
    }
    if (info.axes != 1) {
        status = vec_bad(f, path, err, "expected shape [*], found %s",
                         vec_shape_text(shape, sizeof shape, info.axes, info.shape));
        goto done;
    }
    if (info.elements > limit) {
        status = vec_bad(f, path, err, "expected at most %lld values, found %lld", (long long)limit,
                         (long long)info.elements);
        goto done;
    }
    *values = dsv4_alloc((size_t)info.elements + 1, sizeof **values, path, err);
    if (!*values) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    if (info.elements > 0 &&
        H5Dread(dataset, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, *values) < 0) {
        status = vec_hdf5_failure(f->path, path, "cannot read it", DSV4_E_INPUT, err);
        free(*values);
        *values = NULL;
        goto done;
    }
    *n = info.elements;
done:
    H5Dclose(dataset);
    return status;
}

/* ---- attributes ----------------------------------------------------------------------------- */

/* Text of the attribute `name` of `object` (at `path`, for messages): a string of fixed or
 * variable length. *out = NULL when it is absent or, if `lenient`, not a string. */
dsv4_status vec_read_text(const vec_file *f, hid_t object, const char *path, const char *name,
                          bool lenient, char **out, dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    hid_t attr = -1, type = -1, space = -1, memory = -1;
    char *variable = NULL;
    *out = NULL;
    htri_t there = H5Aexists(object, name);
    if (there == 0)
        return DSV4_OK;
    if (there < 0 || (attr = H5Aopen(object, name, H5P_DEFAULT)) < 0 ||
        (type = H5Aget_type(attr)) < 0 || (space = H5Aget_space(attr)) < 0) {
        status = vec_hdf5_failure(f->path, path, "cannot read an attribute", DSV4_E_INPUT, err);
        goto done;
    }
    if (H5Tget_class(type) != H5T_STRING || H5Sget_simple_extent_npoints(space) != 1) {
        if (!lenient)
            status = vec_bad(f, path, err, "attribute %s: expected one string", name);
        goto done;
    }
    htri_t is_variable = H5Tis_variable_str(type);
    size_t size = H5Tget_size(type);
    memory = H5Tcopy(H5T_C_S1);
    if (is_variable < 0 || memory < 0 || H5Tset_cset(memory, H5Tget_cset(type)) < 0) {
        status = vec_hdf5_failure(f->path, path, "cannot read an attribute", DSV4_E_INPUT, err);
        goto done;
    }
    if (!is_variable && size > MAX_ATTRIBUTE) {
        status = vec_bad(f, path, err, "attribute %s is absurdly long: %zu bytes", name, size);
        goto done;
    }
    if (H5Tset_size(memory, is_variable ? H5T_VARIABLE : size + 1) < 0) {
        status = vec_hdf5_failure(f->path, path, "cannot read an attribute", DSV4_E_INPUT, err);
        goto done;
    }
    if (is_variable) {
        if (H5Aread(attr, memory, &variable) < 0) {
            status = vec_hdf5_failure(f->path, path, "cannot read an attribute", DSV4_E_INPUT, err);
            goto done;
        }
        *out = vec_strdup(variable ? variable : "", err);
        status = *out ? DSV4_OK : DSV4_E_MACHINE;
        goto done;
    }
    *out = dsv4_alloc(size + 2, 1, "text of an attribute", err);
    if (!*out) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    if (H5Aread(attr, memory, *out) < 0) {
        status = vec_hdf5_failure(f->path, path, "cannot read an attribute", DSV4_E_INPUT, err);
        free(*out);
        *out = NULL;
    }
done:
    if (variable)
        H5free_memory(variable);
    if (memory >= 0)
        H5Tclose(memory);
    if (space >= 0)
        H5Sclose(space);
    if (type >= 0)
        H5Tclose(type);
    if (attr >= 0)
        H5Aclose(attr);
    return status;
}

/* Integer attribute of any width. *there = false when it is absent. */
dsv4_status vec_read_integer(const vec_file *f, hid_t object, const char *path, const char *name,
                             int64_t *value, bool *there, dsv4_error *err)
{
    dsv4_status status = DSV4_OK;
    hid_t attr = -1, type = -1, space = -1;
    htri_t exists = H5Aexists(object, name);
    *there = exists > 0;
    *value = 0;
    if (exists == 0)
        return DSV4_OK;
    if (exists < 0 || (attr = H5Aopen(object, name, H5P_DEFAULT)) < 0 ||
        (type = H5Aget_type(attr)) < 0 || (space = H5Aget_space(attr)) < 0) {
        status = vec_hdf5_failure(f->path, path, "cannot read an attribute", DSV4_E_INPUT, err);
        goto done;
    }
    if (H5Tget_class(type) != H5T_INTEGER || H5Sget_simple_extent_npoints(space) != 1) {
        status = vec_bad(f, path, err, "attribute %s: expected one integer", name);
        goto done;
    }
    if (H5Aread(attr, H5T_NATIVE_INT64, value) < 0)
        status = vec_hdf5_failure(f->path, path, "cannot read an attribute", DSV4_E_INPUT, err);
done:
    if (space >= 0)
        H5Sclose(space);
    if (type >= 0)
        H5Tclose(type);
    if (attr >= 0)
        H5Aclose(attr);
    return status;
}

/* ---- names ------------------------------------------------------------------------------------
 */

void vec_names_free(vec_name_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->names[i]);
    free(list->names);
    memset(list, 0, sizeof *list);
}

bool vec_names_add(vec_name_list *list, const char *name)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 16;
        char **grown = dsv4_alloc(capacity, sizeof *grown, "names", list->err);
        if (!grown)
            return false;
        if (list->count)
            memcpy(grown, list->names, list->count * sizeof *grown);
        free(list->names);
        list->names = grown;
        list->capacity = capacity;
    }
    char *copy = vec_strdup(name, list->err);
    if (!copy)
        return false;
    list->names[list->count++] = copy;
    return true;
}

static herr_t collect_name(hid_t group, const char *name, const H5L_info_t *info, void *ctx)
{
    vec_name_list *list = ctx;
    (void)group;
    (void)info;
    if (vec_names_add(list, name))
        return 0;
    list->failed = true;
    return -1;
}

/* Links of the group `name` below `loc` (which exists). */
dsv4_status vec_list_names(const vec_file *f, hid_t loc, const char *name, const char *path,
                           vec_name_list *out, dsv4_error *err)
{
    out->err = err;
    if (H5Literate_by_name(loc, name, H5_INDEX_NAME, H5_ITER_INC, NULL, collect_name, out,
                           H5P_DEFAULT) >= 0)
        return DSV4_OK;
    if (out->failed) {
        H5Eclear2(H5E_DEFAULT);
        return DSV4_E_MACHINE;
    }
    return vec_hdf5_failure(f->path, path, "expected a group, cannot list it", DSV4_E_INPUT, err);
}

/* Layer number in canonical decimal, or -1. */
int vec_parse_layer(const char *name)
{
    int value = 0;
    if (!name[0] || (name[0] == '0' && name[1]))
        return -1;
    for (const char *p = name; *p; p++) {
        if (!isdigit((unsigned char)*p))
            return -1;
        value = value * 10 + (*p - '0');
        if (value >= VEC_MAX_LAYERS)
            return -1;
    }
    return value;
}
