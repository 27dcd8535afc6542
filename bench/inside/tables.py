"""What bench.inside has to say, as tables: for a terminal and as Markdown."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from bench.core.document import Document, write_atomically
from bench.core.tables import Grid, heading, markdown_table, microseconds, percent, print_fitted, refusals

_COLUMNS = {
    "gap_us": "gap",
    "first_copies_us": "to first copies",
    "producers_done_us": "wait",
    "x_ready_us": "to x",
    "first_scores_us": "to first K",
    "streamed_us": "stream",
    "combined_us": "combine",
    "end_us": "to end",
    "inside_us": "inside",
}


def _mean(summary: dict[str, Any] | None) -> str:
    return microseconds(summary["mean"]) if summary else "-"


def grid(arm: Document) -> Grid:
    """The kernels of a layer in order, microseconds, means over SMs and launches; and the sum of what each adds."""
    columns = [("op", False), ("what", False), ("SMs", True), *((name, True) for name in _COLUMNS.values())]
    rows = []
    for entry in arm["kernels"]:
        times = {"gap_us": entry["gap_us"], **entry["points"], "inside_us": entry["inside_us"]}
        rows.append([
            entry["op"], entry["label"], f"{entry['sms']:.3g}", *(_mean(times.get(key)) for key in _COLUMNS),
            microseconds(entry["adds_us"]),
        ])  # fmt: skip
    rows.append(["", "sum", *[""] * (len(columns) - 2), microseconds(arm["accounted_us"])])
    return [*columns, ("adds", True)], rows


def title(arm: Document) -> str:
    """Which arm a table is of."""
    return f"native/{arm['fusion']}, {arm['mode']}: microseconds, means over SMs and launches"


def remarks(arm: Document) -> list[str]:
    """What stands under a table."""
    clock, replays = arm["sm_mhz"], arm["replays"] + arm["replays_left_out"]
    wall, quiet = arm["wall_us"]["mean"], arm["wall_quiet_us"]["mean"]
    lines = [
        f"a layer takes {microseconds(wall)} us with its timestamps recorded, of which they account for "
        f"{microseconds(arm['accounted_us'])} ({percent(arm['accounted_us'] / wall)}); {microseconds(quiet)} us where "
        "nobody records",
        f"SM clock {clock['median']:.0f} MHz by the device's own clock ({clock['low']:.0f} to {clock['high']:.0f} over "
        f"{arm['sms']} SMs); {arm['records']:,} records of {replays} replays",
    ]
    if arm["records_lost"] or arm["replays_left_out"]:
        lines.append(
            f"INCOMPLETE: {arm['records_lost']:,} records did not fit, {arm['replays_left_out']} replays left out"
        )
    return lines


def print_document(document: Document, console: Console) -> None:
    """A table an arm."""
    for line in heading(document):
        console.print(Text(line))
    for arm in document["arms"]:
        if arm["status"] == "ok":
            console.print()
            print_fitted(title(arm), grid(arm), ["op", "SMs"], console)
            for line in remarks(arm):
                console.print(Text(line))
    for line in refusals(document):
        console.print(Text(line))


def write_markdown(path: Path, document: Document) -> None:
    """The same as Markdown."""
    lines = [f"## {document['title']}", "", *(f"- {line}" for line in heading(document)), ""]
    for arm in document["arms"]:
        if arm["status"] == "ok":
            lines += [*markdown_table(title(arm), grid(arm)), *(f"- {line}" for line in remarks(arm)), ""]
    lines += [*(f"- {line}" for line in refusals(document)), "", f"Reproduce: `{document['command']}`"]
    write_atomically(path, ("\n".join(lines) + "\n").encode())
