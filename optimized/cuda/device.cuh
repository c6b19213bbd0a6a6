/* device.cuh - what the kernels share: reductions in a fixed order, launches that report
 * themselves, and the switch by which a test plants errors. Private to the .cu files. */
#ifndef DSV4_CUDA_DEVICE_CUH
#define DSV4_CUDA_DEVICE_CUH

#include <cuda_runtime.h>

#include "decode.cuh"

/* Planted errors: only in the build that tests the checkers (DSV4_CUDA_MUTANTS). */
#ifdef DSV4_CUDA_MUTANTS
extern "C" int dsv4_cuda_mutant; /* device.c: 0 = none */
static __device__ int planted;
#define MUTANT(number) (planted == (number))
#define PLANT()                                                                                    \
    do {                                                                                           \
        static bool planted_;                                                                      \
        if (!planted_) {                                                                           \
            cudaMemcpyToSymbol(planted, &dsv4_cuda_mutant, sizeof dsv4_cuda_mutant);               \
            planted_ = true;                                                                       \
        }                                                                                          \
    } while (0)
#else
#define MUTANT(number) false
#define PLANT()                                                                                    \
    do {                                                                                           \
    } while (0)
#endif

/* device.c: books the last launch's error with the operator's name and size. */
extern "C" void cu_launched(const char *op, int64_t size);

/* device.c: what the code that runs was built for: 900 = compute capability 9.0. */
extern "C" int cu_built_for(void);
extern "C" bool cu_overlaps(void); /* may a kernel be started before the last one ends? */

/* device.c: every launch asks; benches count them, and leave some out to see what they cost. */
extern "C" bool cu_launching(const char *op);

#ifdef DSV4_CUDA_MUTANTS
/* No error: a device that has no more shared memory than those of compute capability 12.0. */
enum { SMALL_DEVICE = 50, SMALL_SHARED = 99 * 1024 };
/* A launch that the driver must refuse, and this engine report; or that a small device would. */
#define REFUSED(op, shared)                                                                        \
    ((dsv4_cuda_mutant == 69 && cu_same_name(op, "begin_step")) ||                                \
     (dsv4_cuda_mutant == SMALL_DEVICE && (size_t)(shared) > SMALL_SHARED))
extern "C" bool cu_same_name(const char *a, const char *b);
#else
#define REFUSED(op, shared) false
#endif

/* Every kernel begins with begin() (or its halves): it may have been started while the one before
 * it in the stream still runs, so that its own start costs nothing. */
#define LAUNCH(op, size, kernel, grid, block, shared, queue, ...)                                  \
    LAUNCH_CLUSTERS(op, size, kernel, grid, block, shared, queue, 1, __VA_ARGS__)

/* The same with `together` blocks of x that share their memory, if more than one. */
#define LAUNCH_CLUSTERS(op, size, kernel, grid, block, shared, queue, together, ...)               \
    do {                                                                                           \
        if (!cu_launching(op))                                                                     \
            break;                                                                                 \
        PLANT();                                                                                   \
        cudaLaunchAttribute how_[2] = {};                                                          \
        unsigned attributes_ = 0;                                                                  \
        if (cu_overlaps()) {                                                                       \
            how_[attributes_].id = cudaLaunchAttributeProgrammaticStreamSerialization;             \
            how_[attributes_++].val.programmaticStreamSerializationAllowed = 1;                    \
        }                                                                                          \
        if ((together) > 1) {                                                                      \
            how_[attributes_].id = cudaLaunchAttributeClusterDimension;                            \
            how_[attributes_].val.clusterDim.x = (together);                                       \
            how_[attributes_].val.clusterDim.y = 1;                                                \
            how_[attributes_++].val.clusterDim.z = 1;                                              \
        }                                                                                          \
        cudaLaunchConfig_t launch_ = {};                                                           \
        launch_.gridDim = (grid);                                                                  \
        launch_.blockDim = (block);                                                                \
        if (REFUSED(op, shared))                                                                   \
            launch_.blockDim = 4096;                                                               \
        launch_.dynamicSmemBytes = (shared);                                                       \
        launch_.stream = (queue);                                                                  \
        launch_.attrs = how_;                                                                      \
        launch_.numAttrs = attributes_;                                                            \
        cudaLaunchKernelEx(&launch_, kernel, __VA_ARGS__);                                         \
        cu_launched(op, (int64_t)(size));                                                          \
    } while (0)

