"""A machine with a small cache, which the tests take theirs for.

A driver reads and copies four times the last-level cache in each round, to know the ceiling, and rotates as many copies
of the weights as do not fit there: on a server's 260 MB that takes seconds of processor time a run, and no test is of
the figure. Processes that are not forked by inputs.fork_server measure the machine as it is.
"""

from bench.core import ceiling, environment

CACHES = {1: 32 << 10, 2: 512 << 10, 3: 2 << 20}
"""Bytes by level."""


def pretend() -> None:
    """In this process, from here on."""
    environment.cache_bytes = lambda: CACHES
    ceiling._CPU_BYTES = 8 << 20
