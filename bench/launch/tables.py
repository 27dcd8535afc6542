"""What bench.launch found, as tables, Markdown and a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from bench.core.document import Document, write_atomically, write_figure
from bench.core.errors import UsageError
from bench.core.tables import Grid, fit, kernel_words, make_table, markdown_table, microseconds

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.figure import Figure

_EXPENDABLE = ("host p20 - p80", "update", "first", "KiB")


def heading(document: Document) -> list[str]:
    """What was run, and where."""
    machine = document["environment"]
    on_cuda = document["device"] == "cuda"
    device = machine["gpu"]["name"] if on_cuda and machine["gpu"] else machine["cpu"]["model"]
    lines = [
        document["title"],
        f"{document['device']}: {device}; torch {machine['torch']['version']}; {document['created']}",
    ]
    if document.get("launches"):
        held = "the stream held, " if on_cuda else ""
        lines.append(f"host us a launch: {held}{document['launches']:,} launches one by one")
    if document["interrupted"]:
        lines.append("INTERRUPTED: what follows was measured up to then")
    return lines


def launcher_grid(document: Document) -> Grid:
    """A row a launcher and count of arguments."""
    columns = [("launcher", False), ("arguments", True), ("host us", True), ("host p20 - p80", True), ("p99", True),
               ("back to back us", True)]  # fmt: skip
    with_gap = document["device"] == "cuda"
    if with_gap:
        columns.append(("device gap us", True))
    rows = []
    for entry in document["launchers"]:
        host, wall, gap = entry["host_us"], entry["back_to_back_us"], entry["device_gap_us"]
        if entry["status"] != "ok":
            continue
        rows.append([
            entry["launcher"], str(entry["arguments"]), microseconds(host["p50"]),
            f"{microseconds(host['p20'])} - {microseconds(host['p80'])}", microseconds(host["p99"]),
            microseconds(wall["p50"]),
        ])  # fmt: skip
        if with_gap:
            rows[-1].append(microseconds(gap["p50"]) if gap else "-")
    return columns, rows


def remarks(document: Document) -> list[str]:
    """What the launchers are, why some are not there, and how to have them."""
    lines, described = [], set()
    for entry in document["launchers"]:
        if entry["launcher"] not in described and entry["status"] == "ok":
            lines.append(f"{entry['launcher']}: {entry['description']}")
            described.add(entry["launcher"])
    refused: dict[str, list[str]] = {}
    for entry in document["launchers"]:
        if entry["status"] != "ok":
            hint = entry["install_hint"] if document["device"] == "cuda" else None
            words = f"{entry['reason']} ({hint})" if hint else entry["reason"]
            refused.setdefault(f"{entry['status']}: {words}", []).append(entry["launcher"])
    for words, names in refused.items():
        status, _, reason = words.partition(": ")
        lines.append(f"{status}: {', '.join(dict.fromkeys(names))}: {reason}")
    lines += [
        f"error: {entry['subject']}, {entry['shape']}, by {entry['by']}: {entry['reason']}"
        for entry in document["graphs"]
        if entry["status"] != "ok"
    ]
    lines += [
        f"KiB of {', '.join(names)}: not available: {why}" for why, names in _without_memory(document["graphs"]).items()
    ]
    if document["graph_verdict"]:
        lines.append(document["graph_verdict"])
    if document["pdl_reason"]:
        lines.append(f"no programmatic edges: {document['pdl_reason']}")
    if why := sorted({entry["gap_reason"] for entry in document["launchers"] if entry["gap_reason"]}):
        lines.append(f"no device gap: {'; '.join(why)}")
    return lines


def _kib(device_bytes: int | None) -> str:
    return "-" if device_bytes is None else f"{device_bytes / 1024:,.0f}"


def _without_memory(graphs: list[Document]) -> dict[str, list[str]]:
    """Why a graph's memory is unknown: of which graphs through the driver. torch's are the driver's."""
    found: dict[str, list[str]] = {}
    for entry in graphs:
        if entry["status"] == "ok" and entry["by"] == "driver" and entry.get("memory_reason"):
            found.setdefault(entry["memory_reason"], []).append(f"{entry['subject']} {entry['shape']}")
    return found


