"""A result document as tables and ladders, for a terminal and as Markdown."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.core.document import Document, entry_name, program_name, write_atomically
from bench.core.environment import commit_words
from bench.core.quant_words import dense_line

# One colour a part, shared with the plots: from what software costs (warm) to what the memory must (cold).
PART_COLOURS = {
    "python": "#d55e00",
    "dispatch": "#e69f00",
    "framework": "#a6461c",  # python and dispatch together
    "launch": "#cc79a7",
    "gap": "#f0e442",
    "kernel": "#009e73",
    "ceiling": "#56b4e9",
    "floor": "#0072b2",
}

Cells = list[str]
Grid = tuple[list[tuple[str, bool]], list[Cells]]
"""Columns as (heading, right-aligned), and rows."""


def microseconds(value: float | None) -> str:
    """Four significant digits or so, never in exponents."""
    if value is None:
        return "-"
    magnitude = abs(value)
    digits = 0 if magnitude >= 1000 else 1 if magnitude >= 100 else 2 if magnitude >= 1 else 3
    return f"{value:,.{digits}f}"


def percent(share: float | None) -> str:
    """A share of 1 as a percentage."""
    return "-" if share is None else f"{100 * share:.1f}%"


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _gbs(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.1f} GB/s"


def _spread(clock: dict[str, float] | None) -> str:
    return "-" if clock is None else f"{microseconds(clock['p20'])} - {microseconds(clock['p80'])}"


def times(value: float) -> str:
    """A ratio: two decimals, fewer where it is large."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _ratio(ratio: dict[str, float] | None) -> str:
    return f"{times(ratio['p50'])} [{times(ratio['low'])}, {times(ratio['high'])}]" if ratio else "-"


def bytes_words(count: int) -> str:
    """Four significant digits and a unit of 10^3, 10^6 or 10^9 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} B"


def heading(document: Document) -> list[str]:
    """What was run, where, and the bandwidths everything is measured against."""
    environment, ceiling = document["environment"], document["ceiling"]
    device = environment["gpu"]["name"] if document["device"] == "cuda" else environment["cpu"]["model"]
    kernels = environment["pykernels"]
    on_cuda = document["device"] == "cuda"
    by = f"driver {environment['gpu']['driver']}" if on_cuda else f"{kernels['threads']} threads, {kernels['isa']}"
    lines = [
        ", ".join([document["title"], *shape_words(document), document["l2_words"]]),
        f"{document['device']}: {device}, {by}; torch {environment['torch']['version']}; {document['created']}",
        *(_gpu_lines(document) if on_cuda else []),
    ]
    if ceiling["read_gbs"]:
        lines.append(
            f"bandwidth: read {_gbs(ceiling['read_gbs'])} and copy {_gbs(ceiling['copy_gbs'])} measured, "
            f"spec {_gbs(ceiling['spec_gbs'])} ({ceiling['spec_source']})"
        )
    lines += doubts(document)
    if document.get("null") or document.get("spin"):
        lines.append(CONTROLS)
    if nulls := document.get("null"):
        lines.append("null op, us: " + ", ".join(f"{row['mode']} {microseconds(row['us']['p50'])}" for row in nulls))
        if hosts := [row for row in nulls if "host_us" in row]:
            shown = ", ".join(f"{row['mode']} {microseconds(row['host_us']['p50'])}" for row in hosts)
            lines.append(f"null op, host us a launch: {shown}")
    if spins := document.get("spin"):
        lines.append("spin op, us: " + ", ".join(_spin(row) for row in spins))
    if document.get("interrupted"):
        lines.append("INTERRUPTED: what follows was measured up to then")
    return lines


def shape_words(document: Document) -> list[str]:
    """Batch (of bench.op, batches) and dtype, where the run is of one: somebody's callable has its own."""
    if document["batch"] is None:
        return []
    batch = document["batch"]
    return [f"batch {', '.join(map(str, batch)) if isinstance(batch, list) else batch}", document["dtype"]]


CONTROLS = "controls: the null op does nothing: what a call alone costs; the spin op busy-waits a known time"

HIDDEN = "hidden: host work that the device's own work covers, so that it costs no time"


