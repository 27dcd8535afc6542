"""int4_gemv against the reference on the dequantised weight, exact cases, its error against the format's own, and
what it refuses."""

import dataclasses

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import DTYPES, Guarded, check_op, isa, randn, threads
from inputs.int4_weights import GROUPS, ISAS, int4, powers_of_two
from torch import Tensor

import pykernels as pk

IN, OUT = 128, 24


def arguments(
    batch: int = 2,
    in_features: int = IN,
    out_features: int = OUT,
    dtype: torch.dtype = torch.float32,
    extras: tuple[str, ...] = ("bias", "residual"),
    **weight: object,
) -> dict:
    made = dict(
        x=randn(batch, in_features, dtype=dtype),
        weight=int4(out_features, in_features, dtype=dtype, **weight),
        bias=randn(out_features, dtype=dtype, seed=2),
        residual=randn(batch, out_features, dtype=dtype, seed=3),
    )
    return {name: value for name, value in made.items() if name in ("x", "weight", *extras)}


def check(given: dict) -> None:
    check_op(lambda out: pk.ops.int4_gemv(**given, out=out), pk.reference.int4_gemv(**given), given["x"].dtype)


@pairwise
@pytest.mark.parametrize(
    ("symmetric", "act_order"), [(True, False), (False, False), (False, True)], ids=["symmetric", "zeros", "act-order"]
)
@pytest.mark.parametrize(("in_features", "group_size"), GROUPS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_any_group(isa_name, dtype, batch, in_features, group_size, symmetric, act_order):
    with isa(isa_name):
        check(arguments(batch, in_features, 17, dtype, group_size=group_size, symmetric=symmetric, act_order=act_order))


@pairwise
@pytest.mark.parametrize("out_features", [1, 7, 8, 17, 24, 136, 1000])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_rows(dtype, batch, out_features):
    check(arguments(batch, 256, out_features, dtype, symmetric=False))


@pairwise
@pytest.mark.parametrize("extras", [(), ("bias",), ("residual",), ("bias", "residual")], ids="+".join)
@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_batch_with_and_without_bias_and_residual(dtype, batch, extras):
    check(arguments(batch, dtype=dtype, extras=extras))


@pairwise
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_any_number_of_threads(isa_name, dtype, count):
    given = arguments(3, 2048, 1031, dtype, symmetric=False)  # several chunks, the last one short
    with isa(isa_name):
        with threads(count):
            check(given)
            out = pk.ops.int4_gemv(**given)
        with threads(1):  # rows are independent, so who sums them changes nothing
            assert torch.equal(out, pk.ops.int4_gemv(**given))


@pairwise
@pytest.mark.parametrize("group_size", [32, 64, -1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_reads_its_inputs_only(isa_name, dtype, group_size):
    given = arguments(3, 192, 17, dtype, group_size=group_size, symmetric=False, act_order=True)

    def fenced(values: Tensor) -> Tensor:
        # The values in the midst of what poisons a sum: NaN, or positions and zero points out of all bounds.
        fill = float("nan") if values.dtype.is_floating_point else torch.iinfo(values.dtype).max
        memory = torch.full((values.numel() + 128,), fill, dtype=values.dtype)
        return memory[64:-64].view_as(values).copy_(values)

    given["weight"] = pk.Int4Weight(*(fenced(tensor) for tensor in given["weight"].tensors()))
    given |= {name: fenced(given[name]) for name in ("x", "bias", "residual")}
    with isa(isa_name):
        check(given)


@pytest.mark.parametrize("name", ["packed", "scales", "zeros", "perm"])
@pytest.mark.parametrize("isa_name", ISAS)
def test_stays_within_a_page(isa_name, name):
    """The weight's last byte is the last one of a mapping: one read past it is a fault, not a wrong number."""
    import ctypes
    import mmap

    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 9 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(base + 8 * page), ctypes.c_size_t(page), 0) == 0
    given = arguments(1, 160, 3, torch.bfloat16, group_size=32, symmetric=False, act_order=True)
    values = getattr(given["weight"], name)
    n_bytes = values.numel() * values.element_size()
    last = torch.frombuffer(memory, dtype=torch.uint8, count=n_bytes, offset=8 * page - n_bytes)
    last.copy_(values.reshape(-1).view(torch.uint8))
    given["weight"] = dataclasses.replace(given["weight"], **{name: last.view(values.dtype).view_as(values)})
    with isa(isa_name), threads(1):
        check(given)
    assert libc.mprotect(ctypes.c_void_p(base + 8 * page), ctypes.c_size_t(page), 3) == 0


def exact(q: Tensor, scales: Tensor, zeros: Tensor | None, group_size: int, x: Tensor) -> Tensor:
    plain = pk.quant.QuantizedWeight(q, scales, zeros, group_size)
    return pk.ops.int4_gemv(x, pk.Int4Weight.from_plain(plain))


@pairwise
@pytest.mark.parametrize("act_order", [False, True], ids=["in order", "act-order"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_one_hot_inputs_read_back_every_weight(isa_name, dtype, group_size, symmetric, act_order):
    weight = int4(11, 256, group_size, symmetric, torch.bfloat16, act_order).to(dtype)
    with isa(isa_name):
        columns = [pk.ops.int4_gemv(x, weight) for x in torch.eye(256, dtype=dtype).split(8)]
    # (q - zero) * scale has 16 significant bits at most: exact in float32, so rounded once.
    assert torch.equal(torch.cat(columns).T, weight.dequantize(dtype))


@pairwise
@pytest.mark.parametrize("q", [0, 8, 15])
@pytest.mark.parametrize("zero", [0, 7, 8, 15, None])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_all_nibbles_alike(isa_name, dtype, zero, q):
    values = torch.full((5, 256), q, dtype=torch.uint8)
    zeros = None if zero is None else torch.full((5, 4), zero, dtype=torch.uint8)
    x = torch.full((2, 256), 0.5, dtype=dtype)
    with isa(isa_name):
        out = exact(values, torch.full((5, 4), 0.25, dtype=dtype), zeros, 64, x)
    assert (out == (q - (8 if zero is None else zero)) * 256 * 0.5 * 0.25).all()


@pairwise
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_powers_of_two_are_exact(isa_name, dtype, symmetric):
    weight, x, expected = powers_of_two(dtype, symmetric)
    with isa(isa_name):
        assert torch.equal(pk.ops.int4_gemv(x, weight), expected)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zeros"])
@pytest.mark.parametrize("isa_name", ISAS)
def test_x_of_many_magnitudes(isa_name, symmetric):
    """Rounded to integers of one step, a tile of x keeps what shows beside its largest element."""
    given = arguments(3, 384, 17, torch.bfloat16, extras=(), symmetric=symmetric, group_size=32)
    magnitudes = torch.linspace(-100, 100, 384).round()[torch.randperm(384, generator=torch.Generator().manual_seed(0))]
    given["x"][1] *= 2.0**magnitudes
    given["x"][2] = 0
    with isa(isa_name):
        check(given)


@pytest.mark.skipif("avx512_vnni" not in ISAS, reason="this CPU has no AVX512-VNNI")
@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_vnni_changes_no_bit(batch):
    """Integers that add up in other instructions."""
    given = arguments(batch, 1120, 17, torch.bfloat16, symmetric=False, group_size=32)
    outs = []
    for name in ("avx512", "avx512_vnni"):
        with isa(name):
            outs.append(pk.ops.int4_gemv(**given))
    assert torch.equal(*outs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("isa_name", ISAS)
def test_an_x_that_is_not_finite_shows_in_its_own_sequence(isa_name, value):
    given = arguments(2, 384, 17, torch.bfloat16, extras=())
    expected = pk.reference.int4_gemv(**given)[1]
    given["x"][0, 200] = value
    with isa(isa_name):
        out = pk.ops.int4_gemv(**given)
    assert not out[0].isfinite().any()
    assert pk.reference.compare(out[1], expected, torch.bfloat16).ok


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_of_zero(dtype, symmetric):
    given = arguments(3, 256, 17, dtype, extras=(), symmetric=symmetric)
    given["weight"].scales[:9] = 0
    assert (pk.ops.int4_gemv(**given)[:, :9] == 0).all()
    check(given)


@pairwise
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [32, 128, -1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_errs_no_more_than_dequantising_first(isa_name, dtype, group_size, symmetric):
    """Root mean square error against the reference, beside that of a float32 product with the dequantised weight."""
    weight = int4(256, 4096, group_size, symmetric, dtype)
    dequantised = weight.dequantize(torch.float32)
    x = randn(8, 4096, dtype=dtype)
    expected = pk.reference.int4_gemv(x, weight)

    def error(out: Tensor) -> float:
        return float((out.double() - expected).square().mean().sqrt())

    with isa(isa_name):
        ours = error(pk.ops.int4_gemv(x, weight))
    assert ours <= 1.05 * error((x.float() @ dequantised.T).to(dtype))


@pairwise
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_workspace(isa_name, dtype, batch):
    given = arguments(batch, 992, 24, dtype, group_size=-1, symmetric=False, act_order=True)
    workspace = Guarded(pk.ops.int4_gemv_workspace(given["x"], given["weight"]).numel(), dtype=torch.uint8)
    with isa(isa_name):
        out = pk.ops.int4_gemv(**given, workspace=workspace.tensor)
        workspace.check()
        assert torch.equal(out, pk.ops.int4_gemv(**given))


@pairwise
@pytest.mark.parametrize("softcap", [0.0, 0.5, 30.0])
@pytest.mark.parametrize("scale", [0.3, -2.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_scaled_and_capped(isa_name, dtype, scale, softcap):
    with isa(isa_name):
        check(arguments(3, dtype=dtype) | dict(scale=scale, softcap=softcap))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(scale=float("inf")), r"scale must be in \(-1e38, 1e38\), got inf"),
        (dict(softcap=-1.0), r"softcap must be 0 \(none\) or in \[0.001, 1e38\), got -1"),
    ],
)
def test_bad_scales(changes, message):
    with pytest.raises(ValueError, match=f"int4_gemv: {message}"):
        pk.ops.int4_gemv(**arguments() | changes)


@pytest.mark.parametrize("full", [False, True], ids=["plain", "everything"])
def test_opcheck(full):
    given = dict(bias=None, residual=None) | arguments(
        extras=("bias", "residual") if full else (), symmetric=not full, act_order=full
    )
    workspace = pk.ops.int4_gemv_workspace(given["x"], given["weight"]).zero_() if full else None
    tensors = (given["x"], *given["weight"].tensors(), given["bias"], given["residual"], torch.empty(2, OUT), workspace)
    torch.library.opcheck(torch.ops.pykernels.int4_gemv.default, tensors)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_equals_eager(dtype, symmetric):
    given = arguments(dtype=dtype, symmetric=symmetric)

    def function(x, bias, residual):
        return pk.ops.int4_gemv(x * 2, given["weight"], bias, residual) + 1

    tensors = given["x"], given["bias"], given["residual"]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*tensors), function(*tensors))


def test_program():
    given = arguments(symmetric=False)
    out = torch.zeros(2, OUT)
    with pk.runtime.record() as program:
        pk.ops.int4_gemv(**given, out=out)
    assert program.ops == ["int4_gemv"]
    assert not out.any()
    program.run()
    assert torch.equal(out, pk.ops.int4_gemv(**given))


GIVEN = arguments(symmetric=False, act_order=True)["weight"]


def changed(**parts: Tensor | None) -> dict:
    """The weight with some parts swapped, past what Int4Weight itself would refuse."""
    weight = pk.Int4Weight(*GIVEN.tensors())
    for name, tensor in parts.items():
        setattr(weight, name, tensor)
    return dict(weight=weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=randn(IN)), r"x must be of shape \[any, any\], got \[128\]"),
        (dict(x=randn(9, IN)), "x must be of batch 1 to 8, got batch 9"),
        (dict(x=randn(IN, 2).T), r"x must be contiguous, got strides \[1, 2\]"),
        (dict(x=randn(2, IN, dtype=torch.float64)), "x must be float32, bfloat16 or float16, got float64"),
        (dict(x=randn(2, 72)), "x must be of a multiple of 32 columns, got 72 columns"),
        (dict(x=randn(2, 64)), r"packed must be of shape \[any, 32\], got \[24, 64\]"),
        (changed(packed=torch.zeros(OUT, 64)), "packed must be uint8, got float32"),
        (changed(packed=GIVEN.packed.T), r"packed must be of shape \[any, 64\], got \[64, 24\]"),
        (
            changed(packed=torch.zeros(OUT * 64 + 8, dtype=torch.uint8)[8:].view(OUT, 64)),
            "packed must be 16-byte aligned, got an address that is not",
        ),
        (changed(scales=randn(OUT, 1).half()), r"scales must be of the dtype of x \(float32\), got float16"),
        (changed(scales=randn(OUT + 1, 1)), r"scales must be of shape \[24, any\], got \[25, 1\]"),
        (
            changed(scales=randn(OUT, 3)),
            "scales must be of groups of 32, 64, a multiple of 128 or all of 128 columns, got 3 groups",
        ),
        (changed(scales=randn(OUT, 8)), "scales must be of groups of 32, 64, .*, got 8 groups"),
        (changed(scales=randn(OUT, 256)), "scales must be of groups of 32, 64, .*, got 256 groups"),
        (changed(zeros=torch.zeros(OUT, 1)), "zeros must be uint8, got float32"),
        (changed(zeros=torch.zeros(OUT, 2, dtype=torch.uint8)), r"zeros must be of shape \[24, 1\], got \[24, 2\]"),
        (changed(perm=GIVEN.perm.long()), "perm must be int32, got int64"),
        (changed(perm=GIVEN.perm[1:]), r"perm must be of shape \[128\], got \[127\]"),
        (changed(perm=GIVEN.perm + 1), r"perm must be in \[0, 127\] \(the columns of x\), got 128"),
        (changed(perm=GIVEN.perm - 1), r"perm must be in \[0, 127\] \(the columns of x\), got -1"),
        (dict(bias=randn(OUT + 1)), r"bias must be of shape \[24\], got \[25\]"),
        (dict(bias=randn(OUT).bfloat16()), r"bias must be of the dtype of x \(float32\), got bfloat16"),
        (dict(residual=randn(1, OUT)), r"residual must be of shape \[2, 24\], got \[1, 24\]"),
        (dict(out=randn(2, IN)), r"out must be of shape \[2, 24\], got \[2, 128\]"),
        (dict(out=randn(OUT, 2).T), "out must be contiguous"),
        (dict(out=torch.empty(2, OUT, device="meta")), "all tensors must be on one device, got cpu, meta"),
        (dict(workspace=torch.zeros(1087, dtype=torch.uint8)), "workspace must be of at least 1088 bytes, got 1087"),
        (dict(workspace=torch.zeros(4096, dtype=torch.uint8)[1:]), "workspace must be 64-byte aligned"),
        (dict(workspace=torch.zeros(4096)), "workspace must be uint8, got float32"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=f"int4_gemv: {message}"):
        pk.ops.int4_gemv(**arguments(symmetric=False, act_order=True) | changes)


@pytest.mark.parametrize("written", ["out", "workspace"])
@pytest.mark.parametrize("name", ["x", "packed", "scales", "zeros", "perm", "bias", "residual"])
def test_what_is_written_overlaps_an_input(name, written):
    given = arguments(symmetric=False, act_order=True)
    values = getattr(given["weight"], name) if hasattr(given["weight"], name) else given[name]
    memory = torch.zeros(8192, dtype=torch.uint8)
    view = memory[: values.numel() * values.element_size()].view(values.dtype).view_as(values).copy_(values)
    if name in given:
        given[name] = view
    else:
        given["weight"] = dataclasses.replace(given["weight"], **{name: view})
    given[written] = memory[:192].view(torch.float32).view(2, OUT) if written == "out" else memory
    message = f"int4_gemv: {written} must be memory of its own, got memory that overlaps {name}"
    with pytest.raises(ValueError, match=message):
        pk.ops.int4_gemv(**given)
