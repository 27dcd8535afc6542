// A trace of what a device ran and what the host called, by CUPTI's activity records: the device clock.
//
// libcupti is loaded when a trace is made, never linked: a machine without it runs everything else. Its
// headers are needed to build; without them every trace throws, and cuda_trace_reason() says so. CUPTI stays
// attached to the process after the first trace, and calls of CUDA may stay slower: take untraced times
// before.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pykernels {

struct Cupti;

// A kernel, or a copy or fill of device memory (named "[memcpy]" and "[memset]", their sizes all zero).
struct TracedKernel {
    std::string name;  // demangled
    uint64_t start_ns;
    uint64_t end_ns;
    uint32_t device;
    uint32_t stream;         // CUPTI's number of it
    uint32_t correlation;    // that of the call that launched it
    uint64_t graph_node_id;  // 0: not of a graph
    std::array<int32_t, 3> grid;
    std::array<int32_t, 3> block;
    uint32_t registers;  // a thread's
    int32_t static_shared_bytes;
    int32_t dynamic_shared_bytes;
};

// A call of the CUDA runtime or, inside it or alone, of the driver.
struct TracedCall {
    std::string name;
    uint64_t start_ns;  // the kernels' clock
    uint64_t end_ns;
    uint32_t correlation;
    uint32_t thread;  // the system's number of it (gettid)
    bool is_driver;
};

// Both in order of their start.
struct Trace {
    std::vector<TracedKernel> kernels;
    std::vector<TracedCall> calls;
};

// Why no trace can be taken, in one line; empty where one can. `libraries` are names or paths of libcupti:
// one that is in the process already is taken first, then the first that loads. With `attach` the records are
// switched on and off again, which alone finds missing privileges and other profilers, and attaches CUPTI.
std::string cuda_trace_reason(const std::vector<std::string>& libraries, bool attach);

// One trace runs at a time in a process; one object can take any number, one after another. Every failure is
// a std::runtime_error that names CUPTI's call, its result and the library.
class CudaTrace {
  public:
    explicit CudaTrace(const std::vector<std::string>& libraries);
    ~CudaTrace();
    CudaTrace(const CudaTrace&) = delete;
    CudaTrace& operator=(const CudaTrace&) = delete;

    // Both wait for the current device: a trace holds what was enqueued between them, whole.
    void start();
    // Throws too where CUPTI lost a record or could not time one: a trace is complete or there is none.
    Trace stop();

  private:
    void finish() noexcept;

    const Cupti* cupti_;
    bool running_ = false;
    size_t enabled_ = 0;      // kinds of records switched on
    int thread_id_type_ = 0;  // CUPTI's setting before the trace
};

}  // namespace pykernels
