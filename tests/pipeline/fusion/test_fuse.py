"""Fusing: the reference's case, and every function against a slow version that nobody can get wrong."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import get_args

import numpy as np
import pytest
import torch
from hmsa_pipeline.pipeline.config.calibration_field import MaxLogits
from hmsa_pipeline.pipeline.config.manifest import Confidence
from hmsa_pipeline.pipeline.fusion.fuse import (
    CONFIDENCES,
    LABELS,
    STANDARDISED,
    UNWEIGHTED,
    Fused,
    fuse,
    fuse_several,
    quantise,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ... import golden

assert get_args(Confidence) == CONFIDENCES  # the manifest's names are those that can be computed
PAIRS = [(label, confidence) for label in LABELS for confidence in CONFIDENCES]


@pytest.mark.parametrize("image", range(4))
def test_the_defaults_equal_the_public_ensemble_script(image: int) -> None:
    case = golden.case("ensemble_cases")
    members = torch.from_numpy(case["logits"][:, image])
    fused = fuse(members, [1.0] * len(members))
    assert torch.equal(fused.label, torch.from_numpy(case["pred"][image]))
    assert np.abs(fused.confidence.numpy() - case["conf_float"][image]).max() < 1e-6
    found = quantise(fused.confidence)
    assert found.dtype == torch.uint16
    assert np.abs(found.numpy().astype(int) - case["conf"][image].astype(int)).max() <= 1


# ------------------------------------------------------------------ the slow version


def softmax(z: Sequence[float]) -> list[float]:
    top = max(z)
    powers = [math.exp(value - top) for value in z]
    return [power / math.fsum(powers) for power in powers]


def scores_of_pixel(members: Sequence[Sequence[float]], shares: Sequence[float]) -> dict[str, list[float]]:
    """For one pixel, what labels and confidences are made of; members' logits are divided already."""
    p = [softmax(z) for z in members]
    classes = range(len(members[0]))
    return {
        "mean-softmax": [math.fsum(w * q[c] for w, q in zip(shares, p, strict=True)) for c in classes],
        "mean-logit": [math.fsum(w * z[c] for w, z in zip(shares, members, strict=True)) for c in classes],
        "max-softmax": [max(q[c] for q in p) for c in classes],
        "min-softmax": [min(q[c] for q in p) for c in classes],
    }


def entropy_of(p: Sequence[float]) -> float:
    return -math.fsum(q * math.log(q) for q in p if q > 0)


def information_of_pixel(members: Sequence[Sequence[float]], shares: Sequence[float]) -> float:
    """Mutual information as the mean divergence of the members from their mean, of which no term is below 0."""
    p = [softmax(z) for z in members]
    mean = [math.fsum(w * q[c] for w, q in zip(shares, p, strict=True)) for c in range(len(p[0]))]
    # Divergence as the sum of q log(q / m) - q + m: each is at least 0.
    terms = (
        w * ((a * math.log(a / m) if a > 0 else 0.0) - a + m)
        for w, q in zip(shares, p, strict=True)
        for a, m in zip(q, mean, strict=True)
        if w > 0 and m > 0
    )
    return max(0.0, math.fsum(terms))


def standards_of(count: int, classes: int) -> list[MaxLogits]:
    """Mean and deviation of each class, of each member, no two alike."""
    found = []
    for number in range(count):
        draw = np.random.default_rng([number, classes])
        mean, deviation = draw.normal(5, 4, classes), draw.uniform(0.2, 5, classes)
        found.append(MaxLogits(mean=tuple(mean.tolist()), deviation=tuple(deviation.tolist())))
    return found


def standardised_of_pixel(
    members: Sequence[Sequence[float]], shares: Sequence[float], standards: Sequence[MaxLogits], label: int
) -> float:
    """Of logits as they are stored, whose class ``label`` is what the ensemble says."""
    score = math.fsum(
        share * (u[label] - one.mean[label]) / one.deviation[label]
        for u, share, one in zip(members, shares, standards, strict=True)
    )
    return 0.5 + 0.5 * score / (1 + abs(score))


