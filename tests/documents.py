"""The console blocks of README and docs: which commands stand there, and which of them any machine can run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

# In the text, before a block that is only held against the command line: <!-- needs a GPU -->
_BLOCK = re.compile(r"^(?:<!-- needs (?P<need>[^>]+) -->\n)?```console\n(?P<lines>.*?)^```", re.DOTALL | re.MULTILINE)
_ELSEWHERE = {
    "aws",
    "bash",
    "cd",
    "dask",
    "git",
    "kubectl",
    "make",
    "pip",
    "sbatch",
    "source",
    "squeue",
    "ssh",
    "tail",
}


class Command(NamedTuple):
    """One command of a page.

    Attributes:
        line: as it stands there, continued lines joined.
        need: what it needs that a test has not, such as a cluster; None if nothing.
    """

    line: str
    need: str | None

    @property
    def words(self) -> list[str]:
        """What our command line is given; nothing where the command is another program's."""
        if self.line.startswith("export "):  # may go on in the next line, within quotes
            return []
        words = shlex.split(self.line.partition(" > ")[0], comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        for position, word in enumerate(words):
            if word == "hmsa-pipeline" or word.endswith("/hmsa-pipeline"):
                return words[position + 1 :]
        assert words[0] in _ELSEWHERE, self.line
        return []


def commands(page: Path) -> list[Command]:
    """Every command of the page's console blocks, in their order."""
    found = []
    for block in _BLOCK.finditer(page.read_text()):
        joined = re.sub(r"\\\n\s*", " ", block["lines"])
        found += [
            Command(line.removeprefix("$ "), block["need"]) for line in joined.splitlines() if line.startswith("$ ")
        ]
    assert len(found) == len(re.findall(r"^\$ ", page.read_text(), re.MULTILINE)), page
    return found
