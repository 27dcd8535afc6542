"""bench/gpu_launch.sh without a GPU: its commands are right, and a step of several commands runs all of them."""

from inputs.command_line import COMMANDS, run_here
from inputs.gpu_scripts import commands


def test_the_commands_are_right(capsys, tmp_path):
    given = commands("gpu_launch.sh", tmp_path)
    modules = [words[1] for words in given]
    assert modules == [
        "pytest", "pytest", "pytest", "bench.step", *["bench.layer"] * 3, "bench.launch", "bench.call", "bench.call",
    ]  # fmt: skip
    for _, module, *flags in given:
        if module != "pytest":
            assert module in COMMANDS and run_here(capsys, module, *flags, "--list").status == 0


def test_a_step_of_several_commands_is_asked_for_by_its_first_word(tmp_path):
    given = commands("gpu_launch.sh", tmp_path, LAUNCH_STEPS="loop")
    assert [words[1] for words in given] == ["pytest", "bench.step"]
    assert given[0][-1] == "tests/gpu/test_graph_loop.py"
    assert any(word.startswith("--arm=") and "graph-loop" in word for word in given[1])
