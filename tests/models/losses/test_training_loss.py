from __future__ import annotations

import pytest
import torch
from hmsa_pipeline.datasets import taxonomy
from hmsa_pipeline.models.hmsa import TrainingOutput
from hmsa_pipeline.models.losses.batch_labels import IGNORE, BatchTotals
from hmsa_pipeline.models.losses.cross_entropy import cross_entropy, image_weighted_cross_entropy
from hmsa_pipeline.models.losses.rmi import rmi_loss
from hmsa_pipeline.models.losses.training_loss import CRITERIA, training_loss

LABELS = torch.randint(4, (2, 16, 24), generator=torch.Generator().manual_seed(9))


def output(scales: tuple[float, ...] = (1.0, 0.5)) -> TrainingOutput:
    generator = torch.Generator().manual_seed(0)
    main, auxiliary, *others = (torch.randn(2, 4, 16, 24, generator=generator) for _ in range(2 + len(scales)))
    return TrainingOutput(main, auxiliary, dict(zip(scales, others, strict=True)))


def test_ignored_label_is_that_of_the_datasets() -> None:
    assert IGNORE == taxonomy.IGNORE


def test_default_is_the_published_recipe() -> None:
    given = output()
    terms = training_loss(given, LABELS)
    main = rmi_loss(given.scores, LABELS)
    auxiliary = rmi_loss(given.auxiliary, LABELS, region=False)
    scales = {scale: rmi_loss(scores, LABELS, region=False) for scale, scores in given.scales.items()}
    assert (terms.main, terms.auxiliary, terms.scales) == (main, auxiliary, scales)
    torch.testing.assert_close(terms.total, main + 0.4 * auxiliary + 0.05 * (scales[1.0] + scales[0.5]))


@pytest.mark.parametrize(
    ("criterion", "loss_of"),
    [("cross_entropy", cross_entropy), ("image_weighted", image_weighted_cross_entropy)],
)
def test_weights_and_criterion_are_chosen(criterion: str, loss_of: object) -> None:
    assert callable(loss_of)
    given = output()
    terms = training_loss(given, LABELS, criterion, auxiliary_weight=2.0, scale_weight=3.0)
    expected = loss_of(given.scores, LABELS) + 2 * loss_of(given.auxiliary, LABELS)
    expected += 3 * sum(loss_of(scores, LABELS) for scores in given.scales.values())
    torch.testing.assert_close(terms.total, expected)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scales_without_weight_are_left_out(criterion: str) -> None:
    given = output()
    terms = training_loss(given, LABELS, criterion, scale_weight=0.0)
    assert terms.scales == {}
    torch.testing.assert_close(terms.total, terms.main + 0.4 * terms.auxiliary)
    assert torch.equal(training_loss(output(scales=()), LABELS, criterion).total, terms.total)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_batch_without_labels_gives_numbers(criterion: str) -> None:
    assert training_loss(output(), torch.full_like(LABELS, 255), criterion).total.isfinite()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_parts_of_a_batch_add_up_to_it_however_many_of_their_pixels_are_labelled(criterion: str) -> None:
    labels = LABELS.clone()
    labels[0, :, 5:] = IGNORE
    labels[1, 0] = IGNORE
    given = output()
    scores = [given.scores, given.auxiliary, *given.scales.values()]
    for tensor in scores:
        tensor.requires_grad_()
    whole = training_loss(given, labels, criterion).total
    expected = torch.autograd.grad(whole, scores)

    sizes = BatchTotals(images=2, pixels=int((labels != IGNORE).sum()))
    parts = [
        training_loss(
            TrainingOutput(given.scores[i], given.auxiliary[i], {s: x[i] for s, x in given.scales.items()}),
            labels[i],
            criterion,
            totals=sizes,
        ).total
        for i in (slice(0, 1), slice(1, 2))
    ]
    torch.testing.assert_close(sum(parts, start=torch.zeros(())), whole)
    torch.testing.assert_close(torch.autograd.grad(sum(parts, start=torch.zeros(())), scores), expected)


def test_unknown_criterion_is_an_error() -> None:
    with pytest.raises(ValueError, match="no criterion 'dice': rmi, cross_entropy, image_weighted"):
        training_loss(output(), LABELS, "dice")
