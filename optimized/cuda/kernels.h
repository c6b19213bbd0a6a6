/* kernels.h - the operators on the device: one launcher each, from C. Pointers are device memory
 * unless a name says host; every launcher only queues work on the stream. Contracts are those of
 * reference/ops.h, with what the resident session needs beside them. Private to cuda/. */
#ifndef DSV4_CUDA_KERNELS_H
#define DSV4_CUDA_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct CUstream_st *cu_stream;

/* A matrix view [rows][cols] on the device, in its storage format (dsv4_type). */
typedef struct {
    int type;
    int row0; /* number of row 0 in the stored matrix: FP8 rows share scales by it */
    int64_t rows, cols;
    const uint8_t *data; /* row 0 of the view */
    size_t row_bytes;
    const uint8_t *scale; /* scales of the stored matrix's row 0, e8m0, or NULL */
    size_t scale_row_bytes;
    int scale_rows, scale_cols;
} cu_tensor;

enum { CU_MOST_TOPK = 4096, CU_MOST_SEGMENTS = 22, CU_MOST_HC = 16 };

/* The kernels decode these types; the others are held as float32. */
bool cu_type_native(int type);

/* ---- linear.cu ------------------------------------------------------------------------------ */

/* y[i] = W x[i]; bf16: results rounded. */
void cu_linear(cu_stream s, const cu_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
               int64_t ldy, bool bf16);

/* Several products of the same n tokens in one launch. table != NULL: the matrix is
 * table[*index]. */
typedef struct {
    cu_tensor w;            /* the matrix, or the shape of those of the table */
    const cu_tensor *table; /* device */
    const int32_t *index;   /* device */
    const float *x;         /* [n], rows ldx apart */
    int64_t ldx;
    float *y; /* [n], rows ldy apart */
    int64_t ldy;
    bool bf16;
    bool x_bf16; /* the caller's promise: every x is a bf16 number (or not finite) */
    /* And: *index is known once the launch before the last one is done, since the last one's kernel
     * lets the next start no sooner. */
    bool settled;
    /* x (and up, share) was there before the launch before this one could begin; a table's matrices
     * begin at multiples of 256 bytes if w does. */
    bool ahead;
    /* The kernel of this launch lets the next start only when it has waited itself: what was before
     * it is there, then (cu_attention_args.settled). For the products that cu_linear_streams. */
    bool late;
    /* The caller's wish: bit for bit what many tokens give, since the results go into a rounding
     * that shows any difference as a step; for the types where that costs only time (linear.cu,
     * takes_ints). */
    bool one_order;
    /* Of a single token: up != NULL: x is the gates of an expert, and what is multiplied is their
     * swiglu with `up` (limit: as swiglu's), times *share if that is not NULL. */
    float limit;
    const float *up, *share;
} cu_segment;
/* A kernel whose own indices are not settled lets the next start once it has waited for them. */
void cu_linear_group(cu_stream s, const cu_segment *segments, int count, int64_t n);

/* The next products will not find those before them on every multiprocessor: a matter of speed. */
void cu_linear_anew(void);

/* Can the rows be read as whole blocks, at the alignment that is needed? */
bool cu_linear_streams(const cu_tensor *w);

/* Pairs of one expert that are multiplied together: list[first] .. list[first + count - 1]. */
enum { CU_EXPERT_TOKENS = 4 };
typedef struct {
    int32_t expert, first, count;
} cu_expert_group;
/* y[p] = table[expert] x[p / per_row] for every pair p of the groups, p < pairs. */
void cu_linear_experts(cu_stream s, const cu_tensor *table, const cu_tensor *shape, int n_experts,
                       const int32_t *list, const cu_expert_group *groups, const int32_t *n_groups,
                       int64_t pairs, int per_row, const float *x, float *y, bool bf16,
                       bool one_order);

/* ---- gemm.cu -------------------------------------------------------------------------------- */

/* Device memory for x in parts of bf16; who queues work on a stream has its own. */
typedef struct {
    void *memory; /* aligned to 256 bytes */
    size_t bytes;
} cu_room;

enum { CU_GEMM_TOKENS = 16 /* and more: below, cu_linear_group is faster */ };
/* cu_linear_group, on the tensor cores where tokens are many: the same bits, but for types that
 * cu_linear_group multiplies in whole numbers (ints.cuh; cu_segment.one_order). room: NULL or too
 * small = cu_linear_group. A part of n tokens' x is 2 bytes a column; x has one part if it is bf16,
 * else three. */
void cu_products(cu_stream s, const cu_segment *segments, int count, int64_t n,
                 const cu_room *room);
bool cu_gemm_takes(const cu_segment *g, int64_t n);
/* The tiles of matrices that fill the device, for small ones too: for the checker. */
void cu_gemm_large_tiles(bool on);

