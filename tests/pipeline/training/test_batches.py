"""Which images a step sees, whoever shares it with whom, and what becomes of errors on the way."""

from __future__ import annotations

import importlib
import itertools
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hmsa_pipeline.datasets.class_uniform import CentroidIndex, EpochSource, build_index
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.datasets.labels.label_reader import LabelReader
from hmsa_pipeline.datasets.layout.image_mask_pairs import list_pairs
from hmsa_pipeline.datasets.segmentation_dataset import SampleRequest, SegmentationDataset
from hmsa_pipeline.datasets.synthetic.write_datasets import write_source
from hmsa_pipeline.datasets.transforms import EvalTransform, TrainTransform
from hmsa_pipeline.errors import DatasetError
from hmsa_pipeline.pipeline.config.load_recipe import load_recipe
from hmsa_pipeline.pipeline.config.recipe import Recipe
from hmsa_pipeline.pipeline.training.batches import (
    Batch,
    StepSampler,
    batch_loader,
    batches,
    epoch_samples,
    validation_loader,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small frames of Cityscapes, three of them for validation."""
    return write_source(tmp_path_factory.mktemp("train-data"), "cityscapes", train=5, val=3, size=(48, 80))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dataset(root: Path, split: str = "train", transform: Any = None) -> SegmentationDataset:
    pairs = list_pairs(root, "cityscapes", split)
    reader = LabelReader(root, dataset_spec("cityscapes"))
    return SegmentationDataset(root, pairs, reader, transform or TrainTransform((32, 64)))


def recipe(global_batch: int, batch_size: int = 1, **more: Any) -> Recipe:
    uniform = {"class_uniform": 0.5}
    overrides = {"global_batch": global_batch, "batch_size": batch_size, "sampling": uniform, **more}
    return load_recipe("demo", data_root=Path("/nowhere"), overrides=overrides)


def whole_step(
    draws: list[SampleRequest], global_batch: int, batch_size: int, world_size: int, step: int
) -> list[SampleRequest]:
    """What all processes together see in a step, in the order of their ranks."""
    seen = []
    for rank in range(world_size):
        sampler = StepSampler(global_batch, batch_size, rank, world_size)
        sampler.begin(draws, step)
        for batch in itertools.islice(sampler, sampler.per_step):
            assert len(batch) == batch_size
            seen += batch
    return seen


# Shares.


@given(
    world_size=st.integers(1, 5),
    batch_size=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    steps=st.integers(1, 6),
    data=st.data(),
)
def test_a_step_is_the_same_images_however_it_is_shared(
    world_size: int, batch_size: int, accumulation: int, steps: int, data: st.DataObject
) -> None:
    size = world_size * batch_size * accumulation
    draws = [SampleRequest(image, 100 + image) for image in range(size * steps)]
    step = data.draw(st.integers(0, steps - 1))
    assert whole_step(draws, size, batch_size, world_size, step) == draws[step * size : (step + 1) * size]
    sampler = StepSampler(size, batch_size, 0, world_size)
    assert sampler.per_step == accumulation


@given(
    world_size=st.integers(1, 3),
    batch_size=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    steps=st.integers(1, 5),
    data=st.data(),
)
def test_who_begins_in_the_middle_sees_the_same_rest(
    world_size: int, batch_size: int, accumulation: int, steps: int, data: st.DataObject
) -> None:
    size = world_size * batch_size * accumulation
    draws = [SampleRequest(image, 0) for image in range(size * steps)]
    done, rank = data.draw(st.integers(0, steps)), data.draw(st.integers(0, world_size - 1))
    sampler = StepSampler(size, batch_size, rank, world_size)
    sampler.begin(draws, 0)
    everything = list(sampler)
    sampler.begin(draws, done)
    assert list(sampler) == everything[done * sampler.per_step :]
    # A sampler is asked anew for every epoch, and must not be used up.
    assert list(sampler) == list(sampler)


def test_before_the_first_epoch_there_is_nothing() -> None:
    assert list(StepSampler(4, 2, 0, 1)) == []


# Draws.


def centroids(images: int, classes: tuple[int, ...]) -> CentroidIndex:
    rows = [(image, label, 10 * image + label, label) for image in range(images) for label in classes]
    return CentroidIndex(np.array(rows, dtype=np.int32).reshape(-1, 4))


@settings(deadline=None)
@given(
    images=st.integers(1, 60),
    global_batch=st.integers(1, 12),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    classes=st.sets(st.integers(0, 18)),
    epoch=st.integers(0, 3),
)
def test_an_epoch_is_whole_steps_of_images_that_are_there(
    images: int, global_batch: int, share: float, classes: set[int], epoch: int
) -> None:
    index = centroids(images, tuple(sorted(classes)))
    given_ = recipe(global_batch, sampling={"class_uniform": share})
    draws = epoch_samples(given_, images, [EpochSource(images, index)], epoch)
    assert len(draws) == max(1, images // global_batch) * global_batch
    assert draws == epoch_samples(given_, images, [EpochSource(images, index)], epoch)
    known = {(int(i), (int(x), int(y))) for i, _, x, y in index.centroids}
    for draw in draws:
        assert 0 <= draw.image < images
        assert draw.centroid is None or (draw.image, draw.centroid) in known
        # They travel between processes, and into torch's generator.
        assert [type(part) for part in draw[:2]] == [int, int]
        assert 0 <= draw.seed < 2**31


@given(
    images=st.integers(1, 40),
    times=st.integers(1, 3),
    batch_size=st.integers(1, 3),
    world_size=st.sampled_from([1, 2, 4]),
    epoch=st.integers(0, 2),
)
@settings(deadline=None)
def test_an_epoch_does_not_depend_on_who_shares_it(
    images: int, times: int, batch_size: int, world_size: int, epoch: int
) -> None:
    size = 4 * batch_size * times
    index = centroids(images, (0, 5))
    alone = epoch_samples(recipe(size, size), images, [EpochSource(images, index)], epoch)
    shared = epoch_samples(
        recipe(size, batch_size, workers=3, precision="fp32"), images, [EpochSource(images, index)], epoch
    )
    assert shared == alone
    for step in range(len(alone) // size):
        assert whole_step(shared, size, batch_size, world_size, step) == alone[step * size : (step + 1) * size]


def test_without_class_uniform_sampling_no_image_comes_twice_before_all_have_come() -> None:
    draws = epoch_samples(recipe(1, sampling={"class_uniform": 0}), 50, [EpochSource(50)], 0)
    assert sorted(draw.image for draw in draws) == list(range(50))
    assert {draw.centroid for draw in draws} == {None}
    assert len({draw.seed for draw in draws}) == 50


def test_half_of_an_epoch_is_spread_evenly_over_the_classes() -> None:
    draws = epoch_samples(recipe(1), 380, [EpochSource(380, centroids(380, tuple(range(19))))], 0)
    # The fixture writes the class into y.
    shown = Counter(draw.centroid[1] for draw in draws if draw.centroid)
    assert shown == dict.fromkeys(range(19), 10)
    assert len(draws) == 380
    # Shuffled: what is drawn for the classes does not come in one piece.
    assert any(draw.centroid for draw in draws[:19])


def test_a_dataset_smaller_than_a_step_goes_round() -> None:
    draws = epoch_samples(recipe(8, sampling={"class_uniform": 0}), 3, [EpochSource(3)], 0)
    assert len(draws) == 8
    assert sorted(Counter(draw.image for draw in draws).values()) == [2, 3, 3]
    # The same image again, but another crop of it.
    assert len({draw.seed for draw in draws}) == 8


def test_other_epochs_and_other_seeds_draw_otherwise() -> None:
    index = centroids(40, (1, 2))
    drawn = [
        epoch_samples(recipe(2, seed=seed), 40, [EpochSource(40, index)], epoch)
        for seed in (0, 1, 7)
        for epoch in range(4)
    ]
    assert all(one != other for one, other in itertools.combinations(drawn, 2))


def test_what_is_drawn_stays_the_same_from_release_to_release() -> None:
    """A run goes on under another release: these were drawn when the first one was made."""
    draws = epoch_samples(recipe(2, sampling={"class_uniform": 1.0}), 20, [EpochSource(20, centroids(20, (3, 7)))], 1)
    assert draws[11:17] == [
        SampleRequest(18, 1275098000, (183, 3)),
        SampleRequest(4, 321757168, (47, 7)),
        SampleRequest(7, 1715917621),
        SampleRequest(5, 1255750564, (53, 3)),
        SampleRequest(17, 282663199, (177, 7)),
        SampleRequest(19, 299167855, (197, 7)),
    ]


# Loaders.


def seen(loader: DataLoader[Any]) -> list[Batch]:
    return list(batches(loader))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and a.paths == b.paths
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_holds_what_was_drawn(streets: Path, workers: int) -> None:
    learnt = dataset(streets)
    draws = epoch_samples(
        recipe(4, 2), len(learnt), [EpochSource(len(learnt), build_index(learnt.reader, learnt.pairs, 16))], 0
    )
    sampler = StepSampler(4, 2, 0, 1)
    sampler.begin(draws, 0)
    for number, batch in enumerate(batches(batch_loader(learnt, sampler, workers, CPU))):
        samples = [learnt[draw] for draw in draws[2 * number : 2 * number + 2]]
        assert (batch.images.shape, batch.images.dtype) == ((2, 3, 32, 64), torch.uint8)
        assert (batch.labels.shape, batch.labels.dtype) == ((2, 32, 64), torch.uint8)
        assert torch.equal(batch.images, torch.stack([sample.image for sample in samples]))
        assert torch.equal(batch.labels, torch.stack([sample.labels for sample in samples]))
        assert batch.paths == [sample.path for sample in samples]


def test_epochs_follow_one_another_in_the_same_worker_processes(streets: Path) -> None:
    learnt = dataset(streets)
    sampler = StepSampler(2, 1, 0, 1)
    loader = batch_loader(learnt, sampler, 1, CPU)
    plain = batch_loader(learnt, sampler, 0, CPU)
    for epoch, first in ((0, 0), (1, 1), (2, 2), (3, 0)):
        sampler.begin(epoch_samples(recipe(2), len(learnt), [EpochSource(len(learnt))], epoch), first)
        there = seen(loader)
        assert len(there) == 2 * (len(learnt) // 2 - first)
        assert same(there, seen(plain))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_random_numbers_alone(streets: Path, workers: int) -> None:
    learnt = dataset(streets)
    sampler = StepSampler(5, 5, 0, 1)
    sampler.begin(epoch_samples(recipe(5), len(learnt), [EpochSource(len(learnt))], 0), 0)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert len(seen(batch_loader(learnt, sampler, workers, CPU))) == 1
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 0), (3, 0), (4, 0), (2, 1)])
def test_validation_sees_every_image_once_over_all_processes(streets: Path, world_size: int, workers: int) -> None:
    scored = dataset(streets, "val", EvalTransform())
    parts = [seen(validation_loader(scored, rank, world_size, workers, CPU)) for rank in range(world_size)]
    found = sorted(path for part in parts for batch in part for path in batch.paths)
    assert found == [pair.image for pair in scored.pairs]
    assert all(batch.images.shape == (1, 3, 48, 80) for part in parts for batch in part)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# Errors.


def spoilt(streets: Path, tmp_path: Path, name: str, content: bytes) -> SegmentationDataset:
    """The dataset with other bytes in one of its files; the others are links."""
    root = tmp_path / "streets"
    for file in streets.rglob("*"):
        if file.is_file():
            place = root / file.relative_to(streets)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file)
    learnt = dataset(root)
    pair = learnt.pairs[1]
    path = root / (pair.image if name == "image" else pair.mask)
    path.unlink()
    path.write_bytes(content)
    return learnt


def all_of(learnt: SegmentationDataset, workers: int) -> DataLoader[Any]:
    sampler = StepSampler(len(learnt), 1, 0, 1)
    sampler.begin([SampleRequest(image, 0) for image in range(len(learnt))], 0)
    return batch_loader(learnt, sampler, workers, CPU)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_file_that_cannot_be_read_is_one_error(streets: Path, tmp_path: Path, name: str, workers: int) -> None:
    learnt = spoilt(streets, tmp_path, name, b"no picture")
    there = batches(all_of(learnt, workers))
    assert next(there).paths == [learnt.pairs[0].image]
    with pytest.raises(DatasetError) as caught:
        next(there)
    pair = learnt.pairs[1]
    assert str(caught.value).startswith(f"{learnt.root / (pair.image if name == 'image' else pair.mask)}: ")
    assert "\n" not in str(caught.value)


FAILING = """
class Failing:
    def __init__(self, error):
        self.error, self.seen = error, 0

    def __call__(self, image, labels, centroid):
        self.seen += 1
        if self.seen > 1:
            raise self.error
        return image, labels
"""


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a transform that raises from the second sample on; worker processes import it."""
    (tmp_path / "failing.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    return importlib.import_module("failing").Failing


NO_MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"),
]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_a_crop_that_memory_does_not_hold_names_the_knobs(
    streets: Path, failing: Any, error: Exception, workers: int
) -> None:
    learnt = dataset(streets, transform=failing(error))
    there = batches(all_of(learnt, workers))
    next(there)
    with pytest.raises(DatasetError, match=r"does not fit into memory.*--crop-size.*--workers") as caught:
        next(there)
    assert learnt.pairs[1].image in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_has_shrunk_since_its_mask_was_read_is_named(streets: Path, workers: int) -> None:
    learnt = dataset(streets)
    sampler = StepSampler(1, 1, 0, 1)
    sampler.begin([SampleRequest(2, 0, (500, 500))], 0)
    with pytest.raises(DatasetError, match=r"centroid \(500, 500\).*remove the cache") as caught:
        seen(batch_loader(learnt, sampler, workers, CPU))
    assert str(caught.value).startswith(f"{learnt.root / learnt.pairs[2].image}: ")


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_nobodys_fault_but_ours_is_not_hidden(streets: Path, failing: Any, workers: int) -> None:
    learnt = dataset(streets, transform=failing(RuntimeError("a mistake")))
    with pytest.raises(RuntimeError, match="a mistake"):
        seen(all_of(learnt, workers))


def test_one_error_of_a_batch_is_enough(streets: Path, failing: Any) -> None:
    learnt = dataset(streets, transform=failing(DatasetError("the first")))
    sampler = StepSampler(5, 5, 0, 1)
    sampler.begin([SampleRequest(image, 0) for image in range(5)], 0)
    with pytest.raises(DatasetError, match=r"^the first$"):
        seen(batch_loader(learnt, sampler, 0, CPU))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_go_on_when_everybody_is_told_to_stop(streets: Path, number: signal.Signals) -> None:
    """A terminal and a cluster send their signals to all processes; what is in work must still be saved."""
    learnt = dataset(streets)
    loader = all_of(learnt, 1)
    there = iter(loader)
    next(there)
    workers: Any = getattr(there, "_workers")  # noqa: B009  torch says of no other way to them
    for worker in workers:
        # By another process, as these do; what its own parent sends ends a worker.
        subprocess.run([sys.executable, "-c", f"import os; os.kill({worker.pid}, {number.value})"], check=True)
    assert len(list(there)) == len(learnt) - 1
    assert all(worker.is_alive() for worker in workers)
