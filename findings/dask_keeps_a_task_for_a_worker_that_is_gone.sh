#!/usr/bin/env bash
# What Dask does with a task of submit(workers=[address], allow_other_workers=True) when the last worker goes.
# guess: it waits until any worker comes, since other workers are allowed.
# seen: distributed 2026.8.0: it waits for that very address. A worker that comes later stays idle beside it, however long,
# seen: and the future stays pending. If another worker is there when the first one goes, the task moves to it at once.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q distributed==2026.8.0
cat > "$work/look.py" <<'PY'
import asyncio
import logging
import sys

from distributed import Client, Event, Scheduler, Worker

QUIET = {"dashboard_address": None}


def wait_or_answer(name, dask_worker=None):
    from distributed import get_worker

    if get_worker().name == "first":
        Event(name).wait()
    return get_worker().name


async def answer(other_is_there):
    async with Scheduler(port=0, **QUIET) as scheduler, Client(scheduler.address, asynchronous=True) as client:
        first = await Worker(scheduler.address, name="first", **QUIET)
        second = await Worker(scheduler.address, name="second", **QUIET) if other_is_there else None
        future = client.submit(wait_or_answer, "go", workers=[first.address], allow_other_workers=True)
        while not scheduler.tasks or next(iter(scheduler.tasks.values())).state != "processing":
            await asyncio.sleep(0.05)
        await scheduler.remove_worker(first.address, stimulus_id="gone", close=False, expected=False)
        if second is None:
            second = await Worker(scheduler.address, name="second", **QUIET)
        try:
            found = await asyncio.wait_for(future.result(), 10)
        except asyncio.TimeoutError:
            found = next(iter(scheduler.tasks.values())).state
        await Event("go").set()
        await asyncio.gather(first.close(), second.close())
        return found


logging.getLogger("distributed").setLevel(logging.CRITICAL + 1)
found = {one: asyncio.run(answer(one)) for one in (True, False)}
print(f"another worker is there: {found[True]}; it comes later: {found[False]} after 10 s")
if found != {True: "second", False: "no-worker"}:
    sys.exit("changed")
PY
"$work/venv/bin/python" "$work/look.py"
echo "as seen: a task of the last worker is not given to the next one that comes"