/* How many pairs of an expert are multiplied together: for cu_expert_pairs. More than
 * CU_EXPERT_TOKENS: by cu_gemm_experts, with these shapes. */
int cu_expert_tokens(const cu_tensor *const *shapes, int count, int64_t pairs, int n_experts,
                     bool x_bf16, const cu_room *room);
/* cu_linear_experts for groups of `together` pairs. */
void cu_gemm_experts(cu_stream s, const cu_tensor *table, const cu_tensor *shape, int n_experts,
                     const int32_t *list, const cu_expert_group *groups, const int32_t *n_groups,
                     int together, int64_t pairs, int per_row, const float *x, bool x_bf16,
                     float *y, bool bf16, const cu_room *room);

/* ---- the rest ------------------------------------------------------------------------------- */

/* copies times the same row: x [n][copies][D]. */
void cu_embed(cu_stream s, const cu_tensor *table, const int32_t *ids, int64_t n, int copies,
              bool bf16, float *x);

void cu_rmsnorm(cu_stream s, const float *x, const float *w, float eps, int64_t n, int64_t dim,
                float *y, bool bf16);
void cu_head_norm(cu_stream s, float *q, float eps, int64_t n, int64_t dim, bool bf16);

/* Positions are *pos0 + i, or positions[i] if pos0 is NULL. */
void cu_rope_angles(cu_stream s, const float *inv_freq, int half, const int64_t *positions,
                    const int64_t *pos0, int64_t n, float *cosine, float *sine);
void cu_rope(cu_stream s, float *x, int64_t n, int heads, int d, int r, const float *cosine,
             const float *sine, bool inverse, bool bf16);

/* How a step begins: cu_embed and cu_rope_angles of both rotations. Token i is at position[i] if
 * apart, else at position[0] + i; its id is token[i], or ids[i] (device) if ids is not NULL.
 * positions_to and ids_to (not with ids) get what later kernels read of them. */
enum { CU_STEP_TOKENS = 64 };
typedef struct {
    int64_t n, position[CU_STEP_TOKENS];
    int64_t *positions_to; /* [n_positions] */
    int n_positions;
    bool apart, bf16;
    int32_t token[CU_STEP_TOKENS];
    const int32_t *ids;
    int32_t *ids_to; /* [n] */
    cu_tensor table;
    int copies, half;
    float *x; /* [n][copies][D] */
    const float *inv_freq[2];
    float *cosine[2], *sine[2]; /* [n][half] */
} cu_step_args;
void cu_begin_step(cu_stream s, const cu_step_args *a);

/* scratch: cu_hc_mix_scratch floats; tickets: n zeroed counters, zero again afterwards. gates NULL
 * or the mixes' gates, computed by the block that finishes last. */
typedef struct {
    const float *scale, *base; /* [3], [(2+hc)*hc] */
    int hc, iters;
    float eps;
    float *pre, *post, *comb;
} cu_gates;
int64_t cu_hc_mix_scratch(int64_t rows, int64_t width, int64_t n);
void cu_hc_mix(cu_stream s, const cu_tensor *fn, const float *streams, float eps, int64_t n,
               float *m, float *scratch, uint32_t *tickets, const cu_gates *gates);
/* The same with gates, then x = collapse [n][dim] and y = RMSNorm of x with the weights norm [dim]
 * and the same eps (y NULL: not asked for): one launch where device and shape allow it. */
typedef struct {
    const float *block; /* [n][D] what the sublayer gave; NULL: the experts, by the next three */
    const float *y;     /* [n][k][D] */
    const int32_t *experts; /* [n][k] */
    const float *shared;    /* [n][D] */
    int k;
    const float *streams; /* [n][hc][D] before the sublayer */
    float *out;           /* [n][hc][D] behind it: the streams that are entered with */
} cu_left;
/* left != NULL, where cu_hc_passes says so: first the end of the sublayer before, with the gates as
 * they are on entry: hc_post, of the experts also expert_sum and add. gates->post and comb NULL: a
 * head's gates, pre alone. later != NULL: the gates of one token may be left to cu_router, cu_rows,
 * or cu_hc_gates. */
typedef struct {
    const float *m; /* mixes; NULL: nothing is left */
    cu_gates gates;
    bool settled; /* m is there when the launch before lets this one start (cu_segment.late) */
} cu_later;
bool cu_hc_passes(const cu_tensor *fn, const cu_gates *gates, int k);
void cu_hc_enter(cu_stream s, const cu_tensor *fn, const float *streams, float eps, int64_t n,
                 float *m, float *scratch, uint32_t *tickets, const cu_gates *gates,
                 const float *norm, float *x, float *y, bool bf16, const cu_left *left,
                 cu_later *later);
void cu_hc_gates(cu_stream s, const float *m, int64_t n, const cu_gates *gates);
void cu_hc_head_gates(cu_stream s, const float *m, const float *scale, const float *base, int64_t n,
                      int hc, float eps, float *pre);
