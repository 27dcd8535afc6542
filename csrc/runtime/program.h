// A program: ops with bound parameters, in order. One decoder layer is one program.
//
// A program is recorded, not written by hand: while a thread is recording, the torch ops (binding/) check
// their arguments as ever but append the parameters here instead of launching. So the sequence of a layer
// has one definition, and what runs natively has passed the same checks as what runs eagerly.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "ops.h"

namespace pykernels {

// std::variant of the parameters of every op, in the order of op_list.h.
template <class, class... Params>
struct OpVariant {
    using type = std::variant<Params...>;
};
#define PYKERNELS_PARAMS(op, Params) , Params
using Op = OpVariant<void PYKERNELS_OPS(PYKERNELS_PARAMS)>::type;
#undef PYKERNELS_PARAMS

std::vector<std::string> op_names();  // in the order of op_list.h
const char* op_name(const Op& op);

// Where ops run: the CPU, or a stream of a CUDA device.
struct Target {
    int cuda_device = -1;       // -1: the CPU
    void* stream = nullptr;     // a cudaStream_t
    bool programmatic = false;  // each kernel may start before the one ahead of it has ended (mode graph-pdl)
};

// Straight to the launcher, inside an NVTX range of the op's name. The target's device is the current one.
void launch(const Op& op, const Target& target);

// While disabled, launch() does all but the launcher's own work, in every thread: a loop over ops then costs
// what its host side costs. It is how the host clock is read on a CPU, where kernel and host share a thread.
void set_launches_enabled(bool enabled);

class Program {
  public:
    // `owners` keep the memory behind the op's pointers alive as long as the program. All ops are of one
    // device: throws std::invalid_argument otherwise.
    void append(Op op, int cuda_device, std::vector<std::shared_ptr<const void>> owners = {});
    // On the program's device; `stream` and `programmatic` as in Target.
    void run(void* stream = nullptr, bool programmatic = false) const;
    int cuda_device() const { return cuda_device_; }  // -1: the CPU
    size_t size() const { return ops_.size(); }
    const Op& op(size_t index) const { return ops_[index]; }

  private:
    std::vector<Op> ops_;
    int cuda_device_ = -1;
    std::vector<std::shared_ptr<const void>> owners_;
};

// The program this thread is recording, or null.
Program* recording();
void set_recording(Program* program);

}  // namespace pykernels
