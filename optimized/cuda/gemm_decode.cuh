/* gemm_decode.cuh - a thread's share of what gemm.cuh decodes: eight columns of one row (lane t of
 * a block of 32), fetched raw long before they are expanded, so that nothing waits for memory; the
 * codes, the factors and their meaning are those of mma.cuh. Private to gemm.cuh. */
#ifndef DSV4_CUDA_GEMM_DECODE_CUH
#define DSV4_CUDA_GEMM_DECODE_CUH

#include "mma.cuh"

/* load(): `chunk` the row's first byte of the chunk, `scale` the row's scales of its first column
 * (FP8, FP4), block 0..7 in the chunk. codes(): row_codes' four words, `chunk` as it
 * was. factor(): of the promotion block that the block is in. */
template <int TYPE> struct run_of_eight;

/* Eight bytes from any address, put together when they are needed. */
typedef struct {
    uint32_t raw[3];
} loose_eight;

__device__ __forceinline__ void loose_load(loose_eight *s, const uint8_t *p)
{
    uint32_t off = (uint32_t)(uintptr_t)p & 3u;
    const uint32_t *from = (const uint32_t *)(const void *)(p - off);
    s->raw[0] = __ldg(from);
    s->raw[1] = __ldg(from + 1);
    s->raw[2] = __ldg(from + (off != 0 ? 2 : 1)); /* nothing beyond the codes */
}

__device__ __forceinline__ uint32_t loose_word(const loose_eight *s, const uint8_t *p, int i)
{
    return cu_funnel(s->raw[i], s->raw[i + 1], 8 * ((uint32_t)(uintptr_t)p & 3u));
}

template <> struct run_of_eight<DSV4_BF16> {
    row_codes<DSV4_BF16> c;
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *, int block, int t)
    {
        c.w = __ldg((const uint4 *)(const void *)(chunk + 64 * block + 16 * t));
    }
    __device__ __forceinline__ void codes(const uint8_t *, int, int, uint32_t (&v)[4],
                                          const cu_iq2_words *) const
    {
        c.expand(0, v);
    }
    __device__ __forceinline__ float factor(int) const
    {
        return 1.0f;
    }
};

template <> struct run_of_eight<DSV4_FP8> {
    row_codes<DSV4_FP8> c;
    uint8_t scale;
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *scales, int block,
                                         int t)
    {
        c.w = __ldg((const uint2 *)(const void *)(chunk + 32 * block + 8 * t));
        scale = __ldg(scales + block / 4);
    }
    __device__ __forceinline__ void codes(const uint8_t *, int, int, uint32_t (&v)[4],
                                          const cu_iq2_words *) const
    {
        c.expand(0, v);
    }
    __device__ __forceinline__ float factor(int) const
    {
        return cu_e8m0(scale);
    }
};

template <> struct run_of_eight<DSV4_FP4> {
    row_codes<DSV4_FP4> c;
    uint8_t scale;
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *scales, int block,
                                         int t)
    {
        c.w = __ldg((const uint32_t *)(const void *)(chunk + 16 * block + 4 * t));
        scale = __ldg(scales + block);
    }
    __device__ __forceinline__ void codes(const uint8_t *, int, int, uint32_t (&v)[4],
                                          const cu_iq2_words *) const
    {
        c.expand(0, v);
    }
    __device__ __forceinline__ float factor(int) const
    {
        return cu_e8m0(scale);
    }
};

template <> struct run_of_eight<DSV4_MXFP4> {
    loose_eight s;
    uint8_t scale;
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *, int block, int t)
    {
        loose_load(&s, chunk + 17 * block + 1 + 8 * (t & 1));
        scale = __ldg(chunk + 17 * block);
    }
    __device__ __forceinline__ void codes(const uint8_t *chunk, int block, int t, uint32_t (&v)[4],
                                          const cu_iq2_words *) const
    {
        row_codes<DSV4_MXFP4> c;
        const uint8_t *from = chunk + 17 * block + 1 + 8 * (t & 1);
        c.w[0] = loose_word(&s, from, 0) << (t < 2 ? 4 : 0);
        c.w[1] = loose_word(&s, from, 1) << (t < 2 ? 4 : 0);
        c.expand(0, v);
    }
    __device__ __forceinline__ float factor(int) const
    {
        row_scale<DSV4_MXFP4> f;
        f.at = &scale;
        return f.block(0);
    }
};

