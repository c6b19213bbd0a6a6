/* stream_ints.cuh - tiles of 16 rows times one to a few tokens in whole numbers (ints.cuh), from
 * the ring that stream.cuh fills. Private to linear.cu. */
#ifndef DSV4_CUDA_STREAM_INTS_CUH
#define DSV4_CUDA_STREAM_INTS_CUH

#include "stream.cuh"

/* ---- x --------------------------------------------------------------------------------------- */

/* A warp a chunk of a token: limbs, their sums, the factor. */
template <int TYPE, int T, int WARPS>
__device__ __forceinline__ void limb_vectors(const gemv_job &g, const gemv_room &r)
{
    enum { SUMS = int_shape<TYPE>::SUMS, AHEAD = T == 1 && WARPS < 16 ? 4 : 2 };
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, t = lane % 4;
    int cols = (int)g.w.cols, chunks = (cols + CU_CHUNK - 1) / CU_CHUNK;
#pragma unroll 1
    for (int token = 0; token < T; token++) {
        const float *in = g.x[token];
        bool aligned = (uintptr_t)in % 16 == 0;
#pragma unroll 1
        for (int first = warp; first < chunks; first += AHEAD * WARPS) {
            float4 v[AHEAD][2];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                int column = (first + k * WARPS) * CU_CHUNK + 8 * lane;
                v[k][0] = v[k][1] = make_float4(0, 0, 0, 0);
                /* the last columns left out */
                if (column < cols && !(MUTANT(11) && column + 8 >= cols)) {
                    v[k][0] = four_from(in, column / 4, aligned);
                    v[k][1] = four_from(in, column / 4 + 1, aligned);
                }
            }
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                int chunk = first + k * WARPS, at = token * chunks + chunk;
                if (chunk >= chunks)
                    break;
                float x[8] = {v[k][0].x, v[k][0].y, v[k][0].z, v[k][0].w,
                              v[k][1].x, v[k][1].y, v[k][1].z, v[k][1].w};
                uint32_t most = 0, w[2][LIMBS];
#pragma unroll
                for (int i = 0; i < 8; i++)
                    most = max(most, __float_as_uint(x[i]) & 0x7fffffffu);
                most = __reduce_max_sync(0xffffffffu, most);
                int n = cu_fixed_power(most);
                float one = cu_two_to(n / 2), two = cu_two_to(n - n / 2);
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int32_t q[4];
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        q[i] = __float2int_rn(x[4 * h + i] * one * two);
                    cu_limbs(q, w[h]);
                    if (MUTANT(23)) /* a part of x lost */
                        w[h][1] = 0;
                }
                uint8_t *to = r.x + at * LIMB_CHUNK + lane / 8 * 256 + t * 16 + lane / 4 % 2 * 8;
#pragma unroll
                for (int l = 0; l < LIMBS; l++)
                    *(uint2 *)(void *)(to + 64 * l) = make_uint2(w[0][l], w[1][l]);
                if (lane == 0)
                    r.factors[at] =
                        most < 0x7f800000u ? cu_two_to(-n) : __uint_as_float(0x7fc00000u);
                if constexpr (SUMS > 0) {
                    /* Two limbs' sums in a word: they stay below 2^15. */
                    int s[LIMBS];
#pragma unroll
                    for (int l = 0; l < LIMBS; l++)
                        s[l] =
                            __dp4a((int)w[0][l], 0x01010101, __dp4a((int)w[1][l], 0x01010101, 0));
                    int pair[2] = {s[0] + (s[1] << 16), s[2] + (s[3] << 16)};
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        pair[i] += __shfl_xor_sync(0xffffffffu, pair[i], 1);
                        if (SUMS == 8)
                            pair[i] += __shfl_xor_sync(0xffffffffu, pair[i], 2);
                    }
                    int slot = lane / (32 / SUMS);
                    /* the last sum stale */
                    bool stale = MUTANT(25) && chunk + 1 == chunks && slot == SUMS - 1;
                    uint8_t *sums = r.sums + at * sums_bytes(TYPE) + slot;
#pragma unroll
                    for (int l = 0; l < LIMBS; l++) {
                        int low = (int16_t)pair[l / 2];
                        int sum = l % 2 ? (pair[l / 2] - low) >> 16 : low;
                        if (lane % (32 / SUMS) == l % (32 / SUMS) && !stale) {
                            sums[SUMS * l] = (uint8_t)sum;
                            sums[SUMS * (LIMBS + l)] = (uint8_t)((sum + 128) >> 8);
                        }
                    }
                }
            }
        }
    }
}

