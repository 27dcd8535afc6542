"""The parts of a report over several machines: R_floor over GPUs, levers, energy, folders side by side, controls."""

from collections.abc import Iterable, Sequence

import numpy as np
import scipy

from bench.core.document import Document, device_name, entry_name
from bench.core.tables import microseconds, percent
from bench.report.collect import Folder, model_name, step_rows
from bench.report.page import Grid, Section
from bench.study import over_nodes, paper

LEVERS = (
    ("replay a graph, torch", "sdpa:eager", "sdpa:graph"),
    ("replay a graph, native", "native/block:eager", "native/block:graph"),
    ("a C++ loop, native", "native/block:eager", "native/block:native"),
    ("fuse, in graphs", "native/none:graph", "native/block:graph"),
    ("PDL launches, in graphs", "native/block:graph", "native/block:graph-pdl"),
    ("these kernels, in graphs", "sdpa:graph", "native/block:graph"),
)
"""What can be done to a step: its name, the arm without it, the arm with it."""


def gpu_of(result: Document) -> str:
    """NVML's name without its first word."""
    return device_name(result).removeprefix("NVIDIA ")


def node_of(result: Document) -> str:
    """What a cell was measured on: the machine and the end of its GPU's UUID; without a GPU, Ray's node or the machine.
    Ray names a node anew whenever it starts, and its GPU stays the same."""
    node = result.get("node") or {}
    uuid = ((result["environment"].get("gpu") or {}).get("uuid") or "") if result.get("device") == "cuda" else ""
    if uuid:
        return f"{node.get('name') or 'unknown'} {uuid[-6:]}"
    return node.get("ray") or node.get("name") or "unknown"


def cell_of(result: Document) -> tuple[str, int, int]:
    """Model, context, batch."""
    return model_name(result), result["ctx"], result["batch"]


def arms_of(result: Document) -> dict[str, Document]:
    """The arms that were measured, by name."""
    return {entry_name(arm): arm for arm in result["arms"] if arm["status"] == "ok" and arm.get("wall_us")}


def ladder_section(folder: Folder) -> Section | None:
    """R_floor by GPU: of every arm the median over its cells, beside the paper's."""
    rows = [row for row in step_rows(folder) if row["R_floor"] is not None]
    gpus = list(dict.fromkeys(row["device_name"].removeprefix("NVIDIA ") for row in rows))
    if not gpus or not any(result.get("device") == "cuda" for result in folder.of_kind("step")):
        return None
    published = paper.published("R_floor_median")

    def spread(own: Sequence[float]) -> str:
        return f"{np.median(own):.3f} ({min(own):.3f} to {max(own):.3f}, {len(own)})" if own else "-"

    grid = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        values = [
            [row["R_floor"] for row in rows if row["arm"] == arm and row["device_name"].endswith(gpu)] for gpu in gpus
        ]
        grid.append(["measured", arm, *map(spread, values), *["-"] * len(published)])
    known = [f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f}, 12)" for one in published]
    grid.append(["published", "eager", *["-"] * len(gpus), *known])
    section = Section("R_floor over GPUs")
    section.words.append(
        "The time of a step's bytes at the specified bandwidth over the step's time: 1 is the memory floor. The median "
        "over cells (the least and the largest, how many)."
    )
    section.grids.append((["", "arm", *gpus, *(f"{one.gpu}, paper" for one in published)], grid))
    return section


def lever_section(folder: Folder) -> Section | None:
    """Of every GPU how much each lever brings, and which is the best."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for result in folder.of_kind("step"):
        arms = arms_of(result)
        for name, without, with_it in LEVERS:
            if without in arms and with_it in arms:
                ratio = arms[without]["wall_us"]["p50"] / arms[with_it]["wall_us"]["p50"]
                ratios.setdefault(gpu_of(result), {}).setdefault(name, []).append(ratio)
    if not ratios:
        return None
    grid = []
    for gpu, levers in ratios.items():
        means = {name: float(scipy.stats.gmean(own)) for name, own in levers.items()}
        best = max(means, key=lambda name: means[name])
        for name, own in levers.items():
            grid.append([gpu, name, f"{means[name]:.3f}", f"{min(own):.3f} to {max(own):.3f}", str(len(own)),
                         "best" if name == best else ""])  # fmt: skip
    section = Section("The best lever of each GPU")
    section.words.append("A step without it over one with it, in one process: above 1, it is faster with it.")
    section.grids.append((["GPU", "lever", "without / with", "over cells", "cells", ""], grid))
    return section


def energy_section(folder: Folder) -> Section | None:
    """Joules a token, of documents of bench.rate on machines whose energy can be read."""
    grid = []
    for result in folder.of_kind("rate"):
        for arm in result["arms"]:
            for cell in arm["cells"]:
                if energy := cell.get("energy"):
                    grid.append([
                        gpu_of(result), model_name(result), str(result["ctx"]), str(result["batch"]),
                        arm.get("name") or entry_name(arm), f"{cell['hz']:g}", cell["load"],
                        f"{energy['watts']:.1f}", f"{energy['joules_per_token']:.4g}",
                    ])  # fmt: skip
    if not grid:
        return None
    headings = ["device", "model", "ctx", "batch", "arm", "steps a second", "load", "W", "J a token"]
    return Section("Energy", grids=[(headings, grid)])


def _ratios(folders: Sequence[str], results: Iterable[Document], clock: str) -> dict[tuple[str, str], list[float]]:
    """By folder and mode: each arm's median there over that of the same arm, cell and GPU in the first folder."""
    times: dict[tuple, dict[str, float]] = {}
    for result in results:
        for name, arm in arms_of(result).items():
            if arm.get(clock):
                uuid = (result["environment"].get("gpu") or {}).get("uuid")
                key = (gpu_of(result), uuid, *cell_of(result), name, arm["mode"])
                times.setdefault(key, {})[result["folder"]] = arm[clock]["p50"]
    found: dict[tuple[str, str], list[float]] = {}
    for key, by_folder in times.items():
        for folder in folders[1:]:
            if folder in by_folder and folders[0] in by_folder:
                found.setdefault((folder, key[-1]), []).append(by_folder[folder] / by_folder[folders[0]])
    return found


