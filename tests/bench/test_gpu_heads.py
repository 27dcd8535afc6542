"""bench/gpu_heads.sh without a GPU: its commands are right, and both checkouts take turns."""

from inputs.command_line import COMMANDS, run_here
from inputs.gpu_scripts import commands


def test_the_commands_are_right(capsys, tmp_path):
    outputs, shards = [], []
    for words in commands("gpu_heads.sh", tmp_path, HEADS_STEPS="grid cells long pdl"):
        _, module, *flags = words
        if module == "pytest":
            assert flags[:-2] == ["-q", "-p", "no:cacheprovider", "tests/gpu/test_gqa_grid.py", "-k", "grid"]
            shards.append(flags[-1])
            continue
        assert module in COMMANDS
        # A GPU is all that these lack here: each flag is parsed and checked before.
        flags = [flag.replace("--mode=graph,graph-pdl", "--mode=native") for flag in flags]
        assert run_here(capsys, module, *flags, "--list").status == 0
        outputs += [flag for flag in flags if flag.startswith("--json=")]
    assert len(outputs) == len(set(outputs)) == 6, "each step writes files of its own"
    assert sorted(shards) == sorted(f"{dim}-{kv_heads}-" for dim in (64, 96, 128, 256) for kv_heads in (4, 8, 32))


def test_checkouts_take_turns(tmp_path):
    older = tmp_path / "older"
    older.mkdir()
    given = commands("gpu_heads.sh", tmp_path, HEADS_STEPS="before", BEFORE=str(older), ROUNDS="2")
    *turns, compared_mha, compared = given
    folders = [
        word.removeprefix(f"--json={tmp_path}/out/").split("/")[0]
        for words in turns
        for word in words
        if "--json" in word
    ]
    assert folders == ["heads-before", "heads-before-mha", "heads-after", "heads-after-mha"] * 2
    for words, end in ((compared, ""), (compared_mha, "-mha")):
        assert words[1:] == ["bench.compare", f"{tmp_path}/out/heads-before{end}", f"{tmp_path}/out/heads-after{end}"]
