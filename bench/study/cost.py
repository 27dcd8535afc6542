"""What a million tokens cost: prices with their dates, for measured and for published steps."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from bench.core.errors import flag_error
from bench.core.toml_file import read_toml
from bench.study import paper
from bench.study.accounting import usd_per_million_tokens

_FILE = Path(__file__).parent / "prices.toml"


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one GPU for an hour. `date` is when it was valid, `source` where it stands."""

    gpu: str
    usd_per_hour: Annotated[float, msgspec.Meta(gt=0, le=1e9)]
    date: str
    source: str


class _Prices(msgspec.Struct, forbid_unknown_fields=True):
    price: list[Price]


@dataclass(frozen=True)
class Cost:
    """One row: whose step it is, what it takes, what a million tokens of it cost."""

    origin: str
    gpu: str
    model: str
    ctx: int
    batch: int
    arm: str
    step_ms: float
    price: Price
    usd_per_million_tokens: float


def prices(flags: Sequence[str] = ()) -> list[Price]:
    """The flags' prices (GPU=USD_per_hour), then the file's. Raises UsageError where a flag is none."""
    given = []
    for text in flags:
        gpu, _, amount = text.partition("=")
        try:
            usd = float(amount)
        except ValueError:
            usd = -1.0
        if not gpu or not 0 < usd < float("inf"):
            raise flag_error("--price", text, "GPU=USD_per_hour, such as L4=0.30")
        given.append(Price(gpu, usd, "as given", "--price"))
    return [*given, *read_toml(_FILE, _Prices, "a file of prices")[0].price]


def price_of(device: str, known: Iterable[Price]) -> Price | None:
    """The first price whose gpu is a whole word of the device's name."""
    return next((p for p in known if re.search(rf"\b{re.escape(p.gpu)}\b", device)), None)


KWH = "kWh"
"""The name of electricity's price: --price=kWh=0.30, USD."""
_JOULES_A_KWH = 3.6e6


def kwh_price(known: Iterable[Price]) -> Price | None:
    """What a kilowatt-hour costs, where somebody said."""
    return next((price for price in known if price.gpu == KWH), None)


def energy_of_tokens(joules_per_token: float, price: Price | None) -> tuple[float, float | None]:
    """Kilowatt-hours of a million tokens, and USD for them; no cooling and no host."""
    kwh = joules_per_token * 1e6 / _JOULES_A_KWH
    return kwh, kwh * price.usd_per_hour if price else None


def published(known: Sequence[Price]) -> list[Cost]:
    """The paper's steps on GPUs that have a price."""
    rows = []
    for figure in paper.published("step_ms"):
        if figure.gpu is None or figure.model is None or figure.ctx is None or figure.arm is None:
            continue  # a figure of no step in particular
        batch = figure.batch or 1
        if price := price_of(figure.gpu, known):
            usd = usd_per_million_tokens(price.usd_per_hour, figure.value, batch)
            rows.append(Cost(
                "published", figure.gpu, figure.model, figure.ctx, batch, figure.arm, figure.value, price, usd
            ))  # fmt: skip
    return rows


def measured(steps: Iterable[dict], known: Sequence[Price]) -> list[Cost]:
    """Rows of `bench.report.collect.step_rows` on devices that have a price."""
    rows = []
    for step in steps:
        if price := price_of(step["device_name"], known):
            usd = usd_per_million_tokens(price.usd_per_hour, step["p50_ms"], step["batch"])
            rows.append(Cost(
                "measured", step["device"], step["model"], step["ctx"], step["batch"], step["arm"],
                step["p50_ms"], price, usd,
            ))  # fmt: skip
    return rows
