/* vectors.c - reader of HDF5 files of schema dsv4-vectors-1: the file and its cases. A file is
 * checked when it is opened (schema, and every case's kind, tokens and positions). Every message is
 * one line: file, dataset, expected, found. */
#include "harness/vectors_direct.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- attributes ----------------------------------------------------------------------------- */

/* The root attributes that are strings, by name. */
static dsv4_status read_root_attributes(vec_file *f, dsv4_error *err)
{
    static const char *const names[] = {"schema",   "model", "weights_sha256", "config", "producer",
                                        "numerics", "made"};
    size_t count = sizeof names / sizeof names[0];
    f->attributes = dsv4_alloc(count, sizeof *f->attributes, "attributes", err);
    if (!f->attributes)
        return DSV4_E_MACHINE;
    for (size_t i = 0; i < count; i++) {
        char *value = NULL;
        dsv4_status status = vec_read_text(f, f->id, "/", names[i], i != 0, &value, err);
        if (status != DSV4_OK)
            return status;
        if (!value)
            continue;
        f->attributes[f->n_attributes++] = (vec_attribute_entry){names[i], value};
    }
    const char *schema = vec_attribute(f, "schema");
    if (!schema || strcmp(schema, VEC_SCHEMA) != 0)
        return dsv4_fail(
            err, DSV4_E_INPUT, "%s: /: attribute schema: expected \"%s\", found %s%s%s", f->path,
            VEC_SCHEMA, schema ? "\"" : "", schema ? schema : "none", schema ? "\"" : "");
    return DSV4_OK;
}

/* ---- cases ------------------------------------------------------------------------------------
 */

/* Shape of the streams of a decode case; *there = false when it has none. */
static dsv4_status streams_shape(const vec_file *f, hid_t group, const char *path,
                                 const vec_case_entry *c, bool *there, vec_dataset_info *info,
                                 dsv4_error *err)
{
    vec_answer answer = VEC_ASK_LIBRARY;
    vec_stored stored;
    void *inside = NULL;
    hid_t streams = -1;
    dsv4_status status = DSV4_OK;
    if (c->direct)
        status =
            vec_direct_dataset(f->direct, c->address, "streams", &stored, &inside, &answer, err);
    vec_rows_give(inside);
    *there = answer == VEC_HERE;
    if (*there)
        *info = stored.info;
    if (status != DSV4_OK || answer != VEC_ASK_LIBRARY)
        return status;
    status = vec_dataset_open(f, group, "streams", path, &streams, info, err);
    *there = streams >= 0;
    if (streams >= 0)
        H5Dclose(streams);
    return status;
}

/* Groups of layers and where they are. */
typedef struct {
    vec_case_entry *c;
    bool place; /* they are counted: put the addresses down */
} layer_list;

static void see_layer(void *ctx, const char *name, size_t n, uint64_t address)
{
    layer_list *list = ctx;
    char text[16] = "";
    if (n >= sizeof text)
        return;
    memcpy(text, name, n);
    int layer = vec_parse_layer(text);
    if (layer < 0)
        return;
    if (list->place)
        list->c->layer_address[layer] = address;
    else if (layer >= list->c->layers)
        list->c->layers = layer + 1;
}

/* Finds the groups of the layers without the library. */
static dsv4_status place_layers(const vec_file *f, vec_case_entry *c, vec_answer *answer,
                                dsv4_error *err)
{
    uint64_t address = 0;
    layer_list list = {.c = c};
    *answer = VEC_ASK_LIBRARY;
    if (!c->direct)
        return DSV4_OK;
    dsv4_status status = vec_direct_find(f->direct, c->address, "layers", &address, answer, err);
    if (status == DSV4_OK && *answer == VEC_HERE)
        status = vec_direct_links(f->direct, address, see_layer, &list, answer, err);
    if (status != DSV4_OK || *answer != VEC_HERE)
        return status;
    c->layer_address = dsv4_alloc((size_t)c->layers, sizeof *c->layer_address, "layers", err);
    if (!c->layer_address)
        return DSV4_E_MACHINE;
    memset(c->layer_address, 0xff, (size_t)c->layers * sizeof *c->layer_address);
    list.place = true;
    c->placed_layers = c->layers;
    return vec_direct_links(f->direct, address, see_layer, &list, answer, err);
}

