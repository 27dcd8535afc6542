"""bench/gpu_headline.sh without a GPU: its commands are right, and both checkouts take turns."""

from inputs.command_line import COMMANDS, run_here
from inputs.gpu_scripts import commands


def test_the_commands_are_right(capsys, tmp_path):
    given, outputs = commands("gpu_headline.sh", tmp_path), []
    assert [words[1] for words in given] == [
        *["bench.layer"] * 3, "bench.step", "bench.attention", "bench.op", "bench.tune"
    ]  # fmt: skip
    for _, module, *flags in given:
        assert module in COMMANDS
        # A GPU is all that these lack here: each flag is parsed and checked before.
        assert run_here(capsys, module, *flags, "--list").status == 0
        outputs += [flag for flag in flags if flag.startswith(("--json=", "--md=", "--plot=", "--plans="))]
    assert len(outputs) == len(set(outputs)) == 16, "each step writes files of its own"


def test_checkouts_take_turns(tmp_path):
    older = tmp_path / "older"
    older.mkdir()
    given = commands("gpu_headline.sh", tmp_path, HEADLINE_STEPS="before", BEFORE=str(older), ROUNDS="2")
    folders = [
        word.removeprefix(f"--json={tmp_path}/out/").split("/")[0]
        for words in given
        for word in words
        if "--json" in word
    ]
    assert folders == (["before"] * 3 + ["after"] * 3) * 2


def test_xqa_is_compiled_for_both_head_shapes_at_once(capsys, tmp_path):
    """Before it is measured, and only where that step is named."""
    given = commands("gpu_headline.sh", tmp_path, HEADLINE_STEPS="compile")
    assert sorted(flag for words in given for flag in words if flag.startswith("--model=")) == [
        "--model=llama-3.1-8b", "--model=qwen2.5-7b"
    ]  # fmt: skip
    for _, module, *flags in given:
        assert module == "bench.attention" and run_here(capsys, module, *flags, "--list").status == 0


def test_the_modes_of_attention(tmp_path):
    (words,) = commands("gpu_headline.sh", tmp_path, HEADLINE_STEPS="attention", MODES="graph")
    assert "--mode=graph" in words
