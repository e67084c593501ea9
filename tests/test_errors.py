"""The error family and the phrases that its messages share."""

from __future__ import annotations

import pytest
from hmsa_pipeline import errors
from hmsa_pipeline.errors import HmsaError, ManifestError, cannot_read, first_few, nearest, reason


def test_every_error_of_the_family_is_caught_as_one() -> None:
    family = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(family) >= 5
    assert all(issubclass(error, HmsaError) for error in family)
    assert issubclass(ManifestError, ValueError)


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("mean-sofmax", ["mean-softmax", "mean-logit"], "did you mean 'mean-softmax'?"),
        ("CITYSCAPES", ["bravo_ACDC", "cityscapes"], "did you mean 'cityscapes'?"),
        ("bravo_acdc", ["bravo_ACDC", "cityscapes"], "did you mean 'bravo_ACDC'?"),
        ("quux", ["bravo", "folder"], "known: bravo, folder"),
        ("quux", [], "none is known"),
        ("", ["bravo"], "known: bravo"),
    ],
)
def test_an_unknown_name_gets_the_closest_known_one_or_all(name: str, known: list[str], said: str) -> None:
    assert nearest(name, iter(known)) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, ""), (1, "0"), (5, "0, 1, 2, 3, 4"), (6, "0, 1, 2, 3, 4 and 1 more"), (1000, "0, 1, 2, 3, 4 and 995 more")],
)
def test_a_list_in_a_message_stays_short_and_counts_the_rest(count: int, said: str) -> None:
    assert first_few(iter(range(count))) == said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(5, "Input/output error", "a.png"), "Input/output error"),
        (OSError("the library\nsays so"), "the library says so"),
        (ValueError(" two\n  lines "), "two lines"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_reason_is_one_line_and_never_empty(error: Exception, said: str) -> None:
    assert reason(error) == said
    assert cannot_read("a.png", error) == f"a.png: cannot be read ({said})"
