"""The matrix models x contexts x batches on the device at hand: one cell, one fresh process, one JSON.

python -m bench.sweep --out=results/h200 --model=qwen2.5-7b,mistral-7b-v0.3,llama-3.1-8b --batch=1,4

Interrupted at any point, also by kill -9, and run again: finished cells stay, the rest follow. A cell that hangs or
crashes costs itself alone; one that finds no memory says what it needed and how much it had taken. Several sweeps can
share a folder: each cell is measured by one of them. --shard=i/n is the i-th of n shares of the matrix: docs/fleet.md.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import typer

import pykernels as pk
from bench.backends.steps import arms as step_arms
from bench.core import cli, document, shards
from bench.core.errors import UsageError, flag_error
from bench.core.flags import make_command
from bench.core.paths import user_path
from bench.core.quant_flags import QuantFlags
from bench.core.stop_rule import StopFlags
from bench.drivers import takes
from bench.fleet import local, over_ray, ray_cluster
from bench.fleet.cells import Cell, Plan
from bench.fleet.over_ray import Wanted
from pykernels.models import ModelSpec


@dataclass(kw_only=True)
class Settings(QuantFlags, StopFlags):
    """The flags of one run, and what they come to."""

    NOT_SHARED = QuantFlags.NOT_SHARED | {
        "out",
        "model",
        "ctx",
        "batch",
        "limit_s",
        "again",
        "shard",
        "controls",
        "ray",
        "on",
        "pack",
        "ship",
    }
    BARE = {"--ray": ray_cluster.HERE}

    out: Annotated[
        str, typer.Option("--out", help="the folder of the cells' documents; made where it is not there")
    ] = ""
    model: Annotated[str, typer.Option("--model", help=f"comma-separated: {cli.MODEL_WORDS}")] = "study"
    weights: cli.WeightsFlag = ""
    ctx: Annotated[str, typer.Option("--ctx", help="comma-separated contexts")] = "2048,4096,8192,16384"
    batch: Annotated[str, typer.Option("--batch", help="comma-separated batches")] = "1,4"
    arm: Annotated[
        str, typer.Option("--arm", help="comma-separated backend[/fusion]:mode; default: what bench.step takes")
    ] = ""
    layers: cli.LayersFlag = 0
    limit_s: Annotated[
        float, typer.Option("--limit-s", help="seconds a cell may take", callback=cli.checked(cli.seconds, "--limit-s"))
    ] = 1800.0
    shard: shards.ShardFlag = ""
    again: Annotated[bool, typer.Option("--again", help="try cells again that crashed, hung or were wrong")] = False
    ray: Annotated[
        str,
        typer.Option(
            "--ray", help="over the nodes of a Ray cluster: --ray=HOST:PORT of its head; --ray alone is this machine's"
        ),
    ] = ""
    on: Annotated[
        str,
        typer.Option(
            "--on", help="of --ray: the matrix on each of these kinds of node, KIND or KIND:COUNT, as H200:2,L4"
        ),
    ] = ""
    pack: Annotated[
        bool, typer.Option("--pack", help="of --ray: a cell a GPU at a time, not a node; for graph modes")
    ] = False
    ship: Annotated[str, typer.Option("--ship", help="of --ray: a wheel of this build that the nodes are to run")] = ""
    controls: Annotated[
        bool,
        typer.Option("--controls/--no-controls", help="null op, spin and read ceiling before and after every cell"),
    ] = True
    dtype: cli.DtypeFlag = "bf16"
    device: cli.DeviceFlag = "auto"
    warmup: cli.WarmupFlag = 5
    steps: cli.StepsFlag = 30
    threads: cli.ThreadsFlag = 0
    spec_gbs: cli.SpecFlag = 0.0
    memory_limit_gb: cli.MemoryLimitFlag = 0.0
    seed: cli.SeedFlag = 0
    list_: cli.ListFlag = False

    def cells(self) -> list[Cell]:
        """The matrix, every cell once, less left_out(); of --shard its share."""
        specs = self._specs()
        self.check_quant(specs)
        size = "row" if self.group == -1 else self.group
        quant = f"int4-g{size}{'-zeros' * self.asymmetric}" if self.quant == "int4" else ""
        contexts, _ = self._contexts(specs)
        batches = cli.numbers("--batch", self.batch, 1, 8, int)
        found = [
            Cell(spec.name, slots, sequences, quant, self.weights)
            for spec in specs
            for sequences in batches
            for slots in contexts[spec.name]
        ]
        for spec in specs:
            cli.number("--layers", self.layers, 0, spec.n_layers)
        cells, shard = list(dict.fromkeys(found)), shards.parse(self.shard)
        shard.check(len(cells))
        return shard.of(cells, lambda cell: cell.cost)

    def left_out(self) -> list[str]:
        """What of the matrix is no cell, and why: contexts that a model has no positions for."""
        return self._contexts(self._specs())[1]

    def _specs(self) -> list[ModelSpec]:
        if not self.weights:
            return [pk.models.get(name) for name in cli.model_names("--model", self.model)]
        if self.model != "study":
            raise flag_error("--model", self.model, "left out with --weights, which are of one model")
        return [cli.model("", "", self.weights)]

    def _contexts(self, specs: Sequence[ModelSpec]) -> tuple[dict[str, list[int]], list[str]]:
        """The contexts of each model, and the reasons of those that it has no positions for. Raises UsageError where
        that is all of them."""
        asked = cli.numbers("--ctx", self.ctx, float("-inf"), float("inf"), int)
        taken: dict[str, list[int]] = {spec.name: [] for spec in specs}
        reasons: dict[str, UsageError] = {}
        for spec in specs:
            for slots in asked:
                try:
                    taken[spec.name].append(cli.context("--ctx", slots, spec, max(self.warmup, 1) + self.steps))
                except UsageError as error:
                    if slots < 1:
                        raise
                    reasons[f"{spec.name}, ctx {slots}"] = error
        if not any(taken.values()):
            raise next(iter(reasons.values()))
        return taken, [f"{name} is left out: {reason}" for name, reason in reasons.items()]


def check_ray(settings: Settings) -> Wanted | None:
    """The flags of --ray; None without it. Raises UsageError for the first that does not fit."""
    if not settings.ray:
        for flag, value in (("--on", settings.on), ("--pack", settings.pack), ("--ship", settings.ship)):
            if value:
                raise flag_error(flag, value, "given with --ray")
        return None
    over_ray.check_device(settings.device)
    if pk.runtime.plan_table() is not None:
        raise UsageError(f"{pk.plans.VARIABLE}: must not be set with --ray: its nodes have no such file")
    wheel = user_path("--ship", settings.ship) if settings.ship else None
    if wheel and not (wheel.suffix == ".whl" and wheel.is_file()):
        raise flag_error("--ship", settings.ship, "a wheel (.whl) that exists")
    kinds = ray_cluster.parse_kinds("--on", settings.on)
    ray_cluster.check_address(settings.ray)
    path = str(wheel.resolve()) if wheel else ""
    return Wanted(settings.ray, settings.device, settings.on, kinds, settings.pack, path)


def main(settings: Settings) -> int:
    """The matrix models x contexts x batches, one fresh process a cell."""
    if settings.list_:
        step_arms.print_list()
        return 0
    cells, wanted = settings.cells(), check_ray(settings)
    if not settings.out:
        raise flag_error("--out", settings.out, "the name of a folder")
    folder = user_path("--out", settings.out)
    target = torch.device("cpu") if wanted else cli.device(settings.device, use=False)
    if settings.arm:
        if wanted:  # whether an arm runs there, the cells say
            parsed = [step_arms.parse_arm("--arm", text) for text in settings.arm.split(",")]
        else:
            parsed = step_arms.parse_arms("--arm", settings.arm, target)
        step_arms.check_quantised("--arm", [name for name, _, _ in parsed], settings.four_bit)
    document.make_folder(folder, "--out", settings.out)
    document.check_writable(folder / "cell.json", "--out")
    for words in settings.left_out():
        _say(words)
    plan = Plan(folder, cells, settings.shared_flags(), target, settings.limit_s, settings.again, settings.controls)
    counts, left = over_ray.run(plan, wanted, _say) if wanted else local.run(plan, _say)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if left == "interrupted":
        return cli.INTERRUPTED
    return 0 if not left and counts.keys() <= {"ok", "oom"} else 1


def _say(text: str) -> None:
    print(text, flush=True)


command = make_command(main, Settings, takes("sweep"))


if __name__ == "__main__":
    sys.exit(cli.run("bench.sweep", command))
