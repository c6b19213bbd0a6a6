/* ints_dot.cuh - a chunk of 256 columns of 16 rows times the limbs of a few tokens: what ints.cuh
 * says of each format, from a unit in shared memory. Private to linear.cu. */
#ifndef DSV4_CUDA_INTS_DOT_CUH
#define DSV4_CUDA_INTS_DOT_CUH

#include "stream.cuh"

__device__ __forceinline__ float joined(int high, int low)
{
    return fmaf(256.0f, (float)high, (float)low);
}

/* A chunk of rows a and b (g and g + 8) times x[j], limbs of pair j's token: f[j], less its factor.
 * sums[j]: the limbs' sums. */
template <int TYPE, int PAIRS> struct int_chunk;

/* m[j]: dmin times the minima (slots of a lane: ma, mb) times the limbs' sums. */
template <int SUMS, int PAIRS>
__device__ __forceinline__ void minima(float (*m)[2], float dmina, float dminb, uint32_t ma,
                                       uint32_t mb, const uint8_t *const *sums)
{
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
        int low[4], high[4];
        cu_mma_u8_half(low, ma, mb, cu_word(sums[j]));
        cu_mma_u8_half(high, ma, mb, cu_word(sums[j] + SUMS * LIMBS));
#pragma unroll
        for (int i = 0; i < 4; i++)
            low[i] += 256 * high[i];
        m[j][0] = dmina * joined(low[0], low[1]);
        m[j][1] = dminb * joined(low[2], low[3]);
    }
}

/* Thirty-two bytes are two blocks, low nibbles and high ones; those stay where they are. */
template <int PAIRS> struct int_chunk<DSV4_Q4_K, PAIRS> {
    static __device__ __forceinline__ void dot(const uint8_t *a, const uint8_t *b,
                                               const uint8_t *const *x, const uint8_t *const *sums,
                                               const gemv_room &, float (*f)[2])
    {
        int t = (int)threadIdx.x % 4, even[PAIRS][4] = {}, odd[PAIRS][4] = {};
        uint4 ha = *(const uint4 *)(const void *)a, hb = *(const uint4 *)(const void *)b;
        uint32_t heads[2][4] = {{ha.x, ha.y, ha.z, ha.w}, {hb.x, hb.y, hb.z, hb.w}};
        uint32_t sa[2], sb[2];
        float m[PAIRS][2], fda = cu_half(ha.x & 0xffffu) * 0.0625f;
        float fdb = cu_half(hb.x & 0xffffu) * 0.0625f;
        minima<8, PAIRS>(m, cu_half(ha.x >> 16), cu_half(hb.x >> 16), cu_q4_k_minima(heads[0], t),
                         cu_q4_k_minima(heads[1], t), sums);
        cu_q4_k_scales(heads[0], sa);
        cu_q4_k_scales(heads[1], sb);
        if (MUTANT(27)) /* scales of the first half of a chunk for both */
            sa[1] = sa[0];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint2 wa = *(const uint2 *)(const void *)(a + 16 + 32 * i + 8 * t);
            uint2 wb = *(const uint2 *)(const void *)(b + 16 + 32 * i + 8 * t);
            int fa[2], fb[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                fa[h] = (int)cu_byte(sa[i / 2], 2 * i % 4 + h);
                fb[h] = (int)cu_byte(sb[i / 2], 2 * i % 4 + h);
            }
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                uint4 p = *(const uint4 *)(const void *)(x[j] + 256 * i);
                const uint32_t low = 0x0f0f0f0fu, high = 0xf0f0f0f0u;
                int c[4];
                cu_mma_u8(c, wa.x & low, wb.x & low, wa.y & low, wb.y & low, p.x, p.y);
                even[j][0] += c[0] * fa[0];
                even[j][1] += c[1] * fa[0];
                even[j][2] += c[2] * fb[0];
                even[j][3] += c[3] * fb[0];
                cu_mma_u8(c, wa.x & high, wb.x & high, wa.y & high, wb.y & high, p.z, p.w);
                odd[j][0] += c[0] * fa[1];
                odd[j][1] += c[1] * fa[1];
                odd[j][2] += c[2] * fb[1];
                odd[j][3] += c[3] * fb[1];
            }
        }