def confidence_of_pixel(function: str, members: Sequence[Sequence[float]], shares: Sequence[float]) -> float:
    scores = scores_of_pixel(members, shares)
    mean, z = scores["mean-softmax"], scores["mean-logit"]
    said = [member.index(max(member)) for member in members]
    if function == "mean-logit":
        return max(softmax(z))
    if function == "margin":
        return sorted(mean)[-1] - sorted(mean)[-2]
    if function == "entropy":
        return 1 - entropy_of(mean) / math.log(len(mean))
    if function == "expected-entropy":
        expected = math.fsum(w * entropy_of(softmax(q)) for w, q in zip(shares, members, strict=True))
        return 1 - expected / math.log(len(mean))
    if function == "mutual-information":
        return 1 - math.sqrt(information_of_pixel(members, shares) / math.log(len(mean)))
    if function == "variation-ratio":
        return max(math.fsum(w for w, c in zip(shares, said, strict=True) if c == one) for one in said)
    if function == "disagreement":
        pairs = [(i, j) for i, j in combinations(range(len(said)), 2) if shares[i] * shares[j] > 0]
        all_pairs = math.fsum(shares[i] * shares[j] for i, j in pairs)
        alike = math.fsum(shares[i] * shares[j] for i, j in pairs if said[i] == said[j])
        return alike / all_pairs if pairs else 1.0
    if function == "max-logit":
        return 0.5 + 0.5 * max(z) / (1 + abs(max(z)))
    if function == "energy":
        energy = max(z) + math.log(math.fsum(math.exp(value - max(z)) for value in z))
        return 0.5 + 0.5 * energy / (1 + abs(energy))
    if function == "rba":
        return (math.fsum(math.tanh(value) for value in z) + len(z)) / (2 * len(z))
    return max(scores[function])


@st.composite
def ensembles(draw: st.DrawFn) -> tuple[list[Tensor], list[float], list[float]]:
    """Members' logits, weights and temperatures, as they may come from a store and a manifest."""
    count, classes = draw(st.integers(1, 7)), draw(st.integers(2, 19))
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
    size = draw(st.sampled_from([0.1, 3.0, 30.0, 300.0]))
    dtype = draw(st.sampled_from([torch.float16, torch.float32]))
    source = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    members = [(torch.randn(classes, *shape, generator=source) * size).to(dtype) for _ in range(count)]
    equal = draw(st.booleans())
    weight = st.sampled_from([0.0, 0.25, 1.0, 3.5])
    weights = [1.0] * count if equal else draw(st.lists(weight, min_size=count, max_size=count).filter(any))
    temperature = st.sampled_from([0.5, 1.0, 1.7, 4.0])
    return members, weights, draw(st.lists(temperature, min_size=count, max_size=count))


@settings(max_examples=150, deadline=None)
@given(ensemble=ensembles(), functions=st.sampled_from(PAIRS))
def test_every_function_equals_its_formula_pixel_by_pixel(
    ensemble: tuple[list[Tensor], list[float], list[float]], functions: tuple[str, str]
) -> None:
    members, weights, temperatures = ensemble
    label, confidence = functions
    if {label, confidence} & UNWEIGHTED:
        weights = [2.0] * len(weights)
    before = [member.clone() for member in members]
    standards = standards_of(len(members), len(members[0]))
    fused = fuse(iter(members), weights, temperatures, (), standards, label=label, confidence=confidence)
    assert all(torch.equal(member, old) for member, old in zip(members, before, strict=True)), "input is changed"

    shape = members[0].shape[1:]
    assert (fused.label.shape, fused.label.dtype) == (shape, torch.uint8)
    assert (fused.confidence.shape, fused.confidence.dtype) == (shape, torch.float32)
    shares = [weight / math.fsum(weights) for weight in weights]
    for pixel in np.ndindex(*shape):
        z = [
            [float(value) / temperature for value in member[(slice(None), *pixel)]]
            for member, temperature in zip(members, temperatures, strict=True)
        ]
        scores = scores_of_pixel(z, shares)
        found = int(fused.label[pixel])
        # Another class is right where the two best differ by less than single precision tells.
        best = max(scores[label])
        assert scores[label][found] >= best - 1e-5 * max(1.0, abs(best))
        value = float(fused.confidence[pixel])
        if confidence == STANDARDISED:
            raw = [[float(u) for u in member[(slice(None), *pixel)]] for member in members]
            wanted = standardised_of_pixel(raw, shares, standards, found)
        else:
            wanted = confidence_of_pixel(confidence, z, shares)
        assert value == pytest.approx(wanted, abs=2e-5)
        assert 0.0 <= value <= 1.0


