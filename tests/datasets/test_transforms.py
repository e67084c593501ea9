"""Where the pixels of a crop come from, told by frames whose pixels say where they are."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hmsa_pipeline.datasets.decode.tensors import normalise
from hmsa_pipeline.datasets.transforms import EvalTransform, TrainTransform, jitter_colours, rand_augment
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

STEPS = 4  # grey levels from one pixel to the next
seeds = st.integers(0, 2**32 - 1)


def ramps(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image whose red is x and whose green is y, and labels that are y, and x."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([x * STEPS, y * STEPS, 0 * x]).to(torch.uint8)
    return image, y.to(torch.uint8), x.to(torch.uint8)


def noise(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
    return image, torch.randint(19, (height, width), generator=generator, dtype=torch.uint8)


def run(transform, image, labels, seed=0, centroid=None):
    torch.manual_seed(seed)
    return transform(image, labels, centroid)


def inside(mask: Tensor) -> Tensor:
    """``mask`` without its outermost rows and columns, on all four sides."""
    padded = torch.nn.functional.pad(mask, (1, 1, 1, 1))
    return (
        mask & padded[:-2, 1:-1].bool() & padded[2:, 1:-1].bool() & padded[1:-1, :-2].bool() & padded[1:-1, 2:].bool()
    )


@given(
    frame=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    crop=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    scale=st.floats(0.3, 4),
    flip=st.booleans(),
    seed=seeds,
)
@settings(deadline=None, max_examples=300)
def test_labels_lie_within_half_a_pixel_of_the_image(frame, crop, scale, flip, seed):
    image, rows, columns = ramps(*frame)
    transform = TrainTransform(crop, scale=(scale, scale), flip=float(flip), color_jitter=0)
    out, y = run(transform, image, rows, seed)
    _, x = run(transform, image, columns, seed)
    # At the borders of what is shown, smoothing sees one side alone.
    seen = inside(y != 255)
    tolerance = 0.5 + 0.6 / STEPS
    assert ((out[0] / STEPS - x).abs()[seen] <= tolerance).all()
    assert ((out[1] / STEPS - y).abs()[seen] <= tolerance).all()


@pytest.mark.parametrize("scale", [0.5, 0.61, 0.75, 0.99, 1, 1.01, 1.37, 1.5, 2, 3.3])
@pytest.mark.parametrize("long_edge", [None, 150])
def test_colours_that_name_their_label_still_do(scale, long_edge):
    labels = (torch.arange(72)[:, None] // 7 + torch.arange(100)[None] // 9).remainder(2).to(torch.uint8)
    image = (labels * 255).expand(3, -1, -1)
    transform = TrainTransform((48, 64), scale=(scale, scale), long_edge=long_edge, color_jitter=0)
    for seed in range(20):
        out, out_labels = run(transform, image, labels, seed)
        assert (out_labels[(out[0] < 64)] == 0).all() and (out_labels[out[0] > 191] == 1).all()


@st.composite
def frames_with_centroids(draw):
    height, width = draw(st.integers(1, 250)), draw(st.integers(1, 250))
    place = [draw(st.sampled_from([0, side - 1]) | st.integers(0, side - 1)) for side in (width, height)]
    return (height, width), tuple(place)


@given(
    frame_centroid=frames_with_centroids(),
    crop=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    scale=st.floats(0.2, 5),
    long_edge=st.none() | st.integers(1, 300),
    flip=st.booleans(),
    seed=seeds,
)
@settings(deadline=None, max_examples=500)
def test_a_centroid_is_always_in_the_crop(frame_centroid, crop, scale, long_edge, flip, seed):
    frame, (x, y) = frame_centroid
    image, rows, columns = ramps(*frame)
    transform = TrainTransform(crop, scale=(scale, scale), long_edge=long_edge, flip=float(flip), color_jitter=0)
    out, out_y = run(transform, image, rows, seed, (x, y))
    _, out_x = run(transform, image, columns, seed, (x, y))
    assert out.shape == (3, *crop) and out_y.shape == crop and out.dtype == out_y.dtype == torch.uint8
    assert out.is_contiguous() and out_y.is_contiguous()
    # From the middle of a pixel of the crop it is half a pixel of the crop to its border, and whole pixels of the
    # frame were counted; a single pixel may stand for one and a half.
    total = scale * (long_edge / max(frame) if long_edge else 1)
    away = [0.0 if total >= 1 else 0.75 * (1 / total + 0.5 / side) + 0.5 for side in crop]
    shown = (out_y != 255) & ((out_y.int() - y).abs() <= away[0]) & ((out_x.int() - x).abs() <= away[1])
    assert shown.any()


@pytest.mark.parametrize("centroid", [None, (20, 10), (0, 0), (49, 29)])
def test_every_window_is_as_likely_as_the_others(centroid):
    image, _, columns = ramps(30, 50)
    transform = TrainTransform((10, 8), scale=(1, 1), flip=0, color_jitter=0)
    torch.manual_seed(3)
    counts = torch.zeros(43)
    for _ in range(2000):
        counts[int(transform(image, columns, centroid)[1][0, 0])] += 1
    first, last = (0, 42) if centroid is None else (max(0, centroid[0] - 7), min(42, centroid[0]))
    assert counts[first : last + 1].sum() == 2000
    expected = 2000 / (last - first + 1)
    assert ((counts[first : last + 1] - expected).abs() < 5 * math.sqrt(expected)).all()


def test_a_small_frame_lies_anywhere_in_the_crop_and_the_rest_is_nothing():
    image, labels = noise(6, 7)
    transform = TrainTransform((10, 12), scale=(1, 1), flip=0)
    places = set()
    for seed in range(300):
        out, out_labels = run(transform, image, labels, seed)
        shown = out_labels != 255
        top, left = shown.nonzero()[0].tolist()
        places.add((top, left))
        assert torch.equal(out_labels[top : top + 6, left : left + 7], labels) and shown.sum() == 42
        assert normalise(out[None])[0][:, ~shown].abs().max() < 0.01
    assert places == {(top, left) for top in range(5) for left in range(6)}


@pytest.mark.parametrize(
    ("scale", "long_edge", "factors"),
    [((0.5, 2.0), None, (0.5, 2.0)), ((1.0, 1.0), 120, (1.2, 1.2)), ((0.5, 2.0), 50, (0.25, 1.0))],
)
def test_scales_are_uniform_in_their_range(scale, long_edge, factors):
    image, labels = torch.zeros(3, 60, 100, dtype=torch.uint8), torch.zeros(60, 100, dtype=torch.uint8)
    transform = TrainTransform((400, 400), scale=scale, long_edge=long_edge, flip=0, color_jitter=0)
    torch.manual_seed(0)
    seen = [transform(image, labels)[1] == 0 for _ in range(400)]
    widths = torch.tensor([float(shown.any(dim=0).sum()) for shown in seen]) / 100
    heights = torch.tensor([float(shown.any(dim=1).sum()) for shown in seen]) / 60
    assert (widths - heights).abs().max() <= 1 / 60  # one factor for both
    low, high = factors
    assert low - 0.011 <= widths.min() <= low + 0.02 and high - 0.02 <= widths.max() <= high + 0.011
    quarters = torch.quantile(widths, torch.tensor([0.25, 0.5, 0.75]))
    expected = torch.tensor([low + (high - low) * q for q in (0.25, 0.5, 0.75)])
    assert (quarters - expected).abs().max() < 0.1 * (high - low) + 0.011


@pytest.mark.parametrize(("factor", "crop"), [(1, (20, 30)), (2, (40, 50)), (2, (96, 128)), (3, (9, 12))])
def test_a_crop_is_a_part_of_the_resized_frame(factor, crop):
    _, rows, columns = ramps(48, 64)
    image, _ = noise(48, 64)
    resized = F.resize(image, [48 * factor, 64 * factor], antialias=True)
    transform = TrainTransform(crop, scale=(factor, factor), flip=0, color_jitter=0)
    for seed in range(10):
        out, y = run(transform, image, rows, seed)
        _, x = run(transform, image, columns, seed)
        top, left = int(y[0, 0]) * factor, int(x[0, 0]) * factor
        expected = resized[:, top : top + crop[0], left : left + crop[1]]
        # At the border of the window the crop cannot see what the whole frame sees.
        assert torch.equal(out[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1])


def test_flipping_mirrors_both():
    image, labels = noise(30, 40)
    out, out_labels = run(TrainTransform((20, 50), flip=0, color_jitter=0), image, labels, 5)
    mirrored, mirrored_labels = run(TrainTransform((20, 50), flip=1, color_jitter=0), image, labels, 5)
    assert torch.equal(mirrored, out.flip(2)) and torch.equal(mirrored_labels, out_labels.flip(1))
    torch.manual_seed(0)
    half = TrainTransform((30, 40), scale=(1, 1), flip=0.5, color_jitter=0)
    flipped = sum(not torch.equal(half(image, labels)[1], labels) for _ in range(400))
    assert 150 < flipped < 250


@given(
    size=st.tuples(st.integers(1, 100), st.integers(1, 20)), strength=st.sampled_from([0.0, 0.25, 0.5]), seed=seeds
)
@settings(deadline=None, max_examples=60)
def test_colours_jitter_as_torchvisions_do(size, strength, seed):
    image, _ = noise(size[0], size[1], seed)
    torch.manual_seed(seed)
    ours = jitter_colours(image, strength)
    torch.manual_seed(seed)
    assert torch.equal(ours, v2.ColorJitter(strength, strength, strength, strength).forward(image))


def test_blur_has_a_width_within_its_range():
    dot = torch.zeros(3, 31, 31, dtype=torch.uint8)
    dot[:, 15, 15] = 255
    transform = TrainTransform((31, 31), scale=(1, 1), gaussian_blur=True, flip=0, color_jitter=0)
    torch.manual_seed(0)
    sigmas = []
    for _ in range(300):
        out = transform(dot, dot[0])[0][0].float()
        share = out[15, 14] / out[15, 15]
        sigmas.append(math.sqrt(-0.5 / math.log(share)) if share else 0.0)
    # Below 0.29 pixels nothing arrives at the neighbours of the brightest level.
    assert 1.25 < max(sigmas) < 1.36
    below = sum(sigma < 0.725 for sigma in sigmas)
    assert 120 < below < 180


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 5), (5, 200), (6, 6)])
def test_photometry_takes_frames_of_any_size(size):
    image, labels = noise(*size)
    transform = TrainTransform((16, 16), gaussian_blur=True, rand_augment=(4, 20))
    for seed in range(40):
        out, out_labels = run(transform, image, labels, seed)
        assert out.shape == (3, 16, 16) and out_labels.shape == (16, 16)


def test_padding_is_left_alone_by_photometry():
    image, labels = noise(20, 30)
    transform = TrainTransform((40, 40), scale=(0.2, 1.2), color_jitter=0.5, gaussian_blur=True, rand_augment=(3, 30))
    for seed in range(50):
        out, out_labels = run(transform, image, labels, seed)
        assert normalise(out[None])[0][:, out_labels == 255].abs().max() < 0.01


@pytest.mark.parametrize("magnitude", [1, 15, 30])
def test_rand_augment_draws_from_torchvisions_operations(magnitude):
    image = noise(32, 32)[0] // 2 + 20
    torch.manual_seed(0)
    ours = {rand_augment(image, 1, magnitude).numpy().tobytes() for _ in range(500)}
    theirs = v2.RandAugment(num_ops=1, magnitude=magnitude)
    others = {theirs.forward(image).numpy().tobytes() for _ in range(900)}
    # Identity, autocontrast, equalize, posterize, solarize, and two signs of the other four.
    assert ours <= others
    # At magnitude 1 posterize keeps all bits, and nothing here is bright enough to be solarized.
    assert len(ours) == {1: 11, 15: 13, 30: 13}[magnitude]


def test_rand_augment_moves_nothing():
    image = torch.zeros(3, 16, 24, dtype=torch.uint8)
    image[:, :, 12:] = torch.tensor([200, 90, 30], dtype=torch.uint8)[:, None, None]
    torch.manual_seed(0)
    for _ in range(200):
        out = rand_augment(image, 3, 30)
        # Sharpness reaches one pixel far, three operations reach three.
        for half in (out[:, 3:-3, :9], out[:, 3:-3, 15:]):
            assert torch.equal(half, half[:, :1, :1].expand_as(half))


def test_rand_augment_of_magnitude_zero_leaves_most_as_it_is():
    image = noise(32, 32)[0]
    image[:, 0, 0], image[:, 0, 1] = 0, 255  # so that autocontrast finds nothing to stretch
    torch.manual_seed(0)
    changed = {rand_augment(image, 1, 0).numpy().tobytes() for _ in range(200)} - {image.numpy().tobytes()}
    assert changed == {F.equalize(image).numpy().tobytes()}


@given(frame=st.tuples(st.integers(1, 40), st.integers(1, 3)), long_edge=st.integers(1, 60), seed=seeds)
@settings(deadline=None)
def test_narrow_frames_are_resized_as_floats_are(frame, long_edge, seed):
    image, labels = noise(frame[0], frame[1], seed)
    out, out_labels = EvalTransform(long_edge)(image, labels, None)
    exact = F.resize(image.double(), list(out_labels.shape), antialias=True)
    assert (out - exact).abs().max() <= 1.01  # two roundings


@pytest.mark.parametrize("options", [{}, {"gaussian_blur": True, "rand_augment": (2, 9), "long_edge": 70}])
def test_the_same_seed_gives_the_same_sample(options):
    image, labels = noise(50, 60)
    transform = TrainTransform((32, 48), **options)
    first = run(transform, image, labels, 7, (5, 5))
    again = run(pickle.loads(pickle.dumps(transform)), image, labels, 7, (5, 5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(run(transform, image, labels, 8, (5, 5))[0], first[0])


@given(frame=st.tuples(st.integers(1, 60), st.integers(1, 60)), long_edge=st.integers(1, 200))
@settings(deadline=None)
def test_evaluation_scales_the_longer_side(frame, long_edge):
    image, labels = noise(*frame)
    out, out_labels = EvalTransform(long_edge)(image, labels, None)
    assert max(out_labels.shape) == long_edge and out.shape == (3, *out_labels.shape)
    assert abs(out_labels.shape[0] / out_labels.shape[1] - frame[0] / frame[1]) <= max(frame) / min(frame)
    assert set(out_labels.unique().tolist()) <= set(labels.unique().tolist())


def test_evaluation_leaves_a_frame_as_it_is():
    image, labels = noise(20, 30)
    for transform in (EvalTransform(), EvalTransform(30)):
        out, out_labels = transform(image, labels, (3, 3))
        assert torch.equal(out, image) and torch.equal(out_labels, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": (0, 5)}, "crop of 0 x 5"),
        ({"scale": (0.0, 1.0)}, "scales from 0.0 to 1.0"),
        ({"scale": (2.0, 1.0)}, "the smaller one first"),
        ({"scale": (math.nan, 1.0)}, "scales from nan"),
        ({"scale": (1.0, math.inf)}, "scales from 1.0 to inf"),
        ({"long_edge": 0}, "long edge of 0"),
        ({"flip": 1.1}, "flip probability of 1.1"),
        ({"color_jitter": 0.6}, r"within 0\.\.0\.5"),
        ({"color_jitter": -0.1}, "colour jitter of -0.1"),
        ({"rand_augment": (-1, 3)}, "must not be negative"),
        ({"rand_augment": (2, 31)}, r"within 0\.\.30"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainTransform(**{"crop": (8, 8)} | options)


def test_frames_that_do_not_fit_are_refused():
    image, labels = noise(8, 9)
    transform = TrainTransform((4, 4))
    for centroid in ((9, 0), (0, 8), (-1, 0)):
        with pytest.raises(ValueError, match="outside of a frame of 8 x 9"):
            transform(image, labels, centroid)
    for evaluate in (transform, EvalTransform()):
        with pytest.raises(ValueError, match="different sizes"):
            evaluate(image, labels[:, :5], None)
        with pytest.raises(ValueError, match="uint8"):
            evaluate(image.float(), labels, None)
    with pytest.raises(ValueError, match="long edge"):
        EvalTransform(0)
    with pytest.raises(ValueError, match="magnitude"):
        rand_augment(image, 1, 31)


@pytest.mark.parametrize("seed", range(12))
def test_other_maps_of_a_frame_are_brought_to_its_crop(seed):
    """Labels tell where a pixel comes from; probabilities go the way of the image."""
    torch.manual_seed(seed)
    height, width = (40, 64) if seed % 2 else (20, 30)
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    labels = torch.randint(256, (height, width), dtype=torch.uint8)
    transform = TrainTransform((24, 40), scale=(0.4, 2.5), color_jitter=0)
    torch.manual_seed(seed)
    crop, crop_labels, placement = transform.placed(image, labels)
    torch.manual_seed(seed)
    again, again_labels = transform(image, labels)
    assert torch.equal(crop, again) and torch.equal(crop_labels, again_labels)
    top, bottom, left, right = placement.source
    assert torch.equal(placement.ids(labels[top:bottom, left:right], 255), crop_labels)
    maps = image[:, top:bottom, left:right].float() / 255
    brought = placement.probabilities(maps)
    inside = placement.ids(torch.zeros(bottom - top, right - left, dtype=torch.uint8), 1) == 0
    # The image is rounded to 8 bits.
    assert (255 * brought - crop)[:, inside].abs().max() < 1.1
    assert not brought[:, ~inside].any()
    whole = placement.probabilities(maps.softmax(0))
    torch.testing.assert_close(whole.sum(0), inside.float())
