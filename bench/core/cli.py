"""The command line that the drivers share: flags, their checks, and how a run ends.

Exit status, of every driver: 0 done (unsupported arms are listed, not fatal); 1 a result was wrong, an arm, session or
cell ended in an error, or nothing ran; 2 bad arguments, one line on stderr that names the flag, the value and what is
allowed; 130 interrupted, by Ctrl-C or SIGTERM.
"""

import functools
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import Annotated, Any, TypeVar

import torch
import typer

import pykernels as pk
from bench.core import document, early_interrupt, environment, streams
from bench.core.early_interrupt import INTERRUPTED
from bench.core.errors import UsageError, WriteError, flag_error, printable
from bench.core.paths import user_path
from pykernels.architectures import misfit
from pykernels.layer import OP_LABELS
from pykernels.models import ModelSpec
from pykernels.quant.int4_weight import group_size_allowed

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DTYPE_FLAGS = {dtype: flag for flag, dtype in DTYPES.items()}
"""What --dtype calls a dtype."""
FUSIONS = tuple(OP_LABELS)
STUDIED = pk.models.GROUPS["study"]
"""The models of the study."""
LEAST_CAPABILITY = (8, 0)
"""Of a GPU that the CUDA kernels run on."""
MODEL_WORDS = ", ".join((*pk.models.names(), *(f"{name} ({len(of)})" for name, of in pk.models.GROUPS.items())))
"""The built-in models, and the groups of them with how many they are."""
ALL_STUDIED = ",".join(STUDIED)
"""The same as the default of a comma-separated --model."""

# What typer raises for arguments it cannot parse. It carries a click of its own, which has no public name.
_ClickError: Any = typer.BadParameter.__base__

Result = TypeVar("Result")
Number = TypeVar("Number", int, float)
Value = TypeVar("Value")


def choices(flag: str, text: str, allowed: Sequence[str]) -> list[str]:
    """A comma-separated flag, in the order given, without repeats; `all` is all of them."""
    if text == "all":
        return list(allowed)
    picked = list(dict.fromkeys(part.strip() for part in text.split(",")))
    for part in picked:
        if part not in allowed:
            raise flag_error(flag, part or text, f"all, or of {', '.join(allowed)}")
    return picked


MODES = ("eager", "pybind", "dispatch", "native", "graph", "graph-pdl")
"""Who drives a step, from Python's loop to a replayed graph."""

MODE_WORDS = {"cpp": "native"}
"""Other words for a mode. The mode `native`, a C++ loop over the launchers, is called like the backend `native`,
launchtax's own kernels: `cpp` is the same mode by a name of its own. Documents say `native`."""


def mode(text: str) -> str:
    """One mode by the name that documents have."""
    return MODE_WORDS.get(text, text)


def modes(flag: str, text: str, allowed: Sequence[str]) -> list[str]:
    """A comma-separated --mode: choices(), and cpp for native."""
    return choices(flag, ",".join(mode(part.strip()) for part in text.split(",")), allowed)


def choice(flag: str, text: str, allowed: Sequence[str]) -> str:
    """A flag that takes one word."""
    if text not in allowed:
        raise flag_error(flag, text, f"one of {', '.join(allowed)}")
    return text


def number(flag: str, value: int, low: int, high: int) -> int:
    """A flag that takes an integer in low..high."""
    if not low <= value <= high:
        raise flag_error(flag, value, f"in {low}..{high}")
    return value


def model_names(flag: str, text: str) -> list[str]:
    """A comma-separated flag of models and groups of them, in the order given, without repeats."""
    groups = pk.models.GROUPS
    found: dict[str, None] = {}
    for part in choices(flag, text, (*pk.models.names(), *groups)):
        found |= dict.fromkeys(groups.get(part, (part,)))
    return list(found)


def context(flag: str, value: int, spec: ModelSpec, beyond: int = 0) -> int:
    """A flag that takes a context of that model, whose cache has `beyond` slots more, one a step."""
    most = spec.max_ctx - beyond
    if 1 <= value <= most:
        return value
    words = f"in 1..{most}"
    if spec.max_ctx < spec.max_position:
        words += f" ({spec.ctx_words()})"
    if beyond:
        words += f": {spec.name} has {spec.max_ctx} positions, one a step"
    raise flag_error(flag, value, words)


def group_size(flag: str, value: int) -> int:
    """A flag that takes the columns of a scale of 4-bit weights; -1 is the whole row."""
    if value != -1 and not (value > 0 and group_size_allowed(value, 128 * value)):
        raise flag_error(flag, value, "32, 64, a multiple of 128, or -1 for the whole row")
    return value


