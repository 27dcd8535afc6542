"""A user's CUDA source: its `// launchtax:` lines, the kernel's parameters, its launch shape. Text alone, no GPU.

Above the kernel stands what it computes and how it is launched:

    // launchtax: op=gqa_decode dtype=bf16 grid=n_heads,batch block=128 shared=4*head_dim require=head_dim<=128
    extern "C" __global__ void NAME(const __nv_bfloat16* q, ..., __nv_bfloat16* out, int n_heads, float scale)

Parameters are taken by their names (OPS), so a kernel declares those it needs, in any order.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class KernelOp:
    """What a kernel of that op can ask for: const pointers of the dtype and, by the types that they may be of, others;
    sizes, floats.

    `derived` are sizes for expressions and macros that follow from the others.
    """

    tensors: Sequence[str]
    typed_tensors: Mapping[str, Sequence[str]]
    sizes: Sequence[str]
    floats: Sequence[str]
    derived: Mapping[str, Callable[[Mapping[str, int]], int]]

    @property
    def names(self) -> list[str]:
        """Every parameter's name, in the order of the documentation."""
        return [*self.tensors, *self.typed_tensors, "out", *self.sizes, *self.floats]

    def all_sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes with the derived ones."""
        return {**sizes, **{name: derive(sizes) for name, derive in self.derived.items()}}


_INT, _BYTE = ("int", "int32_t"), ("unsigned char", "uint8_t")

OPS = {
    "gqa_decode": KernelOp(
        ("q", "k_cache", "v_cache"), {"kv_len": _INT},
        ("batch", "n_heads", "n_kv_heads", "head_dim", "max_len"), ("scale",),
        {"group": lambda sizes: sizes["n_heads"] // sizes["n_kv_heads"]},
    ),
    "gemv": KernelOp(("x", "weight"), {}, ("batch", "n_in", "n_out"), (), {}),
    "int4_gemv": KernelOp(
        ("x", "scales"), {"packed": (*_BYTE, "unsigned", "uint32_t", "uint2", "uint4"), "zeros": _BYTE, "perm": _INT},
        ("batch", "n_in", "n_out", "group_size"), (), {"n_groups": lambda sizes: sizes["n_in"] // sizes["group_size"]},
    ),
}  # fmt: skip
"""q, out [batch, n_heads, head_dim]; k_cache, v_cache [batch, n_kv_heads, max_len, head_dim]; kv_len int32 [batch].
x [batch, n_in]; weight [n_out, n_in]; out [batch, n_out].
packed uint8 [n_out, n_in / 2], scales [n_out, n_groups], zeros uint8 [n_out, n_groups] or null, perm int32 [n_in] or
null: the layout of docs/int4.md."""

DTYPES = {
    "bf16": (torch.bfloat16, ("__nv_bfloat16", "nv_bfloat16")),
    "fp16": (torch.float16, ("__half", "half")),
    "fp32": (torch.float32, ("float",)),
}
# Spellings that are certainly not the dtype's; what is not listed may be the file's own name for it.
_BUILT_IN = {name for _, names in DTYPES.values() for name in names} | {
    "int", "unsigned", "short", "char", "double", "long", "void", "bool", "int32_t", "uint32_t", "int64_t", "uint8_t",
}  # fmt: skip

_KEYS = ("op", "dtype", "grid", "block", "shared", "require", "pdl")
MAX_THREADS = 1024
# What one block can have on the largest devices; a smaller device refuses in its own words.
MAX_SHARED_BYTES = 227 * 1024
_MAX_GRID = (2**31 - 1, 65535, 65535)

_KERNEL = re.compile(
    r'(?:extern\s*"C"\s*)?__global__\s+(?:void\s+)?(?:__launch_bounds__\s*\([^()]*\)\s*)?(?:void\s+)?(\w+)\s*\(([^()]*)\)'
)
_HEADER = re.compile(r"^[ \t]*//[ \t]*launchtax:(.*)$", re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


class SourceError(ValueError):
    """What is wrong with the file, in words that follow `FILE.cu:kernel: `."""


_ARITHMETIC = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}  # fmt: skip
_COMPARISONS = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., int]] = {"min": min, "max": max, "ceil_div": lambda a, b: -(-a // b)}
_MAX_EXPRESSION = 200


class Expression:
    """Integer arithmetic over named sizes: + - * // %, comparisons, and, or, min, max, ceil_div. Nothing else is run.

    Raises SourceError where the text is anything else, or names a size that is not there.
    """

    def __init__(self, text: str, names: Sequence[str]) -> None:
        self.text = text.strip()
        try:
            if len(self.text) > _MAX_EXPRESSION:
                raise SourceError(f"an expression must be of at most {_MAX_EXPRESSION} characters, got {self.text}")
            self._root = ast.parse(self.text, mode="eval").body
            self._check(self._root, names)
        except SyntaxError:
            raise SourceError(f"{self.text or 'nothing'} is no expression") from None

    def _check(self, node: ast.expr, names: Sequence[str]) -> None:
        match node:
            case ast.Constant(value=int()) if not isinstance(node.value, bool):
                return
            case ast.Name(id=name):
                if name not in names:
                    raise SourceError(f"{self.text} names {name}, and the sizes are {', '.join(names)}")
                return
            case ast.BinOp(op=op) if type(op) in _ARITHMETIC:
                inner = [node.left, node.right]
            case ast.Compare(ops=[op]) if type(op) in _COMPARISONS:
                inner = [node.left, *node.comparators]
            case ast.BoolOp():
                inner = node.values
            case ast.Call(func=ast.Name(id=function), keywords=[]) if function in _FUNCTIONS and len(node.args) == 2:
                inner = node.args
            case _:
                raise SourceError(
                    f"{self.text} must be made of sizes, integers, + - * // %, comparisons, and, or, "
                    f"{', '.join(_FUNCTIONS)} (of two)"
                )
        for part in inner:
            self._check(part, names)

    def __call__(self, sizes: Mapping[str, int]) -> int:
        """Its value; comparisons are 0 or 1."""
        try:
            return int(self._value(self._root, sizes))
        except ZeroDivisionError:
            raise SourceError(f"{self.text} divides by zero where {self._where(sizes)}") from None

    def _where(self, sizes: Mapping[str, int]) -> str:
        used = {node.id for node in ast.walk(self._root) if isinstance(node, ast.Name)} & sizes.keys()
        return ", ".join(f"{name} is {sizes[name]}" for name in sorted(used)) or "it is written so"

    def _value(self, node: ast.expr, sizes: Mapping[str, int]) -> int:
        def value(inner: ast.expr) -> int:
            return self._value(inner, sizes)

        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name():
                return sizes[node.id]
            case ast.BinOp():
                return _ARITHMETIC[type(node.op)](value(node.left), value(node.right))
            case ast.Compare():
                return _COMPARISONS[type(node.ops[0])](value(node.left), value(node.comparators[0]))
            case ast.BoolOp():
                combine = all if isinstance(node.op, ast.And) else any
                return combine(value(inner) for inner in node.values)
            case ast.Call(func=ast.Name(id=function)):
                return _FUNCTIONS[function](*map(value, node.args))
        raise AssertionError(node)  # _check let nothing else in

    def unmet(self, sizes: Mapping[str, int]) -> str | None:
        """Taken as a condition: None where it holds, else what it wants and what there is."""
        return None if self(sizes) else f"requires {self.text}, and {self._where(sizes)}"


@dataclass(frozen=True)
class Launch:
    """A launch shape: blocks, threads of a block, bytes of dynamic shared memory."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int


