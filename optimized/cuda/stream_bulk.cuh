/* stream_bulk.cuh - IQ2_XXS times one token where the copy engine can bring the units
 * (cp.async.bulk.tensor: compute capability 9.0, nvcc 12): one request brings a chunk of 32 rows,
 * which shared memory takes in full rows of its own instead of sector by sector, and both tiles of
 * 16 rows share what a warp loads of x. Private to linear.cu.
 *
 * The map has three dimensions: half words of a row, of which a request may begin with every
 * eighth; rows; and where the matrix begins, in steps of BULK_STEP bytes from the map's own
 * beginning: one map for all matrices of a launch. Rows that begin 8 bytes apart in turns, as of
 * 1024 columns, are mapped as pairs: the even ones are a unit's first half, the odd ones the other.
 * What is requested lies within the matrix but for the ends of rows, which the map cuts off. */
#ifndef DSV4_CUDA_STREAM_BULK_CUH
#define DSV4_CUDA_STREAM_BULK_CUH

#include "stream_ints.cuh"

enum { BULK_ROWS = 2 * TILE, BULK_STRIDE = 80, BULK_UNIT = BULK_ROWS * BULK_STRIDE };

/* What the driver makes of it (linear.cu), in the kernel's arguments. */
typedef struct alignas(64) {
    uint64_t words[16];
} bulk_map;

#if __CUDA_ARCH__ >= 900 && __CUDACC_VER_MAJOR__ >= 12
#define BULK 1

/* One lane of a warp, in such a way that the compiler knows it to be one. */
__device__ __forceinline__ bool elected()
{
    uint32_t one;
    asm volatile("{\n\t.reg .pred p;\n\t"
                 "elect.sync _|p, 0xffffffff;\n\t"
                 "selp.u32 %0, 1, 0, p;\n\t}"
                 : "=r"(one));
    return one != 0;
}