def folders_section(folder: Folder) -> Section | None:
    """The same cells on the same GPU in several folders: what the one way of running costs against the other."""
    steps = folder.of_kind("step")
    folders = list(dict.fromkeys(result["folder"] for result in steps))
    walls, hosts = (_ratios(folders, steps, clock) for clock in ("wall_us", "host_us"))
    if not walls:
        return None

    def spread(own: Sequence[float]) -> list[str]:
        return [f"{scipy.stats.gmean(own):.4f}", f"{min(own):.4f} to {max(own):.4f}"] if own else ["-", "-"]

    grid = [
        [other, mode, str(len(own)), *spread(own), *spread(hosts.get((other, mode), []))]
        for (other, mode), own in walls.items()
    ]
    section = Section("Folders side by side")
    section.words.append(
        f"The same arm, cell and GPU in a folder over those of {folders[0]}: geometric mean and range."
    )
    section.grids.append((["folder", "mode", "arms x cells", "wall", "range", "host", "range"], grid))
    return section


def nodes_section(folder: Folder) -> Section | None:
    """The controls of every node, and the cells that they speak against."""
    by_node: dict[tuple[str, str], list[Document]] = {}
    for result in folder.of_kind("step"):
        if result.get("controls"):
            by_node.setdefault((gpu_of(result), node_of(result)), []).append(result)
    if not by_node:
        return None
    section = Section("Controls of every node")
    grid = []
    for (gpu, node), results in by_node.items():
        sets = [result["controls"][when] for result in results for when in ("before", "after")]
        reads = [one["read_gbs"] for one in sets if one["read_gbs"]]
        doubted = [result for result in results if result["controls"]["doubt"]]
        grid.append([
            gpu, node, str(len(results)), _middle(one["null_us"].get("native") for one in sets),
            _middle(one["null_host_us"].get("native") for one in sets), _middle(one["spin_us"] for one in sets),
            f"{np.median(reads):.1f}" if reads else "-",
            percent((max(reads) - min(reads)) / float(np.median(reads))) if reads else "-", str(len(doubted)),
        ])  # fmt: skip
        section.words += [
            f"Doubted: {' '.join(map(str, cell_of(result)))} on {node}: {result['controls']['doubt']}."
            for result in doubted
        ]
    headings = ["GPU", "node", "cells", "null, us", "null, host us", "spin of 1000, us", "read GB/s", "its range",
                "doubted"]  # fmt: skip
    section.grids.append((headings, grid))
    return section


def _middle(values: Iterable[float | None]) -> str:
    own = [value for value in values if value is not None]
    return microseconds(float(np.median(own))) if own else "-"


def over_nodes_section(folder: Folder) -> Section | None:
    """Levers of cells that several nodes of a kind have measured, with the nodes as a random effect."""
    found: dict[tuple, dict[str, list[tuple[list[float], list[float]]]]] = {}
    for result in folder.of_kind("step"):
        if (result.get("controls") or {}).get("doubt"):
            continue
        arms = arms_of(result)
        for name, without, with_it in LEVERS:
            if without in arms and with_it in arms:
                pair = arms[without].get("samples_us", []), arms[with_it].get("samples_us", [])
                if not all(pair):
                    continue
                rounds = min(map(len, pair))
                key = (gpu_of(result), *cell_of(result), name)
                found.setdefault(key, {}).setdefault(node_of(result), []).append(
                    (pair[0][:rounds], pair[1][:rounds])
                )  # fmt: skip
    several = {key: by_node for key, by_node in found.items() if len(by_node) > 1}
    if not several:
        return None
    section = Section("Over nodes")
    if reason := over_nodes.reason():
        section.words.append(f"Cells of several nodes are there; what they say together {reason}.")
        return section
    section.words.append(
        "Each ratio within a process, round by round; the node is a random effect (REML), so that the interval is of "
        "nodes like these. Cells whose controls speak against them are left out."
    )
    grid: list[list[str]] = []
    for key, by_node in several.items():
        one = over_nodes.compare(by_node)
        grid.append([*map(str, key), f"{one.ratio:.4f}", f"{one.low:.4f} to {one.high:.4f}", percent(one.between),
                     str(one.nodes)])  # fmt: skip
    headings = ["GPU", "model", "ctx", "batch", "lever", "without / with", "95%", "between nodes", "nodes"]
    made: Grid = (headings, grid)
    section.grids.append(made)
    return section


def sections(folder: Folder) -> list[Section | None]:
    """All of them."""
    return [
        ladder_section(folder), lever_section(folder), energy_section(folder), over_nodes_section(folder),
        folders_section(folder), nodes_section(folder),
    ]  # fmt: skip
