/* mma.cuh - stored weights as operands of the tensor cores, exactly: a lane's share of a row,
 * format by format, and the order in which a product's sums are formed.
 *
 * Codes are exact in bf16 (int8, e4m3, e2m1, 0..15, Q2_K's scale * code up to 45, IQ2's book values
 * with signs), and x is split exactly into three bf16 parts (cu_split), so every product inside
 * mma.m16n8k16 (row.col.f32.bf16.bf16.f32) is exact; scales are multiplied in float32 afterwards.
 * A = 16 rows of weights, B = parts of tokens. BF16 weights are their own codes, with scale 1.
 *
 * Columns. The hardware's k16 step has slots 0..15; lane = 4 g + t holds slots 2t, 2t+1, 2t+8, 2t+9
 * of rows g and g + 8 of A and of column g of B. Inside every block of 32 columns lane t holds
 * columns 8t .. 8t+7, in steps s = 0, 1: 8t+4s+0, +1 in slots 2t, 2t+1 and 8t+4s+2, +3 in slots
 * 2t+8, 2t+9. So a lane's codes are one run of the row as it is stored, and B's registers for both
 * steps are one 16-byte load of x's parts in natural order at column 8t of the block:
 *     step 0: b0 = word 0, b1 = word 1; step 1: b0 = word 2, b1 = word 3.
 * row_codes<TYPE> gives a row's four words v[] in the same order:
 *     step s: a0 = v(g)[2s], a1 = v(g+8)[2s], a2 = v(g)[2s+1], a3 = v(g+8)[2s+1].
 *
 * THE ORDER OF A SUM, the same for every kernel, whatever comes with a token and whoever computes
 * which part of it (but for one to a few tokens in whole numbers, linear.cu's takes_ints: ints.cuh):
 *  1. For each part p = 0, 1, 2 of x by itself, within a promotion block (PROMOTE columns: 32; 128
 *     for FP8 and BF16; 256 for Q2_K, whose scales are in the codes) the accumulator starts at 0
 * and runs through the steps in ascending order.
 *  2. The block's value goes into the part's sum of the CHUNK of 256 columns, which starts at 0:
 *     sum_p = fmaf(row_scale::block(b), acc_p, sum_p), blocks ascending; BF16: sum_p += acc_p;
 *     Q2_K: sum_p = acc_p. The last chunk is shorter if the columns are no multiple of 256.
 *  3. At the chunk's end the parts meet: S = (sum_0 + sum_1) + sum_2.
 *  4. Formats with a factor for 256 columns (DEFERRED): chunk = d * S; with minima (MINIMA > 0):
 *     chunk = fmaf(d, S, -(dmin * M)), M = (m_0 + m_1) + m_2, where m_p is one mma from 0 over the
 *     chunk's minima (row_minima) times part p of the sums of x (cu_split of the float32 sums of
 *     256 / MINIMA columns, each formed as a tree: (x0 + x1) + (x2 + x3), then neighbours). MINIMA
 *     = 8 is m16n8k8 (word 0), 16 is m16n8k16 with sums 2t, 2t+1 (b0) and 2t+8, 2t+9 (b1) in
 *     natural slots. Others: chunk = S.
 *  5. The product starts at 0 and takes chunk 0, chunk 1, chunk 2 ..., one after the other.
 * If x is known to be bf16-valued, parts 1 and 2 are zeros and may be left out: the bits are the
 * same (but for the sign of a zero).
 *
 * Addresses: `chunk` is a row's first byte of the chunk (CHUNK_BYTES each), in shared or in global
 * memory with the alignment modulo 16 that it has in global memory. Nothing outside the aligned
 * words that hold codes of the row is read. */
#ifndef DSV4_CUDA_MMA_CUH
#define DSV4_CUDA_MMA_CUH

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "decode.cuh"
#include "tables.h"

#define CU_MEMBER __host__ __device__ __forceinline__
#ifdef __CUDA_ARCH__
#define CU_UNROLL _Pragma("unroll")
#else
#define CU_UNROLL
#endif

enum { CU_CHUNK = 256, CU_PARTS = 3 };

/* ---- bits ------------------------------------------------------------------------------------ */

/* Two bf16: a * b + c, rounded once. */
CU_BOTH uint32_t cu_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
#ifdef __CUDA_ARCH__
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
#else
    uint32_t d = 0;
    for (int i = 0; i < 32; i += 16) /* exact for what comes here: a double holds it */
        d |= cu_to_bf16((float)((double)cu_bf16(a >> i & 0xffffu) * cu_bf16(b >> i & 0xffffu) +
                                cu_bf16(c >> i & 0xffffu)))
             << i;
    return d;
