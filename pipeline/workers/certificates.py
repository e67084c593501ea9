"""Certificates for encrypted connections between scheduler, workers and runs."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from ...errors import ManifestError, reason
from ...files import write_text

KEY, CERTIFICATE, ENVIRONMENT = "key.pem", "certificate.pem", "environment.sh"
_PREFIX = "DASK_DISTRIBUTED__COMM"
_ROLES = ("SCHEDULER", "WORKER", "CLIENT")


def write_certificates(folder: Path) -> list[Path]:
    """Make a key, its certificate, and a file that sets the environment variables by which Dask uses them.

    Dask makes the certificate, which is its own authority and valid for a year. Who has the key is let in.

    Args:
        folder: is created, and readable by its owner alone.

    Returns:
        the files.

    Raises:
        ManifestError: there is a key already, the folder cannot be written, or the package cryptography is missing.
    """
    from distributed.security import Security  # takes a second to load

    try:
        security = Security.temporary()
    except ImportError as error:
        raise ManifestError("cryptography is missing; install it: pip install 'hmsa-pipeline[tls]'") from error
    key, certificate, environment = (folder / name for name in (KEY, CERTIFICATE, ENVIRONMENT))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(security.tls_scheduler_key)
        write_text(certificate, security.tls_ca_file)
        write_text(environment, _environment(key.absolute(), certificate.absolute()))
    except FileExistsError as error:
        raise ManifestError(f"{error.filename}: is there already; remove it, or name another folder") from error
    except OSError as error:
        raise ManifestError(f"{folder}: cannot be written ({reason(error)}); name another folder") from error
    return [key, certificate, environment]


def refuse_without_certificates(address: str, scheduler: str) -> None:
    """Raise ManifestError if this process and the scheduler do not agree to encrypt their connection.

    Args:
        address: of the scheduler.
        scheduler: value of ``--scheduler``.
    """
    from distributed.security import Security

    security = Security()
    is_encrypted = address.startswith("tls://")
    if is_encrypted and not (security.tls_ca_file and security.tls_client_cert):
        raise ManifestError(
            f"--scheduler {scheduler}: lets in only who has its certificates; 'source environment.sh' in their folder"
        )
    if security.require_encryption and not is_encrypted:
        raise ManifestError(
            f"--scheduler {scheduler}: does not encrypt, and the settings of Dask here ask for it; start it with "
            "'dask scheduler --protocol tls'"
        )


def _environment(key: Path, certificate: Path) -> str:
    values = {"REQUIRE_ENCRYPTION": "True", "TLS__CA_FILE": str(certificate)}
    for role in _ROLES:
        values |= {f"TLS__{role}__KEY": str(key), f"TLS__{role}__CERT": str(certificate)}
    lines = [f"export {_PREFIX}__{name}={shlex.quote(value)}" for name, value in values.items()]
    return "\n".join(["# For scheduler, workers and runs: source this file first.", *lines, ""])
