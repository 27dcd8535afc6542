"""docs/document.md: every key of every kind of result document, from the classes that documents are held to."""

import ast
import inspect
import textwrap
from types import ModuleType
from typing import Any

from bench.core import schema
from bench.core.schema import fields

Lines = list[str]

_MODULES: tuple[ModuleType, ...] = (fields, schema.layer, schema.ops, schema.sessions, schema.machine)


def _comment(line: str) -> str:
    return line.partition("  # ")[2].strip()


class _Classes:
    """The classes of the schema as they are written: by name their first line, their bases and their keys, each with
    type, whether it is always there, and meaning."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}
        self.bases: dict[str, list[str]] = {}
        self.keys: dict[str, list[tuple[str, str, bool, str]]] = {}
        for module in _MODULES:
            source = inspect.getsource(module)
            lines = source.splitlines()
            body = ast.parse(source).body
            for node, after in zip(body, [*body[1:], None], strict=True):
                if isinstance(node, ast.ClassDef):
                    self._add_class(node, lines)
                elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and after is not None:
                    self._add_call(node, after)

    def _add_class(self, node: ast.ClassDef, lines: Lines) -> None:
        self.words[node.name] = " ".join((ast.get_docstring(node) or "").split())
        self.bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in self.keys]
        self.keys[node.name] = [
            self._key(str(ast.unparse(item.target)), item.annotation, _comment(lines[(item.end_lineno or 1) - 1]))
            for item in node.body
            if isinstance(item, ast.AnnAssign)
        ]

    def _add_call(self, node: ast.Assign, after: ast.stmt) -> None:
        """`Name = TypedDict("Name", {...})`, and the string behind it: where a key is a word of Python."""
        name, call = ast.unparse(node.targets[0]), node.value
        assert isinstance(call, ast.Call)
        if ast.unparse(call.func) != "TypedDict" or not isinstance(call.args[1], ast.Dict):
            return
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            self.words[name] = str(after.value.value)
        pairs = zip(call.args[1].keys, call.args[1].values, strict=True)
        self.bases[name] = []
        self.keys[name] = [self._key(str(ast.literal_eval(key)), kind, "") for key, kind in pairs if key is not None]

    @staticmethod
    def _key(name: str, kind: ast.expr, meaning: str) -> tuple[str, str, bool, str]:
        always = True
        if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "NotRequired":
            kind, always = kind.slice, False
        return name, _type_words(kind), always, meaning


_WORDS = {"str": "text", "bool": "true or false", "Any": "anything", "None": "null", "dict": "an object"}


def _type_words(kind: ast.expr) -> str:
    """A type as the page says it: `a list of Size`, `by name, Clock or null`."""
    if isinstance(kind, ast.BinOp):
        return f"{_type_words(kind.left)} or {_type_words(kind.right)}"
    if isinstance(kind, ast.Subscript):
        of, inside = ast.unparse(kind.value), kind.slice
        if of == "Annotated" and isinstance(inside, ast.Tuple):
            return _type_words(inside.elts[0])
        if of == "list":
            return f"a list of {_type_words(inside)}"
        if of == "dict" and isinstance(inside, ast.Tuple):
            return f"by name, {_type_words(inside.elts[1])}"
        if of == "Literal":
            one = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            return " or ".join(f"`{ast.literal_eval(word)}`" for word in one)
    name = ast.unparse(kind)
    return _WORDS.get(name) or (name if name in fields.SCALARS else f"[{name}](#{name.lower()})")


def _section(classes: _Classes, name: str, heading: str) -> Lines:
    bases = " and ".join(f"[{base}](#{base.lower()})" for base in classes.bases[name])
    words = classes.words[name] + (f" All of {bases}, and:" if bases else "")
    found = [f"### {heading}", "", *textwrap.wrap(words, 120), ""]
    for key, kind, always, meaning in classes.keys[name]:
        line = f"- `{key}{'' if always else '?'}`: {kind}" + (f"; {meaning}" if meaning else "")
        found += textwrap.wrap(line, 120, subsequent_indent="  ")
    return [*found, ""]


def lines() -> Lines:
    """The page's generated part: scalars, kinds, and what they are made of."""
    classes = _Classes()
    kinds: dict[str, Any] = {kind: one.__name__ for kind, one in schema.KINDS.items()}
    found = ["## Kinds", ""]
    for kind, name in kinds.items():
        found += _section(classes, name, f"`{kind}`")
    found += ["## Parts", ""]
    for name in sorted(set(classes.keys) - set(kinds.values())):
        found += _section(classes, name, name)
    found += ["## Numbers and words", ""]
    return found + [f"- {name}: {words}" for name, words in fields.SCALARS.items()]
