// A coroutine with a stack of its own, one for each CUDA thread: the scheduler enters it and goes on when it
// yields.
#pragma once

#include <cstddef>

namespace pykernels::simt {

class Fiber {
  public:
    Fiber();
    ~Fiber();
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;

    // The next enter() calls entry(argument) on this stack. What stood on it is forgotten, not unwound.
    void prepare(void (*entry)(void*), void* argument);
    // From the scheduler: runs until the fiber leaves.
    void enter();
    // From the fiber: back to enter(). When entry returns the fiber has left for good.
    void leave();

  private:
    [[noreturn]] static void main();
    void switch_out(bool for_good);

    unsigned char* stack_;  // with an unmapped page below it: an overflow faults
    void* stack_pointer_ = nullptr;
    void (*entry_)(void*) = nullptr;
    void* argument_ = nullptr;
    void* shadow_frames_ = nullptr;  // AddressSanitizer's
};

}  // namespace pykernels::simt
