"""Centroids and epochs of the reference exactly; indexes of small datasets from files and from the cache."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hmsa_pipeline.datasets.class_uniform import CentroidIndex, EpochSource, build_index, plan_epoch, tile_centroids
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.datasets.labels.label_reader import LabelReader
from hmsa_pipeline.datasets.layout.image_mask_pairs import ImageMaskPair
from hmsa_pipeline.errors import DatasetError, DiskError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from .. import golden

REFERENCE = golden.case("class_uniform")
CITYSCAPES = dataset_spec("cityscapes")


def plain_centroids(labels: np.ndarray, tile: int, num_classes: int) -> np.ndarray:
    """One boolean mask per class and tile."""
    height, width = (min(tile, side) for side in labels.shape)
    found = []
    for label in range(num_classes):
        for top in range(0, labels.shape[0] - height + 1, height):
            for left in range(0, labels.shape[1] - width + 1, width):
                y, x = np.nonzero(labels[top : top + height, left : left + width] == label)
                if len(y):
                    found.append((label, left + int(x.mean()), top + int(y.mean())))
    return np.array(found, dtype=np.int32).reshape(-1, 3)


def test_centroids_are_those_of_the_reference():
    found = [tile_centroids(mask, 64) for mask in REFERENCE["masks_trainIds"]]
    centroids = np.concatenate([np.insert(part, 0, image, axis=1) for image, part in enumerate(found)])
    np.testing.assert_array_equal(centroids, REFERENCE["centroids"])
    assert centroids.dtype == np.int32 and len(centroids) == 522


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    tile=st.integers(1, 45),
    kind=st.sampled_from(["noise", "areas", "one class", "nothing"]),
    num_classes=st.sampled_from([1, 5, 19]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=300)
def test_centroids_are_those_of_boolean_masks(size, tile, kind, num_classes, seed):
    draw = np.random.default_rng(seed)
    values = np.array([*range(20), 254, 255], dtype=np.uint8)
    match kind:
        case "noise":
            labels = draw.choice(values, size)
        case "areas":
            labels = draw.choice(values, (8, 8)).repeat(5, axis=0).repeat(5, axis=1)[: size[0], : size[1]]
        case "one class":
            labels = np.zeros(size, dtype=np.uint8)
        case _:
            labels = np.full(size, 255, dtype=np.uint8)
    found = tile_centroids(labels, tile, num_classes)
    np.testing.assert_array_equal(found, plain_centroids(labels, tile, num_classes))
    assert found.dtype == np.int32


def test_a_mask_in_any_memory_order_will_do():
    labels = REFERENCE["masks_trainIds"][0]
    for other in (np.asfortranarray(labels), np.pad(labels, 3)[3:-3, 3:-3]):
        np.testing.assert_array_equal(tile_centroids(other, 64), tile_centroids(labels, 64))


def test_sums_over_the_largest_areas_are_exact():
    found = tile_centroids(np.zeros((3000, 9000), dtype=np.uint8), 9000)
    np.testing.assert_array_equal(found, [[0, 4499, 1499]])


@pytest.mark.parametrize(
    ("labels", "tile", "classes", "message"),
    [
        (np.zeros((2, 3), np.int64), 1, 19, "uint8"),
        (np.zeros((1, 2, 3), np.uint8), 1, 19, r"\(H, W\)"),
        (np.zeros((0, 3), np.uint8), 1, 19, r"\(0, 3\)"),
        (np.zeros((2, 3), np.uint8), 0, 19, "tiles of 0"),
        (np.zeros((2, 3), np.uint8), 1, 0, "0 classes"),
    ],
)
def test_masks_and_tiles_that_make_no_sense_are_refused(labels, tile, classes, message):
    with pytest.raises(ValueError, match=message):
        tile_centroids(labels, tile, classes)


def write_pairs(root: Path, masks: list[np.ndarray]) -> list[ImageMaskPair]:
    """Blank images and these masks, in files."""
    pairs = []
    for number, mask in enumerate(masks):
        pair = ImageMaskPair(f"images/{number:03d}.png", f"masks/{number:03d}.png", "train_ids")
        for path, pixels in ((pair.image, np.zeros((*mask.shape, 3), np.uint8)), (pair.mask, mask)):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / path)
        pairs.append(pair)
    return pairs


def reader_of(root: Path, **changes: object) -> LabelReader:
    """Of a dataset with train ids."""
    return LabelReader(root, dataclasses.replace(dataset_spec("bdd100k"), **changes))


def as_ids(root: Path, pairs: list[ImageMaskPair]) -> list[ImageMaskPair]:
    """The same masks with Cityscapes' raw ids."""
    for pair, mask in zip(pairs, REFERENCE["masks_labelIds"], strict=True):
        Image.fromarray(mask).save(root / pair.mask)
    return [dataclasses.replace(pair, encoding="ids") for pair in pairs]


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "data"
    return root, write_pairs(root, list(REFERENCE["masks_trainIds"]))


