"""A prediction of our 4-bit layer and step on a GPU that is not here, from its published bandwidth and what was
measured on the one that is. Arithmetic, not a measurement."""

from collections.abc import Sequence

import torch

from bench.core import environment, floors
from bench.core.document import Document
from pykernels.models import ModelSpec

GPUS = {name.lower().replace(" ", "-"): name for name in environment.GPU_SPECS}
"""What --predict takes, and the name in the table of published bandwidths."""


def best_layer(entries: Sequence[Document], model: str) -> Document | None:
    """The fastest measured arm of our 4-bit layer of that model."""
    found = [
        entry for entry in entries
        if (entry["op"], entry["backend"], entry["status"]) == ("layer", "native", "ok") and model in entry["models"]
    ]  # fmt: skip
    return min(found, key=lambda entry: entry["time_us"]["p50"], default=None)


def predict(gpu: str, spec: ModelSpec, entry: Document, batch: int, dtype: torch.dtype, device: str) -> Document:
    """One key of `predictions`. entry: the measured arm of the layer.

    The layer's time there is its bytes over the published bandwidth, divided by the share of it that the arm reached
    of its own: the measured ceiling where the published one of this machine is not known. The step is the layers and
    an lm_head of `dtype` at that share.
    """
    published_gbs, source = environment.GPU_SPECS[gpu]
    share = entry["share_of_spec"] or entry["share_of_read"]
    against = "published bandwidth" if entry["share_of_spec"] else "measured read ceiling"
    layer_us = floors.microseconds(entry["bytes"], published_gbs * share)
    head_bytes = floors.gemv(batch, spec.hidden, spec.vocab, dtype.itemsize)
    step_bytes = spec.n_layers * entry["bytes"] + head_bytes
    here = "this GPU" if device == "cuda" else "a CPU, whose kernels are others: its share is no evidence for a GPU"
    return {
        "gpu": gpu, "model": spec.name, "published_gbs": published_gbs, "source": source, "share": share,
        "measured_mode": entry["mode"], "layer_bytes": entry["bytes"], "layer_us": layer_us,
        "layer_floor_us": floors.microseconds(entry["bytes"], published_gbs), "step_bytes": step_bytes,
        "step_ms": floors.microseconds(step_bytes, published_gbs * share) / 1000,
        "step_floor_ms": floors.microseconds(step_bytes, published_gbs) / 1000,
        "assumptions": [
            f"the kernels reach the share of bandwidth there that they reach here: {share:.3f} of the {against}, "
            f"measured in mode {entry['mode']} on {here}",
            f"{gpu} has {published_gbs:g} GB/s ({source}) and can be read at it as this machine can at its own",
            "what does not scale with bytes (launch, ramp, drain) takes the same share of a longer time: a slower "
            "memory makes it smaller, so this errs to the slow side",
            "the processor there dequantises fast enough: fewer multiprocessors at other clocks were not accounted for",
            f"the step is {spec.n_layers} such layers and an lm_head of {dtype.itemsize} bytes a weight; embedding, "
            "final norm and sampling are left out",
        ],
    }  # fmt: skip
