"""A decoding loop in a graph, as far as there need be no GPU: what is refused, and in which words."""

import pytest
import torch

import pykernels as pk
from pykernels import _runtime

needs_cuda_build = pytest.mark.skipif(not pk.runtime.build_info()["cuda"], reason="this build has no CUDA kernels")


@needs_cuda_build
def test_which_drivers_have_while_nodes():
    assert _runtime.graph_loop_reason(0) == "needs an NVIDIA driver, and none is installed"
    for version, words in ((11080, "11.8"), (12030, "12.3")):
        assert _runtime.graph_loop_reason(version) == (
            f"needs a driver of CUDA 12.4 or later for conditional WHILE nodes, and this one is of CUDA {words}"
        )
    assert _runtime.graph_loop_reason(12040) == _runtime.graph_loop_reason(13000) == ""


def test_the_reason_here():
    reason = pk.runtime.graph_loop_reason()
    assert (reason is None) == (torch.cuda.is_available() and pk.runtime.build_info()["cuda"]) or "CUDA 12.4" in reason
    assert reason is None or reason.startswith("needs ")


@needs_cuda_build
def test_what_is_refused():
    token = torch.zeros(2, dtype=torch.int64)
    with pk.runtime.record() as program:
        pk.ops.null(torch.zeros(1))
    with pytest.raises(ValueError, match="program must be of CUDA ops"):
        pk.runtime.GraphLoop(program, 4, token)
    with pytest.raises(ValueError, match="program must be a step, got one without ops"):
        pk.runtime.GraphLoop(pk.runtime.Program(), 4, token)
    with pytest.raises(ValueError, match=r"token must be int64 \[batch\], got torch.int32 \[2\]"):
        pk.runtime.GraphLoop(program, 4, token.int())
    with pytest.raises(ValueError, match="steps must be in 1..2147483647, got 0"):
        pk.runtime.GraphLoop(program, 0, token)
