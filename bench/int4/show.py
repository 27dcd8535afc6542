"""A document of kind `int4` as tables, for a terminal and as Markdown."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from bench.backends.int4.base import DTYPE_FLAGS
from bench.core import tables
from bench.core.document import Document, write_atomically
from bench.core.tables import Grid, microseconds, percent
from bench.int4.sass import Kernel, demangled
from bench.int4.validate import Found, Tried, failed, verdict
from bench.study import paper

PUBLISHED = ("l4_bf16", "l4_nf4", "l4_awq", "l4_exl2", "floor_l4_int4")
"""The study's figures of 4-bit weights on an L4, by their ids in paper.toml."""


OF_ITS_READ = (
    "of its read: the bandwidth over that of a plain read of as many bytes in the same mode, alternated with it"
)


def measured_grid(document: Document) -> Grid:
    """Every arm of every shape and layer."""
    columns = [("what", False), ("shape", False), ("arm", False), ("bytes", True), ("time us", True), ("GB/s", True),
               ("of spec", True), ("of read", True), ("of its read", True), (f"{document['dtype']}/this", True),
               ("95%", True), ("ideal", True), ("error", True), ("binds", False)]  # fmt: skip
    with_device = any(entry.get("device_us") for entry in document["ops"])
    if with_device:
        columns.insert(5, ("device us", True))
    rows = []
    for entry in document["ops"]:
        if entry["status"] == "unsupported":
            continue
        clock = entry["time_us"]
        row = [
            entry["label"], entry["shape"], f"{entry['backend']}:{entry['mode']}", tables.bytes_words(entry["bytes"]),
            microseconds(clock["p50"]) if clock else entry["status"], f"{entry['gbs']:.1f}" if clock else "-",
            percent(entry["share_of_spec"]), percent(entry["share_of_read"]),
            percent(entry.get("share_of_plain_read")),
            *_over_dense(entry["ratio_to_dense"]),
            f"{entry['ideal_ratio']:.2f}" if entry["ideal_ratio"] else "-",
            "-" if entry["max_rel_error"] is None else f"{entry['max_rel_error']:.1e}", entry["binds"] or "-",
        ]  # fmt: skip
        if with_device:
            row.insert(5, microseconds(entry["device_us"]["p50"]) if entry.get("device_us") else "-")
        rows.append(row)
    return columns, rows


def _over_dense(ratio: dict[str, float] | None) -> list[str]:
    """The ratio and its 95% interval."""
    if not ratio:
        return ["-", "-"]
    return [tables.times(ratio["p50"]), f"{tables.times(ratio['low'])} - {tables.times(ratio['high'])}"]


def refusals(document: Document) -> list[str]:
    """One line for each reason that kept a kernel from running, was wrong with it or broke it."""
    by_reason: dict[tuple[str, str, str], list[str]] = {}
    for entry in document["ops"]:
        if entry["status"] != "ok":
            where = by_reason.setdefault((entry["status"], entry["backend"], entry["reason"]), [])
            where.append(entry["label"] if entry["op"] != "layer" else entry["shape"])
    return [
        f"{status}: {backend} ({', '.join(dict.fromkeys(where))}): {reason}"
        for (status, backend, reason), where in by_reason.items()
    ]


def layout_lines(document: Document) -> list[str]:
    """One line for each kernel whose layout cannot say what the 4-bit weight does."""
    worst: dict[str, float] = {}
    for entry in document["ops"]:
        worst[entry["backend"]] = max(entry["layout_error"] or 0.0, worst.get(entry["backend"], 0.0))
    return [
        f"{name} multiplies by other weights than it was given: its layout alone is up to {error:.1e} off"
        for name, error in worst.items() if error > 1e-12
    ]  # fmt: skip


def published_lines() -> list[str]:
    """The study's figures, said to be its own."""
    figures = [paper.figures()[name] for name in PUBLISHED]
    arms = ", ".join(f"{figure.arm} {figure.value:g} ms" for figure in figures if figure.arm)
    floor = paper.value("floor_l4_int4")
    return [
        f"published, not measured here: a step of qwen2.5-7b on an L4 at ctx 2048: {arms}; its floor at a quarter of "
        f"the weight bytes {floor:g} ms ({paper.source()['url']})"
    ]


def predicted_lines(document: Document) -> list[str]:
    """The predictions with their assumptions."""
    lines = []
    for found in document["predictions"]:
        lines.append(
            f"PREDICTION, {found['gpu']}: a 4-bit layer of {found['model']} {microseconds(found['layer_us'])} us "
            f"(floor {microseconds(found['layer_floor_us'])}), a step {found['step_ms']:.2f} ms "
            f"(floor {found['step_floor_ms']:.2f})"
        )
        lines += [f"  assumes: {words}" for words in found["assumptions"]]
    return lines


def title(document: Document) -> str:
    """Which 4-bit weights: their groups, and whether they have zero points."""
    groups = "the whole row" if document["group_size"] == -1 else str(document["group_size"])
    return f"4-bit weights, groups of {groups}, {'symmetric' if document['symmetric'] else 'with zero points'}"


def print_document(document: Document, console: Console) -> None:
    """Everything a run has to say."""
    for line in tables.heading(document):
        console.print(Text(line))
    console.print()
    expendable = ["bytes", "of spec", "95%", "error", "GB/s", "ideal", "of read"]
    tables.print_fitted(title(document), measured_grid(document), expendable, console)
    console.print(Text(OF_ITS_READ))
    for line in (*refusals(document), *layout_lines(document), *predicted_lines(document), *published_lines()):
        console.print(Text(line))


