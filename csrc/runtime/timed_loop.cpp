#include "runtime/timed_loop.h"

namespace pykernels {

void timed_loop(const std::vector<const Program*>& programs, int64_t warmup, int64_t steps, int64_t repeats,
                double* samples_us) {
    // A running index, not i % n: a division would be a tenth of the null op's time.
    size_t next = 0;
    time_steps(
        [&] {
            programs[next]->run();
            if (++next == programs.size()) next = 0;
        },
        warmup, steps, repeats, samples_us);
}

void timed_ops(const std::vector<const Program*>& programs, int64_t warmup, int64_t steps,
               double* samples_us) {
    using Clock = InterruptPoll::Clock;
    const size_t n_ops = programs[0]->size();
    size_t next = 0;
    double* sample_us = nullptr;  // null: warm-up
    const auto step = [&] {
        const Program& program = *programs[next];
        auto begin = Clock::now();
        for (size_t op = 0; op < n_ops; ++op) {
            launch(program.op(op), {});
            const auto end = Clock::now();
            if (sample_us) sample_us[op] = std::chrono::duration<double, std::micro>(end - begin).count();
            begin = end;
        }
        if (++next == programs.size()) next = 0;
    };
    InterruptPoll poll;
    poll.repeat(warmup, step);
    for (int64_t i = 0; i < steps; ++i) {
        sample_us = samples_us + static_cast<size_t>(i) * n_ops;
        poll.repeat(1, step);
        poll.between_samples(Clock::now());
    }
}

}  // namespace pykernels
