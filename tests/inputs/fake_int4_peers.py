"""4-bit libraries that are not here: their signatures, and a product in plain torch behind them that reads the layout
as their own sources describe it.

So what an adapter hands over meets the reference on a machine without the library or a GPU. The schemas are those of
vLLM 0.25.1 and bitsandbytes 0.50.2.
"""

import itertools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bench.backends import int4
from pykernels.quant import Nf4Weight, awq, gptq
from pykernels.quant.packing import unpack_words

VLLM_SCHEMAS = {
    "gptq_marlin_repack": "(Tensor b_q_weight, Tensor perm, SymInt size_k, SymInt size_n, int num_bits, bool is_a_8bit)"
    " -> Tensor",
    "marlin_gemm": "(Tensor a, Tensor? c_or_none, Tensor b_q_weight, Tensor? b_bias_or_none,Tensor b_scales, "
    "Tensor? a_scales, Tensor? global_scale, Tensor? b_zeros_or_none, Tensor? g_idx_or_none, Tensor? perm_or_none, "
    "Tensor workspace, int b_type_id, SymInt size_m, SymInt size_n, SymInt size_k, bool is_k_full, "
    "bool use_atomic_add, bool use_fp32_reduce, bool is_zp_float) -> Tensor",
    "machete_prepack_B": "(Tensor B, ScalarType a_type, int b_type, ScalarType? group_scales_type) -> Tensor",
    "machete_mm": "(Tensor A, Tensor B, int b_type, ScalarType? out_type, Tensor? group_scales, Tensor? group_zeros, "
    "int? group_size, Tensor? channel_scales, Tensor? token_scales, str? schedule) -> Tensor",
    "awq_gemm": "(Tensor _in_feats, Tensor _kernel, Tensor _scaling_factors, Tensor _zeros, SymInt split_k_iters) -> "
    "Tensor",
    "gptq_gemm": "(Tensor a, Tensor b_q_weight, Tensor b_gptq_qzeros, Tensor b_gptq_scales, Tensor b_g_idx, "
    "bool use_exllama, bool use_v2_format, int bit) -> Tensor",
    "gptq_shuffle": "(Tensor(a!) q_weight, Tensor q_perm, int bit) -> ()",
}
UINT4, UINT4B8 = 1125899906843648, 1125899907892224  # vLLM's ids: 4 mantissa bits, and a bias of 8 in bits 17 up
SHUFFLED = 0x5A5A5A5A


_kept: OrderedDict[tuple, Tensor] = OrderedDict()
_MOST_KEPT = 32


