/* ints.cuh - products in whole numbers, of one to a few tokens with rows of Q4_K, Q2_K, IQ2_XXS
 * and, where columns are whole chunks and nobody asks for the bits of many tokens, Q8_0, FP4,
 * MXFP4: codes are eight bits as they lie there or nearly so, and the tensor cores multiply those
 * (mma.m16n8k32, s8 or u8 times s8 into s32) with a fraction of the instructions that bf16 takes.
 *
 * x becomes fixed point: within a CHUNK of 256 columns a value is q * 2^-n, q below 2^30 for the
 * largest, rounded to nearest; and q is four LIMBS of eight bits, digits of base 256 from -128 to
 * 127, the topmost first. A limb is a column of B: column l of a token's four is limb l. So sums
 * within a chunk are exact, but for x's own rounding to 2^-31 of the chunk's largest value (float32
 * rounds to 2^-25 of each); what is not finite makes the chunk's factor NaN.
 *
 * Columns. Lane 4 g + t has columns 8t .. 8t+7 of a block of 32, of rows g and g + 8 of A and of
 * column g of B: the first four in the hardware's slots 4t .. 4t+3, the others in 16+4t .. 16+4t+3.
 * MXFP4, whose bytes are columns c and c + 16 (cu_apart): 4t .. 4t+3 and 16+4t .. 16+4t+3, in turn.
 *
 * THE ORDER OF A SUM, the same whatever comes with a token:
 *  1. Within a chunk, each limb by itself: whole numbers, with the scales of blocks multiplied in.
 *  2. Limbs 0 and 1 join, and 2 and 3: f = fmaf(256, sum_0, sum_1); times the row's factor, less
 *     the minima's part (whole numbers as well, times the limbs' own sums): f = d * f - dmin * m;
 *     times the chunk's factor: 2^-n, times 65536 for limbs 0 and 1.
 *  3. A SHARE of a row's chunks, ascending, is added up for either pair of limbs from 0, then the
 *     shares, ascending, then the two. The shares are a matter of the matrix alone (int_split).
 * Formats with a factor d for each block of 32 columns (BLOCKS) do by block what 1 and 2 say: a
 * block's sums, times the chunk's factor, join, and s = fmaf(d, joined, s). There are two s for
 * either pair of limbs, of a share's even blocks and of its odd ones, from 0 and ascending, which
 * are added up at the end of the share and multiplied with what a code's one is worth. */
#ifndef DSV4_CUDA_INTS_CUH
#define DSV4_CUDA_INTS_CUH

#include "mma.cuh"

enum {
    LIMBS = 4,
    /* bytes: [pair of blocks][limb][t][8 of each block]; cu_block_each: cu_limb_place */
    LIMB_CHUNK = CU_CHUNK * LIMBS
};

/* SUMS: sums of x for the minima, of a chunk. BLOCKS: blocks of 32 columns have factors, and other
 * shapes and callers take the order of mma.cuh. */
template <int TYPE> struct int_shape {
    enum { INTS = 0, BLOCKS = 0, SUMS = 0 };
};
template <> struct int_shape<DSV4_FP4> {
    enum { INTS = 1, BLOCKS = 1, SUMS = 0 };
};
template <> struct int_shape<DSV4_MXFP4> {
    enum { INTS = 1, BLOCKS = 1, SUMS = 0 };
};
template <> struct int_shape<DSV4_Q8_0> {
    enum { INTS = 1, BLOCKS = 1, SUMS = 0 };
};
template <> struct int_shape<DSV4_Q4_K> {
    enum { INTS = 1, BLOCKS = 0, SUMS = 8 };
};
template <> struct int_shape<DSV4_Q2_K> {
    enum { INTS = 1, BLOCKS = 0, SUMS = 16 };
};
template <> struct int_shape<DSV4_IQ2_XXS> {
    enum { INTS = 1, BLOCKS = 0, SUMS = 0 };
};

__host__ __device__ constexpr bool cu_apart(int type)
{
    return type == DSV4_MXFP4;
}

/* Of one token B's columns 4 .. 7 are limbs of a second block, and a lane has sixteen columns of
 * one block: see iq2_one. */
__host__ __device__ constexpr bool cu_block_each(int type, int tokens)
{
    return type == DSV4_IQ2_XXS && tokens == 1;
}

/* Where a limb of a block's 32 columns then lies in its chunk: limbs of neighbouring blocks in
 * different banks. */
__host__ __device__ constexpr uint32_t cu_limb_place(uint32_t block, uint32_t limb)
{
    return block * 128 + (limb ^ (block & 3u)) * 32;
}

/* Bytes of a chunk's sums: [low, high byte][limb][slot]. */
__host__ __device__ constexpr int sums_bytes(int type)
{
    return 2 * LIMBS * (type == DSV4_Q4_K ? 8 : type == DSV4_Q2_K ? 16 : 0);
}

/* ---- x --------------------------------------------------------------------------------------- */

CU_BOTH float cu_two_to(int n) /* -149 .. 127 */
{
    return cu_float_of(n >= -126 ? (uint32_t)(n + 127) << 23 : 1u << (n + 149));
}

/* n for a chunk whose largest magnitude has these bits: it times 2^n is below 2^30. Never so large
 * that 2^-n would not be a float: nothing is smaller than 2^-149. */
CU_BOTH int cu_fixed_power(uint32_t most)
{
    uint32_t e = most >> 23;
    return 156 - (int)(e > 7 ? e : 7);
}

