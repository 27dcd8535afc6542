"""A document as text: numbers, ladders and their bars, what is told of arms that did not run, and Markdown."""

from io import StringIO

import pytest
from inputs.command_line import flat
from rich.console import Console

from bench.core import tables

CLOCK = {"p20": 9.0, "p50": 12.5, "p80": 1234.6, "n": 30}
ARM = {"backend": "native", "mode": "eager", "fusion": "block", "status": "ok", "reason": None, "launches": 5,
       "max_rel_error": 0.0021, "wall_us": CLOCK, "host_us": CLOCK, "gbs": 101.5, "share_of_spec": 0.5,
       "share_of_read": None, "ratio_to_sdpa": {"p50": 1.5, "low": 1.25, "high": 2.0}}  # fmt: skip
NOTHING = {"max_rel_error": None, "wall_us": None, "host_us": None, "gbs": None, "share_of_spec": None}
OP = {"backend": "native", "fusion": "none", "op": "gemv", "label": "gate_proj", "shape": "1x512 -> 1408",
      "bytes": 1_441_792, "floor_us": 7.04, "time_us": CLOCK, "gbs": 101.5, "share_of_spec": 0.5,
      "share_of_read": None}  # fmt: skip


def make_arm(status, reason, mode="eager", backend="native", fusion="block"):
    arm = ARM | {"backend": backend, "mode": mode, "fusion": fusion, "status": status, "reason": reason}
    return {key: value for key, value in (arm | NOTHING).items() if key != "ratio_to_sdpa"}


def make_part(part, us, low=None, high=None, hidden=False):
    return {"part": part, "us": us, "low": us if low is None else low, "high": us if high is None else high,
            "hidden": hidden}  # fmt: skip


PARTS = [
    make_part("python", 40.0, 39.0, 41.0),
    make_part("dispatch", -20.0, -21.0, -19.0),
    make_part("launch", 0.001),
    make_part("gap", 0.0),
    make_part("kernel", 80.0, hidden=True),
]


def as_text(document, width):
    """What print_document prints, without colour."""
    text = StringIO()
    tables.print_document(document, Console(file=text, width=width))
    return text.getvalue()


def make_document(**changes):
    return {
        "kind": "layer", "title": "one decode layer of tiny, ctx 64", "batch": 1, "dtype": "bf16", "device": "cpu",
        "l2_words": "cold: 6 MB of weights", "created": "2026-01-02T03:04:05+00:00", "command": "python -m bench.layer",
        "environment": {"cpu": {"model": "A [fast] CPU"}, "gpu": None, "torch": {"version": "2.11"},
                        "pykernels": {"threads": 2, "isa": "avx2"}},
        "ceiling": {"spec_gbs": None, "read_gbs": 20.04, "copy_gbs": 1234.56,
                    "spec_source": "unknown for A [fast] CPU"},
        "ops": [OP], "arms": [ARM], "ladder": {"native/block": PARTS},
        "ladder_notes": {"native/block": "a note [of sorts]"},
    } | changes  # fmt: skip


def markdown(tmp_path, **changes):
    path = tmp_path / "result.md"
    tables.write_markdown(path, make_document(**changes))
    return path.read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.000"),
        (0.00004, "0.000"),
        (0.1236, "0.124"),
        (1.0, "1.00"),
        (-12.346, "-12.35"),
        (123.46, "123.5"),
        (1234.6, "1,235"),
        (1e9, "1,000,000,000"),
    ],
)
def test_microseconds(value, text):
    assert tables.microseconds(value) == text


@pytest.mark.parametrize(("share", "text"), [(None, "-"), (0.0, "0.0%"), (0.5, "50.0%"), (-0.031, "-3.1%")])
def test_percent(share, text):
    assert tables.percent(share) == text


def cell(grid, heading, row=0):
    columns, rows = grid
    return rows[row][[name for name, _ in columns].index(heading)]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (1_441_792, "1.442 MB"), (436_000_000, "436 MB"), (10**10, "10 GB")],
)
def test_bytes(count, text):
    assert cell(tables.op_grid(make_document(ops=[OP | {"bytes": count}])), "bytes") == text


