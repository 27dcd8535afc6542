"""csrc/op_list.h is the one list of ops: what C++ makes from it agrees with torch's registrations and with Python."""

import re
from pathlib import Path

import pytest
import torch

import pykernels as pk
from pykernels import _runtime
from tests.inputs.simt import STRUCTS

ROOT = Path(__file__).resolve().parent.parent.parent
LIST = (ROOT / "csrc" / "op_list.h").read_text()
# Its rows, without the line that explains them.
OPS = re.findall(r"^ +X\((\w+), \w+Params\)", LIST[: LIST.index("#define PYKERNELS_WORKSPACES")], re.MULTILINE)
CONTROLS = ["null", "spin", "ceiling_read", "ceiling_copy"]  # they compute nothing that a reference could


def test_the_library_has_the_ops_of_the_list():
    assert _runtime.op_names() == OPS


def test_torch_has_the_ops_of_the_list_and_the_tape():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("pykernels::")}
    others = {name for name in registered if name.startswith("pykernels::tape_")}
    assert registered - others == {f"pykernels::{op}" for op in OPS}


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_its_params_function_and_reference(op):
    assert op in STRUCTS
    assert callable(getattr(pk.ops, op))
    assert op in CONTROLS or callable(getattr(pk.reference, op))


@pytest.mark.parametrize("op", [op for op in OPS if op not in CONTROLS])
def test_an_op_has_one_file_on_every_device_and_one_of_tests(op):
    for file in (f"csrc/cpu/{op}.cpp", f"csrc/cuda/{op}.cu", f"tests/ops/test_{op}.py"):
        assert (ROOT / file).is_file(), file
