"""Documents of kinds `op`, `int4` and `int4-validation`: single ops, over shapes."""

from typing import Any, Literal, NotRequired, TypedDict

from bench.core.schema.fields import (
    Ceiling,
    Clock,
    Count,
    Device,
    Environment,
    Head,
    Integer,
    Node,
    NotNegative,
    Number,
    Positive,
    Ratio,
    Run,
    Share,
    Size,
    Status,
    Time,
)
from bench.core.schema.layer import Timed, Unified


class MeasuredOp(Timed):
    """One entry of `ops`: an op of one shape in one backend and mode."""

    backend: str
    mode: str | None
    fusion: NotRequired[str | None]
    op: str
    label: str
    shape: str
    models: NotRequired[list[str]]  # that have the shape
    batch: NotRequired[Size]
    dtype: NotRequired[str]
    bytes: Count
    status: NotRequired[Status]
    reason: NotRequired[str | None]
    floor_us: NotNegative | None
    max_rel_error: NotRequired[Number | None]
    unified: NotRequired[Unified]  # of native-unified
    time_us: NotRequired[Clock | None]
    host_us: NotRequired[Clock | None]  # until the host is free again
    device_us: NotRequired[Clock | None]  # by kernel timestamps
    ceiling: NotRequired[Ceiling | None]  # beside this op's rounds
    ratio_to_torch: NotRequired[Ratio]
    kernels: NotRequired[list[str]]
    launches: NotRequired[Count]
    repeats: NotRequired[Size]
    copies: NotRequired[Count]
    nodes: NotRequired[list[Node]]
    against_eager: NotRequired[str]
    throttled_rounds: NotRequired[list[Count]]
    throttled_left_out: NotRequired[bool]


class OpRun(Run):
    """bench.op: one op over the shapes of the models."""

    batch: NotRequired[Size | list[Size]]
    ctx: NotRequired[Size | list[Size]]
    ops: list[MeasuredOp]
    arms: NotRequired[list[dict]]  # empty


class PartsOf(TypedDict):
    """Where a 4-bit op's time goes."""

    bandwidth: Number
    launch: Number
    kernel: Number
    dequantisation: Number


class Int4Op(MeasuredOp):
    """One entry of `ops` of 4-bit weights."""

    layout_error: NotRequired[Number | None]  # of the weights as the kernel stores them
    null_us: NotRequired[Number | None]  # of the null op in its mode
    ratio_to_dense: NotRequired[Ratio | None]  # the dense kernel of the same mode over this
    plain_read_us: NotRequired[Time | None]  # of as many bytes in the same mode
    share_of_plain_read: NotRequired[Share | None]
    ideal_ratio: NotRequired[Positive | None]  # by bytes alone
    share_of_ideal: NotRequired[Share | None]
    parts_us: NotRequired[PartsOf | None]
    binds: NotRequired[str | None]  # the largest part


class Prediction(TypedDict):
    """What a GPU that is not here would take."""

    gpu: str
    model: str
    published_gbs: Positive
    source: str
    share: Share
    measured_mode: str
    layer_bytes: Count
    layer_us: Time
    layer_floor_us: NotNegative
    step_bytes: Count
    step_ms: Time
    step_floor_ms: NotNegative
    assumptions: list[str]


class Int4(Run):
    """bench.int4: 4-bit weights beside dense ones."""

    group_size: NotRequired[Integer]  # columns a scale; -1: the row
    symmetric: NotRequired[bool]
    ctx: NotRequired[Size]
    batch: NotRequired[Size]
    ops: list[Int4Op]
    arms: NotRequired[list[dict]]  # empty
    predictions: NotRequired[list[Prediction]]
    published: NotRequired[dict[str, dict]]  # the study's figures beside it, by name


class Trial(TypedDict):
    """One weight that a kernel was given."""

    case: str
    dtype: str
    out_features: Size
    in_features: Size
    group_size: Integer
    symmetric: bool
    batch: Size
    words: str
    status: str
    reason: str | None
    max_rel_error: Number | None
    layout_error: Number | None
    format_error: Number | None


class Tried(TypedDict):
    """A kernel and its trials."""

    kernel: str
    reason: str | None  # why it does not run here
    ended: str | None  # what ended a plug-in's process
    trials: list[Trial]


class Int4Validation(Head):
    """bench.int4 --validate: every 4-bit kernel against the reference."""

    command: str
    interrupted: bool
    environment: Environment
    device: Device
    seed: NotRequired[Count]
    kernels: list[Tried]


class PlanCandidate(TypedDict):
    """A launch plan that an op may have."""

    name: str  # its choice in words; `built-in`, and `built-in again` for the control
    choice: dict[str, Any]  # fields of a plan, and the name of its kernel
    status: Status
    reason: str | None
    max_rel_error: Number | None
    order_of_sums: Literal["same", "other"] | None  # same: its results are the built-in plan's bit for bit
    time_us: Clock | None
    samples_us: list[Time]
    ratio_to_built_in: Ratio | None  # the built-in plan's time over this one's


class TunedOp(TypedDict):
    """One entry of `tuned`: an op of one size, and what its plan may be."""

    op: str
    label: str
    shape: str
    models: list[str]
    sizes: dict[str, Count]  # by which the op finds its plan
    batch: Size
    dtype: str
    bytes: Count
    status: Status  # of the built-in plan
    reason: str | None
    chosen: str  # a candidate's name
    confirmed: Ratio | None  # of the best candidate, in rounds of its own with the built-in plan alone
    candidates: list[PlanCandidate]  # the built-in plan first, then the control


class Tune(Run):
    """bench.tune: which launch plans are the fastest."""

    mode: str
    margin: Share  # by which a plan must be faster, beyond noise
    batch: NotRequired[list[Size]]
    ctx: NotRequired[list[Size]]
    tuned: list[TunedOp]
