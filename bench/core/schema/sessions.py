"""Documents of kinds `attention`, `ab` and `compare`: of several sessions, each a fresh process."""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from bench.core.schema.fields import (
    Clock,
    Count,
    Device,
    Environment,
    Head,
    Model,
    NotNegative,
    Number,
    Positive,
    Quant,
    Run,
    Share,
    Size,
    Spread,
    Status,
    Stop,
    Time,
    Whole,
)
from bench.core.schema.layer import AnArm


class Median(TypedDict):
    """A clock's median: the mean of it over sessions, their standard deviation and number."""

    p50: Time
    sd: NotNegative | None
    n: Size


class Ratios(TypedDict):
    """SDPA's time over this one's, by clock."""

    wall_us: Median | None
    host_us: Median | None
    latency_us: Median | None
    device_us: Median | None


class FloorUs(TypedDict):
    """The time of the bytes."""

    at_spec: NotNegative | None
    at_read: NotNegative | None


class Launch(TypedDict):
    """One launch of a kernel."""

    kernel: NotRequired[Count]  # its number in `kernels`
    grid: list[Count]
    us: NotNegative | None
    name: NotRequired[str]
    block: NotRequired[list[Count]]
    registers: NotRequired[Count]
    shared_bytes: NotRequired[Count]


class AttentionKernel(TypedDict):
    """A kernel, once for all that launch it."""

    name: str
    block: NotRequired[list[Count]]
    registers: NotRequired[Count]
    shared_bytes: NotRequired[Count]


class AttentionArm(AnArm):
    """One entry of `arms`: what is so of it in every session."""

    op: str
    label: str
    shape: str
    heads: str
    ctx: Size
    batch: Size
    group_size: Size  # query heads a KV head
    layers: dict[str, Size]  # by model that has these heads: its layers
    bytes: Count
    floor_us: FloorUs | None
    launches: Count
    kernels: list[str]
    kernel_details: list[Launch]
    choices: NotRequired[dict[str, Any]]  # that the library made, as it says them
    calls_a_sample: NotRequired[Size]
    calls_measured: NotRequired[Count]
    copies: NotRequired[Size]
    wall_us: Median | None
    host_us: Median | None
    latency_us: Median | None  # until the result is there, of a call alone
    device_us: Median | None
    device_reason: NotRequired[str | None]
    samples_us: list[Time]  # a median a session
    total_us: NotRequired[dict[str, NotNegative] | None]  # by model: all its layers
    ratio_to_sdpa: Ratios | None


class Throttled(TypedDict):
    """The rounds in which a GPU's clocks were slowed, and what ended the rounds."""

    throttled_rounds: NotRequired[list[Count]]
    throttled_left_out: NotRequired[bool]
    stop: NotRequired[Stop]


class AttentionEntry(TypedDict):
    """An arm in one session: its name, and what differs from the entry of `arms`."""

    backend: str
    mode: str
    shape: str
    status: Status
    reason: NotRequired[str | None]
    max_rel_error: NotRequired[Number | None]
    rounds_us: NotRequired[list[Time]]  # the samples
    trace_factor: NotRequired[Positive | None]
    wall_us: NotRequired[Clock | None]
    host_us: NotRequired[Clock | None]
    latency_us: NotRequired[Clock | None]
    device_us: NotRequired[Clock | None]
    device_reason: NotRequired[str | None]
    floor_us: NotRequired[FloorUs | None]
    kernels: NotRequired[list[str]]
    kernel_details: NotRequired[list[Launch]]
    launches: NotRequired[Count]
    choices: NotRequired[dict[str, Any]]
    calls_a_sample: NotRequired[Size]
    calls_measured: NotRequired[Count]
    copies: NotRequired[Count]
    sdpa_beside: NotRequired[dict[str, Clock | None]]  # of a plug-in: SDPA's clocks in its own process


class Sdpa(TypedDict):
    """What torch's SDPA chose for a shape, and from what."""

    choice: str | None
    enabled: NotRequired[dict[str, bool]]
    priority: NotRequired[list[str]]


class CellCeiling(TypedDict):
    """Bandwidths beside the arms of one shape, GB/s."""

    spec_gbs: Positive | None
    read_gbs: Positive
    copy_gbs: Positive
    spec_source: str
    buffer_bytes: NotRequired[Count]


class AttentionSession(TypedDict):
    """One fresh process."""

    session: Count
    status: Status
    reason: str | None
    lost: dict[str, str]  # by backend: what ended the process that ran it
    environment: Environment | None
    ceilings: dict[str, CellCeiling]  # by shape
    sdpa: dict[str, Sdpa]  # by shape
    throttled: dict[str, Throttled]  # by shape
    entries: list[AttentionEntry]
    seconds: NotRequired[NotNegative]
    trace_seconds: NotRequired[NotNegative]


