// The timed loops: steady clock, no Python, nothing allocated between the first and the last reading.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "runtime/interrupt.h"
#include "runtime/program.h"

namespace pykernels {

// The host's work of enqueuing is timed while a blocking kernel holds the stream. The launch queue holds
// about 1,024 entries; a full one makes the host wait, here for the end of the hold.
constexpr size_t max_held_launches = 512;

// How many steps of so many launches are enqueued behind one blocking kernel: as many as keep the queue far
// from full. 0: none, a step has more than max_held_launches. It is timed on an idle device, which works off
// the queue meanwhile.
constexpr int64_t steps_per_hold(size_t launches) {
    if (launches > max_held_launches) return 0;
    const size_t steps = max_held_launches / 2 / (launches + 1);
    return steps > 1 ? static_cast<int64_t>(steps) : 1;
}

// Runs `step()` first warmup * repeats times untimed, then `repeats` times a sample. samples_us[s] is the
// mean of its runs in microseconds. One clock reading ends a sample and begins the next, unless an interrupt
// is asked for in between. Throws Interrupted (interrupt.h).
template <class Step>
void time_steps(Step&& step, int64_t warmup, int64_t steps, int64_t repeats, double* samples_us) {
    using Clock = InterruptPoll::Clock;
    InterruptPoll poll;
    for (int64_t i = 0; i < warmup; ++i) poll.repeat(repeats, step);
    auto begin = Clock::now();
    for (int64_t sample = 0; sample < steps; ++sample) {
        poll.repeat(repeats, step);
        const auto end = Clock::now();
        samples_us[sample] =
            std::chrono::duration<double, std::micro>(end - begin).count() / static_cast<double>(repeats);
        begin = poll.between_samples(end);
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
