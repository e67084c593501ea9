#!/usr/bin/env bash
# What Client.run(function, wait=False, on_error="ignore") of dask.distributed does with a plain function.
# guess: every worker runs it, and the call does not wait for the answers.
# seen: distributed 2026.8.0: no worker runs it. wait=False is for coroutine functions only; a plain one fails an assert
# seen: in each worker ("Combination not supported"), which on_error="ignore" hides from the caller. The documentation
# seen: of run says of wait only "If the function is asynchronous whether or not to wait until that function finishes."
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q distributed==2026.8.0
cat > "$work/look.py" <<'PY'
import logging
import sys
import time
from pathlib import Path

from distributed import Client, LocalCluster


def plain(file):
    Path(file).touch()


async def coroutine(file):
    Path(file).touch()


if __name__ == "__main__":
    logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)
    folder = Path(sys.argv[1])
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        client.run(plain, str(folder / "plain function without wait"), wait=False, on_error="ignore")
        client.run(coroutine, str(folder / "coroutine without wait"), wait=False, on_error="ignore")
        time.sleep(3)
        client.run(plain, str(folder / "plain function"), on_error="ignore")
        try:
            client.run(plain, str(folder / "no"), wait=False)
        except Exception as error:  # the worker's exception, as far as it can be sent
            said = str(error)
        else:
            said = "nothing"
    ran = sorted(file.name for file in folder.iterdir())
    print(f"ran: {ran}; without on_error: {said}")
    if ran != ["coroutine without wait", "plain function"] or "Combination not supported" not in said:
        sys.exit("changed")
PY
mkdir "$work/ran"
"$work/venv/bin/python" "$work/look.py" "$work/ran"
echo "as seen: with wait=False a plain function is run nowhere, and on_error=ignore says nothing"
