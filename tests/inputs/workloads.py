"""Small workloads for backends, and their gate."""

import dataclasses

import torch

import pykernels as pk
from bench.backends import Workload, arms_of, registry
from bench.core.measure import gate

CPU = torch.device("cpu")


def workload(*, ctx=40, position=20, batch=1, dtype=torch.bfloat16, n_heads=8, n_kv_heads=2, copies=2) -> Workload:
    """A layer that stands in the middle of its cache; every slot from its own on is NaN."""
    spec = dataclasses.replace(pk.models.get("tiny"), n_heads=n_heads, n_kv_heads=n_kv_heads)
    weights = pk.LayerWeights.random(spec, dtype)
    layers = [pk.DecodeLayer(spec, weights.clone(), ctx, batch, dtype) for _ in range(copies)]
    for layer in layers:
        layer.set_position(position)
        for cache in (layer.k_cache, layer.v_cache):
            cache[:, :, position:] = float("nan")
    return Workload.of(layers)


def gated(name: str, of: Workload, mode: str = "eager"):
    """The arm of one mode after the gate, its sampler run too where it is right."""
    (arm,) = arms_of(registry()[name], of, [mode], ["none"])
    gate([arm])
    if arm.status == "ok":
        with torch.inference_mode():
            assert (arm.sampler(4) > 0).all()
    return arm
