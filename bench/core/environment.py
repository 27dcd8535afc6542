"""What ran where: the machine, the libraries and the state they were in. Every value may be None."""

import hashlib
import os
import platform
import re
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pynvml
import torch

import pykernels as pk
from bench.core.extras import required_by_extras
from bench.core.gpu_state import ask, handle_of, reason_names
from pykernels.source_hash import source_hash

_CPU_FLAGS = ("avx2", "f16c", "avx512f", "avx512_bf16", "amx_bf16", "hypervisor")
_LIBRARIES = ("numpy", "scipy", "nvtx", "typer", "rich", "matplotlib", "safetensors", "transformers", "triton")
_PEERS = ("flash-attn-3", "vllm")  # besides those of the extras

# Peak memory bandwidth by device, GB/s of 10^9 bytes, with where the number comes from. The study's own values
# (its section 3.3) where it has them; otherwise the vendor's datasheet. A name is the end of the driver's. A card
# that is not here has what NVML says of its bus and clock (_nvml_bandwidth). The values were compared with other public
# tables in November 2026; the one behind a value gives the same, or what it says.
GPU_SPECS = {
    "B300": (8000.0, "B300 datasheet (HGX B300)"),  # glennklockwood.com/garden/processors/B300
    # The datasheets say 8 TB/s. The driver has since corrected the bus from 8192 to 7680 bits: github.com/pytorch/ao,
    # pull request 4002.
    "B200": (7672.0, "B200: 7,680 bits at 2 x 3,996 MHz by its driver; the HGX B200 datasheet rounds to 8 TB/s"),
    "GB200": (8000.0, "GB200 NVL72 datasheet, one GPU of it"),  # 576 TB/s for 72: glennklockwood.com, B200 and B300
    "GH200 480GB": (4000.0, "GH200 datasheet, 96 GB of HBM3"),  # 4,096 by github.com/sparse-generative-ai/MoE-CAP
    "H100 80GB HBM3": (3350.0, "H100 SXM5 datasheet, and the study"),  # lzwjava.github.io/nvidia-h200-gpu-specs-en
    "H100 PCIe": (2000.0, "H100 PCIe datasheet"),  # 5,120 bits, 2.0 TB/s: router-switch.com/faq
    "H200": (4800.0, "H200 datasheet"),  # openmetal.io/resources/blog, the H200 for memory-bound workloads
    "A100-SXM4-80GB": (2039.0, "A100-80GB SXM4 datasheet, and the study"),  # 2.0 TB/s: llmbook.apartsin.com, appendix G
    "A100-SXM4-40GB": (1555.0, "A100-40GB datasheet"),  # 5,120 bits at 2.4 Gbps
    "L40S": (864.0, "L40S datasheet, and the study"),  # llmbook.apartsin.com, appendix G
    "L4": (300.0, "L4 datasheet, and the study"),
    "RTX 4090": (1008.0, "RTX 4090 datasheet"),  # sipoch.com, RTX 5090 and 5080 specifications
    "RTX 5090": (1792.0, "RTX 5090 datasheet"),  # the same
    "RTX 5080": (960.0, "RTX 5080 datasheet"),  # 256 bits at 30 Gbps: tweaktown.com/news/102205
    # 14,001 MHz on 512 bits by nvidia-smi: github.com/MarcoPizeta/flash-next-rtxpro6000-bench
    "RTX PRO 6000 Blackwell Workstation Edition": (1792.0, "RTX PRO 6000 Blackwell datasheet"),
    "RTX PRO 6000 Blackwell Max-Q Workstation Edition": (1792.0, "RTX PRO 6000 Blackwell Max-Q datasheet"),
    # Less than the workstation cards: NVIDIA's datasheet of December 2025, page 3
    "RTX PRO 6000 Blackwell Server Edition": (1597.0, "RTX PRO 6000 Blackwell Server Edition datasheet"),
    "RTX 6000 Ada Generation": (960.0, "RTX 6000 Ada datasheet"),
    "A10": (600.0, "A10 datasheet"),
    "GB10": (273.0, "DGX Spark datasheet"),  # huggingface.co/blog/exolabs/the-dgx-spark-handbook
    "Thor": (273.0, "Jetson AGX Thor datasheet"),  # 128 GB of LPDDR5X, 256 bits
}