#pragma unroll
        for (int j = 0; j < PAIRS; j++) { /* sixteenfold: below 2^29 */
#pragma unroll
            for (int i = 0; i < 4; i++)
                odd[j][i] += 16 * even[j][i];
            f[j][0] = fmaf(fda, joined(odd[j][0], odd[j][1]), -m[j][0]);
            f[j][1] = fmaf(fdb, joined(odd[j][2], odd[j][3]), -m[j][1]);
        }
    }
};

/* Two bits of a byte times the scale of 16 columns stay in it: codes up to 45, or 180 where they
 * are two bits up, and those have sums of their own. */
template <int PAIRS> struct int_chunk<DSV4_Q2_K, PAIRS> {
    static __device__ __forceinline__ uint32_t scales(const uint8_t *p, int half, int t)
    {
        return cu_bytes(cu_word(p + 8 * half), cu_word(p + 8 * half + 4),
                        t < 2 ? 0x6420u : 0x7531u) &
               0x0f0f0f0fu;
    }
    static __device__ __forceinline__ void dot(const uint8_t *a, const uint8_t *b,
                                               const uint8_t *const *x, const uint8_t *const *sums,
                                               const gemv_room &, float (*f)[2])
    {
        int t = (int)threadIdx.x % 4, one[PAIRS][4] = {}, four[PAIRS][4] = {};
        uint32_t da = cu_word(a + 80), db = cu_word(b + 80);
        float m[PAIRS][2], fda = cu_half(da & 0xffffu) * 0.25f, fdb = cu_half(db & 0xffffu) * 0.25f;
        minima<16, PAIRS>(m, cu_half(da >> 16), cu_half(db >> 16),
                          cu_word(a + 4 * t) >> 4 & 0x0f0f0f0fu,
                          cu_word(b + 4 * t) >> 4 & 0x0f0f0f0fu, sums);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint8_t *ca = a + 16 + 32 * half + 8 * t, *cb = b + 16 + 32 * half + 8 * t;
            uint32_t w[4] = {cu_word(ca), cu_word(cb), cu_word(ca + 4), cu_word(cb + 4)};
            uint32_t sa = scales(a, half, t), sb = scales(b, half, t);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t low[4], high[4];
#pragma unroll
                for (int m = 0; m < 4; m++) {
                    uint32_t s = m % 2 ? sb : sa, up = w[m] >> 4 * i;
                    low[m] = (up & 0x03030303u) * cu_byte(s, 2 * i);
                    high[m] = (up & 0x0c0c0c0cu) * cu_byte(s, 2 * i + 1);
                }
#pragma unroll
                for (int j = 0; j < PAIRS; j++) {
                    uint4 p = *(const uint4 *)(const void *)(x[j] + 256 * (2 * half + i));
                    cu_mma_u8_add(one[j], low[0], low[1], low[2], low[3], p.x, p.y);
                    cu_mma_u8_add(four[j], high[0], high[1], high[2], high[3], p.z, p.w);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                four[j][i] += 4 * one[j][i];
            f[j][0] = fmaf(fda, joined(four[j][0], four[j][1]), -m[j][0]);
            f[j][1] = fmaf(fdb, joined(four[j][2], four[j][3]), -m[j][1]);
        }
    }
};

/* Where a lane's copies of IQ2_XXS's words are, of the book's first and of the signs' first. */
__device__ __forceinline__ uint32_t iq2_book(const gemv_room &r)
{
    return 4 * threadIdx.x & (r.iq2_stride - 1);
}

__device__ __forceinline__ uint32_t iq2_signs(const gemv_room &r)
{
    return 4 * threadIdx.x % IQ2_STRIDE + 256 * r.iq2_stride;
}

/* Groups of eight bytes from an even address: four indices, then signs and scale in a word, which
 * may lie across two. */
