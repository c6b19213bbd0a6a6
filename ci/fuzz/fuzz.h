/* fuzz.h - what the fuzzers share: input bytes as a file, and a model that opened put to work. */
#ifndef DSV4_FUZZ_H
#define DSV4_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "harness/runner.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A folder of this process, made once. */
static inline const char *fuzz_folder(void)
{
    static char folder[64];
    if (folder[0] == '\0') {
        snprintf(folder, sizeof folder, "%s/dsv4-fuzz-XXXXXX",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        if (mkdtemp(folder) == NULL)
            abort();
    }
    return folder;
}

static inline void fuzz_file(const char *name, const void *data, size_t size, char path[256])
{
    snprintf(path, 256, "%s/%s", fuzz_folder(), name);
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(data, 1, size, f) != size || fclose(f) != 0)
        abort();
}

/* A model that opened must also run: three tokens, every weight read. */
static inline void fuzz_model(const char *path)
{
    dsv4_error err;
    dsv4_model *m = NULL;
    dsv4_session *s = NULL;
    if (dsv4_model_open(path, &m, &err) != DSV4_OK)
        return;
    const dsv4_config *c = &m->config;
    dsv4_session_options o = {.max_positions = 5};
    /* A config may ask for more memory than a fuzzer should take; that is not what is tested. */
    bool small = c->vocab_size < 100000 && c->hidden_size < 4096 && c->num_hidden_layers < 64 &&
                 c->moe_intermediate_size < 8192 && c->sliding_window < 65536 &&
                 c->num_attention_heads * c->head_dim < 65536 && c->index_topk < 65536 &&
                 c->o_groups * c->o_lora_rank < 65536 && c->q_lora_rank < 65536 &&
                 c->index_n_heads * c->index_head_dim < 65536 && c->hc_sinkhorn_iters < 1000;
    if (small && check_weights(m, &err) == DSV4_OK && c->max_position_embeddings >= 5 &&
        dsv4_session_new(m, dsv4_ops_reference(), &o, &s, &err) == DSV4_OK) {
        int32_t tokens[5] = {0, 0, 0, 0, 0};
        if (dsv4_session_append(s, tokens, 5, NULL, &err) != DSV4_OK && err.text[0] == '\0')
            abort();
    }
    dsv4_session_free(s);
    dsv4_model_close(m);
}

#endif
