"""Does a 4-bit kernel compute what its weights say? Trials against the float64 reference on the dequantised weights.

A trial ends as `ok`; as `refused`, where the kernel says beforehand that it does not take such a weight; as `wrong`; or
as `error`, where it said nothing and raised.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.backends.int4 import Int4Kernel, gate_depth
from bench.core.document import Document
from bench.core.errors import one_line, plain
from bench.int4.trials import Trial, trials
from bench.plugins.loading import Journal
from pykernels.reference import compare


@dataclass
class Found:
    """How one trial ended. max_rel_error: of the kernel against the reference on what its layout says; layout_error: of
    that against the reference on the dequantised weight; format_error: of that against the weight before it was
    quantised. All by the same measure; None where not compared."""

    case: str
    dtype: str
    out_features: int
    in_features: int
    group_size: int
    symmetric: bool
    batch: int
    words: str
    status: str
    reason: str | None = None
    max_rel_error: float | None = None
    layout_error: float | None = None
    format_error: float | None = None


@dataclass
class Tried:
    """What came of a kernel's validation. reason: why it does not run here; ended: what ended the process of a plug-in
    before it was done."""

    kernel: str
    reason: str | None = None
    ended: str | None = None
    found: list[Found] = field(default_factory=list)
    interrupted: bool = False

    def document(self) -> Document:
        """Its entry of the key `kernels`."""
        trials = [vars(one) for one in self.found]
        return {"kernel": self.kernel, "reason": self.reason, "ended": self.ended, "trials": trials}


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference of a row's elements over the largest magnitude of b's row."""
    return float(((a - b).abs() / b.abs().amax(-1, keepdim=True).clamp_min(1e-30)).max())


def _inexact(trial: Trial, got: Tensor, expected: Tensor, x: Tensor, kernel: type[Int4Kernel]) -> str | None:
    """What is wrong with a result that should be right to the last bit; None where nothing is.

    A kernel that says that it rounds its weights may be off by two roundings of the largest q * scale of each row; so
    may every kernel in float32, where its sums are no more precise than its results.
    """
    dtype = trial.weight.dtype
    rounded = expected.to(dtype).double()
    allowed = torch.zeros_like(expected)
    if kernel.rounds_weights or dtype == torch.float32:
        largest = 15 * trial.weight.scales.double().abs().amax(1)
        allowed = torch.finfo(dtype).eps * x.double().abs().sum(1, keepdim=True) * largest
    off = ~((got.double() - rounded).abs() <= allowed)  # NaN is off
    if not bool(off.any()):
        return None
    row, column = (int(i) for i in off.nonzero()[0])
    where = f"out[{row}, {column}]"
    if int(x[row].count_nonzero()) == 1:
        where = f"weight[{column}, {int(x[row].nonzero()[0])}], read back by a one-hot input,"
    return (
        f"{where} must be {float(rounded[row, column]):.8g}, got {float(got[row, column]):.8g}; "
        f"{int(off.sum())} of {off.numel()} differ"
    )


def begun(trial: Trial) -> Found:
    """A trial of which nothing is known yet."""
    weight = trial.weight
    dtype = str(weight.dtype).removeprefix("torch.")
    return Found(
        trial.case, dtype, weight.out_features, weight.in_features, weight.group_size, weight.zeros is None,
        trial.batch, trial.words, "ok",
    )  # fmt: skip


def run_trial(kernel: type[Int4Kernel], trial: Trial, device: torch.device) -> Found:
    """One trial. The device runs the kernel and nothing else: tensors are made, moved and compared on the CPU."""
    weight, found = trial.weight, begun(trial)
    on_device = weight.clone().to(device)  # on the CPU too: what is compared with must not be what a kernel can write
    if reason := kernel.refusal(on_device, trial.batch):
        found.status, found.reason = "refused", plain(str(reason))
        return found
    try:
        with torch.inference_mode():
            dense = kernel().multiplies_by(weight)
            instance = kernel()
            instance.prepare(on_device)
            _compare_all(instance, trial, dense, device, found)
    except Exception as error:  # the kernel's failure is what is reported
        found.status, found.reason = "error", one_line(error)
    return found


_GUARD_BYTES = 512
"""Of NaN on either side of x. A multiple of every alignment."""


