"""Sums in one pass of the compiled library have the bits of those step by step, and are near the plain way."""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hmsa_pipeline.pipeline.fusion.fuse import CONFIDENCES, LABELS, PROBABLE, FusedSeveral, fuse, fuse_several
from hmsa_pipeline.pipeline.fusion.kernel import library
from hmsa_pipeline.pipeline.fusion.member_sums import LogitMap, make_sums
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from .test_fuse import standards_of

needs_library = pytest.mark.skipif(library.library() is None, reason="there is no compiled library here")
STEPWISE = ("expected-entropy", "mutual-information", "variation-ratio", "standardised-max-logit")
ONE_PASS = [name for name in CONFIDENCES if name not in STEPWISE]


def without_library() -> mock._patch:
    return mock.patch.object(library, "library", lambda: None)


@st.composite
def ensembles(draw: st.DrawFn) -> tuple[list[Tensor], list[float], list[float]]:
    """Members' logits, weights and temperatures, some with ties and with what is no number."""
    count, classes, pixels = draw(st.integers(1, 8)), draw(st.integers(2, 124)), draw(st.integers(1, 300))
    size = draw(st.sampled_from([0.1, 3.0, 30.0, 300.0]))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    types = draw(st.lists(st.sampled_from([torch.float16, torch.float32]), min_size=count, max_size=count))
    members = [(size * torch.randn(classes, pixels, generator=source)).to(dtype) for dtype in types]
    if draw(st.booleans()):
        for member in members:  # in all members, so that scores tie
            member[draw(st.integers(0, classes - 1))] = member[0]
    bad = draw(st.sampled_from([None, math.nan, math.inf, -math.inf]))
    if bad is not None:
        members[draw(st.integers(0, count - 1))][draw(st.integers(0, classes - 1)), pixels // 2] = bad
    weight = st.sampled_from([0.0, 0.25, 1.0, 3.5])
    weights = draw(st.lists(weight, min_size=count, max_size=count).filter(any))
    temperature = st.sampled_from([0.5, 1.0, 1.0, 1.7, 4.0])
    return members, weights, draw(st.lists(temperature, min_size=count, max_size=count))


def shift(z: Tensor) -> None:
    z.add_(torch.linspace(-1.0, 1.0, len(z))[:, None])


def assert_same(found: FusedSeveral, expected: FusedSeveral) -> None:
    assert torch.equal(found.label, expected.label)
    for name, confidence in expected.confidences.items():
        np.testing.assert_array_equal(found.confidences[name].numpy(), confidence.numpy(), name)
    assert (found.probabilities is None) == (expected.probabilities is None)
    if found.probabilities is not None and expected.probabilities is not None:
        np.testing.assert_array_equal(found.probabilities.numpy(), expected.probabilities.numpy())


@needs_library
@settings(max_examples=60, deadline=None)
@given(
    ensemble=ensembles(),
    label=st.sampled_from(LABELS),
    confidences=st.lists(st.sampled_from(CONFIDENCES), min_size=1, max_size=4, unique=True),
    change=st.sampled_from([None, shift]),
    one_at_a_time=st.booleans(),
    probabilities=st.booleans(),
)
def test_with_and_without_the_library_all_bits_are_the_same(
    ensemble: tuple[list[Tensor], list[float], list[float]],
    label: str,
    confidences: list[str],
    change: LogitMap | None,
    one_at_a_time: bool,
    probabilities: bool,
) -> None:
    members, weights, temperatures = ensemble
    if {label, *confidences} & {"max-softmax", "min-softmax"}:
        weights = [1.0] * len(members)
    probabilities = probabilities and label in PROBABLE
    maps = [change if i % 2 == 0 else None for i in range(len(members))]
    standards = standards_of(len(members), len(members[0]))
    before = [member.clone() for member in members]

    def fused() -> FusedSeveral:
        given = iter(members) if one_at_a_time else members
        return fuse_several(
            given,
            weights,
            temperatures,
            maps,
            standards,
            label=label,
            confidences=confidences,
            probabilities=probabilities,
        )

    found = fused()
    with without_library():
        expected = fused()
    assert_same(found, expected)
    for member, old in zip(members, before, strict=True):
        np.testing.assert_array_equal(member.numpy(), old.numpy(), "input is changed")


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_library), False])
@settings(max_examples=25, deadline=None)
@given(ensemble=ensembles())
def test_the_default_functions_are_the_plain_mean_of_the_softmax(
    compiled: bool, ensemble: tuple[list[Tensor], list[float], list[float]]
) -> None:
    members, weights, temperatures = ensemble
    with mock.patch.object(library, "library", library.library if compiled else lambda: None):
        found = fuse(members, weights, temperatures)
    total = sum(weights)
    shares = [weight / total for weight in weights]
    mean = torch.zeros(members[0].shape, dtype=torch.float64)
    for z, share, temperature in zip(members, shares, temperatures, strict=True):
        mean += share * (z.double() / temperature).softmax(0)
    good = ~mean.isnan().any(0)
    assert torch.equal(found.confidence.isfinite(), good)
    mean, label, confidence = mean[:, good], found.label[good].long(), found.confidence[good]
    torch.testing.assert_close(confidence.double(), mean.amax(0), rtol=0, atol=5e-7)
    # Another class than the first may be the label only where rounding decides.
    highest, first = mean.max(0)
    assert (mean.gather(0, label[None])[0] >= highest - 1e-6).all()
    second = mean.scatter(0, first[None], -1.0).amax(0)
    clear = highest - second > 1e-6
    assert torch.equal(label[clear], first[clear])


