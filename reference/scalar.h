/* scalar.h - the scalar operators behind the reference's table, and what they share. Private to
 * reference/; contracts are in ops.h. */
#ifndef DSV4_SCALAR_H
#define DSV4_SCALAR_H

#include "ops.h"

/* Sum of products in double, in eight interleaved lanes added in a fixed order: the same value on
 * every machine and with every compiler. */
double dsv4_dot(const float *a, const float *b, int64_t n);

/* Columns [column, column + n) of a row; column is a multiple of the format's block and of the
 * scale group. */
void dsv4_tensor_span(const dsv4_tensor *t, int64_t row, int64_t column, int64_t n, float *out);

void ref_embed(const dsv4_tensor *, const int32_t *, int64_t, float *);
void ref_linear(const dsv4_tensor *, const float *, int64_t, int64_t, float *, int64_t);
void ref_rmsnorm(const float *, const float *, float, int64_t, int64_t, float *);
void ref_head_norm(float *, float, int64_t, int64_t, bool);
void ref_rope_angles(const float *, int, const int64_t *, int64_t, float *, float *);
void ref_rope(float *, int64_t, int, int, int, const float *, const float *, bool);
void ref_hc_mix(const dsv4_tensor *, const float *, float, int64_t, float *);
void ref_hc_gates(const float *, const float *, const float *, int64_t, int, int, float, float *,
                  float *, float *);
void ref_hc_head_gates(const float *, const float *, const float *, int64_t, int, float, float *);
void ref_hc_collapse(const float *, const float *, int64_t, int, int64_t, float *);
void ref_hc_post(const float *, const float *, const float *, const float *, int64_t, int, int64_t,
                 float *);
void ref_compressor_pool(const float *, const float *, const float *, const float *, int, int, int,
                         float *);
void ref_indexer_scores(const float *, const float *, const float *, int, int, int64_t, bool,
                        float *);
void ref_index_weights(float *, int64_t, int, int);
void ref_topk(const float *, int64_t, int, int32_t *);
bool ref_attention(const dsv4_attention_args *, float *);
void ref_router(const float *, const float *, const dsv4_tensor *, const int32_t *, int64_t, int,
                int, float, int32_t *, float *);
void ref_swiglu(const float *, const float *, float, int64_t, float *);
bool ref_experts(const dsv4_experts_args *, float *);
void ref_add(float *, const float *, int64_t);
void ref_round_bf16(float *, int64_t);
void ref_round_fp8(float *, int64_t, int64_t, int64_t, int);
void ref_round_fp4(float *, int64_t, int64_t, int);
void ref_hadamard(float *, int64_t, int);

/* x rounded to bf16 and back. */
float dsv4_bf16(float x);

/* One element rounded to the grid of a block whose largest magnitude is amax: what round_fp8 and
 * round_fp4 do to it. */
float dsv4_fp8_scale(float amax);
float dsv4_fp4_scale(float amax);

#endif
