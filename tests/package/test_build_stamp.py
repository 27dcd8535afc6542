"""What a build says it was made of: cmake/build_stamp.py, cmake/find_gpus.py, pk.runtime.build_info()."""

import ctypes.util
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pykernels as pk
from bench.core import environment
from pykernels.source_hash import source_hash

ROOT = Path(__file__).resolve().parent.parent.parent


def script(name: str):
    """A script of cmake/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "cmake" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build_stamp, find_gpus = script("build_stamp"), script("find_gpus")


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository with a file of each half."""
    root = tmp_path / "checkout"
    for name in ("csrc/a.cu", "pykernels/a.py", "bench/a.py", "bench/results/a.json", "docs/a.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("one")
    git(tmp_path, "init", "--quiet", str(root))
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message=one")
    return root


def test_a_clean_checkout_has_its_commit(checkout):
    assert build_stamp.commit_of(checkout) == (git(checkout, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize("name", ["csrc/a.cu", "pykernels/a.py", "bench/a.py", "csrc/new.cu"])
def test_a_changed_or_new_source_makes_it_dirty(checkout, name):
    (checkout / name).write_text("two")
    assert build_stamp.commit_of(checkout) == (git(checkout, "rev-parse", "HEAD"), True)


@pytest.mark.parametrize("name", ["bench/results/a.json", "bench/results/new.json", "docs/a.md"])
def test_a_result_or_a_page_does_not(checkout, name):
    (checkout / name).write_text("two")
    assert build_stamp.commit_of(checkout)[1] is False


def test_a_folder_inside_another_repository_is_not_of_its_commit(checkout):
    inner = checkout / "unpacked"
    inner.mkdir()
    assert build_stamp.commit_of(inner) == ("", None)


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert build_stamp.commit_of(tmp_path) == ("", None)
    monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
    assert build_stamp.commit_of(tmp_path) == ("", None)


def test_a_given_commit_is_taken_before_gits(checkout):
    assert build_stamp.commit_of(checkout, "0123abc") == ("0123abc", False)
    assert build_stamp.commit_of(checkout, "0123abc-dirty") == ("0123abc", True)


@pytest.mark.parametrize("given", ['a" b', "a b", "é", "x" * 81])
def test_what_is_no_commit_is_refused_by_name(checkout, given, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYKERNELS_COMMIT", given)
    assert build_stamp.main([str(ROOT), str(tmp_path / "header.h")]) == 2
    assert capsys.readouterr().err.startswith("build_stamp: PYKERNELS_COMMIT must be a commit")
    assert not (tmp_path / "header.h").exists()


def test_the_header_is_only_touched_where_it_says_something_new(tmp_path, monkeypatch):
    header = tmp_path / "folder" / "header.h"
    monkeypatch.setenv("PYKERNELS_COMMIT", "0123abc")
    assert build_stamp.main([str(ROOT), str(header)]) == 0
    os.utime(header, (1, 1))
    assert build_stamp.main([str(ROOT), str(header)]) == 0 and header.stat().st_mtime == 1
    assert build_stamp.main([str(ROOT), str(header), "4567def-dirty"]) == 0 and header.stat().st_mtime > 1
    assert '#define PYKERNELS_COMMIT "4567def"\n#define PYKERNELS_DIRTY 1\n' in header.read_text()


def test_source_hash_sees_names_and_contents_and_no_caches(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = source_hash(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "b.py").write_text("1")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "b.py").write_text("1")
    (tmp_path / "c.json").write_text("1")
    assert source_hash(tmp_path, without=("results",)) == first
    (tmp_path / "a.py").write_text("2")
    assert source_hash(tmp_path, without=("results",)) != first
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "a.py").rename(tmp_path / "d.py")
    assert source_hash(tmp_path, without=("results",)) != first


def test_the_library_says_what_it_was_built_from():
    info = pk.runtime.build_info()
    assert info["commit"] is None or len(info["commit"]) >= 7
    assert info["dirty"] in (True, False, None)
    assert set(info["source_hashes"]) == {"csrc", "pykernels", "bench"}
    assert all(len(value) == 16 for value in info["source_hashes"].values())


def stamped(monkeypatch, commit, dirty, **hashes):
    """The environment's commit keys with such a build, and the Python as it is here but for `hashes`."""
    info = {**pk.runtime.build_info(), "commit": commit, "dirty": dirty}
    here = {name: environment.python_hash(name) for name in ("pykernels", "bench")}
    info["source_hashes"] = {"csrc": "0" * 16, **here, **hashes}
    monkeypatch.setattr(pk.runtime, "build_info", lambda: info)
    return environment.collect()


@pytest.mark.parametrize(
    "commit, dirty, hashes, expected, words",
    [
        ("0123456789abc", False, {}, False, None),
        ("0123456789abc", True, {}, True, "DIRTY: built from commit 012345678, with changes that are in no commit"),
        (
            "0123456789abc",
            False,
            {"bench": "1"},
            True,
            "DIRTY: built from commit 012345678, bench changed since the build",
        ),
        ("0123456789abc", None, {}, None, "commit 012345678, and unknown whether it was changed"),
        (None, None, {}, None, "UNKNOWN COMMIT"),
        (None, None, {"bench": "1"}, None, "UNKNOWN COMMIT"),
    ],
)
def test_a_document_carries_the_builds_commit(monkeypatch, commit, dirty, hashes, expected, words):
    found = stamped(monkeypatch, commit, dirty, **hashes)
    assert (found["commit"], found["commit_dirty"]) == (commit, expected)
    said = environment.commit_words(found)
    assert said is None if words is None else said.startswith(words)


def test_git_is_not_asked_when_something_is_measured(monkeypatch):
    def refuse(*_args, **_keys):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    environment.collect()


def test_architectures_of_gpus():
    assert find_gpus.architectures([(9, 0), (8, 6), (9, 0), (7, 5), (12, 0)]) == ["86-real", "90a-real", "120-real"]
    # Jetson Orin, B200, B300, Jetson Thor, DGX Spark; a T4 has nothing that runs on it.
    jetsons_and_blackwells = [(8, 7), (10, 0), (10, 3), (11, 0), (12, 1)]
    assert find_gpus.architectures(jetsons_and_blackwells) == [
        "87-real",
        "100-real",
        "103-real",
        "110-real",
        "121-real",
    ]
    assert find_gpus.architectures([(7, 5)]) == find_gpus.architectures([]) == []


def test_nvidia_smi_is_asked(tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 8.9\necho 9.0\necho '[N/A]'\n")
    program.chmod(0o755)
    assert find_gpus.from_nvidia_smi(str(program)) == [(8, 9), (9, 0)]
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert find_gpus.from_nvidia_smi(str(program)) == []
    assert find_gpus.from_nvidia_smi(str(tmp_path / "none")) == []


FAKE_DRIVER = """
extern "C" int cuInit(unsigned) { return 0; }
extern "C" int cuDeviceGetCount(int* count) { *count = 2; return 0; }
extern "C" int cuDeviceGetAttribute(int* value, int attribute, int device) {
    *value = attribute == 75 ? 8 + device : attribute == 76 ? 9 - 9 * device : -1;
    return 0;
}
"""


def test_the_driver_is_asked(tmp_path):
    (tmp_path / "driver.cpp").write_text(FAKE_DRIVER)
    library = tmp_path / "libcuda.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "driver.cpp")], check=True)
    assert find_gpus.from_driver(str(library)) == [(8, 9), (9, 0)]
    assert find_gpus.from_driver(str(tmp_path / "none.so")) == []
    assert find_gpus.from_driver(ctypes.util.find_library("c") or "libc.so.6") == []  # a library that is no driver


def test_the_script_prints_a_cmake_list():
    done = subprocess.run([sys.executable, str(ROOT / "cmake" / "find_gpus.py")], capture_output=True, text=True)
    assert done.returncode == 0 and all(part.endswith("-real") for part in done.stdout.split(";") if part)
