"""What documents of several kinds have alike. The comment behind a key is what docs/document.md says of it."""

from typing import Annotated, Literal, NotRequired, TypedDict

from msgspec import Meta

Number = Annotated[float, Meta(ge=-1e18, le=1e18)]
Positive = Annotated[float, Meta(gt=0, le=1e18)]
NotNegative = Annotated[float, Meta(ge=0, le=1e18)]
Time = Annotated[float, Meta(gt=0, le=1e15)]
Share = Annotated[float, Meta(ge=0, le=1e6)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Size = Annotated[int, Meta(ge=1, le=2**53)]
Integer = Annotated[int, Meta(ge=-(2**53), le=2**53)]
Date = Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}")]
Status = Literal["ok", "unsupported", "wrong", "oom", "error", "hang"]
Device = Literal["cpu", "cuda"]

SCALARS = {
    "Number": "a finite number",
    "Positive": "a number above 0",
    "NotNegative": "a number, 0 or above",
    "Time": "a number above 0, at most 10^15",
    "Share": "a number, 0 or above: 1 is all of it",
    "Count": "an integer, 0 or above",
    "Size": "an integer, 1 or above",
    "Integer": "an integer",
    "Date": "`2026-11-29T12:00:00+00:00`",
    "Status": "`ok`, `unsupported`, `wrong`, `oom`, `error` or `hang`",
    "Device": "`cpu` or `cuda`",
}
"""What docs/document.md says of the types above. No number is NaN or infinite, and `true` is none."""


class Clock(TypedDict):
    """Samples of one clock, in the unit of the key that holds it."""

    p50: Time  # the median
    p20: Time  # 20th percentile
    p80: Time  # 80th percentile
    p99: NotRequired[Time]  # 99th percentile
    mean: NotRequired[Time]
    n: Size  # samples


class Waiting(TypedDict):
    """A Clock of what may take no time, or less than none: a gap."""

    p50: Number  # the median
    p20: NotRequired[Number]  # 20th percentile
    p80: NotRequired[Number]  # 80th percentile
    p99: NotRequired[Number]  # 99th percentile
    mean: NotRequired[Number]
    n: Size  # samples


class Ratio(TypedDict):
    """A ratio of medians, and its 95% interval."""

    p50: Positive
    low: Number
    high: Number


class Spread(TypedDict):
    """Values of several sessions."""

    n: Size
    mean: Number
    sd: NotNegative | None
    cv: NotNegative | None  # sd over mean
    low: Number  # of the mean's 95% interval
    high: Number
    plain_low: Number  # of the interval as the study takes it
    plain_high: Number


class Cpu(TypedDict):
    """The processor and its memory."""

    model: str | None
    family_model_stepping: NotRequired[str]
    cpus_usable: NotRequired[Size]  # that the process may run on
    flags: NotRequired[list[str]]  # of those that kernels ask for
    l2_bytes: NotRequired[Count | None]
    l3_bytes: NotRequired[Count | None]
    mhz_now: NotRequired[NotNegative | None]
    governor: NotRequired[str | None]
    load_average_1min: NotRequired[NotNegative]
    memory_bytes: NotRequired[Count]
    transparent_hugepages: NotRequired[str | None]


class Gpu(TypedDict):
    """The GPU, as NVML sees it. What it does not tell is null."""

    name: str | None
    index: NotRequired[Count | None]  # as torch counts them
    uuid: NotRequired[str | None]
    driver: NotRequired[str | None]
    memory_bytes: NotRequired[Count | None]
    sm_mhz: NotRequired[Count | None]
    sm_mhz_max: NotRequired[Count | None]
    memory_mhz: NotRequired[Count | None]
    clock_event_reasons: NotRequired[list[str] | None]
    ecc: NotRequired[bool | None]
    power_limit_w: NotRequired[NotNegative | None]
    temperature_c: NotRequired[Integer | None]


class GpuState(TypedDict):
    """The GPU before or after the run."""

    sm_mhz: Count | None
    clock_event_reasons: list[str] | None
    temperature_c: Integer | None
    memory_mhz: NotRequired[Count | None]
    power_w: NotRequired[NotNegative | None]
    ecc: NotRequired[bool | None]
    ecc_corrected_errors: NotRequired[Count | None]
    ecc_uncorrected_errors: NotRequired[Count | None]
    pstate: NotRequired[Count | None]


class Torch(TypedDict):
    """PyTorch."""

    version: str
    cuda: NotRequired[str | None]
    cudnn: NotRequired[Count | None]
    threads: NotRequired[Size]
    mkldnn: NotRequired[bool]


class Plans(TypedDict):
    """Who decided the launch plans."""

    by: Literal["built-in", "file"]  # the heuristic of the build, or a file of bench.tune's
    name: NotRequired[str]  # of the file, without its folder
    sha256: NotRequired[str]
    count: NotRequired[Count]  # of its plans


