"""Documents of kinds `launch`, `inside`, `rate`, `doctor` and `null-launches`."""

from typing import Any, Literal, NotRequired, TypedDict

from bench.core.schema.fields import (
    Clock,
    Count,
    Device,
    Environment,
    Head,
    NotNegative,
    Number,
    Positive,
    Quant,
    Share,
    Size,
    Status,
    Time,
    Waiting,
    Whole,
)
from bench.core.schema.layer import AnArm, OneModel


class Launcher(TypedDict):
    """A way to launch an empty kernel, with so many arguments."""

    launcher: str
    description: str
    arguments: Count
    status: Status
    reason: str | None
    install_hint: NotRequired[str | None]
    host_us: Clock | None  # a launch, until the host is free again
    back_to_back_us: NotRequired[Clock | None]
    device_gap_us: NotRequired[Waiting | None]  # between two kernels, by timestamps
    gap_reason: NotRequired[str | None]


class GraphCosts(TypedDict):
    """What a CUDA graph costs to make, and when it pays."""

    subject: str
    shape: str
    by: str
    status: Status
    reason: str | None
    nodes: NotRequired[Size]
    capture_us: NotRequired[NotNegative | None]
    instantiate_us: NotRequired[NotNegative | None]
    upload_us: NotRequired[NotNegative | None]
    first_launch_us: NotRequired[NotNegative | None]
    update_us: NotRequired[NotNegative | None]
    device_bytes: NotRequired[Number | None]
    replay_host_us: NotRequired[NotNegative]
    replay_host_us_a_node: NotRequired[NotNegative]
    replay_us: NotRequired[NotNegative]
    replay_us_a_node: NotRequired[NotNegative]
    one_by_one_host_us: NotRequired[NotNegative]
    pays_after_replays: NotRequired[NotNegative | None]


PdlEdge = TypedDict(
    "PdlEdge",
    {
        "from": str,
        "to": str,
        "programmatic": bool,
        "overlap_us": Number,
        "plain_advance_us": Number,
        "advance_us": Number,
        "gain_us": Number,
        "verdict": str,
    },
)
"""From one kernel to the next, as a PDL launch and as a plain one."""


class Pdl(TypedDict):
    """What PDL launches bring a program."""

    program: str
    model: str
    edges: list[PdlEdge]
    gain_us: Number


class Launch(Whole):
    """bench.launch: what it costs to launch an empty kernel."""

    device: Device
    model: str
    launches: NotRequired[Count]
    arguments: NotRequired[list[Count]]
    launchers: list[Launcher]
    graphs: NotRequired[list[GraphCosts]]
    graph_verdict: NotRequired[str | None]
    pdl: NotRequired[list[Pdl]]
    pdl_reason: NotRequired[str | None]


class Mhz(TypedDict):
    """The SM clock while it was recorded."""

    low: Positive
    median: Positive
    high: Positive


class InsideKernel(TypedDict):
    """An op's kernel, from timestamps that it writes as it goes."""

    op: str
    label: str
    blocks: Count
    sms: NotNegative
    gap_us: Waiting | None  # from the end of the kernel before, where one was recorded
    points: dict[str, Waiting | None]  # by point: from the one before; null: one that the kernel does not have
    inside_us: Waiting | None
    adds_us: Number


class InsideArm(AnArm):
    """One entry of `arms`; the times where its status is ok."""

    steps_per_graph: NotRequired[Size | None]
    wall_us: NotRequired[Clock]
    wall_quiet_us: NotRequired[Clock]  # with timestamps off
    records: NotRequired[Count]
    records_lost: NotRequired[Count]
    replays: NotRequired[Count]
    replays_left_out: NotRequired[Count]
    sms: NotRequired[Size]
    sm_mhz: NotRequired[Mhz | None]
    kernels: NotRequired[list[InsideKernel]]
    accounted_us: NotRequired[Number]
    unaccounted_us: NotRequired[Number]


class Inside(OneModel):
    """bench.inside: where the time inside each kernel goes."""

    weights: NotRequired[str]
    quant: NotRequired[Any]
    weight_copies: NotRequired[Count]
    arms: list[InsideArm]


class Quantile(TypedDict):
    """A quantile and its 95% interval; null where there are fewer samples than it needs."""

    value: Number | None
    low: Number | None
    high: Number | None
    needs: Size


class Quantiles(TypedDict):
    """Of latencies, microseconds."""

    p50: Quantile
    p90: Quantile
    p99: Quantile
    p99_9: Quantile
    max: Number | None
    n: Count


class Deadline(TypedDict):
    """The share of steps that took longer."""

    deadline_us: Positive
    share: Share | None
    low: Share | None
    high: Share | None


class RateCell(TypedDict):
    """An arm at one rate under one load."""

    hz: NotNegative  # 0: back to back
    load: str
    met: bool | None
    reason: str | None
    steps: Count
    blocks: list[Count]  # steps of each
    latency_us: Quantiles
    jitter_us: NotNegative | None
    interval_us: Quantiles
    host_late_us: Quantiles
    first_step_us: list[Number]
    deadline: Deadline | None
    energy: dict[str, Any] | None
    gpu: NotRequired[Any]
    samples_us: list[Time]


class RateArm(AnArm):
    """One entry of `arms`."""

    name: str
    launches: NotRequired[Count]  # kernels a step
    kernels: NotRequired[dict[str, Count] | list[str]]
    cells: list[RateCell]


class Rate(OneModel):
    """bench.rate: decode steps that are due at a rate."""

    quant: NotRequired[Quant | None]
    weights: NotRequired[str]
    burst: NotRequired[Size]  # tokens a step
    hz: NotRequired[list[NotNegative]]
    loads: NotRequired[list[str]]
    seconds: NotRequired[Positive | list[Positive]]  # of every rate
    shard: NotRequired[str | None]  # the share of the rates that was measured, i/n
    block_count: NotRequired[Size]
    idle_s: NotRequired[NotNegative]
    positions: NotRequired[dict[str, Count]]
    timer: NotRequired[Quantiles]
    energy: NotRequired[dict[str, Any]]
    arms: list[RateArm]


class Available(TypedDict):
    """A backend or a 4-bit kernel, and why it does not run here."""

    name: str
    description: str
    reason: str | None
    install_hint: str | None
    modes: NotRequired[list[str]]


class Doctor(Head):
    """bench.doctor: what this machine can run."""

    command: NotRequired[str]  # that makes it again
    environment: Environment
    isas: NotRequired[list[str]]
    spec_gbs: NotRequired[Positive | None]
    spec_source: NotRequired[str]
    gpu_reason: NotRequired[str]  # why no kernel of the build runs on the GPU; what is listed is then of the CPU
    trace_reason: NotRequired[str | None]
    backends: NotRequired[list[Available]]
    int4_kernels: NotRequired[list[Available]]
    extras: NotRequired[list[dict[str, Any]]]


class NullTime(TypedDict):
    """One entry of `launches`: the host's time of a null launch on one device."""

    way: Literal["alone", "threads", "processes"]  # the other devices are idle, or launched on at once from those
    device: str
    mode: str
    host_us: Clock


class NullLaunches(Whole):
    """bench.fleet.null_launches: do launches on several GPUs disturb one another?"""

    device: Device
    launches: list[NullTime]
