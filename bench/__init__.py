"""launchtax's drivers: `python -m bench.layer`, `bench.op`, `bench.doctor`."""
