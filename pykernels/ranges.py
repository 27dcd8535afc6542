"""NVTX ranges of the Python side, in the domain "launchtax" that the C++ side uses too.

Ranges are put on when a module is made, and only where a tool listens, so that without one they cost nothing:
without one nvtx hands out a stand-in that is not a `Domain`, whose calls would still be calls.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import nvtx
import torch

Function = TypeVar("Function", bound=Callable)

_domain = nvtx.get_domain("launchtax")


def ranged(function: Function, name: str) -> Function:
    """`function` inside a range of that name; `function` itself where no tool listens."""
    if not isinstance(_domain, nvtx.Domain):
        return function
    attributes = _domain.get_event_attributes(message=name)

    @functools.wraps(function)
    def inside(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # a graph has no ranges: its kernels run later
            return function(*args, **kwargs)
        _domain.push_range(attributes)
        try:
            return function(*args, **kwargs)
        finally:
            _domain.pop_range()

    return cast(Function, inside)


@contextmanager
def named(name: str) -> Iterator[None]:
    """A range of that name around what is run inside, such as an arm's: those of its ops lie within it."""
    if not isinstance(_domain, nvtx.Domain):
        yield
        return
    _domain.push_range(_domain.get_event_attributes(message=name))
    try:
        yield
    finally:
        _domain.pop_range()
