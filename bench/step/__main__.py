"""A whole decode step: embedding, every layer, final norm, lm_head and argmax, by the study's protocol.

python -m bench.step --backend=native,transformers --model=tiny --ctx=2048 --json=step.json

Each step decodes the next token: kv_len grows by one a step, in graphs too, as in the study (5 warm-up steps, 30
measured ones, the median). The cache before ctx holds random K and V.
"""

import sys
from pathlib import Path

import torch
from rich.console import Console

from bench.backends.steps import arms as step_arms
from bench.core import cli, environment, measure, results, tables
from bench.core import quant_words as words
from bench.core.ceiling import Ceiling
from bench.core.document import Document, program_name
from bench.core.flags import make_command
from bench.core.listing import item
from bench.core.measure import Arm
from bench.core.outputs import Outputs
from bench.core.run import Machine, Measurement, close, gate
from bench.drivers import takes
from bench.step.entries import (
    anatomy,
    arm_document,
    block_timelines,
    count_launches_per_layer,
    device_keys,
    lines,
    make_ladders,
    step_bytes,
    title,
    traced_anatomy,
)
from bench.step.settings import Settings
from bench.study import drift

_PROGRAM = "bench.step"


def peak_bytes(device: torch.device) -> int:
    """The most memory this process has held: of the device's allocator, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage's ru_maxrss: that outlives exec, and so tells of the process this one was forked from.
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def out_of_memory_arms(settings: Settings, error: BaseException) -> list[Arm]:
    """Every wanted arm, none of which had room."""
    arms = []
    for name, modes, fusions in settings.groups:
        backend = settings.known[name]
        for fusion in backend.fusions(fusions):
            for mode in modes:
                if reason := backend.reason(mode, settings.target):
                    arms.append(measure.unsupported(name, mode, reason, fusion))
                else:
                    arms.append(Arm(name, mode, fusion))
                    arms[-1].fail(error)
    return arms


def check(arms: list[Arm], device: torch.device) -> None:
    """The gate. What the reference took is given back, and does not count for the peak."""
    gate(arms)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def document_of(settings: Settings, found: Measurement, looked: Document, machine: Document) -> Document:
    """The result document; `looked` holds what was measured after the rounds."""
    spec, dtype, device = settings.spec, settings.torch_dtype, settings.target
    needed, cache = settings.bytes_needed(), environment.last_level_cache_bytes(device)
    l2 = "cold" if needed["weight_bytes"] >= 2 * cache else "warm"
    device_name = machine["gpu"]["name"] if device.type == "cuda" else machine["cpu"]["model"]
    entries = [arm_document(arm, settings, found.bandwidths, device_name, found.arms) for arm in found.arms]
    for entry in entries:
        name = program_name(entry["backend"], entry["fusion"])
        entry["launches_per_layer"] = looked["launches_per_layer"].get(name)
    if device.type == "cuda":
        found.add_device_keys(entries, device_keys)
    head = cli.head(_PROGRAM, "step", title=title(settings), interrupted=found.interrupted, environment=machine)
    return head | {
        "model": results.model_document(spec),
        "full_layers": settings.full_spec.n_layers,
        "shared_weights": settings.shared_weights,
        "weights": "checkpoint" if settings.weights else "random",
        "quant": words.quant_document(settings.int4_format),
        "cache": "random K and V of unit scale before ctx; nothing was prefilled",
        "ctx": settings.ctx, "batch": settings.batch, "dtype": settings.dtype, "device": device.type,
        "l2": l2,
        "l2_words": f"{l2} by size: {needed['weight_bytes'] / 1e9:.3g} GB of weights, "
                    f"last-level cache {cache / 1e6:.0f} MB",
        "warmup": settings.warmup, "steps": settings.steps, **found.throttling,
        "kv_len": {"first": settings.kv_lens(1)[0], "last": settings.kv_lens(settings.steps)[-1]},
        "memory": {**needed, "peak_bytes": peak_bytes(device)},
        "ceiling": found.bandwidths,
        "bytes": {
            "step_streamed": {fusion: step_bytes(settings, fusion) for fusion in settings.fusions},
            "paper": results.paper_bytes(
                spec, settings.ctx, settings.batch, dtype, settings.layer_bytes(settings.four_bit)
            ),
        },
        "ops": looked["ops"],
        "timelines": looked["timelines"],
        "arms": entries,
        **make_ladders(found, settings),
    }  # fmt: skip


def run(settings: Settings) -> Document:
    """Measure. Ctrl-C after the first round ends it early: the document says so and keeps what was finished."""
    machine = Machine(settings.target)
    ceiling, model = None, None
    try:
        model = settings.make_model()
        reference = step_arms.Reference(model, settings.ctx)
        arms = [
            arm
            for name, modes, fusions in settings.groups
            for arm in step_arms.arms_of(settings.known[name], reference, modes, fusions, settings.traced_from)
        ]
        check(arms, settings.target)
        ceiling = Ceiling(settings.target)
    except (MemoryError, torch.OutOfMemoryError) as error:
        arms = out_of_memory_arms(settings, error)
    found = Measurement(arms, ceiling, settings.spec_bandwidth, machine.monitor)
    looked: Document = {"ops": [], "timelines": {}, "launches_per_layer": {}}

    def look_closer() -> None:
        assert model is not None  # what was measured had one
        if settings.target.type == "cuda":
            found.trace(repeats=1)
            looked["ops"] = traced_anatomy(arms, found.traces, settings, found.bandwidths)
            looked["timelines"] = block_timelines(arms, found.traces, settings)
        elif "native" in settings.backends:
            looked["ops"] = anatomy(model, settings, found.bandwidths)
        ran = dict.fromkeys(arm.backend for arm in arms if arm.status == "ok")
        looked["launches_per_layer"] = count_launches_per_layer(model, settings, ran)

    found.take(settings.warmup, settings.steps, look_closer, settings.stop_rule())
    return document_of(settings, found, looked, machine.document())


def show(document: Document, console: Console) -> None:
    """The tables, a line an arm, and the arms that drifted."""
    tables.print_document(document, console)
    if measured := lines(document):
        print("\nR_floor: the time of the step's bytes at the specified bandwidth, over the step's time")
        for line in measured:
            arm, _, words = line.partition(": ")
            print(item(f"{arm}:", words, 4))
    if any(arm["drift"] and arm["drift"]["drifting"] for arm in document["arms"]):
        for line in drift.lines(document):
            print(item("", line, 0))


def main(settings: Settings) -> int:
    """A whole decode step in every backend and mode, by the study's protocol."""
    if settings.list_:
        step_arms.print_list()
        return 0
    outputs = Outputs(settings.json, settings.csv, settings.md, settings.plot)
    settings.check()
    cli.set_threads(settings.threads)
    return close(run(settings), outputs, show)


command = make_command(main, Settings, takes("step"))


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
