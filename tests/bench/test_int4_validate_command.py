"""`bench.int4 --validate`, the command: its plug-ins in processes of their own, its document, what it refuses."""

import json
import re

import pytest
from inputs.command_line import ROOT, assert_refused, flat, run, run_here

from bench.int4 import validate

EXAMPLE = ROOT / "examples" / "int4_kernel.py"
MISBEHAVING = ROOT / "tests" / "inputs" / "plugins" / "int4_misbehaving.py"
GQA_DECODE = ROOT / "examples" / "gqa_decode_plugin.cu"

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_command_on_the_example_and_on_those_that_end_their_process(capsys, tmp_path):
    output = tmp_path / "found.json"
    bad = {
        f"{MISBEHAVING}:Dies": "ended by SIGSEGV", f"{MISBEHAVING}:Exits": "exit status 3",
        f"{MISBEHAVING}:SlipsAway": "ended with exit status 0 before it was done",
        f"{MISBEHAVING.with_name('raises_at_import.py')}:X":
            "ImportError: libsomething.so.1: cannot open shared object file (raises_at_import.py:3)",
    }  # fmt: skip
    asked = ",".join([*bad, f"{EXAMPLE}:TransposedNibbles"])
    flags = ["--validate", "--group=64", "--dtype=fp16", "--device=cpu", f"--kernel={asked}", f"--json={output}"]
    result = run_here(capsys, "bench.int4", *flags)
    assert result.status == 1, result.out
    document = json.loads(output.read_text())
    assert document["kind"] == "int4-validation"
    *ended, kernel = document["kernels"]
    assert [(one["reason"], one["ended"]) for one in ended] == [(None, words) for words in bad.values()]
    names = ["int4_misbehaving.py:Dies", "int4_misbehaving.py:Exits", "int4_misbehaving.py:SlipsAway"]
    assert [one["kernel"] for one in ended] == [*names, "raises_at_import.py:X"]
    # Those before are kept, the one at fault is an error by the reason of the process's end.
    for one, finished in zip(ended, (8, 0, 8), strict=False):
        assert [trial["status"] for trial in one["trials"]] == ["ok"] * finished + ["error"]
        assert one["trials"][-1]["reason"] == one["ended"]
    assert (ended[0]["trials"][-1]["in_features"], ended[3]["trials"]) == (3584, [])
    printed = flat(result.out)
    assert (
        "int4_misbehaving.py:Dies: WRONG in 1 of 9 trials, 1 of which raised; its process: ended by SIGSEGV: what "
        "comes after was not tried error: random, float16, 256x3584, groups of 64, batch 1: ended by SIGSEGV"
    ) in printed
    assert "raises_at_import.py:X: NOTHING VALIDATED: ImportError: libsomething" in printed
    # And the good one beside them is as ever.
    assert "int4_kernel.py:TransposedNibbles: right in all of 40 trials; 1 refused" in printed
    assert (kernel["kernel"], kernel["reason"], kernel["ended"]) == ("int4_kernel.py:TransposedNibbles", None, None)
    assert {trial["dtype"] for trial in kernel["trials"]} == {"float16"}
    assert {trial["group_size"] for trial in kernel["trials"] if trial["case"] == "random"} == {64}


def test_a_kernel_that_hangs(capsys, tmp_path):
    output = tmp_path / "found.json"
    flags = ["--validate", "--group=64", "--dtype=fp16", "--device=cpu", "--plugin-timeout-s=2", f"--json={output}"]
    result = run_here(capsys, "bench.int4", *flags, f"--kernel={MISBEHAVING}:Hangs")
    (kernel,) = json.loads(output.read_text())["kernels"]
    # On a machine that is busy enough it does not get as far.
    assert result.status == 1 and kernel["ended"].startswith("was not done after 2 s"), result.out
    assert [trial["status"] for trial in kernel["trials"]] in ([], *(["ok"] * n + ["error"] for n in range(9)))
    assert "int4_misbehaving.py:Hangs: " in result.out and "was not done after 2 s" in flat(result.out)


def test_a_kernel_alone_is_right(capsys):
    """Exit status 0."""
    flags = ["--validate", "--group=-1", "--asymmetric", "--dtype=fp16", "--device=cpu"]
    result = run_here(capsys, "bench.int4", *flags, f"--kernel={MISBEHAVING}:Right")
    assert result.status == 0 and "int4_misbehaving.py:Right: right in all of" in flat(result.out), result.out