#endif
}

/* Bytes of b:a chosen by the low four nibbles of s (0..7). */
CU_BOTH uint32_t cu_bytes(uint32_t a, uint32_t b, uint32_t s)
{
#ifdef __CUDA_ARCH__
    uint32_t d; /* __byte_perm would mask s first */
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(s));
    return d;
#else
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t d = 0;
    for (int i = 0; i < 4; i++)
        d |= (uint32_t)(both >> 8 * (s >> 4 * i & 7u) & 255u) << 8 * i;
    return d;
#endif
}

/* Bytes of b:a chosen by the low three bits of the nibbles of s; 0 where a nibble has its fourth
 * bit: the hardware spreads the chosen byte's sign, and none of these bytes has one. */
CU_BOTH uint32_t cu_signed_bytes(uint32_t a, uint32_t b, uint32_t s)
{
#ifdef __CUDA_ARCH__
    return cu_bytes(a, b, s);
#else
    uint32_t d = cu_bytes(a, b, s & 0x7777u);
    for (int i = 0; i < 4; i++)
        if (s >> 4 * i & 8u)
            d &= ~(255u << 8 * i);
    return d;
#endif
}

CU_BOTH uint32_t cu_funnel(uint32_t low, uint32_t high, uint32_t bits) /* bits < 32 */
{
#ifdef __CUDA_ARCH__
    return __funnelshift_r(low, high, bits);
#else
    return (uint32_t)(((uint64_t)high << 32 | low) >> bits);
#endif
}

CU_BOTH uint32_t cu_word(const uint8_t *p) /* aligned */
{
    return *(const uint32_t *)(const void *)p;
}

/* Eight bytes from any address. */
CU_BOTH void cu_eight(const uint8_t *p, uint32_t w[2])
{
    uint32_t off = (uint32_t)(uintptr_t)p & 3u;
    const uint8_t *from = p - off;
    uint32_t a = cu_word(from), b = cu_word(from + 4), c = cu_word(from + (off != 0 ? 8 : 4));
    w[0] = cu_funnel(a, b, 8 * off);
    w[1] = cu_funnel(b, c, 8 * off);
}

CU_BOTH float cu_half(uint32_t h)
{
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half((unsigned short)h));
#else
    return cu_f16(h);
#endif
}

/* Small integers in bytes i, i + 1 of a word (0..127) as bf16: 0x4300 | q is 128 + q. */
CU_BOTH uint32_t cu_small(uint32_t bytes, int i)
{
    uint32_t p = cu_bytes(bytes, 0x43434343u, i == 0 ? 0x4140u : 0x4342u);
    return cu_fma_bf16x2(p, 0x3f803f80u, 0xc300c300u);
}

/* cu_e8m0, shorter: 255 becomes infinity times zero. */
CU_BOTH float cu_power(uint32_t code)
{
    uint32_t bits = code << 23;
    float f = cu_float_of(bits > 0x00400000u ? bits : 0x00400000u);
    return fmaf(f, 0.0f, f);
}

/* x = part 0 + part 1 + part 2, exactly (8 bits each), but for bits below 2^-133; what is not
 * finite is part 0 alone. The parts are the high halves of these words. */
