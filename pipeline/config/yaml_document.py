"""YAML files of settings: their values, the line of each value, and one-line errors for everything that is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ...errors import ManifestError, describe_value, nearest, reason, shortened

KeyPath = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 1 << 20
MAX_VALUES = 50_000
PROBLEMS_SHOWN = 3
_MANY_NUMBERS = 8

ONE, SEVERAL = "<mapping>", "<list>"
"""Tags of a section that may be a mapping or a list of them; they are no steps of a place."""

_TAG = "tag:yaml.org,2002:"
# YAML 1.1 sees a date in 2024-01-01, an operator in = and <<; in settings all of them are just text.
_TEXT_TAGS = {_TAG + kind for kind in ("str", "timestamp", "value", "merge")}
_PLAIN_TAGS = {_TAG + kind for kind in ("null", "bool", "int", "float")}


class FieldError(ValueError):
    """The error of a validator of several fields about one of them; ``place`` is relative to the validated value."""

    def __init__(self, message: str, *place: str | int) -> None:
        super().__init__(message)
        self.place: KeyPath = place


@dataclass(frozen=True)
class Document:
    """The content of one YAML file whose top level is a mapping.

    Attributes:
        name: of the file, for messages.
        tree: the values; mappings have text keys only.
        lines: place of a value in the tree -> its line, from 1.
        overridden: places whose value comes from the command line, not from the file.
    """

    name: str
    tree: dict[str, Any]
    lines: Mapping[KeyPath, int]
    overridden: frozenset[KeyPath] = field(default=frozenset())

    def override(self, values: Mapping[str, Any]) -> Document:
        """Replace values by those of ``values``, a tree of mappings; a None leaves the file's value."""
        places: set[KeyPath] = set()
        tree = _merged(self.tree, values, (), places)
        return Document(self.name, tree, self.lines, self.overridden | places)

    def error(self, problems: Iterable[tuple[KeyPath, str]]) -> ManifestError:
        """Make one line of all ``problems``: the first few in the file's order, and the number of the others."""
        ordered = sorted(problems, key=lambda problem: self._line(problem[0]) or 0)
        said = [self._said(place, message, first=not i) for i, (place, message) in enumerate(ordered)]
        more = len(said) - PROBLEMS_SHOWN
        rest = f"; and {more} more problem{'s' if more > 1 else ''}" if more > 0 else ""
        return ManifestError("; ".join(said[:PROBLEMS_SHOWN]) + rest)

    def _line(self, place: KeyPath) -> int | None:
        said = any(place[:n] in self.overridden for n in range(len(place) + 1))
        # A section that is not in the file was made for a value of the command line.
        made = place not in self.lines and any(given[: len(place)] == place for given in self.overridden)
        if said or made:
            return None
        # A key that is missing stands where its mapping stands.
        return next((self.lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in self.lines), 1)

    def _said(self, place: KeyPath, message: str, first: bool) -> str:
        line = self._line(place)
        where = f"{_dotted(place)}: " if place else ""
        if line is None:
            return f"{self.name + ': ' if first else ''}{where}{message} (given on the command line)"
        return f"{f'{self.name}:' if first else 'line '}{line}: {where}{message}"


def read_document(path: Path, name: str | None = None) -> Document:
    """Read a YAML file; messages call it ``name`` (its path if None).

    Duplicate keys are refused, of which PyYAML silently takes the last; so are tags and merge keys, which no file of
    settings needs. Dates stay text. ManifestError if there is no such file, it is a folder, cannot be read, is larger
    than 1 MiB, not UTF-8, not YAML, empty, or its top level is no mapping.
    """
    name = str(path) if name is None else name
    tree, lines = read_tree(path, name)
    if not isinstance(tree, dict):
        shown = describe_value(tree)
        raise ManifestError(f"{name}:{lines[()]}: a mapping (key: value) is needed, not {shown}")
    return Document(name, tree, lines)


