"""Does an arm that replays or launches again what was captured give the bits of its eager self?

The reference says whether an arm is right within its dtype's rounding. This says more: the same kernels on the same
memory leave the same bits, unless the library itself does not (atomic sums, split reductions in another order).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

EQUAL, DIFFERENT, NOT_DETERMINISTIC = "equal", "different", "eager differs from itself"

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether they hold the same bits: a NaN is equal to itself, and 0 is not -0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.is_complex:
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    integers = _INTEGERS[a.element_size()]
    return torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))


def poison(tensors: Sequence[Tensor]) -> None:
    """Fill them with NaN, integers with their least value: what is not written shows."""
    for tensor in tensors:
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            tensor.fill_(float("nan"))
        elif tensor.dtype == torch.bool:
            tensor.logical_not_()
        else:
            tensor.fill_(torch.iinfo(tensor.dtype).min)


def against_eager(eager: Callable[[], Sequence[Tensor]], again: Callable[[], Sequence[Tensor]]) -> str:
    """EQUAL, DIFFERENT or NOT_DETERMINISTIC. Both run a step and return its results; `again` the captured step, which
    has to poison what it writes before."""

    def copies(step: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        return [tensor.clone() for tensor in step()]

    first, second = copies(eager), copies(eager)
    if not all(map(same_bits, first, second)):
        return NOT_DETERMINISTIC
    return EQUAL if all(map(same_bits, first, copies(again))) else DIFFERENT
