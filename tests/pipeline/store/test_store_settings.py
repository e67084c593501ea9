"""Whose store it is: other settings are never mixed in, other versions and damaged metadata are refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.store import logit_store as store_module
from hmsa_pipeline.pipeline.store.logit_store import LogitStore

from ..stores import SIZE, VERSIONS, begun, edit_json, filled, identity, logits, photo, same_bits, tree

PHOTOS = [photo("a.png"), photo("b.png")]
OTHER: dict[str, Any] = {
    "model": "bee",
    "architecture": "hrnet_ocr",
    "sha256": "f" * 64,
    "scales": (1.0,),
    "flip": True,
    "precision": "fp16",
    "classes": ("road", "rest"),
    "preprocessing": {"colour": "BGR"},
    "encoding": "compact",
    "source": {"folder": "/else", "channels": None},
}


@pytest.mark.parametrize("name", OTHER)
def test_a_store_made_with_other_settings_is_refused_naming_what_differs(where: Path, name: str) -> None:
    filled(where, PHOTOS)
    before = tree(where)
    with pytest.raises(StoreError) as caught:
        LogitStore.for_writing(where, identity(**{name: OTHER[name]}), VERSIONS)
    message = str(caught.value)
    assert message.startswith(f"{where}: was made with other settings ({name} ")
    assert "there, " in message
    assert "--overwrite" in message
    assert "\n" not in message
    assert [other for other in OTHER if f" {other} " in f" {message}"] == []
    assert tree(where) == before


def test_every_difference_is_named(where: Path) -> None:
    begun(where, PHOTOS)
    with pytest.raises(StoreError, match=r"flip False there, True now; precision fp32 there, fp16 now"):
        LogitStore.open(where).require(identity(flip=True, precision="fp16"))


def test_a_checkpoint_under_another_name_and_newer_software_go_on_with_the_store(where: Path) -> None:
    _, made = filled(where, PHOTOS)
    before = tree(where)
    store = LogitStore.for_writing(where, identity(checkpoint="renamed.pth"), {"package_version": "9"})
    assert same_bits(store.read(0), made["a.png"])
    assert tree(where) == before


def test_imported_logits_have_no_network_and_keep_their_source(where: Path) -> None:
    nothing = dict.fromkeys(("checkpoint", "sha256", "scales", "flip", "precision", "preprocessing"))
    source = {"kind": "logits", "folder": "/there", "channels": [3, 1, 2]}
    made = identity(architecture="external", source=source, **nothing)
    store = LogitStore.for_writing(where, made, VERSIONS)
    assert LogitStore.open(where).identity == store.identity == made
    LogitStore.open(where).require(identity(architecture="external", source=dict(source), **nothing))


def test_overwrite_takes_every_old_shard_away_before_new_settings_stand_there(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(where, PHOTOS)
    seen = []
    create = store_module.zarr.create_group

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(where.exists() and tree(where))
        return create(*args, **kwargs)

    monkeypatch.setattr(store_module.zarr, "create_group", spy)
    store = LogitStore.for_writing(where, identity(flip=True), VERSIONS, overwrite=True)
    assert seen == [False]
    assert set(tree(where.parent)) == {"ant.zarr/zarr.json"}
    store.register(PHOTOS)
    assert store.complete() == [False, False]


def test_an_overwrite_that_dies_leaves_no_half_store_and_the_next_writer_sweeps_up(
    where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(where, PHOTOS)

    def die(folder: Path) -> None:
        (folder / "zarr.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            LogitStore.for_writing(where, identity(flip=True), VERSIONS, overwrite=True)
    assert not LogitStore.exists(where)
    store = begun(where, PHOTOS, flip=True)
    assert store.complete() == [False, False]
    columns = {"zarr.json", "path/zarr.json", "path/c.0", "numbers/zarr.json", "numbers/c.0.0"}
    assert set(tree(where)) == {"zarr.json", "48x80/zarr.json", *(f"images/{name}" for name in columns)}
    assert [file.name for file in where.parent.iterdir()] == ["ant.zarr"]


def test_shards_without_the_metadata_that_name_them_are_not_thrown_away_unasked(where: Path) -> None:
    filled(where, PHOTOS)
    kept = (where / "zarr.json").read_bytes()
    (where / "zarr.json").unlink()
    before = tree(where)
    with pytest.raises(StoreError, match=r"holds logits but no zarr\.json.*put it back.*--overwrite"):
        LogitStore.for_writing(where, identity(), VERSIONS)
    assert tree(where) == before
    (where / "zarr.json").write_bytes(kept)
    assert LogitStore.for_writing(where, identity(), VERSIONS).complete() == [True, True]
    (where / "zarr.json").unlink()
    LogitStore.for_writing(where, identity(), VERSIONS, overwrite=True)
    assert set(tree(where)) == {"zarr.json"}


@pytest.mark.parametrize("kind", ["link", "file"])
def test_overwrite_does_not_follow_a_link_or_remove_a_file_that_is_no_store(where: Path, kind: str) -> None:
    elsewhere = where.with_name("elsewhere.zarr")
    filled(elsewhere, PHOTOS)
    before = tree(elsewhere)
    if kind == "link":
        where.symlink_to(elsewhere)
    else:
        where.write_text("mine")
    with pytest.raises(StoreError, match="link or a file; remove it by hand"):
        LogitStore.for_writing(where, identity(), VERSIONS, overwrite=True)
    assert tree(elsewhere) == before
    assert where.exists()


def test_a_store_that_was_started_afresh_is_not_read_by_the_old_table(where: Path) -> None:
    filled(where, PHOTOS)
    reader = LogitStore.open(where)
    reader.read(0)
    LogitStore.for_writing(where, identity(), VERSIONS, overwrite=True)
    with pytest.raises(StoreError):
        reader.read(0)
    filled(where, [photo("first.png"), *PHOTOS])
    # Row 0 is another photograph's by now.
    with pytest.raises(StoreError, match="was started over meanwhile"):
        reader.read(0)


def test_a_writer_whose_store_was_started_afresh_by_another_writes_nothing_into_it(where: Path) -> None:
    old = begun(where, PHOTOS)
    LogitStore.for_writing(where, identity(flip=True), VERSIONS, overwrite=True).register(PHOTOS)
    with pytest.raises(StoreError, match="was started over meanwhile"):
        old.write(0, logits(0, *SIZE))
    assert LogitStore.open(where).complete() == [False, False]


def test_a_reader_goes_on_while_the_table_grows(where: Path) -> None:
    _, made = filled(where, PHOTOS)
    reader = LogitStore.open(where)
    begun(where, [photo("0.png", (33, 57)), *PHOTOS, photo("z.png")])
    assert same_bits(reader.read(0), made["a.png"])
    assert same_bits(reader.read(1), made["b.png"])


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_a_store_of_another_format_version_is_refused(where: Path, version: object) -> None:
    filled(where, PHOTOS)
    edit_json(where / "zarr.json", lambda group: group["attributes"].update(format_version=version))
    with pytest.raises(StoreError, match=rf"is of format version {version}, this hmsa-pipeline reads 1 and 2"):
        LogitStore.open(where)
    with pytest.raises(StoreError, match="is of format version"):
        LogitStore.for_writing(where, identity(), VERSIONS)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


DAMAGES = {
    "cut off": cut,
    "empty": lambda path: path.write_bytes(b""),
    "not JSON": lambda path: path.write_bytes(b"\x00\xff\xfe" * 100),
    "a list": lambda path: path.write_text("[]"),
    "an empty object": lambda path: path.write_text("{}"),
    "an array's": lambda path: shutil.copy(path.parent / "48x80" / "zarr.json", path),
    "no attributes": lambda path: edit_json(path, lambda group: group.pop("attributes")),
    "attributes in a list": lambda path: edit_json(path, lambda group: group.update(attributes=[1])),
    "no images": lambda path: edit_json(path, lambda group: group["attributes"].pop("images")),
    "no classes": lambda path: edit_json(path, lambda group: group["attributes"].update(classes=None)),
    "classes in a text": lambda path: edit_json(path, lambda group: group["attributes"].update(classes="road")),
    "scales in a text": lambda path: edit_json(path, lambda group: group["attributes"].update(scales="1.0")),
    **{
        f"no {name}": lambda path, name=name: edit_json(path, lambda group: group["attributes"].pop(name))
        for name in ("format_version", "model", "sha256", "source")
    },
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_metadata_are_refused_in_one_line_and_nothing_is_lost(where: Path, damage: str) -> None:
    filled(where, PHOTOS)
    DAMAGES[damage](where / "zarr.json")
    before = tree(where)
    for attempt in (
        lambda: LogitStore.open(where),
        lambda: LogitStore.for_writing(where, identity(), VERSIONS),
    ):
        with pytest.raises(StoreError, match="its metadata cannot be understood") as caught:
            attempt()
        assert str(caught.value).startswith(f"{where}: ")
        assert "\n" not in str(caught.value)
    assert tree(where) == before


def test_no_store_is_an_error_that_says_how_to_make_one(where: Path) -> None:
    assert not LogitStore.exists(where)
    with pytest.raises(StoreError, match=r"there is no store; make it with 'hmsa-pipeline dump'"):
        LogitStore.open(where)
    assert not where.exists()
