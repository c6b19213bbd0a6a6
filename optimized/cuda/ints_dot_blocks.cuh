/* ints_dot_blocks.cuh - formats whose blocks of 32 columns have a factor each, in whole numbers
 * (ints.cuh): the codes of a block are one mma from CU_INT_START. Private to linear.cu. */
#ifndef DSV4_CUDA_INTS_DOT_BLOCKS_CUH
#define DSV4_CUDA_INTS_DOT_BLOCKS_CUH

#include "ints_dot.cuh"

/* A row's codes and factors of a chunk, which begins at a multiple of four bytes, block by block.
 * start: factors are those of blocks `first` and on. codes: a lane's columns, eight signed bytes.
 * unit(): what a code's one is worth. */
template <int TYPE> struct int_row;

/* Every other block's codes begin in the middle of a word. */
template <> struct int_row<DSV4_Q8_0> {
    const uint8_t *from;
    row_scale<DSV4_Q8_0> scale;
    __device__ __forceinline__ void start(const uint8_t *chunk, const uint8_t *, int first)
    {
        from = chunk + threadIdx.x % 4 * 8;
        scale.load(chunk + 34 * first, NULL);
    }
    __device__ __forceinline__ void codes(int i, uint32_t w[2]) const
    {
        bool middle = i % 2 == 0;
        const uint8_t *p = from + (34 * i + (middle ? 0 : 2));
        w[0] = cu_word(p);
        w[1] = cu_word(p + 4);
        if (middle) {
            w[0] = cu_funnel(w[0], w[1], 16);
            w[1] = cu_funnel(w[1], cu_word(p + 8), 16);
        }
    }
    __device__ __forceinline__ float factor(int i) const
    {
        return scale.block(i);
    }
    static __device__ __forceinline__ float unit()
    {
        return 1.0f;
    }
};

template <> struct int_row<DSV4_FP4> {
    const uint8_t *from;
    row_scale<DSV4_FP4> scale;
    __device__ __forceinline__ void start(const uint8_t *chunk, const uint8_t *factors, int first)
    {
        from = chunk + threadIdx.x % 4 * 4;
        scale.load(chunk, factors + first);
    }
    __device__ __forceinline__ void codes(int i, uint32_t w[2]) const
    {
        uint32_t n = cu_word(from + 16 * i);
        if (MUTANT(31)) /* signs lost */
            n &= 0x77777777u;
        cu_fp4_codes(n, w);
    }
    __device__ __forceinline__ float factor(int i) const
    {
        return scale.block(i);
    }
    static __device__ __forceinline__ float unit()
    {
        return 0.25f;
    }
};

/* Blocks of 17 bytes; a lane's columns are those of four bytes (cu_apart). */
template <> struct int_row<DSV4_MXFP4> {
    const uint8_t *from;
    row_scale<DSV4_MXFP4> scale;
    __device__ __forceinline__ void start(const uint8_t *chunk, const uint8_t *, int first)
    {
        from = chunk + 1 + threadIdx.x % 4 * 4;
        scale.load(chunk + 17 * first, NULL);
    }
    __device__ __forceinline__ void codes(int i, uint32_t w[2]) const
    {
        uint32_t off = (uint32_t)(i + 1) % 4;
        const uint8_t *p = from + 17 * i - off;
        uint32_t n = cu_word(p);
        if (off > 0)
            n = cu_funnel(n, cu_word(p + 4), 8 * off);
        if (MUTANT(31)) /* signs lost */
            n &= 0x77777777u;
        cu_fp4_codes(n, w);
    }
    __device__ __forceinline__ float factor(int i) const
    {
        return scale.block(i);
    }
    static __device__ __forceinline__ float unit()
    {
        return 0.5f; /* the factors are halves */
    }
};

/* A chunk of rows a and b (g and g + 8), whose factors begin at fa and fb, times x[j]; factors[j]:
 * of the chunk for the lane's pair of limbs of token j. Sums of even blocks and of odd ones; of one
 * token both in `even`, odd ones in lanes t = 2, 3, since columns 4 .. 7 of B are free for them: x
 * is then that of even blocks in lanes of B's columns 0 .. 3, of odd ones in the others. */
