// Launching on the executor: what common/launch.h offers, without CUDA.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <tuple>

#include "simt/executor.h"
#include "simt/target.h"

namespace pykernels::cuda {

struct DeviceLimits {
    int sm_count;
    int shared_bytes;  // a block's dynamic shared memory at most
    bool sm_90;        // this build stands for it: bulk copies, clusters
};
const DeviceLimits& device_limits();

// Enqueued, with copies of the arguments: simt::executor().synchronize() runs it.
template <class... Arguments>
void launch_clusters(void (*kernel)(Arguments...), int cluster_blocks, int blocks, int threads,
                     size_t shared_bytes, const Stream& stream, const Arguments&... arguments) {
    if (cluster_blocks > 1 && !has_clusters) throw std::runtime_error("there are no clusters before sm_90");
    simt::executor().enqueue(
        [kernel, kept = std::tuple<Arguments...>(arguments...)] { std::apply(kernel, kept); }, cluster_blocks,
        blocks, threads, shared_bytes, stream.programmatic && has_programmatic_launch);
}

template <class... Arguments>
void launch(void (*kernel)(Arguments...), int blocks, int threads, size_t shared_bytes, const Stream& stream,
            const Arguments&... arguments) {
    launch_clusters(kernel, 1, blocks, threads, shared_bytes, stream, arguments...);
}

}  // namespace pykernels::cuda
