"""What bench.rate found, as tables."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from bench.core.document import Document, device_name, entry_name, write_atomically
from bench.core.tables import Grid, markdown_table, microseconds, percent, print_fitted, refusals

EXPENDABLE = ("[p50]", "n", "jitter us", "host late p99", "first us", "W", "p90 us")
"""Columns that a narrow terminal does without, the first first."""


def arm_label(entry: Document) -> str:
    """An arm's name, with @2 where it is the second one of --aa."""
    return entry["name"] if "name" in entry else entry_name(entry)


def heading(document: Document) -> list[str]:
    """What was run, where, and the controls."""
    machine, timer, power = document["environment"], document["timer"], document["energy"]
    lines = [
        f"{document['title']}, batch {document['batch']}, {document['dtype']}; {document['burst']} token(s) a due time",
        f"{document['device']}: {device_name(document)}; torch {machine['torch']['version']}; {document['created']}",
        f"timer: waits end late by {_us(timer, 'p50')} us (p50), {_us(timer, 'p99')} us (p99), "
        f"{microseconds(timer['max'])} us (max of {timer['n']}) where nothing runs",
    ]
    if power["reason"]:
        lines.append(f"energy: not available: {power['reason']}")
    else:
        every = power["resolution_s"]
        lines.append(
            f"energy: {power['counter']}, a new value every {f'{1000 * every:.0f} ms' if every else 'unknown time'}; "
            f"idle {power['idle_w']:.1f} W"
        )
        for words, check in (("a spin op", power["spin_check"]), ("steps back to back", power["check"])):
            if check:
                ratio = "unknown" if check["ratio"] is None else f"{check['ratio']:.3f}"
                lines.append(
                    f"energy check, {check['seconds']:.1f} s of {words}: counter {check['counter_joules']:.1f} J, "
                    f"power x time {check['power_joules']:.1f} J, ratio {ratio}"
                )
    lines += _gpu(document)
    if document["interrupted"]:
        lines.append("INTERRUPTED: what follows was measured up to then")
    return lines


def _gpu(document: Document) -> list[str]:
    """The GPU's state after the blocks, in a line: the least and the most of each, and the reasons for its clocks."""
    states = [state for entry in document["arms"] for cell in entry.get("cells", ()) for state in cell["gpu"] if state]
    words = []
    for key, name, unit in (("sm_mhz", "SM", "MHz"), ("memory_mhz", "memory", "MHz"), ("temperature_c", "", "C")):
        if values := [state[key] for state in states if state.get(key) is not None]:
            words.append(f"{name} {min(values)} to {max(values)} {unit}".strip())
    pstates = sorted({state["pstate"] for state in states if state.get("pstate") is not None})
    words += [", ".join(f"P{pstate}" for pstate in pstates)] if pstates else []
    reasons = sorted({reason for state in states for reason in state.get("clock_event_reasons") or ()})
    return (
        [f"GPU after each block: {'; '.join(words)}; reasons for its clocks: {', '.join(reasons) or 'none'}"]
        if words
        else []
    )


def _us(clock: Document, name: str) -> str:
    quantile = clock[name]
    return microseconds(quantile["value"]) if quantile["value"] is not None else f"needs {quantile['needs']}"


def _interval(quantile: Document) -> str:
    return f"[{microseconds(quantile['low'])}, {microseconds(quantile['high'])}]" if quantile["value"] else "-"


def grid(document: Document, load: str) -> Grid:
    """A row a cell under one load: latencies from the due time to the token on the host."""
    columns = [
        ("arm", False), ("Hz", True), ("p50 us", True), ("[p50]", True), ("p90 us", True), ("p99 us", True),
        ("p99.9 us", True), ("max us", True), ("jitter us", True), ("late", True), ("first us", True),
        ("host late p99", True), ("J a step", True), ("W", True), ("n", True),
    ]  # fmt: skip
    rows = []
    for entry in document["arms"]:
        for cell in entry.get("cells", ()):
            if cell["load"] != load:
                continue
            latency, energy, first = cell["latency_us"], cell["energy"], cell["first_step_us"]
            rate = "back to back" if not cell["hz"] else f"{cell['hz']:g}" + ("" if cell["met"] else " not met")
            rows.append([
                arm_label(entry), rate, _us(latency, "p50"), _interval(latency["p50"]), _us(latency, "p90"),
                _us(latency, "p99"), _us(latency, "p99_9"), microseconds(latency["max"]),
                microseconds(cell["jitter_us"]), percent(cell["deadline"]["share"]) if cell["deadline"] else "-",
                microseconds(sorted(first)[len(first) // 2]) if first else "-", _us(cell["host_late_us"], "p99"),
                f"{energy['joules_per_step']:.3g}" if energy else "-", f"{energy['watts']:.0f}" if energy else "-",
                str(latency["n"]),
            ])  # fmt: skip
    return columns, rows


def title(load: str) -> str:
    """Of a load's table."""
    return "Steps at a rate" + ("" if load == "none" else f", beside {load}")


def notes(document: Document) -> list[str]:
    """Which rates could not be met, and what the columns mean."""
    lines = [
        f"{arm_label(entry)} at {cell['hz']:g} Hz: {cell['reason']}"
        for entry in document["arms"]
        for cell in entry.get("cells", ())
        if cell["reason"]
    ]
    lines.append(
        "latency: from the due time to the token on the host; late: the share past the deadline (the period where none "
        "is given); first: the median of the steps that open a block, after idle time, which are in no other column; "
        "`needs n`: a quantile takes n steps"
    )
    return list(dict.fromkeys(lines))


def print_document(document: Document, console: Console) -> None:
    """Everything, for a terminal of any width from 80 columns."""
    for line in heading(document):
        console.print(Text(line))
    for load in document["loads"]:
        print_fitted(title(load), grid(document, load), EXPENDABLE, console)
    for line in [*refusals(document), *notes(document)]:
        console.print(Text(line))


def _markdown(document: Document) -> Iterable[str]:
    yield from (f"# {document['title']}", "")
    for line in heading(document):
        yield f"- {line}"
    yield ""
    for load in document["loads"]:
        yield from markdown_table(
            "Steps at a rate" + ("" if load == "none" else f", beside {load}"), grid(document, load)
        )
    yield from (f"- {line}" for line in [*refusals(document), *notes(document)])


def write_markdown(path: Path, document: Document) -> None:
    """The same as Markdown."""
    write_atomically(path, ("\n".join(_markdown(document)) + "\n").encode())


def rows(document: Document) -> Iterable[dict[str, object]]:
    """One flat row a cell, for CSV."""
    for entry in document["arms"]:
        for cell in entry.get("cells", ()):
            row: dict[str, object] = {
                "arm": arm_label(entry), "status": entry["status"], "hz": cell["hz"], "load": cell["load"],
                "met": cell["met"], "steps": cell["steps"], "max_us": cell["latency_us"]["max"],
                "jitter_us": cell["jitter_us"],
                "late_share": cell["deadline"]["share"] if cell["deadline"] else None,
            }  # fmt: skip
            for name in ("p50", "p90", "p99", "p99_9"):
                quantile = cell["latency_us"][name]
                row |= {f"{name}_us": quantile["value"], f"{name}_low_us": quantile["low"],
                        f"{name}_high_us": quantile["high"]}  # fmt: skip
            yield row | (cell["energy"] or {})
