"""Folders of weights that are none: headers, tensors and the layouts of 4-bit checkpoints."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz.case import ENDS, OK, Case, special
from fuzz.configs import CONFIG, RUN_CONFIG

NAMES = {
    "input_layernorm.weight": (64,),
    "self_attn.q_proj.weight": (64, 64),
    "self_attn.k_proj.weight": (32, 64),
    "self_attn.v_proj.weight": (32, 64),
    "self_attn.q_proj.bias": (64,),
    "self_attn.k_proj.bias": (32,),
    "self_attn.v_proj.bias": (32,),
    "self_attn.o_proj.weight": (64, 64),
    "post_attention_layernorm.weight": (64,),
    "mlp.gate_proj.weight": (96, 64),
    "mlp.up_proj.weight": (96, 64),
    "mlp.down_proj.weight": (64, 96),
}


def tensors(value: bytes = b"\x00\x3c") -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Layer 0 in bf16: by name its dtype, shape and bytes."""
    found = {}
    for name, shape in NAMES.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        found[f"model.layers.0.{name}"] = ("BF16", shape, value * count)
    return found


def safetensors(content: dict[str, tuple[str, tuple[int, ...], bytes]], **entry: dict) -> bytes:
    """A file of that format; `entry` changes fields of the first tensor's header."""
    header, data = {}, b""
    for name, (dtype, shape, values) in content.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    first = next(iter(header))
    header[first] |= entry
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def gptq(**changes: tuple[str, tuple[int, ...], bytes]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Layer 0 with its projections in GPTQ's form, groups of 32; `changes` are of q_proj's tensors, by their ending."""
    found = {}
    for name, (dtype, shape, data) in tensors().items():
        if not name.endswith("proj.weight"):
            found[name] = (dtype, shape, data)
            continue
        n, k = shape
        module, groups = name.removesuffix(".weight"), k // 32
        parts = {
            "qweight": ("I32", (k // 8, n), b"\x88" * 4 * (k // 8) * n),
            "qzeros": ("I32", (groups, n // 8), b"\x77" * 4 * groups * (n // 8)),
            "scales": ("F16", (groups, n), b"\x00\x2c" * groups * n),
            "g_idx": ("I32", (k,), b"".join(struct.pack("<i", i // 32) for i in range(k))),
        }
        parts |= changes if "q_proj" in name else {}
        found |= {f"{module}.{ending}": part for ending, part in parts.items() if part}
    return found


def compressed(**changes: tuple[str, tuple[int, ...], bytes]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The same in compressed-tensors' form."""
    found = {}
    for name, (dtype, shape, data) in tensors().items():
        if not name.endswith("proj.weight"):
            found[name] = (dtype, shape, data)
            continue
        n, k = shape
        module, groups = name.removesuffix(".weight"), k // 32
        parts = {
            "weight_packed": ("I32", (n, k // 8), b"\x98" * 4 * n * (k // 8)),
            "weight_scale": ("BF16", (n, groups), b"\x00\x3c" * n * groups),
            "weight_shape": ("I64", (2,), struct.pack("<qq", n, k)),
        }
        parts |= changes if "q_proj" in name else {}
        found |= {f"{module}.{ending}": part for ending, part in parts.items() if part}
    return found


GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}}
COMPRESSED = {
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}}
        },
    }
}