/* ---- a chunk --------------------------------------------------------------------------------- */

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

__device__ __forceinline__ uint32_t word_at(uint32_t shared)
{
    uint32_t w;
    asm("ld.shared.u32 %0, [%1];" : "=r"(w) : "r"(shared));
    return w;
}

/* Groups of eight bytes from an even address: four indices, then signs and scale in a word, which
 * is whole where the address is a multiple of four. */
template <int PAIRS> struct int_chunk<DSV4_IQ2_XXS, PAIRS> {
    template <bool WHOLE>
    static __device__ __forceinline__ void row(const uint8_t *group, uint32_t stride, uint32_t book,
                                               uint32_t v[2], int *scale)
    {
        uint32_t t = threadIdx.x % 4, half = WHOLE ? 0 : (uint32_t)(uintptr_t)group & 2u;
        uint32_t word = cu_word(group + 4 - half);
        if (!WHOLE)
            word = cu_funnel(word, cu_word(group + 8 - half), 8 * half);
        uint32_t n = word_at(group[t] * stride + book);
        uint32_t signs = word_at((word >> 7 * t & 127u) * stride + (book + 256 * stride));
        if (!(MUTANT(28) && t == 3)) /* a lane's signs dropped */
            n ^= signs;
        cu_iq2_codes(n, v);
        *scale = (int)(word >> 27 | 1u);
    }
    template <bool WHOLE>
    static __device__ __forceinline__ void sum(const uint8_t *a, const uint8_t *b,
                                               const uint8_t *const *x, const gemv_room &r,
                                               float (*f)[2])
    {
        uint32_t book = shared_address(r.iq2) + (threadIdx.x * 4 & (r.iq2_stride - 1));
        int sum[PAIRS][4] = {};
        uint4 p[PAIRS];
#pragma unroll(PAIRS == 1 ? 4 : 8) /* that it stays in the nearest cache */
        for (int i = 0; i < 8; i++) {
            uint32_t va[2], vb[2];
            int fa, fb;
            row<WHOLE>(a + 2 + 8 * i, r.iq2_stride, book, va, &fa);
            row<WHOLE>(b + 2 + 8 * i, r.iq2_stride, book, vb, &fb);
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                int c[4];
                if (i % 2 == 0)
                    p[j] = *(const uint4 *)(const void *)(x[j] + 128 * i);
                cu_mma_s8(c, va[0], vb[0], va[1], vb[1], i % 2 ? p[j].z : p[j].x,
                          i % 2 ? p[j].w : p[j].y);
                sum[j][0] += c[0] * fa;
                sum[j][1] += c[1] * fa;
                sum[j][2] += c[2] * fb;
                sum[j][3] += c[3] * fb;
            }
        }
        float da = cu_half(cu_load16(a)) * 0.125f, db = cu_half(cu_load16(b)) * 0.125f;
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            f[j][0] = da * joined(sum[j][0], sum[j][1]);
            f[j][1] = db * joined(sum[j][2], sum[j][3]);
        }
    }
    static __device__ __forceinline__ void dot(const uint8_t *a, const uint8_t *b,
                                               const uint8_t *const *x, const uint8_t *const *,
                                               const gemv_room &r, float (*f)[2])
    {
        uint32_t half = ((uint32_t)(uintptr_t)(a + 2) | (uint32_t)(uintptr_t)(b + 2)) & 2u;
        if (__any_sync(0xffffffffu, half != 0))
            sum<false>(a, b, x, r, f);
        else
            sum<true>(a, b, x, r, f);
    }
};

