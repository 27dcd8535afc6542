"""A graph step by step through the driver, on the made-up libcuda, and when a graph has paid."""

import ctypes
import sysconfig
from pathlib import Path

import pytest

import pykernels as pk
from bench.launch.driver_graph import DriverError, DriverGraph
from bench.launch.graph_costs import verdict

FAKE = Path(__file__).parents[2] / "build" / sysconfig.get_config_var("SOABI") / "tests/native/libfake_driver.so"
needs_fake = pytest.mark.skipif(
    not (pk.runtime.build_info()["cuda"] and FAKE.exists()), reason="needs a CUDA build with its tests"
)


@pytest.fixture
def driver():
    library = ctypes.CDLL(str(FAKE))
    library.fake_log.restype = ctypes.c_char_p
    library.fake_log_clear()
    yield library
    library.fake_fail(b"")


def log(driver) -> list[str]:
    return driver.fake_log().decode().splitlines()


@needs_fake
def test_every_step_is_taken_once_and_timed(driver):
    enqueued = []
    graph = DriverGraph(enqueued.append, 9, None, str(FAKE))
    assert enqueued == [9, 9]  # captured, and once more for the update
    assert log(driver) == [
        "begin 9 mode 1", "end", "instantiate flags 0", "upload", "wait", "replay 9", "wait", "begin 9 mode 1", "end",
        "update",
    ]  # fmt: skip
    costs = graph.costs
    assert (costs.nodes, costs.device_bytes, costs.memory_reason) == (1, None, None)
    for name in ("capture_us", "instantiate_us", "upload_us", "first_launch_us", "update_us"):
        assert getattr(costs, name) > 0, name
    driver.fake_log_clear()
    assert graph.replay() > 0 and graph.handle
    graph.close()
    graph.close()
    assert log(driver) == ["replay 9", "destroy exec", "destroy graph", "destroy graph"]


@needs_fake
@pytest.mark.parametrize(("each", "copies"), [(9 << 20, 4), (300 << 10, 128), (0, 256)])
def test_a_graphs_memory_is_that_of_many_copies(driver, each, copies):
    """Of a driver that takes memory 2 MiB at a time: free memory falls with some copies and stays with others."""

    def free_bytes() -> int:
        graphs = log(driver).count("instantiate flags 0") - 1  # the first is the graph's own
        return (1 << 40) - (each * graphs + 1 >> 21 << 21)

    graph = DriverGraph(lambda stream: None, 9, free_bytes, str(FAKE))
    assert log(driver).count("instantiate flags 0") == 1 + copies and log(driver).count("destroy exec") == copies
    if each:
        assert graph.costs.device_bytes == pytest.approx(each, rel=0.15) and graph.costs.memory_reason is None
    else:
        assert graph.costs.device_bytes is None and "did not fall with 256 copies" in graph.costs.memory_reason
    graph.close()


@needs_fake
@pytest.mark.parametrize(
    ("call", "left"),
    [("cuGraphInstantiateWithFlags", 1), ("cuGraphUpload", 1), ("cuGraphExecUpdate_v2", 2), ("cuGraphLaunch", 1)],
)
def test_a_call_that_fails_is_named_and_nothing_is_left(driver, call, left):
    driver.fake_fail(call.encode())
    with pytest.raises(DriverError, match=rf"^{call} failed: CUDA_ERROR_LAUNCH_FAILED \(719\)$"):
        DriverGraph(lambda stream: None, 9, lambda: 0, str(FAKE))
    assert log(driver).count("destroy graph") == left


@needs_fake
def test_a_capture_that_raises_is_ended(driver):
    def enqueue(stream: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        DriverGraph(enqueue, 9, lambda: 0, str(FAKE))
    assert log(driver) == ["begin 9 mode 1", "end", "destroy graph"]


def entry(subject: str, pays: float | None, shape: str = "linear", by: str = "driver", status: str = "ok") -> dict:
    return {"subject": subject, "shape": shape, "by": by, "status": status, "pays_after_replays": pays}


def test_the_verdict():
    entries = [
        entry("10 empty", 30.0), entry("100 empty", 4.0), entry("layer none", 9.0), entry("x", 1.0, "parallel"),
        entry("y", 1.0, by="torch"), entry("z", 2.0, status="error"), entry("1 empty", None),
    ]  # fmt: skip
    words = verdict(entries)
    assert "after 4 replays (100 empty) to 30 (10 empty)" in words and "the median of 3 is 9" in words
    assert verdict([entry("1 empty", None)]) == "a graph saved the host nothing here"
