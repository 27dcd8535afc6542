"""What a CPU can reach by its specification, on machines whose /proc/cpuinfo is made up."""

import hashlib
import os
from importlib import metadata

import pytest
import torch

import pykernels as pk
from bench.core import environment

CPU = torch.device("cpu")
SAPPHIRE_RAPIDS = {"vendor_id": "GenuineIntel", "cpu family": "6", "model": "143", "cpu cores": "32", "flags": "avx2"}


@pytest.fixture
def machine(monkeypatch):
    """A process with so many threads and CPUs of a machine of that /proc/cpuinfo, with that cpu.max of its cgroup."""

    def made(info, cpus, threads=None, quota=None):
        monkeypatch.setattr(environment, "_cpuinfo", lambda: info)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
        monkeypatch.setattr(pk.runtime, "num_threads", lambda: threads or cpus)
        monkeypatch.setattr(environment, "_read", lambda path: quota if str(path).endswith("cpu.max") else None)
        return environment.spec_bandwidth(CPU)

    return made


@pytest.mark.parametrize("cpus", [32, 64])
def test_a_whole_socket(machine, cpus):
    gbs, source = machine(SAPPHIRE_RAPIDS, cpus)
    assert gbs == 8 * 4800 * 8 / 1000 and source.startswith("4th generation Xeon, one socket")
    assert machine(SAPPHIRE_RAPIDS, cpus, quota="max 100000")[0] == gbs


@pytest.mark.parametrize(
    ("changed", "cpus", "threads", "quota", "words"),
    [
        ({"flags": "avx2 hypervisor"}, 2, None, None, "2 CPUs of a virtual machine have a part of 307.2 GB/s: 4th"),
        ({"flags": "avx2 hypervisor"}, 64, None, None, "64 CPUs of a virtual machine have"),
        ({}, 8, None, None, "8 of the socket's 32 cores have a part of 307.2 GB/s: 4th generation Xeon, one socket"),
        ({}, 64, 1, None, "1 of the socket's 32 cores"),
        ({}, 64, None, "250000 100000", "2.5 of the socket's 32 cores"),
    ],
)
def test_a_part_of_one_has_no_specification_but_a_remark(machine, changed, cpus, threads, quota, words):
    gbs, source = machine(SAPPHIRE_RAPIDS | changed, cpus, threads, quota)
    assert gbs is None and source.startswith(words)


@pytest.mark.parametrize("info", [{}, SAPPHIRE_RAPIDS | {"model": "1"}, {"vendor_id": "x", "cpu family": "?"}])
def test_an_unknown_cpu(machine, info):
    gbs, source = machine(info, 4)
    assert gbs is None and source.startswith("unknown for")


def test_peers_have_their_versions_and_libraries_without_one_their_hash(monkeypatch, tmp_path):
    def version(name):
        if name != "flashinfer-python":
            raise metadata.PackageNotFoundError(name)
        return "0.7.2"

    library = tmp_path / "_vllm_fa3_C.abi3.so"
    library.write_bytes(b"code")
    monkeypatch.setattr(environment.metadata, "version", version)
    monkeypatch.setenv("PYKERNELS_FA3_LIB", str(library))
    monkeypatch.setenv("PYKERNELS_VLLM_LIB", str(tmp_path / "none.so"))
    assert environment.peer_versions() == {
        "flashinfer-python": "0.7.2",
        "PYKERNELS_FA3_LIB": f"sha256 {hashlib.sha256(b'code').hexdigest()}",
    }