@dataclass(frozen=True)
class CudaSource:
    """One kernel of a CUDA file, checked."""

    kernel: str
    text: str
    op: str
    dtype: torch.dtype
    parameters: list[str]
    grid: list[Expression]
    block: list[Expression]
    shared: Expression
    require: Expression
    pdl: bool = False
    """It asks for programmatic dependent launch (mode native): it waits inside for the kernel ahead of it."""

    @classmethod
    def parse(cls, text: str, kernel: str) -> "CudaSource":
        """Raises SourceError where the text has no such kernel, or the kernel no header or other parameters."""
        code = _COMMENT.sub(lambda comment: re.sub(r"[^\n]", " ", comment[0]), text)  # positions stay
        found = list(_KERNEL.finditer(code))
        index = next((i for i, match in enumerate(found) if match[1] == kernel), None)
        if index is None:
            names = ", ".join(match[1] for match in found)
            raise SourceError(f"has no __global__ {kernel}: it has {names or 'no kernels'}")
        match = found[index]
        if not match[0].startswith("extern"):
            raise SourceError(f'{kernel} must be declared extern "C", so that it is found by its name')
        above = found[index - 1].end() if index else 0
        lines = [line[1] for line in _HEADER.finditer(text, above, match.start())]
        if not lines:
            raise SourceError(f"{kernel} has no line `// launchtax: op=... grid=... block=...` above it")
        header = _header(" ".join(lines))
        op = OPS[header["op"]]
        dtype, spellings = DTYPES[header["dtype"]]
        sizes = [*op.sizes, *op.derived]

        def shape(key: str) -> list[Expression]:
            expressions = [Expression(part, sizes) for part in _split(header[key])]
            if len(expressions) > 3:
                raise SourceError(f"{key} must have one to three parts, got {header[key]}")
            return expressions

        return cls(
            kernel, text, header["op"], dtype, _parameters(match[2], header["op"], header["dtype"], spellings),
            shape("grid"), shape("block"), Expression(header["shared"], sizes), Expression(header["require"], sizes),
            header["pdl"] == "1",
        )  # fmt: skip

    @classmethod
    def read(cls, path: Path, kernel: str) -> "CudaSource":
        """parse() of a file. Raises OSError where it cannot be read."""
        return cls.parse(path.read_text(errors="replace"), kernel)

    def launch(self, sizes: Mapping[str, int]) -> Launch:
        """The launch shape at those sizes. Raises SourceError where no device could launch it."""
        every = OPS[self.op].all_sizes(sizes)
        grid, block = (tuple(part(every) for part in parts) for parts in (self.grid, self.block))
        shared = self.shared(every)
        if min(block) < 1 or math.prod(block) > MAX_THREADS:
            raise SourceError(f"block must be of 1..{MAX_THREADS} threads, got {_times(block)}")
        if any(not 1 <= count <= most for count, most in zip(grid, _MAX_GRID, strict=False)):
            raise SourceError(f"grid must be of 1..{_times(_MAX_GRID)} blocks, got {_times(grid)}")
        if not 0 <= shared <= MAX_SHARED_BYTES:
            raise SourceError(f"shared must be in 0..{MAX_SHARED_BYTES} bytes, got {shared}")
        return Launch(grid, block, shared)

    def unmet(self, sizes: Mapping[str, int]) -> str | None:
        """None where `require` holds, else why not."""
        return self.require.unmet(OPS[self.op].all_sizes(sizes))

    def macros(self, sizes: Mapping[str, int]) -> list[str]:
        """Every size as a macro in capitals, for the compiler: -DHEAD_DIM=128."""
        return [f"-D{name.upper()}={value}" for name, value in OPS[self.op].all_sizes(sizes).items()]