/* ---- a warp ---------------------------------------------------------------------------------- */

/* What streamer is, for units of whole chunks of types without scales beside them, and with as few
 * instructions as can be: lanes walk from unit to unit by adding. */
template <int TYPE, int T, int WARPS> struct int_streamer {
    typedef unit_shape<TYPE> U;
    enum {
        PAIRS = (T + 1) / 2,
        MAIN = U::PIECES < 16 ? 8 : 16, /* lanes that copy a row, and those for its rest */
        REST = U::PIECES - (int)MAIN > 2 ? 4 : 2,
        HEIGHT = 32 / MAIN,
        LOWER = 32 / REST
    };
    static_assert((int)U::COLS % CU_CHUNK == 0, "whole chunks");
    static_assert((int)U::PIECES <= MAIN + REST, "lanes for all pieces");
    static_assert((int)U::SCALE == 0, "no scales beside the rows");

    uint8_t *ring;
    int depth, tiles, stride, first, last; /* the warp's columns of a tile */
    /* What is copied next, into which slot: this lane's piece of row lane / MAIN, and of row
     * lane / REST; rows left from the tile's first. */
    const uint8_t *from, *rest;
    int64_t jump, down; /* from behind a tile to the next one; HEIGHT rows */
    int col, rows, slot;
    bool plain; /* all rows are aligned alike */

    static __device__ __forceinline__ int bytes_of(int cols)
    {
        return cols * (int)row_shape<TYPE>::CHUNK_BYTES / CU_CHUNK;
    }

    __device__ __forceinline__ void start(const gemv_job &g, const gemv_room &r)
    {
        int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, split = g.plan.split;
        int groups = WARPS / split, share = warp % split, cols = (int)g.w.cols;
        int chunks = (cols + CU_CHUNK - 1) / CU_CHUNK, tile = g.block * groups + warp / split;
        int64_t row_bytes = (int64_t)g.w.row_bytes;
        depth = g.plan.depth;
        ring = r.ring + warp * (depth * U::ROOM);
        tiles = (int)((g.w.rows + TILE - 1) / TILE);
        stride = g.blocks * groups;
        first = share * chunks / split * CU_CHUNK;
        last = (share + 1) * chunks / split * CU_CHUNK;
        last = last < cols ? last : cols;
        const uint8_t *data = g.w.data + tile * TILE * row_bytes + bytes_of(first);
        from = data + lane / MAIN * row_bytes + lane % MAIN * PIECE;
        rest = data + lane / REST * row_bytes + (MAIN + lane % REST) * PIECE;
        down = HEIGHT * row_bytes;
        jump = stride * TILE * row_bytes - (last - first + U::COLS - 1) / U::COLS * U::BYTES;
        col = first;
        rows = (int)g.w.rows - tile * TILE;
        slot = 0;
        plain = row_bytes % PIECE == 0;
    }

    /* Behind the tail of a matrix, or where rows are not aligned alike. */
    template <int LANES, int FIRST>
    __device__ __forceinline__ void copy_some(const uint8_t *at, int bytes, uint8_t *room,
                                              int64_t row_bytes) const
    {
        int lane = (int)threadIdx.x % 32, piece = (FIRST + lane % LANES) * PIECE;
#pragma unroll 1
        for (int r = lane / LANES; r < TILE && r < rows; r += 32 / LANES) {
            int off = (int)((uintptr_t)at & (PIECE - 1));
            if (piece < off + bytes)
                copy_16(shared_address(room + r * U::STRIDE + piece), at - off);
            at += 32 / LANES * row_bytes;
        }
    }

    /* The next unit on its way into the slot that was read last; one group, empty at the end. */
    __device__ __forceinline__ void copy()
    {
        int lane = (int)threadIdx.x % 32;
        if (rows > 0 && first < last) {
            uint8_t *room = ring + slot * U::ROOM;
            int bytes = bytes_of(last - col < U::COLS ? last - col : U::COLS);
            if (plain && rows >= TILE) {
                int off = U::LOOSE ? (int)((uintptr_t)from & (PIECE - 1)) : 0;
                uint32_t to = shared_address(room);
                if (lane % MAIN * PIECE < off + bytes) {
                    const uint8_t *p = from - off;
                    uint32_t at = to + lane / MAIN * U::STRIDE + lane % MAIN * PIECE;
#pragma unroll
                    for (int i = 0; i < TILE / HEIGHT; i++, p += down)
                        copy_16(at + i * HEIGHT * U::STRIDE, p);
                }
                if (U::PIECES > MAIN && (MAIN + lane % REST) * PIECE < off + bytes) {
                    const uint8_t *p = rest - off;
                    uint32_t at = to + lane / REST * U::STRIDE + (MAIN + lane % REST) * PIECE;
#pragma unroll
                    for (int i = 0; i < TILE / LOWER; i++, p += down * LOWER / HEIGHT)
                        copy_16(at + i * LOWER * U::STRIDE, p);
                }
            } else {
                copy_some<MAIN, 0>(from, bytes, room, down / HEIGHT);
                if (U::PIECES > MAIN)
                    copy_some<REST, MAIN>(rest, bytes, room, down / HEIGHT);
            }
            from += U::BYTES;
            rest += U::BYTES;
            col += U::COLS;
            if (col >= last) {
                col = first;
                from += jump;
                rest += jump;
                rows -= stride * TILE;
            }
        }
        slot = slot + 1 == depth ? 0 : slot + 1;
        copies_end();
    }

    static __device__ __forceinline__ void put(const gemv_job &g, int at, int r, int token, float v)
    {
        int64_t n = (int64_t)at * TILE + r;
        if (token < g.tokens && n < g.w.rows)
            g.y[T == 1 ? 0 : token][n] = maybe_bf16(v, g.bf16);
    }

    /* All tiles of the warp. */
    __device__ __forceinline__ void multiply(const gemv_job &g, const gemv_room &r)
    {
        int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, t = lane % 4, at = lane / 4;
        int split = g.plan.split, groups = WARPS / split, group = warp / split;
        int share = warp % split, turn = 0;
        int chunks = ((int)g.w.cols + CU_CHUNK - 1) / CU_CHUNK;
        uint32_t row_bytes = (uint32_t)g.w.row_bytes, data = (uint32_t)(uintptr_t)g.w.data;
        /* Column n of B is limb n % 4 of the pair's token n / 4; the only token's twice. */
        const uint8_t *x[PAIRS], *sums[PAIRS];
        const float *factors[PAIRS]; /* of the lane's sums: columns 2t, 2t + 1 */
        float pair = t % 2 == 0 ? 65536.0f : 1.0f;
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            int token = T == 1 ? 0 : 2 * j + at / 4;
            x[j] = r.x + token * chunks * LIMB_CHUNK + at % 4 * 64 + t * 16;
            sums[j] = r.sums + token * chunks * sums_bytes(TYPE) + at % 4 * int_shape<TYPE>::SUMS;
            if (4 * t < int_shape<TYPE>::SUMS) /* the other lanes have no minima */
                sums[j] += 4 * t;
            factors[j] = r.factors + (T == 1 ? 0 : 2 * j + t / 2) * chunks;
        }
        for (int k = g.block * groups + group; k < tiles; k += stride, turn++) {
            float total[PAIRS][2] = {};
            for (int unit = first; unit < last; unit += U::COLS) {
                if (depth == SHALLOW)
                    copies_wait<SHALLOW - 1>();
                else
                    copies_wait<DEEP - 1>();
                __syncwarp();
                const uint8_t *a = ring + slot * U::ROOM + at * U::STRIDE, *b = a + 8 * U::STRIDE;
                if (U::LOOSE) {
                    uint32_t begins =
                        data + (uint32_t)(k * TILE + at) * row_bytes + (uint32_t)bytes_of(unit);
                    a += begins & (PIECE - 1);
                    b += (begins + 8 * row_bytes) & (PIECE - 1);
                }
#pragma unroll 1
                for (int c = unit; c < unit + U::COLS && c < last; c += CU_CHUNK) {
                    int chunk = c / CU_CHUNK;
                    const uint8_t *xc[PAIRS], *sc[PAIRS];
                    float f[PAIRS][2];
#pragma unroll
                    for (int j = 0; j < PAIRS; j++) {
                        xc[j] = x[j] + chunk * LIMB_CHUNK;
                        sc[j] = sums[j] + chunk * sums_bytes(TYPE);
                    }
                    int_chunk<TYPE, PAIRS>::dot(a, b, xc, sc, r, f);
#pragma unroll
                    for (int j = 0; j < PAIRS; j++) {
                        /* the factor of the chunk before */
                        int of = MUTANT(26) && chunk > 0 ? chunk - 1 : chunk;
                        float factor = factors[j][of] * pair;
                        if (MUTANT(24) && chunk > 0 && chunk + 1 == chunks) /* last chunk lost */
                            factor = 0;
                        total[j][0] += f[j][0] * factor;
                        total[j][1] += f[j][1] * factor;
                    }
                    a += row_shape<TYPE>::CHUNK_BYTES;
                    b += row_shape<TYPE>::CHUNK_BYTES;
                }
                __syncwarp(); /* all lanes are done with the unit's room */
                copy();
            }
            if (split == 1) {
#pragma unroll
                for (int j = 0; j < PAIRS; j++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float v = total[j][i] + __shfl_xor_sync(0xffffffffu, total[j][i], 1);
                        if (t % 2 == 0)
                            put(g, k, at + 8 * i, 2 * j + t / 2, v);
                    }
                continue;
            }
            /* [share][token][pair of limbs][row] */
            float *part = r.parts + (size_t)((turn & 1) * groups + group) * split * T * 2 * TILE;
#pragma unroll
            for (int j = 0; j < PAIRS; j++)
                if (2 * j + t / 2 < T) {
                    float *to = part + ((share * T + 2 * j + t / 2) * 2 + t % 2) * TILE + at;
                    to[0] = total[j][0];
                    to[8] = total[j][1];
                }
            asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "r"(32 * split) : "memory");
            if (turn % split == share)
#pragma unroll
                for (int n = lane; n < T * 2 * TILE; n += 32) {
                    float v = 0;
                    for (int i = 0; i < split; i++)
                        v += part[i * T * 2 * TILE + n];
                    v += __shfl_xor_sync(0xffffffffu, v, 16);
                    if (lane < TILE)
                        put(g, k, lane, n / (2 * TILE), v);
                }
        }
    }
};

