"""The cells of one machine, one after the other. Several processes can share a folder: each cell is measured by one."""

import time
from collections.abc import Callable
from contextlib import closing

from bench.core import claims, document
from bench.fleet.cells import Cell, Measurer, Plan, duration, finished, line, run_cell, status_of


class Count:
    """How many cells have each status."""

    def __init__(self) -> None:
        self.by_status: dict[str, int] = {}

    def add(self, status: str) -> None:
        """One cell more."""
        self.by_status[status] = self.by_status.get(status, 0) + 1

    @property
    def cells(self) -> int:
        """All of them."""
        return sum(self.by_status.values())


def split_finished(plan: Plan, count: Count, say: Callable[[str], None]) -> list[Cell]:
    """The cells that are left to do; those that are finished are counted, and said."""
    todo = [cell for cell in plan.cells if not finished(plan, cell)]
    for cell in plan.cells:
        if cell not in todo:
            claims.tidy(plan.out, cell.name)
            count.add(status_of(document.load(plan.path(cell)))[0])
    if len(todo) < len(plan.cells):
        say(f"{len(plan.cells) - len(todo)} of {len(plan.cells)} cells were finished before")
    return todo


def run(plan: Plan, say: Callable[[str], None] = print) -> tuple[dict[str, int], str]:
    """Every cell that is not finished. Returns how many cells have each status, those of earlier runs and of other
    processes included, and why there are fewer than the plan has: `interrupted` after Ctrl-C, which ends the cell that
    runs; else nothing."""
    count = Count()
    todo = {cell.name: cell for cell in split_finished(plan, count, say)}
    begin, number, measured, name = time.monotonic(), 0, 0, next(iter(todo), "")
    measurer = Measurer(plan.device, plan.controls)
    shared = claims.parts(plan.out, todo, lambda name: finished(plan, todo[name]))
    try:
        with closing(shared):
            for number, (name, own) in enumerate(shared, 1):
                cell = todo[name]
                if own:
                    run_cell(plan, cell, measurer)
                    measured += 1
                result = document.load(plan.path(cell))
                count.add(status_of(result)[0])
                each, left = (time.monotonic() - begin) / max(measured, 1), len(todo) - number
                words = f", about {duration(each * left)} left" if left and measured else ""
                whose = "" if own else "measured by another process: "
                say(f"[{number}/{len(todo)}{words}] {name}: {whose}{line(result)}")
    except KeyboardInterrupt:
        if not count.cells:
            raise
        say(f"INTERRUPTED in {name}: {count.cells} of {len(plan.cells)} cells are finished and saved")
        return count.by_status, "interrupted"
    finally:
        measurer.end()
    return count.by_status, ""
