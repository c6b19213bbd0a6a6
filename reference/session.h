/* session.h - the state of a session and the functions its files share. Private to reference/. */
#ifndef DSV4_SESSION_H
#define DSV4_SESSION_H

#include "ops.h"

/* A compressor's state: finished rows, and the kv and z of the window that is not full yet. */
typedef struct {
    int ratio, lanes, dim;
    int64_t n_rows, cap_rows;
    float *rows;             /* [cap_rows][dim] */
    int fill;                /* tokens in the unfinished window, 0 .. ratio-1 */
    float *kv, *z;           /* [ratio][lanes*dim] the unfinished window */
    bool has_prev;           /* two lanes: is there a previous window? */
    float *prev_kv, *prev_z; /* [ratio][lanes*dim] */
} compressor_state;

typedef struct {
    int64_t window_pos0, window_rows; /* position of the first kept row, rows kept */
    float *window;                    /* [sliding_window - 1 + chunk][d] */
    compressor_state compressor;      /* ratio > 0 */
    compressor_state indexer;         /* ratio == 4 */
} layer_state;

/* Buffers of one block of at most `chunk` tokens. */
typedef struct {
    float *streams, *mixed;         /* [n][hc][D] */
    float *mix, *pre, *post, *comb; /* [n][(2+hc)*hc], [n][hc], [n][hc], [n][hc][hc] */
    float *x, *norm, *out, *shared; /* [n][D] */
    float *linear_in;               /* [n][widest input] FP8-rounded copy */
    float *q_lora, *q, *heads;      /* [n][q_lora], [n][H][d], [n][H][d] */
    float *o_lora;                  /* [n][G*o_lora] */
    float *kv, *z;                  /* [n][lanes*d] compressor inputs */
    float *ape;                     /* [ratio][lanes*d] position bias */
    float *row;                     /* [d] one row before its rounding */
    float *index_q, *index_w;       /* [n][n_idx][128], [n][n_idx] */
    float *scores;                  /* [max rows] */
    int32_t *topk;                  /* [n][index_topk] */
    float *router_logits, *weights; /* [n][E], [n][K] */
    int32_t *experts;               /* [n][K] */
    float *gate, *up;               /* [n][shared inner width] */
    float *vector;                  /* [widest vector]: norm weights, sinks, bases */
    float *gate_scale;              /* [3] */
    float *cos_plain, *sin_plain;   /* [n][r/2] */
    float *cos_compress, *sin_compress;
    float *cos_row, *sin_row; /* [r/2] of one compressed row */
    int64_t *positions;       /* [n] */
    float *logits;            /* [V] */
} block_buffers;

struct dsv4_session {
    const dsv4_model *model;
    const dsv4_ops *ops;
    const dsv4_taps *taps;
    dsv4_session_options options;
    int64_t position;                /* tokens appended */
    int64_t mtp_position;            /* tokens the MTP layer has seen */
    bool mtp_pending;                /* pending_streams holds the last token's */
    float *pending_streams;          /* [hc][D] */
    float *inv_plain, *inv_compress; /* [r/2] */
    int n_layers;                    /* main layers, then the MTP layer if there is one */
    layer_state *layers;
    block_buffers b;
    uint8_t *arena; /* one allocation behind every buffer */
};

/* Deployed numerics: activations live in bf16 between operators. */
static inline bool session_deployed(const dsv4_session *s)
{
    return s->options.numerics == DSV4_DEPLOYED;
}

/* x = [n] values an operator hands on: rounded to bf16 in deployed numerics. */
void session_hand_on(dsv4_session *s, float *x, int64_t n);

/* y = W x as the numerics want it: FP8 input for FP8 and FP4 weights and a bf16 result in deployed
 * numerics. keep_float: the result stays float32 and the input is not rounded. */
void session_linear(dsv4_session *s, const dsv4_tensor *w, const float *x, int64_t n, float *y,
                    bool keep_float);

/* A vector of weights decoded into the session's scratch, valid until the next call. */
const float *session_vector(dsv4_session *s, const dsv4_tensor *t);

/* RMSNorm with stored weights, result handed on. y may be x. */
void session_norm(dsv4_session *s, const dsv4_tensor *w, const float *x, int64_t n, int64_t dim,
                  float *y);

/* Reports n rows of `width` elements as taps of positions pos0, pos0 + 1, ... */
void session_tap(dsv4_session *s, dsv4_tap_id id, int layer, int64_t pos0, int64_t n, void *data,
                 int64_t width);
bool session_wants(const dsv4_session *s, dsv4_tap_id id, int layer, int64_t position);

/* layer.c: streams (b.streams) of n tokens at pos0 through one layer, in place. tap_layer -1: the
 * MTP layer, which does not report inner taps. */
dsv4_status layer_forward(dsv4_session *s, const dsv4_layer *w, layer_state *state, int tap_layer,
                          const int32_t *ids, int64_t pos0, int64_t n, dsv4_error *err);

/* attend.c: the attention block: x = b.norm [n][D] -> b.out [n][D]. */
dsv4_status attention_forward(dsv4_session *s, const dsv4_layer *w, layer_state *state,
                              int tap_layer, int64_t pos0, int64_t n, dsv4_error *err);

/* head.c: logits of the tokens somebody wants; last: NULL or [V] of the block's last token. */
void head_forward(dsv4_session *s, int64_t pos0, int64_t n, float *last);

/* Collapse of one token's streams [hc][D] by a head's gates into b.x [D], handed on. */
void head_collapse(dsv4_session *s, const dsv4_hc_weights *hc, const float *streams);

/* mtp.c: the MTP layer over what the block of n tokens makes known. */
dsv4_status mtp_forward(dsv4_session *s, const int32_t *ids, int64_t n, dsv4_error *err);

#endif
