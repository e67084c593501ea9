"""Images are counted one by one."""

from __future__ import annotations

import pytest
import torch
from hmsa_pipeline.datasets.layout.image_mask_pairs import ImageMaskPair
from hmsa_pipeline.pipeline.scoring.each_image import count_each_image


def pairs(*names: str) -> list[ImageMaskPair]:
    return [ImageMaskPair(name, name, "train_ids") for name in names]


def test_an_image_is_counted_in_one_thread_and_others_get_theirs_back() -> None:
    """As many images are counted at a time as there are cores; torch's own threads made that four times as slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = list(count_each_image("photos", pairs("a", "b"), lambda _: torch.get_num_threads(), None, {}))
        assert found == [1, 1]
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            list(count_each_image("photos", pairs("a"), lambda _: 1 // 0, None, {}))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_reason_is_listed_in_place_of_counts() -> None:
    failed: dict[str, str] = {}
    work = {"a": 1, "b": "cannot be read", "c": 3}
    found = list(count_each_image("photos", pairs("a", "b", "c"), lambda pair: work[pair.image], None, failed))
    assert found == [1, None, 3]
    assert failed == {"b": "cannot be read"}
