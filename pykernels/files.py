"""Files and folders that a user names: one function opens what is read.

Regular files only: a pipe that nobody writes to would be read for ever, and a device has no end.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


class NotRegularError(ValueError):
    """What should be a regular file is something else, which the message names."""


def other_kind(mode: int) -> str | None:
    """What is no regular file, in words; None of a regular file. mode: of os.stat()."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "something else")


def user_path(path: str | Path) -> Path:
    """The path with `~` expanded. Raises ValueError where it is below the home of a user that there is not."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: must be below the home of a user that there is") from None


def open_regular(path: Path) -> BinaryIO:
    """A regular file, open for reading. Raises NotRegularError, and OSError where it cannot be opened."""
    # Without waiting: a pipe that nobody writes to is not waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if kind := other_kind(os.fstat(descriptor).st_mode):
            raise NotRegularError(f"must be a regular file, and that is {kind}")
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """What a regular file holds. Raises as open_regular()."""
    with open_regular(path) as file:
        return file.read()