def gigabytes_per_second(flag: str, value: float) -> float:
    """A flag that takes a bandwidth, or 0."""
    if value and not 0.001 <= value <= 1e6:
        raise flag_error(flag, value, "a positive number in 0.001..1e+06 GB/s, or 0 for the table's")
    return value


def gigabytes(flag: str, value: float) -> float:
    """A flag that takes an amount of memory, or 0."""
    if not 0 <= value < float("inf"):
        raise flag_error(flag, value, "a positive number, or 0 for what is there")
    return value


def seconds(flag: str, value: float) -> float:
    """A flag that takes a time limit."""
    if not 0 < value < float("inf"):
        raise flag_error(flag, value, "a positive number of seconds")
    return value


def numbers(flag: str, text: str, low: float, high: float, kind: type[Number]) -> list[Number]:
    """A comma-separated flag of numbers in low..high; `kind` is int or float."""
    values = []
    for part in text.split(","):
        try:
            values.append(kind(part))
        except ValueError:
            raise flag_error(flag, part, "an integer" if kind is int else "a number") from None
        if not low <= values[-1] <= high:
            raise flag_error(flag, part, f"in {low:g}..{high:g}")
    return values


def checked(check: Callable[..., Value], flag: str, *allowed: Any) -> Callable[[Value], Value]:
    """One of the checks above as typer's callback for that flag: a flag that drivers share is checked where it is
    declared, and no driver can forget it."""

    def callback(value: Value) -> Value:
        return check(flag, value, *allowed)

    return callback


MODE_HELP = (
    "comma-separated, or all: who drives. eager: a Python loop over the ops; pybind: a Python loop over the launchers; "
    "dispatch: a C++ loop through PyTorch's dispatcher; native, or cpp: a C++ loop over the launchers (not the backend "
    "native, which computes); graph: a replayed CUDA graph; graph-pdl: the same with programmatic dependent launches"
)

BackendFlag = Annotated[
    str,
    typer.Option(
        "--backend",
        help="comma-separated, or all: who computes. native: launchtax's own kernels; --list names the others",
    ),
]
ModeFlag = Annotated[str, typer.Option("--mode", help=MODE_HELP)]
ModelFlag = Annotated[str, typer.Option("--model", help=", ".join(pk.models.names()))]
ModelsFlag = Annotated[str, typer.Option("--model", help=f"comma-separated: {MODEL_WORDS}; all")]
ConfigFlag = Annotated[str, typer.Option("--config", help="a Hugging Face config.json instead of --model")]
CtxFlag = Annotated[int, typer.Option("--ctx", help="slots of the cache that a step attends to")]
StepCtxFlag = Annotated[int, typer.Option("--ctx", help="slots of the cache that are filled before the first step")]
BatchFlag = Annotated[int, typer.Option("--batch", help="sequences, 1 to 8", callback=checked(number, "--batch", 1, 8))]
DtypeFlag = Annotated[
    str, typer.Option("--dtype", help="bf16, fp16 or fp32", callback=checked(choice, "--dtype", tuple(DTYPES)))
]
DeviceFlag = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda or cuda:N, as torch counts them; auto: cuda:0 where one is")
]
WeightsFlag = Annotated[str, typer.Option("--weights", help="a local Hugging Face folder")]
LayerWeightsFlag = Annotated[str, typer.Option("--weights", help="a local Hugging Face folder to take one layer from")]
LayerFlag = Annotated[int, typer.Option("--layer", help="which layer of --weights")]
AttentionFlag = Annotated[
    str,
    typer.Option("--attention", help="of 4-bit libraries' layers: the backend whose attention they have (--list)"),
]
FusionFlag = Annotated[
    str,
    typer.Option("--fusion", help="comma-separated: how native cuts a layer into ops: none (fourteen), block (five)"),
]
LayersFlag = Annotated[int, typer.Option("--layers", help="measure this many of the model's layers; 0: all")]
SharedWeightsFlag = Annotated[bool, typer.Option("--shared-weights", help="give all layers one set of random weights")]
L2Flag = Annotated[
    str,
    typer.Option(
        "--l2",
        help="cold: rotate copies of the weights past the cache; warm: one",
        callback=checked(choice, "--l2", ("cold", "warm")),
    ),
]
WarmupFlag = Annotated[
    int,
    typer.Option(
        "--warmup", help="untimed samples before an arm's first", callback=checked(number, "--warmup", 0, 10_000)
    ),
]
StepsFlag = Annotated[
    int,
    typer.Option("--steps", help="samples of every arm, one a round", callback=checked(number, "--steps", 2, 100_000)),
]
RepeatsFlag = Annotated[
    int,
    typer.Option(
        "--repeats",
        help="steps a sample, and steps a graph holds; 0: 1 on a CPU, enough on a GPU",
        callback=checked(number, "--repeats", 0, 4096),
    ),
]
ThreadsFlag = Annotated[
    int,
    typer.Option(
        "--threads",
        help="threads of native and of torch; 0: as they come",
        callback=checked(number, "--threads", 0, 256),
    ),
]
SpecFlag = Annotated[
    float,
    typer.Option(
        "--spec-gbs",
        help="peak memory bandwidth, GB/s; 0: from the table",
        callback=checked(gigabytes_per_second, "--spec-gbs"),
    ),
]
MemoryLimitFlag = Annotated[
    float,
    typer.Option(
        "--memory-limit-gb",
        help="report oom where weights and cache take more; 0: what is there",
        callback=checked(gigabytes, "--memory-limit-gb"),
    ),
]
SeedFlag = Annotated[
    int,
    typer.Option("--seed", help="of weights, input and cache", callback=checked(number, "--seed", 0, 2**31 - 1)),
]
QuantFlag = Annotated[
    str,
    typer.Option(
        "--quant",
        help="none or int4: round the projections to 4 bits. A quantised folder of --weights is int4",
        callback=checked(choice, "--quant", ("none", "int4")),
    ),
]
GroupFlag = Annotated[
    int, typer.Option("--group", help="of --quant=int4, columns a scale: 32, 64, a multiple of 128; -1: the row")
]
AsymmetricFlag = Annotated[bool, typer.Option("--asymmetric", help="of --quant=int4: with zero points")]
JsonFlag = Annotated[str, typer.Option("--json", help="write the result document")]
CsvFlag = Annotated[str, typer.Option("--csv", help="write arms and ops as rows")]
MdFlag = Annotated[str, typer.Option("--md", help="write the tables as Markdown")]
ListFlag = Annotated[bool, typer.Option("--list", help="name what this machine can run, and why not the rest")]
PlotFlag = Annotated[str, typer.Option("--plot", help="draw the ladder (.png, .svg or .pdf)")]
TraceFlag = Annotated[str, typer.Option("--trace", help="write a sample of every arm for Perfetto (.json), GPU only")]


