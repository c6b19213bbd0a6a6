/* stream.cuh - how a block multiplies rows with the vectors of one or of four tokens on the
 * tensor cores: every warp streams tiles of 16 rows through a ring of its own in shared memory
 * (cp.async, so that the bytes in flight cost no registers) and multiplies a unit of columns when
 * it has arrived. The order of a sum is mma.cuh's. Private to linear.cu.
 *
 * `split` warps share a tile: each takes some of its chunks, whose sums meet in shared memory, and
 * one warp adds them in order. What is split is a matter of speed alone. */
#ifndef DSV4_CUDA_STREAM_CUH
#define DSV4_CUDA_STREAM_CUH

#include "device.cuh"
#include "mma.cuh"

enum { TILE = 16, PIECE = 16 /* bytes of a copy */ };

/* ---- asynchronous copies --------------------------------------------------------------------- */

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ void copy_16(uint32_t to, const uint8_t *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void copy_4(uint32_t to, const uint8_t *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void copies_end() /* of a group */
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> __device__ __forceinline__ void copies_wait() /* for all groups but the last N */
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* ---- units ----------------------------------------------------------------------------------- */

/* COLS columns of 16 rows: BYTES of a row, which lie in at most PIECES copies; rows STRIDE apart in
 * shared memory, so that the lanes' loads meet in few banks; behind them the rows' scales, SCALE
 * bytes for BYTES of a row, in words as they lie in memory. DEPTH units in the ring. */
template <int TYPE> struct unit_shape;
#define CU_UNIT_SHAPE(type, cols, pieces, stride, scale, depth)                                    \
    template <> struct unit_shape<type> {                                                          \
        enum {                                                                                     \
            COLS = cols,                                                                           \
            BYTES = (int)row_shape<type>::CHUNK_BYTES * cols / CU_CHUNK,                           \
            PIECES = pieces,                                                                       \
            STRIDE = stride,                                                                       \
            SCALE = scale,                                                                         \
            SCALE_STRIDE = scale == 0 ? 0 : (scale + 6) / 4 * 4,                                   \
            ROOM = TILE * (STRIDE + SCALE_STRIDE),                                                 \
            LOOSE = (int)row_shape<type>::CHUNK_BYTES % 128 != 0, /* rows begin anywhere */        \
            DEPTH = depth                                                                          \
        };                                                                                         \
        static_assert(ROOM % 16 == 0 && STRIDE >= PIECES * PIECE, "a unit's room");                \
    }
CU_UNIT_SHAPE(DSV4_BF16, 128, 16, 256, 0, 2);
CU_UNIT_SHAPE(DSV4_FP8, 256, 16, 288, 2, 2);
CU_UNIT_SHAPE(DSV4_FP4, 512, 16, 272, 16, 2);
CU_UNIT_SHAPE(DSV4_MXFP4, 512, 18, 304, 0, 2);
CU_UNIT_SHAPE(DSV4_Q8_0, 256, 18, 288, 0, 2);
CU_UNIT_SHAPE(DSV4_Q4_K, 512, 18, 288, 0, 2);
CU_UNIT_SHAPE(DSV4_Q2_K, 512, 12, 208, 0, 3);
CU_UNIT_SHAPE(DSV4_IQ2_XXS, 512, 10, 176, 0, 2);
#undef CU_UNIT_SHAPE

/* ---- a block's work -------------------------------------------------------------------------- */

enum { MOST_TOKENS = 4 };

/* Rows of w for up to T tokens. Blocks take turns at the tiles: block `block` of `blocks`. */
typedef struct {
    const cu_tensor *w;
    int block, blocks, split;
    float *y[MOST_TOKENS];
    int tokens;
    bool bf16;
} gemv_job;

/* Where things lie in dynamic shared memory. Parts of x: bf16 [tokens][3][ld]; sums of x, for
 * minima: bf16 [tokens][3][ld_sums]; zeros for a chunk. */
typedef struct {
    uint8_t *ring; /* [warps][DEPTH][ROOM] */
    uint8_t *x, *sums, *zeros;
    int ld, ld_sums; /* bytes */
    float *chunks;   /* [2][groups][chunks][T][TILE]: sums of chunks on their way; split > 1 */
    uint8_t *iq2;    /* IQ2_XXS: words of the book, then of the signs, each once for every lane */
} gemv_room;

/* A lane's own copy is in a bank of its own. Aligned, so that addresses are put together by bits.
 */
enum { IQ2_ROW = 128, IQ2_BOOK = 256 * IQ2_ROW, IQ2_SIGNS = 128 * IQ2_ROW };

/* Rows of parts 64 bytes apart modulo 128: eight lanes' 16-byte loads meet in no bank. */
__host__ __device__ __forceinline__ int parts_stride(int cols)
{
    int bytes = cols * 2;
    return bytes % 128 == 64 ? bytes : bytes + 64;
}

__host__ __device__ __forceinline__ int minima_of(int type)
{
    return type == DSV4_Q4_K ? 8 : type == DSV4_Q2_K ? 16 : 0;
}

__host__ __device__ __forceinline__ int sums_stride(int type, int cols)
{
    return (minima_of(type) * cols / CU_CHUNK * 2 + 15) / 16 * 16 + 16;
}

/* Bytes of the ring of a warp. */
static inline int ring_bytes(int type)
{
    switch (type) {
#define RING(type)                                                                                 \
    case type:                                                                                     \
        return unit_shape<type>::DEPTH * unit_shape<type>::ROOM
        RING(DSV4_BF16);
        RING(DSV4_FP8);
        RING(DSV4_FP4);
        RING(DSV4_MXFP4);
        RING(DSV4_Q8_0);
        RING(DSV4_Q4_K);
        RING(DSV4_Q2_K);
        RING(DSV4_IQ2_XXS);
#undef RING
    default:
        return 0;
    }
}

/* Dynamic shared memory: its size on the host, its parts on the device. */
__host__ __device__ __forceinline__ size_t lay_out(const cu_tensor *w, int warps, int split,
                                                   int tokens, int ring, uint8_t *base,
                                                   gemv_room *r)
{
    int cols = (int)w->cols, chunks = (cols + CU_CHUNK - 1) / CU_CHUNK;
    size_t at = (size_t)(warps * ring);
    r->ring = base;
    r->ld = parts_stride(cols);
    r->x = base + at;
    at += (size_t)(CU_PARTS * tokens * r->ld);
    r->zeros = base + at;
    at += CU_CHUNK * 2;
    r->sums = base + at;
    r->ld_sums = sums_stride(w->type, cols);
    if (minima_of(w->type) > 0)
        at += (size_t)(CU_PARTS * tokens * r->ld_sums);
    r->chunks = (float *)(void *)(base + at);
    if (split > 1)
        at += (size_t)(2 * (warps / split) * chunks * tokens * TILE) * sizeof(float);
    r->iq2 = base + at;
    if (w->type == DSV4_IQ2_XXS)
        at += IQ2_SIGNS + IQ2_BOOK + IQ2_SIGNS; /* the first to align */
    return at;
}

/* ---- the vectors ----------------------------------------------------------------------------- */

__device__ __forceinline__ void store_parts(uint8_t *to, int ld, const float v[4])
{
    uint32_t part[4][CU_PARTS];
#pragma unroll
    for (int i = 0; i < 4; i++)
        cu_split(v[i], part[i]);
    if (MUTANT(23)) /* a part of x lost */
        part[0][1] = part[1][1] = part[2][1] = part[3][1] = 0;
#pragma unroll
    for (int p = 0; p < CU_PARTS; p++)
        *(uint2 *)(void *)(to + p * ld) = make_uint2(__byte_perm(part[0][p], part[1][p], 0x7632u),
                                                     __byte_perm(part[2][p], part[3][p], 0x7632u));
}

/* Columns 4 i .. 4 i + 3. */
__device__ __forceinline__ float4 four_from(const float *in, int i, bool aligned)
{
    return aligned ? ((const float4 *)(const void *)in)[i]
                   : make_float4(in[4 * i], in[4 * i + 1], in[4 * i + 2], in[4 * i + 3]);
}

/* from[t]: the tokens' vectors, some vector where there is no token. SUM: columns of a sum, 0 = no
 * sums. */
template <int T, int WARPS, int SUM>
__device__ __forceinline__ void split_vectors(const gemv_job &g, const gemv_room &r,
                                              const float *const *from)
{
    enum { AHEAD = 4, STEP = WARPS * 32 };
    int quads = (int)g.w->cols / 4;
    if (threadIdx.x < CU_CHUNK / 2)
        ((uint32_t *)(void *)r.zeros)[threadIdx.x] = 0;
#pragma unroll
    for (int t = 0; t < T; t++) {
        const float *in = from[t];
        bool aligned = (uintptr_t)in % 16 == 0;
        uint8_t *to = r.x + t * CU_PARTS * r.ld, *sums = r.sums + t * CU_PARTS * r.ld_sums;
        /* Whole warps, so that sums can be shuffled. */
        for (int base = (int)threadIdx.x / 32 * 32; base < quads; base += AHEAD * STEP) {
            float4 v[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                int i = base + k * STEP + (int)threadIdx.x % 32;
                v[k] = make_float4(0, 0, 0, 0);
                if (i < quads)
                    v[k] = four_from(in, i, aligned);
            }
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                int i = base + k * STEP + (int)threadIdx.x % 32;
                float four[4] = {v[k].x, v[k].y, v[k].z, v[k].w};
                if (i < quads)
                    store_parts(to + 8 * i, r.ld, four);
                if constexpr (SUM > 0) {
                    float sum = (four[0] + four[1]) + (four[2] + four[3]);
#pragma unroll
                    for (int step = 1; step < SUM / 4; step *= 2)
                        sum += __shfl_xor_sync(0xffffffffu, sum, step);
                    /* the last sum stale */
                    bool stale = MUTANT(25) && i + SUM / 4 >= quads;
                    if (i < quads && i % (SUM / 4) == 0 && !stale) {
                        uint32_t part[CU_PARTS];
                        cu_split(sum, part);
#pragma unroll
                        for (int p = 0; p < CU_PARTS; p++)
                            *(uint16_t *)(void *)(sums + p * r.ld_sums + i / (SUM / 4) * 2) =
                                (uint16_t)(part[p] >> 16);
                    }
                }
            }
        }
    }
}

/* ---- reading a unit -------------------------------------------------------------------------- */

/* A row's codes from shared memory, where a few bytes more may be read than are the row's. */
template <int TYPE> struct row_reader {
    const uint8_t *chunk;
    __device__ __forceinline__ void start(const uint8_t *p, const gemv_room &)
    {
        chunk = p;
    }
    __device__ __forceinline__ void load(row_codes<TYPE> &c, int b) const
    {
        c.load(chunk, b, (int)threadIdx.x % 4, NULL);
    }
};

/* Blocks of 34 bytes from an even address: every other block's codes begin in the middle of a word,
 * and which, is known for all of them. */
template <> struct row_reader<DSV4_Q8_0> {
    const uint8_t *even, *odd;
    uint32_t shift; /* of odd blocks; the others' is 16 less that */
    __device__ __forceinline__ void start(const uint8_t *p, const gemv_room &)
    {
        p += threadIdx.x % 4 * 8;
        uint32_t half = (uint32_t)(uintptr_t)p & 2u;
        odd = p - half;
        even = odd + 2 * half;
        shift = 8 * half;
    }
    __device__ __forceinline__ void load(row_codes<DSV4_Q8_0> &c, int b) const
    {
        const uint8_t *p = b % 2 ? odd + (34 * b + 2) : even + 34 * b;
        uint32_t w0 = cu_word(p), w1 = cu_word(p + 4), w2 = cu_word(p + 8);
        uint32_t bits = b % 2 ? shift : 16 - shift;
        c.w[0] = cu_funnel(w0, w1, bits);
        c.w[1] = cu_funnel(w1, w2, bits);
    }
};

__device__ __forceinline__ uint32_t iq2_tables(const gemv_room &r)
{
    return (shared_address(r.iq2) + IQ2_SIGNS - 1) / IQ2_SIGNS * IQ2_SIGNS;
}

__device__ __forceinline__ uint32_t word_at(uint32_t shared)
{
    uint32_t w;
    asm("ld.shared.u32 %0, [%1];" : "=r"(w) : "r"(shared));
    return w;
}

/* Groups of eight bytes from an even address; t's seven bits of signs are fetched to where the
 * table's address wants them. */
template <> struct row_reader<DSV4_IQ2_XXS> {
    const uint8_t *groups, *words;
    uint32_t book, signs, bits;
    __device__ __forceinline__ void start(const uint8_t *p, const gemv_room &r)
    {
        uint32_t t = threadIdx.x % 4, half = (uint32_t)(uintptr_t)(p + 2) & 2u;
        groups = p + 2;
        words = p + 6 - half;
        bits = 8 * half + 7 * t - 7;
        if (t == 0 && half == 0) {
            words -= 4;
            bits += 32;
        }
        book = iq2_tables(r) + threadIdx.x % 32 * 4;
        signs = book + IQ2_BOOK;
    }
    __device__ __forceinline__ void load(row_codes<DSV4_IQ2_XXS> &c, int b) const
    {
        uint32_t at = cu_funnel(cu_word(words + 8 * b), cu_word(words + 8 * b + 4), bits);
        c.n = word_at(groups[8 * b + threadIdx.x % 4] * (uint32_t)IQ2_ROW + book) ^
              word_at((at & (IQ2_SIGNS - IQ2_ROW)) | signs);
    }
    /* 2 s + 1, s the top four bits: 2^23 + 4096 s, times 2^-11 */
    __device__ __forceinline__ float factor(int b) const
    {
        uint32_t s = cu_load16(groups + 8 * b + 6) & 0xf000u;
        return fmaf(cu_float_of(0x4b000000u | s), 0x1p-11f, -4095.0f);
    }
};

template <> struct row_reader<DSV4_MXFP4> {
    const uint8_t *from;
    uint32_t off;
    __device__ __forceinline__ void start(const uint8_t *p, const gemv_room &)
    {
        p += 1 + threadIdx.x % 2 * 8;
        off = (uint32_t)(uintptr_t)p & 3u;
        from = p - off;
    }
    __device__ __forceinline__ void load(row_codes<DSV4_MXFP4> &c, int b) const
    {
        uint32_t at = off + (uint32_t)b % 4, bits = at % 4 * 8;
        const uint8_t *p = from + (16 * b + b / 4 * 4) + (at & 4u);
        uint32_t w0 = cu_word(p), w1 = cu_word(p + 4), w2 = cu_word(p + 8);
        int up = threadIdx.x % 4 < 2 ? 4 : 0;
        c.w[0] = cu_funnel(w0, w1, bits) << up;
        c.w[1] = cu_funnel(w1, w2, bits) << up;
    }
};

/* ---- a warp ---------------------------------------------------------------------------------- */

template <int TYPE, int T, int WARPS> struct streamer {
    typedef row_shape<TYPE> S;
    typedef unit_shape<TYPE> U;
    enum {
        PAIRS = (T + 1) / 2,
        STEP = U::COLS < CU_CHUNK ? (int)U::COLS : (int)CU_CHUNK, /* columns multiplied in one go */
        BLOCKS = STEP / 32,                                       /* whole promotion blocks */
        MAIN = U::PIECES < 16 ? 8 : 16, /* lanes that copy a row, and those for its rest */
        REST = U::PIECES - (int)MAIN > 2 ? 4 : 2
    };

    const cu_tensor *w;
    uint8_t *ring;
    int tiles, stride, first, last; /* the warp's columns of a tile */
    /* What is copied next: this lane begins with row `lane / MAIN`, the rest of row `lane / REST`,
     * scales of row `lane % 16`. */
    const uint8_t *from, *from_rest, *from_scale;
    int tile, col, slot, rows; /* rows left from the tile's first */
    bool more, plain;          /* plain: rows are multiples of a piece */

    static __device__ __forceinline__ int bytes_of(int cols)
    {
        return cols * S::CHUNK_BYTES / CU_CHUNK;
    }
    static __device__ __forceinline__ int scales_of(int cols)
    {
        return U::SCALE == 0 ? 0 : cols / (U::COLS / (U::SCALE > 0 ? U::SCALE : 1));
    }
    __device__ __forceinline__ const uint8_t *row(int at, int r) const
    {
        return w->data + ((size_t)at * TILE + r) * w->row_bytes;
    }
    __device__ __forceinline__ const uint8_t *scales(int at, int r) const
    {
        if (U::SCALE == 0)
            return NULL;
        int64_t n = (int64_t)at * TILE + r;
        int group = w->row0 + (int)(n < w->rows ? n : w->rows - 1);
        if (TYPE == DSV4_FP8)
            group /= w->scale_rows;
        return w->scale + (size_t)group * w->scale_row_bytes;
    }

    __device__ __forceinline__ void find_tile()
    {
        int lane = (int)threadIdx.x % 32;
        from = row(tile, lane / MAIN) + bytes_of(first);
        from_rest = row(tile, U::PIECES > MAIN ? lane / REST : 0) + bytes_of(first);
        from_scale = scales(tile, lane % 16);
        rows = (int)(w->rows - (int64_t)tile * TILE);
    }

    __device__ __forceinline__ void start(const gemv_job &g, const gemv_room &r)
    {
        int warp = (int)threadIdx.x / 32, groups = WARPS / g.split, share = warp % g.split;
        int cols = (int)g.w->cols, chunks = (cols + CU_CHUNK - 1) / CU_CHUNK;
        w = g.w;
        ring = r.ring + warp * (U::DEPTH * U::ROOM);
        tiles = (int)((w->rows + TILE - 1) / TILE);
        stride = g.blocks * groups;
        tile = g.block * groups + warp / g.split;
        first = share * chunks / g.split * CU_CHUNK;
        last = (share + 1) * chunks / g.split * CU_CHUNK;
        last = last < cols ? last : cols;
        col = first;
        slot = 0;
        plain = !U::LOOSE || w->row_bytes % PIECE == 0;
        more = tile < tiles && first < last;
        if (more)
            find_tile();
    }

    /* LANES lanes take a row's pieces FIRST, FIRST + 1 ...; at: their first row's bytes. */
    template <int LANES, int FIRST>
    __device__ __forceinline__ void copy_pieces(const uint8_t *at, int bytes, uint8_t *room) const
    {
        enum { HEIGHT = 32 / LANES };
        int lane = (int)threadIdx.x % 32, piece = (FIRST + lane % LANES) * PIECE;
        int off = U::LOOSE ? (int)((uintptr_t)at & (PIECE - 1)) : 0;
        uint32_t to = shared_address(room + lane / LANES * U::STRIDE + piece);
        size_t step = (size_t)HEIGHT * w->row_bytes;
        if (plain && rows >= TILE) { /* every row begins as the first does */
            at += piece - off;
            if (piece < off + bytes)
#pragma unroll
                for (int i = 0; i < TILE / HEIGHT; i++, at += step)
                    copy_16(to + i * HEIGHT * U::STRIDE, at);
            return;
        }
        for (int i = 0; i < TILE / HEIGHT; i++, at += step) {
            off = U::LOOSE ? (int)((uintptr_t)at & (PIECE - 1)) : 0;
            if (piece < off + bytes && lane / LANES + i * HEIGHT < rows)
                copy_16(to + i * HEIGHT * U::STRIDE, at - off + piece);
        }
    }

    /* The next unit on its way into the ring; one group, empty at the end. */
    __device__ __forceinline__ void copy()
    {
        int lane = (int)threadIdx.x % 32;
        if (more) {
            uint8_t *room = ring + slot * U::ROOM;
            int cols = last - col < U::COLS ? last - col : U::COLS;
            int bytes = bytes_of(cols);
            copy_pieces<MAIN, 0>(from, bytes, room);
            if (U::PIECES > MAIN)
                copy_pieces<REST, MAIN>(from_rest, bytes, room);
            from += U::BYTES;
            from_rest += U::BYTES;
            if (U::SCALE > 0) {
                const uint8_t *s = from_scale + scales_of(col);
                int low = (int)((uintptr_t)s & 3);
                int n = low + (cols * U::SCALE + U::COLS - 1) / U::COLS;
                uint32_t words =
                    shared_address(room + TILE * U::STRIDE + lane % 16 * U::SCALE_STRIDE);
#pragma unroll
                for (int i = 0; i < ((int)U::SCALE_STRIDE / 4 + 1) / 2; i++) {
                    int word = lane / 16 + 2 * i;
                    if (word * 4 < n)
                        copy_4(words + word * 4, s - low + word * 4);
                }
            }
            col += U::COLS;
            if (col >= last) {
                col = first;
                tile += stride;
                more = tile < tiles;
                if (more)
                    find_tile();
            }
        }
        slot = slot + 1 == U::DEPTH ? 0 : slot + 1;
        copies_end();
    }

    __device__ __forceinline__ void fill()
    {
#pragma unroll 1
        for (int i = 0; i < U::DEPTH; i++)
            copy();
    }

    /* ---- multiplying */

    /* What is summed of rows g and g + 8 (two of each four), for every pair of tokens. */
    float acc[PAIRS][4], sum[PAIRS][4];

    __device__ __forceinline__ void promote(float a, float b)
    {
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            sum[j][0] = fmaf(a, acc[j][0], sum[j][0]);
            sum[j][1] = fmaf(a, acc[j][1], sum[j][1]);
            sum[j][2] = fmaf(b, acc[j][2], sum[j][2]);
            sum[j][3] = fmaf(b, acc[j][3], sum[j][3]);
        }
    }

    /* Blocks of 32 columns k, k + 1 .. of a go: the rows' codes at a and b, x[] at the go's. */
    __device__ __forceinline__ void span(const row_reader<TYPE> &a, const row_reader<TYPE> &b,
                                         const row_scale<TYPE> &fa, const row_scale<TYPE> &fb,
                                         const uint8_t *const *x, int k)
    {
        row_codes<TYPE> ca, cb;
        a.load(ca, k);
        b.load(cb, k);
#pragma unroll
        for (int i = 0; i < ca.SPAN; i++) {
            uint32_t va[4], vb[4];
            ca.expand(i, va);
            cb.expand(i, vb);
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                uint4 p = *(const uint4 *)(const void *)(x[j] + (k + i) * 64);
                if ((k + i) % S::BLOCKS == 0)
                    cu_mma16_first(acc[j], va[0], vb[0], va[1], vb[1], p.x, p.y);
                else
                    cu_mma16(acc[j], va[0], vb[0], va[1], vb[1], p.x, p.y);
                cu_mma16(acc[j], va[2], vb[2], va[3], vb[3], p.z, p.w);
            }
            if constexpr (TYPE == DSV4_IQ2_XXS)
                promote(a.factor(k + i), b.factor(k + i));
            else if ((k + i) % S::BLOCKS == S::BLOCKS - 1)
                promote(fa.block((k + i) / S::BLOCKS), fb.block((k + i) / S::BLOCKS));
        }
    }

    /* The three parts meet; lanes t = 0 hold the pair's first token, t = 2 its second. */
    static __device__ __forceinline__ float meet(float one, float two)
    {
        return (one + two) + __shfl_down_sync(0xffffffffu, one, 1);
    }

    /* All tiles of the warp. */
    __device__ __forceinline__ void multiply(const gemv_job &g, const gemv_room &r)
    {
        int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, t = lane % 4, at = lane / 4;
        int groups = WARPS / g.split, group = warp / g.split, share = warp % g.split;
        int cols = (int)w->cols, chunks = (cols + CU_CHUNK - 1) / CU_CHUNK, now = 0, turn = 0;
        /* Column n of B is part n % 4 of the pair's token n / 4; the rest reads zeros. */
        const uint8_t *x[PAIRS], *sums[PAIRS];
        uint32_t mask = at % 4 < CU_PARTS && at / 4 < T ? 0xffffffffu : 0;
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            int plane = (2 * j + at / 4) * CU_PARTS + at % 4;
            x[j] = mask ? r.x + plane * r.ld + 16 * t : r.zeros;
            sums[j] = mask ? r.sums + plane * r.ld_sums + 4 * t : r.zeros;
        }
        for (int k = g.block * groups + group; k < tiles; k += stride, turn++) {
            uint32_t da = (uint32_t)(uintptr_t)row(k, at), db = (uint32_t)(uintptr_t)row(k, at + 8);
            uint32_t sa = (uint32_t)(uintptr_t)scales(k, at),
                     sb = (uint32_t)(uintptr_t)scales(k, at + 8);
            float total[PAIRS][2] = {};
            float *part = r.chunks + (size_t)((turn & 1) * groups + group) * chunks * T * TILE;
#pragma unroll
            for (int j = 0; j < PAIRS; j++)
                sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = 0;
            for (int unit = first; unit < last; unit += U::COLS) {
                copies_wait<U::DEPTH - 1>();
                __syncwarp();
                const uint8_t *room = ring + now * U::ROOM, *a = room + at * U::STRIDE;
                const uint8_t *fa = room + TILE * U::STRIDE + at * U::SCALE_STRIDE;
                const uint8_t *b = a + 8 * U::STRIDE, *fb = fa + 8 * U::SCALE_STRIDE;
                now = now + 1 == U::DEPTH ? 0 : now + 1;
                if (U::LOOSE) {
                    a += (da + (uint32_t)bytes_of(unit)) & (PIECE - 1);
                    b += (db + (uint32_t)bytes_of(unit)) & (PIECE - 1);
                }
                fa += (sa + (uint32_t)scales_of(unit)) & 3u;
                fb += (sb + (uint32_t)scales_of(unit)) & 3u;
#pragma unroll 1
                for (int c = unit; c < unit + U::COLS && c < last; c += STEP) {
                    const uint8_t *xc[PAIRS];
                    row_scale<TYPE> ra, rb;
                    row_reader<TYPE> qa, qb;
                    ra.load(a, fa);
                    rb.load(b, fb);
                    qa.start(a, r);
                    qb.start(b, r);
#pragma unroll
                    for (int j = 0; j < PAIRS; j++)
                        xc[j] = x[j] + ((uint32_t)(c * 2) & mask);
                    int blocks = (last - c) / 32;
                    if (MUTANT(11) && c + STEP >= cols) /* the last block of a row left out */
                        blocks = (blocks < BLOCKS ? blocks : BLOCKS) - row_codes<TYPE>::SPAN;
                    if (blocks >= BLOCKS) {
#pragma unroll
                        for (int i = 0; i < BLOCKS; i += row_codes<TYPE>::SPAN)
                            span(qa, qb, ra, rb, xc, i);
                    } else {
#pragma unroll 1
                        for (int i = 0; i < blocks; i += row_codes<TYPE>::SPAN)
                            span(qa, qb, ra, rb, xc, i);
                        if (blocks % S::BLOCKS != 0) /* a promotion block cut short */
                            promote(ra.block(blocks / S::BLOCKS), rb.block(blocks / S::BLOCKS));
                    }
                    bool end = (c + STEP) % CU_CHUNK == 0 || c + STEP >= last;
                    if (end)
                        end_chunk(g, r, a, b, ra, rb, sums, mask, c / CU_CHUNK, chunks, total,
                                  part);
                    a += bytes_of(STEP);
                    b += bytes_of(STEP);
                    fa += scales_of(STEP);
                    fb += scales_of(STEP);
                }
                __syncwarp(); /* all lanes are done with the unit's room */
                copy();
            }
            if (g.split == 1) {
#pragma unroll
                for (int j = 0; j < PAIRS; j++)
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        if (t % 2 == 0)
                            put(g, k, at + 8 * i, 2 * j + t / 2, total[j][i]);
            } else {
                asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "r"(32 * g.split) : "memory");
                if (turn % g.split == share)
#pragma unroll
                    for (int n = lane; n < T * TILE; n += 32) {
                        float v = 0;
#pragma unroll 8
                        for (int c = 0; c < chunks; c++)
                            v += part[c * T * TILE + n];
                        put(g, k, n % TILE, n / TILE, v);
                    }
            }
        }
    }

    __device__ __forceinline__ void end_chunk(const gemv_job &g, const gemv_room &r,
                                              const uint8_t *a, const uint8_t *b,
                                              const row_scale<TYPE> &ra, const row_scale<TYPE> &rb,
                                              const uint8_t *const *sums, uint32_t mask, int chunk,
                                              int chunks, float (*total)[2], float *part)
    {
        int lane = (int)threadIdx.x % 32, t = lane % 4, at = lane / 4;
        uint32_t ma[2], mb[2];
        if (S::MINIMA > 0) {
            row_minima<TYPE>().load(a, t, ma);
            row_minima<TYPE>().load(b, t, mb);
        }
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            float va = meet(sum[j][0], sum[j][1]), vb = meet(sum[j][2], sum[j][3]);
            if constexpr (S::MINIMA > 0) {
                float m[4];
                const uint8_t *from = sums[j] + ((uint32_t)(chunk * S::MINIMA * 2) & mask);
                uint32_t b0 = *(const uint32_t *)(const void *)from;
                if (S::MINIMA == 8)
                    cu_mma8_first(m, ma[0], mb[0], b0);
                else
                    cu_mma16_first(m, ma[0], mb[0], ma[1], mb[1], b0,
                                   *(const uint32_t *)(const void *)(from + 16));
                float mina = meet(m[0], m[1]), minb = meet(m[2], m[3]);
                va = fmaf(ra.d, va, -(ra.dmin * mina));
                vb = fmaf(rb.d, vb, -(rb.dmin * minb));
            } else if constexpr (S::DEFERRED != 0) {
                va = ra.d * va;
                vb = rb.d * vb;
            }
            if (MUTANT(24) && chunk > 0 && chunk + 1 == chunks) /* the last chunk lost */
                va = vb = 0;
            if (g.split == 1) {
                total[j][0] += va;
                total[j][1] += vb;
            } else if (t % 2 == 0 && 2 * j + t / 2 < T) {
                float *to = part + (chunk * T + 2 * j + t / 2) * TILE + at;
                to[0] = va;
                to[8] = vb;
            }
            sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = 0;
        }
    }

    __device__ __forceinline__ void put(const gemv_job &g, int at, int r, int token, float v) const
    {
        int64_t n = (int64_t)at * TILE + r;
#pragma unroll
        for (int j = 0; j < T; j++)
            if (j == token && token < g.tokens && n < w->rows)
                g.y[j][n] = maybe_bf16(v, g.bf16);
    }
};

