"""gemv against the reference, and what it refuses."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import DTYPES, RAGGED, check_op, check_overlap_is_refused, isa, randn, threads

import pykernels as pk

IN, OUT = 64, 24
SIZES = sorted({1, 7, 17, *RAGGED})


def arguments(
    batch: int = 2,
    in_features: int = IN,
    out_features: int = OUT,
    dtype: torch.dtype = torch.float32,
    extras: tuple[str, ...] = ("bias", "residual"),
) -> dict:
    made = dict(
        x=randn(batch, in_features, dtype=dtype),
        weight=randn(out_features, in_features, dtype=dtype, seed=1, scale=in_features**-0.5),
        bias=randn(out_features, dtype=dtype, seed=2),
        residual=randn(batch, out_features, dtype=dtype, seed=3),
    )
    return {name: tensor for name, tensor in made.items() if name in ("x", "weight", *extras)}


def check(given: dict) -> None:
    check_op(lambda out: pk.ops.gemv(**given, out=out), pk.reference.gemv(**given), given["x"].dtype)


@pairwise
@pytest.mark.parametrize("in_features", SIZES)
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_any_length_of_a_row(isa_name, dtype, batch, in_features):
    with isa(isa_name):
        check(arguments(batch, in_features, dtype=dtype))


@pairwise
@pytest.mark.parametrize("out_features", SIZES)
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_rows(dtype, batch, out_features):
    given = arguments(batch, 72, out_features, dtype)
    # Errors are held against the largest result of a row of x: a single one that cancels would have its terms' error.
    given["residual"] += 8
    check(given)


@pairwise
@pytest.mark.parametrize("extras", [(), ("bias",), ("residual",), ("bias", "residual")], ids="+".join)
@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_batch_with_and_without_bias_and_residual(dtype, batch, extras):
    check(arguments(batch, dtype=dtype, extras=extras))


@pairwise
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_any_number_of_threads(isa_name, dtype, count):
    given = arguments(3, 1000, 331, dtype)
    with isa(isa_name):
        with threads(count):
            check(given)
            out = pk.ops.gemv(**given)
        with threads(1):  # rows are independent, so who sums them changes nothing
            assert torch.equal(out, pk.ops.gemv(**given))


@pairwise
@pytest.mark.parametrize("in_features", [7, 72])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_reads_its_inputs_only(isa_name, dtype, in_features):
    given = arguments(3, in_features, 17, dtype)
    for name, values in given.items():
        memory = torch.full((values.numel() + 130,), float("nan"), dtype=dtype)  # unaligned, NaN on both sides
        given[name] = memory[65:-65].view_as(values).copy_(values)
    with isa(isa_name):
        check(given)


@pairwise
@pytest.mark.parametrize("softcap", [0.0, 0.5, 30.0])
@pytest.mark.parametrize("scale", [0.3, -2.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
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
    with pytest.raises(ValueError, match=f"gemv: {message}"):
        pk.ops.gemv(**arguments() | changes)


@pytest.mark.parametrize("extras", [(), ("bias", "residual")], ids="+".join)
def test_opcheck(extras):
    given = dict(bias=None, residual=None) | arguments(extras=extras)
    tensors = (given[name] for name in ("x", "weight", "bias", "residual"))
    torch.library.opcheck(torch.ops.pykernels.gemv.default, (*tensors, torch.empty(2, OUT)))


@pytest.mark.parametrize("extras", [(), ("bias", "residual")], ids="+".join)
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_equals_eager(dtype, extras):
    def function(x, weight, bias=None, residual=None):
        return pk.ops.gemv(x * 2, weight, bias, residual) + 1

    given = arguments(dtype=dtype, extras=extras)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**given), function(**given))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(x=randn(IN)), r"x must be of shape \[any, any\], got \[64\]"),
        (dict(x=torch.tensor(1.0)), r"x must be of shape .*, got \[\]"),
        (dict(x=randn(0, IN)), r"x must be of shape \[any, any\], got \[0, 64\]"),
        (dict(x=randn(9, IN)), "x must be of batch 1 to 8, got batch 9"),
        (dict(x=randn(IN, 2).T), r"x must be contiguous, got strides \[1, 2\]"),
        (dict(x=randn(2, IN, dtype=torch.float64)), "x must be float32, bfloat16 or float16, got float64"),
        (dict(weight=randn(OUT, 63)), r"weight must be of shape \[any, 64\], got \[24, 63\]"),
        (dict(weight=torch.tensor(1.0)), r"weight must be of shape .*, got \[\]"),
        (dict(weight=randn(0, IN)), r"weight must be of shape \[any, 64\], got \[0, 64\]"),
        (dict(weight=randn(IN, OUT).T), "weight must be contiguous"),
        (dict(weight=randn(OUT, IN).half()), r"weight must be of the dtype of x \(float32\), got float16"),
        (dict(weight=randn(OUT, IN).to("meta")), "all tensors must be on one device, got cpu, meta"),
        (dict(bias=randn(OUT + 1)), r"bias must be of shape \[24\], got \[25\]"),
        (dict(bias=randn(2 * OUT)[::2]), "bias must be contiguous"),
        (dict(bias=randn(OUT).bfloat16()), r"bias must be of the dtype of x \(float32\), got bfloat16"),
        (dict(residual=randn(1, OUT)), r"residual must be of shape \[2, 24\], got \[1, 24\]"),
        (dict(residual=randn(OUT, 2).T), "residual must be contiguous"),
        (dict(residual=randn(2, OUT).half()), r"residual must be of the dtype of x \(float32\), got float16"),
        (dict(out=randn(2, IN)), r"out must be of shape \[2, 24\], got \[2, 64\]"),
        (dict(out=randn(OUT, 2).T), r"out must be contiguous, got strides \[1, 2\]"),
        (dict(out=randn(2, OUT).bfloat16()), r"out must be of the dtype of x \(float32\), got bfloat16"),
        (dict(out=torch.empty(2, OUT, device="meta")), "all tensors must be on one device, got cpu, meta"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=f"gemv: {message}"):
        pk.ops.gemv(**arguments() | changes)


@pytest.mark.parametrize("name", ["x", "weight", "bias", "residual"])
def test_out_overlaps_an_input(name):
    check_overlap_is_refused("gemv", arguments(), name, 2, OUT)
