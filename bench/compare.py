"""Two runs of the same work: which arms became faster, which slower, and is that more than noise?

python -m bench.compare before.json after.json --threshold=0.03
python -m bench.compare before/ after/

A side is a document of any kind that carries samples, a folder of them, or several with commas between: each process
is a session, and sessions are what is compared (bench.study.runs). Exit status 0: no arm is slower by more than
--threshold, as far as that can be told; 1: one is, significantly; 2: a bad argument, a file that is no such document,
or sides of other work.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.core import cli, document
from bench.core.document import Document
from bench.core.errors import UsageError, flag_error, plain
from bench.core.flags import Flags, make_command
from bench.core.outputs import Outputs
from bench.core.paths import user_path
from bench.core.tables import microseconds
from bench.drivers import takes
from bench.study import drift, quantiles, runs

CORRECTIONS = ("holm", "bh")


@dataclass
class Comparison:
    """One arm on both sides, and of how many sessions. `ratio` is B over A: above 1, B is slower. `p` is corrected for
    the number of arms."""

    key: str
    a_us: float
    b_us: float
    ratio: float
    low: float
    high: float
    p: float
    verdict: str
    a_sessions: int
    b_sessions: int


def series(result: Document) -> dict[str, list[np.ndarray]]:
    """Every list of samples of a document by a name that is the same in another run of the same work, microseconds, one
    a session.

    A list of samples is a value under a key that ends in `samples_us`, or the study's `step_times_ms`; its name is
    made of what the entry around it says it is: sizes, model, backend, fusion, mode, op, label, shape. A document of
    several sessions has several by one name.
    """
    found: dict[str, list[np.ndarray]] = {}
    for name, unit, values in _lists(result):
        found.setdefault(name, []).append(np.array(values, dtype=np.float64) * unit)
    return found


def _lists(result: Document) -> list[tuple[str, float, list[float]]]:
    """The lists of series(): name, unit in microseconds, values."""
    found: list[tuple[str, float, list[float]]] = []
    seen: dict[tuple[str, str], int] = {}

    def walk(node: Any, names: tuple[str, ...], session: str) -> None:
        if isinstance(node, dict):
            own = [str(node[key]) for key in _NAMING if isinstance(node.get(key), (str, int)) and node[key] != ""]
            own += _rate_words(node)
            names, session = (*names, *own), str(node.get("session", session))
            for key, value in node.items():
                if _is_series(key, value) and not _shadowed(node, key):
                    unit = 1000.0 if key.endswith("_ms") else 1.0
                    clock = key.removesuffix("samples_us").removesuffix("step_times_ms").strip("_")
                    name = " ".join((*names, clock)).strip() or "step"
                    # Twice the same in one session are two arms.
                    seen[name, session] = count = seen.get((name, session), 0) + 1
                    found.append((name if count == 1 else f"{name} #{count}", unit, value))
                elif key not in ("environment", "model", "paper"):
                    walk(value, names, session)
        elif isinstance(node, list):
            for item in node:
                walk(item, names, session)

    walk({key: value for key, value in result.items() if key not in (*_NAMING, "session")}, (), "")
    return found


def _rate_words(node: dict) -> list[str]:
    """Of a cell of bench.rate: at how many hertz, and beside what."""
    if not isinstance(node.get("hz"), (int, float)):
        return []
    return [f"{node['hz']:g} Hz" if node["hz"] else "back to back", *([node["load"]] if node["load"] != "none" else [])]


_NAMING = ("arm", "backend", "fusion", "mode", "op", "label", "shape")


def _is_series(key: str, value: Any) -> bool:
    named = key.endswith(("samples_us", "step_times_ms"))
    return named and isinstance(value, list) and len(value) > 0 and all(type(v) in (int, float) for v in value)


def _shadowed(node: dict, key: str) -> bool:
    """The study's copy of samples that stand beside it."""
    return key == "step_times_ms" and bool(node.get("samples_us"))