def write_markdown(path: Path, document: Document) -> None:
    """The same as Markdown."""
    lines = [f"## {document['title']}", "", *(f"- {line}" for line in tables.heading(document)), ""]
    lines += tables.markdown_table(title(document), measured_grid(document))
    lines += [f"- {line}" for line in (OF_ITS_READ, *refusals(document), *layout_lines(document), *published_lines())]
    lines += [f"{'' if line.startswith(' ') else '- '}{line}" for line in predicted_lines(document)]
    lines += ["", f"Reproduce: `{document['command']}`"]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


_DTYPES = {str(dtype).removeprefix("torch."): flag for dtype, flag in DTYPE_FLAGS.items()}


def validation_grid(found: Sequence[Found]) -> Grid:
    """A kernel's trials: a row a shape and group, the worst error of its batches, a column a dtype; last what the
    format itself costs."""
    shown = [dtype for dtype in _DTYPES if any(one.dtype == dtype for one in found)]
    columns = [("case", False), ("weight", False), *((_DTYPES[dtype], True) for dtype in shown), ("format", True)]
    rows: dict[tuple[str, str], dict[str, list[Found]]] = {}
    for one in found:
        # The batch is the last word; exact trials are alike over shapes.
        weight = one.words.rpartition(", batch")[0]
        rows.setdefault((one.case, weight), {}).setdefault(one.dtype, []).append(one)
    return columns, [
        [case, weight, *(_errors(by_dtype.get(dtype, [])) for dtype in shown), _format_error(by_dtype)]
        for (case, weight), by_dtype in rows.items()
    ]


def _errors(found: Sequence[Found]) -> str:
    if bad := [one.status for one in found if one.status in ("wrong", "error")]:
        return bad[0].upper()
    errors = [one.max_rel_error or 0.0 for one in found if one.status == "ok"]
    if not errors:
        return "refused" if found else "-"
    return f"{max(errors):.1e}" if max(errors) else "0"


def _format_error(by_dtype: dict[str, list[Found]]) -> str:
    errors = [one.format_error for found in by_dtype.values() for one in found if one.format_error is not None]
    return f"{max(errors):.1e}" if errors else "-"


def validation_lines(tried: Tried) -> list[str]:
    """The verdict on a kernel, what was wrong, and each reason for a refusal."""
    found = tried.found
    lines = [verdict(tried.kernel, found, tried.ended)]
    lines += [f"  {one.status}: {one.case}, {one.dtype}, {one.words}: {one.reason}" for one in _telling(failed(found))]
    if (more := len(failed(found)) - _LISTED) > 0:
        lines.append(f"  and {more} more like these")
    reasons: dict[str, int] = {}
    for one in found:
        if one.status == "refused":
            reasons[str(one.reason)] = reasons.get(str(one.reason), 0) + 1
    return lines + [f"  refused {count}: {reason}" for reason, count in reasons.items()]


_LISTED = 8
"""Failures that are listed one by one; a broken kernel is wrong everywhere."""


def _telling(bad: Sequence[Found]) -> list[Found]:
    """The failures that are listed: of every case the first, then the second, ..."""
    before: dict[str, int] = {}
    order = []
    for one in bad:
        before[one.case] = before.get(one.case, -1) + 1
        order.append(before[one.case])
    return [one for _, one in sorted(zip(order, bad, strict=True), key=lambda pair: pair[0])][:_LISTED]


def print_validation(tried: Tried, console: Console) -> None:
    """All trials of a kernel and the verdict, or why there are none."""
    if tried.reason:
        console.print(Text(f"{tried.kernel}: unsupported: {tried.reason}"))
        return
    if tried.found:
        heading = f"{tried.kernel}: relative error against float64"
        console.print(tables.make_table(heading, validation_grid(tried.found), console.width))
    for line in validation_lines(tried):
        console.print(Text(line))


def print_sass(architecture: str, kernels: Sequence[Kernel], console: Console) -> bool:
    """A row a kernel, and what is wrong with it. Returns whether nothing is."""
    columns = [("kernel", False), ("registers", True), ("instructions", True), ("16-byte loads", True), ("LOP3", True),
               ("nibble masks", True), ("LDL, STL", True)]  # fmt: skip
    names = demangled([kernel.name for kernel in kernels])
    rows = [
        [name, *("-" if n is None else str(n) for n in (
            kernel.registers, kernel.instructions, kernel.wide_loads, kernel.lop3, kernel.nibble_masks,
            kernel.local_memory,
        ))] for name, kernel in zip(names, kernels, strict=True)
    ]  # fmt: skip
    heading = f"SASS of the 4-bit kernels for {architecture}"
    grid = tables.fit((columns, rows), console.width, ["LOP3", "instructions", "LDL, STL"])
    console.print(tables.make_table(heading, grid, console.width))
    for name, kernel in zip(names, kernels, strict=True):
        for problem in kernel.problems:
            console.print(Text(f"{name}: {problem}"))
    bad = sum(bool(kernel.problems) for kernel in kernels)
    console.print(Text(f"{len(kernels)} kernels, {bad or 'none'} with a problem"))
    return not bad
