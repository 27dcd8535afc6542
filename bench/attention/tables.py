"""What bench.attention found, as tables and pictures."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from bench.attention import aa as attention_aa
from bench.attention import document as attention_document
from bench.attention.arms import SDPA_KERNELS
from bench.attention.results import Entry
from bench.core.document import Document, write_atomically
from bench.core.tables import Grid, commit_lines, fit, make_table, markdown_table, microseconds

# The context whose arms are shown one by one; the study's.
_HEADLINE_CTX = 2048

# Kernels of an arm that are named on a terminal: math alone launches sixteen.
_KERNELS_NAMED = 3

_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")
# What SDPA says of the backends that a pin to one of them has switched off.
_SWITCHED_OFF = re.compile(r" [\w ]+ kernel not used because: [\w ]+ has been runtime disabled\.")


def heading(document: Document) -> list[str]:
    """What was run, where, and how often."""
    machine = document["environment"]
    on_cuda = document["device"] == "cuda"
    device = machine["gpu"]["name"] if on_cuda else machine["cpu"]["model"]
    sessions = [session for session in document["sessions"] if session["status"] == "ok"]
    calls = f"{document['calls']} calls an arm and clock after {document.get('warmup')}, "
    timed = "" if document.get("gate_only") else calls
    lines = [
        f"{document['title']}, {document['dtype']}, {document.get('l2')} cache; {timed}"
        f"{len(sessions)} of {document['sessions_planned']} sessions",
        f"{document['device']}: {device}; torch {machine['torch']['version']}; {document['created']}",
    ]
    if len(allowed := document.get("sdpa_from", SDPA_KERNELS)) < len(SDPA_KERNELS):
        lines.append(f"default SDPA may choose {', '.join(allowed)} only")
    ceilings = [one for session in document["sessions"] for one in session["ceilings"].values()]
    if ceilings:
        reads = sorted(one["read_gbs"] for one in ceilings)
        spec = ceilings[0]["spec_gbs"]
        lines.append(
            f"bandwidth: read {reads[len(reads) // 2]:,.1f} GB/s measured, "
            f"spec {'unknown' if spec is None else f'{spec:,.1f} GB/s'} ({ceilings[0]['spec_source']})"
        )
    for session in document["sessions"]:
        if session["status"] != "ok":
            lines.append(f"session {session['session']}: {session['status']}: {session['reason']}")
        for backend, why in session["lost"].items():
            lines.append(
                f"session {session['session']}: {backend} ended its process and was left out from then on: {why}"
            )
        slowed = sum(len(one.get("throttled_rounds", ())) for one in session["throttled"].values())
        if slowed:
            lines.append(f"session {session['session']}: {slowed} throttled rounds")
    lines += commit_lines(document)
    if document["interrupted"]:
        lines.append("INTERRUPTED: what follows was measured up to then")
    return lines


def cells(document: Document) -> dict[str, list[Entry]]:
    """The arms of every cell by its shape, in the order measured."""
    found: dict[str, list[Entry]] = {}
    for entry in document["arms"]:
        found.setdefault(entry["shape"], []).append(entry)
    return found


def _clock(entry: Entry | None, name: str) -> str:
    clock = entry and entry[name]
    if not clock:
        return "-"
    spread = "" if clock["sd"] is None else f" ± {microseconds(clock['sd'])}"
    return microseconds(clock["p50"]) + spread


def _ratio(entry: Entry | None, clock: str) -> str:
    ratio = entry and entry["ratio_to_sdpa"] and entry["ratio_to_sdpa"][clock]
    return f"{ratio['p50']:.2f}" if ratio else "-"


def limit(eager: Entry | None, graph: Entry | None) -> str:
    """Whether a call from Python takes its wrapper's time or its kernels': host where enqueuing takes longer than the
    device does."""
    device = (eager and eager["device_us"]) or (graph and graph["wall_us"])
    if not eager or not eager["host_us"] or not device:
        return "-"
    return "host" if eager["host_us"]["p50"] > device["p50"] else "kernel"


def rows_of(entries: Iterable[Entry]) -> dict[str, dict[str, Entry]]:
    """Entries by row and then by mode: a row a backend, and one more where the context manager is inside."""
    rows: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        mode, _, where = entry["mode"].partition("-")
        name = f"{entry['backend']} (manager inside)" if where else entry["backend"]
        rows.setdefault(name, {})[mode] = entry
    return rows


def cell_grid(entries: list[Entry]) -> Grid:
    """One cell: a row a backend, its clocks, its ratios to default SDPA, and a model's layers of it by the latency of a
    call (by the steady state where there is none). Columns that hold nothing are left out."""
    layers = entries[0]["layers"]
    columns = [("backend", False), ("status", False), ("latency us", True), ("eager us", True), ("host us", True),
               ("native us", True), ("native host us", True), ("graph us", True), ("device us", True),
               ("limit", False), ("sdpa / this, latency", True), ("sdpa / this, eager", True),
               ("sdpa / this, graph", True),
               *((f"{count} layers of {model}, ms", True) for model, count in layers.items())]  # fmt: skip
    rows = []
    for name, modes in rows_of(entries).items():
        eager, graph, native = modes.get("eager"), modes.get("graph"), modes.get("native")
        call = eager and (eager["latency_us"] or eager["wall_us"])
        measured = any(entry["wall_us"] for entry in modes.values())
        rows.append([
            name, "ok" if measured else next(iter(modes.values()))["status"],
            _clock(eager, "latency_us"), _clock(eager, "wall_us"), _clock(eager, "host_us"),
            _clock(native, "wall_us"), _clock(native, "host_us"), _clock(graph, "wall_us"),
            _clock(eager, "device_us"), limit(eager, graph), _ratio(eager, "latency_us"),
            _ratio(eager, "wall_us"), _ratio(graph, "wall_us"),
            *(f"{call['p50'] * count / 1000:.3f}" if call else "-" for count in layers.values()),
        ])  # fmt: skip
    kept = [i for i in range(len(columns)) if any(row[i] != ("ok" if i == 1 else "-") for row in rows)]
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def floors(entries: Iterable[Entry]) -> dict[int, float]:
    """The floor at the read ceiling by context; one a context, since a plug-in's process has a ceiling of its own."""
    found: dict[int, float] = {}
    for entry in entries:
        if floor_us := entry["floor_us"]["at_read"]:
            found.setdefault(entry["ctx"], floor_us)
    return found