# (vendor, family, models): channels, MT/s and what they are. A socket's figure: 8 bytes a channel and transfer.
_CPU_SPECS = [
    ("AuthenticAMD", 26, range(0x20), 12, 6000, "EPYC 9005"),
    ("AuthenticAMD", 25, range(0x10, 0x20), 12, 4800, "EPYC 9004"),
    ("AuthenticAMD", 25, range(0xA0, 0xB0), 12, 4800, "EPYC 97x4"),
    ("AuthenticAMD", 25, range(0x10), 8, 3200, "EPYC 7003"),
    ("AuthenticAMD", 23, range(0x31, 0x32), 8, 3200, "EPYC 7002"),
    ("GenuineIntel", 6, range(207, 208), 8, 5600, "5th generation Xeon"),
    ("GenuineIntel", 6, range(143, 144), 8, 4800, "4th generation Xeon"),
    ("GenuineIntel", 6, range(106, 107), 8, 3200, "3rd generation Xeon (Ice Lake)"),
    ("GenuineIntel", 6, range(85, 86), 6, 2933, "1st or 2nd generation Xeon Scalable"),
]


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if not line.strip():
            break
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    return fields


def _bytes(text: str | None) -> int | None:
    match = re.fullmatch(r"(\d+)([KMG]?)", text or "")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else None


@cache
def cache_bytes() -> dict[int, int]:
    """Bytes of each data or unified cache that the first core sees, by level."""
    sizes: dict[int, int] = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if _read(folder / "type") in ("Data", "Unified") and (size := _bytes(_read(folder / "size"))):
            sizes[int(_read(folder / "level") or 0)] = size
    return sizes


def last_level_cache_bytes(device: torch.device) -> int:
    """A GPU's L2, or the CPU's largest cache, in bytes; 32 MB where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    return max(cache_bytes().values(), default=32 << 20)


def _nvml_bandwidth(device: torch.device) -> tuple[float, str] | None:
    """Two transfers a clock on every line of the memory bus, GB/s, and how it was computed; None where NVML does not
    say, as on a Jetson. It is what the vendor's tables give for GDDR and HBM, to a few percent."""
    try:
        handle = handle_of(device)
    except pynvml.NVMLError:
        return None
    bits = ask(pynvml.nvmlDeviceGetMemoryBusWidth, handle)
    mhz = ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_MEM)
    if not bits or not mhz:
        return None
    return 2 * mhz * bits / 8 / 1000, f"computed: {bits} bits at 2 x {mhz} MHz by NVML; not in the table of cards"


def spec_bandwidth(device: torch.device) -> tuple[float | None, str]:
    """Peak memory bandwidth by the specification, GB/s, and where the figure comes from.

    Of a GPU that is not in GPU_SPECS NVML says the memory bus and clock, and the source says so.
    For a CPU it is the whole socket's, at the fastest memory its generation takes. A process that has a part of the
    socket's cores cannot reach it, so that it is no bandwidth to measure against: then it is None, and a remark.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, (gbs, source) in GPU_SPECS.items():
            if re.search(rf"(^|[ -]){re.escape(part)}$", name):
                return gbs, source
        return _nvml_bandwidth(device) or (None, f"unknown for {name}")
    info = _cpuinfo()
    try:
        vendor, family, model = info["vendor_id"], int(info["cpu family"]), int(info["model"])
    except (KeyError, ValueError):
        return None, "unknown for this CPU"
    for row_vendor, row_family, models, channels, rate, words in _CPU_SPECS:
        if vendor == row_vendor and family == row_family and model in models:
            gbs = channels * rate * 8 / 1000
            source = f"{words}, one socket: {channels} channels of DDR at {rate} MT/s"
            if who := part_of_socket(info, min(cpus_usable(), pk.runtime.num_threads())):
                return None, f"{who} a part of {gbs:,.1f} GB/s: {source}"
            return gbs, source
    return None, f"unknown for {info.get('model name', 'this CPU')}"


def cpus_usable() -> float:
    """Those that this process may run on, or what the quota of its cgroup (v2) comes to, where that is less."""
    cpus = float(len(os.sched_getaffinity(0)))
    quota, _, period = (_read("/sys/fs/cgroup/cpu.max") or "").partition(" ")
    return min(cpus, int(quota) / int(period)) if quota.isdigit() and period.isdigit() and int(period) else cpus


def part_of_socket(info: Mapping[str, str], cpus: float) -> str | None:
    """Who has a part of a socket, in words; None where so many CPUs have it all. `info`: a processor's lines of
    /proc/cpuinfo. Those of a virtual machine do not say how many cores the socket has."""
    if "hypervisor" in info.get("flags", "").split():
        return "1 CPU of a virtual machine has" if cpus == 1 else f"{cpus:g} CPUs of a virtual machine have"
    cores = info.get("cpu cores", "")
    if cores.isdigit() and cpus < int(cores):
        return f"{cpus:g} of the socket's {cores} cores {'has' if cpus == 1 else 'have'}"
    return None


def _cpu() -> dict[str, Any]:
    info = _cpuinfo()
    flags = set(info.get("flags", "").split())
    caches = cache_bytes()
    return {
        "model": info.get("model name"),
        "family_model_stepping": "/".join(info.get(key, "?") for key in ("cpu family", "model", "stepping")),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in _CPU_FLAGS if flag in flags],
        "l2_bytes": caches.get(2),
        "l3_bytes": caches.get(3),
        "mhz_now": float(info["cpu MHz"]) if "cpu MHz" in info else None,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average_1min": os.getloadavg()[0],
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "transparent_hugepages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
    }


def _gpu(device: torch.device) -> dict[str, Any] | None:
    """The GPU as NVML sees it, whatever CUDA_VISIBLE_DEVICES makes of its number; of a CPU the machine's first. None
    without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        on_cuda = device.type == "cuda"
        handle = ask(handle_of, device) if on_cuda else ask(pynvml.nvmlDeviceGetHandleByIndex, 0)
        if handle is None:
            return None
        memory = ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
        reasons = ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        ecc = ask(pynvml.nvmlDeviceGetEccMode, handle)
        power_mw = ask(pynvml.nvmlDeviceGetPowerManagementLimit, handle)
        return {
            "name": ask(pynvml.nvmlDeviceGetName, handle),
            "index": device.index if on_cuda else None,
            "uuid": ask(pynvml.nvmlDeviceGetUUID, handle),
            "driver": ask(pynvml.nvmlSystemGetDriverVersion),
            "memory_bytes": memory.total if memory else None,
            "sm_mhz": ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
            "sm_mhz_max": ask(pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM),
            "memory_mhz": ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
            "clock_event_reasons": reason_names(reasons),
            "ecc": bool(ecc[0]) if ecc else None,
            "power_limit_w": power_mw / 1000 if power_mw else None,
            "temperature_c": ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        }
    finally:
        pynvml.nvmlShutdown()


