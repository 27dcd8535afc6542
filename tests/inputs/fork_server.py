"""Processes of our drivers, forked from one that has imported what they import: that takes a tenth of a second of
processor time, and the imports of torch and bench two to three seconds.

Popen stands for subprocess.Popen in the tests (tests/conftest.py). It forks what is sure to be the same: `python -m
bench...` from the repository's root, and the processes of bench.core.processes, where neither the environment nor
sys.path differs from the tests' own in what an import can read. Whatever else is started is started as ever; so is
everything inside of true_processes(), with LAUNCHTAX_TEST_FRESH=1, and where there is a GPU (CUDA does not outlive a
fork).

Every process has a server of its own below it, which was forked from the first before the process did anything. The
server forks twice for a new process, whose parent becomes the one that asked: the nearest subreaper above it. Its pid,
signals, exit status, pipes, session, exit handlers, and its death with its parent are those of a true process.
"""

import atexit
import ctypes
import gc
import inspect
import io
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent

_MAY_DIFFER = (
    "COLUMNS", "LINES", "PWD", "OLDPWD", "SHLVL", "_", "PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR", "RAY_CLIENT_MODE", "PYTHONBREAKPOINT",
)  # fmt: skip
"""Variables that no import reads, and those that libraries set for themselves while they run."""
_MESSAGE_BYTES = 128 << 10
_MARK = "# What this imports may be imported before it begins.\n"
_PR_SET_PDEATHSIG = 1

_TruePopen: Any = subprocess.Popen
_BEGIN = """
import sys
own = sys.path[1:]
sys.path[:] = {path!r}
from inputs import fork_server
fork_server.begin({descriptor}, own)
"""


class _Client:
    """What a process knows of its server."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.socket: socket.socket | None = None
        self.environment: Mapping[str, str] = {}
        self.path: Sequence[str] = ()
        self.switched_off = True

    def use(self, connection: socket.socket) -> None:
        """Ask there from here on."""
        from bench.core import descendants  # bench would bring torch with it before it is needed

        descendants.become_subreaper()
        self.socket = connection

    def ask(self, request: Mapping[str, object], descriptors: Sequence[int]) -> int:
        """The pid of a new process that has those as stdin, stdout and stderr."""
        with self.lock:
            if self.socket is None:
                self.use(self._start())
            assert self.socket
            socket.send_fds(self.socket, [json.dumps(request).encode()], descriptors)
            answer = self.socket.recv(32)
        if not answer:
            raise OSError("the tests' fork server has ended; LAUNCHTAX_TEST_FRESH=1 does without")
        return int(answer)

    def _start(self) -> socket.socket:
        """In this process's session: bench.core.descendants takes it for no orphan. It ends when we do."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-c", _BEGIN.format(path=list(self.path), descriptor=theirs.fileno())]
        with theirs:
            nothing = subprocess.DEVNULL
            _TruePopen(
                command, cwd=ROOT, env=dict(self.environment), stdin=nothing, stdout=nothing, stderr=nothing,
                pass_fds=(theirs.fileno(),),
            ).returncode = 0  # nobody waits for it  # fmt: skip
        return ours


_client = _Client()


def install() -> None:
    """For the tests of this process, from here on."""
    import torch

    _client.environment, _client.path = dict(os.environ), list(sys.path)
    _client.switched_off = bool(os.environ.get("LAUNCHTAX_TEST_FRESH")) or torch.cuda.is_available()
    subprocess.Popen = Popen  # type: ignore[misc]


@contextmanager
def true_processes() -> Iterator[None]:
    """Start processes as a user does."""
    before = _client.switched_off
    _client.switched_off = True
    try:
        yield
    finally:
        _client.switched_off = before


@contextmanager
def own_path() -> Iterator[None]:
    """What is added to sys.path inside is gone afterwards: with a plug-in's folder on it no process would be forked."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = [entry for entry in sys.path if entry in before or _is_installed(entry)]


def _is_installed(entry: str) -> bool:
    """What is installed may add a folder of its own to sys.path, once, when it is imported, as Ray does."""
    return entry.startswith(sysconfig.get_path("purelib") + os.sep)


def default_ctrl_c() -> None:
    """A preexec_fn: a suite started in the background of a shell ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """A signal whose handler is Python's waits: a true start is one call of C, which none interrupts."""
    heard: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in heard:
            signal.raise_signal(number)


def script_command(text: str) -> list[str]:
    """The command of a process that runs that Python text, and that may be forked."""
    return [sys.executable, "-c", _MARK + textwrap.dedent(text)]


def _request(given: Mapping[str, Any]) -> dict[str, object] | None:
    """What to ask for in place of a start with those arguments of subprocess's; None where only the start will do."""
    arguments, environment = given["args"], dict(os.environ if given["env"] is None else given["env"])
    of_files = {name for name in given if name.startswith(("p2c", "c2p", "err"))}
    ignored = {"self", "args", "env", "cwd", "start_new_session", "close_fds", "restore_signals", "preexec_fn"}
    ignored |= {"creationflags"}
    usual = (None, False, -1, ())
    unusual = [name for name, value in given.items() if name not in ignored | of_files and value not in usual]
    if (
        _client.switched_off or unusual or given["preexec_fn"] not in (None, default_ctrl_c)
        or _read_by_imports(environment) != _read_by_imports(_client.environment)
        or not isinstance(arguments, list) or len(arguments) < 3 or arguments[0] != sys.executable
    ):  # fmt: skip
        return None
    from bench.core import processes

    cwd = Path(given["cwd"] or os.getcwd()).resolve()
    path: list[str] | None = None
    _, option, code, *flags = arguments
    module: str | None = code
    if option == "-c" and code == processes._START:
        parent, path, module, flags = flags[0], json.loads(flags[1]), flags[2], flags[3:]
        if int(parent) != os.getpid():  # it is to end: its parent has died
            return None
    elif option == "-c" and code.startswith(_MARK):
        module = None
    elif option != "-m" or cwd != ROOT:
        return None
    others = {entry for entry in path or () if not _is_installed(entry)} - {*_client.path, str(ROOT)}
    if others or (module and module.partition(".")[0] != "bench"):
        return None
    return {
        "module": module, "code": code, "flags": [str(flag) for flag in flags], "path": path, "cwd": str(cwd),
        "environment": environment, "parent": os.getpid(), "new_session": bool(given["start_new_session"]),
    }  # fmt: skip


