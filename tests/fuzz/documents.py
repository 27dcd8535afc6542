"""Result documents that are none, for the drivers that read them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz.case import AB, ATTENTION, ENDS, OK, PARTLY, SWEEP, Case, special

ENVIRONMENT = {
    "commit": "0" * 40,
    "commit_dirty": False,
    "gpu": None,
    "torch": {"version": "2.11.0", "cuda": None, "threads": 1},
    "cpu": {"model": "a CPU", "cpus_usable": 1},
    "pykernels": {"version": "0.1.0"},
}
MODEL = {"name": "tiny", "n_layers": 4}
CLOCK = {"p20": 1.0, "p50": 2.0, "p80": 3.0, "n": 3}
SPREAD = {"n": 2, "mean": 1.0, "sd": 0.1, "cv": 0.1, "low": 0.9, "high": 1.1, "plain_low": 0.9, "plain_high": 1.1}


def head(kind: str) -> dict:
    """What every document begins with."""
    return {
        "schema": "launchtax/1",
        "kind": kind,
        "title": "t",
        "created": "2026-01-01T00:00:00+00:00",
        "interrupted": False,
        "environment": ENVIRONMENT,
        "device": "cpu",
        "model": MODEL,
        "ctx": 16,
        "batch": 1,
        "dtype": "bf16",
        "l2": "warm",
    }


def good_layer() -> dict:
    """A document of kind `layer`, as small as a report takes one."""
    arm = {
        "backend": "native",
        "fusion": "block",
        "mode": "native",
        "status": "ok",
        "samples_us": [1.0, 2.0, 3.0],
        "wall_us": CLOCK,
        "host_us": None,
    }
    return head("layer") | {"arms": [arm], "ops": []}


def good_step() -> dict:
    """Of kind `step`."""
    arm = {
        "backend": "native",
        "fusion": "block",
        "mode": "native",
        "status": "ok",
        "reason": None,
        "wall_us": CLOCK,
        "samples_us": [1.0, 2.0, 3.0],
        "share_of_read": 0.5,
        "drift": None,
        "launches": 5,
        "launches_per_layer": 5,
        "paper": {"p50_ms": 1.0, "t_floor_ms": 0.5, "R_floor": 2.0, "bw_peak_gbs": 100.0},
    }
    return head("step") | {"full_layers": 4, "arms": [arm], "ops": [], "ladder": {}}


def good_ab() -> dict:
    """Of kind `ab`."""
    arms = [{"arm": f"{side}=native/block:native", "status": "ok", "samples_us": [1.0, 2.0]} for side in "ab"]
    return head("ab") | {
        "arms": arms,
        "sessions": [],
        "analysis": {"a": SPREAD, "b": SPREAD, "speedup": SPREAD, "verdict": "undecided", "because": "so"},
        "registered": {"rule": {"name": "difference", "claim": "c"}},
    }


def good_compare() -> dict:
    """Of kind `compare`."""
    row = {"key": "k", "a_us": 1.0, "b_us": 1.0, "ratio": 1.0, "low": 0.9, "high": 1.1, "p": 1.0, "verdict": "SAME"}
    return head("compare") | {"comparisons": [row]}


def documents(w: Path, *made: object) -> Path:
    """A folder with these documents: dicts as JSON, str and bytes as they are."""
    folder = w / "docs"
    folder.mkdir()
    for index, one in enumerate(made):
        data = one if isinstance(one, bytes) else (one if isinstance(one, str) else json.dumps(one)).encode()
        (folder / f"{index}.json").write_bytes(data)
    return folder


def changed(document: dict, *path: object, to: object = None, drop: bool = False) -> dict:
    """A copy with one value changed or left out."""
    copy = json.loads(json.dumps(document))
    node = copy
    for key in path[:-1]:
        node = node[key]
    if drop:
        del node[path[-1]]
    else:
        node[path[-1]] = to
    return copy


def broken_texts() -> dict[str, object]:
    """Files that are no result documents at all."""
    text = json.dumps(good_layer())
    samples = '"samples_us": [1.0, 2.0, 3.0]'
    return {
        "empty": "",
        "cut": text[: len(text) // 2],
        "binary": bytes(range(256)),
        "utf-16": text.encode("utf-16"),
        "bom": b"\xef\xbb\xbf" + text.encode(),
        "not utf-8": b'{"schema": "\xff"}',
        "a list": "[1]",
        "a number": "1",
        "null": "null",
        "a string": '"x"',
        "deep lists": "[" * 200_000,
        "deep objects": '{"a":' * 200_000,
        "other schema": changed(good_layer(), "schema", to="launchtax/2"),
        "schema a list": changed(good_layer(), "schema", to=["launchtax/1"]),
        "no schema": changed(good_layer(), "schema", drop=True),
        "NaN": text.replace("2.0", "NaN", 1),
        "Infinity": text.replace("2.0", "-Infinity", 1),
        "5000 digits": text.replace("2.0", "1" * 5000, 1),
        "samples beyond a float": text.replace(samples, f'"samples_us": [1, {10**400}]'),
        "samples that become infinite": text.replace(samples, '"samples_us": [1, 1e999]'),
        "samples negative": text.replace(samples, '"samples_us": [-1.0, 2.0]'),
        "samples zero": text.replace(samples, '"samples_us": [0, 0]'),
        "samples empty": text.replace(samples, '"samples_us": []'),
        "samples of strings": text.replace(samples, '"samples_us": ["1", "2"]'),
        "samples true": text.replace(samples, '"samples_us": [true, true]'),
        "samples nested": text.replace(samples, '"samples_us": [[1.0], [2.0]]'),
        "arms a number": changed(good_layer(), "arms", to=7),
    }


def odd_but_comparable() -> dict[str, object]:
    """Documents whose samples can be compared, whatever else is in them."""
    return {
        "a key twice": '{"ctx": 1, ' + json.dumps(good_layer())[1:],
        "one sample": changed(good_layer(), "arms", 0, "samples_us", to=[1.0]),
        "equal samples": changed(good_layer(), "arms", 0, "samples_us", to=[1.0] * 30),
        "tiny samples": changed(good_layer(), "arms", 0, "samples_us", to=[5e-324, 5e-324, 1e-320]),
        "huge samples": changed(good_layer(), "arms", 0, "samples_us", to=[1e308, 1.7e308, 1e308]),
        "environment a list": changed(good_layer(), "environment", to=[1, 2]),
        "model a number": changed(good_layer(), "model", to=3),
        "backend a number": changed(good_layer(), "arms", 0, "backend", to=3),
        "control characters in a name": changed(good_layer(), "arms", 0, "backend", to="\x1b[2J\x00\n[red]"),
        "a lone surrogate in a name": changed(good_layer(), "arms", 0, "backend", to="\ud800"),
    }


def compare_cases() -> Iterator[Case]:
    """bench.compare with bad documents."""

    def pair(document: object) -> Callable[[Path], list[str]]:
        def make(w: Path) -> list[str]:
            folder = documents(w, document, good_layer())
            return [str(folder / "0.json"), str(folder / "1.json"), f"--json={w}/out.json"]

        return make

    def against(kind: str) -> Callable[[Path], list[str]]:
        return lambda w: [str(special(w, kind)), str(documents(w, good_layer()) / "0.json")]

    for name, document in broken_texts().items():
        yield Case(f"compare/{name}", "compare", pair(document), may_leave="docs")
    for name, document in odd_but_comparable().items():
        twice = lambda w, document=document: [str(documents(w, document) / "0.json")] * 2  # noqa: E731
        yield Case(f"compare/{name}", "compare", twice, OK, may_leave="docs")
    for kind in ("folder", "fifo", "loop", "socket", "in-no-folder", "name-of-256", "no-such-user"):
        yield Case(f"compare/reads {kind}", "compare", against(kind), may_leave=f"{kind}|docs")


def report_cases() -> Iterator[Case]:
    """bench.report on folders that hold one bad document beside a good one: the good one is to be reported, the other
    named; or the line says which document is bad. Either way no traceback."""

    def beside(document: object) -> Callable[[Path], list[str]]:
        return lambda w: [str(documents(w, good_layer(), document)), f"--out={w}/out", "--no-svg"]

    for name in ("empty", "cut", "binary", "deep lists", "5000 digits", "a number", "other schema", "NaN"):
        yield Case(f"report/{name}", "report", beside(broken_texts()[name]), OK, may_leave="docs|out")
    wrong: list[tuple[str, dict]] = []
    for kind, good in [("layer", good_layer()), ("step", good_step()), ("ab", good_ab()), ("compare", good_compare())]:
        yield Case(f"report/good {kind}", "report", beside(good), OK, may_leave="docs|out")
        wrong += [
            (f"{kind} kind a number", changed(good, "kind", to=7)),
            (f"{kind} created a number", changed(good, "created", to=7)),
            (f"{kind} environment a number", changed(good, "environment", to=7)),
            (f"{kind} without torch's version", changed(good, "environment", "torch", "version", drop=True)),
            (f"{kind} without a CPU", changed(good, "environment", "cpu", drop=True)),
        ]
    wrong += [
        ("step arms of numbers", changed(good_step(), "arms", to=[1])),
        ("step without paper", changed(good_step(), "arms", 0, "paper", drop=True)),
        ("step of an unknown mode", changed(good_step(), "arms", 0, "mode", to="warp")),
        ("step model a string", changed(good_step(), "model", to="tiny")),
        ("step ladder of numbers", changed(good_step(), "ladder", to={"native/block": [1]})),
        ("ab without arms", changed(good_ab(), "arms", to=[])),
        ("ab speedup without a mean", changed(good_ab(), "analysis", "speedup", to={"low": 1})),
        ("ab interval upside down", changed(good_ab(), "analysis", "speedup", "high", to=-1)),
        ("compare row without a key", changed(good_compare(), "comparisons", 0, "key", drop=True)),
        ("compare ratio a string", changed(good_compare(), "comparisons", 0, "ratio", to="1")),
        ("compare ratio beyond a float", changed(good_compare(), "comparisons", 0, "ratio", to=10**400)),
        ("compare a lone surrogate", changed(good_compare(), "comparisons", 0, "key", to="\ud800")),
        ("attention without sessions", head("attention") | {"arms": [], "kernels": []}),
        ("stack without a device", changed(head("stack") | {"arms": []}, "device", drop=True)),
        ("op ops of numbers", head("op") | {"ops": [1]}),
        ("int4 ops a number", head("int4") | {"ops": 1}),
    ]
    for name, document in wrong:
        expected = OK if "unknown mode" in name or "surrogate" in name else PARTLY
        yield Case(f"report/{name}", "report", beside(document), expected, may_leave="docs|out")

    def with_special(kind: str) -> Callable[[Path], list[str]]:
        def make(w: Path) -> list[str]:
            folder = documents(w, good_layer())
            special(folder, kind)
            return [str(folder), f"--out={w}/out", "--no-svg"]

        return make

    for kind in ("folder", "fifo", "loop", "socket", "dangling"):
        yield Case(f"report/beside a {kind}", "report", with_special(kind), OK, may_leave="docs|out")
    for title in ("\udcff", "<script>alert(1)</script>", "x" * 100_000):
        shown = ascii(title)[1:30]
        yield Case(
            f"report/--title={shown}",
            "report",
            lambda w, title=title: [str(documents(w, good_layer())), f"--out={w}/out", "--no-svg", f"--title={title}"],
            ENDS,
            may_leave="docs|out",
        )
    yield Case(
        "report/a folder whose name is no UTF-8",
        "report",
        lambda w: [str(documents(w, good_layer()).rename(w / "docs\udcff")), "--no-svg"],
        ENDS,
        may_leave="docs.*",
    )


def kept_documents() -> Iterator[Case]:
    """Folders that a run goes on with (--keep, --out, --resume), with documents in them that are none: to be measured
    anew, or refused."""

    def kept(name: str, document: object, *arguments: str) -> Callable[[Path], list[str]]:
        def make(w: Path) -> list[str]:
            documents(w, document)
            (w / "docs" / "0.json").rename(w / "docs" / name)
            return [argument.replace("{w}", str(w)) for argument in arguments]

        return make

    sweep_flags = [
        "--arm=native:native",
        "--layers=1",
        "--dtype=bf16",
        "--device=auto",
        "--warmup=0",
        "--steps=2",
        "--threads=0",
        "--spec-gbs=0.0",
        "--memory-limit-gb=0.0",
        "--seed=0",
    ]
    for name, document in {
        "cut": '{"schema": "launch',
        "no arms": {"schema": "launchtax/1", "cell_flags": sweep_flags},
        "arms a number": {"schema": "launchtax/1", "cell_flags": sweep_flags, "arms": 7},
        "arms of numbers": {"schema": "launchtax/1", "cell_flags": sweep_flags, "arms": [7]},
    }.items():
        yield Case(
            f"kept/sweep {name}",
            "sweep",
            kept("tiny_ctx16_b1.json", document, *SWEEP, "--out={w}/docs"),
            ENDS,
            may_leave="docs",
        )
    ab_flags = [
        "--arm=native/block:eager,native/block:native",
        "--ctx=16",
        "--batch=1",
        "--dtype=bf16",
        "--device=auto",
        "--warmup=0",
        "--steps=2",
        "--threads=0",
        "--seed=0",
        "--layers=1",
        "--model=tiny",
        "--config=",
        "--weights=",
    ]
    for name, document in {
        "cut": '{"schema": "launch',
        "no interrupted": {"schema": "launchtax/1", "session_flags": ab_flags},
        "no arms": {"schema": "launchtax/1", "session_flags": ab_flags, "interrupted": False},
    }.items():
        yield Case(
            f"kept/ab {name}", "ab", kept("session-00.json", document, *AB, "--keep={w}/docs"), ENDS, may_leave="docs"
        )
    for name, document in {
        "cut": '{"schema": "launch',
        "another kind": good_layer(),
        "no flags": changed(head("attention"), "ctx", drop=True),
        "no arms": head("attention") | {"flags": []},
    }.items():
        yield Case(
            f"kept/attention --resume {name}",
            "attention",
            kept("s.json", document, *ATTENTION, "--sessions=0", "--resume", "--json={w}/docs/s.json"),
            may_leave="docs",
        )