def context_grids(document: Document) -> list[tuple[str, Grid]]:
    """For each head shape and batch the wall time over contexts, a row an arm: from a graph where there are graphs."""
    mode = "graph" if document["device"] == "cuda" else "eager"
    grids: list[tuple[str, Grid]] = []
    if document.get("gate_only"):
        return grids
    groups = dict.fromkeys((entry["heads"], entry["batch"]) for entry in document["arms"])
    for heads, batch in groups:
        own = [e for e in document["arms"] if (e["heads"], e["batch"], e["mode"]) == (heads, batch, mode)]
        contexts = sorted({entry["ctx"] for entry in own})
        if len(contexts) < 2:
            continue
        by_backend: dict[str, dict[int, Entry]] = {}
        for entry in own:
            by_backend.setdefault(entry["backend"], {})[entry["ctx"]] = entry
        rows = [
            [name, *(_cell(found.get(ctx)) for ctx in contexts)]
            for name, found in by_backend.items()
            if any(entry["wall_us"] for entry in found.values())
        ]
        floors_us = floors(own)
        rows.append(["floor at read", *(microseconds(floors_us[c]) if c in floors_us else "-" for c in contexts)])
        by_ctx = {ctx: behind_the_peers(entry for entry in own if entry["ctx"] == ctx) for ctx in contexts}
        if any(by_ctx.values()):
            rows.append(["native", *(behind_words(by_ctx[ctx]) for ctx in contexts)])
        columns = [("backend", False), *((f"kv {ctx}", True) for ctx in contexts)]
        models = ", ".join(own[0]["layers"])
        whose = f" ({models})" if models else ""
        grids.append((f"{heads}{whose}, batch {batch}: {mode}, us a call", (columns, rows)))
    return grids


LEVEL = 0.005
"""So much longer than the fastest of the others takes counts as level."""


def behind_the_peers(entries: Iterable[Entry]) -> tuple[float, str] | None:
    """Of the arms of one cell and mode: how much longer native's call takes than the fastest of the others', as a
    share, below 0 where it is the fastest; and which that is. None where either is missing."""
    times = {entry["backend"]: entry["wall_us"]["p50"] for entry in entries if entry["wall_us"]}
    own = times.get("native")
    peers = {name: us for name, us in times.items() if not name.startswith("native")}  # nor native@2
    if own is None or not peers:
        return None
    fastest = min(peers, key=lambda name: peers[name])
    return own / peers[fastest] - 1, fastest


