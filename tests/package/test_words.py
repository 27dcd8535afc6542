"""The field's words: what the code, its comments, the docs and the help texts do not say, and what they say instead.

Readers know CUDA's programming guide, CUTLASS and PyTorch. A word of our own stops them; one of theirs with another
meaning misleads them.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

# Folders and files that are held to the words below.
CLEAN = [
    "csrc", "pykernels", "bench", "tests", "examples", "docs", "cmake", "README.md", "CMakeLists.txt", "Makefile",
    "setup.py", "pyproject.toml",
]  # fmt: skip

SUFFIXES = {".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".md", ".py", ".pyi", ".sh", ".txt", ".cmake", ".toml", ""}
# Made by commands from results, and the list itself.
SKIPPED = ["tests/package/test_words.py", "docs/report/", "bench/results/"]

# What is not said (a regular expression), what is said instead, and an example of the first.
EVERYWHERE = [
    (r"mat[-_ ]vec|\bMatVec|matvec", "GEMV", "the mat-vec kernels"),
    (r"matrix units?\b", "tensor core", "the matrix unit"),
    (r"whole numbers?\b", "integers", "in whole numbers"),
    (r"\bdigits of x\b|int4_digits|Int4Digits", "int8 slices", "the digits of x"),
    (r"(first|second)[- ]level cache", "L1, L2", "the first-level cache"),
    (r"one[_-]phase\b|\busual case's\b", "fast path", "int4_one_phase.cuh"),
    (r"transaction barriers?\b|TransactionBarrier", "mbarrier", "a transaction barrier"),
    (r"(lie|meet) in (a|the same|different) banks?\b|meet in banks", "bank conflict", "they lie in different banks"),
    (r"\bprogrammatic launch(es)?\b", "PDL launch", "in a programmatic launch"),
    (r"\bjoiners?\b", "reducing block", "the joiners of a unit"),
    (r"\b(look|ask)(s|ed)? until\b", "spin, poll", "a block that looks until all are there"),
    (r"\b(is|are|be) turned by\b|RoPE turns|turned by RoPE", "rotated", "q and k turned by RoPE"),
    (r"\bclock stamps?\b", "in-kernel timestamps", "clock stamps"),
    (r"\bmachine code\b", "SASS", "the machine code"),
    (r"\b(is|are) no numbers?\b", "NaN", "what is no number"),
    (r"\boracles?\b", "reference", "the oracle"),
    (r"\briddles?\b", "anomaly", "the riddle"),
]
# Words that mean something else in other places: in the kernels they are these.
IN_KERNELS = [
    (r"\bpieces?\b", "K tile", "a piece of 256 columns"),
    (r"\bteams?\b|_team\b|team_", "warp group", "a team of two warps"),
    (r"\bon (their|its) way\b", "in flight", "loads on their way"),
    (r"\basked for\b|\bask(s)? for (its|their|the) ", "issued, prefetched", "x is asked for before them"),
    (r"\bmine\b", "acc, own, ...: what it is", "float mine[2];"),
    (r"\b(int|auto|Place|Row|const) at\b|\bat\.\w", "offset, index, row: what it is", "const Place at(params);"),
    (r"\bint place\b|\bplace\(|Place\b", "slot, offset, index: what it is", "int place = 0;"),
    (r"first_unit|\bteam", "row pair", "gemv_first_unit"),
]
KERNELS = ["csrc/cuda", "csrc/cpu"]


def files(folders: list[str]) -> list[Path]:
    found = []
    for folder in folders:
        path = ROOT / folder
        found += [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    names = {p: str(p.relative_to(ROOT)) for p in found if p.suffix in SUFFIXES and "__pycache__" not in p.parts}
    return [p for p, name in names.items() if not name.startswith(tuple(SKIPPED))]


def violations(words: list[tuple[str, str, str]], folders: list[str]) -> list[str]:
    found = []
    for path in files(folders):
        text = path.read_text()
        for pattern, instead, _ in words:
            for match in re.finditer(pattern, text):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{path.relative_to(ROOT)}:{line}: {match[0]!r}: say {instead}")
    return found


def test_the_words_of_the_field():
    assert not violations(EVERYWHERE, CLEAN)


def test_the_words_of_kernels():
    assert not violations(IN_KERNELS, KERNELS)


@pytest.mark.parametrize(("pattern", "instead", "example"), EVERYWHERE + IN_KERNELS, ids=lambda value: value[:20])
def test_a_word_is_found_and_what_to_say_instead_is_not(pattern, instead, example):
    assert re.search(pattern, example)
    assert not re.search(pattern, instead)


def test_there_are_files_to_look_at():
    assert len(files(CLEAN)) > 100 and len(files(KERNELS)) > 50