template <int WARPS> struct bulk_streamer {
    enum { BRINGS_TABLES = 1, DEPTH = 2, CHUNK_BYTES = (int)row_shape<DSV4_IQ2_XXS>::CHUNK_BYTES };
    uint32_t ring, bars;            /* of the warp */
    int tiles, stride, first, last; /* chunks of a tile */
    int tile, chunk, asked;         /* the next unit, and how many there were */
    int odd, begins;                /* where odd rows begin, if they come apart; gemv_job's */
    const void *map;

    __device__ __forceinline__ void start(const gemv_job &g, const gemv_room &r)
    {
        static __shared__ uint64_t barriers[WARPS * (DEPTH + 1)];
        int warp = (int)threadIdx.x / 32, split = g.plan.split, shift = 31 - __clz(split);
        int groups = WARPS >> shift, share = warp & (split - 1), chunks = (int)g.w.cols / CU_CHUNK;
        ring = (uint32_t)__cvta_generic_to_shared(r.ring) + (uint32_t)(warp * DEPTH * BULK_UNIT);
        bars = (uint32_t)__cvta_generic_to_shared(barriers + warp * (DEPTH + 1));
        tiles = (int)(g.w.rows / BULK_ROWS);
        stride = g.blocks * groups;
        first = share * chunks >> shift;
        last = (share + 1) * chunks >> shift;
        tile = first < last ? g.block * groups + (warp >> shift) : tiles;
        chunk = first;
        asked = 0;
        odd = g.plan.bulk == 2 ? (int)g.w.row_bytes : 0;
        begins = g.begins;
        map = g.map;
        if (threadIdx.x % 32 == 0) {
#pragma unroll
            for (int i = 0; i <= DEPTH; i++)
                asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(bars + 8 * i) : "memory");
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncwarp();
    }

    /* IQ2_XXS's words, every warp a part of them; all of them are there when every warp has had its
     * part and all have met. */
    __device__ __forceinline__ void bring_tables(const gemv_room &r,
                                                 const cu_iq2_tables *tables) const
    {
        const uint32_t *from = r.iq2_stride == 4 * FEW_COPIES ? tables->few : tables->lanes;
        uint32_t bytes = (256 * r.iq2_stride + 128 * IQ2_STRIDE) / WARPS;
        uint32_t at = threadIdx.x / 32 * bytes, bar = bars + 8 * DEPTH;
        if (!elected())
            return;
        asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
                     : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                     "[%0], [%1], %2, [%3];" ::"r"((uint32_t)__cvta_generic_to_shared(r.iq2) + at),
                     "l"((const uint8_t *)from + at), "r"(bytes), "r"(bar)
                     : "memory");
    }

    __device__ __forceinline__ void await_tables() const
    {
        await(bars + 8 * DEPTH, 0);
    }

    /* The matrix has become known. */
    __device__ __forceinline__ void move(const gemv_job &g, const gemv_room &)
    {
        begins = g.begins;
    }

    /* Rows `row` and on, from the 16 bytes in which byte `at` of them lies. */
    __device__ __forceinline__ void ask(uint32_t to, uint32_t at, int row, uint32_t bar) const
    {
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile"
                     ".mbarrier::complete_tx::bytes.L2::cache_hint "
                     "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
                     "l"(map), "r"((at & ~(PIECE - 1u)) / 2), "r"(row), "r"(begins), "r"(bar),
                     "l"(passing())
                     : "memory");
    }

    /* The next unit on its way into the slot that was read last. */
    __device__ __forceinline__ void copy(const gemv_job &)
    {
        if (tile < tiles) {
            if (elected()) {
                uint32_t slot = (uint32_t)asked & 1, bar = bars + 8 * slot;
                uint32_t to = ring + slot * BULK_UNIT, at = (uint32_t)(chunk * CHUNK_BYTES);
                asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(bar),
                             "r"((int)BULK_UNIT)
                             : "memory");
                ask(to, at, odd ? tile * TILE : tile * BULK_ROWS, bar);
                if (odd)
                    ask(to + BULK_UNIT / 2, at + odd, tile * TILE, bar);
            }
            if (++chunk == last) {
                chunk = first;
                tile += stride;
            }
        }
        asked++;
    }

    __device__ __forceinline__ void fill(const gemv_job &g)
    {
        copy(g);
        copy(g);
    }

    static __device__ __forceinline__ void await(uint32_t bar, uint32_t parity)
    {
        unsigned done = 0;
        while (done == 0)
            asm volatile("{\n\t.reg .pred p;\n\t"
                         "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                         "selp.u32 %0, 1, 0, p;\n\t}"
                         : "=r"(done)
                         : "r"(bar), "r"(parity)
                         : "memory");
    }

    /* All tiles of the warp, as int_streamer's. */
    __device__ __forceinline__ void multiply(const gemv_job &g, const gemv_room &r)
    {
        if (r.iq2_stride == 4 * FEW_COPIES)
            multiply_by<4 * FEW_COPIES>(g, r);
        else
            multiply_by<4 * MOST_COPIES>(g, r);
    }

    template <int STRIDE> /* iq2_stride, known to the compiler: a register */
    __device__ __forceinline__ void multiply_by(const gemv_job &g, const gemv_room &r)
    {
        uint32_t warp = threadIdx.x / 32, t = threadIdx.x % 4, at = threadIdx.x / 4 % 8, unit = 0;
        int split = g.plan.split, shift = 31 - __clz(split), groups = WARPS >> shift;
        int group = (int)warp >> shift, share = (int)warp & (split - 1), turn = 0;
        int chunks = (int)g.w.cols / CU_CHUNK;
        float pair = t % 2 == 0 ? 65536.0f : 1.0f;
        const uint8_t *mine = r.ring + warp * DEPTH * BULK_UNIT + at * BULK_STRIDE;
        /* The lane's rows of a tile. */
        int row = (int)(at + t / 2 * 8) * (odd ? 2 : 1), apart = odd ? 1 : (int)TILE;
        iq2_one one;
        one.start(r, PIECE);
        for (int k = g.block * groups + group; k < tiles; k += stride, turn++) {
            float total[2] = {}, *y = g.y[0] + (int64_t)k * BULK_ROWS;
#pragma unroll 1
            for (int c = first; c < last; c++, unit++) {
                /* the factor of the chunk before */
                int of = MUTANT(26) && c > 0 ? c - 1 : c;
                float factor = r.factors[of] * pair, f[2];
                if (MUTANT(24) && c > 0 && c + 1 == chunks) /* last chunk lost */
                    factor = 0;
                int off = (c * CHUNK_BYTES) & (PIECE - 1), next = ((off + odd) & (PIECE - 1)) - off;
                await(bars + 8 * (unit & 1), unit >> 1 & 1);
                uint32_t slot = MUTANT(35) ? 0 : unit & 1; /* the unit in the other slot taken */
                one.dot(r, STRIDE, mine + slot * BULK_UNIT + off, 8 * BULK_STRIDE,
                        BULK_UNIT / 2 + next, c, f);
                total[0] += f[0] * factor;
                total[1] += f[1] * factor;
                __syncwarp(); /* all lanes are done with the unit's room */
                copy(g);
            }
            wait_for_room(g);
            if (split == 1) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float v = total[i] + __shfl_xor_sync(0xffffffffu, total[i], 1);
                    if (t % 2 == 0)
                        y[row + i * apart] = maybe_bf16(v, g.bf16);
                }
                continue;
            }
            /* [share][pair of limbs][row]: a lane adds up a row. */
            float *part = r.parts + (size_t)((turn & 1) * groups + group) * split * 2 * BULK_ROWS;
