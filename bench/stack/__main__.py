"""The software stack's matrix on one decode layer: whose attention, compiled or not, captured or not.

python -m bench.stack --model=qwen2.5-7b --json=stack.json --md=stack.md --plot=stack.png

All uncompiled cells run in one fresh process of bench.layer, each compiled attention in one of its own beside default
SDPA. What fails there is tried again in smaller processes, down to a cell alone, so that a crash costs its own cell.
With --compile-jobs the compiled ones are first made once, side by side, which leaves the compiler's cache behind. With
--keep=FOLDER the processes' documents stay there: killed at any point and run again, they are not measured again.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.text import Text

import pykernels as pk
from bench.backends import by_name
from bench.core import cli, document, environment
from bench.core.document import Document
from bench.core.errors import flag_error
from bench.core.flags import Flags, make_command
from bench.core.kept import KeepFlag, Kept, open_folder
from bench.core.output_flags import OutputFlags
from bench.core.outputs import Outputs
from bench.core.processes import end_all, run_module
from bench.core.progress import progress
from bench.core.run import close
from bench.core.stop_rule import StopFlags
from bench.drivers import takes
from bench.stack import tables as stack_tables

# What a step of separate launches can be: as it comes, launched again by a C++ loop, replayed.
CAPTURED = ("eager", "native", "graph")

# (attention, how it is compiled): the backend of bench.layer, and the modes that are cells.
GROUPS = {
    ("sdpa", "eager"): ("sdpa", CAPTURED),
    ("sdpa", "compile"): ("compile", CAPTURED),
    ("sdpa", "reduce-overhead"): ("compile-graphs", ("eager",)),
    ("fa2", "eager"): ("fa2", CAPTURED),
    ("fa2", "compile"): ("compile-fa2", CAPTURED),
    ("fa3", "eager"): ("fa3", CAPTURED),
    ("fa3", "compile"): ("compile-fa3", CAPTURED),
    ("flashinfer", "eager"): ("flashinfer", CAPTURED),
    ("flashinfer", "compile"): ("compile-flashinfer", CAPTURED),
    ("native", "eager"): ("plain-native", CAPTURED),
    ("native", "compile"): ("compile-native", CAPTURED),
}
ATTENTIONS = tuple(dict.fromkeys(attention for attention, _ in GROUPS))
COMPILED = tuple(dict.fromkeys(compiled for _, compiled in GROUPS))

# Appendix C of the study: these ended in errors of CUDA's caching allocator there, and have no figure.
CRASHED_IN_THE_PAPER = {
    ("sdpa", "compile", "eager"), ("sdpa", "compile", "graph"), ("fa2", "eager", "graph"), ("fa2", "compile", "eager"),
}  # fmt: skip


Cell = tuple[str, str, str]
"""(attention, how it is compiled, mode)"""


@dataclass(frozen=True)
class Plan:
    """The checked flags of one run. `flags` are those of every process; `compile_jobs` of them compile at once; their
    documents are `kept`. `absent`: why a cell cannot run here, a library that is not there say; no process tries it."""

    cells: list[Cell]
    flags: list[str]
    limit_s: float
    compile_jobs: int = 0
    kept: Kept = Kept()
    absent: Mapping[Cell, str] = field(default_factory=dict)

    def processes(self) -> list[list[Cell]]:
        """The cells that are tried in one process. Compiled ones are by their attention: torch holds all that was
        compiled of a function in one list, and asks down that list at every call."""
        found: dict[tuple[str, str], list[Cell]] = {}
        for attention, compiled, mode in (cell for cell in self.cells if cell not in self.absent):
            together = ("", compiled) if compiled == "eager" else (attention, compiled)
            found.setdefault(together, []).append((attention, compiled, mode))
        return list(found.values())


def process_of(cells: Sequence[Cell], plan: Plan) -> tuple[str, list[str]]:
    """A name for the process that measures the cells, and its flags."""
    backends = dict.fromkeys(("sdpa", *(GROUPS[attention, compiled][0] for attention, compiled, _ in cells)))
    # The reference is SDPA's eager step in the same process.
    modes = dict.fromkeys(("eager", *(mode for *_, mode in cells)))
    named = ",".join(backends), ",".join(modes)
    return "layer-" + "-".join(named), [*plan.flags, f"--backend={named[0]}", f"--mode={named[1]}"]


def run_layer(cells: Sequence[Cell], plan: Plan) -> tuple[Document | None, str]:
    """One process of bench.layer, unless its document is kept. Returns the document, None where it left none, and how
    it ended, in words."""
    name, flags = process_of(cells, plan)
    if kept := plan.kept.load(name, flags):
        return kept, "ok: None"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.json"
        outcome = run_module("bench.layer", [*flags, f"--json={path}"], plan.limit_s)
        result = document.load(path, "layer") if path.exists() else None
    if result:
        plan.kept.save(name, result, flags)
    return result, f"{outcome.status}: {outcome.reason}"


def compile_ahead(plan: Plan, say: Callable[[str], None]) -> None:
    """Run the compiled processes that are not kept once, some at a time, for the compiler's cache on disk: what they
    measure is thrown away, and so is how they end. They disturb each other's times and not each other's code."""
    compiled = [
        cells for cells in plan.processes() if cells[0][1] != "eager" and not plan.kept.load(*process_of(cells, plan))
    ]
    if plan.compile_jobs < 2 or len(compiled) < 2:
        return
    begin = time.monotonic()
    # The last of a repeated flag counts.
    quick = replace(plan, flags=[*plan.flags, "--warmup=0", "--steps=2"], kept=Kept())
    with ThreadPoolExecutor(plan.compile_jobs) as together:
        jobs = [together.submit(run_layer, cells, quick) for cells in compiled]
        try:
            wait(jobs)
        except KeyboardInterrupt:
            together.shutdown(wait=False, cancel_futures=True)
            while not all(job.done() for job in jobs):
                end_all()
                time.sleep(0.05)
            raise
    say(f"compiled ahead: {len(compiled)} processes, {plan.compile_jobs} at a time "
        f"({time.monotonic() - begin:.0f} s)")  # fmt: skip


def absent_cells(cells: Sequence[Cell], device: torch.device) -> dict[Cell, str]:
    """Those whose backend cannot run on the device, and why."""
    reasons = {group: by_name()[GROUPS[group][0]].availability(device) for group in {cell[:2] for cell in cells}}
    return {cell: reason for cell in cells if (reason := reasons[cell[:2]])}


def entry_of(cell: Cell, result: Document | None, ended: str, status: str = "error") -> Document:
    """One cell of the matrix: its arm of bench.layer's document, or what became of the process, with that status."""
    attention, compiled, mode = cell
    backend = GROUPS[attention, compiled][0]
    arms = result["arms"] if result else []
    found = next((arm for arm in arms if (arm["backend"], arm["mode"]) == (backend, mode)), None)
    entry: Document = found or {
        "backend": backend, "mode": mode, "fusion": None, "status": status, "reason": ended, "wall_us": None,
        "host_us": None, "device_us": None, "samples_us": [], "kernels": [], "launches": 0, "max_rel_error": None,
    }  # fmt: skip
    crashed = cell in CRASHED_IN_THE_PAPER
    return entry | {"attention": attention, "compiled": compiled, "crashed_in_the_paper": crashed}


