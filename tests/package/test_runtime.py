"""Programs and their recording, the native timed loops, the library's settings, and tapes of dispatcher calls."""

import gc
import subprocess
import threading
from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs.busy import HANG_S, assert_takes
from inputs.fork_server import script_command
from inputs.helpers import isa, randn, threads

import pykernels as pk
from pykernels import runtime
from pykernels.dispatch import Tape


def null_program(count: int = 1) -> runtime.Program:
    """A program of that many null ops."""
    x = torch.zeros(1)
    with runtime.record() as program:
        for _ in range(count):
            pk.ops.null(x)
    return program


def rotating() -> tuple[torch.Tensor, list[runtime.Program], list[Tape]]:
    """A log, and three programs and tapes that write into it whose turn it was: log = 10 * log + own number."""
    log, scaled, tens = torch.zeros(1, 8), torch.zeros(1, 8), torch.eye(8) * 10
    programs, tapes = [], []

    def step(own: torch.Tensor) -> None:
        pk.ops.gemv(log, tens, out=scaled)
        pk.ops.add(scaled, own, out=log)

    for number in (1.0, 2.0, 3.0):
        own = torch.full((1, 8), number)
        with runtime.record() as program:
            step(own)
        programs.append(program)
        tapes.append(Tape.record(step, own))
    log.zero_()
    return log, programs, tapes


def null_tape() -> Tape:
    """A tape of one null op."""
    x = torch.zeros(1)
    return Tape.record(lambda: pk.ops.null(x))


def test_recording_computes_nothing_and_run_computes_all():
    x, weight = randn(2, 64), randn(32, 64, seed=1)
    normed, out = torch.full((2, 64), -1.0), torch.full((2, 32), -1.0)
    with runtime.record() as program:
        assert pk.ops.rmsnorm(x, torch.ones(64), 1e-6, out=normed) is normed
        pk.ops.gemv(normed, weight, out=out)
    assert (normed == -1).all() and (out == -1).all()
    assert program.ops == ["rmsnorm", "gemv"] and len(program) == len(program.launchers()) == 2
    expected = pk.ops.gemv(pk.ops.rmsnorm(x, torch.ones(64), 1e-6), weight)
    program.run()
    assert torch.equal(out, expected)
    normed.fill_(0)
    program.launchers()[1]()
    assert (out == 0).all() and (normed == 0).all(), "a launcher runs its own op and no other"
    x.copy_(randn(2, 64, seed=9))
    program.run()
    assert torch.equal(out, pk.ops.gemv(pk.ops.rmsnorm(x, torch.ones(64), 1e-6), weight))


def test_recording_still_checks_arguments():
    with pytest.raises(ValueError, match="gemv"), runtime.record() as program:
        pk.ops.gemv(torch.zeros(1, 8), torch.zeros(4, 9))
    assert program.ops == program.launchers() == []


def test_recordings_do_not_nest():
    with runtime.record() as program:
        with pytest.raises(RuntimeError, match="this thread is recording already"), runtime.record():
            pass
        pk.ops.null(torch.zeros(1))
    assert program.ops == ["null"], "the refused recording must not end the outer one"


def test_an_exception_ends_the_recording():
    with suppress(ZeroDivisionError), runtime.record() as program:
        pk.ops.null(torch.zeros(1))
        raise ZeroDivisionError
    assert program.ops == ["null"]
    assert torch.equal(pk.ops.add(torch.ones(1, 8), torch.ones(1, 8)), torch.full((1, 8), 2.0))
    assert len(null_program()) == 1


def test_recording_is_the_threads_own():
    computed = []
    with runtime.record() as program:
        other = threading.Thread(target=lambda: computed.append(pk.ops.add(torch.ones(1, 8), torch.ones(1, 8))))
        other.start()
        other.join()
        assert len(program) == 0
    assert torch.equal(computed[0], torch.full((1, 8), 2.0))


@pytest.mark.parametrize("keep", ["program", "launchers"])
def test_a_program_keeps_its_tensors_alive(keep):
    size = 1 << 20
    x, out = torch.ones(1, size), torch.zeros(1, size)
    with runtime.record() as program:
        pk.ops.add(x, pk.ops.add(x, x), out=out)
    launchers = program.launchers()
    if keep == "launchers":
        del program
    del x
    gc.collect()
    # These would take the memory of x and of the temporary sum, were it free.
    taken = [torch.full((1, size), 7.0) for _ in range(4)]
    for launch in launchers:
        launch()
    assert (out == 3).all() and all((tensor == 7).all() for tensor in taken)


