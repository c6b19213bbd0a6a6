/* hypotheses.h - known mistakes as changes of the reference, to be tried against what an engine has
 * computed: the mistake that makes the reference give the engine's own numbers is a cause.
 * Private to the harness. */
#ifndef DSV4_HYPOTHESES_H
#define DSV4_HYPOTHESES_H

#include "harness.h"

/* How a trial differs from the reference. All zero = not at all. */
typedef struct {
    /* attention */
    int window_more;          /* rows seen beyond W (negative: fewer) */
    bool window_unlimited;    /* every row that is kept */
    bool window_to_block_end; /* rows of later tokens of the block */
    bool window_next;         /* the causal limit is one token late */
    bool window_not_itself;
    bool window_from_block; /* nothing of the blocks before */
    bool rows_of_block_end; /* compressed rows of the block's end for all its tokens */
    bool rows_none_all;     /* before the first row: every row of the block */
    int rows_late;          /* tokens until a complete row is seen */
    int rows_skip;          /* first rows that are not seen */
    int rows_most;          /* no more than this many, the newest dropped */
    bool rows_hidden;
    bool topk_ignored, topk_flattened;
    int sinks; /* how often the sink counts, less one */
    bool sink_of_head_0;
    bool scale_unrotated;    /* 1/sqrt(d - r) */
    bool window_overwritten; /* the ring holds the block's newest rows before its tokens read it */
    bool topk_of_block;      /* what any query of the block has picked, complete or not */
    bool rows_of_prompt;     /* no rows but those that the prompt has completed */
    bool window_of_step;     /* of the prompt its last row only, or so many of its last */
    int window_rows_left;
    bool window_frozen; /* the window of the first decode step */
    bool decode_only;   /* only where one token is appended */
    /* mHC */
    enum { COMB_SOFTMAX, COMB_SIGMOID, COMB_EXP } comb_start;
    bool comb_column_first, comb_no_eps, pre_no_eps;
    enum { START_ROWS, START_COLUMNS, START_COLUMNS_THEN_ROWS } comb_axis;
    int sinkhorn_passes; /* 0 = as configured */
    bool comb_transposed, comb_identity, post_ungated, post_narrowed, post_of_first;
    bool embed_one_stream;
    int post_lost; /* the call of hc_post in a block, from 1, that changes nothing */
    bool pre_mean, mix_interleaved;
    bool head_mean, head_doubled, head_first;
    /* norms */
    enum { NORM_RMS, NORM_ONE_PLUS, NORM_SUM, NORM_CENTRED } norm;
    const dsv4_tensor *norm_twice, *norm_skipped;
    bool head_norm_skipped;
    /* rotation of the attention output; the groups' order */
    enum { OUT_BACK, OUT_NOT, OUT_FORWARD } out_turn;
    enum {
        GROUPS_IN_ORDER,
        GROUPS_REVERSED,
        GROUPS_INTERLEAVED,
        GROUPS_TOKENS,
        GROUPS_ROTATED
    } groups;
    int groups_by;
    /* compressor and indexer */
    enum {
        POOL_RIGHT,
        POOL_ALONE,
        POOL_ZEROS_BEFORE,
        POOL_MEAN,
        POOL_LANES,
        POOL_LAST_LOST,
        POOL_BLOCK_TAIL,
        POOL_PROMPT_TAIL,
        POOL_DECODE_ALONE
    } pool;
    bool pool_block_last; /* of a block the last token alone leaves kv and gate */
    bool bias_phase;      /* the position bias counts from the first decode step */
    enum { SCORE_RIGHT, SCORE_NO_RELU, SCORE_RELU_OUTSIDE, SCORE_UNWEIGHTED, SCORE_AXIS } score;
    enum {
        PICK_RIGHT,
        PICK_SMALLEST,
        PICK_NEWEST,
        PICK_FIRST_TILE,
        PICK_FIRST_COUNT,
        PICK_SUFFIX,
        PICK_FEWER
    } pick;
    int pick_fewer; /* PICK_FEWER: by how many */
    int pick_tile;  /* so many scores are sorted; 0 = all */
    /* router */
    enum { ROUTE_SQRT_SOFTPLUS, ROUTE_SIGMOID, ROUTE_SOFTMAX, ROUTE_SOFTPLUS, ROUTE_NAIVE } route;
    bool route_no_bias, route_bias_weighs, route_not_normalised, route_first_group, route_padded;
    bool route_equal; /* all chosen experts weigh the same */
    enum { HASH_TABLE, HASH_SCORES, HASH_POSITION, HASH_NEIGHBOUR, HASH_HALF } hash;
    int hash_offset; /* the entry of a token so far away */
    int expert_slot; /* which of a token's experts gives nothing, from 1 */
    /* experts */
    bool expert_unweighted, expert_weighted_twice, expert_slot_lost, expert_sorted;
    bool expert_slots_turned;
    enum { CLAMP_RIGHT, CLAMP_AFTER, CLAMP_UP_ABOVE } clamp;
    enum { ACT_SILU, ACT_RELU, ACT_GELU } act;
    /* embedding */
    enum { EMBED_RIGHT, EMBED_NEXT, EMBED_LAST } embed;
    /* rounding of activations */
    enum { FP8_RIGHT, FP8_NOT, FP8_FLOAT_SCALE, FP8_DOWN, FP8_TRUNCATED } fp8;
    enum { FP4_RIGHT, FP4_NOT, FP4_BLOCK_128, FP4_FLOAT_SCALE, FP4_FIRST_HEAD } fp4;
    enum { HADAMARD_BOTH, HADAMARD_NONE, HADAMARD_QUERY, HADAMARD_ROWS } hadamard;
    bool experts_unclamped; /* swiglu_limit is not applied; with decode_only in decode steps */
    /* the MTP layer */
    bool mtp_narrowed, mtp_doubled, mtp_not_shifted, mtp_no_hnorm;
} mistake;

