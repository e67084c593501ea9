"""The queue of a job's images against a plain list."""

from __future__ import annotations

from hmsa_pipeline.pipeline.workers.job_state import ImageQueue
from hmsa_pipeline.pipeline.workers.jobs import JobImage
from hypothesis import given
from hypothesis import strategies as st

IMAGES = st.lists(st.builds(JobImage, st.text("abc", max_size=3), st.integers(1, 9)), max_size=4)
STEPS = st.lists(st.tuples(st.sampled_from(["extend", "put back", "take", "clear"]), IMAGES), max_size=12)


@given(STEPS)
def test_images_leave_it_in_order_and_their_pixels_are_counted(steps: list[tuple[str, list[JobImage]]]) -> None:
    queue, plain = ImageQueue(), list[JobImage]()
    for step, images in steps:
        if step == "extend":
            queue.extend(iter(images))
            plain = plain + images
        elif step == "put back":
            queue.put_back(iter(images))
            plain = images + plain
        elif step == "take" and plain:
            assert queue.first == plain[0]
            assert queue.take() == plain.pop(0)
        elif step == "clear":
            queue.clear()
            plain = []
        assert (len(queue), queue.pixels) == (len(plain), sum(image.pixels for image in plain))
