"""The plug-ins that tests load, and their gate."""

import torch

from bench.backends import arms_of
from bench.core.measure import alternate, gate
from bench.plugins.loading import Journal, Plugin, load_layer
from inputs.command_line import ROOT

CPU = torch.device("cpu")
ATTENTION = ROOT / "examples" / "attention_plugin.py"
GQA_DECODE = ROOT / "examples" / "gqa_decode_plugin.cu"
INT4_GEMV = ROOT / "examples" / "int4_gemv.cu"
GEMV = ROOT / "tests" / "inputs" / "plugins" / "gemv.cu"


def plugin(path, name) -> Plugin:
    """As --backend=PATH:NAME names it."""
    return Plugin(path, name, f"{path}:{name}")


def gated(tmp_path, path, name, of, modes=("eager",)):
    """Its arms after the gate and two rounds."""
    backend = load_layer(plugin(path, name), Journal(tmp_path), CPU)
    arms = arms_of(backend, of, modes, ["none"])
    gate(arms)
    alternate(arms, 1, 2)
    return arms
