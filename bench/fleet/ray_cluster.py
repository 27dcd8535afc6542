"""Ray as the cluster: each cell is a task that is bound to a node, and starts today's fresh process there.

Which node gets which cell is decided by bench.fleet.schedule; Ray brings the task there, gives it GPUs and CPUs that no
other task has meanwhile, and says what dies. A task asks for all CPUs of its node, because host clocks share them; with
--pack for one GPU and its share of the CPUs.
"""

import os
import re
import signal
import time
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.document import Document
from bench.core.errors import UsageError, first_line, flag_error
from bench.fleet import grpc_answer
from bench.fleet import node as node_module
from bench.fleet.cells import Cell
from bench.fleet.schedule import LostError, Slot

HERE = "here"
"""--ray without an address: the cluster that runs on this machine, else one of this machine alone."""
ANSWER_S = 15.0
_CHECK_S, _GRACE_S = 300.0, 60.0
"""For nodes to say who they are: where none of a kind has yet, and where some have; later ones join then."""
_DEAD_S = 30.0
"""A node that a task found dead is left alone so long: Ray lists it as alive until its health checks have failed."""
_NO_KINDS = re.compile(r"node:|CPU$|GPU$|memory$|object_store_memory$|accelerator_type:")


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError("--ray: needs Ray: pip install 'launchtax[ray]'") from None
    return ray


def _task(name: str) -> Callable[..., Any]:
    """A function of bench.fleet.worker as Ray takes it along: whole, since a node with an installed launchtax finds
    `bench` only in there. What the node or --ship has on PYTHONPATH comes before the driver's folder, which Ray puts
    first on the workers' path."""

    def task(*arguments: Any) -> Any:
        import os
        import sys

        first = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[:] = [*first, *(path for path in sys.path if path not in first)]
        import launchtax

        folder = str(launchtax.drivers_folder())
        if folder not in sys.path:
            sys.path.insert(0, folder)
        from bench.fleet import worker

        return getattr(worker, name)(*arguments)

    task.__name__ = task.__qualname__ = name
    return task


@dataclass(frozen=True)
class Kind:
    """What --on asks for: nodes of a kind, at most `count` of them; 0: all. An empty name is any node."""

    name: str = ""
    count: int = 0


def parse_kinds(flag: str, text: str) -> list[Kind]:
    """--on: H200:2,H100:1,L4. Raises UsageError."""
    kinds = []
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)(?::(\d{1,4}))?", part.strip())
        if not match or match[2] and not int(match[2]):
            raise flag_error(flag, part, "KIND or KIND:COUNT, comma-separated, such as H200:2,L4")
        kinds.append(Kind(match[1], int(match[2] or 0)))
    if len({kind.name for kind in kinds}) < len(kinds):
        raise flag_error(flag, text, "of each kind once")
    return kinds


@dataclass(frozen=True)
class Node:
    """A node by Ray's word."""

    id: str
    address: str
    resources: dict[str, float]

    @property
    def label(self) -> str:
        """As lines name it."""
        return f"{self.id[:8]} ({self.address})"

    @property
    def gpus(self) -> int:
        """By Ray's word."""
        return int(self.resources.get("GPU", 0))

    @property
    def kinds(self) -> list[str]:
        """Accelerator types, and resources by the names that whoever started it gave them."""
        types = [key.partition(":")[2] for key in self.resources if key.startswith("accelerator_type:")]
        return [*types, *(key for key in self.resources if not _NO_KINDS.match(key))]


