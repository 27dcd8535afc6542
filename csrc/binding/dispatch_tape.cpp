// Mode `dispatch`: a C++ loop through PyTorch's dispatcher, with no Python inside.
//
// A tape is a straight line of dispatcher calls ("aten::linear", "pykernels::gemv", ...) with their
// arguments: constants, tensors fixed when the tape was made, and results of earlier calls.
// pykernels/dispatch.py records it from a Python function.
//
// Each call goes through torch_call_dispatcher, the stable ABI's call of the dispatcher: schema look-up by
// name, boxing of every argument, the dispatcher itself, the kernel. A C++ program that links libtorch and
// keeps its operator handles pays less; the null op's dispatch time says how much one call costs.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "binding/checks.h"
#include "runtime/timed_loop.h"
#ifdef PYKERNELS_CUDA
#include "runtime/cuda_timing.h"
#endif

namespace pykernels::binding {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

// One argument as its letter and the integers or the float behind it. Capitals are the optional types.
struct TapeArgument {
    char kind;  // t T tensor slot, n none, i I int, f F float, b bool, l ints, s tensor slots
    std::vector<int64_t> ints;
    double number = 0;
};

struct TapeCall {
    std::string op, overload;
    std::vector<TapeArgument> arguments;
    int64_t first_result, n_results;
    bool is_add;
};

class Tape {
  public:
    int64_t add_slot(const Tensor& tensor) {
        const std::lock_guard lock(running_);
        slots_.push_back(tensor);
        return static_cast<int64_t>(slots_.size()) - 1;
    }

    // Returns the slot of the first result.
    int64_t add_call(std::string op, std::string overload, std::vector<TapeArgument> arguments,
                     int64_t n_results) {
        const std::lock_guard lock(running_);
        TapeCall call{std::move(op),
                      std::move(overload),
                      std::move(arguments),
                      static_cast<int64_t>(slots_.size()),
                      n_results,
                      false};
        call.is_add = call.op == "aten::add" && call.overload == "Tensor";
        for (int64_t i = 0; i < n_results; ++i) slots_.emplace_back();
        stack_.resize(std::max({stack_.size(), call.arguments.size(), static_cast<size_t>(n_results)}));
        calls_.push_back(std::move(call));
        return calls_.back().first_result;
    }

    // One run at a time: slots and stack belong to the tape.
    void run() {
        const std::lock_guard lock(running_);
        for (const TapeCall& call : calls_) {
            if (call.is_add) {
                run_add(call);
            } else {
                run_call(call);
            }
        }
    }

    size_t calls() const { return calls_.size(); }
    Tensor slot(int64_t index) {
        const std::lock_guard lock(running_);
        return slots_.at(static_cast<size_t>(index));
    }

  private:
    const Tensor& slot_of(const TapeArgument& argument) const {
        return slots_[static_cast<size_t>(argument.ints[0])];
    }

    StableIValue boxed(const TapeArgument& argument) const {
        switch (argument.kind) {
            case 't':
                return from(slot_of(argument));
            case 'T':
                return from(std::optional<Tensor>(slot_of(argument)));
            case 'n':
                return from(std::nullopt);
            case 'i':
                return from(argument.ints[0]);
            case 'I':
                return from(std::optional<int64_t>(argument.ints[0]));
            case 'f':
                return from(argument.number);
            case 'F':
                return from(std::optional<double>(argument.number));
            case 'b':
                return from(argument.ints[0] != 0);
            case 'l':
                return from(argument.ints);
            default: {
                std::vector<Tensor> tensors;
                for (const int64_t index : argument.ints)
                    tensors.push_back(slots_[static_cast<size_t>(index)]);
                return from(tensors);
            }
        }
    }

    void run_call(const TapeCall& call) {
        for (size_t i = 0; i < call.arguments.size(); ++i) stack_[i] = boxed(call.arguments[i]);
        PYKERNELS_CHECK_TORCH(
            torch_call_dispatcher(call.op.c_str(), call.overload.c_str(), stack_.data(), TORCH_ABI_VERSION));
        for (int64_t i = 0; i < call.n_results; ++i) {
            slots_[static_cast<size_t>(call.first_result + i)] = to<Tensor>(stack_[static_cast<size_t>(i)]);
        }
    }

    // aten::add takes its alpha as a Scalar, which the stable ABI cannot box. a - (-1) * b is the same sum,
    // bit for bit, and its shim is a typed call into the dispatcher.
    void run_add(const TapeCall& call) {
        AtenTensorHandle result = nullptr;
        PYKERNELS_CHECK_TORCH(aoti_torch_aten_subtract_Tensor(
            slot_of(call.arguments[0]).get(), slot_of(call.arguments[1]).get(), -1.0, &result));
        slots_[static_cast<size_t>(call.first_result)] = Tensor(result);
    }

