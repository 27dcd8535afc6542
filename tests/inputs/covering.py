"""Fewer cases than a full product, in which every pair of values occurs.

A kernel's fault shows on one compiled path (a dtype, instruction set or architecture) at a value of one other
parameter, or at two values of others together. Every such pair occurs in a covering set; a product runs each of them
dozens of times more.
"""

import itertools
import os
from collections.abc import Callable, Sequence

import pytest
import torch
from allpairspy import AllPairs

# What chooses the compiled kernel counts as one parameter: all its combinations occur, each with every value of each
# other parameter.
COMPILED = ("isa_name", "dtype", "arch", "head_dim")
# The full products: `EVERY_CASE=1 python -m pytest tests/ops`.
EVERY_CASE = os.environ.get("EVERY_CASE", "") not in ("", "0")


def pairs_covered(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Tuples of indices, one below each size, in which every pair of indices of two positions occurs. They depend on
    the sizes alone."""
    if len(sizes) == 1:
        return [(index,) for index in range(sizes[0])]
    return [tuple(indices) for indices in AllPairs([range(size) for size in sizes])]


class _Values:
    """The values of one `pytest.mark.parametrize`: a tuple of arguments, an id and marks for each."""

    def __init__(self, mark: pytest.Mark) -> None:
        names, values = mark.args
        self.names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        self.cases = []
        ids = mark.kwargs.get("ids")
        for index, value in enumerate(values):
            given, name, marks = (value.values, value.id, value.marks) if hasattr(value, "marks") else (None, None, ())
            given = given if given is not None else (value,) if len(self.names) == 1 else tuple(value)
            if name is None and callable(ids):
                name = "-".join(str(ids(one)) for one in given)
            elif name is None:
                name = ids[index] if ids else "-".join(map(self._id, given))
            self.cases.append((given, name, marks))

    @staticmethod
    def _id(value: object) -> str:
        if isinstance(value, torch.dtype):
            return str(value).removeprefix("torch.")
        # A function's own words hold its address, which no two workers share.
        return value.__name__ if callable(value) and hasattr(value, "__name__") else str(value).replace(" ", "")


def pairwise(function: Callable) -> Callable:
    """On top of a test's stacked `pytest.mark.parametrize`: cases that cover all pairs, in place of the product."""
    marks = [mark for mark in function.pytestmark if mark.name == "parametrize"]
    if EVERY_CASE:
        return function
    function.pytestmark = [mark for mark in function.pytestmark if mark.name != "parametrize"]
    parameters = [_Values(mark) for mark in marks]
    compiled = [one for one in parameters if one.names[0] in COMPILED]
    factors = [[one] for one in parameters if one not in compiled] + ([compiled] if compiled else [])
    choices = [list(itertools.product(*(one.cases for one in factor))) for factor in factors]
    cases = []
    for indices in pairs_covered([len(choice) for choice in choices]):
        chosen = [case for choice, index in zip(choices, indices, strict=True) for case in choice[index]]
        values = [value for given, _, _ in chosen for value in given]
        applied = [mark for _, _, of in chosen for mark in of]
        cases.append(pytest.param(*values, id="-".join(name for _, name, _ in chosen), marks=applied))
    names = [name for factor in factors for one in factor for name in one.names]
    return pytest.mark.parametrize(names, cases)(function)
