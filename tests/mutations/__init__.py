"""Mutations of the CUDA kernels, by which the tests on the SIMT executor are tested."""
