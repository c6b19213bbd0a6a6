/* dsv4.h - the public vocabulary of the DeepSeek-V4 reference: status, config, tensor views, model,
 * taps, session. Everything else in the project is written in these words.
 *
 * Shapes are in brackets, slowest index first. All matrices are [out][in]; y = x W^T; no biases.
 * Symbols: D hidden_size, H heads, d head_dim, r rope dims, hc streams, E experts, K experts per
 * token, V vocabulary, W sliding window. */
#ifndef DSV4_H
#define DSV4_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- status and errors ------------------------------------------------------------------- */

/* The values of the two failures are the exit codes of the command line. */
typedef enum {
    DSV4_OK = 0,
    DSV4_E_INPUT = 2,   /* bad usage or bad input: a file, a tensor, a token id */
    DSV4_E_MACHINE = 3, /* the machine failed: I/O, memory, GPU */
} dsv4_status;

typedef struct {
    char text[1024]; /* one line: file, tensor or key, expected, found */
} dsv4_error;

/* Writes the message (truncated to fit; control characters become '?') and returns `status`.
 * err may be NULL. */
dsv4_status dsv4_fail(dsv4_error *err, dsv4_status status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Allocation. `count * size` is checked for overflow; memory is zeroed. On failure NULL, with a
 * message naming `what`. */
void *dsv4_alloc(size_t count, size_t size, const char *what, dsv4_error *err);
/* The same without zeros, for what is filled at once. */
void *dsv4_alloc_unset(size_t count, size_t size, const char *what, dsv4_error *err);

/* Test hook: fail the n-th dsv4_alloc from now (1 = the next one); 0 turns it off. */
void dsv4_alloc_fail_at(long n);
/* For who hands out pieces of memory held already: counts as a dsv4_alloc; true = it must fail. */
bool dsv4_alloc_fails(void);

/* ---- numerics ---------------------------------------------------------------------------- */

typedef enum {
    DSV4_MATH,     /* float32, nothing quantised but the weights */
    DSV4_QAT,      /* + FP8 of KV rows, Hadamard + FP4 of the indexer's q and rows */
    DSV4_DEPLOYED, /* + bf16 between operators, FP8 of the inputs of FP8/FP4 linears */
} dsv4_numerics;

const char *dsv4_numerics_name(dsv4_numerics n);
bool dsv4_numerics_parse(const char *name, dsv4_numerics *out);

/* ---- tensors ----------------------------------------------------------------------------- */

/* Storage types. The table in formats/formats.h says how each is decoded and encoded. */
typedef enum {
    DSV4_F32,
    DSV4_F16,
    DSV4_BF16,
    DSV4_I32,
    DSV4_I64,
    DSV4_FP8, /* e4m3 codes, e8m0 scale per 128 x 128 block beside them */
    DSV4_FP4, /* e2m1 codes two a byte (low nibble = even column), e8m0 scale per 32 columns */
    DSV4_Q4_0,
    DSV4_Q4_1,
    DSV4_Q5_0,
    DSV4_Q5_1,
    DSV4_Q8_0,
    DSV4_Q2_K,
    DSV4_Q3_K,
    DSV4_Q4_K,
    DSV4_Q5_K,
    DSV4_Q6_K,
    DSV4_Q8_K, /* activation blocks only */
    DSV4_IQ1_S,
    DSV4_IQ1_M,
    DSV4_IQ2_XXS,
    DSV4_IQ2_XS,
    DSV4_IQ2_S,
    DSV4_IQ3_XXS,
    DSV4_IQ3_S,
    DSV4_IQ4_NL,
    DSV4_IQ4_XS,
    DSV4_MXFP4,
    DSV4_MLX4, /* affine 4 bits, scale and bias per group beside the codes */
    DSV4_MLX8,
    DSV4_TYPE_COUNT,
} dsv4_type;

/* A read-only view of a matrix [rows][cols] in its storage type. A vector is one row. Views may
 * start inside a stored matrix (row0), as the groups of wo_a and stacked experts do. */
typedef struct {
    const char *name; /* checkpoint name, for messages; NULL = the tensor is absent */
    dsv4_type type;
    int64_t rows, cols;
    const uint8_t *data;    /* row 0 of the stored matrix */
    size_t row_bytes;       /* bytes from one stored row to the next */
    const uint8_t *scale;   /* scales stored beside the codes (FP8, FP4, MLX), else NULL */
    const uint8_t *bias;    /* MLX biases, else NULL */
    size_t scale_row_bytes; /* bytes from one scale row to the next (biases alike) */
    int scale_rows;         /* matrix rows that share a scale row: 128 for FP8, else 1 */
    int scale_cols;         /* columns that share a scale: 128 FP8, 32 FP4, MLX group */
    dsv4_type scale_type;   /* MLX: F32, F16 or BF16 scales; FP8 and FP4 are always e8m0 */
    int64_t row0;           /* first row of this view in the stored matrix */
} dsv4_tensor;

/* Row `row` of the view as float32 [cols]. */
void dsv4_tensor_row(const dsv4_tensor *t, int64_t row, float *out);
/* Element i of an integer tensor (I32 or I64) in row-major order. */
int64_t dsv4_tensor_int(const dsv4_tensor *t, int64_t i);
/* The view of rows [first, first + rows). */
dsv4_tensor dsv4_tensor_rows(const dsv4_tensor *t, int64_t first, int64_t rows);

/* ---- config ------------------------------------------------------------------------------ */

/* Names are those of config.json; shapes follow from them and from nothing else. */
typedef struct {
    int64_t vocab_size, hidden_size, moe_intermediate_size;
    int num_hidden_layers, num_nextn_predict_layers;
    int num_attention_heads, head_dim, qk_rope_head_dim, q_lora_rank;
    int o_groups, o_lora_rank;
    int n_routed_experts, num_experts_per_tok, n_shared_experts, num_hash_layers;
    float routed_scaling_factor;
    float *swiglu_limit;  /* [layers + mtp]; 0 = no clamp */
    int *compress_ratios; /* [layers + mtp]; 0 = window only */
    int sliding_window;
    int index_n_heads, index_head_dim, index_topk;
    int hc_mult, hc_sinkhorn_iters;
    float hc_eps, rms_norm_eps;
    double rope_theta, compress_rope_theta;
    double yarn_factor; /* 1 = no YaRN */
    double yarn_beta_fast, yarn_beta_slow;
    int64_t yarn_original_positions;
    int64_t max_position_embeddings;
    int bos_token_id, eos_token_id; /* -1 = not given */
} dsv4_config;

/* ---- model ------------------------------------------------------------------------------- */

typedef struct {
    dsv4_tensor fn;    /* [(2+hc)*hc][hc*D], head: [hc][hc*D] */
    dsv4_tensor base;  /* [(2+hc)*hc], head: [hc] */
    dsv4_tensor scale; /* [3], head: [1] */
} dsv4_hc_weights;

typedef struct {
    dsv4_tensor wkv, wgate; /* [lanes*dim][D]; two lanes for ratio 4, else one */
    dsv4_tensor ape;        /* [ratio][lanes*dim] */
    dsv4_tensor norm;       /* [dim] */
} dsv4_compressor_weights;

typedef struct {
    dsv4_tensor wq_b;         /* [n_idx*index_head_dim][q_lora] */
    dsv4_tensor weights_proj; /* [n_idx][D] */
    dsv4_compressor_weights compressor;
} dsv4_indexer_weights;

typedef struct {
    int ratio;          /* 0 window only, 4 compressor + indexer, else compressor alone */
    bool hash;          /* experts from tid2eid, not from the scores */
    float swiglu_limit; /* 0 = no clamp */
    dsv4_hc_weights hc_attn, hc_ffn;
    dsv4_tensor attn_norm, ffn_norm;             /* [D] */
    dsv4_tensor wq_a, q_norm, wq_b;              /* [q_lora][D], [q_lora], [H*d][q_lora] */
    dsv4_tensor wkv, kv_norm;                    /* [d][D], [d] */
    dsv4_tensor wo_a, wo_b;                      /* [G*o_lora][H/G*d], [D][G*o_lora] */
    dsv4_tensor attn_sink;                       /* [H] */
    dsv4_compressor_weights compressor;          /* ratio > 0 */
    dsv4_indexer_weights indexer;                /* ratio == 4 */
    dsv4_tensor gate, gate_bias, tid2eid;        /* [E][D], [E] or absent, [V][K] or absent */
    dsv4_tensor *w1, *w2, *w3;                   /* [E] tensors: [F][D], [D][F], [F][D] */
    dsv4_tensor shared_w1, shared_w2, shared_w3; /* inner width n_shared_experts*F */
} dsv4_layer;

typedef struct {
    dsv4_tensor e_proj, h_proj;     /* [D][D] */
    dsv4_tensor enorm, hnorm, norm; /* [D] */
    dsv4_hc_weights hc_head;
    dsv4_layer layer;
} dsv4_mtp_layer;

typedef struct dsv4_storage dsv4_storage; /* maps and names behind the views; see checkpoint/ */

typedef struct {
    dsv4_config config;
    dsv4_tensor embed, head; /* [V][D] */
    dsv4_tensor norm;        /* [D] */
    dsv4_hc_weights hc_head;
    dsv4_layer *layers;  /* [num_hidden_layers] */
    dsv4_mtp_layer *mtp; /* [num_nextn_predict_layers] or NULL */
    dsv4_storage *storage;
} dsv4_model;

/* ---- taps -------------------------------------------------------------------------------- */

/* In data-flow order of one layer; the names are those of dsv4_tap_name. */
typedef enum {
    DSV4_TAP_HC_ATTN_POST,
    DSV4_TAP_HC_ATTN_COMB,
    DSV4_TAP_HC_ATTN_COLLAPSED,
    DSV4_TAP_ATTN_NORM,
    DSV4_TAP_Q_LORA,
    DSV4_TAP_Q,
    DSV4_TAP_KV,
    DSV4_TAP_COMPRESSED_KV, /* position = row number */
    DSV4_TAP_INDEXER_Q,
    DSV4_TAP_INDEXER_KV,     /* position = row number */
    DSV4_TAP_INDEXER_SCORES, /* the rows visible to the position, no more */
    DSV4_TAP_INDEXER_TOPK,   /* int32 row numbers, -1 = none */
    DSV4_TAP_ATTN_HEADS,     /* before the inverse rotation */
    DSV4_TAP_O_LORA,
    DSV4_TAP_ATTN_OUT,
    DSV4_TAP_STREAMS_MID,
    DSV4_TAP_HC_FFN_POST,
    DSV4_TAP_HC_FFN_COMB,
    DSV4_TAP_HC_FFN_COLLAPSED,
    DSV4_TAP_FFN_NORM,
    DSV4_TAP_ROUTER_LOGITS,
    DSV4_TAP_ROUTER_EXPERTS, /* int32 */
    DSV4_TAP_ROUTER_WEIGHTS, /* aligned with router_experts */
    DSV4_TAP_ROUTED_OUT,
    DSV4_TAP_SHARED_OUT,
    DSV4_TAP_FFN_OUT,
    DSV4_TAP_STREAMS,
    DSV4_TAP_HEAD_COLLAPSED, /* the taps from here on belong to no layer (layer = -1) */
    DSV4_TAP_FINAL_NORM,
    DSV4_TAP_LOGITS,
    DSV4_TAP_MTP_LOGITS,
    DSV4_TAP_COUNT,
} dsv4_tap_id;

const char *dsv4_tap_name(dsv4_tap_id id); /* "hc_attn_post" ... "mtp/logits" */
bool dsv4_tap_parse(const char *name, dsv4_tap_id *out);
bool dsv4_tap_is_int(dsv4_tap_id id);
bool dsv4_tap_is_row(dsv4_tap_id id); /* whole tensors whose "position" is a row number */
/* Shape of one position (or row) of a tap; returns the number of axes (1 or 2). Axes that depend
 * on the context (indexer_scores, indexer_topk) are given as -1. */
int dsv4_tap_shape(dsv4_tap_id id, const dsv4_config *c, int64_t shape[2]);

/* Kinds of activation rounding that report themselves to the taps. */
typedef enum { DSV4_ROUND_FP8, DSV4_ROUND_FP4, DSV4_ROUND_BF16 } dsv4_rounding;

/* Smallest distance of an element of a row, before its rounding, to a point where the rounding
 * would give another code (a midpoint of the grid, or a block maximum where the scale doubles), in
 * units of the row's rms. Infinity for a row of zeros. */
double dsv4_rounding_margin(dsv4_rounding kind, int block, const float *before, size_t n);

/* What a session tells its listener. `data` is float (int32 for integer taps) and may be
 * overwritten by the listener: what follows then works on the new value (replay, shadow mode).
 * The MTP layer's inner taps are not reported. */
typedef struct {
    void *ctx;
    /* Optional: false = the session need not produce this tap for this position. */
    bool (*want)(void *ctx, dsv4_tap_id id, int layer, int64_t position);
    void (*tap)(void *ctx, dsv4_tap_id id, int layer, int64_t position, void *data, size_t n);
    /* Optional: a row of activations was rounded to FP8 or FP4. `block` columns share a scale;
     * `before` and `after` are [n]. `id` is the tap whose value is rounded. */
    void (*rounded)(void *ctx, dsv4_tap_id id, int layer, int64_t position, dsv4_rounding kind,
                    int block, const float *before, const float *after, size_t n);
} dsv4_taps;

/* ---- session ----------------------------------------------------------------------------- */

struct dsv4_ops; /* ops.h */
typedef struct dsv4_session dsv4_session;

typedef struct {
    dsv4_numerics numerics;
    int64_t max_positions; /* capacity in tokens; the model's limit still holds */
    bool mtp;              /* run the MTP layer too */
    int chunk;             /* tokens a prefill block holds; 0 = 64 */
} dsv4_session_options;

dsv4_status dsv4_session_new(const dsv4_model *model, const struct dsv4_ops *ops,
                             const dsv4_session_options *options, dsv4_session **out,
                             dsv4_error *err);
void dsv4_session_free(dsv4_session *s);

/* The listener; NULL = nobody. Kept by reference. */
void dsv4_session_set_taps(dsv4_session *s, const dsv4_taps *taps);

/* Appends n >= 1 tokens: a prompt, a chunk of one, or a single decode step. logits: NULL, or
 * [V] for the last token. Token ids are checked before anything is computed; after a failure of the
 * machine the session must be reset. */
dsv4_status dsv4_session_append(dsv4_session *s, const int32_t *tokens, int64_t n, float *logits,
                                dsv4_error *err);

int64_t dsv4_session_position(const dsv4_session *s); /* tokens appended so far */
void dsv4_session_reset(dsv4_session *s);             /* as new */

/* A copy of the whole state (for rewind); restoring needs a session of the same model and
 * options. */
dsv4_status dsv4_session_save(const dsv4_session *s, void **blob, size_t *bytes, dsv4_error *err);
dsv4_status dsv4_session_restore(dsv4_session *s, const void *blob, size_t bytes, dsv4_error *err);

/* ---- model loading (checkpoint/) --------------------------------------------------------- */

/* Opens a directory with config.json and safetensors, one safetensors file (config.json beside
 * it), or a GGUF file. Every name, shape and type is checked here and nowhere else. */
dsv4_status dsv4_model_open(const char *path, dsv4_model **out, dsv4_error *err);
void dsv4_model_close(dsv4_model *m);

/* Adds the MTP layer held in a second file. */
dsv4_status dsv4_model_add_mtp(dsv4_model *m, const char *path, dsv4_error *err);

/* sha256 of the weight files concatenated in name order, as 64 hex digits + NUL. Reads every
 * byte. */
dsv4_status dsv4_model_sha256(const dsv4_model *m, char hex[65], dsv4_error *err);
const char *dsv4_model_path(const dsv4_model *m);
const char *dsv4_model_container(const dsv4_model *m); /* "safetensors", "gguf", "mlx" */

/* Every stored tensor, for inspect: calls `each` until it returns false. */
typedef struct {
    const char *name, *type; /* type as the container names it */
    int ndim;
    int64_t shape[4];
    uint64_t bytes;
    const char *file;
} dsv4_stored_tensor;
void dsv4_model_each_tensor(const dsv4_model *m,
                            bool (*each)(void *ctx, const dsv4_stored_tensor *t), void *ctx);

/* config.json text -> config. `file` is for messages. */
dsv4_status dsv4_config_parse(const char *json, size_t bytes, const char *file, dsv4_config *out,
                              dsv4_error *err);
/* The config as config.json text; caller frees. */
dsv4_status dsv4_config_write(const dsv4_config *c, char **out, dsv4_error *err);
void dsv4_config_free(dsv4_config *c);

#endif
