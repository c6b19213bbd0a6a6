/* cmd_synth.c - dsv4check synth OUT: a model file of a public model's shape, made of random blocks.
 * For measuring loaders, kernels and memory without the real weights. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "make_model.h"
#include "synth_blocks.h"

static const char help[] =
    "usage: dsv4check synth OUT --shape flash|pro|nano --recipe R [options]\n\n"
    "Writes a valid model file of that shape made of seeded random blocks.\n\n"
    "  --recipe R       as in quantize --help\n"
    "  --layers N       layers (default: all of the shape: 43, 61, 5)\n"
    "  --seed N         default 0\n"
    "  --mtp-out FILE   the MTP layer, for GGUF recipes\n"
    "  --shards N       number of files OUT is split into\n"
    "  --quiet, --no-progress\n";

/* Shapes as in the models' config.json; the lists with one entry a layer are made by shape_config.
 */
static const struct {
    const char *name;
    dsv4_config config;
    int first_ratio; /* of layers 0 and 1 */
    int even, odd;   /* of the layers that follow */
} shapes[] = {
    {"flash",
     {.vocab_size = 129280,
      .hidden_size = 4096,
      .moe_intermediate_size = 2048,
      .num_hidden_layers = 43,
      .num_attention_heads = 64,
      .head_dim = 512,
      .qk_rope_head_dim = 64,
      .q_lora_rank = 1024,
      .o_groups = 8,
      .o_lora_rank = 1024,
      .n_routed_experts = 256,
      .num_experts_per_tok = 6,
      .num_hash_layers = 3,
      .routed_scaling_factor = 1.5f,
      .sliding_window = 128,
      .index_n_heads = 64,
      .index_topk = 512},
     0,
     4,
     128},
    {"pro",
     {.vocab_size = 129280,
      .hidden_size = 7168,
      .moe_intermediate_size = 3072,
      .num_hidden_layers = 61,
      .num_attention_heads = 128,
      .head_dim = 512,
      .qk_rope_head_dim = 64,
      .q_lora_rank = 1536,
      .o_groups = 16,
      .o_lora_rank = 1024,
      .n_routed_experts = 384,
      .num_experts_per_tok = 6,
      .num_hash_layers = 3,
      .routed_scaling_factor = 2.5f,
      .sliding_window = 128,
      .index_n_heads = 64,
      .index_topk = 1024},
     128,
     4,
     128},
    {"nano",
     {.vocab_size = 1280,
      .hidden_size = 256,
      .moe_intermediate_size = 512,
      .num_hidden_layers = 5,
      .num_attention_heads = 8,
      .head_dim = 192,
      .qk_rope_head_dim = 64,
      .q_lora_rank = 96,
      .o_groups = 2,
      .o_lora_rank = 320,
      .n_routed_experts = 12,
      .num_experts_per_tok = 3,
      .num_hash_layers = 2,
      .routed_scaling_factor = 1.5f,
      .sliding_window = 72,
      .index_n_heads = 16,
      .index_topk = 20},
     0,
     128,
     4},
};

/* The shape with `layers` layers (-1 = all) and one MTP layer. */
static dsv4_status shape_config(const char *name, int layers, dsv4_config *out, dsv4_error *err)
{
    size_t n = sizeof shapes / sizeof *shapes, i = 0;
    while (i < n && (name == NULL || strcmp(shapes[i].name, name) != 0))
        i++;
    if (i == n)
        return dsv4_fail(err, DSV4_E_INPUT, "--shape: expected flash, pro or nano, found '%s'",
                         name != NULL ? name : "nothing");
    *out = shapes[i].config;
    if (layers > 0)
        out->num_hidden_layers = layers;
    layers = out->num_hidden_layers;
    if (out->num_hash_layers > layers)
        out->num_hash_layers = layers;
    out->num_nextn_predict_layers = 1;
    out->n_shared_experts = 1;
    out->index_head_dim = 128;
    out->hc_mult = 4;
    out->hc_sinkhorn_iters = 20;
    out->hc_eps = out->rms_norm_eps = 1e-6f;
    out->rope_theta = 10000;
    out->compress_rope_theta = 160000;
    out->yarn_factor = 16;
    out->yarn_beta_fast = 32;
    out->yarn_beta_slow = 1;
    out->yarn_original_positions = 65536;
    out->max_position_embeddings = 1048576;
    out->bos_token_id = 0;
    out->eos_token_id = 1;
    out->compress_ratios = dsv4_alloc((size_t)layers + 1, sizeof(int), "ratios", err);
    out->swiglu_limit = dsv4_alloc((size_t)layers + 1, sizeof(float), "limits", err);
    if (out->compress_ratios == NULL || out->swiglu_limit == NULL) {
        dsv4_config_free(out);
        return DSV4_E_MACHINE;
    }
    bool nano = strcmp(shapes[i].name, "nano") == 0; /* one plain layer in front, not two */
    for (int l = 0; l <= layers; l++) {
        int ratio = l % 2 == 0 ? shapes[i].even : shapes[i].odd;
        if (l < (nano ? 1 : 2))
            ratio = shapes[i].first_ratio;
        out->compress_ratios[l] = l < layers ? ratio : 0;
        out->swiglu_limit[l] = 10;
    }
    return DSV4_OK;
}

