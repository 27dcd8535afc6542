#include "runtime/cuda_timing.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

#include "cuda/common/launch.h"
#include "runtime/interrupt.h"
#include "runtime/timed_loop.h"

namespace pykernels {
namespace {

using Clock = std::chrono::steady_clock;

cudaStream_t as_stream(void* stream) {
    return static_cast<cudaStream_t>(stream);
}

class Events {
  public:
    // Delegating, so that what was created is destroyed where a later one fails.
    explicit Events(size_t count) : Events(std::vector<cudaEvent_t>(count)) {
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
    explicit Events(std::vector<cudaEvent_t> events) : events_(std::move(events)) {}

    std::vector<cudaEvent_t> events_;
};

// Enqueues the steps in rotation.
class Rotation {
  public:
    Rotation(const std::vector<const CudaStep*>& steps, void* stream) : steps_(steps), stream_(stream) {}
    void enqueue() {
        steps_[next_]->enqueue(stream_);
        if (++next_ == steps_.size()) next_ = 0;
    }

  private:
    const std::vector<const CudaStep*>& steps_;
    void* stream_;
    size_t next_ = 0;
};

}  // namespace

CudaGraph::CudaGraph(std::vector<std::shared_ptr<const Program>> programs, bool programmatic)
    : programs_(std::move(programs)) {
    if (programs_.empty()) throw std::invalid_argument("programs must hold at least one program, got none");
    for (const auto& program : programs_) {
        if (program->cuda_device() < 0)
            throw std::invalid_argument("a CUDA graph needs programs of CUDA ops");
        if (program->cuda_device() != cuda_device())
            throw std::invalid_argument("programs must all be of one device");
        program->check();
    }
    const cuda::DeviceScope scope(cuda_device());
    // A kernel's first launch loads its code, which a capture does not allow.
    PYKERNELS_CHECK_CUDA(cudaDeviceSynchronize());
    cudaStream_t stream = nullptr;
    PYKERNELS_CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    cudaGraph_t graph = nullptr;
    try {
        for (const auto& program : programs_) program->run(stream);
        PYKERNELS_CHECK_CUDA(cudaStreamSynchronize(stream));
        PYKERNELS_CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
        for (const auto& program : programs_) program->run(stream, programmatic);
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

StreamHold::StreamHold(int device, void* stream) : device_(device), stream_(stream) {
    const cuda::DeviceScope scope(device_);
    PYKERNELS_CHECK_CUDA(cudaHostAlloc(&released_, sizeof(int), cudaHostAllocMapped));
    *released_ = 1;
}

StreamHold::~StreamHold() {
    *released_ = 1;  // ends the kernel that polls it, before it is freed
    int before = device_;
    cudaGetDevice(&before);  // errors are dropped: a destructor must not throw
    cudaSetDevice(device_);
    cudaStreamSynchronize(as_stream(stream_));
    cudaFreeHost(const_cast<int*>(released_));
    cudaSetDevice(before);
}

void StreamHold::hold() {
    const cuda::DeviceScope scope(device_);
    void* pointer = nullptr;
    PYKERNELS_CHECK_CUDA(cudaHostGetDevicePointer(&pointer, const_cast<int*>(released_), 0));
    *released_ = 0;
    cuda::hold(static_cast<const int*>(pointer), {stream_, false});
}

void StreamHold::release() {
    const cuda::DeviceScope scope(device_);
    *released_ = 1;
    PYKERNELS_CHECK_CUDA(cudaStreamSynchronize(as_stream(stream_)));
}

void cuda_timed_steps(int device, void* stream, const std::vector<const CudaStep*>& steps, int64_t warmup,
                      int64_t count, int64_t repeats, double* samples_us) {
    const cuda::DeviceScope scope(device);
    const Events events(static_cast<size_t>(count) + 1);
    Rotation rotation(steps, stream);
    InterruptPoll poll;
    const auto enqueue = [&] { rotation.enqueue(); };
    for (int64_t i = 0; i < warmup; ++i) poll.repeat(repeats, enqueue);
    PYKERNELS_CHECK_CUDA(cudaEventRecord(events[0], as_stream(stream)));
    for (int64_t sample = 0; sample < count; ++sample) {
        poll.repeat(repeats, enqueue);
        PYKERNELS_CHECK_CUDA(cudaEventRecord(events[static_cast<size_t>(sample) + 1], as_stream(stream)));
    }
    PYKERNELS_CHECK_CUDA(cudaStreamSynchronize(as_stream(stream)));
    for (int64_t sample = 0; sample < count; ++sample) {
        float milliseconds = 0;
        const auto index = static_cast<size_t>(sample);
        PYKERNELS_CHECK_CUDA(cudaEventElapsedTime(&milliseconds, events[index], events[index + 1]));
        samples_us[sample] = 1000.0 * static_cast<double>(milliseconds) / static_cast<double>(repeats);
    }
}

void cuda_host_steps(int device, void* stream, const std::vector<const CudaStep*>& steps, int64_t warmup,
                     int64_t count, double* samples_us) {
    const cuda::DeviceScope scope(device);
    StreamHold hold(device, stream);
    Rotation rotation(steps, stream);
    InterruptPoll poll;
    poll.repeat(warmup, [&] { rotation.enqueue(); });
    PYKERNELS_CHECK_CUDA(cudaStreamSynchronize(as_stream(stream)));
    const int64_t held = steps_per_hold(steps[0]->launches()), batch = std::max<int64_t>(held, 1);
    for (int64_t done = 0; done < count; done += batch) {
        if (held > 0) hold.hold();
        const int64_t end = std::min(done + batch, count);
        for (int64_t i = done; i < end; ++i) {
            const auto begin = Clock::now();
            rotation.enqueue();
            samples_us[i] = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
        }
        hold.release();
        if (interrupt_requested()) throw Interrupted();
    }
}

}  // namespace pykernels
