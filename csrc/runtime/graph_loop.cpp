#include "runtime/graph_loop.h"

#include <stdexcept>
#include <utility>

#include "cuda/common/launch.h"
#include "cuda/graph_loop.h"

namespace pykernels {
namespace {

constexpr int needed_version = 12040;

std::string version_words(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// A stream to capture with. A capture that failed half-way is ended with it.
class CaptureStream {
  public:
    CaptureStream() { PYKERNELS_CHECK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
    ~CaptureStream() {
        cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
        if (cudaStreamIsCapturing(stream_, &status) == cudaSuccess && status != cudaStreamCaptureStatusNone) {
            cudaGraph_t graph = nullptr;  // the one that is captured into: not this one's to destroy
            cudaStreamEndCapture(stream_, &graph);
        }
        cudaStreamDestroy(stream_);
    }
    CaptureStream(const CaptureStream&) = delete;
    CaptureStream& operator=(const CaptureStream&) = delete;

    // What `enqueue(stream)` enqueues, as nodes of `graph`.
    template <class Enqueue>
    void append(cudaGraph_t graph, Enqueue&& enqueue) {
        PYKERNELS_CHECK_CUDA(cudaStreamBeginCaptureToGraph(stream_, graph, nullptr, nullptr, 0,
                                                           cudaStreamCaptureModeThreadLocal));
        enqueue(static_cast<void*>(stream_));
        PYKERNELS_CHECK_CUDA(cudaStreamEndCapture(stream_, &graph));
    }

  private:
    cudaStream_t stream_ = nullptr;
};

// The WHILE node behind `before`. Returns its body, an empty graph that is part of `graph`.
cudaGraph_t add_while(cudaGraph_t graph, cudaGraphNode_t before, cudaGraphConditionalHandle handle) {
    cudaGraphNodeParams params = {};
    params.type = cudaGraphNodeTypeConditional;
    params.conditional.handle = handle;
    params.conditional.type = cudaGraphCondTypeWhile;
    params.conditional.size = 1;
    cudaGraphNode_t node = nullptr;
#if CUDART_VERSION >= 13000
    PYKERNELS_CHECK_CUDA(cudaGraphAddNode(&node, graph, &before, nullptr, 1, &params));
#else
    PYKERNELS_CHECK_CUDA(cudaGraphAddNode(&node, graph, &before, 1, &params));
#endif
    return params.conditional.phGraph_out[0];
}

}  // namespace

std::string graph_loop_reason(int driver_version) {
    if (driver_version == 0) return "needs an NVIDIA driver, and none is installed";
    if (driver_version >= needed_version) return "";
    return "needs a driver of CUDA " + version_words(needed_version) +
           " or later for conditional WHILE nodes, and this one is of CUDA " + version_words(driver_version);
}

std::string graph_loop_reason() {
    int version = 0;
    PYKERNELS_CHECK_CUDA(cudaDriverGetVersion(&version));
    std::string reason = graph_loop_reason(version);
    if (!reason.empty()) return reason;
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status == cudaSuccess && devices > 0) return "";
    cudaGetLastError();  // it would otherwise be reported once more by the next call
    return std::string("needs a GPU: ") + (status == cudaSuccess ? "none found" : cudaGetErrorString(status));
}

GraphLoop::GraphLoop(std::shared_ptr<const Program> program, const GraphLoopMemory& memory, int32_t batch,
                     int32_t steps)
    : program_(std::move(program)) {
    if (!program_ || program_->size() == 0)
        throw std::invalid_argument("program must be a step, got one without ops");
    if (program_->cuda_device() < 0)
        throw std::invalid_argument("program must be of CUDA ops: a graph is a GPU's");
    if (batch < 1 || batch > max_batch) {
        throw std::invalid_argument("batch must be in 1.." + std::to_string(max_batch) + ", got " +
                                    std::to_string(batch));
    }
    if (steps < 1) throw std::invalid_argument("steps must be at least 1, got " + std::to_string(steps));
    program_->check();
    if (const std::string reason = graph_loop_reason(); !reason.empty())
        throw std::runtime_error("graph-loop " + reason);
    try {
        make(memory, batch, steps);
    } catch (...) {
        destroy();
        throw;
    }
}

void GraphLoop::make(const GraphLoopMemory& memory, int32_t batch, int32_t steps) {
    const cuda::DeviceScope scope(cuda_device());
    cuda::load_graph_loop();
    cudaGraph_t graph = nullptr;
    PYKERNELS_CHECK_CUDA(cudaGraphCreate(&graph, 0));
    graph_ = graph;
    cudaGraphConditionalHandle handle = 0;
    // 1 at every launch of the graph: a loop has a step at least.
    PYKERNELS_CHECK_CUDA(cudaGraphConditionalHandleCreate(&handle, graph, 1, cudaGraphCondAssignDefault));
    const cuda::GraphLoopParams params{handle,      memory.token, memory.tokens, memory.end_ns,
                                       memory.done, batch,        steps};
    CaptureStream stream;
    stream.append(graph, [&](void* on) { cuda::begin_graph_loop(params, {on, false}); });
    cudaGraphNode_t begin = nullptr;
    size_t nodes = 1;
    PYKERNELS_CHECK_CUDA(cudaGraphGetNodes(graph, &begin, &nodes));
    const cudaGraph_t body = add_while(graph, begin, handle);
    stream.append(body, [&](void* on) {
        program_->run(on);
        cuda::end_graph_loop_step(params, {on, false});
    });
    PYKERNELS_CHECK_CUDA(cudaGraphGetNodes(body, nullptr, &kernels_));
    cudaGraphExec_t executable = nullptr;
    PYKERNELS_CHECK_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    executable_ = executable;
}

void GraphLoop::destroy() {  // errors are dropped: a destructor must not throw
    if (executable_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(executable_));
    if (graph_ != nullptr) cudaGraphDestroy(static_cast<cudaGraph_t>(graph_));
}

GraphLoop::~GraphLoop() {
    destroy();
}

void GraphLoop::run(void* stream) const {
    PYKERNELS_CHECK_CUDA(
        cudaGraphLaunch(static_cast<cudaGraphExec_t>(executable_), static_cast<cudaStream_t>(stream)));
}

}  // namespace pykernels
