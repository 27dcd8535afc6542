"""Where the time inside each kernel of a layer goes, by in-kernel timestamps: a build with them, and a GPU.

CMAKE_ARGS=-DPYKERNELS_TIMESTAMPS=ON make build
python -m bench.inside --model=qwen2.5-7b --quant=int4 --mode=graph-pdl --json=inside.json --md=inside.md

A chain of layers is replayed as a graph while the first and the last warp of every block record when they pass the
points that their kernel marks. docs/measuring.md says what the timestamps cost and what could be wrong with them.
"""

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
import typer

import pykernels as pk
from bench.backends import Workload, arms_of
from bench.backends.native import Native
from bench.core import cli, measure, results, statistics, stop_rule
from bench.core import quant_words as words
from bench.core.copies import layers_a_sample
from bench.core.document import Document
from bench.core.errors import UsageError, flag_error
from bench.core.flags import make_command
from bench.core.layer_settings import LayerSettings, l2_words, make_layers
from bench.core.listing import print_backends
from bench.core.measure import Arm, no_garbage_collection
from bench.core.output_flags import TableFlags
from bench.core.outputs import Outputs
from bench.core.progress import progress
from bench.core.run import Machine, close, gate
from bench.core.stop_rule import StopRule
from bench.drivers import takes
from bench.inside import tables as inside_tables
from bench.inside import timestamps
from pykernels.layer import op_labels

_PROGRAM = "bench.inside"
MODES = ("graph", "graph-pdl")


@dataclass(kw_only=True)
class Settings(LayerSettings, TableFlags):
    """The flags of one run, and what they come to."""

    mode: Annotated[str, typer.Option("--mode", help="comma-separated: graph, graph-pdl")] = "graph,graph-pdl"
    steps: Annotated[
        int,
        typer.Option(
            "--steps",
            help="replays that are recorded of every mode",
            callback=cli.checked(cli.number, "--steps", 2, 1000),
        ),
    ] = 30
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats",
            help="layers of a replay; 0: eight or more",
            callback=cli.checked(cli.number, "--repeats", 0, 512),
        ),
    ] = 0
    fusion: cli.FusionFlag = "block"

    @cached_property
    def modes(self) -> list[str]:
        """--mode."""
        return cli.modes("--mode", self.mode, MODES)

    def check(self) -> None:
        """Raise UsageError for the first flag that does not fit the others."""
        super().check()
        assert self.modes


def record(
    arm: Arm, layer: list[tuple[str, str]], layers: int, warmup: int, replays: int, device: int, rule: StopRule
) -> Document:
    """The arm's replays: their time with nobody recording, and with; and what the timestamps of the latter say. As many
    are recorded as the rule took with nobody recording.

    Raises ValueError where the records are not those of a chain of such layers.
    """
    assert arm.sampler is not None
    with torch.inference_mode(), no_garbage_collection():
        arm.sampler(max(warmup, 1))
        with pk.runtime.kernel_timestamps(device, 1) as counted:
            arm.sampler(1)
        quiet_us = stop_rule.take(arm.sampler, replays, rule)
        replays = len(quiet_us)
        capacity = replays * (len(counted.records) + counted.lost)
        with pk.runtime.kernel_timestamps(device, max(capacity, 1)) as found:
            recording_us = arm.sampler(replays)
    wall_us = float(recording_us.mean())
    result = timestamps.inside(found.records, found.kernels, layer, layers)
    return {
        "wall_us": {"mean": wall_us, **statistics.summary(recording_us)},
        "wall_quiet_us": {"mean": float(quiet_us.mean()), **statistics.summary(quiet_us)},
        "records": len(found.records), "records_lost": found.lost,
        **result, **rule.document(),
        "unaccounted_us": wall_us - result["accounted_us"],
    }  # fmt: skip


def arm_document(arm: Arm) -> Document:
    """What an entry of `arms` begins with."""
    keys = ("backend", "mode", "fusion", "status", "reason", "max_rel_error", "steps_per_graph")
    return {key: getattr(arm, key) for key in keys}


def run(settings: Settings) -> Document:
    """Check, measure, and sum up."""
    spec, device = settings.spec, settings.target
    machine = Machine(device)
    layers = cli.usage(lambda: make_layers(settings))
    chain = layers_a_sample(settings.repeats, len(layers), device)
    arms = arms_of(Native, Workload.of(layers, chain), settings.modes, settings.fusions)
    gate(arms)
    entries = []
    with progress("measuring", len(arms)) as advance:
        for arm in arms:
            measured: Document = {}
            if arm.status == "ok":
                ops = op_labels(str(arm.fusion), layers[0].weights.is_int4, layers[0].spec)
                try:
                    measured = record(
                        arm, ops, chain, settings.warmup, settings.steps, device.index, settings.stop_rule()
                    )
                except Exception as error:  # an arm's failure is a result of the run, not the end of it
                    arm.fail(error)
            arm.samples_us = [measured["wall_us"]["mean"]] if measured else []
            measure.gate_again([arm])
            entries.append(arm_document(arm) | (measured if arm.status == "ok" else {}))
            advance()
    spec_gbs, source = cli.spec_bandwidth(0.0, device)
    return {
        **cli.head(
            _PROGRAM, "inside", interrupted=False, environment=machine.document(),
            title=f"inside the kernels of one decode layer of {spec.name}{words.quant_words(settings.int4_format)}, "
                  f"ctx {settings.ctx}",
        ),
        "model": results.model_document(spec),
        "weights": "checkpoint" if settings.weights else "random",
        "quant": words.quant_document(settings.int4_format),
        "ctx": settings.ctx, "batch": settings.batch, "dtype": settings.dtype, "device": device.type,
        "l2": settings.l2,
        "l2_words": l2_words(settings, layers),
        "weight_copies": len(layers),
        "warmup": settings.warmup, "steps": settings.steps, "repeats": chain,
        "ceiling": {"spec_gbs": spec_gbs, "spec_source": source, "read_gbs": None, "copy_gbs": None},
        "arms": entries,
    }  # fmt: skip


def main(settings: Settings) -> int:
    """Where the time inside each kernel of a decode layer goes."""
    if settings.list_:
        reason = pk.runtime.timestamps_reason() or Native.availability(cli.device("auto"))
        print_backends([(Native.name, Native.description, reason, MODES)])
        return 0
    outputs = Outputs(settings.json, md=settings.md)
    settings.check()
    # The GPU first: who has none need not build anew to find that out.
    if settings.target.type != "cuda":
        raise flag_error(
            "--device", settings.device, "cuda, with a GPU that torch sees: kernels on a CPU have no timestamps"
        )
    if reason := pk.runtime.timestamps_reason():
        raise UsageError(reason)
    return close(run(settings), outputs, inside_tables.print_document, writers={"--md": inside_tables.write_markdown})


command = make_command(main, Settings, takes("inside"))


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
