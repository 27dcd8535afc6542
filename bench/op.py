"""One op, swept over the shapes of the models and the modes, against torch's own.

python -m bench.op --op=gemv --model=qwen2.5-7b
python -m bench.op --op=gqa_decode --ctx=2048,8192,16384
python -m bench.op --op=null
python -m bench.op --op=gemv --model=tiny --aa=20
"""

import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

import pykernels as pk
from bench.core import cli, controls, environment, floors, measure, statistics, tables
from bench.core.ceiling import Ceiling
from bench.core.document import SCHEMA, Document
from bench.core.measure import Arm, Rotation
from bench.core.op_cases import OPS, Case, Instance, cases
from bench.core.progress import progress
from bench.layer import bandwidth, weight_copies
from pykernels.layer import available_bytes
from pykernels.models import ModelSpec

_CONTROLS = ("null", "spin")
_NATIVE_MODES = ("eager", "pybind", "dispatch", "native")
_TORCH_MODES = ("eager", "dispatch")


def _native_arm(case: Case, instances: list[Instance], mode: str, rotation: Rotation) -> Arm:
    first = instances[0]
    if mode == "eager":
        step, sampler = first.native, measure.python_sampler([i.native for i in instances], rotation)
    elif mode == "dispatch":
        tapes = [_tape(instance.native) for instance in instances]
        step, sampler = tapes[0].run, lambda n: pk.dispatch.timed_loop(rotation.take(tapes, n), 0, n)
    else:
        programs = [_program(instance) for instance in instances]
        if mode == "pybind":
            launches = [program.launchers()[0] for program in programs]
            step, sampler = launches[0], measure.python_sampler(launches, rotation)
        else:
            step, sampler = programs[0].run, lambda n: pk.runtime.timed_loop(rotation.take(programs, n), 0, n)

    def check() -> pk.reference.Comparison:
        first.out.fill_(float("nan"))
        step()
        return case.check(first.out)

    return Arm("native", mode, None, sampler, check, launches=1)


def _tape(call: object) -> pk.dispatch.Tape:
    return pk.dispatch.Tape.record(lambda: call())


def _program(instance: Instance) -> pk.runtime.Program:
    with pk.runtime.record() as program:
        instance.native()
    return program


def _torch_arm(case: Case, instances: list[Instance], mode: str, rotation: Rotation) -> Arm:
    if instances[0].torch is None:
        return measure.unsupported("torch", mode, "torch has no such op")
    calls = [instance.torch for instance in instances]
    if mode == "eager":
        sampler = measure.python_sampler(calls, rotation)
        return Arm("torch", mode, None, sampler, lambda: case.check(calls[0]()), launches=1)
    tapes = [_tape(call) for call in calls]

    def check() -> pk.reference.Comparison:
        tapes[0].run()
        return case.check(tapes[0].outputs()[0])

    sampler = lambda n: pk.dispatch.timed_loop(rotation.take(tapes, n), 0, n)  # noqa: E731
    return Arm("torch", mode, None, sampler, check, launches=len(tapes[0].calls))


def make_arms(case: Case, modes: list[str], l2: str) -> list[Arm]:
    """The arms of a case, on copies of its data enough that a cold step finds none of it in the cache."""
    copies = weight_copies(case.cold_bytes, l2)
    needed, available = copies * case.cold_bytes, available_bytes(torch.device("cpu"))
    if needed > available:
        raise cli.UsageError(
            f"--op={case.op}: {case.label or case.shape} needs {needed / 2**30:.1f} GiB, "
            f"{available / 2**30:.1f} GiB are available"
        )
    with torch.inference_mode():
        instances = [case.make() for _ in range(copies)]
        rotation = Rotation(copies)
        arms = [_native_arm(case, instances, mode, rotation) for mode in modes if mode in _NATIVE_MODES]
        arms += [_torch_arm(case, instances, mode, rotation) for mode in modes if mode in _TORCH_MODES]
    return arms


