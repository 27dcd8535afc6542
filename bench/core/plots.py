"""The ladder as a picture: a waterfall from the slowest clock down to the memory floor."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from bench.core import tables  # noqa: E402
from bench.core.document import Document, write_figure  # noqa: E402
from bench.core.errors import UsageError  # noqa: E402
from bench.core.tables import PART_COLOURS, microseconds, percent  # noqa: E402

# Parts below this share of the step are drawn once more, enlarged.
_SMALL = 0.05


def _reach(parts: list[dict[str, Any]]) -> tuple[float, float]:
    """From where to where the bars and whiskers of a ladder go. A negative part stands to the right of the one above:
    those below it begin past the whole step."""
    top = sum(part["us"] for part in parts)
    edges = [0.0, top]
    for part in parts:
        edges += [top - part["us"], top - part["low"], top - part["high"]]
        top -= part["us"]
    return min(edges), max(edges)


def _words(part: dict[str, Any], total: float) -> str:
    """Of a bar. A negative part is noise where its interval has zero in it; else the clock below is the slower one."""
    words = f"{microseconds(part['us'])} us  {percent(part['us'] / total)}"
    if part["us"] < 0:
        words += "  noise" if part["high"] >= 0 else "  slower without it"
    return words + ("  hidden" if part["hidden"] else "")


def _waterfall(axes: Axes, parts: list[dict[str, Any]], total: float, span: float, enlarged: bool) -> None:
    """Bars that hang from where the one above ended, on an axis that ends at `span`. Enlarged, every bar starts at
    zero: only sizes matter. Negative parts are hatched."""
    top = 0.0 if enlarged else total
    for row, part in enumerate(parts):
        left = 0.0 if enlarged else top - part["us"]
        style = {"edgecolor": "white", "hatch": "////", "linewidth": 0} if part["us"] < 0 else {"edgecolor": "none"}
        axes.barh(row, part["us"], left=left, height=0.62, color=PART_COLOURS[part["part"]], **style)
        ends = [part["low"], part["high"]] if enlarged else [top - part["high"], top - part["low"]]
        if ends[1] - ends[0] > 0:
            axes.plot(ends, [row, row], color="black", linewidth=1.2, solid_capstyle="butt")
            axes.plot(ends, [row, row], "|", color="black", markersize=7)
        if not enlarged:
            axes.plot([top - part["us"]] * 2, [row - 0.31, row + 1.31], color="0.6", linewidth=0.7, zorder=0)
        label = _words(part, total)
        farthest = max(left, left + part["us"], *ends)
        nearest = min(left, left + part["us"], *ends)
        anchor, shift, side = farthest, 5, "left"
        if not enlarged and farthest > 0.72 * span:
            # No room on the right: left of the bar, or inside one that reaches too far left as well.
            outside = nearest > 0.28 * span
            anchor, shift, side = (nearest, -5, "right") if outside else (left + part["us"] / 2, 0, "center")
        # Inside a bar it would lie on the bar's whisker.
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1} if side == "center" else None
        axes.annotate(
            label, (anchor, row), xytext=(shift, 0), textcoords="offset points", va="center", ha=side, fontsize=8,
            bbox=box,
        )  # fmt: skip
        top -= part["us"]
    axes.set_yticks(range(len(parts)), [part["part"] for part in parts])
    axes.set_ylim(len(parts) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def write_waterfall(path: Path, document: Document) -> None:
    """One row a ladder: the whole step, and its small parts enlarged. Format by suffix."""
    ladders = document.get("ladder", {})
    if not ladders:
        raise UsageError(f"--plot={path}: must follow a run that measured a ladder, and this one has none")
    figure, grid = plt.subplots(
        len(ladders),
        2,
        figsize=(11, 0.9 + 2.1 * len(ladders)),
        squeeze=False,
        width_ratios=(2.2, 1),
        layout="constrained",
    )
    reaches = [_reach(parts) for parts in ladders.values()]
    least, widest = min(low for low, _ in reaches), max(high for _, high in reaches)
    for (whole, detail), (name, parts) in zip(grid, ladders.items(), strict=True):
        total = sum(part["us"] for part in parts)
        _waterfall(whole, parts, total, widest, enlarged=False)
        whole.set_xlim(1.02 * least, 1.02 * widest)
        whole.set_title(f"{name}: {microseconds(total)} us a step", fontsize=9, loc="left", fontweight="bold")
        small = [part for part in parts if abs(part["us"]) < _SMALL * total and part["part"] != "floor"]
        if small:
            _waterfall(detail, small, total, total, enlarged=True)
            reach = max(max(abs(part["low"]), abs(part["high"])) for part in small)
            detail.axvline(0, color="0.4", linewidth=0.8)
            detail.set_xlim(-1.15 * reach if any(part["low"] < 0 for part in small) else 0, 2.6 * reach)
            detail.locator_params(axis="x", nbins=5)
            detail.set_title("its small parts, enlarged", fontsize=8, loc="left")
        else:
            detail.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("microseconds", fontsize=8)
    environment = document["environment"]
    device = environment["gpu"]["name"] if document["device"] == "cuda" else environment["cpu"]["model"]
    commit = (environment["commit"] or "no commit")[:9]
    figure.suptitle(
        f"{', '.join([document['title'], *tables.shape_words(document)])}, {document['l2']} weights\n"
        f"{device}, {environment['pykernels']['threads']} threads, {document['created'][:10]}, {commit}; whiskers: 95%",
        fontsize=9, x=0.01, ha="left",
    )  # fmt: skip
    write_figure(path, figure)
