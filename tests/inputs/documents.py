"""Result documents in tests: whether what writes them keeps to the schema."""

from dataclasses import fields
from typing import Any

import msgspec

from bench.core import document, schema
from pykernels.models import ModelSpec

_OF_A_MODEL = {field.name for field in fields(ModelSpec)}


def unknown_keys(made: dict[str, Any]) -> list[str]:
    """Keys of a document that the schema of its kind does not name, as paths."""
    found: list[str] = []
    _compare(made, msgspec.convert(made, schema.KINDS[made["kind"]]), "", found)
    return sorted(set(found))


def _compare(given: Any, taken: Any, path: str, found: list[str]) -> None:
    if isinstance(given, dict):
        for key, value in given.items():
            here = f"{path}.{key}".lstrip(".")
            if key in taken:
                _compare(value, taken[key], here, found)
            elif not (path == "model" and key in _OF_A_MODEL):
                found.append(here)
    elif isinstance(given, (list, tuple)):
        for one, other in zip(given, taken, strict=True):
            _compare(one, other, f"{path}[]", found)


def check_written(made: dict[str, Any]) -> None:
    """Assert that a document is one of its kind, and has no key that docs/document.md does not name."""
    made = document._written(made)
    assert document.fault(made) is None
    assert unknown_keys(made) == [], "keys that bench/core/schema does not name"


def whole(made: dict[str, Any]) -> dict[str, Any]:
    """A copy of a document in which every key that its kind must have and that it lacks has some value: what a test
    says nothing of."""
    return _completed({"schema": document.SCHEMA, **made}, msgspec.inspect.type_info(schema.KINDS[made["kind"]]))


def _completed(node: Any, kind: msgspec.inspect.Type) -> Any:
    inspect = msgspec.inspect
    for one in kind.types if isinstance(kind, inspect.UnionType) else (kind,):
        if isinstance(one, inspect.Metadata):
            one = one.type
        if isinstance(one, inspect.TypedDictType) and isinstance(node, dict):
            named = {field.name: field for field in one.fields}
            lacking = {name: _some(field.type) for name, field in named.items() if field.required and name not in node}
            given = {key: _completed(v, named[key].type) if key in named else v for key, v in node.items()}
            return given | lacking
        if isinstance(one, inspect.ListType) and isinstance(node, list):
            return [_completed(item, one.item_type) for item in node]
        if isinstance(one, inspect.DictType) and isinstance(node, dict):
            return {key: _completed(item, one.value_type) for key, item in node.items()}
    return node


def _some(kind: msgspec.inspect.Type) -> Any:
    inspect = msgspec.inspect
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        return None if any(isinstance(one, inspect.NoneType) for one in kind.types) else _some(kind.types[0])
    if isinstance(kind, inspect.TypedDictType):
        return _completed({}, kind)
    if isinstance(kind, inspect.LiteralType):
        return kind.values[0]
    if isinstance(kind, inspect.ListType):
        return [_some(kind.item_type)] * (kind.min_length or 0)
    if isinstance(kind, inspect.StrType):
        return {None: "x", "^[ab]=.": "a=x"}.get(kind.pattern, "2026-11-29T00:00:00+00:00")
    numbers = {inspect.FloatType: 1.0, inspect.IntType: 1, inspect.BoolType: False, inspect.NoneType: None}
    return numbers.get(type(kind), {})