CU_BOTH void cu_split(float x, uint32_t part[CU_PARTS])
{
    uint32_t bits = cu_bits_of(x);
    bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    /* a NaN whose payload is cut off would be infinite */
    part[0] = (bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x00400000u : bits;
    part[0] &= 0xffff0000u;
    float rest = finite ? x - cu_float_of(part[0]) : 0.0f;
    part[1] = cu_bits_of(rest) & 0xffff0000u;
    part[2] = cu_bits_of(rest - cu_float_of(part[1])) & 0xffff0000u;
}

/* ---- IQ2_XXS's tables ------------------------------------------------------------------------ */

/* A nibble a column: the level (0, 1, 2) of a book entry, 4 where the sign byte has a bit. COPIES
 * words side by side, one for each few lanes, so that lanes seldom meet in a bank. */
static_assert(CU_IQ2_COPIES == 8, "rows of 32 bytes");
typedef struct {
    uint32_t book[256][CU_IQ2_COPIES], signs[128][CU_IQ2_COPIES];
} cu_iq2_words;

/* ---- rows ------------------------------------------------------------------------------------ */

/* Codes of one row: load(chunk, block, t, ...) fetches SPAN blocks of 32 columns, `block` being a
 * multiple of SPAN; expand(k, v) gives block + k. Blocks that lie beyond the row's end are not
 * asked for. */
template <int TYPE> struct row_codes;

/* Factors of one row: load(chunk, scale, chunk number) at the chunk's start; block(b) multiplies
 * promotion block b of the chunk; d and dmin those of a DEFERRED format. `scale`: the row's scales
 * (FP8, FP4), those of the chunk's first column. */
template <int TYPE> struct row_scale;

/* What a format is made of. BLOCKS: blocks of 32 columns in a promotion block. */
template <int TYPE> struct row_shape;
#define CU_ROW_SHAPE(type, bytes, promote, deferred, minima)                                       \
    template <> struct row_shape<type> {                                                           \
        enum {                                                                                     \
            CHUNK_BYTES = bytes,                                                                   \
            PROMOTE = promote,                                                                     \
            BLOCKS = promote / 32,                                                                 \
            DEFERRED = deferred,                                                                   \
            MINIMA = minima                                                                        \
        };                                                                                         \
    }
CU_ROW_SHAPE(DSV4_BF16, 512, 128, 0, 0);
CU_ROW_SHAPE(DSV4_FP8, 256, 128, 0, 0);
CU_ROW_SHAPE(DSV4_FP4, 128, 32, 0, 0);
CU_ROW_SHAPE(DSV4_MXFP4, 136, 32, 0, 0);
CU_ROW_SHAPE(DSV4_Q8_0, 272, 32, 0, 0);
CU_ROW_SHAPE(DSV4_Q4_K, 144, 32, 1, 8);
CU_ROW_SHAPE(DSV4_Q2_K, 84, 256, 1, 16);
CU_ROW_SHAPE(DSV4_IQ2_XXS, 66, 32, 1, 0);
#undef CU_ROW_SHAPE

/* ---- BF16 */

template <> struct row_codes<DSV4_BF16> {
    enum { SPAN = 1 };
    uint4 w;
    CU_MEMBER void load(const uint8_t *chunk, int block, int t, const cu_iq2_words *)
    {
        w = *(const uint4 *)(const void *)(chunk + 64 * block + 16 * t);
    }
    CU_MEMBER void expand(int, uint32_t v[4]) const
    {
        v[0] = w.x, v[1] = w.y, v[2] = w.z, v[3] = w.w;
    }
};

template <> struct row_scale<DSV4_BF16> {
    CU_MEMBER void load(const uint8_t *, const uint8_t *) {}
    CU_MEMBER float block(int) const
    {
        return 1.0f;
    }
};

/* ---- FP8: the hardware's conversion gives exact halves, NaN included */

CU_BOTH uint32_t cu_e4m3_pair(uint32_t two)
{
#ifdef __CUDA_ARCH__
    __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)two, __NV_E4M3);
    float low = __half2float(__ushort_as_half(h.x)), high = __half2float(__ushort_as_half(h.y));
    return cu_bytes(__float_as_uint(low), __float_as_uint(high), 0x7632u);
#else
    return cu_to_bf16(cu_e4m3(two & 255u)) | cu_to_bf16(cu_e4m3(two >> 8)) << 16;
#endif
}

template <> struct row_codes<DSV4_FP8> {
    enum { SPAN = 1 };
    uint2 w;
    CU_MEMBER void load(const uint8_t *chunk, int block, int t, const cu_iq2_words *)
    {
        w = *(const uint2 *)(const void *)(chunk + 32 * block + 8 * t);
    }
    CU_MEMBER void expand(int, uint32_t v[4]) const
    {
        v[0] = cu_e4m3_pair(w.x & 0xffffu);
        v[1] = cu_e4m3_pair(w.x >> 16);
        v[2] = cu_e4m3_pair(w.y & 0xffffu);
        v[3] = cu_e4m3_pair(w.y >> 16);
    }
};

template <> struct row_scale<DSV4_FP8> {
    const uint8_t *scale;
    CU_MEMBER void load(const uint8_t *, const uint8_t *from)
    {
        scale = from;
    }
    CU_MEMBER float block(int b) const
    {
        return cu_power(scale[b]);
    }
};

/* ---- FP4 */

