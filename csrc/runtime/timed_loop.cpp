#include "runtime/timed_loop.h"

namespace pykernels {

void timed_loop(const std::vector<const Program*>& programs, int64_t warmup, int64_t steps, int64_t repeats,
                double* samples_us) {
    // A running index, not i % n: a division would be a tenth of the null op's time.
    size_t next = 0;
    time_steps(
        [&](int64_t) {
            programs[next]->run();
            if (++next == programs.size()) next = 0;
        },
        warmup, steps, repeats, samples_us);
}

void timed_ops(const std::vector<const Program*>& programs, int64_t warmup, int64_t steps,
               double* samples_us) {
    using Clock = std::chrono::steady_clock;
    const size_t n_ops = programs[0]->size();
    for (int64_t i = 0; i < warmup + steps; ++i) {
        const Program& program = *programs[static_cast<size_t>(i) % programs.size()];
        auto begin = Clock::now();
        for (size_t op = 0; op < n_ops; ++op) {
            launch(program.op(op), {});
            const auto end = Clock::now();
            if (i >= warmup) {
                samples_us[static_cast<size_t>(i - warmup) * n_ops + op] =
                    std::chrono::duration<double, std::micro>(end - begin).count();
            }
            begin = end;
        }
    }
}

}  // namespace pykernels
