"""The CUDA launchers on the SIMT executor (docs/simt.md), for the tests: buffers, parameters and launches by ctypes.

Device memory is the executor's own, between guard zones; tensors are views of it. The parameter structs are read
from csrc/params.h, so that there is one definition of them.
"""

import ctypes
import re
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pykernels.timestamps import RECORD, Timestamps

_ROOT = Path(__file__).resolve().parent.parent.parent
_LIBRARIES = _ROOT / "build" / sysconfig.get_config_var("SOABI") / "csrc" / "simt"
ARCHS = [80, 90]
DTYPES = [torch.bfloat16, torch.float16]
BATCHES = [1, 2, 3, 8]

_C_TYPES = {
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "Dtype": ctypes.c_int32,
    "Activation": ctypes.c_int32,
    "Softmax": ctypes.c_int32,
}
_DTYPE_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


# As csrc/plan_table.* has them.
PLAN_KERNELS = ["built-in", "cuda-cores", "tensor-cores", "fast", "general", "registers", "bulk", "any-dim"]
PLAN_FIELDS = ["blocks", "vectors", "warps", "row_tiles", "splits", "cluster", "rows"]


def _structs() -> dict[str, type[ctypes.Structure]]:
    """The PODs of csrc/params.h, by the name of their op."""
    text = re.sub(r"//[^\n]*", "", (_ROOT / "csrc" / "params.h").read_text())
    structs, types = {}, dict(_C_TYPES)
    for name, body in re.findall(r"struct (\w+)Params \{(.*?)\};", text, re.DOTALL):
        fields, defaults = [], {}
        for declaration in filter(None, (part.strip() for part in body.split(";"))):
            kind, names = re.fullmatch(r"(?:const )?(\w+\*?) (.*)", declaration, re.DOTALL).groups()
            c_type = ctypes.c_void_p if kind.endswith("*") else types[kind]
            for field in names.split(","):
                field, _, default = (part.strip() for part in field.partition("="))
                fields.append((field, c_type))
                if default.isdigit():
                    defaults[field] = int(default)
        op = re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()
        structs[op] = types[f"{name}Params"] = type(
            f"{name}Params", (ctypes.Structure,), {"_fields_": fields, "defaults": defaults}
        )
    return structs


STRUCTS = _structs()


