/* formats.h - the one table of weight formats: how each storage type is laid out, decoded,
 * encoded and multiplied. Scalar and exact: decode gives the float32 that the format defines, bit
 * for bit. */
#ifndef DSV4_FORMATS_H
#define DSV4_FORMATS_H

#include "../dsv4.h"

/* One stored row, as decode and dot see it. */
typedef struct {
    const void *data;     /* first byte of the row */
    const uint8_t *scale; /* the row's scales if they are stored beside the codes, else NULL */
    const uint8_t *bias;  /* MLX biases, else NULL */
    int group;            /* columns per scale beside the codes */
    dsv4_type scale_type; /* MLX */
} dsv4_row;

/* An encoder works on a whole matrix because FP8 shares scales between rows. `importance` is NULL
 * or [cols] non-negative weights of the columns' squared errors. data: rows * row bytes; scale and
 * bias: as the format needs (NULL otherwise). Non-finite input is the caller's to refuse. */
typedef struct {
    void *data;
    void *scale;          /* FP8 [ceil(rows/128)][ceil(cols/128)], FP4 [rows][cols/32], MLX
                             [rows][cols/group] */
    void *bias;           /* MLX */
    int group;            /* MLX: 32, 64 or 128 */
    dsv4_type scale_type; /* MLX: F16, BF16 or F32 */
} dsv4_encoded;

typedef struct {
    dsv4_type type;
    const char *name;      /* "Q4_K" */
    int ggml_type;         /* number in GGUF files, -1 = not a GGUF type */
    int block;             /* columns per block (1 = elements) */
    int block_bytes;       /* bytes per block; FP4 and MLX4: 2 columns a byte */
    dsv4_type act_type;    /* activation blocks of dot_act: Q8_0, Q8_K, or F32 = none */
    bool needs_importance; /* the encoder refuses to work without an importance matrix */

    /* n columns (a multiple of block) -> float32 */
    void (*decode)(const dsv4_row *row, int64_t n, float *out);
    /* NULL = this project does not write the format. Returns false when `importance` is missing
     * and needed. */
    bool (*encode)(const float *x, int64_t rows, int64_t cols, const float *importance,
                   const dsv4_encoded *out);
    /* row . x with x in float32: the products of the decoded values, summed in double */
    double (*dot)(const dsv4_row *row, int64_t n, const float *x);
    /* row . activation blocks (act_type), integer arithmetic inside blocks; NULL = none */
    float (*dot_act)(const dsv4_row *row, int64_t n, const void *act);
} dsv4_format;

/* Never NULL for type < DSV4_TYPE_COUNT. */
const dsv4_format *dsv4_format_of(dsv4_type type);
const dsv4_format *dsv4_format_by_name(const char *name);  /* NULL = unknown */
const dsv4_format *dsv4_format_by_ggml(int64_t ggml_type); /* NULL = unknown */

/* Bytes of a stored row of n columns, scales beside it not counted. */
size_t dsv4_format_row_bytes(const dsv4_format *f, int64_t n);

/* Activation blocks: n float32 (a multiple of 32 or 256) -> Q8_0 / Q8_K blocks. */
void dsv4_quantize_q8_0(const float *x, int64_t n, void *out);
void dsv4_quantize_q8_k(const float *x, int64_t n, void *out);

/* ---- scalar conversions, exhaustively right (rounding, subnormals, NaN) ---- */
float dsv4_f16_to_f32(uint16_t h);
uint16_t dsv4_f32_to_f16(float f); /* round to nearest even, overflow to infinity */
float dsv4_bf16_to_f32(uint16_t h);
uint16_t dsv4_f32_to_bf16(float f);   /* round to nearest even; NaN stays NaN (quiet) */
float dsv4_e4m3_to_f32(uint8_t code); /* OCP e4m3fn: max 448, 0x7f and 0xff NaN */
uint8_t dsv4_f32_to_e4m3(float f);    /* nearest even, saturating at 448; NaN -> 0x7f|sign */
float dsv4_e2m1_to_f32(uint8_t code); /* low 4 bits */
uint8_t dsv4_f32_to_e2m1(float f);    /* nearest, ties to even code, saturating at 6 */
float dsv4_e8m0_to_f32(uint8_t code); /* 2^(code-127), 255 NaN */

#endif
