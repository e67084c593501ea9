#!/usr/bin/env bash
# What Client.scheduler_info(n_workers=-1) of dask.distributed returns in a program while all workers are there.
# guess: all workers, at each call: the docstring says "Use -1 to obtain all workers".
# seen: distributed 2026.8.0: sometimes none. The client's own timer (distributed.client.scheduler-info-interval, 2 s)
# seen: asks for the scheduler without its workers, and stores that in the attribute from which scheduler_info returns
# seen: its own answer. On a busy machine, a program that polls takes all its workers for lost now and then. The answer
# seen: of client.sync(client.scheduler.identity, n_workers=-1) is always complete.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q dask==2026.8.0 distributed==2026.8.0
cat > "$work/look.py" <<'PY'
import logging
import sys

import dask
from distributed import Client, LocalCluster

CALLS = 300

logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)
found = {}
# A short interval shows in seconds what the default of 2 s shows in hours.
with (
    dask.config.set({"distributed.client.scheduler-info-interval": "2ms"}),
    LocalCluster(n_workers=4, processes=False, dashboard_address=None) as cluster,
    Client(cluster.scheduler_address) as client,
):
    client.wait_for_workers(4)
    counts = [len(client.scheduler_info(n_workers=-1)["workers"]) for _ in range(CALLS)]
    found["scheduler_info"] = sorted(set(counts))
    print(f"scheduler_info: no workers in {counts.count(0)} of {CALLS} calls, 4 in {counts.count(4)}")
    counts = [len(client.sync(client.scheduler.identity, n_workers=-1)["workers"]) for _ in range(CALLS)]
    found["identity"] = sorted(set(counts))
    print(f"identity: 4 workers in {counts.count(4)} of {CALLS} calls")
if found != {"scheduler_info": [0, 4], "identity": [4]}:
    sys.exit("changed")
PY
"$work/venv/bin/python" "$work/look.py"
echo "as seen: scheduler_info(n_workers=-1) sometimes lists no workers"
