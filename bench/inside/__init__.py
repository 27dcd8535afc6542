"""python -m bench.inside: inside each kernel, by in-kernel timestamps."""
