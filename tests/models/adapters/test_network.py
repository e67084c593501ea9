"""What holds for every network of another library, on one easy to follow: pixels, views, averages, classes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hmsa_pipeline.datasets.decode import tensors
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.errors import ManifestError
from hmsa_pipeline.models.adapters import network as module
from hmsa_pipeline.models.adapters.body import Body, PixelScaling, Sizes
from hmsa_pipeline.models.adapters.class_table import ClassTable, class_table
from hmsa_pipeline.models.adapters.network import MemberNetwork, as_pixels
from hmsa_pipeline.models.adapters.settings import View
from hmsa_pipeline.models.windows import window_starts, window_weights
from torch import Tensor
from torch.nn import functional

OURS = ("road", "sky", "car")


class Fake(Body):
    """Output of each pixel, or of each block of them, from its colour alone, or with the window's mean."""

    def __init__(self, kind: str = "logits", step: int = 1, sizes: Sizes | None = None, blind: bool = True) -> None:
        super().__init__()
        self.kind, self.step, self.blind = kind, step, blind
        self.channels, self.labels, self.sizes = 4, None, sizes or Sizes()
        self.scaling = PixelScaling(None, None)
        self.seen: list[tuple[int, int]] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen.append((pixels.shape[-2], pixels.shape[-1]))
        mean = pixels.mean((1, 2, 3), keepdim=True) * (not self.blind)
        found = functional.avg_pool2d(torch.cat([pixels, 1 - pixels[:, :1]], 1) + mean, self.step) * 4
        return found if self.kind == "logits" else found.exp()


def table(*sources: Sequence[int]) -> ClassTable:
    return ClassTable(tuple(map(tuple, sources)), tuple("abcd"))


ALL = table([0], [1], [2])


def member(body: Body, classes: ClassTable = ALL, view: View | None = None) -> MemberNetwork:
    return MemberNetwork(body, classes, view).eval()


