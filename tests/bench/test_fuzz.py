"""The fuzzer's bad inputs (tests/fuzz) that are to be refused: one line, status 2, nothing left behind.

They run in this process. Those of environments and of stdout, those that may measure something, and those that are
known to be mishandled are run by `make fuzz`, each in a process of its own.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fuzz.case import REFUSED, Case
from fuzz.cases import MISHANDLED, all_cases, shown
from fuzz.run import listing, problem
from inputs.busy import HANG_S
from inputs.command_line import run_here

# Refused behind a session, which names the device that rules are matched with: seconds each.
RUN_A_SESSION = {"thresholds/of another GPU"}


def can_run_here(case: Case) -> bool:
    """Needs no process of its own, as a FIFO does (a system call that waits for a writer cannot be interrupted here),
    and no argument that only a command line can hold."""
    ok = case.expected == REFUSED and not case.env and case.stdout == "pipe" and case.name not in RUN_A_SESSION
    return ok and "\\udc" not in shown(case) and "fifo" not in case.name


CASES = [case for case in all_cases() if can_run_here(case) and shown(case) not in MISHANDLED]


@contextmanager
def time_limit() -> Iterator[None]:
    """TimeoutError where a case waits for ever, as for a FIFO that nobody writes."""

    def end(*_) -> None:
        raise TimeoutError

    earlier = signal.signal(signal.SIGALRM, end)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)


@pytest.mark.parametrize("case", CASES, ids=shown)
def test_bad_input_is_refused(case, capsys, tmp_path):
    arguments = case.make(tmp_path)
    before = listing(tmp_path)
    with time_limit():
        result = run_here(capsys, f"bench.{case.driver}", *arguments)
    assert problem(case, result.status, result.err, listing(tmp_path) - before) is None


def test_cases_have_names_of_their_own():
    names = [shown(case) for case in all_cases()]
    assert len(names) > 600 and len(set(names)) == len(names)
    assert set(names) >= MISHANDLED, "tests/fuzz/mishandled.txt names cases that there are not"
