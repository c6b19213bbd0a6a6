/* gemm.h - what the launchers of gemm.cu and the kernels of gemm_*.cu share. Private to gemm*. */
#ifndef DSV4_CUDA_GEMM_H
#define DSV4_CUDA_GEMM_H

#include "kernels.h"

typedef struct {
    cu_tensor w;
    const uint16_t *x;    /* bf16 parts [parts][..][pitch] in the order of mma's slots */
    int64_t pitch, part;  /* elements */
    const uint16_t *sums; /* of every 16 or 32 columns of x, three parts [3][..], or NULL */
    int64_t sums_part;
    float *y;
    int64_t ldy;
    bool bf16;
    int first_block;
} gemm_segment;

/* Blocks of 128 rows times a tile of tokens, tiles fastest: dense matrices, n tokens each. Or, with
 * groups, of the pairs that are listed together, rows fastest: see cu_linear_experts. */
typedef struct {
    gemm_segment seg[CU_MOST_SEGMENTS];
    int count, tiles; /* of tokens */
    int64_t n;
    const void *iq2; /* device: cu_iq2_words */
    /* experts */
    const cu_tensor *table;
    const cu_expert_group *groups;
    const int32_t *n_groups, *list;
    int per_row;
} gemm_args;

enum { GEMM_ROWS = 128 };

/* Launches the kernel of a type for `tokens` tokens a tile: 16, 32, 64 or 128 with one part of x,
 * 16, 32 or 48 with three. Returns the bytes of shared memory that a block of it has; a == NULL:
 * nothing is launched. */
#ifdef __cplusplus
extern "C" {
#endif
int cu_gemm_floats(cu_stream s, int type, int parts, int tokens, unsigned blocks, unsigned groups,
                   int64_t size, const gemm_args *a);
int cu_gemm_blocks(cu_stream s, int type, int parts, int tokens, unsigned blocks, unsigned groups,
                   int64_t size, const gemm_args *a);
#ifdef __cplusplus
}
#endif

#endif
