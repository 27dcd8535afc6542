"""A hash of a folder of sources: what a build was made of, and whether the Python beside it is still that.

Nothing but the standard library: the build reads this file too (cmake/build_stamp.py).
"""

import hashlib
from collections.abc import Collection
from pathlib import Path

PYTHON = (".py", ".toml")
"""The suffixes of what a Python package is made of."""


def source_hash(folder: Path, suffixes: Collection[str] = PYTHON, without: Collection[str] = ()) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a folder's files of these suffixes: names and contents, sorted
    by name. `without` names subfolders that are left out; `__pycache__` always is."""
    digest = hashlib.sha256()
    left_out = {"__pycache__", *without}
    paths = (path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file())
    for name, path in sorted((path.relative_to(folder).as_posix(), path) for path in paths):
        if left_out.isdisjoint(name.split("/")[:-1]):
            content = path.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()[:16]
