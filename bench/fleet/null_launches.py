"""Do launches on several GPUs disturb one another? The host's time of a null launch, on each GPU alone, on all at once
from the threads of one process, and on all at once from a process each.

    python -m bench.fleet.null_launches --json=null.json cuda:0 cuda:1
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pykernels as pk
from bench.core import cli, document, environment
from bench.core.document import Document
from bench.core.measure import Rotation, no_garbage_collection
from bench.core.processes import module_command
from bench.core.samplers import Samplers
from bench.core.statistics import summary

MODES = ("eager", "native")
SECONDS = 1.0
_BATCH = 200


def host_us(device: torch.device, seconds: float, begin: Callable[[], Any]) -> dict[str, Any]:
    """By mode: microseconds that the host takes for a null launch on the device, sampled for that long. `begin` is
    called before each mode, for all to begin together."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # of this thread
    x = torch.zeros(1, device=device)
    with pk.runtime.record() as program:
        pk.ops.null(x)
    samplers = Samplers(Rotation(1), 1, device)
    call = [lambda: pk.ops.null(x)]
    on_cuda = samplers.on_cuda
    modes = {
        "eager": samplers.host_python(call, 1) if on_cuda else samplers.python(call),
        "native": samplers.host_programs([program]) if on_cuda else samplers.programs([program]),
    }
    found = {}
    with torch.inference_mode():
        for mode in MODES:
            modes[mode](_BATCH)
            begin()
            samples, over = [], threading.Event()
            timer = threading.Timer(seconds, over.set)
            timer.start()
            while not over.is_set():
                samples.append(modes[mode](_BATCH))
            found[mode] = summary(np.concatenate(samples))
    return found


def in_threads(devices: Sequence[torch.device], seconds: float) -> list[dict[str, Any]]:
    """host_us() of all devices at once, in threads of this process."""
    barrier = threading.Barrier(len(devices))
    with no_garbage_collection(), ThreadPoolExecutor(len(devices)) as pool:
        return list(pool.map(lambda device: host_us(device, seconds, barrier.wait), devices))


def in_processes(devices: Sequence[torch.device], seconds: float) -> list[dict[str, Any]]:
    """host_us() of all devices at once, in a process each. They begin each mode when all have said that they can."""
    processes = [
        subprocess.Popen(
            module_command("bench.fleet.null_launches", ["--child", str(device), str(seconds)]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for device in devices
    ]  # fmt: skip
    try:
        for _ in MODES:
            for process in processes:
                assert process.stdout and process.stdout.readline() == "ready\n", "a process ended early"
            for process in processes:
                assert process.stdin
                process.stdin.write("\n")
                process.stdin.flush()
        return [json.loads(process.communicate()[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _child(device: torch.device, seconds: float) -> None:
    def begin() -> None:
        print("ready", flush=True)
        sys.stdin.readline()

    with no_garbage_collection():
        print(json.dumps(host_us(device, seconds, begin)))


def measure(devices: Sequence[torch.device], seconds: float = SECONDS) -> Document:
    """The document of kind `null-launches`: by way (alone, threads, processes) an entry a device and mode."""
    ways = {
        "alone": [found for device in devices for found in in_threads([device], seconds)],
        "threads": in_threads(devices, seconds),
        "processes": in_processes(devices, seconds),
    }
    return cli.head(
        "bench.fleet.null_launches", "null-launches", title="null launches on several GPUs", interrupted=False,
        environment=environment.collect(devices[0]),
    ) | {
        "device": devices[0].type,
        "launches": [
            {"way": way, "device": str(device), "mode": mode, "host_us": found[mode]}
            for way, every in ways.items()
            for device, found in zip(devices, every, strict=True)
            for mode in MODES
        ],
    }  # fmt: skip


def lines(found: Document) -> list[str]:
    """A line a device and mode: alone, and at once by threads and by processes."""
    times: dict[tuple[str, str], dict[str, float]] = {}
    for entry in found["launches"]:
        times.setdefault((entry["device"], entry["mode"]), {})[entry["way"]] = entry["host_us"]["p50"]
    return [
        f"{device} {mode}: alone {ways['alone']:.3f} us, at once from threads {ways['threads']:.3f} us "
        f"(x{ways['threads'] / ways['alone']:.3f}), from processes {ways['processes']:.3f} us "
        f"(x{ways['processes'] / ways['alone']:.3f})"
        for (device, mode), ways in times.items()
    ]


def main(arguments: Sequence[str]) -> None:
    """The devices named, or as a child one of them."""
    if arguments[0] == "--child":
        _child(cli.device(arguments[1]), float(arguments[2]))
        return
    outputs = [argument.removeprefix("--json=") for argument in arguments if argument.startswith("--json=")]
    devices = [cli.device(text, use=False) for text in arguments if not text.startswith("--")]
    found = measure(devices)
    print("\n".join(lines(found)))
    for output in outputs:
        document.write_json(Path(output), found)


if __name__ == "__main__":
    main(sys.argv[1:])