class Device:
    """The executor, one in a process. Launches are queued; :meth:`synchronize` runs them.

    `timestamps`: with in-kernel timestamps, of a few ops alone."""

    def __init__(self, timestamps: bool = False) -> None:
        path = _LIBRARIES / f"libpykernels_simt{'_timestamps' if timestamps else ''}.so"
        if not path.exists():
            raise FileNotFoundError(f"{path} is not built: run `make build`")
        self._library = ctypes.CDLL(str(path))
        self._prefix = "pykernels_simt_"
        self._function("error").restype = ctypes.c_char_p
        self._function("configure").argtypes = [ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_int]
        self._function("allocate").argtypes = [ctypes.c_size_t, ctypes.c_size_t]
        self._function("allocate").restype = ctypes.c_void_p
        self._function("release").argtypes = [ctypes.c_void_p]
        self._function("gqa_decode_workspace_bytes").restype = ctypes.c_size_t
        for op, struct in STRUCTS.items():
            if not hasattr(self._library, f"{self._prefix}{op}_params_bytes"):
                continue  # no CUDA kernel
            size = self._function(f"{op}_params_bytes")
            size.restype = ctypes.c_size_t
            if ctypes.sizeof(struct) and size() != ctypes.sizeof(struct):
                raise TypeError(f"{struct.__name__} has {size()} bytes, read as {ctypes.sizeof(struct)}")
        self._buffers: list[int] = []

    def _function(self, name: str):
        return getattr(self._library, self._prefix + name)

    def _check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(self._function("error")().decode())

    def configure(self, arch: int, seed: int = 0, sm_count: int = 4, shared_bytes: int = 227 * 1024) -> None:
        """The architecture, choices of the scheduler, and the device that plans are made for."""
        self._check(self._function("configure")(seed, sm_count, shared_bytes, arch))

    def empty(self, *shape: int, dtype: torch.dtype, offset: int = 0) -> Tensor:
        """A device tensor full of NaN (0xff), `offset` bytes past a multiple of 64."""
        count = torch.Size(shape).numel()
        pointer = self._function("allocate")(count * dtype.itemsize, offset)
        self._buffers.append(pointer)
        memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(pointer)
        return torch.frombuffer(memory, dtype=dtype).view(shape)

    def to(self, tensor: Tensor | None, offset: int = 0) -> Tensor | None:
        """A copy on the device."""
        if tensor is None:
            return None
        return self.empty(*tensor.shape, dtype=tensor.dtype, offset=offset).copy_(tensor)

    def release(self) -> None:
        """Free every buffer. RuntimeError where one was written outside."""
        buffers, self._buffers = self._buffers, []
        statuses = [self._function("release")(pointer) for pointer in buffers]
        self._check(max(statuses, default=0))

    def launch(self, op: str, programmatic: bool = False, **fields) -> None:
        """Queue an op. Tensors are given for pointers, a torch dtype for `dtype`."""
        params = self._params(op, fields)
        self._check(self._function(op)(ctypes.byref(params), int(programmatic)))

    @contextmanager
    def choosing(self, op: str, sizes: dict, kernel: str = "built-in", **fields: int) -> Iterator[None]:
        """While it lasts that launch plan is chosen for an op of those sizes (csrc/plan_choice.h)."""
        params = self._params(op, sizes)
        numbers = [PLAN_KERNELS.index(kernel), *(fields.get(name, 0) for name in PLAN_FIELDS)]
        self._check(self._function(f"choose_{op}")(ctypes.byref(params), (ctypes.c_int32 * len(numbers))(*numbers)))
        try:
            yield
        finally:
            self._function("clear_plans")()

    def synchronize(self) -> None:
        """Run what is queued. RuntimeError with the executor's report where a thread did what it must not."""
        self._check(self._function("synchronize")())

    def gqa_decode_workspace(self, **fields) -> Tensor:
        """Zeroed, as the launcher asks."""
        count = self._function("gqa_decode_workspace_bytes")(ctypes.byref(self._params("gqa_decode", fields)))
        return self.empty(count, dtype=torch.uint8).zero_()

    @contextmanager
    def kernel_timestamps(self, capacity: int) -> Iterator[Timestamps]:
        """pk.runtime.kernel_timestamps of a build with timestamps: what it records is run before it ends."""
        stamps = Timestamps()
        self._check(self._function("start_timestamps")(ctypes.c_uint32(capacity)))
        try:
            yield stamps
        finally:
            data, count, lost = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_uint64()
            self._check(self._function("stop_timestamps")(*(ctypes.byref(value) for value in (data, count, lost))))
        names = self._function("timestamped_kernels")
        names.restype = ctypes.c_char_p
        stamps.kernels, stamps.lost = names().decode().split(), lost.value
        if count.value:
            stamps.records = np.frombuffer(ctypes.string_at(data, count.value * RECORD.itemsize), RECORD).copy()

    @staticmethod
    def _params(op: str, fields: dict) -> ctypes.Structure:
        params = STRUCTS[op]()
        names = {name for name, _ in params._fields_}
        for name, value in (params.defaults | fields).items():
            if name not in names:
                raise TypeError(f"{op} has no parameter {name}")
            if isinstance(value, Tensor):
                value = value.data_ptr()
            elif isinstance(value, torch.dtype):
                value = _DTYPE_NUMBERS[value]
            setattr(params, name, value)
        return params


@cache
def _device(timestamps: bool) -> Device:
    return Device(timestamps)


@contextmanager
def device(
    arch: int, seed: int = 0, sm_count: int = 4, shared_bytes: int = 227 * 1024, timestamps: bool = False
) -> Iterator[Device]:
    """The device, configured; its buffers are freed, and their guard zones checked, at the end. One at a time."""
    opened = _device(timestamps)
    opened.configure(arch, seed, sm_count, shared_bytes)
    try:
        yield opened
    except BaseException:
        opened.release()
        raise
    else:
        opened.release()
