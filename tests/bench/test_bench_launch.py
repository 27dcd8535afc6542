"""bench.launch: on this CPU for real, and on a fake GPU with stand-ins for the libraries."""

import json
import sys

import pytest
from inputs.command_line import assert_refused, flat, run_here
from inputs.fake_gpu import GAP_US, HOST_US, KERNEL_US, fake_gpu
from inputs.fake_launchers import install_launchers

from bench.launch.launchers import ARGUMENTS, registry

STEP_US = KERNEL_US + GAP_US
QUICK = ["--launches=100"]
ON_A_CPU = {"native-loop", "torch-op-loop", "pybind11", "ctypes", "torch-op", "torch-custom-op"}


def measured(path) -> dict[tuple[str, int], dict]:
    return {(e["launcher"], e["arguments"]): e for e in json.loads(path.read_text())["launchers"]}


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory):
    """One run without the compiler, which takes a minute."""
    import contextlib
    import io

    import bench.launch.__main__ as driver
    from bench.core import cli

    folder, printed = tmp_path_factory.mktemp("launch"), io.StringIO()
    names = ",".join(name for name in registry() if name != "torch-compile")
    outputs = [f"--{kind}={folder}/launch.{kind}" for kind in ("json", "md")] + [f"--plot={folder}/launch.png"]
    with contextlib.redirect_stdout(printed):
        status = cli.run(
            "bench.launch", driver.command, ["--device=cpu", f"--launcher={names}", "--launches=200", *outputs]
        )
    assert status == 0
    return folder, flat(printed.getvalue())


