"""The empty kernels in Triton's language. It reads a function's source: each count of arguments is written out."""

from typing import Any


def kernels() -> dict[int, Any]:
    """By the number of arguments. Raises ImportError where there is no triton."""
    import triton

    @triton.jit
    def empty_0():  # fmt: skip
        pass

    @triton.jit
    def empty_1(a0):  # fmt: skip
        pass

    @triton.jit
    def empty_8(a0, a1, a2, a3, a4, a5, a6, a7):  # fmt: skip
        pass

    @triton.jit
    def empty_32(
        a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16, a17, a18, a19, a20, a21,
        a22, a23, a24, a25, a26, a27, a28, a29, a30, a31,
    ):  # fmt: skip
        pass

    return {0: empty_0, 1: empty_1, 8: empty_8, 32: empty_32}
