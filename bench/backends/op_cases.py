"""The cases of bench.op: every op over the shapes that the models need, with torch's equivalent beside it."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

import pykernels as pk
from bench.backends.gate_inputs import cancelling, loose_of
from bench.backends.int4.tinygemm import Tinygemm
from bench.core import floors
from bench.core.measure import Drive, Watch
from pykernels.models import ModelSpec
from pykernels.reference import compare

Item = TypeVar("Item")


@dataclass
class Instance:
    """One copy of a case's data: the native call, torch's call (None where torch has no such op), and the result.

    `reads` are its tensors of the case's `reads`, in that order. `inputs` are named where plug-ins can have the op
    (bench.plugins.cuda_source.OPS).
    """

    native: Callable[[], object]
    torch: Callable[[], Tensor] | None
    out: Tensor
    reads: Sequence[Tensor] = ()
    inputs: dict[str, Tensor] = field(default_factory=dict)
    unified: Callable[[float], tuple[Callable[[], object], Tensor]] | None = None
    """Of gqa_decode: by phi, the native call with a unified maximum, and its workspace."""


def other_signs(tensors: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """The same numbers with other signs, by random signs along every dimension."""
    changed = []
    for tensor in tensors:
        changed.append(tensor.clone())
        for dim, size in enumerate(tensor.shape):
            signs = torch.randint(0, 2, (size,), device=tensor.device, generator=generator) * 2 - 1
            changed[-1] *= signs.to(tensor.dtype).view(-1, *[1] * (tensor.ndim - dim - 1))
    return changed


@dataclass
class Case:
    """One shape of one op. `make` builds a copy with weights of its own; `expected` asks the reference.

    `cold_bytes` are the bytes of weights or cache, which a decode step finds cold; 0 for ops on activations alone.
    `reads` are the tensors that `expected` reads, and `renew` makes others of them, of that seed, for the check after
    the clocks.
    """

    op: str
    label: str
    shape: str
    bytes: int
    cold_bytes: int
    make: Callable[[], Instance]
    expected: Callable[[], Tensor]
    dtype: torch.dtype
    reads: Sequence[Tensor] = ()
    seed: int = field(default_factory=lambda: secrets.randbits(62))
    renew: Callable[[Sequence[Tensor], torch.Generator], Sequence[Tensor]] = other_signs
    batch: int = 1
    depth: int = 1
    """Ops in a row that ours is."""
    torch_depth: int = 1
    """Ops in a row that torch's equivalent is, each of which rounds its result."""
    rms_depth: int | None = None
    """As pykernels.reference.compare says: of ops whose result is a sum that shows each of its terms."""
    programmatic: Sequence[str] = ()
    """Parts of the names of kernels that mode native launches with programmatic stream serialization."""
    models: tuple[str, ...] = ()
    """Those that have the shape."""

    def reference(self, renewed: bool) -> Tensor:
        """The reference's result on the inputs that lie there: those that are timed, or the other ones. Computed once
        of each."""
        references = self.__dict__.setdefault("_references", {})
        if renewed not in references:
            references[renewed] = self.expected()
        return references[renewed]

    def check(self, got: Tensor, renewed: bool = False, depth: int = 1) -> pk.reference.Comparison:
        """Compare with reference(). depth: as pykernels.reference.compare says."""
        expected = self.reference(renewed)
        return self.compare(got.reshape(expected.shape), expected, depth)

    def compare(self, got: Tensor, expected: Tensor, depth: int = 1) -> pk.reference.Comparison:
        """Of one shape."""
        return compare(got, expected, self.dtype, max(depth, self.depth), self.rms_depth)

    @contextmanager
    def renewed(self, instances: Sequence[Instance]) -> Iterator[None]:
        """Other inputs in the same memory, of the case and of its copies; the same ones whenever it is asked."""
        device = self.reads[0].device if self.reads else torch.device("cpu")
        before = [tensor.clone() for tensor in self.reads]

        def put(numbers: Sequence[Tensor]) -> None:
            for tensors in (self.reads, *(instance.reads for instance in instances)):
                for tensor, new in zip(tensors, numbers, strict=True):
                    tensor.copy_(new)

        put(self.renew(self.reads, torch.Generator(device).manual_seed(self.seed)))
        try:
            yield
        finally:
            put(before)


