// A GEMV, one row a block, for tests: the fake CuPy and a GPU.
#include <cuda_fp16.h>

// launchtax: op=gemv dtype=fp16 grid=n_out,batch block=32 shared=4*n_in
extern "C" __global__ void gemv(const __half* x, const __half* weight, __half* out, int n_in, int n_out) {
    extern __shared__ float row[];
    for (int i = threadIdx.x; i < n_in; i += 32) row[i] = __half2float(x[blockIdx.y * n_in + i]);
    __syncthreads();
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n_in; i += 32) sum += row[i] * __half2float(weight[blockIdx.x * n_in + i]);
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (threadIdx.x == 0) out[blockIdx.y * n_out + blockIdx.x] = __float2half(sum);
}