def test_an_index_is_that_of_the_reference(dataset):
    root, pairs = dataset
    calls = []
    index = build_index(reader_of(root), pairs, 64, advance=lambda: calls.append(1))
    np.testing.assert_array_equal(index.centroids, REFERENCE["centroids"])
    assert index.centroids.dtype == np.int32 and len(calls) == 3
    index = build_index(LabelReader(root, CITYSCAPES), as_ids(root, pairs), 64)
    np.testing.assert_array_equal(index.centroids, REFERENCE["centroids"])


def test_several_processes_give_the_same_index(tmp_path):
    masks = [np.roll(REFERENCE["masks_trainIds"][n % 3][:48, :80], n, axis=1) for n in range(50)]
    pairs = write_pairs(tmp_path, masks)
    calls = []
    alone = build_index(reader_of(tmp_path), pairs, 32, processes=1)
    together = build_index(reader_of(tmp_path), pairs, 32, processes=2, advance=lambda: calls.append(1))
    np.testing.assert_array_equal(alone.centroids, together.centroids)
    assert len(calls) == 50
    (tmp_path / pairs[30].mask).write_bytes(b"not a mask")
    with pytest.raises(DatasetError, match=r"030\.png"):
        build_index(reader_of(tmp_path), pairs, 32, processes=2)


