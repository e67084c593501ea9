"""`docs/record_terminal.py`: commands as an animated picture of a terminal."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

SCRIPT = Path(__file__).parents[1] / "docs" / "record_terminal.py"


def record(target: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", str(SCRIPT), "--output", str(target), *words], capture_output=True, text=True
    )


def lines_of(svg: str) -> list[str]:
    """The lines of the terminal, from the top, and none of the title."""
    found = [one for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("}text")]
    rows = {one.get("clip-path"): "" for one in found if "line-" in (one.get("clip-path") or "")}
    for one in found:
        if one.get("clip-path") in rows:
            rows[one.get("clip-path")] += (one.text or "").replace("\xa0", " ")
    return [row.rstrip() for row in rows.values()]


def test_commands_become_lines_that_appear_one_after_another(tmp_path: Path) -> None:
    code = (
        "import pathlib, time; print('<a> & b', flush=True); time.sleep(0.3); print(pathlib.Path('made').resolve())"
    )
    result = record(tmp_path / "a.svg", "--columns", "40", f'python -c "{code}"', "python --version")
    assert (result.returncode, result.stderr) == (0, ""), result
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert [line for line in lines_of(svg) if line][1:] == [
        "<a> & b",
        "made",  # without the folder that it ran in
        "$ python --version",
        f"Python {sys.version.split()[0]}",
    ]
    assert lines_of(svg)[0] == f'$ python -c "{code}"'[:39] + "…"
    (frames,) = re.findall(r"@keyframes curtain\{(.*)\}\n", svg)
    shares = [float(share) for share in re.findall(r"([\d.]+)%", frames)]
    assert shares == sorted(shares) and len(shares) == 6
    # From the first line to the second one 0.3 s passed, and never more than the longest pause.
    (seconds,) = {float(whole) for whole in re.findall(r"animation:\w+ ([\d.]+)s", svg)}
    pauses = [(b - a) * seconds / 100 for a, b in itertools.pairwise(shares)]
    assert 0.28 < pauses[1] < 0.82
    assert "url(http" not in svg


def test_a_long_output_keeps_its_steps_and_its_end(tmp_path: Path) -> None:
    text = "".join(f"print('$ step {i}'); [print('step', {i}, 'line', j) for j in range(20)]; " for i in range(3))
    result = record(tmp_path / "a.svg", "--rows", "10", f'python -c "{text}"')
    assert result.returncode == 0, result
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    lines = lines_of(svg)
    assert [line for line in lines if line.startswith("$ step")] == ["$ step 0", "$ step 1", "$ step 2"]
    assert lines[1:6] == ["$ step 0", "step 0 line 0", "  ... 17 lines", "step 0 line 18", "step 0 line 19"]
    assert lines[-26:] == [*(f"step 1 line {j}" for j in range(15, 20)), "$ step 2"] + [
        f"step 2 line {j}" for j in range(20)
    ]
    # Ten lines are shown at a time, the last ones where nothing moves.
    (up,) = re.findall(r"^\.scroll\{transform:translateY\((-[\d.]+)px\)\}", svg, re.MULTILINE)
    assert float(up) == -round((len(lines) - 10) * 24.4, 1)
    assert float(re.findall(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)[0]) < 12 * 24.4 + 50


def test_a_command_that_fails_is_not_recorded(tmp_path: Path) -> None:
    result = record(tmp_path / "a.svg", "python -c 'print(7); raise SystemExit(3)'")
    assert result.returncode == 1
    assert result.stderr.endswith("ended with exit code 3 (7); nothing was recorded\n")
    assert not (tmp_path / "a.svg").exists()
