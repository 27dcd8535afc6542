// The architecture this build stands for: PYKERNELS_SIMT_ARCH is 80 or 90, as in __CUDA_ARCH__ / 10.
#pragma once

namespace pykernels::cuda {

constexpr bool has_bulk_copy = PYKERNELS_SIMT_ARCH >= 90;
constexpr bool has_clusters = PYKERNELS_SIMT_ARCH >= 90;
constexpr bool has_programmatic_launch = PYKERNELS_SIMT_ARCH >= 90;

}  // namespace pykernels::cuda