/* Highest layer + 1 of the case's taps. */
static dsv4_status count_layers(const vec_file *f, hid_t group, const char *path, vec_case_entry *c,
                                dsv4_error *err)
{
    vec_name_list list = {0};
    vec_dataset_info info;
    vec_answer answer;
    char full[512];
    bool streams;
    dsv4_status status = place_layers(f, c, &answer, err);
    int there = 0;
    snprintf(full, sizeof full, "%s/layers", path);
    if (status == DSV4_OK && answer == VEC_ASK_LIBRARY) {
        c->direct = false;
        c->layers = 0;
        there = vec_object_exists(group, "layers");
        if (there < 0)
            status = vec_hdf5_failure(f->path, full, "cannot be looked up", DSV4_E_INPUT, err);
    }
    if (status == DSV4_OK && there > 0)
        status = vec_list_names(f, group, "layers", full, &list, err);
    for (size_t i = 0; i < list.count; i++) {
        int layer = vec_parse_layer(list.names[i]);
        if (layer + 1 > c->layers)
            c->layers = layer + 1;
    }
    vec_names_free(&list);
    if (status != DSV4_OK || !c->pub.decode)
        return status;
    snprintf(full, sizeof full, "%s/streams", path);
    status = streams_shape(f, group, full, c, &streams, &info, err);
    if (status != DSV4_OK || !streams)
        return status;
    if (c->n_streams < 0)
        return vec_bad(f, full, err, "expected %s/streams_steps beside it, found none", path);
    if (info.axes == 4 && info.shape[1] < VEC_MAX_LAYERS && info.shape[1] > c->layers)
        c->layers = (int)info.shape[1];
    return DSV4_OK;
}

/* vec_read_integers of a dataset of a case, without the library where it can be. */
static dsv4_status read_integers(const vec_file *f, const vec_case_entry *c, hid_t group,
                                 const char *name, const char *path, int64_t limit,
                                 int64_t **values, int64_t *n, dsv4_error *err)
{
    vec_answer answer = VEC_ASK_LIBRARY;
    vec_stored stored;
    void *inside = NULL;
    int32_t *narrow = NULL;
    dsv4_status status = DSV4_OK;
    *values = NULL;
    *n = -1;
    if (c->direct)
        status = vec_direct_dataset(f->direct, c->address, name, &stored, &inside, &answer, err);
    if (status != DSV4_OK)
        goto done;
    const vec_dataset_info *info = &stored.info;
    /* What is wrong with it is said in one place. */
    if (answer == VEC_ASK_LIBRARY ||
        (answer == VEC_HERE &&
         (info->type != H5T_INTEGER || info->axes != 1 || info->elements > limit))) {
        status = vec_read_integers(f, group, name, path, limit, values, n, err);
        goto done;
    }
    if (answer == VEC_ABSENT)
        goto done;
    narrow = dsv4_alloc((size_t)info->elements, sizeof *narrow, path, err);
    *values = dsv4_alloc((size_t)info->elements + 1, sizeof **values, path, err);
    status = narrow && *values
                 ? vec_direct_read(f->direct, &stored, path, 0, info->elements, narrow, err)
                 : DSV4_E_MACHINE;
    if (status != DSV4_OK) {
        free(*values);
        *values = NULL;
        goto done;
    }
    for (int64_t i = 0; i < info->elements; i++)
        (*values)[i] = narrow[i];
    *n = info->elements;
done:
    free(narrow);
    vec_rows_give(inside);
    return status;
}

/* Reads a list of steps or positions, checks that it ascends inside [low, high), adds `shift`. */
static dsv4_status read_ascending(const vec_file *f, const vec_case_entry *c, hid_t group,
                                  const char *path, const char *name, int64_t low, int64_t high,
                                  int64_t shift, int64_t **values, int64_t *n, dsv4_error *err)
{
    char full[512];
    int64_t at = 0, limit = high > low ? high - low : 0;
    snprintf(full, sizeof full, "%s/%s", path, name);
    dsv4_status status = read_integers(f, c, group, name, full, limit, values, n, err);
    if (status != DSV4_OK || *n < 0)
        return status;
    if (!vec_ascending(*values, *n, low, high, &at)) {
        if ((*values)[at] < low || (*values)[at] >= high)
            return vec_bad(
                f, full, err, "expected values from %lld to %lld, found %lld at index %lld",
                (long long)low, (long long)high - 1, (long long)(*values)[at], (long long)at);
        return vec_bad(f, full, err,
                       "expected ascending values, found %lld after %lld at index %lld",
                       (long long)(*values)[at], (long long)(*values)[at - 1], (long long)at);
    }
    for (int64_t i = 0; i < *n; i++)
        (*values)[i] += shift;
    return DSV4_OK;
}

