"""Result documents of a folder, and the rows that a report makes of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core import document
from bench.core.document import Document
from bench.core.errors import UsageError, flag_error

Row = dict[str, Any]


@dataclass
class Folder:
    """The documents of a folder by kind, in the order of their names, and the files that are none."""

    path: Path
    documents: list[Document]
    skipped: list[str]

    def of_kind(self, kind: str) -> list[Document]:
        """The documents of one kind."""
        return [result for result in self.documents if result["kind"] == kind]


def load_folder(path: Path) -> Folder:
    """Every result document below `path`. Raises UsageError where there is none."""
    if not path.is_dir():
        raise flag_error("DIR", path, "a folder that exists")
    documents, skipped = [], []
    for file in sorted(path.rglob("*.json")):
        if any(part.startswith(".") for part in file.relative_to(path).parts):
            continue
        try:
            documents.append(document.load(file))
        except UsageError:
            skipped.append(str(file.relative_to(path)))
    if not documents:
        raise flag_error("DIR", path, "a folder with result documents (.json) in it")
    return Folder(path, documents, skipped)


def device_name(result: Document) -> str:
    """The GPU's or the CPU's name."""
    machine = result["environment"]
    name = machine["gpu"]["name"] if result.get("device") == "cuda" else machine["cpu"]["model"]
    return name or "unknown"


def arm_name(entry: Row) -> str:
    """backend/fusion:mode"""
    fusion = f"/{entry['fusion']}" if entry.get("fusion") else ""
    return f"{entry['backend']}{fusion}:{entry['mode']}"


def model_name(result: Document) -> str:
    """The model, with what is not all of it said."""
    model, full = result["model"], result.get("full_layers")
    part = "" if full in (None, model.get("n_layers")) else f" ({model['n_layers']} of {full} layers)"
    return model["name"] + part


def step_rows(folder: Folder) -> list[Row]:
    """One row a measured arm of a whole step."""
    rows = []
    for result in folder.of_kind("step"):
        for arm in result["arms"]:
            if arm["status"] != "ok" or not arm["paper"]:
                continue
            rows.append({
                "device_name": device_name(result), "model": model_name(result), "ctx": result["ctx"],
                "batch": result["batch"], "arm": arm_name(arm), "backend": arm["backend"], "fusion": arm["fusion"],
                "mode": arm["mode"], "p50_ms": arm["paper"]["p50_ms"], "t_floor_ms": arm["paper"]["t_floor_ms"],
                "R_floor": arm["paper"]["R_floor"], "peak_gbs": arm["paper"]["bw_peak_gbs"],
                "share_of_read": arm["share_of_read"], "launches": arm["launches"],
                "launches_per_layer": arm["launches_per_layer"],
                "drifting": bool(arm["drift"] and arm["drift"]["drifting"]),
            })  # fmt: skip
    return rows


def failed_cells(folder: Folder) -> list[Row]:
    """One row a cell or arm of a step that has no time, for a reason other than that it does not exist here."""
    rows = []
    for result in folder.of_kind("step"):
        cell = {"model": model_name(result), "ctx": result["ctx"], "batch": result["batch"]}
        if result.get("status"):
            rows.append(cell | {"arm": "all", "status": result["status"], "reason": result["reason"], "memory": None})
        for arm in result["arms"]:
            if arm["status"] not in ("ok", "unsupported"):
                memory = result.get("memory") if arm["status"] == "oom" else None
                rows.append(
                    cell | {"arm": arm_name(arm), "status": arm["status"], "reason": arm["reason"], "memory": memory}
                )
    return rows


def speedups(folder: Folder) -> list[Row]:
    """How much faster a captured step is than an eager one of the same backend; where nothing was captured, a native
    one. From whole steps (one session each) and from `ab` documents (with the interval over sessions)."""
    rows = []
    for result in folder.of_kind("step"):
        times = {}
        for arm in result["arms"]:
            if arm["status"] == "ok" and arm["wall_us"]:
                times.setdefault((arm["backend"], arm["fusion"]), {})[arm["mode"]] = arm["wall_us"]["p50"]
        for (backend, fusion), modes in times.items():
            fast = next((mode for mode in ("graph", "native") if mode in modes), None)
            if fast and "eager" in modes:
                name = f"{backend}/{fusion}" if fusion else backend
                rows.append({
                    "device_name": device_name(result), "model": model_name(result), "ctx": result["ctx"],
                    "batch": result["batch"], "what": f"{name}: eager / {fast}",
                    "speedup": modes["eager"] / modes[fast], "low": None, "high": None, "sessions": 1,
                })  # fmt: skip
    for result in folder.of_kind("ab"):
        if spread := result["analysis"]["speedup"]:
            a, b = (arm["arm"].partition("=")[2] for arm in result["arms"])
            rows.append({
                "device_name": device_name(result), "model": model_name(result), "ctx": result["ctx"],
                "batch": result["batch"], "what": f"{a} / {b}", "speedup": spread["mean"], "low": spread["low"],
                "high": spread["high"], "sessions": spread["n"],
            })  # fmt: skip
    return rows


def attention_rows(folder: Folder) -> list[Row]:
    """One row a measured attention op alone (documents of kind `op`)."""
    rows = []
    for result in folder.of_kind("op"):
        for entry in result["ops"]:
            if entry["op"] == "gqa_decode" and entry.get("time_us"):
                rows.append({
                    "device_name": device_name(result), "arm": f"{entry['backend']}:{entry.get('mode') or 'native'}",
                    "shape": entry["shape"], "us": entry["time_us"]["p50"], "low": entry["time_us"]["p20"],
                    "high": entry["time_us"]["p80"],
                })  # fmt: skip
    return rows
