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

/* Positions and the token of a decode step: what a recorded graph reads. */
typedef struct {
    int64_t pos, mtp_pos;
    int32_t token, unused;
} cu_step;

typedef struct cu_graph cu_graph; /* graph.c */

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
    cu_step *step_host; /* pinned */
    uint8_t *tap_host, *tap_copy;
    size_t tap_bytes;

    cu_step *step;
    int32_t *ids;   /* [chunk + 1] */
    float *pending; /* [hc][D] */
    float *inv_plain, *inv_compress;
    float *streams, *mixed, *mix, *mix_scratch, *pre, *post, *comb;
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
    float *cos_plain, *sin_plain, *cos_compress, *sin_compress;
    float *logits;
    cu_room room; /* of products of many tokens */
};

/* graph.c: the work queued by record(), recorded once and replayed. */
bool cu_graph_begin(dsv4_cuda_session *s);
bool cu_graph_end(dsv4_cuda_session *s);
bool cu_graph_launch(dsv4_cuda_session *s);
void cu_graph_free(cu_graph *g);
void *cu_pinned(size_t bytes, const char *what, dsv4_error *err);
void cu_unpin(void *p);

/* forward.c: one block of n tokens at s->position; logits: whether those of the last are wanted. */
void cu_forward(dsv4_cuda_session *s, int64_t n, bool logits);

/* taps.c */
bool cu_wants(const dsv4_cuda_session *s, dsv4_tap_id id, int layer, int64_t position);
/* Rows [n][ld] of `width` elements to the listener, and back where it changed them. Returns
 * whether it did. */
bool cu_tap(dsv4_cuda_session *s, dsv4_tap_id id, int layer, int64_t pos0, int64_t n, void *data,
            int64_t width, int64_t ld);
bool cu_hears_rounding(const dsv4_cuda_session *s, int layer);
void cu_tap_rounded(dsv4_cuda_session *s, dsv4_tap_id id, int layer, int64_t pos0, int64_t n,
                    dsv4_rounding kind, int block, const float *before, int64_t ld_before,
                    const float *after, int64_t ld_after, int64_t width);

#endif
