"""--keep: documents of finished processes stay in a folder, and a run that was killed goes on with them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.core import document, environment
from bench.core.document import Document
from bench.core.errors import UsageError
from bench.core.paths import user_path

KeepFlag = Annotated[
    str,
    typer.Option(
        "--keep", help="a folder for the processes' documents; those of the same flags, build and machine are taken"
    ),
]


def flags_of_any_device(flags: Sequence[str], device: str) -> list[str]:
    """The flags by which a process is known: on cuda:0 and cuda:1 it measures the same. device: cuda or cpu."""
    return [f"--device={device}" if flag.startswith("--device=") else flag for flag in flags]


_ALIKE = (
    "commit", "commit_dirty", "changed_since_build", "pykernels.source_hashes", "pykernels.plans.sha256",
    "torch.version", "gpu.name", "cpu.model", "cpu.cpus_usable",
)  # fmt: skip
"""Of the environment, what a kept process and those of this run must share. Two machines alike are one."""


def machine_difference(a: Document, b: Document) -> str | None:
    """What of _ALIKE two environments differ in, in words; None where it is nothing."""

    def value(environment: Document, key: str) -> Any:
        node: Any = environment
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    return (
        ", ".join(f"{key} {value(a, key)} and here {value(b, key)}" for key in _ALIKE if value(a, key) != value(b, key))
        or None
    )


def flag_difference(a: Sequence[str], b: Sequence[str]) -> str | None:
    """What two command lines differ in, in words; None where it is nothing."""
    if list(a) == list(b):
        return None
    only_a, only_b = [flag for flag in a if flag not in b], [flag for flag in b if flag not in a]
    return f"flags {' '.join(only_a) or '(fewer)'} and here {' '.join(only_b) or '(fewer)'}"


@dataclass(frozen=True)
class Kept:
    """The folder, with documents of one kind in it; without a folder nothing is kept."""

    folder: Path | None = None
    kind: str = ""
    _said: set[str] = field(default_factory=set, repr=False, compare=False)

    def load(self, name: str, flags: list[str]) -> Document | None:
        """The document of that name, where it is of a process of these flags that came to its end, by the build and on
        a machine like those that are here. Of another one stderr has a line that says why it is not taken."""
        path = self.folder and self.folder / f"{name}.json"
        if path is None or not path.exists():
            return None
        try:
            result = document.load(path, self.kind)
        except UsageError as error:
            self._say(str(error))
            return None
        if result.get("interrupted"):
            return None  # the run that left it was, too
        why = flag_difference(result.get("session_flags", []), flags)
        why = why or machine_difference(result["environment"], environment.collect())
        if why:
            self._say(f"{path}: is of another run: {why}")
        return None if why else result

    def _say(self, why: str) -> None:
        if why not in self._said:
            self._said.add(why)
            print(f"--keep: not taken, and measured anew: {why}", file=sys.stderr)

    def save(self, name: str, result: Document, flags: list[str]) -> None:
        """Keep the document of a process of these flags. Where the disk is full stderr has a line: it is in the run's
        own document all the same."""
        if self.folder:
            path = self.folder / f"{name}.json"
            try:
                document.write_json(path, result | {"session_flags": flags})
            except OSError as error:
                print(f"--keep: {path}: cannot be written: {error.strerror}", file=sys.stderr)


def open_folder(text: str, kind: str) -> Kept:
    """What --keep names, made where it is not there, for documents of that kind. Raises UsageError where it cannot be
    written to."""
    if not text:
        return Kept()
    folder = user_path("--keep", text)
    document.make_folder(folder, "--keep", text)
    document.check_writable(folder / "session.json", "--keep")
    return Kept(folder, kind)
