/* stream_ints.cuh - tiles of 16 rows times one to a few tokens in whole numbers (ints.cuh), from
 * the ring that stream.cuh fills. Private to linear.cu. */
#ifndef DSV4_CUDA_STREAM_INTS_CUH
#define DSV4_CUDA_STREAM_INTS_CUH

#include "ints_dot_blocks.cuh"

/* ---- x --------------------------------------------------------------------------------------- */

/* The larger magnitude, or NaN. */
__device__ __forceinline__ float larger(float a, float b)
{
    float m;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(fabsf(a)), "f"(fabsf(b)));
    return m;
}

/* The largest magnitude of a chunk, eight columns of a lane, as bits; more if one is NaN. */
__device__ __forceinline__ uint32_t most_of(const float x[8])
{
    float m = larger(larger(larger(x[0], x[1]), larger(x[2], x[3])),
                     larger(larger(x[4], x[5]), larger(x[6], x[7])));
    return __reduce_max_sync(0xffffffffu, __float_as_uint(m));
}

/* Eight columns of a lane: limbs, their sums, the chunk's factor. */
template <int TYPE, int T>
__device__ __forceinline__ void limb_chunk(float x[8], uint32_t most, uint8_t *limbs, uint8_t *sums,
                                           float *factor, bool stale)
{
    enum { SUMS = int_shape<TYPE>::SUMS, LANES = SUMS > 0 ? 32 / SUMS : 1 /* of a sum */ };
    int lane = (int)threadIdx.x % 32, t = lane % 4;
    uint32_t w[2][LIMBS];
    int n = cu_fixed_power(most);
    if (n > 127) /* of all lanes; 2^n is no float */
#pragma unroll
        for (int i = 0; i < 8; i++)
            x[i] *= 0x1p64f;
    float scale = __uint_as_float((uint32_t)(n > 127 ? n + 63 : n + 127) << 23);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t u[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            u[i] = cu_fixed(x[4 * h + i] * scale);
        cu_limbs(u, w[h]);
        if (MUTANT(23)) /* a part of x lost */
            w[h][1] = 0;
    }
#pragma unroll
    for (int l = 0; l < LIMBS; l++) {
        uint32_t to = cu_block_each(TYPE, T)
                          ? cu_limb_place((uint32_t)lane / 4, (uint32_t)l) + (uint32_t)t * 8
                          : (uint32_t)(lane / 8 * 256 + t * 16 + lane / 4 % 2 * 8 + 64 * l);
        *(uint2 *)(void *)(limbs + to) = make_uint2(w[0][l], w[1][l]);
    }
    if (lane == 0)
        *factor = most < 0x7f800000u ? cu_two_to(-n) : __uint_as_float(0x7fc00000u);
    if constexpr (SUMS > 0) {
        /* Two limbs' sums in a word: they stay below 2^15. */
        int pair[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int s[2];
#pragma unroll
            for (int l = 0; l < 2; l++)
                s[l] = __dp4a((int)w[0][2 * i + l], 0x01010101,
                              __dp4a((int)w[1][2 * i + l], 0x01010101, 0));
            pair[i] = s[0] + s[1] * 65536;
            pair[i] += __shfl_xor_sync(0xffffffffu, pair[i], 1);
            if (LANES == 4)
                pair[i] += __shfl_xor_sync(0xffffffffu, pair[i], 2);
        }
        sums += lane / LANES + lane % LANES * SUMS;
#pragma unroll
        for (int i = 0; i < 4 / LANES; i++) { /* limbs lane % LANES + i LANES */
            int both = LANES == 4 && lane % 4 >= 2 ? pair[1] : pair[i];
            int sum = lane % 2 ? (both + 0x8000) >> 16 : (int16_t)both;
            if (!stale) {
                sums[i * LANES * SUMS] = (uint8_t)sum;
                sums[i * LANES * SUMS + SUMS * LIMBS] = (uint8_t)((sum + 128) >> 8);
            }
        }
    }
}

/* The tokens' vectors: each share's chunks are made by the warps that multiply them, in turn. What
 * can be worked out before the kernel before is done, is. */
