"""Two arms of a whole step against each other, within the same process, over fresh processes; and a verdict.

python -m bench.ab --a=native/none:native --b=native/block:native --sessions=10 --json=ab.json

A speed-up is A / B: above 1, B is the faster. Thresholds are registered beforehand in a file (--thresholds). With
--keep=FOLDER the sessions' own documents stay there: killed at any point and run again, finished sessions are not
measured again; and other pairs of arms can be read off the same sessions, where these measured more (--arms).
"""

import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from bench.backends.steps import arms as step_arms
from bench.core import cli, document, environment, results
from bench.core.document import Document, device_name
from bench.core.errors import flag_error
from bench.core.kept import KeepFlag, Kept, open_folder
from bench.core.processes import run_module
from bench.core.progress import progress
from bench.core.run import close
from bench.core.tables import microseconds
from bench.study import sessions

Session = dict[str, Any]

_PROGRAM = "bench.ab"


def arm_text(flag: str, text: str) -> str:
    """The arm as bench.step's --arm takes it, its fusion spelled out. Raises UsageError where there is none such."""
    backend, fusion, mode = step_arms.parse_arm(flag, text)
    return f"{backend}/{fusion}:{mode}" if fusion else f"{backend}:{mode}"


def read_session(number: int, result: Document, places: tuple[int, int]) -> Session:
    """One finished session from its document of kind `step`; places: where a and b are among its arms."""
    arms = {side: result["arms"][place] for side, place in zip("ab", places, strict=True)}
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
    at `places` among them."""

    arms: dict[str, str]
    measured: list[str]
    places: tuple[int, int]
    kept: Kept
    sessions: int
    limit_s: float
    rules: list[sessions.Rule]
    rule: str
    registered: Document
    ctx: int
    batch: int
    arguments: list[str]


def run_session(plan: Plan, number: int) -> tuple[Session, Document | None]:
    """A fresh process of bench.step with all arms, unless the session is kept. What goes wrong with it becomes the
    session's status."""
    name = f"session-{number:02}"
    if kept := plan.kept.load(name, plan.arguments):
        return read_session(number, kept, plan.places), kept
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step.json"
        outcome = run_module("bench.step", [*plan.arguments, f"--json={path}"], plan.limit_s)
        if outcome.status != "ok" and not path.exists():
            return {"session": number, "status": outcome.status, "reason": outcome.reason}, None
        result = document.load(path)
    plan.kept.save(name, result, plan.arguments)
    return read_session(number, result, plan.places), result


