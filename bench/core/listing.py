"""Lists of words for a terminal: no line is longer than 100 characters or the terminal, and no word is cut."""

import shutil
import textwrap
from collections.abc import Iterable, Sequence

from bench.core.cli import FUSIONS, MODEL_WORDS
from bench.core.library import only_found

_WIDTH = 100

NOT_LOADED = "libraries that are installed were not loaded: python -m bench.doctor says whether they can be"
"""What a list made inside only_found() ends with."""


def item(head: str, words: str, indent: int) -> str:
    """`head`, and the words behind it from column `indent` on, in as many lines as they take."""
    width = min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
    return textwrap.fill(
        words, max(width, indent + 20), initial_indent=head.ljust(indent) if len(head) < indent else f"{head} ",
        subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def print_backends(backends: Iterable[tuple[str, str, str | None, Sequence[str]]]) -> None:
    """What --list prints: models, fusions, and of every backend its name, its description, and why it does not run here
    or its modes. Libraries are looked for, not loaded."""
    print(item("models:", f"{MODEL_WORDS} (or --config=PATH)", 10))
    print(item("fusions:", ", ".join(FUSIONS), 10))
    print("backends:")
    with only_found():
        for name, description, reason, modes in backends:
            print(item(f"  {name}", description, 18))
            print(item("", f"unsupported: {reason}" if reason else f"modes {', '.join(modes)}", 18))
    print(NOT_LOADED)