/* Two look-ups in registers: a nibble's sign bit makes the first one 0 for a negative code, and,
 * turned round, the second one for a positive one. Bytes of 64 + twice the value. */
template <> struct row_codes<DSV4_FP4> {
    enum { SPAN = 1 };
    uint32_t w;
    CU_MEMBER void load(const uint8_t *chunk, int block, int t, const cu_iq2_words *)
    {
        w = cu_word(chunk + 16 * block + 4 * t);
    }
    CU_MEMBER void expand(int, uint32_t v[4]) const
    {
        CU_UNROLL
        for (int i = 0; i < 2; i++) {
            uint32_t n = w >> 16 * i,
                     bytes = cu_signed_bytes(0x43424140u, 0x4c484644u, n) |
                             cu_signed_bytes(0x3d3e3f40u, 0x34383a3cu, n ^ 0x8888u);
            v[2 * i] =
                cu_fma_bf16x2(cu_bytes(bytes, 0x43434343u, 0x4140u), 0x3f003f00u, 0xc2c0c2c0u);
            v[2 * i + 1] =
                cu_fma_bf16x2(cu_bytes(bytes, 0x43434343u, 0x4342u), 0x3f003f00u, 0xc2c0c2c0u);
        }
    }
};

template <> struct row_scale<DSV4_FP4> {
    const uint8_t *scale;
    CU_MEMBER void load(const uint8_t *, const uint8_t *from)
    {
        scale = from;
    }
    CU_MEMBER float block(int b) const
    {
        return cu_power(scale[b]);
    }
};

/* ---- MXFP4: blocks of 17 bytes, columns 0 .. 15 low, 16 .. 31 high. Values doubled (0 .. 12)
 * times half the scale, which reaches 2^127. s e e m at bf16's sign, low exponent and top
 * mantissa bits is the value times 2^-126, subnormals included; nibbles come in the high halves of
 * bytes. */

template <> struct row_codes<DSV4_MXFP4> {
    enum { SPAN = 1 };
    uint32_t w[2];
    CU_MEMBER void load(const uint8_t *chunk, int block, int t, const cu_iq2_words *)
    {
        cu_eight(chunk + 17 * block + 1 + 8 * (t & 1), w);
        if (t < 2) {
            w[0] <<= 4;
            w[1] <<= 4;
        }
    }
    CU_MEMBER void expand(int, uint32_t v[4]) const
    {
        CU_UNROLL
        for (int i = 0; i < 2; i++) {
            uint32_t low = w[i] << 2 & 0xc0c0c0c0u;
            uint32_t high = (w[i] & 0x80808080u) | (w[i] >> 6 & 0x01010101u);
            v[2 * i] = cu_fma_bf16x2(cu_bytes(low, high, 0x5140u), 0x7f007f00u, 0x80008000u);
            v[2 * i + 1] = cu_fma_bf16x2(cu_bytes(low, high, 0x7362u), 0x7f007f00u, 0x80008000u);
        }
    }
};

template <> struct row_scale<DSV4_MXFP4> {
    const uint8_t *at;
    CU_MEMBER void load(const uint8_t *chunk, const uint8_t *)
    {
        at = chunk;
    }
    CU_MEMBER float block(int b) const
    {
        uint32_t c = at[17 * b];
        return cu_float_of(c >= 2 ? (c - 1) << 23 : c == 1 ? 0x00400000u : 0x00200000u);
    }
};

/* ---- Q8_0: 0x4300 and a code is p = 128 + code, or 512 + 2 code if that is negative: the code is
 * p * m + c with m = 1, c = -128, or m = 1/2, c = -256. */

CU_BOTH uint32_t cu_int8_pair(uint32_t bytes, int i)
{
    uint32_t p = cu_bytes(bytes, 0x43434343u, i == 0 ? 0x4140u : 0x4342u);
    uint32_t m = (p & 0x00800080u) ^ 0x3f803f80u;
    return cu_fma_bf16x2(p, m, cu_fma_bf16x2(m, 0x43804380u, 0xc3c0c3c0u));
}

template <> struct row_codes<DSV4_Q8_0> {
    enum { SPAN = 1 };
    uint32_t w[2];
    CU_MEMBER void load(const uint8_t *chunk, int block, int t, const cu_iq2_words *)
    {
        cu_eight(chunk + 34 * block + 2 + 8 * t, w);
    }
    CU_MEMBER void expand(int, uint32_t v[4]) const
    {
        v[0] = cu_int8_pair(w[0], 0);
        v[1] = cu_int8_pair(w[0], 2);
        v[2] = cu_int8_pair(w[1], 0);
        v[3] = cu_int8_pair(w[1], 2);
    }
};

