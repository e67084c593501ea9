#!/usr/bin/env bash
# How long obstore's Boto3CredentialProvider lets temporary keys (of a role, of single sign-on) be used.
# guess: until they end: botocore's refreshable credentials know when, and S3Store asks again in time.
# seen: obstore 0.12.1 with boto3 1.43.117: `expires_at` is always 30 minutes ahead, also for keys that end in 20; botocore
# seen: renews keys 10 to 15 minutes before their end, so that a store can sign with keys that ended a quarter of an hour
# seen: ago, and a long run gets 403 in the middle. With ttl=timedelta(minutes=10) no key is kept beyond its end.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q obstore==0.12.1 boto3==1.43.117
cat > "$work/look.py" <<'PY'
import sys
from datetime import datetime, timedelta, timezone

import boto3
import botocore.session
from botocore.credentials import RefreshableCredentials
from obstore.auth.boto3 import Boto3CredentialProvider

now = datetime.now(timezone.utc)
end = now + timedelta(minutes=20)
keys = {"access_key": "A", "secret_key": "B", "token": "C", "expiry_time": end.isoformat()}
session = botocore.session.get_session()
session._credentials = RefreshableCredentials.create_from_metadata(keys, refresh_using=lambda: keys, method="role")


def minutes(**options):
    provider = Boto3CredentialProvider(boto3.Session(botocore_session=session, region_name="us-east-1"), **options)
    return round((provider()["expires_at"] - now).total_seconds() / 60)


found = {"the keys end in": 20, "as S3Store hears": minutes(), "with ttl=10": minutes(ttl=timedelta(minutes=10))}
print(", ".join(f"{what} {value} minutes" for what, value in found.items()))
if list(found.values()) != [20, 30, 10]:
    sys.exit("changed")
PY
"$work/venv/bin/python" "$work/look.py"
echo "as seen: the end that obstore hears of is that of the provider's ttl, not that of the keys"
