/* fused_step.cu - how a step begins, in one launch: its positions and tokens, which come as
 * arguments, so that no copy is queued; embed; rope_angles of both rotations. */
#include "rows.cuh"

extern "C" const uint64_t *cu_iq2_book_device(void); /* device.c */

enum { THREADS = 128 };

/* Token blockIdx.y: block 0 its angles and what later kernels read, the others its embedding. */
static __global__ void __launch_bounds__(THREADS)
    begin_step(const __grid_constant__ cu_step_args a, const uint64_t *iq2)
{
    begin();
    int64_t i = blockIdx.y;
    int32_t id = a.ids != NULL ? a.ids[i] : a.token[i % CU_STEP_TOKENS];
    if (blockIdx.x > 0) {
        int64_t c = (int64_t)(blockIdx.x - 1) * THREADS + threadIdx.x;
        if (c < a.table.cols)
            embed_column(a.table, id, c, a.copies, a.bf16, iq2, a.x + i * a.copies * a.table.cols);
        return;
    }
    int64_t position = a.apart ? a.position[i % CU_STEP_TOKENS] : a.position[0] + i;
    for (int k = threadIdx.x; k < 2 * a.half; k += THREADS) {
        int which = k / a.half, j = k % a.half;
        const float *inv_freq = a.inv_freq[MUTANT(49) ? 0 : which]; /* YaRN's forgotten */
        angle_of(position, inv_freq[j], a.cosine[which] + i * a.half + j,
                 a.sine[which] + i * a.half + j);
    }
    if (a.ids == NULL && threadIdx.x == 0)
        a.ids_to[i] = id;
    if (i > 0 || MUTANT(81)) /* later kernels left with the step before */
        return;
    for (int k = threadIdx.x; k < a.n_positions; k += THREADS)
        a.positions_to[k] = a.position[k];
}

extern "C" void cu_begin_step(cu_stream s, const cu_step_args *a)
{
    dim3 grid(1 + cu_blocks(a->table.cols, THREADS), (unsigned)a->n);
    cu_linear_anew();
    if (a->n > 0)
        LAUNCH("begin_step", a->n * a->table.cols, begin_step, grid, THREADS, 0, s, *a,
               cu_iq2_book_device());
}