@settings(max_examples=60, deadline=None)
@given(ensemble=ensembles(), functions=st.sampled_from(PAIRS), seed=st.integers(0, 2**31))
def test_neither_the_order_of_the_members_nor_a_factor_of_all_weights_matters(
    ensemble: tuple[list[Tensor], list[float], list[float]], functions: tuple[str, str], seed: int
) -> None:
    members, weights, temperatures = ensemble
    label, confidence = functions
    if {label, confidence} & UNWEIGHTED:
        weights = [1.0] * len(weights)
    order = np.random.default_rng(seed).permutation(len(members))
    standards = standards_of(len(members), len(members[0]))
    first = fuse(members, weights, temperatures, (), standards, label=label, confidence=confidence)
    second = fuse(
        [members[i] for i in order],
        [10 * weights[i] for i in order],
        [temperatures[i] for i in order],
        (),
        [standards[i] for i in order],
        label=label,
        confidence=confidence,
    )
    # Of two classes that are equal but for rounding either may be said, and has its own statistics.
    same = (first.label == second.label) if confidence == STANDARDISED else torch.ones_like(first.label).bool()
    assert torch.allclose(first.confidence[same], second.confidence[same], atol=2e-6)


# ------------------------------------------------------------------ what each function is for


def confidence_of(z: Tensor, function: str) -> Tensor:
    return fuse([z], [1.0], confidence=function).confidence


@pytest.mark.parametrize("function", ["energy", "rba"])
def test_energy_and_rba_rise_with_every_logit_and_do_not_saturate(function: str) -> None:
    """Even when written to sixteen bits; the sum of tanh by its nature within the range where tanh moves."""
    level = torch.linspace(-60.0, 60.0, 400) if function == "energy" else torch.linspace(-4.0, 4.0, 400)
    found = confidence_of(level.expand(19, -1), function)
    assert (found.diff() > 0).all()
    assert (quantise(found).to(torch.int32).diff() > 0).all()
    assert found.min() > 0.0
    assert found.max() < 1.0
    one = torch.zeros(19, 400)
    one[7] = level
    assert (confidence_of(one, function).diff() >= 0).all()


def test_the_largest_logits_that_a_store_holds_keep_every_confidence_within_its_range() -> None:
    top = float(np.finfo(np.float16).max)
    z = torch.full((19, 4), -top, dtype=torch.float16)
    z[:, 1] = top
    z[0, 2:] = top
    z[1, 3] = top
    for function in CONFIDENCES:
        found = fuse([z, z.flip(1)], [1.0, 1.0], [0.01, 1.0], (), standards_of(2, 19), confidence=function).confidence
        assert found.isfinite().all()
        assert ((found >= 0) & (found <= 1)).all()


def test_entropy_is_zero_for_no_idea_and_one_for_certainty() -> None:
    z = torch.zeros(19, 2)
    z[5, 1] = 1000.0
    assert confidence_of(z, "entropy").tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("function", CONFIDENCES)
def test_rounding_takes_no_confidence_out_of_its_range(function: str) -> None:
    for count in range(1, 8):
        for classes in range(2, 20):
            z = torch.zeros(classes, 2)
            z[0, 1] = 500.0
            standards = standards_of(count, classes)
            found = fuse([z] * count, [1.0] * count, None, (), standards, confidence=function).confidence
            assert ((found >= 0) & (found <= 1)).all()


