"""Object stores whose servers, networks and keys are not as they should be."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hmsa_pipeline.errors import StoreError
from hmsa_pipeline.pipeline.storage import filesystem, object_store
from hmsa_pipeline.pipeline.storage.filesystem import (
    create_exclusive,
    listing,
    parse_location,
    read_bytes,
    remove,
    remove_folder,
    short_lock,
    size,
    version_tag,
    write_bytes,
)
from hmsa_pipeline.pipeline.storage.writer_lock import writer_lock

from .odd_server import OddServer, odd_server


@pytest.fixture
def server() -> Iterator[OddServer]:
    with odd_server(AWS_MAX_ATTEMPTS="3") as found:
        yield found


@pytest.fixture
def remote() -> Path:
    return parse_location(f"s3://bucket-{uuid.uuid4().hex}/run")


@pytest.fixture
def unlike_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is lost by waiting for other writers."""
    monkeypatch.setattr(object_store, "SETTLE_SECONDS", 0.3)


def once(server: OddServer, start: str, answer: tuple[int, bytes], *, when: str) -> None:
    """Let the first request that begins so get ``answer``, ``before`` it is carried out or ``after``."""
    left = [answer]

    def instead(request: str) -> tuple[int, bytes] | None:
        return left.pop() if left and request.startswith(start) else None

    setattr(server, when, instead)


# ------------------------------------------------------------------ one creates


def test_a_lost_answer_is_no_other_holder(server: OddServer, remote: Path) -> None:
    """The library asks again, and is told that what it has itself just made is there."""
    once(server, "PUT", (0, b""), when="after")
    create_exclusive(remote / "x.lock", b"mine")
    assert server.asked.count(f"PUT /{remote.parts[1]}/run/x.lock") >= 2
    once(server, "PUT", (0, b""), when="after")
    with pytest.raises(FileExistsError):
        create_exclusive(remote / "x.lock", b"yours")
    assert read_bytes(remote / "x.lock") == b"mine"


@pytest.mark.parametrize("status", [409, 500])
def test_who_is_refused_for_another_that_is_refused_too_asks_again(
    server: OddServer, remote: Path, status: int
) -> None:
    once(server, "PUT", (status, b"<Error><Code>ConditionalRequestConflict</Code></Error>"), when="before")
    create_exclusive(remote / "x.lock", b"mine")
    assert read_bytes(remote / "x.lock") == b"mine"


