"""bench.compare: arms are matched, effects found, noise left alone, differences of the machine listed first."""

import json
import math
from copy import deepcopy

import numpy as np
import pytest
from inputs.command_line import assert_refused, flat, run_here
from inputs.documents import whole
from inputs.rate_documents import cell, rate_document
from scipy import stats

from bench import compare
from bench.study import runs


def samples(seed: int, centre: float = 100.0, n: int = 30, noise: float = 0.02) -> list[float]:
    return (centre * np.exp(noise * np.random.default_rng(seed).standard_normal(n))).tolist()


def arm(mode: str, values: list[float]) -> dict:
    return dict(backend="native", mode=mode, fusion="none", status="ok", samples_us=values)


def document(seed: int = 0, **centres: float) -> dict:
    arms = [arm(mode, samples(seed + i, centre)) for i, (mode, centre) in enumerate(centres.items())]
    environment = dict(cpu=dict(model="A CPU", mhz_now=1000 + seed), torch=dict(version="2.13.0"))
    return whole(dict(kind="layer", ctx=64, model=dict(name="tiny"), environment=environment, arms=arms))


@pytest.fixture
def files(tmp_path):
    def write(a: dict, b: dict) -> list[str]:
        paths = [tmp_path / "a.json", tmp_path / "b.json"]
        for path, content in zip(paths, (a, b), strict=True):
            path.write_text(json.dumps(content))
        return [str(path) for path in paths]

    return write


def verdicts(a: dict, b: dict, threshold: float = 0.03, correction: str = "holm") -> dict[str, str]:
    return {
        row.key.split()[-1]: row.verdict for row in compare.compare([a], [b], 0.05, threshold, correction, shift=0.001)
    }


def test_verdicts():
    a = document(0, eager=100, native=100, dispatch=100)
    b = document(50, eager=120, native=80, dispatch=100)
    assert verdicts(a, b) == {"eager": "SLOWER", "native": "FASTER", "dispatch": "SAME"}


def test_noise_is_unclear():
    a, b = document(0, native=100), document(1, native=100)
    for side, seed in ((a, 2), (b, 3)):
        side["arms"][0]["samples_us"] = samples(seed, noise=0.5)
    assert verdicts(a, b) == {"native": "UNCLEAR"}


def test_a_run_against_itself_raises_no_alarm(monkeypatch):
    true, found = runs.compare, {}

    def once(a, b, shift):  # each correction is of the same p values
        key = a[0].tobytes() + b[0].tobytes()
        if key not in found:
            found[key] = true(a, b, shift)
        return found[key]

    monkeypatch.setattr(runs, "compare", once)
    alarms = dict.fromkeys(compare.CORRECTIONS, 0)
    for seed in range(100):
        a, b = (document(1000 * side + 20 * seed, **{f"m{i}": 100 for i in range(8)}) for side in (1, 200))
        for correction in compare.CORRECTIONS:
            verdict = verdicts(a, b, correction=correction)
            alarms[correction] += any(v in ("SLOWER", "FASTER") for v in verdict.values())
    assert max(alarms.values()) <= 10, "5 are allowed for on average"


