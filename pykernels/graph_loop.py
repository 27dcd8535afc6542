"""A decoding loop in a CUDA graph: mode ``graph-loop``.

A graph replays one step, and the host launches it once a token. A graph with a conditional WHILE node (CUDA 12.4) runs
its body again and again until a kernel of the body says that it is over: one launch decodes many tokens, and the host
takes no part in them::

    model.set_position(2048)
    program = model.program("block")
    program.run(stream)                                 # once: a capture may not load kernels
    loop = pk.runtime.GraphLoop(program, steps=64, token=model.token)
    loop.run(stream)
    loop.tokens                                         # int64 [steps, batch]
    loop.step_us()                                      # float64 [steps], by the device's clock
"""

import numpy as np
import torch
from torch import Tensor

from pykernels import _runtime


def graph_loop_reason() -> str | None:
    """Why there can be no such loop here: a build without CUDA, no GPU, a driver older than CUDA 12.4. None where there
    can."""
    if not _runtime.build_info()["cuda"]:
        return "needs a build with CUDA kernels"
    return _runtime.graph_loop_reason() or None


class GraphLoop:
    """`steps` runs of a program in one launch.

    program: a step that can be run again for the next token, as :meth:`DecodeModel.program` gives it: what its last op
    writes, the next run reads. It has run before. token: int64 [batch] on the program's device, which a step writes.

    Raises ValueError where the program has no ops or is not of CUDA ops, or where steps or batch are out of range;
    RuntimeError with :func:`graph_loop_reason`, and where CUDA fails.
    """

    def __init__(self, program: _runtime.Program, steps: int, token: Tensor) -> None:
        if token.dtype != torch.int64 or token.dim() != 1 or not token.is_contiguous():
            raise ValueError(f"token must be int64 [batch], got {token.dtype} {list(token.shape)}")
        if not 1 <= steps < 2**31:
            raise ValueError(f"steps must be in 1..{2**31 - 1}, got {steps}")
        batch = token.numel()
        self.steps, self._token = steps, token
        self.tokens = torch.zeros(steps, batch, dtype=torch.int64, device=token.device)
        """Of the last launch: int64 [steps, batch]."""
        self._end_ns = torch.zeros(steps + 1, dtype=torch.int64, device=token.device)
        self._done = torch.zeros(1, dtype=torch.int32, device=token.device)
        self._loop = _runtime.GraphLoop(
            program, token.data_ptr(), self.tokens.data_ptr(), self._end_ns.data_ptr(), self._done.data_ptr(), batch,
            steps,
        )  # fmt: skip

    def run(self, stream: int = 0) -> None:
        """Launch it on a ``cudaStream_t`` of the program's device. The host does not wait."""
        self._loop.run(stream)

    @property
    def kernels(self) -> int:
        """Launches of one run of the body: the step's, and the one that ends it."""
        return self._loop.kernels

    def step_us(self) -> np.ndarray:
        """Of the last launch, once it is over: float64 [steps], microseconds from each step's end to the next one's,
        the first from the loop's begin, by the device's clock (``%globaltimer``; a tick is 1 us at most)."""
        return np.diff(self._end_ns.cpu().numpy()) / 1000
