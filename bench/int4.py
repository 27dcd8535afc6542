"""4-bit kernels: how fast each is, what binds it, and whether it computes what its weights say.

python -m bench.int4                                            # every linear shape of three models, and their layers
python -m bench.int4 --model=qwen2.5-7b --group=64 --asymmetric --json=int4.json --plot=int4.png
python -m bench.int4 --kernel=native,mine.py:Mine --dtype=fp16
python -m bench.int4 --validate --kernel=mine.py:Mine           # against the oracle and in exact cases; status 1: wrong
python -m bench.int4 --arch=sm89                                # the machine code for Ada, without an Ada card
python -m bench.int4 --predict=l4                               # our layer on an L4, by arithmetic
"""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

import torch
import typer
from rich.console import Console

import pykernels as pk
from bench.backends import int4 as kernels4
from bench.core import cli, controls, environment, gpu_state
from bench.core.ceiling import Ceiling
from bench.core.document import SCHEMA, Document
from bench.core.errors import flag_error
from bench.core.progress import progress
from bench.quant import measure, predict, show
from pykernels.quant.int4_weight import group_size_allowed

_WHAT = ("shapes", "layer")
_CPU_MODES = ("eager", "pybind", "dispatch", "native")
_CUDA_MODES = (*_CPU_MODES, "graph", "graph-pdl")
_DEFAULT_MODES = {"cpu": "native,eager", "cuda": "graph,native,eager"}

_PROGRAM = "bench.int4"


def run(settings: measure.Settings, what: list[str], spec: tuple[float | None, str], gpu: str) -> Document:
    """Measure. Ctrl-C ends it early: the document says so and keeps the groups that were finished."""
    machine = environment.collect()
    monitor = gpu_state.Monitor(settings.device) if settings.device.type == "cuda" else None
    if monitor:
        machine["gpu_before"] = monitor.state()
    nulls = controls.null_op(settings.steps, settings.device)
    null_us = {row["mode"]: row["us"]["p50"] for row in nulls}
    ceiling = Ceiling(settings.device)
    groups: list[Callable[[], measure.Group]] = []
    if "shapes" in what:
        groups += [lambda shape=shape: measure.shape_group(shape, settings) for shape in measure.shapes(settings.specs)]
    if "layer" in what:
        groups += [lambda spec=spec: measure.layer_group(spec, settings) for spec in settings.specs]
    measured: list[tuple[Callable[[], measure.Group], list[Document]]] = []
    interrupted = False
    with progress("measuring int4", len(groups)) as advance:
        try:
            for make in groups:
                measured.append((make, measure.measure_group(make(), settings, ceiling, monitor, null_us)))
                advance()
            for make, entries in measured if monitor else ():
                measure.trace_group(make(), entries, settings)
        except KeyboardInterrupt:
            interrupted = True
    if not measured:
        raise KeyboardInterrupt
    if monitor:
        machine["gpu_after"] = monitor.state()
    ops = [entry for _, entries in measured for entry in entries]
    predictions = []
    for model in settings.specs if gpu else ():
        if entry := predict.best_layer(ops, model.name):
            found = predict.predict(gpu, model, entry, settings.batch, settings.torch_dtype, settings.device.type)
            predictions.append(found)
    return {
        "schema": SCHEMA, "kind": "int4", "title": f"4-bit weights of {', '.join(s.name for s in settings.specs)}",
        "command": cli.command_line(_PROGRAM), "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "interrupted": interrupted, "environment": machine, "device": settings.device.type,
        "group_size": settings.group_size, "symmetric": settings.symmetric, "ctx": settings.ctx,
        "batch": settings.batch, "dtype": settings.dtype, "l2": settings.l2, "l2_words": f"{settings.l2} weights",
        "warmup": settings.warmup, "steps": settings.steps, "ceiling": ceiling.document(*spec), "null": nulls,
        "ops": ops, "arms": [], "ladder": {}, "ladder_notes": {}, "predictions": predictions,
        "published": {name: vars(show.paper.figures()[name]) for name in show.PUBLISHED},
    }  # fmt: skip


def print_list(device: torch.device) -> None:
    """What --list prints: every kernel, and why it does not run here."""
    for name, kernel in kernels4.registry().items():
        reason = kernel.availability(device)
        print(f"{name:<10} {kernel.description}")
        print(f"{'':<10} " + (f"unsupported: {reason}" if reason else "runs here"))


