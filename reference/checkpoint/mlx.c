/* mlx.c - MLX weight directories: safetensors whose quantised modules are <module>.weight (codes in
 * 32-bit words), .scales and .biases, and a config.json whose "quantization" says how many bits and
 * columns a group has, for all modules or one by one.
 *
 * Modules are found under the release's own names (layers.N.attn.wq_a) and under mlx-lm's
 * (model.layers.N.attn.wq_a), experts one by one or stacked [E][rows][cols] as
 * ffn.switch_mlp.{gate_proj,up_proj,down_proj}. Mode "affine" is DSV4_MLX4 and DSV4_MLX8; mode
 * "mxfp4" has the layout of the release's FP4. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../formats/formats.h"
#include "mlx.h"
#include "storage.h"

enum { MAX_CONFIG = 64 * 1000 * 1000, MAX_NAME = 256 };

/* ---- config.json -------------------------------------------------------------------------- */

/* The root of the config.json of `path`, NULL if there is none or it is no JSON. */
static json_t *load_config(const char *path)
{
    char file[4200];
    char *text = NULL;
    size_t bytes = 0;
    struct stat info;
    const char *slash = strrchr(path, '/');
    if (stat(path, &info) != 0 || strlen(path) > 4096)
        return NULL;
    if (S_ISDIR(info.st_mode))
        snprintf(file, sizeof file, "%s/config.json", path);
    else
        snprintf(file, sizeof file, "%.*sconfig.json", slash != NULL ? (int)(slash - path) + 1 : 0,
                 path);
    if (read_text_file(file, MAX_CONFIG, &text, &bytes, NULL) != DSV4_OK)
        return NULL;
    json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    free(text);
    return root;
}

bool mlx_recognise(const char *path)
{
    json_t *root = load_config(path);
    bool found = json_is_object(json_object_get(root, "quantization"));
    json_decref(root);
    return found;
}

typedef enum { MODE_AFFINE, MODE_MXFP4 } quant_mode;

typedef struct {
    int bits, group;
    quant_mode mode;
} quant_params;

/* The parameters of a module: its own entry, else the general ones. */
static dsv4_status module_params(const dsv4_storage *st, const char *module, const char *official,
                                 quant_params *out, dsv4_error *err)
{
    const json_t *all = st->extra;
    const json_t *own = json_object_get(all, module);
    if (own == NULL)
        own = json_object_get(all, official);
    const json_t *from[] = {own, all};
    const json_t *bits = NULL, *group = NULL, *mode = NULL;
    for (int i = 0; i < 2; i++) {
        if (bits == NULL)
            bits = json_object_get(from[i], "bits");
        if (group == NULL)
            group = json_object_get(from[i], "group_size");
        if (mode == NULL)
            mode = json_object_get(from[i], "mode");
    }
    const char *mode_name = mode == NULL ? "affine" : json_string_value(mode);
    if (mode_name == NULL || (strcmp(mode_name, "affine") != 0 && strcmp(mode_name, "mxfp4") != 0))
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: config.json: quantization of %s: expected mode affine or mxfp4, "
                         "found %s",
                         st->path, module, mode_name != NULL ? mode_name : "no string");
    out->mode = strcmp(mode_name, "mxfp4") == 0 ? MODE_MXFP4 : MODE_AFFINE;
    out->bits = (int)json_integer_value(bits);
    out->group = (int)json_integer_value(group);
    bool fits = out->mode == MODE_MXFP4
                    ? out->bits == 4 && out->group == 32
                    : (out->bits == 4 || out->bits == 8) &&
                          (out->group == 32 || out->group == 64 || out->group == 128);
    if (!fits)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: config.json: quantization of %s: expected 4 or 8 bits in groups of "
                         "32, 64 or 128 (mxfp4: 4 and 32), found %d bits, groups of %d",
                         st->path, module, out->bits, out->group);
    return DSV4_OK;
}

/* ---- names -------------------------------------------------------------------------------- */

typedef struct {
    const char *from, *to;
} pair;

static const pair root_names[] = {
    {"embed.weight", "model.embed_tokens.weight"},
    {"head.weight", "lm_head.weight"},
    {"norm.weight", "model.norm.weight"},
    {"hc_head_fn", "model.hc_head.fn"},
    {"hc_head_base", "model.hc_head.base"},
    {"hc_head_scale", "model.hc_head.scale"},
    {NULL, NULL},
};

/* Inside a layer; the rest of a name is the release's. */
static const pair layer_names[] = {
    {"hc_attn_fn", "attn_hc.fn"},
    {"hc_attn_base", "attn_hc.base"},
    {"hc_attn_scale", "attn_hc.scale"},
    {"hc_ffn_fn", "ffn_hc.fn"},
    {"hc_ffn_base", "ffn_hc.base"},
    {"hc_ffn_scale", "ffn_hc.scale"},
    {"ffn.gate.bias", "ffn.gate.e_score_correction_bias"},
    {"ffn.shared_experts.w1.weight", "ffn.shared_experts.gate_proj.weight"},
    {"ffn.shared_experts.w2.weight", "ffn.shared_experts.down_proj.weight"},
    {"ffn.shared_experts.w3.weight", "ffn.shared_experts.up_proj.weight"},
    {NULL, NULL},
};

