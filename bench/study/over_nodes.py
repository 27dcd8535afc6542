"""A ratio of two arms over several nodes: each node has its own, and what is said holds for nodes like them.

Two arms are compared within a process, round by round; the nodes are a random effect (statsmodels' MixedLM, REML), so
that thirty rounds on one node do not count as thirty nodes.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class OverNodes:
    """`ratio` of the times of a over b, its 95% interval, the standard deviation between nodes as a share."""

    ratio: float
    low: float
    high: float
    between: float
    nodes: int
    rounds: int


def reason() -> str | None:
    """Why nothing can be said over nodes here; None where it can."""
    try:
        import statsmodels  # noqa: F401
    except ImportError:
        return "needs statsmodels: pip install 'launchtax[ray]'"
    return None


def compare(by_node: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]) -> OverNodes:
    """By node its processes, each the times of a and of b in the same rounds, microseconds: at least two nodes.

    Raises ValueError for fewer.
    """
    if len(by_node) < 2:
        raise ValueError(f"a random effect of nodes needs two of them, got {len(by_node)}")
    from statsmodels.regression.mixed_linear_model import MixedLM

    logs, nodes = [], []
    for node, processes in by_node.items():
        for a, b in processes:
            own = np.log(np.asarray(a, float)) - np.log(np.asarray(b, float))
            logs.append(own)
            nodes += [node] * len(own)
    values = np.concatenate(logs)
    if np.ptp(values) == 0:
        ratio = math.exp(values[0])
        return OverNodes(ratio, ratio, ratio, 0.0, len(by_node), len(values))
    # Centred, scaled, and without derivatives: by gradients a fit may end far from every round, and say that it has
    # converged (measured on two H200: tests/bench/test_fleet_report.py).
    middle, spread = np.median(values), values.std()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nodes that do not differ: a variance on the edge of what it can be
        model = MixedLM((values - middle) / spread, np.ones((len(values), 1)), groups=np.array(nodes))
        fitted = model.fit(reml=True, method="powell")
        low, high = middle + spread * fitted.conf_int(1 - CONFIDENCE)[0]
        between = spread * float(np.sqrt(max(float(np.asarray(fitted.cov_re)[0, 0]), 0.0)))
    ratio = math.exp(middle + spread * fitted.params[0])
    return OverNodes(ratio, math.exp(low), math.exp(high), math.expm1(between), len(by_node), len(values))
