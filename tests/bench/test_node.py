"""What a node says of itself: kinds by NVML's names, and builds."""

import os

import pytest

from bench.fleet import node


@pytest.mark.parametrize(
    ("kind", "name", "same"),
    [
        ("H200", "NVIDIA H200", True), ("L4", "NVIDIA L4", True), ("L4", "NVIDIA L40S", False),
        ("L40S", "NVIDIA L40S", True), ("A100", "NVIDIA A100-SXM4-80GB", True), ("A100-80G", "NVIDIA A100 PCIe", True),
        ("H100", "NVIDIA H100 80GB HBM3", True), ("H100", "NVIDIA H200", False), ("H20", "NVIDIA H200", False),
    ],
)  # fmt: skip
def test_a_kind_is_a_word_of_nvml_s_name(kind, name, same):
    assert node.is_of_kind(kind, name) is same
    assert (node.lie(kind, [name]) is None) is same


def test_a_lie_in_words():
    assert node.lie("H200", ["NVIDIA L4", "NVIDIA L4"]) == "is no H200: NVML says NVIDIA L4"
    assert node.lie("H200", []) == "is no H200: NVML says that there is no GPU"
    assert node.lie("H200", ["NVIDIA H200", "NVIDIA L4"]) is not None, "one of its GPUs is another"
    assert node.lie("small", []) is None, "a resource of somebody's own"


def test_builds():
    ours = node.build()
    assert node.other_build(ours, dict(ours)) is None and len(ours["libraries"]) == 64
    assert node.other_build(ours, ours | {"commit": "abc"}).startswith("commit abc where this has ")
    assert "pykernels/*.py" in node.other_build(ours, ours | {"pykernels": "0", "libraries": "1"})


def test_a_node_says_whether_others_go_first():
    assert node.identity()["niceness"] == os.getpriority(os.PRIO_PROCESS, 0)


def test_a_machine_s_name_tells_nothing():
    assert len(node.machine_name()) == 8 and node.machine_name() == node.machine_name()