def device(text: str, use: bool = True) -> torch.device:
    """--device, as _device() says. Raises UsageError where a table of plans is set that is not for it."""
    found = _device(text, use)
    table = pk.runtime.plan_table()
    if table and (why := table.misfit(found, use)):
        raise UsageError(f"{pk.plans.VARIABLE}: {table.name}: {why}")
    return found


def _device(text: str, use: bool) -> torch.device:
    """--device; auto is the first GPU where this build has kernels for one and torch sees one, else the CPU.

    A GPU becomes the process's current device, which streams, events, graphs and what other libraries launch follow. It
    does not with use=False: for a process that only starts others, and needs no context there.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,4}))?", text)
    if not match:
        raise flag_error("--device", text, "one of auto, cpu, cuda, cuda:N")
    built_for_cuda = pk.runtime.build_info()["cuda"]
    usable = built_for_cuda and torch.cuda.is_available()
    if text.startswith("cuda") and not usable:
        missing = "a CUDA device, and torch sees none" if built_for_cuda else "a build with CUDA kernels"
        raise flag_error("--device", text, f"cpu or auto here: cuda needs {missing}")
    if not usable or text == "cpu":
        return torch.device("cpu")
    index = int(match[1] or 0)
    if index and index >= (count := torch.cuda.device_count()):
        raise flag_error("--device", text, f"a GPU that torch sees: cuda:0 to cuda:{count - 1}, {count} in all")
    current = index or torch.cuda.is_initialized()  # else the first is the current one as it is
    # Not without use: asking for it initialises CUDA.
    if use and (found := torch.cuda.get_device_capability(index)) < LEAST_CAPABILITY:
        if text == "auto":
            return torch.device("cpu")
        least, has = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, found))
        needs = f"compute capability {least} or newer, and {torch.cuda.get_device_name(index)} has {has}"
        raise flag_error("--device", text, f"cpu or auto here: cuda needs {needs}")
    # Not auto's choice either: nobody with such a GPU means to measure the CPU.
    if use and (missing_code := no_code_for(index)):
        raise flag_error("--device", text, f"cpu here: {missing_code}")
    if use and current:
        torch.cuda.set_device(index)
    return torch.device("cuda", index)


def no_code_for(index: int = 0) -> str | None:
    """That this build has no code for a GPU, and how to build for it; None where it has, and where no GPU is used."""
    info = pk.runtime.build_info()
    if not info["cuda"] or not torch.cuda.is_available():
        return None
    capability = torch.cuda.get_device_capability(index)
    if capability < LEAST_CAPABILITY:
        return None  # no build has
    needs = misfit(info.get("cuda_architectures", ""), capability)
    return f"{torch.cuda.get_device_name(index)} needs {needs}" if needs else None


def model(name: str, config: str, weights: str = "") -> ModelSpec:
    """The spec that --model or --config names; the folder of --weights brings its own, where there is no --config."""
    if config or weights:
        given = f"--config={config}" if config else f"--weights={weights}"
        path = user_path("--config", config) if config else user_path("--weights", weights)
        try:
            return pk.models.from_config(path)
        except ValueError as error:
            raise UsageError(f"{given}: {error}") from None
    choice("--model", name, pk.models.names())
    return pk.models.get(name)


def models(names: str, config: str) -> list[ModelSpec]:
    """The specs that a comma-separated --model names, or the one of --config."""
    if config:
        return [model("", config)]
    return [pk.models.get(name) for name in model_names("--model", names)]


def spec_bandwidth(given_gbs: float, device: torch.device) -> tuple[float | None, str]:
    """--spec-gbs or, where that is 0, the table's figure for the device: GB/s, and where it comes from."""
    return (given_gbs, "--spec-gbs") if given_gbs else environment.spec_bandwidth(device)