def doubts(document: Document) -> list[str]:
    """What the reader of the numbers has to know first: others were at work, or a ceiling that was passed."""
    lines, cpu = commit_lines(document), document["environment"]["cpu"]
    load, cpus = cpu.get("load_average_1min", 0.0), cpu.get("cpus_usable", 1)
    if load > cpus:
        lines.append(f"BUSY: load average {load:.1f} on {cpus} CPUs when this began: others' work is in the times")
    if (
        document.get("device") == "cuda"
        and document["kind"] != "inside"
        and document["environment"].get("pykernels", {}).get("timestamps")
    ):
        lines.append(
            "TIMESTAMPS: the kernels of this build read clocks as they go (PYKERNELS_TIMESTAMPS=ON): native is slower"
        )
    entries = [*document.get("ops", []), *document.get("arms", [])]
    if above := [share for entry in entries if (share := entry.get("share_of_read") or 0.0) > _ABOVE_CEILING]:
        lines.append(
            f"ABOVE THE READ CEILING: {len(above)} of {len(entries)} ops and arms, up to {percent(max(above))} of it: "
            "a cache had their data, or the ceiling was slowed down; their kernel and ceiling parts mean little"
        )
    return lines


def commit_lines(document: Document) -> list[str]:
    """A line for a document whose commit is unknown or dirty; none for another."""
    words = commit_words(document["environment"])
    return [words] if words else []


_ABOVE_CEILING = 1.05
"""A kernel that only streams comes to 1.01 of the ceiling, which is another kernel's."""


def _gpu_lines(document: Document) -> list[str]:
    """How a sample is taken on a GPU, and the state the device was in."""
    lines = []
    if repeats := document.get("repeats"):
        lines.append(f"a sample is the mean of {repeats} steps between two events; a graph holds {repeats} steps")
    before, after = (document["environment"].get(key) for key in ("gpu_before", "gpu_after"))
    if before and after:
        reasons = sorted({*(before["clock_event_reasons"] or ()), *(after["clock_event_reasons"] or ())})
        lines.append(
            f"GPU before and after: SM {before['sm_mhz']} and {after['sm_mhz']} MHz, {before['temperature_c']} and "
            f"{after['temperature_c']} C, clock event reasons {', '.join(reasons) or 'none'}"
        )
    if slowed := document.get("throttled_rounds"):
        kept = "left out of the medians" if document["throttled_left_out"] else "kept: too few others"
        lines.append(f"throttled: {len(slowed)} of {document['steps']} rounds, {kept}")
    measured = [arm for arm in document.get("arms", []) if arm["status"] == "ok"]
    if why := sorted({arm["device_reason"] for arm in measured if arm.get("device_reason")}):
        lines.append(f"no device clock: {'; '.join(why)}")
    return lines


def _spin(row: dict[str, Any]) -> str:
    if "net_us" not in row:
        return f"{row['asked_us']:g} asked, {row['us']['p50']:.2f} measured"
    clock = "traced" if row["device_us"] else "by events"
    measured = (row["device_us"] or row["us"])["p50"]
    return (
        f"{row['asked_us']:g} asked, {measured:.2f} {clock}, {row['net_us']:.2f} less the null kernel's "
        f"{row['null_us']:.2f}"
    )


def op_grid(document: Document) -> Grid:
    """Every op on its own: bytes, floor, time and bandwidth."""
    with_ratio = any("ratio_to_torch" in row for row in document["ops"])
    with_device = any(row.get("device_us") for row in document["ops"])
    columns = [
        ("arm", False), ("op", False), ("model", False), ("what", False), ("shape", False), ("bytes", True),
        ("floor us", True), ("time us", True), ("p20 - p80", True), ("GB/s", True), ("of spec", True),
        ("of read", True),
    ]  # fmt: skip
    if with_device:
        columns += [("device us", True), ("device of read", True)]
    if with_ratio:
        columns.append(("torch / this", True))
    rows = []
    for row in document["ops"]:
        clock, on_device = row.get("time_us"), row.get("device_us")
        status = row.get("status", "ok")
        arm = entry_name(row) if row.get("mode") else program_name(row["backend"], row.get("fusion"))
        cells = [
            arm, row["op"], ", ".join(row.get("models") or ["-"]), row["label"], row["shape"],
            bytes_words(row["bytes"]), microseconds(row["floor_us"]),
            microseconds(clock["p50"]) if clock else "-" if on_device else status, _spread(clock or on_device),
            _decimal(row["gbs"]),
            percent(row["share_of_spec"]), percent(row["share_of_read"]),
        ]  # fmt: skip
        if with_device:
            # An op of a layer has the device's clock alone, and its bandwidth is by that.
            share = row.get("device_share_of_read", row["share_of_read"] if on_device else None)
            cells += [microseconds(on_device["p50"]) if on_device else "-", percent(share)]
        if with_ratio:
            cells.append(_ratio(row.get("ratio_to_torch")))
        rows.append(cells)
    if not any(row.get("models") for row in document["ops"]):  # a layer's ops are of its one model
        columns, rows = without((columns, rows), "model")
    return columns, rows


