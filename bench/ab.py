"""Two arms of a whole step against each other, within the same process, over fresh processes; and a verdict.

python -m bench.ab --a=native/none:native --b=native/block:native --sessions=10 --json=ab.json

A speed-up is A / B: above 1, B is the faster. Thresholds are registered beforehand in a file (--thresholds). With
--keep=FOLDER the sessions' own documents stay there: killed at any point and run again, finished sessions are not
measured again; and other pairs of arms can be read off the same sessions, where these measured more (--arms). Several
processes can share the folder, and --shard=i/n measures a share of the sessions alone.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
import typer
from rich.console import Console
from rich.text import Text

from bench.backends.steps import arms as step_arms
from bench.core import claims, cli, document, environment, results, shards
from bench.core.document import Document, device_name
from bench.core.errors import flag_error
from bench.core.flags import make_command
from bench.core.kept import KeepFlag, Kept, flags_of_any_device, open_folder
from bench.core.output_flags import DocumentFlags
from bench.core.outputs import Outputs
from bench.core.paths import user_path
from bench.core.processes import run_module
from bench.core.progress import progress
from bench.core.quant_flags import QuantFlags
from bench.core.run import close, failure
from bench.core.stop_rule import StopFlags
from bench.core.tables import commit_lines, microseconds
from bench.drivers import takes
from bench.study import sessions
from bench.study.sessions import Rule

Session = dict[str, Any]

_PROGRAM = "bench.ab"


def arm_text(flag: str, text: str) -> str:
    """The arm as bench.step's --arm takes it, its fusion spelled out. Raises UsageError where there is none such."""
    backend, fusion, mode = step_arms.parse_arm(flag, text)
    return f"{backend}/{fusion}:{mode}" if fusion else f"{backend}:{mode}"


def read_session(number: int, result: Document, indices: tuple[int, int]) -> Session:
    """One finished session from its document of kind `step`; indices: where a and b are among its arms."""
    arms = {side: result["arms"][index] for side, index in zip("ab", indices, strict=True)}
    failed = {side: arm for side, arm in arms.items() if arm["status"] != "ok" or not arm["wall_us"]}
    if failed:
        side, arm = next(iter(failed.items()))
        status = arm["status"] if arm["status"] != "ok" else "error"
        return {"session": number, "status": status, "reason": f"arm {side}: {arm['reason']}"}
    session: Session = {"session": number, "status": "ok", "reason": None}
    for side, arm in arms.items():
        wall = arm["wall_us"]["p50"]
        host = arm["host_us"]["p50"] if arm["host_us"] else None
        device = arm["device_us"]["p50"] if arm["device_us"] else None
        session[side] = {
            "p50_us": wall, "times_us": arm["samples_us"], "host_us": host, "device_us": device,
            "hidden_us": results.hidden_us(host, wall, device), "launches": arm["launches"],
            "drifting": bool(arm["drift"] and arm["drift"]["drifting"]),
        }  # fmt: skip
    session["speedup"] = session["a"]["p50_us"] / session["b"]["p50_us"]
    return session


@dataclass
class Plan:
    """The checked flags of one run. `arguments` are those of every session, which measures all of `measured`, a and b
    at `indices` among them."""

    arms: dict[str, str]
    measured: list[str]
    indices: tuple[int, int]
    kept: Kept
    sessions: int
    limit_s: float
    device: torch.device
    rules: list[Rule]
    rule: str
    registered: Document
    ctx: int
    batch: int
    arguments: list[str]

    @property
    def known_by(self) -> list[str]:
        """The flags of a kept session of this run."""
        return flags_of_any_device(self.arguments, self.device.type)


def session_name(number: int) -> str:
    """Of its document in the folder of --keep."""
    return f"session-{number:02}"


def run_session(plan: Plan, number: int) -> tuple[Session, Document | None]:
    """A fresh process of bench.step with all arms, unless the session is kept. What goes wrong with it becomes the
    session's status."""
    name = session_name(number)
    if kept := plan.kept.load(name, plan.known_by):
        return read_session(number, kept, plan.indices), kept
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.json"
        outcome = run_module("bench.step", [*plan.arguments, f"--json={path}"], plan.limit_s)
        if outcome.status != "ok" and not path.exists():
            return {"session": number, "status": outcome.status, "reason": outcome.reason}, None
        result = document.load(path, "step")
    plan.kept.save(name, result, plan.known_by)
    return read_session(number, result, plan.indices), result


