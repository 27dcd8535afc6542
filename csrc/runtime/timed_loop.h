// The timed loops: steady clock, no Python, nothing allocated between the first and the last reading.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "runtime/program.h"

namespace pykernels {

// Runs `step(i)` for i = 0, 1, ...: first warmup * repeats times untimed, then one sample per `repeats` runs.
// samples_us[s] is the mean of its runs in microseconds. One clock reading ends a sample and begins the next.
template <class Step>
void time_steps(Step&& step, int64_t warmup, int64_t steps, int64_t repeats, double* samples_us) {
    using Clock = std::chrono::steady_clock;
    int64_t index = 0;
    for (int64_t i = 0; i < warmup * repeats; ++i) step(index++);
    auto begin = Clock::now();
    for (int64_t sample = 0; sample < steps; ++sample) {
        for (int64_t i = 0; i < repeats; ++i) step(index++);
        const auto end = Clock::now();
        samples_us[sample] =
            std::chrono::duration<double, std::micro>(end - begin).count() / static_cast<double>(repeats);
        begin = end;
    }
}

// Mode `native`: step i runs programs[i % n], so that copies of the weights can rotate past the cache.
void timed_loop(const std::vector<const Program*>& programs, int64_t warmup, int64_t steps, int64_t repeats,
                double* samples_us);

// The same steps with a clock reading between ops: samples_us is [steps, programs[0]->size()]. All programs
// must have the same number of ops.
void timed_ops(const std::vector<const Program*>& programs, int64_t warmup, int64_t steps,
               double* samples_us);

}  // namespace pykernels