def test_a_measured_op():
    grid = tables.op_grid(make_document())
    found = {name: cell(grid, name) for name, _ in grid[0]}
    assert found == {
        "arm": "native/none", "op": "gemv", "what": "gate_proj", "shape": "1x512 -> 1408", "bytes": "1.442 MB",
        "floor us": "7.04", "time us": "12.50", "p20 - p80": "9.00 - 1,235", "GB/s": "101.5", "of spec": "50.0%",
        "of read": "-",
    }  # fmt: skip


def test_an_op_against_torch():
    ratio = {"p50": 0.975, "low": 0.9, "high": 1.054}
    unmeasured = OP | {"mode": "eager", "status": "unsupported", "time_us": None, "gbs": None, "share_of_spec": None}
    grid = tables.op_grid(make_document(ops=[OP | {"mode": "native", "ratio_to_torch": ratio}, unmeasured]))
    assert cell(grid, "arm") == "native/none:native"
    assert cell(grid, "torch / this") in ("0.97 [0.90, 1.05]", "0.98 [0.90, 1.05]")
    assert [cell(grid, name, 1) for name in ("time us", "GB/s", "torch / this")] == ["unsupported", "-", "-"]


def test_a_measured_arm():
    grid = tables.arm_grid(make_document())
    found = {name: cell(grid, name) for name, _ in grid[0]}
    assert found == {
        "backend": "native", "fusion": "block", "mode": "eager", "wall us": "12.50", "p20 - p80": "9.00 - 1,235",
        "host us": "12.50", "launches": "5", "GB/s": "101.5", "of spec": "50.0%", "of read": "-", "error": "2.1e-03",
        "sdpa eager / this": "1.50 [1.25, 2.00]",
    }  # fmt: skip


@pytest.mark.parametrize("status", ["wrong", "error", "oom"])
def test_an_arm_that_failed_has_its_status_for_a_time(status):
    grid = tables.arm_grid(make_document(arms=[make_arm("unsupported", "none here"), make_arm(status, "words")]))
    assert len(grid[1]) == 1
    assert [cell(grid, name) for name in ("wall us", "p20 - p80", "host us", "GB/s", "sdpa eager / this")] == [
        status, "-", "-", "-", "-",
    ]  # fmt: skip


def test_one_line_a_reason():
    lines = tables.refusals({"arms": [
        ARM,
        make_arm("unsupported", "no GPU", "graph", fusion="none"),
        make_arm("unsupported", "no GPU", "graph", fusion="block"),
        make_arm("unsupported", "no GPU", "graph", "sdpa", None),
        make_arm("unsupported", "no GPU", "eager", "fa2", None),
        make_arm("unsupported", "no GPU", "graph", "fa2", None),
        make_arm("wrong", "off by 3", "eager", fusion="none"),
        make_arm("wrong", "off by 3", "native", fusion="none"),
        make_arm("oom", "MemoryError", "eager", "sdpa", None),
    ]})  # fmt: skip
    assert lines == [
        "unsupported: native, sdpa (graph); fa2 (eager, graph): no GPU",
        "wrong: native/none (eager, native): off by 3",
        "oom: sdpa (eager): MemoryError",
    ]


def test_nothing_refused():
    assert tables.refusals({"arms": [ARM]}) == tables.refusals({}) == []


