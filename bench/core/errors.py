"""The error that a driver prints as one line, with exit status 2; and others' errors in one line."""

from pathlib import Path


class UsageError(ValueError):
    """A bad argument: the message names the flag, its value and what is allowed."""


class WriteError(RuntimeError):
    """What was measured or drawn could not be written, to a full disk it may be: exit status 1. The message names every
    file that is missing."""


def flag_error(flag: str, value: object, allowed: str) -> UsageError:
    """`--ctx=0: must be in 1..32768`"""
    return UsageError(f"{flag}={value}: must be {allowed}")


def plain(words: str, end: str = "", most: int = 500) -> str:
    """Somebody else's words as a table can show them, and `end`: what is not printable (a control sequence, a lone
    surrogate) as Python escapes it, and not more than `most` characters."""
    cut = words[: most + 1]
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in cut)
    return (f"{shown[:most]}..." if len(cut) > most else shown) + end


def printable(text: str) -> str:
    """The text with what a terminal would obey, and what no encoding has, as Python escapes it. Line breaks and tabs
    stay."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)


def first_line(error: BaseException) -> str:
    """An error's own words, the first line of them; its class where it has none."""
    try:
        words = str(error).strip()
    except Exception:  # of a class whose __str__ fails
        words = ""
    return plain(words.splitlines()[0] if words else type(error).__name__)


USER_MODULE = "launchtax_plugin_"
"""What the name of a plug-in's module begins with."""


def user_line(error: BaseException) -> str | None:
    """`kernel.py:12`: the innermost line of a plug-in's file that the error came through; None where it has none."""
    found, frame = None, error.__traceback__
    while frame is not None:
        if str(frame.tb_frame.f_globals.get("__name__")).startswith(USER_MODULE):
            found = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}"
        frame = frame.tb_next
    return found


def one_line(error: BaseException) -> str:
    """`RuntimeError: CUDA error: ...`: the error's class and its first_line(); of an error that came through a plug-in
    with the line of its file."""
    name, words = type(error).__name__, first_line(error)
    line = user_line(error)
    return plain(name if words == name else f"{name}: {words}", f" ({line})" if line else "")


class UnsupportedError(RuntimeError):
    """What is asked of an arm cannot be had here: the message is the arm's reason."""
