/* gemm_decode.cuh - a thread's share of what gemm.cuh decodes: sixteen columns of one row (`half` of
 * a block of 32), fetched raw long before they are expanded, so that nothing waits for memory; the
 * codes, the factors and their meaning are those of mma.cuh. Private to gemm.cuh. */
#ifndef DSV4_CUDA_GEMM_DECODE_CUH
#define DSV4_CUDA_GEMM_DECODE_CUH

#include "mma.cuh"

/* load(): `chunk` the row's first byte of the chunk, `scale` the row's scales of its first column
 * (FP8, FP4), block 0..7 in the chunk. codes(): four words for each of the two runs of eight
 * columns. factor(): of the promotion block that the block is in. */
template <int TYPE> struct half_block;

/* Sixteen bytes from any address, put together when they are needed. */
typedef struct {
    uint32_t raw[5], off;
} sixteen_bytes;

__device__ __forceinline__ void sixteen_load(sixteen_bytes *s, const uint8_t *p)
{
    s->off = (uint32_t)(uintptr_t)p & 3u;
    const uint32_t *from = (const uint32_t *)(const void *)(p - s->off);
#pragma unroll
    for (int i = 0; i < 4; i++)
        s->raw[i] = __ldg(from + i);
    s->raw[4] = __ldg(from + (s->off != 0 ? 4 : 3)); /* nothing beyond the codes */
}

__device__ __forceinline__ uint32_t sixteen_word(const sixteen_bytes *s, int i)
{
    return cu_funnel(s->raw[i], s->raw[i + 1], 8 * s->off);
}

template <> struct half_block<DSV4_BF16> { /* copied as it is */
    __device__ __forceinline__ void load(const uint8_t *, const uint8_t *, int, int) {}
    __device__ __forceinline__ void codes(int, int, uint32_t (&)[2][4], const cu_iq2_words *) const
    {
    }
    __device__ __forceinline__ float factor(int) const
    {
        return 1.0f;
    }
};

template <> struct half_block<DSV4_FP8> {
    uint4 w;
    uint8_t scale;
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *scales, int block,
                                         int half)
    {
        w = __ldg((const uint4 *)(const void *)(chunk + 32 * block + 16 * half));
        scale = __ldg(scales + block / 4);
    }
    __device__ __forceinline__ void codes(int, int, uint32_t (&v)[2][4], const cu_iq2_words *) const
    {
        row_codes<DSV4_FP8> c;
        c.w = make_uint2(w.x, w.y);
        c.expand(0, v[0]);
        c.w = make_uint2(w.z, w.w);
        c.expand(0, v[1]);
    }
    __device__ __forceinline__ float factor(int) const
    {
        return cu_e8m0(scale);
    }
};

template <> struct half_block<DSV4_FP4> {
    uint2 w;
    uint8_t scale;
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *scales, int block,
                                         int half)
    {
        w = __ldg((const uint2 *)(const void *)(chunk + 16 * block + 8 * half));
        scale = __ldg(scales + block);
    }
    __device__ __forceinline__ void codes(int, int, uint32_t (&v)[2][4], const cu_iq2_words *) const
    {
        row_codes<DSV4_FP4> c;
        c.w = w.x;
        c.expand(0, v[0]);
        c.w = w.y;
        c.expand(0, v[1]);
    }
    __device__ __forceinline__ float factor(int) const
    {
        return cu_e8m0(scale);
    }
};

template <> struct half_block<DSV4_MXFP4> {
    sixteen_bytes s;
    uint8_t scale;
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *, int block, int)
    {
        sixteen_load(&s, chunk + 17 * block + 1);
        scale = __ldg(chunk + 17 * block);
    }
    __device__ __forceinline__ void codes(int, int half, uint32_t (&v)[2][4],
                                          const cu_iq2_words *) const
    {
        row_codes<DSV4_MXFP4> c;
        int up = half == 0 ? 4 : 0;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            c.w[0] = sixteen_word(&s, 2 * i) << up;
            c.w[1] = sixteen_word(&s, 2 * i + 1) << up;
            c.expand(0, v[i]);
        }
    }
    __device__ __forceinline__ float factor(int) const
    {
        row_scale<DSV4_MXFP4> f;
        f.at = &scale;
        return f.block(0);
    }
};

