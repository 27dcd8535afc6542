// The name of the current device, by which a table of plans is of one card.
#pragma once

namespace pykernels::cuda {

// As cudaDeviceProp has it; read once per device.
const char* device_name();

}  // namespace pykernels::cuda
