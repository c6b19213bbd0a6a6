/* stream.cuh - how a block multiplies rows with the vectors of one or of four tokens on the
 * tensor cores: every warp streams tiles of 16 rows through a ring of its own in shared memory
 * (cp.async, so that the bytes in flight cost no registers) and multiplies a unit of columns when
 * it has arrived. The order of a sum is mma.cuh's. Private to linear.cu.
 *
 * `split` warps share a tile: each takes some of its chunks, whose sums meet in shared memory, and
 * one warp adds them in order. What is split is a matter of speed alone. */
#ifndef DSV4_CUDA_STREAM_CUH
#define DSV4_CUDA_STREAM_CUH

#include "rows.cuh"
#include "ints.cuh"

enum { TILE = 16, PIECE = 16 /* bytes of a copy */ };

/* ---- asynchronous copies --------------------------------------------------------------------- */

__device__ __forceinline__ void copy_16(uint32_t to, const uint8_t *from)
{
    /* The line's other sectors are wanted soon. */
    asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2;" ::"r"(to),
                 "l"(from), "l"(passing())
                 : "memory");
}

__device__ __forceinline__ void copy_4(uint32_t to, const uint8_t *from)
{
    asm volatile("cp.async.ca.shared.global.L2::cache_hint [%0], [%1], 4, %2;" ::"r"(to), "l"(from),
                 "l"(passing())
                 : "memory");
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
 * bytes for BYTES of a row, in words as they lie in memory. */
template <int TYPE> struct unit_shape;
#define CU_UNIT_ENUM(type, cols, pieces, stride, scale)                                            \
    enum {                                                                                         \
        COLS = cols,                                                                               \
        BYTES = (int)row_shape<type>::CHUNK_BYTES * cols / CU_CHUNK,                               \
        PIECES = pieces,                                                                           \
        MAIN = pieces < 16   ? 8                                                                   \
               : pieces < 32 ? 16                                                                  \
                             : 32,        /* lanes that copy a row, */                             \
        REST = pieces - MAIN > 2 ? 4 : 2, /* and those for its rest */                             \
        STRIDE = stride,                                                                           \
        SCALE = scale,                                                                             \
        SCALE_STRIDE = scale == 0 ? 0 : (scale + 6) / 4 * 4,                                       \
        ROOM = TILE * (STRIDE + SCALE_STRIDE),                                                     \
        LOOSE = (int)row_shape<type>::CHUNK_BYTES % 128 != 0 /* rows begin anywhere */             \
    };                                                                                             \
    static_assert(ROOM % 16 == 0 && STRIDE >= PIECES * PIECE, "a unit's room");                    \
    static_assert(PIECES <= MAIN + REST, "lanes for all pieces")
#define CU_UNIT_SHAPE(type, cols, pieces, stride, scale)                                           \
    template <> struct unit_shape<type> {                                                          \
        CU_UNIT_ENUM(type, cols, pieces, stride, scale);                                           \
    }
CU_UNIT_SHAPE(DSV4_BF16, 128, 16, 256, 0);
CU_UNIT_SHAPE(DSV4_FP8, 256, 16, 288, 2);
CU_UNIT_SHAPE(DSV4_FP4, 256, 8, 144, 8);
CU_UNIT_SHAPE(DSV4_MXFP4, 256, 10, 176, 0);
CU_UNIT_SHAPE(DSV4_Q8_0, 256, 18, 288, 0);
CU_UNIT_SHAPE(DSV4_Q4_K, 512, 18, 288, 0);
CU_UNIT_SHAPE(DSV4_Q2_K, 256, 6, 112, 0);
CU_UNIT_SHAPE(DSV4_IQ2_XXS, 256, 5, 80, 0);

/* In whole numbers: of one token with Q8_0 twice as many columns, which begin at the memory's
 * sectors of 32 bytes. */
template <int TYPE, int T> struct int_unit : unit_shape<TYPE> {
};
template <> struct int_unit<DSV4_Q8_0, 1> {
    CU_UNIT_ENUM(DSV4_Q8_0, 512, 35, 560, 0);
};
#undef CU_UNIT_ENUM
#undef CU_UNIT_SHAPE

/* ---- a block's work -------------------------------------------------------------------------- */

enum { MOST_TOKENS = 4 };

/* How a block goes about a matrix. depth: units in a warp's ring, SHALLOW to DEEP; copies: of each
 * word of IQ2_XXS's book in shared memory, for the lanes that share one; ints: in whole numbers. */
enum {
    SHALLOW = 2,
    DEEP = 3,
    FEW_COPIES = CU_IQ2_FEW,
    MOST_COPIES = CU_IQ2_LANES,
    IQ2_STRIDE = 4 * MOST_COPIES,
    BULK_STEP = 256   /* bytes; see stream_bulk.cuh */
};
typedef struct {
    int split, depth, copies;
    bool ints;
    uint8_t bulk; /* by the copy engine: 1, or 2 where it takes pairs of rows; 0: not so */
    bool ahead;   /* the vector is read before the matrix is known: learn_matrix */
    bool known;   /* matrix and vector are: only what is written waits for the kernel before */
} gemv_plan;

/* Rows of w for up to T tokens. Blocks take turns at the tiles: block `block` of `blocks`. In
 * shared memory: registers are few. */
typedef struct {
    cu_tensor w;
    int block, blocks;
    gemv_plan plan;
    const float *x[MOST_TOKENS]; /* some vector where there is no token */
    float *y[MOST_TOKENS];
    int tokens;
    bool bf16;
    /* Of one token: up != NULL: x[0] is gates (cu_segment). */
    float limit;
    const float *up, *share;
    /* IQ2_XXS of one token: stream_bulk.cuh. */
    const void *map;
    const uint8_t *origin;
    int begins;
    /* table != NULL: w is table[*index] once the kernel before this one is done, and is a shape
     * until then (learn_matrix). */
    const cu_tensor *table;
    const int32_t *index;
    bool late; /* the next kernel may start once this one has waited, no sooner */
} gemv_job;

__device__ __forceinline__ void wait_for_vectors(const gemv_job &g)
{
    if (g.plan.known)
        return;
    wait_for_previous();
    if (g.late)
        let_next_start();
}

/* By who writes results, first. */
__device__ __forceinline__ void wait_for_room(const gemv_job &g)
{
    if (g.plan.known && !MUTANT(39)) /* results written while earlier kernels use their place */
        wait_for_previous();
}

/* w is the matrix, but for what the launch says of its shape; where the map's steps do not lead to
 * it, it comes without the map. */
__device__ __forceinline__ void place_matrix(gemv_job &g, const cu_tensor *w, int type,
                                             int64_t cols)
{
    if (w != &g.w)
        g.w = *w;
    g.w.type = type;
    g.w.cols = cols;
    if (!g.plan.bulk)
        return;
    int64_t from = g.w.data - g.origin;
    g.begins = (int)(from / BULK_STEP);
    if (from % BULK_STEP != 0)
        g.plan.bulk = 0;
}

/* By all threads: the kernel before this one is done, and what it chose is known. */
static __device__ __noinline__ void learn_matrix(gemv_job &g)
{
    if (g.table == NULL)
        return;
    wait_for_previous();
    let_next_start();
    if (threadIdx.x == 0)
        place_matrix(g, &g.table[__ldcg(g.index)], g.w.type, g.w.cols);
    __syncthreads();
}

/* Where things lie in dynamic shared memory. x: bf16 parts [tokens][3][ld], or limbs [tokens]
 * [chunks][LIMB_CHUNK] with their sums and the chunks' factors. */
typedef struct {
    uint8_t *ring; /* [warps][depth][ROOM] */
    uint8_t *x, *sums;
    float *factors;
    uint8_t *zeros; /* for a chunk */
    int ld;         /* bytes */
    /* Sums on their way, split > 1: of chunks [2][groups][chunks][T][TILE], or of shares
     * [2][groups][split][T][2][TILE]. */
    float *parts;
    /* IQ2_XXS's words: 256 of the book, iq2_stride bytes of copies each, and 128 of the signs,
     * IQ2_STRIDE bytes each: a lane has a bank of its own there. */
    uint8_t *iq2;
    uint32_t iq2_stride;
} gemv_room;

/* Rows of parts 64 bytes apart modulo 128: eight lanes' 16-byte loads meet in no bank. */
__host__ __device__ __forceinline__ int parts_stride(int cols)
{
    int bytes = cols * 2;
    return bytes % 128 == 64 ? bytes : bytes + 64;
}

/* Bytes of a unit. */
static inline int unit_bytes(int type, bool ints, int tokens)
{
    switch (type) {
#define ROOM_OF(type)                                                                              \
    case type:                                                                                     \
        return !ints         ? (int)unit_shape<type>::ROOM                                         \
               : tokens == 1 ? (int)int_unit<type, 1>::ROOM                                        \
                             : (int)int_unit<type, MOST_TOKENS>::ROOM
        ROOM_OF(DSV4_BF16);
        ROOM_OF(DSV4_FP8);
        ROOM_OF(DSV4_FP4);
        ROOM_OF(DSV4_MXFP4);
        ROOM_OF(DSV4_Q8_0);
        ROOM_OF(DSV4_Q4_K);
        ROOM_OF(DSV4_Q2_K);
        ROOM_OF(DSV4_IQ2_XXS);
#undef ROOM_OF
    default:
        return 0;
    }
}

/* Dynamic shared memory: its size on the host, its parts on the device. */
__host__ __device__ __forceinline__ size_t lay_out(const cu_tensor *w, int warps, gemv_plan plan,
                                                   int tokens, int unit, uint8_t *base,
                                                   gemv_room *r)
{
    int cols = (int)w->cols, chunks = (cols + CU_CHUNK - 1) / CU_CHUNK;
    bool ints = plan.ints;
    r->iq2 = base;
    r->iq2_stride = 4 * (uint32_t)plan.copies;
    size_t at = w->type == DSV4_IQ2_XXS ? 256 * r->iq2_stride + 128 * IQ2_STRIDE : 0;
    r->ring = base + at;
    int tall = plan.bulk ? 2 : 1; /* units of that many tiles */
    at += (size_t)(warps * (plan.bulk ? 2 * tall : plan.depth) * unit);
    r->x = base + at;
    r->ld = parts_stride(cols);
    at += ints ? (size_t)(tokens * chunks * LIMB_CHUNK) : (size_t)(CU_PARTS * tokens * r->ld);
    r->zeros = base + at;
    at += !ints ? CU_CHUNK * 2 : 0;
    r->sums = base + at;
    if (w->type == DSV4_Q4_K || w->type == DSV4_Q2_K)
        at += (size_t)(tokens * chunks * sums_bytes(w->type));
    r->parts = (float *)(void *)(base + at);
    if (plan.split > 1)
        at += (size_t)(2 * (warps / plan.split) * (ints ? 2 * plan.split : chunks) * tokens * TILE *
                       tall) *
              sizeof(float);
    r->factors = (float *)(void *)(base + at);
    if (ints)
        at += (size_t)(tokens * chunks) * sizeof(float);
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

/* Gates g with u: one copy of these instructions, for all that take them. */
static __device__ __noinline__ float4 swiglu_four(float4 g, float4 u, float limit,
                                                  const float *share)
{
    float4 h = make_float4(swiglu_of(g.x, u.x, limit), swiglu_of(g.y, u.y, limit),
                           swiglu_of(g.z, u.z, limit), swiglu_of(g.w, u.w, limit));
    if (share != NULL && !MUTANT(76)) { /* the weights of the experts left out */
        float s = *share;
        h = make_float4(s * h.x, s * h.y, s * h.z, s * h.w);
    }
    return h;
}

/* The columns of a job's only token, v read from its x already. */
__device__ __forceinline__ float4 gated(const gemv_job &g, float4 v, int i, bool aligned)
{
    return swiglu_four(v, four_from(g.up, i, aligned), g.limit, g.share);
}

/* The tokens' vectors into parts. */
template <int T, int WARPS>
__device__ __forceinline__ void split_vectors(const gemv_job &g, const gemv_room &r)
{
    enum { AHEAD = 4, STEP = WARPS * 32 };
    int quads = (int)g.w.cols / 4;
    if (threadIdx.x < CU_CHUNK / 2)
        ((uint32_t *)(void *)r.zeros)[threadIdx.x] = 0;
#pragma unroll
    for (int t = 0; t < T; t++) {
        const float *in = g.x[t];
        bool aligned = ((uintptr_t)in | (uintptr_t)g.up) % 16 == 0;
        uint8_t *to = r.x + t * CU_PARTS * r.ld;
        for (int first = (int)threadIdx.x; first < quads; first += AHEAD * STEP) {
            float4 v[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (first + k * STEP < quads)
                    v[k] = four_from(in, first + k * STEP, aligned);
            if (T == 1 && g.up != NULL)
#pragma unroll
                for (int k = 0; k < AHEAD; k++)
                    if (first + k * STEP < quads)
                        v[k] = gated(g, v[k], first + k * STEP, aligned);
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (first + k * STEP < quads) {
                    float four[4] = {v[k].x, v[k].y, v[k].z, v[k].w};
                    store_parts(to + 8 * (first + k * STEP), r.ld, four);
                }
        }
    }
}

/* ---- reading a unit -------------------------------------------------------------------------- */

/* A row's codes from shared memory, where a few bytes more may be read than are the row's. */
template <int TYPE> struct row_reader {
    const uint8_t *chunk;
    __device__ __forceinline__ void start(const uint8_t *p)
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
    __device__ __forceinline__ void start(const uint8_t *p)
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

template <> struct row_reader<DSV4_MXFP4> {
    const uint8_t *from;
    uint32_t off;
    __device__ __forceinline__ void start(const uint8_t *p)
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
        MAIN = U::MAIN,
        REST = U::REST
    };

    cu_tensor w; /* in registers */
    uint8_t *ring;
    int depth, tiles, stride, first, last; /* the warp's columns of a tile */
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
        return w.data + ((size_t)at * TILE + r) * w.row_bytes;
    }
    __device__ __forceinline__ const uint8_t *scales(int at, int r) const
    {
        if (U::SCALE == 0)
            return NULL;
        int64_t n = (int64_t)at * TILE + r;
        int group = w.row0 + (int)(n < w.rows ? n : w.rows - 1);
        if (TYPE == DSV4_FP8)
            group /= w.scale_rows;
        return w.scale + (size_t)group * w.scale_row_bytes;
    }

    __device__ __forceinline__ void find_tile()
    {
        int lane = (int)threadIdx.x % 32;
        from = row(tile, lane / MAIN) + bytes_of(first);
        from_rest = row(tile, U::PIECES > MAIN ? lane / REST : 0) + bytes_of(first);
        from_scale = scales(tile, lane % 16);
        rows = (int)(w.rows - (int64_t)tile * TILE);
    }

    __device__ __forceinline__ void start(const gemv_job &g, const gemv_room &r)
    {
        int warp = (int)threadIdx.x / 32, split = g.plan.split;
        int groups = WARPS / split, share = warp % split;
        int cols = (int)g.w.cols, chunks = (cols + CU_CHUNK - 1) / CU_CHUNK;
        w = g.w;
        depth = g.plan.depth;
        ring = r.ring + warp * (depth * U::ROOM);
        tiles = (int)((w.rows + TILE - 1) / TILE);
        stride = g.blocks * groups;
        tile = g.block * groups + warp / split;
        first = share * chunks / split * CU_CHUNK;
        last = (share + 1) * chunks / split * CU_CHUNK;
        last = last < cols ? last : cols;
        col = first;
        slot = 0;
        plain = !U::LOOSE || w.row_bytes % PIECE == 0;
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
        uint32_t to = copy_target(room + lane / LANES * U::STRIDE + piece);
        size_t step = (size_t)HEIGHT * w.row_bytes;
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
                uint32_t words = copy_target(room + TILE * U::STRIDE + lane % 16 * U::SCALE_STRIDE);
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
        slot = slot + 1 == depth ? 0 : slot + 1;
        copies_end();
    }

    __device__ __forceinline__ void fill()
    {
#pragma unroll 1
        for (int i = 0; i < depth; i++)
            copy();
    }

    /* The oldest unit is there. */
    __device__ __forceinline__ void arrived() const
    {
        if (depth == SHALLOW)
            copies_wait<SHALLOW - 1>();
        else
            copies_wait<DEEP - 1>();
        __syncwarp();
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
            if ((k + i) % S::BLOCKS == S::BLOCKS - 1)
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
        int split = g.plan.split, groups = WARPS / split;
        int group = warp / split, share = warp % split;
        int cols = (int)w.cols, chunks = (cols + CU_CHUNK - 1) / CU_CHUNK, now = 0, turn = 0;
        /* Column n of B is part n % 4 of the pair's token n / 4; the rest reads zeros. */
        const uint8_t *x[PAIRS];
        uint32_t mask = at % 4 < CU_PARTS && at / 4 < T ? 0xffffffffu : 0;
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            int plane = (2 * j + at / 4) * CU_PARTS + at % 4;
            x[j] = mask ? r.x + plane * r.ld + 16 * t : r.zeros;
        }
        for (int k = g.block * groups + group; k < tiles; k += stride, turn++) {
            uint32_t da = (uint32_t)(uintptr_t)row(k, at), db = (uint32_t)(uintptr_t)row(k, at + 8);
            uint32_t sa = (uint32_t)(uintptr_t)scales(k, at),
                     sb = (uint32_t)(uintptr_t)scales(k, at + 8);
            float total[PAIRS][2] = {};
            float *part = r.parts + (size_t)((turn & 1) * groups + group) * chunks * T * TILE;
#pragma unroll
            for (int j = 0; j < PAIRS; j++)
                sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = 0;
            for (int unit = first; unit < last; unit += U::COLS) {
                arrived();
                const uint8_t *room = ring + now * U::ROOM, *a = room + at * U::STRIDE;
                const uint8_t *fa = room + TILE * U::STRIDE + at * U::SCALE_STRIDE;
                const uint8_t *b = a + 8 * U::STRIDE, *fb = fa + 8 * U::SCALE_STRIDE;
                now = now + 1 == depth ? 0 : now + 1;
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
                    qa.start(a);
                    qb.start(b);
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
                        end_chunk(split, c / CU_CHUNK, chunks, total, part);
                    a += bytes_of(STEP);
                    b += bytes_of(STEP);
                    fa += scales_of(STEP);
                    fb += scales_of(STEP);
                }
                __syncwarp(); /* all lanes are done with the unit's room */
                copy();
            }
            if (T == 1)
                wait_for_room(g);
            if (split == 1) {
#pragma unroll
                for (int j = 0; j < PAIRS; j++)
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        if (t % 2 == 0)
                            put(g, k, at + 8 * i, 2 * j + t / 2, total[j][i]);
            } else {
                asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "r"(32 * split) : "memory");
                if (turn % split == share)
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

    __device__ __forceinline__ void end_chunk(int split, int chunk, int chunks, float (*total)[2],
                                              float *part)
    {
        int lane = (int)threadIdx.x % 32, t = lane % 4, at = lane / 4;
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            float va = meet(sum[j][0], sum[j][1]), vb = meet(sum[j][2], sum[j][3]);
            if (MUTANT(24) && chunk > 0 && chunk + 1 == chunks) /* the last chunk lost */
                va = vb = 0;
            if (split == 1) {
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
            if (j == token && token < g.tokens && n < w.rows)
                g.y[j][n] = maybe_bf16(v, g.bf16);
    }
};

/* Vectors into parts, then all tiles. before: the weights are known and nothing has waited for the
 * kernel before this one: the first units are fetched while it still runs. */
template <int TYPE, int T, int WARPS>
__device__ __forceinline__ void stream_rows(const gemv_job &g, const gemv_room &r, bool before)
{
    streamer<TYPE, T, WARPS> s;
    s.start(g, r);
    s.fill();
    if (before)
        wait_for_vectors(g);
    if (MUTANT(13) && threadIdx.x / 32 == WARPS - 1) /* a warp that comes late */
        __nanosleep(20000);
    split_vectors<T, WARPS>(g, r);
    if (!MUTANT(13)) /* missing barrier: the vectors are read while they are written */
        __syncthreads();
    s.multiply(g, r);
}

#endif
