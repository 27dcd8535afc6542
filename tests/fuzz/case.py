"""What a case is, and the smallest run of each driver that measures anything."""

import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REFUSED, OK, ENDS, PARTLY = "refused", "ok", "ends", "partly"
LIMIT_S = 20.0
# Of cases that may measure something: six times as long.
MEASURES = 6
# The smallest run of each driver that measures anything.
TINY = ["--model=tiny", "--ctx=16", "--steps=2", "--warmup=0"]
LAYER = [*TINY, "--backend=native", "--mode=native", "--fusion=block", "--l2=warm"]
STEP = [*TINY, "--layers=1", "--arm=native/block:native"]
AB = [*TINY, "--layers=1", "--sessions=1", "--a=native:eager", "--b=native:native"]
SWEEP = ["--model=tiny", "--ctx=16", "--batch=1", "--steps=2", "--warmup=0", "--layers=1", "--arm=native:native"]
OP = ["--op=silu_mul", "--model=tiny", "--steps=2", "--warmup=0", "--backend=native", "--mode=native", "--l2=warm"]
ATTENTION = ["--model=tiny", "--ctx=16", "--batch=1", "--calls=2", "--warmup=0", "--backend=native", "--mode=eager"]
STACK = [*TINY, "--attention=sdpa", "--compiled=eager", "--mode=eager"]
INT4 = ["--model=tiny", "--steps=2", "--warmup=0", "--kernel=native", "--mode=native", "--what=layer", "--ctx=16"]


@dataclass
class Case:
    """One command line. `make(folder)` makes its files in a folder of its own, and returns the arguments."""

    name: str
    driver: str
    make: Callable[[Path], list[str]]
    expected: str = REFUSED
    may_leave: str = r"(?!)"  # files, by their names, that a run may leave in the folder
    env: dict[str, str] = field(default_factory=dict)  # {w} in a value is the case's folder
    stdout: str = "pipe"  # pipe, full (a /dev/full), closed (nobody reads it), none (no descriptor 1)


def plain(*arguments: str) -> Callable[[Path], list[str]]:
    """Arguments alone; {w} in them is the case's folder."""
    return lambda w: [argument.replace("{w}", str(w)) for argument in arguments]


def special(w: Path, kind: str) -> Path:
    """A path at which no ordinary file can be written."""
    path = w / f"{kind}.json"
    match kind:
        case "folder":
            path.mkdir()
        case "below-a-file":
            path.write_text("")
            return path / "x.json"
        case "in-no-folder":
            return w / "none" / "x.json"
        case "loop":
            path.symlink_to(path)
        case "dangling":
            path.symlink_to(w / "none" / "x.json")
        case "fifo":
            os.mkfifo(path)
        case "socket":
            here = os.getcwd()
            with socket.socket(socket.AF_UNIX) as made:
                os.chdir(w)  # a socket's name may not be long
                try:
                    made.bind(path.name)
                finally:
                    os.chdir(here)
        case "null" | "full":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3 if kind == "null" else 7))
        case "name-of-255":
            return w / ("x" * 250 + ".json")
        case "name-of-256":
            return w / ("x" * 251 + ".json")
        case "path-of-5000":
            return w / "/".join(["x" * 100] * 50)
        case "no-such-user":
            return Path("~no-such-user/x.json")
        case "immutable":
            path = Path("/proc/version")
        case "proc":
            path = Path("/proc/x.json")
    return path
