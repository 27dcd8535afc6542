"""launchtax's drivers: `python -m bench.layer` and the others; README.md lists them. bench.measure() is bench.call from
Python."""

from typing import Any

from bench.core import early_interrupt

early_interrupt.guard()


def __getattr__(name: str) -> Any:
    if name == "measure":  # on its first use: a driver need not import it
        from bench.call import measure

        return measure
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
