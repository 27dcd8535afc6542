"""Removes each wait, barrier and fence of the CUDA kernels in turn, and runs the executor's tests: each must fail.

    make mutations                            every mutation, hours; 1 where a test passes that should not
    make mutations ARGS=--list                what there is
    make mutations ARGS=--only=rmsnorm        of those whose name matches a regular expression
    make mutations ARGS=--results=FILE        JSON lines; what is in it already is not run again

docs/simt.md has the result.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

from mutations.mutate import NOT_FOUND, attempts, mutations, run_tests, what_found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="make mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the mutations")
    parser.add_argument("--only", default="", help="a regular expression")
    parser.add_argument("--results", type=Path, help="JSON lines")
    given = parser.parse_args()
    chosen = [one for one in mutations() if re.search(given.only, one.name)]
    if given.list:
        print("\n".join(f"{one.name} (line {one.line})" for one in chosen))
        return 0
    done = {}
    if given.results and given.results.exists():
        done = {entry["name"]: entry for entry in map(json.loads, given.results.read_text().splitlines())}
    missed = 0
    for one in chosen:
        if one.name not in done:
            begin = time.monotonic()
            found = next(filter(None, (what_found(one, ops) for ops in attempts(one.file))), "")
            done[one.name] = {"name": one.name, "found": found, "seconds": round(time.monotonic() - begin)}
            if given.results:
                with given.results.open("a") as file:
                    file.write(json.dumps(done[one.name]) + "\n")
        found, reason = done[one.name]["found"], NOT_FOUND.get(one.name)
        missed += not found and reason is None
        print(f"{one.name}: {found or f'NOT FOUND: {reason}' if reason else found or 'NOT FOUND'}", flush=True)
    print(f"{len(chosen)} mutations, {missed} not found")
    return int(missed > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run-tests"]:
        sys.exit(run_tests(*sys.argv[2:]))
    sys.exit(main())
