// The controls of the measurement: nothing, and a known time.
#include <chrono>

#include "ops.h"

namespace pykernels::cpu {

void null(const NullParams&) {}

void spin(const SpinParams& params) {
    using Clock = std::chrono::steady_clock;
    const auto end = Clock::now() + std::chrono::duration<double, std::micro>(params.duration_us);
    while (Clock::now() < end) {
    }
}

}  // namespace pykernels::cpu