def median_of(values: list[float | None]) -> float | None:
    """The median of what is there; None where nothing is."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def make_document(plan: Plan, done: list[Session], first: Document | None, interrupted: bool) -> Document:
    """The document of kind `ab`, of as many sessions as are done; `first` is a finished session's own document."""
    finished = [session for session in done if session["status"] == "ok"]
    series = {side: [session[side]["p50_us"] for session in finished] for side in "ab"}
    rule = sessions.choose_rule(plan.rules, plan.rule, device_name(first) if first else "", plan.ctx)
    shared = {key: first[key] if first else None for key in ("model", "full_layers", "dtype", "device", "weights")}
    return {
        **cli.head(
            _PROGRAM, "ab", interrupted=interrupted,
            title=f"{plan.arms['a']} against {plan.arms['b']}, one decode step, ctx {plan.ctx}, batch {plan.batch}",
            environment=first["environment"] if first else environment.collect(),
        ),
        "ctx": plan.ctx, "batch": plan.batch, **shared,
        "sessions_planned": plan.sessions, "arms_of_a_session": plan.measured,
        "registered": plan.registered | {"rule": vars(rule)},
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


def run(plan: Plan, save: Callable[[Document], None]) -> Document:
    """Every session, saved after each. Ctrl-C ends the one that runs and keeps those that are finished."""
    done: list[Session] = []
    first: Document | None = None
    interrupted = False
    with progress("sessions", plan.sessions) as advance:
        try:
            for number in range(plan.sessions):
                session, result = run_session(plan, number)
                done.append(session)
                first = first or (result if session["status"] == "ok" else None)
                save(make_document(plan, done, first, interrupted=len(done) < plan.sessions))
                advance()
        except KeyboardInterrupt:
            interrupted = True
    if not done:
        raise KeyboardInterrupt
    return make_document(plan, done, first, interrupted)


def lines(result: Document) -> list[str]:
    """What is printed: a line a session, the statistics, the verdict."""
    shown = [result["title"]]
    for session in result["sessions"]:
        if session["status"] != "ok":
            shown.append(f"session {session['session']:>2}: {session['status']}: {session['reason']}")
            continue
        drifting = " drifting" if session["a"]["drifting"] or session["b"]["drifting"] else ""
        shown.append(
            f"session {session['session']:>2}: a {microseconds(session['a']['p50_us'])} us, "
            f"b {microseconds(session['b']['p50_us'])} us, a / b {session['speedup']:.3f}{drifting}"
        )
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


def show(result: Document, console: Console) -> None:
    """lines(), printed."""
    console.print(Text("\n".join(lines(result))), soft_wrap=True)


def command(
    a: Annotated[
        str, typer.Option("--a", help="backend[/fusion]:mode; default: sdpa:eager on a GPU, else native:eager")
    ] = "",
    b: Annotated[str, typer.Option("--b", help="default: sdpa:graph on a GPU, else native:native")] = "",
    arms_: Annotated[
        str, typer.Option("--arms", help="what a session measures, comma-separated, a and b among it; default: those")
    ] = "",
    keep: KeepFlag = "",
    sessions_: Annotated[int, typer.Option("--sessions", help="fresh processes")] = 10,
    limit_s: Annotated[
        float,
        typer.Option("--limit-s", help="seconds a session may take", callback=cli.checked(cli.seconds, "--limit-s")),
    ] = 900.0,
    thresholds: Annotated[str, typer.Option("--thresholds", help="a file of registered rules; default: ours")] = "",
    rule: Annotated[str, typer.Option("--rule", help="by name; default: the first that matches the device")] = "",
    model: cli.ModelFlag = "qwen2.5-7b",
    config: cli.ConfigFlag = "",
    weights: cli.WeightsFlag = "",
    layers: cli.LayersFlag = 0,
    ctx: Annotated[int, typer.Option("--ctx", help="slots of the cache that are filled before the first step")] = 2048,
    batch: cli.BatchFlag = 1,
    dtype: cli.DtypeFlag = "bf16",
    device: cli.DeviceFlag = "auto",
    warmup: cli.WarmupFlag = 5,
    steps: cli.StepsFlag = 30,
    threads: cli.ThreadsFlag = 0,
    seed: cli.SeedFlag = 0,
    json: cli.JsonFlag = "",
) -> int:
    """Two arms over fresh sessions, and what they say of a registered claim."""
    outputs = cli.Outputs(json)
    where = cli.device(device)
    usual = ("sdpa:eager", "sdpa:graph") if where.type == "cuda" else ("native:eager", "native:native")
    arms = {"a": arm_text("--a", a or usual[0]), "b": arm_text("--b", b or usual[1])}
    measured = [arm_text("--arms", text) for text in arms_.split(",")] if arms_ else list(arms.values())
    for flag, text in [("--a", arms["a"]), ("--b", arms["b"]), *(("--arms", text) for text in measured)]:
        backend, _, mode = step_arms.parse_arm(flag, text)
        if text not in measured:
            raise flag_error(flag, text, f"one of --arms: {', '.join(measured)}")
        if reason := step_arms.backends()[backend].reason(mode, where):
            raise flag_error(flag, text, f"an arm that runs here: {reason}")
    # An arm against itself is the first of its name against the last.
    places = measured.index(arms["a"]), len(measured) - 1 - measured[::-1].index(arms["b"])
    planned = cli.number("--sessions", sessions_, 1, 1000)
    spec = cli.model(model, config, weights)
    cli.number("--layers", layers, 0, spec.n_layers)
    cli.number("--ctx", ctx, 1, spec.max_position - max(warmup, 1) - steps)
    file = Path(thresholds).expanduser() if thresholds else sessions.DEFAULT_THRESHOLDS
    rules, digest = sessions.load_rules(file)
    if rule:  # a name is checked before the first session; a match needs the device's name, which comes with it
        sessions.choose_rule(rules, rule, "", ctx)
    kept = open_folder(keep)
    arguments = [
        f"--arm={','.join(measured)}", f"--ctx={ctx}", f"--batch={batch}", f"--dtype={dtype}", f"--device={device}",
        f"--warmup={warmup}", f"--steps={steps}", f"--threads={threads}", f"--seed={seed}", f"--layers={layers}",
        f"--model={model}", f"--config={config}", f"--weights={weights}",
    ]  # fmt: skip
    registered = {"file": file.name, "sha256": digest}
    plan = Plan(arms, measured, places, kept, planned, limit_s, rules, rule, registered, ctx, batch, arguments)
    result = run(plan, outputs.write)
    # An error that ended every session is worth no verdict.
    return close(result, outputs, show) or (0 if any(one["status"] == "ok" for one in result["sessions"]) else 1)


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