#pragma unroll
            for (int i = 0; i < 2; i++)
                part[(share * 2 + t % 2) * BULK_ROWS + row + i * apart] = total[i];
            asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "r"(32 * split) : "memory");
            if ((turn & (split - 1)) != share)
                continue;
            float v[2] = {};
            part += threadIdx.x % 32;
#pragma unroll 4
            for (int i = 0; i < split; i++, part += 2 * BULK_ROWS)
                if (!(MUTANT(48) && i == 7)) { /* the eighth share lost */
                    v[0] += part[0];
                    v[1] += part[BULK_ROWS];
                }
            y[threadIdx.x % 32] = maybe_bf16(v[0] + v[1], g.bf16);
        }
    }
};
#endif

/* IQ2_XXS's words, copied for the lanes. */
template <int TYPE, int WARPS> struct iq2_words {
    enum { THREADS = WARPS * 32, TURNS = 384 * MOST_COPIES / 4 / THREADS };
    uint32_t word[TURNS];

    /* All on their way at once. */
    __device__ __forceinline__ void load(const gemv_room &r, const cu_iq2_tables *tables)
    {
        if (TYPE != DSV4_IQ2_XXS)
            return;
        int book = 256 / 16 * (int)r.iq2_stride, turn = 31 - __clz((int)r.iq2_stride / 16);
#pragma unroll
        for (int k = 0; k < TURNS; k++) {
            int i = (int)threadIdx.x + k * THREADS, n = i >> turn, sign = (i - book) / 8;
            if (sign < 128)
                word[k] = __ldg(tables->many + (i < book ? n : 256 + sign) * CU_IQ2_COPIES);
        }
    }

    __device__ __forceinline__ void store(const gemv_room &r) const
    {
        if (TYPE != DSV4_IQ2_XXS)
            return;
        int all = 256 / 16 * (int)r.iq2_stride + 128 / 16 * (int)IQ2_STRIDE;
#pragma unroll
        for (int k = 0; k < TURNS; k++) {
            int i = (int)threadIdx.x + k * THREADS;
            if (i < all)
                *(uint4 *)(void *)(r.iq2 + 16 * i) =
                    make_uint4(word[k], word[k], word[k], word[k]);
        }
        __syncthreads();
    }
};

/* As stream_rows, in whole numbers. Of one token, what is made of x is made before the matrix is
 * known, if that is late (learn_matrix). */
template <int TYPE, int T, int WARPS, typename STREAM>
__device__ __forceinline__ void stream_ints(gemv_job &g, const gemv_room &r, bool before,
                                            const cu_iq2_tables *tables)
{
    STREAM s;
    bool known = T == 1 && g.plan.known;
    s.start(g, r);
    if constexpr (STREAM::BRINGS_TABLES)
        s.bring_tables(r, tables);
    /* Vectors asked for behind the weights would come behind them. */
    if (before && !known)
        s.fill(g);
    if constexpr (!STREAM::BRINGS_TABLES) {
        iq2_words<TYPE, WARPS> words;
        words.load(r, tables);
        words.store(r);
    }
    limb_maker<TYPE, T, WARPS> limbs;
    limbs.start(g);
    if (before)
        wait_for_vectors(g);
    if (MUTANT(13) && threadIdx.x / 32 == WARPS - 1) /* a warp that comes late */
        __nanosleep(20000);
    limbs.vectors(g, r, [&] {
        if (known || (T > 1 && !before))
            s.fill(g);
    });
    if (T == 1 && !before) {
        learn_matrix(g);
        s.move(g, r);
        s.fill(g);
    }
    if constexpr (STREAM::BRINGS_TABLES)
        s.await_tables();
    if (!MUTANT(13)) { /* missing barrier: the vectors are read while they are written */
        if (STREAM::BRINGS_TABLES)
            __syncthreads();
        else
            limbs.meet(g);
    }
    s.multiply(g, r);
}

#endif