template <int TYPE, int T> struct int_blocks {
    enum { PAIRS = (T + 1) / 2, BLOCKS = CU_CHUNK / 32 };

    /* Sums of a block of rows a and b into f, as what they are. */
    static __device__ __forceinline__ void add(float f[2], const int c[4], float da, float db,
                                               float factor, float less)
    {
        float v[4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            v[k] = fmaf(__int_as_float(c[k]), factor, less);
        f[0] = fmaf(da, fmaf(256.0f, v[0], v[1]), f[0]);
        f[1] = fmaf(db, fmaf(256.0f, v[2], v[3]), f[1]);
    }

    static __device__ __forceinline__ void dot(const uint8_t *a, const uint8_t *b,
                                               const uint8_t *fa, const uint8_t *fb,
                                               const uint8_t *const *x, const float *factors,
                                               float (*even)[2], float (*odd)[2])
    {
        int t = (int)threadIdx.x % 4, second = T == 1 ? t / 2 : 0;
        int first = MUTANT(29) ? 1 - second : second; /* the factor of the block beside it */
        int_row<TYPE> ra, rb;
        float less[PAIRS]; /* what the sums begin with, scaled as they are */
        ra.start(a, fa, first);
        rb.start(b, fb, first);
#pragma unroll
        for (int j = 0; j < PAIRS; j++)
            less[j] = MUTANT(34) ? 0.0f : -cu_float_of(CU_INT_START) * factors[j];
        uint32_t odds = threadIdx.x / 16 % 2, evens = 1 - odds; /* this lane's column of B */
#pragma unroll
        for (int i = 0; i < BLOCKS; i += 2) {
            uint32_t ca[2][2], cb[2][2];
#pragma unroll
            for (int k = 0; k < 2; k++) {
                ra.codes(i + k, ca[k]);
                rb.codes(i + k, cb[k]);
            }
            /* a chunk's last block lost */
            bool lost = MUTANT(30) && i + 2 == BLOCKS;
            if (T == 1) {
                uint2 p = *(const uint2 *)(const void *)(x[0] + 128 * i);
                float da = ra.factor(i), db = rb.factor(i);
                int c[4];
                if (lost && second)
                    da = db = 0;
                cu_mma_s8_floats(c, ca[0][0], cb[0][0], ca[1][0], cb[1][0], p.x * evens,
                                 p.x * odds);
                cu_mma_s8_add(c, ca[0][1], cb[0][1], ca[1][1], cb[1][1], p.y * evens, p.y * odds);
                add(even[0], c, da, db, factors[0], less[0]);
            } else {
                float da[2], db[2];
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    da[k] = lost && k ? 0.0f : ra.factor(i + (MUTANT(29) ? 1 - k : k));
                    db[k] = lost && k ? 0.0f : rb.factor(i + (MUTANT(29) ? 1 - k : k));
                }
#pragma unroll
                for (int j = 0; j < PAIRS; j++) {
                    uint4 p = *(const uint4 *)(const void *)(x[j] + 128 * i);
                    int c[4];
                    cu_mma_s8_floats(c, ca[0][0], cb[0][0], ca[0][1], cb[0][1], p.x, p.y);
                    add(even[j], c, da[0], db[0], factors[j], less[j]);
                    cu_mma_s8_floats(c, ca[1][0], cb[1][0], ca[1][1], cb[1][1], p.z, p.w);
                    add(odd[j], c, da[1], db[1], factors[j], less[j]);
                }
            }
        }
    }

    /* At the end: even and odd blocks' sums. */
    static __device__ __forceinline__ float meet(float even, float odd)
    {
        return (even + (T == 1 ? __shfl_xor_sync(0xffffffffu, even, 2) : odd)) *
               int_row<TYPE>::unit();
    }
};

#endif
