"""Documents by their schema: the committed ones keep to it, what breaks it is named, none ends in a traceback."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from inputs.command_line import assert_refused, run_here
from inputs.documents import check_written, unknown_keys, whole

from bench import compare
from bench.core import document, environment, schema
from bench.core.errors import UsageError
from bench.core.kept import Kept
from bench.report import __main__ as report
from bench.report import collect, main_sections, pages, peer_sections

RESULTS = Path(__file__).parents[2] / "bench" / "results"
COMMITTED = sorted(str(path.relative_to(RESULTS)) for path in document.files(RESULTS))


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_documents(name):
    made = document.read(RESULTS / name)
    assert document.fault(made) is None and unknown_keys(made) == []


@pytest.mark.parametrize("kind", schema.KINDS)
def test_the_least_document_of_a_kind(kind, tmp_path):
    least = whole({"kind": kind})
    check_written(least)
    for key in [key for key in least if key not in ("schema", "kind")]:
        (tmp_path / "a.json").write_text(json.dumps({name: value for name, value in least.items() if name != key}))
        with pytest.raises(UsageError, match=f"must have the field `{key}`"):
            document.load(tmp_path / "a.json")


def test_the_page_is_what_the_schema_says():
    text = (RESULTS.parents[1] / "docs" / "document.md").read_text()
    assert pages.filled(text, pages.Documents(RESULTS)) == text, "python -m bench.report.pages writes it"


ARM = dict(
    backend="native", mode="eager", fusion=None, status="ok", reason=None, max_rel_error=0.0, samples_us=[1.0, 2.0],
    gbs=1.0, share_of_spec=None, share_of_read=0.5, launches=5, host_us=None, device_us=None, kernels=[], bytes=10,
    wall_us=dict(p20=1.0, p50=2.0, p80=3.0, n=2),
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(ctx="16"), "ctx: must be `int`, got `str`"),
        (dict(ctx=True), "ctx: must be `int`, got `bool`"),
        (dict(batch=0), "batch: must be `int` >= 1, got 0"),
        (dict(kind="layers"), "kind: must be one of layer, op"),
        (dict(kind=["layer"]), "kind: must be one of layer, op"),
        (dict(created="yesterday"), "created: must be `str` matching regex"),
        (dict(device="tpu"), "device: must be one of cpu, cuda, got 'tpu'"),
        (dict(device="cuda"), "environment.gpu: must be a GPU where device is cuda, got null"),
        (dict(arms=[ARM | dict(wall_us=dict(p50=1.0))]), "arms[0].wall_us: must have the field `p20`"),
        (dict(arms=[ARM, ARM | dict(samples_us=[1.0, 0])]), "arms[1].samples_us[1]: must be `float` > 0.0, got 0"),
        (dict(arms=[ARM | dict(samples_us=[10**400])]), "arms[0].samples_us[0]: Number out of range"),
        (
            dict(arms=[ARM | dict(status="fine")]),
            "arms[0].status: must be one of error, hang, ok, oom, unsupported, wrong",
        ),
        (dict(arms=7), "arms: must be `array`, got `int`"),
    ],
)
def test_what_breaks_the_schema_is_named(tmp_path, change, words):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(whole(dict(kind="layer")) | change))
    with pytest.raises(UsageError) as caught:
        document.load(path)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value) and "\n" not in str(caught.value)


def test_text_is_printable(tmp_path):
    """What a terminal would obey, and what no encoding has, is spelled out when it is written and when it is read."""
    path, wild = tmp_path / "a.json", "\x1b[2J \ud800 \u202e é\n"
    made = whole(dict(kind="layer", title=wild, ladder_notes={wild: wild}))
    tame = "\\x1b[2J \\ud800 \\u202e é\n"
    document.write_json(path, made)
    assert document.load(path)["title"] == tame and document.load(path)["ladder_notes"] == {tame: tame}
    path.write_text(json.dumps(made | {"title": "\x1b[2J\u202e", "ladder_notes": {}}))
    assert document.load(path)["title"] == "\\x1b[2J\\u202e"


def test_another_kind_is_refused(tmp_path):
    document.write_json(tmp_path / "a.json", whole(dict(kind="doctor")))
    with pytest.raises(UsageError, match="kind: must be step, got 'doctor'"):
        document.load(tmp_path / "a.json", "step")


def test_a_report_leaves_out_what_is_none_and_says_so(capsys, tmp_path):
    document.write_json(tmp_path / "good.json", whole(dict(kind="layer")))
    document.write_json(tmp_path / "bad.json", whole(dict(kind="layer")) | dict(arms=[dict(mode=3)]))
    (tmp_path / "trace.json").write_text('{"traceEvents": []}')
    result = run_here(capsys, "bench.report", str(tmp_path), "--no-svg")
    assert result.status == 1 and result.out.startswith("1 documents")
    assert result.err == (
        "bench.report: left out: bad.json: arms[0].mode: must be `str`, got `int`\n"
        "bench.report: left out: trace.json: schema must be launchtax/1, got None\n"
    )
    words = (tmp_path / "report" / "report.md").read_text()
    assert "Left out: bad.json: arms[0]" in words and "Left out: trace.json: schema must be" in words
    (tmp_path / "bad.json").unlink()
    assert run_here(capsys, "bench.report", str(tmp_path), "--no-svg").status == 0
    (tmp_path / "good.json").write_text("{")
    assert_refused(run_here(capsys, "bench.report", str(tmp_path)), "DIR=", "good.json: cannot be read")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        (dict(session_flags=["--steps=3"]), "is of another run: flags --steps=3 and here --steps=2"),
        (dict(commit="abc"), "is of another run: commit abc and here"),
        (dict(gpu=dict(name="NVIDIA L4")), "gpu.name NVIDIA L4 and here"),
        (dict(cpu=dict(model="another")), "cpu.model another and here"),
        (dict(torch=dict(version="1.0")), "torch.version 1.0 and here"),
        (dict(arms=3), "arms: must be `array`, got `int`"),
        (dict(kind="step"), "kind: must be layer, got 'step'"),
    ],
)
def test_a_kept_document_is_of_the_same_flags_build_and_machine(capsys, tmp_path, change, why):
    kept, machine = Kept(tmp_path, "layer"), environment.collect()
    machine |= {key: value for key, value in change.items() if key in machine}
    made = whole(dict(kind="layer", environment=machine))
    kept.save("a", made | {key: value for key, value in change.items() if key not in machine}, ["--steps=2"])
    if "session_flags" in change:
        document.write_json(tmp_path / "a.json", made | change)
    for _ in range(2):
        assert (kept.load("a", ["--steps=2"]) is None) == (why is not None)
    err = capsys.readouterr().err
    assert err.count("\n") == (why is not None), "said once"
    assert why is None or why in err


def _paths(node: object, *before: object) -> Iterator[tuple]:
    items = node.items() if isinstance(node, dict) else enumerate(node[:2]) if isinstance(node, list) else ()
    for key, value in items:
        yield (*before, key)
        yield from _paths(value, *before, key)


_VALUES = (None, 0, -1, 1e15, 1e300, 5e-324, True, "x", "", [], {}, [1], {"a": 1}, "\x1b[2J")


def _mutated(good: dict, chance: random.Random) -> dict:
    """A copy with one or two values left out or changed."""
    made = copy.deepcopy(good)
    for _ in range(chance.choice((1, 1, 2))):
        *before, key = chance.choice(list(_paths(made)))
        node = made
        for step in before:
            node = node[step]
        if chance.random() < 0.3:
            del node[key]
        else:
            node[key] = chance.choice(_VALUES)
    return made


@pytest.mark.parametrize("name", ["h200-rmsnorm.json", "h200-stack.json.gz", "h200-int4-layer-qwen2.5-7b.json",
                                  "h200-study/step.json", "h200-study/ab-sdpa-eager-sdpa-graph.json",
                                  "h200-attention-gate.json.gz", "h200-int4.json.gz"])  # fmt: skip
def test_no_changed_document_ends_in_a_traceback(monkeypatch, tmp_path, name):
    """Refused, or reported, and read for a comparison. Without pictures, which take seconds."""
    for module in (report, main_sections, peer_sections):
        monkeypatch.setattr(module, "drawn", lambda stem, words, draw: (stem, words, b"", b""))
    good, chance, refused = document.load(RESULTS / name), random.Random(name), 0
    for _ in range(20):
        path = tmp_path / "a.json"
        path.write_text(json.dumps(_mutated(good, chance)))
        try:
            sides = [compare.load(path), compare.load(path)]
            compare.differences(*sides)
            compare.doubts("A", sides[0])
        except UsageError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        try:
            document.load(path)
        except UsageError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
            continue
        report.make_sections(collect.load_folders([tmp_path]), [])
    assert 0 < refused < 20
