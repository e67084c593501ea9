"""Drawn scenes: the same for a seed, plausible, and with masks that fit them."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from functools import cache

import numpy as np
import pytest
from hmsa_pipeline.datasets.decode.image_header import read_size
from hmsa_pipeline.datasets.decode.tensors import decode_image
from hmsa_pipeline.datasets.layout.find_images import list_images
from hmsa_pipeline.datasets.synthetic.canvas import NEAR, Camera, Canvas, noise
from hmsa_pipeline.datasets.synthetic.scene import Scene, draw_scene
from hmsa_pipeline.datasets.synthetic.style import read_looks, style_of
from hmsa_pipeline.datasets.synthetic.write_bravo import write_bravo
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES, IGNORE
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

ROAD, SIDEWALK, BUILDING, VEGETATION, SKY = (
    CLASS_NAMES.index(name) for name in ("road", "sidewalk", "building", "vegetation", "sky")
)
SEEDS = range(20)
STYLES = {name: style_of(name) for name in read_looks()["styles"]}


@cache
def scene(seed: int, style: str = "clear") -> Scene:
    return draw_scene(seed, 96, 192, style_of(style))


def colour(drawn: Scene, train_id: int) -> np.ndarray:
    return drawn.image[drawn.mask == train_id].mean(axis=0)


@pytest.mark.parametrize("style", STYLES)
def test_a_seed_gives_the_same_scene_whatever_was_drawn_before(style):
    first = draw_scene(3, 40, 72, style_of(style))
    np.random.seed(7)
    draw_scene(4, 30, 60)
    again = draw_scene(3, 40, 72, style_of(style))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)


def test_every_class_occurs_and_nothing_else_does():
    seen = {int(n) for seed in SEEDS for n in np.unique(scene(seed).mask)}
    assert seen == set(range(19))


def test_seeds_give_different_streets():
    assert len({scene(seed).mask.tobytes() for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_street_is_put_together_as_streets_are(seed):
    mask = scene(seed).mask
    rows = np.arange(mask.shape[0])[:, None]

    def height(train_id: int) -> float:
        return float((rows * (mask == train_id)).sum() / (mask == train_id).sum())

    assert height(SKY) < height(BUILDING) < height(SIDEWALK)
    assert height(BUILDING) < height(ROAD)
    lowest_sky = np.where(mask == SKY, rows, -1).max(axis=0)
    highest_road = np.where(mask == ROAD, rows, 999).min(axis=0)
    assert (lowest_sky < highest_road).all()
    assert 0.1 < (mask == ROAD).mean() < 0.65
    assert (mask[-1] == ROAD).any() and not (mask[0] == ROAD).any()


def test_colours_fit_the_mask():
    for seed in SEEDS:
        drawn = scene(seed)
        red, green, blue = colour(drawn, SKY)
        assert blue > red and blue > 120
        red, green, blue = colour(drawn, VEGETATION)
        assert green > blue + 15
        assert np.ptp(colour(drawn, ROAD)) < 40, "asphalt is grey"


def test_edges_of_the_mask_are_edges_of_the_picture():
    for seed in range(6):
        drawn = scene(seed)
        grey = drawn.image.astype(float).mean(axis=2)
        step = np.abs(np.diff(grey, axis=1))
        border = drawn.mask[:, 1:] != drawn.mask[:, :-1]
        assert step[border].mean() > 2.5 * step[~border].mean()
        # Shifted by a few pixels, the mask would fit far worse.
        assert step[border].mean() > 1.5 * step[np.roll(border, 4, axis=1)].mean()


@pytest.mark.parametrize("style", [name for name, s in STYLES.items() if s.unknown_object == "none" and not s.snow])
def test_weather_leaves_the_street_as_it_is(style):
    for seed in range(3):
        np.testing.assert_array_equal(scene(seed, style).mask, scene(seed).mask)
        assert not np.array_equal(scene(seed, style).image, scene(seed).image) or style == "clear"


def test_snow_on_roofs_is_all_that_it_adds():
    for seed in range(3):
        assert (scene(seed, "snow").mask == scene(seed).mask).mean() > 0.98


def test_the_weather_is_seen():
    for seed in range(3):
        clear = scene(seed)
        assert scene(seed, "night").image.mean() < 0.65 * clear.image.mean()
        assert colour(scene(seed, "snow"), SIDEWALK).mean() > colour(clear, SIDEWALK).mean() + 25
        assert scene(seed, "fog").image.std() < 0.8 * clear.image.std()
        assert np.ptp(colour(scene(seed, "rain"), SKY)) < np.ptp(colour(clear, SKY)), "its sky is grey"
        assert scene(seed, "flare").image.max() == 255


@pytest.mark.parametrize("style", ["animal", "obstacle"])
def test_a_stranger_stands_on_the_road_and_is_void(style):
    for seed in range(6):
        mask, plain = scene(seed, style).mask, scene(seed).mask
        void = mask == IGNORE
        assert 0.0005 < void.mean() < 0.15
        np.testing.assert_array_equal(mask[~void], plain[~void])
        row = np.nonzero(void.any(axis=1))[0].max()
        assert set(plain[row][void[row]]) <= {ROAD, SIDEWALK, CLASS_NAMES.index("car")} | set(range(11, 19))


def test_an_odd_road_is_still_a_road():
    for seed in range(4):
        odd, plain = (colour(scene(seed, style), ROAD) for style in ("out of context", "clear"))
        assert (
            np.abs(odd - plain).max() > 12 or scene(seed, "out of context").image[scene(seed).mask == ROAD].std() > 40
        )


def test_the_same_street_at_two_sizes():
    for seed in range(3):
        small, large = scene(seed).mask, draw_scene(seed, 192, 384).mask
        assert (large[1::2, 1::2] == small).mean() > 0.95


@given(
    height=st.integers(16, 70),
    width=st.integers(16, 90),
    seed=st.integers(0, 2**40),
    style=st.sampled_from(sorted(STYLES)),
)
@settings(deadline=None, max_examples=25)
def test_any_size_and_seed(height, width, seed, style):
    drawn = draw_scene(seed, height, width, style_of(style))
    assert drawn.image.shape == (height, width, 3) and drawn.image.dtype == np.uint8
    assert drawn.mask.shape == (height, width) and drawn.mask.dtype == np.uint8
    assert set(np.unique(drawn.mask)) <= {*range(19), IGNORE}
    assert drawn.image.std() > 1


def test_scenes_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="15 x 40 pixels is too small"):
        draw_scene(0, 15, 40)
    with pytest.raises(ValueError):
        draw_scene(-1, 40, 40)


def test_what_is_behind_the_camera_is_cut_off():
    canvas = Canvas(100, 200, 1, Camera(height=1.5, horizon=0.4, focal=1.0))
    assert canvas.project([(0, 1.5, 10), (0, 0, 10), (2, 1.5, 10)]) == [(100, 40), (100, 70), (140, 40)]
    floor = canvas.project([(-1, 0, -5), (1, 0, -5), (1, 0, 5), (-1, 0, 5)])
    assert max(row for _, row in floor) == pytest.approx(40 + 1.5 * 200 / NEAR)
    assert canvas.project([(0, 0, -1), (1, 0, -1), (1, 1, -1)]) == []
    canvas.solid([(0, 0, -1), (1, 0, -1), (1, 1, -1)], (255, 0, 0), "car")
    assert np.unique(np.asarray(canvas.ids)).tolist() == [SKY]


def test_noise_is_smooth_and_centred():
    field = noise(np.random.default_rng(0), 64, 128, 8)
    assert field.shape == (64, 128)
    assert abs(field.mean()) < 0.25 and np.abs(np.diff(field, axis=1)).max() < 0.25


NAMES = (
    r"bravo_ACDC/(fog|night|rain|snow)/test/(\w+)/\2_frame_\d{6}_rgb_anon\.png",
    r"bravo_SMIYC/(RoadAnomaly21|RoadObsticle21)/images/\w+\.jpg",
    r"bravo_synobjs/\w+/\d+\.png",
    r"bravo_(outofcontext|synflare|synrain)/(\w+)/\2_\d{6}_\d{6}_leftImg8bit\.png",
)


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_bravo_is_laid_out_as_the_challenge_is(tmp_path):
    written = write_bravo(tmp_path, seed=0)
    names = [path.relative_to(tmp_path).as_posix() for path in written]
    assert len(names) == 12 and names == sorted(names)
    assert all(any(re.fullmatch(pattern, name) for pattern in NAMES) for name in names)
    subsets = {name.partition("/")[0] for name in names}
    assert subsets == {f"bravo_{s}" for s in ("ACDC", "SMIYC", "synobjs", "outofcontext", "synflare", "synrain")}
    for subset in subsets:
        listed = [f"{subset}/{image.path}" for image in list_images(tmp_path / subset, "bravo")]
        assert listed == [name for name in names if name.startswith(f"{subset}/")]
    sizes = {read_size(path) for path in written}
    assert sizes == {(192, 384), (161, 301), (128, 256)}
    for path in written:
        assert tuple(decode_image(path).shape[1:]) == read_size(path)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == written


def test_bravo_comes_with_its_ground_truth(tmp_path):
    written = write_bravo(tmp_path / "a", size=(64, 128), each=2, truth=tmp_path / "gt.tar")
    assert len(written) == len(set(written)) == 24
    once = write_bravo(tmp_path / "b", size=(64, 128))
    for path in once:
        again = tmp_path / "a" / path.relative_to(tmp_path / "b")
        assert again.read_bytes() == path.read_bytes()
    with tarfile.open(tmp_path / "gt.tar") as tar:
        masks = {
            member.name: np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read())))
            for member in tar.getmembers()
        }
    assert list(masks) == sorted(masks) and len(masks) == 48
    for path in written:
        name = path.relative_to(tmp_path / "a").as_posix()
        base, pair = next(
            (name.removesuffix(ending), pair)
            for ending, pair in (
                ("_rgb_anon.png", ("_gt_labelTrainIds.png", "_gt_invIds.png")),
                ("_leftImg8bit.png", ("_gt_labelTrainIds.png", "_gt_invIds.png")),
                (".jpg", ("_labels_semantic_fake.png", "_labels_semantic.png")),
                (".png", ("_gt.png", "_mask.png")),
            )
            if name.endswith(ending)
        )
        ids, invalid = (masks[f"{base}{ending}"] for ending in pair)
        assert ids.shape == invalid.shape == read_size(path)
        foreign = "SMIYC" in name or "synobjs" in name
        assert invalid.any() == foreign, name
        assert set(np.unique(invalid)) <= ({0, 255} if "synobjs" in name else {0, 1})
        if "SMIYC" in name:
            assert not ids.any()
        else:
            assert len(set(np.unique(ids)) - {255}) >= 5
            # Behind what stands in the way lies something that has a class.
            assert (ids[invalid != 0] != 255).all()
    before = (tmp_path / "gt.tar").stat().st_mtime_ns
    write_bravo(tmp_path / "a", size=(64, 128), each=2, truth=tmp_path / "gt.tar")
    assert (tmp_path / "gt.tar").stat().st_mtime_ns == before


def test_bravo_has_the_same_bytes_for_the_same_seed(tmp_path):
    def digests(folder: str, seed: int) -> list[str]:
        written = write_bravo(tmp_path / folder, seed=seed, size=(48, 96))
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in written]

    first = digests("a", 5)
    assert first == digests("b", 5) == digests("a", 5)
    assert len(set(first)) == 12
    assert not set(first) & set(digests("c", 6))
