"""The design of the drawn training datasets: which conditions of the test set each of them shows."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hmsa_pipeline.datasets.dataset_specs import NAMES
from hmsa_pipeline.datasets.synthetic.conditions import CONDITIONS, SHOWN
from hmsa_pipeline.datasets.synthetic.dataset_frames import look_of
from hmsa_pipeline.datasets.synthetic.scene import draw_scene
from hmsa_pipeline.datasets.synthetic.style import Style, style_of

TRAITS = {"crowd": 1.0, "dirt": 0.0, "shadow": 1.0}
"""What a dataset may change in every style, and what that is without a change."""


def test_each_dataset_shows_four_conditions_each_condition_is_shown_by_four_and_two_datasets_share_two() -> None:
    assert set(SHOWN) == set(NAMES)
    assert {len(set(shown)) for shown in SHOWN.values()} == {4}
    assert {name for shown in SHOWN.values() for name in shown} == set(CONDITIONS)
    for condition in CONDITIONS:
        assert sum(condition in shown for shown in SHOWN.values()) == 4
    for one, other in combinations(NAMES, 2):
        assert len({*SHOWN[one]} & {*SHOWN[other]}) == 2


def condition_of(style: Style) -> str | None:
    """The condition that a style is of, whatever the dataset's traits; None for clear weather."""
    plain = replace(style, **TRAITS)
    return next((name for name in CONDITIONS if plain == style_of(name)), None)


@pytest.mark.parametrize("name", NAMES)
def test_frames_show_these_conditions_equally_often_and_no_others(name: str) -> None:
    styles = look_of(name).styles
    found = [condition_of(style) for style in styles]
    assert {one: found.count(one) for one in SHOWN[name]} == dict.fromkeys(SHOWN[name], 2)
    clear = [style for style, condition in zip(styles, found, strict=True) if condition is None]
    assert len(clear) == 4
    for style in clear:
        weather = (style.night, style.wet, style.snow, style.rain, style.flakes, style.lens, style.odd_road)
        assert weather == (False, 0, 0, 0, 0, "clean", False)
        assert style.fog <= 0.005
    # Frames of several sizes take turns, too; every size has every condition.
    for start in (0, 1):
        assert {one for one in found[start::2] if one} == set(SHOWN[name])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_of_no_class_in_the_test_set_is_in_no_training_frame(name: str) -> None:
    assert not any(style.unseen_kind for style in look_of(name).styles)


def test_odd_roads_of_training_differ_from_those_of_the_test_set() -> None:
    training, test = style_of("odd road"), style_of("out of context")
    assert (training.odd_road, training.unseen_kind) == (True, False)
    assert (test.odd_road, test.unseen_kind) == (True, True)
    for seed in range(4):
        plain = draw_scene(seed, 64, 128)
        for style in (training, test):
            odd = draw_scene(seed, 64, 128, style)
            np.testing.assert_array_equal(odd.mask, plain.mask)
            road = plain.mask == 0
            assert np.abs(odd.image.astype(int) - plain.image).mean(2)[road].mean() > 10