def test_p_values_and_corrections():
    a, b = document(0, eager=100, native=100), document(9, eager=103, native=101)
    raw = [
        runs.compare([np.array(x["samples_us"])], [np.array(y["samples_us"])]).p
        for x, y in zip(a["arms"], b["arms"], strict=True)
    ]
    rows = compare.compare([a], [b], 0.05, 0.03, "bh")
    np.testing.assert_allclose([row.p for row in rows], stats.false_discovery_control(raw))
    np.testing.assert_allclose(compare.holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(compare.holm(np.array([0.9, 0.8])), [1.0, 1.0])
    assert len(compare.corrected(np.array([]), "holm")) == 0


def test_sides_of_several_sessions(capsys, tmp_path):
    """Two per cent that one session a side cannot decide, and folders of ten can."""
    for side, centre in (("before", 100.0), ("after", 102.0)):
        (tmp_path / side).mkdir()
        for session in range(10):
            content = document(100 * session + int(centre), native=centre * (1 + 0.002 * (session % 3)))
            (tmp_path / side / f"{session}.json").write_text(json.dumps(content))
    one = [str(tmp_path / side / "0.json") for side in ("before", "after")]
    alone = run_here(capsys, "bench.compare", *one, "--threshold=0.01")
    assert alone.status == 0 and "UNCLEAR" in alone.out
    assert "one session on a side: no difference below 3.0% can be told" in flat(alone.out)
    together = run_here(
        capsys, "bench.compare", *(str(tmp_path / side) for side in ("before", "after")), "--threshold=0.01"
    )
    assert together.status == 1 and "SLOWER" in together.out and "one session on a side" not in together.out
    three = ",".join(str(tmp_path / "before" / f"{session}.json") for session in range(3))
    assert run_here(capsys, "bench.compare", three, three).status == 0


def test_few_samples_of_a_large_difference(capsys, files):
    """Three samples, 50% slower."""
    a, b = (
        whole({**document(0), "arms": [arm("eager", samples(seed, centre, 3))]})
        for seed, centre in ((0, 100), (1, 150))
    )
    assert run_here(capsys, "bench.compare", *files(a, b)).status == 1


def test_doubts_are_repeated(capsys, files):
    a, b = document(0, eager=100), document(1, eager=100)
    a["environment"]["cpu"] |= dict(load_average_1min=9.0, cpus_usable=2)
    b |= dict(throttled_rounds=[3, 4], throttled_left_out=True, steps=30)
    b["arms"][0]["samples_us"] = np.linspace(100, 110, 30).tolist()
    result = run_here(capsys, "bench.compare", *files(a, b))
    assert "A: BUSY: load average 9.0 on 2 CPUs" in result.out
    assert "B: throttled: 2 of 30 rounds" in result.out
    assert "B: drifting over their rounds: native none eager +" in result.out


def test_folders_that_are_no_side(capsys, tmp_path, files):
    a = document(0, eager=100)
    paths = files(a, a | {"ctx": 128})
    (tmp_path / "empty").mkdir()
    assert_refused(run_here(capsys, "bench.compare", str(tmp_path / "empty"), paths[0]), "folder without documents")
    assert_refused(
        run_here(capsys, "bench.compare", str(tmp_path), paths[0]), "is of another workload than", "ctx 64 and 128"
    )


def test_series_of_every_kind():
    layer = document(0, eager=1)
    assert list(compare.series(layer)) == ["native none eager"]
    both = dict(kind="ab", sessions=[dict(session=i, a=dict(arm="a", samples_us=[1.0 + i])) for i in range(2)])
    (name,), (found,) = compare.series(both), compare.series(both).values()
    assert name == "a" and [samples.tolist() for samples in found] == [[1.0], [2.0]]
    op = dict(
        kind="op", ops=[dict(backend="native", mode="eager", op="gemv", label="q", shape="1x8", samples_us=[1.0])]
    )
    assert list(compare.series(op)) == ["native eager gemv q 1x8"]
    cell = dict(arch="qwen", step_times_ms=[1.5, 2.5])
    np.testing.assert_array_equal(compare.series(cell)["step"], [[1500.0, 2500.0]])
    step = dict(arms=[arm("eager", [1.0]) | {"paper": {"step_times_ms": [0.001]}}])
    assert list(compare.series(step)) == ["native none eager"]
    twice = dict(arms=[arm("eager", [1.0]), arm("eager", [2.0])])
    assert list(compare.series(twice)) == ["native none eager", "native none eager #2"]
    assert compare.series(dict(kind="doctor", samples_us=[])) == {}


def test_differences_come_first_and_fleeting_ones_not_at_all(capsys, files):
    a, b = document(0, eager=100), document(40, eager=100)
    b["environment"]["torch"]["version"] = "2.14.0"
    b["ctx"] = 128
    result = run_here(capsys, "bench.compare", *files(a, b), "--across")
    lines = result.out.splitlines()
    assert lines[:2] == ["differs: ctx: 64 | 128", "differs: environment.torch.version: 2.13.0 | 2.14.0"]
    assert "mhz_now" not in result.out


def test_exit_status(capsys, files, tmp_path):
    a = document(0, eager=100, native=100)
    slower = files(a, document(50, eager=105, native=100))
    output = tmp_path / "compare.json"
    result = run_here(capsys, "bench.compare", *slower, "--threshold=0.02", "--shift=0.001", f"--json={output}")
    assert result.status == 1 and "slower by more than 2%: native none eager" in flat(result.out)
    written = json.loads(output.read_text())
    assert written["kind"] == "compare" and written["slower_past_threshold"] == ["native none eager"]
    assert run_here(capsys, "bench.compare", *slower, "--threshold=0.2", "--shift=0.001").status == 0
    assert run_here(capsys, "bench.compare", *slower[::-1], "--threshold=0.02", "--shift=0.001").status == 0


def test_arms_of_one_side(capsys, files):
    result = run_here(capsys, "bench.compare", *files(document(0, eager=1, native=1), document(0, eager=1, pybind=1)))
    assert "only in A: native none native" in result.out and "only in B: native none pybind" in result.out


def test_what_is_refused(capsys, files, tmp_path):
    a = document(0, eager=1)
    empty = deepcopy(a) | {"arms": []}
    assert_refused(run_here(capsys, "bench.compare", *files(a, empty)), "b.json", "no samples")
    assert_refused(run_here(capsys, "bench.compare", *files(a, document(0, native=1))), "no arm in common")
    for bad, words in ((0.0, "above 0, got 0.0"), (-1.0, "above 0, got -1.0"), (math.inf, "Infinity is no JSON")):
        spoilt = deepcopy(a)
        spoilt["arms"][0]["samples_us"][3] = bad
        assert_refused(run_here(capsys, "bench.compare", *files(spoilt, a)), "a.json", words)
    spoilt["arms"][0]["samples_us"][3] = math.nan
    assert_refused(run_here(capsys, "bench.compare", *files(a, spoilt)), "b.json", "NaN is no JSON")
    spoilt["arms"][0]["samples_us"] = [True] * 30
    assert_refused(run_here(capsys, "bench.compare", *files(a, spoilt)), "b.json", "carries no samples to compare")
    paths = files(a, a)
    assert_refused(run_here(capsys, "bench.compare", paths[0], str(tmp_path / "none.json")), "none.json")
    for flag in ("--threshold=-1", "--alpha=1", "--correction=none", "--shift=-1"):
        assert_refused(run_here(capsys, "bench.compare", *paths, flag), flag)


def test_cells_of_a_rate_are_told_apart_and_their_tails_compared(capsys, files):
    """The same median; of the second 3% of the steps are ten times as long: p99 says so, p90 does not."""
    cells = [cell(1, 0, 3000), cell(2, 30, 4000), cell(3, 30, 4100, load="cpu:4")]
    a, b = rate_document(cells), rate_document([cell(11, 0, 3000), cell(12, 30, 4000, slow=0.03), cells[2]])
    assert list(compare.series(a)) == [
        f"native block graph {where}" for where in ("back to back", "30 Hz", "30 Hz cpu:4")
    ]  # fmt: skip
    found = {(one.key.removeprefix("native/block:graph "), one.quantile): one for one in compare.tails([a], [b])}
    assert {quantile for _, quantile in found} == {"p50", "p90", "p99"}, "500 steps are too few for p99.9"
    assert found["30 Hz", "p99"].verdict == "SLOWER" and found["30 Hz", "p99"].ratio > 5
    assert {key for key, one in found.items() if one.verdict != "UNCLEAR"} == {("30 Hz", "p99")}
    result = run_here(capsys, "bench.compare", *files(a, b))
    assert result.status == 0 and "p99" in result.out and "SLOWER" in result.out
    assert not compare.tails([document(0, eager=1)], [document(1, eager=1)])