template <int TYPE, int T, int WARPS> struct limb_maker {
    enum {
        SUMS = int_shape<TYPE>::SUMS,
        LANES = SUMS > 0 ? 32 / (int)SUMS : 1, /* of a sum */
        APART = cu_apart(TYPE),
        AHEAD = T == 1 && WARPS < 16 ? 4 : 2
    };
    unsigned chunks, first, end, step, at; /* at: the lane's columns of a chunk */
    const float *in;
    bool aligned;

    __device__ __forceinline__ void start(const gemv_job &g)
    {
        unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, split = (unsigned)g.plan.split;
        int shift = 31 - __clz((int)split);
        chunks = ((unsigned)g.w.cols + CU_CHUNK - 1) / CU_CHUNK;
        step = WARPS >> shift;
        first = ((warp & (split - 1)) * chunks >> shift) + (warp >> shift);
        end = ((warp & (split - 1)) + 1) * chunks >> shift;
        if (MUTANT(46) && warp == WARPS - 1) /* the last chunk of the last share not made */
            end--;
        at = APART ? lane / 4 * 32 + lane % 4 * 4 : lane * 8;
        in = g.x[0];
        aligned = ((uintptr_t)in | (uintptr_t)g.up) % 16 == 0;
    }

    /* Gates of a lane's columns from `column` on: swiglu. */
    __device__ __forceinline__ void gate(const gemv_job &g, float x[8], unsigned column) const
    {
        const int next = APART ? 2 : 1;
        float4 u[2];
#pragma unroll
        for (int i = 0; i < 2; i++)
            u[i] = four_from(g.up + column + i * (APART ? 16 : 4), 0, aligned);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float *of = x + (APART ? i : 4 * i);
            float4 v = make_float4(of[0], of[next], of[2 * next], of[3 * next]);
            v = swiglu_four(v, u[i], g.limit, g.share);
            of[0] = v.x, of[next] = v.y, of[2 * next] = v.z, of[3 * next] = v.w;
        }
    }

    /* between(): what a warp does while its first chunks are on their way. */
    template <typename BETWEEN>
    __device__ __forceinline__ void vectors(const gemv_job &g, const gemv_room &r, BETWEEN between)
    {
#pragma unroll 1
        for (unsigned token = 0; token < T; token++) {
            if (token > 0)
                in = g.x[token];
            if (T > 1)
                aligned = ((uintptr_t)in | (uintptr_t)g.up) % 16 == 0;
#pragma unroll 1
            for (unsigned now = first; now < end || now == first; now += AHEAD * step) {
                float x[AHEAD][8];
#pragma unroll
                for (int k = 0; k < AHEAD; k++) {
                    unsigned chunk = now + k * step;
                    const float *from = in + chunk * CU_CHUNK + at;
                    /* the last columns left out */
                    bool lost = MUTANT(11) && chunk + 1 == chunks && threadIdx.x % 32 == 31;
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float4 v = make_float4(0, 0, 0, 0);
                        if (chunk < end && !lost)
                            v = four_from(from + i * (APART ? 16 : 4), 0, aligned);
                        float *to = x[k] + (APART ? i : 4 * i);
                        const int next = APART ? 2 : 1;
                        to[0] = v.x, to[next] = v.y, to[2 * next] = v.z, to[3 * next] = v.w;
                    }
                }
                if (token == 0 && now == first)
                    between();
                if (T == 1 && g.up != NULL)
#pragma unroll
                    for (int k = 0; k < AHEAD; k++)
                        if (now + k * step < end)
                            gate(g, x[k], (now + k * step) * CU_CHUNK + at);
                uint32_t most[AHEAD]; /* side by side: each is waited for */
#pragma unroll
                for (int k = 0; k < AHEAD; k++)
                    most[k] = most_of(x[k]);
#pragma unroll
                for (int k = 0; k < AHEAD; k++) {
                    unsigned chunk = now + k * step, n = token * chunks + chunk;
                    if (chunk >= end)
                        break;
                    /* the last sum stale */
                    bool stale = MUTANT(25) && chunk + 1 == chunks &&
                                 threadIdx.x % 32 / LANES == (unsigned)SUMS - 1;
                    limb_chunk<TYPE, T>(x[k], most[k], r.x + n * LIMB_CHUNK,
                                        r.sums + n * sums_bytes(TYPE), r.factors + n, stale);
                }
            }
        }
    }

    /* For those who make a share's chunks; barriers 1 to step are int_streamer's. */
    __device__ __forceinline__ void meet(const gemv_job &g) const
    {
        unsigned split = (unsigned)g.plan.split, share = threadIdx.x / 32 & (split - 1);
        asm volatile("bar.sync %0, %1;" ::"r"(split == 1 ? 0 : 1 + step + share), "r"(32 * step)
                     : "memory");
    }
};

