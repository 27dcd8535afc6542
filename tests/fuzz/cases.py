"""All cases by name, and which of them are known to be mishandled."""

import itertools
from pathlib import Path

from fuzz import command_lines, configs, documents, paths, plans, rules_and_plugins, weights
from fuzz.case import Case

MAKERS = (
    command_lines.flags, paths.outputs, documents.compare_cases, documents.report_cases, documents.kept_documents,
    configs.config_cases, weights.weights_cases, plans.plans_cases, rules_and_plugins.thresholds_cases,
    rules_and_plugins.plugin_cases,
)  # fmt: skip
# A name a line, as ascii() writes it: what is wrong there is not mended yet. Whoever mends a case takes its line away.
MISHANDLED = frozenset((Path(__file__).parent / "mishandled.txt").read_text().splitlines())


def all_cases() -> list[Case]:
    """Every case, in a fixed order."""
    return list(itertools.chain.from_iterable(maker() for maker in MAKERS))


def shown(case: Case) -> str:
    """Its name in plain characters."""
    return ascii(case.name)[1:-1]