def _stamp() -> dict[str, Any]:
    """The commit of the installed build and whether what runs differs from it, as the build baked them in.

    The Python is not compiled: where it is another than the build saw, as after an edit of a checkout or a `git pull`
    without a build, the commit is dirty all the same. None: the build did not know.
    """
    info = pk.runtime.build_info()
    built = info.get("source_hashes", {})  # none in a build from before they were baked in
    changed = [name for name in ("pykernels", "bench") if built.get(name) != python_hash(name)]
    commit, dirty = info.get("commit"), info.get("dirty")
    if commit and changed:
        dirty = True
    return {"commit": commit, "commit_dirty": dirty, "changed_since_build": changed}


@cache
def python_hash(package: str) -> str:
    """The source_hash() of the package's Python as it is on disk: what the build compared."""
    folder = Path(pk.__file__).parent if package == "pykernels" else Path(__file__).parent.parent
    return source_hash(folder, without=("results",))


def commit_words(environment: Mapping[str, Any]) -> str | None:
    """What a reader of a document has to know of its commit; None where it is known and clean."""
    commit = environment.get("commit")
    if commit is None:
        return "UNKNOWN COMMIT: the build did not know it (docs/install.md); nobody can build this again"
    if environment.get("commit_dirty"):
        changed = environment.get("changed_since_build")
        words = f"{' and '.join(changed)} changed since the build" if changed else "with changes that are in no commit"
        return f"DIRTY: built from commit {commit[:9]}, {words}"
    if environment.get("commit_dirty") is None:
        return f"commit {commit[:9]}, and unknown whether it was changed"
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def peer_versions() -> dict[str, str]:
    """The versions of the peers that are installed, by distribution. A peer whose shared library a variable names
    (PYKERNELS_FA3_LIB, PYKERNELS_VLLM_LIB) has no version to ask for: under the variable is the file's hash."""
    versions = {name: _version(name) for name in (*required_by_extras(), *_PEERS)}
    files = {name: Path(path) for name, path in os.environ.items() if re.fullmatch(r"PYKERNELS_\w+_LIB", name)}
    hashes = {name: _file_hash(path) for name, path in files.items() if path.is_file()}
    return {name: found for name, found in {**versions, **hashes}.items() if found}


@cache
def _file_hash(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return f"sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError:
        return None


def plans_words() -> dict[str, Any]:
    """Who decides the launch plans: the built-in heuristic, or a file of bench.tune's."""
    if (table := pk.runtime.plan_table()) is None:
        return {"by": "built-in"}
    return {"by": "file", "name": table.name, "sha256": table.sha256, "count": len(table.file.plans)}


_CPU_DEVICE = torch.device("cpu")


def collect(device: torch.device = _CPU_DEVICE) -> dict[str, Any]:
    """The key `environment` of a result document, of a run on that device. No user, host name or path is in it."""
    return {
        "cpu": _cpu(),
        "gpu": _gpu(device),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "threads": torch.get_num_threads(),
            "mkldnn": torch.backends.mkldnn.is_available(),
        },
        "pykernels": {
            "version": pk.__version__,
            "threads": pk.runtime.num_threads(),
            "isa": pk.runtime.isa(),
            **pk.runtime.build_info(),
            "plans": plans_words(),
        },
        "libraries": {**{name: _version(name) for name in _LIBRARIES}, **peer_versions()},
        **_stamp(),
    }
