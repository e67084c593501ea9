"""List the tests that `make test` leaves out because they take long, from the log of a whole run.

    .venv/bin/python -m pytest -n auto --dist loadfile --durations=0 --durations-min=0.3 | tee log
    python benchmarks/list_long_tests.py log > tests/long_tests.txt

A test counts with all its parameters. A file is listed whole if its fixtures take longer than what is not listed.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

LONG_SECONDS = 2.5
_LINE = re.compile(r"^([\d.]+)s (call|setup|teardown) +(tests/\S+\.py)::([^\[\s]+)", re.MULTILINE)


def main() -> None:
    """Print the list."""
    times, fixtures = Counter[tuple[str, str]](), Counter[str]()
    for seconds, stage, file, test in _LINE.findall(Path(sys.argv[1]).read_text(errors="replace")):
        times[file, test] += float(seconds) if stage == "call" else 0.0
        fixtures[file] += float(seconds) if stage != "call" else 0.0
    long = {key for key, seconds in times.items() if seconds >= LONG_SECONDS}
    for file in sorted({file for file, _ in times}):
        here = {test: seconds for (one, test), seconds in times.items() if one == file}
        listed = sorted(test for test in here if (file, test) in long)
        rest = sum(here[test] for test in here if test not in listed)
        if fixtures[file] > max(8.0, rest):
            print(file)
        else:
            print(*(f"{file}::{test}" for test in listed), sep="\n", end="\n" if listed else "")


if __name__ == "__main__":
    main()