@dataclass
class OpCheck:
    """The check of one arm of a case (bench.core.measure.Check).

    step: one call on the first copy, which returns its result. results: of every copy, after the arm's own loop; None
    where that leaves none. outs: of every copy, what the op writes: full of NaN before the first check, and before the
    other of the result that timed calls leave there, since another arm may have left the right one. depth: ops in a row
    whose roundings the comparison allows.
    """

    case: Case
    instances: Sequence[Instance]
    step: Callable[[], Tensor]
    samples_for_all: int
    results: Callable[[], Sequence[Tensor]] | None = None
    outs: Sequence[Tensor] = ()
    depth: int = 1

    def __call__(self, drive: Drive | None = None, watch: Watch | None = None) -> pk.reference.Comparison:
        """As bench.core.measure.Check says."""
        before = self.case.reference(False) if drive else torch.tensor(float("nan"))
        with self.case.renewed(self.instances) if drive else nullcontext():
            for out in self.outs:
                out.copy_(before.reshape(out.shape) if drive else before)
            if watch:
                watch.begin()
            if drive and self.results:
                drive(self.samples_for_all)
                results = self.results()
            else:
                results = [self.step()]
            found = [self.case.check(result, drive is not None, self.depth) for result in results]
            words = watch.end() if watch else None
        worst = max(found, key=lambda comparison: comparison.max_rel_error)
        return replace(worst, ok=False, message=words) if words else worst


class _Maker:
    """Data of a realistic scale. Case k's reference must see copy 0's inputs, so every copy holds the same numbers."""

    def __init__(self, spec: ModelSpec, batch: int, dtype: torch.dtype, seed: int, device: torch.device) -> None:
        self.spec, self.batch, self.dtype, self.device = spec, batch, dtype, device
        self.generator = torch.Generator(device).manual_seed(seed)

    @property
    def several(self) -> str:
        """How a shape without the batch in it begins."""
        return f"{self.batch} x " if self.batch > 1 else ""

    def random(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device).normal_(mean, std, generator=self.generator)

    def weight(self, n_out: int, n_in: int) -> Tensor:
        return self.random(n_out, n_in, std=n_in**-0.5)

    def projection(self, int4: bool) -> Callable[[int, int], Any]:
        """What makes a weight: 4-bit, or dense."""
        return self.int4 if int4 else self.weight

    def int4(self, n_out: int, n_in: int) -> pk.Int4Weight:
        """Symmetric, in groups of 128, rounded to nearest."""
        return pk.Int4Weight.quantize(self.weight(n_out, n_in))

    def poisoned(self, *shape: int) -> Tensor:
        return torch.full(shape, float("nan"), dtype=self.dtype, device=self.device)

    def same(self, value: int) -> Tensor:
        """One int32 a sequence: a position or a kv_len."""
        return torch.full((self.batch,), value, dtype=torch.int32, device=self.device)


def _rmsnorm(m: _Maker, _: Sequence[int]) -> list[Case]:
    spec, eps = m.spec, m.spec.rms_eps
    x, weight = m.random(m.batch, spec.hidden), m.random(spec.hidden, mean=1.0, std=0.1)

    def make() -> Instance:
        a, w, out = x.clone(), weight.clone(), m.poisoned(*x.shape)
        return Instance(
            lambda: pk.ops.rmsnorm(a, w, eps, out=out), lambda: F.rms_norm(a, (spec.hidden,), w, eps), out, (a, w)
        )

    n_bytes = floors.rmsnorm(m.batch, spec.hidden, m.dtype.itemsize)
    shape = f"{m.batch}x{spec.hidden}"
    expected = lambda: pk.reference.rmsnorm(x, weight, eps)  # noqa: E731
    return [Case("rmsnorm", "", shape, n_bytes, 0, make, expected, m.dtype, (x, weight))]


def _torch_int4(weight: pk.Int4Weight, x: Tensor) -> Callable[[], Tensor] | None:
    """Torch's own 4-bit product of the same weight in its own layout, where torch has one for it. On a GPU bench.int4
    has it."""
    if not x.is_cpu or Tinygemm.refusal(weight, x.shape[0]):
        return None
    kernel = Tinygemm()
    kernel.prepare(weight)
    return partial(kernel.run, x)


def _functions(op: str) -> tuple[Callable[..., Tensor], Callable[..., Any], Callable[..., int]]:
    """The op, its reference, and the bytes it must move. An op and its 4-bit twin take the same arguments."""
    return getattr(pk.ops, op), getattr(pk.reference, op), getattr(floors, op)


