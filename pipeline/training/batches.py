"""Which images a step of training sees, and how they get there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ...datasets.class_uniform import EpochSource, plan_epoch
from ...datasets.parallel import end_with_parent, start_server
from ...datasets.segmentation_dataset import MixedDataset, Sample, SampleRequest, SegmentationDataset
from ...errors import DatasetError, HmsaError
from ..config.recipe import Recipe
from ..runtime.device import is_out_of_memory


class Batch(NamedTuple):
    """Images that pass through the network together."""

    images: Tensor  # (N, 3, H, W) uint8, RGB
    labels: Tensor  # (N, H, W) uint8 train ids
    paths: list[str]  # of the images, relative to the dataset's root
    more: Mapping[str, Tensor]  # by the names of `Sample.more`, each (N, ...)


def epoch_samples(recipe: Recipe, length: int, sources: Sequence[EpochSource], epoch: int) -> list[SampleRequest]:
    """List an epoch's samples in order: whole steps of ``global_batch`` images, one step at least.

    It depends on the recipe's seed, the sources and the epoch alone, so that every process and every resumed run sees
    the same.

    Args:
        recipe: its seed, batch and sampling.
        length: images of an epoch, before they are made up to whole steps.
        sources: what is drawn from in this epoch; see `plan_epoch`.
        epoch: from 0.
    """
    # RandomState and not Generator: NumPy has promised never to change the numbers it gives.
    rng = np.random.RandomState([recipe.seed, epoch])
    planned = plan_epoch(length, sources, recipe.sampling.class_uniform, rng, len(recipe.class_set))
    planned = planned[rng.permutation(len(planned))]
    size = recipe.global_batch
    planned = np.resize(planned, (max(1, len(planned) // size) * size, 4))
    seeds = rng.randint(2**31, size=len(planned))
    return [
        SampleRequest(int(image), int(seed), (int(x), int(y)) if label >= 0 else None)
        for (image, label, x, y), seed in zip(planned, seeds, strict=True)
    ]


class StepSampler:
    """This process' share of an epoch's steps, batch by batch; a sampler that can begin in the middle.

    A step is the same ``global_batch`` images however many processes share it and in however many batches.
    """

    def __init__(self, global_batch: int, batch_size: int, rank: int, world_size: int) -> None:
        self._global, self._size = global_batch, batch_size
        self._start, self._share = rank * (global_batch // world_size), global_batch // world_size
        self._samples: Sequence[SampleRequest] = ()
        self._first = 0

    @property
    def per_step(self) -> int:
        """Batches of a step."""
        return self._share // self._size

    def begin(self, samples: Sequence[SampleRequest], step: int) -> None:
        """The next epoch is ``samples``, from step ``step`` on."""
        self._samples, self._first = samples, step

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        for step in range(self._first, len(self._samples) // self._global):
            start = step * self._global + self._start
            for place in range(start, start + self._share, self._size):
                yield list(self._samples[place : place + self._size])


class _ErrorsAsItems(Dataset[Any]):
    """Gives errors back where a worker would wrap them into its traceback."""

    def __init__(self, dataset: SegmentationDataset | MixedDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, request: SampleRequest | int) -> Sample | HmsaError:
        try:
            return self._dataset[request]
        except HmsaError as error:
            return error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return DatasetError(
                f"{self._path(request)}: does not fit into memory with what is made of it; lower --crop-size, "
                "augmentation.long_edge or --workers"
            )
        except ValueError as error:
            return DatasetError(
                f"{self._path(request)}: {error}; if it was changed since its mask was first read, remove the cache"
            )

    def _path(self, request: SampleRequest | int) -> Path:
        return self._dataset.image_path(request if isinstance(request, int) else request.image)


def _collate(samples: list[Sample | HmsaError]) -> Batch | HmsaError:
    for sample in samples:
        if isinstance(sample, HmsaError):
            return sample
    images, labels, paths, more = default_collate(samples)
    return Batch(images, labels, list(paths), more)


def validation_loader(
    dataset: SegmentationDataset, rank: int, world_size: int, workers: int, device: torch.device
) -> DataLoader[Any]:
    """Load the images that this process scores, one at a time; the processes share them without overlap.

    Args:
        dataset, workers, device: see `batch_loader`.
        rank: of this process.
        world_size: how many processes there are.
    """
    return batch_loader(dataset, [[place] for place in range(rank, len(dataset), world_size)], workers, device)


def batch_loader(
    dataset: SegmentationDataset | MixedDataset, sampler: Iterable[list[Any]], workers: int, device: torch.device
) -> DataLoader[Any]:
    """Load batches as ``sampler`` lists them, read ahead by worker processes that live as long as the loader.

    Args:
        dataset: a split, or several.
        sampler: lists the batches of this process.
        workers: processes that read ahead; 0 for none.
        device: to which batches will go.
    """
    workers = min(workers, os.cpu_count() or 1)
    if workers:
        start_workers_server()
    return DataLoader(
        _ErrorsAsItems(dataset),
        batch_sampler=sampler,
        num_workers=workers,
        # Never a plain fork: by now this process holds threads, whose locks nobody would open in the copy.
        multiprocessing_context="forkserver" if workers else None,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=_end_with_parent if workers else None,
        # One of its own: else every epoch would take a number from those that dropout is drawn from.
        generator=torch.Generator(),
    )


def start_workers_server() -> None:
    """Start what worker processes are forked from; it imports what they need once, and they share its memory."""
    start_server([__name__])


def _end_with_parent(worker: int) -> None:
    """In a worker: only its parent ends it.

    Ctrl-C and a cluster's SIGTERM reach the workers too, whose images are needed until the run is saved. The parent's
    own SIGTERM must not be ignored: it would wait for ever for the worker's end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # not on macOS
        # Before any thread is there, which would take the signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by, args=(parent.pid,), name="SIGTERM", daemon=True).start()
    end_with_parent()


def _end_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def batches(loader: DataLoader[Any]) -> Iterator[Batch]:
    """The loader's batches; DatasetError if an image or its mask cannot be read."""
    for batch in loader:
        if isinstance(batch, HmsaError):
            raise batch
        yield batch