@pytest.mark.parametrize("width", [60, 80, 110, 300])
def test_the_ladder_s_lines(width):
    python, dispatch, launch, gap, kernel, total = (text for _, text in tables.ladder_rows(PARTS, width))
    # The longest part fills the bar; the others are in proportion, below zero in another character.
    bar = kernel.count("#")
    assert bar == max(min(width, 110) - 60, 12)
    assert python.count("#") == round(bar / 2)
    assert dispatch.startswith("dispatch ") and "-" * round(bar / 4) + " " in dispatch and "#" not in dispatch
    assert launch.split()[1] == ".", "a part too small for a bar still shows"
    assert gap.split()[:3] == ["gap", "0.000", "us"]
    assert flat(python).endswith("40.00 us 40.0% [39.00, 41.00]")
    assert flat(dispatch).endswith("-20.00 us -20.0% [-21.00, -19.00]")
    assert kernel.endswith(" hidden") and not any(line.endswith("hidden") for line in (python, dispatch, launch, gap))
    assert flat(total) == "= eager 100.0 us"
    numbers = {line.index(" us") for line in (python, dispatch, launch, gap, kernel, total)}
    assert len(numbers) == 1, "the numbers stand in one column"


def test_a_ladder_names_its_parts_for_their_colours():
    assert [part for part, _ in tables.ladder_rows(PARTS, 80)] == [part["part"] for part in PARTS] + ["sum"]
    assert {part["part"] for part in PARTS} <= tables.PART_COLOURS.keys()


@pytest.mark.parametrize("width", [80, 100, 140, 200])
def test_nothing_is_wider_than_the_terminal(width):
    long_parts = [make_part("dispatch", 123456.7, -123456.7, 123456.7, hidden=True), *PARTS]
    text = as_text(
        make_document(
            ladder={"native/block": long_parts},
            arms=[ARM, make_arm("unsupported", "a reason of many words, " * 10, "graph-pdl")],
        ),
        width,
    )
    assert max(len(line) for line in text.splitlines()) <= width
    for words in ("12.50", "native", "block", "gate_proj", "1x512 -> 1408", "50.0%", "hidden", "1.50 [1.25, 2.00]"):
        assert words in text


def test_columns_are_left_out_where_the_terminal_is_narrow():
    narrow, wide = (as_text(make_document(), width) for width in (80, 200))
    told = [line for line in narrow.splitlines() if line.startswith("no room for: ")]
    assert len(told) == narrow.count("p20 - p80") == 2 and all("p20 - p80" in line for line in told)
    assert wide.count("p20 - p80") == 2 and "no room for" not in wide


@pytest.mark.parametrize("width", [80, 120])
def test_a_table_without_room_cuts_nothing_off(width):
    ratio = {"p50": 1182.57, "low": 1119.6, "high": 1239.64}
    rows = [
        OP | {"fusion": None, "backend": backend, "mode": "native", "shape": "32/8 heads, 128, kv 16384",
              "ratio_to_torch": ratio}
        for backend in ("native", "a_plugin_of_a_long_name.cu:attention")
    ]  # fmt: skip
    text = as_text(make_document(ops=rows), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "1,183 [1,120, 1,240]" in text
    # Cells of words go on in the next line: the first column, read downwards, has every letter of the name.
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith(" arm "))
    first = "".join(line[: lines[head].index("what")].strip() for line in lines[head:])
    assert "a_plugin_of_a_long_name.cu:attention:native" in first
    assert "16384" in text


def test_ratios_have_as_many_digits_as_make_sense():
    assert [tables.times(value) for value in (0.5, 9.994, 12.34, 1182.57)] == ["0.50", "9.99", "12.3", "1,183"]


def test_doubts_come_before_the_numbers():
    busy = make_document()
    busy["environment"] = busy["environment"] | {
        "cpu": busy["environment"]["cpu"] | {"load_average_1min": 5.25, "cpus_usable": 2}
    }
    assert any("BUSY: load average 5.2 on 2 CPUs" in line for line in tables.heading(busy))
    fast = make_document(ops=[OP | {"share_of_read": 3.51}, OP | {"share_of_read": 1.01}], arms=[])
    assert any("ABOVE THE READ CEILING: 1 of 2 ops and arms, up to 351.0%" in line for line in tables.heading(fast))
    assert not [line for line in tables.heading(make_document()) if line.startswith(("BUSY", "ABOVE"))]


