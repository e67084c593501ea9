"""The status of a worker's block."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from hmsa_pipeline.pipeline.workers.protocol import BlockStatus, ProgressReporter


def test_the_image_in_work_for_longest_is_named_until_it_is_done() -> None:
    report = ProgressReporter(lambda: False)
    assert report.status() == BlockStatus(0)
    with ThreadPoolExecutor(1) as pool, report.working_on("slow.png"):
        begun, end = Barrier(2), Barrier(2)

        def quick() -> None:
            with report.working_on("quick.png"):
                begun.wait()
                end.wait()

        other = pool.submit(quick)
        begun.wait()
        first = report.status()
        assert (first.finished, first.image) == (0, "slow.png")
        end.wait()
        other.result()
        report.image_done()
        second = report.status()
        assert (second.finished, second.image) == (1, "slow.png")
        assert second.age >= first.age >= 0
    assert report.status() == BlockStatus(1)


def test_every_thread_that_finishes_an_image_is_counted() -> None:
    heard = []
    report = ProgressReporter(lambda: True, lambda: heard.append(1))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(200):
            pool.submit(report.image_done)
    assert (report.status().finished, len(heard), report.is_stopping) == (200, 200, True)
