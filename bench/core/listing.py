"""Lists of words for a terminal: no line is longer than 100 characters or the terminal, and no word is cut."""

import shutil
import textwrap

_WIDTH = 100


def item(head: str, words: str, indent: int) -> str:
    """`head`, and the words behind it from column `indent` on, in as many lines as they take."""
    width = min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
    return textwrap.fill(
        words, max(width, indent + 20), initial_indent=head.ljust(indent) if len(head) < indent else f"{head} ",
        subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