def _group_size(text: str, group: int) -> int:
    if group != -1 and not (group > 0 and group_size_allowed(group, 128 * group)):
        raise flag_error(text, group, "32, 64, a multiple of 128, or -1 for the whole row")
    return group


def command(
    kernel: Annotated[
        str, typer.Option("--kernel", help="comma-separated names, or FILE.py:Name; all: every one that is known")
    ] = "all",
    what: Annotated[str, typer.Option("--what", help="comma-separated: shapes, layer")] = "shapes,layer",
    model: Annotated[
        str, typer.Option("--model", help="comma-separated; all")
    ] = "qwen2.5-7b,mistral-7b-v0.3,llama-3.1-8b",
    config: cli.ConfigFlag = "",
    group: Annotated[
        int, typer.Option("--group", help="columns of a scale: 32, 64, a multiple of 128; -1: the row")
    ] = 128,
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="give every group a zero point of its own")] = False,
    mode: Annotated[
        str, typer.Option("--mode", help="comma-separated; all. Default: native,eager; on a GPU graph too")
    ] = "",
    ctx: Annotated[int, typer.Option("--ctx", help="slots of the layer's cache")] = 2048,
    batch: cli.BatchFlag = 1,
    dtype: cli.DtypeFlag = "bf16",
    device: cli.DeviceFlag = "auto",
    l2: cli.L2Flag = "cold",
    warmup: cli.WarmupFlag = 3,
    steps: cli.StepsFlag = 30,
    repeats: cli.RepeatsFlag = 0,
    threads: cli.ThreadsFlag = 0,
    spec_gbs: cli.SpecFlag = 0.0,
    seed: cli.SeedFlag = 0,
    predict_: Annotated[
        str, typer.Option("--predict", help="predict our layer on that GPU: " + ", ".join(predict.GPUS))
    ] = "",
    json: cli.JsonFlag = "",
    csv: cli.CsvFlag = "",
    md: cli.MdFlag = "",
    plot: Annotated[str, typer.Option("--plot", help="draw the parts as bars (.png, .svg or .pdf)")] = "",
    list_: Annotated[bool, typer.Option("--list", help="name the kernels, and why one does not run here")] = False,
) -> int:
    """4-bit kernels: their time, what binds them, and whether they are right."""
    target = cli.device(device)
    if list_:
        print_list(target)
        return 0
    outputs = cli.Outputs(json, csv, md, plot)
    specs = [cli.model("", config)] if config else [
        pk.models.get(name) for name in cli.choices("--model", model, pk.models.names())
    ]  # fmt: skip
    parts = cli.choices("--what", what, _WHAT)
    gpu = predict.check(predict_) if predict_ else ""
    if gpu and "layer" not in parts:
        raise flag_error("--predict", predict_, "given with --what=layer: it is the layer that is predicted")
    cli.number("--ctx", ctx, 1, min(spec.max_position for spec in specs))
    allowed = _CUDA_MODES if target.type == "cuda" else _CPU_MODES
    spec = cli.spec_bandwidth(spec_gbs, target)
    settings = measure.Settings(
        specs=specs, kernels=kernels4.named("--kernel", kernel),
        modes=cli.choices("--mode", mode or _DEFAULT_MODES[target.type], allowed),
        group_size=_group_size("--group", group), symmetric=not asymmetric, ctx=ctx,
        batch=cli.number("--batch", batch, 1, 8), dtype=cli.choice("--dtype", dtype, list(cli.DTYPES)),
        torch_dtype=cli.DTYPES[dtype], device=target, l2=cli.choice("--l2", l2, ("cold", "warm")),
        warmup=cli.number("--warmup", warmup, 0, 10_000), steps=cli.number("--steps", steps, 2, 100_000),
        repeats=cli.number("--repeats", repeats, 0, 4096), seed=cli.number("--seed", seed, 0, 2**31 - 1),
        spec_gbs=spec[0],
    )  # fmt: skip
    cli.set_threads(threads)
    document = run(settings, parts, spec, gpu)
    show.print_document(document, Console())
    outputs.write(document, own={"--md": show.write_markdown, "--plot": _bars})
    if document["interrupted"]:
        return cli.INTERRUPTED
    return show.status_of(document["ops"])


def _bars(path, document: Document) -> None:
    from bench.quant import bars  # matplotlib takes a second: only where a picture is asked for

    bars.write_bars(path, document)


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
