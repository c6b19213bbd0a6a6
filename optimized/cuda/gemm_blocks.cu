/* gemm_blocks.cu - the kernels of products of many tokens for matrices quantised in blocks. */
#include <limits.h>

#include "gemm.cuh"

extern "C" int cu_gemm_blocks(cu_stream s, int type, int parts, int tokens, unsigned blocks,
                              unsigned groups, int64_t size, const gemm_args *a)
{
    switch (type) {
    case DSV4_Q8_0:
        return gemm_of<DSV4_Q8_0>(s, parts, tokens, blocks, groups, size, a);
    case DSV4_Q4_K:
        return gemm_of<DSV4_Q4_K>(s, parts, tokens, blocks, groups, size, a);
    case DSV4_Q2_K:
        return gemm_of<DSV4_Q2_K>(s, parts, tokens, blocks, groups, size, a);
    case DSV4_IQ2_XXS:
        return gemm_of<DSV4_IQ2_XXS>(s, parts, tokens, blocks, groups, size, a);
    }
    return INT_MAX; /* no kernel for it: fits nowhere */
}
