/* gemm_floats.cu - the kernels of products of many tokens for matrices of floats of all widths. */
#include <limits.h>

#include "gemm.cuh"

extern "C" int cu_gemm_floats(cu_stream s, int type, int parts, int tokens, unsigned blocks,
                              unsigned groups, int64_t size, const gemm_args *a)
{
    switch (type) {
    case DSV4_BF16:
        return gemm_of<DSV4_BF16>(s, parts, tokens, blocks, groups, size, a);
    case DSV4_FP8:
        return gemm_of<DSV4_FP8>(s, parts, tokens, blocks, groups, size, a);
    case DSV4_FP4:
        return gemm_of<DSV4_FP4>(s, parts, tokens, blocks, groups, size, a);
    case DSV4_MXFP4:
        return gemm_of<DSV4_MXFP4>(s, parts, tokens, blocks, groups, size, a);
    }
    return INT_MAX; /* no kernel for it: fits nowhere */
}
