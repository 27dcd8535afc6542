"""Is a peer's library there? For every adapter, layers' and 4-bit kernels' alike."""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.core.errors import first_line

_only_found = False


@contextmanager
def only_found() -> Iterator[None]:
    """In it a library counts as there if its package is: for lists, since importing all of them takes minutes."""
    global _only_found
    _only_found = True
    try:
        yield
    finally:
        _only_found = False


@contextmanager
def quiet_import() -> Iterator[None]:
    """Without what a library logs and warns of while it is imported, such as extensions that it does without."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def library_reason(package: str, load: Callable[[], object]) -> str | None:
    """Why `load` finds no library, in the library's own words, one line; None where it finds one."""
    if _only_found and importlib.util.find_spec(package.partition(".")[0]):
        return None
    try:
        with quiet_import():
            load()
    except ImportError as error:
        return f"{package} is not installed: {first_line(error)}"
    except Exception as error:  # whatever a foreign import raises is why there is no library
        return f"{package} cannot be loaded: {first_line(error)}"
    return None
