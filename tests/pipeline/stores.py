"""Small stores, photographs and manifests for the tests of the storage side."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
import zarr
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.pipeline.config.load_manifest import load_manifest
from hmsa_pipeline.pipeline.config.manifest import Manifest
from hmsa_pipeline.pipeline.storage.output_folder import store_path
from hmsa_pipeline.pipeline.store import image_table, table_columns, table_update, zarr_backend
from hmsa_pipeline.pipeline.store.identity import StoreIdentity
from hmsa_pipeline.pipeline.store.image_table import Photograph
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from PIL import Image

CLASSES = len(CLASS_NAMES)
VERSIONS = {"package_version": "1.2.3", "torch_version": "4.5.6"}
SIZE = (48, 80)
SETTINGS: dict[str, Any] = {
    "model": "ant",
    "architecture": "hrnet_tiny_ocr_mscale",
    "checkpoint": "ant.pth",
    "sha256": "0123456789abcdef" * 4,
    "scales": (0.5, 1.0, 2.0),
    "flip": False,
    "precision": "fp32",
    "classes": CLASS_NAMES,
    "preprocessing": {"colour": "RGB", "mean": [0.485, 0.456, 0.406]},
    "encoding": "lossless",
    "source": None,
}


def identity(**changes: Any) -> StoreIdentity:
    return StoreIdentity(**SETTINGS | changes)


def photo(path: str, size: tuple[int, int] | None = SIZE, length: int = 1000) -> Photograph:
    return Photograph(path, length, size)


def logits(seed: int, height: int, width: int) -> np.ndarray:
    draw = np.random.default_rng(seed).standard_normal((CLASSES, height, width))
    return (5.0 * draw).astype(np.float16)


def begun(path: Path, photos: list[Photograph], **changes: Any) -> LogitStore:
    """A store with its table of images and no logits."""
    store = LogitStore.for_writing(path, identity(**changes), VERSIONS)
    store.register(photos)
    return store


def filled(path: Path, photos: list[Photograph], **changes: Any) -> tuple[LogitStore, dict[str, np.ndarray]]:
    """A store with logits of every photograph, and those logits by path."""
    store, made = begun(path, photos, **changes), {}
    for index, entry in enumerate(store.images):
        if entry.height and entry.width:
            made[entry.path] = logits(index, entry.height, entry.width)
            store.write(index, made[entry.path])
    return store, made


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    """Equal to the last bit, where == would take -0.0 for 0.0."""
    return first.dtype == second.dtype == np.float16 and np.array_equal(first.view(np.uint16), second.view(np.uint16))


def made_version_1(path: Path) -> None:
    """Make a store one of format version 1, whose table of images is a list among the attributes."""
    images = [asdict(entry) for entry in LogitStore.open(path).images]
    edit_json(path / "zarr.json", lambda group: group["attributes"].update(format_version=1, images=images))
    shutil.rmtree(path / "images", ignore_errors=True)


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@contextlib.contextmanager
def strips_of_eight() -> Iterator[None]:
    """Strips as low as they get, so that small images have several; for use inside hypothesis' tests too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr_backend, "STRIP_BYTES", 0)
        yield


@contextlib.contextmanager
def chunks_of_five() -> Iterator[None]:
    """Chunks of five rows in the table of images, so that a small table has several."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (table_columns, image_table, table_update):
            patch.setattr(module, "CHUNK_ROWS", 5)
        yield


def plain_array(path: Path, name: str, mode: Literal["r", "r+"] = "r") -> zarr.Array[Any]:
    """An array of a store, opened by zarr alone."""
    array = zarr.open_group(path, mode=mode)[name]
    assert isinstance(array, zarr.Array)
    return array


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def flip_bit(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def manifest_of(root: Path, models: list[str], datasets: Mapping[str, Path], output: Path | None = None) -> Manifest:
    """A manifest of external members over trees of images, its output in ``root/out``."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "manifest.yaml").write_text(
        yaml.safe_dump(
            {
                "version": 1,
                "output": str(output or root / "out"),
                "models": [{"name": name, "arch": "external"} for name in models],
                "datasets": [{"name": name, "type": "folder", "root": str(at)} for name, at in datasets.items()],
            }
        )
    )
    return load_manifest(root / "manifest.yaml")


def store_at(manifest: Manifest, dataset: str, model: str) -> Path:
    return store_path(manifest.output, dataset, model)


def draw_photo(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
