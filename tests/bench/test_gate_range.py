"""The gate's inputs are normal numbers of the dtype whatever the size of the weights: a right layer passes, and a
fault of any op is found."""

from dataclasses import replace

import pytest
import torch

import pykernels as pk
from bench.backends import Workload, arms_of, registry
from bench.backends.number_range import NumberRange
from bench.core.measure import gate, gate_again
from pykernels.layer import OP_LABELS

TINY = replace(pk.models.get("tiny"), qkv_bias=False)
SPECS = {
    "llama": TINY,
    "gemma3": replace(TINY, norm_offset=1.0, gelu=True, embedding_scale=512**0.5, qk_norm="head", post_norms=True),
    "olmo2": replace(TINY, qk_norm="all", pre_norms=False, post_norms=True),
}
DTYPES = (torch.float16, torch.bfloat16)


def workload(spec: pk.models.ModelSpec, dtype: torch.dtype, scale: float, ctx: int = 300) -> Workload:
    """A layer of projections that are so much larger than such that keep the size of what they multiply."""
    weights = pk.LayerWeights.random(spec, dtype)
    projections = {name: weight * scale for name, weight in weights.named().items() if name.endswith("_weight")}
    return Workload.of([pk.DecodeLayer(spec, replace(weights, **projections), ctx, 1, dtype)])


def verdicts(of: Workload) -> set[tuple[str, str | None]]:
    """Of our own layer and of torch's, by both checks."""
    arms = [arm for name in ("native", "sdpa") for arm in arms_of(registry()[name], of, ["eager"], ["none", "block"])]
    gate(arms)
    for arm in arms:
        arm.samples_us = [1.0]
    gate_again(arms)
    return {(arm.status, arm.reason) for arm in arms}


@pytest.mark.parametrize("scale", [2.0**-9, 2.0**9])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", SPECS)
def test_small_and_large_weights(features, dtype, scale):
    of = workload(SPECS[features], dtype, scale)
    info = torch.finfo(dtype)
    for inputs in [*of.inputs()[1:], *of.inputs(fresh=True)]:
        for part, values in inputs.expected.items():
            assert 4 * info.smallest_normal <= values.abs().max() <= info.max / 2, (inputs.name, part)
        assert all(norm.isfinite().all() for norm in inputs.norms.values())
    assert verdicts(of) == {("ok", None)}


@pytest.mark.parametrize("scale", [2.0**-9, 2.0**9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fault_of_any_op_is_found_there(monkeypatch, dtype, scale):
    of = workload(TINY, dtype, scale)
    (arm,) = arms_of(registry()["native"], of, ["eager"], ["none"])
    calls = [op for op, _ in OP_LABELS["none"]]
    for n, op in enumerate(calls):
        true, which, seen = getattr(pk.ops, op), calls[:n].count(op), [0]

        def spoilt(*arguments, true=true, op=op, which=which, seen=seen, **named):
            result = true(*arguments, **named)
            result = named["out"] if result is None else result
            if seen[0] % calls.count(op) == which:
                result.mul_(1.05)
            seen[0] += 1
            return result

        with monkeypatch.context() as patched:
            patched.setattr(pk.ops, op, spoilt)
            arm.status, arm.reason = "ok", None
            gate([arm])
        assert arm.status == "wrong", (n, op)


@pytest.mark.parametrize("seed", range(4))
def test_weights_that_are_all_the_same(seed):
    """gate and up are then the same in every row, and where they are negative the activation leaves next to nothing of
    them: the MLP must not be driven there."""
    weights = pk.LayerWeights.random(TINY)
    weights = replace(weights, **{name: torch.full_like(tensor, 2.0**-7) for name, tensor in weights.named().items()})
    layer = pk.DecodeLayer(TINY, weights, 16)
    of = Workload([layer], Workload.of([layer]).samplers, seed)
    assert verdicts(of) == {("ok", None)}


def test_the_scale_that_brings_sizes_into_the_range():
    fp16 = NumberRange.of(torch.float16)
    assert (fp16.low, fp16.high) == (2.0**-12, 2.0**12)
    assert fp16.scale([1.0, 2.0**-12, 2.0**12]) == 1.0
    assert fp16.scale([2.0**-20]) == 2.0**8
    assert fp16.scale([2.0**20, 1.0]) == 2.0**-8
    assert fp16.scale([2.0**20, 2.0**-20]) == 1.0, "neither end suffers more"
    assert fp16.scale([1.0], wanted=2.0**20) == 2.0**12
    assert fp16.scale([0.0, float("inf"), float("nan")], wanted=4.0) == 4.0
    assert NumberRange.of(torch.bfloat16).scale([2.0**-40, 2.0**40]) == 1.0


def test_a_row_of_subnormal_numbers_is_as_exact_as_they_are():
    expected = torch.tensor([[6.1e-8, 3e-8]], dtype=torch.float64)
    assert pk.reference.compare(expected.half(), expected, torch.float16).ok
    assert not pk.reference.compare(expected.half() + 2.0**-20, expected, torch.float16).ok
    assert not pk.reference.compare(expected.bfloat16() * 2, expected, torch.bfloat16).ok