template <int PAIRS> struct int_chunk<DSV4_IQ2_XXS, PAIRS> {
    /* What a lane needs of a row whose chunk begins at p. */
    struct row {
        const uint8_t *index, *low, *high; /* of the first group */
        uint32_t turn, down;
        explicit __device__ __forceinline__ row(const uint8_t *p)
        {
            uint32_t t = threadIdx.x % 4, half = (uint32_t)(uintptr_t)(p + 2) & 2u;
            turn = 7 * t + 8 * half - 7; /* seven bits at 7 t, times IQ2_STRIDE */
            down = 27 - 8 * half;
            asm("" : "+r"(half), "+r"(turn), "+r"(down)); /* once, not in every turn of the loop */
            index = p + 2 + t;
            low = p + 6 - half;
            high = MUTANT(47) ? low : p + 6 + half; /* the first half of a word that lies in two */
        }
        /* A nibble a column, and the scale. book, signs: where the lane's words are in a row of the
         * table. */
        __device__ __forceinline__ void load(int i, const gemv_room &r, uint32_t book,
                                             uint32_t signs, uint32_t *n, int *scale) const
        {
            uint32_t a = cu_word(low + 8 * i), b = cu_word(high + 8 * i);
            uint32_t w = cu_word(r.iq2 + (index[8 * i] * r.iq2_stride + book));
            uint32_t s = cu_word(r.iq2 + (__funnelshift_r(a, b, turn) & 127 * IQ2_STRIDE) + signs);
            if (MUTANT(28) && threadIdx.x % 4 == 3) /* a lane's signs dropped */
                s = 0;
            *n = w + s;
            *scale = (int)((b >> down & 30u) | 1u);
        }
    };
    static __device__ __forceinline__ void dot(const uint8_t *a, const uint8_t *b,
                                               const uint8_t *const *x, const uint8_t *const *,
                                               const gemv_room &r, float (*f)[2])
    {
        uint32_t book = iq2_book(r), signs = iq2_signs(r);
        int sum[PAIRS][4] = {};
        row ra(a), rb(b);
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            uint32_t na[2], nb[2];
            int fa[2], fb[2];
#pragma unroll
            for (int k = 0; k < 2; k++) {
                ra.load(i + k, r, book, signs, &na[k], &fa[k]);
                rb.load(i + k, r, book, signs, &nb[k], &fb[k]);
            }
            uint32_t va[2][2], vb[2][2];
#pragma unroll
            for (int k = 0; k < 2; k++) {
                cu_iq2_codes(na[k], va[k]);
                cu_iq2_codes(nb[k], vb[k]);
            }
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                uint4 p = *(const uint4 *)(const void *)(x[j] + 128 * i);
                int c[2][4];
                cu_mma_s8(c[0], va[0][0], vb[0][0], va[0][1], vb[0][1], p.x, p.y);
                cu_mma_s8(c[1], va[1][0], vb[1][0], va[1][1], vb[1][1], p.z, p.w);
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    sum[j][0] += c[k][0] * fa[k];
                    sum[j][1] += c[k][1] * fa[k];
                    sum[j][2] += c[k][2] * fb[k];
                    sum[j][3] += c[k][3] * fb[k];
                }
            }
        }
        float da = cu_half(cu_load16(a)) * 0.125f, db = cu_half(cu_load16(b)) * 0.125f;
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            f[j][0] = da * joined(sum[j][0], sum[j][1]);
            f[j][1] = db * joined(sum[j][2], sum[j][3]);
        }
    }
};

/* Of one token (cu_block_each) two blocks share two mma: lanes t = 0, 1 have the first and the
 * second half of one block, columns 0 .. 3 of B its limbs; t = 2, 3 and columns 4 .. 7 the block
 * beside it. A lane then reads one block's scale, and one word of signs for two groups. Lanes of B
 * whose slots belong to the other block are 0: with ZEROS they read zeros, else nothing. At the end
 * lanes t and t ^ 2 add up their sums, which are whole numbers: the order is that of several
 * tokens.
 *
 * Which instruction does what is a matter of which units are free: bytes of indices are multiplied
 * and added to an address by dp4a, halves of words moved down by dp2a, beside the permutations and
 * shifts, whose unit is the busier one. */
struct iq2_one {
    enum { PAIRS = 4 };
    /* What no chunk changes: the lane's place among the tables' copies and in a block; an eight
     * that the compiler does not know: a mask and a bit to set are one instruction then. */
    uint32_t book, signs, place, odd, eight;
    bool mine, below; /* this lane's slots of B are its column's; its row is b */
    int step;         /* bytes from the first pair to the second, from either to two further: 32 */
    const uint8_t *limbs[2]; /* the lane's x of these, of the first chunk */

