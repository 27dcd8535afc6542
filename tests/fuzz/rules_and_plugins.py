"""Threshold files and plug-ins that are none."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz.case import AB, ENDS, LAYER, Case, special

RULE = 'name = "r"\nclaim = "c"\nexpectation = "differs"\nthreshold = 1.02\nmin_sessions = 1\n'


def thresholds_cases() -> Iterator[Case]:
    """bench.ab with a file of rules that is none. To be refused before the first session."""

    def with_rules(text: str | bytes) -> Callable[[Path], list[str]]:
        def make(w: Path) -> list[str]:
            (w / "rules.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
            return [*AB, f"--thresholds={w}/rules.toml"]

        return make

    def rule(**fields: str) -> str:
        lines = {line.partition(" = ")[0]: line.partition(" = ")[2] for line in RULE.splitlines()} | fields
        return "[[rule]]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items() if value)

    for name, text in {
        "empty": "",
        "no TOML": "[[rule",
        "binary": bytes(range(256)),
        "rule a number": "rule = 7",
        "rule a table": "[rule]\na = 1",
        "no rules": "rule = []",
        "rules of numbers": "rule = [1, 2]",
        "unknown field": rule(colour='"red"'),
        "no claim": rule(claim=""),
        "threshold a string": rule(threshold='"1"'),
        "threshold nan": rule(threshold="nan"),
        "threshold 0": rule(threshold="0"),
        "threshold infinite": rule(threshold="inf"),
        "threshold true": rule(threshold="true"),
        "expectation a list": rule(expectation="[]"),
        "above without wrong": rule(expectation='"above"'),
        "wrong a number": rule(expectation='"above"', wrong="7"),
        "ctx a number": rule(ctx="16"),
        "ctx of strings": rule(ctx='["16"]'),
        "min_sessions a string": rule(min_sessions='"1"'),
        "min_sessions nan": rule(min_sessions="nan"),
        "gpu a number": rule(gpu="7"),
        "name a number": rule(name="7"),
        "of another GPU": rule(gpu='"H100"'),
        "deep": "a = " + "[" * 100_000,
    }.items():
        yield Case(f"thresholds/{name}", "ab", with_rules(text), may_leave="rules")
    yield Case(
        "thresholds/name a number, asked for",
        "ab",
        lambda w: [*with_rules(rule(name="7"))(w), "--rule=x"],
        may_leave="rules",
    )
    for kind in ("folder", "fifo", "loop", "in-no-folder", "no-such-user"):
        yield Case(
            f"thresholds/reads {kind}",
            "ab",
            lambda w, kind=kind: [*AB, f"--thresholds={special(w, kind)}"],
            may_leave=kind,
        )


def plugin_cases() -> Iterator[Case]:
    """Plug-ins that are none. (What plug-ins do once they run is not tested here.)"""

    def source(name: str, text: str | bytes, of: str, driver_flags: list[str]) -> Callable[[Path], list[str]]:
        def make(w: Path) -> list[str]:
            (w / name).write_bytes(text if isinstance(text, bytes) else text.encode())
            return [*driver_flags, f"--backend=native,{w}/{name}:{of}"]

        return make

    for name, of, text in [
        ("x.py", "A", ""),
        ("x.py", "A", "A = 1"),
        ("x.py", "1A", ""),
        ("x.py", "", ""),
        ("x.py", "A.b", ""),
        ("x.py", "__import__", ""),
        ("x.py", "A", "def"),
        ("x.py", "A", bytes(range(256))),
        ("x.py", "A", "class A: pass"),
    ]:
        yield Case(
            f"plugin/{name}:{of} {ascii(text)[:20]}",
            "layer",
            source(name, text, of, LAYER),
            ENDS,
            may_leave="x.*|__pycache__",
        )
    kernel = 'extern "C" __global__ void k(const __nv_bfloat16* q, __nv_bfloat16* out) {}\n'
    for name, line in {
        "no line": "",
        "no op": "// launchtax: grid=1 block=1",
        "unknown op": "// launchtax: op=x grid=1 block=1",
        "a key twice": "// launchtax: op=gqa_decode op=gemv grid=1 block=1",
        "a call": "// launchtax: op=gqa_decode grid=exit(1) block=1",
        "an attribute": "// launchtax: op=gqa_decode grid=head_dim.real block=1",
        "a power": "// launchtax: op=gqa_decode grid=9**9 block=1",
        "deep brackets": "// launchtax: op=gqa_decode grid=" + "(" * 5000 + "1" + ")" * 5000 + " block=1",
        "199 brackets": "// launchtax: op=gqa_decode grid=" + "(" * 99 + "1" + ")" * 99 + " block=1",
        "199 minuses": "// launchtax: op=gqa_decode grid=" + "-" * 199 + "1 block=1",
        "a string": "// launchtax: op=gqa_decode grid='a' block=1",
        "four parts": "// launchtax: op=gqa_decode grid=1,1,1,1 block=1",
        "a lambda": "// launchtax: op=gqa_decode grid=(lambda:1)() block=1",
        "nothing": "// launchtax: op=gqa_decode grid= block=1",
    }.items():
        yield Case(
            f"plugin/x.cu {name}", "layer", source("x.cu", f"{line}\n{kernel}", "k", LAYER), ENDS, may_leave="x.*"
        )
    for kind in ("folder", "fifo", "loop", "no-such-user", "in-no-folder", "name-of-256"):

        def make(w: Path, kind: str = kind) -> list[str]:
            path = special(w, kind)
            renamed = path.with_suffix(".py")
            if os.path.lexists(path):
                path.rename(renamed)
            return [*LAYER, f"--backend={renamed}:A"]

        yield Case(f"plugin/a {kind}", "layer", make, may_leave=kind)
