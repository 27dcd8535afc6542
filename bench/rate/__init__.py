"""python -m bench.rate: decode steps that are due at a rate: latency, its tail, and energy."""