def _times(counts: Sequence[int]) -> str:
    return " x ".join(map(str, counts))


def _split(text: str) -> list[str]:
    """At the commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _header(text: str) -> dict[str, str]:
    """The keys of a kernel's header, with what may be left out."""
    rest, *parts = re.split(rf"\b({'|'.join(_KEYS)})=(?!=)", text)
    keys = parts[::2]
    if rest.strip() or len(set(keys)) < len(keys):
        raise SourceError(f"its launchtax line must be of {', '.join(_KEYS)}, each once, got {' '.join(text.split())}")
    header = {"dtype": "bf16", "shared": "0", "require": "1", "pdl": "0"}
    header |= {key: value.strip() for key, value in zip(keys, parts[1::2], strict=True)}
    for key in ("op", "grid", "block"):
        if not header.get(key):
            raise SourceError(f"its launchtax line lacks {key}=")
    for key, allowed in (("op", OPS), ("dtype", DTYPES), ("pdl", ("0", "1"))):
        if header[key] not in allowed:
            raise SourceError(f"{key} must be one of {', '.join(allowed)}, got {header[key]}")
    return header


def _parameters(text: str, op_name: str, dtype: str, spellings: Sequence[str]) -> list[str]:
    """The names of the kernel's parameters, each of the type that the op gives it."""
    op, names = OPS[op_name], []
    for declaration in text.split(","):
        declared = re.sub(r"\b(__restrict__|__restrict|volatile)\b", " ", declaration)
        parsed = re.fullmatch(
            r"\s*(const\s+)?((?:unsigned\s+)?\w+)(?:\s+const)?\s*(\*?)\s*(?:const\s+)?(\w+)\s*", declared
        )
        if not parsed:
            raise SourceError(f"parameter `{' '.join(declaration.split())}` cannot be read: TYPE* NAME or TYPE NAME")
        constant, kind, pointer, name = parsed.groups()
        kind = " ".join(kind.split())
        if name not in op.names:
            raise SourceError(f"{op_name} has no parameter {name}: it has {', '.join(op.names)}")
        if name in op.sizes:
            right, wanted = not pointer and kind == "int", f"int {name}"
        elif name in op.floats:
            right, wanted = not pointer and kind == "float", f"float {name}"
        elif allowed := op.typed_tensors.get(name):
            right, wanted = bool(pointer) and kind in allowed, f"const {'* or '.join(allowed)}* {name}"
        else:
            of_dtype = kind in spellings or kind not in _BUILT_IN
            right = bool(pointer) and of_dtype and not (name == "out" and constant)
            wanted = f"{'' if name == 'out' else 'const '}{spellings[0]}* {name} (dtype={dtype})"
        if not right:
            raise SourceError(f"parameter `{' '.join(declaration.split())}` must be {wanted}")
        names.append(name)
    if "out" not in names or len(set(names)) < len(names):
        raise SourceError(f"must have a parameter out, and each parameter once, got {', '.join(names)}")
    return names
