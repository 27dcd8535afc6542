"""Two result documents of the same work: which arms became faster, which slower, and is that more than noise?

python -m bench.compare before.json after.json --threshold=0.03

Works on documents of every kind that carry samples. Exit status 1: an arm is significantly slower by more than
--threshold.
"""

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import scipy
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.core import cli, document
from bench.core.document import Document
from bench.core.errors import UsageError, flag_error
from bench.core.flags import Flags, make_command
from bench.core.paths import user_path
from bench.core.statistics import ratio_interval
from bench.core.tables import microseconds
from bench.drivers import takes

CORRECTIONS = ("holm", "bh")


@dataclass
class Comparison:
    """One arm in both documents. `ratio` is B over A: above 1, B is slower. `p` is corrected for the number of arms."""

    key: str
    a_us: float
    b_us: float
    ratio: float
    low: float
    high: float
    p: float
    verdict: str


def series(result: Document) -> dict[str, np.ndarray]:
    """Every list of samples of a document by a name that is the same in another run of the same work.

    A list of samples is a value under a key that ends in `samples_us`, or the study's `step_times_ms`; its name is
    made of what the entry around it says it is: sizes, model, backend, fusion, mode, op, label, shape.
    """
    found: dict[str, np.ndarray] = {}

    def walk(node: Any, names: tuple[str, ...]) -> None:
        if isinstance(node, dict):
            own = [str(node[key]) for key in _NAMING if isinstance(node.get(key), (str, int)) and node[key] != ""]
            names = (*names, *own)
            for key, value in node.items():
                if _is_series(key, value) and not _shadowed(node, key):
                    unit = 1000.0 if key.endswith("_ms") else 1.0
                    clock = key.removesuffix("samples_us").removesuffix("step_times_ms").strip("_")
                    _add(found, " ".join((*names, clock)).strip() or "step", np.array(value, dtype=np.float64) * unit)
                elif key not in ("environment", "model", "paper"):
                    walk(value, names)
        elif isinstance(node, list):
            for item in node:
                walk(item, names)

    walk({key: value for key, value in result.items() if key not in _NAMING}, ())
    return found


_NAMING = ("arm", "backend", "fusion", "mode", "op", "label", "shape", "session")


def _is_series(key: str, value: Any) -> bool:
    named = key.endswith(("samples_us", "step_times_ms"))
    return named and isinstance(value, list) and len(value) > 0 and all(type(v) in (int, float) for v in value)


def _shadowed(node: dict, key: str) -> bool:
    """The study's copy of samples that stand beside it."""
    return key == "step_times_ms" and bool(node.get("samples_us"))


def _add(found: dict[str, np.ndarray], name: str, samples: np.ndarray) -> None:
    base, count = name, 1
    while name in found:
        count += 1
        name = f"{base} #{count}"
    found[name] = samples


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


def compare(a: Document, b: Document, alpha: float, threshold: float, correction: str) -> list[Comparison]:
    """The arms that both documents have, in A's order. The test is Mann and Whitney's U, two-sided (scipy)."""
    ours, theirs = series(a), series(b)
    shared = [key for key in ours if key in theirs]
    raw = np.array([scipy.stats.mannwhitneyu(ours[key], theirs[key], alternative="two-sided").pvalue for key in shared])
    p_values = corrected(np.nan_to_num(raw, nan=1.0), correction)
    rows = []
    for key, p in zip(shared, p_values, strict=True):
        x, y = ours[key], theirs[key]
        low, high = ratio_interval(y, x, paired=False)  # they are of different runs
        a_us, b_us = float(np.median(x)), float(np.median(y))
        rows.append(
            Comparison(key, a_us, b_us, b_us / a_us, low, high, float(p), verdict(low, high, p, alpha, threshold))
        )
    return rows


_KINDS = ("layer", "op", "step", "ab", "attention", "stack", "int4")
"""Of the documents that carry samples."""

