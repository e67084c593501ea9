#!/usr/bin/env bash
# dask.distributed 2026.8.0: a worker of a LocalCluster whose process dies is started again by its nanny, but if the new
# process needs more than 15 s to get ready, the cluster closes the nanny for good and the worker never comes back.
# guess: the nanny starts the process again, and a slow start only means that one waits longer
# seen: with a start of 5 s there is 1 worker again; with one of 20 s there are 0, 60 s later, and nothing was logged
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check distributed==2026.8.0 dask==2026.8.0
mkdir "$work/site"
cat > "$work/site/sitecustomize.py" <<'PY'
import os, sys, time
# As an import of large libraries on a busy machine: every process after the first one takes its time.
if "--multiprocessing-fork" in sys.orig_argv:
    flag = os.environ["FLAG"]
    if os.path.exists(flag):
        time.sleep(float(os.environ["SECONDS_MORE"]))
    open(flag, "w").close()
PY
cat > "$work/try.py" <<'PY'
import os, signal, time
from distributed import Client, LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        (pid,) = client.run(os.getpid).values()
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 60
        time.sleep(3)
        while time.monotonic() < end and not client.scheduler_info()["workers"]:
            time.sleep(0.5)
        print("workers", len(client.scheduler_info()["workers"]))
PY
for seconds in 5 20; do
  rm -f "$work/flag"
  said=$(FLAG="$work/flag" SECONDS_MORE=$seconds PYTHONPATH="$work/site" "$work/venv/bin/python" "$work/try.py" | grep workers)
  echo "a start of $seconds s: $said"
  [ "$seconds" = 5 ] && expected="workers 1" || expected="workers 0"
  [ "$said" = "$expected" ] || { echo "this has changed"; exit 1; }
done
