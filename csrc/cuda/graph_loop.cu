// The kernels of a decoding loop in a graph: one before the WHILE node, one at the end of its body. A step's
// own last kernel, argmax, moves token, position and kv_len on, so that the body's next run decodes the next
// token; these two count, keep what was decoded, and read the clock, since no event may stand in a body.
//
// One warp: max_batch tokens are kept by a lane each. Neither is a PDL launch.
#include "cuda/graph_loop.h"

#include "cuda/common/launch.h"
#include "cuda/common/numeric.cuh"

namespace pykernels::cuda {
namespace {

static_assert(sizeof(cudaGraphConditionalHandle) == sizeof(uint64_t), "it travels as one");
static_assert(max_batch <= warp_size, "a lane keeps the token of a sequence");

__global__ void begin_graph_loop_kernel(const __grid_constant__ GraphLoopParams params) {
    if (threadIdx.x != 0) return;
    store(params.done, 0);
    store(params.end_ns, static_cast<int64_t>(device_clock_ns()));
}

__global__ void end_graph_loop_step_kernel(const __grid_constant__ GraphLoopParams params) {
    const int lane = static_cast<int>(threadIdx.x);
    const int32_t step = load(params.done);
    if (lane < params.batch) {
        store(params.tokens + int64_t{step} * params.batch + lane, load(params.token + lane));
    }
    warp_barrier();  // every lane has read `done`
    if (lane != 0) return;
    store(params.end_ns + step + 1, static_cast<int64_t>(device_clock_ns()));
    store(params.done, step + 1);
    cudaGraphSetConditional(params.handle, step + 1 < params.steps ? 1 : 0);
}

}  // namespace

void load_graph_loop() {
    cudaFuncAttributes attributes = {};
    PYKERNELS_CHECK_CUDA(cudaFuncGetAttributes(&attributes, begin_graph_loop_kernel));
    PYKERNELS_CHECK_CUDA(cudaFuncGetAttributes(&attributes, end_graph_loop_step_kernel));
}

void begin_graph_loop(const GraphLoopParams& params, const Stream& stream) {
    launch(begin_graph_loop_kernel, 1, warp_size, 0, stream, params);
}

void end_graph_loop_step(const GraphLoopParams& params, const Stream& stream) {
    launch(end_graph_loop_step_kernel, 1, warp_size, 0, stream, params);
}

}  // namespace pykernels::cuda
