"""The report's part on layers at several batches: one table and one picture, ours beside the plain torch layer, whose
GEMVs are cuBLAS's on a GPU."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from bench.core.document import Document, device_name, program_name
from bench.core.quant_words import quant_suffix
from bench.core.tables import microseconds, percent
from bench.report import collect
from bench.report.collect import Folder, Row
from bench.report.page import Section, drawn

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.figure import Figure


def _cell(result: Document) -> str:
    """What documents of several batches share."""
    model = collect.model_name(result) + quant_suffix(result.get("quant"))
    return f"{device_name(result)}, {model}, ctx {result['ctx']}, {result['dtype']}"


def _fastest(result: Document) -> dict[str, Document]:
    """By backend and fusion the arm of the least time."""
    found: dict[str, Document] = {}
    for entry in result["arms"]:
        if entry["status"] == "ok" and entry["wall_us"]:
            name = program_name(entry["backend"], entry["fusion"])
            if name not in found or entry["wall_us"]["p50"] < found[name]["wall_us"]["p50"]:
                found[name] = entry
    return found


def rows_of(folder: Folder) -> dict[str, list[Row]]:
    """By cell, of which there are layers at two batches at least: a row an arm and batch, the fastest mode of each
    backend and fusion there. Of one batch the document of most arms counts."""
    found: dict[str, list[Row]] = {}
    layers = sorted(folder.of_kind("layer"), key=lambda result: (_cell(result), result["batch"], -len(result["arms"])))
    for cell, group in groupby(layers, key=_cell):
        by_batch: dict[int, Document] = {}
        for result in group:
            by_batch.setdefault(result["batch"], result)
        if len(by_batch) < 2:
            continue
        found[cell] = [
            {"name": name, "mode": entry["mode"], "batch": batch, "us": entry["wall_us"]["p50"],
             "low": entry["wall_us"]["p20"], "high": entry["wall_us"]["p80"], "share": entry["share_of_read"]}
            for batch, result in by_batch.items()
            for name, entry in _fastest(result).items()
        ]  # fmt: skip
    return found


def section(folder: Folder) -> Section | None:
    """Microseconds and share of the measured read bandwidth against the batch."""
    cells = rows_of(folder)
    if not cells:
        return None
    found = Section("One decode layer over batches")
    found.words.append(
        "The fastest mode of each backend and fusion at each batch. Plain torch layers' GEMVs are cuBLAS's on a GPU."
    )
    rows = [
        [cell, row["name"], row["mode"], str(row["batch"]), microseconds(row["us"]), percent(row["share"])]
        for cell, of_cell in cells.items()
        for row in sorted(of_cell, key=lambda row: (row["name"], row["batch"]))
    ]
    found.grids.append((["layer", "arm", "mode", "batch", "us", "of the ceiling"], rows))
    found.figures.append(drawn("layer-batches", "One decode layer against the batch", partial(draw, cells)))
    return found


def draw(cells: Mapping[str, Sequence[Row]]) -> "Figure":
    """A line of panels a cell: microseconds, and share of the ceiling."""
    from bench.report.figures import COLOURS, plt

    figure, grid = plt.subplots(len(cells), 2, figsize=(9, 3.1 * len(cells) + 0.4), squeeze=False, layout="constrained")
    for (left, right), (cell, rows) in zip(grid, cells.items(), strict=True):
        names = list(dict.fromkeys(row["name"] for row in rows))
        for index, name in enumerate(names):
            own = [row for row in rows if row["name"] == name]
            style = {"color": COLOURS[index % len(COLOURS)], "marker": "o", "markersize": 4, "label": name}
            x = [row["batch"] for row in own]
            left.plot(x, [row["us"] for row in own], **style)
            with_share = [row for row in own if row["share"] is not None]
            right.plot([row["batch"] for row in with_share], [100 * row["share"] for row in with_share], **style)
        batches = sorted({row["batch"] for row in rows})
        for axes, what in ((left, "us a layer"), (right, "% of the read bandwidth")):
            axes.set_xticks(batches)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("batch", fontsize=8)
            axes.set_ylabel(what, fontsize=8)
            axes.tick_params(labelsize=8)
            axes.grid(True, linewidth=0.4, color="0.85")
        left.set_title(cell, fontsize=8, loc="left")
        right.legend(fontsize=7, frameon=False)
    return figure
