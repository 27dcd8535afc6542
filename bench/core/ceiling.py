"""The ceiling: what read and copy reach on this memory, in this process, measured among the arms."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

import pykernels as pk
from bench.core import floors
from bench.core.environment import last_level_cache_bytes
from bench.core.measure import Arm, Rotation
from bench.core.samplers import Samplers

# On a GPU a pass over 2 GiB lasts half a millisecond: what a kernel needs to begin and end is lost in it.
_CUDA_BYTES = 2 << 30
_CPU_BYTES = 256 << 20
_MOST_BYTES = 2 << 30


def touched_bytes(n_bytes: int, device: torch.device) -> Tensor:
    """A uint8 tensor of that many bytes, written once so that its pages exist."""
    return torch.full((n_bytes,), 1, dtype=torch.uint8, device=device)


class Ceiling:
    """Two arms for the alternation, and what they measured.

    The buffer is several times the last-level cache, so that nothing of a pass is left for the next.
    """

    def __init__(self, device: torch.device) -> None:
        least = _CUDA_BYTES if device.type == "cuda" else _CPU_BYTES
        self.n_bytes = min(max(4 * last_level_cache_bytes(device), least), _MOST_BYTES)
        self._src = touched_bytes(self.n_bytes, device)
        self._out = touched_bytes(self.n_bytes // 2, device)
        sink = torch.zeros(8, dtype=torch.int64, device=device)
        with pk.runtime.record() as read:
            pk.ops.ceiling_read(self._src, sink)
        with pk.runtime.record() as copy:
            pk.ops.ceiling_copy(self._src[: self.n_bytes // 2], self._out)
        samplers = Samplers(Rotation(1), 1, device)
        self.read = Arm("ceiling", "read", sampler=samplers.programs([read]))
        self.copy = Arm("ceiling", "copy", sampler=samplers.programs([copy]))

    @property
    def arms(self) -> list[Arm]:
        """The two arms, for bench.core.measure.alternate."""
        return [self.read, self.copy]

    def read_gbs(self) -> np.ndarray:
        """The read ceiling of every round that counts, GB/s."""
        return floors.gigabytes_per_second(self.n_bytes, self.read.kept_us)

    def copy_gbs(self) -> np.ndarray:
        """The copy ceiling of every round that counts, GB/s; bytes read and bytes written both count."""
        return floors.gigabytes_per_second(self.n_bytes // 2 * 2, self.copy.kept_us)

    def bandwidths(self, spec_gbs: float | None) -> dict[str, Any]:
        """The medians beside the specification, GB/s; None where no round was measured."""
        measured = bool(self.read.samples_us)
        return {
            "spec_gbs": spec_gbs,
            "read_gbs": float(np.median(self.read_gbs())) if measured else None,
            "copy_gbs": float(np.median(self.copy_gbs())) if measured else None,
        }

    def document(self, spec_gbs: float | None, spec_source: str) -> dict[str, object]:
        """The key `ceiling` of a result document."""
        return {**self.bandwidths(spec_gbs), "spec_source": spec_source, "buffer_bytes": self.n_bytes}
