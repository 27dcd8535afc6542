"""Result documents: one JSON file a run, written whole or not at all, and their CSV and Markdown forms.

A document whose name ends in .json.gz is compressed; everything else about it is the same.
"""

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import UsageError, plain, printable
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


def _written(value: Any) -> Any:
    """As it stands in a document: JSON has no NaN and no infinity, which become null; its text is printable()."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {printable(str(key)): _written(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_written(item) for item in value]
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
    content = (_laid_out(_written(document)) + "\n").encode()
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
    return [path for path in (*folder.rglob("*.json"), *folder.rglob("*.json.gz")) if not path.is_dir()]


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


class NoDocumentError(UsageError):
    """A file that is no result document at all: no JSON, or JSON that does not say that it is one."""


def load(path: Path, *kinds: str, most_bytes: int = _MOST_BYTES) -> Document:
    """Read a document of one of these kinds back, of any where none is named; compressed or not. Its text is
    printable().

    Raises UsageError, one line with the file, the field and what is allowed, where it is no document by the schema of
    its kind (bench.core.schema, docs/document.md), or larger than that; NoDocumentError where it is none at all.
    """
    document = read(path, most_bytes)
    if wrong := fault(document, kinds):
        raise UsageError(f"{path}: {wrong}")
    ops = document.get("ops", ()) if document["kind"] in ("op", "int4") else ()
    for entry in (*document.get("arms", ()), *ops):
        for key, unsaid in _UNSAID.get(document["kind"], {}).items():
            entry.setdefault(key, unsaid)
    return document


_OF_AN_ARM: Document = {"reason": None, "max_rel_error": None}
_OF_A_MEASURED = _OF_AN_ARM | {
    "gbs": None, "share_of_spec": None, "share_of_read": None, "host_us": None, "device_us": None, "launches": 0,
    "bytes": 0,
}  # fmt: skip
_UNSAID: dict[str, Document] = {
    "attention": _OF_AN_ARM,
    **dict.fromkeys(("layer", "step", "stack", "call", "op", "int4"), _OF_A_MEASURED),
}
"""By kind, what an entry that does not say a key is read to say."""


def read(path: Path, most_bytes: int = _MOST_BYTES) -> Document:
    """A document of which nothing is known but that it says it is one: for who goes on with what of it is as it should
    be. Raises as load()."""
    try:
        content = read_file(path, most_bytes)
        text = (_decompressed(content) if path.suffix == ".gz" else content).decode()
        document = json.loads(text, parse_constant=_no_number)
    except UsageError as error:
        raise NoDocumentError(str(error)) from None
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise NoDocumentError(f"{path}: cannot be read as a result document: {error}") from None
    if "\\u" in text or "\x7f" in text or not text.isascii():
        document = _written(document)
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise NoDocumentError(f"{path}: schema must be {SCHEMA}, got {schema!r}")
    return _today(document)


def fault(document: Document, kinds: Sequence[str] = ()) -> str | None:
    """What is wrong with a document by the schema of its kind, and with its kind where some are named; None where
    nothing is."""
    from bench.core import schema  # only where a document is read

    kind, allowed = document.get("kind"), kinds or tuple(schema.KINDS)
    if not isinstance(kind, str) or kind not in allowed:
        return f"kind: must be {'one of ' if len(allowed) > 1 else ''}{', '.join(allowed)}, got {kind!r}"
    return schema.fault(document)


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
