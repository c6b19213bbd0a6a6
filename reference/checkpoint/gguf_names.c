/* gguf_names.c - official tensor names -> GGUF names.
 *
 * The trunk has one set of names, used by every publisher. The MTP layer has two: a file of its own
 * with mtp.0.*, or block L with blk.L.nextn.*, where e_proj and h_proj are the column halves of one
 * matrix and the head collapse is the file's root output_hc_*. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf.h"

typedef struct {
    const char *official, *gguf;
} pair;

static const pair root_names[] = {
    {"embed.weight", "token_embd.weight"},
    {"head.weight", "output.weight"},
    {"norm.weight", "output_norm.weight"},
    {"hc_head_fn", "output_hc_fn.weight"},
    {"hc_head_base", "output_hc_base.weight"},
    {"hc_head_scale", "output_hc_scale.weight"},
    {NULL, NULL},
};

/* After layers.N. or mtp.0., and after blk.N. or mtp.0. */
static const pair block_names[] = {
    {"hc_attn_fn", "hc_attn_fn.weight"},
    {"hc_attn_base", "hc_attn_base.weight"},
    {"hc_attn_scale", "hc_attn_scale.weight"},
    {"hc_ffn_fn", "hc_ffn_fn.weight"},
    {"hc_ffn_base", "hc_ffn_base.weight"},
    {"hc_ffn_scale", "hc_ffn_scale.weight"},
    {"attn_norm.weight", "attn_norm.weight"},
    {"ffn_norm.weight", "ffn_norm.weight"},
    {"attn.attn_sink", "attn_sinks.weight"},
    {"attn.wq_a.weight", "attn_q_a.weight"},
    {"attn.q_norm.weight", "attn_q_a_norm.weight"},
    {"attn.wq_b.weight", "attn_q_b.weight"},
    {"attn.wkv.weight", "attn_kv.weight"},
    {"attn.kv_norm.weight", "attn_kv_a_norm.weight"},
    {"attn.wo_a.weight", "attn_output_a.weight"},
    {"attn.wo_b.weight", "attn_output_b.weight"},
    {"attn.compressor.ape", "attn_compressor_ape.weight"},
    {"attn.compressor.wkv.weight", "attn_compressor_kv.weight"},
    {"attn.compressor.wgate.weight", "attn_compressor_gate.weight"},
    {"attn.compressor.norm.weight", "attn_compressor_norm.weight"},
    {"attn.indexer.wq_b.weight", "indexer.attn_q_b.weight"},
    {"attn.indexer.weights_proj.weight", "indexer.proj.weight"},
    {"attn.indexer.compressor.ape", "indexer_compressor_ape.weight"},
    {"attn.indexer.compressor.wkv.weight", "indexer_compressor_kv.weight"},
    {"attn.indexer.compressor.wgate.weight", "indexer_compressor_gate.weight"},
    {"attn.indexer.compressor.norm.weight", "indexer_compressor_norm.weight"},
    {"ffn.gate.weight", "ffn_gate_inp.weight"},
    {"ffn.gate.bias", "exp_probs_b.bias"},
    {"ffn.gate.tid2eid", "ffn_gate_tid2eid.weight"},
    {"ffn.shared_experts.w1.weight", "ffn_gate_shexp.weight"},
    {"ffn.shared_experts.w2.weight", "ffn_down_shexp.weight"},
    {"ffn.shared_experts.w3.weight", "ffn_up_shexp.weight"},
    {NULL, NULL},
};

/* The MTP layer's own tensors, after mtp.0. in both. */
static const pair mtp_names[] = {
    {"e_proj.weight", "e_proj.weight"},
    {"h_proj.weight", "h_proj.weight"},
    {"enorm.weight", "enorm.weight"},
    {"hnorm.weight", "hnorm.weight"},
    {"norm.weight", "norm.weight"},
    {"hc_head_fn", "hc_head_fn.weight"},
    {"hc_head_base", "hc_head_base.weight"},
    {"hc_head_scale", "hc_head_scale.weight"},
    {NULL, NULL},
};

/* The same as parts of block L. */
static const pair nextn_names[] = {
    {"e_proj.weight", "nextn.eh_proj.weight"},        {"h_proj.weight", "nextn.eh_proj.weight"},
    {"enorm.weight", "nextn.enorm.weight"},           {"hnorm.weight", "nextn.hnorm.weight"},
    {"norm.weight", "nextn.shared_head_norm.weight"}, {NULL, NULL},
};

static const char *translate(const pair *names, const char *official)
{
    for (; names->official != NULL; names++)
        if (strcmp(names->official, official) == 0)
            return names->gguf;
    return NULL;
}

/* Reads a decimal number and the dot after it; NULL if there is none. */
static const char *number(const char *s, long long *out)
{
    char *end;
    if (*s < '0' || *s > '9')
        return NULL;
    *out = strtoll(s, &end, 10);
    return *end == '.' && end - s <= 9 ? end + 1 : NULL;
}

/* ffn.experts.E.w1.weight -> ffn_gate_exps.weight, slice E. */
static const char *expert_name(const char *rest, int64_t *expert)
{
    static const pair parts[] = {
        {"w1.weight", "ffn_gate_exps.weight"},
        {"w2.weight", "ffn_down_exps.weight"},
        {"w3.weight", "ffn_up_exps.weight"},
        {NULL, NULL},
    };
    static const char head[] = "ffn.experts.";
    long long e;
    if (strncmp(rest, head, sizeof head - 1) != 0)
        return NULL;
    const char *part = number(rest + sizeof head - 1, &e);
    const char *name = part != NULL ? translate(parts, part) : NULL;
    if (name != NULL)
        *expert = e;
    return name;
}

bool gguf_place_of(const char *official, int nextn_block, gguf_place *out)
{
    long long n;
    const char *rest, *name;
    *out = (gguf_place){.expert = -1, .half = -1};
    if (strncmp(official, "layers.", 7) == 0) {
        rest = number(official + 7, &n);
        if (rest == NULL)
            return false;
        name = expert_name(rest, &out->expert);
        if (name == NULL)
            name = translate(block_names, rest);
        if (name != NULL)
            snprintf(out->name, sizeof out->name, "blk.%lld.%s", n, name);
        return name != NULL;
    }
    if (strncmp(official, "mtp.", 4) != 0) {
        name = translate(root_names, official);
        if (name != NULL)
            snprintf(out->name, sizeof out->name, "%s", name);
        return name != NULL;
    }
    rest = number(official + 4, &n);
    if (rest == NULL || (nextn_block >= 0 && n != 0))
        return false;
    name = expert_name(rest, &out->expert);
    if (name == NULL)
        name = translate(block_names, rest);
    if (nextn_block < 0) {
        if (name == NULL)
            name = translate(mtp_names, rest);
        if (name != NULL)
            snprintf(out->name, sizeof out->name, "mtp.%lld.%s", n, name);
        return name != NULL;
    }
    if (name == NULL)
        name = translate(nextn_names, rest);
    if (name != NULL) {
        snprintf(out->name, sizeof out->name, "blk.%d.%s", nextn_block, name);
        if (strcmp(rest, "e_proj.weight") == 0)
            out->half = 0;
        else if (strcmp(rest, "h_proj.weight") == 0)
            out->half = 1;
        return true;
    }
    name = translate(root_names, rest); /* hc_head_* */
    if (name == NULL || strncmp(rest, "hc_head_", 8) != 0)
        return false;
    snprintf(out->name, sizeof out->name, "%s", name);
    return true;
}