_SETTINGS = (
    "kind", "model.name", "model.n_layers", "ctx", "batch", "dtype", "device", "l2", "weights", "shared_weights",
    "warmup", "steps", "group_size", "symmetric", "quant.group_size", "quant.zero_points", "quant.act_order",
)  # fmt: skip
_WORKLOAD = (
    "kind", "model.name", "model.n_layers", "ctx", "ctxs", "batch", "batches", "dtype", "device", "l2",
    "shared_weights", "group_size", "symmetric", "quant.group_size", "quant.zero_points", "quant.act_order",
)  # fmt: skip
"""What two documents must share for a ratio of their times to say that an arm became faster or slower."""


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


def load(path: str) -> Document:
    """A document that has samples. Raises UsageError otherwise."""
    result = document.load(user_path("DOCUMENT", path))
    found = series(result)
    if not found:
        raise UsageError(f"{path}: carries no samples to compare (kind {result.get('kind')!r})")
    for name, samples in found.items():
        if not (np.isfinite(samples) & (samples > 0)).all():
            raise UsageError(f"{path}: samples of {name} must be finite times above 0, got {samples.min():g}")
    return result


def print_comparison(result: Document, console: Console) -> None:
    """Differences of the environment first, then a line an arm."""
    for row in result["differences"]:
        console.print(Text(f"differs: {row['key']}: {row['a']} | {row['b']}"))
    table = Table(box=None, pad_edge=False)
    for name in ("arm", "A us", "B us", "B / A", "95%", "p", ""):
        table.add_column(name, justify="left" if name in ("arm", "") else "right", overflow="fold")
    for row in result["comparisons"]:
        table.add_row(
            Text(row["key"]), microseconds(row["a_us"]), microseconds(row["b_us"]), f"{row['ratio']:.3f}",
            f"{row['low']:.3f} - {row['high']:.3f}", f"{row['p']:.2g}", row["verdict"],
        )  # fmt: skip
    console.print(table)
    for side in ("a", "b"):
        if only := result[f"only_in_{side}"]:
            console.print(Text(f"only in {side.upper()}: {', '.join(only)}"))


@dataclass(kw_only=True)
class Settings(Flags):
    """The flags of one run."""

    a: Annotated[str, typer.Argument(metavar="A.json", help="the run before")] = ""
    b: Annotated[str, typer.Argument(metavar="B.json", help="the run after")] = ""
    threshold: Annotated[float, typer.Option("--threshold", help="a slow-down that fails, as a share of the time")] = (
        0.03
    )
    alpha: Annotated[float, typer.Option("--alpha", help="significance of the corrected test")] = 0.05
    correction: Annotated[str, typer.Option("--correction", help="for many arms: holm or bh")] = "holm"
    across: Annotated[bool, typer.Option("--across", help="compare documents of different workloads")] = False
    json: cli.JsonFlag = ""
    list_: Annotated[bool, typer.Option("--list", help="name the kinds of documents that can be compared")] = False


def main(settings: Settings) -> int:
    """Compare two result documents arm by arm."""
    if settings.list_:
        print(f"kinds of documents that carry samples: {', '.join(_KINDS)}")
        return 0
    a, b, threshold, alpha, correction = (
        settings.a, settings.b, settings.threshold, settings.alpha, settings.correction,
    )  # fmt: skip
    if not (a and b):
        raise UsageError("A.json B.json: must be two result documents")
    outputs = cli.Outputs(settings.json)
    if not 0 <= threshold < 10:
        raise flag_error("--threshold", threshold, "in 0..10")
    if not 0 < alpha < 1:
        raise flag_error("--alpha", alpha, "between 0 and 1")
    cli.choice("--correction", correction, CORRECTIONS)
    before, after = load(a), load(b)
    if other := workload_differences(before, after):
        words = ", ".join(f"{key} {x} and {y}" for key, x, y in other)
        if not settings.across:
            raise UsageError(f"{a} and {b}: are of different workloads ({words}): --across compares them all the same")
    rows = compare(before, after, alpha, threshold, correction)
    if not rows:
        raise UsageError(f"{a} and {b}: have no arm in common")
    keys_a, keys_b = series(before), series(after)
    failed = [row.key for row in rows if row.verdict == "SLOWER" and row.ratio > 1 + threshold]
    result = {
        **cli.head("bench.compare", "compare"),
        "threshold": threshold, "alpha": alpha, "correction": correction,
        "differences": [{"key": key, "a": x, "b": y} for key, x, y in differences(before, after)],
        "comparisons": [vars(row) for row in rows],
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
