"""Pictures of single kernels: when each of a block ran, and what 4-bit weights bring."""

import itertools
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from bench.core.tables import microseconds, percent  # noqa: E402
from bench.report.collect import Row  # noqa: E402
from bench.report.figures import HOLLOW, PUBLISHED, ink, palette_of  # noqa: E402
from bench.study import paper  # noqa: E402

_OTHERS = "#b0b0b0"


def gantt(rows: Sequence[Row]) -> Figure:
    """When each kernel of one block ran, a row an arm (`bench.report.collect.block_rows`). A kernel that begins before
    the one ahead of it has ended, as PDL launches do, lies in the lower half of its row."""
    heights = [len(list(group)) for _, group in itertools.groupby(rows, key=lambda row: row["title"])]
    names = dict.fromkeys(k["label"] for row in rows if row["named"] for k in row["kernels"])
    height = max(0.5 + 0.75 * len(heights) + 0.42 * len(rows), 0.4 + 0.15 * len(names))  # the legend's at least
    figure, grid = plt.subplots(
        len(heights), 1, figsize=(11, height), squeeze=False,
        layout="constrained", height_ratios=[height + 1.2 for height in heights],
    )  # fmt: skip
    colours = dict(zip(names, palette_of(40), strict=False))
    groups = itertools.groupby(rows, key=lambda row: row["title"])
    for axes, (title, group) in zip(grid[:, 0], groups, strict=True):
        arms = list(group)
        span = max(kernel["end_us"] for row in arms for kernel in row["kernels"])
        for y, row in enumerate(arms):
            ahead_us, low = 0.0, False
            for kernel in row["kernels"]:
                start, width = kernel["start_us"], kernel["end_us"] - kernel["start_us"]
                overlaps = start < ahead_us
                low = overlaps and not low
                ahead_us = max(ahead_us, kernel["end_us"])
                colour = colours.get(kernel["label"], _OTHERS) if row["named"] else _OTHERS
                middle, height = (y + 0.19 if low else y - 0.19, 0.36) if row["overlaps"] else (y, 0.72)
                axes.barh(middle, width, left=start, height=height, color=colour, edgecolor="white", linewidth=0.3)
                if row["named"] and width / span > 0.009 * len(kernel["label"]):
                    axes.annotate(
                        kernel["label"], (start + width / 2, middle), ha="center", va="center", fontsize=6,
                        color=ink(colour),
                    )  # fmt: skip
            axes.annotate(f"{microseconds(ahead_us)} us", (ahead_us, y), xytext=(4, 0), textcoords="offset points",
                          va="center", fontsize=7)  # fmt: skip
        axes.set_yticks(range(len(arms)), [row["arm"] for row in arms], fontsize=7)
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.set_xlim(0, 1.08 * span)
        axes.set_title(title, fontsize=9, loc="left", fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    grid[-1, 0].set_xlabel("microseconds from the block's first kernel", fontsize=8)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours.get(name, _OTHERS), label=name) for name in names]
    if any(not row["named"] for row in rows):
        handles.append(plt.Rectangle((0, 0), 1, 1, color=_OTHERS, label="other kernels"))
    figure.legend(handles=handles, fontsize=6, frameon=False, loc="outside right center")
    return figure