    /* Rows that begin in the middle of 16 bytes by turns have blocks b and b + 2 as pairs, others b
     * and b + 1: the lanes' loads meet in no bank. */
    __device__ __forceinline__ void start(const gemv_room &r, size_t row_bytes)
    {
        /* Not worked out again in every turn: the compiler does not know that this is 0. */
        uint32_t zero = r.iq2_stride & 8, lane = threadIdx.x + zero, t = lane % 4;
        uint32_t column = lane / 4 % 8, next = row_bytes % PIECE == 8 ? 2 : 1;
        book = iq2_book(r);
        signs = iq2_signs(r);
        place = 2 + t / 2 * next * 8;
        step = next == 2 ? 8 : 16;
        odd = t % 2;
        eight = 8 + zero;
        mine = column / 4 == t / 2;
        below = t >= 2;
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t block = i * (3 - next) + (MUTANT(33) ? 0 : column / 4 * next);
            limbs[i] = r.x + cu_limb_place(block, column % 4) + odd * 16;
        }
    }

    /* A chunk of rows a and b = a + down, and of TILES tiles of such, `next` bytes apart, all
     * aligned alike: d times the sum of the lane's pair of limbs, of row a in lanes t = 0, 1, of b
     * in the others. stride: r.iq2_stride. */
    template <int TILES>
    __device__ __forceinline__ void dot(const gemv_room &r, uint32_t stride, const uint8_t *a,
                                        int down, int next, int chunk, float (&f)[TILES]) const
    {
        const uint32_t which = 127 * IQ2_STRIDE;
        uint32_t half = (uint32_t)(uintptr_t)(a + 2) & 2u, turn = 14 * odd + 8 * half;
        uint32_t top = 1u << (24 - 8 * half); /* the byte of a word's end that has the scale */
        int x_at = chunk * LIMB_CHUNK, sum[TILES][4] = {};
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            uint4 x = make_uint4(0, 0, 0, 0);
            if (mine)
                x = *(const uint4 *)(const void *)(limbs[i % 2] + x_at + i / 2 * 512);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                const uint8_t *row = a + tile * next + place;
                const uint8_t *index = row + 2 * odd, *low = row + 4 - half;
                /* the first half of a word that lies in two */
                const uint8_t *high = MUTANT(47) ? low : row + 4 + half;
                uint32_t v[2][2][2];
                int c[4], scale[2];
#pragma unroll
                for (int k = 0; k < 2; k++) { /* rows */
                    int at = i % 2 * step + i / 2 * 32 + k * down;
                    uint32_t two = cu_load16(index + at), end = cu_word(high + at), level[2],
                             sign[2];
                    uint32_t s = __funnelshift_r(cu_word(low + at), end, turn);
                    level[0] = cu_word(r.iq2 + __dp4a(two, stride, book));
                    level[1] = cu_word(r.iq2 + __dp4a(two, stride << 8, book));
                    sign[0] = cu_word(r.iq2 + ((s * IQ2_STRIDE & which) | signs));
                    sign[1] = cu_word(r.iq2 + ((s & which) | signs));
                    if (MUTANT(28) && threadIdx.x % 4 == 3) /* a lane's signs dropped */
                        sign[0] = sign[1] = 0;
                    scale[k] = (int)((__dp4a(end, top, 0u) & 0xf0u) | eight); /* eightfold */
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        uint32_t n = level[h] + sign[h];
                        v[h][k][0] = cu_iq2_four(n);
                        v[h][k][1] = cu_iq2_four(__dp2a_lo(n, 0x100u, 0u));
                    }
                }
                cu_mma_s8(c, v[0][0][0], v[0][1][0], v[0][0][1], v[0][1][1], x.x, x.y);
                cu_mma_s8_add(c, v[1][0][0], v[1][1][0], v[1][0][1], v[1][1][1], x.z, x.w);
#pragma unroll
                for (int k = 0; k < 4; k++)
                    sum[tile][k] += c[k] * scale[k / 2];
            }
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            int keep[2];
#pragma unroll
            for (int k = 0; k < 2; k++) {
                keep[k] = below ? sum[tile][2 + k] : sum[tile][k];
                keep[k] += __shfl_xor_sync(0xffffffffu, below ? sum[tile][k] : sum[tile][2 + k], 2);
            }
            float d = cu_half(cu_load16(a + tile * next + (below ? down : 0))) * 0.015625f;
            f[tile] = d * joined(keep[0], keep[1]);
        }
    }
};

#endif
