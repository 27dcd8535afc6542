#include "binding/op_arguments.h"

#include <torch/csrc/stable/ops.h>
#include <cmath>

#include <dlfcn.h>

#include <memory>
#include <utility>
#include <vector>

#include "binding/autograd.h"
#include "runtime/ranges.h"

namespace pykernels::binding {
namespace {

// -1 for the CPU.
int cuda_device(const Tensor& tensor) {
    return tensor.is_cpu() ? -1 : tensor.get_device_index();
}

#ifdef PYKERNELS_CUDA
// The stream torch is using now. It lies in torch's CUDA library, which a CPU build of torch does not have,
// so it is looked up and not linked.
void* current_stream(int device) {
    using Function = AOTITorchError (*)(int32_t, void**);
    // Python loads torch's libraries with RTLD_LOCAL, so this one is opened by name.
    static void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    static const auto function =
        library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
    void* stream = nullptr;
    if (function == nullptr || function(device, &stream) != AOTI_TORCH_SUCCESS) {
        throw std::runtime_error("torch's current CUDA stream cannot be had: is this a CUDA build of torch?");
    }
    return stream;
}
#endif

void check_no_overlaps(Arguments read, Arguments written, const Argument* workspace) {
    if (workspace) {
        check_no_overlap(*workspace, read);
        check_no_overlap(*workspace, written);
    }
    for (const Argument* const* output = written.begin(); output != written.end(); ++output) {
        if (*output == nullptr) continue;
        check_no_overlap(**output, read);
        for (const Argument* const* other = output + 1; other != written.end(); ++other)
            check_no_overlap(**output, {*other});
    }
}

// A tensor of an op of a program: an alias, which holds the storage whatever becomes of the tensor.
class TensorMemory : public Memory {
  public:
    TensorMemory(const char* op, const Argument& argument)
        : name_(std::string("pykernels::") + op + ": " + argument.name()),
          alias_(alias(argument.tensor())),
          data_(argument.data()),
          storage_bytes_(storage_bytes(alias_)) {}

    bool is_unchanged() const override {
        return alias_.data_ptr() == data_ && storage_bytes(alias_) >= storage_bytes_;
    }
    std::string changed() const override {
        return name_ + " was resized after it was recorded: a program's tensors keep their memory";
    }

  private:
    static Tensor alias(const Tensor& tensor) {
        const auto sizes = tensor.sizes();
        const auto strides = tensor.strides();
        AtenTensorHandle handle = nullptr;
        PYKERNELS_CHECK_TORCH(aoti_torch__reinterpret_tensor(tensor.get(), static_cast<int64_t>(sizes.size()),
                                                             sizes.data(), strides.data(), 0, &handle));
        return Tensor(handle);
    }
    static int64_t storage_bytes(const Tensor& tensor) {
        int64_t bytes = 0;
        PYKERNELS_CHECK_TORCH(aoti_torch_get_storage_size(tensor.get(), &bytes));
        return bytes;
    }

