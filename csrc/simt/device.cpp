// The device behind the launches, in place of cuda/device.cu.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/common/device_name.h"
#include "cuda/common/launch.h"
#include "cuda/common/resident_clusters.h"

namespace pykernels::cuda {

const DeviceLimits& device_limits() {
    static DeviceLimits limits;
    const simt::Settings& settings = simt::executor().settings();
    limits = {settings.sm_count, settings.shared_bytes, has_bulk_copy};
    return limits;
}

const char* device_name() {
    return "SIMT executor";
}

// A few blocks stand for a whole grid in the tests, so clusters are planned as on a device of 64 SMs or more.
const ResidentClusters& resident_clusters() {
    static ResidentClusters resident;
    for (int blocks = 2; blocks <= max_cluster_blocks; ++blocks) {
        const int sm_count = has_clusters ? std::max(simt::executor().settings().sm_count, 64) : 0;
        resident.counts[blocks] = sm_count / blocks;
        resident.paired[blocks] = 2 * sm_count / blocks;
    }
    return resident;
}

DeviceScope::DeviceScope(int device) : before_(0), device_(device) {
    if (device != 0)
        throw std::invalid_argument("the executor is one device, 0; got " + std::to_string(device));
}

DeviceScope::~DeviceScope() = default;

}  // namespace pykernels::cuda
