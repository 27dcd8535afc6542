"""Paths as users type them."""

from pathlib import Path

from bench.core.errors import flag_error
from pykernels.files import user_path as expanded


def user_path(flag: str, text: str) -> Path:
    """The path that a flag names, `~` expanded, whether something is there or not. Raises UsageError, one line, where
    nothing can be: below the home of a user that there is not, a loop of links, a name longer than a name can be."""
    try:
        path = expanded(text)
    except ValueError:
        raise flag_error(flag, text, "below the home of a user that there is") from None
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # what uses it says what it needs there
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise flag_error(flag, text, f"a path that can be looked up: {reason}") from None
    return path
