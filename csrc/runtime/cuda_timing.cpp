#include "runtime/cuda_timing.h"

#include <chrono>
#include <stdexcept>

#include "cuda/common/launch.h"

namespace pykernels {
namespace {

using Clock = std::chrono::steady_clock;

// The launch queue holds about 1,024; a quarter of it is far from full.
constexpr size_t max_queued_launches = 256;

cudaStream_t as_stream(void* stream) {
    return static_cast<cudaStream_t>(stream);
}

class Events {
  public:
    explicit Events(size_t count) : events_(count) {
        for (cudaEvent_t& event : events_) PYKERNELS_CHECK_CUDA(cudaEventCreate(&event));
    }
    ~Events() {
        for (cudaEvent_t event : events_) {
            if (event != nullptr) cudaEventDestroy(event);
        }
    }
    Events(const Events&) = delete;
    Events& operator=(const Events&) = delete;
    cudaEvent_t operator[](size_t i) const { return events_[i]; }

  private:
    std::vector<cudaEvent_t> events_;
};

// A flag in host memory that the device can read.
class Flag {
  public:
    Flag() { PYKERNELS_CHECK_CUDA(cudaHostAlloc(&flag_, sizeof(int), cudaHostAllocMapped)); }
    ~Flag() {
        release();  // nothing may be left waiting on memory that is gone
        cudaDeviceSynchronize();
        cudaFreeHost(const_cast<int*>(flag_));
    }
    Flag(const Flag&) = delete;
    Flag& operator=(const Flag&) = delete;
    void reset() { *flag_ = 0; }
    void release() { *flag_ = 1; }
    const int* device_pointer() const {
        void* pointer = nullptr;
        PYKERNELS_CHECK_CUDA(cudaHostGetDevicePointer(&pointer, const_cast<int*>(flag_), 0));
        return static_cast<const int*>(pointer);
    }

  private:
    volatile int* flag_ = nullptr;
};

}  // namespace

CudaGraph::CudaGraph(std::shared_ptr<const Program> program, bool programmatic)
    : program_(std::move(program)) {
    if (program_->cuda_device() < 0) throw std::invalid_argument("a CUDA graph needs a program of CUDA ops");
    const cuda::DeviceScope scope(program_->cuda_device());
    // A kernel's first launch loads its code, which a capture does not allow.
    PYKERNELS_CHECK_CUDA(cudaDeviceSynchronize());
    cudaStream_t stream = nullptr;
    PYKERNELS_CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    cudaGraph_t graph = nullptr;
    try {
        program_->run(stream);
        PYKERNELS_CHECK_CUDA(cudaStreamSynchronize(stream));
        PYKERNELS_CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        program_->run(stream, programmatic);
        PYKERNELS_CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
        PYKERNELS_CHECK_CUDA(cudaGraphGetNodes(graph, nullptr, &kernels_));
        PYKERNELS_CHECK_CUDA(
            cudaGraphInstantiate(reinterpret_cast<cudaGraphExec_t*>(&executable_), graph, 0));
    } catch (...) {
        cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
        if (cudaStreamIsCapturing(stream, &status) == cudaSuccess && status != cudaStreamCaptureStatusNone) {
            cudaStreamEndCapture(stream, &graph);
        }
        if (graph != nullptr) cudaGraphDestroy(graph);
        cudaStreamDestroy(stream);
        throw;
    }
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
}

CudaGraph::~CudaGraph() {
    if (executable_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
}

void CudaGraph::replay(void* stream) const {
    PYKERNELS_CHECK_CUDA(cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), as_stream(stream)));
}

void cuda_timed_steps(int device, void* stream, const std::vector<const CudaStep*>& steps, int64_t warmup,
                      int64_t count, double* samples_us) {
    const cuda::DeviceScope scope(device);
    const Events events(static_cast<size_t>(count) + 1);
    size_t next = 0;
    const auto enqueue = [&] {
        steps[next]->enqueue(stream);
        if (++next == steps.size()) next = 0;
    };
    for (int64_t i = 0; i < warmup; ++i) enqueue();
    PYKERNELS_CHECK_CUDA(cudaEventRecord(events[0], as_stream(stream)));
    for (int64_t i = 0; i < count; ++i) {
        enqueue();
        PYKERNELS_CHECK_CUDA(cudaEventRecord(events[static_cast<size_t>(i) + 1], as_stream(stream)));
    }
    PYKERNELS_CHECK_CUDA(cudaStreamSynchronize(as_stream(stream)));
    for (int64_t i = 0; i < count; ++i) {
        float milliseconds = 0;
        const auto index = static_cast<size_t>(i);
        PYKERNELS_CHECK_CUDA(cudaEventElapsedTime(&milliseconds, events[index], events[index + 1]));
        samples_us[i] = 1000.0 * static_cast<double>(milliseconds);
    }
}

void cuda_host_steps(int device, void* stream, const std::vector<const CudaStep*>& steps, int64_t warmup,
                     int64_t count, double* samples_us) {
    const cuda::DeviceScope scope(device);
    Flag flag;
    size_t next = 0;
    const auto enqueue = [&] {
        steps[next]->enqueue(stream);
        if (++next == steps.size()) next = 0;
    };
    for (int64_t i = 0; i < warmup; ++i) enqueue();
    PYKERNELS_CHECK_CUDA(cudaStreamSynchronize(as_stream(stream)));
    const auto batch = static_cast<int64_t>(max_queued_launches / (steps[0]->launches() + 1)) + 1;
    for (int64_t done = 0; done < count; done += batch) {
        flag.reset();
        cuda::hold(flag.device_pointer(), {stream, false});
        const int64_t end = done + batch < count ? done + batch : count;
        for (int64_t i = done; i < end; ++i) {
            const auto begin = Clock::now();
            enqueue();
            samples_us[i] = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
        }
        flag.release();
        PYKERNELS_CHECK_CUDA(cudaStreamSynchronize(as_stream(stream)));
    }
}

}  // namespace pykernels
