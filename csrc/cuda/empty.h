// The empty kernels of bench.launch.
#pragma once

namespace pykernels::cuda {

// The host's symbol of the empty kernel of that many pointer arguments: 0, 1, 8 or 32. Throws
// std::invalid_argument for any other count.
const void* empty_kernel(int arguments);

}  // namespace pykernels::cuda
