"""Outputs in an object store: the same contract behind a URL."""

from __future__ import annotations

import io
import json
import re
import sys
import time
import uuid
from typing import Any, cast

import numpy as np
import pytest
import yaml
from hmsa_pipeline.pipeline.storage import filesystem as places
from hmsa_pipeline.pipeline.storage import object_store
from hmsa_pipeline.pipeline.storage.filesystem import listing, parse_location
from hmsa_pipeline.pipeline.storage.writer_lock import writer_lock
from hmsa_pipeline.pipeline.store.logit_store import LogitStore

from ..documents import DOCS
from ..pipeline.storage.odd_server import odd_server
from ..pipeline.stores import filled, photo, same_bits, strips_of_eight
from .bench import Bench, ended, files, quiet, run, start_python, stored
from .faults import kill, wait_for


@pytest.fixture
def cloud(bucket: str, empty: Bench) -> Bench:
    """A bench whose manifest says that its output is a URL."""
    empty.manifest.write_text(yaml.safe_dump(empty.tree | {"output": f"{bucket}/run"}, sort_keys=False))
    return empty


@pytest.fixture
def url(bucket: str) -> str:
    return f"{bucket}/run"


def objects(url: str) -> dict[str, bytes]:
    """All that lies below ``url``."""
    return {found.name: places.read_bytes(parse_location(url) / found.name) for found in listing(parse_location(url))}


def times(url: str) -> dict[str, int]:
    return {found.name: found.modified for found in listing(parse_location(url))}


def same(url: str, reference: Bench) -> bool:
    """Whether the object store holds what the folder of ``reference`` holds, and nothing else; times apart."""
    there, expected = objects(url), files(reference.output)
    return {k: v for k, v in there.items() if k != "run.json"} == {
        k: v for k, v in expected.items() if k != "run.json"
    }


def test_the_same_bytes_as_on_a_disk(cloud: Bench, url: str, finished: Bench) -> None:
    result = cloud.run("dump")
    assert (result.code, quiet(result.err)) == (0, [])
    assert f"stores: {url}/logits" in result.out
    result = cloud.run("ensemble")
    assert (result.code, quiet(result.err)) == (0, [])
    assert same(url, finished)

    record: Any = json.loads(objects(url)["run.json"])
    assert record["dump"]["street/ant"]["done"] == 4
    assert record["dump"]["street/ant"]["manifest"]["output"] == url
    assert record["ensemble"]["garden"]["done"] == 2

    status = cloud.run("status", "--json", "-").figures
    assert {(row["complete"], row["total"], row["problem"]) for row in status} == {(4, 4, None), (2, 2, None)}
    assert cloud.run("verify").out.startswith("18 images are sound, 0 damaged, 0 unreadable")

    before = times(url)
    assert "18 pictures, 0 images failed" in cloud.run("render", "--write", str(cloud.root / "pictures")).out
    assert "nothing to do: all 18 images are complete" in cloud.run("dump").out
    assert cloud.run("dump", "--dry-run").code == 0
    assert times(url) == before


def test_plain_zarr_reads_a_store_as_the_page_says(cloud: Bench, bucket: str, finished: Bench) -> None:
    section = (DOCS / "store.md").read_text().partition("## In an object store\n")[2]
    (program, *_) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    program = program.replace('"bucket"', repr(bucket.removeprefix("s3://"))).replace(
        "bravo_ACDC/cityscapes", "garden/ant"
    )
    assert cloud.run("dump", "--models", "ant", "--datasets", "garden").code == 0
    found: dict[str, Any] = {}
    exec(program, found)
    np.testing.assert_array_equal(found["logits"], stored(finished.store("garden", "ant"))[found["image"]])


def test_small_logits_are_read_there_by_strips_and_whole(url: str) -> None:
    with strips_of_eight():
        store, made = filled(parse_location(url) / "s.zarr", [photo("a.png"), photo("b.png")], encoding="small")
        again = LogitStore.open(store.path)
        for index, name in enumerate(("a.png", "b.png")):
            assert same_bits(again.read(index), made[name])
            assert same_bits(again.read(index, 11, 19), made[name][:, 11:19])
        again.check(1)