template <> struct run_of_eight<DSV4_Q8_0> {
    loose_eight s;
    uint16_t d;
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *, int block, int t)
    {
        loose_load(&s, chunk + 34 * block + 2 + 8 * t);
        d = __ldg((const uint16_t *)(const void *)(chunk + 34 * block));
    }
    __device__ __forceinline__ void codes(const uint8_t *chunk, int block, int t, uint32_t (&v)[4],
                                          const cu_iq2_words *) const
    {
        const uint8_t *from = chunk + 34 * block + 2 + 8 * t;
        row_codes<DSV4_Q8_0> c;
        c.w[0] = loose_word(&s, from, 0);
        c.w[1] = loose_word(&s, from, 1);
        c.expand(0, v);
    }
    __device__ __forceinline__ float factor(int) const
    {
        return cu_half(d);
    }
};

template <> struct run_of_eight<DSV4_Q4_K> {
    row_codes<DSV4_Q4_K> c;
    uint32_t y, z; /* scales */
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *, int block, int t)
    {
        c.w = __ldg((const uint2 *)(const void *)(chunk + 16 + 16 * (block & ~1) + 8 * t));
        y = __ldg((const uint32_t *)(const void *)(chunk + 4));
        z = __ldg((const uint32_t *)(const void *)(chunk + 12));
    }
    __device__ __forceinline__ void codes(const uint8_t *, int block, int, uint32_t (&v)[4],
                                          const cu_iq2_words *) const
    {
        c.expand(block & 1, v);
    }
    __device__ __forceinline__ float factor(int block) const
    {
        row_scale<DSV4_Q4_K> f;
        f.low = y & 0x3f3f3f3fu;
        f.high = (z & 0x0f0f0f0fu) | (y >> 2 & 0x30303030u);
        return f.block(block);
    }
};

template <> struct run_of_eight<DSV4_Q2_K> {
    uint32_t w[2], s[2];
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *, int block, int t)
    {
        const uint32_t *from =
            (const uint32_t *)(const void *)(chunk + 16 + 8 * (block & ~3) + 8 * t);
        const uint32_t *scales = (const uint32_t *)(const void *)(chunk + 2 * (block & ~3));
        w[0] = __ldg(from);
        w[1] = __ldg(from + 1);
        s[0] = __ldg(scales);
        s[1] = __ldg(scales + 1);
    }
    __device__ __forceinline__ void codes(const uint8_t *, int block, int t, uint32_t (&v)[4],
                                          const cu_iq2_words *) const
    {
        row_codes<DSV4_Q2_K> c;
        c.scales = cu_bytes(s[0], s[1], t < 2 ? 0x6420u : 0x7531u) & 0x0f0f0f0fu;
        c.w[0] = w[0];
        c.w[1] = w[1];
        c.expand(block & 3, v);
    }
    __device__ __forceinline__ float factor(int) const
    {
        return 1.0f;
    }
};

template <> struct run_of_eight<DSV4_IQ2_XXS> {
    uint16_t g[4];
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *, int block, int)
    {
#pragma unroll
        for (int i = 0; i < 4; i++)
            g[i] = __ldg((const uint16_t *)(const void *)(chunk + 2 + 8 * block) + i);
    }
    __device__ __forceinline__ void codes(const uint8_t *, int, int t, uint32_t (&v)[4],
                                          const cu_iq2_words *iq2) const
    {
        uint32_t word = g[2] | (uint32_t)g[3] << 16, books = g[0] | (uint32_t)g[1] << 16;
        int copy = (int)threadIdx.x % CU_IQ2_COPIES;
        row_codes<DSV4_IQ2_XXS> c;
        c.n = iq2->book[books >> 8 * t & 255u][copy] ^ iq2->signs[word >> 7 * t & 127u][copy];
        c.expand(0, v);
    }
    __device__ __forceinline__ float factor(int) const
    {
        return (float)(2 * (g[3] >> 12) + 1); /* row_scale's block() */
    }
};

/* d and dmin of a chunk. */
template <int TYPE, int DEFERRED, int MINIMA> struct chunk_factors {
    static __device__ __forceinline__ float2 of(const uint8_t *)
    {
        return make_float2(1, 0);
    }
};

template <int TYPE> struct chunk_factors<TYPE, 1, 0> {
    static __device__ __forceinline__ float2 of(const uint8_t *chunk)
    {
        row_scale<TYPE> s;
        s.load(chunk, NULL);
        return make_float2(s.d, 0);
    }
};

template <int TYPE, int MINIMA> struct chunk_factors<TYPE, 1, MINIMA> {
    static __device__ __forceinline__ float2 of(const uint8_t *chunk)
    {
        row_scale<TYPE> s;
        s.load(chunk, NULL);
        return make_float2(s.d, s.dmin);
    }
};

#endif
