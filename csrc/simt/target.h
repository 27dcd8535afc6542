// The architecture that the executor stands for, a setting of it: 80 or 90, as in __CUDA_ARCH__ / 10.
#pragma once

#include "simt/executor.h"

namespace pykernels::cuda {

struct FromSm90 {
    operator bool() const { return simt::executor().settings().arch >= 90; }
};
constexpr FromSm90 has_bulk_copy{}, has_clusters{}, has_programmatic_launch{};

}  // namespace pykernels::cuda
