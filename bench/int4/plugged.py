"""Plug-ins in bench.int4: each is validated and measured in a process of its own, and joins the others' tables."""

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bench.core.document import Document
from bench.core.errors import UsageError
from bench.core.measure import Arm
from bench.core.processes import Outcome, run_module
from bench.int4.validate import Found, Tried
from bench.plugins import plan as plugins
from bench.plugins.loading import Journal, Plugin


def validate(driver: str, plugin: Plugin, flags: Sequence[str], limit_s: float) -> Tried:
    """Its trials in a process of its own. Where that ends early, the trial that it was at is an error, and those before
    are kept. Raises UsageError where the plug-in turns out to be none."""
    tried = Tried(plugin.label)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        journal, output = Journal(Path(folder)), Path(folder, "result.json")
        arguments = [f"{plugin.flag}={plugin.text}", *flags, f"--plugin-journal={folder}", f"--json={output}"]
        try:
            outcome = run_module(driver, arguments, limit_s)
        except KeyboardInterrupt:
            tried.interrupted = True
        tried.found = _trials(journal.lines("trials"))
        if tried.interrupted:
            return tried
        if refused := journal.read("refused"):
            raise UsageError(refused)
        try:
            result = plugins.result_of(output)
            if result and not result["interrupted"]:
                tried.reason = result["kernels"][0]["reason"]
                return tried
        except UsageError as error:
            outcome = Outcome("error", str(error), outcome.returncode)
        tried.ended = plugins.how_it_ended(journal, outcome)
        begun = [one for one in journal.lines("begun")[len(tried.found) :] if isinstance(one, dict)]
        tried.found += _trials([one | {"status": "error", "reason": tried.ended} for one in begun])
    return tried


def _trials(lines: Sequence[object]) -> list[Found]:
    """Those lines of a journal that are trials: a plug-in can write there, too."""
    found = []
    for line in lines:
        with suppress(TypeError):  # no keys, or others
            one = Found(**line)  # type: ignore[arg-type]
            errors = (one.max_rel_error, one.layout_error, one.format_error)
            if all(isinstance(words, str) for words in (one.case, one.dtype, one.words, one.status)) and all(
                error is None or isinstance(error, float) for error in errors
            ):
                found.append(one)
    return found


def entries(measured: Sequence[plugins.Found], what: Document) -> list[Document]:
    """The plug-ins' entries of a shape. what: its keys `label` and `shape`."""
    return [entry for found in measured for entry in found.of_shape(what).values()]


def failed(measured: Sequence[plugins.Found], what: Document) -> list[Arm]:
    """The arms that ended their process before that shape was measured."""
    return [arm for found in measured for arm in found.failed_of(what)]
