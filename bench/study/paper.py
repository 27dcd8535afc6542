"""The paper's published figures as data (paper.toml), each with its place in the text."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One published number. `quantity` names what it is of; gpu, model, ctx, batch and arm are None where the number
    is of none in particular. `low` and `high` are an interval or a range, as `place` says."""

    id: str
    value: float
    unit: str
    place: str
    quantity: str | None = None
    gpu: str | None = None
    model: str | None = None
    ctx: int | None = None
    batch: int | None = None
    arm: str | None = None
    low: float | None = None
    high: float | None = None


@cache
def _file() -> dict:
    with (Path(__file__).parent / "paper.toml").open("rb") as file:
        return tomllib.load(file)


def source() -> dict[str, str]:
    """Title, address and date of the paper."""
    return _file()["source"]


@cache
def figures() -> dict[str, Figure]:
    """Every figure by its id, in the order of the file."""
    return {name: Figure(name, **fields) for name, fields in _file()["figure"].items()}


def value(name: str) -> float:
    """The number of that id."""
    return figures()[name].value


def published(quantity: str) -> list[Figure]:
    """The figures of one quantity: step_ms, R_floor, R_floor_median, graph_speedup, attention_us, price, ..."""
    return [figure for figure in figures().values() if figure.quantity == quantity]
