"""The fields ``classes``: of a manifest or recipe a shipped class set or one's own, of a model the table to it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema

from ...datasets.class_set import MOST_CLASSES, SHIPPED, ClassSet, Colour, shipped_set
from ...errors import ManifestError, describe_value, nearest
from ...models.registry import CLASS_TABLES
from .path_variables import PathContext, expand, resolved_path
from .yaml_document import FieldError, read_tree

Entry = tuple[str, Colour]
"""Name and colour of a class."""

Classes = str | tuple[Entry, ...]
"""Name of a shipped set, or the classes themselves."""

DEFAULT = SHIPPED[0]
AUTO, OTHER = "auto", "other"
_KEYS = ("name", "color")


def _classes(value: object, info: ValidationInfo) -> Classes:
    if isinstance(value, str):
        if value in SHIPPED:
            return value
        if "/" not in value and not value.endswith((".yaml", ".yml")):
            raise ValueError(
                f"there is no class set {value!r}; {nearest(value, SHIPPED)}; or name a YAML file of {{name, color}}"
            )
        around = info.context or PathContext.of(Path.cwd())
        return _from_file(resolved_path(expand(value, around.folder, around.variables)))
    return _entries(value)


def _from_file(path: Path) -> tuple[Entry, ...]:
    tree, lines = read_tree(path, str(path))
    place: tuple[str | int, ...] = ()
    if isinstance(tree, dict) and "classes" in tree:  # as the package writes its own
        place, tree = ("classes",), tree["classes"]
    try:
        return _entries(tree)
    except FieldError as error:
        place = (*place, *error.place)
        line = next(lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in lines)
        raise ValueError(f"{path}:{line}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _entries(value: object) -> tuple[Entry, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"a list of {{name, color}} is needed, not {describe_value(value)}")
    if not 2 <= len(value) <= MOST_CLASSES:
        raise ValueError(
            f"holds {len(value)} classes; give 2 to {MOST_CLASSES}: masks have 8 bits a pixel, and 255 is ignored"
        )
    found: list[Entry] = []
    first: dict[str, int] = {}
    for i, one in enumerate(value):
        name, colour = _entry(one, i)
        plain = " ".join(name.lower().split())
        if plain == OTHER:
            raise FieldError(f"{name!r} is what is none of the classes; rename it", i, "name")
        if plain in first:
            raise FieldError(f"{name!r} is the name of class {first[plain]}, too; rename one", i, "name")
        first[plain] = i
        found.append((name, colour))
    return tuple(found)


def _entry(one: object, place: int) -> Entry:
    if isinstance(one, tuple) and len(one) == len(_KEYS):  # checked before
        one = dict(zip(_KEYS, one, strict=True))
    if not isinstance(one, dict):
        raise FieldError(f"{{name, color}} is needed, not {describe_value(one)}", place)
    for key in one:
        if key not in _KEYS:
            raise FieldError(f"unknown key; {nearest(str(key), _KEYS)}", place, str(key))
    for key in _KEYS:
        if key not in one:
            raise FieldError("is missing", place, key)
    name, colour = one["name"], one["color"]
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise FieldError(f"the name of a class is needed, not {describe_value(name)}", place, "name")
    levels: Sequence[Any] = colour if isinstance(colour, list | tuple) else ()
    if len(levels) != 3 or not all(type(level) is int and 0 <= level <= 255 for level in levels):
        message = f"red, green and blue from 0 to 255 are needed, as in [128, 64, 128], not {describe_value(colour)}"
        raise FieldError(message, place, "color")
    return name.strip(), (levels[0], levels[1], levels[2])


def _written(classes: Classes) -> object:
    if isinstance(classes, str):
        return classes
    return [{"name": name, "color": list(colour)} for name, colour in classes]


ClassSetField = Annotated[
    Any,
    BeforeValidator(_classes),
    PlainSerializer(_written),
    WithJsonSchema(
        {"anyOf": [{"enum": list(SHIPPED)}, {"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
    ),
]


@functools.lru_cache(maxsize=16)
def class_set_of(classes: Classes) -> ClassSet:
    """Return the class set that the field holds."""
    if isinstance(classes, str):
        return shipped_set(classes)
    return ClassSet(None, tuple(name for name, _ in classes), tuple(colour for _, colour in classes))


_CLASS_WORDS = tuple(dict.fromkeys((AUTO, *CLASS_TABLES, *SHIPPED)))
MemberClasses = str | tuple[str, ...] | dict[str, str] | None


def _class(value: object, *place: str | int) -> str:
    if not isinstance(value, str):
        raise FieldError(f"the name of a class is needed, not {describe_value(value)}", *place)
    return value


def _member_classes(value: object) -> MemberClasses:
    if value is None or (isinstance(value, str) and value in _CLASS_WORDS):
        return value
    if isinstance(value, list | tuple) and value:
        return tuple(_class(name, i) for i, name in enumerate(value))
    if isinstance(value, dict) and value:
        for key, name in value.items():
            _class(name, key)
        return value
    close = f"; {nearest(value, _CLASS_WORDS)}" if isinstance(value, str) else ""
    raise ValueError(
        f"{AUTO}, a shipped table, a list of names or a table is needed, not {describe_value(value)}{close}"
    )


ClassesField = Annotated[
    Any,
    BeforeValidator(_member_classes),
    PlainSerializer(lambda classes: list(classes) if isinstance(classes, tuple) else classes),
    WithJsonSchema(
        {"anyOf": [{"enum": list(_CLASS_WORDS)}, {"type": "array"}, {"type": "object"}, {"type": "null"}]}
    ),
]


def check_member_classes(choice: object, classes: ClassSet) -> None:
    """Raise FieldError if a model's ``classes`` names others than those of its manifest.

    Args:
        choice: of the model.
        classes: of the manifest.
    """
    if isinstance(choice, str):
        if choice in (AUTO, classes.name) or (choice in CLASS_TABLES and classes.is_default):
            return
        if choice in CLASS_TABLES:
            raise FieldError(
                f"the table {choice} leads to {DEFAULT}, but the manifest's classes are {classes}; give a list or a "
                "table"
            )
        raise FieldError(
            f"there is no table from {choice} to the manifest's classes, {classes}; give a list or a table"
        )
    known = (*classes.names, OTHER)
    plain = {" ".join(name.lower().split()) for name in known}
    places = choice.items() if isinstance(choice, dict) else enumerate(choice if isinstance(choice, tuple) else ())
    for place, name in places:
        if " ".join(name.lower().split()) not in plain:
            raise FieldError(f"{name!r} is none of our classes; {nearest(name, known)}", place)


def member_choice(choice: Any, classes: ClassSet) -> Any:
    """Return a model's ``classes`` with the name of the manifest's own set written out as its names.

    Args:
        choice: of the model.
        classes: of the manifest.
    """
    return classes.names if isinstance(choice, str) and choice == classes.name else choice


def describe_classes(names: Sequence[str]) -> str:
    """Name the shipped set that has these names, for messages, or count them."""
    for name in SHIPPED:
        if shipped_set(name).names == tuple(names):
            return name
    return f"{len(names)} others"


def require_default(classes: ClassSet, what: str) -> None:
    """Raise ManifestError if the classes are not the 19 of Cityscapes.

    Args:
        classes: of the manifest.
        what: takes no others, such as ``--format bravo``.
    """
    if not classes.is_default:
        raise ManifestError(
            f"{what}: takes the {len(shipped_set(DEFAULT))} classes of {DEFAULT}, but the manifest's classes are "
            f"{classes}; map each model to {DEFAULT} with its 'classes', in a manifest without 'classes'"
        )