@pytest.mark.parametrize("conditions", ["ignore", "refuse"])
def test_a_server_without_conditions_is_found_out_and_has_one_writer(
    server: OddServer, remote: Path, conditions: str, unlike_ours: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    server.conditions = conditions
    with writer_lock(remote / "ant.zarr"):
        held = read_bytes(remote / "ant.zarr.lock")
        with pytest.raises(StoreError, match="held by process"), writer_lock(remote / "ant.zarr"):
            pass
        assert read_bytes(remote / "ant.zarr.lock") == held
        with short_lock(remote / ".run.lock"):
            pass
    assert list(listing(remote)) == []


@pytest.mark.parametrize("conditions", ["heed", "ignore", "refuse"])
def test_of_two_that_take_a_lock_in_the_same_moment_one_gets_it(
    server: OddServer, remote: Path, conditions: str, unlike_ours: None
) -> None:
    server.conditions = conditions
    together, left = threading.Barrier(2), threading.Event()
    ends: list[str] = []

    def race() -> None:
        together.wait()
        try:
            with writer_lock(remote / "ant.zarr"):
                ends.append("held")
                left.wait(30)
        except StoreError as error:
            ends.append(str(error))
            left.set()

    racers = [threading.Thread(target=race) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert sorted(ends)[0] == "held"
    assert len(ends) == 2
    assert f"{remote}/ant.zarr.lock: held by process {os.getpid()} on " in sorted(ends)[1]
    assert list(listing(remote)) == []


def test_a_writer_that_came_first_is_not_overwritten_before_the_server_is_known(
    server: OddServer, remote: Path
) -> None:
    server.conditions = "ignore"
    write_bytes(remote / "x.lock", b"another's")
    with pytest.raises(FileExistsError):
        create_exclusive(remote / "x.lock", b"mine")
    assert read_bytes(remote / "x.lock") == b"another's"


def test_of_two_that_come_together_the_last_one_holds(
    server: OddServer, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.conditions = "ignore"
    create_exclusive(remote / "y.lock", b"so that the server is known")
    monkeypatch.setattr(object_store, "SETTLE_SECONDS", 1.0)
    other = threading.Timer(0.3, lambda: write_bytes(remote / "x.lock", b"another's"))
    other.start()
    with pytest.raises(FileExistsError) as caught:
        create_exclusive(remote / "x.lock", b"mine")
    other.join()
    assert (caught.value.strerror, caught.value.filename) == (
        "another writer came in the same moment",
        str(remote / "x.lock"),
    )
    assert read_bytes(remote / "x.lock") == b"another's"


def test_a_server_that_heeds_conditions_is_asked_once_for_each_lock(server: OddServer, remote: Path) -> None:
    create_exclusive(remote / "x.lock", b"so that the server is known")
    server.asked.clear()
    create_exclusive(remote / "y.lock", b"mine")
    assert len(server.asked) == 1


# ------------------------------------------------------------------ listings


def test_a_folders_marker_is_no_file(server: OddServer, remote: Path) -> None:
    """Consoles of object stores make an empty object ``run/`` for a folder, and some servers list an emptied one."""
    bucket = f"/{remote.parts[1]}"
    server.objects |= {f"{bucket}/run/": b"", f"{bucket}/run/a": b"1", f"{bucket}/run2/b": b"2"}
    assert [(found.name, found.bytes) for found in listing(remote)] == [("a", 1)]
    assert sorted(found.name for found in listing(remote.parent)) == ["run", "run/a", "run2/b"]


# ------------------------------------------------------------------ what is said


def every_operation(path: Path) -> Iterator[OSError]:
    """The errors of all operations, each in one line that names the place."""
    for ask in (
        lambda: size(path),
        lambda: version_tag(path),
        lambda: read_bytes(path),
        lambda: write_bytes(path, b""),
        lambda: create_exclusive(path, b""),
        lambda: list(listing(path)),
        lambda: filesystem.modified(path),
        lambda: remove(path),
        lambda: remove_folder(path),
        lambda: filesystem.remove_all(path, ["x"]),
        lambda: filesystem.move(path, path),
    ):
        with pytest.raises(OSError) as caught:
            ask()
        assert str(path) in str(caught.value.filename)
        assert caught.value.strerror is not None
        assert len(caught.value.strerror) < 120
        assert "\n" not in caught.value.strerror
        yield caught.value


def test_a_refusal_is_said_in_the_servers_words(server: OddServer, remote: Path) -> None:
    said = b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code><Message>No way\nin</Message></Error>"
    server.before = lambda request: (403, said)
    errors = list(every_operation(remote / "x"))
    assert {type(error) for error in errors} == {PermissionError}
    assert {error.strerror for error in errors} == {"No way in", f"{server.url}: 403 Forbidden"}


def test_an_error_without_a_message_is_said_by_its_code(server: OddServer, remote: Path) -> None:
    server.before = lambda request: (404, b"<Error><Code>NoSuchBucket</Code><BucketName>b</BucketName></Error>")
    with pytest.raises(FileNotFoundError, match="NoSuchBucket") as caught:
        write_bytes(remote / "x", b"")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, f"{remote}/x")


def test_a_server_that_is_not_there(remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with odd_server() as server:
        url = server.url
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for error in every_operation(remote / "x"):
        assert (error.errno, error.strerror) == (errno.EIO, f"{url}: Connection refused")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nowhere.invalid")
    with pytest.raises(OSError, match=r"http://nowhere.invalid: .*(name|Name)"):
        size(parse_location("s3://elsewhere/x"))


def test_a_server_that_says_nothing(server: OddServer, remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmsa_pipeline.pipeline.storage.object_client.REQUEST_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(OSError, match=f"{url}: gave no answer in time"):
            size(remote / "x")


def test_ctrl_c_is_heard_while_a_server_says_nothing(
    server: OddServer, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmsa_pipeline.pipeline.storage.object_client.REQUEST_SECONDS", 7200)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        # Where the tests run in the background, Python may have been started with Ctrl-C ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            with pytest.raises(KeyboardInterrupt):
                size(remote / "x")
        finally:
            signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_ENDPOINT_URL", "127.0.0.1:8333", "has no http:// or https:// before it; correct AWS_ENDPOINT_URL"),
        ("AWS_SECRET_ACCESS_KEY", "", "missing: AWS_SECRET_ACCESS_KEY"),
        (
            "AWS_CA_BUNDLE",
            "/no/such.pem",
            "such.pem: cannot be read .No such file or directory.; correct AWS_CA_BUNDLE",
        ),
    ],
)
def test_settings_that_cannot_work(
    server: OddServer, remote: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match=said):
        size(remote / "x")
    assert server.asked == []


def test_https_is_not_spoken_to_a_server_without(
    server: OddServer, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url.replace("http:", "https:"))
    with pytest.raises(OSError, match="does not speak https; write http:// in AWS_ENDPOINT_URL"):
        size(remote / "x")


# ------------------------------------------------------------------ keys


def test_keys_and_endpoint_come_from_a_profile(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(
        f"[profile ours]\nregion = us-east-1\nendpoint_url = {os.environ['AWS_ENDPOINT_URL']}\n"
    )
    (tmp_path / "credentials").write_text(
        f"[ours]\naws_access_key_id = {os.environ['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {os.environ['AWS_SECRET_ACCESS_KEY']}\n"
    )
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "ours")
    file = parse_location(f"{bucket}/run/x")
    write_bytes(file, b"by a profile")
    assert read_bytes(file) == b"by a profile"


def test_the_endpoint_for_s3_alone_wins(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nowhere.invalid")
    file = parse_location(f"{bucket}/run/x")
    write_bytes(file, b"here")
    assert read_bytes(file) == b"here"