def behind_words(behind: tuple[float, str] | None) -> str:
    """`first by 12.0%`; `0.3% behind xqa (level)`, within LEVEL; `2.1% behind fa3`."""
    if behind is None:
        return "-"
    share, peer = behind
    if share <= 0:
        return f"first by {-share:.1%}"
    return f"{share:.1%} behind {peer}" + (" (level)" if share <= LEVEL else "")


def standing(document: Document) -> list[str]:
    """In how many cells native is the first or level, by calls from a graph (a CPU: from Python); where it is not."""
    mode = "graph" if document["device"] == "cuda" else "eager"
    found = {
        shape: behind
        for shape, entries in cells(document).items()
        if (behind := behind_the_peers(entry for entry in entries if entry["mode"] == mode))
    }
    if not found or document.get("gate_only"):
        return []
    late = {shape: behind for shape, behind in found.items() if behind[0] > LEVEL}
    return [
        f"native is the first or within {LEVEL:.1%} in {len(found) - len(late)} of {len(found)} cells, {mode}",
        *(f"not at {shape}: {behind_words(behind)}" for shape, behind in late.items()),
    ]


def _cell(entry: Entry | None) -> str:
    if entry is None:
        return "-"
    return microseconds(entry["wall_us"]["p50"]) if entry["wall_us"] else entry["status"]


def gate_grid(document: Document) -> Grid:
    """A row an arm, a column a head shape: over contexts and batches the largest error, or how many did not pass."""
    groups = {entry["heads"]: f"{entry['heads']}, group {entry['group_size']}" for entry in document["arms"]}
    arms = dict.fromkeys((entry["backend"], entry["mode"]) for entry in document["arms"])
    rows = []
    for backend, mode in arms:
        row = [backend, mode]
        for heads in groups:
            own = [e for e in document["arms"] if (e["backend"], e["mode"], e["heads"]) == (backend, mode, heads)]
            failed = [entry["status"] for entry in own if entry["status"] != "ok"]
            if not own:
                row.append("-")
            elif failed:
                worst = next(status for status in ("wrong", "error", "oom", "unsupported") if status in failed)
                row.append(worst if len(failed) == len(own) else f"{worst} in {len(failed)} of {len(own)}")
            else:
                errors = [entry["max_rel_error"] for entry in own if entry["max_rel_error"] is not None]
                row.append(f"ok, {max(errors):.1e}" if errors else "ok")
        rows.append(row)
    return [("backend", False), ("mode", False), *((words, False) for words in groups.values())], rows


def gate_title(document: Document) -> str:
    """What gate_grid() shows."""
    contexts, batches = (", ".join(map(str, document[name])) for name in ("ctxs", "batches"))
    return (
        f"Against the float64 reference, kv {contexts}, batch {batches}: the largest error relative to a row's largest"
    )


def aa_lines(document: Document) -> list[str]:
    """What its A/A control found; nothing where it has none."""
    return attention_aa.lines(document.get("aa", []))


def headline(document: Document) -> str | None:
    """The cell that is shown arm by arm: batch 1 where there is one, the context next to the study's, a shape of
    Llama's where there is one."""
    entries = document["arms"]
    if not entries:
        return None

    def distance(entry: Entry) -> tuple[Any, ...]:
        return (
            entry["batch"],
            abs(entry["ctx"] - _HEADLINE_CTX),
            not any(m.startswith("llama") for m in entry["layers"]),
        )

    return min(entries, key=distance)["shape"]


