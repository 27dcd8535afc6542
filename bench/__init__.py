"""launchtax's drivers: `python -m bench.layer` and the others; README.md lists them."""

from bench.core import early_interrupt

early_interrupt.guard()
