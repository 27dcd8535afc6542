"""The software stack's matrix on one decode layer: whose attention, compiled or not, captured or not.

python -m bench.stack --model=qwen2.5-7b --json=stack.json --md=stack.md --plot=stack.png

Each attention runs in a fresh process of bench.layer beside default SDPA, compiled layers in one of their own; a cell
that fails is tried once more in a process alone, so that a crash costs its own cell.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import pykernels as pk
from bench.core import cli, document, environment, stack_tables
from bench.core.document import Document
from bench.core.errors import flag_error
from bench.core.progress import progress
from bench.core.run import close
from bench.study.processes import run_module

# (attention, how it is compiled): the backend of bench.layer, and the modes that are cells.
GROUPS = {
    ("sdpa", "eager"): ("sdpa", ("eager", "graph")),
    ("sdpa", "compile"): ("compile", ("eager", "graph")),
    ("sdpa", "reduce-overhead"): ("compile-graphs", ("eager",)),
    ("fa2", "eager"): ("fa2", ("eager", "graph")),
    ("fa2", "compile"): ("compile-fa2", ("eager", "graph")),
    ("fa3", "eager"): ("fa3", ("eager", "graph")),
    ("fa3", "compile"): ("compile-fa3", ("eager", "graph")),
    ("flashinfer", "eager"): ("flashinfer", ("eager", "graph")),
    ("flashinfer", "compile"): ("compile-flashinfer", ("eager", "graph")),
    ("native", "eager"): ("plain-native", ("eager", "graph")),
    ("native", "compile"): ("compile-native", ("eager", "graph")),
}
ATTENTIONS = tuple(dict.fromkeys(attention for attention, _ in GROUPS))
COMPILED = tuple(dict.fromkeys(compiled for _, compiled in GROUPS))

# Appendix C of the study: these ended in errors of CUDA's caching allocator there, and have no figure.
CRASHED_IN_THE_PAPER = {
    ("sdpa", "compile", "eager"), ("sdpa", "compile", "graph"), ("fa2", "eager", "graph"), ("fa2", "compile", "eager"),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The checked flags of one run. `flags` are those of every process."""

    groups: list[tuple[str, str]]
    modes: list[str]
    flags: list[str]
    limit_s: float


def run_layer(backend: str, modes: Sequence[str], plan: Plan) -> tuple[Document | None, str]:
    """One process of bench.layer. Returns its document, None where it left none, and how it ended, in words."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.json"
        wanted = ",".join(dict.fromkeys(("sdpa", backend)))
        # The reference is SDPA's eager step in the same process.
        flags = [*plan.flags, f"--backend={wanted}", f"--mode={','.join(dict.fromkeys(('eager', *modes)))}"]
        outcome = run_module("bench.layer", [*flags, f"--json={path}"], plan.limit_s)
        return (document.load(path) if path.exists() else None), f"{outcome.status}: {outcome.reason}"


def cell(attention: str, compiled: str, mode: str, result: Document | None, ended: str) -> Document:
    """One cell of the matrix: its arm of bench.layer's document, or what became of the process."""
    backend = GROUPS[attention, compiled][0]
    arms = result["arms"] if result else []
    found = next((arm for arm in arms if (arm["backend"], arm["mode"]) == (backend, mode)), None)
    entry: Document = found or {
        "backend": backend, "mode": mode, "fusion": None, "status": "error", "reason": ended, "wall_us": None,
        "host_us": None, "device_us": None, "samples_us": [], "kernels": [], "launches": 0, "max_rel_error": None,
    }  # fmt: skip
    crashed = (attention, compiled, mode) in CRASHED_IN_THE_PAPER
    return entry | {"attention": attention, "compiled": compiled, "crashed_in_the_paper": crashed}