def test_predictions_at_once_with_the_logits_of_one_member(cloud: Bench, url: str, finished: Bench) -> None:
    result = cloud.run("predict", "--keep", "bee")
    assert (result.code, quiet(result.err)) == (0, [])
    there, expected = objects(url), files(finished.output)
    kept = {k: v for k, v in expected.items() if k.startswith("predictions/") or "/bee.zarr/" in k}
    notes = {"run.json", "photographs/street.json", "photographs/garden.json"}
    assert notes <= there.keys()
    assert {k: v for k, v in there.items() if k not in notes} == kept
    before = times(url)
    assert "nothing to do: all 6 predictions are there" in cloud.run("predict", "--keep", "bee").out
    assert times(url) == before


@pytest.mark.slow(every_change=True)
def test_killed_and_resumed_with_two_workers(cloud: Bench, url: str, finished: Bench) -> None:
    process = cloud.start("dump", "--workers", "2")

    def shards() -> dict[str, int]:
        return {name: when for name, when in times(url).items() if "/c." in name and "images/" not in name}

    wait_for(lambda: len(shards()) >= 3)
    kill(process)
    process.communicate()
    before = shards()
    assert 3 <= len(before) < 18
    time.sleep(1.1)  # times in an object store are whole seconds
    result = ended(cloud.start("dump", "--workers", "2"))
    assert (result.code, quiet(result.err)) == (0, [])
    assert before.items() <= shards().items(), "a complete image was made again"
    result = ended(cloud.start("ensemble", "--workers", "2"))
    assert (result.code, quiet(result.err)) == (0, [])
    assert same(url, finished)


def test_a_damaged_shard_is_moved_and_made_again(cloud: Bench, url: str, finished: Bench) -> None:
    cloud.run("dump")
    time.sleep(1.1)  # times in an object store are whole seconds, and predictions have to be younger than logits
    cloud.run("ensemble")
    shard = parse_location(url) / "logits/street/ant.zarr/48x80/c.1.0.0.0"
    whole = places.read_bytes(shard)
    places.write_bytes(shard, whole[:-100])
    time.sleep(1.1)
    result = cloud.run("verify")
    assert result.code == 1
    assert f"{shard}: the logits of day/b.jpg are damaged" in result.out + result.err
    assert cloud.run("verify", "--repair").code == 0
    assert objects(url)["damaged/street/ant/48x80/c.1.0.0.0"] == whole[:-100]
    assert places.size(shard) is None
    assert "street/ant: 1 done, 3 complete before" in cloud.run("dump").out
    result = cloud.run("ensemble")  # the one prediction is older than its logits
    assert "street: 1 fused, 3 done before" in result.out
    places.remove_folder(parse_location(url) / "damaged")
    assert same(url, finished)


def test_other_settings_are_refused_and_overwritten(cloud: Bench, url: str, finished: Bench) -> None:
    cloud.tree["inference"]["scales"] = [1.0]
    cloud.manifest.write_text(yaml.safe_dump(cloud.tree | {"output": url}, sort_keys=False))
    assert cloud.run("dump").code == 0
    cloud.tree["inference"]["scales"] = [0.5, 1.0, 2.0]
    cloud.manifest.write_text(yaml.safe_dump(cloud.tree | {"output": url}, sort_keys=False))
    assert "was made with other settings (scales" in cloud.run("dump").refusal()
    assert cloud.run("dump", "--overwrite").code == 0
    assert cloud.run("ensemble").code == 0
    assert same(url, finished)


