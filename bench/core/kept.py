"""--keep: documents of finished processes stay in a folder, and a run that was killed goes on with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from bench.core import document
from bench.core.document import Document
from bench.core.errors import UsageError
from bench.core.paths import user_path

KeepFlag = Annotated[
    str, typer.Option("--keep", help="a folder for the processes' documents; those there of these flags are taken")
]


def flags_of_any_device(flags: Sequence[str], device: str) -> list[str]:
    """The flags by which a process is known: on cuda:0 and cuda:1 it measures the same. device: cuda or cpu."""
    return [f"--device={device}" if flag.startswith("--device=") else flag for flag in flags]


@dataclass(frozen=True)
class Kept:
    """The folder; without one nothing is kept."""

    folder: Path | None = None

    def load(self, name: str, flags: list[str]) -> Document | None:
        """The document of that name, where it is of a process of these flags that came to its end."""
        path = self.folder and self.folder / f"{name}.json"
        if path is None or not path.exists():
            return None
        try:
            result = document.load(path)
        except UsageError:
            return None
        return result if result.get("session_flags") == flags and not result["interrupted"] else None

    def save(self, name: str, result: Document, flags: list[str]) -> None:
        """Keep the document of a process of these flags."""
        if self.folder:
            document.write_json(self.folder / f"{name}.json", result | {"session_flags": flags})


def open_folder(text: str) -> Kept:
    """What --keep names, made where it is not there. Raises UsageError where it cannot be written to."""
    if not text:
        return Kept()
    folder = user_path("--keep", text)
    document.make_folder(folder, "--keep", text)
    document.check_writable(folder / "session.json", "--keep")
    return Kept(folder)
