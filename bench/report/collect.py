"""Result documents of a folder, and the rows that a report makes of them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import Any

from bench.core import document
from bench.core.document import Document, device_name, entry_name, program_name
from bench.core.errors import UsageError, flag_error
from bench.core.quant_words import quant_suffix

Row = dict[str, Any]


@dataclass
class Folder:
    """The documents of a folder in the order of their names (numbers in them by value); a line of each that breaks its
    schema, and of each file that is no document at all, which says why. The key `file` of a document is its name below
    the folder, without suffix and with - for /."""

    path: Path
    documents: list[Document]
    refused: list[str]
    others: list[str]

    def of_kind(self, kind: str) -> list[Document]:
        """The documents of one kind."""
        return [result for result in self.documents if result["kind"] == kind]


def _natural(file: Path) -> list[tuple[int, str]]:
    """For sorting: a name's digits as numbers, so that ctx 2048 comes before ctx 16384."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(file))]


KINDS = ("step", "layer", "stack", "ab", "attention", "op", "int4", "compare", "rate")
"""Of the documents that a report is made of. Those of other kinds are what somebody else reads."""


def _is_named(below: Path, pattern: str) -> bool:
    """Whether a file, of which this is the path below DIR, or a folder above it has this name."""
    return any(fnmatch(name.as_posix(), pattern.rstrip("/")) for name in (below, *below.parents[:-1]))


def load_folder(path: Path, exclude: Sequence[str] = ()) -> Folder:
    """Every result document below `path`, but for the files and folders that a pattern of `exclude` names. Raises
    UsageError where there is none."""
    if not path.is_dir():
        raise flag_error("DIR", path, "a folder that exists")
    documents: list[Document] = []
    refused: list[str] = []
    others: list[str] = []
    for file in sorted(document.files(path), key=_natural):
        below = file.relative_to(path)
        hidden = any(part.startswith(".") for part in below.parts)
        if hidden or any(_is_named(below, pattern) for pattern in exclude):
            continue
        try:
            result = document.load(file)
        except UsageError as error:
            none = isinstance(error, document.NoDocumentError)
            (others if none else refused).append(str(error).replace(str(file), str(below), 1))
            continue
        documents.append(result | {"file": "-".join([*below.parts[:-1], document.stem(file)])})
    if not documents:
        why = f": {[*refused, *others][0]}" if refused or others else ""
        raise flag_error("DIR", path, f"a folder with result documents (.json, .json.gz) in it{why}")
    return Folder(path, documents, refused, others)


def load_folders(paths: Sequence[Path], exclude: Sequence[str] = ()) -> Folder:
    """The documents of several folders, of any machines, as one, less what `exclude` names. The key `folder` of a
    document names its own, as briefly as tells them apart; with several, `file` begins with it. Raises UsageError where
    a pattern of `exclude` names nothing: after a slip of the pen nothing would be left out."""
    loaded = [load_folder(path, exclude) for path in paths]
    found = [file.relative_to(path) for path in paths for file in document.files(path)] if exclude else []
    for pattern in exclude:
        if not any(_is_named(below, pattern) for below in found):
            raise flag_error("--exclude", pattern, "a file or folder below a DIR, or a pattern of such names")
    if len(paths) == 1:
        for result in loaded[0].documents:
            result["folder"] = paths[0].name
        return loaded[0]
    names = _brief([path.resolve() for path in paths])
    for name, folder in zip(names, loaded, strict=True):
        for result in folder.documents:
            result |= {"folder": name, "file": f"{name.replace('/', '-')}-{result['file']}"}
    merged = loaded[0]
    for folder in loaded[1:]:
        merged.documents += folder.documents
        merged.refused += folder.refused
        merged.others += folder.others
    return merged


