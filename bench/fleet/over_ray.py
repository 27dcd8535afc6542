"""bench.sweep --ray: the plan's cells over a cluster, one set of them a kind of node."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench.core import document
from bench.core.errors import flag_error
from bench.core.kept import flags_of_any_device
from bench.fleet import ray_cluster
from bench.fleet.cells import Plan
from bench.fleet.ray_cluster import Kind, RayCluster
from bench.fleet.schedule import Job, Schedule


@dataclass(frozen=True)
class Wanted:
    """The flags of --ray."""

    address: str
    device: str
    on: str
    kinds: Sequence[Kind]
    pack: bool
    ship: str


def jobs_of(plan: Plan, kinds: Sequence[Kind]) -> list[Job]:
    """Every cell for every kind, each kind's in a folder of its own; without kinds every cell once."""
    if not kinds:
        return [Job(plan, cell, "") for cell in plan.cells]
    plans = {kind.name: replace(plan, out=plan.out / kind.name) for kind in kinds}
    for one in plans.values():
        document.make_folder(one.out, "--out", one.out)
    return [Job(one, cell, name) for name, one in plans.items() for cell in plan.cells]


def run(plan: Plan, wanted: Wanted, say: Callable[[str], None]) -> tuple[dict[str, int], str]:
    """Every cell that is not finished, on the cluster of --ray. Returns how many cells have each status, and why there
    are fewer than there should be: `interrupted`, `no node`; else nothing."""
    with tempfile.TemporaryDirectory() as folder:
        modules = ray_cluster.unpacked(Path(wanted.ship), Path(folder)) if wanted.ship else []
        ray = ray_cluster.connect(wanted.address, modules)
        try:
            device = ray_cluster.device_type(wanted.device)
            flags = flags_of_any_device(plan.flags, device)
            return _run(replace(plan, flags=flags, device=torch.device(device)), wanted, say)
        finally:
            ray.shutdown()


def _run(plan: Plan, wanted: Wanted, say: Callable[[str], None]) -> tuple[dict[str, int], str]:
    cluster = RayCluster(wanted.kinds, wanted.pack, plan.flags, plan.device.type, plan.controls, plan.limit_s, say)
    ray_cluster.check_kinds(cluster, wanted.on, wanted.kinds)
    if wanted.pack:
        say("packed: the cells of a node share its CPUs, and their host clocks suffer: trust graph modes alone")
    jobs = jobs_of(plan, wanted.kinds)
    schedule, left = Schedule(jobs, cluster, say), ""
    try:
        if not schedule.run():
            left = "no node"
            say(f"no node was left: {schedule.count.cells} of {len(jobs)} cells are finished and saved")
    except KeyboardInterrupt:
        if not schedule.count.cells:
            raise
        left = "interrupted"
        say(f"INTERRUPTED: {schedule.count.cells} of {len(jobs)} cells are finished and saved")
    return schedule.count.by_status, left


def check_device(device: str) -> None:
    """Raise UsageError for a --device that names a GPU: Ray chooses."""
    if ":" in device:
        raise flag_error("--device", device, "auto, cpu or cuda with --ray, which chooses the GPU")
