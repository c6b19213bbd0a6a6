/* gemm_blocks.cu - the kernels of products of many tokens for matrices quantised in blocks. */
#include "gemm.cuh"

extern "C" void cu_gemm_blocks(cu_stream s, int type, int parts, int tokens, unsigned blocks,
                               unsigned groups, int64_t size, const gemm_args *a)
{
    switch (type) {
    case DSV4_Q8_0:
        gemm_of<DSV4_Q8_0>(s, parts, tokens, blocks, groups, size, a);
        break;
    case DSV4_Q4_K:
        gemm_of<DSV4_Q4_K>(s, parts, tokens, blocks, groups, size, a);
        break;
    case DSV4_Q2_K:
        gemm_of<DSV4_Q2_K>(s, parts, tokens, blocks, groups, size, a);
        break;
    case DSV4_IQ2_XXS:
        gemm_of<DSV4_IQ2_XXS>(s, parts, tokens, blocks, groups, size, a);
        break;
    }
}
