"""What it costs to launch a kernel, by every launcher there is.

python -m bench.launch --json=launch.json --plot=launch.png
python -m bench.launch --launcher=cuLaunchKernelEx,pybind11,triton --arguments=8
python -m bench.launch --device=cpu

An empty kernel of 0, 1, 8 and 32 pointers: microseconds of the host a launch, with the stream held so that the device
takes no part in it; from one launch to the next back to back; and what the device leaves between two that lie ready.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import torch
import typer

from bench.core import cli
from bench.core.document import Document
from bench.core.errors import flag_error
from bench.core.progress import progress
from bench.core.run import Machine, close
from bench.launch import tables
from bench.launch.launchers import ARGUMENTS, registry
from bench.launch.measure import measure

_PROGRAM = "bench.launch"


@dataclass
class Settings:
    """The checked flags of one run."""

    launchers: list[str]
    arguments: list[int]
    launches: int
    device: torch.device


def run(settings: Settings) -> Document:
    """Measure. Ctrl-C keeps what was finished."""
    machine, launchers = Machine(settings.device), registry()
    with progress("launchers", len(settings.launchers)) as advance:
        seen: set[str] = set()

        def done(entry: Document) -> None:
            if entry["launcher"] not in seen:
                seen.add(entry["launcher"])
                advance()

        entries, finished = measure(
            [launchers[name] for name in settings.launchers], settings.arguments, settings.device, settings.launches,
            done,
        )  # fmt: skip
    if not entries:
        raise KeyboardInterrupt
    head = cli.head(
        _PROGRAM, "launch", title="what it costs to launch an empty kernel", interrupted=not finished,
        environment=machine.document(),
    )  # fmt: skip
    return head | {
        "device": settings.device.type, "launches": settings.launches, "arguments": settings.arguments,
        "launchers": entries,
    }  # fmt: skip


def print_list() -> None:
    """What --list prints: every launcher, and what it needs here."""
    device = cli.device("auto")
    for name, launcher in registry().items():
        why = launcher.reason(device)
        hint = f" ({launcher.install_hint})" if why and launcher.install_hint else ""
        print(f"{name:<25} {launcher.description}")
        print(f"{'':<25} {f'unsupported: {why}{hint}' if why else 'runs here'}")


def command(
    launcher: Annotated[str, typer.Option("--launcher", help="comma-separated; all")] = "all",
    arguments: Annotated[
        str, typer.Option("--arguments", help="pointers that the kernel takes, comma-separated of 0, 1, 8, 32; all")
    ] = "all",
    launches: Annotated[int, typer.Option("--launches", help="launches that the host's clock is read around")] = 10_000,
    device: cli.DeviceFlag = "auto",
    json: cli.JsonFlag = "",
    md: cli.MdFlag = "",
    plot: cli.PlotFlag = "",
    list_: cli.ListFlag = False,
) -> int:
    """What it costs to launch an empty kernel, by every launcher there is."""
    if list_:
        print_list()
        return 0
    outputs = cli.Outputs(json, md=md, plot=plot)
    names = cli.choices("--launcher", launcher, list(registry()))
    counts = [int(count) for count in cli.choices("--arguments", arguments, [str(count) for count in ARGUMENTS])]
    target = cli.device(device)
    known = registry()
    allowed = sorted({count for name in names for count in known[name].counts(target)})
    if not set(allowed) & set(counts):
        raise flag_error("--arguments", arguments, f"of what {launcher} takes: {', '.join(map(str, allowed))}")
    settings = Settings(names, counts, cli.number("--launches", launches, 100, 1_000_000), target)
    return close(
        run(settings), outputs, tables.print_document,
        writers={"--md": tables.write_markdown, "--plot": tables.write_plot},
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
