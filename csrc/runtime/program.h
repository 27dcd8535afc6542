// A program: ops with bound parameters, in order. One decoder layer is one program.
//
// A program is recorded, not written by hand: while a thread is recording, the torch ops (binding/) check
// their arguments as ever but append the parameters here instead of launching. So the sequence of a layer
// has one definition, and what runs natively has passed the same checks as what runs eagerly.
#pragma once

#include <atomic>
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

// While disabled, launch() skips the launcher, in every thread, so that a loop over ops takes the host's time
// alone. This is how the host clock is measured on a CPU, where kernels run in the calling thread.
void set_launches_enabled(bool enabled);

// The memory behind one of an op's pointers. It is kept as long as this object is.
class Memory {
  public:
    virtual ~Memory() = default;
    // Whether the pointer is still the one that was recorded; changed() says in one line which argument it
    // belongs to.
    virtual bool is_unchanged() const = 0;
    virtual std::string changed() const = 0;
};

// Recorded once, by one thread; from then on any number of threads may run it.
class Program {
  public:
    // All ops are of one device: throws std::invalid_argument otherwise.
    void append(Op op, int cuda_device, std::vector<std::unique_ptr<const Memory>> memory = {});

    // On the program's device; `stream` and `programmatic` as in Target. The caller has called check().
    void run(void* stream = nullptr, bool programmatic = false) const;
    // Throws std::runtime_error while the program is being recorded, and where an op's memory is not where it
    // was: a tensor was resized or given other storage.
    void check() const;
    void check(size_t index) const;

    int cuda_device() const { return cuda_device_; }  // -1: the CPU
    size_t size() const { return ops_.size(); }
    const Op& op(size_t index) const { return ops_[index]; }

    // Throws std::runtime_error where it was recorded before, or is being recorded.
    void begin_recording();
    void end_recording() { state_.store(State::recorded, std::memory_order_release); }
    bool is_recording() const { return state_.load(std::memory_order_acquire) == State::recording; }

  private:
    enum class State { made, recording, recorded };

    void check_recorded() const;

    std::vector<Op> ops_;
    int cuda_device_ = -1;
    std::vector<std::unique_ptr<const Memory>> memory_;  // of all ops, in their order
    std::vector<size_t> memory_ends_;                    // of each op, in memory_
    std::atomic<State> state_{State::made};
};

// The program this thread is recording, or null. Another thread may have ended the recording.
Program* recording();
// Begins, or with null ends, this thread's recording. Throws std::runtime_error where the thread is recording
// already.
void set_recording(std::shared_ptr<Program> program);

}  // namespace pykernels
