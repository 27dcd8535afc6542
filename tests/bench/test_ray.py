"""bench.sweep --ray on three nodes of this machine: real Ray, real processes, cells that are stubs."""

import json
import os
import signal
import threading
import time
from contextlib import ExitStack
from importlib.util import find_spec

import pytest
from inputs.busy import HANG_S
from inputs.command_line import assert_refused, run_here, start
from inputs.ray_nodes import another_build, nodes, start_node, stub_path, wheel

from bench.core.files import TEMPORARY

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")

SMALL = ["--model=tiny", "--device=cpu", "--no-controls", "--arm=native/block:native"]
VARIES = ("seconds", "pid", "node")


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """While this file is there, the cell of ctx 103 and batch 1 is not done."""
    return tmp_path_factory.mktemp("ray") / "held"


@pytest.fixture(scope="module")
def cluster(held):
    with ExitStack() as stack:
        try:
            found = stack.enter_context(nodes(2, resources={"small": 1}, variables={"STUB_HELD": str(held)}))
        except Exception as error:  # it gives a node 30 s to start, on a machine however busy
            pytest.skip(f"Ray started no cluster here: {error}")
        yield found


@pytest.fixture(scope="module")
def others(cluster, tmp_path_factory):
    """Beside those a node that says that it has two GPUs and is an H200, and one of another build."""
    start_node(cluster, num_gpus=2, num_cpus=4, resources={"pair": 1, "H200": 1})
    checkout = another_build(tmp_path_factory.mktemp("other") / "checkout")
    start_node(cluster, checkout, resources={"other": 1})


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", stub_path())


def sweep(capsys, cluster, folder, *flags):
    return run_here(capsys, "bench.sweep", f"--ray={cluster.address}", *SMALL, f"--out={folder}", *flags)


def written(folder) -> dict[str, dict]:
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))}


def test_a_driver_killed_and_started_again_leaves_the_documents_of_the_plain_sweep(capsys, cluster, held, tmp_path):
    folder, matrix = tmp_path / "ray", ["--ctx=101,102,103", "--batch=1,2"]
    held.touch()
    process = start("bench.sweep", f"--ray={cluster.address}", *SMALL, f"--out={folder}", *matrix)
    end = time.monotonic() + HANG_S
    while len(written(folder)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    held.unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert 2 <= len(before) < 6
    over = sweep(capsys, cluster, folder, *matrix)
    assert over.status == 0 and over.out.endswith("6 ok\n"), over.err + over.out
    assert f"{len(before)} of 6 cells were finished before" in over.out
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished cell was measured again"
    # A file that was being written when the driver died goes when it is two minutes old.
    assert len([name for name in os.listdir(folder) if not name.startswith(TEMPORARY)]) == 6
    plain = run_here(capsys, "bench.sweep", *SMALL, f"--out={tmp_path / 'plain'}", *matrix)
    assert plain.status == 0, plain.err
    ours, theirs = written(folder), written(tmp_path / "plain")
    assert {one["node"]["ray"] for one in ours.values()} <= {node.node_id[:8] for node in cluster.list_all_nodes()}
    assert len({one["pid"] for one in ours.values()}) == 6, "each cell is a process of its own"
    for one in (*ours.values(), *theirs.values()):
        for key in VARIES:
            one.pop(key)
    assert ours == theirs


def test_a_node_killed_in_mid_cell_costs_the_cell_in_hand(capsys, cluster, tmp_path):
    """The second of the two: what comes after needs the first alone."""
    (victim,) = cluster.worker_nodes

    def kill() -> None:
        while len(list(tmp_path.glob(".*.claim-*"))) < 2:
            time.sleep(0.02)
        cluster.remove_node(victim, allow_graceful=False)

    threading.Thread(target=kill, daemon=True).start()
    result = sweep(capsys, cluster, tmp_path, "--ctx=2000,2001,50,51", "--batch=1")
    assert result.status == 0 and result.out.endswith("4 ok\n"), result.err + result.out
    assert 1 <= result.out.count(": lost on ") <= 2  # Ray may list the node as alive for a moment
    assert sorted(os.listdir(tmp_path)) == sorted(f"tiny_ctx{ctx}_b1.json" for ctx in (2000, 2001, 50, 51))


def test_a_node_that_lies_and_one_of_another_build_are_refused_by_name(capsys, cluster, others, tmp_path):
    cell = ["--ctx=10", "--batch=1"]
    lying = sweep(capsys, cluster, tmp_path / "a", *cell, "--on=H200")
    assert lying.status == 2 and "--on=H200: no node can be used" in lying.err
    assert "is refused: is no H200: NVML says that there is no GPU" in lying.out
    absent = sweep(capsys, cluster, tmp_path / "b", *cell, "--on=L4:2")
    assert_refused(absent, "--on=L4:2", "of kinds that a node has: H200, other, pair, small")
    other = sweep(capsys, cluster, tmp_path / "c", *cell, "--on=other")
    assert other.status == 2 and "is refused: another build: bench/*.py" in other.out, other.out + other.err
    shipped = sweep(capsys, cluster, tmp_path / "d", *cell, "--on=other", f"--ship={wheel(tmp_path)}")
    assert shipped.status == 0 and list(written(tmp_path / "d")) == ["tiny_ctx10_b1.json"], shipped.out + shipped.err
    assert (tmp_path / "d" / "other" / "tiny_ctx10_b1.json").exists(), "each kind has a folder"


def test_packed_cells_have_a_gpu_each(capsys, cluster, others, tmp_path):
    """The node says that it has two GPUs: a cell sees one of them."""
    flags = ["--on=pair", "--device=cuda", "--pack", "--ctx=1500,1501", "--batch=1", f"--out={tmp_path}"]
    over = [flag for flag in SMALL if not flag.startswith("--device")]
    result = run_here(capsys, "bench.sweep", f"--ray={cluster.address}", *over, *flags)
    assert result.status == 0 and "packed: the cells of a node share its CPUs" in result.out, result.err + result.out
    documents = written(tmp_path).values()
    assert {one["environment"]["gpus"] for one in documents} == {"0", "1"}
    assert all(one["node"]["packed"] for one in documents)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--ray=127.0.0.1:1"], ["--ray=127.0.0.1:1", "the address of a cluster that answers"]),
        (["--ray=nowhere"], ["--ray=nowhere", "HOST:PORT of a cluster's head"]),
        (["--on=L4"], ["--on=L4", "given with --ray"]),
        (["--pack"], ["--pack", "given with --ray"]),
        (["--ray", "--on=L4:x"], ["--on=L4:x", "KIND or KIND:COUNT"]),
        (["--ray", "--on=L4,L4"], ["--on=L4,L4", "of each kind once"]),
        (["--ray", "--ship=none.whl"], ["--ship=none.whl", "a wheel (.whl) that exists"]),
        (["--ray", f"--ship={__file__}"], ["test_ray.py", "a wheel (.whl) that exists"]),
        (["--ray", "--device=cuda:1"], ["--device=cuda:1", "with --ray, which chooses the GPU"]),
    ],
)
def test_bad_arguments(capsys, tmp_path, flags, words):
    fixed = ["--model=tiny", "--ctx=8", "--batch=1", f"--out={tmp_path}"]
    assert_refused(run_here(capsys, "bench.sweep", *fixed, *flags), *words)
