#!/usr/bin/env bash
# What obstore makes of the empty object "run/logits/" that the consoles of object stores make for a folder.
# guess: it is listed under its key, with the slash, as boto3 lists it; or left out, as it is no object of anybody's.
# seen: obstore 0.12.1 lists it without its slash, as an empty object "run/logits" that cannot be read (404), and
# seen: list("run/logits") has "run/logits" itself among what is below it, so that what cuts the prefix off gets an empty
# seen: name. delete("run/logits") succeeds and removes nothing: the marker stays, and is listed again.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q obstore==0.12.1 boto3==1.43.117 'moto[server]==5.2.5'
cat > "$work/look.py" <<'PY'
import sys

import boto3
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = "http://%s:%d" % server.get_host_and_port()
keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
client = boto3.client("s3", endpoint_url=url, **keys)
client.create_bucket(Bucket="bucket")
client.put_object(Bucket="bucket", Key="run/logits/", Body=b"")
client.put_object(Bucket="bucket", Key="run/logits/a", Body=b"1")
store = S3Store("bucket", endpoint=url, access_key_id="x", secret_access_key="x", client_options={"allow_http": True})


def listed(prefix):
    return [found["path"] for page in store.list(prefix) for found in page]


found = {"boto3": [one["Key"] for one in client.list_objects_v2(Bucket="bucket")["Contents"]]}
found["obstore"], found["below run/logits"] = listed("run"), listed("run/logits")
try:
    found["read"] = bytes(store.get("run/logits").bytes())
except FileNotFoundError:
    found["read"] = "not found"
store.delete("run/logits")
found["after delete"] = listed("run")
server.stop()
for what, value in found.items():
    print(f"{what}: {value}")
both = ["run/logits", "run/logits/a"]
if list(found.values()) != [["run/logits/", "run/logits/a"], both, both, "not found", both]:
    sys.exit("changed")
PY
"$work/venv/bin/python" "$work/look.py"
echo "as seen: a marker is listed as an empty object without its slash, cannot be read, and cannot be deleted so"
