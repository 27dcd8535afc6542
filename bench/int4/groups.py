"""The arms of bench.int4, by group: a linear shape or a whole layer, dense and 4-bit."""

import secrets
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

import pykernels as pk
from bench.backends import Workload, arms_of
from bench.backends import native as layer_backend
from bench.backends.int4 import Int4Kernel, gate_depth
from bench.backends.op_arms import native_arm, peer_modes, torch_arm
from bench.backends.op_cases import Case, Instance
from bench.core import floors
from bench.core.cli import DTYPE_FLAGS
from bench.core.copies import layers_a_sample, steps_a_sample, weight_copies
from bench.core.document import Document
from bench.core.errors import flag_error
from bench.core.measure import Arm, Rotation, unsupported
from bench.core.samplers import Samplers
from bench.int4 import plugged
from bench.int4.plain_reads import PlainRead, plain_read
from bench.int4.settings import Settings
from bench.int4.validate import relative
from bench.plugins.loading import Journal, watch
from pykernels.layer import available_bytes
from pykernels.models import ModelSpec


@dataclass(frozen=True)
class Shape:
    """One linear shape and the models that have it."""

    label: str
    n_in: int
    n_out: int
    models: tuple[str, ...]

    @property
    def words(self) -> str:
        """`4096 -> 14336`"""
        return f"{self.n_in} -> {self.n_out}"


def shapes(specs: Sequence[ModelSpec]) -> list[Shape]:
    """The linear shapes of the models; what several share is one."""
    found: dict[tuple[str, int, int], list[str]] = {}
    for spec in specs:
        for label, sizes in floors.LINEAR_SHAPES.items():
            found.setdefault((label, *sizes(spec)), []).append(spec.name)
    return [Shape(*key, tuple(models)) for key, models in found.items()]


def own_shapes(settings: Settings) -> list[Shape]:
    """The shapes that this run measures: of --shard its share, even by elements."""
    return settings.share.of(shapes(settings.specs), lambda shape: shape.n_in * shape.n_out)


def own_layers(settings: Settings) -> list[ModelSpec]:
    """The models whose layers this run measures: of --shard its share, even by elements; the last share first, which
    has the fewest shapes."""
    share = replace(settings.share, index=settings.share.count + 1 - settings.share.index)
    return share.of(settings.specs, lambda spec: spec.layer_weight_elements)


@dataclass
class _KernelCase(Case):
    """A case whose gate allows what the kernel says of itself."""

    depth: int = 1
    trespass: Callable[[], str | None] = lambda: None

    def compare(self, got: Tensor, expected: Tensor, depth: int = 1) -> pk.reference.Comparison:
        comparison = pk.reference.compare(got, expected, self.dtype, max(depth, self.depth))
        words = self.trespass()
        return replace(comparison, ok=False, message=words) if words else comparison


@dataclass(frozen=True)
class Counted:
    """What one call of an arm reads and writes, and how it is sampled: calls a sample, copies of the weight."""

    bytes: int
    repeats: int
    copies: int


@dataclass
class Group:
    """Arms that are measured together: a shape's, or a layer's. `counted` by their labels; a call of our own arms
    launches `launches` kernels."""

    what: Document
    arms: list[Arm]
    counted: dict[str, Counted]
    launches: int
    layout_errors: dict[str, float] = field(default_factory=dict)
    """By backend: how far the reference on what a kernel's layout says is from the reference on the 4-bit weight."""
    dtypes: dict[str, str] = field(default_factory=dict)
    """By backend: the activations, where they are not the run's in every case."""
    reads: list[PlainRead] = field(default_factory=list)
    """Plain reads of as many bytes, measured with the arms."""


class Data:
    """The numbers of one shape: an input, a dense weight, and the same weight in 4 bits. Seeded: made anew it is the
    same."""

    def __init__(self, shape: Shape, x: Tensor, dense: Tensor, int4: pk.Int4Weight) -> None:
        self.shape, self.x, self.dense, self.int4 = shape, x, dense, int4
        self.seed = secrets.randbits(62)
        self._expected: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def of(cls, shape: Shape, settings: Settings) -> "Data":
        """In the run's dtype."""
        dtype, device = settings.torch_dtype, settings.target
        generator = torch.Generator(device).manual_seed(settings.seed)

        def normal(*sizes: int, std: float = 1.0) -> Tensor:
            return torch.empty(sizes, dtype=dtype, device=device).normal_(0.0, std, generator=generator)

        x = normal(settings.batch, shape.n_in)
        dense = normal(shape.n_out, shape.n_in, std=shape.n_in**-0.5)
        return cls(shape, x, dense, pk.Int4Weight.quantize(dense, settings.group_size, not settings.asymmetric))

    def to(self, dtype: torch.dtype) -> "Data":
        """The same q, the input and the scales in another dtype: as near as it has them."""
        return self if dtype == self.x.dtype else Data(self.shape, self.x.to(dtype), self.dense, self.int4.to(dtype))

    @property
    def vector_bytes(self) -> int:
        """x in and out."""
        return self.x.shape[0] * (self.shape.n_in + self.shape.n_out) * self.x.element_size()

    @property
    def expected(self) -> Tensor:
        """The reference's result on the 4-bit weight and the x of now, computed once an x."""
        for x, expected in self._expected:
            if torch.equal(x, self.x):
                return expected
        self._expected.append((self.x.clone(), pk.reference.int4_gemv(self.x, self.int4)))
        return self._expected[-1][1]

    def expected_of(self, kernel: type[Int4Kernel]) -> Tensor:
        """The reference's result on what that kernel multiplies by."""
        if kernel.multiplies_by is Int4Kernel.multiplies_by:
            return self.expected
        return pk.reference.gemv(self.x, kernel().multiplies_by(self.int4))