def measure(cells: Sequence[Cell], plan: Plan) -> tuple[list[Document], Document | None]:
    """The entries of the cells, and a document of bench.layer. Those that end in an error are tried once more in
    processes by their attention, and those that do so there each alone."""
    first, ended = run_layer(cells, plan)
    found = {cell: entry_of(cell, first, ended) for cell in cells}
    failed = [cell for cell in cells if found[cell]["status"] == "error"]
    by_attention = [[cell for cell in failed if cell[0] == name] for name in dict.fromkeys(name for name, *_ in failed)]
    parts = [[cell] for cell in failed] if len({name for name, *_ in cells}) == 1 else by_attention
    for part in parts if len(cells) > 1 else ():
        entries, alone = measure(part, plan)
        found |= zip(part, entries, strict=True)
        first = first or alone
    return list(found.values()), first


def make_document(plan: Plan, cells: list[Document], first: Document | None, interrupted: bool) -> Document:
    """The document of kind `stack`; `first` is a document of bench.layer, for what all processes share."""
    names = ("model", "ctx", "batch", "dtype", "device", "l2", "l2_words", "ceiling", "steps", "warmup")
    shared = {name: first[name] if first else None for name in names}
    return {
        **cli.head(
            "bench.stack", "stack", title="the software stack of one decode layer", interrupted=interrupted,
            environment=first["environment"] if first else environment.collect(),
        ),
        **shared, "flags": plan.flags, "arms": cells,
    }  # fmt: skip


def run(plan: Plan, save: Callable[[Document], None], say: Callable[[str], None]) -> Document:
    """Every process, saved after each. Ctrl-C keeps the cells that are done."""
    found = {cell: entry_of(cell, None, reason, "unsupported") for cell, reason in plan.absent.items()}
    first: Document | None = None

    def result(interrupted: bool) -> Document:
        return make_document(plan, [found[cell] for cell in plan.cells if cell in found], first, interrupted)

    compile_ahead(plan, say)
    try:
        with progress("processes", len(plan.processes())) as advance:
            for cells in plan.processes():
                begin = time.monotonic()
                entries, layer = measure(cells, plan)
                found |= zip(cells, entries, strict=True)
                first = first or layer
                for (attention, compiled, _), entry in zip(cells, entries, strict=True):
                    say(f"{attention}, {compiled}: {stack_tables.words(entry)}")
                say(f"({time.monotonic() - begin:.0f} s)")
                save(result(interrupted=True))
                advance()
    except KeyboardInterrupt:
        if len(found) == len(plan.absent):
            raise
        return result(interrupted=True)
    return result(interrupted=False)