    std::vector<Tensor> slots_;
    std::vector<TapeCall> calls_;
    std::vector<StableIValue> stack_;
    std::mutex running_;
};

// Tapes are named by numbers: the stable ABI registers no classes.
std::mutex tapes_mutex;
std::map<int64_t, std::shared_ptr<Tape>> tapes;
int64_t next_tape = 0;

std::shared_ptr<Tape> find(int64_t id) {
    const std::lock_guard lock(tapes_mutex);
    const auto found = tapes.find(id);
    if (found == tapes.end()) fail("tape", "tape must be one that tape_new made, got " + std::to_string(id));
    return found->second;
}

int64_t tape_new() {
    const std::lock_guard lock(tapes_mutex);
    tapes.emplace(next_tape, std::make_shared<Tape>());
    return next_tape++;
}

void tape_delete(int64_t id) {
    const std::lock_guard lock(tapes_mutex);
    tapes.erase(id);
}

int64_t tape_tensor(int64_t id, const Tensor& tensor) {
    return find(id)->add_slot(tensor);
}

int64_t tape_call(int64_t id, const std::string& op, const std::string& overload, const std::string& kinds,
                  const std::vector<int64_t>& ints, const std::vector<double>& numbers, int64_t n_results) {
    std::vector<TapeArgument> arguments;
    size_t next_int = 0, next_number = 0;
    for (const char kind : kinds) {
        TapeArgument argument{kind, {}};
        if (kind == 'l' || kind == 's') {
            const auto count = static_cast<size_t>(ints.at(next_int++));
            for (size_t i = 0; i < count; ++i) argument.ints.push_back(ints.at(next_int++));
        } else if (kind == 'f' || kind == 'F') {
            argument.number = numbers.at(next_number++);
        } else if (kind != 'n') {
            argument.ints.push_back(ints.at(next_int++));
        }
        arguments.push_back(std::move(argument));
    }
    return find(id)->add_call(op, overload, std::move(arguments), n_results);
}

void tape_run(int64_t id) {
    find(id)->run();
}

Tensor tape_slot(int64_t id, int64_t slot) {
    return find(id)->slot(slot);
}

std::vector<std::shared_ptr<Tape>> find_all(const std::vector<int64_t>& ids) {
    std::vector<std::shared_ptr<Tape>> found;
    for (const int64_t id : ids) found.push_back(find(id));
    return found;
}

void tape_timed_loop(const std::vector<int64_t>& ids, int64_t warmup, int64_t repeats,
                     const Tensor& samples_us_) {
    Argument samples_us("tape_timed_loop", "samples_us", samples_us_);
    samples_us.type(ScalarType::Double).shape({-1});
    const auto rotation = find_all(ids);
    size_t next = 0;
    time_steps(
        [&] {
            rotation[next]->run();
            if (++next == rotation.size()) next = 0;
        },
        warmup, samples_us.size(0), repeats, static_cast<double*>(samples_us.data()));
}

#ifdef PYKERNELS_CUDA
// The tape's ops go to torch's current stream, which the caller names so that the events stand in it too.
class TapeStep : public CudaStep {
  public:
    explicit TapeStep(std::shared_ptr<Tape> tape) : tape_(std::move(tape)) {}
    void enqueue(void*) const override { tape_->run(); }
    size_t launches() const override { return tape_->calls(); }

  private:
    std::shared_ptr<Tape> tape_;
};

void tape_cuda_timed_loop(const std::vector<int64_t>& ids, int64_t device, int64_t stream, int64_t warmup,
                          int64_t repeats, bool host, const Tensor& samples_us_) {
    Argument samples_us("tape_cuda_timed_loop", "samples_us", samples_us_);
    samples_us.type(ScalarType::Double).shape({-1});
    std::vector<TapeStep> steps;
    for (auto& tape : find_all(ids)) steps.emplace_back(std::move(tape));
    std::vector<const CudaStep*> pointers;
    for (const TapeStep& step : steps) pointers.push_back(&step);
    auto* const handle = reinterpret_cast<void*>(static_cast<uintptr_t>(stream));
    auto* const data = static_cast<double*>(samples_us.data());
    if (host) {
        cuda_host_steps(static_cast<int>(device), handle, pointers, warmup, samples_us.size(0), data);
    } else {
        cuda_timed_steps(static_cast<int>(device), handle, pointers, warmup, samples_us.size(0), repeats,
                         data);
    }
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pykernels, library) {
    library.def("tape_new() -> int");
    library.def("tape_delete(int tape) -> ()");
    library.def("tape_tensor(int tape, Tensor tensor) -> int");
    library.def(
        "tape_call(int tape, str op, str overload, str kinds, int[] ints, float[] numbers, int n_results) -> "
        "int");
    library.def("tape_run(int tape) -> ()");
    library.def("tape_slot(int tape, int slot) -> Tensor");
    library.def("tape_timed_loop(int[] tapes, int warmup, int repeats, Tensor(a!) samples_us) -> ()");
#ifdef PYKERNELS_CUDA
    library.def(
        "tape_cuda_timed_loop(int[] tapes, int device, int stream, int warmup, int repeats, bool host, "
        "Tensor(a!) samples_us) -> ()");
#endif
}

STABLE_TORCH_LIBRARY_IMPL(pykernels, CompositeExplicitAutograd, library) {
    library.impl("tape_new", TORCH_BOX(&tape_new));
    library.impl("tape_delete", TORCH_BOX(&tape_delete));
    library.impl("tape_tensor", TORCH_BOX(&tape_tensor));
    library.impl("tape_call", TORCH_BOX(&tape_call));
    library.impl("tape_run", TORCH_BOX(&tape_run));
    library.impl("tape_slot", TORCH_BOX(&tape_slot));
    library.impl("tape_timed_loop", TORCH_BOX(&tape_timed_loop));
#ifdef PYKERNELS_CUDA
    library.impl("tape_cuda_timed_loop", TORCH_BOX(&tape_cuda_timed_loop));
#endif
}

}  // namespace pykernels::binding
