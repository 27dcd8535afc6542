// Clocks and graphs of CUDA programs. Steps are enqueued by C++ alone; nothing is allocated between the first
// and the last reading.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/program.h"

namespace pykernels {

// A program captured as a CUDA graph. With `programmatic`, edges between its kernels let each start before
// the one ahead has ended (mode graph-pdl). It holds the program's memory.
class CudaGraph {
  public:
    CudaGraph(std::shared_ptr<const Program> program, bool programmatic);
    ~CudaGraph();
    CudaGraph(const CudaGraph&) = delete;
    CudaGraph& operator=(const CudaGraph&) = delete;

    void replay(void* stream) const;
    int cuda_device() const { return program_->cuda_device(); }
    size_t kernels() const { return kernels_; }

  private:
    std::shared_ptr<const Program> program_;
    void* executable_ = nullptr;  // cudaGraphExec_t
    size_t kernels_ = 0;
};

// What a step enqueues: one of the programs' launches, or a graph's replay.
class CudaStep {
  public:
    virtual ~CudaStep() = default;
    virtual void enqueue(void* stream) const = 0;
    virtual size_t launches() const = 0;
};

// Wall time: samples_us[i] is the device's time from the end of step i - 1 to the end of step i, read from
// events between the steps, in steady state. Step i enqueues steps[i % n].
void cuda_timed_steps(int device, void* stream, const std::vector<const CudaStep*>& steps, int64_t warmup,
                      int64_t count, double* samples_us);

// Host time: samples_us[i] is how long the host took to enqueue step i while a blocking kernel held the
// stream. At most some hundred launches are queued at once: a full queue would make the host wait.
void cuda_host_steps(int device, void* stream, const std::vector<const CudaStep*>& steps, int64_t warmup,
                     int64_t count, double* samples_us);

}  // namespace pykernels
