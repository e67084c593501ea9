"""Records commands as an animated SVG of a terminal, for the README.

    .venv/bin/python docs/record_terminal.py

The commands run in an empty folder, one after another. What they print appears line by line at the pace at which it
was printed, with long pauses cut short; the title says how long the commands really took. Long outputs are shortened:
a line says how many lines are left out. The last picture stays for some seconds, then the recording begins again.
Where a viewer plays no animation, or the reader wants less motion, the last picture is shown.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

COMMANDS = ("hmsa-pipeline demo --output demo",)
TARGET = Path(__file__).with_name("demo.svg")
LONGEST_PAUSE = 0.8  # seconds; a reader does not wait longer for the next line
SHORTEST_PAUSE = 0.04
TYPING = 0.7  # seconds from a command to its first line
HOLD = 8.0  # seconds that the last picture stays
KEPT = (1, 2)  # lines at the begin and the end of what one step prints
LAST_KEPT = 26  # lines of the end of all, which has the result
# As in Rich's own template, with an inner group that scrolls and a curtain before the lines that are still to come.
TEMPLATE = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<!-- Generated with Rich https://www.textualize.io by docs/record_terminal.py -->
<style>
.{unique_id}-matrix {{ font: {char_height}px/{line_height}px ui-monospace, Menlo, Consolas, monospace; }}
.{unique_id}-title {{ font: bold 18px system-ui, sans-serif; }}
{styles}
/*motion*/
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect y="3" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
<g class="scroll">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
<rect class="curtain" y="1" width="{terminal_width}" height="{terminal_height}" fill="#292929" style="display:none"/>
</g>
</g>
</svg>
"""
CHAR_HEIGHT = 20
LINE_HEIGHT = CHAR_HEIGHT * 1.22


@dataclass(frozen=True)
class Line:
    """One line of the terminal.

    Attributes:
        text: without its end.
        pause: seconds after the line before it.
    """

    text: str
    pause: float


def run_command(command: str, folder: Path) -> tuple[list[Line], float]:
    """Run a command in ``folder``; return its lines, the command itself first, and the seconds that it took.

    SystemExit if it fails.
    """
    words = shlex.split(command)
    # The program of this Python, and no other that happens to be installed.
    own = Path(sys.executable).with_name(words[0])
    lines = [Line(f"$ {command}", LONGEST_PAUSE)]
    begin = last = time.monotonic()
    with subprocess.Popen(
        [str(own) if own.exists() else words[0], *words[1:]],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        if process.stdout is None:
            raise ValueError("there is no pipe")
        for text in process.stdout:
            heard = time.monotonic()
            shown = text.rstrip("\n").replace(f"{folder}/", "").replace("\t", "    ")
            lines.append(Line(shown, heard - last if len(lines) > 1 else TYPING))
            last = heard
    if process.returncode:
        said = lines[-1].text if len(lines) > 1 else ""
        sys.exit(f"error: {command}: ended with exit code {process.returncode} ({said}); nothing was recorded")
    return lines, time.monotonic() - begin


def shortened(lines: Sequence[Line]) -> list[Line]:
    """Leave out what is long: of each step of an output, which begins with ``$``, its middle."""
    head, last = list(lines[:-LAST_KEPT]), list(lines[-LAST_KEPT:])
    starts = [number for number, line in enumerate(head) if line.text.startswith("$ ")]
    kept = head[: starts[0]] if starts else []
    for start, stop in zip(starts or [0], [*starts[1:], len(head)], strict=True):
        step = head[start + bool(starts) : stop]
        first, end = KEPT
        kept += head[start : start + bool(starts)]
        if len(step) > first + end + 1:
            gone = Line(f"  ... {len(step) - first - end} lines", LONGEST_PAUSE)
            step = [*step[:first], gone, *step[-end:]]
        kept += step
    return [*kept, *last]


def drawn(lines: Sequence[Line], title: str, columns: int, rows: int) -> str:
    """Draw the lines as an animated SVG.

    Args:
        lines: all of the recording.
        title: of the window.
        columns, rows: size of the terminal.
    """
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=columns, file=nowhere, color_system="truecolor", no_color=False)
        for line in lines:
            style = "bold green" if line.text.startswith("$ ") else "dim" if line.text.startswith("  ...") else ""
            cut = line.text if len(line.text) <= columns else f"{line.text[: columns - 1]}…"
            console.print(Text(cut, style=style, no_wrap=True), soft_wrap=True, highlight=False, markup=False)
        svg = console.export_svg(title=title, code_format=TEMPLATE, unique_id="terminal")
    shown = min(rows, len(lines))
    svg = _with_height(svg, len(lines), shown)
    return svg.replace("/*motion*/", _motion(lines, shown))


