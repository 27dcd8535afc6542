// The controls of the measurement: an empty kernel, and one that spins for a known time. Also hold(), which
// keeps a stream busy.

#include "cuda/common/launch.h"
#include "cuda/common/numeric.cuh"

namespace pykernels::cuda {
namespace {

__global__ void null_kernel(const __grid_constant__ NullParams) {}

__global__ void spin_kernel(const __grid_constant__ SpinParams params) {
    const uint64_t begin = device_clock_ns();
    const auto duration_ns = static_cast<uint64_t>(params.duration_us * 1000.0);
    while (device_clock_ns() - begin < duration_ns) {
    }
}

__global__ void hold_kernel(const volatile int* released) {
    const uint64_t begin = device_clock_ns();
    while (*released == 0 && device_clock_ns() - begin < 10'000'000'000) {
    }
}

}  // namespace

void null(const NullParams& params, const Stream& stream) {
    launch(null_kernel, 1, 32, 0, stream, params);
}

void spin(const SpinParams& params, const Stream& stream) {
    launch(spin_kernel, 1, 1, 0, stream, params);
}

void hold(const int* released, const Stream& stream) {
    launch(hold_kernel, 1, 1, 0, stream, static_cast<const volatile int*>(released));
}

}  // namespace pykernels::cuda
