/* optimized.h - the operator table, faster: one more CPU level at a time overwrites the operators
 * it does better. The one header of the room. */
#ifndef DSV4_OPTIMIZED_H
#define DSV4_OPTIMIZED_H

#include "reference/ops.h"

/* ---- levels --------------------------------------------------------------------------------- */

/* In rising order on each architecture; a level includes those below it that the machine has. */
typedef enum {
    DSV4_CPU_SCALAR, /* the reference's operators */
    DSV4_CPU_AVX2,   /* AVX2, FMA, F16C, BMI2 */
    DSV4_CPU_AVX512, /* + AVX-512 F, BW, VL, DQ */
    DSV4_CPU_NEON,   /* AArch64 */
    DSV4_CPU_LEVEL_COUNT,
} dsv4_cpu_level;

/* Extensions that single kernels of a level ask for beyond it. */
enum {
    DSV4_CPU_VNNI = 1,    /* 8- and 16-bit dot products into int32 (AVX512_VNNI) */
    DSV4_CPU_VBMI = 2,    /* byte permutations across a register (AVX512_VBMI) */
    DSV4_CPU_BF16 = 4,    /* AVX512_BF16 */
    DSV4_CPU_DOTPROD = 8, /* NEON sdot, udot */
    DSV4_CPU_GFNI = 16,   /* bit matrices times bytes (GFNI) */
};

const char *dsv4_cpu_level_name(dsv4_cpu_level level); /* "scalar", "avx2", "avx512", "neon" */
bool dsv4_cpu_level_parse(const char *name, dsv4_cpu_level *out);
bool dsv4_cpu_supported(dsv4_cpu_level level); /* built in, and this machine has it */
dsv4_cpu_level dsv4_cpu_best(void);
unsigned dsv4_cpu_extensions(void); /* of this machine, DSV4_CPU_VNNI | ... */

/* ---- the table ------------------------------------------------------------------------------ */

/* The table of a level: the reference's, overwritten in rising order up to it. NULL = this machine
 * does not support the level. */
const dsv4_ops *dsv4_ops_cpu(dsv4_cpu_level level);

/* The operators by number: what walks the table needs no list of its own. */
int dsv4_operator_count(void);
const char *dsv4_operator_name(int op);                                /* "linear" */
int dsv4_operator_find(const char *name);                              /* -1 = unknown */
bool dsv4_operator_same(const dsv4_ops *a, const dsv4_ops *b, int op); /* the same pointer? */
/* Copies one operator of a table into another. */
void dsv4_operator_copy(dsv4_ops *to, const dsv4_ops *from, int op);
/* Whose implementation a table runs for an operator: the lowest level that has this very pointer.
 * DSV4_CPU_LEVEL_COUNT = none of ours. */
dsv4_cpu_level dsv4_operator_active(const dsv4_ops *table, int op);

/* ---- dot products with rounded activations -------------------------------------------------- */

/* y[r] = row r of w . act. w: n_rows stored rows of n columns, row_bytes apart (scale: those of
 * the first row for FP8 and FP4, scale_row_bytes apart, scale_rows rows to a scale row; else NULL).
 * act: activation blocks of the format's act_type (formats.h), or float32 [n]. Codes of activation
 * blocks lie in [-127, 127], as the quantisers make them. Integer products inside a block are
 * exact; block results are summed in float32. */
typedef struct {
    const uint8_t *data;
    size_t row_bytes;
    int64_t n_rows, n;
    const uint8_t *scale;
    size_t scale_row_bytes;
    int scale_rows;
} dsv4_dot_rows;

/* Activation blocks of n tokens, `stride` bytes apart. */
typedef struct {
    const void *act;
    size_t stride;
    int64_t n;
} dsv4_dot_tokens;

typedef struct {
    dsv4_type type;
    dsv4_cpu_level level;
    unsigned needs;     /* extensions beyond the level */
    dsv4_type act_type; /* Q8_0, Q8_K, or F32 */
    const char *name;   /* "dot_q8_0_avx512" */
    void (*rows)(const dsv4_dot_rows *w, const void *act, float *y);
    /* y[t * ldy + r] = row r . act of token t, the same bits as `rows` gives: weights taken apart
     * once for several tokens. NULL = this kernel has none. */
    void (*tokens)(const dsv4_dot_rows *w, const dsv4_dot_tokens *in, float *y, int64_t ldy);
} dsv4_dot_kernel;