def without(grid: Grid, name: str) -> Grid:
    """The grid less the column of that heading."""
    columns, rows = grid
    kept = [index for index, (heading_, _) in enumerate(columns) if heading_ != name]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


def arm_grid(document: Document) -> Grid:
    """The arms that were measured (or were wrong)."""
    columns = [("backend", False), ("fusion", False), ("mode", False), ("wall us", True), ("p20 - p80", True),
               ("host us", True), ("launches", True), ("GB/s", True), ("of spec", True), ("of read", True),
               ("error", True), ("sdpa eager / this", True)]  # fmt: skip
    on_cuda = document["device"] == "cuda"
    if on_cuda:
        columns += [("sdpa graph / this", True), ("host us a kernel", True), ("device us", True)]
    rows = []
    for arm in document["arms"]:
        if arm["status"] == "unsupported":
            continue
        wall = arm["wall_us"]
        rows.append([
            arm["backend"], arm["fusion"] or "-", arm["mode"],
            microseconds(wall["p50"]) if wall else arm["status"], _spread(wall),
            microseconds(arm["host_us"]["p50"]) if arm["host_us"] else "-", str(arm["launches"]),
            _decimal(arm["gbs"]), percent(arm["share_of_spec"]), percent(arm["share_of_read"]),
            "-" if arm["max_rel_error"] is None else f"{arm['max_rel_error']:.1e}",
            _ratio(arm.get("ratio_to_sdpa")),
        ])  # fmt: skip
        if on_cuda:
            device = arm["device_us"]
            rows[-1] += [
                _ratio(arm.get("ratio_to_sdpa_graph")), microseconds(arm.get("host_us_per_kernel")),
                microseconds(device["p50"]) if device else "-",
            ]  # fmt: skip
    return columns, rows


def refusals(document: Document) -> list[str]:
    """One line for each reason that kept arms from running, or was wrong with them; before them, in a run of 4-bit
    weights, which arms multiply by dequantised ones."""
    by_reason: dict[tuple[str, str], dict[str, list[str]]] = {}
    for arm in [*document.get("arms", []), *document.get("ops", [])]:
        if arm.get("status", "ok") != "ok":
            backend = program_name(arm["backend"], None if arm["status"] == "unsupported" else arm["fusion"])
            backends = by_reason.setdefault((arm["status"], arm["reason"]), {})
            backends.setdefault(backend, []).append(arm["mode"])
    lines = [line] if (line := dense_line(document.get("arms", []))) else []
    for (status, reason), backends in by_reason.items():
        by_modes: dict[str, list[str]] = {}
        for backend, modes in backends.items():
            by_modes.setdefault(", ".join(dict.fromkeys(modes)), []).append(backend)
        who = "; ".join(f"{', '.join(names)} ({modes})" for modes, names in by_modes.items())
        lines.append(f"{status}: {who}: {reason}")
    return lines


def _bar(part: dict[str, Any], longest: float, width: int) -> str:
    blocks = abs(part["us"]) / longest * width
    character = "#" if part["us"] >= 0 else "-"
    return character * round(blocks) or ("." if part["us"] else "")


