"""A clock that only moves when it is told to, and an arm whose every step takes what a test says."""

from collections.abc import Sequence


class FakeClock:
    """bench.rate.blocks.Clock: a wait ends `late_ns` late, and nothing else takes time."""

    def __init__(self, late_ns: int = 0) -> None:
        self.now, self.late_ns = 1_000_000_000, late_ns

    def now_ns(self) -> int:
        return self.now

    def wait_until(self, due_ns: int) -> int:
        if due_ns > self.now:
            self.now = due_ns + self.late_ns
        return self.now


class FakeStepper:
    """bench.rate.blocks.Stepper: step i takes durations_ns[i], over and over, and getting ready prepare_ns."""

    def __init__(self, clock: FakeClock, durations_ns: Sequence[int], prepare_ns: int = 0) -> None:
        self.clock, self.durations_ns, self.prepare_ns = clock, durations_ns, prepare_ns
        self.steps = 0

    def prepare(self) -> None:
        self.clock.now += self.prepare_ns

    def step(self) -> None:
        self.clock.now += self.durations_ns[self.steps % len(self.durations_ns)]
        self.steps += 1
