"""A plain read of a kernel's bytes, in the modes that the kernel is driven in.

A small read does not reach the ceiling, which is measured over gigabytes: it has to begin and to end. So a kernel is
also held against `ceiling_read` of as many bytes, alternated with it, on copies that the cache does not hold either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

import pykernels as pk
from bench.backends.native import Native, drive
from bench.core.document import Document
from bench.core.measure import Arm, Drive, Rotation, Watch
from bench.core.samplers import Samplers

_UNIT = 64
"""What ceiling_read takes is a multiple of that many bytes."""


@dataclass(frozen=True)
class PlainRead:
    """The arms of a read of `bytes` bytes, one a mode."""

    bytes: int
    arms: list[Arm]


def _check(
    sink: Tensor, step: Callable[[], object], expected: int, drive: Drive | None = None, watch: Watch | None = None
) -> pk.reference.Comparison:
    sink.zero_()
    step()
    found = int(sink.sum())
    words = f"the checksum of a plain read must be {expected}, got {found}"
    return pk.reference.Comparison(found == expected, 0.0, 1.0, (), float(found), float(expected), words)


def plain_read(n_bytes: int, copies: int, repeats: int, modes: Sequence[str], device: torch.device) -> PlainRead:
    """Reads of so many bytes, rounded up; `repeats` a sample, over so many copies in rotation."""
    n_bytes = -(-n_bytes // _UNIT) * _UNIT
    words = torch.randint(-(2**62), 2**62, (n_bytes // 8,), device=device)
    buffers = [words.clone().view(torch.uint8) for _ in range(copies)]
    sink = torch.zeros(8, dtype=torch.int64, device=device)
    samplers = Samplers(Rotation(copies), repeats, device)
    calls = [partial(pk.ops.ceiling_read, buffer, sink) for buffer in buffers]
    arms = []
    for mode in modes:
        if Native.mode_reason(mode, device):
            continue
        with torch.inference_mode():
            driven = drive(mode, calls, samplers)
        arms.append(Arm("plain read", mode, None, driven.sampler, partial(_check, sink, driven.step, int(words.sum()))))
    return PlainRead(n_bytes, arms)


def compare(entries: Sequence[Document], reads: Sequence[PlainRead]) -> None:
    """The keys `plain_read_us` and `share_of_plain_read` of a group's entries: the median of a plain read of as many
    bytes in the same mode, and how much of its bandwidth the kernel reaches. Of several reads the nearest in bytes
    counts, and its time is scaled to the entry's bytes."""
    for entry in entries:
        entry |= {"plain_read_us": None, "share_of_plain_read": None}
        measured = [
            (abs(read.bytes - entry["bytes"]), read, arm)
            for read in reads for arm in read.arms
            if arm.mode == entry["mode"] and arm.status == "ok" and len(arm.kept_us)
        ]  # fmt: skip
        if entry["status"] != "ok" or not measured:
            continue
        _, read, arm = min(measured, key=lambda found: found[0])
        read_us = float(np.median(arm.kept_us)) * entry["bytes"] / read.bytes
        entry |= {"plain_read_us": read_us, "share_of_plain_read": read_us / entry["time_us"]["p50"]}
