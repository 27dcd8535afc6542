"""launchtax's drivers: `python -m bench.layer`, `bench.op`, `bench.doctor`."""

from bench.core import early_interrupt

early_interrupt.guard()
