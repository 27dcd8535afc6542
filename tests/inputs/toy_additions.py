"""A toy op, `scale` (out = factor * x), and a toy backend, `toy`, added to a copy of the tree: the change that
CONTRIBUTING.md's lists of files allow, and no more."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Insertion:
    """`text` goes right before `before`, which is in the file once."""

    text: str
    before: str


Additions = dict[str, str | tuple[Insertion, ...]]
"""By file, from the root: a new file's text, or what goes into one that is there."""

OP: Additions = {
    "csrc/params.h": (
        Insertion(
            """\
// out = factor * x
struct ScaleParams {
    const void* x;  // [count]
    void* out;      // [count]
    int64_t count;
    float factor;
    Dtype dtype;
};

""",
            before="// out = a + scale * b",
        ),
    ),
    "csrc/op_list.h": (
        Insertion(
            "    X(scale, ScaleParams)                     \\\n",
            before="    X(add, AddParams)                         \\",
        ),
    ),
    "csrc/cpu/scale.cpp": """\
// scale: out = factor * x.
#include "cpu/elementwise.h"
#include "cpu/kernels.h"

namespace pykernels::cpu::PYKERNELS_ISA {

void scale(const ScaleParams& params) {
    with_type(params.dtype, [&](auto type) {
        zip<decltype(type)>(params.x, params.x, params.out, params.count,
                            [factor = params.factor](auto x, auto) { return x * factor; });
    });
}

}  // namespace pykernels::cpu::PYKERNELS_ISA
""",
    "csrc/cuda/scale.cu": """\
// scale: out = factor * x.
#include "cuda/common/elementwise.cuh"

namespace pykernels::cuda {
namespace {

struct Scaled {
    float factor;
    __device__ float operator()(float x, float) const { return factor * x; }
};

}  // namespace

void scale(const ScaleParams& params, const Stream& stream) {
    launch_elementwise("scale", params.x, params.x, params.out, params.count, params.dtype,
                       Scaled{params.factor}, stream);
}

}  // namespace pykernels::cuda
""",
    "csrc/binding/torch_library.cpp": (
        Insertion(
            """\
void scale(const Tensor& x_, double factor, const Tensor& out_) {
    Argument x("scale", "x", x_), out("scale", "out", out_);
    const Dtype dtype = x.shape_of(x).dtype();
    out.like(x).shape_of(x);
    if (!(std::fabs(factor) < 1e38)) {
        fail("scale", "factor must be in (-1e38, 1e38), got " + std::to_string(factor));
    }
    check_no_overlap(out, {&x});
    submit(
        ScaleParams{x.data(), out.data(), x.bytes() / dtype_bytes(dtype), static_cast<float>(factor), dtype},
        {&x_, &out_});
}

PYKERNELS_TORCH_OP(scale, "(Tensor x, float factor, Tensor(a!) out) -> ()")

""",
            before="void add(const Tensor& a_",
        ),
    ),
    "pykernels/ops.py": (
        Insertion(
            '''\
_scale = _ops.scale.default


@_op
def scale(x: Tensor, factor: float, out: Tensor | None = None) -> Tensor:
    """``factor * x``; x and the result of one shape; factor in (-1e38, 1e38)."""
    if out is None:
        out = torch.empty_like(x)
    _scale(x, factor, out)
    return out


''',
            before="_add = _ops.add.default",
        ),
    ),
    "pykernels/reference.py": (
        Insertion(
            '''\
def scale(x: Tensor, factor: float) -> Tensor:
    """Of the shape of x."""
    return x.double() * factor


''',
            before="def add(a: Tensor, b: Tensor, scale",
        ),
    ),
    "tests/ops/test_scale.py": '''\
"""scale against the reference, and what it refuses."""

import pytest
import torch
from inputs.helpers import DTYPES, check_op, isa, randn

import pykernels as pk


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (8, 264)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_equals_the_reference(isa_name, dtype, shape):
    x = randn(*shape, dtype=dtype)
    with isa(isa_name):
        check_op(lambda out: pk.ops.scale(x, -1.5, out=out), pk.reference.scale(x, -1.5), dtype)


def test_opcheck():
    torch.library.opcheck(torch.ops.pykernels.scale.default, (randn(2, 24), 3.0, torch.zeros(2, 24)))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e38])
def test_bad_factors(factor):
    with pytest.raises(ValueError, match=r"scale: factor must be in \\(-1e38, 1e38\\), got"):
        pk.ops.scale(randn(2, 24), factor)
''',
    "tests/inputs/simt_chained.py": (
        Insertion(
            """\
def scale(count: int, dtype: torch.dtype) -> Case:
    x = randn(count, dtype=dtype)
    return Case(
        "scale", dict(x=x), dict(out=nan(count, dtype=dtype)), dict(out=pk.reference.scale(x, -1.5)),
        dict(count=count, factor=-1.5, dtype=dtype), ("x",),
    )  # fmt: skip


""",
            before="def add(count: int",
        ),
        Insertion(
            """\
    "scale": lambda: scale(2056, BF16),
    "scale of any count": lambda: scale(259, FP16),
""",
            before='    "add": lambda',
        ),
    ),
}

BACKEND: Additions = {
    "bench/backends/toy.py": '''\
"""`toy`: attention by two matrix products, as an example of a backend."""

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.plain import PlainLayer
from bench.backends.torch_layer import Attention, LayerCache


def matmuls(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v with grouped heads (torch_layer.Kernel)."""
    group = q.shape[1] // k.shape[1]
    keys, values = (tensor.repeat_interleave(group, dim=1) for tensor in (k, v))
    scores = q @ keys.transpose(-1, -2) * q.shape[-1] ** -0.5
    return torch.softmax(scores.float(), dim=-1).to(q.dtype) @ values


class Toy(PlainLayer):
    """Two matrix products and a softmax."""

    name = "toy"
    description = "attention by two matrix products"
    no_dispatch = "its scale is a Python number, which a tape cannot hold"

    @classmethod
    def availability(cls, device: torch.device) -> str | None:
        return None

    def attention(self, layer: pk.DecodeLayer) -> Attention:
        return LayerCache(layer, matmuls)

    def kernel_name(self, layer: pk.DecodeLayer) -> str:
        return "two matrix products"
''',
    "bench/backends/__init__.py": (
        Insertion("from bench.backends.toy import Toy\n", before="\n_BACKENDS: tuple"),
        Insertion(" Toy,", before="\n)  # fmt: skip\n\n\n# Run where they are named"),
    ),
    "docs/peers.md": (
        Insertion("| `toy` | nothing | the layer's own | eager, graph |\n", before="| `fa2` | flash-attn,"),
    ),
}


def add(additions: Additions, root: Path) -> None:
    """Make the change in the copy at `root`. LookupError where what an insertion goes before is not there once."""
    for name, change in additions.items():
        path = root / name
        if isinstance(change, str):
            path.write_text(change)
            continue
        text = path.read_text()
        for insertion in change:
            if text.count(insertion.before) != 1:
                raise LookupError(f"{name}: {insertion.before!r} is there {text.count(insertion.before)} times")
            text = text.replace(insertion.before, insertion.text + insertion.before)
        path.write_text(text)
