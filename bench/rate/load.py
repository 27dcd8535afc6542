"""Disturbance while steps are measured: busy host threads, or a stream of copies to the GPU, in processes of their own.

    python -m bench.rate.load cpu 4 120          # four busy processes, for 120 seconds at most

They end with the run: its end kills them, the kernel kills them with a run that is killed, and their time is bounded.
"""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bench.core.errors import flag_error

MAX_THREADS = 256
_COPY_BYTES = 64 << 20


def parse(flag: str, text: str, on_cuda: bool) -> list[str]:
    """--load: none, cpu:N, copy, comma-separated. Raises UsageError for anything else."""
    loads = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for load in loads:
        kind, colon, count = load.partition(":")
        if kind == "cpu" and count.isdecimal() and 1 <= int(count) <= MAX_THREADS:
            continue
        if load == "copy" and not on_cuda:
            raise flag_error(flag, load, "none or cpu:N on a CPU: there is no device to copy to")
        if load not in ("none", "copy") or colon:
            raise flag_error(flag, load, f"of none, cpu:N with N in 1..{MAX_THREADS}, and copy")
    return loads


@contextmanager
def running(load: str, device_index: int, limit_s: float) -> Iterator[None]:
    """The load, from when it is at work until the context ends. Raises RuntimeError where it does not start."""
    if load == "none":
        yield
        return
    kind, _, count = load.partition(":")
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.rate.load", kind, count or str(device_index), f"{limit_s:.0f}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True,
    )  # fmt: skip
    assert process.stdout and process.stderr  # pipes
    try:
        if process.stdout.readline().strip() != "ready":
            words = process.stderr.read().strip().splitlines()
            raise RuntimeError(f"the load {load} did not start: {words[-1] if words else 'it said nothing'}")
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _spin(until: float) -> None:
    _end_with_parent()
    while time.monotonic() < until:
        for _ in range(10_000):
            pass


def _copy(device_index: int, until: float) -> None:
    import torch

    device = torch.device("cuda", device_index)
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize(device)
    print("ready", flush=True)
    while time.monotonic() < until:
        for _ in range(8):
            target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)


def main(kind: str, number: int, seconds: float) -> None:
    """What the process does: `number` busy processes, or copies to GPU `number`."""
    _end_with_parent()
    until = time.monotonic() + seconds
    if kind == "copy":
        _copy(number, until)
        return
    context = multiprocessing.get_context("fork")
    spinning = [context.Process(target=_spin, args=(until,), daemon=True) for _ in range(number)]
    for process in spinning:
        process.start()
    print("ready", flush=True)
    for process in spinning:
        process.join()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