def median_of(values: list[float | None]) -> float | None:
    """The median of what is there; None where nothing is."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def make_document(plan: Plan, done: list[Session], first: Document | None, interrupted: bool) -> Document:
    """The document of kind `ab`, of as many sessions as are done; `first` is a finished session's own document."""
    finished = [session for session in done if session["status"] == "ok"]
    series = {side: [session[side]["p50_us"] for session in finished] for side in "ab"}
    rule = sessions.choose_rule(plan.rules, plan.rule, device_name(first) if first else "", plan.ctx)
    keys = ("model", "full_layers", "dtype", "device", "weights", "quant")
    shared = {key: first.get(key) if first else None for key in keys}
    return {
        **cli.head(
            _PROGRAM, "ab", interrupted=interrupted,
            title=f"{plan.arms['a']} against {plan.arms['b']}, one decode step, ctx {plan.ctx}, batch {plan.batch}",
            environment=first["environment"] if first else environment.collect(plan.device),
        ),
        "ctx": plan.ctx, "batch": plan.batch, **shared,
        "sessions_planned": plan.sessions, "arms_of_a_session": plan.measured,
        "registered": plan.registered | {"rule": msgspec.structs.asdict(rule)},
        # One sample a session: its median. bench.compare finds them.
        "arms": [
            {
                "arm": f"{side}={plan.arms[side]}", "status": "ok" if series[side] else "error",
                "samples_us": series[side],
                **{
                    f"{clock}_us": median_of([session[side][f"{clock}_us"] for session in finished])
                    for clock in ("host", "device", "hidden")
                },
                "launches": finished[0][side]["launches"] if finished else None,
            }
            for side in "ab"
        ],
        "sessions": done,
        "analysis": sessions.analyse(series["a"], series["b"], rule),
    }  # fmt: skip


def run(plan: Plan, numbers: Sequence[int], save: Callable[[Document], None]) -> Document:
    """The sessions of these numbers, saved after each; with --keep those that another process has in hand are left to
    it. Ctrl-C ends the one that runs and keeps those that are finished."""
    done: list[Session] = []
    first: Document | None = None
    interrupted = False
    by_name = {session_name(number): number for number in numbers}
    shared = claims.parts(plan.kept.folder, by_name, lambda name: plan.kept.load(name, plan.known_by) is not None)
    with progress("sessions", len(numbers)) as advance, closing(shared):
        try:
            for name, _ in shared:
                session, result = run_session(plan, by_name[name])
                done = sorted([*done, session], key=lambda session: session["session"])
                first = first or (result if session["status"] == "ok" else None)
                save(make_document(plan, done, first, interrupted=len(done) < plan.sessions))
                advance()
        except KeyboardInterrupt:
            interrupted = True
    if not done:
        raise KeyboardInterrupt
    return make_document(plan, done, first, interrupted)


def session_lines(sessions_: Sequence[Session]) -> list[str]:
    """A line a session."""
    shown = []
    for session in sessions_:
        if session["status"] != "ok":
            shown.append(f"session {session['session']:>2}: {session['status']}: {session['reason']}")
            continue
        drifting = " drifting" if session["a"]["drifting"] or session["b"]["drifting"] else ""
        shown.append(
            f"session {session['session']:>2}: a {microseconds(session['a']['p50_us'])} us, "
            f"b {microseconds(session['b']['p50_us'])} us, a / b {session['speedup']:.3f}{drifting}"
        )
    return shown


def lines(result: Document) -> list[str]:
    """What is printed: a line a session, the statistics, the verdict."""
    shown = [result["title"], *commit_lines(result), *session_lines(result["sessions"])]
    for name, unit in (("a", " us"), ("b", " us"), ("speedup", "")):
        if spread := result["analysis"][name]:
            form = microseconds if unit else (lambda value: f"{value:.4f}")
            shown.append(
                f"{name:<7} mean {form(spread['mean'])}{unit}, SD {form(spread['sd'])}, CV {100 * spread['cv']:.1f}%, "
                f"95% [{form(spread['low'])}, {form(spread['high'])}]"
            )
    for arm in result["arms"]:
        clocks = [
            f"{clock} {microseconds(arm[f'{clock}_us'])} us" for clock in ("host", "hidden") if arm[f"{clock}_us"]
        ]
        if clocks:
            shown.append(f"{arm['arm']}: {', '.join(clocks)} a step, {arm['launches']} launches")
    rule, analysis = result["registered"]["rule"], result["analysis"]
    shown.append(f"claim ({rule['name']}): {rule['claim']}")
    shown.append(f"{analysis['verdict'].upper()}: {analysis['because']}")
    return shown


def finish_share(result: Document, shard: str) -> int:
    """--shard: a line a session and no verdict, which is all shares'. Returns the exit status."""
    sessions_, failed = result["sessions"], failure(result | {"arms": []})
    print("\n".join(session_lines(sessions_)))
    print(f"shard {shard} is done: {len(sessions_)} sessions. The verdict is the same command's without --shard")
    if failed:
        print(f"{_PROGRAM}: {failed}", file=sys.stderr)
    return 1 if failed else 0


def show(result: Document, console: Console) -> None:
    """lines(), printed."""
    console.print(Text("\n".join(lines(result))), soft_wrap=True)


