/* ints_dot_blocks.cuh - formats whose blocks of 32 columns have a factor each, in whole numbers
 * (ints.cuh): codes of a block are one mma from CU_INT_START. Private to linear.cu. */
#ifndef DSV4_CUDA_INTS_DOT_BLOCKS_CUH
#define DSV4_CUDA_INTS_DOT_BLOCKS_CUH

#include "ints_dot.cuh"

/* A row's codes and factors of a chunk, block by block. codes: columns 8t .. 8t+3 and the next four
 * of a lane, signed bytes. */
template <int TYPE> struct int_row;

template <> struct int_row<DSV4_Q8_0> {
    row_reader<DSV4_Q8_0> reader;
    row_scale<DSV4_Q8_0> scale;
    __device__ __forceinline__ void start(const uint8_t *chunk, const uint8_t *)
    {
        reader.start(chunk);
        scale.load(chunk, NULL);
    }
    __device__ __forceinline__ void codes(int i, uint32_t w[2]) const
    {
        row_codes<DSV4_Q8_0> c;
        reader.load(c, i);
        w[0] = c.w[0];
        w[1] = c.w[1];
    }
    __device__ __forceinline__ float factor(int i) const
    {
        return scale.block(i);
    }
    static __device__ __forceinline__ float unit() /* what a code's one is worth */
    {
        return 1.0f;
    }
};

template <> struct int_row<DSV4_FP4> {
    const uint8_t *from;
    row_scale<DSV4_FP4> scale;
    __device__ __forceinline__ void start(const uint8_t *chunk, const uint8_t *factors)
    {
        from = chunk + threadIdx.x % 4 * 4;
        scale.load(chunk, factors);
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

/* A chunk of rows a and b (g and g + 8), whose factors begin at fa and fb, times x[j]; factors[j]:
 * of the chunk for the lane's pair of limbs of token j. */
template <int TYPE, int PAIRS> struct int_blocks {
    static __device__ __forceinline__ void dot(const uint8_t *a, const uint8_t *b,
                                               const uint8_t *fa, const uint8_t *fb,
                                               const uint8_t *const *x, const float *factors,
                                               float (*f)[2])
    {
        int_row<TYPE> ra, rb;
        uint4 p[PAIRS];
        float less[PAIRS]; /* what the sums begin with, scaled as they are */
        ra.start(a, fa);
        rb.start(b, fb);
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            less[j] = -cu_float_of(CU_INT_START) * factors[j];
            f[j][0] = f[j][1] = 0;
        }
#pragma unroll
        for (int i = 0; i < CU_CHUNK / 32; i++) {
            int of = MUTANT(29) ? i ^ 1 : i; /* the factor of the block beside it */
            uint32_t ca[2], cb[2];
            ra.codes(i, ca);
            rb.codes(i, cb);
            float da = ra.factor(of), db = rb.factor(of);
            if (MUTANT(30) && i == CU_CHUNK / 32 - 1) /* a chunk's last block lost */
                da = db = 0;
#pragma unroll
            for (int j = 0; j < PAIRS; j++) {
                int c[4];
                float v[4];
                if (i % 2 == 0)
                    p[j] = *(const uint4 *)(const void *)(x[j] + 128 * i);
                cu_mma_s8_floats(c, ca[0], cb[0], ca[1], cb[1], i % 2 ? p[j].z : p[j].x,
                                 i % 2 ? p[j].w : p[j].y);
#pragma unroll
                for (int k = 0; k < 4; k++)
                    v[k] = fmaf(__int_as_float(c[k]), factors[j], less[j]);
                f[j][0] = fmaf(da, fmaf(256.0f, v[0], v[1]), f[j][0]);
                f[j][1] = fmaf(db, fmaf(256.0f, v[2], v[3]), f[j][1]);
            }
        }
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            f[j][0] *= int_row<TYPE>::unit();
            f[j][1] *= int_row<TYPE>::unit();
        }
    }
};

#endif