def _gemv(m: _Maker, _: Sequence[int], int4: bool = False) -> list[Case]:
    op = "int4_gemv" if int4 else "gemv"
    call, reference, count_bytes = _functions(op)
    cases = []
    for label, sizes in floors.LINEAR_SHAPES.items():
        n_in, n_out = sizes(m.spec)

        def case(label: str = label, n_in: int = n_in, n_out: int = n_out) -> Case:
            x, weight = m.random(m.batch, n_in), m.projection(int4)(n_out, n_in)

            def make() -> Instance:
                w, out = weight.clone(), m.poisoned(m.batch, n_out)
                if int4:
                    workspace = pk.ops.int4_gemv_workspace(x, w)
                    return Instance(lambda: call(x, w, out=out, workspace=workspace), _torch_int4(w, x), out, (x,))
                named = {"x": x, "weight": w}
                return Instance(lambda: call(x, w, out=out), lambda: F.linear(x, w), out, (x, w), named)

            n_bytes = count_bytes(m.batch, n_in, n_out, m.dtype.itemsize)
            shape = f"{m.batch}x{n_in} -> {n_out}"
            reads = (x,) if int4 else (x, weight)
            return Case(op, label, shape, n_bytes, n_bytes, make, lambda: reference(x, weight), m.dtype, reads)

        cases.append(case())
    return cases


def _swiglu_gemv(m: _Maker, _: Sequence[int], int4: bool = False) -> list[Case]:
    op = "int4_swiglu_gemv" if int4 else "swiglu_gemv"
    call, reference, count_bytes = _functions(op)
    spec, eps = m.spec, m.spec.rms_eps
    x, norm = m.random(m.batch, spec.hidden), m.random(spec.hidden, mean=1.0, std=0.1)
    gate, up = (m.projection(int4)(spec.intermediate, spec.hidden) for _ in range(2))

    def make() -> Instance:
        g, u, out = gate.clone(), up.clone(), m.poisoned(m.batch, spec.intermediate)
        workspace = pk.ops.int4_swiglu_gemv_workspace(x, g, u) if int4 else pk.ops.swiglu_gemv_workspace(x, norm)

        def by_torch() -> Tensor:
            normed = F.rms_norm(x, (spec.hidden,), norm, eps)
            return F.silu(F.linear(normed, g)) * F.linear(normed, u)

        native = lambda: call(x, g, u, norm_weight=norm, eps=eps, out=out, workspace=workspace)  # noqa: E731
        return Instance(native, None if int4 else by_torch, out, (x, norm) if int4 else (x, norm, g, u))

    n_bytes = count_bytes(m.batch, spec.hidden, spec.intermediate, m.dtype.itemsize)
    shape = f"{m.batch}x{spec.hidden} -> 2x{spec.intermediate}"
    expected = lambda: reference(x, gate, up, norm, eps)  # noqa: E731
    reads = (x, norm) if int4 else (x, norm, gate, up)
    return [Case(op, "norm+gate+up", shape, n_bytes, n_bytes, make, expected, m.dtype, reads, torch_depth=3)]


# Attention is two ops in a row: kernels for tensor cores round what the softmax gives to 16 bits, and some the partial
# results of splits. A key that is missing is in the root mean square of the errors.
ATTENTION_DEPTH = 2