template <> struct half_block<DSV4_Q8_0> {
    sixteen_bytes s;
    uint16_t d;
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *, int block, int half)
    {
        sixteen_load(&s, chunk + 34 * block + 2 + 16 * half);
        d = __ldg((const uint16_t *)(const void *)(chunk + 34 * block));
    }
    __device__ __forceinline__ void codes(int, int, uint32_t (&v)[2][4], const cu_iq2_words *) const
    {
        row_codes<DSV4_Q8_0> c;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            c.w[0] = sixteen_word(&s, 2 * i);
            c.w[1] = sixteen_word(&s, 2 * i + 1);
            c.expand(0, v[i]);
        }
    }
    __device__ __forceinline__ float factor(int) const
    {
        return cu_half(d);
    }
};

template <> struct half_block<DSV4_Q4_K> {
    uint4 w;
    uint32_t y, z; /* scales */
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *, int block, int half)
    {
        w = __ldg((const uint4 *)(const void *)(chunk + 16 + 16 * (block & ~1) + 16 * half));
        y = __ldg((const uint32_t *)(const void *)(chunk + 4));
        z = __ldg((const uint32_t *)(const void *)(chunk + 12));
    }
    __device__ __forceinline__ void codes(int block, int, uint32_t (&v)[2][4],
                                          const cu_iq2_words *) const
    {
        row_codes<DSV4_Q4_K> c;
        c.w = make_uint2(w.x, w.y);
        c.expand(block & 1, v[0]);
        c.w = make_uint2(w.z, w.w);
        c.expand(block & 1, v[1]);
    }
    __device__ __forceinline__ float factor(int block) const
    {
        row_scale<DSV4_Q4_K> f;
        f.low = y & 0x3f3f3f3fu;
        f.high = (z & 0x0f0f0f0fu) | (y >> 2 & 0x30303030u);
        return f.block(block);
    }
};

template <> struct half_block<DSV4_Q2_K> {
    uint32_t w[4], s[2];
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *, int block, int half)
    {
        const uint8_t *from = chunk + 16 + 8 * (block & ~3) + 16 * half;
#pragma unroll
        for (int i = 0; i < 4; i++)
            w[i] = __ldg((const uint32_t *)(const void *)from + i);
#pragma unroll
        for (int i = 0; i < 2; i++)
            s[i] = __ldg((const uint32_t *)(const void *)(chunk + 2 * (block & ~3)) + i);
    }
    __device__ __forceinline__ void codes(int block, int half, uint32_t (&v)[2][4],
                                          const cu_iq2_words *) const
    {
        row_codes<DSV4_Q2_K> c;
        c.scales = cu_bytes(s[0], s[1], half == 0 ? 0x6420u : 0x7531u) & 0x0f0f0f0fu;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            c.w[0] = w[2 * i];
            c.w[1] = w[2 * i + 1];
            c.expand(block & 3, v[i]);
        }
    }
    __device__ __forceinline__ float factor(int) const
    {
        return 1.0f;
    }
};

template <> struct half_block<DSV4_IQ2_XXS> {
    uint16_t g[4];
    __device__ __forceinline__ void load(const uint8_t *chunk, const uint8_t *, int block, int)
    {
#pragma unroll
        for (int i = 0; i < 4; i++)
            g[i] = __ldg((const uint16_t *)(const void *)(chunk + 2 + 8 * block) + i);
    }
    __device__ __forceinline__ void codes(int, int half, uint32_t (&v)[2][4],
                                          const cu_iq2_words *iq2) const
    {
        uint32_t word = g[2] | (uint32_t)g[3] << 16, books = half == 0 ? g[0] : g[1];
        int copy = (int)threadIdx.x % CU_IQ2_COPIES;
        row_codes<DSV4_IQ2_XXS> c;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            c.n = iq2->book[books >> 8 * i & 255u][copy] ^
                  iq2->signs[word >> 7 * (2 * half + i) & 127u][copy];
            c.expand(0, v[i]);
        }
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
