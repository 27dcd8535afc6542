"""Files of launch plans that are none, by PYKERNELS_PLANS."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz.case import Case, special

PLAN = {
    "op": "gemv",
    "sizes": {"in_features": 64, "out_features": 64},
    "batch": 1,
    "dtype": "bf16",
    "choice": {"rows": 8},
}
FILE = {
    "schema": "launchtax-plans/1", "device": "cpu", "card": "a CPU", "threads": 1, "isa": "generic", "build": "0" * 16,
    "commit": None, "created": "2026-11-30T00:00:00+00:00", "command": "python -m bench.tune", "margin": 0.01,
    "plans": [PLAN],
}  # fmt: skip
RUN = ["--op=null", "--device=cpu", "--steps=2"]


def plans_cases() -> Iterator[Case]:
    """A file with wrong fields, of another build, or none; every launch and every driver refuses it."""

    def with_file(content: str | bytes) -> Callable[[Path], list[str]]:
        def make(w: Path) -> list[str]:
            (w / "plans.json").write_bytes(content if isinstance(content, bytes) else content.encode())
            return RUN

        return make

    text = json.dumps(FILE)
    contents: dict[str, str | bytes] = {
        "empty": "", "cut": text[:60], "a list": "[]", "null": "null", "binary": bytes(range(256)),
        "deep": "[" * 200_000, "5000 digits": text.replace("64", "6" * 5000), "utf-16": text.encode("utf-16"),
        "of another build": text, "5 MiB": text + " " * (5 << 20),
    }  # fmt: skip
    for key, values in {
        "schema": ["launchtax/1", 7], "device": ["tpu"], "threads": [0, 10**9], "margin": [-1, "1%"], "plans": [7, [7]],
        "speed": [1],
    }.items():  # fmt: skip
        contents |= {f"{key}={value}": json.dumps(FILE | {key: value}) for value in values}
    for name, content in contents.items():
        yield Case(f"plans/{name}", "op", with_file(content), env={"PYKERNELS_PLANS": "{w}/plans.json"})
    for kind in ("folder", "loop", "fifo", "full"):

        def at(w: Path, kind: str = kind) -> list[str]:
            special(w, kind)
            return RUN

        yield Case(f"plans/{kind}", "op", at, env={"PYKERNELS_PLANS": f"{{w}}/{kind}.json"})
    yield Case("plans/no file", "op", lambda w: RUN, env={"PYKERNELS_PLANS": "/no/such/plans.json"})
