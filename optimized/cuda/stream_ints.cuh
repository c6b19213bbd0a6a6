/* stream_ints.cuh - tiles of 16 rows times one to a few tokens in whole numbers (ints.cuh), from
 * the ring that stream.cuh fills. Private to linear.cu. */
#ifndef DSV4_CUDA_STREAM_INTS_CUH
#define DSV4_CUDA_STREAM_INTS_CUH

#include "ints_dot_blocks.cuh"

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
                int column = (first + k * WARPS) * CU_CHUNK +
                             (cu_apart(TYPE) ? lane / 4 * 32 + t * 4 : 8 * lane);
                v[k][0] = v[k][1] = make_float4(0, 0, 0, 0);
                /* the last columns left out */
                int next = cu_apart(TYPE) ? 16 : 4;
                if (column < cols && !(MUTANT(11) && column + next + 4 >= cols)) {
                    v[k][0] = four_from(in, column / 4, aligned);
                    v[k][1] = four_from(in, (column + next) / 4, aligned);
                }
            }
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                int chunk = first + k * WARPS, at = token * chunks + chunk;
                if (chunk >= chunks)
                    break;
                float x[8] = {v[k][0].x, v[k][0].y, v[k][0].z, v[k][0].w,
                              v[k][1].x, v[k][1].y, v[k][1].z, v[k][1].w};
                if (cu_apart(TYPE)) {
                    x[1] = v[k][1].x, x[2] = v[k][0].y, x[3] = v[k][1].y;
                    x[4] = v[k][0].z, x[5] = v[k][1].z, x[6] = v[k][0].w;
                }
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

/* ---- a warp ---------------------------------------------------------------------------------- */

/* What streamer is, for units of whole chunks, and with as few instructions as can be: lanes walk
 * from unit to unit by adding. Scales beside the rows begin at the same place of a word in all of
 * them. */
