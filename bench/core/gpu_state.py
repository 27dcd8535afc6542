"""The GPU's clocks, temperature and errors while it is measured, and which rounds a slowed clock has spoilt."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pynvml
import torch

from bench.core.errors import first_line
from bench.core.measure import Arm, alternate, settle

# Reasons that slow nothing down here. The power cap names itself long before it costs anything: what it takes shows
# in the clock.
HARMLESS_REASONS = frozenset({"None", "GpuIdle", "ApplicationsClocksSetting", "UserDefinedClocks", "SwPowerCap"})

CLOCK_TOLERANCE = 0.03
# Below so many untouched rounds a median of them says less than one of all.
LEAST_ROUNDS = 10

State = dict[str, Any]


def reason_names(bits: int | None) -> list[str] | None:
    """NVML's reasons for a clock below its maximum, in words."""
    if bits is None:
        return None
    prefix = "nvmlClocksEventReason"
    names = {getattr(pynvml, name): name.removeprefix(prefix) for name in dir(pynvml) if name.startswith(prefix)}
    return [name for bit, name in names.items() if isinstance(bit, int) and bit and bits & bit == bit and name != "All"]


def throttled(states: Sequence[State | None]) -> list[bool]:
    """For every round's state (sm_mhz, clock_event_reasons; None where there is none): was the device slowed down?

    It was where a reason other than the harmless ones is given, or where the SM clock is more than 3% below the
    median of the run.
    """
    clocks = [state["sm_mhz"] for state in states if state and state["sm_mhz"]]
    least = (1 - CLOCK_TOLERANCE) * float(np.median(clocks)) if clocks else 0.0

    def slowed(state: State | None) -> bool:
        if state is None:
            return False
        clock = state["sm_mhz"]
        return bool(set(state["clock_event_reasons"] or ()) - HARMLESS_REASONS) or bool(clock and clock < least)

    return [slowed(state) for state in states]


def rounds_to_drop(states: Sequence[State | None], rounds: int) -> tuple[list[int], bool]:
    """The throttled rounds of a run of `rounds`, and whether enough others are left to do without them."""
    slowed = [index for index, slow in enumerate(throttled(states[:rounds])) if slow]
    return slowed, bool(slowed) and rounds - len(slowed) >= LEAST_ROUNDS


def ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """One question to NVML; None where it does not know."""
    try:
        return function(*arguments)
    except pynvml.NVMLError:
        return None


def lost_device() -> str | None:
    """CUDA's words where its context is beyond use, as after an illegal access; None where it is not."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return first_line(error)
    return None


def handle_of(device: torch.device) -> Any:
    """NVML's handle of a torch device, by what no CUDA_VISIBLE_DEVICES changes: its UUID or, of a part of a GPU whose
    UUID NVML has otherwise, the PCI bus id. Raises pynvml.NVMLError where there is none."""
    found: Any = torch.cuda.get_device_properties(device)  # torch's types lack the bus
    uuid = str(found.uuid)
    pynvml.nvmlInit()
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except pynvml.NVMLError:
        bus = f"{found.pci_domain_id:08X}:{found.pci_bus_id:02X}:{found.pci_device_id:02X}.0"
        return pynvml.nvmlDeviceGetHandleByPciBusId(bus)


class Monitor:
    """NVML's view of one torch device, until the process ends. Asking takes host time: between rounds only."""

    def __init__(self, device: torch.device) -> None:
        self.rounds: list[State | None] = []
        self._handle = None
        with suppress(pynvml.NVMLError):  # every value is None then
            self._handle = handle_of(device)

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return None if self._handle is None else ask(function, self._handle, *arguments)

    def clocks(self) -> State:
        """SM clock and the reasons for it."""
        return {
            "sm_mhz": self._ask(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
            "clock_event_reasons": reason_names(self._ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons)),
        }

    def poll(self) -> None:
        """Note the clocks of the round that has just ended."""
        self.rounds.append(self.clocks())

    def state(self) -> State:
        """Everything: for before and after a run."""
        power_mw = self._ask(pynvml.nvmlDeviceGetPowerUsage)
        ecc = self._ask(pynvml.nvmlDeviceGetEccMode)
        errors = {
            f"ecc_{name}_errors": self._ask(pynvml.nvmlDeviceGetTotalEccErrors, kind, pynvml.NVML_VOLATILE_ECC)
            for name, kind in (
                ("corrected", pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
                ("uncorrected", pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            )
        }
        return {
            **self.clocks(),
            "memory_mhz": self._ask(pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM),
            "pstate": self._ask(pynvml.nvmlDeviceGetPerformanceState),
            "temperature_c": self._ask(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
            "power_w": power_mw / 1000 if power_mw else None,
            "ecc": bool(ecc[0]) if ecc else None,
            **errors,
        }


def alternate_watched(
    arms: Sequence[Arm],
    warmup: int,
    rounds: int,
    advance: Callable[[], None],
    monitor: Monitor | None,
    ended: Callable[[int], bool] = lambda rounds: False,
) -> tuple[bool, State]:
    """measure.alternate, with the clocks noted after every round where there is a monitor.

    Throttled rounds are dropped from every arm's summary where at least LEAST_ROUNDS others are left. Returns what
    alternate returns, and the document's keys about it (none without a monitor).
    """
    if monitor is None:
        return alternate(arms, warmup, rounds, advance, before_turn=settle, ended=ended), {}
    monitor.rounds.clear()
    finished = alternate(arms, warmup, rounds, advance, monitor.poll, ended=ended)
    done = max((len(arm.samples_us) for arm in arms), default=0)
    slowed, left_out = rounds_to_drop(monitor.rounds, done)
    for arm in arms:
        arm.dropped_rounds = frozenset(slowed) if left_out else frozenset()
    return finished, {"throttled_rounds": slowed, "throttled_left_out": left_out}
