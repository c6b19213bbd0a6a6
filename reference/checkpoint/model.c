/* model.c - opening and closing a model, whatever container holds it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "storage.h"

dsv4_status dsv4_model_open(const char *path, dsv4_model **out, dsv4_error *err)
{
    *out = NULL;
    dsv4_model *m = dsv4_alloc(1, sizeof *m, "a model", err);
    if (m == NULL)
        return DSV4_E_MACHINE;
    dsv4_status status = safetensors_open(path, &m->storage, &m->config, err);
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

dsv4_status dsv4_model_add_mtp(dsv4_model *m, const char *path, dsv4_error *err)
{
    dsv4_storage *second = NULL;
    dsv4_config config;
    if (m->mtp != NULL)
        return dsv4_fail(err, DSV4_E_INPUT, "%s: the model has its MTP layer already", path);
    dsv4_status status = safetensors_open(path, &second, &config, err);
    if (status != DSV4_OK)
        return status;
    dsv4_config_free(&config);
    m->storage->second = second;
    return bind_mtp(m, second, err);
}
