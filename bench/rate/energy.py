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
from bench.core.gpu_state import handle_of

RAPL = Path("/sys/class/powercap")


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
        """What the board draws now, by its own average over the last tens of milliseconds."""
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


def counter_of(device: torch.device) -> tuple[Counter | None, str | None]:
    """The device's counter, or None and why there is none."""
    try:
        return (NvmlCounter(device) if device.type == "cuda" else RaplCounter()), None
    except OSError as error:
        return None, str(error)


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
        return {**vars(self), "ratio": self.counter_joules / self.power_joules}


def check(counter: NvmlCounter, run: Callable[[], object], every_s: float = 0.01) -> PowerCheck:
    """Run `run` (seconds long) while a thread reads the power every `every_s`, and integrate by trapezoids."""
    times, watts, over = [], [], threading.Event()

    def read() -> None:
        while not over.is_set():
            times.append(time.perf_counter())
            watts.append(counter.watts())
            over.wait(every_s)

    reader = threading.Thread(target=read)
    before, begin = counter.joules(), time.perf_counter()
    reader.start()
    try:
        run()
    finally:
        over.set()
        reader.join()
    end = time.perf_counter()
    joules = counter.joules() - before
    times, watts = [begin, *times[1:], end], [watts[0], *watts[1:], watts[-1]]
    return PowerCheck(end - begin, joules, float(np.trapezoid(watts, times)))
