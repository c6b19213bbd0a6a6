/* device.h - the device as the host side sees it: opened once, errors kept until somebody asks,
 * memory, weights. Private to cuda/. */
#ifndef DSV4_CUDA_DEVICE_H
#define DSV4_CUDA_DEVICE_H

#include "kernels.h"
#include "reference/ops.h"

/* Opens device 0 and loads the code books; later calls return the first call's answer. */
dsv4_status cu_open(dsv4_error *err);

/* Books an error: what was tried, on how much. The first one is kept. code: a cudaError_t. */
bool cu_ok(int code, const char *what, int64_t size);
/* The same with words of our own. */
void cu_book(const char *what, int64_t size, const char *why);
/* Is an error booked that nobody has asked for? */
bool cu_failed(void);
/* The error since the last call, as DSV4_E_MACHINE; DSV4_OK = none. Books what the stream's work
 * has met, if it is over. */
dsv4_status cu_take_error(dsv4_error *err);

/* What the launches that follow on this thread are called, in errors and counts, until the next
 * call; NULL: by their operators. */
void cu_label(const char *what);
/* While on, kernels launched on this thread wait for what came before them instead of starting
 * beside it. */
void cu_keep_apart(bool on);
/* For benches, on one thread: launches by name from here on; launches of one name left out. */
enum { CU_MOST_COUNTED = 64 };
typedef struct {
    const char *name;
    int launches;
} cu_launch_count;
void cu_count_launches(bool on); /* on: from zero */
int cu_counted(const cu_launch_count **list);
void cu_leave_out(const char *name); /* NULL: none; "begin*": every name that begins so */

/* Bytes free on the device. */
size_t cu_free_bytes(void);
/* Device memory of its own; NULL and a message with what is free, if it does not fit. */
void *cu_new(size_t bytes, const char *what, dsv4_error *err);
void cu_delete(void *p);

cu_stream cu_new_stream(dsv4_error *err);
void cu_delete_stream(cu_stream s);
bool cu_wait(cu_stream s, const char *what);
bool cu_to_device(cu_stream s, void *to, const void *from, size_t bytes, const char *what);
/* Queued alone; `to` is page-locked. */
bool cu_from_device(cu_stream s, void *to, const void *from, size_t bytes, const char *what);
bool cu_to_host(cu_stream s, void *to, const void *from, size_t bytes, const char *what);
bool cu_on_device(cu_stream s, void *to, const void *from, size_t bytes, const char *what);
bool cu_clear(cu_stream s, void *to, size_t bytes);

/* ---- experts.c ------------------------------------------------------------------------------ */

/* Routed experts of n tokens: everything the block needs. */
typedef struct {
    int64_t n;
    int k, n_experts;
    cu_tensor w1, w2, w3;          /* the shape that all experts share */
    const cu_tensor *t1, *t2, *t3; /* device [n_experts] */
    const float *x;                /* [n][D] */
    const int32_t *experts;        /* [n][k] */
    const float *weights;          /* [n][k] */
    float limit;
    bool deployed, one_order; /* cu_segment */
    bool ahead;               /* cu_segment, of x and x8; for cu_experts_and_shared */
    float *x8;                /* [n][D] scratch: the input rounded to FP8 */
    float *gate, *up;         /* [n*k][F] */
    float *y;                 /* [n*k][D] */
    float *share;             /* [n*k] */
    int32_t *list, *n_groups; /* [n*k], [1] */
    cu_expert_group *groups;  /* [n*k] */
    float *out;               /* [n][D] */
    cu_room room;             /* cu_products; the input in parts needs n*k*max(D, F) * 6 bytes */
} cu_experts_args;
void cu_experts(cu_stream s, const cu_experts_args *a);

/* The same up to y, with the shared expert's down product going along; a.share is given
 * (cu_router), and the sum is the caller's (cu_leave). */
typedef struct {
    cu_tensor w2;
    const float *x8;  /* [n][D] the input rounded to FP8, where w1 takes that */
    float *gate, *up; /* [n][inner] products of w1, w3; gate is overwritten */
    float *out;       /* [n][D] */
} cu_shared_expert;
void cu_experts_and_shared(cu_stream s, const cu_experts_args *a, const cu_shared_expert *e);

/* FP8 and FP4 weights take FP8 inputs in deployed numerics. */
bool cu_quantised(const cu_tensor *w);
int cu_fp8_block(int64_t cols);

/* ---- weights.c ------------------------------------------------------------------------------ */

typedef struct {
    cu_tensor fn;
    float *base, *scale;
} cu_hc;

typedef struct {
    cu_tensor wkv, wgate;
    float *ape, *norm;
} cu_compressor_weights;

typedef struct {
    cu_hc hc_attn, hc_ffn;
    float *attn_norm, *ffn_norm, *q_norm, *kv_norm, *sink, *gate_bias;
    int32_t *tid2eid;
    cu_tensor wq_a, wq_b, wkv, wo_a, wo_b;
    cu_compressor_weights compressor, indexer;
    cu_tensor index_wq_b, index_weights;
    cu_tensor gate, shared_w1, shared_w2, shared_w3;
    cu_tensor w1, w2, w3; /* of expert 0 */
    cu_tensor *t1, *t2, *t3;
} cu_layer;

struct dsv4_cuda {
    const dsv4_model *model;
    void *memory; /* one allocation behind every weight */
    size_t bytes;
    cu_tensor embed, head;
    float *norm;
    cu_hc hc_head;
    cu_layer *layers; /* [layers + mtp] */
    cu_tensor e_proj, h_proj;
    float *enorm, *hnorm, *mtp_norm;
    cu_hc mtp_head;
};

cu_tensor dsv4_cuda_head(const struct dsv4_cuda *d); /* for benches */

#endif