/* Every kernel built in, ending with a NULL name; rising levels within a type. Not all of them run
 * on this machine: ask dsv4_dot_supported. */
const dsv4_dot_kernel *dsv4_dot_kernels(void);
bool dsv4_dot_supported(const dsv4_dot_kernel *k);
/* The highest kernel of a type up to a level, of those of one level the last that this machine
 * runs; NULL = none. */
const dsv4_dot_kernel *dsv4_dot_find(dsv4_type type, dsv4_cpu_level level);

/* ---- the engine ----------------------------------------------------------------------------- */

/* One conversation on this CPU: a dsv4_session (dsv4.h) whose operators share their work out to
 * threads and work in memory planned once. Same calls, taps and state as the reference's session.
 *   - Results are the same bits for every number of threads, and however tokens are cut into
 * blocks: work is cut between rows, tokens and heads, never inside a sum.
 *   - Nothing is allocated after dsv4_engine_new but by dsv4_engine_save.
 *   - Weights of the types that have a kernel for rounded activations (dsv4_dot_kernels with
 * act_type Q8_0 or Q8_K) are multiplied with activations rounded to 8 bits, once per input row, in
 *     prefill as in decode; all other types, or all types if `exact` is set, with float32
 *     activations.
 * Listeners are called on the thread that appends. Engines share nothing: each thread may run its
 * own. */
typedef struct dsv4_engine dsv4_engine;

enum { DSV4_ENGINE_THREADS = 256, DSV4_ENGINE_CHUNK = 512 };

typedef struct {
    dsv4_cpu_level level;
    int threads; /* the caller's included; 0 = 1 */
    bool exact;  /* float32 activations for every type */
} dsv4_engine_options;

/* session->chunk 0 = DSV4_ENGINE_CHUNK tokens a block. DSV4_E_INPUT: this machine does not support
 * the level, threads outside [0, DSV4_ENGINE_THREADS], or what dsv4_session_new refuses. */
dsv4_status dsv4_engine_new(const dsv4_model *model, const dsv4_engine_options *options,
                            const dsv4_session_options *session, dsv4_engine **out,
                            dsv4_error *err);
void dsv4_engine_free(dsv4_engine *e);
void dsv4_engine_set_taps(dsv4_engine *e, const dsv4_taps *taps);
dsv4_status dsv4_engine_append(dsv4_engine *e, const int32_t *tokens, int64_t n, float *logits,
                               dsv4_error *err);
int64_t dsv4_engine_position(const dsv4_engine *e);
void dsv4_engine_reset(dsv4_engine *e);
dsv4_status dsv4_engine_save(const dsv4_engine *e, void **blob, size_t *bytes, dsv4_error *err);
dsv4_status dsv4_engine_restore(dsv4_engine *e, const void *blob, size_t bytes, dsv4_error *err);

/* Does the engine multiply a tensor's type with activations rounded to 8 bits (unless exact)? */
bool dsv4_engine_rounds(dsv4_type type);

/* What the operators cost since the engine was made, or since the last dsv4_engine_clear_costs. */
typedef struct {
    uint64_t calls;
    double seconds; /* by the clock, from entry to return; 0 without a clock */
    double bytes;   /* of stored weights, each piece once a call however many tokens share it */
    double macs;    /* multiply-adds with those weights: rows * columns * tokens */
} dsv4_engine_cost;

/* `now` gives seconds from any start, e.g. of CLOCK_MONOTONIC; NULL (as made) = no clock. */
void dsv4_engine_set_clock(dsv4_engine *e, double (*now)(void));
/* [dsv4_operator_count()], in the order of dsv4_operator_name. Bytes and macs are counted for the
 * operators that read weights: embed, linear, hc_mix, experts. */
const dsv4_engine_cost *dsv4_engine_costs(const dsv4_engine *e);
void dsv4_engine_clear_costs(dsv4_engine *e);

/* ---- what this machine can do: the ceilings that `bench` measures against -----------------------
 */

/* Multiply-adds on a level's widest registers, in chains that do not wait for each other; returns
 * how many floating point operations were done (two a multiply-add), 0 = the level is not
 * supported. */
int64_t dsv4_cpu_spin(dsv4_cpu_level level, int64_t rounds);
/* Reads `bytes` bytes as fast as the level's plain loads can, as two streams half of them apart;
 * returns something made of all of them. */
uint64_t dsv4_cpu_read(dsv4_cpu_level level, const void *data, size_t bytes);

