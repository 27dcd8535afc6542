"""Ray nodes on this machine, whose cells are stubs: the way of a cell is the real one but for what it measures."""

import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from inputs.command_line import ROOT

STUB = Path(__file__).parent / "stub_step"

# A node that is killed is to be missed soon. By default Ray's workers have niceness 15, and wait on a busy machine.
_QUICK = {
    "health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2,
    "worker_niceness": 0,
}  # fmt: skip


def stub_path(*before: Path) -> str:
    """PYTHONPATH of processes whose cells are stubs."""
    return os.pathsep.join(map(str, (*before, STUB, ROOT)))


def start_node(cluster, *before: Path, variables: Mapping[str, str] = MappingProxyType({}), **options):
    """One more node; `before` comes first on its PYTHONPATH, `variables` are more of its environment."""
    environment = {"PYTHONPATH": stub_path(*before), "OMP_NUM_THREADS": "1", **variables}
    return cluster.add_node(
        **{"num_cpus": 1, "env_vars": environment, "object_store_memory": 80 << 20}
        | {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        | options
    )


@contextmanager
def nodes(count: int, **options) -> Iterator:
    """A cluster of so many nodes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        start_node(cluster, _system_config=_QUICK, **options)
        for _ in range(count - 1):
            start_node(cluster, **options)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def wheel(folder: Path) -> Path:
    """This checkout as a wheel has it: `bench` inside of launchtax."""
    path = folder / "launchtax-0.1.0-py3-none-any.whl"
    places = {"launchtax": "launchtax", "bench": "launchtax/bench", "pykernels": "pykernels"}
    with zipfile.ZipFile(path, "w") as archive:
        for package, place in places.items():
            for file in (ROOT / package).rglob("*"):
                if file.suffix in (".py", ".so", ".toml"):
                    archive.write(file, f"{place}/{file.relative_to(ROOT / package)}")
    return path


def another_build(folder: Path) -> Path:
    """A checkout in which a line is another: what to put first on PYTHONPATH."""
    for package in ("bench", "pykernels"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("results", "*.so", "__pycache__")
        )
    for library in (ROOT / "pykernels").glob("*.so"):
        (folder / "pykernels" / library.name).symlink_to(library)
    path = folder / "bench" / "core" / "floors.py"
    path.write_text(path.read_text() + "\n# another build\n")
    return folder