/* The next kernel of the stream may be started: its blocks take what room there is, and wait. */
__device__ __forceinline__ void let_next_start()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* What came before in the stream is done and its results are to be seen. Nothing that it writes may
 * be read earlier, nothing that it reads may be written earlier; and since it ran beside this
 * kernel, what it wrote must not be read through the read-only cache (__ldg is for weights). */
__device__ __forceinline__ void wait_for_previous()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void begin()
{
    let_next_start();
    wait_for_previous();
}

/* A kernel of little work that may start long before its inputs are there goes through it twice:
 * round 0, the rehearsal, reads and writes nothing of what other kernels write, and only brings the
 * instructions nearer (a layer's weights drive them out of every cache, and fetching them takes
 * several times as long as running them); round 1, behind wait_for_previous(), is live. Both must
 * be the same code: the bounds are arguments, so that the compiler cannot tell the rounds apart. */
typedef struct {
    int first, end;
} cu_rounds;

static inline cu_rounds rounds_of(bool rehearses)
{
    cu_rounds r = {rehearses && cu_overlaps() ? 0 : 1, 2};
    return r;
}

/* Bytes of shared memory that a block may ask for. */
static inline size_t cu_most_shared()
{
    static int most = -1;
    int device = 0;
    if (most < 0 && (cudaGetDevice(&device) != cudaSuccess ||
                     cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                            device) != cudaSuccess))
        most = 48 * 1024;
#ifdef DSV4_CUDA_MUTANTS
    if (dsv4_cuda_mutant == SMALL_DEVICE && most > SMALL_SHARED)
        most = SMALL_SHARED;
#endif
    return (size_t)most;
}

/* For loads of weights: the cache gives these lines up first. A layer's weights pass through it
 * once a token, several times its size; what all layers need (instructions, activations) stays. */
__device__ __forceinline__ uint64_t passing()
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* Where a copy with a policy goes in shared memory. ptxas (13.0) takes an address apart into a
 * thread's part and a block's, and then encodes other registers than those of the address and the
 * policy: an illegal instruction. It cannot take this apart; threadIdx.y is 0. */
__device__ __forceinline__ uint32_t copy_target(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p) ^ threadIdx.y;
}

static inline unsigned cu_blocks(int64_t n, int64_t per)
{
    return (unsigned)((n + per - 1) / per);
}

__device__ __forceinline__ float warp_sum(float v)
{
    for (int step = 16; step > 0; step /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

__device__ __forceinline__ float warp_max(float v)
{
    for (int step = 16; step > 0; step /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}

/* Sum over the block, the same in every thread; `room` holds 32 floats and is free afterwards. */
__device__ __forceinline__ float block_sum(float v, float *room)
{
    int warps = (int)(blockDim.x + 31) / 32;
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0)
        room[threadIdx.x / 32] = v;
    if (!MUTANT(1)) /* missing barrier */
        __syncthreads();
    float sum = warp_sum((int)threadIdx.x % 32 < warps ? room[threadIdx.x % 32] : 0.0f);
    __syncthreads();
    return sum;
}

__device__ __forceinline__ float maybe_bf16(float v, bool bf16)
{
    return bf16 ? cu_round_to_bf16(v) : v;
}

/* 1 / sqrt(mean + eps) at the released code's rounding points. */
__device__ __forceinline__ float root_scale(float sum, int64_t dim, float eps)
{
    float mean = __fdiv_rn(sum, (float)dim);
    return (float)(1.0 / sqrt((double)(mean + eps)));
}

__device__ __forceinline__ float fp8_scale(float amax)
{
    return cu_next_power(__fdiv_rn(fmaxf(amax, 1e-4f), 448.0f));
}

__device__ __forceinline__ float fp4_scale(float amax)
{
    return cu_next_power(__fdiv_rn(fmaxf(amax, 6.0f * 0x1p-126f), 6.0f));
}

__device__ __forceinline__ float to_fp8(float x, float scale)
{
    return cu_e4m3(cu_to_e4m3(__fdiv_rn(x, scale))) * scale;
}

/* e2m1 has no NaN: one passes through. Infinity over infinity is a NaN whose sign the machine
 * chooses; the reference's machine sets it, and takes the largest value of that sign. */
__device__ __forceinline__ float to_fp4(float x, float scale)
{
    float q = __fdiv_rn(x, scale);
    return x != x ? x : q != q ? -6.0f * scale : cu_e2m1(cu_to_e2m1(q)) * scale;
}

#endif
