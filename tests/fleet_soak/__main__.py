"""make fleet-soak: a sweep over three Ray nodes of this machine, for as long as it takes; no part of `make test`.

    PYTHONPATH=tests python -m fleet_soak [--cells=200] [--kills=30] [--seed=0] [--only=overhead,kills] [--real]

overhead  60 cells by three shards of the plain sweep at once, and by Ray on three nodes: seconds that Ray adds to a
          cell, at most 0.5; the documents are equal in all but times, processes and nodes. Both have three cells at
          once on the same CPUs
kills     kill -9 of a worker, a node or the driver at random moments while cells are measured: no finished cell is
          lost or measured again, no file is half, none is left over

Cells are stubs (tests/inputs/stub_step): their way is the real one, with fresh processes, claims and documents. With
--real they are cells of bench.step --model=tiny on the CPU.
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from inputs.command_line import ROOT
from inputs.ray_nodes import nodes, stub_path

from bench.core import descendants

FLAGS = ["--model=tiny", "--device=cpu", "--no-controls", "--arm=native/block:native", "--batch=1"]
MOST_OVERHEAD_S = 0.5
LANES = 3  # nodes, or shards: cells at once
KILLED_MS = 500  # of a cell that is to be killed: so many that some are finished between two kills, and not all
WHAT = ("worker", "worker", "node", "driver")
VARIES = ("seconds", "pid", "node")
SAME = ("kind", "title", "model", "ctx", "batch", "dtype", "device", "kv_len", "steps", "cell", "cell_flags")
"""What two real documents of one cell say alike."""


@dataclass(frozen=True)
class Cells:
    """Stubs, or real cells."""

    real: bool

    @property
    def environment(self) -> dict[str, str]:
        """Of a driver and of a node."""
        return {"PYTHONPATH": str(ROOT) if self.real else stub_path(), "OMP_NUM_THREADS": "1"}

    def sweep(self, folder: Path, cells: int, *flags: str, cell_ms: int = 100) -> subprocess.Popen:
        """bench.sweep of so many cells in a process of its own; a stub takes so many milliseconds and more."""
        contexts = ",".join(str((8 if self.real else cell_ms) + number) for number in range(cells))
        few = ["--steps=2", "--warmup=1"] if self.real else []
        return subprocess.Popen(
            [sys.executable, "-m", "bench.sweep", *FLAGS, *few, f"--ctx={contexts}", f"--out={folder}", *flags],
            cwd=ROOT, env=os.environ | self.environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def said(self, folder: Path) -> dict[str, dict]:
        """What the documents say, by their names, less what varies from run to run."""
        documents = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
        if not self.real:
            return {name: {key: one[key] for key in one if key not in VARIES} for name, one in documents.items()}
        return {
            name: {key: one[key] for key in SAME}
            | {"arms": [[arm[key] for key in ("backend", "mode", "fusion", "status")] for arm in one["arms"]]}
            for name, one in documents.items()
        }


def whole(process: subprocess.Popen) -> list[tuple[float, str]]:
    """The lines of a sweep that ends well, with their times."""
    assert process.stdout
    lines = [(time.monotonic(), line.strip()) for line in process.stdout]
    assert process.wait() == 0, lines[-3:]
    return lines


def seconds_a_cell(lines: list[tuple[float, str]]) -> float:
    """Of a lane, from the second cell of each to the last of all: what begins the run is left out."""
    times = sorted(when for when, line in lines if line.startswith("["))
    first = 2 * LANES
    return (times[-1] - times[first - 1]) / (len(times) - first) * LANES


def overhead(of: Cells, cells: int = 60) -> bool:
    """What Ray adds to a cell."""
    with tempfile.TemporaryDirectory() as name, nodes(LANES, env_vars=of.environment) as cluster:
        shards = [of.sweep(Path(name, "plain"), cells, f"--shard={lane + 1}/{LANES}") for lane in range(LANES)]
        with ThreadPoolExecutor() as readers:
            plain = list(chain(*readers.map(whole, shards)))
        ray = whole(of.sweep(Path(name, "ray"), cells, f"--ray={cluster.address}"))
        equal = of.said(Path(name, "plain")) == of.said(Path(name, "ray"))
    apart, together = seconds_a_cell(plain), seconds_a_cell(ray)
    print(f"overhead: {cells} cells: three shards {apart:.3f} s a cell of a shard, Ray on three nodes {together:.3f} s "
          f"a cell of a node, {together - apart:+.3f} s; at most {MOST_OVERHEAD_S} s. Documents equal: {equal}",
          flush=True)  # fmt: skip
    return together - apart <= MOST_OVERHEAD_S and equal


def command(pid: int) -> str:
    """Its command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def finished(folder: Path) -> dict[str, int]:
    """The cells that were measured, with the time at which each was written. Raises where a file is half."""
    return {
        path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")
        if "status" not in json.loads(path.read_text())
    }  # fmt: skip