def read_tree(path: Path, name: str) -> tuple[Any, Mapping[KeyPath, int]]:
    """Read the content of a YAML file, of any type, and the line of each value.

    Args:
        path: of the file.
        name: what messages call it.

    Raises:
        ManifestError: as `read_document`, but for the type of the top level.
    """
    text = _read_text(path, name)
    lines: dict[KeyPath, int] = {}
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        tree = None if root is None else _Builder(name, loader, lines).build(root, ())
    except RecursionError:
        raise ManifestError(f"{name}: nested too deeply, or a value that contains itself") from None
    except yaml.YAMLError as error:
        raise ManifestError(f"{name}:{_yaml_problem(error, text)}") from None
    if tree is None:
        raise ManifestError(f"{name}: the file is empty")
    return tree, lines


def validate(model: type[M], document: Document, context: Any = None) -> M:
    """Check a document and turn it into a model.

    Args:
        model: the class of pydantic model.
        document: the settings.
        context: handed to the model's validators.

    Raises:
        ManifestError: the settings do not fit the model; the error names every problem.
    """
    try:
        return model.model_validate(document.tree, context=context)
    except ValidationError as error:
        found = [(_key_path(problem), _message(problem, model)) for problem in error.errors(include_url=False)]
        raise document.error(found) from error


def as_yaml(tree: Any) -> str:
    """Write a tree of settings as YAML, in its own order."""
    # PyYAML writes line breaks other than a newline (as U+0085) so that it reads them as spaces,
    # unless it escapes everything beyond ASCII.
    printable = json.dumps(tree, ensure_ascii=False).isprintable()
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=printable, width=math.inf)


class _Dumper(yaml.SafeDumper):
    """Writes long lists of numbers on one line each."""


