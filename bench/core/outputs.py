"""The files that a run writes: --json, --csv, --md, --plot and --trace."""

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.core import document
from bench.core.errors import flag_error
from bench.core.files import write_all
from bench.core.paths import user_path


class Outputs:
    """The files a run is asked to write: checked before it, written after it."""

    def __init__(self, json: str, csv: str = "", md: str = "", plot: str = "", trace: str = "") -> None:
        paths = {"--json": json, "--csv": csv, "--md": md, "--plot": plot, "--trace": trace}
        self.paths = {flag: user_path(flag, path) for flag, path in paths.items() if path}
        writers: dict[Path, str] = {}
        for flag, path in self.paths.items():
            document.check_writable(path, flag)
            if (other := writers.setdefault(path.resolve(), flag)) != flag:
                raise flag_error(flag, path, f"another file than that of {other}")
        if plot and Path(plot).suffix not in (".png", ".svg", ".pdf"):
            raise flag_error("--plot", plot, "a file that ends in .png, .svg or .pdf")

    def write(
        self,
        result: document.Document,
        write_trace: Callable[[Path], None] | None = None,
        writers: Mapping[str, Callable[[Path, document.Document], Any]] | None = None,
    ) -> None:
        """Write them all; --trace by `write_trace`, or, where nothing was traced, a line that it is missing. `writers`
        write a flag's file instead of what bench.layer writes there."""
        from bench.core import plots, tables  # matplotlib takes a second: only where a file is written

        writers = {
            "--json": document.write_json,
            "--csv": document.write_csv,
            "--md": tables.write_markdown,
            "--plot": plots.write_waterfall,
            **(writers or {}),
        }
        if write_trace:
            writers["--trace"] = lambda path, _: write_trace(path)
        for flag, path in self.paths.items():
            if flag not in writers:
                print(f"{flag}={path}: not written: no arm was traced", file=sys.stderr)
        made = {flag: path for flag, path in self.paths.items() if flag in writers}
        write_all((path, functools.partial(writers[flag], path, result)) for flag, path in made.items())

    def keep(self, result: document.Document) -> None:
        """Write --json alone, of a run that goes on: what is left of it should it be killed."""
        if path := self.paths.get("--json"):
            with contextlib.suppress(OSError):  # the end of the run says what is wrong with the file
                document.write_json(path, result)