/* As stream_rows, for the types that have int_chunk. */
template <int TYPE, int T, int WARPS>
__device__ __forceinline__ void stream_ints(const gemv_job &g, const gemv_room &r, bool before,
                                            const cu_iq2_words *words)
{
    int_streamer<TYPE, T, WARPS> s;
    s.start(g, r);
#pragma unroll 1
    for (int i = 0; i < s.depth; i++)
        s.copy();
    if (TYPE == DSV4_IQ2_XXS) { /* every word once for each lane, or for every other one */
        int each = (int)r.iq2_stride / 16;
        for (int i = threadIdx.x; i < 384 * each; i += WARPS * 32) {
            int n = i / each;
            uint32_t v = __ldg(n < 256 ? words->book[n] : words->signs[n - 256]);
            *(uint4 *)(void *)(r.iq2 + 16 * i) = make_uint4(v, v, v, v);
        }
    }
    if (before)
        wait_for_previous();
    if (MUTANT(13) && threadIdx.x / 32 == WARPS - 1) /* a warp that comes late */
        __nanosleep(20000);
    limb_vectors<TYPE, T, WARPS>(g, r);
    if (!MUTANT(13)) /* missing barrier: the vectors are read while they are written */
        __syncthreads();
    s.multiply(g, r);
}

#endif
