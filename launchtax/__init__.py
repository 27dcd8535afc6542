"""The command `launchtax`: `launchtax layer ...` is `python -m bench.layer ...`, wherever it is typed.

An installed launchtax keeps its drivers, the package `bench` of a checkout, inside this package. The command puts the
folder that holds them first on `sys.path`, so that no other `bench` on the path or in the current folder takes their
place, neither here nor in the processes that a driver starts, which are given the same path.

This folder is on the path then: nothing but `bench` may be imported from it.
"""

import sys
from pathlib import Path


def drivers_folder() -> Path:
    """The folder with the package `bench` of this launchtax: this one where it is installed, else the checkout's."""
    here = Path(__file__).resolve().parent
    return here if (here / "bench").is_dir() else here.parent


def main() -> int:
    """The command. Returns its exit status: of a driver, or 2 for a name that no driver has."""
    folder = str(drivers_folder())
    sys.path[:] = [folder, *(path for path in sys.path if path != folder)]
    from bench.core import early_interrupt

    early_interrupt.guard(" ".join(["launchtax", *sys.argv[1:2]]))
    from bench.drivers import main as run

    return run(sys.argv[1:], prefix="launchtax ")