static const char *translate(const pair *names, const char *from)
{
    for (; names->from != NULL; names++)
        if (strcmp(names->from, from) == 0)
            return names->to;
    return NULL;
}

/* "ffn.experts.7.w1.weight" -> "ffn.switch_mlp.gate_proj.weight" and 7. */
static const char *stacked_name(const char *rest, int64_t *expert)
{
    static const pair parts[] = {
        {"w1.weight", "ffn.switch_mlp.gate_proj.weight"},
        {"w2.weight", "ffn.switch_mlp.down_proj.weight"},
        {"w3.weight", "ffn.switch_mlp.up_proj.weight"},
        {NULL, NULL},
    };
    long long e;
    int end = 0;
    if (sscanf(rest, "ffn.experts.%9lld.%n", &e, &end) != 1 || end == 0 || e < 0)
        return NULL;
    *expert = e;
    return translate(parts, rest + end);
}

bool mlx_name(const char *official, char *out, size_t room, int64_t *expert)
{
    *expert = -1;
    bool mtp = strncmp(official, "mtp.", 4) == 0;
    if (!mtp && strncmp(official, "layers.", 7) != 0) {
        const char *name = translate(root_names, official);
        return name != NULL && (size_t)snprintf(out, room, "%s", name) < room;
    }
    const char *dot = strchr(official, '.');
    const char *rest = strchr(dot + 1, '.');
    if (rest == NULL)
        return false;
    rest++;
    const char *name = stacked_name(rest, expert);
    if (name == NULL)
        name = translate(layer_names, rest);
    if (name == NULL)
        name = rest;
    return (size_t)snprintf(out, room, "%s%.*s%s", mtp ? "" : "model.", (int)(rest - official),
                            official, name) < room;
}

/* The stored tensor of an official name under any of its names; *expert: slice, -1 = all. */
static const stored_tensor *find(const dsv4_storage *st, const char *official, int64_t *expert)
{
    char name[MAX_NAME];
    *expert = -1;
    const stored_tensor *t = storage_find(st, official);
    if (t != NULL || !mlx_name(official, name, sizeof name, expert))
        return t;
    t = storage_find(st, name);
    if (t == NULL && strncmp(name, "model.", 6) == 0)
        t = storage_find(st, name + 6);
    return t;
}

/* ---- views -------------------------------------------------------------------------------- */

static bool float_type(const stored_tensor *t, dsv4_type *out)
{
    static const struct {
        const char *name;
        dsv4_type type;
    } types[] = {{"F32", DSV4_F32}, {"F16", DSV4_F16}, {"BF16", DSV4_BF16}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(t->type, types[i].name) == 0) {
            *out = types[i].type;
            return true;
        }
    return false;
}

/* The scales or biases of a module: [.., rows][cols/group], as many rows as the weight has. */
static dsv4_status find_side(const dsv4_storage *st, const stored_tensor *weight,
                             const char *module, const char *part, int64_t groups,
                             const stored_tensor **out, dsv4_error *err)
{
    char name[MAX_NAME + 16];
    snprintf(name, sizeof name, "%s.%s", module, part);
    const char *path = st->files[weight->file].path;
    const stored_tensor *t = storage_find(st, name);
    if (t == NULL)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: tensor %s is packed but %s is missing", path,
                         weight->name, name);
    bool same = t->ndim == weight->ndim && t->shape[t->ndim - 1] == groups;
    for (int i = 0; same && i < t->ndim - 1; i++)
        same = t->shape[i] == weight->shape[i];
    if (!same)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: tensor %s: expected the shape of %s with %lld columns, found %lld "
                         "columns",
                         st->files[t->file].path, name, weight->name, (long long)groups,
                         (long long)(t->ndim > 0 ? t->shape[t->ndim - 1] : 0));
    *out = t;
    return DSV4_OK;
}