def remembered(unpack: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """unpack() of equal arguments, byte for byte, once: a run multiplies by the same few weights hundreds of times."""

    def of(*arguments: object) -> Tensor:
        key = (unpack.__name__, *map(_digest, arguments))
        if key in _kept:
            _kept.move_to_end(key)
        else:
            _kept[key] = unpack(*arguments)
            if len(_kept) > _MOST_KEPT:
                _kept.popitem(last=False)
        return _kept[key]

    return of


def _digest(argument: object) -> object:
    if not isinstance(argument, Tensor):
        return argument
    with torch._C.DisableTorchFunction():
        plain = argument.detach().contiguous().flatten().view(torch.uint8).numpy()
    return str(argument.dtype), tuple(argument.shape), blake2b(plain).digest()


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T with one rounding at the end; weight float64 [out_features, in_features]."""
    return (x.double() @ weight.T).to(x.dtype)


def _grouped(values: Tensor, k: int) -> Tensor:
    """[groups, n] -> float64 [n, k]"""
    return values.double().T.repeat_interleave(k // values.shape[0], dim=1)


def _unpermute(values: Tensor, whole_row: bool) -> Tensor:
    """Undo Marlin's order of scales: built as its source builds it, element by element."""
    order = (
        [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
        if whole_row
        else [i + 8 * j for i in range(8) for j in range(8)]
    )
    blocks = values.unflatten(1, (-1, len(order)))
    out = torch.empty_like(blocks)
    for place, column in enumerate(order):
        out[..., column] = blocks[..., place]
    return out.flatten(1)


def gptq_marlin_repack(b_q_weight, perm, size_k, size_n, num_bits, is_a_8bit):
    assert b_q_weight.shape == (size_k // 8, size_n) and b_q_weight.is_contiguous() and b_q_weight.dtype == torch.int32
    assert (perm.numel(), perm.dtype, num_bits, is_a_8bit) == (0, torch.int32, 4, False)
    return b_q_weight.clone().view(size_k // 16, 2 * size_n)


def marlin_gemm(
    a, c, b_q_weight, bias, scales, a_scales, global_scale, zeros, g_idx, perm, workspace, b_type_id, size_m, size_n,
    size_k, is_k_full, use_atomic_add, use_fp32_reduce, is_zp_float,
):  # fmt: skip
    assert c is bias is a_scales is global_scale is None and (size_m, size_k) == tuple(a.shape)
    assert g_idx.numel() == perm.numel() == 0 and is_k_full and use_fp32_reduce and not use_atomic_add
    assert workspace.dtype == torch.int32 and bool((workspace == 0).all()) and size_n % 64 == 0 and size_k % 128 == 0
    assert not is_zp_float and scales.dtype == a.dtype
    assert b_type_id in (UINT4, UINT4B8) and (b_type_id == UINT4B8) == (zeros.numel() == 0)
    return product(a, _of_marlin(b_q_weight, scales, zeros, size_n, size_k))


@remembered
def _of_marlin(b_q_weight, scales, zeros, size_n, size_k):
    q = unpack_words(b_q_weight.reshape(size_k // 8, size_n).T, size_k).double()
    zero = 8.0
    if zeros.numel():
        nibbles = unpack_words(zeros, size_n)
        straight = torch.empty_like(nibbles)
        for place, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            straight[:, column::8] = nibbles[:, place::8]
        zero = _grouped(_unpermute(straight, False), size_k)
    return (q - zero) * _grouped(_unpermute(scales, scales.shape[0] == 1), size_k)


def machete_prepack_B(B, a_type, b_type, group_scales_type):  # noqa: N802, N803 - the op's own names
    assert B.stride(0) == 1 and a_type == group_scales_type and b_type in (UINT4, UINT4B8)
    return B.contiguous()


def machete_mm(A, B, b_type, out_type, scales, zeros, group_size, channel_scales, token_scales, schedule):  # noqa: N803
    assert out_type is channel_scales is token_scales is schedule is None
    k = A.shape[1]
    assert scales.shape[0] == (1 if group_size == -1 else k // group_size) and scales.is_contiguous()
    assert (b_type == UINT4) == (zeros is not None)
    return product(A, _of_machete(B, scales, zeros, k))


@remembered
def _of_machete(B, scales, zeros, k):  # noqa: N803
    q, s = unpack_words(B.T, k).double(), _grouped(scales, k)
    return (q - 8) * s if zeros is None else q * s + _grouped(zeros, k)


def awq_gemm(x, qweight, scales, qzeros, split_k):
    assert split_k == 8 and x.dtype == scales.dtype == torch.float16
    n, group_size = scales.shape[1], x.shape[1] // scales.shape[0]
    assert n % 64 == 0 and group_size % 32 == 0 and n % group_size == 0
    return product(x, _of_awq(qweight, qzeros, scales))


@remembered
def _of_awq(qweight, qzeros, scales):
    return awq.unpack(qweight, qzeros, scales).dequantize()


def gptq_shuffle(q_weight, q_perm, bit):
    assert q_perm.numel() == 0 and bit == 4
    q_weight.bitwise_xor_(SHUFFLED)


def gptq_gemm(a, qweight, qzeros, scales, g_idx, use_exllama, use_v2_format, bit):
    assert use_exllama and g_idx.numel() == 0 and bit == 4
    return product(a, _of_gptq(qweight, qzeros, scales, 2 if use_v2_format else 1))


@remembered
def _of_gptq(qweight, qzeros, scales, version):
    return gptq.unpack(qweight ^ SHUFFLED, qzeros, scales, version=version).dequantize()


def _fragments(out_tiles: int, in_tiles: int) -> tuple[Tensor, Tensor]:
    """Where the eight elements of every word of tinygemm's layout lie: rows and columns, each
    [out_features / 8, in_features / 128, 32 lanes, 4 words, 8 elements].

    A lane holds what an m16n8k16 product wants of it: of row lane / 4 the columns 2 (lane % 4) and the next, those 8
    further on, and the same four of the tile of 16 beside it.
    """
    shape = torch.Size((out_tiles, in_tiles, 32, 4, 8))
    tile_out, tile_in, lane, word, element = (
        torch.arange(size).view([-1 if axis == i else 1 for axis in range(5)]) for i, size in enumerate(shape)
    )
    within = 2 * (lane % 4) + element % 2 + 8 * (element // 2 % 2)
    return (8 * tile_out + lane // 4).expand(shape), (128 * tile_in + 32 * word + 16 * (element // 4) + within).expand(
        shape
    )


def convert_weight_to_int4pack(q_bytes: Tensor, inner_k_tiles: int) -> Tensor:
    """aten::_convert_weight_to_int4pack as its CUDA kernel packs, word by word."""
    n, k = q_bytes.shape[0], 2 * q_bytes.shape[1]
    assert q_bytes.dtype == torch.uint8 and q_bytes.is_contiguous() and inner_k_tiles == 8
    assert n % 8 == 0 and k % 128 == 0
    q = torch.stack((q_bytes >> 4, q_bytes & 15), dim=-1).flatten(1).long()
    rows, columns = _fragments(n // 8, k // 128)
    # The even elements in the low four nibbles, the odd ones above them.
    place = torch.tensor([4 * (element // 2 + 4 * (element % 2)) for element in range(8)])
    return (q[rows, columns] << place).sum(-1).to(torch.uint32).view(torch.int32)


def weight_int4pack_mm(x: Tensor, packed: Tensor, group_size: int, scales_and_zeros: Tensor) -> Tensor:
    """aten::_weight_int4pack_mm as its CUDA kernel reads: shifts by 4 and one mask give pairs of neighbours."""
    assert x.dtype == scales_and_zeros.dtype == torch.bfloat16 and x.is_contiguous() and x.dim() == 2
    assert packed.dtype == torch.int32 and packed.is_contiguous() and packed.shape[2:] == (32, 4)
    n, k = 8 * packed.shape[0], 128 * packed.shape[1]
    assert x.shape[1] == k and group_size in (32, 64, 128, 256) and k % group_size == 0
    assert scales_and_zeros.is_contiguous() and scales_and_zeros.shape == (k // group_size, n, 2)
    return product(x, _of_tinygemm(packed, scales_and_zeros, n, k))


@remembered
def _of_tinygemm(packed, scales_and_zeros, n, k):
    words = packed.long() & 0xFFFFFFFF
    pairs = torch.stack([words >> 4 * i & 0x000F000F for i in range(4)], dim=-1)
    q = torch.empty(n, k, dtype=torch.float64)
    q[_fragments(*packed.shape[:2])] = torch.stack((pairs & 15, pairs >> 16), dim=-1).flatten(-2).double()
    scales, zeros = (_grouped(part, k) for part in scales_and_zeros.unbind(-1))
    return (q - 8) * scales + zeros


def define_tinygemm() -> torch.library.Library:
    """aten's two ops of CUDA on the CPU, likewise."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_convert_weight_to_int4pack", convert_weight_to_int4pack, "CPU")
    library.impl("_weight_int4pack_mm", weight_int4pack_mm, "CPU")
    return library


def define_vllm() -> torch.library.Library:
    """torch.ops._C with those ops on the CPU, as long as the result lives."""
    library = torch.library.Library("_C", "FRAGMENT")
    for name, schema in VLLM_SCHEMAS.items():
        library.define(name + schema)
        library.impl(name, globals()[name], "CPU")
    return library


@remembered
def _of_nf4(packed, absmax, shape, blocksize):
    return Nf4Weight(packed, absmax, shape, blocksize).dequantize()


def define_bitsandbytes() -> torch.library.Library:
    """torch.ops.bitsandbytes.gemm_4bit, likewise."""
    library = torch.library.Library("bitsandbytes", "FRAGMENT")
    library.define(
        "gemm_4bit(Tensor A, Tensor B, int[] shapeB, Tensor absmax, int blocksize, str quant_type, Tensor? bias=None, "
        "Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None) -> Tensor"
    )

    def gemm_4bit(a, b, shape, absmax, blocksize, quant_type, *rest):
        assert quant_type == "nf4" and b.shape[1] == 1 and not any(rest)
        return product(a, _of_nf4(b.flatten(), absmax, tuple(shape), blocksize))

    library.impl("gemm_4bit", gemm_4bit, "CPU")
    return library


def _exl2_dense(w: dict[str, Tensor]) -> Tensor:
    """float64 [out_features, in_features] of EXL2's tensors, as the library's kernel reads them: bit by bit along a
    column, the group of a row by its map. It changes w as the library does."""
    names = {"q_weight": torch.int32, "q_scale": torch.int32, "q_scale_max": torch.float16, "q_groups": torch.int16,
             "q_invperm": torch.int32, "q_perm": torch.int32}  # fmt: skip
    assert {name: tensor.dtype for name, tensor in w.items()} == names
    w["q_scale_max"] *= 1 / 256
    w["q_perm"], w["q_invperm"] = w["q_perm"].short(), w["q_invperm"].short()
    n, groups = w["q_weight"].shape[1], w["q_groups"].view(-1, 2).tolist()
    assert all(a >= b for (a, _), (b, _) in itertools.pairwise(groups)), "the kernel takes the widest rows first"
    words = w["q_weight"].long() & 0xFFFFFFFF
    bits_of_column = (words.unsqueeze(1) >> torch.arange(32).view(1, 32, 1) & 1).flatten(0, 1)  # [32 * words, n]
    group_map: list[int] = []
    rows = []
    for group, (bits, first) in enumerate(groups):
        end = groups[group + 1][1] if group + 1 < len(groups) else words.shape[0]
        values = bits_of_column[32 * first : 32 * end].unflatten(0, (-1, bits))
        q = (values << torch.arange(bits).view(1, bits, 1)).sum(1)
        shift = 4 * (torch.arange(n) % 8)
        root = (w["q_scale"][group].long().repeat_interleave(8) >> shift & 15) + 1
        rows.append((q - 2 ** (bits - 1)).double() * (root.square().half() * w["q_scale_max"][group]).double())
        for left in range(q.shape[0], 0, -1):
            group_map += [group, left]
    w["q_group_map"] = torch.tensor(group_map, dtype=torch.int16)
    packed = torch.cat(rows)
    dense = torch.empty_like(packed)
    dense[w["q_perm"].long()] = packed  # x[q_perm[i]] meets row i
    return dense.T.contiguous()


def exllamav2_ext() -> SimpleNamespace:
    """exllamav2.ext: it reads GPTQ v1 nibble by nibble, so a stored 15 is a zero point of 16."""
    kept: dict[int, Tensor] = {}

    def make_q_matrix(w, temp_dq, key=None, prescale=1, max_dq_rows=0, offset_qzeros=False):
        if "q_weight" in w:
            kept[len(kept) + 1] = _exl2_dense(w)
            return len(kept)
        assert set(w) == {"qweight", "qzeros", "scales"} and temp_dq.dtype == w["scales"].dtype == torch.half
        k, n, groups = 8 * w["qweight"].shape[0], w["qweight"].shape[1], w["scales"].shape[0]
        group_size = 1
        while group_size * groups < k:  # as its QMatrix finds it
            group_size *= 2
        assert groups == 1 or group_size * groups == k
        q, zeros = unpack_words(w["qweight"].T, k).double(), unpack_words(w["qzeros"], n).double() + 1
        kept[len(kept) + 1] = (q - _grouped(zeros, k)) * _grouped(w["scales"], k)
        return len(kept)

    def gemm_half_q_half(a, handle, out, force_cuda):
        assert not force_cuda
        out.copy_(product(a, kept[handle]))

    ext_c = SimpleNamespace(gemm_half_q_half=gemm_half_q_half, free_q_matrix=lambda handle: None)
    return SimpleNamespace(make_q_matrix=make_q_matrix, ext_c=ext_c)


class GemLiteLinear:
    """gemlite.GemLiteLinear: pack() folds a tensor of zero points into -zero * scale, in groups."""

    def __init__(self, W_nbits, group_size, in_features, out_features, input_dtype, output_dtype):  # noqa: N803
        assert W_nbits == 4 and in_features % group_size == 0 and input_dtype == output_dtype
        self.group_size, self.shape = group_size, (out_features, in_features)

    def pack(self, W_q, scales, zeros, bias):  # noqa: N803
        assert W_q.dtype == torch.uint8 and W_q.shape == self.shape and bias is None
        self.W_q, self.scales = W_q, scales.T.contiguous()
        if isinstance(zeros, int):
            self.zeros, shift = torch.tensor(zeros), -zeros * scales.double()
        elif scales.shape[1] == 1:  # a scale a row: not folded
            self.zeros, shift = zeros, -zeros.double() * scales.double()
        else:
            self.zeros = (-zeros.float() * scales.float()).to(zeros.dtype)
            shift = self.zeros.double()
        spread = [t.repeat_interleave(self.group_size, dim=1) for t in (scales.double(), shift)]
        self._weight = W_q.double() * spread[0] + spread[1]

    def __call__(self, x):
        return product(x, self._weight)


def gemlite() -> SimpleNamespace:
    """The package."""
    return SimpleNamespace(GemLiteLinear=GemLiteLinear, DType=SimpleNamespace(BF16="bf16", FP16="fp16"))


class Int4TilePackedTo4dTensor:
    """torchao.quantization's: weights padded to 1024 columns, and x on every F.linear."""

    def __init__(self, qdata: Tensor, scale_and_zero: Tensor, block_size: list[int], shape: torch.Size) -> None:
        assert block_size[0] == 1 and len(shape) == 2
        self.parts, self.shape = (qdata, block_size[1], scale_and_zero), shape

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        assert function is torch.nn.functional.linear
        x, weight = args
        assert x.shape[1] == weight.shape[1]
        x = torch.nn.functional.pad(x, (0, -x.shape[1] % 1024))
        return torch.ops.aten._weight_int4pack_mm(x, *weight.parts)[:, : weight.shape[0]]


@contextmanager
def replace_libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every library, faked."""
    kept = [define_vllm(), define_bitsandbytes(), define_tinygemm()]
    for name, module in {
        "vllm": SimpleNamespace(), "vllm._custom_ops": SimpleNamespace(), "bitsandbytes": SimpleNamespace(),
        "exllamav2": SimpleNamespace(), "exllamav2.ext": exllamav2_ext(), "gemlite": gemlite(),
        "torchao": SimpleNamespace(),
        "torchao.quantization": SimpleNamespace(Int4TilePackedTo4dTensor=Int4TilePackedTo4dTensor),
    }.items():  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(int4.registry()["exl2"], "TUNING_CALLS", 1)  # its stand-in has nothing to tune
    monkeypatch.setattr(int4.registry()["exl2"], "_tuned", set())
    monkeypatch.setattr(int4.registry()["torchao"], "tiled_on", ("cpu", "cuda"))  # its stand-in reads that layout
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=4))
    yield
    for library in kept:
        library._destroy()
