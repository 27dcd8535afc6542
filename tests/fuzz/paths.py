"""Paths at which no ordinary file can be written, for every driver that writes any."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz.case import AB, ATTENTION, ENDS, INT4, LAYER, OK, OP, STACK, STEP, SWEEP, Case, plain, special
from fuzz.documents import documents, good_layer

BAD_OUTPUTS = [
    "folder",
    "below-a-file",
    "in-no-folder",
    "loop",
    "fifo",
    "socket",
    "name-of-256",
    "path-of-5000",
    "no-such-user",
    "immutable",
    "proc",
]


def outputs() -> Iterator[Case]:
    """Files that cannot be written, for every driver that writes any."""

    def to(kind: str, flag: str, *arguments: str) -> Callable[[Path], list[str]]:
        return lambda w: [*(argument.replace("{w}", str(w)) for argument in arguments), f"{flag}={special(w, kind)}"]

    for kind in BAD_OUTPUTS:
        yield Case(f"output/doctor --json {kind}", "doctor", to(kind, "--json"), may_leave=kind)
    for kind in ("null", "full"):
        if os.geteuid() == 0:
            # A device is no file to be replaced: afterwards it must still be one.
            yield Case(f"output/doctor --json device {kind}", "doctor", to(kind, "--json"), ENDS, may_leave=kind)
    # 255 bytes is a name that can be made: refused at once or written, but not lost after the run.
    yield Case("output/doctor --json name-of-255", "doctor", to("name-of-255", "--json"), OK, may_leave="x+.json")
    yield Case("output/doctor --json dangling", "doctor", to("dangling", "--json"), ENDS, may_leave="dangling")
    for driver, usual in [
        ("layer", LAYER),
        ("op", OP),
        ("attention", [*ATTENTION, "--sessions=0"]),
        ("stack", STACK),
        ("int4", INT4),
        ("step", STEP),
        ("ab", AB),
    ]:
        for kind in ("folder", "fifo", "loop", "no-such-user"):
            yield Case(f"output/{driver} --json {kind}", driver, to(kind, "--json", *usual), may_leave=kind)
    for flag in ("--csv", "--md", "--plot"):
        yield Case(f"output/layer {flag} folder", "layer", to("folder", flag, *LAYER), may_leave="folder")
    yield Case("output/layer --plot of no suffix", "layer", plain(*LAYER, "--plot={w}/x"))
    yield Case("output/layer two flags, one file", "layer", plain(*LAYER, "--json={w}/x", "--md={w}/./x"))
    for driver, flag, usual in [
        ("sweep", "--out", SWEEP),
        ("ab", "--keep", AB),
        ("attention", "--keep", ATTENTION),
        ("stack", "--keep", STACK),
    ]:
        for kind in ("below-a-file", "loop", "fifo", "no-such-user", "immutable", "path-of-5000"):
            yield Case(f"output/{driver} {flag} {kind}", driver, to(kind, flag, *usual), may_leave=kind)
    for kind in ("below-a-file", "loop", "fifo", "no-such-user", "immutable"):
        yield Case(
            f"output/report --out {kind}",
            "report",
            lambda w, kind=kind: [str(documents(w, good_layer())), f"--out={special(w, kind)}"],
            may_leave=f"{kind}|docs",
        )
