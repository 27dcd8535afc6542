"""The A/A control of bench.attention: one backend under two names must differ by less than its interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy

from bench.attention.arms import SECOND
from bench.attention.results import Entry, key
from bench.core import statistics


def second(name: str) -> str:
    """The other name of a backend."""
    return name + SECOND


def compare(sessions: Sequence[Sequence[Entry]]) -> list[dict[str, Any]]:
    """One entry a cell and mode of every backend that was registered twice, by the samples of the wall clock.

    `sessions` in it: of each the difference of the medians (second less first), its share of the first, and the 95%
    interval over the rounds, which both were measured in alternately. `mean_us` of the sessions' differences, with
    Student's 95% interval where there are two or more. `held`: zero lies in the interval, of each.
    """
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for number, entries in enumerate(sessions):
        by_key = {key(entry): entry for entry in entries}
        for (shape, backend, mode), entry in by_key.items():
            twin = by_key.get((shape, second(backend), mode))
            if twin is None or not entry["rounds_us"] or not twin["rounds_us"]:
                continue
            first_us, second_us = np.array(entry["rounds_us"]), np.array(twin["rounds_us"])
            low, high = statistics.difference_interval(second_us, first_us)
            difference = float(np.median(second_us) - np.median(first_us))
            of_cell = found.setdefault(
                (shape, backend, mode), {"shape": shape, "backend": backend, "mode": mode, "sessions": []}
            )
            of_cell["sessions"].append({
                "session": number, "difference_us": difference, "relative": difference / float(np.median(first_us)),
                "low_us": low, "high_us": high, "held": low <= 0 <= high,
            })  # fmt: skip
    for of_cell in found.values():
        values = [session["difference_us"] for session in of_cell["sessions"]]
        of_cell |= {"mean_us": float(np.mean(values)), "low_us": None, "high_us": None, "held": None}
        if len(values) > 1:
            half = float(scipy.stats.t.ppf((1 + statistics.CONFIDENCE) / 2, len(values) - 1) * scipy.stats.sem(values))
            low, high = of_cell["mean_us"] - half, of_cell["mean_us"] + half
            of_cell |= {"low_us": low, "high_us": high, "held": low <= 0 <= high}
    return list(found.values())


def lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """In words: of every backend and mode how often the intervals held zero, and the cells where the sessions' did
    not."""
    said = []
    for backend, mode in dict.fromkeys((one["backend"], one["mode"]) for one in found):
        own = [one for one in found if (one["backend"], one["mode"]) == (backend, mode)]
        rounds = [session for one in own for session in one["sessions"]]
        relative = [session["relative"] for session in rounds]
        words = (
            f"A/A, {backend} and {second(backend)}, {mode}: the 95% interval over rounds held zero in "
            f"{sum(session['held'] for session in rounds)} of {len(rounds)} (cells x sessions)"
        )
        if any(one["held"] is not None for one in own):
            words += f", that over sessions in {sum(one['held'] is True for one in own)} of {len(own)} cells"
        said.append(f"{words}; differences {100 * min(relative):+.2f}% to {100 * max(relative):+.2f}%")
        said += [
            f"  {one['shape']}: {one['mean_us']:+.3f} us [{one['low_us']:.3f}, {one['high_us']:.3f}]"
            for one in own
            if one["held"] is False
        ]
    return said
