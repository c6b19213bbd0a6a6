/* mlx.h - the names that MLX weight directories use, for their reader and their writer. */
#ifndef DSV4_MLX_H
#define DSV4_MLX_H

#include "../dsv4.h"

/* The tensor of an official name as mlx-lm calls it: "layers.0.attn.wq_a.weight" is
 * "model.layers.0.attn.wq_a.weight". *expert: slice of a stacked tensor, -1 = the whole tensor. MTP
 * layers, which mlx-lm leaves out, keep the release's mtp.N. False when out is too small or the
 * name is no tensor's. */
bool mlx_name(const char *official, char *out, size_t room, int64_t *expert);

#endif
