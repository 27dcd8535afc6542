"""The progress bar: on a terminal only, so that a log stays clean."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
