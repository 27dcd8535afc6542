#include "runtime/due_clock.h"

#include <time.h>

#include <algorithm>

namespace pykernels {

int64_t monotonic_ns() {
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

int64_t wait_until(int64_t due_ns, int64_t spin_ns, int64_t wake_ns) {
    const int64_t sleep_until_ns = std::min(due_ns - spin_ns, wake_ns);
    int64_t now_ns = monotonic_ns();
    while (now_ns < sleep_until_ns) {
        const timespec until = {static_cast<time_t>(sleep_until_ns / 1'000'000'000),
                                static_cast<long>(sleep_until_ns % 1'000'000'000)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);  // a signal ends it early
        now_ns = monotonic_ns();
    }
    if (due_ns - spin_ns > wake_ns) return now_ns;
    while (now_ns < due_ns) now_ns = monotonic_ns();
    return now_ns;
}

}  // namespace pykernels
