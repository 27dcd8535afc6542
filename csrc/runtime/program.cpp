#include "runtime/program.h"

#include <atomic>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>

#include "runtime/nvtx.h"
#include "runtime/ranges.h"

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
        check_ranges(params, Target{});           \
        cpu::op(params);                          \
    }
    PYKERNELS_OPS(PYKERNELS_LAUNCH)
#undef PYKERNELS_LAUNCH
};

#ifdef PYKERNELS_CUDA
struct CudaLauncher {
    const Target& target;
#define PYKERNELS_LAUNCH(op, Params)                            \
    void operator()(const Params& params) const {               \
        if (range_checks()) check_ranges(params, target);       \
        cuda::op(params, {target.stream, target.programmatic}); \
    }
    PYKERNELS_OPS(PYKERNELS_LAUNCH)
#undef PYKERNELS_LAUNCH
};
#endif

std::atomic<bool> launches_enabled{true};
thread_local std::shared_ptr<Program> recording_program;

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
    if (target.cuda_device >= 0) return std::visit(CudaLauncher{target}, op);
#endif
    (void)target;
    std::visit(CpuLauncher{}, op);
}

void set_launches_enabled(bool enabled) {
    launches_enabled.store(enabled, std::memory_order_relaxed);
}

void Program::append(Op op, int cuda_device, std::vector<std::unique_ptr<const Memory>> memory) {
    if (ops_.empty()) cuda_device_ = cuda_device;
    if (cuda_device != cuda_device_) {
        throw std::invalid_argument(std::string("a program's ops must be of one device; ") + op_name(op) +
                                    " is of another than those before it");
    }
    ops_.push_back(std::move(op));
    memory_.insert(memory_.end(), std::make_move_iterator(memory.begin()),
                   std::make_move_iterator(memory.end()));
    memory_ends_.push_back(memory_.size());
}

void Program::run(void* stream, bool programmatic) const {
    const Target target{cuda_device_, stream, programmatic};
    for (const Op& op : ops_) launch(op, target);
}

void Program::check_recorded() const {
    if (is_recording())
        throw std::runtime_error("the program is being recorded: it runs when its recording has ended");
}

void Program::check() const {
    check_recorded();
    for (const auto& memory : memory_) {
        if (!memory->is_unchanged()) throw std::runtime_error(memory->changed());
    }
}

void Program::check(size_t index) const {
    check_recorded();
    for (size_t i = index == 0 ? 0 : memory_ends_[index - 1]; i < memory_ends_[index]; ++i) {
        if (!memory_[i]->is_unchanged()) throw std::runtime_error(memory_[i]->changed());
    }
}

void Program::begin_recording() {
    State made = State::made;
    if (!state_.compare_exchange_strong(made, State::recording))
        throw std::runtime_error("the program was recorded before: a program is recorded once");
}

Program* recording() {
    if (recording_program && !recording_program->is_recording()) recording_program.reset();
    return recording_program.get();
}

void set_recording(std::shared_ptr<Program> program) {
    if (program) {
        if (recording()) throw std::runtime_error("this thread is recording already");
        program->begin_recording();
    } else if (recording_program) {
        recording_program->end_recording();
    }
    recording_program = std::move(program);
}

}  // namespace pykernels
