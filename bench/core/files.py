"""Files that a user names: one function checks what will be written, one writes, one reads.

Regular files only. A device, a pipe or a socket is refused: replacing a device by a file breaks the machine, and a pipe
that nobody writes to would be read for ever.
"""

import os
import secrets
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from bench.core.errors import UsageError, WriteError, flag_error
from pykernels.files import NotRegularError, open_regular, other_kind

TEMPORARY = ".launchtax-"
"""How the names of files begin that are written before they take their place."""
_MOST_BYTES = 1 << 30
"""What is read at most: a result document of a thousand times as many samples as any has is smaller."""


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def check_writable(path: Path, flag: str) -> None:
    """Raise UsageError, before the run, where `path` could not be written after it. Leaves nothing behind."""
    target = Path(os.path.realpath(path))
    try:
        if kind := other_kind(os.stat(path).st_mode):
            raise flag_error(flag, path, f"a regular file, and that is {kind}")
        if not os.access(path, os.W_OK):
            raise flag_error(flag, path, "writable: Permission denied")
    except (FileNotFoundError, NotADirectoryError):
        if not target.parent.is_dir():
            raise flag_error(flag, path, f"in a folder that exists, and {target.parent} does not") from None
    except OSError as error:  # a loop of links, too long a name
        raise flag_error(flag, path, f"writable: {_why(error)}") from None
    try:
        name, descriptor = temporary(target.parent)
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


def temporary(folder: Path) -> tuple[Path, int]:
    """A new file of the folder, open, with the access that the umask leaves. Its name is short whatever the final one
    is, which may take all that a name can have. Raises OSError."""
    while True:
        path = folder / f"{TEMPORARY}{secrets.token_hex(6)}"
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
    if mode is not None and (kind := other_kind(mode)):
        raise OSError(f"not a regular file, but {kind}")
    name, descriptor = temporary(target.parent)
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


def write_all(contents: Iterable[tuple[Path, Callable[[], object]]]) -> None:
    """Write files, each by its function: one that fails does not stop the others. Raises WriteError, one line, where
    some are missing then."""
    missing = []
    for path, write in contents:
        try:
            write()
        except OSError as error:
            missing.append(f"{path} ({_why(error)})")
    if missing:
        raise WriteError(f"not written: {', '.join(missing)}")


def read_file(path: Path, most_bytes: int = _MOST_BYTES) -> bytes:
    """What a regular file holds. Raises UsageError, one line that names it, where it is none, is larger than that, or
    cannot be read."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most_bytes:
                raise UsageError(f"{path}: must be at most {most_bytes >> 20} MiB, got {size >> 20} MiB")
            return file.read(most_bytes)
    except NotRegularError as error:
        raise UsageError(f"{path}: {error}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {_why(error)}") from None