enum { TRIAL_OWNED = 512 };

/* One try: a copy of the model cut off after the layer in question, and a table of operators. */
typedef struct {
    const dsv4_model *right;
    int layer; /* of the failing tap; -1 = outside the layers */
    dsv4_model model;
    dsv4_layer *layers;
    dsv4_mtp_layer mtp;
    dsv4_ops ops, right_ops;
    dsv4_ops wrong, spare; /* only here: the table of the mistake, and the one elsewhere */
    bool only_here, attention_half;
    mistake m;
    void *owned[TRIAL_OWNED];
    size_t n_owned;
    int param;   /* of a sweep */
    bool failed; /* out of memory, or the mistake makes no sense for this model */
} trial;

typedef struct {
    const char *name; /* the fact "like:NAME" of causes.tsv */
    const char *taps; /* globs, '|' between them: where it shows first */
    bool decode;      /* tried on decode cases alone */
    void (*apply)(trial *t);
} hypothesis;

extern const hypothesis hypotheses[]; /* the last one's name is NULL */

/* A mistake with a number in it. */
typedef struct {
    hypothesis h;
    int least, most;
} sweep;

extern const sweep sweeps[]; /* the last one's name is NULL */

dsv4_status trial_new(const dsv4_model *right, int layer, const hypothesis *h, int param,
                      trial **out, dsv4_error *err);
/* The experts' matrices w, those of expert e + by in place of e's; NULL on a lack of memory. */
dsv4_tensor *trial_shifted(trial *t, dsv4_tensor *w, int by);
void trial_free(trial *t);
/* Memory that lives as long as the trial; NULL (and t->failed) on a lack of it. */
void *trial_alloc(trial *t, size_t count, size_t size);

/* wrong_ops.c: the mistake is made in one half of the failing layer alone. */
void trial_only_here(trial *t, bool attention_half);

/* hypotheses_weights.c: the layer whose tap fails, or the last one; the layer's weights decoded
 * otherwise. */
dsv4_layer *trial_layer(trial *t);
void fp8_scale_number(trial *t);
void fp8_first_scale(trial *t);
void fp8_other_dialect(trial *t);
void fp8_as_e5m2(trial *t);
void fp4_scale_number(trial *t);
void fp4_scale_plain(trial *t);
void fp4_half_groups(trial *t);
void fp4_first_scales(trial *t);
void fp4_nibbles(trial *t);
void fp4_as_integer(trial *t);

/* wrong_rounding.c: its share of wrong_ops_install; the values of a row [heads][dim] before an
 * activation rounding, as a mistake rounds them, in place. */
void wrong_rounding_install(trial *t);
void wrong_rounding(const mistake *m, dsv4_rounding kind, float *x, int64_t heads, int64_t dim,
                    int block);

/* wrong_ops.c: puts operators that obey t->m into t->ops, and makes t the calling thread's trial.
 */
void wrong_ops_install(trial *t);

#endif
