"""Attention alone: every backend at the head shapes of the models, over contexts and batches, in fresh sessions.

python -m bench.attention --sessions=3 --json=attention.json --md=attention.md --plot=attention.png
python -m bench.attention --backend=sdpa,sdpa-flash --context-manager=outside,inside --ctx=2048 --batch=1 --l2=warm
python -m bench.attention --gate --backend=all --model=qwen2.5-7b,llama-3.1-8b --heads=64/8    # is each right?
python -m bench.attention --backend=native --aa=native             # one backend under two names

Each backend has four clocks a call: `wall` in steady state, eager and from a graph; `host`, enqueuing alone; `latency`,
one call on an idle device to its end; `device`, its kernels alone. With --keep=FOLDER the sessions' own documents stay
there: killed at any point and run again, finished sessions are not measured again.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import pykernels as pk
from bench.attention import aa as attention_aa
from bench.attention import document as attention_document
from bench.attention import plugins as attention_plugins
from bench.attention import tables as attention_tables
from bench.attention.arms import MANAGERS, MODES, NAMES, SDPA_KERNELS, SECOND, DeviceLostError, Plan
from bench.attention.cases import cells, parse_heads
from bench.attention.session import Session, Settings, estimated_seconds, noted
from bench.core import cli, document, environment
from bench.core.document import Document
from bench.core.errors import UsageError, flag_error
from bench.core.kept import KeepFlag, Kept, open_folder
from bench.core.processes import Outcome, run_module
from bench.core.progress import progress
from bench.core.run import close
from bench.plugins import plan as plugins
from bench.plugins.loading import Journal, load_attention, parse_backends

# Of attention alone: no positions are turned here, so no model's limit holds.
MAX_CTX = 131072
# It compiles at every shape, which takes longer than measuring it.
_ASKED_FOR = ("flex",)


def make_document(settings: Settings, sessions: list[Document], planned: int, interrupted: bool) -> Document:
    """The document of kind `attention`, of as many sessions as there are; their entries are whole."""
    first = sessions[0] if sessions else None
    cells_ = settings.cells
    return {
        **cli.head(
            "bench.attention", "attention",
            title="attention alone, " + ("compared with the reference" if settings.gate_only else "one decode call"),
            interrupted=interrupted, environment=(first and first["environment"]) or environment.collect(),
        ),
        "gate_only": settings.gate_only,
        "models": list(dict.fromkeys(name for cell in cells_ for name in cell.layers)),
        "ctxs": sorted({cell.ctx for cell in cells_}), "batches": sorted({cell.batch for cell in cells_}),
        "dtype": settings.dtype, "device": settings.device.type, "l2": settings.l2,
        "calls": settings.plan.calls, "warmup": settings.plan.warmup, "sdpa_from": list(settings.plan.sdpa_from),
        "flags": settings.flags,
        "sessions_planned": planned, **attention_document.packed(sessions),
    }  # fmt: skip


def taken_up(path: Path | None, settings: Settings) -> Document | None:
    """The session in this process that a run of the same flags began. Raises UsageError where its flags were others."""
    if path is None or not path.exists():
        return None
    result = document.load(path)
    if result.get("kind") != "attention" or result["flags"] != settings.flags:
        raise flag_error("--resume", path, f"of a run with the same flags, and its were {result.get('flags')}")
    return attention_document.sessions(result)[0]


def run_here(settings: Settings, path: Path | None, resume: bool) -> tuple[list[Document], bool]:
    """One session in this process. Returns it, in a list, and whether it was interrupted.

    With a path its document is written after every cell, and beside it (.running) whose calls are tried.
    """
    earlier = taken_up(path, settings) if resume else None
    with noted(path.with_suffix(".running") if path else None) as begin:

        def save() -> None:
            if path:
                document.write_json(path, make_document(settings, [session.document], 1, interrupted=True))

        session = Session(settings, earlier, begin, save)
        with progress("cells", len(settings.cells) * (1 + settings.trace)) as advance:
            try:
                with settings.plan.sdpa_choice():
                    session.run(advance)
            except KeyboardInterrupt:
                if not session.entries:
                    raise
                session.document |= {"status": "error", "reason": "was interrupted"}
                return [session.document], True
            except DeviceLostError as error:
                begin(error.backend)
                raise
    session.document |= {"status": "ok", "reason": None}  # one that is taken up says how it ended before
    return [session.document], False


def _backend_flags(backends: list[str]) -> list[str]:
    """The flags that name the backends, those registered once more too."""
    once = [name for name in backends if not name.endswith(SECOND)]
    more = [name.removesuffix(SECOND) for name in backends if name.endswith(SECOND)]
    return [f"--backend={','.join(dict.fromkeys(once + more))}", f"--aa={','.join(more)}"]


def run_session(number: int, settings: Settings, arguments: list[str], limit_s: float) -> tuple[Document, bool]:
    """A session in a fresh process, and whether it was interrupted: then it has the cells that were done. A backend
    whose calls end the process, or hang it, is left out of what remains."""
    backends, lost, interrupted = list(settings.plan.backends), {}, False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session.json"
        while True:
            # The last of a repeated flag counts.
            chosen = [*arguments, *_backend_flags(backends), "--sessions=0", "--resume", f"--json={path}"]
            try:
                outcome = run_module("bench.attention", chosen, limit_s)
            except KeyboardInterrupt:
                if not path.exists():
                    raise
                outcome, interrupted = Outcome("error", "was interrupted", None), True
            running = path.with_suffix(".running")
            culprit = running.read_text() if running.exists() else ""
            running.unlink(missing_ok=True)
            result = document.load(path) if path.exists() else None
            ended = result is not None and not result["interrupted"]
            if interrupted:
                break
            if not ended and culprit:
                lost[culprit] = f"{outcome.status}: {outcome.reason}"
            if ended or culprit not in backends or len(backends) == 1:
                break
            backends.remove(culprit)
    empty: Document = {"environment": None, "ceilings": {}, "sdpa": {}, "throttled": {}, "entries": []}
    session = attention_document.sessions(result)[0] if result else empty
    status = {"status": "ok", "reason": None} if ended else {"status": outcome.status, "reason": outcome.reason}
    return session | status | {"session": number, "lost": lost}, interrupted


def to_go(session: Document, left: int) -> str:
    """How long the sessions that are left will take, if they take as long as that one less its traces."""
    if session["status"] != "ok" or not left:
        return ""
    seconds = left * (session["seconds"] - session["trace_seconds"])
    return f"; {left} more: about {f'{seconds:.0f} s' if seconds < 100 else f'{seconds / 60:.0f} min'} at its rate"


def run_sessions(
    settings: Settings, planned: int, untraced: list[str], plugged: plugins.Plan, kept: Kept, limit_s: float,
    save: Callable[[Document], None], say: Callable[[str], None],
) -> tuple[list[Document], bool]:  # fmt: skip
    """The sessions, each saved when it is done; those that are kept are not measured again. Ctrl-C keeps those that are
    done, and of the one that was running its cells."""
    done: list[Document] = []
    lost: list[plugins.Found] = []
    files = [f"sha256={plugins.digest(plugin)}" for plugin in plugged.plugins]
    try:
        for number in range(planned):
            # Which kernels run is the same in all sessions; to trace them takes as long as to measure.
            flags = [*settings.flags, *(untraced if number == 0 else ["--no-trace-kernels"])]
            name, whose = f"session-{number:02}", [*flags, *files]
            if earlier := kept.load(name, whose):
                session, how = attention_document.sessions(earlier)[0], "finished before"
            else:
                begin = time.monotonic()
                # Plug-ins first: one that is none ends the run, and should do so at once. One that came to nothing, in
                # a time limit it may be, is not tried again.
                hopeful = [one for one in plugged.plugins if one not in [found.plugin for found in lost]]
                found = [*lost, *plugins.measure_all(replace(plugged, plugins=hopeful))]
                lost = [one for one in found if one.document is None]
                session, interrupted = run_session(number, settings, flags, limit_s)
                session = attention_plugins.join(session, found, plugged.limit_s, settings)
                session["seconds"] = time.monotonic() - begin
                if interrupted:
                    return [*done, session], True
                how = session["status"]
                if how == "ok":
                    kept.save(name, make_document(settings, [session], 1, interrupted=False), whose)
                else:
                    how += f" ({session['reason']})"
            done.append(session)
            save(make_document(settings, done, planned, interrupted=len(done) < planned))
            left = to_go(session, planned - len(done))
            say(f"session {len(done)} of {planned}: {how}, {session['seconds']:.0f} s{left}")
    except KeyboardInterrupt:
        if not done:
            raise
        return done, True
    return done, False


def announce(settings: Settings, planned: int, console: Console) -> None:
    """How much there is to do, and how long it might take."""
    words = f"{len(settings.cells)} cells, {len(settings.plan.backends)} backends, {planned} sessions"
    if not settings.gate_only:
        seconds = estimated_seconds(settings)
        words += f": about {seconds:.0f} s a session, {seconds * planned / 60:.0f} min in all (a guess)"
    console.print(Text(words))


def _write_pictures(path: Path, result: Document) -> None:
    from bench.attention import plots  # matplotlib takes a second: only where a picture is asked for

    plots.write(path, result)


def finish(result: Document, outputs: cli.Outputs) -> int:
    """Print and write the document; the exit status."""
    writers = {"--md": attention_tables.write_markdown, "--plot": _write_pictures}
    status = close(result, outputs, attention_tables.print_document, writers=writers)
    if status != cli.INTERRUPTED and not any(session["status"] == "ok" for session in result["sessions"]):
        print(f"bench.attention: no session came to its end: {result['sessions'][-1]['reason']}", file=sys.stderr)
        return 1
    return status


def command(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help=f"comma-separated: {', '.join(pk.models.names())}; all: but tiny. Default: all; on a CPU tiny",
        ),
    ] = "",
    ctx: Annotated[
        str, typer.Option("--ctx", help="comma-separated contexts. Default: 1024 to 65536; on a CPU 256,1024")
    ] = "",
    heads: Annotated[
        str, typer.Option("--heads", help="comma-separated: other heads than the models', as 64/8 or 64/8x128")
    ] = "",
    batch: Annotated[str, typer.Option("--batch", help="comma-separated batches")] = "1,4",
    backend: Annotated[
        str,
        typer.Option("--backend", help=f"comma-separated: {', '.join(NAMES)}, plug-ins; all. Default: all but flex"),
    ] = "",
    aa: Annotated[str, typer.Option("--aa", help="A/A control: backends to register once more, as NAME@2")] = "",
    gate: Annotated[bool, typer.Option("--gate", help="compare every arm with the reference; time nothing")] = False,
    mode: Annotated[str, typer.Option("--mode", help=f"comma-separated: {', '.join(MODES)}; all")] = "all",
    context_manager: Annotated[
        str, typer.Option("--context-manager", help="where SDPA's is entered: outside the timed call, inside, or both")
    ] = "outside",
    sdpa_from: Annotated[
        str, typer.Option("--sdpa-from", help=f"what default SDPA may choose: {', '.join(SDPA_KERNELS)}; all")
    ] = "all",
    sessions: Annotated[
        int,
        typer.Option(
            "--sessions",
            help="fresh processes; 0: in this one",
            callback=cli.checked(cli.number, "--sessions", 0, 1000),
        ),
    ] = 3,
    calls: Annotated[
        int,
        typer.Option(
            "--calls",
            help="measured calls of an arm, on each clock",
            callback=cli.checked(cli.number, "--calls", 2, 100_000),
        ),
    ] = 300,
    warmup: Annotated[
        int,
        typer.Option(
            "--warmup", help="untimed calls before them", callback=cli.checked(cli.number, "--warmup", 0, 10_000)
        ),
    ] = 50,
    limit_s: Annotated[
        float,
        typer.Option("--limit-s", help="seconds a session may take", callback=cli.checked(cli.seconds, "--limit-s")),
    ] = 1800.0,
    dtype: cli.DtypeFlag = "bf16",
    device: cli.DeviceFlag = "auto",
    l2: Annotated[
        str,
        typer.Option(
            "--l2",
            help="cold: rotate copies of the cache past the L2; warm: one",
            callback=cli.checked(cli.choice, "--l2", ("cold", "warm")),
        ),
    ] = "cold",
    threads: cli.ThreadsFlag = 0,
    spec_gbs: cli.SpecFlag = 0.0,
    seed: cli.SeedFlag = 0,
    trace_kernels: Annotated[
        bool, typer.Option("--trace-kernels/--no-trace-kernels", help="name the kernels, and time them by CUPTI")
    ] = True,
    keep: KeepFlag = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="with --sessions=0: go on with the cells that --json has")
    ] = False,
    plugin_timeout_s: plugins.TimeoutFlag = 300.0,
    plugin_journal: plugins.JournalFlag = "",
    json: cli.JsonFlag = "",
    csv: cli.CsvFlag = "",
    md: cli.MdFlag = "",
    plot: Annotated[str, typer.Option("--plot", help="draw bars, and times over contexts (.png, .svg or .pdf)")] = "",
) -> int:
    """Attention alone, in every backend, on four clocks."""
    outputs = cli.Outputs(json, csv, md, plot)
    if gate and plot:
        raise flag_error("--plot", plot, "left out with --gate, which times nothing")
    target = cli.device(device)
    on_cuda = target.type == "cuda"
    names = pk.models.names()
    wanted = model or ("" if heads else "all" if on_cuda else "tiny")
    chosen = list(cli.STUDIED) if wanted == "all" else cli.choices("--model", wanted, names) if wanted else []
    specs = [*map(pk.models.get, chosen), *parse_heads("--heads", heads)]
    contexts = cli.numbers(
        "--ctx", ctx or ("1024,2048,4096,8192,16384,32768,65536" if on_cuda else "256,1024"), 1, MAX_CTX, int
    )
    batches = cli.numbers("--batch", batch, 1, 8, int)
    default = ",".join(name for name in NAMES if name not in _ASKED_FOR)
    backends, asked = parse_backends("--backend", backend or default, NAMES)
    watched = None
    if plugin_journal:  # this process is a plug-in's own
        (plugin,), asked = asked, []
        watched = load_attention(plugin, Journal(Path(plugin_journal)), target)
        backends = [watched.label, *backends]
    backends += map(attention_aa.second, cli.choices("--aa", aa, backends) if aa else [])
    plan = Plan(
        backends, cli.choices("--mode", mode, MODES), cli.choices("--context-manager", context_manager, MANAGERS),
        calls, warmup, cli.choices("--sdpa-from", sdpa_from, list(SDPA_KERNELS)), watched,
    )  # fmt: skip
    if resume and (sessions or not json):
        raise UsageError(
            "--resume: needs --sessions=0 and --json, the document to go on with; for more sessions --keep"
        )
    if keep and not sessions:
        raise flag_error("--keep", keep, "left out with --sessions=0, which has --resume")
    kept = open_folder(keep)
    spec = cli.spec_bandwidth(spec_gbs, target)
    cli.set_threads(threads)
    shared = [
        f"--model={','.join(chosen)}", f"--heads={heads}", *(["--gate"] if gate else []),
        f"--ctx={','.join(map(str, contexts))}", f"--batch={','.join(map(str, batches))}",
        f"--context-manager={','.join(plan.managers)}", f"--sdpa-from={','.join(plan.sdpa_from)}",
        f"--calls={calls}", f"--warmup={warmup}", f"--dtype={dtype}",
        f"--device={target.type}", f"--l2={l2}", f"--threads={threads}", f"--spec-gbs={spec_gbs}", f"--seed={seed}",
    ]  # fmt: skip
    untraced = [] if trace_kernels else ["--no-trace-kernels"]
    plugged = plugins.Plan(
        "bench.attention", asked, plan.modes, [*shared, *untraced, "--sessions=0"],
        [name for name in backends if name == "sdpa"], plugin_timeout_s,
    )  # fmt: skip
    modes = f"--mode={','.join(plan.modes)}"
    settings = Settings(
        cells(specs, contexts, batches), plan, dtype, target, l2, seed, spec, trace_kernels and on_cuda and not gate,
        [*shared, modes], gate,
    )  # fmt: skip
    path = outputs.paths.get("--json")
    if sessions == 0:
        try:
            measured = plugins.measure_all(plugged)
            found, interrupted = run_here(settings, path, resume)
            found = [attention_plugins.join(found[0], measured, plugged.limit_s, settings)]
        except DeviceLostError as error:
            print(f"bench.attention: {error.reason}", file=sys.stderr)
            return 3
    else:
        # What a lost backend is left out of must not keep a session from being taken up: backends are added here.
        named = ",".join([*backends, *(plugin.label for plugin in asked)])
        settings = replace(settings, flags=[*settings.flags, f"--backend={named}"])
        announce(settings, sessions, Console())

        def save(result: Document) -> None:
            if path:
                document.write_json(path, result)

        found, interrupted = run_sessions(
            settings, sessions, untraced, plugged, kept, limit_s, save, lambda text: print(text, flush=True)
        )
    result = make_document(settings, found, max(sessions, 1), interrupted)
    if aa:
        result["aa"] = attention_aa.compare([session["entries"] for session in found])
    return finish(result, outputs)


if __name__ == "__main__":
    sys.exit(cli.run("bench.attention", command))
