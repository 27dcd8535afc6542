#include "runtime/program.h"

#include <atomic>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>

#include "runtime/nvtx.h"

namespace pykernels {
namespace {

constexpr const char* op_names[] = {
    "rmsnorm",       "gemv",         "rope_kv_append",
    "gqa_decode",    "silu_mul",     "swiglu_gemv",
    "qkv_gemv",      "int4_gemv",    "int4_swiglu_gemv",
    "int4_qkv_gemv", "add",          "embedding",
    "argmax",        "null",         "spin",
    "ceiling_read",  "ceiling_copy",
};
static_assert(std::size(op_names) == std::variant_size_v<Op>);

struct CpuLauncher {
    void operator()(const RmsnormParams& params) const { cpu::rmsnorm(params); }
    void operator()(const GemvParams& params) const { cpu::gemv(params); }
    void operator()(const RopeKvAppendParams& params) const { cpu::rope_kv_append(params); }
    void operator()(const GqaDecodeParams& params) const { cpu::gqa_decode(params); }
    void operator()(const SiluMulParams& params) const { cpu::silu_mul(params); }
    void operator()(const SwigluGemvParams& params) const { cpu::swiglu_gemv(params); }
    void operator()(const QkvGemvParams& params) const { cpu::qkv_gemv(params); }
    void operator()(const Int4GemvParams& params) const { cpu::int4_gemv(params); }
    void operator()(const Int4SwigluGemvParams& params) const { cpu::int4_swiglu_gemv(params); }
    void operator()(const Int4QkvGemvParams& params) const { cpu::int4_qkv_gemv(params); }
    void operator()(const AddParams& params) const { cpu::add(params); }
    void operator()(const EmbeddingParams& params) const { cpu::embedding(params); }
    void operator()(const ArgmaxParams& params) const { cpu::argmax(params); }
    void operator()(const NullParams& params) const { cpu::null(params); }
    void operator()(const SpinParams& params) const { cpu::spin(params); }
    void operator()(const CeilingReadParams& params) const { cpu::ceiling_read(params); }
    void operator()(const CeilingCopyParams& params) const { cpu::ceiling_copy(params); }
};

#ifdef PYKERNELS_CUDA
struct CudaLauncher {
    cuda::Stream stream;
    void operator()(const RmsnormParams& params) const { cuda::rmsnorm(params, stream); }
    void operator()(const GemvParams& params) const { cuda::gemv(params, stream); }
    void operator()(const RopeKvAppendParams& params) const { cuda::rope_kv_append(params, stream); }
    void operator()(const GqaDecodeParams& params) const { cuda::gqa_decode(params, stream); }
    void operator()(const SiluMulParams& params) const { cuda::silu_mul(params, stream); }
    void operator()(const SwigluGemvParams& params) const { cuda::swiglu_gemv(params, stream); }
    void operator()(const QkvGemvParams& params) const { cuda::qkv_gemv(params, stream); }
    void operator()(const Int4GemvParams& params) const { cuda::int4_gemv(params, stream); }
    void operator()(const Int4SwigluGemvParams& params) const { cuda::int4_swiglu_gemv(params, stream); }
    void operator()(const Int4QkvGemvParams& params) const { cuda::int4_qkv_gemv(params, stream); }
    void operator()(const AddParams& params) const { cuda::add(params, stream); }
    void operator()(const EmbeddingParams& params) const { cuda::embedding(params, stream); }
    void operator()(const ArgmaxParams& params) const { cuda::argmax(params, stream); }
    void operator()(const NullParams& params) const { cuda::null(params, stream); }
    void operator()(const SpinParams& params) const { cuda::spin(params, stream); }
    void operator()(const CeilingReadParams& params) const { cuda::ceiling_read(params, stream); }
    void operator()(const CeilingCopyParams& params) const { cuda::ceiling_copy(params, stream); }
};
#endif

std::atomic<bool> launches_enabled{true};
thread_local Program* recording_program = nullptr;

}  // namespace

const char* op_name(const Op& op) {
    return op_names[op.index()];
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
