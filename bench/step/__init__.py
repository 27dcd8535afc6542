"""python -m bench.step: whole decode steps."""
