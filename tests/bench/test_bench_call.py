"""bench.call and bench.measure: on this CPU for real, and on a fake GPU whose every time is known."""

import json
import textwrap

import pytest
import torch
from inputs.command_line import assert_refused, flat, run_here
from inputs.fake_gpu import GAP_US, HOST_US, KERNEL_US, fake_gpu, in_a_captured_step
from safetensors.torch import save_file

import bench
from bench.call.subject import Restored, Subject, subject_of
from bench.core.errors import UsageError

STEP_US = KERNEL_US + GAP_US
QUICK = ["--steps=3", "--warmup=1", "--l2=warm", "--threads=1"]


@pytest.fixture(autouse=True)
def small_ceiling(monkeypatch):
    """The read ceiling of these tests is looked at by nobody: a small buffer, not one past this machine's cache."""
    monkeypatch.setattr("bench.core.ceiling.last_level_cache_bytes", lambda device: 1 << 20)


class Counter(torch.nn.Module):
    """Writes into its input, as a cache is written to, and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        cache += 1
        return self.linear(x) + cache


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent("""
            import torch

            def linear():
                torch.manual_seed(0)
                return torch.nn.Linear(8, 4), torch.ones(2, 8)

            def with_reference(device):
                layer = torch.nn.Linear(8, 4).to(device)
                return layer, (torch.ones(2, 8),), lambda x: x @ layer.weight.T + layer.bias

            def wrong():
                return (lambda x: x + 1), (torch.ones(2, 2),), (lambda x: x + 1.5)

            def not_a_number():
                return (lambda x: x / 0 * 0), (torch.ones(2, 2),)

            def raises():
                raise ValueError("no such weights\\nat all")

            def three():
                return 3
        """)
    )
    return path


def measured(capsys, tmp_path, *arguments: str) -> tuple:
    result = run_here(capsys, "bench.call", *arguments, *QUICK, f"--json={tmp_path}/call.json")
    return result, json.loads((tmp_path / "call.json").read_text())


def test_on_the_cpu(capsys, tmp_path, file):
    result, document = measured(capsys, tmp_path, f"{file}:linear", "--device=cpu")
    assert result.status == 0, result.out + result.err
    assert (document["kind"], document["device"], document["reference"]) == ("call", "cpu", "an eager call")
    status = {arm["mode"]: arm["status"] for arm in document["arms"]}
    assert status == {"eager": "ok", "dispatch": "ok", "native": "unsupported", "graph": "unsupported"}
    (parts,) = document["ladder"].values()
    eager = next(arm for arm in document["arms"] if arm["mode"] == "eager")
    assert [part["part"] for part in parts][0] == "python"
    assert sum(part["us"] for part in parts) == pytest.approx(eager["wall_us"]["p50"], abs=1e-6)
    # weight, bias, x and the result, once each
    assert document["bytes"] == {
        "call": 4 * (4 * 8 + 4 + 2 * 8 + 2 * 4),
        "counted": "weights, inputs and results, each once",
    }
    assert "Ladder of call" in result.out


def test_a_reference_and_saved_outputs(capsys, tmp_path, file):
    _, document = measured(capsys, tmp_path, f"{file}:with_reference", "--device=cpu", "--mode=eager")
    assert document["reference"] == "reference" and document["arms"][0]["status"] == "ok"
    torch.manual_seed(0)
    saved = tmp_path / "out.safetensors"
    save_file({"0": torch.nn.Linear(8, 4)(torch.ones(2, 8)).detach()}, saved)
    _, document = measured(capsys, tmp_path, f"{file}:linear", "--device=cpu", "--mode=eager", f"--expected={saved}")
    assert (document["reference"], document["arms"][0]["status"]) == ("saved outputs", "ok")
    save_file({"0": torch.ones(2, 4)}, saved)
    result, document = measured(
        capsys, tmp_path, f"{file}:linear", "--device=cpu", "--mode=eager", f"--expected={saved}"
    )
    assert result.status == 1 and document["arms"][0]["status"] == "wrong"


@pytest.mark.parametrize("name", ["wrong", "not_a_number"])
def test_what_is_wrong_gets_no_time(capsys, tmp_path, file, name):
    result, document = measured(capsys, tmp_path, f"{file}:{name}", "--device=cpu", "--mode=eager")
    assert result.status == 1 and document["arms"][0]["status"] == "wrong" and document["arms"][0]["wall_us"] is None


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("", "a Python file and the name of a function in it"),
        ("linear", "a Python file and the name"),
        ("no_such.py:linear", "no_such.py is not"),
        ("{file}:nothing", "which has linear, with_reference"),
        ("{file}:raises", "raised ValueError: no such weights"),
        ("{file}:three", "returns (callable, inputs)"),
    ],
)
def test_bad_subjects(capsys, file, subject, words):
    text = subject.format(file=file)
    assert_refused(run_here(capsys, "bench.call", text, "--device=cpu"), "FILE.py:name", words)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--mode=graph", "with eager"), ("--mode=pybind", "eager, dispatch, native, graph"), ("--depth=0", "1..10000"),
        ("--bytes=-1", "0.."), ("--expected=/no/such.safetensors", "cannot be read"), ("--steps=1", "2..100000"),
    ],
)  # fmt: skip
def test_bad_flags(capsys, file, flag, words):
    assert_refused(
        run_here(capsys, "bench.call", f"{file}:linear", "--device=cpu", flag), flag.partition("=")[0], words
    )


def test_a_maker_that_returns_something_else():
    for made in (3, (), (3, 3), (print,), (print, 1, 2)):
        with pytest.raises(UsageError, match="FILE.py:name=x: must be a function that returns"):
            subject_of("x", made)
    assert subject_of("x", (print, {"end": ""}))[0].kwargs == {"end": ""}
    assert subject_of("x", (print, 3))[0].args == (3,)


def test_state_that_a_call_writes_is_put_back():
    module, x, cache = Counter(), torch.ones(1, 8), torch.zeros(1, 8)
    subject = Subject(module, (x, cache))
    restored = Restored(subject)
    with torch.no_grad():
        subject.step()
        assert len(restored.changed()) == 2  # the cache and the counter
        restored.restore()
    assert not restored.changed() and not cache.any() and not module.calls.any()
    copy = subject.clone()
    assert copy.function is not module and copy.args[1] is not cache


@pytest.fixture(params=[True, False], ids=["traced", "untraced"])
def gpu(request, monkeypatch):
    with fake_gpu(monkeypatch, request.param) as gpu:
        gpu.traced = request.param
        yield gpu


def test_on_a_gpu(capsys, tmp_path, file, gpu):
    result, document = measured(capsys, tmp_path, f"{file}:linear", "--device=cuda", f"--md={tmp_path}/call.md")
    assert result.status == 0, result.out + result.err
    arms = {arm["mode"]: arm for arm in document["arms"]}
    assert {mode: arm["status"] for mode, arm in arms.items()} == dict.fromkeys(arms, "ok") and len(arms) == 4
    assert arms["native"]["against_eager"] == arms["graph"]["against_eager"] == "equal"
    assert arms["native"]["host_us"]["p50"] == HOST_US and arms["native"]["wall_us"]["p50"] == STEP_US
    (parts,) = document["ladder"].values()
    names = ["python", "dispatch", "launch", *(["gap"] if gpu.traced else []), "kernel", "ceiling", "floor"]
    assert [part["part"] for part in parts] == names
    assert sum(part["us"] for part in parts) == arms["eager"]["wall_us"]["p50"]
    if gpu.traced:
        gaps = document["gaps"]["call:graph"]
        ladder_gap = next(part["us"] for part in parts if part["part"] == "gap")
        causes = sum(gaps[f"{cause}_us"] for cause in ("host", "front_end", "copy"))
        assert gaps["sum_us"] == ladder_gap == causes + gaps["untraced_us"] == GAP_US
        (kernel,) = document["kernels"]
        assert (kernel["kernel"], kernel["launches"], kernel["share"]) == ("eager", 1, 1.0)
        assert kernel["device_us"] == KERNEL_US and kernel["host_us"] == GAP_US / 2
        assert "Gaps of call:graph" in result.out and "Kernels of a call" in (tmp_path / "call.md").read_text()
    assert "native against an eager call, bit by bit: equal" in flat(result.out)


def test_a_captured_call_that_is_another(monkeypatch, gpu):
    """Within the tolerance it is said; beyond, it is wrong."""
    off = {"by": 0.0}

    def call(x: torch.Tensor) -> torch.Tensor:
        return x + (off["by"] if in_a_captured_step(gpu) else 0.0)

    for by, status in ((1e-6, "ok"), (1.0, "wrong")):
        off["by"] = by
        report = bench.measure(call, torch.ones(2, 2), l2="warm", steps=2, device="cuda")
        arms = {arm.mode: arm for arm in report.arms}
        assert arms["eager"].status == "ok"
        assert (arms["native"].status, arms["native"].against_eager) == (status, "different")


def test_a_call_that_writes_into_its_inputs_is_checked_from_the_same_state(gpu):
    report = bench.measure(Counter(), torch.ones(1, 8), torch.zeros(1, 8), l2="warm", steps=2, device="cuda")
    found = {arm.mode: (arm.status, arm.against_eager) for arm in report.arms}
    assert found["native"] == found["graph"] == ("ok", "equal")


def test_a_call_that_differs_from_itself(gpu):
    report = bench.measure(
        lambda x: x + torch.rand(2, 2) * 1e-8, torch.ones(2, 2) * 1e-4, l2="warm", steps=2, device="cuda"
    )
    native = next(arm for arm in report.arms if arm.mode == "native")
    assert native.against_eager == "eager differs from itself"


def test_three_lines_of_python(tmp_path):
    report = bench.measure(torch.nn.Linear(8, 4), torch.ones(2, 8), l2="warm", steps=2)
    assert "Ladder of call" in str(report) and report.document["title"] == "one call of Linear"
    eager = report.document["arms"][0]["wall_us"]["p50"]
    assert sum(report.ladder.values()) == pytest.approx(eager, abs=1e-6)
    report.save(tmp_path / "call.json")
    assert json.loads((tmp_path / "call.json").read_text())["kind"] == "call"


def test_list(capsys):
    result = run_here(capsys, "bench.call", "--list")
    assert result.status == 0 and "eager" in result.out and "nothing to capture on a CPU" in result.out
