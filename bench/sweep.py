"""The matrix models x contexts x batches on the device at hand: one cell, one fresh process, one JSON.

python -m bench.sweep --out=results/h200 --model=qwen2.5-7b,mistral-7b-v0.3,llama-3.1-8b --batch=1,4

Interrupted at any point, also by kill -9, and run again: finished cells stay, the rest follow. A cell that hangs or
crashes costs itself alone; one that finds no memory says what it needed and how much it had taken.
"""

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

import pykernels as pk
from bench.backends.steps import arms as step_arms
from bench.core import cli, document, environment
from bench.core.document import SCHEMA, Document, entry_name
from bench.core.errors import UsageError, flag_error
from bench.core.flags import make_command
from bench.core.paths import user_path
from bench.core.processes import run_module
from bench.core.quant_flags import QuantFlags
from bench.drivers import takes


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    model: str
    ctx: int
    batch: int
    quant: str = ""
    """Of 4-bit weights: what tells them from others in one folder, int4-g128 say."""

    @property
    def name(self) -> str:
        """Of its file, less the suffix."""
        return f"{self.model}{'_' * bool(self.quant)}{self.quant}_ctx{self.ctx}_b{self.batch}"


@dataclass(frozen=True)
class Plan:
    """The checked flags of one run. `flags` are those that every cell shares."""

    out: Path
    cells: list[Cell]
    flags: list[str]
    limit_s: float
    again: bool


def status_of(result: Document) -> tuple[str, str | None]:
    """A cell's status from its document: the document's own where it has one, else the worst of the arms that this
    device has: error, wrong, oom, ok."""
    if "status" in result:
        return result["status"], result.get("reason")
    arms = [arm for arm in result["arms"] if arm["status"] != "unsupported"]
    if result.get("interrupted") or not arms:
        return "error", "was interrupted" if arms else "has no arm that runs here"
    for status in ("error", "wrong", "oom"):
        for arm in arms:
            if arm["status"] == status:
                return status, arm["reason"]
    return "ok", None


def finished(plan: Plan, cell: Cell) -> bool:
    """Does the cell stay as it is? A cell of other flags does not; one that crashed or hung is tried again only with
    --again."""
    path = plan.out / f"{cell.name}.json"
    if not path.exists():
        return False
    try:
        result = document.load(path)
    except UsageError:
        return False
    if result.get("cell_flags") != plan.flags:
        return False
    return not plan.again or status_of(result)[0] in ("ok", "oom")


def run_cell(plan: Plan, cell: Cell) -> tuple[str, str | None]:
    """Measure one cell in a fresh process and write its document. Returns its status and the reason."""
    path = plan.out / f"{cell.name}.json"
    work = plan.out / f".{cell.name}.running.json"
    work.unlink(missing_ok=True)
    begin = time.monotonic()
    flags = [f"--model={cell.model}", f"--ctx={cell.ctx}", f"--batch={cell.batch}", *plan.flags, f"--json={work}"]
    outcome = run_module("bench.step", flags, plan.limit_s)
    extra: Document = {
        "cell": vars(cell), "cell_flags": plan.flags, "seconds": time.monotonic() - begin,
        "command": shlex.join(["python", "-m", "bench.step", *flags[:-1]]),  # less the file it was written to
    }  # fmt: skip
    if work.exists():
        result = document.load(work) | extra
    else:
        result = {
            "schema": SCHEMA, "kind": "step", "title": f"one decode step of {cell.model}, ctx {cell.ctx}",
            "created": datetime.now(UTC).isoformat(timespec="seconds"), "environment": environment.collect(),
            "model": {"name": cell.model}, "ctx": cell.ctx, "batch": cell.batch, "arms": [],
            "status": outcome.status, "reason": outcome.reason,
        } | extra  # fmt: skip
    document.write_json(path, result)
    work.unlink(missing_ok=True)
    return status_of(result)