static dsv4_status write_part(const make_options *o, const dsv4_model *m, const recipe *r,
                              weight_part part, const char *path, dsv4_error *err)
{
    synth s;
    char name[128];
    double started = now_seconds();
    encoding *encodings = NULL;
    model_output out = {
        .config = &m->config,
        .name = name,
        .file_type = r->file_type,
        .shards = part == WEIGHTS_MTP ? 1
                  : o->shards > 0     ? o->shards
                                      : r->shards,
        .progress = !o->quiet && !o->no_progress,
    };
    snprintf(name, sizeof name, "synthetic %s", o->shape);
    dsv4_status status = synth_init(&s, o->seed, m->config.n_routed_experts, err);
    if (status == DSV4_OK)
        status = weights_list(m, part, &out.weights, err);
    if (status != DSV4_OK)
        goto done;
    out.maker = synth_maker(&s);
    encodings = dsv4_alloc(out.weights.count, sizeof *encodings, "encodings", err);
    if (encodings == NULL) {
        status = DSV4_E_MACHINE;
        goto done;
    }
    for (size_t i = 0; i < out.weights.count; i++)
        encodings[i] = recipe_encoding(r, &out.weights.items[i]);
    out.encodings = encodings;
    status =
        r->to == TO_GGUF ? write_gguf(path, &out, err) : write_directory(path, r->to, &out, err);
    if (status == DSV4_OK)
        make_report(o, path, &out, now_seconds() - started);
done:
    free(encodings);
    weights_free(&out.weights);
    synth_free(&s);
    return status;
}

int cmd_synth(int argc, char **argv)
{
    static const char *const allowed[] = {"shape",   "recipe", "layers", "seed",
                                          "mtp-out", "shards", NULL};
    make_options o;
    dsv4_error err;
    dsv4_model m = {0};
    const recipe *r = NULL;
    dsv4_status status = make_options_parse(argc, argv, allowed, 1, &o, &err);
    if (status == DSV4_OK && o.help) {
        fputs(help, stdout);
        return 0;
    }
    if (status == DSV4_OK) {
        r = o.recipe != NULL ? recipe_find(o.recipe) : NULL;
        if (r == NULL)
            status = dsv4_fail(&err, DSV4_E_INPUT,
                               "--recipe: expected a recipe (quantize --help "
                               "lists them), found '%s'",
                               o.recipe != NULL ? o.recipe : "nothing");
    }
    if (status == DSV4_OK && o.mtp_out != NULL && r->to != TO_GGUF)
        status = dsv4_fail(&err, DSV4_E_INPUT,
                           "--mtp-out: only GGUF recipes leave the MTP layer to "
                           "a file of its own");
    if (status == DSV4_OK)
        status = shape_config(o.shape, o.layers, &m.config, &err);
    if (status == DSV4_OK)
        status = write_part(&o, &m, r, r->to == TO_GGUF ? WEIGHTS_TRUNK : WEIGHTS_ALL, o.out, &err);
    if (status == DSV4_OK && o.mtp_out != NULL)
        status = write_part(&o, &m, r, WEIGHTS_MTP, o.mtp_out, &err);
    dsv4_config_free(&m.config);
    return make_exit(&o, status, &err);
}
