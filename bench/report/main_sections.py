"""The report's parts on the main job: documents of kinds `layer` and `op`, with the tables that their runs printed."""

from bench.core import tables
from bench.core.document import device_name
from bench.report.collect import Folder
from bench.report.page import Grid, Section, drawn

_LADDER_COLUMNS = ["ladder", "part", "us", "share", "95%", ""]


def plain(grid: tables.Grid) -> Grid:
    """A table of the drivers as one of the page: its columns are not aligned there."""
    columns, rows = grid
    return [name for name, _ in columns], rows


def ladder_grid(ladders: dict[str, list[dict]]) -> Grid:
    """A row a part of every ladder of a document."""
    rows = []
    for name, parts in ladders.items():
        total = sum(part["us"] for part in parts)
        rows += [
            [name, part["part"], tables.microseconds(part["us"]), tables.percent(part["us"] / total),
             f"{tables.microseconds(part['low'])} to {tables.microseconds(part['high'])}",
             "hidden" if part["hidden"] else ""]
            for part in parts
        ]  # fmt: skip
        rows.append([name, "= eager", tables.microseconds(total), "", "", ""])
    return _LADDER_COLUMNS, rows


def layers_section(folder: Folder) -> Section | None:
    """One layer: every arm, and its ladders."""
    documents = [result for result in folder.of_kind("layer") if result["arms"]]
    if not documents:
        return None
    from bench.report import figures

    section = Section("One decode layer")
    section.words.append(tables.HIDDEN)
    for result in documents:
        named = f"{device_name(result)}, {result['title']}, batch {result['batch']}, {result['dtype']}"
        section.words.append(f"`{result['file']}`: {named}.")
        columns, rows = plain(tables.arm_grid(result))
        section.grids.append(([f"{result['file']}: {columns[0]}", *columns[1:]], rows))
        section.words += tables.refusals(result)
        if result.get("ladder"):
            section.grids.append(ladder_grid(result["ladder"]))
    with_ladder = [result for result in documents if result.get("ladder")]
    if with_ladder:
        section.figures.append(
            drawn("layer-ladder", "The ladder of every layer", lambda: figures.ladders(with_ladder, "layer"))
        )
    return section


def ops_section(folder: Folder) -> Section | None:
    """Single ops over the shapes of the models."""
    documents = [result for result in folder.of_kind("op") if result["ops"]]
    if not documents:
        return None
    section = Section("Ops, each timed alone")
    for result in documents:
        columns, rows = plain(tables.op_grid(result))
        section.words.append(f"`{result['file']}`: {device_name(result)}, {result['title']}.")
        section.grids.append(([f"{result['file']}: {columns[0]}", *columns[1:]], rows))
        section.words += tables.refusals(result)
    return section