/* Vectors into parts, then all tiles. before: the weights are known and nothing has waited for the
 * kernel before this one: the first units are fetched while it still runs. words: IQ2's tables. */
template <int TYPE, int T, int WARPS>
__device__ __forceinline__ void stream_rows(const gemv_job &g, const gemv_room &r,
                                            const float *const *from, bool before,
                                            const cu_iq2_words *words)
{
    typedef streamer<TYPE, T, WARPS> S;
    enum { MINIMA = row_shape<TYPE>::MINIMA, SUM = MINIMA > 0 ? CU_CHUNK / MINIMA : 0 };
    S s;
    s.start(g, r);
    s.fill();
    if (TYPE == DSV4_IQ2_XXS) {
        uint8_t *to = r.iq2 + (iq2_tables(r) - shared_address(r.iq2));
        for (int i = threadIdx.x; i < (IQ2_BOOK + IQ2_SIGNS) / 16; i += WARPS * 32) {
            const uint32_t *word =
                i < IQ2_BOOK / 16 ? words->book[i / 8] : words->signs[(i - IQ2_BOOK / 16) / 8];
            uint32_t v = __ldg(word);
            *(uint4 *)(void *)(to + 16 * i) = make_uint4(v, v, v, v);
        }
    }
    if (before)
        wait_for_previous();
    if (MUTANT(13) && threadIdx.x / 32 == WARPS - 1) /* a warp that comes late */
        __nanosleep(20000);
    split_vectors<T, WARPS, SUM>(g, r, from);
    if (!MUTANT(13)) /* missing barrier: the vectors are read while they are written */
        __syncthreads();
    s.multiply(g, r);
}

#endif