class AaSession(TypedDict):
    """The difference of an arm and its second one in a session."""

    session: Count
    difference_us: Number
    relative: Number
    low_us: Number
    high_us: Number
    held: bool  # the interval holds zero


class Aa(TypedDict):
    """An arm that was registered twice."""

    shape: str
    backend: str
    mode: str
    sessions: list[AaSession]
    mean_us: Number
    low_us: Number | None
    high_us: Number | None
    held: bool | None


class Attention(Run):
    """bench.attention: attention alone, over contexts, in every backend."""

    gate_only: bool
    models: NotRequired[list[str]]
    ctxs: list[Size]
    batches: list[Size]
    calls: Count  # measured calls of an arm
    sdpa_from: NotRequired[list[str]]  # what default SDPA chose from
    flags: list[str]
    sessions_planned: Size
    arms: list[AttentionArm]
    kernels: list[AttentionKernel]
    sessions: Annotated[list[AttentionSession], Meta(min_length=1)]
    aa: NotRequired[list[Aa]]


class Rule(TypedDict):
    """A registered threshold (bench/study/thresholds.toml says what its fields mean)."""

    name: str
    claim: str
    expectation: NotRequired[str]
    threshold: NotRequired[Positive]
    min_sessions: NotRequired[Size]
    wrong: NotRequired[str | None]
    gpu: NotRequired[str | None]
    ctx: NotRequired[list[Size] | None]


class Registered(TypedDict):
    """The rule that the run was held to, and the file that it stood in before."""

    rule: Rule
    file: NotRequired[str]
    sha256: NotRequired[str]


class Side(TypedDict):
    """An arm in one session."""

    p50_us: Time
    times_us: list[Time]  # the samples
    host_us: NotNegative | None
    device_us: NotNegative | None
    hidden_us: NotNegative | None  # host work that the device's covers
    launches: Count
    drifting: bool


class AbSession(TypedDict):
    """One fresh process; `a`, `b` and `speedup` where its status is ok."""

    session: Count
    status: Status
    reason: str | None
    a: NotRequired[Side]
    b: NotRequired[Side]
    speedup: NotRequired[Positive]


class AbArm(TypedDict):
    """a or b over the sessions."""

    arm: Annotated[str, Meta(pattern=r"^[ab]=.")]  # a=backend/fusion:mode
    status: Status
    samples_us: list[Time]  # a median a session
    host_us: NotRequired[NotNegative | None]
    device_us: NotRequired[NotNegative | None]
    hidden_us: NotRequired[NotNegative | None]
    launches: NotRequired[Count | None]


class Analysis(TypedDict):
    """What the sessions come to."""

    a: Spread | None
    b: Spread | None
    speedup: Spread | None  # a over b
    verdict: Literal["supported", "refuted", "undecided"]
    because: str


class Ab(Whole):
    """bench.ab: two arms of a step against each other, over sessions."""

    device: Device | None
    model: Model | None
    full_layers: NotRequired[Size | None]
    quant: NotRequired[Quant | None]
    ctx: Size
    batch: Size
    dtype: NotRequired[str | None]
    weights: NotRequired[str | None]
    sessions_planned: NotRequired[Size]
    arms_of_a_session: NotRequired[list[str]]
    registered: Registered
    arms: Annotated[list[AbArm], Meta(min_length=2, max_length=2)]
    sessions: list[AbSession]
    analysis: Analysis


class Difference(TypedDict):
    """What is not the same in the two runs."""

    key: str
    a: Any
    b: Any


class Comparison(TypedDict):
    """An arm in both runs."""

    key: str
    a_us: Positive
    b_us: Positive
    ratio: Positive  # b over a
    low: Number
    high: Number
    p: Share
    verdict: Literal["SLOWER", "FASTER", "SAME", "UNCLEAR"]
    a_sessions: NotRequired[Size]
    b_sessions: NotRequired[Size]


class Compare(Head):
    """bench.compare: two runs of the same work."""

    environment: NotRequired[Environment]
    comparisons: list[Comparison]
    threshold: NotRequired[NotNegative]
    alpha: NotRequired[NotNegative]
    correction: NotRequired[str]
    shift: NotRequired[NotNegative]
    least_difference: NotRequired[Number | None]  # that one session a side can tell
    differences: NotRequired[list[Difference]]
    doubts: NotRequired[list[str]]
    slower_past_threshold: NotRequired[list[str]]
    only_in_a: NotRequired[list[str]]
    only_in_b: NotRequired[list[str]]
