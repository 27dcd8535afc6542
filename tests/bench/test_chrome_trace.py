"""The trace file, read back: what viewers rely on, and that times survive to the nanosecond."""

import json
import random

import pytest

from bench.core.chrome_trace import Range, launch_calls, op_ranges, write
from pykernels.trace import Call, Kernel

BASE_NS = 1_800_000_000_123_456_789  # no double holds it in microseconds and nanoseconds


def kernel(name="gemv", start=0, end=1, device=0, stream=7, correlation=1, graph_node_id=0) -> Kernel:
    return Kernel(name, BASE_NS + start, BASE_NS + end, device, stream, correlation, graph_node_id,
                  (132, 1, 1), (256, 1, 1), 40, 1024, 2048)  # fmt: skip


def call(name="cudaLaunchKernelExC", start=0, end=1, correlation=1, thread=100, is_driver=False) -> Call:
    return Call(name, BASE_NS + start, BASE_NS + end, correlation, thread, is_driver)


def read(path) -> tuple[list[dict], dict[tuple[int, int], str], dict[int, str]]:
    """Events; names of the rows; names of the processes. Checks the format as documented."""
    document = json.loads(path.read_text())
    assert set(document) == {"traceEvents", "displayTimeUnit", "otherData"} and document["displayTimeUnit"] == "ns"
    events = document["traceEvents"]
    rows, processes = {}, {}
    for event in events:
        assert {"ph", "name", "pid", "tid"} <= set(event)
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert set(event["args"]) == {"sort_index" if event["name"].endswith("sort_index") else "name"}
            if event["name"] == "thread_name":
                assert (event["pid"], event["tid"]) not in rows
                rows[event["pid"], event["tid"]] = event["args"]["name"]
            elif event["name"] == "process_name":
                processes[event["pid"]] = event["args"]["name"]
        else:
            assert event["ph"] in "Xsf" and event["ts"] >= 0 and event["cat"]
            assert (event["ph"] == "X") == ("dur" in event) and event.get("dur", 0) >= 0
            assert (event["pid"], event["tid"]) in rows and event["pid"] in processes
    return events, rows, processes


def slices(events, pid, tid) -> list[tuple[int, int, str]]:
    """(start, end, name) in whole nanoseconds, in the order of the file."""
    found = []
    for event in events:
        if event["ph"] == "X" and (event["pid"], event["tid"]) == (pid, tid):
            start = round(event["ts"] * 1000)
            found.append((start, start + round(event["dur"] * 1000), event["name"]))
    return found


def check_rows_nest(events, rows) -> None:
    for pid, tid in rows:
        open_ends: list[int] = []
        before = -1
        for start, end, _ in slices(events, pid, tid):
            assert start >= before, "in order of their start"
            before = start
            while open_ends and open_ends[-1] <= start:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1], "inside the one that is open"
            open_ends.append(end)


