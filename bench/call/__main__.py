"""The ladder of anybody's code: a model's step, a block, one kernel, a Hugging Face module.

python -m bench.call examples/call_block.py:block
python -m bench.call my_model.py:step --l2=warm --json=step.json --plot=step.png

The function that is named returns (callable, inputs), or (callable, inputs, reference). On a GPU the call is timed
eager, by a C++ loop through the dispatcher where a tape can be recorded, captured and launched again node by node,
replayed as a graph, and traced. On a CPU it is eager and the dispatcher.
"""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from bench.call import tables
from bench.call.arms import CAPTURED, MODES, NO_CAPTURE
from bench.call.report import PROGRAM, run
from bench.call.subject import expected_from, load
from bench.core import cli
from bench.core.document import Document
from bench.core.errors import flag_error
from bench.core.flags import make_command
from bench.core.outputs import Outputs
from bench.core.run import close
from bench.core.stop_rule import StopFlags
from bench.core.trace_file import check_traceable, write_trace
from bench.drivers import takes


@dataclass(kw_only=True)
class Settings(StopFlags):
    """The flags of one run."""

    subject: Annotated[
        str, typer.Argument(metavar="FILE.py:name", help="a function that returns (callable, inputs)")
    ] = ""
    mode: Annotated[str, typer.Option("--mode", help=f"comma-separated: {', '.join(MODES)}; all")] = "all"
    expected: Annotated[
        str, typer.Option("--expected", help="saved outputs (.safetensors, tensors 0, 1, ...) to hold the call to")
    ] = ""
    depth: Annotated[
        int,
        typer.Option(
            "--depth", help="ops in a row whose roundings the comparison allows",
            callback=cli.checked(cli.number, "--depth", 1, 10_000),
        ),
    ] = 4  # fmt: skip
    n_bytes: Annotated[
        int,
        typer.Option(
            "--bytes", help="what a call must move; 0: weights, inputs and results once",
            callback=cli.checked(cli.number, "--bytes", 0, 1 << 50),
        ),
    ] = 0  # fmt: skip
    serialise: Annotated[
        bool, typer.Option("--serialise", help="mode native launches parallel branches one after another")
    ] = False
    device: cli.DeviceFlag = "auto"
    l2: cli.L2Flag = "cold"
    warmup: cli.WarmupFlag = 5
    steps: cli.StepsFlag = 30
    repeats: cli.RepeatsFlag = 0
    threads: cli.ThreadsFlag = 0
    spec_gbs: cli.SpecFlag = 0.0
    json: cli.JsonFlag = ""
    csv: cli.CsvFlag = ""
    md: cli.MdFlag = ""
    plot: cli.PlotFlag = ""
    trace: cli.TraceFlag = ""
    list_: Annotated[bool, typer.Option("--list", help="name the modes that a call has on this machine")] = False

    @property
    def modes(self) -> list[str]:
        """--mode."""
        return cli.modes("--mode", self.mode, MODES)


def print_list() -> None:
    """What --list prints."""
    on_cuda = cli.device("auto").type == "cuda"
    for mode in MODES:
        print(f"{mode:<9} {'runs here' if on_cuda or mode not in CAPTURED else f'unsupported: {NO_CAPTURE}'}")


def main(settings: Settings) -> int:
    """The ladder of a callable of your own."""
    if settings.list_:
        print_list()
        return 0
    s = settings
    outputs, target, modes = Outputs(s.json, s.csv, s.md, s.plot, s.trace), cli.device(s.device), s.modes
    if "eager" not in modes:
        raise flag_error("--mode", s.mode, "with eager: the ladder begins there")
    check_traceable(s.trace, target)
    cli.set_threads(s.threads)
    loaded, reference = load(s.subject, target)
    if s.expected and reference is not None:
        raise flag_error("--expected", s.expected, f"left out: {s.subject} has a reference of its own")
    report = run(
        loaded, reference, f"one call of {s.subject}", target, modes, s.l2, s.steps, s.warmup, s.repeats, s.n_bytes,
        s.depth, s.serialise, partial(expected_from, s.expected) if s.expected else None,
        cli.spec_bandwidth(s.spec_gbs, target), s.stop_rule(),
    )  # fmt: skip
    written: Document = {"writers": {"--md": tables.write_markdown}}
    if report.traces:
        written["write_trace"] = lambda path: write_trace(path, report.arms, report.traces, lambda fusion: [])
    return close(report.document, outputs, tables.print_document, **written)


command = make_command(main, Settings, takes("call"))


if __name__ == "__main__":
    sys.exit(cli.run(PROGRAM, command))