def _copies(n_bytes: int, layouts: int, what: str, settings: Settings) -> int:
    copies = weight_copies(n_bytes, settings.l2, settings.target)
    needed, available = layouts * copies * n_bytes, available_bytes(settings.target)
    if needed > available:
        room = f"{needed / 2**30:.1f} GiB", f"{available / 2**30:.1f} GiB are available"
        if layouts > 1:
            kernels = ",".join(settings.kernels)
            raise flag_error("--kernel", kernels, f"fewer: {what} needs {room[0]} in {layouts} layouts, {room[1]}")
        models = ",".join(spec.name for spec in settings.specs)
        raise flag_error("--model", models, f"smaller models: {what} needs {room[0]}, {room[1]}")
    return copies


def _dense_arms(data: Data, settings: Settings) -> tuple[list[Arm], Counted]:
    """Our own dense kernel in every mode, and F.linear."""
    x, weight, n_bytes = data.x, data.dense, data.dense.numel() * data.dense.element_size() + data.vector_bytes
    case = Case(
        "gemv", data.shape.label, data.shape.words, n_bytes, n_bytes, _nothing, lambda: pk.reference.gemv(x, weight),
        x.dtype, (x, weight),
    )  # fmt: skip
    copies = _copies(n_bytes, 1, data.shape.words, settings)
    steps = steps_a_sample(settings.repeats, n_bytes, copies, settings.spec_bandwidth[0], settings.target)
    samplers = Samplers(Rotation(copies), steps, settings.target)

    def instance(weight: Tensor) -> Instance:
        out = torch.full((x.shape[0], data.shape.n_out), float("nan"), dtype=x.dtype, device=x.device)
        return Instance(
            lambda: pk.ops.gemv(x, weight, out=out), lambda: torch.nn.functional.linear(x, weight), out, (x, weight)
        )

    instances = [instance(weight.clone() if copy else weight) for copy in range(copies)]
    arms = _made(settings.dtype_name, settings.modes, lambda mode: native_arm(case, instances, mode, samplers))
    modes = [mode for mode in settings.modes if mode in peer_modes(settings.target)]
    arms += _made(f"torch-{settings.dtype_name}", modes, lambda mode: torch_arm(case, instances, mode, samplers))
    return arms, Counted(n_bytes, samplers.repeats, copies)


def _nothing() -> Instance:
    raise AssertionError("the instances of this case are made beside it")


def _made(
    name: str, modes: Sequence[str], make: Callable[[str], Arm | None], journal: Journal | None = None
) -> list[Arm]:
    """The arms of one kernel by that name, noted in the journal of a plug-in. What fails while it is made is an `error`
    arm."""
    arms = []
    for mode in modes:
        try:
            with journal.during("made", mode) if journal else nullcontext(), torch.inference_mode():
                arm = make(mode)
            if arm is not None and journal:
                watch(arm, journal)
        except Exception as error:  # the library's own words are the result
            arm = Arm(name, mode)
            arm.fail(error)
        if arm is not None:
            arm.backend = name
            arms.append(arm)
    return arms


def layout_bytes(tensors: Sequence[Tensor], weight: pk.Int4Weight) -> int:
    """Bytes of a layout that a kernel prepared. Raises ValueError where it has fewer than the weight's 4 bits take: its
    bandwidth would be counted by what it does not read."""
    kept = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}
    least = weight.out_features * weight.in_features // 2
    if sum(kept.values()) < least:
        raise ValueError(
            f"prepare must return the tensors that run reads of the weight: the 4 bits alone are {least} bytes, "
            f"got {sum(kept.values())}"
        )
    return sum(kept.values())


