"""The flags of native's softmax: online, or with a unified maximum."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import typer

from bench.core import cli
from bench.core.errors import flag_error
from bench.core.flags import Flags
from bench.core.unified import UNIFIED
from pykernels.workspaces import SOFTMAX


@dataclass(kw_only=True)
class SoftmaxFlags(Flags):
    """--softmax and what goes with it."""

    softmax: Annotated[
        str,
        typer.Option(
            "--softmax",
            help=f"comma-separated, or all: how native's attention keeps exponentials in range. online; unified: less "
            f"one phi for all, which is the backend {UNIFIED} (docs/flashdecoding++.md)",
        ),
    ] = "online"
    phi: Annotated[
        str, typer.Option("--phi", help=f"of {UNIFIED}: a number; auto: calibrated from the scores of the inputs")
    ] = "auto"

    @cached_property
    def given_phi(self) -> float | None:
        """--phi; None where it is to be calibrated."""
        return None if self.phi == "auto" else cli.numbers("--phi", self.phi, -1e6, 1e6, float)[0]

    def with_softmax(self, names: Sequence[str]) -> list[str]:
        """The backends of that flag with `native` as --softmax has it. Raises UsageError where these flags fit no
        backend."""
        kinds = cli.choices("--softmax", self.softmax, SOFTMAX)
        if "," in self.phi:
            raise flag_error("--phi", self.phi, "auto, or one number")
        own = [{"online": "native", "unified": UNIFIED}[kind] for kind in kinds]
        if kinds != ["online"] and "native" not in names:
            raise flag_error("--softmax", self.softmax, "online where native is not among the backends")
        found = [after for name in names for after in (own if name == "native" else [name])]
        if self.given_phi is not None and UNIFIED not in found:
            raise flag_error("--phi", self.phi, "auto where no backend has a unified maximum (--softmax=unified)")
        return list(dict.fromkeys(found))
