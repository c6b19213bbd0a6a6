/* gemm_floats.cu - the kernels of products of many tokens for matrices of floats of all widths. */
#include "gemm.cuh"

extern "C" void cu_gemm_floats(cu_stream s, int type, int parts, int tokens, unsigned blocks,
                               unsigned groups, int64_t size, const gemm_args *a)
{
    switch (type) {
    case DSV4_BF16:
        gemm_of<DSV4_BF16>(s, parts, tokens, blocks, groups, size, a);
        break;
    case DSV4_FP8:
        gemm_of<DSV4_FP8>(s, parts, tokens, blocks, groups, size, a);
        break;
    case DSV4_FP4:
        gemm_of<DSV4_FP4>(s, parts, tokens, blocks, groups, size, a);
        break;
    case DSV4_MXFP4:
        gemm_of<DSV4_MXFP4>(s, parts, tokens, blocks, groups, size, a);
        break;
    }
}
