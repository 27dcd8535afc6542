"""Ctrl-C while a driver's modules are being imported."""

import signal
import subprocess
import sys

import pytest
from inputs.busy import HANG_S
from inputs.command_line import COMMANDS, ROOT, start

from bench.core import early_interrupt

# Stands where torch does, and turns Ctrl-C into another error, as the imports of extension modules do.
SLOW_TORCH = """
import time
print("importing", flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    raise ImportError("initialization failed") from None
"""


@pytest.mark.parametrize("driver", COMMANDS)
def test_one_line_and_status_130(driver, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text(SLOW_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = start(driver, "--json=none.json")
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, out) == (130, "")
    assert err == f"{driver}: interrupted before anything was measured\n"


def ran(code: str, *, handler: signal.Handlers = signal.SIG_DFL) -> str:
    """What a process that does not run one of our modules prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=HANG_S,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )  # fmt: skip
    return done.stdout


def test_the_importing_program_keeps_its_own_ctrl_c():
    assert ran("import bench, signal; print(signal.getsignal(signal.SIGINT).__name__)") == "default_int_handler\n"


@pytest.mark.parametrize("then", ["raise", "return 130"])
def test_the_exit_status_is_kept_where_text_was_being_run(monkeypatch, tmp_path, then):
    code = f"""
import sys
from bench.core import cli
def command():
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        {then}
sys.exit(cli.run("bench.layer", command))
"""
    (tmp_path / "driver.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run([sys.executable, "-m", "driver"], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 130, done.stderr


GUARDED = """
import signal, sys
sys.orig_argv, sys.argv = ["python", "-m", "bench.layer", "--ctx=8"], ["-m", "--ctx=8"]
import bench
from bench.core import early_interrupt
print(getattr(signal.getsignal(signal.SIGINT), "__name__", signal.getsignal(signal.SIGINT)))
early_interrupt.release()
print(getattr(signal.getsignal(signal.SIGINT), "__name__", signal.getsignal(signal.SIGINT)))
"""


def test_it_is_guarded_from_the_import_to_the_command():
    assert ran(GUARDED).split() == ["_end", "default_int_handler"]


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it():
    assert ran(GUARDED, handler=signal.SIG_IGN).split("\n")[:2] == [str(signal.SIG_IGN.value)] * 2


@pytest.mark.parametrize(
    ("argv", "original", "module"),
    [
        (["-m", "--ctx=8"], ["python", "-X", "dev", "-m", "bench.layer", "--ctx=8"], "bench.layer"),
        (["-m"], ["python", "-mbench.op"], "bench.op"),
        (["-m", "-m"], ["python", "-Bm", "bench.op", "-m"], "bench.op"),
        (["/somewhere/bench/op.py", "-m"], ["python", "-m", "bench.op", "-m"], ""),
    ],
)
def test_the_module_that_is_started(monkeypatch, argv, original, module):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert early_interrupt._starting_module() == module
