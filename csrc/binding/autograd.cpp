#include "binding/autograd.h"

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>

namespace pykernels::binding {
namespace {

// Neither torch's mode of inference nor version counters are in the stable ABI. The mode has an exported
// function, which is looked up and not linked: without it every call takes the longer way, which is right in
// any mode.
bool in_inference_mode() {
    using Function = bool (*)();
    static const auto function =
        reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, "_ZN3c1013InferenceMode10is_enabledEv"));
    return function != nullptr && function();
}

// A view of no elements: what is done to it, torch does to the tensor's bookkeeping.
Tensor empty_view(const Tensor& tensor) {
    AtenTensorHandle view = nullptr;
    PYKERNELS_CHECK_TORCH(aoti_torch_aten_narrow(tensor.get(), 0, 0, 0, &view));
    return Tensor(view);
}

// While gradients are enabled, a view of what requires a gradient is no leaf.
bool requires_grad(const Tensor& tensor) {
    using torch::stable::detail::from;
    std::array<StableIValue, 1> stack{from(empty_view(tensor))};
    PYKERNELS_CHECK_TORCH(torch_call_dispatcher("aten::is_leaf", "", stack.data(), TORCH_ABI_VERSION));
    return !torch::stable::detail::to<bool>(stack[0]);
}

bool can_require_grad(const Argument& argument) {
    const ScalarType type = argument.scalar_type();
    return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half;
}

}  // namespace

void note_writes(const char* op, std::initializer_list<const Argument*> read,
                 std::initializer_list<const Argument*> written) {
    if (written.size() == 0 || in_inference_mode()) return;  // the controls write nothing
    if (aoti_torch_grad_mode_is_enabled()) {
        for (const auto& arguments : {read, written}) {
            for (const Argument* argument : arguments) {
                if (argument == nullptr || argument->rank() == 0 || !can_require_grad(*argument)) continue;
                if (requires_grad(argument->tensor())) {
                    throw std::runtime_error(std::string("pykernels::") + op + ": " + argument->name() +
                                             " requires grad, and the op has no derivative: call it under "
                                             "torch.no_grad() or torch.inference_mode()");
                }
            }
        }
    }
    for (const Argument* argument : written) {
        if (argument == nullptr || argument->rank() == 0) continue;
        const Tensor view = empty_view(argument->tensor());
        if (aoti_torch_zero_(view.get()) != AOTI_TORCH_SUCCESS) {
            throw std::runtime_error(std::string("pykernels::") + op + ": " + argument->name() +
                                     " is an inference tensor, which can be written in inference mode only");
        }
    }
}

}  // namespace pykernels::binding
