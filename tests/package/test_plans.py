"""The table of launch plans from Python: files that are taken and refused, and what ops make of them."""

import json
import re

import pytest
import torch
from inputs.command_line import assert_refused, run_here
from inputs.helpers import randn, threads

import pykernels as pk
from pykernels import _runtime, plans


@pytest.fixture(autouse=True)
def cleared():
    with threads(2):
        yield
        pk.runtime.set_plan_table(None)


def gemv_plan(**changed):
    return {
        "op": "gemv", "sizes": {"in_features": 256, "out_features": 120}, "batch": 1, "dtype": "fp32",
        "choice": {"rows": 7}, "ratio_to_built_in": [1.1, 1.05, 1.2], "order_of_sums": "same",
    } | changed  # fmt: skip


def content(*of, **changed):
    return {
        "schema": "launchtax-plans/1", "device": "cpu", "card": plans.cpu_name(), "threads": 2,
        "isa": pk.runtime.isa(), "build": plans.build_hash(), "commit": None, "created": "2026-11-30T00:00:00+00:00",
        "command": "python -m bench.tune", "margin": 0.01, "plans": list(of),
    } | changed  # fmt: skip


@pytest.fixture
def written(tmp_path):
    def write(made) -> str:
        path = tmp_path / "plans.json"
        path.write_text(made if isinstance(made, str) else json.dumps(made))
        return str(path)

    return write


def test_a_table_is_taken_and_cleared(written):
    x, weight = randn(1, 256), randn(120, 256, seed=1)
    expected = pk.ops.gemv(x, weight)
    pk.runtime.set_plan_table(written(content(gemv_plan())))
    table = pk.runtime.plan_table()
    assert (table.name, len(table.sha256), table.file.plans[0].choice) == ("plans.json", 64, {"rows": 7})
    with pk.runtime.record() as program:
        out = pk.ops.gemv(x, weight)
    program.run()
    assert torch.equal(out, expected) and torch.equal(pk.ops.gemv(x, weight), expected), "rows divide no sum"
    with threads(1), pytest.raises(ValueError, match="for 2 threads, and there are 1"):
        pk.ops.gemv(x, weight)
    pk.runtime.set_plan_table(None)
    assert pk.runtime.plan_table() is None


def test_splits_change_the_workspace_and_one_that_is_too_small_is_refused(written):
    q, k, v = randn(1, 4, 64), randn(1, 2, 1024, 64, seed=1), randn(1, 2, 1024, 64, seed=2)
    kv_len = torch.tensor([1024], dtype=torch.int32)
    before = pk.ops.gqa_decode_workspace(q, k)
    sizes = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "max_len": 1024}
    pk.runtime.set_plan_table(written(content(gemv_plan(op="gqa_decode", sizes=sizes, choice={"splits": 16}))))
    after = pk.ops.gqa_decode_workspace(q, k)
    assert after.numel() == 16 * 4 * (64 + 2) * 4 > before.numel()
    out = pk.ops.gqa_decode(q, k, v, kv_len, workspace=after)
    assert torch.allclose(out, pk.reference.gqa_decode(q, k, v, kv_len).float(), atol=1e-5)
    with pytest.raises((ValueError, RuntimeError), match="workspace"):
        pk.ops.gqa_decode(q, k, v, kv_len, workspace=before)
    with pk.runtime.record() as program:
        pk.ops.gqa_decode(q, k, v, kv_len, workspace=after)
    program.run()
    pk.runtime.set_plan_table(None)
    with pk.runtime.record() as program:
        pk.ops.gqa_decode(q, k, v, kv_len, workspace=before)
    pk.runtime.set_plan_table(written(content(gemv_plan(op="gqa_decode", sizes=sizes, choice={"splits": 16}))))
    with pytest.raises(ValueError, match="cannot run with splits 16: it needs a workspace"):
        program.run()


def without(made, key):
    return {name: value for name, value in made.items() if name != key}


