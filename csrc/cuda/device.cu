// The current device: the limits that plans depend on, kernel attributes, and DeviceScope.

#include <atomic>
#include <mutex>
#include <string>

#include "cuda/common/device_name.h"
#include "cuda/common/launch.h"
#include "cuda/common/resident_clusters.h"
#include "plan_table.h"

namespace pykernels::cuda {
namespace {

constexpr int max_devices = 64;

__global__ void probe_kernel() {}

int attribute_of(int device, cudaDeviceAttr attribute) {
    int value = 0;
    PYKERNELS_CHECK_CUDA(cudaDeviceGetAttribute(&value, attribute, device));
    return value;
}

// Clusters of so many blocks, each with so much shared memory, that are resident at once; 0 where the device
// has none.
int count_clusters(int blocks, int block_bytes) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(blocks);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(256);
    config.dynamicSmemBytes = static_cast<size_t>(block_bytes);
    config.attrs = &attribute;
    config.numAttrs = 1;
    int count = 0;
    if (cudaOccupancyMaxActiveClusters(&count, probe_kernel, &config) == cudaSuccess) return count;
    cudaGetLastError();
    return 0;
}

// Blocks that take all of an SM's shared memory, and half of it.
ResidentClusters read_resident_clusters(int device) {
    const int block_bytes = attribute_of(device, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    PYKERNELS_CHECK_CUDA(
        cudaFuncSetAttribute(probe_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, block_bytes));
    // Where it fails, clusters of more than eight blocks count as none.
    if (cudaFuncSetAttribute(probe_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess)
        cudaGetLastError();
    ResidentClusters resident = {};
    for (int blocks = 2; blocks <= max_cluster_blocks; ++blocks) {
        resident.counts[blocks] = count_clusters(blocks, block_bytes);
        resident.paired[blocks] = count_clusters(blocks, paired_bytes(block_bytes));
    }
    return resident;
}

bool has_large_clusters(const ResidentClusters& resident) {
    int count = 0;
    for (int blocks = default_cluster_blocks + 1; blocks <= max_cluster_blocks; ++blocks)
        count += resident.paired[blocks];
    return count > 0;
}

int current_device() {
    int device = 0;
    PYKERNELS_CHECK_CUDA(cudaGetDevice(&device));
    if (device >= max_devices) throw std::runtime_error("more than 64 CUDA devices");
    return device;
}

DeviceLimits read_limits(int device) {
    DeviceLimits limits = {};
    PYKERNELS_CHECK_CUDA(cudaDeviceGetAttribute(&limits.sm_count, cudaDevAttrMultiProcessorCount, device));
    PYKERNELS_CHECK_CUDA(
        cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    // The code that the driver chose decides, not the device: PTX of compute_80 has no cp.async.bulk on sm_90
    // either.
    cudaFuncAttributes attributes = {};
    PYKERNELS_CHECK_CUDA(cudaFuncGetAttributes(&attributes, probe_kernel));
    limits.sm_90 = attributes.ptxVersion >= 90;
    return limits;
}

}  // namespace

const DeviceLimits& device_limits() {
    static DeviceLimits limits[max_devices];
    static std::once_flag read[max_devices];
    const int device = current_device();
    std::call_once(read[device], [&] { limits[device] = read_limits(device); });
    return limits[device];
}

const ResidentClusters& resident_clusters() {
    static ResidentClusters resident[max_devices];
    static std::once_flag read[max_devices];
    const int device = current_device();
    std::call_once(read[device], [&] {
        if (device_limits().sm_90) resident[device] = read_resident_clusters(device);
    });
    return resident[device];
}

const char* device_name() {
    static std::string names[max_devices];
    static std::once_flag read[max_devices];
    const int device = current_device();
    std::call_once(read[device], [&] {
        cudaDeviceProp properties = {};
        PYKERNELS_CHECK_CUDA(cudaGetDeviceProperties(&properties, device));
        names[device] = properties.name;
    });
    return names[device].c_str();
}

PlanDevice plan_device(int device) {
    const DeviceScope scope(device);
    const DeviceLimits& limits = device_limits();
    return {limits.sm_count, limits.shared_bytes, limits.sm_90, resident_clusters()};
}

void allow_all_resources(const void* kernel) {
    // A hash set of the (kernel, device) pairs whose attributes are set.
    constexpr size_t slots = 1024;
    static std::atomic<uintptr_t> configured[slots];
    int device = 0;
    PYKERNELS_CHECK_CUDA(cudaGetDevice(&device));
    const uintptr_t key =
        reinterpret_cast<uintptr_t>(kernel) * max_devices + static_cast<uintptr_t>(device) + 1;
    size_t slot = key / 97 % slots;
    for (size_t probes = 0; probes < slots; ++probes, slot = (slot + 1) % slots) {
        uintptr_t found = configured[slot].load(std::memory_order_acquire);
        if (found == key) return;
        if (found != 0) continue;
        PYKERNELS_CHECK_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  device_limits().shared_bytes));
        if (has_large_clusters(resident_clusters())) {
            PYKERNELS_CHECK_CUDA(
                cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
        }
        // If another thread takes the slot first, the attributes are set once more by a later call.
        configured[slot].compare_exchange_strong(found, key, std::memory_order_release);
        return;
    }
    throw std::runtime_error("more kernels than allow_all_resources() can remember");
}

DeviceScope::DeviceScope(int device) : before_(device), device_(device) {
    PYKERNELS_CHECK_CUDA(cudaGetDevice(&before_));
    if (before_ != device_) PYKERNELS_CHECK_CUDA(cudaSetDevice(device_));
}

DeviceScope::~DeviceScope() {
    if (before_ != device_) cudaSetDevice(before_);  // a destructor has nobody to tell
}

}  // namespace pykernels::cuda