def usage(call: Callable[[], Result]) -> Result:
    """Run `call`; a ValueError of the library is the user's error here."""
    try:
        return call()
    except ValueError as error:
        raise UsageError(str(error)) from None


def set_threads(count: int) -> None:
    """--threads, for our own kernels and for torch's, so that they compete with as many."""
    if count:
        pk.runtime.set_num_threads(count)
        torch.set_num_threads(count)


class _InterruptedError(Exception):
    """Ctrl-C before a command had anything to keep. Typer would turn a KeyboardInterrupt into a bare status."""


def _refused(error: Any, arguments: Sequence[str]) -> str:
    """Typer's words for an argument that it could not parse, behind the argument as it was given."""
    flags = [getattr(error, "option_name", None), *getattr(getattr(error, "param", None), "opts", [])]
    given = [
        argument if "=" in argument else "=".join(arguments[i : i + 2])
        for i, argument in enumerate(arguments)
        if argument.partition("=")[0] in flags
    ]
    return ": ".join([*given[-1:], " ".join(error.format_message().split())])


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """While it lasts SIGTERM, which is how timeout and schedulers end a run, is a Ctrl-C: what was finished is printed
    and saved. Only the first, since timeout sends it twice."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def started_as(program: str) -> list[str]:
    """The words that start the driver `program`, bench.layer, again as this process was: `python -m bench.layer`, or
    `launchtax layer`."""
    if "launchtax" in sys.modules:  # only the command imports it
        return ["launchtax", program.removeprefix("bench.")]
    return ["python", "-m", program]


def run(program: str, command: Callable[..., int | None], arguments: Sequence[str] | None = None) -> int:
    """Parse `arguments` with typer, run the command, and turn what goes wrong into an exit status."""
    with streams.tolerant_stdout() as stdout:
        status = _run(program, command, arguments)
    if stdout.error:
        print(f"{program}: stdout: {stdout.error.strerror}: what was printed is not whole", file=sys.stderr)
    return status or (1 if stdout.error else 0)


def _run(program: str, command: Callable[..., int | None], arguments: Sequence[str] | None) -> int:
    @functools.wraps(command)
    def interruptible(**flags: Any) -> int | None:
        # By environment variables, which may be none, or name no file of plans.
        usage(lambda: (pk.runtime.isa(), pk.runtime.num_threads(), pk.runtime.plan_table()))
        try:
            return command(**flags)
        except KeyboardInterrupt:
            raise _InterruptedError from None

    bare = getattr(command, "bare", {})  # typer has no flag whose value is optional
    given = sys.argv[1:] if arguments is None else arguments
    arguments = [f"{argument}={bare[argument]}" if argument in bare else argument for argument in given]
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(interruptible)
    try:
        early_interrupt.release()
        with _ended_as_by_ctrl_c():
            return typer.main.get_command(app).main(args=arguments, prog_name=program, standalone_mode=False) or 0
    except UsageError as error:
        print(f"{program}: {printable(str(error))}", file=sys.stderr)
    except WriteError as error:
        print(f"{program}: {printable(str(error))}", file=sys.stderr)
        return 1
    except _ClickError as error:
        print(f"{program}: {printable(_refused(error, arguments))}", file=sys.stderr)
    except (_InterruptedError, KeyboardInterrupt):
        early_interrupt.say(program)
        return INTERRUPTED
    finally:
        early_interrupt.forget()
    return 2


def head(program: str, kind: str, **keys: Any) -> document.Document:
    """What every document begins with; `command` is what reproduces this run."""
    return {
        "schema": document.SCHEMA,
        "kind": kind,
        **keys,
        "command": shlex.join([*started_as(program), *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
