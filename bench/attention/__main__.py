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
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from bench.attention import aa as attention_aa
from bench.attention import document as attention_document
from bench.attention import plugins as attention_plugins
from bench.attention import tables as attention_tables
from bench.attention.arms import MODES, SECOND, DeviceLostError, known
from bench.attention.session import Session, estimated_seconds, noted
from bench.attention.settings import Settings
from bench.core import claims, cli, document, environment
from bench.core.document import Document
from bench.core.errors import flag_error
from bench.core.flags import make_command
from bench.core.kept import Kept, flag_difference, flags_of_any_device, machine_difference, open_folder
from bench.core.listing import print_backends
from bench.core.outputs import Outputs
from bench.core.processes import Outcome, run_module
from bench.core.progress import about, progress, seconds_since_start
from bench.core.run import close
from bench.drivers import takes
from bench.plugins import plan as plugins
from bench.plugins.loading import KINDS


def make_document(settings: Settings, sessions: list[Document], interrupted: bool, planned: int = 0) -> Document:
    """The document of kind `attention`, of as many sessions as there are; their entries are whole. planned: sessions;
    0: those of the settings."""
    first = sessions[0] if sessions else None
    cells_ = settings.cells
    return {
        **cli.head(
            "bench.attention", "attention",
            title="attention alone, " + ("compared with the reference" if settings.gate else "one decode call"),
            interrupted=interrupted,
            environment=(first and first["environment"]) or environment.collect(settings.target),
        ),
        "gate_only": settings.gate,
        "models": list(dict.fromkeys(name for cell in cells_ for name in cell.layers)),
        "ctxs": sorted({cell.ctx for cell in cells_}), "batches": sorted({cell.batch for cell in cells_}),
        "dtype": settings.dtype, "device": settings.target.type, "l2": settings.l2,
        "calls": settings.plan.calls, "warmup": settings.plan.warmup, "sdpa_from": list(settings.plan.sdpa_from),
        "flags": settings.run_flags if settings.sessions else settings.session_flags,
        "sessions_planned": planned or max(settings.sessions, 1), **attention_document.packed(sessions),
    }  # fmt: skip


def taken_up(path: Path | None, settings: Settings) -> Document | None:
    """The session in this process that a run of the same flags began. Raises UsageError where its flags were others."""
    if path is None or not path.exists():
        return None
    result = document.load(path, "attention")
    why = flag_difference(result["flags"], settings.session_flags)
    why = why or machine_difference(result["environment"], environment.collect())
    if why:
        raise flag_error("--resume", path, f"of a run of the same flags, build and machine: {why}")
    return attention_document.sessions(result)[0]


def run_here(settings: Settings, path: Path | None) -> tuple[list[Document], bool]:
    """One session in this process. Returns it, in a list, and whether it was interrupted.

    With a path its document is written after every cell, and beside it (.running) whose calls are tried.
    """
    earlier = taken_up(path, settings) if settings.resume else None
    with noted(path.with_suffix(".running") if path else None) as begin:

        def save() -> None:
            if path:
                with suppress(OSError):  # the end of the run says what is wrong with the file
                    document.write_json(path, make_document(settings, [session.document], interrupted=True))

        session = Session(settings, earlier, begin, save)
        with progress("cells", len(settings.cells) * (1 + settings.traces)) as advance:
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


def run_session(number: int, settings: Settings, arguments: list[str]) -> tuple[Document, bool]:
    """A session in a fresh process, and whether it was interrupted: then it has the cells that were done. A backend
    whose calls end the process, or hang it, is left out of what remains."""
    backends, interrupted = list(settings.plan.backends), False
    lost: dict[str, str] = {}
    empty: Document = {"environment": None, "ceilings": {}, "sdpa": {}, "throttled": {}, "entries": []}
    if not backends:  # plug-ins alone were named, and those have processes of their own
        done = {"status": "ok", "reason": None, "trace_seconds": 0.0}
        return empty | done | {"session": number, "lost": lost}, False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session.json"
        while True:
            # The last of a repeated flag counts.
            chosen = [*arguments, *_backend_flags(backends), "--sessions=0", "--resume", f"--json={path}"]
            try:
                outcome = run_module("bench.attention", chosen, settings.limit_s)
            except KeyboardInterrupt:
                if not path.exists():
                    raise
                outcome, interrupted = Outcome("error", "was interrupted", None), True
            running = path.with_suffix(".running")
            culprit = running.read_text() if running.exists() else ""
            running.unlink(missing_ok=True)
            result = document.load(path, "attention") if path.exists() else None
            ended = result is not None and not result["interrupted"]
            if interrupted:
                break
            if not ended and culprit:
                lost[culprit] = f"{outcome.status}: {outcome.reason}"
            if ended or culprit not in backends or len(backends) == 1:
                break
            backends.remove(culprit)
    session = attention_document.sessions(result)[0] if result else empty
    status = {"status": "ok", "reason": None} if ended else {"status": outcome.status, "reason": outcome.reason}
    return session | status | {"session": number, "lost": lost}, interrupted


def to_go(session: Document, left: int) -> str:
    """How long the sessions that are left will take, if they take as long as that one less its traces."""
    if session["status"] != "ok" or not left:
        return ""
    seconds = left * (session["seconds"] - session["trace_seconds"])
    return f"; {left} more: about {about(seconds)} at its rate"


