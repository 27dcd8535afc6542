// Clocks and graphs of CUDA programs. Steps are enqueued by C++ alone; nothing is allocated between the first
// and the last reading.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/program.h"

namespace pykernels {

// Programs captured one after the other as one CUDA graph: a chain of steps, as the graph of a whole model's
// step is a chain of layers. With `programmatic`, edges between its kernels let each start before the one
// ahead has ended (mode graph-pdl). It holds the programs' memory. Throws std::invalid_argument where there
// is no program, or where they are not all of one CUDA device.
class CudaGraph {
  public:
    CudaGraph(std::vector<std::shared_ptr<const Program>> programs, bool programmatic);
    ~CudaGraph();
    CudaGraph(const CudaGraph&) = delete;
    CudaGraph& operator=(const CudaGraph&) = delete;

    // The caller of replay() has called check(): it throws std::runtime_error where a program's memory has
    // moved.
    void replay(void* stream) const;
    void check() const {
        for (const auto& program : programs_) program->check();
    }
    int cuda_device() const { return programs_[0]->cuda_device(); }
    size_t kernels() const { return kernels_; }

  private:
    std::vector<std::shared_ptr<const Program>> programs_;
    void* executable_ = nullptr;  // cudaGraphExec_t
    size_t kernels_ = 0;
};

// What a step enqueues: a program's launches, a tape's calls, or a graph's replay.
class CudaStep {
  public:
    virtual ~CudaStep() = default;
    virtual void enqueue(void* stream) const = 0;
    virtual size_t launches() const = 0;  // as many entries of the launch queue
};

// Keeps a stream busy, so that the host's work of enqueuing can be timed without the device's part in it.
class StreamHold {
  public:
    StreamHold(int device, void* stream);
    ~StreamHold();
    StreamHold(const StreamHold&) = delete;
    StreamHold& operator=(const StreamHold&) = delete;

    // Enqueues a kernel that lasts until release(), ten seconds at most.
    void hold();
    // Lets it end, and waits for all that was enqueued.
    void release();

  private:
    int device_;
    void* stream_;
    volatile int* released_ = nullptr;  // in host memory that the device can read
};

// Wall time: samples_us[i] is the device's time from the end of sample i - 1 to the end of sample i, over
// `repeats`, read from events between the samples, in steady state. A sample is `repeats` steps, `warmup` of
// them come first; step k enqueues steps[k % n]. No event stands inside a sample: it would cost the device a
// microsecond or two.
void cuda_timed_steps(int device, void* stream, const std::vector<const CudaStep*>& steps, int64_t warmup,
                      int64_t count, int64_t repeats, double* samples_us);

// Host time: samples_us[i] is how long the host took to enqueue step i while a blocking kernel held the
// stream; on an idle device where a step has too many launches for that (steps_per_hold(), timed_loop.h).
void cuda_host_steps(int device, void* stream, const std::vector<const CudaStep*>& steps, int64_t warmup,
                     int64_t count, double* samples_us);

}  // namespace pykernels
