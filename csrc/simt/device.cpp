// The device behind the launches, in place of cuda/device.cu.
#include <stdexcept>
#include <string>

#include "cuda/common/launch.h"

namespace pykernels::cuda {

const DeviceLimits& device_limits() {
    static DeviceLimits limits;
    const simt::Settings& settings = simt::executor().settings();
    limits = {settings.sm_count, settings.shared_bytes, has_bulk_copy};
    return limits;
}

DeviceScope::DeviceScope(int device) : before_(0), device_(device) {
    if (device != 0)
        throw std::invalid_argument("the executor is one device, 0; got " + std::to_string(device));
}

DeviceScope::~DeviceScope() = default;

}  // namespace pykernels::cuda
