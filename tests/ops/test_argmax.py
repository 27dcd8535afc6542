"""argmax against the reference and torch.argmax, how it steps a sequence on, and what it refuses."""

import pytest
import torch
from inputs.covering import pairwise
from inputs.helpers import DTYPES, RAGGED, isa, randn

import pykernels as pk

VOCAB = 24


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def arguments(batch: int = 2) -> dict:
    return dict(
        logits=randn(batch, VOCAB), position=int32(*range(batch)), kv_len=int32(*range(1, batch + 1)), max_len=9
    )


@pairwise
@pytest.mark.parametrize("vocab", [1, 7, 17, *RAGGED])
@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa_name", pk.runtime.isas_supported())
def test_equals_the_reference(isa_name, dtype, batch, vocab):
    logits = randn(batch, vocab, dtype=dtype)
    with isa(isa_name):
        token = pk.ops.argmax(logits)
    assert torch.equal(token, pk.reference.argmax(logits))
    assert torch.equal(logits.gather(1, token[:, None]), logits.amax(1, keepdim=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1.0, 3.0, 3.0, 2.0), 1),
        ((-2.0, -1.0, -1.0, -5.0), 1),
        ((0.0, float("inf"), float("nan"), 9.0), 2),
        ((float("nan"), 1.0, float("nan"), 9.0), 0),
        ((-float("inf"),) * 4, 0),
        ((0.0, -0.0, 0.0, -0.0), 0),
    ],
)
def test_ties_and_what_is_not_finite(values, expected, dtype):
    logits = torch.tensor([values], dtype=dtype)
    assert pk.ops.argmax(logits).item() == expected == pk.reference.argmax(logits).item() == logits.argmax().item()


def test_the_sequences_step_on_and_stop_at_the_last_slot():
    given = arguments(3) | dict(position=int32(0, 7, 8), kv_len=int32(1, 8, 9))
    out = torch.full((3,), -1)
    assert pk.ops.argmax(**given, out=out) is out
    assert torch.equal(out, given["logits"].argmax(-1))
    assert given["position"].tolist() == [1, 8, 8] and given["kv_len"].tolist() == [2, 9, 9]
    pk.ops.argmax(**given, out=out)
    assert given["position"].tolist() == [2, 8, 8] and given["kv_len"].tolist() == [3, 9, 9]


def test_a_program_steps_on_every_time_it_runs():
    given, out = arguments(), torch.zeros(2, dtype=torch.int64)
    with pk.runtime.record() as program:
        pk.ops.argmax(**given, out=out)
    assert program.ops == ["argmax"] and given["position"].tolist() == [0, 1], "recording runs nothing"
    for _ in range(3):
        program.run()
    assert given["position"].tolist() == [3, 4] and given["kv_len"].tolist() == [4, 5]


def test_opcheck():
    given = arguments()
    torch.library.opcheck(torch.ops.pykernels.argmax.default, (*given.values(), torch.zeros(2, dtype=torch.int64)))


def test_compiled_equals_eager():
    function = lambda logits: pk.ops.argmax(logits * 2) + 1  # noqa: E731
    logits = randn(2, VOCAB)
    assert torch.equal(torch.compile(function, fullgraph=True, backend="aot_eager")(logits), function(logits))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(logits=randn(9, VOCAB)), "logits must be of batch 1 to 8, got batch 9"),
        (dict(logits=randn(VOCAB)), r"logits must be of shape .*, got \[24\]"),
        (dict(logits=randn(2, VOCAB).double()), "logits must be float32, bfloat16 or float16, got float64"),
        (dict(logits=randn(VOCAB, 2).T), "logits must be contiguous"),
        (dict(position=None), "position and kv_len must be given together or not at all"),
        (dict(kv_len=None), "position and kv_len must be given together or not at all"),
        (dict(position=int32(0)), r"position must be of shape \[2\], got \[1\]"),
        (dict(position=torch.tensor([0, 1])), "position must be int32, got int64"),
        (dict(position=int32(0, 9)), r"position must be in \[0, 8\] \(the slots of the cache\), got 9 for sequence 1"),
        (dict(kv_len=torch.tensor([0, 1])), "kv_len must be int32, got int64"),
        (dict(max_len=0), "max_len must be in 1..16777216, got 0"),
        (dict(out=torch.zeros(3, dtype=torch.int64)), r"out must be of shape \[2\], got \[3\]"),
        (dict(out=torch.zeros(2)), "out must be int64, got float32"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=f"argmax: {message}"):
        pk.ops.argmax(**arguments() | changes)


def test_position_and_kv_len_are_memory_of_their_own():
    shared = int32(0, 1)
    with pytest.raises(ValueError, match="position must be memory of its own, got memory that overlaps kv_len"):
        pk.ops.argmax(**arguments() | dict(position=shared, kv_len=shared))
