"""The covering sets of cases: every pair is there, all combinations of what chooses the compiled kernel, no more."""

import itertools

import pytest
from inputs import covering
from inputs.covering import pairs_covered, pairwise


@pytest.mark.parametrize("sizes", [(1,), (5,), (1, 7), (4, 3), (9, 4, 3, 3, 2), (2,) * 9, (36, 14, 2)], ids=str)
def test_every_pair_is_covered(sizes):
    cases = pairs_covered(sizes)
    assert len(set(cases)) == len(cases) and cases == pairs_covered(sizes)
    for (a, size_a), (b, size_b) in itertools.combinations(enumerate(sizes), 2):
        assert {(case[a], case[b]) for case in cases} == set(itertools.product(range(size_a), range(size_b)))
    largest = sorted(sizes)[-2:]
    assert len(cases) <= 2.5 * (largest[0] * largest[-1] if len(sizes) > 1 else sizes[0])


def cases_of(every_case, monkeypatch):
    monkeypatch.setattr(covering, "EVERY_CASE", every_case)

    @pairwise
    @pytest.mark.parametrize(("n", "name"), [(1, "one"), pytest.param(2, "two", id="second")])
    @pytest.mark.parametrize("batch", [1, 3, 8], ids="batch{}".format)
    @pytest.mark.parametrize("arch", [80, 90])
    @pytest.mark.parametrize("dtype", ["bf16", "fp16"])
    def test(dtype, arch, batch, n, name):
        pass

    return [mark.args for mark in test.pytestmark]


def test_compiled_kernels_meet_every_value(monkeypatch):
    [(names, cases)] = cases_of(False, monkeypatch)
    found = [dict(zip(names, case.values, strict=True)) for case in cases]
    assert {(case["arch"], case["dtype"], case["batch"]) for case in found} == set(
        itertools.product((80, 90), ("bf16", "fp16"), (1, 3, 8))
    )
    assert {(case["batch"], case["n"], case["name"]) for case in found} == {
        (batch, *n) for batch in (1, 3, 8) for n in ((1, "one"), (2, "two"))
    }
    assert len(found) == 12
    assert "batch1" in cases[0].id and any("second" in case.id for case in cases)


def test_every_case_on_demand(monkeypatch):
    assert [names for names, *_ in cases_of(True, monkeypatch)] == ["dtype", "arch", "batch", ("n", "name")]