/* Tokens, checked against the attribute context. */
static dsv4_status read_tokens(const vec_file *f, hid_t group, const char *path, vec_case_entry *c,
                               dsv4_error *err)
{
    char full[512];
    int64_t *wide = NULL, n = 0;
    snprintf(full, sizeof full, "%s/tokens", path);
    dsv4_status status = read_integers(f, c, group, "tokens", full, VEC_MAX_TOKENS, &wide, &n, err);
    if (status != DSV4_OK)
        goto done;
    if (n < 0) {
        status = vec_bad(f, full, err, "expected a dataset of tokens, found none");
        goto done;
    }
    if (n < 1 || n != c->pub.context) {
        status = vec_bad(f, full, err, "expected shape [%lld] (attribute context), found [%lld]",
                         (long long)c->pub.context, (long long)n);
        goto done;
    }
    c->tokens = dsv4_alloc((size_t)n, sizeof *c->tokens, full, err);
    if (!c->tokens) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    for (int64_t i = 0; i < n; i++) {
        if (wide[i] < 0 || wide[i] > INT32_MAX) {
            status =
                vec_bad(f, full, err, "expected token ids from 0 to %d, found %lld at index %lld",
                        INT32_MAX, (long long)wide[i], (long long)i);
            goto done;
        }
        c->tokens[i] = (int32_t)wide[i];
    }
    c->pub.tokens = c->tokens;
done:
    free(wide);
    return status;
}

/* The attributes kind, context and prefill. */
static dsv4_status read_kind(const vec_file *f, hid_t group, const char *path, vec_case_entry *c,
                             dsv4_error *err)
{
    char *kind = NULL;
    bool there;
    dsv4_status status = vec_read_text(f, group, path, "kind", false, &kind, err);
    if (status != DSV4_OK)
        return status;
    bool known = kind && (strcmp(kind, "prefill") == 0 || strcmp(kind, "decode") == 0);
    c->pub.decode = known && kind[0] == 'd';
    if (!known)
        status = vec_bad(f, path, err, "attribute kind: expected prefill or decode, found %s",
                         kind ? kind : "none");
    free(kind);
    if (status != DSV4_OK)
        return status;
    status = vec_read_integer(f, group, path, "context", &c->pub.context, &there, err);
    if (status != DSV4_OK)
        return status;
    if (!there)
        return vec_bad(f, path, err,
                       "attribute context: expected the number of tokens, found none");
    c->pub.prefill = c->pub.context;
    if (!c->pub.decode)
        return DSV4_OK;
    status = vec_read_integer(f, group, path, "prefill", &c->pub.prefill, &there, err);
    if (status != DSV4_OK)
        return status;
    if (!there)
        return vec_bad(f, path, err, "attribute prefill: expected a number of tokens, found none");
    if (c->pub.prefill < 1 || c->pub.prefill > c->pub.context)
        return vec_bad(f, path, err, "attribute prefill: expected 1 to %lld (context), found %lld",
                       (long long)c->pub.context, (long long)c->pub.prefill);
    return DSV4_OK;
}

/* Positions of the decode layouts: logits (all 1+steps rows unless logits_steps says which), and
 * streams. */
static dsv4_status read_steps(const vec_file *f, hid_t group, const char *path, vec_case_entry *c,
                              dsv4_error *err)
{
    int64_t prefill = c->pub.prefill, steps = c->pub.context - prefill;
    dsv4_status status = read_ascending(f, c, group, path, "logits_steps", 0, steps + 1,
                                        prefill - 1, &c->logits, &c->n_logits, err);
    if (status != DSV4_OK)
        return status;
    if (c->n_logits < 0) {
        c->logits = dsv4_alloc((size_t)steps + 1, sizeof *c->logits, "positions", err);
        if (!c->logits)
            return DSV4_E_MACHINE;
        c->n_logits = steps + 1;
        for (int64_t i = 0; i <= steps; i++)
            c->logits[i] = prefill - 1 + i;
    }
    return read_ascending(f, c, group, path, "streams_steps", 0, steps, prefill, &c->streams,
                          &c->n_streams, err);
}

static void case_free(vec_case_entry *c)
{
    if (!c)
        return;
    free(c->name);
    free(c->tokens);
    free(c->positions);
    free(c->logits);
    free(c->streams);
    free(c->mtp);
    free(c->layer_address);
    free(c);
}