def test_where_members_disagree_each_function_decides_by_its_own_rule() -> None:
    """One is sure of road, one of car; both can live with bus."""
    road, car, bus = 0, 1, 2
    members = [torch.tensor(p).log()[:, None] for p in ([0.60, 0.05, 0.35], [0.02, 0.62, 0.36])]
    labels = {name: int(fuse(members, [1.0, 1.0], label=name).label) for name in LABELS}
    assert labels == {"mean-softmax": bus, "max-softmax": car, "min-softmax": bus, "mean-logit": bus}
    assert int(fuse(members, [9.0, 1.0]).label) == road
    assert int(fuse(members, [9.0, 1.0], label="mean-logit").label) == road
    # The label may follow one rule and the confidence another.
    mixed = fuse(members, [1.0, 1.0], label="max-softmax", confidence="min-softmax")
    assert int(mixed.label) == car
    assert float(mixed.confidence) == pytest.approx(0.35)


def test_a_member_of_weight_zero_changes_nothing_and_a_temperature_flattens() -> None:
    source = torch.Generator().manual_seed(1)
    one, other = (torch.randn(19, 50, generator=source) * 5 for _ in range(2))
    alone, beside = fuse([one], [1.0]), fuse([other, one], [0.0, 2.0])
    assert torch.equal(alone.label, beside.label)
    assert torch.allclose(alone.confidence, beside.confidence)
    assert (fuse([one], [1.0], [2.0]).confidence < alone.confidence).all()


@pytest.mark.parametrize("functions", PAIRS)
def test_a_damaged_member_never_looks_confident(functions: tuple[str, str]) -> None:
    z = torch.randn(19, 3, generator=torch.Generator().manual_seed(0))
    bad = z.clone()
    bad[4, 1] = math.nan
    for members in ([bad, z], [z, bad]):
        standards = standards_of(2, 19)
        found = fuse(members, [1.0, 1.0], None, (), standards, label=functions[0], confidence=functions[1]).confidence
        assert found.isnan().tolist() == [False, True, False]


def test_one_members_standardised_max_logit_is_that_of_the_paper() -> None:
    """(L - mean) / deviation of the predicted class, whatever the temperature and a change that keeps the class."""
    z = 6 * torch.randn(19, 400, generator=torch.Generator().manual_seed(2)).half()
    (standard,) = standards_of(1, 19)
    highest, said = z.double().max(0)
    mean, deviation = (torch.tensor(one, dtype=torch.float64) for one in (standard.mean, standard.deviation))
    score = (highest - mean[said]) / deviation[said]
    for temperature, change in ((1.0, None), (3.0, None), (1.0, lambda u: u.mul_(0.2))):
        found = fuse([z], [1.0], [temperature], [change], [standard], confidence=STANDARDISED)
        assert torch.equal(found.label.long(), said)
        torch.testing.assert_close(
            found.confidence.double(), 0.5 + 0.5 * score / (1 + score.abs()), rtol=0, atol=1e-6
        )
    # A class whose logits are always high is no surer for that.
    low, high = (MaxLogits(mean=(m,) * 19, deviation=(1.0,) * 19) for m in (2.0, 9.0))
    sure = [fuse([z], [1.0], None, (), [one], confidence=STANDARDISED).confidence for one in (low, high)]
    assert (sure[0] > sure[1]).all()


def test_statistics_of_other_classes_or_members_are_refused() -> None:
    with pytest.raises(ValueError, match="are not of 19 classes"):
        fuse([Z], [1.0], None, (), standards_of(1, 1), confidence=STANDARDISED)
    with pytest.raises(ValueError, match="of every member"):
        fuse([Z, Z], [1.0, 1.0], None, (), [*standards_of(1, 19), None], confidence=STANDARDISED)
    with pytest.raises(ValueError, match="out of range"):
        fuse([Z, Z], [1.0, 1.0], None, (), standards_of(1, 19))


# ------------------------------------------------------------------ what members contradict one another in

CONTRADICTION = ("mutual-information", "variation-ratio", "disagreement")


@pytest.mark.parametrize("function", CONTRADICTION)
def test_one_member_contradicts_nobody_and_nor_do_copies_of_it(function: str) -> None:
    z = torch.randn(19, 500, generator=torch.Generator().manual_seed(3)).half()
    alone = fuse([z, -z], [1.0, 0.0], confidence=function).confidence
    assert torch.equal(alone, torch.ones(500))
    for weights in ([1.0] * 3, [0.3, 0.7, 2.0]):
        copies = fuse([z] * 3, weights, confidence=function).confidence
        assert (quantise(copies).to(torch.int32) >= 65535).all()