def picture(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def raw(pixels: Tensor) -> Tensor:
    """Logits that `Fake` gives for each pixel."""
    seen = pixels.float() / 255
    return torch.cat([seen, 1 - seen[:, :1]], 1) * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pixels_come_back_exactly(dtype: torch.dtype) -> None:
    pixels = torch.arange(256).expand(1, 3, 2, 256).to(torch.uint8)
    assert torch.equal(as_pixels(tensors.normalise(pixels).to(dtype)), pixels.float() / 255)
    assert (module.MEAN, module.STD) == (tensors.MEAN, tensors.STD)


def test_pixels_are_scaled_shifted_and_reversed_as_said() -> None:
    pixels = torch.tensor([0.0, 0.5, 1.0])[None, :, None, None]
    scaled = PixelScaling([0.1, 0.2, 0.3], [0.5, 0.25, 2.0], 2 / 255, bgr=True)(pixels).flatten()
    assert scaled.tolist() == pytest.approx([(2 - 0.1) / 0.5, (1 - 0.2) / 0.25, (0 - 0.3) / 2])


def test_logits_of_two_scales_and_mirror_images_are_averaged_as_logits() -> None:
    pixels = picture(16, 24)
    found = member(Fake()).predict(tensors.normalise(pixels), [1.0, 2.0], flip=True)
    seen = pixels.float() / 255
    twice = functional.interpolate(seen, scale_factor=2, mode="bilinear")
    back = functional.interpolate(raw(twice * 255), (16, 24), mode="bilinear")
    torch.testing.assert_close(found, ((raw(pixels) + back) / 2)[:, :3])


@pytest.mark.parametrize("kind", ["probabilities", "scores"])
def test_scores_are_divided_by_their_sum_and_averaged_as_probabilities(kind: str) -> None:
    pixels = picture(16, 24)
    found = member(Fake(kind)).predict(tensors.normalise(pixels), [1.0, 2.0])
    twice = functional.interpolate(pixels.float() / 255, scale_factor=2, mode="bilinear")
    back = functional.interpolate(raw(twice * 255).exp(), (16, 24), mode="bilinear")
    parts = [raw(pixels).exp()[:, :3], back[:, :3]]
    wanted = sum(part / part.sum(1, keepdim=True) for part in parts) / 2
    torch.testing.assert_close(found.softmax(1), wanted)


def test_scores_of_nothing_become_uniform_and_keep_the_floor() -> None:
    body = Fake("scores")
    body.forward = lambda pixels: torch.stack([pixels[:, 0], *[torch.zeros_like(pixels[:, 0])] * 3], 1)
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    pixels[..., 4:, :] = 255
    found = member(body).predict(tensors.normalise(pixels), [1.0])
    assert found[..., :4, :].softmax(1).flatten().tolist() == pytest.approx([1 / 3] * 96)
    assert found[0, 1:, 4:].flatten().tolist() == pytest.approx([torch.tensor(1e-7).log().item()] * 64)


@pytest.mark.parametrize("kind", ["logits", "scores"])
def test_probabilities_of_several_classes_add_up_and_others_are_lost(kind: str) -> None:
    pixels = picture(16, 24)
    found = member(Fake(kind), table([3], [0, 2], [])).predict(tensors.normalise(pixels), [1.0]).softmax(1)
    shares = raw(pixels).softmax(1)
    wanted = torch.stack([shares[:, 3], shares[:, 0] + shares[:, 2]], 1)
    torch.testing.assert_close(found[:, :2], wanted / wanted.sum(1, keepdim=True), atol=1e-5, rtol=1e-5)
    assert 0 < found[:, 2].max() < 3e-7


@pytest.mark.parametrize("kind", ["logits", "scores"])
@pytest.mark.parametrize("view", [View(), View((16, 24), (12, 16))])
def test_the_probability_that_is_lost_is_told(kind: str, view: View) -> None:
    pixels = picture(40, 56)
    network = member(Fake(kind), table([3], [0], []), view)
    network.predict(tensors.normalise(pixels), [1.0, 2.0], flip=True)
    seen = pixels.float() / 255
    twice = functional.interpolate(seen, scale_factor=2, mode="bilinear") * 255
    shares = [raw(one).softmax(1)[:, 1:3].sum(1) for one in (pixels, twice)]
    if view.window is None:
        wanted = (shares[0].sum() + shares[1].sum()) / (5 * 40 * 56)
        assert network.other is not None
        torch.testing.assert_close(network.other, wanted)
    else:  # pixels that several windows see count more often
        assert network.other is not None
        low, high = (min(one.min() for one in shares), max(one.max() for one in shares))
        assert low < network.other < high
        assert abs(network.other - shares[0].mean()) < 0.05
    network.predict(tensors.normalise(torch.zeros_like(pixels)), [1.0])
    torch.testing.assert_close(network.other, raw(torch.zeros(1, 3, 1, 1)).softmax(1)[:, 1:3].sum())


def test_padding_is_none_of_the_probability_that_is_lost_and_no_class_no_share() -> None:
    body = Fake(sizes=Sizes(8, fixed=(32, 32)))
    network = member(body, table([0], [1], [3]))
    pixels = torch.full((1, 3, 20, 30), 255, dtype=torch.uint8)
    pixels[..., :19, :29] = 0
    network.predict(tensors.normalise(pixels), [1.0])
    torch.testing.assert_close(network.other, raw(pixels).softmax(1)[:, 2].mean())
    whole = member(Fake(), table([0, 3], [1], [2]))
    whole.predict(tensors.normalise(pixels), [1.0])
    assert whole.other is None


def test_scores_of_nothing_are_lost_to_no_class() -> None:
    body = Fake("scores")
    body.forward = lambda pixels: pixels.new_zeros(1, 4, *pixels.shape[-2:])
    network = member(body)
    network.predict(tensors.normalise(picture(8, 8)), [1.0])
    assert network.other == 0


def test_windows_are_blended_as_probabilities_with_weights_that_fade() -> None:
    pixels, window, stride = picture(40, 56), (16, 24), (12, 16)
    body = Fake(blind=False)
    found = member(body, view=View(window, stride)).predict(tensors.normalise(pixels), [1.0]).softmax(1)
    total, weights = torch.zeros(1, 3, 40, 56), torch.zeros(40, 56)
    for y in (0, 12, 24):
        for x in (0, 16, 32):
            part = pixels[..., y : y + 16, x : x + 24]
            mean = (part.float() / 255).mean()
            share = (raw(part) + 4 * mean)[:, :3].softmax(1)
            for i in range(16):
                for j in range(24):
                    up, across = min(i, 15 - i) + 1, min(j, 23 - j) + 1
                    weight = min(1, up / 5) * min(1, across / 9)
                    total[..., y + i, x + j] += weight * share[..., i, j]
                    weights[y + i, x + j] += weight
    torch.testing.assert_close(found, total / weights, atol=1e-5, rtol=1e-5)
    assert set(body.seen) == {(16, 24)}


def test_an_image_smaller_than_a_window_is_padded_for_a_network_of_one_size() -> None:
    body = Fake(sizes=Sizes(8, fixed=(32, 32)))
    found = member(body).predict(tensors.normalise(picture(20, 40)), [1.0])
    assert (found.shape, set(body.seen)) == ((1, 3, 20, 40), {(32, 32)})
    torch.testing.assert_close(found.softmax(1), raw(picture(20, 40))[:, :3].softmax(1), atol=1e-5, rtol=1e-5)


def test_images_are_padded_to_the_multiple_and_cut_before_they_are_enlarged() -> None:
    body = Fake(step=8, sizes=Sizes(8))
    found = member(body).predict(tensors.normalise(picture(20, 30)), [1.0])
    padded = functional.pad(raw(picture(20, 30)), (0, 2, 0, 4), mode="replicate")
    wanted = functional.interpolate(functional.avg_pool2d(padded, 8), (24, 32), mode="bilinear")[:, :3, :20, :30]
    torch.testing.assert_close(found, wanted)


def test_longest_resizes_the_longer_side() -> None:
    for size, seen in (((40, 60), (20, 30)), ((60, 40), (30, 20)), ((10, 15), (20, 30))):
        body = Fake()
        assert member(body, view=View(longest=30)).predict(tensors.normalise(picture(*size)), [1.0]).shape[2:] == size
        assert body.seen == [seen]


def test_weights_of_windows_reach_one_and_cover_every_pixel() -> None:
    assert window_starts(100, 40, 10) == [0, 30, 60]
    assert window_starts(101, 40, 10) == [0, 20, 41, 61]
    assert window_starts(30, 40, 10) == [0]
    assert window_weights((3, 4), (0, 1)).tolist() == [[0.5, 1, 1, 0.5]] * 3


LABELS = {0: "Road", 1: "sky", 2: "wall", 3: "CAR"}


@pytest.mark.parametrize(
    ("labels", "choice", "sources"),
    [
        (LABELS, None, ((0,), (1,), (3,))),
        ({0: "road", 1: "tree", 2: "sky", 3: "x"}, "auto", ((0,), (2,), ())),
        (None, ("sky", "other", "road", "car"), ((2,), (0,), (3,))),
        (LABELS, {"wall": "car", "CAR": "car", "road": "road"}, ((0,), (), (2, 3))),
        (None, {"0": "sky", "3": "sky"}, ((), (0, 3), ())),
        (dict(reversed(LABELS.items())), None, ((0,), (1,), (3,))),
    ],
)
def test_channels_find_their_classes(labels: dict[int, str] | None, choice: object, sources: object) -> None:
    assert class_table("net", 4, labels, choice, OURS).sources == sources  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "choice", "message"),
    [
        (None, None, "its 4 classes have no names; name them in their order with 'classes: [...]'"),
        ({i: f"LABEL_{i}" for i in range(4)}, "auto", "its 4 classes have no names"),
        ({0: "road", 1: "sky", 2: "x", 3: "y"}, None, "1 of our classes are none of its 4 (first: car)"),
        ({0: "a", 1: "b", 2: "c", 3: "d"}, "auto", "none of its classes is one of ours"),
        (LABELS, ("road", "sky"), "'classes' names 2 classes, the network has 4"),
        (LABELS, ("road", "sky", "car", "cart"), "'cart', which is none of our classes; did you mean 'car'?"),
        (LABELS, {"wal": "road"}, "'wal', which the network does not know (did you mean 'wall'?)"),
        (None, {"wall": "road"}, "which the network does not know (its classes have no names)"),
        (LABELS, {"4": "road"}, "channel numbers from '0' to '3'"),
        (LABELS, {"wall": "rood"}, "did you mean 'road'?"),
    ],
)
def test_classes_that_nobody_knows_are_named(labels: dict[int, str] | None, choice: object, message: str) -> None:
    with pytest.raises(ManifestError) as refused:
        class_table("net", 4, labels, choice, OURS)  # type: ignore[arg-type]
    assert message in str(refused.value)
    assert str(refused.value).startswith("net: ")


def test_a_store_says_which_classes_became_which() -> None:
    found = class_table("net", 4, LABELS, {"wall": "car", "CAR": "car", "road": "road"}, OURS)
    assert found.as_json(OURS) == {"classes": {"road": ["Road"], "sky": [], "car": ["wall", "CAR"]}, "other": ["sky"]}
    assert found.note(OURS) == "it knows no sky; 1 of its 4 classes are none of ours"
    assert len(CLASS_NAMES) == 19