def measure_case(
    case: Case, modes: list[str], l2: str, warmup: int, steps: int, ceiling: Ceiling, spec_gbs: float | None
) -> list[Document]:
    """Gate and measure one case. Returns its entries of the key `ops`."""
    arms = make_arms(case, modes, l2)
    measure.gate(arms)
    for arm in ceiling.arms:
        arm.samples_us = []
    finished = measure.alternate([*ceiling.arms, *arms], warmup, steps)
    if not finished:
        raise KeyboardInterrupt
    read_gbs, copy_gbs = float(np.median(ceiling.read_gbs())), float(np.median(ceiling.copy_gbs()))
    bandwidths = {"spec_gbs": spec_gbs, "read_gbs": read_gbs, "copy_gbs": copy_gbs}
    reference = next((a for a in arms if (a.backend, a.mode, a.status) == ("torch", "eager", "ok")), None)
    entries = []
    for arm in arms:
        entry = {
            "backend": arm.backend, "mode": arm.mode, "fusion": None, "op": case.op, "label": case.label,
            "shape": case.shape, "bytes": case.bytes, "status": arm.status, "reason": arm.reason,
            "floor_us": floors.microseconds(case.bytes, spec_gbs or read_gbs), "max_rel_error": arm.max_rel_error,
            "time_us": None, "gbs": None, "share_of_spec": None, "share_of_read": None,
            "samples_us": arm.samples_us, "ceiling": bandwidths,
        }  # fmt: skip
        if arm.status == "ok":
            samples = np.array(arm.samples_us)
            entry["time_us"] = statistics.summary(samples)
            entry |= bandwidth(case.bytes, entry["time_us"]["p50"], bandwidths)
            if reference is not None:
                other = np.array(reference.samples_us)
                low, high = statistics.ratio_interval(other, samples)
                entry["ratio_to_torch"] = {
                    "p50": float(np.median(other) / np.median(samples)),
                    "low": low,
                    "high": high,
                }
        entries.append(entry)
    return entries


def aa_check(case: Case, mode: str, l2: str, warmup: int, steps: int, repeats: int) -> tuple[int, list[float]]:
    """The same arm under two names, alternated, `repeats` times over.

    Returns in how many repeats the 95% interval of the difference held zero, and the relative differences.
    """
    held, differences = 0, []
    for _ in range(repeats):
        instances = [case.make() for _ in range(weight_copies(case.cold_bytes, l2))]
        rotation = Rotation(len(instances))
        arms = [replace(_native_arm(case, instances, mode, rotation), backend=name) for name in ("a", "b")]
        measure.gate(arms)
        if not measure.alternate(arms, warmup, steps):
            raise KeyboardInterrupt
        a, b = (np.array(arm.samples_us) for arm in arms)
        low, high = statistics.difference_interval(a, b)
        held += low <= 0 <= high
        differences.append(float(np.median(a) / np.median(b) - 1))
    return held, differences


