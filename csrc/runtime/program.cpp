#include "runtime/program.h"

#include <atomic>
#include <iterator>
#include <utility>

#include "runtime/nvtx.h"

namespace pykernels {
namespace {

constexpr const char* op_names[] = {
    "rmsnorm", "gemv",      "rope_kv_append", "gqa_decode", "silu_mul",     "swiglu_gemv",  "qkv_gemv",
    "add",     "embedding", "null",           "spin",       "ceiling_read", "ceiling_copy",
};
static_assert(std::size(op_names) == std::variant_size_v<Op>);

struct Launcher {
    void operator()(const RmsnormParams& params) const { cpu::rmsnorm(params); }
    void operator()(const GemvParams& params) const { cpu::gemv(params); }
    void operator()(const RopeKvAppendParams& params) const { cpu::rope_kv_append(params); }
    void operator()(const GqaDecodeParams& params) const { cpu::gqa_decode(params); }
    void operator()(const SiluMulParams& params) const { cpu::silu_mul(params); }
    void operator()(const SwigluGemvParams& params) const { cpu::swiglu_gemv(params); }
    void operator()(const QkvGemvParams& params) const { cpu::qkv_gemv(params); }
    void operator()(const AddParams& params) const { cpu::add(params); }
    void operator()(const EmbeddingParams& params) const { cpu::embedding(params); }
    void operator()(const NullParams& params) const { cpu::null(params); }
    void operator()(const SpinParams& params) const { cpu::spin(params); }
    void operator()(const CeilingReadParams& params) const { cpu::ceiling_read(params); }
    void operator()(const CeilingCopyParams& params) const { cpu::ceiling_copy(params); }
};

std::atomic<bool> launches_enabled{true};
thread_local Program* recording_program = nullptr;

}  // namespace

const char* op_name(const Op& op) {
    return op_names[op.index()];
}

void launch(const Op& op) {
    nvtx::Range range(op_name(op));
    if (launches_enabled.load(std::memory_order_relaxed)) std::visit(Launcher{}, op);
}

void set_launches_enabled(bool enabled) {
    launches_enabled.store(enabled, std::memory_order_relaxed);
}

void Program::append(Op op, std::vector<std::shared_ptr<const void>> owners) {
    ops_.push_back(std::move(op));
    owners_.insert(owners_.end(), std::make_move_iterator(owners.begin()),
                   std::make_move_iterator(owners.end()));
}

void Program::run() const {
    for (const Op& op : ops_) launch(op);
}

Program* recording() {
    return recording_program;
}

void set_recording(Program* program) {
    recording_program = program;
}

}  // namespace pykernels