void cu_hc_collapse(cu_stream s, const float *streams, const float *pre, int64_t n, int hc,
                    int64_t dim, float *x, bool bf16);
void cu_hc_post(cu_stream s, const float *block, const float *streams, const float *post,
                const float *comb, int64_t n, int hc, int64_t dim, float *out, bool bf16);

void cu_compressor_pool(cu_stream s, const float *prev_kv, const float *prev_z, const float *kv,
                        const float *z, int ratio, int lanes, int dim, float *c);

/* The compressor of a session. kv and z are rings of `ring` tokens, [ring][lanes*dim], z with its
 * position bias; rows [..][dim]. */
typedef struct {
    int ratio, lanes, dim, rope; /* rope: rotated columns at the end */
    int64_t ring;
    float *kv, *z, *rows;
    const float *ape;  /* [ratio][lanes*dim] */
    const float *norm; /* [dim] */
    const float *inv_freq;
    float eps;
    int numerics;  /* dsv4_numerics */
    bool index;    /* rounded as the indexer's rows are, else as KV rows */
    float *before; /* [n/ratio + 1][dim] new rows before their last rounding; NULL = not asked */
} cu_compressor;
/* Tokens *pos0 .. *pos0 + n - 1, inputs kv and z [n][lanes*dim]: into the rings. */
void cu_compressor_store(cu_stream s, const cu_compressor *c, const float *kv, const float *z,
                         const int64_t *pos0, int64_t n);
/* The rows whose windows these tokens fill. */
void cu_compressor_emit(cu_stream s, const cu_compressor *c, const int64_t *pos0, int64_t n);

/* Angles [rope/2] of the last `rope` columns. */
typedef struct {
    const float *cosine, *sine;
    int rope;
} cu_turn;

/* turn: NULL, or q is as the product gave it and turned first, as cu_rope does where it does not
 * round; where cu_indexer_takes_raw says so.
 * Token i sees (*pos0 + i + 1) / ratio rows; or n_rows rows if pos0 is NULL. scores [n][ld]. The
 * kernel (there is one, if n_rows > 0) lets the next start only when it has waited itself. */
void cu_indexer_scores(cu_stream s, const float *q, const float *rows, const float *w, int heads,
                       int dim, int64_t n, int64_t n_rows, const int64_t *pos0, int ratio,
                       bool bf16, float *scores, int64_t ld, const cu_turn *turn);
bool cu_indexer_takes_raw(int64_t n, int64_t n_rows, int heads, int dim, int rope);
void cu_index_weights(cu_stream s, float *w, int64_t n, int heads, int dim, bool bf16);
void cu_topk(cu_stream s, const float *scores, int64_t ld, int64_t n, int64_t n_rows,
             const int64_t *pos0, int ratio, int k, int32_t *out);

typedef struct {
    int64_t n, first;    /* first: set by cu_attention */
    const int64_t *pos0; /* device */
    int heads, dim;
    const float *q, *window;
    int64_t window_pos0, window_ring; /* row of position p: (p - window_pos0) % window_ring */
    int window_size;
    const float *rows;
    int ratio;
    int64_t most_rows; /* compressed rows any token can see */
    const int32_t *topk;
    int k;
    const float *sink;
    float *scratch; /* cu_attention_scratch floats */
    int splits;     /* of the rows of a token */
    /* Angles [n][rope/2] of the last `rope` columns, for: results turned back (back), as cu_rope
     * does, where cu_attention_turns says so; q as the product gave it (raw): it is normalised by
     * eps and turned, as cu_head_norm and cu_rope do, where cu_attention_takes_raw says so. */
    bool back, raw;
    int rope;
    const float *cosine, *sine;
    float eps;
    /* Of raw queries: when the kernel of the last launch lets this one start, all is there but q
     * or, if there is a list, all but that. */
    bool settled;
} cu_attention_args;
bool cu_attention_turns(int64_t n, int dim, int rope);
bool cu_attention_takes_raw(int64_t n, int dim, int rope);
int cu_attention_splits(int64_t rows); /* the most rows that a token can see */
int64_t cu_attention_scratch(int64_t n, int heads, int dim, int splits);
void cu_attention(cu_stream s, const cu_attention_args *a, float *out, bool bf16);

/* share: NULL or [n][k], as cu_expert_pairs gives it. later: NULL, or gates as well. */
void cu_router(cu_stream s, const float *logits, const float *bias, const int32_t *tid2eid,
               const int32_t *ids, int64_t n, int n_experts, int k, float scaling, int32_t *experts,
               float *weights, float *share, const cu_later *later);
/* h = silu(min(gate, L)) * clamp(up) [n][width]; share: NULL or [n] factors of the rows;
 * deployed: the inputs and the product are rounded to bf16. */