def _read_by_imports(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _MAY_DIFFER}


class Popen(_TruePopen):
    """subprocess.Popen, whose one method that starts the process asks the server where it can."""

    def _execute_child(self, *arguments: object, **named: object) -> None:
        given = inspect.signature(_TruePopen._execute_child).bind(self, *arguments, **named).arguments
        request = _request(given)
        if request is None:
            super()._execute_child(*arguments, **named)
            return
        try:
            ends = (given["p2cread"], given["c2pwrite"], given["errwrite"])
            with _no_interrupt():
                self.pid = _client.ask(request, [own if end == -1 else end for own, end in enumerate(ends)])
                self._child_created = True
        finally:
            names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(given[name] for name in names))


# --- the server


def begin(descriptor: int, path: Sequence[str]) -> None:
    """Import what the drivers do, and fork. path: what a process that is started from the root has after that."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a whole group they are not meant for the server
        signal.signal(number, signal.SIG_IGN)
    _client.environment, _client.path, _client.switched_off = dict(os.environ), list(sys.path), False
    sys.path[:] = [str(ROOT), str(ROOT / "tests"), *path]
    _import()
    sys.path.remove(str(ROOT / "tests"))
    subprocess.Popen = Popen  # type: ignore[misc]
    sys.excepthook = _without_our_frames
    gc.collect()
    gc.freeze()  # what is there is garbage to none of those to come: they need not copy its pages
    _serve(socket.socket(fileno=descriptor))


def _import() -> None:
    """What drivers import when they begin and, of what takes long, later."""
    import matplotlib.pyplot  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch._inductor  # noqa: F401

    from inputs import command_line, small_machine

    small_machine.pretend()
    # A driver that is run is not one that was imported; and none knows of the tests' own.
    begun = {f"{driver}{main}" for driver in command_line.COMMANDS for main in ("", ".__main__")}
    for name in [name for name in sys.modules if name in begun or (name.startswith("inputs.") and name != __name__)]:
        del sys.modules[name]


def _serve(connection: socket.socket) -> None:
    """Returns in the new processes alone, when they are done."""
    while True:
        message, descriptors, *_ = socket.recv_fds(connection, _MESSAGE_BYTES, 3)
        if not message:
            os._exit(0)
        read, write = os.pipe()
        middle = os.fork()
        if not middle:
            new = os.fork()
            if new:
                os.write(write, str(new).encode())
                os._exit(0)
            break
        os.waitpid(middle, 0)
        pid = os.read(read, 32)
        for descriptor in (read, write, *descriptors):
            os.close(descriptor)
        connection.send(pid)
    os.close(read)
    os.close(write)
    connection.close()
    _begin_process(json.loads(message), descriptors)


def _begin_process(request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """In the new process."""
    until = time.monotonic() + 60
    while os.getppid() != request["parent"]:  # until the one between has ended
        if time.monotonic() > until:
            os._exit(1)
        time.sleep(0.0005)
    if request["new_session"]:
        os.setsid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():  # its own server
        ours.close()
        for descriptor in descriptors:
            os.close(descriptor)
        _serve(theirs)
        return
    theirs.close()
    _client.lock = threading.Lock()
    _client.use(ours)
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = (_stream(standard) for standard in range(3))
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if request["path"] is not None:  # as bench.core.processes begins one
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != request["parent"]:
            os._exit(1)
        sys.path[:] = request["path"]
    sys.argv[:] = [request["module"] or "-c", *request["flags"]]
    try:
        if request["module"]:
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = ""
            exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
        status: object = 0
    except SystemExit as exit:
        status = exit.code or 0
    if not isinstance(status, int):
        sys.exit(status)
    _exit(status)


def _exit(status: int) -> None:
    """As Python ends a process but for its modules, which it takes apart one by one for three tenths of a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            sys.exit(status)  # Python has words and a status of its own for that
    os._exit(status & 0xFF)


def _stream(standard: int) -> io.TextIOWrapper:
    """As Python opens it: a terminal, a pipe and a file are each another kind."""
    server_s = (sys.__stdin__, sys.__stdout__, sys.__stderr__)[standard]
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED")) and standard > 0
    return io.TextIOWrapper(
        open(standard, "wb" if standard else "rb", buffering=0 if unbuffered else -1, closefd=False),
        encoding=server_s.encoding, errors=server_s.errors, write_through=unbuffered,
        line_buffering=not unbuffered and (standard == 2 or os.isatty(standard)),
    )  # fmt: skip


def _without_our_frames(kind: Any, error: Any, traceback: Any) -> None:
    """A traceback begins where a true process's does."""
    frame = traceback
    while frame:
        if frame.tb_frame.f_code.co_filename == __file__:
            traceback = frame.tb_next
        frame = frame.tb_next
    sys.__excepthook__(kind, error.with_traceback(traceback), traceback)