def measure(attention: str, compiled: str, plan: Plan) -> tuple[list[Document], Document | None]:
    """The cells of a group; those that fail next to others once more, each alone."""
    backend, modes = GROUPS[attention, compiled]
    modes = [mode for mode in modes if mode in plan.modes]
    first, ended = run_layer(backend, modes, plan)
    cells = []
    for mode in modes:
        entry = cell(attention, compiled, mode, first, ended)
        if entry["status"] == "error" and len(modes) > 1:
            alone, how = run_layer(backend, [mode], plan)
            entry = cell(attention, compiled, mode, alone, how)
            first = first or alone
        cells.append(entry)
    return cells, first


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
    """Every group, saved after each. Ctrl-C keeps the cells that are done."""
    cells: list[Document] = []
    first: Document | None = None
    try:
        with progress("processes", len(plan.groups)) as advance:
            for attention, compiled in plan.groups:
                begin = time.monotonic()
                done, result = measure(attention, compiled, plan)
                cells, first = cells + done, first or result
                words = "; ".join(stack_tables.words(entry) for entry in done)
                say(f"{attention}, {compiled}: {words} ({time.monotonic() - begin:.0f} s)")
                save(make_document(plan, cells, first, interrupted=True))
                advance()
    except KeyboardInterrupt:
        if not cells:
            raise
        return make_document(plan, cells, first, interrupted=True)
    return make_document(plan, cells, first, interrupted=False)


def show(result: Document, console: Console) -> None:
    """The heading and the matrix."""
    console.print(Text("\n".join(stack_tables.heading(result))))
    stack_tables.print_document(result, console)


def command(
    attention: Annotated[
        str, typer.Option("--attention", help=f"comma-separated: {', '.join(ATTENTIONS)}; all")
    ] = "all",
    compiled: Annotated[str, typer.Option("--compiled", help=f"comma-separated: {', '.join(COMPILED)}; all")] = "all",
    mode: Annotated[str, typer.Option("--mode", help="comma-separated: eager (no graph), graph; all")] = "all",
    model: Annotated[str, typer.Option("--model", help=", ".join(pk.models.names()))] = "qwen2.5-7b",
    ctx: Annotated[int, typer.Option("--ctx", help="slots of the cache that a step attends to")] = 2048,
    batch: cli.BatchFlag = 1,
    dtype: cli.DtypeFlag = "bf16",
    device: cli.DeviceFlag = "auto",
    l2: cli.L2Flag = "cold",
    warmup: cli.WarmupFlag = 5,
    steps: cli.StepsFlag = 30,
    limit_s: Annotated[float, typer.Option("--limit-s", help="seconds a process may take")] = 300.0,
    threads: cli.ThreadsFlag = 0,
    spec_gbs: cli.SpecFlag = 0.0,
    seed: cli.SeedFlag = 0,
    json: cli.JsonFlag = "",
    csv: cli.CsvFlag = "",
    md: cli.MdFlag = "",
    plot: Annotated[str, typer.Option("--plot", help="draw the matrix (.png, .svg or .pdf)")] = "",
) -> int:
    """One decode layer: attention x compiled x captured."""
    outputs = cli.Outputs(json, csv, md, plot)
    attentions = cli.choices("--attention", attention, ATTENTIONS)
    kinds = cli.choices("--compiled", compiled, COMPILED)
    target = cli.device(device)
    spec = cli.model(model, "")
    cli.number("--ctx", ctx, 1, spec.max_position)
    cli.number("--batch", batch, 1, 8)
    cli.choice("--dtype", dtype, list(cli.DTYPES))
    cli.choice("--l2", l2, ("cold", "warm"))
    cli.number("--warmup", warmup, 0, 10_000)
    cli.number("--steps", steps, 2, 100_000)
    cli.spec_bandwidth(spec_gbs, target)
    cli.seconds("--limit-s", limit_s)
    flags = [
        f"--model={model}", f"--ctx={ctx}", f"--batch={batch}", f"--dtype={dtype}", f"--device={target.type}",
        f"--l2={l2}", f"--warmup={warmup}", f"--steps={steps}", f"--threads={threads}", f"--spec-gbs={spec_gbs}",
        f"--seed={seed}", "--fusion=block",
    ]  # fmt: skip
    groups = [group for group in GROUPS if group[0] in attentions and group[1] in kinds]
    plan = Plan(groups, cli.choices("--mode", mode, ("eager", "graph")), flags, limit_s)
    if not groups:
        raise flag_error("--compiled", compiled, f"eager or compile for --attention={attention}")

    def save(result: Document) -> None:
        if path := outputs.paths.get("--json"):
            document.write_json(path, result)

    result = run(plan, save, lambda text: print(text, flush=True))
    writers = {"--md": stack_tables.write_markdown, "--plot": stack_tables.write_picture}
    return close(result, outputs, show, writers=writers)


if __name__ == "__main__":
    sys.exit(cli.run("bench.stack", command))
