// Launching on the executor: what common/launch.h offers, without CUDA.
#pragma once

#include <cstddef>
#include <tuple>

#include "simt/executor.h"
#include "simt/target.h"

namespace pykernels::cuda {

struct DeviceLimits {
    int sm_count;
    int shared_bytes;  // a block's dynamic shared memory at most
    bool bulk_copy;
};
const DeviceLimits& device_limits();

// Enqueued, with copies of the arguments: simt::executor().synchronize() runs it.
template <class... Arguments>
void launch(void (*kernel)(Arguments...), int blocks, int threads, size_t shared_bytes, const Stream& stream,
            const Arguments&... arguments) {
    simt::executor().enqueue(
        [kernel, kept = std::tuple<Arguments...>(arguments...)] { std::apply(kernel, kept); }, blocks,
        threads, shared_bytes, stream.programmatic && has_programmatic_launch);
}

}  // namespace pykernels::cuda
