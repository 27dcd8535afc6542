// What the faulty kernels share.
#pragma once

#include "cuda/common/launch.h"
#include "cuda/common/ptx.cuh"
#include "simt_faults.h"

namespace pykernels::cuda {

constexpr int warp_lanes = 32;
constexpr int shared_bytes = 1024;

inline __device__ uint32_t* shared_words() {
    return reinterpret_cast<uint32_t*>(shared_memory());
}

// All of shared memory is written, so that who comes too early finds something.
inline __device__ void fill_shared() {
    for (unsigned i = threadIdx.x; i < shared_bytes / 4; i += fault_threads) store(shared_words() + i, 0u);
    block_barrier();
}

template <void (*kernel)(const uint32_t*, uint32_t*)>
void launch_faulty(const uint32_t* in, uint32_t* out, const Stream& stream) {
    launch(kernel, 1, fault_threads, shared_bytes, stream, in, out);
}

}  // namespace pykernels::cuda