def graph_grid(document: Document) -> Grid:
    """A row a graph: what it cost to have, what a replay costs a node, and when it has paid."""
    columns = [("graph", False), ("shape", False), ("by", False), ("nodes", True), ("capture us", True),
               ("instantiate", True), ("upload", True), ("first", True), ("update", True), ("KiB", True),
               ("host us a node", True), ("us a node", True), ("pays after", True)]  # fmt: skip
    rows = []
    for entry in document["graphs"]:
        if entry["status"] != "ok":
            continue
        pays = entry["pays_after_replays"]
        rows.append([
            entry["subject"], entry["shape"], entry["by"], str(entry["nodes"]),
            *(microseconds(entry[f"{name}_us"]) if entry[f"{name}_us"] else "-"
              for name in ("capture", "instantiate", "upload", "first_launch", "update")),
            _kib(entry["device_bytes"]), microseconds(entry["replay_host_us_a_node"]),
            microseconds(entry["replay_us_a_node"]), "-" if pays is None else f"{pays:,.0f}",
        ])  # fmt: skip
    return columns, rows


def pdl_grid(program: Document) -> Grid:
    """A row an edge."""
    columns = [("from", False), ("to", False), ("overlap us", True), ("plain us", True), ("programmatic us", True),
               ("gain us", True), ("pair alone gains us", True), ("", False)]  # fmt: skip
    rows = [
        [kernel_words(edge["from"]), kernel_words(edge["to"]), microseconds(edge["overlap_us"]),
         microseconds(edge["plain_advance_us"]), microseconds(edge["advance_us"]), microseconds(edge["gain_us"]),
         "-" if edge.get("gain_alone_us") is None else microseconds(edge["gain_alone_us"]), edge["verdict"]]
        for edge in program["edges"]
    ]  # fmt: skip
    rows.append(["= step", "", "", *("" for _ in range(2)), microseconds(program["gain_us"]), "", ""])
    return columns, rows


def _tables(document: Document) -> list[tuple[str, Grid]]:
    """What was measured, table by table."""
    found = []
    if launcher_grid(document)[1]:
        found.append(("Launchers of an empty kernel", launcher_grid(document)))
    if document["graphs"]:
        found.append((f"What a graph costs; layers of {document['model']}", graph_grid(document)))
    found += [
        (f"Programmatic edges of {program['program']}, {program['model']}", pdl_grid(program))
        for program in document["pdl"]
    ]
    return found


def print_document(document: Document, console: Console) -> None:
    """Heading, table, remarks."""
    for line in heading(document):
        console.print(Text(line))
    for title, grid in _tables(document):
        console.print()
        console.print(make_table(title, fit(grid, console.width, _EXPENDABLE), console.width))
    for line in remarks(document):
        console.print(Text(line))


def write_markdown(path: Path, document: Document) -> None:
    """The same as Markdown."""
    lines = [f"## {document['title']}", "", *(f"- {line}" for line in heading(document)[1:]), ""]
    for title, grid in _tables(document):
        lines += markdown_table(title, grid)
    lines += [*(f"- {line}" for line in remarks(document)), "", f"Reproduce: `{document['command']}`"]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def draw(document: Document) -> "Figure":
    """Bars: what the host takes for a launch, a bar a count of arguments; a mark at the 99th percentile."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [entry for entry in document["launchers"] if entry["status"] == "ok"]
    if not measured:
        raise UsageError("--plot: no launcher was measured, so there is nothing to draw")
    counts = sorted({entry["arguments"] for entry in measured})
    shades = dict(zip(counts, ("#9ecae1", "#4292c6", "#2171b5", "#08306b"), strict=False))
    names = list(dict.fromkeys(entry["launcher"] for entry in measured))
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(names) + 1.6), layout="constrained")
    for row, name in enumerate(names):
        entries = [entry for entry in measured if entry["launcher"] == name]
        height = 0.8 / len(entries)
        for i, entry in enumerate(entries):
            y = row + (i - (len(entries) - 1) / 2) * height
            axes.barh(y, entry["host_us"]["p50"], height=0.9 * height, color=shades[entry["arguments"]])
            axes.plot([entry["host_us"]["p99"]], [y], marker="|", color="black", markersize=5)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("host us a launch (bar: median, mark: 99th percentile), logarithmic")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=shades[count], label=f"{count}") for count in counts]
    axes.legend(handles=handles, title="arguments", loc="upper right", fontsize=8)
    figure.suptitle(document["title"], fontsize=10)
    return figure


def write_plot(path: Path, document: Document) -> None:
    """The picture of `draw`."""
    write_figure(path, draw(document))
