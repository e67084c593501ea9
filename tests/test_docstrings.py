"""Docstrings say what a reader needs: they name their subject, list arguments, and give the shapes of tensors."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hmsa_pipeline import __file__ as package_file

PACKAGE = Path(package_file).parent
UNCLEAR = re.compile(r"(What|Whether|Those|Of|The same|Likewise)\b")
ARCHAIC = re.compile(
    r"\b(whoever|whatever is|else it would|tell(s|ing)? apart|worth|mend(s|ed|ing)?|anew|of ours|foretell\w*|"
    r"likewise|whither|thrice|hitherto|thereof|wherein|lest)\b",
    re.IGNORECASE,
)
ARGUMENTS = 3
"""From this number of parameters on, a public function lists them."""
SHAPE = re.compile(r"\([^)]*\b[A-Z]\b[^)]*\)")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[str]:
    """List the package's own modules that are to follow the rules, relative to the package."""
    found = [PACKAGE / name for name in ("cli.py", "errors.py", "files.py")]
    for folder in ("pipeline", "models", "datasets"):
        found += (PACKAGE / folder).rglob("*.py")
    inside = sorted(path.relative_to(PACKAGE) for path in found)
    return [str(path) for path in inside]


def definitions(tree: ast.Module) -> Iterator[tuple[Documented, bool]]:
    """Yield the module, its classes and functions at any depth, each with: it is public, as are all around it."""
    waiting: list[tuple[ast.AST, bool]] = [(tree, True)]
    while waiting:
        node, public = waiting.pop()
        if isinstance(node, Documented):
            if not isinstance(node, ast.Module):
                public = public and (not node.name.startswith("_"))
            yield node, public
        inside_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        waiting += [(child, public and not inside_function) for child in ast.iter_child_nodes(node)]


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring, those below constants and fields included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value.strip()


def is_overload_or_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Say whether a decorator makes the docstring a help text (Typer) or the function one case of several."""
    return any("command" in ast.unparse(found) or "overload" in ast.unparse(found) for found in node.decorator_list)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """List a function's parameters without self and cls."""
    every = [*node.args.posonlyargs, *node.args.args, node.args.vararg, *node.args.kwonlyargs, node.args.kwarg]
    return [found.arg for found in every if found is not None and found.arg not in ("self", "cls")]


def faults(source: str, command: str | None = None) -> list[str]:
    """List the offences of one module, one line each; the docstring of ``command`` is a help text."""
    tree = ast.parse(source)
    found = [f"{line}: begins with {text.split()[0]!r}" for line, text in texts(tree) if UNCLEAR.match(text)]
    found += [f"{line}: {word[0]!r} is not plain" for line, text in texts(tree) if (word := ARCHAIC.search(text))]
    for node, public in definitions(tree):
        if (
            not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or is_overload_or_command(node)
            or node.name == command
        ):
            continue
        text = ast.get_docstring(node) or ""
        if public and len(parameters(node)) >= ARGUMENTS and not node.name.startswith("__"):
            missing = [name for name in parameters(node) if not re.search(rf"\b{name}\b", text.partition("Args:")[2])]
            if "Args:" not in text:
                found.append(f"{node.lineno}: {node.name} has no Args:")
            elif missing:
                found.append(f"{node.lineno}: Args: of {node.name} leaves out {', '.join(missing)}")
        if node.name == "forward" and public and not SHAPE.search(text):
            found.append(f"{node.lineno}: forward gives no shape")
    return found


@pytest.mark.parametrize("module", sources())
def test_docstrings_name_their_subject_their_arguments_and_shapes(module: str) -> None:
    path = Path(module)
    command = path.stem if path.parent == Path("pipeline/commands") else None
    assert faults((PACKAGE / module).read_text(encoding="utf-8"), command) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ('"""What a thing is."""', "1: begins with 'What'"),
        ('SIZE = 3\n"""Whether it fits."""', "2: begins with 'Whether'"),
        ('def f():\n    """Mend it."""', "2: 'Mend' is not plain"),
        ('def f(a, b, c):\n    """Add."""', "1: f has no Args:"),
        (
            'def f(a, b, c):\n    """Add.\n\n    Args:\n        a, b: Two.\n    """',
            "1: Args: of f leaves out c",
        ),
        ('class Net:\n    def forward(self, x):\n        """Run it."""', "2: forward gives no shape"),
    ],
)
def test_each_rule_is_noticed(source: str, fault: str) -> None:
    assert faults(source) == [fault]
