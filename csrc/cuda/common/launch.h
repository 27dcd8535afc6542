// Checked kernel launches. A failed call throws an exception with the call, file and line, and CUDA's error
// text.
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

// The properties of the current device that plans depend on; read once per device.
struct DeviceLimits {
    int sm_count;
    int shared_bytes;  // the largest dynamic shared memory of a block
    bool sm_90;        // the loaded code was compiled for sm_90 or later: cp.async.bulk, clusters
};
const DeviceLimits& device_limits();

// More dynamic shared memory than this needs cudaFuncAttributeMaxDynamicSharedMemorySize.
constexpr size_t default_shared_bytes = 48 * 1024;
// Clusters of more blocks need cudaFuncAttributeNonPortableClusterSizeAllowed.
constexpr int default_cluster_blocks = 8;

// Sets both attributes of the kernel on the current device to their maximum. Later calls for the same kernel
// cost a look-up; the driver's call would take a tenth of a launch's time.

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
