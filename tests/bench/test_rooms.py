"""Imports go one way, between rooms and between files: driver -> backends, plugins, study -> core -> pykernels.

Read from the sources by ast, imports inside functions and for type checking included: what a file names, it needs.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

from bench.drivers import DRIVERS

ROOT = Path(__file__).resolve().parent.parent.parent

LEVELS = {"pykernels": 0, "core": 1, "backends": 2, "study": 2, "plugins": 3, "fleet": 3, "drivers": 3}
"""Rooms by level: a file imports from its own room and from lower levels. plugins wrap backends, and so stand above
them. `drivers` is bench/drivers.py, which lists the drivers and imports none; a room not named here is a driver's."""
DRIVER_LEVEL = 4

DRAWS_OTHERS = {"bench.report": ("tables", "plots")}
"""A driver that renders other drivers' documents, and which files of theirs it may import: what turns a document into
tables and pictures. To measure is not among them."""


def module_name(path: Path) -> str:
    """`bench/core/cli.py` as `bench.core.cli`; a package by its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules(*folders: str) -> dict[str, Path]:
    """Every file of the folders by its module's name."""
    return {module_name(path): path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))}


def imports(source: str, known: frozenset[str], module: str = "") -> set[str]:
    """Which of the known modules a source imports. `from package import name` is an import of the submodule where there
    is one, and of a compiled one (pykernels._runtime) no import of a source."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full != "pykernels._runtime":
                    found.add(full if full in known else str(node.module))
    return found & known


@cache
def import_graph() -> dict[str, set[str]]:
    """By module of bench and pykernels, what it imports of them."""
    files = modules("bench", "pykernels")
    known = frozenset(files)
    return {name: imports(path.read_text(), known, name) for name, path in files.items()}


def room(module: str) -> str:
    """`core` of bench.core.cli, `layer` of bench.layer, `pykernels` of anything in there, `` of bench itself."""
    top, _, rest = module.partition(".")
    return top if top == "pykernels" else rest.partition(".")[0]


def level(module: str) -> int:
    return LEVELS.get(room(module), DRIVER_LEVEL)


def allowed(importer: str, imported: str) -> bool:
    """May the one module import the other?"""
    if room(importer) == room(imported):
        return True
    if importer == "bench":
        # Its __init__ lets Ctrl-C end an import quietly, before anything else is imported; bench.measure is looked up
        # when it is asked for.
        return imported in ("bench.core.early_interrupt", "bench.call")
    if level(imported) < level(importer):
        return True
    drawn = DRAWS_OTHERS.get(f"bench.{room(importer)}", ())
    return level(imported) == DRIVER_LEVEL and imported.rpartition(".")[2] in drawn


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for successor in sorted(graph[node]):
            if successor not in index:
                visit(successor)
                low[node] = min(low[node], low[successor])
            elif successor in stack:
                low[node] = min(low[node], index[successor])
        if low[node] == index[node]:
            component = [stack.pop()]
            while component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_imports_go_down_the_levels():
    wrong = [f"{a} imports {b}" for a, imported in import_graph().items() for b in imported if not allowed(a, b)]
    assert not wrong, "\n".join(wrong)


def test_no_cycle_between_files():
    assert cycles(import_graph()) == []


def test_no_cycle_between_rooms():
    between: dict[str, set[str]] = {}
    for module, imported in import_graph().items():
        if module != "bench":
            between.setdefault(room(module), set()).update(
                room(name) for name in imported if room(name) != room(module)
            )
    assert cycles({name: between.get(name, set()) for name in {*between, *set().union(*between.values())}}) == []


def test_core_imports_no_backend_by_any_name():
    """What adapters import stays with them: a library's name in core would be an import by another door."""
    libraries = {"flash_attn", "flashinfer", "transformers", "cupy", "vllm", "torchao", "bitsandbytes", "ray"}
    for name, path in modules("bench").items():
        if room(name) in ("core", "study"):
            tree = ast.parse(path.read_text())
            tops = {alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import)
                    for alias in node.names}  # fmt: skip
            tops |= {str(n.module).partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
            assert not tops & libraries, name


def test_no_test_imports_a_test():
    files = modules("tests")
    tests = {path.stem for path in files.values() if path.stem.startswith("test_")}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text())):
            named = []
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                named = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            parts = {part for full in named for part in full.split(".")}
            assert not parts & tests, f"{name} imports {', '.join(sorted(parts & tests))}"


def test_the_list_of_drivers_is_what_there_is():
    ends_a_run = [name for name, path in modules("bench").items() if "sys.exit(cli.run(" in path.read_text()]
    assert sorted(name.removesuffix(".__main__") for name in ends_a_run) == sorted(d.module for d in DRIVERS.values())


@pytest.mark.parametrize(
    ("importer", "imported", "right"),
    [
        ("bench.layer", "bench.core.cli", True),
        ("bench.layer", "bench.plugins.plan", True),
        ("bench.plugins.plan", "bench.backends.base", True),
        ("bench.backends.base", "bench.plugins.plan", False),
        ("bench.core.cli", "bench.backends", False),
        ("bench.core.cli", "pykernels.ops", True),
        ("pykernels.ops", "bench.core.cli", False),
        ("bench.inside.__main__", "bench.layer", False),
        ("bench.study.paper", "bench.backends", False),
        ("bench.report.peer_sections", "bench.attention.tables", True),
        ("bench.report.peer_sections", "bench.attention.session", False),
        ("bench.ab", "bench.report.tables", False),
    ],
)
def test_the_rule_itself(importer, imported, right):
    assert allowed(importer, imported) is right


def test_cycles_are_found():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}) == [["b", "c"]]
    assert imports("def f():\n    from bench.core import cli", frozenset({"bench.core.cli", "bench.core"})) == {
        "bench.core.cli"
    }
