"""The error that a driver prints as one line, with exit status 2; and others' errors in one line."""


class UsageError(ValueError):
    """A bad argument: the message names the flag, its value and what is allowed."""


def flag_error(flag: str, value: object, allowed: str) -> UsageError:
    """`--ctx=0: must be in 1..32768`"""
    return UsageError(f"{flag}={value}: must be {allowed}")


def first_line(error: BaseException) -> str:
    """An error's own words, the first line of them; its class where it has none."""
    words = str(error).strip()
    return words.splitlines()[0] if words else type(error).__name__


def one_line(error: BaseException) -> str:
    """`RuntimeError: CUDA error: ...`: the error's class and its first_line()."""
    name, words = type(error).__name__, first_line(error)
    return name if words == name else f"{name}: {words}"


class UnsupportedError(RuntimeError):
    """What is asked of an arm cannot be had here: the message is the arm's reason."""