class RayCluster:
    """A connection to a cluster, whose nodes are checked when they are first seen."""

    def __init__(
        self, kinds: Sequence[Kind], pack: bool, flags: Sequence[str], device: str, with_controls: bool,
        limit_s: float, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._ray, self._kinds, self._pack, self._say = _import_ray(), list(kinds) or [Kind()], pack, say
        self._flags, self._device, self._with_controls, self._limit_s = list(flags), device, with_controls, limit_s
        self._admitted: dict[str, bool] = {}
        self.refused: dict[str, str] = {}
        self._slots: dict[str, tuple[Slot, Node]] = {}
        self._where: dict[Any, Node] = {}
        self._found_dead: dict[str, float] = {}
        self._asked: dict[str, tuple[Node, Any]] = {}
        self._identity = self._ray.remote(_task("identity"))
        self._measure = self._ray.remote(_task("measure_cell"))

    def nodes(self) -> list[Node]:
        """Those that are alive, in an order that stays."""
        now = time.monotonic()
        found = [
            Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"])
            for node in self._ray.nodes()
            if node["Alive"] and now - self._found_dead.get(node["NodeID"], float("-inf")) >= _DEAD_S
        ]
        return sorted(found, key=lambda node: node.id)

    def _bound(self, node: Node) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node.id, soft=False)

    def _ours(self, node: Node) -> list[Kind]:
        return [kind for kind in self._kinds if not kind.name or kind.name in node.kinds]

    def _check(self, nodes: Sequence[Node]) -> None:
        """Ask those that are new who they are, and note who has answered by now; a node of another build, or of another
        kind than it says, is refused. One that takes long to answer, as a busy machine does, joins when it has."""
        for node in nodes:
            if node.id not in self._admitted and node.id not in self._asked:
                options = dict(num_cpus=0, max_retries=0, scheduling_strategy=self._bound(node))
                self._asked[node.id] = (node, self._identity.options(**options).remote())
        waiting = [answer for _, answer in self._asked.values()]
        answered = self._ray.wait(waiting, num_returns=len(waiting), timeout=0)[0] if waiting else []
        for node, answer in [pair for pair in self._asked.values() if pair[1] in answered]:
            del self._asked[node.id]
            try:
                said = self._ray.get(answer)
                reason = self._why_not(node, said)
                if reason is None and said["niceness"] > 0:
                    self._say(f"node {node.label} measures with niceness {said['niceness']}, so that other programs "
                              "disturb its host clocks: start Ray there with RAY_worker_niceness=0")  # fmt: skip
            except self._ray.exceptions.RayError as error:
                reason = "cannot run this project: " + _words(error)
            self._admitted[node.id] = reason is None
            if reason:
                self.refused[node.label] = reason
                self._say(f"node {node.label} is refused: {reason}")

    def unanswered(self) -> list[str]:
        """The nodes that have not said yet who they are."""
        return [node.label for node, _ in self._asked.values()]

    def _why_not(self, node: Node, said: Document) -> str | None:
        if other := node_module.other_build(node_module.build(), said["build"]):
            return f"another build: {other}"
        lies = [lie for kind in self._ours(node) if kind.name and (lie := node_module.lie(kind.name, said["gpus"]))]
        return lies[0] if lies else None

    def slots(self) -> list[Slot]:
        nodes = [node for node in self.nodes() if self._ours(node)]
        self._check(nodes)
        found: dict[str, tuple[Slot, Node]] = {}
        for kind in self._kinds:
            own = [node for node in nodes if self._admitted.get(node.id) and kind in self._ours(node)]
            if self._device == "cuda":
                own = [node for node in own if node.gpus]
            for node in own[: kind.count or None]:
                lanes = node.gpus if self._pack and self._device == "cuda" else 1
                for lane in range(lanes):
                    slot = Slot(f"{node.id}/{lane}", node.label, kind.name)
                    found.setdefault(slot.id, (slot, node))
        self._slots |= found
        return [slot for slot, _ in found.values()]

    def start(self, slot: Slot, cell: Cell) -> Any:
        _, node = self._slots[slot.id]
        on_gpu = self._device == "cuda"
        cpus = node.resources.get("CPU", 0) / (node.gpus if self._pack and on_gpu else 1)
        cpus = int(cpus) if cpus > 1 else cpus  # Ray takes a fraction of one alone
        handle = self._measure.options(
            num_cpus=cpus, num_gpus=1 if on_gpu else 0,
            scheduling_strategy=self._bound(node), name=f"measure_cell {cell.name}", max_retries=0,
        ).remote(vars(cell), self._flags, slot.kind, on_gpu, self._with_controls, self._limit_s)  # fmt: skip
        self._where[handle] = node
        return handle

    def wait(self, handles: Sequence[Any], seconds: float) -> list[Any]:
        if not handles:
            time.sleep(seconds)
            return []
        done, _ = self._ray.wait(list(handles), num_returns=1, timeout=seconds)
        return done

    def result(self, handle: Any) -> Document:
        node, errors = self._where.pop(handle), self._ray.exceptions
        try:
            result: Document = self._ray.get(handle)
        except errors.RayError as error:
            if isinstance(error, (errors.NodeDiedError, errors.TaskUnschedulableError)):
                self._found_dead[node.id] = time.monotonic()
            raise LostError(_words(error)) from None
        return result | {"node": result.get("node", {}) | {"ray": node.id[:8], "packed": self._pack}}

    def cancel(self, handles: Sequence[Any]) -> None:
        for handle in handles:
            with suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.cancel(handle, force=True)


