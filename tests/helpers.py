"""What the op tests share: inputs of a realistic scale, guarded outputs, and the comparison with the oracle."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import pykernels as pk

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# The sizes next to which kernels go wrong: below, at and above a vector, a cache line, a thread's share.
RAGGED = [8, 24, 64, 72, 136, 1000]

_GUARD_BYTES = 256
_CANARY = 0xA5


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Seeded normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).mul_(scale).to(dtype)


class Guarded:
    """A tensor full of NaN with canaries on both sides, 64-byte aligned as a torch allocation is."""

    def __init__(self, *shape: int, dtype: torch.dtype) -> None:
        count = torch.Size(shape).numel()
        self._bytes = torch.full((count * dtype.itemsize + 2 * _GUARD_BYTES,), _CANARY, dtype=torch.uint8)
        self.tensor = self._bytes[_GUARD_BYTES:-_GUARD_BYTES].view(dtype).view(shape)
        self.tensor.fill_(float("nan") if dtype.is_floating_point else 0xFF)

    def check(self) -> None:
        """Fail where a canary was written over."""
        assert (self._bytes[:_GUARD_BYTES] == _CANARY).all(), "written before its begin"
        assert (self._bytes[-_GUARD_BYTES:] == _CANARY).all(), "written past its end"


def assert_close(out: Tensor, expected: Tensor, dtype: torch.dtype, depth: int = 1) -> None:
    """`out` is the oracle's `expected` within the gate's own tolerance."""
    comparison = pk.reference.compare(out, expected, dtype, depth)
    assert comparison.ok, comparison.message


def check_op(run: Callable[[Tensor | None], Tensor], expected: Tensor, dtype: torch.dtype, depth: int = 1) -> None:
    """`run(out)` is right without out, and with one: poisoned, guarded, returned, and equal bit by bit."""
    fresh = run(None)
    assert_close(fresh, expected, dtype, depth)
    guarded = Guarded(*expected.shape, dtype=dtype)
    returned = run(guarded.tensor)
    guarded.check()
    assert returned is guarded.tensor
    assert torch.equal(returned, fresh)


@contextmanager
def isa(name: str) -> Iterator[None]:
    """Run the kernels of one instruction set."""
    before = pk.runtime.isa()
    pk.runtime.set_isa(name)
    try:
        yield
    finally:
        pk.runtime.set_isa(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the kernels on that many threads."""
    before = pk.runtime.num_threads()
    pk.runtime.set_num_threads(count)
    try:
        yield
    finally:
        pk.runtime.set_num_threads(before)