def test_a_removal_that_was_interrupted_goes_on_without_the_flag(
    cloud: Bench, url: str, finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cloud.run("dump", "--models", "ant").code == 0

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hmsa_pipeline.pipeline.store.logit_store.remove_folder", die)
        assert cloud.run("dump", "--models", "ant", "--overwrite").code == 130
    assert not LogitStore.exists(parse_location(url) / "logits/street/ant.zarr")
    assert cloud.run("dump").code == 0
    assert cloud.run("ensemble").code == 0
    assert same(url, finished)


def test_shards_without_a_table_are_not_taken_for_rubbish(cloud: Bench, url: str) -> None:
    assert cloud.run("dump", "--models", "ant", "--datasets", "street").code == 0
    places.remove(parse_location(url) / "logits/street/ant.zarr/zarr.json")
    result = cloud.run("dump", "--models", "ant", "--datasets", "street")
    assert result.code == 1
    assert "holds logits but no zarr.json" in result.out + result.err
    assert places.size(parse_location(url) / "logits/street/ant.zarr/48x80/c.0.0.0.0")


def test_a_store_in_use_is_refused(cloud: Bench, url: str) -> None:
    holder = {"host": "elsewhere", "machine": "x", "pid": 1, "started": "1", "since": "noon", "token": "t"}
    places.write_bytes(parse_location(url) / "logits/street/ant.zarr.lock", json.dumps(holder).encode())
    said = cloud.run("dump").refusal()
    assert said.startswith(f"{url}/logits/street/ant.zarr.lock: held by process 1 on elsewhere since noon")


@pytest.mark.parametrize("conditions", ["heed", "ignore", "refuse"])
def test_a_server_that_cannot_keep_two_runs_apart_is_named_before_the_first_image(
    empty: Bench, monkeypatch: pytest.MonkeyPatch, conditions: str
) -> None:
    monkeypatch.setattr(object_store, "SETTLE_SECONDS", 0.05)
    root = f"s3://bucket-{uuid.uuid4().hex}"
    said = f"note: {root}: this server ignores If-None-Match; two runs that start in the same moment cannot be kept "
    said += "apart, so start a second one later\n"
    at_first_image: list[str] = []

    def look(request: str) -> None:
        if request.startswith("PUT") and "/c." in request and not at_first_image:
            at_first_image.append(cast("io.StringIO", sys.stderr).getvalue())

    with odd_server(AWS_MAX_ATTEMPTS="1") as server:
        server.conditions, server.before = conditions, look
        words = ("dump", "--models", "ant", "--limit", "1", "--datasets", "garden", "--output", f"{root}/run")
        result = empty.run(*words)
        assert (result.code, result.err) == (0, "" if conditions == "heed" else said)
        assert at_first_image == [result.err]
        with writer_lock(parse_location(f"{root}/run/logits/garden/ant.zarr")):
            assert "held by process" in empty.run(*words).refusal()


def test_logits_made_elsewhere_are_imported(cloud: Bench, url: str, finished: Bench) -> None:
    folder = cloud.root / "theirs"
    logits = stored(finished.store("garden", "ant"))
    for image, values in logits.items():
        file = folder / f"{image.rpartition('.')[0]}_logits.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, logits=values)
    cloud.tree["models"].append({"name": "owl", "arch": "external"})
    cloud.manifest.write_text(yaml.safe_dump(cloud.tree | {"output": url}, sort_keys=False))
    result = cloud.run("import-logits", "--model", "owl", "--dataset", "garden", str(folder))
    assert (result.code, result.err) == (0, "")
    store = LogitStore.open(parse_location(url) / "logits/garden/owl.zarr")
    for image, values in logits.items():
        np.testing.assert_array_equal(store.read(store.index[image]), values)


# ------------------------------------------------------------------ wrong input


def test_a_bucket_that_is_not_there(empty: Bench, bucket: str) -> None:
    said = empty.run("dump", "--output", f"{bucket}-x/run").refusal()
    assert said.startswith(f"{bucket}-x/run: cannot be written (The specified bucket does not exist)")
    assert said.endswith("or make the bucket, or give your keys the right to write")
    said = empty.run("ensemble", "--output", f"{bucket}-x/run").refusal()
    assert f"{bucket}-x/run/logits/street/ant.zarr: there is no store" in said


@pytest.mark.parametrize("trouble", [{"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, {"AWS_SECRET_ACCESS_KEY": ""}])
def test_a_server_that_cannot_be_asked(cloud: Bench, url: str, trouble: dict[str, str]) -> None:
    nowhere = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}
    result = ended(cloud.start("dump", "--workers", "0", env=trouble | nowhere))
    assert result.code == 2, result
    (line,) = (line for line in result.err.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: {url}/logits/")


WITHOUT = "import sys; sys.modules[sys.argv.pop(1)] = None; from hmsa_pipeline.cli import main; main()"


def test_a_package_that_is_missing_is_named(empty: Bench) -> None:
    options = ("status", "--manifest", str(empty.manifest), "--output", "s3://bucket/run")
    result = ended(start_python("-c", WITHOUT, "obstore", *options))
    assert "install hmsa-pipeline[cloud]" in result.refusal()


def test_only_outputs_may_be_urls(empty: Bench) -> None:
    empty.tree["datasets"][0]["root"] = "s3://bucket/photos"
    empty.save()
    said = empty.run("dump").refusal()
    assert "dataset 'street'" in said
    assert "only the output may be a URL" in said
    said = run("train", "--dataset", "gta5", "--data-root", "x", "--output", "s3://bucket/run", "--dry-run").refusal()
    assert "a folder on a disk is needed, not the text 's3://bucket/run'" in said