def _words(error: BaseException) -> str:
    """Ray's reason in a line: of a task's own exception that one."""
    cause = getattr(error, "cause", None)
    return first_line(cause or error) or type(error).__name__


def check_kinds(cluster: RayCluster, text: str, kinds: Sequence[Kind]) -> None:
    """Wait for the nodes to say who they are. Raise UsageError where a kind has no node, or none to be used, naming
    what there is."""
    nodes = cluster.nodes()
    there = [kind for node in nodes for kind in node.kinds]
    for kind in kinds:
        if kind.name not in there:
            raise flag_error("--on", text, f"of kinds that a node has: {node_module.kinds_in_words(there)}")
    several = {kind for node in nodes for kind in node.kinds if node.gpus}
    if not kinds and len(several) > 1:
        raise flag_error("--on", "", f"given where the nodes differ: {node_module.kinds_in_words(several)}")
    begin, wanted = time.monotonic(), {kind.name for kind in kinds} or {""}
    while True:
        usable, waited_s = {slot.kind for slot in cluster.slots()}, time.monotonic() - begin
        if not cluster.unanswered() or waited_s > (_CHECK_S if wanted - usable else _GRACE_S):
            break
        time.sleep(0.2)
    if wanted - usable:
        reasons = [f"{label} {reason}" for label, reason in cluster.refused.items()]
        reasons += [f"{label} did not say who it is within {_CHECK_S:g} s" for label in cluster.unanswered()]
        flag = f"--on={text}" if text else "--ray"
        raise UsageError(f"{flag}: no node can be used: {'; '.join(reasons) or 'none has a GPU'}")


def device_type(device_flag: str) -> str:
    """cuda where --device and the cluster's nodes allow it, else cpu."""
    ray = _import_ray()
    has_gpu = any(node["Alive"] and node["Resources"].get("GPU") for node in ray.nodes())
    return "cuda" if has_gpu and device_flag != "cpu" else "cpu"


def unpacked(wheel: Path, folder: Path) -> list[str]:
    """The packages of a wheel, unpacked there, for Ray to send. Not the wheel: Ray would have pip install it on every
    node with all that it depends on, torch first. Raises UsageError where it is none of this project."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise flag_error("--ship", wheel, f"a wheel that can be unpacked: {first_line(error)}") from None
    packages = [folder / name for name in ("launchtax", "pykernels")]
    if not all(package.is_dir() for package in packages):
        raise flag_error("--ship", wheel, "a wheel of launchtax")
    return [str(package) for package in packages]


def check_address(address: str) -> None:
    """Raise UsageError, within ANSWER_S, where no cluster answers at --ray."""
    _import_ray()
    if address == HERE:
        return
    if not re.fullmatch(r"[^\s/:]+:\d{1,5}", address):
        raise flag_error("--ray", address, "HOST:PORT of a cluster's head, such as 10.0.0.1:6379")
    tls = os.environ.get("RAY_USE_TLS", "0").lower() not in ("", "0", "false")
    if not tls and (why := grpc_answer.why_not(address, ANSWER_S)):
        raise flag_error("--ray", address, f"the address of a cluster that answers: {why}")


def connect(address: str, modules: Sequence[str] = ()) -> Any:
    """Connect to the cluster at HOST:PORT; HERE is the one that runs on this machine, else one of it alone. modules:
    folders of packages that workers run instead of what their node has. Raises UsageError."""
    ray = _import_ray()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if modules:
        options["runtime_env"] = {"py_modules": list(modules)}
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if address != HERE:
            ray.init(address=address, **options)
        else:
            try:
                ray.init(address="auto", **options)
            except ConnectionError:
                config = {"worker_niceness": 0}
                ray.init(address="local", include_dashboard=False, _system_config=config, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise flag_error("--ray", address, f"the address of a cluster: {first_line(error)}") from None
    finally:
        for number, handler in before.items():  # Ray's own would end this process without a word
            signal.signal(number, handler)
    return ray
