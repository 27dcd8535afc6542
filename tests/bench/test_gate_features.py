"""The gates of a layer and of a step of models with other features than Llama's: right numbers pass, wrong do not."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import pykernels as pk
from bench.backends import Workload, arms_of, registry
from bench.backends.steps import drivers
from bench.backends.steps.arms import arm_of, backends
from bench.backends.steps.gate import Reference, StepCheck
from bench.backends.steps.transformers import model_reason
from bench.backends.torch_layer import TorchLayer
from bench.core.measure import gate, gate_again

TINY = replace(pk.models.get("tiny"), qkv_bias=False)
SPECS = {
    "qwen3": replace(TINY, qk_norm="head"),
    "gemma": replace(TINY, norm_offset=1.0, gelu=True, embedding_scale=512**0.5, tied_embeddings=True),
    "gemma3": replace(
        TINY, norm_offset=1.0, gelu=True, embedding_scale=512**0.5, qk_norm="head", post_norms=True,
        local_layers=(0, 1, 2), local_rope_theta=1e4,
    ),
    "granite": replace(
        TINY, embedding_scale=12.0, attention_scale=0.02, residual_scale=0.22, logit_scale=0.125, nope_layers=(3,)
    ),
    "olmo2": replace(TINY, qk_norm="all", pre_norms=False, post_norms=True, logit_softcap=5.0),
}  # fmt: skip


@pytest.mark.parametrize("features", SPECS)
def test_right_layers_pass(features):
    spec = SPECS[features]
    weights = pk.LayerWeights.random(spec)
    of = Workload.of([pk.DecodeLayer(spec, weights, 300) for _ in range(2)])
    arms = [arm for name in ("native", "sdpa") for arm in arms_of(registry()[name], of, ["eager"], ["none", "block"])]
    gate(arms)
    for arm in arms:
        arm.samples_us = [1.0]
    gate_again(arms)
    assert [(arm.status, arm.reason) for arm in arms] == [("ok", None)] * 3


def without(self: TorchLayer, x: Tensor, *_: object) -> Tensor:
    """A norm that is not there."""
    return x


def heads_without(self: TorchLayer, x: Tensor, _: object) -> Tensor:
    """A QK norm that is not there."""
    return x.view(x.shape[0], -1, 1, self.layer.spec.head_dim)


@pytest.mark.parametrize(
    ("features", "name", "fault"),
    [
        ("qwen3", "_norm_heads", heads_without),
        ("olmo2", "_norm_heads", heads_without),
        ("gemma", "_norm", without),
        ("gemma3", "_norm", without),
        ("granite", "_added", lambda self, residual, projected, norm: residual + projected),
    ],
)
def test_a_feature_that_is_left_out(monkeypatch, features, name, fault):
    spec = SPECS[features]
    of = Workload.of([pk.DecodeLayer(spec, pk.LayerWeights.random(spec), 300)])
    monkeypatch.setattr(TorchLayer, name, fault)
    (arm,) = arms_of(registry()["sdpa"], of, ["eager"], ["block"])
    gate([arm])
    assert arm.status == "wrong"


@pytest.mark.parametrize("features", SPECS)
def test_right_steps_pass(features):
    spec = SPECS[features]
    model = pk.DecodeModel(spec, pk.ModelWeights.random(spec), 40)
    reference = Reference(model, 32)
    before = [tensor.clone() for tensor in model.weights.layers[0].named().values()]
    for driver in (drivers.NativeDriver(model, "block", "native"), drivers.TorchDriver(model)):
        with torch.inference_mode():
            comparison = StepCheck(driver, reference)()
        assert comparison.ok, comparison.message
    after = model.weights.layers[0].named().values()
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True)), "the gate leaves what it found"


def test_what_a_soft_cap_of_scores_leaves_unsupported():
    spec = replace(TINY, attention_softcap=5.0)
    model = pk.DecodeModel(spec, pk.ModelWeights.random(spec), 40)
    arm, _ = arm_of(backends()["sdpa"], Reference(model, 32), "eager", None)
    assert (arm.status, arm.reason) == ("unsupported", "its attention is called without a soft cap")


@pytest.mark.parametrize("features", SPECS)
def test_which_models_are_made_as_transformers_own(features):
    assert (model_reason(SPECS[features]) is None) == (features == "qwen3")