@dataclass(kw_only=True)
class Settings(QuantFlags, StopFlags, DocumentFlags):
    """The flags of one run, and what they come to."""

    NOT_SHARED = QuantFlags.NOT_SHARED | {
        "a", "b", "arms", "keep", "sessions", "limit_s", "thresholds", "rule", "shard",
    }  # fmt: skip

    a: Annotated[
        str, typer.Option("--a", help="backend[/fusion]:mode; default: sdpa:eager on a GPU, else native:eager")
    ] = ""
    b: Annotated[
        str,
        typer.Option("--b", help="default: sdpa:graph on a GPU, else native:cpp, our kernels in a C++ loop"),
    ] = ""
    arms: Annotated[
        str, typer.Option("--arms", help="what a session measures, comma-separated, a and b among it; default: those")
    ] = ""
    keep: KeepFlag = ""
    sessions: Annotated[
        int, typer.Option("--sessions", help="fresh processes", callback=cli.checked(cli.number, "--sessions", 1, 1000))
    ] = 10
    shard: shards.ShardFlag = ""
    limit_s: Annotated[
        float,
        typer.Option("--limit-s", help="seconds a session may take", callback=cli.checked(cli.seconds, "--limit-s")),
    ] = 900.0
    thresholds: Annotated[str, typer.Option("--thresholds", help="a file of registered rules; default: ours")] = ""
    rule: Annotated[str, typer.Option("--rule", help="by name; default: the first that matches the device")] = ""
    model: cli.ModelFlag = "qwen2.5-7b"
    config: cli.ConfigFlag = ""
    weights: cli.WeightsFlag = ""
    layers: cli.LayersFlag = 0
    ctx: cli.StepCtxFlag = 2048
    batch: cli.BatchFlag = 1
    dtype: cli.DtypeFlag = "bf16"
    device: cli.DeviceFlag = "auto"
    warmup: cli.WarmupFlag = 5
    steps: cli.StepsFlag = 30
    threads: cli.ThreadsFlag = 0
    seed: cli.SeedFlag = 0

    @cached_property
    def target(self) -> torch.device:
        """--device. This process only starts others."""
        return cli.device(self.device, use=False)

    @cached_property
    def numbers(self) -> list[int]:
        """Of the sessions that are measured: all, or the share of --shard."""
        shard = shards.parse(self.shard)
        if shard.count > 1 and not self.keep:
            raise flag_error("--shard", self.shard, "given with --keep, the folder where the shares meet")
        if shard.count > 1 and self.json:
            raise flag_error("--json", self.json, "left out with --shard: the command without it judges what is kept")
        shard.check(self.sessions)
        return shard.of(range(self.sessions))

    @cached_property
    def sides(self) -> dict[str, str]:
        """The arms a and b, spelled out."""
        on_cuda = self.target.type == "cuda"
        default = ("sdpa:eager", "sdpa:graph") if on_cuda else ("native:eager", "native:native")
        return {"a": arm_text("--a", self.a or default[0]), "b": arm_text("--b", self.b or default[1])}

    @cached_property
    def measured(self) -> list[str]:
        """The arms of a session, spelled out."""
        given = self.arms.split(",") if self.arms else []
        return [arm_text("--arms", text) for text in given] or list(self.sides.values())

    @property
    def indices(self) -> tuple[int, int]:
        """Where a and b are among the measured: of an arm against itself the first of its name and the last."""
        a, b = self.sides.values()
        return self.measured.index(a), len(self.measured) - 1 - self.measured[::-1].index(b)

    def check(self) -> None:
        """Raise UsageError for the first flag that does not fit the others."""
        device = self.target
        named = [("--a", self.sides["a"]), ("--b", self.sides["b"]), *(("--arms", text) for text in self.measured)]
        for flag, text in named:
            backend, _, mode = step_arms.parse_arm(flag, text)
            step_arms.check_quantised(flag, [backend], self.four_bit)
            if text not in self.measured:
                raise flag_error(flag, text, f"one of --arms: {', '.join(self.measured)}")
            if reason := step_arms.backends()[backend].reason(mode, device):
                raise flag_error(flag, text, f"an arm that runs here: {reason}")
        spec = cli.model(self.model, self.config, self.weights)
        self.check_quant([spec])
        cli.number("--layers", self.layers, 0, spec.n_layers)
        cli.context("--ctx", self.ctx, spec, max(self.warmup, 1) + self.steps)
        assert self.numbers


def main(settings: Settings) -> int:
    """Two arms over fresh sessions, and what they say of a registered claim."""
    if settings.list_:
        step_arms.print_list()
        return 0
    outputs = Outputs(settings.json)
    settings.check()
    file = user_path("--thresholds", settings.thresholds) if settings.thresholds else sessions.DEFAULT_THRESHOLDS
    rules, digest = sessions.load_rules(file)
    if (
        settings.rule
    ):  # a name is checked before the first session; a match needs the device's name, which comes with it
        sessions.choose_rule(rules, settings.rule, "", settings.ctx)
    kept = open_folder(settings.keep, "step")
    arguments = [f"--arm={','.join(settings.measured)}", *settings.shared_flags()]
    plan = Plan(
        settings.sides, settings.measured, settings.indices, kept, settings.sessions, settings.limit_s,
        settings.target, rules,
        settings.rule, {"file": file.name, "sha256": digest}, settings.ctx, settings.batch, arguments,
    )  # fmt: skip
    result = run(plan, settings.numbers, outputs.keep)
    if settings.shard and not result["interrupted"]:
        return finish_share(result, settings.shard)
    return close(result, outputs, show)


command = make_command(main, Settings, takes("ab"))


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
