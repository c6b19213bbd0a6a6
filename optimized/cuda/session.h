/* session.h - the state of a conversation that lives on the device. Private to cuda/. */
#ifndef DSV4_CUDA_SESSION_H
#define DSV4_CUDA_SESSION_H

#include "device.h"
#include "optimized/optimized.h"

typedef struct {
    int ratio, lanes, dim;
    int64_t cap_rows;
    float *rows, *kv, *z; /* [cap_rows][dim], rings [ring][lanes*dim] */
} cu_compressor_state;

typedef struct {
    float *window; /* [window_ring][d] */
    cu_compressor_state compressor, indexer;
} cu_layer_state;

enum { CU_BRANCHES = 8 };

/* Positions and the token of a decode step: cu_begin writes them, a recorded graph reads them. */
typedef struct {
    int64_t pos, mtp_pos;
    int32_t token, unused;
} cu_step;

typedef struct cu_graph cu_graph; /* graph.c */

/* Where a batch runs its members' attention side by side. */
typedef struct {
    cu_stream stream[CU_BRANCHES];
    void *ready, *done[CU_BRANCHES]; /* events */
} cu_branches;

struct dsv4_cuda_session {
    dsv4_cuda *d;
    dsv4_session_options options;
    const dsv4_taps *taps;
    cu_stream stream;
    uint8_t *arena;
    size_t state_at, state_bytes; /* what save and restore copy, inside the arena */
    int64_t position;
    int n_layers;
    int64_t window_ring;
    cu_layer_state *layers;
    cu_graph *graph;
    bool no_graph;
    float *logits_host; /* pinned [V] */

    /* A batch's working memory is a session without a state of its own. */
    dsv4_cuda_session *const *members;
    int n_members;            /* 0: a conversation */
    cu_row_state *row_states; /* device [layers][n_members] */
    int64_t *positions;       /* device [n_members] */
    cu_branches branches;

    uint8_t *tap_host, *tap_copy;
    size_t tap_bytes;

    cu_step *step;
    int32_t *ids;   /* [chunk + 1] */
    float *pending; /* [hc][D] */
    float *inv_plain, *inv_compress;
    float *streams, *mixed, *mix, *mix_scratch, *pre, *post, *comb;
    cu_later later; /* gates that hc_enter left: m NULL = none */
    uint32_t *tickets;
    float *x, *norm, *norm8, *out, *shared, *linear_in;
    float *q_lora, *q, *heads, *turned, *o_lora, *kv_row, *kv, *z, *index_kv, *index_z, *before;
    float *index_q, *index_w, *scores;
    int32_t *topk;
    float *router_logits, *weights;
    int32_t *experts, *list, *n_groups;
    cu_expert_group *groups;
    float *gate, *up, *y, *share, *shared_gate, *shared_up;
    float *attention_scratch;
    int64_t attention_each; /* of a batch's member */
    float *cos_plain, *sin_plain, *cos_compress, *sin_compress;
    float *logits;
    cu_room room; /* of products of many tokens */
};

/* session.c: allocates and plans; members NULL: a conversation, else a batch's working memory. */
dsv4_status cu_session_make(dsv4_cuda *d, const dsv4_session_options *options,
                            dsv4_cuda_session *const *members, int n_members,
                            dsv4_cuda_session **out, dsv4_error *err);
dsv4_status cu_check_tokens(const dsv4_cuda_session *s, const int32_t *tokens, int64_t n,
                            dsv4_error *err);
int cu_ratio_of(const dsv4_cuda_session *s, int layer);

/* graph.c: the work queued by record(), recorded once and replayed. */
bool cu_graph_begin(dsv4_cuda_session *s);
bool cu_graph_end(dsv4_cuda_session *s);
bool cu_graph_launch(dsv4_cuda_session *s);
void cu_graph_free(cu_graph *g);
int cu_graph_edges(const cu_graph *g, int *programmatic); /* programmatic: kernels that overlap */
/* Side by side between fork and join (a batch alone; else nothing happens). */
bool cu_branches_new(dsv4_cuda_session *s, dsv4_error *err);
void cu_branches_free(dsv4_cuda_session *s);
void cu_fork(dsv4_cuda_session *s);
cu_stream cu_branch(const dsv4_cuda_session *s, int i);
void cu_join(dsv4_cuda_session *s);
void *cu_pinned(size_t bytes, const char *what, dsv4_error *err);
void cu_unpin(void *p);

/* forward.c: a block's first launch, which is never recorded, since its arguments change:
 * positions, angles, streams. Ids of several tokens of a conversation are in s->ids already; a
 * batch has one token of each member. */
void cu_begin(dsv4_cuda_session *s, const int32_t *tokens, int64_t n);
/* The rest. logits: whether those of a conversation's last token are wanted. */
void cu_forward(dsv4_cuda_session *s, int64_t n, bool logits);
cu_compressor cu_compressor_of(const dsv4_cuda_session *s, const cu_compressor_weights *w,
                               const cu_compressor_state *c, bool index, int layer);
/* The state that a token at *pos meets in a layer (pos: device). */
cu_row_state cu_row_state_of(const dsv4_cuda_session *s, const cu_layer *w, int number, int ratio,
                             const int64_t *pos);

/* taps.c */
bool cu_wants(const dsv4_cuda_session *s, dsv4_tap_id id, int layer, int64_t position);
/* Does anybody want any of these positions? */
bool cu_hears(const dsv4_cuda_session *s, dsv4_tap_id id, int layer, int64_t pos0, int64_t n);
/* Rows [n][ld] of `width` elements to the listener, and back where it changed them. Returns
 * whether it did. */
bool cu_tap(dsv4_cuda_session *s, dsv4_tap_id id, int layer, int64_t pos0, int64_t n, void *data,
            int64_t width, int64_t ld);
bool cu_hears_rounding(const dsv4_cuda_session *s, int layer);
void cu_tap_rounded(dsv4_cuda_session *s, dsv4_tap_id id, int layer, int64_t pos0, int64_t n,
                    dsv4_rounding kind, int block, const float *before, int64_t ld_before,
                    const float *after, int64_t ld_after, int64_t width);

#endif