def ladder_rows(parts: Sequence[dict[str, Any]], width: int) -> list[tuple[str, str]]:
    """A line a part as (part, text), bar and numbers, and the sum; `width` columns for all of it."""
    bar = max(min(width, 110) - 60, 12)
    total = sum(part["us"] for part in parts)
    longest = max(abs(part["us"]) for part in parts) or 1.0
    lines = []
    for part in parts:
        interval = f"[{microseconds(part['low'])}, {microseconds(part['high'])}]"
        hidden = " hidden" if part["hidden"] else ""
        numbers = f"{microseconds(part['us']):>10} us {percent(part['us'] / total):>7}  {interval}{hidden}"
        lines.append((part["part"], f"{part['part']:<9}{_bar(part, longest, bar):<{bar}}{numbers}"))
    lines.append(("sum", f"{'= eager':<{9 + bar}}{microseconds(total):>10} us"))
    return lines


def host_clocks(document: Document, name: str) -> str:
    """The line under a GPU's ladder: what the host took for a step of each mode, and for a kernel. Empty elsewhere."""
    if document["device"] != "cuda":
        return ""
    backend, _, fusion = name.partition("/")
    arms = [
        arm for arm in document["arms"]
        if (arm["backend"], arm["fusion"] or "") == (backend, fusion) and arm["host_us"] and arm["host_us_per_kernel"]
    ]  # fmt: skip
    if not arms:
        return ""
    steps = ", ".join(f"{arm['mode']} {microseconds(arm['host_us']['p50'])} us" for arm in arms)
    kernels = ", ".join(f"{arm['mode']} {microseconds(arm['host_us_per_kernel'])}" for arm in arms)
    return f"host clock per step: {steps}; per kernel: {kernels}"


def _gapped_arm(document: Document, name: str) -> str | None:
    """The traced arm from whose wall time the ladder of that name takes its `gap`: the lowest of the chain."""
    modes = ("graph", "native", "dispatch", "eager")
    return next((arm for mode in modes if (arm := f"{name}:{mode}") in document.get("gaps", {})), None)


GAP_ROWS = 8
"""Gaps that a table names; the others are one row."""


def gap_grid(gaps: dict[str, Any]) -> Grid:
    """The largest gaps of a step, by the kernel behind them, with their causes, and the sum."""
    columns = [("before", False), ("gap us", True), ("host late", True), ("front end", True), ("copy, fill", True),
               ("overlap", True)]  # fmt: skip
    names = ("us", "host_us", "front_end_us", "copy_us", "overlap_us")

    def row(title: str, entries: Sequence[dict[str, Any]]) -> Cells:
        return [title, *(microseconds(sum(entry[name] for entry in entries)) for name in names)]

    ordered = sorted(gaps["rows"], key=lambda entry: -entry["us"])
    shown, others = ordered[:GAP_ROWS], ordered[GAP_ROWS:]
    rows = [row(kernel_words(entry["before"]), [entry]) for entry in shown]
    if others:
        rows.append(row(f"{len(others)} others", others))
    rows.append(["wall untraced less traced", microseconds(gaps["untraced_us"]), "", "", "", ""])
    rows.append(["= gap", microseconds(gaps["sum_us"]), *(microseconds(gaps[name]) for name in names[1:])])
    return columns, rows


_NAME = 52


def kernel_words(name: str) -> str:
    """A kernel's name less what its template and function take, cut to a table's width."""
    plain = name.replace("(anonymous namespace)::", "").removeprefix("void ").split("(", 1)[0] or name
    return plain if len(plain) <= _NAME else plain[: _NAME - 3] + "..."


def _any_hidden(document: Document) -> bool:
    return any(part["hidden"] for parts in document.get("ladder", {}).values() for part in parts)


def _remarks(document: Document, name: str) -> list[str]:
    """What stands under a ladder."""
    return [line for line in (host_clocks(document, name), document["ladder_notes"].get(name)) if line]