def start_node_beside(of: Cells, address: str) -> subprocess.Popen:
    """`ray start`, which takes some seconds: cells are measured meanwhile."""
    return subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--num-cpus=1", "--block",
         f"--object-store-memory={80 << 20}", "--disable-usage-stats"],
        env=os.environ | of.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kill_a_worker() -> bool:
    """One that measures a cell, if there is one."""
    workers = [pid for pid in descendants.below(os.getpid()) if command(pid).startswith("ray::measure_cell")]
    if workers:
        with suppress(ProcessLookupError):
            os.kill(random.choice(workers), signal.SIGKILL)
    return bool(workers)


def kill_a_node(of: Cells, processes: list[subprocess.Popen], address: str) -> bool:
    """One of start_node_beside()'s, with all its processes, if one is up; another takes its place."""
    up = [process for process in processes if any("raylet" in command(pid) for pid in descendants.below(process.pid))]
    if up:
        victim = random.choice(up)
        for pid in descendants.below(victim.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        victim.wait()
        processes.remove(victim)
        processes.append(start_node_beside(of, address))
    return bool(up)


def kills(of: Cells, cells: int, count: int, seed: int) -> bool:
    """kill -9, `count` times."""
    random.seed(seed)
    done: dict[str, int] = {"worker": 0, "node": 0, "driver": 0}
    with tempfile.TemporaryDirectory() as name, nodes(1, env_vars=of.environment) as cluster:
        folder, seen = Path(name), {}
        flags = [f"--ray={cluster.address}"]
        others = [start_node_beside(of, cluster.address) for _ in range(2)]
        process = of.sweep(folder, cells, *flags, cell_ms=KILLED_MS)
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
            what = random.choice(WHAT)
            if what == "driver":
                process.kill()
                process.communicate()
                seen |= finished(folder)
                process = of.sweep(folder, cells, *flags, cell_ms=KILLED_MS)
            else:  # between two cells there is no worker to be killed, and while one starts perhaps no node
                killed = False
                while not killed and process.poll() is None:
                    time.sleep(0.02)
                    killed = kill_a_worker() if what == "worker" else kill_a_node(of, others, cluster.address)
                if not killed:
                    continue
            done[what] += 1
            print(f"kill {sum(done.values())}: {what}, {len(seen)} cells finished", flush=True)
        process.communicate()
        for path in folder.glob(".launchtax-*"):  # of a driver that was killed while it wrote: goes when it is old
            os.utime(path, (1, 1))
        given_up = sum("status" in json.loads(path.read_text()) for path in folder.glob("*.json"))  # lost three times
        process = of.sweep(folder, cells, *flags, "--again", cell_ms=KILLED_MS)
        process.communicate()
        ended = finished(folder)
        again = [cell for cell, when in seen.items() if ended.get(cell) != when]
        for other in others:
            other.terminate()
            other.wait()
        left = [path.name for path in folder.iterdir() if path.suffix != ".json"]
    print(f"kills: seed {seed}, {done}: {len(ended)} of {cells} cells, {len(again)} lost or measured again, "
          f"left over: {left}, given up before --again: {given_up}")  # fmt: skip
    return len(ended) == cells and not again and not left and process.returncode == 0 and sum(done.values()) == count


def main() -> int:
    parser = argparse.ArgumentParser(prog="fleet_soak")
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="overhead,kills")
    parser.add_argument("--real", action="store_true")
    given = parser.parse_args()
    good, of = True, Cells(given.real)
    if "overhead" in given.only:
        good &= overhead(of)
    if "kills" in given.only:
        good &= kills(of, given.cells, given.kills, given.seed)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