def _numbers_on_one_line(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    many = len(values) >= _MANY_NUMBERS and all(isinstance(value, float) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True if many else None)


_Dumper.add_representer(list, _numbers_on_one_line)


def _dotted(place: KeyPath) -> str:
    steps = (f"[{step}]" if isinstance(step, int) else f".{step[:60]}" for step in place)
    return "".join(steps).removeprefix(".")


def _merged(tree: dict[str, Any], values: Mapping[str, Any], place: KeyPath, places: set[KeyPath]) -> dict[str, Any]:
    tree = dict(tree)
    for key, value in values.items():
        below = tree.get(key)
        if isinstance(value, Mapping) and (below is None or isinstance(below, dict)):
            tree[key] = _merged(below or {}, value, (*place, key), places)
        elif value is not None and not isinstance(value, Mapping):
            tree[key] = value
            places.add((*place, key))
    return tree


def _read_text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise ManifestError(f"{name}: is a folder; name the YAML file") from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{name}: cannot be read: {reason(error)}") from None
    if b"\0" in data:
        raise ManifestError(f"{name}: is a binary file; name a YAML file in UTF-8")
    if len(data) > MAX_BYTES:
        raise ManifestError(f"{name}: is larger than {MAX_BYTES >> 20} MiB; name a YAML file of settings")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise ManifestError(f"{name}:{line}: is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8 text") from None


def _yaml_problem(error: yaml.YAMLError, text: str) -> str:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"{line}: not valid YAML: the character #x{ord(text[error.position]):04x} is not allowed"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f" not valid YAML: {error}"
    problem = (error.problem or "").removeprefix("but ")
    if error.context:
        start = f" begun on line {error.context_mark.line + 1}" if error.context_mark else ""
        problem = f"{error.context}{start}: {problem}"
    line = error.problem_mark.line
    if "'\\t'" in problem:
        problem += "; indent with spaces, not tabs"
    elif "flow mapping" in problem and "${" in "".join(text.splitlines()[line : line + 1]):
        problem += "; put ${...} in quotes between braces"
    return f"{line + 1}: not valid YAML: {problem}"


class _Builder:
    """Turns YAML nodes into values and records their lines; stricter than PyYAML's own constructor."""

    def __init__(self, name: str, loader: yaml.SafeLoader, lines: dict[KeyPath, int]) -> None:
        self.name, self.loader, self.lines = name, loader, lines
        self.values = 0

    def build(self, node: yaml.Node, place: KeyPath) -> Any:
        self.lines.setdefault(place, node.start_mark.line + 1)
        self.values += 1
        if self.values > MAX_VALUES:
            # A few nested aliases can stand for billions of values.
            raise self._refuse(node, place, f"more than {MAX_VALUES:,} values")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, place)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.build(item, (*place, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, place)
        raise self._refuse(node, place, f"the tag {node.tag} is not understood here; remove it")

    def _mapping(self, node: yaml.MappingNode, place: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._refuse(key, place, "a key must be one word, not a list or a mapping")
            here = (*place, key.value)
            if key.value in values:
                raise self._refuse(key, here, f"given twice, first on line {self.lines[here]}; remove one")
            self.lines[here] = key.start_mark.line + 1
            values[key.value] = self.build(value, here)
        return values

    def _scalar(self, node: yaml.ScalarNode, place: KeyPath) -> Any:
        if node.tag in _TEXT_TAGS:
            return node.value
        if node.tag not in _PLAIN_TAGS:
            raise self._refuse(node, place, f"the tag {node.tag} is not understood here; remove it")
        try:
            return self.loader.construct_object(node)
        except (ValueError, LookupError):
            message = f"cannot read {shortened(node.value)} as {node.tag.removeprefix(_TAG)}; put text in quotes"
            raise self._refuse(node, place, message) from None

    def _refuse(self, node: yaml.Node, place: KeyPath, message: str) -> ManifestError:
        where = f"{_dotted(place)}: " if place else ""
        return ManifestError(f"{self.name}:{node.start_mark.line + 1}: {where}{message}")


def _key_path(problem: ErrorDetails) -> KeyPath:
    error = problem.get("ctx", {}).get("error")
    place = tuple(step for step in problem["loc"] if step not in (ONE, SEVERAL))
    return (*place, *error.place) if isinstance(error, FieldError) else place


def _message(problem: ErrorDetails, model: type[BaseModel]) -> str:
    place, value = _key_path(problem), problem["input"]
    match problem["type"]:
        case "value_error":
            return str(problem.get("ctx", {})["error"])
        case "missing":
            return "is missing"
        case "extra_forbidden":
            parent = next(k for k in _kinds_at(model, place[:-1]) if _is_model(k))
            return f"unknown key; {nearest(str(place[-1]), parent.model_fields)}"
        case "literal_error":
            known = next(get_args(k) for k in _kinds_at(model, place) if get_origin(k) is Literal)
            return f"{describe_value(value)} is not known; {nearest(str(value), map(str, known))}"
        case "string_type":
            quotes = "; put it in quotes" if isinstance(value, (bool, int, float)) else ""
            return f"text is needed, not {describe_value(value)}{quotes}"
        case "bool_type":
            return f"true or false is needed, not {describe_value(value)}"
        case "tuple_type":
            dash = "; begin each entry with '- '" if isinstance(value, dict) else ""
            return f"a list is needed, not {describe_value(value)}{dash}"
        case "model_type" if value is None:
            return "is empty; fill it in or leave it out"
        case "model_type":
            return f"a mapping (key: value) is needed, not {describe_value(value)}"
        case _:
            return problem["msg"]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _kinds(annotation: Any) -> Iterator[Any]:
    """Yield the annotation and everything inside it: for ``X | None`` also ``X`` and ``None``."""
    yield annotation
    for inner in get_args(annotation):
        yield from _kinds(inner)


def _kinds_at(model: type[BaseModel], place: KeyPath) -> Iterator[Any]:
    """Yield the types that the value at ``place`` may have; an index changes nothing: `_kinds` looks into lists."""
    annotation: Any = model
    for step in place:
        if isinstance(step, str):
            parent = next(k for k in _kinds(annotation) if _is_model(k))
            annotation = parent.model_fields[step].annotation
    return _kinds(annotation)
