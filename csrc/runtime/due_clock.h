// A clock that waits for a due time: it sleeps while the time is far and spins while it is near, because a
// sleep ends tens of microseconds late and a spin keeps a core busy.
#pragma once

#include <cstdint>

namespace pykernels {

// CLOCK_MONOTONIC, nanoseconds: Python's time.monotonic_ns() and time.perf_counter_ns().
int64_t monotonic_ns();

// Sleeps until spin_ns before due_ns, then spins until due_ns. Sleeps no longer than until wake_ns: whoever
// has to look for signals meanwhile calls it again. Returns the clock's reading: of due_ns or later, or of
// wake_ns or later where the due time is not reached.
int64_t wait_until(int64_t due_ns, int64_t spin_ns, int64_t wake_ns);

}  // namespace pykernels
