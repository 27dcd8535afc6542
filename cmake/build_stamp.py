"""Write what a build is made of into a C++ header: its commit, whether that is clean, and hashes of its sources.

python cmake/build_stamp.py SOURCE_FOLDER HEADER [COMMIT]

Every build runs it, and the header is only touched where it says something new. The commit is COMMIT where one is
given, else the environment's PYKERNELS_COMMIT, else git's: for a build where there is no .git. Either may end in
"-dirty". Without any the commit is unknown, and the header says so.

Dirty means that a file that makes the package differs from the commit: changed, or not in it. Results, docs and tests
do not count.
"""

import os
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_MADE_OF = (
    "CMakeLists.txt", "cmake", "csrc", "setup.py", "pyproject.toml", "pykernels", "bench", "launchtax",
    ":(exclude)bench/results",
)  # fmt: skip
_COMPILED = (".h", ".cuh", ".cu", ".cpp", ".txt")


def _git(root: Path, *words: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def commit_of(root: Path, given: str = "") -> tuple[str, bool | None]:
    """The commit of the sources, "" where it is unknown, and whether they differ from it (None: unknown).

    `given` is a commit, or one with "-dirty" behind it. Raises ValueError where it is neither.
    """
    if given:
        if not re.fullmatch(r"[\w.+-]{1,80}", given, re.ASCII):
            raise ValueError(f"PYKERNELS_COMMIT must be a commit, or one with -dirty behind it, got {given!r}")
        commit = given.removesuffix("-dirty")
        return commit, commit != given
    # The repository must be this one: an unpacked archive may lie inside another.
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return "", None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return "", None
    status = _git(root, "status", "--porcelain", "--", *_MADE_OF)
    return commit, None if status is None else bool(status)


def header(root: Path, given: str = "") -> str:
    """The header's text."""
    spec = spec_from_file_location("source_hash", root / "pykernels" / "source_hash.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    commit, dirty = commit_of(root, given)
    values = {
        "PYKERNELS_COMMIT": f'"{commit}"',
        "PYKERNELS_DIRTY": -1 if dirty is None else int(dirty),
        "PYKERNELS_HASH_CSRC": f'"{module.source_hash(root / "csrc", _COMPILED, without=("simt",))}"',
        "PYKERNELS_HASH_PYKERNELS": f'"{module.source_hash(root / "pykernels")}"',
        "PYKERNELS_HASH_BENCH": f'"{module.source_hash(root / "bench", without=("results",))}"',
    }
    return "".join(f"#define {name} {value}\n" for name, value in values.items())


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    if len(arguments) not in (2, 3):
        print("usage: build_stamp.py SOURCE_FOLDER HEADER [COMMIT]", file=sys.stderr)
        return 2
    given = (arguments[2:] or [""])[0] or os.environ.get("PYKERNELS_COMMIT", "")
    try:
        text = header(Path(arguments[0]), given)
    except ValueError as error:
        print(f"build_stamp: {error}", file=sys.stderr)
        return 2
    path = Path(arguments[1])
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
