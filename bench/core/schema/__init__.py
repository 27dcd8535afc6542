"""The schema of every kind of result document: what fault() holds a document to when it is read.

A kind is a TypedDict; msgspec checks it. Keys that it does not name are allowed when a document is read, and tests
allow none when one is written. docs/document.md is printed from these classes.

Imported when the first document is read: no run that only writes one pays for it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import msgspec.inspect

from bench.core.errors import plain
from bench.core.schema import layer, machine, ops, sessions

KINDS: Mapping[str, Any] = {
    "layer": layer.Layer, "op": ops.OpRun, "step": layer.Step, "ab": sessions.Ab, "attention": sessions.Attention,
    "stack": layer.Stack, "int4": ops.Int4, "int4-validation": ops.Int4Validation, "call": layer.Call,
    "compare": sessions.Compare, "launch": machine.Launch, "inside": machine.Inside, "rate": machine.Rate,
    "doctor": machine.Doctor, "tune": ops.Tune, "null-launches": machine.NullLaunches,
}  # fmt: skip


def fault(document: Mapping[str, Any]) -> str | None:
    """The first thing that is wrong with a document of one of KINDS, by the name of its field; None where none is."""
    kind = document["kind"]
    try:
        msgspec.convert(document, KINDS[kind])
    except msgspec.ValidationError as error:
        return words(error, document, KINDS[kind])
    return _crosswise(document)


def words(error: msgspec.ValidationError, of: Any, kind: Any) -> str:
    """What msgspec finds wrong in `of`, which is to be a `kind`, field first: ``arms[0].samples_us[3]: must be `float`
    > 0.0, got 0.0``."""
    text, _, path = str(error).partition(" - at `$")
    field = path.removesuffix("`").lstrip(".")
    text = text.replace("Object missing required field", "must have the field").replace("Expected", "must be")
    steps = re.findall(r"\w+|\[\.\.\.\]", field)
    if text.startswith("Invalid enum value"):
        allowed = ", ".join(_words_at(msgspec.inspect.type_info(kind), steps))
        text = f"must be one of {allowed}, got {text.removeprefix('Invalid enum value ')}"
    elif field and " got " not in text and "must be" in text and "[...]" not in steps:
        for step in steps:
            of = of[int(step) if isinstance(of, list) else step]
        text += f", got {plain(repr(of), most=60)}"
    return f"{field}: {text}" if field else text


def _words_at(kind: msgspec.inspect.Type, steps: Sequence[str]) -> list[str]:
    """The words that a field may be; steps: the keys and numbers on the way to it, [...] for a name of any."""
    inspect = msgspec.inspect
    if isinstance(kind, inspect.Metadata):
        return _words_at(kind.type, steps)
    if isinstance(kind, inspect.UnionType):
        return [word for one in kind.types for word in _words_at(one, steps)]
    if isinstance(kind, inspect.LiteralType):
        return [] if steps else [str(value) for value in kind.values]
    if not steps:
        return []
    if isinstance(kind, (inspect.ListType, inspect.VarTupleType)):
        return _words_at(kind.item_type, steps[1:])
    if isinstance(kind, inspect.DictType):
        return _words_at(kind.value_type, steps[1:])
    if isinstance(kind, (inspect.TypedDictType, inspect.StructType)):
        return [word for one in kind.fields if one.name == steps[0] for word in _words_at(one.type, steps[1:])]
    return []


def _crosswise(document: Mapping[str, Any]) -> str | None:
    """What one field says of another."""
    if document.get("device") == "cuda" and document["environment"]["gpu"] is None:
        return "environment.gpu: must be a GPU where device is cuda, got null"
    if document["kind"] == "attention":
        return _kernel_numbers(document)
    if document["kind"] == "ab":
        return _intervals(document["analysis"])
    return None


def _kernel_numbers(document: Mapping[str, Any]) -> str | None:
    """Of launches: each is of one of the document's kernels, or says itself what it is of."""
    of_sessions = [(f"sessions[{i}].entries", one["entries"]) for i, one in enumerate(document["sessions"])]
    count = len(document["kernels"])
    for key, entries in [("arms", document["arms"]), *of_sessions]:
        for number, entry in enumerate(entries):
            for launch in entry.get("kernel_details", ()):
                if launch.get("kernel", count) >= count and "name" not in launch:
                    return f"{key}[{number}].kernel_details: kernel must be below {count}, got {launch.get('kernel')}"
    return None


def _intervals(analysis: Mapping[str, Any]) -> str | None:
    """Of spreads: the mean's interval holds the mean."""
    for key in [key for key in ("a", "b", "speedup") if analysis[key]]:
        spread, mean = analysis[key], analysis[key]["mean"]
        for low, high in (("low", "high"), ("plain_low", "plain_high")):
            least, most, slack = spread[low], spread[high], 1e-9 * abs(mean)
            if not least - slack <= mean <= most + slack:
                return f"analysis.{key}.mean: must be between {low} and {high}, got {mean:g}, {least:g} and {most:g}"
    return None
