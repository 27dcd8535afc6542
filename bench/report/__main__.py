"""Folders of result documents as tables and pictures, the paper's published figures beside the measured ones.

python -m bench.report results --out=report --price=H200=4.54
python -m bench.report h200 l4 a100 --out=report        # of several machines, merged
python -m bench.report results --exclude=ab --exclude='*-warm.json'     # without a folder, and files of a pattern

Writes report.md, figures/*.png and *.svg, and report.html: one file that opens without a network. What is no
result document is left out and named. A document that is not as docs/document.md has it is too, and the exit status is
1.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import typer

from bench.core import cli, tables
from bench.core.document import Document, device_name, make_folder, write_atomically
from bench.core.errors import flag_error
from bench.core.files import write_all
from bench.core.flags import Flags, make_command
from bench.core.paths import user_path
from bench.core.tables import microseconds, percent
from bench.drivers import takes
from bench.report import (
    batch_sections,
    collect,
    fleet_sections,
    int4_steps,
    main_sections,
    peer_sections,
    rate_sections,
)
from bench.report.collect import Folder
from bench.report.page import Grid, Section, as_html, as_markdown, drawn
from bench.study import cost, paper


def number(value: float | None, digits: int = 3) -> str:
    """A fixed number of decimals; - where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def environment_section(folder: Folder) -> Section:
    """What ran where."""
    rows: dict[tuple[str, ...], list[Document]] = {}
    for result in folder.documents:
        if "environment" not in result:  # a comparison ran nothing itself
            continue
        machine = result["environment"]
        commit = (machine.get("commit") or "unknown")[:9] + (" dirty" if machine.get("commit_dirty") else "")
        key = (device_name(result), machine["torch"]["version"], commit)
        rows.setdefault(key, []).append(result)
    grid = [
        [*key, str(len(results)), ", ".join(sorted({result["kind"] for result in results})),
         min(result["created"] for result in results)[:10]]
        for key, results in rows.items()
    ]  # fmt: skip
    words = [
        f"Published figures are those of [{paper.source()['title']}]({paper.source()['url']}), from its text. "
        "They do not all agree with each other: see docs/paper.md."
    ]
    for result in folder.documents:
        if "environment" in result:
            words += [f"`{result['file']}`: {line}." for line in tables.doubts(result)]
    words += [f"Left out: {line}." for line in (*folder.refused, *folder.others)]
    return Section("What was run", words, [(["device", "torch", "commit", "documents", "kinds", "first"], grid)])


def steps_section(folder: Folder) -> Section | None:
    """Whole steps: times, floors, launches, and what found no memory."""
    from bench.report import figures

    rows = collect.step_rows(folder)
    failed = collect.failed_cells(folder)
    if not rows and not failed:
        return None
    section = Section("Whole steps and the memory floor")
    headings = ["", "device", "model", "ctx", "batch", "arm", "step ms", "floor ms", "R_floor", "of read",
                "launch + gap", "sdpa graph / this", "transformers / this", "launches", "a layer"]  # fmt: skip
    section.grids.append((headings, _step_table(rows)))
    if profiled := [row for row in rows if row["profile"]]:
        section.words.append(
            "Of a profiled step: bw_util is the study's (section 8); inflation is profiled over unprofiled; cpu / cuda "
            "is the time in calls of the CUDA runtime over that in which kernels ran."
        )
        section.grids.append(_profile_grid(profiled))
    if drifting := [row for row in rows if row["drifting"]]:
        named = ", ".join(
            f"{row['model']} ctx {row['ctx']} b{row['batch']} {row['arm']} on {row['device']}" for row in drifting
        )
        section.words.append(f"Drifted while they were measured, compare by ratio only: {named}.")
    if failed:
        gigabytes = [
            f"{row['memory']['asked_bytes'] / 1e9:.2f} / {row['memory']['peak_bytes'] / 1e9:.2f}"
            if row["memory"]
            else "-"
            for row in failed
        ]
        section.grids.append((
            ["model", "ctx", "batch", "arm", "status", "reason", "GB needed / peak"],
            [[row["model"], str(row["ctx"]), str(row["batch"]), row["arm"], row["status"], str(row["reason"]), gb]
             for row, gb in zip(failed, gigabytes, strict=True)],
        ))  # fmt: skip
    section.figures.append(drawn("floor-ratio", "R_floor over peak bandwidth", lambda: figures.floor_ratio(rows)))
    steps = collect.distinct_steps(folder.of_kind("step"))
    with_ladder = [result for result in steps if result.get("ladder")]
    if with_ladder:
        section.figures.append(drawn("ladder", "The ladder of every step", lambda: figures.ladders(with_ladder)))
    with_ops = [result for result in steps if result.get("ops")]
    if with_ops:
        section.figures.append(drawn("anatomy", "Anatomy of a native step", lambda: figures.anatomy(with_ops)))
    return section