def test_the_command_on_a_wrong_kernel(capsys, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(EXAMPLE.read_text().replace("q[0::2] | q[1::2] << 4", "q[1::2] | q[0::2] << 4"))
    flags = ["--validate", "--group=64", "--dtype=fp16", f"--kernel={file}:TransposedNibbles", "--device=cpu"]
    result = run_here(capsys, "bench.int4", *flags)
    assert result.status == 1 and "WRONG in" in result.out and "read back by a one-hot input" in flat(result.out)
    listed = re.findall("^  wrong: (.*?),", result.out, re.M)
    assert len(listed) == 8 and len(set(listed)) == len(set(listed[:7])) == 7  # of every case the first, then a second


def test_a_kernel_that_does_not_run_here_is_no_failure(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    result = run_here(capsys, "bench.int4", "--validate", "--kernel=marlin", "--device=cpu")
    assert result.status == 0 and "marlin: unsupported: runs on cuda only; vllm is not installed" in flat(result.out)


@pytest.mark.parametrize(("dtype", "status"), [("fp32", 1), ("fp16", 0)])
def test_a_kernel_that_took_nothing_is_a_failure(capsys, dtype, status):
    flags = ["--validate", "--group=64", f"--dtype={dtype}", f"--kernel={EXAMPLE}:TransposedNibbles", "--device=cpu"]
    result = run_here(capsys, "bench.int4", *flags)
    assert result.status == status and ("NOTHING VALIDATED" in result.out) == bool(status)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ("nothing", "must be all, or of native, tinygemm"),
        ("nothing", "or FILE.py:Class or FILE.cu:kernel"),
        ("none.py:Name", "must be a file that exists, and none.py is none"),
        ("none.cu:name", "must be a file that exists, and none.cu is none"),
        (f"{ROOT / 'README.md'}:Name", "FILE.py:Class or FILE.cu:kernel"),
        (f"{MISBEHAVING}:", "must be FILE.py:Class or FILE.cu:kernel"),
        (f"{MISBEHAVING}:Absent", "must name a class of the file, which has Right, Dies"),
        (f"{MISBEHAVING}:NotOne", "must be a subclass of bench.backends.int4.Int4Kernel, or a kernel of op int4_gemv"),
        (f"{MISBEHAVING}:Bare", "Bare lacks prepare, run"),
        (f"{GQA_DECODE}:gqa_decode", "or a kernel of op int4_gemv"),
        (f"{GQA_DECODE}:mine", "has no __global__ mine: it has gqa_decode"),
    ],
)
def test_a_kernel_that_is_none(capsys, kernel, words):
    result = run_here(capsys, "bench.int4", "--validate", "--device=cpu", f"--kernel={kernel}")
    assert_refused(result, f"--kernel={kernel}", words)


def test_an_interrupted_validation_keeps_what_was_tried(capsys, monkeypatch, tmp_path):
    tried, true = [], validate.run_trial

    def cut(*arguments):
        if len(tried) == 3:
            raise KeyboardInterrupt
        tried.append(true(*arguments))
        return tried[-1]

    monkeypatch.setattr(validate, "run_trial", cut)
    output = tmp_path / "found.json"
    flags = ["--validate", "--kernel=native,tinygemm", "--dtype=fp16", f"--json={output}", "--device=cpu"]
    result = run_here(capsys, "bench.int4", *flags)
    assert result.status == 130 and "interrupted in native, after 3 trials" in flat(result.out)
    document = json.loads(output.read_text())
    assert document["interrupted"] and [len(kernel["trials"]) for kernel in document["kernels"]] == [3]
    monkeypatch.setattr(validate, "run_trial", lambda *arguments: cut(*arguments))
    result = run_here(capsys, "bench.int4", *flags)
    assert result.status == 130 and "interrupted before anything was measured" in result.err


def test_a_validation_whose_time_is_over(tmp_path):
    """SIGTERM, which `timeout` sends, is as Ctrl-C."""
    output = tmp_path / "found.json"
    flags = ["--validate", f"--kernel={MISBEHAVING}:EndsTheRun", "--dtype=fp16", "--device=cpu"]
    result = run("bench.int4", *flags, f"--json={output}")
    words = "interrupted in int4_misbehaving.py:EndsTheRun, after 8 trials"
    assert result.status == 130 and words in flat(result.out), result.err
    document = json.loads(output.read_text())
    assert document["interrupted"] and {trial["status"] for trial in document["kernels"][0]["trials"]} == {"ok"}


@pytest.mark.parametrize("flag", ["--what=layer", "--model=tiny", "--mode=native", "--batch=4", "--ctx=64",
                                  "--predict=l4", "--arch=sm89", "--repeats=2"])  # fmt: skip
def test_flags_that_a_validation_would_ignore(capsys, flag):
    result = run_here(capsys, "bench.int4", "--validate", "--device=cpu", flag)
    assert_refused(result, f"{flag}: must be given without --validate")


def test_a_validation_writes_json_alone(capsys, tmp_path):
    result = run_here(capsys, "bench.int4", "--validate", f"--md={tmp_path / 'x.md'}")
    assert_refused(result, "--validate", "--json alone")
