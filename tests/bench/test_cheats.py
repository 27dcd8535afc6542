"""Plug-ins that are right when they are looked at and fast when they are not: each is found, by the check after the
clocks or by a look at what it replaced. docs/plugins.md names those that cannot be found."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs.command_line import ROOT
from inputs.user_plugins import ATTENTION, gated
from inputs.workloads import CPU, workload

import pykernels as pk
from bench.backends.op_arms import native_arm, torch_arm
from bench.backends.op_cases import OPS, cases
from bench.core.measure import AFTERWARDS, Arm, Rotation, as_check, gate, gate_again
from bench.core.samplers import Samplers
from bench.int4.groups import layout_bytes

CHEATS = ROOT / "tests" / "inputs" / "plugins" / "cheats.py"


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    """What they replace is theirs for a test only."""
    for module, name in ((time, "perf_counter_ns"), (pk.reference, "compare"), (F, "scaled_dot_product_attention")):
        monkeypatch.setattr(module, name, getattr(module, name))


def checked_twice(tmp_path, path, name):
    """Its arm after the gate, the rounds, and the check after them."""
    (arm,) = gated(tmp_path, path, name, workload(ctx=300, position=299, copies=2))
    timed = bool(arm.samples_us)
    gate_again([arm])
    return arm, timed


def test_an_honest_one_passes(tmp_path):
    arm, timed = checked_twice(tmp_path, ATTENTION, "Attention")
    assert timed and (arm.status, arm.reason) == ("ok", None) and arm.samples_us


@pytest.mark.parametrize("name", ["FirstCallsOnly", "PointerMemo", "SeesPoison"])
def test_what_the_check_after_the_clocks_finds(tmp_path, name):
    arm, timed = checked_twice(tmp_path, CHEATS, name)
    assert timed, arm.reason
    assert arm.status == "wrong" and arm.reason.startswith(AFTERWARDS) and arm.samples_us == []


def test_a_shortened_kv_len(tmp_path):
    arm, timed = checked_twice(tmp_path, CHEATS, "ShortKv")
    assert not timed and arm.status == "wrong"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("PatchesClock", "time.perf_counter_ns"),
        ("PatchesComparison", "pykernels.reference.compare"),
        ("SlowsSdpa", "torch.nn.functional.scaled_dot_product_attention"),
    ],
)
def test_what_it_replaces(tmp_path, name, what):
    arm, _ = checked_twice(tmp_path, CHEATS, name)
    assert arm.status == "wrong" and f"replaced {what} in its process" in arm.reason


def test_a_layout_of_no_bytes():
    weight = pk.Int4Weight.quantize(torch.randn(64, 256))
    assert layout_bytes([weight.packed, weight.scales], weight) == weight.packed.numel() + 4 * weight.scales.numel()
    for tensors in ([], [weight.scales], [weight.scales] * 100):
        with pytest.raises(ValueError, match="the 4 bits alone are 8192 bytes, got"):
            layout_bytes(tensors, weight)


@pytest.mark.parametrize("op", OPS)
def test_every_op_is_checked_on_other_inputs(op):
    """Right ones pass; one that does nothing any more is found; and the case has its own numbers again."""
    case = cases(op, pk.models.get("tiny"), [70], 1, torch.bfloat16, 0, CPU)[0]
    with torch.inference_mode():
        instances = [case.make() for _ in range(2)]
        before = [tensor.clone() for tensor in case.reads]
        samplers = Samplers(Rotation(2), 1, CPU)
        arms = [native_arm(case, instances, mode, samplers) for mode in ("eager", "native")]
        arms += [arm for mode in ("eager", "dispatch") if (arm := torch_arm(case, instances, mode, samplers))]
    arms = [arm for arm in arms if arm.status == "ok"]
    gate(arms)
    for arm in arms:
        arm.samples_us = [1.0]
    gate_again(arms)
    assert {(arm.status, arm.reason) for arm in arms} == {("ok", None)}
    idle = arms[1]
    idle.sampler = lambda n: np.ones(n)
    gate_again([idle])
    assert idle.status == "wrong" and idle.samples_us == []
    for tensor, was in zip(case.reads, before, strict=True):
        assert torch.equal(tensor, was)


def test_a_check_of_no_arguments():
    asked = []
    check = lambda: asked.append(1) or pk.reference.Comparison(True, 0.0, 0.1, (0,), 1.0, 1.0, "")  # noqa: E731
    assert as_check(check)(lambda n: None).ok and asked == [1]
    arm = Arm("a", "eager", sampler=lambda n: np.ones(n), check=check, samples_us=[1.0])
    gate_again([arm])
    assert arm.status == "ok" and arm.samples_us == [1.0]
