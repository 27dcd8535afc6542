"""What it costs to launch a kernel, by every launcher there is.

python -m bench.launch --json=launch.json --plot=launch.png
python -m bench.launch --launcher=cuLaunchKernelEx,pybind11,triton --arguments=8
python -m bench.launch --device=cpu
python -m bench.launch --what=graph,pdl      # what a graph costs, what PDL launches gain: a GPU

An empty kernel of 0, 1, 8 and 32 pointers: microseconds of the host a launch, with the stream held so that the device
takes no part in it; from one launch to the next back to back; and what the device leaves between two that lie ready.
"""

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
import typer

from bench.core import cli
from bench.core.document import Document
from bench.core.errors import flag_error
from bench.core.flags import make_command
from bench.core.library import only_found
from bench.core.listing import NOT_LOADED, item
from bench.core.output_flags import TableFlags
from bench.core.outputs import Outputs
from bench.core.progress import progress
from bench.core.run import Machine, close
from bench.core.stop_rule import StopFlags
from bench.drivers import takes
from bench.launch import graph_costs, pdl, tables
from bench.launch.launchers import ARGUMENTS, Launcher, registry
from bench.launch.measure import measure
from pykernels.models import ModelSpec

_PROGRAM = "bench.launch"
WHAT = ("launchers", "graph", "pdl")


@dataclass(kw_only=True)
class Settings(StopFlags, TableFlags):
    """The flags of one run."""

    what: Annotated[str, typer.Option("--what", help=f"comma-separated: {', '.join(WHAT)}; all")] = "launchers"
    model: cli.ModelFlag = "qwen2.5-7b"
    launcher: Annotated[str, typer.Option("--launcher", help="comma-separated; all")] = "all"
    arguments: Annotated[
        str, typer.Option("--arguments", help="pointers that the kernel takes, comma-separated of 0, 1, 8, 32; all")
    ] = "all"
    launches: Annotated[
        int,
        typer.Option(
            "--launches",
            help="launches that the host's clock is read around",
            callback=cli.checked(cli.number, "--launches", 100, 1_000_000),
        ),
    ] = 10_000
    device: cli.DeviceFlag = "auto"
    plot: cli.PlotFlag = ""

    @cached_property
    def target(self) -> torch.device:
        """--device."""
        return cli.device(self.device)

    @cached_property
    def parts(self) -> list[str]:
        """--what. Raises UsageError where it needs a GPU that is not there."""
        parts = cli.choices("--what", self.what, WHAT)
        if self.target.type != "cuda" and parts != ["launchers"]:
            raise flag_error("--what", self.what, "launchers here: graph and pdl need a CUDA device")
        return parts

    @cached_property
    def spec(self) -> ModelSpec:
        """--model, whose layer and step are captured."""
        return cli.model(self.model, "")

    @cached_property
    def launchers(self) -> list[type[Launcher]]:
        """--launcher. Raises UsageError for a name that none has."""
        known = registry()
        return [known[name] for name in cli.choices("--launcher", self.launcher, list(known))]

    @cached_property
    def counts(self) -> list[int]:
        """--arguments. Raises UsageError where no launcher has a kernel of so many."""
        counts = [int(n) for n in cli.choices("--arguments", self.arguments, [str(n) for n in ARGUMENTS])]
        allowed = sorted({count for launcher in self.launchers for count in launcher.counts(self.target)})
        if not set(allowed) & set(counts):
            words = f"of what {self.launcher} takes: {', '.join(map(str, allowed))}"
            raise flag_error("--arguments", self.arguments, words)
        return counts


def run(settings: Settings) -> Document:
    """Measure. Ctrl-C keeps what was finished."""
    machine = Machine(settings.target)
    graphs: list[Document] = []
    edges: Document = {"pdl": [], "pdl_reason": None}
    entries: list[Document] = []
    finished = True
    if "graph" in settings.parts:  # first: what is traced later leaves CUPTI in the process, which stays slower
        graphs = graph_costs.measure(settings.spec, settings.target)
    if "launchers" in settings.parts:
        with progress("launchers", len(settings.launchers)) as advance:
            seen: set[str] = set()

            def done(entry: Document) -> None:
                if entry["launcher"] not in seen:
                    seen.add(entry["launcher"])
                    advance()

            entries, finished = measure(
                settings.launchers, settings.counts, settings.target, settings.launches, settings.stop_rule(), done
            )
    if not finished and not (entries or graphs):
        raise KeyboardInterrupt
    if finished and "pdl" in settings.parts:
        edges["pdl"], edges["pdl_reason"] = pdl.measure(settings.spec, settings.target)
    head = cli.head(
        _PROGRAM, "launch", title="what it costs to launch an empty kernel", interrupted=not finished,
        environment=machine.document(),
    )  # fmt: skip
    return head | {
        "device": settings.target.type, "launches": settings.launches, "arguments": settings.counts,
        "launchers": entries, "graphs": graphs, "graph_verdict": graph_costs.verdict(graphs) if graphs else None,
        **edges, "model": settings.spec.name,
    }  # fmt: skip


def print_list() -> None:
    """What --list prints: every launcher, and what it needs here."""
    device = cli.device("auto")
    with only_found():
        for name, launcher in registry().items():
            why = launcher.reason(device)
            hint = f" ({launcher.install_hint})" if why and launcher.install_hint else ""
            print(item(name, launcher.description, 26))
            print(item("", f"unsupported: {why}{hint}" if why else "runs here", 26))
    print(NOT_LOADED)


def main(settings: Settings) -> int:
    """What it costs to launch an empty kernel, by every launcher there is."""
    if settings.list_:
        print_list()
        return 0
    outputs = Outputs(settings.json, md=settings.md, plot=settings.plot)
    _ = (
        settings.parts,
        settings.spec,
        settings.launchers,
        settings.counts,
    )  # what is wrong with them is said before anything runs
    return close(
        run(settings), outputs, tables.print_document,
        writers={"--md": tables.write_markdown, "--plot": tables.write_plot},
    )  # fmt: skip


command = make_command(main, Settings, takes("launch"))


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
