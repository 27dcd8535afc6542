"""transformers' own model as a driver of a DecodeModel's steps. The library is imported only where one is made."""

from dataclasses import MISSING, fields, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

import pykernels as pk
from bench.backends.steps.drivers import Driver, calls_of


def mode_reason(mode: str) -> str | None:
    """Why transformers has no such arm here; None where it has."""
    if find_spec("transformers") is None:
        return "needs the package transformers (pip install transformers)"
    return None if mode == "eager" else "is driven by its own Python forward only"


def model_reason(spec: pk.models.ModelSpec) -> str | None:
    """Why a model cannot be made as transformers' own here: it is made as Llama, Qwen2 or Qwen3. None where it can."""
    plain = replace(spec, qk_norm="", qkv_bias=False)
    sizes = {field.name: getattr(spec, field.name) for field in fields(spec) if field.default is MISSING}
    llama = pk.models.ModelSpec(**sizes | dict(qkv_bias=False, rope_scaling=spec.rope_scaling, window=spec.window))
    if plain != llama or spec.qk_norm == "all" or not isinstance(spec.rope_scaling, _LLAMA3 | None):
        return "is made as Llama, Qwen2 or Qwen3, and the model is none of these"
    return None


_LLAMA3 = pk.models.Llama3RopeScaling


class TransformersDriver(Driver):
    """transformers' own model and forward on the same weights, with SDPA attention.

    Its cache is laid over the model's: it writes one slot a step, where transformers' DynamicCache would copy the
    whole cache, which would cost it more.
    """

    def __init__(self, model: pk.DecodeModel) -> None:
        super().__init__(model)
        from transformers import (
            LlamaConfig,
            LlamaForCausalLM,
            Qwen2Config,
            Qwen2ForCausalLM,
            Qwen3Config,
            Qwen3ForCausalLM,
        )
        from transformers.cache_utils import DynamicCache, DynamicLayer

        spec = model.spec

        class Slots(DynamicLayer):
            """One layer's cache over a DecodeLayer's memory."""

            def __init__(self, layer: pk.DecodeLayer) -> None:
                super().__init__()
                self.layer, self.length, self.is_initialized = layer, 0, True

            def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
                start, self.length = self.length, self.length + keys.shape[-2]
                self.layer.k_cache[:, :, start : self.length] = keys
                self.layer.v_cache[:, :, start : self.length] = values
                return self.layer.k_cache[:, :, : self.length], self.layer.v_cache[:, :, : self.length]

            def get_seq_length(self) -> int:
                return self.length

        scaling = spec.rope_scaling
        rope = {"rope_type": "default", "rope_theta": spec.rope_theta}
        if isinstance(scaling, _LLAMA3):
            rope |= {
                "rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_position,
            }  # fmt: skip
        kinds: tuple[Any, Any] = (LlamaConfig, LlamaForCausalLM)
        if spec.qkv_bias or spec.qk_norm:
            kinds = (Qwen3Config, Qwen3ForCausalLM) if spec.qk_norm else (Qwen2Config, Qwen2ForCausalLM)
        config = kinds[0](
            hidden_size=spec.hidden, intermediate_size=spec.intermediate, num_hidden_layers=spec.n_layers,
            num_attention_heads=spec.n_heads, num_key_value_heads=spec.n_kv_heads, head_dim=spec.head_dim,
            vocab_size=spec.vocab, rms_norm_eps=spec.rms_eps, max_position_embeddings=spec.max_position,
            tie_word_embeddings=spec.tied_embeddings, rope_parameters=rope, attn_implementation="sdpa",
        )  # fmt: skip
        with torch.device("meta"):
            module = kinds[1](config)
        module.load_state_dict(model.weights.checkpoint(), assign=True, strict=not spec.tied_embeddings)
        module.tie_weights()
        module.model.rotary_emb = type(module.model.rotary_emb)(config).to(model.device)
        self._module = module.eval().requires_grad_(False)
        self._cache = DynamicCache()
        self._cache.layers = [Slots(layer) for layer in model.layers]
        self._logits = model.logits
        self.stand(model.max_len - 1)
        self.kernels = calls_of(self._forward)
        self.launches = len(self.kernels)

    def stand(self, position: int) -> None:
        for slots in self._cache.layers:
            slots.length = position

    def _forward(self) -> Tensor:
        out = self._module(self.model.token[:, None], past_key_values=self._cache, use_cache=True)
        self._logits = out.logits[:, -1]
        return self._logits.argmax(-1)

    def step(self) -> None:
        self.model.token.copy_(self._forward())

    def logits(self) -> Tensor:
        return self._logits

    def host_sampler(self) -> None:
        """None: its forward may wait for the device, and a stream that is held would then never be let go."""
