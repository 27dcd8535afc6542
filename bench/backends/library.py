"""Is a peer's library there? For every adapter, layers' and 4-bit kernels' alike."""

from collections.abc import Callable

from bench.core.errors import first_line


def library_reason(package: str, load: Callable[[], object]) -> str | None:
    """Why `load` finds no library, in the library's own words, one line; None where it finds one."""
    try:
        load()
    except ImportError as error:
        return f"{package} is not installed: {first_line(error)}"
    except Exception as error:  # whatever a foreign import raises is why there is no library
        return f"{package} cannot be loaded: {first_line(error)}"
    return None