@pytest.mark.parametrize(("warmup", "steps", "repeats"), [(0, 1, 1), (3, 7, 1), (2, 5, 10)])
def test_the_timed_loop_gives_a_sample_a_step(warmup, steps, repeats):
    for samples in (
        runtime.timed_loop([null_program()], warmup, steps, repeats),
        null_tape().timed_loop(warmup, steps, repeats),
    ):
        assert samples.shape == (steps,) and samples.dtype == np.float64
        assert (samples >= 0).all() and np.isfinite(samples).all()


@pytest.mark.parametrize(("warmup", "steps", "ops"), [(0, 1, 1), (3, 7, 2)])
def test_timed_ops_gives_a_sample_a_step_and_op(warmup, steps, ops):
    samples = runtime.timed_ops([null_program(ops)], warmup, steps)
    assert samples.shape == (steps, ops) and samples.dtype == np.float64
    assert (samples >= 0).all() and np.isfinite(samples).all()


def test_a_sample_is_the_mean_of_its_repeats():
    x = torch.zeros(1)
    with runtime.record() as program:
        pk.ops.spin(x, 200.0)
    assert_takes(lambda: float(runtime.timed_loop([program], 0, 1, repeats=4)[0]), 200, 210)


@pytest.mark.parametrize(
    ("arguments", "turns"),
    [((0, 5, 1), "12312"), ((1, 3, 1), "1231"), ((2, 1, 1), "123"), ((1, 2, 2), "123123")],
)
def test_programs_take_turns(arguments, turns):
    log, programs, tapes = rotating()
    loops = [lambda: runtime.timed_loop(programs, *arguments), lambda: pk.dispatch.timed_loop(tapes, *arguments)]
    if arguments[2] == 1:
        loops.append(lambda: runtime.timed_ops(programs, *arguments[:2]))
    for loop in loops:
        log.zero_()
        loop()
        assert log[0, 0].item() == float(turns)


@pytest.mark.parametrize(
    ("counts", "name"), [((-1, 1), "warmup"), ((0, 0), "steps"), ((0, -1), "steps"), ((0, 1, 0), "repeats")]
)
def test_bad_counts(counts, name):
    loops = [lambda: runtime.timed_loop([null_program()], *counts), lambda: null_tape().timed_loop(*counts)]
    if name != "repeats":
        loops.append(lambda: runtime.timed_ops([null_program()], *counts))
    for loop in loops:
        with pytest.raises(ValueError, match=f"{name} must be at least "):
            loop()


@pytest.mark.parametrize("loop", [runtime.timed_loop, runtime.timed_ops])
@pytest.mark.parametrize("programs", [[], [runtime.Program()], [null_program(), runtime.Program()]], ids=len)
def test_no_programs_and_empty_ones(loop, programs):
    with pytest.raises(ValueError, match="^programs must "):
        loop(programs, 0, 1)


def test_timed_ops_wants_programs_of_one_length():
    with pytest.raises(ValueError, match="^programs must all have the same number of ops"):
        runtime.timed_ops([null_program(1), null_program(2)], 0, 1)


def test_no_tapes():
    # In a process of its own, for what it would take down with it.
    script = "import pykernels as pk\ntry: pk.dispatch.timed_loop([], 0, 1)\nexcept ValueError as error: print(error)"
    ran = subprocess.run(script_command(script), capture_output=True, text=True, timeout=HANG_S)
    assert ran.returncode == 0 and "tapes must hold at least one" in ran.stdout, (ran.returncode, ran.stderr)


def test_launches_disabled_leaves_outputs_alone():
    out, ones = torch.full((1, 8), -1.0), torch.ones(1, 8)
    with runtime.record() as program:
        pk.ops.add(ones, ones, out=out)
    tape = Tape.record(lambda: pk.ops.add(ones, ones, out=out))
    steps = (program.run, tape.run, program.launchers()[0], lambda: pk.ops.add(ones, ones, out=out))
    out.fill_(-1.0)
    with runtime.launches_disabled():
        for step in steps:
            step()
        other = threading.Thread(target=program.run)
        other.start()
        other.join()
    assert (out == -1).all()
    with suppress(ZeroDivisionError), runtime.launches_disabled():
        raise ZeroDivisionError
    for step in steps:
        out.fill_(-1.0)
        step()
        assert (out == 2).all()