def _document(
    op: str,
    entries: list[Document],
    interrupted: bool,
    ceiling: Ceiling,
    spec: tuple[float | None, str],
    l2: str,
    **extra: object,
) -> Document:
    spec_gbs, source = spec
    measured = ceiling.document(spec_gbs, source) if ceiling.read.samples_us else {}
    return {
        "schema": SCHEMA, "kind": "op", "title": f"op {op}", "command": cli.command_line("bench.op"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "interrupted": interrupted,
        "environment": environment.collect(), "device": "cpu", "l2": l2,
        "l2_words": f"{l2} weights", "ceiling": {"read_gbs": None, "copy_gbs": None, "spec_gbs": spec_gbs,
                                                 "spec_source": source, **measured},
        "ops": entries, "arms": [], "ladder": {}, "ladder_notes": {}, **extra,
    }  # fmt: skip


def _specs(models: str, config: str) -> list[ModelSpec]:
    if config:
        return [cli.model("", config)]
    return [pk.models.get(name) for name in cli.choices("--model", models, pk.models.names())]


def command(
    op: Annotated[str, typer.Option("--op", help=", ".join((*OPS, *_CONTROLS)))] = "gemv",
    model: Annotated[
        str, typer.Option("--model", help="comma-separated; all")
    ] = "qwen2.5-7b,mistral-7b-v0.3,llama-3.1-8b",
    config: cli.ConfigFlag = "",
    mode: cli.ModeFlag = "native,eager",
    ctx: Annotated[str, typer.Option("--ctx", help="comma-separated; for the ops that have one")] = "2048,8192,16384",
    batch: cli.BatchFlag = 1,
    dtype: cli.DtypeFlag = "bf16",
    l2: cli.L2Flag = "cold",
    warmup: cli.WarmupFlag = 3,
    steps: cli.StepsFlag = 30,
    duration_us: Annotated[str, typer.Option("--duration-us", help="of --op=spin; comma-separated")] = "10,100,1000",
    aa: Annotated[int, typer.Option("--aa", help="A/A control: the same arm twice, this many times over")] = 0,
    threads: cli.ThreadsFlag = 0,
    spec_gbs: cli.SpecFlag = 0.0,
    seed: cli.SeedFlag = 0,
    json: cli.JsonFlag = "",
    csv: cli.CsvFlag = "",
    md: cli.MdFlag = "",
) -> int:
    """One op over shapes and modes, native against torch."""
    outputs = cli.Outputs(json, csv, md)
    cli.choice("--op", op, (*OPS, *_CONTROLS))
    modes = cli.choices("--mode", mode, _NATIVE_MODES)
    models = _specs(model, config)
    contexts = cli.numbers("--ctx", ctx, 1, min(spec.max_position for spec in models), int)
    cli.number("--batch", batch, 1, 8)
    torch_dtype = cli.DTYPES[cli.choice("--dtype", dtype, list(cli.DTYPES))]
    cli.choice("--l2", l2, ("cold", "warm"))
    cli.number("--warmup", warmup, 0, 10_000)
    cli.number("--steps", steps, 2, 100_000)
    cli.number("--aa", aa, 0, 1000)
    durations = cli.numbers("--duration-us", duration_us, 0.1, 1e6, float)
    spec = cli.spec_bandwidth(spec_gbs, torch.device("cpu"))
    cli.set_threads(threads)

    ceiling = Ceiling()
    entries: list[Document] = []
    extra: Document = {"batch": batch, "dtype": dtype, "ctx": contexts, "steps": steps, "warmup": warmup}
    interrupted = False
    if op in _CONTROLS:
        extra |= {"null": controls.null_op(steps), "spin": controls.spin(tuple(durations), max(steps, 10))}
    else:
        # Two models with the same shapes are one case.
        swept = {
            (case.label, case.shape): case
            for model_spec in models
            for case in cases(op, model_spec, contexts, batch, torch_dtype, seed)
        }
        if aa:
            case = next(iter(swept.values()))
            held, differences = aa_check(case, modes[0], l2, warmup, steps, aa)
            print(
                f"A/A, {op} {case.shape}, {modes[0]}: the 95% interval of the difference held zero in {held} of {aa} "
                f"repeats; relative differences of the medians {min(differences):+.4f} to {max(differences):+.4f}"
            )
            return 0
        with progress(f"measuring {op}", len(swept)) as advance:
            try:
                for case in swept.values():
                    entries += measure_case(case, modes, l2, warmup, steps, ceiling, spec[0])
                    advance()
            except KeyboardInterrupt:
                interrupted = True
    document = _document(op, entries, interrupted, ceiling, spec, l2, **extra)
    tables.print_document(document, Console())
    outputs.write(document)
    if interrupted:
        return cli.INTERRUPTED
    return 1 if any(entry["status"] == "wrong" for entry in entries) else 0


if __name__ == "__main__":
    sys.exit(cli.run("bench.op", command))
