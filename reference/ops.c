/* ops.c - fills the operator table with the scalar operators. */
#include "ops.h"

#include "scalar.h"

static const dsv4_ops reference = {
    .name = "ref",
    .embed = ref_embed,
    .linear = ref_linear,
    .rmsnorm = ref_rmsnorm,
    .head_norm = ref_head_norm,
    .rope_angles = ref_rope_angles,
    .rope = ref_rope,
    .hc_mix = ref_hc_mix,
    .hc_gates = ref_hc_gates,
    .hc_head_gates = ref_hc_head_gates,
    .hc_collapse = ref_hc_collapse,
    .hc_post = ref_hc_post,
    .compressor_pool = ref_compressor_pool,
    .indexer_scores = ref_indexer_scores,
    .index_weights = ref_index_weights,
    .topk = ref_topk,
    .attention = ref_attention,
    .router = ref_router,
    .swiglu = ref_swiglu,
    .experts = ref_experts,
    .add = ref_add,
    .round_bf16 = ref_round_bf16,
    .round_fp8 = ref_round_fp8,
    .round_fp4 = ref_round_fp4,
    .hadamard = ref_hadamard,
};

const dsv4_ops *dsv4_ops_reference(void)
{
    return &reference;
}