/* ---- CUDA ----------------------------------------------------------------------------------- */

/* Everything below exists in every build. Without CUDA the functions that can fail say so
 * (DSV4_E_INPUT), and dsv4_ops_cuda is NULL. Device 0 is used; CUDA_VISIBLE_DEVICES chooses it. */

/* DSV4_OK: built in, and this machine has a device. Asked in a process of its own, so that the
 * caller may still fork. name: NULL or room for the device's name and the versions. */
dsv4_status dsv4_cuda_probe(char *name, size_t size, dsv4_error *err);

/* The table over host memory: every call copies its arguments to the device and back. For checks.
 * A failure leaves the outputs alone and is kept until dsv4_cuda_take_error. */
const dsv4_ops *dsv4_ops_cuda(void);
/* The first failure of the device since the last call: DSV4_E_MACHINE, naming operator and size. */
dsv4_status dsv4_cuda_take_error(dsv4_error *err);
/* Calls of the table are run twice and compared, and the bands around their buffers looked at. */
void dsv4_cuda_check_calls(bool on);
/* Compositions: kernels that do the work of several operators at once. Number `which`, from 0;
 * NULL: there are no more. A check runs hostile inputs through the composition and through its
 * operators one by one, and wants the same bits. begin: a case by name; false leaves it out. end:
 * NULL, or what differs. */
typedef struct {
    void *ctx;
    bool (*begin)(void *ctx, const char *name);
    void (*end)(void *ctx, const char *wrong);
} dsv4_composition_cases;
const char *dsv4_cuda_composition(int which);
dsv4_status dsv4_cuda_check_composition(int which, uint64_t seed,
                                        const dsv4_composition_cases *cases, dsv4_error *err);

/* The engine: a model's weights on the device in their storage format, and conversations whose
 * whole state lives there. Memory is measured against what is free before anything is copied. The
 * session functions keep the contracts of dsv4_session_* (dsv4.h), with blocks of 4096 tokens at
 * most; several sessions may run at once, each from one thread at a time. */
typedef struct dsv4_cuda dsv4_cuda;
typedef struct dsv4_cuda_session dsv4_cuda_session;

dsv4_status dsv4_cuda_open(const dsv4_model *m, dsv4_cuda **out, dsv4_error *err);
void dsv4_cuda_close(dsv4_cuda *d);
size_t dsv4_cuda_weight_bytes(const dsv4_cuda *d);

dsv4_status dsv4_cuda_session_new(dsv4_cuda *d, const dsv4_session_options *options,
                                  dsv4_cuda_session **out, dsv4_error *err);
void dsv4_cuda_session_free(dsv4_cuda_session *s);
void dsv4_cuda_session_set_taps(dsv4_cuda_session *s, const dsv4_taps *taps);
dsv4_status dsv4_cuda_session_append(dsv4_cuda_session *s, const int32_t *tokens, int64_t n,
                                     float *logits, dsv4_error *err);
int64_t dsv4_cuda_session_position(const dsv4_cuda_session *s);
void dsv4_cuda_session_reset(dsv4_cuda_session *s);
dsv4_status dsv4_cuda_session_save(const dsv4_cuda_session *s, void **blob, size_t *bytes,
                                   dsv4_error *err);
dsv4_status dsv4_cuda_session_restore(dsv4_cuda_session *s, const void *blob, size_t bytes,
                                      dsv4_error *err);

/* Several conversations at once: one token of each in one step, weights read once for all. The
 * sessions are of one engine and numerics, without the MTP layer, all different; positions may
 * differ. They stay usable alone between steps (append, save, restore, reset), must outlive the
 * batch, and must have no listener during a step. Logits are the same bits as those of appending
 * the tokens one session at a time. Working memory is planned here and checked against what is
 * free. */
enum { DSV4_CUDA_SEQUENCES = 64 };
typedef struct dsv4_cuda_batch dsv4_cuda_batch;
dsv4_status dsv4_cuda_batch_new(dsv4_cuda_session *const *sessions, int count,
                                dsv4_cuda_batch **out, dsv4_error *err);
void dsv4_cuda_batch_free(dsv4_cuda_batch *b);
/* tokens [count]; logits NULL or [count][V]. On an error no session has moved. */
dsv4_status dsv4_cuda_batch_append(dsv4_cuda_batch *b, const int32_t *tokens, float *logits,
                                   dsv4_error *err);

#endif
