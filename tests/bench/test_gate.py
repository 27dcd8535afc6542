"""The layer's gate: a fault of any op of the layer is `wrong`, at every context; and the right numbers are not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from inputs.helpers import DTYPES
from inputs.workloads import workload
from torch import Tensor

import pykernels as pk
from bench.backends import Workload, arms_of, registry, sdpa
from bench.backends.gate_inputs import LOOSE, cancelling, fresh_inputs, gate_inputs
from bench.backends.steps import drivers
from bench.backends.steps.gate import LayerOn, Reference, StepCheck
from bench.backends.torch_layer import TorchLayer
from bench.core.measure import gate, gate_again
from pykernels.layer import OP_LABELS

CONTEXTS = (2048, 16384)
SPEC = pk.models.get("tiny")


@pytest.fixture(scope="module", params=CONTEXTS)
def wide(request) -> Workload:
    """A layer that attends to so many slots."""
    return Workload.of([pk.DecodeLayer(SPEC, pk.LayerWeights.random(SPEC), request.param)])


@pytest.fixture(autouse=True)
def uncounted(monkeypatch):
    """No tape is recorded to count the calls of a plain layer: what is spoilt here need not go on one."""
    monkeypatch.setattr(sdpa.Sdpa, "_calls", lambda self, layer: ["calls"])


def status(name: str, of: Workload, fusion: str = "block", mode: str = "eager") -> tuple[str, str | None]:
    (arm,) = arms_of(registry()[name], of, [mode], [fusion])
    gate([arm])
    return arm.status, arm.reason


def scaled(result: Tensor) -> None:
    result.mul_(1.05)


def zeroed(result: Tensor) -> None:
    result.zero_()


FAULTS = {"5%": scaled, "zeros": zeroed}


def nth_call(monkeypatch, module, name: str, n: int, calls: int, spoil: Callable[[Tensor], None]) -> None:
    """Spoil the result of the n-th of every `calls` calls of a function, its out= or what it returns."""
    true, seen = getattr(module, name), [0]

    def spoilt(*arguments, **named):
        result = true(*arguments, **named)
        if seen[0] % calls == n:
            spoil(result if result is not None else named["out"])
        seen[0] += 1
        return result

    monkeypatch.setattr(module, name, spoilt)


def ops_of(fusion: str) -> list[tuple[str, str, int, int]]:
    """(op, what it does, which of its calls, its calls) of a layer."""
    found = []
    for op, label in OP_LABELS[fusion]:
        calls = [other for other, _ in OP_LABELS[fusion]].count(op)
        found.append((op, label, sum(seen == op for seen, *_ in found), calls))
    return found


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("fusion", "op", "label", "n", "calls"),
                         [(fusion, *op) for fusion in OP_LABELS for op in ops_of(fusion)])  # fmt: skip
def test_a_fault_of_an_op_of_ours(monkeypatch, wide, fusion, op, label, n, calls, fault):
    arm = arms_of(registry()["native"], wide, ["eager"], [fusion])
    # It has recorded right ops; its check calls spoilt ones.
    nth_call(monkeypatch, pk.ops, op, n, calls, FAULTS[fault])
    gate(arm)
    assert arm[0].status == "wrong", label


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("function", "n", "calls"),
    [("rms_norm", 0, 2), ("rms_norm", 1, 2), ("silu", 0, 1), *(("linear", n, 7) for n in range(7))],
)
def test_a_fault_of_an_op_of_the_plain_layer(monkeypatch, wide, function, n, calls, fault):
    nth_call(monkeypatch, F, function, n, calls, FAULTS[fault])
    assert status("sdpa", wide)[0] == "wrong"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_rotation(monkeypatch, wide, fault):
    for n in (0, 1):  # k, then q
        with monkeypatch.context() as patched:
            nth_call(patched, TorchLayer, "_rotate", n, 2, FAULTS[fault])
            assert status("sdpa", wide)[0] == "wrong"


@pytest.mark.parametrize("name", ["native", "sdpa"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_residual_that_is_lost_or_wrong(monkeypatch, wide, name, fault):
    """x, as the layer adds it to what attention gives and no more."""
    true = TorchLayer._after_attention

    def after(self, attended):
        layer, x = self.layer, self.layer.x
        layer.x = x * (1.05 if fault == "5%" else 0.0)
        try:
            return true(self, attended)
        finally:
            layer.x = x

    if name == "native":
        true_gemv = pk.ops.gemv

        def gemv(x, weight, bias=None, residual=None, **named):
            if residual is not None and weight is wide.layers[0].weights.o_weight:
                residual = residual * (1.05 if fault == "5%" else 0.0)
            return true_gemv(x, weight, bias, residual, **named)

        monkeypatch.setattr(pk.ops, "gemv", gemv)
    else:
        monkeypatch.setattr(TorchLayer, "_after_attention", after)
    assert status(name, wide)[0] == "wrong"


def without_key(key: int):
    """SDPA over all keys but one."""

    def kernel(q, k, v):
        kept = [part[:, :, [*range(key % k.shape[2]), *range(key % k.shape[2] + 1, k.shape[2])]] for part in (k, v)]
        return F.scaled_dot_product_attention(q, *kept, enable_gqa=True)

    return kernel


@pytest.mark.parametrize("key", [0, 1, 777, -130, -2, -1])
def test_one_missing_key(monkeypatch, wide, key):
    monkeypatch.setattr(sdpa, "sdpa", without_key(key))
    verdict, reason = status("sdpa", wide)
    assert verdict == "wrong" and reason.startswith("out, on inputs that show every key")


def test_one_key_that_is_read_twice(monkeypatch, wide):
    def kernel(q, k, v):
        twice = [torch.cat((part, part[:, :, 500:501]), dim=2) for part in (k, v)]
        return F.scaled_dot_product_attention(q, *twice, enable_gqa=True)

    monkeypatch.setattr(sdpa, "sdpa", kernel)
    assert status("sdpa", wide)[0] == "wrong"


@pytest.mark.parametrize("scale", [0.95, 1.05])
def test_a_wrong_scale_of_the_scores(monkeypatch, wide, scale):
    monkeypatch.setattr(sdpa, "sdpa", lambda q, k, v: F.scaled_dot_product_attention(q * scale, k, v, enable_gqa=True))
    assert status("sdpa", wide)[0] == "wrong"


def test_one_head_of_ours(monkeypatch, wide):
    """What a backend shows of its parts is compared by head."""
    nth_call(monkeypatch, pk.ops, "gqa_decode", 0, 1, lambda out: out[:, 3].mul_(1.03))
    assert status("native", wide)[1].startswith("attended")


LAST = -1
STEP_OPS = {"rmsnorm": (2, 1), "gemv": (7, 1), "rope_kv_append": (1, 0), "gqa_decode": (1, 0), "silu_mul": (1, 0),
            "add": (2, 0), "embedding": (0, 1), "argmax": (0, 1)}  # fmt: skip
"""Of every op its calls in a layer, and whether there is one more in the step."""
STEP_CALLS = [(op, n) for op, (each, more) in STEP_OPS.items() for n in (*range(each), *([LAST] * more))]


@pytest.fixture(scope="module")
def step_reference() -> Reference:
    spec = replace(SPEC, n_layers=2)
    return Reference(pk.DecodeModel(spec, pk.ModelWeights.random(spec), 2060), 2048)


@pytest.fixture(scope="module")
def fresh_of_layers(step_reference) -> list[list[LayerOn]]:
    """What Reference.fresh may draw, by layer."""
    return [step_reference._sets(layer, 7) for layer in range(2)]


def test_a_seed_has_one_set_of_numbers(step_reference):
    for one, other in zip(step_reference._sets(0, 7), step_reference._sets(0, 7), strict=True):
        for name in ("values", "rows", "logits"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize(("op", "n"), STEP_CALLS)
def test_a_fault_of_an_op_in_every_layer_of_a_step(monkeypatch, step_reference, fresh_of_layers, op, n):
    driver = drivers.NativeDriver(step_reference.model, "none", "eager")
    check = StepCheck(driver, step_reference)
    each, more = STEP_OPS[op]
    true, calls, seen = getattr(pk.ops, op), 2 * each + more, [0]

    def spoilt(*arguments, **named):
        result = true(*arguments, **named)
        index, seen[0] = seen[0] % calls, seen[0] + 1
        if index == calls - 1 if n == LAST else index < 2 * each and index % each == n:
            result = result if result is not None else named["out"]
            result.add_(1) if op == "argmax" else result.mul_(1.1 if op == "embedding" else 1.05)
        return result

    with torch.inference_mode():
        monkeypatch.setattr(pk.ops, op, spoilt)
        assert not check().ok
        for layer, sets in enumerate(fresh_of_layers):  # after the clocks, whichever of them is drawn
            monkeypatch.setitem(vars(step_reference), "fresh", sets)
            seen[0] = 0
            assert not check(driver.run).ok, layer


def test_one_missing_key_of_a_step(monkeypatch, step_reference):
    monkeypatch.setattr(drivers, "sdpa", without_key(1000))
    with torch.inference_mode():
        check = StepCheck(drivers.TorchDriver(step_reference.model), step_reference)
        assert not (found := check()).ok and "on inputs that show every key of layer" in found.message
        monkeypatch.undo()
        check = StepCheck(drivers.TorchDriver(step_reference.model), step_reference)
        assert check().ok and check(lambda n: None).ok


MODES = {"native": ("eager", "dispatch", "native"), "sdpa": ("eager", "dispatch"), "sdpa-math": ("dispatch", "eager")}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("ctx", "batch"), SHAPES := [(1, 1), (2, 3), (LOOSE + 1, 1), (300, 1), (300, 8), (3001, 1)])
def test_the_right_numbers_pass_both_checks(dtype, ctx, batch):
    """In one mode each, and over all cases in every mode with each dtype and each shape."""
    weights, turn = pk.LayerWeights.random(SPEC, dtype), DTYPES.index(dtype) + SHAPES.index((ctx, batch))
    of = Workload.of([pk.DecodeLayer(SPEC, weights, ctx, batch, dtype) for _ in range(2)])
    arms = [
        arm
        for name, modes in MODES.items()
        for arm in arms_of(registry()[name], of, [modes[turn % len(modes)]], ["none", "block"])
    ]
    assert len(arms) == 4
    gate(arms)
    for arm in arms:
        arm.samples_us = [1.0]
    gate_again(arms)
    assert {(arm.status, arm.reason) for arm in arms} == {("ok", None)}


def test_what_was_timed_lies_there_again():
    of = workload(position=20)
    layer = of.layers[0]
    names = ("x", "k_cache", "v_cache")
    before = {name: getattr(layer, name).clone() for name in names}
    norms = [norm.clone() for norm in (layer.weights.input_norm, layer.weights.post_norm)]
    (arm,) = arms_of(registry()["native"], of, ["eager"], ["block"])
    gate([arm])
    arm.samples_us = [1.0]
    gate_again([arm])
    assert arm.status == "ok"
    for norm, was in zip((layer.weights.input_norm, layer.weights.post_norm), norms, strict=True):
        torch.testing.assert_close(norm, was, rtol=0, atol=0)
    torch.testing.assert_close(layer.x, before["x"], rtol=0, atol=0)
    for name in names[1:]:
        torch.testing.assert_close(getattr(layer, name)[:, :, :20], before[name][:, :, :20], rtol=0, atol=0)
        assert getattr(layer, name)[:, :, 21:].isnan().all()


def test_values_cancel_but_for_those_that_are_loose():
    values = cancelling((1, 2, 1000, 8), LOOSE, torch.float32, torch.Generator().manual_seed(0))
    assert values.abs().unique().tolist() == [1.0]
    assert values.sum(2).abs().max() <= LOOSE
    assert values.sum(2).abs().mean() > 2, "some do not cancel"
    few = cancelling((1, 2, 5, 8), LOOSE, torch.float32, torch.Generator().manual_seed(0))
    assert few.shape == (1, 2, 5, 8) and few.abs().unique().tolist() == [1.0]


@pytest.mark.parametrize("loud", [1.0, 300.0])
def test_keys_of_a_checkpoint_that_drown_all_others(loud):
    """Biases of hundreds, as Qwen2.5 has them: the step's own key would win against every other."""
    weights = pk.LayerWeights.random(SPEC)
    weights.k_bias, weights.q_bias = (torch.full_like(bias, loud) for bias in (weights.k_bias, weights.q_bias))
    layer = pk.DecodeLayer(SPEC, weights, 2048)
    for inputs in [*gate_inputs(layer, weights, 0)[1:], *fresh_inputs(layer, weights, 1)]:
        without = inputs.v_cache.clone()
        without[:, :, 100:200] = 0
        q, k_row, v_row = (inputs.expected[name] for name in ("q", "k_row", "v_row"))
        room = torch.zeros_like(k_row, dtype=layer.dtype).unsqueeze(2)
        caches = (torch.cat((cache, room), dim=2) for cache in (inputs.k_cache, without))
        attended = pk.reference.layer_attention(q, k_row, v_row, *caches, layer.position, layer.spec)
        assert pk.reference.compare(attended, inputs.expected["attended"], torch.bfloat16, 2).ok is False
