"""The types of value that manifests and recipes hold: text, names, numbers, checksums and paths."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, PlainValidator, Strict, ValidationInfo

from ...datasets.class_set_labels import FOLDER
from ...datasets.dataset_specs import KNOWN_DATASETS, dataset_spec
from ...errors import DatasetError, describe_value, nearest
from ..storage.filesystem import is_remote, parse_location
from .path_variables import PathContext, expand, is_unicode, require_expanded
from .yaml_document import FieldError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LONGEST_NAME = 100


def check_mapping(name: str, mapping: str | None) -> None:
    """Raise ValueError if a type of dataset has no mapping of this name; None is allowed for all types."""
    if mapping is None:
        return
    if name not in KNOWN_DATASETS:
        raise ValueError(f"type '{name}' has no mappings, but '{mapping}' was given; leave it out")
    try:
        dataset_spec(name).mapped(mapping)
    except DatasetError as error:
        raise ValueError(str(error)) from error


def check_masks(name: str, root: str, masks: str | None) -> None:
    """Raise FieldError if a type of dataset takes no folder of masks, or the masks lie among the images.

    Args:
        name: the type.
        root: folder of the images.
        masks: folder of the masks; None if none is named.
    """
    if masks is None:
        return
    if name != FOLDER:
        raise FieldError(
            f"means nothing to type {name!r}, whose masks lie where its authors put them; remove it", "masks"
        )
    if Path(masks) == Path(root) or Path(root) in Path(masks).parents:
        raise FieldError("lies in 'root', where masks would be taken for images; put it elsewhere", "masks")


def expand_input(value: object, info: ValidationInfo) -> str:
    """Expand a path that is read, as `path_variables.expand`, in the context that the manifest or recipe has.

    Args:
        value: a text or path.
        info: of the validator.
    """
    around = info.context or PathContext.of(Path.cwd())
    return expand(value, around.folder, around.variables)


def _output_path(value: object, info: ValidationInfo) -> Path:
    around = info.context or PathContext.of(Path.cwd())
    return parse_location(require_expanded(expand(value, Path.cwd(), around.variables)))


def _local_output_path(value: object, info: ValidationInfo) -> Path:
    found = _output_path(value, info)
    if is_remote(found):
        raise ValueError(
            f"a folder on a disk is needed, not {describe_value(value)}; copy the results there afterwards"
        )
    return found


def _number_that(fits: Callable[[float], bool], rule: str) -> BeforeValidator:
    """Make a check that a value is a finite number for which ``fits`` holds; ``rule`` says in words when it does."""

    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"a number is needed, not {describe_value(value)}{_as_number(value)}")
        # Whole numbers beyond what a float holds are not finite either.
        if abs(value) > sys.float_info.max or math.isnan(value):
            raise ValueError(f"a finite number is needed, not {describe_value(value)}")
        if not fits(number := float(value)):
            raise ValueError(f"must {rule}, not {number:g}")
        return number

    return BeforeValidator(check)


def _as_number(value: object) -> str:
    # YAML reads 1e-3, and everything in quotes, as text.
    with contextlib.suppress(ValueError):
        if isinstance(value, str) and math.isfinite(float(value)):
            return f"; write {float(value)}"
    return ""


def _whole_number_from(least: int) -> BeforeValidator:
    """Make a check that a value is a whole number of at least ``least``."""

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"a whole number is needed, not {describe_value(value)}")
        if value >= 2**31:
            raise ValueError(f"must be below {2**31}, not {describe_value(value)}")
        if value < least:
            raise ValueError(f"must be {least} or more, not {value}")
        return value

    return BeforeValidator(check)


def _check_text(text: str) -> str:
    if not is_unicode(text):
        raise ValueError(f"{describe_value(text)} is not Unicode; write its characters out")
    return text


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{describe_value(name)} cannot name files; use letters, digits and, after the first, '.', '_', '-'"
        )
    if name.lower().endswith(".lock"):
        raise ValueError(f"{describe_value(name)} ends like the lock files beside the outputs; use another ending")
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"names files, so {_LONGEST_NAME} characters at most, not {len(name)}")
    return name


def _check_sha256(digits: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", digits):
        raise ValueError(f"64 hexadecimal digits are needed, not {describe_value(digits)} ({len(digits)} characters)")
    return digits.lower()


class NamesOf(Collection[str]):
    """The names of two collections, with those that are added to them later."""

    def __init__(self, first: Collection[str], second: Collection[str]) -> None:
        self._parts = first, second

    def __contains__(self, name: object) -> bool:
        return any(name in part for part in self._parts)

    def __iter__(self) -> Iterator[str]:
        return itertools.chain(*self._parts)

    def __len__(self) -> int:
        return sum(map(len, self._parts))


def one_of(known: Collection[str]) -> AfterValidator:
    """Make a check that a text is one of ``known``, for names that a Literal cannot list."""

    def check(value: str) -> str:
        if value not in known:
            raise ValueError(f"{describe_value(value)} is not known; {nearest(value, known)}")
        return value

    return AfterValidator(check)


def _check_scales(scales: tuple[float, ...]) -> tuple[float, ...]:
    for i, scale in enumerate(scales):
        if scale in scales[:i]:
            raise FieldError(f"{scale:g} stands twice; remove one", i)
    if 1.0 not in scales:
        raise ValueError("must contain 1.0, the photograph's own size, as in [0.5, 1.0, 2.0]")
    return scales


def _check_any(entries: Collection[object]) -> Collection[object]:
    if not entries:
        raise ValueError("at least one is needed")
    return entries


# Not Field(min_length=1), which also complains about a list all of whose entries are wrong.
at_least_one = AfterValidator(_check_any)
Text = Annotated[str, Strict(), AfterValidator(_check_text)]
Name = Annotated[Text, AfterValidator(_check_name)]
# Not a BeforeValidator: pydantic would turn a URL's path into a path on a disk.
OutputPath = Annotated[Path, PlainValidator(_output_path), PlainSerializer(str, return_type=str)]
LocalOutputPath = Annotated[Path, BeforeValidator(_local_output_path)]
Sha256 = Annotated[Text, AfterValidator(_check_sha256)]
InputPath = Annotated[str, BeforeValidator(expand_input)]
Number = Annotated[float, _number_that(lambda _: True, "be a number")]
Positive = Annotated[float, _number_that(lambda number: number > 0, "be above 0")]
NotNegative = Annotated[float, _number_that(lambda number: number >= 0, "be 0 or more")]
Share = Annotated[float, _number_that(lambda number: 0 <= number <= 1, "lie between 0 and 1")]
Count = Annotated[int, _whole_number_from(1)]
Natural = Annotated[int, _whole_number_from(0)]
Scales = Annotated[tuple[Positive, ...], AfterValidator(_check_scales)]
Precision = Literal["fp16", "bf16", "fp32"]