def showing_every_key(tensors: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Of q, K and V: other queries, keys that are equal, values that cancel but for a few (bench.backends.gate_inputs).
    One key that is missing shows at any length."""
    q, k, v = tensors
    (q,) = other_signs([q], generator)
    return [q, k[:, :, :1].expand(k.shape), cancelling(v.shape, loose_of(v.shape[2]), v.dtype, generator)]


def _gqa_decode(m: _Maker, contexts: Sequence[int]) -> list[Case]:
    spec = m.spec
    cases = []
    for ctx in contexts:

        def case(ctx: int = ctx) -> Case:
            q = m.random(m.batch, spec.n_heads, spec.head_dim)
            k, v = (m.random(m.batch, spec.n_kv_heads, ctx, spec.head_dim) for _ in range(2))
            kv_len = m.same(ctx)

            def make() -> Instance:
                keys, values, out = k.clone(), v.clone(), m.poisoned(*q.shape)
                workspace = pk.ops.gqa_decode_workspace(q, keys)
                query = q.unsqueeze(2)

                def unified(phi: float) -> tuple[Callable[[], object], Tensor]:
                    own = pk.ops.gqa_decode_workspace(q, keys, "unified")
                    call = partial(
                        pk.ops.gqa_decode, q, keys, values, kv_len, softmax="unified", phi=phi, out=out, workspace=own
                    )
                    return call, own

                return Instance(
                    lambda: pk.ops.gqa_decode(q, keys, values, kv_len, out=out, workspace=workspace),
                    lambda: F.scaled_dot_product_attention(query, keys, values, enable_gqa=True),
                    out,
                    (q, keys, values),
                    {"q": q, "k_cache": keys, "v_cache": values, "kv_len": kv_len},
                    unified,
                )

            n_bytes = floors.gqa_decode(m.batch, spec.n_heads, spec.n_kv_heads, spec.head_dim, ctx, m.dtype.itemsize)
            shape = f"{m.several}{spec.n_heads}/{spec.n_kv_heads}x{spec.head_dim}, kv {ctx}"
            expected = lambda: pk.reference.gqa_decode(q, k, v, kv_len)  # noqa: E731
            return Case(
                "gqa_decode", "attention", shape, n_bytes, n_bytes, make, expected, m.dtype, (q, k, v),
                renew=showing_every_key, depth=ATTENTION_DEPTH, rms_depth=ATTENTION_DEPTH,
            )  # fmt: skip

        cases.append(case())
    return cases


def _silu_mul(m: _Maker, _: Sequence[int]) -> list[Case]:
    gate, up = (m.random(m.batch, m.spec.intermediate) for _ in range(2))

    def make() -> Instance:
        g, u, out = gate.clone(), up.clone(), m.poisoned(*gate.shape)
        return Instance(lambda: pk.ops.silu_mul(g, u, out=out), lambda: F.silu(g) * u, out, (g, u))

    n_bytes = floors.silu_mul(m.batch, m.spec.intermediate, m.dtype.itemsize)
    shape = f"{m.batch}x{m.spec.intermediate}"
    expected = lambda: pk.reference.silu_mul(gate, up)  # noqa: E731
    return [Case("silu_mul", "", shape, n_bytes, 0, make, expected, m.dtype, (gate, up))]


def _add(m: _Maker, _: Sequence[int]) -> list[Case]:
    a, b = (m.random(m.batch, m.spec.hidden) for _ in range(2))

    def make() -> Instance:
        x, y, out = a.clone(), b.clone(), m.poisoned(*a.shape)
        return Instance(lambda: pk.ops.add(x, y, out=out), lambda: x + y, out, (x, y))

    n_bytes = floors.add(a.numel(), m.dtype.itemsize)
    shape = f"{m.batch}x{m.spec.hidden}"
    return [Case("add", "", shape, n_bytes, 0, make, lambda: pk.reference.add(a, b), m.dtype, (a, b))]


def _embedding(m: _Maker, _: Sequence[int]) -> list[Case]:
    spec = m.spec
    table, token = m.random(spec.vocab, spec.hidden), torch.arange(m.batch, device=m.device) * (spec.vocab // m.batch)

    def make() -> Instance:
        out = m.poisoned(m.batch, spec.hidden)
        return Instance(
            lambda: pk.ops.embedding(token, table, out=out), lambda: F.embedding(token, table), out, (table,)
        )

    n_bytes = floors.embedding(m.batch, spec.hidden, m.dtype.itemsize)
    shape = f"{m.batch} of {spec.vocab}x{spec.hidden}"
    expected = lambda: pk.reference.embedding(token, table)  # noqa: E731
    return [Case("embedding", "", shape, n_bytes, 0, make, expected, m.dtype, (table,))]


def _rope_cache(m: _Maker, ctx: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    spec = m.spec
    k_cache, v_cache = (m.random(m.batch, spec.n_kv_heads, ctx, spec.head_dim) for _ in range(2))
    return k_cache, v_cache, pk.models.cos_sin_table(spec, ctx, m.device), m.same(ctx - 1)


def _rope_kv_append(m: _Maker, contexts: Sequence[int]) -> list[Case]:
    spec = m.spec
    q = m.random(m.batch, spec.n_heads, spec.head_dim)
    k, v = (m.random(m.batch, spec.n_kv_heads, spec.head_dim) for _ in range(2))
    k_cache, v_cache, cos_sin, position = _rope_cache(m, contexts[0])
    half = spec.head_dim // 2
    last = contexts[0] - 1
    angles = cos_sin[last].to(m.dtype)
    cosine, sine = angles[:half].repeat(2), angles[half:].repeat(2)

    def turn(x: Tensor) -> Tensor:
        return x * cosine + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sine

    def make() -> Instance:
        keys, values, out = k_cache.clone(), v_cache.clone(), m.poisoned(*q.shape)

        def by_torch() -> Tensor:
            keys[:, :, last] = turn(k)
            values[:, :, last] = v
            return turn(q)

        native = lambda: pk.ops.rope_kv_append(q, k, v, cos_sin, position, keys, values, out=out)  # noqa: E731
        return Instance(native, by_torch, out, (q, k, v))

    n_bytes = floors.rope_kv_append(m.batch, spec.n_heads, spec.n_kv_heads, spec.head_dim, m.dtype.itemsize)
    shape = f"{m.several}{spec.n_heads}/{spec.n_kv_heads}x{spec.head_dim}"
    expected = lambda: pk.reference.rope_kv_append(q, k, v, cos_sin, position)[0]  # noqa: E731
    return [Case("rope_kv_append", "", shape, n_bytes, 0, make, expected, m.dtype, (q, k, v))]


def _qkv_gemv(m: _Maker, contexts: Sequence[int], int4: bool = False) -> list[Case]:
    op = "int4_qkv_gemv" if int4 else "qkv_gemv"
    call, reference, count_bytes = _functions(op)
    spec, eps = m.spec, m.spec.rms_eps
    q_rows, kv_rows = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    x, norm = m.random(m.batch, spec.hidden), m.random(spec.hidden, mean=1.0, std=0.1)
    weights = [m.projection(int4)(rows, spec.hidden) for rows in (q_rows, kv_rows, kv_rows)]
    biases = [m.random(rows) if spec.qkv_bias else None for rows in (q_rows, kv_rows, kv_rows)]
    k_cache, v_cache, cos_sin, position = _rope_cache(m, contexts[0])
    q_norm, k_norm = (m.random(size, mean=1.0, std=0.1) if size else None for size in spec.qk_norm_sizes)
    heads = (spec.n_heads, spec.n_kv_heads, spec.head_dim) if spec.qk_norm else None
    make_workspace: Callable[..., Tensor] = pk.ops.int4_qkv_gemv_workspace if int4 else pk.ops.qkv_gemv_workspace

    def make() -> Instance:
        copies, out = [w.clone() for w in weights], m.poisoned(m.batch, spec.n_heads, spec.head_dim)
        workspace = make_workspace(x, *(copies if int4 else ()), heads)
        native = lambda: call(  # noqa: E731
            x,
            *copies,
            cos_sin,
            position,
            k_cache,
            v_cache,
            *biases,
            norm_weight=norm,
            eps=eps,
            q_norm=q_norm,
            k_norm=k_norm,
            out=out,
            workspace=workspace,
        )
        return Instance(native, None, out, (x, norm) if int4 else (x, norm, *copies))

    n_bytes = (
        count_bytes(m.batch, spec.hidden, spec.n_heads, spec.n_kv_heads, spec.head_dim, m.dtype.itemsize, spec.qkv_bias)
        + sum(spec.qk_norm_sizes) * m.dtype.itemsize
    )
    # What decides the work beside the sizes: models that differ in it are no one case.
    features = {"head": ", QK norm", "all": ", QK norm of all heads"}.get(spec.qk_norm, "")
    features += ", bias" if spec.qkv_bias else ""
    shape = f"{m.batch}x{spec.hidden} -> {q_rows}+2x{kv_rows}{features}"
    expected = lambda: reference(  # noqa: E731
        x, norm, eps, *weights, cos_sin, position, spec.head_dim, *biases, q_norm=q_norm, k_norm=k_norm
    )[0]
    reads = (x, norm) if int4 else (x, norm, *weights)
    return [Case(op, "norm+qkv+rope", shape, n_bytes, n_bytes, make, expected, m.dtype, reads)]


_MAKERS: dict[str, Callable[[_Maker, Sequence[int]], list[Case]]] = {
    "rmsnorm": _rmsnorm,
    "gemv": _gemv,
    "rope_kv_append": _rope_kv_append,
    "gqa_decode": _gqa_decode,
    "silu_mul": _silu_mul,
    "swiglu_gemv": _swiglu_gemv,
    "qkv_gemv": _qkv_gemv,
    "int4_gemv": partial(_gemv, int4=True),
    "int4_swiglu_gemv": partial(_swiglu_gemv, int4=True),
    "int4_qkv_gemv": partial(_qkv_gemv, int4=True),
    "add": _add,
    "embedding": _embedding,
}

OPS = tuple(_MAKERS)
"""The ops that bench.op sweeps."""


def cases(
    op: str,
    spec: ModelSpec,
    contexts: Sequence[int],
    batch: int,
    dtype: torch.dtype,
    seed: int,
    device: torch.device,
) -> list[Case]:
    """The cases of one op for one model. Attention has one a context; the others have one a shape."""
    made = _MAKERS[op](_Maker(spec, batch, dtype, seed, device), contexts)
    return [replace(case, batch=batch) for case in made]
