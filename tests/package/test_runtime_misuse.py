"""Programs, tapes and threads used as nobody should: every call ends in an error that says why, never in a crash."""

import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from inputs.fork_server import script_command

import pykernels as pk
from pykernels import runtime
from pykernels.dispatch import Tape


def null_program() -> runtime.Program:
    x = torch.zeros(1)
    with runtime.record() as program:
        pk.ops.null(x)
    return program


def in_thread(function) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.mark.parametrize("loop", [runtime.timed_loop, runtime.timed_ops], ids=["timed_loop", "timed_ops"])
def test_none_among_programs(loop):
    with pytest.raises(ValueError, match=r"programs\[0\] must be a program, got None"):
        loop([None], 0, 1)
    with pytest.raises(ValueError, match=r"programs\[1\] must be a program, got None"):
        loop([null_program(), None], 0, 1)


def test_a_program_does_not_run_while_it_is_recorded():
    x = torch.zeros(1)
    with runtime.record() as program:
        pk.ops.null(x)
        for run in (program.run, lambda: in_thread(program.run), lambda: runtime.timed_loop([program], 0, 1)):
            with pytest.raises(RuntimeError, match="the program is being recorded"):
                run()
    program.run()


def test_running_while_another_thread_records():
    x, stop = torch.zeros(1), threading.Event()

    def run_it(program: runtime.Program) -> int:
        refused = 0
        while not stop.is_set():
            try:
                program.run()
            except RuntimeError:
                refused += 1
        return refused

    with ThreadPoolExecutor(2) as pool, runtime.record() as program:
        runs = [pool.submit(run_it, program) for _ in range(2)]
        for _ in range(20000):
            pk.ops.null(x)
        stop.set()
        assert all(run.result() > 0 for run in runs)
    assert len(program) == 20000
    program.run()


def test_a_program_is_recorded_once():
    program = null_program()
    with pytest.raises(RuntimeError, match="a program is recorded once"):
        runtime._runtime.set_recording(program)
    assert not runtime._runtime.is_recording()


def test_a_recording_that_is_left_in_another_thread():
    recording = runtime.record()
    program = recording.__enter__()
    x = torch.zeros(1, 8)
    pk.ops.null(x)

    def leave() -> None:
        with pytest.raises(RuntimeError, match="entered in one thread and left in another"):
            recording.__exit__(None, None, None)

    in_thread(leave)
    assert not runtime._runtime.is_recording()
    out = torch.zeros(1, 8)
    pk.ops.add(x + 1, x, out=out)  # this thread computes again
    assert (out == 1).all() and len(program) == 1
    with runtime.record() as after:
        pk.ops.null(x)
    assert len(after) == 1


def test_a_recording_that_is_never_left():
    script = """
        import torch, pykernels as pk
        recording = pk.runtime.record()
        recording.__enter__()
        pk.ops.null(torch.zeros(1))
        del recording
        for _ in range(3):
            pk.ops.null(torch.zeros(1))
        print(pk.ops.add(torch.ones(1, 8), torch.ones(1, 8)).sum().item())
    """
    result = run_python(script)
    assert (result.returncode, result.stdout.strip()) == (0, "16.0"), result.stderr


def test_one_tape_in_six_threads():
    x, weight = torch.ones(1, 64), torch.eye(64)
    tape = Tape.record(lambda: torch.nn.functional.linear(x, weight) + x)

    def run_it() -> None:
        for _ in range(300):
            tape.run()
            assert (tape.outputs()[0] == 2).all()

    with ThreadPoolExecutor(6) as pool:
        for run in [pool.submit(run_it) for _ in range(6)]:
            run.result()


def run_python(script: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(script_command(script), capture_output=True, text=True, timeout=120, **options)


def test_threads_that_cannot_be_made():
    script = """
        import resource, torch, pykernels as pk
        pk.runtime.set_num_threads(2)
        x, weight = torch.ones(1, 4096), torch.ones(512, 4096)
        pk.ops.gemv(x, weight)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), -1))
        try:
            pk.runtime.set_num_threads(256)
        except RuntimeError as error:
            print(error)
        print(pk.runtime.num_threads(), pk.ops.gemv(x, weight)[0, 0].item())
    """
    result = run_python(script)
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr
    assert lines[0].startswith("the system cannot make 256 threads") and lines[1] == "2 4096.0"


LOOPS = {
    "one long sample": "pk.runtime.timed_loop([program], 0, 1, 1 << 62)",
    "a long warm-up": "pk.runtime.timed_loop([program], 1 << 62, 1, 1 << 62)",
    "timed_ops": "pk.runtime.timed_ops([program], 1 << 62, 1)",
    "many samples": "pk.runtime.timed_loop([program], 0, 1 << 26, 100)",
    "tape": "pk.dispatch.timed_loop([tape], 1 << 62, 1, 1 << 62)",
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_loop_ends_by_an_interrupt(loop):
    script = f"""
        import signal, torch, pykernels as pk, pykernels.dispatch
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background of a shell ignores it
        x = torch.zeros(1)
        tape = pk.dispatch.Tape.record(lambda: pk.ops.null(x))
        with pk.runtime.record() as program:
            pk.ops.null(x)
        try:
            print("begins", flush=True)
            {loop}
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        pk.runtime.timed_loop([program], 1, 1)
        print("goes on")
    """
    process = subprocess.Popen(script_command(script), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "begins\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=120)[0] == "interrupted\ngoes on\n"
    finally:
        process.kill()
    assert process.returncode == 0


@pytest.mark.parametrize("loop", [runtime.timed_loop, runtime.timed_ops], ids=["timed_loop", "timed_ops"])
def test_more_samples_than_memory_holds(loop):
    with pytest.raises((ValueError, MemoryError)):
        loop([null_program()], 0, 1 << 62)


def test_a_handler_that_raises_nothing_lets_the_loop_go_on():
    script = """
        import os, signal, threading, torch, pykernels as pk
        heard = []
        signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
        with pk.runtime.record() as program:
            pk.ops.spin(torch.zeros(1), 1000.0)
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        samples_us = pk.runtime.timed_loop([program], 0, 1000, 1)
        print(len(samples_us), heard)
    """
    result = run_python(script)
    assert (result.returncode, result.stdout.strip()) == (0, "1000 [1]"), result.stderr