def test_the_launchers_of_a_cpu(on_the_cpu):
    folder, words = on_the_cpu
    document = json.loads((folder / "launch.json").read_text())
    assert (document["kind"], document["device"], document["launches"]) == ("launch", "cpu", 200)
    entries = measured(folder / "launch.json")
    assert {name for (name, _), entry in entries.items() if entry["status"] == "ok"} == ON_A_CPU
    for (name, arguments), entry in entries.items():
        if name in ON_A_CPU:
            host, wall = entry["host_us"], entry["back_to_back_us"]
            assert arguments == 1 and host["n"] == 200 and 0 < host["p20"] <= host["p50"] <= host["p80"] <= host["p99"]
            assert wall["p50"] > 0 and entry["device_gap_us"] is None
        else:
            assert (entry["status"], entry["reason"]) == ("unsupported", "needs a CUDA device")
    # A C++ loop makes no Python call, and a Python op costs the most: orders of magnitude, which no load turns round.
    least = {name: entries[name, 1]["host_us"]["p20"] for name in ON_A_CPU}
    assert least["native-loop"] < least["torch-custom-op"]
    assert "torch-custom-op" in words and "unsupported: graph-100, graph, cudaLaunchKernel" in words
    assert "| native-loop | 1 |" in (folder / "launch.md").read_text()
    assert (folder / "launch.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(params=[True, False], ids=["traced", "untraced"])
def gpu(request, monkeypatch):
    monkeypatch.setattr("bench.launch.measure.LAUNCHES_A_SAMPLE", 100)
    with fake_gpu(monkeypatch, request.param) as gpu:
        gpu.traced = request.param
        gpu.launchers = install_launchers(monkeypatch, gpu)
        yield gpu


def test_every_launcher_of_a_gpu(capsys, tmp_path, gpu):
    names = ",".join(name for name in registry() if name != "torch-compile")
    result = run_here(
        capsys, "bench.launch", "--device=cuda", f"--launcher={names}", *QUICK, f"--json={tmp_path}/launch.json"
    )
    assert result.status == 0, result.out + result.err
    entries = measured(tmp_path / "launch.json")
    assert all(entry["status"] == "ok" for entry in entries.values()), result.out
    wanted = {(name, count) for name, launcher in registry().items() for count in launcher.arguments}
    assert entries.keys() == {key for key in wanted if key[0] != "torch-compile"}
    for (name, _), entry in entries.items():
        if not gpu.traced:
            assert (entry["device_gap_us"], entry["gap_reason"]) == (None, "CUPTI is not here")
        elif name in ("native-loop", "torch-op", "torch-op-loop"):  # our null op, which is on the CPU here
            assert (entry["device_gap_us"], entry["gap_reason"]) == (
                None, "RuntimeError: the trace has 0 kernels of 101 launches",
            )  # fmt: skip
        else:
            assert entry["device_gap_us"]["p50"] == GAP_US, name
            assert entry["back_to_back_us"]["p50"] == STEP_US, name
    assert entries["cuLaunchKernelEx", 8]["host_us"]["p50"] == HOST_US
    assert entries["graph-100", 1]["host_us"]["p50"] == HOST_US / 100
    launched = set(gpu.launchers.launched)
    for library in ("cupy", "triton", "numba", "cuda.core", "tvm_ffi", "cudaLaunchKernel", "cuLaunchKernelEx",
                    "cuLaunchKernelEx pdl", "cuLaunchKernelEx cluster", "cudaLaunchKernelEx pdl"):  # fmt: skip
        assert {count for name, count in launched if name == library} == set(ARGUMENTS), library


@pytest.mark.parametrize(
    ("name", "package", "hint"),
    [("cupy", "cupy", "launchtax[plugins]"), ("triton", "triton", "pip install triton"),
     ("numba-cuda", "numba.cuda", "pip install -U numba 'numba-cuda"),
     ("tvm-ffi", "tvm_ffi", "pip install apache-tvm-ffi")],
)  # fmt: skip
def test_a_library_that_is_not_there(capsys, tmp_path, monkeypatch, gpu, name, package, hint):
    monkeypatch.setitem(sys.modules, package, None)
    result = run_here(
        capsys, "bench.launch", "--device=cuda", f"--launcher={name}", *QUICK, f"--json={tmp_path}/launch.json"
    )
    assert result.status == 0
    (entry,) = json.loads((tmp_path / "launch.json").read_text())["launchers"]
    assert entry["status"] == "unsupported" and entry["reason"].startswith(f"{package} is not installed: ")
    assert hint in entry["install_hint"] and hint in flat(result.out)


def test_a_launcher_that_fails_takes_no_other_along(capsys, tmp_path, monkeypatch, gpu):
    def refuse(*_):
        raise RuntimeError("no such thing\nat all")

    monkeypatch.setattr(sys.modules["cupy"], "RawKernel", refuse)
    result = run_here(
        capsys, "bench.launch", "--device=cuda", "--launcher=cupy,ctypes", "--arguments=1", *QUICK,
        f"--json={tmp_path}/launch.json",
    )  # fmt: skip
    entries = measured(tmp_path / "launch.json")
    assert result.status == 0 and entries["ctypes", 1]["status"] == "ok"
    assert (entries["cupy", 1]["status"], entries["cupy", 1]["reason"]) == ("error", "RuntimeError: no such thing")


def test_a_library_that_lacks_something_when_it_launches(capsys, tmp_path, monkeypatch, gpu):
    """As an older numba beside a newer numpy: what is missing shows when a kernel is made."""

    def jit(_):
        raise AttributeError("module 'numpy' has no attribute 'row_stack'")

    monkeypatch.setattr(sys.modules["numba.cuda"], "jit", jit)
    result = run_here(
        capsys, "bench.launch", "--device=cuda", "--launcher=numba-cuda,ctypes", "--arguments=1", *QUICK,
        f"--json={tmp_path}/launch.json",
    )  # fmt: skip
    entry = measured(tmp_path / "launch.json")["numba-cuda", 1]
    words = "numba.cuda cannot launch here: AttributeError: module 'numpy' has no attribute 'row_stack'"
    assert result.status == 0 and (entry["status"], entry["reason"]) == ("unsupported", words)
    assert "pip install -U numba" in flat(result.out)


def test_the_stop_rule_ends_the_launches_of_each_launcher(capsys, tmp_path, gpu):
    result = run_here(
        capsys, "bench.launch", "--device=cuda", "--launcher=cuLaunchKernelEx", "--arguments=1", "--launches=5000",
        "--stop-noise=1%", f"--json={tmp_path}/launch.json",
    )  # fmt: skip
    entry = measured(tmp_path / "launch.json")["cuLaunchKernelEx", 1]
    assert result.status == 0 and entry["host_us"]["n"] == entry["stop"]["rounds"] == 1000
    assert entry["stop"]["why"] == "noise"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--launcher=cuda"], ["--arguments=2"], ["--arguments=x"], ["--launches=1"], ["--launches=x"],
        ["--arguments=8", "--launcher=graph", "--device=cpu"], ["--plot=/no/such/folder/x.png"], ["--plot=x.txt"],
        ["--json=/no/such/folder/x.json"], ["--device=tpu"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_arguments(capsys, arguments):
    assert_refused(run_here(capsys, "bench.launch", *arguments), arguments[0].partition("=")[0])


def test_list(capsys):
    result = run_here(capsys, "bench.launch", "--list")
    assert result.status == 0 and all(name in result.out for name in registry())