def _with_height(svg: str, total: int, shown: int) -> str:
    """Reduce the window, which Rich makes as high as all lines, to those that are shown at a time."""
    less = (total - shown) * LINE_HEIGHT

    def reduced(found: re.Match[str]) -> str:
        return f"{found[1]}{float(found[2]) - less:.1f}{found[3]}"

    svg = re.sub(r'(<svg viewBox="0 0 [\d.]+ )([\d.]+)(")', reduced, svg, count=1)
    svg = re.sub(
        r'(id="terminal-clip-terminal"><rect y="3" width="[\d.]+" height=")([\d.]+)(")', reduced, svg, count=1
    )
    return re.sub(r'(<rect fill="#292929" stroke=[^>]*? height=")([\d.]+)(")', reduced, svg, count=1)


def _motion(lines: Sequence[Line], shown: int) -> str:
    """The style that shows one line after another, and the last picture where there is no animation."""
    pauses = [min(LONGEST_PAUSE, max(SHORTEST_PAUSE, line.pause)) for line in lines]
    whole = sum(pauses) + HOLD
    now, scroll, curtain = 0.0, [], []
    for number, pause in enumerate(pauses):
        now += pause
        share = 0.0 if number == 0 else 100 * (now - pauses[0]) / whole
        up = max(0, number + 1 - shown) * LINE_HEIGHT
        scroll.append(f"{share:.3f}%{{transform:translateY({-up:.1f}px)}}")
        curtain.append(f"{share:.3f}%{{transform:translateY({(number + 1) * LINE_HEIGHT:.1f}px)}}")
    end = max(0, len(lines) - shown) * LINE_HEIGHT
    return (
        f".scroll{{transform:translateY({-end:.1f}px)}}\n"
        f"@keyframes scroll{{{''.join(scroll)}}}\n@keyframes curtain{{{''.join(curtain)}}}\n"
        "@media (prefers-reduced-motion: no-preference){\n"
        f".scroll{{animation:scroll {whole:.2f}s step-end infinite}}\n"
        f".curtain{{display:block!important;animation:curtain {whole:.2f}s step-end infinite}}\n}}"
    )


def main() -> None:
    """Record what the command line names."""
    parser = argparse.ArgumentParser(description="Record commands as an animated SVG of a terminal.")
    parser.add_argument("--output", type=Path, default=TARGET, help="the SVG; default: docs/demo.svg")
    parser.add_argument("--columns", type=int, default=100, help="width of the terminal")
    parser.add_argument("--rows", type=int, default=28, help="lines that are shown at a time")
    parser.add_argument("commands", nargs="*", default=COMMANDS, help=f"default: {COMMANDS[0]}")
    given = parser.parse_args()
    lines: list[Line] = []
    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for command in given.commands:
            said, took = run_command(command, Path(folder).resolve())
            lines += [*([Line("", SHORTEST_PAUSE)] if lines else []), *said]
            seconds += took
    title = f"{given.commands[0]}: {seconds:.0f} s, pauses cut short"
    svg = drawn(shortened(lines), title, given.columns, given.rows)
    given.output.write_text(svg, encoding="utf-8")
    print(f"{len(lines)} lines, {seconds:.0f} s, {len(svg) / 1000:.0f} KB; {given.output}")


if __name__ == "__main__":
    main()