def test_members_that_are_each_sure_of_another_class_are_as_far_apart_as_can_be() -> None:
    members = [torch.full((4, 1), -100.0) for _ in range(4)]
    for number, z in enumerate(members):
        z[number] = 100.0
    found = fuse_several(members, [1.0] * 4, confidences=(*CONTRADICTION, "expected-entropy", "entropy"))
    # Of four classes, four sure camps have the highest mutual information there is, and no doubt of their own.
    assert {name: pytest.approx(float(sure), abs=1e-6) for name, sure in found.confidences.items()} == {
        "mutual-information": 0.0,
        "variation-ratio": 0.25,
        "disagreement": 0.0,
        "expected-entropy": 1.0,
        "entropy": 0.0,
    }
    one_more = fuse([members[0], members[0], members[1]], [1.0] * 3, confidence="disagreement").confidence
    assert float(one_more) == pytest.approx(1 / 3), "of three pairs one agrees"
    weighted = fuse([members[0], members[1], members[0]], [2.0, 1.0, 1.0], confidence="variation-ratio").confidence
    assert float(weighted) == pytest.approx(0.75)


@settings(max_examples=60, deadline=None)
@given(
    apart=st.sampled_from([1e-3, 1e-2, 0.1, 1.0]),
    size=st.sampled_from([1.0, 8.0, 20.0]),
    count=st.integers(2, 7),
    seed=st.integers(0, 2**31),
)
def test_members_that_nearly_agree_are_told_apart_on_all_sixteen_bits(
    apart: float, size: float, count: int, seed: int
) -> None:
    """A difference of two entropies in single precision would be noise here, or below 0."""
    source = torch.Generator().manual_seed(seed)
    common = size * torch.randn(19, 6, generator=source)
    members = [(common + apart * torch.randn(19, 6, generator=source)).half() for _ in range(count)]
    shares = [1 / count] * count
    found = fuse(members, shares, confidence="mutual-information").confidence
    for pixel in range(6):
        z = [[float(value) for value in member[:, pixel]] for member in members]
        information = information_of_pixel(z, shares)
        exact = 1 - math.sqrt(information / math.log(19))
        assert float(found[pixel]) == pytest.approx(exact, abs=0.5 / 65536)


@settings(max_examples=60, deadline=None)
@given(ensemble=ensembles(), label=st.sampled_from(LABELS), names=st.permutations(CONFIDENCES))
def test_several_confidences_at_once_have_the_bits_of_each_alone(
    ensemble: tuple[list[Tensor], list[float], list[float]], label: str, names: list[str]
) -> None:
    members, _, temperatures = ensemble
    equal = [1.0] * len(members)
    standards = standards_of(len(members), len(members[0]))
    together = fuse_several(iter(members), equal, temperatures, (), standards, label=label, confidences=names)
    assert list(together.confidences) == names
    for name, confidence in together.confidences.items():
        alone = fuse(members, equal, temperatures, (), standards, label=label, confidence=name)
        assert torch.equal(alone.confidence, confidence), name
        assert torch.equal(alone.label, together.label)


# ------------------------------------------------------------------ one member at a time, and what is refused


def test_members_are_taken_one_at_a_time_and_only_once() -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def members() -> Iterator[Tensor]:
        nonlocal most
        for number in range(7):
            member = torch.full((19, 8), float(number), dtype=torch.float16)
            alive.add(member)
            most = max(most, len(alive))
            yield member

    assert isinstance(fuse(members(), [1.0] * 7), Fused)
    # The one in work, and the next while it is being read.
    assert most <= 2


Z = torch.zeros(19, 4)


