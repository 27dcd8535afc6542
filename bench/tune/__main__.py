"""Which launch plan of an op is the fastest here, for every shape: measured, and written to a file that the ops read.

python -m bench.tune --plans=plans.json --json=tune.json              # the dense ops of the study's models
python -m bench.tune --ops=gqa_decode --model=qwen2.5-7b --batch=1,4 --ctx=2048,16384 --plans=plans.json
PYKERNELS_PLANS=plans.json python -m bench.step --model=qwen2.5-7b    # what takes it
"""

import itertools
import json
import shlex
import sys

import msgspec

import pykernels as pk
from bench.backends.op_cases import Case, cases
from bench.core import cli
from bench.core.document import Document, write_atomically
from bench.core.files import write_all
from bench.core.flags import make_command
from bench.core.listing import item
from bench.core.outputs import Outputs
from bench.core.progress import progress
from bench.core.run import Machine, close
from bench.drivers import takes
from bench.tune import tables
from bench.tune.measure import Tuning
from bench.tune.settings import OPS, Settings
from pykernels.plans import SCHEMA, Plan, PlanFile

_PROGRAM = "bench.tune"


def _cases(settings: Settings) -> list[Case]:
    """What is tuned. Models with the same shape share a case, which names them all; of labels with one shape, such as
    the query and the output projection, the first stands for both."""
    found: dict[tuple[str, str, int], Case] = {}
    for op, spec, batch in itertools.product(settings.wanted, settings.specs, settings.batches):
        dtype = cli.DTYPES[settings.dtype]
        contexts = settings.contexts_of(spec)
        if op == "gqa_decode" and not contexts:
            continue
        for case in cases(op, spec, contexts or [1], batch, dtype, settings.seed, settings.target):
            known = found.setdefault((op, case.shape, case.batch), case)
            known.models = tuple(dict.fromkeys((*known.models, spec.name)))
    return list(found.values())


def make_file(settings: Settings, plans: list[Plan], document: Document) -> PlanFile:
    """The file that PYKERNELS_PLANS takes."""
    info = pk.runtime.build_info()
    return PlanFile(
        schema=SCHEMA, device="cuda" if settings.on_cuda else "cpu", card=settings.card,
        threads=None if settings.on_cuda else pk.runtime.num_threads(),
        isa=None if settings.on_cuda else pk.runtime.isa(), build=pk.plans.build_hash(), commit=info.get("commit"),
        created=document["created"], command=document["command"], margin=settings.least_gain, plans=plans,
    )  # fmt: skip


def file_bytes(file: PlanFile) -> bytes:
    """As JSON, a line a plan."""
    head = msgspec.to_builtins(file)
    plans = head.pop("plans")
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
    rows = ",\n".join(f"  {json.dumps(plan)}" for plan in plans)
    return ("{\n" + "\n".join(lines) + '\n "plans": [' + (f"\n{rows}\n ]" if rows else "]") + "\n}\n").encode()


def print_list(settings: Settings) -> None:
    """What --list prints: ops, models, modes, and what a plan of each op chooses."""
    for head, words in (
        ("ops:", ", ".join(OPS)), ("models:", cli.MODEL_WORDS + " (or --config=PATH)"), ("mode:", settings.driven),
        ("cuda:", "gemv, swiglu_gemv, qkv_gemv: CUDA or tensor cores, blocks, vectors, warps, row tiles; int4: the "
                  "fast or the general path, warps; gqa_decode: registers, bulk copies or any head_dim, splits or "
                  "cluster"),
        ("cpu:", "rows of a chunk; gqa_decode: splits"),
    ):  # fmt: skip
        print(item(head, words, 10))


def main(settings: Settings) -> int:
    """The fastest launch plan of every op and shape, measured; the built-in one stays where none is clearly faster."""
    if settings.list_:
        print_list(settings)
        return 0
    outputs = Outputs(settings.json, md=settings.md)
    cli.set_threads(settings.threads)
    settings.check()
    path = settings.plans_path
    machine = Machine(settings.target)
    entries: list[Document] = []
    plans: list[Plan] = []

    def document(interrupted: bool) -> Document:
        return {
            **cli.head(
                _PROGRAM, "tune", title=f"launch plans of {', '.join(settings.wanted)}", interrupted=interrupted,
                environment=machine.document(),
            ),
            "device": settings.target.type, "l2": settings.l2, "l2_words": f"{settings.l2} weights",
            "dtype": settings.dtype, "ctx": settings.contexts, "batch": settings.batches, "steps": settings.steps,
            "warmup": settings.warmup, "mode": settings.driven, "margin": settings.least_gain, "tuned": entries,
        }  # fmt: skip

    interrupted = False
    swept = _cases(settings)
    with progress("measuring plans", len(swept)) as advance:
        try:
            for case in swept:
                tuning = Tuning(case, settings, machine.monitor)
                tuning.run()
                entries.append(tuning.entry())
                plans += [plan] if (plan := tuning.plan()) else []
                outputs.keep(document(True))
                del tuning  # its copies, before the next case's are made
                advance()
        except KeyboardInterrupt:
            if not entries:
                raise
            interrupted = True
    result = document(interrupted)
    try:
        status = close(result, outputs, tables.print_document, writers={"--md": tables.write_markdown})
    finally:  # whoever reads the tables may have gone away
        if path:
            content = file_bytes(make_file(settings, plans, result))
            write_all([(path, lambda: write_atomically(path, content))])
    if path:
        print(f"{path}: {pk.plans.VARIABLE}={shlex.quote(str(path))} takes its {len(plans)} plans")
    return status


command = make_command(main, Settings, takes("tune"))


if __name__ == "__main__":
    sys.exit(cli.run(_PROGRAM, command))
