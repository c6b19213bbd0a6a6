/* yardsticks.h - ceilings measured on the card, and noise. */
#ifndef DSV4_CUDA_YARDSTICKS_H
#define DSV4_CUDA_YARDSTICKS_H

#include "../kernels.h"

#ifdef __cplusplus
extern "C" {
#endif
void yard_copy(cu_stream s, const void *from, void *to, size_t bytes);
void yard_read(cu_stream s, const void *from, size_t bytes, void *sink);
void yard_noise(cu_stream s, void *to, size_t bytes, uint32_t seed, bool floats);
/* n bf16 numbers between -1 and 1 */
void yard_bf16(cu_stream s, void *to, int64_t n, uint32_t seed);
double yard_fma(cu_stream s, void *sink); /* operations of one call */
/* Launches that do nothing, and one whose last block reads what the others wrote: room [133]. */
void yard_empty(cu_stream s);
void yard_meet(cu_stream s, float *room, uint32_t *ticket);
#ifdef __cplusplus
}
#endif
#endif