def test_rows_times_and_arrows(tmp_path):
    calls = [
        call(start=0, end=4000),
        call("cuLaunchKernelEx", 1000, 3000, is_driver=True),
        call("cudaGraphLaunch", 5000, 9001, correlation=2),
        call("cudaEventRecord", 20, 30, 3, thread=101),
    ]
    kernels = [
        kernel("norm", 6000, 7001),
        kernel("a", 9500, 9600, correlation=2, graph_node_id=5),
        kernel("b", 9600, 9700, stream=8, correlation=2),
        kernel("far", 100, 200, device=1, correlation=9),
    ]
    ranges = [Range("rmsnorm", BASE_NS, BASE_NS + 4000, 100)]
    path = tmp_path / "trace.json"
    write(path, kernels, calls, ranges)
    events, rows, processes = read(path)
    assert processes == {1: "host", 2: "device 0", 3: "device 1"}
    by_name = {(processes[pid], name): (pid, tid) for (pid, tid), name in rows.items()}
    content = {place: slices(events, *row) for place, row in by_name.items()}
    assert content == {
        ("host", "ranges of thread 100"): [(0, 4000, "rmsnorm")],
        ("host", "CUDA calls of thread 100"): [(0, 4000, "cudaLaunchKernelExC"), (1000, 3000, "cuLaunchKernelEx"),
                                               (5000, 9001, "cudaGraphLaunch")],
        ("host", "CUDA calls of thread 101"): [(20, 30, "cudaEventRecord")],
        ("device 0", "stream 7"): [(6000, 7001, "norm"), (9500, 9600, "a")],
        ("device 0", "stream 8"): [(9600, 9700, "b")],
        ("device 1", "stream 7"): [(100, 200, "far")],
    }  # fmt: skip
    check_rows_nest(events, rows)
    arrows = {}
    for event in events:
        if event["ph"] in "sf":
            place = (rows[event["pid"], event["tid"]], round(event["ts"] * 1000))
            arrows.setdefault((event["cat"], event["name"], event["id"]), {})[event["ph"]] = place
            assert event["ph"] == "s" or event["bp"] == "e"
    host = "CUDA calls of thread 100"
    assert sorted(arrow["s"] + arrow["f"] for arrow in arrows.values()) == [
        (host, 0, "stream 7", 6000), (host, 5000, "stream 7", 9500), (host, 5000, "stream 8", 9600),
    ]  # fmt: skip
    assert all(set(arrow) == {"s", "f"} for arrow in arrows.values())
    assert json.loads(path.read_text())["otherData"] == {"base_ns": str(BASE_NS)}
    (norm,) = (event for event in events if event["name"] == "norm")
    assert norm["args"] == {"correlation": 1, "graph_node_id": 0, "grid": [132, 1, 1], "block": [256, 1, 1],
                            "registers": 40, "static_shared_bytes": 1024, "dynamic_shared_bytes": 2048}  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_spans_that_cross_get_rows_of_their_own(tmp_path, seed):
    generator = random.Random(seed)
    starts = [generator.randrange(1000) for _ in range(60)]
    kernels = [kernel(str(i), start, start + generator.randrange(1, 60)) for i, start in enumerate(starts)]
    calls = [call(str(i), start, start + generator.randrange(0, 60), i) for i, start in enumerate(starts)]
    path = tmp_path / "trace.json"
    write(path, kernels, calls)
    events, rows, _ = read(path)
    check_rows_nest(events, rows)
    found = {"kernel": [], "call": []}
    for event in events:
        if event["ph"] == "X":
            start = round(event["ts"] * 1000)
            found[event["cat"]].append((start, start + round(event["dur"] * 1000), event["name"]))
    base_ns = min(span.start_ns for span in (*kernels, *calls))
    for category, spans in (("kernel", kernels), ("call", calls)):
        expected = [(span.start_ns - base_ns, span.end_ns - base_ns, span.name) for span in spans]
        assert sorted(found[category]) == sorted(expected)
    for (pid, tid), name in rows.items():
        if name.startswith("stream"):  # kernels follow one another; as many rows as ran at once, no more
            row = slices(events, pid, tid)
            assert all(before[1] <= after[0] for before, after in zip(row, row[1:], strict=False))
    at_once = max(sum(k.start_ns <= t < k.end_ns for k in kernels) for t in (k.start_ns for k in kernels))
    assert sum(name.startswith("stream") for name in rows.values()) == at_once


def test_an_hour_is_exact_to_the_nanosecond(tmp_path):
    hour = 3_600_000_000_000
    write(tmp_path / "t", [kernel(start=0, end=1), kernel("late", hour + 1, hour + 4)], [])
    events, rows, _ = read(tmp_path / "t")
    assert slices(events, *next(iter(rows))) == [(0, 1, "gemv"), (hour + 1, hour + 4, "late")]


def test_nothing_traced_is_an_empty_trace(tmp_path):
    write(tmp_path / "t", [], [])
    events, rows, _ = read(tmp_path / "t")
    assert rows == {} and all(event["ph"] == "M" for event in events)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "t"
    path.write_text("before")
    with pytest.raises(TypeError):
        write(path, [kernel(name=object())], [])
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_launch_calls_are_the_outer_ones():
    outer, inner = call(start=0, end=9, correlation=4), call("cu", 1, 8, 4, is_driver=True)
    same_start = call("cu", 0, 8, 4, is_driver=True)
    lone, other = call("cuLaunchKernel", 20, 30, 5, is_driver=True), call("cudaMalloc", 2, 3, 6)
    kernels = [kernel(correlation=5), kernel(correlation=4), kernel(correlation=4), kernel(correlation=77)]
    for calls in ([outer, inner, lone, other], [lone, other, same_start, inner, outer]):
        assert launch_calls(kernels, calls) == [outer, lone]


def test_ranges_of_ops():
    launches = [call(start=10 * i, end=10 * i + 4, correlation=i) for i in range(6)]

    def spans(*arguments):
        return [(r.name, r.start_ns - BASE_NS, r.end_ns - BASE_NS, r.thread) for r in op_ranges(*arguments)]

    assert spans(["norm", "gemv"], launches[:4]) == [
        ("norm", 0, 4, 100), ("gemv", 10, 14, 100), ("norm", 20, 24, 100), ("gemv", 30, 34, 100),
    ]  # fmt: skip


@pytest.mark.parametrize(("ops", "launches"), [(["a", "b"], 3), ([], 1)])
def test_launches_that_are_not_the_ops(ops, launches):
    with pytest.raises(ValueError) as raised:
        op_ranges(ops, [call(correlation=i) for i in range(launches)])
    assert str(raised.value) == f"launches must be whole runs of {len(ops)} ops, got {launches}"


def test_launches_of_two_threads():
    with pytest.raises(ValueError, match=r"^launches must be of one thread, got \[100, 101\]$"):
        op_ranges(["a"], [call(), call(thread=101)])
