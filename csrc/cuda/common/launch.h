// Launching a kernel, checked: a failed call becomes an exception with the call, the place and CUDA's words.
#pragma once

#include "ops.h"

#ifdef PYKERNELS_SIMT
#include "simt/launch.h"
#else

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace pykernels::cuda {

inline void check(cudaError_t status, const char* call, const char* file, int line) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // a launch error would otherwise be reported once more by the next call
    throw std::runtime_error(std::string(call) + " failed at " + file + ":" + std::to_string(line) + ": " +
                             cudaGetErrorName(status) + ", " + cudaGetErrorString(status));
}

#define PYKERNELS_CHECK_CUDA(call) ::pykernels::cuda::check(call, #call, __FILE__, __LINE__)

// What plans depend on, of the current device; read once.
struct DeviceLimits {
    int sm_count;
    int shared_bytes;  // a block's dynamic shared memory at most
    bool sm_90;        // the code that runs was compiled for it or later: bulk copies, clusters
};
const DeviceLimits& device_limits();

// A block gets more than this only when its kernel asked for it once on the device.
constexpr size_t default_shared_bytes = 48 * 1024;
// Clusters of more blocks than this likewise.
constexpr int default_cluster_blocks = 8;

// Lets the kernel have all the dynamic shared memory and the largest clusters there are on the current
// device. Asked again, it costs a look-up: the driver's own call would be a tenth of a launch.
void allow_all_resources(const void* kernel);

template <class... Arguments>
void launch_clusters(void (*kernel)(Arguments...), int cluster_blocks, int blocks, int threads,
                     size_t shared_bytes, const Stream& stream, const Arguments&... arguments) {
    if (shared_bytes > default_shared_bytes || cluster_blocks > default_cluster_blocks)
        allow_all_resources(reinterpret_cast<const void*>(kernel));
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream.handle);
    cudaLaunchAttribute attributes[2] = {};
    config.attrs = attributes;
    if (stream.programmatic) {
        cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster_blocks > 1) {
        cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = static_cast<unsigned>(cluster_blocks);
        attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    PYKERNELS_CHECK_CUDA(cudaLaunchKernelEx(&config, kernel, arguments...));
}

template <class... Arguments>
void launch(void (*kernel)(Arguments...), int blocks, int threads, size_t shared_bytes, const Stream& stream,
            const Arguments&... arguments) {
    launch_clusters(kernel, 1, blocks, threads, shared_bytes, stream, arguments...);
}

}  // namespace pykernels::cuda

#endif
