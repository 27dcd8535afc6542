"""What bench.tune found, as tables: a line an op of one size, and every candidate of those that changed."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from bench.core.document import Document, device_name, write_atomically
from bench.core.stop_rule import LEAST_ROUNDS
from bench.core.tables import Grid, markdown_table, microseconds, print_fitted


def heading(document: Document) -> list[str]:
    """What was run, and where."""
    lines = [
        document["title"],
        f"{document['device']}: {device_name(document)}; mode {document['mode']}; margin {document['margin']:.1%}; "
        f"{document['created']}",
    ]
    if document["interrupted"]:
        lines.append("INTERRUPTED: what follows was measured up to then")
    return lines


def _built_in_us(entry: Document) -> float | None:
    clock = entry["candidates"][0]["time_us"]
    return clock["p50"] if clock else None


def _gain(ratio: Document | None) -> str:
    return f"{ratio['p50']:.3f} ({ratio['low']:.3f} - {ratio['high']:.3f})" if ratio else "-"


def chosen_grid(document: Document) -> Grid:
    """A row an op of one size."""
    columns = [("op", False), ("", False), ("shape", False), ("built-in us", True), ("noise", True),
               ("best of the others", False), ("built-in / best", True), ("chosen", False)]  # fmt: skip
    rows = []
    for entry in document["tuned"]:
        _, control, *others = entry["candidates"]
        timed = [one for one in others if one["ratio_to_built_in"]]
        best = max(timed, key=lambda one: one["ratio_to_built_in"]["p50"], default=None)
        time_us = _built_in_us(entry)
        rows.append([
            entry["op"], entry["label"], entry["shape"], microseconds(time_us) if time_us else entry["status"],
            _gain(control["ratio_to_built_in"]), best["name"] if best else "-",
            _gain(entry["confirmed"] or (best and best["ratio_to_built_in"])), entry["chosen"],
        ])  # fmt: skip
    return columns, rows


def candidate_grid(entry: Document) -> Grid:
    """A row a candidate of one op of one size."""
    columns = [("plan", False), ("us", True), ("built-in / this", True), ("order of sums", False), ("", False)]
    rows = []
    for one in entry["candidates"]:
        time_us, failed = one["time_us"], "" if one["status"] == "ok" else f"{one['status']}: {one['reason']}"
        rows.append([
            one["name"], microseconds(time_us["p50"]) if time_us else "-", _gain(one["ratio_to_built_in"]),
            one["order_of_sums"] or "-", failed,
        ])  # fmt: skip
    return columns, rows


def _grids(document: Document) -> list[tuple[str, Grid]]:
    """Every table with its title: what was chosen, and the candidates where one passed the first measurement, or did
    not end as it should."""
    shown = [
        entry
        for entry in document["tuned"]
        if entry["confirmed"] or any(one["status"] != "ok" for one in entry["candidates"])
    ]
    grids = [("plans", chosen_grid(document))]
    grids += [(f"{one['op']} {one['label']} {one['shape']}".strip(), candidate_grid(one)) for one in shown]
    return grids


def last_line(document: Document) -> str:
    """How many plans were chosen, and where none could be."""
    tuned = document["tuned"]
    count = len([entry for entry in tuned if entry["chosen"] != "built-in"])
    line = f"{count} of {len(tuned)} chosen; the built-in plan decides the others, and all other sizes"
    timed = [time["n"] for entry in tuned if (time := entry["candidates"][0]["time_us"])]
    few = len([rounds for rounds in timed if rounds < LEAST_ROUNDS])
    if few:
        line += f"\n{few} of {len(tuned)} had fewer than {LEAST_ROUNDS} rounds (--steps), which choose nothing"
    return line


def print_document(document: Document, console: Console) -> None:
    """Print it."""
    for line in heading(document):
        console.print(Text(line))
    for title, grid in _grids(document):
        print_fitted(title, grid, ("noise",), console)
    console.print(Text(last_line(document)))


def write_markdown(path: Path, document: Document) -> None:
    """The same as Markdown."""
    lines = [*heading(document), ""]
    for title, grid in _grids(document):
        lines += [*markdown_table(title, grid), ""]
    write_atomically(path, ("\n".join([*lines, last_line(document)]) + "\n").encode())
