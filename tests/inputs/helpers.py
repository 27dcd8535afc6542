"""What the op tests share: inputs of a realistic scale, guarded outputs, and the comparison with the reference."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import pykernels as pk
from pykernels.layer import op_labels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# The sizes next to which kernels go wrong: below, at and above a vector, a cache line, a thread's share.
RAGGED = [8, 24, 64, 72, 136, 1000]

GPU = torch.device("cuda", int(os.environ.get("LAUNCHTAX_TEST_GPU", "0")))
"""The GPU of the tests that need one: LAUNCHTAX_TEST_GPU=1 is torch's second."""

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
    """`out` is the reference's `expected` within the gate's own tolerance."""
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


def check_overlap_is_refused(op: str, given: dict, name: str, *shape: int) -> None:
    """A float32 `out` of that shape that begins in the last bytes of the argument `name` is refused; right behind it is
    no overlap."""
    size, count = given[name].nbytes, 4 * math.prod(shape)
    memory = torch.zeros(size + count, dtype=torch.uint8)
    held = memory[:size].view(given[name].dtype).view_as(given[name]).copy_(given[name])

    def call(begin: int) -> None:
        out = memory[begin:][:count].view(torch.float32).view(shape)
        getattr(pk.ops, op)(**given | {name: held}, out=out)

    with pytest.raises(ValueError, match=f"{op}: out must be memory of its own, got memory that overlaps {name}"):
        call(size - 4)
    call(size)


def check_appended(
    run: Callable[..., Tensor], reference: Callable[..., tuple[Tensor, ...]], given: dict, depth: int
) -> None:
    """An op that turns q and appends a row to each cache: the rotated q, the rows, and every other slot as it was.

    reference: the reference, which takes `head_dim` in place of the caches.
    """
    caches, dtype = ("k_cache", "v_cache"), given["x"].dtype
    before = {name: given[name] for name in caches}
    guards = {name: Guarded(*before[name].shape, dtype=dtype) for name in caches}
    given = given | {name: guards[name].tensor.copy_(before[name]) for name in caches}
    inputs = {name: value for name, value in given.items() if name not in caches}
    q, *new_rows = reference(**inputs, head_dim=before["k_cache"].shape[-1])
    check_op(lambda out: run(**given, out=out), q, dtype, depth)
    for name, row in zip(caches, new_rows, strict=True):
        guards[name].check()
        expected = before[name].clone()
        for b, slot in enumerate(given["position"].tolist()):
            assert_close(given[name][b, :, slot], row[b], dtype, depth)
            expected[b, :, slot] = given[name][b, :, slot]
        assert torch.equal(given[name], expected)


def check_every_way_to_drive(layer: pk.DecodeLayer, fusion: str) -> pk.dispatch.Tape:
    """The layer's step gives the same bits eager, as a program, by its launchers and from its tape, which is
    returned."""
    eager = layer.forward(fusion).clone()
    program, tape = layer.program(fusion), layer.tape(fusion)
    assert program.ops == [op for op, _ in op_labels(fusion, layer.weights.is_int4, layer.spec)]

    def pybind() -> None:
        for launch in program.launchers():
            launch()

    for step in (program.run, tape.run, pybind):
        layer.poison()
        step()
        assert torch.equal(layer.out, eager)
    return tape


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch's own ops on that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