def show(result: Document, console: Console) -> None:
    """The heading and the matrix."""
    console.print(Text("\n".join(stack_tables.heading(result))))
    stack_tables.print_document(result, console)


@dataclass(kw_only=True)
class Settings(StopFlags, OutputFlags):
    """The flags of one run, and what they come to."""

    NOT_SHARED = Flags.NOT_SHARED | {"attention", "compiled", "mode", "limit_s", "compile_jobs", "keep"}

    attention: Annotated[str, typer.Option("--attention", help=f"comma-separated: {', '.join(ATTENTIONS)}; all")] = (
        "all"
    )
    compiled: Annotated[str, typer.Option("--compiled", help=f"comma-separated: {', '.join(COMPILED)}; all")] = "all"
    mode: Annotated[
        str,
        typer.Option(
            "--mode", help="comma-separated: eager (no graph), native (launched again by a C++ loop), graph; all"
        ),
    ] = "eager,graph"
    model: cli.ModelFlag = "qwen2.5-7b"
    ctx: cli.CtxFlag = 2048
    batch: cli.BatchFlag = 1
    dtype: cli.DtypeFlag = "bf16"
    device: cli.DeviceFlag = "auto"
    l2: cli.L2Flag = "cold"
    warmup: cli.WarmupFlag = 5
    steps: cli.StepsFlag = 30
    limit_s: Annotated[
        float,
        typer.Option("--limit-s", help="seconds a process may take", callback=cli.checked(cli.seconds, "--limit-s")),
    ] = 120.0
    compile_jobs: Annotated[
        int,
        typer.Option(
            "--compile-jobs",
            help="processes that compile side by side first; -1: one for four CPUs",
            callback=cli.checked(cli.number, "--compile-jobs", -1, 64),
        ),
    ] = -1
    keep: KeepFlag = ""
    threads: cli.ThreadsFlag = 0
    spec_gbs: cli.SpecFlag = 0.0
    seed: cli.SeedFlag = 0
    plot: Annotated[str, typer.Option("--plot", help="draw the matrix (.png, .svg or .pdf)")] = ""

    def cells(self) -> list[Cell]:
        """The matrix."""
        attentions = cli.choices("--attention", self.attention, ATTENTIONS)
        kinds = cli.choices("--compiled", self.compiled, COMPILED)
        wanted = cli.modes("--mode", self.mode, CAPTURED)
        found = [
            (*group, mode)
            for group, (_, modes) in GROUPS.items()
            if group[0] in attentions and group[1] in kinds
            for mode in modes
            if mode in wanted
        ]
        if not found:
            raise flag_error("--compiled", self.compiled, f"eager or compile for --attention={self.attention}")
        return found

    def plan(self) -> Plan:
        """What is run. Raises UsageError for the first flag that does not fit the others."""
        cli.device(self.device, use=False)
        cli.context("--ctx", self.ctx, cli.model(self.model, ""))
        jobs = len(os.sched_getaffinity(0)) // 4 if self.compile_jobs < 0 else self.compile_jobs
        flags = [*self.shared_flags(), "--fusion=block"]
        cells = self.cells()
        absent = absent_cells(cells, cli.device(self.device))
        return Plan(cells, flags, self.limit_s, jobs, open_folder(self.keep, "layer"), absent)


def print_list() -> None:
    """What --list prints: the cells, and the backend of bench.layer that each is."""
    print("models:  ", ", ".join(pk.models.names()))
    print("cells, as attention, compiled: backend of bench.layer (its --list says which run here), modes")
    for (attention, compiled), (backend, modes) in GROUPS.items():
        print(f"  {f'{attention}, {compiled}':<24} {backend:<19} {', '.join(modes)}")


def main(settings: Settings) -> int:
    """One decode layer: attention x compiled x captured."""
    if settings.list_:
        print_list()
        return 0
    outputs = Outputs(settings.json, settings.csv, settings.md, settings.plot)
    result = run(settings.plan(), outputs.keep, lambda text: print(text, flush=True))
    writers = {"--md": stack_tables.write_markdown, "--plot": stack_tables.write_picture}
    return close(result, outputs, show, writers=writers)


command = make_command(main, Settings, takes("stack"))


if __name__ == "__main__":
    sys.exit(cli.run("bench.stack", command))