def of_side(documents: Sequence[Document]) -> dict[str, list[np.ndarray]]:
    """series() of several documents together."""
    found: dict[str, list[np.ndarray]] = {}
    for result in documents:
        for key, sessions in series(result).items():
            found.setdefault(key, []).extend(sessions)
    return found


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down correction (1979): the chance of one false alarm among all arms stays at alpha."""
    n = len(p_values)
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * (n - np.arange(n)))
    corrected = np.empty(n)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def corrected(p_values: np.ndarray, correction: str) -> np.ndarray:
    """holm, or bh: Benjamini and Hochberg's (1995), scipy's, which bounds the share of false alarms among alarms."""
    if len(p_values) == 0:
        return p_values
    return holm(p_values) if correction == "holm" else scipy.stats.false_discovery_control(p_values, method="bh")


def verdict(low: float, high: float, p: float, alpha: float, threshold: float) -> str:
    """SLOWER or FASTER: significant, and the interval lies off 1. SAME: the interval lies within the threshold of 1.
    UNCLEAR: neither; more samples, or a quieter machine, would tell."""
    if p < alpha and low > 1:
        return "SLOWER"
    if p < alpha and high < 1:
        return "FASTER"
    return "SAME" if 1 - threshold <= low and high <= 1 + threshold else "UNCLEAR"


def compare(
    a: Sequence[Document],
    b: Sequence[Document],
    alpha: float,
    threshold: float,
    correction: str,
    shift: float = runs.KNOWN_SHIFT,
) -> list[Comparison]:
    """The arms that both sides have, in A's order; shift: bench.study.runs.compare."""
    ours, theirs = of_side(a), of_side(b)
    shared = [key for key in ours if key in theirs]
    found = [runs.compare(ours[key], theirs[key], shift) for key in shared]
    p_values = corrected(np.array([one.p for one in found]), correction)
    return [
        Comparison(
            key, one.a_us, one.b_us, one.ratio, one.low, one.high, float(p),
            verdict(one.low, one.high, p, alpha, threshold), len(ours[key]), len(theirs[key]),
        )
        for key, one, p in zip(shared, found, p_values, strict=True)
    ]  # fmt: skip


@dataclass
class Tail:
    """One quantile of latencies on both sides, all sessions of a side together: its value with its 95% interval, in
    microseconds, which holds what blocks differ by. SLOWER and FASTER: the intervals lie apart; else UNCLEAR. Of one
    session a side the sessions' own difference is in it."""

    key: str
    quantile: str
    a_us: Document
    b_us: Document
    ratio: float
    verdict: str


def _latencies(documents: Sequence[Document]) -> dict[str, list[np.ndarray]]:
    """Of documents of bench.rate: by arm, rate and load the latencies of each block, those of all documents together.
    The step that opens a block is not among them."""
    found: dict[str, list[np.ndarray]] = {}
    for result in documents:
        for entry in result["arms"]:
            for cell in entry.get("cells", ()):
                ends = np.cumsum([count - 1 for count in cell["blocks"]])[:-1]
                key = " ".join([entry["name"], *_rate_words(cell)])
                found.setdefault(key, []).extend(np.split(np.array(cell["samples_us"]), ends))
    return found


def tails(a: Sequence[Document], b: Sequence[Document]) -> list[Tail]:
    """Of documents of bench.rate: every quantile that both sides have the steps for."""
    if not all(result.get("kind") == "rate" for result in (*a, *b)):
        return []
    ours, theirs = _latencies(a), _latencies(b)
    found = []
    for key in (key for key in ours if key in theirs):
        of_a, of_b = (
            quantiles.summary(np.concatenate(blocks), [len(block) for block in blocks])
            for blocks in (ours[key], theirs[key])
        )
        for name in quantiles.QUANTILES:
            x, y = of_a[name], of_b[name]
            if x["value"] is None or y["value"] is None:
                continue
            apart = "SLOWER" if y["low"] > x["high"] else "FASTER" if y["high"] < x["low"] else "UNCLEAR"
            found.append(Tail(key, name, x, y, y["value"] / x["value"], apart))
    return found


KINDS = ("layer", "op", "step", "ab", "attention", "stack", "int4", "call", "rate")
"""Of the documents that carry samples."""

_WORKLOAD = (
    "kind", "model.name", "model.n_layers", "ctx", "ctxs", "batch", "batches", "dtype", "device", "l2",
    "shared_weights", "group_size", "symmetric", "quant.group_size", "quant.zero_points", "quant.act_order", "burst",
)  # fmt: skip
"""What two documents must share for a ratio of their times to say that an arm became faster or slower."""
_SETTINGS = (*_WORKLOAD, "weights", "warmup", "steps")


def workload_differences(a: Document, b: Document) -> list[tuple[str, Any, Any]]:
    """What of _WORKLOAD the two differ in."""
    flat_a, flat_b = _flat(a), _flat(b)
    return [(key, flat_a.get(key), flat_b.get(key)) for key in _WORKLOAD if flat_a.get(key) != flat_b.get(key)]


# What is never twice the same, and says nothing about the two runs' comparability.
_FLEETING = {"mhz_now", "load_average_1min", "temperature_c"}


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        return {k: v for key, value in node.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): node}


