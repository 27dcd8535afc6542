"""Running a driver as a user does, and what a refusal looks like."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from bench import ab, compare, doctor, layer, op, sweep
from bench.attention import __main__ as attention
from bench.call import __main__ as call
from bench.core import cli
from bench.core.processes import Outcome
from bench.inside import __main__ as inside
from bench.int4 import __main__ as int4
from bench.launch import __main__ as launch
from bench.rate import __main__ as rate
from bench.report import __main__ as report
from bench.stack import __main__ as stack
from bench.step import __main__ as step
from bench.tune import __main__ as tune
from inputs.busy import HANG_S
from inputs.fork_server import default_ctrl_c

ROOT = Path(__file__).resolve().parent.parent.parent
COMMANDS = {
    "bench.layer": layer.command,
    "bench.op": op.command,
    "bench.int4": int4.command,
    "bench.doctor": doctor.command,
    "bench.inside": inside.command,
    "bench.step": step.command,
    "bench.compare": compare.command,
    "bench.ab": ab.command,
    "bench.attention": attention.command,
    "bench.stack": stack.command,
    "bench.launch": launch.command,
    "bench.call": call.command,
    "bench.rate": rate.command,
    "bench.report": report.command,
    "bench.sweep": sweep.command,
    "bench.tune": tune.command,
}


def flat(text: str) -> str:
    """The words of a text that was wrapped somewhere."""
    return " ".join(text.split())


@dataclass
class Result:
    """How a run ended."""

    status: int
    out: str
    err: str


def start(driver: str, *arguments: str, columns: int = 150) -> subprocess.Popen:
    """A driver in a process of its own, from the repository's root."""
    return subprocess.Popen(
        [sys.executable, "-m", driver, *arguments],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": str(columns)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_ctrl_c,
    )


def run(driver: str, *arguments: str, columns: int = 150, timeout_s: float = HANG_S) -> Result:
    """start(), to its end."""
    process = start(driver, *arguments, columns=columns)
    out, err = process.communicate(timeout=timeout_s)
    return Result(process.returncode, out, err)


def run_here(capsys, driver: str, *arguments: str) -> Result:
    """The same in this process: what `python -m driver` does after its imports."""
    status = cli.run(driver, COMMANDS[driver], list(arguments))
    captured = capsys.readouterr()
    return Result(status, captured.out, captured.err)


def run_module_here(module: str, arguments: Sequence[str], limit_s: float) -> Outcome:
    """bench.core.processes.run_module in this process, for tests that are of what a driver makes of its processes and
    not of the processes: a start takes seconds of imports."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as errors:
        status = cli.run(module, COMMANDS[module], list(arguments))
    words = errors.getvalue().strip().splitlines()[-1:]
    return Outcome("error", *words, status) if status else Outcome("ok", None, 0)


def assert_refused(result: Result, *words: str) -> None:
    """Exit status 2, nothing on stdout, one line on stderr that holds the words."""
    assert result.status == 2, result.err
    assert result.out == ""
    assert result.err.count("\n") == 1 and result.err.endswith("\n"), result.err
    assert "Traceback" not in result.err
    for word in words:
        assert word in result.err
