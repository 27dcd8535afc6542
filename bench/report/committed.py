"""The documents under bench/results, and the Markdown tables that pages of docs make of them (bench.report.pages)."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.core import document
from bench.core.document import Document

MODELS = {"qwen2.5-7b": "Qwen2.5-7B", "llama-3.1-8b": "Llama-3.1-8B", "mistral-7b-v0.3": "Mistral-7B-v0.3"}

Lines = list[str]
Arm = tuple[str, str | None, str]
"""Backend, fusion and mode."""


class Documents:
    """The committed documents, each read once, by name without suffix: h200-study/step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, Document] = {}

    def __contains__(self, name: object) -> bool:
        return any((self.folder / f"{name}.json{packed}").exists() for packed in ("", ".gz"))

    def __getitem__(self, name: str) -> Document:
        if name not in self._read:
            packed = self.folder / f"{name}.json.gz"
            self._read[name] = document.load(packed if packed.exists() else self.folder / f"{name}.json")
        return self._read[name]


def grid(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> Lines:
    """A Markdown table, its columns from `numbers_from` on aligned right."""
    rules = ["---" if column < numbers_from else "---:" for column in range(len(headings))]
    return ["| " + " | ".join(headings) + " |", "|" + "|".join(rules) + "|",
            *("| " + " | ".join(row) + " |" for row in rows)]  # fmt: skip
