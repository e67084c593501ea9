"""What a worker says of itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from hmsa_pipeline.pipeline.storage.filesystem import free_bytes
from hmsa_pipeline.pipeline.workers.protocol import BlockStatus, ProgressReporter


def test_the_image_in_work_for_longest_is_named_until_it_is_done() -> None:
    report = ProgressReporter(lambda: False)
    assert report.news() == BlockStatus(0)
    with ThreadPoolExecutor(1) as pool, report.at_work("slow.png"):
        begun, end = Barrier(2), Barrier(2)

        def quick() -> None:
            with report.at_work("quick.png"):
                begun.wait()
                end.wait()

        other = pool.submit(quick)
        begun.wait()
        first = report.news()
        assert (first.settled, first.image) == (0, "slow.png")
        end.wait()
        other.result()
        report.settle()
        second = report.news()
        assert (second.settled, second.image) == (1, "slow.png")
        assert second.age >= first.age >= 0
    assert report.news() == BlockStatus(1)


def test_everybody_who_settles_an_image_is_counted() -> None:
    heard = []
    report = ProgressReporter(lambda: True, lambda: heard.append(1))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(200):
            pool.submit(report.settle)
    assert (report.news().settled, len(heard), report.stopping) == (200, 200, True)


def test_room_is_that_of_the_disk_where_a_folder_will_lie(tmp_path: Path) -> None:
    assert (free_bytes(tmp_path / "a" / "b") or 0) > 0
