"""The extras of pyproject.toml, `launchtax[int4]` and the others: what each needs, and what of it is not here."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

_NOTES = {
    "flashinfer": "compiles its kernels at first use: needs nvcc",
    "flash-attn": "compiles when installed: needs nvcc, and ninja, packaging, psutil, setuptools and wheel before it",
    "flash-attn-4": "compiles at first use, by nvidia-cutlass-dsl; compute capability 9.0 and 10.x",
    "int4": "exllamav2 compiles at first use: needs nvcc",
    "ray": "for bench.sweep --ray, and reports over nodes",
    "plugins": "for FILE.cu:kernel; beside a torch of CUDA 12: cupy-cuda12x",
}
_OPTIONS = {"flash-attn": "--no-build-isolation "}


@dataclass(frozen=True)
class Extra:
    """One extra. `missing` are those of `needs` that are not installed, or only in a release that will not do;
    `install` is the command that brings them."""

    name: str
    needs: list[str]
    missing: list[str]
    install: str
    note: str | None


def _declared() -> dict[str, list[Requirement]]:
    """The requirements by extra: a checkout's, else those of the installed distribution."""
    path = Path(__file__).parents[2] / "pyproject.toml"
    if path.is_file():
        texts = tomllib.loads(path.read_text())["project"]["optional-dependencies"]
        return {name: [Requirement(text) for text in of] for name, of in texts.items()}
    try:
        requirements = [Requirement(text) for text in metadata.requires("launchtax") or []]
        names = metadata.metadata("launchtax").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return {}
    # A requirement of an extra has a marker that only the extra's name makes true.
    with_marker = [one for one in requirements if one.marker and not one.marker.evaluate({"extra": ""})]
    return {name: [one for one in with_marker if one.marker and one.marker.evaluate({"extra": name})] for name in names}


def _installed() -> bool:
    """Is launchtax a distribution, whose extras pip can install? A build in place is none."""
    try:
        return bool(metadata.version("launchtax"))
    except metadata.PackageNotFoundError:
        return False


def _is_here(requirement: Requirement) -> bool:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return False
    return requirement.specifier.contains(version, prereleases=True)


def extras() -> list[Extra]:
    """Every extra, in the order in which pyproject.toml has them."""
    listed, installed = [], _installed()
    for name, requirements in _declared().items():
        needs = [f"{one.name}{one.specifier}" for one in requirements]
        missing = [f"{one.name}{one.specifier}" for one in requirements if not _is_here(one)]
        wanted = f"'launchtax[{name}]'" if installed else " ".join(f"'{one}'" for one in missing)
        listed.append(Extra(name, needs, missing, f"pip install {_OPTIONS.get(name, '')}{wanted}", _NOTES.get(name)))
    return listed


@cache
def required_by_extras() -> tuple[str, ...]:
    """The distributions that the extras require, each once."""
    return tuple(dict.fromkeys(one.name for requirements in _declared().values() for one in requirements))
