"""embedding against the reference, and what it refuses."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import DTYPES, RAGGED, check_op, check_overlap_is_refused, isa, randn, threads
from torch import Tensor

import pykernels as pk

VOCAB, HIDDEN = 10, 24


def tokens(*values: int) -> Tensor:
    return torch.tensor(values)


def arguments(
    *values: int, vocab: int = VOCAB, hidden: int = HIDDEN, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    return dict(token=tokens(*(values or (3, 9))), table=randn(vocab, hidden, dtype=dtype))


def check(given: dict) -> None:
    check_op(lambda out: pk.ops.embedding(**given, out=out), pk.reference.embedding(**given), given["table"].dtype)
    assert torch.equal(pk.ops.embedding(**given), given["table"][given["token"]])


@pairwise
@pytest.mark.parametrize("hidden", [1, 7, 17, *RAGGED])
@pytest.mark.parametrize("values", [(3,), (0, 9, 0), (9, 8, 7, 7, 3, 2, 1, 0)], ids=len)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_equals_the_reference(isa_name, dtype, values, hidden):
    with isa(isa_name):
        check(arguments(*values, hidden=hidden, dtype=dtype))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads(dtype, count):
    with threads(count):
        check(arguments(0, 499, 250, vocab=500, hidden=1000, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_scaled(isa_name, dtype):
    given = arguments(dtype=dtype) | dict(scale=6.5)
    with isa(isa_name):
        check_op(lambda out: pk.ops.embedding(**given, out=out), pk.reference.embedding(**given), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_what_is_not_finite(dtype):
    table = torch.tensor([[float("nan"), float("inf"), -float("inf"), -0.0]], dtype=dtype)
    out = pk.ops.embedding(tokens(0), table)
    assert torch.equal(out.view(torch.uint8), table.view(torch.uint8))


def test_opcheck():
    given = arguments()
    torch.library.opcheck(torch.ops.pykernels.embedding.default, (*given.values(), torch.zeros(2, HIDDEN)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_equals_eager(dtype):
    def function(token, table):
        return pk.ops.embedding(token + 1, table * 2) + 1

    given = arguments(3, 8, dtype=dtype)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**given), function(**given))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(token=tokens(*range(9))), "token must be of batch 1 to 8, got batch 9"),
        (dict(token=torch.tensor(3)), r"token must be of shape .*, got \[\]"),
        (dict(token=torch.tensor([[3, 9]])), r"token must be of shape \[any\], got \[1, 2\]"),
        (dict(token=torch.empty(0, dtype=torch.int64)), r"token must be of shape \[any\], got \[0\]"),
        (dict(token=torch.tensor([3, 9], dtype=torch.int32)), "token must be int64, got int32"),
        (dict(token=tokens(3, 0, 9, 0)[::2]), "token must be contiguous"),
        (dict(token=tokens(3, VOCAB)), r"token must be in \[0, 9\] \(the rows of table\), got 10 for sequence 1"),
        (dict(token=tokens(-1, 9)), r"token must be in \[0, 9\] \(the rows of table\), got -1 for sequence 0"),
        (dict(token=tokens(3, 2**32)), r"token must be in \[0, 9\] .*, got 4294967296 for sequence 1"),
        (dict(table=randn(HIDDEN)), r"table must be of shape .*, got \[24\]"),
        (dict(table=randn(HIDDEN, VOCAB).T), r"table must be contiguous, got strides \[1, 10\]"),
        (dict(table=randn(VOCAB, HIDDEN).double()), "table must be float32, bfloat16 or float16, got float64"),
        (dict(table=torch.empty(VOCAB, HIDDEN, device="meta")), "all tensors must be on one device, got cpu, meta"),
        (dict(out=randn(1, HIDDEN)), r"out must be of shape \[2, 24\], got \[1, 24\]"),
        (dict(out=randn(HIDDEN, 2).T), r"out must be contiguous, got strides \[1, 2\]"),
        (dict(out=randn(2, HIDDEN).half()), r"out must be of the dtype of table \(float32\), got float16"),
        (dict(out=torch.empty(2, HIDDEN, device="meta")), "all tensors must be on one device, got cpu, meta"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=f"embedding: {message}"):
        pk.ops.embedding(**arguments() | changes)


@pytest.mark.parametrize("name", ["token", "table"])
def test_out_overlaps_an_input(name):
    check_overlap_is_refused("embedding", arguments(), name, 2, HIDDEN)
