/* taps.c - names, types and shapes of the taps, in data-flow order. */
#include <string.h>

#include "dsv4.h"

static const char *const names[DSV4_TAP_COUNT] = {
    [DSV4_TAP_HC_ATTN_POST] = "hc_attn_post",
    [DSV4_TAP_HC_ATTN_COMB] = "hc_attn_comb",
    [DSV4_TAP_HC_ATTN_COLLAPSED] = "hc_attn_collapsed",
    [DSV4_TAP_ATTN_NORM] = "attn_norm",
    [DSV4_TAP_Q_LORA] = "q_lora",
    [DSV4_TAP_Q] = "q",
    [DSV4_TAP_KV] = "kv",
    [DSV4_TAP_COMPRESSED_KV] = "compressed_kv",
    [DSV4_TAP_INDEXER_Q] = "indexer_q",
    [DSV4_TAP_INDEXER_KV] = "indexer_kv",
    [DSV4_TAP_INDEXER_SCORES] = "indexer_scores",
    [DSV4_TAP_INDEXER_TOPK] = "indexer_topk",
    [DSV4_TAP_ATTN_HEADS] = "attn_heads",
    [DSV4_TAP_O_LORA] = "o_lora",
    [DSV4_TAP_ATTN_OUT] = "attn_out",
    [DSV4_TAP_STREAMS_MID] = "streams_mid",
    [DSV4_TAP_HC_FFN_POST] = "hc_ffn_post",
    [DSV4_TAP_HC_FFN_COMB] = "hc_ffn_comb",
    [DSV4_TAP_HC_FFN_COLLAPSED] = "hc_ffn_collapsed",
    [DSV4_TAP_FFN_NORM] = "ffn_norm",
    [DSV4_TAP_ROUTER_LOGITS] = "router_logits",
    [DSV4_TAP_ROUTER_EXPERTS] = "router_experts",
    [DSV4_TAP_ROUTER_WEIGHTS] = "router_weights",
    [DSV4_TAP_ROUTED_OUT] = "routed_out",
    [DSV4_TAP_SHARED_OUT] = "shared_out",
    [DSV4_TAP_FFN_OUT] = "ffn_out",
    [DSV4_TAP_STREAMS] = "streams",
    [DSV4_TAP_HEAD_COLLAPSED] = "head_collapsed",
    [DSV4_TAP_FINAL_NORM] = "final_norm",
    [DSV4_TAP_LOGITS] = "logits",
    [DSV4_TAP_MTP_LOGITS] = "mtp/logits",
};

const char *dsv4_tap_name(dsv4_tap_id id)
{
    return (unsigned)id < DSV4_TAP_COUNT ? names[id] : "?";
}

bool dsv4_tap_parse(const char *name, dsv4_tap_id *out)
{
    for (int i = 0; i < DSV4_TAP_COUNT; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (dsv4_tap_id)i;
            return true;
        }
    return false;
}

bool dsv4_tap_is_int(dsv4_tap_id id)
{
    return id == DSV4_TAP_INDEXER_TOPK || id == DSV4_TAP_ROUTER_EXPERTS;
}

bool dsv4_tap_is_row(dsv4_tap_id id)
{
    return id == DSV4_TAP_COMPRESSED_KV || id == DSV4_TAP_INDEXER_KV;
}

int dsv4_tap_shape(dsv4_tap_id id, const dsv4_config *c, int64_t shape[2])
{
    int64_t hc = c->hc_mult, D = c->hidden_size;
    shape[0] = shape[1] = 1;
    switch (id) {
    case DSV4_TAP_HC_ATTN_POST:
    case DSV4_TAP_HC_FFN_POST:
        shape[0] = hc;
        return 1;
    case DSV4_TAP_HC_ATTN_COMB:
    case DSV4_TAP_HC_FFN_COMB:
        shape[0] = shape[1] = hc;
        return 2;
    case DSV4_TAP_Q_LORA:
        shape[0] = c->q_lora_rank;
        return 1;
    case DSV4_TAP_Q:
    case DSV4_TAP_ATTN_HEADS:
        shape[0] = c->num_attention_heads;
        shape[1] = c->head_dim;
        return 2;
    case DSV4_TAP_KV:
    case DSV4_TAP_COMPRESSED_KV:
        shape[0] = c->head_dim;
        return 1;
    case DSV4_TAP_INDEXER_Q:
        shape[0] = c->index_n_heads;
        shape[1] = c->index_head_dim;
        return 2;
    case DSV4_TAP_INDEXER_KV:
        shape[0] = c->index_head_dim;
        return 1;
    case DSV4_TAP_INDEXER_SCORES:
    case DSV4_TAP_INDEXER_TOPK:
        shape[0] = -1;
        return 1;
    case DSV4_TAP_O_LORA:
        shape[0] = (int64_t)c->o_groups * c->o_lora_rank;
        return 1;
    case DSV4_TAP_STREAMS_MID:
    case DSV4_TAP_STREAMS:
        shape[0] = hc;
        shape[1] = D;
        return 2;
    case DSV4_TAP_ROUTER_LOGITS:
        shape[0] = c->n_routed_experts;
        return 1;
    case DSV4_TAP_ROUTER_EXPERTS:
    case DSV4_TAP_ROUTER_WEIGHTS:
        shape[0] = c->num_experts_per_tok;
        return 1;
    case DSV4_TAP_LOGITS:
    case DSV4_TAP_MTP_LOGITS:
        shape[0] = c->vocab_size;
        return 1;
    default: /* every tap that lives in the hidden space */
        shape[0] = D;
        return 1;
    }
}

static const char *const numerics_names[] = {"math", "qat", "deployed"};

const char *dsv4_numerics_name(dsv4_numerics n)
{
    return (unsigned)n < 3 ? numerics_names[n] : "?";
}

bool dsv4_numerics_parse(const char *name, dsv4_numerics *out)
{
    for (int i = 0; i < 3; i++)
        if (strcmp(name, numerics_names[i]) == 0) {
            *out = (dsv4_numerics)i;
            return true;
        }
    return false;
}
