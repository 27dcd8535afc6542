"""Blocks to measure: python -m bench.call examples/call_block.py:block

A function returns (callable, inputs), or (callable, inputs, reference); it may take the device.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A block as image models have it: group norm, attention over 256 positions, a gated MLP; plain torch ops."""

    def __init__(self, channels: int = 512, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.GroupNorm(32, channels), nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.up, self.down = nn.Linear(channels, 8 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [batch, channels, height, width] -> the same."""
        batch, channels, height, width = x.shape
        h = self.norm1(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(h).view(batch, -1, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        h = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, channels))
        value, gate = self.up(self.norm2(h)).chunk(2, -1)
        h = h + self.down(value * F.gelu(gate))
        return x + h.transpose(1, 2).reshape(batch, channels, height, width)


def block(device: torch.device) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A block of plain torch in bf16 on a GPU, in float32 on a CPU."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return Block().to(device, dtype).eval(), (torch.randn(1, 512, 16, 16, device=device, dtype=dtype),)


def decoder(device: torch.device) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """One layer of a transformers decoder with Llama-3.1-8B's sizes, one token, over what it is given."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    torch.manual_seed(0)
    small = device.type != "cuda"
    config = LlamaConfig(
        hidden_size=256 if small else 4096, intermediate_size=512 if small else 14336,
        num_attention_heads=8 if small else 32, num_key_value_heads=4 if small else 8, num_hidden_layers=1,
        attn_implementation="sdpa",
    )  # fmt: skip
    dtype = torch.float32 if small else torch.bfloat16
    layer = LlamaDecoderLayer(config, 0).to(device, dtype).eval()
    x = torch.randn(1, 1, config.hidden_size, device=device, dtype=dtype)
    position = torch.zeros(1, 1, dtype=torch.long, device=device)
    embeddings = LlamaRotaryEmbedding(config).to(device)(x, position)
    return layer, {"hidden_states": x, "position_ids": position, "position_embeddings": embeddings}