class Pykernels(TypedDict):
    """The build of our own kernels."""

    version: NotRequired[str]
    threads: NotRequired[Size]
    isa: NotRequired[str]
    cuda: NotRequired[bool]
    cuda_architectures: NotRequired[str]
    nvtx: NotRequired[bool]
    stamps: NotRequired[bool]  # `timestamps` by its older name
    timestamps: NotRequired[bool]  # whether kernels read clocks as they go
    compiler: NotRequired[str]
    build_type: NotRequired[str]
    commit: NotRequired[str | None]
    dirty: NotRequired[bool | None]
    source_hashes: NotRequired[dict[str, str]]  # by package
    plans: NotRequired[Plans]


class Environment(TypedDict):
    """The machine and the software. No user, host name or path is in it."""

    cpu: Cpu
    gpu: Gpu | None
    torch: Torch
    os: NotRequired[str]
    python: NotRequired[str]
    pykernels: NotRequired[Pykernels]
    libraries: NotRequired[dict[str, str | None]]  # by distribution, the version; by variable, a file's hash
    commit: NotRequired[str | None]  # of the installed build
    commit_dirty: NotRequired[bool | None]  # what ran differs from that commit
    changed_since_build: NotRequired[list[str]]  # packages whose Python is another than the build saw
    gpu_before: NotRequired[GpuState]
    gpu_after: NotRequired[GpuState]


class Model(TypedDict):
    """A decoder: of pykernels.models.ModelSpec every field."""

    name: str
    n_layers: NotRequired[Size]  # that were run


class Quant(TypedDict):
    """The form of 4-bit weights."""

    format: str
    group_size: Integer | dict[str, Integer]  # columns a scale; -1: the row; by [layer.]projection where they differ
    zero_points: bool
    act_order: bool


class Ceiling(TypedDict):
    """Bandwidths that everything is measured against, GB/s."""

    spec_gbs: Positive | None
    read_gbs: Positive | None  # measured: a plain read
    copy_gbs: NotRequired[Positive | None]
    spec_source: NotRequired[str]
    buffer_bytes: NotRequired[Count]


class OpBytes(TypedDict):
    """What an op of a layer must move."""

    op: str
    label: str
    shape: str
    bytes: Count


class Null(TypedDict):
    """The null op in one mode: what a call alone costs."""

    mode: str
    us: Clock
    host_us: NotRequired[Clock]


class Spin(TypedDict):
    """The spin op, which busy-waits a known time."""

    asked_us: Positive
    us: Clock
    device_us: NotRequired[Clock | None]
    null_us: NotRequired[Number]  # of a null kernel by the same clock
    net_us: NotRequired[Number]  # less that
    outside_us: NotRequired[Number]  # around the timed loop, by another clock


class Span(TypedDict):
    """When a kernel of a traced step ran, after the start of the first."""

    label: str
    start_us: Number
    end_us: Number


class Gap(TypedDict):
    """The time before a kernel in which none ran, and what of it lay with whom."""

    before: str
    us: Number
    host_us: Number
    front_end_us: Number
    copy_us: Number
    overlap_us: Number


class Gaps(TypedDict):
    """Of one step of an arm."""

    rows: list[Gap]
    host_us: Number
    front_end_us: Number
    copy_us: Number
    overlap_us: Number
    untraced_us: Number
    sum_us: Number


class Part(TypedDict):
    """One part of a ladder, with its 95% interval."""

    part: str
    us: Number
    low: Number
    high: Number
    hidden: bool  # the device's own work covers it


class Node(TypedDict):
    """A node of a captured graph."""

    kind: str
    name: str
    grid: list[Count]
    block: list[Count]
    shared_bytes: Count
    bytes: Count
    attributes: list[str]


class Plugin(TypedDict):
    """A user's kernel, and the process that measured it."""

    backend: str
    sha256: str  # of its file
    timeout_s: Positive
    created: Date | None
    ceiling: Ceiling | None


class Stop(TypedDict):
    """The rule that might end the rounds early, and what ended them."""

    noise: Positive | None
    seconds: Positive | None
    why: str | None
    rounds: Count


class Head(TypedDict):
    """What every document begins with."""

    schema: Literal["launchtax/1"]
    kind: str
    created: Date  # UTC
    driver: NotRequired[str]  # that made it
    session_flags: NotRequired[list[str]]  # of a document that --keep keeps: what it was measured with


class Whole(Head):
    """Of a run that came to its end or was interrupted."""

    title: str
    command: NotRequired[str]  # that makes it again
    interrupted: bool  # it ends before the run's end
    environment: Environment


class Run(Whole):
    """Of a run of arms or ops."""

    device: Device
    l2: NotRequired[str | None]  # cold: copies in rotation, larger than the cache; warm: one
    l2_words: NotRequired[str | None]
    dtype: str | None
    warmup: NotRequired[Count | None]  # untimed samples of an arm
    steps: NotRequired[Count | None]  # samples of an arm
    repeats: NotRequired[Size]  # steps a sample, and steps a graph holds
    throttled_rounds: NotRequired[list[Count]]
    throttled_left_out: NotRequired[bool]
    stop: NotRequired[Stop]
    ceiling: NotRequired[Ceiling | None]
    plugins: NotRequired[list[Plugin]]
    null: NotRequired[list[Null]]
    spin: NotRequired[list[Spin]]
    ladder: NotRequired[dict[str, list[Part]]]  # by backend/fusion
    ladder_notes: NotRequired[dict[str, str]]
