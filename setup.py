"""What belongs to the package: found in its folders, so that no module and no data file has to be listed."""

from pathlib import Path

from setuptools import setup

PACKAGE = "hmsa_pipeline"
FOLDERS = ("datasets", "manifests", "models", "pipeline")
"""All that is below them is the package's, whatever its kind."""
ROOT = Path(__file__).resolve().parent


def files() -> list[Path]:
    """Every file of the package's folders, relative to the root; hidden and compiled ones are left out."""
    found = [path.relative_to(ROOT) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    return [
        path
        for path in found
        if (ROOT / path).is_file() and path.suffix != ".pyc" and not any(part.startswith(".") for part in path.parts)
    ]


packages = {".".join([PACKAGE, *path.parent.parts]) for path in files()}
data = [path.as_posix() for path in files() if path.suffix != ".py"]
setup(
    script_name="setup.py",  # which setuptools then leaves out of the package
    packages=[PACKAGE, *sorted(packages)],
    package_data={PACKAGE: data},
)