def _kernel_arms(
    name: str, kernel: type[Int4Kernel], data: Data, copies: int, samplers: Samplers, settings: Settings
) -> tuple[list[Arm], int]:
    """A kernel's arms, and the bytes of a call by its own layout."""
    weight, x = data.int4, data.x
    own = kernel.name == "native"
    modes = settings.modes if own else [mode for mode in settings.modes if mode in peer_modes(settings.target)]
    if reason := settings.unavailable[kernel.name] or kernel.refusal(weight, settings.batch):
        return [unsupported(name, mode, reason) for mode in modes], 0
    counted, journal = 0, settings.journal
    prepared: list[Int4Kernel] = []

    def instance(weight: pk.Int4Weight) -> Instance:
        nonlocal counted
        if own:
            out = torch.full((x.shape[0], data.shape.n_out), float("nan"), dtype=x.dtype, device=x.device)
            workspace = pk.ops.int4_gemv_workspace(x, weight)
            counted = weight.n_bytes + data.vector_bytes
            return Instance(lambda: pk.ops.int4_gemv(x, weight, out=out, workspace=workspace), None, out, (x,))
        prepared.append(one := kernel())
        counted = layout_bytes(one.prepare(weight), weight) + data.vector_bytes
        return Instance(_nothing, lambda: one.run(x), x, (x,))

    try:
        with journal.during("prepared") if journal else nullcontext(), torch.inference_mode():
            instances = [instance(weight.clone()) for _ in range(copies)]
    except Exception as error:
        arms = [Arm(name, mode) for mode in modes]
        for arm in arms:
            arm.fail(error)
        return arms, 0
    case = _KernelCase(
        "int4_gemv", data.shape.label, data.shape.words, counted, counted, _nothing,
        lambda: data.expected_of(kernel), x.dtype, (x,), data.seed, depth=gate_depth(kernel),
        trespass=lambda: prepared[0].trespass(weight) if prepared else None, programmatic=kernel.programmatic,
    )  # fmt: skip
    make = native_arm if own else torch_arm
    return _made(name, modes, lambda mode: make(case, instances, mode, samplers), journal), counted


def shape_group(shape: Shape, settings: Settings) -> Group:
    """The arms of one linear shape, not yet checked. The dense ones rotate their copies, the 4-bit ones theirs."""
    what = {"op": "int4_gemv", "label": shape.label, "shape": f"{settings.batch}x{shape.words}", "models": shape.models}
    data = Data.of(shape, settings)
    arms, of_dense = _dense_arms(data, settings)
    counted = {arm.label: of_dense for arm in arms}
    packed = data.int4.n_bytes
    copies = _copies(packed, len(settings.kernels), shape.words, settings)
    steps = steps_a_sample(settings.repeats, packed, copies, settings.spec_bandwidth[0], settings.target)
    samplers = Samplers(Rotation(copies), steps, settings.target)
    layout_errors, dtypes = {}, {}
    for dtype, kernels in settings.kernels_by_dtype().items():
        given = data.to(dtype)
        for name, kernel in kernels.items():
            of_kernel, n_bytes = _kernel_arms(name, kernel, given, copies, samplers, settings)
            arms += of_kernel
            counted |= {arm.label: Counted(n_bytes, samplers.repeats, copies) for arm in of_kernel}
            dtypes[name] = DTYPE_FLAGS[dtype]
            # Only of what was prepared: of a kernel that does not run there is no layout to compare.
            if any(arm.status == "ok" for arm in of_kernel):
                layout_errors[name] = relative(given.expected_of(kernel), given.expected)
    reads = [
        plain_read(one.bytes, one.copies, one.repeats, settings.modes, settings.target)
        for one in (of_dense, Counted(packed + data.vector_bytes, samplers.repeats, copies))
    ]
    arms += (failed := plugged.failed(settings.plugged, what))
    counted |= {arm.label: Counted(0, samplers.repeats, copies) for arm in failed}
    return Group(what, arms, counted, 1, layout_errors, dtypes, reads)


def layer_group(spec: ModelSpec, settings: Settings) -> Group:
    """The arms of a whole layer at fusion block, dense and 4-bit, on weights that are the same before rounding."""
    dense = pk.LayerWeights.random(spec, settings.torch_dtype, settings.target, settings.seed)
    four_bit = dense.quantize(settings.group_size, not settings.asymmetric)
    arms: list[Arm] = []
    counted: dict[str, Counted] = {}
    for name, weights in ((settings.dtype_name, dense), ("native", four_bit)):
        ops = floors.layer_ops(
            spec, "block", settings.batch, settings.ctx, settings.torch_dtype,
            *((settings.group_size, settings.asymmetric) if weights.is_int4 else ()),
        )  # fmt: skip
        streamed = sum(op.bytes for op in ops)
        copies = _copies(streamed, 1, f"a layer of {spec.name}", settings)
        layers = [
            pk.DecodeLayer(
                spec, weights.clone() if copy else weights, settings.ctx, settings.batch, settings.torch_dtype,
                settings.target, settings.seed,
            )
            for copy in range(copies)
        ]  # fmt: skip
        repeats = layers_a_sample(settings.repeats, copies, settings.target)
        workload = Workload.of(layers, repeats)
        of_weights = arms_of(layer_backend.Native, workload, settings.modes, ["block"])
        for arm in of_weights:
            arm.backend, arm.fusion = name, None
        arms += of_weights
        counted |= {arm.label: Counted(streamed, repeats, copies) for arm in of_weights}
    what = {"op": "layer", "label": "layer", "shape": f"{spec.name}, ctx {settings.ctx}", "models": (spec.name,)}
    return Group(what, arms, counted, len(ops))
