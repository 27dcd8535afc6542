"""Bad input for every driver of launchtax: command lines alone, and files that are made for them.

    make fuzz                                   all cases, each in a process of its own
    make fuzz ARGS="--only='^compare' --jobs=2" those whose name matches
    make fuzz ARGS=--list

What is expected of a bad input: exit status 2, one line on stderr, no traceback, nothing new left behind, and all of it
within 20 seconds. A case says so where something else is right: OK (status 0: odd, but allowed), PARTLY (status 1: what
is bad is named and left out) or ENDS (any status that is no crash: 0, 1 or 2); these may measure something, and have
two minutes. Deterministic: no case depends on another one or on a random number. Everything is written below --work.
Exit status: 0 where every case went as expected, 1 otherwise.

Nothing here touches /dev: cases that write to devices use device nodes of their own, made below --work (root only).
"""

import argparse
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz.case import LIMIT_S
from fuzz.cases import MISHANDLED, all_cases, shown
from fuzz.run import run


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="a folder for the cases' files; default: a temporary one")
    parser.add_argument("--only", default="", help="a regular expression for names")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=LIMIT_S)
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    cases = [case for case in all_cases() if re.search(given.only, case.name)]
    if given.list:
        print("\n".join(f"{case.expected:<8} {shown(case)}" for case in cases))
        print(len(cases))
        return 0
    work = given.work or Path(tempfile.mkdtemp(prefix="launchtax-fuzz-"))
    work.mkdir(parents=True, exist_ok=True)
    wrong, unlisted = set(), set()

    def one(case) -> None:
        found, _, _ = run(case, work, given.limit_s)
        if found:
            wrong.add(shown(case))
            if shown(case) not in MISHANDLED:
                unlisted.add(shown(case))
            print(f"{shown(case)[:90]}: {ascii(found)[1:-1]}", flush=True)

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(one, cases))
    mended = sorted(MISHANDLED & {shown(case) for case in cases} - wrong)
    for name in mended:
        print(f"{name}: is right now, and still listed in tests/fuzz/mishandled.txt")
    print(f"{len(cases)} tried, {len(wrong)} mishandled, {len(unlisted)} of them not listed")
    return int(bool(wrong or mended))


if __name__ == "__main__":
    sys.exit(main())
