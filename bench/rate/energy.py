"""Energy counters: NVML's of a GPU, RAPL's of a CPU, or none with its reason.

A counter is read before and after a whole block. It counts the whole device, so other programs on it are in the figure,
and on a GPU the memory too; a CPU's counts its packages alone.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pynvml
import torch

from bench.core.document import Document
from bench.core.gpu_state import ask, handle_of

RAPL = Path("/sys/class/powercap")


LEAST_RESOLUTION_S = 0.002
"""A counter that moves this often is read as it stands."""
RAMP_S = 1.5
"""Of a check, that nothing is taken from."""


class Counter(Protocol):
    """Joules that a device has taken since some time."""

    name: str

    def joules(self) -> float:
        """The counter, which only grows."""


class NvmlCounter:
    """nvmlDeviceGetTotalEnergyConsumption: millijoules since the driver was loaded (Volta and later)."""

    name = "NVML total energy"

    def __init__(self, device: torch.device) -> None:
        """Raises OSError with NVML's words where the GPU has no such counter."""
        try:
            self._handle = handle_of(device)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except pynvml.NVMLError as error:
            raise OSError(f"NVML has no energy counter here: {error}") from None

    def joules(self) -> float:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000

    def watts(self) -> float:
        """What the board draws now; where NVML has no such reading, its average over up to a second."""
        found = ask(pynvml.nvmlDeviceGetFieldValues, self._handle, [pynvml.NVML_FI_DEV_POWER_INSTANT])
        if found is not None and found[0].nvmlReturn == pynvml.NVML_SUCCESS:
            return found[0].value.uiVal / 1000
        return pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1000


class RaplCounter:
    """Intel's and AMD's running average power limit: microjoules of each package, which wrap around."""

    name = "RAPL packages"

    def __init__(self, folder: Path = RAPL) -> None:
        """Raises OSError where there is no package that can be read."""
        packages = [path for path in sorted(folder.glob("intel-rapl:*")) if path.name.count(":") == 1]
        if not packages:
            raise FileNotFoundError(f"no RAPL package under {folder}")
        self._files = [path / "energy_uj" for path in packages]
        self._ranges = [int((path / "max_energy_range_uj").read_text()) for path in packages]
        self._last = [int(file.read_text()) for file in self._files]
        self._total_uj = 0

    def joules(self) -> float:
        for index, file in enumerate(self._files):
            now = int(file.read_text())
            self._total_uj += (now - self._last[index]) % (self._ranges[index] + 1)
            self._last[index] = now
        return self._total_uj / 1e6


@dataclass(frozen=True)
class Meter:
    """A device's counter and how often it moves (None: it did not tell), or why there is none."""

    counter: Counter | None = None
    reason: str | None = None
    resolution_s: float | None = None

    def joules(self) -> float:
        """The counter now; 0 where there is none."""
        return self.counter.joules() if self.counter else 0.0

    def at_a_new_value(self, now: Callable[[], float] = time.perf_counter) -> tuple[float, float]:
        """Wait until the counter moves, so that what it says is of now: the counter, and the seconds that were waited;
        at once where it moves every millisecond or oftener."""
        begin, before = now(), self.joules()
        if self.resolution_s is None or self.resolution_s < LEAST_RESOLUTION_S:
            return before, 0.0
        while now() - begin < 3 * self.resolution_s:
            if (value := self.joules()) != before:
                return value, now() - begin
        return self.joules(), now() - begin


def meter_of(device: torch.device) -> Meter:
    """The device's counter, tried for a second; without one, why there is none."""
    try:
        counter: Counter = NvmlCounter(device) if device.type == "cuda" else RaplCounter()
        before = counter.joules()
        every_s = resolution_s(counter)
        if counter.joules() == before:
            return Meter(reason=f"{counter.name} did not move within a second")
    except (OSError, pynvml.NVMLError) as error:
        return Meter(reason=str(error))
    return Meter(counter, None, every_s)


def of_block(joules: float, seconds: float, steps: int, tokens: int, idle_w: float | None) -> Document:
    """Watts, and joules a step and a token; `net` less what the device would have taken idle in that time."""
    net = joules - idle_w * seconds if idle_w is not None else None
    return {
        "watts": joules / seconds,
        "joules_per_step": joules / steps,
        "joules_per_token": joules / tokens,
        "net_joules_per_step": net / steps if net is not None else None,
    }


def resolution_s(counter: Counter, seconds: float = 1.0, now: Callable[[], float] = time.perf_counter) -> float | None:
    """How often the counter moves: the median time between two of its values; None where it moved less than twice."""
    moved, last, end = [], counter.joules(), now() + seconds
    while now() < end:
        value = counter.joules()
        if value != last:
            moved.append(now())
            last = value
    return float(np.median(np.diff(moved))) if len(moved) > 2 else None


@dataclass
class PowerCheck:
    """The counter against power x time, while something known runs: their ratio should be 1."""

    seconds: float
    counter_joules: float
    power_joules: float

    def document(self) -> Document:
        """The key of the document."""
        ratio = self.counter_joules / self.power_joules if self.power_joules else None
        return {**vars(self), "ratio": ratio}


def against_power(times_s: np.ndarray, joules: np.ndarray, watts: np.ndarray) -> PowerCheck:
    """Readings of the counter and of the power at the same times, from the counter's first move to its last: between
    two moves it is right to the joule, and anywhere else it is as old as its resolution. Power is integrated by
    trapezoids. Where it moved less than twice, all readings count."""
    moved = np.flatnonzero(np.diff(joules)) + 1
    first, last = (moved[0], moved[-1]) if len(moved) > 1 else (0, len(joules) - 1)
    within = slice(first, last + 1)
    return PowerCheck(
        float(times_s[last] - times_s[first]), float(joules[last] - joules[first]),
        float(np.trapezoid(watts[within], times_s[within])),
    )  # fmt: skip


def check(
    counter: NvmlCounter, run: Callable[[], object], ramp_s: float = RAMP_S, every_s: float = 0.005,
    now: Callable[[], float] = time.perf_counter,
) -> PowerCheck:  # fmt: skip
    """Run `run`, seconds longer than `ramp_s`, while a thread reads counter and power. Nothing before `ramp_s` counts:
    where the power is an average of the last second, it has yet to rise."""
    readings, over = [], threading.Event()

    def read() -> None:
        while not over.is_set():
            readings.append((now(), counter.joules(), counter.watts()))
            over.wait(every_s)

    reader, begin = threading.Thread(target=read), now()
    reader.start()
    try:
        run()
    finally:
        over.set()
        reader.join()
    times_s, joules, watts = np.array([r for r in readings if r[0] - begin >= ramp_s] or readings).T
    return against_power(times_s, joules, watts)