def differences(a: Document, b: Document) -> list[tuple[str, Any, Any]]:
    """What was not the same in the two runs beside the arms: settings first, then the environment."""
    flat_a, flat_b = _flat(a), _flat(b)
    environment = dict.fromkeys(key for key in (*flat_a, *flat_b) if key.startswith("environment."))
    keys = [*_SETTINGS, *(key for key in environment if key.rsplit(".", 1)[-1] not in _FLEETING)]
    return [(key, flat_a.get(key), flat_b.get(key)) for key in keys if flat_a.get(key) != flat_b.get(key)]


def load(path: Path) -> Document:
    """A document that has samples, which are compared whatever else is in it: doubts() says what is wrong there. Raises
    UsageError where it is none."""
    result = document.read(path)
    kind = result.get("kind")
    if kind not in KINDS:
        raise UsageError(f"{path}: kind: must be one of {', '.join(KINDS)}, got {kind!r}")
    found = _lists(result)
    if not found:
        raise UsageError(f"{path}: carries no samples to compare")
    for name, _, values in found:
        if not all(0 < value <= sys.float_info.max for value in values):
            wrong = next(value for value in values if not 0 < value <= sys.float_info.max)
            raise UsageError(
                f"{path}: samples of {name} must be finite times above 0, got {plain(repr(wrong), most=30)}"
            )
    return result


def load_side(text: str, across: bool) -> list[Document]:
    """The documents of a side: files and folders with commas between. Raises UsageError where their work differs."""
    paths: list[Path] = []
    for part in text.split(","):
        path = user_path("DOCUMENT", part)
        inside = [*sorted(path.glob("*.json")), *sorted(path.glob("*.json.gz"))] if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"{path}: is a folder without documents (*.json, *.json.gz)")
        paths += inside
    documents = [load(path) for path in paths]
    for path, other in zip(paths[1:], documents[1:], strict=True):
        if (found := other_work(documents[0], other)) and not across:
            raise UsageError(f"{path}: is of another workload than {paths[0]}: {found}")
    return documents


def other_work(a: Document, b: Document) -> str | None:
    """workload_differences() in words; None where there are none."""
    return ", ".join(f"{key} {x} and {y}" for key, x, y in workload_differences(a, b)) or None


def doubts(side: str, result: Document) -> list[str]:
    """What a document's reader was told first, once more: others were at work, a clock was slowed, an arm drifted. Of
    one that breaks its schema that alone."""
    if wrong := document.fault(result):
        return [f"{side}: is not as docs/document.md has it: {wrong}"]
    found = []
    cpu = result.get("environment", {}).get("cpu", {})
    load_average, cpus = cpu.get("load_average_1min"), cpu.get("cpus_usable")
    if load_average is not None and cpus is not None and load_average > cpus:
        found.append(f"BUSY: load average {load_average:.1f} on {cpus} CPUs when this began")
    if slowed := result.get("throttled_rounds"):
        found.append(f"throttled: {len(slowed)} of {result.get('steps')} rounds")
    if slowed := sum(
        len(cell.get("throttled_rounds", ()))
        for session in result.get("sessions", ()) if isinstance(session, dict)
        for cell in (session.get("throttled") or {}).values()
    ):  # fmt: skip
        found.append(f"throttled: {slowed} rounds")
    drifting = [
        f"{name} {100 * one.change:+.1f}%"
        for name, sessions in series(result).items()
        for samples in sessions
        if (one := drift.test(samples)).drifting
    ]
    if drifting:
        more = f" and {len(drifting) - 3} more" if len(drifting) > 3 else ""
        found.append(f"drifting over their rounds: {', '.join(drifting[:3])}{more}")
    return [f"{side}: {words}" for words in found]