def test_workers_do_not_load_torch():
    code = (
        "import sys, hmsa_pipeline.datasets.class_uniform, hmsa_pipeline.datasets.labels.label_reader;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0


def test_the_cache_is_read_and_masks_are_not(dataset, tmp_path):
    root, pairs = dataset
    cache = tmp_path / "cache"
    first = build_index(reader_of(root), pairs, 64, cache=cache)
    (file,) = cache.iterdir()
    assert file.name.startswith("class_uniform-") and file.suffix == ".npz"
    for pair in pairs:  # the same number of bytes, and no masks any more
        path = root / pair.mask
        path.write_bytes(bytes(path.stat().st_size))
    calls = []
    again = build_index(reader_of(root), pairs, 64, cache=cache, advance=lambda: calls.append(1))
    np.testing.assert_array_equal(first.centroids, again.centroids)
    assert again.centroids.dtype == np.int32 and not calls


def test_the_cache_knows_what_it_was_made_of(dataset, tmp_path):
    root, pairs = dataset
    cache = tmp_path / "cache"
    reader = LabelReader(root, CITYSCAPES)
    pairs = as_ids(root, pairs)
    changed = dict(CITYSCAPES.labels or {}) | {7: (1, "road")}

    def files() -> int:
        return sum(1 for _ in cache.iterdir())

    build_index(reader, pairs, 64, cache=cache)
    build_index(LabelReader(root, CITYSCAPES, tmp_path), list(pairs), 64, cache=cache)
    assert files() == 1
    build_index(reader, pairs, 32, cache=cache)
    build_index(reader, pairs[::-1], 64, cache=cache)
    build_index(reader, pairs[:2], 64, cache=cache)
    build_index(LabelReader(root, dataclasses.replace(CITYSCAPES, labels=changed)), pairs, 64, cache=cache)
    assert files() == 5
    Image.fromarray(np.zeros((256, 512), np.uint8)).save(root / pairs[1].mask)
    assert len(build_index(reader, pairs, 64, cache=cache).centroids) < 522
    assert files() == 6


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "other array", "other shape", "other images"])
def test_a_damaged_cache_is_built_anew(dataset, tmp_path, damage):
    root, pairs = dataset
    cache = tmp_path / "cache"
    build_index(reader_of(root), pairs, 64, cache=cache)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    match damage:
        case "empty":
            file.write_bytes(b"")
        case "cut":
            file.write_bytes(whole[: len(whole) // 2])
        case "flipped":
            file.write_bytes(whole[:500] + bytes([whole[500] ^ 4]) + whole[501:])
        case "text":
            file.write_text("what is this?")
        case "other array":
            np.savez(file, other=REFERENCE["centroids"])
        case "other shape":
            np.savez(file, centroids=REFERENCE["centroids"][:, :3])
        case _:
            np.savez(file, centroids=REFERENCE["centroids"] + np.array([3, 0, 0, 0], np.int32))
    index = build_index(reader_of(root), pairs, 64, cache=cache)
    np.testing.assert_array_equal(index.centroids, REFERENCE["centroids"])
    with np.load(file) as mended:
        np.testing.assert_array_equal(mended["centroids"], REFERENCE["centroids"])


def test_masks_of_another_size_count_in_their_images_frame(tmp_path):
    (pair,) = write_pairs(tmp_path, [REFERENCE["masks_trainIds"][0]])
    Image.fromarray(np.zeros((128, 256, 3), np.uint8)).save(tmp_path / pair.image)
    centroids = build_index(reader_of(tmp_path, resize_masks=True), [pair], 64).centroids
    assert centroids[:, 2].max() < 256 and centroids[:, 3].max() < 128
    with pytest.raises(DatasetError, match="do not belong together"):
        build_index(reader_of(tmp_path), [pair], 64)


def test_missing_files_and_a_cache_that_cannot_be_are_named(dataset, tmp_path):
    root, pairs = dataset
    occupied = tmp_path / "file"
    occupied.touch()
    with pytest.raises(DiskError, match=r"file.class_uniform-.*cannot be written"):
        build_index(reader_of(root), pairs, 64, cache=occupied)
    (root / pairs[2].mask).unlink()
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(DatasetError, match=r"002\.png"):
            build_index(reader_of(root), pairs, 64, cache=cache)
    with pytest.raises(ValueError, match="tiles of 0"):
        build_index(reader_of(root), pairs, 0)


def test_no_pairs_are_an_empty_index(tmp_path):
    assert build_index(reader_of(tmp_path), [], 64, cache=tmp_path).centroids.shape == (0, 4)


# ---- epochs

INDEX = CentroidIndex(REFERENCE["centroids"])


def test_an_epoch_is_that_of_the_reference():
    plan = plan_epoch(200, [EpochSource(200, INDEX)], 0.5, np.random.RandomState(0))
    assert plan.shape == (200, 4) and plan.dtype == np.int64
    random = plan[plan[:, 1] == -1]
    np.testing.assert_array_equal(random[:, 0], REFERENCE["epoch_random_image_indices"])
    assert (random[:, 1:] == -1).all()
    picks = REFERENCE["epoch_class_picks"]
    for label in range(19):
        of_class = INDEX.centroids[INDEX.centroids[:, 1] == label]
        expected = of_class[picks[picks[:, 0] == label][:, 1]]
        np.testing.assert_array_equal(plan[plan[:, 1] == label][: len(expected)], expected)
    # Nothing shows class 12: the first five of the others show one more each.
    counts = np.bincount(plan[plan[:, 1] >= 0, 1], minlength=19)
    assert counts.tolist() == [6, 6, 6, 6, 6, 5, 5, 5, 5, 5, 5, 5, 0, 5, 5, 5, 5, 5, 5]


@given(
    num_images=st.integers(3, 400),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
    absent=st.sets(st.integers(0, 18)),
)
@settings(deadline=None, max_examples=200)
def test_every_epoch_has_its_length_and_shares_evenly(num_images, share, seed, absent):
    centroids = INDEX.centroids[~np.isin(INDEX.centroids[:, 1], list(absent))]
    plan = plan_epoch(
        num_images, [EpochSource(num_images, CentroidIndex(centroids))], share, np.random.RandomState(seed)
    )
    assert plan.shape == (num_images, 4)
    uniform = plan[plan[:, 1] >= 0]
    present = set(range(19)) - absent - {12}
    assert len(uniform) == (int(num_images * share / 19) * 19 if present else 0)
    counts = np.bincount(uniform[:, 1], minlength=19)[sorted(present)]
    assert not len(counts) or counts.max() - counts.min() <= 1
    known = {tuple(row) for row in centroids.tolist()}
    assert all(tuple(row) in known for row in uniform.tolist())
    for label in present:  # none twice before all came once
        of_class = uniform[uniform[:, 1] == label]
        _, times = np.unique(of_class, axis=0, return_counts=True)
        if len(of_class):
            everything = (centroids[:, 1] == label).sum()
            assert times.max() == -(-len(of_class) // everything)
            assert len(times) == min(len(of_class), everything)
    images = plan[plan[:, 1] < 0, 0]
    assert len(set(images.tolist())) == len(images) and set(images.tolist()) <= set(range(num_images))


def test_the_same_seed_plans_the_same_epoch():
    plans = [plan_epoch(200, [EpochSource(200, INDEX)], 0.5, np.random.RandomState(seed)) for seed in (4, 4, 5)]
    np.testing.assert_array_equal(plans[0], plans[1])
    assert (plans[0] != plans[2]).any()


@pytest.mark.parametrize(
    ("index", "share"), [(None, 0.5), (INDEX, 0.0), (CentroidIndex(np.empty((0, 4), np.int32)), 0.5)]
)
def test_without_centroids_an_epoch_is_every_image_once(index, share):
    plan = plan_epoch(50, [EpochSource(50, index)], share, np.random.RandomState(0))
    assert sorted(plan[:, 0].tolist()) == list(range(50)) and (plan[:, 1:] == -1).all()


def test_epochs_that_make_no_sense_are_refused():
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match="share"):
            plan_epoch(200, [EpochSource(200, INDEX)], share, np.random.RandomState(0))
    with pytest.raises(ValueError, match="image 2 of 2"):
        plan_epoch(2, [EpochSource(2, INDEX)], 0.5, np.random.RandomState(0))


def places(*rows):
    return CentroidIndex(np.array(rows, np.int32).reshape(-1, 4))


def test_images_at_random_are_divided_by_shares_and_numbered_through():
    sources = [EpochSource(3, share=0.3), EpochSource(10, share=0.5), EpochSource(4, share=0.2)]
    plan = plan_epoch(11, sources, 0.5, np.random.RandomState(0))
    assert plan.shape == (11, 4) and (plan[:, 1:] == -1).all()
    # Of 3.3, 5.5 and 2.2 the largest remainder gets the one that is left.
    images = np.bincount(plan[:, 0], minlength=17)
    assert images[:3].tolist() == [1, 1, 1]
    assert images[3:13].sum() == 6 and images[3:13].max() == 1
    assert images[13:].sum() == 2 and images[13:].max() == 1


def test_a_small_source_is_gone_through_again_and_again():
    plan = plan_epoch(10, [EpochSource(4, share=0), EpochSource(2, share=1)], 0.0, np.random.RandomState(3))
    assert np.bincount(plan[:, 0]).tolist() == [0, 0, 0, 0, 5, 5]


def test_a_source_that_takes_no_part_keeps_its_numbers_free():
    first, middle, last = (EpochSource(2, places((1, 5, x, x))) for x in (1, 2, 3))
    for sources, expected in (
        ([first, middle, last], {(1, 5, 1, 1), (3, 5, 2, 2), (5, 5, 3, 3)}),
        ([first, EpochSource(2, share=0.0), last], {(1, 5, 1, 1), (5, 5, 3, 3)}),
        ([first, EpochSource(2, places((0, 5, 7, 7)), is_active=False), last], {(1, 5, 1, 1), (5, 5, 3, 3)}),
    ):
        plan = plan_epoch(38, sources, 1.0, np.random.RandomState(0))
        assert set(map(tuple, plan.tolist())) == expected


def test_a_boosted_source_is_looked_through_for_its_classes_alone_and_more_often():
    first = EpochSource(2, places((0, 5, 1, 1), (1, 6, 2, 2)))
    boosted = EpochSource(1, places((0, 5, 3, 3), (0, 6, 4, 4), (0, 7, 5, 5)), 0.0, {5: 3, 7: 1})
    plan = plan_epoch(57, [first, boosted], 1.0, np.random.RandomState(0))
    found = Counter(map(tuple, plan.tolist()))
    # Three classes with 19 each: class 5 in the ratio of one to three.
    assert found.keys() == {(0, 5, 1, 1), (2, 5, 3, 3), (1, 6, 2, 2), (2, 7, 5, 5)}
    assert found[0, 5, 1, 1] + found[2, 5, 3, 3] == found[1, 6, 2, 2] == found[2, 7, 5, 5] == 19
    assert 14 <= found[2, 5, 3, 3] <= 15


def test_sources_without_a_share_are_refused():
    with pytest.raises(ValueError, match="no source has a share"):
        plan_epoch(5, [EpochSource(3, share=0.0), EpochSource(1, is_active=False)], 0.0, np.random.RandomState(0))
