"""What bench.rate found, as a picture: the tail of each latency distribution, and joules a step against the rate."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: E402

from bench.core.document import Document, write_figure  # noqa: E402
from bench.core.errors import UsageError  # noqa: E402
from bench.rate.tables import arm_label  # noqa: E402
from bench.study import quantiles  # noqa: E402

# Okabe and Ito's colours, which the colour-blind tell apart; a second round of arms is dashed.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def _style(index: int) -> dict[str, Any]:
    return {"color": _COLOURS[index % len(_COLOURS)], "linestyle": "-" if index < len(_COLOURS) else "--"}


def _rate(hz: float) -> str:
    return f"{hz:g} Hz" if hz else "back to back"


def _tails(axes: Axes, cells: list[tuple[int, str, Document]], hz: float) -> None:
    """The share of steps that took longer, on a logarithmic axis: a tail is a line that goes far to the right."""
    for index, label, cell in cells:
        latencies, above = quantiles.ecdf(np.array(cell["samples_us"]))
        # The largest sample has none above it, and no place on a logarithmic axis.
        axes.step(latencies[:-1] / 1000, above[:-1], where="post", label=label, linewidth=1.3, **_style(index))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yscale("log")
    axes.set_title(_rate(hz), fontsize=9)
    axes.set_xlabel("latency, ms", fontsize=8)
    axes.set_ylabel("share of steps that took longer", fontsize=8)
    axes.grid(True, which="major", linewidth=0.4, color="0.85")
    axes.tick_params(labelsize=8)


def _joules(axes: Axes, names: list[str], cells: dict[tuple[str, float], Document], rates: list[float]) -> None:
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        found = [(x, cells[name, hz]["energy"]) for x, hz in enumerate(rates) if (name, hz) in cells]
        bars = [
            (x + (index - (len(names) - 1) / 2) * width, energy["joules_per_step"]) for x, energy in found if energy
        ]
        if bars:
            x, height = zip(*bars, strict=True)
            axes.bar(x, height, width=0.9 * width, color=_COLOURS[index % len(_COLOURS)])
    axes.set_xticks(range(len(rates)), [_rate(hz) for hz in rates], fontsize=8)
    axes.set_ylabel("joules a step, idle power included", fontsize=8)
    axes.set_title("energy of a step", fontsize=9)
    axes.tick_params(labelsize=8)


def measured(document: Document, load: str) -> bool:
    """Is there anything of that load to draw?"""
    cells = [cell for entry in document["arms"] for cell in entry.get("cells", ()) if cell["load"] == load]
    return any(len(cell["samples_us"]) > 1 for cell in cells)


def write_picture(path: Path, document: Document) -> None:
    """The picture of `draw`, of the first load. Format by suffix."""
    load = document["loads"][0]
    if not measured(document, load):
        raise UsageError(f"--plot={path}: must follow a run that measured an arm, and this one has none")
    write_figure(path, draw(document, load))


def draw(document: Document, load: str) -> Figure:
    """A panel a rate, and one of energy where it was measured; of one load."""
    names = [arm_label(entry) for entry in document["arms"] if entry.get("cells")]
    cells = {
        (arm_label(entry), cell["hz"]): cell
        for entry in document["arms"]
        for cell in entry.get("cells", ())
        if cell["load"] == load and len(cell["samples_us"]) > 1
    }
    rates = [hz for hz in document["hz"] if any((name, hz) in cells for name in names)]
    with_energy = any(cell["energy"] for cell in cells.values())
    panels = len(rates) + with_energy
    columns = min(panels, 3)
    lines = -(-panels // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(4.2 * columns, 3.3 * lines + 0.9), squeeze=False, layout="constrained"
    )
    spare = list(grid.flat)
    for hz in rates:
        _tails(spare.pop(0), [(names.index(n), n, cells[n, hz]) for n in names if (n, hz) in cells], hz)
    if with_energy:
        _joules(spare.pop(0), names, cells, rates)
    for axes in spare:
        axes.set_axis_off()
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), fontsize=8, frameon=False)
    figure.suptitle(document["title"] + ("" if load == "none" else f", beside {load}"), fontsize=10)
    return figure
