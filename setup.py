"""What belongs to the package: found in its folders, so that no module and no data file has to be listed."""

import zlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PACKAGE = "hmsa_pipeline"
FOLDERS = ("datasets", "manifests", "models", "pipeline")
"""All that is below them is the package's, whatever its kind."""
ROOT = Path(__file__).resolve().parent
COMPILED = {".pyc", ".so", ".pyd", ".dylib"}
KERNEL = Path("pipeline/fusion/kernel/softmax_sums.c")


class BuildLibrary(build_ext):
    """Builds a plain library, which ctypes loads; without a compiler that it knows, the package works without it."""

    def build_extension(self, ext: Extension) -> None:
        if self.compiler.compiler_type != "unix":
            self.warn(f"{ext.name} is not built by {self.compiler.compiler_type}; fusing works, but slower")
            return
        super().build_extension(ext)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        # By default that of a module of Python.
        return []


def files() -> list[Path]:
    """Every file of the package's folders, relative to the root; hidden and compiled ones are left out."""
    found = [path.relative_to(ROOT) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    return [
        path
        for path in found
        if (ROOT / path).is_file()
        and path.suffix not in COMPILED
        and not any(part.startswith(".") for part in path.parts)
    ]


packages = {".".join([PACKAGE, *path.parent.parts]) for path in files()}
data = [path.as_posix() for path in files() if path.suffix != ".py"]
library = Extension(
    ".".join([PACKAGE, *KERNEL.parent.parts, "_library"]),
    [KERNEL.as_posix()],
    define_macros=[("SOURCE_CRC32", f"{zlib.crc32((ROOT / KERNEL).read_bytes())}u")],
    # Bits must be those of IEEE 754's operations, whatever the environment's CFLAGS are. Floating-point exceptions,
    # which nobody looks at, would keep comparisons from being vectorised.
    extra_compile_args=[
        *("-std=c99", "-O3", "-fno-fast-math", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"),
        "-fvisibility=hidden",
    ],
    libraries=["m"],
    py_limited_api=True,
    optional=True,
)
setup(
    script_name="setup.py",  # which setuptools then leaves out of the package
    packages=[PACKAGE, *sorted(packages)],
    package_data={PACKAGE: data},
    ext_modules=[library],
    cmdclass={"build_ext": BuildLibrary},
    # The library does not depend on Python's version.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