def _step_table(rows: Sequence[collect.Row]) -> list[list[str]]:
    ratios = {(one.gpu, one.model, one.ctx, one.batch, one.arm): one.value for one in paper.published("R_floor")}
    table = [
        ["measured", row["device"], row["model"], str(row["ctx"]), str(row["batch"]), row["arm"],
         number(row["p50_ms"]),
         number(row["t_floor_ms"]), number(row["R_floor"]), percent(row["share_of_read"]),
         percent(row["launch_gap_share"]), number(row["over_sdpa_graph"], 2),
         number(row["over_transformers"], 2), str(row["launches"]), str(row["launches_per_layer"] or "-")]
        for row in rows
    ]  # fmt: skip
    for one in paper.published("step_ms"):
        ratio = ratios.get((one.gpu, one.model, one.ctx, one.batch, one.arm))
        table.append(["published", one.gpu, one.model, str(one.ctx), str(one.batch), one.arm, number(one.value, 2), "-",
                      number(ratio), *["-"] * 6])  # fmt: skip
    return table


def _profile_grid(rows: Sequence[collect.Row]) -> Grid:
    table = [
        ["measured", row["device"], row["model"], str(row["ctx"]), str(row["batch"]), row["arm"],
         *(number(row["profile"][key]) for key in ("bw_util", "bw_util_profiled", "inflation", "cpu_cuda_ratio"))]
        for row in rows
    ]  # fmt: skip
    known = paper.figures()
    for gpu in ("H100", "L40S", "L4"):
        values = (known.get(f"{name}_{gpu.lower()}") for name in ("bw_util", "inflation", "cpu_cuda"))
        bw_util, inflation, ratio = (number(one.value if one else None) for one in values)
        table.append(["published", gpu, "-", "-", "-", "eager", bw_util, "-", inflation, ratio])
    headings = ["", "device", "model", "ctx", "batch", "arm", "bw_util", "bw_util profiled", "inflation", "cpu / cuda"]
    return headings, table


def speedup_section(folder: Folder) -> Section | None:
    """What taking the launches away brings, and the sessions behind it."""
    from bench.report import figures

    rows = collect.speedups(folder)
    if not rows:
        return None

    def interval(low: float | None, high: float | None) -> str:
        return "-" if low is None else f"{low:.3f} to {high:.3f}"

    grid = [
        ["measured", row["device"], row["model"], str(row["ctx"]), str(row["batch"]), row["what"],
         number(row["speedup"]), interval(row["low"], row["high"]), str(row["sessions"])]
        for row in rows
    ] + [
        ["published", one.gpu, one.model, str(one.ctx), str(one.batch), "eager / graph", number(one.value),
         interval(one.low, one.high), one.place]
        for one in paper.published("graph_speedup")
    ]  # fmt: skip
    headings = ["", "device", "model", "ctx", "batch", "what", "speed-up", "95%", "sessions"]
    section = Section("Speed-up", grids=[(headings, grid)])
    section.figures.append(drawn("speedup", "Speed-up over the context", lambda: figures.speedup(rows)))
    analysed = [result for result in folder.of_kind("ab") if result["analysis"]["speedup"]]
    for result in analysed:
        words, spreads = _verdict(result)
        section.words.append(words)
        section.grids.append(spreads)
    if analysed:
        section.figures.append(drawn("sessions", "Medians of every session", lambda: figures.distributions(analysed)))
    return section