template <> struct row_scale<DSV4_Q8_0> {
    const uint8_t *at;
    CU_MEMBER void load(const uint8_t *chunk, const uint8_t *)
    {
        at = chunk;
    }
    CU_MEMBER float block(int b) const
    {
        return cu_half(cu_load16(at + 34 * b));
    }
};

/* ---- Q4_K: eight bytes are a lane's columns of two blocks */

template <> struct row_codes<DSV4_Q4_K> {
    enum { SPAN = 2 };
    uint2 w;
    CU_MEMBER void load(const uint8_t *chunk, int block, int t, const cu_iq2_words *)
    {
        w = *(const uint2 *)(const void *)(chunk + 16 + 16 * block + 8 * t);
    }
    CU_MEMBER void expand(int k, uint32_t v[4]) const
    {
        uint32_t a = w.x >> 4 * k & 0x0f0f0f0fu, b = w.y >> 4 * k & 0x0f0f0f0fu;
        v[0] = cu_small(a, 0);
        v[1] = cu_small(a, 2);
        v[2] = cu_small(b, 0);
        v[3] = cu_small(b, 2);
    }
};

template <> struct row_scale<DSV4_Q4_K> {
    uint32_t low, high; /* scales 0..3 and 4..7, a byte each */
    float d, dmin;
    CU_MEMBER void load(const uint8_t *chunk, const uint8_t *)
    {
        uint4 h = *(const uint4 *)(const void *)chunk;
        d = cu_half(h.x & 0xffffu);
        dmin = cu_half(h.x >> 16);
        low = h.y & 0x3f3f3f3fu;
        high = (h.w & 0x0f0f0f0fu) | (h.y >> 2 & 0x30303030u);
    }
    CU_MEMBER float block(int b) const /* 2^23 + scale */
    {
        return cu_float_of(cu_bytes(b < 4 ? low : high, 0x4b000000u, 0x7440u + (b & 3))) -
               8388608.0f;
    }
};

/* ---- Q2_K: eight bytes are a lane's columns of four blocks; the scales of 16 columns are
 * multiplied in. Two bits of a byte stay where they are, worth f: (128 + q f) * s / f - 128 s / f.
 */

template <> struct row_codes<DSV4_Q2_K> {
    enum { SPAN = 4 };
    uint32_t w[2], scales; /* of this lane's half blocks, a byte each */
    CU_MEMBER void load(const uint8_t *chunk, int block, int t, const cu_iq2_words *)
    {
        const uint8_t *codes = chunk + 16 + 8 * block + 8 * t;
        w[0] = cu_word(codes);
        w[1] = cu_word(codes + 4);
        scales = cu_bytes(cu_word(chunk + 2 * block), cu_word(chunk + 2 * block + 4),
                          t < 2 ? 0x6420u : 0x7531u) &
                 0x0f0f0f0fu;
    }
    CU_MEMBER void expand(int k, uint32_t v[4]) const
    {
        uint32_t biased = cu_bytes(scales, 0x43434343u, 0x4040u + 0x0101u * (uint32_t)k);
        uint32_t s = k == 0   ? cu_fma_bf16x2(biased, 0x3f803f80u, 0xc300c300u)
                     : k == 1 ? cu_fma_bf16x2(biased, 0x3e803e80u, 0xc200c200u)
                              : cu_fma_bf16x2(biased, 0x3d803d80u, 0xc100c100u);
        uint32_t less = cu_fma_bf16x2(s, 0xc300c300u, 0x80008000u);
        CU_UNROLL
        for (int i = 0; i < 4; i++) {
            uint32_t p = cu_bytes(w[i / 2], 0, i % 2 ? 0x4342u : 0x4140u);
            p = k < 3 ? p & 0x00030003u << 2 * k : p >> 2 & 0x00300030u;
            v[i] = cu_fma_bf16x2(p | 0x43004300u, s, less);
        }
    }
};

template <> struct row_scale<DSV4_Q2_K> {
    float d, dmin;
    CU_MEMBER void load(const uint8_t *chunk, const uint8_t *)
    {
        uint32_t both = cu_word(chunk + 80);
        d = cu_half(both & 0xffffu);
        dmin = cu_half(both >> 16);
    }
    CU_MEMBER float block(int) const
    {
        return 1.0f;
    }
};

