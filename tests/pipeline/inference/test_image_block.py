"""What bounds and times a worker's block, and how results come from a GPU."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hmsa_pipeline.pipeline.config.member_inference import InferenceOptions, Tile
from hmsa_pipeline.pipeline.inference.dump import limited_by
from hmsa_pipeline.pipeline.inference.predictor import InferenceSettings, usable_options
from hmsa_pipeline.pipeline.inference.transfer import ByteBudget, HostCopy, StageTimes
from hypothesis import given
from hypothesis import strategies as st

from ...limits import PATIENCE


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 4))
def test_no_more_waits_than_the_budget_allows(sizes: list[int], items: int) -> None:
    limit, held, most = 40, [0, 0], [0, 0]
    budget, lock = ByteBudget(limit, items), threading.Lock()

    def use(size: int) -> None:
        budget.acquire(size)
        with lock:
            held[0], held[1] = held[0] + size, held[1] + 1
            most[0], most[1] = max(most[0], held[0]), max(most[1], held[1])
        with lock:
            held[0], held[1] = held[0] - size, held[1] - 1
        budget.release(size)

    threads = [threading.Thread(target=use, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=PATIENCE)
        assert not thread.is_alive()
    assert most[0] <= limit
    assert most[1] <= items


def test_one_that_is_larger_than_the_budget_passes_alone() -> None:
    budget = ByteBudget(10)
    budget.acquire(1000)
    waiting = threading.Thread(target=budget.acquire, args=(1,), daemon=True)
    waiting.start()
    waiting.join(timeout=0.2)
    assert waiting.is_alive()
    budget.release(1000)
    waiting.join(timeout=PATIENCE)
    assert not waiting.is_alive()


def test_times_add_up_by_part() -> None:
    times = StageTimes()
    for _ in range(3):
        with times.measure("read"):
            time.sleep(0.01)
    with pytest.raises(RuntimeError), times.measure("write"):
        raise RuntimeError
    assert times.seconds["read"] >= 0.03
    assert times.seconds["forward"] == 0.0
    assert list(times.seconds) == ["read", "forward", "write"]


@pytest.mark.parametrize("part", ["read", "forward", "write"])
def test_the_limit_is_what_took_longest(part: str) -> None:
    names = {"read": "reading", "forward": "the forward pass", "write": "writing"}
    line = limited_by([dict.fromkeys(names, 1.0), {part: 7.0}, {}])
    assert line is not None
    assert line.startswith(f"limited by {names[part]} (")
    assert f"{names[part]} 80%" in line
    assert limited_by([]) is None
    assert limited_by([{}, {}]) is None


def test_a_setting_is_what_the_manifest_says() -> None:
    inference = InferenceOptions(scales=(1.0, 2.0), flip=True, tile=Tile(size=(64, 96), overlap=16))
    used, notes = usable_options(inference, torch.device("cpu"))
    assert used == inference.model_copy(update={"precision": "fp32"})
    assert [note.partition(":")[0] for note in notes] == ["precision"]
    assert InferenceSettings("cpu", used, 3).io_threads == 2


@pytest.mark.parametrize(("cores", "threads"), [(1, 2), (6, 3), (16, 8), (96, 8)])
def test_beside_a_gpu_half_of_the_cores_decode_and_half_write(
    cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    assert InferenceSettings("cuda:1", InferenceOptions()).io_threads == threads


def test_on_a_cpu_there_is_nothing_to_bring() -> None:
    result = torch.randn(3, 4)
    assert HostCopy(torch.device("cpu")).start(result)() is result


@pytest.mark.gpu
def test_results_come_from_a_gpu_as_they_were_computed() -> None:
    device = torch.device("cuda")
    host_copy, fetches = HostCopy(device), []
    with torch.inference_mode():
        for number in range(20):
            result = torch.full((19, 512, 512), float(number), device=device, dtype=torch.float16)
            for _ in range(20):  # what is still being computed when it is sent
                result = result * 1.0
            fetches.append(host_copy.start(result))
            del result
    for number, fetch in enumerate(fetches):
        assert (fetch() == number).all()
