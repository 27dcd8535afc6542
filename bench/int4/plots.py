"""A document of kind `int4` as a picture: one bar a kernel, of the parts of its time."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

from bench.core.document import Document, write_figure  # noqa: E402
from bench.core.tables import microseconds, percent  # noqa: E402
from bench.int4.parts import PARTS  # noqa: E402
from bench.int4.show import title  # noqa: E402

_COLOURS = dict(zip(PARTS, ("#0072b2", "#cc79a7", "#009e73", "#d55e00"), strict=True))


def write_bars(path: Path, document: Document) -> None:
    """One bar an arm in the mode that most arms were measured in, of its four parts; many shapes in two columns. Format
    by suffix."""
    modes = [entry["mode"] for entry in document["ops"] if entry["status"] == "ok"]
    mode = max(dict.fromkeys(modes), key=modes.count, default="")
    shown = [entry for entry in document["ops"] if entry["status"] == "ok" and entry["mode"] == mode]
    groups: dict[tuple[str, str], list[Document]] = {}
    for entry in shown:
        groups.setdefault((entry["label"], entry["shape"]), []).append(entry)
    columns = 2 if len(groups) > 4 else 1
    sizes = [len(entries) for entries in groups.values()] or [1]
    heights = [max(sizes[i : i + columns]) for i in range(0, len(sizes), columns)]
    figure, axes = plt.subplots(
        len(heights), columns, figsize=(4 + 5 * columns, 0.8 + 0.28 * sum(heights) + 0.5 * len(heights)), squeeze=False,
        layout="constrained", height_ratios=[height + 1 for height in heights],
    )  # fmt: skip
    for axis in axes.flat[len(groups) :]:
        axis.set_axis_off()
    for axis in axes.flat[max(len(groups) - columns, 0) : len(groups)]:  # the last of each column
        axis.set_xlabel("us a call", fontsize=7)
    for axis, ((label, shape), entries) in zip(axes.flat, groups.items(), strict=False):
        for row, entry in enumerate(entries):
            left = 0.0
            for part in PARTS:
                width = entry["parts_us"][part]
                axis.barh(row, width, left=left, height=0.7, color=_COLOURS[part], label=part if row == 0 else None)
                left += width
            words = f"{microseconds(left)} us, {percent(entry['share_of_read'])} of read, {entry['binds']}"
            axis.annotate(words, (left, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7)
        axis.set_yticks(range(len(entries)), [entry["backend"] for entry in entries], fontsize=7)
        axis.set_ylim(len(entries) - 0.5, -0.5)
        axis.set_xlim(0, 1.6 * max(entry["time_us"]["p50"] for entry in entries))
        axis.set_title(f"{label}, {shape}", fontsize=8, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    if groups:
        axes[0, -1].legend(fontsize=7, ncols=4, loc="lower right", bbox_to_anchor=(1, 1.05))
    environment = document["environment"]
    device = environment["gpu"]["name"] if document["device"] == "cuda" else environment["cpu"]["model"]
    figure.suptitle(
        f"{title(document)}: where the time of a call goes, mode {mode}\n{device}, {document['created'][:10]}",
        fontsize=9, x=0.01, ha="left",
    )  # fmt: skip
    write_figure(path, figure)