def _guarded(x: Tensor, alignment: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """x on the device amid NaN, and all of that memory: what a kernel reads beside x it finds in its result. The
    address of x is a multiple of `alignment` and of no more."""
    size = x.element_size()
    before = (_GUARD_BYTES + max(alignment, size)) // size
    memory = torch.full((before + x.numel() + _GUARD_BYTES // size,), torch.nan, dtype=x.dtype)
    memory[before : before + x.numel()] = x.flatten()
    memory = memory.to(device)
    return memory[before : before + x.numel()].view(x.shape), memory


def _outputs(instance: Int4Kernel, trial: Trial, device: torch.device) -> tuple[list[Tensor], str | None]:
    """All results of the first calls and of the second ones, [rows, out_features] each, or what is wrong with a call's
    manners. Twice: what a call leaves behind (locks, partial sums) shows in the next. The second finds x at an address
    of the least alignment that the kernel takes, the first at one of 16 bytes where that is more."""
    least = type(instance).alignment
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    for x in trial.inputs:
        for results, alignment in zip(rows, (max(least, 16), least), strict=True):
            x_there, memory = _guarded(x, alignment, device)
            before = memory.cpu().clone().view(torch.uint8)
            y = instance.run(x_there)
            if (tuple(y.shape), y.dtype) != ((x.shape[0], trial.weight.out_features), x.dtype):
                wanted = [x.shape[0], trial.weight.out_features]
                return [], f"run must return {x.dtype} {wanted}, got {y.dtype} {list(y.shape)}"
            results.append(y.cpu().clone())
            if not torch.equal(memory.cpu().view(torch.uint8), before):
                return [], "run must leave x, and what lies beside it, as it is"
            if trespass := instance.trespass(trial.weight):
                return [], trespass
    return [torch.cat(results) for results in rows], None


def _compare_all(instance: Int4Kernel, trial: Trial, dense: Tensor, device: torch.device, found: Found) -> None:
    outputs, problem = _outputs(instance, trial, device)
    if problem:
        found.status, found.reason = "wrong", problem
        return
    x = torch.cat(trial.inputs)
    expected = x.double() @ dense.T
    least = type(instance).alignment
    second = f"the second call, x at a multiple of {least} bytes: " if least < 16 else "the second call: "
    for call, got in zip(("", second), outputs, strict=True):
        comparison = compare(got, expected, trial.weight.dtype, gate_depth(type(instance)))
        found.max_rel_error = max(found.max_rel_error or 0.0, comparison.max_rel_error)
        if trial.exact:
            problem = _inexact(trial, got, expected, x, type(instance))
        elif not comparison.ok:
            problem = comparison.message
        if problem:
            found.status, found.reason = "wrong", call + problem
            return
    if trial.dense is not None:
        said = trial.weight.dequantize()
        found.layout_error = relative(expected, x.double() @ said.T)
        found.format_error = relative(x.double() @ said.T, x.double() @ trial.dense.double().T)


def validate(
    kernel: type[Int4Kernel],
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    group_sizes: Sequence[int],
    symmetries: Sequence[bool],
    seed: int = 0,
    journal: Journal | None = None,
) -> Iterator[Found]:
    """Every trial of a kernel in those of the dtypes that it takes, one after another; noted in the journal where this
    is a plug-in's own process."""
    for dtype in [dtype for dtype in dtypes if dtype in kernel.dtypes_on(device)]:
        for trial in trials(dtype, group_sizes, symmetries, kernel.max_batch, seed):
            if journal:
                journal.append("begun", vars(begun(trial)))
            found = run_trial(kernel, trial, device)
            if journal:
                if found.status == "error":
                    journal.end_if_lost(str(found.reason).partition(":")[0])
                journal.append("trials", vars(found))
            yield found


def tried(name: str, kernel: type[Int4Kernel], device: torch.device, found: Iterable[Found]) -> Tried:
    """What came of a kernel in this process, by its trials as :func:`validate` makes them; Ctrl-C ends them early."""
    of_kernel = Tried(name)
    try:
        of_kernel.reason = kernel.availability(device)
        if not of_kernel.reason:
            for one in found:
                of_kernel.found.append(one)
    except KeyboardInterrupt:
        of_kernel.interrupted = True
    return of_kernel


def failed(found: Sequence[Found]) -> list[Found]:
    """The trials that were wrong or raised."""
    return [one for one in found if one.status in ("wrong", "error")]


def verdict(name: str, found: Sequence[Found], ended: str | None = None) -> str:
    """One line about a kernel; ended: as in Tried."""
    bad, refused = failed(found), [one for one in found if one.status == "refused"]
    ran = len(found) - len(refused)
    if not ran:
        reasons = ", ".join(dict.fromkeys(str(one.reason) for one in refused)) or "it takes none of the dtypes given"
        return f"{name}: NOTHING VALIDATED: {ended or reasons}"
    state = f"WRONG in {len(bad)} of {ran} trials" if bad else f"right in all of {ran} trials"
    if raised := sum(one.status == "error" for one in bad):
        state += f", {raised} of which raised"
    layout = max((one.layout_error or 0.0 for one in found), default=0.0)
    loss = f"; its layout alone is up to {layout:.1e} off what the weights say" if layout > 1e-12 else ""
    rest = f"; its process: {ended}: what comes after was not tried" if ended else ""
    return f"{name}: {state}" + (f"; {len(refused)} refused" if refused else "") + loss + rest


def right(found: Sequence[Found]) -> bool:
    """Did it run at all, and was every trial that it took right?"""
    return not failed(found) and any(one.status == "ok" for one in found)
