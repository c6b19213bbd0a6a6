/* blocks.h - what the block formats share (private to formats/).
 *
 * Every GGUF block is unpacked to the same shape: small integers q, one integer scale (and for
 * some one integer minimum) for each group of `sub` columns, and the block's float factors. A
 * column's value is (d * scale) * q - dmin * min. With the stored ranges d * scale and dmin * min
 * are exact in float32, so one formula gives every format's values bit for bit: at most the last
 * multiplication and the subtraction round. */
#ifndef DSV4_FORMATS_BLOCKS_H
#define DSV4_FORMATS_BLOCKS_H

#include <string.h>

#include "formats.h"

/* Scales and codes are read as little-endian words. */
#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the formats assume a little-endian machine"
#endif
_Static_assert(sizeof(float) == 4 && sizeof(double) == 8, "IEEE-754 float and double");

#define DSV4_QK 256         /* columns of a K or IQ block */
#define DSV4_Q8_0_BYTES 34  /* f16 d, int8 q[32] */
#define DSV4_Q8_K_BYTES 292 /* f32 d, int8 q[256], int16 sums[16] */
#define DSV4_Q8_K_SUMS (4 + DSV4_QK)

typedef struct {
    float d;    /* factor of scale[] */
    float dmin; /* factor of min[]; unused unless has_min */
    bool has_min;
    int sub;           /* columns that share scale[] and min[]: 16 or 32 */
    int16_t scale[16]; /* [block/sub] */
    uint8_t min[16];   /* [block/sub] */
    int8_t q[DSV4_QK]; /* [block] */
} dsv4_unpacked;

typedef void (*dsv4_unpack_fn)(const uint8_t *block, dsv4_unpacked *u);

/* A block format as the shared loops see it. */
typedef struct {
    dsv4_unpack_fn unpack;
    int block, bytes;
} dsv4_block_layout;

void dsv4_blocks_decode(const dsv4_block_layout *l, const dsv4_row *row, int64_t n, float *out);
double dsv4_blocks_dot(const dsv4_block_layout *l, const dsv4_row *row, int64_t n, const float *x);
float dsv4_blocks_dot_q8_0(const dsv4_block_layout *l, const dsv4_row *row, int64_t n,
                           const void *act);
float dsv4_blocks_dot_q8_k(const dsv4_block_layout *l, const dsv4_row *row, int64_t n,
                           const void *act);

/* Columns the element formats decode at a time for dot. */
enum { DSV4_DOT_CHUNK = 256 };

static inline uint16_t dsv4_load16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t dsv4_load32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void dsv4_store16(void *p, uint16_t v)
{
    memcpy(p, &v, sizeof v);
}

static inline float dsv4_load_f16(const void *p)
{
    return dsv4_f16_to_f32(dsv4_load16(p));
}

static inline void dsv4_store_f16(void *p, float f)
{
    dsv4_store16(p, dsv4_f32_to_f16(f));
}

static inline int dsv4_clamp(int v, int lo, int hi)
{
    return v < lo ? lo : v > hi ? hi : v;
}

/* The rows of the format table, one function a type; table.c puts them together. */
/* clang-format off */
#define DSV4_FORMAT_LIST(X) \
    X(F32) X(F16) X(BF16) X(I32) X(I64) X(FP8) X(FP4) \
    X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) \
    X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K) X(Q8_K) \
    X(IQ1_S) X(IQ1_M) X(IQ2_XXS) X(IQ2_XS) X(IQ2_S) X(IQ3_XXS) X(IQ3_S) X(IQ4_NL) X(IQ4_XS) \
    X(MXFP4) X(MLX4) X(MLX8)
/* clang-format on */

#define DSV4_DECLARE_FORMAT(T) extern const dsv4_format dsv4_format_##T;
DSV4_FORMAT_LIST(DSV4_DECLARE_FORMAT)
#undef DSV4_DECLARE_FORMAT

/* The decode, dot and dot_act of a block format, from its unpack function: the table's pointers
 * carry no context, so each type needs its own three. ACT is q8_0 or q8_k. */
#define DSV4_BLOCK_FUNCTIONS(NAME, BLOCK, BYTES, ACT)                                              \
    static const dsv4_block_layout NAME##_layout = {NAME##_unpack, BLOCK, BYTES};                  \
    static void NAME##_decode(const dsv4_row *row, int64_t n, float *out)                          \
    {                                                                                              \
        dsv4_blocks_decode(&NAME##_layout, row, n, out);                                           \
    }                                                                                              \
    static double NAME##_dot(const dsv4_row *row, int64_t n, const float *x)                       \
    {                                                                                              \
        return dsv4_blocks_dot(&NAME##_layout, row, n, x);                                         \
    }                                                                                              \
    static float NAME##_dot_act(const dsv4_row *row, int64_t n, const void *act)                   \
    {                                                                                              \
        return dsv4_blocks_dot_##ACT(&NAME##_layout, row, n, act);                                 \
    }

/* Encoders that live in a file of their own. */
bool dsv4_encode_q2_k(const float *x, int64_t rows, int64_t cols, const float *importance,
                      const dsv4_encoded *out);
bool dsv4_encode_q3_k(const float *x, int64_t rows, int64_t cols, const float *importance,
                      const dsv4_encoded *out);
bool dsv4_encode_q4_k(const float *x, int64_t rows, int64_t cols, const float *importance,
                      const dsv4_encoded *out);
bool dsv4_encode_q5_k(const float *x, int64_t rows, int64_t cols, const float *importance,
                      const dsv4_encoded *out);
bool dsv4_encode_q6_k(const float *x, int64_t rows, int64_t cols, const float *importance,
                      const dsv4_encoded *out);
bool dsv4_encode_iq2_xxs(const float *x, int64_t rows, int64_t cols, const float *importance,
                         const dsv4_encoded *out);
bool dsv4_encode_iq1_s(const float *x, int64_t rows, int64_t cols, const float *importance,
                       const dsv4_encoded *out);

#endif
