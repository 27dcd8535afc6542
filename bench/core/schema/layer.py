"""Documents of kinds `layer`, `stack`, `step` and `call`: arms and ladders of one program."""

from typing import Any, Literal, NotRequired, TypedDict

from bench.core.schema.fields import (
    Clock,
    Count,
    Gaps,
    Model,
    Node,
    NotNegative,
    Number,
    OpBytes,
    Positive,
    Quant,
    Ratio,
    Run,
    Share,
    Size,
    Span,
    Status,
    Time,
)


class Unified(TypedDict):
    """A softmax with a unified maximum: phi, and how often a step fell back to online."""

    phi: Number  # what every score is taken less
    phi_from: Literal["given", "calibrated"]
    low: NotRequired[Number]  # of those calibrated from: 0.005% of score - phi lie below
    high: NotRequired[Number]  # and 99.995% below this
    rows: NotRequired[Size]  # (sequence, head) pairs calibrated from
    in_range: NotRequired[Share]  # share of them whose sum stays in the safe range
    pairs: Size  # (sequence, head) pairs of a step
    fallbacks_per_step: NotNegative | None  # that were computed again online; null: not counted


class AnArm(TypedDict):
    """What ran: backend x fusion x mode, and how it went."""

    backend: str
    mode: str
    fusion: str | None
    weights: NotRequired[str]  # of a run of 4-bit weights: int4, or the dtype of those dequantised for this arm
    status: Status
    reason: NotRequired[str | None]  # of any status but ok
    max_rel_error: NotRequired[Number | None]  # against the reference
    unified: NotRequired[Unified]  # of native-unified


class Timed(TypedDict):
    """What the clocks and the bytes of an arm or op come to."""

    samples_us: list[Time]
    device_reason: NotRequired[str | None]  # why there are none
    trace_factor: NotRequired[Positive | None]  # how much slower a traced step was
    gbs: NotRequired[NotNegative | None]
    share_of_spec: NotRequired[Share | None]
    share_of_read: NotRequired[Share | None]
    device_gbs: NotRequired[NotNegative | None]
    device_share_of_spec: NotRequired[Share | None]
    device_share_of_read: NotRequired[Share | None]
    host_us_per_kernel: NotRequired[NotNegative | None]
    steps_per_graph: NotRequired[Size | None]


class Arm(AnArm, Timed):
    """One entry of `arms`."""

    launches: NotRequired[Count]  # kernels a step
    wall_us: Clock | None  # a step, back to back
    host_us: Clock | None  # until the host is free again
    device_us: NotRequired[Clock | None]  # by kernel timestamps
    kernels: NotRequired[list[str]]
    bytes: NotRequired[Count]  # that a step must move
    ratio_to_sdpa: NotRequired[Ratio]  # sdpa eager over this
    ratio_to_sdpa_graph: NotRequired[Ratio]  # sdpa in a graph over this
    in_its_process: NotRequired[dict[str, Ratio]]  # of a plug-in, to what its own process measured
    against_eager: NotRequired[str]  # the captured step beside the eager one
    nodes: NotRequired[list[Node]]  # of the captured graph


class Op(TypedDict):
    """An op of the native program, timed alone."""

    backend: str
    fusion: str | None
    op: str
    label: str
    shape: str
    bytes: Count
    floor_us: NotNegative | None
    time_us: NotRequired[Clock | None]
    device_us: NotRequired[Clock | None]
    gbs: NotNegative
    share_of_spec: Share | None
    share_of_read: Share | None
    mode: NotRequired[str]  # of the arm whose trace it is from
    count: NotRequired[Size]  # times a step runs it


class PaperBytes(TypedDict):
    """As the study counts them."""

    weight_bytes: Count
    kv_bytes: Count
    bytes_per_token_kv: Count


class LayerBytes(TypedDict):
    """What a layer must move."""

    ops: dict[str, list[OpBytes]]  # by fusion
    layer_streamed: dict[str, Count]  # by fusion
    paper: PaperBytes


class OneModel(Run):
    """Of one model at one context and batch."""

    model: Model
    ctx: Size  # slots of the cache that a step attends to
    batch: Size


class Layer(OneModel):
    """bench.layer: one decode layer in every backend and mode, and where its time goes."""

    weights: NotRequired[Literal["random", "checkpoint"]]
    quant: NotRequired[Quant | None]
    weight_copies: NotRequired[Count]
    bytes: NotRequired[LayerBytes]
    arms: list[Arm]
    ops: list[Op]
    timelines: NotRequired[dict[str, list[Span]]]  # by arm: a traced step
    gaps: NotRequired[dict[str, Gaps]]  # by arm


class StackArm(Arm):
    """One cell of the stack: whose attention, how compiled, how driven."""

    attention: str
    compiled: str
    crashed_in_the_paper: bool


class Stack(Run):
    """bench.stack: one layer by whose attention it has, whether it is compiled and whether it is captured."""

    model: Model | None
    ctx: Size | None
    batch: Size | None
    flags: NotRequired[list[str]]  # of every process
    arms: list[StackArm]