def _brief(paths: Sequence[Path]) -> list[str]:
    """Of every path as many of its last parts as tell it from the others."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise flag_error("DIR", paths[0], "given once")


def model_name(result: Document) -> str:
    """The model, with what is not all of it said."""
    model, full = result["model"], result.get("full_layers")
    run = model.get("n_layers")
    part = "" if full is None or run in (None, full) else f" ({run} of {full} layers)"
    return model["name"] + quant_suffix(result.get("quant")) + part


def _where(folder: Folder) -> Callable[[Document], str]:
    """What names a row's device: of several folders the name of the document's, too."""
    several = len({result.get("folder") for result in folder.documents}) > 1
    return lambda result: f"{device_name(result)}, {result['folder']}" if several else device_name(result)


def step_rows(folder: Folder) -> list[Row]:
    """One row a measured arm of a whole step. `device` is the GPU's name, with the folder where there are several."""
    rows = []
    where = _where(folder)
    for result in folder.of_kind("step"):
        for arm in result["arms"]:
            if arm["status"] != "ok" or not arm["paper"]:
                continue
            rows.append({
                "device_name": device_name(result), "device": where(result), "model": model_name(result),
                "ctx": result["ctx"], "batch": result["batch"], "arm": entry_name(arm),
                "backend": arm["backend"], "fusion": arm["fusion"],
                "mode": arm["mode"], "p50_ms": arm["paper"]["p50_ms"], "t_floor_ms": arm["paper"]["t_floor_ms"],
                "R_floor": arm["paper"]["R_floor"], "peak_gbs": arm["paper"]["bw_peak_gbs"],
                "share_of_read": arm["share_of_read"], "launch_gap_share": arm.get("launch_gap_share"),
                "over_sdpa_graph": (arm.get("ratio_to_sdpa_graph") or {}).get("p50"),
                "over_transformers": (arm.get("ratio_to_transformers") or {}).get("p50"),
                "profile": arm.get("profile"), "launches": arm["launches"],
                "launches_per_layer": arm["launches_per_layer"],
                "drifting": bool(arm["drift"] and arm["drift"]["drifting"]),
            })  # fmt: skip
    return rows


def distinct_steps(results: list[Document]) -> list[Document]:
    """Of the documents of one cell (device, model, batch, context) the one of most arms; sorted by those."""
    found: dict[tuple, Document] = {}
    for result in sorted(results, key=lambda result: -len(result["arms"])):
        found.setdefault((device_name(result), model_name(result), result["batch"], result["ctx"]), result)
    return [found[key] for key in sorted(found)]


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
                    cell | {"arm": entry_name(arm), "status": arm["status"], "reason": arm["reason"], "memory": memory}
                )
    return rows


