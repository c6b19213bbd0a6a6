/* built.cu - what the code that runs on this device was built for. It may be less than the device:
 * a build for 8.0 alone is translated for a 9.0 as it is loaded, and then its kernels do not wait
 * for each other, nor do blocks see each other's memory. */
#include <cuda_runtime.h>

static __global__ void built(int *arch)
{
#ifdef __CUDA_ARCH__
    *arch = __CUDA_ARCH__;
#else
    (void)arch;
#endif
}

/* 800 = compute capability 8.0; room: device memory for an int. Returns a cudaError_t. */
extern "C" int cu_ask_built(int *room, int *arch)
{
    built<<<1, 1>>>(room);
    cudaError_t e = cudaGetLastError();
    return e == cudaSuccess ? cudaMemcpy(arch, room, sizeof *arch, cudaMemcpyDeviceToHost) : e;
}
