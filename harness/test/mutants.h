/* mutants.h - deliberately wrong models: each mutant is the reference with one thing changed, as
 * real engines have got it wrong (or plausibly could). Test code only.
 *
 * A mutant is planted into a copy of the operator table and of the model struct. Wrappers that have
 * to know where in the model they are called read it from `now`, which the trackers keep. */
#ifndef DSV4_MUTANTS_H
#define DSV4_MUTANTS_H

#include "reference/ops.h"
#include "reference/scalar.h"
#include "reference/session.h"

/* The golden cases a mutant is run against. */
typedef enum {
    RUN_SHORT,        /* stress, math: up to 131 tokens, every tap */
    RUN_LONG,         /* and 260 tokens */
    RUN_EDGES,        /* and contexts that end on a ratio-4 boundary */
    RUN_ONE_BLOCK,    /* as RUN_LONG, each prompt in one block */
    RUN_DECODE,       /* RUN_SHORT and the decode cases of 18+8 and 100+60 tokens */
    RUN_DECODE_ALONE, /* every case from its own first token: only decode cases step by one */
    RUN_QAT,          /* RUN_SHORT, then the stress model's qat file */
    RUN_QAT_LONG,     /* and 260 tokens of it */
    RUN_QAT_ALONE,    /* the qat file without the math file */
    RUN_NANO,         /* nano, math: 5 and 16 tokens, FP4 and FP8 weights, the MTP layer */
    RUN_EXTREME,      /* the extreme model, math: ties, eps, far router logits */
    RUN_EXTREME_QAT,  /* the same, qat: small KV columns */
    RUN_SECOND,       /* another request first, then a golden case on the same session */
    RUN_RESTORE,      /* a golden case interrupted by save and restore */
    RUN_COUNT,
} mutant_run;

enum { MUTANT_LAYERS = 8, MUTANT_OWNED = 512 };

typedef struct {
    const dsv4_model *right;
    dsv4_model model; /* the copy an engine computes with */
    dsv4_layer layers[MUTANT_LAYERS];
    dsv4_mtp_layer mtp;
    dsv4_ops ops;
    /* RUN_SECOND: after the reset between two requests. RUN_RESTORE: after the restore; returns
     * the position to go on from. */
    int64_t (*disturb)(dsv4_session *s, const int32_t *tokens);
    void *owned[MUTANT_OWNED];
    size_t n_owned;
} plan;

typedef struct {
    const char *name;
    const char *ids;    /* bug reports it comes from: engine and number, or "own" */
    const char *blocks; /* blocks that may be named, the best one first: "rope|attention" */
    int layer;          /* first layer where it can show; -1 = outside the layers */
    mutant_run run;
    void (*plant)(plan *p);
    const char *wrong; /* what is wrong, one sentence */
    const char *why;   /* why two blocks are right; or the proof that it changes nothing */
} mutant;

/* Tables, one per file; the last entry's name is NULL. */
extern const mutant mutants_streams[], mutants_attention[], mutants_rope[], mutants_rows[],
    mutants_experts[], mutants_quant[], mutants_state[], mutants_extreme[];
/* Written after the diagnosis was tuned, to see how it does on others. */
extern const mutant mutants_heldout[], mutants_heldout2[];
/* Changes that change nothing that can be seen: they are expected to survive. */
extern const mutant mutants_equivalent[];

/* Where the running model is. */
typedef struct {
    const plan *p;
    int layer;       /* of the block being computed; config.num_hidden_layers = the MTP layer */
    bool attention;  /* in the attention block of the layer */
    bool ffn;        /* in its second half */
    bool head, mtp;  /* after the layers; in the MTP layer */
    bool mtp_begins; /* between the MTP layer's embed and its first hc_mix */
    bool main_next;  /* the next embed belongs to the main model */
    int64_t n, pos0; /* the block: tokens, position of the first one */
    const float *row_angles; /* the cos of the last compressed row */
    int64_t prompt;          /* where the last block of more than one token ended */
} mutant_now;
extern mutant_now now;

/* One token, appended to something: a decode step. */
static inline bool decoding(void)
{
    return now.n == 1 && now.pos0 > 0;
}

static inline const dsv4_layer *now_layer(void)
{
    return now.layer < now.p->model.config.num_hidden_layers ? &now.p->model.layers[now.layer]
                                                             : &now.p->model.mtp[0].layer;
}

static inline bool same_tensor(const dsv4_tensor *a, const dsv4_tensor *b)
{
    return a->data == b->data && a->row0 == b->row0;
}

/* A healthy copy of the model and the table, with the trackers in it. */
void plan_init(plan *p, const dsv4_model *right);
void plan_free(plan *p);
/* Memory that lives as long as the plan. Ends the program on a lack of it. */
void *plan_alloc(plan *p, size_t count, size_t size);
/* The layer's expert tensors w1, w2, w3 as copies that may be changed. */
void plan_own_experts(plan *p, int layer);
/* In place of t: a float32 tensor that the caller fills, [rows][cols]. */
float *plan_own_values(plan *p, dsv4_tensor *t);
/* The trackers, for mutants that replace one of these operators. */
void track_embed(const dsv4_tensor *, const int32_t *, int64_t, float *);
void track_rope_angles(const float *, int, const int64_t *, int64_t, float *, float *);
void track_hc_mix(const dsv4_tensor *, const float *, float, int64_t, float *);
/* Is this call of rope_angles for one compressed row? */
static inline bool angles_of_row(void)
{
    return now.attention;
}

#endif
