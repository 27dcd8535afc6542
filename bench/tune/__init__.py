"""Measured launch plans: which of an op's kernels and plans is the fastest, written to a file that ops read."""