@pytest.mark.parametrize("words", ["[bold]not markup[/bold]", "[/]", "of shape [1, 2]", "[red", "a\\[b]", ":smile:"])
def test_brackets_are_no_markup(words):
    document = make_document(
        title=f"title {words}",
        arms=[ARM | {"mode": words}, make_arm("error", f"RuntimeError: {words}")],
        ops=[OP | {"label": words}],
    )
    text = flat(as_text(document, 300))
    assert text.count(words) == 4
    assert "A [fast] CPU" in text and "a note [of sorts]" in text


def test_what_the_heading_says():
    lines = tables.heading(make_document(interrupted=True, null=[{"mode": "eager", "us": CLOCK}],
                                         spin=[{"asked_us": 1000.0, "us": CLOCK}]))  # fmt: skip
    assert lines == [
        "one decode layer of tiny, ctx 64, batch 1, bf16, cold: 6 MB of weights",
        "cpu: A [fast] CPU, 2 threads, avx2; torch 2.11; 2026-01-02T03:04:05+00:00",
        "bandwidth: read 20.0 GB/s and copy 1,234.6 GB/s measured, spec unknown (unknown for A [fast] CPU)",
        "UNKNOWN COMMIT: the build did not know it (docs/install.md); nobody can build this again",
        tables.CONTROLS,
        "null op, us: eager 12.50",
        "spin op, us: 1000 asked, 12.50 measured",
        "INTERRUPTED: what follows was measured up to then",
    ]


def test_a_run_that_measured_nothing_has_no_tables():
    document = make_document(ops=[], arms=[make_arm("unsupported", "no GPU")], ladder={}, ladder_notes={})
    text = as_text(document, 100)
    assert "Ops" not in text and "Arms" not in text and "Ladder" not in text
    assert "unsupported: native (eager): no GPU" in text


def test_markdown(tmp_path):
    text = markdown(tmp_path, arms=[ARM, make_arm("wrong", "off by 3")])
    assert text.startswith("## one decode layer of tiny, ctx 64\n")
    for words in ("### Ops, each timed alone", "### Arms, alternated", "### Ladder of native/block",
                  "- wrong: native/block (eager): off by 3", "a note [of sorts]",
                  "Reproduce: `python -m bench.layer`"):  # fmt: skip
        assert f"\n{words}\n" in text
    assert "| native | block | eager | 12.50 |" in text
    assert text.count("```") == 2


def test_markdown_escapes_the_column_separator(tmp_path):
    text = markdown(tmp_path, ops=[OP | {"label": "a|b"}, OP | {"shape": "|x|"}])
    assert "| a\\|b |" in text and "| \\|x\\| |" in text
    rows = [line for line in text.splitlines() if line.startswith("| native/none")]
    heading, rule = text.splitlines()[(top := text.splitlines().index("### Ops, each timed alone") + 2) : top + 2]
    assert {line.replace("\\|", "").count("|") for line in (heading, rule, *rows)} == {12}


GPU_ARM = ARM | {"device_us": {**CLOCK, "p50": 11.0}, "device_reason": None, "host_us_per_kernel": 2.5,
                 "ratio_to_sdpa_graph": {"p50": 1.25, "low": 1.0, "high": 1.5}}  # fmt: skip
STATE = {"sm_mhz": 1980, "temperature_c": 41, "clock_event_reasons": ["GpuIdle"]}


def gpu_document(**changes):
    environment = make_document()["environment"] | {
        "gpu": {"name": "NVIDIA H200", "driver": "570.1"}, "gpu_before": STATE,
        "gpu_after": STATE | {"sm_mhz": 1965, "clock_event_reasons": ["SwPowerCap"]},
    }  # fmt: skip
    return make_document(
        device="cuda", environment=environment, repeats=8, steps=30, throttled_rounds=[], throttled_left_out=False,
        arms=[GPU_ARM],
    ) | changes  # fmt: skip


