/* model.c - opening and closing a model, whatever container holds it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "storage.h"

/* GGUF by its magic, or by its name so that a damaged file is reported as what it was meant to
 * be. */
static bool is_gguf(const char *path)
{
    char magic[4] = "";
    size_t n = strlen(path);
    struct stat info;
    if (stat(path, &info) != 0 || !S_ISREG(info.st_mode))
        return false;
    if (n > 5 && strcmp(path + n - 5, ".gguf") == 0)
        return true;
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        return false;
    size_t got = fread(magic, 1, sizeof magic, f);
    fclose(f);
    return got == sizeof magic && memcmp(magic, "GGUF", sizeof magic) == 0;
}

/* config is left alone when it is not wanted (NULL); only GGUF files can do without. */
static dsv4_status open_storage(const char *path, dsv4_storage **out, dsv4_config *config,
                                dsv4_error *err)
{
    if (is_gguf(path))
        return gguf_open(path, out, config, err);
    dsv4_config own;
    dsv4_config *c = config != NULL ? config : &own;
    dsv4_status status =
        mlx_recognise(path) ? mlx_open(path, out, c, err) : safetensors_open(path, out, c, err);
    if (status == DSV4_OK && config == NULL)
        dsv4_config_free(&own);
    return status;
}

/* Says so when a file holds the MTP layer alone; the binder would only miss the first tensor. */
static dsv4_status refuse_mtp_alone(const dsv4_storage *st, dsv4_error *err)
{
    dsv4_tensor trunk, mtp;
    dsv4_status status = st->lookup(st, "layers.0.attn_norm.weight", &trunk, err);
    if (status == DSV4_OK)
        status = st->lookup(st, "mtp.0.norm.weight", &mtp, err);
    if (status == DSV4_OK && trunk.name == NULL && mtp.name != NULL)
        status = dsv4_fail(err, DSV4_E_INPUT,
                           "%s: tensor layers.0.attn_norm.weight is missing: this file holds the "
                           "MTP layer alone and goes beside a model",
                           st->path);
    return status;
}

dsv4_status dsv4_model_open(const char *path, dsv4_model **out, dsv4_error *err)
{
    *out = NULL;
    dsv4_model *m = dsv4_alloc(1, sizeof *m, "a model", err);
    if (m == NULL)
        return DSV4_E_MACHINE;
    dsv4_status status = open_storage(path, &m->storage, &m->config, err);
    if (status == DSV4_OK)
        status = refuse_mtp_alone(m->storage, err);
    if (status == DSV4_OK)
        status = bind_model(m, err);
    if (status == DSV4_OK)
        *out = m;
    else
        dsv4_model_close(m);
    return status;
}

void dsv4_model_close(dsv4_model *m)
{
    if (m == NULL)
        return;
    for (int i = 0; m->layers != NULL && i < m->config.num_hidden_layers; i++)
        free(m->layers[i].w1);
    for (int i = 0; m->mtp != NULL && i < m->config.num_nextn_predict_layers; i++)
        free(m->mtp[i].layer.w1);
    free(m->layers);
    free(m->mtp);
    dsv4_config_free(&m->config);
    storage_free(m->storage);
    free(m);
}

/* Writers of a trunk alone drop the count of MTP layers: makes room for one, window only, with the
 * last layer's clamp. */
static dsv4_status expect_mtp(dsv4_config *c, dsv4_error *err)
{
    int layers = c->num_hidden_layers;
    int *ratios = dsv4_alloc((size_t)layers + 1, sizeof *ratios, "compress_ratios", err);
    float *limits = dsv4_alloc((size_t)layers + 1, sizeof *limits, "swiglu_limit", err);
    if (ratios == NULL || limits == NULL) {
        free(ratios);
        free(limits);
        return DSV4_E_MACHINE;
    }
    memcpy(ratios, c->compress_ratios, (size_t)layers * sizeof *ratios);
    memcpy(limits, c->swiglu_limit, (size_t)layers * sizeof *limits);
    limits[layers] = limits[layers - 1];
    dsv4_config_free(c);
    c->compress_ratios = ratios;
    c->swiglu_limit = limits;
    c->num_nextn_predict_layers = 1;
    return DSV4_OK;
}

dsv4_status dsv4_model_add_mtp(dsv4_model *m, const char *path, dsv4_error *err)
{
    dsv4_storage *second = NULL;
    if (m->mtp != NULL)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: the model has its MTP layer already", path);
    dsv4_status status = open_storage(path, &second, NULL, err);
    if (status != DSV4_OK)
        return status;
    storage_free(m->storage->second); /* of an earlier attempt that failed */
    m->storage->second = second;
    if (m->config.num_nextn_predict_layers == 0)
        status = expect_mtp(&m->config, err);
    if (status == DSV4_OK)
        status = bind_mtp(m, second, err);
    if (status != DSV4_OK && m->mtp != NULL) {
        for (int i = 0; i < m->config.num_nextn_predict_layers; i++)
            free(m->mtp[i].layer.w1);
        free(m->mtp);
        m->mtp = NULL; /* the model is as it was, without MTP */
    }
    return status;
}