def run_sessions(
    settings: Settings, kept: Kept, save: Callable[[Document], None], say: Callable[[str], None]
) -> tuple[list[Document], bool]:
    """The sessions, each saved when it is done; those that are kept are not measured again. Ctrl-C keeps those that are
    done, and of the one that was running its cells."""
    done: list[Document] = []
    lost: list[plugins.Found] = []
    planned, plugged = settings.sessions, settings.plugin_plan
    files = [f"sha256={plugins.digest(plugin)}" for plugin in plugged.plugins]
    by_name = {f"session-{number:02}{settings.share.suffix}": number for number in range(planned)}

    def flags_of(number: int) -> list[str]:
        # Which kernels run is the same in all sessions; to trace them takes as long as to measure.
        return [*settings.run_flags, *(settings.untraced if number == 0 else ["--no-trace-kernels"])]

    def known_by(number: int) -> list[str]:
        return flags_of_any_device([*flags_of(number), *files], settings.target.type)

    shared = claims.parts(kept.folder, by_name, lambda name: kept.load(name, known_by(by_name[name])) is not None)
    try:
        for name, _ in shared:
            number = by_name[name]
            flags, whose = flags_of(number), known_by(number)
            if earlier := kept.load(name, whose):
                session, how = attention_document.sessions(earlier)[0], "finished before"
            else:
                begin = time.monotonic()
                # Plug-ins first: one that is none ends the run, and should do so at once. One that came to nothing, in
                # a time limit it may be, is not tried again.
                hopeful = [one for one in plugged.plugins if one not in [found.plugin for found in lost]]
                found = [*lost, *plugins.measure_all(replace(plugged, plugins=hopeful))]
                lost = [one for one in found if one.document is None]
                session, interrupted = run_session(number, settings, flags)
                session = attention_plugins.join(session, found, plugged.limit_s, settings)
                session["seconds"] = time.monotonic() - begin
                if interrupted:
                    return [*done, session], True
                how = session["status"]
                if how == "ok":
                    kept.save(name, make_document(settings, [session], interrupted=False, planned=1), whose)
                else:
                    how += f" ({session['reason']})"
            session["session"] = number
            done = sorted([*done, session], key=lambda session: session["session"])
            save(make_document(settings, done, interrupted=len(done) < planned))
            left = to_go(session, planned - len(done))
            say(f"session {len(done)} of {planned}: {how}, {session['seconds']:.0f} s{left}")
    except KeyboardInterrupt:
        if not done:
            raise
        return done, True
    finally:
        shared.close()
    return done, False


def announce(settings: Settings, console: Console) -> None:
    """How much there is to do, and how long it might take."""
    words = f"{len(settings.cells)} cells, {len(settings.plan.backends)} backends, {settings.sessions} sessions"
    if not settings.gate:
        # What a process needs to begin is what this one needed; the calls' share of it is made of bytes and bandwidth.
        processes = 1 + len(settings.plugin_plan.plugins)
        seconds = estimated_seconds(settings) + processes * seconds_since_start()
        words += f": about {about(seconds)} a session, {about(seconds * settings.sessions)} in all, predicted; "
        words += "what a session took is said when it is done"
    console.print(Text(words))


def _write_pictures(path: Path, result: Document) -> None:
    from bench.attention import plots  # matplotlib takes a second: only where a picture is written

    plots.write(path, result)


def finish(result: Document, outputs: Outputs) -> int:
    """Print and write the document; the exit status."""
    writers = {"--md": attention_tables.write_markdown, "--plot": _write_pictures}
    status = close(result, outputs, attention_tables.print_document, writers=writers)
    if status != cli.INTERRUPTED and not any(session["status"] == "ok" for session in result["sessions"]):
        print(f"bench.attention: no session came to its end: {result['sessions'][-1]['reason']}", file=sys.stderr)
        return 1
    return status


def print_list(settings: Settings) -> None:
    """What --list prints: models, and every backend with what it needs here."""
    device = settings.target
    print_backends(
        (name, backend.description, backend.availability(device),
         [mode for mode in MODES if mode in backend.modes(device)])
        for name, backend in known().items()
    )  # fmt: skip
    print(f"plug-ins: {KINDS} (docs/plugins.md)")


def main(settings: Settings) -> int:
    """Attention alone, in every backend, on four clocks."""
    if settings.list_:
        print_list(settings)
        return 0
    outputs = Outputs(settings.json, settings.csv, settings.md, settings.plot)
    settings.check()
    kept = open_folder(settings.keep, "attention")
    cli.set_threads(settings.threads)
    path, sessions = outputs.paths.get("--json"), settings.sessions
    if sessions == 0:
        try:
            measured = plugins.measure_all(settings.plugin_plan)
            found, interrupted = run_here(settings, path)
            found = [attention_plugins.join(found[0], measured, settings.plugin_timeout_s, settings)]
        except DeviceLostError as error:
            print(f"bench.attention: {error.reason}", file=sys.stderr)
            return 3
    else:
        announce(settings, Console())
        found, interrupted = run_sessions(settings, kept, outputs.keep, lambda text: print(text, flush=True))
    result = make_document(settings, found, interrupted)
    if settings.aa:
        result["aa"] = attention_aa.compare([session["entries"] for session in found])
    return finish(result, outputs)


command = make_command(main, Settings, takes("attention"))


if __name__ == "__main__":
    sys.exit(cli.run("bench.attention", command))
