#include "runtime/program.h"

#include <atomic>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>

#include "runtime/nvtx.h"

namespace pykernels {
namespace {

constexpr const char* names[] = {
#define PYKERNELS_NAME(op, Params) #op,
    PYKERNELS_OPS(PYKERNELS_NAME)
#undef PYKERNELS_NAME
};

struct CpuLauncher {
#define PYKERNELS_LAUNCH(op, Params)              \
    void operator()(const Params& params) const { \
        cpu::op(params);                          \
    }
    PYKERNELS_OPS(PYKERNELS_LAUNCH)
#undef PYKERNELS_LAUNCH
};

#ifdef PYKERNELS_CUDA
struct CudaLauncher {
    cuda::Stream stream;
#define PYKERNELS_LAUNCH(op, Params)              \
    void operator()(const Params& params) const { \
        cuda::op(params, stream);                 \
    }
    PYKERNELS_OPS(PYKERNELS_LAUNCH)
#undef PYKERNELS_LAUNCH
};
#endif

std::atomic<bool> launches_enabled{true};
thread_local Program* recording_program = nullptr;

}  // namespace

std::vector<std::string> op_names() {
    return {std::begin(names), std::end(names)};
}

const char* op_name(const Op& op) {
    return names[op.index()];
}

void launch(const Op& op, const Target& target) {
    nvtx::Range range(op_name(op));
    if (!launches_enabled.load(std::memory_order_relaxed)) return;
#ifdef PYKERNELS_CUDA
    if (target.cuda_device >= 0) return std::visit(CudaLauncher{{target.stream, target.programmatic}}, op);
#endif
    (void)target;
    std::visit(CpuLauncher{}, op);
}

void set_launches_enabled(bool enabled) {
    launches_enabled.store(enabled, std::memory_order_relaxed);
}

void Program::append(Op op, int cuda_device, std::vector<std::shared_ptr<const void>> owners) {
    if (ops_.empty()) cuda_device_ = cuda_device;
    if (cuda_device != cuda_device_) {
        throw std::invalid_argument(std::string("a program's ops must be of one device; ") + op_name(op) +
                                    " is of another than those before it");
    }
    ops_.push_back(std::move(op));
    owners_.insert(owners_.end(), std::make_move_iterator(owners.begin()),
                   std::make_move_iterator(owners.end()));
}

void Program::run(void* stream, bool programmatic) const {
    const Target target{cuda_device_, stream, programmatic};
    for (const Op& op : ops_) launch(op, target);
}

Program* recording() {
    return recording_program;
}

void set_recording(Program* program) {
    recording_program = program;
}

}  // namespace pykernels
