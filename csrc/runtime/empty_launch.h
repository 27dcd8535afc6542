// One launch of an empty kernel, by each way that C++ has: what bench.launch compares.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace pykernels {

class EmptyLaunch {
  public:
    // call: cudaLaunchKernel, cudaLaunchKernelEx (runtime) or cuLaunchKernelEx (driver). arguments: 0, 1, 8
    // or 32 pointers. programmatic: with programmatic stream serialization (PDL). cluster_blocks: blocks of
    // the one cluster that is launched, 1 for no cluster; one block otherwise. The two need an Ex call.
    // Throws std::invalid_argument for what a call does not take.
    EmptyLaunch(const std::string& call, int arguments, bool programmatic, int cluster_blocks, int device);
    ~EmptyLaunch();
    EmptyLaunch(const EmptyLaunch&) = delete;
    EmptyLaunch& operator=(const EmptyLaunch&) = delete;

    // Enqueues one on `stream` of the device, which must be the current one.
    void run(void* stream) const;

    // The kernel as a CUfunction, for launchers that take one.
    uintptr_t function() const;
    int cuda_device() const { return device_; }

  private:
    struct Plan;
    int device_;
    std::unique_ptr<Plan> plan_;
};

}  // namespace pykernels
