"""A program of every op that reads an index tensor, on a CPU or a GPU, and what the values may be."""

import dataclasses

import torch

import pykernels as pk
from inputs.helpers import randn
from pykernels import runtime

MAX_LEN, HEADS, KV_HEADS, DIM, HIDDEN = 16, 4, 2, 64, 64
Made = tuple[runtime.Program, torch.Tensor]


def of(device: str, *shape: int) -> torch.Tensor:
    return randn(*shape, dtype=torch.bfloat16).to(device)


def cache(device: str) -> torch.Tensor:
    return of(device, 1, KV_HEADS, MAX_LEN, DIM)


def position_of(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Angles and the position that names a row of them."""
    return randn(MAX_LEN, DIM).to(device), torch.zeros(1, dtype=torch.int32, device=device)


def rope_kv_append(device: str = "cpu") -> Made:
    cos_sin, position = position_of(device)
    q, k, v = (of(device, 1, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS))
    with runtime.record() as program:
        pk.ops.rope_kv_append(q, k, v, cos_sin, position, cache(device), cache(device))
    return program, position


def qkv_gemv(device: str = "cpu", int4: bool = False) -> Made:
    cos_sin, position = position_of(device)
    weights = [of(device, heads * DIM, HIDDEN) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    if int4:
        weights = [pk.Int4Weight.quantize(weight, 32) for weight in weights]
    x, norm_weight = of(device, 1, HIDDEN), of(device, HIDDEN)
    with runtime.record() as program:
        op = pk.ops.int4_qkv_gemv if int4 else pk.ops.qkv_gemv
        op(x, *weights, cos_sin, position, cache(device), cache(device), norm_weight=norm_weight, eps=1e-6)
    return program, position


def int4_qkv_gemv(device: str = "cpu") -> Made:
    return qkv_gemv(device, int4=True)


def gqa_decode(device: str = "cpu") -> Made:
    kv_len = torch.ones(1, dtype=torch.int32, device=device)
    with runtime.record() as program:
        pk.ops.gqa_decode(of(device, 1, HEADS, DIM), cache(device), cache(device), kv_len)
    return program, kv_len


def embedding(device: str = "cpu") -> Made:
    token = torch.zeros(1, dtype=torch.int64, device=device)
    with runtime.record() as program:
        pk.ops.embedding(token, of(device, 10, HIDDEN))
    return program, token


def argmax(device: str = "cpu") -> Made:
    position, kv_len = (torch.full((1,), value, dtype=torch.int32, device=device) for value in (0, 1))
    with runtime.record() as program:
        pk.ops.argmax(of(device, 1, 50), position, kv_len, MAX_LEN)
    return program, position


def int4_gemv(device: str = "cpu") -> Made:
    perm = torch.arange(HIDDEN, dtype=torch.int32, device=device)
    weight = dataclasses.replace(pk.Int4Weight.quantize(of(device, 32, HIDDEN), 32), perm=perm)
    with runtime.record() as program:
        pk.ops.int4_gemv(of(device, 1, HIDDEN), weight)
    return program, perm


CASES = [
    (rope_kv_append, "position", 0, MAX_LEN - 1),
    (qkv_gemv, "position", 0, MAX_LEN - 1),
    (int4_qkv_gemv, "position", 0, MAX_LEN - 1),
    (gqa_decode, "kv_len", 1, MAX_LEN),
    (embedding, "token", 0, 9),
    (argmax, "position", 0, MAX_LEN - 1),
    (int4_gemv, "perm", 0, HIDDEN - 1),
]
"""(what makes the program, the argument, the least and the greatest value allowed)."""