@pytest.mark.parametrize("name", ["neon", "", "AVX2", "avx512 "])
def test_an_unknown_isa_names_the_known_ones(name):
    before, supported = runtime.isa(), ", ".join(runtime.isas_supported())
    with pytest.raises(ValueError, match=f"^isa must be one of {supported}, got {name}$"):
        runtime.set_isa(name)
    assert runtime.isa() == before


@pytest.mark.parametrize("count", [0, -1, 257, 2**31 - 1])
def test_a_thread_count_that_cannot_be(count):
    before = runtime.num_threads()
    with pytest.raises(ValueError, match=rf"must be in 1\.\.256, got {count}$"):
        runtime.set_num_threads(count)
    assert runtime.num_threads() == before


def test_settings_are_read_back():
    assert "generic" in runtime.isas_supported()
    for name in runtime.isas_supported():
        with isa(name):
            assert runtime.isa() == name
    for count in (1, 3):
        with threads(count):
            assert runtime.num_threads() == count


X, WEIGHT, BIAS, HEADS = randn(2, 64), randn(32, 64, seed=1), randn(32, seed=2), randn(1, 4, 3, 16, seed=3)
FUNCTIONS = {
    "linear": (lambda: F.linear(X, WEIGHT, BIAS), ["aten::linear"]),
    "rms_norm": (lambda: F.rms_norm(X, (64,), X[0], 1e-3), ["aten::select", "aten::rms_norm"]),
    "swiglu": (lambda: F.silu(X) * X, ["aten::silu", "aten::mul"]),
    "add": (lambda: F.linear(X, WEIGHT) + BIAS, ["aten::linear", "aten::add"]),
    "attention": (
        lambda: F.scaled_dot_product_attention(HEADS, HEADS[:, :2], HEADS[:, 2:], enable_gqa=True, scale=0.5),
        ["aten::slice", "aten::slice", "aten::scaled_dot_product_attention"],
    ),
    "cat": (lambda: torch.cat((-X[..., 32:], X[..., :32]), dim=-1), None),
    "two results": (lambda: X.max(dim=-1), ["aten::max"]),
    "kernels": (lambda: pk.ops.add(X, F.silu(X), out=X.clone()), ["aten::silu", "aten::clone", "pykernels::add"]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tape_replays_with_equal_bits(name, dtype, monkeypatch):
    for constant in ("X", "WEIGHT", "BIAS", "HEADS"):
        monkeypatch.setitem(globals(), constant, globals()[constant].to(dtype))
    function, calls = FUNCTIONS[name]
    tape = Tape.record(function)
    assert calls is None or tape.calls == calls
    for seed in (5, 6):
        for constant in (X, HEADS):
            constant.copy_(randn(*constant.shape, seed=seed))
        tape.run()
        expected = function()
        expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
        for got, wanted in zip(tape.outputs(), expected, strict=True):
            assert got.dtype == wanted.dtype and torch.equal(got, wanted)


def test_a_tape_takes_its_inputs_by_reference():
    x = torch.ones(3)
    tape = Tape.record(lambda a, b: (a * b, a), x, torch.full((3,), 4.0))
    x.fill_(2.0)
    tape.run()
    product, given = tape.outputs()
    assert (product == 8).all() and given.data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda: torch.chunk(X, 2), "aten::chunk"),
        (lambda: X.split(32, dim=-1)[0], "aten::split"),
        (lambda: torch.add(X, X, alpha=2), "aten::add"),
        (lambda: X * 2.5, "aten::mul"),
        (lambda: X.to(torch.float64), "aten::to"),
    ],
    ids=["Tensor[]", "Tensor[] taken apart", "alpha", "Scalar", "dtype"],
)
def test_what_cannot_go_on_a_tape_is_named(function, op):
    with pytest.raises(NotImplementedError, match=f"^{op}") as raised:
        Tape.record(function)
    assert len(str(raised.value).splitlines()) == 1