@pytest.mark.parametrize(
    ("members", "weights", "temperatures", "functions", "reason"),
    [
        ([Z], [1.0], None, {"label": "median"}, "unknown function"),
        ([Z], [1.0], None, {"label": "entropy"}, "unknown function"),
        ([Z], [1.0], None, {"confidence": "max-softmax"}, "unknown function: label 'mean-softmax', .*'max-softmax'"),
        ([Z], [-1.0], None, {}, "out of range"),
        ([Z, Z], [2.0, -1.0], None, {}, "out of range"),
        ([Z, Z], [0.0, 0.0], None, {}, "out of range"),
        ([Z], [math.nan], None, {}, "out of range"),
        ([Z], [math.inf], None, {}, "out of range"),
        ([Z], [1.0], [0.0], {}, "out of range"),
        ([Z], [1.0], [-1.0], {}, "out of range"),
        ([Z], [1.0], [math.nan], {}, "out of range"),
        ([Z], [1.0], [math.inf], {}, "out of range"),
        ([Z], [1.0], [1.0, 1.0], {}, "out of range"),
        ([], [], None, {}, "out of range"),
        ([Z, Z], [1.0], None, {}, "1 weights, but more members"),
        ([Z], [1.0, 1.0], None, {}, "2 weights, but only 1 members"),
        ([Z, Z[:, :3]], [1.0, 1.0], None, {}, r"members differ in shape: \(19, 4\) and \(19, 3\)"),
        ([Z, Z[:1]], [1.0, 1.0], None, {}, "members differ in shape"),
        ([Z, Z], [1.0, 2.0], None, {"label": "max-softmax"}, "weights have no meaning for max-softmax"),
        ([Z, Z], [1.0, 2.0], None, {"label": "min-softmax"}, "weights have no meaning"),
        ([Z, Z], [1.0, 2.0], None, {"confidence": "min-softmax"}, "weights have no meaning"),
        ([Z], [1.0], None, {"confidence": STANDARDISED}, "needs mean and deviation of the max logits of every"),
    ],
)
def test_what_has_no_answer_is_refused(
    members: list[Tensor],
    weights: list[float],
    temperatures: list[float] | None,
    functions: dict[str, str],
    reason: str,
) -> None:
    with pytest.raises(ValueError, match=reason):
        fuse(members, weights, temperatures, **functions)


def test_confidence_is_quantised_by_its_floor_and_capped() -> None:
    below_one = float(np.nextafter(np.float32(1), np.float32(0)))
    values = [0.0, 1 / 65536, 0.99999 / 65536, 0.5, 65535 / 65536, 65535.5 / 65536, below_one, 1.0]
    before = torch.tensor(values)
    found = quantise(before)
    assert found.dtype == torch.uint16
    assert found.tolist() == [0, 1, 0, 32768, 65535, 65535, 65535, 65535]
    assert before.tolist() == torch.tensor(values).tolist(), "input is changed"


@given(st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=50))
def test_quantising_is_monotone_and_within_a_step(values: list[float]) -> None:
    ordered = sorted(values)
    found = quantise(torch.tensor(ordered)).tolist()
    assert found == sorted(found)
    assert all(min(int(value * 65536), 65535) == level for value, level in zip(ordered, found, strict=True))


@pytest.mark.parametrize(
    ("count", "said"), [(2, "3 weights, but only 2 members"), (4, "3 weights, but more members")]
)
def test_members_and_weights_are_as_many(count: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fuse([torch.zeros(19, 3)] * count, [1.0] * 3)


def test_of_equal_classes_the_first_is_the_label() -> None:
    members = [torch.tensor([[1.0], [5.0], [5.0], [0.0], [5.0]])] * 2
    for label in LABELS:
        assert fuse(members, [1.0, 1.0], label=label).label.tolist() == [1]


@settings(deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 70),
    rows=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    pair=st.sampled_from(PAIRS),
)
def test_some_rows_are_fused_to_the_bits_of_all(
    height: int, width: int, rows: int, seed: int, pair: tuple[str, str]
) -> None:
    source = torch.Generator().manual_seed(seed)
    members = [(4 * torch.randn(19, height, width, generator=source)).half() for _ in range(3)]
    functions = {"label": pair[0], "confidence": pair[1]}
    standards = standards_of(3, 19)
    whole = fuse(members, [1.0] * 3, None, (), standards, **functions)
    for y in range(0, height, rows):
        part = fuse([z[:, y : y + rows] for z in members], [1.0] * 3, None, (), standards, **functions)
        assert torch.equal(part.label, whole.label[y : y + rows])
        assert torch.equal(part.confidence, whole.confidence[y : y + rows])