def test_what_the_heading_says_of_a_gpu():
    untraced = GPU_ARM | {"device_us": None, "device_reason": "CUPTI is not here"}
    spins = [
        {"asked_us": 10.0, "us": {**CLOCK, "p50": 12.25}, "device_us": {**CLOCK, "p50": 11.5}, "null_us": 1.25,
         "net_us": 10.25},
        {"asked_us": 100.0, "us": {**CLOCK, "p50": 103.5}, "device_us": None, "null_us": 3.25, "net_us": 100.25},
    ]  # fmt: skip
    lines = tables.heading(
        gpu_document(
            throttled_rounds=[3, 7], throttled_left_out=True, arms=[GPU_ARM, untraced, untraced], spin=spins,
            null=[{"mode": "graph", "us": CLOCK, "host_us": {**CLOCK, "p50": 0.25}}],
        )
    )  # fmt: skip
    assert lines[1:6] == [
        "cuda: NVIDIA H200, driver 570.1; torch 2.11; 2026-01-02T03:04:05+00:00",
        "a sample is the mean of 8 steps between two events; a graph holds 8 steps",
        "GPU before and after: SM 1980 and 1965 MHz, 41 and 41 C, clock event reasons GpuIdle, SwPowerCap",
        "throttled: 2 of 30 rounds, left out of the medians",
        "no device clock: CUPTI is not here",
    ]
    assert lines[-3:] == [
        "null op, us: graph 12.50",
        "null op, host us a launch: graph 0.250",
        "spin op, us: 10 asked, 11.50 traced, 10.25 less the null kernel's 1.25, "
        "100 asked, 103.50 by events, 100.25 less the null kernel's 3.25",
    ]


def test_an_arm_on_a_gpu():
    grid = tables.arm_grid(gpu_document())
    assert [cell(grid, name) for name in ("sdpa graph / this", "host us a kernel", "device us")] == [
        "1.25 [1.00, 1.50]", "2.50", "11.00",
    ]  # fmt: skip


def test_an_op_that_the_device_timed():
    layer = OP | {"mode": "graph", "time_us": None, "device_us": {**CLOCK, "p50": 11.0}, "share_of_read": 0.9}
    alone = layer | {"time_us": CLOCK, "share_of_read": 0.8, "device_share_of_read": 0.95}
    failed = OP | {"status": "oom", "time_us": None, "gbs": None, "share_of_spec": None, "device_us": None}
    grid = tables.op_grid(gpu_document(ops=[layer, alone, failed]))
    found = [
        [cell(grid, name, row) for name in ("time us", "device us", "of read", "device of read")] for row in range(3)
    ]
    assert found == [
        ["-", "11.00", "90.0%", "90.0%"], ["12.50", "11.00", "80.0%", "95.0%"], ["oom", "-", "-", "-"],
    ]  # fmt: skip


def test_the_host_s_clocks_stand_under_a_gpu_s_ladder():
    other = GPU_ARM | {"mode": "graph", "host_us": {**CLOCK, "p50": 0.375}, "host_us_per_kernel": 0.075}
    arms = [
        GPU_ARM,
        other,
        GPU_ARM | {"backend": "sdpa", "fusion": None},
        GPU_ARM | {"mode": "native", "host_us": None},
    ]
    assert tables.host_clocks(gpu_document(arms=arms), "native/block") == (
        "host clock per step: eager 12.50 us, graph 0.375 us; per kernel: eager 2.50, graph 0.075"
    )
    assert tables.host_clocks(make_document(), "native/block") == ""


@pytest.mark.parametrize("width", [80, 100, 140, 200])
def test_a_gpu_s_tables_fit_the_terminal(width):
    ops = [
        OP
        | {
            "device_us": CLOCK,
            "fusion": None,
            "mode": "graph",
            "ratio_to_torch": {"p50": 1.5, "low": 1.25, "high": 2.0},
        }
    ]
    text = as_text(gpu_document(ops=ops), width)
    assert max(len(line) for line in text.splitlines()) <= width
    for words in ("12.50", "native:graph", "1.25 [1.00, 1.50]", "11.00", "host clock per step"):
        assert words in text