/* ---- IQ2_XXS: a book entry a lane and block */

template <> struct row_codes<DSV4_IQ2_XXS> {
    enum { SPAN = 1 };
    uint32_t n; /* a nibble a column: level, 4 = negative */
    CU_MEMBER void load(const uint8_t *chunk, int block, int t, const cu_iq2_words *iq2)
    {
#ifdef __CUDA_ARCH__
        uint32_t copy = threadIdx.x % CU_IQ2_COPIES * 4;
#else
        uint32_t copy = 0;
#endif
        const uint8_t *group = chunk + 2 + 8 * block;
        const uint8_t *book = (const uint8_t *)(const void *)iq2->book;
        const uint8_t *signs = (const uint8_t *)(const void *)iq2->signs;
        uint32_t word = cu_load16(group + 4) | cu_load16(group + 6) << 16;
        /* seven bits at 7 t, in units of a row of the table */
        uint32_t at = cu_funnel(word, word, (uint32_t)(7 * t + 27) % 32) & 0xfe0u;
        n = cu_word(book + copy + group[t] * 32u) ^ cu_word(signs + copy + at);
    }
    CU_MEMBER void expand(int, uint32_t v[4]) const
    {
        CU_UNROLL
        for (int i = 0; i < 2; i++) { /* bytes of 64 + value: 8, 25, 43 and their negatives */
            uint32_t bytes = cu_bytes(0x006b5948u, 0x00152738u, n >> 16 * i);
            v[2 * i] =
                cu_fma_bf16x2(cu_bytes(bytes, 0x43434343u, 0x4140u), 0x3f803f80u, 0xc340c340u);
            v[2 * i + 1] =
                cu_fma_bf16x2(cu_bytes(bytes, 0x43434343u, 0x4342u), 0x3f803f80u, 0xc340c340u);
        }
    }
};

template <> struct row_scale<DSV4_IQ2_XXS> {
    const uint8_t *at;
    float d, dmin;
    CU_MEMBER void load(const uint8_t *chunk, const uint8_t *)
    {
        at = chunk;
        d = cu_half(cu_load16(chunk)) * 0.125f;
    }
    CU_MEMBER float block(int b) const
    {
        return (float)(2 * (cu_load16(at + 8 * b + 8) >> 12) + 1);
    }
};

/* ---- minima ---------------------------------------------------------------------------------- */

/* A's words of one row for the mma of the minima: slots 2t, 2t+1 and (Q2_K) 2t+8, 2t+9. */
template <int TYPE> struct row_minima {
    CU_MEMBER void load(const uint8_t *, int, uint32_t m[2])
    {
        m[0] = m[1] = 0;
    }
};

template <> struct row_minima<DSV4_Q4_K> {
    CU_MEMBER void load(const uint8_t *chunk, int t, uint32_t m[2])
    {
        uint32_t z = cu_word(chunk + 8), w = cu_word(chunk + 12);
        uint32_t four = t < 2 ? z & 0x3f3f3f3fu : (w >> 4 & 0x0f0f0f0fu) | (z >> 2 & 0x30303030u);
        m[0] = cu_small(four >> 16 * (t & 1), 0);
        m[1] = 0;
    }
};

template <> struct row_minima<DSV4_Q2_K> {
    CU_MEMBER void load(const uint8_t *chunk, int t, uint32_t m[2])
    {
        m[0] = cu_small(cu_load16(chunk + 2 * t) >> 4 & 0x0f0fu, 0);
        m[1] = cu_small(cu_load16(chunk + 8 + 2 * t) >> 4 & 0x0f0fu, 0);
    }
};

/* ---- mma ------------------------------------------------------------------------------------- */

#ifdef __CUDACC__
__device__ __forceinline__ void cu_mma16(float c[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void cu_mma8(float c[4], uint32_t a0, uint32_t a1, uint32_t b0)
{
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
}

/* The same from an accumulator of zero. */
__device__ __forceinline__ void cu_mma16_first(float c[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                               uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%10, %10, %10, %10};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(0.0f));
}

__device__ __forceinline__ void cu_mma8_first(float c[4], uint32_t a0, uint32_t a1, uint32_t b0)
{
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%7, %7, %7, %7};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(a0), "r"(a1), "r"(b0), "f"(0.0f));
}
#endif

#endif