def _verdict(result: Document) -> tuple[str, Grid]:
    """What a document of kind `ab` came to: its claim and verdict, and its spreads."""
    analysis, rule = result["analysis"], result["registered"]["rule"]
    outcome = f"**{analysis['verdict']}**, {analysis['because']}"
    words = f"{result['title']}: claim `{rule['name']}` ({rule['claim']}): {outcome}."
    rows = []
    for name, key in (("a, us", "a"), ("b, us", "b"), ("a / b", "speedup")):
        s, form = analysis[key], number if key == "speedup" else microseconds
        intervals = [
            f"{form(s[low])} to {form(s[high])}" for low, high in (("low", "high"), ("plain_low", "plain_high"))
        ]
        rows.append([name, str(s["n"]), form(s["mean"]), form(s["sd"]), percent(s["cv"]), *intervals])
    pair = result["title"].partition(",")[0]
    return words, ([pair, "sessions", "mean", "SD", "CV", "95% of the mean", "95% as the study takes it"], rows)


def attention_section(folder: Folder) -> Section | None:
    """Attention alone."""
    from bench.report import figures

    rows = collect.attention_rows(folder)
    if not rows:
        return None
    grid = [
        ["measured", row["device_name"], row["arm"], row["shape"], microseconds(row["us"])] for row in rows
    ] + [["published", one.gpu, one.arm, f"{one.model}, ctx {one.ctx}", number(one.value, 2)]
         for one in paper.published("attention_us")]  # fmt: skip
    section = Section("Attention alone", grids=[(["", "device", "arm", "shape", "us"], grid)])
    section.figures.append(drawn("attention", "Attention of one layer alone", lambda: figures.attention(rows)))
    return section


def block_section(folder: Folder) -> Section | None:
    """One block, kernel by kernel."""
    from bench.report import kernel_figures

    rows = collect.block_rows(folder)
    if not rows:
        return None
    section = Section("One block, kernel by kernel")
    section.words.append("Of each device and model the smallest batch and context; the other documents have theirs.")
    section.figures.append(drawn("gantt", "When each kernel of a block ran", lambda: kernel_figures.gantt(rows)))
    return section


def int4_section(folder: Folder) -> Section | None:
    """4-bit weights against dense ones."""
    from bench.report import kernel_figures

    rows = collect.int4_rows(folder)
    if not rows:
        return None
    grid = [
        ["measured", row["what"], row["arm"], microseconds(row["us"]), percent(row["share"]), number(row["ratio"], 2),
         f"{row['low']:.2f} to {row['high']:.2f}", number(row["ideal"], 2), row["binds"] or "-"]
        for row in rows
    ]  # fmt: skip
    headings = ["", "what", "kernel", "us", "of read", "dense / this", "95%", "by bytes", "bound by"]
    section = Section("4-bit weights", grids=[(headings, grid)])
    section.figures.append(drawn("int4", "4-bit weights against dense ones", lambda: kernel_figures.int4(rows)))
    return section


def comparison_section(folder: Folder) -> Section | None:
    """What documents of kind `compare` found."""
    rows = [
        [result["created"][:10], row["key"], microseconds(row["a_us"]), microseconds(row["b_us"]), number(row["ratio"]),
         f"{row['low']:.3f} to {row['high']:.3f}", f"{row['p']:.2g}", row["verdict"]]
        for result in folder.of_kind("compare")
        for row in result["comparisons"]
    ]  # fmt: skip
    if not rows:
        return None
    return Section("Comparisons", grids=[(["made", "arm", "A us", "B us", "B / A", "95%", "p", "verdict"], rows)])


def cost_section(folder: Folder, flags: Sequence[str]) -> Section:
    """USD a million tokens."""
    from bench.report import figures

    known = cost.prices(flags)
    steps = collect.step_rows(folder)
    rows = [*cost.measured(steps, known), *cost.published(known)]
    section = Section("Cost")
    unpriced = dict.fromkeys(row["device_name"] for row in steps if not cost.price_of(row["device_name"], known))
    for device in unpriced:
        section.words.append(f"No price is known for {device}: give --price.")
    for price in dict.fromkeys(row.price for row in rows):
        section.words.append(
            f"Price of an {price.gpu}: {number(price.usd_per_hour, 2)} USD an hour ({price.date}, {price.source})."
        )
    if energy := rate_sections.energy_grid(folder, known):
        section.grids.append(energy)
        section.words.append(
            "Energy is the GPU board's, idle power included, by its counter; with `--price=kWh=0.30` it has a price."
        )
    if not rows:
        return section
    section.words.append("A million tokens on a machine that does nothing else: no idle time, network or storage.")
    section.grids.append((
        ["", "device", "model", "ctx", "batch", "arm", "step ms", "USD/h", "USD a million tokens"],
        [[r.origin, r.gpu, r.model, str(r.ctx), str(r.batch), r.arm, number(r.step_ms), number(r.price.usd_per_hour, 2),
          number(r.usd_per_million_tokens, 2)] for r in rows],
    ))  # fmt: skip
    section.figures.append(drawn("cost", "USD a million tokens", lambda: figures.cost(rows)))
    return section


