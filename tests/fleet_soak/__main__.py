"""make fleet-soak: a sweep over three Ray nodes of this machine, for as long as it takes; no part of `make test`.

    PYTHONPATH=tests python -m fleet_soak [--cells=200] [--kills=30] [--seed=0] [--only=overhead,kills]

overhead  60 cells by the plain sweep, and by Ray on three nodes: seconds that Ray adds to a cell, at most 0.5
kills     kill -9 of a worker, a node or the driver at random moments while cells are measured: no finished cell is
          lost or measured again, no file is half

Cells are stubs (tests/inputs/stub_step): their way is the real one, with fresh processes, claims and documents.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inputs.command_line import ROOT
from inputs.ray_nodes import nodes, start_node, stub_path

FLAGS = ["--model=tiny", "--device=cpu", "--no-controls", "--arm=native/block:native", "--batch=1"]
MOST_OVERHEAD_S = 0.5


def sweep(folder: Path, cells: int, *flags: str) -> subprocess.Popen:
    """bench.sweep of so many cells of a tenth of a second or two, in a process of its own."""
    contexts = ",".join(str(100 + number) for number in range(cells))
    return subprocess.Popen(
        [sys.executable, "-m", "bench.sweep", *FLAGS, f"--ctx={contexts}", f"--out={folder}", *flags],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": stub_path()}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def whole(process: subprocess.Popen) -> list[tuple[float, str]]:
    """The lines of a sweep that ends well, with their times."""
    assert process.stdout
    lines = [(time.monotonic(), line.strip()) for line in process.stdout]
    assert process.wait() == 0, lines[-3:]
    return lines


def seconds_a_cell(lines: list[tuple[float, str]], lanes: int, first: int) -> float:
    """Of a lane, from its line number `first` to the last: what begins the run is left out."""
    times = [when for when, line in lines if line.startswith("[")]
    return (times[-1] - times[first - 1]) / (len(times) - first) * lanes


def overhead(cells: int = 60) -> bool:
    """What Ray adds to a cell."""
    with tempfile.TemporaryDirectory() as name, nodes(3) as cluster:
        plain = whole(sweep(Path(name, "plain"), cells))
        ray = whole(sweep(Path(name, "ray"), cells, f"--ray={cluster.address}"))
    apart, together = seconds_a_cell(plain, 1, 3), seconds_a_cell(ray, 3, 6)
    print(f"overhead: {cells} cells: plain {apart:.3f} s a cell, Ray on three nodes {together:.3f} s a cell of a node, "
          f"{together - apart:+.3f} s; at most {MOST_OVERHEAD_S} s")  # fmt: skip
    return together - apart <= MOST_OVERHEAD_S


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def command(pid: int) -> str:
    """Its command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def finished(folder: Path) -> dict[str, int]:
    """The cells whose documents are there, with the process that measured each. Raises where a file is half."""
    return {path.name: json.loads(path.read_text())["pid"] for path in folder.glob("*.json")}


def kill_a_worker(cluster) -> bool:
    """One that measures a cell, if there is one."""
    for node in random.sample(cluster.list_all_nodes(), len(cluster.list_all_nodes())):
        raylet = node.all_processes["raylet"][0].process.pid
        for pid in children(raylet):
            if command(pid).startswith("ray::measure_cell"):
                os.kill(pid, signal.SIGKILL)
                return True
    return False


def kill_a_node(cluster) -> bool:
    """A node that is not the head, with all its processes; another takes its place."""
    victim = random.choice([node for node in cluster.list_all_nodes() if node is not cluster.head_node])
    cluster.remove_node(victim, allow_graceful=False)
    start_node(cluster)
    return True


def kills(cells: int, count: int) -> bool:
    """kill -9, `count` times."""
    done: dict[str, int] = {"worker": 0, "node": 0, "driver": 0}
    with tempfile.TemporaryDirectory() as name, nodes(3) as cluster:
        folder, seen = Path(name), {}
        flags = [f"--ray={cluster.address}"]
        process = sweep(folder, cells, *flags)
        while sum(done.values()) < count:
            before = len(finished(folder))
            # Each kill after some more cells, and before the last of them.
            wanted = min(before + random.randint(1, max(cells // count - 1, 1)), cells - 1)
            while len(finished(folder)) < wanted and process.poll() is None:
                time.sleep(0.02)
            time.sleep(random.random() * 0.2)
            seen |= finished(folder)
            if process.poll() is not None:
                print("the sweep ended before all kills were done")
                break
            what = random.choice(["worker", "worker", "node", "driver"])
            if what == "driver":
                process.kill()
                process.communicate()
                seen |= finished(folder)
                process = sweep(folder, cells, *flags)
            elif not (kill_a_worker if what == "worker" else kill_a_node)(cluster):
                continue
            done[what] += 1
            print(f"kill {sum(done.values())}: {what}, {len(seen)} cells finished", flush=True)
        process.communicate()
        if process.returncode:
            process = sweep(folder, cells, *flags)
            process.communicate()
        ended = finished(folder)
        again = [cell for cell, pid in seen.items() if ended.get(cell) != pid]
        left = [path.name for path in folder.iterdir() if path.suffix != ".json"]
        failed = [path.name for path in folder.glob("*.json") if json.loads(path.read_text()).get("status")]
    print(f"kills: {done}: {len(ended)} of {cells} cells, {len(again)} lost or measured again, left over: {left}, "
          f"failed: {failed}")  # fmt: skip
    return len(ended) == cells and not again and not left and process.returncode == 0 and sum(done.values()) == count


def main() -> int:
    parser = argparse.ArgumentParser(prog="fleet_soak")
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="overhead,kills")
    given = parser.parse_args()
    random.seed(given.seed)
    good = True
    if "overhead" in given.only:
        good &= overhead()
    if "kills" in given.only:
        good &= kills(given.cells, given.kills)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