static dsv4_status read_case(const vec_file *f, const char *name, vec_case_entry **out,
                             dsv4_error *err)
{
    char path[256];
    dsv4_status status = DSV4_OK;
    hid_t group = -1;
    vec_case_entry *c = dsv4_alloc(1, sizeof *c, "case", err);
    if (!c)
        return DSV4_E_MACHINE;
    if (strlen(name) > VEC_MAX_NAME) {
        status = dsv4_fail(err, DSV4_E_INPUT,
                           "%s: /cases/%.40s...: expected a name of at most %d bytes, found %zu",
                           f->path, name, VEC_MAX_NAME, strlen(name));
        goto done;
    }
    snprintf(path, sizeof path, "/cases/%s", name);
    c->n_logits = c->n_streams = c->n_mtp = -1;
    c->name = vec_strdup(name, err);
    if (!c->name) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    c->pub.name = c->name;
    vec_answer answer;
    status = vec_direct_find(f->direct, VEC_NO_ADDRESS, path + 1, &c->address, &answer, err);
    if (status != DSV4_OK)
        goto done;
    c->direct = answer == VEC_HERE;
    group = H5Gopen2(f->id, path, H5P_DEFAULT);
    if (group < 0) {
        status =
            vec_hdf5_failure(f->path, path, "expected a group, cannot open it", DSV4_E_INPUT, err);
        goto done;
    }
    if ((status = read_kind(f, group, path, c, err)) != DSV4_OK ||
        (status = read_tokens(f, group, path, c, err)) != DSV4_OK)
        goto done;
    status = read_ascending(f, c, group, path, "positions", 0, c->pub.context, 0, &c->positions,
                            &c->pub.n_positions, err);
    if (status != DSV4_OK)
        goto done;
    if (c->pub.n_positions < 0 && !c->pub.decode) {
        status = dsv4_fail(err, DSV4_E_INPUT, "%s: %s/positions: expected a dataset, found none",
                           f->path, path);
        goto done;
    }
    c->pub.positions = c->positions;
    c->pub.n_positions = c->pub.n_positions < 0 ? 0 : c->pub.n_positions;
    if (c->pub.decode && (status = read_steps(f, group, path, c, err)) != DSV4_OK)
        goto done;
    status = read_ascending(f, c, group, path, "mtp/positions", 0, c->pub.context, 0, &c->mtp,
                            &c->n_mtp, err);
    if (status != DSV4_OK)
        goto done;
    status = count_layers(f, group, path, c, err);
done:
    if (group >= 0)
        H5Gclose(group);
    if (status != DSV4_OK) {
        case_free(c);
        return status;
    }
    *out = c;
    return DSV4_OK;
}

static int compare_cases(const void *a, const void *b)
{
    const vec_case_entry *x = *(vec_case_entry *const *)a, *y = *(vec_case_entry *const *)b;
    if (x->pub.context != y->pub.context)
        return x->pub.context < y->pub.context ? -1 : 1;
    return strcmp(x->name, y->name);
}

static dsv4_status read_cases(vec_file *f, dsv4_error *err)
{
    vec_name_list list = {0};
    dsv4_status status = DSV4_OK;
    int there = vec_object_exists(f->id, "/cases");
    if (there < 0) {
        status = vec_hdf5_failure(f->path, "/cases", "cannot be looked up", DSV4_E_INPUT, err);
        goto done;
    }
    if (there > 0 && (status = vec_list_names(f, f->id, "/cases", "/cases", &list, err)) != DSV4_OK)
        goto done;
    if (list.count == 0) {
        status = dsv4_fail(err, DSV4_E_INPUT, "%s: /cases: expected at least one case, found none",
                           f->path);
        goto done;
    }
    f->cases = dsv4_alloc(list.count, sizeof *f->cases, "cases", err);
    if (!f->cases) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    for (size_t i = 0; i < list.count; i++) {
        status = read_case(f, list.names[i], &f->cases[f->n_cases], err);
        if (status != DSV4_OK)
            goto done;
        f->n_cases++;
    }
    qsort(f->cases, f->n_cases, sizeof *f->cases, compare_cases);
done:
    vec_names_free(&list);
    return status;
}

/* ---- files ---------------------------------------------------------------------------------- */