REFUSED = {
    "no JSON": ("{", "is not a file of plans"),
    "no object": ("[]", "is not a file of plans: Expected `object`"),
    "a document": ({"schema": "launchtax/1"}, "schema"),
    "an unknown key": (content() | {"speed": 1}, "unknown field `speed`"),
    "an unknown key of a plan": (content(gemv_plan(speed=1)), "unknown field `speed`"),
    "a key that is missing": (without(content(), "card"), "missing required field `card`"),
    "another build": (content(build="0" * 16), "for the build of sources 0000000000000000"),
    "another CPU": (content(card="a CPU"), "card must be"),
    "another instruction set": (content(isa="neon"), "isa must be"),
    "no such op": (content(gemv_plan(op="gemm")), "op must be one of gemv,"),
    "no such size": (content(gemv_plan(sizes={"m": 1})), "gemv: has no size m"),
    "a size that is missing": (content(gemv_plan(sizes={"in_features": 8})), "sizes must have out_features"),
    "no such field": (content(gemv_plan(choice={"rowz": 2})), "choice has no field rowz"),
    "a field of another op": (content(gemv_plan(choice={"splits": 2})), "splits is no field of this op's plans there"),
    "no such kernel": (content(gemv_plan(choice={"kernel": "mma"})), "kernel must be one of cuda-cores,"),
    "a kernel of CUDA": (
        content(gemv_plan(choice={"kernel": "cuda-cores"})),
        "kernel must be one that the op has there",
    ),
    "a field in words": (content(gemv_plan(choice={"rows": "many"})), "rows must be an integer, got many"),
    "a field of 0": (content(gemv_plan(choice={"rows": 0})), "is not a file of plans"),
    "nothing chosen": (content(gemv_plan(choice={})), "must choose something"),
    "a plan twice": (content(gemv_plan(), gemv_plan()), "is there twice"),
    "a batch of 9": (content(gemv_plan(batch=9)), "is not a file of plans"),
    "a GPU without a name": (content(device="cuda", card="", threads=None, isa=None), "card must be a GPU's name"),
}


@pytest.mark.parametrize(("made", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(written, made, words):
    pk.runtime.set_plan_table(good := written(content(gemv_plan())))
    name = pk.runtime.plan_table().sha256
    path = written(made)
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        pk.runtime.set_plan_table(path)
    assert str(refused.value).startswith(f"{good}: ") and "\n" not in str(refused.value)
    assert pk.runtime.plan_table().sha256 == name, "the plans stay what they were"


def test_no_file():
    with pytest.raises(ValueError, match="^/no/such/file: No such file"):
        pk.runtime.set_plan_table("/no/such/file")
    with pytest.raises(ValueError, match="must be a regular file"):
        pk.runtime.set_plan_table("/dev/null")


def test_the_environment_variable(monkeypatch, written, capsys):
    monkeypatch.setenv(plans.VARIABLE, path := written(content(gemv_plan(), build="0" * 16)))
    plans.take_from_environment()
    words = f"PYKERNELS_PLANS={path}: its plans are for the build of sources 0000000000000000"
    for look in (pk.runtime.plan_table, lambda: pk.ops.gemv(randn(1, 8), randn(8, 8))):
        with pytest.raises(ValueError, match=re.escape(words)):
            look()
    assert_refused(run_here(capsys, "bench.op", "--op=null"), words)
    pk.runtime.set_plan_table(None)
    written(content(gemv_plan()))
    plans.take_from_environment()
    assert pk.runtime.plan_table().name == "plans.json"


def test_drivers_refuse_a_table_of_another_device(written, capsys):
    pk.runtime.set_plan_table(written(content(device="cuda", card="NVIDIA H200", threads=None, isa=None)))
    pk.ops.gemv(randn(1, 8), randn(8, 8))  # of a CPU it says nothing
    refused = run_here(capsys, "bench.op", "--op=null", "--device=cpu")
    assert_refused(refused, "PYKERNELS_PLANS: plans.json: its plans are for NVIDIA H200, and this runs on cpu")
    refused = run_here(capsys, "bench.sweep", "--ray", "--model=tiny", "--ctx=64", "--out=/no/such/folder")
    assert_refused(refused, "PYKERNELS_PLANS: must not be set with --ray")


def test_one_plan_for_a_while(written):
    x, weight = randn(1, 256), randn(120, 256, seed=1)
    pk.runtime.set_plan_table(written(content(gemv_plan())))
    plan = plans.Plan(op="gemv", sizes={"in_features": 256, "out_features": 120}, batch=1, dtype="fp32",
                      choice={"rows": 9})  # fmt: skip
    with plans.choosing(plan, "cpu", plans.cpu_name()):
        pk.ops.gemv(x, weight)
    with threads(1), pytest.raises(ValueError, match="for 2 threads"):
        pk.ops.gemv(x, weight)  # the file's table is there again


def test_candidates_need_an_op_that_has_plans():
    with pk.runtime.record() as program:
        pk.ops.add(randn(8), randn(8))
    with pytest.raises(ValueError, match="no plans to choose from"):
        _runtime.plan_candidates(program, 0, None)
    with pytest.raises(ValueError, match="must be recorded and have op 1"):
        _runtime.plan_key(program, 1, False)
