"""The console blocks of README and docs: which commands stand there, and which of them any machine can run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

# In the text, before a block that is only held against the command line: <!-- needs a GPU -->
_BLOCK = re.compile(r"^(?:<!-- needs (?P<need>[^>]+) -->\n)?```console\n(?P<lines>.*?)^```", re.DOTALL | re.MULTILINE)
_SOME_OF = {"--models": "models", "--model": "models", "--keep": "models", "--compare": "models"}
_SOME_OF |= {"--datasets": "datasets", "--dataset": "datasets", "--fit": "datasets"}
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


def names_that_are_not_there(words: list[str]) -> list[str]:
    """Models and datasets that a command names and its shipped manifest has not; none for a manifest of one's own."""
    manifest = next((words[i + 1] for i, word in enumerate(words) if word in ("--manifest", "-m")), "bravo.yaml")
    shipped = ROOT / "manifests" / f"{manifest.removesuffix('.yaml')}.yaml"
    if not shipped.exists() or words[0] == "train":
        return []
    known = {
        kind: {one["name"] for one in yaml.safe_load(shipped.read_text())[kind]} for kind in ("models", "datasets")
    }
    missing = []
    for position, word in enumerate(words):
        if word in _SOME_OF and not (word == "--keep" and words[0] == "autolabel"):
            named = words[position + 1 : position + (3 if word == "--compare" else 2)]
            names = {name for text in named for name in text.split(",")} - {"ensemble"}
            missing += sorted(names - known[_SOME_OF[word]])
    return missing
