"""`quick_status` beside `store_status`, whose answer it gives without Zarr."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hmsa_pipeline.pipeline.store.identity import StoreIdentity
from hmsa_pipeline.pipeline.store.status import StoreStatus, quick_status, stores_status
from hmsa_pipeline.pipeline.store.verify import store_status

from ..stores import SETTINGS

SIZES = {"a.png": (9, 11), "b.png": (9, 11), "c/d.png": (5, 7), "odd.png": None, "e.png": (5, 7)}


def images() -> list[dict[str, Any]]:
    """The table of images of format version 1."""
    rows: dict[str, int] = {}
    found = []
    for name, size in SIZES.items():
        image: dict[str, Any] = {"path": name, "bytes": 3, "height": None, "width": None, "array": None, "row": None}
        if size is not None:
            array = f"{size[0]}x{size[1]}"
            rows[array] = rows.get(array, -1) + 1
            image |= {"height": size[0], "width": size[1], "array": array, "row": rows[array]}
        found.append(image)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of format version 1: one shard is missing, one empty, and one belongs to no image."""
    path = tmp_path / "store.zarr"
    path.mkdir()
    attributes = {"format_version": 1, **StoreIdentity(**SETTINGS).as_json(), "images": images()}
    (path / "zarr.json").write_text(json.dumps({"attributes": attributes, "zarr_format": 3, "node_type": "group"}))
    shards = {"9x11/c.0.0.0.0": 50, "9x11/c.1.0.0.0": 0, "5x7/c.1.0.0.0": 30, "5x7/c.2.0.0.0": 70, "5x7/zarr.json": 9}
    for name, count in shards.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"x" * count)
    for second, name in enumerate(shards):
        os.utime(path / name, (1e9 + second, 1e9 + second))
    (path / "9x11" / ".77.partial").write_bytes(b"x")
    return path


def test_what_a_store_holds_is_counted_without_zarr(path: Path) -> None:
    found = quick_status("street", "ant", path)
    assert found == StoreStatus("street", "ant", 2, 5, 80, "2001-09-09T01:46:42+00:00")
    assert [found] == store_status([("street", "ant", path)])


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    for name in ("nowhere.zarr", "empty.zarr"):
        store = ("street", "ant", tmp_path / name)
        assert [quick_status(*store)] == store_status([store]) == [StoreStatus("street", "ant")]


def test_a_store_without_shards(path: Path) -> None:
    for shard in path.glob("*/c.*"):
        shard.unlink()
    store = ("street", "ant", path)
    assert [quick_status(*store)] == store_status([store]) == [StoreStatus("street", "ant", total=5)]


WRONG: dict[str, Callable[[Any], object]] = {
    "another version": lambda group: group["attributes"].update(format_version=9),
    "an unknown encoding": lambda group: group["attributes"].update(encoding="tiny"),
    "no identity": lambda group: group["attributes"].pop("classes"),
    "no table": lambda group: group["attributes"].pop("images"),
    "no list": lambda group: group["attributes"].update(images={"a": 1}),
    "an image without its place": lambda group: group["attributes"]["images"][0].pop("row"),
    "an array": lambda group: group.update(node_type="array"),
    "no attributes": lambda group: group.pop("attributes"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_store_in_trouble_is_left_to_the_closer_look(path: Path, change: Callable[[Any], object]) -> None:
    group = json.loads((path / "zarr.json").read_text())
    change(group)
    (path / "zarr.json").write_text(json.dumps(group))
    store = ("street", "ant", path)
    assert quick_status(*store) is None
    (found,) = stores_status([store])
    assert found.problem is not None
    assert [found] == store_status([store])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'{"attributes": []}', b"\xff"])
def test_metadata_that_are_no_metadata_are_left_to_the_closer_look(path: Path, content: bytes) -> None:
    (path / "zarr.json").write_bytes(content)
    assert quick_status("street", "ant", path) is None


def test_neither_zarr_nor_numpy_is_loaded(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from hmsa_pipeline.pipeline.store.status import stores_status\n"
        f"(found,) = stores_status([('street', 'ant', Path({str(path)!r}))])\n"
        "print(found.complete, {'zarr', 'numcodecs', 'numpy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 set()\n"


@pytest.fixture(params=["lossless", "small", "compact"])
def columnar(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A store of format version 2, of two images of one size."""
    golden = Path(__file__).parents[2] / "data" / "store" / request.param
    return shutil.copytree(golden, tmp_path / "columnar.zarr")


def test_a_table_of_columns_is_counted_without_zarr(columnar: Path) -> None:
    store = ("street", "ant", columnar)
    found = quick_status(*store)
    assert found is not None
    assert (found.complete, found.total, found.problem) == (2, 2, None)
    assert [found] == store_status([store])
    (columnar / "21x6" / "c.0.0.0.0").unlink()
    found = quick_status(*store)
    assert found is not None
    assert (found.complete, found.total) == (1, 2)
    assert [found] == store_status([store])


def test_shards_of_no_image_are_not_counted(columnar: Path) -> None:
    store = ("street", "ant", columnar)
    (columnar / "21x6" / "c.0.0.0.0").unlink()
    for name in ("21x6/c.2.0.0.0", "21x6/c.00.0.0.0", "7x7/c.0.0.0.0"):
        (columnar / name).parent.mkdir(exist_ok=True)
        (columnar / name).write_bytes(b"x" * 50)
    found = quick_status(*store)
    assert found is not None
    assert (found.complete, found.total) == (1, 2)
    assert [found] == store_status([store])


def test_numpy_is_not_loaded_for_a_table_of_columns(columnar: Path) -> None:
    test_neither_zarr_nor_numpy_is_loaded(columnar)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[9] ^= 1
    path.write_bytes(content)


COLUMNS: dict[str, Callable[[Path], object]] = {
    "a path's byte": lambda images: flipped(images / "path" / "c.0"),
    "a number's byte": lambda images: flipped(images / "numbers" / "c.0.0"),
    "no paths": lambda images: (images / "path" / "c.0").unlink(),
    "an empty chunk": lambda images: (images / "numbers" / "c.0.0").write_bytes(b""),
    "no array": lambda images: (images / "numbers" / "zarr.json").unlink(),
    "an array of nothing": lambda images: (images / "path" / "zarr.json").write_text("{}"),
}


@pytest.mark.parametrize("change", COLUMNS.values(), ids=COLUMNS)
def test_columns_in_trouble_are_left_to_the_closer_look(columnar: Path, change: Callable[[Path], object]) -> None:
    change(columnar / "images")
    store = ("street", "ant", columnar)
    assert quick_status(*store) is None
    assert stores_status([store]) == store_status([store])


def test_numbers_in_trouble_are_a_problem(columnar: Path) -> None:
    flipped(columnar / "images" / "numbers" / "c.0.0")
    (found,) = stores_status([("street", "ant", columnar)])
    assert found.problem is not None


def test_rows_of_a_writer_that_died_are_left_to_the_closer_look(columnar: Path) -> None:
    group = json.loads((columnar / "zarr.json").read_text())
    group["attributes"]["images"] = 1
    (columnar / "zarr.json").write_text(json.dumps(group))
    store = ("street", "ant", columnar)
    assert quick_status(*store) is None
    (found,) = stores_status([store])
    assert (found.complete, found.total, found.problem) == (1, 1, None)