void cu_swiglu(cu_stream s, const float *gate, const float *up, float limit, int64_t n,
               int64_t width, const float *share, bool bf16, float *h);
/* Pairs p = i * k + s in order of expert: list [n*k], groups [n*k] of at most `together` pairs,
 * *n_groups of them; share [n*k]: the weights, those of an expert listed twice together at its
 * first place and 0 at the others. list NULL: the shares alone. */
void cu_expert_pairs(cu_stream s, const int32_t *experts, const float *weights, int64_t n, int k,
                     int n_experts, int together, int32_t *list, cu_expert_group *groups,
                     int32_t *n_groups, float *share);
/* out[i] = sum of y[i*k + s] over s, an expert's later places left out. */
void cu_expert_sum(cu_stream s, const float *y, const int32_t *experts, int64_t n, int k,
                   int64_t dim, float *out);

void cu_add(cu_stream s, float *x, const float *y, int64_t n, bool bf16);
void cu_round_bf16(cu_stream s, float *x, int64_t n);
/* to may be from; before: NULL or [n][dim], a copy of the input. */
void cu_round_fp8(cu_stream s, const float *from, float *to, int64_t n, int64_t ld_from,
                  int64_t ld_to, int64_t dim, int block, float *before);
void cu_round_fp4(cu_stream s, float *x, int64_t n, int64_t dim, int block, float *before);
void cu_hadamard(cu_stream s, float *x, int64_t n, int dim, bool bf16);
/* kv rows [n][d] of tokens from *pos0 into the window's ring. */
void cu_window_store(cu_stream s, const float *kv, const int64_t *pos0, int64_t n, int d,
                     int64_t ring, float *window);
/* Streams and embedding side of the MTP layer: x[i][j] += y[i]. */
void cu_add_streams(cu_stream s, float *x, const float *y, int64_t n, int hc, int64_t dim,
                    bool bf16);

/* ---- compositions: several of the operators above in one launch, with their bits ---------------
 */

/* fused_rows.cu: rmsnorm (round_fp8) of q_lora; rmsnorm, rope, round_fp8, window_store of kv_row;
 * compressor_store, compressor_emit; index_weights. */
typedef struct {
    const int64_t *pos; /* device */
    float *window;      /* [window_ring][dim] */
    int64_t window_ring;
    cu_compressor compressor, indexer;
} cu_row_state;
typedef struct {
    int64_t n;
    int numerics; /* dsv4_numerics */
    float eps;
    float *q_lora, *q8; /* [n][q_dim]; q8: NULL or where the row rounded to FP8 goes */
    const float *q_norm;
    int64_t q_dim;
    int q8_block;
    const float *kv_row, *kv_norm; /* [n][dim], [dim] */
    int dim, rope, index_dim;
    const float *cosine, *sine;               /* [n][rope/2] */
    bool compresses;                          /* one token a state: its inputs are stored, too */
    const float *kv, *z, *index_kv, *index_z; /* [n][lanes*dim] */
    float *index_w;                           /* [n][index_heads] */
    int index_heads;
    float index_scale;
    cu_row_state one;          /* of consecutive tokens from *one.pos, if table is NULL */
    const cu_row_state *table; /* device [n]: a token of each state */
    cu_later later;
} cu_rows_args;
bool cu_rows_take(int64_t q_dim, int64_t dim, int64_t index_dim);
void cu_rows(cu_stream s, const cu_rows_args *a, int ratio);

/* fused_queries.cu: head_norm, rope of q; rope, hadamard, round_fp4 of index_q. */
typedef struct {
    int64_t n;
    int numerics;
    float eps;
    float *q; /* [n][heads][dim] */
    int heads, dim, rope;
    const float *cosine, *sine; /* [n][rope/2] */
    float *index_q;             /* [n][index_heads][index_dim] */
    int index_heads, index_dim; /* 0 heads: none */
} cu_queries_args;
bool cu_queries_take(int dim, int rope, int index_heads, int index_dim);
void cu_queries(cu_stream s, const cu_queries_args *a);

/* fused_experts.cu: swiglu of two lots of rows (round_fp8 by `block` columns, 0 = none); then
 * expert_sum, add, hc_post. out may be gate. */
typedef struct {
    const float *gate, *up, *share; /* [n][width], share [n] or NULL */
    float *out;
    int64_t n, width;
    int block;
} cu_swiglu_rows;
void cu_swiglu_both(cu_stream s, const cu_swiglu_rows *first, const cu_swiglu_rows *second,
                    float limit, bool bf16);
bool cu_leave_takes(int k);
void cu_leave(cu_stream s, const float *y, const int32_t *experts, int k, const float *shared,
              const float *streams, const float *post, const float *comb, int64_t n, int hc,
              int64_t dim, float *out, bool bf16);

#ifdef __cplusplus
}
#endif
#endif
