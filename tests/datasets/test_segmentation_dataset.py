"""Samples from files: what is in them, and that chance is in the draw alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.datasets.labels.label_reader import LabelReader
from hmsa_pipeline.datasets.layout.image_mask_pairs import ImageMaskPair
from hmsa_pipeline.datasets.segmentation_dataset import MixedDataset, Sample, SampleRequest, SegmentationDataset
from hmsa_pipeline.datasets.transforms import EvalTransform, TrainTransform
from hmsa_pipeline.errors import DatasetError
from PIL import Image
from torch.utils.data import DataLoader

SIZES = [(40, 64), (40, 64), (30, 90)]


@pytest.fixture
def files(tmp_path) -> tuple[Path, list[ImageMaskPair]]:
    draw = np.random.default_rng(0)
    pairs = []
    for number, size in enumerate(SIZES):
        pair = ImageMaskPair(f"{number}.png", f"{number}_ids.png", "train_ids")
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / pair.image)
        Image.fromarray(draw.integers(0, 19, size, dtype=np.uint8)).save(tmp_path / pair.mask)
        pairs.append(pair)
    return tmp_path, pairs


def dataset(files, transform) -> SegmentationDataset:
    root, pairs = files
    return SegmentationDataset(root, pairs, LabelReader(root, dataset_spec("bdd100k")), transform)


def same(one: Sample, other: Sample) -> bool:
    return torch.equal(one.image, other.image) and torch.equal(one.labels, other.labels) and one.path == other.path


def test_a_sample_is_what_the_files_hold(files):
    root, pairs = files
    frames = dataset(files, EvalTransform())
    assert len(frames) == 3
    for number, size in enumerate(SIZES):
        sample = frames[number]
        assert sample.image.shape == (3, *size) and sample.path == pairs[number].image
        np.testing.assert_array_equal(
            sample.image.permute(1, 2, 0), np.asarray(Image.open(root / pairs[number].image))
        )
        np.testing.assert_array_equal(sample.labels, np.asarray(Image.open(root / pairs[number].mask)))
        assert sample.image.dtype == sample.labels.dtype == torch.uint8
    with pytest.raises(IndexError):
        frames[3]


def test_the_draw_decides_and_nothing_else_does(files):
    crops = dataset(files, TrainTransform((20, 30), gaussian_blur=True, rand_augment=(2, 15)))
    draws = [
        SampleRequest(1, 7),
        SampleRequest(1, 8),
        SampleRequest(1, 7, (63, 39)),
        SampleRequest(2, 7),
        SampleRequest(0, 2**64 - 1),
    ]
    first = [crops[draw] for draw in draws]
    torch.manual_seed(99)
    assert all(same(a, crops[draw]) for a, draw in zip(first, draws, strict=True))
    assert not same(first[0], first[1]) and not same(first[0], first[2]) and not same(first[0], first[3])
    assert same(crops[1], crops[SampleRequest(1, 0, None)])


def test_the_generators_outside_are_left_as_they_were(files, monkeypatch):
    def fail(*_: object) -> None:
        raise AssertionError("a GPU's generator was touched")

    crops = dataset(files, TrainTransform((20, 30)))
    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, fail)
    torch.default_generator.manual_seed(5)
    expected = torch.rand(3)
    torch.default_generator.manual_seed(5)
    crops[SampleRequest(0, 1, (3, 3))]
    assert torch.equal(torch.rand(3), expected)


def test_worker_processes_give_the_same_batches(files):
    crops = dataset(files, TrainTransform((20, 30)))
    draws = [SampleRequest(number % 3, number, (number, 2 * number)) for number in range(12)]
    here = list(DataLoader(crops, batch_size=4, sampler=draws))
    there = list(DataLoader(crops, batch_size=4, sampler=draws, num_workers=2))
    assert len(here) == 3
    for one, other in zip(here, there, strict=True):
        assert isinstance(one, Sample) and one.image.shape == (4, 3, 20, 30) and one.labels.shape == (4, 20, 30)
        assert torch.equal(one.image, other.image) and torch.equal(one.labels, other.labels)
        assert one.path == other.path


def test_a_mask_of_another_size_is_refused(files):
    root, pairs = files
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / pairs[1].mask)
    with pytest.raises(DatasetError, match=r"1_ids\.png.*1\.png"):
        dataset(files, EvalTransform())[1]


def test_several_datasets_are_numbered_through(files):
    crops = dataset(files, TrainTransform((20, 30)))
    other = SegmentationDataset(crops.root, crops.pairs[1:], crops.reader, crops.transform)
    mixed = MixedDataset([crops, other])
    assert len(mixed) == 5
    for number, (part, place) in enumerate([(crops, 0), (crops, 1), (crops, 2), (other, 0), (other, 1)]):
        assert same(mixed[SampleRequest(number, 7, (3, 3))], part[SampleRequest(place, 7, (3, 3))])
        assert same(mixed[number], part[place])
        assert mixed.image_path(number) == part.image_path(place) == crops.root / part.pairs[place].image
    for number in (5, -1):
        with pytest.raises(IndexError):
            mixed[number]