/* Refuses what cannot be an HDF5 file before the library sees it. */
dsv4_status vec_check_path(const char *path, dsv4_error *err)
{
    struct stat info;
    if (stat(path, &info) != 0) {
        int code = errno;
        bool machine = code == EIO || code == ENOMEM || code == EOVERFLOW;
        return dsv4_fail(err, machine ? DSV4_E_MACHINE : DSV4_E_INPUT,
                         "%s: expected a vector file, cannot open it: %s", path, strerror(code));
    }
    if (S_ISDIR(info.st_mode))
        return dsv4_fail(err, DSV4_E_INPUT, "%s: expected a vector file, found a directory", path);
    if (!S_ISREG(info.st_mode))
        return dsv4_fail(err, DSV4_E_INPUT, "%s: expected a vector file, found no regular file",
                         path);
    if (info.st_size == 0)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: expected a vector file, found an empty file",
                         path);
    FILE *file = fopen(path, "rb");
    if (!file) {
        int code = errno;
        bool input = code == EACCES || code == ENOENT || code == EPERM;
        return dsv4_fail(err, input ? DSV4_E_INPUT : DSV4_E_MACHINE,
                         "%s: expected a vector file, cannot open it: %s", path, strerror(code));
    }
    int first = fgetc(file), code = errno;
    bool broken = first == EOF && ferror(file);
    fclose(file);
    if (broken)
        return dsv4_fail(err, DSV4_E_MACHINE, "%s: cannot read it: %s", path, strerror(code));
    return DSV4_OK;
}

/* Opens the file for reading; no file locks, so that read-only and network folders work. */
dsv4_status vec_open_library(vec_file *f, const char *schema, dsv4_error *err)
{
    htri_t is_hdf5 = H5Fis_hdf5(f->path);
    if (is_hdf5 == 0)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: expected an HDF5 file of schema %s, found no HDF5 signature", f->path,
                         schema);
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (access < 0)
        return vec_hdf5_failure(f->path, NULL, "cannot prepare opening", DSV4_E_MACHINE, err);
    H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
#if H5_VERSION_GE(1, 10, 7) && !(H5_VERS_MINOR == 12 && H5_VERS_RELEASE == 0)
    H5Pset_file_locking(access, 0, 1);
#endif
    f->id = H5Fopen(f->path, H5F_ACC_RDONLY, access);
    dsv4_status status = DSV4_OK;
    if (f->id < 0)
        status =
            vec_hdf5_failure(f->path, NULL, "truncated or damaged HDF5 file", DSV4_E_INPUT, err);
    H5Pclose(access);
    return status;
}

dsv4_status vec_open(const char *path, vec_file **out, dsv4_error *err)
{
    *out = NULL;
    dsv4_status status = vec_check_path(path, err);
    if (status != DSV4_OK)
        return status;
    vec_file *f = dsv4_alloc(1, sizeof *f, "vector file", err);
    if (!f)
        return DSV4_E_MACHINE;
    f->id = -1;
    f->path = vec_strdup(path, err);
    if (!f->path) {
        free(f);
        return DSV4_E_MACHINE;
    }
    vec_lock();
    status = vec_open_library(f, VEC_SCHEMA, err);
    if (status == DSV4_OK)
        status = read_root_attributes(f, err);
    if (status == DSV4_OK)
        status = vec_direct_new(f, &f->direct, err);
    if (status == DSV4_OK)
        status = read_cases(f, err);
    vec_unlock();
    if (status != DSV4_OK) {
        vec_close(f);
        return status;
    }
    *out = f;
    return DSV4_OK;
}

void vec_close(vec_file *f)
{
    if (!f)
        return;
    vec_direct_free(f->direct);
    if (f->id >= 0) {
        vec_lock();
        H5Fclose(f->id);
        vec_unlock();
    }
    for (size_t i = 0; i < f->n_attributes; i++)
        free(f->attributes[i].value);
    free(f->attributes);
    for (size_t i = 0; i < f->n_cases; i++)
        case_free(f->cases[i]);
    free(f->cases);
    free(f->path);
    free(f);
}

const char *vec_path(const vec_file *f)
{
    return f->path;
}

const char *vec_attribute(const vec_file *f, const char *name)
{
    for (size_t i = 0; i < f->n_attributes; i++)
        if (strcmp(f->attributes[i].name, name) == 0)
            return f->attributes[i].value;
    return NULL;
}

size_t vec_case_count(const vec_file *f)
{
    return f->n_cases;
}

const vec_case *vec_case_at(const vec_file *f, size_t i)
{
    return i < f->n_cases ? &f->cases[i]->pub : NULL;
}

const vec_case *vec_case_find(const vec_file *f, const char *name)
{
    for (size_t i = 0; i < f->n_cases; i++)
        if (strcmp(f->cases[i]->name, name) == 0)
            return &f->cases[i]->pub;
    return NULL;
}

int vec_case_layers(const vec_file *f, const vec_case *c)
{
    (void)f;
    return ((const vec_case_entry *)(const void *)c)->layers;
}
