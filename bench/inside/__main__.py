"""Where the time inside each kernel of a layer goes, by in-kernel timestamps: a build with them, and a GPU.

CMAKE_ARGS=-DPYKERNELS_TIMESTAMPS=ON make build
python -m bench.inside --model=qwen2.5-7b --quant=int4 --mode=graph-pdl --json=inside.json --md=inside.md

A chain of layers is replayed as a graph while the first and the last warp of every block record when they pass the
points that their kernel marks. docs/measuring.md says what the stamps cost and what could be wrong with them.
"""

import sys
from typing import Annotated

import torch
import typer

import pykernels as pk
from bench.backends import Workload, arms_of
from bench.backends.native import Native
from bench.core import cli, environment, results, statistics
from bench.core import quant_words as words
from bench.core.copies import layers_a_sample
from bench.core.document import Document
from bench.core.errors import UsageError, flag_error
from bench.core.measure import Arm, no_garbage_collection
from bench.core.progress import progress
from bench.core.run import Machine, close, gate
from bench.inside import tables as inside_tables
from bench.inside import timestamps as stamps
from bench.layer import Settings, check_rounding, make_layers
from bench.plugins import plan as plugins
from pykernels.layer import op_labels

_PROGRAM = "bench.inside"
MODES = ("graph", "graph-pdl")


def record(arm: Arm, layer: list[tuple[str, str]], layers: int, warmup: int, replays: int, device: int) -> Document:
    """The arm's replays: their time with nobody recording, and with; and what the stamps of the latter say.

    Raises ValueError where the records are not those of a chain of such layers.
    """
    with torch.inference_mode(), no_garbage_collection():
        arm.sampler(max(warmup, 1))
        with pk.runtime.kernel_timestamps(device, 1) as counted:
            arm.sampler(1)
        quiet_us = arm.sampler(replays)
        capacity = replays * (len(counted.records) + counted.lost)
        with pk.runtime.kernel_timestamps(device, max(capacity, 1)) as found:
            recording_us = arm.sampler(replays)
    wall_us = float(recording_us.mean())
    result = stamps.inside(found.records, found.kernels, layer, layers)
    return {
        "wall_us": {"mean": wall_us, **statistics.summary(recording_us)},
        "wall_quiet_us": {"mean": float(quiet_us.mean()), **statistics.summary(quiet_us)},
        "records": len(found.records), "records_lost": found.lost,
        **result,
        "unaccounted_us": wall_us - result["accounted_us"],
    }  # fmt: skip


def arm_document(arm: Arm) -> Document:
    """What an entry of `arms` begins with."""
    keys = ("backend", "mode", "fusion", "status", "reason", "max_rel_error", "steps_per_graph")
    return {key: getattr(arm, key) for key in keys}


def run(settings: Settings) -> Document:
    """Check, measure, and sum up."""
    spec, device = settings.spec, settings.device
    machine = Machine(device)
    layers = cli.usage(lambda: make_layers(settings))
    if layers[0].weights.is_int4:
        settings.int4_format = cli.usage(layers[0].weights.int4_format)
    chain = layers_a_sample(settings.repeats, len(layers), device)
    arms = arms_of(Native, Workload.of(layers, chain), settings.modes, settings.fusions)
    gate(arms)
    entries = []
    with progress("measuring", len(arms)) as advance:
        for arm in arms:
            measured: Document = {}
            if arm.status == "ok":
                ops = op_labels(arm.fusion, layers[0].weights.is_int4)
                try:
                    measured = record(arm, ops, chain, settings.warmup, settings.steps, device.index)
                except Exception as error:  # an arm's failure is a result of the run, not the end of it
                    arm.fail(error)
            entries.append(arm_document(arm) | measured)
            advance()
    layer_bytes, cache_mb = layers[0].weights.n_bytes, environment.last_level_cache_bytes(device) / 1e6
    copies = f"{len(layers)} {'copy' if len(layers) == 1 else 'copies in rotation'}"
    spec_gbs, source = settings.spec_bandwidth
    return {
        **cli.head(
            _PROGRAM, "inside", interrupted=False, environment=machine.document(),
            title=f"inside the kernels of one decode layer of {spec.name}{words.quant_words(settings.int4_format)}, "
                  f"ctx {settings.ctx}",
        ),
        "model": results.model_document(spec),
        "weights": "random",
        "quant": words.quant_document(settings.int4_format),
        "ctx": settings.ctx, "batch": settings.batch, "dtype": settings.dtype, "device": device.type,
        "l2": settings.l2,
        "l2_words": f"{settings.l2}: {layer_bytes / 1e6:.0f} MB of weights, {copies}, "
                    f"against a last-level cache of {cache_mb:.0f} MB",
        "weight_copies": len(layers),
        "warmup": settings.warmup, "steps": settings.steps, "repeats": chain,
        "ceiling": {"spec_gbs": spec_gbs, "spec_source": source, "read_gbs": None, "copy_gbs": None},
        "arms": entries,
    }  # fmt: skip


def command(
    mode: Annotated[str, typer.Option("--mode", help="comma-separated: graph, graph-pdl")] = "graph,graph-pdl",
    model: cli.ModelFlag = "qwen2.5-7b",
    config: cli.ConfigFlag = "",
    ctx: Annotated[int, typer.Option("--ctx", help="slots of the cache that a step attends to")] = 2048,
    batch: cli.BatchFlag = 1,
    dtype: cli.DtypeFlag = "bf16",
    device: cli.DeviceFlag = "auto",
    fusion: Annotated[str, typer.Option("--fusion", help="none, block; with 4-bit weights block alone")] = "block",
    quant: cli.QuantFlag = "none",
    group: cli.GroupFlag = 128,
    asymmetric: cli.AsymmetricFlag = False,
    l2: cli.L2Flag = "cold",
    warmup: cli.WarmupFlag = 5,
    steps: Annotated[int, typer.Option("--steps", help="replays that are recorded of every mode")] = 30,
    repeats: Annotated[int, typer.Option("--repeats", help="layers of a replay; 0: eight or more")] = 0,
    seed: cli.SeedFlag = 0,
    json: cli.JsonFlag = "",
    md: cli.MdFlag = "",
) -> int:
    """Where the time inside each kernel of a decode layer goes."""
    outputs = cli.Outputs(json, md=md)
    spec = cli.model(model, config)
    check_rounding(spec, quant, group, asymmetric)
    fusions = cli.layer_fusions(fusion, quant == "int4")
    modes = cli.choices("--mode", mode, MODES)
    on = cli.device(device)
    settings = Settings(
        spec=spec,
        backends={Native.name: Native},
        plugins=plugins.Plan(_PROGRAM, [], modes, [], [], 0.0),
        modes=modes,
        fusions=fusions,
        ctx=cli.number("--ctx", ctx, 1, spec.max_position),
        batch=batch,
        dtype=dtype,
        device=on,
        spec_bandwidth=cli.spec_bandwidth(0.0, on),
        l2=l2,
        warmup=warmup,
        steps=cli.number("--steps", steps, 2, 1000),
        repeats=cli.number("--repeats", repeats, 0, 512),
        seed=seed,
        weights="",
        layer=0,
        quant=quant,
        group_size=group,
        symmetric=not asymmetric,
    )
    if reason := pk.runtime.timestamps_reason():
        raise UsageError(reason)
    if on.type != "cuda":
        raise flag_error("--device", device, "cuda, with a GPU that torch sees: kernels on a CPU have no timestamps")
    return close(run(settings), outputs, inside_tables.print_document, writers={"--md": inside_tables.write_markdown})


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
