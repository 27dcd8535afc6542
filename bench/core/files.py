"""Files that a user names: one function checks what will be written, one writes, one reads.

Regular files only. A device, a pipe or a socket is refused: replacing a device by a file breaks the machine, and a pipe
that nobody writes to would be read for ever.
"""

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from bench.core.errors import UsageError, flag_error

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip

_MOST_BYTES = 1 << 30
"""What is read at most: a result document of a thousand times as many samples as any has is smaller."""


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _kind(mode: int) -> str | None:
    """What is no regular file, in words."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "something else")


def check_writable(path: Path, flag: str) -> None:
    """Raise UsageError, before the run, where `path` could not be written after it. Leaves nothing behind."""
    target = Path(os.path.realpath(path))
    try:
        if kind := _kind(os.stat(path).st_mode):
            raise flag_error(flag, path, f"a regular file, and that is {kind}")
        if not os.access(path, os.W_OK):
            raise flag_error(flag, path, "writable: Permission denied")
    except (FileNotFoundError, NotADirectoryError):
        if not target.parent.is_dir():
            raise flag_error(flag, path, f"in a folder that exists, and {target.parent} does not") from None
    except OSError as error:  # a loop of links, too long a name
        raise flag_error(flag, path, f"writable: {_why(error)}") from None
    try:
        name, descriptor = _temporary(target.parent)
        os.close(descriptor)
        os.unlink(name)
    except OSError as error:
        raise flag_error(flag, path, f"writable: {_why(error)}") from None


def make_folder(folder: Path, flag: str, given: str | Path) -> None:
    """Make the folder and those above it, where they are not there. Raises UsageError, which names what was given."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise flag_error(flag, given, f"a folder that can be made: {_why(error)}") from None


def _temporary(folder: Path) -> tuple[Path, int]:
    """A new file of the folder, open, with the access that the umask leaves. Its name is short whatever the final one
    is, which may take all that a name can have."""
    while True:
        path = folder / f".launchtax-{secrets.token_hex(6)}"
        with suppress(FileExistsError):
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path`: a reader finds the old file or the new one, never half of one.

    A symbolic link stays, and what it points to is written. A file that is there keeps its mode. Raises OSError.
    """
    target = Path(os.path.realpath(path))
    mode = None
    with suppress(FileNotFoundError):
        mode = os.stat(target).st_mode
    if mode is not None and (kind := _kind(mode)):
        raise OSError(f"not a regular file, but {kind}")
    name, descriptor = _temporary(target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        with suppress(FileNotFoundError):  # interrupted just after it took its place
            os.unlink(name)
        raise


def read_file(path: Path, most_bytes: int = _MOST_BYTES) -> bytes:
    """What a regular file holds. Raises UsageError, one line that names it, where it is none, is larger than that, or
    cannot be read."""
    try:
        # Without waiting: a pipe that nobody writes to is not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if kind := _kind(found.st_mode):
                raise UsageError(f"{path}: must be a regular file, and that is {kind}")
            if found.st_size > most_bytes:
                raise UsageError(f"{path}: must be at most {most_bytes >> 20} MiB, got {found.st_size >> 20} MiB")
            return file.read(most_bytes)
    except OSError as error:
        if error.errno == errno.EISDIR:  # a folder cannot be wrapped as a file
            raise UsageError(f"{path}: must be a regular file, and that is a folder") from None
        raise UsageError(f"{path}: cannot be read: {_why(error)}") from None
