"""One arm of bench.rate: an arm of a whole step, whose tokens the host waits for."""

import torch

import pykernels as pk
from bench.backends.steps.drivers import Driver
from pykernels.ranges import ranged


class DueClock:
    """blocks.Clock, of the machine."""

    SPIN_US = 500.0
    """Before a due time: a core in deep sleep, or a virtual machine's, wakes hundreds of microseconds late."""

    now_ns = staticmethod(pk.runtime.monotonic_ns)

    def wait_until(self, due_ns: int) -> int:
        return pk.runtime.wait_until(due_ns, self.SPIN_US)


class TokenStepper:
    """blocks.Stepper: `burst` steps of a driver, one after another, each token copied to the host. Positions go from
    `first` on through a window of `positions`, and begin anew between steps."""

    def __init__(self, name: str, driver: Driver, first: int, positions: int, burst: int) -> None:
        setattr(self, "step", ranged(self.step, name))  # noqa: B010 - an NVTX range a step, where a tool listens
        self._driver, self._first, self._positions, self._burst = driver, first, positions, burst
        token = driver.model.token
        self._on_cuda = token.is_cuda
        self._token = token
        self.tokens = torch.empty(burst, *token.shape, dtype=token.dtype, pin_memory=self._on_cuda)
        """Of the last due time: int64 [burst, batch], on the host."""
        self._left = 0

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._on_cuda:
            torch.cuda.current_stream(self._token.device).synchronize()

    def prepare(self) -> None:
        if self._left < self._burst:
            self._driver.stand(self._first)
            self._left = self._positions
            self.synchronize()

    def step(self) -> None:
        for index in range(self._burst):
            self._driver.step()
            self.tokens[index].copy_(self._token, non_blocking=True)
        self._left -= self._burst
        self.synchronize()
