"""The drivers by name, what each answers in one line, and how long it takes. Nothing is imported to list them."""

import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass

ABOUT = """launchtax  the project: where the time of one LLM decode layer goes
pykernels  its Python package of C++ and CUDA kernels, which other code can import
bench      its drivers: each is one benchmark, `python -m bench.NAME`"""


@dataclass(frozen=True)
class Driver:
    """One driver, `python -m bench.NAME`. `takes` is a duration that was measured: of which command, on what."""

    name: str
    answers: str
    takes: str

    @property
    def module(self) -> str:
        """What `python -m` takes."""
        return f"bench.{self.name}"


_BUSY = "two CPU cores of a busy machine"

_DRIVERS = (
    Driver(
        "layer",
        "the main job: where a decode layer's time goes, by backend and mode",
        f"5 min with --model=tiny --steps=3 on {_BUSY}, nearly all of it torch.compile; 1 min of --backend=native,sdpa",
    ),
    Driver(
        "op",
        "one op over the shapes of the models, against torch's own",
        f"3 min of --op=gemv --model=tiny on {_BUSY}",
    ),
    Driver(
        "step",
        "a whole decode step of a model, by the study's protocol",
        f"40 s on an H200; 1 min of two arms with --model=tiny on {_BUSY}",
    ),
    Driver(
        "rate",
        "decode steps due at a rate: latency, its tail, and joules a step",
        "8 min on an H200, predicted; said before it begins",
    ),
    Driver(
        "attention",
        "attention alone, in every backend, over contexts and batches",
        f"155 s a session, 470 s in all, on an H200; 33 s for one cell of two backends on {_BUSY}",
    ),
    Driver(
        "call",
        "the ladder of a callable of your own: a model's step, a block, one kernel",
        f"70 s of examples/call_block.py:block with --steps=4 on {_BUSY}",
    ),
    Driver(
        "launch",
        "what it costs to launch a kernel, by every launcher there is",
        f"1 min of --device=cpu on {_BUSY}, nearly all of it torch.compile",
    ),
    Driver("stack", "one layer: whose attention, compiled or not, captured or not", "199 s on an H200"),
    Driver(
        "int4",
        "4-bit kernels: how fast, what binds them, are they right",
        f"17 s a model with five kernels on an H100; 2 min of --model=tiny --kernel=native on {_BUSY}",
    ),
    Driver(
        "inside",
        "inside each kernel, by in-kernel timestamps (a GPU, a build with them)",
        "as long as bench.layer of the same model and one backend",
    ),
    Driver(
        "sweep",
        "bench.step over models x contexts x batches, one fresh process a cell",
        "20 s a cell on an H200; what is left is said after every cell",
    ),
    Driver(
        "tune",
        "the fastest launch plan of each op here, and a file of them that ops read",
        f"16 s with --model=tiny on {_BUSY}",
    ),
    Driver("ab", "two arms of a step over fresh sessions, and a verdict", "18 s a session of seven arms on an H200"),
    Driver("compare", "two result documents arm by arm: which became slower", "3 s"),
    Driver("report", "tables and pictures of a folder of result documents", f"1 min for six documents on {_BUSY}"),
    Driver("doctor", "what this machine has, what runs on it, and what to install for the rest", "10 s"),
)

DRIVERS = {driver.name: driver for driver in _DRIVERS}
"""By name, in the order in which they are listed."""


def takes(name: str) -> str:
    """A driver's expected duration."""
    return DRIVERS[name].takes


def listing(prefix: str = "python -m bench.") -> str:
    """One line a driver."""
    width = max(map(len, DRIVERS)) + len(prefix) + 2
    return "\n".join(f"{prefix + driver.name:<{width}}{driver.answers}" for driver in _DRIVERS)


def main(arguments: Sequence[str], prefix: str = "python -m bench.") -> int:
    """List the drivers where no argument names one, else run the one that the first argument names on the others.

    Returns an exit status: 2 for a name that no driver has. A driver ends the process with its own.
    """
    if not arguments or arguments[0] in ("--help", "--list", "-h"):
        print(f"{ABOUT}\n\n{listing(prefix)}\n\n{prefix}NAME --help names the flags of one, and how long it takes.")
        return 0
    name = arguments[0].removeprefix("bench.")
    if name not in DRIVERS:
        print(f"bench: {arguments[0]}: must be one of {', '.join(DRIVERS)}", file=sys.stderr)
        return 2
    sys.argv = [DRIVERS[name].module, *arguments[1:]]
    runpy.run_module(DRIVERS[name].module, run_name="__main__", alter_sys=True)
    return 0
