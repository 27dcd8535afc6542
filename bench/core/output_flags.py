"""What a run writes: the flags that drivers share, each in the class of those that have it."""

from dataclasses import dataclass

from bench.core import cli
from bench.core.flags import Flags


@dataclass(kw_only=True)
class DocumentFlags(Flags):
    """--json, and --list, which writes nothing and runs nothing."""

    json: cli.JsonFlag = ""
    list_: cli.ListFlag = False


@dataclass(kw_only=True)
class TableFlags(DocumentFlags):
    """--md too."""

    md: cli.MdFlag = ""


@dataclass(kw_only=True)
class RowFlags(TableFlags):
    """--csv too."""

    csv: cli.CsvFlag = ""


@dataclass(kw_only=True)
class OutputFlags(RowFlags):
    """--plot too."""

    plot: cli.PlotFlag = ""