def make_table(title: str, grid: Grid, width: int) -> Table:
    """The grid for a terminal of `width` columns."""
    columns, rows = grid
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1 if _width(grid) + 2 * len(columns) <= width else 0)
    for name, right in columns:
        # Where there is no room words go on in the next line: a digit cut off would be another number.
        table.add_column(name, justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # a plain string would be read as markup
    return table


def _width(grid: Grid) -> int:
    """Columns of the terminal that the grid takes without padding: a separator each, and the box's edges."""
    columns, rows = grid
    return 1 + sum(1 + max(len(name), *(len(row[i]) for row in rows)) for i, (name, _) in enumerate(columns))


def fit(grid: Grid, width: int, expendable: Sequence[str]) -> Grid:
    """The grid less as many of the `expendable` columns, in this order, as a terminal of `width` asks for."""
    for heading_ in expendable:
        if _width(grid) <= width:
            break
        grid = without(grid, heading_)
    return grid


def print_fitted(title: str, grid: Grid, expendable: Sequence[str], console: Console) -> None:
    """The grid as a table of the console's width, and below it the columns that it had no room for."""
    shown = fit(grid, console.width, expendable)
    console.print(make_table(title, shown, console.width))
    if left_out := [name for name, right in grid[0] if (name, right) not in shown[0]]:
        console.print(Text(f"no room for: {', '.join(left_out)} (--md has all)\n"))


def print_document(document: Document, console: Console) -> None:
    """Everything a run has to say, for a terminal or a pipe of any width from 80 columns."""
    on_cuda = document["device"] == "cuda"
    for line in heading(document):
        console.print(Text(line), soft_wrap=False)
    console.print()
    if document["ops"]:
        expendable = [
            "p20 - p80",
            "floor us",
            "op",
            "model",
            "bytes",
            "GB/s",
            "of spec",
            *(["of read", "shape"] if on_cuda else []),
        ]
        print_fitted("Ops, each timed alone", op_grid(document), expendable, console)
    if any(arm["status"] != "unsupported" for arm in document.get("arms", [])):
        on_gpu = ["sdpa eager / this", "host us a kernel"] if on_cuda else []
        expendable = ["p20 - p80", "launches", "error", "GB/s", *on_gpu, "of spec", "host us"]
        print_fitted("Arms, alternated", arm_grid(document), expendable, console)
    for line in refusals(document):
        console.print(Text(line))
    if _any_hidden(document):
        console.print(Text(f"\n{HIDDEN}"))
    for name, parts in document.get("ladder", {}).items():
        console.print()
        console.print(Text(f"Ladder of {name}: where the time of a step goes (95% intervals)", style="bold"))
        for part, text in ladder_rows(parts, console.width):
            console.print(Text(text, style=PART_COLOURS.get(part, "")), no_wrap=True)
        for line in _remarks(document, name):
            console.print(Text(f"  {line}"))
        if arm := _gapped_arm(document, name):
            console.print()
            grid = gap_grid(document["gaps"][arm])
            console.print(make_table(f"Gaps of {arm}: before which kernel, and why", grid, console.width))


def markdown_table(title: str, grid: Grid) -> Iterable[str]:
    """The lines of the grid as a Markdown table under a heading."""
    columns, rows = grid
    yield from (f"### {title}", "")
    yield "| " + " | ".join(name for name, _ in columns) + " |"
    yield "|" + "|".join("---:" if right else "---" for _, right in columns) + "|"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def write_markdown(path: Path, document: Document) -> None:
    """The same tables as Markdown."""
    lines = [f"## {document['title']}", "", *(f"- {line}" for line in heading(document)), ""]
    if document["ops"]:
        lines += markdown_table("Ops, each timed alone", op_grid(document))
    if any(arm["status"] != "unsupported" for arm in document.get("arms", [])):
        lines += markdown_table("Arms, alternated", arm_grid(document))
    lines += [*(f"- {line}" for line in refusals(document)), ""]
    if _any_hidden(document):
        lines += [HIDDEN, ""]
    for name, parts in document.get("ladder", {}).items():
        lines += [f"### Ladder of {name}", "", "```", *(text for _, text in ladder_rows(parts, 100)), "```", ""]
        for line in _remarks(document, name):
            lines += [line, ""]
        if arm := _gapped_arm(document, name):
            lines += markdown_table(f"Gaps of {arm}: before which kernel, and why", gap_grid(document["gaps"][arm]))
    lines += [f"Reproduce: `{document['command']}`"]
    write_atomically(path, ("\n".join(lines) + "\n").encode())
