"""The controls of a cell: null op, spin and read ceiling before and after it, in a process of their own beside it.

One process measures the controls of all cells of a device, so that they can be compared: it waits for a line on stdin
and answers with a line of JSON. While a cell is measured it waits, and of the device's memory it has only its context.
It ends when its stdin does, and so with whoever started it, however that ends.

    echo | python -m bench.fleet.controls cuda:1
"""

import json
import selectors
import subprocess
import sys
from contextlib import suppress

import numpy as np
import torch

from bench.core import cli, controls, gpu_state
from bench.core.ceiling import Ceiling
from bench.core.document import Document
from bench.core.measure import no_garbage_collection
from bench.core.processes import module_command

SPIN_US = 1000.0
_STEPS = 10
_READS = {"cuda": 20, "cpu": 3}
LIMIT_S = 120.0


def measure(device: torch.device, monitor: gpu_state.Monitor | None) -> Document:
    """One set of controls: microseconds of the null op by mode, of the spin, the read ceiling, GB/s, and the clocks."""
    nulls = {row["mode"]: row for row in controls.null_op(_STEPS, device)}
    (spin,) = controls.spin((SPIN_US,), _STEPS, device, traces=False)
    ceiling = Ceiling(device)
    assert ceiling.read.sampler  # of every ceiling
    with no_garbage_collection(), torch.inference_mode():
        ceiling.read.sampler(2)
        ceiling.read.samples_us = list(ceiling.read.sampler(_READS[device.type]))
    found = {
        "null_us": {mode: row["us"]["p50"] for mode, row in nulls.items()},
        "null_host_us": {mode: row["host_us"]["p50"] for mode, row in nulls.items() if "host_us" in row},
        "spin_asked_us": SPIN_US, "spin_us": spin["us"]["p50"], "read_gbs": float(np.median(ceiling.read_gbs())),
        "clocks": monitor.state() if monitor else None, "reason": None,
    }  # fmt: skip
    del ceiling
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def main(device_text: str) -> None:
    """The process: a line of JSON for every line of stdin."""
    device = cli.device(device_text)
    monitor = gpu_state.Monitor(device) if device.type == "cuda" else None
    for _ in sys.stdin:
        try:
            found = measure(device, monitor)
        except (RuntimeError, MemoryError) as error:
            found = nothing(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        print(json.dumps(found), flush=True)


def nothing(reason: str) -> Document:
    """Controls that could not be measured."""
    return {"null_us": {}, "null_host_us": {}, "spin_asked_us": SPIN_US, "spin_us": None, "read_gbs": None,
            "clocks": None, "reason": reason}  # fmt: skip


class Process:
    """The process, started when it is first asked, and anew where it has ended."""

    def __init__(self, device: torch.device, limit_s: float = LIMIT_S) -> None:
        self._device, self._limit_s = str(device), limit_s
        self._process: subprocess.Popen[str] | None = None

    def measure(self) -> Document:
        """One set of controls, or none with the reason."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                module_command("bench.fleet.controls", [self._device]), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True, start_new_session=True,
            )  # fmt: skip
        assert self._process.stdin and self._process.stdout  # pipes
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(self._process.stdout, selectors.EVENT_READ)
                line = self._process.stdout.readline() if selector.select(self._limit_s) else None
            if line is None:
                self.end()
                return nothing(f"the controls were not done after {self._limit_s:g} s")
            return json.loads(line)
        except (OSError, ValueError):
            status = self.end()
            return nothing(f"the process of the controls ended with status {status}")

    def end(self) -> int | None:
        """End it; its exit status."""
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(ProcessLookupError):
            process.kill() if process.poll() is None else None
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close() if pipe else None
        return process.wait()


if __name__ == "__main__":
    main(sys.argv[1])
