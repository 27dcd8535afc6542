"""--shard=i/n: every part in one share, the same everywhere, even by cost."""

import pytest
from inputs.command_line import assert_refused, run_here

from bench.attention.settings import Settings as AttentionSettings
from bench.core.errors import UsageError
from bench.core.shards import Shard, parse
from bench.int4 import groups
from bench.int4.settings import Settings as Int4Settings
from bench.rate.settings import Settings as RateSettings
from bench.sweep import Settings as SweepSettings


@pytest.mark.parametrize("count", [1, 2, 3, 7, 44])
def test_shares_are_a_partition_and_even_by_cost(count):
    costs = [1 + 37 * i % 100 for i in range(44)]
    shares = [Shard(index, count).of(range(44), lambda i: costs[i]) for index in range(1, count + 1)]
    assert sorted(i for share in shares for i in share) == list(range(44))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(costs[i] for i in share) for share in shares]
    # The best division is no shorter than the mean, nor than one part; Graham's bound is 4/3 of the best.
    assert max(loads) <= 4 / 3 * max(sum(costs) / count, max(costs))


@pytest.mark.parametrize("text", ["1", "1/0", "-1/2", "1/2/3", " 1/2", "1/100000"])
def test_no_share(text):
    with pytest.raises(UsageError, match="must be i/n with i in 1..n, such as 2/4"):
        parse(text)


@pytest.mark.parametrize("text", ["0/3", "4/3", "a/b"])
@pytest.mark.parametrize(
    "driver",
    [
        ["bench.sweep", "--model=tiny", "--out=."], ["bench.ab", "--keep=."], ["bench.attention"],
        ["bench.int4", "--model=tiny"], ["bench.rate", "--model=tiny"],
    ],
    ids=lambda driver: driver[0],
)  # fmt: skip
def test_every_driver_refuses_it(capsys, monkeypatch, tmp_path, driver, text):
    monkeypatch.chdir(tmp_path)
    result = run_here(capsys, *driver, "--device=cpu", f"--shard={text}")
    assert_refused(result, f"--shard={text}", "i/n with i in 1..n")


@pytest.mark.parametrize(
    ("driver", "parts"),
    [
        (["bench.sweep", "--model=tiny", "--ctx=8,16", "--batch=1", "--out=."], 2),
        (["bench.ab", "--keep=.", "--model=tiny", "--ctx=8", "--sessions=3"], 3),
        (["bench.attention", "--model=tiny", "--ctx=8", "--batch=1"], 1),
        (["bench.rate", "--model=tiny", "--hz=0,10"], 2),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_more_shares_than_parts(capsys, monkeypatch, tmp_path, driver, parts):
    monkeypatch.chdir(tmp_path)
    result = run_here(capsys, *driver, "--device=cpu", "--shard=1/9")
    assert_refused(result, "--shard=1/9", f"of {parts} shares at most")


def together(flags: list[str], of, count: int = 2) -> list:
    return [part for index in range(1, count + 1) for part in of([*flags, f"--shard={index}/{count}"])]


def attention_shapes(flags: list[str]) -> list[str]:
    return [cell.shape for cell in AttentionSettings.from_flags(flags).cells]


@pytest.mark.parametrize(
    ("flags", "of"),
    [
        (["--out=.", "--model=all"], lambda flags: [cell.name for cell in SweepSettings.from_flags(flags).cells()]),
        (["--model=all", "--ctx=8,64"], attention_shapes),
        (["--hz=0,10,30", "--load=none,cpu:2"], lambda flags: RateSettings.from_flags(flags).points),
        (["--model=all"], lambda flags: groups.own_shapes(Int4Settings.from_flags(flags))),
        (["--model=all"], lambda flags: [spec.name for spec in groups.own_layers(Int4Settings.from_flags(flags))]),
    ],
    ids=["sweep", "attention", "rate", "int4 shapes", "int4 layers"],
)  # fmt: skip
def test_the_shares_of_a_driver_make_its_whole(flags, of):
    whole, halves = of([*flags, "--device=cpu"]), together([*flags, "--device=cpu"], of)
    key = str
    assert sorted(halves, key=key) == sorted(whole, key=key) and len(whole) > 2
    assert together([*flags, "--device=cpu"], of) == halves, "not the same twice"


def test_words():
    assert parse("2/3") == Shard(2, 3) and parse("") == Shard() and parse("2/3").suffix == "-2of3"
    with pytest.raises(UsageError, match="of 2 shares at most"):
        parse("1/3").check(2)
