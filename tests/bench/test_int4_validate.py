"""`bench.int4 --validate`: kernels that are right pass, and every planted fault is found and named."""

from functools import cache

import pytest
import torch
from torch import Tensor

import pykernels as pk
from bench.backends import int4
from bench.backends.int4 import Int4Kernel
from bench.int4 import validate
from bench.int4.trials import EXACT_SHAPE, NONZEROS, RANDOM_SHAPES, Trial, trials
from pykernels.quant import QuantizedWeight

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


class Right(Int4Kernel):
    """A product in float64 with the dequantised weight, rounded once. The planted kernels spoil `weight`."""

    name, description = "right", "a float64 product"
    dtypes = (torch.float16,)
    act_order = True

    def spoil(self, plain: QuantizedWeight) -> QuantizedWeight:
        return plain

    def prepare(self, weight):
        self.weight = self.spoil(weight.plain()).dequantize()
        return [self.weight]

    def run(self, x: Tensor) -> Tensor:
        return (x.double() @ self.weight.T).to(x.dtype)


class SwappedNibbles(Right):
    """Reads the two weights of a byte in the wrong order."""

    def spoil(self, plain):
        swapped = plain.q.unflatten(1, (-1, 2)).flip(2).flatten(1)
        return QuantizedWeight(swapped, plain.scales, plain.zeros, plain.group_size, plain.g_idx)


class ZeroPointOffByOne(Right):
    """Reads GPTQ v2 zero points as v1."""

    def spoil(self, plain):
        zeros = (plain.explicit_zeros() + 1).to(torch.uint8)
        return QuantizedWeight(plain.q, plain.scales, zeros, plain.group_size, plain.g_idx)


class NeighbouringScales(Right):
    """Takes the scale of the next group, and of the next row where a row has one group."""

    def spoil(self, plain):
        scales = plain.scales.roll(-1, 1 if plain.n_groups > 1 else 0)
        return QuantizedWeight(plain.q, scales, plain.zeros, plain.group_size, plain.g_idx)


class HalfSums(Right):
    """Adds up all of a row in float16, without saying so."""

    def prepare(self, weight):
        self.weight = weight.dequantize(torch.float16)
        return [self.weight]

    def run(self, x):
        total = torch.zeros(x.shape[0], self.weight.shape[0], dtype=torch.float16)
        for x_column, column in zip(x.T, self.weight.T, strict=True):
            total += x_column.unsqueeze(1) * column
        return total


class IgnoresZeroScale(Right):
    """Divides by the scale somewhere, and loses where that is 0."""

    def run(self, x):
        y = super().run(x)
        return torch.where((self.weight == 0).all(1), torch.nan, y).to(x.dtype)


class FirstCallOnly(Right):
    """Adds into its last result."""

    def run(self, x):
        self.last = super().run(x) + getattr(self, "last", 0)
        return self.last


class WritesX(Right):
    def run(self, x):
        y = super().run(x)
        x.mul_(2)
        return y


class WrongShape(Right):
    def run(self, x):
        return super().run(x)[:, :-1]


class WrongDtype(Right):
    def run(self, x):
        return super().run(x).float()


