/* cluster.cuh - blocks that see each other's shared memory (compute capability 9.0 and later, nvcc
 * 12.1). What a block is sent is counted by a barrier of its own as it arrives (st.async): nobody
 * waits for what it sent, and nobody may leave before it has what the others send. Private to the
 * .cu files. */
#ifndef DSV4_CUDA_CLUSTER_CUH
#define DSV4_CUDA_CLUSTER_CUH

#include "device.cuh"

#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
#define CAN_SEND 1
#else
#define CAN_SEND 0
#endif

#if __CUDA_ARCH__ >= 900 && CAN_SEND
__device__ __forceinline__ unsigned rank_in_cluster()
{
    unsigned r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}

/* The barrier of all blocks: this one runs, and its barriers are set. Until all do, none may write
 * into another's memory. */
__device__ __forceinline__ void arrive_together()
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void wait_together()
{
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ unsigned shared_at(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

/* Where p lies in block `rank`'s memory. */
__device__ __forceinline__ unsigned in_block(const void *p, int rank)
{
    unsigned there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(there)
                 : "r"(shared_at(p)), "r"(rank));
    return there;
}

/* A barrier that is complete when so many bytes have come; by one thread. */
__device__ __forceinline__ void expect(uint64_t *barrier, int bytes)
{
    asm volatile("mbarrier.init.shared.b64 [%0], 1;\n\t"
                 "mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_at(barrier)),
                 "r"(bytes)
                 : "memory");
}

/* The barriers set up to now are there for all blocks. */
__device__ __forceinline__ void barriers_set()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void await(uint64_t *barrier)
{
    unsigned done = 0;
    while (done == 0)
        asm volatile("{\n\t.reg .pred p;\n\t"
                     "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], 0;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done)
                     : "r"(shared_at(barrier))
                     : "memory");
}

/* v into the same place of block `rank`'s memory, counted by its barrier. */
__device__ __forceinline__ void send(float *p, uint64_t *barrier, int rank, float v)
{
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
            in_block(p, rank)),
        "r"(__float_as_uint(v)), "r"(in_block(barrier, rank))
        : "memory");
}

__device__ __forceinline__ void send_four(float *p, uint64_t *barrier, int rank, float4 v)
{
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
        "[%5];" ::"r"(in_block(p, rank)),
        "r"(__float_as_uint(v.x)), "r"(__float_as_uint(v.y)), "r"(__float_as_uint(v.z)),
        "r"(__float_as_uint(v.w)), "r"(in_block(barrier, rank))
        : "memory");
}
#endif

/* How many clusters of so many blocks of a kernel the device has room for at once; 0 where blocks
 * cannot see each other (an older device or compiler, too little shared memory). Lets the kernel
 * have that much shared memory. */
static inline int clusters_that_fit(const void *kernel, int blocks, int threads, size_t shared)
{
    if (!CAN_SEND || cu_built_for() < 900 || shared > cu_most_shared())
        return 0;
    cudaLaunchAttribute how = {};
    how.id = cudaLaunchAttributeClusterDimension;
    how.val.clusterDim.x = (unsigned)blocks;
    how.val.clusterDim.y = how.val.clusterDim.z = 1;
    cudaLaunchConfig_t one = {};
    one.gridDim = (unsigned)blocks;
    one.blockDim = (unsigned)threads;
    one.dynamicSmemBytes = shared;
    one.attrs = &how;
    one.numAttrs = 1;
    int most = 0;
    bool can = (blocks <= 8 ||
                cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) ==
                    cudaSuccess) &&
               cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    (int)shared) == cudaSuccess &&
               cudaOccupancyMaxActiveClusters(&most, kernel, &one) == cudaSuccess;
    if (!can)
        cudaGetLastError(); /* a device without them is no error */
    return can ? most : 0;
}

#endif
