"""The error that a driver prints as one line, with exit status 2."""


class UsageError(ValueError):
    """A bad argument: the message names the flag, its value and what is allowed."""


def flag_error(flag: str, value: object, allowed: str) -> UsageError:
    """`--ctx=0: must be in 1..32768`"""
    return UsageError(f"{flag}={value}: must be {allowed}")
