"""TOML files of a user, read into the class that says what is allowed in them."""

from pathlib import Path
from typing import TypeVar

import msgspec

from bench.core import schema
from bench.core.errors import UsageError
from bench.core.files import read_file

Kind = TypeVar("Kind")


def read_toml(path: Path, kind: type[Kind], words: str) -> tuple[Kind, bytes]:
    """What the file says, and its bytes. Raises UsageError, one line with the file, the field and what is allowed,
    where it is not `words`, such as a thresholds file."""
    try:
        content = read_file(path)
        found = msgspec.toml.decode(content)
        return msgspec.convert(found, kind), content
    except msgspec.ValidationError as error:
        why = schema.words(error, found, kind)
    except UsageError as error:
        why = str(error).removeprefix(f"{path}: ")
    except (ValueError, RecursionError) as error:
        why = str(error)
    raise UsageError(f"{path}: is not {words}: {why}")