def int4(rows: Sequence[Row]) -> Figure:
    """How many times faster than the dense kernel of the same shape and mode each 4-bit one is
    (`bench.report.collect.int4_rows`): bars, with the ratio of their bytes as a mark."""
    groups = [(name, list(group)) for name, group in itertools.groupby(rows, key=lambda row: row["what"])]
    figure, grid = plt.subplots(
        len(groups), 1, figsize=(9.5, 0.5 + 0.55 * len(groups) + 0.3 * len(rows)), squeeze=False, sharex=True,
        layout="constrained", height_ratios=[len(group) + 1 for _, group in groups],
    )  # fmt: skip
    longest = max([1.0, *(row["ratio"] for row in rows), *(row["ideal"] or 0 for row in rows)])
    for axes, (name, group) in zip(grid[:, 0], groups, strict=True):
        for y, row in enumerate(group):
            axes.barh(y, row["ratio"], height=0.66, color="#999999" if row["dense"] else "#0072b2")
            if row["low"] is not None:
                whiskers = [[row["ratio"] - row["low"]], [row["high"] - row["ratio"]]]
                axes.errorbar([row["ratio"]], [y], xerr=whiskers, color="black", capsize=2, linewidth=1)
            if row["ideal"] and not row["dense"]:
                axes.plot([row["ideal"]] * 2, [y - 0.33, y + 0.33], color="#d55e00", linewidth=1.5)
            words = [f"{row['ratio']:.2f}x", f"{microseconds(row['us'])} us"]
            if row["share"] is not None:
                words.append(f"{percent(row['share'])} of the ceiling")
            if row["binds"]:
                words.append(row["binds"])
            right = max(row["ratio"], row["high"] or 0, 0 if row["dense"] else row["ideal"] or 0)
            axes.annotate(", ".join(words), (right, y), xytext=(5, 0), textcoords="offset points", va="center",
                          fontsize=7)  # fmt: skip
        axes.axvline(1, color="0.6", linewidth=0.7, zorder=0)
        axes.set_yticks(range(len(group)), [row["arm"] for row in group], fontsize=7)
        axes.set_ylim(len(group) - 0.4, -0.6)
        axes.set_xlim(0, 1.6 * longest)
        axes.set_title(name, fontsize=8, loc="left", fontweight="bold")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    grid[-1, 0].set_xlabel("times as fast as the dense kernel; mark: the ratio of their bytes", fontsize=8)
    return figure


def int4_steps(rows: Sequence[Row], published: Sequence[paper.Figure]) -> Figure:
    """A step of each backend (`bench.report.int4_steps.rows_of`), eager and as fast as it goes, and published ones."""
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.3 * (len(rows) + len(published))), layout="constrained")
    labels = []
    for y, row in enumerate(rows):
        dense = row["weights"] != "int4"
        if row["eager_ms"]:
            axes.barh(y, row["eager_ms"], height=0.7, color="#cccccc" if dense else "#9ecae1")
        axes.barh(y, row["best_ms"], height=0.7, color="#777777" if dense else "#0072b2")
        words = f"{row['best_ms']:,.2f} {row['best_mode']}"
        if row["eager_ms"] and row["best_mode"] != "eager":
            words += f", eager {row['eager_ms']:,.2f}"
        end = max(row["best_ms"], row["eager_ms"] or 0)
        axes.annotate(f"{words} ms", (end, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7)
        labels.append(f"{row['backend']} ({row['weights']})")
    for y, one in enumerate(published, len(rows)):
        axes.barh(y, one.value, height=0.7, **HOLLOW)
        axes.annotate(f"{one.value:.2f} ms", (one.value, y), xytext=(4, 0), textcoords="offset points", va="center",
                      fontsize=7)  # fmt: skip
        labels.append(f"{one.gpu}: {one.arm}")
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(right=4 * max([*(row["eager_ms"] or row["best_ms"] for row in rows), *(f.value for f in published)]))
    axes.set_xlabel("ms a step, logarithmic", fontsize=8)
    handles = [
        plt.Rectangle((0, 0), 1, 1, color="#0072b2", label="fastest mode"),
        plt.Rectangle((0, 0), 1, 1, color="#9ecae1", label="eager"),
        plt.Rectangle((0, 0), 1, 1, color="#777777", label="16-bit weights"),
        plt.Rectangle((0, 0), 1, 1, label=PUBLISHED, **HOLLOW),
    ]
    axes.legend(handles=handles, fontsize=6, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(rows[0]["device_name"], fontsize=9, loc="left", fontweight="bold")
    return figure