def weights_cases() -> Iterator[Case]:
    """Folders of weights that are broken, or point elsewhere."""

    def folder(
        data: bytes | None,
        config: dict | None = None,
        index: object = None,
        after: Callable[[Path], None] = lambda w: None,
    ):
        def make(w: Path) -> list[str]:
            (w / "config.json").write_text(json.dumps(CONFIG | (config or {})))
            if data is not None:
                (w / "model.safetensors").write_bytes(data)
            if index is not None:
                (w / "model.safetensors.index.json").write_text(index if isinstance(index, str) else json.dumps(index))
            after(w)
            return [*RUN_CONFIG, f"--weights={w}"]

        return make

    leaves = "config|model|other"
    good = safetensors(tensors())
    yield Case("weights/good", "layer", folder(good), OK, leaves)
    yield Case("weights/good gptq", "layer", folder(safetensors(gptq()), GPTQ), OK, leaves)
    yield Case("weights/good compressed-tensors", "layer", folder(safetensors(compressed()), COMPRESSED), OK, leaves)
    header = struct.unpack("<Q", good[:8])[0]
    for name, data in {
        "no file": None,
        "empty": b"",
        "seven bytes": good[:7],
        "header cut": good[: 8 + header // 2],
        "data cut": good[:-100],
        "header of 2^63": struct.pack("<Q", 2**63) + good[8:],
        "header of 100 MB": struct.pack("<Q", 10**8) + good[8:],
        "header of zeros": good[:8] + b"\x00" * header + good[8 + header :],
        "header a list": struct.pack("<Q", 2) + b"[]",
        "header empty": struct.pack("<Q", 2) + b"{}",
        "trailing bytes": good + b"x" * 64,
        "header deep": struct.pack("<Q", 200_000) + b"[" * 200_000,
        "offsets overlap": safetensors(tensors(), data_offsets=[64, 192]),
        "offsets upside down": safetensors(tensors(), data_offsets=[128, 0]),
        "offsets past the end": safetensors(tensors(), data_offsets=[10**12, 10**12 + 128]),
        "offsets negative": safetensors(tensors(), data_offsets=[-128, 0]),
        "shape of more than there is": safetensors(tensors(), shape=[2**40, 2**40]),
        "shape negative": safetensors(tensors(), shape=[-64]),
        "dtype unknown": safetensors(tensors(), dtype="BF17"),
        "dtype of other bits": safetensors(tensors(), dtype="F32"),
        "a pickle": b"\x80\x04\x95" + bytes(100),
        "a zip": b"PK\x03\x04" + bytes(100),
    }.items():
        yield Case(f"weights/{name}", "layer", folder(data), may_leave=leaves)
    for name, value in {"inf": b"\x80\x7f", "nan": b"\xc0\x7f"}.items():
        yield Case(f"weights/all {name}", "layer", folder(safetensors(tensors(value))), ENDS, leaves)
    first = "model.layers.0.input_layernorm.weight"
    for name, file in {
        "etc/passwd": "../../../../../../etc/passwd",
        "absolute": "/etc/passwd",
        "parent": "..",
        "itself": ".",
        "nothing": "",
        "a number": 7,
        "a list": [],
        "null": None,
        "a folder": "sub/model.safetensors",
        "one that is not there": "none.safetensors",
        "a name of 300": "x" * 300,
    }.items():
        yield Case(
            f"weights/index names {name}", "layer", folder(good, index={"weight_map": {first: file}}), may_leave=leaves
        )
    for name, index in {
        "empty": "",
        "a list": "[]",
        "no map": {},
        "map a list": {"weight_map": [1]},
        "map null": {"weight_map": None},
        "deep": "[" * 200_000,
        "map empty": {"weight_map": {}},
    }.items():
        yield Case(f"weights/index {name}", "layer", folder(good, index=index), may_leave=leaves)

    def replaced(kind: str) -> Callable[[Path], None]:
        return lambda w: (
            special(w, kind).rename(w / "model.safetensors")
            if kind != "loop"
            else ((w / "model.safetensors").symlink_to("model.safetensors"))
        )

    for kind in ("folder", "fifo", "loop", "socket"):
        yield Case(
            f"weights/model.safetensors is a {kind}", "layer", folder(None, after=replaced(kind)), may_leave=leaves
        )
    for kind in ("fifo", "loop", "no-such-user", "below-a-file", "name-of-256"):
        yield Case(
            f"weights/--weights {kind}",
            "layer",
            lambda w, kind=kind: [*RUN_CONFIG, f"--weights={special(w, kind)}"],
            may_leave=kind,
        )

    numbers = b"".join(struct.pack("<i", -1 - i) for i in range(64))
    for name, changes in {
        "g_idx negative": {"g_idx": ("I32", (64,), numbers)},
        "g_idx short": {"g_idx": ("I32", (8,), bytes(32))},
        "g_idx past the groups": {"g_idx": ("I32", (64,), b"\x09\x00\x00\x00" * 64)},
        "g_idx all of one group": {"g_idx": ("I32", (64,), bytes(256))},
        "g_idx floats": {"g_idx": ("F32", (64,), b"\x00\x00\xc0\x7f" * 64)},
        "g_idx a scalar": {"g_idx": ("I32", (), bytes(4))},
        "qweight floats": {"qweight": ("F32", (8, 64), bytes(2048))},
        "qweight a row": {"qweight": ("I32", (512,), bytes(2048))},
        "qweight of nothing": {"qweight": ("I32", (0, 64), b"")},
        "scales of nothing": {"scales": ("F16", (0, 64), b"")},
        "scales a row": {"scales": ("F16", (128,), bytes(256))},
        "qzeros missing": {"qzeros": ()},
        "qzeros short": {"qzeros": ("I32", (1, 8), bytes(32))},
    }.items():
        yield Case(f"weights/gptq {name}", "layer", folder(safetensors(gptq(**changes)), GPTQ), may_leave=leaves)
    yield Case(
        "weights/gptq scales infinite",
        "layer",
        folder(safetensors(gptq(scales=("F16", (2, 64), b"\x00\x7c" * 128))), GPTQ),
        ENDS,
        leaves,
    )
    for name, changes in {
        "shape floats": {"weight_shape": ("F64", (2,), struct.pack("<dd", 64, 64))},
        "shape booleans": {"weight_shape": ("BOOL", (2,), b"\x01\x01")},
        "shape a matrix": {"weight_shape": ("I64", (2, 1), struct.pack("<qq", 64, 64))},
        "shape negative": {"weight_shape": ("I64", (2,), struct.pack("<qq", -64, -64))},
        "shape huge": {"weight_shape": ("I64", (2,), struct.pack("<qq", 2**62, 2**62))},
        "shape of three": {"weight_shape": ("I64", (3,), struct.pack("<qqq", 64, 64, 1))},
        "scale of nothing": {"weight_scale": ("BF16", (64, 0), b"")},
        "packed missing": {"weight_packed": ()},
        "g_idx negative": {"weight_g_idx": ("I32", (64,), numbers)},
        "g_idx short": {"weight_g_idx": ("I32", (8,), bytes(32))},
        "zero points floats": {"weight_zero_point": ("F32", (8, 2), bytes(64))},
    }.items():
        yield Case(
            f"weights/compressed {name}",
            "layer",
            folder(safetensors(compressed(**changes)), COMPRESSED),
            may_leave=leaves,
        )
    for name, config in {
        "a list": [1],
        "no method": {"bits": 4},
        "method a list": {"quant_method": []},
        "3 bits": GPTQ["quantization_config"] | {"bits": 3},
        "bits a list": GPTQ["quantization_config"] | {"bits": []},
        "group_size 0": GPTQ["quantization_config"] | {"group_size": 0},
        "group_size huge": GPTQ["quantization_config"] | {"group_size": 10**30},
        "group_size a string": GPTQ["quantization_config"] | {"group_size": "32"},
        "version a list": GPTQ["quantization_config"] | {"checkpoint_format": [1]},
        "groups null": {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": None},
        "groups of numbers": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"a": 1},
        },
        "format a list": {"quant_method": "compressed-tensors", "format": []},
    }.items():
        yield Case(
            f"weights/quantization_config {name}",
            "layer",
            folder(safetensors(gptq()), {"quantization_config": config}),
            may_leave=leaves,
        )
    yield Case(
        "weights/4-bit, of a step",
        "step",
        lambda w: [
            folder(safetensors(gptq()), GPTQ)(w)[-1],
            "--layers=1",
            "--ctx=16",
            "--steps=2",
            "--warmup=0",
            "--arm=native:native",
        ],
        may_leave=leaves,
    )