/* The whole number next to x, at most 2^30, plus 0x80808080: adding 1.5 * 2^23 to a float leaves
 * one in its low bits, of 22 bits and a sign; so the upper half first, then what is left of x. */
CU_BOTH uint32_t cu_fixed(float x)
{
    const float high = 12582912.0f + 0x3540; /* 0x4b403540 */
    const float low = 12582912.0f + 0x8080;  /* 0x4b408080 */
    float m = fmaf(x, 1.0f / 65536, high), rest = fmaf(high - m, 65536.0f, x);
    return (cu_bits_of(m) << 16) + cu_bits_of(rest + low);
}

/* The limbs of four such numbers, a word each. */
CU_BOTH void cu_limbs(const uint32_t u[4], uint32_t w[LIMBS])
{
    /* u's bytes are digits from 0 to 255: the carries of those from -128 to 127 */
    uint32_t a = cu_bytes(u[0], u[1], 0x5140u), b = cu_bytes(u[0], u[1], 0x7362u);
    uint32_t c = cu_bytes(u[2], u[3], 0x5140u), d = cu_bytes(u[2], u[3], 0x7362u);
    w[0] = cu_bytes(b, d, 0x7632u) ^ 0x80808080u;
    w[1] = cu_bytes(b, d, 0x5410u) ^ 0x80808080u;
    w[2] = cu_bytes(a, c, 0x7632u) ^ 0x80808080u;
    w[3] = cu_bytes(a, c, 0x5410u) ^ 0x80808080u;
}

/* ---- codes ----------------------------------------------------------------------------------- */

/* Scales 0..3 and 4..7 of a Q4_K chunk's header, a byte each; minima the same. */
CU_BOTH void cu_q4_k_scales(const uint32_t header[4], uint32_t s[2])
{
    s[0] = header[1] & 0x3f3f3f3fu;
    s[1] = (header[3] & 0x0f0f0f0fu) | (header[1] >> 2 & 0x30303030u);
}

/* Slots 4t .. 4t+3 of eight minima. */
CU_BOTH uint32_t cu_q4_k_minima(const uint32_t header[4], int t)
{
    uint32_t high = (header[3] >> 4 & 0x0f0f0f0fu) | (header[2] >> 2 & 0x30303030u);
    return t == 0 ? header[2] & 0x3f3f3f3fu : t == 1 ? high : 0;
}

/* Levels and signs of eight columns (cu_iq2_words) as bytes: 8, 25, 43 and their negatives. */
CU_BOTH uint32_t cu_iq2_four(uint32_t n) /* by its low half */
{
    return cu_bytes(0x002b1908u, 0x00d5e7f8u, n);
}

CU_BOTH void cu_iq2_codes(uint32_t n, uint32_t v[2])
{
    v[0] = cu_iq2_four(n);
    v[1] = cu_iq2_four(n >> 16);
}

/* Eight e2m1 codes, a nibble each, as bytes of four times their values. Two look-ups: a nibble's
 * sign bit makes the first one 0 for a negative code and, turned round, the second one for a
 * positive one; the second gives halves of the negatives' bytes. */
CU_BOTH void cu_fp4_codes(uint32_t n, uint32_t v[2])
{
    uint32_t turned = n ^ 0x88888888u;
    CU_UNROLL
    for (int i = 0; i < 2; i++)
        v[i] = cu_signed_bytes(0x06040200u, 0x18100c08u, n >> 16 * i) +
               2 * cu_signed_bytes(0x7d7e7f00u, 0x74787a7cu, turned >> 16 * i);
}

CU_BOTH uint32_t cu_byte(uint32_t w, int i) /* 0..3 */
{
    return cu_bytes(w, 0, 0x4440u + (uint32_t)i);
}

/* ---- mma ------------------------------------------------------------------------------------- */

/* 1.5 * 2^23: whole numbers below 2^22 added to its bits are added to the float. */
enum { CU_INT_START = 0x4b400000 };

#ifdef __CUDACC__
/* From an accumulator of zero: a [16][32] of TYPE (s8 or u8), b [32][8]. */
#define CU_INT_MMA(name, type)                                                                     \
    __device__ __forceinline__ void name(int c[4], uint32_t a0, uint32_t a1, uint32_t a2,          \
                                         uint32_t a3, uint32_t b0, uint32_t b1)                    \
    {                                                                                              \
        asm("mma.sync.aligned.m16n8k32.row.col.s32." type ".s8.s32 {%0, %1, %2, %3}, "             \
            "{%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"                                    \
            : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])                                       \
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(0));                       \
    }
CU_INT_MMA(cu_mma_s8, "s8")
CU_INT_MMA(cu_mma_u8, "u8")
#undef CU_INT_MMA

/* From CU_INT_START: the results are floats. */
__device__ __forceinline__ void cu_mma_s8_floats(int c[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                                 uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%10, %10, %10, %10};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"((int)CU_INT_START));
}

__device__ __forceinline__ void cu_mma_s8_add(int c[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                              uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void cu_mma_u8_add(int c[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                              uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* Sixteen slots: lane's a0, a1 rows g, g + 8; b0 column g. */
__device__ __forceinline__ void cu_mma_u8_half(int c[4], uint32_t a0, uint32_t a1, uint32_t b0)
{
    asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%7, %7, %7, %7};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a0), "r"(a1), "r"(b0), "r"(0));
}
#endif

#endif