def make_sections(folder: Folder, prices: Sequence[str]) -> list[Section]:
    """Every part that the folder has documents for."""
    made = [
        environment_section(folder), main_sections.layers_section(folder), batch_sections.section(folder),
        main_sections.ops_section(folder),
        steps_section(folder), *fleet_sections.sections(folder), block_section(folder), speedup_section(folder),
        attention_section(folder), peer_sections.backends_section(folder),
        peer_sections.stack_section(folder), int4_section(folder),
        int4_steps.section(folder, cost.prices(prices)), comparison_section(folder),
        rate_sections.section(folder),
        cost_section(folder, prices) if folder.of_kind("step") or folder.of_kind("rate") else None,
    ]  # fmt: skip
    return [section for section in made if section is not None]


@dataclass(kw_only=True)
class Settings(Flags):
    """The flags of one run."""

    directories: Annotated[
        list[str], typer.Argument(metavar="DIR...", help="folders of result documents, of any machines")
    ] = field(default_factory=list)
    out: Annotated[str, typer.Option("--out", help="the folder to write to; default: report in the first DIR")] = ""
    exclude: Annotated[
        list[str],
        typer.Option(
            "--exclude", metavar="NAME", help="a file or folder in DIR to leave out, or a pattern; repeatable"
        ),
    ] = field(default_factory=list)
    title: Annotated[str, typer.Option("--title", help="of the report")] = "launchtax report"
    svg: Annotated[bool, typer.Option("--svg/--no-svg", help="write every picture as SVG too")] = True
    price: Annotated[
        list[str],
        typer.Option("--price", help="GPU=USD_per_hour, before those of the dated file, or kWh=USD; repeatable"),
    ] = field(default_factory=list)
    list_: Annotated[bool, typer.Option("--list", help="name the kinds of documents that a report is made of")] = False


def main(settings: Settings) -> int:
    """Tables and pictures of folders of result documents, the paper's figures beside them."""
    if settings.list_:
        print(f"kinds of documents: {', '.join(collect.KINDS)}")
        return 0
    if not all(settings.directories) or not settings.directories:
        raise flag_error("DIR", "", "a folder of result documents")
    cost.prices(settings.price)
    folder = collect.load_folders([user_path("DIR", directory) for directory in settings.directories], settings.exclude)
    target = user_path("--out", settings.out) if settings.out else folder.path / "report"
    make_folder(target / "figures", "--out", target)
    sections = make_sections(folder, settings.price)
    # Of what was measured, whenever it is written up.
    dated = f"{settings.title}, {max(result['created'] for result in folder.documents)[:10]}"
    pages = {"report.md": as_markdown(dated, sections), "report.html": as_html(dated, sections)}
    # A title or a folder's name may hold bytes that are no UTF-8: they are spelled out.
    files = {name: text.encode(errors="backslashreplace") for name, text in pages.items()}
    for stem, _, png, vectors in (figure for section in sections for figure in section.figures):
        files[f"figures/{stem}.png"] = png
        if settings.svg:
            files[f"figures/{stem}.svg"] = vectors
    write_all((target / name, partial(write_atomically, target / name, content)) for name, content in files.items())
    print(f"{len(folder.documents)} documents: {target / 'report.md'}, {target / 'report.html'}")
    for line in (*folder.refused, *folder.others):
        print(f"bench.report: left out: {line}", file=sys.stderr)
    return 1 if folder.refused else 0


command = make_command(main, Settings, takes("report"))


if __name__ == "__main__":
    sys.exit(cli.run("bench.report", command))
