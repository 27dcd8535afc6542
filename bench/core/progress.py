"""The progress bar: on a terminal only, so that a log stays clean."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Yields what advances the bar by one."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Refreshed by hand: a refreshing thread would take time from what is being measured.
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(description, total=total)
        shown = 0.0

        def advance() -> None:
            nonlocal shown
            bar.advance(task)
            done = bar.tasks[0].percentage
            if done - shown >= 1:
                shown = done
                bar.refresh()

        yield advance


def about(seconds: float) -> str:
    """A duration for people: `34 s`, `3 min`, `2.5 h`; never 0."""
    if seconds < 100:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def seconds_since_start() -> float:
    """How long this process has lived: once its flags are checked, what a driver needs to begin."""
    since_boot_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot_ticks / os.sysconf("SC_CLK_TCK")
