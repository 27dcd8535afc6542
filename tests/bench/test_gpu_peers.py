"""bench/gpu_peers.sh without a GPU: its commands are right; a step that is cut off saves what it has."""

import subprocess

import pytest
from inputs.busy import HANG_S
from inputs.command_line import ROOT, run_here
from inputs.gpu_scripts import commands

from bench.attention import __main__ as attention
from bench.backends import registry
from bench.stack import __main__ as stack


class _AcceptedError(Exception):
    """A command's flags were all right."""


def test_the_commands_are_right(monkeypatch, capsys, tmp_path):
    def accepted(*_, **__):
        raise _AcceptedError

    for module, name in ((attention, "run_here"), (attention, "run_sessions"), (stack, "run")):
        monkeypatch.setattr(module, name, accepted)
    given, outputs, kept = commands("gpu_peers.sh", tmp_path), [], []
    for _, module, *flags in given:
        if module in ("bench.attention", "bench.stack"):
            with pytest.raises(_AcceptedError):
                run_here(capsys, module, *flags)
        elif module == "bench.layer":
            (backends,) = [flag.removeprefix("--backend=") for flag in flags if flag.startswith("--backend=")]
            assert set(registry()) - set(backends.split(",")) == {"sdpa-math", "sdpa-efficient", "fa4"}
        else:
            assert module in ("bench.doctor", "pytest")
        outputs += [flag for flag in flags if flag.startswith(("--json=", "--md=", "--plot="))]
        kept += [flag for flag in flags if flag.startswith("--keep=")]
    assert len(outputs) == len(set(outputs)) == 17, "each step writes files of its own"
    assert len(kept) == len(set(kept)) == 5, "and keeps its processes apart"
    assert [f"--json={tmp_path}/out/h200-pinned-sdpa-without-cudnn.json" in words for words in given].count(True) == 1


def test_only_the_steps_that_are_wanted(tmp_path):
    given = commands("gpu_peers.sh", tmp_path, PEERS_STEPS="pinned-sdpa")
    assert [words[1] for words in given] == ["bench.doctor", "bench.attention", "bench.attention"]


def test_a_step_that_is_cut_off_saves_what_it_has(tmp_path):
    """And the next one begins when it has done so."""
    slow, begun, saved = tmp_path / "slow.sh", tmp_path / "begun", tmp_path / "saved"
    slow.write_text(
        f"trap 'sleep 1; touch {saved}; exit 130' TERM\ntouch {begun}\nfor i in `seq 600`; do sleep 0.1; done\n"
    )
    script = (
        f". bench/gpu_steps.sh {tmp_path}/out python3; step slow 2 bash {slow}; "
        f'step next 9 bash -c "[ -e {saved} ]"; name_failures'
    )
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)
    assert begun.exists() and saved.exists()
    assert done.returncode == 1 and done.stdout.endswith("failed: slow\n"), done.stdout + done.stderr


def test_what_is_compiled_ahead_is_what_the_steps_ask_for(tmp_path):
    """FlashInfer compiles a kernel for each kind of cores and for one sequence and more; flex one for each shape."""
    given = commands("gpu_peers.sh", tmp_path, PEERS_STEPS="compile flex")
    ahead = [words for words in given if "--sessions=0" in words]
    flashinfer = {(words[-3], words[-1]) for words in ahead if "--backend=flashinfer" in words}
    assert flashinfer == {(heads, f"--batch={batch}") for batch in (1, 4)
                          for heads in ("--model=qwen2.5-7b", "--model=llama-3.1-8b", "--heads=64/8")}  # fmt: skip
    (flex,) = [words for words in given if "--backend=native,sdpa,flex" in words]
    (contexts,) = [word.removeprefix("--ctx=").split(",") for word in flex if word.startswith("--ctx=")]
    assert {f"--ctx={ctx}" for ctx in contexts} <= {
        word for words in ahead if "--backend=flex" in words for word in words
    }
