"""Model specifications: the study's three, those that robots and copilots run, `tiny`; any other from its config.json.

Sizes and features of every row are those of the config.json that its authors publish with the weights; the comment at a
row names the repository on huggingface.co.
"""

import math

from pykernels.config import from_config
from pykernels.rope import LinearRopeScaling, Llama3RopeScaling, LongRopeScaling, RopeScaling, YarnRopeScaling
from pykernels.spec import ModelSpec, cos_sin_table, rope_frequencies

__all__ = [
    "GROUPS", "LinearRopeScaling", "Llama3RopeScaling", "LongRopeScaling", "ModelSpec", "RopeScaling",
    "YarnRopeScaling", "cos_sin_table", "from_config", "get", "names", "rope_frequencies",
]  # fmt: skip

_LLAMA_3_2 = Llama3RopeScaling(32.0, 1.0, 4.0, 8192)

_PHI_4 = LongRopeScaling(
    (1.0,) * 48,
    (
        1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898,
        2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424,
        6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252,
        16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6,
        32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
    ),
    4096,
    (1 + math.log(131072 / 4096) / math.log(4096)) ** 0.5,
)  # fmt: skip

_MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec("qwen2.5-7b", 3584, 18944, 28, 28, 4, 128, 152064, 1e6, 1e-6, True, False, 32768),
        ModelSpec("mistral-7b-v0.3", 4096, 14336, 32, 32, 8, 128, 32768, 1e6, 1e-5, False, False, 32768),
        ModelSpec(
            "llama-3.1-8b", 4096, 14336, 32, 32, 8, 128, 128256, 5e5, 1e-5, False, False, 131072,
            Llama3RopeScaling(8.0, 1.0, 4.0, 8192),
        ),
        # Qwen/Qwen3-8B, Qwen/Qwen3-4B, Qwen/Qwen3-0.6B
        ModelSpec(
            "qwen3-8b", 4096, 12288, 36, 32, 8, 128, 151936, 1e6, 1e-6, False, False, 40960, qk_norm="head"
        ),
        ModelSpec("qwen3-4b", 2560, 9728, 36, 32, 8, 128, 151936, 1e6, 1e-6, False, True, 40960, qk_norm="head"),
        ModelSpec("qwen3-0.6b", 1024, 3072, 28, 16, 8, 128, 151936, 1e6, 1e-6, False, True, 40960, qk_norm="head"),
        # meta-llama/Llama-3.2-1B, meta-llama/Llama-3.2-3B
        ModelSpec(
            "llama-3.2-1b", 2048, 8192, 16, 32, 8, 64, 128256, 5e5, 1e-5, False, True, 131072, _LLAMA_3_2
        ),
        ModelSpec(
            "llama-3.2-3b", 3072, 8192, 28, 24, 8, 128, 128256, 5e5, 1e-5, False, True, 131072, _LLAMA_3_2
        ),
        # openvla/openvla-7b: the sizes of meta-llama/Llama-2-7b-hf, with a table of its own number of rows
        ModelSpec("openvla-7b", 4096, 11008, 32, 32, 32, 128, 32064, 1e4, 1e-5, False, False, 4096),
        # The language model of pi0: google/paligemma-3b-pt-224's text_config, which is Gemma 2B's
        ModelSpec(
            "pi0-gemma-2b", 2048, 16384, 18, 8, 1, 256, 257216, 1e4, 1e-6, False, True, 8192, norm_offset=1.0,
            gelu=True, embedding_scale=2048**0.5,
        ),
        # The language model of SmolVLA, all layers: HuggingFaceTB/SmolLM2-360M
        ModelSpec("smolvla", 960, 2560, 32, 15, 5, 64, 49152, 1e5, 1e-5, False, True, 8192),
        # google/gemma-3-4b-pt's text_config
        ModelSpec(
            "gemma-3-4b", 2560, 10240, 34, 8, 4, 256, 262208, 1e6, 1e-6, False, True, 131072, LinearRopeScaling(8.0),
            local_rope_theta=1e4, local_layers=tuple(layer for layer in range(34) if (layer + 1) % 6), window=1024,
            qk_norm="head", norm_offset=1.0, gelu=True, post_norms=True, embedding_scale=2560**0.5,
            attention_scale=256**-0.5,
        ),
        # microsoft/Phi-4-mini-instruct
        ModelSpec(
            "phi-4-mini", 3072, 8192, 32, 24, 8, 128, 200064, 1e4, 1e-5, False, True, 131072, _PHI_4, rotary_dim=96
        ),
        # Small enough for a test, with what the others have: a group of 4, biases, untied tables.
        ModelSpec("tiny", 512, 1408, 4, 8, 2, 64, 1024, 1e6, 1e-6, True, False, 32768),
    )
}  # fmt: skip

GROUPS = {
    "study": ("qwen2.5-7b", "mistral-7b-v0.3", "llama-3.1-8b"),
    "vla": ("openvla-7b", "pi0-gemma-2b", "smolvla"),
}
"""Models that --model takes by one name where it takes several."""


def names() -> list[str]:
    """The built-in models."""
    return list(_MODELS)


def get(name: str) -> ModelSpec:
    """A built-in model. Raises ValueError, naming what there is, for another name."""
    if name not in _MODELS:
        raise ValueError(f"model must be one of {', '.join(_MODELS)}, got {name!r}")
    return _MODELS[name]