class LastRowMissing(Right):
    """Works in tiles of 8 rows, and forgets what is over."""

    def run(self, x):
        y = super().run(x)
        y[:, y.shape[1] // 8 * 8 :] = 0
        return y


class ScaleOfOneColumn(Right):
    """One column takes the scale of the group beside its own."""

    def prepare(self, weight):
        plain = weight.plain()
        self.weight, column = plain.dequantize(), plain.in_features // 3
        group = int(plain.explicit_g_idx()[column])
        offsets = plain.q[:, column].double() - plain.explicit_zeros()[:, group].double()
        self.weight[:, column] = offsets * plain.scales[:, (group + 1) % plain.n_groups].double()
        return [self.weight]


class ZeroPointOfOneRow(Right):
    """Off by one in row 64."""

    def spoil(self, plain):
        zeros = plain.explicit_zeros().clone()
        zeros[64:65] += 1
        return QuantizedWeight(plain.q, plain.scales, zeros, plain.group_size, plain.g_idx)


class NibblesOfOneWord(Right):
    """Two swapped in one word of the last row."""

    def spoil(self, plain):
        q = plain.q.clone()
        q[-1, 512:514] = q[-1, 512:514].flip(0)
        return QuantizedWeight(q, plain.scales, plain.zeros, plain.group_size, plain.g_idx)


class LastColumnMissing(Right):
    """Works in tiles of 128 columns, and forgets the last of what is over."""

    def prepare(self, weight):
        super().prepare(weight)
        if self.weight.shape[1] % 128:
            self.weight[:, -1] = 0
        return [self.weight]


class GroupSumsInHalf(Right):
    """Adds up a group in float16 before it multiplies by the scale."""

    def prepare(self, weight):
        self.plain = weight.plain()
        return super().prepare(weight)

    def run(self, x):
        offsets = self.plain.q.double() - self.plain.explicit_zeros().double().repeat_interleave(
            self.plain.group_size, 1
        )
        sums = torch.einsum(
            "bgk,ngk->bng", *(part.double().unflatten(1, (self.plain.n_groups, -1)) for part in (x, offsets))
        ).half()
        return (sums.double() * self.plain.scales.double()).sum(-1).to(x.dtype)


class ReadsPastX(Right):
    """Multiplies the element behind x by a weight of 0."""

    def run(self, x):
        past = torch.as_strided(x, (1,), (1,), x.storage_offset() + x.numel())
        return super().run(x) + 0 * past


class WritesBesideX(Right):
    def run(self, x):
        y = super().run(x)
        torch.as_strided(x, (1,), (1,), x.storage_offset() - 1).zero_()
        return y


class WrongAtBatch5(Right):
    def run(self, x):
        y = super().run(x)
        if x.shape[0] == 5:
            y[2, 5] = torch.nan
        return y


class AlignedX(Right):
    """Loads x by 16 bytes, and says that it takes any address."""

    alignment = 2

    def run(self, x):
        return super().run(x) * (x.data_ptr() % 16 == 0)


class MoreAlignedX(Right):
    """Loads x by 32 bytes."""

    def run(self, x):
        return super().run(x) * (x.data_ptr() % 32 == 0)


class RowsPastAGrid(Right):
    """A block a row, in a dimension of the grid that ends at 65,535."""

    def run(self, x):
        y = super().run(x)
        y[:, 65535:] = 0
        return y


class RowsPastSharedMemory(Right):
    """Keeps x in 32 KB, and no more of it."""

    def prepare(self, weight):
        super().prepare(weight)
        self.weight[:, 16384:] = 0
        return [self.weight]


class ZeroPointOf0(Right):
    """Reads GPTQ v1 nibble by nibble: 0 is stored as 15 and read as 16."""

    def spoil(self, plain):
        zeros = plain.explicit_zeros().clone()
        zeros[zeros == 0] = 16
        return QuantizedWeight(plain.q, plain.scales, zeros, plain.group_size, plain.g_idx)


class UnsignedScales(Right):
    def spoil(self, plain):
        return QuantizedWeight(plain.q, plain.scales.abs(), plain.zeros, plain.group_size, plain.g_idx)


class Raises(Right):
    def run(self, x):
        raise RuntimeError("an illegal memory access was encountered\nand more")


class RefusesAll(Right):
    group_sizes = (7,)


def found(kernel, groups=(128,), symmetries=(True, False)):
    return list(validate.validate(kernel, CPU, kernel.dtypes, groups, symmetries))


@cache
def made(groups: tuple[int, ...], symmetries: tuple[bool, ...]) -> dict[str, list[Trial]]:
    """The trials of a validation in float16, by case, for all kernels: they get copies."""
    by_case: dict[str, list[Trial]] = {}
    for trial in trials(torch.float16, groups, symmetries, 8):
        by_case.setdefault(trial.case, []).append(trial)
    return by_case


def found_in(cases, kernel, groups=(128,), symmetries=(True, False)):
    """What a validation would find in those cases."""
    return [
        validate.run_trial(kernel, trial, CPU) for case in sorted(cases) for trial in made(groups, symmetries)[case]
    ]


@cache
def right_in(case: str) -> bool:
    return validate.right(found_in([case], Right))


def test_our_own_kernel_is_right():
    native = int4.registry()["native"]
    results = found(native, (32, -1))
    assert not validate.failed(results) and validate.right(results)
    assert {one.status for one in results} == {"ok"}
    assert {one.case for one in results} == {
        "random", "one-hot", "powers of two", "all 0", "all 15", "zero scale", "zero points of 0", "long sum",
        "large inputs", "many rows", "ragged", "act-order",
    }  # fmt: skip
    random = [one for one in results if one.case == "random"]
    assert all(one.layout_error == 0 and 0.01 < one.format_error < 0.6 for one in random)
    assert all(one.max_rel_error < one.format_error / 10 for one in random)
    assert all(one.max_rel_error == 0 for one in results if one.case in ("powers of two", "all 0", "all 15"))


def test_torch_s_kernel_is_right_and_says_what_it_refuses():
    results = found(int4.registry()["tinygemm"], (64,))
    assert validate.right(results)
    assert {one.case for one in results if one.status == "refused"} == {"ragged", "act-order"}


def test_a_right_kernel_passes():
    results = found(Right)
    assert validate.right(results) and "right in all of" in validate.verdict("right", results)


@pytest.mark.parametrize(
    ("kernel", "cases", "words"),
    [
        (SwappedNibbles, {"random", "one-hot", "powers of two"}, "read back by a one-hot input"),
        (ZeroPointOffByOne, {"random", "one-hot", "all 0", "all 15"}, "read back by a one-hot input"),
        (NeighbouringScales, {"random", "one-hot", "powers of two", "zero scale"}, "read back by a one-hot input"),
        (HalfSums, {"long sum"}, "beyond the tolerance"),
        (IgnoresZeroScale, {"zero scale"}, "must be 0, got nan"),
        (FirstCallOnly, {"random", "one-hot"}, "the second call: "),
        (WritesX, {"random", "all 0"}, "run must leave x, and what lies beside it, as it is"),
        (WrongShape, {"random"}, "run must return torch.float16 [1, 128], got torch.float16 [1, 127]"),
        (WrongDtype, {"random"}, "run must return torch.float16 [1, 128], got torch.float32 [1, 128]"),
        (LastRowMissing, {"ragged"}, "beyond the tolerance"),
        (Raises, {"random", "one-hot"}, "RuntimeError: an illegal memory access was encountered"),
    ],
)
def test_a_planted_fault_is_found(kernel, cases, words):
    results = found_in(cases, kernel)
    failed = validate.failed(results)
    assert {one.case for one in failed} == cases and not validate.right(results)
    assert any(words in one.reason for one in failed)
    assert all("\n" not in one.reason for one in failed)
    verdict = validate.verdict("it", results)
    assert f"WRONG in {len(failed)} of" in verdict
    assert (f"trials, {len(failed)} of which raised" in verdict) == (kernel is Raises)


@pytest.mark.parametrize(
    ("kernel", "case", "words"),
    [
        (ScaleOfOneColumn, "one-hot", "weight[0, 341], read back by a one-hot input"),
        (ZeroPointOfOneRow, "one-hot", "weight[64, 0], read back by a one-hot input"),
        (NibblesOfOneWord, "one-hot", "weight[127, 512], read back by a one-hot input"),
        (LastColumnMissing, "ragged", "beyond the tolerance"),
        (GroupSumsInHalf, "large inputs", "worst at [0, 0]: got inf, expected 4"),
        (ReadsPastX, "random", "worst at [0, 0]: got nan"),
        (WritesBesideX, "random", "run must leave x, and what lies beside it, as it is"),
        (WrongAtBatch5, "random", "worst at [2, 5]: got nan"),
        (AlignedX, "one-hot", "the second call, x at a multiple of 2 bytes: weight[0, 0]"),
        (MoreAlignedX, "one-hot", "weight[0, 0], read back by a one-hot input"),
        (RowsPastAGrid, "many rows", "beyond the tolerance"),
        (RowsPastSharedMemory, "long sum", "beyond the tolerance"),
        (RowsPastSharedMemory, "random", "beyond the tolerance"),
        (ZeroPointOf0, "zero points of 0", "out[0, 0] must be"),
        (UnsignedScales, "powers of two", "out[0, 0] must be"),
    ],
)
def test_a_small_fault_is_found_by_the_trial_for_it_and_its_place_named(kernel, case, words):
    failed = validate.failed(found_in([case], kernel))
    assert failed and any(words in one.reason for one in failed), [one.reason for one in failed]
    assert right_in(case)


def test_where_x_lies():
    class Looks(Right):
        seen: list[int] = []

        def run(self, x):
            self.seen.append(x.data_ptr() % 64)
            return super().run(x)

    class TakesAny(Looks):
        alignment, seen = 1, []

    trial = next(iter(trials(torch.float16, (128,), (True,), 1)))
    for kernel in (Looks, TakesAny):
        assert validate.run_trial(kernel, trial, CPU).status == "ok"
    assert Looks.seen == [16, 16] and TakesAny.seen == [16, 2]


@pytest.mark.parametrize("fault", [SwappedNibbles, ZeroPointOffByOne, NeighbouringScales])
@pytest.mark.parametrize("group", [32, -1])
def test_a_fault_in_the_layout_is_found_at_every_group(fault, group):
    assert validate.failed(found_in(["one-hot"], fault, (group,)))


def test_a_kernel_that_says_that_it_rounds_is_allowed_to():
    class Rounds(Right):
        """Multiplies q and zero by the scale apart, each rounded."""

        rounds_weights = True

        def prepare(self, weight):
            plain = weight.plain()
            scales, zeros = (
                part.double().repeat_interleave(plain.group_size, 1) for part in (plain.scales, plain.explicit_zeros())
            )
            rounded = [(part * scales).to(torch.float16).double() for part in (plain.q.double(), zeros)]
            self.weight = rounded[0] - rounded[1]
            return [self.weight]

        def multiplies_by(self, weight):
            self.prepare(weight)
            return self.weight

    class Silent(Rounds):
        rounds_weights = False

        def multiplies_by(self, weight):
            return weight.dequantize()

    for kernel, status in ((Rounds, "ok"), (Silent, "wrong")):
        assert [one.status for one in found_in(["one-hot"], kernel, symmetries=(True,))] == [status]


def test_half_sums_are_allowed_where_they_are_admitted():
    trial = next(t for t in trials(torch.float16, (128,), (True,), 1) if t.words.startswith("256x3584"))

    class Admits(HalfSums):
        half_sums = True

    assert validate.run_trial(Admits, trial, CPU).status == "ok"
    assert validate.run_trial(HalfSums, trial, CPU).status == "wrong"


def test_nothing_validated_is_not_right():
    results = found(RefusesAll)
    assert {one.status for one in results} == {"refused"} and not validate.right(results)
    assert "NOTHING VALIDATED: takes groups of 7, not 128" in validate.verdict("it", results)
    assert "NOTHING VALIDATED: it takes none of the dtypes" in validate.verdict("it", [])


def test_exact_trials_fit_the_dtype():
    """Every result of an exact trial has a value that bf16 can hold."""
    weight = next(t for t in trials(torch.bfloat16, (32,), (False,), 8) if t.case == "powers of two")
    for x in weight.inputs:
        assert int(x.count_nonzero()) == NONZEROS * x.shape[0]
        expected = pk.reference.int4_gemv(x, weight.weight)
        assert torch.equal(expected.bfloat16().double(), expected) and bool((expected != 0).any())


def test_trials_are_of_every_shape_and_the_same_again():
    first, second = (list(trials(torch.bfloat16, (64,), (True,), 8, seed=5)) for _ in range(2))
    assert {(t.weight.out_features, t.weight.in_features) for t in first} >= {*RANDOM_SHAPES, EXACT_SHAPE}
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.weight.packed, b.weight.packed) and all(map(torch.equal, a.inputs, b.inputs))


def test_a_ragged_result_is_no_sum_that_cancels():
    for trial in trials(torch.bfloat16, (128,), (True,), 1, seed=3):
        if trial.case == "ragged":
            assert float(pk.reference.int4_gemv(trial.inputs[0], trial.weight).abs().max()) > 1