    std::string name_;
    Tensor alias_;
    void* data_;
    int64_t storage_bytes_;
};

}  // namespace

void submit(Op op, Arguments read, Arguments written, const Argument* workspace) {
    check_no_overlaps(read, written, workspace);
    note_writes(op_name(op), read, written);
    const int device = cuda_device((*read.begin())->tensor());
    Program* program = recording();
    if (program == nullptr) {
#ifdef PYKERNELS_CUDA
        if (device >= 0) {
            const cuda::DeviceScope scope(device);
            launch(op, {device, current_stream(device), false});
            return;
        }
#endif
        launch(op, {});
        return;
    }
    if (device < 0) std::visit([](const auto& params) { check_ranges(params, Target{}); }, op);
    std::vector<std::unique_ptr<const Memory>> memory;
    const auto keep = [&](const Argument* argument) {
        if (argument) memory.push_back(std::make_unique<TensorMemory>(op_name(op), *argument));
    };
    for (const Argument* argument : read) keep(argument);
    for (const Argument* argument : written) keep(argument);
    keep(workspace);
    program->append(std::move(op), device, std::move(memory));
}

void check_batch(const Argument& x) {
    if (x.size(0) > max_batch) {
        x.fail("of batch 1 to " + std::to_string(max_batch), "batch " + std::to_string(x.size(0)));
    }
}

void check_eps(const char* op, double eps) {
    if (!(eps >= 0 && eps < 1)) fail(op, "eps must be in [0, 1), got " + std::to_string(eps));
}

void check_finite(const char* op, const char* name, double value) {
    if (!(std::fabs(value) < 1e38)) {
        fail(op, std::string(name) + " must be in (-1e38, 1e38), got " + std::to_string(value));
    }
}

void check_softcap(const char* op, double softcap) {
    if (!(softcap == 0 || (softcap >= 1e-3 && softcap < 1e38))) {
        fail(op, "softcap must be 0 (none) or in [0.001, 1e38), got " + std::to_string(softcap));
    }
}

void check_heads(const Argument& q, int64_t n_heads, int64_t n_kv_heads, int64_t head_dim) {
    if (n_heads % n_kv_heads != 0) {
        q.fail("of a multiple of n_kv_heads (" + std::to_string(n_kv_heads) + ") heads",
               std::to_string(n_heads) + " heads");
    }
    if (head_dim % 8 != 0 || head_dim > 256) {
        q.fail("of a head_dim that is a multiple of 8 up to 256", "head_dim " + std::to_string(head_dim));
    }
}

void RopeArguments::check(const Argument& x, int64_t n_kv_heads, int64_t head_dim) const {
    k_cache.like(x).shape({x.size(0), n_kv_heads, -1, head_dim});
    v_cache.like(x).shape_of(k_cache);
    cos_sin.type(ScalarType::Float).same_device(x).shape({-1, head_dim});
    position.type(ScalarType::Int).same_device(x).shape({x.size(0)});
}

Dtype QkvArguments::check_input() const {
    const Dtype dtype = x.shape({-1, -1}).dtype();
    check_batch(x);
    rope.k_cache.shape({x.size(0), -1, -1, -1});
    if (norm_weight) norm_weight->like(x).shape({hidden()});
    return dtype;
}

void QkvArguments::check(const Argument& q_weight, double eps) const {
    const int64_t q_rows = q_weight.size(0);
    if (q_rows % head_dim() != 0) {
        q_weight.fail("of a multiple of head_dim (" + std::to_string(head_dim()) + ") rows",
                      std::to_string(q_rows) + " rows");
    }
    check_heads(q_weight, q_rows / head_dim(), n_kv_heads(), head_dim());
    out.like(x).shape({x.size(0), q_rows / head_dim(), head_dim()});
    if (bool(q_bias) != bool(k_bias) || bool(q_bias) != bool(v_bias)) {
        fail(op_, "q_bias, k_bias and v_bias must be given together or not at all");
    }
    if (q_bias) {
        q_bias->like(x).shape({q_rows});
        k_bias->like(x).shape({kv_rows()});
        v_bias->like(x).shape({kv_rows()});
    }
    if (bool(q_norm) != bool(k_norm)) fail(op_, "q_norm and k_norm must be given together or not at all");
    if (q_norm) {
        q_norm->like(x).shape({-1});
        if (q_norm->size(0) != head_dim() && q_norm->size(0) != q_rows) {
            q_norm->fail("of " + std::to_string(head_dim()) + " elements (a head's) or " +
                             std::to_string(q_rows) + " (all heads')",
                         std::to_string(q_norm->size(0)));
        }
        k_norm->like(x).shape({norms_all_heads() ? kv_rows() : head_dim()});
    }
    rope.check(x, n_kv_heads(), head_dim());
    check_eps(op_, eps);
    check_finite(op_, "norm_offset", norm_offset_);
}

Workspace::Workspace(const char* op, MaybeTensor& given, size_t bytes, const Argument& like) {
    if (!given && bytes > 0) {
        const int64_t size[] = {static_cast<int64_t>(bytes)};
        given = torch::stable::new_empty(like.tensor(), {size, 1}, ScalarType::Byte);
        if (!like.tensor().is_cpu())
            torch::stable::zero_(*given);  // counters and flagged words start at zero
    }
    if (!given) return;
    const Argument& workspace = argument_.emplace(op, "workspace", *given);
    workspace.type(ScalarType::Byte).shape({-1}).same_device(like);
    if (workspace.size(0) < static_cast<int64_t>(bytes)) {
        workspace.fail("of at least " + std::to_string(bytes) + " bytes",
                       std::to_string(workspace.size(0)) + " bytes");
    }
    if (reinterpret_cast<uintptr_t>(workspace.data()) % 64 != 0) {
        workspace.fail("64-byte aligned", "an address that is not");
    }
}

}  // namespace pykernels::binding
