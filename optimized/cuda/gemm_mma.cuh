/* gemm_mma.cuh - 64 rows of W in the registers of four warps times N tokens in shared memory, for
 * 16 columns, on the tensor cores of compute capability 9.0 (wgmma). Private to gemm.cuh. */
#ifndef DSV4_CUDA_GEMM_MMA_CUH
#define DSV4_CUDA_GEMM_MMA_CUH

#include <stdint.h>

/* Other devices multiply with mma.sync: the same bits, seen on an H100 for both. */
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define GEMM_BY_WARPGROUPS 1
#else
#define GEMM_BY_WARPGROUPS 0
#endif

#if GEMM_BY_WARPGROUPS

/* What a row of 128 bytes in shared memory holds is 16-byte pieces, piece i of row r at place
 * i ^ (r % 8): the hardware's swizzle of 128 bytes. Eight rows are 1024 bytes. */
__device__ __forceinline__ uint64_t tokens_at(uint32_t address)
{
    return (uint64_t)(address >> 4 & 0x3fffu) | (uint64_t)1 << 16 | (uint64_t)64 << 32 |
           (uint64_t)1 << 62;
}

__device__ __forceinline__ void products_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void products_end() /* of a group */
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int PENDING> __device__ __forceinline__ void wait_for_products()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* What the products wrote may be read from here on, and not before. */
template <int COUNT> __device__ __forceinline__ void settle(float (&d)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

/* d (+)= W x: sum = false starts from 0. */
template <int TOKENS> struct products;

#define GEMM_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define GEMM_8(i) GEMM_4(i), GEMM_4(i + 4)
#define GEMM_16(i) GEMM_8(i), GEMM_8(i + 8)
#define GEMM_32(i) GEMM_16(i), GEMM_16(i + 16)

template <> struct products<16> {
    static __device__ __forceinline__ void add(float (&d)[8], uint32_t a0, uint32_t a1, uint32_t a2,
                                               uint32_t a3, uint64_t x, int sum)
    {
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
                     "%0, %1, %2, %3, %4, %5, %6, %7}, "
                     "{%8, %9, %10, %11}, %12, p, 1, 1, 0;\n}"
                     : GEMM_8(0)
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(x), "r"(sum));
    }
};

template <> struct products<32> {
    static __device__ __forceinline__ void add(float (&d)[16], uint32_t a0, uint32_t a1,
                                               uint32_t a2, uint32_t a3, uint64_t x, int sum)
    {
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                     "{%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}"
                     : GEMM_16(0)
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(x), "r"(sum));
    }
};

template <> struct products<48> {
    static __device__ __forceinline__ void add(float (&d)[24], uint32_t a0, uint32_t a1,
                                               uint32_t a2, uint32_t a3, uint64_t x, int sum)
    {
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %29, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n48k16.f32.bf16.bf16 {"
                     "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                     "%16, %17, %18, %19, %20, %21, %22, %23}, "
                     "{%24, %25, %26, %27}, %28, p, 1, 1, 0;\n}"
                     : GEMM_16(0), GEMM_8(16)
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(x), "r"(sum));
    }
};

template <> struct products<64> {
    static __device__ __forceinline__ void add(float (&d)[32], uint32_t a0, uint32_t a1,
                                               uint32_t a2, uint32_t a3, uint64_t x, int sum)
    {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
            "{%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}"
            : GEMM_32(0)
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(x), "r"(sum));
    }
};

template <> struct products<128> {
    static __device__ __forceinline__ void add(float (&d)[64], uint32_t a0, uint32_t a1,
                                               uint32_t a2, uint32_t a3, uint64_t x, int sum)
    {
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
            "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
            "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
            "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
            "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
            "{%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}"
            : GEMM_32(0), GEMM_32(32)
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(x), "r"(sum));
    }
};

#undef GEMM_4
#undef GEMM_8
#undef GEMM_16
#undef GEMM_32
#endif
#endif
