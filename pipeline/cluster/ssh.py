"""Scripts that start workers on other machines over ssh."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...errors import ManifestError
from .settings import JobSettings, render

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")


def ssh_script(job: JobSettings, hosts: Sequence[str]) -> str:
    """Write the script, which runs on any machine that reaches the hosts and shares their disk.

    Args:
        job: settings of the job.
        hosts: names, or ``user@name``; ``localhost`` is the machine that runs the script.

    Raises:
        ManifestError: a host is named twice, or could not be one.
    """
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ManifestError(f"--host {host!r}: is no name of a host; put what it needs into ~/.ssh/config")
    twice = [host for host in dict.fromkeys(hosts) if hosts.count(host) > 1]
    if twice:
        raise ManifestError(f"--host {twice[0]}: is named twice; a host has one worker for each of its devices")
    return render("ssh.sh.j2", job, hosts=hosts)