/* ---- a warp ---------------------------------------------------------------------------------- */

/* What streamer is, for units of whole chunks, and with as few instructions as can be: lanes walk
 * from unit to unit by adding. Scales beside the rows begin at the same place of a word in all of
 * them. */
template <int TYPE, int T, int WARPS> struct int_streamer {
    typedef int_unit<TYPE, T> U;
    enum {
        BRINGS_TABLES = 0,
        PAIRS = (T + 1) / 2,
        MAIN = U::MAIN,
        REST = U::REST,
        HEIGHT = 32 / (int)MAIN,
        LOWER = 32 / (int)REST,
        /* From wherever a unit begins, it lies in as many pieces. */
        EXACT = U::LOOSE && ((int)U::BYTES + PIECE - 1) / PIECE == (int)U::PIECES &&
                ((int)U::BYTES + 2 * PIECE - 3) / PIECE == (int)U::PIECES
    };
    static_assert((int)U::COLS % CU_CHUNK == 0, "whole chunks");
    static_assert((int)row_shape<TYPE>::CHUNK_BYTES % 2 == 0 && (int)TILE == 16, "rows alike");

    uint8_t *ring;
    int depth, tiles, stride, first, last; /* the warp's columns of a tile */
    /* What is copied next, into which slot: this lane's piece of row lane / MAIN, and of row
     * lane / REST; rows left from the tile's first. */
    const uint8_t *from, *rest;
    int64_t jump, down;        /* from behind a tile to the next one; HEIGHT rows */
    const uint8_t *from_scale; /* row lane % 16, word lane / 16 */
    int64_t jump_scale;
    int scale_low;        /* of its first byte in its word */
    int col, rows, room;  /* room: of the slot, in the ring */
    uint32_t to, to_rest; /* this lane's piece in the first slot */
    int whole; /* so many rows are copied in one go: a tile's, where a lane's are aligned alike */

    static __device__ __forceinline__ int bytes_of(int cols)
    {
        return (int)((unsigned)(cols * (int)row_shape<TYPE>::CHUNK_BYTES) / CU_CHUNK);
    }

    __device__ __forceinline__ void start(const gemv_job &g, const gemv_room &r)
    {
        int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, split = g.plan.split;
        int shift = 31 - __clz(split), groups = WARPS >> shift, share = warp & (split - 1);
        int cols = (int)g.w.cols, chunks = (int)((unsigned)(cols + CU_CHUNK - 1) / CU_CHUNK);
        int tile = g.block * groups + (warp >> shift);
        int64_t row_bytes = (int64_t)g.w.row_bytes;
        depth = g.plan.depth;
        ring = r.ring + warp * (depth * U::ROOM);
        tiles = (int)((g.w.rows + TILE - 1) / TILE);
        stride = g.blocks * groups;
        first = (share * chunks >> shift) * CU_CHUNK;
        last = ((share + 1) * chunks >> shift) * CU_CHUNK;
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
        if (first >= last || (EXACT && lane % MAIN >= (int)U::PIECES)) /* nothing to copy */
            rows = 0;
        /* Neither is known to be the same for all lanes: see copy_target(). */
        room = (int)threadIdx.y;
        to = copy_target(ring + lane / MAIN * U::STRIDE + lane % MAIN * PIECE);
        to_rest = copy_target(ring + lane / REST * U::STRIDE + (MAIN + lane % REST) * PIECE);
        whole = (U::PIECES > MAIN ? row_bytes : down) % PIECE == 0 ? (int)TILE : 0x7fffffff;
    }

    /* Behind the tail of a matrix, or where a lane's rows are not aligned alike. */
    template <int LANES, int FIRST>
    __device__ __forceinline__ void copy_some(const uint8_t *at, int bytes, uint8_t *room,
                                              int64_t row_bytes) const
    {
        int lane = (int)threadIdx.x % 32, piece = (FIRST + lane % LANES) * PIECE;
#pragma unroll 1
        for (int r = lane / LANES; r < TILE && r < rows; r += 32 / LANES) {
            int off = (int)((uintptr_t)at & (PIECE - 1));
            if (piece < off + bytes)
                copy_16(copy_target(room + r * U::STRIDE + piece), at - off);
            at += 32 / LANES * row_bytes;
        }
    }

    __device__ __forceinline__ void copy_scales(int cols, uint8_t *room)
    {
        int lane = (int)threadIdx.x % 32, words = (scale_low + cols * U::SCALE / U::COLS + 3) / 4;
        uint32_t to = copy_target(room + TILE * U::STRIDE + lane % 16 * U::SCALE_STRIDE);
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
    __device__ __forceinline__ void copy(const gemv_job &)
    {
        int lane = (int)threadIdx.x % 32;
        if (rows > 0) {
            uint8_t *unit = ring + room;
            int bytes = bytes_of(cols_of(col));
            if (rows >= whole) {
                int off = U::LOOSE ? (int)((uintptr_t)from & (PIECE - 1)) : 0;
                if (EXACT || lane % MAIN * PIECE < off + bytes) {
                    const uint8_t *p = (const uint8_t *)((uintptr_t)from & ~(uintptr_t)(PIECE - 1));
                    uint32_t at = to + (uint32_t)room;
#pragma unroll
                    for (int i = 0; i < TILE / HEIGHT; i++, p += down)
                        copy_16(at + i * HEIGHT * U::STRIDE, p);
                }
                if (U::PIECES > MAIN && (MAIN + lane % REST) * PIECE < off + bytes) {
                    const uint8_t *p = rest - off;
                    uint32_t at = to_rest + (uint32_t)room;
#pragma unroll
                    for (int i = 0; i < TILE / LOWER; i++, p += down * LOWER / HEIGHT)
                        copy_16(at + i * LOWER * U::STRIDE, p);
                }
            } else {
                copy_some<MAIN, 0>(from, bytes, unit, down / HEIGHT);
                if (U::PIECES > MAIN)
                    copy_some<REST, MAIN>(rest, bytes, unit, down / HEIGHT);
            }
            if constexpr ((int)U::SCALE > 0)
                copy_scales(cols_of(col), unit);
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
        room += room == (depth - 1) * U::ROOM ? -(depth - 1) * (int)U::ROOM : (int)U::ROOM;
        copies_end();
        if (cu_block_each(TYPE, T) && depth == SHALLOW) /* groups as with DEEP: see multiply_one */
            copies_end();
    }

    /* The matrix has become known. */
    __device__ __forceinline__ void move(const gemv_job &g, const gemv_room &r)
    {
        start(g, r);
    }

    __device__ __forceinline__ void fill(const gemv_job &g)
    {
#pragma unroll 1
        for (int i = 0; i < depth; i++)
            copy(g);
    }

    static __device__ __forceinline__ void put(const gemv_job &g, int at, int r, int token, float v)
    {
        int64_t n = (int64_t)at * TILE + r;
        if (token < g.tokens && n < g.w.rows)
            g.y[T == 1 ? 0 : token][n] = maybe_bf16(v, g.bf16);
    }

    /* Number n of SPLIT shares' sums, added up. */
    template <int SPLIT> static __device__ __forceinline__ float added(const float *part, int n)
    {
        float v = 0, p[SPLIT];
#pragma unroll
        for (int i = 0; i < SPLIT; i++)
            p[i] = part[i * T * 2 * TILE + n];
#pragma unroll
        for (int i = 0; i < SPLIT; i++)
            if (!(MUTANT(48) && i == 7)) /* the eighth share lost */
                v += p[i];
        return v;
    }

    /* `split` shares of tile k are in `part`: the group's warps in turn add them up. */
    static __device__ __forceinline__ void shares_meet(const gemv_job &g, const float *part, int k,
                                                       int split, int group, bool mine)
    {
        int lane = (int)threadIdx.x % 32;
        asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "r"(32 * split) : "memory");
        if (!mine)
            return;
#pragma unroll
        for (int n = lane; n < T * 2 * TILE; n += 32) {
            float v = split == 2   ? added<2>(part, n)
                      : split == 4 ? added<4>(part, n)
                      : split == 8 ? added<8>(part, n)
                                   : added<WARPS>(part, n);
            v += __shfl_xor_sync(0xffffffffu, v, 16);
            if (lane < TILE)
                put(g, k, lane, n / (2 * TILE), v);
        }
    }

    /* All tiles of the warp, IQ2_XXS times one token: iq2_one. */
    __device__ __forceinline__ void multiply_one(const gemv_job &g, const gemv_room &r)
    {
        uint32_t warp = threadIdx.x / 32, t = threadIdx.x % 4, at = threadIdx.x / 4 % 8;
        int split = g.plan.split, shift = 31 - __clz(split), groups = WARPS >> shift;
        int group = (int)warp >> shift, share = (int)warp & (split - 1), turn = 0;
        int chunks = (int)((unsigned)(g.w.cols + CU_CHUNK - 1) / CU_CHUNK);
        uint32_t begins = (uint32_t)(uintptr_t)g.w.data + at * (uint32_t)g.w.row_bytes +
                          (uint32_t)bytes_of(first);
        float pair = t % 2 == 0 ? 65536.0f : 1.0f;
        const uint8_t *mine = ring + at * U::STRIDE;
        iq2_one one;
        one.start(r, g.w.row_bytes);
        for (int k = g.block * groups + group; k < tiles; k += stride, turn++) {
            float total = 0;
            uint32_t off = begins;
#pragma unroll 1
            for (int c = first; c < last; c += CU_CHUNK) {
                int chunk = (int)((unsigned)c / CU_CHUNK);
                /* the factor of the chunk before */
                int of = MUTANT(26) && chunk > 0 ? chunk - 1 : chunk;
                float factor = r.factors[of] * pair;
                if (MUTANT(24) && chunk > 0 && chunk + 1 == chunks) /* last chunk lost */
                    factor = 0;
                copies_wait<DEEP - 1>();
                __syncwarp();
                const uint8_t *a = mine + room + (off & (PIECE - 1));
                off += U::BYTES;
                float f[1];
                one.dot(r, r.iq2_stride, a, 8 * U::STRIDE, 0, chunk, f);
                total += f[0] * factor;
                __syncwarp(); /* all lanes are done with the unit's room */
                copy(g);
            }
            wait_for_room(g);
            if (split == 1) {
                float v = total + __shfl_xor_sync(0xffffffffu, total, 1);
                if (t % 2 == 0)
                    put(g, k, (int)(at + 4 * t), 0, v);
                continue;
            }
            float *part = r.parts + (size_t)((turn & 1) * groups + group) * split * 2 * TILE;
            part[(share * 2 + t % 2) * TILE + t / 2 * 8 + at] = total;
            shares_meet(g, part, k, split, group, (turn & (split - 1)) == share);
        }
    }

    /* All tiles of the warp. */
    __device__ __forceinline__ void multiply(const gemv_job &g, const gemv_room &r)
    {
        if constexpr (cu_block_each(TYPE, T)) {
            multiply_one(g, r);
            return;
        }
        int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, t = lane % 4, at = lane / 4;
        int split = g.plan.split, shift = 31 - __clz(split), groups = WARPS >> shift;
        int group = warp >> shift, share = warp & (split - 1), turn = 0;
        int chunks = (int)((unsigned)(g.w.cols + CU_CHUNK - 1) / CU_CHUNK);
        /* Where the lane's first row begins in its piece; so does the one eight rows below, and
         * those of every tile: rows are of an even length. */
        uint32_t begins = (uint32_t)(uintptr_t)g.w.data + at * (uint32_t)g.w.row_bytes +
                          (uint32_t)bytes_of(first);
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
            uint32_t off = begins;
            for (int unit = first; unit < last; unit += U::COLS) {
                if (depth == SHALLOW)
                    copies_wait<SHALLOW - 1>();
                else
                    copies_wait<DEEP - 1>();
                __syncwarp();
                const uint8_t *a = ring + room + at * U::STRIDE;
                if (U::LOOSE)
                    a += off & (PIECE - 1);
                off += U::BYTES;
                const uint8_t *b = a + 8 * U::STRIDE;
                const uint8_t *fa = ring + room + TILE * U::STRIDE + at * U::SCALE_STRIDE +
                                    (U::SCALE > 0 ? scale_low : 0);
                const uint8_t *fb = fa + 8 * U::SCALE_STRIDE;
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
                copy(g);
            }
            if constexpr (int_shape<TYPE>::BLOCKS)
#pragma unroll
                for (int j = 0; j < PAIRS; j++)
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        total[j][i] = int_blocks<TYPE, T>::meet(total[j][i], odd[j][i]);
            if (T == 1)
                wait_for_room(g);
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
            shares_meet(g, part, k, split, group, (turn & (split - 1)) == share);
        }
    }
};

#endif