class Paper(TypedDict):
    """A step by the study's accounting (bench.study.accounting)."""

    p50_ms: Time
    t_floor_ms: NotNegative | None
    R_floor: Positive | None
    bw_peak_gbs: Positive | None
    arch: NotRequired[str]
    gpu: NotRequired[str | None]
    ctx: NotRequired[Size]
    step_times_ms: NotRequired[list[Time]]
    weight_bytes: NotRequired[Count]
    bytes_per_token_kv: NotRequired[Count]
    avg_ctx_during_measure: NotRequired[NotNegative]
    kv_bytes_avg: NotRequired[NotNegative]
    n_layers: NotRequired[Size]
    source: NotRequired[str]


class Drift(TypedDict):
    """Whether samples became longer or shorter over the rounds."""

    drifting: bool
    kendall_tau: Number | None
    p_trend: Share | None
    p_step: Share | None
    step_at: Count | None
    change: Number | None


class Profile(TypedDict):
    """A step under torch's profiler."""

    bw_util: Share | None
    bw_util_profiled: Share | None
    inflation: NotNegative | None  # profiled over unprofiled
    cpu_cuda_ratio: NotNegative | None
    profiled_us: NotRequired[NotNegative | None]
    cpu_us: NotRequired[NotNegative | None]
    cuda_us: NotRequired[NotNegative | None]


class StepArm(AnArm, Timed):
    """One entry of `arms` of a step."""

    launches: Count  # kernels a step
    wall_us: Clock | None
    host_us: NotRequired[Clock | None]
    device_us: NotRequired[Clock | None]
    kernels: NotRequired[dict[str, Count] | list[str]]  # by name: launches of a step
    bytes: NotRequired[Count]  # that a step must move
    ratio_to_sdpa: NotRequired[Ratio]
    ratio_to_sdpa_graph: NotRequired[Ratio]
    ratio_to_transformers: NotRequired[Ratio]  # transformers eager over this
    against_eager: NotRequired[str]
    nodes: NotRequired[list[Node]]
    paper: Paper | None
    drift: Drift | None
    launches_per_layer: Count | None
    launch_gap_us: NotRequired[Number | None]  # wall less device
    launch_gap_share: NotRequired[Number | None]
    profile: NotRequired[Profile | None]


class Positions(TypedDict):
    """Of the cache, in the first and the last step."""

    first: Count
    last: Count


class Memory(TypedDict):
    """What a step needs, and what it had taken at most."""

    asked_bytes: Count
    peak_bytes: Count
    weight_bytes: NotRequired[Count]
    kv_bytes: NotRequired[Count]


class StepBytes(TypedDict):
    """What a step must move."""

    step_streamed: dict[str, Count]  # by fusion
    paper: PaperBytes


class Cell(TypedDict):
    """Of a sweep."""

    model: str
    ctx: Size
    batch: Size


class ControlSet(TypedDict):
    """The controls once; null where they could not be taken, and why."""

    null_us: dict[str, NotNegative]  # by mode: the null op
    null_host_us: dict[str, NotNegative]
    spin_asked_us: NotNegative | None
    spin_us: NotNegative | None
    read_gbs: NotNegative | None
    clocks: Any
    reason: str | None


class Controls(TypedDict):
    """What tells a machine that has drifted, around a cell."""

    before: ControlSet
    after: ControlSet
    doubt: str | None


class CellNode(TypedDict):
    """The machine that measured a cell."""

    name: str  # eight digits, which tell machines apart and nothing else
    niceness: NotRequired[int]  # of the process; 0: that of any program
    ray: NotRequired[str]  # the Ray node
    packed: NotRequired[bool]  # --pack: others of the node may have been measured meanwhile


class Step(OneModel):
    """bench.step: a whole decode step, by the study's protocol; of bench.sweep, one cell."""

    full_layers: NotRequired[Size]  # of the model
    quant: NotRequired[Quant | None]
    shared_weights: NotRequired[bool]
    weights: NotRequired[Literal["random", "checkpoint"]]
    cache: NotRequired[str]
    kv_len: NotRequired[Positions]
    memory: NotRequired[Memory]
    bytes: NotRequired[StepBytes]
    arms: list[StepArm]
    ops: NotRequired[list[Op]]
    timelines: NotRequired[dict[str, list[Span]]]  # by arm: a block of a traced step
    cell: NotRequired[Cell]
    cell_flags: NotRequired[list[str]]  # that the sweep's cells share
    seconds: NotRequired[NotNegative]  # that the cell's process took
    node: NotRequired[CellNode]
    controls: NotRequired[Controls]
    status: NotRequired[Status]  # of a cell whose process left no document
    reason: NotRequired[str | None]


class Kernel(TypedDict):
    """A kernel of a call, in all its launches."""

    kernel: str
    launches: Count
    device_us: NotNegative
    host_us: NotNegative | None
    share: Share


class CallBytes(TypedDict):
    """What a call must move, and how that was counted."""

    call: Count
    counted: str


class Call(Run):
    """bench.call: the ladder of somebody's callable."""

    batch: None
    weight_copies: NotRequired[Count]
    bytes: NotRequired[CallBytes]
    floor_us: NotRequired[NotNegative | None]
    reference: NotRequired[str]
    notes: NotRequired[list[str]]
    eager_us: NotRequired[Clock | None]
    kernels: NotRequired[list[Kernel]]
    gaps: NotRequired[dict[str, Gaps]]
    arms: list[Arm]
    ops: list[Op]