@needs_library
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("confidence", ONE_PASS)
def test_of_equal_classes_the_first_is_the_label_in_every_lane(label: str, confidence: str) -> None:
    z = torch.randn(19, 1000, generator=torch.Generator().manual_seed(0))
    z[11], z[4] = 9.0, 9.0
    assert (fuse([z, z], [1.0, 1.0], label=label, confidence=confidence).label == 4).all()


@needs_library
def test_strips_of_larger_arrays_are_read_in_place() -> None:
    source = torch.Generator().manual_seed(2)
    whole = [torch.randn(7, 20, 33, generator=source).half() for _ in range(3)]
    strips = [z[:, 5:9] for z in whole]
    scattered = [z.permute(1, 2, 0).contiguous().permute(2, 0, 1) for z in strips]
    found = fuse(strips, [1.0] * 3)
    for same in ([z.contiguous() for z in strips], scattered, [z.double() for z in strips]):
        other = fuse(same, [1.0] * 3)
        assert torch.equal(found.label, other.label)
        assert torch.equal(found.confidence, other.confidence)


@needs_library
@pytest.mark.parametrize("together", [True, False])
def test_many_pixels_are_divided_among_threads_to_the_same_bits(together: bool) -> None:
    source = torch.Generator().manual_seed(3)
    members = [(3 * torch.randn(3, 2**19 + 3, generator=source)).half() for _ in range(2)]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(fuse(members if together else iter(members), [1.0, 1.0]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].label, found[1].label)
    assert torch.equal(found[0].confidence, found[1].confidence)


@pytest.mark.parametrize(
    ("labelled", "looked_at", "one_pass"),
    [
        ("softmax", set(), True),
        ("minimum", {"softmax", "logits"}, True),
        ("softmax", {"votes"}, False),
        ("softmax", {"standardised"}, False),
        ("maximum", {"entropies", "exact"}, False),
    ],
)
def test_the_library_does_what_it_can_where_it_is_there(labelled: str, looked_at: set[str], one_pass: bool) -> None:
    like = torch.zeros(3, 4)
    with without_library():
        stepwise = type(make_sums(like, [1.0], labelled, looked_at, together=True))
    found = type(make_sums(like, [1.0], labelled, looked_at, together=True))
    assert (found is not stepwise) == (one_pass and library.library() is not None)


def room(classes: int, pixels: int) -> Tensor:
    return torch.zeros(classes, pixels)


@needs_library
@pytest.mark.parametrize(
    ("logits", "sums", "label", "score"),
    [
        ([room(3, 9), room(3, 8)], [room(3, 9)], 9, 9),
        ([room(3, 9), room(2, 9)], [room(3, 9)], 9, 9),
        ([room(9, 3).T], [room(3, 9)], 9, 9),
        ([room(3, 9).double()], [room(3, 9)], 9, 9),
        ([room(3, 9)], [room(3, 8)], 9, 9),
        ([room(3, 9)], [room(2, 9)], 9, 9),
        ([room(3, 9)], [room(3, 9).half()], 9, 9),
        ([room(3, 9)], [room(3, 9), room(3, 10)], 9, 9),
        ([room(3, 9)], [room(3, 9)], 8, 9),
        ([room(3, 9)], [room(3, 9)], 9, 8),
    ],
)
def test_tensors_that_the_library_would_leave_are_refused(
    logits: list[Tensor], sums: list[Tensor], label: int, score: int
) -> None:
    kept = dict(zip(("softmax", "logits"), sums, strict=False))
    highest = library.Highest("softmax", torch.zeros(label, dtype=torch.uint8), torch.zeros(score))
    ones = [1.0] * len(logits)
    with pytest.raises(ValueError, match="of other shapes"):
        library.add_members(logits, ones, ones, [*kept], kept, highest)
    fitting = {"softmax": room(3, 10)}
    highest = library.Highest("softmax", torch.zeros(9, dtype=torch.uint8), torch.zeros(9))
    library.add_members([room(3, 9)], [1.0], [1.0], ["softmax"], fitting, highest)
