// The kernels that a decoding loop in a graph has beside a step's own (runtime/graph_loop.h).
#pragma once

#include <cstdint>

#include "ops.h"

namespace pykernels::cuda {

// Of one loop; pointers to device memory.
struct GraphLoopParams {
    uint64_t handle;       // cudaGraphConditionalHandle of the WHILE node
    const int64_t* token;  // [batch] int64: what the step writes last (argmax)
    int64_t* tokens;       // [steps, batch] int64: receives the token of every step
    int64_t* end_ns;       // [steps + 1] int64: the device's clock when the loop began, and after every step
    int32_t* done;         // [1] int32: steps that are over
    int32_t batch, steps;
};

// A kernel's first launch loads its code, which a capture does not allow: loads both without a launch.
void load_graph_loop();
// Ahead of the WHILE node: no step is over.
void begin_graph_loop(const GraphLoopParams& params, const Stream& stream);
// The last kernel of the node's body: keeps the token, and ends the loop after the last step.
void end_graph_loop_step(const GraphLoopParams& params, const Stream& stream);

}  // namespace pykernels::cuda