template <int TYPE, int T, int WARPS> struct int_streamer {
    typedef int_unit<TYPE, T> U;
    enum {
        PAIRS = (T + 1) / 2,
        MAIN = U::MAIN,
        REST = U::REST,
        HEIGHT = 32 / (int)MAIN,
        LOWER = 32 / (int)REST
    };
    static_assert((int)U::COLS % CU_CHUNK == 0, "whole chunks");

    uint8_t *ring;
    int depth, tiles, stride, first, last; /* the warp's columns of a tile */
    /* What is copied next, into which slot: this lane's piece of row lane / MAIN, and of row
     * lane / REST; rows left from the tile's first. */
    const uint8_t *from, *rest;
    int64_t jump, down;        /* from behind a tile to the next one; HEIGHT rows */
    const uint8_t *from_scale; /* row lane % 16, word lane / 16 */
    int64_t jump_scale;
    int scale_low; /* of its first byte in its word */
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
        if (U::SCALE > 0) {
            int64_t bytes = (int64_t)g.w.scale_row_bytes;
            scale_low = (int)((uintptr_t)g.w.scale & 3);
            from_scale = g.w.scale + (g.w.row0 + tile * TILE + lane % 16) * bytes +
                         first * U::SCALE / U::COLS + lane / 16 * 4 - scale_low;
            jump_scale = stride * TILE * bytes - (last - first + U::COLS - 1) / U::COLS * U::SCALE;
        }
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

    __device__ __forceinline__ void copy_scales(int cols, uint8_t *room)
    {
        int lane = (int)threadIdx.x % 32, words = (scale_low + cols * U::SCALE / U::COLS + 3) / 4;
        uint32_t to = shared_address(room + TILE * U::STRIDE + lane % 16 * U::SCALE_STRIDE);
        if (lane % 16 < rows)
#pragma unroll
            for (int i = 0; i < ((int)U::SCALE_STRIDE / 4 + 1) / 2; i++)
                if (lane / 16 + 2 * i < words)
                    copy_4(to + (lane / 16 + 2 * i) * 4, from_scale + 8 * i);
        from_scale += U::SCALE;
    }

    /* Columns of the unit that begins at c. */
    __device__ __forceinline__ int cols_of(int c) const
    {
        return (int)U::COLS == CU_CHUNK || last - c > (int)U::COLS ? (int)U::COLS : last - c;
    }

    /* The next unit on its way into the slot that was read last; one group, empty at the end. */
    __device__ __forceinline__ void copy()
    {
        int lane = (int)threadIdx.x % 32;
        if (rows > 0 && first < last) {
            uint8_t *room = ring + slot * U::ROOM;
            int bytes = bytes_of(cols_of(col));
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
            if constexpr ((int)U::SCALE > 0)
                copy_scales(cols_of(col), room);
            from += U::BYTES;
            rest += U::BYTES;
            col += U::COLS;
            if (col >= last) {
                col = first;
                from += jump;
                rest += jump;
                if (U::SCALE > 0 && !MUTANT(32)) /* scales of the first tile for all */
                    from_scale += jump_scale;
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
            if (T == 1 && int_shape<TYPE>::BLOCKS && !MUTANT(33)) /* odd blocks: columns 4 .. 7 */
                x[j] += at / 4 * 8;
            sums[j] = r.sums + token * chunks * sums_bytes(TYPE) + at % 4 * int_shape<TYPE>::SUMS;
            if (4 * t < int_shape<TYPE>::SUMS) /* the other lanes have no minima */
                sums[j] += 4 * t;
            factors[j] = r.factors + (T == 1 ? 0 : 2 * j + t / 2) * chunks;
        }
        for (int k = g.block * groups + group; k < tiles; k += stride, turn++) {
            float total[PAIRS][2] = {}, odd[PAIRS][2] = {};
            for (int unit = first; unit < last; unit += U::COLS) {
                if (depth == SHALLOW)
                    copies_wait<SHALLOW - 1>();
                else
                    copies_wait<DEEP - 1>();
                __syncwarp();
                const uint8_t *a = ring + slot * U::ROOM + at * U::STRIDE, *b = a + 8 * U::STRIDE;
                const uint8_t *fa = ring + slot * U::ROOM + TILE * U::STRIDE +
                                    at * U::SCALE_STRIDE + (U::SCALE > 0 ? scale_low : 0);
                const uint8_t *fb = fa + 8 * U::SCALE_STRIDE;
                if (U::LOOSE) {
                    uint32_t begins =
                        data + (uint32_t)(k * TILE + at) * row_bytes + (uint32_t)bytes_of(unit);
                    a += begins & (PIECE - 1);
                    b += (begins + 8 * row_bytes) & (PIECE - 1);
                }
#pragma unroll 1
                for (int c = unit; c < unit + cols_of(unit); c += CU_CHUNK) {
                    int chunk = (int)((unsigned)c / CU_CHUNK);
                    const uint8_t *xc[PAIRS], *sc[PAIRS];
                    float f[PAIRS][2], factor[PAIRS];
#pragma unroll
                    for (int j = 0; j < PAIRS; j++) {
                        xc[j] = x[j] + chunk * LIMB_CHUNK;
                        sc[j] = sums[j] + chunk * sums_bytes(TYPE);
                    }
#pragma unroll
                    for (int j = 0; j < PAIRS; j++) {
                        /* the factor of the chunk before */
                        int of = MUTANT(26) && chunk > 0 ? chunk - 1 : chunk;
                        factor[j] = factors[j][of] * pair;
                        if (MUTANT(24) && chunk > 0 && chunk + 1 == chunks) /* last chunk lost */
                            factor[j] = 0;
                    }
                    if constexpr (int_shape<TYPE>::BLOCKS) {
                        int_blocks<TYPE, T>::dot(a, b, fa, fb, xc, factor, total, odd);
                    } else {
                        int_chunk<TYPE, PAIRS>::dot(a, b, xc, sc, r, f);
#pragma unroll
                        for (int j = 0; j < PAIRS; j++) {
                            total[j][0] += f[j][0] * factor[j];
                            total[j][1] += f[j][1] * factor[j];
                        }
                    }
                    a += row_shape<TYPE>::CHUNK_BYTES;
                    b += row_shape<TYPE>::CHUNK_BYTES;
                    fa += (int)U::SCALE * CU_CHUNK / U::COLS;
                    fb += (int)U::SCALE * CU_CHUNK / U::COLS;
                }
                __syncwarp(); /* all lanes are done with the unit's room */
                copy();
            }
            if constexpr (int_shape<TYPE>::BLOCKS)
#pragma unroll
                for (int j = 0; j < PAIRS; j++)
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        total[j][i] = int_blocks<TYPE, T>::meet(total[j][i], odd[j][i]);
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

/* As stream_rows, in whole numbers. */
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
