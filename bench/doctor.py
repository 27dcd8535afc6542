"""What this machine has, which backends run on it, why the others do not, and what to install.

python -m bench.doctor
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import typer

import pykernels as pk
from bench.backends import int4, registry
from bench.core import cli, device_trace, environment
from bench.core.document import Document
from bench.core.extras import extras
from bench.core.flags import Flags, make_command
from bench.core.listing import item
from bench.core.outputs import Outputs
from bench.drivers import takes


def diagnose() -> Document:
    """The document of kind `doctor`."""
    gpu_reason = cli.no_code_for()
    device = cli.device("cpu" if gpu_reason else "auto")  # auto ends with the reason
    spec_gbs, source = environment.spec_bandwidth(device)
    on_device = {"trace_reason": device_trace.reason()} if device.type == "cuda" else {}
    return {
        **cli.head("bench.doctor", "doctor", environment=environment.collect()),
        "isas": pk.runtime.isas_supported(),
        "spec_gbs": spec_gbs,
        "spec_source": source,
        **({"gpu_reason": gpu_reason} if gpu_reason else {}),
        **on_device,
        "backends": [
            {
                "name": name,
                "description": backend.description,
                "reason": backend.availability(device),
                "modes": backend.modes(device),
                "install_hint": backend.install_hint,
            }
            for name, backend in registry().items()
        ],
        "int4_kernels": [
            {
                "name": name,
                "description": kernel.description,
                "reason": kernel.availability(device),
                "install_hint": kernel.install_hint,
            }
            for name, kernel in int4.registry().items()
        ],
        "extras": [vars(extra) for extra in extras()],
    }


def _print(document: Document) -> None:
    machine, kernels = document["environment"], document["environment"]["pykernels"]
    cpu, gpu, torch = machine["cpu"], machine["gpu"], machine["torch"]
    caches = ", ".join(
        f"{name} {cpu[key] / 2**20:g} MiB" for name, key in (("L2", "l2_bytes"), ("L3", "l3_bytes")) if cpu[key]
    )
    spec = f"{document['spec_gbs']:g} GB/s" if document["spec_gbs"] else "unknown, give --spec-gbs"
    cuda = "with CUDA kernels" if kernels["cuda"] else "CPU only: no CUDA kernels in this build"
    if kernels["timestamps"]:
        cuda += " that carry in-kernel timestamps, for bench.inside, and are slower"
    nvtx = "in C++ and Python" if kernels["nvtx"] else "in Python only: no nvtx3 headers when it was built"
    machine_words = [
        ("cpu", f"{cpu['model']}, {cpu['cpus_usable']} usable, {caches}, {cpu['memory_bytes'] / 2**30:.0f} GiB"),
        ("", f"flags {' '.join(cpu['flags'])}; kernels run {kernels['isa']} of {', '.join(document['isas'])}"),
        ("memory", f"spec {spec} ({document['spec_source']})"),
        ("gpu", gpu["name"] + ", driver " + gpu["driver"] if gpu else "none that NVML sees"),
    ]
    if "gpu_reason" in document:
        machine_words.append(("", f"not used: {document['gpu_reason']}"))
    if "trace_reason" in document:
        traces = document["trace_reason"] or "traces kernels: bench.layer and bench.op have the device clock"
        machine_words.append(("cupti", traces))
    machine_words += [
        ("pykernels", f"{kernels['version']}, {cuda}; {kernels['threads']} threads; {kernels['compiler']}"),
        ("", f"built from {_build(machine)}"),
        ("nvtx", f"ranges {nvtx}"),
        ("torch", f"{torch['version']}, cuda {torch['cuda'] or 'none'}, {torch['threads']} threads"),
    ]
    for head, words in machine_words:
        print(item(head, words, 10))
    print()
    for backend in document["backends"]:
        state = f"no: {backend['reason']}" if backend["reason"] else "yes: modes " + ", ".join(backend["modes"])
        _print_library(backend, state)
    print("\n4-bit kernels of bench.int4")
    for kernel in document["int4_kernels"]:
        _print_library(kernel, "no: " + kernel["reason"] if kernel["reason"] else "yes")
    print("\nextras (docs/install.md)")
    for extra in document["extras"]:
        missing = f"no: {', '.join(extra['missing'])} not installed" if extra["missing"] else "yes"
        print(item(extra["name"], missing, 16))
        if extra["missing"]:
            print(item("", f"install: {extra['install']}" + (f" ({extra['note']})" if extra["note"] else ""), 16))


def _print_library(library: Document, state: str) -> None:
    """A backend or a 4-bit kernel, whether it runs, and how what it lacks is installed."""
    print(item(library["name"], library["description"], 16))
    print(item("", state, 16))
    if library["reason"] and library["install_hint"]:
        print(item("", f"install: {library['install_hint']}", 16))


def _build(machine: Document) -> str:
    """Which commit the kernels are of, in words."""
    return environment.commit_words(machine) or f"commit {machine['commit'][:9]}, clean"


@dataclass(kw_only=True)
class Settings(Flags):
    """The flags of one run."""

    json: cli.JsonFlag = ""
    list_: Annotated[bool, typer.Option("--list", help="the same as without it: doctor does nothing but list")] = False


def main(settings: Settings) -> int:
    """What this machine has, what runs on it, and why the rest does not."""
    outputs = Outputs(settings.json)
    document = diagnose()
    _print(document)
    outputs.write(document)
    return 0


command = make_command(main, Settings, takes("doctor"))


if __name__ == "__main__":
    sys.exit(cli.run("bench.doctor", command))
