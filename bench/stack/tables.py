"""What bench.stack found, as a table and a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from bench.core.document import Document, write_atomically, write_figure
from bench.core.errors import UsageError
from bench.core.tables import Grid, commit_lines, fit, make_table, markdown_table, microseconds, refusals

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.figure import Figure

_COLOURS = {"eager": "#0072b2", "native": "#cc79a7", "graph": "#009e73"}
_DRIVEN = {"eager": "no", "native": "no, C++ loop", "graph": "yes"}


def heading(document: Document) -> list[str]:
    """What was run, and where."""
    machine = document["environment"]
    on_cuda = document["device"] == "cuda"
    device = machine["gpu"]["name"] if on_cuda and machine["gpu"] else machine["cpu"]["model"]
    model = document["model"]["name"] if document["model"] else "no layer"
    lines = [
        f"{document['title']}: {model}, ctx {document['ctx']}, batch {document['batch']}, {document['dtype']}",
        f"{document['device']}: {device}; torch {machine['torch']['version']}; {document['created']}",
    ]
    lines += commit_lines(document)
    if document["interrupted"]:
        lines.append("INTERRUPTED: what follows was measured up to then")
    return lines


def words(entry: Document) -> str:
    """A cell in a few words."""
    name = {"eager": "no graph", "native": "C++ loop", "graph": "graph"}[entry["mode"]]
    if not entry["wall_us"]:
        return f"{name} {entry['status']}"
    return f"{name} {microseconds(entry['wall_us']['p50'])} us"


def grid(document: Document) -> Grid:
    """A row a cell."""
    columns = [("attention", False), ("compiled", False), ("graph", False), ("wall us", True), ("p20 - p80", True),
               ("host us", True), ("device us", True), ("launches", True), ("sdpa eager / this", True), ("error", True),
               ("in the paper", False)]  # fmt: skip
    rows = []
    for entry in document["arms"]:
        wall, host, device = entry["wall_us"], entry["host_us"], entry.get("device_us")
        ratio = entry.get("ratio_to_sdpa")
        error = entry["max_rel_error"]
        rows.append([
            entry["attention"], entry["compiled"], _DRIVEN[entry["mode"]],
            microseconds(wall["p50"]) if wall else entry["status"],
            f"{microseconds(wall['p20'])} - {microseconds(wall['p80'])}" if wall else "-",
            microseconds(host["p50"]) if host else "-", microseconds(device["p50"]) if device else "-",
            str(entry["launches"]) if wall else "-", f"{ratio['p50']:.2f}" if ratio else "-",
            "-" if error is None else f"{error:.1e}", "crashed" if entry["crashed_in_the_paper"] else "-",
        ])  # fmt: skip
    return columns, rows


def print_document(document: Document, console: Console) -> None:
    """The matrix, and why cells are empty."""
    shown = fit(grid(document), console.width, ["p20 - p80", "error", "launches", "host us"])
    console.print(make_table("Cells, each beside default SDPA in its own process", shown, console.width))
    for line in refusals(document):
        console.print(Text(line))


def write_markdown(path: Path, document: Document) -> None:
    """The same as Markdown."""
    lines = [f"## {document['title']}", "", *(f"- {line}" for line in heading(document)), ""]
    lines += markdown_table("Cells, each beside default SDPA in its own process", grid(document))
    lines += [*(f"- {line}" for line in refusals(document)), "", f"Reproduce: `{document['command']}`"]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def write_picture(path: Path, document: Document) -> None:
    """draw(), to a file. Format by suffix."""
    if not any(entry["wall_us"] for entry in document["arms"]):
        raise UsageError(f"--plot={path}: must follow a run that measured something, and this one did not")
    write_figure(path, draw(document))


def draw(document: Document) -> "Figure":
    """Of a document that measured something: a bar a cell, those of an attention together. Returns the figure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = [entry for entry in document["arms"] if entry["wall_us"]]
    figure, axes = plt.subplots(figsize=(8.5, 0.9 + 0.28 * len(measured)), layout="constrained")
    labels = []
    for row, entry in enumerate(measured):
        wall = entry["wall_us"]
        spread = [[wall["p50"] - wall["p20"]], [wall["p80"] - wall["p50"]]]
        axes.barh(row, wall["p50"], color=_COLOURS[entry["mode"]], height=0.7, xerr=spread)
        axes.annotate(microseconds(wall["p50"]), (wall["p80"], row), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=7)  # fmt: skip
        paper = " *" if entry["crashed_in_the_paper"] else ""
        captured = {"eager": "", "native": ", C++ loop", "graph": ", graph"}[entry["mode"]]
        labels.append(f"{entry['attention']}, {entry['compiled']}{captured}{paper}")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("us a layer (p20 to p80); * crashed in the paper", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("\n".join(heading(document)[:2]), fontsize=8, loc="left")
    return figure