def _tail_table(rows: Sequence[Document]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("latency", "", "A us", "95%", "B us", "95%", "B / A", ""):
        table.add_column(name, justify="left" if name in ("latency", "") else "right", overflow="fold")
    for row in rows:
        sides = [
            words for side in (row["a_us"], row["b_us"])
            for words in (microseconds(side["value"]), f"{microseconds(side['low'])} - {microseconds(side['high'])}")
        ]  # fmt: skip
        name = row["quantile"].replace("_", ".")
        table.add_row(Text(row["key"]), name, *sides, f"{row['ratio']:.3f}", row["verdict"])
    return table


def print_comparison(result: Document, console: Console) -> None:
    """Differences of the environment and doubts first, then a line an arm."""
    for row in result["differences"]:
        console.print(Text(f"differs: {row['key']}: {row['a']} | {row['b']}"))
    for line in result["doubts"]:
        console.print(Text(line))
    table = Table(box=None, pad_edge=False)
    for name in ("arm", "A us", "B us", "B / A", "95%", "p", ""):
        table.add_column(name, justify="left" if name in ("arm", "") else "right", overflow="fold")
    for row in result["comparisons"]:
        table.add_row(
            Text(row["key"]), microseconds(row["a_us"]), microseconds(row["b_us"]), f"{row['ratio']:.3f}",
            f"{row['low']:.3f} - {row['high']:.3f}", f"{row['p']:.2g}", row["verdict"],
        )  # fmt: skip
    console.print(table)
    if result["tails"]:
        console.print(_tail_table(result["tails"]))
    if least := result["least_difference"]:
        console.print(Text(
            f"one session on a side: no difference below {100 * least:.1f}% can be told from what sessions of one "
            f"machine differ by ({100 * result['shift']:g}%, --shift); give folders of several sessions"
        ))  # fmt: skip
    for side in ("a", "b"):
        if only := result[f"only_in_{side}"]:
            console.print(Text(f"only in {side.upper()}: {', '.join(only)}"))


@dataclass(kw_only=True)
class Settings(Flags):
    """The flags of one run."""

    a: Annotated[str, typer.Argument(metavar="A", help="the run before: a document, a folder, several by commas")] = ""
    b: Annotated[str, typer.Argument(metavar="B", help="the run after")] = ""
    threshold: Annotated[float, typer.Option("--threshold", help="a slow-down that fails, as a share of the time")] = (
        0.03
    )
    alpha: Annotated[float, typer.Option("--alpha", help="significance of the corrected test")] = 0.05
    shift: Annotated[
        float, typer.Option("--shift", help="by what share sessions of this machine are known to differ (SD)")
    ] = runs.KNOWN_SHIFT
    correction: Annotated[str, typer.Option("--correction", help="for many arms: holm or bh")] = "holm"
    across: Annotated[bool, typer.Option("--across", help="compare documents of different workloads")] = False
    json: cli.JsonFlag = ""
    list_: Annotated[bool, typer.Option("--list", help="name the kinds of documents that can be compared")] = False


def main(settings: Settings) -> int:
    """Compare two result documents arm by arm."""
    if settings.list_:
        print(f"kinds of documents that carry samples: {', '.join(KINDS)}")
        return 0
    a, b, threshold, alpha, correction = (
        settings.a, settings.b, settings.threshold, settings.alpha, settings.correction,
    )  # fmt: skip
    if not (a and b):
        raise UsageError("A B: must be two sides, each a result document or a folder of them")
    outputs = Outputs(settings.json)
    if not 0 <= threshold < 10:
        raise flag_error("--threshold", threshold, "in 0..10")
    if not 0 < alpha < 1:
        raise flag_error("--alpha", alpha, "between 0 and 1")
    if not 0 <= settings.shift < 1:
        raise flag_error("--shift", settings.shift, "in 0..1")
    cli.choice("--correction", correction, CORRECTIONS)
    before, after = load_side(a, settings.across), load_side(b, settings.across)
    if (found := other_work(before[0], after[0])) and not settings.across:
        raise UsageError(f"{a} and {b}: are of different workloads ({found}): --across compares them all the same")
    rows = compare(before, after, alpha, threshold, correction, settings.shift)
    if not rows:
        raise UsageError(f"{a} and {b}: have no arm in common")
    keys_a, keys_b = of_side(before), of_side(after)
    alone = any(min(row.a_sessions, row.b_sessions) == 1 for row in rows)
    failed = [row.key for row in rows if row.verdict == "SLOWER" and row.ratio > 1 + threshold]
    result = {
        **cli.head("bench.compare", "compare"),
        "threshold": threshold, "alpha": alpha, "correction": correction,
        "differences": [{"key": key, "a": x, "b": y} for key, x, y in differences(before[0], after[0])],
        "doubts": [
            line for side, documents in (("A", before), ("B", after)) for result in documents
            for line in doubts(side, result)
        ],
        "shift": settings.shift, "least_difference": runs.least_difference(settings.shift) if alone else None,
        "comparisons": [vars(row) for row in rows], "tails": [vars(row) for row in tails(before, after)],
        "only_in_a": [key for key in keys_a if key not in keys_b],
        "only_in_b": [key for key in keys_b if key not in keys_a],
        "slower_past_threshold": failed,
    }  # fmt: skip
    print_comparison(result, Console())
    if failed:
        print(f"slower by more than {100 * threshold:g}%: {', '.join(failed)}")
    outputs.write(result)
    return 1 if failed else 0


command = make_command(main, Settings, takes("compare"))


if __name__ == "__main__":
    sys.exit(cli.run("bench.compare", command))
