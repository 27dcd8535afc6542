"""4-bit kernels: how fast each is, what binds it, and whether it computes what its weights say.

python -m bench.int4                                            # every linear shape of three models, and their layers
python -m bench.int4 --model=qwen2.5-7b --group=64 --asymmetric --json=int4.json --plot=int4.png
python -m bench.int4 --kernel=native,kernels.py:Gemv,kernels.cu:gemv --dtype=bf16   # kernels of one's own
python -m bench.int4 --validate --kernel=kernels.py:Gemv      # against the reference and exact cases; status 1: wrong
python -m bench.int4 --arch=sm89                                # the SASS for Ada, without an Ada card
python -m bench.int4 --predict=l4                               # our layer on an L4, by arithmetic
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from bench.backends import int4 as kernels4
from bench.core import cli, controls, environment
from bench.core.ceiling import Ceiling
from bench.core.document import Document
from bench.core.flags import make_command
from bench.core.library import only_found
from bench.core.listing import NOT_LOADED, item
from bench.core.outputs import Outputs
from bench.core.progress import progress
from bench.core.run import Machine, close
from bench.drivers import takes
from bench.int4 import groups, measure, plugged, predict, show, validate
from bench.int4 import sass as sass
from bench.int4.settings import Settings
from bench.int4.trials import GROUP_SIZES
from bench.plugins import plan as plugins
from bench.plugins.loading import KINDS

_PROGRAM = "bench.int4"

_PTX_OF, _WITH_PTX = "sm_89", "CMAKE_ARGS='-DPYKERNELS_CUDA_ARCHITECTURES=89-virtual;90a-real'"
"""The architecture whose PTX a build can carry, and how one for Hopper comes to carry it."""

_JIT_SECONDS = 540
"""For the driver to compile every kernel that a validation calls, and to run it."""


def run(settings: Settings, keep: Callable[[Document], None] = lambda document: None) -> Document:
    """Measure. Ctrl-C ends it early: the document says so and keeps the groups that were finished. `keep` is given that
    document after every group, for an end that nobody can catch."""
    machine = Machine(settings.target)
    nulls = controls.null_op(settings.steps, settings.target)
    null_us = {row["mode"]: row["us"]["p50"] for row in nulls}
    ceiling = Ceiling(settings.target)
    makers: list[Callable[[], groups.Group]] = []
    if "shapes" in settings.parts:
        makers += [partial(groups.shape_group, shape, settings) for shape in groups.own_shapes(settings)]
    if "layer" in settings.parts:
        makers += [partial(groups.layer_group, spec, settings) for spec in groups.own_layers(settings)]
    measured: list[tuple[Callable[[], groups.Group], list[Document]]] = []
    interrupted = False

    def document(interrupted: bool) -> Document:
        ops = [entry for _, entries in measured for entry in (*entries, *plugged.entries(settings.plugged, entries[0]))]
        predictions = []
        for model in settings.specs if settings.gpu else ():
            if entry := predict.best_layer(ops, model.name):
                found = predict.predict(
                    settings.gpu, model, entry, settings.batch, settings.torch_dtype, settings.target.type
                )
                predictions.append(found)
        return {
            **cli.head(
                _PROGRAM, "int4", title=f"4-bit weights of {', '.join(spec.name for spec in settings.specs)}",
                interrupted=interrupted, environment=machine.document(),
            ),
            "device": settings.target.type,
            "group_size": settings.group_size, "symmetric": not settings.asymmetric, "ctx": settings.ctx,
            "batch": settings.batch, "dtype": settings.dtype_name, "l2": settings.l2,
            "l2_words": f"{settings.l2} weights", "warmup": settings.warmup, "steps": settings.steps,
            "ceiling": ceiling.document(*settings.spec_bandwidth), "null": nulls,
            "plugins": [found.describe(settings.plugin_timeout_s) for found in settings.plugged],
            "ops": ops, "arms": [], "ladder": {}, "ladder_notes": {}, "predictions": predictions,
            "published": {name: vars(show.paper.figures()[name]) for name in show.PUBLISHED},
        }  # fmt: skip

    with progress("measuring int4", len(makers)) as advance:
        try:
            for make in makers:
                measured.append((make, measure.measure_group(make(), settings, ceiling, machine.monitor, null_us)))
                keep(document(interrupted=True))
                advance()
            for make, entries in measured if machine.monitor else ():
                measure.trace_group(make(), entries, settings)
        except KeyboardInterrupt:
            interrupted = True
    if not measured:
        raise KeyboardInterrupt
    return document(interrupted)


def run_validation(
    attempts: Sequence[Callable[[], validate.Tried]], device: torch.device, seed: int, outputs: Outputs
) -> int:
    """--validate: what each attempt finds of a kernel, and the exit status."""
    console, every, interrupted = Console(), [], False
    for attempt in attempts:
        every.append(tried := attempt())
        if interrupted := tried.interrupted:
            if tried.found:
                show.print_validation(tried, console)
            console.print(
                Text(f"interrupted in {tried.kernel}, after {len(tried.found)} trials: the rest was not tried")
            )
            break
        show.print_validation(tried, console)
    found = [one for tried in every for one in tried.found]
    if interrupted and not found:
        raise KeyboardInterrupt
    outputs.write({
        **cli.head(_PROGRAM, "int4-validation", interrupted=interrupted, environment=environment.collect(device)),
        "device": device.type, "seed": seed, "kernels": [tried.document() for tried in every],
    })  # fmt: skip
    if interrupted:
        return cli.INTERRUPTED
    # Where kernels were offered trials, one of them must have taken one.
    offered = any(tried.reason is None for tried in every)
    ended = any(tried.ended for tried in every)
    return 0 if (validate.right(found) or not offered) and not ended else 1


def run_jit(device: torch.device) -> tuple[bool, str]:
    """Run the PTX for sm_89 on the GPU that is here, in a process whose driver must compile it. Is it right, and one
    line about it."""
    command = [sys.executable, "-m", _PROGRAM, "--validate", "--kernel=native", f"--device={device}"]
    # torch's own kernels have no PTX for most GPUs and cannot run so: a validation runs none of them.
    name = torch.cuda.get_device_name(device)
    try:
        done = subprocess.run(
            command, env=os.environ | {"CUDA_FORCE_PTX_JIT": "1"}, capture_output=True, text=True, timeout=_JIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return False, f"the PTX for sm_89, compiled by the driver for {name}: no end after {_JIT_SECONDS} s"
    lines = (done.stdout + done.stderr).strip().splitlines()
    # The verdict, which comes last: the title of the table begins with the kernel's name too.
    words = next((line for line in reversed(lines) if line.startswith("native:")), lines[-1] if lines else "no output")
    return done.returncode == 0, f"the PTX for sm_89, compiled by the driver for {name}: {words}"


def run_arch(architecture: str) -> int:
    """--arch: the SASS for that GPU and, for sm_89 where a newer GPU is there, its PTX run on that."""
    console = Console()
    name = f"sm_{architecture.removeprefix('sm')}"
    good, reason = True, sass.reason()
    ptx = sass.built_with_ptx(name)
    if reason is None:
        try:
            kernels, ptx = sass.inspect(name), sass.has_ptx(name)
            good = show.print_sass(name, kernels, console)
        except RuntimeError as error:
            reason = str(error)
    if reason:
        console.print(Text(f"--arch={architecture}: unsupported: {reason}"))
    if name != _PTX_OF:
        return 0 if good and not reason else 1  # nothing was checked where there is a reason
    if not reason or ptx:
        console.print(Text(f"PTX for {name}: {'there, so that a newer GPU can run it' if ptx else 'MISSING'}"))
    device = cli.device("auto")
    if device.type != "cuda" or torch.cuda.get_device_capability(device) <= (8, 9) or not ptx:
        needs = "a GPU newer than compute capability 8.9" if ptx else f"a build that has it: {_WITH_PTX}"
        console.print(Text(f"the PTX was not run: that needs {needs}"))
        return 0 if good and ptx and not reason else 1
    jit_right, words = run_jit(device)
    console.print(Text(words))
    return 0 if good and jit_right else 1


def print_list(device: torch.device) -> None:
    """What --list prints: every kernel, and why it does not run here."""
    with only_found():
        for name, kernel in kernels4.registry().items():
            reason = kernel.availability(device)
            print(item(name, kernel.description, 11))
            print(item("", f"unsupported: {reason}" if reason else "runs here", 11))
    print(NOT_LOADED)
    print(f"plug-ins: {KINDS} (docs/int4.md, docs/plugins.md)")


def _validate(settings: Settings, outputs: Outputs) -> int:
    dtypes = [cli.DTYPES[settings.dtype]] if settings.dtype else list(cli.DTYPES.values())
    sizes = [settings.group] if settings.group else list(GROUP_SIZES)
    trials = (settings.target, dtypes, sizes, [True, False][settings.asymmetric :], settings.seed, settings.journal)
    apart = [
        partial(plugged.validate, _PROGRAM, plugin, settings.validation_flags, settings.plugin_timeout_s)
        for plugin in settings.apart
    ]
    here = [
        partial(validate.tried, name, kernel, settings.target, validate.validate(kernel, *trials))
        for name, kernel in settings.kernels.items()
    ]
    return run_validation([*apart, *here], settings.target, settings.seed, outputs)


def main(settings: Settings) -> int:
    """4-bit kernels: their time, what binds them, and whether they are right."""
    if settings.list_:
        print_list(settings.target)
        return 0
    outputs = Outputs(settings.json, settings.csv, settings.md, settings.plot)
    settings.check()
    if settings.arch:
        return run_arch(settings.arch)
    cli.set_threads(settings.threads)
    if settings.validate:
        return _validate(settings, outputs)
    settings.share.check(len(groups.shapes(settings.specs) if "shapes" in settings.parts else settings.specs))
    settings.plugged = plugins.measure_all(settings.plugin_plan)
    writers = {"--md": show.write_markdown, "--plot": _bars}
    return close(run(settings, outputs.keep), outputs, show.print_document, writers=writers)


command = make_command(main, Settings, takes("int4"))


def _bars(path: Path, document: Document) -> None:
    from bench.int4 import plots  # matplotlib takes a second: only where a picture is written

    plots.write_bars(path, document)


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
