"""What holds for every test: where modules come from, and which machine a test needs."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings

from .s3_server import s3_server

# With the repository's root on the path, `import datasets` would find ours instead of Hugging Face's,
# and the tests would not see that the package imports its own modules by a wrong name.
_ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _ROOT]


# Of tests side by side none may take all cores; before anybody imports torch.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Workers of a loader are forked from a process that has loaded torch, instead of loading it each.
multiprocessing.get_context("forkserver").set_forkserver_preload(["hmsa_pipeline.pipeline.training.batches"])

# How long an example takes is no property of the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# Files that take minutes come first, so that side by side none is left over for the end.
_LONGEST = (
    *("test_predict", "test_demo", "test_train", "test_workers", "test_cloud", "test_cluster", "test_report"),
    *("test_train_interruptions", "test_interruptions", "test_dump", "test_datasets", "test_trouble_of_one"),
    *("test_report_page", "test_docs", "test_every_option", "test_train_wrong_input", "test_bravo"),
)


_LISTED = {*_ROOT.joinpath("tests", "long_tests.txt").read_text().split()}


def _mark_long(items: list[pytest.Item]) -> None:
    """Mark the tests that tests/long_tests.txt lists; UsageError if it lists one that is gone."""
    names = {item: item.nodeid.split("[")[0] for item in items}
    files = {name.split("::")[0] for name in names.values()}
    whole = not any("::" in argument for argument in items[0].config.args) if items else False
    gone = sorted(one for one in _LISTED - {*names.values()} - files if one.split("::")[0] in files)
    if whole and gone:
        raise pytest.UsageError(f"tests/long_tests.txt: {gone[0]} is no test; write its new name, or take it out")
    for item, name in names.items():
        if name in _LISTED or name.split("::")[0] in _LISTED:
            item.add_marker("long")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; tests marked ``gpu`` skip themselves where torch sees no CUDA device."""
    _mark_long(items)
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[dict[str, str]]:
    """An object store on this machine; what the environment must hold to reach it."""
    with s3_server() as variables:
        yield variables


@pytest.fixture
def bucket(_s3_server: dict[str, str]) -> Iterator[str]:
    """The URL of a bucket with nothing in it, which this process and its children reach."""
    import boto3

    with mock.patch.dict(os.environ, _s3_server):
        name = f"bucket-{uuid.uuid4().hex}"
        boto3.client("s3").create_bucket(Bucket=name)
        yield f"s3://{name}"
