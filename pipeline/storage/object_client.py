"""Connections to object stores: keys and endpoint as AWS's own tools find them, and errors in one line."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from ...errors import cannot_read, reason

EXTRA = "hmsa-pipeline[cloud]"
KINDS = ("s3", "gs", "abfs", "abfss")
REQUEST_SECONDS = 300
"""The most that one request may take; an image of 1024x2048 has 50 MB."""
KEYS_LIVE = timedelta(minutes=10)
"""Time after which botocore is asked for keys again: it hands on none that ends sooner. obstore would wait 30 min."""
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_making = threading.Lock()


@functools.cache
def _made(root: str, prefix: str) -> Any:
    from obstore.store import S3Store, from_url

    options: Any = {"allow_http": True, "timeout": f"{REQUEST_SECONDS}s"}
    retries: Any = {"max_retries": 8, "backoff": {"init_backoff": timedelta(seconds=0.5)}}
    if not root.startswith("s3://"):
        return from_url(f"{root}/{prefix}".rstrip("/"), client_options=options, retry_config=retries)
    found = _aws_settings()
    if bundle := found.pop("ca_bundle", None):
        options["root_certificate"] = _read_certificates(bundle)
    if attempts := found.pop("max_attempts", None):
        retries["max_retries"] = int(attempts) - 1
    bucket = root.removeprefix("s3://")
    return S3Store(bucket, prefix=prefix or None, client_options=options, retry_config=retries, **found)


def connection(root: str, prefix: str = "") -> Any:
    """Return the process's only obstore object for a bucket, or for a folder in it.

    Args:
        root: URL of the bucket, such as ``s3://bucket``.
        prefix: the folder, to which keys are relative.

    Raises:
        ImportError: obstore is not installed.
        Exception: the settings found are wrong; see `as_oserror`.
    """
    with _making:
        return _made(root, prefix)


def _read_certificates(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"{cannot_read(file, error)}; correct AWS_CA_BUNDLE") from error


def _aws_settings() -> dict[str, Any]:
    """Find what S3Store does not look for itself.

    It reads the environment alone. What else AWS's tools know (profiles, roles, single sign-on) is botocore's, which
    takes a third of a second to load and so is asked only where keys are missing or there is a file for it to read.
    """
    file = Path(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")).expanduser()
    if all(os.environ.get(key) for key in _KEYS) and not file.exists():
        found = {name: os.environ.get(f"AWS_{name.upper()}") for name in ("ca_bundle", "max_attempts")}
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    else:
        import boto3
        import botocore.session
        from obstore.auth.boto3 import Boto3CredentialProvider

        config = botocore.session.get_session()
        session = boto3.Session(botocore_session=config)
        if session.get_credentials() is None:
            raise ValueError("no keys found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
        found = {name: config.get_config_variable(name) for name in ("ca_bundle", "max_attempts")}
        endpoint = session.client("s3").meta.endpoint_url
        keys = Boto3CredentialProvider(session, ttl=KEYS_LIVE)
        found |= {"credential_provider": keys, "endpoint": endpoint} | dict(keys.config)
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise ValueError(f"the endpoint {endpoint} has no http:// or https:// before it; correct AWS_ENDPOINT_URL")
    return found


# ------------------------------------------------------------------ errors


@contextlib.contextmanager
def as_oserror(path: Path) -> Iterator[None]:
    """Turn errors of obstore, and of what finds its keys, into OSError that names ``path``.

    A missing object raises FileNotFoundError, one that was to be made and is there FileExistsError, and a refusal
    PermissionError. ``errno`` is ENOTSUP where the server says that it does not know such a request.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else error.errno or errno.EIO
        raise OSError(number, _said(error), str(path)) from error
    except Exception as error:
        raise OSError(_number(error), _said(error), str(path)) from error


_NUMBERS = {
    "AlreadyExistsError": errno.EEXIST,
    "PermissionDeniedError": errno.EACCES,
    "UnauthenticatedError": errno.EACCES,
    "NotSupportedError": errno.ENOTSUP,
}
_STATUS_NUMBERS = {"401": errno.EACCES, "403": errno.EACCES, "501": errno.ENOTSUP}


def _number(error: Exception) -> int:
    if number := _NUMBERS.get(type(error).__name__):
        return number
    status = re.search(r"status code: (\d+)", str(error))
    return _STATUS_NUMBERS.get(status[1], errno.EIO) if status else errno.EIO


_ANSWER = re.compile(r"<Message>\s*([^<]*[^<\s])\s*</Message>")
_CODE = re.compile(r"<Code>\s*([^<]*[^<\s])\s*</Code>")
"""Ceph's gateway says no more than a code."""
_TROUBLE = re.compile(
    r"status code: (\d+ [^:\n]+)|message: \"([^\"]+)\"|error: \"([^\"]+)\"|InvalidCertificate\(\s*(\w+)"
    r"|\b(InvalidContentType|TimedOut)\b"
)
_WORDS = {
    "InvalidContentType": "does not speak https; write http:// in AWS_ENDPOINT_URL",
    "TimedOut": "gave no answer in time",
    "UnknownIssuer": "shows a certificate of an unknown authority; name the authority's file in AWS_CA_BUNDLE",
}


def _said(error: Exception) -> str:
    """Find the server's own words, or the system's, in the page of text that obstore makes of an error."""
    text = str(error)
    if answer := _ANSWER.search(text) or _CODE.search(text):
        return " ".join(answer[1].split())
    short = reason(text.partition("\n\nDebug source:")[0] or error)
    where = re.search(r"Error performing \w+ (https?://[^/\s]+)", text)
    if where is None:
        return short
    trouble = _TROUBLE.search(text)
    words = next(word for word in trouble.groups() if word) if trouble else short.rpartition(" - ")[2]
    return f"{where[1]}: {_WORDS.get(words, words)}"
