"""NVTX ranges of the Python side, in the domain "launchtax" that the C++ side uses too.

Ranges are put on when a module is made, and only where a tool listens (`nvtx.enabled()`), so that without one
they cost nothing.
"""

import functools
from collections.abc import Callable
from typing import TypeVar

import nvtx

Function = TypeVar("Function", bound=Callable)

_domain = nvtx.get_domain("launchtax")


def ranged(function: Function, name: str) -> Function:
    """`function` inside a range of that name; `function` itself where no tool listens."""
    if not nvtx.enabled():
        return function
    attributes = _domain.get_event_attributes(message=name)

    @functools.wraps(function)
    def inside(*args: object, **kwargs: object) -> object:
        _domain.push_range(attributes)
        try:
            return function(*args, **kwargs)
        finally:
            _domain.pop_range()

    return inside