/* out->rows is the number of stored rows; fills everything that packing decides. */
static dsv4_status view_packed(const dsv4_storage *st, const stored_tensor *t, const char *official,
                               dsv4_tensor *out, dsv4_error *err)
{
    char module[MAX_NAME], official_module[MAX_NAME];
    const char *path = st->files[t->file].path;
    const stored_tensor *scales = NULL, *biases = NULL;
    quant_params q = {0};
    size_t stem = strlen(t->name), official_stem = strlen(official);
    if (stem < 8 || stem >= MAX_NAME || strcmp(t->name + stem - 7, ".weight") != 0 || t->ndim < 2)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: tensor %s: U32 is for packed matrices called <module>.weight", path,
                         t->name);
    snprintf(module, sizeof module, "%.*s", (int)(stem - 7), t->name);
    snprintf(official_module, sizeof official_module, "%.*s",
             (int)(official_stem > 7 ? official_stem - 7 : 0), official);
    dsv4_status status = module_params(st, module, official_module, &q, err);
    if (status != DSV4_OK)
        return status;
    out->cols = t->shape[t->ndim - 1] * (32 / q.bits);
    if (out->cols % q.group != 0)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: tensor %s: %lld columns are no multiple of the group of %d", path,
                         t->name, (long long)out->cols, q.group);
    int64_t groups = out->cols / q.group;
    status = find_side(st, t, module, "scales", groups, &scales, err);
    if (status != DSV4_OK)
        return status;
    out->scale = scales->data;
    out->scale_cols = q.group;
    if (q.mode == MODE_MXFP4) {
        if (strcmp(scales->type, "U8") != 0)
            return dsv4_fail(err, DSV4_E_INPUT, "%s: tensor %s: expected U8, found %s",
                             st->files[scales->file].path, scales->name, scales->type);
        out->type = DSV4_FP4;
        out->scale_row_bytes = (size_t)groups;
        return DSV4_OK;
    }
    status = find_side(st, t, module, "biases", groups, &biases, err);
    if (status != DSV4_OK)
        return status;
    if (!float_type(scales, &out->scale_type) || strcmp(scales->type, biases->type) != 0)
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: tensor %s: expected F16, BF16 or F32, scales and biases alike, found "
                         "%s and %s",
                         path, scales->name, scales->type, biases->type);
    out->bias = biases->data;
    out->type = q.bits == 4 ? DSV4_MLX4 : DSV4_MLX8;
    out->scale_row_bytes = dsv4_format_row_bytes(dsv4_format_of(out->scale_type), groups);
    return DSV4_OK;
}

static dsv4_status lookup(const dsv4_storage *st, const char *official, dsv4_tensor *out,
                          dsv4_error *err)
{
    int64_t expert;
    memset(out, 0, sizeof *out);
    const stored_tensor *t = find(st, official, &expert);
    if (t == NULL)
        return DSV4_OK;
    const char *path = st->files[t->file].path;
    size_t length = strlen(official);
    bool table = length > 8 && strcmp(official + length - 8, ".tid2eid") == 0;
    out->rows = 1;
    for (int i = 0; i < t->ndim - 1; i++)
        out->rows *= t->shape[i]; /* the size was checked when the file was read */
    out->cols = t->ndim == 0 ? 1 : t->shape[t->ndim - 1];
    out->data = t->data;
    out->scale_rows = 1;
    out->scale_cols = 1;
    if (table && (strcmp(t->type, "I32") == 0 || strcmp(t->type, "U32") == 0)) {
        out->type = DSV4_I32;
    } else if (table && strcmp(t->type, "I64") == 0) {
        out->type = DSV4_I64;
    } else if (strcmp(t->type, "U32") == 0) {
        dsv4_status status = view_packed(st, t, official, out, err);
        if (status != DSV4_OK)
            return status;
    } else if (!float_type(t, &out->type)) {
        return dsv4_fail(err, DSV4_E_INPUT,
                         "%s: tensor %s: dtype %s is not one a weight can have here", path, t->name,
                         t->type);
    }
    out->row_bytes = dsv4_format_row_bytes(dsv4_format_of(out->type), out->cols);
    if (expert >= 0) {
        if (t->ndim != 3 || expert >= t->shape[0])
            return dsv4_fail(err, DSV4_E_INPUT,
                             "%s: tensor %s: expected [experts][rows][columns] with expert %lld",
                             path, t->name, (long long)expert);
        out->rows = t->shape[1];
        out->row0 = expert * out->rows;
    }
    out->name = t->name;
    return DSV4_OK;
}

/* ---- opening ------------------------------------------------------------------------------ */

static void free_extra(void *p)
{
    json_decref(p);
}

dsv4_status mlx_open(const char *path, dsv4_storage **out, dsv4_config *config, dsv4_error *err)
{
    json_t *root = load_config(path);
    json_t *quantization = json_incref(json_object_get(root, "quantization"));
    json_decref(root);
    if (!json_is_object(quantization)) {
        json_decref(quantization);
        return dsv4_fail(err, DSV4_E_INPUT, "%s: config.json: quantization: expected an object",
                         path);
    }
    dsv4_status status = safetensors_open(path, out, config, err);
    if (status != DSV4_OK) {
        json_decref(quantization);
        return status;
    }
    (*out)->container = "mlx";
    (*out)->lookup = lookup;
    (*out)->extra = quantization;
    (*out)->free_extra = free_extra;
    return DSV4_OK;
}