def refusals(document: Document) -> list[str]:
    """One line a reason: which arms, in how many cells. Reasons of one arm that differ in numbers alone, as those do
    that name the shape, are one, and the first stands for all."""
    alike: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in document["arms"]:
        if entry["status"] != "ok":
            pattern = _NUMBER.sub("#", str(entry["reason"]))
            alike.setdefault((entry["status"], entry["backend"], pattern), []).append(entry)
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for (status, backend, _), entries in alike.items():
        reason = _SWITCHED_OFF.sub("", str(entries[0]["reason"]))
        if len({entry["reason"] for entry in entries}) > 1:
            reason += f" (so at {entries[0]['shape']}; elsewhere with other numbers)"
        arms = found.setdefault((status, reason), {})
        for entry in entries:
            arms.setdefault(f"{backend}:{entry['mode']}", []).append(entry["shape"])
    total = len(cells(document))
    lines = []
    for (status, reason), arms in found.items():
        where: dict[tuple[str, ...], list[str]] = {}
        for arm, shapes in arms.items():
            where.setdefault(tuple(shapes), []).append(arm)
        told = "; ".join(
            ", ".join(names) + ("" if len(shapes) == total else f" (at {'; '.join(shapes[:3])}"
                                + (f" and {len(shapes) - 3} more)" if len(shapes) > 3 else ")"))
            for shapes, names in where.items()
        )  # fmt: skip
        lines.append(f"{status}: {told}: {reason}")
    return lines


def _ran(details: list[Document], most: int | None) -> str:
    """Launches in order by name, grid and time; of more than `most` the longest, and what the others take together."""
    longest = sorted(range(len(details)), key=lambda i: -details[i]["us"])[:most]
    words = [
        f"{details[i]['name'][:100]} {'x'.join(map(str, details[i]['grid']))} {details[i]['us']:.2f} us"
        for i in sorted(longest)
    ]
    rest_us = [one["us"] for i, one in enumerate(details) if i not in longest]
    return "; ".join([*words, *([f"and {len(rest_us)} more, {sum(rest_us):.1f} us"] if rest_us else [])])


def choices(document: Document, shape: str, most: int | None = None) -> list[str]:
    """What ran in a cell: SDPA's choice, the kernels by name with their grids (of an arm the `most` longest), and what
    a library shows of its plan."""
    lines = []
    if sdpa := next((s["sdpa"][shape] for s in document["sessions"] if shape in s["sdpa"]), None):
        enabled = ", ".join(name for name, on in sdpa["enabled"].items() if on)
        lines.append(f"SDPA's choice: {sdpa['choice']}; enabled: {enabled}; order: {', '.join(sdpa['priority'])}")
    for name, modes in rows_of(cells(document)[shape]).items():
        entry = modes.get("eager")
        if not entry or entry["status"] != "ok":
            continue
        details = attention_document.kernel_details(entry, document)
        ran = _ran(details, most) if details else "; ".join(entry["kernels"])
        plan = f"; {entry['choices']}" if entry["choices"] else ""
        lines.append(f"{name}: {ran}{plan}")
    return lines


def print_document(document: Document, console: Console) -> None:
    """The headline cell arm by arm, the times over contexts, and why cells are empty."""
    for line in heading(document):
        console.print(Text(line))
    shape = headline(document)
    if shape is None:
        return
    console.print()
    if document.get("gate_only"):
        console.print(make_table(gate_title(document), gate_grid(document), console.width))
        for line in refusals(document):
            console.print(Text(line))
        return
    entries = cells(document)[shape]
    measured = [entry for entry in entries if entry["wall_us"]] or entries
    grid = fit(cell_grid(measured), console.width, ["limit", "sdpa / this, eager", "sdpa / this, graph"])
    console.print(make_table(f"{shape}: mean ± SD over sessions of their medians", grid, console.width))
    for line in choices(document, shape, _KERNELS_NAMED):
        console.print(Text(line))
    for title, grid in context_grids(document):
        console.print()
        console.print(make_table(title, grid, console.width))
    for line in (*standing(document), *refusals(document), *aa_lines(document)):
        console.print(Text(line))


def write_markdown(path: Path, document: Document) -> None:
    """The times over contexts, and every cell arm by arm."""
    lines = [f"## {document['title']}", "", *(f"- {line}" for line in heading(document)), ""]
    if document.get("gate_only"):
        lines += markdown_table(gate_title(document), gate_grid(document))
    for title, grid in context_grids(document):
        lines += markdown_table(title, grid)
    for shape, entries in cells(document).items():
        if document.get("gate_only"):
            break
        lines += markdown_table(f"{shape}: mean ± SD over sessions of their medians", cell_grid(entries))
        lines += [*(f"- {line}" for line in choices(document, shape)), ""]
    said = (*standing(document), *refusals(document), *aa_lines(document))
    lines += [*(f"- {line.strip()}" for line in said), "", f"Reproduce: `{document['command']}`"]
    write_atomically(path, ("\n".join(lines) + "\n").encode())
