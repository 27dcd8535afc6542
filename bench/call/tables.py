"""What bench.call found: bench.layer's tables, and a call's kernels."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from bench.core import tables
from bench.core.document import Document, write_atomically
from bench.core.tables import Grid, markdown_table, microseconds, percent


def kernel_grid(rows: Sequence[Document]) -> Grid:
    """A row a kernel, the one of most time first."""
    columns = [("kernel", False), ("launches", True), ("device us", True), ("share", True), ("host us", True)]
    return columns, [
        [tables.kernel_words(row["kernel"]), str(row["launches"]), microseconds(row["device_us"]),
         percent(row["share"]), microseconds(row["host_us"])]
        for row in rows
    ]  # fmt: skip


def remarks(document: Document) -> list[str]:
    """What was compared with what, and what the numbers are of."""
    lines = [f"floor: {document['bytes']['call'] / 1e6:.4g} MB, {document['bytes']['counted']}"]
    for arm in document["arms"]:
        if word := arm.get("against_eager"):
            lines.append(f"{arm['mode']} against an eager call, bit by bit: {word}")
    return lines + document["notes"]


def print_document(document: Document, console: Console) -> None:
    """bench.layer's tables, the kernels, remarks."""
    tables.print_document(document, console)
    if document["kernels"]:
        console.print()
        console.print(tables.make_table("Kernels of a call", kernel_grid(document["kernels"]), console.width))
    for line in remarks(document):
        console.print(Text(line))


def write_markdown(path: Path, document: Document) -> None:
    """The same as Markdown."""
    tables.write_markdown(path, document)
    lines = ["", *markdown_table("Kernels of a call", kernel_grid(document["kernels"]))] if document["kernels"] else []
    lines += [f"- {line}" for line in remarks(document)]
    write_atomically(path, path.read_bytes() + ("\n".join(lines) + "\n").encode())