def duration(seconds: float) -> str:
    """1:02:03 or 2:03"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def line(plan: Plan, cell: Cell, status: str, reason: str | None) -> str:
    """A finished cell in one line: its fastest arm, or what went wrong."""
    result: dict[str, Any] = document.load(plan.out / f"{cell.name}.json")
    if status == "oom":
        memory = result["memory"]
        return f"oom: {reason}; needs {memory['asked_bytes'] / 1e9:.2f} GB, peak {memory['peak_bytes'] / 1e9:.2f} GB"
    if status != "ok":
        return f"{status}: {reason}"
    best = min((arm for arm in result["arms"] if arm["wall_us"]), key=lambda arm: arm["wall_us"]["p50"])
    ratio = best["paper"]["R_floor"]
    shown = "" if ratio is None else f", R_floor {ratio:.3f}"
    return f"ok: {entry_name(best)} {best['wall_us']['p50'] / 1000:.3f} ms{shown}"


def run(plan: Plan, say: Callable[[str], None] = print) -> dict[str, int]:
    """Every cell that is not finished. Returns how many cells have each status, those of earlier runs included; fewer
    than there are cells after Ctrl-C, which ends the cell that runs."""
    todo = [cell for cell in plan.cells if not finished(plan, cell)]
    counts: dict[str, int] = {}
    for cell in plan.cells:
        if cell not in todo:
            status, _ = status_of(document.load(plan.out / f"{cell.name}.json"))
            counts[status] = counts.get(status, 0) + 1
    if len(todo) < len(plan.cells):
        say(f"{len(plan.cells) - len(todo)} of {len(plan.cells)} cells were finished before")
    begin = time.monotonic()
    for index, cell in enumerate(todo):
        try:
            status, reason = run_cell(plan, cell)
        except KeyboardInterrupt:
            if not counts:
                raise
            say(f"INTERRUPTED in {cell.name}: {sum(counts.values())} of {len(plan.cells)} cells are finished and saved")
            break
        counts[status] = counts.get(status, 0) + 1
        each = (time.monotonic() - begin) / (index + 1)
        left = f", about {duration(each * (len(todo) - index - 1))} left" if index + 1 < len(todo) else ""
        say(f"[{index + 1}/{len(todo)}{left}] {cell.name}: {line(plan, cell, status, reason)}")
    return counts


@dataclass(kw_only=True)
class Settings(QuantFlags):
    """The flags of one run, and what they come to."""

    NOT_SHARED = QuantFlags.NOT_SHARED | {"out", "model", "ctx", "batch", "limit_s", "again"}

    out: Annotated[
        str, typer.Option("--out", help="the folder of the cells' documents; made where it is not there")
    ] = ""
    model: Annotated[
        str, typer.Option("--model", help=f"comma-separated: {', '.join(pk.models.names())}; study: its three")
    ] = "study"
    ctx: Annotated[str, typer.Option("--ctx", help="comma-separated contexts")] = "2048,4096,8192,16384"
    batch: Annotated[str, typer.Option("--batch", help="comma-separated batches")] = "1,4"
    arm: Annotated[
        str, typer.Option("--arm", help="comma-separated backend[/fusion]:mode; default: what bench.step takes")
    ] = ""
    layers: cli.LayersFlag = 0
    limit_s: Annotated[
        float, typer.Option("--limit-s", help="seconds a cell may take", callback=cli.checked(cli.seconds, "--limit-s"))
    ] = 1800.0
    again: Annotated[bool, typer.Option("--again", help="try cells again that crashed, hung or were wrong")] = False
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
        """The matrix, every cell once."""
        names = cli.STUDIED if self.model == "study" else cli.choices("--model", self.model, pk.models.names())
        specs = [pk.models.get(name) for name in names]
        self.check_quant(specs)
        size = "row" if self.group == -1 else self.group
        quant = f"int4-g{size}{'-zeros' * self.asymmetric}" if self.four_bit else ""
        beyond = max(self.warmup, 1) + self.steps
        found = [
            Cell(spec.name, slots, sequences, quant)
            for spec in specs
            for sequences in cli.numbers("--batch", self.batch, 1, 8, int)
            for slots in cli.numbers("--ctx", self.ctx, 1, spec.max_position - beyond, int)
        ]
        for spec in specs:
            cli.number("--layers", self.layers, 0, spec.n_layers)
        return list(dict.fromkeys(found))


def main(settings: Settings) -> int:
    """The matrix models x contexts x batches, one fresh process a cell."""
    if settings.list_:
        step_arms.print_list()
        return 0
    cells, target = settings.cells(), cli.device(settings.device)
    if settings.arm:
        parsed = step_arms.parse_arms("--arm", settings.arm, target)
        step_arms.check_quantised("--arm", [name for name, _, _ in parsed], settings.four_bit)
    if not settings.out:
        raise flag_error("--out", settings.out, "the name of a folder")
    folder = user_path("--out", settings.out)
    document.make_folder(folder, "--out", settings.out)
    document.check_writable(folder / "cell.json", "--out")
    plan = Plan(folder, cells, settings.shared_flags(), settings.limit_s, settings.again)
    counts = run(plan, lambda text: print(text, flush=True))
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if len(cells) > sum(counts.values()):
        return cli.INTERRUPTED
    return 0 if counts.keys() <= {"ok", "oom"} else 1


command = make_command(main, Settings, takes("sweep"))


if __name__ == "__main__":
    sys.exit(cli.run("bench.sweep", command))
