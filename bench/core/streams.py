"""The terminal's two streams as a driver leaves them: a full disk behind stdout, an encoding without a name's letters.

A run whose stdout cannot be written goes on, since its files are still wanted: what is printed from then on is lost, a
line on stderr says so, and the exit status is 1. A reader that has gone away, as `head` does, is another matter: the
pipe's error ends the run.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Tolerant:
    """A text stream whose failures to write are kept in `error`: everything else is the stream's."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write it, or drop it where something was lost already."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush what there is."""
        self._try(self._stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        if self.error is not None:
            return
        try:
            act()
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            self.error = error
            # What is buffered would fail again when the interpreter ends.
            with suppress(OSError, ValueError, AttributeError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextmanager
def tolerant_stdout() -> Iterator[Tolerant]:
    """While it lasts sys.stdout is Tolerant, and both streams spell out the letters that their encodings lack."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a stand-in of a test
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if sys.stdout is None:  # started without one
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lasts
    earlier = sys.stdout
    found = Tolerant(earlier)
    sys.stdout = found
    try:
        yield found
        found.flush()
    finally:
        sys.stdout = earlier
