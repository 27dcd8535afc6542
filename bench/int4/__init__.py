"""python -m bench.int4: 4-bit kernels, ours and the libraries'."""