def speedups(folder: Folder) -> list[Row]:
    """How much faster a captured step is than an eager one of the same backend; where nothing was captured, a native
    one. From whole steps (one session each) and from `ab` documents (with the interval over sessions)."""
    rows = []
    where = _where(folder)
    for result in folder.of_kind("step"):
        times: dict[tuple[str, str | None], dict[str, float]] = {}
        for arm in result["arms"]:
            if arm["status"] == "ok" and arm["wall_us"]:
                times.setdefault((arm["backend"], arm["fusion"]), {})[arm["mode"]] = arm["wall_us"]["p50"]
        for (backend, fusion), modes in times.items():
            fast = next((mode for mode in ("graph", "native") if mode in modes), None)
            if fast and "eager" in modes:
                rows.append({
                    "device_name": device_name(result), "device": where(result), "model": model_name(result),
                    "ctx": result["ctx"], "batch": result["batch"],
                    "what": f"{program_name(backend, fusion)}: eager / {fast}",
                    "speedup": modes["eager"] / modes[fast], "low": None, "high": None, "sessions": 1,
                })  # fmt: skip
    for result in folder.of_kind("ab"):
        if spread := result["analysis"]["speedup"]:
            a, b = (arm["arm"].partition("=")[2] for arm in result["arms"])
            rows.append({
                "device_name": device_name(result), "device": where(result), "model": model_name(result),
                "ctx": result["ctx"], "batch": result["batch"], "what": f"{a} / {b}",
                "speedup": spread["mean"], "low": spread["low"],
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


def _first_of_each(results: list[Document]) -> list[Document]:
    """Of the documents of a device and model, the one of the smallest batch and context."""
    found: dict[tuple[str, str, str], Document] = {}
    for result in sorted(results, key=lambda result: (result["batch"], result["ctx"])):
        found.setdefault((result["kind"], device_name(result), model_name(result)), result)
    return list(found.values())


def _op_times(result: Document) -> dict[str, list[tuple[str, float]]]:
    """By fusion: the ops of one layer with their times, microseconds, each timed alone."""
    times: dict[str, list[tuple[str, float]]] = {}
    for op in result["ops"]:
        clock, count = op.get("time_us") or op.get("device_us"), op.get("count", 1)
        if result["kind"] == "step":
            if count < result["model"]["n_layers"]:
                continue  # the step's own, such as lm_head
            count = result["model"]["n_layers"]
        if clock:
            label = op["label"].partition(" x")[0]
            times.setdefault(op["fusion"], []).append((label, clock["p50"] / count))
    return times


def block_rows(folder: Folder) -> list[Row]:
    """One row an arm: when each kernel of one block ran, from traces (key `timelines`); or where there are none, the
    ops of the native arms one after the other, each timed alone. For every device and model one layer and one step."""
    rows = []
    for result in _first_of_each([r for r in folder.documents if r["kind"] in ("layer", "step") and r.get("ops")]):
        what = "one layer alone" if result["kind"] == "layer" else "one block of a step"
        title = f"{device_name(result)}, {model_name(result)}, ctx {result['ctx']}, batch {result['batch']}: {what}"
        if timelines := result.get("timelines"):
            for arm, kernels in timelines.items():
                if arm.endswith((":native", ":graph", ":graph-pdl")):
                    overlaps = any(b["start_us"] < a["end_us"] for a, b in pairwise(kernels))
                    named = arm.startswith(("native/", "native:"))  # other arms' kernels have the compiler's names
                    rows.append({"title": title, "arm": arm, "kernels": kernels, "named": named,
                                 "overlaps": overlaps})  # fmt: skip
            continue
        for fusion, ops in _op_times(result).items():
            ends = list(accumulate(us for _, us in ops))
            kernels = [
                {"label": label, "start_us": end - us, "end_us": end}
                for (label, us), end in zip(ops, ends, strict=True)
            ]
            rows.append({"title": f"{title}, each op timed alone", "arm": f"native/{fusion}", "kernels": kernels,
                         "named": True, "overlaps": False})  # fmt: skip
    return rows


def int4_rows(folder: Folder) -> list[Row]:
    """One row a kernel and shape of documents of kind `int4`, in the mode that most kernels of the shape have: its
    time, and how many times faster than the dense kernel of the same mode it is."""
    rows = []
    for result in folder.of_kind("int4"):
        measured = [op for op in result["ops"] if op.get("time_us") and op.get("ratio_to_dense")]
        for (label, shape), group in groupby(measured, key=lambda op: (op["label"], op["shape"])):
            ops = list(group)
            modes = [op["mode"] for op in ops]
            mode = max(dict.fromkeys(modes), key=lambda mode: (modes.count(mode), mode == "graph"))
            for op in ops:
                if op["mode"] == mode:
                    ratio = op["ratio_to_dense"]
                    rows.append({
                        "device_name": device_name(result), "what": f"{device_name(result)}: {label}, {shape}, {mode}",
                        "arm": op["backend"], "dense": op.get("ideal_ratio") == 1, "us": op["time_us"]["p50"],
                        "share": op.get("share_of_read"), "ratio": ratio["p50"], "low": ratio["low"],
                        "high": ratio["high"], "ideal": op.get("ideal_ratio"), "binds": op.get("binds"),
                    })  # fmt: skip
    return rows
