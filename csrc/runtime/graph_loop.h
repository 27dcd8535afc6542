// Mode `graph-loop`: a graph whose conditional WHILE node decodes many tokens in one launch. The host takes
// no part in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "runtime/program.h"

namespace pykernels {

// Why such a graph cannot be had with a driver of that CUDA version (major * 1000 + minor * 10, as
// cudaDriverGetVersion gives it; 0: none is installed). Empty where it can.
std::string graph_loop_reason(int driver_version);
// Of the driver that is here; and where there is one, but no device: CUDA's words for that.
std::string graph_loop_reason();

// Device memory that a loop reads and writes; whoever makes the loop keeps it as long.
struct GraphLoopMemory {
    const int64_t* token;  // [batch] int64: what a step writes last
    int64_t* tokens;       // [steps, batch] int64
    int64_t* end_ns;       // [steps + 1] int64: the device's clock at the loop's begin and after every step
    int32_t* done;         // [1] int32
};

class GraphLoop {
  public:
    // `program` is a step that can be run again for the next token, and has run before: a kernel's first
    // launch loads its code, which a capture does not allow. Nothing is run here. Throws
    // std::invalid_argument where it is not of CUDA ops, or where steps or batch are out of range,
    // std::runtime_error with graph_loop_reason(), and where CUDA fails.
    GraphLoop(std::shared_ptr<const Program> program, const GraphLoopMemory& memory, int32_t batch,
              int32_t steps);
    ~GraphLoop();
    GraphLoop(const GraphLoop&) = delete;
    GraphLoop& operator=(const GraphLoop&) = delete;

    // One launch: all steps. The caller has called check().
    void run(void* stream) const;
    void check() const { program_->check(); }
    int cuda_device() const { return program_->cuda_device(); }
    // Of the body: the step's, and the one that ends it.
    size_t kernels() const { return kernels_; }

  private:
    void make(const GraphLoopMemory& memory, int32_t batch, int32_t steps);
    void destroy();

    std::shared_ptr<const Program> program_;
    void* graph_ = nullptr;       // cudaGraph_t: owns the conditional handle, so it lives as long as this
    void* executable_ = nullptr;  // cudaGraphExec_t
    size_t kernels_ = 0;
};

}  // namespace pykernels
