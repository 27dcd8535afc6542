"""Result documents: one JSON file a run, written whole or not at all, and their CSV and Markdown forms.

A document whose name ends in .json.gz is compressed; everything else about it is the same.
"""

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import UsageError, plain
from bench.core.files import check_writable as check_writable
from bench.core.files import make_folder as make_folder
from bench.core.files import read_file, write_atomically

if TYPE_CHECKING:  # it takes a second to import, and most runs draw nothing
    from matplotlib.figure import Figure

SCHEMA = "launchtax/1"

_PNG_DPI = 130
_PNG_COLOURS = 128

Document = dict[str, Any]


def program_name(backend: str, fusion: str | None) -> str:
    """backend/fusion, or the backend alone where it tells no fusions apart: a ladder's name."""
    return f"{backend}/{fusion}" if fusion else backend


def arm_name(backend: str, fusion: str | None, mode: str) -> str:
    """backend/fusion:mode"""
    return f"{program_name(backend, fusion)}:{mode}"


def entry_name(entry: Document) -> str:
    """arm_name() of an entry of the key `arms`."""
    return arm_name(entry["backend"], entry.get("fusion"), entry["mode"])


def picture(figure: "Figure", kind: str) -> bytes:
    """The figure as a picture: `kind` is png, svg or pdf. A PNG has 128 colours, which is a third of its size and no
    loss to bars and letters."""
    content = io.BytesIO()
    if kind != "png":
        figure.savefig(content, format=kind)
        return content.getvalue()
    from PIL import Image

    figure.savefig(content, format="png", dpi=_PNG_DPI)
    image = Image.open(content).convert("RGB")
    indexed, content = image.quantize(_PNG_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE), io.BytesIO()
    indexed.save(content, format="png", optimize=True)
    return content.getvalue()


def write_figure(path: Path, figure: "Figure") -> None:
    """The figure as a picture of the format that the suffix names: .png, .svg or .pdf. It is closed."""
    from matplotlib import pyplot

    content = picture(figure, path.suffix[1:])
    pyplot.close(figure)
    write_atomically(path, content)


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _laid_out(value: Any, indent: str = "") -> str:
    """JSON with a line for each list or object that holds no other, however long: a line a number would make half of a
    document of samples out of spaces."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(item and isinstance(item, (dict, list)) for item in items):
        return json.dumps(value, allow_nan=False)
    inner = indent + " "
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {_laid_out(item, inner)}" for key, item in value.items()]
        opening, closing = "{}"
    else:
        lines = [_laid_out(item, inner) for item in value]
        opening, closing = "[]"
    return f"{opening}\n{inner}" + f",\n{inner}".join(lines) + f"\n{indent}{closing}"


def write_json(path: Path, document: Document) -> None:
    """The document as JSON, its numbers to the last bit: a ladder's parts must add up exactly when they are read.
    Compressed where the name ends in .gz, the same bytes every time (no date in it)."""
    content = (_laid_out(_plain(document)) + "\n").encode()
    write_atomically(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


_MOST_BYTES = 1 << 30


def _decompressed(content: bytes) -> bytes:
    """What a .gz holds, which may be a thousand times as large as the file. Raises ValueError past a GiB."""
    with gzip.open(io.BytesIO(content)) as file:
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise ValueError("it unpacks to more than a GiB")
    return text


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def files(folder: Path) -> list[Path]:
    """Every .json and .json.gz below a folder, in no order."""
    return [*folder.rglob("*.json"), *folder.rglob("*.json.gz")]


def stem(path: Path) -> str:
    """A document's file name without .json or .json.gz."""
    return path.name.removesuffix(".gz").removesuffix(".json")


_MOST_CHARACTERS = 8000
"""Of a name: a C++ kernel's may take pages."""


def tame(value: Any, most: int = _MOST_CHARACTERS) -> Any:
    """JSON that a plug-in can have written, with every string as a table can show it (bench.core.errors.plain), of that
    many characters at most; of a reason, 500. Raises RecursionError."""
    if isinstance(value, str):
        return plain(value, most=most)
    if isinstance(value, dict):
        return {plain(key): tame(item, 500 if key == "reason" else most) for key, item in value.items()}
    if isinstance(value, list):
        return [tame(item, most) for item in value]
    return value


def load(path: Path, most_bytes: int = _MOST_BYTES) -> Document:
    """Read a document back, compressed or not. Raises UsageError, one line, where the file is none, or is larger than
    that."""
    try:
        content = read_file(path, most_bytes)
        text = (_decompressed(content) if path.suffix == ".gz" else content).decode()
        document = json.loads(text, parse_constant=_no_number)
    except UsageError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read as a result document: {error}") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise UsageError(f"{path}: schema must be {SCHEMA}, got {schema!r}")
    return _today(document)


_RENAMED = {
    "speedup_over_sdpa": "ratio_to_sdpa", "speedup_over_sdpa_graph": "ratio_to_sdpa_graph",
    "speedup_over_transformers": "ratio_to_transformers",
}  # fmt: skip


def _today(document: Document) -> Document:
    """A document with the names that ratios have today: `ratio_to_X` is the time of X over this one's, `X / this` in
    tables. Documents from before 2026-11-29 have other names for three of them."""
    arms = document.get("arms")
    for arm in arms if isinstance(arms, list) else ():
        for old, new in _RENAMED.items():
            if isinstance(arm, dict) and old in arm:
                arm[new] = arm.pop(old)
    return document


_COLUMNS = (
    "kind", "model", "ctx", "batch", "dtype", "device", "l2", "backend", "mode", "fusion", "op", "label", "shape",
    "status", "reason", "bytes", "p20_us", "p50_us", "p80_us", "n", "host_p50_us", "gbs", "share_of_spec",
    "share_of_read", "max_rel_error",
)  # fmt: skip


def rows(document: Document) -> Iterable[dict[str, Any]]:
    """One flat row an arm (kind `arm`) and an op (kind `op`)."""
    common = {key: document.get(key) for key in ("ctx", "batch", "dtype", "device", "l2")}
    common["model"] = (document.get("model") or {}).get("name")
    if isinstance(common["ctx"], list):  # of bench.op, whose shapes say which
        common["ctx"] = None
    for kind in ("arms", "ops"):
        for entry in document.get(kind, []):
            clock = entry.get("wall_us") or entry.get("time_us") or {}
            row = {key: entry.get(key) for key in _COLUMNS if key in entry}
            row |= {f"{name}_us": clock.get(name) for name in ("p20", "p50", "p80")} | {"n": clock.get("n")}
            if entry.get("models"):
                row["model"] = " ".join(entry["models"])
            row["host_p50_us"] = (entry.get("host_us") or {}).get("p50")
            yield {**common, **row, "kind": kind.removesuffix("s")}


def write_rows(path: Path, columns: Iterable[str], rows: Iterable[dict[str, Any]]) -> None:
    """Rows of a CSV file under these headings."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def write_csv(path: Path, document: Document) -> None:
    """Arms and ops, one row each."""
    write_rows(path, _COLUMNS, rows(document))


def device_name(result: Document) -> str:
    """The GPU's or the CPU's name."""
    machine = result["environment"]
    name = machine["gpu"]["name"] if result.get("device") == "cuda" else machine["cpu"]["model"]
    return name or "unknown"
